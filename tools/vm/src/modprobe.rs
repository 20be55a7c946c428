// SPDX-License-Identifier: GPL-2.0

//! The host's modprobe, for machines whose kernels load modules themselves.

use crate::paths;
use anyhow::{Context, Result, ensure};
use std::fs;
use std::os::unix::fs::symlink;
use std::process::Command;

/// Where the kernel looks for it, here as well as in the machine.
const MODPROBE: &str = "/sbin/modprobe";

/// Modprobe and what it is linked to.
pub fn files() -> Result<Vec<String>> {
    let libraries = run(Command::new("ldd").arg(MODPROBE))?;
    let mut files = vec![MODPROBE.to_owned()];
    files.extend(paths_in(&libraries));
    Ok(files)
}

/// What `ldd` names: `NAME => PATH (ADDRESS)`, and `PATH (ADDRESS)` for the program that loads them.
fn paths_in(libraries: &str) -> impl Iterator<Item = String> {
    libraries
        .split_ascii_whitespace()
        .filter(|word| word.starts_with('/'))
        .map(str::to_owned)
}

/// What tells modprobe of a flavour's modules: names and contents of the files beside them.
pub fn index(flavour: &str) -> Result<Vec<(String, Vec<u8>)>> {
    // It is the same for every release. All paths in it are relative.
    const RELEASE: &str = "7.3";

    let dir = tempfile::Builder::new().prefix("luo-depmod-").tempdir()?;
    let modules = dir.path().join("lib/modules").join(RELEASE);
    fs::create_dir_all(&modules)?;
    for module in paths::modules(flavour)? {
        let name = module.file_name().context("a module has a name")?;
        symlink(&module, modules.join(name))?;
    }
    run(Command::new("/sbin/depmod")
        .arg("-b")
        .arg(dir.path())
        .arg(RELEASE))?;
    let mut index = Vec::new();
    for entry in fs::read_dir(&modules)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with("modules.") {
            index.push((name, fs::read(entry.path())?));
        }
    }
    Ok(index)
}

fn run(command: &mut Command) -> Result<String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command
        .output()
        .with_context(|| format!("starting {program}; the packages are kmod and libc-bin"))?;
    ensure!(
        output.status.success(),
        "{program}: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_library_counts() {
        let text = "\
\tlinux-vdso.so.1 (0x00007ffd)
\tlibzstd.so.1 => /lib/x86_64-linux-gnu/libzstd.so.1 (0x00007f5a)
\t/lib64/ld-linux-x86-64.so.2 (0x00007f5b)
";
        assert!(paths_in(text).eq([
            "/lib/x86_64-linux-gnu/libzstd.so.1",
            "/lib64/ld-linux-x86-64.so.2",
        ]));
    }
}
