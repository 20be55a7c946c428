// SPDX-License-Identifier: GPL-2.0

//! What `make demo` shows: a virtual machine's memory and state live through a kernel update.

use crate::clock::timed_micros;
use crate::context::{Context, device};
use crate::data::{self, Pattern};
use crate::kmsg;
use crate::protocol::Event;
use crate::registry::{Group, Scenario};
use anyhow::{Context as _, Result};
use liveupdate::{SessionName, Token};
use rustix::fs::SealFlags;
use std::fs::File;
use std::io::{Seek, SeekFrom};

pub const GROUP: Group = Group {
    name: "demo",
    scenarios: &[Scenario {
        name: "demo",
        stages: &[before, after],
    }],
};

const SESSION: &str = "vm-42";
const MIB: u64 = 1 << 20;

/// Name, token, size.
const FILES: [(&str, Token, u64); 2] = [
    ("guest-ram", Token(1), 64 * MIB),
    ("vm-state", Token(2), 12_345),
];

fn before(context: &mut Context<'_>) -> Result<()> {
    let (device, micros) = timed_micros(device);
    let device = device?;
    kmsg::event(&Event::Opened { micros });
    let session = device.create_session(&SessionName::new(SESSION)?)?;
    kmsg::event(&Event::Created {
        session: SESSION.to_owned(),
    });
    for (name, token, len) in FILES {
        let file = make(name, len)?;
        kmsg::event(&Event::Filled(data::describe(name, &file)?));
        let (result, micros) = timed_micros(|| session.preserve(&file, token));
        result.with_context(|| format!("preserving {name}"))?;
        kmsg::event(&Event::Preserved {
            session: SESSION.to_owned(),
            token: token.0,
            file: name.to_owned(),
            bytes: len,
            micros,
        });
    }
    context.keep(session);
    Ok(())
}

fn make(name: &str, len: u64) -> Result<File> {
    let mut file = data::memfd(name)?;
    file.set_len(len)?;
    data::write_pattern(&file, &mut Pattern::random()?, 0, len)?;
    if name == "vm-state" {
        file.seek(SeekFrom::Start(4_096))?;
        rustix::fs::fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW)?;
    }
    Ok(file)
}

fn after(_: &mut Context<'_>) -> Result<()> {
    let (device, micros) = timed_micros(device);
    let device = device?;
    kmsg::event(&Event::Opened { micros });
    let name = SessionName::new(SESSION)?;
    let (session, micros) = timed_micros(|| device.retrieve_session(&name));
    let session = session.context("retrieving the session")?;
    kmsg::event(&Event::RetrievedSession {
        session: SESSION.to_owned(),
        micros,
    });
    let mut files = Vec::new();
    for (name, token, _) in FILES {
        let (fd, micros) = timed_micros(|| session.retrieve(token));
        let file = data::file(fd.with_context(|| format!("retrieving {name}"))?);
        kmsg::event(&Event::Retrieved {
            session: SESSION.to_owned(),
            token: token.0,
            bytes: file.metadata()?.len(),
            micros,
        });
        files.push((name, file));
    }
    let (result, micros) = timed_micros(|| session.finish());
    result.context("finishing the session")?;
    kmsg::event(&Event::Finished {
        session: SESSION.to_owned(),
        micros,
    });
    for (name, file) in files {
        kmsg::event(&Event::Checked(data::describe(name, &file)?));
    }
    Ok(())
}
