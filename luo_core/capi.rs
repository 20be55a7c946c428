// SPDX-License-Identifier: GPL-2.0

//! The C API of `<linux/liveupdate.h>`, and what `glue.c` calls at boot.
//!
//! C header: [`include/linux/liveupdate.h`](srctree/include/linux/liveupdate.h)

use kernel::{
    ffi::{
        c_int,
        c_void, //
    },
    prelude::*,
    sync::SetOnce, //
};

use core::ptr::NonNull;

use crate::{
    bindings,
    handler::errno,
    Luo,
    LUO, //
};

/// Set if what late init had to make could not be made.
static FAILED: SetOnce<()> = SetOnce::new();

fn luo() -> Option<&'static Luo> {
    match FAILED.as_ref() {
        None => LUO.as_ref().map(|luo| &**luo),
        Some(()) => None,
    }
}

/// Called by `glue.c` at early initcall level.
#[no_mangle]
extern "C" fn luo_early_init(enabled: bool) -> c_int {
    errno(crate::early_init(enabled))
}

/// Called by `glue.c` at late initcall level.
#[no_mangle]
extern "C" fn luo_late_init() -> c_int {
    let result = crate::late_init();
    if let Err(err) = result {
        pr_err!("cannot hand anything over ({err:?}): live update is off\n");
        FAILED.populate(());
    }
    errno(result)
}

/// Whether live update is on: asked for on the command line, and KHO is there.
#[no_mangle]
extern "C" fn liveupdate_enabled() -> bool {
    luo().is_some()
}

/// Called by `kernel_kexec()` before it reboots; an error ends the attempt.
#[no_mangle]
extern "C" fn liveupdate_reboot() -> c_int {
    match luo() {
        Some(luo) => errno(luo.serialize()),
        None => 0,
    }
}

/// Adds a file handler.
///
/// Errors: `EOPNOTSUPP`, live update is off; `EINVAL`, a required callback is missing or the
/// compatible string is empty or has no end; `EEXIST`, that string is taken; `ENOMEM`.
///
/// # Safety
///
/// `handler` must be valid, and not change, until it is unregistered.
#[no_mangle]
unsafe extern "C" fn liveupdate_register_file_handler(
    handler: *mut bindings::liveupdate_file_handler,
) -> c_int {
    let Some(luo) = luo() else {
        return EOPNOTSUPP.to_errno();
    };
    errno(NonNull::new(handler).ok_or(EINVAL).and_then(|handler| {
        // SAFETY: The caller guarantees that the handler stays valid.
        unsafe { luo.registry.register(handler)? };
        #[cfg(CONFIG_LIVEUPDATE_TEST)]
        // SAFETY: The handler is registered.
        unsafe {
            bindings::liveupdate_test_register(handler.as_ptr())
        };
        Ok(())
    }))
}

/// Removes a file handler. No file of it may be preserved, or retrieved and not finished, which a
/// module's reference count sees to.
#[no_mangle]
extern "C" fn liveupdate_unregister_file_handler(handler: *mut bindings::liveupdate_file_handler) {
    if let (Some(luo), Some(handler)) = (LUO.as_ref(), NonNull::new(handler)) {
        luo.registry.unregister(handler);
    }
}

/// Has the files of a registered handler depend on an FLB.
///
/// Errors: `EOPNOTSUPP`, live update is off; `EINVAL`, a callback is missing, the compatible string
/// is none, or the handler is not registered; `EEXIST`, the handler has the FLB already, or another
/// FLB has its compatible string; `ENOSPC`, there are too many; `ENOMEM`.
///
/// # Safety
///
/// `flb` must be valid, and not change, until it is unregistered, as it also is with its handler.
#[no_mangle]
unsafe extern "C" fn liveupdate_register_flb(
    handler: *mut bindings::liveupdate_file_handler,
    flb: *mut bindings::liveupdate_flb,
) -> c_int {
    let Some(luo) = luo() else {
        return EOPNOTSUPP.to_errno();
    };
    let (Some(handler), Some(flb)) = (NonNull::new(handler), NonNull::new(flb)) else {
        return EINVAL.to_errno();
    };
    // SAFETY: The caller guarantees that the FLB stays valid.
    errno(unsafe { luo.registry.register_flb(handler, flb) })
}

/// Takes back [`liveupdate_register_flb`], under the condition of
/// [`liveupdate_unregister_file_handler`].
#[no_mangle]
extern "C" fn liveupdate_unregister_flb(
    handler: *mut bindings::liveupdate_file_handler,
    flb: *mut bindings::liveupdate_flb,
) {
    if let (Some(luo), Some(handler), Some(flb)) =
        (LUO.as_ref(), NonNull::new(handler), NonNull::new(flb))
    {
        luo.registry.unregister_flb(handler, flb);
    }
}

/// Finds the object that the previous kernel handed over, and counts a use of it.
///
/// Errors: `EOPNOTSUPP`, live update is off; and those of [`Luo::get_incoming_flb`].
///
/// # Safety
///
/// `flb` must be valid, with all callbacks, as long as its module is there, and `object` be valid
/// for writing.
#[no_mangle]
unsafe extern "C" fn liveupdate_flb_get_incoming(
    flb: *mut bindings::liveupdate_flb,
    object: *mut *mut c_void,
) -> c_int {
    let Some(luo) = luo() else {
        return EOPNOTSUPP.to_errno();
    };
    errno(NonNull::new(flb).ok_or(EINVAL).and_then(|flb| {
        // SAFETY: The caller guarantees that both are valid.
        unsafe { *object = luo.get_incoming_flb(flb)? };
        Ok(())
    }))
}

/// Takes back [`liveupdate_flb_get_incoming`].
///
/// # Safety
///
/// `flb` must be valid.
#[no_mangle]
unsafe extern "C" fn liveupdate_flb_put_incoming(flb: *mut bindings::liveupdate_flb) {
    if let (Some(luo), Some(flb)) = (LUO.as_ref(), NonNull::new(flb)) {
        // SAFETY: The caller guarantees that it is valid.
        unsafe { luo.put_incoming_flb(flb) };
    }
}

/// Finds the object that will be handed over, and counts a use of it.
///
/// Errors: `EOPNOTSUPP`, live update is off; `ENOENT`, no file depends on the FLB, or it has no
/// object.
///
/// # Safety
///
/// `object` must be valid for writing.
#[no_mangle]
unsafe extern "C" fn liveupdate_flb_get_outgoing(
    flb: *mut bindings::liveupdate_flb,
    object: *mut *mut c_void,
) -> c_int {
    let Some(luo) = luo() else {
        return EOPNOTSUPP.to_errno();
    };
    errno(NonNull::new(flb).ok_or(EINVAL).and_then(|flb| {
        let found = luo.registry.flb(flb)?.get()?;
        // SAFETY: The caller guarantees that it is valid.
        unsafe { *object = found.as_ptr() };
        Ok(())
    }))
}

/// Takes back [`liveupdate_flb_get_outgoing`].
#[no_mangle]
extern "C" fn liveupdate_flb_put_outgoing(flb: *mut bindings::liveupdate_flb) {
    if let (Some(luo), Some(flb)) = (LUO.as_ref(), NonNull::new(flb)) {
        if let Ok(flb) = luo.registry.flb(flb) {
            flb.put();
        }
    }
}
