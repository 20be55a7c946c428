// SPDX-License-Identifier: GPL-2.0

//! A sleeping lock for many readers or one writer.
//!
//! The kernel crate has no abstraction for `struct rw_semaphore`; this one has what the core uses.
//!
//! C header: [`include/linux/rwsem.h`](srctree/include/linux/rwsem.h)

use kernel::{
    prelude::*,
    sync::LockClassKey,
    types::{
        NotThreadSafe,
        Opaque, //
    }, //
};

use core::{
    cell::UnsafeCell,
    ops::{
        Deref,
        DerefMut, //
    },
    pin::Pin,
};

use crate::bindings;

/// Makes an initializer for an [`RwSemaphore`] with a lock class of its own.
macro_rules! new_rwsem {
    ($data:expr, $name:literal) => {
        $crate::rwsem::RwSemaphore::new($data, $name, ::kernel::static_lock_class!())
    };
}
pub(crate) use new_rwsem;

/// Data that many may read at a time, or one may change.
#[pin_data]
pub(crate) struct RwSemaphore<T> {
    #[pin]
    raw: Opaque<bindings::rw_semaphore>,
    data: UnsafeCell<T>,
}

// SAFETY: A semaphore that nobody holds is its data and a plain structure.
unsafe impl<T: Send> Send for RwSemaphore<T> {}

// SAFETY: Readers share `T`, which needs `Sync`; a writer may move it out, which needs `Send`.
unsafe impl<T: Send + Sync> Sync for RwSemaphore<T> {}

impl<T> RwSemaphore<T> {
    /// Makes an initializer; use [`new_rwsem!`].
    pub(crate) fn new(
        data: T,
        name: &'static CStr,
        key: Pin<&'static LockClassKey>,
    ) -> impl PinInit<Self> {
        pin_init!(Self {
            data: UnsafeCell::new(data),
            // SAFETY: `slot` is valid for writing, `name` and `key` live for ever.
            raw <- Opaque::ffi_init(|slot| unsafe {
                bindings::__init_rwsem(slot, name.as_char_ptr(), key.as_ptr())
            }),
        })
    }

    /// Waits until nobody changes the data.
    pub(crate) fn read(&self) -> ReadGuard<'_, T> {
        // SAFETY: The semaphore was initialized with `self`.
        unsafe { bindings::down_read(self.raw.get()) };
        ReadGuard {
            lock: self,
            _not_send: NotThreadSafe,
        }
    }

    /// Waits until nobody else uses the data.
    pub(crate) fn write(&self) -> WriteGuard<'_, T> {
        // SAFETY: The semaphore was initialized with `self`.
        unsafe { bindings::down_write(self.raw.get()) };
        WriteGuard {
            lock: self,
            _not_send: NotThreadSafe,
        }
    }
}

/// Shared access to the data of an [`RwSemaphore`].
#[must_use]
pub(crate) struct ReadGuard<'a, T> {
    lock: &'a RwSemaphore<T>,
    _not_send: NotThreadSafe,
}

impl<T> Deref for ReadGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: As long as the guard lives, nobody has mutable access.
        unsafe { &*self.lock.data.get() }
    }
}

impl<T> Drop for ReadGuard<'_, T> {
    fn drop(&mut self) {
        // SAFETY: This task took the semaphore for reading when it made the guard.
        unsafe { bindings::up_read(self.lock.raw.get()) };
    }
}

/// Exclusive access to the data of an [`RwSemaphore`].
#[must_use]
pub(crate) struct WriteGuard<'a, T> {
    lock: &'a RwSemaphore<T>,
    _not_send: NotThreadSafe,
}

impl<T> Deref for WriteGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: As long as the guard lives, nobody else has access.
        unsafe { &*self.lock.data.get() }
    }
}

impl<T> DerefMut for WriteGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: As long as the guard lives, nobody else has access.
        unsafe { &mut *self.lock.data.get() }
    }
}

impl<T> Drop for WriteGuard<'_, T> {
    fn drop(&mut self) {
        // SAFETY: This task took the semaphore for writing when it made the guard.
        unsafe { bindings::up_write(self.lock.raw.get()) };
    }
}
