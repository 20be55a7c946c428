// SPDX-License-Identifier: GPL-2.0

//! Runs virtual machines that update their kernel live.

mod accel;
mod arch;
mod demo;
mod device;
mod guest;
mod ktap;
mod line;
mod modprobe;
mod paths;
mod run;
mod sdk;
mod suite;
mod suites;
mod vm;
mod watch;

use anyhow::{Result, bail};
use clap::{Parser, Subcommand};
use device::Device;
use std::path::PathBuf;
use std::process::ExitCode;
use vm::Config;

#[derive(Parser)]
#[command(about = "Runs virtual machines that update their kernel live")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Shows one live update from power-on to the check of the contents.
    Demo {
        /// The kernel to use, built by `make kernel`.
        #[arg(long, default_value = "rust")]
        flavour: String,
        /// Shows the console instead of the timeline.
        #[arg(long)]
        verbose: bool,
    },
    /// Runs all tests, or those whose names hold a word.
    Test {
        /// A part of the names of the tests to run.
        #[arg(default_value = "")]
        filter: String,
        /// Only prints the names.
        #[arg(long)]
        list: bool,
        /// Runs the tests on the debug kernel instead, which are few of them but look closer.
        #[arg(long, value_parser = [vm::DEBUG])]
        flavour: Option<String>,
        /// How many machines run at a time.
        #[arg(long, short, default_value_t = 2)]
        jobs: usize,
    },
    /// Prints what live update costs on both cores.
    Bench,
    /// Gives a prompt in a virtual machine, to try live update by hand.
    Vm {
        /// The kernel to use, built by `make kernel`.
        #[arg(long, default_value = "rust")]
        flavour: String,
        /// A module of your own, built for that kernel, to be loaded before the prompt comes.
        #[arg(long)]
        module: Vec<PathBuf>,
    },
    /// Runs scenarios by name and shows what comes of them.
    Run {
        /// The chain of kernels, separated by commas; one name stands for two kernels of it.
        #[arg(long, default_value = "rust")]
        flavour: String,
        /// Shows the console.
        #[arg(long, short)]
        verbose: bool,
        /// RAM in MiB, if not what the kernels need.
        #[arg(long)]
        memory: Option<u32>,
        /// The size in MiB of a disk for swap.
        #[arg(long)]
        disk: Option<u32>,
        /// A device behind an IOMMU: edu, nvme, nvme-sriov or rng; with port: before it, behind a
        /// port of its own; with twins: before it, two of them there.
        #[arg(long)]
        device: Vec<Device>,
        /// Has the kernels load modules themselves.
        #[arg(long)]
        modprobe: bool,
        /// What scenarios are told, as name=value.
        #[arg(long = "arg")]
        args: Vec<String>,
        /// Adds to every kernel's command line.
        #[arg(long, default_value = "")]
        append: String,
        /// The names of the scenarios.
        #[arg(required = true)]
        scenarios: Vec<String>,
    },
}

fn main() -> ExitCode {
    match Cli::parse().command.run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("luo-vm: {error:#}");
            ExitCode::FAILURE
        }
    }
}

impl Command {
    fn run(self) -> Result<bool> {
        match self {
            Command::Demo { flavour, verbose } => demo::demo(&flavour, verbose),
            Command::Test {
                filter,
                list,
                flavour,
                jobs,
            } => {
                let (tests, command) = match flavour {
                    None => (suites::all(), "test"),
                    Some(_) => (suites::debug(), "test --flavour debug"),
                };
                if list {
                    suite::list(tests, &filter);
                    return Ok(true);
                }
                guest::build()?;
                if filter.is_empty() {
                    suite::forget_logs()?;
                }
                suite::run_all(tests, &filter, jobs.max(1), command)
            }
            Command::Bench => suites::bench(),
            Command::Vm { flavour, module } => {
                let mut config = Config::new([flavour.as_str(); 20]);
                config.scenarios = vec!["shell".to_owned()];
                config.programs = vec![("luo".to_owned(), guest::prompt()?)];
                for path in module {
                    let name = path.file_name().unwrap_or_default().to_string_lossy();
                    config.programs.push((name.into_owned(), path));
                }
                for stage in &mut config.chain {
                    // Only warnings, so that the prompt stays where it is.
                    stage.1 = "loglevel=4".to_owned();
                }
                println!("The machine starts; `exit` or Ctrl-A X ends it.");
                vm::interactive(&config)
            }
            Command::Run {
                flavour,
                verbose,
                memory,
                disk,
                device,
                modprobe,
                args,
                append,
                scenarios,
            } => {
                let mut chain: Vec<&str> = flavour.split(',').collect();
                if let [only] = chain[..] {
                    chain.push(only);
                }
                let mut config = Config::new(chain);
                config.memory = memory.unwrap_or(config.memory);
                config.disk = disk;
                config.devices = device;
                config.modprobe = modprobe;
                config.scenarios = scenarios;
                for stage in &mut config.chain {
                    stage.1.clone_from(&append);
                }
                for arg in args {
                    let Some((name, value)) = arg.split_once('=') else {
                        bail!("{arg} is not name=value");
                    };
                    config.args.insert(name.to_owned(), value.to_owned());
                }
                run_scenarios(&config, verbose)
            }
        }
    }
}

fn run_scenarios(config: &Config, verbose: bool) -> Result<bool> {
    let outcome = run::run(config, |line| {
        if verbose {
            println!("{}", line.raw);
        } else if let Some(text) = line.guest() {
            println!("{text}");
        }
    })?;
    if let Some(why) = outcome.failure() {
        if !verbose {
            println!("{}", outcome.tail().join("\n"));
        }
        println!("FAIL: {why}");
    }
    Ok(outcome.failure().is_none() && outcome.stages.iter().all(|stage| stage.result.is_ok()))
}
