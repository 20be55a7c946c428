// SPDX-License-Identifier: GPL-2.0

//! Sessions and the device, without regard to files.

use crate::context::{
    Context, as_incoming, as_outgoing, create, device, expect_eq, expect_errno, finish, retrieve,
};
use crate::data;
use crate::raw;
use crate::registry::{Group, Scenario};
use anyhow::{Context as _, Result, ensure};
use liveupdate::uapi::{self, NamedSession};
use liveupdate::{Device, Errno, SessionName, Token};
use std::sync::atomic::{AtomicUsize, Ordering};

pub const GROUP: Group = Group {
    name: "session",
    scenarios: &[
        Scenario {
            name: "device-opens-once",
            stages: &[device_opens_once],
        },
        Scenario {
            name: "session-name-limits",
            stages: &[name_limits],
        },
        Scenario {
            name: "session-name-twice",
            stages: &[name_twice],
        },
        Scenario {
            name: "session-outgoing-refuses-incoming-calls",
            stages: &[outgoing_refuses],
        },
        Scenario {
            name: "session-incoming-refuses-outgoing-calls",
            stages: &[|context| one_file(context, "refuse-in"), incoming_refuses],
        },
        Scenario {
            name: "session-outlives-the-device",
            stages: &[outlives_device],
        },
        Scenario {
            name: "session-without-files",
            stages: &[empty_before, empty_after],
        },
        Scenario {
            name: "session-retrieved-once",
            stages: &[|context| one_file(context, "once"), once_after],
        },
        Scenario {
            name: "session-longest-name-comes-over",
            stages: &[longest_before, longest_after],
        },
        Scenario {
            name: "session-closing-finishes",
            stages: &[|context| one_file(context, "closing"), closing_after],
        },
        Scenario {
            name: "session-finished-twice",
            stages: &[|context| one_file(context, "twice"), twice_after],
        },
        Scenario {
            name: "session-closed-before-the-kexec",
            stages: &[closed_before, closed_after],
        },
        Scenario {
            name: "session-name-free-in-the-next-kernel",
            stages: &[|context| one_file(context, "name-free"), name_free_after],
        },
        Scenario {
            name: "session-many",
            stages: &[many_before, many_after],
        },
        Scenario {
            name: "session-retrieve-race",
            stages: &[race_before, race_after],
        },
        Scenario {
            name: "session-without-descriptors",
            stages: &[|context| one_file(context, "no-fd"), no_descriptors_after],
        },
    ],
};

/// A session with one small memfd, kept to the end of this kernel.
fn one_file(context: &mut Context<'_>, name: &str) -> Result<()> {
    let session = create(name)?;
    session.preserve(data::memfd_with(name, 1, 5000)?, Token(1))?;
    context.keep(session);
    Ok(())
}

fn device_opens_once(_: &mut Context<'_>) -> Result<()> {
    let first = device()?;
    expect_errno("a second open", Device::open(), Errno::BUSY)?;
    expect_errno("a third open", Device::open(), Errno::BUSY)?;
    drop(first);
    device().context("after the first was closed")?;
    Ok(())
}

fn name_limits(_: &mut Context<'_>) -> Result<()> {
    let device = device()?;
    let mut arg = NamedSession {
        size: size_of::<NamedSession>() as u32,
        fd: -1,
        name: [0; uapi::SESSION_NAME_LENGTH],
    };
    let empty = raw::ioctl_with(&device, uapi::CREATE_SESSION, arg);
    expect_errno("an empty name", empty, Errno::INVAL)?;
    arg.name.fill(b'x');
    let endless = raw::ioctl_with(&device, uapi::CREATE_SESSION, arg);
    expect_errno("a name without its NUL", endless, Errno::INVAL)?;

    let longest = SessionName::new("n".repeat(63))?;
    let session = device.create_session(&longest)?;
    expect_eq("the longest name", session.name()?, longest)?;
    // Bytes above 127 and blanks are as good as others.
    let strange = SessionName::new(b"\xff \x01/%s\n")?;
    let session = device.create_session(&strange)?;
    expect_eq("a strange name", session.name()?, strange)
}

fn name_twice(_: &mut Context<'_>) -> Result<()> {
    let device = device()?;
    let name = SessionName::new("twin")?;
    let first = device.create_session(&name)?;
    let second = device.create_session(&name);
    expect_errno("a second session of a name", second, Errno::EXIST)?;
    // One that only begins with the same bytes is another.
    let longer = device.create_session(&SessionName::new("twins")?)?;
    let shorter = device.create_session(&SessionName::new("twi")?)?;
    drop(first);
    device
        .create_session(&name)
        .context("after the first was closed")?;
    drop((longer, shorter));
    Ok(())
}

