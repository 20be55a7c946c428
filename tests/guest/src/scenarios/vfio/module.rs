// SPDX-License-Identifier: GPL-2.0

//! The handler's module: when it may go, and that it comes when it is needed.

use super::{DRIVER, Vmm, edu, expect_serial, load, nvme, nvme_before};
use crate::context::{Context, expect_eq, expect_errno, expect_message, finish, retrieve};
use crate::edu::Edu;
use crate::iommufd;
use crate::kmsg::Reader;
use crate::module;
use crate::pci::Pci;
use crate::registry::{Group, Scenario};
use crate::vfio;
use anyhow::{Context as _, Result, ensure};
use liveupdate::Errno;

/// The machine has to have modprobe. Each of them unloads the modules when it is done.
pub const GROUP: Group = Group {
    name: "vfio-module",
    scenarios: &[
        Scenario {
            name: "vfio-module-stays-while-it-is-needed",
            stages: &[stays],
        },
        Scenario {
            name: "vfio-module-loaded-by-retrieve",
            stages: &[
                |context| nvme_before(context, "by-retrieve", 0),
                by_retrieve,
            ],
        },
        Scenario {
            name: "vfio-module-loaded-by-finish",
            stages: &[|context| nvme_before(context, "by-finish", 1), by_finish],
        },
    ],
};

const ALL: [&str; 2] = [vfio::HANDLER, iommufd::HANDLER];

fn unload(when: &str) -> Result<()> {
    let unload = |name| module::unload(name).with_context(|| format!("{name} {when}"));
    ALL.into_iter().try_for_each(unload)
}

fn refused(when: &str) -> Result<()> {
    expect_errno(when, module::unload(vfio::HANDLER), Errno::AGAIN)
}

fn stays(context: &mut Context<'_>) -> Result<()> {
    load(context)?;
    let pci = edu(0)?;
    let vmm = Vmm::new()?;
    let edu = Edu::new(vmm.device(&pci, DRIVER)?)?;
    refused("with a device in use")?;
    let session = vmm.preserve("stays", edu.device())?;
    refused("with one that is preserved")?;
    drop(edu);
    refused("with one that only the session has")?;
    drop(session);
    unload("after the session was closed")?;
    expect_eq("its driver", pci.driver(), None)
}

/// Expects that nothing is there yet for a device that is kept.
fn expect_kept(pci: &Pci) -> Result<()> {
    for name in ALL {
        ensure!(!module::is_loaded(name), "{name} is there already");
    }
    expect_eq("its driver", pci.driver(), None)?;
    expect_eq("on", nvme::is_on(pci)?, true)
}

fn by_retrieve(_: &mut Context<'_>) -> Result<()> {
    let pci = nvme(0)?;
    expect_kept(&pci)?;
    let session = retrieve("by-retrieve")?;
    expect_kept(&pci).context("for a session")?;
    let device = super::retrieve_device(&session)?;
    for name in ALL {
        ensure!(module::is_loaded(name), "{name} is not there");
    }
    expect_eq("its driver", pci.driver().as_deref(), Some(DRIVER))?;
    refused("with a device that is retrieved")?;
    let vmm = Vmm::retrieve(&session)?;
    vmm.take(&device)?;
    let mut nvme = vmm.nvme(device, 1)?;
    expect_serial(&mut nvme)?;
    refused("before the finish")?;
    finish(session)?;
    refused("with a device in use")?;
    expect_serial(&mut nvme)?;
    drop(nvme);
    unload("after the finish")?;
    expect_eq("its driver", pci.driver(), None)?;
    pci.bind("nvme").context("another driver")
}

fn by_finish(_: &mut Context<'_>) -> Result<()> {
    let pci = nvme(1)?;
    expect_kept(&pci)?;
    let mut log = Reader::from_now()?;
    finish(retrieve("by-finish")?)?;
    expect_message(&mut log, &[pci.bdf(), "was reset"])?;
    expect_eq("on", nvme::is_on(&pci)?, false)?;
    unload("after the finish")?;
    pci.bind("nvme").context("another driver")
}
