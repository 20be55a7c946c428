// SPDX-License-Identifier: GPL-2.0

//! Kernel modules, and the one whose handler fails on request.

use crate::kmsg;
use crate::procfs;
use anyhow::{Context as _, Result};
use rustix::io::Errno;
use std::ffi::CString;
use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;

/// Loads a module.
pub fn load(path: &Path) -> Result<()> {
    let file = File::open(path)
        .with_context(|| format!("opening {}: was the kernel built with it?", path.display()))?;
    rustix::system::finit_module(&file, c"", 0)
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

/// The name of the test module.
pub const TEST: &str = "luo_test";

/// The handler's compatible string.
pub const COMPATIBLE: &str = "luo-test-v1";

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
