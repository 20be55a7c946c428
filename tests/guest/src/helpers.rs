// SPDX-License-Identifier: GPL-2.0

//! What this program does when a scenario starts it as a process of its own.

use crate::context::create;
use crate::scenarios::corrupt;
use crate::{data, kmsg, procfs, vmm};
use anyhow::{Context, Result, bail, ensure};
use liveupdate::{Device, Errno, Session, SessionName, Token};
use std::io::{BufRead, BufReader};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};

/// A helper that was started.
pub struct Helper {
    child: Child,
    output: BufReader<ChildStdout>,
    // What it inherited, kept until it has it.
    _inherited: Vec<OwnedFd>,
}

/// Something that a helper is told: a word, or a descriptor that it inherits.
pub enum Arg<'a> {
    /// A word.
    Word(String),
    /// A descriptor.
    Fd(&'a dyn AsFdDyn),
}

/// [`AsFd`] for trait objects.
pub trait AsFdDyn {
    /// A second descriptor that is not closed when another program starts.
    fn inheritable(&self) -> Result<OwnedFd>;
}

impl<T: AsFd> AsFdDyn for T {
    fn inheritable(&self) -> Result<OwnedFd> {
        let fd = self.as_fd().try_clone_to_owned()?;
        rustix::io::fcntl_setfd(&fd, rustix::io::FdFlags::empty())?;
        Ok(fd)
    }
}

impl Helper {
    /// Starts one.
    pub fn start(name: &str, args: &[Arg<'_>]) -> Result<Self> {
        let mut command = Command::new("/init");
        command.arg(name);
        let mut inherited = Vec::new();
        for arg in args {
            match arg {
                Arg::Word(word) => command.arg(word),
                Arg::Fd(fd) => {
                    let fd = fd.inheritable()?;
                    command.arg(fd.as_raw_fd().to_string());
                    inherited.push(fd);
                    &mut command
                }
            };
        }
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("starting helper {name}"))?;
        let output = child.stdout.take().context("a helper has no output")?;
        Ok(Self {
            child,
            output: BufReader::new(output),
            _inherited: inherited,
        })
    }

    /// Waits for the helper to print a certain line.
    pub fn expect_line(&mut self, expected: &str) -> Result<()> {
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        ensure!(
            line.trim_end() == expected,
            "a helper said {line:?}, expected {expected:?}"
        );
        Ok(())
    }

    /// Makes sure that it did not end.
    pub fn expect_running(&mut self) -> Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => bail!("a helper is not running any more: {status}"),
        }
    }

    /// Kills it as nobody can prevent, and waits until it is gone.
    pub fn kill(mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Waits until it is done.
    pub fn wait(mut self) -> Result<ExitStatus> {
        Ok(self.child.wait()?)
    }
}

/// Runs a helper; the result is the process's exit status.
pub fn main(args: &[String]) -> i32 {
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match run(&args) {
        Ok(status) => status,
        Err(error) => {
            // Not of a scenario, since that may be over; it fails the whole machine.
            let why = format!("{error:#}").replace('\n', " / ");
            kmsg::say(format!("not ok 0 - helper {} # {why}", args.join(" ")));
            255
        }
    }
}

fn run(args: &[&str]) -> Result<i32> {
    match args {
        ["hold", session, file] => hold(session, inherited(file)?),
        ["retrieve", session, token, group] => {
            retrieve(inherited(session)?, Token(token.parse()?), group)
        }
        ["open"] => open(),
        ["use-device", device] => use_device(inherited(device)?),
        // How the kernel calls what it takes to be modprobe.
        ["-q", "--", module] => corrupt::modprobe(module).map(|()| 0),
        ["retrieve-all", count] => retrieve_all(count.parse()?),
        ["storm", number] => storm(number.parse()?),
        ["vmm", what, kept] => vmm::main(what, kept).map(|()| 0),
        _ => bail!("there is no such helper"),
    }
}

/// A descriptor that the parent passed on.
fn inherited(number: &str) -> Result<OwnedFd> {
    let fd = number.parse()?;
    // SAFETY: the parent passed it for this purpose, and nothing else in this process knows of it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Preserves two files, one of them the parent's, and waits to be killed.
fn hold(name: &str, file: OwnedFd) -> Result<i32> {
    let session = create(name)?;
    session.preserve(&file, Token(1))?;
    session.preserve(data::memfd_with("own", 5, 50_000)?, Token(2))?;
    println!("held");
    loop {
        std::thread::park();
    }
}

/// Holds the device and waits to be killed.
fn open() -> Result<i32> {
    let _device = Device::open()?;
    println!("open");
    loop {
        std::thread::park();
    }
}

/// Maps a device's registers and reads them until it is killed.
fn use_device(device: OwnedFd) -> Result<i32> {
    let registers = data::Mapping::new(&device.into(), data::page())?;
    registers.read(0, 4);
    println!("mapped");
    loop {
        registers.read(0, 4);
    }
}

/// Retrieves a file within a control group; the exit status is the errno, or 0.
fn retrieve(session: OwnedFd, token: Token, group: &str) -> Result<i32> {
    // What the group's limit refuses is refused, rather than this process killed.
    procfs::write("/proc/self/oom_score_adj", "-1000")?;
    procfs::write(format!("{group}/cgroup.procs"), "0")?;
    // SAFETY: the parent passed an incoming session.
    let session = unsafe { Session::<liveupdate::Incoming>::from_owned_fd(session) };
    Ok(match session.retrieve(token) {
        Ok(_) => 0,
        Err(errno) => errno.raw_os_error(),
    })
}

/// Retrieves and finishes sessions, as fast as it can; it says so when the first one is done.
fn retrieve_all(count: u64) -> Result<i32> {
    let device = Device::open()?;
    for i in 0..count {
        let session = device.retrieve_session(&SessionName::new(format!("busy-{i}"))?)?;
        let file = session.retrieve(Token(i)).context("a file")?;
        data::expect_file(&data::file(file), i, 5000)?;
        session.finish()?;
        if i == 0 {
            println!("retrieving");
        }
    }
    Ok(0)
}

/// Creates sessions, preserves files and closes all again, without an end; it says so when that
/// was done once.
fn storm(number: u64) -> Result<i32> {
    let file = data::memfd_with("file", number, 20_000)?;
    let mut rounds = 0;
    for round in 0_u64.. {
        // Others of the storm want the device as well.
        let device = match Device::open() {
            Ok(device) => device,
            Err(Errno::BUSY) => continue,
            Err(errno) => bail!("opening the device: {errno}"),
        };
        let name = SessionName::new(format!("storm-{number}-{}", round % 3))?;
        let session = device.create_session(&name);
        drop(device);
        let session = session.context("creating a session")?;
        session.preserve(&file, Token(round)).context("preserve")?;
        session.name().context("reading the name")?;
        drop(session);
        if rounds == 0 {
            println!("storming");
        }
        rounds += 1;
    }
    Ok(0)
}
