// SPDX-License-Identifier: GPL-2.0

//! An iommufd and what is in it; the unsafe code of this handler.
//!
//! The C side is `glue.c`, which is linked into iommufd.
//!
//! An IOAS is only ever locked by trying, but to give it back: a program can keep the lock for as long
//! as it likes, and whoever preserves its iommufd has the orchestrator's locks.

use kernel::{
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

use core::{
    marker::PhantomData,
    mem::ManuallyDrop,
    ptr::{
        self,
        NonNull, //
    }, //
};

use crate::bindings;

use luo_abi::iommufd::AccountMode;

/// An iommufd, kept open.
///
/// # Invariants
///
/// `ctx` is the context of `file`, which is an iommufd.
#[derive(Clone)]
pub(crate) struct Iommufd {
    file: ARef<File>,
    ctx: NonNull<bindings::iommufd_ctx>,
}

// SAFETY: Contexts and files are bound to no task.
unsafe impl Send for Iommufd {}

/// What an object is to a live update.
pub(crate) enum Object {
    /// An address space.
    Ioas(Ioas),
    /// It comes back when a device is bound and attached again.
    ComesBack,
    /// It would be lost.
    Lost,
}

impl Iommufd {
    /// Fails with `EBADFD` if `file` is not an iommufd.
    pub(crate) fn new(file: ARef<File>) -> Result<Self> {
        // SAFETY: The file is valid.
        let ctx = unsafe { bindings::luo_iommufd_ctx(file.as_ptr()) };
        // INVARIANT: As just found.
        Ok(Self {
            ctx: NonNull::new(ctx).ok_or(EBADFD)?,
            file,
        })
    }

    /// Whether new mappings are accounted to a process, and not to a user.
    pub(crate) fn accounts_process(&self) -> bool {
        // SAFETY: By the type invariant the context is valid.
        unsafe { bindings::luo_iommufd_accounts_process(self.ctx.as_ptr()) }
    }

    /// The IOAS that serves VFIO's container ioctls, if there is one, or 0 if these have a device
    /// without an IOMMU.
    pub(crate) fn container(&self) -> Option<u32> {
        let mut id = 0;
        // SAFETY: By the type invariant the context is valid; `id` is valid for writing.
        let is = unsafe { bindings::luo_iommufd_container(self.ctx.as_ptr(), &mut id) };
        is.then_some(id)
    }

    /// All objects that are ready for use, with their ids, in the order of these. Objects that come
    /// and go meanwhile may be among them.
    pub(crate) fn objects(&self) -> impl Iterator<Item = (u32, Object)> + '_ {
        let mut next = Some(0);
        core::iter::from_fn(move || {
            let mut id = next?;
            let mut ioas = ptr::null_mut();
            // SAFETY: By the type invariant the context is valid; the others are valid for writing.
            let object =
                unsafe { bindings::luo_iommufd_next(self.ctx.as_ptr(), &mut id, &mut ioas) };
            next = id.checked_add(1);
            let object = match object {
                bindings::luo_iommufd_object_LUO_IOMMUFD_NONE => return None,
                bindings::luo_iommufd_object_LUO_IOMMUFD_IOAS => Object::Ioas(Ioas {
                    // INVARIANT: We have just become a user of it.
                    ioas: NonNull::new(ioas)?,
                    _iommufd: self.clone(),
                }),
                bindings::luo_iommufd_object_LUO_IOMMUFD_COMES_BACK => Object::ComesBack,
                _ => Object::Lost,
            };
            Some((id, object))
        })
    }

    /// Has no IOAS made and no process changed until the hold is dropped, by the same task; nothing
    /// if that is just being done.
    pub(crate) fn try_hold(&self) -> Option<IommufdHold> {
        // SAFETY: By the type invariant the context is valid.
        let held = unsafe { bindings::luo_iommufd_hold(self.ctx.as_ptr()) };
        // INVARIANT: As just done.
        held.then(|| IommufdHold(self.clone()))
    }
}

fn account_mode(mode: u8) -> Result<AccountMode> {
    AccountMode::new(mode.into()).ok_or(EOPNOTSUPP)
}

/// An iommufd in which no IOAS is made.
///
/// # Invariants
///
/// It is held, by this value and by the task that made it.
pub(crate) struct IommufdHold(Iommufd);

impl Drop for IommufdHold {
    fn drop(&mut self) {
        // SAFETY: By the type invariant the hold is ours.
        unsafe { bindings::luo_iommufd_unhold(self.0.ctx.as_ptr()) };
    }
}

