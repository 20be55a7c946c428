// SPDX-License-Identifier: GPL-2.0

//! What the debug kernel says only when it is asked.

use crate::{kmsg, procfs};
use anyhow::{Result, ensure};
use std::time::Duration;

/// The flavour that this is for.
pub const FLAVOUR: &str = "debug";

const KMEMLEAK: &str = "/sys/kernel/debug/kmemleak";

/// Memory that is younger than five seconds is not reported, nor is any that the scan before did
/// not see.
const PAUSE: Duration = Duration::from_secs(6);

/// Fails if anything is to be reported, or if nothing would have been. What is found fails the
/// whole machine, since it says nothing of when it came to be.
pub fn check() {
    for (name, result) in [("lockdep", lockdep()), ("kmemleak", kmemleak())] {
        if let Err(error) = result {
            kmsg::say(format!("not ok 0 - {name} # {error:#}"));
        }
    }
}

/// After its first report, or when it ran out of room, it looks no further.
fn lockdep() -> Result<()> {
    let stats = procfs::read("/proc/lockdep_stats")?;
    let on = stats
        .lines()
        .find_map(|line| line.trim().strip_prefix("debug_locks:"));
    ensure!(on.is_some_and(|on| on.trim() == "1"), "it is off");
    Ok(())
}

fn kmemleak() -> Result<()> {
    procfs::write(KMEMLEAK, "scan")?;
    std::thread::sleep(PAUSE);
    procfs::write(KMEMLEAK, "scan")?;
    let report = procfs::read(KMEMLEAK)?;
    for line in report.lines() {
        kmsg::text("kmemleak", line);
    }
    ensure!(report.is_empty(), "{}", summary(&report));
    Ok(())
}

/// How much was found, and where the first of it comes from.
fn summary(report: &str) -> String {
    let objects = report
        .lines()
        .filter(|line| line.starts_with("unreferenced "));
    let frames = report
        .lines()
        .skip_while(|line| !line.trim_start().starts_with("backtrace"))
        .skip(1)
        .take_while(|line| line.starts_with("    "))
        .map(|line| line.split_whitespace().next().unwrap_or_default());
    format!(
        "{} pieces of memory leaked, the first one of {}",
        objects.count(),
        frames.collect::<Vec<_>>().join(" < ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_summary_says_who_leaked() {
        let report = "\
unreferenced object 0xffff888008c0a800 (size 128):
  comm \"init\", pid 1, jiffies 4294943232
  hex dump (first 32 bytes):
    00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00  ................
  backtrace (crc 0):
    __kmalloc_cache_noprof+0x1f5/0x2b0
    luo_bug_leak+0x2c/0x60 [luo_bug]
unreferenced object 0xffff888008c0a900 (size 128):
  comm \"init\", pid 1, jiffies 4294943232
  backtrace (crc 0):
    other+0x1/0x2";
        assert_eq!(
            summary(report),
            "2 pieces of memory leaked, the first one of \
             __kmalloc_cache_noprof+0x1f5/0x2b0 < luo_bug_leak+0x2c/0x60"
        );
    }
}
