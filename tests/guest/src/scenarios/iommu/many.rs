// SPDX-License-Identifier: GPL-2.0

//! A hundred thousand mappings.

use super::reboot::{failing_reboot, preserve_odd};
use super::{IOMMUFD, MIB, Mapped, load, retrieved};
use crate::clock::timed;
use crate::context::{Context, expect_eq, expect_errno, finish, retrieve};
use crate::iommufd::Access;
use crate::kmsg;
use crate::procfs;
use crate::registry::{Group, Scenario};
use anyhow::{Context as _, Result, bail, ensure};
use liveupdate::Errno;
use std::thread;
use std::time::Duration;

/// They are many MiB of records, so what is lost of them can be seen.
pub const GROUP: Group = Group {
    name: "iommu-many",
    scenarios: &[
        Scenario {
            name: "iommufd-with-many-mappings-unclaimed",
            stages: &[|context| hand_over(context, "many-unclaimed"), unclaimed],
        },
        Scenario {
            name: "iommufd-with-many-mappings",
            stages: &[|context| hand_over(context, "many"), after],
        },
    ],
};

/// For a kernel that holds nothing back of what is freed, as KASAN does.
pub const GIVEN_BACK: Group = Group {
    name: "iommu-given-back",
    scenarios: &[Scenario {
        name: "iommufd-with-many-mappings-given-back",
        stages: &[given_back],
    }],
};

/// How many, if the plan does not say.
const MANY: u64 = 100_000;
const PAGE: u64 = 4096;
/// The bytes of memory that are mapped again and again.
const MEMORY: u64 = 2 * MIB;
/// Where the first one is mapped, and how far it is to the next.
const BASE: u64 = 1 << 32;
const STEP: u64 = 2 * PAGE;
/// The size of a record.
const RECORD: u64 = 32;

/// Does something and shows how long it took.
fn shown<T>(what: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let (result, time) = timed(work);
    kmsg::remark(format!("{what}: {} ms", time.as_millis()));
    result.with_context(|| what.to_owned())
}

fn number(context: &Context<'_>) -> Result<u64> {
    context.number("n", MANY)
}

/// Every second one shares its pages with the one before.
pub fn map_many(mapped: &Mapped, n: u64) -> Result<()> {
    for i in 0..n {
        let iova = BASE + i * STEP;
        match i % 2 {
            0 => mapped.map(iova, (i * PAGE) % MEMORY, PAGE)?,
            _ => {
                let from = (1, iova - STEP);
                mapped
                    .iommufd
                    .copy(from, PAGE, 1, Some(iova), Access::ReadWrite)?;
            }
        }
    }
    Ok(())
}

fn hand_over(context: &mut Context<'_>, name: &str) -> Result<()> {
    let n = number(context)?;
    let mapped = Mapped::new(context, MEMORY)?;
    shown("map", || map_many(&mapped, n))?;
    let session = shown("preserve", || mapped.preserved(name))?;
    context.keep((session, mapped));
    Ok(())
}

fn after(context: &mut Context<'_>) -> Result<()> {
    load(context)?;
    let n = number(context)?;
    let session = retrieve("many")?;
    let iommufd = shown("retrieve", || retrieved(&session, IOMMUFD))?;
    finish(session)?;
    for i in (0..n).step_by(997).chain([n - 1]) {
        let iova = BASE + i * STEP;
        expect_eq("unmapping", iommufd.unmap(1, iova, PAGE), Ok(PAGE))?;
        expect_errno("again", iommufd.unmap(1, iova, PAGE), Errno::NOENT)?;
    }
    let gone = n.div_ceil(997) + u64::from((n - 1) % 997 != 0);
    let rest = shown("unmap", || Ok(iommufd.unmap_all(1)?))?;
    expect_eq("other bytes", rest, (n - gone) * PAGE + MEMORY)
}

/// How much memory is free, when nobody gives any back any more.
fn free() -> Result<i64> {
    let mut last = 0;
    for _ in 0..50 {
        let free = procfs::meminfo("MemFree")? as i64;
        if (free - last).abs() < SETTLED {
            return Ok(free);
        }
        last = free;
        thread::sleep(Duration::from_millis(200));
    }
    bail!("memory is given back all the time")
}

/// Bytes that come and go.
const SETTLED: i64 = 64 << 10;

/// Does something and says how much memory is free because of it.
fn freed(work: impl FnOnce() -> Result<()>) -> Result<i64> {
    // Without this, each processor keeps so many pages for itself that they hide what is freed.
    procfs::write("/proc/sys/vm/percpu_pagelist_high_fraction", "100000")?;
    let before = free()?;
    work()?;
    Ok(free()? - before)
}

fn unclaimed(context: &mut Context<'_>) -> Result<()> {
    load(context)?;
    let n = number(context)?;
    let session = retrieve("many-unclaimed")?;
    let freed = freed(|| shown("finish", || finish(session)))?;
    // Every second mapping has pages of its own.
    let expected = (n * RECORD * 3 / 2 + MEMORY) as i64;
    kmsg::remark(format!("{freed} bytes were freed, expected {expected}"));
    ensure!(
        freed > expected * 9 / 10,
        "{freed} bytes were freed, expected {expected}"
    );
    Ok(())
}

/// Preserved and frozen again and again, it costs no more memory than once.
fn given_back(context: &mut Context<'_>) -> Result<()> {
    const ROUNDS: u64 = 8;
    let n = number(context)?;
    let mapped = Mapped::new(context, MEMORY)?;
    map_many(&mapped, n)?;
    let round = |i: u64| -> Result<()> {
        let session = mapped.preserved("many-given-back")?;
        preserve_odd(context, &session)?;
        for (what, iova) in [("as preserved", None), ("changed", Some(i * STEP))] {
            if let Some(iova) = iova {
                mapped.map(iova, 0, PAGE)?;
            }
            let errno = shown("failing reboot", || failing_reboot(Errno::NXIO))?;
            expect_eq(&format!("reboot, {what}"), errno, Errno::NXIO)?;
        }
        drop(session);
        Ok(())
    };
    round(0)?;
    let freed = freed(|| (1..=ROUNDS).try_for_each(round))?;
    let records = (n * RECORD) as i64;
    ensure!(freed > -records, "{} bytes were lost", -freed);
    expect_eq("unmapping", mapped.unmap(BASE, PAGE), Ok(PAGE))
}
