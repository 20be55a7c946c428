// SPDX-License-Identifier: GPL-2.0

//! PCI devices in the hands of a program: VFIO by way of its character devices.
//!
//! C header: [`include/uapi/linux/vfio.h`](srctree/include/uapi/linux/vfio.h)
//!
//! Every call gives the errno that the kernel gave.

use crate::context::Context;
use crate::iommufd::{self, Iommufd};
use crate::pci::Pci;
use crate::{module, raw};
use anyhow::{Context as _, Result, ensure};
use rustix::io::Errno;
use rustix::ioctl::opcode;
use std::ffi::c_void;
use std::fs::{self, File};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use vfio_bindings::bindings::vfio::*;

/// The driver that gives any device away.
pub const DRIVER: &str = "vfio-pci";

/// The driver for devices that survive, and the module that it is in.
pub const KEEPER: &str = "luo-vfio-pci";
pub const HANDLER: &str = "luo_vfio";

/// What it is made of, in the order in which it is loaded, where it is not built in.
const MODULES: [&str; 6] = [
    "iommufd",
    "irqbypass",
    "vfio",
    "vfio_iommu_type1",
    "vfio-pci-core",
    "vfio-pci",
];

/// The numbers of ioctls.
pub const BIND: u32 = number(18);
pub const ATTACH: u32 = number(19);
pub const DETACH: u32 = number(20);
pub const REGION_INFO: u32 = number(8);
/// How containers map, which an iommufd can do as well.
pub const MAP_DMA: u32 = number(13);
const SET_IRQS: u32 = number(10);
pub const RESET: u32 = number(11);
const HOT_RESET: u32 = number(13);
pub const SET_IOMMU: u32 = number(2);
pub const GROUP_SET_CONTAINER: u32 = number(4);
pub const GROUP_GET_DEVICE_FD: u32 = number(6);
const IOEVENTFD: u32 = number(16);
const FEATURE: u32 = number(17);

/// Kinds of interrupts.
pub const MSI: u32 = VFIO_PCI_MSI_IRQ_INDEX;
pub const MSI_X: u32 = VFIO_PCI_MSIX_IRQ_INDEX;

/// The region that is the configuration space.
pub const CONFIG: u32 = VFIO_PCI_CONFIG_REGION_INDEX;

/// The number of an ioctl.
const fn number(command: u32) -> u32 {
    opcode::none(VFIO_TYPE, (VFIO_BASE + command) as u8)
}

/// Sees to it that VFIO and iommufd are there, built in or loaded.
pub fn load(context: &Context<'_>) -> Result<()> {
    for name in MODULES {
        let path = context.module(name);
        if path.exists() && !module::is_loaded(&name.replace('-', "_")) {
            module::load(&path)?;
        }
    }
    for path in [iommufd::PATH, "/sys/bus/pci/drivers/vfio-pci"] {
        ensure!(
            Path::new(path).exists(),
            "{path} is not there: was the kernel built with VFIO?"
        );
    }
    Ok(())
}

/// Loads the handler with its driver, if it is not there.
pub fn load_handler(context: &Context<'_>) -> Result<()> {
    match module::is_loaded(HANDLER) {
        true => Ok(()),
        false => module::load(&context.module(HANDLER)),
    }
}

/// A region of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// Where it is in the device's file.
    pub offset: u64,
    /// Its bytes.
    pub size: u64,
}

/// A device that is open. It can be used once it is bound.
#[derive(Debug)]
pub struct Device {
    file: File,
}

impl AsFd for Device {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl From<File> for Device {
    fn from(file: File) -> Self {
        Self { file }
    }
}

/// Where a device is opened that has a driver of VFIO's.
pub fn cdev(pci: &Pci) -> Result<PathBuf> {
    let dir = pci.path("vfio-dev");
    let mut entries = fs::read_dir(&dir).with_context(|| format!("listing {}", dir.display()))?;
    let entry = entries.next().context("a device has no character device")?;
    Ok(Path::new("/dev/vfio/devices").join(entry?.file_name()))
}

impl Device {
    /// Opens a device, which gets [`DRIVER`] for that.
    pub fn open(pci: &Pci) -> Result<Self> {
        Self::open_with(pci, DRIVER)
    }

