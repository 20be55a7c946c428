// SPDX-License-Identifier: GPL-2.0

//! QEMU's educational device, which has little but a buffer and DMA to and from it.

use crate::clock;
use crate::pci::{Kind, Pci};
use crate::protocol::Registers;
use crate::vfio::{Device, Region};
use anyhow::{Context, Result, bail, ensure};
use rustix::io::Errno;
use std::time::Duration;

/// What the device is known by.
pub const KIND: Kind = (0x1234, 0x11e8);

/// The registers in its only BAR.
const IDENTIFICATION: u64 = 0x00;
pub const LIVENESS: u64 = 0x04;
const FACTORIAL: u64 = 0x08;
const STATUS: u64 = 0x20;
const DMA_SOURCE: u64 = 0x80;
const DMA_DESTINATION: u64 = 0x88;
const DMA_COUNT: u64 = 0x90;
const DMA_COMMAND: u64 = 0x98;

/// A bit of the status: a factorial is being calculated.
const CALCULATING: u32 = 1;

/// Bits of the DMA command: it goes on; it is to memory.
const RUN: u64 = 1;
const TO_MEMORY: u64 = 2;

/// Where DMA finds the buffer.
const BUFFER: u64 = 0x40000;

/// The most that is moved at once. The buffer has twice as much, but some releases of QEMU end
/// with an error when DMA comes to the end of it.
pub const PIECE: u64 = 2048;

/// How long a piece may take; the device takes 100 ms.
const PATIENCE: Duration = Duration::from_secs(20);

/// One that is bound to an iommufd.
#[derive(Debug)]
pub struct Edu {
    device: Device,
    bar: Region,
}

impl Edu {
    /// The machine's only one.
    pub fn find() -> Result<Pci> {
        Pci::find(KIND)
    }

    /// Takes a bound device, and lets it do DMA.
    pub fn new(device: Device) -> Result<Self> {
        let edu = Self::as_it_is(device)?;
        edu.device.set_bus_master(true)?;
        Ok(edu)
    }

    /// Takes a bound device, and writes nothing to it.
    pub fn as_it_is(device: Device) -> Result<Self> {
        let bar = device.region(0).context("the BAR of edu")?;
        let edu = Self { device, bar };
        let id = edu.read(IDENTIFICATION)?;
        ensure!(id & 0xffff == 0xed, "edu's identification is {id:#x}");
        Ok(edu)
    }

    /// The device, to be attached to one address space or another.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Expects it to answer.
    pub fn expect_alive(&self, value: u32) -> Result<()> {
        self.set_liveness(value)?;
        let found = self.liveness()?;
        ensure!(found == !value, "edu answers {found:#x} to {value:#x}");
        Ok(())
    }

    /// Sets what [`Self::liveness`] reads, inverted. The device keeps it as long as it has power.
    pub fn set_liveness(&self, value: u32) -> Result<(), Errno> {
        self.device.write(self.bar, LIVENESS, &value.to_le_bytes())
    }

    /// The inverse of what was set.
    pub fn liveness(&self) -> Result<u32, Errno> {
        self.read(LIVENESS)
    }

    /// Has it calculate a factorial.
    pub fn calculate(&self, n: u32) -> Result<()> {
        self.device.write(self.bar, FACTORIAL, &n.to_le_bytes())?;
        let start = clock::now();
        while self.read(STATUS)? & CALCULATING != 0 {
            ensure!(
                clock::now() - start < PATIENCE,
                "edu does not finish calculating {n}!"
            );
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// All that its registers say.
    pub fn registers(&self) -> Result<Registers> {
        Ok(Registers {
            device: "edu".to_owned(),
            liveness: self.liveness()?,
            factorial: self.read(FACTORIAL)?,
            source: self.read_wide(DMA_SOURCE)?,
            destination: self.read_wide(DMA_DESTINATION)?,
            count: self.read_wide(DMA_COUNT)?,
            command: self.read_wide(DMA_COMMAND)?,
        })
    }

    fn read_wide(&self, register: u64) -> Result<u64, Errno> {
        Ok(u64::from_le_bytes(self.device.read(self.bar, register)?))
    }

    fn read(&self, register: u64) -> Result<u32, Errno> {
        Ok(u32::from_le_bytes(self.device.read(self.bar, register)?))
    }

    /// Moves up to [`PIECE`] bytes from memory at an IOVA into the device.
    pub fn load(&self, iova: u64, len: u64) -> Result<()> {
        self.dma(iova, BUFFER, len, 0)
    }

    /// Moves up to [`PIECE`] bytes from the device into memory at an IOVA.
    pub fn store(&self, iova: u64, len: u64) -> Result<()> {
        self.dma(BUFFER, iova, len, TO_MEMORY)
    }

    /// Copies any number of bytes from one place of memory to another.
    pub fn copy(&self, from: u64, to: u64, len: u64) -> Result<()> {
        for at in (0..len).step_by(PIECE as usize) {
            let piece = (len - at).min(PIECE);
            self.load(from + at, piece)?;
            self.store(to + at, piece)?;
        }
        Ok(())
    }

    fn dma(&self, from: u64, to: u64, len: u64, direction: u64) -> Result<()> {
        ensure!(len <= PIECE, "{len} bytes are more than edu moves at once");
        let registers = [
            (DMA_SOURCE, from),
            (DMA_DESTINATION, to),
            (DMA_COUNT, len),
            (DMA_COMMAND, RUN | direction),
        ];
        for (register, value) in registers {
            let bytes = value.to_le_bytes();
            self.device.write(self.bar, register, &bytes)?;
        }
        let start = clock::now();
        loop {
            if self.read_wide(DMA_COMMAND)? & RUN == 0 {
                return Ok(());
            }
            if clock::now() - start > PATIENCE {
                bail!("DMA from {from:#x} to {to:#x} does not end");
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}
