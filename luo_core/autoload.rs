// SPDX-License-Identifier: GPL-2.0

//! Handlers that incoming files need and that are not loaded.

use kernel::prelude::*;

use crate::{
    bindings,
    shown, //
};

use luo_abi::luo::{
    Alias,
    Compatible, //
};

/// Has userspace load the module of the handler that `compatible` names, and waits for it.
///
/// What comes of it shows in whether the handler is there afterwards; false means that the task is
/// being killed and should not wait for more. No lock may be held that the module needs to load, and
/// so none of the orchestrator's.
///
/// C counterpart: `request_module()`.
pub(crate) fn request(compatible: &Compatible) -> bool {
    match Alias::new_for(compatible.up_to_nul()) {
        // SAFETY: An alias ends with a NUL.
        Some(alias) => unsafe { bindings::luo_request_module(alias.field().as_ptr().cast()) },
        None => true,
    }
}

/// Says that a file's handler is missing, and what would load it.
pub(crate) fn complain(compatible: &Compatible, token: u64) {
    let handler = shown(compatible);
    match Alias::new_for(compatible.up_to_nul()) {
        Some(alias) => pr_warn!(
            "token {token:#x} needs the handler '{handler}', which is not loaded; its module has the alias '{}'\n",
            shown(&alias)
        ),
        None => pr_warn!("token {token:#x} needs the handler '{handler}', which is not loaded\n"),
    }
}
