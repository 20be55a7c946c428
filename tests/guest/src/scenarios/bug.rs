// SPDX-License-Identifier: GPL-2.0

//! Bugs in a handler, for the debug kernel to report.

use crate::context::{Context, create};
use crate::module;
use crate::registry::{Group, Scenario};
use anyhow::{Context as _, Result};
use liveupdate::Token;
use std::fs::File;

/// Each needs a machine of its own: some checks end with their first report.
pub const GROUP: Group = Group {
    name: "bug",
    scenarios: &[
        Scenario {
            name: "bug-lockdep",
            stages: &[|context| preserve(context, "lockdep")],
        },
        Scenario {
            name: "bug-kasan",
            stages: &[|context| preserve(context, "kasan")],
        },
        Scenario {
            name: "bug-leak",
            stages: &[|context| preserve(context, "leak")],
        },
    ],
};

fn preserve(context: &Context<'_>, what: &str) -> Result<()> {
    module::load_with(&context.module("luo_bug"), &format!("what={what}"))?;
    let file = File::open("/dev/luo_bug").context("opening /dev/luo_bug")?;
    create("bug")?.preserve(&file, Token(1))?;
    Ok(())
}
