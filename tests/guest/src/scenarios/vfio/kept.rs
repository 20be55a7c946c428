// SPDX-License-Identifier: GPL-2.0

//! Devices that are kept for their owner, whatever others do with them until it is there.

use super::{
    DEVICE, DRIVER, MARK, Vmm, edu, edu_before, load, nvme, nvme_after, nvme_before,
    retrieve_device, rng, rng_before,
};
use crate::context::{Context, create, expect_eq, expect_errno, expect_message, finish, retrieve};
use crate::edu::Edu;
use crate::kmsg::Reader;
use crate::pci::{Pci, rescan};
use crate::procfs;
use crate::registry::{Group, Scenario};
use crate::vfio::{self, Device};
use anyhow::{Context as _, Result, bail, ensure};
use liveupdate::Errno;
use std::ffi::{CString, c_void};
use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

pub const GROUP: Group = Group {
    name: "vfio-kept",
    scenarios: &[
        Scenario {
            name: "vfio-kept-from-other-drivers",
            stages: &[|context| nvme_before(context, "drivers", 0), drivers_after],
        },
        Scenario {
            name: "vfio-kept-from-resets",
            stages: &[|context| rng_before(context, "resets", 0), resets_after],
        },
        Scenario {
            name: "vfio-kept-awake",
            stages: &[|context| rng_before(context, "awake", 1), awake_after],
        },
        Scenario {
            name: "vfio-kept-from-groups",
            stages: &[group_before, group_after],
        },
        Scenario {
            name: "vfio-kept-when-it-comes-back",
            stages: &[|context| nvme_before(context, "back", 1), back_after],
        },
    ],
};

/// Tries to have other drivers take an nvme that is kept.
fn try_drivers(pci: &Pci) -> Result<()> {
    for driver in ["nvme", vfio::DRIVER] {
        let mut log = Reader::from_now()?;
        pci.try_bind(driver);
        let found = pci.driver();
        ensure!(
            found.as_deref().is_none_or(|found| found == DRIVER),
            "{found:?} took it"
        );
        ensure!(nvme::is_on(pci)?, "it is off after {driver}");
        expect_message(&mut log, &[pci.bdf(), "no other driver"])?;
    }
    Ok(())
}

fn drivers_after(context: &mut Context<'_>) -> Result<()> {
    let pci = nvme(0)?;
    ensure!(nvme::is_on(&pci)?, "it is off");
    vfio::load(context)?;
    try_drivers(&pci).context("at first")?;
    load(context)?;
    expect_eq("its driver", pci.driver().as_deref(), Some(DRIVER))?;
    try_drivers(&pci).context("with its own")?;
    // Even without a driver it can be retrieved.
    pci.unbind()?;
    procfs::write(pci.path("driver_override"), "none")?;
    nvme_after(context, &pci, "drivers")?;
    super::expect_reset(&pci)
}

/// Tries to have an rng reset that is kept.
fn try_resets(pci: &Pci) -> Result<()> {
    let refused = |pci: &Pci, name| {
        let file = pci.path(name);
        ensure!(file.exists(), "there is no {name} of {}", pci.bdf());
        let reset = procfs::write(file, "1").is_ok();
        ensure!(!reset, "{name} of {} works", pci.bdf());
        expect_eq("the status", rng::status_of(&rng(0)?)?, rng::KNOWN)
    };
    refused(pci, "reset")?;
    refused(&pci.port()?, "reset_subordinate")?;
    for method in ["flr", "pm", "bus", "default"] {
        // Whether it can be chosen or not.
        let _ = procfs::write(pci.path("reset_method"), method);
        refused(pci, "reset").context(method)?;
    }
    Ok(())
}

fn resets_after(context: &mut Context<'_>) -> Result<()> {
    let pci = rng(0)?;
    expect_eq("the status", rng::status_of(&pci)?, rng::KNOWN)?;
    try_resets(&pci).context("at first")?;
    load(context)?;
    try_resets(&pci).context("with its driver")?;
    let session = retrieve("resets")?;
    let vmm = Vmm::retrieve(&session)?;
    let device = retrieve_device(&session)?;
    try_resets(&pci).context("when it was retrieved")?;
    vmm.take(&device)?;
    expect_eq("the status", rng::status(&device)?, rng::KNOWN)?;
    finish(session)?;
    device.reset().context("a reset by its owner")?;
    expect_eq("the status", rng::status(&device)?, 0)
}

/// How long a device may stay awake that is allowed to sleep.
const SOON: Duration = Duration::from_secs(60);
/// How long one is watched that is not to sleep, when another one sleeps.
const A_WHILE: Duration = Duration::from_millis(300);

fn state(pci: &Pci) -> Result<String> {
    procfs::read(pci.path("power_state"))
}

/// What runtime power management makes of it.
fn status(pci: &Pci) -> Result<String> {
    procfs::read(pci.path("power/runtime_status"))
}

/// Lets one sleep, if it does not yet.
fn let_sleep(pci: &Pci) -> Result<()> {
    pci.stay_awake()?;
    expect_eq("awake", status(pci)?.as_str(), "active")?;
    procfs::write(pci.path("power/control"), "auto")
}

