// SPDX-License-Identifier: GPL-2.0

//! The formats in which one kernel hands state to the next.
//!
//! Whatever is defined here is read by a kernel other than the one that wrote it, and that kernel
//! may be the C one. So each type is the exact image of a C structure, where there is one, and a
//! change to any of them is a new format that needs a new compatible string.
//!
//! One module a component, named after the C header that it mirrors, if there is one. The crate depends on
//! `zerocopy` alone and builds unchanged in the kernel and on the host, where its tests run.
//!
//! All integers are in the CPU's own byte order: a kernel hands over to a kernel of the same
//! architecture and page size, as Kexec Handover (KHO) itself requires.

// Kbuild says so itself.
#![cfg_attr(not(CONFIG_RUST), no_std)]

pub mod block;
pub mod iommufd;
pub mod kho;
pub mod luo;
pub mod memfd;
mod text;
pub mod vfio;

pub use text::{
    BadText,
    Text, //
};

use zerocopy::{
    FromZeros,
    Immutable,
    IntoBytes,
    KnownLayout, //
};

/// What one kernel can leave for another: plain values, without padding, pointers or references.
///
/// All zero bytes must be a valid value. Other bytes need not be, which is checked before the next
/// kernel uses them: an `enum` or a `bool` is fine. One byte to 4 MiB, with no greater alignment than
/// a page.
pub trait WireState:
    FromZeros + IntoBytes + KnownLayout + Immutable + Send + Sync + 'static
{
}

impl<T> WireState for T where
    T: FromZeros + IntoBytes + KnownLayout + Immutable + Send + Sync + 'static
{
}

/// Asserts, at build time, what a C compiler made of the same structure.
macro_rules! assert_layout {
    ($type:ty, size $size:literal $(, $field:ident at $offset:literal)* $(,)?) => {
        const _: () = {
            assert!(::core::mem::size_of::<$type>() == $size);
            assert!(::core::mem::align_of::<$type>() == 1);
            $(assert!(::core::mem::offset_of!($type, $field) == $offset);)*
        };
    };
}
use assert_layout;