/// An IOAS that is not destroyed.
///
/// # Invariants
///
/// `ioas` is an object of the iommufd, and this value is one of its users.
pub(crate) struct Ioas {
    ioas: NonNull<bindings::iommufd_ioas>,
    _iommufd: Iommufd,
}

// SAFETY: An IOAS is bound to no task.
unsafe impl Send for Ioas {}

impl Ioas {
    /// Locks its mappings and options, unless somebody else has locked or just uses them.
    pub(crate) fn try_lock(self) -> Option<LockedIoas> {
        // SAFETY: By the type invariant the IOAS is valid.
        let locked = unsafe { bindings::luo_iommufd_ioas_trylock(self.ioas.as_ptr()) };
        // INVARIANT: As just done.
        locked.then(|| LockedIoas {
            ioas: self,
            _not_send: NotThreadSafe,
        })
    }
}

impl Drop for Ioas {
    fn drop(&mut self) {
        // SAFETY: By the type invariant we are one of its users.
        unsafe { bindings::luo_iommufd_ioas_put(self.ioas.as_ptr()) };
    }
}

/// An IOAS whose mappings and options are locked.
///
/// # Invariants
///
/// This task has the lock, through this value.
pub(crate) struct LockedIoas {
    ioas: Ioas,
    _not_send: NotThreadSafe,
}

impl LockedIoas {
    fn as_ptr(&self) -> *mut bindings::iommufd_ioas {
        self.ioas.ioas.as_ptr()
    }

    /// Whether huge pages may be used.
    pub(crate) fn huge_pages(&self) -> bool {
        // SAFETY: By the type invariants the IOAS is valid and locked.
        unsafe { bindings::luo_iommufd_ioas_huge_pages(self.as_ptr()) }
    }

    /// The allowed ranges: the first and the last IOVA of each, in ascending order.
    pub(crate) fn ranges(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        let mut range = ptr::null_mut();
        core::iter::from_fn(move || {
            let (mut start, mut last) = (0, 0);
            // SAFETY: By the type invariants the IOAS is valid and locked, so a range that was
            // found stays.
            range = unsafe {
                bindings::luo_iommufd_next_allowed(self.as_ptr(), range, &mut start, &mut last)
            };
            (!range.is_null()).then_some((start as u64, last as u64))
        })
    }

    fn areas(&self) -> impl Iterator<Item = NonNull<bindings::iopt_area>> + '_ {
        let mut area = ptr::null_mut();
        core::iter::from_fn(move || {
            // SAFETY: By the type invariants the IOAS is valid and locked, so an area that was
            // found stays.
            area = unsafe { bindings::luo_iommufd_next_area(self.as_ptr(), area) };
            NonNull::new(area)
        })
    }

    /// The mappings, each with its IOVA, in the order of these.
    ///
    /// In the place of one there is `EBUSY` if it is just being mapped or unmapped, and `EOPNOTSUPP`
    /// if it is not of a file.
    pub(crate) fn mappings(&self) -> impl Iterator<Item = (u64, Result<Mapping<'_>>)> + '_ {
        self.areas().map(|area| {
            let mut raw = bindings::luo_iommufd_mapping::default();
            // SAFETY: The area was just found in the locked IOAS; `raw` is valid for writing.
            let ret = unsafe { bindings::luo_iommufd_area_mapping(area.as_ptr(), &mut raw) };
            // SAFETY: As long as the lock is borrowed, the area has its pages, and they their file.
            let mapping = to_result(ret).and_then(|()| unsafe { Mapping::new(&raw) });
            (raw.iova as u64, mapping)
        })
    }

    /// Has nobody unmap what is mapped now, and nobody destroy the IOAS, and unlocks it.
    ///
    /// Errors: `ENOMEM`; `EBUSY`, something is just being mapped or unmapped.
    pub(crate) fn pin(self) -> Result<PinnedIoas> {
        let mut areas = KVVec::new();
        for area in self.areas() {
            // SAFETY: The area was just found in the locked IOAS.
            if !unsafe { bindings::luo_iommufd_area_is_settled(area.as_ptr()) } {
                return Err(EBUSY);
            }
            areas.push(area, GFP_KERNEL)?;
        }
        for area in &areas {
            // SAFETY: The area is in the locked IOAS, and settled.
            unsafe { bindings::luo_iommufd_area_pin(area.as_ptr()) };
        }
        // INVARIANT: As just done.
        Ok(PinnedIoas {
            areas,
            ioas: self.unlock(),
        })
    }

    fn unlock(self) -> Ioas {
        // SAFETY: By the type invariant the lock is ours.
        unsafe { bindings::luo_iommufd_ioas_unlock(self.as_ptr()) };
        self.into_ioas()
    }

    /// Turns the lock into a hold, with which mappings can be used but not changed.
    pub(crate) fn hold(self) -> IoasHold {
        // SAFETY: By the type invariants the IOAS is valid and locked by this task.
        unsafe { bindings::luo_iommufd_ioas_hold(self.as_ptr()) };
        // INVARIANT: As just done.
        IoasHold(self.into_ioas())
    }

    /// The IOAS, for whoever has taken care of the lock.
    fn into_ioas(self) -> Ioas {
        let this = ManuallyDrop::new(self);
        // SAFETY: It is moved out of a value that is not used again.
        unsafe { ptr::read(&this.ioas) }
    }
}

