// SPDX-License-Identifier: GPL-2.0

//! Block chains: entries of one size in pages that point to each other.
//!
//! A block is one page: a [`Header`], then up to [`entries_per_block`] entries without gaps. The
//! last block's `next` is 0, and no block of a chain should be empty. The C core of Linux 7.3 leaves
//! an empty one behind a full one, however, if it refused one more entry then.
//!
//! C header: [`include/linux/kho/abi/block.h`](srctree/include/linux/kho/abi/block.h)

use crate::assert_layout;
use zerocopy::FromBytes;
use zerocopy_derive::{
    FromBytes,
    Immutable,
    IntoBytes,
    KnownLayout,
    Unaligned, //
};

/// The most blocks that a chain may have, as in the C code; a longer one is taken for a cycle.
pub const MAX_BLOCKS: usize = 10_000;

/// What a block begins with (`struct kho_block_header_ser`).
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
pub struct Header {
    /// Physical address of the next block, 0 in the last one.
    pub next: u64,
    /// Number of entries that follow.
    pub count: u64,
}

assert_layout!(Header, size 16, next at 0, count at 8);

/// A block does not hold what its header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadBlock {
    /// Fewer bytes than a header.
    Truncated,
    /// More entries than fit.
    Count(u64),
}

/// How many entries of type `T` fit a block of `block_size` bytes.
pub const fn entries_per_block<T>(block_size: usize) -> usize {
    match block_size.checked_sub(size_of::<Header>()) {
        Some(room) => room / size_of::<T>(),
        None => 0,
    }
}

/// Splits one block into its header and its entries.
pub fn parse<T: FromBytes>(
    block: &[u8],
) -> Result<(Header, impl Iterator<Item = T> + '_), BadBlock> {
    let (header, entries) = Header::read_from_prefix(block).map_err(|_| BadBlock::Truncated)?;
    let count = match usize::try_from(header.count) {
        Ok(count) if count <= entries_per_block::<T>(block.len()) => count,
        _ => return Err(BadBlock::Count(header.count)),
    };
    // Every chunk has the size of `T`, so `ok()` drops none.
    let entries = entries
        .chunks_exact(size_of::<T>())
        .take(count)
        .filter_map(|entry| T::read_from_bytes(entry).ok());
    Ok((header, entries))
}
