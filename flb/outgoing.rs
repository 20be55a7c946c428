// SPDX-License-Identifier: GPL-2.0

//! An object on its way to the next kernel.
//!
//! C counterpart: `outgoing` in `struct luo_flb_private`.

use kernel::{
    prelude::*,
    sync::{
        static_lock_class,
        LockClassKey,
        Mutex, //
    }, //
};

/// The life of an object in the kernel that saves it: preserved with the first file, unpreserved
/// with the last.
///
/// `L` is whatever the caller wants to keep beside the saved state's `data`. All closures run with
/// the mutex held. Dropping this drops the object without unpreserving it.
///
/// C counterpart: `outgoing` in `struct luo_flb_private`.
#[pin_data]
pub struct Outgoing<L> {
    /// `None` as long as nothing is saved.
    #[pin]
    saved: Mutex<Option<Saved<L>>>,
}

/// # Invariants
///
/// A file depends on it or somebody uses it, whenever the mutex is free.
struct Saved<L> {
    /// What the next kernel is given to find the state.
    data: u64,
    object: L,
    /// How many preserved files depend on it.
    files: u64,
    /// How often it is in use apart from that.
    users: u64,
}

/// The name and the class of all such locks.
///
/// Not in a generic function, whose literals are in whoever instantiates it: lockdep expects one
/// name of a class, and compares addresses.
#[inline(never)]
fn lock_class() -> (&'static CStr, Pin<&'static LockClassKey>) {
    (c"Outgoing", static_lock_class!())
}

impl<L: Unpin> Outgoing<L> {
    /// Nothing is saved yet.
    pub fn new() -> impl PinInit<Self> {
        let (name, class) = lock_class();
        pin_init!(Self {
            saved <- Mutex::new(None, name, class),
        })
    }

    /// Counts a file that is about to be preserved.
    ///
    /// If nothing is saved yet, `preserve` does that, and gives the data for the next kernel and
    /// the object. Its error is returned, and leaves everything as it was.
    ///
    /// C counterpart: `luo_flb_file_preserve_one()`.
    pub fn add_file(&self, preserve: impl FnOnce() -> Result<(u64, L)>) -> Result {
        let mut slot = self.saved.lock();
        if let Some(saved) = &mut *slot {
            saved.files += 1;
            return Ok(());
        }
        let (data, object) = preserve()?;
        // INVARIANT: This file depends on it.
        *slot = Some(Saved {
            data,
            object,
            files: 1,
            users: 0,
        });
        Ok(())
    }

    /// Takes back [`Self::add_file`], for a file that was unpreserved.
    ///
    /// If it was the last one and nobody uses the object, that is unpreserved. A file too many is
    /// ignored.
    ///
    /// C counterpart: `luo_flb_file_unpreserve()`.
    pub fn remove_file(&self, unpreserve: impl FnOnce(u64, L)) {
        self.count_down(|saved| &mut saved.files, unpreserve);
    }

    /// Shows the object to `look` and counts a user, who has to [`Self::put`] it.
    ///
    /// Fails with `ENOENT` if nothing is saved.
    ///
    /// C counterpart: `liveupdate_flb_get_outgoing()`.
    pub fn get<R>(&self, look: impl FnOnce(&L) -> R) -> Result<R> {
        let mut slot = self.saved.lock();
        let Some(saved) = &mut *slot else {
            return Err(ENOENT);
        };
        saved.users += 1;
        Ok(look(&saved.object))
    }

    /// Takes back [`Self::get`].
    ///
    /// If no other user is left and no file either, the object is unpreserved. A put too many is
    /// ignored.
    ///
    /// C counterpart: `liveupdate_flb_put_outgoing()`.
    pub fn put(&self, unpreserve: impl FnOnce(u64, L)) {
        self.count_down(|saved| &mut saved.users, unpreserve);
    }

