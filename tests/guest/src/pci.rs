// SPDX-License-Identifier: GPL-2.0

//! PCI devices and their drivers, in sysfs.

use crate::data::{self, Mapping};
use crate::procfs;
use anyhow::{Context, Result, anyhow, bail, ensure};
use luo_abi::vfio::PciAddress;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Where they are.
const DEVICES: &str = "/sys/bus/pci/devices";

/// Drivers, by name.
const DRIVERS: &str = "/sys/bus/pci/drivers";

/// Has a driver be looked for that matches a device.
const PROBE: &str = "/sys/bus/pci/drivers_probe";

/// The command register in the configuration space, and its bit for the BARs.
pub const COMMAND: u64 = 4;
const MEMORY: u16 = 1 << 1;
/// Its bits for errors that are reported, and for no interrupts by a pin.
pub const SERR: u16 = 1 << 8;
pub const NO_PIN: u16 = 1 << 10;

/// The cache line size there.
pub const CACHE_LINE: u64 = 0xc;

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

    /// The device that a link leads to.
    fn linked(path: &Path) -> Result<Self> {
        let path =
            fs::canonicalize(path).with_context(|| format!("following {}", path.display()))?;
        let name = path.file_name().context("a device has a name")?;
        Ok(Self {
            bdf: name.to_string_lossy().into_owned(),
        })
    }

    /// Whether it is one of several functions of a device.
    pub fn has_siblings(&self) -> bool {
        let (device, _) = self.bdf.rsplit_once('.').unwrap_or_default();
        let function = |n| fs::exists(format!("{DEVICES}/{device}.{n}"));
        (0..8).filter(|&n| function(n).is_ok_and(|is| is)).count() > 1
    }

    /// The port that it is behind.
    pub fn port(&self) -> Result<Self> {
        let path = fs::canonicalize(self.path("")).context("looking for a port")?;
        Self::linked(path.parent().context("a device is somewhere")?)
    }

    /// Makes so many virtual functions of it, and none again; its driver has to know how.
    pub fn make_virtual(&self, count: usize) -> Result<Vec<Self>> {
        procfs::write(self.path("sriov_numvfs"), count.to_string())?;
        let function = |i| Self::linked(&self.path(&format!("virtfn{i}")));
        (0..count).map(function).collect()
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

    /// The same as a number.
    pub fn address(&self) -> Result<PciAddress> {
        let numbers: Result<Vec<u16>, _> = self
            .bdf
            .split([':', '.'])
            .map(|part| u16::from_str_radix(part, 16))
            .collect();
        match numbers?[..] {
            [segment, bus, device, function] => Ok(PciAddress {
                segment,
                bus: bus.try_into()?,
                devfn: (device << 3 | function).try_into()?,
            }),
            _ => bail!("{} is no address", self.bdf),
        }
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
        procfs::write(PROBE, &self.bdf)?;
        ensure!(
            self.driver().as_deref() == Some(driver),
            "{} has driver {:?}, expected {driver}",
            self.bdf,
            self.driver()
        );
        Ok(())
    }

    /// Tries in all ways to give it a certain driver; none of them has to work.
    pub fn try_bind(&self, driver: &str) {
        let _ = self.unbind();
        let _ = procfs::write(self.path("driver_override"), driver);
        let _ = procfs::write(PROBE, &self.bdf);
        let _ = procfs::write(format!("{DRIVERS}/{driver}/bind"), &self.bdf);
    }

    /// Has the kernel forget it, until [`rescan`] finds it again.
    pub fn remove(&self) -> Result<()> {
        procfs::write(self.path("remove"), "1")?;
        ensure!(!self.path("").exists(), "{} is still there", self.bdf);
        Ok(())
    }

    /// Has the port before it forward nothing to it for a while, so that it does not answer.
    pub fn silenced<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        const SECONDARY_BUS: u64 = 0x19;
        let port = self.port()?;
        let bus: [u8; 1] = port.config(SECONDARY_BUS)?;
        port.set_config(SECONDARY_BUS, &[0xff])?;
        let result = match self.config(0)? {
            [0xff, 0xff] => work(),
            id => Err(anyhow!("{} still answers: {id:x?}", self.bdf)),
        };
        port.set_config(SECONDARY_BUS, &bus)?;
        result
    }

    fn open_config(&self) -> Result<File> {
        let path = self.path("config");
        let file = File::options().read(true).write(true).open(&path);
        file.with_context(|| format!("opening {}", path.display()))
    }

    /// Reads its configuration space, whoever has it.
    pub fn config<const N: usize>(&self, at: u64) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        self.open_config()?.read_exact_at(&mut bytes, at)?;
        Ok(bytes)
    }

    /// Writes to its configuration space, whoever has it.
    pub fn set_config(&self, at: u64, bytes: &[u8]) -> Result<()> {
        Ok(self.open_config()?.write_all_at(bytes, at)?)
    }

    /// Its command register, whoever has it.
    pub fn command(&self) -> Result<u16> {
        Ok(u16::from_le_bytes(self.config(COMMAND)?))
    }

    /// Has nobody put it to sleep.
    pub fn stay_awake(&self) -> Result<()> {
        procfs::write(self.path("power/control"), "on")
    }

    /// Reads four bytes of a BAR, whoever has the device, and without the reset that comes with a
    /// driver.
    pub fn peek(&self, bar: u32, at: u64) -> Result<u32> {
        let command = self.command()?;
        self.set_config(COMMAND, &(command | MEMORY).to_le_bytes())?;
        let path = self.path(&format!("resource{bar}"));
        let file = File::options().read(true).write(true).open(&path);
        let file = file.with_context(|| format!("opening {}", path.display()))?;
        let word = Mapping::new(&file, data::page())?.word(at);
        self.set_config(COMMAND, &command.to_le_bytes())?;
        Ok(word)
    }
}

/// Has the kernel look for devices that it does not know.
pub fn rescan() -> Result<()> {
    procfs::write("/sys/bus/pci/rescan", "1")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_what_it_was() {
        for bdf in ["0000:00:1f.7", "0001:c1:00.0"] {
            let bdf = bdf.to_owned();
            let address = Pci { bdf: bdf.clone() }.address().unwrap();
            assert_eq!(address.to_string(), bdf);
        }
    }
}
