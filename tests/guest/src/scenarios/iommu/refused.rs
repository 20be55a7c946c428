// SPDX-License-Identifier: GPL-2.0

//! What of an iommufd cannot be preserved, and that a refusal leaves nothing behind.

use super::{IOMMUFD, IOVA, MEMORY, MIB, Mapped, load, part};
use crate::context::{Context, create, expect_errno, expect_message};
use crate::data::{self, Mapping};
use crate::edu::Edu;
use crate::iommufd::{Access, Iommufd};
use crate::kmsg::Reader;
use crate::registry::{Group, Scenario};
use crate::vfio::Device;
use anyhow::{Context as _, Result};
use liveupdate::{Errno, Outgoing, Session, Token};
use rustix::fs::MemfdFlags;
use std::fs::File;
use std::os::fd::AsFd;

/// The machine has to have an edu.
pub const GROUP: Group = Group {
    name: "iommu-refused",
    scenarios: &[
        Scenario {
            name: "iommufd-before-its-memory-refused",
            stages: &[before_its_memory],
        },
        Scenario {
            name: "iommufd-with-memory-of-another-session-refused",
            stages: &[other_session],
        },
        Scenario {
            name: "iommufd-with-one-memory-of-many-missing-refused",
            stages: &[one_missing],
        },
        Scenario {
            name: "iommufd-with-a-mapping-by-address-refused",
            stages: &[by_address],
        },
        Scenario {
            name: "iommufd-with-other-files-refused",
            stages: &[other_files],
        },
        Scenario {
            name: "iommufd-with-a-page-table-refused",
            stages: &[page_table],
        },
        Scenario {
            name: "iommufd-with-a-fault-queue-refused",
            stages: &[fault_queue],
        },
        Scenario {
            name: "iommufd-as-a-container-refused",
            stages: &[container],
        },
        Scenario {
            name: "iommufd-preserved-twice-refused",
            stages: &[twice],
        },
        Scenario {
            name: "other-files-of-devices-refused",
            stages: &[no_iommufd],
        },
    ],
};

/// Expects that preserving fails, and that the kernel says all of `words` in one line.
fn expect_refused(
    what: &str,
    session: &Session<Outgoing>,
    iommufd: impl AsFd,
    errno: Errno,
    words: &[&str],
) -> Result<()> {
    let mut log = Reader::from_now()?;
    let result = session.preserve(iommufd, IOMMUFD);
    expect_errno(what, result, errno)?;
    expect_message(&mut log, words).with_context(|| what.to_owned())
}

/// Expects that the first mapping and its IOAS are nobody's but ours.
fn expect_free(mapped: &Mapped) -> Result<()> {
    let len = mapped.memory.metadata()?.len();
    mapped.unmap(IOVA, len).context("unmapping it")?;
    mapped.iommufd.unmap_all(mapped.ioas).context("all else")?;
    let destroyed = mapped.iommufd.destroy(mapped.ioas);
    destroyed.context("destroying the IOAS")
}

fn before_its_memory(context: &mut Context<'_>) -> Result<()> {
    let mapped = Mapped::new(context, MIB)?;
    let session = create("wrong-order")?;
    let refuse = || {
        let words = [
            "luo_iommu: token 0x2, IOAS 1, IOVA 0x400000: ",
            "memfd",
            "first",
        ];
        let what = "before its memory";
        expect_refused(what, &session, &mapped.iommufd, Errno::XDEV, &words)
    };
    refuse()?;
    refuse().context("again")?;
    // It can be changed, and be preserved when the order is right.
    mapped.unmap(IOVA, MIB).context("unmapping it")?;
    mapped.map(IOVA, 0, MIB).context("mapping it again")?;
    refuse().context("changed")?;
    mapped.preserve(&session).context("in the right order")?;
    expect_errno("unmapping", mapped.unmap(IOVA, MIB), Errno::BUSY)?;
    drop(session);
    let session = create("wrong-order")?;
    let words = ["IOAS 1, IOVA 0x400000: "];
    let what = "without its memory";
    expect_refused(what, &session, &mapped.iommufd, Errno::XDEV, &words)?;
    expect_free(&mapped)
}