    /// Opens a device, which gets a certain driver for that.
    pub fn open_with(pci: &Pci, driver: &str) -> Result<Self> {
        pci.bind(driver)?;
        let path = cdev(pci)?;
        Self::try_open(&path).with_context(|| format!("opening {}", path.display()))
    }

    /// Opens a device.
    pub fn try_open(path: &Path) -> Result<Self, Errno> {
        let file = File::options().read(true).write(true).open(path);
        Ok(Self {
            file: file.map_err(errno)?,
        })
    }

    /// Binds it to an iommufd, until it is closed; its id there.
    pub fn bind(&self, iommufd: &Iommufd) -> Result<u32, Errno> {
        let arg = vfio_device_bind_iommufd {
            argsz: size_of::<vfio_device_bind_iommufd>() as u32,
            iommufd: iommufd.as_fd().as_raw_fd(),
            ..Default::default()
        };
        Ok(raw::ioctl_with(&self.file, BIND, arg)?.out_devid)
    }

    /// Attaches it to an IOAS or a page table, in place of another if there is one; the id of the
    /// page table that it uses then.
    pub fn attach(&self, id: u32) -> Result<u32, Errno> {
        let arg = vfio_device_attach_iommufd_pt {
            argsz: size_of::<vfio_device_attach_iommufd_pt>() as u32,
            pt_id: id,
            ..Default::default()
        };
        Ok(raw::ioctl_with(&self.file, ATTACH, arg)?.pt_id)
    }

    /// Detaches it.
    pub fn detach(&self) -> Result<(), Errno> {
        let arg = vfio_device_detach_iommufd_pt {
            argsz: size_of::<vfio_device_detach_iommufd_pt>() as u32,
            ..Default::default()
        };
        raw::ioctl_with(&self.file, DETACH, arg).map(drop)
    }

    /// Resets it.
    pub fn reset(&self) -> Result<(), Errno> {
        // SAFETY: this call takes no argument.
        unsafe { raw::ioctl(&self.file, RESET, std::ptr::null_mut::<c_void>()) }.map(drop)
    }

    /// Resets its bus, with all that is there; they have to be its owner's.
    pub fn hot_reset(&self) -> Result<(), Errno> {
        // The size of this, no flags, and no groups.
        raw::ioctl_with(&self.file, HOT_RESET, [12_u32, 0, 0]).map(drop)
    }

    /// Has the first interrupt of a kind come as an event, or disables all of that kind.
    pub fn interrupt(&self, kind: u32, event: Option<&OwnedFd>) -> Result<(), Errno> {
        /// The header's structure, and an event.
        #[repr(C)]
        #[derive(Clone, Copy)]
        struct Set {
            argsz: u32,
            flags: u32,
            index: u32,
            start: u32,
            count: u32,
            event: i32,
        }
        let (data, count, event) = match event {
            Some(event) => (VFIO_IRQ_SET_DATA_EVENTFD, 1, event.as_raw_fd()),
            None => (VFIO_IRQ_SET_DATA_NONE, 0, 0),
        };
        let arg = Set {
            argsz: size_of::<Set>() as u32,
            flags: data | VFIO_IRQ_SET_ACTION_TRIGGER,
            index: kind,
            start: 0,
            count,
            event,
        };
        raw::ioctl_with(&self.file, SET_IRQS, arg).map(drop)
    }

