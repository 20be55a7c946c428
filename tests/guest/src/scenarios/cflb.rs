// SPDX-License-Identifier: GPL-2.0

//! The kernel's own FLBs in C, which `CONFIG_LIVEUPDATE_TEST` adds to every handler, on either core
//! and from one to the other.

use crate::context::{Context, create, finish, retrieve};
use crate::data;
use crate::kmsg::Reader;
use crate::registry::{Group, Scenario};
use anyhow::{Context as _, Result, ensure};
use liveupdate::{Outgoing, Session, Token};

pub const GROUP: Group = Group {
    name: "c-flb",
    scenarios: &[Scenario {
        name: "c-flb",
        stages: &[preserve, finish_all],
    }],
};

/// How each line of the test begins.
const TEST: &str = "liveupdate test: ";

/// What the FLBs are called.
const FLBS: [&str; 3] = ["0", "1", "2"];

fn line(flb: &str, what: &str) -> String {
    format!("liveupdate-test-flb-v{flb}: {what}")
}

/// Expects `what` of each FLB in this order since the last look at the log, and nothing else.
fn expect<'a>(
    log: &mut Reader,
    flbs: impl IntoIterator<Item = &'a &'a str>,
    what: &str,
) -> Result<()> {
    let lines = log.lines()?;
    let found: Vec<&str> = lines
        .iter()
        .filter_map(|line| line.strip_prefix(TEST))
        .filter(|line| !line.starts_with("Registered 3 FLBs with file handler"))
        .collect();
    let expected: Vec<String> = flbs.into_iter().map(|flb| line(flb, what)).collect();
    ensure!(found == expected, "{found:?}, expected {expected:?}");
    Ok(())
}

fn session_of_one(name: &str) -> Result<Session<Outgoing>> {
    let session = create(name)?;
    session.preserve(data::memfd_with("file", 1, 5000)?, Token(1))?;
    Ok(session)
}

fn preserve(context: &mut Context<'_>) -> Result<()> {
    let mut log = Reader::from_boot()?;
    expect(&mut log, &[], "nothing").context("at boot")?;
    let first = session_of_one("first")?;
    expect(&mut log, &FLBS, "preserve was triggered")?;
    let second = session_of_one("second")?;
    drop(first);
    expect(&mut log, &[], "nothing").context("with a file left")?;
    drop(second);
    expect(&mut log, FLBS.iter().rev(), "unpreserve was triggered")?;

    context.keep(session_of_one("first")?);
    context.keep(session_of_one("second")?);
    expect(&mut log, &FLBS, "preserve was triggered").context("once more")
}

fn finish_all(_: &mut Context<'_>) -> Result<()> {
    let mut log = Reader::from_boot()?;
    expect(&mut log, &FLBS, "found flb data from the previous boot")?;
    let first = retrieve("first")?;
    data::expect_file(&data::file(first.retrieve(Token(1))?), 1, 5000)?;
    finish(first)?;
    expect(&mut log, &[], "nothing").context("with a file left")?;
    finish(retrieve("second")?)?;
    expect(&mut log, FLBS.iter().rev(), "finish was triggered")?;

    // They can be preserved again.
    drop(session_of_one("third")?);
    Ok(())
}
