// SPDX-License-Identifier: GPL-2.0

//! Processes that die, and others that do not stop in time.

use crate::context::{Context, create, device, expect_errno, retrieve};
use crate::data;
use crate::helpers::{Arg, Helper};
use crate::registry::{Group, Scenario};
use anyhow::{Context as _, Result};
use liveupdate::{Errno, SessionName, Token};

pub const GROUP: Group = Group {
    name: "process",
    scenarios: &[
        Scenario {
            name: "process-dies-before-the-kexec",
            stages: &[dies_before, dies_after],
        },
        Scenario {
            name: "process-dies-with-the-device-open",
            stages: &[dies_with_device],
        },
    ],
};

/// It has to be the last in its machine, since others would find the device in use.
pub const STORM: Group = Group {
    name: "storm",
    scenarios: &[Scenario {
        name: "process-busy-during-reboot",
        stages: &[busy_before, busy_after],
    }],
};

const LEN: u64 = 100_000;

fn dies_before(_: &mut Context<'_>) -> Result<()> {
    let file = data::memfd_with("file", 1, LEN)?;
    for round in 0..3 {
        let args = [Arg::Word("dies".to_owned()), Arg::Fd(&file)];
        let mut helper = Helper::start("hold", &args)?;
        helper.expect_line("held")?;
        let name = SessionName::new("dies")?;
        let result = device()?.create_session(&name);
        expect_errno("its session's name", result, Errno::EXIST)?;
        let other = create("dies-other")?;
        let result = other.preserve(&file, Token(1));
        expect_errno("its file", result, Errno::BUSY)?;
        helper.kill()?;
        let after = || format!("after death {}", round + 1);
        let session = create("dies").with_context(after)?;
        session.preserve(&file, Token(1)).with_context(after)?;
        drop(session);
        file.set_len(2 * LEN).with_context(after)?;
        file.set_len(LEN).with_context(after)?;
    }
    data::expect_file(&file, 1, LEN)
}

fn dies_after(_: &mut Context<'_>) -> Result<()> {
    let device = device()?;
    for name in ["dies", "dies-other"] {
        let result = device.retrieve_session(&SessionName::new(name)?);
        expect_errno(&format!("session {name}"), result, Errno::NOENT)?;
    }
    Ok(())
}

fn dies_with_device(_: &mut Context<'_>) -> Result<()> {
    let mut helper = Helper::start("open", &[])?;
    helper.expect_line("open")?;
    expect_errno("while it lives", liveupdate::Device::open(), Errno::BUSY)?;
    helper.kill()?;
    device().context("after its death")?;
    Ok(())
}

fn busy_before(context: &mut Context<'_>) -> Result<()> {
    let session = create("calm")?;
    session.preserve(data::memfd_with("file", 1, LEN)?, Token(1))?;
    context.keep(session);
    let mut helpers = (0..3)
        .map(|number| Helper::start("storm", &[Arg::Word(number.to_string())]))
        .collect::<Result<Vec<_>>>()?;
    for helper in &mut helpers {
        helper.expect_line("storming")?;
    }
    for helper in &mut helpers {
        helper.expect_running()?;
    }
    context.keep(helpers);
    Ok(())
}

/// What was left alone came over; what came over of the rest is whole.
fn busy_after(_: &mut Context<'_>) -> Result<()> {
    let calm = retrieve("calm")?;
    data::expect_file(&data::file(calm.retrieve(Token(1))?), 1, LEN)?;
    let device = device()?;
    for number in 0..3 {
        for i in 0..3 {
            let name = SessionName::new(format!("storm-{number}-{i}"))?;
            match device.retrieve_session(&name) {
                Ok(session) => crate::context::finish(session)?,
                Err(errno) => expect_errno::<()>("a session", Err(errno), Errno::NOENT)?,
            }
        }
    }
    Ok(())
}
