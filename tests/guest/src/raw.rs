// SPDX-License-Identifier: GPL-2.0

//! Calls of ioctl(2) as they are, sound or not.

use rustix::io::Errno;
use std::ffi::c_void;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

/// Calls ioctl(2) with any number and any address.
///
/// # Safety
///
/// The kernel may write to as many bytes at `arg` as it takes to be there; that must be memory
/// which nothing else uses, or none at all.
pub unsafe fn ioctl(fd: impl AsFd, command: u32, arg: *mut c_void) -> Result<i32, Errno> {
    let fd = fd.as_fd().as_raw_fd();
    // SAFETY: as the caller promises.
    let result = unsafe { libc::ioctl(fd, command.into(), arg) };
    if result < 0 {
        let error = std::io::Error::last_os_error();
        return Err(Errno::from_io_error(&error).unwrap_or(Errno::NOSYS));
    }
    Ok(result)
}

/// Calls ioctl(2) with a structure, and gives the structure as the kernel left it.
pub fn ioctl_with<T: Copy>(fd: impl AsFd, command: u32, mut arg: T) -> Result<T, Errno> {
    // SAFETY: the ioctls of live update, iommufd and VFIO write no more than the structure that they
    // document, and to where it points; `T` is that or larger.
    unsafe { ioctl(fd, command, (&raw mut arg).cast())? };
    Ok(arg)
}

/// A descriptor that the kernel put into a structure.
///
/// # Safety
///
/// An ioctl that succeeded put it there, and nobody else took it.
pub unsafe fn owned(fd: i32) -> OwnedFd {
    // SAFETY: as the caller promises.
    unsafe { OwnedFd::from_raw_fd(fd) }
}
