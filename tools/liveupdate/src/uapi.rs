// SPDX-License-Identifier: GPL-2.0

//! The ioctl numbers and structures of `<linux/liveupdate.h>`.
//!
//! Every structure begins with its own size. A kernel accepts a longer one than it knows if the
//! rest is zero, and a shorter one down to the last field of the first version.

use rustix::ioctl::{Opcode, opcode};

/// The type byte of all ioctls here.
pub const IOCTL_TYPE: u8 = 0xBA;

/// Size in bytes of a session name's field, its NUL included.
pub const SESSION_NAME_LENGTH: usize = 64;

/// On the device: make a session for files to be preserved; takes a [`NamedSession`].
pub const CREATE_SESSION: Opcode = opcode::none(IOCTL_TYPE, 0x00);
/// On the device: get a session of the previous kernel; takes a [`NamedSession`].
pub const RETRIEVE_SESSION: Opcode = opcode::none(IOCTL_TYPE, 0x01);
/// On an outgoing session: preserve a file; takes a [`SessionFile`].
pub const SESSION_PRESERVE_FD: Opcode = opcode::none(IOCTL_TYPE, 0x40);
/// On an incoming session: get a file back; takes a [`SessionFile`].
pub const SESSION_RETRIEVE_FD: Opcode = opcode::none(IOCTL_TYPE, 0x41);
/// On an incoming session: give up what is left in it; takes a [`SessionFinish`].
pub const SESSION_FINISH: Opcode = opcode::none(IOCTL_TYPE, 0x42);
/// On any session: read its name; takes a [`SessionGetName`].
pub const SESSION_GET_NAME: Opcode = opcode::none(IOCTL_TYPE, 0x43);

/// `struct liveupdate_ioctl_create_session` and `struct liveupdate_ioctl_retrieve_session`, which
/// are alike.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct NamedSession {
    /// Size in bytes of this structure.
    pub size: u32,
    /// Out: the session.
    pub fd: i32,
    /// Its name, with a NUL.
    pub name: [u8; SESSION_NAME_LENGTH],
}

/// `struct liveupdate_session_preserve_fd` and `struct liveupdate_session_retrieve_fd`, which are
/// alike.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(8))]
pub struct SessionFile {
    /// Size in bytes of this structure.
    pub size: u32,
    /// The file: in to preserve, out to retrieve.
    pub fd: i32,
    /// The file's name within its session.
    pub token: u64,
}

/// `struct liveupdate_session_finish`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct SessionFinish {
    /// Size in bytes of this structure.
    pub size: u32,
    /// 0.
    pub reserved: u32,
}

/// `struct liveupdate_session_get_name`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct SessionGetName {
    /// Size in bytes of this structure.
    pub size: u32,
    /// 0.
    pub reserved: u32,
    /// Out: the name, with a NUL.
    pub name: [u8; SESSION_NAME_LENGTH],
}

/// The size of `T` as the structures carry it.
pub(crate) const fn size_field<T>() -> u32 {
    let size = size_of::<T>();
    assert!(size < 4096);
    size as u32
}

// What a C compiler makes of the header. A few architectures number the directions of an ioctl
// differently.
#[cfg(not(any(
    target_arch = "mips",
    target_arch = "mips64",
    target_arch = "powerpc",
    target_arch = "powerpc64",
    target_arch = "sparc",
    target_arch = "sparc64",
)))]
const _: () = {
    assert!(CREATE_SESSION == 0xBA00);
    assert!(RETRIEVE_SESSION == 0xBA01);
    assert!(SESSION_PRESERVE_FD == 0xBA40);
    assert!(SESSION_RETRIEVE_FD == 0xBA41);
    assert!(SESSION_FINISH == 0xBA42);
    assert!(SESSION_GET_NAME == 0xBA43);
};
const _: () = {
    assert!(size_of::<NamedSession>() == 72);
    assert!(size_of::<SessionFile>() == 16);
    assert!(align_of::<SessionFile>() == 8);
    assert!(size_of::<SessionFinish>() == 8);
    assert!(size_of::<SessionGetName>() == 72);
};
