// SPDX-License-Identifier: GPL-2.0

//! VFIO devices that survive a live update, with all that is in them.
//!
//! Scenarios that share a machine have a device each, by its number among those of its kind, and
//! leave it to the next one if they are done with it in the first kernel. A scenario that is alone in
//! its machine makes do with one device of a kind.

pub mod comes_over;
pub mod corrupt;
pub mod faults;
pub mod kept;
pub mod lost;
pub mod module;
pub mod reboot;
pub mod refused;
pub mod siblings;
pub mod third;
pub mod unclaimed;

use crate::context::{Context, create, expect_eq, retrieve};
use crate::data::{self, Mapping};
use crate::edu::{self, Edu};
use crate::iommufd::{self, Access, Iommufd, Part};
use crate::nvme::{self, Nvme};
use crate::pci::{Kind, Pci};
use crate::rng;
use crate::vfio::{self, Device};
use anyhow::{Context as _, Result, anyhow, ensure};
use liveupdate::{Incoming, Outgoing, Session, Token};
use std::fs::File;

const DRIVER: &str = vfio::KEEPER;

const RAM: Token = Token(1);
const IOMMUFD: Token = Token(2);
const DEVICE: Token = Token(3);
/// A second device of the same session.
const ANOTHER: Token = Token(4);

const MIB: u64 = 1 << 20;
const IOVA: u64 = 1 << 33;

/// What is written into edu.
const MARK: u32 = 0x5afe_c0de;

/// Sees to it that VFIO, iommufd and the handlers are there.
fn load(context: &Context<'_>) -> Result<()> {
    vfio::load(context)?;
    iommufd::load_handler(context)?;
    vfio::load_handler(context)
}

/// Whether it is a virtual function, or can have some.
fn has_to_do_with_virtual(pci: &Pci) -> bool {
    ["sriov_totalvfs", "physfn"]
        .iter()
        .any(|name| pci.path(name).exists())
}

/// One of the devices of a kind that share nothing with others.
fn nth(kind: Kind, number: usize) -> Result<Pci> {
    let mut found = Pci::find_all(kind)?;
    found.retain(|pci| !has_to_do_with_virtual(pci) && !pci.has_siblings());
    let index = if found.len() == 1 { 0 } else { number };
    ensure!(
        index < found.len(),
        "there are {} devices {kind:04x?}: was the machine made with them?",
        found.len()
    );
    Ok(found.swap_remove(index))
}

/// The two devices of a kind that share a bus.
fn twins(kind: Kind) -> Result<[Pci; 2]> {
    let mut found = Pci::find_all(kind)?;
    found.retain(|pci| !has_to_do_with_virtual(pci) && pci.has_siblings());
    let twins = found.try_into();
    twins.map_err(|found| anyhow!("{found:?} are no twins: was the machine made with them?"))
}

/// The edu of a number.
fn edu(number: usize) -> Result<Pci> {
    nth(edu::KIND, number)
}

/// The nvme of a number.
fn nvme(number: usize) -> Result<Pci> {
    nth(nvme::KIND, number)
}

/// The rng of a number.
fn rng(number: usize) -> Result<Pci> {
    nth(rng::KIND, number)
}

/// What a VMM has.
struct Vmm {
    ram: File,
    iommufd: Iommufd,
    ioas: u32,
}

impl Vmm {
    fn new() -> Result<Self> {
        let ram = data::memfd_with("ram", 1, MIB)?;
        let iommufd = Iommufd::open()?;
        let ioas = iommufd.alloc_ioas()?;
        let part = Part {
            file: &ram,
            start: 0,
            len: MIB,
        };
        iommufd.map_file(ioas, Some(IOVA), part, Access::ReadWrite)?;
        Ok(Self { ram, iommufd, ioas })
    }

    /// As it comes over; the id of its only IOAS is the first there is.
    fn retrieve(session: &Session<Incoming>) -> Result<Self> {
        let ram = data::file(session.retrieve(RAM)?);
        let iommufd = Iommufd::from(session.retrieve(IOMMUFD)?);
        Ok(Self {
            ram,
            iommufd,
            ioas: 1,
        })
    }

    fn device(&self, pci: &Pci, driver: &str) -> Result<Device> {
        let device = Device::open_with(pci, driver)?;
        self.take(&device)?;
        Ok(device)
    }

    /// A device as it comes over, ready for use.
    fn retrieve_device(&self, session: &Session<Incoming>) -> Result<Device> {
        let device = retrieve_device(session)?;
        self.take(&device)?;
        Ok(device)
    }

    /// Takes a device that is open into its address space.
    fn take(&self, device: &Device) -> Result<()> {
        device.bind(&self.iommufd).context("binding the device")?;
        device.attach(self.ioas).context("attaching the device")?;
        Ok(())
    }

    fn nvme(&self, device: Device, commands: u16) -> Result<Nvme> {
        let memory = Mapping::new(&self.ram, nvme::MEMORY)?;
        Nvme::new(device, memory, IOVA, commands)
    }

