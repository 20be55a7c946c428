// SPDX-License-Identifier: GPL-2.0

//! Live update of VFIO's PCI devices, in the format `luo-vfio-v1`.
//!
//! What survives: the device with all its state, since nobody resets it, puts it to sleep or gives it
//! to another driver on the way; and that it belongs to the one who had it. In the new kernel the file
//! has to be bound to the iommufd that was preserved before it in the same session, while that session
//! is not finished. A device whose file is not retrieved, or not bound, is reset before anybody else
//! gets it. So is one whose file is closed, as ever.
//!
//! A preserved device can be used as before until the machine reboots. Then its interrupts have to be
//! disabled, and every access fails with `EBUSY`, or with SIGBUS where it is mapped.
//!
//! What does not survive: interrupts and MSI state, what VFIO emulates of the configuration space (the
//! addresses that a guest gave its BARs, say), eventfds, low-power requests, virtual functions. Bus
//! mastering is off from the reboot until the device is attached.

mod bindings;
mod device;

use kernel::{
    fs::File,
    prelude::*,
    sync::aref::ARef, //
};

use luo_abi::vfio::{
    self,
    PciAddress,
    VfioDevice, //
};
use luo_core::{
    context::{
        Finish,
        Freeze,
        Preserve,
        Retrieve, //
    },
    flb::Outgoing,
    handler::Outcome,
    LiveupdateFileHandler, //
};
use luo_pci::{
    Claim,
    Device,
    Devices,
    Shown, //
};

use crate::device::{
    Driver,
    VfioFile, //
};

luo_core::module_liveupdate! {
    type: VfioModule,
    handlers: [VfioHandler: [Devices]],
    name: "luo_vfio",
    authors: ["Rust Live Update Orchestrator maintainers"],
    description: "Live update of VFIO's PCI devices",
    license: "GPL",
}

struct VfioModule {
    _driver: Driver,
}

impl kernel::Module for VfioModule {
    fn init(_module: &'static ThisModule) -> Result<Self> {
        Ok(Self {
            _driver: Driver::register()?,
        })
    }
}

struct VfioHandler;

#[vtable]
impl LiveupdateFileHandler for VfioHandler {
    const COMPATIBLE: &'static CStr = vfio::COMPATIBLE;

    type State = VfioDevice;

    type Private = ();

    fn can_preserve(file: &File) -> bool {
        VfioFile::new(file).is_ok()
    }

    /// There is one user of a device at a time, whatever the number of its files.
    fn id(file: &File) -> usize {
        VfioFile::new(file).map_or(0, |file| file.id())
    }

    fn preserve(cx: &Preserve<'_>, state: &mut VfioDevice) -> Result {
        let file = VfioFile::new(cx.file())?;
        let device = file.pci_device().ok_or(EOPNOTSUPP).inspect_err(|_| {
            pr_info!("only PCI devices can be preserved of VFIO's\n");
        })?;
        let address = device.address().ok_or(EOPNOTSUPP).inspect_err(|_| {
            pr_info!("a device in a segment beyond ffff cannot be preserved\n");
        })?;
        let at = Shown(address);
        check(&file, &device, at)?;
        let resets = device.resets();
        if resets == 0 && device.shares_reset() {
            pr_info!("{at} cannot be reset without others on its bus: give it a bus of its own\n");
            return Err(EMLINK);
        }
        let iommufd = file.iommufd().inspect_err(|_| {
            pr_info!("{at} is just being bound or attached: try again\n");
        })?;
        let iommufd = iommufd.ok_or(ENOTCONN).inspect_err(|_| {
            pr_info!("{at} is not bound to an iommufd: bind it first\n");
        })?;
        let iommufd = cx.token_of(&iommufd).ok_or(EXDEV).inspect_err(|_| {
            pr_info!("{at} is bound to an iommufd that this session does not preserve: preserve that first\n");
        })?;
        let identity = device.identity().ok_or(EIO).inspect_err(|_| {
            pr_info!("{at} does not answer: wake it up, or replace it\n");
        })?;
        *state = VfioDevice {
            address,
            identity,
            iommufd,
            resets,
            header: device.header(),
        };
        if !Outgoing::<Devices>::get()?.state().add(address) {
            pr_info!(
                "{at} is one device too many: {} can be preserved\n",
                vfio::MAX_DEVICES
            );
            return Err(ENOSPC);
        }
        Ok(())
    }

