// SPDX-License-Identifier: GPL-2.0

//! All tests.

mod compare;
mod compile_fail;
mod cost;
mod demo;
mod graft;
mod host;
mod iommu_cost;
mod kunit;
mod sample;
mod scenarios;
mod selftests;
mod watch;

pub use cost::bench;

use crate::suite::Job;
use crate::vm::DEBUG;

/// Every test, the long ones first, so that none is left over when all others are done.
pub fn all() -> Vec<Job> {
    let mut jobs = Vec::new();
    jobs.extend(scenarios::long());
    jobs.extend(compile_fail::jobs());
    jobs.extend(cost::jobs());
    jobs.extend(iommu_cost::jobs());
    jobs.extend(selftests::jobs());
    jobs.extend(compare::jobs());
    jobs.extend(scenarios::short());
    jobs.extend(watch::jobs());
    jobs.extend(kunit::jobs("rust"));
    jobs.extend(demo::jobs());
    jobs.extend(sample::jobs());
    jobs.extend(graft::jobs());
    jobs.extend(host::jobs());
    jobs
}

/// The tests on the kernel with the sanitizers, and of what it reports.
pub fn debug() -> Vec<Job> {
    let mut jobs = scenarios::debug();
    jobs.extend(watch::debug());
    jobs.extend(kunit::jobs(DEBUG));
    jobs
}