fn other_session(context: &mut Context<'_>) -> Result<()> {
    let mapped = Mapped::new(context, MIB)?;
    let (session, other) = (create("other-a")?, create("other-b")?);
    other.preserve(&mapped.memory, MEMORY)?;
    let words = ["IOAS 1, IOVA 0x400000: ", "same session"];
    let what = "with memory of another session";
    expect_refused(what, &session, &mapped.iommufd, Errno::XDEV, &words)?;
    drop(other);
    mapped.preserve(&session).context("in the same session")?;
    drop(session);
    expect_free(&mapped)
}

fn one_missing(context: &mut Context<'_>) -> Result<()> {
    let mapped = Mapped::new(context, MIB)?;
    let missing = data::memfd_with("missing", 2, MIB)?;
    let second = mapped.iommufd.alloc_ioas()?;
    for (ioas, iova, file) in [
        (1, 0x10_0000, &mapped.memory),
        (second, 0x20_0000, &mapped.memory),
        (second, 0x30_0000, &missing),
        (second, 0x40_0000, &mapped.memory),
    ] {
        let part = part(file, 0, 4096);
        mapped
            .iommufd
            .map_file(ioas, Some(iova), part, Access::Read)?;
    }
    let session = create("one-missing")?;
    session.preserve(&mapped.memory, MEMORY)?;
    let words = ["IOAS 2, IOVA 0x300000: "];
    let what = "with one of two";
    expect_refused(what, &session, &mapped.iommufd, Errno::XDEV, &words)?;
    // What comes before it was looked at already.
    mapped.iommufd.unmap(second, 0x20_0000, 4096)?;
    expect_free(&mapped)?;
    mapped.iommufd.unmap_all(second)?;
    mapped.iommufd.destroy(second)?;
    Ok(session.preserve(&mapped.iommufd, IOMMUFD)?)
}

/// Memory of this process, and of a file that could be preserved.
fn by_address(context: &mut Context<'_>) -> Result<()> {
    let mapped = Mapped::new(context, MIB)?;
    let session = create("by-address")?;
    session.preserve(&mapped.memory, MEMORY)?;
    for memory in [Mapping::anonymous(MIB)?, Mapping::new(&mapped.memory, MIB)?] {
        let iova = Some(0x80_0000);
        mapped.iommufd.map(1, iova, &memory, Access::ReadWrite)?;
        let words = ["IOAS 1, IOVA 0x800000: ", "IOMMU_IOAS_MAP_FILE"];
        let what = "mapped by address";
        expect_refused(what, &session, &mapped.iommufd, Errno::OPNOTSUPP, &words)?;
        mapped.unmap(0x80_0000, MIB).context("unmapping it")?;
    }
    session.preserve(&mapped.iommufd, IOMMUFD)?;
    drop(session);
    expect_free(&mapped)
}

/// A memfd in huge pages, a file with a name, and one that is no memory at all.
fn other_files(context: &mut Context<'_>) -> Result<()> {
    let mapped = Mapped::new(context, MIB)?;
    let session = create("other-files")?;
    session.preserve(&mapped.memory, MEMORY)?;
    let huge = rustix::fs::memfd_create("huge", MemfdFlags::CLOEXEC | MemfdFlags::HUGETLB)?;
    let named = File::create_new("/tmp/named")?;
    named.set_len(MIB)?;
    for (what, file) in [
        ("in huge pages", File::from(huge)),
        ("in a file system", named),
        ("no memory", File::open("/proc/self/status")?),
    ] {
        let part = part(&file, 0, 4096);
        let iova = Some(0x80_0000);
        mapped.iommufd.map_file(1, iova, part, Access::Read)?;
        let words = ["IOAS 1, IOVA 0x800000: ", "no memfd"];
        expect_refused(what, &session, &mapped.iommufd, Errno::OPNOTSUPP, &words)?;
        mapped.unmap(0x80_0000, 4096).context("unmapping it")?;
    }
    session.preserve(&mapped.iommufd, IOMMUFD)?;
    drop(session);
    expect_free(&mapped)
}

