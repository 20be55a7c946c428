// SPDX-License-Identifier: GPL-2.0

//! An NVMe controller, of which this program uses nothing but the admin queue.
//!
//! Everything that the controller remembers (that it is on, where its queue is, how far it got)
//! is lost when it is reset.

use crate::clock;
use crate::data::Mapping;
use crate::pci::{Kind, Pci};
use crate::vfio::{Device, Region};
use anyhow::{Context, Result, ensure};
use rustix::io::Errno;
use std::time::Duration;

/// What QEMU's controller is known by.
pub const KIND: Kind = (0x1b36, 0x0010);

/// The registers in its first BAR.
const MASK_INTERRUPTS: u64 = 0x0c;
const CONFIGURATION: u64 = 0x14;
const STATUS: u64 = 0x1c;
const QUEUE_SIZES: u64 = 0x24;
const SUBMISSIONS: u64 = 0x28;
const COMPLETIONS: u64 = 0x30;
const SUBMISSIONS_TAIL: u64 = 0x1000;
const COMPLETIONS_HEAD: u64 = 0x1004;

/// On, with entries of the usual sizes, and pages of 8 KiB: the kernel's driver has 4 KiB always.
const ON: u32 = 1 | 1 << 7 | 6 << 16 | 4 << 20;
const READY: u32 = 1;

/// How many entries a queue has.
const ENTRIES: u16 = 16;

/// Where things are in memory, each in a page of its own.
const QUEUE: u64 = 0;
const DONE: u64 = 0x2000;
const ANSWER: u64 = 0x4000;

/// What it needs of memory.
pub const MEMORY: u64 = 0x6000;

const PATIENCE: Duration = Duration::from_secs(20);

/// Whether one is on, whoever has it, as this program has switched it on.
pub fn is_on(pci: &Pci) -> Result<bool> {
    Ok(configuration_of(pci)? == ON && pci.peek(0, STATUS)? & READY != 0)
}

/// How one is set up, whoever has it: not at all after a reset.
pub fn configuration_of(pci: &Pci) -> Result<u32> {
    pci.peek(0, CONFIGURATION)
}

/// A bound controller, and the memory that it uses.
pub struct Nvme {
    device: Device,
    bar: Region,
    memory: Mapping,
    iova: u64,
    /// How many commands it was given so far.
    commands: u16,
}

impl Nvme {
    /// Takes a bound device that reaches `memory` at an IOVA, and that was given so many commands.
    pub fn new(device: Device, memory: Mapping, iova: u64, commands: u16) -> Result<Self> {
        let bar = device.region(0).context("the BAR of nvme")?;
        Ok(Self {
            device,
            bar,
            memory,
            iova,
            commands,
        })
    }

    /// The device.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Switches it on.
    pub fn start(&self) -> Result<()> {
        self.memory.write(0, &[0; MEMORY as usize]);
        self.write(MASK_INTERRUPTS, u32::MAX)?;
        let size = u32::from(ENTRIES - 1);
        self.write(QUEUE_SIZES, size | size << 16)?;
        self.write_address(SUBMISSIONS, QUEUE)?;
        self.write_address(COMPLETIONS, DONE)?;
        self.write(CONFIGURATION, ON)?;
        let start = clock::now();
        while !self.is_on()? {
            ensure!(
                clock::now() - start < PATIENCE,
                "nvme does not become ready"
            );
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// Whether it is on as by [`Self::start`], and ready.
    pub fn is_on(&self) -> Result<bool, Errno> {
        let (on, ready) = (self.read(CONFIGURATION)?, self.read(STATUS)?);
        Ok(on == ON && ready & READY != 0)
    }

    /// Asks it for its serial number, by way of its queue.
    pub fn serial(&mut self) -> Result<String> {
        let slot = u64::from(self.commands % ENTRIES);
        // Entries of the queue's first round are marked with ones, then with zeros, and so on.
        let round = (self.commands / ENTRIES + 1) % 2;
        self.commands += 1;
        let id = self.commands;

        self.memory.write(ANSWER, &[0; 4096]);
        let mut command = [0; 64];
        command[0] = 6;
        command[2..4].copy_from_slice(&id.to_le_bytes());
        command[24..32].copy_from_slice(&(self.iova + ANSWER).to_le_bytes());
        command[40] = 1;
        self.memory.write(QUEUE + slot * 64, &command);
        let next = u32::from(self.commands % ENTRIES);
        self.write(SUBMISSIONS_TAIL, next)?;

        let start = clock::now();
        loop {
            let done = self.memory.read(DONE + slot * 16, 16);
            let word = |at: usize| u16::from_le_bytes([done[at], done[at + 1]]);
            if word(14) & 1 == round {
                let (status, done) = (word(14) >> 1, word(12));
                ensure!(
                    (done, status) == (id, 0),
                    "nvme says {status:#x} to command {done}, expected 0 to {id}"
                );
                break;
            }
            ensure!(clock::now() - start < PATIENCE, "nvme does not answer");
            std::thread::sleep(Duration::from_millis(1));
        }
        self.write(COMPLETIONS_HEAD, next)?;
        let answer = self.memory.read(ANSWER + 4, 20);
        Ok(String::from_utf8_lossy(&answer).trim_end().to_owned())
    }

    fn read(&self, register: u64) -> Result<u32, Errno> {
        Ok(u32::from_le_bytes(self.device.read(self.bar, register)?))
    }

    fn write(&self, register: u64, value: u32) -> Result<(), Errno> {
        self.device.write(self.bar, register, &value.to_le_bytes())
    }

    fn write_address(&self, register: u64, at: u64) -> Result<(), Errno> {
        let address = self.iova + at;
        self.write(register, address as u32)?;
        self.write(register + 4, (address >> 32) as u32)
    }
}
