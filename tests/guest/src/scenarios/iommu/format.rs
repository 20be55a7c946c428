// SPDX-License-Identifier: GPL-2.0

//! The records of an iommufd, one by one.
//!
//! The first kernel makes it, the second one retrieves it and preserves it again, and the third one
//! only reads what it was left: as for the dump of a handover, the last thing that the second kernel
//! does is to spoil the format's name.

use super::device::unprivileged;
use super::{IOMMUFD, load, part};
use crate::context::{Context, create, expect_eq, finish, retrieve};
use crate::data;
use crate::handover::{At, Memory, incoming_header, outgoing_header};
use crate::iommufd::{Access, Iommufd};
use crate::registry::{Group, Scenario};
use anyhow::{Context as _, Result};
use liveupdate::Token;
use luo_abi::iommufd::{self as abi, AccountMode, Item};

pub const GROUP: Group = Group {
    name: "iommu-format",
    scenarios: &[Scenario {
        name: "records-of-an-iommufd",
        stages: &[before, between, after],
    }],
};

/// The tokens of the memories.
const SMALL: u64 = 0xf00d;
const LARGE: u64 = u64::MAX;

const PAGE: u64 = 4096;

fn ioas(id: u32, huge_pages: bool) -> Item {
    Item::Ioas { id, huge_pages }
}

fn file(token: u64) -> Item {
    Item::File { token }
}

fn pages(file: u32, start: u64, length: u64, writable: bool, account_mode: AccountMode) -> Item {
    Item::Pages {
        file,
        start,
        length,
        writable,
        account_mode,
    }
}

fn mapping(pages: u32, iova: u64, length: u64, start: u64, rights: (bool, bool)) -> Item {
    let (readable, writeable) = rights;
    Item::Mapping {
        pages,
        iova,
        length,
        start,
        readable,
        writeable,
    }
}

const BOTH: (bool, bool) = (true, true);
const READ: (bool, bool) = (true, false);
const WRITE: (bool, bool) = (false, true);

/// What [`before`] makes, in the order of ids and IOVAs.
fn expected() -> Vec<Item> {
    use AccountMode::{None, Process};
    vec![
        ioas(1, true),
        file(LARGE),
        // A part that begins and ends within pages is one of whole pages.
        pages(0, 3 * PAGE, 2 * PAGE, true, None),
        mapping(0, 0x1_2345, PAGE, 0x678, BOTH),
        file(SMALL),
        pages(1, 0, PAGE, false, None),
        mapping(1, 0x10_0000, PAGE, 0, READ),
        pages(1, 0, PAGE, true, None),
        mapping(2, 0x20_0000, PAGE, 0, WRITE),
        // A copy of a part.
        mapping(0, 0x30_0001, 7, 0x67a, READ),
        ioas(3, false),
        Item::Range {
            start: 0x1000,
            last: 0x1fff,
        },
        Item::Range {
            start: 0x1_0000_0000,
            last: u64::MAX - 1,
        },
        pages(0, 0, 16 * PAGE, true, Process),
        mapping(3, 0x40_0000, 16 * PAGE, 0, BOTH),
        // A copy of the same pages from another IOAS.
        mapping(2, 0x50_0000, PAGE, 0, WRITE),
        ioas(4, true),
    ]
}

fn before(context: &mut Context<'_>) -> Result<()> {
    load(context)?;
    let small = data::memfd_with("small", 1, PAGE)?;
    let large = data::memfd_with("large", 2, 16 * PAGE)?;
    let iommufd = Iommufd::open()?;
    iommufd.set_rlimit_mode(true)?;
    for id in 1..=4 {
        expect_eq("an id", iommufd.alloc_ioas(), Ok(id))?;
    }
    iommufd.destroy(2)?;
    let map = |ioas, iova, part, access| iommufd.map_file(ioas, Some(iova), part, access);
    let odd = part(&large, 3 * PAGE + 0x678, PAGE);
    map(1, 0x1_2345, odd, Access::ReadWrite)?;
    map(1, 0x10_0000, part(&small, 0, PAGE), Access::Read)?;
    map(1, 0x20_0000, part(&small, 0, PAGE), Access::Write)?;
    let from = (1, 0x1_2347);
    iommufd.copy(from, 7, 1, Some(0x30_0001), Access::Read)?;
    iommufd.set_huge_pages(3, false)?;
    iommufd.allow_iovas(3, &[(0x1_0000_0000, u64::MAX - 1), (0x1000, 0x1fff)])?;
    let all = part(&large, 0, 16 * PAGE);
    unprivileged(|| Ok(map(3, 0x40_0000, all, Access::ReadWrite)?))?;
    let from = (1, 0x20_0000);
    iommufd.copy(from, PAGE, 3, Some(0x50_0000), Access::Write)?;

    let session = create("format")?;
    session.preserve(&small, Token(SMALL))?;
    session.preserve(&large, Token(LARGE))?;
    session.preserve(&iommufd, IOMMUFD)?;
    // One without anything.
    session.preserve(Iommufd::open()?, Token(3))?;
    context.keep((session, small, large, iommufd));
    Ok(())
}

fn between(context: &mut Context<'_>) -> Result<()> {
    load(context)?;
    let session = retrieve("format")?;
    let tokens = [SMALL, LARGE, IOMMUFD.0, 3].map(Token);
    let files: Vec<_> = tokens
        .iter()
        .map(|token| Ok((*token, session.retrieve(*token)?)))
        .collect::<Result<_>>()?;
    finish(session)?;
    let session = create("format")?;
    for (token, file) in &files {
        session.preserve(file, *token)?;
    }
    context.keep((session, files));

    let memory = Memory::open()?;
    let mut header = outgoing_header(&memory)?;
    header.value.compatible = *b"spoilt\0\0";
    memory.put(&header)
}

fn after(_: &mut Context<'_>) -> Result<()> {
    let memory = Memory::open()?;
    let header = incoming_header(&memory)?;
    let files = memory.files(&header.value, "format")?;
    let state = |token: Token| -> Result<At<abi::Iommufd>> {
        let found = files.iter().find(|file| file.value.token == token.0);
        let found = found.context("there is no such token")?;
        let name = found.value.compatible;
        let name = name.bytes().ok().context("no name")?;
        expect_eq("the handler", name, abi::COMPATIBLE.to_bytes())?;
        memory.read(found.value.data)
    };
    let iommufd = state(IOMMUFD)?.value;
    let items: Vec<_> = memory
        .records(&iommufd)?
        .iter()
        .map(|record| record.value.item())
        .collect();
    for (i, (found, expected)) in items.iter().zip(expected()).enumerate() {
        expect_eq(&format!("record {i}"), *found, Some(expected))?;
    }
    expect_eq("records", items.len(), expected().len())?;
    let flags = iommufd.flags;
    expect_eq("flags", flags, abi::Iommufd::ACCOUNT_PROCESS)?;
    expect_eq("the other", state(Token(3))?.value, abi::Iommufd::default())
}
