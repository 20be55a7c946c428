// SPDX-License-Identifier: GPL-2.0

//! A program that stands in for a VMM: it has a guest's memory, and a device that reaches it.
//!
//! Before the kexec it maps the memory in two address spaces of an iommufd, has the device use
//! both, preserves all and waits for the end. After it, it gets all back, opens the device afresh,
//! attaches it to the address spaces by their old ids and has it go on.

use crate::clock::timed_micros;
use crate::context::device;
use crate::data::{self, Pattern};
use crate::edu::{Edu, PIECE};
use crate::iommufd::{Access, Iommufd, Part};
use crate::kmsg;
use crate::protocol::Event;
use crate::trace;
use crate::vfio::Device;
use anyhow::{Context, Result, bail, ensure};
use liveupdate::{Errno, Incoming, Outgoing, Session, SessionName, Token};
use rustix::fs::SealFlags;
use rustix::process::Signal;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;

/// What of a VMM comes over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept {
    /// Its memory, so that it has to map it again.
    Memory,
    /// Its iommufd as well, with all that is mapped.
    Iommufd,
}

impl Kept {
    /// How the program is told.
    pub fn name(self) -> &'static str {
        match self {
            Kept::Memory => "memory",
            Kept::Iommufd => "iommufd",
        }
    }

    /// How many files that is.
    pub fn files(self) -> u64 {
        match self {
            Kept::Memory => 2,
            Kept::Iommufd => 3,
        }
    }
}

const SESSION: &str = "vm-42";
const RAM: Token = Token(1);
const IOMMUFD: Token = Token(2);
const STATE: Token = Token(3);

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// The guest's memory, and the part of it that lies low, as on a PC.
const RAM_LEN: u64 = 64 * MIB;
const LOW_LEN: u64 = 48 * MIB;
/// Where the rest is.
const HIGH: u64 = 4 * GIB;

/// Where the second address space has the low part again, and the upper half.
const ALIAS: u64 = 8 * GIB;
const HALF: u64 = 16 * GIB;

/// How many address spaces there are, and how many mappings in them.
pub const SPACES: u64 = 2;
pub const MAPPINGS: u64 = 4;

/// The ids of the address spaces.
type Spaces = [u32; SPACES as usize];

/// What the VMM writes down for itself.
#[derive(Serialize, Deserialize)]
struct State {
    spaces: Spaces,
}

/// A place in the guest's memory, by the offset in the file, and how the device reaches it.
#[derive(Clone, Copy)]
struct Place {
    ram: u64,
    iova: [u64; SPACES as usize],
}

impl Place {
    /// A place in the low part.
    const fn low(ram: u64) -> Self {
        Self {
            ram,
            iova: [ram, ALIAS + ram],
        }
    }

    /// A place in the high part.
    const fn high(ram: u64) -> Self {
        Self {
            ram,
            iova: [HIGH + ram - LOW_LEN, HALF + ram - RAM_LEN / 2],
        }
    }
}

/// The places that are copied from and to; the last of them are used in the next kernel.
const PLACES: [Place; 7] = [
    Place::low(MIB),
    Place::high(50 * MIB),
    Place::low(2 * MIB),
    Place::high(51 * MIB),
    Place::low(47 * MIB),
    Place::high(63 * MIB),
    Place::low(3 * MIB),
];

/// Runs it: `save` before the kexec, `restore` after it.
pub fn main(what: &str, kept: &str) -> Result<()> {
    let kept = [Kept::Memory, Kept::Iommufd]
        .into_iter()
        .find(|known| known.name() == kept)
        .with_context(|| format!("a VMM cannot keep {kept}"))?;
    trace::wait_to_be_watched()?;
    match what {
        "save" => save(kept),
        "restore" => restore(kept),
        _ => bail!("a VMM cannot {what}"),
    }
}

