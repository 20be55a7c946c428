// SPDX-License-Identifier: GPL-2.0

//! What live update costs as sessions and files become many.
//!
//! The guest's clock counts instructions while this runs, so the nanoseconds are the same in every
//! run.

use crate::clock::timed;
use crate::context::{Context, device};
use crate::data;
use crate::kmsg;
use crate::protocol::Event;
use crate::registry::{Group, Scenario};
use anyhow::Result;
use liveupdate::{SessionName, Token};
use rustix::process::{Resource, Rlimit, setrlimit};

pub const GROUP: Group = Group {
    name: "cost",
    scenarios: &[Scenario {
        name: "cost",
        stages: &[before, after],
    }],
};

/// The session with all the files.
const FILES: &str = "cost-files";

fn names(n: u64) -> Result<Vec<SessionName>> {
    let names = (0..n).map(|i| SessionName::new(format!("cost-{i}")));
    Ok(names.collect::<Result<_, _>>()?)
}

fn allow_files(n: u64) -> Result<()> {
    let limit = Some(2 * n + 1000);
    setrlimit(
        Resource::Nofile,
        Rlimit {
            current: limit,
            maximum: limit,
        },
    )?;
    Ok(())
}

/// Does something so many times and reports how long it took.
pub fn measure<T>(what: &str, n: u64, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let (result, time) = timed(work);
    let result = result?;
    kmsg::event(&Event::Measured {
        what: what.to_owned(),
        n,
        nanos: time.as_nanos().try_into()?,
    });
    Ok(result)
}

fn before(context: &mut Context<'_>) -> Result<()> {
    let n = context.number("n", 100)?;
    allow_files(n)?;
    let names = names(n)?;
    let device = device()?;
    let sessions = measure("create sessions", n, || {
        let create = |name| Ok(device.create_session(name)?);
        names.iter().map(create).collect::<Result<Vec<_>>>()
    })?;
    context.keep(sessions);
    let session = device.create_session(&SessionName::new(FILES)?)?;
    let files: Vec<_> = (0..n)
        .map(|i| data::memfd_with("file", i, data::page()))
        .collect::<Result<_>>()?;
    measure("preserve files", n, || {
        for (token, file) in (0..).zip(&files) {
            session.preserve(file, Token(token))?;
        }
        Ok(())
    })?;
    context.keep(session);
    Ok(())
}

fn after(context: &mut Context<'_>) -> Result<()> {
    let n = context.number("n", 100)?;
    allow_files(n)?;
    let names = names(n)?;
    let device = measure("open the device", n, device)?;
    let sessions = measure("retrieve sessions", n, || {
        let retrieve = |name| Ok(device.retrieve_session(name)?);
        names.iter().map(retrieve).collect::<Result<Vec<_>>>()
    })?;
    measure("finish sessions", n, || {
        drop(sessions);
        Ok(())
    })?;
    let session = device.retrieve_session(&SessionName::new(FILES)?)?;
    let files = measure("retrieve files", n, || {
        let retrieve = |token| Ok(session.retrieve(Token(token))?);
        (0..n).map(retrieve).collect::<Result<Vec<_>>>()
    })?;
    measure("finish files", n, || crate::context::finish(session))?;
    for (i, file) in (0..).zip(files) {
        data::expect_file(&data::file(file), i, data::page())?;
    }
    Ok(())
}
