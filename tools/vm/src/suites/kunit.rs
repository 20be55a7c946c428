// SPDX-License-Identifier: GPL-2.0

//! The kernel's unit tests, which run while it boots.

use crate::ktap::{Parser, Verdict};
use crate::suite::{Job, Report, boot};
use crate::vm::Config;
use anyhow::{Result, bail, ensure};
use std::time::Duration;

/// The project's own suites, which have to be there.
const SUITES: [&str; 10] = [
    "luo_block",
    "luo_sessions",
    "luo_registry",
    "luo_preserved_ids",
    "luo_outgoing_files",
    "luo_registry_flbs",
    "luo_incoming_files",
    "luo_incoming_flbs",
    "luo_flb_outgoing",
    "luo_flb_incoming",
];

/// All suites that are in a kernel.
pub fn jobs(flavour: &'static str) -> Vec<Job> {
    let name = format!("kunit/{flavour}");
    vec![Job::new(name.clone(), Vec::new(), move |_| {
        run(&name, flavour)
    })]
}

fn run(job: &str, flavour: &str) -> Result<Vec<Report>> {
    let mut config = Config::new([flavour]);
    config.chain[0].1 = "kunit.enable=1".to_owned();
    let outcome = boot(job, &config)?;
    let mut parser = Parser::default();
    let kernel = outcome.lines.iter().filter(|line| line.guest().is_none());
    let suites: Vec<_> = kernel.filter_map(|line| parser.line(line.body())).collect();
    if suites.is_empty() {
        let why = outcome.failure();
        bail!(
            "no suite ran: {}",
            why.unwrap_or_else(|| "the kernel has none".to_owned())
        );
    }
    let announced = parser.announced();
    ensure!(
        announced == Some(suites.len()),
        "{announced:?} suites were announced, {} ran",
        suites.len()
    );
    for name in SUITES {
        let found = suites.iter().find(|suite| suite.name == name);
        ensure!(
            found.is_some_and(|suite| !suite.children.is_empty()),
            "no test of the suite {name} ran"
        );
    }
    let mut reports = Vec::new();
    for suite in &suites {
        for (name, node) in suite.leaves() {
            let result = match node.result {
                Verdict::Ok => Ok(Duration::ZERO),
                Verdict::NotOk => Err(node.remarks.join("; ")),
                Verdict::Skipped => Err(format!("it was skipped: {}", node.remarks.join("; "))),
            };
            reports.push(Report::new(format!("{job}/{name}"), result));
        }
    }
    if let Some(why) = outcome.failure() {
        reports.push(Report::new(format!("{job}/console"), Err(why)).with_tail(|| outcome.tail()));
    }
    Ok(reports)
}
