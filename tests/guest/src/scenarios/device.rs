// SPDX-License-Identifier: GPL-2.0

//! A device in the hands of this program, in one kernel: what other scenarios rely on.

use crate::context::{Context, expect_eq, expect_errno};
use crate::data::{self, Mapping, page};
use crate::edu::Edu;
use crate::iommufd::{Access, Iommufd, Part};
use crate::registry::{Group, Scenario};
use crate::vfio::{self, Device};
use anyhow::{Context as _, Result, ensure};
use liveupdate::Errno;
use std::fs::File;

/// The machine has to have an edu.
pub const GROUP: Group = Group {
    name: "device",
    scenarios: &[
        Scenario {
            name: "device-does-dma",
            stages: &[dma],
        },
        Scenario {
            name: "device-in-two-address-spaces",
            stages: &[two_spaces],
        },
        Scenario {
            name: "device-calls",
            stages: &[calls],
        },
        Scenario {
            name: "device-address-spaces",
            stages: &[address_spaces],
        },
    ],
};

const MIB: u64 = 1 << 20;
/// Beyond what 32 bits reach.
const HIGH: u64 = 1 << 33;

/// The machine's edu, bound to an iommufd; and its id there.
fn edu(context: &Context<'_>, iommufd: &Iommufd) -> Result<(Edu, u32)> {
    vfio::load(context)?;
    let device = Device::open(&Edu::find()?)?;
    let id = device.bind(iommufd).context("binding edu")?;
    Ok((Edu::new(device)?, id))
}

fn iommufd(context: &Context<'_>) -> Result<Iommufd> {
    vfio::load(context)?;
    Iommufd::open()
}

fn whole(file: &File) -> Result<Part<'_>> {
    let len = file.metadata()?.len();
    Ok(Part {
        file,
        start: 0,
        len,
    })
}

fn dma(context: &mut Context<'_>) -> Result<()> {
    let iommufd = iommufd(context)?;
    let (edu, _) = edu(context, &iommufd)?;
    edu.expect_alive(0x1234_5678)?;
    ensure!(edu.device().bus_master()?, "edu is no bus master");

    let memory = data::memfd_with("memory", 1, MIB)?;
    let ioas = iommufd.alloc_ioas()?;
    iommufd.map_file(ioas, Some(HIGH), whole(&memory)?, Access::ReadWrite)?;
    edu.device().attach(ioas).context("attaching edu")?;
    // Across pages, and not at the start of one.
    let (from, to, len) = (1000, 600_000, 5000);
    edu.copy(HIGH + from, HIGH + to, len)?;
    let expected = Mapping::new(&memory, MIB)?.read(from, len);
    data::expect_bytes(&memory, to, &expected)?;

    // What is not mapped is out of reach: the device gets nothing, and writes nothing.
    let before = Mapping::new(&memory, MIB)?.read(0, MIB);
    iommufd.unmap(ioas, HIGH, MIB)?;
    edu.store(HIGH, 64)?;
    data::expect_bytes(&memory, 0, &before)
}

fn two_spaces(context: &mut Context<'_>) -> Result<()> {
    let iommufd = iommufd(context)?;
    let (edu, _) = edu(context, &iommufd)?;
    let memory = data::memfd_with("memory", 1, MIB)?;
    let (one, two) = (iommufd.alloc_ioas()?, iommufd.alloc_ioas()?);
    iommufd.map_file(one, Some(0x10_0000), whole(&memory)?, Access::ReadWrite)?;
    let from = (one, 0x10_0000);
    iommufd.copy(from, MIB, two, Some(HIGH), Access::Write)?;

    edu.device().attach(one).context("attaching edu")?;
    edu.load(0x10_0000, 512)?;
    edu.device().attach(two).context("attaching it elsewhere")?;
    edu.store(HIGH + 8192, 512)?;
    let expected = Mapping::new(&memory, MIB)?.read(0, 512);
    data::expect_bytes(&memory, 8192, &expected)?;

    edu.device().detach().context("detaching edu")?;
    let before = Mapping::new(&memory, MIB)?.read(0, MIB);
    edu.store(HIGH, 512)?;
    data::expect_bytes(&memory, 0, &before)
}

