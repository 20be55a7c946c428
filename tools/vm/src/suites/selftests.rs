// SPDX-License-Identifier: GPL-2.0

//! The kernel's own selftests of live update, built from its tree as they are.

use crate::ktap::{Parser, Verdict};
use crate::paths;
use crate::suite::{Job, Report, boot, last};
use crate::vm::Config;
use anyhow::{Context, Result, bail, ensure};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::time::Duration;

/// The tests that kexec.
const KEXEC: [&str; 4] = [
    "luo_kexec_simple",
    "luo_multi_session",
    "luo_stress_files",
    "luo_stress_sessions",
];

/// The tests that do not.
const CASES: &str = "liveupdate";

/// The Rust core with both memfd handlers.
pub fn jobs() -> Vec<Job> {
    let mut jobs = Vec::new();
    for flavour in ["rust", "rust-cmemfd"] {
        for test in KEXEC {
            let name = format!("selftest/{flavour}/{test}");
            jobs.push(Job::single(name, move |name| kexec(name, flavour)));
        }
    }
    jobs.push(Job::new("selftest/rust/liveupdate", Vec::new(), |_| {
        cases("rust")
    }));
    jobs
}

fn config(flavour: &str, kernels: usize, scenario: &str, program: &str) -> Result<Config> {
    let mut config = Config::new(std::iter::repeat_n(flavour, kernels));
    config.scenarios = vec![scenario.to_owned()];
    config.args.insert("program".to_owned(), program.to_owned());
    config.programs = vec![(program.to_owned(), build(program)?)];
    Ok(config)
}

fn kexec(name: &str, flavour: &str) -> Result<Report> {
    let outcome = boot(name, &config(flavour, 2, "selftest-kexec", last(name))?)?;
    let mut result = outcome
        .scenario_alone("selftest-kexec", 2)
        .map(|_| outcome.time);
    let passed = outcome
        .text("tap")
        .iter()
        .any(|line| line.contains("TEST PASSED"));
    if result.is_ok() && !passed {
        result = Err("it did not say that it passed".to_owned());
    }
    Ok(Report::new(name, result).with_tail(|| outcome.tail()))
}

fn cases(flavour: &str) -> Result<Vec<Report>> {
    let name = format!("selftest/{flavour}/{CASES}");
    let outcome = boot(&name, &config(flavour, 1, "selftest", CASES)?)?;
    let mut parser = Parser::default();
    let nodes: Vec<_> = outcome
        .text("tap")
        .into_iter()
        .filter_map(|line| parser.line(line))
        .collect();
    let announced = parser.announced();
    let mut reports = Vec::new();
    for node in &nodes {
        let result = match node.result {
            Verdict::Ok => Ok(Duration::ZERO),
            _ => Err(node.remarks.join("; ")),
        };
        reports.push(Report::new(format!("{name}/{}", node.name), result));
    }
    // The program's own opinion, and whether all of it ran.
    let result = match outcome.scenario_alone("selftest", 1) {
        Ok(_) if announced != Some(nodes.len()) || nodes.is_empty() => Err(format!(
            "{announced:?} tests were announced, {} ran",
            nodes.len()
        )),
        result => result,
    };
    if result.is_err() {
        reports.push(Report::new(name, result).with_tail(|| outcome.tail()));
    }
    Ok(reports)
}

/// Builds one of the programs and says where it is. That is in this checkout, since others may
/// have other sources.
fn build(program: &str) -> Result<PathBuf> {
    // One at a time: all of them need the headers.
    static LOCK: Mutex<()> = Mutex::new(());
    let _lock = LOCK.lock().unwrap_or_else(|broken| broken.into_inner());
    let source = paths::kernel_source()?;
    let dir = paths::root().join("target/selftests");
    fs::create_dir_all(&dir).with_context(|| format!("creating {}", dir.display()))?;
    let stamp = dir.join("source");
    let here = format!("{}\n", source.display());
    if fs::read_to_string(&stamp).unwrap_or_default() != here {
        install_headers(&source, &dir)?;
        fs::write(&stamp, here)?;
    }
    let (output, partial) = (
        dir.join(program),
        dir.join(format!("{program}.{}", std::process::id())),
    );
    let tests = source.join("tools/testing/selftests/liveupdate");
    let mut cc = Command::new("cc");
    cc.arg("-I").arg(dir.join("usr/include"));
    if program == CASES {
        cc.args(["-static", "-O2", "-Wall", "-D_GNU_SOURCE"]);
    } else {
        cc.args(["-static", "-O2", "-nostdinc", "-nostdlib"])
            .arg("-I")
            .arg(source.join("tools/include/nolibc"));
    }
    cc.arg("-I")
        .arg(tests.join("lib/include"))
        .arg("-o")
        .arg(&partial)
        .arg(tests.join(format!("{program}.c")))
        .arg(tests.join("lib/lu_utils.c"));
    run(&mut cc).with_context(|| format!("building the selftest {program}"))?;
    ensure!(partial.is_file(), "{} was not built", partial.display());
    // A machine that is about to start may be reading the one of before.
    fs::rename(&partial, &output).with_context(|| format!("renaming {}", partial.display()))?;
    Ok(output)
}

fn install_headers(source: &Path, dir: &Path) -> Result<()> {
    let build = dir.join("headers");
    let mut make = Command::new("make");
    make.arg("-s")
        .arg("-C")
        .arg(source)
        .arg(format!("O={}", build.display()))
        .arg(format!("INSTALL_HDR_PATH={}", dir.join("usr").display()))
        .arg("headers_install")
        .env_remove("MAKEFLAGS")
        .env_remove("MAKELEVEL")
        .env_remove("MFLAGS");
    fs::create_dir_all(&build)?;
    run(&mut make).context("installing the kernel's headers")
}

fn run(command: &mut Command) -> Result<()> {
    let output = command
        .output()
        .with_context(|| format!("starting {}", command.get_program().display()))?;
    if !output.status.success() {
        let errors = String::from_utf8_lossy(&output.stderr);
        bail!("{}: {}", output.status, errors.trim());
    }
    Ok(())
}
