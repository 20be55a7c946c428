// SPDX-License-Identifier: GPL-2.0

//! The samples: what their headers say, and what their files do before and after an update.

use crate::context::{Context, create, expect_eq, expect_errno, finish, retrieve};
use crate::data;
use crate::kmsg::Reader;
use crate::module;
use crate::registry::{Group, Scenario};
use crate::transcript;
use anyhow::{Context as _, Result, ensure};
use liveupdate::{Errno, Incoming, Session, Token};
use std::fs::File;
use std::io::{Read, Write};

const COUNTER: &str = "luo_sample_counter";
const SHARED: &str = "luo_sample_shared";
const TALLY: &str = "luo_sample_tally";
const GAUGE: &str = "luo_sample_gauge";

/// As somebody would who reads the samples. The machine has to have the program `luo`.
pub const HEADERS: Group = Group {
    name: "sample-header",
    scenarios: &[
        Scenario {
            name: "counter-as-its-header-says",
            stages: &[counter_header, counter_header],
        },
        Scenario {
            name: "shared-as-its-header-says",
            stages: &[shared_header, shared_header],
        },
    ],
};

/// The order matters: those that unload a module come before those that need it until the end.
pub const GROUP: Group = Group {
    name: "sample",
    scenarios: &[
        Scenario {
            name: "counter-unloads-unless-a-file-is-preserved",
            stages: &[counter_unload],
        },
        Scenario {
            name: "shared-total-comes-and-goes-with-the-files",
            stages: &[total_comes_and_goes],
        },
        Scenario {
            name: "counter-closed-without-finish",
            stages: &[closed_before, closed_after],
        },
        Scenario {
            name: "counter-lives-through-two-updates",
            stages: &[lives_before, lives_between, lives_after],
        },
        Scenario {
            name: "shared-total-outlives-one-kind",
            stages: &[total_before, total_between, total_after],
        },
    ],
};

/// Nobody asks for the files in the next kernel.
pub const UNCLAIMED: Group = Group {
    name: "sample-unclaimed",
    scenarios: &[
        Scenario {
            name: "counter-never-retrieved",
            stages: &[counter_unclaimed_before, counter_unclaimed_after],
        },
        Scenario {
            name: "shared-never-retrieved",
            stages: &[shared_unclaimed_before, shared_unclaimed_after],
        },
    ],
};

/// The machine has to have modprobe.
pub const ON_DEMAND: Group = Group {
    name: "sample-on-demand",
    scenarios: &[Scenario {
        name: "counter-loaded-on-demand",
        stages: &[demand_before, demand_after],
    }],
};

fn counter_header(context: &mut Context<'_>) -> Result<()> {
    const SOURCE: &str = include_str!("../../../../samples/counter/counter.rs");
    transcript::follow(context, SOURCE)
}

fn shared_header(context: &mut Context<'_>) -> Result<()> {
    const SOURCE: &str = include_str!("../../../../samples/shared/shared.rs");
    transcript::follow(context, SOURCE)
}

/// Another scenario may have loaded it.
fn load(context: &Context<'_>, name: &str) -> Result<()> {
    if !module::is_loaded(name) {
        module::load(&context.module(name))?;
    }
    Ok(())
}

fn open(device: &str) -> Result<File> {
    let path = format!("/dev/{device}");
    File::options()
        .read(true)
        .write(true)
        .open(&path)
        .with_context(|| format!("opening {path}"))
}

/// An open file to which a number was written.
fn opened(device: &str, number: u64) -> Result<File> {
    let file = open(device)?;
    put(&file, number)?;
    Ok(file)
}

fn put(mut file: &File, number: u64) -> Result<()> {
    // In one piece, as echo does.
    file.write_all(format!("{number}\n").as_bytes())
        .with_context(|| format!("writing {number}"))
}

/// Expects what is left to read of a file, as after a write, to be one line.
fn expect_line(mut file: &File, expected: &str) -> Result<()> {
    let mut text = String::new();
    file.read_to_string(&mut text).context("reading")?;
    expect_eq("what the file says", text, format!("{expected}\n"))
}

fn get(session: &Session<Incoming>, token: u64) -> Result<File> {
    let fd = session.retrieve(Token(token));
    Ok(data::file(
        fd.with_context(|| format!("retrieving token {token}"))?,
    ))
}

fn expect_in_use(when: &str, name: &str) -> Result<()> {
    expect_errno(
        &format!("unloading {name} {when}"),
        module::unload(name),
        Errno::AGAIN,
    )
}

fn unload(name: &str) -> Result<()> {
    module::unload(name).with_context(|| format!("unloading {name}"))
}

/// Expects what the module said since the last time.
fn expect_log(log: &mut Reader, when: &str, expected: &[&str]) -> Result<()> {
    let prefix = format!("{SHARED}: ");
    let lines = log.lines()?;
    let ours = lines.iter().filter_map(|line| line.strip_prefix(&prefix));
    let ours: Vec<&str> = ours.collect();
    expect_eq(&format!("the log {when}"), ours.as_slice(), expected)
}

