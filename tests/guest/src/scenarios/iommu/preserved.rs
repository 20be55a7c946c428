// SPDX-License-Identifier: GPL-2.0

//! What may be done to an iommufd while it is preserved, and what of that comes over.

use super::reboot::while_it_changes;
use super::{IOMMUFD, IOVA, MEMORY, MIB, Mapped, expect_mappings, load, part, retrieved};
use crate::context::{Context, create, expect_eq, expect_errno, expect_message, finish, retrieve};
use crate::data;
use crate::iommufd::{Access, Iommufd};
use crate::kmsg::Reader;
use crate::registry::{Group, Scenario};
use anyhow::{Context as _, Result, bail};
use liveupdate::{Errno, Token};

pub const GROUP: Group = Group {
    name: "iommu-preserved",
    scenarios: &[
        Scenario {
            name: "preserved-iommufd-stays-as-it-is",
            stages: &[stays],
        },
        Scenario {
            name: "preserved-iommufd-given-back-by-close",
            stages: &[given_back],
        },
        Scenario {
            name: "preserved-iommufd-given-back-many-times",
            stages: &[many_times],
        },
        Scenario {
            name: "iommufd-preserved-while-it-changes",
            stages: &[while_changing],
        },
        Scenario {
            name: "preserved-iommufd-with-additions",
            stages: &[additions_before, additions_after],
        },
        Scenario {
            name: "preserved-iommufd-with-other-options",
            stages: &[options_before, options_after],
        },
        Scenario {
            name: "preserved-iommufd-without-its-descriptor",
            stages: &[closed_before, closed_after],
        },
        Scenario {
            name: "preserved-iommufd-with-later-memory",
            stages: &[later_before, later_after],
        },
    ],
};

/// Where things are added.
const ADDED: u64 = 0x2000_0000;

fn stays(context: &mut Context<'_>) -> Result<()> {
    let mapped = Mapped::new(context, MIB)?;
    let empty = mapped.iommufd.alloc_ioas()?;
    let session = mapped.preserved("stays")?;
    let iommufd = &mapped.iommufd;
    for _ in 0..2 {
        expect_errno("unmapping it", mapped.unmap(IOVA, MIB), Errno::BUSY)?;
        let around = mapped.unmap(IOVA - MIB, 3 * MIB);
        expect_errno("unmapping around it", around, Errno::BUSY)?;
        let within = mapped.unmap(IOVA + 4096, 4096);
        expect_errno("unmapping within it", within, Errno::BUSY)?;
        expect_errno("unmapping all", iommufd.unmap_all(1), Errno::BUSY)?;
        expect_errno("destroying its IOAS", iommufd.destroy(1), Errno::BUSY)?;
        let destroyed = iommufd.destroy(empty);
        expect_errno("destroying an empty IOAS", destroyed, Errno::BUSY)?;
    }
    // What was added is free to go, next to what was there and in an IOAS that was empty.
    let all = part(&mapped.memory, 0, MIB);
    for (ioas, iova) in [(1, IOVA + MIB), (1, IOVA - MIB), (empty, IOVA)] {
        iommufd.map_file(ioas, Some(iova), all, Access::ReadWrite)?;
        expect_eq("unmapping it", iommufd.unmap(ioas, iova, MIB), Ok(MIB))?;
    }
    // So is a copy of what was there.
    for ioas in [1, empty] {
        let from = (1, IOVA + 4096);
        let copy = iommufd.copy(from, 8192, ioas, Some(ADDED), Access::Read);
        copy.context("a copy")?;
        let unmapped = iommufd.unmap(ioas, ADDED, 8192);
        expect_eq("unmapping the copy", unmapped, Ok(8192))?;
    }
    let third = iommufd.alloc_ioas().context("another IOAS")?;
    iommufd.map_file(third, Some(0), all, Access::Read)?;
    iommufd.destroy(third).context("destroying it")?;
    drop(session);
    expect_mappings(iommufd, 1, &[(IOVA, MIB)])?;
    iommufd.destroy(empty).context("destroying the empty IOAS")
}

/// With additions and without.
fn given_back(context: &mut Context<'_>) -> Result<()> {
    let mapped = Mapped::new(context, MIB)?;
    let iommufd = &mapped.iommufd;
    mapped.map(0, 4096, 4096)?;
    for round in 0..3 {
        let session = mapped.preserved("given-back")?;
        expect_errno("unmapping", mapped.unmap(IOVA, MIB), Errno::BUSY)?;
        if round == 1 {
            mapped.map(ADDED, 0, MIB)?;
        }
        drop(session);
    }
    expect_mappings(iommufd, 1, &[(0, 4096), (IOVA, MIB), (ADDED, MIB)])?;
    iommufd.destroy(1).context("destroying the IOAS")
}

const TIMES: usize = 200;

/// No count is off by one afterwards.
fn many_times(context: &mut Context<'_>) -> Result<()> {
    let mapped = Mapped::new(context, MIB)?;
    for _ in 0..TIMES {
        let session = mapped.preserved("many-times")?;
        expect_errno("unmapping", mapped.unmap(IOVA, MIB), Errno::BUSY)?;
        drop(session);
        expect_eq("unmapping", mapped.unmap(IOVA, MIB), Ok(MIB))?;
        mapped.map(IOVA, 0, MIB)?;
    }
    Ok(())
}