    /// An nvme that is on and was given one command.
    fn started(&self, pci: &Pci, driver: &str) -> Result<Nvme> {
        let device = self.device(pci, driver)?;
        device.set_bus_master(true)?;
        let mut nvme = self.nvme(device, 0)?;
        nvme.start()?;
        expect_serial(&mut nvme)?;
        Ok(nvme)
    }

    /// Memory and iommufd in a new session.
    fn session(&self, name: &str) -> Result<Session<Outgoing>> {
        let session = create(name)?;
        session.preserve(&self.ram, RAM).context("the memory")?;
        session
            .preserve(&self.iommufd, IOMMUFD)
            .context("iommufd")?;
        Ok(session)
    }

    fn preserve(&self, name: &str, device: &Device) -> Result<Session<Outgoing>> {
        let session = self.session(name)?;
        session.preserve(device, DEVICE).context("the device")?;
        Ok(session)
    }
}

/// A device as it comes over.
fn retrieve_device(session: &Session<Incoming>) -> Result<Device> {
    let fd = session.retrieve(DEVICE).context("the device")?;
    Ok(Device::from(data::file(fd)))
}

fn expect_serial(nvme: &mut Nvme) -> Result<()> {
    let serial = nvme.serial()?;
    ensure!(serial.starts_with("luo"), "its serial number is {serial:?}");
    Ok(())
}

/// Expects an nvme to have been reset, when it is opened at the latest; gives it to its driver.
fn expect_reset(pci: &Pci) -> Result<()> {
    let vmm = Vmm::new()?;
    let device = vmm.device(pci, DRIVER)?;
    expect_eq("on", vmm.nvme(device, 0)?.is_on()?, false)?;
    pci.bind("nvme").context("another driver")
}

/// Hands over an edu with [`MARK`] in it, in a session of its own.
fn edu_before(context: &mut Context<'_>, session: &str, number: usize) -> Result<()> {
    load(context)?;
    let vmm = Vmm::new()?;
    let edu = Edu::new(vmm.device(&edu(number)?, DRIVER)?)?;
    hand_over_edu(context, session, vmm, edu)
}

/// Hands over an edu that somebody has already.
fn hand_over_edu(context: &mut Context<'_>, session: &str, vmm: Vmm, edu: Edu) -> Result<()> {
    expect_eq("the first IOAS", vmm.ioas, 1)?;
    edu.set_liveness(MARK)?;
    edu.load(IOVA + 1000, 512)?;
    let session = vmm.preserve(session, edu.device())?;
    // It goes on being used.
    edu.store(IOVA + 8192, 512)?;
    context.keep((session, vmm, edu));
    Ok(())
}

/// Hands over an nvme that is on, in a session of its own.
fn nvme_before(context: &mut Context<'_>, session: &str, number: usize) -> Result<()> {
    load(context)?;
    let vmm = Vmm::new()?;
    let nvme = vmm.started(&nvme(number)?, DRIVER)?;
    let session = vmm.preserve(session, nvme.device())?;
    context.keep((session, vmm, nvme));
    Ok(())
}

/// Retrieves an nvme that is on, goes on with it, and closes it, which resets it.
fn nvme_after(context: &Context<'_>, pci: &Pci, session: &str) -> Result<()> {
    load(context)?;
    let session = retrieve(session)?;
    let vmm = Vmm::retrieve(&session)?;
    let device = vmm.retrieve_device(&session)?;
    let mut nvme = vmm.nvme(device, 1)?;
    expect_eq("on", nvme.is_on()?, true)?;
    for _ in 0..20 {
        expect_serial(&mut nvme)?;
    }
    crate::context::finish(session)?;
    // VFIO lets it sleep from the retrieval on.
    pci.stay_awake()?;
    expect_eq("on", nvme::is_on(pci)?, true)?;
    drop(nvme);
    let configuration = nvme::configuration_of(pci)?;
    expect_eq("its configuration when it is closed", configuration, 0)
}

/// An rng for which there was a driver.
fn used_rng(vmm: &Vmm, pci: &Pci, driver: &str) -> Result<Device> {
    let device = vmm.device(pci, driver)?;
    expect_eq("the status at first", rng::status(&device)?, 0)?;
    rng::set_status(&device, rng::FOUND)?;
    rng::set_status(&device, rng::KNOWN)?;
    expect_eq("the status", rng::status(&device)?, rng::KNOWN)?;
    Ok(device)
}

/// Hands over an rng for which there was a driver, in a session of its own.
fn rng_before(context: &mut Context<'_>, session: &str, number: usize) -> Result<()> {
    load(context)?;
    let vmm = Vmm::new()?;
    let device = used_rng(&vmm, &rng(number)?, DRIVER)?;
    let session = vmm.preserve(session, &device)?;
    context.keep((session, vmm, device));
    Ok(())
}
