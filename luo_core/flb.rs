// SPDX-License-Identifier: GPL-2.0

//! State that several files share, and that is preserved as long as one of them is.
//!
//! [`FileLifecycleBound`] is the typed face of a C `struct liveupdate_flb`. An FLB belongs to the
//! handlers that name it in [`module_liveupdate!`](crate::module_liveupdate): the first of their
//! files that is preserved has it preserved too, the last one that is given up or finished ends it.
//! Code gets at the live object through [`Outgoing`] and [`Incoming`], which count as users.
//!
//! C header: [`include/linux/liveupdate.h`](srctree/include/linux/liveupdate.h)

use kernel::{
    error::to_result,
    ffi::c_int,
    module::this_module,
    prelude::*,
    sync::{
        lock::mutex::MutexGuard,
        static_lock_class,
        LockClassKey,
        Mutex, //
    },
    types::Opaque, //
};

use core::{
    marker::PhantomData,
    ops::{
        Deref,
        DerefMut, //
    },
    ptr::NonNull, //
};

use crate::{
    bindings,
    handler::{
        compatible,
        errno, //
    },
    kho::{
        Claimed,
        Preserved, //
    },
    LUO, //
};

pub use luo_flb::FileLifecycleBound;

/// The C face of an FLB; [`module_liveupdate!`](crate::module_liveupdate) makes a static of it.
#[doc(hidden)]
pub struct Flb<T> {
    raw: Opaque<bindings::liveupdate_flb>,
    _flb: PhantomData<T>,
}

// SAFETY: The orchestrator synchronizes all access to `raw`; there is no `T` in it.
unsafe impl<T> Sync for Flb<T> {}

impl<T: FileLifecycleBound> Flb<T> {
    /// Describes the FLB.
    #[expect(clippy::new_without_default)] // A default is of no use to a static.
    pub const fn new() -> Self {
        let mut raw: bindings::liveupdate_flb = pin_init::zeroed();
        raw.ops = &VTable::<T>::OPS;
        raw.compatible = *compatible(T::COMPATIBLE).field();
        Self {
            raw: Opaque::new(raw),
            _flb: PhantomData,
        }
    }

    /// The C FLB.
    pub(crate) const fn as_ptr(&'static self) -> *mut bindings::liveupdate_flb {
        self.raw.get()
    }
}

/// An FLB that a module has; [`module_liveupdate!`](crate::module_liveupdate) implements it.
pub trait Declared: FileLifecycleBound {
    /// The module's only one of the kind.
    fn flb() -> &'static Flb<Self>;
}

/// The name and the class of the locks of all FLBs' states.
///
/// They are in a function that is not generic, since only functions are exported to modules. Both
/// are the core's: lockdep tells names by their address, and objects to a class that comes with
/// another, as that of the next module would be.
#[inline(never)]
fn state_lock_class() -> (&'static CStr, Pin<&'static LockClassKey>) {
    (c"Flb::state", static_lock_class!())
}

/// The live object of this kernel, and the state from which the next one will make its own.
struct Saved<T: FileLifecycleBound> {
    state: Pin<KBox<Mutex<Preserved<T::State>>>>,
    object: T::Object,
}

/// The live object of the files that this kernel preserves.
///
/// As long as the guard is there, so is the object, even if the last of those files is given up; and
/// the module cannot be unloaded, so it must not be kept in the module's own value.
///
/// # Invariants
///
/// `saved` is what the FLB's `preserve` made, and one use of it belongs to this value.
pub struct Outgoing<T: Declared> {
    saved: NonNull<Saved<T>>,
}

// SAFETY: A shared reference to the object and its mutex may go to any task.
unsafe impl<T: Declared> Send for Outgoing<T> {}

// SAFETY: As above.
unsafe impl<T: Declared> Sync for Outgoing<T> {}

