// SPDX-License-Identifier: GPL-2.0

//! Devices that nobody comes for until another kernel is started.

use super::unclaimed::expect_out_of_reach;
use super::{
    DRIVER, Vmm, edu, edu_before, expect_serial, load, nvme, nvme_before, retrieve_device, rng,
    rng_before,
};
use crate::context::{Context, expect_eq, expect_message, finish, retrieve};
use crate::kmsg::Reader;
use crate::module;
use crate::registry::{Group, Scenario};
use crate::vfio;
use anyhow::{Context as _, Result, ensure};

/// For a chain of three kernels.
pub const GROUP: Group = Group {
    name: "vfio-third",
    scenarios: &[
        Scenario {
            name: "vfio-nvme-unclaimed-twice-is-free",
            stages: &[
                |context| nvme_before(context, "nvme-twice", 0),
                nvme_between,
                nvme_after,
            ],
        },
        Scenario {
            name: "vfio-rng-unclaimed-twice-is-reset",
            stages: &[
                |context| rng_before(context, "rng-twice", 0),
                rng_between,
                |context| rng_after(context, 0),
            ],
        },
        Scenario {
            name: "vfio-edu-unclaimed-twice-is-out-of-reach",
            stages: &[
                |context| edu_before(context, "edu-twice", 0),
                |_| expect_eq("its driver", edu(0)?.driver(), None),
                |context| edu_after(context, 0),
            ],
        },
        // The only one that loads the module in the second kernel.
        Scenario {
            name: "vfio-edu-given-up-is-out-of-reach-for-good",
            stages: &[
                |context| edu_before(context, "given-up", 1),
                given_up,
                |context| edu_after(context, 1),
            ],
        },
    ],
};

/// For a chain of three kernels: what is done with the module there in all of them.
pub const LOADED: Group = Group {
    name: "vfio-third-loaded",
    scenarios: &[
        Scenario {
            name: "vfio-nvme-goes-on-twice",
            stages: &[
                |context| nvme_before(context, "on-and", 0),
                goes_on,
                goes_on_after,
            ],
        },
        Scenario {
            name: "vfio-rng-unclaimed-by-its-driver-is-reset",
            stages: &[
                |context| rng_before(context, "rng-loaded", 0),
                loaded_between,
                |context| rng_after(context, 0),
            ],
        },
        Scenario {
            name: "vfio-rng-retrieved-and-not-bound-is-reset",
            stages: &[
                |context| rng_before(context, "rng-retrieved", 1),
                retrieved_between,
                |context| rng_after(context, 1),
            ],
        },
    ],
};

fn nvme_between(_: &mut Context<'_>) -> Result<()> {
    let pci = nvme(0)?;
    expect_eq("its driver", pci.driver(), None)?;
    expect_eq("on", nvme::is_on(&pci)?, true)
}

/// Its driver, with which it is here, resets it. That it was reset before is what the rng shows, for
/// which there is no driver: see [`rng_after`].
fn nvme_after(_: &mut Context<'_>) -> Result<()> {
    let driver = nvme(0)?.driver();
    expect_eq("its driver", driver.as_deref(), Some("nvme"))
}

fn rng_between(_: &mut Context<'_>) -> Result<()> {
    let pci = rng(0)?;
    expect_eq("its driver", pci.driver(), None)?;
    expect_eq("the status", rng::status_of(&pci)?, rng::KNOWN)
}

fn rng_after(_: &mut Context<'_>, number: usize) -> Result<()> {
    let pci = rng(number)?;
    expect_eq("its driver", pci.driver(), None)?;
    expect_eq("the status", rng::status_of(&pci)?, 0)
}

fn given_up(context: &mut Context<'_>) -> Result<()> {
    load(context)?;
    finish(retrieve("given-up")?)?;
    expect_out_of_reach(&edu(1)?)?;
    module::unload(vfio::HANDLER).context("unloading it")
}

fn edu_after(context: &mut Context<'_>, number: usize) -> Result<()> {
    let pci = edu(number)?;
    expect_message(&mut Reader::from_boot()?, &["luo_pci: ", pci.bdf()])?;
    load(context)?;
    let driver = pci.driver();
    ensure!(driver.is_some(), "it is free");
    expect_out_of_reach(&pci)
}

/// Its owner retrieves it and hands it on.
fn goes_on(context: &mut Context<'_>) -> Result<()> {
    load(context)?;
    let session = retrieve("on-and")?;
    let vmm = Vmm::retrieve(&session)?;
    let mut nvme = vmm.nvme(vmm.retrieve_device(&session)?, 1)?;
    expect_serial(&mut nvme)?;
    // Not before that: until then it is the old session's.
    finish(session)?;
    let session = vmm.preserve("on", nvme.device())?;
    expect_serial(&mut nvme)?;
    context.keep((session, vmm, nvme));
    Ok(())
}

fn goes_on_after(context: &mut Context<'_>) -> Result<()> {
    load(context)?;
    let session = retrieve("on")?;
    let vmm = Vmm::retrieve(&session)?;
    let mut nvme = vmm.nvme(vmm.retrieve_device(&session)?, 3)?;
    expect_eq("on", nvme.is_on()?, true)?;
    expect_serial(&mut nvme)?;
    finish(session)
}

/// Its owner has it, and does nothing with it.
fn retrieved_between(context: &mut Context<'_>) -> Result<()> {
    load(context)?;
    let session = retrieve("rng-retrieved")?;
    let device = retrieve_device(&session)?;
    expect_eq("the status", rng::status_of(&rng(1)?)?, rng::KNOWN)?;
    context.keep((session, device));
    Ok(())
}

fn loaded_between(context: &mut Context<'_>) -> Result<()> {
    load(context)?;
    let pci = rng(0)?;
    expect_eq("its driver", pci.driver().as_deref(), Some(DRIVER))?;
    expect_eq("the status", rng::status_of(&pci)?, rng::KNOWN)
}
