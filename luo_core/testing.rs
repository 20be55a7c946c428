// SPDX-License-Identifier: GPL-2.0

//! What the unit tests of several files share: files to preserve, handlers and FLBs that fail on
//! request, and a record of the calls.
//!
//! KUnit runs one test after the other, so the record and what is to fail are static.

use kernel::{
    error::code,
    fs::{
        file::flags,
        File, //
    },
    miscdevice::{
        MiscDevice,
        MiscDeviceRegistration, //
    },
    prelude::*,
    sync::{
        aref::ARef,
        atomic::{
            Atomic,
            Relaxed, //
        },
        Arc,
        ArcBorrow,
        SetOnce, //
    }, //
};

use core::ptr::NonNull;

use crate::{
    bindings,
    context::{
        Finish,
        Freeze,
        Preserve,
        Retrieve, //
    },
    flb::{
        FileLifecycleBound,
        Flb, //
    },
    handler::{
        FileHandler,
        LiveupdateFileHandler,
        Outcome, //
    },
    incoming::Handover,
    miscdevice, HandedOver, Luo,
};

/// What was called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Call {
    Preserve = 1,
    Unpreserve,
    Freeze,
    Unfreeze,
    Retrieve,
    CanFinish,
    FinishRetrieved,
    FinishFailed,
    FinishUnclaimed,
    FlbPreserve,
    FlbUnpreserve,
    FlbRetrieve,
    FlbFinish,
    /// A finish found the file of this token.
    Found,
    /// It did not.
    Missed,
}

/// A call, and the number of the file or FLB that it was for.
pub(crate) type Record = (Call, u32);

const fn code((call, who): Record) -> u32 {
    (call as u32) << 16 | who
}

static CALLS: [Atomic<u32>; 64] = [const { Atomic::new(0) }; 64];
static COUNT: Atomic<u32> = Atomic::new(0);
static FAILING: Atomic<u32> = Atomic::new(0);

/// The error of a call that is to fail.
pub(crate) const FAILURE: Error = code::EXDEV;

/// Records a call; fails with [`FAILURE`] if it is to.
pub(crate) fn called(call: Call, who: u32) -> Result {
    let code = code((call, who));
    if let Some(slot) = CALLS.get(COUNT.load(Relaxed) as usize) {
        slot.store(code, Relaxed);
    }
    COUNT.add(1, Relaxed);
    match FAILING.load(Relaxed) == code {
        true => Err(FAILURE),
        false => Ok(()),
    }
}

/// Has one call fail from now on, and no other.
pub(crate) fn fail(call: Call, who: u32) {
    FAILING.store(code((call, who)), Relaxed);
}

/// Has no call fail.
pub(crate) fn never_fail() {
    FAILING.store(0, Relaxed);
}

/// Whether these were the calls since this was last asked.
pub(crate) fn calls_were(expected: &[Record]) -> bool {
    let count = COUNT.xchg(0, Relaxed) as usize;
    let found = || {
        CALLS
            .iter()
            .take(count)
            .map(|slot| slot.load(Relaxed))
            .enumerate()
    };
    let right = count == expected.len()
        && found().all(|(i, found)| expected.get(i).is_some_and(|&call| code(call) == found));
    if !right {
        pr_err!("expected {expected:?}\n");
        for (_, found) in found() {
            pr_err!("found call {} for {}\n", found >> 16, found & 0xffff);
        }
    }
    right
}

/// Nothing failed or was called so far.
pub(crate) fn reset() {
    never_fail();
    COUNT.store(0, Relaxed);
}

/// An orchestrator of its own.
pub(crate) fn luo() -> Result<Arc<Luo>> {
    reset();
    Luo::new(HandedOver::new(0, Handover::Unread(0)))
}

/// What a [`TestFile`] was told that another file's token is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Told {
    Never,
    NoToken,
    Token(u32),
}

