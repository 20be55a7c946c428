// SPDX-License-Identifier: GPL-2.0

//! Devices that their owner retrieves and goes on with; and what becomes of them otherwise.

use super::{
    ANOTHER, DEVICE, DRIVER, IOVA, MARK, MIB, Vmm, edu, hand_over_edu, load, nvme, nvme_after,
    nvme_before, retrieve_device, rng, rng_before, used_rng,
};
use crate::context::{Context, create, expect_eq, expect_errno, finish, retrieve};
use crate::data::{self, Mapping};
use crate::edu::Edu;
use crate::iommufd::Iommufd;
use crate::pci::{CACHE_LINE, COMMAND, NO_PIN, Pci, SERR};
use crate::procfs;
use crate::registry::{Group, Scenario};
use crate::vfio::{self, Device};
use anyhow::{Context as _, Result, ensure};
use liveupdate::Errno;

pub const GROUP: Group = Group {
    name: "vfio",
    scenarios: &[
        Scenario {
            name: "vfio-edu-goes-on",
            stages: &[edu_before, edu_after],
        },
        Scenario {
            name: "vfio-nvme-goes-on",
            stages: &[
                |context| nvme_before(context, "nvme", 0),
                |context| goes_on(context, "nvme", 0),
            ],
        },
        Scenario {
            name: "vfio-rng-goes-on",
            stages: &[|context| rng_before(context, "rng", 0), rng_after],
        },
        Scenario {
            name: "vfio-three-devices-in-two-sessions",
            stages: &[three_before, three_after],
        },
        Scenario {
            name: "vfio-reset-methods-come-over",
            stages: &[methods_before, methods_after],
        },
        Scenario {
            name: "vfio-nvme-with-stock-driver-is-taken",
            stages: &[|context| stock_before(context, "taken", 2), taken_after],
        },
        Scenario {
            name: "vfio-rng-with-stock-driver-is-reset",
            stages: &[rng_stock_before, rng_stock_after],
        },
    ],
};

/// For a machine whose second kernel does without its own driver for nvme.
pub const STOCK: Group = Group {
    name: "vfio-stock",
    scenarios: &[Scenario {
        name: "vfio-nvme-with-stock-driver-is-reset",
        stages: &[|context| stock_before(context, "reset", 1), stock_after],
    }],
};

/// What edu is set to have as its cache line size.
const LINE: u8 = 0x12;

/// What of edu's configuration space is to come over: its cache line size, and whether it has SERR.
/// Its latency timer, parity and memory write and invalidate are always 0.
fn settings(pci: &Pci) -> Result<(u8, bool)> {
    let [line] = pci.config(CACHE_LINE)?;
    Ok((line, pci.command()? & SERR != 0))
}

fn edu_before(context: &mut Context<'_>) -> Result<()> {
    load(context)?;
    let pci = edu(1)?;
    let vmm = Vmm::new()?;
    let edu = Edu::new(vmm.device(&pci, DRIVER)?)?;
    edu.device().set_config(CACHE_LINE, &[LINE])?;
    let command = u16::from_le_bytes(edu.device().config(COMMAND)?) & !SERR;
    edu.device().set_config(COMMAND, &command.to_le_bytes())?;
    expect_eq("settings", settings(&pci)?, (LINE, false))?;
    expect_eq("no pin", pci.command()? & NO_PIN, 0)?;
    hand_over_edu(context, "edu", vmm, edu)
}

