// SPDX-License-Identifier: GPL-2.0

//! Kernels in trouble, for the watch on the console to be tried on.
//!
//! The kernel's own module for this, lkdtm, makes the trouble.

use crate::context::{Context, wait_for};
use crate::module;
use crate::procfs;
use crate::registry::{Group, Scenario};
use anyhow::Result;

pub const GROUP: Group = Group {
    name: "trouble",
    scenarios: &[
        Scenario {
            name: "trouble-none",
            stages: &[none],
        },
        Scenario {
            name: "trouble-warning",
            stages: &[|context| provoke(context, "WARNING")],
        },
        Scenario {
            name: "trouble-oops",
            stages: &[|context| provoke(context, "EXCEPTION")],
        },
        Scenario {
            name: "trouble-panic",
            stages: &[|context| provoke(context, "PANIC")],
        },
        Scenario {
            name: "trouble-lockup",
            stages: &[lockup],
        },
        Scenario {
            name: "trouble-hung-task",
            stages: &[hung_task],
        },
        Scenario {
            name: "trouble-hang",
            stages: &[|context| provoke(context, "HARDLOCKUP")],
        },
        Scenario {
            name: "trouble-in-process-1",
            stages: &[process_1],
        },
        Scenario {
            name: "trouble-after-kexec",
            stages: &[none, |context| provoke(context, "WARNING")],
        },
    ],
};

fn load(context: &Context<'_>) -> Result<()> {
    module::load(&context.module("lkdtm"))
}

fn provoke(context: &Context<'_>, what: &str) -> Result<()> {
    load(context)?;
    procfs::write("/sys/kernel/debug/provoke-crash/DIRECT", what)
}

fn none(context: &mut Context<'_>) -> Result<()> {
    load(context)
}

fn lockup(context: &mut Context<'_>) -> Result<()> {
    // A change of the clock stops all processors but not this one, which will be stuck, so that
    // the other would wait for it with all that it has, such as the console.
    wait_for("the last clock", || {
        let clock =
            procfs::read("/sys/devices/system/clocksource/clocksource0/current_clocksource");
        clock.is_ok_and(|clock| !clock.ends_with("-early"))
    })?;
    procfs::write("/proc/sys/kernel/watchdog_thresh", "3")?;
    provoke(context, "SOFTLOCKUP")
}

fn hung_task(context: &mut Context<'_>) -> Result<()> {
    procfs::write("/proc/sys/kernel/hung_task_timeout_secs", "2")?;
    provoke(context, "HUNG_TASK")
}

fn process_1(_: &mut Context<'_>) -> Result<()> {
    panic!("as asked for")
}
