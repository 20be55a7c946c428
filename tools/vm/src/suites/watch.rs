// SPDX-License-Identifier: GPL-2.0

//! Tests of the watch itself: real kernels in real trouble have to be caught.

use crate::suite::{Job, Report, boot};
use crate::vm::{Config, DEBUG};
use anyhow::{Result, bail, ensure};
use std::time::Duration;

/// A scenario, what the watch has to say of it, and how the machine is for it.
struct Case {
    scenario: &'static str,
    says: &'static str,
    cpus: u32,
    silence: u64,
}

const CASES: [Case; 7] = [
    Case {
        scenario: "trouble-warning",
        says: "cut here",
        cpus: 1,
        silence: 60,
    },
    Case {
        scenario: "trouble-oops",
        says: "BUG: ",
        cpus: 1,
        silence: 60,
    },
    Case {
        scenario: "trouble-panic",
        says: "Kernel panic",
        cpus: 1,
        silence: 60,
    },
    Case {
        scenario: "trouble-lockup",
        says: "soft lockup",
        // One is stuck, and the other prints what the first one's timer found. On a busy host that
        // can take a minute.
        cpus: 2,
        silence: 150,
    },
    Case {
        scenario: "trouble-hung-task",
        says: "blocked for more than",
        cpus: 1,
        silence: 60,
    },
    // Nothing at all is said with interrupts off on the only processor.
    Case {
        scenario: "trouble-hang",
        says: "silent for",
        cpus: 1,
        silence: 25,
    },
    Case {
        scenario: "trouble-in-process-1",
        says: "Attempted to kill init",
        cpus: 1,
        silence: 60,
    },
];

/// Each kind of trouble, and none, and trouble after a kexec.
pub fn jobs() -> Vec<Job> {
    let mut jobs = vec![Job::single("watch/trouble-none", |name| {
        Ok(Report::of(name, || calm(name)))
    })];
    for case in CASES {
        let name = format!("watch/{}", case.scenario);
        jobs.push(Job::single(name, move |name| {
            Ok(Report::of(name, || caught(name, &case)))
        }));
    }
    jobs.push(Job::single("watch/trouble-in-kernel-2", |name| {
        Ok(Report::of(name, || in_second_kernel(name)))
    }));
    jobs.push(Job::single("watch/trouble-between-scenarios", |name| {
        Ok(Report::of(name, || in_second_boot(name)))
    }));
    jobs
}

/// A bug in a handler: its scenario, what has to be said of it, and the function that has it.
struct Bug {
    scenario: &'static str,
    says: &'static str,
    function: &'static str,
}

const BUGS: [Bug; 3] = [
    Bug {
        scenario: "bug-lockdep",
        says: "WARNING: possible circular locking dependency detected",
        function: "luo_bug_lockdep+0x",
    },
    Bug {
        scenario: "bug-kasan",
        says: "BUG: KASAN: slab-use-after-free in luo_bug_kasan+0x",
        function: "luo_bug_kasan+0x",
    },
    Bug {
        scenario: "bug-leak",
        says: "new suspected memory leaks",
        function: "luo_bug_leak+0x",
    },
];

/// What only the debug kernel reports.
pub fn debug() -> Vec<Job> {
    let job = |bug: Bug| {
        Job::single(format!("watch/debug/{}", bug.scenario), move |name| {
            Ok(Report::of(name, || reported(name, &bug)))
        })
    };
    BUGS.into_iter().map(job).collect()
}

