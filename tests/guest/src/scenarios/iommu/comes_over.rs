// SPDX-License-Identifier: GPL-2.0

//! What of an iommufd comes over, as far as it does not depend on a device.

use super::{
    IOMMUFD, IOVA, MEMORY, MIB, Mapped, expect_mappings, hand_over, load, part, retrieved,
};
use crate::context::{Context, create, expect_eq, expect_errno, finish, retrieve};
use crate::data;
use crate::iommufd::{Access, Iommufd};
use crate::procfs;
use crate::registry::{Group, Scenario};
use crate::scenarios::memory::expect_freed;
use anyhow::{Context as _, Result, ensure};
use liveupdate::{Errno, Token};
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;

pub const GROUP: Group = Group {
    name: "iommu",
    scenarios: &[
        Scenario {
            name: "iommufd-comes-back",
            stages: &[comes_back_before, comes_back_after],
        },
        Scenario {
            name: "iommufd-retrieved-before-its-memory",
            stages: &[
                |context| hand_over(context, "before-its-memory", MIB),
                before_its_memory_after,
            ],
        },
        Scenario {
            name: "iommufd-retrieved-without-its-memory",
            stages: &[
                |context| hand_over(context, "without-its-memory", 64 * MIB),
                without_its_memory_after,
            ],
        },
        Scenario {
            name: "iommufd-freed-by-finish-without-retrieve",
            stages: &[
                |context| hand_over(context, "iommufd-unclaimed", 64 * MIB),
                unclaimed_after,
            ],
        },
        Scenario {
            name: "iommufd-retrieved-twice",
            stages: &[
                |context| hand_over(context, "iommufd-twice", MIB),
                twice_after,
            ],
        },
        Scenario {
            name: "iommufd-with-nothing-mapped",
            stages: &[empty_before, empty_after],
        },
        Scenario {
            name: "iommufd-ids",
            stages: &[ids_before, ids_after],
        },
        Scenario {
            name: "iommufd-rights",
            stages: &[rights_before, rights_after],
        },
        Scenario {
            name: "iommufd-parts-of-pages",
            stages: &[parts_before, parts_after],
        },
        Scenario {
            name: "iommufd-beyond-its-memory",
            stages: &[beyond_before, beyond_after],
        },
        Scenario {
            name: "iommufd-several-memories",
            stages: &[several_before, several_after],
        },
        Scenario {
            name: "iommufd-allowed-ranges",
            stages: &[ranges_before, ranges_after],
        },
        Scenario {
            name: "iommufd-options",
            stages: &[options_before, options_after],
        },
        Scenario {
            name: "two-iommufds",
            stages: &[two_before, two_after],
        },
        Scenario {
            name: "iommufd-preserved-again",
            stages: &[|context| hand_over(context, "again", MIB), again_after],
        },
    ],
};

/// Mappings of two IOASes.
const FIRST: [(u64, u64); 3] = [(0, 4096), (MIB, MIB), (1 << 50, 3 * MIB)];
const THIRD: [(u64, u64); 3] = [(MIB, 2 * MIB), (64 * MIB, 4 * MIB), (1 << 40, MIB)];

fn comes_back_before(context: &mut Context<'_>) -> Result<()> {
    load(context)?;
    let session = create("comes-back")?;
    let memory = data::memfd_with("memory", 5, 4 * MIB)?;
    let iommufd = Iommufd::open()?;
    let ids = [(); 3].map(|()| iommufd.alloc_ioas());
    expect_eq("ids", ids, [Ok(1), Ok(2), Ok(3)])?;
    iommufd.destroy(2)?;
    for (ioas, mappings) in [(1, FIRST), (3, THIRD)] {
        for (iova, len) in mappings {
            // The end of the memory.
            let part = part(&memory, 4 * MIB - len, len);
            iommufd.map_file(ioas, Some(iova), part, Access::ReadWrite)?;
        }
    }
    session.preserve(&memory, MEMORY)?;
    session.preserve(&iommufd, IOMMUFD)?;
    context.keep((session, memory, iommufd));
    Ok(())
}

