// SPDX-License-Identifier: GPL-2.0

//! The parts of `mm/` that a memfd's live update needs; the unsafe code of this handler.
//!
//! C headers: [`include/linux/shmem_fs.h`](srctree/include/linux/shmem_fs.h),
//! [`include/linux/memfd.h`](srctree/include/linux/memfd.h), `mm/internal.h`

use kernel::{
    alloc::flags::__GFP_NOWARN,
    error::{
        from_err_ptr,
        to_result, //
    },
    fs::File,
    page::PAGE_SIZE,
    prelude::*,
    sync::aref::ARef,
    types::NotThreadSafe, //
};

use core::ptr::NonNull;

use crate::bindings;

use luo_abi::memfd::{
    self,
    Folio, //
};
use luo_core::kho::ClaimedFolio;

const SEAL_EXEC: u32 = bindings::F_SEAL_EXEC;

/// What the kernel adds when an executable file is sealed with `F_SEAL_EXEC`.
const EXEC_IMPLIES: u32 = bindings::F_SEAL_SHRINK
    | bindings::F_SEAL_GROW
    | bindings::F_SEAL_WRITE
    | bindings::F_SEAL_FUTURE_WRITE;

const _: () = assert!(memfd::ALL_SEALS == SEAL_EXEC | EXEC_IMPLIES | bindings::F_SEAL_SEAL);

/// Number of pages of a file of `size` bytes.
///
/// Fails with `EFBIG` if they are more than can be pinned: `u32::MAX`, 16 TiB of 4 KiB pages.
pub(crate) fn pages(size: u64) -> Result<u64> {
    let pages = size.div_ceil(PAGE_SIZE as u64);
    if pages > u64::from(u32::MAX) {
        return Err(EFBIG);
    }
    Ok(pages)
}

/// A file in shared memory.
///
/// # Invariants
///
/// `0` is a shmem file.
pub(crate) struct Shmem<F>(F);

impl Shmem<()> {
    /// Whether `file` is a memfd, or as nameless as one. One in huge pages is too, so that it can be
    /// refused with a reason.
    pub(crate) fn is_memfd(file: &File) -> bool {
        let file = file.as_ptr();
        // SAFETY: The file is valid.
        unsafe {
            bindings::luo_memfd_is_anonymous(file)
                && (bindings::luo_memfd_is_shmem(file) || bindings::luo_memfd_is_hugetlb(file))
        }
    }

    /// What all descriptions of one file have in common.
    pub(crate) fn inode_id(file: &File) -> usize {
        // SAFETY: The file is valid, and its inode does not change.
        unsafe { (*file.as_ptr()).f_inode as usize }
    }
}

impl<'a> Shmem<&'a File> {
    /// Fails with `EOPNOTSUPP` if `file` is not in shmem, but in huge pages say.
    pub(crate) fn new(file: &'a File) -> Result<Self> {
        // SAFETY: The file is valid.
        if !unsafe { bindings::luo_memfd_is_shmem(file.as_ptr()) } {
            return Err(EOPNOTSUPP);
        }
        // INVARIANT: As just found.
        Ok(Self(file))
    }

