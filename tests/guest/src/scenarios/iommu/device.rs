// SPDX-License-Identifier: GPL-2.0

//! What a device finds in an iommufd that came over.

use super::{IOMMUFD, MEMORY, MIB, Mapped, load, part, retrieved};
use crate::context::{Context, create, expect_eq, expect_errno, finish, retrieve};
use crate::data::{self, Mapping};
use crate::edu::Edu;
use crate::iommufd::{Access, Iommufd};
use crate::procfs;
use crate::registry::{Group, Scenario};
use crate::vfio::Device;
use anyhow::{Context as _, Result, anyhow, ensure};
use liveupdate::{Errno, Token};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::{CapabilitySet, capabilities, set_capabilities};
use std::fs::File;
use std::thread;

/// The machine has to have an edu.
pub const GROUP: Group = Group {
    name: "iommu-device",
    scenarios: &[
        Scenario {
            name: "device-reaches-what-was-mapped",
            stages: &[reaches_before, reaches_after],
        },
        Scenario {
            name: "device-has-the-rights-it-had",
            stages: &[rights_before, rights_after],
        },
        Scenario {
            name: "device-pins-shared-pages-once",
            stages: &[pins_before, pins_after],
        },
        Scenario {
            name: "device-pins-are-accounted-as-before",
            stages: &[accounts_before, accounts_after],
        },
        Scenario {
            name: "device-maps-on-in-an-old-space",
            stages: &[maps_on_before, maps_on_after],
        },
        // This one has the device when the machine reboots.
        Scenario {
            name: "device-attached-at-reboot",
            stages: &[attached_before, attached_after],
        },
    ],
};

/// Where the device leaves what it read, at [`SEEN_AT`] in memory.
const SEEN: u64 = 0x70_0000_0000;
const SEEN_AT: u64 = 0;

/// How many bytes of it are looked at.
const LEN: u64 = 64;

/// The machine's edu, bound and attached.
fn attached(iommufd: &Iommufd, ioas: u32) -> Result<Edu> {
    let device = Device::open(&Edu::find()?)?;
    device.bind(iommufd).context("binding edu")?;
    let edu = Edu::new(device)?;
    edu.device().attach(ioas).context("attaching edu")?;
    Ok(edu)
}

fn bytes(file: &File, at: u64) -> Result<Vec<u8>> {
    Ok(Mapping::new(file, file.metadata()?.len())?.read(at, LEN))
}

/// What the device reads at an IOVA.
fn seen(edu: &Edu, memory: &File, iova: u64) -> Result<Vec<u8>> {
    edu.load(iova, LEN)?;
    edu.store(SEEN, LEN)?;
    bytes(memory, SEEN_AT)
}

/// What is mapped: IOAS, IOVA, which memory, from where in it, how many bytes.
const REACHED: [(u32, u64, usize, u64, u64); 7] = [
    (1, 0, 0, 4096, 8192),
    (1, 0x10_0000, 0, MIB, MIB),
    (1, 0x7f_ffff_f000, 1, 2 * MIB - 4096, 4096),
    (2, 0, 1, 0, 4096),
    (2, 0x20_0000, 0, 0, 2 * MIB),
    (2, 0x1000, 1, 4096, 4096),
    COPIED,
];
/// It is a part of the second one.
const COPIED: (u32, u64, usize, u64, u64) = (2, 0x60_0000, 0, MIB + 0x4000, 8192);

fn reaches_before(context: &mut Context<'_>) -> Result<()> {
    load(context)?;
    let session = create("reaches")?;
    let memories = [
        data::memfd_with("first", 1, 2 * MIB)?,
        data::memfd_with("second", 2, 2 * MIB)?,
    ];
    let iommufd = Iommufd::open()?;
    for id in [1, 2] {
        expect_eq("an IOAS", iommufd.alloc_ioas(), Ok(id))?;
        let seen = part(&memories[0], SEEN_AT, 4096);
        iommufd.map_file(id, Some(SEEN), seen, Access::Write)?;
    }
    for (ioas, iova, memory, start, len) in REACHED {
        let (iova, access) = (Some(iova), Access::ReadWrite);
        if (ioas, iova) == (COPIED.0, Some(COPIED.1)) {
            iommufd.copy((1, 0x10_4000), len, ioas, iova, access)?;
        } else {
            let part = part(&memories[memory], start, len);
            iommufd.map_file(ioas, iova, part, access)?;
        }
    }
    session.preserve(&memories[0], Token(10))?;
    session.preserve(&memories[1], Token(11))?;
    session.preserve(&iommufd, IOMMUFD)?;
    context.keep((session, memories, iommufd));
    Ok(())
}

