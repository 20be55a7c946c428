// SPDX-License-Identifier: GPL-2.0

//! One state that goes through any chain of kernels, whichever core each has.

use crate::context::{Context, device, expect_eq, expect_errno, finish};
use crate::data;
use crate::registry::{Group, Scenario};
use anyhow::{Context as _, Result};
use liveupdate::{Device, Outgoing, Session, SessionName, Token};
use luo_abi::{block, luo};
use rustix::fs::{SealFlags, fcntl_add_seals, fcntl_get_seals};
use rustix::io::Errno;
use std::fs::File;
use std::io::{Seek, SeekFrom};

pub const GROUP: Group = Group {
    name: "interop",
    scenarios: &[Scenario {
        name: "interop",
        stages: &[make, pass_on, check],
    }],
};

/// Sessions by name, with the tokens and sizes of their files.
fn shape() -> Vec<(String, Vec<(u64, u64)>)> {
    let page = data::page();
    let mut shape = vec![
        ("interop-empty".to_owned(), vec![]),
        (
            "interop-sizes".to_owned(),
            vec![
                (0, 0),
                (1, 1),
                (2, page - 1),
                (3, page),
                (4, page + 1),
                (u64::MAX, (1 << 20) + 3),
                (1 << 40, 16 << 20),
            ],
        ),
        (
            "interop-files".to_owned(),
            (0..150).map(|i| (i * 7, 10 * i)).collect(),
        ),
    ];
    // As many sessions as fill two blocks to the last entry.
    let block = block::entries_per_block::<luo::Session>(page as usize);
    let rest = 2 * block - shape.len();
    shape.extend((0..rest as u64).map(|i| (format!("interop-{i}"), vec![(i, 300)])));
    shape
}

fn seals(token: u64) -> SealFlags {
    match token % 3 {
        0 => SealFlags::empty(),
        1 => SealFlags::SHRINK | SealFlags::GROW,
        _ => SealFlags::WRITE | SealFlags::SEAL,
    }
}

fn position(token: u64) -> u64 {
    token % 1000
}

/// Sessions by name, with their files by token.
type Taken = Vec<(String, Vec<(u64, File)>)>;

type Kept = Vec<(Session<Outgoing>, Vec<File>)>;

fn preserve(
    device: &Device,
    name: &str,
    files: impl IntoIterator<Item = (u64, File)>,
) -> Result<(Session<Outgoing>, Vec<File>)> {
    let session = device.create_session(&SessionName::new(name)?)?;
    let mut kept = Vec::new();
    for (token, file) in files {
        session
            .preserve(&file, Token(token))
            .with_context(|| format!("session {name}, token {token:#x}"))?;
        kept.push(file);
    }
    Ok((session, kept))
}

fn make(context: &mut Context<'_>) -> Result<()> {
    let device = device()?;
    let mut kept = Kept::new();
    for (name, files) in shape() {
        let mut made = Vec::new();
        for (token, len) in files {
            let mut file = data::memfd_with("file", token, len)?;
            file.seek(SeekFrom::Start(position(token)))?;
            let seals = seals(token);
            if !seals.is_empty() {
                fcntl_add_seals(&file, seals)?;
            }
            made.push((token, file));
        }
        kept.push(preserve(&device, &name, made)?);
    }
    // With all blocks full, the C core adds an empty one for a session that it then refuses.
    let twin = device.create_session(&SessionName::new("interop-empty")?);
    expect_errno("a second interop-empty", twin, Errno::EXIST)?;
    context.keep(kept);
    Ok(())
}

/// Retrieves everything, compares it and finishes the sessions.
fn take(device: &Device) -> Result<Taken> {
    let mut taken = Vec::new();
    for (name, files) in shape() {
        let session = device
            .retrieve_session(&SessionName::new(&name)?)
            .with_context(|| format!("session {name}"))?;
        let mut found = Vec::new();
        for (token, len) in files {
            let file = session.retrieve(Token(token)).map_err(Into::into);
            let file = file.and_then(|fd| compare(data::file(fd), token, len));
            let file = file.with_context(|| format!("session {name}, token {token:#x}"))?;
            found.push((token, file));
        }
        finish(session)?;
        taken.push((name, found));
    }
    Ok(taken)
}

fn compare(mut file: File, token: u64, len: u64) -> Result<File> {
    expect_eq("the position", file.stream_position()?, position(token))?;
    expect_eq("the seals", fcntl_get_seals(&file)?, seals(token))?;
    data::expect_file(&file, token, len)?;
    Ok(file)
}

fn pass_on(context: &mut Context<'_>) -> Result<()> {
    let device = device()?;
    let taken = take(&device)?;
    if context.plan.stages.len() == context.stage + 1 {
        return Ok(());
    }
    let mut kept = Kept::new();
    for (name, files) in taken {
        kept.push(preserve(&device, &name, files)?);
    }
    context.keep(kept);
    Ok(())
}

fn check(_: &mut Context<'_>) -> Result<()> {
    take(&device()?)?;
    Ok(())
}
