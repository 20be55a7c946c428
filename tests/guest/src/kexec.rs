// SPDX-License-Identifier: GPL-2.0

//! From one kernel to the next.

use crate::plan::{KERNEL_DIR, MODULE_DIR, PLAN_PATH, PROGRAM_DIR, Plan, Stage};
use anyhow::{Context, Result, bail};
use rustix::fs::MemfdFlags;
use rustix::io::Errno;
use rustix::system::RebootCommand;
use std::ffi::CString;
use std::fs::{self, File};
use std::io::Write;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

/// What the next kernel's initial file system is made of, with the plan's files of the host: all
/// that was in this one's.
const CONTENTS: [&str; 5] = ["/init", PLAN_PATH, KERNEL_DIR, MODULE_DIR, PROGRAM_DIR];

/// Puts a kernel into memory, for [`reboot`] to start; says how many bytes it is.
pub fn load(plan: &Plan, stage: &Stage) -> Result<u64> {
    let path = format!("{KERNEL_DIR}/{}", stage.flavour);
    let kernel = File::open(&path).with_context(|| format!("opening {path}"))?;
    let initrd = File::from(rustix::fs::memfd_create("initrd", MemfdFlags::CLOEXEC)?);
    write_initrd(&initrd, plan).context("writing the initial file system")?;
    let bytes = kernel.metadata()?.len() + initrd.metadata()?.len();
    load_files(&kernel, &initrd, &stage.cmdline)?;
    Ok(bytes)
}

fn load_files(kernel: &File, initrd: &File, cmdline: &str) -> Result<()> {
    let cmdline = CString::new(cmdline)?;
    // SAFETY: the system call reads two descriptors and a string, all of which outlive it.
    let done = unsafe {
        libc::syscall(
            libc::SYS_kexec_file_load,
            kernel.as_raw_fd(),
            initrd.as_raw_fd(),
            cmdline.as_bytes_with_nul().len(),
            cmdline.as_ptr(),
            0,
        )
    };
    if done != 0 {
        return Err(std::io::Error::last_os_error()).context("kexec_file_load");
    }
    Ok(())
}

/// Starts the kernel that was loaded; it returns only if that fails.
pub fn reboot() -> Errno {
    match rustix::system::reboot(RebootCommand::Kexec) {
        Err(errno) => errno,
        // It does not return when it works.
        Ok(()) => Errno::NOTRECOVERABLE,
    }
}

fn write_initrd(initrd: &File, plan: &Plan) -> Result<()> {
    let mut output = std::io::BufWriter::new(initrd);
    for path in CONTENTS {
        let path = Path::new(path);
        if path.exists() {
            write_tree(&mut output, path)?;
        }
    }
    for folder in plan.host_folders() {
        write_folder(&mut output, folder)?;
    }
    for file in &plan.host_files {
        write_tree(&mut output, Path::new(file))?;
    }
    cpio::newc::trailer(&mut output)?.flush()?;
    Ok(())
}

fn write_tree(output: &mut impl Write, path: &Path) -> Result<()> {
    let meta = fs::symlink_metadata(path)?;
    let name = path.strip_prefix("/")?.to_string_lossy();
    if meta.is_dir() {
        write_folder(output, path)?;
        let mut children: Vec<PathBuf> = fs::read_dir(path)?
            .map(|entry| entry.map(|entry| entry.path()))
            .collect::<Result<_, _>>()?;
        children.sort();
        for child in children {
            write_tree(output, &child)?;
        }
    } else if meta.is_file() {
        let size = u32::try_from(meta.len()).context("a file is too large for the format")?;
        let mut entry = cpio::newc::Builder::new(&name)
            .mode(0o100_755)
            .write(&mut *output, size);
        std::io::copy(&mut File::open(path)?, &mut entry)?;
        entry.finish()?;
    } else {
        bail!("{} is no file", path.display());
    }
    Ok(())
}

fn write_folder(output: &mut impl Write, path: &Path) -> Result<()> {
    cpio::newc::Builder::new(&path.strip_prefix("/")?.to_string_lossy())
        .mode(0o040_755)
        .write(output, 0)
        .finish()?;
    Ok(())
}
