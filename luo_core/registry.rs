// SPDX-License-Identifier: GPL-2.0

//! The file handlers there are.
//!
//! A lookup takes a reference to the handler's module before it lets go of the lock, so what it
//! returns can be called without it; no callback ever runs under this lock.

use kernel::{
    fs::File,
    prelude::*, //
};

use core::ptr::NonNull;

use crate::{
    bindings,
    rwsem::{
        new_rwsem,
        RwSemaphore, //
    },
    shown,
    waist::{
        self,
        HandlerRef, //
    },
};

use luo_abi::luo::Compatible;

/// All registered handlers, in the order of their registration.
#[pin_data]
pub(crate) struct Registry {
    /// `luo_register_rwlock` of the C code.
    #[pin]
    handlers: RwSemaphore<Handlers>,
}

struct Handlers {
    list: KVec<Registered>,
    /// Number of registrations so far.
    count: u64,
}

/// # Invariants
///
/// `handler` is valid and complete until it is removed from the registry.
struct Registered {
    handler: NonNull<bindings::liveupdate_file_handler>,
    /// What the registration's number is; higher than that of all before it in the list.
    number: u64,
}

// SAFETY: The registry only takes references to a handler's module, which any task may do.
unsafe impl Send for Registered {}

// SAFETY: As above.
unsafe impl Sync for Registered {}

impl Registered {
    fn get(&self) -> Option<HandlerRef> {
        // SAFETY: By the type invariant the handler is valid and complete, and it stays registered
        // while the caller holds the lock by which it found `self`.
        unsafe { HandlerRef::new(self.handler) }
    }

    fn compatible(&self) -> Compatible {
        // SAFETY: By the type invariant the handler is valid.
        unsafe { waist::compatible(self.handler) }
    }
}

impl Registry {
    /// A registry without any handler.
    pub(crate) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            handlers <- new_rwsem!(
                Handlers {
                    list: KVec::new(),
                    count: 0,
                },
                c"luo_register_rwlock"
            ),
        })
    }

    /// Adds a handler.
    ///
    /// Fails with `EINVAL` if a required callback is missing or the compatible string is none,
    /// with `EEXIST` if the string is taken, or with `ENOMEM`.
    ///
    /// # Safety
    ///
    /// `handler` must be valid until [`Registry::unregister`] returned, and not change.
    pub(crate) unsafe fn register(
        &self,
        handler: NonNull<bindings::liveupdate_file_handler>,
    ) -> Result {
        // SAFETY: The caller guarantees validity.
        let (complete, compatible) =
            unsafe { (waist::is_complete(handler), waist::compatible(handler)) };
        // A string that is followed by anything but zeros would never be found.
        if !complete || Compatible::from_field(compatible.field()) != Ok(compatible) {
            let compatible = shown(&compatible);
            pr_err!("handler '{compatible}' lacks a callback or a proper compatible string\n");
            return Err(EINVAL);
        }

        let mut handlers = self.handlers.write();
        if handlers.find(&compatible).is_some() {
            pr_err!("there is a handler for '{}' already\n", shown(&compatible));
            return Err(EEXIST);
        }
        let number = handlers.count + 1;
        // INVARIANT: Complete as just found, and valid as the caller guarantees.
        handlers
            .list
            .push(Registered { handler, number }, GFP_KERNEL)?;
        handlers.count = number;
        Ok(())
    }

    /// Removes a handler; one that was not added is none.
    ///
    /// The module count keeps a module from getting here while a file of its handler is preserved,
    /// or retrieved and not finished.
    pub(crate) fn unregister(&self, handler: NonNull<bindings::liveupdate_file_handler>) {
        self.handlers
            .write()
            .list
            .retain(|registered| registered.handler != handler);
    }

    /// The handler that `compatible` names, if its module is live.
    pub(crate) fn by_compatible(&self, compatible: &Compatible) -> Option<HandlerRef> {
        self.handlers.read().find(compatible)?.get()
    }

    /// The first handler that can preserve `file`. While one is asked, its module is in use.
    pub(crate) fn by_file(&self, file: &File) -> Option<HandlerRef> {
        let mut number = 0;
        loop {
            let handler;
            (number, handler) = self.after(number)?;
            if handler.can_preserve(file) {
                return Some(handler);
            }
        }
    }

    /// The next live handler after registration `number`, and its own number.
    fn after(&self, number: u64) -> Option<(u64, HandlerRef)> {
        self.handlers
            .read()
            .list
            .iter()
            .filter(|registered| registered.number > number)
            .find_map(|registered| Some((registered.number, registered.get()?)))
    }
}

