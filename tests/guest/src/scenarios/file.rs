// SPDX-License-Identifier: GPL-2.0

//! Files in sessions, whatever their kind.

use crate::context::{Context, create, device, expect_errno, finish, retrieve};
use crate::data;
use crate::registry::{Group, Scenario};
use anyhow::{Context as _, Result, ensure};
use liveupdate::{Errno, SessionName, Token};
use rustix::fs::{Mode, OFlags};
use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;

pub const GROUP: Group = Group {
    name: "file",
    scenarios: &[
        Scenario {
            name: "file-in-two-sessions",
            stages: &[two_sessions],
        },
        Scenario {
            name: "file-token-twice",
            stages: &[token_twice],
        },
        Scenario {
            name: "file-unsupported",
            stages: &[unsupported],
        },
        Scenario {
            name: "file-bad-descriptor",
            stages: &[bad_descriptor],
        },
        Scenario {
            name: "file-free-after-the-session-is-closed",
            stages: &[free_after_close],
        },
        Scenario {
            name: "file-refused-loses-nothing",
            stages: &[refused_before, refused_after],
        },
        Scenario {
            name: "file-any-token",
            stages: &[any_token_before, any_token_after],
        },
        Scenario {
            name: "file-missing-token",
            stages: &[|context| one(context, "missing"), missing_after],
        },
        Scenario {
            name: "file-retrieved-again-is-the-same",
            stages: &[|context| one(context, "again"), again_after],
        },
        Scenario {
            name: "file-preserved-again-after-the-finish",
            stages: &[
                |context| one(context, "preserve-again"),
                preserve_again_after,
            ],
        },
        Scenario {
            name: "file-not-retrieved",
            stages: &[not_retrieved_before, not_retrieved_after],
        },
        Scenario {
            name: "file-many",
            stages: &[many_before, many_after],
        },
    ],
};

const LEN: u64 = 10_000;

fn one(context: &mut Context<'_>, name: &str) -> Result<()> {
    let session = create(name)?;
    session.preserve(data::memfd_with(name, 7, LEN)?, Token(7))?;
    context.keep(session);
    Ok(())
}

fn two_sessions(_: &mut Context<'_>) -> Result<()> {
    let (first, second) = (create("two-a")?, create("two-b")?);
    let file = data::memfd_with("file", 1, LEN)?;
    first.preserve(&file, Token(1))?;
    let busy = |what: &str, result| expect_errno(what, result, Errno::BUSY);
    busy("another session", second.preserve(&file, Token(1)))?;
    busy("the same session", first.preserve(&file, Token(2)))?;
    let copy = file.try_clone()?;
    busy("a duplicate", second.preserve(&copy, Token(2)))?;
    // The same memory through another open file.
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let reopened = File::options().read(true).write(true).open(path)?;
    busy("opened again", second.preserve(&reopened, Token(3)))?;
    drop(first);
    second
        .preserve(&file, Token(1))
        .context("after the first session was closed")
}

fn token_twice(_: &mut Context<'_>) -> Result<()> {
    let session = create("tokens")?;
    let (first, second) = (
        data::memfd_with("a", 1, LEN)?,
        data::memfd_with("b", 2, LEN)?,
    );
    session.preserve(&first, Token(5))?;
    let result = session.preserve(&second, Token(5));
    expect_errno("a token for a second file", result, Errno::EXIST)?;
    let result = session.preserve(&first, Token(5));
    expect_errno("a token for the same file", result, Errno::EXIST)?;
    session
        .preserve(&second, Token(6))
        .context("another token")?;
    // In another session it is another token.
    let other = create("tokens-other")?;
    other
        .preserve(data::memfd_with("c", 3, LEN)?, Token(5))
        .context("another session")
}

fn unsupported(_: &mut Context<'_>) -> Result<()> {
    let session = create("unsupported")?;
    let refused = |what: &str, result| expect_errno(what, result, Errno::NOENT);
    let null = File::open("/dev/null")?;
    refused("a device", session.preserve(&null, Token(1)))?;
    let directory = File::open("/")?;
    refused("a directory", session.preserve(&directory, Token(1)))?;
    let proc = File::open("/proc/self/stat")?;
    refused("a file of /proc", session.preserve(&proc, Token(1)))?;
    let named = File::create("/tmp/named")?;
    refused("a file with a name", session.preserve(&named, Token(1)))?;
    let (pipe, _other_end) = std::io::pipe()?;
    refused("a pipe", session.preserve(&pipe, Token(1)))?;
    refused("the session itself", session.preserve(&session, Token(1)))?;
    let device = device()?;
    refused("the device", session.preserve(&device, Token(1)))?;
    session
        .preserve(data::memfd_with("file", 1, LEN)?, Token(1))
        .context("a memfd under the same token")
}

