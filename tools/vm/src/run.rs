// SPDX-License-Identifier: GPL-2.0

//! One run of a machine, with a watch on its console.

use crate::ktap::{Node, Parser, Verdict};
use crate::line::Line;
use crate::vm::{Config, Next, Vm};
use crate::watch::Watch;
use anyhow::Result;
use std::time::{Duration, Instant};

/// Lines of the console that are shown with a failure of the machine, and of a scenario.
const TAIL: usize = 40;
const SHORT_TAIL: usize = 12;

/// What process 1 says first in each kernel.
const INIT: &str = "= {\"event\":\"init\"";
/// What the kernel says last.
const POWER_OFF: &str = "reboot: Power down";

/// What came of a run.
#[derive(Debug)]
pub struct Outcome {
    /// What the scenarios said of their stages, in order.
    pub stages: Vec<StageResult>,
    /// What the watch saw, in order.
    pub troubles: Vec<Trouble>,
    /// Why the machine did not end as it should: with a power-off in its last kernel.
    pub broken: Option<String>,
    /// The scenario that was running when the machine ended, if one was.
    pub running: Option<String>,
    /// The console.
    pub lines: Vec<Line>,
    /// How long it took.
    pub time: Duration,
}

/// What a scenario said of one stage.
#[derive(Clone, Debug)]
pub struct StageResult {
    /// Its name.
    pub scenario: String,
    /// Which stage, from 0.
    pub stage: usize,
    /// Whether it passed, or else why not.
    pub result: std::result::Result<(), String>,
    /// How long it took here, from its first line to its last.
    pub time: Duration,
    /// Its last line's place in the console.
    line: usize,
}

/// A line of a kernel in trouble.
#[derive(Clone, Debug)]
pub struct Trouble {
    /// The scenario that was running.
    pub scenario: Option<String>,
    /// The line.
    pub text: String,
    /// Its place in the console.
    pub line: usize,
}

/// Runs a machine to its end; `observe` sees each line as it comes.
pub fn run(config: &Config, mut observe: impl FnMut(&Line)) -> Result<Outcome> {
    let mut vm = Vm::start(config)?;
    let watch = Watch::new()?;
    let mut state = State::default();
    let broken = loop {
        if let (Some(grace), Some(since)) = (config.grace, state.in_trouble) {
            vm.end_at(since + grace);
        }
        match vm.next()? {
            Next::Line(line) => {
                observe(&line);
                state.line(&watch, line);
            }
            Next::Off => break None,
            Next::Broken(why) => break Some(why),
        }
    };
    Ok(state.end(broken, config.chain.len(), vm.started().elapsed()))
}

#[derive(Default)]
struct State {
    parser: Parser,
    running: Option<(String, Instant)>,
    stages: Vec<StageResult>,
    troubles: Vec<Trouble>,
    in_trouble: Option<Instant>,
    lines: Vec<Line>,
    // How many kernels came to process 1, and whether the last one of them switched all off.
    kernels: usize,
    powered_off: bool,
}

impl State {
    fn line(&mut self, watch: &Watch, line: Line) {
        if let Some(text) = line.guest() {
            if let Some(name) = text.strip_prefix("> ") {
                self.running = Some((name.to_owned(), line.at));
            } else if text.starts_with(INIT) {
                self.kernels += 1;
                self.powered_off = false;
            } else if let Some(node) = self.parser.line(text) {
                self.result(&node, line.at);
            }
        } else if line.body() == POWER_OFF {
            self.powered_off = true;
        } else if watch.is_trouble(&line) {
            self.in_trouble.get_or_insert(line.at);
            self.troubles.push(Trouble {
                scenario: self.running.as_ref().map(|(name, _)| name.clone()),
                text: line.body().to_owned(),
                line: self.lines.len(),
            });
        }
        self.lines.push(line);
    }

    /// What came of all of it, in a chain of so many kernels.
    fn end(self, broken: Option<String>, kernels: usize, time: Duration) -> Outcome {
        let broken = broken.or_else(|| {
            (self.kernels != kernels || !self.powered_off).then(|| {
                format!(
                    "the machine ended without a power-off in kernel {kernels}; \
                     {} came to process 1",
                    self.kernels
                )
            })
        });
        Outcome {
            stages: self.stages,
            troubles: self.troubles,
            broken,
            running: self.running.map(|(name, _)| name),
            lines: self.lines,
            time,
        }
    }

