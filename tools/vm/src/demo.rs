// SPDX-License-Identifier: GPL-2.0

//! The demonstration: one live update as a timeline.

use crate::device::Device;
use crate::line::Line;
use crate::run::{self, Outcome};
use crate::vm::{self, Config};
use anyhow::{Result, bail};
use console::{Style, style};
use luo_guest::protocol::{Event, File, Registers};
use std::time::{Duration, Instant};

/// What the kernel says right before it jumps into the next one.
const LAST_WORDS: &str = "Starting new kernel";
/// Width of the column with what happened.
const WIDTH: usize = 64;
/// Width of the longest bar.
const BAR: f64 = 36.0;

/// Runs the demonstration on a flavour; says whether the contents were the same.
pub fn demo(flavour: &str, verbose: bool) -> Result<bool> {
    let config = config(flavour);
    vm::prepare(&config)?;
    let core = if flavour == "c" {
        "the kernel's own C core"
    } else {
        "the Rust core"
    };
    println!(
        "{}\n{} MiB of RAM, {} processors, edu behind an IOMMU, kernel out/{flavour}\n",
        style(format!("A live update on {core}")).bold(),
        config.memory,
        config.cpus
    );
    let mut timeline = Timeline::new();
    let outcome = run::run(&config, |line| {
        if verbose {
            println!("{}", style(&line.raw).dim());
        }
        timeline.line(line);
    })?;
    match timeline.end(flavour, &outcome) {
        Ok(summary) => {
            println!("\n{}", style(summary).green().bold());
            Ok(true)
        }
        Err(error) => {
            println!("\nThe end of the console:");
            for line in outcome.tail() {
                println!("    {line}");
            }
            bail!("the live update failed: {error:#}; `--verbose` shows the whole console");
        }
    }
}

/// The machine that it runs in.
pub fn config(flavour: &str) -> Config {
    let mut config = Config::new([flavour, flavour]);
    config.scenarios = vec!["demo".to_owned()];
    config.devices = vec![Device::EDU];
    config
}

/// What happened when.
pub struct Timeline {
    quiet: bool,
    power_on: Instant,
    kernel: usize,
    /// When reboot(2) was called: here, and by the kernel's clock.
    reboot: Option<(Instant, f64)>,
    /// How long freezing and serializing took, if the core said so.
    frozen: Option<Duration>,
    last_words: Option<Instant>,
    /// When the device was attached again.
    back: Option<Instant>,
    phases: Vec<(&'static str, Duration)>,
    before: Vec<File>,
    after: Vec<File>,
    /// Whether an iommufd is among what is preserved.
    iommufd: bool,
    /// What is in the device, if it is among what is preserved.
    left: Option<Registers>,
    /// What was in it in the last kernel.
    found: Option<Registers>,
    /// How often memory was mapped for devices, in each kernel.
    maps: Vec<u64>,
    /// How often the device copied memory in the last kernel.
    copied: usize,
}

impl Timeline {
    /// One that prints what it sees.
    fn new() -> Self {
        Self {
            quiet: false,
            power_on: Instant::now(),
            kernel: 0,
            reboot: None,
            frozen: None,
            last_words: None,
            back: None,
            phases: Vec::new(),
            before: Vec::new(),
            after: Vec::new(),
            iommufd: false,
            left: None,
            found: None,
            maps: Vec::new(),
            copied: 0,
        }
    }

    /// One that only judges.
    pub fn quiet() -> Self {
        Self {
            quiet: true,
            ..Self::new()
        }
    }

    /// Takes a line of the console.
    pub fn line(&mut self, line: &Line) {
        if self.kernel == 0 {
            self.kernel = 1;
            self.heading("kernel 1");
            self.say(self.power_on, "power on", None);
        }
        if let Some(json) = line.guest().and_then(|text| text.strip_prefix("= ")) {
            match serde_json::from_str(json) {
                Ok(event) => self.event(line, event),
                Err(error) => self.say(line.at, &format!("{json}: {error}"), None),
            }
        } else if line.body().contains(LAST_WORDS) {
            self.kexec(line);
        } else if let Some(time) = frozen(line.body()) {
            self.frozen = Some(time);
            self.phase("freeze, serialize", time);
            let text = "files are frozen, the handover is written";
            self.say(line.at, text, Some(time));
        }
    }

