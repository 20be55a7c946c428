// SPDX-License-Identifier: GPL-2.0

//! Every ioctl with good and with bad arguments; the answers are printed for comparison.
//!
//! Nothing is judged here. The runner on the host compares what two kernels printed.

mod pages;

use self::pages::{Arg, Pages};
use crate::context::{Context, create, device};
use crate::data;
use crate::errno;
use crate::kmsg;
use crate::raw;
use crate::registry::{Group, Scenario};
use anyhow::{Context as _, Result, ensure};
use liveupdate::uapi;
use liveupdate::{SessionName, Token};
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags};
use rustix::param::page_size;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

pub const GROUP: Group = Group {
    name: "ioctl",
    scenarios: &[Scenario {
        name: "ioctl-transcript",
        stages: &[before, after],
    }],
};

/// The ioctls by name, with the size of each one's structure.
const CALLS: [(&str, u32, usize); 6] = [
    ("create", uapi::CREATE_SESSION, 72),
    ("retrieve", uapi::RETRIEVE_SESSION, 72),
    ("preserve-fd", uapi::SESSION_PRESERVE_FD, 16),
    ("retrieve-fd", uapi::SESSION_RETRIEVE_FD, 16),
    ("finish", uapi::SESSION_FINISH, 8),
    ("get-name", uapi::SESSION_GET_NAME, 72),
];

/// One file with the name that the transcript calls it.
struct Target<'a> {
    name: &'a str,
    fd: BorrowedFd<'a>,
    pages: &'a Pages,
}