/// Preserve waits for nobody.
fn while_changing(context: &mut Context<'_>) -> Result<()> {
    let mapped = Mapped::new(context, MIB)?;
    while_it_changes(&mapped, || {
        let session = create("while-changing")?;
        session.preserve(&mapped.memory, MEMORY)?;
        let mut log = Reader::from_now()?;
        match session.preserve(&mapped.iommufd, IOMMUFD) {
            Ok(()) => Ok(false),
            Err(Errno::BUSY) => {
                expect_message(&mut log, &["luo_iommu: token 0x2, ", "try again"])?;
                Ok(true)
            }
            Err(errno) => bail!("preserve: {errno}"),
        }
    })?;
    mapped.iommufd.unmap_all(1).context("all of it")?;
    mapped.iommufd.destroy(1).context("the IOAS")
}

/// Some of what is added goes again before the machine reboots.
fn additions_before(context: &mut Context<'_>) -> Result<()> {
    let mapped = Mapped::new(context, MIB)?;
    let iommufd = &mapped.iommufd;
    let gone = iommufd.alloc_ioas()?;
    iommufd.destroy(gone)?;
    let session = mapped.preserved("additions")?;
    mapped.map(ADDED, 4096, 8192)?;
    mapped.map(0, 0, 4096)?;
    mapped.unmap(0, 4096)?;
    let copy = Some(ADDED + MIB);
    iommufd.copy((1, IOVA), MIB, 1, copy, Access::ReadWrite)?;
    for id in [2, 3] {
        expect_eq("a new IOAS", iommufd.alloc_ioas(), Ok(id))?;
    }
    iommufd.copy((1, IOVA), 4096, 3, Some(0), Access::Read)?;
    iommufd.destroy(2)?;
    context.keep((session, mapped));
    Ok(())
}

fn additions_after(context: &mut Context<'_>) -> Result<()> {
    load(context)?;
    let session = retrieve("additions")?;
    let iommufd = retrieved(&session, IOMMUFD)?;
    finish(session)?;
    let expected = [(IOVA, MIB), (ADDED, 8192), (ADDED + MIB, MIB)];
    expect_mappings(&iommufd, 1, &expected)?;
    expect_mappings(&iommufd, 3, &[(0, 4096)])?;
    expect_eq("the IOAS that was destroyed", iommufd.alloc_ioas(), Ok(2))
}

/// Where the kernel may choose a place after all.
const RANGE: (u64, u64) = (0x10_0000, 0x10_ffff);

/// None of this is held back while the iommufd is preserved.
fn options_before(context: &mut Context<'_>) -> Result<()> {
    let mapped = Mapped::new(context, MIB)?;
    let iommufd = &mapped.iommufd;
    iommufd.alloc_ioas()?;
    iommufd.set_huge_pages(2, false)?;
    iommufd.allow_iovas(1, &[(0, MIB)])?;
    let session = mapped.preserved("other-options")?;
    iommufd.set_huge_pages(1, false)?;
    iommufd.set_huge_pages(2, true)?;
    iommufd.allow_iovas(1, &[])?;
    iommufd.allow_iovas(2, &[RANGE])?;
    let process = Iommufd::open()?;
    session.preserve(&process, Token(3))?;
    process.set_rlimit_mode(true)?;
    context.keep((session, mapped, process));
    Ok(())
}

fn options_after(context: &mut Context<'_>) -> Result<()> {
    load(context)?;
    let session = retrieve("other-options")?;
    let memory = data::file(session.retrieve(MEMORY)?);
    let iommufd = retrieved(&session, IOMMUFD)?;
    let process = retrieved(&session, Token(3))?;
    finish(session)?;
    expect_eq("huge pages in IOAS 1", iommufd.huge_pages(1), Ok(false))?;
    expect_eq("huge pages in IOAS 2", iommufd.huge_pages(2), Ok(true))?;
    expect_eq("charged to processes", process.rlimit_mode(), Ok(true))?;
    let map = |ioas, len| iommufd.map_file(ioas, None, part(&memory, 0, len), Access::Read);
    map(1, MIB).context("without ranges")?;
    expect_errno("beyond the range", map(2, MIB), Errno::NOSPC)?;
    expect_eq("in the range", map(2, 0x1_0000), Ok(RANGE.0))
}

fn closed_before(context: &mut Context<'_>) -> Result<()> {
    let mapped = Mapped::new(context, MIB)?;
    let session = mapped.preserved("closed")?;
    drop(mapped);
    context.keep(session);
    // One that goes with its session, when it has no other descriptor any more.
    let mapped = Mapped::new(context, MIB)?;
    let session = mapped.preserved("closed-too")?;
    drop(mapped);
    drop(session);
    Ok(())
}

fn closed_after(context: &mut Context<'_>) -> Result<()> {
    load(context)?;
    let session = retrieve("closed")?;
    let iommufd = retrieved(&session, IOMMUFD)?;
    data::expect_file(&data::file(session.retrieve(MEMORY)?), 1, MIB)?;
    finish(session)?;
    expect_mappings(&iommufd, 1, &[(IOVA, MIB)])
}

/// Memory that is mapped and preserved when the iommufd already is.
fn later_before(context: &mut Context<'_>) -> Result<()> {
    let mapped = Mapped::new(context, MIB)?;
    let session = mapped.preserved("later")?;
    let later = data::memfd_with("later", 3, MIB)?;
    let all = part(&later, 0, MIB);
    mapped.iommufd.map_file(1, Some(ADDED), all, Access::Read)?;
    session.preserve(&later, Token(3))?;
    context.keep((session, mapped, later));
    Ok(())
}

fn later_after(context: &mut Context<'_>) -> Result<()> {
    load(context)?;
    let session = retrieve("later")?;
    let iommufd = retrieved(&session, IOMMUFD)?;
    data::expect_file(&data::file(session.retrieve(Token(3))?), 3, MIB)?;
    finish(session)?;
    expect_mappings(&iommufd, 1, &[(IOVA, MIB), (ADDED, MIB)])
}
