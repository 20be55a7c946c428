// SPDX-License-Identifier: GPL-2.0

//! VFIO devices, formats `luo-vfio-v1` and `luo-pci-v1`.
//!
//! A file entry's `data` is the physical address of a [`VfioDevice`]. The `data` of the FLB, on which
//! all such files depend, is the physical address of [`PciDevices`]: it says which devices a kernel has
//! to keep from everybody until their files are retrieved, and is read before any driver is there.
//!
//! KHO's subtree [`STALE_DEVICES`] is [`PciDevices`] too: those that a kernel kept, and could not reset
//! before it started the next one.

use crate::assert_layout;
use core::fmt;
use zerocopy_derive::{
    FromBytes,
    Immutable,
    IntoBytes,
    KnownLayout,
    Unaligned, //
};

/// The handler's compatible string.
pub const COMPATIBLE: &core::ffi::CStr = c"luo-vfio-v1";

/// The compatible string of the FLB.
pub const DEVICES_COMPATIBLE: &core::ffi::CStr = c"luo-pci-v1";

/// How the compatible string of the FLB begins in any version.
pub const DEVICES_PREFIX: &[u8] = b"luo-pci-v";

/// The name of KHO's subtree of devices that have to be reset before anybody uses them.
pub const STALE_DEVICES: &core::ffi::CStr = c"luo-pci-stale-v1";

/// Where a PCI function is.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
    Unaligned,
)]
#[repr(C, packed)]
pub struct PciAddress {
    /// The segment, or domain.
    pub segment: u16,
    /// The bus's number.
    pub bus: u8,
    /// The device's number times 8, and the function's.
    pub devfn: u8,
}

assert_layout!(PciAddress, size 4, segment at 0, bus at 2, devfn at 3);

/// As sysfs names the device.
impl fmt::Display for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (segment, bus, devfn) = (self.segment, self.bus, self.devfn);
        write!(
            f,
            "{segment:04x}:{bus:02x}:{:02x}.{}",
            devfn >> 3,
            devfn & 7
        )
    }
}

/// What a PCI function is: the part of its configuration space that says so.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
    Unaligned,
)]
#[repr(C, packed)]
pub struct PciIdentity {
    /// The vendor's number.
    pub vendor: u16,
    /// The vendor's number for the device.
    pub device: u16,
    /// Who built it in.
    pub subsystem_vendor: u16,
    /// Their number for it.
    pub subsystem: u16,
    /// The class in the upper three bytes, the revision in the lowest.
    pub class_revision: u32,
}

assert_layout!(
    PciIdentity, size 12,
    vendor at 0, device at 2, subsystem_vendor at 4, subsystem at 6, class_revision at 8,
);

impl fmt::Display for PciIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            vendor,
            device,
            subsystem_vendor,
            subsystem,
            class_revision,
        } = *self;
        write!(
            f,
            "{vendor:04x}:{device:04x} ({subsystem_vendor:04x}:{subsystem:04x}), class {class_revision:08x}"
        )
    }
}

/// Of the header of a function's configuration space, what the next kernel checks or writes back.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
    Unaligned,
)]
#[repr(C, packed)]
pub struct PciHeader {
    /// Where its registers are; a device that is somewhere else now is refused.
    pub bars: [u32; 6],
    /// The command register. Bus mastering is enabled again when the device is attached.
    pub command: u16,
    /// Cache line size.
    pub cache_line: u8,
    /// Latency timer.
    pub latency: u8,
}

assert_layout!(PciHeader, size 28, bars at 0, command at 24, cache_line at 26, latency at 27);

/// A file's state.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
    Unaligned,
)]
#[repr(C, packed)]
pub struct VfioDevice {
    /// Where the device is.
    pub address: PciAddress,
    /// What it is, so that another one in its place is refused.
    pub identity: PciIdentity,
    /// The token of the iommufd that it is bound to, in the same session.
    pub iommufd: u64,
    /// How it can be reset and no other device, by the bits of [`VfioDevice::RESETS`]; not at all if 0.
    pub resets: u32,
    /// How it is set up.
    pub header: PciHeader,
}

assert_layout!(
    VfioDevice, size 56,
    address at 0, identity at 4, iommufd at 16, resets at 24, header at 28,
);

impl VfioDevice {
    /// What the bits of [`VfioDevice::resets`] stand for, from the lowest: the names that sysfs has for
    /// ways to reset a device, in its file `reset_method`.
    pub const RESETS: [&'static core::ffi::CStr; 7] = [
        c"device_specific",
        c"acpi",
        c"flr",
        c"af_flr",
        c"pm",
        c"bus",
        c"cxl_bus",
    ];
}

/// How many devices there can be.
pub const MAX_DEVICES: usize = (4096 - size_of::<u64>()) / size_of::<PciAddress>();

/// A number of devices: one page.
#[derive(Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C, packed)]
pub struct PciDevices {
    count: u64,
    addresses: [PciAddress; MAX_DEVICES],
}

assert_layout!(PciDevices, size 4096, count at 0, addresses at 8);

impl PciDevices {
    /// The devices, or nothing if there are more than fit.
    pub fn addresses(&self) -> Option<&[PciAddress]> {
        self.addresses.get(..usize::try_from(self.count).ok()?)
    }

    /// Adds a device; says no if there is no room.
    pub fn add(&mut self, address: PciAddress) -> bool {
        let free = usize::try_from(self.count)
            .ok()
            .and_then(|count| self.addresses.get_mut(count));
        match free {
            Some(free) => {
                *free = address;
                self.count += 1;
                true
            }
            None => false,
        }
    }

    /// Makes it a list that cannot be read, so that any device may be in it.
    pub fn spoil(&mut self) {
        self.count = u64::MAX;
    }

    /// Removes a device, if it is there.
    pub fn remove(&mut self, address: PciAddress) {
        let found = self
            .addresses()
            .and_then(|addresses| addresses.iter().position(|other| *other == address));
        let Some(found) = found else {
            return;
        };
        self.count -= 1;
        // The last one takes its place.
        let last = self.count as usize;
        self.addresses.swap(found, last);
        self.addresses[last] = PciAddress::default();
    }
}
