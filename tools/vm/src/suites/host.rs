// SPDX-License-Identifier: GPL-2.0

//! The tests that need no kernel: those of the crates that run on the host.

use crate::paths;
use crate::suite::{Job, Report};
use anyhow::{Context, Result, bail};
use regex::Regex;
use std::process::Command;
use std::time::Duration;

/// The wire formats, the userspace library, process 1, and this program with its parser and its
/// watch.
const CRATES: [&str; 4] = ["luo_abi", "liveupdate", "luo-guest", "luo-vm"];

/// One job a crate.
pub fn jobs() -> Vec<Job> {
    let job = |name: &'static str| Job::new(format!("host/{name}"), Vec::new(), move |_| run(name));
    CRATES.into_iter().map(job).collect()
}

fn run(name: &str) -> Result<Vec<Report>> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .current_dir(paths::root())
        .args(["test", "--quiet", "--release", "--no-fail-fast"])
        .args(["--package", name])
        .args(["--", "--format", "pretty"])
        .output()
        .context("running cargo test")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    let reports = results(name, &text)?;
    if !output.status.success() && reports.iter().all(|report| report.result.is_ok()) {
        bail!("cargo test: {}: {}", output.status, errors.trim());
    }
    Ok(reports)
}

/// Reads what libtest prints.
fn results(name: &str, text: &str) -> Result<Vec<Report>> {
    let line = Regex::new(r"^test (.+?)(?: - should panic)? \.\.\. (\S+)")?;
    let lines: Vec<&str> = text.lines().collect();
    let found = lines.iter().filter_map(|text| line.captures(text));
    Ok(found
        .map(|found| {
            let result = match &found[2] {
                "ok" => Ok(Duration::ZERO),
                other => Err(format!("cargo test -p {name} says {other}")),
            };
            let tail = || lines.iter().map(|&line| line.to_owned()).collect();
            Report::new(format!("host/{name}/{}", &found[1]), result).with_tail(tail)
        })
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_result_counts() {
        let text = "\
running 3 tests
test tests::a ... ok
test tests::b ... FAILED
test src/lib.rs - (line 15) - compile ... ok
test tests::c - should panic ... ok
test tests::d ... ignored, slow
test result: FAILED. 2 passed";
        let reports = results("x", text).unwrap();
        let found: Vec<(&str, bool)> = reports
            .iter()
            .map(|report| (report.name.as_str(), report.result.is_ok()))
            .collect();
        assert_eq!(
            found,
            [
                ("host/x/tests::a", true),
                ("host/x/tests::b", false),
                ("host/x/src/lib.rs - (line 15) - compile", true),
                ("host/x/tests::c", true),
                ("host/x/tests::d", false),
            ]
        );
    }
}