    fn event(&mut self, line: &Line, event: Event) {
        let micros = Duration::from_micros;
        match event {
            Event::Init { stage, kernel, .. } => self.booted(line, stage, &kernel),
            Event::Loaded {
                bytes,
                micros: time,
            } => {
                let text = format!("the next kernel is loaded, {}", size(bytes));
                self.say(line.at, &text, Some(micros(time)));
            }
            Event::Opened { micros: time } if self.kernel == 1 => {
                self.say(line.at, "/dev/liveupdate is open", Some(micros(time)));
            }
            Event::Opened { micros: time } => {
                self.phase("open", micros(time));
                let text = "/dev/liveupdate is open, the handover is read";
                self.say(line.at, text, Some(micros(time)));
            }
            Event::Created { session } => {
                self.say(line.at, &format!("session {session} is created"), None);
            }
            Event::Filled(file) => {
                let text = format!("memfd {} is filled: {}", file.file, details(&file));
                self.say(line.at, &text, None);
                self.before.push(file);
            }
            Event::Preserved {
                session,
                token,
                file,
                bytes,
                micros: time,
            } => {
                self.iommufd |= file == "iommufd";
                let bytes = of(bytes);
                let text =
                    format!("{file} is preserved: session {session}, token {token:#x}{bytes}");
                self.say(line.at, &text, Some(micros(time)));
            }
            Event::Refused {
                file,
                before,
                errno,
                micros: time,
            } => {
                let text = format!("{file} is refused before {before}: {errno}");
                self.say(line.at, &text, Some(micros(time)));
            }
            Event::Left(registers) => {
                let text = format!("{} has {}", registers.device, contents(&registers));
                self.say(line.at, &text, None);
                self.left = Some(registers);
            }
            Event::Reboot => {
                self.reboot = Some((line.at, line.seconds.unwrap_or_default()));
                self.heading("the update");
                self.say(line.at, "reboot(2) is called", None);
            }
            Event::RetrievedSession {
                session,
                micros: time,
            } => {
                self.phase("retrieve", micros(time));
                let text = format!("session {session} is retrieved");
                self.say(line.at, &text, Some(micros(time)));
            }
            Event::Retrieved {
                session,
                token,
                file,
                bytes,
                micros: time,
            } => {
                self.phase("retrieve", micros(time));
                let bytes = of(bytes);
                let text =
                    format!("{file} is retrieved: session {session}, token {token:#x}{bytes}");
                self.say(line.at, &text, Some(micros(time)));
            }
            Event::Finished {
                session,
                micros: time,
            } => {
                // After that it costs the guest nothing.
                if self.back.is_none() {
                    self.phase("finish", micros(time));
                }
                let text = format!("session {session} is finished");
                self.say(line.at, &text, Some(micros(time)));
            }
            Event::Checked(file) => {
                let same = self.before.contains(&file);
                let text = format!(
                    "memfd {} is {}: {}",
                    file.file,
                    if same { "the same" } else { "NOT the same" },
                    details(&file)
                );
                self.say(line.at, &text, None);
                self.after.push(file);
            }
            Event::Mapped {
                part,
                ioas,
                iova,
                micros: time,
            } => {
                if self.kernel > 1 {
                    self.phase("map", micros(time));
                }
                let text = format!("mapped at {iova:#x} in IOAS {ioas}: {part}");
                self.say(line.at, &text, Some(micros(time)));
            }
            Event::Open {
                device,
                driver,
                micros: time,
            } => {
                if self.kernel > 1 {
                    self.phase("open the device", micros(time));
                }
                let text = format!("{device} is open, its driver is {driver}");
                self.say(line.at, &text, Some(micros(time)));
            }
            Event::Bound {
                device,
                micros: time,
            } => {
                if self.kernel > 1 {
                    self.phase("bind, attach", micros(time));
                }
                let text = format!("{device} is bound to the iommufd");
                self.say(line.at, &text, Some(micros(time)));
            }
            Event::Found(registers) => {
                let same = self.left.as_ref() == Some(&registers);
                let has = if same {
                    "still has"
                } else {
                    "has NOT the same,"
                };
                let text = format!("{} {has} {}", registers.device, contents(&registers));
                self.say(line.at, &text, None);
                self.found = Some(registers);
            }
            Event::Attached {
                device,
                ioas,
                micros: time,
            } => {
                // From here on the guest can go on.
                if self.kernel > 1 && self.back.is_none() {
                    self.phase("bind, attach", micros(time));
                    self.back = Some(line.at);
                }
                let text = format!("{device} is attached to IOAS {ioas}");
                self.say(line.at, &text, Some(micros(time)));
            }
            Event::Copied {
                device,
                ioas,
                from,
                to,
                bytes,
                micros: time,
            } => {
                self.copied += usize::from(self.kernel > 1);
                let bytes = size(bytes);
                let (from, to) = (place(from), place(to));
                let text = format!("DMA by {device} in IOAS {ioas}: {bytes} from {from} to {to}");
                self.say(line.at, &text, Some(micros(time)));
            }
            Event::Ioctls { calls, maps } => {
                self.maps.push(maps);
                let all: u64 = calls.values().sum();
                let maps = match maps {
                    0 => "none".to_owned(),
                    maps => maps.to_string(),
                };
                let text = format!("the VMM made {all} ioctls, {maps} of them to map memory");
                self.say(line.at, &text, None);
            }
            Event::Measured { .. } => {}
        }
    }

