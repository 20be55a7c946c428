// SPDX-License-Identifier: GPL-2.0

//! Devices that are not there, or do not answer, when their owner wants them.

use super::{DEVICE, DRIVER, Vmm, expect_reset, load, nvme, nvme_before};
use crate::context::{Context, expect_eq, expect_errno, finish, retrieve};
use crate::data;
use crate::kmsg::Reader;
use crate::pci::{Pci, rescan};
use crate::registry::{Group, Scenario};
use anyhow::{Result, ensure};
use liveupdate::Errno;
use std::time::{Duration, Instant};

pub const GROUP: Group = Group {
    name: "vfio-lost",
    scenarios: &[
        Scenario {
            name: "vfio-lost-since-it-is-gone",
            stages: &[|context| nvme_before(context, "gone", 2), gone_after],
        },
        Scenario {
            name: "vfio-lost-since-it-does-not-answer",
            stages: &[|context| nvme_before(context, "silent", 3), silent_after],
        },
    ],
};

/// Expects the device of a session to be lost, for good, and nothing else.
fn expect_lost(session: &str, pci: &Pci, expected: Errno, words: &[&str]) -> Result<()> {
    let mut log = Reader::from_now()?;
    let session = retrieve(session)?;
    expect_errno("the device", session.retrieve(DEVICE), expected)?;
    let lines = log.lines()?;
    for word in words.iter().chain(&["is lost"]) {
        let mut lines = lines.iter();
        ensure!(
            lines.any(|line| line.contains(pci.bdf()) && line.contains(word)),
            "no message has {word:?}: {lines:?}"
        );
    }
    let vmm = Vmm::retrieve(&session)?;
    data::expect_len(&vmm.ram, super::MIB)?;
    expect_eq("another IOAS", vmm.iommufd.alloc_ioas(), Ok(2))?;
    expect_errno("again", session.retrieve(DEVICE), expected)?;
    finish(session)
}

/// When it comes back, only our driver gets it, and it is as it was until it is used.
fn gone_after(context: &mut Context<'_>) -> Result<()> {
    load(context)?;
    let pci = nvme(2)?;
    pci.remove()?;
    expect_lost("gone", &pci, Errno::NODEV, &["is gone"])?;
    rescan()?;
    expect_eq("its driver", pci.driver().as_deref(), Some(DRIVER))?;
    ensure!(nvme::is_on(&pci)?, "it is off already");
    pci.try_bind("nvme");
    ensure!(
        pci.driver().as_deref() != Some("nvme"),
        "its driver took it"
    );
    ensure!(nvme::is_on(&pci)?, "it is off already");
    expect_reset(&pci)
}

/// How long giving up a device may take that does not answer.
const SOON: Duration = Duration::from_secs(30);

fn silent_after(context: &mut Context<'_>) -> Result<()> {
    load(context)?;
    let pci = nvme(3)?;
    let start = Instant::now();
    let words = ["does not answer", "out of reach"];
    pci.silenced(|| expect_lost("silent", &pci, Errno::IO, &words))?;
    ensure!(start.elapsed() < SOON, "it was waited for");
    expect_eq("its driver", pci.driver().as_deref(), Some(DRIVER))?;
    ensure!(nvme::is_on(&pci)?, "it is off already");
    expect_reset(&pci)
}
