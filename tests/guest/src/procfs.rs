// SPDX-License-Identifier: GPL-2.0

//! What the kernel says in its own file systems.

use anyhow::{Context, Result, anyhow};
use std::fs;
use std::path::Path;

/// A kernel parameter that begins with `name`, without that.
pub fn parameter(name: &str) -> Result<Option<String>> {
    let cmdline = read("/proc/cmdline")?;
    Ok(cmdline
        .split_ascii_whitespace()
        .find_map(|word| word.strip_prefix(name))
        .map(str::to_owned))
}

/// A line of `/proc/meminfo`, in bytes.
pub fn meminfo(name: &str) -> Result<u64> {
    let text = read("/proc/meminfo")?;
    text.lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
        .and_then(|line| line.trim().strip_suffix("kB"))
        .and_then(|number| number.trim().parse::<u64>().ok())
        .map(|kib| kib * 1024)
        .ok_or_else(|| anyhow!("/proc/meminfo says nothing of {name}"))
}

/// The whole of a file, with the newline at its end taken off.
pub fn read(path: impl AsRef<Path>) -> Result<String> {
    let path = path.as_ref();
    let text = fs::read(path).with_context(|| format!("reading {}", path.display()))?;
    Ok(String::from_utf8_lossy(&text).trim_end().to_owned())
}

/// Writes a setting.
pub fn write(path: impl AsRef<Path>, text: impl AsRef<str>) -> Result<()> {
    let path = path.as_ref();
    fs::write(path, text.as_ref())
        .with_context(|| format!("writing {} to {}", text.as_ref(), path.display()))
}
