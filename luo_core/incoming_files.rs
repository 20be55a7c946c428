// SPDX-License-Identifier: GPL-2.0

//! The files that one session brought from the previous kernel.
//!
//! C counterpart: the second half of `kernel/liveupdate/luo_file.c`.

use kernel::{
    fs::File,
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
    block,
    preserved_ids::{
        PreservedId,
        PreservedIds,
        Reservation, //
    },
    registry::Registry,
    shown,
    waist::{
        HandlerRef,
        Outcome, //
    },
};

use luo_abi::luo::{
    self,
    Compatible, //
};

/// A session's incoming files, in the order in which they were preserved.
pub(crate) struct IncomingFiles {
    files: KVVec<IncomingFile>,
    by_token: RBTree<u64, usize>,
}

struct IncomingFile {
    token: u64,
    data: u64,
    state: State,
    handler: Binding,
}

/// The handler that a file needs.
struct Binding {
    compatible: Compatible,
    /// `None` as long as no handler for `compatible` was found.
    found: Option<HandlerRef>,
}

enum State {
    Untried,
    Retrieved {
        // The id goes before the file does, whose address and inode may be another's right after.
        _id: Option<PreservedId>,
        file: ARef<File>,
    },
    Failed(Error),
}

impl IncomingFiles {
    /// Reads the entries that the previous kernel wrote for a session.
    ///
    /// Fails with `EINVAL` if they are broken, and with `ENOMEM`.
    ///
    /// C counterpart: `luo_file_deserialize()`.
    pub(crate) fn read(registry: &Registry, phys: u64, count: u64) -> Result<Self> {
        let mut files = Self {
            files: KVVec::new(),
            by_token: RBTree::new(),
        };
        block::read_chain(phys, |entry| files.add(registry, &entry))?;
        let found = files.files.len() as u64;
        if found != count {
            pr_err!("{count} files were announced, {found} were handed over\n");
            return Err(EINVAL);
        }
        Ok(files)
    }

    fn add(&mut self, registry: &Registry, entry: &luo::File) -> Result {
        let luo::File { data, token, .. } = *entry;
        let Ok(compatible) = Compatible::from_field(entry.compatible.field()) else {
            pr_err!("token {token:#x} has no proper compatible string\n");
            return Err(EINVAL);
        };
        let node = RBTreeNode::new(token, self.files.len(), GFP_KERNEL)?;
        if self.by_token.insert(node).is_some() {
            pr_err!("token {token:#x} was handed over twice\n");
            return Err(EINVAL);
        }
        let file = IncomingFile {
            token,
            data,
            state: State::Untried,
            handler: Binding {
                compatible,
                found: registry.by_compatible(&compatible),
            },
        };
        Ok(self.files.push(file, GFP_KERNEL)?)
    }

    /// The file that was preserved as `token`.
    ///
    /// It is made at the first call; later ones give the same file, or the same error.
    ///
    /// Errors: `ENOENT`, there is no such token or no handler for it; and whatever the handler
    /// fails with.
    ///
    /// C counterpart: `luo_retrieve_file()`.
    pub(crate) fn retrieve(
        &mut self,
        registry: &Registry,
        ids: &Arc<PreservedIds>,
        token: u64,
    ) -> Result<ARef<File>> {
        let index = *self.by_token.get(&token).ok_or(ENOENT)?;
        let entry = self.files.get_mut(index).ok_or(ENOENT)?;
        match &entry.state {
            State::Retrieved { file, .. } => return Ok(file.clone()),
            State::Failed(err) => return Err(*err),
            State::Untried => {}
        }
        // Neither a missing handler nor missing memory is held against the file.
        let handler = entry.handler.get(registry, token)?;
        let memory = Reservation::new()?;

        match handler.retrieve(entry.data) {
            Ok(file) => {
                let id = ids.take(handler.id(&file), memory).inspect_err(|_| {
                    pr_err!("token {token:#x} gave a file that is preserved already\n");
                });
                entry.state = State::Retrieved {
                    _id: id.ok(),
                    file: file.clone(),
                };
                Ok(file)
            }
            Err(err) => {
                entry.state = State::Failed(err);
                Err(err)
            }
        }
    }

    /// Ends the care for all files, the last one preserved first, if every handler agrees.
    ///
    /// Fails with `EBUSY` if one does not or is missing; then nothing has changed.
    ///
    /// C counterpart: `luo_file_finish()`.
    pub(crate) fn finish(&mut self, registry: &Registry) -> Result {
        for file in &mut self.files {
            let handler = file.handler.get(registry, file.token).map_err(|_| EBUSY)?;
            if !handler.can_finish(file.data, &file.state.outcome()) {
                return Err(EBUSY);
            }
        }
        while let Some(file) = self.files.pop() {
            self.by_token.remove(&file.token);
            if let Some(handler) = &file.handler.found {
                handler.finish(file.data, &file.state.outcome());
            }
        }
        Ok(())
    }
}

impl Binding {
    /// The handler, which may have come only after the file did.
    ///
    /// Fails with `ENOENT`, and a line in the log, if it is still missing.
    fn get(&mut self, registry: &Registry, token: u64) -> Result<&HandlerRef> {
        if self.found.is_none() {
            self.found = registry.by_compatible(&self.compatible);
        }
        self.found.as_ref().ok_or_else(|| {
            let compatible = shown(&self.compatible);
            pr_warn!("token {token:#x} needs the handler '{compatible}', which is not loaded\n");
            ENOENT
        })
    }
}

impl State {
    fn outcome(&self) -> Outcome<'_> {
        match self {
            State::Untried => Outcome::Untried,
            State::Retrieved { file, .. } => Outcome::Retrieved(file),
            State::Failed(err) => Outcome::Failed(*err),
        }
    }
}
