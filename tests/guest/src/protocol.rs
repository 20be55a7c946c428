// SPDX-License-Identifier: GPL-2.0

//! What process 1 prints, for the runner on the host to read.
//!
//! Every line begins with [`PREFIX`]. Then comes one of
//!
//! - `> NAME`: a stage of a scenario begins;
//! - `ok N - NAME stage S # T ms`, `not ok N - NAME stage S # why`: it is over;
//! - `= JSON`: an [`Event`] of the demonstration or a measurement;
//! - `|KIND TEXT`: a line of a longer text, such as a transcript;
//! - `# TEXT`: a remark for a person.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What all lines of process 1 begin with.
pub const PREFIX: &str = "luo-guest: ";

/// The longest line that the kernel log takes in one piece, with some room for prefixes.
pub const MAX_LINE: usize = 900;

/// Something that happened in the guest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event {
    /// Process 1 runs.
    Init {
        /// Which kernel of the chain.
        stage: usize,
        /// The kernel's release and version.
        kernel: String,
        /// The kernel's command line.
        cmdline: String,
    },
    /// The next kernel is in memory.
    Loaded {
        /// Bytes of kernel and initial file system.
        bytes: u64,
        /// How long it took.
        micros: u64,
    },
    /// The device was opened.
    Opened {
        /// How long it took.
        micros: u64,
    },
    /// A session was created.
    Created {
        /// Its name.
        session: String,
    },
    /// A file is ready to be preserved.
    Filled(File),
    /// A file was preserved.
    Preserved {
        /// Its session.
        session: String,
        /// Its token.
        token: u64,
        /// Its name.
        file: String,
        /// Its size, if it has one.
        bytes: Option<u64>,
        /// How long it took.
        micros: u64,
    },
    /// A file was refused, since another one has to be preserved before it.
    Refused {
        /// Its name.
        file: String,
        /// The other one's.
        before: String,
        /// The error.
        errno: String,
        /// How long it took.
        micros: u64,
    },
    /// What is in a device before the reboot.
    Left(Registers),
    /// `reboot(2)` is called next.
    Reboot,
    /// A session was retrieved.
    RetrievedSession {
        /// Its name.
        session: String,
        /// How long it took.
        micros: u64,
    },
    /// A file was retrieved.
    Retrieved {
        /// Its session.
        session: String,
        /// Its token.
        token: u64,
        /// Its name.
        file: String,
        /// Its size, if it has one.
        bytes: Option<u64>,
        /// How long it took.
        micros: u64,
    },
    /// A session was finished.
    Finished {
        /// Its name.
        session: String,
        /// How long it took.
        micros: u64,
    },
    /// A retrieved file was read.
    Checked(File),
    /// Memory was mapped for devices.
    Mapped {
        /// What part of it.
        part: String,
        /// The id of the address space.
        ioas: u32,
        /// Where it is there.
        iova: u64,
        /// How long it took.
        micros: u64,
    },
    /// A device was opened.
    Open {
        /// The device.
        device: String,
        /// Its driver.
        driver: String,
        /// How long it took.
        micros: u64,
    },
    /// A device was bound to the iommufd.
    Bound {
        /// The device.
        device: String,
        /// How long it took.
        micros: u64,
    },
    /// What was in a device before anything was written to it.
    Found(Registers),
    /// A device was attached.
    Attached {
        /// The device.
        device: String,
        /// The id of the address space.
        ioas: u32,
        /// How long it took.
        micros: u64,
    },
    /// A device copied memory by DMA; what is in memory then is right.
    Copied {
        /// The device.
        device: String,
        /// The id of the address space.
        ioas: u32,
        /// From where, if not from its own buffer.
        from: Option<u64>,
        /// To where, if not to its own buffer.
        to: Option<u64>,
        /// How much.
        bytes: u64,
        /// How long it took.
        micros: u64,
    },
    /// The ioctls of a program, by name, and how many of them mapped memory for devices.
    Ioctls {
        /// All.
        calls: BTreeMap<String, u64>,
        /// Those that map.
        maps: u64,
    },
    /// A number that was measured.
    Measured {
        /// What.
        what: String,
        /// Of how many.
        n: u64,
        /// How long.
        nanos: u64,
    },
}

/// What can be said of a memfd.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct File {
    /// Its name.
    pub file: String,
    /// Its size.
    pub bytes: u64,
    /// Its content's SHA-256, in hexadecimal digits.
    pub sha256: String,
    /// Its position.
    pub position: u64,
    /// Its seals, by name.
    pub seals: String,
}

/// What is in the registers of an edu.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registers {
    /// Its name.
    pub device: String,
    /// What it makes of the number that was written to it last.
    pub liveness: u32,
    /// What it calculated.
    pub factorial: u32,
    /// Its last DMA: from where.
    pub source: u64,
    /// To where.
    pub destination: u64,
    /// How much.
    pub count: u64,
    /// In which direction.
    pub command: u64,
}
