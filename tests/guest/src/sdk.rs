// SPDX-License-Identifier: GPL-2.0

//! The test module of the SDK: files of two kinds, two FLBs, all in Rust; they fail on request.
//!
//! `tests/modules/luo_sdk_test.rs` says what its device understands.

use crate::context::{Context, create};
use crate::kmsg::Reader;
use crate::{data, module, raw};
use anyhow::{Context as _, Result, ensure};
use liveupdate::{Errno, Incoming, Outgoing, Session, Token};
use std::fs;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

/// The module's name.
pub const MODULE: &str = "luo_sdk_test";

/// The compatible string of files of kind a.
pub const A: &str = "luo-sdk-test-a";
/// The compatible string of files of kind b.
pub const B: &str = "luo-sdk-test-b";

/// The compatible strings of the FLBs.
pub const FLBS: [&str; 2] = ["luo-sdk-flb-1", "luo-sdk-flb-2"];

/// `_IO('L', 1)`: adds a file to those that this one needs.
const NEEDS: u32 = 0x4c01;

/// What can be told to fail.
const CALLBACKS: [&str; 6] = [
    "preserve",
    "freeze",
    "retrieve",
    "can_finish",
    "flb-preserve",
    "flb-retrieve",
];

/// Loads the module, unless an earlier scenario did; then whatever that left to fail does not.
pub fn load(context: &Context<'_>) -> Result<()> {
    if module::is_loaded(MODULE) {
        return CALLBACKS.iter().try_for_each(|what| never_fail(what));
    }
    module::load(&context.module(MODULE))
}

/// Loads the module anew, whatever an earlier scenario left.
pub fn load_anew(context: &Context<'_>) -> Result<()> {
    if module::is_loaded(MODULE) {
        module::unload(MODULE).context("unloading what an earlier scenario left")?;
    }
    module::load(&context.module(MODULE))
}

/// A module like it that has another name, and other strings where `changes` says so. What a
/// string is changed to has to be as long as it was.
pub fn load_like(context: &Context<'_>, name: &str, changes: &[(&str, &str)]) -> Result<()> {
    let path = context.module(MODULE);
    let mut image = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
    for (from, to) in [(MODULE, name)].iter().chain(changes) {
        ensure!(from.len() == to.len(), "{from} and {to} differ in length");
        let mut at = 0;
        let mut found = 0;
        let from = from.as_bytes();
        while let Some(i) = image[at..].windows(from.len()).position(|w| w == from) {
            image[at + i..][..from.len()].copy_from_slice(to.as_bytes());
            at += i + from.len();
            found += 1;
        }
        ensure!(found > 0, "the module has no {to}");
    }
    rustix::system::init_module(&image, c"").with_context(|| format!("loading {name}"))
}

/// An open file of the device.
pub struct File(fs::File);

impl File {
    /// Opens a file of kind a.
    pub fn new(number: u64) -> Result<Self> {
        Self::of(MODULE, number)
    }

    /// Opens a file of kind b.
    pub fn new_b(number: u64) -> Result<Self> {
        let file = Self::new(number)?;
        file.command("kind b")?;
        Ok(file)
    }

    /// Opens a file of kind a of a module like it.
    pub fn of(module: &str, number: u64) -> Result<Self> {
        let file = Self(
            fs::File::options()
                .read(true)
                .write(true)
                .open(format!("/dev/{module}"))
                .with_context(|| format!("opening /dev/{module}"))?,
        );
        file.command(&format!("number {number}"))?;
        Ok(file)
    }

    /// What a session gave back.
    pub fn retrieved(session: &Session<Incoming>, token: u64) -> Result<Self, Errno> {
        session
            .retrieve(Token(token))
            .map(|fd| Self(data::file(fd)))
    }

    /// Gives a command; the errno is the device's.
    pub fn try_command(&self, command: &str) -> Result<(), Errno> {
        let written = rustix::io::write(&self.0, command.as_bytes())?;
        // It takes all or nothing.
        match written == command.len() {
            true => Ok(()),
            false => Err(Errno::IO),
        }
    }

    /// Gives a command that has to work.
    pub fn command(&self, command: &str) -> Result<()> {
        self.try_command(command)
            .with_context(|| format!("{command:?}"))
    }

    /// Adds a file to those that this one needs.
    pub fn needs(&self, file: impl AsFd) -> Result<()> {
        let fd = file.as_fd().as_raw_fd() as usize as *mut _;
        // SAFETY: the device takes it for a descriptor, not for an address.
        unsafe { raw::ioctl(&self.0, NEEDS, fd) }.context("needing a file")?;
        Ok(())
    }

    /// The number, and those of the files that it got from its session.
    pub fn text(&self) -> Result<String> {
        let mut bytes = [0; 200];
        let len = (&self.0).read(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes[..len]).trim_end().to_owned())
    }
}

impl AsFd for File {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Has a callback fail for a number (0 is a number as any other) until [`never_fail`].
pub fn fail(what: &str, number: u64, errno: Errno) -> Result<()> {
    let errno = errno.raw_os_error();
    File::new(0)?.command(&format!("fail {what} {number} {errno}"))
}

/// Takes back [`fail`].
pub fn never_fail(what: &str) -> Result<()> {
    File::new(0)?.command(&format!("fail {what} 0 0"))
}

/// A session with a file of kind a for each number, which also is its token.
pub fn session_of(name: &str, numbers: &[u64]) -> Result<Session<Outgoing>> {
    let session = create(name)?;
    for &number in numbers {
        session.preserve(File::new(number)?, Token(number))?;
    }
    Ok(session)
}

/// What the module said since the last look at the log, as far as it is of these callbacks: a
/// line's first word.
pub fn said(log: &mut Reader, callbacks: &[&str]) -> Result<Vec<String>> {
    let lines = log.lines()?;
    let ours = lines
        .iter()
        .filter_map(|line| line.strip_prefix(MODULE)?.strip_prefix(": "))
        .filter(|line| {
            let first = line.split(' ').next().unwrap_or_default();
            callbacks.is_empty() || callbacks.contains(&first)
        });
    Ok(ours.map(|line| line.trim_end().to_owned()).collect())
}

/// Expects the module to have said this since the last look at the log, and nothing else of these
/// callbacks (of all, if there is none).
pub fn expect(log: &mut Reader, callbacks: &[&str], expected: &[&str]) -> Result<()> {
    let found = said(log, callbacks)?;
    ensure!(found == expected, "{found:?}, expected {expected:?}");
    Ok(())
}
