// SPDX-License-Identifier: GPL-2.0

//! One virtual machine, from power-on to power-off.

use crate::arch::Arch;
use crate::device::Device;
use crate::line::{Line, clean};
use crate::{accel, guest, modprobe, paths};
use anyhow::{Context, Result, anyhow};
use indicatif::ProgressBar;
use luo_guest::plan::{Plan, STAGE_PARAMETER, Stage};
use rustix::io::Errno;
use rustix::process::Signal;
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// The flavour with the sanitizers.
pub const DEBUG: &str = "debug";

/// What such a kernel needs of the one before it, whichever that is: memory in which it can start
/// with its shadow.
const DEBUG_SCRATCH: &str = "kho_scratch=32M,600M,600M";

/// Without one of the slab's own checks it keeps pointers to what it gave away (its sheaves), and
/// kmemleak finds no leak.
const DEBUG_SLAB: &str = "slab_debug=F";

/// Whether a kernel with the sanitizers is in a chain.
fn has_debug(chain: &[(String, String)]) -> bool {
    chain.iter().any(|(flavour, _)| flavour == DEBUG)
}

/// What a machine is made of.
#[derive(Clone, Debug)]
pub struct Config {
    /// The kernels, by flavour, each with what is added to its command line.
    pub chain: Vec<(String, String)>,
    /// What runs in them.
    pub scenarios: Vec<String>,
    /// What the scenarios are told.
    pub args: BTreeMap<String, String>,
    /// Further programs, by the names that they get.
    pub programs: Vec<(String, PathBuf)>,
    /// Whether the kernels can load modules themselves, with the host's modprobe.
    pub modprobe: bool,
    /// RAM in MiB.
    pub memory: u32,
    /// Number of processors.
    pub cpus: u32,
    /// Whether the guest's clock counts instructions, so that times are the same in every run.
    pub count_instructions: bool,
    /// The size in MiB of a disk for swap, if there is to be one.
    pub disk: Option<u32>,
    /// What lies behind an IOMMU; without any there is none.
    pub devices: Vec<Device>,
    /// How long the machine goes on after the first sign of trouble, if not to its own end.
    pub grace: Option<Duration>,
    /// How long the console may be silent.
    pub silence: Duration,
    /// How long all may take.
    pub total: Duration,
}

impl Config {
    /// A chain of kernels with live update on.
    pub fn new<'a>(chain: impl IntoIterator<Item = &'a str>) -> Self {
        let chain: Vec<_> = chain
            .into_iter()
            .map(|flavour| (flavour.to_owned(), String::new()))
            .collect();
        let (memory, patience) = if has_debug(&chain) {
            (3072, 3)
        } else {
            (1024, 1)
        };
        Self {
            chain,
            scenarios: Vec::new(),
            args: BTreeMap::new(),
            programs: Vec::new(),
            modprobe: false,
            memory,
            cpus: 2,
            count_instructions: false,
            disk: None,
            devices: Vec::new(),
            grace: None,
            silence: Duration::from_secs(120 * patience),
            total: Duration::from_secs(600 * patience),
        }
    }

    /// The plan that process 1 follows.
    fn plan(&self, arch: &Arch) -> Result<Plan> {
        let console = format!("console={}", arch.console);
        let mut common = vec![
            console.as_str(),
            "panic=-1 loglevel=8 printk.devkmsg=on kunit.enable=0",
            arch.parameter,
        ];
        if has_debug(&self.chain) {
            common.extend([DEBUG_SCRATCH, DEBUG_SLAB, arch.debug]);
        }
        if !self.devices.is_empty() {
            common.push(arch.iommu_parameter);
        }
        let stages = self.chain.iter().enumerate().map(|(i, (flavour, extra))| {
            let stage = format!("{STAGE_PARAMETER}{i}");
            // The last word on a parameter counts, so that `extra` can switch them off.
            let own = ["kho=on liveupdate=on", extra, &stage];
            let mut words = [&common[..], &own[..]].concat();
            words.retain(|word| !word.is_empty());
            Stage {
                flavour: flavour.clone(),
                cmdline: words.join(" "),
            }
        });
        let host_files = match self.modprobe {
            true => modprobe::files()?,
            false => Vec::new(),
        };
        Ok(Plan {
            stages: stages.collect(),
            scenarios: self.scenarios.clone(),
            args: self.args.clone(),
            host_files,
        })
    }
}

/// Does what takes time before the first machine is on: builds process 1, tries the accelerator.
pub fn prepare(config: &Config) -> Result<()> {
    let spinner = ProgressBar::new_spinner().with_message("building process 1 of the guest");
    spinner.enable_steady_tick(Duration::from_millis(100));
    guest::build()?;
    let (flavour, _) = config.chain.first().context("a chain has a kernel")?;
    spinner.set_message("trying the host's virtualization");
    accel::choose(&paths::kernel(flavour)?)?;
    spinner.finish_and_clear();
    Ok(())
}