/// Its memory is retrieved when the device already uses it.
fn reaches_after(context: &mut Context<'_>) -> Result<()> {
    load(context)?;
    let session = retrieve("reaches")?;
    let iommufd = retrieved(&session, IOMMUFD)?;
    let edu = attached(&iommufd, 1)?;
    let memories = [
        data::file(session.retrieve(Token(10))?),
        data::file(session.retrieve(Token(11))?),
    ];
    finish(session)?;
    for (ioas, iova, memory, start, len) in REACHED {
        edu.device().attach(ioas)?;
        let memory = &memories[memory];
        for at in [0, len - LEN] {
            let what = format!("IOAS {ioas}, IOVA {:#x}", iova + at);
            let expected = bytes(memory, start + at)?;
            let found = seen(&edu, &memories[0], iova + at)?;
            expect_eq(&what, found, expected.clone())?;
            // The device still has it.
            edu.store(iova + len / 2, LEN)?;
            let written = bytes(memory, start + len / 2)?;
            expect_eq(&format!("{what}, written"), written, expected)?;
        }
    }
    Ok(())
}

const READ_ONLY: u64 = 0x100_0000;
const WRITE_ONLY: u64 = 0x200_0000;
const BOTH: u64 = 0x300_0000;

/// The three of them share their pages.
fn rights_before(context: &mut Context<'_>) -> Result<()> {
    load(context)?;
    let session = create("device-rights")?;
    let memory = data::memfd_with("memory", 3, MIB)?;
    let iommufd = Iommufd::open()?;
    let ioas = iommufd.alloc_ioas()?;
    let all = part(&memory, 0, MIB);
    iommufd.map_file(ioas, Some(BOTH), all, Access::ReadWrite)?;
    for (iova, access) in [
        (READ_ONLY, Access::Read),
        (WRITE_ONLY, Access::Write),
        (SEEN, Access::Write),
    ] {
        iommufd.copy((ioas, BOTH), MIB, ioas, Some(iova), access)?;
    }
    session.preserve(&memory, MEMORY)?;
    session.preserve(&iommufd, IOMMUFD)?;
    context.keep((session, memory, iommufd));
    Ok(())
}

fn rights_after(context: &mut Context<'_>) -> Result<()> {
    const AT: u64 = 0x8000;
    load(context)?;
    let session = retrieve("device-rights")?;
    let memory = data::file(session.retrieve(MEMORY)?);
    let iommufd = retrieved(&session, IOMMUFD)?;
    finish(session)?;
    let edu = attached(&iommufd, 1)?;
    let there = bytes(&memory, AT)?;
    for iova in [BOTH, READ_ONLY] {
        expect_eq(
            "what is read",
            seen(&edu, &memory, iova + AT)?,
            there.clone(),
        )?;
    }
    let unseen = seen(&edu, &memory, WRITE_ONLY + AT)?;
    ensure!(unseen != there, "it read what it may only write");

    let other = bytes(&memory, 2 * AT)?;
    edu.load(BOTH + 2 * AT, LEN)?;
    edu.store(READ_ONLY + AT, LEN)?;
    let found = bytes(&memory, AT)?;
    expect_eq("what may only be read", found, there)?;
    edu.store(WRITE_ONLY + AT, LEN)?;
    expect_eq("what may be written", bytes(&memory, AT)?, other.clone())?;
    edu.store(BOTH + 3 * AT, LEN)?;
    expect_eq("what may be both", bytes(&memory, 3 * AT)?, other)
}

