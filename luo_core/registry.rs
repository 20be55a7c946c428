// SPDX-License-Identifier: GPL-2.0

//! The file handlers there are.
//!
//! A lookup takes a reference to the handler's module before it lets go of the lock, so what it
//! returns can be called without it; no callback ever runs under this lock.

use kernel::{
    fs::File,
    prelude::*,
    sync::Arc, //
};

use core::ptr::NonNull;

use crate::{
    bindings,
    flbs::{
        self,
        Flb,
        MAX_FLBS, //
    },
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

/// All registered handlers and the FLBs that they depend on, in the order of their registration.
#[pin_data]
pub(crate) struct Registry {
    /// `luo_register_rwlock` of the C code.
    #[pin]
    registered: RwSemaphore<Registered>,
}

struct Registered {
    handlers: KVec<Handler>,
    /// Number of registrations so far.
    count: u64,
    /// No two have the same compatible string. Each is in the list of at least one handler.
    flbs: KVec<Arc<Flb>>,
}

/// # Invariants
///
/// `raw` is valid and complete until it is removed from the registry.
struct Handler {
    raw: NonNull<bindings::liveupdate_file_handler>,
    /// What the registration's number is; higher than that of all before it in the list.
    number: u64,
    flbs: KVec<Arc<Flb>>,
}

// SAFETY: The registry only takes references to a handler's module, which any task may do.
unsafe impl Send for Handler {}

// SAFETY: As above.
unsafe impl Sync for Handler {}

impl Handler {
    fn get(&self) -> Result<HandlerRef> {
        // SAFETY: By the type invariant the handler is valid and complete, and it stays registered
        // while the caller holds the lock by which it found `self`. So do its FLBs.
        unsafe { HandlerRef::new(self.raw, &self.flbs) }
    }

    fn compatible(&self) -> Compatible {
        // SAFETY: By the type invariant the handler is valid.
        unsafe { waist::compatible(self.raw) }
    }

    fn has(&self, flb: &Arc<Flb>) -> bool {
        self.flbs.iter().any(|linked| Arc::ptr_eq(linked, flb))
    }
}

impl Registry {
    /// A registry without any handler.
    pub(crate) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            registered <- new_rwsem!(
                Registered {
                    handlers: KVec::new(),
                    count: 0,
                    flbs: KVec::new(),
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
    /// `raw` must be valid until [`Registry::unregister`] returned, and not change.
    pub(crate) unsafe fn register(
        &self,
        raw: NonNull<bindings::liveupdate_file_handler>,
    ) -> Result {
        // SAFETY: The caller guarantees validity.
        let (complete, compatible) = unsafe { (waist::is_complete(raw), waist::compatible(raw)) };
        // A string that is followed by anything but zeros would never be found.
        if !complete || Compatible::from_field(compatible.field()) != Ok(compatible) {
            let compatible = shown(&compatible);
            pr_err!("handler '{compatible}' lacks a callback or a proper compatible string\n");
            return Err(EINVAL);
        }

        let mut registered = self.registered.write();
        if registered.find(&compatible).is_ok() {
            pr_err!("there is a handler for '{}' already\n", shown(&compatible));
            return Err(EEXIST);
        }
        let number = registered.count + 1;
        let handler = Handler {
            // INVARIANT: Complete as just found, and valid as the caller guarantees.
            raw,
            number,
            flbs: KVec::new(),
        };
        registered.handlers.push(handler, GFP_KERNEL)?;
        registered.count = number;
        Ok(())
    }

    /// Removes a handler and its FLBs; one that was not added is none.
    ///
    /// The module count keeps a module from getting here while a file of its handler is preserved,
    /// or retrieved and not finished.
    pub(crate) fn unregister(&self, raw: NonNull<bindings::liveupdate_file_handler>) {
        let mut registered = self.registered.write();
        registered.handlers.retain(|handler| handler.raw != raw);
        registered.forget_flbs();
    }

    /// Has a handler's files depend on an FLB.
    ///
    /// Errors: `EINVAL`, a callback is missing, the compatible string is none, or the handler is
    /// not registered; `EEXIST`, the handler has the FLB already, or another has its compatible
    /// string; `ENOSPC`, there are [`MAX_FLBS`] others; `ENOMEM`.
    ///
    /// # Safety
    ///
    /// `raw` must be valid until it was unregistered from all handlers, and not change.
    pub(crate) unsafe fn register_flb(
        &self,
        handler: NonNull<bindings::liveupdate_file_handler>,
        raw: NonNull<bindings::liveupdate_flb>,
    ) -> Result {
        // SAFETY: The caller guarantees validity.
        let (complete, compatible) = unsafe { (flbs::is_complete(raw), flbs::compatible(raw)) };
        if !complete || compatible.bytes().is_err() {
            let compatible = shown(&compatible);
            pr_err!("the FLB '{compatible}' lacks a callback or a proper compatible string\n");
            return Err(EINVAL);
        }

        let registered = &mut *self.registered.write();
        let known = registered
            .flbs
            .iter()
            .find(|flb| flb.compatible() == compatible);
        let flb = match known {
            Some(flb) if flb.is(raw) => flb.clone(),
            Some(_) => {
                pr_err!("there is an FLB '{}' already\n", shown(&compatible));
                return Err(EEXIST);
            }
            None if registered.flbs.len() >= MAX_FLBS => {
                pr_err!("there are {MAX_FLBS} FLBs already, and no room for more\n");
                return Err(ENOSPC);
            }
            // SAFETY: It is complete as just found, and valid as the caller guarantees.
            None => unsafe { Flb::new(raw)? },
        };
        let is_new = known.is_none();
        let handler = registered
            .handlers
            .iter_mut()
            .find(|registered| registered.raw == handler)
            .ok_or(EINVAL)?;
        if handler.has(&flb) {
            return Err(EEXIST);
        }
        handler.flbs.reserve(1, GFP_KERNEL)?;
        if is_new {
            registered.flbs.push(flb.clone(), GFP_KERNEL)?;
        }
        handler.flbs.push(flb, GFP_KERNEL)?;
        Ok(())
    }

    /// Takes back [`Registry::register_flb`]; an FLB that the handler does not have is none.
    pub(crate) fn unregister_flb(
        &self,
        handler: NonNull<bindings::liveupdate_file_handler>,
        raw: NonNull<bindings::liveupdate_flb>,
    ) {
        let mut registered = self.registered.write();
        for found in &mut registered.handlers {
            if found.raw == handler {
                found.flbs.retain(|flb| !flb.is(raw));
            }
        }
        registered.forget_flbs();
    }

    /// The FLB at `raw`, if a handler depends on it.
    pub(crate) fn flb(&self, raw: NonNull<bindings::liveupdate_flb>) -> Result<Arc<Flb>> {
        let registered = self.registered.read();
        let found = registered.flbs.iter().find(|flb| flb.is(raw));
        found.cloned().ok_or(ENOENT)
    }

    /// All FLBs, in the order of their registration.
    pub(crate) fn all_flbs(&self) -> [Option<Arc<Flb>>; MAX_FLBS] {
        let registered = self.registered.read();
        core::array::from_fn(|index| registered.flbs.get(index).cloned())
    }

    /// The handler that `compatible` names; fails with `ENOENT` if there is none or its module is
    /// not live, or with `ENOMEM`.
    pub(crate) fn by_compatible(&self, compatible: &Compatible) -> Result<HandlerRef> {
        self.registered.read().find(compatible)?.get()
    }

    /// The first handler that can preserve `file`. While one is asked, its module is in use.
    ///
    /// Errors as [`Registry::by_compatible`].
    pub(crate) fn by_file(&self, file: &File) -> Result<HandlerRef> {
        let mut number = 0;
        loop {
            let handler;
            (number, handler) = self.after(number)?;
            if handler.can_preserve(file) {
                return Ok(handler);
            }
        }
    }

    /// The next live handler after registration `number`, and its own number.
    fn after(&self, number: u64) -> Result<(u64, HandlerRef)> {
        let registered = self.registered.read();
        for handler in &registered.handlers {
            if handler.number > number {
                match handler.get() {
                    Err(ENOENT) => continue,
                    found => return Ok((handler.number, found?)),
                }
            }
        }
        Err(ENOENT)
    }
}

impl Registered {
    fn find(&self, compatible: &Compatible) -> Result<&Handler> {
        self.handlers
            .iter()
            .find(|handler| handler.compatible() == *compatible)
            .ok_or(ENOENT)
    }

    /// Removes FLBs that no handler has any more.
    fn forget_flbs(&mut self) {
        let handlers = &self.handlers;
        self.flbs
            .retain(|flb| handlers.iter().any(|handler| handler.has(flb)));
    }
}

#[cfg(CONFIG_LIVEUPDATE_RUST_KUNIT_TEST)]
#[kunit_tests(luo_registry)]
mod tests {
    use super::*;
    use crate::{
        context::{
            Finish,
            Preserve,
            Retrieve, //
        },
        handler::{
            FileHandler,
            LiveupdateFileHandler,
            Outcome, //
        },
    };
    use kernel::sync::aref::ARef;

    struct Kunit;

    #[vtable]
    impl LiveupdateFileHandler for Kunit {
        const COMPATIBLE: &'static CStr = c"luo-kunit";
        type State = u64;
        type Private = ();

        fn can_preserve(_file: &File) -> bool {
            false
        }

        fn preserve(_cx: &Preserve<'_>, _state: &mut u64) -> Result {
            Err(EOPNOTSUPP)
        }

        fn unpreserve(_file: &File, _state: &u64, _private: ()) {}

        fn retrieve(_cx: &mut Retrieve<'_>, _state: &u64) -> Result<ARef<File>> {
            Err(EOPNOTSUPP)
        }

        fn finish(_cx: &Finish<'_>, _outcome: Outcome<'_, u64>) {}
    }

    static FIRST: FileHandler<Kunit> = FileHandler::new();
    static TWIN: FileHandler<Kunit> = FileHandler::new();

    fn registry() -> Result<Arc<Registry>> {
        Arc::pin_init(Registry::new(), GFP_KERNEL)
    }

    fn name() -> Result<Compatible> {
        Compatible::new(b"luo-kunit").ok_or(EINVAL)
    }

    fn raw(handler: &'static FileHandler<Kunit>) -> NonNull<bindings::liveupdate_file_handler> {
        // SAFETY: The address of a static is not null.
        unsafe { NonNull::new_unchecked(handler.as_ptr()) }
    }

    fn add(registry: &Registry, handler: &'static FileHandler<Kunit>) -> Result {
        // SAFETY: A static handler is always valid.
        unsafe { registry.register(raw(handler)) }
    }

    #[test]
    fn a_handler_is_found_until_it_leaves() -> Result {
        let registry = registry()?;
        assert!(registry.by_compatible(&name()?).is_err());
        add(&registry, &FIRST)?;
        assert!(registry.by_compatible(&name()?).is_ok());
        registry.unregister(raw(&FIRST));
        assert!(registry.by_compatible(&name()?).is_err());
        Ok(())
    }

    #[test]
    fn a_compatible_string_is_taken_once() -> Result {
        let registry = registry()?;
        add(&registry, &FIRST)?;
        assert_eq!(add(&registry, &FIRST), Err(EEXIST));
        assert_eq!(add(&registry, &TWIN), Err(EEXIST));
        // The twin is not registered, so taking it away changes nothing.
        registry.unregister(raw(&TWIN));
        assert!(registry.by_compatible(&name()?).is_ok());
        registry.unregister(raw(&FIRST));
        add(&registry, &TWIN)
    }

    #[test]
    fn a_handler_without_callbacks_or_name_is_refused() -> Result {
        let registry = registry()?;
        let mut handler: bindings::liveupdate_file_handler = pin_init::zeroed();
        // SAFETY: The handler is valid throughout both calls, which do not keep it.
        unsafe {
            assert_eq!(registry.register((&mut handler).into()), Err(EINVAL));
            handler.ops = (*FIRST.as_ptr()).ops;
            assert_eq!(registry.register((&mut handler).into()), Err(EINVAL));
        }
        Ok(())
    }
}

#[cfg(CONFIG_LIVEUPDATE_RUST_KUNIT_TEST)]
mod flb_tests;
