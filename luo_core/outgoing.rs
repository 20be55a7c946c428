// SPDX-License-Identifier: GPL-2.0

//! The sessions that will be handed over to the next kernel.
//!
//! C counterpart: `kernel/liveupdate/luo_session.c`, as far as it concerns outgoing sessions.

use kernel::{
    new_mutex,
    prelude::*,
    rbtree::{
        RBTree,
        RBTreeNode, //
    },
    sync::{
        Arc,
        Mutex, //
    },
    time::{
        Instant,
        Monotonic, //
    },
};

use crate::{
    block::BlockSet,
    flbs::FlbPage,
    kho::{
        self,
        Preserved, //
    },
    outgoing_files::{
        OutgoingFiles,
        SerializedFiles, //
    },
    registry::Registry,
    Luo, //
};

use luo_abi::luo::{
    self,
    SessionName, //
};

/// A session that collects files for the next kernel.
#[pin_data]
pub(crate) struct OutgoingSession {
    pub(crate) name: SessionName,
    pub(crate) luo: Arc<Luo>,
    #[pin]
    files: Mutex<OutgoingFiles>,
}

/// All outgoing sessions.
pub(crate) struct OutgoingSessions {
    by_name: RBTree<SessionName, u64>,
    /// In the order of their creation, which is the order in which they are handed over.
    by_age: RBTree<u64, Arc<OutgoingSession>>,
    next_age: u64,
    count: usize,
    /// Has room for `count` sessions.
    blocks: BlockSet<luo::Session>,
    /// `None` until late in boot.
    root: Option<Root>,
}

/// What the next kernel starts from.
struct Root {
    header: Preserved<luo::Header>,
    /// `header` points to it.
    flbs: Preserved<FlbPage>,
}

impl Root {
    /// Writes down the FLBs on which files depend.
    ///
    /// C counterpart: `luo_flb_serialize()`.
    fn write_flbs(&mut self, registry: &Registry) {
        let page = &mut *self.flbs;
        let flbs = registry.all_flbs();
        let mut count = 0;
        // There are no more FLBs than entries.
        for (slot, entry) in page
            .entries
            .iter_mut()
            .zip(flbs.iter().flatten().filter_map(|flb| flb.entry()))
        {
            *slot = entry;
            count += 1;
        }
        page.header.count = count;
    }
}

impl OutgoingSessions {
    /// No session yet.
    pub(crate) fn new() -> Self {
        Self {
            by_name: RBTree::new(),
            by_age: RBTree::new(),
            next_age: 0,
            count: 0,
            blocks: BlockSet::new(),
            root: None,
        }
    }

    fn insert(&mut self, session: Arc<OutgoingSession>) -> Result {
        if self.by_name.get(&session.name).is_some() {
            return Err(EEXIST);
        }
        let age = self.next_age;
        let name = RBTreeNode::new(session.name, age, GFP_KERNEL)?;
        let session = RBTreeNode::new(age, session, GFP_KERNEL)?;
        self.blocks.grow(self.count + 1)?;
        self.by_name.insert(name);
        self.by_age.insert(session);
        self.next_age += 1;
        self.count += 1;
        Ok(())
    }

    fn remove(&mut self, name: &SessionName) -> Option<Arc<OutgoingSession>> {
        let age = self.by_name.remove(name)?;
        let session = self.by_age.remove(&age)?;
        self.count -= 1;
        self.blocks.shrink(self.count);
        Some(session)
    }

    /// Freezes all sessions in the order of their creation and writes them down for the next
    /// kernel. If one fails, those before it are unfrozen.
    fn serialize(&mut self, registry: &Registry) -> Result {
        let mut frozen = 0;
        let result = self.by_age.values().try_for_each(|session| {
            session.freeze(frozen, &mut self.blocks)?;
            frozen += 1;
            Ok(())
        });
        if result.is_err() {
            self.unfreeze_first(frozen);
            return result;
        }
        if let Some(root) = &mut self.root {
            root.header.sessions_pa = self.blocks.phys();
            root.write_flbs(registry);
        }
        Ok(())
    }

