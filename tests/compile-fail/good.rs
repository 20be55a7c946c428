// SPDX-License-Identifier: GPL-2.0

//! A module as it should be. Each of the cases in `cases.txt` changes it in a line or a few, and
//! then it must not compile.

use kernel::{
    fs::File,
    miscdevice::{
        MiscDevice,
        MiscDeviceRegistration, //
    },
    prelude::*,
    sync::aref::ARef, //
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

luo_core::module_liveupdate! {
    handlers: [GoodHandler: [GoodFlb]],
    flbs: [GoodFlb],
    name: "good",
    authors: ["Rust Live Update Orchestrator maintainers"],
    description: "What the cases of compile-fail are made from",
    license: "GPL",
}

struct Device {
    number: u64,
}

#[vtable]
impl MiscDevice for Device {
    type Ptr = KBox<Self>;

    fn open(_file: &File, _device: &MiscDeviceRegistration<Self>) -> Result<KBox<Self>> {
        Ok(KBox::new(Self { number: 0 }, GFP_KERNEL)?)
    }
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct GoodFlbState {
    sum: u64,
}

struct GoodFlb;

#[vtable]
impl FileLifecycleBound for GoodFlb {
    const COMPATIBLE: &'static CStr = c"good-flb-v1";
    type State = GoodFlbState;
    type Object = u64;

    fn preserve(state: &mut Self::State) -> Result<Self::Object> {
        Ok(state.sum)
    }
    fn unpreserve(_state: &Self::State, _object: Self::Object) {}
    fn retrieve(state: &Self::State) -> Result<Self::Object> {
        Ok(state.sum)
    }
    fn finish(_object: Self::Object) {}
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct GoodState {
    number: u64,
    other: u32,
    reserved: u32,
}

/// Stands for whatever keeps what it is given longer than a callback lasts.
#[allow(dead_code)]
fn keep<T: 'static>(_kept: T) {}

/// What both phases of the old kernel do.
fn save(cx: &Preserve<'_>, state: &mut GoodState) -> Result {
    let device = miscdevice::data::<Device>(cx.file()).ok_or(EINVAL)?;
    let shared = Outgoing::<GoodFlb>::get()?;
    shared.state().sum += device.number;
    state.number = device.number;
    Ok(())
}

struct GoodHandler;

#[vtable]
impl LiveupdateFileHandler for GoodHandler {
    const COMPATIBLE: &'static CStr = c"good-v1";
    type State = GoodState;
    type Private = KBox<u64>;

    fn can_preserve(file: &File) -> bool {
        miscdevice::data::<Device>(file).is_some()
    }
    fn preserve(cx: &Preserve<'_>, state: &mut Self::State) -> Result<Self::Private> {
        save(cx, state)?;
        Ok(KBox::new(cx.token(), GFP_KERNEL)?)
    }
    fn unpreserve(_file: &File, _state: &Self::State, _private: Self::Private) {}
    fn freeze(cx: &Freeze<'_>, state: &mut Self::State, _private: &mut Self::Private) -> Result {
        state.number = cx.token_of(cx.file()).ok_or(EINVAL)?;
        Ok(())
    }
    fn unfreeze(_file: &File, _state: &Self::State, _private: &mut Self::Private) {}
    fn retrieve(cx: &mut Retrieve<'_>, state: &Self::State) -> Result<ARef<File>> {
        let shared = Incoming::<GoodFlb>::get()?;
        if *shared < state.number {
            return Err(EINVAL);
        }
        cx.fetch(state.number)
    }
    fn can_finish(cx: &Finish<'_>, _file: Option<&File>) -> bool {
        cx.retrieved(1).is_some()
    }
    fn finish(cx: &Finish<'_>, outcome: Outcome<'_, Self::State>) {
        if let Outcome::Unclaimed(state) = outcome {
            pr_info!("{} of {} is not wanted\n", state.number, cx.token());
        }
    }
    fn id(file: &File) -> usize {
        core::ptr::from_ref(file).addr()
    }
}
