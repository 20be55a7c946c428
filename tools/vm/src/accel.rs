// SPDX-License-Identifier: GPL-2.0

//! How QEMU runs the guest's instructions.
//!
//! The host's own virtualization is tried first. That its device is there does not mean that it
//! works: inside another virtual machine it may hang the guest before its first instruction. So a
//! kernel is booted until it says its first word, and if it does not within a few seconds,
//! emulation it is.

use crate::arch::Arch;
use crate::paths;
use crate::vm;
use anyhow::{Result, bail};
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc;
use std::time::Duration;

/// How long the first word of a kernel may take.
const PATIENCE: Duration = Duration::from_secs(8);

/// The accelerator, as QEMU calls it. `LUO_ACCEL` in the environment decides without a trial.
pub fn choose(kernel: &Path) -> Result<&'static str> {
    static CHOSEN: OnceLock<&'static str> = OnceLock::new();
    if let Some(chosen) = CHOSEN.get() {
        return Ok(chosen);
    }
    let arch = Arch::host()?;
    let wanted = std::env::var("LUO_ACCEL").ok();
    let chosen = match asked_for(wanted.as_deref())? {
        Some(chosen) => chosen,
        None => match remembered() {
            Some(chosen) => chosen,
            None => *CHOSEN.get_or_init(|| try_out(&arch, kernel)),
        },
    };
    Ok(CHOSEN.get_or_init(|| chosen))
}

/// What a person decided, if anything.
fn asked_for(wanted: Option<&str>) -> Result<Option<&'static str>> {
    match wanted {
        None | Some("") => Ok(None),
        Some("kvm") => Ok(Some("kvm")),
        Some("tcg") => Ok(Some("tcg")),
        Some(other) => bail!("LUO_ACCEL is {other}; it can be kvm or tcg"),
    }
}

fn try_out(arch: &Arch, kernel: &Path) -> &'static str {
    let device = Path::new("/dev/kvm");
    if File::options().read(true).write(true).open(device).is_err() {
        remember("tcg");
        return "tcg";
    }
    let busy = is_busy();
    if kvm_works(arch, kernel) {
        remember("kvm");
        return "kvm";
    }
    // On a busy machine it may only have been slow: the next run tries again.
    if !busy {
        remember("tcg");
    }
    "tcg"
}

/// Whether something keeps at least half of the processors busy; so it is if that is not known.
fn is_busy() -> bool {
    let load = fs::read_to_string("/proc/loadavg").ok();
    let load = load.and_then(|text| text.split(' ').next()?.parse::<f64>().ok());
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    load.is_none_or(|load| load >= processors as f64 / 2.0)
}

/// What an earlier trial on this machine said, if the machine did not start again since.
fn remembered() -> Option<&'static str> {
    let text = fs::read_to_string(note()?).ok()?;
    let (boot, chosen) = text.split_once(' ')?;
    if boot != boot_id()? {
        return None;
    }
    ["kvm", "tcg"].into_iter().find(|name| *name == chosen)
}

fn remember(chosen: &str) {
    if let (Some(note), Some(boot)) = (note(), boot_id()) {
        // Without the note there is another trial next time.
        let _ = fs::write(note, format!("{boot} {chosen}"));
    }
}

fn note() -> Option<PathBuf> {
    Some(paths::cache().ok()?.join("accelerator"))
}

fn boot_id() -> Option<String> {
    let id = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    Some(id.trim().to_owned())
}

fn kvm_works(arch: &Arch, kernel: &Path) -> bool {
    let child = vm::dies_with_us(&mut Command::new(arch.qemu))
        .args(arch.machine)
        .args([
            "-accel",
            "kvm",
            "-m",
            "256M",
            "-nodefaults",
            "-no-user-config",
        ])
        .args([
            "-display",
            "none",
            "-serial",
            "stdio",
            "-no-reboot",
            "-kernel",
        ])
        .arg(kernel)
        .args(["-append", &format!("console={} panic=-1", arch.console)])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn();
    let Ok(mut child) = child else {
        return false;
    };
    let (sender, receiver) = mpsc::channel();
    if let Some(output) = child.stdout.take() {
        std::thread::spawn(move || {
            let spoke = BufReader::new(output)
                .lines()
                .map_while(Result::ok)
                .any(|line| line.contains("Linux version"));
            // Nobody waits any more if the kernel took too long.
            let _ = sender.send(spoke);
        });
    }
    let works = receiver.recv_timeout(PATIENCE) == Ok(true);
    // It may have ended by itself.
    let _ = child.kill();
    let _ = child.wait();
    works
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_person_decides_with_known_words() {
        assert_eq!(asked_for(None).unwrap(), None);
        assert_eq!(asked_for(Some("kvm")).unwrap(), Some("kvm"));
        assert_eq!(asked_for(Some("tcg")).unwrap(), Some("tcg"));
        assert!(asked_for(Some("KVM")).is_err());
    }
}
