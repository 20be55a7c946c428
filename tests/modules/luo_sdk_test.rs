// SPDX-License-Identifier: GPL-2.0

//! Handlers and FLBs that fail on request, for tests of the SDK.
//!
//! An open file of `/dev/luo_sdk_test` holds a number and may need other files. There are two kinds
//! of them, each with a handler: files of kind `a` depend on both FLBs, those of kind `b` on the
//! second one only. Reading a file gives its number, and `TOKEN=NUMBER` for each file that it got
//! from its session (`TOKEN=other` if that is not one of this device). Writing takes commands of one
//! line:
//!
//! - `number N`: becomes the file's number;
//! - `kind a`, `kind b`: which handler the file is for;
//! - `token T`: the file needs what its session has as this token;
//! - `lenient`: the file is retrieved even if a file that it needs is not;
//! - `forget`: the file needs nothing any more;
//! - `fail WHAT N E`: from now on the callback fails with errno `E` (0: no more) for the file with
//!   number `N` (`can_finish` says no for token `N`); WHAT is `preserve`, `freeze`, `retrieve`,
//!   `can_finish`, or, with the FLB's number as `N`, `flb-preserve` or `flb-retrieve`;
//! - `outgoing N`, `incoming N`: the file has this FLB's live object in use, until it is closed or
//!   is told to `release`;
//! - `note N S`: changes the state of the outgoing FLB.
//!
//! The ioctl `NEEDS` adds an open file to those that the file needs.
//!
//! Each callback leaves a line in the kernel's log, unless the module is `quiet`. Files are named by
//! their numbers, and other files by their tokens.

use kernel::{
    fmt,
    fs::{
        file::{
            flags,
            LocalFile, //
        },
        File,
        Kiocb, //
    },
    ioctl::_IO,
    iov::{
        IovIterDest,
        IovIterSource, //
    },
    miscdevice::{
        MiscDevice,
        MiscDeviceOptions,
        MiscDeviceRegistration, //
    },
    new_mutex,
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
        },
        Mutex, //
    },
    time::{
        delay::fsleep,
        Delta, //
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

luo_core::module_liveupdate! {
    type: SdkTest,
    handlers: [
        Handler<{ Kind::A }>: [Shared<1>, Shared<2>],
        Handler<{ Kind::B }>: [Shared<2>],
    ],
    flbs: [Shared<1>, Shared<2>],
    name: "luo_sdk_test",
    authors: ["Rust Live Update Orchestrator maintainers"],
    description: "Handlers and FLBs that fail on request",
    license: "GPL",
    params: {
        init_ms: i64 {
            default: 0,
            description: "how long init takes, in milliseconds",
        },
        quiet: bool {
            default: false,
            description: "whether callbacks leave no line in the log",
        },
        init_errno: i32 {
            default: 0,
            description: "what init fails with",
        },
    },
}

/// Leaves a line in the log, if the module is to.
macro_rules! say {
    ($($what:tt)*) => {
        if !module_parameters::quiet.value() {
            pr_info!($($what)*);
        }
    };
}

/// What the ioctl is called that adds a file, given by its descriptor, to those that this one needs.
const NEEDS: u32 = _IO('L' as u32, 1);

/// How many other files a file can need.
const MAX_NEEDS: usize = 4;

#[pin_data]
struct SdkTest {
    #[pin]
    _device: MiscDeviceRegistration<Data>,
}

impl kernel::InPlaceModule for SdkTest {
    fn init(_module: &'static ThisModule) -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            _device <- MiscDeviceRegistration::register(MiscDeviceOptions {
                name: c"luo_sdk_test",
            }),
            _: {
                if module_parameters::init_ms.value() > 0 {
                    say!("init\n");
                    fsleep(Delta::from_millis(module_parameters::init_ms.value()));
                }
                fail(module_parameters::init_errno.value())?;
            },
        })
    }
}

/// Fails with an errno, unless it is 0.
fn fail(errno: i32) -> Result {
    match errno {
        0 => Ok(()),
        errno => Err(Error::from_errno(-errno)),
    }
}

/// A callback that is to fail, and for whom.
struct Fault {
    number: Atomic<u64>,
    errno: Atomic<i32>,
}

impl Fault {
    const fn new() -> Self {
        Self {
            number: Atomic::new(0),
            errno: Atomic::new(0),
        }
    }

    fn set(&self, number: u64, errno: i32) {
        self.number.store(number, Relaxed);
        self.errno.store(errno, Relaxed);
    }

    fn check(&self, number: u64) -> Result {
        match number == self.number.load(Relaxed) {
            true => fail(self.errno.load(Relaxed)),
            false => Ok(()),
        }
    }
}

