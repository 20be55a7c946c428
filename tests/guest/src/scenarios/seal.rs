// SPDX-License-Identifier: GPL-2.0

//! What may not be done to a memfd: by its seals, or while it is preserved.

use crate::context::{Context, create, expect_errno, finish, retrieve};
use crate::data::{self, Pattern};
use crate::registry::{Group, Scenario};
use anyhow::{Context as _, Result, ensure};
use liveupdate::{Errno, Token};
use rustix::fs::{
    FallocateFlags, MemfdFlags, SealFlags, fallocate, fcntl_add_seals, fcntl_get_seals,
};
use std::fs::File;
use std::os::unix::fs::FileExt;

pub const GROUP: Group = Group {
    name: "seal",
    scenarios: &[
        Scenario {
            name: "memfd-seals",
            stages: &[seals_before, seals_after],
        },
        Scenario {
            name: "memfd-seals-can-be-added-later",
            stages: &[sizes_for_seals, add_seals_after],
        },
        Scenario {
            name: "memfd-size-fixed-while-preserved",
            stages: &[fixed],
        },
        Scenario {
            name: "memfd-size-free-after-unpreserve",
            stages: &[free_again],
        },
        Scenario {
            name: "memfd-not-executable",
            stages: &[not_executable_before, not_executable_after],
        },
    ],
};

/// Each seal by itself, some together, and none.
fn seal_sets() -> [SealFlags; 9] {
    [
        SealFlags::empty(),
        SealFlags::SEAL,
        SealFlags::SHRINK,
        SealFlags::GROW,
        SealFlags::WRITE,
        SealFlags::FUTURE_WRITE,
        SealFlags::SHRINK | SealFlags::GROW,
        SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE | SealFlags::SEAL,
        // On a file that may be executed, the exec seal brings these.
        SealFlags::from_bits_retain(EXEC)
            | SealFlags::SHRINK
            | SealFlags::GROW
            | SealFlags::WRITE
            | SealFlags::FUTURE_WRITE,
    ]
}

/// `F_SEAL_EXEC`.
const EXEC: u32 = 0x20;

const SEALED_LEN: u64 = 20_000;

fn seals_before(context: &mut Context<'_>) -> Result<()> {
    let session = create("seals")?;
    for (i, seals) in seal_sets().into_iter().enumerate() {
        let i = i as u64;
        let file = data::memfd_with("file", i, SEALED_LEN)?;
        if !seals.is_empty() {
            fcntl_add_seals(&file, seals).with_context(|| format!("adding {seals:?}"))?;
        }
        session
            .preserve(&file, Token(i))
            .with_context(|| format!("preserving with {seals:?}"))?;
    }
    context.keep(session);
    Ok(())
}

fn seals_after(_: &mut Context<'_>) -> Result<()> {
    let session = retrieve("seals")?;
    for (i, seals) in seal_sets().into_iter().enumerate() {
        let i = i as u64;
        let file = data::file(session.retrieve(Token(i))?);
        check_seals(&file, i, seals).with_context(|| format!("with {seals:?}"))?;
    }
    finish(session)
}

fn check_seals(file: &File, seed: u64, seals: SealFlags) -> Result<()> {
    let found = fcntl_get_seals(file)?;
    ensure!(found == seals, "the seals are {found:?}");
    data::expect_file(file, seed, SEALED_LEN)?;
    let refused = |what: &str, refused: bool, result: std::io::Result<()>| {
        let worked = result.is_ok();
        ensure!(worked != refused, "{what}: {result:?}");
        Ok(())
    };
    let no_write = seals.intersects(SealFlags::WRITE | SealFlags::FUTURE_WRITE);
    refused("writing", no_write, file.write_all_at(b"x", 0))?;
    let shrink = seals.contains(SealFlags::SHRINK);
    refused("shrinking", shrink, file.set_len(SEALED_LEN - 5000))?;
    let grow = seals.contains(SealFlags::GROW);
    refused("growing", grow, file.set_len(SEALED_LEN + 5000))?;
    let seal = seals.contains(SealFlags::SEAL);
    let result = fcntl_add_seals(file, SealFlags::SHRINK).map_err(Into::into);
    refused("sealing", seal, result)
}

