// SPDX-License-Identifier: GPL-2.0

//! What an iommufd costs: with many mappings, and against one that is made from nothing.

use super::many::map_many;
use super::reboot::{failing_reboot, preserve_odd};
use super::{IOMMUFD, IOVA, MEMORY, MIB, Mapped, load, part, retrieved};
use crate::context::{Context, expect_eq, finish, retrieve};
use crate::data;
use crate::edu::Edu;
use crate::iommufd::{Access, Iommufd};
use crate::procfs;
use crate::registry::{Group, Scenario};
use crate::scenarios::cost::measure;
use crate::scenarios::memory::HUGE;
use crate::vfio::Device;
use anyhow::{Context as _, Result};
use liveupdate::Errno;
use rustix::fs::{FallocateFlags, fallocate};
use std::fs::File;

/// The guest's clock counts instructions while these run.
pub const GROUP: Group = Group {
    name: "iommu-cost",
    scenarios: &[
        Scenario {
            name: "iommu-cost-of-mappings",
            stages: &[mappings_before, mappings_after],
        },
        Scenario {
            name: "iommu-cost-of-pages",
            stages: &[pages_before, pages_after],
        },
    ],
};

fn mappings_before(context: &mut Context<'_>) -> Result<()> {
    let n = context.number("n", 1000)?;
    let mapped = Mapped::new(context, 2 * MIB)?;
    map_many(&mapped, n)?;
    let session = crate::context::create("cost")?;
    session.preserve(&mapped.memory, MEMORY)?;
    measure("preserve mappings", n, || {
        Ok(session.preserve(&mapped.iommufd, IOMMUFD)?)
    })?;
    preserve_odd(context, &session)?;
    // With what undoes it.
    let errno = measure("freeze mappings", n, || failing_reboot(Errno::NXIO))?;
    expect_eq("reboot", errno, Errno::NXIO)?;
    context.keep((session, mapped));
    Ok(())
}

fn mappings_after(context: &mut Context<'_>) -> Result<()> {
    load(context)?;
    let n = context.number("n", 1000)?;
    let session = retrieve("cost")?;
    let _memory = data::file(session.retrieve(MEMORY)?);
    let iommufd = measure("retrieve mappings", n, || retrieved(&session, IOMMUFD))?;
    let all = iommufd.unmap_all(1)?;
    expect_eq("bytes", all, n * 4096 + 2 * MIB)
}

const GIB: u64 = 1 << 30;

fn huge(context: &Context<'_>) -> Result<bool> {
    Ok(context.number("huge", 0)? != 0)
}

fn pages_before(context: &mut Context<'_>) -> Result<()> {
    load(context)?;
    let huge = huge(context)?;
    let memory = data::memfd("memory")?;
    memory.set_len(GIB)?;
    procfs::write(HUGE, if huge { "always" } else { "never" })?;
    fallocate(&memory, FallocateFlags::empty(), 0, GIB).context("1 GiB")?;
    let in_huge = procfs::meminfo("ShmemHugePages")?;
    expect_eq("bytes in large folios", in_huge, if huge { GIB } else { 0 })?;
    let iommufd = Iommufd::open()?;
    let ioas = iommufd.alloc_ioas()?;
    let all = part(&memory, 0, GIB);
    iommufd.map_file(ioas, Some(IOVA), all, Access::ReadWrite)?;
    let session = crate::context::create("cost-pages")?;
    session.preserve(&memory, MEMORY)?;
    session.preserve(&iommufd, IOMMUFD)?;
    context.keep((session, memory, iommufd));
    Ok(())
}

fn bind_and_attach(device: &Device, iommufd: &Iommufd) -> Result<()> {
    device.bind(iommufd)?;
    device.attach(1)?;
    Ok(())
}

fn from_nothing(device: &Device, memory: &File) -> Result<Iommufd> {
    let iommufd = Iommufd::open()?;
    let ioas = iommufd.alloc_ioas()?;
    let all = part(memory, 0, GIB);
    iommufd.map_file(ioas, Some(IOVA), all, Access::ReadWrite)?;
    bind_and_attach(device, &iommufd)?;
    Ok(iommufd)
}

/// The iommufd that came over between two that are made from nothing.
fn pages_after(context: &mut Context<'_>) -> Result<()> {
    load(context)?;
    let session = retrieve("cost-pages")?;
    let memory = data::file(session.retrieve(MEMORY)?);
    let expected = if huge(context)? { GIB } else { 0 };
    let in_huge = procfs::meminfo("ShmemHugePages")?;
    expect_eq("bytes in large folios", in_huge, expected)?;
    let pages = GIB / 4096;
    // Closed before its iommufd, it gives everything back.
    let open = || Device::open(&Edu::find()?);
    for what in ["make an iommufd", "retrieve an iommufd", "make another"] {
        let device = open()?;
        let iommufd = measure(what, pages, || match what {
            "retrieve an iommufd" => {
                let iommufd = retrieved(&session, IOMMUFD)?;
                bind_and_attach(&device, &iommufd)?;
                Ok(iommufd)
            }
            _ => from_nothing(&device, &memory),
        })?;
        let edu = Edu::new(device)?;
        edu.expect_alive(1)?;
        drop(edu);
        drop(iommufd);
    }
    finish(session)
}
