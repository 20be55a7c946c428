// SPDX-License-Identifier: GPL-2.0

//! An object that came from the previous kernel.
//!
//! C counterpart: `incoming` in `struct luo_flb_private`.

use kernel::{
    prelude::*,
    sync::{
        static_lock_class,
        LockClassKey,
        Mutex, //
    }, //
};

use core::mem;

/// The life of an object in the kernel that finds it: retrieved when it is first asked for,
/// finished with the last file.
///
/// `L` is whatever the caller makes of the handed over data. All closures run with the mutex held.
/// Dropping this drops the object without finishing it.
///
/// C counterpart: `incoming` in `struct luo_flb_private`.
#[pin_data]
pub struct Incoming<L> {
    /// Where the previous kernel left the state.
    data: u64,
    #[pin]
    phase: Mutex<Phase<L>>,
}

enum Phase<L> {
    /// Nobody has asked for it yet.
    Unretrieved {
        /// How many files are not finished that depend on it.
        files: u64,
    },
    /// A file depends on it or somebody uses it, whenever the mutex is free.
    Live {
        object: L,
        /// How many files are not finished that depend on it.
        files: u64,
        /// How often it is in use apart from that.
        users: u64,
    },
    Failed(Error),
    Finished,
}

/// The name and the class of all such locks.
///
/// Not in a generic function, whose literals are in whoever instantiates it: lockdep expects one
/// name of a class, and compares addresses.
#[inline(never)]
fn lock_class() -> (&'static CStr, Pin<&'static LockClassKey>) {
    (c"Incoming", static_lock_class!())
}

impl<L: Unpin> Incoming<L> {
    /// Takes over `data`, on which `files` files depend: the two values that the previous kernel's
    /// [`Outgoing::handover`] gave.
    ///
    /// [`Outgoing::handover`]: crate::Outgoing::handover
    pub fn new(data: u64, files: u64) -> impl PinInit<Self> {
        let (name, class) = lock_class();
        pin_init!(Self {
            data,
            phase <- Mutex::new(Phase::Unretrieved { files }, name, class),
        })
    }

    /// Shows the object to `look` and counts a user, who has to [`Self::put`] it.
    ///
    /// If it was not tried before, `retrieve` makes the object from the data. If that fails, its
    /// error is returned now and every time.
    ///
    /// Errors: `ENODATA`, the object was finished; and whatever `retrieve` failed with. Neither
    /// counts a user.
    ///
    /// C counterpart: `liveupdate_flb_get_incoming()`.
    pub fn get<R>(
        &self,
        retrieve: impl FnOnce(u64) -> Result<L>,
        look: impl FnOnce(&L) -> R,
    ) -> Result<R> {
        let mut phase = self.phase.lock();
        phase.retrieve(self.data, retrieve);
        match &mut *phase {
            Phase::Live { object, users, .. } => {
                *users += 1;
                Ok(look(object))
            }
            Phase::Failed(err) => Err(*err),
            // It was just tried, so it is not the former.
            Phase::Unretrieved { .. } | Phase::Finished => Err(ENODATA),
        }
    }

    /// Takes back [`Self::get`].
    ///
    /// If no other user is left and no file either, the object is finished. A put too many is
    /// ignored.
    ///
    /// C counterpart: `liveupdate_flb_put_incoming()`.
    pub fn put(&self, finish: impl FnOnce(L)) {
        let mut phase = self.phase.lock();
        if let Phase::Live { users, .. } = &mut *phase {
            *users = users.saturating_sub(1);
        }
        phase.finish_unneeded(finish);
    }

    /// Takes account of a file that was finished.
    ///
    /// If it was the last one and nobody uses the object, that is finished too. If the object was
    /// never asked for, it is retrieved for that, since nothing else frees what it was made of; a
    /// failure is remembered, and then there is nothing to finish. A file too many is ignored.
    ///
    /// C counterpart: `luo_flb_file_finish()`.
    pub fn remove_file(&self, retrieve: impl FnOnce(u64) -> Result<L>, finish: impl FnOnce(L)) {
        let mut phase = self.phase.lock();
        let (Phase::Unretrieved { files } | Phase::Live { files, .. }) = &mut *phase else {
            return;
        };
        let Some(left) = files.checked_sub(1) else {
            return;
        };
        *files = left;
        if left == 0 {
            phase.retrieve(self.data, retrieve);
            phase.finish_unneeded(finish);
        }
    }
}

