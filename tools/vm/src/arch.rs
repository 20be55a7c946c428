// SPDX-License-Identifier: GPL-2.0

//! All that differs between processors.

use anyhow::{Result, bail};

/// A processor's virtual machine.
#[derive(Clone, Copy, Debug)]
pub struct Arch {
    /// The emulator.
    pub qemu: &'static str,
    /// The Debian package that it comes in.
    pub package: &'static str,
    /// Arguments that choose the machine.
    pub machine: &'static [&'static str],
    /// Arguments that give the machine an IOMMU, before any device behind it.
    pub iommu: &'static [&'static str],
    /// What the IOMMU needs in that machine with the host's own virtualization.
    pub iommu_kvm: &'static [&'static str],
    /// What kernels are told to use it.
    pub iommu_parameter: &'static str,
    /// The serial console as the kernel calls it.
    pub console: &'static str,
    /// The kernel's image.
    pub image: &'static str,
    /// What kernels are told besides.
    pub parameter: &'static str,
    /// What kernels with the sanitizers are told besides that.
    pub debug: &'static str,
}

const ARCHES: [(&str, Arch); 2] = [
    (
        "x86_64",
        Arch {
            qemu: "qemu-system-x86_64",
            package: "qemu-system-x86",
            machine: &["-machine", "q35", "-cpu", "max"],
            iommu: &["-device", "intel-iommu"],
            // VFIO takes only a device whose interrupts the IOMMU remaps.
            iommu_kvm: &["-machine", "kernel-irqchip=split"],
            // On a busy host the timer may be late; without an IOMMU the kernel makes do with that.
            iommu_parameter: "intel_iommu=on no_timer_check",
            console: "ttyS0",
            image: "bzImage",
            // Linux 7.3's clock watchdog waits for another processor with interrupts off, and gives
            // up when time has passed. While the clock is jiffies none passes then, and if the
            // other processor is switching to the next clock, both wait for ever.
            parameter: "tsc=nowatchdog",
            // The first processor forgets for a moment, with interrupts on, that it has five
            // levels, and KASAN takes an interrupt's memory for wild then.
            debug: "no5lvl",
        },
    ),
    (
        "aarch64",
        Arch {
            qemu: "qemu-system-aarch64",
            package: "qemu-system-arm",
            machine: &["-machine", "virt", "-cpu", "max"],
            iommu: &["-machine", "iommu=smmuv3"],
            iommu_kvm: &[],
            iommu_parameter: "",
            console: "ttyAMA0",
            image: "Image",
            parameter: "",
            debug: "",
        },
    ),
];

impl Arch {
    /// The processor of the machine that this runs on, which the kernels are for as well.
    pub fn host() -> Result<Self> {
        let name = std::env::consts::ARCH;
        match ARCHES.iter().find(|(arch, _)| *arch == name) {
            Some((_, arch)) => Ok(*arch),
            None => {
                bail!("no virtual machine is known for {name}; add one to tools/vm/src/arch.rs")
            }
        }
    }
}