/// A line of this process's status, in bytes.
fn status(name: &str) -> Result<u64> {
    let status = procfs::read("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    let line = line.with_context(|| format!("no {name}"))?;
    let kib = line.trim_start_matches(':').trim_end_matches("kB").trim();
    Ok(kib.parse::<u64>()? * 1024)
}

/// How much of it a device makes of something, as long as it is attached.
fn with_device(name: &str, iommufd: &Iommufd, ioas: u32) -> Result<u64> {
    let before = status(name)?;
    let edu = attached(iommufd, ioas)?;
    let with = status(name)?;
    drop(edu);
    expect_eq(&format!("{name} without the device"), status(name)?, before)?;
    Ok(with - before)
}

const PINNED: &str = "VmPin";

/// Shared: 1 MiB. Mapped twice: 2 times 256 KiB. A part that is shared: 8 KiB of 64.
const PINS: u64 = MIB + 2 * (256 << 10) + (64 << 10);

fn pins_before(context: &mut Context<'_>) -> Result<()> {
    load(context)?;
    let session = create("pins")?;
    let memory = data::memfd_with("memory", 4, 2 * MIB)?;
    let iommufd = Iommufd::open()?;
    let ioas = iommufd.alloc_ioas()?;
    let map = |iova, start, len| {
        let part = part(&memory, start, len);
        iommufd.map_file(ioas, Some(iova), part, Access::ReadWrite)
    };
    let copy = |from, len, to| iommufd.copy((ioas, from), len, ioas, Some(to), Access::Read);
    map(0x1000_0000, 0, MIB)?;
    copy(0x1000_0000, MIB, 0x2000_0000)?;
    copy(0x2000_0000, MIB, 0x3000_0000)?;
    map(0x4000_0000, 0, 256 << 10)?;
    map(0x5000_0000, 0, 256 << 10)?;
    map(0x6000_0000, MIB, 64 << 10)?;
    copy(0x6000_4000, 8192, 0x7000_0000)?;
    expect_eq("what is pinned", with_device(PINNED, &iommufd, ioas)?, PINS)?;
    session.preserve(&memory, MEMORY)?;
    session.preserve(&iommufd, IOMMUFD)?;
    context.keep((session, memory, iommufd));
    Ok(())
}

fn pins_after(context: &mut Context<'_>) -> Result<()> {
    load(context)?;
    let session = retrieve("pins")?;
    let before = status(PINNED)?;
    let iommufd = retrieved(&session, IOMMUFD)?;
    finish(session)?;
    expect_eq("what is pinned by the retrieve", status(PINNED)?, before)?;
    expect_eq("what is pinned", with_device(PINNED, &iommufd, 1)?, PINS)
}

/// Does something without the right to lock any amount of memory.
pub fn unprivileged<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let work = || {
        let mut sets = capabilities(None)?;
        sets.effective.remove(CapabilitySet::IPC_LOCK);
        set_capabilities(None, sets)?;
        work()
    };
    let done = thread::scope(|scope| scope.spawn(work).join());
    done.map_err(|_| anyhow!("a panic"))?
}

/// What is mapped in each IOAS of this scenario.
const CHARGED: u64 = 2 * MIB;

/// Two IOASes, of which the first is nobody's charge.
fn charged(iommufd: &Iommufd, memory: &File) -> Result<()> {
    let map = || {
        let ioas = iommufd.alloc_ioas()?;
        let part = part(memory, 0, CHARGED);
        iommufd.map_file(ioas, Some(0), part, Access::ReadWrite)?;
        Ok(ioas)
    };
    expect_eq("an IOAS", map()?, 1)?;
    expect_eq("another one", unprivileged(map)?, 2)
}

fn limit_locked(bytes: Option<u64>) -> Result<Option<u64>> {
    let old = getrlimit(Resource::Memlock);
    let current = bytes;
    setrlimit(Resource::Memlock, Rlimit { current, ..old })?;
    Ok(old.current)
}

/// Attaches the device to both IOASes with a limit that is too small; says how much is locked by
/// the process when it is large enough.
fn expect_charged(iommufd: &Iommufd) -> Result<u64> {
    const LOCKED: &str = "VmLck";
    let attach = |ioas| {
        let device = Device::open(&Edu::find()?)?;
        device.bind(iommufd)?;
        Ok::<_, anyhow::Error>(device.attach(ioas))
    };
    let limit = limit_locked(Some(CHARGED / 2))?;
    let (free, charged) = (attach(1), attach(2));
    limit_locked(limit)?;
    free?.context("what is nobody's charge")?;
    expect_errno("beyond the limit", charged?, Errno::NOMEM)?;
    let locked = with_device(LOCKED, iommufd, 1)?;
    expect_eq("locked by what is nobody's charge", locked, 0)?;
    with_device(LOCKED, iommufd, 2)
}

