// SPDX-License-Identifier: GPL-2.0

//! Calls through the C vtable of a file handler.
//!
//! A handler is a C `struct liveupdate_file_handler`, whether a C or a Rust module registered it.
//! [`HandlerRef`] is the core's only way to call one: it holds a reference to the handler's
//! module and turns arguments and results into Rust's.
//!
//! C header: [`include/linux/liveupdate.h`](srctree/include/linux/liveupdate.h)

use kernel::{
    ffi::{
        c_int,
        c_void, //
    },
    fs::File,
    prelude::*,
    sync::{
        aref::ARef,
        Arc, //
    },
};

use core::ptr::NonNull;

use crate::{
    bindings,
    context::{
        Finish,
        Freeze,
        Preserve,
        Retrieve, //
    },
    flbs::{
        Flb,
        HandlerFlbs, //
    },
    module_ref::ModuleRef,
    Luo, //
};

use luo_abi::{
    luo::Compatible,
    Text, //
};

/// What a handler saved of a file: a handle for the next kernel and one for this kernel only.
pub(crate) struct Saved {
    pub(crate) data: u64,
    private: *mut c_void,
}

// SAFETY: `private` belongs to the handler, which may be called from any task.
unsafe impl Send for Saved {}

/// How far the retrieval of an incoming file got.
pub(crate) enum Outcome<'a> {
    /// It was not tried.
    Untried,
    /// It gave this file.
    Retrieved(&'a File),
    /// It failed.
    Failed(Error),
}

/// The arguments of a callback, and behind them its context, of which C handlers know nothing.
#[repr(C)]
pub(crate) struct CallArgs<C> {
    pub(crate) args: bindings::liveupdate_file_op_args,
    pub(crate) context: C,
}

impl<C> CallArgs<C> {
    /// What a callback is called with. To use the context, it casts the pointer back.
    fn as_mut_ptr(&mut self) -> *mut bindings::liveupdate_file_op_args {
        core::ptr::from_mut(self).cast()
    }
}

/// A file handler whose module cannot go away, nor those of its FLBs.
///
/// # Invariants
///
/// `raw` is a registered handler with all required callbacks, and `_module` is the one that owns it,
/// so that both stay valid.
pub(crate) struct HandlerRef {
    raw: NonNull<bindings::liveupdate_file_handler>,
    flbs: HandlerFlbs,
    _module: ModuleRef,
}

// SAFETY: A handler's callbacks may be called from any task.
unsafe impl Send for HandlerRef {}

// SAFETY: As above; what a shared reference gives access to does not change while registered.
unsafe impl Sync for HandlerRef {}

impl HandlerRef {
    /// Takes references to the modules behind a handler and the FLBs that it depends on.
    ///
    /// Errors: `ENOENT`, one of them is not live (any more); `ENOMEM`.
    ///
    /// # Safety
    ///
    /// `raw` must be registered, with all required callbacks, throughout this call, and so must
    /// `flbs`.
    pub(crate) unsafe fn new(
        raw: NonNull<bindings::liveupdate_file_handler>,
        flbs: &[Arc<Flb>],
    ) -> Result<Self> {
        // SAFETY: A registered handler is valid; so is its owner or it is null.
        let module = unsafe { ModuleRef::get_live((*(*raw.as_ptr()).ops).owner) };
        // INVARIANT: It is the owner.
        Ok(Self {
            raw,
            flbs: HandlerFlbs::new(flbs)?,
            _module: module.ok_or(ENOENT)?,
        })
    }

    fn ops(&self) -> &bindings::liveupdate_file_ops {
        // SAFETY: By the type invariant the handler is valid, and its `ops` do not change.
        unsafe { &*(*self.raw.as_ptr()).ops }
    }

    /// The string that names the handler.
    pub(crate) fn compatible(&self) -> Compatible {
        // SAFETY: By the type invariant the handler is valid.
        unsafe { compatible(self.raw) }
    }

    /// Whether the handler takes care of `file`.
    pub(crate) fn can_preserve(&self, file: &File) -> bool {
        match self.ops().can_preserve {
            // SAFETY: The handler and the file are valid.
            Some(call) => unsafe { call(self.raw.as_ptr(), file.as_ptr()) },
            None => false,
        }
    }

    /// What tells `file` from all other files: the handler's id, or the file's address.
    pub(crate) fn id(&self, file: &File) -> usize {
        match self.ops().get_id {
            // SAFETY: The file is valid.
            Some(call) => unsafe { call(file.as_ptr()) },
            None => file.as_ptr() as usize,
        }
    }

    /// Saves the state of a file, once the FLBs are preserved.
    pub(crate) fn preserve(&self, context: Preserve<'_>) -> Result<Saved> {
        self.flbs.preserve()?;
        let file = context.file().as_ptr();
        let mut call = self.args(file, 0, core::ptr::null_mut(), context);
        self.call(self.ops().preserve, &mut call)
            .inspect_err(|_| self.flbs.unpreserve())?;
        Ok(Saved {
            data: call.args.serialized_data,
            private: call.args.private_data,
        })
    }

