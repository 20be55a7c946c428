// SPDX-License-Identifier: GPL-2.0

//! Two kinds of files that share state: each is handed over by a handler of its own, and what they
//! come to altogether by an FLB.
//!
//! `/dev/luo_sample_tally` adds up what is written to it, `/dev/luo_sample_gauge` keeps the last
//! number. After a live update, each of their files also knows the total of all that came along.
//! To try it, on a machine that was booted with `liveupdate=on kho=on`, as root:
//!
//! ```text
//! # insmod luo_sample_shared.ko
//! # kexec -s -l /boot/vmlinuz --initrd=/boot/initrd.img --reuse-cmdline
//! # luo
//! luo> create shared
//! session shared is there
//! luo> preserve shared 1 /dev/luo_sample_tally 30
//! token 1 of session shared is preserved
//! luo> preserve shared 2 /dev/luo_sample_gauge 12
//! token 2 of session shared is preserved
//! luo> kexec
//! ```
//!
//! And in the new kernel:
//!
//! ```text
//! # insmod luo_sample_shared.ko
//! # luo
//! luo> retrieve shared
//! session shared is back
//! luo> get shared 1
//! "30 of 42\n"
//! luo> get shared 2
//! "12 of 42\n"
//! luo> finish shared
//! session shared is finished
//! luo> exit
//! # rmmod luo_sample_shared
//! ```
//!
//! The log says when the total comes and goes: with the first file and with the last.

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
    flb::{
        FileLifecycleBound,
        Incoming,
        Outgoing, //
    },
    handler::Outcome,
    miscdevice,
    LiveupdateFileHandler, //
};
use zerocopy_derive::{
    Immutable,
    KnownLayout, //
};

use core::marker::PhantomData;

luo_core::module_liveupdate! {
    type: SharedModule,
    handlers: [NumberHandler<Tally>: [Total], NumberHandler<Gauge>: [Total]],
    flbs: [Total],
    name: "luo_sample_shared",
    authors: ["Rust Live Update Orchestrator maintainers"],
    description: "Two kinds of files that share state across a live update",
    license: "GPL",
}

/// What the two devices differ in.
trait Kind: 'static {
    const DEVICE: &'static CStr;
    const COMPATIBLE: &'static CStr;

    /// What becomes of a file's number if another one is written to it.
    fn write(number: &Atomic<u64>, written: u64);
}

enum Tally {}

impl Kind for Tally {
    const DEVICE: &'static CStr = c"luo_sample_tally";
    const COMPATIBLE: &'static CStr = c"luo-sample-tally-v1";

    fn write(number: &Atomic<u64>, written: u64) {
        number.add(written, Relaxed);
    }
}

enum Gauge {}

impl Kind for Gauge {
    const DEVICE: &'static CStr = c"luo_sample_gauge";
    const COMPATIBLE: &'static CStr = c"luo-sample-gauge-v1";

    fn write(number: &Atomic<u64>, written: u64) {
        number.store(written, Relaxed);
    }
}

/// What an open file is.
struct Number<K> {
    number: Atomic<u64>,
    /// What all files came to at the last update, if this one was there.
    total: Option<u64>,
    _kind: PhantomData<fn() -> K>,
}

impl<K> Number<K> {
    fn new(number: u64, total: Option<u64>) -> Result<KBox<Self>> {
        let number = Self {
            number: Atomic::new(number),
            total,
            _kind: PhantomData,
        };
        Ok(KBox::new(number, GFP_KERNEL)?)
    }
}

#[vtable]
impl<K: Kind> MiscDevice for Number<K> {
    type Ptr = KBox<Self>;

    fn open(_file: &File, _device: &MiscDeviceRegistration<Self>) -> Result<KBox<Self>> {
        Self::new(0, None)
    }

    fn read_iter(mut kiocb: Kiocb<'_, KBox<Self>>, to: &mut IovIterDest<'_>) -> Result<usize> {
        let number = kiocb.file().number.load(Relaxed);
        let line = match kiocb.file().total {
            Some(total) => CString::try_from_fmt(fmt!("{number} of {total}\n"))?,
            None => CString::try_from_fmt(fmt!("{number}\n"))?,
        };
        to.simple_read_from_buffer(kiocb.ki_pos_mut(), line.to_bytes())
    }

