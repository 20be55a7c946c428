// SPDX-License-Identifier: GPL-2.0

//! Reboots that fail, and that a device is none the worse for them.

use super::{ANOTHER, DRIVER, IOVA, MARK, Vmm, edu, expect_serial, load, nvme, retrieve_device};
use crate::context::{Context, expect_eq, expect_errno, expect_message, finish, retrieve};
use crate::data::{self, Mapping};
use crate::edu::Edu;
use crate::helpers::{Arg, Helper};
use crate::iommufd::{Access, Iommufd, Part};
use crate::kexec;
use crate::kmsg::Reader;
use crate::pci::{CACHE_LINE, Pci};
use crate::registry::{Group, Scenario};
use crate::scenarios::iommu::reboot::{failing_reboot, preserve_odd};
use crate::vfio::{CONFIG, Device, MSI, MSI_X};
use anyhow::{Context as _, Result, anyhow, ensure};
use liveupdate::{Errno, Outgoing, Session};
use std::fs::File;
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// They need the module for callbacks.
pub const GROUP: Group = Group {
    name: "vfio-reboot",
    scenarios: &[
        Scenario {
            name: "vfio-frozen-fails-and-thaws",
            stages: &[frozen],
        },
        Scenario {
            name: "vfio-frozen-without-mappings",
            stages: &[without_mappings],
        },
        Scenario {
            name: "vfio-reboot-fails-with-ioeventfds",
            stages: &[ioeventfds],
        },
        Scenario {
            name: "vfio-reboot-fails-in-low-power",
            stages: &[low_power],
        },
        Scenario {
            name: "vfio-reboot-fails-when-asleep",
            stages: &[asleep],
        },
        Scenario {
            name: "vfio-reboot-fails-with-another-device",
            stages: &[another],
        },
        Scenario {
            name: "vfio-reboot-fails-while-it-is-unbound",
            stages: &[unbound],
        },
        Scenario {
            name: "vfio-interrupts-come-again",
            stages: &[interrupts_before, interrupts_after],
        },
    ],
};

const PATIENCE: Duration = Duration::from_secs(20);
const LONG: Duration = Duration::from_secs(60);

/// Expects a reboot to fail because of a device.
fn expect_busy(pci: &Pci, why: &str) -> Result<()> {
    let mut log = Reader::from_now()?;
    let result: Result<(), Errno> = Err(kexec::reboot());
    expect_errno("reboot", result, Errno::BUSY)?;
    expect_message(&mut log, &[pci.bdf(), why])
}

/// Has a reboot fail in another handler, after all devices of the session were frozen.
fn freeze_and_thaw(context: &Context<'_>, session: &Session<Outgoing>) -> Result<()> {
    preserve_odd(context, session)?;
    expect_eq("reboot", failing_reboot(Errno::NODEV)?, Errno::NODEV)
}

/// The registers of a device, mapped.
fn map(device: &Device) -> Result<Mapping> {
    let file = File::from(device.as_fd().try_clone_to_owned()?);
    Mapping::new(&file, data::page())
}

/// The same, with the errno.
fn try_map(device: &Device) -> Result<Mapping, Errno> {
    map(device).map_err(|error| *error.downcast_ref().unwrap_or(&Errno::NOSYS))
}

/// Mappings that the reboot goes through while the device is frozen.
const MANY: u64 = 3000;

/// Adds an iommufd with so many to a session, which has the memory already.
fn preserve_many(vmm: &Vmm, session: &Session<Outgoing>) -> Result<()> {
    let iommufd = Iommufd::open()?;
    let ioas = iommufd.alloc_ioas()?;
    for i in 0..MANY {
        let part = Part {
            file: &vmm.ram,
            start: 0,
            len: data::page(),
        };
        iommufd.map_file(ioas, Some(i * 2 * data::page()), part, Access::Read)?;
    }
    Ok(session.preserve(iommufd, ANOTHER)?)
}

/// A way to reach a device, and what it is called.
struct Way<'a> {
    name: &'static str,
    go: Box<dyn Fn() -> Result<(), Errno> + Sync + 'a>,
}

fn way<'a>(name: &'static str, go: impl Fn() -> Result<(), Errno> + Sync + 'a) -> Way<'a> {
    let go = Box::new(go);
    Way { name, go }
}