impl Drop for LockedIoas {
    fn drop(&mut self) {
        // SAFETY: By the type invariant the lock is ours.
        unsafe { bindings::luo_iommufd_ioas_unlock(self.as_ptr()) };
    }
}

/// An IOAS of which no mapping is changed.
///
/// # Invariants
///
/// It is held, by this value.
pub(crate) struct IoasHold(Ioas);

impl Drop for IoasHold {
    fn drop(&mut self) {
        // SAFETY: By the type invariant the hold is ours.
        unsafe { bindings::luo_iommufd_ioas_unhold(self.0.ioas.as_ptr()) };
    }
}

/// An IOAS in which some mappings are neither unmapped nor split.
///
/// # Invariants
///
/// `areas` are in `ioas` and pinned, once by this value. That keeps them there.
pub(crate) struct PinnedIoas {
    areas: KVVec<NonNull<bindings::iopt_area>>,
    ioas: Ioas,
}

// SAFETY: Areas are bound to no task.
unsafe impl Send for PinnedIoas {}

impl Drop for PinnedIoas {
    fn drop(&mut self) {
        let ioas = self.ioas.ioas.as_ptr();
        // SAFETY: By the type invariants the IOAS is valid, and the areas are in it and pinned.
        unsafe {
            bindings::luo_iommufd_ioas_lock(ioas);
            for area in &self.areas {
                bindings::luo_iommufd_area_unpin(area.as_ptr());
            }
            bindings::luo_iommufd_ioas_unlock(ioas);
        }
    }
}

/// A mapping of a file. All numbers are in bytes.
pub(crate) struct Mapping<'a> {
    pub(crate) iova: u64,
    pub(crate) length: u64,
    /// Where it starts within `pages`.
    pub(crate) start: u64,
    pub(crate) readable: bool,
    pub(crate) writeable: bool,
    pub(crate) pages: MappedPages<'a>,
}

/// What a mapping is of, maybe together with others: whole pages of a file.
pub(crate) struct MappedPages<'a> {
    /// What tells these pages from others.
    pub(crate) id: usize,
    pub(crate) file: &'a File,
    /// Where in the file they start.
    pub(crate) start: u64,
    pub(crate) length: u64,
    pub(crate) writable: bool,
    pub(crate) account_mode: AccountMode,
}

impl Mapping<'_> {
    /// # Safety
    ///
    /// `raw` must describe a mapping that is there for the lifetime of the result.
    unsafe fn new(raw: &bindings::luo_iommufd_mapping) -> Result<Self> {
        Ok(Self {
            iova: raw.iova as u64,
            length: raw.length as u64,
            start: raw.start as u64,
            readable: raw.readable,
            writeable: raw.writeable,
            pages: MappedPages {
                id: raw.pages as usize,
                // SAFETY: The pages have the file as long as they are mapped. No position of it is
                // used here.
                file: unsafe { File::from_raw_file(raw.file.cast()) },
                start: raw.file_start as u64,
                length: raw.file_length as u64,
                writable: raw.pages_writable,
                account_mode: account_mode(raw.account_mode)?,
            },
        })
    }
}

/// Whether a file is a memfd that can be preserved.
pub(crate) fn is_memory(file: &File) -> bool {
    // SAFETY: The file is valid.
    unsafe { bindings::luo_iommufd_is_memory(file.as_ptr()) }
}

/// An iommufd that is not in use yet.
pub(crate) struct NewIommufd(Iommufd);

impl NewIommufd {
    /// Opens one, without any object.
    ///
    /// Errors: `ENOMEM`; `ENFILE`, the system has too many open files.
    pub(crate) fn new(account_process: bool) -> Result<Self> {
        // SAFETY: No requirement.
        let file = from_err_ptr(unsafe { bindings::luo_iommufd_create(account_process) })?;
        // SAFETY: A new file is not null, has one reference and is in nobody's use.
        Iommufd::new(unsafe { ARef::from_raw(NonNull::new_unchecked(file.cast())) }).map(Self)
    }

