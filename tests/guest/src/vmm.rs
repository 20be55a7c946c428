// SPDX-License-Identifier: GPL-2.0

//! A program that stands in for a VMM: it has a guest's memory, and a device that reaches it.
//!
//! Before the kexec it maps the memory in two address spaces of an iommufd, has the device use
//! both, preserves all and waits for the end. After it, it gets all back, binds the device to the
//! iommufd, attaches it to the address spaces by their old ids and has it go on: with the second
//! half of a copy whose first half was before the kexec.

use crate::clock::timed_micros;
use crate::context::{device, expect_eq, expect_errno};
use crate::data::{self, Pattern};
use crate::edu::{Edu, PIECE};
use crate::errno;
use crate::iommufd::{Access, Iommufd, Part};
use crate::kmsg;
use crate::protocol::{Event, Registers};
use crate::trace;
use crate::vfio::{self, Device};
use anyhow::{Context, Result, bail, ensure};
use liveupdate::{Errno, Incoming, Outgoing, Session, SessionName, Token};
use rustix::fs::SealFlags;
use rustix::process::Signal;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;

/// What of a VMM comes over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kept {
    /// Its memory, so that it has to map it again.
    Memory,
    /// Its iommufd as well, with all that is mapped, so that it has to open its device again.
    Iommufd,
    /// Its device as well, with all that is in it.
    Device,
}

impl Kept {
    const ALL: [Self; 3] = [Self::Memory, Self::Iommufd, Self::Device];

    /// How the program is told.
    pub fn name(self) -> &'static str {
        match self {
            Kept::Memory => "memory",
            Kept::Iommufd => "iommufd",
            Kept::Device => "device",
        }
    }

    /// How many files that is.
    pub fn files(self) -> u64 {
        match self {
            Kept::Memory => 2,
            Kept::Iommufd => 3,
            Kept::Device => 4,
        }
    }

    /// How often a file is refused, since another one comes before it.
    pub fn refusals(self) -> u64 {
        match self {
            Kept::Memory => 0,
            Kept::Iommufd => 1,
            Kept::Device => 2,
        }
    }

    /// The driver that the device has.
    fn driver(self) -> &'static str {
        match self {
            Kept::Memory | Kept::Iommufd => vfio::DRIVER,
            Kept::Device => vfio::KEEPER,
        }
    }
}

const SESSION: &str = "vm-42";
const RAM: Token = Token(1);
const IOMMUFD: Token = Token(2);
const EDU: Token = Token(3);
const STATE: Token = Token(4);

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
    edu: Registers,
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

/// The places that are copied from and to; most of them are used in the next kernel only.
const PLACES: [Place; 7] = [
    Place::low(MIB),
    Place::high(50 * MIB),
    Place::low(2 * MIB),
    Place::high(51 * MIB),
    Place::low(47 * MIB),
    Place::high(63 * MIB),
    Place::low(3 * MIB),
];

/// From where and to where the device copies while the kernel is replaced.
const HALFWAY: (Place, Place) = (Place::low(46 * MIB), Place::high(62 * MIB));

