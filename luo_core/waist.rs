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
    sync::aref::ARef, //
};

use core::ptr::NonNull;

use crate::bindings;

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

/// A file handler whose module cannot go away.
///
/// # Invariants
///
/// `0` is a registered handler with all required callbacks. The value owns a reference to the
/// module that owns the handler, so that both stay valid.
pub(crate) struct HandlerRef(NonNull<bindings::liveupdate_file_handler>);

// SAFETY: A handler's callbacks may be called from any task.
unsafe impl Send for HandlerRef {}

// SAFETY: As above; what a shared reference gives access to does not change while registered.
unsafe impl Sync for HandlerRef {}

impl HandlerRef {
    /// Takes a reference to the module behind `handler`, unless it is not live (any more).
    ///
    /// # Safety
    ///
    /// `handler` must be registered, with all required callbacks, throughout this call.
    pub(crate) unsafe fn new(handler: NonNull<bindings::liveupdate_file_handler>) -> Option<Self> {
        // SAFETY: A registered handler is valid; so is its owner or it is null.
        let live = unsafe { bindings::luo_module_get_live((*(*handler.as_ptr()).ops).owner) };
        // INVARIANT: The reference was just taken.
        live.then_some(Self(handler))
    }

    fn ops(&self) -> &bindings::liveupdate_file_ops {
        // SAFETY: By the type invariant the handler is valid, and its `ops` do not change.
        unsafe { &*(*self.0.as_ptr()).ops }
    }

    /// The string that names the handler.
    pub(crate) fn compatible(&self) -> Compatible {
        // SAFETY: By the type invariant the handler is valid.
        unsafe { compatible(self.0) }
    }

    /// Whether the handler takes care of `file`.
    pub(crate) fn can_preserve(&self, file: &File) -> bool {
        match self.ops().can_preserve {
            // SAFETY: The handler and the file are valid.
            Some(call) => unsafe { call(self.0.as_ptr(), file.as_ptr()) },
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

    /// Saves the state of `file`.
    pub(crate) fn preserve(&self, file: &File) -> Result<Saved> {
        let mut args = self.args(file.as_ptr(), 0, core::ptr::null_mut());
        self.call(self.ops().preserve, &mut args)?;
        Ok(Saved {
            data: args.serialized_data,
            private: args.private_data,
        })
    }

    /// Takes back [`HandlerRef::preserve`].
    pub(crate) fn unpreserve(&self, file: &File, saved: &Saved) {
        let mut args = self.args(file.as_ptr(), saved.data, saved.private);
        if let Some(call) = self.ops().unpreserve {
            // SAFETY: The handler and everything in `args` are valid.
            unsafe { call(&mut args) };
        }
    }

    /// Brings the saved state up to date, right before the reboot.
    pub(crate) fn freeze(&self, file: &File, saved: &mut Saved) -> Result {
        let ops = self.ops();
        if ops.freeze.is_none() {
            return Ok(());
        }
        let mut args = self.args(file.as_ptr(), saved.data, saved.private);
        self.call(ops.freeze, &mut args)?;
        saved.data = args.serialized_data;
        Ok(())
    }

    /// Takes back [`HandlerRef::freeze`].
    pub(crate) fn unfreeze(&self, file: &File, saved: &Saved) {
        let mut args = self.args(file.as_ptr(), saved.data, saved.private);
        if let Some(call) = self.ops().unfreeze {
            // SAFETY: The handler and everything in `args` are valid.
            unsafe { call(&mut args) };
        }
    }

    /// Makes a file of the state that the previous kernel saved.
    pub(crate) fn retrieve(&self, data: u64) -> Result<ARef<File>> {
        let mut args = self.args(core::ptr::null_mut(), data, core::ptr::null_mut());
        self.call(self.ops().retrieve, &mut args)?;
        let file = NonNull::new(args.file).ok_or(EINVAL)?;
        // SAFETY: It is a handler's duty to hand over a reference to a file that it just made or
        // that was in no file table, so that nobody is using its position.
        Ok(unsafe { ARef::from_raw(file.cast()) })
    }

    /// Whether the file's session may be finished.
    pub(crate) fn can_finish(&self, data: u64, outcome: &Outcome<'_>) -> bool {
        let mut args = self.finish_args(data, outcome);
        match self.ops().can_finish {
            // SAFETY: The handler and everything in `args` are valid.
            Some(call) => unsafe { call(&mut args) },
            None => true,
        }
    }

    /// Frees what the state of an incoming file still needs.
    pub(crate) fn finish(&self, data: u64, outcome: &Outcome<'_>) {
        let mut args = self.finish_args(data, outcome);
        if let Some(call) = self.ops().finish {
            // SAFETY: The handler and everything in `args` are valid.
            unsafe { call(&mut args) };
        }
    }

    fn finish_args(&self, data: u64, outcome: &Outcome<'_>) -> bindings::liveupdate_file_op_args {
        let (status, file) = match outcome {
            Outcome::Untried => (0, core::ptr::null_mut()),
            Outcome::Retrieved(file) => (1, file.as_ptr()),
            Outcome::Failed(err) => (err.to_errno(), core::ptr::null_mut()),
        };
        bindings::liveupdate_file_op_args {
            retrieve_status: status,
            ..self.args(file, data, core::ptr::null_mut())
        }
    }

    fn args(
        &self,
        file: *mut bindings::file,
        data: u64,
        private: *mut c_void,
    ) -> bindings::liveupdate_file_op_args {
        bindings::liveupdate_file_op_args {
            handler: self.0.as_ptr(),
            retrieve_status: 0,
            file,
            serialized_data: data,
            private_data: private,
        }
    }

    /// Calls one of the callbacks that can fail. Any result but 0 is a failure.
    fn call(
        &self,
        callback: Option<unsafe extern "C" fn(*mut bindings::liveupdate_file_op_args) -> c_int>,
        args: &mut bindings::liveupdate_file_op_args,
    ) -> Result {
        let callback = callback.ok_or(EOPNOTSUPP)?;
        // SAFETY: By the type invariant the handler is valid, and `args` is for this callback.
        match unsafe { callback(args) } {
            0 => Ok(()),
            errno => Err(Error::from_errno(errno)),
        }
    }
}

impl Drop for HandlerRef {
    fn drop(&mut self) {
        // SAFETY: By the type invariant the reference is ours.
        unsafe { bindings::module_put(self.ops().owner) };
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
