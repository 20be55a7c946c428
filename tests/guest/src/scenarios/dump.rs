// SPDX-License-Identifier: GPL-2.0

//! The handover as the next kernel finds it, field by field.
//!
//! A kernel takes the header off the handover as soon as it starts, and then nothing of it can be
//! read any more. But the Rust core leaves all of it alone if the header is not of its format. So
//! the last thing that the first kernel does is to spoil the format's name.

use crate::context::{Context, expect_eq};
use crate::data::{self, Pattern};
use crate::handover::{At, Memory, incoming_header, outgoing_header};
use crate::kmsg;
use crate::registry::{Group, Scenario};
use anyhow::{Context as _, Result};
use liveupdate::{Device, SessionName, Token};
use luo_abi::luo;
use luo_abi::memfd::{Folio, Memfd};
use rustix::fs::SealFlags;
use std::fmt::Write;
use std::io::{Seek, SeekFrom};

pub const GROUP: Group = Group {
    name: "dump",
    scenarios: &[Scenario {
        name: "handover-dump",
        stages: &[before, after],
    }],
};

/// What the format's name is replaced by.
const SPOILT: [u8; 8] = *b"spoilt\0\0";

fn before(context: &mut Context<'_>) -> Result<()> {
    let device = crate::context::device()?;
    // More sessions than fit a block, and some that are gone again.
    for i in 0..70 {
        let session = device.create_session(&SessionName::new(format!("plain-{i}"))?)?;
        if i % 9 != 4 {
            context.keep(session);
        }
    }
    let session = device.create_session(&SessionName::new("dump")?)?;
    let page = data::page();
    for (token, len) in [(1, 0), (2, 1), (3, page), (u64::MAX, 5 * page + 7)] {
        let file = data::memfd_with("file", token, len)?;
        session.preserve(&file, Token(token))?;
    }
    let mut file = data::memfd_with("moved", 4, 10 * page)?;
    session.preserve(&file, Token(4))?;
    file.seek(SeekFrom::Start(4321))?;
    let holes = data::memfd("holes")?;
    holes.set_len(300 * page)?;
    data::write_pattern(&holes, &mut Pattern::new(5), 100 * page, page)?;
    rustix::fs::fcntl_add_seals(&holes, SealFlags::GROW | SealFlags::SHRINK)?;
    session.preserve(&holes, Token(5))?;
    context.keep(file);
    context.keep(session);
    // More files than fit a block.
    let many = device.create_session(&SessionName::new("m".repeat(63))?)?;
    for token in 0..130 {
        let file = data::memfd_with("file", token, 100)?;
        many.preserve(file, Token(token))?;
    }
    context.keep(many);

    let memory = Memory::open()?;
    let mut header = outgoing_header(&memory)?;
    let format = header.value.compatible;
    expect_eq("the format's name", format, luo::Header::COMPATIBLE)?;
    header.value.compatible = SPOILT;
    memory.put(&header)
}

fn after(_: &mut Context<'_>) -> Result<()> {
    let memory = Memory::open()?;
    let header = incoming_header(&memory)?;
    let format = header.value.compatible;
    expect_eq("the spoilt name", format, SPOILT)?;
    dump(&memory, &header.value)?;
    expect_eq(
        "opening the device",
        Device::open().map(drop),
        Err(liveupdate::Errno::IO),
    )
}

fn line(text: impl AsRef<str>) {
    kmsg::text("dump", text);
}

/// An address, of which only matters whether there is one.
fn address(pa: u64) -> &'static str {
    if pa == 0 { "none" } else { "ADDRESS" }
}

/// A string with what follows it in its field.
fn field(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|&byte| byte == 0);
    let (text, rest) = bytes.split_at(end.unwrap_or(bytes.len()));
    let zeros = rest.iter().all(|&byte| byte == 0);
    format!(
        "\"{}\" + {} {}",
        text.escape_ascii(),
        rest.len(),
        if zeros { "zeros" } else { "OTHER BYTES" }
    )
}

fn dump(memory: &Memory, header: &luo::Header) -> Result<()> {
    let luo::Header {
        liveupdate_num,
        sessions_pa,
        flbs_pa,
        ..
    } = *header;
    line(format!(
        "header: number {liveupdate_num}, sessions {}, FLBs {}",
        address(sessions_pa),
        address(flbs_pa)
    ));
    let flbs: At<luo::FlbHeader> = memory.read(flbs_pa)?;
    let (pages, count) = (flbs.value.page_count, flbs.value.count);
    line(format!("FLBs: {pages} pages, {count} objects"));
    for block in memory.chain::<luo::Session>(sessions_pa)? {
        let (count, next) = (block.header.value.count, block.header.value.next);
        line(format!("block of {count} sessions, next {}", address(next)));
        for session in block.entries {
            dump_session(memory, &session.value)?;
        }
    }
    Ok(())
}

fn dump_session(memory: &Memory, session: &luo::Session) -> Result<()> {
    let (files, count) = (session.files_pa, session.file_count);
    line(format!(
        "  session {}: {count} files at {}",
        field(session.name.field()),
        address(files)
    ));
    for block in memory.chain::<luo::File>(files)? {
        let (count, next) = (block.header.value.count, block.header.value.next);
        line(format!(
            "    block of {count} files, next {}",
            address(next)
        ));
        for file in block.entries {
            let luo::File {
                compatible,
                data,
                token,
            } = file.value;
            line(format!(
                "      file {token:#x}: {}, data {}",
                field(compatible.field()),
                address(data)
            ));
            dump_memfd(memory, data).with_context(|| format!("file {token:#x}"))?;
        }
    }
    Ok(())
}

fn dump_memfd(memory: &Memory, pa: u64) -> Result<()> {
    let memfd = memory.read::<Memfd>(pa)?.value;
    let Memfd {
        pos,
        size,
        seals,
        flags,
        nr_folios,
        folios,
    } = memfd;
    let (first, total, order) = (folios.first, folios.total_pages, folios.order);
    let area_flags = folios.flags;
    line(format!(
        "        memfd: position {pos}, size {size}, seals {seals:#x}, flags {flags:#x}, \
         {nr_folios} folios in {total} pages at {}, flags {area_flags:#x}, order {order}",
        address(first)
    ));
    let list = memory.folios(&memfd)?;
    line(format!("        folios:{}", runs(&list)));
    Ok(())
}

/// Folios one after the other with the same flags, in short.
fn runs(folios: &[At<Folio>]) -> String {
    let mut text = String::new();
    let mut start = 0;
    for i in 1..=folios.len() {
        let entry = |i: usize| (folios[i].value.index, folios[i].value.flags());
        let goes_on = i < folios.len() && entry(i) == (entry(i - 1).0 + 1, entry(i - 1).1);
        if !goes_on {
            let (first, flags) = entry(start);
            let last = entry(i - 1).0;
            let frames = folios[start..i].iter().all(|folio| folio.value.pfn() != 0);
            let frames = if frames { "" } else { ", SOME AT FRAME 0" };
            // Writing to a string cannot fail.
            let _ = write!(text, " {first}..={last} flags {flags:#x}{frames}");
            start = i;
        }
    }
    text
}
