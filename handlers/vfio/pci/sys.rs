// SPDX-License-Identifier: GPL-2.0

//! The parts of PCI that keeping a device needs; the unsafe code of this crate.
//!
//! C header: [`include/linux/pci.h`](srctree/include/linux/pci.h)

use kernel::{
    error::to_result,
    prelude::*,
    sync::{
        global_lock,
        GlobalGuard, //
    },
};

use core::{
    mem::MaybeUninit,
    ptr::NonNull, //
};

use crate::{
    bindings,
    Kept,
    Phase, //
};

use luo_core::kho::{
    self,
    Claimed, //
};

use luo_abi::vfio::{
    self,
    PciAddress,
    PciDevices,
    PciHeader,
    PciIdentity,
    VfioDevice, //
};

global_lock! {
    // SAFETY: `luo_pci_start()` initializes it, and nothing here is called before that.
    pub(crate) unsafe(uninit) static KEPT: Mutex<Kept> = Kept {
        all: false,
        devices: KVec::new(),
    };
}

/// Locks the list of kept devices.
pub(crate) fn kept() -> GlobalGuard<KEPT> {
    KEPT.lock()
}

/// Called by `pci.c` once, before any of the others and before there is a device.
#[no_mangle]
extern "C" fn luo_pci_start() -> bool {
    // SAFETY: This is called once.
    unsafe { KEPT.init() };
    crate::start()
}

/// Called by `pci.c`.
///
/// # Safety
///
/// `pdev` must be valid.
#[no_mangle]
unsafe extern "C" fn luo_pci_added(pdev: *mut bindings::pci_dev) {
    // SAFETY: The caller guarantees validity.
    crate::added(&unsafe { Device::from_raw(pdev) });
}

/// Called by `pci.c`.
///
/// # Safety
///
/// `pdev` must be valid.
#[no_mangle]
unsafe extern "C" fn luo_pci_removed(pdev: *mut bindings::pci_dev) {
    // SAFETY: The caller guarantees validity.
    crate::removed(&unsafe { Device::from_raw(pdev) });
}

/// Called by `pci.c`.
///
/// # Safety
///
/// `pdev` must be valid.
#[no_mangle]
unsafe extern "C" fn luo_pci_binds(pdev: *mut bindings::pci_dev) {
    // SAFETY: The caller guarantees validity.
    crate::binds(&unsafe { Device::from_raw(pdev) });
}

/// Called by `pci.c`.
#[no_mangle]
extern "C" fn luo_pci_kexec() {
    crate::kexec();
}

/// What `luo-vfio-pci` calls for a device that it is bound to.
///
/// # Safety
///
/// `pdev` must be valid.
#[no_mangle]
unsafe extern "C" fn luo_pci_kept_phase(pdev: *mut bindings::pci_dev) -> bindings::luo_pci_phase {
    // SAFETY: The caller guarantees validity.
    raw_phase(crate::phase(&unsafe { Device::from_raw(pdev) }))
}

fn raw_phase(phase: Option<Phase>) -> bindings::luo_pci_phase {
    match phase {
        None => bindings::luo_pci_phase_LUO_PCI_FREE,
        Some(Phase::Owned) => bindings::luo_pci_phase_LUO_PCI_OWNED,
        Some(Phase::Retrieved) => bindings::luo_pci_phase_LUO_PCI_RETRIEVED,
        Some(Phase::Stale) => bindings::luo_pci_phase_LUO_PCI_STALE,
    }
}

/// As [`luo_pci_kept_phase`].
///
/// # Safety
///
/// `pdev` must be valid.
#[no_mangle]
unsafe extern "C" fn luo_pci_kept_allow_resets(pdev: *mut bindings::pci_dev) {
    // SAFETY: The caller guarantees validity.
    crate::allow_resets(&unsafe { Device::from_raw(pdev) });
}

/// As [`luo_pci_kept_phase`].
///
/// # Safety
///
/// `pdev` must be valid.
#[no_mangle]
unsafe extern "C" fn luo_pci_kept_forbid_resets(pdev: *mut bindings::pci_dev) {
    // SAFETY: The caller guarantees validity.
    crate::forbid_resets(&unsafe { Device::from_raw(pdev) });
}

/// As [`luo_pci_kept_phase`].
///
/// # Safety
///
/// `pdev` must be valid.
#[no_mangle]
unsafe extern "C" fn luo_pci_kept_let_go(
    pdev: *mut bindings::pci_dev,
    phase: bindings::luo_pci_phase,
) -> bool {
    // SAFETY: The caller guarantees validity.
    let device = unsafe { Device::from_raw(pdev) };
    crate::let_go(&device, |kept| raw_phase(Some(kept)) == phase)
}