fn edu_after(context: &mut Context<'_>) -> Result<()> {
    load(context)?;
    let pci = edu(1)?;
    expect_eq("its driver", pci.driver().as_deref(), Some(DRIVER))?;
    ensure!(
        vfio::cdev(&pci).is_err(),
        "a stranger could open the device"
    );
    expect_eq("settings when it is kept", settings(&pci)?, (LINE, false))?;
    expect_eq("no pin", pci.command()? & NO_PIN, NO_PIN)?;
    // As somebody may have set it up who did not know better.
    let command = pci.command()? & !NO_PIN | SERR;
    pci.set_config(COMMAND, &command.to_le_bytes())?;
    pci.set_config(CACHE_LINE, &[LINE + 1])?;
    expect_eq("settings", settings(&pci)?, (LINE + 1, true))?;
    let session = retrieve("edu")?;
    let device = retrieve_device(&session)?;
    let stranger = Device::try_open(&vfio::cdev(&pci)?)?;
    let theirs = Iommufd::open()?;
    expect_errno("a stranger", stranger.bind(&theirs), Errno::BUSY)?;
    expect_errno("not the iommufd", device.bind(&theirs), Errno::BUSY)?;

    let vmm = Vmm::retrieve(&session)?;
    device.bind(&vmm.iommufd).context("binding the device")?;
    expect_errno("bound", stranger.bind(&vmm.iommufd), Errno::INVAL)?;
    expect_eq("settings when it is back", settings(&pci)?, (LINE, false))?;
    expect_eq("no pin", pci.command()? & NO_PIN, NO_PIN)?;
    expect_eq("bus master", device.bus_master()?, false)?;
    device.attach(vmm.ioas).context("attaching the device")?;
    expect_eq("bus master", device.bus_master()?, true)?;

    let edu = Edu::new(device)?;
    expect_eq("what was written", edu.liveness()?, !MARK)?;
    edu.store(IOVA + 20_000, 512)?;
    let expected = Mapping::new(&vmm.ram, MIB)?.read(1000, 512);
    data::expect_bytes(&vmm.ram, 20_000, &expected)?;
    data::expect_bytes(&vmm.ram, 8192, &expected)?;
    finish(session)?;
    edu.expect_alive(1)?;
    drop((edu, stranger));

    // From here on it is a device like any other.
    Vmm::new()?.device(&pci, DRIVER).map(drop)
}

fn goes_on(context: &mut Context<'_>, session: &str, number: usize) -> Result<()> {
    let pci = nvme(number)?;
    // Another scenario may have loaded what is for it.
    ensure!(
        pci.driver().as_deref() != Some("nvme"),
        "its driver took it"
    );
    nvme_after(context, &pci, session)?;
    super::expect_reset(&pci)
}

fn rng_after(context: &mut Context<'_>) -> Result<()> {
    load(context)?;
    let pci = rng(0)?;
    let session = retrieve("rng")?;
    let vmm = Vmm::retrieve(&session)?;
    let device = vmm.retrieve_device(&session)?;
    expect_eq("the status", rng::status(&device)?, rng::KNOWN)?;
    finish(session)?;
    // Sleep would clear it too.
    pci.stay_awake()?;
    expect_eq("before it is closed", rng::status_of(&pci)?, rng::KNOWN)?;
    drop(device);
    expect_eq("when it is closed", rng::status_of(&pci)?, 0)?;
    let device = vmm.device(&pci, DRIVER)?;
    expect_eq("when it is open again", rng::status(&device)?, 0)
}

/// Two of them belong to one program, and one to another.
fn three_before(context: &mut Context<'_>) -> Result<()> {
    nvme_before(context, "one", 1)?;
    let vmm = Vmm::new()?;
    let edu = Edu::new(vmm.device(&edu(2)?, DRIVER)?)?;
    edu.set_liveness(MARK)?;
    let rng = used_rng(&vmm, &rng(1)?, DRIVER)?;
    let session = vmm.preserve("two", edu.device())?;
    session.preserve(&rng, ANOTHER)?;
    context.keep((session, vmm, edu, rng));
    Ok(())
}

