// SPDX-License-Identifier: GPL-2.0

//! What of a memfd comes over a kexec, and what may be done to it before.

use crate::context::{Context, create, expect_errno, finish, retrieve};
use crate::data::{self, Mapping, Pattern};
use crate::kmsg;
use crate::registry::{Group, Scenario};
use anyhow::{Context as _, Result, ensure};
use liveupdate::{Errno, Token};
use rustix::fs::{FallocateFlags, MemfdFlags, fallocate};
use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::os::unix::fs::FileExt;

pub const GROUP: Group = Group {
    name: "memfd",
    scenarios: &[
        Scenario {
            name: "memfd-sizes",
            stages: &[sizes_before, sizes_after],
        },
        Scenario {
            name: "memfd-empty",
            stages: &[empty_before, empty_after],
        },
        Scenario {
            name: "memfd-holes",
            stages: &[holes_before, holes_after],
        },
        Scenario {
            name: "memfd-position-moved-after-preserve",
            stages: &[position_before, position_after],
        },
        Scenario {
            name: "memfd-written-after-preserve",
            stages: &[written_before, written_after],
        },
        Scenario {
            name: "memfd-fallocated-and-never-written",
            stages: &[fallocated_before, fallocated_after],
        },
        Scenario {
            name: "memfd-fallocated-and-written-later",
            stages: &[late_before, late_after],
        },
        Scenario {
            name: "memfd-clean-page-written-later",
            stages: &[clean_before, clean_after],
        },
        Scenario {
            name: "memfd-mapped-at-reboot",
            stages: &[mapped_before, mapped_after],
        },
        Scenario {
            name: "memfd-usable-after-retrieve",
            stages: &[usable_before, usable_after],
        },
        Scenario {
            name: "memfd-hugetlb-refused",
            stages: &[hugetlb],
        },
        Scenario {
            name: "memfd-larger-than-16-tib-refused",
            stages: &[too_large],
        },
    ],
};

/// Sizes around the limits of pages.
fn odd_sizes() -> [u64; 9] {
    let page = data::page();
    [
        0,
        1,
        page - 1,
        page,
        page + 1,
        3 * page + 17,
        512 * page,
        1 << 20,
        (1 << 20) + 1,
    ]
}

fn sizes_before(context: &mut Context<'_>) -> Result<()> {
    let session = create("sizes")?;
    for (i, len) in odd_sizes().into_iter().enumerate() {
        let i = i as u64;
        session.preserve(data::memfd_with("file", i, len)?, Token(i))?;
    }
    context.keep(session);
    Ok(())
}

fn sizes_after(_: &mut Context<'_>) -> Result<()> {
    let session = retrieve("sizes")?;
    for (i, len) in odd_sizes().into_iter().enumerate() {
        let i = i as u64;
        let file = data::file(session.retrieve(Token(i))?);
        data::expect_file(&file, i, len).with_context(|| format!("{len} bytes"))?;
        // The rest of the last page is zeros, as it was.
        let page = data::page();
        if len % page != 0 {
            file.set_len(len.next_multiple_of(page))?;
            data::expect_zeros(&file, len, page - len % page)?;
        }
    }
    finish(session)
}

fn empty_before(context: &mut Context<'_>) -> Result<()> {
    let session = create("empty-memfd")?;
    let mut file = data::memfd("file")?;
    file.seek(SeekFrom::Start(99))?;
    session.preserve(&file, Token(1))?;
    context.keep(session);
    Ok(())
}

fn empty_after(_: &mut Context<'_>) -> Result<()> {
    let session = retrieve("empty-memfd")?;
    let mut file = data::file(session.retrieve(Token(1))?);
    data::expect_len(&file, 0)?;
    let position = file.stream_position()?;
    ensure!(position == 99, "the position is {position}, expected 99");
    finish(session)?;
    data::write_pattern(&file, &mut Pattern::new(1), 0, 9000)?;
    data::expect_file(&file, 1, 9000)
}

const HOLES: u64 = 300;

fn holes_before(context: &mut Context<'_>) -> Result<()> {
    let page = data::page();
    let session = create("holes")?;
    let file = data::memfd("file")?;
    file.set_len(HOLES * page)?;
    for i in (5..HOLES).step_by(10) {
        data::write_pattern(&file, &mut Pattern::new(i), i * page, page)?;
    }
    // Written once and given back.
    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    fallocate(&file, punch, 25 * page, page)?;
    session.preserve(&file, Token(1))?;
    let nothing = data::memfd("nothing")?;
    nothing.set_len(10 * page)?;
    session.preserve(&nothing, Token(2))?;
    context.keep(session);
    Ok(())
}

