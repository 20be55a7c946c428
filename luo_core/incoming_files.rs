// SPDX-License-Identifier: GPL-2.0

//! The files that one session brought from the previous kernel.
//!
//! Their handlers are looked for when they are needed. A handler's module is in use from the
//! retrieval of one of its files to the file's finish, and not because of files that nobody asked
//! for yet.
//!
//! C counterpart: the second half of `kernel/liveupdate/luo_file.c`.

use kernel::{
    fs::File,
    prelude::*,
    rbtree::{
        RBTree,
        RBTreeNode, //
    },
    sync::aref::ARef, //
};

use crate::{
    autoload,
    block,
    context::{
        Finish,
        Retrieve, //
    },
    preserved_ids::{
        PreservedId,
        Reservation, //
    },
    waist::{
        HandlerRef,
        Outcome, //
    },
    Luo, //
};

use luo_abi::luo::{
    self,
    Compatible, //
};

/// How many files may be in the middle of their retrieval at a time, each waiting for the next.
///
/// The previous kernel says which file needs which, and each costs some of the stack.
const MAX_DEPTH: usize = 8;

/// A session's incoming files, in the order in which they were preserved.
pub(crate) struct IncomingFiles {
    files: KVVec<IncomingFile>,
    by_token: RBTree<u64, usize>,
    /// All handlers that the files need.
    handlers: RBTree<Compatible, ()>,
}

struct IncomingFile {
    token: u64,
    data: u64,
    compatible: Compatible,
    state: State,
    /// There while the file is retrieved, and while it is being finished.
    handler: Option<HandlerRef>,
}

enum State {
    Untried,
    Retrieving,
    Retrieved {
        // The id goes before the file does, whose address and inode may be another's right after.
        _id: Option<PreservedId>,
        file: ARef<File>,
    },
    Failed(Error),
}

/// The retrieval of one file, and of those that it needs.
pub(crate) struct Retrieval<'a> {
    files: &'a mut IncomingFiles,
    luo: &'a Luo,
    /// How many files wait for this one.
    depth: usize,
}

impl IncomingFiles {
    /// Reads the entries that the previous kernel wrote for a session.
    ///
    /// Fails with `EINVAL` if they are broken, and with `ENOMEM`.
    ///
    /// C counterpart: `luo_file_deserialize()`.
    pub(crate) fn read(phys: u64, count: u64) -> Result<Self> {
        let mut files = Self {
            files: KVVec::new(),
            by_token: RBTree::new(),
            handlers: RBTree::new(),
        };
        block::read_chain(phys, |entry| files.add(&entry))?;
        let found = files.files.len() as u64;
        if found != count {
            pr_err!("{count} files were announced, {found} were handed over\n");
            return Err(EINVAL);
        }
        Ok(files)
    }

    fn add(&mut self, entry: &luo::File) -> Result {
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
        if self.handlers.get(&compatible).is_none() {
            self.handlers
                .try_create_and_insert(compatible, (), GFP_KERNEL)?;
        }
        let file = IncomingFile {
            token,
            data,
            compatible,
            state: State::Untried,
            handler: None,
        };
        Ok(self.files.push(file, GFP_KERNEL)?)
    }

    /// The handlers that files of the session need and that are missing; none if the file of `token`
    /// was tried already.
    pub(crate) fn missing_handlers(
        &self,
        luo: &Luo,
        token: Option<u64>,
    ) -> Result<KVVec<Compatible>> {
        let mut missing = KVVec::new();
        let tried = |file: &IncomingFile| !matches!(file.state, State::Untried);
        if token.is_some_and(|token| self.file(token).is_none_or(tried)) {
            return Ok(missing);
        }
        for compatible in self.handlers.keys() {
            if luo.registry.by_compatible(compatible).is_err() {
                missing.push(*compatible, GFP_KERNEL)?;
            }
        }
        Ok(missing)
    }

    /// The file that was preserved as `token`.
    ///
    /// It is made at the first call; later ones give the same file, or the same error.
    ///
    /// Errors: `ENOENT`, there is no such token or no handler for it; and whatever the handler
    /// fails with.
    ///
    /// C counterpart: `luo_retrieve_file()`.
    pub(crate) fn retrieve(&mut self, luo: &Luo, token: u64) -> Result<ARef<File>> {
        let mut retrieval = Retrieval {
            files: self,
            luo,
            depth: 0,
        };
        retrieval.retrieve(token)
    }