/// The record that an earlier kernel left of devices that it could not reset. To be called once.
pub(crate) fn stale_devices() -> Result<Option<Claimed<PciDevices>>> {
    // SAFETY: The name is this crate's, which reads it once.
    unsafe { kho::claim_subtree(vfio::STALE_DEVICES) }
}

/// How a device could be reset before it was kept from it.
pub(crate) struct Resets(bindings::luo_pci_resets);

impl Resets {
    /// Leaves out the ways that are not among `allowed`, which is as [`VfioDevice::resets`].
    pub(crate) fn limit(&mut self, allowed: u32) {
        let mut methods = self.0.methods.into_iter();
        self.0.methods = core::array::from_fn(|_| {
            methods
                .find(|method| allowed & reset_bit(*method) != 0)
                .unwrap_or(0)
        });
    }
}

/// The bits of [`VfioDevice::resets`] for ways that reset all of a bus: `bus` and `cxl_bus`.
const BUS_RESETS: u32 = 1 << 5 | 1 << 6;

/// The bit of [`VfioDevice::resets`] for one of a device's reset methods; none if there is none, or if
/// it is the end of the list.
fn reset_bit(method: u8) -> u32 {
    // SAFETY: PCI's own numbers are within its table.
    let Some(name) = NonNull::new(unsafe { bindings::luo_pci_reset_name(method) }.cast_mut())
    else {
        return 0;
    };
    // SAFETY: It is a C string that stays.
    let name = unsafe { CStr::from_char_ptr(name.as_ptr()) };
    let known = VfioDevice::RESETS.iter().position(|known| *known == name);
    known.map_or(0, |bit| 1 << bit)
}

/// A PCI device.
///
/// # Invariants
///
/// `0` is valid, and a reference to it is owned by this value.
pub struct Device(NonNull<bindings::pci_dev>);

// SAFETY: A device is bound to no task.
unsafe impl Send for Device {}

// SAFETY: PCI synchronizes what can be called through a shared reference, but for how it may be reset,
// which is changed with the list of kept devices locked.
unsafe impl Sync for Device {}

impl Device {
    /// Takes a reference.
    ///
    /// # Safety
    ///
    /// `pdev` must be valid.
    pub unsafe fn from_raw(pdev: *mut bindings::pci_dev) -> Self {
        // SAFETY: The caller guarantees validity.
        // INVARIANT: The reference was just taken.
        Self(unsafe { NonNull::new_unchecked(bindings::pci_dev_get(pdev)) })
    }

    /// The device at an address, if there is one.
    pub fn find(address: PciAddress) -> Option<Self> {
        let PciAddress {
            segment,
            bus,
            devfn,
        } = address;
        // SAFETY: No requirement.
        let pdev = unsafe {
            bindings::pci_get_domain_bus_and_slot(segment.into(), bus.into(), devfn.into())
        };
        // INVARIANT: The device came with a reference.
        NonNull::new(pdev).map(Self)
    }

    /// The C device.
    pub fn as_ptr(&self) -> *mut bindings::pci_dev {
        self.0.as_ptr()
    }

    /// Where it is; `None` in a segment that only Linux numbers, beyond those of 16 bits.
    pub fn address(&self) -> Option<PciAddress> {
        let pdev = self.as_ptr();
        // SAFETY: The device is valid.
        unsafe {
            Some(PciAddress {
                segment: bindings::luo_pci_segment(pdev).try_into().ok()?,
                bus: bindings::luo_pci_bus(pdev),
                devfn: (*pdev).devfn as u8,
            })
        }
    }

    /// What it says now that it is; `None` if it does not answer.
    pub fn identity(&self) -> Option<PciIdentity> {
        let [id, class_revision, subsystem] = [
            bindings::PCI_VENDOR_ID,
            bindings::PCI_CLASS_REVISION,
            bindings::PCI_SUBSYSTEM_VENDOR_ID,
        ]
        .map(|offset| self.config(offset));
        if id == u32::MAX {
            return None;
        }
        Some(PciIdentity {
            vendor: id as u16,
            device: (id >> 16) as u16,
            subsystem_vendor: subsystem as u16,
            subsystem: (subsystem >> 16) as u16,
            class_revision,
        })
    }

    /// How it is set up now.
    pub fn header(&self) -> PciHeader {
        let mut bars = [0; 6];
        for (bar, offset) in bars
            .iter_mut()
            .zip((bindings::PCI_BASE_ADDRESS_0..).step_by(4))
        {
            *bar = self.config(offset);
        }
        let line = self.config(bindings::PCI_CACHE_LINE_SIZE);
        PciHeader {
            bars,
            command: self.config(bindings::PCI_COMMAND) as u16,
            cache_line: line as u8,
            latency: (line >> 8) as u8,
        }
    }