fn three_after(context: &mut Context<'_>) -> Result<()> {
    load(context)?;
    let session = retrieve("two")?;
    let vmm = Vmm::retrieve(&session)?;
    let rng = Device::from(data::file(session.retrieve(ANOTHER)?));
    let edu = Device::from(data::file(session.retrieve(DEVICE)?));
    vmm.take(&edu)?;
    vmm.take(&rng)?;
    finish(session)?;
    expect_eq("the status", rng::status(&rng)?, rng::KNOWN)?;
    expect_eq("what was written", Edu::new(edu)?.liveness()?, !MARK)?;
    goes_on(context, "one", 1)
}

/// What sysfs calls the ways in which a device can be reset.
fn methods(pci: &Pci) -> Result<String> {
    procfs::read(pci.path("reset_method"))
}

fn methods_before(context: &mut Context<'_>) -> Result<()> {
    let pci = nvme(3)?;
    expect_eq("all ways", methods(&pci)?.as_str(), "flr bus")?;
    procfs::write(pci.path("reset_method"), "flr")?;
    nvme_before(context, "methods", 3)
}

/// Its owner may have had reason not to reset it otherwise.
fn methods_after(context: &mut Context<'_>) -> Result<()> {
    let pci = nvme(3)?;
    expect_eq("when it is kept", methods(&pci)?.as_str(), "")?;
    load(context)?;
    let session = retrieve("methods")?;
    let vmm = Vmm::retrieve(&session)?;
    let device = vmm.retrieve_device(&session)?;
    finish(session)?;
    expect_eq("when it is back", methods(&pci)?.as_str(), "flr")?;
    device.reset().context("a reset")?;
    expect_eq("on", vmm.nvme(device, 0)?.is_on()?, false)?;
    pci.bind("nvme")
}

/// Goes into the reboot with a device that nobody keeps.
fn stock_before(context: &mut Context<'_>, session: &str, number: usize) -> Result<()> {
    load(context)?;
    let vmm = Vmm::new()?;
    let nvme = vmm.started(&nvme(number)?, vfio::DRIVER)?;
    let session = create(session)?;
    session.preserve(&vmm.ram, super::RAM)?;
    session.preserve(&vmm.iommufd, super::IOMMUFD)?;
    let result = session.preserve(nvme.device(), DEVICE);
    expect_errno("with vfio-pci", result, Errno::OPNOTSUPP)?;
    context.keep((session, vmm, nvme));
    Ok(())
}

/// What the driver of the kernel does to it.
fn taken_after(context: &mut Context<'_>) -> Result<()> {
    let driver = nvme(2)?.driver();
    expect_eq("its driver", driver.as_deref(), Some("nvme"))?;
    load(context)?;
    finish(retrieve("taken")?)
}

/// Without another driver it is as it was, until it is opened.
fn stock_after(context: &mut Context<'_>) -> Result<()> {
    load(context)?;
    let pci = nvme(1)?;
    expect_eq("its driver", pci.driver(), None)?;
    expect_eq("on before", nvme::is_on(&pci)?, true)?;
    let session = retrieve("reset")?;
    let vmm = Vmm::retrieve(&session)?;
    let device = vmm.device(&pci, vfio::DRIVER)?;
    expect_eq("on", vmm.nvme(device, 1)?.is_on()?, false)?;
    finish(session)
}

fn rng_stock_before(context: &mut Context<'_>) -> Result<()> {
    load(context)?;
    let vmm = Vmm::new()?;
    let device = used_rng(&vmm, &rng(2)?, vfio::DRIVER)?;
    context.keep((vmm, device));
    Ok(())
}

/// Without another driver it is as it was, until it is opened.
fn rng_stock_after(context: &mut Context<'_>) -> Result<()> {
    load(context)?;
    let pci = rng(2)?;
    expect_eq("before", rng::status_of(&pci)?, rng::KNOWN)?;
    expect_eq("no pin", pci.command()? & NO_PIN, 0)?;
    let vmm = Vmm::new()?;
    let device = vmm.device(&pci, vfio::DRIVER)?;
    expect_eq("the status", rng::status(&device)?, 0)
}
