// SPDX-License-Identifier: GPL-2.0

//! Which files are in the orchestrator's care, whatever session they are in.
//!
//! A file is preserved once at a time. It is told from others by its handler's id (the inode, for
//! a memfd), so that two descriptions of one file count as one.

use kernel::{
    new_mutex,
    prelude::*,
    rbtree::{
        Entry,
        RBTree,
        RBTreeNodeReservation, //
    },
    sync::{
        Arc,
        Mutex, //
    },
};

/// The ids of all files that are preserved, or retrieved and not finished, with their tokens.
#[pin_data]
pub(crate) struct PreservedIds {
    #[pin]
    ids: Mutex<RBTree<usize, u64>>,
}

/// Keeps one id taken; dropping it gives the id back.
pub(crate) struct PreservedId {
    id: usize,
    owner: Arc<PreservedIds>,
}

/// Memory with which an id can be taken without the risk of running out.
pub(crate) struct Reservation(RBTreeNodeReservation<usize, u64>);

impl Reservation {
    /// Allocates it. May sleep; fails with `ENOMEM`.
    pub(crate) fn new() -> Result<Self> {
        Ok(Self(RBTreeNodeReservation::new(GFP_KERNEL)?))
    }
}

impl PreservedIds {
    /// Nothing is preserved yet.
    pub(crate) fn new() -> Result<Arc<Self>> {
        Arc::pin_init(
            pin_init!(Self {
                ids <- new_mutex!(RBTree::new(), "PreservedIds"),
            }),
            GFP_KERNEL,
        )
    }

    /// Takes `id` for the file that some session has as `token`, or fails with `EBUSY` if it is
    /// taken.
    pub(crate) fn take(
        self: &Arc<Self>,
        id: usize,
        token: u64,
        memory: Reservation,
    ) -> Result<PreservedId> {
        match self.ids.lock().entry(id) {
            Entry::Occupied(_) => return Err(EBUSY),
            Entry::Vacant(entry) => entry.insert(token, memory.0),
        };
        Ok(PreservedId {
            id,
            owner: self.clone(),
        })
    }

    /// The token for which `id` was taken, in whatever session.
    pub(crate) fn token(&self, id: usize) -> Option<u64> {
        self.ids.lock().get(&id).copied()
    }
}

impl PreservedId {
    /// The id.
    pub(crate) fn id(&self) -> usize {
        self.id
    }
}

impl Drop for PreservedId {
    fn drop(&mut self) {
        let node = self.owner.ids.lock().remove_node(&self.id);
        drop(node);
    }
}

#[cfg(CONFIG_LIVEUPDATE_RUST_KUNIT_TEST)]
#[kunit_tests(luo_preserved_ids)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_taken_once_at_a_time() -> Result {
        let ids = PreservedIds::new()?;
        let first = ids.take(1, 10, Reservation::new()?)?;
        let _other = ids.take(2, 20, Reservation::new()?)?;
        assert_eq!(ids.take(1, 11, Reservation::new()?).err(), Some(EBUSY));
        assert_eq!(ids.token(1), Some(10));
        drop(first);
        assert_eq!(ids.token(1), None);
        let _again = ids.take(1, 12, Reservation::new()?)?;
        Ok(())
    }
}
