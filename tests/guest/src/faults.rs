// SPDX-License-Identifier: GPL-2.0

//! Allocations of the kernel that fail because a test wants them to.

use crate::kmsg::Reader;
use crate::procfs;
use anyhow::{Context, Result, ensure};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::Duration;

/// Where the kernel's knobs for them are, and their kinds.
const KNOBS: &str = "/sys/kernel/debug";
const KINDS: [&str; 2] = ["failslab", "fail_page_alloc"];

/// Which lines of the log go to the console.
const LEVELS: &str = "/proc/sys/kernel/printk";
const ERRORS_ONLY: &str = "4";

/// Where the kernel warns although nothing is wrong but for the allocation: VFIO gives up a new group
/// without forgetting the IOMMU's.
const KNOWN: [&str; 1] = [" at vfio_group_release+"];

/// What a warning changes: how many there were, and whether lockdep still runs.
fn marks() -> Result<(String, Option<String>)> {
    let lockdep = procfs::read("/proc/lockdep_stats")?;
    let running = lockdep.lines().find(|line| line.contains("debug_locks"));
    Ok((
        procfs::read("/sys/kernel/warn_count")?,
        running.map(str::to_owned),
    ))
}

/// How long the console may lag behind the log.
const LAG: Duration = Duration::from_secs(1);

/// The knob of the thread that made this.
///
/// Some allocations warn when they fail, with a backtrace. As long as this is there, warnings are kept
/// off the console; those that matter leave a mark elsewhere, which is looked for.
pub struct Faults {
    nth: File,
    levels: String,
}

impl Drop for Faults {
    fn drop(&mut self) {
        std::thread::sleep(LAG);
        let _ = procfs::write(LEVELS, &self.levels);
    }
}

impl Faults {
    /// Has all allocations count.
    pub fn new() -> Result<Self> {
        for kind in KINDS {
            procfs::write(format!("{KNOBS}/{kind}/ignore-gfp-wait"), "N")
                .context("was the kernel built with fault injection?")?;
            procfs::write(format!("{KNOBS}/{kind}/verbose"), "0")?;
        }
        procfs::write(format!("{KNOBS}/fail_page_alloc/min-order"), "0")?;
        let nth = File::options()
            .read(true)
            .write(true)
            .open("/proc/thread-self/fail-nth")?;
        let levels = procfs::read(LEVELS)?;
        procfs::write(LEVELS, ERRORS_ONLY)?;
        Ok(Self { nth, levels })
    }

    /// Calls something in which the kernel's n-th allocation fails, counted from 1. Gives what came
    /// of it, and whether there were so many.
    pub fn call<T>(&self, n: u32, call: impl FnOnce() -> T) -> Result<(T, bool)> {
        let before = marks()?;
        let mut log = Reader::from_now()?;
        self.set(n)?;
        let result = call();
        let mut left = [0; 16];
        let len = self.nth.read_at(&mut left, 0)?;
        self.set(0)?;
        if marks()? != before {
            let lines = log.lines()?;
            let warnings = lines.iter().filter(|line| line.contains("WARNING"));
            let known = |line: &&String| KNOWN.iter().any(|known| line.contains(known));
            let (known, others): (Vec<_>, Vec<_>) = warnings.partition(known);
            ensure!(
                others.is_empty() && !known.is_empty(),
                "without allocation {n} the kernel warned: {others:?}"
            );
        }
        Ok((result, left[..len].trim_ascii() == b"0"))
    }

    fn set(&self, n: u32) -> Result<()> {
        Ok(self.nth.write_all_at(n.to_string().as_bytes(), 0)?)
    }
}
