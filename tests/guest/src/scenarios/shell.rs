// SPDX-License-Identifier: GPL-2.0

//! A prompt on the console, for a person, who may have brought modules.

use crate::context::Context;
use crate::module;
use crate::plan::PROGRAM_DIR;
use crate::registry::{Group, Scenario, Stage};
use anyhow::{Context as _, Result, bail};
use rustix::system::RebootCommand;
use std::fs::{self, File};
use std::process::Command;

/// As many kernels as a person will want to update to, one after the other.
pub const GROUP: Group = Group {
    name: "shell",
    scenarios: &[Scenario {
        name: "shell",
        stages: &[prompt as Stage; 20],
    }],
};

fn prompt(_: &mut Context<'_>) -> Result<()> {
    for entry in fs::read_dir(PROGRAM_DIR)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "ko") {
            module::load(&path)?;
        }
    }
    let console = File::options()
        .read(true)
        .write(true)
        .open("/dev/console")
        .context("opening the console")?;
    let status = Command::new(format!("{PROGRAM_DIR}/luo"))
        .stdin(console.try_clone()?)
        .stdout(console.try_clone()?)
        .stderr(console)
        .status()
        .context("starting luo")?;
    // A kexec does not come back; the end of the program is the end of the machine.
    rustix::system::reboot(RebootCommand::PowerOff)?;
    bail!("luo: {status}");
}
