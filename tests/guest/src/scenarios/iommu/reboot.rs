// SPDX-License-Identifier: GPL-2.0

//! Reboots that fail, and that an iommufd is none the worse for them.

use super::{IOMMUFD, IOVA, MIB, Mapped, expect_mappings, load, part, retrieved};
use crate::context::{
    Context,
    expect_eq,
    expect_errno,
    expect_message,
    finish,
    retrieve,
    wait_for, //
};
use crate::data::{self, Mapping};
use crate::iommufd::Access;
use crate::kexec;
use crate::kmsg::{self, Reader};
use crate::module::{self, TEST, callbacks, set, test_file};
use crate::registry::{Group, Scenario};
use anyhow::{Context as _, Result, anyhow, bail, ensure};
use liveupdate::{Errno, Outgoing, Session, Token};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;

pub const GROUP: Group = Group {
    name: "iommu-reboot",
    scenarios: &[
        Scenario {
            name: "reboot-fails-with-memory-that-is-not-preserved",
            stages: &[not_preserved_before, not_preserved_after],
        },
        Scenario {
            name: "reboot-fails-with-a-mapping-by-address",
            stages: &[by_address_before, by_address_after],
        },
        Scenario {
            name: "reboot-fails-with-a-fault-queue",
            stages: &[fault_queue_before, fault_queue_after],
        },
        Scenario {
            name: "reboot-fails-with-a-container",
            stages: &[container_before, container_after],
        },
        Scenario {
            name: "reboot-fails-while-iommufds-change",
            stages: &[storm_before, storm_after],
        },
        // What another handler is told to do, it does for all sessions: this has to be the last.
        Scenario {
            name: "reboot-fails-in-another-handler",
            stages: &[another_before, another_after],
        },
    ],
};

const ADDED: u64 = 0x2000_0000;

fn reboot() -> Result<(), Errno> {
    Err(kexec::reboot())
}

/// Expects an iommufd that is preserved to be as usable as before the reboot that failed.
fn expect_usable(mapped: &Mapped) -> Result<()> {
    let iommufd = &mapped.iommufd;
    expect_errno("unmapping it", mapped.unmap(IOVA, MIB), Errno::BUSY)?;
    expect_errno("destroying its IOAS", iommufd.destroy(1), Errno::BUSY)?;
    let iova = ADDED + 4 * MIB;
    mapped.map(iova, 0, MIB).context("mapping")?;
    expect_eq("unmapping", mapped.unmap(iova, MIB), Ok(MIB))?;
    let new = iommufd.alloc_ioas().context("a new IOAS")?;
    let copy = iommufd.copy((1, IOVA), MIB, new, Some(0), Access::Read);
    copy.context("a copy")?;
    iommufd.set_huge_pages(new, false).context("an option")?;
    iommufd.allow_iovas(new, &[]).context("ranges")?;
    iommufd.destroy(new).context("destroying it")
}

fn not_preserved_before(context: &mut Context<'_>) -> Result<()> {
    let mapped = Mapped::new(context, MIB)?;
    let session = mapped.preserved("not-preserved")?;
    let other = data::memfd_with("other", 2, MIB)?;
    let all = part(&other, 0, MIB);
    mapped.iommufd.map_file(1, Some(ADDED), all, Access::Read)?;
    for _ in 0..2 {
        let mut log = Reader::from_now()?;
        expect_errno("reboot", reboot(), Errno::XDEV)?;
        let words = ["luo_iommu: token 0x2, IOAS 1, IOVA 0x20000000: ", "memfd"];
        expect_message(&mut log, &words)?;
        expect_usable(&mapped)?;
    }
    // What that line says is enough.
    session.preserve(&other, Token(3))?;
    context.keep((session, mapped));
    Ok(())
}

fn not_preserved_after(context: &mut Context<'_>) -> Result<()> {
    load(context)?;
    let session = retrieve("not-preserved")?;
    let iommufd = retrieved(&session, IOMMUFD)?;
    data::expect_file(&data::file(session.retrieve(Token(3))?), 2, MIB)?;
    finish(session)?;
    expect_mappings(&iommufd, 1, &[(IOVA, MIB), (ADDED, MIB)])
}

fn by_address_before(context: &mut Context<'_>) -> Result<()> {
    let mapped = Mapped::new(context, MIB)?;
    let session = mapped.preserved("mapped-by-address")?;
    let own = Mapping::anonymous(MIB)?;
    let iommufd = &mapped.iommufd;
    iommufd.map(1, Some(ADDED), &own, Access::Read)?;
    let mut log = Reader::from_now()?;
    expect_errno("reboot", reboot(), Errno::OPNOTSUPP)?;
    expect_message(
        &mut log,
        &["luo_iommu: token 0x2, IOAS 1, IOVA 0x20000000: "],
    )?;
    expect_usable(&mapped)?;
    mapped.unmap(ADDED, MIB)?;
    context.keep((session, mapped));
    Ok(())
}