/// That refusals come as the errno that the kernel gave.
fn calls(context: &mut Context<'_>) -> Result<()> {
    let iommufd = iommufd(context)?;
    let (edu, id) = edu(context, &iommufd)?;
    let device = edu.device();
    expect_errno("binding twice", device.bind(&iommufd), Errno::INVAL)?;
    expect_errno("edu has no reset", device.reset(), Errno::INVAL)?;
    expect_errno("no such IOAS", device.attach(999), Errno::NOENT)?;
    expect_errno("no such region", device.region(99), Errno::INVAL)?;
    let ioas = iommufd.alloc_ioas()?;
    device.attach(ioas)?;
    expect_errno("in use", iommufd.destroy(ioas), Errno::BUSY)?;
    device.detach()?;

    let hwpt = iommufd.alloc_hwpt(id, ioas, 0).context("a page table")?;
    expect_eq("the page table", device.attach(hwpt)?, hwpt)?;
    device.detach()?;
    iommufd.destroy(hwpt).context("destroying it")?;
    let (queue, fd) = iommufd.alloc_fault_queue().context("a queue of faults")?;
    expect_errno("open", iommufd.destroy(queue), Errno::BUSY)?;
    drop(fd);
    iommufd.destroy(queue).context("destroying it")?;
    iommufd.destroy(ioas).context("destroying the IOAS")
}

fn address_spaces(context: &mut Context<'_>) -> Result<()> {
    let iommufd = iommufd(context)?;
    let ioas = iommufd.alloc_ioas()?;
    let memory = data::memfd_with("memory", 1, MIB)?;
    let all = whole(&memory)?;
    iommufd.map_file(ioas, Some(MIB), all, Access::Read)?;
    let again = iommufd.map_file(ioas, Some(MIB), all, Access::Read);
    expect_errno("the same IOVA twice", again, Errno::EXIST)?;
    let copy = iommufd.copy((ioas, MIB), MIB, ioas, None, Access::Write);
    expect_errno("a copy that may do more", copy, Errno::PERM)?;
    let own = Mapping::anonymous(page())?;
    let somewhere = iommufd.map(ioas, None, &own, Access::ReadWrite)?;
    expect_eq("unmapped", iommufd.unmap(ioas, somewhere, page())?, page())?;
    expect_eq("unmapped", iommufd.unmap_all(ioas)?, MIB)?;
    expect_errno("nothing there", iommufd.unmap(ioas, MIB, MIB), Errno::NOENT)?;

    expect_eq("ranges", iommufd.iova_ranges(ioas)?, vec![(0, u64::MAX)])?;
    iommufd.allow_iovas(ioas, &[(MIB, 2 * MIB - 1)])?;
    expect_eq(
        "a place",
        iommufd.map_file(ioas, None, all, Access::Read)?,
        MIB,
    )?;
    let full = iommufd.map_file(ioas, None, all, Access::Read);
    expect_errno("no place", full, Errno::NOSPC)?;
    iommufd.allow_iovas(ioas, &[])?;

    expect_eq("large pages", iommufd.huge_pages(ioas)?, true)?;
    iommufd.set_huge_pages(ioas, false)?;
    expect_eq("large pages", iommufd.huge_pages(ioas)?, false)?;
    let empty = Iommufd::open()?;
    expect_eq("charged to processes", empty.rlimit_mode()?, false)?;
    empty.set_rlimit_mode(true)?;
    expect_eq("charged to processes", empty.rlimit_mode()?, true)?;
    let used = iommufd.set_rlimit_mode(true);
    expect_errno("with objects", used, Errno::BUSY)?;
    expect_errno("no IOAS", iommufd.vfio_ioas(), Errno::NODEV)?;
    iommufd.set_vfio_ioas(ioas)?;
    expect_eq("VFIO's IOAS", iommufd.vfio_ioas()?, ioas)
}
