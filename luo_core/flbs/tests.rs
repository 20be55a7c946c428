// SPDX-License-Identifier: GPL-2.0

//! FLBs that were handed over.
//!
//! As with files, these are C ones, to which the data is a number and not an address.

use super::*;
use crate::{
    handler::errno,
    incoming::Handover,
    testing::{
        called,
        calls_were,
        fail,
        never_fail,
        raw_flb,
        reset,
        Call::*,
        FAILURE,
        FIRST, //
    },
    HandedOver, //
};
use luo_abi::luo;

extern "C" fn preserve(_args: *mut FlbArgs) -> c_int {
    EOPNOTSUPP.to_errno()
}

extern "C" fn unpreserve(_args: *mut FlbArgs) {}

/// # Safety
///
/// Only for the orchestrator.
unsafe extern "C" fn retrieve(args: *mut FlbArgs) -> c_int {
    // SAFETY: The caller lends us its arguments.
    let args = unsafe { &mut *args };
    errno(called(FlbRetrieve, args.data as u32).map(|()| {
        args.obj = args.data as *mut c_void;
    }))
}

/// # Safety
///
/// Only for the orchestrator.
unsafe extern "C" fn finish(args: *mut FlbArgs) {
    // SAFETY: The caller lends us its arguments.
    let _ = called(FlbFinish, unsafe { (*args).obj } as u32);
}

const OPS: bindings::liveupdate_flb_ops = bindings::liveupdate_flb_ops {
    preserve: Some(preserve),
    unpreserve: Some(unpreserve),
    retrieve: Some(retrieve),
    finish: Some(finish),
    owner: core::ptr::null_mut(),
};

/// The FLB of a name.
fn flb(name: &[u8]) -> Result<KBox<bindings::liveupdate_flb>> {
    let mut flb: bindings::liveupdate_flb = pin_init::zeroed();
    flb.ops = &OPS;
    for (slot, byte) in flb.compatible.iter_mut().zip(name) {
        *slot = *byte;
    }
    Ok(KBox::new(flb, GFP_KERNEL)?)
}

fn entry(name: &[u8], data: u64, count: u64) -> Result<luo::Flb> {
    let name = Compatible::new(name).ok_or(EINVAL)?;
    Ok(luo::Flb { name, data, count })
}

/// An orchestrator to which these were handed over, and FLBs that go with it.
struct Fixture {
    luo: Arc<Luo>,
    one: KBox<bindings::liveupdate_flb>,
    two: KBox<bindings::liveupdate_flb>,
}

impl Fixture {
    /// FLB `one`, on which so many files depend, and `two` of two files.
    fn new(count: u64) -> Result<Self> {
        reset();
        let mut flbs = KVec::new();
        for entry in [entry(b"one", 1, count)?, entry(b"two", 2, 2)?] {
            let flb = IncomingFlbs::read_entry(&entry, &flbs)?;
            flbs.push(flb, GFP_KERNEL)?;
        }
        Self::with(IncomingFlbs::Flbs(flbs))
    }

    fn with(flbs: IncomingFlbs) -> Result<Self> {
        let handed_over = HandedOver {
            flbs,
            ..HandedOver::new(1, Handover::Unread(0))
        };
        Ok(Self {
            luo: Luo::new(handed_over)?,
            one: flb(b"one")?,
            two: flb(b"two")?,
        })
    }

    fn get(&mut self) -> Result<usize> {
        // SAFETY: The FLB is as valid as the fixture.
        let object = unsafe { self.luo.get_incoming_flb((&mut *self.one).into()) };
        object.map(|object| object as usize)
    }

    fn put(&mut self) {
        // SAFETY: As above.
        unsafe { self.luo.put_incoming_flb((&mut *self.one).into()) };
    }

    /// What the finish of a file does that depends on both.
    fn finish_file(&mut self) -> Result {
        // SAFETY: As above.
        let (one, two) = unsafe {
            (
                Flb::new((&mut *self.one).into())?,
                Flb::new((&mut *self.two).into())?,
            )
        };
        HandlerFlbs::new(&[one, two])?.finish(&self.luo.incoming_flbs);
        Ok(())
    }
}

#[kunit_tests(luo_incoming_flbs)]
mod cases {
    use super::*;

    #[test]
    fn the_last_file_finishes_them_in_the_opposite_order() -> Result {
        let mut fixture = Fixture::new(2)?;
        fixture.finish_file()?;
        assert!(calls_were(&[]));
        fixture.finish_file()?;
        // Nobody asked for them before.
        assert!(calls_were(&[
            (FlbRetrieve, 2),
            (FlbFinish, 2),
            (FlbRetrieve, 1),
            (FlbFinish, 1),
        ]));
        assert_eq!(fixture.get(), Err(ENODATA));
        fixture.put();
        fixture.finish_file()?;
        assert!(calls_were(&[]));
        Ok(())
    }

