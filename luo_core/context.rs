// SPDX-License-Identifier: GPL-2.0

//! What a callback may ask about the session that its file is in.
//!
//! There is one type a phase, so that a question which makes no sense in a phase does not compile
//! there. None of them outlives the callback.
//!
//! Other files are named by their tokens. So a handler whose files depend on others (a device on
//! its IOMMU's file, say) writes their tokens into its state, and fetches them by those tokens in
//! the next kernel. The C API has nothing of the kind.

use kernel::{
    fs::File,
    prelude::*,
    sync::aref::ARef, //
};

use core::marker::PhantomData;

use crate::{
    incoming_files::{
        IncomingFiles,
        Retrieval, //
    },
    outgoing_files::OutgoingFiles,
    Luo, //
};

/// The phases of a file that is being saved for the next kernel.
pub mod phase {
    /// Userspace adds the file to a session.
    pub enum Preserve {}

    /// The machine reboots.
    pub enum Freeze {}
}

/// A file that is being saved, and the session that it is in.
pub struct Saving<'a, Phase> {
    pub(crate) file: &'a File,
    pub(crate) token: u64,
    pub(crate) session: &'a OutgoingFiles,
    pub(crate) luo: &'a Luo,
    pub(crate) _phase: PhantomData<Phase>,
}

/// The context of [`LiveupdateFileHandler::preserve`](crate::LiveupdateFileHandler::preserve).
pub type Preserve<'a> = Saving<'a, phase::Preserve>;

/// The context of [`LiveupdateFileHandler::freeze`](crate::LiveupdateFileHandler::freeze).
pub type Freeze<'a> = Saving<'a, phase::Freeze>;

impl<'a, Phase> Saving<'a, Phase> {
    /// The file itself.
    pub fn file(&self) -> &'a File {
        self.file
    }

    /// The name that userspace gave the file within its session.
    pub fn token(&self) -> u64 {
        self.token
    }

    /// The token of another file, or of any other description of it, if this session preserves it.
    /// The file at hand has one from when it is preserved, so not in `preserve`. If memory runs out,
    /// none is found.
    ///
    /// A file is told from others by its handler's
    /// [`id`](crate::LiveupdateFileHandler::id). May sleep.
    pub fn token_of(&self, other: &File) -> Option<u64> {
        self.session.token_of(self.luo, other)
    }
}

/// The context of [`LiveupdateFileHandler::retrieve`](crate::LiveupdateFileHandler::retrieve).
pub struct Retrieve<'a> {
    pub(crate) token: u64,
    pub(crate) session: Retrieval<'a>,
}

impl Retrieve<'_> {
    /// The name that userspace gave the file within its session.
    pub fn token(&self) -> u64 {
        self.token
    }

    /// Another file of this session, which is retrieved now if nobody did that before.
    ///
    /// It may be a file of any kind, since it is the previous kernel that says which token it has:
    /// check that it is what is needed. May sleep.
    ///
    /// Errors: `ENOENT`, the session has no such token, or no handler for it; `EDEADLK`, that file
    /// is being retrieved right now, so that this one depends on itself; `ELOOP`, too many files
    /// that depend on each other; and whatever the other's handler fails with. None but the last is
    /// held against the other file; an error that `retrieve` returns is always held against its own.
    pub fn fetch(&mut self, token: u64) -> Result<ARef<File>> {
        self.session.retrieve(token)
    }
}

/// The context of [`LiveupdateFileHandler::finish`](crate::LiveupdateFileHandler::finish) and
/// [`can_finish`](crate::LiveupdateFileHandler::can_finish).
pub struct Finish<'a> {
    pub(crate) token: u64,
    pub(crate) session: &'a IncomingFiles,
}

impl<'a> Finish<'a> {
    /// The name that userspace gave the file within its session.
    pub fn token(&self) -> u64 {
        self.token
    }

    /// Another file of this session, if it was retrieved and is not finished yet.
    ///
    /// The file that was preserved last is finished first, so the files that one depends on are
    /// still there.
    pub fn retrieved(&self, token: u64) -> Option<&'a File> {
        self.session.retrieved(token)
    }
}