/// The ways to reach an edu; they leave it as it is.
fn ways<'a>(vmm: &'a Vmm, edu: &'a Edu, again: &'a Device) -> Result<Vec<Way<'a>>> {
    let device = edu.device();
    let (bar, config) = (device.region(0)?, device.region(CONFIG)?);
    let read = |device: &Device, region, at| device.read::<4>(region, at).map(drop);
    let [line] = device.config(CACHE_LINE)?;
    Ok(vec![
        way("read", move || read(device, bar, edu::LIVENESS)),
        way("read again", move || read(again, bar, edu::LIVENESS)),
        way("write", || edu.set_liveness(MARK)),
        way("read config", move || read(device, config, 0)),
        way("write config", move || {
            device.write(config, CACHE_LINE, &[line])
        }),
        way("map", || try_map(device).map(drop)),
        way("region", || device.region(0).map(drop)),
        way("feature", || device.low_power(false)),
        way("attach", || device.attach(vmm.ioas).map(drop)),
        // These two fail at all times: none are on, and there is no reset.
        way("interrupts", || device.interrupt(MSI, None)),
        way("reset", || device.reset()),
    ])
}

/// Goes all ways, until each was refused because the device is frozen, or others are done.
fn until_refused(ways: &[Way<'_>], usual: &[Result<(), Errno>], done: &AtomicBool) -> Result<()> {
    let mut left: Vec<_> = ways.iter().zip(usual).collect();
    while !left.is_empty() {
        let mut tried = Vec::new();
        for (way, usual) in left {
            match (way.go)() {
                Err(Errno::BUSY) => continue,
                found => expect_eq(way.name, found, *usual)?,
            }
            tried.push((way, usual));
            std::thread::sleep(Duration::from_micros(300));
        }
        left = tried;
        let names: Vec<_> = left.iter().map(|(way, _)| way.name).collect();
        let over = done.load(Ordering::Relaxed) && !left.is_empty();
        ensure!(!over, "not refused: {names:?}");
    }
    Ok(())
}

/// Until the reboot two programs use the device: what they do fails from the freeze on.
fn frozen(context: &mut Context<'_>) -> Result<()> {
    load(context)?;
    let vmm = Vmm::new()?;
    let edu = Edu::new(vmm.device(&edu(0)?, DRIVER)?)?;
    edu.set_liveness(MARK)?;
    let again = Device::from(File::from(edu.device().as_fd().try_clone_to_owned()?));
    let ways = ways(&vmm, &edu, &again)?;
    let usual: Vec<_> = ways.iter().map(|way| (way.go)()).collect();
    let works = usual.iter().filter(|result| result.is_ok()).count();
    expect_eq("ways that work", works, ways.len() - 2)?;
    let session = vmm.preserve("frozen", edu.device())?;
    preserve_many(&vmm, &session)?;
    preserve_odd(context, &session)?;

    let start = Instant::now();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let user = scope.spawn(|| until_refused(&ways, &usual, &done));
        let tries = || {
            let mut mapped = Helper::start("use-device", &[Arg::Fd(edu.device())])?;
            mapped.expect_line("mapped")?;
            // Both have to be on a processor while the device is frozen; and none may be in the
            // middle of a call when that is tried.
            loop {
                let errno = failing_reboot(Errno::NODEV)?;
                let ended = mapped.expect_running().is_err() && user.is_finished();
                if ended && errno == Errno::NODEV {
                    return mapped.wait();
                }
                let known = [Errno::NODEV, Errno::BUSY].contains(&errno);
                ensure!(known, "reboot: {errno}");
                ensure!(start.elapsed() < LONG, "one of them still goes on");
            }
        };
        let ended = tries();
        done.store(true, Ordering::Relaxed);
        let user = user.join().map_err(|_| anyhow!("a user ended oddly"))?;
        let ended = ended.with_context(|| format!("a user: {user:?}"))?;
        user?;
        let signal = ended.signal();
        expect_eq("what ended the other", signal, Some(libc::SIGBUS))
    })?;

    // All is as before.
    for (way, usual) in ways.iter().zip(usual) {
        expect_eq(way.name, (way.go)(), usual)?;
    }
    expect_eq("what was written", edu.liveness()?, !MARK)?;
    let mapping = map(edu.device())?;
    expect_eq("what is mapped", mapping.word(edu::LIVENESS), !MARK)?;
    drop(mapping);
    let event = event()?;
    edu.device().interrupt(MSI, Some(&event))?;
    expect_interrupt(edu.device(), &event)?;
    edu.device().interrupt(MSI, None)?;
    edu.copy(IOVA, IOVA + 30_000, 3000)?;
    let mut mapped = Helper::start("use-device", &[Arg::Fd(edu.device())])?;
    mapped.expect_line("mapped")?;
    mapped.expect_running()?;
    mapped.kill()
}

