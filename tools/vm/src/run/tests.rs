// SPDX-License-Identifier: GPL-2.0

//! What is made of a console, from power-on to power-off.

use super::*;

const WARNING: &str = "[    1.0] WARNING: CPU: 0 PID: 1 at kernel/kexec_core.c:1 f+0x1/0x2";
const FIRST: [&str; 4] = [
    "[    0.5] luo-guest: = {\"event\":\"init\",\"stage\":0}",
    "[    0.6] luo-guest: > a",
    "[    0.7] luo-guest: ok 1 - a stage 0 # 5 ms",
    "[    0.8] luo-guest: = {\"event\":\"reboot\"}",
];
const SECOND: [&str; 3] = [
    "[    0.5] luo-guest: = {\"event\":\"init\",\"stage\":1}",
    "[    0.6] luo-guest: > a",
    "[    0.7] luo-guest: ok 1 - a stage 1 # 5 ms",
];
const OFF: &str = "[    0.9] reboot: Power down";

fn outcome(parts: &[&[&str]], broken: Option<&str>) -> Outcome {
    let watch = Watch::new().unwrap();
    let mut state = State::default();
    for text in parts.iter().copied().flatten() {
        state.line(&watch, Line::new(text));
    }
    state.end(broken.map(str::to_owned), 2, Duration::ZERO)
}

/// What a scenario alone in its machine fails with, while it would pass in a shared one.
fn alone(parts: &[&[&str]], broken: Option<&str>) -> String {
    let outcome = outcome(parts, broken);
    assert!(outcome.scenario("a", 2).is_ok());
    assert!(outcome.failure().is_some());
    outcome.scenario_alone("a", 2).unwrap_err()
}

#[test]
fn a_calm_run_passes() {
    let outcome = outcome(&[&FIRST, &SECOND, &[OFF]], None);
    assert_eq!(outcome.failure(), None);
    assert!(outcome.scenario_alone("a", 2).is_ok());
}

#[test]
fn a_warning_after_the_reboot_fails() {
    let why = alone(&[&FIRST, &[WARNING], &SECOND, &[OFF]], None);
    assert!(why.contains("WARNING: "), "{why}");
}

#[test]
fn a_warning_in_the_next_kernels_boot_fails() {
    let boot = ["[    0.0] Linux version 7.3", WARNING];
    let why = alone(&[&FIRST, &boot, &SECOND, &[OFF]], None);
    assert!(why.contains("WARNING: "), "{why}");
}

#[test]
fn a_warning_at_power_off_fails() {
    let why = alone(&[&FIRST, &SECOND, &[WARNING, OFF]], None);
    assert!(why.contains("WARNING: "), "{why}");
    // Nor is what comes after the last words overheard.
    alone(&[&FIRST, &SECOND, &[OFF, WARNING]], None);
}

#[test]
fn a_warning_within_a_scenario_is_its_own() {
    let parts: [&[&str]; 5] = [&FIRST, &SECOND[..2], &[WARNING], &SECOND[2..], &[OFF]];
    let outcome = outcome(&parts, None);
    assert!(outcome.scenario("a", 2).is_err());
    assert!(outcome.scenario_alone("a", 2).is_err());
    assert_eq!(outcome.failure_of_none(), None);
}

#[test]
fn a_timeout_after_the_last_result_fails() {
    let late = "the machine was silent for 120 s";
    assert_eq!(alone(&[&FIRST, &SECOND], Some(late)), late);
}

#[test]
fn an_end_without_power_off_fails() {
    let why = alone(&[&FIRST, &SECOND], None);
    assert!(why.contains("without a power-off"), "{why}");
}

#[test]
fn a_kernel_that_never_came_fails() {
    let outcome = outcome(&[&FIRST], None);
    assert!(outcome.scenario("a", 1).is_ok());
    assert!(outcome.scenario_alone("a", 1).is_err());
}

#[test]
fn a_missing_stage_fails() {
    let outcome = outcome(&[&FIRST, &SECOND[..2], &[OFF]], None);
    let why = outcome.scenario("a", 2).unwrap_err();
    assert!(why.starts_with("did not end in kernel 2"), "{why}");
    let why = outcome.scenario("b", 1).unwrap_err();
    assert!(why.starts_with("did not run in kernel 1"), "{why}");
}

#[test]
fn a_result_that_comes_twice_fails() {
    let outcome = outcome(&[&FIRST, &SECOND, &SECOND[2..], &[OFF]], None);
    assert!(outcome.scenario("a", 2).is_err());
    assert!(outcome.scenario_alone("a", 2).is_err());
}

#[test]
fn what_process_1_or_a_helper_fails_with_fails() {
    for own in [
        "[    0.8] luo-guest: not ok 0 - process 1 # reboot into the next kernel: EBUSY",
        "[    0.8] luo-guest: not ok 0 - helper storm 1 # opening the device: EIO",
    ] {
        let why = alone(&[&FIRST, &[own], &SECOND, &[OFF]], None);
        assert!(why.contains("EBUSY") || why.contains("EIO"), "{why}");
        // Also while a scenario runs, which goes on.
        let parts: [&[&str]; 5] = [&FIRST, &SECOND[..2], &[own], &SECOND[2..], &[OFF]];
        alone(&parts, None);
    }
}
