// SPDX-License-Identifier: GPL-2.0

//! A device whose open files are counters that survive a live update.
//!
//! Writing a number to an open file adds it, and reading gives the sum. To try it, on a machine
//! that was booted with `liveupdate=on kho=on`, as root:
//!
//! ```text
//! # insmod luo_sample_counter.ko
//! # kexec -s -l /boot/vmlinuz --initrd=/boot/initrd.img --reuse-cmdline
//! # luo
//! luo> create demo
//! session demo is there
//! luo> preserve demo 1 /dev/luo_sample_counter 42
//! token 1 of session demo is preserved
//! luo> kexec
//! ```
//!
//! And in the new kernel:
//!
//! ```text
//! # insmod luo_sample_counter.ko
//! # luo
//! luo> retrieve demo
//! session demo is back
//! luo> get demo 1
//! "42\n"
//! luo> finish demo
//! session demo is finished
//! luo> exit
//! # rmmod luo_sample_counter
//! ```
//!
//! Documentation/writing-a-handler.rst builds this file step by step.

use kernel::{
    fs::{
        file::flags,
        File,
        Kiocb, //
    },
    iov::{
        IovIterDest,
        IovIterSource, //
    },
    miscdevice::{
        MiscDevice,
        MiscDeviceOptions,
        MiscDeviceRegistration, //
    },
    prelude::*,
    str::{
        parse_int::ParseInt,
        BStr,
        CString, //
    },
    sync::{
        aref::ARef,
        atomic::{
            Atomic,
            Relaxed, //
        }, //
    },
};
use luo_core::{
    context::{
        Finish,
        Freeze,
        Preserve,
        Retrieve, //
    },
    handler::Outcome,
    miscdevice,
    LiveupdateFileHandler, //
};
use zerocopy_derive::{
    Immutable,
    KnownLayout, //
};

/// What an open file of the device is.
struct Counter(Atomic<u64>);

#[vtable]
impl MiscDevice for Counter {
    type Ptr = KBox<Self>;

    fn open(_file: &File, _device: &MiscDeviceRegistration<Self>) -> Result<KBox<Self>> {
        Ok(KBox::new(Self(Atomic::new(0)), GFP_KERNEL)?)
    }

    /// Gives the number.
    fn read_iter(mut kiocb: Kiocb<'_, KBox<Self>>, to: &mut IovIterDest<'_>) -> Result<usize> {
        let line = CString::try_from_fmt(fmt!("{}\n", kiocb.file().0.load(Relaxed)))?;
        to.simple_read_from_buffer(kiocb.ki_pos_mut(), line.to_bytes())
    }

    /// Adds a number, and has the next read start at the beginning.
    fn write_iter(mut kiocb: Kiocb<'_, KBox<Self>>, from: &mut IovIterSource<'_>) -> Result<usize> {
        let mut buffer = [0; 24];
        let len = from.copy_from_iter(&mut buffer);
        let text = buffer.get(..len).ok_or(EINVAL)?;
        let number = u64::from_str(BStr::from_bytes(text.trim_ascii()))?;
        kiocb.file().0.add(number, Relaxed);
        *kiocb.ki_pos_mut() = 0;
        Ok(len)
    }
}

/// What the next kernel reads of a counter.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct CounterState {
    number: u64,
}

impl CounterState {
    fn save(&mut self, file: &File) -> Result {
        let counter = miscdevice::data::<Counter>(file).ok_or(EINVAL)?;
        self.number = counter.0.load(Relaxed);
        Ok(())
    }
}

struct CounterHandler;

#[vtable]
impl LiveupdateFileHandler for CounterHandler {
    const COMPATIBLE: &'static CStr = c"luo-sample-counter-v1";

    type State = CounterState;

    type Private = ();

    fn can_preserve(file: &File) -> bool {
        miscdevice::data::<Counter>(file).is_some()
    }

    fn preserve(cx: &Preserve<'_>, state: &mut CounterState) -> Result {
        state.save(cx.file())
    }

    fn unpreserve(_file: &File, _state: &CounterState, _private: ()) {}

    fn freeze(cx: &Freeze<'_>, state: &mut CounterState, _private: &mut ()) -> Result {
        state.save(cx.file())
    }

    fn retrieve(_cx: &mut Retrieve<'_>, state: &CounterState) -> Result<ARef<File>> {
        let counter = KBox::new(Counter(Atomic::new(state.number)), GFP_KERNEL)?;
        miscdevice::new_file::<Counter>(c"[luo_sample_counter]", counter, flags::O_RDWR)
    }

    fn finish(_cx: &Finish<'_>, _outcome: Outcome<'_, CounterState>) {}
}

#[pin_data]
struct CounterModule {
    #[pin]
    _device: MiscDeviceRegistration<Counter>,
}

impl kernel::InPlaceModule for CounterModule {
    fn init(_module: &'static ThisModule) -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            _device <- MiscDeviceRegistration::register(MiscDeviceOptions {
                name: c"luo_sample_counter",
            }),
        })
    }
}

luo_core::module_liveupdate! {
    type: CounterModule,
    handlers: [CounterHandler],
    name: "luo_sample_counter",
    authors: ["Rust Live Update Orchestrator maintainers"],
    description: "Counters that survive a live update",
    license: "GPL",
}
