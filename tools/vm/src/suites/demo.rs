// SPDX-License-Identifier: GPL-2.0

//! The demonstration as a test.

use crate::demo;
use crate::suite::{Job, Report, boot};
use crate::vm::Config;
use anyhow::Result;

/// On both cores.
pub fn jobs() -> Vec<Job> {
    let job = |flavour: &'static str| {
        Job::single(format!("demo/{flavour}"), move |name| {
            Ok(Report::of(name, || verified(name, flavour)))
        })
    };
    vec![job("rust"), job("c")]
}

fn verified(name: &str, flavour: &str) -> Result<()> {
    let config: Config = demo::config(flavour);
    let outcome = boot(name, &config)?;
    let mut timeline = demo::Timeline::quiet();
    for line in &outcome.lines {
        timeline.line(line);
    }
    timeline.end(flavour, &outcome)?;
    Ok(())
}
