// SPDX-License-Identifier: GPL-2.0

//! PCI devices and their drivers, in sysfs.

use crate::procfs;
use anyhow::{Context, Result, bail, ensure};
use std::fs;
use std::path::PathBuf;

/// Where they are.
const DEVICES: &str = "/sys/bus/pci/devices";

/// A kind of device: vendor and device id.
pub type Kind = (u16, u16);

/// A device.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Pci {
    bdf: String,
}

impl Pci {
    /// The only device of a kind.
    pub fn find(kind: Kind) -> Result<Self> {
        let mut found = Self::find_all(kind)?;
        match (found.pop(), found.len()) {
            (Some(device), 0) => Ok(device),
            (_, others) => bail!(
                "{} devices {:04x}:{:04x}, expected one: was the machine made with it?",
                if others == 0 { 0 } else { others + 1 },
                kind.0,
                kind.1
            ),
        }
    }

    /// The devices of a kind, by address.
    pub fn find_all(kind: Kind) -> Result<Vec<Self>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(DEVICES).with_context(|| format!("listing {DEVICES}"))? {
            let device = Self {
                bdf: entry?.file_name().to_string_lossy().into_owned(),
            };
            if (device.id("vendor")?, device.id("device")?) == kind {
                found.push(device);
            }
        }
        found.sort();
        Ok(found)
    }

    fn id(&self, name: &str) -> Result<u16> {
        let text = procfs::read(self.path(name))?;
        let digits = text.strip_prefix("0x").unwrap_or(&text);
        u16::from_str_radix(digits, 16).with_context(|| format!("{name} of {} is {text}", self.bdf))
    }

    /// Its address: domain, bus, device, function.
    pub fn bdf(&self) -> &str {
        &self.bdf
    }

    /// One of its files in sysfs.
    pub fn path(&self, name: &str) -> PathBuf {
        PathBuf::from(format!("{DEVICES}/{}/{name}", self.bdf))
    }

    /// Its driver, if it has one.
    pub fn driver(&self) -> Option<String> {
        let link = fs::read_link(self.path("driver")).ok()?;
        Some(link.file_name()?.to_string_lossy().into_owned())
    }

    /// Takes its driver away, if it has one.
    pub fn unbind(&self) -> Result<()> {
        match self.driver() {
            Some(_) => procfs::write(self.path("driver/unbind"), &self.bdf),
            None => Ok(()),
        }
    }

    /// Gives it a certain driver, and takes the one that it has away.
    pub fn bind(&self, driver: &str) -> Result<()> {
        if self.driver().as_deref() == Some(driver) {
            return Ok(());
        }
        self.unbind()?;
        procfs::write(self.path("driver_override"), driver)?;
        procfs::write("/sys/bus/pci/drivers_probe", &self.bdf)?;
        ensure!(
            self.driver().as_deref() == Some(driver),
            "{} has driver {:?}, expected {driver}",
            self.bdf,
            self.driver()
        );
        Ok(())
    }
}