impl<L> Phase<L> {
    /// Retrieves the object, if that was not tried before.
    fn retrieve(&mut self, data: u64, retrieve: impl FnOnce(u64) -> Result<L>) {
        if let Phase::Unretrieved { files } = *self {
            *self = match retrieve(data) {
                Ok(object) => Phase::Live {
                    object,
                    files,
                    users: 0,
                },
                Err(err) => Phase::Failed(err),
            };
        }
    }

    /// Finishes the object, if it is there and needed no longer.
    fn finish_unneeded(&mut self, finish: impl FnOnce(L)) {
        match mem::replace(self, Phase::Finished) {
            Phase::Live {
                object,
                files: 0,
                users: 0,
            } => finish(object),
            other => *self = other,
        }
    }
}

#[cfg(CONFIG_LIVEUPDATE_RUST_KUNIT_TEST)]
#[kunit_tests(luo_flb_incoming)]
mod tests {
    use super::*;
    use core::cell::Cell;
    use kernel::sync::Arc;

    const DATA: u64 = 0x1000;

    /// What was called, one hexadecimal digit a call, the latest last.
    const RETRIEVE: u32 = 0x1;
    const FINISH: u32 = 0x2;
    const RETRIEVE_FINISH: u32 = 0x12;

    /// An object that remembers how it was called. The n-th retrieve gives `n`.
    struct Flb {
        incoming: Arc<Incoming<u32>>,
        /// What retrieving fails with, if it does.
        failure: Option<Error>,
        retrieves: Cell<u32>,
        /// The calls since the test last looked.
        calls: Cell<u32>,
    }

    impl Flb {
        fn new(files: u64) -> Result<Self> {
            Ok(Self {
                incoming: Arc::pin_init(Incoming::new(DATA, files), GFP_KERNEL)?,
                failure: None,
                retrieves: Cell::new(0),
                calls: Cell::new(0),
            })
        }

        fn broken(files: u64) -> Result<Self> {
            Ok(Self {
                failure: Some(EBADMSG),
                ..Self::new(files)?
            })
        }

        fn called(&self, what: u32) {
            self.calls.set(self.calls.get() << 4 | what);
        }

        fn retrieve(&self, data: u64) -> Result<u32> {
            self.called(RETRIEVE);
            self.retrieves.set(self.retrieves.get() + 1);
            match self.failure {
                Some(err) => Err(err),
                None if data != DATA => Err(EINVAL),
                None => Ok(self.retrieves.get()),
            }
        }

        fn finish(&self, object: u32) {
            // Any other object is none of ours.
            if object == self.retrieves.get() {
                self.called(FINISH);
            }
        }

        fn get(&self) -> Result<u32> {
            self.incoming
                .get(|data| self.retrieve(data), |object| *object)
        }

        fn put(&self) {
            self.incoming.put(|object| self.finish(object));
        }

        fn remove_file(&self) {
            self.incoming
                .remove_file(|data| self.retrieve(data), |object| self.finish(object));
        }
    }

    #[test]
    fn it_is_retrieved_once_when_asked_for() -> Result {
        let flb = Flb::new(1)?;
        assert_eq!(flb.calls.take(), 0);
        assert_eq!(flb.get(), Ok(1));
        assert_eq!(flb.calls.take(), RETRIEVE);
        assert_eq!(flb.get(), Ok(1));
        flb.put();
        flb.put();
        // The file keeps it, so it need not be retrieved again.
        assert_eq!(flb.get(), Ok(1));
        assert_eq!(flb.calls.take(), 0);
        Ok(())
    }

    #[test]
    fn the_last_file_finishes_it() -> Result {
        let flb = Flb::new(3)?;
        assert_eq!(flb.get(), Ok(1));
        flb.put();
        assert_eq!(flb.calls.take(), RETRIEVE);
        flb.remove_file();
        flb.remove_file();
        assert_eq!(flb.calls.take(), 0);
        flb.remove_file();
        assert_eq!(flb.calls.take(), FINISH);
        Ok(())
    }

    #[test]
    fn it_is_retrieved_to_be_finished() -> Result {
        let flb = Flb::new(2)?;
        flb.remove_file();
        assert_eq!(flb.calls.take(), 0);
        flb.remove_file();
        assert_eq!(flb.calls.take(), RETRIEVE_FINISH);
        assert_eq!(flb.get(), Err(ENODATA));
        assert_eq!(flb.calls.take(), 0);
        Ok(())
    }

    #[test]
    fn it_can_be_had_after_some_files_are_finished() -> Result {
        let flb = Flb::new(2)?;
        flb.remove_file();
        assert_eq!(flb.get(), Ok(1));
        flb.put();
        assert_eq!(flb.calls.take(), RETRIEVE);
        flb.remove_file();
        assert_eq!(flb.calls.take(), FINISH);
        Ok(())
    }

