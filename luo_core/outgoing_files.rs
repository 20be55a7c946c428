// SPDX-License-Identifier: GPL-2.0

//! The files that one session preserves for the next kernel.
//!
//! C counterpart: the first half of `kernel/liveupdate/luo_file.c`.

use kernel::{
    fs::{
        File,
        LocalFile, //
    },
    prelude::*,
    rbtree::{
        RBTree,
        RBTreeNode, //
    },
    sync::{
        aref::ARef,
        Arc, //
    },
};

use crate::{
    block::BlockSet,
    preserved_ids::{
        PreservedId,
        PreservedIds,
        Reservation, //
    },
    registry::Registry,
    shown,
    waist::{
        HandlerRef,
        Saved, //
    },
};

use luo_abi::luo;

/// A session's preserved files, in the order in which they were preserved.
pub(crate) struct OutgoingFiles {
    files: KVVec<PreservedFile>,
    tokens: RBTree<u64, ()>,
    /// Has room for all of `files`.
    blocks: BlockSet<luo::File>,
}

/// The orchestrator's share in a file: as long as it lives, so does the file.
struct PreservedFile {
    token: u64,
    saved: Saved,
    // The id goes before the file does, whose address and inode may be another's right after.
    _id: PreservedId,
    file: ARef<File>,
    handler: HandlerRef,
}

impl PreservedFile {
    fn unpreserve(self) {
        self.handler.unpreserve(&self.file, &self.saved);
    }
}

/// Where the next kernel finds a session's files, and how many there are.
pub(crate) struct SerializedFiles {
    pub(crate) phys: u64,
    pub(crate) count: u64,
}

impl OutgoingFiles {
    /// No file yet.
    pub(crate) fn new() -> Self {
        Self {
            files: KVVec::new(),
            tokens: RBTree::new(),
            blocks: BlockSet::new(),
        }
    }

    /// Preserves the current process's file descriptor `fd` as `token`.
    ///
    /// Errors: `EEXIST`, the token is taken; `EBADF`, no such descriptor; `ENOENT`, no handler for
    /// such a file; `EBUSY`, the file is preserved already; `ENOSPC`, the session is full;
    /// `ENOMEM`; and whatever the handler fails with.
    ///
    /// Must be called from an ioctl: what uses a file's position must not be under way.
    ///
    /// C counterpart: `luo_preserve_file()`.
    pub(crate) fn preserve(
        &mut self,
        registry: &Registry,
        ids: &Arc<PreservedIds>,
        token: u64,
        fd: i32,
    ) -> Result {
        if self.tokens.get(&token).is_some() {
            return Err(EEXIST);
        }
        let count = self.files.len();
        self.blocks.grow(count + 1)?;
        self.add(registry, ids, token, fd)
            .inspect_err(|_| self.blocks.shrink(count))
    }

    fn add(&mut self, registry: &Registry, ids: &Arc<PreservedIds>, token: u64, fd: i32) -> Result {
        // A negative number is too large for any table of files, as `EBADF` will say.
        let file = LocalFile::fget(fd as u32)?;
        // SAFETY: In an ioctl this task has no `fdget_pos()` under way.
        let file = unsafe { LocalFile::assume_no_fdget_pos(file) };
        let handler = registry.by_file(&file).ok_or(ENOENT)?;
        let id = ids.take(handler.id(&file), Reservation::new()?)?;

        // What can fail for want of memory comes before what would have to be taken back.
        let node = RBTreeNode::new(token, (), GFP_KERNEL)?;
        self.files.reserve(1, GFP_KERNEL)?;

        let saved = handler.preserve(&file)?;
        let file = PreservedFile {
            token,
            saved,
            file,
            _id: id,
            handler,
        };
        self.tokens.insert(node);
        self.files.push_within_capacity(file).map_err(|_| ENOMEM)
    }

    /// Gives every file back to its owner, the last one preserved first.
    ///
    /// C counterpart: `luo_file_unpreserve_files()`.
    pub(crate) fn unpreserve_all(&mut self) {
        while let Some(file) = self.files.pop() {
            self.tokens.remove(&file.token);
            file.unpreserve();
        }
        self.blocks.shrink(0);
    }

    /// Freezes every file, in the order in which they were preserved, and writes their entries.
    ///
    /// If a handler fails, those that were frozen are unfrozen and its error is returned.
    ///
    /// C counterpart: `luo_file_freeze()`.
    pub(crate) fn freeze(&mut self) -> Result<SerializedFiles> {
        for index in 0..self.files.len() {
            if let Err(err) = self.freeze_one(index) {
                self.unfreeze_first(index);
                return Err(err);
            }
        }
        Ok(SerializedFiles {
            phys: self.blocks.phys(),
            count: self.files.len() as u64,
        })
    }

    fn freeze_one(&mut self, index: usize) -> Result {
        let file = self.files.get_mut(index).ok_or(EINVAL)?;
        let compatible = file.handler.compatible();
        file.handler
            .freeze(&file.file, &mut file.saved)
            .inspect_err(|err| {
                let (compatible, token) = (shown(&compatible), file.token);
                pr_warn!("'{compatible}' cannot freeze token {token:#x}: {err:?}\n");
            })?;
        let entry = luo::File {
            compatible,
            data: file.saved.data,
            token: file.token,
        };
        self.blocks
            .write(index, &entry)
            .inspect_err(|_| file.handler.unfreeze(&file.file, &file.saved))
    }

    /// Takes back a [`OutgoingFiles::freeze`] that succeeded.
    ///
    /// C counterpart: `luo_file_unfreeze()`.
    pub(crate) fn unfreeze(&mut self) {
        self.unfreeze_first(self.files.len());
    }

    fn unfreeze_first(&mut self, count: usize) {
        for file in self.files.iter().take(count).rev() {
            file.handler.unfreeze(&file.file, &file.saved);
        }
    }
}

impl Drop for OutgoingFiles {
    fn drop(&mut self) {
        self.unpreserve_all();
    }
}