    /// Has an event write four bytes to a region, or no longer.
    pub fn write_on(
        &self,
        region: Region,
        at: u64,
        value: u32,
        event: Option<&OwnedFd>,
    ) -> Result<(), Errno> {
        let arg = vfio_device_ioeventfd {
            argsz: size_of::<vfio_device_ioeventfd>() as u32,
            flags: VFIO_DEVICE_IOEVENTFD_32,
            offset: region.offset + at,
            data: value.into(),
            fd: event.map_or(-1, AsRawFd::as_raw_fd),
            ..Default::default()
        };
        raw::ioctl_with(&self.file, IOEVENTFD, arg).map(drop)
    }

    /// Lets it sleep as long as nobody uses it, or not.
    pub fn low_power(&self, on: bool) -> Result<(), Errno> {
        let feature = match on {
            true => VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY,
            false => VFIO_DEVICE_FEATURE_LOW_POWER_EXIT,
        };
        // The structure's header is all that these have.
        let arg = [8, VFIO_DEVICE_FEATURE_SET | feature];
        raw::ioctl_with(&self.file, FEATURE, arg).map(drop)
    }

    /// Puts it into a power state by its own registers: 0 is awake, 3 asleep.
    pub fn set_power_state(&self, state: u8) -> Result<()> {
        const CAPABILITIES: u64 = 0x34;
        const POWER: u8 = 1;
        let [mut at] = self.config(CAPABILITIES)?;
        loop {
            ensure!(at != 0, "the device has no power management");
            let [id, next] = self.config(at.into())?;
            if id == POWER {
                break;
            }
            at = next;
        }
        Ok(self.set_config(u64::from(at) + 4, &[state])?)
    }

    /// One of its regions: a BAR by its number, or [`CONFIG`].
    pub fn region(&self, index: u32) -> Result<Region, Errno> {
        let arg = vfio_region_info {
            argsz: size_of::<vfio_region_info>() as u32,
            index,
            ..Default::default()
        };
        let info = raw::ioctl_with(&self.file, REGION_INFO, arg)?;
        Ok(Region {
            offset: info.offset,
            size: info.size,
        })
    }

    /// Reads bytes of a region.
    pub fn read<const N: usize>(&self, region: Region, at: u64) -> Result<[u8; N], Errno> {
        let mut bytes = [0; N];
        let done = self.file.read_exact_at(&mut bytes, region.offset + at);
        done.map_err(errno)?;
        Ok(bytes)
    }

    /// Writes bytes of a region.
    pub fn write(&self, region: Region, at: u64, bytes: &[u8]) -> Result<(), Errno> {
        let done = self.file.write_all_at(bytes, region.offset + at);
        done.map_err(errno)
    }

    /// Reads its configuration space.
    pub fn config<const N: usize>(&self, at: u64) -> Result<[u8; N], Errno> {
        self.read(self.region(CONFIG)?, at)
    }

    /// Writes to its configuration space.
    pub fn set_config(&self, at: u64, bytes: &[u8]) -> Result<(), Errno> {
        self.write(self.region(CONFIG)?, at, bytes)
    }

    /// Whether it may do DMA.
    pub fn bus_master(&self) -> Result<bool, Errno> {
        Ok(u16::from_le_bytes(self.config(COMMAND)?) & MASTER != 0)
    }

    /// Lets it do DMA, or not.
    pub fn set_bus_master(&self, on: bool) -> Result<(), Errno> {
        let command = u16::from_le_bytes(self.config(COMMAND)?);
        let command = if on {
            command | MASTER
        } else {
            command & !MASTER
        };
        self.set_config(COMMAND, &command.to_le_bytes())
    }
}

/// The command register in the configuration space.
const COMMAND: u64 = 4;
/// Its bit for DMA.
const MASTER: u16 = 1 << 2;

fn errno(error: std::io::Error) -> Errno {
    Errno::from_io_error(&error).unwrap_or(Errno::NOSYS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_the_headers() {
        assert_eq!(BIND, 0x3b76);
        assert_eq!(REGION_INFO, 0x3b6c);
    }
}
