// SPDX-License-Identifier: GPL-2.0

//! The scenarios, in as few machines as is sound.

use crate::device::{Device, Kind};
use crate::suite::{Job, Report, boot, last};
use crate::vm::{Config, DEBUG};
use luo_guest::registry::{self, Group, Scenario};

/// Groups whose scenarios share a machine, since none disturbs another.
const SHARED: [&str; 7] = [
    "session", "file", "memfd", "seal", "process", "callback", "storm",
];

/// Those of them that the other kernels can do as well: the C core has no module for callbacks.
const WITHOUT_MODULE: [&str; 6] = ["session", "file", "memfd", "seal", "process", "storm"];

/// Machines that take long.
pub fn long() -> Vec<Job> {
    let mut jobs = vec![shared("rust", &SHARED)];
    for flavour in ["rust", "c"] {
        jobs.push(machine("memory", &[flavour; 2], |config| {
            config.memory = 2048;
            config.disk = Some(256);
        }));
    }
    jobs.push(shared("c", &WITHOUT_MODULE));
    jobs.push(shared("rust-cmemfd", &WITHOUT_MODULE));
    jobs.extend(iommu("rust"));
    jobs.extend(iommu("rust-cmemfd"));
    jobs.extend(vfio("rust"));
    jobs.extend(vfio("rust-cmemfd"));
    jobs
}

/// Machines for what concerns handlers, with the debug kernel.
pub fn debug() -> Vec<Job> {
    let mut jobs = vec![
        shared(DEBUG, &SHARED),
        machine("device", &[DEBUG], with_edu),
        machine("missing-handler", &[DEBUG; 2], |_| {}),
        machine("modprobe", &[DEBUG; 2], |config| config.modprobe = true),
        machine("sample", &[DEBUG; 3], |_| {}),
        machine("sample-unclaimed", &[DEBUG; 2], |_| {}),
        machine("sample-on-demand", &[DEBUG; 2], |config| {
            config.modprobe = true;
        }),
    ];
    jobs.extend(sdk(DEBUG));
    // What the others leave out is all that is new in them.
    jobs.extend(vmm(DEBUG).into_iter().take(1));
    jobs.extend(iommu(DEBUG));
    jobs.extend(vfio(DEBUG));
    jobs
}

/// Machines for handlers written with the SDK.
fn sdk(flavour: &'static str) -> Vec<Job> {
    let mut jobs = vec![
        machine("unload", &[flavour; 2], |_| {}),
        machine("autoload", &[flavour; 2], |config| config.modprobe = true),
        machine("sdk", &[flavour; 2], |_| {}),
        // A reboot that fails needs a kernel to reboot into.
        machine("flb", &[flavour; 2], |_| {}),
        machine("unload-off", &[flavour], |config| {
            for stage in &mut config.chain {
                stage.1 = "liveupdate=off".to_owned();
            }
        }),
    ];
    for scenario in group("flb-after").scenarios {
        let name = format!("flb-after/{flavour}/{}", scenario.name);
        jobs.push(alone(name, Config::new([flavour; 2]), scenario.name));
    }
    jobs
}

