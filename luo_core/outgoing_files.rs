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
    sync::aref::ARef, //
};

use core::marker::PhantomData;

use crate::{
    block::BlockSet,
    context::Saving,
    preserved_ids::{
        PreservedId,
        Reservation, //
    },
    shown,
    waist::{
        HandlerRef,
        Saved, //
    },
    Luo, //
};

use luo_abi::luo;

/// A session's preserved files, in the order in which they were preserved.
pub(crate) struct OutgoingFiles {
    files: KVVec<PreservedFile>,
    by_token: RBTree<u64, usize>,
    /// Has room for all of `files`.
    blocks: BlockSet<luo::File>,
}

/// The orchestrator's share in a file: as long as it lives, so does the file.
struct PreservedFile {
    token: u64,
    saved: Saved,
    // The id goes before the file does, whose address and inode may be another's right after.
    id: PreservedId,
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
            by_token: RBTree::new(),
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
    pub(crate) fn preserve(&mut self, luo: &Luo, token: u64, fd: i32) -> Result {
        self.preserve_file(luo, token, || {
            // A negative number is too large for any table of files, as `EBADF` will say.
            let file = LocalFile::fget(fd as u32)?;
            // SAFETY: In an ioctl this task has no `fdget_pos()` under way.
            Ok(unsafe { LocalFile::assume_no_fdget_pos(file) })
        })
    }

    fn preserve_file(
        &mut self,
        luo: &Luo,
        token: u64,
        get: impl FnOnce() -> Result<ARef<File>>,
    ) -> Result {
        if self.by_token.get(&token).is_some() {
            return Err(EEXIST);
        }
        let count = self.files.len();
        self.blocks.grow(count + 1)?;
        get()
            .and_then(|file| self.add(luo, token, file))
            .inspect_err(|_| self.blocks.shrink(count))
    }

    fn add(&mut self, luo: &Luo, token: u64, file: ARef<File>) -> Result {
        let handler = luo.registry.by_file(&file)?;
        let id = luo
            .preserved
            .take(handler.id(&file), token, Reservation::new()?)?;

        // What can fail for want of memory comes before what would have to be taken back.
        let node = RBTreeNode::new(token, self.files.len(), GFP_KERNEL)?;
        self.files.reserve(1, GFP_KERNEL)?;

        let saved = handler.preserve(self.context(luo, token, &file))?;
        let file = PreservedFile {
            token,
            saved,
            id,
            file,
            handler,
        };
        self.by_token.insert(node);
        self.files.push_within_capacity(file).map_err(|_| ENOMEM)
    }

    fn context<'a, Phase>(&'a self, luo: &'a Luo, token: u64, file: &'a File) -> Saving<'a, Phase> {
        Saving {
            file,
            token,
            session: self,
            luo,
            _phase: PhantomData,
        }
    }

    /// The token of `file` if it is preserved in this session.
    pub(crate) fn token_of(&self, luo: &Luo, file: &File) -> Option<u64> {
        let id = luo.registry.by_file(file).ok()?.id(file);
        let token = luo.preserved.token(id)?;
        let index = *self.by_token.get(&token)?;
        // Another session may have another file by this token.
        (self.files.get(index)?.id.id() == id).then_some(token)
    }

    /// Gives every file back to its owner, the last one preserved first.
    ///
    /// C counterpart: `luo_file_unpreserve_files()`.
    pub(crate) fn unpreserve_all(&mut self) {
        while let Some(file) = self.files.pop() {
            self.by_token.remove(&file.token);
            file.unpreserve();
        }
        self.blocks.shrink(0);
    }

    /// Freezes every file, in the order in which they were preserved, and writes their entries.
    ///
    /// If a handler fails, those that were frozen are unfrozen and its error is returned.
    ///
    /// C counterpart: `luo_file_freeze()`.
    pub(crate) fn freeze(&mut self, luo: &Luo) -> Result<SerializedFiles> {
        for index in 0..self.files.len() {
            if let Err(err) = self.freeze_one(luo, index) {
                self.unfreeze_first(index);
                return Err(err);
            }
        }
        Ok(SerializedFiles {
            phys: self.blocks.phys(),
            count: self.files.len() as u64,
        })
    }

    fn freeze_one(&mut self, luo: &Luo, index: usize) -> Result {
        let file = self.files.get(index).ok_or(EINVAL)?;
        let token = file.token;
        let compatible = file.handler.compatible();
        let data = file
            .handler
            .freeze(&file.saved, self.context(luo, token, &file.file))
            .inspect_err(|err| {
                let compatible = shown(&compatible);
                pr_warn!("'{compatible}' cannot freeze token {token:#x}: {err:?}\n");
            })?;
        let file = self.files.get_mut(index).ok_or(EINVAL)?;
        file.saved.data = data;
        let entry = luo::File {
            compatible,
            data,
            token,
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

#[cfg(CONFIG_LIVEUPDATE_RUST_KUNIT_TEST)]
mod tests;