fn counter_unload(context: &mut Context<'_>) -> Result<()> {
    load(context, COUNTER)?;
    unload(COUNTER).context("just loaded")?;
    load(context, COUNTER)?;
    let session = create("counter-unload")?;
    let file = opened(COUNTER, 1)?;
    expect_in_use("with a file open", COUNTER)?;
    drop(file);
    unload(COUNTER).context("with no file open, but a session")?;
    load(context, COUNTER)?;
    session.preserve(opened(COUNTER, 1)?, Token(1))?;
    expect_in_use("with a file preserved", COUNTER)?;
    drop(session);
    unload(COUNTER).context("after the session was closed")
}

/// The FLB is preserved with the first file of either kind, and unpreserved with the last.
fn total_comes_and_goes(context: &mut Context<'_>) -> Result<()> {
    const FIRST: &str = "the first file is preserved";
    const NONE: &str = "no file is preserved, which leaves 0";

    load(context, SHARED)?;
    let mut log = Reader::from_now()?;
    let mut expect = |when: &str, expected: &[&str]| expect_log(&mut log, when, expected);
    let (tallies, gauges) = (create("total-tallies")?, create("total-gauges")?);
    let gauge = opened(GAUGE, 12)?;
    tallies.preserve(opened(TALLY, 30)?, Token(1))?;
    expect("after the first file", &[FIRST])?;
    gauges.preserve(&gauge, Token(1))?;
    gauges.preserve(opened(TALLY, 4)?, Token(2))?;
    // What is written later counts at the reboot only.
    put(&gauge, 100)?;
    drop(tallies);
    expect("while there are others", &[])?;
    drop(gauges);
    expect("after the last file", &[NONE])?;
    create("total-again")?.preserve(&gauge, Token(1))?;
    expect("after another time", &[FIRST, NONE])?;
    drop(gauge);
    unload(SHARED)
}

fn closed_before(context: &mut Context<'_>) -> Result<()> {
    load(context, COUNTER)?;
    let session = create("counter-closed")?;
    session.preserve(opened(COUNTER, 7)?, Token(1))?;
    session.preserve(opened(COUNTER, 8)?, Token(2))?;
    context.keep(session);
    Ok(())
}

fn closed_after(context: &mut Context<'_>) -> Result<()> {
    load(context, COUNTER)?;
    let session = retrieve("counter-closed")?;
    expect_line(&get(&session, 1)?, "7")?;
    // The file is closed, but the session still has it.
    expect_in_use("before the session is closed", COUNTER)?;
    drop(session);
    unload(COUNTER).context("after the session was closed")?;
    ensure!(
        retrieve("counter-closed").is_err(),
        "the session is still there"
    );
    Ok(())
}

fn lives_before(context: &mut Context<'_>) -> Result<()> {
    load(context, COUNTER)?;
    let file = opened(COUNTER, 30)?;
    let session = create("counter-lives")?;
    session.preserve(&file, Token(1))?;
    // It goes on counting, and freeze takes that along, whether the file is open or not.
    put(&file, 10)?;
    expect_line(&file, "40")?;
    put(&file, 2)?;
    context.keep(session);
    Ok(())
}

fn lives_between(context: &mut Context<'_>) -> Result<()> {
    load(context, COUNTER)?;
    let session = retrieve("counter-lives")?;
    let file = get(&session, 1)?;
    expect_line(&file, "42")?;
    let link = std::fs::read_link(format!("/proc/self/fd/{}", raw(&file)))?;
    let link = link.to_string_lossy();
    ensure!(link.contains(COUNTER), "the file is called {link}");
    let result = create("counter-early")?.preserve(&file, Token(1));
    expect_errno("preserving it before finish", result, Errno::BUSY)?;
    drop(get(&session, 1)?);
    finish(session)?;

    // A device file like any other.
    put(&file, 1)?;
    expect_line(&file, "43")?;
    let wrong = (&file).write(b"none").err();
    let wrong = wrong.and_then(|error| Errno::from_io_error(&error));
    expect_eq("writing no number", wrong, Some(Errno::INVAL))?;
    expect_in_use("with the file open", COUNTER)?;

    let next = create("counter-lives-on")?;
    next.preserve(&file, Token(9))?;
    put(&file, 7)?;
    drop(file);
    context.keep(next);
    Ok(())
}

fn raw(file: &File) -> i32 {
    std::os::fd::AsRawFd::as_raw_fd(file)
}

fn lives_after(context: &mut Context<'_>) -> Result<()> {
    load(context, COUNTER)?;
    let session = retrieve("counter-lives-on")?;
    let file = get(&session, 9)?;
    expect_line(&file, "50")?;
    finish(session)?;
    put(&file, 1)?;
    expect_line(&file, "51")?;
    drop(file);
    unload(COUNTER)
}

