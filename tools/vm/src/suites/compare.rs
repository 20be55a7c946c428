// SPDX-License-Identifier: GPL-2.0

//! What both cores have to print alike.

use crate::paths;
use crate::run::Outcome;
use crate::suite::{Job, Report, boot};
use crate::vm::Config;
use anyhow::{Context, Result, bail, ensure};
use similar::{ChangeTag, TextDiff};
use std::fs;
use std::time::Instant;

/// Where it is listed in what the cores differ on purpose.
const EXPECTED: &str = "tests/expected/ioctl-differences.txt";

/// The comparisons.
pub fn jobs() -> Vec<Job> {
    vec![
        Job::single("compare/handover", handover),
        Job::single("compare/ioctl-transcript", transcript),
    ]
}

/// Both hand the same over. The Rust core is the one that leaves a handover to be looked at.
fn handover(name: &str) -> Result<Report> {
    let start = Instant::now();
    let c = printed(name, &["c", "rust"], "handover-dump", "dump")?;
    let rust = printed(name, &["rust", "rust"], "handover-dump", "dump")?;
    let result = compare(&c, &rust, &[]).map_err(|error| format!("{error:#}"));
    Ok(Report::new(name, result.map(|()| start.elapsed())))
}

/// Both answer the same, but for what is listed.
fn transcript(name: &str) -> Result<Report> {
    let start = Instant::now();
    let path = paths::root().join(EXPECTED);
    let expected = fs::read_to_string(&path)
        .with_context(|| format!("reading {}", path.display()))
        .and_then(|text| differences(&text))?;
    let c = printed(name, &["c", "c"], "ioctl-transcript", "ioctl")?;
    let rust = printed(name, &["rust", "rust"], "ioctl-transcript", "ioctl")?;
    let result = compare(&c, &rust, &expected).map_err(|error| format!("{error:#}"));
    Ok(Report::new(name, result.map(|()| start.elapsed())))
}

fn printed(name: &str, chain: &[&str], scenario: &str, kind: &str) -> Result<Vec<String>> {
    let mut config = Config::new(chain.iter().copied());
    config.memory = 512;
    config.scenarios = vec![scenario.to_owned()];
    let outcome: Outcome = boot(&format!("{name} {}", chain.join("-")), &config)?;
    if let Err(why) = outcome.scenario_alone(scenario, chain.len()) {
        bail!(
            "{}: {why}\n{}",
            chain.join(" to "),
            outcome.tail().join("\n")
        );
    }
    let lines: Vec<String> = outcome.text(kind).into_iter().map(str::to_owned).collect();
    ensure!(
        lines.len() > 20,
        "{}: only {} lines",
        chain.join(" to "),
        lines.len()
    );
    Ok(lines)
}

/// A line that one core prints and the other does not.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Difference {
    C(String),
    Rust(String),
}

/// Reads the list of differences: a reason in lines that begin with `#`, then the lines that the
/// cores print, with `c: ` or `rust: ` before each.
fn differences(text: &str) -> Result<Vec<Difference>> {
    let mut differences = Vec::new();
    let mut reason = false;
    for line in text.lines() {
        if line.starts_with('#') {
            reason = true;
        } else if line.is_empty() {
            reason = false;
        } else if !reason {
            bail!("{EXPECTED}: no reason stands above {line:?}");
        } else if let Some(line) = line.strip_prefix("c: ") {
            differences.push(Difference::C(line.to_owned()));
        } else if let Some(line) = line.strip_prefix("rust: ") {
            differences.push(Difference::Rust(line.to_owned()));
        } else {
            bail!("{EXPECTED}: {line:?} is neither of c nor of rust");
        }
    }
    Ok(differences)
}

fn compare(c: &[String], rust: &[String], expected: &[Difference]) -> Result<()> {
    let (c, rust) = (c.join("\n") + "\n", rust.join("\n") + "\n");
    let mut expected = expected.to_vec();
    let mut unexpected = Vec::new();
    for change in TextDiff::from_lines(&c, &rust).iter_all_changes() {
        let line = change.value().trim_end_matches('\n').to_owned();
        let difference = match change.tag() {
            ChangeTag::Equal => continue,
            ChangeTag::Delete => Difference::C(line),
            ChangeTag::Insert => Difference::Rust(line),
        };
        match expected.iter().position(|known| *known == difference) {
            Some(at) => drop(expected.remove(at)),
            None => unexpected.push(difference),
        }
    }
    if !unexpected.is_empty() {
        bail!("they differ: {unexpected:?}");
    }
    if !expected.is_empty() {
        bail!("{EXPECTED} lists what is not so: {expected:?}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str) -> Vec<String> {
        text.lines().map(str::to_owned).collect()
    }

    #[test]
    fn equal_transcripts_are_equal() {
        assert!(compare(&lines("a\nb"), &lines("a\nb"), &[]).is_ok());
    }

    #[test]
    fn a_difference_has_to_be_listed() {
        let listed = differences("# why\nc: b\nrust: x\n").unwrap();
        assert!(compare(&lines("a\nb"), &lines("a\nx"), &[]).is_err());
        assert!(compare(&lines("a\nb"), &lines("a\nx"), &listed).is_ok());
        assert!(compare(&lines("a\nb"), &lines("a\ny"), &listed).is_err());
    }

    #[test]
    fn a_listed_difference_has_to_be_there() {
        let listed = differences("# why\nc: b\nrust: x\n").unwrap();
        assert!(compare(&lines("a\nb"), &lines("a\nb"), &listed).is_err());
    }

    #[test]
    fn a_difference_has_a_reason() {
        assert!(differences("c: b\n").is_err());
        assert!(differences("# why\n\nc: b\n").is_err());
        assert!(differences("# why\nb\n").is_err());
    }
}