/// The handler says that all is well, and the report of its bug is the only one.
fn reported(name: &str, bug: &Bug) -> Result<()> {
    let mut config = Config::new([DEBUG]);
    config.scenarios = vec![bug.scenario.to_owned()];
    let outcome = boot(name, &config)?;
    ensure!(
        outcome
            .stages
            .iter()
            .any(|stage| stage.scenario == bug.scenario && stage.result.is_ok()),
        "the bug did not come to its end: {:?}",
        outcome.stages
    );
    let [only] = &outcome.troubles[..] else {
        bail!("the watch saw {:?}, expected one report", outcome.troubles);
    };
    ensure!(
        only.text.contains(bug.says),
        "the watch saw {:?}, expected {:?}",
        only.text,
        bug.says
    );
    let mut after = outcome.lines.iter().skip(only.line);
    ensure!(
        after.any(|line| line.raw.contains(bug.function)),
        "the report does not say that it is of {}",
        bug.function
    );
    ensure!(outcome.broken.is_none(), "it ended: {:?}", outcome.broken);
    let result = outcome.scenario_alone(bug.scenario, 1);
    ensure!(result.is_err(), "the scenario passed all the same");
    Ok(())
}

/// A warning in a scenario of the second kernel, which goes on to its end.
fn in_second_kernel(name: &str) -> Result<()> {
    const SCENARIO: &str = "trouble-after-kexec";
    let outcome = boot(name, &second(SCENARIO, ""))?;
    let said = outcome.failure().unwrap_or_default();
    ensure!(said.contains("cut here"), "the watch said {said:?}");
    ensure!(outcome.broken.is_none(), "it ended: {:?}", outcome.broken);
    let result = outcome.scenario(SCENARIO, 2);
    ensure!(result.is_err(), "the scenario passed all the same");
    Ok(())
}

/// The second kernel finds no process 1. No scenario runs then, and all that there is had passed.
fn in_second_boot(name: &str) -> Result<()> {
    const SCENARIO: &str = "trouble-none";
    let outcome = boot(name, &second(SCENARIO, "rdinit=/nothing"))?;
    let passed = outcome.scenario(SCENARIO, 1);
    ensure!(passed.is_ok(), "kernel 1: {passed:?}");
    let trouble = outcome.troubles.first();
    ensure!(
        trouble.is_some_and(|trouble| trouble.scenario.is_none()),
        "the watch saw {trouble:?} first"
    );
    let alone = outcome.scenario_alone(SCENARIO, 1);
    ensure!(
        alone
            .as_ref()
            .is_err_and(|why| why.contains("Kernel panic")),
        "the machine's test: {alone:?}"
    );
    Ok(())
}

/// Two kernels, with an addition to the second one's command line.
fn second(scenario: &str, extra: &str) -> Config {
    let mut config = Config::new(["rust"; 2]);
    config.scenarios = vec![scenario.to_owned()];
    config.chain[1].1 = extra.to_owned();
    config
}

fn calm(name: &str) -> Result<()> {
    let mut config = Config::new(["rust"]);
    config.scenarios = vec!["trouble-none".to_owned()];
    let outcome = boot(name, &config)?;
    let said = outcome.failure();
    ensure!(said.is_none(), "the watch said {said:?}");
    let result = outcome.scenario_alone("trouble-none", 1);
    ensure!(result.is_ok(), "it failed: {result:?}");
    Ok(())
}

fn caught(name: &str, case: &Case) -> Result<()> {
    let mut config = Config::new(["rust"]);
    config.scenarios = vec![case.scenario.to_owned()];
    config.cpus = case.cpus;
    config.memory = 512;
    config.grace = Some(Duration::from_secs(2));
    config.silence = Duration::from_secs(case.silence);
    config.total = Duration::from_secs(180);
    let outcome = boot(name, &config)?;
    let said = outcome.failure().unwrap_or_default();
    ensure!(
        said.contains(case.says),
        "the watch said {said:?}, expected {:?}; the console ends with\n{}",
        case.says,
        outcome.tail().join("\n")
    );
    let during = match outcome.troubles.first() {
        Some(trouble) => &trouble.scenario,
        None => &outcome.running,
    };
    ensure!(
        during.as_deref() == Some(case.scenario),
        "it was caught during {during:?}"
    );
    let result = outcome.scenario(case.scenario, 1);
    ensure!(result.is_err(), "the scenario passed all the same");
    Ok(())
}
