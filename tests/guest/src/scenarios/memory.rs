// SPDX-License-Identifier: GPL-2.0

//! The pages behind memfds: large ones, many of them, swapped out, charged and freed.

use crate::context::{Context, create, device, expect_errno, finish, retrieve};
use crate::data::{self, Mapping};
use crate::helpers::{Arg, Helper};
use crate::procfs;
use crate::registry::{Group, Scenario};
use anyhow::{Context as _, Result, ensure};
use liveupdate::{Errno, SessionName, Token};
use std::ffi::CString;
use std::fs::File;
use std::os::unix::fs::FileExt;

pub const GROUP: Group = Group {
    name: "memory",
    scenarios: &[
        Scenario {
            name: "memfd-256-mib",
            stages: &[big_before, big_after],
        },
        Scenario {
            name: "memfd-large-folios",
            stages: &[large_before, large_after],
        },
        Scenario {
            name: "memfd-swapped-out",
            stages: &[swapped_before, swapped_after],
        },
        Scenario {
            name: "memfd-freed-by-finish-without-retrieve",
            stages: &[
                |context| keep_64_mib(context, "freed-unseen"),
                freed_unseen_after,
            ],
        },
        Scenario {
            name: "memfd-freed-after-retrieve",
            stages: &[
                |context| keep_64_mib(context, "freed-seen"),
                freed_seen_after,
            ],
        },
        Scenario {
            name: "memfd-freed-by-unpreserve",
            stages: &[freed_by_unpreserve],
        },
        Scenario {
            name: "memfd-over-the-cgroups-limit",
            stages: &[limit_before, limit_after],
        },
    ],
};

const MIB: u64 = 1 << 20;

fn big_before(context: &mut Context<'_>) -> Result<()> {
    let session = create("big")?;
    let file = data::memfd_with("file", 256, 256 * MIB)?;
    let about = data::describe("file", &file)?;
    // The hash crosses the kexec as a file of its own.
    let hash = data::memfd("hash")?;
    hash.write_all_at(about.sha256.as_bytes(), 0)?;
    session.preserve(&file, Token(1))?;
    session.preserve(&hash, Token(2))?;
    context.keep(session);
    Ok(())
}

fn big_after(_: &mut Context<'_>) -> Result<()> {
    let session = retrieve("big")?;
    let file = data::file(session.retrieve(Token(1))?);
    let hash = data::file(session.retrieve(Token(2))?);
    finish(session)?;
    let about = data::describe("file", &file)?;
    ensure!(about.bytes == 256 * MIB, "it has {} bytes", about.bytes);
    data::expect_bytes(&hash, 0, about.sha256.as_bytes()).context("another hash")
}

pub const HUGE: &str = "/sys/kernel/mm/transparent_hugepage/shmem_enabled";
const LARGE: u64 = 32 * MIB;

fn large_before(context: &mut Context<'_>) -> Result<()> {
    let session = create("large")?;
    procfs::write(HUGE, "always")?;
    let before = procfs::meminfo("ShmemHugePages")?;
    let file = data::memfd_with("file", 1, LARGE);
    // A size that is no multiple of a large folio's.
    let odd = data::memfd_with("odd", 2, LARGE / 2 + 12_345);
    procfs::write(HUGE, "never")?;
    let (file, odd) = (file?, odd?);
    let huge = procfs::meminfo("ShmemHugePages")? - before;
    ensure!(huge >= LARGE, "only {huge} bytes are in large folios");
    session.preserve(&file, Token(1))?;
    session.preserve(&odd, Token(2))?;
    context.keep(session);
    Ok(())
}

fn large_after(_: &mut Context<'_>) -> Result<()> {
    let before = procfs::meminfo("ShmemHugePages")?;
    let session = retrieve("large")?;
    let file = data::file(session.retrieve(Token(1))?);
    data::expect_file(&file, 1, LARGE)?;
    let huge = procfs::meminfo("ShmemHugePages")? - before;
    ensure!(huge == LARGE, "{huge} bytes are in large folios");
    let blocks = rustix::fs::fstat(&file)?.st_blocks as u64;
    ensure!(blocks * 512 == LARGE, "it has {blocks} blocks");
    let odd = data::file(session.retrieve(Token(2))?);
    data::expect_file(&odd, 2, LARGE / 2 + 12_345)?;
    finish(session)?;
    // Splitting a folio works as ever; the pattern of a shorter file is the same from its start.
    file.set_len(LARGE / 2 + 4097)?;
    data::expect_file(&file, 1, LARGE / 2 + 4097)
}

const DISK: &str = "/dev/nvme0n1";

fn swapped_before(context: &mut Context<'_>) -> Result<()> {
    let len = 48 * MIB;
    make_swap(DISK)?;
    let free = procfs::meminfo("SwapFree")?;
    let session = create("swapped")?;
    let file = data::memfd_with("file", 48, len)?;
    let mapping = Mapping::new(&file, len)?;
    // Only what is mapped is moved out.
    drop(mapping.read(0, len));
    mapping.page_out();
    let swapped = free - procfs::meminfo("SwapFree")?;
    ensure!(swapped > len / 2, "only {swapped} bytes are swapped out");
    session.preserve(&file, Token(1))?;
    context.keep(session);
    Ok(())
}

