// SPDX-License-Identifier: GPL-2.0

//! What a stage of a scenario works with, and how it says what it expects.

use crate::errno::name;
use crate::kmsg;
use crate::plan::{MODULE_DIR, PROGRAM_DIR, Plan};
use anyhow::{Context as _, Result, bail, ensure};
use liveupdate::{Device, Errno, Incoming, Outgoing, Session, SessionName};
use std::any::Any;
use std::fmt::Debug;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// What a stage of a scenario is given.
pub struct Context<'a> {
    /// What this machine does.
    pub plan: &'a Plan,
    /// Which kernel of the chain this is.
    pub stage: usize,
    kept: Vec<Box<dyn Any>>,
}

impl<'a> Context<'a> {
    /// For one kernel.
    pub fn new(plan: &'a Plan, stage: usize) -> Self {
        Self {
            plan,
            stage,
            kept: Vec::new(),
        }
    }

    /// Keeps `thing` until this kernel ends, so that what is open stays open.
    pub fn keep(&mut self, thing: impl Any) {
        self.kept.push(Box::new(thing));
    }

    /// A number that the plan gives, or what it is otherwise.
    pub fn number(&self, name: &str, otherwise: u64) -> Result<u64> {
        match self.plan.args.get(name) {
            None => Ok(otherwise),
            Some(text) => text
                .parse()
                .with_context(|| format!("the plan's {name} is {text}, no number")),
        }
    }

    /// The flavour of the kernel that runs.
    pub fn flavour(&self) -> &str {
        self.plan
            .stages
            .get(self.stage)
            .map_or("", |stage| &stage.flavour)
    }

    /// Whether the orchestrator of the kernel that runs is the Rust one.
    pub fn rust_core(&self) -> bool {
        !matches!(self.flavour(), "c" | "c-flb")
    }

    /// Whether the memfd handler of the kernel that runs is the Rust one.
    pub fn rust_memfd(&self) -> bool {
        matches!(self.flavour(), "rust" | "debug")
    }

    /// A module: one of the kernel that runs, or else the program that the plan names instead.
    pub fn module(&self, name: &str) -> PathBuf {
        if let Some(instead) = self.plan.args.get(&format!("{name}.ko")) {
            return Path::new(PROGRAM_DIR).join(instead);
        }
        PathBuf::from(format!("{MODULE_DIR}/{}/{name}.ko", self.flavour()))
    }
}

/// Opens the device.
pub fn device() -> Result<Device> {
    Device::open().context("opening /dev/liveupdate")
}

/// Opens the device for one session to be created.
pub fn create(name: &str) -> Result<Session<Outgoing>> {
    device()?
        .create_session(&SessionName::new(name)?)
        .with_context(|| format!("creating session {name}"))
}

/// Opens the device for one session to be retrieved.
pub fn retrieve(name: &str) -> Result<Session<Incoming>> {
    device()?
        .retrieve_session(&SessionName::new(name)?)
        .with_context(|| format!("retrieving session {name}"))
}

/// The same session once more, as if it were in the other phase.
pub fn as_incoming(session: &Session<Outgoing>) -> Result<Session<Incoming>> {
    let fd = session.as_fd().try_clone_to_owned()?;
    // SAFETY: it is a session; that its phase is another is what the caller tries out.
    Ok(unsafe { Session::from_owned_fd(fd) })
}

/// The same session once more, as if it were in the other phase.
pub fn as_outgoing(session: &Session<Incoming>) -> Result<Session<Outgoing>> {
    let fd = session.as_fd().try_clone_to_owned()?;
    // SAFETY: it is a session; that its phase is another is what the caller tries out.
    Ok(unsafe { Session::from_owned_fd(fd) })
}

/// A second handle on an incoming session, for calls that take the session.
pub fn again(session: &Session<Incoming>) -> Result<Session<Incoming>> {
    let fd = session.as_fd().try_clone_to_owned()?;
    // SAFETY: it is an incoming session.
    Ok(unsafe { Session::from_owned_fd(fd) })
}

/// Finishes a session and reports the errno.
pub fn finish(session: Session<Incoming>) -> Result<()> {
    session
        .finish()
        .map_err(Errno::from)
        .context("finishing the session")
}

/// Waits until something is so, but not for ever.
pub fn wait_for(what: &str, mut done: impl FnMut() -> bool) -> Result<()> {
    let start = Instant::now();
    while !done() {
        ensure!(start.elapsed() < Duration::from_secs(60), "{what} is late");
        std::thread::yield_now();
    }
    Ok(())
}

/// Expects a call to fail with one errno.
pub fn expect_errno<T: Debug>(
    what: &str,
    result: Result<T, impl Into<Errno>>,
    expected: Errno,
) -> Result<()> {
    match result.map_err(Into::into) {
        Err(errno) if errno == expected => Ok(()),
        Err(errno) => bail!("{what}: {}, expected {}", name(errno), name(expected)),
        Ok(value) => bail!("{what}: worked ({value:?}), expected {}", name(expected)),
    }
}

/// Expects two values to be equal.
pub fn expect_eq<T: PartialEq + Debug>(what: &str, found: T, expected: T) -> Result<()> {
    if found != expected {
        bail!("{what}: {found:?}, expected {expected:?}");
    }
    Ok(())
}

/// Expects the kernel to have logged a line with all of `words` in it.
pub fn expect_message(log: &mut kmsg::Reader, words: &[&str]) -> Result<()> {
    let lines = log.lines()?;
    if lines
        .iter()
        .any(|line| words.iter().all(|word| line.contains(word)))
    {
        return Ok(());
    }
    bail!("no kernel message with {words:?}; there were {lines:?}");
}