    #[test]
    fn an_object_is_retrieved_once_and_kept_by_its_users() -> Result {
        let mut fixture = Fixture::new(2)?;
        assert_eq!(fixture.get(), Ok(1));
        assert_eq!(fixture.get(), Ok(1));
        fixture.put();
        assert!(calls_were(&[(FlbRetrieve, 1)]));
        fixture.finish_file()?;
        fixture.finish_file()?;
        assert!(calls_were(&[(FlbRetrieve, 2), (FlbFinish, 2)]));
        assert_eq!(fixture.get(), Ok(1));
        fixture.put();
        fixture.put();
        assert!(calls_were(&[(FlbFinish, 1)]));
        assert_eq!(fixture.get(), Err(ENODATA));
        Ok(())
    }

    #[test]
    fn a_failed_retrieve_is_remembered() -> Result {
        let mut fixture = Fixture::new(2)?;
        fail(FlbRetrieve, 1);
        assert_eq!(fixture.get(), Err(FAILURE));
        never_fail();
        assert_eq!(fixture.get(), Err(FAILURE));
        assert!(calls_were(&[(FlbRetrieve, 1)]));
        fixture.finish_file()?;
        fixture.put();
        fixture.finish_file()?;
        assert!(calls_were(&[(FlbRetrieve, 2), (FlbFinish, 2)]));
        assert_eq!(fixture.get(), Err(FAILURE));
        Ok(())
    }

    #[test]
    fn the_retrieve_for_the_finish_may_fail() -> Result {
        let mut fixture = Fixture::new(1)?;
        fail(FlbRetrieve, 1);
        fixture.finish_file()?;
        assert!(calls_were(&[(FlbRetrieve, 1)]));
        assert_eq!(fixture.get(), Err(FAILURE));
        Ok(())
    }

    #[test]
    fn only_what_was_handed_over_can_be_had() -> Result {
        let mut fixture = Fixture::new(1)?;
        let mut unknown = flb(b"three")?;
        // SAFETY: The FLB is valid.
        let found = unsafe { fixture.luo.get_incoming_flb((&mut *unknown).into()) };
        assert_eq!(found.err(), Some(ENOENT));
        for (prefix, expected) in [(&b"o"[..], true), (b"two", true), (b"one2", false)] {
            assert!(fixture.luo.has_incoming_flb(prefix) == expected);
        }
        // One of the same name that did not retrieve it.
        assert_eq!(fixture.get(), Ok(1));
        let mut twin = flb(b"one")?;
        // SAFETY: As above.
        let found = unsafe { fixture.luo.get_incoming_flb((&mut *twin).into()) };
        assert_eq!(found.err(), Some(EEXIST));
        // It counts for nothing.
        fixture.put();
        assert!(calls_were(&[(FlbRetrieve, 1)]));
        fixture.finish_file()?;
        assert!(calls_were(&[(FlbFinish, 1)]));

        let mut fixture = Fixture::with(IncomingFlbs::Nothing)?;
        assert_eq!(fixture.get(), Err(ENODATA));
        assert!(!fixture.luo.has_incoming_flb(b""));
        fixture.finish_file()?;
        fixture.put();
        assert!(calls_were(&[]));

        let mut fixture = Fixture::with(IncomingFlbs::Broken)?;
        assert_eq!(fixture.get(), Err(EIO));
        fixture.put();
        assert!(calls_were(&[]));
        Ok(())
    }

    #[test]
    fn broken_entries_are_refused() -> Result {
        let one = IncomingFlbs::read_entry(&entry(b"one", 1, 1)?, &[])?;
        let twice = IncomingFlbs::read_entry(&entry(b"one", 2, 1)?, &[one]);
        assert_eq!(twice.err(), Some(EINVAL));
        for byte in [0, b'x'] {
            let nameless = luo::Flb {
                name: Compatible::from_bytes([byte; luo::COMPATIBLE_LEN]),
                data: 0,
                count: 0,
            };
            let result = IncomingFlbs::read_entry(&nameless, &[]);
            assert_eq!(result.err(), Some(EINVAL));
        }
        for phys in [8, 0x1000, u64::MAX] {
            assert_eq!(IncomingFlbs::read(phys).err(), Some(EINVAL));
        }
        assert!(IncomingFlbs::read(0).is_ok());
        Ok(())
    }

    /// To an FLB in Rust the data is the address of its state, and this is none.
    #[test]
    fn a_state_that_was_not_handed_over_is_refused() -> Result {
        reset();
        let entry = entry(b"luo-kunit-flb-1", 0x1000, 1)?;
        let mut flbs = KVec::new();
        flbs.push(IncomingFlbs::read_entry(&entry, &[])?, GFP_KERNEL)?;
        let fixture = Fixture::with(IncomingFlbs::Flbs(flbs))?;
        for _ in 0..2 {
            // SAFETY: A static FLB is valid.
            let found = unsafe { fixture.luo.get_incoming_flb(raw_flb(&FIRST)) };
            assert_eq!(found.err(), Some(EINVAL));
        }
        assert!(calls_were(&[]));
        Ok(())
    }
}
