// SPDX-License-Identifier: GPL-2.0

//! Memfds and what is in them.

use crate::protocol;
use anyhow::{Context, Result, bail, ensure};
use rustix::fs::{MemfdFlags, SealFlags};
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, mmap_anonymous, munmap};
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::Seek;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

/// Bytes that are written or read at once.
const CHUNK: usize = 1 << 20;

/// Bytes that look random and are the same for the same seed.
pub struct Pattern {
    state: u64,
}

impl Pattern {
    /// The bytes of one seed.
    pub fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    /// The bytes of a seed that nobody knows beforehand.
    pub fn random() -> Result<Self> {
        let mut seed = [0; 8];
        let len = rustix::rand::getrandom(&mut seed, rustix::rand::GetRandomFlags::empty())
            .context("getting random bytes")?;
        ensure!(len == seed.len(), "got {len} random bytes");
        Ok(Self::new(u64::from_ne_bytes(seed)))
    }

    // SplitMix64.
    fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Fills a buffer with the next bytes.
    pub fn fill(&mut self, buffer: &mut [u8]) {
        for chunk in buffer.chunks_mut(8) {
            chunk.copy_from_slice(&self.next().to_le_bytes()[..chunk.len()]);
        }
    }

    /// The next bytes.
    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.fill(&mut bytes);
        bytes
    }
}

/// The size of a page.
pub fn page() -> u64 {
    rustix::param::page_size() as u64
}

/// An empty memfd that can be sealed.
pub fn memfd(name: &str) -> Result<File> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let fd = rustix::fs::memfd_create(name, flags).with_context(|| format!("memfd {name}"))?;
    Ok(File::from(fd))
}

/// A memfd of `len` bytes of a seed's pattern.
pub fn memfd_with(name: &str, seed: u64, len: u64) -> Result<File> {
    let file = memfd(name)?;
    file.set_len(len)?;
    write_pattern(&file, &mut Pattern::new(seed), 0, len)?;
    Ok(file)
}

/// Writes `len` bytes of a pattern at `offset`.
pub fn write_pattern(file: &File, pattern: &mut Pattern, offset: u64, len: u64) -> Result<()> {
    let mut buffer = vec![0; CHUNK];
    for (at, size) in chunks(offset, len) {
        pattern.fill(&mut buffer[..size]);
        file.write_all_at(&buffer[..size], at)
            .with_context(|| format!("writing {size} bytes at {at}"))?;
    }
    Ok(())
}

/// Expects `len` bytes of a seed's pattern at `offset`.
pub fn expect_pattern(file: &File, seed: u64, offset: u64, len: u64) -> Result<()> {
    let mut pattern = Pattern::new(seed);
    let (mut found, mut expected) = (vec![0; CHUNK], vec![0; CHUNK]);
    for (at, size) in chunks(offset, len) {
        pattern.fill(&mut expected[..size]);
        compare(file, at, &mut found[..size], &expected[..size])?;
    }
    Ok(())
}

/// Expects `len` zeros at `offset`.
pub fn expect_zeros(file: &File, offset: u64, len: u64) -> Result<()> {
    let (mut found, expected) = (vec![0; CHUNK], vec![0; CHUNK]);
    for (at, size) in chunks(offset, len) {
        compare(file, at, &mut found[..size], &expected[..size])?;
    }
    Ok(())
}

/// Expects certain bytes at `offset`.
pub fn expect_bytes(file: &File, offset: u64, expected: &[u8]) -> Result<()> {
    compare(file, offset, &mut vec![0; expected.len()], expected)
}

/// Expects a file to have a certain size.
pub fn expect_len(file: &File, expected: u64) -> Result<()> {
    let found = file.metadata()?.len();
    ensure!(
        found == expected,
        "the file has {found} bytes, expected {expected}"
    );
    Ok(())
}

/// Expects a file to be `len` bytes of a seed's pattern and nothing else.
pub fn expect_file(file: &File, seed: u64, len: u64) -> Result<()> {
    expect_len(file, len)?;
    expect_pattern(file, seed, 0, len)
}

/// A retrieved descriptor as a file.
pub fn file(fd: OwnedFd) -> File {
    File::from(fd)
}

