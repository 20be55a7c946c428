// SPDX-License-Identifier: GPL-2.0

//! Devices that share a bus with others, and can be reset alone.

use super::{DRIVER, Vmm, expect_serial, load, retrieve_device, twins};
use crate::context::{Context, expect_eq, expect_errno, finish, retrieve};
use crate::nvme;
use crate::pci::Pci;
use crate::procfs;
use crate::registry::{Group, Scenario};
use crate::vfio;
use anyhow::{Context as _, Result, ensure};
use liveupdate::Errno;

/// The machine has to have two nvmes that share a bus.
pub const GROUP: Group = Group {
    name: "vfio-siblings",
    scenarios: &[Scenario {
        name: "vfio-kept-from-what-its-sibling-does",
        stages: &[before, after],
    }],
};

/// Takes from a device what resets it alone, so that its bus is reset when it is closed, if that can
/// be done.
fn forget_resets(pci: &Pci) -> Result<()> {
    procfs::write(pci.path("reset_method"), "\n")
}

/// Takes back [`forget_resets`].
fn recall_resets(pci: &Pci) -> Result<()> {
    procfs::write(pci.path("reset_method"), "default")
}

/// What becomes of a device that nobody keeps from what its sibling does.
fn expect_resets(pci: &Pci, sibling: &Pci) -> Result<()> {
    let vmm = Vmm::new()?;
    // Sleep may switch it off.
    pci.stay_awake()?;
    let nvme = vmm.started(pci, DRIVER)?;
    let other = vmm.device(sibling, vfio::DRIVER)?;
    // It is done, and fails: the kernel finds nothing by which it could wait for QEMU's ports.
    let reset = other.hot_reset();
    ensure!(
        matches!(reset, Ok(()) | Err(Errno::NOTTY)),
        "the bus is not reset: {reset:?}"
    );
    expect_eq("on after a reset", nvme.is_on()?, false)?;
    nvme.start()?;
    forget_resets(pci)?;
    forget_resets(sibling)?;
    drop(nvme);
    expect_eq("on when it was closed", nvme::is_on(pci)?, true)?;
    drop(other);
    expect_eq("on when both were closed", nvme::is_on(pci)?, false)?;
    recall_resets(pci)?;
    recall_resets(sibling)
}

/// The other one is with nobody: they share an IOMMU group too, and so an owner.
fn before(context: &mut Context<'_>) -> Result<()> {
    load(context)?;
    let [pci, sibling] = twins(nvme::KIND)?;
    sibling.bind(vfio::DRIVER)?;
    expect_resets(&pci, &sibling).context("when it is not kept")?;
    let resets = procfs::read(pci.path("reset_method"))?;
    expect_eq("its resets", resets.as_str(), "flr")?;
    let vmm = Vmm::new()?;
    let nvme = vmm.started(&pci, DRIVER)?;
    let session = vmm.preserve("siblings", nvme.device())?;
    context.keep((session, vmm, nvme));
    Ok(())
}

/// Somebody else uses the other one.
fn try_resets(pci: &Pci, sibling: &Pci) -> Result<()> {
    let theirs = Vmm::new()?;
    let device = theirs.device(sibling, vfio::DRIVER)?;
    device.reset().context("a reset of the other one")?;
    expect_eq("on after that", nvme::is_on(pci)?, true)?;
    expect_errno("a reset of the bus", device.hot_reset(), Errno::NODEV)?;
    forget_resets(sibling)?;
    drop(device);
    recall_resets(sibling)?;
    expect_eq("on after it was closed", nvme::is_on(pci)?, true)
}

fn after(context: &mut Context<'_>) -> Result<()> {
    let [pci, sibling] = twins(nvme::KIND)?;
    ensure!(nvme::is_on(&pci)?, "it is off");
    load(context)?;
    try_resets(&pci, &sibling).context("before it is retrieved")?;
    let session = retrieve("siblings")?;
    let device = retrieve_device(&session)?;
    try_resets(&pci, &sibling).context("when it was retrieved")?;
    let vmm = Vmm::retrieve(&session)?;
    vmm.take(&device)?;
    let mut nvme = vmm.nvme(device, 1)?;
    expect_eq("on", nvme.is_on()?, true)?;
    expect_serial(&mut nvme)?;
    finish(session)?;
    expect_serial(&mut nvme)
}
