// SPDX-License-Identifier: GPL-2.0

//! How a module's handlers and FLBs get to the orchestrator, and leave it.
//!
//! [`module_liveupdate!`](crate::module_liveupdate) makes a static of each, has the module's init
//! glue register them all, and its exit glue take them back. The orchestrator does not use them
//! before the module is live, so they appear together; and a module whose handler has a file
//! preserved, or retrieved and not finished, is in use and cannot be unloaded.

use kernel::{
    error::to_result,
    prelude::*, //
};

use core::mem::size_of;

use crate::{
    bindings,
    flb::{
        Declared,
        Flb, //
    },
    handler::{
        self,
        FileHandler,
        LiveupdateFileHandler, //
    },
};

use luo_abi::luo::Alias;

/// A module without anything of its own but handlers.
#[doc(hidden)]
pub struct NoModule;

impl kernel::Module for NoModule {
    fn init(_module: &'static ThisModule) -> Result<Self> {
        Ok(Self)
    }
}

/// A handler that a module has; [`module_liveupdate!`](crate::module_liveupdate) implements it, once.
#[doc(hidden)]
pub trait Listed: LiveupdateFileHandler {}

/// One of a module's handlers, and the FLBs that it depends on.
#[doc(hidden)]
pub struct Member {
    handler: *mut bindings::liveupdate_file_handler,
    flbs: &'static [fn() -> *mut bindings::liveupdate_flb],
}

// SAFETY: A member points to statics, and any task may register and unregister them.
unsafe impl Sync for Member {}

impl Member {
    /// A handler that depends on `flbs`.
    pub const fn new<T: Listed>(
        handler: &'static FileHandler<T>,
        flbs: &'static [fn() -> *mut bindings::liveupdate_flb],
    ) -> Self {
        Self {
            handler: handler.as_ptr(),
            flbs,
        }
    }

    fn register(&self) -> Result {
        // SAFETY: The handler is static, and goes with its module, which takes it back before.
        to_result(unsafe { bindings::liveupdate_register_file_handler(self.handler) })?;
        for flb in self.flbs {
            // SAFETY: As above.
            to_result(unsafe { bindings::liveupdate_register_flb(self.handler, flb()) })
                .inspect_err(|_| self.unregister())?;
        }
        Ok(())
    }

    /// Takes back the handler and, with it, its FLBs.
    fn unregister(&self) {
        // SAFETY: The handler is static.
        unsafe { bindings::liveupdate_unregister_file_handler(self.handler) };
    }
}

/// The C side of an FLB.
#[doc(hidden)]
pub fn flb<T: Declared>() -> *mut bindings::liveupdate_flb {
    let flb: &'static Flb<T> = T::flb();
    flb.as_ptr()
}

