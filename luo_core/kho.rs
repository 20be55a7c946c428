// SPDX-License-Identifier: GPL-2.0

//! Memory that outlives the kernel: what this one preserves and what the previous one preserved.
//!
//! `Preserved` and [`PreservedArray`] are owned by this kernel and kept by KHO for the next one.
//! [`Claimed`] and [`ClaimedArray`] are what the previous kernel preserved at a physical address:
//! claiming it checks that KHO did preserve it and makes it this kernel's own, once. Memory that is
//! never claimed stays reserved until the machine reboots.
//!
//! A handler's fixed state is taken care of in `handler.rs`. If it has more than fits into that, it
//! keeps a [`PreservedArray`] in its runtime data and the array's descriptor in its state. In the
//! next kernel it makes a [`ClaimedArray`] of the descriptor: to read it in `retrieve`, or only to
//! free it, which dropping it does, when `finish` hands over the state of a file that nobody wanted.
//!
//! C header: [`include/linux/kexec_handover.h`](srctree/include/linux/kexec_handover.h)

use kernel::{
    alloc::flags::__GFP_ZERO,
    error::{
        from_err_ptr,
        to_result, //
    },
    page::PAGE_SIZE,
    prelude::*, //
};

use core::{
    marker::PhantomData,
    mem::{
        align_of,
        size_of, //
    },
    ops::{
        Deref,
        DerefMut, //
    },
    ptr::NonNull, //
};

use crate::bindings;

pub use luo_abi::kho::Vmalloc;
use zerocopy::{
    FromBytes,
    FromZeros,
    Immutable,
    IntoBytes,
    KnownLayout,
    TryFromBytes, //
};
use zerocopy_derive::{
    FromBytes,
    Immutable,
    KnownLayout, //
};

/// The physical address of a subtree that the previous kernel added, and its size in bytes.
///
/// `None` if there was no previous kernel or it added no such subtree.
///
/// C counterpart: `kho_retrieve_subtree()`.
pub(crate) fn incoming_subtree(name: &CStr) -> Result<Option<(u64, usize)>> {
    let mut phys = 0;
    let mut size = 0;
    // SAFETY: `name` is a C string, and both results are valid for writing.
    let ret = unsafe { bindings::kho_retrieve_subtree(name.as_char_ptr(), &mut phys, &mut size) };
    match to_result(ret) {
        Ok(()) => Ok(Some((phys, size))),
        Err(ENOENT) => Ok(None),
        Err(err) => Err(err),
    }
}

/// Claims what the previous kernel added under `name`, if it added anything.
///
/// Fails with `EINVAL` if it is too short, or as [`ClaimedArray::new`] does; not a valid `T` is freed.
///
/// # Safety
///
/// Nobody else may use what was added under that name.
pub unsafe fn claim_subtree<T: TryFromBytes + KnownLayout + Immutable>(
    name: &CStr,
) -> Result<Option<Claimed<T>>> {
    let Some((phys, size)) = incoming_subtree(name)? else {
        return Ok(None);
    };
    if size < size_of::<T>() {
        pr_err!("what was handed over as {name} has only {size} bytes\n");
        return Err(EINVAL);
    }
    Claimed::new(phys).map(Some)
}

/// Whether KHO is there at all; without it nothing can be preserved.
pub(crate) fn is_enabled() -> bool {
    // SAFETY: No requirement.
    unsafe { bindings::kho_is_enabled() }
}

/// Has the next kernel find `blob` under `name`. The caller keeps `blob` until the reboot.
///
/// C counterpart: `kho_add_subtree()`.
pub(crate) fn add_subtree<T>(name: &CStr, blob: &Preserved<T>) -> Result {
    let memory = blob.0.as_ptr().cast();
    // SAFETY: `name` is a C string, and `memory` has the size of `T`.
    to_result(unsafe { bindings::kho_add_subtree(name.as_char_ptr(), memory, size_of::<T>()) })
}

/// Has the next kernel find a value under `name`, which `fill` makes of zeros. This cannot be taken back.
///
/// Fails with `EEXIST` if there is something under that name, and with `ENOMEM`.
///
/// C counterpart: `kho_add_subtree()`.
pub fn leave_subtree<T: FromZeros + IntoBytes>(name: &CStr, fill: impl FnOnce(&mut T)) -> Result {
    let mut blob = Preserved::zeroed()?;
    fill(&mut *blob);
    add_subtree(name, &blob)?;
    core::mem::forget(blob);
    Ok(())
}

/// A value in memory of its own that the next kernel will find at its physical address, or by
/// name if it was left with [`leave_subtree`].
///
/// Dropping it ends the preservation and frees the memory.
///
/// # Invariants
///
/// `0` came from `kho_alloc_preserve()` for the size of `T` and is owned by this value.
pub(crate) struct Preserved<T>(NonNull<T>);