fn comes_back_after(context: &mut Context<'_>) -> Result<()> {
    load(context)?;
    let session = retrieve("comes-back")?;
    let memory = data::file(session.retrieve(MEMORY)?);
    let iommufd = retrieved(&session, IOMMUFD)?;
    finish(session)?;
    let again = iommufd.map_file(3, Some(MIB), part(&memory, 0, 4096), Access::Read);
    expect_errno("mapping over another", again, Errno::EXIST)?;
    expect_mappings(&iommufd, 1, &FIRST)?;
    expect_mappings(&iommufd, 3, &THIRD)?;
    expect_errno("what was destroyed", iommufd.destroy(2), Errno::NOENT)?;
    expect_eq("the lowest free id", iommufd.alloc_ioas(), Ok(2))?;
    for id in [3, 1, 2] {
        iommufd.destroy(id).with_context(|| format!("IOAS {id}"))?;
    }
    expect_eq("a new id", iommufd.alloc_ioas(), Ok(1))?;
    data::expect_file(&memory, 5, 4 * MIB)
}

fn before_its_memory_after(context: &mut Context<'_>) -> Result<()> {
    load(context)?;
    let session = retrieve("before-its-memory")?;
    let iommufd = retrieved(&session, IOMMUFD)?;
    let memory = data::file(session.retrieve(MEMORY)?);
    let again = data::file(session.retrieve(MEMORY)?);
    let inode = |file: &File| Ok::<_, anyhow::Error>(file.metadata()?.ino());
    expect_eq("the same file", inode(&again)?, inode(&memory)?)?;
    finish(session)?;
    data::expect_file(&memory, 1, MIB)?;
    expect_mappings(&iommufd, 1, &[(IOVA, MIB)])
}

/// What is mapped keeps its memory, until it is unmapped.
fn without_its_memory_after(context: &mut Context<'_>) -> Result<()> {
    load(context)?;
    let session = retrieve("without-its-memory")?;
    let iommufd = retrieved(&session, IOMMUFD)?;
    expect_memory(64 * MIB)?;
    finish(session)?;
    expect_memory(64 * MIB).context("after the finish")?;
    expect_mappings(&iommufd, 1, &[(IOVA, 64 * MIB)])?;
    ensure!(expect_memory(64 * MIB).is_err(), "unmapped, it is kept");
    Ok(())
}

/// Expects all memfds together to have so much.
fn expect_memory(bytes: u64) -> Result<()> {
    let found = procfs::meminfo("Shmem")?;
    ensure!(found >= bytes, "all memfds have {found} bytes");
    Ok(())
}

fn unclaimed_after(context: &mut Context<'_>) -> Result<()> {
    load(context)?;
    let session = retrieve("iommufd-unclaimed")?;
    expect_freed(|| finish(session))
}

fn twice_after(context: &mut Context<'_>) -> Result<()> {
    load(context)?;
    let session = retrieve("iommufd-twice")?;
    let iommufd = retrieved(&session, IOMMUFD)?;
    let again = retrieved(&session, IOMMUFD)?;
    let id = again.alloc_ioas()?;
    drop(again);
    finish(session)?;
    iommufd.destroy(id).context("made through the other")?;
    expect_mappings(&iommufd, 1, &[(IOVA, MIB)])
}

/// One without an IOAS, and one with two in which nothing is mapped.
fn empty_before(context: &mut Context<'_>) -> Result<()> {
    load(context)?;
    let session = create("nothing-mapped")?;
    let (none, two) = (Iommufd::open()?, Iommufd::open()?);
    two.alloc_ioas()?;
    two.alloc_ioas()?;
    session.preserve(&none, Token(1))?;
    session.preserve(&two, Token(2))?;
    context.keep((session, none, two));
    Ok(())
}

fn empty_after(context: &mut Context<'_>) -> Result<()> {
    load(context)?;
    let session = retrieve("nothing-mapped")?;
    let none = retrieved(&session, Token(1))?;
    let two = retrieved(&session, Token(2))?;
    finish(session)?;
    expect_errno("in the empty one", none.destroy(1), Errno::NOENT)?;
    expect_eq("its first IOAS", none.alloc_ioas(), Ok(1))?;
    expect_mappings(&two, 1, &[])?;
    expect_mappings(&two, 2, &[])?;
    expect_eq("the third IOAS", two.alloc_ioas(), Ok(3))
}

/// Ids that are far apart.
const IDS: [u32; 4] = [1, 2, 77, 300];

