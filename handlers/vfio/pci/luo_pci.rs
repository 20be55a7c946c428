// SPDX-License-Identifier: GPL-2.0

//! Keeps the PCI devices that came from the previous kernel for those who had them.
//!
//! A device whose file is preserved goes on as it was: nobody resets it on the way. So the next kernel
//! has to see to it that no driver takes it, and that nothing puts it to sleep or resets it, from
//! before the first driver could and until its owner is back. That cannot wait for a module; this crate
//! is built in.
//!
//! The devices are known from an FLB, [`Devices`], on which all preserved VFIO files depend. A device is
//! kept in three phases:
//!
//! - `Phase::Owned`: for the one who retrieves its file.
//! - `Phase::Retrieved`: for the one who did, until it is bound to the iommufd that it came with.
//! - `Phase::Stale`: it is nobody's, and holds what somebody left in it. It has to be reset before
//!   anybody uses it. One that cannot be stays in this phase until the machine itself is reset; further
//!   kernels are told.
//!
//! Only `luo-vfio-pci` binds a kept device, and it does with it what the phase says.
//!
//! If it cannot be known which devices were preserved, all that could have been are stale.
//!
//! The list of kept devices has a mutex. No lock that others hold while they come here is taken under it.

mod bindings;
mod sys;

use kernel::{
    fmt,
    module::ThisModule,
    prelude::*, //
};

use luo_abi::vfio::{
    self,
    PciAddress,
    PciDevices, //
};
use luo_core::{
    flb::{
        self,
        Declared,
        FileLifecycleBound,
        Flb,
        Incoming, //
    },
    kho, //
};

use crate::sys::Resets;

pub use crate::sys::Device;

const __LOG_PREFIX: &[u8] = b"luo_pci\0";

/// The crate is built in, so it belongs to no module.
#[doc(hidden)]
pub struct LocalModule;

impl kernel::ModuleMetadata for LocalModule {
    const NAME: &'static CStr = c"luo_pci";
    // SAFETY: Built-in code has a null `THIS_MODULE`.
    const THIS_MODULE: ThisModule = unsafe { ThisModule::from_ptr(core::ptr::null_mut()) };
}

/// The PCI devices behind all preserved VFIO files.
pub struct Devices;

impl Declared for Devices {
    // Modules get at functions only, so this one is not to be part of theirs.
    #[inline(never)]
    fn flb() -> &'static Flb<Self> {
        static FLB: Flb<Devices> = Flb::new();
        &FLB
    }
}

#[vtable]
impl FileLifecycleBound for Devices {
    const COMPATIBLE: &'static CStr = vfio::DEVICES_COMPATIBLE;

    type State = PciDevices;

    type Object = KVec<PciAddress>;

    /// No device yet; each file's handler adds its own.
    fn preserve(_state: &mut PciDevices) -> Result<KVec<PciAddress>> {
        Ok(KVec::new())
    }

    fn unpreserve(_state: &PciDevices, _addresses: KVec<PciAddress>) {}

    fn retrieve(state: &PciDevices) -> Result<KVec<PciAddress>> {
        let mut addresses = KVec::new();
        addresses.extend_from_slice(state.addresses().ok_or(EINVAL)?, GFP_KERNEL)?;
        Ok(addresses)
    }

    /// Devices that nobody claimed belong to files of which nothing could be read.
    fn finish(addresses: KVec<PciAddress>) {
        for address in addresses {
            drop(Claim::new(address));
        }
    }
}

/// Something of a format, for the log.
#[derive(Clone, Copy)]
pub struct Shown<T>(pub T);

impl<T: core::fmt::Display> fmt::Display for Shown<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What a device is kept for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// It is kept as it is for its owner.
    Owned,
    /// Its owner has its file, and has not bound it yet.
    Retrieved,
    /// It is nobody's; it has to be reset before anybody uses it.
    Stale,
}

/// Which devices are kept.
struct Kept {
    /// Whether those that are not in the list are kept too, since the record is unreadable.
    all: bool,
    devices: KVec<KeptDevice>,
}

struct KeptDevice {
    address: PciAddress,
    phase: Phase,
    /// There while the device is there and cannot be reset.
    resets: Option<Resets>,
}

impl Kept {
    fn find(&mut self, address: PciAddress) -> Option<&mut KeptDevice> {
        self.devices
            .iter_mut()
            .find(|device| device.address == address)
    }