// SAFETY: The value owns its memory, as a box does.
unsafe impl<T: Send> Send for Preserved<T> {}

// SAFETY: As for a box.
unsafe impl<T: Sync> Sync for Preserved<T> {}

impl<T: FromZeros + IntoBytes> Preserved<T> {
    /// Allocates and preserves memory that is all zero. May sleep.
    ///
    /// Fails with `ENOMEM`, or `E2BIG` for what is larger than the buddy allocator's largest block.
    ///
    /// C counterpart: `kho_alloc_preserve()`.
    pub(crate) fn zeroed() -> Result<Self> {
        const {
            assert!(
                size_of::<T>() > 0 && align_of::<T>() <= PAGE_SIZE,
                "a state has a byte at least, and no greater alignment than a page"
            )
        };
        // SAFETY: No requirement.
        let mem = from_err_ptr(unsafe { bindings::kho_alloc_preserve(size_of::<T>()) })?;
        // INVARIANT: Just allocated for `T`. Its zeros are a valid `T`.
        Ok(Self(NonNull::new(mem.cast()).ok_or(ENOMEM)?))
    }
}

impl<T> Preserved<T> {
    /// The physical address to hand over, in bytes and aligned to a page.
    pub(crate) fn phys(&self) -> u64 {
        // SAFETY: The memory is in the linear mapping, as all that KHO allocates.
        unsafe { bindings::luo_virt_to_phys(self.0.as_ptr().cast()) }
    }

    /// Gives up ownership; the value lives on at the returned physical address.
    pub(crate) fn into_phys(self) -> u64 {
        core::mem::ManuallyDrop::new(self).phys()
    }

    /// Takes up ownership again.
    ///
    /// # Safety
    ///
    /// `phys` must come from [`Preserved::into_phys`] of a value of the same type, and nobody may
    /// have taken it up since.
    pub(crate) unsafe fn from_phys(phys: u64) -> Self {
        // SAFETY: The caller guarantees that this is the address of an allocated page.
        let mem = unsafe { bindings::luo_phys_to_virt(phys) };
        // SAFETY: An address in the linear mapping is not null.
        // INVARIANT: The caller passes on what `into_phys` gave up.
        Self(unsafe { NonNull::new_unchecked(mem.cast()) })
    }
}

impl<T> Deref for Preserved<T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: By the type invariant it is ours and a valid `T`.
        unsafe { self.0.as_ref() }
    }
}

impl<T> DerefMut for Preserved<T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: By the type invariant it is ours and a valid `T`.
        unsafe { self.0.as_mut() }
    }
}

impl<T> Drop for Preserved<T> {
    fn drop(&mut self) {
        // SAFETY: By the type invariant it came from `kho_alloc_preserve()` and is freed once.
        unsafe { bindings::kho_unpreserve_free(self.0.as_ptr().cast()) };
    }
}

/// An array of any length that the next kernel will find through [`PreservedArray::descriptor`].
///
/// Dropping it ends the preservation and frees the memory.
pub struct PreservedArray<T> {
    // Field order: the preservation ends before the memory goes.
    vmalloc: PreservedVmalloc,
    entries: VVec<T>,
}

/// # Invariants
///
/// KHO preserves the area that `0` describes, until the value is dropped.
struct PreservedVmalloc(bindings::kho_vmalloc);

// SAFETY: It is a description by physical addresses, bound to no task.
unsafe impl Send for PreservedVmalloc {}

// SAFETY: As above, and shared references allow reading only.
unsafe impl Sync for PreservedVmalloc {}

impl<T: FromBytes + IntoBytes + Clone> PreservedArray<T> {
    /// Allocates and preserves `len` entries that are all zero. May sleep.
    ///
    /// `len` must not be 0. All of the last page is zero too. Fails with `ENOMEM`. An entry's size
    /// has to divide that of a page, or the next kernel could not read the array.
    ///
    /// C counterpart: `vcalloc()` and `kho_preserve_vmalloc()`.
    pub fn zeroed(len: usize) -> Result<Self> {
        const { assert_fills_page::<T>() };
        let entries = VVec::from_elem(T::new_zeroed(), len, GFP_KERNEL | __GFP_ZERO)?;
        let mut raw = bindings::kho_vmalloc::default();
        let mem = entries.as_ptr().cast_mut().cast();
        // SAFETY: `mem` is a live vmalloc area, and `raw` is valid for writing.
        to_result(unsafe { bindings::kho_preserve_vmalloc(mem, &mut raw) })?;
        Ok(Self {
            // INVARIANT: Just preserved.
            vmalloc: PreservedVmalloc(raw),
            entries,
        })
    }
}

