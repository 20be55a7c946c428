// SPDX-License-Identifier: GPL-2.0

//! The ioctls' arguments, and the rules by which they are read and answered.
//!
//! An argument begins with its own size, which userspace fills in. A shorter one than this kernel
//! knows is refused; a longer one is taken if all that is new to this kernel is zero.
//!
//! C header: [`include/uapi/linux/liveupdate.h`](srctree/include/uapi/linux/liveupdate.h)

use kernel::{
    ioctl::{
        _IO,
        _IOC_NR, //
    },
    prelude::*,
    uaccess::{
        UserPtr,
        UserSlice, //
    },
};

use core::mem::size_of;

use crate::bindings;

use luo_abi::luo::SESSION_NAME_LEN;
use zerocopy::{
    FromBytes,
    Immutable,
    IntoBytes, //
};
use zerocopy_derive::{
    FromBytes,
    Immutable,
    IntoBytes, //
};

const fn command(nr: u32) -> u32 {
    _IO(bindings::LIVEUPDATE_IOCTL_TYPE, nr)
}

pub(crate) const CREATE_SESSION: u32 = command(bindings::LIVEUPDATE_CMD_CREATE_SESSION);
pub(crate) const RETRIEVE_SESSION: u32 = command(bindings::LIVEUPDATE_CMD_RETRIEVE_SESSION);

pub(crate) const PRESERVE_FD: u32 = command(bindings::LIVEUPDATE_CMD_SESSION_PRESERVE_FD);
pub(crate) const RETRIEVE_FD: u32 = command(bindings::LIVEUPDATE_CMD_SESSION_RETRIEVE_FD);
pub(crate) const FINISH: u32 = command(bindings::LIVEUPDATE_CMD_SESSION_FINISH);
pub(crate) const GET_NAME: u32 = command(bindings::LIVEUPDATE_CMD_SESSION_GET_NAME);

/// Argument of [`CREATE_SESSION`] and [`RETRIEVE_SESSION`].
#[derive(FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub(crate) struct OpenSession {
    size: u32,
    /// Out: the session's file descriptor.
    pub(crate) fd: i32,
    pub(crate) name: [u8; SESSION_NAME_LEN],
}

/// Argument of [`PRESERVE_FD`], with the descriptor going in, and of [`RETRIEVE_FD`].
#[derive(FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub(crate) struct SessionFd {
    size: u32,
    pub(crate) fd: i32,
    pub(crate) token: u64,
}

/// Argument of [`FINISH`].
#[derive(FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub(crate) struct Finish {
    size: u32,
    /// Must be 0.
    pub(crate) reserved: u32,
}

/// Argument of [`GET_NAME`].
#[derive(FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub(crate) struct GetName {
    size: u32,
    /// Must be 0.
    pub(crate) reserved: u32,
    /// Out: the session's name, padded with zeros.
    pub(crate) name: [u8; SESSION_NAME_LEN],
}

const _: () = {
    assert!(size_of::<OpenSession>() == size_of::<bindings::liveupdate_ioctl_create_session>());
    assert!(size_of::<OpenSession>() == size_of::<bindings::liveupdate_ioctl_retrieve_session>());
    assert!(size_of::<SessionFd>() == size_of::<bindings::liveupdate_session_preserve_fd>());
    assert!(size_of::<SessionFd>() == size_of::<bindings::liveupdate_session_retrieve_fd>());
    assert!(size_of::<Finish>() == size_of::<bindings::liveupdate_session_finish>());
    assert!(size_of::<GetName>() == size_of::<bindings::liveupdate_session_get_name>());
};

/// An ioctl's argument in userspace, of which only the size was read.
pub(crate) struct UserArg {
    pointer: UserPtr,
    size: usize,
}

impl UserArg {
    /// Reads the size that the argument at `address` begins with.
    ///
    /// Fails with `EINVAL` if `command` is not within `numbers`, whatever else it is, and with
    /// `EFAULT`.
    pub(crate) fn new(
        command: u32,
        numbers: core::ops::RangeInclusive<u32>,
        address: usize,
    ) -> Result<Self> {
        if !numbers.contains(&_IOC_NR(command)) {
            return Err(EINVAL);
        }
        let pointer = UserPtr::from_addr(address);
        let mut size = 0u32;
        UserSlice::new(pointer, size_of::<u32>())
            .reader()
            .read_slice(size.as_mut_bytes())?;
        Ok(Self {
            pointer,
            size: size as usize,
        })
    }

    /// Reads the whole argument.
    ///
    /// Errors: `EINVAL`, it is too short; `E2BIG`, it goes on with something else than zeros;
    /// `EFAULT`.
    ///
    /// C counterpart: `copy_struct_from_user()`.
    pub(crate) fn read<T: FromBytes + IntoBytes>(&self) -> Result<T> {
        let rest = self.size.checked_sub(size_of::<T>()).ok_or(EINVAL)?;
        if rest > 0 {
            let rest_pointer = self.pointer.wrapping_byte_add(size_of::<T>());
            // SAFETY: The function accepts any address.
            match unsafe { bindings::check_zeroed_user(rest_pointer.as_const_ptr(), rest) } {
                0 => return Err(E2BIG),
                1 => {}
                errno => return Err(Error::from_errno(errno)),
            }
        }
        let mut argument = T::new_zeroed();
        UserSlice::new(self.pointer, size_of::<T>())
            .reader()
            .read_slice(argument.as_mut_bytes())?;
        Ok(argument)
    }

    /// Writes the argument back. Fails with `EFAULT`.
    pub(crate) fn respond<T: IntoBytes + Immutable>(&self, argument: &T) -> Result {
        UserSlice::new(self.pointer, size_of::<T>())
            .writer()
            .write_slice(argument.as_bytes())
    }
}
