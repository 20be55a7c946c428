// SPDX-License-Identifier: GPL-2.0

//! References to modules.
//!
//! C header: [`include/linux/module.h`](srctree/include/linux/module.h)

use crate::bindings;

/// A reference to a module, or to built-in code, which needs none.
///
/// # Invariants
///
/// `0` is null, or a module of which this value owns a reference.
pub(crate) struct ModuleRef(*mut bindings::module);

// SAFETY: A module's reference count may be changed by any task.
unsafe impl Send for ModuleRef {}

// SAFETY: As above.
unsafe impl Sync for ModuleRef {}

impl ModuleRef {
    /// Takes a reference; `None` if the module's init function still runs, which can fail and take
    /// the module with it whatever its count is, or if it is being unloaded.
    ///
    /// # Safety
    ///
    /// `module` must be null or a module that is not freed during this call.
    pub(crate) unsafe fn get_live(module: *mut bindings::module) -> Option<Self> {
        // SAFETY: The caller guarantees validity.
        let live = unsafe { bindings::luo_module_get_live(module) };
        // INVARIANT: The reference was just taken. Without it there must be no value, not even one to
        // drop, as `then_some()` would make.
        live.then(|| Self(module))
    }
}

impl Clone for ModuleRef {
    fn clone(&self) -> Self {
        // SAFETY: `self` has a reference.
        unsafe { bindings::luo_module_get(self.0) };
        // INVARIANT: The reference was just taken.
        Self(self.0)
    }
}

impl Drop for ModuleRef {
    fn drop(&mut self) {
        // SAFETY: By the type invariant the reference is ours.
        unsafe { bindings::luo_module_put(self.0) };
    }
}
