// SPDX-License-Identifier: GPL-2.0

//! The sessions that the previous kernel handed over.
//!
//! They are read when `/dev/liveupdate` is opened for the first time. Should they turn out to be
//! broken, that is remembered and live update is over until the machine reboots; what the files
//! refer to stays reserved, since there is no way back from half a restored state.
//!
//! C counterpart: `kernel/liveupdate/luo_session.c`, as far as it concerns incoming sessions.

use kernel::{
    fs::File,
    new_mutex,
    prelude::*,
    rbtree::{
        RBTree,
        RBTreeNode, //
    },
    sync::{
        aref::ARef,
        Arc,
        Mutex, //
    },
};

use crate::{
    autoload,
    block,
    incoming_files::IncomingFiles,
    shown,
    Luo, //
};

use luo_abi::luo::{
    self,
    SessionName, //
};

/// What the previous kernel handed over.
pub(crate) enum Handover {
    /// The physical address of the first block of sessions, 0 if there is none.
    Unread(u64),
    /// The sessions that were not finished yet.
    Read(RBTree<SessionName, Arc<IncomingSession>>),
    /// It is broken.
    Broken,
}

/// A session that brings files from the previous kernel.
#[pin_data]
pub(crate) struct IncomingSession {
    pub(crate) name: SessionName,
    pub(crate) luo: Arc<Luo>,
    #[pin]
    state: Mutex<State>,
}

struct State {
    files: IncomingFiles,
    /// Whether a file descriptor for the session is out.
    retrieved: bool,
}

impl Luo {
    /// Reads what the previous kernel handed over, if that was not done yet.
    ///
    /// Fails with `EIO` if it is broken, every time.
    ///
    /// C counterpart: `luo_session_deserialize()`.
    pub(crate) fn deserialize(self: &Arc<Self>) -> Result {
        let mut incoming = self.incoming.write();
        if let Handover::Unread(phys) = *incoming {
            *incoming = match self.read_sessions(phys) {
                Ok(sessions) => Handover::Read(sessions),
                Err(err) => {
                    pr_err!(
                        "the handed over sessions are unusable ({err:?}): live update is over until the machine reboots\n"
                    );
                    Handover::Broken
                }
            };
        }
        match *incoming {
            Handover::Broken => Err(EIO),
            _ => Ok(()),
        }
    }

    fn read_sessions(
        self: &Arc<Self>,
        phys: u64,
    ) -> Result<RBTree<SessionName, Arc<IncomingSession>>> {
        let mut sessions = RBTree::new();
        block::read_chain(phys, |entry: luo::Session| {
            let session = self.read_session(&entry)?;
            let node = RBTreeNode::new(session.name, session, GFP_KERNEL)?;
            match sessions.insert(node) {
                None => Ok(()),
                Some(twin) => {
                    let (name, _) = twin.to_key_value();
                    pr_err!("session '{}' was handed over twice\n", shown(&name));
                    Err(EINVAL)
                }
            }
        })?;
        Ok(sessions)
    }

    fn read_session(self: &Arc<Self>, entry: &luo::Session) -> Result<Arc<IncomingSession>> {
        let luo::Session {
            files_pa,
            file_count,
            ..
        } = *entry;
        let Ok(name) = SessionName::from_field(entry.name.field()) else {
            pr_err!("a session without a proper name was handed over\n");
            return Err(EINVAL);
        };
        let files = IncomingFiles::read(files_pa, file_count)
            .inspect_err(|err| pr_err!("session '{}' is broken: {err:?}\n", shown(&name)))?;
        Arc::pin_init(
            pin_init!(IncomingSession {
                name,
                luo: self.clone(),
                state <- new_mutex!(
                    State {
                        files,
                        retrieved: false,
                    },
                    "IncomingSession::state"
                ),
            }),
            GFP_KERNEL,
        )
    }
}

impl IncomingSession {
    /// Finds the session named `name` for a new file, which then is its only one.
    ///
    /// Errors: `ENOENT`, there is no such session (any more); `EINVAL`, it has a file already.
    ///
    /// C counterpart: `luo_session_retrieve()`.
    pub(crate) fn retrieve(luo: &Luo, name: &SessionName) -> Result<Arc<Self>> {
        let _unfrozen = luo.serialize.read();
        let incoming = luo.incoming.read();
        let session = match &*incoming {
            Handover::Read(sessions) => sessions.get(name).ok_or(ENOENT)?,
            _ => return Err(ENOENT),
        };
        let mut state = session.state.lock();
        if state.retrieved {
            return Err(EINVAL);
        }
        state.retrieved = true;
        Ok(session.clone())
    }

    /// Takes back [`IncomingSession::retrieve`], since no process could be given the file.
    pub(crate) fn put_back(&self) {
        self.state.lock().retrieved = false;
    }

    /// Retrieves a file; see [`IncomingFiles::retrieve`]. The caller holds the serialize lock.
    pub(crate) fn retrieve_file(&self, token: u64) -> Result<ARef<File>> {
        self.state.lock().files.retrieve(&self.luo, token)
    }

    /// Finishes all files; see [`IncomingFiles::finish`]. The caller holds the serialize lock.
    pub(crate) fn finish(&self) -> Result {
        self.state.lock().files.finish(&self.luo)
    }

    /// Has the modules of missing handlers loaded, of all that the session needs: a file may fetch
    /// others, and in the middle of its retrieval there is no way to load their handlers.
    ///
    /// With a `token` this is for the retrieval of that file, and nothing to do if it was tried
    /// before. The caller holds no lock.
    pub(crate) fn load_handlers(&self, token: Option<u64>) {
        let missing = self.state.lock().files.missing_handlers(&self.luo, token);
        // Without memory for the list, the files themselves say what they miss.
        for compatible in missing.iter().flatten() {
            if !autoload::request(compatible) {
                return;
            }
        }
    }

    /// Finishes the session, which is then gone, or waits to be retrieved again if it cannot be
    /// finished.
    ///
    /// C counterpart: `luo_session_release()`, which strands a session that cannot be finished.
    pub(crate) fn release(&self) {
        self.load_handlers(None);
        let _unfrozen = self.luo.serialize.read();
        let mut state = self.state.lock();
        if state.files.finish(&self.luo).is_err() {
            let name = shown(&self.name);
            pr_warn!("session '{name}' was closed but cannot be finished: retrieve it again\n");
            state.retrieved = false;
            return;
        }
        drop(state);
        if let Handover::Read(sessions) = &mut *self.luo.incoming.write() {
            sessions.remove(&self.name);
        }
    }
}
