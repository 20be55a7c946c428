// SPDX-License-Identifier: GPL-2.0

//! The device, `/dev/liveupdate`.

use crate::name::SessionName;
use crate::session::{Incoming, Outgoing, Session};
use crate::uapi::{self, NamedSession};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::ioctl::{Opcode, Updater};
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::Path;

/// Where the kernel puts the device.
pub const DEVICE_PATH: &str = "/dev/liveupdate";

/// The open device.
///
/// Only one can be open on a machine at a time. Sessions do not need it any more once they are
/// there: it may be closed, and opened again by somebody else.
#[derive(Debug)]
pub struct Device {
    fd: OwnedFd,
}

impl Device {
    /// Opens [`DEVICE_PATH`].
    ///
    /// The first open in a kernel reads what the previous kernel handed over.
    ///
    /// # Errors
    ///
    /// - [`Errno::NOENT`]: the kernel has no live update, or it is off (`liveupdate=on` and
    ///   `kho=on` on its command line switch it on).
    /// - [`Errno::BUSY`]: it is open already.
    /// - [`Errno::IO`]: what the previous kernel handed over cannot be read. No attempt in this
    ///   boot will go better.
    pub fn open() -> Result<Self, Errno> {
        Self::open_path(Path::new(DEVICE_PATH))
    }

    /// Opens the device where it is not at its usual place.
    pub fn open_path(path: &Path) -> Result<Self, Errno> {
        let fd = rustix::fs::open(path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
        Ok(Self { fd })
    }

    /// Makes a session, for files to be preserved in.
    ///
    /// # Errors
    ///
    /// - [`Errno::EXIST`]: there is one of that name.
    /// - [`Errno::NOMEM`], [`Errno::MFILE`]: out of memory, out of file descriptors.
    pub fn create_session(&self, name: &SessionName) -> Result<Session<Outgoing>, Errno> {
        let fd = self.named::<{ uapi::CREATE_SESSION }>(name)?;
        // SAFETY: the kernel made `fd` a session in reply to CREATE_SESSION.
        Ok(unsafe { Session::from_owned_fd(fd) })
    }

    /// Gets a session that a previous kernel handed over.
    ///
    /// # Errors
    ///
    /// - [`Errno::NOENT`]: none of that name came over.
    /// - [`Errno::INVAL`]: it was retrieved before.
    pub fn retrieve_session(&self, name: &SessionName) -> Result<Session<Incoming>, Errno> {
        let fd = self.named::<{ uapi::RETRIEVE_SESSION }>(name)?;
        // SAFETY: the kernel made `fd` an incoming session in reply to RETRIEVE_SESSION.
        Ok(unsafe { Session::from_owned_fd(fd) })
    }

    fn named<const OPCODE: Opcode>(&self, name: &SessionName) -> Result<OwnedFd, Errno> {
        let mut arg = NamedSession {
            size: uapi::size_field::<NamedSession>(),
            fd: -1,
            name: name.field(),
        };
        // SAFETY: `self.fd` is the device, whose two ioctls read and write one `NamedSession`.
        unsafe { rustix::ioctl::ioctl(&self.fd, Updater::<OPCODE, _>::new(&mut arg))? };
        // SAFETY: the ioctl succeeded, so that `arg.fd` is a new descriptor that is ours alone.
        Ok(unsafe { OwnedFd::from_raw_fd(arg.fd) })
    }
}

impl AsFd for Device {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