/// Does what a VMM does with a new guest, preserves it, and stops.
fn save(kept: Kept) -> Result<()> {
    let ram = data::memfd("guest-ram")?;
    ram.set_len(RAM_LEN)?;
    data::write_pattern(&ram, &mut Pattern::random()?, 0, RAM_LEN)?;
    rustix::fs::fcntl_add_seals(&ram, SealFlags::SHRINK | SealFlags::GROW)?;

    let iommufd = Iommufd::open()?;
    let spaces = map_all(&iommufd, &ram)?;
    let edu = open_edu(&iommufd)?;
    attach(&edu, spaces, 0)?;
    copy(&edu, &ram, spaces, 0, PLACES[0], PLACES[1])?;
    attach(&edu, spaces, 1)?;
    copy(&edu, &ram, spaces, 1, PLACES[1], PLACES[2])?;

    let (device, micros) = timed_micros(device);
    let session = device?.create_session(&SessionName::new(SESSION)?)?;
    kmsg::event(&Event::Opened { micros });
    kmsg::event(&Event::Created {
        session: SESSION.to_owned(),
    });
    preserve_memfd(&session, RAM, "guest-ram", &ram)?;
    if kept == Kept::Iommufd {
        preserve(&session, IOMMUFD, "iommufd", None, &iommufd)?;
    }
    let state = data::memfd("vm-state")?;
    state.write_all_at(&serde_json::to_vec(&State { spaces })?, 0)?;
    preserve_memfd(&session, STATE, "vm-state", &state)?;

    // All stays open until the machine goes down.
    rustix::process::kill_process(rustix::process::getpid(), Signal::STOP)?;
    loop {
        std::thread::park();
    }
}

fn restore(kept: Kept) -> Result<()> {
    let (device, micros) = timed_micros(device);
    let device = device?;
    kmsg::event(&Event::Opened { micros });
    let name = SessionName::new(SESSION)?;
    let (session, micros) = timed_micros(|| device.retrieve_session(&name));
    let session = session.context("retrieving the session")?;
    kmsg::event(&Event::RetrievedSession {
        session: SESSION.to_owned(),
        micros,
    });
    let ram = retrieve_memfd(&session, RAM, "guest-ram")?;
    let state = retrieve_memfd(&session, STATE, "vm-state")?;
    let iommufd = match kept {
        Kept::Iommufd => Iommufd::from(retrieve(&session, IOMMUFD, "iommufd", |_| Ok(None))?),
        Kept::Memory => Iommufd::open()?,
    };
    let (result, micros) = timed_micros(|| session.finish());
    result
        .map_err(Errno::from)
        .context("finishing the session")?;
    kmsg::event(&Event::Finished {
        session: SESSION.to_owned(),
        micros,
    });

    let mut text = vec![0; state.metadata()?.len().try_into()?];
    state.read_exact_at(&mut text, 0)?;
    let spaces = match kept {
        Kept::Iommufd => serde_json::from_slice::<State>(&text)?.spaces,
        Kept::Memory => map_all(&iommufd, &ram)?,
    };
    let edu = open_edu(&iommufd)?;
    attach(&edu, spaces, 0)?;
    for (name, file) in [("guest-ram", &ram), ("vm-state", &state)] {
        kmsg::event(&Event::Checked(data::describe(name, file)?));
    }
    // What the device wrote in the other kernel, it reads in this one; then something new.
    copy(&edu, &ram, spaces, 0, PLACES[1], PLACES[3])?;
    renew(&ram, PLACES[0])?;
    copy(&edu, &ram, spaces, 0, PLACES[0], PLACES[4])?;
    attach(&edu, spaces, 1)?;
    copy(&edu, &ram, spaces, 1, PLACES[2], PLACES[5])?;
    renew(&ram, PLACES[1])?;
    copy(&edu, &ram, spaces, 1, PLACES[1], PLACES[6])
}

/// Maps the guest's memory in two new address spaces.
fn map_all(iommufd: &Iommufd, ram: &File) -> Result<Spaces> {
    let spaces = [iommufd.alloc_ioas()?, iommufd.alloc_ioas()?];
    let parts = [
        (spaces[0], 0, 0, LOW_LEN),
        (spaces[0], HIGH, LOW_LEN, RAM_LEN - LOW_LEN),
        (spaces[1], HALF, RAM_LEN / 2, RAM_LEN / 2),
    ];
    for (ioas, iova, start, len) in parts {
        let part = Part {
            file: ram,
            start,
            len,
        };
        let text = format!("{} MiB of guest-ram", len / MIB);
        let map = || iommufd.map_file(ioas, Some(iova), part, Access::ReadWrite);
        mapped(text, ioas, iova, map)?;
    }
    let text = format!("{} MiB shared with IOAS {}", LOW_LEN / MIB, spaces[0]);
    let from = (spaces[0], 0);
    let copy = || iommufd.copy(from, LOW_LEN, spaces[1], Some(ALIAS), Access::ReadWrite);
    mapped(text, spaces[1], ALIAS, copy)?;
    Ok(spaces)
}

