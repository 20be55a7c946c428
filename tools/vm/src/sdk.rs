// SPDX-License-Identifier: GPL-2.0

//! Modules that are built outside the kernel's tree, with what `make sdk` leaves.

use crate::paths;
use anyhow::{Context, Result, bail, ensure};
use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::OnceLock;

/// What the page on writing a handler has to be typed at: a shell in `dir`, which knows where the
/// kernel was built and where the SDK is, and has the compilers in its path.
pub fn shell(dir: &Path, script: &str) -> Result<Output> {
    let flavour = paths::flavour_dir("rust");
    let (build, sdk) = (flavour.join("build"), flavour.join("sdk"));
    ensure!(
        build.exists() && sdk.exists(),
        "{} and {} are not there; run `make sdk`",
        build.display(),
        sdk.display()
    );
    Command::new("bash")
        .args(["-euc", script])
        .current_dir(dir)
        .env("KERNEL_BUILD", build)
        .env("LUO_SDK", sdk)
        .env("PATH", path()?)
        // The make that runs the tests is none of its business.
        .env_remove("MAKEFLAGS")
        .env_remove("MAKELEVEL")
        .env_remove("MFLAGS")
        .output()
        .context("starting bash")
}

/// Builds the module in `dir` with the SDK that lies where the kernel was built.
pub fn build(dir: &Path) -> Result<()> {
    let output = shell(dir, "env -u LUO_SDK make LLVM=1 -C $KERNEL_BUILD M=$PWD")?;
    ensure!(output.status.success(), "{}", text(&output));
    Ok(())
}

/// All that was printed.
pub fn text(output: &Output) -> String {
    let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
    text += &String::from_utf8_lossy(&output.stderr);
    text
}

/// The path with the C compiler in it.
fn path() -> Result<OsString> {
    static LLVM: OnceLock<std::result::Result<String, String>> = OnceLock::new();
    let llvm = LLVM.get_or_init(|| llvm().map_err(|error| format!("{error:#}")));
    let mut path = match llvm {
        Ok(llvm) => OsString::from(llvm),
        Err(error) => bail!("{error}"),
    };
    path.push(":");
    path.push(env::var_os("PATH").unwrap_or_default());
    Ok(path)
}

fn llvm() -> Result<String> {
    let output = Command::new(paths::root().join("tools/kernel"))
        .arg("--llvm")
        .output()
        .context("starting tools/kernel")?;
    ensure!(
        output.status.success(),
        "tools/kernel --llvm: {}",
        text(&output)
    );
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Copies a folder's files, as they are in the checkout.
pub fn copy(from: &Path, to: &Path) -> Result<()> {
    for entry in fs::read_dir(from).with_context(|| format!("reading {}", from.display()))? {
        let entry = entry?;
        fs::copy(entry.path(), to.join(entry.file_name()))
            .with_context(|| format!("copying {}", entry.path().display()))?;
    }
    Ok(())
}
