// SPDX-License-Identifier: GPL-2.0

//! Strings in fixed-size fields.

use core::fmt;
use zerocopy_derive::{
    FromBytes,
    Immutable,
    IntoBytes,
    KnownLayout,
    Unaligned, //
};

/// A string in a field of `N` bytes, followed by zeros.
///
/// Session names and compatible strings are stored this way. A value can hold any bytes, since it
/// may come from another kernel or from userspace; [`Text::bytes`] says whether it is a string.
#[derive(
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
    Unaligned,
)]
#[repr(transparent)]
pub struct Text<const N: usize>([u8; N]);

/// Why a [`Text`] is not a usable string.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadText {
    /// The first byte is a NUL.
    Empty,
    /// No NUL ends the string within the field.
    NotTerminated,
}

impl<const N: usize> Text<N> {
    /// Stores `bytes`, or nothing if they are empty, hold a NUL or leave no room for one.
    pub const fn new(bytes: &[u8]) -> Option<Self> {
        if bytes.is_empty() || bytes.len() >= N {
            return None;
        }
        let mut field = [0; N];
        let mut i = 0;
        while i < bytes.len() {
            if bytes[i] == 0 {
                return None;
            }
            field[i] = bytes[i];
            i += 1;
        }
        Some(Self(field))
    }

    /// Takes a field as it is: possibly not a string at all.
    pub const fn from_bytes(field: [u8; N]) -> Self {
        Self(field)
    }

    /// Reads a field as C does: what follows the first NUL does not count.
    ///
    /// The result has only zeros after the string, so that equal strings compare equal.
    pub fn from_field(field: &[u8; N]) -> Result<Self, BadText> {
        let mut text = Self(*field);
        let len = text.bytes()?.len();
        text.0[len..].fill(0);
        Ok(text)
    }

    /// The whole field, zeros included.
    pub const fn field(&self) -> &[u8; N] {
        &self.0
    }

    /// What C would take for the string, even if it is none.
    pub fn up_to_nul(&self) -> &[u8] {
        let len = self.0.iter().position(|&byte| byte == 0).unwrap_or(N);
        &self.0[..len]
    }

    /// The string without its NUL.
    pub fn bytes(&self) -> Result<&[u8], BadText> {
        match self.up_to_nul() {
            [] => Err(BadText::Empty),
            text if text.len() == N => Err(BadText::NotTerminated),
            text => Ok(text),
        }
    }
}

/// Prints everything but printable ASCII escaped, since the bytes may come from another kernel.
impl<const N: usize> fmt::Display for Text<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.up_to_nul().escape_ascii())
    }
}

impl<const N: usize> fmt::Debug for Text<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{self}\"")
    }
}