fn mapped(
    part: String,
    ioas: u32,
    iova: u64,
    map: impl FnOnce() -> Result<u64, Errno>,
) -> Result<()> {
    let (result, micros) = timed_micros(map);
    result.with_context(|| format!("mapping {part} at {iova:#x} in IOAS {ioas}"))?;
    kmsg::event(&Event::Mapped {
        part,
        ioas,
        iova,
        micros,
    });
    Ok(())
}

/// Opens the device and binds it to the iommufd.
fn open_edu(iommufd: &Iommufd) -> Result<Edu> {
    let pci = Edu::find()?;
    let (edu, micros) = timed_micros(|| {
        let device = Device::open(&pci)?;
        device.bind(iommufd).context("binding the device")?;
        Edu::new(device)
    });
    let edu = edu?;
    kmsg::event(&Event::Bound {
        device: format!("edu {}", pci.bdf()),
        micros,
    });
    edu.expect_alive(0x1e_d0)?;
    Ok(edu)
}

/// Attaches the device to one of the address spaces.
fn attach(edu: &Edu, spaces: Spaces, space: usize) -> Result<()> {
    let ioas = spaces[space];
    let (result, micros) = timed_micros(|| edu.device().attach(ioas));
    result.with_context(|| format!("attaching edu to IOAS {ioas}"))?;
    kmsg::event(&Event::Attached {
        device: "edu".to_owned(),
        ioas,
        micros,
    });
    Ok(())
}

/// Has the device copy from one place to another, and looks whether it did.
fn copy(edu: &Edu, ram: &File, spaces: Spaces, space: usize, from: Place, to: Place) -> Result<()> {
    let expected = read(ram, from)?;
    ensure!(expected != read(ram, to)?, "there is nothing to copy");
    let (source, target) = (from.iova[space], to.iova[space]);
    let (result, micros) = timed_micros(|| edu.copy(source, target, PIECE));
    result?;
    data::expect_bytes(ram, to.ram, &expected).context("what the device wrote")?;
    kmsg::event(&Event::Copied {
        device: "edu".to_owned(),
        ioas: spaces[space],
        from: source,
        to: target,
        bytes: PIECE,
        micros,
    });
    Ok(())
}

fn read(ram: &File, place: Place) -> Result<Vec<u8>> {
    let mut bytes = vec![0; PIECE as usize];
    ram.read_exact_at(&mut bytes, place.ram)?;
    Ok(bytes)
}

/// Writes something new, as the guest would.
fn renew(ram: &File, place: Place) -> Result<()> {
    data::write_pattern(ram, &mut Pattern::random()?, place.ram, PIECE)
}

fn preserve_memfd(
    session: &Session<Outgoing>,
    token: Token,
    name: &str,
    file: &File,
) -> Result<()> {
    let described = data::describe(name, file)?;
    let bytes = described.bytes;
    kmsg::event(&Event::Filled(described));
    preserve(session, token, name, Some(bytes), file)
}

fn preserve(
    session: &Session<Outgoing>,
    token: Token,
    name: &str,
    bytes: Option<u64>,
    file: &impl AsFd,
) -> Result<()> {
    let (result, micros) = timed_micros(|| session.preserve(file, token));
    result.with_context(|| format!("preserving {name}"))?;
    kmsg::event(&Event::Preserved {
        session: SESSION.to_owned(),
        token: token.0,
        file: name.to_owned(),
        bytes,
        micros,
    });
    Ok(())
}

fn retrieve_memfd(session: &Session<Incoming>, token: Token, name: &str) -> Result<File> {
    let size = |fd: &OwnedFd| Ok(Some(u64::try_from(rustix::fs::fstat(fd)?.st_size)?));
    Ok(data::file(retrieve(session, token, name, size)?))
}

fn retrieve(
    session: &Session<Incoming>,
    token: Token,
    name: &str,
    size: impl FnOnce(&OwnedFd) -> Result<Option<u64>>,
) -> Result<OwnedFd> {
    let (fd, micros) = timed_micros(|| session.retrieve(token));
    let fd = fd.with_context(|| format!("retrieving {name}"))?;
    kmsg::event(&Event::Retrieved {
        session: SESSION.to_owned(),
        token: token.0,
        file: name.to_owned(),
        bytes: size(&fd)?,
        micros,
    });
    Ok(fd)
}