    /// Makes an IOAS of this id.
    ///
    /// Errors: `ENOMEM`; `EBUSY`, the id is taken.
    pub(crate) fn create_ioas(&self, id: u32) -> Result<NewIoas<'_>> {
        // SAFETY: By its type invariant the context is valid. Nobody else has it yet.
        let ioas = unsafe { bindings::luo_iommufd_ioas_create(self.0.ctx.as_ptr(), id) };
        let ioas = NonNull::new(from_err_ptr(ioas)?).ok_or(ENOMEM)?;
        // INVARIANT: It is new, and the iommufd keeps it.
        Ok(NewIoas {
            ioas,
            _iommufd: PhantomData,
        })
    }

    /// The file, to be used.
    pub(crate) fn into_file(self) -> ARef<File> {
        self.0.file
    }
}

/// An IOAS of an iommufd that is not in use yet.
///
/// # Invariants
///
/// `ioas` is an object of the iommufd, which nobody else can destroy.
pub(crate) struct NewIoas<'a> {
    ioas: NonNull<bindings::iommufd_ioas>,
    _iommufd: PhantomData<&'a NewIommufd>,
}

impl NewIoas<'_> {
    /// Has it never use huge pages.
    pub(crate) fn no_huge_pages(&self) -> Result {
        // SAFETY: By the type invariant the IOAS is valid.
        to_result(unsafe { bindings::luo_iommufd_ioas_no_huge_pages(self.ioas.as_ptr()) })
    }

    /// Adds a range of IOVAs to choose from.
    ///
    /// Errors: `ENOMEM`; `EINVAL`, it overlaps another or is not longer than one byte.
    pub(crate) fn allow(&self, start: u64, last: u64) -> Result {
        let (start, last) = (size(start)?, size(last)?);
        // SAFETY: By the type invariant the IOAS is valid.
        to_result(unsafe { bindings::luo_iommufd_ioas_allow(self.ioas.as_ptr(), start, last) })
    }

    /// Maps a piece of some pages.
    ///
    /// Errors: `ENOMEM`; `EEXIST`, there is a mapping; `EPERM`, the pages are not writable;
    /// `EINVAL`, the pages have no such piece, or it is empty; `EOVERFLOW`, no IOVA is that large.
    pub(crate) fn map(
        &self,
        iova: u64,
        length: u64,
        pages: &Pages,
        start: u64,
        readable: bool,
        writeable: bool,
    ) -> Result {
        let end = start.checked_add(length).ok_or(EINVAL)?;
        if length == 0 || end > pages.length || !(readable || writeable) {
            return Err(EINVAL);
        }
        // SAFETY: By the type invariants the IOAS and the pages are valid. The piece is in them.
        to_result(unsafe {
            bindings::luo_iommufd_ioas_map(
                self.ioas.as_ptr(),
                size(iova)?,
                size(length)?,
                size(start)?,
                readable,
                writeable,
                pages.raw.as_ptr(),
            )
        })
    }
}

fn size(value: u64) -> Result<usize> {
    value.try_into().map_err(|_| EOVERFLOW)
}

/// Whole pages of a file, to be mapped.
///
/// # Invariants
///
/// `raw` has `length` bytes, and a reference to it is ours.
pub(crate) struct Pages {
    raw: NonNull<bindings::iopt_pages>,
    length: u64,
}

impl Pages {
    /// Neither allocates nor pins anything yet. The current process is who is charged for them.
    ///
    /// Whether the file has them shows when they are pinned.
    ///
    /// Errors: `ENOMEM`; `EINVAL`, they are not whole pages, or none.
    pub(crate) fn new(
        file: &File,
        start: u64,
        length: u64,
        writable: bool,
        account_mode: AccountMode,
    ) -> Result<Self> {
        let last = length
            .checked_sub(1)
            .and_then(|last| start.checked_add(last));
        if last.is_none() || (start | length) % PAGE_SIZE as u64 != 0 {
            return Err(EINVAL);
        }
        // SAFETY: The file is valid.
        let raw = from_err_ptr(unsafe {
            bindings::luo_iommufd_pages_create(
                file.as_ptr(),
                size(start)?,
                size(length)?,
                writable,
                account_mode as u8,
            )
        })?;
        // INVARIANT: They were just made with that length and one reference.
        Ok(Self {
            raw: NonNull::new(raw).ok_or(ENOMEM)?,
            length,
        })
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: By the type invariant the reference is ours.
        unsafe { bindings::luo_iommufd_pages_put(self.raw.as_ptr()) };
    }
}
