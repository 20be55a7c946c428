// SPDX-License-Identifier: GPL-2.0

//! What live update costs, in instructions.

use super::iommu_cost;
use crate::run::Outcome;
use crate::suite::{Job, Report, boot, last};
use crate::vm::Config;
use anyhow::{Context, Result, bail};
use luo_guest::protocol::Event;
use std::collections::BTreeMap;
use std::fmt::Display;
use std::time::{Duration, Instant};

/// How many, and how many more.
const FEW: u64 = 2_000;
const MANY: u64 = 8_000;
/// What four times as many may cost.
const LIMIT: f64 = 4.5;

/// What has to grow with the number and no faster.
const LINEAR: [&str; 5] = [
    "create sessions",
    "open the device",
    "retrieve sessions",
    "preserve files",
    "retrieve files",
];

/// What else is measured.
const OTHERS: [&str; 2] = ["finish sessions", "finish files"];

/// What took how many nanoseconds.
pub type Costs = BTreeMap<String, u64>;

/// That cost grows with the number.
pub fn jobs() -> Vec<Job> {
    let tests = LINEAR
        .iter()
        .map(|what| format!("cost/rust/{}", what.replace(' ', "-")));
    vec![Job::new("cost/rust", tests.collect(), |tests| {
        let start = Instant::now();
        let (few, many) = (measure("rust", FEW)?, measure("rust", MANY)?);
        let each = start.elapsed() / LINEAR.len() as u32;
        Ok(tests
            .iter()
            .map(|test| Report::new(test, judge(&few, &many, last(test), each)))
            .collect())
    })]
}

fn judge(few: &Costs, many: &Costs, test: &str, time: Duration) -> Result<Duration, String> {
    let what = test.replace('-', " ");
    let (few, many) = ((FEW, few.get(&what)), (MANY, many.get(&what)));
    at_most(LIMIT, few, many).map(|()| time)
}

/// Expects that what `many` cost is at most so many times what `few` cost.
pub fn at_most(
    limit: f64,
    few: (impl Display, Option<&u64>),
    many: (impl Display, Option<&u64>),
) -> Result<(), String> {
    let (few_name, many_name) = (few.0, many.0);
    let (Some(few), Some(many)) = (few.1, many.1) else {
        return Err("it was not measured".to_owned());
    };
    if *few == 0 {
        return Err(format!("{few_name} cost nothing, so nothing was measured"));
    }
    let ratio = *many as f64 / *few as f64;
    if ratio > limit {
        return Err(format!(
            "{many_name} cost {ratio:.3} times what {few_name} cost ({} and {} us); \
             {limit} is the limit",
            many / 1_000,
            few / 1_000
        ));
    }
    Ok(())
}

fn measure(flavour: &str, n: u64) -> Result<Costs> {
    run("cost", flavour, n, |config| config.memory = 2048)
}

/// Runs a scenario that measures so many of something, in two kernels.
pub fn run(
    scenario: &str,
    flavour: &str,
    n: u64,
    adjust: impl FnOnce(&mut Config),
) -> Result<Costs> {
    let mut config = Config::new([flavour; 2]);
    config.count_instructions = true;
    config.cpus = 1;
    config.silence = Duration::from_secs(300);
    config.total = Duration::from_secs(1200);
    config.scenarios = vec![scenario.to_owned()];
    config.args.insert("n".to_owned(), n.to_string());
    adjust(&mut config);
    let args: Vec<_> = config
        .args
        .iter()
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    let outcome = boot(&format!("{scenario} {flavour} {}", args.join(" ")), &config)?;
    if let Err(why) = outcome.scenario_alone(scenario, 2) {
        bail!("{flavour}, {n}: {why}\n{}", outcome.tail().join("\n"));
    }
    Ok(costs(&outcome, n))
}

/// What was measured of so many.
fn costs(outcome: &Outcome, wanted: u64) -> Costs {
    let events = outcome
        .lines
        .iter()
        .filter_map(|line| serde_json::from_str(line.guest()?.strip_prefix("= ")?).ok());
    events
        .filter_map(|event| match event {
            Event::Measured { what, n, nanos } if n == wanted => Some((what, nanos)),
            _ => None,
        })
        .collect()
}

/// Prints what both cores cost.
pub fn bench() -> Result<bool> {
    const NUMBERS: [u64; 3] = [500, 2_000, 8_000];
    println!("Milliseconds of a processor that does one instruction a nanosecond.\n");
    print!("{:<20}{:<6}", "", "core");
    for n in NUMBERS {
        print!("{n:>10}");
    }
    println!("{:>14}", "8,000 / 2,000");
    let mut table: BTreeMap<(&str, &str), Vec<u64>> = BTreeMap::new();
    for flavour in ["c", "rust"] {
        for n in NUMBERS {
            eprintln!("measuring {flavour} with {n}");
            let costs = measure(flavour, n)?;
            for what in LINEAR.into_iter().chain(OTHERS) {
                let nanos = costs
                    .get(what)
                    .with_context(|| format!("no cost of {what}"))?;
                table.entry((what, flavour)).or_default().push(*nanos);
            }
        }
    }
    for what in LINEAR.into_iter().chain(OTHERS) {
        for flavour in ["c", "rust"] {
            let Some(nanos) = table.get(&(what, flavour)) else {
                continue;
            };
            print!("{:<20}{flavour:<6}", if flavour == "c" { what } else { "" });
            for nanos in nanos {
                print!("{:>10.2}", *nanos as f64 / 1e6);
            }
            let [_, few, many] = nanos[..] else {
                bail!("a measurement of {what} is missing");
            };
            println!("{:>14.2}", many as f64 / few as f64);
        }
    }
    iommu_cost::bench()?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn costs(nanos: u64) -> Costs {
        Costs::from([("create sessions".to_owned(), nanos)])
    }

    #[test]
    fn a_quadratic_cost_fails_and_a_linear_one_does_not() {
        let judge = |many| judge(&costs(10), &costs(many), "create-sessions", Duration::ZERO);
        assert!(judge(40).is_ok());
        assert!(judge(45).is_ok());
        assert!(judge(46).is_err());
        assert!(judge(160).is_err());
    }

    #[test]
    fn what_was_not_measured_fails() {
        assert!(judge(&costs(1), &costs(1), "other", Duration::ZERO).is_err());
        assert!(judge(&costs(0), &costs(1), "create-sessions", Duration::ZERO).is_err());
        assert!(judge(&costs(0), &costs(0), "create-sessions", Duration::ZERO).is_err());
    }
}
