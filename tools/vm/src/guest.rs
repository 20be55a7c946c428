// SPDX-License-Identifier: GPL-2.0

//! What goes into a virtual machine: process 1, kernels, modules and the plan.

use crate::{modprobe, paths};
use anyhow::{Context, Result, ensure};
use luo_guest::plan::{KERNEL_DIR, MODULE_DIR, PLAN_PATH, PROGRAM_DIR, Plan};
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// The guest's programs: process 1 and the prompt.
const PACKAGES: [&str; 2] = ["luo-guest", "liveupdate"];

/// Builds the guest's programs, once in a run of this one, and says where process 1 is.
pub fn build() -> Result<PathBuf> {
    Ok(built()?.join("luo-guest"))
}

/// Where the prompt is, built as well.
pub fn prompt() -> Result<PathBuf> {
    Ok(built()?.join("luo"))
}

fn built() -> Result<&'static Path> {
    static BUILT: OnceLock<std::result::Result<PathBuf, String>> = OnceLock::new();
    match BUILT.get_or_init(|| build_now().map_err(|error| format!("{error:#}"))) {
        Ok(path) => Ok(path),
        Err(error) => anyhow::bail!("{error}"),
    }
}

fn build_now() -> Result<PathBuf> {
    let root = paths::root();
    let target = env!("LUO_TARGET");
    let target_dir = root.join("target/guest");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    // Linked statically, since nothing else is there that they could be linked to.
    let status = Command::new(cargo)
        .current_dir(&root)
        .args(["build", "--quiet", "--release"])
        .args(PACKAGES.iter().flat_map(|package| ["--package", package]))
        .args(["--target", target, "--target-dir"])
        .arg(&target_dir)
        .env("RUSTFLAGS", "-C target-feature=+crt-static")
        .status()
        .context("running cargo")?;
    ensure!(
        status.success(),
        "the guest's programs were not built; `cargo build -p luo-guest -p liveupdate` says why"
    );
    Ok(target_dir.join(target).join("release"))
}

/// Writes the initial file system for a plan.
///
/// `programs` are further programs, by the names that they are to have.
pub fn write_initrd(path: &Path, plan: &Plan, programs: &[(String, PathBuf)]) -> Result<()> {
    let file = File::create(path).with_context(|| format!("creating {}", path.display()))?;
    let mut archive = Archive {
        output: BufWriter::new(file),
    };
    archive.directory("/dev")?;
    archive.device("/dev/console", 5, 1)?;
    archive.file("/init", &build()?)?;
    archive.bytes(PLAN_PATH, &serde_json::to_vec_pretty(plan)?)?;
    let flavours: BTreeSet<&str> = plan.stages.iter().map(|s| s.flavour.as_str()).collect();
    archive.directory(KERNEL_DIR)?;
    archive.directory(MODULE_DIR)?;
    for flavour in flavours {
        archive.file(&format!("{KERNEL_DIR}/{flavour}"), &paths::kernel(flavour)?)?;
        archive.directory(&format!("{MODULE_DIR}/{flavour}"))?;
        for module in paths::modules(flavour)? {
            let name = module.file_name().unwrap_or_default().to_string_lossy();
            archive.file(&format!("{MODULE_DIR}/{flavour}/{name}"), &module)?;
        }
        if !plan.host_files.is_empty() {
            for (name, bytes) in modprobe::index(flavour)? {
                archive.bytes(&format!("{MODULE_DIR}/{flavour}/{name}"), &bytes)?;
            }
        }
    }
    for folder in plan.host_folders() {
        archive.directory(&folder.to_string_lossy())?;
    }
    for file in &plan.host_files {
        archive.file(file, Path::new(file))?;
    }
    archive.directory(PROGRAM_DIR)?;
    for (name, program) in programs {
        archive.file(&format!("{PROGRAM_DIR}/{name}"), program)?;
    }
    cpio::newc::trailer(archive.output)?.flush()?;
    Ok(())
}

struct Archive {
    output: BufWriter<File>,
}

impl Archive {
    fn directory(&mut self, name: &str) -> Result<()> {
        entry(name)
            .mode(0o040_755)
            .write(&mut self.output, 0)
            .finish()?;
        Ok(())
    }

    fn device(&mut self, name: &str, major: u32, minor: u32) -> Result<()> {
        entry(name)
            .mode(0o020_600)
            .rdev_major(major)
            .rdev_minor(minor)
            .write(&mut self.output, 0)
            .finish()?;
        Ok(())
    }

    fn file(&mut self, name: &str, path: &Path) -> Result<()> {
        let bytes = fs::read(path).with_context(|| format!("reading {}", path.display()))?;
        self.bytes(name, &bytes)
    }

    fn bytes(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        let size = u32::try_from(bytes.len()).context("a file is too large for the format")?;
        let mut entry = entry(name).mode(0o100_755).write(&mut self.output, size);
        entry.write_all(bytes)?;
        entry.finish()?;
        Ok(())
    }
}

fn entry(name: &str) -> cpio::newc::Builder {
    cpio::newc::Builder::new(name.trim_start_matches('/'))
}
