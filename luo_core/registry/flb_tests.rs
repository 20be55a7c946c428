// SPDX-License-Identifier: GPL-2.0

//! Which FLBs can be registered, and with whom they leave.

use super::*;
use crate::{
    flbs::MAX_FLBS,
    testing::{
        raw,
        raw_flb,
        BARE,
        FIRST,
        FULL,
        SECOND,
        TWIN, //
    }, //
};

fn registry() -> Result<Arc<Registry>> {
    let registry = Arc::pin_init(Registry::new(), GFP_KERNEL)?;
    // SAFETY: Static handlers are always valid.
    unsafe {
        registry.register(raw(&FULL))?;
        registry.register(raw(&BARE))?;
    }
    Ok(registry)
}

impl Registry {
    fn link(
        &self,
        handler: NonNull<bindings::liveupdate_file_handler>,
        flb: NonNull<bindings::liveupdate_flb>,
    ) -> Result {
        // SAFETY: What the tests link is static, or outlives the registry.
        unsafe { self.register_flb(handler, flb) }
    }

    fn nth_flb(&self, index: usize) -> Option<Arc<Flb>> {
        self.all_flbs().get(index).cloned().flatten()
    }

    fn flb_count(&self) -> usize {
        self.registered.read().flbs.len()
    }
}

/// An FLB in C, numbered.
fn numbered(number: usize) -> Result<KBox<bindings::liveupdate_flb>> {
    let mut flb: bindings::liveupdate_flb = pin_init::zeroed();
    // SAFETY: A static FLB is valid.
    flb.ops = unsafe { (*FIRST.as_ptr()).ops };
    let digits = [b'n', b'0' + (number / 10) as u8, b'0' + (number % 10) as u8];
    for (slot, digit) in flb.compatible.iter_mut().zip(digits) {
        *slot = digit;
    }
    Ok(KBox::new(flb, GFP_KERNEL)?)
}

#[kunit_tests(luo_registry_flbs)]
mod cases {
    use super::*;

    #[test]
    fn an_flb_is_found_as_long_as_a_handler_has_it() -> Result {
        let registry = registry()?;
        let (first, second) = (raw_flb(&FIRST), raw_flb(&SECOND));
        assert_eq!(registry.flb(first).err(), Some(ENOENT));
        assert!(registry.nth_flb(0).is_none());
        registry.link(raw(&FULL), second)?;
        registry.link(raw(&FULL), first)?;
        registry.link(raw(&BARE), second)?;
        assert_eq!(registry.flb_count(), 2);
        // In the order of their registration.
        assert!(registry.nth_flb(0).is_some_and(|flb| flb.is(second)));
        assert!(registry.nth_flb(1).is_some_and(|flb| flb.is(first)));
        assert!(registry.nth_flb(2).is_none());

        // They leave with the last handler.
        registry.unregister(raw(&FULL));
        assert_eq!(registry.flb(first).err(), Some(ENOENT));
        assert!(registry.flb(second).is_ok());
        assert!(registry.nth_flb(0).is_some_and(|flb| flb.is(second)));
        registry.unregister(raw(&BARE));
        assert_eq!(registry.flb(second).err(), Some(ENOENT));
        assert_eq!(registry.flb_count(), 0);
        Ok(())
    }

    #[test]
    fn an_flb_can_leave_one_handler() -> Result {
        let registry = registry()?;
        let first = raw_flb(&FIRST);
        registry.link(raw(&FULL), first)?;
        registry.link(raw(&BARE), first)?;
        registry.unregister_flb(raw(&FULL), first);
        assert!(registry.flb(first).is_ok());
        // What it does not have is none.
        registry.unregister_flb(raw(&FULL), first);
        registry.unregister_flb(raw(&BARE), raw_flb(&SECOND));
        assert!(registry.flb(first).is_ok());
        registry.unregister_flb(raw(&BARE), first);
        assert_eq!(registry.flb(first).err(), Some(ENOENT));
        registry.link(raw(&FULL), first)
    }