fn edu(mapped: &Mapped) -> Result<(Device, u32)> {
    let device = Device::open(&Edu::find()?)?;
    let id = device.bind(&mapped.iommufd).context("binding edu")?;
    Ok((device, id))
}

/// One that was made by hand, and one that comes with a device.
fn page_table(context: &mut Context<'_>) -> Result<()> {
    let mapped = Mapped::new(context, MIB)?;
    let (device, id) = edu(&mapped)?;
    let hwpt = mapped.iommufd.alloc_hwpt(id, 1, 0).context("page table")?;
    let session = create("page-table")?;
    session.preserve(&mapped.memory, MEMORY)?;
    let object = format!("object {hwpt}: ");
    for what in ["with a page table", "attached to it"] {
        let words = ["luo_iommu: token 0x2, ", &object];
        expect_refused(what, &session, &mapped.iommufd, Errno::OPNOTSUPP, &words)?;
        device.attach(hwpt)?;
    }
    device.detach()?;
    mapped.iommufd.destroy(hwpt).context("destroying it")?;
    let own = device.attach(1).context("attaching edu")?;
    session
        .preserve(&mapped.iommufd, IOMMUFD)
        .with_context(|| format!("with page table {own} of a device"))?;
    expect_errno("unmapping", mapped.unmap(IOVA, MIB), Errno::BUSY)?;
    drop(session);
    expect_errno("in use", mapped.iommufd.destroy(1), Errno::BUSY)?;
    device.detach()?;
    expect_free(&mapped)
}

fn fault_queue(context: &mut Context<'_>) -> Result<()> {
    let mapped = Mapped::new(context, MIB)?;
    let (id, queue) = mapped.iommufd.alloc_fault_queue()?;
    let session = create("fault-queue")?;
    session.preserve(&mapped.memory, MEMORY)?;
    let object = format!("object {id}: ");
    let words = ["luo_iommu: token 0x2, ", &object];
    let what = "with a queue of faults";
    expect_refused(what, &session, &mapped.iommufd, Errno::OPNOTSUPP, &words)?;
    drop(queue);
    mapped.iommufd.destroy(id).context("destroying it")?;
    session.preserve(&mapped.iommufd, IOMMUFD)?;
    drop(session);
    expect_free(&mapped)
}

fn container(context: &mut Context<'_>) -> Result<()> {
    let mapped = Mapped::new(context, MIB)?;
    mapped.iommufd.set_vfio_ioas(1)?;
    let session = create("container")?;
    session.preserve(&mapped.memory, MEMORY)?;
    let words = ["luo_iommu: token 0x2, object 1: ", "container"];
    let what = "as a container";
    expect_refused(what, &session, &mapped.iommufd, Errno::OPNOTSUPP, &words)?;
    expect_free(&mapped)?;
    // It went with its IOAS.
    Ok(session.preserve(&mapped.iommufd, IOMMUFD)?)
}

fn twice(context: &mut Context<'_>) -> Result<()> {
    let mapped = Mapped::new(context, MIB)?;
    let (session, other) = (create("twice-a")?, create("twice-b")?);
    mapped.preserve(&session)?;
    let again = session.preserve(&mapped.iommufd, Token(9));
    expect_errno("under another token", again, Errno::BUSY)?;
    let again = other.preserve(&mapped.iommufd, IOMMUFD);
    expect_errno("in another session", again, Errno::BUSY)?;
    let second = session.preserve(Iommufd::open()?, IOMMUFD);
    expect_errno("a token twice", second, Errno::EXIST)?;
    // None of them gave anything back.
    expect_errno("unmapping", mapped.unmap(IOVA, MIB), Errno::BUSY)?;
    drop(session);
    expect_free(&mapped)
}

/// The handler takes nothing but iommufds.
fn no_iommufd(context: &mut Context<'_>) -> Result<()> {
    load(context)?;
    let session = create("no-iommufd")?;
    for path in ["/dev/vfio/vfio", "/dev/null", "/dev/kmsg"] {
        let file = File::options().read(true).write(true).open(path);
        let file = file.with_context(|| format!("opening {path}"))?;
        let result = session.preserve(&file, Token(1));
        expect_errno(path, result, Errno::NOENT)?;
    }
    Ok(())
}