fn by_address_after(context: &mut Context<'_>) -> Result<()> {
    load(context)?;
    let session = retrieve("mapped-by-address")?;
    let iommufd = retrieved(&session, IOMMUFD)?;
    finish(session)?;
    expect_mappings(&iommufd, 1, &[(IOVA, MIB)])
}

fn fault_queue_before(context: &mut Context<'_>) -> Result<()> {
    let mapped = Mapped::new(context, MIB)?;
    let session = mapped.preserved("late-fault-queue")?;
    let (id, queue) = mapped.iommufd.alloc_fault_queue()?;
    let mut log = Reader::from_now()?;
    expect_errno("reboot", reboot(), Errno::OPNOTSUPP)?;
    expect_message(&mut log, &["luo_iommu: ", &format!("object {id}: ")])?;
    expect_usable(&mapped)?;
    drop(queue);
    mapped.iommufd.destroy(id).context("destroying it")?;
    context.keep((session, mapped));
    Ok(())
}

fn fault_queue_after(context: &mut Context<'_>) -> Result<()> {
    load(context)?;
    let session = retrieve("late-fault-queue")?;
    let iommufd = retrieved(&session, IOMMUFD)?;
    finish(session)?;
    expect_mappings(&iommufd, 1, &[(IOVA, MIB)])?;
    expect_eq("a new IOAS", iommufd.alloc_ioas(), Ok(2))
}

fn container_before(context: &mut Context<'_>) -> Result<()> {
    let mapped = Mapped::new(context, MIB)?;
    let session = mapped.preserved("late-container")?;
    mapped.iommufd.set_vfio_ioas(1)?;
    let mut log = Reader::from_now()?;
    expect_errno("reboot", reboot(), Errno::OPNOTSUPP)?;
    expect_message(&mut log, &["luo_iommu: token 0x2, object 1: ", "container"])?;
    expect_usable(&mapped)?;
    mapped.iommufd.clear_vfio_ioas()?;
    context.keep((session, mapped));
    Ok(())
}

fn container_after(context: &mut Context<'_>) -> Result<()> {
    load(context)?;
    let session = retrieve("late-container")?;
    let iommufd = retrieved(&session, IOMMUFD)?;
    finish(session)?;
    expect_mappings(&iommufd, 1, &[(IOVA, MIB)])
}

/// Adds a file whose freeze fails when it is asked to, so after that of all before it.
pub fn preserve_odd(context: &Context<'_>, session: &Session<Outgoing>) -> Result<()> {
    if !module::is_loaded(TEST) {
        module::load(&context.module(TEST))?;
    }
    Ok(session.preserve(test_file(7)?, Token(7))?)
}

/// Reboots, which fails in the freeze of that file.
pub fn failing_reboot(errno: Errno) -> Result<Errno> {
    set("freeze_errno", -errno.raw_os_error())?;
    let result = kexec::reboot();
    set("freeze_errno", 0)?;
    Ok(result)
}

fn another_before(context: &mut Context<'_>) -> Result<()> {
    let mapped = Mapped::new(context, MIB)?;
    let empty = mapped.iommufd.alloc_ioas()?;
    let session = mapped.preserved("fails-elsewhere")?;
    preserve_odd(context, &session)?;
    for round in 0..3 {
        let mut log = Reader::from_now()?;
        let errno = failing_reboot(Errno::NODEV)?;
        expect_eq("reboot", errno, Errno::NODEV)?;
        let found = callbacks(&mut log, &["freeze"])?;
        ensure!(found.contains(&"freeze 7".to_owned()), "{found:?}");
        expect_usable(&mapped)?;
        // The records are another time others, and once not.
        if round > 0 {
            mapped.map(ADDED + round * MIB, 0, 4096)?;
        }
    }
    mapped.iommufd.set_huge_pages(empty, false)?;
    // The next reboot is a real one.
    context.keep((session, mapped));
    Ok(())
}

fn another_after(context: &mut Context<'_>) -> Result<()> {
    load(context)?;
    if !module::is_loaded(TEST) {
        module::load(&context.module(TEST))?;
    }
    let session = retrieve("fails-elsewhere")?;
    let iommufd = retrieved(&session, IOMMUFD)?;
    finish(session)?;
    let expected = [(IOVA, MIB), (ADDED + MIB, 4096), (ADDED + 2 * MIB, 4096)];
    expect_mappings(&iommufd, 1, &expected)?;
    expect_eq("huge pages in IOAS 2", iommufd.huge_pages(2), Ok(false))
}