/// Machines for one scenario each.
pub fn short() -> Vec<Job> {
    let mut jobs = vec![
        machine("device", &["rust"], with_edu),
        machine("missing-handler", &["rust"; 2], |_| {}),
        machine("modprobe", &["rust"; 2], |config| config.modprobe = true),
        machine("sample", &["rust"; 3], |_| {}),
        machine("sample-unclaimed", &["rust"; 2], |_| {}),
        machine("sample-on-demand", &["rust"; 2], |config| {
            config.modprobe = true
        }),
        machine("third-kernel", &["rust"; 3], |_| {}),
        machine("third-kernel", &["c"; 3], |_| {}),
        machine("corrupt-memfd", &["rust"; 3], |config| config.memory = 512),
        machine("off", &["rust"; 5], |config| {
            let extras = ["", "liveupdate=off", "kho=off", "", "liveupdate=off"];
            for (stage, extra) in config.chain.iter_mut().zip(extras) {
                stage.1 = extra.to_owned();
            }
        }),
    ];
    jobs.extend(sdk("rust"));
    jobs.extend(vmm("rust"));
    jobs.extend(vmm("rust-cmemfd"));
    for name in ["corrupt", "corrupt-not", "corrupt-names"] {
        for scenario in group(name).scenarios {
            let name = format!("{name}/rust/{}", scenario.name);
            let mut config = Config::new(["rust"; 3]);
            config.memory = 512;
            jobs.push(alone(name, config, scenario.name));
        }
    }
    for chain in [
        &["c", "rust"][..],
        &["rust", "c"],
        &["rust", "rust"],
        &["c", "rust", "c"],
        &["rust", "c", "rust"],
        &["rust-cmemfd", "rust", "rust-cmemfd"],
    ] {
        let name = format!("interop/{}", chain.join("-to-"));
        jobs.push(alone(name, Config::new(chain.iter().copied()), "interop"));
    }
    for chain in [
        ["c-flb", "c-flb"],
        ["c-flb", "rust-cmemfd"],
        ["rust-cmemfd", "c-flb"],
        ["rust-cmemfd", "rust-cmemfd"],
    ] {
        let name = format!("c-flb/{}", chain.join("-to-"));
        jobs.push(alone(name, Config::new(chain), "c-flb"));
    }
    jobs
}

/// Machines for the stand-in for a VMM.
fn vmm(flavour: &'static str) -> Vec<Job> {
    let job = |scenario: &Scenario| {
        let mut config = Config::new([flavour; 2]);
        with_edu(&mut config);
        let name = format!("vmm/{flavour}/{}", scenario.name);
        alone(name, config, scenario.name)
    };
    group("vmm").scenarios.iter().map(job).collect()
}

fn with_edu(config: &mut Config) {
    config.devices = vec![Device::EDU];
}

fn group(name: &str) -> &'static Group {
    let found = registry::GROUPS.iter().find(|group| group.name == name);
    found.unwrap_or_else(|| unreachable!("there is no group {name}"))
}

/// Machines for iommufds.
fn iommu(flavour: &'static str) -> Vec<Job> {
    let mut config = Config::new([flavour; 2]);
    with_edu(&mut config);
    // The last one keeps the device.
    let mut groups = vec!["iommu", "iommu-refused", "iommu-preserved", "iommu-device"];
    let mut jobs = vec![
        machine("iommu-module", &[flavour; 2], |config| {
            config.modprobe = true;
        }),
        machine("iommu-format", &[flavour; 3], |_| {}),
    ];
    // The others need the module for callbacks.
    if flavour != "rust-cmemfd" {
        groups.insert(groups.len() - 1, "iommu-reboot");
        jobs.push(machine("iommu-corrupt", &[flavour; 2], |_| {}));
        jobs.push(machine("iommu-many", &[flavour; 2], |config| {
            if flavour == DEBUG {
                config.args.insert("n".to_owned(), "20000".to_owned());
            }
        }));
    }
    if flavour == "rust" {
        jobs.push(machine("iommu-given-back", &[flavour; 2], |_| {}));
    }
    jobs.insert(0, together(config, flavour, &groups));
    jobs
}