fn bad_descriptor(_: &mut Context<'_>) -> Result<()> {
    let session = create("bad-fd")?;
    // SAFETY: no file has this descriptor, and nothing but the session is asked about it.
    let nothing = unsafe { BorrowedFd::borrow_raw(4000) };
    let result = session.preserve(nothing, Token(1));
    expect_errno("a closed descriptor", result, Errno::BADF)?;
    let path = rustix::fs::open("/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    let result = session.preserve(&path, Token(1));
    expect_errno("a descriptor of a mere path", result, Errno::BADF)
}

fn free_after_close(_: &mut Context<'_>) -> Result<()> {
    let file = data::memfd_with("file", 1, LEN)?;
    for round in 0..20 {
        let session = create("free")?;
        session
            .preserve(&file, Token(1))
            .with_context(|| format!("round {round}"))?;
    }
    data::expect_file(&file, 1, LEN)
}

fn refused_before(context: &mut Context<'_>) -> Result<()> {
    let session = create("refused")?;
    session.preserve(data::memfd_with("a", 1, LEN)?, Token(1))?;
    let null = File::open("/dev/null")?;
    expect_errno("a device", session.preserve(&null, Token(2)), Errno::NOENT)?;
    session.preserve(data::memfd_with("c", 3, LEN)?, Token(3))?;
    context.keep(session);
    Ok(())
}

fn refused_after(_: &mut Context<'_>) -> Result<()> {
    let session = retrieve("refused")?;
    data::expect_file(&data::file(session.retrieve(Token(1))?), 1, LEN)?;
    let refused = session.retrieve(Token(2));
    expect_errno("the refused one", refused, Errno::NOENT)?;
    data::expect_file(&data::file(session.retrieve(Token(3))?), 3, LEN)?;
    finish(session)
}

const TOKENS: [u64; 6] = [0, 1, 0x7fff_ffff, 1 << 32, 1 << 63, u64::MAX];

fn any_token_before(context: &mut Context<'_>) -> Result<()> {
    let session = create("any-token")?;
    for token in TOKENS {
        session.preserve(data::memfd_with("file", token, LEN)?, Token(token))?;
    }
    context.keep(session);
    Ok(())
}

fn any_token_after(_: &mut Context<'_>) -> Result<()> {
    let session = retrieve("any-token")?;
    for token in TOKENS.into_iter().rev() {
        let file = session.retrieve(Token(token));
        let file = file.with_context(|| format!("token {token:#x}"))?;
        data::expect_file(&data::file(file), token, LEN)?;
    }
    finish(session)
}

fn missing_after(_: &mut Context<'_>) -> Result<()> {
    let session = retrieve("missing")?;
    for token in [0, 6, 8, u64::MAX] {
        let result = session.retrieve(Token(token));
        expect_errno(&format!("token {token:#x}"), result, Errno::NOENT)?;
    }
    data::expect_file(&data::file(session.retrieve(Token(7))?), 7, LEN)?;
    finish(session)
}

fn again_after(_: &mut Context<'_>) -> Result<()> {
    let session = retrieve("again")?;
    let mut first = data::file(session.retrieve(Token(7))?);
    let mut second = data::file(session.retrieve(Token(7))?);
    ensure!(
        first.as_raw_fd() != second.as_raw_fd(),
        "it is one descriptor"
    );
    let (a, b) = (first.metadata()?, second.metadata()?);
    ensure!(
        a.dev() == b.dev() && a.ino() == b.ino(),
        "they are two files"
    );
    first.seek(SeekFrom::Start(1234))?;
    let position = second.stream_position()?;
    ensure!(position == 1234, "each has a position of its own");
    // It is that file even if the first descriptor is closed and the session is not.
    drop((first, second));
    let third = data::file(session.retrieve(Token(7))?);
    ensure!(
        third.metadata()?.ino() == a.ino(),
        "a third is another file"
    );
    data::expect_file(&third, 7, LEN)?;
    finish(session)
}

fn preserve_again_after(_: &mut Context<'_>) -> Result<()> {
    let session = retrieve("preserve-again")?;
    let file = data::file(session.retrieve(Token(7))?);
    let next = create("preserve-again-next")?;
    let result = next.preserve(&file, Token(1));
    expect_errno("before the finish", result, Errno::BUSY)?;
    finish(session)?;
    next.preserve(&file, Token(1)).context("after the finish")?;
    data::expect_file(&file, 7, LEN)
}

fn not_retrieved_before(context: &mut Context<'_>) -> Result<()> {
    let session = create("not-retrieved")?;
    for token in 0..5 {
        session.preserve(data::memfd_with("file", token, LEN)?, Token(token))?;
    }
    context.keep(session);
    Ok(())
}

/// Files that nobody asks for do not disturb the others.
fn not_retrieved_after(_: &mut Context<'_>) -> Result<()> {
    let session = retrieve("not-retrieved")?;
    let file = data::file(session.retrieve(Token(3))?);
    finish(session)?;
    data::expect_file(&file, 3, LEN)?;
    let name = SessionName::new("not-retrieved")?;
    let result = device()?.retrieve_session(&name);
    expect_errno("the finished session", result, Errno::NOENT)
}

/// More than three blocks of files.
const MANY: u64 = 200;

fn many_before(context: &mut Context<'_>) -> Result<()> {
    let session = create("many-files")?;
    for i in 0..MANY {
        let file = data::memfd_with("file", i, 100 + i)?;
        session.preserve(file, Token(i * 3))?;
    }
    context.keep(session);
    Ok(())
}

fn many_after(_: &mut Context<'_>) -> Result<()> {
    let session = retrieve("many-files")?;
    for i in (0..MANY).rev() {
        let file = session.retrieve(Token(i * 3));
        let file = file.with_context(|| format!("file {i}"))?;
        data::expect_file(&data::file(file), i, 100 + i)?;
    }
    finish(session)
}