    fn booted(&mut self, line: &Line, stage: usize, kernel: &str) {
        let own = Duration::from_secs_f64(line.seconds.unwrap_or_default());
        if stage == 0 {
            self.say(line.at, &format!("Linux {kernel} is up"), Some(own));
            return;
        }
        self.kernel = stage + 1;
        if let Some(last_words) = self.last_words {
            // Until its clock runs, the new kernel unpacks itself.
            self.phase("kexec", (line.at - last_words).saturating_sub(own));
        }
        self.phase("boot", own);
        self.heading(&format!("kernel {}", self.kernel));
        self.say(line.at, &format!("Linux {kernel} is up"), Some(own));
    }

    fn kexec(&mut self, line: &Line) {
        let (Some((_, reboot)), None) = (self.reboot, self.last_words) else {
            return;
        };
        self.last_words = Some(line.at);
        let time = (line.seconds.unwrap_or_default() - reboot).max(0.0);
        let time = Duration::from_secs_f64(time);
        // The C core does not say when it is done, only the kernel as a whole.
        let (phase, text, time) = match self.frozen {
            Some(frozen) => ("shutdown", "devices are quiet", time.saturating_sub(frozen)),
            None => (
                "freeze, serialize",
                "files are frozen, the handover is written, devices are quiet",
                time,
            ),
        };
        self.phase(phase, time);
        self.say(line.at, text, Some(time));
        self.say(line.at, "kexec into the next kernel", None);
    }

    /// Says that all went well, or what did not.
    pub fn end(&self, flavour: &str, outcome: &Outcome) -> Result<String> {
        if let Some(why) = outcome.failure() {
            bail!("{why}");
        }
        if let Err(why) = outcome.scenario("demo", 2) {
            bail!("{why}");
        }
        if self.before.is_empty() || self.before != self.after {
            bail!(
                "the contents are not the same: {:?} before, {:?} after",
                self.before,
                self.after
            );
        }
        let &[mapped, again] = self.maps.as_slice() else {
            bail!("ioctls were counted {} times, expected 2", self.maps.len());
        };
        let expected = if self.iommufd { 0 } else { mapped };
        if mapped == 0 || again != expected {
            bail!("{mapped} mappings were made before, and {again} after");
        }
        // Only the Rust core has what it takes to keep it.
        if self.left != self.found || flavour == "rust" && self.left.is_none() {
            bail!(
                "the device is not as it was: {:?} before, {:?} after",
                self.left,
                self.found
            );
        }
        if self.copied == 0 {
            bail!("the device did nothing");
        }
        let (Some((reboot, _)), Some(back)) = (self.reboot, self.back) else {
            bail!("there was no reboot");
        };
        let blackout = back - reboot;
        self.summary(blackout);
        let bytes = self.after.iter().map(|file| file.bytes).sum();
        let mappings = if self.iommufd {
            format!("{mapped} mappings kept and none made anew")
        } else {
            format!("no mapping kept and {again} made anew")
        };
        let device = match self.left {
            Some(_) => "the device as it was",
            None => "the device opened anew",
        };
        Ok(format!(
            "Live update done: {} with the same contents, {mappings}, {device}, {} from reboot(2) \
             to the device attached.",
            size(bytes),
            duration(blackout)
        ))
    }

