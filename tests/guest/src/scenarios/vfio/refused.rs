// SPDX-License-Identifier: GPL-2.0

//! Devices that cannot be preserved. All is as it was at the end of each.

use super::{
    ANOTHER, DEVICE, DRIVER, IOMMUFD, IOVA, MARK, MIB, RAM, Vmm, edu, load, nvme, rng, twins,
};
use crate::context::{Context, create, expect_eq, expect_errno, expect_message};
use crate::data::{self, Mapping};
use crate::edu::Edu;
use crate::handover::{At, Memory, page_with};
use crate::kmsg::Reader;
use crate::pci::Pci;
use crate::procfs;
use crate::registry::{Group, Scenario};
use crate::vfio::{self, Device};
use anyhow::{Context as _, Result, ensure};
use liveupdate::{Errno, Token};
use luo_abi::vfio::MAX_DEVICES;
use zerocopy::IntoBytes;

/// The machine has to have, besides others, twins and an nvme with virtual functions.
pub const GROUP: Group = Group {
    name: "vfio-refused",
    scenarios: &[
        Scenario {
            name: "vfio-refuses",
            stages: &[refusals],
        },
        Scenario {
            name: "vfio-refuses-siblings",
            stages: &[siblings],
        },
        Scenario {
            name: "vfio-refuses-a-virtual-function",
            stages: &[virtual_function],
        },
        Scenario {
            name: "vfio-does-not-get-what-has-virtual-functions",
            stages: &[physical_function_in_use],
        },
        Scenario {
            name: "vfio-refuses-what-does-not-answer",
            stages: &[silent],
        },
        Scenario {
            name: "vfio-refuses-one-too-many",
            stages: &[one_too_many],
        },
    ],
};

fn refusals(context: &mut Context<'_>) -> Result<()> {
    load(context)?;
    let mut log = Reader::from_now()?;
    let pci = edu(0)?;
    let vmm = Vmm::new()?;
    let session = create("refuses")?;

    let stock = Device::open_with(&pci, vfio::DRIVER)?;
    stock.bind(&vmm.iommufd)?;
    let result = session.preserve(&stock, DEVICE);
    expect_errno("vfio-pci", result, Errno::OPNOTSUPP)?;
    expect_message(&mut log, &[pci.bdf(), "luo-vfio-pci"])?;
    drop(stock);

    let device = Device::open_with(&pci, DRIVER)?;
    let result = session.preserve(&device, DEVICE);
    expect_errno("without an iommufd", result, Errno::NOTCONN)?;
    expect_message(&mut log, &[pci.bdf(), "iommufd"])?;
    device.bind(&vmm.iommufd)?;
    let result = session.preserve(&device, DEVICE);
    expect_errno("before its iommufd", result, Errno::XDEV)?;
    expect_message(&mut log, &[pci.bdf(), "preserve that first"])?;

    session.preserve(&vmm.ram, RAM)?;
    session.preserve(&vmm.iommufd, IOMMUFD)?;
    let other = create("refuses-too")?;
    let result = other.preserve(&device, DEVICE);
    expect_errno("in another session", result, Errno::XDEV)?;
    session.preserve(&device, DEVICE)?;
    let twice = session.preserve(&device, Token(9));
    expect_errno("twice", twice, Errno::BUSY)?;
    let again = Device::try_open(&vfio::cdev(&pci)?)?;
    let twice = session.preserve(&again, Token(9));
    expect_errno("twice by another file", twice, Errno::BUSY)?;
    drop(session);
    device.attach(vmm.ioas)?;
    let edu = Edu::new(device)?;
    edu.expect_alive(7)?;

    // All was given back, so it can be done again.
    let session = vmm.preserve("refuses", edu.device())?;
    drop(session);
    Ok(())
}

/// Two devices of one kind that share a bus, and have no reset of their own.
fn siblings(context: &mut Context<'_>) -> Result<()> {
    const TO: u64 = 20_000;
    load(context)?;
    let vmm = Vmm::new()?;
    let session = vmm.session("siblings")?;
    for (pci, i) in twins(edu::KIND)?.iter().zip(1..) {
        let edu = Edu::new(vmm.device(pci, DRIVER)?)?;
        edu.set_liveness(MARK)?;
        edu.load(IOVA + 1000 * i, 512)?;
        let mut log = Reader::from_now()?;
        let result = session.preserve(edu.device(), DEVICE);
        expect_errno("one of twins", result, Errno::MLINK)?;
        expect_message(&mut log, &[pci.bdf(), "without others"])?;
        expect_eq("what was written", edu.liveness()?, !MARK)?;
        edu.store(IOVA + TO, 512)?;
        let expected = Mapping::new(&vmm.ram, MIB)?.read(1000 * i, 512);
        data::expect_bytes(&vmm.ram, TO, &expected)?;
    }
    Ok(())
}

