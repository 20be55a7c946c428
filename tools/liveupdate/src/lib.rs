// SPDX-License-Identifier: GPL-2.0

//! Keeping open files alive across a kexec, from userspace.
//!
//! The kernel's Live Update Orchestrator is driven through `/dev/liveupdate`. One process at a
//! time opens it, as a [`Device`]. Before the update it creates named sessions and puts files into
//! them, each under a token of its own choice; in the next kernel it asks for the sessions by name
//! and for the files by token, and says when it is finished.
//!
//! A session before the kexec and the same session after it can do different things, so they are
//! different types: [`Session<Outgoing>`] preserves, [`Session<Incoming>`] retrieves and finishes.
//! What is closed too early is given up: closing an outgoing session unpreserves its files, so a
//! process keeps its sessions open until the machine reboots.
//!
//! ```no_run
//! use liveupdate::{Device, SessionName, Token};
//!
//! # fn before(memory: std::fs::File) -> Result<(), Box<dyn std::error::Error>> {
//! // Before the kexec.
//! let name = SessionName::new("vm-42")?;
//! let session = Device::open()?.create_session(&name)?;
//! session.preserve(&memory, Token(1))?;
//! // ... load a kernel, and reboot into it with the session still open.
//! # Ok(())
//! # }
//!
//! # fn after() -> Result<(), Box<dyn std::error::Error>> {
//! // In the next kernel.
//! let name = SessionName::new("vm-42")?;
//! let session = Device::open()?.retrieve_session(&name)?;
//! let memory = session.retrieve(Token(1))?;
//! session.finish()?;
//! # Ok(())
//! # }
//! ```
//!
//! C header: `include/uapi/linux/liveupdate.h`

mod device;
mod name;
mod session;
pub mod uapi;

pub use device::{DEVICE_PATH, Device};
pub use name::{BadName, SessionName};
pub use rustix::io::Errno;
pub use session::{FinishError, Incoming, Outgoing, Phase, Session, Token};