impl Target<'_> {
    /// Calls and prints; a new descriptor is given back.
    fn call(&self, what: &str, command: u32, at: *mut u8, arg: &Arg) -> Option<OwnedFd> {
        // SAFETY: `at` is in the pages, or where nothing is; nothing else uses either.
        let result = unsafe { raw::ioctl(self.fd, command, at.cast()) };
        let mut line = format!("{}: {what}: {}", self.name, answer(result));
        let mut new = None;
        let readable = at != self.pages.nowhere() && !at.is_null() && arg.0.len() >= 8;
        if readable {
            let after = self.pages.get(at, arg.0.len());
            if after != arg.0 {
                line += &changes(&arg.0, &after);
            }
            let fd = i32::from_ne_bytes([after[4], after[5], after[6], after[7]]);
            let makes_one = matches!(
                command,
                uapi::CREATE_SESSION | uapi::RETRIEVE_SESSION | uapi::SESSION_RETRIEVE_FD
            );
            if result.is_ok() && makes_one {
                // SAFETY: the call succeeded, and this is the descriptor that it made.
                new = Some(unsafe { raw::owned(fd) });
            }
        }
        kmsg::text("ioctl", line);
        new
    }

    /// Calls with an argument in an ordinary place.
    fn plain(&self, what: &str, command: u32, arg: Arg) -> Option<OwnedFd> {
        let at = self.pages.put(64, &arg.0);
        self.call(what, command, at, &arg)
    }

    /// Calls with everything that can be wrong with any argument; `good` is a good one whose
    /// effect does not matter, or which has none.
    fn abuse(&self, call: &str, command: u32, good: &Arg) -> Result<()> {
        let size = good.0.len();
        let what = |how: &str| format!("{call}, {how}");
        let none = Arg(Vec::new());
        self.call(&what("null"), command, std::ptr::null_mut(), &none);
        self.call(&what("nowhere"), command, self.pages.nowhere(), &none);
        for short in [0, 1, 3, 4, 7, size as u32 / 2, size as u32 - 1] {
            let arg = good.clone().with_size(short);
            drop(self.plain(&what(&format!("size {short}")), command, arg));
        }
        // Longer than it is known, at the end of what is there.
        for long in [1, 8, page_size() - size, page_size() - size + 1] {
            let mut arg = good.clone().with_size((size + long) as u32);
            arg.0.resize(size + long, 0);
            let at = self.pages.at_end(&arg.0, arg.0.len());
            drop(self.call(&what(&format!("{long} zeros more")), command, at, &arg));
            for place in [size, size + long - 1] {
                let mut arg = arg.clone();
                arg.0[place] = 1;
                let at = self.pages.at_end(&arg.0, arg.0.len());
                let how = format!("{long} more, byte {} is 1", place - size);
                drop(self.call(&what(&how), command, at, &arg));
            }
        }
        for size_field in [size as u32 + 1, 1 << 20, 1 << 31, u32::MAX] {
            let arg = good.clone().with_size(size_field);
            let at = self.pages.at_end(&arg.0, arg.0.len());
            let how = format!("size {size_field} where {size} bytes are");
            drop(self.call(&what(&how), command, at, &arg));
        }
        for part in [2, 4, size - 1] {
            let arg = Arg(good.0[..part].to_vec());
            let at = self.pages.at_end(&arg.0, part);
            // What could be read back is not all there.
            let how = format!("only {part} bytes are there");
            let none = Arg(Vec::new());
            drop(self.call(&what(&how), command, at, &none));
        }
        for offset in [1, 2, 4] {
            let at = self.pages.put(64 + offset, &good.0);
            drop(self.call(&what(&format!("{offset} off")), command, at, good));
        }
        Ok(())
    }

    /// Calls with a structure that cannot be written to.
    fn unwritable(&self, call: &str, command: u32, good: &Arg) -> Result<()> {
        let at = self.pages.read_only(&good.0)?;
        drop(self.call(&format!("{call}, read-only"), command, at, good));
        self.pages.writable()
    }

    /// Calls with numbers that are none.
    fn unknown_numbers(&self) {
        let kind = u32::from(uapi::IOCTL_TYPE) << 8;
        let arg = Arg::new(72).with_name(b"unknown");
        for nr in [0x02, 0x03, 0x3f, 0x44, 0x45, 0x7f, 0x80, 0xff] {
            drop(self.plain(&format!("number {nr:#x}"), kind | nr, arg.clone()));
        }
        for (call, command, size) in CALLS {
            // `_IOW`, `_IOR`, `_IOWR` of the same number, and another type.
            for direction in [1_u32, 2, 3] {
                let other = command | direction << 30 | (size as u32) << 16;
                let what = format!("{call}, direction {direction}");
                drop(self.plain(&what, other, arg.clone()));
            }
            let other = command ^ 0x0100;
            drop(self.plain(&format!("{call}, another type"), other, arg.clone()));
        }
        // TCGETS, FIGETBSZ, FS_IOC_GETFLAGS.
        for command in [0x5401, 0x2, 0x8008_6601] {
            drop(self.plain(&format!("ioctl {command:#x}"), command, arg.clone()));
        }
    }

    /// The other system calls.
    fn others(&self) -> Result<()> {
        let say = |what: &str, result: Result<u64, Errno>| {
            let result = match result {
                Ok(value) => format!("{value}"),
                Err(errno) => errno::name(errno),
            };
            kmsg::text("ioctl", format!("{}: {what}: {result}", self.name));
        };
        let mut buffer = [0; 8];
        say(
            "read",
            rustix::io::read(self.fd, &mut buffer).map(|n| n as u64),
        );
        say("write", rustix::io::write(self.fd, b"x").map(|n| n as u64));
        say(
            "lseek",
            rustix::fs::seek(self.fd, rustix::fs::SeekFrom::Start(5)),
        );
        say("fsync", rustix::fs::fsync(self.fd).map(|()| 0));
        say("ftruncate", rustix::fs::ftruncate(self.fd, 5).map(|()| 0));
        // SAFETY: the kernel chooses a place where nothing is; the mapping is never used.
        let mapped = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                page_size(),
                ProtFlags::READ,
                MapFlags::SHARED,
                self.fd,
                0,
            )
        };
        say("mmap", mapped.map(|_| 0));
        let stat = rustix::fs::fstat(self.fd)?;
        say("file mode", Ok(stat.st_mode.into()));
        let flags = rustix::fs::fcntl_getfl(self.fd)?;
        say("open flags", Ok(flags.bits().into()));
        let flags = rustix::io::fcntl_getfd(self.fd)?;
        say("descriptor flags", Ok(flags.bits().into()));
        let link = std::fs::read_link(format!("/proc/self/fd/{}", self.fd.as_raw_fd()))?;
        let link = link.display();
        kmsg::text("ioctl", format!("{}: link: {link}", self.name));
        Ok(())
    }
}

fn answer(result: Result<i32, Errno>) -> String {
    match result {
        Ok(0) => "ok".to_owned(),
        Ok(value) => format!("ok, {value}"),
        Err(errno) => errno::name(errno),
    }
}

