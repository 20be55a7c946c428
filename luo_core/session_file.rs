// SPDX-License-Identifier: GPL-2.0

//! The file that stands for a session in a process.
//!
//! Outgoing and incoming sessions have different operations, so each is its own type and has its
//! own `struct file_operations`; what both have in common is here.

use kernel::{
    error::from_err_ptr,
    ffi::{
        c_int,
        c_long,
        c_uint,
        c_ulong, //
    },
    fs::{
        file::{
            flags,
            FileDescriptorReservation, //
        },
        File, //
    },
    prelude::*,
    sync::{
        aref::ARef,
        Arc, //
    },
    types::ForeignOwnable, //
};

use core::{
    marker::PhantomData,
    ptr::NonNull, //
};

use crate::{
    bindings,
    incoming::IncomingSession,
    outgoing::OutgoingSession,
    uapi::{
        self,
        UserArg, //
    }, //
};

use luo_abi::luo::SessionName;

/// What a session of either kind does.
pub(crate) trait Session: Send + Sync + 'static {
    /// The name that userspace gave the session.
    fn name(&self) -> &SessionName;

    /// Carries out a command that only one kind of session knows.
    ///
    /// Fails with `EINVAL` if it is the other kind's.
    fn ioctl(&self, command: u32, arg: &UserArg) -> Result;

    /// Ends the session; its file is gone.
    fn release(&self);
}

impl Session for OutgoingSession {
    fn name(&self) -> &SessionName {
        &self.name
    }

    fn ioctl(&self, command: u32, arg: &UserArg) -> Result {
        if command != uapi::PRESERVE_FD {
            return Err(EINVAL);
        }
        let request: uapi::SessionFd = arg.read()?;
        let _unfrozen = self.luo.serialize.read();
        self.preserve(request.token, request.fd)?;
        arg.respond(&request)
            .inspect_err(|_| pr_warn!("a file was preserved, but the answer did not get through\n"))
    }

    fn release(&self) {
        OutgoingSession::release(self)
    }
}

impl Session for IncomingSession {
    fn name(&self) -> &SessionName {
        &self.name
    }

    fn ioctl(&self, command: u32, arg: &UserArg) -> Result {
        match command {
            uapi::RETRIEVE_FD => {
                let mut request: uapi::SessionFd = arg.read()?;
                self.load_handlers(Some(request.token));
                let _unfrozen = self.luo.serialize.read();
                let fd = FileDescriptorReservation::get_unused_fd_flags(flags::O_CLOEXEC)?;
                let file = self.retrieve_file(request.token)?;
                request.fd = fd.reserved_fd() as i32;
                arg.respond(&request)?;
                fd.fd_install(file);
                Ok(())
            }
            uapi::FINISH => {
                let request: uapi::Finish = arg.read()?;
                if request.reserved != 0 {
                    return Err(EINVAL);
                }
                self.load_handlers(None);
                let _unfrozen = self.luo.serialize.read();
                self.finish()?;
                arg.respond(&request)
            }
            _ => Err(EINVAL),
        }
    }

    fn release(&self) {
        IncomingSession::release(self)
    }
}

/// A session's file that no process has yet. Dropping it leaves the session as it is.
pub(crate) struct PendingFile<S: Session> {
    /// `None` once a process has it.
    file: Option<ARef<File>>,
    _session: PhantomData<Arc<S>>,
}