fn ids_before(context: &mut Context<'_>) -> Result<()> {
    load(context)?;
    let session = create("ids")?;
    let memory = data::memfd_with("memory", 1, MIB)?;
    let iommufd = Iommufd::open()?;
    for id in 1..=300 {
        expect_eq("an id", iommufd.alloc_ioas(), Ok(id))?;
    }
    for id in (1..=300).filter(|id| !IDS.contains(id)) {
        iommufd.destroy(id)?;
    }
    for id in IDS {
        let iova = u64::from(id) * MIB;
        let part = part(&memory, 0, 4096);
        iommufd.map_file(id, Some(iova), part, Access::Read)?;
    }
    session.preserve(&memory, MEMORY)?;
    session.preserve(&iommufd, IOMMUFD)?;
    context.keep((session, memory, iommufd));
    Ok(())
}

fn ids_after(context: &mut Context<'_>) -> Result<()> {
    load(context)?;
    let session = retrieve("ids")?;
    let iommufd = retrieved(&session, IOMMUFD)?;
    finish(session)?;
    for id in IDS {
        expect_mappings(&iommufd, id, &[(u64::from(id) * MIB, 4096)])?;
    }
    // No id is lost, and none is there twice.
    for id in (1..=301).filter(|id| !IDS.contains(id)) {
        expect_eq("a new id", iommufd.alloc_ioas(), Ok(id))?;
    }
    for id in 1..=301 {
        iommufd.destroy(id).with_context(|| format!("IOAS {id}"))?;
    }
    Ok(())
}

const READ_ONLY: u64 = 16 * MIB;
const WRITE_ONLY: u64 = 32 * MIB;

fn rights_before(context: &mut Context<'_>) -> Result<()> {
    let mapped = Mapped::new(context, MIB)?;
    let all = part(&mapped.memory, 0, MIB);
    for (iova, access) in [(READ_ONLY, Access::Read), (WRITE_ONLY, Access::Write)] {
        mapped.iommufd.map_file(1, Some(iova), all, access)?;
    }
    let session = mapped.preserved("rights")?;
    context.keep((session, mapped));
    Ok(())
}

/// What may not be written cannot be copied to be written.
fn rights_after(context: &mut Context<'_>) -> Result<()> {
    load(context)?;
    let session = retrieve("rights")?;
    let iommufd = retrieved(&session, IOMMUFD)?;
    finish(session)?;
    let copy = |from, access| iommufd.copy((1, from), MIB, 1, Some(128 * MIB), access);
    for access in [Access::Write, Access::ReadWrite] {
        let result = copy(READ_ONLY, access);
        expect_errno(&format!("read only to {access:?}"), result, Errno::PERM)?;
        copy(WRITE_ONLY, access).context("a copy that is written")?;
        iommufd.unmap(1, 128 * MIB, MIB)?;
    }
    copy(READ_ONLY, Access::Read).context("a copy that is read")?;
    Ok(())
}

/// Mappings that begin and end within pages: where, from where in the memory, how many bytes.
const PARTS: [(u64, u64, u64); 4] = [
    (0x123_4567, 0x89, 0x7),
    (0x200_0fff, 0x1fff, 0x1002),
    (0x300_0001, 0x3000, 0xfff),
    (0x400_0000, 0x5000, 0x1001),
];

fn parts_before(context: &mut Context<'_>) -> Result<()> {
    let mapped = Mapped::new(context, MIB)?;
    for (iova, start, len) in PARTS {
        mapped.map(iova, start, len)?;
    }
    // Parts of a mapping, as a copy in the same IOAS and in another.
    let other = mapped.iommufd.alloc_ioas()?;
    let from = (1, PARTS[1].0 + 0x10);
    for ioas in [1, other] {
        let to = Some(0x800_0003);
        mapped
            .iommufd
            .copy(from, 0xff0, ioas, to, Access::ReadWrite)?;
    }
    let session = mapped.preserved("parts")?;
    context.keep((session, mapped));
    Ok(())
}

fn parts_after(context: &mut Context<'_>) -> Result<()> {
    load(context)?;
    let session = retrieve("parts")?;
    let iommufd = retrieved(&session, IOMMUFD)?;
    finish(session)?;
    let mut expected: Vec<_> = PARTS.iter().map(|&(iova, _, len)| (iova, len)).collect();
    expected.extend([(IOVA, MIB), (0x800_0003, 0xff0)]);
    expect_mappings(&iommufd, 1, &expected)?;
    expect_mappings(&iommufd, 2, &[(0x800_0003, 0xff0)])
}