/// An nvme that can have virtual functions, and has none.
fn physical() -> Result<Pci> {
    let mut found = Pci::find_all(nvme::KIND)?;
    found.retain(|pci| pci.path("sriov_totalvfs").exists());
    ensure!(
        found.len() == 1,
        "{found:?}: was the machine made with one?"
    );
    let pci = found.swap_remove(0);
    // They are for nobody else.
    procfs::write(pci.path("sriov_drivers_autoprobe"), "0")?;
    Ok(pci)
}

/// The physical function stays with the kernel's driver.
fn virtual_function(context: &mut Context<'_>) -> Result<()> {
    load(context)?;
    let physical = physical()?;
    physical.bind("nvme")?;
    let vmm = Vmm::new()?;
    let session = vmm.session("virtual")?;
    for pci in physical.make_virtual(2)? {
        let device = Device::open_with(&pci, DRIVER).context("the virtual function")?;
        device.bind(&vmm.iommufd)?;
        let mut log = Reader::from_now()?;
        let result = session.preserve(&device, DEVICE);
        expect_errno("a virtual function", result, Errno::NODEV)?;
        expect_message(&mut log, &[pci.bdf(), "virtual function"])?;
        device.attach(vmm.ioas).context("attaching it")?;
        device.set_bus_master(true)?;
        expect_eq("bus master", device.bus_master()?, true)?;
        device.reset().context("a reset")?;
        drop(device);
        pci.unbind()?;
    }
    physical.make_virtual(0).map(drop)
}

/// Virtual functions stay when the driver goes that made them.
fn physical_function_in_use(context: &mut Context<'_>) -> Result<()> {
    load(context)?;
    let pci = physical()?;
    pci.bind("nvme")?;
    pci.make_virtual(1)?;
    pci.try_bind(DRIVER);
    expect_eq("its driver", pci.driver(), None)?;
    pci.bind("nvme")?;
    pci.make_virtual(0)?;
    pci.bind(DRIVER).context("without them")?;
    pci.bind("nvme")
}

fn silent(context: &mut Context<'_>) -> Result<()> {
    load(context)?;
    let pci = nvme(0)?;
    let vmm = Vmm::new()?;
    let session = vmm.session("silent")?;
    let device = vmm.device(&pci, DRIVER)?;
    let mut log = Reader::from_now()?;
    let result = pci.silenced(|| Ok(session.preserve(&device, DEVICE)))?;
    expect_errno("without an answer", result, Errno::IO)?;
    expect_message(&mut log, &[pci.bdf(), "does not answer"])?;
    session.preserve(&device, DEVICE).context("with one")?;
    drop((session, device));
    pci.bind("nvme")
}

/// The record of devices is made full where it is.
fn one_too_many(context: &mut Context<'_>) -> Result<()> {
    load(context)?;
    let vmm = Vmm::new()?;
    let (first, second, third) = (edu(0)?, nvme(0)?, rng(0)?);
    let session = vmm.preserve("full", &vmm.device(&first, DRIVER)?)?;
    session.preserve(vmm.device(&second, DRIVER)?, ANOTHER)?;

    let memory = Memory::open()?;
    let start = [
        2_u64.as_bytes(),
        first.address()?.as_bytes(),
        second.address()?.as_bytes(),
        &[0; 64],
    ]
    .concat();
    let mut count: At<u64> = memory.read(page_with(&memory, &start)?)?;
    let device = vmm.device(&third, DRIVER)?;
    let mut log = Reader::from_now()?;
    count.value = MAX_DEVICES as u64;
    memory.put(&count)?;
    let result = session.preserve(&device, Token(5));
    count.value = 2;
    memory.put(&count)?;
    expect_errno("one too many", result, Errno::NOSPC)?;
    expect_message(&mut log, &[third.bdf(), "one device too many"])?;
    session.preserve(&device, Token(5)).context("with room")?;
    drop((session, device));
    second.bind("nvme")
}