fn sizes_for_seals(context: &mut Context<'_>) -> Result<()> {
    let session = create("add-seals")?;
    session.preserve(data::memfd_with("file", 1, SEALED_LEN)?, Token(1))?;
    context.keep(session);
    Ok(())
}

fn add_seals_after(_: &mut Context<'_>) -> Result<()> {
    let session = retrieve("add-seals")?;
    let file = data::file(session.retrieve(Token(1))?);
    // The write seal wants to be the only one who holds the pages: nothing of KHO may be left.
    fcntl_add_seals(&file, SealFlags::WRITE).context("sealing against writes")?;
    check_seals(&file, 1, SealFlags::WRITE)?;
    finish(session)
}

fn fixed(_: &mut Context<'_>) -> Result<()> {
    let page = data::page();
    let len = 8 * page;
    let session = create("fixed")?;
    let file = data::memfd_with("file", 1, len)?;
    session.preserve(&file, Token(1))?;
    refuse_resizing(&file, len)?;
    // What does not change the size is as it was.
    file.set_len(len)?;
    data::write_pattern(&file, &mut Pattern::new(2), 0, len)?;
    data::expect_file(&file, 2, len)
}

fn refuse_resizing(file: &File, len: u64) -> Result<()> {
    let page = data::page();
    let errno = |result: std::io::Result<()>| {
        result.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
    };
    expect_errno("growing", errno(file.set_len(len + page)), Errno::PERM)?;
    expect_errno("shrinking", errno(file.set_len(page)), Errno::PERM)?;
    let append = errno(file.write_all_at(b"x", len));
    expect_errno("writing after the end", append, Errno::PERM)?;
    let more = fallocate(file, FallocateFlags::empty(), len, page);
    expect_errno("fallocate after the end", more, Errno::PERM)?;
    let same = fallocate(file, FallocateFlags::empty(), 0, page);
    expect_errno("fallocate within the file", same, Errno::PERM)?;
    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    let hole = fallocate(file, punch, 0, page);
    expect_errno("punching a hole", hole, Errno::PERM)
}

fn free_again(_: &mut Context<'_>) -> Result<()> {
    let page = data::page();
    let len = 8 * page;
    let session = create("free-again")?;
    let file = data::memfd_with("file", 1, len)?;
    session.preserve(&file, Token(1))?;
    refuse_resizing(&file, len)?;
    // A second attempt that fails changes nothing.
    let result = session.preserve(&file, Token(2));
    expect_errno("a second preserve", result, Errno::BUSY)?;
    refuse_resizing(&file, len)?;
    drop(session);
    data::expect_file(&file, 1, len)?;
    file.set_len(2 * len).context("growing")?;
    file.set_len(page).context("shrinking")?;
    fallocate(&file, FallocateFlags::empty(), 0, 4 * page).context("fallocate")?;
    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    fallocate(&file, punch, 0, page).context("punching a hole")?;
    data::expect_zeros(&file, 0, 4 * page)
}

/// `MFD_NOEXEC_SEAL` leaves a file writable. The kernel's C handler makes it executable and then
/// seals it, which seals it against writes as well.
fn not_executable_before(context: &mut Context<'_>) -> Result<()> {
    let session = create("not-executable")?;
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::NOEXEC_SEAL;
    let file = File::from(rustix::fs::memfd_create("file", flags)?);
    data::write_pattern(&file, &mut Pattern::new(1), 0, SEALED_LEN)?;
    session.preserve(&file, Token(1))?;
    context.keep(session);
    Ok(())
}

fn not_executable_after(context: &mut Context<'_>) -> Result<()> {
    let session = retrieve("not-executable")?;
    let file = data::file(session.retrieve(Token(1))?);
    data::expect_file(&file, 1, SEALED_LEN)?;
    let seals = fcntl_get_seals(&file)?;
    let exec = SealFlags::from_bits_retain(EXEC);
    ensure!(seals.contains(exec), "the seals are {seals:?}");
    if context.rust_memfd() {
        ensure!(seals == exec, "the seals are {seals:?}");
        data::write_pattern(&file, &mut Pattern::new(2), 0, SEALED_LEN).context("writing")?;
        let mode = rustix::fs::fstat(&file)?.st_mode;
        ensure!(mode & 0o111 == 0, "its mode is {mode:o}");
    }
    finish(session)
}