    fn count_down(
        &self,
        count: impl FnOnce(&mut Saved<L>) -> &mut u64,
        unpreserve: impl FnOnce(u64, L),
    ) {
        let mut slot = self.saved.lock();
        if let Some(saved) = &mut *slot {
            let count = count(saved);
            *count = count.saturating_sub(1);
        }
        // INVARIANT: It goes with the last of both.
        if let Some(saved) = slot.take_if(|saved| saved.files == 0 && saved.users == 0) {
            unpreserve(saved.data, saved.object);
        }
    }

    /// What is written down for the next kernel: the data, and the number of files.
    ///
    /// `None` if no file depends on the object. Users are not counted: they are no file's, so
    /// nobody there would ever take them back.
    ///
    /// C counterpart: `luo_flb_serialize()`, for one object.
    pub fn handover(&self) -> Option<(u64, u64)> {
        let slot = self.saved.lock();
        let saved = slot.as_ref().filter(|saved| saved.files > 0)?;
        Some((saved.data, saved.files))
    }
}

#[cfg(CONFIG_LIVEUPDATE_RUST_KUNIT_TEST)]
#[kunit_tests(luo_flb_outgoing)]
mod tests {
    use super::*;
    use core::cell::Cell;
    use kernel::sync::Arc;

    /// An object that remembers how it was called. The n-th preserve gives `nth(n)`.
    struct Flb {
        outgoing: Arc<Outgoing<u32>>,
        preserves: Cell<u32>,
        /// What was unpreserved since the test last looked.
        unpreserved: Cell<Option<(u64, u32)>>,
    }

    fn nth(n: u32) -> (u64, u32) {
        (0x1000 + u64::from(n), n)
    }

    impl Flb {
        fn new() -> Result<Self> {
            Ok(Self {
                outgoing: Arc::pin_init(Outgoing::new(), GFP_KERNEL)?,
                preserves: Cell::new(0),
                unpreserved: Cell::new(None),
            })
        }

        fn add_file(&self) -> Result {
            self.outgoing.add_file(|| {
                self.preserves.set(self.preserves.get() + 1);
                Ok(nth(self.preserves.get()))
            })
        }

        fn remove_file(&self) -> Option<(u64, u32)> {
            self.outgoing
                .remove_file(|data, object| self.unpreserved.set(Some((data, object))));
            self.unpreserved.take()
        }

        fn get(&self) -> Result<u32> {
            self.outgoing.get(|object| *object)
        }

        fn put(&self) -> Option<(u64, u32)> {
            self.outgoing
                .put(|data, object| self.unpreserved.set(Some((data, object))));
            self.unpreserved.take()
        }
    }

    #[test]
    fn the_first_file_preserves_and_the_last_unpreserves() -> Result {
        let flb = Flb::new()?;
        flb.add_file()?;
        flb.add_file()?;
        flb.add_file()?;
        assert_eq!(flb.preserves.get(), 1);
        assert_eq!(flb.remove_file(), None);
        assert_eq!(flb.remove_file(), None);
        assert_eq!(flb.remove_file(), Some(nth(1)));
        assert_eq!(flb.preserves.get(), 1);
        Ok(())
    }

    #[test]
    fn it_lives_again_with_the_next_file() -> Result {
        let flb = Flb::new()?;
        flb.add_file()?;
        assert_eq!(flb.remove_file(), Some(nth(1)));
        assert_eq!(flb.get(), Err(ENOENT));
        flb.add_file()?;
        assert_eq!(flb.preserves.get(), 2);
        assert_eq!(flb.get(), Ok(2));
        assert_eq!(flb.put(), None);
        assert_eq!(flb.remove_file(), Some(nth(2)));
        Ok(())
    }

    #[test]
    fn a_failure_to_preserve_leaves_nothing() -> Result {
        let flb = Flb::new()?;
        assert_eq!(flb.outgoing.add_file(|| Err(ENOSPC)), Err(ENOSPC));
        assert_eq!(flb.get(), Err(ENOENT));
        assert_eq!(flb.outgoing.handover(), None);
        assert_eq!(flb.remove_file(), None);

        flb.add_file()?;
        assert_eq!(flb.outgoing.handover(), Some((nth(1).0, 1)));
        assert_eq!(flb.remove_file(), Some(nth(1)));
        Ok(())
    }