    fn unpreserve(_file: &File, state: &VfioDevice, _private: ()) {
        if let Ok(devices) = Outgoing::<Devices>::get() {
            devices.state().remove(state.address);
        }
    }

    fn freeze(cx: &Freeze<'_>, state: &mut VfioDevice, _private: &mut ()) -> Result {
        let at = Shown(state.address);
        let file = VfioFile::new(cx.file())?;
        let ours = file.ours().ok_or(EINVAL)?;
        let shut = ours.shut().ok_or(EBUSY).inspect_err(|_| {
            pr_info!("{at} is being used while the machine reboots: stop its user first\n");
        })?;
        if let Some(reason) = shut.busy() {
            pr_info!("{at} {reason}\n");
            return Err(EBUSY);
        }
        let device = file.pci_device().ok_or(EINVAL)?;
        state.header = device.header();
        shut.keep().map_err(|_| {
            pr_info!("{at} is just being mapped: try again\n");
            EBUSY
        })
    }

    fn unfreeze(file: &File, _state: &VfioDevice, _private: &mut ()) {
        if let Some(ours) = VfioFile::new(file).ok().and_then(|file| file.ours()) {
            ours.unshut();
        }
    }

    fn retrieve(cx: &mut Retrieve<'_>, state: &VfioDevice) -> Result<ARef<File>> {
        restore(cx, state).inspect_err(|err| {
            let at = Shown(state.address);
            pr_err!(
                "token {:#x}: {at} is lost to its owner: {err:?}\n",
                cx.token()
            );
        })
    }

    fn finish(_cx: &Finish<'_>, outcome: Outcome<'_, VfioDevice>) {
        match outcome {
            Outcome::Unclaimed(state) => {
                if let Ok(claim) = Claim::new(state.address) {
                    claim.limit_resets(state.resets);
                }
            }
            Outcome::Retrieved(file) => {
                let device = VfioFile::new(file).ok().and_then(|file| file.pci_device());
                let Some(device) = device.filter(luo_pci::end_claim) else {
                    return;
                };
                if let Some(at) = device.address().map(Shown) {
                    pr_warn!("{at} was not bound to its iommufd before its session was finished: it will be reset\n");
                }
            }
            Outcome::Failed(_) => {}
        }
    }
}

/// Whether a device's file can be preserved, as far as it is up to the device.
fn check(file: &VfioFile<'_>, device: &Device, at: Shown<PciAddress>) -> Result {
    if file.ours().is_none() {
        pr_info!("{at} is not bound to luo-vfio-pci: bind it to that driver\n");
        return Err(EOPNOTSUPP);
    }
    if !file.is_cdev() {
        pr_info!("{at} was opened by its group: open it in /dev/vfio/devices\n");
        return Err(EINVAL);
    }
    if file.is_noiommu() {
        pr_info!("{at} has no IOMMU: it cannot be preserved without\n");
        return Err(EOPNOTSUPP);
    }
    if device.is_virtual() {
        pr_info!("{at} is a virtual function: only physical ones can be preserved\n");
        return Err(ENODEV);
    }
    Ok(())
}

fn restore(cx: &mut Retrieve<'_>, state: &VfioDevice) -> Result<ARef<File>> {
    let VfioDevice {
        address,
        identity,
        iommufd,
        resets,
        header,
    } = *state;
    let at = Shown(address);
    let claim = Claim::new(address).inspect_err(|_| {
        pr_err!("{at} is not kept, or not any more\n");
    })?;
    if resets >> VfioDevice::RESETS.len() != 0 {
        pr_err!("{at} can be reset in a way that this kernel does not know\n");
        return Err(EOPNOTSUPP);
    }
    claim.limit_resets(resets);
    let device = Device::find(address).ok_or(ENODEV)?;
    let found = device.identity().ok_or(EIO).inspect_err(|_| {
        pr_err!("{at} does not answer\n");
    })?;
    if found != identity {
        let (identity, found) = (Shown(identity), Shown(found));
        pr_err!("{at} was {identity}, and is {found} now\n");
        return Err(ENXIO);
    }
    let (was, is) = (header.bars, device.header().bars);
    if is != was {
        pr_err!("{at} has its registers at other addresses now\n");
        return Err(ENXIO);
    }
    let iommufd = cx.fetch(iommufd)?;
    let file = device::retrieve(&device, &iommufd, &header)?;
    claim.keep();
    Ok(file)
}