static PRESERVE: Fault = Fault::new();
static FREEZE: Fault = Fault::new();
static RETRIEVE: Fault = Fault::new();
static CAN_FINISH: Fault = Fault::new();
static FLB_PRESERVE: Fault = Fault::new();
static FLB_RETRIEVE: Fault = Fault::new();

fn fault(name: &[u8]) -> Result<&'static Fault> {
    match name {
        b"preserve" => Ok(&PRESERVE),
        b"freeze" => Ok(&FREEZE),
        b"retrieve" => Ok(&RETRIEVE),
        b"can_finish" => Ok(&CAN_FINISH),
        b"flb-preserve" => Ok(&FLB_PRESERVE),
        b"flb-retrieve" => Ok(&FLB_RETRIEVE),
        _ => Err(EINVAL),
    }
}

/// The two kinds of files.
struct Kind;

impl Kind {
    const A: u32 = 0;
    const B: u32 = 1;
}

/// What an open file is.
#[pin_data]
struct Data {
    number: Atomic<u64>,
    kind: Atomic<u32>,
    #[pin]
    inner: Mutex<Inner>,
}

struct Inner {
    needs: KVec<Need>,
    lenient: bool,
    guards: KVec<Guard>,
}

/// Another file that a file needs: at first either is known, after a live update both are.
struct Need {
    token: Option<u64>,
    file: Option<ARef<File>>,
}

/// A use of an FLB's object.
enum Guard {
    OutgoingFirst { _guard: Outgoing<Shared<1>> },
    OutgoingSecond { _guard: Outgoing<Shared<2>> },
    IncomingFirst { _guard: Incoming<Shared<1>> },
    IncomingSecond { _guard: Incoming<Shared<2>> },
}

impl Guard {
    fn outgoing(flb: u64) -> Result<Self> {
        match flb {
            1 => Ok(Self::OutgoingFirst {
                _guard: Outgoing::get()?,
            }),
            2 => Ok(Self::OutgoingSecond {
                _guard: Outgoing::get()?,
            }),
            _ => Err(EINVAL),
        }
    }

    fn incoming(flb: u64) -> Result<Self> {
        match flb {
            1 => Ok(Self::IncomingFirst {
                _guard: Incoming::get()?,
            }),
            2 => Ok(Self::IncomingSecond {
                _guard: Incoming::get()?,
            }),
            _ => Err(EINVAL),
        }
    }
}

impl Data {
    fn new(number: u64, kind: u32, needs: KVec<Need>) -> Result<Pin<KBox<Self>>> {
        KBox::pin_init(
            pin_init!(Self {
                number: Atomic::new(number),
                kind: Atomic::new(kind),
                inner <- new_mutex!(Inner {
                    needs,
                    lenient: false,
                    guards: KVec::new(),
                }),
            }),
            GFP_KERNEL,
        )
    }

    /// The data of a file of this device.
    fn of(file: &File) -> Result<Pin<&Self>> {
        miscdevice::data::<Self>(file).ok_or(EINVAL)
    }

    fn number(&self) -> u64 {
        self.number.load(Relaxed)
    }

    fn need(&self, need: Need) -> Result {
        let mut inner = self.inner.lock();
        match inner.needs.len() < MAX_NEEDS {
            true => Ok(inner.needs.push(need, GFP_KERNEL)?),
            false => Err(ENOSPC),
        }
    }

    /// The tokens of the files that this one needs, as far as they are known.
    fn tokens(&self, token_of: impl Fn(&File) -> Option<u64>) -> Tokens {
        let mut tokens = Tokens::default();
        let inner = self.inner.lock();
        for (slot, need) in tokens.tokens.iter_mut().zip(&inner.needs) {
            *slot = match &need.file {
                Some(file) => token_of(file),
                None => need.token,
            };
            tokens.count += 1;
        }
        tokens
    }

    fn command(&self, line: &[u8]) -> Result {
        let mut words = line
            .split(|byte| byte.is_ascii_whitespace())
            .filter(|word| !word.is_empty());
        let command = words.next().ok_or(EINVAL)?;
        let mut word = || words.next().ok_or(EINVAL);
        match command {
            b"number" => self.number.store(parse(word()?)?, Relaxed),
            b"kind" => match word()? {
                b"a" => self.kind.store(Kind::A, Relaxed),
                b"b" => self.kind.store(Kind::B, Relaxed),
                _ => return Err(EINVAL),
            },
            b"token" => self.need(Need {
                token: Some(parse(word()?)?),
                file: None,
            })?,
            b"lenient" => self.inner.lock().lenient = true,
            b"forget" => {
                let needs = core::mem::take(&mut self.inner.lock().needs);
                drop(needs);
            }
            b"fail" => {
                let fault = fault(word()?)?;
                let number = parse(word()?)?;
                fault.set(number, i32::from_str(BStr::from_bytes(word()?))?);
            }
            b"outgoing" => self.hold(Guard::outgoing(parse(word()?)?)?)?,
            b"incoming" => self.hold(Guard::incoming(parse(word()?)?)?)?,
            b"release" => {
                let guards = core::mem::take(&mut self.inner.lock().guards);
                drop(guards);
            }
            b"note" => {
                let flb: u64 = parse(word()?)?;
                let number = parse(word()?)?;
                match flb {
                    1 => Outgoing::<Shared<1>>::get()?.state().number = number,
                    2 => Outgoing::<Shared<2>>::get()?.state().number = number,
                    _ => return Err(EINVAL),
                }
            }
            _ => return Err(EINVAL),
        }
        Ok(())
    }