/// Machines for VFIO devices.
fn vfio(flavour: &'static str) -> Vec<Job> {
    // How many devices there are: edu, nvme, rng.
    let config = |kernels, counts: [usize; 3]| {
        let kinds = [
            Device::EDU,
            Device::port(Kind::Nvme),
            Device::port(Kind::Rng),
        ];
        let mut config = Config::new(std::iter::repeat_n(flavour, kernels));
        for (device, count) in kinds.into_iter().zip(counts) {
            config.devices.extend(std::iter::repeat_n(device, count));
        }
        config
    };
    let mut usual = config(2, [3, 4, 3]);
    let others = [
        Device::twins(Kind::Edu),
        Device::twins(Kind::Nvme),
        Device::port(Kind::NvmeSriov),
    ];
    usual.devices.extend(others);
    let mut on_demand = config(2, [1, 2, 0]);
    on_demand.modprobe = true;
    let mut groups = vec!["vfio-refused", "vfio", "vfio-siblings"];
    let mut unusual = vec!["vfio-kept", "vfio-lost", "vfio-unclaimed"];
    let mut alone = Vec::new();
    // The others need the module for callbacks, or show nothing new with this flavour.
    if flavour != "rust-cmemfd" {
        groups.insert(1, "vfio-reboot");
        alone.push(("vfio-third", 3, [2, 1, 1]));
    }
    if flavour == "rust" {
        alone.push(("vfio-unreadable", 3, [1, 1, 0]));
        alone.push(("vfio-count", 3, [1, 1, 0]));
    }
    // To look for a record in all of its memory takes the debug kernel half a minute.
    if flavour == DEBUG {
        alone.push(("vfio-faults", 2, [1, 14, 0]));
    } else {
        unusual.push("vfio-corrupt");
    }
    let mut jobs = vec![
        together(usual, flavour, &groups),
        together(config(2, [4, 17, 2]), flavour, &unusual),
        together(on_demand, flavour, &["vfio-module"]),
    ];
    for (group, kernels, devices) in alone {
        jobs.push(together(config(kernels, devices), flavour, &[group]));
    }
    if flavour == "rust" {
        let mut config = config(3, [0, 2, 2]);
        config.chain[1].1 = "initcall_blacklist=nvme_init".to_owned();
        let groups = ["vfio-third-loaded", "vfio-stock"];
        jobs.push(together(config, flavour, &groups));
    }
    jobs
}

/// Several groups in one machine, in a chain of two kernels of one flavour.
fn shared(flavour: &'static str, groups: &[&str]) -> Job {
    together(Config::new([flavour; 2]), flavour, groups)
}

/// Several groups in one machine.
fn together(mut config: Config, flavour: &str, groups: &[&str]) -> Job {
    let tests = groups
        .iter()
        .flat_map(|name| {
            let scenarios = group(name).scenarios.iter();
            scenarios.map(move |scenario| format!("{name}/{flavour}/{}", scenario.name))
        })
        .collect();
    let name = format!("{}/{flavour}", groups.join("+"));
    Job::new(name.clone(), tests, move |tests| {
        config.scenarios = tests.iter().map(|test| last(test).to_owned()).collect();
        let outcome = boot(&name, &config)?;
        let report = |test: &String| {
            Report::new(test, outcome.scenario(last(test), stages(test)))
                .with_tail(|| outcome.tail_of(last(test)))
        };
        let mut reports: Vec<Report> = tests.iter().map(report).collect();
        // Trouble that belongs to none of them.
        if reports.iter().all(|report| report.result.is_ok())
            && let Some(why) = outcome.failure()
        {
            let console = format!("{name}/console");
            reports.push(Report::new(console, Err(why)).with_tail(|| outcome.tail()));
        }
        Ok(reports)
    })
}

/// One group in one machine of its own.
fn machine(name: &'static str, chain: &[&'static str], adjust: impl FnOnce(&mut Config)) -> Job {
    let mut config = Config::new(chain.iter().copied());
    adjust(&mut config);
    let group = group(name);
    let flavour = chain.first().copied().unwrap_or_default();
    let full = format!("{name}/{flavour}");
    let tests = group.scenarios.iter();
    let tests = tests.map(|scenario| format!("{full}/{}", scenario.name));
    Job::new(full.clone(), tests.collect(), move |tests| {
        config.scenarios = tests.iter().map(|test| last(test).to_owned()).collect();
        let outcome = boot(&full, &config)?;
        let report = |test: &String| {
            Report::new(test, outcome.scenario_alone(last(test), stages(test)))
                .with_tail(|| outcome.tail_of(last(test)))
        };
        Ok(tests.iter().map(report).collect())
    })
}

/// One scenario in a machine of its own, with a stage in every kernel.
fn alone(name: String, mut config: Config, scenario: &'static str) -> Job {
    config.scenarios = vec![scenario.to_owned()];
    Job::single(name, move |name| {
        let outcome = boot(name, &config)?;
        let result = outcome.scenario_alone(scenario, config.chain.len());
        Ok(Report::new(name, result.map(|_| outcome.time)).with_tail(|| outcome.tail()))
    })
}

/// In how many kernels a test's scenario has something to do.
fn stages(test: &str) -> usize {
    registry::find(last(test)).map_or(0, |scenario| scenario.stages.len())
}
