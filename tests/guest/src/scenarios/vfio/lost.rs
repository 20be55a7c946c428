// SPDX-License-Identifier: GPL-2.0

//! Devices that are not there, or do not answer, when their owner wants them.

use super::{
    ANOTHER, DEVICE, DRIVER, IOVA, MARK, MIB, Vmm, edu, expect_reset, load, nvme, nvme_before,
};
use crate::context::{Context, expect_eq, expect_errno, finish, retrieve};
use crate::data::{self, Mapping};
use crate::edu::Edu;
use crate::kmsg::Reader;
use crate::pci::{Pci, rescan};
use crate::registry::{Group, Scenario};
use crate::vfio::Device;
use anyhow::{Result, ensure};
use liveupdate::{Errno, Incoming, Session};
use std::time::{Duration, Instant};

pub const GROUP: Group = Group {
    name: "vfio-lost",
    scenarios: &[
        Scenario {
            name: "vfio-lost-since-it-is-gone",
            stages: &[gone_before, gone_after],
        },
        Scenario {
            name: "vfio-lost-since-it-does-not-answer",
            stages: &[|context| nvme_before(context, "silent", 3), silent_after],
        },
    ],
};

/// Expects the device of a session to be lost, for good, and nothing else. What comes with it is
/// `other`'s, while the session is not finished.
fn expect_lost(
    session: &str,
    pci: &Pci,
    expected: Errno,
    words: &[&str],
    other: fn(&Session<Incoming>, &Vmm) -> Result<()>,
) -> Result<()> {
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
    data::expect_len(&vmm.ram, MIB)?;
    expect_eq("another IOAS", vmm.iommufd.alloc_ioas(), Ok(2))?;
    other(&session, &vmm)?;
    expect_errno("again", session.retrieve(DEVICE), expected)?;
    finish(session)
}

/// Where a device takes memory from, and where it puts it.
const FROM: u64 = 100_000;
const TO: u64 = 200_000;

/// The session has a second device.
fn gone_before(context: &mut Context<'_>) -> Result<()> {
    load(context)?;
    let vmm = Vmm::new()?;
    let nvme = vmm.started(&nvme(2)?, DRIVER)?;
    let edu = Edu::new(vmm.device(&edu(3)?, DRIVER)?)?;
    edu.set_liveness(MARK)?;
    edu.load(IOVA + FROM, 512)?;
    let session = vmm.preserve("gone", nvme.device())?;
    session.preserve(edu.device(), ANOTHER)?;
    context.keep((session, vmm, nvme, edu));
    Ok(())
}

/// The second device goes on.
fn expect_another(session: &Session<Incoming>, vmm: &Vmm) -> Result<()> {
    let device = Device::from(data::file(session.retrieve(ANOTHER)?));
    vmm.take(&device)?;
    let edu = Edu::new(device)?;
    expect_eq("what was written", edu.liveness()?, !MARK)?;
    edu.store(IOVA + TO, 512)?;
    let expected = Mapping::new(&vmm.ram, MIB)?.read(FROM, 512);
    data::expect_bytes(&vmm.ram, TO, &expected)
}

/// When it comes back, only our driver gets it, and it is as it was until it is used.
fn gone_after(context: &mut Context<'_>) -> Result<()> {
    load(context)?;
    let pci = nvme(2)?;
    pci.remove()?;
    expect_lost("gone", &pci, Errno::NODEV, &["is gone"], expect_another)?;
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
    let nothing = |_: &_, _: &_| Ok(());
    pci.silenced(|| expect_lost("silent", &pci, Errno::IO, &words, nothing))?;
    ensure!(start.elapsed() < SOON, "it was waited for");
    expect_eq("its driver", pci.driver().as_deref(), Some(DRIVER))?;
    ensure!(nvme::is_on(&pci)?, "it is off already");
    expect_reset(&pci)
}
