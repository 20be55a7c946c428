// SPDX-License-Identifier: GPL-2.0

//! The kernel's own tests of live update, as they are.

use crate::context::Context;
use crate::kmsg;
use crate::plan::PROGRAM_DIR;
use crate::registry::{Group, Scenario};
use anyhow::{Context as _, Result, ensure};
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

pub const GROUP: Group = Group {
    name: "selftest",
    scenarios: &[
        Scenario {
            name: "selftest",
            stages: &[|context| run(context, &[])],
        },
        Scenario {
            name: "selftest-kexec",
            stages: &[
                |context| run(context, &["-s", "1"]),
                |context| run(context, &["-s", "2"]),
            ],
        },
    ],
};

fn run(context: &mut Context<'_>, args: &[&str]) -> Result<()> {
    let name = context
        .plan
        .args
        .get("program")
        .context("the plan names no program")?;
    let mut child = Command::new(format!("{PROGRAM_DIR}/{name}"))
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("starting {name}"))?;
    let output = child.stdout.take().context("it has no output")?;
    for line in BufReader::new(output).lines() {
        kmsg::text("tap", line?);
    }
    let status = child.wait()?;
    ensure!(status.success(), "{name}: {status}");
    Ok(())
}