    fn hold(&self, guard: Guard) -> Result {
        Ok(self.inner.lock().guards.push(guard, GFP_KERNEL)?)
    }
}

fn parse(word: &[u8]) -> Result<u64> {
    u64::from_str(BStr::from_bytes(word))
}

impl fmt::Display for Data {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.number())?;
        for need in &self.inner.lock().needs {
            if let (Some(token), Some(file)) = (need.token, &need.file) {
                match miscdevice::data::<Data>(file) {
                    Some(data) => write!(f, " {token}={}", data.number())?,
                    None => write!(f, " {token}=other")?,
                }
            }
        }
        writeln!(f)
    }
}

#[vtable]
impl MiscDevice for Data {
    type Ptr = Pin<KBox<Self>>;

    fn open(_file: &File, _device: &MiscDeviceRegistration<Self>) -> Result<Self::Ptr> {
        Self::new(0, Kind::A, KVec::new())
    }

    /// Always from the start, wherever the position is.
    fn read_iter(kiocb: Kiocb<'_, Self::Ptr>, to: &mut IovIterDest<'_>) -> Result<usize> {
        let text = CString::try_from_fmt(fmt!("{}", &*kiocb.file()))?;
        to.simple_read_from_buffer(&mut 0, text.to_bytes())
    }

    fn write_iter(kiocb: Kiocb<'_, Self::Ptr>, from: &mut IovIterSource<'_>) -> Result<usize> {
        let mut buffer = [0; 64];
        let len = from.copy_from_iter(&mut buffer);
        kiocb.file().command(buffer.get(..len).ok_or(EINVAL)?)?;
        Ok(len)
    }

    fn ioctl(data: Pin<&Self>, _file: &File, command: u32, argument: usize) -> Result<isize> {
        if command != NEEDS {
            return Err(ENOTTY);
        }
        let file = LocalFile::fget(u32::try_from(argument).map_err(|_| EBADF)?)?;
        // SAFETY: In an ioctl this task has no `fdget_pos()` under way.
        let file = unsafe { LocalFile::assume_no_fdget_pos(file) };
        data.need(Need {
            token: None,
            file: Some(file),
        })?;
        Ok(0)
    }
}

/// The tokens of needed files; `None` for a file that has none in the session.
#[derive(Clone, Copy, Default)]
struct Tokens {
    tokens: [Option<u64>; MAX_NEEDS],
    count: usize,
}

impl Tokens {
    fn iter(&self) -> impl Iterator<Item = Option<u64>> + '_ {
        self.tokens.iter().copied().take(self.count)
    }
}

impl fmt::Display for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for token in self.iter() {
            match token {
                Some(token) => write!(f, " {token}")?,
                None => write!(f, " none")?,
            }
        }
        Ok(())
    }
}

/// What the next kernel reads of a file.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct State {
    number: u64,
    lenient: u64,
    /// How many of the `tokens` there are.
    count: u64,
    tokens: [u64; MAX_NEEDS],
}

impl State {
    fn save(&mut self, data: &Data, tokens: &Tokens) {
        self.number = data.number();
        self.lenient = u64::from(data.inner.lock().lenient);
        self.count = 0;
        for (slot, token) in self.tokens.iter_mut().zip(tokens.iter().flatten()) {
            *slot = token;
            self.count += 1;
        }
    }

    fn tokens(&self) -> impl Iterator<Item = u64> + '_ {
        let count = usize::try_from(self.count).unwrap_or(0);
        self.tokens.iter().copied().take(count)
    }
}

/// The handler of one kind of files.
struct Handler<const KIND: u32>;