impl<T: Declared> Outgoing<T> {
    /// Gets the object.
    ///
    /// Takes the FLB's mutex, under which its callbacks run: none of them may call this. May sleep.
    ///
    /// Errors: `ENOENT`, no file that depends on it is preserved; `EOPNOTSUPP`, live update is off.
    ///
    /// C counterpart: `liveupdate_flb_get_outgoing()`.
    pub fn get() -> Result<Self> {
        let mut object = core::ptr::null_mut();
        // SAFETY: The FLB is static, and `object` is valid for writing.
        to_result(unsafe {
            bindings::liveupdate_flb_get_outgoing(T::flb().as_ptr(), &mut object)
        })?;
        // INVARIANT: The use was just counted.
        Ok(Self {
            saved: NonNull::new(object.cast()).ok_or(ENOENT)?,
        })
    }

    /// The state for the next kernel, to be changed while nobody else does. May sleep.
    ///
    /// The next kernel gets what is in it when this one ends; so whoever changes it on behalf of a
    /// file does that in the file's callbacks, of which `freeze` is the last. The FLB's own callbacks
    /// take this mutex under the FLB's: no guard may be got or dropped while this one is held.
    pub fn state(&self) -> StateGuard<'_, T> {
        // SAFETY: By the type invariant it is there as long as `self` is.
        StateGuard(unsafe { self.saved.as_ref() }.state.lock())
    }
}

impl<T: Declared> Deref for Outgoing<T> {
    type Target = T::Object;

    fn deref(&self) -> &T::Object {
        // SAFETY: By the type invariant it is there as long as `self` is.
        &unsafe { self.saved.as_ref() }.object
    }
}

impl<T: Declared> Drop for Outgoing<T> {
    fn drop(&mut self) {
        // SAFETY: By the type invariant the use is ours.
        unsafe { bindings::liveupdate_flb_put_outgoing(T::flb().as_ptr()) };
    }
}

/// Exclusive access to the state of an FLB for the next kernel; see [`Outgoing::state`].
pub struct StateGuard<'a, T: FileLifecycleBound>(MutexGuard<'a, Preserved<T::State>>);

impl<T: FileLifecycleBound> Deref for StateGuard<'_, T> {
    type Target = T::State;

    fn deref(&self) -> &T::State {
        &self.0
    }
}

impl<T: FileLifecycleBound> DerefMut for StateGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T::State {
        &mut self.0
    }
}

/// The live object of the files that the previous kernel preserved.
///
/// As long as the guard is there, so is the object, even if the last of those files is finished. The
/// module cannot be unloaded until that file is finished and no guard is left, so none must be kept
/// in the module's own value.
///
/// # Invariants
///
/// `object` is what the FLB's `retrieve` made, and one use of it belongs to this value.
pub struct Incoming<T: Declared> {
    object: NonNull<T::Object>,
}

// SAFETY: A shared reference to the object may go to any task.
unsafe impl<T: Declared> Send for Incoming<T> {}

// SAFETY: As above.
unsafe impl<T: Declared> Sync for Incoming<T> {}

impl<T: Declared> Incoming<T> {
    /// Gets the object, which is retrieved now if it was not before.
    ///
    /// Takes the FLB's mutex, under which its callbacks run: none of them may call this. May sleep.
    /// To be called once the module is live, that is, neither from its `init` nor from a probe in it.
    ///
    /// Errors: `ENODATA`, nothing was handed over, or all files that depend on it are finished;
    /// `EIO`, what was handed over is broken; `ENOENT`, this FLB was not handed over; `ENODEV`, the
    /// module is not live; `EOPNOTSUPP`, live update is off; and what its `retrieve` failed with,
    /// every time.
    ///
    /// C counterpart: `liveupdate_flb_get_incoming()`.
    pub fn get() -> Result<Self> {
        let mut object = core::ptr::null_mut();
        // SAFETY: The FLB is static, and `object` is valid for writing.
        to_result(unsafe {
            bindings::liveupdate_flb_get_incoming(T::flb().as_ptr(), &mut object)
        })?;
        // INVARIANT: The use was just counted.
        Ok(Self {
            object: NonNull::new(object.cast()).ok_or(ENODATA)?,
        })
    }
}