fn accounts_before(context: &mut Context<'_>) -> Result<()> {
    load(context)?;
    let session = create("accounts")?;
    let memory = data::memfd_with("memory", 6, CHARGED)?;
    session.preserve(&memory, MEMORY)?;
    let (user, process) = (Iommufd::open()?, Iommufd::open()?);
    process.set_rlimit_mode(true)?;
    for (token, iommufd) in [(2, &user), (3, &process)] {
        charged(iommufd, &memory)?;
        session.preserve(iommufd, Token(token))?;
    }
    expect_eq("locked for a user", expect_charged(&user)?, 0)?;
    let locked = expect_charged(&process)?;
    expect_eq("locked for a process", locked, CHARGED)?;
    context.keep((session, memory, user, process));
    Ok(())
}

fn accounts_after(context: &mut Context<'_>) -> Result<()> {
    load(context)?;
    let session = retrieve("accounts")?;
    let user = retrieved(&session, Token(2))?;
    let process = retrieved(&session, Token(3))?;
    let memory = data::file(session.retrieve(MEMORY)?);
    finish(session)?;
    expect_eq("locked for a user", expect_charged(&user)?, 0)?;
    let locked = expect_charged(&process)?;
    expect_eq("locked for a process", locked, CHARGED)?;
    // What is mapped from now on as well.
    for iommufd in [&user, &process] {
        let map = || {
            iommufd.unmap_all(2)?;
            let part = part(&memory, 0, CHARGED);
            Ok(iommufd.map_file(2, Some(0), part, Access::ReadWrite)?)
        };
        unprivileged(map)?;
    }
    expect_eq("locked for a user", expect_charged(&user)?, 0)?;
    let locked = expect_charged(&process)?;
    expect_eq("locked for a process", locked, CHARGED)
}

fn maps_on_before(context: &mut Context<'_>) -> Result<()> {
    let mapped = Mapped::new(context, MIB)?;
    let session = mapped.preserved("maps-on")?;
    context.keep((session, mapped));
    Ok(())
}

/// A device in an old IOAS finds what is mapped later, and not what is unmapped.
fn maps_on_after(context: &mut Context<'_>) -> Result<()> {
    load(context)?;
    let session = retrieve("maps-on")?;
    let memory = data::file(session.retrieve(MEMORY)?);
    let iommufd = retrieved(&session, IOMMUFD)?;
    finish(session)?;
    let edu = attached(&iommufd, 1)?;
    iommufd.map_file(1, Some(SEEN), part(&memory, 0, 4096), Access::Write)?;
    let old = super::IOVA + 0x9000;
    let expected = bytes(&memory, 0x9000)?;
    expect_eq("what is old", seen(&edu, &memory, old)?, expected.clone())?;
    iommufd.map_file(1, Some(0), part(&memory, 0x9000, 4096), Access::Read)?;
    expect_eq("what is new", seen(&edu, &memory, 0)?, expected.clone())?;
    iommufd.unmap(1, super::IOVA, MIB)?;
    let nothing = seen(&edu, &memory, old)?;
    ensure!(nothing != expected, "what was unmapped is still read");
    Ok(())
}

/// The device is attached while the iommufd is preserved, and when the machine reboots.
fn attached_before(context: &mut Context<'_>) -> Result<()> {
    let mapped = Mapped::new(context, MIB)?;
    let edu = attached(&mapped.iommufd, 1)?;
    let session = mapped.preserved("attached")?;
    expect_errno("unmapping", mapped.unmap(super::IOVA, MIB), Errno::BUSY)?;
    // It can go and come.
    let second = mapped.iommufd.alloc_ioas()?;
    edu.device().attach(second)?;
    edu.device().detach()?;
    edu.device().attach(1)?;
    edu.load(super::IOVA, LEN)?;
    edu.store(super::IOVA + 0x5000, LEN)?;
    let expected = bytes(&mapped.memory, 0)?;
    expect_eq("what it wrote", bytes(&mapped.memory, 0x5000)?, expected)?;
    context.keep((session, mapped, edu));
    Ok(())
}

fn attached_after(context: &mut Context<'_>) -> Result<()> {
    load(context)?;
    let session = retrieve("attached")?;
    let memory = data::file(session.retrieve(MEMORY)?);
    let iommufd = retrieved(&session, IOMMUFD)?;
    finish(session)?;
    let expected = bytes(&memory, 0)?;
    expect_eq("what it wrote", bytes(&memory, 0x5000)?, expected.clone())?;
    let edu = attached(&iommufd, 1)?;
    edu.load(super::IOVA + 0x5000, LEN)?;
    edu.store(super::IOVA + 0xa000, LEN)?;
    expect_eq("what it wrote now", bytes(&memory, 0xa000)?, expected)
}
