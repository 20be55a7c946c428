// SPDX-License-Identifier: GPL-2.0

//! The files of a misc device, for its handler.
//!
//! C header: [`include/linux/miscdevice.h`](srctree/include/linux/miscdevice.h)

use kernel::{
    error::from_err_ptr,
    ffi::c_int,
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

/// What `T` keeps for an open file; `None` for a file that is not one of `T`.
pub fn data<T: MiscDevice>(file: &File) -> Option<<T::Ptr as ForeignOwnable>::Borrowed<'_>> {
    // SAFETY: The file is valid, and its operations do not change once it is open.
    let (found, data) = unsafe { ((*file.as_ptr()).f_op, (*file.as_ptr()).private_data) };
    if found != operations::<T>() {
        return None;
    }
    // SAFETY: A file with the operations of `T`, which name functions made for `T`, was opened
    // through the misc device or made by `new_file`. Both leave a `T::Ptr` in it, which is there
    // until the last reference to the file is gone.
    Some(unsafe { T::Ptr::borrow(data) })
}

/// A new file of `T` that holds `data`, as if it were opened, but without a device node.
///
/// `name` is what `/proc/PID/fd` shows, `flags` are those of `open(2)`: see
/// [`kernel::fs::file::flags`]. [`MiscDevice::open`] is not called. May sleep.
///
/// Errors: `ENOMEM`; `ENFILE`, the system has too many open files; `ENOENT`, the module of `T` is
/// being unloaded.
///
/// C counterpart: `anon_inode_getfile()`.
pub fn new_file<T: MiscDevice>(name: &CStr, data: T::Ptr, flags: u32) -> Result<ARef<File>> {
    let data = data.into_foreign();
    // SAFETY: The name is copied, and the operations live as long as their module, which the file
    // keeps from being unloaded. They are for `data`.
    let file = unsafe {
        bindings::anon_inode_getfile(name.as_char_ptr(), operations::<T>(), data, flags as c_int)
    };
    match from_err_ptr(file) {
        // SAFETY: A new file is not null, has one reference, which is now ours, and is in nobody's
        // use.
        Ok(file) => Ok(unsafe { ARef::from_raw(NonNull::new_unchecked(file.cast())) }),
        Err(err) => {
            // SAFETY: There is no file that could have taken it.
            drop(unsafe { T::Ptr::from_foreign(data) });
            Err(err)
        }
    }
}
