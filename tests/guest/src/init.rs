// SPDX-License-Identifier: GPL-2.0

//! Process 1: from the kernel's first program to power-off or the next kernel.

use crate::context::Context;
use crate::plan::{PLAN_PATH, Plan, STAGE_PARAMETER};
use crate::protocol::Event;
use crate::{clock, debug, helpers, kexec, kmsg, module, procfs, registry};
use anyhow::{Context as _, Result, bail};
use rustix::mount::MountFlags;
use rustix::system::RebootCommand;
use std::fs;

/// What is mounted: type, place, options.
const MOUNTS: [(&str, &str, &str); 6] = [
    ("devtmpfs", "/dev", "mode=0755"),
    ("proc", "/proc", ""),
    ("sysfs", "/sys", ""),
    ("debugfs", "/sys/kernel/debug", ""),
    ("tmpfs", "/tmp", ""),
    ("cgroup2", "/sys/fs/cgroup", ""),
];

/// Runs the program: as process 1, or as one of its helpers.
pub fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if std::process::id() != 1 {
        std::process::exit(helpers::main(&args));
    }
    std::panic::set_hook(Box::new(|info| {
        kmsg::say(format!("not ok 0 - process 1 # {info}"))
    }));
    if let Err(error) = mount_all().and_then(|()| run()) {
        kmsg::say(format!("not ok 0 - process 1 # {error:#}"));
    }
    // Both fail only without the right to do it, and then process 1 returns and the kernel panics,
    // which the runner on the host sees.
    let _ = rustix::system::reboot(RebootCommand::PowerOff);
    let _ = rustix::system::reboot(RebootCommand::Restart);
}

fn mount_all() -> Result<()> {
    for (kind, place, options) in MOUNTS {
        fs::create_dir_all(place)?;
        let options = std::ffi::CString::new(options)?;
        rustix::mount::mount(kind, place, kind, MountFlags::empty(), options.as_c_str())
            .with_context(|| format!("mounting {kind} at {place}"))?;
    }
    Ok(())
}

fn run() -> Result<()> {
    let plan = fs::read(PLAN_PATH).context("reading the plan")?;
    let plan: Plan = serde_json::from_slice(&plan).context("reading the plan")?;
    let stage = match procfs::parameter(STAGE_PARAMETER)? {
        Some(stage) => stage.parse().context("reading the stage")?,
        None => bail!("the kernel was given no {STAGE_PARAMETER}"),
    };
    let uname = rustix::system::uname();
    kmsg::event(&Event::Init {
        stage,
        kernel: format!(
            "{} {}",
            uname.release().to_string_lossy(),
            uname.version().to_string_lossy()
        ),
        cmdline: procfs::read("/proc/cmdline")?,
    });

    let next = plan.stages.get(stage + 1);
    if let Some(next) = next {
        let (bytes, micros) = clock::timed_micros(|| kexec::load(&plan, next));
        let bytes = bytes.context("loading the next kernel")?;
        kmsg::event(&Event::Loaded { bytes, micros });
    }
    let mut context = Context::new(&plan, stage);
    if !plan.host_files.is_empty() {
        module::show_to_modprobe(context.flavour()).context("showing the modules to modprobe")?;
    }
    for (i, name) in plan.scenarios.iter().enumerate() {
        run_stage(&mut context, i + 1, name);
    }
    if context.flavour() == debug::FLAVOUR {
        debug::check();
    }
    if next.is_some() {
        kmsg::event(&Event::Reboot);
        bail!("reboot into the next kernel: {}", kexec::reboot());
    }
    Ok(())
}

fn run_stage(context: &mut Context<'_>, number: usize, name: &str) {
    let stage = context.stage;
    let Some(scenario) = registry::find(name) else {
        kmsg::say(format!(
            "not ok {number} - {name} stage {stage} # there is no such scenario"
        ));
        return;
    };
    let Some(function) = scenario.stages.get(stage) else {
        return;
    };
    kmsg::say(format!("> {name}"));
    let (result, time) = clock::timed(|| function(context));
    match result {
        Ok(()) => kmsg::say(format!(
            "ok {number} - {name} stage {stage} # {} ms",
            time.as_millis()
        )),
        Err(error) => {
            let why = format!("{error:#}").replace('\n', " / ");
            kmsg::say(format!("not ok {number} - {name} stage {stage} # {why}"));
        }
    }
}