impl<T> PreservedArray<T> {
    /// What a handler stores in its state for the next kernel.
    pub fn descriptor(&self) -> Vmalloc {
        let raw = &self.vmalloc.0;
        Vmalloc {
            // SAFETY: KHO stored the physical address; every bit pattern is an integer.
            first: unsafe { *raw.first.phys.as_ref() },
            total_pages: raw.total_pages,
            flags: raw.flags,
            order: raw.order,
        }
    }

    /// The entries.
    pub fn entries(&self) -> &[T] {
        &self.entries
    }

    /// The entries, to fill them in.
    pub fn entries_mut(&mut self) -> &mut [T] {
        &mut self.entries
    }
}

impl Drop for PreservedVmalloc {
    fn drop(&mut self) {
        // SAFETY: By the type invariant the area is preserved, and this happens once.
        unsafe { bindings::kho_unpreserve_vmalloc(&mut self.0) };
    }
}

/// Fails the build if entries of type `T` lie across the border between pages.
const fn assert_fills_page<T>() {
    assert!(
        size_of::<T>() > 0 && PAGE_SIZE % size_of::<T>() == 0,
        "the size of an array's entries has to divide that of a page"
    );
}

/// A folio that the previous kernel preserved, now owned by this one.
///
/// Dropping it gives up one reference to the folio: the last one, unless others were taken.
///
/// # Invariants
///
/// `0` came from `luo_kho_claim()`, and one reference to it is owned by this value.
pub struct ClaimedFolio(NonNull<bindings::folio>);

// SAFETY: A folio is bound to no task.
unsafe impl Send for ClaimedFolio {}

// SAFETY: Shared references only give out the pointer.
unsafe impl Sync for ClaimedFolio {}

impl ClaimedFolio {
    /// Claims the folio at a physical address that the previous kernel handed over.
    ///
    /// Fails with `EINVAL` if KHO did not preserve at least `size` bytes there, or if they were
    /// claimed before. So a wild, a stale or a repeated address does no harm, and a cycle of them
    /// ends.
    ///
    /// C counterpart: `kho_restore_folio()`, which trusts its caller.
    ///
    /// # Safety
    ///
    /// `phys` must be what the previous kernel handed over for this very purpose, or not be the
    /// address of memory that was handed over for another.
    pub unsafe fn new(phys: u64, size: usize) -> Result<Self> {
        // SAFETY: The function accepts any address.
        let folio = unsafe { bindings::luo_kho_claim(phys, size) };
        // INVARIANT: Just claimed, with one reference.
        Ok(Self(NonNull::new(folio).ok_or(EINVAL)?))
    }

    /// The C folio.
    pub fn as_ptr(&self) -> *mut bindings::folio {
        self.0.as_ptr()
    }
}

impl Drop for ClaimedFolio {
    fn drop(&mut self) {
        // SAFETY: By the type invariant the reference is ours.
        unsafe { bindings::luo_folio_put(self.0.as_ptr()) };
    }
}

/// A value that the previous kernel preserved, now owned by this one.
///
/// Dropping it frees the memory.
///
/// # Invariants
///
/// `value` points to the memory of `folio`, which is large enough.
pub struct Claimed<T> {
    value: NonNull<T>,
    folio: ClaimedFolio,
}

// SAFETY: The value owns its memory, as a box does.
unsafe impl<T: Send> Send for Claimed<T> {}

// SAFETY: As for a box.
unsafe impl<T: Sync> Sync for Claimed<T> {}

impl<T: TryFromBytes + KnownLayout + Immutable> Claimed<T> {
    /// Claims the value at a physical address that the previous kernel handed over.
    ///
    /// Fails with `EINVAL` as [`ClaimedFolio::new`] does, and if the bytes are no valid `T`; in that
    /// case they are freed.
    pub(crate) fn new(phys: u64) -> Result<Self> {
        const { assert!(align_of::<T>() <= PAGE_SIZE) };
        // SAFETY: In this crate such addresses come from what was handed over, and a previous kernel
        // that hands over another's is beyond what can be told.
        let folio = unsafe { ClaimedFolio::new(phys, size_of::<T>())? };
        // SAFETY: The folio is valid.
        let mem = unsafe { bindings::luo_folio_address(folio.as_ptr()) };
        let value: NonNull<T> = NonNull::new(mem.cast()).ok_or(EINVAL)?;
        // SAFETY: The folio was claimed for the size of `T`, and nobody else has it.
        let bytes = unsafe { core::slice::from_raw_parts(value.as_ptr().cast(), size_of::<T>()) };
        T::try_ref_from_bytes(bytes).map_err(|_| EINVAL)?;
        // INVARIANT: Claimed for the size of `T`, and found to be valid.
        Ok(Self { value, folio })
    }
}