    #[test]
    fn a_user_keeps_it_past_the_last_file() -> Result {
        let flb = Flb::new(1)?;
        assert_eq!(flb.get(), Ok(1));
        assert_eq!(flb.get(), Ok(1));
        flb.remove_file();
        flb.put();
        // It can still be had while somebody else has it.
        assert_eq!(flb.get(), Ok(1));
        flb.put();
        assert_eq!(flb.calls.take(), RETRIEVE);
        flb.put();
        assert_eq!(flb.calls.take(), FINISH);
        assert_eq!(flb.get(), Err(ENODATA));
        Ok(())
    }

    #[test]
    fn it_is_finished_once() -> Result {
        let flb = Flb::new(1)?;
        assert_eq!(flb.get(), Ok(1));
        flb.remove_file();
        flb.put();
        assert_eq!(flb.calls.take(), RETRIEVE << 4 | FINISH);
        flb.put();
        flb.remove_file();
        assert_eq!(flb.get(), Err(ENODATA));
        assert_eq!(flb.get(), Err(ENODATA));
        flb.put();
        flb.remove_file();
        assert_eq!(flb.calls.take(), 0);
        Ok(())
    }

    #[test]
    fn a_failure_to_retrieve_is_remembered() -> Result {
        let flb = Flb::broken(2)?;
        assert_eq!(flb.get(), Err(EBADMSG));
        assert_eq!(flb.calls.take(), RETRIEVE);
        assert_eq!(flb.get(), Err(EBADMSG));
        flb.put();
        flb.remove_file();
        flb.remove_file();
        // All files are finished, but the object never was.
        assert_eq!(flb.get(), Err(EBADMSG));
        flb.remove_file();
        assert_eq!(flb.calls.take(), 0);
        Ok(())
    }

    #[test]
    fn the_last_file_may_find_that_it_cannot_be_retrieved() -> Result {
        let flb = Flb::broken(2)?;
        flb.remove_file();
        assert_eq!(flb.calls.take(), 0);
        flb.remove_file();
        assert_eq!(flb.calls.take(), RETRIEVE);
        assert_eq!(flb.get(), Err(EBADMSG));
        flb.remove_file();
        flb.put();
        assert_eq!(flb.calls.take(), 0);
        Ok(())
    }

    #[test]
    fn a_put_too_many_is_ignored() -> Result {
        let flb = Flb::new(2)?;
        flb.put();
        assert_eq!(flb.calls.take(), 0);
        assert_eq!(flb.get(), Ok(1));
        flb.put();
        flb.put();
        flb.put();
        // No file was taken away by it, and no user is owed.
        flb.remove_file();
        assert_eq!(flb.calls.take(), RETRIEVE);
        assert_eq!(flb.get(), Ok(1));
        flb.remove_file();
        assert_eq!(flb.calls.take(), 0);
        flb.put();
        assert_eq!(flb.calls.take(), FINISH);
        Ok(())
    }

    #[test]
    fn a_file_too_many_is_ignored() -> Result {
        let flb = Flb::new(1)?;
        assert_eq!(flb.get(), Ok(1));
        flb.remove_file();
        flb.remove_file();
        flb.remove_file();
        // No user was taken away by it.
        assert_eq!(flb.calls.take(), RETRIEVE);
        assert_eq!(flb.get(), Ok(1));
        flb.put();
        assert_eq!(flb.calls.take(), 0);
        flb.put();
        assert_eq!(flb.calls.take(), FINISH);
        Ok(())
    }

    #[test]
    fn no_file_needs_no_finish() -> Result {
        let flb = Flb::new(0)?;
        flb.remove_file();
        flb.put();
        assert_eq!(flb.calls.take(), 0);
        // A user can have it all the same, and is then the last one.
        assert_eq!(flb.get(), Ok(1));
        flb.remove_file();
        assert_eq!(flb.calls.take(), RETRIEVE);
        flb.put();
        assert_eq!(flb.calls.take(), FINISH);
        assert_eq!(flb.get(), Err(ENODATA));
        Ok(())
    }

    #[test]
    fn the_greatest_number_of_files_is_none_too_many() -> Result {
        let flb = Flb::new(u64::MAX)?;
        flb.remove_file();
        assert_eq!(flb.get(), Ok(1));
        flb.put();
        assert_eq!(flb.calls.take(), RETRIEVE);
        Ok(())
    }
}