/// Waits for one to sleep. Without a driver PCI leaves it in D0 as it does.
fn expect_asleep(pci: &Pci, expected: &str) -> Result<()> {
    let start = Instant::now();
    while status(pci)? != "suspended" || state(pci)? != expected {
        ensure!(start.elapsed() < SOON, "{} does not sleep", pci.bdf());
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// Lets it sleep, which it does not when another one does that nobody keeps from it.
fn try_sleep(pci: &Pci, other: &Pci, expected: &str) -> Result<()> {
    let_sleep(pci)?;
    let_sleep(other)?;
    expect_asleep(other, expected)?;
    std::thread::sleep(A_WHILE);
    expect_eq("power", state(pci)?.as_str(), "D0")?;
    expect_eq("status", status(pci)?.as_str(), "active")?;
    expect_eq("the status", rng::status_of(pci)?, rng::KNOWN)
}

/// The other device is that of a scenario before, which has done with it.
fn awake_after(context: &mut Context<'_>) -> Result<()> {
    let (pci, other) = (rng(1)?, rng(0)?);
    ensure!(pci != other, "there is no device for comparison");
    other.unbind()?;
    try_sleep(&pci, &other, "D0").context("at first")?;
    load(context)?;
    other.bind(DRIVER)?;
    try_sleep(&pci, &other, "D3hot").context("with its driver")?;
    let session = retrieve("awake")?;
    let vmm = Vmm::retrieve(&session)?;
    let device = retrieve_device(&session)?;
    try_sleep(&pci, &other, "D3hot").context("when it was retrieved")?;
    vmm.take(&device)?;
    expect_eq("the status", rng::status(&device)?, rng::KNOWN)?;
    finish(session)?;
    drop(device);
    // Nobody keeps it from that any more, with whichever driver.
    expect_asleep(&pci, "D3hot")?;
    pci.bind(vfio::DRIVER)?;
    expect_asleep(&pci, "D3hot")
}

/// Opens a device as programs did before there were character devices: by its group, in a
/// container.
fn open_by_group(pci: &Pci, keep: &mut Vec<File>) -> Result<Device, Errno> {
    const TYPE_1: usize = 3;
    let open = |path: &str| {
        let file = File::options().read(true).write(true).open(path);
        file.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::NOSYS))
    };
    let link = std::fs::read_link(pci.path("iommu_group")).map_err(|_| Errno::NOENT)?;
    let number = link.file_name().ok_or(Errno::NOENT)?.to_string_lossy();
    let group = open(&format!("/dev/vfio/{number}"))?;
    let container = open("/dev/vfio/vfio")?;
    crate::raw::ioctl_with(&group, vfio::GROUP_SET_CONTAINER, container.as_raw_fd())?;
    let null = std::ptr::null_mut::<c_void>();
    // SAFETY: this call takes a number.
    unsafe { crate::raw::ioctl(&container, vfio::SET_IOMMU, null.wrapping_byte_add(TYPE_1)) }?;
    let name = CString::new(pci.bdf()).map_err(|_| Errno::INVAL)?;
    let name = name.as_ptr().cast_mut().cast();
    // SAFETY: this call reads a string.
    let fd = unsafe { crate::raw::ioctl(&group, vfio::GROUP_GET_DEVICE_FD, name) };
    keep.extend([group, container]);
    // SAFETY: it was just made.
    Ok(Device::from(File::from(unsafe {
        OwnedFd::from_raw_fd(fd?)
    })))
}

fn group_before(context: &mut Context<'_>) -> Result<()> {
    load(context)?;
    let pci = edu(0)?;
    pci.bind(DRIVER)?;
    let mut keep = Vec::new();
    let device = open_by_group(&pci, &mut keep).context("by its group")?;
    let mut log = Reader::from_now()?;
    let result = create("by-group")?.preserve(&device, DEVICE);
    expect_errno("opened by its group", result, Errno::INVAL)?;
    expect_message(&mut log, &[pci.bdf(), "/dev/vfio/devices"])?;
    drop((device, keep));
    edu_before(context, "group", 0)
}

fn group_after(context: &mut Context<'_>) -> Result<()> {
    load(context)?;
    let pci = edu(0)?;
    let mut keep = Vec::new();
    let result = open_by_group(&pci, &mut keep).map(drop);
    expect_errno("before it is retrieved", result, Errno::NOENT)?;
    let session = retrieve("group")?;
    let device = retrieve_device(&session)?;
    let result = open_by_group(&pci, &mut keep).map(drop);
    expect_errno("before its owner has it", result, Errno::BUSY)?;
    drop(keep);
    let vmm = Vmm::retrieve(&session)?;
    vmm.take(&device)?;
    expect_eq("what was written", Edu::new(device)?.liveness()?, !MARK)?;
    finish(session)
}

/// It is removed and found again, which resets nothing.
fn back_after(context: &mut Context<'_>) -> Result<()> {
    let pci = nvme(1)?;
    for when in ["at first", "with its driver"] {
        pci.remove()?;
        rescan()?;
        match pci.driver().as_deref() {
            None | Some(DRIVER) => {}
            driver => bail!("{when}, {driver:?} took it"),
        }
        ensure!(nvme::is_on(&pci)?, "{when}, it is off");
        ensure!(vfio::cdev(&pci).is_err(), "{when}, it can be opened");
        load(context)?;
    }
    nvme_after(context, &pci, "back")?;
    super::expect_reset(&pci)
}