/// What a file that can be preserved holds.
pub(crate) struct TestFile {
    /// Two files of a number are two descriptions of one.
    pub(crate) number: u32,
    /// Whether its handler is [`Full`], or else [`Bare`].
    full: bool,
    /// The file whose token is asked for.
    pub(crate) other: SetOnce<ARef<File>>,
    told: Atomic<u32>,
    /// How many of the handler's private values there are for it.
    pub(crate) privates: Atomic<i32>,
}

impl TestFile {
    /// One for [`Full`].
    pub(crate) fn new(number: u32) -> Result<Arc<Self>> {
        Self::of(number, true)
    }

    /// One for [`Bare`].
    pub(crate) fn bare(number: u32) -> Result<Arc<Self>> {
        Self::of(number, false)
    }

    fn of(number: u32, full: bool) -> Result<Arc<Self>> {
        let data = Self {
            number,
            full,
            other: SetOnce::new(),
            told: Atomic::new(0),
            privates: Atomic::new(0),
        };
        Ok(Arc::new(data, GFP_KERNEL)?)
    }

    /// A new `struct file` for it.
    pub(crate) fn open(self: &Arc<Self>) -> Result<ARef<File>> {
        miscdevice::new_file::<Self>(c"[luo_kunit]", self.clone(), flags::O_RDWR)
    }

    /// What it was told since this was last asked.
    pub(crate) fn told(&self) -> Told {
        match self.told.xchg(0, Relaxed) {
            0 => Told::Never,
            1 => Told::NoToken,
            token => Told::Token(token - 2),
        }
    }

    fn tell(&self, token_of: impl FnOnce(&File) -> Option<u64>) {
        if let Some(other) = self.other.as_ref() {
            let token = token_of(other).map_or(1, |token| token as u32 + 2);
            self.told.store(token, Relaxed);
        }
    }
}

/// The data of a file that holds it.
pub(crate) fn data(file: &File) -> Result<ArcBorrow<'_, TestFile>> {
    miscdevice::data::<TestFile>(file).ok_or(EINVAL)
}

fn number(file: &File) -> u32 {
    data(file).map_or(0, |data| data.number)
}

#[vtable]
impl MiscDevice for TestFile {
    type Ptr = Arc<Self>;

    fn open(_file: &File, _device: &MiscDeviceRegistration<Self>) -> Result<Arc<Self>> {
        Err(ENODEV)
    }
}

/// A handler's private value; it counts how many there are.
pub(crate) struct Counted(Arc<TestFile>);

impl Counted {
    fn new(data: Arc<TestFile>) -> Self {
        data.privates.add(1, Relaxed);
        Self(data)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.privates.add(-1, Relaxed);
    }
}

/// A handler with all callbacks. Its state is twice the number: from preserve and from freeze.
pub(crate) struct Full;

pub(crate) static FULL: FileHandler<Full> = FileHandler::new();

#[vtable]
impl LiveupdateFileHandler for Full {
    const COMPATIBLE: &'static CStr = c"luo-kunit-full";

    type State = [u64; 2];

    type Private = Counted;

    fn can_preserve(file: &File) -> bool {
        data(file).is_ok_and(|data| data.full)
    }

    fn preserve(cx: &Preserve<'_>, state: &mut [u64; 2]) -> Result<Counted> {
        let data = data(cx.file())?;
        data.tell(|other| cx.token_of(other));
        // It is made in any case, to see that it goes.
        let private = Counted::new(data.into());
        if *state != [0, 0] {
            return Err(EBADMSG);
        }
        called(Call::Preserve, data.number)?;
        *state = [data.number.into(), 0];
        Ok(private)
    }

    fn unpreserve(file: &File, state: &[u64; 2], private: Counted) {
        // A value of another file would show.
        if state[0] == u64::from(private.0.number) {
            let _ = called(Call::Unpreserve, number(file));
        }
    }

