// SPDX-License-Identifier: GPL-2.0

//! The files of a misc device, for its handler.
//!
//! C header: [`include/linux/miscdevice.h`](srctree/include/linux/miscdevice.h)

use kernel::{
    error::from_err_ptr,
    ffi::{
        c_int,
        c_void, //
    },
    fs::File,
    miscdevice::{
        MiscDevice,
        MiscDeviceOptions, //
    },
    prelude::*,
    sync::aref::ARef,
    types::ForeignOwnable, //
};

use core::ptr::NonNull;

use crate::bindings;

/// The operations of the files of `T`.
fn operations<T: MiscDevice>() -> *const bindings::file_operations {
    MiscDeviceOptions { name: c"" }.into_raw::<T>().fops
}

/// What `T` keeps for an open file; `None` for a file that is not one of `T`, or that is just being
/// opened or released.
///
/// `T` is a type of the calling module.
pub fn data<T: MiscDevice + 'static>(
    file: &File,
) -> Option<<T::Ptr as ForeignOwnable>::Borrowed<'_>> {
    // SAFETY: The file is valid, and its operations and data do not change while it is open.
    unsafe {
        if !is_open_with(file, operations::<T>()) {
            return None;
        }
        // A file with the operations of `T`, which name functions made for `T`, was opened through
        // the misc device or made by `new_file`. Both left a `T::Ptr` in it, which is there until
        // the file is released, after its last reference.
        Some(T::Ptr::borrow((*file.as_ptr()).private_data))
    }
}

fn is_open_with(file: &File, operations: *const bindings::file_operations) -> bool {
    // SAFETY: The file is valid.
    unsafe { (*file.as_ptr()).f_op == operations && bindings::luo_file_is_open(file.as_ptr()) }
}

/// A new file of `T` that holds `data`, as if it were opened, but without a device node.
///
/// `T` is a type of the calling module. `name` is what `/proc/PID/fd` shows, `flags` are those of
/// `open(2)`: see [`kernel::fs::file::flags`]. [`MiscDevice::open`] is not called. May sleep.
///
/// Errors: `ENOMEM`; `ENFILE`, the system has too many open files; `ENODEV`, the module of `T` is
/// not live (any more); `EINVAL`, `T` is a type of another module.
///
/// C counterpart: `anon_inode_getfile()`.
pub fn new_file<T: MiscDevice + 'static>(
    name: &CStr,
    data: T::Ptr,
    flags: u32,
) -> Result<ARef<File>> {
    let data = data.into_foreign();
    // SAFETY: `data` is what the operations of `T` expect.
    unsafe { anon_file(name, operations::<T>(), data, flags) }.inspect_err(|_| {
        // SAFETY: There is no file that could have taken it.
        drop(unsafe { T::Ptr::from_foreign(data) });
    })
}

/// # Safety
///
/// `operations` must live as long as the module in which they are, and be for `data`.
unsafe fn anon_file(
    name: &CStr,
    operations: *const bindings::file_operations,
    data: *mut c_void,
    flags: u32,
) -> Result<ARef<File>> {
    // SAFETY: The name is copied. The file keeps the module of its operations from being unloaded;
    // that there is such a module or the code is built in is checked.
    let file = from_err_ptr(unsafe {
        bindings::luo_anon_file(name.as_char_ptr(), operations, data, flags as c_int)
    })?;
    // SAFETY: A new file is not null, has one reference, which is now ours, and is in nobody's use.
    Ok(unsafe { ARef::from_raw(NonNull::new_unchecked(file.cast())) })
}
