// SPDX-License-Identifier: GPL-2.0

//! What one virtual machine has to do, from power-on to power-off.

use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

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
    /// Files of the host that lie at the same places in the machine: modprobe and what it is
    /// linked to, if the kernel is to load modules itself.
    #[serde(default)]
    pub host_files: Vec<String>,
}

impl Plan {
    /// The folders that [`Self::host_files`] lie in, outer ones first.
    pub fn host_folders(&self) -> BTreeSet<&Path> {
        let root = Path::new("/");
        self.host_files
            .iter()
            .flat_map(|file| Path::new(file).ancestors().skip(1))
            .filter(|folder| *folder != root)
            .collect()
    }
}

/// One kernel of a chain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stage {
    /// Which kernel, a file below [`KERNEL_DIR`].
    pub flavour: String,
    /// Its whole command line.
    pub cmdline: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_come_before_what_is_in_them() {
        let plan = Plan {
            host_files: vec!["/sbin/modprobe".to_owned(), "/lib/x/libc.so.6".to_owned()],
            ..Plan::default()
        };
        let expected = ["/lib", "/lib/x", "/sbin"].map(Path::new);
        assert!(plan.host_folders().into_iter().eq(expected));
    }
}