/// Mappings of what the memory does not have: only a device would notice.
const BEYOND: [(u64, u64, u64); 3] = [
    (1 << 40, MIB, MIB),
    (1 << 62, 1 << 62, 1 << 62),
    (u64::MAX - 0xffff, u64::MAX - 0xfff, 0xfff),
];

fn beyond_before(context: &mut Context<'_>) -> Result<()> {
    let mapped = Mapped::new(context, MIB)?;
    for (iova, start, len) in BEYOND {
        mapped.map(iova, start, len)?;
    }
    let session = mapped.preserved("beyond")?;
    context.keep((session, mapped));
    Ok(())
}

fn beyond_after(context: &mut Context<'_>) -> Result<()> {
    load(context)?;
    let session = retrieve("beyond")?;
    let iommufd = retrieved(&session, IOMMUFD)?;
    finish(session)?;
    let mut expected: Vec<_> = BEYOND.iter().map(|&(iova, _, len)| (iova, len)).collect();
    expected.push((IOVA, MIB));
    expect_mappings(&iommufd, 1, &expected)
}

const SEVERAL: u64 = 5;

fn several_before(context: &mut Context<'_>) -> Result<()> {
    load(context)?;
    let session = create("several")?;
    let iommufd = Iommufd::open()?;
    let spaces = [iommufd.alloc_ioas()?, iommufd.alloc_ioas()?];
    for i in 0..SEVERAL {
        let memory = data::memfd_with("memory", i, (i + 1) * MIB)?;
        for (ioas, start) in spaces.into_iter().zip([0, 4096]) {
            let part = part(&memory, start, MIB / 2);
            iommufd.map_file(ioas, Some(i * MIB), part, Access::ReadWrite)?;
        }
        // Another description of the same.
        let again = File::open(format!("/proc/self/fd/{}", memory.as_raw_fd()))?;
        let part = part(&again, 0, MIB);
        iommufd.map_file(spaces[1], Some((100 + i) * MIB), part, Access::Read)?;
        session.preserve(&memory, Token(10 + i))?;
        context.keep(memory);
    }
    // One that is not mapped.
    session.preserve(data::memfd_with("other", 99, MIB)?, Token(9))?;
    session.preserve(&iommufd, IOMMUFD)?;
    context.keep((session, iommufd));
    Ok(())
}

fn several_after(context: &mut Context<'_>) -> Result<()> {
    load(context)?;
    let session = retrieve("several")?;
    // Some are retrieved before, some after, and one is not.
    let memory = |i: u64| Ok::<_, anyhow::Error>(data::file(session.retrieve(Token(10 + i))?));
    let mut memories = vec![(1, memory(1)?), (4, memory(4)?)];
    let iommufd = retrieved(&session, IOMMUFD)?;
    memories.extend([(0, memory(0)?), (3, memory(3)?)]);
    finish(session)?;
    for (i, memory) in memories {
        data::expect_file(&memory, i, (i + 1) * MIB)?;
    }
    let mut expected: Vec<_> = (0..SEVERAL).map(|i| (i * MIB, MIB / 2)).collect();
    expect_mappings(&iommufd, 1, &expected)?;
    expected.extend((0..SEVERAL).map(|i| ((100 + i) * MIB, MIB)));
    expect_mappings(&iommufd, 2, &expected)
}

/// The first and the last IOVA of each range.
const RANGES: [(u64, u64); 2] = [
    (0x1_0000_0000, 0x1_0000_ffff),
    (0x70_0000_0000, 0x70_0000_7fff),
];

/// In IOAS 1, what was mapped first is outside of the ranges. IOAS 2 has none.
fn ranges_before(context: &mut Context<'_>) -> Result<()> {
    let mapped = Mapped::new(context, MIB)?;
    mapped.iommufd.alloc_ioas()?;
    mapped.iommufd.allow_iovas(1, &RANGES)?;
    let session = mapped.preserved("ranges")?;
    context.keep((session, mapped));
    Ok(())
}

