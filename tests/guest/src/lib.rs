// SPDX-License-Identifier: GPL-2.0

//! Process 1 of the virtual machines in which live update is tried.
//!
//! The runner on the host packs this program, the kernels of a chain and a [`plan::Plan`] into an
//! initial file system. In each kernel of the chain the program runs one stage of each scenario of
//! the plan and then kexecs into the next kernel; in the last one it powers the machine off.
//!
//! What it has to say goes through the kernel log to the serial console, one line at a time, in
//! the forms that [`protocol`] lists.

pub mod plan;
pub mod protocol;
pub mod registry;

pub mod init;

mod clock;
mod context;
mod data;
mod debug;
mod edu;
mod errno;
mod faults;
mod handover;
mod helpers;
mod iommufd;
mod kexec;
mod kmsg;
mod module;
mod nvme;
mod pci;
mod procfs;
mod raw;
mod rng;
mod scenarios;
mod sdk;
mod trace;
mod transcript;
mod vfio;
mod vmm;
