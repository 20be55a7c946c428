// SPDX-License-Identifier: GPL-2.0

//! What a driver implements so that its files survive a live update.
//!
//! [`LiveupdateFileHandler`] is the typed face of a C `struct liveupdate_file_handler`. The state
//! that crosses the kexec is an associated type: it is allocated, checked, handed to the callbacks
//! and freed here, so that an implementation neither sees a physical address nor leaks memory.
//!
//! All callbacks may sleep. They are called with the mutex of the file's session and with the
//! orchestrator's serialize lock held, so none may close a session's file and wait for that.
//!
//! C header: [`include/linux/liveupdate.h`](srctree/include/linux/liveupdate.h)

use kernel::{
    error::VTABLE_DEFAULT_ERROR,
    ffi::c_int,
    fs::File,
    module::this_module,
    prelude::*,
    sync::aref::ARef,
    types::Opaque, //
};

use core::{
    marker::PhantomData,
    mem::ManuallyDrop,
    ptr::NonNull, //
};

use crate::{
    bindings,
    context::{
        Finish,
        Freeze,
        Preserve,
        Retrieve, //
    },
    kho::{
        Claimed,
        Preserved, //
    },
    waist::CallArgs, //
};

use luo_abi::{
    luo::{
        Alias,
        Compatible, //
    },
    WireState, //
};