/// What of a structure changed, without the numbers of descriptors.
fn changes(before: &[u8], after: &[u8]) -> String {
    let mut text = String::new();
    if before[..4] != after[..4] {
        text += ", size changed";
    }
    if before[4..8] != after[4..8] {
        let fd = i32::from_ne_bytes([after[4], after[5], after[6], after[7]]);
        text += if fd >= 0 { ", new fd" } else { ", negative fd" };
    }
    if before[8..] != after[8..] {
        let end = after[8..].iter().rposition(|&byte| byte != 0);
        let rest = &after[8..8 + end.map_or(0, |end| end + 1)];
        text += &format!(", then \"{}\"", rest.escape_ascii());
    }
    text
}

fn good(call: &str, size: usize) -> Arg {
    let arg = Arg::new(size);
    match call {
        "create" | "retrieve" => arg.with_name(b"transcript-new"),
        "preserve-fd" | "retrieve-fd" => arg.with_second(u32::MAX).with_token(77),
        _ => arg,
    }
}

fn before(context: &mut Context<'_>) -> Result<()> {
    let pages = Pages::new()?;
    let device = device()?;
    let session = device.create_session(&SessionName::new("transcript")?)?;
    let file = data::memfd_with("file", 1, 5000)?;
    let device_target = Target {
        name: "device",
        fd: device.as_fd(),
        pages: &pages,
    };
    let outgoing = Target {
        name: "outgoing",
        fd: session.as_fd(),
        pages: &pages,
    };
    for target in [&device_target, &outgoing] {
        target.others()?;
        target.unknown_numbers();
        for (call, command, size) in CALLS {
            let good = good(call, size);
            drop(target.plain(call, command, good.clone()));
            target.abuse(call, command, &good)?;
            target.unwritable(call, command, &good)?;
        }
    }
    names(&device_target);
    preserve_cases(&outgoing, &file)?;
    let longest = vec![b'l'; 63];
    let long = device.create_session(&SessionName::new(&longest)?)?;
    Target {
        name: "outgoing, longest name",
        fd: long.as_fd(),
        pages: &pages,
    }
    .plain("get-name", uapi::SESSION_GET_NAME, Arg::new(72));
    drop(long);

    // For the next kernel.
    let other = device.create_session(&SessionName::new("transcript-in")?)?;
    for token in [1, 2, 3] {
        other.preserve(data::memfd_with("file", token, 5000)?, Token(token))?;
    }
    for name in ["transcript-ro", "transcript-empty"] {
        context.keep(device.create_session(&SessionName::new(name)?)?);
    }
    context.keep(other);
    context.keep(session);
    Ok(())
}

fn names(device: &Target<'_>) {
    let cases: [(&str, &[u8]); 7] = [
        ("empty", b""),
        ("no NUL", &[b'x'; 64]),
        ("longest", &[b'x'; 63]),
        ("starts with NUL", b"\0after"),
        ("rest after NUL", b"before\0after"),
        ("strange", b"\xff\x01\n/"),
        ("taken", b"transcript"),
    ];
    for (call, command) in [
        ("create", uapi::CREATE_SESSION),
        ("retrieve", uapi::RETRIEVE_SESSION),
    ] {
        for (what, name) in cases {
            let arg = Arg::new(72).with_name(name);
            drop(device.plain(&format!("{call}, name {what}"), command, arg));
        }
        let arg = Arg::new(72).with_name(b"fd-field").with_second(12345);
        drop(device.plain(&format!("{call}, fd set"), command, arg));
    }
}

fn preserve_cases(outgoing: &Target<'_>, file: &File) -> Result<()> {
    let preserve = |what: &str, fd: i32, token: u64| {
        let arg = Arg::new(16).with_second(fd as u32).with_token(token);
        drop(outgoing.plain(
            &format!("preserve-fd, {what}"),
            uapi::SESSION_PRESERVE_FD,
            arg,
        ));
    };
    let null = File::open("/dev/null")?;
    let (pipe, _other_end) = std::io::pipe()?;
    let own = outgoing.fd.as_raw_fd();
    preserve("no such fd", 3999, 1);
    preserve("/dev/null", null.as_raw_fd(), 1);
    preserve("a pipe", pipe.as_raw_fd(), 1);
    preserve("itself", own, 1);
    preserve("a memfd", file.as_raw_fd(), 1);
    preserve("the token again", file.as_raw_fd(), 1);
    preserve("the token again, no such fd", 3999, 1);
    preserve("the memfd again", file.as_raw_fd(), 2);
    let second = data::memfd_with("second", 2, 5000)?;
    preserve("token 0", second.as_raw_fd(), 0);
    let third = data::memfd_with("third", 3, 5000)?;
    preserve("the largest token", third.as_raw_fd(), u64::MAX);
    let fourth = data::memfd_with("fourth", 4, 5000)?;
    let good = Arg::new(16)
        .with_second(fourth.as_raw_fd() as u32)
        .with_token(4);
    outgoing.unwritable("preserve-fd, good", uapi::SESSION_PRESERVE_FD, &good)?;
    preserve("after that", fourth.as_raw_fd(), 5);
    let other = create("transcript-other");
    // The device is open already, so that this fails; the message says with what.
    ensure!(other.is_err(), "the device was opened twice");
    Ok(())
}

