// SPDX-License-Identifier: GPL-2.0

//! What one kernel says of devices is not what the next one finds.

use super::unclaimed::expect_out_of_reach;
use super::{
    DEVICE, DRIVER, IOMMUFD, Vmm, edu, edu_before, expect_reset, expect_serial, load, nvme,
    nvme_before, retrieve_device,
};
use crate::context::{Context, expect_eq, expect_errno, expect_message, finish, retrieve};
use crate::handover::{At, Memory, outgoing_header, page_with};
use crate::kmsg::Reader;
use crate::pci::Pci;
use crate::registry::{Group, Scenario};
use crate::scenarios::corrupt::start_spoiling;
use crate::vfio::Device;
use anyhow::{Context as _, Result, bail, ensure};
use liveupdate::Errno;
use luo_abi::vfio::{DEVICES_COMPATIBLE, MAX_DEVICES, VfioDevice};
use luo_abi::{Text, luo};
use zerocopy::IntoBytes;

pub const GROUP: Group = Group {
    name: "vfio-corrupt",
    scenarios: &[
        Scenario {
            name: "vfio-another-device-in-its-place",
            stages: &[
                |context| nvme_before(context, "replaced", 7),
                |context| {
                    let words = &["and is 1b36:0010"];
                    wrong(context, ("replaced", 7), Errno::NXIO, words, |state| {
                        state.identity.device += 1;
                    })
                },
            ],
        },
        Scenario {
            name: "vfio-registers-elsewhere",
            stages: &[
                |context| nvme_before(context, "moved", 8),
                |context| {
                    wrong(
                        context,
                        ("moved", 8),
                        Errno::NXIO,
                        &["registers"],
                        |state| {
                            state.header.bars[0] = state.header.bars[0].wrapping_add(0x1000);
                        },
                    )
                },
            ],
        },
        Scenario {
            name: "vfio-iommufd-missing",
            stages: &[
                |context| nvme_before(context, "missing", 9),
                |context| {
                    wrong(context, ("missing", 9), Errno::NOENT, &["lost"], |state| {
                        state.iommufd = 77;
                    })
                },
            ],
        },
        Scenario {
            name: "vfio-iommufd-is-none",
            stages: &[
                |context| nvme_before(context, "no-iommufd", 10),
                |context| {
                    wrong(
                        context,
                        ("no-iommufd", 10),
                        Errno::BADFD,
                        &["lost"],
                        |state| {
                            state.iommufd = 1;
                        },
                    )
                },
            ],
        },
        Scenario {
            name: "vfio-reset-unknown",
            stages: &[
                |context| nvme_before(context, "flag", 11),
                |context| {
                    wrong(
                        context,
                        ("flag", 11),
                        Errno::OPNOTSUPP,
                        &["lost"],
                        |state| {
                            state.resets |= 1 << 31;
                        },
                    )
                },
            ],
        },
        Scenario {
            name: "vfio-one-device-of-two-files",
            stages: &[
                |context| {
                    nvme_before(context, "mine", 14)?;
                    nvme_before(context, "mine-too", 15)
                },
                mine_after,
            ],
        },
        // Nobody knows whose its device was, until all sessions are finished: this has to be the last.
        Scenario {
            name: "vfio-address-of-none",
            stages: &[
                |context| nvme_before(context, "address", 12),
                |context| {
                    wrong(
                        context,
                        ("address", 12),
                        Errno::STALE,
                        &["not kept"],
                        |state| {
                            state.address.devfn = 8;
                        },
                    )
                },
            ],
        },
    ],
};

/// For a machine of its own, with three kernels.
pub const UNREADABLE: Group = Group {
    name: "vfio-unreadable",
    scenarios: &[Scenario {
        name: "vfio-record-unreadable",
        stages: &[unreadable_before, unreadable_after, unreadable_third],
    }],
};

/// For a machine of its own, with three kernels.
pub const COUNT: Group = Group {
    name: "vfio-count",
    scenarios: &[
        Scenario {
            name: "vfio-record-of-too-many",
            stages: &[count_before, count_after],
        },
        // When the other one is done with the machine.
        Scenario {
            name: "vfio-record-in-another-version",
            stages: &[|_| Ok(()), version_before, version_after],
        },
    ],
};

/// What the program that spoils is told.
pub const HOW: &str = "pci-devices";

/// What the previous kernel wrote of a device. It is known by how it begins.
fn wire(memory: &Memory, pci: &Pci) -> Result<At<VfioDevice>> {
    let address = pci.address()?;
    let (vendor, device) = nvme::KIND;
    let start = [address.as_bytes(), vendor.as_bytes(), device.as_bytes()].concat();
    let found: At<VfioDevice> = memory.read(page_with(memory, &start)?)?;
    ensure!(
        { found.value.iommufd } == IOMMUFD.0,
        "that is no device's state: {:?}",
        found.value
    );
    Ok(found)
}

/// The device's state is not what it was; its own file fails, and nothing else.
fn wrong(
    context: &mut Context<'_>,
    (session, number): (&str, usize),
    expected: Errno,
    words: &[&str],
    change: fn(&mut VfioDevice),
) -> Result<()> {
    let pci = nvme(number)?;
    let memory = Memory::open()?;
    let mut state = wire(&memory, &pci)?;
    change(&mut state.value);
    memory.put(&state)?;
    let address = { state.value.address }.to_string();
    load(context)?;
    let mut log = Reader::from_now()?;
    let session = retrieve(session)?;
    let result = session.retrieve(DEVICE);
    expect_errno("the device", result, expected)?;
    expect_message(&mut log, &[&[&*address], words].concat())?;
    let vmm = Vmm::retrieve(&session)?;
    let result = session.retrieve(DEVICE);
    expect_errno("again", result, expected)?;
    expect_eq("another IOAS", vmm.iommufd.alloc_ioas(), Ok(2))?;
    finish(session)?;
    expect_reset(&pci)
}

