// SPDX-License-Identifier: GPL-2.0

//! The watch on the console: what a kernel in trouble says.

use crate::line::Line;
use anyhow::{Context, Result};
use regex::RegexSet;

/// What must not appear on the console while a test runs.
///
/// Each is the fixed part of a kernel message. They are looked for in what the kernel says, never
/// in the lines of process 1, which may quote them.
const MARKERS: &[&str] = &[
    // Anything that the kernel dumps its state for.
    r"-+\[ cut here \]-+",
    r"\bWARNING: ",
    r"\bBUG: ",
    // A slab: `BUG kmalloc-64 (Not tainted): ...`.
    r"\bBUG \S+ \((Not tainted|Tainted)",
    r"\bOops\b",
    r"Kernel panic",
    r"Internal error: ",
    r"general protection fault",
    r"invalid opcode: ",
    r"Unable to handle kernel",
    r"unable to handle (page fault|kernel)",
    r"unhandled exception",
    r"Attempted to kill init",
    // Lockdep.
    r"\bINFO: possible (circular locking|recursive locking|irq lock inversion)",
    r"\bINFO: (inconsistent lock state|trying to register non-static key)",
    r"\bINFO: (HARDIRQ|SOFTIRQ)-safe",
    r"possible circular locking dependency",
    r"suspicious RCU usage",
    r"bad unlock balance",
    r"held lock freed",
    // Stalls and hangs.
    r"rcu.*(detected stalls|self-detected stall|expedited stall)",
    r"rcu.*kthread starved",
    r"watchdog: .*(lockup|stuck)",
    r"\bINFO: task .* blocked for more than",
    r"workqueue lockup",
    // Sanitizers and debugging aids.
    r"\bUBSAN: ",
    r"\bKASAN\b.* in ",
    r"\bKCSAN\b",
    r"kmemleak: [1-9][0-9]* new suspected memory leak",
    r"kmemleak: .*(pool empty|Cannot allocate|detector disabled)",
    r"refcount_t: ",
    r"list_(add|del) corruption",
    r"Bad page (state|map)",
    r"ODEBUG: ",
    r"cache .*: Object.*(corrupt|overwritten)",
    // What the console did not show may have been any of these.
    r"printk messages dropped",
    // Process 1's helpers.
    r"segfault at ",
    r"traps: .* (trap|general protection)",
];

/// Finds trouble.
pub struct Watch {
    markers: RegexSet,
}

impl Watch {
    /// Looks for everything that is known.
    pub fn new() -> Result<Self> {
        let markers = RegexSet::new(MARKERS).context("the watch's markers")?;
        Ok(Self { markers })
    }

    /// Whether a line says that the kernel is in trouble.
    pub fn is_trouble(&self, line: &Line) -> bool {
        line.guest().is_none() && self.markers.is_match(line.body())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trouble(text: &str) -> bool {
        Watch::new().unwrap().is_trouble(&Line::new(text))
    }

    #[test]
    fn what_kernels_say_in_trouble_is_trouble() {
        for text in [
            "[    1.0] ------------[ cut here ]------------",
            "[    1.0] WARNING: CPU: 0 PID: 1 at kernel/liveupdate/luo_file.c:5 f+0x1/0x2",
            "[    1.0] WARNING: possible circular locking dependency detected",
            "[    1.0] WARNING: possible recursive locking detected",
            "[    1.0] WARNING: possible irq lock inversion dependency detected",
            "[    1.0] WARNING: inconsistent lock state",
            "[    1.0] WARNING: HARDIRQ-safe -> HARDIRQ-unsafe lock order detected",
            "[    1.0] WARNING: bad unlock balance detected!",
            "[    1.0] WARNING: held lock freed!",
            "[    1.0] WARNING: init/1 still has locks held!",
            "[    1.0] WARNING: suspicious RCU usage",
            "[    1.0] [ BUG: Invalid wait context ]",
            "[    1.0] BUG: sleeping function called from invalid context at mm/slab.h:1",
            "[    1.0] BUG: MAX_LOCKDEP_CHAINS too low!",
            "[    1.0] BUG: kernel NULL pointer dereference, address: 0000000000000000",
            "[    1.0] Oops: Oops: 0002 [#1] SMP NOPTI",
            "[    1.0] Kernel panic - not syncing: sysrq triggered crash",
            "[    1.0] watchdog: BUG: soft lockup - CPU#0 stuck for 22s! [init:1]",
            "[    1.0] rcu: INFO: rcu_sched detected stalls on CPUs/tasks:",
            "[    1.0] rcu: INFO: rcu_preempt self-detected stall on CPU",
            "[    1.0] INFO: task init:1 blocked for more than 120 seconds.",
            "[    1.0] BUG: KASAN: slab-use-after-free in luo_open+0x1/0x2",
            "[    1.0] BUG kmalloc-64 (Not tainted): Right Redzone overwritten",
            "[    1.0] BUG luo_cache (Tainted: G    B              ): Object already free",
            "** 12 printk messages dropped **",
            "[    1.0] kmemleak: 3 new suspected memory leaks (see /sys/kernel/debug/kmemleak)",
            "[    1.0] kmemleak: Memory pool empty, consider increasing it",
            "[    1.0] kmemleak: Kernel memory leak detector disabled",
            "[    1.0] refcount_t: underflow; use-after-free.",
            "[    1.0] list_del corruption. prev->next should be ffff, but was 0000.",
        ] {
            assert!(trouble(text), "{text}");
        }
    }

    #[test]
    fn ordinary_messages_are_not() {
        for text in [
            "[    1.0] Spectre V2 : WARN_ON is not here",
            "[    1.0] luo: Failed to finish session [x]",
            "[    1.0] kmemleak: Kernel memory leak detector initialized (mem pool available: 9)",
            "[    1.0] debug: BUG reports are enabled",
            "[    1.0] luo-guest: # BUG: process 1 quotes a message",
        ] {
            assert!(!trouble(text), "{text}");
        }
    }
}