/// Mappings that make others take their time with all of them.
const SOME: u64 = 500;
/// What is tried while an iommufd changes has to come so often at a bad time, and so often not, and
/// is not tried more often than that.
const TIMES: u32 = 3;
const TRIES: u32 = 1000;

/// Tries something again and again that is refused at a bad time, and does say so, while one thread
/// maps, one makes IOASes, and one has all pages accounted anew, for which it locks everything.
pub fn while_it_changes(mapped: &Mapped, mut refused: impl FnMut() -> Result<bool>) -> Result<()> {
    for i in 0..SOME {
        mapped.map((1 << 32) + i * MIB, 0, 4096)?;
    }
    let done = AtomicBool::new(false);
    let rounds = [const { AtomicU32::new(0) }; 3];
    let until_done = |rounds: &AtomicU32, round: &dyn Fn() -> Result<()>| -> Result<()> {
        while !done.load(Ordering::Relaxed) {
            round()?;
            rounds.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    };
    let map = || {
        mapped.map(ADDED, 0, MIB).context("mapping")?;
        // Preserved in between, it has to be given back first.
        loop {
            match mapped.unmap(ADDED, MIB) {
                Err(Errno::BUSY) => {}
                result => return expect_eq("unmapping", result, Ok(MIB)),
            }
        }
    };
    let make = || {
        let id = mapped.iommufd.alloc_ioas().context("a new IOAS")?;
        // While it is looked at, somebody has it.
        while let Err(errno) = mapped.iommufd.destroy(id) {
            ensure!(errno == Errno::BUSY, "destroying it: {errno}");
        }
        Ok(())
    };
    // It does not wait for whoever maps.
    let account = || match mapped.iommufd.change_process() {
        Ok(()) | Err(Errno::BUSY) => Ok(()),
        Err(errno) => Err(errno).context("accounting"),
    };
    let (bad, good) = thread::scope(|scope| -> Result<_> {
        let threads = [
            scope.spawn(|| until_done(&rounds[0], &map)),
            scope.spawn(|| until_done(&rounds[1], &make)),
            scope.spawn(|| until_done(&rounds[2], &account)),
        ];
        let (mut bad, mut good) = (0, 0);
        let result = (|| -> Result<()> {
            while (bad < TIMES || good < TIMES) && bad + good < TRIES {
                match refused()? {
                    true => bad += 1,
                    false => good += 1,
                }
                // The others have to have their turn.
                let before = rounds
                    .each_ref()
                    .map(|rounds| rounds.load(Ordering::Relaxed));
                wait_for("the others", || {
                    let mut all = rounds.iter().zip(before);
                    let finished = threads.iter().any(|thread| thread.is_finished());
                    finished || all.all(|(now, before)| now.load(Ordering::Relaxed) != before)
                })?;
            }
            Ok(())
        })();
        done.store(true, Ordering::Relaxed);
        for thread in threads {
            thread.join().map_err(|_| anyhow!("a panic"))??;
        }
        result.map(|()| (bad, good))
    })?;
    let times = format!("{bad} came at a bad time, {good} did not, {rounds:?}");
    kmsg::remark(&times);
    ensure!(bad >= TIMES && good >= TIMES, "{times}");
    Ok(())
}

fn storm_before(context: &mut Context<'_>) -> Result<()> {
    let mapped = Mapped::new(context, MIB)?;
    let session = mapped.preserved("storm-of-maps")?;
    preserve_odd(context, &session)?;
    while_it_changes(&mapped, || {
        let mut log = Reader::from_now()?;
        match failing_reboot(Errno::NXIO)? {
            Errno::NXIO => Ok(false),
            Errno::BUSY => {
                expect_message(&mut log, &["luo_iommu: token 0x2", "try again"])?;
                Ok(true)
            }
            errno => bail!("reboot: {errno}"),
        }
    })?;
    expect_usable(&mapped)?;
    // Without the file that fails: only one session can have one.
    drop(session);
    let session = mapped.preserved("storm-of-maps")?;
    context.keep((session, mapped));
    Ok(())
}

fn storm_after(context: &mut Context<'_>) -> Result<()> {
    load(context)?;
    let session = retrieve("storm-of-maps")?;
    let iommufd = retrieved(&session, IOMMUFD)?;
    finish(session)?;
    let unmapped = iommufd.unmap_all(1)?;
    expect_eq("bytes", unmapped, MIB + SOME * 4096)?;
    expect_eq("a new IOAS", iommufd.alloc_ioas(), Ok(2))
}
