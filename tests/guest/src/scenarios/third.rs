// SPDX-License-Identifier: GPL-2.0

//! What becomes of incoming sessions at the next update.

use crate::context::{Context, create, device, expect_errno, finish, retrieve};
use crate::data;
use crate::helpers::{Arg, Helper};
use crate::registry::{Group, Scenario};
use anyhow::{Context as _, Result};
use liveupdate::{Errno, SessionName, Token};

pub const GROUP: Group = Group {
    name: "third-kernel",
    scenarios: &[
        Scenario {
            name: "session-unfinished-is-dropped",
            stages: &[unfinished_before, unfinished_between, unfinished_after],
        },
        Scenario {
            name: "file-twice-updated",
            stages: &[twice_before, twice_between, twice_after],
        },
        Scenario {
            name: "session-retrieved-during-reboot",
            stages: &[busy_before, busy_between, busy_after],
        },
    ],
};

const LEN: u64 = 50_000;

fn unfinished_before(context: &mut Context<'_>) -> Result<()> {
    for name in ["unfinished", "unseen"] {
        let session = create(name)?;
        session.preserve(data::memfd_with("file", 1, LEN)?, Token(1))?;
        session.preserve(data::memfd_with("file", 2, LEN)?, Token(2))?;
        context.keep(session);
    }
    Ok(())
}

fn unfinished_between(context: &mut Context<'_>) -> Result<()> {
    let session = retrieve("unfinished")?;
    data::expect_file(&data::file(session.retrieve(Token(1))?), 1, LEN)?;
    context.keep(session);
    Ok(())
}

fn unfinished_after(_: &mut Context<'_>) -> Result<()> {
    let device = device()?;
    for name in ["unfinished", "unseen"] {
        let result = device.retrieve_session(&SessionName::new(name)?);
        expect_errno(&format!("session {name}"), result, Errno::NOENT)?;
    }
    Ok(())
}

fn twice_before(context: &mut Context<'_>) -> Result<()> {
    let session = create("first-update")?;
    session.preserve(data::memfd_with("file", 1, LEN)?, Token(1))?;
    context.keep(session);
    Ok(())
}

/// The file goes on under another name, while its first session is gone.
fn twice_between(context: &mut Context<'_>) -> Result<()> {
    let session = retrieve("first-update")?;
    let file = data::file(session.retrieve(Token(1))?);
    finish(session)?;
    let session = create("second-update")?;
    session.preserve(&file, Token(2))?;
    context.keep(session);
    Ok(())
}

fn twice_after(_: &mut Context<'_>) -> Result<()> {
    let result = device()?.retrieve_session(&SessionName::new("first-update")?);
    expect_errno("the first session", result, Errno::NOENT)?;
    let session = retrieve("second-update")?;
    let result = session.retrieve(Token(1));
    expect_errno("the first token", result, Errno::NOENT)?;
    data::expect_file(&data::file(session.retrieve(Token(2))?), 1, LEN)?;
    finish(session)
}

const BUSY: u64 = 300;

fn busy_before(context: &mut Context<'_>) -> Result<()> {
    let device = device()?;
    for i in 0..BUSY {
        let session = device.create_session(&SessionName::new(format!("busy-{i}"))?)?;
        session.preserve(data::memfd_with("file", i, 5000)?, Token(i))?;
        context.keep(session);
    }
    Ok(())
}

/// Another process retrieves and finishes them while this kernel ends.
fn busy_between(context: &mut Context<'_>) -> Result<()> {
    let mut helper = Helper::start("retrieve-all", &[Arg::Word(BUSY.to_string())])?;
    helper.expect_line("retrieving")?;
    helper.expect_running()?;
    context.keep(helper);
    Ok(())
}

fn busy_after(_: &mut Context<'_>) -> Result<()> {
    let device = device()?;
    for i in 0..BUSY {
        let name = SessionName::new(format!("busy-{i}"))?;
        let result = device.retrieve_session(&name);
        expect_errno(&format!("session {i}"), result, Errno::NOENT)?;
    }
    drop(device);
    create("busy-0").context("one of their names")?;
    Ok(())
}
