// SPDX-License-Identifier: GPL-2.0

//! Virtio's source of random numbers, of which this program uses nothing but the status that a
//! driver sets. A reset clears it, and so does sleep.

use crate::pci::{Kind, Pci};
use crate::vfio::Device;
use anyhow::Result;
use rustix::io::Errno;

/// What the device is known by.
pub const KIND: Kind = (0x1af4, 0x1044);

/// Where the status is.
const BAR: u32 = 4;
const STATUS: u64 = 0x14;

/// What a driver sets after one another: it has found the device, and knows how to use it.
pub const FOUND: u8 = 1;
pub const KNOWN: u8 = 3;

/// The status of an open device.
pub fn status(device: &Device) -> Result<u8, Errno> {
    let [status] = device.read(device.region(BAR)?, STATUS)?;
    Ok(status)
}

/// Sets it; each value is one more than the last.
pub fn set_status(device: &Device, status: u8) -> Result<(), Errno> {
    device.write(device.region(BAR)?, STATUS, &[status])
}

/// The status of a device, whoever has it.
pub fn status_of(pci: &Pci) -> Result<u8> {
    Ok(pci.peek(BAR, STATUS)? as u8)
}