    fn summary(&self, blackout: Duration) {
        if self.quiet {
            return;
        }
        self.heading("where the time went");
        for (name, time) in &self.phases {
            let share = time.as_secs_f64() / blackout.as_secs_f64();
            let bar = "█".repeat((share * BAR).round() as usize);
            let bar = Style::new().cyan().apply_to(bar);
            println!("  {name:<20}{:>9}  {bar}", duration(*time));
        }
    }

    fn phase(&mut self, name: &'static str, time: Duration) {
        match self.phases.iter_mut().find(|(phase, _)| *phase == name) {
            Some((_, sum)) => *sum += time,
            None => self.phases.push((name, time)),
        }
    }

    fn heading(&self, text: &str) {
        if self.quiet {
            return;
        }
        if self.kernel > 1 || text != "kernel 1" {
            println!();
        }
        println!("{}", style(text).bold());
    }

    fn say(&self, at: Instant, text: &str, time: Option<Duration>) {
        if self.quiet {
            return;
        }
        let since = at.saturating_duration_since(self.power_on).as_secs_f64();
        let since = style(format!("{since:6.2} s")).dim();
        match time {
            None => println!("  {since}  {text}"),
            Some(time) => {
                let time = style(format!("{:>9}", duration(time))).cyan();
                println!("  {since}  {text:<WIDTH$}{time}");
            }
        }
    }
}

fn details(file: &File) -> String {
    let mut text = format!("{}, SHA-256 {:.8}…", size(file.bytes), file.sha256);
    if file.position != 0 {
        text += &format!(", position {}", file.position);
    }
    if !file.seals.is_empty() {
        text += &format!(", seals {}", file.seals);
    }
    text
}

fn contents(registers: &Registers) -> String {
    let Registers {
        device: _,
        liveness,
        factorial,
        source,
        destination,
        count,
        command: _,
    } = registers;
    format!(
        "liveness {liveness:#x}, factorial {factorial}, DMA of {count} from {source:#x} to \
         {destination:#x}"
    )
}

fn place(iova: Option<u64>) -> String {
    iova.map_or_else(|| "its buffer".to_owned(), |iova| format!("{iova:#x}"))
}

fn of(bytes: Option<u64>) -> String {
    bytes.map_or_else(String::new, |bytes| format!(", {}", size(bytes)))
}

fn size(bytes: u64) -> String {
    match bytes {
        0..10_000 => format!("{bytes} B"),
        10_000..1_048_576 => format!("{:.1} KiB", bytes as f64 / 1024.0),
        _ => format!("{:.1} MiB", bytes as f64 / 1_048_576.0),
    }
}

fn duration(time: Duration) -> String {
    let micros = time.as_micros();
    match micros {
        0..10_000 => format!("{:.2} ms", micros as f64 / 1e3),
        10_000..1_000_000 => format!("{:.1} ms", micros as f64 / 1e3),
        _ => format!("{:.2} s", micros as f64 / 1e6),
    }
}

/// The time in the Rust core's last line before the kexec.
fn frozen(body: &str) -> Option<Duration> {
    let (_, time) = body
        .strip_prefix("luo: ")?
        .split_once("frozen and written down in ")?;
    Some(Duration::from_micros(
        time.strip_suffix(" us")?.parse().ok()?,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_core_says_when_it_is_done() {
        let line = "luo: 2 sessions frozen and written down in 271 us";
        assert_eq!(frozen(line), Some(Duration::from_micros(271)));
        assert_eq!(frozen("luo: live update number 1"), None);
    }

    #[test]
    fn sizes_and_durations_have_their_unit() {
        assert_eq!(size(12), "12 B");
        assert_eq!(size(12_345), "12.1 KiB");
        assert_eq!(size(64 << 20), "64.0 MiB");
        assert_eq!(duration(Duration::from_micros(1_234)), "1.23 ms");
        assert_eq!(duration(Duration::from_micros(12_340)), "12.3 ms");
        assert_eq!(duration(Duration::from_millis(2_340)), "2.34 s");
    }
}
