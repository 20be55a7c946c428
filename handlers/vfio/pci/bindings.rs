// SPDX-License-Identifier: GPL-2.0

//! Bindings to the C headers that the kernel crate does not bind.

#![allow(
    clippy::all,
    clippy::undocumented_unsafe_blocks,
    dead_code,
    missing_docs,
    non_camel_case_types,
    non_upper_case_globals,
    non_snake_case,
    improper_ctypes,
    unreachable_pub,
    unsafe_op_in_unsafe_fn
)]

pub(crate) use kernel::bindings::*;
use pin_init::MaybeZeroable;

include!(concat!(
    env!("OBJTREE"),
    "/kernel/liveupdate/luo/handlers/vfio/pci/bindings_generated.rs"
));