    /// Takes a number, and has the next read start at the beginning.
    fn write_iter(mut kiocb: Kiocb<'_, KBox<Self>>, from: &mut IovIterSource<'_>) -> Result<usize> {
        let mut buffer = [0; 24];
        let len = from.copy_from_iter(&mut buffer);
        let text = buffer.get(..len).ok_or(EINVAL)?;
        let written = u64::from_str(BStr::from_bytes(text.trim_ascii()))?;
        K::write(&kiocb.file().number, written);
        *kiocb.ki_pos_mut() = 0;
        Ok(len)
    }
}

/// What the next kernel reads of all files together.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct TotalState {
    sum: u64,
}

/// What all preserved files come to.
struct Total;

#[vtable]
impl FileLifecycleBound for Total {
    const COMPATIBLE: &'static CStr = c"luo-sample-total-v1";

    type State = TotalState;

    /// The total that came over. Nothing in the kernel that adds it up: there the state is enough.
    type Object = u64;

    /// Comes before the first file's own `preserve`, which adds its number to the zero here.
    fn preserve(_state: &mut TotalState) -> Result<u64> {
        pr_info!("the first file is preserved\n");
        Ok(0)
    }

    fn unpreserve(state: &TotalState, _object: u64) {
        pr_info!("no file is preserved, which leaves {}\n", state.sum);
    }

    fn retrieve(state: &TotalState) -> Result<u64> {
        pr_info!("{} came over\n", state.sum);
        Ok(state.sum)
    }

    fn finish(total: u64) {
        pr_info!("all of {total} is finished\n");
    }
}

/// What the next kernel reads of a file.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct NumberState {
    number: u64,
}

impl NumberState {
    /// Saves a file's number, and puts it into the total in place of what was saved before.
    fn save<K: Kind>(&mut self, file: &File) -> Result {
        let number = miscdevice::data::<Number<K>>(file).ok_or(EINVAL)?;
        let number = number.number.load(Relaxed);
        let total = Outgoing::<Total>::get()?;
        let mut total = total.state();
        total.sum = total.sum.wrapping_sub(self.number).wrapping_add(number);
        self.number = number;
        Ok(())
    }
}

struct NumberHandler<K>(PhantomData<K>);

#[vtable]
impl<K: Kind> LiveupdateFileHandler for NumberHandler<K> {
    const COMPATIBLE: &'static CStr = K::COMPATIBLE;

    type State = NumberState;

    type Private = ();

    fn can_preserve(file: &File) -> bool {
        miscdevice::data::<Number<K>>(file).is_some()
    }

    fn preserve(cx: &Preserve<'_>, state: &mut NumberState) -> Result {
        state.save::<K>(cx.file())
    }

    fn unpreserve(_file: &File, state: &NumberState, _private: ()) {
        if let Ok(total) = Outgoing::<Total>::get() {
            let mut total = total.state();
            total.sum = total.sum.wrapping_sub(state.number);
        }
    }

    fn freeze(cx: &Freeze<'_>, state: &mut NumberState, _private: &mut ()) -> Result {
        state.save::<K>(cx.file())
    }

    fn retrieve(_cx: &mut Retrieve<'_>, state: &NumberState) -> Result<ARef<File>> {
        let total = *Incoming::<Total>::get()?;
        let number = Number::<K>::new(state.number, Some(total))?;
        miscdevice::new_file::<Number<K>>(K::DEVICE, number, flags::O_RDWR)
    }

    fn finish(_cx: &Finish<'_>, _outcome: Outcome<'_, NumberState>) {}
}

#[pin_data]
struct SharedModule {
    #[pin]
    _tally: MiscDeviceRegistration<Number<Tally>>,
    #[pin]
    _gauge: MiscDeviceRegistration<Number<Gauge>>,
}

impl kernel::InPlaceModule for SharedModule {
    fn init(_module: &'static ThisModule) -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            _tally <- MiscDeviceRegistration::register(MiscDeviceOptions {
                name: Tally::DEVICE,
            }),
            _gauge <- MiscDeviceRegistration::register(MiscDeviceOptions {
                name: Gauge::DEVICE,
            }),
        })
    }
}
