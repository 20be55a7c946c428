// SPDX-License-Identifier: GPL-2.0

//! Block chains: entries of one size in preserved pages that point to each other.
//!
//! The pages for the next kernel are allocated as entries are announced, one by one, so that
//! writing them in the middle of a reboot cannot fail for want of memory.
//!
//! C counterpart: `kernel/liveupdate/kho_block.c`.

use kernel::{
    page::PAGE_SIZE,
    prelude::*, //
};

use core::{
    marker::PhantomData,
    mem::size_of, //
};

use crate::kho::{
    Claimed,
    Preserved, //
};

use luo_abi::block::{
    self,
    Header,
    MAX_BLOCKS, //
};
use zerocopy::{
    FromBytes,
    Immutable,
    IntoBytes, //
};

type Page = [u8; PAGE_SIZE];

/// A chain of blocks for the next kernel, with room for a number of entries of type `T`.
pub(crate) struct BlockSet<T> {
    blocks: KVVec<Preserved<Page>>,
    _entries: PhantomData<T>,
}

impl<T: IntoBytes + Immutable> BlockSet<T> {
    const PER_BLOCK: usize = block::entries_per_block::<T>(PAGE_SIZE);

    /// A set without any block.
    pub(crate) fn new() -> Self {
        const { assert!(Self::PER_BLOCK > 0) };
        Self {
            blocks: KVVec::new(),
            _entries: PhantomData,
        }
    }

    /// Makes room for `count` entries.
    ///
    /// Fails with `ENOMEM`, or with `ENOSPC` if that takes more than [`MAX_BLOCKS`] blocks; then
    /// the set is as it was.
    ///
    /// C counterpart: `kho_block_set_grow()`.
    pub(crate) fn grow(&mut self, count: usize) -> Result {
        let before = self.blocks.len();
        while self.blocks.len() * Self::PER_BLOCK < count {
            if let Err(err) = self.add() {
                self.blocks.truncate(before);
                self.link_last(0);
                return Err(err);
            }
        }
        Ok(())
    }

    fn add(&mut self) -> Result {
        if self.blocks.len() >= MAX_BLOCKS {
            return Err(ENOSPC);
        }
        let block = Preserved::<Page>::zeroed()?;
        let phys = block.phys();
        self.blocks.reserve(1, GFP_KERNEL)?;
        self.link_last(phys);
        Ok(self.blocks.push(block, GFP_KERNEL)?)
    }

    /// Frees the blocks that `count` entries do not need.
    ///
    /// C counterpart: `kho_block_set_shrink()`.
    pub(crate) fn shrink(&mut self, count: usize) {
        let needed = count.div_ceil(Self::PER_BLOCK);
        if needed < self.blocks.len() {
            self.blocks.truncate(needed);
            self.link_last(0);
        }
    }

    fn link_last(&mut self, next: u64) {
        if let Some((header, _)) = self.blocks.last_mut().and_then(|block| split(block)) {
            header.next = next;
        }
    }

    /// Writes the entry at `index`; entries are written in ascending order, from 0.
    ///
    /// Fails with `ENOSPC` where no room was made.
    pub(crate) fn write(&mut self, index: usize, entry: &T) -> Result {
        let slot = index % Self::PER_BLOCK;
        let block = self.blocks.get_mut(index / Self::PER_BLOCK).ok_or(ENOSPC)?;
        let (header, entries) = split(block).ok_or(ENOSPC)?;
        let entries = entries.get_mut(slot * size_of::<T>()..).ok_or(ENOSPC)?;
        entry.write_to_prefix(entries).map_err(|_| ENOSPC)?;
        header.count = slot as u64 + 1;
        Ok(())
    }

    /// Physical address of the first block, 0 if there is none.
    pub(crate) fn phys(&self) -> u64 {
        self.blocks.first().map_or(0, Preserved::phys)
    }
}

fn split(block: &mut Page) -> Option<(&mut Header, &mut [u8])> {
    Header::mut_from_prefix(block).ok()
}

/// Reads a chain that the previous kernel wrote and frees it, one block behind the other.
///
/// Fails with `EINVAL` at the first block that is not one, or that is met twice, and with what
/// `each` fails with; the block at hand and those behind it then stay reserved. An empty block is
/// none, but for the one that C may leave at the end, behind a full one.
///
/// C counterpart: `kho_block_set_restore()` and `kho_block_set_it_read_entry()`.
pub(crate) fn read_chain<T: FromBytes>(head: u64, mut each: impl FnMut(T) -> Result) -> Result {
    let mut next = head;
    let mut blocks = 0;
    let mut full = false;
    while next != 0 {
        if blocks == MAX_BLOCKS {
            pr_err!("more than {MAX_BLOCKS} blocks were handed over\n");
            return Err(EINVAL);
        }
        blocks += 1;
        let block = Claimed::<Page>::new(next)
            .inspect_err(|_| pr_err!("no block was handed over at {next:#x}\n"))?;
        match read_block(&block, full, &mut each) {
            Ok(header) => {
                next = header.next;
                full = header.count == block::entries_per_block::<T>(PAGE_SIZE) as u64;
            }
            Err(err) => {
                block.leak();
                return Err(err);
            }
        }
    }
    Ok(())
}