fn outgoing_refuses(_: &mut Context<'_>) -> Result<()> {
    let session = create("refuse-out")?;
    session.preserve(data::memfd_with("file", 1, 100)?, Token(1))?;
    let incoming = as_incoming(&session)?;
    let result = incoming.retrieve(Token(1));
    expect_errno("retrieve", result, Errno::INVAL)?;
    expect_errno("finish", incoming.finish(), Errno::INVAL)?;
    let name = SessionName::new("refuse-out")?;
    let result = device()?.retrieve_session(&name);
    expect_errno("retrieving it as a session", result, Errno::NOENT)
}

fn incoming_refuses(_: &mut Context<'_>) -> Result<()> {
    let session = retrieve("refuse-in")?;
    let file = data::memfd_with("another", 1, 100)?;
    let result = as_outgoing(&session)?.preserve(file, Token(2));
    expect_errno("preserve", result, Errno::INVAL)?;
    data::expect_file(&data::file(session.retrieve(Token(1))?), 1, 5000)?;
    finish(session)
}

fn outlives_device(_: &mut Context<'_>) -> Result<()> {
    let session = create("outlive")?;
    expect_eq(
        "its name",
        session.name()?.as_bytes(),
        b"outlive".as_slice(),
    )?;
    session
        .preserve(data::memfd_with("file", 1, 100)?, Token(1))
        .context("preserving without the device")
}

fn empty_before(context: &mut Context<'_>) -> Result<()> {
    context.keep(create("empty")?);
    Ok(())
}

fn empty_after(_: &mut Context<'_>) -> Result<()> {
    let session = retrieve("empty")?;
    expect_eq("its name", session.name()?, SessionName::new("empty")?)?;
    let result = session.retrieve(Token(0));
    expect_errno("a file of a session without any", result, Errno::NOENT)?;
    finish(session)
}

fn once_after(_: &mut Context<'_>) -> Result<()> {
    let device = device()?;
    let name = SessionName::new("once")?;
    let unknown = device.retrieve_session(&SessionName::new("never")?);
    expect_errno("a session that nobody created", unknown, Errno::NOENT)?;
    let session = device.retrieve_session(&name)?;
    let again = device.retrieve_session(&name);
    expect_errno("a second retrieve", again, Errno::INVAL)?;
    finish(session)?;
    let gone = device.retrieve_session(&name);
    expect_errno("a retrieve after the finish", gone, Errno::NOENT)
}

fn longest_name() -> String {
    format!("long-{}", "y".repeat(58))
}

fn longest_before(context: &mut Context<'_>) -> Result<()> {
    one_file(context, &longest_name())
}

fn longest_after(_: &mut Context<'_>) -> Result<()> {
    let session = retrieve(&longest_name())?;
    let expected = SessionName::new(longest_name())?;
    expect_eq("its name", session.name()?, expected)?;
    data::expect_file(&data::file(session.retrieve(Token(1))?), 1, 5000)?;
    finish(session)
}

fn closing_after(_: &mut Context<'_>) -> Result<()> {
    let session = retrieve("closing")?;
    let file = data::file(session.retrieve(Token(1))?);
    drop(session);
    data::expect_file(&file, 1, 5000)?;
    let name = SessionName::new("closing")?;
    let result = device()?.retrieve_session(&name);
    expect_errno("a retrieve after the close", result, Errno::NOENT)?;
    // Nothing holds the file any more: it can go into the next update.
    create("closing-next")?
        .preserve(&file, Token(1))
        .context("preserving it again")
}

fn twice_after(_: &mut Context<'_>) -> Result<()> {
    let session = retrieve("twice")?;
    let again = crate::context::again(&session)?;
    finish(session).context("the first time")?;
    let result = again.retrieve(Token(1));
    expect_errno("a file after the finish", result, Errno::NOENT)?;
    finish(again).context("the second time")
}

fn closed_before(_: &mut Context<'_>) -> Result<()> {
    let session = create("closed")?;
    session.preserve(data::memfd_with("file", 1, 5000)?, Token(1))?;
    Ok(())
}

fn closed_after(_: &mut Context<'_>) -> Result<()> {
    let result = device()?.retrieve_session(&SessionName::new("closed")?);
    expect_errno("a session closed before", result, Errno::NOENT)
}