fn holes_after(_: &mut Context<'_>) -> Result<()> {
    let page = data::page();
    let session = retrieve("holes")?;
    let file = data::file(session.retrieve(Token(1))?);
    data::expect_len(&file, HOLES * page)?;
    for i in 0..HOLES {
        if i % 10 == 5 && i != 25 {
            data::expect_pattern(&file, i, i * page, page)?;
        } else {
            data::expect_zeros(&file, i * page, page)?;
        }
    }
    let nothing = data::file(session.retrieve(Token(2))?);
    data::expect_len(&nothing, 10 * page)?;
    data::expect_zeros(&nothing, 0, 10 * page)?;
    finish(session)
}

fn position_before(context: &mut Context<'_>) -> Result<()> {
    let session = create("position")?;
    let mut file = data::memfd_with("file", 1, 50_000)?;
    file.seek(SeekFrom::Start(10))?;
    session.preserve(&file, Token(1))?;
    file.seek(SeekFrom::Start(43_210))?;
    // Beyond the end and beyond 32 bits.
    let mut far = data::memfd_with("far", 2, 100)?;
    session.preserve(&far, Token(2))?;
    far.seek(SeekFrom::Start(1 << 40))?;
    context.keep((session, file, far));
    Ok(())
}

fn position_after(_: &mut Context<'_>) -> Result<()> {
    let session = retrieve("position")?;
    for (token, expected) in [(1, 43_210), (2, 1 << 40)] {
        let mut file = data::file(session.retrieve(Token(token))?);
        let position = file.stream_position()?;
        ensure!(
            position == expected,
            "the position is {position}, expected {expected}"
        );
    }
    finish(session)
}

fn written_before(context: &mut Context<'_>) -> Result<()> {
    let session = create("written")?;
    let file = data::memfd_with("file", 1, 100_000)?;
    session.preserve(&file, Token(1))?;
    data::write_pattern(&file, &mut Pattern::new(2), 0, 100_000)?;
    context.keep(session);
    Ok(())
}

fn written_after(_: &mut Context<'_>) -> Result<()> {
    let session = retrieve("written")?;
    data::expect_file(&data::file(session.retrieve(Token(1))?), 2, 100_000)?;
    finish(session)
}

/// Fills much memory with bytes that are not zero and frees it, so that new pages are not zero by
/// chance.
fn dirty_free_memory() -> Result<()> {
    let len = 64 << 20;
    let file = data::memfd("dirt")?;
    let ones = vec![0xff; 1 << 20];
    for at in (0..len).step_by(ones.len()) {
        file.write_all_at(&ones, at)?;
    }
    Ok(())
}

fn fallocated_before(context: &mut Context<'_>) -> Result<()> {
    let page = data::page();
    dirty_free_memory()?;
    let session = create("fallocated")?;
    let file = data::memfd("file")?;
    fallocate(&file, FallocateFlags::empty(), 0, 64 * page)?;
    session.preserve(&file, Token(1))?;
    context.keep(session);
    Ok(())
}

fn fallocated_after(_: &mut Context<'_>) -> Result<()> {
    let page = data::page();
    let session = retrieve("fallocated")?;
    let file = data::file(session.retrieve(Token(1))?);
    data::expect_len(&file, 64 * page)?;
    data::expect_zeros(&file, 0, 64 * page)?;
    finish(session)
}

fn late_before(context: &mut Context<'_>) -> Result<()> {
    let page = data::page();
    dirty_free_memory()?;
    let session = create("late")?;
    let file = data::memfd("file")?;
    fallocate(&file, FallocateFlags::empty(), 0, 64 * page)?;
    session.preserve(&file, Token(1))?;
    // Half a page: the other half is zeros, whatever the page held before.
    data::write_pattern(&file, &mut Pattern::new(9), 7 * page, page / 2)?;
    let mapping = Mapping::new(&file, 64 * page)?;
    mapping.write(9 * page, b"through a mapping");
    context.keep((session, mapping));
    Ok(())
}

fn late_after(_: &mut Context<'_>) -> Result<()> {
    let page = data::page();
    let session = retrieve("late")?;
    let file = data::file(session.retrieve(Token(1))?);
    data::expect_len(&file, 64 * page)?;
    data::expect_zeros(&file, 0, 7 * page)?;
    data::expect_pattern(&file, 9, 7 * page, page / 2)?;
    data::expect_zeros(&file, 7 * page + page / 2, page + page / 2)?;
    data::expect_bytes(&file, 9 * page, b"through a mapping")?;
    data::expect_zeros(&file, 10 * page, 54 * page)?;
    finish(session)
}