    #[test]
    fn an_flb_is_linked_once() -> Result {
        let registry = registry()?;
        let (second, twin) = (raw_flb(&SECOND), raw_flb(&TWIN));
        registry.link(raw(&FULL), second)?;
        assert_eq!(registry.link(raw(&FULL), second), Err(EEXIST));
        // There is one of a name in the system, whoever asks.
        assert_eq!(registry.link(raw(&FULL), twin), Err(EEXIST));
        assert_eq!(registry.link(raw(&BARE), twin), Err(EEXIST));
        assert_eq!(registry.flb_count(), 1);
        assert_eq!(registry.flb(twin).err(), Some(ENOENT));
        registry.unregister(raw(&FULL));
        registry.link(raw(&BARE), twin)?;
        assert!(registry.flb(twin).is_ok());
        Ok(())
    }

    #[test]
    fn a_handler_that_is_not_registered_has_no_flb() -> Result {
        let registry = registry()?;
        registry.unregister(raw(&BARE));
        let first = raw_flb(&FIRST);
        assert_eq!(registry.link(raw(&BARE), first), Err(EINVAL));
        assert_eq!(registry.flb_count(), 0);
        registry.link(raw(&FULL), first)?;
        assert_eq!(registry.link(raw(&BARE), first), Err(EINVAL));
        Ok(())
    }

    #[test]
    fn an_flb_without_callbacks_or_name_is_refused() -> Result {
        let registry = registry()?;
        let mut flb = numbered(1)?;
        // SAFETY: A static FLB's operations are valid.
        let whole = unsafe { *(*FIRST.as_ptr()).ops };
        let lacks = |change: fn(&mut bindings::liveupdate_flb_ops)| {
            let mut ops = whole;
            change(&mut ops);
            ops
        };
        for ops in [
            lacks(|ops| ops.preserve = None),
            lacks(|ops| ops.unpreserve = None),
            lacks(|ops| ops.retrieve = None),
            lacks(|ops| ops.finish = None),
        ] {
            flb.ops = &ops;
            let refused = registry.link(raw(&FULL), (&mut *flb).into());
            assert_eq!(refused, Err(EINVAL));
        }
        flb.ops = core::ptr::null();
        assert_eq!(registry.link(raw(&FULL), (&mut *flb).into()), Err(EINVAL));
        flb.ops = &whole;
        flb.compatible = [0; 48];
        assert_eq!(registry.link(raw(&FULL), (&mut *flb).into()), Err(EINVAL));
        flb.compatible = [b'x'; 48];
        assert_eq!(registry.link(raw(&FULL), (&mut *flb).into()), Err(EINVAL));
        assert_eq!(registry.flb_count(), 0);
        Ok(())
    }

    #[test]
    fn there_is_room_for_63() -> Result {
        let mut flbs = KVec::new();
        for number in 0..=MAX_FLBS {
            flbs.push(numbered(number)?, GFP_KERNEL)?;
        }
        let registry = registry()?;
        assert_eq!(MAX_FLBS, 63);
        let mut last = None;
        for (number, flb) in flbs.iter_mut().enumerate() {
            let flb: NonNull<_> = (&mut **flb).into();
            let result = registry.link(raw(&FULL), flb);
            match number < MAX_FLBS {
                true => assert_eq!(result, Ok(())),
                false => assert_eq!(result, Err(ENOSPC)),
            }
            // One that is there takes no more room.
            if number + 1 == MAX_FLBS {
                assert_eq!(registry.link(raw(&BARE), flb), Ok(()));
                last = Some(flb);
            }
        }
        assert_eq!(registry.link(raw(&BARE), raw_flb(&FIRST)), Err(ENOSPC));
        assert_eq!(registry.flb_count(), MAX_FLBS);
        // Where one leaves, another can come.
        let last = last.ok_or(EINVAL)?;
        registry.unregister_flb(raw(&FULL), last);
        assert_eq!(registry.link(raw(&BARE), raw_flb(&FIRST)), Err(ENOSPC));
        registry.unregister_flb(raw(&BARE), last);
        registry.link(raw(&BARE), raw_flb(&FIRST))?;
        registry.unregister(raw(&FULL));
        assert_eq!(registry.flb_count(), 1);
        Ok(())
    }
}