    fn freeze(cx: &Freeze<'_>, state: &mut [u64; 2], private: &mut Counted) -> Result {
        private.0.tell(|other| cx.token_of(other));
        called(Call::Freeze, number(cx.file()))?;
        state[1] = state[0];
        Ok(())
    }

    fn unfreeze(file: &File, state: &[u64; 2], _private: &mut Counted) {
        if state[1] == state[0] {
            let _ = called(Call::Unfreeze, number(file));
        }
    }

    fn retrieve(_cx: &mut Retrieve<'_>, _state: &[u64; 2]) -> Result<ARef<File>> {
        Err(EOPNOTSUPP)
    }

    fn can_finish(_cx: &Finish<'_>, _file: Option<&File>) -> bool {
        false
    }

    fn finish(_cx: &Finish<'_>, _outcome: Outcome<'_, [u64; 2]>) {}

    fn id(file: &File) -> usize {
        number(file) as usize
    }
}

/// A handler with no more callbacks than it must have.
pub(crate) struct Bare;

pub(crate) static BARE: FileHandler<Bare> = FileHandler::new();

#[vtable]
impl LiveupdateFileHandler for Bare {
    const COMPATIBLE: &'static CStr = c"luo-kunit-bare";

    type State = u32;

    type Private = ();

    fn can_preserve(file: &File) -> bool {
        data(file).is_ok_and(|data| !data.full)
    }

    fn preserve(cx: &Preserve<'_>, state: &mut u32) -> Result {
        *state = number(cx.file());
        called(Call::Preserve, *state)
    }

    fn unpreserve(file: &File, _state: &u32, _private: ()) {
        let _ = called(Call::Unpreserve, number(file));
    }

    fn retrieve(_cx: &mut Retrieve<'_>, _state: &u32) -> Result<ARef<File>> {
        Err(EOPNOTSUPP)
    }

    fn finish(cx: &Finish<'_>, outcome: Outcome<'_, u32>) {
        let call = match outcome {
            Outcome::Retrieved(_) => Call::FinishRetrieved,
            Outcome::Failed(_) => Call::FinishFailed,
            Outcome::Unclaimed(_) => Call::FinishUnclaimed,
        };
        let _ = called(call, cx.token() as u32);
    }
}

/// The C face of a static handler.
pub(crate) fn raw<T: LiveupdateFileHandler>(
    handler: &'static FileHandler<T>,
) -> NonNull<bindings::liveupdate_file_handler> {
    // SAFETY: The address of a static is not null.
    unsafe { NonNull::new_unchecked(handler.as_ptr()) }
}

/// An FLB; its number is its state and its object.
pub(crate) struct Numbered<const N: u32>;

pub(crate) static FIRST: Flb<Numbered<1>> = Flb::new();
pub(crate) static SECOND: Flb<Numbered<2>> = Flb::new();
/// It has the name of the second.
pub(crate) static TWIN: Flb<Numbered<2>> = Flb::new();

#[vtable]
impl<const N: u32> FileLifecycleBound for Numbered<N> {
    const COMPATIBLE: &'static CStr = match N {
        1 => c"luo-kunit-flb-1",
        _ => c"luo-kunit-flb-2",
    };

    type State = u32;

    type Object = u32;

    fn preserve(state: &mut u32) -> Result<u32> {
        called(Call::FlbPreserve, N)?;
        *state = N;
        Ok(N)
    }

    fn unpreserve(state: &u32, object: u32) {
        if *state == object {
            let _ = called(Call::FlbUnpreserve, object);
        }
    }

    fn retrieve(_state: &u32) -> Result<u32> {
        Err(EOPNOTSUPP)
    }

    fn finish(_object: u32) {}
}

/// The C face of a static FLB.
pub(crate) fn raw_flb<T: FileLifecycleBound>(
    flb: &'static Flb<T>,
) -> NonNull<bindings::liveupdate_flb> {
    // SAFETY: The address of a static is not null.
    unsafe { NonNull::new_unchecked(flb.as_ptr()) }
}
