// SPDX-License-Identifier: GPL-2.0

//! The orchestrator's own state, format `luo-v5`.
//!
//! KHO's subtree [`KHO_ENTRY_NAME`] is a [`Header`]. It points to a block chain of [`Session`]s,
//! and each of those to a block chain of [`File`]s. It also points to one page that begins with an
//! [`FlbHeader`], followed by [`Flb`]s.
//!
//! C header: [`include/linux/kho/abi/luo.h`](srctree/include/linux/kho/abi/luo.h)

use crate::{
    assert_layout,
    Text, //
};
use zerocopy_derive::{
    FromBytes,
    Immutable,
    IntoBytes,
    KnownLayout,
    Unaligned, //
};

/// The name of the KHO subtree that holds the [`Header`].
pub const KHO_ENTRY_NAME: &core::ffi::CStr = c"LUO";

/// Size in bytes of a session name's field, its NUL included.
pub const SESSION_NAME_LEN: usize = 64;

/// Size in bytes of a file handler's or an FLB's compatible string's field, its NUL included.
pub const COMPATIBLE_LEN: usize = 48;

/// A session's name.
pub type SessionName = Text<SESSION_NAME_LEN>;

/// A file handler's or an FLB's compatible string.
pub type Compatible = Text<COMPATIBLE_LEN>;

/// The name by which `modprobe(8)` finds the module of a file handler: `luo:` and the handler's
/// compatible string.
pub type Alias = Text<{ ALIAS_PREFIX.len() + COMPATIBLE_LEN }>;

const ALIAS_PREFIX: &[u8] = b"luo:";

// With its NUL, it has to fit Linux's MODULE_NAME_LEN where that is smallest.
const _: () = assert!(ALIAS_PREFIX.len() + COMPATIBLE_LEN <= 56);

impl Alias {
    /// The alias of a handler; `None` if the compatible string is too long, empty, or has characters
    /// other than ASCII letters, digits, `-`, `_`, `.`, `,` and `+`, which might mean something to
    /// somebody on its way through userspace.
    pub const fn new_for(compatible: &[u8]) -> Option<Self> {
        if compatible.is_empty() || compatible.len() >= COMPATIBLE_LEN {
            return None;
        }
        let mut alias = [0; ALIAS_PREFIX.len() + COMPATIBLE_LEN];
        let mut i = 0;
        while i < ALIAS_PREFIX.len() {
            alias[i] = ALIAS_PREFIX[i];
            i += 1;
        }
        let mut i = 0;
        while i < compatible.len() {
            let byte = compatible[i];
            if !byte.is_ascii_alphanumeric() && !matches!(byte, b'-' | b'_' | b'.' | b',' | b'+') {
                return None;
            }
            alias[ALIAS_PREFIX.len() + i] = byte;
            i += 1;
        }
        Some(Text::from_bytes(alias))
    }
}

/// The root of everything that is handed over (`struct luo_ser`).
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C, packed)]
pub struct Header {
    /// [`Header::COMPATIBLE`].
    pub compatible: [u8; 8],
    /// How many live updates led to the kernel that reads this.
    pub liveupdate_num: u64,
    /// Physical address of the first block of [`Session`]s, 0 if there is no session.
    pub sessions_pa: u64,
    /// Physical address of the page with the [`FlbHeader`].
    pub flbs_pa: u64,
}

assert_layout!(
    Header, size 32,
    compatible at 0, liveupdate_num at 8, sessions_pa at 16, flbs_pa at 24,
);

impl Header {
    /// The version of this format.
    pub const COMPATIBLE: [u8; 8] = *b"luo-v5\0\0";
}

/// One preserved file (`struct luo_file_ser`).
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C, packed)]
pub struct File {
    /// Names the handler that has to restore the file.
    pub compatible: Compatible,
    /// The handler's own; for most the physical address of its state.
    pub data: u64,
    /// The name that userspace gave the file within its session.
    pub token: u64,
}

assert_layout!(File, size 64, compatible at 0, data at 48, token at 56);

/// One session (`struct luo_session_ser` with its `struct luo_file_set_ser`).
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C, packed)]
pub struct Session {
    /// The name, unique among the sessions that are handed over.
    pub name: SessionName,
    /// Physical address of the first block of [`File`]s, 0 if there is no file.
    pub files_pa: u64,
    /// Number of files in all blocks.
    pub file_count: u64,
}

assert_layout!(Session, size 80, name at 0, files_pa at 64, file_count at 72);

/// What the page of FLBs begins with (`struct luo_flb_header_ser`).
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C, packed)]
pub struct FlbHeader {
    /// Number of pages, this one included.
    pub page_count: u64,
    /// Number of [`Flb`]s that follow.
    pub count: u64,
}

assert_layout!(FlbHeader, size 16, page_count at 0, count at 8);

/// One file-lifecycle-bound object (`struct luo_flb_ser`).
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C, packed)]
pub struct Flb {
    /// The object's compatible string.
    pub name: Compatible,
    /// The object's own handle.
    pub data: u64,
    /// Number of preserved files that depend on the object.
    pub count: u64,
}

assert_layout!(Flb, size 64, name at 0, data at 48, count at 56);