    fn find_device(&mut self, device: &Device) -> Option<&mut KeptDevice> {
        self.find(device.address()?)
    }

    /// Moves a device from one phase to another; says whether it was in the first.
    fn advance(&mut self, address: PciAddress, from: Phase, to: Phase) -> bool {
        match self.find(address) {
            Some(device) if device.phase == from => {
                device.phase = to;
                true
            }
            _ => false,
        }
    }
}

/// Reads which devices are kept; says whether there are any. Called before any device is added.
fn start() -> bool {
    let mut devices = KVec::new();
    // Should a device be in both, it is stale.
    let read = read_stale(&mut devices).and_then(|()| read_record(&mut devices));
    let mut kept = sys::kept();
    kept.devices = devices;
    if let Err(err) = read {
        pr_err!("the record of preserved devices is unusable ({err:?}): no driver gets a device before luo-vfio-pci has reset it\n");
        kept.all = true;
    }
    kept.all || !kept.devices.is_empty()
}

/// The devices that have owners.
fn read_record(devices: &mut KVec<KeptDevice>) -> Result {
    match Incoming::<Devices>::get() {
        Ok(addresses) => keep_all(devices, &addresses, Phase::Owned),
        // A record in another version is one that cannot be read.
        Err(ENOENT) if flb::was_handed_over(vfio::DEVICES_PREFIX) => Err(EPROTONOSUPPORT),
        // Nothing was handed over, or no device; or live update is off.
        Err(ENODATA | ENOENT | EOPNOTSUPP) => Ok(()),
        Err(err) => Err(err),
    }
}

/// The devices that an earlier kernel could not reset.
fn read_stale(devices: &mut KVec<KeptDevice>) -> Result {
    let Some(record) = sys::stale_devices()? else {
        return Ok(());
    };
    keep_all(devices, record.addresses().ok_or(EINVAL)?, Phase::Stale)
}

/// Adds devices that are to be kept to those that are, unless they are there.
fn keep_all(devices: &mut KVec<KeptDevice>, addresses: &[PciAddress], phase: Phase) -> Result {
    for &address in addresses {
        if devices.iter().any(|device| device.address == address) {
            continue;
        }
        let device = KeptDevice {
            address,
            phase,
            resets: None,
        };
        devices.push(device, GFP_KERNEL)?;
    }
    Ok(())
}

/// A device was added, and no driver has seen it.
fn added(device: &Device) {
    let Some(address) = device.address() else {
        return;
    };
    let at = Shown(address);
    let mut kept = sys::kept();
    if kept.all && device.is_endpoint() {
        if keep_all(&mut kept.devices, &[address], Phase::Stale).is_err() {
            pr_err!("there is no memory to keep {at} from other drivers: reset the machine\n");
        }
    }
    if let Some(kept) = kept.find(address) {
        device.stay_awake();
        device.mute();
        kept.resets = Some(device.forbid_resets());
        if reserve(device, at) {
            pr_info!("{at} is kept as the previous kernel left it\n");
        }
    }
}

/// Has no driver but `luo-vfio-pci` match a device, if there is memory for that.
fn reserve(device: &Device, at: Shown<PciAddress>) -> bool {
    let reserved = device.reserve();
    if let Err(err) = reserved {
        pr_err!("{at} cannot be reserved for luo-vfio-pci ({err:?}): reset the machine\n");
    }
    reserved.is_ok()
}

/// A device is gone; it may come back.
fn removed(device: &Device) {
    if let Some(kept) = sys::kept().find_device(device) {
        kept.resets = None;
    }
}

/// A driver is about to be bound. It is not, if the device is reserved for another by then.
fn binds(device: &Device) {
    let Some(address) = device.address() else {
        return;
    };
    if phase(device).is_some() && device.is_claimed() {
        let at = Shown(address);
        if reserve(device, at) {
            pr_warn!("{at} is kept for luo-vfio-pci, no other driver gets it\n");
        }
    }
}

/// The machine is about to start another kernel, which knows of the devices that are preserved now, and
/// of none that is kept here.
fn kexec() {
    let mut index = 0;
    loop {
        let kept = sys::kept();
        let Some(device) = kept.devices.get(index) else {
            break;
        };
        let address = device.address;
        drop(kept);
        if !discard(address) {
            index += 1;
        }
    }
    if let Err(err) = hand_on() {
        pr_err!("the next kernel does not know which devices it has to reset ({err:?}): reset the machine\n");
    }
}

