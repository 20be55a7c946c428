// SPDX-License-Identifier: GPL-2.0

//! Memory to put arguments into: well, at its very end, read-only, or not there at all.

use anyhow::Result;
use liveupdate::uapi::SESSION_NAME_LENGTH;
use rustix::mm::{MapFlags, MprotectFlags, ProtFlags, mmap_anonymous, mprotect};
use rustix::param::page_size;

/// Three pages, of which the middle one can be made read-only and the last one is not there.
pub struct Pages {
    start: *mut u8,
}

impl Pages {
    /// Maps them.
    pub fn new() -> Result<Self> {
        let page = page_size();
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: the kernel chooses a place where nothing is.
        let start =
            unsafe { mmap_anonymous(std::ptr::null_mut(), 3 * page, access, MapFlags::PRIVATE)? };
        // SAFETY: it is the last page of the mapping, and nothing refers to it.
        unsafe { mprotect(start.add(2 * page), page, MprotectFlags::empty())? };
        Ok(Self {
            start: start.cast(),
        })
    }

    /// The last `len` bytes before the page that is not there, filled; the rest is zeros.
    pub fn at_end(&self, bytes: &[u8], len: usize) -> *mut u8 {
        self.put(2 * page_size() - len, bytes)
    }

    /// Some place in the middle, filled; the rest is zeros.
    pub fn put(&self, offset: usize, bytes: &[u8]) -> *mut u8 {
        assert!(offset + bytes.len() <= 2 * page_size());
        // SAFETY: the first two pages are mapped and can be written, and no reference to them
        // exists.
        unsafe {
            self.start.write_bytes(0, 2 * page_size());
            let at = self.start.add(offset);
            at.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len());
            at
        }
    }

    /// What is at a place now.
    pub fn get(&self, at: *const u8, len: usize) -> Vec<u8> {
        // SAFETY: `at` came from `put`, which saw to it that `len` bytes are there.
        unsafe { std::slice::from_raw_parts(at, len).to_vec() }
    }

    /// The second page with the structure at its start, read-only until the next call of
    /// [`Pages::writable`].
    pub fn read_only(&self, bytes: &[u8]) -> Result<*mut u8> {
        let at = self.put(page_size(), bytes);
        // SAFETY: it is the second page of the mapping, and no reference to it exists.
        unsafe { mprotect(at.cast(), page_size(), MprotectFlags::READ)? };
        Ok(at)
    }

    /// Ends what [`Pages::read_only`] began.
    pub fn writable(&self) -> Result<()> {
        let access = MprotectFlags::READ | MprotectFlags::WRITE;
        // SAFETY: it is the second page of the mapping.
        unsafe { mprotect(self.start.add(page_size()).cast(), page_size(), access)? };
        Ok(())
    }

    /// An address where nothing is.
    pub fn nowhere(&self) -> *mut u8 {
        self.start.wrapping_add(2 * page_size())
    }
}

/// A structure as bytes.
#[derive(Clone)]
pub struct Arg(pub Vec<u8>);

impl Arg {
    /// A structure of zeros that begins with its size.
    pub fn new(size: usize) -> Self {
        let mut arg = Self(vec![0; size]);
        arg.set_u32(0, size as u32);
        arg
    }

    fn set_u32(&mut self, offset: usize, value: u32) {
        self.0[offset..offset + 4].copy_from_slice(&value.to_ne_bytes());
    }

    /// Another size field.
    pub fn with_size(mut self, size: u32) -> Self {
        self.set_u32(0, size);
        self
    }

    /// Another second field: the descriptor or what is reserved.
    pub fn with_second(mut self, value: u32) -> Self {
        self.set_u32(4, value);
        self
    }

    /// A token.
    pub fn with_token(mut self, token: u64) -> Self {
        self.0[8..16].copy_from_slice(&token.to_ne_bytes());
        self
    }

    /// A name.
    pub fn with_name(mut self, name: &[u8]) -> Self {
        self.0[8..8 + SESSION_NAME_LENGTH].fill(0);
        self.0[8..8 + name.len()].copy_from_slice(name);
        self
    }
}
