// SPDX-License-Identifier: GPL-2.0

//! Modules that are loaded because somebody needs them, not because process 1 loads them.

use crate::context::{Context, expect_errno};
use crate::module::{self, ALIAS, TEST};
use crate::registry::{Group, Scenario};
use anyhow::{Context as _, Result, ensure};
use rustix::io::Errno;
use rustix::mount::MountFlags;
use std::fs;

/// The machine has to have modprobe.
pub const GROUP: Group = Group {
    name: "modprobe",
    scenarios: &[
        Scenario {
            name: "modprobe-by-alias",
            stages: &[by_alias, by_alias],
        },
        Scenario {
            name: "modprobe-on-the-kernels-request",
            stages: &[requested, requested],
        },
    ],
};

fn by_alias(_: &mut Context<'_>) -> Result<()> {
    ensure!(!module::is_loaded(TEST), "{TEST} is there already");
    module::modprobe(ALIAS)?;
    ensure!(module::is_loaded(TEST), "{TEST} is not there");
    module::unload(TEST).context("unloading it")?;
    ensure!(
        module::modprobe("luo:nothing").is_err(),
        "it found a handler for nothing"
    );
    Ok(())
}

/// The kernel asks for the module of a file system that it does not know.
fn requested(_: &mut Context<'_>) -> Result<()> {
    fs::create_dir_all("/etc/modprobe.d")?;
    fs::write(
        "/etc/modprobe.d/luo.conf",
        format!("alias fs-luo-test {TEST}\n"),
    )?;
    ensure!(!module::is_loaded(TEST), "{TEST} is there already");
    let mounted = rustix::mount::mount("none", "/tmp", "luo-test", MountFlags::empty(), None);
    expect_errno("mounting what no module has", mounted, Errno::NODEV)?;
    ensure!(module::is_loaded(TEST), "{TEST} was not loaded");
    module::unload(TEST).context("unloading it")
}
