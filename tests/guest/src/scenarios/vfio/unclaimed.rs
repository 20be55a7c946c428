// SPDX-License-Identifier: GPL-2.0

//! Devices that nobody comes for: nobody gets to see what is in them.

use super::{DRIVER, Vmm, edu, edu_before, expect_reset, load, nvme, nvme_before, retrieve_device};
use crate::context::{Context, expect_eq, expect_errno, expect_message, finish, retrieve};
use crate::kmsg::Reader;
use crate::pci::Pci;
use crate::registry::{Group, Scenario};
use crate::vfio::{self, Device};
use anyhow::{Context as _, Result, anyhow, ensure};
use liveupdate::Errno;
use std::time::{Duration, Instant};

pub const GROUP: Group = Group {
    name: "vfio-unclaimed",
    scenarios: &[
        Scenario {
            name: "vfio-unclaimed-is-reset",
            stages: &[
                |context| nvme_before(context, "unclaimed", 4),
                unclaimed_after,
            ],
        },
        Scenario {
            name: "vfio-never-bound-is-reset",
            stages: &[
                |context| nvme_before(context, "never-bound", 5),
                never_bound_after,
            ],
        },
        Scenario {
            name: "vfio-closed-unbound-is-reset",
            stages: &[
                |context| nvme_before(context, "unbound", 13),
                closed_unbound_after,
            ],
        },
        Scenario {
            name: "vfio-unbound-while-retrieved-is-reset",
            stages: &[
                |context| nvme_before(context, "being-unbound", 16),
                being_unbound_after,
            ],
        },
        Scenario {
            name: "vfio-unclaimed-without-reset-is-out-of-reach",
            stages: &[|context| edu_before(context, "stale", 1), stale_after],
        },
        Scenario {
            name: "vfio-closed-before-the-reboot-is-free",
            stages: &[closed_before, closed_after],
        },
    ],
};

const PATIENCE: Duration = Duration::from_secs(20);

fn unclaimed_after(context: &mut Context<'_>) -> Result<()> {
    let mut log = Reader::from_now()?;
    load(context)?;
    let pci = nvme(4)?;
    ensure!(nvme::is_on(&pci)?, "it is off already");
    finish(retrieve("unclaimed")?)?;
    expect_message(&mut log, &[pci.bdf(), "was reset"])?;
    expect_eq("on", nvme::is_on(&pci)?, false)?;
    expect_reset(&pci)
}

fn never_bound_after(context: &mut Context<'_>) -> Result<()> {
    load(context)?;
    let pci = nvme(5)?;
    let session = retrieve("never-bound")?;
    let device = retrieve_device(&session)?;
    let vmm = Vmm::retrieve(&session)?;
    let mut log = Reader::from_now()?;
    finish(session)?;
    expect_message(&mut log, &["was not bound"])?;
    device.bind(&vmm.iommufd)?;
    expect_eq("on", vmm.nvme(device, 0)?.is_on()?, false)?;
    pci.bind("nvme").context("another driver")
}

/// Its owner closes it, and is gone then.
fn closed_unbound_after(context: &mut Context<'_>) -> Result<()> {
    load(context)?;
    let pci = nvme(13)?;
    let session = retrieve("unbound")?;
    drop(retrieve_device(&session)?);
    let stranger = Device::open_with(&pci, DRIVER)?;
    let theirs = Vmm::new()?;
    let result = stranger.bind(&theirs.iommufd);
    expect_errno("a stranger", result, Errno::BUSY)?;
    ensure!(nvme::is_on(&pci)?, "it is off already");
    finish(session)?;
    theirs.take(&stranger).context("then")?;
    expect_eq("on", theirs.nvme(stranger, 0)?.is_on()?, false)?;
    pci.bind("nvme").context("another driver")
}

/// Whoever unbinds it waits for its user; the end of the session does not wait for either.
fn being_unbound_after(context: &mut Context<'_>) -> Result<()> {
    load(context)?;
    let pci = nvme(16)?;
    let session = retrieve("being-unbound")?;
    let device = retrieve_device(&session)?;
    std::thread::scope(|scope| {
        let unbinding = scope.spawn(|| pci.unbind());
        let start = Instant::now();
        while vfio::cdev(&pci).is_ok() {
            ensure!(start.elapsed() < PATIENCE, "nobody unbinds it");
            std::thread::sleep(Duration::from_millis(1));
        }
        finish(session)?;
        drop(device);
        let unbound = unbinding.join();
        unbound.map_err(|_| anyhow!("unbinding it ended oddly"))?
    })?;
    ensure!(nvme::is_on(&pci)?, "it is off already");
    expect_reset(&pci)
}

/// Nobody can use it, and no other driver gets it.
pub fn expect_out_of_reach(pci: &Pci) -> Result<()> {
    let mut log = Reader::from_now()?;
    let vmm = Vmm::new()?;
    let device = Device::open_with(pci, DRIVER)?;
    let result = device.bind(&vmm.iommufd);
    expect_errno("a device with secrets", result, Errno::IO)?;
    expect_message(&mut log, &[pci.bdf(), "out of reach"])?;
    drop(device);
    pci.try_bind(vfio::DRIVER);
    ensure!(
        pci.driver().as_deref() != Some(vfio::DRIVER),
        "another driver took it"
    );
    expect_message(&mut log, &[pci.bdf(), "no other driver"])
}

fn stale_after(context: &mut Context<'_>) -> Result<()> {
    load(context)?;
    let pci = edu(1)?;
    let mut log = Reader::from_now()?;
    finish(retrieve("stale")?)?;
    expect_message(
        &mut log,
        &[pci.bdf(), "cannot be reset", "until the machine"],
    )?;
    expect_out_of_reach(&pci)
}

/// Another device is handed over nevertheless.
fn closed_before(context: &mut Context<'_>) -> Result<()> {
    load(context)?;
    let vmm = Vmm::new()?;
    let nvme = vmm.started(&nvme(6)?, DRIVER)?;
    drop(vmm.preserve("closed", nvme.device())?);
    drop(nvme);
    edu_before(context, "not-closed", 2)
}

fn closed_after(context: &mut Context<'_>) -> Result<()> {
    let pci = nvme(6)?;
    expect_eq("its driver", pci.driver().as_deref(), Some("nvme"))?;
    load(context)?;
    let session = retrieve("not-closed")?;
    let vmm = Vmm::retrieve(&session)?;
    vmm.retrieve_device(&session)?;
    finish(session)
}