    /// Keeps the size as it is: growing, shrinking and `fallocate(2)` are refused from here on.
    pub(crate) fn freeze_size(&self) -> FrozenSize<'_> {
        let file = self.0.as_ptr();
        // SAFETY: The file is a shmem file; the lock is released when the guard is dropped.
        unsafe {
            bindings::luo_memfd_lock(file);
            bindings::luo_memfd_freeze(file, true);
        }
        FrozenSize {
            file: self.0,
            keep: false,
            _not_send: NotThreadSafe,
        }
    }

    /// Allows changes of the size again.
    pub(crate) fn thaw_size(&self) {
        let file = self.0.as_ptr();
        // SAFETY: The file is a shmem file.
        unsafe {
            bindings::luo_memfd_lock(file);
            bindings::luo_memfd_freeze(file, false);
            bindings::luo_memfd_unlock(file);
        }
    }

    /// Size in bytes.
    pub(crate) fn size(&self) -> u64 {
        // SAFETY: The file is valid. A size is never negative.
        unsafe { bindings::luo_memfd_size(self.0.as_ptr()) as u64 }
    }

    /// File position in bytes.
    pub(crate) fn position(&self) -> u64 {
        // SAFETY: The file is valid. The position may be changing; any of its values will do.
        unsafe { (&raw const (*self.0.as_ptr()).f_pos).read_volatile() as u64 }
    }

    /// The file's seals.
    pub(crate) fn seals(&self) -> Result<u32> {
        // SAFETY: The file is valid.
        let seals = unsafe { bindings::memfd_get_seals(self.0.as_ptr()) };
        to_result(seals)?;
        Ok(seals as u32)
    }

    /// Pins all folios of a file of `size` bytes where they are, allocating those that are missing
    /// and reading in those that are swapped out. `size` is not 0.
    pub(crate) fn pin(&self, size: u64) -> Result<PinnedFolios> {
        let max = u32::try_from(pages(size)?).map_err(|_| EFBIG)?;
        // A size that no machine has memory for is an error, not worth a warning.
        let mut folios = VVec::with_capacity(max as usize, GFP_KERNEL | __GFP_NOWARN)?;
        let mut offset = 0;
        // SAFETY: There is room for `max` pointers, and `offset` is valid for writing.
        let count = unsafe {
            bindings::memfd_pin_folios(
                self.0.as_ptr(),
                0,
                size as i64 - 1,
                folios.as_mut_ptr(),
                max,
                &mut offset,
            )
        };
        let count = usize::try_from(count).map_err(|_| Error::from_errno(count as i32))?;
        // SAFETY: That many pointers were written.
        unsafe { folios.inc_len(count) };
        // INVARIANT: They were just pinned.
        Ok(PinnedFolios { folios, next: 0 })
    }
}

impl Shmem<ARef<File>> {
    /// Makes a new, empty memfd with these seals.
    pub(crate) fn create(seals: u32) -> Result<Self> {
        // To seal an executable file with `F_SEAL_EXEC` adds others. A file without those was not
        // executable, and has to be made so that it is not. With all of them it can be either, and
        // the format does not say which.
        let flags = if seals & SEAL_EXEC != 0 && seals & EXEC_IMPLIES != EXEC_IMPLIES {
            bindings::MFD_NOEXEC_SEAL
        } else {
            bindings::MFD_ALLOW_SEALING
        };
        // SAFETY: The name is a C string.
        let file = from_err_ptr(unsafe { bindings::memfd_alloc_file(c"".as_char_ptr(), flags) })?;
        // SAFETY: A new file is not null, has one reference and is in nobody's use.
        let file: ARef<File> = unsafe { ARef::from_raw(NonNull::new_unchecked(file.cast())) };
        // SAFETY: The file is valid.
        to_result(unsafe { bindings::memfd_add_seals(file.as_ptr(), seals) })?;
        // INVARIANT: A memfd that is not in huge pages is a shmem file.
        Ok(Self(file))
    }

    /// Sets the file position; fails with `EINVAL` if it is beyond the largest there is.
    pub(crate) fn set_position(&self, pos: u64) -> Result {
        let pos = i64::try_from(pos).map_err(|_| EINVAL)?;
        // SAFETY: The file is valid, and nobody else has it yet.
        unsafe { (*self.0.as_ptr()).f_pos = pos };
        Ok(())
    }

    /// Sets the size in bytes, which [`pages`] found small enough.
    pub(crate) fn set_size(&self, size: u64) {
        // SAFETY: The file is valid, and nobody else has it yet.
        unsafe { bindings::luo_memfd_set_size(self.0.as_ptr(), size as i64) };
    }

    /// Puts a folio into the file, where `entry` says; returns how many pages it has.
    ///
    /// Fails with `EINVAL` if it cannot be there, `EEXIST` if another one is, and `ENOMEM` if the
    /// current memory cgroup or the machine is full.
    pub(crate) fn insert(&self, folio: ClaimedFolio, entry: &Folio) -> Result<u64> {
        let flags = entry.flags();
        if flags & !(Folio::UPTODATE | Folio::DIRTY) != 0 {
            return Err(EINVAL);
        }
        // SAFETY: The folio is ours alone, and so is the file.
        let pages = unsafe {
            bindings::luo_memfd_folio_insert(
                self.0.as_ptr(),
                folio.as_ptr(),
                entry.index as usize,
                flags & Folio::UPTODATE != 0,
                flags & Folio::DIRTY != 0,
            )
        };
        u64::try_from(pages).map_err(|_| Error::from_errno(pages as i32))
    }

