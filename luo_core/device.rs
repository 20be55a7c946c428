// SPDX-License-Identifier: GPL-2.0

//! `/dev/liveupdate`, through which userspace creates and retrieves sessions.
//!
//! One process has it open at a time.

use kernel::{
    fs::{
        file::{
            flags,
            FileDescriptorReservation, //
        },
        File, //
    },
    miscdevice::{
        MiscDevice,
        MiscDeviceOptions,
        MiscDeviceRegistration, //
    },
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            Full,
            Release, //
        },
        Arc, //
    },
};

use crate::{
    bindings,
    incoming::IncomingSession,
    outgoing::OutgoingSession,
    session_file::PendingFile,
    uapi::{
        self,
        OpenSession,
        UserArg, //
    },
    Luo,
    LUO, //
};

use luo_abi::luo::SessionName;

/// The open device; the only one there is.
pub(crate) struct Device {
    luo: Arc<Luo>,
}

static IN_USE: Atomic<u32> = Atomic::new(0);

impl Device {
    /// Makes the device appear.
    pub(crate) fn register() -> impl PinInit<MiscDeviceRegistration<Self>, Error> {
        MiscDeviceRegistration::register(MiscDeviceOptions {
            name: c"liveupdate",
        })
    }

    fn create_session(&self, arg: &UserArg) -> Result {
        let mut request: OpenSession = arg.read()?;
        let fd = FileDescriptorReservation::get_unused_fd_flags(flags::O_CLOEXEC)?;
        let name = SessionName::from_field(&request.name).map_err(|_| EINVAL)?;

        let session = OutgoingSession::create(&self.luo, name)?;
        request.fd = fd.reserved_fd() as i32;
        let file = PendingFile::new(session.clone())
            .and_then(|file| arg.respond(&request).map(|()| file))
            .inspect_err(|_| session.release())?;
        file.install(fd);
        Ok(())
    }

    fn retrieve_session(&self, arg: &UserArg) -> Result {
        let mut request: OpenSession = arg.read()?;
        let fd = FileDescriptorReservation::get_unused_fd_flags(flags::O_CLOEXEC)?;
        // What is no name names no session.
        let name = SessionName::from_field(&request.name).map_err(|_| ENOENT)?;

        let session = IncomingSession::retrieve(&self.luo, &name)?;
        request.fd = fd.reserved_fd() as i32;
        let file = PendingFile::new(session.clone())
            .and_then(|file| arg.respond(&request).map(|()| file))
            .inspect_err(|_| session.put_back())?;
        file.install(fd);
        Ok(())
    }
}

#[vtable]
impl MiscDevice for Device {
    type Ptr = KBox<Self>;

    fn open(_file: &File, _misc: &MiscDeviceRegistration<Self>) -> Result<KBox<Self>> {
        let luo = LUO.as_ref().ok_or(ENODEV)?;
        if IN_USE.cmpxchg(0, 1, Full).is_err() {
            return Err(EBUSY);
        }
        // From here on, dropping the device is what makes it free again.
        let device = Self { luo: luo.clone() };
        device.luo.deserialize()?;
        Ok(KBox::new(device, GFP_KERNEL)?)
    }

    fn ioctl(device: &Self, _file: &File, command: u32, address: usize) -> Result<isize> {
        let numbers = bindings::LIVEUPDATE_CMD_BASE..=bindings::LIVEUPDATE_CMD_RETRIEVE_SESSION;
        let arg = UserArg::new(command, numbers, address)?;
        match command {
            uapi::CREATE_SESSION => device.create_session(&arg)?,
            uapi::RETRIEVE_SESSION => device.retrieve_session(&arg)?,
            _ => return Err(ENOIOCTLCMD),
        }
        Ok(0)
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        IN_USE.store(0, Release);
    }
}
