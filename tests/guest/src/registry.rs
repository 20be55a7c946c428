// SPDX-License-Identifier: GPL-2.0

//! The list of all scenarios.

use crate::context::Context;
use crate::scenarios;
use anyhow::Result;

/// What a scenario does in one kernel.
pub type Stage = fn(&mut Context<'_>) -> Result<()>;

/// One subject, from the first kernel of a chain to the last.
#[derive(Clone, Copy)]
pub struct Scenario {
    /// Its name, unique among all.
    pub name: &'static str,
    /// What it does in each kernel; more than one means that a kexec lies between.
    pub stages: &'static [Stage],
}

/// A group of scenarios on one subject.
#[derive(Clone, Copy)]
pub struct Group {
    /// Its name.
    pub name: &'static str,
    /// What is in it.
    pub scenarios: &'static [Scenario],
}

/// Every group.
pub const GROUPS: &[Group] = &[
    scenarios::vmm::DEMO,
    scenarios::vmm::GROUP,
    scenarios::session::GROUP,
    scenarios::file::GROUP,
    scenarios::memfd::GROUP,
    scenarios::memory::GROUP,
    scenarios::seal::GROUP,
    scenarios::process::GROUP,
    scenarios::process::STORM,
    scenarios::third::GROUP,
    scenarios::interop::GROUP,
    scenarios::dump::GROUP,
    scenarios::off::GROUP,
    scenarios::cost::GROUP,
    scenarios::device::GROUP,
    scenarios::iommu::comes_over::GROUP,
    scenarios::iommu::refused::GROUP,
    scenarios::iommu::preserved::GROUP,
    scenarios::iommu::reboot::GROUP,
    scenarios::iommu::device::GROUP,
    scenarios::iommu::format::GROUP,
    scenarios::iommu::corrupt::GROUP,
    scenarios::iommu::module::GROUP,
    scenarios::iommu::many::GROUP,
    scenarios::iommu::many::GIVEN_BACK,
    scenarios::iommu::cost::GROUP,
    scenarios::vfio::comes_over::GROUP,
    scenarios::vfio::comes_over::STOCK,
    scenarios::vfio::refused::GROUP,
    scenarios::vfio::reboot::GROUP,
    scenarios::vfio::siblings::GROUP,
    scenarios::vfio::kept::GROUP,
    scenarios::vfio::faults::GROUP,
    scenarios::vfio::lost::GROUP,
    scenarios::vfio::unclaimed::GROUP,
    scenarios::vfio::third::GROUP,
    scenarios::vfio::third::LOADED,
    scenarios::vfio::corrupt::GROUP,
    scenarios::vfio::corrupt::UNREADABLE,
    scenarios::vfio::corrupt::COUNT,
    scenarios::vfio::module::GROUP,
    scenarios::ioctl::GROUP,
    scenarios::callback::GROUP,
    scenarios::cflb::GROUP,
    scenarios::callback::MISSING,
    scenarios::modprobe::GROUP,
    scenarios::sample::HEADERS,
    scenarios::sample::GROUP,
    scenarios::sample::UNCLAIMED,
    scenarios::sample::ON_DEMAND,
    scenarios::sdk::GROUP,
    scenarios::flb::GROUP,
    scenarios::flb::AFTER,
    scenarios::unload::GROUP,
    scenarios::unload::OFF,
    scenarios::autoload::GROUP,
    scenarios::corrupt::FATAL,
    scenarios::corrupt::MEMFD,
    scenarios::corrupt::ACCEPTED,
    scenarios::corrupt::NAMES,
    scenarios::trouble::GROUP,
    scenarios::bug::GROUP,
    scenarios::selftest::GROUP,
    scenarios::shell::GROUP,
];

/// The scenario of a name.
pub fn find(name: &str) -> Option<&'static Scenario> {
    GROUPS
        .iter()
        .flat_map(|group| group.scenarios)
        .find(|scenario| scenario.name == name)
}