    /// Unfreezes the `count` oldest sessions, the youngest of them first.
    fn unfreeze_first(&mut self, count: usize) {
        let mut not_frozen = self.count - count;
        let mut cursor = self.by_age.cursor_back_mut();
        while let Some(at) = cursor {
            match not_frozen.checked_sub(1) {
                Some(left) => not_frozen = left,
                None => at.current().1.files.lock().unfreeze(),
            }
            cursor = at.move_prev();
        }
    }
}

impl OutgoingSession {
    /// Makes a session and adds it to the others.
    ///
    /// Errors: `EEXIST`, the name is taken; `ENOSPC`, there are too many sessions; `ENOMEM`.
    ///
    /// C counterpart: `luo_session_create()`.
    pub(crate) fn create(luo: &Arc<Luo>, name: SessionName) -> Result<Arc<Self>> {
        let _unfrozen = luo.serialize.read();
        let session = Arc::pin_init(
            pin_init!(Self {
                name,
                luo: luo.clone(),
                files <- new_mutex!(OutgoingFiles::new(), "OutgoingSession::files"),
            }),
            GFP_KERNEL,
        )?;
        luo.outgoing.write().insert(session.clone())?;
        Ok(session)
    }

    /// Preserves a file; see [`OutgoingFiles::preserve`]. The caller holds the serialize lock.
    pub(crate) fn preserve(&self, token: u64, fd: i32) -> Result {
        self.files.lock().preserve(&self.luo, token, fd)
    }

    /// Gives all files back and forgets the session.
    ///
    /// C counterpart: `luo_session_release()`.
    pub(crate) fn release(&self) {
        let _unfrozen = self.luo.serialize.read();
        self.files.lock().unpreserve_all();
        let session = self.luo.outgoing.write().remove(&self.name);
        drop(session);
    }

    fn freeze(&self, index: usize, blocks: &mut BlockSet<luo::Session>) -> Result {
        let mut files = self.files.lock();
        let SerializedFiles { phys, count } = files.freeze(&self.luo)?;
        let entry = luo::Session {
            name: self.name,
            files_pa: phys,
            file_count: count,
        };
        blocks
            .write(index, &entry)
            .inspect_err(|_| files.unfreeze())
    }
}

impl Luo {
    /// Freezes and serializes everything that is preserved; the machine is about to kexec.
    ///
    /// On success no session changes any more. On failure everything is as it was.
    ///
    /// C counterpart: `luo_session_serialize()`.
    pub(crate) fn serialize(&self) -> Result {
        let serialize = self.serialize.write();
        let mut outgoing = self.outgoing.write();
        let start = Instant::<Monotonic>::now();
        outgoing.serialize(&self.registry)?;
        let micros = start.elapsed().as_micros_ceil();
        pr_info!(
            "{} sessions frozen and written down in {micros} us\n",
            outgoing.count
        );
        // From now on every change would be lost, so whoever tries one waits for the reboot.
        core::mem::forget(serialize);
        Ok(())
    }

    /// Makes what the next kernel starts from, and has KHO hand it over. Called once, late in
    /// boot.
    ///
    /// C counterpart: `luo_state_setup()`.
    pub(crate) fn announce(&self) -> Result {
        let root = self.new_root()?;
        kho::add_subtree(luo::KHO_ENTRY_NAME, &root.header)?;
        self.outgoing.write().root = Some(root);
        Ok(())
    }

    fn new_root(&self) -> Result<Root> {
        let mut flbs = Preserved::<FlbPage>::zeroed()?;
        flbs.header.page_count = 1;
        let mut header = Preserved::<luo::Header>::zeroed()?;
        header.compatible = luo::Header::COMPATIBLE;
        header.liveupdate_num = self.liveupdate_num.wrapping_add(1);
        header.flbs_pa = flbs.phys();
        Ok(Root { header, flbs })
    }
}

