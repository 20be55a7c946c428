// SPDX-License-Identifier: GPL-2.0

//! Sessions, before and after the kexec.

use crate::name::SessionName;
use crate::uapi::{self, SessionFile, SessionFinish, SessionGetName};
use rustix::io::Errno;
use rustix::ioctl::Updater;
use std::fmt;
use std::marker::PhantomData;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

mod sealed {
    pub trait Sealed {}
}

/// On which side of the kexec a session is: [`Outgoing`] or [`Incoming`].
pub trait Phase: sealed::Sealed {}

/// The phase of a session that is going to be handed over.
#[derive(Debug)]
pub enum Outgoing {}

/// The phase of a session that a previous kernel handed over.
#[derive(Debug)]
pub enum Incoming {}

impl sealed::Sealed for Outgoing {}
impl sealed::Sealed for Incoming {}
impl Phase for Outgoing {}
impl Phase for Incoming {}

/// A file's name within its session, any number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Token(pub u64);

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// A named set of files that are kept together across a kexec.
#[derive(Debug)]
pub struct Session<P: Phase> {
    fd: OwnedFd,
    phase: PhantomData<P>,
}

impl<P: Phase> Session<P> {
    /// Takes a session that came from elsewhere: inherited, or sent by another process.
    ///
    /// # Safety
    ///
    /// `fd` is a session of the kernel's live update. If it is in another phase than `P`, the
    /// methods fail with [`Errno::INVAL`], and that is all.
    pub unsafe fn from_owned_fd(fd: OwnedFd) -> Self {
        Self {
            fd,
            phase: PhantomData,
        }
    }

    /// The name that the session was created with.
    pub fn name(&self) -> Result<SessionName, Errno> {
        let mut arg = SessionGetName {
            size: uapi::size_field::<SessionGetName>(),
            reserved: 0,
            name: [0; uapi::SESSION_NAME_LENGTH],
        };
        // SAFETY: `self.fd` is a session, which reads and writes one `SessionGetName`.
        unsafe {
            rustix::ioctl::ioctl(
                &self.fd,
                Updater::<{ uapi::SESSION_GET_NAME }, _>::new(&mut arg),
            )?
        };
        SessionName::from_field(&arg.name).map_err(|_| Errno::PROTO)
    }
}

impl Session<Outgoing> {
    /// Puts a file into the session, to be found again as `token`.
    ///
    /// The file stays usable, within what its handler allows: a memfd's size is fixed from here
    /// on. The kernel keeps a reference of its own, so that `file` may be closed.
    ///
    /// # Errors
    ///
    /// - [`Errno::EXIST`]: the session has that token.
    /// - [`Errno::BUSY`]: some session has that file.
    /// - [`Errno::NOENT`]: no handler takes files of that kind.
    /// - whatever the file's handler answers.
    pub fn preserve(&self, file: impl AsFd, token: Token) -> Result<(), Errno> {
        let mut arg = SessionFile {
            size: uapi::size_field::<SessionFile>(),
            fd: file.as_fd().as_raw_fd(),
            token: token.0,
        };
        // SAFETY: `self.fd` is a session, which reads and writes one `SessionFile`.
        unsafe {
            rustix::ioctl::ioctl(
                &self.fd,
                Updater::<{ uapi::SESSION_PRESERVE_FD }, _>::new(&mut arg),
            )
        }
    }
}

impl Session<Incoming> {
    /// Gets a file back.
    ///
    /// Asking for a token again gives another descriptor of the same file.
    ///
    /// # Errors
    ///
    /// - [`Errno::NOENT`]: the session has no such token.
    /// - whatever the file's handler answers. It is not asked twice: the same error comes back
    ///   from then on.
    pub fn retrieve(&self, token: Token) -> Result<OwnedFd, Errno> {
        let mut arg = SessionFile {
            size: uapi::size_field::<SessionFile>(),
            fd: -1,
            token: token.0,
        };
        // SAFETY: `self.fd` is a session, which reads and writes one `SessionFile`.
        unsafe {
            rustix::ioctl::ioctl(
                &self.fd,
                Updater::<{ uapi::SESSION_RETRIEVE_FD }, _>::new(&mut arg),
            )?
        };
        // SAFETY: the ioctl succeeded, so that `arg.fd` is a new descriptor that is ours alone.
        Ok(unsafe { OwnedFd::from_raw_fd(arg.fd) })
    }

    /// Says that all files that are wanted were retrieved, and gives up the others.
    ///
    /// # Errors
    ///
    /// The error carries the session, with everything still in it. [`Errno::BUSY`]: a file is not
    /// ready to be finished.
    pub fn finish(self) -> Result<(), FinishError> {
        let mut arg = SessionFinish {
            size: uapi::size_field::<SessionFinish>(),
            reserved: 0,
        };
        // SAFETY: `self.fd` is a session, which reads one `SessionFinish`.
        let done = unsafe {
            rustix::ioctl::ioctl(
                &self.fd,
                Updater::<{ uapi::SESSION_FINISH }, _>::new(&mut arg),
            )
        };
        done.map_err(|errno| FinishError {
            session: self,
            errno,
        })
    }
}

impl<P: Phase> AsFd for Session<P> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl<P: Phase> From<Session<P>> for OwnedFd {
    fn from(session: Session<P>) -> OwnedFd {
        session.fd
    }
}

/// A session that could not be finished.
#[derive(Debug)]
pub struct FinishError {
    /// The session, to try again with.
    pub session: Session<Incoming>,
    /// Why not.
    pub errno: Errno,
}

impl fmt::Display for FinishError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the session could not be finished: {}", self.errno)
    }
}

impl std::error::Error for FinishError {}

impl From<FinishError> for Errno {
    fn from(error: FinishError) -> Errno {
        error.errno
    }
}