fn without_mappings(context: &mut Context<'_>) -> Result<()> {
    load(context)?;
    let vmm = Vmm::new()?;
    let pci = nvme(0)?;
    let mut nvme = vmm.started(&pci, DRIVER)?;
    let session = vmm.preserve("unmapped", nvme.device())?;
    freeze_and_thaw(context, &session)?;
    expect_serial(&mut nvme)?;
    let mapping = map(nvme.device()).context("mapping it then")?;
    ensure!(mapping.word(0) != u32::MAX, "it does not answer");
    drop((session, nvme, mapping));
    pci.bind("nvme")
}

fn ioeventfds(context: &mut Context<'_>) -> Result<()> {
    load(context)?;
    let pci = edu(0)?;
    let vmm = Vmm::new()?;
    let edu = Edu::new(vmm.device(&pci, DRIVER)?)?;
    let session = vmm.preserve("ioeventfds", edu.device())?;
    let event = event()?;
    let bar = edu.device().region(0)?;
    let on_event = |event| {
        let device = edu.device();
        device.write_on(bar, edu::LIVENESS, MARK, event)
    };
    on_event(Some(&event)).context("an ioeventfd")?;
    let expect_written = || {
        edu.set_liveness(0)?;
        rustix::io::write(&event, &1_u64.to_ne_bytes())?;
        let start = Instant::now();
        while edu.liveness()? != !MARK {
            ensure!(start.elapsed() < PATIENCE, "the event writes nothing");
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    };
    expect_written()?;
    expect_busy(&pci, "has ioeventfds")?;
    expect_written().context("after the reboot")?;
    on_event(None).context("removing it")?;
    freeze_and_thaw(context, &session)?;
    edu.expect_alive(5)
}

/// This device has no power states; what counts is that it might sleep.
fn low_power(context: &mut Context<'_>) -> Result<()> {
    load(context)?;
    let pci = edu(0)?;
    let vmm = Vmm::new()?;
    let edu = Edu::new(vmm.device(&pci, DRIVER)?)?;
    let session = vmm.preserve("low-power", edu.device())?;
    edu.device().low_power(true).context("sleep")?;
    expect_busy(&pci, "is asleep")?;
    edu.expect_alive(6)?;
    edu.device().low_power(false).context("waking it up")?;
    freeze_and_thaw(context, &session)?;
    edu.copy(IOVA, IOVA + 10_000, 1000)
}

fn asleep(context: &mut Context<'_>) -> Result<()> {
    load(context)?;
    let pci = nvme(0)?;
    let vmm = Vmm::new()?;
    let mut nvme = vmm.started(&pci, DRIVER)?;
    let session = vmm.preserve("asleep", nvme.device())?;
    nvme.device().set_power_state(3).context("sleep")?;
    expect_busy(&pci, "is asleep")?;
    nvme.device().set_power_state(0).context("waking it up")?;
    freeze_and_thaw(context, &session)?;
    expect_serial(&mut nvme)?;
    drop((session, nvme));
    pci.bind("nvme")
}

/// The first of two devices was frozen when the second one is refused.
fn another(context: &mut Context<'_>) -> Result<()> {
    load(context)?;
    let (first, second) = (edu(0)?, nvme(0)?);
    let vmm = Vmm::new()?;
    let edu = Edu::new(vmm.device(&first, DRIVER)?)?;
    edu.set_liveness(MARK)?;
    let mapping = map(edu.device())?;
    let liveness = || mapping.word(edu::LIVENESS);
    expect_eq("what is mapped", liveness(), !MARK)?;
    let session = vmm.preserve("two-of-them", edu.device())?;
    let mut nvme = vmm.started(&second, DRIVER)?;
    session.preserve(nvme.device(), ANOTHER)?;
    nvme.device().interrupt(MSI_X, Some(&event()?))?;
    for _ in 0..2 {
        expect_busy(&second, "has interrupts")?;
        expect_eq("what was written", edu.liveness()?, !MARK)?;
        expect_eq("what is mapped", liveness(), !MARK)?;
        edu.copy(IOVA + 0x8000, IOVA + 0x9000, 1000)?;
        expect_serial(&mut nvme)?;
    }
    nvme.device().interrupt(MSI_X, None)?;
    freeze_and_thaw(context, &session)?;
    expect_eq("what is mapped", liveness(), !MARK)?;
    expect_serial(&mut nvme)?;
    drop((session, nvme));
    second.bind("nvme")
}

/// Whoever unbinds a device waits for its user, and would keep the machine from shutting it down.
fn unbound(context: &mut Context<'_>) -> Result<()> {
    load(context)?;
    let pci = edu(0)?;
    let vmm = Vmm::new()?;
    let device = vmm.device(&pci, DRIVER)?;
    let session = vmm.preserve("unbound", &device)?;
    preserve_odd(context, &session)?;
    std::thread::scope(|scope| {
        let unbinding = scope.spawn(|| pci.unbind());
        let start = Instant::now();
        let refused = loop {
            let mut log = Reader::from_now()?;
            match failing_reboot(Errno::NODEV)? {
                Errno::BUSY => break expect_message(&mut log, &[pci.bdf(), "unbound"]),
                errno => expect_eq("reboot", errno, Errno::NODEV)?,
            }
            ensure!(start.elapsed() < PATIENCE, "the machine would reboot");
        };
        drop((session, device));
        unbinding
            .join()
            .map_err(|_| anyhow!("unbinding it ended oddly"))??;
        refused
    })?;
    expect_eq("its driver", pci.driver(), None)
}

fn event() -> Result<OwnedFd> {
    // SAFETY: the call takes two numbers.
    let fd = unsafe { libc::eventfd(0, libc::EFD_NONBLOCK | libc::EFD_CLOEXEC) };
    ensure!(fd >= 0, "there is no event");
    // SAFETY: it was just made.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Has edu raise an interrupt, which is to come as an event.
fn expect_interrupt(device: &Device, event: &OwnedFd) -> Result<()> {
    let bar = device.region(0)?;
    device.write(bar, 0x60, &1_u32.to_le_bytes())?;
    let start = Instant::now();
    let mut count = [0; 8];
    loop {
        match rustix::io::read(event, &mut count) {
            Ok(_) => break,
            Err(Errno::AGAIN) if start.elapsed() < PATIENCE => {
                std::thread::sleep(Duration::from_millis(1));
            }
            Err(errno) => return Err(errno).context("waiting for an interrupt"),
        }
    }
    device.write(bar, 0x64, &1_u32.to_le_bytes())?;
    expect_eq("interrupts", u64::from_ne_bytes(count), 1)
}

fn interrupts_before(context: &mut Context<'_>) -> Result<()> {
    load(context)?;
    let pci = edu(0)?;
    let vmm = Vmm::new()?;
    let edu = Edu::new(vmm.device(&pci, DRIVER)?)?;
    let event = event()?;
    edu.device().interrupt(MSI, Some(&event))?;
    expect_interrupt(edu.device(), &event)?;
    let session = vmm.preserve("interrupts", edu.device())?;
    expect_busy(&pci, "has interrupts")?;
    // They still come.
    expect_interrupt(edu.device(), &event)?;
    edu.device().interrupt(MSI, None)?;
    context.keep((session, vmm, edu));
    Ok(())
}

fn interrupts_after(context: &mut Context<'_>) -> Result<()> {
    load(context)?;
    let session = retrieve("interrupts")?;
    let vmm = Vmm::retrieve(&session)?;
    let device = retrieve_device(&session)?;
    vmm.take(&device)?;
    let event = event()?;
    device.interrupt(MSI, Some(&event))?;
    expect_interrupt(&device, &event)?;
    finish(session)
}
