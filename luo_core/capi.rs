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
        unsafe { luo.registry.register(handler) }
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

/// FLBs are not there yet: `EOPNOTSUPP`, as if live update were off.
#[no_mangle]
extern "C" fn liveupdate_register_flb(
    _handler: *mut bindings::liveupdate_file_handler,
    _flb: *mut bindings::liveupdate_flb,
) -> c_int {
    EOPNOTSUPP.to_errno()
}

#[no_mangle]
extern "C" fn liveupdate_unregister_flb(
    _handler: *mut bindings::liveupdate_file_handler,
    _flb: *mut bindings::liveupdate_flb,
) {
}

#[no_mangle]
extern "C" fn liveupdate_flb_get_incoming(
    _flb: *mut bindings::liveupdate_flb,
    _object: *mut *mut c_void,
) -> c_int {
    EOPNOTSUPP.to_errno()
}

#[no_mangle]
extern "C" fn liveupdate_flb_put_incoming(_flb: *mut bindings::liveupdate_flb) {}

#[no_mangle]
extern "C" fn liveupdate_flb_get_outgoing(
    _flb: *mut bindings::liveupdate_flb,
    _object: *mut *mut c_void,
) -> c_int {
    EOPNOTSUPP.to_errno()
}

#[no_mangle]
extern "C" fn liveupdate_flb_put_outgoing(_flb: *mut bindings::liveupdate_flb) {}