fn read_block<T: FromBytes>(
    block: &Page,
    behind_full: bool,
    each: &mut impl FnMut(T) -> Result,
) -> Result<Header> {
    let (header, mut entries) = block::parse(block).map_err(|err| {
        pr_err!("a handed over block is broken: {err:?}\n");
        EINVAL
    })?;
    if header.count == 0 && !(behind_full && header.next == 0) {
        pr_err!("a handed over block is empty\n");
        return Err(EINVAL);
    }
    entries.try_for_each(each)?;
    Ok(header)
}

#[cfg(CONFIG_LIVEUPDATE_RUST_KUNIT_TEST)]
#[kunit_tests(luo_block)]
mod tests {
    use super::*;

    type Set = BlockSet<u64>;

    const PER_BLOCK: usize = (PAGE_SIZE - size_of::<Header>()) / size_of::<u64>();

    /// What is in block `index`: the next one's address, and the entries.
    fn parsed(set: &Set, index: usize) -> Result<(u64, KVec<u64>)> {
        let block = set.blocks.get(index).ok_or(ENOENT)?;
        let (header, parsed) = block::parse::<u64>(&block[..]).map_err(|_| EINVAL)?;
        let mut entries = KVec::new();
        for entry in parsed {
            entries.push(entry, GFP_KERNEL)?;
        }
        Ok((header.next, entries))
    }

    #[test]
    fn a_new_set_has_no_block() {
        let mut set = Set::new();
        assert_eq!(set.phys(), 0);
        assert_eq!(set.write(0, &1), Err(ENOSPC));
    }

    #[test]
    fn room_is_made_block_by_block() -> Result {
        let mut set = Set::new();
        set.grow(PER_BLOCK)?;
        assert_eq!(set.blocks.len(), 1);
        set.grow(PER_BLOCK + 1)?;
        assert_eq!(set.blocks.len(), 2);
        set.grow(1)?;
        assert_eq!(set.blocks.len(), 2);
        set.shrink(PER_BLOCK);
        assert_eq!(set.blocks.len(), 1);
        set.shrink(0);
        assert_eq!(set.phys(), 0);
        Ok(())
    }

    #[test]
    fn entries_come_back_in_order() -> Result {
        let count = 2 * PER_BLOCK + 3;
        let mut set = Set::new();
        set.grow(count)?;
        for index in 0..count {
            set.write(index, &(index as u64))?;
        }
        let mut expected = 0;
        for index in 0..3 {
            let (next, entries) = parsed(&set, index)?;
            assert_eq!(next, set.blocks.get(index + 1).map_or(0, Preserved::phys));
            for entry in entries {
                assert_eq!(entry, expected);
                expected += 1;
            }
        }
        assert_eq!(expected, count as u64);
        Ok(())
    }

    #[test]
    fn the_last_block_ends_the_chain_after_shrinking() -> Result {
        let mut set = Set::new();
        set.grow(3 * PER_BLOCK)?;
        set.shrink(1);
        set.write(0, &7)?;
        let (next, entries) = parsed(&set, 0)?;
        assert_eq!(next, 0);
        assert_eq!(entries.as_slice(), &[7u64][..]);
        Ok(())
    }

    #[test]
    fn a_set_has_a_limit() -> Result {
        let mut set = Set::new();
        set.grow(PER_BLOCK)?;
        assert_eq!(set.grow(MAX_BLOCKS * PER_BLOCK + 1), Err(ENOSPC));
        assert_eq!(set.blocks.len(), 1);
        set.write(0, &1)?;
        assert_eq!(parsed(&set, 0)?.0, 0);
        Ok(())
    }

    #[test]
    fn no_address_is_an_empty_chain() {
        assert_eq!(read_chain(0, |_: u64| Err(EINVAL)), Ok(()));
    }

    #[test]
    fn memory_that_was_not_handed_over_is_no_chain() -> Result {
        let page = Preserved::<Page>::zeroed()?;
        for phys in [
            page.phys(),
            page.phys() + 8,
            PAGE_SIZE as u64,
            u64::MAX,
            1 << 62,
        ] {
            assert_eq!(read_chain(phys, |_: u64| Ok(())), Err(EINVAL));
        }
        Ok(())
    }
}
