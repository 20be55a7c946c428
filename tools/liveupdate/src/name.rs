// SPDX-License-Identifier: GPL-2.0

//! Session names.

use crate::uapi::SESSION_NAME_LENGTH;
use std::fmt;

/// The name of a session: 1 to 63 bytes, none of them NUL.
///
/// It is what the next kernel finds the session by, so it is unique among the sessions of a
/// machine.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct SessionName {
    // Invariant: a string of the documented length, then zeros.
    field: [u8; SESSION_NAME_LENGTH],
}

/// Why some bytes are not a session's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadName {
    /// There is no byte.
    Empty,
    /// There are more than 63 bytes.
    TooLong(usize),
    /// There is a NUL among the bytes.
    HasNul,
}

impl SessionName {
    /// Checks a name.
    pub fn new(name: impl AsRef<[u8]>) -> Result<Self, BadName> {
        let name = name.as_ref();
        if name.is_empty() {
            return Err(BadName::Empty);
        }
        if name.len() >= SESSION_NAME_LENGTH {
            return Err(BadName::TooLong(name.len()));
        }
        if name.contains(&0) {
            return Err(BadName::HasNul);
        }
        let mut field = [0; SESSION_NAME_LENGTH];
        field[..name.len()].copy_from_slice(name);
        Ok(Self { field })
    }

    /// Takes the field of an ioctl's structure, up to its NUL.
    pub(crate) fn from_field(field: &[u8; SESSION_NAME_LENGTH]) -> Result<Self, BadName> {
        let len = field.iter().position(|&byte| byte == 0);
        Self::new(&field[..len.unwrap_or(field.len())])
    }

    /// The field of an ioctl's structure.
    pub(crate) fn field(&self) -> [u8; SESSION_NAME_LENGTH] {
        self.field
    }

    /// The name's bytes, without a NUL.
    pub fn as_bytes(&self) -> &[u8] {
        let len = self.field.iter().position(|&byte| byte == 0);
        &self.field[..len.unwrap_or(self.field.len())]
    }
}

impl fmt::Display for SessionName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.as_bytes().escape_ascii())
    }
}

impl fmt::Debug for SessionName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{self}\"")
    }
}

impl fmt::Display for BadName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BadName::Empty => write!(f, "a session's name is empty"),
            BadName::TooLong(len) => {
                let most = SESSION_NAME_LENGTH - 1;
                write!(
                    f,
                    "a session's name has {len} bytes; {most} are the most there can be"
                )
            }
            BadName::HasNul => write!(f, "a session's name has a NUL in it"),
        }
    }
}

impl std::error::Error for BadName {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_name_has_63_bytes() {
        let name = SessionName::new("x".repeat(63)).unwrap();
        assert_eq!(name.as_bytes().len(), 63);
        assert_eq!(name.field()[63], 0);
        assert_eq!(SessionName::new("x".repeat(64)), Err(BadName::TooLong(64)));
    }

    #[test]
    fn an_empty_name_and_a_nul_are_refused() {
        assert_eq!(SessionName::new(""), Err(BadName::Empty));
        assert_eq!(SessionName::new("a\0b"), Err(BadName::HasNul));
    }

    #[test]
    fn a_field_reads_back_as_its_name() {
        let name = SessionName::new("vm-42").unwrap();
        assert_eq!(SessionName::from_field(&name.field()), Ok(name));
    }
}