/// Runs it: `save` before the kexec, `restore` after it.
pub fn main(what: &str, kept: &str) -> Result<()> {
    let kept = Kept::ALL
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
    let edu = open_edu(&iommufd, kept.driver())?;
    let guest = Guest { ram, spaces, edu };
    guest.attach(0)?;
    guest.copy(0, PLACES[0], PLACES[1])?;
    guest.attach(1)?;
    guest.copy(1, PLACES[1], PLACES[2])?;
    let Guest { ram, edu, .. } = &guest;
    if kept == Kept::Device {
        // The first half of a copy.
        guest.load(1, HALFWAY.0)?;
        let mut liveness = [0; 4];
        Pattern::random()?.fill(&mut liveness);
        edu.set_liveness(u32::from_le_bytes(liveness))?;
        edu.calculate(12)?;
        kmsg::event(&Event::Left(edu.registers()?));
    }

    let (device, micros) = timed_micros(device);
    let session = device?.create_session(&SessionName::new(SESSION)?)?;
    kmsg::event(&Event::Opened { micros });
    kmsg::event(&Event::Created {
        session: SESSION.to_owned(),
    });
    if kept >= Kept::Iommufd {
        expect_refused(&session, IOMMUFD, "iommufd", "guest-ram", &iommufd)?;
    }
    preserve_memfd(&session, RAM, "guest-ram", ram)?;
    if kept == Kept::Device {
        expect_refused(&session, EDU, "edu", "iommufd", edu.device())?;
    }
    if kept >= Kept::Iommufd {
        preserve(&session, IOMMUFD, "iommufd", None, &iommufd)?;
    }
    if kept == Kept::Device {
        preserve(&session, EDU, "edu", None, edu.device())?;
    }
    let state = data::memfd("vm-state")?;
    let notes = State {
        spaces,
        edu: edu.registers()?,
    };
    state.write_all_at(&serde_json::to_vec(&notes)?, 0)?;
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
    let mut text = vec![0; state.metadata()?.len().try_into()?];
    state.read_exact_at(&mut text, 0)?;
    let notes: State = serde_json::from_slice(&text)?;
    let iommufd = match kept {
        Kept::Memory => Iommufd::open()?,
        _ => Iommufd::from(retrieve(&session, IOMMUFD, "iommufd", |_| Ok(None))?),
    };
    let spaces = match kept {
        Kept::Memory => map_all(&iommufd, &ram)?,
        _ => notes.spaces,
    };
    let edu = match kept {
        Kept::Device => retrieve_edu(&session, &iommufd, &notes.edu)?,
        _ => open_edu(&iommufd, kept.driver())?,
    };
    let guest = Guest { ram, spaces, edu };
    guest.attach(1)?;
    if kept == Kept::Device {
        let on = guest.edu.device().bus_master()?;
        expect_eq("bus mastering of the attached device", on, true)?;
    }
    let (result, micros) = timed_micros(|| session.finish());
    result
        .map_err(Errno::from)
        .context("finishing the session")?;
    kmsg::event(&Event::Finished {
        session: SESSION.to_owned(),
        micros,
    });

    let ram = &guest.ram;
    for (name, file) in [("guest-ram", ram), ("vm-state", &state)] {
        kmsg::event(&Event::Checked(data::describe(name, file)?));
    }
    if kept == Kept::Device {
        // The second half: what the device has had since before the kexec.
        let expected = read(ram, HALFWAY.0)?;
        renew(ram, HALFWAY.0)?;
        guest.store(1, HALFWAY.1, &expected)?;
        guest.edu.expect_alive(0x1e_d0)?;
    }
    // What the device wrote in the other kernel, it reads in this one; then something new.
    guest.copy(1, PLACES[2], PLACES[3])?;
    renew(ram, PLACES[1])?;
    guest.copy(1, PLACES[1], PLACES[4])?;
    guest.attach(0)?;
    guest.copy(0, PLACES[2], PLACES[5])?;
    renew(ram, PLACES[0])?;
    guest.copy(0, PLACES[0], PLACES[6])
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

/// Opens the device with a driver and binds it to the iommufd.
fn open_edu(iommufd: &Iommufd, driver: &str) -> Result<Edu> {
    let pci = Edu::find()?;
    let (device, micros) = timed_micros(|| Device::open_with(&pci, driver));
    let device = device?;
    kmsg::event(&Event::Open {
        device: format!("edu {}", pci.bdf()),
        driver: driver.to_owned(),
        micros,
    });
    bind(&device, iommufd)?;
    let edu = Edu::new(device)?;
    edu.expect_alive(0x1e_d0)?;
    Ok(edu)
}

/// Retrieves the device, binds it to the iommufd and looks whether it is as it was. It is not
/// written to, not even for bus mastering, which comes back when it is attached.
fn retrieve_edu(
    session: &Session<Incoming>,
    iommufd: &Iommufd,
    expected: &Registers,
) -> Result<Edu> {
    let device = Device::from(data::file(retrieve(session, EDU, "edu", |_| Ok(None))?));
    bind(&device, iommufd)?;
    let on = device.bus_master()?;
    expect_eq("bus mastering of the retrieved device", on, false)?;
    let edu = Edu::as_it_is(device)?;
    let registers = edu.registers()?;
    kmsg::event(&Event::Found(registers.clone()));
    expect_eq("the registers of edu", &registers, expected)?;
    Ok(edu)
}

fn bind(edu: &Device, iommufd: &Iommufd) -> Result<()> {
    let (result, micros) = timed_micros(|| edu.bind(iommufd));
    result.context("binding the device")?;
    kmsg::event(&Event::Bound {
        device: "edu".to_owned(),
        micros,
    });
    Ok(())
}

/// The guest: its memory, the address spaces that it is mapped in, and its device.
struct Guest {
    ram: File,
    spaces: Spaces,
    edu: Edu,
}

impl Guest {
    /// Attaches the device to one of the address spaces.
    fn attach(&self, space: usize) -> Result<()> {
        let ioas = self.spaces[space];
        let (result, micros) = timed_micros(|| self.edu.device().attach(ioas));
        result.with_context(|| format!("attaching edu to IOAS {ioas}"))?;
        kmsg::event(&Event::Attached {
            device: "edu".to_owned(),
            ioas,
            micros,
        });
        Ok(())
    }

    /// Has the device copy from one place to another, and looks whether it did.
    fn copy(&self, space: usize, from: Place, to: Place) -> Result<()> {
        let expected = read(&self.ram, from)?;
        ensure!(expected != read(&self.ram, to)?, "there is nothing to copy");
        let (source, target) = (from.iova[space], to.iova[space]);
        let (result, micros) = timed_micros(|| self.edu.copy(source, target, PIECE));
        result?;
        data::expect_bytes(&self.ram, to.ram, &expected).context("what the device wrote")?;
        self.copied(space, Some(source), Some(target), micros);
        Ok(())
    }

    /// Has the device fill its buffer from a place.
    fn load(&self, space: usize, from: Place) -> Result<()> {
        let source = from.iova[space];
        let (result, micros) = timed_micros(|| self.edu.load(source, PIECE));
        result?;
        self.copied(space, Some(source), None, micros);
        Ok(())
    }

    /// Has the device write its buffer to a place, and looks whether that is what was in it.
    fn store(&self, space: usize, to: Place, expected: &[u8]) -> Result<()> {
        ensure!(expected != read(&self.ram, to)?, "there is nothing to copy");
        let target = to.iova[space];
        let (result, micros) = timed_micros(|| self.edu.store(target, PIECE));
        result?;
        data::expect_bytes(&self.ram, to.ram, expected).context("what the device kept")?;
        self.copied(space, None, Some(target), micros);
        Ok(())
    }

    fn copied(&self, space: usize, from: Option<u64>, to: Option<u64>, micros: u64) {
        kmsg::event(&Event::Copied {
            device: "edu".to_owned(),
            ioas: self.spaces[space],
            from,
            to,
            bytes: PIECE,
            micros,
        });
    }
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

/// Expects a file not to be preserved before another one that it needs.
fn expect_refused(
    session: &Session<Outgoing>,
    token: Token,
    name: &str,
    before: &str,
    file: &impl AsFd,
) -> Result<()> {
    let (result, micros) = timed_micros(|| session.preserve(file, token));
    expect_errno(&format!("{name} before {before}"), result, Errno::XDEV)?;
    kmsg::event(&Event::Refused {
        file: name.to_owned(),
        before: before.to_owned(),
        errno: errno::name(Errno::XDEV),
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