/// Whether an FLB came from the previous kernel whose compatible string begins with `prefix`: one in
/// another version, perhaps.
pub fn was_handed_over(prefix: &[u8]) -> bool {
    LUO.as_ref().is_some_and(|luo| luo.has_incoming_flb(prefix))
}

impl<T: Declared> Deref for Incoming<T> {
    type Target = T::Object;

    fn deref(&self) -> &T::Object {
        // SAFETY: By the type invariant it is there as long as `self` is.
        unsafe { self.object.as_ref() }
    }
}

impl<T: Declared> Drop for Incoming<T> {
    fn drop(&mut self) {
        // SAFETY: By the type invariant the use is ours.
        unsafe { bindings::liveupdate_flb_put_incoming(T::flb().as_ptr()) };
    }
}

type Args = bindings::liveupdate_flb_op_args;

/// The C callbacks of an FLB.
struct VTable<T>(PhantomData<T>);

impl<T: FileLifecycleBound> VTable<T> {
    const OPS: bindings::liveupdate_flb_ops = bindings::liveupdate_flb_ops {
        preserve: Some(Self::preserve),
        unpreserve: Some(Self::unpreserve),
        retrieve: Some(Self::retrieve),
        finish: Some(Self::finish),
        owner: this_module::<T::OwnerModule>().as_ptr(),
    };

    /// # Safety
    ///
    /// Only for the orchestrator.
    unsafe extern "C" fn preserve(args: *mut Args) -> c_int {
        // SAFETY: The caller lends us its arguments.
        let args = unsafe { &mut *args };
        errno(Self::try_preserve().map(|(data, saved)| {
            args.data = data;
            args.obj = KBox::into_raw(saved).cast();
        }))
    }

    fn try_preserve() -> Result<(u64, KBox<Saved<T>>)> {
        let state = Preserved::<T::State>::zeroed()?;
        let data = state.phys();
        let (name, class) = state_lock_class();
        let state = KBox::pin_init(Mutex::new(state, name, class), GFP_KERNEL)?;
        let saved = KBox::new_uninit(GFP_KERNEL)?;
        let object = T::preserve(&mut state.lock())?;
        Ok((data, KBox::write(saved, Saved { state, object })))
    }

    /// # Safety
    ///
    /// Only for the orchestrator, with what [`Self::preserve`] left.
    unsafe extern "C" fn unpreserve(args: *mut Args) {
        // SAFETY: `preserve` made it, and the orchestrator unpreserves it once.
        let saved = unsafe { KBox::<Saved<T>>::from_raw((*args).obj.cast()) };
        let Saved { state, object } = KBox::into_inner(saved);
        T::unpreserve(&state.lock(), object);
    }

    /// # Safety
    ///
    /// Only for the orchestrator.
    unsafe extern "C" fn retrieve(args: *mut Args) -> c_int {
        // SAFETY: The caller lends us its arguments.
        let args = unsafe { &mut *args };
        errno(Self::try_retrieve(args.data).map(|object| {
            args.obj = KBox::into_raw(object).cast();
        }))
    }

    fn try_retrieve(data: u64) -> Result<KBox<T::Object>> {
        let state = Claimed::<T::State>::new(data).inspect_err(|_| {
            let name = T::COMPATIBLE;
            pr_err!("{name}: no valid state was handed over at {data:#x}\n");
        })?;
        let object = KBox::new_uninit(GFP_KERNEL)?;
        Ok(KBox::write(object, T::retrieve(&state)?))
    }

    /// # Safety
    ///
    /// Only for the orchestrator, with what [`Self::retrieve`] left.
    unsafe extern "C" fn finish(args: *mut Args) {
        // SAFETY: `retrieve` made it, and the orchestrator finishes it once.
        let object = unsafe { KBox::<T::Object>::from_raw((*args).obj.cast()) };
        T::finish(KBox::into_inner(object));
    }
}
