// SPDX-License-Identifier: GPL-2.0

//! VFIO devices and their files; the unsafe code of this handler.
//!
//! C header: [`include/linux/vfio_pci_core.h`](srctree/include/linux/vfio_pci_core.h)

use kernel::{
    error::{
        from_err_ptr,
        to_result, //
    },
    fs::File,
    prelude::*,
    sync::aref::ARef, //
};

use core::{
    marker::PhantomData,
    ptr::NonNull, //
};

use crate::bindings;

use luo_abi::vfio::PciHeader;
use luo_pci::Device;

/// The driver `luo-vfio-pci`; dropping it unbinds all its devices.
pub(crate) struct Driver(());

impl Driver {
    /// Registers it and has it bind the devices that are for it.
    pub(crate) fn register() -> Result<Self> {
        // SAFETY: The driver is this module's, which drops this value before it goes.
        to_result(unsafe { bindings::luo_vfio_register_driver() })?;
        Ok(Self(()))
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        // SAFETY: It is registered.
        unsafe { bindings::luo_vfio_unregister_driver() };
    }
}

/// The file of a VFIO device.
///
/// # Invariants
///
/// `device` is the device of `file`, which keeps it.
pub(crate) struct VfioFile<'a> {
    file: &'a File,
    device: NonNull<bindings::vfio_device>,
}

impl<'a> VfioFile<'a> {
    /// Fails with `EINVAL` if it is something else's.
    pub(crate) fn new(file: &'a File) -> Result<Self> {
        // SAFETY: The file is valid.
        let device = unsafe { bindings::luo_vfio_from_file(file.as_ptr()) };
        // INVARIANT: An open file has a reference to its device.
        Ok(Self {
            file,
            device: NonNull::new(device).ok_or(EINVAL)?,
        })
    }

    /// What all files of a device have in common.
    pub(crate) fn id(&self) -> usize {
        self.device.as_ptr() as usize
    }

    /// The PCI device, if it is one.
    pub(crate) fn pci_device(&self) -> Option<Device> {
        // SAFETY: By the type invariant the device is valid.
        let pdev = NonNull::new(unsafe { bindings::luo_vfio_pci_dev(self.device.as_ptr()) })?;
        // SAFETY: A VFIO device has a reference to its parent.
        Some(unsafe { Device::from_raw(pdev.as_ptr()) })
    }

    /// The device, if it is bound to `luo-vfio-pci`.
    pub(crate) fn ours(&self) -> Option<Ours<'a>> {
        // SAFETY: By the type invariant the device is valid.
        // INVARIANT: It stays bound, and valid, as long as the file is open.
        unsafe { bindings::luo_vfio_is_ours(self.device.as_ptr()) }.then_some(Ours {
            device: self.device,
            _file: PhantomData,
        })
    }

    /// Whether the device reaches memory without an IOMMU.
    pub(crate) fn is_noiommu(&self) -> bool {
        // SAFETY: By the type invariant the device is valid.
        unsafe { bindings::luo_vfio_is_noiommu(self.device.as_ptr()) }
    }

    /// Whether the file is the device's own and not a group's.
    pub(crate) fn is_cdev(&self) -> bool {
        // SAFETY: By the type invariant the file is that of a VFIO device.
        unsafe { bindings::luo_vfio_is_cdev(self.file.as_ptr()) }
    }

    /// The iommufd that the file is bound to, if it is.
    ///
    /// Fails with `EBUSY` if somebody is just binding or attaching the device, or one of its set.
    pub(crate) fn iommufd(&self) -> Result<Option<ARef<File>>> {
        // SAFETY: By the type invariant the file is that of a VFIO device.
        let file = from_err_ptr(unsafe { bindings::luo_vfio_get_iommufd(self.file.as_ptr()) })?;
        // SAFETY: The file came with a reference. No use of an iommufd's position is under way: it
        // has none.
        Ok(NonNull::new(file).map(|file| unsafe { ARef::from_raw(file.cast()) }))
    }
}

/// A device that is bound to `luo-vfio-pci`.
///
/// # Invariants
///
/// `device` is valid and bound to `luo-vfio-pci`.
pub(crate) struct Ours<'a> {
    device: NonNull<bindings::vfio_device>,
    _file: PhantomData<&'a File>,
}

impl<'a> Ours<'a> {
    /// Has all accesses fail, unless one is under way.
    pub(crate) fn shut(self) -> Option<Shut<'a>> {
        // SAFETY: By the type invariant.
        // INVARIANT: It was just shut.
        unsafe { bindings::luo_vfio_shut(self.device.as_ptr()) }.then_some(Shut(self))
    }

    /// Takes back [`Shut::keep`].
    pub(crate) fn unshut(&self) {
        // SAFETY: By the type invariant.
        unsafe { bindings::luo_vfio_unshut(self.device.as_ptr()) };
    }
}

/// A device to which all accesses fail as long as this is there.
///
/// # Invariants
///
/// The device is shut, by this value.
#[must_use]
pub(crate) struct Shut<'a>(Ours<'a>);

impl Shut<'_> {
    /// Why the device cannot be left alone, if so.
    pub(crate) fn busy(&self) -> Option<&'static str> {
        // SAFETY: By the type invariants the device is valid, ours and shut.
        match unsafe { bindings::luo_vfio_busy(self.0.device.as_ptr()) } {
            bindings::luo_vfio_busy_LUO_VFIO_IDLE => None,
            bindings::luo_vfio_busy_LUO_VFIO_INTERRUPTS => {
                Some("has interrupts enabled: disable them first")
            }
            bindings::luo_vfio_busy_LUO_VFIO_IOEVENTFDS => {
                Some("has ioeventfds: remove them first")
            }
            bindings::luo_vfio_busy_LUO_VFIO_DMABUFS => {
                Some("has dma-bufs of its registers: close them first")
            }
            bindings::luo_vfio_busy_LUO_VFIO_ASLEEP => Some("is asleep: wake it up first"),
            _ => Some("is just being unbound, removed or reset: try again"),
        }
    }

    /// Takes it out of all address spaces too, and leaves it shut. Fails with `EBUSY` if one of them is
    /// just being changed.
    pub(crate) fn keep(self) -> Result {
        // SAFETY: By the type invariants the device is valid.
        if !unsafe { bindings::luo_vfio_try_unmap(self.0.device.as_ptr()) } {
            return Err(EBUSY);
        }
        core::mem::forget(self);
        Ok(())
    }
}

impl Drop for Shut<'_> {
    fn drop(&mut self) {
        self.0.unshut();
    }
}

/// Gives a kept device to the owner of an iommufd, and makes its file.
///
/// Errors: `ENXIO`, it is not bound to `luo-vfio-pci`; `EBUSY`, VFIO knows it already; `EBADFD`, that
/// is no iommufd; and what registration with VFIO fails with.
pub(crate) fn retrieve(device: &Device, iommufd: &File, header: &PciHeader) -> Result<ARef<File>> {
    let setup = bindings::luo_vfio_setup {
        command: header.command,
        cache_line: header.cache_line,
        latency: header.latency,
    };
    // SAFETY: References are valid, and nothing of them is kept but what the session has.
    let file = from_err_ptr(unsafe {
        bindings::luo_vfio_retrieve(device.as_ptr().cast(), iommufd.as_ptr(), &setup)
    })?;
    // SAFETY: A new file is not null, has one reference and is in nobody's use.
    Ok(unsafe { ARef::from_raw(NonNull::new_unchecked(file.cast())) })
}