/// One of them gets it, and nobody takes it away again.
fn mine_after(context: &mut Context<'_>) -> Result<()> {
    let memory = Memory::open()?;
    let mut state = wire(&memory, &nvme(15)?)?;
    state.value.address = nvme(14)?.address()?;
    memory.put(&state)?;
    load(context)?;
    let session = retrieve("mine")?;
    let device = retrieve_device(&session)?;
    let other = retrieve("mine-too")?;
    let result = other.retrieve(DEVICE);
    expect_errno("the same device", result, Errno::STALE)?;
    finish(other)?;
    let vmm = Vmm::retrieve(&session)?;
    vmm.take(&device)?;
    let mut nvme = vmm.nvme(device, 1)?;
    expect_eq("on", nvme.is_on()?, true)?;
    expect_serial(&mut nvme)?;
    finish(session)
}

/// As if the format were another, so that nothing is known of the devices.
fn unreadable_before(context: &mut Context<'_>) -> Result<()> {
    edu_before(context, "unreadable", 0)?;
    let memory = Memory::open()?;
    let mut header = outgoing_header(&memory)?;
    header.value.compatible[5] = b'9';
    memory.put(&header)
}

fn unreadable_after(context: &mut Context<'_>) -> Result<()> {
    let mut log = Reader::from_boot()?;
    expect_message(&mut log, &["luo_pci", "record", "unusable"])?;
    load(context)?;
    let nvme = nvme(0)?;
    expect_eq("its driver", nvme.driver().as_deref(), Some(DRIVER))?;
    let vmm = Vmm::new()?;
    let edu = Device::open_with(&edu(0)?, DRIVER)?;
    let result = edu.bind(&vmm.iommufd);
    expect_errno("without a reset", result, Errno::IO)?;
    // What can be reset can be used.
    drop(vmm.device(&nvme, DRIVER)?);
    nvme.bind("nvme")
}

/// What was reset is free, and nothing else.
fn unreadable_third(context: &mut Context<'_>) -> Result<()> {
    let driver = nvme(0)?.driver();
    expect_eq("its driver", driver.as_deref(), Some("nvme"))?;
    load(context)?;
    expect_out_of_reach(&edu(0)?)
}

/// The record cannot have so many devices. All else is as it should be.
fn count_before(context: &mut Context<'_>) -> Result<()> {
    edu_before(context, "count", 0)?;
    let memory = Memory::open()?;
    let address = edu(0)?.address()?;
    let start = [1_u64.as_bytes(), address.as_bytes(), &[0; 64]].concat();
    let mut count: At<u64> = memory.read(page_with(&memory, &start)?)?;
    count.value = MAX_DEVICES as u64 + 1;
    memory.put(&count)
}

fn count_after(context: &mut Context<'_>) -> Result<()> {
    let mut log = Reader::from_boot()?;
    expect_message(&mut log, &["luo_pci", "record", "unusable"])?;
    load(context)?;
    let session = retrieve("count")?;
    let result = session.retrieve(DEVICE);
    expect_errno("the device", result, Errno::STALE)?;
    let vmm = Vmm::retrieve(&session)?;
    expect_eq("another IOAS", vmm.iommufd.alloc_ioas(), Ok(2))?;
    finish(session)?;
    expect_out_of_reach(&edu(0)?)?;
    let nvme = nvme(0)?;
    expect_eq("its driver", nvme.driver().as_deref(), Some(DRIVER))?;
    expect_reset(&nvme)
}

/// What was not spoilt in the first kernel can be handed over in the second.
fn version_before(context: &mut Context<'_>) -> Result<()> {
    nvme_before(context, "version", 0)?;
    start_spoiling(HOW)
}

/// Spoils the record of devices, in the kernel that hands it over.
pub fn spoil(memory: &Memory, header: &luo::Header) -> Result<()> {
    let flbs: At<luo::FlbHeader> = memory.read(header.flbs_pa)?;
    let first = flbs.pa + size_of_val(&flbs.value) as u64;
    for i in 0..flbs.value.count {
        let mut flb: At<luo::Flb> = memory.read(first + i * size_of::<luo::Flb>() as u64)?;
        if flb.value.name.up_to_nul() == DEVICES_COMPATIBLE.to_bytes() {
            flb.value.name = Text::new(b"luo-pci-v2").context("a name")?;
            return memory.put(&flb);
        }
    }
    bail!("there is no record of devices")
}

fn version_after(context: &mut Context<'_>) -> Result<()> {
    let mut log = Reader::from_boot()?;
    let words = ["luo_pci", "record", "unusable", "EPROTONOSUPPORT"];
    expect_message(&mut log, &words)?;
    let pci = nvme(0)?;
    expect_eq("its driver", pci.driver(), None)?;
    expect_eq("on", nvme::is_on(&pci)?, true)?;
    load(context)?;
    let session = retrieve("version")?;
    let result = session.retrieve(DEVICE);
    expect_errno("the device", result, Errno::STALE)?;
    let vmm = Vmm::retrieve(&session)?;
    expect_eq("another IOAS", vmm.iommufd.alloc_ioas(), Ok(2))?;
    finish(session)?;
    expect_out_of_reach(&edu(0)?)?;
    expect_reset(&pci)
}
