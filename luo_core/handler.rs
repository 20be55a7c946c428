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
    error::{
        to_result,
        VTABLE_DEFAULT_ERROR, //
    },
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
    kho::{
        Claimed,
        Preserved, //
    },
};

use luo_abi::luo::Compatible;
use zerocopy::{
    FromBytes,
    IntoBytes, //
};

/// How the care for an incoming file ends.
pub enum Finish<'a, S> {
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
/// C counterpart: `struct liveupdate_file_ops`.
#[vtable]
pub trait LiveupdateFileHandler: Sized + 'static {
    /// Names this handler and the version of its [`Self::State`]; at most 47 bytes.
    ///
    /// The next kernel looks for a handler of the same name.
    const COMPATIBLE: &'static CStr;

    /// What the next kernel reads: integers only, all zero before `preserve` fills it in.
    type State: FromBytes + IntoBytes;

    /// What only this kernel needs between `preserve` and `unpreserve`.
    type Private: Send;

    /// Whether `file` is of the kind that this handler takes care of. It is asked for every file
    /// that userspace preserves, until a handler says yes.
    fn can_preserve(file: &File) -> bool;

    /// Saves the state of `file`.
    ///
    /// An error is what userspace gets; nothing may be left behind then.
    fn preserve(file: &File, state: &mut Self::State) -> Result<Self::Private>;

    /// Takes back [`Self::preserve`]: the file goes on living in this kernel.
    fn unpreserve(file: &File, state: &Self::State, private: Self::Private);

    /// Brings the state up to date. The next thing that happens is the reboot.
    ///
    /// An error ends the reboot and is what `reboot(2)` returns. Called with the orchestrator's
    /// locks held: other subsystems' may only be tried.
    fn freeze(_file: &File, _state: &mut Self::State, _private: &Self::Private) -> Result {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// Takes back [`Self::freeze`], since the reboot does not happen.
    fn unfreeze(_file: &File, _state: &Self::State, _private: &Self::Private) {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// Makes the file anew from what the previous kernel saved.
    ///
    /// It is called once, and on an error too `state` is gone afterwards: what it refers to has to
    /// be used or freed.
    fn retrieve(state: &Self::State) -> Result<ARef<File>>;

    /// Whether the file's session may be finished; asked of all its files before any is finished.
    fn can_finish(_file: Option<&File>) -> bool {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// Ends the care for an incoming file.
    fn finish(how: Finish<'_, Self::State>);

    /// What tells `file` from all others, for files that have more than one `struct file`.
    fn id(_file: &File) -> usize {
        build_error!(VTABLE_DEFAULT_ERROR)
    }
}

/// The static registration of a handler.
pub struct Registration<T> {
    handler: Opaque<bindings::liveupdate_file_handler>,
    _handler: PhantomData<T>,
}

// SAFETY: The orchestrator synchronizes all access to `handler`; there is no `T` in it.
unsafe impl<T> Sync for Registration<T> {}

/// A handler that is registered until this is dropped.
pub struct Registered<T: LiveupdateFileHandler>(&'static Registration<T>);

impl<T: LiveupdateFileHandler> Registration<T> {
    /// Describes the handler.
    #[expect(clippy::new_without_default)] // A default is of no use to a static.
    pub const fn new() -> Self {
        let compatible = const {
            match Compatible::new(T::COMPATIBLE.to_bytes()) {
                Some(compatible) => compatible,
                // Fails the build: this is a constant.
                None => panic!("a compatible string has 1 to 47 bytes"),
            }
        };
        let mut handler: bindings::liveupdate_file_handler = pin_init::zeroed();
        handler.ops = &VTable::<T>::OPS;
        handler.compatible = *compatible.field();
        Self {
            handler: Opaque::new(handler),
            _handler: PhantomData,
        }
    }

    /// The C handler.
    pub(crate) fn as_ptr(&'static self) -> NonNull<bindings::liveupdate_file_handler> {
        // SAFETY: The address of a static is not null.
        unsafe { NonNull::new_unchecked(self.handler.get()) }
    }

    /// Has the orchestrator use the handler, once the module is loaded. The module has to keep the
    /// result until it is unloaded.
    ///
    /// Errors: `EOPNOTSUPP`, live update is off; `EEXIST`, the compatible string is taken;
    /// `ENOMEM`.
    ///
    /// C counterpart: `liveupdate_register_file_handler()`.
    pub fn register(&'static self) -> Result<Registered<T>> {
        // SAFETY: The handler is static, and only the orchestrator changes it.
        to_result(unsafe { bindings::liveupdate_register_file_handler(self.as_ptr().as_ptr()) })?;
        Ok(Registered(self))
    }
}

impl<T: LiveupdateFileHandler> Drop for Registered<T> {
    fn drop(&mut self) {
        // SAFETY: The handler was registered.
        unsafe { bindings::liveupdate_unregister_file_handler(self.0.as_ptr().as_ptr()) };
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
        let args = unsafe { &mut *args };
        // SAFETY: The caller guarantees that the file is valid.
        let file = unsafe { file_ref(args.file) };
        errno(Self::try_preserve(file).map(|(state, private)| {
            args.serialized_data = state.into_phys();
            args.private_data = KBox::into_raw(private).cast();
        }))
    }

    fn try_preserve(file: &File) -> Result<(StateOf<T>, KBox<T::Private>)> {
        let mut state = Preserved::zeroed()?;
        let private = KBox::new_uninit(GFP_KERNEL)?;
        let private = KBox::write(private, T::preserve(file, &mut state)?);
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
        let (file, mut state, private) = unsafe { Self::preserved(args) };
        errno(T::freeze(file, &mut state, private))
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
    ) -> (&'a File, ManuallyDrop<StateOf<T>>, &'a T::Private) {
        // SAFETY: The caller guarantees that all of it is valid. The state stays with the
        // orchestrator, so it is not dropped here.
        unsafe {
            let args = &*args;
            let state = Preserved::from_phys(args.serialized_data);
            (
                file_ref(args.file),
                ManuallyDrop::new(state),
                &*args.private_data.cast(),
            )
        }
    }

    /// # Safety
    ///
    /// Only for the orchestrator.
    unsafe extern "C" fn retrieve(args: *mut Args) -> c_int {
        // SAFETY: The caller lends us its arguments.
        let args = unsafe { &mut *args };
        let file = Claimed::<T::State>::new(args.serialized_data)
            .inspect_err(|_| complain(T::COMPATIBLE, args.serialized_data))
            .and_then(|state| T::retrieve(&state));
        errno(file.map(|file| args.file = ARef::into_raw(file).as_ptr().cast()))
    }

    /// # Safety
    ///
    /// Only for the orchestrator.
    unsafe extern "C" fn can_finish(args: *mut Args) -> bool {
        // SAFETY: The caller lends us its arguments.
        let file = NonNull::new(unsafe { (*args).file });
        // SAFETY: A file that is not null is valid.
        T::can_finish(file.map(|file| unsafe { file_ref(file.as_ptr()) }))
    }

    /// # Safety
    ///
    /// Only for the orchestrator.
    unsafe extern "C" fn finish(args: *mut Args) {
        // SAFETY: The caller lends us its arguments.
        let args = unsafe { &*args };
        match args.retrieve_status {
            0 => match Claimed::<T::State>::new(args.serialized_data) {
                Ok(state) => T::finish(Finish::Unclaimed(&state)),
                Err(_) => complain(T::COMPATIBLE, args.serialized_data),
            },
            // SAFETY: After a successful retrieval there is a file.
            1.. => T::finish(Finish::Retrieved(unsafe { file_ref(args.file) })),
            errno => T::finish(Finish::Failed(Error::from_errno(errno))),
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
    pr_err!("{compatible}: no state was handed over at {phys:#x}\n");
}

/// What C expects of a function that can fail.
pub(crate) fn errno(result: Result) -> c_int {
    match result {
        Ok(()) => 0,
        Err(err) => err.to_errno(),
    }
}