    #[test]
    fn only_the_first_file_can_fail_to_preserve() -> Result {
        let flb = Flb::new()?;
        flb.add_file()?;
        assert_eq!(flb.outgoing.add_file(|| Err(ENOSPC)), Ok(()));
        assert_eq!(flb.outgoing.handover(), Some((nth(1).0, 2)));
        Ok(())
    }

    #[test]
    fn a_user_needs_something_saved() -> Result {
        let flb = Flb::new()?;
        assert_eq!(flb.get(), Err(ENOENT));
        // The failed get counted nobody.
        flb.add_file()?;
        assert_eq!(flb.remove_file(), Some(nth(1)));
        Ok(())
    }

    #[test]
    fn a_user_keeps_it_past_the_last_file() -> Result {
        let flb = Flb::new()?;
        flb.add_file()?;
        assert_eq!(flb.get(), Ok(1));
        assert_eq!(flb.get(), Ok(1));
        assert_eq!(flb.remove_file(), None);
        assert_eq!(flb.put(), None);
        // It can still be had while somebody else has it.
        assert_eq!(flb.get(), Ok(1));
        assert_eq!(flb.put(), None);
        assert_eq!(flb.put(), Some(nth(1)));
        assert_eq!(flb.get(), Err(ENOENT));
        Ok(())
    }

    #[test]
    fn a_file_outlives_the_users() -> Result {
        let flb = Flb::new()?;
        flb.add_file()?;
        assert_eq!(flb.get(), Ok(1));
        assert_eq!(flb.put(), None);
        assert_eq!(flb.get(), Ok(1));
        assert_eq!(flb.put(), None);
        assert_eq!(flb.remove_file(), Some(nth(1)));
        Ok(())
    }

    #[test]
    fn a_file_joins_what_only_a_user_kept() -> Result {
        let flb = Flb::new()?;
        flb.add_file()?;
        assert_eq!(flb.get(), Ok(1));
        assert_eq!(flb.remove_file(), None);
        flb.add_file()?;
        assert_eq!(flb.preserves.get(), 1);
        assert_eq!(flb.outgoing.handover(), Some((nth(1).0, 1)));
        assert_eq!(flb.put(), None);
        assert_eq!(flb.remove_file(), Some(nth(1)));
        Ok(())
    }

    #[test]
    fn what_is_too_many_is_ignored() -> Result {
        let flb = Flb::new()?;
        assert_eq!(flb.remove_file(), None);
        assert_eq!(flb.put(), None);

        // Neither count is taken from the other.
        flb.add_file()?;
        assert_eq!(flb.put(), None);
        assert_eq!(flb.get(), Ok(1));
        assert_eq!(flb.remove_file(), None);
        assert_eq!(flb.remove_file(), None);
        assert_eq!(flb.put(), Some(nth(1)));

        assert_eq!(flb.put(), None);
        assert_eq!(flb.remove_file(), None);
        flb.add_file()?;
        assert_eq!(flb.outgoing.handover(), Some((nth(2).0, 1)));
        Ok(())
    }

    #[test]
    fn the_handover_counts_files_only() -> Result {
        let flb = Flb::new()?;
        assert_eq!(flb.outgoing.handover(), None);
        flb.add_file()?;
        flb.add_file()?;
        assert_eq!(flb.get(), Ok(1));
        assert_eq!(flb.outgoing.handover(), Some((nth(1).0, 2)));
        assert_eq!(flb.remove_file(), None);
        assert_eq!(flb.outgoing.handover(), Some((nth(1).0, 1)));
        // Used, but no file's: there is nothing to hand over.
        assert_eq!(flb.remove_file(), None);
        assert_eq!(flb.outgoing.handover(), None);
        assert_eq!(flb.put(), Some(nth(1)));
        Ok(())
    }
}