impl<S: Session> PendingFile<S> {
    /// Makes a file that will release `session` when a process closes it.
    ///
    /// Fails with `ENOMEM` or `ENFILE`.
    ///
    /// C counterpart: `luo_session_getfile()`.
    pub(crate) fn new(session: Arc<S>) -> Result<Self> {
        let mut name = KVec::new();
        name.extend_from_slice(b"[luo_session] ", GFP_KERNEL)?;
        name.extend_from_slice(session.name().up_to_nul(), GFP_KERNEL)?;
        name.push(0, GFP_KERNEL)?;
        let name = CStr::from_bytes_with_nul(&name).map_err(|_| EINVAL)?;
        let session = session.into_foreign();
        // SAFETY: The name is copied, the operations live for ever, and they are for `session`.
        let file = unsafe {
            bindings::anon_inode_getfile(
                name.as_char_ptr(),
                &Self::OPERATIONS,
                session,
                flags::O_RDWR as c_int,
            )
        };
        match from_err_ptr(file) {
            Ok(file) => Ok(Self {
                // SAFETY: A new file is not null and has one reference, which is now ours.
                file: Some(unsafe { ARef::from_raw(NonNull::new_unchecked(file.cast())) }),
                _session: PhantomData,
            }),
            Err(err) => {
                // SAFETY: There is no file that could have taken it.
                drop(unsafe { Arc::<S>::from_foreign(session) });
                Err(err)
            }
        }
    }

    /// Gives the file to the current process.
    pub(crate) fn install(mut self, fd: FileDescriptorReservation) {
        if let Some(file) = self.file.take() {
            fd.fd_install(file);
        }
    }

    const OPERATIONS: bindings::file_operations = bindings::file_operations {
        release: Some(release::<S>),
        unlocked_ioctl: Some(ioctl::<S>),
        #[cfg(CONFIG_COMPAT)]
        compat_ioctl: bindings::compat_ptr_ioctl,
        ..pin_init::zeroed()
    };
}

impl<S: Session> Drop for PendingFile<S> {
    fn drop(&mut self) {
        if let Some(file) = self.file.take() {
            // SAFETY: Nobody but us has the file, and it is for an `S`. Its release, which may come
            // later and from another task, finds no session any more.
            drop(unsafe { take_session::<S>(file.as_ptr()) });
        }
    }
}

/// Takes the session out of a file.
///
/// # Safety
///
/// `file` must have been made by [`PendingFile<S>::new`], and nobody else may be using it.
unsafe fn take_session<S: Session>(file: *mut bindings::file) -> Option<Arc<S>> {
    // SAFETY: The caller guarantees exclusive access.
    let private = unsafe { core::mem::replace(&mut (*file).private_data, core::ptr::null_mut()) };
    // SAFETY: The private data is what `PendingFile::new` put there, or null.
    unsafe { Arc::try_from_foreign(private) }
}

/// # Safety
///
/// Only for the VFS, on a file made by [`PendingFile<S>::new`].
unsafe extern "C" fn release<S: Session>(
    _inode: *mut bindings::inode,
    file: *mut bindings::file,
) -> c_int {
    // SAFETY: The last user of the file is gone.
    if let Some(session) = unsafe { take_session::<S>(file) } {
        session.release();
    }
    0
}

/// # Safety
///
/// Only for the VFS, on a file made by [`PendingFile<S>::new`].
unsafe extern "C" fn ioctl<S: Session>(
    file: *mut bindings::file,
    command: c_uint,
    address: c_ulong,
) -> c_long {
    // SAFETY: A process has the file, so its private data is what `PendingFile::new` put there, and
    // stays until the file's release.
    let session = unsafe { Arc::<S>::borrow((*file).private_data) };
    match execute(&*session, command, address) {
        Ok(()) => 0,
        Err(err) => err.to_errno() as c_long,
    }
}

fn execute<S: Session>(session: &S, command: u32, address: usize) -> Result {
    let numbers = bindings::LIVEUPDATE_CMD_SESSION_BASE..=bindings::LIVEUPDATE_CMD_SESSION_GET_NAME;
    let arg = UserArg::new(command, numbers, address)?;
    match command {
        uapi::GET_NAME => {
            let mut request: uapi::GetName = arg.read()?;
            if request.reserved != 0 {
                return Err(EINVAL);
            }
            request.name = *session.name().field();
            arg.respond(&request)
        }
        uapi::PRESERVE_FD | uapi::RETRIEVE_FD | uapi::FINISH => session.ioctl(command, &arg),
        _ => Err(ENOIOCTLCMD),
    }
}
