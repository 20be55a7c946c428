// SPDX-License-Identifier: GPL-2.0

//! Tests of the watch itself: real kernels in real trouble have to be caught.

use crate::suite::{Job, Report, boot};
use crate::vm::Config;
use anyhow::{Result, ensure};
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
        // One is stuck, and the other prints what the first one's timer found.
        cpus: 2,
        silence: 60,
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

/// Each kind of trouble, and none.
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
    jobs
}

fn calm(name: &str) -> Result<()> {
    let mut config = Config::new(["rust"]);
    config.scenarios = vec!["trouble-none".to_owned()];
    let outcome = boot(name, &config)?;
    let said = outcome.failure();
    ensure!(said.is_none(), "the watch said {said:?}");
    let result = outcome.scenario("trouble-none", 1);
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