/// A module's handlers and FLBs; dropping it takes them back.
#[doc(hidden)]
pub struct Registered(&'static [Member]);

impl Registered {
    /// Registers all members or none. With live update off, that is none, and no error.
    ///
    /// Errors: `EEXIST`, a compatible string is taken (which the module loader makes `EBUSY` of);
    /// `ENOSPC`, there are too many FLBs; `ENOMEM`.
    ///
    /// # Safety
    ///
    /// Only for [`module_liveupdate!`](crate::module_liveupdate): the members must be of one module,
    /// their FLBs valid, and the result must be dropped before that module goes.
    pub unsafe fn new(members: &'static [Member]) -> Result<Self> {
        // SAFETY: No requirement.
        if !unsafe { bindings::liveupdate_enabled() } {
            return Ok(Self(&[]));
        }
        for (done, member) in members.iter().enumerate() {
            if let Err(err) = member.register() {
                drop(Self(members.get(..done).unwrap_or_default()));
                return Err(err);
            }
        }
        Ok(Self(members))
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        for member in self.0.iter().rev() {
            member.unregister();
        }
    }
}

const ALIAS_FIELD: &[u8] = b"alias=";

/// Size in bytes of [`alias`].
#[doc(hidden)]
pub const ALIAS_LEN: usize = ALIAS_FIELD.len() + size_of::<Alias>();

/// What a module's `.modinfo` section says of a handler, so that `modprobe(8)` finds it.
#[doc(hidden)]
pub const fn alias<T: LiveupdateFileHandler>() -> [u8; ALIAS_LEN] {
    let alias = handler::alias(T::COMPATIBLE);
    let mut field = [0; ALIAS_LEN];
    let mut i = 0;
    while i < ALIAS_LEN {
        field[i] = match i.checked_sub(ALIAS_FIELD.len()) {
            None => ALIAS_FIELD[i],
            Some(i) => alias.field()[i],
        };
        i += 1;
    }
    field
}

/// Declares a kernel module that has file handlers, in place of [`kernel::prelude::module!`].
///
/// It takes `handlers`, each with the FLBs that it depends on if there are any; `flbs`, all FLBs
/// among them; the module's own `type` before that, if it has one; and after them whatever `module!`
/// takes. The handlers are there when the module is loaded, after its own `init`, and until it is
/// unloaded, before its own value is dropped. If one of them cannot be registered, the module does
/// not load; if live update is off, it loads without them.
///
/// ```ignore
/// luo_core::module_liveupdate! {
///     type: CounterModule,
///     handlers: [CounterHandler: [Total], LabelHandler: [Total]],
///     flbs: [Total],
///     name: "counters",
///     authors: ["Somebody"],
///     description: "Counters that survive a live update",
///     license: "GPL",
/// }
/// ```
#[macro_export]
macro_rules! module_liveupdate {
    (type: $type:ty, handlers: $handlers:tt, flbs: $flbs:tt, $($info:tt)*) => {
        $crate::module_liveupdate!(@module ($type) $handlers $flbs $($info)*);
    };
    (type: $type:ty, handlers: $handlers:tt, $($info:tt)*) => {
        $crate::module_liveupdate!(@module ($type) $handlers [] $($info)*);
    };
    (handlers: $handlers:tt, flbs: $flbs:tt, $($info:tt)*) => {
        $crate::module_liveupdate!(
            @module ($crate::registration::NoModule) $handlers $flbs $($info)*
        );
    };
    (handlers: $handlers:tt, $($info:tt)*) => {
        $crate::module_liveupdate!(
            @module ($crate::registration::NoModule) $handlers [] $($info)*
        );
    };
    (
        @module ($type:ty)
        [$($handler:ty $(: [$($flb:ty),* $(,)?])?),+ $(,)?]
        [$($declared:ty),* $(,)?]
        $($info:tt)*
    ) => {
        $(
            impl $crate::registration::Listed for $handler {}
        )+

        $(
            impl $crate::flb::Declared for $declared {
                fn flb() -> &'static $crate::flb::Flb<Self> {
                    static FLB: $crate::flb::Flb<$declared> = $crate::flb::Flb::new();
                    &FLB
                }
            }
        )*

        // A handler of another module would not keep this one from being unloaded.
        const _: () = {
            const fn handler_of_this_module<T>()
            where
                T: $crate::LiveupdateFileHandler<OwnerModule = LiveupdateModule>,
            {
            }
            const fn flb_of_this_module<T>()
            where
                T: $crate::flb::FileLifecycleBound<OwnerModule = LiveupdateModule>,
            {
            }
            $(handler_of_this_module::<$handler>();)+
            $(flb_of_this_module::<$declared>();)*
        };

        $(
            const _: () = {
                #[cfg(MODULE)]
                #[link_section = ".modinfo"]
                #[used(compiler)]
                static ALIAS: [u8; $crate::registration::ALIAS_LEN] =
                    $crate::registration::alias::<$handler>();
            };
        )+

        #[::kernel::prelude::pin_data]
        struct LiveupdateModule {
            // Goes before what its handlers may use.
            _registered: $crate::registration::Registered,
            #[pin]
            _module: $type,
        }

        impl ::kernel::InPlaceModule for LiveupdateModule {
            fn init(
                module: &'static ::kernel::ThisModule,
            ) -> impl ::pin_init::PinInit<Self, ::kernel::error::Error> {
                static MEMBERS: &[$crate::registration::Member] = &[$({
                    static HANDLER: $crate::handler::FileHandler<$handler> =
                        $crate::handler::FileHandler::new();
                    $crate::registration::Member::new(
                        &HANDLER,
                        &[$($($crate::registration::flb::<$flb>,)*)?],
                    )
                }),+];

                ::kernel::try_pin_init!(Self {
                    _module <- <$type as ::kernel::InPlaceModule>::init(module),
                    // SAFETY: The module's exit glue drops this value, and with it the registration.
                    _registered: unsafe { $crate::registration::Registered::new(MEMBERS) }?,
                })
            }
        }

        ::kernel::prelude::module! {
            type: LiveupdateModule,
            $($info)*
        }
    };
}
