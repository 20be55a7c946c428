// SPDX-License-Identifier: GPL-2.0

//! A memfd, format `memfd-v2`.
//!
//! A file entry's `data` is the physical address of a [`Memfd`]. Its `folios` describe a vmalloc
//! area that is an array of [`Folio`]s, in the order of their indices.
//!
//! C header: [`include/linux/kho/abi/memfd.h`](srctree/include/linux/kho/abi/memfd.h)

use crate::{
    assert_layout,
    kho::Vmalloc, //
};
use core::fmt;
use zerocopy_derive::{
    FromBytes,
    Immutable,
    IntoBytes,
    KnownLayout,
    Unaligned, //
};

/// The handler's compatible string.
pub const COMPATIBLE: &core::ffi::CStr = c"memfd-v2";

/// `fcntl(2)`'s seals that this format may carry: seal, shrink, grow, write, future write, exec.
pub const ALL_SEALS: u32 = 0x1 | 0x2 | 0x4 | 0x8 | 0x10 | 0x20;

/// A file's state (`struct memfd_luo_ser`).
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
pub struct Memfd {
    /// File position in bytes.
    pub pos: u64,
    /// File size in bytes.
    pub size: u64,
    /// Seals, a subset of [`ALL_SEALS`].
    pub seals: u32,
    /// No flag is defined: 0.
    pub flags: u32,
    /// Number of [`Folio`]s; 0 if the file is empty.
    pub nr_folios: u64,
    /// The array of [`Folio`]s; all zero if the file is empty.
    pub folios: Vmalloc,
}

assert_layout!(
    Memfd, size 48,
    pos at 0, size at 8, seals at 16, flags at 20, nr_folios at 24, folios at 32,
);

/// One folio of a file (`struct memfd_luo_folio_ser`).
///
/// In C its first word is two bit-fields: 52 bits of page frame number, 12 bits of flags.
#[derive(Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C, packed)]
pub struct Folio {
    pfn_and_flags: u64,
    /// Index in the file of the folio's first page.
    pub index: u64,
}

assert_layout!(Folio, size 16, pfn_and_flags at 0, index at 8);

impl Folio {
    /// The folio holds what a user wrote: reclaim must not drop it.
    pub const DIRTY: u64 = 1 << 0;
    /// The folio's content is valid; without it, it has to be zeroed before anybody sees it.
    pub const UPTODATE: u64 = 1 << 1;

    const PFN_BITS: u32 = 52;

    /// An entry, or nothing if `pfn` or `flags` does not fit its bits.
    pub const fn new(pfn: u64, flags: u64, index: u64) -> Option<Self> {
        if pfn >> Self::PFN_BITS != 0 || flags >> (64 - Self::PFN_BITS) != 0 {
            return None;
        }
        Some(Self {
            pfn_and_flags: pfn | flags << Self::PFN_BITS,
            index,
        })
    }

    /// Page frame number of the folio's first page; 0 means that the entry is to be skipped.
    pub const fn pfn(&self) -> u64 {
        self.pfn_and_flags & ((1 << Self::PFN_BITS) - 1)
    }

    /// [`Folio::DIRTY`] and [`Folio::UPTODATE`].
    pub const fn flags(&self) -> u64 {
        self.pfn_and_flags >> Self::PFN_BITS
    }
}

impl fmt::Debug for Folio {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let index = self.index;
        f.debug_struct("Folio")
            .field("pfn", &self.pfn())
            .field("flags", &self.flags())
            .field("index", &index)
            .finish()
    }
}