/// Has the next kernel know the devices that cannot be reset.
fn hand_on() -> Result {
    if sys::kept().devices.is_empty() {
        return Ok(());
    }
    kho::leave_subtree(vfio::STALE_DEVICES, |record: &mut PciDevices| {
        for device in &sys::kept().devices {
            if !record.add(device.address) {
                record.spoil();
                break;
            }
        }
    })
}

/// What the device is kept for, if it is.
fn phase(device: &Device) -> Option<Phase> {
    sys::kept().find_device(device).map(|kept| kept.phase)
}

/// A device that is about to be its owner's again. Dropping this takes that back for good: the device
/// is reset, and `luo-vfio-pci` starts anew with it. Then drop may sleep, and takes the locks of the
/// device and of the bridge before it.
pub struct Claim(PciAddress);

impl Claim {
    /// Claims a device that is kept for its owner.
    ///
    /// Fails with `ESTALE` if it is not, any more or at all.
    pub fn new(address: PciAddress) -> Result<Self> {
        match sys::kept().advance(address, Phase::Owned, Phase::Retrieved) {
            true => Ok(Self(address)),
            false => Err(ESTALE),
        }
    }

    /// Of the ways to reset the device, leaves those that `allowed` has a bit for, as
    /// [`VfioDevice::resets`](vfio::VfioDevice::resets): its owner may have had reason to use no other.
    pub fn limit_resets(&self, allowed: u32) {
        if let Some(KeptDevice {
            resets: Some(resets),
            ..
        }) = sys::kept().find(self.0)
        {
            resets.limit(allowed);
        }
    }

    /// The owner has the device's file.
    pub fn keep(self) {
        core::mem::forget(self);
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        discard(self.0);
        let Some(device) = Device::find(self.0) else {
            return;
        };
        if let Err(err) = device.reprobe() {
            let at = Shown(self.0);
            pr_warn!("{at} has no driver now ({err:?}): bind one\n");
        }
    }
}

/// Ends the claim of an owner who has the device's file; says whether the device was not bound yet.
/// It is reset when it is bound.
///
/// Does not sleep for long, and takes no lock of the device.
pub fn end_claim(device: &Device) -> bool {
    device
        .address()
        .is_some_and(|address| sys::kept().advance(address, Phase::Retrieved, Phase::Stale))
}

/// Makes it possible to reset a kept device, which stays kept. Nothing happens if it is not.
fn allow_resets(device: &Device) {
    if let Some(kept) = sys::kept().find_device(device) {
        if let Some(resets) = kept.resets.take() {
            device.allow_resets(&resets);
        }
    }
}

/// Takes back [`allow_resets`], and what somebody else may have done.
fn forbid_resets(device: &Device) {
    if let Some(kept) = sys::kept().find_device(device) {
        let resets = device.forbid_resets();
        // How it was the first time is what counts.
        kept.resets.get_or_insert(resets);
    }
}

/// Keeps a device no longer: it is its owner's again, or was reset. Says whether it was kept, in a phase
/// that was `expected`; if not, nothing happens.
fn let_go(device: &Device, expected: impl Fn(Phase) -> bool) -> bool {
    let Some(address) = device.address() else {
        return false;
    };
    let mut kept = sys::kept();
    let Some(index) = kept
        .devices
        .iter()
        .position(|device| device.address == address && expected(device.phase))
    else {
        return false;
    };
    if let Ok(KeptDevice {
        resets: Some(resets),
        ..
    }) = kept.devices.remove(index)
    {
        device.allow_resets(&resets);
    }
    drop(kept);
    device.may_sleep();
    true
}

/// Resets a kept device that is nobody's any more, and keeps it no longer; says whether it is free,
/// as one is that is not kept.
fn discard(address: PciAddress) -> bool {
    match sys::kept().find(address) {
        Some(kept) => kept.phase = Phase::Stale,
        None => return true,
    }
    let at = Shown(address);
    let Some(device) = Device::find(address) else {
        pr_err!("{at} is gone: should it come back, it is reset before it is used\n");
        return false;
    };
    allow_resets(&device);
    match device.reset() {
        Ok(()) => {
            pr_info!("{at} was reset, since it is nobody's any more\n");
            let_go(&device, |phase| phase == Phase::Stale);
            true
        }
        Err(err) => {
            pr_err!(
                "{at} cannot be reset ({err:?}): it stays out of reach until the machine is reset\n"
            );
            forbid_resets(&device);
            false
        }
    }
}