impl Handlers {
    fn find(&self, compatible: &Compatible) -> Option<&Registered> {
        self.list
            .iter()
            .find(|registered| registered.compatible() == *compatible)
    }
}

#[cfg(CONFIG_LIVEUPDATE_RUST_KUNIT_TEST)]
#[kunit_tests(luo_registry)]
mod tests {
    use super::*;
    use crate::handler::{
        Finish,
        LiveupdateFileHandler,
        Registration, //
    };
    use kernel::sync::{
        aref::ARef,
        Arc, //
    };

    struct Handler;

    #[vtable]
    impl LiveupdateFileHandler for Handler {
        const COMPATIBLE: &'static CStr = c"luo-kunit";
        type State = u64;
        type Private = ();

        fn can_preserve(_file: &File) -> bool {
            false
        }

        fn preserve(_file: &File, _state: &mut u64) -> Result {
            Err(EOPNOTSUPP)
        }

        fn unpreserve(_file: &File, _state: &u64, _private: ()) {}

        fn retrieve(_state: &u64) -> Result<ARef<File>> {
            Err(EOPNOTSUPP)
        }

        fn finish(_how: Finish<'_, u64>) {}
    }

    static FIRST: Registration<Handler> = Registration::new();
    static TWIN: Registration<Handler> = Registration::new();

    fn registry() -> Result<Arc<Registry>> {
        Arc::pin_init(Registry::new(), GFP_KERNEL)
    }

    fn name() -> Result<Compatible> {
        Compatible::new(b"luo-kunit").ok_or(EINVAL)
    }

    fn add(registry: &Registry, handler: &'static Registration<Handler>) -> Result {
        // SAFETY: A static handler is always valid.
        unsafe { registry.register(handler.as_ptr()) }
    }

    #[test]
    fn a_handler_is_found_until_it_leaves() -> Result {
        let registry = registry()?;
        assert!(registry.by_compatible(&name()?).is_none());
        add(&registry, &FIRST)?;
        assert!(registry.by_compatible(&name()?).is_some());
        registry.unregister(FIRST.as_ptr());
        assert!(registry.by_compatible(&name()?).is_none());
        Ok(())
    }

    #[test]
    fn a_compatible_string_is_taken_once() -> Result {
        let registry = registry()?;
        add(&registry, &FIRST)?;
        assert_eq!(add(&registry, &FIRST), Err(EEXIST));
        assert_eq!(add(&registry, &TWIN), Err(EEXIST));
        // The twin is not registered, so taking it away changes nothing.
        registry.unregister(TWIN.as_ptr());
        assert!(registry.by_compatible(&name()?).is_some());
        registry.unregister(FIRST.as_ptr());
        add(&registry, &TWIN)
    }

    #[test]
    fn a_handler_without_callbacks_or_name_is_refused() -> Result {
        let registry = registry()?;
        let mut handler: bindings::liveupdate_file_handler = pin_init::zeroed();
        // SAFETY: The handler is valid throughout both calls, which do not keep it.
        unsafe {
            assert_eq!(registry.register((&mut handler).into()), Err(EINVAL));
            handler.ops = (*FIRST.as_ptr().as_ptr()).ops;
            assert_eq!(registry.register((&mut handler).into()), Err(EINVAL));
        }
        Ok(())
    }
}