fn swapped_after(_: &mut Context<'_>) -> Result<()> {
    let session = retrieve("swapped")?;
    data::expect_file(&data::file(session.retrieve(Token(1))?), 48, 48 * MIB)?;
    finish(session)
}

/// Writes the header of a swap area, and uses it.
fn make_swap(path: &str) -> Result<()> {
    let disk = File::options()
        .read(true)
        .write(true)
        .open(path)
        .with_context(|| format!("opening {path}"))?;
    let page = data::page();
    let size = rustix::fs::seek(&disk, rustix::fs::SeekFrom::End(0))?;
    let last = u32::try_from(size / page)?
        .checked_sub(1)
        .with_context(|| format!("{path} is empty"))?;
    let mut header = vec![0; usize::try_from(page)?];
    header[1024..1028].copy_from_slice(&1_u32.to_ne_bytes());
    header[1028..1032].copy_from_slice(&last.to_ne_bytes());
    let end = header.len() - 10;
    header[end..].copy_from_slice(b"SWAPSPACE2");
    disk.write_all_at(&header, 0)?;
    disk.sync_all()?;
    let path = CString::new(path)?;
    // SAFETY: the call reads a string.
    if unsafe { libc::swapon(path.as_ptr(), 0) } != 0 {
        return Err(std::io::Error::last_os_error()).context("swapon");
    }
    Ok(())
}

fn keep_64_mib(context: &mut Context<'_>, name: &str) -> Result<()> {
    let session = create(name)?;
    session.preserve(data::memfd_with("file", 64, 64 * MIB)?, Token(1))?;
    context.keep(session);
    Ok(())
}

/// Expects that `free` frees 64 MiB, give or take what else goes on.
pub fn expect_freed(free: impl FnOnce() -> Result<()>) -> Result<()> {
    // Without this, each processor keeps so many pages for itself that they hide what is freed.
    procfs::write("/proc/sys/vm/percpu_pagelist_high_fraction", "100000")?;
    let before = procfs::meminfo("MemFree")?;
    free()?;
    let mut freed = 0;
    // Some is given back by a worker that runs a moment later.
    for _ in 0..20 {
        freed = procfs::meminfo("MemFree")?.saturating_sub(before);
        if freed >= 60 * MIB {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    ensure!(
        freed >= 60 * MIB,
        "{} KiB were freed, expected 64 MiB",
        freed / 1024
    );
    Ok(())
}

fn freed_unseen_after(_: &mut Context<'_>) -> Result<()> {
    let session = retrieve("freed-unseen")?;
    expect_freed(|| finish(session))
}

fn freed_seen_after(_: &mut Context<'_>) -> Result<()> {
    let session = retrieve("freed-seen")?;
    let file = data::file(session.retrieve(Token(1))?);
    data::expect_file(&file, 64, 64 * MIB)?;
    finish(session)?;
    expect_freed(|| {
        drop(file);
        Ok(())
    })
}

fn freed_by_unpreserve(_: &mut Context<'_>) -> Result<()> {
    let session = create("freed-by-unpreserve")?;
    session.preserve(data::memfd_with("file", 64, 64 * MIB)?, Token(1))?;
    expect_freed(|| {
        drop(session);
        Ok(())
    })
}

const GROUPS: &str = "/sys/fs/cgroup";

fn limit_before(context: &mut Context<'_>) -> Result<()> {
    let session = create("limit")?;
    session.preserve(data::memfd_with("large", 1, 64 * MIB)?, Token(1))?;
    session.preserve(data::memfd_with("small", 2, 10_000)?, Token(2))?;
    context.keep(session);
    Ok(())
}

/// A process whose control group has no room for a file cannot retrieve it. The rest of the
/// session is unharmed, and the file's pages are not lost.
fn limit_after(_: &mut Context<'_>) -> Result<()> {
    procfs::write(format!("{GROUPS}/cgroup.subtree_control"), "+memory")?;
    let group = format!("{GROUPS}/tiny");
    std::fs::create_dir(&group)?;
    procfs::write(format!("{group}/memory.max"), (8 * MIB).to_string())?;
    let session = retrieve("limit")?;
    expect_freed(|| {
        let helper = Helper::start(
            "retrieve",
            &[
                Arg::Fd(&session),
                Arg::Word("1".to_owned()),
                Arg::Word(group.clone()),
            ],
        )?;
        let status = helper.wait()?;
        ensure!(
            status.code() == Some(Errno::NOMEM.raw_os_error()),
            "within the group: {status}, expected ENOMEM"
        );
        let again = session.retrieve(Token(1));
        expect_errno("asking again", again, Errno::NOMEM)?;
        let small = data::file(session.retrieve(Token(2))?);
        data::expect_file(&small, 2, 10_000)?;
        finish(session)
    })?;
    let result = device()?.retrieve_session(&SessionName::new("limit")?);
    expect_errno("the finished session", result, Errno::NOENT)
}