    /// Counts `pages`, all that were put into the file, as allocated to it. Fails with `ENOSPC` if
    /// that is more than the machine may promise; then the file has to be given up.
    pub(crate) fn account(&self, pages: u64) -> Result {
        // SAFETY: The file is a shmem file.
        to_result(unsafe { bindings::luo_memfd_account(self.0.as_ptr(), pages as isize) })
    }

    /// The file itself.
    pub(crate) fn into_file(self) -> ARef<File> {
        self.0
    }
}

/// A file whose size is kept, under its inode's lock.
#[must_use]
pub(crate) struct FrozenSize<'a> {
    file: &'a File,
    keep: bool,
    _not_send: NotThreadSafe,
}

impl FrozenSize<'_> {
    /// Leaves the size frozen when the lock goes.
    pub(crate) fn keep(mut self) {
        self.keep = true;
    }
}

impl Drop for FrozenSize<'_> {
    fn drop(&mut self) {
        let file = self.file.as_ptr();
        // SAFETY: The file is a shmem file that this task locked and froze.
        unsafe {
            if !self.keep {
                bindings::luo_memfd_freeze(file, false);
            }
            bindings::luo_memfd_unlock(file);
        }
    }
}

/// Folios that are pinned where they are, in the order of their places in the file.
///
/// # Invariants
///
/// All from `next` on are pinned, and the pins are ours.
pub(crate) struct PinnedFolios {
    folios: VVec<*mut bindings::folio>,
    next: usize,
}

impl PinnedFolios {
    /// How many are left.
    pub(crate) fn len(&self) -> usize {
        self.folios.len() - self.next
    }
}

impl Iterator for PinnedFolios {
    type Item = PinnedFolio;

    fn next(&mut self) -> Option<PinnedFolio> {
        let folio = *self.folios.get(self.next)?;
        // INVARIANT: The pin goes with the pointer.
        self.next += 1;
        Some(PinnedFolio(folio))
    }
}

impl Drop for PinnedFolios {
    fn drop(&mut self) {
        self.for_each(drop);
    }
}

/// A pinned folio.
///
/// # Invariants
///
/// `0` is valid and pinned, and the pin is ours.
pub(crate) struct PinnedFolio(*mut bindings::folio);

impl PinnedFolio {
    /// Preserves the folio, which stays pinned until [`unpreserve`].
    pub(crate) fn preserve(self) -> Result<Folio> {
        let mut index = 0;
        // SAFETY: By the type invariant the folio is valid and stays where it is.
        let pfn = unsafe {
            to_result(bindings::kho_preserve_folio(self.0))?;
            bindings::luo_memfd_folio_settle(self.0, &mut index)
        };
        core::mem::forget(self);
        // A physical address has at most 64 bits, so a frame number has at most 52.
        Folio::new(pfn as u64, Folio::DIRTY | Folio::UPTODATE, index as u64).ok_or(EINVAL)
    }
}

impl Drop for PinnedFolio {
    fn drop(&mut self) {
        // SAFETY: By the type invariant the pin is ours.
        unsafe { bindings::unpin_folio(self.0) };
    }
}

/// Takes back [`PinnedFolio::preserve`].
pub(crate) fn unpreserve(entry: &Folio) {
    // SAFETY: The entry was made by `PinnedFolio::preserve`, so the folio is preserved and pinned.
    unsafe {
        let folio = bindings::luo_memfd_pfn_folio(entry.pfn() as usize);
        bindings::kho_unpreserve_folio(folio);
        bindings::unpin_folio(folio);
    }
}

/// Claims the folio of an entry that the previous kernel wrote.
pub(crate) fn claim(entry: &Folio) -> Result<ClaimedFolio> {
    let phys = entry.pfn().checked_mul(PAGE_SIZE as u64).ok_or(EINVAL)?;
    // SAFETY: The address is that of a folio that the previous kernel preserved for this file.
    unsafe { ClaimedFolio::new(phys, PAGE_SIZE) }
}