fn total_before(context: &mut Context<'_>) -> Result<()> {
    load(context, SHARED)?;
    let (tallies, gauges) = (create("shared-tallies")?, create("shared-gauges")?);
    let (gauge, given_up) = (opened(GAUGE, 12)?, create("shared-given-up")?);
    tallies.preserve(opened(TALLY, 30)?, Token(1))?;
    gauges.preserve(&gauge, Token(1))?;
    gauges.preserve(opened(GAUGE, 5)?, Token(2))?;
    given_up.preserve(opened(TALLY, 1000)?, Token(1))?;
    drop(given_up);
    put(&gauge, 20)?;
    context.keep((tallies, gauges));
    Ok(())
}

/// The total of before and that of the next update are two.
fn total_between(context: &mut Context<'_>) -> Result<()> {
    const OVER: &str = "55 came over";
    const FIRST: &str = "the first file is preserved";
    const FINISHED: &str = "all of 55 is finished";

    load(context, SHARED)?;
    let mut log = Reader::from_now()?;
    let mut expect = |when: &str, expected: &[&str]| expect_log(&mut log, when, expected);
    let tallies = retrieve("shared-tallies")?;
    let tally = get(&tallies, 1)?;
    expect_line(&tally, "30 of 55")?;
    expect("after the first file", &[OVER])?;
    finish(tallies)?;

    let next = create("shared-next")?;
    put(&tally, 5)?;
    next.preserve(&tally, Token(1))?;
    expect("after all tallies were finished", &[FIRST])?;

    // Token 2 is never asked for.
    let gauges = retrieve("shared-gauges")?;
    let gauge = get(&gauges, 1)?;
    expect_line(&gauge, "20 of 55")?;
    expect("after another file", &[])?;
    finish(gauges)?;
    expect("after the last file", &[FINISHED])?;

    next.preserve(&gauge, Token(2))?;
    put(&gauge, 1)?;
    expect_line(&gauge, "1 of 55")?;
    expect("after the second one for the next kernel", &[])?;
    context.keep(next);
    Ok(())
}

fn total_after(context: &mut Context<'_>) -> Result<()> {
    load(context, SHARED)?;
    let session = retrieve("shared-next")?;
    let (gauge, tally) = (get(&session, 2)?, get(&session, 1)?);
    expect_line(&tally, "35 of 36")?;
    expect_line(&gauge, "1 of 36")?;
    expect_in_use("before the finish", SHARED)?;
    finish(session)?;
    put(&tally, 1)?;
    expect_line(&tally, "36 of 36")?;
    drop((tally, gauge));
    unload(SHARED)
}

fn counter_unclaimed_before(context: &mut Context<'_>) -> Result<()> {
    load(context, COUNTER)?;
    for name in ["counter-unclaimed-finished", "counter-unclaimed-closed"] {
        let session = create(name)?;
        session.preserve(opened(COUNTER, 1)?, Token(1))?;
        context.keep(session);
    }
    Ok(())
}

fn counter_unclaimed_after(context: &mut Context<'_>) -> Result<()> {
    load(context, COUNTER)?;
    let finished = retrieve("counter-unclaimed-finished")?;
    let closed = retrieve("counter-unclaimed-closed")?;
    unload(COUNTER).context("with no file retrieved")?;
    load(context, COUNTER)?;
    finish(finished)?;
    drop(closed);
    unload(COUNTER).context("after the sessions have ended")
}

fn shared_unclaimed_before(context: &mut Context<'_>) -> Result<()> {
    load(context, SHARED)?;
    let session = create("shared-unclaimed")?;
    session.preserve(opened(TALLY, 30)?, Token(1))?;
    session.preserve(opened(GAUGE, 12)?, Token(2))?;
    context.keep(session);
    Ok(())
}

/// What was preserved for the FLB has to be freed, so it is retrieved all the same.
fn shared_unclaimed_after(context: &mut Context<'_>) -> Result<()> {
    load(context, SHARED)?;
    let mut log = Reader::from_now()?;
    finish(retrieve("shared-unclaimed")?)?;
    expect_log(
        &mut log,
        "after the finish",
        &["42 came over", "all of 42 is finished"],
    )?;
    unload(SHARED)
}

fn demand_before(context: &mut Context<'_>) -> Result<()> {
    module::modprobe(COUNTER)?;
    let session = create("counter-on-demand")?;
    session.preserve(opened(COUNTER, 42)?, Token(1))?;
    context.keep(session);
    Ok(())
}

fn demand_after(_: &mut Context<'_>) -> Result<()> {
    ensure!(!module::is_loaded(COUNTER), "{COUNTER} is there already");
    let session = retrieve("counter-on-demand")?;
    let file = get(&session, 1)?;
    ensure!(module::is_loaded(COUNTER), "{COUNTER} is not there");
    expect_line(&file, "42")?;
    finish(session)?;
    drop(file);
    unload(COUNTER)
}