#[cfg(CONFIG_LIVEUPDATE_RUST_KUNIT_TEST)]
#[kunit_tests(luo_sessions)]
mod tests {
    use super::*;
    use crate::{
        incoming::{
            Handover,
            IncomingSession, //
        },
        HandedOver, //
    };
    use kernel::page::PAGE_SIZE;
    use luo_abi::block;

    fn name(bytes: &[u8]) -> Result<SessionName> {
        SessionName::new(bytes).ok_or(EINVAL)
    }

    fn numbered(number: usize) -> [u8; 3] {
        let digit = |value: usize| b'a' + (value % 26) as u8;
        [digit(number / 676), digit(number / 26), digit(number)]
    }

    fn luo() -> Result<Arc<Luo>> {
        // A count that overflows is what a broken header may say.
        let luo = Luo::new(HandedOver::new(u64::MAX, Handover::Unread(0)))?;
        luo.outgoing.write().root = Some(luo.new_root()?);
        Ok(luo)
    }

    fn sessions_pa(luo: &Luo) -> u64 {
        luo.outgoing
            .read()
            .root
            .as_ref()
            .map_or(0, |root| root.header.sessions_pa)
    }

    #[test]
    fn a_name_is_taken_once_at_a_time() -> Result {
        let luo = luo()?;
        let session = OutgoingSession::create(&luo, name(b"one")?)?;
        assert_eq!(
            OutgoingSession::create(&luo, name(b"one")?).err(),
            Some(EEXIST)
        );
        session.release();
        OutgoingSession::create(&luo, name(b"one")?)?.release();
        Ok(())
    }

    #[test]
    fn no_room_is_kept_for_a_refused_session() -> Result {
        let luo = luo()?;
        let mut open = KVec::new();
        let full = block::entries_per_block::<luo::Session>(PAGE_SIZE);
        for number in 0..full {
            let session = OutgoingSession::create(&luo, name(&numbered(number))?)?;
            open.push(session, GFP_KERNEL)?;
        }
        assert!(OutgoingSession::create(&luo, name(&numbered(0))?).is_err());
        let entry = luo::Session {
            name: name(b"b")?,
            files_pa: 0,
            file_count: 0,
        };
        // A block without entries would be taken for a broken one.
        assert_eq!(luo.outgoing.write().blocks.write(full, &entry), Err(ENOSPC));
        for session in open {
            session.release();
        }
        assert_eq!(luo.outgoing.read().blocks.phys(), 0);
        Ok(())
    }

    #[test]
    fn sessions_are_written_for_the_next_kernel() -> Result {
        let luo = luo()?;
        luo.outgoing.write().serialize(&luo.registry)?;
        assert_eq!(sessions_pa(&luo), 0);
        let session = OutgoingSession::create(&luo, name(b"one")?)?;
        luo.outgoing.write().serialize(&luo.registry)?;
        assert_eq!(sessions_pa(&luo), luo.outgoing.read().blocks.phys());
        assert!(sessions_pa(&luo) != 0);
        session.release();
        luo.outgoing.write().serialize(&luo.registry)?;
        assert_eq!(sessions_pa(&luo), 0);
        Ok(())
    }

    #[test]
    fn without_a_previous_kernel_nothing_is_incoming() -> Result {
        let luo = luo()?;
        luo.deserialize()?;
        let found = IncomingSession::retrieve(&luo, &name(b"one")?);
        assert_eq!(found.err(), Some(ENOENT));
        Ok(())
    }

    #[test]
    fn a_broken_handover_is_remembered() -> Result {
        let luo = Luo::new(HandedOver::new(0, Handover::Unread(8)))?;
        assert_eq!(luo.deserialize().err(), Some(EIO));
        assert_eq!(luo.deserialize().err(), Some(EIO));
        Ok(())
    }
}
