// SPDX-License-Identifier: GPL-2.0

//! Each allocation that the kernel makes for a memfd, an iommufd or a device fails once.

use super::{
    DEVICE, DRIVER, IOMMUFD, IOVA, MARK, RAM, Vmm, edu, expect_reset, load, nvme, nvme_before,
};
use crate::context::{Context, create, expect_eq, finish, retrieve};
use crate::data;
use crate::edu::Edu;
use crate::faults::Faults;
use crate::iommufd::{Access, Iommufd, Part};
use crate::kexec;
use crate::kmsg;
use crate::module;
use crate::registry::{Group, Scenario};
use crate::scenarios::iommu::reboot::preserve_odd;
use crate::vfio::Device;
use anyhow::{Context as _, Result, bail, ensure};
use liveupdate::{Errno, Token};
use std::os::fd::{AsFd, BorrowedFd};

/// The machine has to have an edu and some nvmes, and a kernel with fault injection.
pub const GROUP: Group = Group {
    name: "vfio-faults",
    scenarios: &[
        Scenario {
            name: "vfio-preserve-without-memory",
            stages: &[preserve],
        },
        Scenario {
            name: "vfio-freeze-without-memory",
            stages: &[freeze],
        },
        Scenario {
            name: "vfio-retrieve-without-memory",
            stages: &[retrieve_before, retrieve_after],
        },
        Scenario {
            name: "vfio-retrieve-devices-without-memory",
            stages: &[devices_before, devices_after],
        },
    ],
};

/// No call makes more allocations than that.
const MANY: u32 = 400;
/// Every call makes more than that.
const FEW: u32 = 3;

/// What calls fail with; the second is shmem's when it cannot make an inode.
const REFUSALS: [Result<(), Errno>; 2] = [Err(Errno::NOMEM), Err(Errno::NOSPC)];

/// Makes a call again and again, with one allocation after the other failing, until it makes no more
/// of them. Then it has to give what is `expected`, and before either that or one of [`REFUSALS`].
fn with_each_fault<T>(
    what: &str,
    expected: Result<(), Errno>,
    mut call: impl FnMut(&Faults, u32) -> Result<(Result<T, Errno>, bool)>,
) -> Result<()> {
    let faults = Faults::new()?;
    let mut refused = 0;
    for n in 1..MANY {
        let (result, failed) = call(&faults, n)?;
        let result = result.map(drop);
        if !failed {
            expect_eq(what, result, expected)?;
            drop(faults);
            kmsg::remark(format!("{what}: {} allocations, {refused} refusals", n - 1));
            // What a call that is to fail allocates can all be done without, if slabs have enough left.
            let refuses = refused > 0 || expected.is_err();
            ensure!(n > FEW && refuses, "{what} allocates next to nothing");
            return Ok(());
        }
        if result != expected {
            ensure!(
                REFUSALS.contains(&result),
                "{what} without allocation {n}: {result:?}"
            );
            refused += 1;
        }
    }
    bail!("{what} does not stop to allocate")
}