    /// Reads four bytes of its configuration space; all ones if it does not answer.
    fn config(&self, offset: u32) -> u32 {
        let mut value = u32::MAX;
        // SAFETY: The device is valid, and so is `value` for writing.
        unsafe { bindings::pci_read_config_dword(self.as_ptr(), offset as c_int, &mut value) };
        value
    }

    /// Whether VFIO could have it.
    pub(crate) fn is_endpoint(&self) -> bool {
        // SAFETY: The device is valid.
        unsafe { bindings::luo_pci_is_endpoint(self.as_ptr()) }
    }

    /// Whether a driver other than `luo-vfio-pci` is bound, or is about to be.
    pub(crate) fn is_claimed(&self) -> bool {
        // SAFETY: The device is valid, and its driver is asked for while that is bound.
        unsafe { bindings::luo_pci_is_claimed(self.as_ptr()) }
    }

    /// Has only `luo-vfio-pci` match it.
    pub(crate) fn reserve(&self) -> Result {
        // SAFETY: The device is valid.
        to_result(unsafe { bindings::luo_pci_reserve(self.as_ptr()) })
    }

    /// Whether it is a virtual function.
    pub fn is_virtual(&self) -> bool {
        // SAFETY: The device is valid.
        unsafe { bindings::luo_pci_is_virtual(self.as_ptr()) }
    }

    /// The ways to reset it and no other device, as [`VfioDevice::resets`]. May sleep.
    ///
    /// PCI looked for them when there was no other device on its bus yet, and to have it look again may
    /// stop DMA.
    pub fn resets(&self) -> u32 {
        // SAFETY: The device is valid. Sysfs may be changing the array, which is one of bytes.
        let methods =
            unsafe { core::ptr::read_volatile(&raw const (*self.as_ptr()).reset_methods) };
        let methods = methods.into_iter().take_while(|method| *method != 0);
        let resets = methods.fold(0, |resets, method| resets | reset_bit(method));
        // SAFETY: The device is valid.
        match unsafe { bindings::luo_pci_has_siblings(self.as_ptr()) } {
            true => resets & !BUS_RESETS,
            false => resets,
        }
    }

    /// Whether a reset of its bus or slot resets others.
    pub fn shares_reset(&self) -> bool {
        // SAFETY: The device is valid.
        unsafe { bindings::luo_pci_shares_reset(self.as_ptr()) }
    }

    /// Has nobody reset it.
    pub(crate) fn forbid_resets(&self) -> Resets {
        let mut resets = MaybeUninit::uninit();
        // SAFETY: The device is valid, and all of `resets` is written.
        unsafe {
            bindings::luo_pci_forbid_resets(self.as_ptr(), resets.as_mut_ptr());
            Resets(resets.assume_init())
        }
    }

    /// Takes back [`Device::forbid_resets`].
    pub(crate) fn allow_resets(&self, resets: &Resets) {
        // SAFETY: The device is valid.
        unsafe { bindings::luo_pci_allow_resets(self.as_ptr(), &resets.0) };
    }

    /// Resets it. Fails with `EIO` if it does not answer, for which PCI would wait a minute.
    pub(crate) fn reset(&self) -> Result {
        self.identity().ok_or(EIO)?;
        // SAFETY: The device is valid.
        to_result(unsafe { bindings::pci_reset_function(self.as_ptr()) })
    }

    /// Has its driver start anew with it.
    pub(crate) fn reprobe(&self) -> Result {
        // SAFETY: The device is valid.
        to_result(unsafe { bindings::luo_pci_reprobe(self.as_ptr()) })
    }

    /// Has it raise no interrupt by its pin, before there is anybody who would serve it.
    pub(crate) fn mute(&self) {
        // SAFETY: The device is valid.
        unsafe { bindings::pci_intx(self.as_ptr(), 0) };
    }

    /// Has nobody put it to sleep, until [`Device::may_sleep`].
    pub(crate) fn stay_awake(&self) {
        // SAFETY: The device is valid.
        unsafe { bindings::luo_pci_stay_awake(self.as_ptr()) };
    }

    /// Takes back [`Device::stay_awake`].
    pub(crate) fn may_sleep(&self) {
        // SAFETY: The device is valid, and is awake because of us.
        unsafe { bindings::luo_pci_may_sleep(self.as_ptr()) };
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        // SAFETY: By the type invariant the reference is ours.
        unsafe { bindings::pci_dev_put(self.as_ptr()) };
    }
}