    fn result(&mut self, node: &Node, at: Instant) {
        let (scenario, stage) = match node.name.rsplit_once(" stage ") {
            Some((name, stage)) => (name.to_owned(), stage.parse().unwrap_or(usize::MAX)),
            None => (node.name.clone(), usize::MAX),
        };
        let mut time = Duration::ZERO;
        // Process 1 may have something to say of itself while a scenario runs.
        if let Some((_, since)) = self.running.take_if(|(name, _)| *name == scenario) {
            time = at - since;
        }
        let result = match node.result {
            Verdict::Ok => Ok(()),
            _ => Err(node.remarks.last().cloned().unwrap_or_default()),
        };
        self.stages.push(StageResult {
            scenario,
            stage,
            result,
            time,
            line: self.lines.len(),
        });
    }
}

impl Outcome {
    /// The end of the console, or what is around the first trouble.
    pub fn tail(&self) -> Vec<String> {
        let end = match self.troubles.first() {
            Some(trouble) => (trouble.line + TAIL * 3 / 4).min(self.lines.len()),
            None => self.lines.len(),
        };
        let start = end.saturating_sub(TAIL);
        self.lines[start..end]
            .iter()
            .map(|line| line.raw.clone())
            .collect()
    }

    /// What stands above the line with which a scenario failed, if it came so far.
    pub fn tail_of(&self, scenario: &str) -> Vec<String> {
        let failed = |stage: &&StageResult| stage.scenario == scenario && stage.result.is_err();
        match self.stages.iter().find(failed) {
            Some(stage) if self.troubles.is_empty() => {
                let end = (stage.line + 1).min(self.lines.len());
                let lines = &self.lines[end.saturating_sub(SHORT_TAIL)..end];
                lines.iter().map(|line| line.raw.clone()).collect()
            }
            _ => self.tail(),
        }
    }

    /// What went wrong with the machine as a whole, whatever ran in it.
    pub fn failure(&self) -> Option<String> {
        match self.troubles.first() {
            Some(trouble) => Some(said(trouble)),
            None => self.failure_of_none(),
        }
    }

    /// What went wrong while no scenario was running, or with the machine itself.
    fn failure_of_none(&self) -> Option<String> {
        let mut troubles = self.troubles.iter();
        if let Some(trouble) = troubles.find(|trouble| trouble.scenario.is_none()) {
            return Some(said(trouble));
        }
        // Process 1 or a helper of it.
        let own = |stage: &&StageResult| stage.stage == usize::MAX && stage.result.is_err();
        if let Some(stage) = self.stages.iter().find(own) {
            let why = stage.result.clone().err().unwrap_or_default();
            return Some(format!("{}: {why}", stage.scenario));
        }
        self.broken.clone()
    }

    /// The lines of one kind of longer text that process 1 printed.
    pub fn text(&self, kind: &str) -> Vec<&str> {
        let start = format!("|{kind} ");
        self.lines
            .iter()
            .filter_map(|line| line.guest()?.strip_prefix(start.as_str()))
            .collect()
    }

    /// What came of a scenario that has so many stages, in a machine that it shares with others:
    /// what belongs to none of them is for [`Self::failure`] to say.
    pub fn scenario(&self, name: &str, stages: usize) -> std::result::Result<Duration, String> {
        let mut time = Duration::ZERO;
        for stage in 0..stages {
            let mut found = self
                .stages
                .iter()
                .filter(|result| result.scenario == name && result.stage == stage);
            match found.next() {
                Some(StageResult {
                    result: Err(why), ..
                }) => {
                    return Err(format!("in kernel {}: {why}", stage + 1));
                }
                Some(result) => time += result.time,
                None => return Err(self.not_reached(name, stage)),
            }
            if found.next().is_some() {
                return Err(format!("in kernel {}: it ended twice", stage + 1));
            }
        }
        let mut troubles = self.troubles.iter();
        match troubles.find(|trouble| trouble.scenario.as_deref() == Some(name)) {
            Some(trouble) => Err(said(trouble)),
            None => Ok(time),
        }
    }

    /// The same in a machine of its own: whatever goes wrong, from power-on to power-off, between
    /// the kernels as well as in them, is a failure of it.
    pub fn scenario_alone(
        &self,
        name: &str,
        stages: usize,
    ) -> std::result::Result<Duration, String> {
        let time = self.scenario(name, stages)?;
        match self.failure_of_none() {
            Some(why) => Err(why),
            None => Ok(time),
        }
    }

    fn not_reached(&self, name: &str, stage: usize) -> String {
        let here = self.running.as_deref() == Some(name);
        let what = if here { "did not end" } else { "did not run" };
        let why = self
            .failure()
            .unwrap_or_else(|| "the machine ended before".to_owned());
        format!("{what} in kernel {}: {why}", stage + 1)
    }
}

fn said(trouble: &Trouble) -> String {
    format!("the kernel said: {}", trouble.text)
}

#[cfg(test)]
mod tests;