fn ranges_after(context: &mut Context<'_>) -> Result<()> {
    load(context)?;
    let session = retrieve("ranges")?;
    let memory = data::file(session.retrieve(MEMORY)?);
    let iommufd = retrieved(&session, IOMMUFD)?;
    finish(session)?;
    let map = |ioas, len| iommufd.map_file(ioas, None, part(&memory, 0, len), Access::Read);
    let free = map(2, MIB).context("where no range was set")?;
    let inside = |iova| {
        RANGES
            .iter()
            .any(|range| (range.0..=range.1).contains(&iova))
    };
    ensure!(!inside(free), "{free:#x} is in a range of the other IOAS");
    // They have room for 24 pages, and for no large piece.
    expect_errno("a large piece", map(1, MIB), Errno::NOSPC)?;
    for _ in 0..24 {
        let iova = map(1, 4096).context("a page")?;
        ensure!(inside(iova), "{iova:#x} is outside of the ranges");
    }
    expect_errno("a page more", map(1, 4096), Errno::NOSPC)?;
    expect_eq("outside", iommufd.unmap(1, IOVA, MIB), Ok(MIB))
}

fn options_before(context: &mut Context<'_>) -> Result<()> {
    let mapped = Mapped::new(context, MIB)?;
    mapped.iommufd.alloc_ioas()?;
    mapped.iommufd.set_huge_pages(1, false)?;
    let session = mapped.preserved("options")?;
    let process = Iommufd::open()?;
    process.set_rlimit_mode(true)?;
    process.alloc_ioas()?;
    session.preserve(&process, Token(3))?;
    context.keep((session, mapped, process));
    Ok(())
}

fn options_after(context: &mut Context<'_>) -> Result<()> {
    load(context)?;
    let session = retrieve("options")?;
    let iommufd = retrieved(&session, IOMMUFD)?;
    let process = retrieved(&session, Token(3))?;
    finish(session)?;
    expect_eq("huge pages in IOAS 1", iommufd.huge_pages(1), Ok(false))?;
    expect_eq("huge pages in IOAS 2", iommufd.huge_pages(2), Ok(true))?;
    expect_eq("huge pages", process.huge_pages(1), Ok(true))?;
    expect_eq("charged to users", iommufd.rlimit_mode(), Ok(false))?;
    expect_eq("charged to processes", process.rlimit_mode(), Ok(true))?;
    iommufd.set_huge_pages(1, true).context("setting it")?;
    expect_mappings(&iommufd, 1, &[(IOVA, MIB)])
}

/// Two iommufds with mappings of the same memory.
fn two_before(context: &mut Context<'_>) -> Result<()> {
    let mapped = Mapped::new(context, MIB)?;
    let session = mapped.preserved("two-iommufds")?;
    let second = Iommufd::open()?;
    let ioas = second.alloc_ioas()?;
    let part = part(&mapped.memory, 4096, 8192);
    second.map_file(ioas, Some(0x5000), part, Access::ReadWrite)?;
    session.preserve(&second, Token(3))?;
    context.keep((session, mapped, second));
    Ok(())
}

fn two_after(context: &mut Context<'_>) -> Result<()> {
    load(context)?;
    let session = retrieve("two-iommufds")?;
    let second = retrieved(&session, Token(3))?;
    let first = retrieved(&session, IOMMUFD)?;
    finish(session)?;
    expect_mappings(&second, 1, &[(0x5000, 8192)])?;
    drop(second);
    expect_mappings(&first, 1, &[(IOVA, MIB)])
}

/// What came over can be preserved again, as what was made here.
fn again_after(context: &mut Context<'_>) -> Result<()> {
    load(context)?;
    let session = retrieve("again")?;
    let memory = data::file(session.retrieve(MEMORY)?);
    let iommufd = retrieved(&session, IOMMUFD)?;
    let next = create("again-next")?;
    let early = next.preserve(&iommufd, IOMMUFD);
    expect_errno("before the session is finished", early, Errno::BUSY)?;
    finish(session)?;
    let mapped = Mapped {
        memory,
        iommufd,
        ioas: 1,
    };
    mapped.preserve(&next)?;
    expect_errno("unmapping", mapped.unmap(IOVA, MIB), Errno::BUSY)?;
    drop(next);
    expect_mappings(&mapped.iommufd, 1, &[(IOVA, MIB)])
}