    /// The file of `token`, if it was retrieved.
    pub(crate) fn retrieved(&self, token: u64) -> Option<&File> {
        match &self.file(token)?.state {
            State::Retrieved { file, .. } => Some(file),
            _ => None,
        }
    }

    fn file(&self, token: u64) -> Option<&IncomingFile> {
        self.files.get(*self.by_token.get(&token)?)
    }

    /// Ends the care for all files, the last one preserved first, if every handler agrees.
    ///
    /// Fails with `EBUSY` if one does not or is missing; then nothing has changed.
    ///
    /// C counterpart: `luo_file_finish()`.
    pub(crate) fn finish(&mut self, luo: &Luo) -> Result {
        if !self.all_can_finish(luo) {
            for file in &mut self.files {
                if !matches!(file.state, State::Retrieved { .. }) {
                    file.handler = None;
                }
            }
            return Err(EBUSY);
        }
        while let Some(file) = self.files.pop() {
            self.by_token.remove(&file.token);
            if let Some(handler) = &file.handler {
                let outcome = file.state.outcome();
                handler.finish(luo, file.data, &outcome, self.context(&file));
            }
        }
        self.handlers = RBTree::new();
        Ok(())
    }

    /// Whether every handler agrees; all of them are in use then.
    fn all_can_finish(&mut self, luo: &Luo) -> bool {
        for file in &mut self.files {
            if file.handler.is_none() {
                file.handler = luo.registry.by_compatible(&file.compatible).ok();
            }
        }
        self.files.iter().all(|file| match &file.handler {
            Some(handler) => {
                handler.can_finish(file.data, &file.state.outcome(), self.context(file))
            }
            None => {
                autoload::complain(&file.compatible, file.token);
                false
            }
        })
    }

    fn context(&self, file: &IncomingFile) -> Finish<'_> {
        Finish {
            token: file.token,
            session: self,
        }
    }
}

impl Retrieval<'_> {
    /// See [`IncomingFiles::retrieve`] and [`Retrieve::fetch`].
    pub(crate) fn retrieve(&mut self, token: u64) -> Result<ARef<File>> {
        let index = *self.files.by_token.get(&token).ok_or(ENOENT)?;
        let entry = self.files.files.get_mut(index).ok_or(ENOENT)?;
        match &entry.state {
            State::Retrieved { file, .. } => return Ok(file.clone()),
            State::Failed(err) => return Err(*err),
            State::Retrieving => {
                pr_err!("token {token:#x} depends on itself\n");
                return Err(EDEADLK);
            }
            State::Untried => {}
        }
        // None of these is held against the file.
        if self.depth == MAX_DEPTH {
            pr_err!("too many files depend on each other, token {token:#x} among them\n");
            return Err(ELOOP);
        }
        let handler = self
            .luo
            .registry
            .by_compatible(&entry.compatible)
            .inspect_err(|_| autoload::complain(&entry.compatible, token))?;
        let memory = Reservation::new()?;

        let data = entry.data;
        entry.state = State::Retrieving;
        let context = Retrieve {
            token,
            session: Retrieval {
                files: &mut *self.files,
                luo: self.luo,
                depth: self.depth + 1,
            },
        };
        let result = handler.retrieve(data, context);

        let entry = self.files.files.get_mut(index).ok_or(ENOENT)?;
        match result {
            Ok(file) => {
                let id = self
                    .luo
                    .preserved
                    .take(handler.id(&file), token, memory)
                    .inspect_err(|_| {
                        pr_err!("token {token:#x} gave a file that is preserved already\n");
                    });
                entry.handler = Some(handler);
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
}

impl State {
    fn outcome(&self) -> Outcome<'_> {
        match self {
            // A session is not finished in the middle of a retrieval.
            State::Untried | State::Retrieving => Outcome::Untried,
            State::Retrieved { file, .. } => Outcome::Retrieved(file),
            State::Failed(err) => Outcome::Failed(*err),
        }
    }
}

#[cfg(CONFIG_LIVEUPDATE_RUST_KUNIT_TEST)]
mod tests;