    /// Takes back [`HandlerRef::preserve`].
    pub(crate) fn unpreserve(&self, file: &File, saved: &Saved) {
        let mut call = self.args(file.as_ptr(), saved.data, saved.private, ());
        if let Some(unpreserve) = self.ops().unpreserve {
            // SAFETY: The handler and all arguments are valid.
            unsafe { unpreserve(call.as_mut_ptr()) };
        }
        self.flbs.unpreserve();
    }

    /// Brings the saved state up to date, right before the reboot, and returns its handle.
    pub(crate) fn freeze(&self, saved: &Saved, context: Freeze<'_>) -> Result<u64> {
        let ops = self.ops();
        if ops.freeze.is_none() {
            return Ok(saved.data);
        }
        let file = context.file().as_ptr();
        let mut call = self.args(file, saved.data, saved.private, context);
        self.call(ops.freeze, &mut call)?;
        Ok(call.args.serialized_data)
    }

    /// Takes back [`HandlerRef::freeze`].
    pub(crate) fn unfreeze(&self, file: &File, saved: &Saved) {
        let mut call = self.args(file.as_ptr(), saved.data, saved.private, ());
        if let Some(unfreeze) = self.ops().unfreeze {
            // SAFETY: The handler and all arguments are valid.
            unsafe { unfreeze(call.as_mut_ptr()) };
        }
    }

    /// Makes a file of the state that the previous kernel saved.
    pub(crate) fn retrieve(&self, data: u64, context: Retrieve<'_>) -> Result<ARef<File>> {
        let null = core::ptr::null_mut();
        let mut call = self.args(null, data, core::ptr::null_mut(), context);
        self.call(self.ops().retrieve, &mut call)?;
        let file = NonNull::new(call.args.file).ok_or(EINVAL)?;
        // SAFETY: It is a handler's duty to hand over a reference to a file that it just made or
        // that was in no file table, so that nobody is using its position.
        Ok(unsafe { ARef::from_raw(file.cast()) })
    }

    /// Whether the file's session may be finished.
    pub(crate) fn can_finish(&self, data: u64, outcome: &Outcome<'_>, context: Finish<'_>) -> bool {
        let mut call = self.finish_args(data, outcome, context);
        match self.ops().can_finish {
            // SAFETY: The handler and all arguments are valid.
            Some(can_finish) => unsafe { can_finish(call.as_mut_ptr()) },
            None => true,
        }
    }

    /// Frees what the state of an incoming file still needs, before the FLBs may go.
    pub(crate) fn finish(&self, luo: &Luo, data: u64, outcome: &Outcome<'_>, context: Finish<'_>) {
        let mut call = self.finish_args(data, outcome, context);
        if let Some(finish) = self.ops().finish {
            // SAFETY: The handler and all arguments are valid.
            unsafe { finish(call.as_mut_ptr()) };
        }
        self.flbs.finish(&luo.incoming_flbs);
    }

    fn finish_args<'a>(
        &self,
        data: u64,
        outcome: &Outcome<'_>,
        context: Finish<'a>,
    ) -> CallArgs<Finish<'a>> {
        let (status, file) = match outcome {
            Outcome::Untried => (0, core::ptr::null_mut()),
            Outcome::Retrieved(file) => (1, file.as_ptr()),
            Outcome::Failed(err) => (err.to_errno(), core::ptr::null_mut()),
        };
        let mut call = self.args(file, data, core::ptr::null_mut(), context);
        call.args.retrieve_status = status;
        call
    }

    fn args<C>(
        &self,
        file: *mut bindings::file,
        data: u64,
        private: *mut c_void,
        context: C,
    ) -> CallArgs<C> {
        CallArgs {
            args: bindings::liveupdate_file_op_args {
                handler: self.raw.as_ptr(),
                retrieve_status: 0,
                file,
                serialized_data: data,
                private_data: private,
            },
            context,
        }
    }

    /// Calls one of the callbacks that can fail. Any result but 0 is a failure.
    fn call<C>(
        &self,
        callback: Option<unsafe extern "C" fn(*mut bindings::liveupdate_file_op_args) -> c_int>,
        call: &mut CallArgs<C>,
    ) -> Result {
        let callback = callback.ok_or(EOPNOTSUPP)?;
        // SAFETY: By the type invariant the handler is valid, and `call` is for this callback.
        match unsafe { callback(call.as_mut_ptr()) } {
            0 => Ok(()),
            errno => Err(Error::from_errno(errno)),
        }
    }
}

/// The string that names `handler`, as it is: possibly not a string at all.
///
/// # Safety
///
/// `handler` must be valid.
pub(crate) unsafe fn compatible(handler: NonNull<bindings::liveupdate_file_handler>) -> Compatible {
    // SAFETY: The caller guarantees validity; `c_char` and `u8` have the same layout.
    Text::from_bytes(unsafe { *(&raw const (*handler.as_ptr()).compatible).cast() })
}

/// Whether `handler` has all callbacks that it must have.
///
/// # Safety
///
/// `handler` must be valid.
pub(crate) unsafe fn is_complete(handler: NonNull<bindings::liveupdate_file_handler>) -> bool {
    // SAFETY: The caller guarantees validity.
    match unsafe { (*handler.as_ptr()).ops.as_ref() } {
        Some(ops) => {
            ops.can_preserve.is_some()
                && ops.preserve.is_some()
                && ops.unpreserve.is_some()
                && ops.retrieve.is_some()
                && ops.finish.is_some()
        }
        None => false,
    }
}