/// How the life of an incoming file in its session ends.
pub enum Outcome<'a, S> {
    /// It was retrieved; this is the file.
    Retrieved(&'a File),
    /// Its retrieval was tried and failed.
    Failed(Error),
    /// Nobody retrieved it; whatever its state refers to has to be freed.
    Unclaimed(&'a S),
}

/// Preserves one kind of file across a live update.
///
/// In the old kernel: `preserve`, then `unpreserve` if userspace changes its mind, or `freeze` when
/// the machine reboots, or `freeze` and `unfreeze` when something else fails at that point. In the
/// new kernel: `retrieve`, if userspace asks for the file, then `finish`.
///
/// Handlers are registered by [`module_liveupdate!`](crate::module_liveupdate).
///
/// C counterpart: `struct liveupdate_file_ops`.
#[vtable]
pub trait LiveupdateFileHandler: Sized + 'static {
    /// Names this handler and the version of its [`Self::State`]: 1 to 47 ASCII letters, digits,
    /// `-`, `_`, `.`, `,` and `+`.
    ///
    /// The next kernel looks for a handler of the same name. Anything else does not compile.
    const COMPATIBLE: &'static CStr;

    /// What the next kernel reads, all zero before `preserve` fills it in.
    ///
    /// It is allocated in preserved memory and freed here, on every path, once. In the next kernel
    /// it is checked to be preserved memory and a valid value before a callback sees it; what the
    /// values mean is for the handler to check.
    type State: WireState;

    /// What only this kernel needs between `preserve` and `unpreserve`; kept and dropped here.
    type Private: Send;

    /// Whether `file` is of the kind that this handler takes care of. It is asked for every file
    /// that userspace preserves, until a handler says yes.
    fn can_preserve(file: &File) -> bool;

    /// Saves the state of a file.
    ///
    /// An error is what userspace gets; nothing may be left behind then.
    fn preserve(cx: &Preserve<'_>, state: &mut Self::State) -> Result<Self::Private>;

    /// Takes back [`Self::preserve`]: the file goes on living in this kernel.
    fn unpreserve(file: &File, state: &Self::State, private: Self::Private);

    /// Brings the state up to date. The next thing that happens is the reboot.
    ///
    /// An error ends the reboot and is what `reboot(2)` returns. Called with the orchestrator's
    /// locks held: other subsystems' may only be tried.
    fn freeze(_cx: &Freeze<'_>, _state: &mut Self::State, _private: &mut Self::Private) -> Result {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// Takes back [`Self::freeze`], since the reboot does not happen. The same task calls it.
    fn unfreeze(_file: &File, _state: &Self::State, _private: &mut Self::Private) {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// Makes the file anew from what the previous kernel saved.
    ///
    /// It is called once, and on an error too `state` is gone afterwards: what it refers to has to
    /// be used or freed.
    fn retrieve(cx: &mut Retrieve<'_>, state: &Self::State) -> Result<ARef<File>>;

    /// Whether the file's session may be finished; asked of all its files before any is finished.
    ///
    /// `file` is there if it was retrieved.
    fn can_finish(_cx: &Finish<'_>, _file: Option<&File>) -> bool {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// Ends the care for an incoming file.
    ///
    /// It is not called for a file that nobody retrieved and whose state is not a valid one.
    fn finish(cx: &Finish<'_>, outcome: Outcome<'_, Self::State>);

    /// What tells `file` from all others, for files that have more than one `struct file`.
    fn id(_file: &File) -> usize {
        build_error!(VTABLE_DEFAULT_ERROR)
    }
}

/// The C face of a handler; [`module_liveupdate!`](crate::module_liveupdate) makes a static of it.
#[doc(hidden)]
pub struct FileHandler<T> {
    raw: Opaque<bindings::liveupdate_file_handler>,
    _handler: PhantomData<T>,
}

// SAFETY: The orchestrator synchronizes all access to `raw`; there is no `T` in it.
unsafe impl<T> Sync for FileHandler<T> {}

impl<T: LiveupdateFileHandler> FileHandler<T> {
    /// Describes the handler.
    #[expect(clippy::new_without_default)] // A default is of no use to a static.
    pub const fn new() -> Self {
        let mut raw: bindings::liveupdate_file_handler = pin_init::zeroed();
        raw.ops = &VTable::<T>::OPS;
        raw.compatible = *compatible(T::COMPATIBLE).field();
        Self {
            raw: Opaque::new(raw),
            _handler: PhantomData,
        }
    }

    /// The C handler.
    pub(crate) const fn as_ptr(&'static self) -> *mut bindings::liveupdate_file_handler {
        self.raw.get()
    }
}

/// The field for a compatible string; fails the build, where this is for a constant, if it is none.
pub(crate) const fn compatible(name: &CStr) -> Compatible {
    alias(name);
    match Compatible::new(name.to_bytes()) {
        Some(compatible) => compatible,
        None => panic!("it has an alias, and so it fits"),
    }
}

/// The alias of a handler's module; fails the build as [`compatible`] does.
pub(crate) const fn alias(name: &CStr) -> Alias {
    match Alias::new_for(name.to_bytes()) {
        Some(alias) => alias,
        None => {
            panic!("a compatible string has 1 to 47 of A-Z, a-z, 0-9, '-', '_', '.', ',' and '+'")
        }
    }
}

type Args = bindings::liveupdate_file_op_args;

type StateOf<T> = Preserved<<T as LiveupdateFileHandler>::State>;

/// The C callbacks of a handler.
struct VTable<T>(PhantomData<T>);

impl<T: LiveupdateFileHandler> VTable<T> {
    const OPS: bindings::liveupdate_file_ops = bindings::liveupdate_file_ops {
        can_preserve: Some(Self::can_preserve),
        preserve: Some(Self::preserve),
        unpreserve: Some(Self::unpreserve),
        freeze: if T::HAS_FREEZE {
            Some(Self::freeze)
        } else {
            None
        },
        unfreeze: if T::HAS_UNFREEZE {
            Some(Self::unfreeze)
        } else {
            None
        },
        retrieve: Some(Self::retrieve),
        can_finish: if T::HAS_CAN_FINISH {
            Some(Self::can_finish)
        } else {
            None
        },
        finish: Some(Self::finish),
        get_id: if T::HAS_ID { Some(Self::id) } else { None },
        owner: this_module::<T::OwnerModule>().as_ptr(),
    };

    /// # Safety
    ///
    /// Only for the orchestrator, with a valid `file`.
    unsafe extern "C" fn can_preserve(
        _handler: *mut bindings::liveupdate_file_handler,
        file: *mut bindings::file,
    ) -> bool {
        // SAFETY: The caller guarantees that the file is valid.
        T::can_preserve(unsafe { file_ref(file) })
    }

    /// # Safety
    ///
    /// Only for the orchestrator, with a valid `file`.
    unsafe extern "C" fn id(file: *mut bindings::file) -> usize {
        // SAFETY: The caller guarantees that the file is valid.
        T::id(unsafe { file_ref(file) })
    }

    /// # Safety
    ///
    /// Only for the orchestrator, with a file that is not preserved.
    unsafe extern "C" fn preserve(args: *mut Args) -> c_int {
        // SAFETY: The caller lends us its arguments.
        let call = unsafe { &mut *args.cast::<CallArgs<Preserve<'_>>>() };
        errno(Self::try_preserve(&call.context).map(|(state, private)| {
            call.args.serialized_data = state.into_phys();
            call.args.private_data = KBox::into_raw(private).cast();
        }))
    }

    fn try_preserve(cx: &Preserve<'_>) -> Result<(StateOf<T>, KBox<T::Private>)> {
        let mut state = Preserved::zeroed()?;
        let private = KBox::new_uninit(GFP_KERNEL)?;
        let private = KBox::write(private, T::preserve(cx, &mut state)?);
        Ok((state, private))
    }

    /// # Safety
    ///
    /// Only for the orchestrator, with what [`Self::preserve`] left.
    unsafe extern "C" fn unpreserve(args: *mut Args) {
        // SAFETY: The caller lends us its arguments.
        let args = unsafe { &mut *args };
        // SAFETY: `preserve` made both, and the orchestrator unpreserves a file once.
        let (state, private) = unsafe {
            (
                Preserved::<T::State>::from_phys(args.serialized_data),
                KBox::<T::Private>::from_raw(args.private_data.cast()),
            )
        };
        // SAFETY: The caller guarantees that the file is valid.
        let file = unsafe { file_ref(args.file) };
        T::unpreserve(file, &state, KBox::into_inner(private));
    }

    /// # Safety
    ///
    /// Only for the orchestrator, with what [`Self::preserve`] left.
    unsafe extern "C" fn freeze(args: *mut Args) -> c_int {
        // SAFETY: The caller guarantees all of it, and calls nothing else for this file meanwhile.
        let (_, mut state, private) = unsafe { Self::preserved(args) };
        // SAFETY: The caller lends us its arguments.
        let call = unsafe { &*args.cast::<CallArgs<Freeze<'_>>>() };
        errno(T::freeze(&call.context, &mut state, private))
    }

    /// # Safety
    ///
    /// Only for the orchestrator, with what [`Self::preserve`] left.
    unsafe extern "C" fn unfreeze(args: *mut Args) {
        // SAFETY: The caller guarantees all of it, and calls nothing else for this file meanwhile.
        let (file, state, private) = unsafe { Self::preserved(args) };
        T::unfreeze(file, &state, private);
    }

    /// # Safety
    ///
    /// `args` must be what [`Self::preserve`] left, and not be in use otherwise for `'a`.
    unsafe fn preserved<'a>(
        args: *mut Args,
    ) -> (&'a File, ManuallyDrop<StateOf<T>>, &'a mut T::Private) {
        // SAFETY: The caller guarantees that all of it is valid. The state stays with the
        // orchestrator, so it is not dropped here.
        unsafe {
            let args = &*args;
            let state = Preserved::from_phys(args.serialized_data);
            (
                file_ref(args.file),
                ManuallyDrop::new(state),
                &mut *args.private_data.cast(),
            )
        }
    }

    /// # Safety
    ///
    /// Only for the orchestrator.
    unsafe extern "C" fn retrieve(args: *mut Args) -> c_int {
        // SAFETY: The caller lends us its arguments.
        let call = unsafe { &mut *args.cast::<CallArgs<Retrieve<'_>>>() };
        let phys = call.args.serialized_data;
        let file = Claimed::<T::State>::new(phys)
            .inspect_err(|_| complain(T::COMPATIBLE, phys))
            .and_then(|state| T::retrieve(&mut call.context, &state));
        errno(file.map(|file| call.args.file = ARef::into_raw(file).as_ptr().cast()))
    }

    /// # Safety
    ///
    /// Only for the orchestrator.
    unsafe extern "C" fn can_finish(args: *mut Args) -> bool {
        // SAFETY: The caller lends us its arguments.
        let call = unsafe { &*args.cast::<CallArgs<Finish<'_>>>() };
        // SAFETY: A file that is not null is valid.
        let file = NonNull::new(call.args.file).map(|file| unsafe { file_ref(file.as_ptr()) });
        T::can_finish(&call.context, file)
    }

    /// # Safety
    ///
    /// Only for the orchestrator.
    unsafe extern "C" fn finish(args: *mut Args) {
        // SAFETY: The caller lends us its arguments.
        let CallArgs { args, context } = unsafe { &*args.cast::<CallArgs<Finish<'_>>>() };
        match args.retrieve_status {
            0 => match Claimed::<T::State>::new(args.serialized_data) {
                Ok(state) => T::finish(context, Outcome::Unclaimed(&state)),
                Err(_) => complain(T::COMPATIBLE, args.serialized_data),
            },
            // SAFETY: After a successful retrieval there is a file.
            1.. => T::finish(context, Outcome::Retrieved(unsafe { file_ref(args.file) })),
            errno => T::finish(context, Outcome::Failed(Error::from_errno(errno))),
        }
    }
}

/// # Safety
///
/// `file` must be valid for `'a`, and no `fdget_pos()` without the lock may be under way on it. The
/// orchestrator calls from an ioctl, a close or the reboot, none of which uses a file's position.
unsafe fn file_ref<'a>(file: *const bindings::file) -> &'a File {
    // SAFETY: The caller guarantees both.
    unsafe { File::from_raw_file(file) }
}

fn complain(compatible: &CStr, phys: u64) {
    pr_err!("{compatible}: no valid state was handed over at {phys:#x}\n");
}

/// What C expects of a function that can fail.
pub(crate) fn errno(result: Result) -> c_int {
    match result {
        Ok(()) => 0,
        Err(err) => err.to_errno(),
    }
}
