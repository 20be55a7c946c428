// SPDX-License-Identifier: GPL-2.0

//! Tests, whatever they consist of, and how they are run and reported.

use crate::paths;
use crate::run::{self, Outcome};
use crate::vm::Config;
use anyhow::{Context, Result};
use console::style;
use indicatif::{ProgressBar, ProgressStyle};
use std::collections::VecDeque;
use std::fs;
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// What came of one test.
#[derive(Debug)]
pub struct Report {
    /// The test's whole name.
    pub name: String,
    /// How long it took, or why it failed.
    pub result: Result<Duration, String>,
    /// What to show with a failure, such as the end of a console.
    pub tail: Vec<String>,
}

impl Report {
    /// A test that went as `result` says.
    pub fn new(name: impl Into<String>, result: Result<Duration, String>) -> Self {
        Self {
            name: name.into(),
            result,
            tail: Vec::new(),
        }
    }

    /// The same with something to show if it failed.
    pub fn with_tail(mut self, tail: impl FnOnce() -> Vec<String>) -> Self {
        if self.result.is_err() {
            self.tail = tail();
        }
        self
    }

    /// A test that is a function.
    pub fn of(name: impl Into<String>, test: impl FnOnce() -> Result<()>) -> Self {
        let start = Instant::now();
        let result = test().map_err(|error| format!("{error:#}"));
        Self::new(name, result.map(|()| start.elapsed()))
    }
}

/// Tests that run together, in one machine for example.
pub struct Job {
    /// What all of its tests' names begin with.
    pub name: String,
    /// Its tests' names as far as they are known before; if there are none, the tests are whatever
    /// it reports.
    pub tests: Vec<String>,
    /// Runs the tests that are chosen.
    pub run: Run,
}

/// Runs some of a job's tests.
pub type Run = Box<dyn FnOnce(&[String]) -> Result<Vec<Report>> + Send>;

impl Job {
    /// A job whose tests are known.
    pub fn new(
        name: impl Into<String>,
        tests: Vec<String>,
        run: impl FnOnce(&[String]) -> Result<Vec<Report>> + Send + 'static,
    ) -> Self {
        Self {
            name: name.into(),
            tests,
            run: Box::new(run),
        }
    }

    /// A job with one test, which has its name.
    pub fn single(
        name: impl Into<String>,
        run: impl FnOnce(&str) -> Result<Report> + Send + 'static,
    ) -> Self {
        let name = name.into();
        Self::new(name.clone(), vec![name.clone()], move |_| {
            Ok(vec![run(&name)?])
        })
    }

    /// Leaves only tests whose names hold `filter`; says whether any is left.
    fn choose(&mut self, filter: &str) -> bool {
        if self.tests.is_empty() {
            return self.name.contains(filter) || filter.starts_with(&self.name);
        }
        self.tests.retain(|test| test.contains(filter));
        !self.tests.is_empty()
    }
}

/// Prints the names of all tests that `filter` leaves.
pub fn list(jobs: Vec<Job>, filter: &str) {
    for mut job in jobs {
        if !job.choose(filter) {
            continue;
        }
        if job.tests.is_empty() {
            println!("{}/...", job.name);
        }
        for test in job.tests {
            println!("{test}");
        }
    }
}

/// Runs all tests that `filter` leaves, and says whether all passed. `command` is what runs them
/// again.
pub fn run_all(jobs: Vec<Job>, filter: &str, workers: usize, command: &str) -> Result<bool> {
    let chosen = jobs.into_iter().filter_map(|mut job| {
        let chosen = job.choose(filter);
        chosen.then_some(job)
    });
    let queue: Mutex<VecDeque<Job>> = Mutex::new(chosen.collect());
    let board = Mutex::new(Board::new());
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                while let Some(job) = queue.lock().ok().and_then(|mut queue| queue.pop_front()) {
                    let name = job.name.clone();
                    with(&board, |board| board.started(&name));
                    let reports = run_job(job, filter);
                    with(&board, |board| board.done(&name, reports));
                }
            });
        }
    });
    let board = board
        .into_inner()
        .unwrap_or_else(|broken| broken.into_inner());
    Ok(board.finish(command))
}

/// A panic of another worker does not spoil the board.
fn with(board: &Mutex<Board>, change: impl FnOnce(&mut Board)) {
    change(&mut board.lock().unwrap_or_else(|broken| broken.into_inner()));
}