/// What can be said of a memfd, for the host to compare.
pub fn describe(name: &str, mut file: &File) -> Result<protocol::File> {
    let bytes = file.metadata()?.len();
    let mut hash = Sha256::new();
    let mut buffer = vec![0; CHUNK];
    for (at, size) in chunks(0, bytes) {
        file.read_exact_at(&mut buffer[..size], at)?;
        hash.update(&buffer[..size]);
    }
    let sha256 = hash.finalize();
    Ok(protocol::File {
        file: name.to_owned(),
        bytes,
        sha256: sha256.iter().map(|byte| format!("{byte:02x}")).collect(),
        position: file.stream_position()?,
        seals: seal_names(rustix::fs::fcntl_get_seals(file)?),
    })
}

/// A set of seals as a person reads it.
fn seal_names(seals: SealFlags) -> String {
    let names: Vec<String> = seals
        .iter_names()
        .map(|(name, _)| name.to_ascii_lowercase().replace('_', "-"))
        .collect();
    names.join(" ")
}

fn compare(file: &File, at: u64, found: &mut [u8], expected: &[u8]) -> Result<()> {
    file.read_exact_at(found, at)
        .with_context(|| format!("reading {} bytes at {at}", found.len()))?;
    if let Some(i) = (0..found.len()).find(|&i| found[i] != expected[i]) {
        bail!(
            "byte {} is {:#04x}, expected {:#04x}",
            at + i as u64,
            found[i],
            expected[i]
        );
    }
    Ok(())
}

fn chunks(offset: u64, len: u64) -> impl Iterator<Item = (u64, usize)> {
    (0..len)
        .step_by(CHUNK)
        .map(move |at| (offset + at, (len - at).min(CHUNK as u64) as usize))
}

/// Memory of this process, shared with whoever else has it: a file, or none.
pub struct Mapping {
    start: *mut u8,
    len: usize,
}

impl Mapping {
    /// Maps the first `len` bytes of a file.
    pub fn new(file: &File, len: u64) -> Result<Self> {
        let len = usize::try_from(len)?;
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: the kernel chooses a place where nothing is.
        let start = unsafe { mmap(std::ptr::null_mut(), len, access, MapFlags::SHARED, file, 0) };
        Ok(Self {
            start: start.context("mapping a file")?.cast(),
            len,
        })
    }

    /// Maps `len` bytes of no file.
    pub fn anonymous(len: u64) -> Result<Self> {
        let len = usize::try_from(len)?;
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: the kernel chooses a place where nothing is.
        let start = unsafe { mmap_anonymous(std::ptr::null_mut(), len, access, MapFlags::PRIVATE) };
        Ok(Self {
            start: start.context("mapping memory")?.cast(),
            len,
        })
    }

    /// Where it is in this process.
    pub fn address(&self) -> u64 {
        self.start.expose_provenance() as u64
    }

    /// Its bytes.
    pub fn len(&self) -> u64 {
        self.len as u64
    }

    /// Copies bytes out.
    pub fn read(&self, offset: u64, len: u64) -> Vec<u8> {
        (offset..offset + len)
            .map(|at| {
                let at = self.checked(at);
                // SAFETY: `checked` found it within the mapping. Another process could write at
                // the same time, so the read is volatile.
                unsafe { self.start.add(at).read_volatile() }
            })
            .collect()
    }

    /// Reads four bytes at once, as registers want it.
    pub fn word(&self, offset: u64) -> u32 {
        let (at, _) = (self.checked(offset), self.checked(offset + 3));
        assert!(at.is_multiple_of(4), "{at} is not where a word is");
        // SAFETY: as in `read`; a mapping begins with a page.
        unsafe { self.start.add(at).cast::<u32>().read_volatile() }
    }

    /// Copies bytes in.
    pub fn write(&self, offset: u64, bytes: &[u8]) {
        for (at, byte) in (offset..).zip(bytes) {
            let at = self.checked(at);
            // SAFETY: as in `read`.
            unsafe { self.start.add(at).write_volatile(*byte) };
        }
    }

    /// Asks the kernel to move all of it out of memory, which it does as far as it can.
    pub fn page_out(&self) {
        // SAFETY: it is one mapping, and its contents stay.
        let advised = unsafe { madvise(self.start.cast(), self.len, Advice::LinuxPageOut) };
        // It is no more than advice.
        let _ = advised;
    }

    fn checked(&self, at: u64) -> usize {
        let at = usize::try_from(at).unwrap_or(usize::MAX);
        assert!(at < self.len, "{at} is outside of the mapping");
        at
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: nothing refers to the mapping any more. It fails only where there is none.
        let _ = unsafe { munmap(self.start.cast(), self.len) };
    }
}