fn name_free_after(_: &mut Context<'_>) -> Result<()> {
    // What comes in and what goes out are two lists.
    let outgoing = create("name-free")?;
    let incoming = retrieve("name-free")?;
    data::expect_file(&data::file(incoming.retrieve(Token(1))?), 1, 5000)?;
    let result = as_incoming(&outgoing)?.retrieve(Token(1));
    expect_errno("the new session", result, Errno::INVAL)?;
    finish(incoming)
}

/// More than two blocks of sessions.
const MANY: usize = 120;

fn many_before(context: &mut Context<'_>) -> Result<()> {
    let device = device()?;
    let mut sessions = Vec::new();
    for i in 0..MANY {
        let session = device.create_session(&SessionName::new(format!("many-{i}"))?)?;
        if i % 10 == 0 {
            let file = data::memfd_with("file", i as u64, 100)?;
            session.preserve(file, Token(i as u64))?;
        }
        sessions.push(Some(session));
    }
    // A list with gaps comes over as well.
    for i in (3..MANY).step_by(7) {
        sessions[i] = None;
    }
    context.keep(sessions);
    Ok(())
}

fn many_after(_: &mut Context<'_>) -> Result<()> {
    let device = device()?;
    for i in (0..MANY).rev() {
        let name = SessionName::new(format!("many-{i}"))?;
        let result = device.retrieve_session(&name);
        if i % 7 == 3 {
            expect_errno(&format!("session {i}, closed before"), result, Errno::NOENT)?;
            continue;
        }
        let session = result.with_context(|| format!("session {i}"))?;
        if i % 10 == 0 {
            let file = data::file(session.retrieve(Token(i as u64))?);
            data::expect_file(&file, i as u64, 100)?;
        }
        finish(session)?;
    }
    Ok(())
}

const RACES: usize = 40;

fn race_before(context: &mut Context<'_>) -> Result<()> {
    let device = device()?;
    for i in 0..RACES {
        let name = SessionName::new(format!("race-{i}"))?;
        context.keep(device.create_session(&name)?);
    }
    Ok(())
}

/// Several threads want the same sessions: each goes to one of them.
fn race_after(_: &mut Context<'_>) -> Result<()> {
    let device = device()?;
    let wins = AtomicUsize::new(0);
    let results: Vec<Result<()>> = std::thread::scope(|scope| {
        let contender = || {
            for i in 0..RACES {
                let name = SessionName::new(format!("race-{i}"))?;
                match device.retrieve_session(&name) {
                    Ok(session) => {
                        wins.fetch_add(1, Ordering::Relaxed);
                        // Kept open, since a finished session is gone for the others.
                        std::mem::forget(session);
                    }
                    Err(errno) => expect_eq("the loser's errno", errno, Errno::INVAL)?,
                }
            }
            Ok(())
        };
        let threads: Vec<_> = (0..3).map(|_| scope.spawn(contender)).collect();
        let join = |thread: std::thread::ScopedJoinHandle<'_, Result<()>>| {
            let panicked = |_| Err(anyhow::anyhow!("a thread panicked"));
            thread.join().unwrap_or_else(panicked)
        };
        threads.into_iter().map(join).collect()
    });
    results.into_iter().collect::<Result<()>>()?;
    expect_eq("retrieved sessions", wins.into_inner(), RACES)
}

/// Running out of descriptors loses nothing.
fn no_descriptors_after(_: &mut Context<'_>) -> Result<()> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let device = device()?;
    let name = SessionName::new("no-fd")?;
    let new = SessionName::new("no-fd-new")?;
    let before = getrlimit(Resource::Nofile);
    let none = Rlimit {
        current: Some(0),
        ..before
    };
    setrlimit(Resource::Nofile, none)?;
    let created = device.create_session(&new).map(drop);
    let retrieved = device.retrieve_session(&name).map(drop);
    setrlimit(Resource::Nofile, before)?;
    expect_errno("create", created, Errno::MFILE)?;
    expect_errno("retrieve", retrieved, Errno::MFILE)?;
    drop(device.create_session(&new).context("creating it later")?);

    let session = device.retrieve_session(&name).context("getting it later")?;
    setrlimit(Resource::Nofile, none)?;
    let file = session.retrieve(Token(1)).map(drop);
    setrlimit(Resource::Nofile, before)?;
    expect_errno("retrieving a file", file, Errno::MFILE)?;
    let file = session
        .retrieve(Token(1))
        .context("getting the file later")?;
    data::expect_file(&data::file(file), 1, 5000)?;
    ensure!(session.name()? == name, "it is another session");
    finish(session)
}
