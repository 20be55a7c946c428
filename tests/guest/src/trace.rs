// SPDX-License-Identifier: GPL-2.0

//! Counts the ioctls that a program makes, by watching it as a debugger does.

use crate::iommufd;
use crate::vfio;
use anyhow::{Context, Result, bail, ensure};
use iommufd_bindings::*;
use liveupdate::uapi;
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use rustix::thread::{CpuSet, sched_getaffinity, sched_getcpu, sched_setaffinity};
use std::collections::BTreeMap;
use std::io::Read;
use std::process::{Command, Stdio};

/// How often a program made each ioctl.
pub type Calls = BTreeMap<String, u64>;

/// Those that have a name.
const NAMES: [(u32, &str); 20] = [
    (uapi::CREATE_SESSION, "CREATE_SESSION"),
    (uapi::RETRIEVE_SESSION, "RETRIEVE_SESSION"),
    (uapi::SESSION_PRESERVE_FD, "PRESERVE_FD"),
    (uapi::SESSION_RETRIEVE_FD, "RETRIEVE_FD"),
    (uapi::SESSION_FINISH, "FINISH"),
    (uapi::SESSION_GET_NAME, "GET_NAME"),
    (vfio::BIND, "BIND"),
    (vfio::ATTACH, "ATTACH"),
    (vfio::DETACH, "DETACH"),
    (vfio::REGION_INFO, "REGION_INFO"),
    (vfio::RESET, "RESET"),
    (vfio::MAP_DMA, "MAP_DMA"),
    (iommufd::number(IOMMUFD_CMD_DESTROY), "DESTROY"),
    (iommufd::number(IOMMUFD_CMD_IOAS_ALLOC), "IOAS_ALLOC"),
    (iommufd::number(IOMMUFD_CMD_IOAS_MAP), "IOAS_MAP"),
    (iommufd::number(IOMMUFD_CMD_IOAS_MAP_FILE), "IOAS_MAP_FILE"),
    (iommufd::number(IOMMUFD_CMD_IOAS_COPY), "IOAS_COPY"),
    (iommufd::number(IOMMUFD_CMD_IOAS_UNMAP), "IOAS_UNMAP"),
    (iommufd::number(IOMMUFD_CMD_OPTION), "OPTION"),
    (iommufd::number(IOMMUFD_CMD_VFIO_IOAS), "VFIO_IOAS"),
];

/// Those that map memory for a device.
const MAPS: [&str; 4] = ["IOAS_MAP", "IOAS_MAP_FILE", "IOAS_COPY", "MAP_DMA"];

/// How often memory was mapped for a device.
pub fn maps(calls: &Calls) -> u64 {
    MAPS.iter().filter_map(|name| calls.get(*name)).sum()
}

/// Runs this program as the helper of that name, until it ends well or stops itself, and counts
/// its ioctls. Stopped, it goes on by itself, watched no more.
///
/// The helper has to begin with [`wait_to_be_watched`]. It must not start threads or processes,
/// whose ioctls would not be counted.
pub fn run(args: &[&str]) -> Result<Calls> {
    let everywhere = sched_getaffinity(None)?;
    let mut here = CpuSet::new();
    here.set(sched_getcpu());
    // On one processor neither has to wait for the other to be off its own, which takes longer
    // than most calls. The program inherits it.
    sched_setaffinity(None, &here)?;
    let calls = watch(args);
    sched_setaffinity(None, &everywhere)?;
    calls
}

fn watch(args: &[&str]) -> Result<Calls> {
    let mut command = Command::new("/init");
    command.args(args).stdin(Stdio::piped());
    let mut child = command.spawn().context("starting a program")?;
    let pid = Pid::from_raw(child.id().try_into()?);
    let options = Options::PTRACE_O_TRACESYSGOOD
        | Options::PTRACE_O_EXITKILL
        | Options::PTRACE_O_TRACEFORK
        | Options::PTRACE_O_TRACEVFORK
        | Options::PTRACE_O_TRACECLONE;
    ptrace::seize(pid, options).context("watching a program")?;
    ptrace::interrupt(pid)?;
    let status = wait(pid)?;
    let stopped = matches!(status, WaitStatus::PtraceEvent(_, Signal::SIGTRAP, _));
    ensure!(stopped, "a program began with {status:?}");
    drop(child.stdin.take());

    let mut calls = Calls::new();
    let mut signal = None;
    loop {
        ptrace::syscall(pid, signal.take())?;
        match wait(pid)? {
            WaitStatus::PtraceSyscall(_) => count(pid, &mut calls)?,
            WaitStatus::Stopped(_, Signal::SIGSTOP) => {
                ptrace::detach(pid, None)?;
                return Ok(calls);
            }
            WaitStatus::Stopped(_, other) => signal = Some(other),
            WaitStatus::Exited(_, 0) => return Ok(calls),
            status => bail!("{}: {status:?}", args.join(" ")),
        }
    }
}

/// Waits for the end of the input, which comes when this program is watched.
pub fn wait_to_be_watched() -> Result<()> {
    let input = std::io::stdin().read_to_end(&mut Vec::new());
    input.map(drop).context("waiting to be watched")
}

fn wait(pid: Pid) -> Result<WaitStatus> {
    waitpid(pid, Some(WaitPidFlag::__WALL)).context("waiting for a program")
}

/// Counts the system call that a program stopped in, if it is about to make an ioctl.
fn count(pid: Pid, calls: &mut Calls) -> Result<()> {
    let info = ptrace::syscall_info(pid).context("looking at a system call")?;
    if info.op != libc::PTRACE_SYSCALL_INFO_ENTRY {
        return Ok(());
    }
    // SAFETY: `op` says which one of the union it is.
    let entry = unsafe { info.u.entry };
    if entry.nr == libc::SYS_ioctl as u64 {
        *calls.entry(name(entry.args[1] as u32)).or_default() += 1;
    }
    Ok(())
}

fn name(number: u32) -> String {
    match NAMES.iter().find(|(known, _)| *known == number) {
        Some((_, name)) => (*name).to_owned(),
        None => format!("{number:#x}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ioctl_that_maps_has_a_name() {
        for name in MAPS {
            assert!(NAMES.iter().any(|(_, known)| *known == name), "{name}");
        }
    }

    #[test]
    fn no_number_has_two_names() {
        for (i, (number, name)) in NAMES.iter().enumerate() {
            let others = NAMES.iter().skip(i + 1);
            assert!(others.clone().all(|(other, _)| other != number), "{name}");
        }
    }

    #[test]
    fn maps_are_counted() {
        let calls = [("IOAS_COPY", 2), ("ATTACH", 5), ("IOAS_MAP_FILE", 3)];
        let calls = calls.map(|(name, count)| (name.to_owned(), count));
        assert_eq!(maps(&Calls::from(calls)), 5);
    }
}
