// SPDX-License-Identifier: GPL-2.0

//! State that many preserved files share, and that lives as long as they do.
//!
//! A *file-lifecycle-bound* object (FLB) is what several files of a live update depend on together:
//! the tables of an IOMMU, for instance, that all VFIO devices need. No file owns it, so it follows
//! their number instead:
//!
//! 1. The first file that depends on it preserves it; further files are only counted.
//! 2. If userspace changes its mind, the last file that is unpreserved unpreserves it.
//! 3. The reboot hands over its state and the number of files that depend on it.
//! 4. In the next kernel whoever asks for it first retrieves it. A failure is remembered, since the
//!    state may be half used up by then.
//! 5. The last of those files that is finished finishes it. If nobody has asked for it until then,
//!    it is retrieved first, since what was preserved for it has to be freed.
//!
//! [`Outgoing`] is the first half of that life and [`Incoming`] is the second. One object may be in
//! both at once, after a live update and before the next. Neither knows where the state is kept or
//! how a callback is reached: a caller passes that along, as closures.
//!
//! Code that only uses an object, without having a file that depends on it, counts as a *user* as
//! long as it does. A user keeps the object of this kernel, but has no part in what the next kernel
//! is told: the number that crosses the kexec is that of the files.
//!
//! # Locking
//!
//! Each half has one mutex. It is held from the decision to call a callback until the callback has
//! returned, so that all others wait for the outcome. A callback therefore must not ask for its own
//! object of the same half: that is a deadlock. All mutexes of one half are of one lock class, as
//! in C, so a callback must not ask for another object of that half either; lockdep reports it.
//!
//! C header: [`include/linux/liveupdate.h`](srctree/include/linux/liveupdate.h)

mod incoming;
mod outgoing;

pub use incoming::Incoming;
pub use outgoing::Outgoing;

use kernel::prelude::*;

use luo_abi::WireState;

/// State that is shared by files of one or more handlers, and preserved along with them.
///
/// In the old kernel: `preserve`, with the first file that depends on it, then `unpreserve`, if the
/// last such file goes before the reboot. In the new kernel: `retrieve`, when it is first asked
/// for, then `finish`, with the last such file. Both halves may then happen again.
///
/// All callbacks may sleep. They are called with the mutex of their half held, which makes them
/// exclude each other; so none may ask for its own object of that half. Often, but not always, the
/// locks that a file's callbacks hold are held too: `retrieve`, `unpreserve` and `finish` are also
/// called on behalf of whoever uses the object, with whatever locks that one holds.
///
/// C counterpart: `struct liveupdate_flb_ops`.
#[vtable]
pub trait FileLifecycleBound: Sized + 'static {
    /// Names this object and the version of its [`Self::State`]: 1 to 47 ASCII letters, digits,
    /// `-`, `_`, `.`, `,` and `+`.
    ///
    /// The next kernel looks for an object of the same name. There is one of a name in the system.
    const COMPATIBLE: &'static CStr;

    /// What the next kernel reads, all zero before `preserve` fills it in.
    ///
    /// The orchestrator allocates and frees it. It is checked to be a valid value before `retrieve`
    /// sees it; what its values refer to is for `retrieve` to check.
    type State: WireState;

    /// What this kernel works with: the live object that `preserve` and `retrieve` make.
    type Object: Send + Sync + 'static;

    /// Saves the shared state, and makes the object that stands for it in this kernel.
    ///
    /// Called when the first file that depends on it is preserved, before that file's own
    /// `preserve`. Later files share the result. The state can still be changed until the reboot.
    ///
    /// An error is what userspace gets for that file; nothing may be left behind then. The next
    /// file tries again.
    ///
    /// C counterpart: `preserve` in `struct liveupdate_flb_ops`.
    fn preserve(state: &mut Self::State) -> Result<Self::Object>;

    /// Takes back [`Self::preserve`]: no file depends on the object any more, and nobody uses it.
    ///
    /// Called after the last file's own `unpreserve`, or when the last user is done.
    ///
    /// C counterpart: `unpreserve` in `struct liveupdate_flb_ops`.
    fn unpreserve(state: &Self::State, object: Self::Object);

    /// Makes the object anew from what the previous kernel saved.
    ///
    /// Called once, when the object is first asked for; or, if it never is, after its last file
    /// was finished and right before [`Self::finish`].
    ///
    /// An error is the answer to everyone who asks, then and later; neither `retrieve` nor `finish`
    /// is called after it. What `state` refers to has to be used or freed here, on an error too.
    ///
    /// C counterpart: `retrieve` in `struct liveupdate_flb_ops`.
    fn retrieve(state: &Self::State) -> Result<Self::Object>;

    /// Ends the care for the object: all files that depend on it are finished, and nobody uses it.
    ///
    /// Called once, after the last file's own `finish`, or when the last user is done.
    ///
    /// C counterpart: `finish` in `struct liveupdate_flb_ops`.
    fn finish(object: Self::Object);
}