fn after(context: &mut Context<'_>) -> Result<()> {
    let pages = Pages::new()?;
    let device = device()?;
    let device_target = Target {
        name: "device after",
        fd: device.as_fd(),
        pages: &pages,
    };
    for (call, command, size) in CALLS {
        drop(device_target.plain(call, command, good(call, size)));
    }
    let named = |name: &str| Arg::new(72).with_name(name.as_bytes());
    let retrieve = |what: &str, name: &str| {
        device_target.plain(
            &format!("retrieve, {what}"),
            uapi::RETRIEVE_SESSION,
            named(name),
        )
    };
    drop(retrieve("unknown", "nobody"));
    drop(retrieve("only the start of a name", "transcript-i"));
    let incoming = retrieve("good", "transcript-in").context("there is no session")?;
    drop(retrieve("again", "transcript-in"));
    // A reply that cannot be written; what happens to the session shows next.
    device_target.unwritable("retrieve", uapi::RETRIEVE_SESSION, &named("transcript-ro"))?;
    drop(retrieve("after that", "transcript-ro"));
    let empty = retrieve("empty", "transcript-empty").context("there is no session")?;

    let target = Target {
        name: "incoming",
        fd: incoming.as_fd(),
        pages: &pages,
    };
    target.others()?;
    target.unknown_numbers();
    for (call, command, size) in CALLS {
        if call == "finish" {
            continue;
        }
        let good = good(call, size);
        drop(target.plain(call, command, good.clone()));
        target.abuse(call, command, &good)?;
        target.unwritable(call, command, &good)?;
    }
    let file = |what: &str, token: u64| {
        let arg = Arg::new(16).with_second(u32::MAX).with_token(token);
        let what = format!("retrieve-fd, {what}");
        drop(target.plain(&what, uapi::SESSION_RETRIEVE_FD, arg));
    };
    file("good", 1);
    file("again", 1);
    file("unknown", 4);
    let second = Arg::new(16).with_token(2);
    target.unwritable("retrieve-fd, good", uapi::SESSION_RETRIEVE_FD, &second)?;
    file("after that", 2);

    let finish = |target: &Target<'_>, what: &str, arg: Arg| {
        drop(target.plain(&format!("finish, {what}"), uapi::SESSION_FINISH, arg));
    };
    let reserved = |value| Arg::new(8).with_second(value);
    finish(&target, "reserved 1", reserved(1));
    finish(&target, "reserved all ones", reserved(u32::MAX));
    finish(&target, "size 7", Arg::new(8).with_size(7));
    let get_name = Arg::new(72).with_second(1);
    drop(target.plain("get-name, reserved 1", uapi::SESSION_GET_NAME, get_name));
    file("still there", 3);
    finish(&target, "good", Arg::new(8));
    finish(&target, "again", Arg::new(8));
    finish(&target, "again, reserved 1", reserved(1));
    file("after the finish", 1);
    drop(target.plain(
        "get-name, after the finish",
        uapi::SESSION_GET_NAME,
        Arg::new(72),
    ));
    drop(retrieve("after the finish", "transcript-in"));

    let target = Target {
        name: "incoming, empty",
        fd: empty.as_fd(),
        pages: &pages,
    };
    drop(target.plain("retrieve-fd", uapi::SESSION_RETRIEVE_FD, Arg::new(16)));
    target.abuse("finish", uapi::SESSION_FINISH, &Arg::new(8))?;
    target.unwritable("finish", uapi::SESSION_FINISH, &Arg::new(8))?;
    context.keep((incoming, empty));
    Ok(())
}
