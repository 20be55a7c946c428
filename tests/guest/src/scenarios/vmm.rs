// SPDX-License-Identifier: GPL-2.0

//! The stand-in for a VMM: its memory, what devices may see of it, and a device come over a kexec.

use crate::context::{Context, expect_eq};
use crate::iommufd;
use crate::kmsg;
use crate::protocol::Event;
use crate::registry::{Group, Scenario};
use crate::trace::{self, Calls};
use crate::vfio;
use crate::vmm::{Kept, MAPPINGS, SPACES};
use anyhow::{Result, ensure};

/// Each needs a machine of its own, with an edu in it.
pub const GROUP: Group = Group {
    name: "vmm",
    scenarios: &[
        Scenario {
            name: "vmm",
            stages: &[
                |context| before(context, kept(context)),
                |context| after(context, kept(context)),
            ],
        },
        // With the kernel's own driver, whose devices have to be opened again.
        Scenario {
            name: "vmm-without-its-device",
            stages: &[
                |context| before(context, Kept::Iommufd),
                |context| after(context, Kept::Iommufd),
            ],
        },
        // What the counter says in the next kernel when there is something to count.
        Scenario {
            name: "vmm-without-its-iommufd",
            stages: &[
                |context| before(context, Kept::Memory),
                |context| after(context, Kept::Memory),
            ],
        },
    ],
};

/// What `make demo` shows.
pub const DEMO: Group = Group {
    name: "demo",
    scenarios: &[Scenario {
        name: "demo",
        stages: GROUP.scenarios[0].stages,
    }],
};

/// What can come over. The C core has no handlers but for memfds.
fn kept(context: &Context<'_>) -> Kept {
    match context.rust_core() {
        true => Kept::Device,
        false => Kept::Memory,
    }
}

fn prepare(context: &Context<'_>, kept: Kept) -> Result<()> {
    vfio::load(context)?;
    if kept >= Kept::Iommufd {
        iommufd::load_handler(context)?;
    }
    if kept >= Kept::Device {
        vfio::load_handler(context)?;
    }
    Ok(())
}

/// Runs the VMM's program and says which ioctls it made.
fn run(what: &str, kept: Kept) -> Result<Calls> {
    let calls = trace::run(&["vmm", what, kept.name()])?;
    let maps = trace::maps(&calls);
    kmsg::event(&Event::Ioctls {
        calls: calls.clone(),
        maps,
    });
    Ok(calls)
}

fn count(calls: &Calls, name: &str) -> u64 {
    calls.get(name).copied().unwrap_or_default()
}

/// That the ioctls that map are counted where there are any is what makes the count in the next
/// kernel say something.
fn before(context: &Context<'_>, kept: Kept) -> Result<()> {
    prepare(context, kept)?;
    let calls = run("save", kept)?;
    expect_eq("mappings", trace::maps(&calls), MAPPINGS)?;
    expect_eq("address spaces", count(&calls, "IOAS_ALLOC"), SPACES)?;
    let preserved = kept.files() + kept.refusals();
    expect_eq("preserved", count(&calls, "PRESERVE_FD"), preserved)
}

fn after(context: &Context<'_>, kept: Kept) -> Result<()> {
    prepare(context, kept)?;
    let calls = run("restore", kept)?;
    let (mappings, spaces) = match kept {
        Kept::Memory => (MAPPINGS, SPACES),
        Kept::Iommufd | Kept::Device => (0, 0),
    };
    expect_eq("mappings", trace::maps(&calls), mappings)?;
    expect_eq("address spaces", count(&calls, "IOAS_ALLOC"), spaces)?;
    expect_eq("retrieved", count(&calls, "RETRIEVE_FD"), kept.files())?;
    expect_eq("bound", count(&calls, "BIND"), 1)?;
    expect_eq("resets", count(&calls, "RESET"), 0)?;
    ensure!(count(&calls, "ATTACH") >= SPACES, "attached: {calls:?}");
    Ok(())
}
