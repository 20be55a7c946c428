// SPDX-License-Identifier: GPL-2.0

//! KHO's own description of a preserved vmalloc area, format `kho-v4`.
//!
//! The kernel writes and reads these itself. They are here because a handler's state embeds a
//! [`Vmalloc`], and because what another kernel wrote is checked before KHO follows it.
//!
//! C header: [`include/linux/kho/abi/kexec_handover.h`](srctree/include/linux/kho/abi/kexec_handover.h)

use crate::assert_layout;
use zerocopy_derive::{
    FromBytes,
    Immutable,
    IntoBytes,
    KnownLayout,
    Unaligned, //
};

/// A preserved vmalloc area (`struct kho_vmalloc`).
///
/// `first` points to a page that holds the address of the next such page (0 in the last one) and
/// then the addresses of the area's pages, each of `1 << order` pages; a 0 ends the list early.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
    Unaligned,
)]
#[repr(C, packed)]
pub struct Vmalloc {
    /// Physical address of the first page of addresses.
    pub first: u64,
    /// Number of pages in the area.
    pub total_pages: u32,
    /// How the area was allocated.
    pub flags: u16,
    /// Order of each of the area's allocations.
    pub order: u16,
}

assert_layout!(Vmalloc, size 16, first at 0, total_pages at 8, flags at 12, order at 14);
