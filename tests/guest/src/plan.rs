// SPDX-License-Identifier: GPL-2.0

//! What one virtual machine has to do, from power-on to power-off.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Where the plan lies in the initial file system.
pub const PLAN_PATH: &str = "/plan.json";
/// The directory of the kernels, each named after its flavour.
pub const KERNEL_DIR: &str = "/kernels";
/// The directory of the kernels' modules, one directory a flavour.
pub const MODULE_DIR: &str = "/modules";
/// The directory of programs that are not this one.
pub const PROGRAM_DIR: &str = "/programs";
/// The kernel parameter that says which stage of the plan a kernel is, from 0.
pub const STAGE_PARAMETER: &str = "luo.stage=";

/// What one virtual machine does.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// The kernels, in order.
    pub stages: Vec<Stage>,
    /// The names of the scenarios, each of which runs in every stage that it has.
    pub scenarios: Vec<String>,
    /// What some scenarios can be told.
    #[serde(default)]
    pub args: BTreeMap<String, String>,
}

/// One kernel of a chain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stage {
    /// Which kernel, a file below [`KERNEL_DIR`].
    pub flavour: String,
    /// Its whole command line.
    pub cmdline: String,
}
