// SPDX-License-Identifier: GPL-2.0

//! What a live update of an iommufd costs, in instructions.

use super::cost::{Costs, at_most, run};
use crate::device::Device;
use crate::suite::{Job, Report};
use anyhow::{Context, Result};
use std::time::Instant;

const FLAVOUR: &str = "rust";

/// How many mappings, and how many more.
const FEW: u64 = 25_000;
const MANY: u64 = 100_000;
/// What four times as many may cost.
const LINEAR: f64 = 4.5;

/// What an iommufd that came over may cost, until a device is attached, against one that is made
/// from nothing: no more, but for what two of the same differ by.
const DEARER: f64 = 1.01;

/// 1 GiB in pages of 4 KiB.
const PAGES: u64 = 1 << 18;

/// That cost grows with the number of mappings, and that nothing is cheaper than a live update.
pub fn jobs() -> Vec<Job> {
    vec![
        Job::new("iommu-cost/mappings", mapping_tests(), |_| mappings()),
        Job::single("iommu-cost/1-gib-of-4-kib", |name| pages(name, false)),
        Job::single("iommu-cost/1-gib-of-2-mib", |name| pages(name, true)),
    ]
}

const MAPPINGS: [&str; 3] = ["preserve mappings", "freeze mappings", "retrieve mappings"];

fn mapping_test(what: &str) -> String {
    format!("iommu-cost/{}", what.replace(' ', "-"))
}

fn mapping_tests() -> Vec<String> {
    MAPPINGS.iter().map(|what| mapping_test(what)).collect()
}

fn mappings() -> Result<Vec<Report>> {
    let start = Instant::now();
    let (few, many) = (cost_of_mappings(FEW)?, cost_of_mappings(MANY)?);
    let each = start.elapsed() / MAPPINGS.len() as u32;
    let reports = MAPPINGS.iter().map(|what| {
        let (few, many) = ((FEW, few.get(*what)), (MANY, many.get(*what)));
        Report::new(
            mapping_test(what),
            at_most(LINEAR, few, many).map(|()| each),
        )
    });
    Ok(reports.collect())
}

fn pages(name: &str, huge: bool) -> Result<Report> {
    let start = Instant::now();
    let costs = cost_of_pages(huge)?;
    Ok(Report::new(name, compare(&costs).map(|()| start.elapsed())))
}

fn cost_of_pages(huge: bool) -> Result<Costs> {
    run("iommu-cost-of-pages", FLAVOUR, PAGES, |config| {
        config.memory = 3072;
        config.devices = vec![Device::EDU];
        let huge = u32::from(huge).to_string();
        config.args.insert("huge".to_owned(), huge);
    })
}

fn cost_of_mappings(n: u64) -> Result<Costs> {
    run("iommu-cost-of-mappings", FLAVOUR, n, |_| {})
}

/// Prints what it costs.
pub fn bench() -> Result<()> {
    println!("\nThe same for an iommufd, with a device that is bound and attached to 1 GiB.\n");
    println!("{:<26}{:>12}{:>12}", "", "4 KiB pages", "2 MiB");
    eprintln!("measuring iommufds with pages");
    let (small, huge) = (cost_of_pages(false)?, cost_of_pages(true)?);
    for what in ["make an iommufd", "retrieve an iommufd", "make another"] {
        println!(
            "{what:<26}{:>12.2}{:>12.2}",
            millis(&small, what)?,
            millis(&huge, what)?
        );
    }
    println!("\n{:<26}{FEW:>12}{MANY:>12}", "");
    eprintln!("measuring iommufds with mappings");
    let (few, many) = (cost_of_mappings(FEW)?, cost_of_mappings(MANY)?);
    for what in MAPPINGS {
        println!(
            "{what:<26}{:>12.2}{:>12.2}",
            millis(&few, what)?,
            millis(&many, what)?
        );
    }
    Ok(())
}

fn millis(costs: &Costs, what: &str) -> Result<f64> {
    let nanos = costs
        .get(what)
        .with_context(|| format!("no cost of {what}"))?;
    Ok(*nanos as f64 / 1e6)
}

/// The one that came over is measured between two that did not.
fn compare(costs: &Costs) -> Result<(), String> {
    let cost = |what: &'static str| (what, costs.get(what));
    let ours = cost("retrieve an iommufd");
    at_most(DEARER, cost("make an iommufd"), ours)?;
    at_most(DEARER, cost("make another"), ours)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn costs(first: u64, ours: u64, second: u64) -> Costs {
        [
            ("make an iommufd", first),
            ("retrieve an iommufd", ours),
            ("make another", second),
        ]
        .map(|(what, nanos)| (what.to_owned(), nanos))
        .into()
    }

    #[test]
    fn what_is_dearer_than_either_fails() {
        assert!(compare(&costs(1000, 1010, 1000)).is_ok());
        assert!(compare(&costs(1000, 1011, 2000)).is_err());
        assert!(compare(&costs(2000, 1011, 1000)).is_err());
        assert!(compare(&Costs::new()).is_err());
    }
}