fn preserve(context: &mut Context<'_>) -> Result<()> {
    load(context)?;
    let vmm = Vmm::new()?;
    let edu = Edu::new(vmm.device(&edu(0)?, DRIVER)?)?;
    let files: [(&str, BorrowedFd<'_>, Token); 3] = [
        ("preserving a memfd", vmm.ram.as_fd(), RAM),
        ("preserving an iommufd", vmm.iommufd.as_fd(), IOMMUFD),
        ("preserving a device", edu.device().as_fd(), DEVICE),
    ];
    for (number, (what, file, token)) in files.iter().enumerate() {
        with_each_fault(what, Ok(()), |faults, n| {
            let session = create("faults")?;
            for (what, file, token) in &files[..number] {
                session.preserve(file, *token).context(*what)?;
            }
            let result = faults.call(n, || session.preserve(file, *token));
            drop(session);
            result
        })?;
    }
    // All was given back.
    drop(vmm.preserve("faults", edu.device())?);
    edu.copy(IOVA, IOVA + 30_000, 3000)
}

fn freeze(context: &mut Context<'_>) -> Result<()> {
    load(context)?;
    let vmm = Vmm::new()?;
    let edu = Edu::new(vmm.device(&edu(0)?, DRIVER)?)?;
    edu.set_liveness(MARK)?;
    let session = vmm.preserve("faults", edu.device())?;
    preserve_odd(context, &session)?;
    module::set("freeze_errno", -Errno::NODEV.raw_os_error())?;
    with_each_fault("freezing", Err(Errno::NODEV), |faults, n| {
        let result = faults.call(n, || Err::<(), _>(kexec::reboot()))?;
        expect_eq("what was written", edu.liveness()?, !MARK)?;
        Ok(result)
    })?;
    module::set("freeze_errno", 0)?;
    edu.copy(IOVA, IOVA + 30_000, 3000)
}

/// How many of each there are; what is retrieved without memory is lost.
const FILES: u64 = 150;

fn memfd_token(n: u64) -> Token {
    Token(2 * n)
}

fn iommufd_token(n: u64) -> Token {
    Token(2 * n + 1)
}

fn retrieve_before(context: &mut Context<'_>) -> Result<()> {
    load(context)?;
    let session = create("faults-retrieve")?;
    for n in 0..2 * FILES {
        let memfd = data::memfd_with("fault", n, data::page())?;
        session.preserve(&memfd, memfd_token(n))?;
        if n >= FILES {
            let iommufd = Iommufd::open()?;
            let part = Part {
                file: &memfd,
                start: 0,
                len: data::page(),
            };
            iommufd.map_file(iommufd.alloc_ioas()?, Some(IOVA), part, Access::Read)?;
            session.preserve(&iommufd, iommufd_token(n))?;
        }
    }
    context.keep(session);
    Ok(())
}

fn retrieve_after(context: &mut Context<'_>) -> Result<()> {
    load(context)?;
    let session = retrieve("faults-retrieve")?;
    with_each_fault("retrieving a memfd", Ok(()), |faults, n| {
        let token = memfd_token(u64::from(n) - 1);
        let result = faults.call(n, || session.retrieve(token))?;
        if let (Ok(fd), _) = &result {
            let memfd = data::file(fd.try_clone()?);
            data::expect_file(&memfd, u64::from(n) - 1, data::page())?;
        }
        Ok(result)
    })?;
    with_each_fault("retrieving an iommufd", Ok(()), |faults, n| {
        let n64 = FILES + u64::from(n) - 1;
        // Its memory is there.
        session.retrieve(memfd_token(n64))?;
        let result = faults.call(n, || session.retrieve(iommufd_token(n64)))?;
        if let (Ok(fd), _) = &result {
            let iommufd = Iommufd::from(fd.try_clone()?);
            expect_eq("unmapping", iommufd.unmap_all(1), Ok(data::page()))?;
        }
        Ok(result)
    })?;
    finish(session)
}

/// How many devices there are, and how many allocations lie between those that fail.
const DEVICES: usize = 14;
const STEP: usize = 4;

fn session(number: usize) -> String {
    format!("faults-{number}")
}

fn devices_before(context: &mut Context<'_>) -> Result<()> {
    (0..DEVICES).try_for_each(|number| nvme_before(context, &session(number), number))
}

/// A device that is not retrieved is lost, and reset.
fn devices_after(context: &mut Context<'_>) -> Result<()> {
    load(context)?;
    let faults = Faults::new()?;
    let (mut failed, mut lost) = (0, 0);
    for (number, n) in (0..DEVICES).zip((1..).step_by(STEP)) {
        let session = retrieve(&session(number))?;
        let vmm = Vmm::retrieve(&session)?;
        let (result, so_many) = faults.call(n, || session.retrieve(DEVICE))?;
        failed += u32::from(so_many);
        match result {
            Ok(fd) => {
                let device = Device::from(data::file(fd));
                vmm.take(&device)?;
                expect_eq("on", vmm.nvme(device, 1)?.is_on()?, true)?;
            }
            Err(Errno::NOMEM) if so_many => lost += 1,
            Err(errno) => bail!("device {number} is lost without allocation {n}: {errno}"),
        }
        finish(session)?;
        expect_reset(&nvme(number)?)?;
    }
    drop(faults);
    kmsg::remark(format!(
        "{failed} allocations failed, {lost} devices were lost"
    ));
    ensure!(
        failed > FEW,
        "retrieving a device allocates next to nothing"
    );
    Ok(())
}
