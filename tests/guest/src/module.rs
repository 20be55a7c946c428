// SPDX-License-Identifier: GPL-2.0

//! Kernel modules, and the one whose handler fails on request.

use crate::kmsg;
use crate::plan::MODULE_DIR;
use crate::procfs;
use anyhow::{Context as _, Result, ensure};
use rustix::io::Errno;
use std::ffi::CString;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

/// Loads a module.
pub fn load(path: &Path) -> Result<()> {
    load_with(path, "")
}

/// Loads a module with parameters.
pub fn load_with(path: &Path, parameters: &str) -> Result<()> {
    let file = File::open(path)
        .with_context(|| format!("opening {}: was the kernel built with it?", path.display()))?;
    rustix::system::finit_module(&file, &CString::new(parameters)?, 0)
        .with_context(|| format!("loading {}", path.display()))
}

/// Unloads a module, if it is not in use.
pub fn unload(name: &str) -> Result<(), Errno> {
    let name = CString::new(name).map_err(|_| Errno::INVAL)?;
    // SAFETY: the call reads a string.
    let done = unsafe { libc::syscall(libc::SYS_delete_module, name.as_ptr(), libc::O_NONBLOCK) };
    if done != 0 {
        let error = std::io::Error::last_os_error();
        return Err(Errno::from_io_error(&error).unwrap_or(Errno::NOSYS));
    }
    Ok(())
}

/// Whether a module is there and live, however it came.
pub fn is_loaded(name: &str) -> bool {
    procfs::read(format!("/sys/module/{name}/initstate")).is_ok_and(|state| state == "live")
}

/// Loads a module by its name or an alias, as the kernel does when it asks for one itself. The
/// machine has to have modprobe.
pub fn modprobe(name: &str) -> Result<()> {
    let output = Command::new(MODPROBE)
        .arg(name)
        .output()
        .with_context(|| format!("starting {MODPROBE}: was the machine made with it?"))?;
    ensure!(
        output.status.success(),
        "modprobe {name}: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}

/// Where the kernel looks for it.
const MODPROBE: &str = "/sbin/modprobe";

/// Has modprobe find the modules of the kernel that runs. Those of all flavours are there, and
/// all have the same release.
pub fn show_to_modprobe(flavour: &str) -> Result<()> {
    let release = procfs::read("/proc/sys/kernel/osrelease")?;
    fs::create_dir_all("/lib/modules")?;
    let ours = format!("{MODULE_DIR}/{flavour}");
    Ok(symlink(ours, format!("/lib/modules/{release}"))?)
}

/// The name of the test module.
pub const TEST: &str = "luo_test";

/// The handler's compatible string.
pub const COMPATIBLE: &str = "luo-test-v1";

/// What the module is asked for by, when a file of that handler comes over and it is not there.
pub const ALIAS: &str = "luo:luo-test-v1";

/// Sets one of the test module's parameters.
pub fn set(parameter: &str, value: impl ToString) -> Result<()> {
    let path = format!("/sys/module/{TEST}/parameters/{parameter}");
    procfs::write(path, value.to_string())
}

/// A file of the test module, which holds a number.
pub fn test_file(number: u64) -> Result<File> {
    let mut file = File::options()
        .read(true)
        .write(true)
        .open("/dev/luo_test")
        .context("opening /dev/luo_test")?;
    file.write_all(&number.to_ne_bytes())?;
    Ok(file)
}

/// The number that a file holds.
pub fn number(mut file: &File) -> Result<u64> {
    let mut bytes = [0; 8];
    file.read_exact(&mut bytes)?;
    Ok(u64::from_ne_bytes(bytes))
}

/// The callbacks that the module logged, in order, with one of these names.
pub fn callbacks(log: &mut kmsg::Reader, names: &[&str]) -> Result<Vec<String>> {
    let lines = log.lines()?;
    let ours = lines
        .iter()
        .filter_map(|line| line.strip_prefix(&format!("{TEST}: ")))
        .filter(|line| {
            names
                .iter()
                .any(|name| line.split(' ').next() == Some(*name))
        });
    Ok(ours.map(str::to_owned).collect())
}