/// A page that was only read is clean. It must not be dropped under memory pressure after the
/// kexec if it was written after preserve.
fn clean_before(context: &mut Context<'_>) -> Result<()> {
    let page = data::page();
    let session = create("clean")?;
    let file = data::memfd("file")?;
    file.set_len(16 * page)?;
    let mapping = Mapping::new(&file, 16 * page)?;
    ensure!(mapping.read(0, 16 * page).iter().all(|&byte| byte == 0));
    session.preserve(&file, Token(1))?;
    mapping.write(3 * page, b"dirtied after preserve");
    context.keep((session, mapping));
    Ok(())
}

fn clean_after(_: &mut Context<'_>) -> Result<()> {
    let page = data::page();
    let session = retrieve("clean")?;
    let file = data::file(session.retrieve(Token(1))?);
    finish(session)?;
    // Without swap there is nowhere that a dirty page could go.
    let mapping = Mapping::new(&file, 16 * page)?;
    mapping.page_out();
    crate::procfs::write("/proc/sys/vm/drop_caches", "3")?;
    data::expect_bytes(&file, 3 * page, b"dirtied after preserve")
}

fn mapped_before(context: &mut Context<'_>) -> Result<()> {
    let session = create("mapped")?;
    let file = data::memfd("file")?;
    file.set_len(200_000)?;
    let mapping = Mapping::new(&file, 200_000)?;
    session.preserve(&file, Token(1))?;
    mapping.write(0, &Pattern::new(4).bytes(200_000));
    context.keep((session, mapping));
    Ok(())
}

fn mapped_after(_: &mut Context<'_>) -> Result<()> {
    let session = retrieve("mapped")?;
    let file = data::file(session.retrieve(Token(1))?);
    data::expect_file(&file, 4, 200_000)?;
    let mapping = Mapping::new(&file, 200_000)?;
    ensure!(
        mapping.read(0, 200_000) == Pattern::new(4).bytes(200_000),
        "a mapping shows something else"
    );
    finish(session)
}

fn usable_before(context: &mut Context<'_>) -> Result<()> {
    let session = create("usable")?;
    session.preserve(data::memfd_with("file", 1, 100_000)?, Token(1))?;
    context.keep(session);
    Ok(())
}

/// A retrieved memfd is like any other, before and after the finish.
fn usable_after(_: &mut Context<'_>) -> Result<()> {
    let page = data::page();
    let session = retrieve("usable")?;
    let file = data::file(session.retrieve(Token(1))?);
    let use_it = |seed| -> Result<()> {
        file.set_len(300_000).context("growing")?;
        data::expect_zeros(&file, 200_000, 100_000)?;
        data::write_pattern(&file, &mut Pattern::new(seed), 0, 300_000)?;
        data::expect_file(&file, seed, 300_000)?;
        let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        fallocate(&file, punch, page, page).context("punching a hole")?;
        data::expect_zeros(&file, page, page)?;
        file.set_len(150_000).context("shrinking")?;
        let blocks = rustix::fs::fstat(&file)?.st_blocks;
        let pages = 150_000_u64.div_ceil(page) - 1;
        ensure!(
            blocks as u64 * 512 == pages * page,
            "{blocks} blocks, expected {pages} pages"
        );
        Ok(())
    };
    use_it(2).context("before the finish")?;
    finish(session)?;
    use_it(3).context("after the finish")
}

fn hugetlb(context: &mut Context<'_>) -> Result<()> {
    let session = create("hugetlb")?;
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::HUGETLB;
    let file = File::from(rustix::fs::memfd_create("huge", flags)?);
    let mut log = kmsg::Reader::from_now()?;
    let result = session.preserve(&file, Token(1));
    if context.rust_memfd() {
        expect_errno("preserve", result, Errno::OPNOTSUPP)?;
        crate::context::expect_message(&mut log, &["MFD_HUGETLB"])?;
    } else {
        expect_errno("preserve", result, Errno::NOENT)?;
    }
    // The file is as free as before.
    file.set_len(4 << 20).context("growing it")
}

fn too_large(_: &mut Context<'_>) -> Result<()> {
    let session = create("too-large")?;
    let file = data::memfd("file")?;
    let most = u64::from(u32::MAX) * data::page();
    file.set_len(most + 1)?;
    let result = session.preserve(&file, Token(1));
    expect_errno("preserve", result, Errno::FBIG)?;
    // A refused file is not frozen.
    file.set_len(10_000).context("shrinking it")?;
    session
        .preserve(&file, Token(1))
        .context("preserving it when it is small")
}
