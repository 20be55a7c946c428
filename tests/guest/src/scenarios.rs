// SPDX-License-Identifier: GPL-2.0

//! The scenarios, one module a subject.

pub mod autoload;
pub mod bug;
pub mod callback;
pub mod cflb;
pub mod corrupt;
pub mod cost;
pub mod device;
pub mod dump;
pub mod file;
pub mod flb;
pub mod interop;
pub mod ioctl;
pub mod iommu;
pub mod memfd;
pub mod memory;
pub mod modprobe;
pub mod off;
pub mod process;
pub mod sample;
pub mod sdk;
pub mod seal;
pub mod selftest;
pub mod session;
pub mod shell;
pub mod third;
pub mod trouble;
pub mod unload;
pub mod vfio;
pub mod vmm;
