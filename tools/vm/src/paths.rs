// SPDX-License-Identifier: GPL-2.0

//! Where things are.

use crate::arch::Arch;
use anyhow::{Context, Result, bail};
use std::env;
use std::path::{Path, PathBuf};

/// The checkout that this program was built from.
pub fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).unwrap_or(here).to_owned()
}

/// What was built of one flavour.
pub fn flavour_dir(flavour: &str) -> PathBuf {
    root().join("out").join(flavour)
}

/// A flavour's kernel.
pub fn kernel(flavour: &str) -> Result<PathBuf> {
    let path = flavour_dir(flavour).join(Arch::host()?.image);
    if !path.is_file() {
        bail!(
            "{} is not there; build it with `make kernel FLAVOUR={flavour}`",
            path.display()
        );
    }
    Ok(path)
}

/// A flavour's modules.
pub fn modules(flavour: &str) -> Result<Vec<PathBuf>> {
    let dir = flavour_dir(flavour).join("modules");
    let mut modules = Vec::new();
    if dir.is_dir() {
        for entry in dir.read_dir()? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "ko") {
                modules.push(path);
            }
        }
    }
    modules.sort();
    Ok(modules)
}

/// A folder that the environment names; an empty name is none.
fn folder(variable: &str) -> Option<PathBuf> {
    let name = env::var_os(variable)?;
    (!name.is_empty()).then(|| name.into())
}

/// Where what is the same for all checkouts of this machine is kept.
pub fn cache() -> Result<PathBuf> {
    if let Some(dir) = folder("LUO_CACHE") {
        return Ok(dir);
    }
    let base = match folder("XDG_CACHE_HOME") {
        Some(dir) => dir,
        None => folder("HOME")
            .context("set HOME, or LUO_CACHE to a folder")?
            .join(".cache"),
    };
    Ok(base.join("rust-luo"))
}

/// The kernel's source, as the build unpacked it.
pub fn kernel_source() -> Result<PathBuf> {
    let source = match folder("KSRC") {
        Some(source) => source,
        None => cache()?.join("linux-source-7.3"),
    };
    if !source.join("include/uapi/linux/liveupdate.h").is_file() {
        bail!(
            "{} is no Linux 7.3 source; run `make kernel`, or set KSRC to one",
            source.display()
        );
    }
    Ok(source)
}