#[vtable]
impl<const KIND: u32> LiveupdateFileHandler for Handler<KIND> {
    const COMPATIBLE: &'static CStr = match KIND {
        Kind::A => c"luo-sdk-test-a",
        _ => c"luo-sdk-test-b",
    };

    type State = State;

    /// The number at the time, in memory of its own.
    type Private = KBox<u64>;

    fn can_preserve(file: &File) -> bool {
        Data::of(file).is_ok_and(|data| data.kind.load(Relaxed) == KIND)
    }

    fn preserve(cx: &Preserve<'_>, state: &mut State) -> Result<KBox<u64>> {
        let data = Data::of(cx.file())?;
        let number = data.number();
        let tokens = data.tokens(|file| cx.token_of(file));
        say!("preserve {number} as {}:{tokens}\n", cx.token());
        PRESERVE.check(number)?;
        state.save(&data, &tokens);
        Ok(KBox::new(number, GFP_KERNEL)?)
    }

    fn unpreserve(_file: &File, _state: &State, number: KBox<u64>) {
        say!("unpreserve {}\n", *number);
    }

    fn freeze(cx: &Freeze<'_>, state: &mut State, _number: &mut KBox<u64>) -> Result {
        let data = Data::of(cx.file())?;
        let tokens = data.tokens(|file| cx.token_of(file));
        say!("freeze {} as {}:{tokens}\n", data.number(), cx.token());
        FREEZE.check(data.number())?;
        state.save(&data, &tokens);
        Ok(())
    }

    fn unfreeze(_file: &File, state: &State, _number: &mut KBox<u64>) {
        say!("unfreeze {}\n", state.number);
    }

    fn retrieve(cx: &mut Retrieve<'_>, state: &State) -> Result<ARef<File>> {
        let number = state.number;
        say!("retrieve {number} as {}\n", cx.token());
        RETRIEVE.check(number)?;
        let mut needs = KVec::new();
        for token in state.tokens() {
            let fetched = cx.fetch(token);
            match &fetched {
                Ok(_) => say!("fetch {token} for {number}\n"),
                Err(err) => say!("fetch {token} for {number}: {err:?}\n"),
            }
            let need = Need {
                token: Some(token),
                file: match fetched {
                    Ok(file) => Some(file),
                    Err(_) if state.lenient != 0 => None,
                    Err(err) => return Err(err),
                },
            };
            needs.push(need, GFP_KERNEL)?;
        }
        let data = Data::new(number, KIND, needs)?;
        miscdevice::new_file::<Data>(c"[luo_sdk_test]", data, flags::O_RDWR)
    }

    fn can_finish(cx: &Finish<'_>, file: Option<&File>) -> bool {
        let what = match file {
            Some(_) => "retrieved",
            None => "not retrieved",
        };
        say!("can_finish {} {what}\n", cx.token());
        CAN_FINISH.check(cx.token()).is_ok()
    }

    fn finish(cx: &Finish<'_>, outcome: Outcome<'_, State>) {
        let token = cx.token();
        match outcome {
            Outcome::Retrieved(file) => {
                let Ok(data) = Data::of(file) else {
                    return;
                };
                say!("finish {token} retrieved\n");
                for need in &data.inner.lock().needs {
                    look_up(cx, need);
                }
            }
            Outcome::Failed(err) => say!("finish {token} failed {err:?}\n"),
            Outcome::Unclaimed(state) => {
                say!("finish {token} unclaimed\n");
                for token in state.tokens() {
                    look_up(
                        cx,
                        &Need {
                            token: Some(token),
                            file: None,
                        },
                    );
                }
            }
        }
    }
}

/// Says what a finish finds of a file that was needed.
fn look_up(cx: &Finish<'_>, need: &Need) {
    let Some(token) = need.token else {
        return;
    };
    let what = match (cx.retrieved(token), &need.file) {
        (None, _) => "not there",
        (Some(found), Some(file)) if core::ptr::eq(found, &**file) => "the same",
        (Some(_), Some(_)) => "another",
        (Some(_), None) => "there",
    };
    say!("finish {} finds {token} {what}\n", cx.token());
}

/// An FLB: its state and its object are a number.
struct Shared<const N: u64>;

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct SharedState {
    number: u64,
}

#[vtable]
impl<const N: u64> FileLifecycleBound for Shared<N> {
    const COMPATIBLE: &'static CStr = match N {
        1 => c"luo-sdk-flb-1",
        _ => c"luo-sdk-flb-2",
    };

    type State = SharedState;

    type Object = KBox<u64>;

    fn preserve(state: &mut SharedState) -> Result<KBox<u64>> {
        say!("flb-{N} preserve\n");
        FLB_PRESERVE.check(N)?;
        state.number = N;
        Ok(KBox::new(N, GFP_KERNEL)?)
    }

    fn unpreserve(state: &SharedState, _object: KBox<u64>) {
        say!("flb-{N} unpreserve {}\n", state.number);
    }

    fn retrieve(state: &SharedState) -> Result<KBox<u64>> {
        say!("flb-{N} retrieve {}\n", state.number);
        FLB_RETRIEVE.check(N)?;
        Ok(KBox::new(state.number, GFP_KERNEL)?)
    }

    fn finish(object: KBox<u64>) {
        say!("flb-{N} finish {}\n", *object);
    }
}