/// The emulator with all its arguments, but for where its serial console goes.
fn command(config: &Config, dir: &TempDir) -> Result<Command> {
    let arch = Arch::host()?;
    let plan = config.plan(&arch)?;
    let first = plan.stages.first().context("a chain has a kernel")?;
    let kernel = paths::kernel(&first.flavour)?;
    let accel = if config.count_instructions {
        "tcg"
    } else {
        accel::choose(&kernel)?
    };
    let initrd = dir.path().join("initrd");
    guest::write_initrd(&initrd, &plan, &config.programs)?;

    let mut command = Command::new(arch.qemu);
    command
        .args(arch.machine)
        .args(["-accel", accel])
        .args(["-m", &format!("{}M", config.memory)])
        .args(["-smp", &config.cpus.to_string()])
        .args(["-nodefaults", "-no-user-config", "-display", "none"])
        .arg("-no-reboot")
        .arg("-kernel")
        .arg(&kernel)
        .arg("-initrd")
        .arg(&initrd)
        .args(["-append", &first.cmdline]);
    if config.count_instructions {
        command.args(["-icount", "shift=0,sleep=off"]);
    }
    if !config.devices.is_empty() {
        command.args(arch.iommu);
        if accel == "kvm" {
            command.args(arch.iommu_kvm);
        }
        for (i, device) in config.devices.iter().enumerate() {
            device.prepare(i, dir.path())?;
            command.args(device.args(i, dir.path()));
        }
    }
    if let Some(mib) = config.disk {
        let disk = dir.path().join("disk");
        std::fs::File::create(&disk)?.set_len(u64::from(mib) << 20)?;
        command
            .arg("-drive")
            .arg(format!(
                "file={},if=none,format=raw,id=disk",
                disk.display()
            ))
            .args(["-device", "nvme,drive=disk,serial=luo"]);
    }
    Ok(command)
}

/// Has the emulator killed when the thread that starts it ends, however that comes about: it
/// must not stay behind when this program is killed.
///
/// Whoever starts a machine has to wait for it in the same thread.
pub fn dies_with_us(command: &mut Command) -> &mut Command {
    let parent = rustix::process::getpid();
    let in_child = move || {
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
        // It may have ended before the line above.
        if rustix::process::getppid() != Some(parent) {
            return Err(Errno::SRCH.into());
        }
        Ok(())
    };
    // SAFETY: between fork and exec only system calls are made; nothing is allocated or locked.
    unsafe { command.pre_exec(in_child) }
}

/// Runs a machine whose console is this terminal, until it is off.
pub fn interactive(config: &Config) -> Result<bool> {
    let dir = tempfile::Builder::new().prefix("luo-vm-").tempdir()?;
    let status = dies_with_us(&mut command(config, &dir)?)
        .args(["-serial", "mon:stdio"])
        .status()
        .context("starting QEMU")?;
    Ok(status.success())
}

/// What comes next from a machine.
#[derive(Debug)]
pub enum Next {
    /// A line on its console.
    Line(Line),
    /// It is off.
    Off,
    /// It took too long and was switched off, or the emulator failed.
    Broken(String),
}

/// A running machine. It is switched off when this is dropped.
pub struct Vm {
    child: Child,
    lines: Receiver<Line>,
    errors: Option<std::thread::JoinHandle<String>>,
    silence: Duration,
    total: Duration,
    end: Option<Instant>,
    started: Instant,
    // The initial file system and the disk, removed with it.
    _dir: TempDir,
}

impl Vm {
    /// Switches a machine on.
    pub fn start(config: &Config) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("luo-vm-").tempdir()?;
        let mut command = command(config, &dir)?;
        let arch = Arch::host()?;
        let mut child = dies_with_us(&mut command)
            .args(["-serial", "stdio"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("starting {}; the package is {}", arch.qemu, arch.package))?;
        let output = child.stdout.take().context("QEMU has no output")?;
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            let mut output = BufReader::new(output);
            let mut bytes = Vec::new();
            while let Ok(1..) = output.read_until(b'\n', &mut bytes) {
                let text = clean(&bytes);
                bytes.clear();
                // Nobody listens any more when the machine was switched off.
                if sender.send(Line::new(&text)).is_err() {
                    break;
                }
            }
        });
        let errors = child.stderr.take().map(|mut errors| {
            std::thread::spawn(move || {
                let mut text = String::new();
                // What cannot be read is not shown.
                let _ = errors.read_to_string(&mut text);
                text
            })
        });
        Ok(Self {
            child,
            lines,
            errors,
            silence: config.silence,
            total: config.total,
            end: None,
            started: Instant::now(),
            _dir: dir,
        })
    }

    /// When it was switched on.
    pub fn started(&self) -> Instant {
        self.started
    }

    /// Sees to it that the machine is switched off at some time, if it is not off before.
    pub fn end_at(&mut self, end: Instant) {
        self.end.get_or_insert(end);
    }

    /// Waits for what comes next.
    pub fn next(&mut self) -> Result<Next> {
        let left = self.total.saturating_sub(self.started.elapsed());
        let mut wait = self.silence.min(left);
        if let Some(end) = self.end {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                self.stop()?;
                return Ok(Next::Off);
            }
            wait = wait.min(left);
        }
        match self.lines.recv_timeout(wait) {
            Ok(line) => Ok(Next::Line(line)),
            Err(RecvTimeoutError::Disconnected) => {
                let status = self.child.wait().context("waiting for QEMU")?;
                if !status.success() {
                    let errors = self.errors.take().and_then(|thread| thread.join().ok());
                    let errors = errors.unwrap_or_default();
                    return Ok(Next::Broken(format!("QEMU: {status}: {}", errors.trim())));
                }
                Ok(Next::Off)
            }
            Err(RecvTimeoutError::Timeout) if self.end.is_some_and(|end| end <= Instant::now()) => {
                self.stop()?;
                Ok(Next::Off)
            }
            Err(RecvTimeoutError::Timeout) => {
                let why = if left <= self.silence {
                    format!("the machine was not done after {} s", self.total.as_secs())
                } else {
                    format!("the machine was silent for {} s", self.silence.as_secs())
                };
                self.stop()?;
                Ok(Next::Broken(why))
            }
        }
    }

    fn stop(&mut self) -> Result<()> {
        self.child
            .kill()
            .and_then(|()| self.child.wait())
            .map_err(|error| anyhow!("switching the machine off: {error}"))?;
        Ok(())
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        // It may be off already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