impl<T> Claimed<T> {
    /// Leaves the memory as it is, allocated and out of anybody's reach.
    pub(crate) fn leak(self) {
        core::mem::forget(self.folio);
    }
}

impl<T> Deref for Claimed<T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: By the type invariant it is ours and a valid `T`.
        unsafe { self.value.as_ref() }
    }
}

/// A page of addresses in the previous kernel's description of a vmalloc area.
#[derive(FromBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Chunk {
    next: u64,
    pages: [u64; PAGE_SIZE / size_of::<u64>() - 1],
}

/// The entries of an array that the previous kernel preserved, read once and in order.
///
/// Memory is claimed page by page as the entries are read, and freed behind them; no second copy
/// and no mapping of the whole array is made. Dropping it frees what was not read. If an address
/// turns out to be wrong, what is behind it stays reserved.
pub struct ClaimedArray<T> {
    /// Entries that are still to come.
    left: usize,
    /// Address of the next chunk.
    next_chunk: u64,
    chunk: Option<Claimed<Chunk>>,
    /// Index of the next page in `chunk`.
    next_page: usize,
    page: Option<Claimed<[u8; PAGE_SIZE]>>,
    /// Offset in bytes of the next entry in `page`.
    offset: usize,
    _entries: PhantomData<T>,
}

impl<T> ClaimedArray<T> {
    const PER_PAGE: usize = PAGE_SIZE / size_of::<T>();

    fn next_page(&mut self) -> Result<Claimed<[u8; PAGE_SIZE]>> {
        let full = match &self.chunk {
            Some(chunk) => self.next_page == chunk.pages.len(),
            None => true,
        };
        if full {
            // Claims the new chunk before the old one is freed.
            let chunk = Claimed::<Chunk>::new(self.next_chunk)?;
            self.next_chunk = chunk.next;
            self.next_page = 0;
            self.chunk = Some(chunk);
        }
        let chunk = self.chunk.as_ref().ok_or(EINVAL)?;
        let phys = *chunk.pages.get(self.next_page).ok_or(EINVAL)?;
        self.next_page += 1;
        Claimed::new(phys)
    }

    /// Forgets what was not claimed yet.
    fn give_up(&mut self) {
        self.left = 0;
        self.next_chunk = 0;
    }
}

impl<T: FromBytes> ClaimedArray<T> {
    /// Prepares to read `len` entries.
    ///
    /// Fails with `EINVAL` if the area cannot hold as many, or was not allocated page by page.
    pub fn new(descriptor: &Vmalloc, len: u64) -> Result<Self> {
        const { assert_fills_page::<T>() };
        let left = usize::try_from(len).map_err(|_| EINVAL)?;
        let pages = left.div_ceil(Self::PER_PAGE);
        if u64::from(descriptor.total_pages) != pages as u64 || descriptor.order != 0 {
            return Err(EINVAL);
        }
        Ok(Self {
            left,
            next_chunk: descriptor.first,
            chunk: None,
            next_page: 0,
            page: None,
            offset: PAGE_SIZE,
            _entries: PhantomData,
        })
    }

    fn next_entry(&mut self) -> Result<T> {
        if self.offset == PAGE_SIZE {
            self.page = Some(self.next_page()?);
            self.offset = 0;
        }
        let end = self.offset + size_of::<T>();
        let page = self.page.as_ref().ok_or(EINVAL)?;
        let entry = page.get(self.offset..end).ok_or(EINVAL)?;
        self.offset = end;
        T::read_from_bytes(entry).map_err(|_| EINVAL)
    }
}

/// After an error there is no further entry.
impl<T: FromBytes> Iterator for ClaimedArray<T> {
    type Item = Result<T>;

    #[inline]
    fn next(&mut self) -> Option<Result<T>> {
        self.left = self.left.checked_sub(1)?;
        Some(self.next_entry().inspect_err(|_| self.give_up()))
    }
}

impl<T> Drop for ClaimedArray<T> {
    fn drop(&mut self) {
        let in_page = (PAGE_SIZE - self.offset) / size_of::<T>();
        for _ in 0..self.left.saturating_sub(in_page).div_ceil(Self::PER_PAGE) {
            if self.next_page().is_err() {
                return;
            }
        }
        // KHO starts a new chunk as soon as one is full, even if nothing comes into it.
        if self.next_chunk != 0 {
            drop(Claimed::<Chunk>::new(self.next_chunk));
        }
    }
}
