// SPDX-License-Identifier: GPL-2.0

//! Devices of a machine that programs in it can use.

use anyhow::{Error, Result, bail};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// A device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Device {
    /// What it is.
    pub kind: Kind,
    /// Whether it is behind a root port of its own, so that its bus can be reset.
    pub port: bool,
    /// Whether there are two of them there.
    pub twins: bool,
}

/// What a device is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// QEMU's educational device, which does DMA.
    Edu,
    /// A disk; two of them are controllers without one.
    Nvme,
    /// A disk's controller without a disk, which can have two virtual functions.
    NvmeSriov,
    /// A source of random numbers.
    Rng,
}

/// The first slot of the devices.
const SLOT: usize = 0x8;

impl Device {
    /// An educational device on the root bus.
    pub const EDU: Self = Self {
        kind: Kind::Edu,
        port: false,
        twins: false,
    };

    /// Two devices that share a bus behind a port.
    pub const fn twins(kind: Kind) -> Self {
        Self {
            kind,
            port: true,
            twins: true,
        }
    }

    /// A device behind a port of its own.
    pub const fn port(kind: Kind) -> Self {
        Self {
            kind,
            port: true,
            twins: false,
        }
    }

    /// Makes in a folder what it needs there.
    pub fn prepare(self, i: usize, dir: &Path) -> Result<()> {
        if self.kind == Kind::Nvme && !self.twins {
            File::create(disk(i, dir))?.set_len(64 << 20)?;
        }
        Ok(())
    }

    /// The emulator's arguments; `i` tells the devices of a machine apart, and says in which slot
    /// this one is.
    pub fn args(self, i: usize, dir: &Path) -> Vec<String> {
        let slot = format!("addr={:#x}", SLOT + i);
        let mut args = Vec::new();
        let mut push = |option: &str, value: String| args.extend([option.to_owned(), value]);
        let place = match self.port {
            true => {
                let port = format!("pcie-root-port,id=port{i},chassis={},{slot}", i + 1);
                push("-device", port);
                format!("bus=port{i}")
            }
            false => slot,
        };
        let device = match self.kind {
            // It reaches all memory, and not only the first 256 MiB.
            Kind::Edu => format!("edu,dma_mask={}", u64::MAX),
            Kind::Nvme if self.twins => {
                push("-device", format!("nvme-subsys,id=subsystem{i}"));
                format!("nvme,serial=luo{i},subsys=subsystem{i}")
            }
            Kind::Nvme => {
                let file = disk(i, dir);
                let file = format!("driver=file,filename={},node-name=disk{i}", file.display());
                push("-blockdev", file);
                format!("nvme,drive=disk{i},serial=luo{i}")
            }
            Kind::NvmeSriov => {
                push("-device", format!("nvme-subsys,id=subsystem{i}"));
                format!(
                    "nvme,serial=luo{i},subsys=subsystem{i},sriov_max_vfs=2,\
                     sriov_vq_flexible=4,sriov_vi_flexible=2"
                )
            }
            Kind::Rng => "virtio-rng-pci,disable-legacy=on,iommu_platform=on".to_owned(),
        };
        if self.twins {
            push("-device", format!("{device},{place},addr=0.1"));
            push(
                "-device",
                format!("{device},{place},addr=0.0,multifunction=on"),
            );
        } else {
            push("-device", format!("{device},{place}"));
        }
        args
    }
}

fn disk(i: usize, dir: &Path) -> PathBuf {
    dir.join(format!("disk{i}"))
}

impl FromStr for Device {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let (kind, twins) = match text.strip_prefix("twins:") {
            Some(kind) => (kind, true),
            None => (text, false),
        };
        let (kind, port) = match kind.strip_prefix("port:") {
            Some(kind) => (kind, true),
            None => (kind, twins),
        };
        let kind = match kind {
            "edu" => Kind::Edu,
            "nvme" => Kind::Nvme,
            "nvme-sriov" => Kind::NvmeSriov,
            "rng" => Kind::Rng,
            _ => bail!("no device {kind} is known; there are edu, nvme, nvme-sriov and rng"),
        };
        Ok(Self { kind, port, twins })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_has_a_name() {
        assert_eq!("edu".parse::<Device>().unwrap(), Device::EDU);
        let expected = Device::port(Kind::Nvme);
        assert_eq!("port:nvme".parse::<Device>().unwrap(), expected);
        let expected = Device::twins(Kind::Edu);
        assert_eq!("twins:edu".parse::<Device>().unwrap(), expected);
        assert!("floppy".parse::<Device>().is_err());
    }

    #[test]
    fn a_port_comes_before_what_is_behind_it() {
        let device = "port:rng".parse::<Device>().unwrap();
        let args = device.args(1, Path::new("/")).join(" ");
        assert_eq!(
            args,
            "-device pcie-root-port,id=port1,chassis=2,addr=0x9 \
             -device virtio-rng-pci,disable-legacy=on,iommu_platform=on,bus=port1"
        );
    }
}