fn run_job(job: Job, filter: &str) -> Vec<Report> {
    let (name, tests) = (job.name, job.tests);
    let mut reports = match (job.run)(&tests) {
        Ok(reports) => reports,
        Err(error) => {
            let why = format!("{error:#}");
            let failed = |test: &String| Report::new(test, Err(why.clone()));
            let mut reports: Vec<Report> = tests.iter().map(failed).collect();
            if tests.is_empty() {
                reports.push(Report::new(&name, Err(why)));
            }
            return reports;
        }
    };
    if tests.is_empty() {
        reports.retain(|report| report.result.is_err() || report.name.contains(filter));
        if reports.is_empty() && filter.is_empty() {
            reports.push(Report::new(&name, Err("no test ran".to_owned())));
        }
        return reports;
    }
    for test in tests {
        if !reports.iter().any(|report| report.name == test) {
            reports.push(Report::new(test, Err("it did not run".to_owned())));
        }
    }
    reports
}

/// What a person sees.
struct Board {
    passed: usize,
    failed: Vec<String>,
    running: Vec<String>,
    spinner: ProgressBar,
}

impl Board {
    fn new() -> Self {
        let spinner = ProgressBar::new_spinner();
        if let Ok(style) = ProgressStyle::with_template("{spinner} {elapsed} {wide_msg}") {
            spinner.set_style(style);
        }
        spinner.enable_steady_tick(Duration::from_millis(200));
        Self {
            passed: 0,
            failed: Vec::new(),
            running: Vec::new(),
            spinner,
        }
    }

    fn started(&mut self, job: &str) {
        self.running.push(job.to_owned());
        self.show();
    }

    fn done(&mut self, job: &str, reports: Vec<Report>) {
        self.running.retain(|running| running != job);
        for report in reports {
            self.report(report);
        }
        self.show();
    }

    fn show(&self) {
        self.spinner.set_message(format!(
            "{} passed, {} failed; running {}",
            self.passed,
            self.failed.len(),
            self.running.join(", ")
        ));
    }

    fn report(&mut self, report: Report) {
        let Report { name, result, tail } = report;
        self.spinner.suspend(|| match &result {
            Ok(time) => println!(
                "{}   {name} ({:.1}s)",
                style("ok").green(),
                time.as_secs_f64()
            ),
            Err(why) => {
                println!("{} {name}: {why}", style("FAIL").red().bold());
                for line in tail {
                    println!("     | {line}");
                }
            }
        });
        match result {
            Ok(_) => self.passed += 1,
            Err(_) => self.failed.push(name),
        }
    }

    fn finish(self, command: &str) -> bool {
        self.spinner.finish_and_clear();
        let none = self.passed == 0 && self.failed.is_empty();
        if none {
            println!(
                "\nNo test has such a name; \
                 `cargo run --release -p luo-vm -- {command} --list` shows all."
            );
        } else if let Some(first) = self.failed.first() {
            println!(
                "\nThe consoles are in out/logs/. One test by itself: \
                 cargo run --release -p luo-vm -- {command} {first}"
            );
        }
        println!("{} passed, {} failed", self.passed, self.failed.len());
        self.failed.is_empty() && !none
    }
}

/// Where the consoles are kept.
fn logs() -> PathBuf {
    paths::root().join("out/logs")
}

/// Removes the consoles of earlier runs.
pub fn forget_logs() -> Result<()> {
    let Ok(entries) = fs::read_dir(logs()) else {
        return Ok(());
    };
    for entry in entries {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "log") {
            fs::remove_file(&path).with_context(|| format!("removing {}", path.display()))?;
        }
    }
    Ok(())
}

/// Runs a machine for tests, with its console in a file of that name.
pub fn boot(name: &str, config: &Config) -> Result<Outcome> {
    let outcome = run::run(config, |_| {}).with_context(|| format!("running {name}"))?;
    let dir = logs();
    fs::create_dir_all(&dir)?;
    let text: String = outcome
        .lines
        .iter()
        .map(|line| format!("{}\n", line.raw))
        .collect();
    let file = dir.join(format!("{}.log", name.replace(['/', ' '], "-")));
    fs::write(&file, text).with_context(|| format!("writing {}", file.display()))?;
    Ok(outcome)
}

/// The end of a test's name: what stands after the last slash.
pub fn last(name: &str) -> &str {
    name.rsplit('/').next().unwrap_or(name)
}
