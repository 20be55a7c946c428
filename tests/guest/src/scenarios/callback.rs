// SPDX-License-Identifier: GPL-2.0

//! A handler's callbacks: their order, and what happens when they fail.

use crate::context::{Context, create, expect_eq, expect_errno, expect_message, finish, retrieve};
use crate::data;
use crate::kexec;
use crate::kmsg::Reader;
use crate::module::{self, COMPATIBLE, TEST, callbacks, number, set, test_file};
use crate::registry::{Group, Scenario};
use anyhow::{Context as _, Result, ensure};
use liveupdate::{Errno, Outgoing, Session, Token};
use rustix::fs::FallocateFlags;

pub const GROUP: Group = Group {
    name: "callback",
    scenarios: &[
        Scenario {
            name: "module-refuses-to-unload-while-a-file-is-preserved",
            stages: &[unload],
        },
        Scenario {
            name: "preserve-failure-leaves-nothing",
            stages: &[preserve_fails],
        },
        Scenario {
            name: "unpreserve-comes-last-in-first-out",
            stages: &[unpreserve_order],
        },
        Scenario {
            name: "freeze-comes-first-in-first-out",
            stages: &[freeze_order],
        },
        Scenario {
            name: "freeze-failure-fails-the-reboot",
            stages: &[freeze_fails, freeze_failed_after],
        },
        Scenario {
            name: "finish-comes-last-in-first-out",
            stages: &[
                |context| three(context, "finish-order", 30),
                finish_order_after,
            ],
        },
        Scenario {
            name: "retrieve-failure-is-final",
            stages: &[
                |context| three(context, "retrieve-fails", 40),
                retrieve_fails_after,
            ],
        },
        Scenario {
            name: "finish-refused-leaves-everything",
            stages: &[
                |context| three(context, "refused-finish", 50),
                refused_after,
            ],
        },
        Scenario {
            name: "close-refused-keeps-the-session",
            stages: &[
                |context| three(context, "refused-close", 60),
                refused_close_after,
            ],
        },
        Scenario {
            name: "module-refuses-to-unload-until-finish",
            stages: &[|context| three(context, "unload-in", 70), unload_after],
        },
    ],
};

/// In kernels after the first one another scenario may have loaded it.
fn load(context: &Context<'_>) -> Result<()> {
    if !module::is_loaded(TEST) {
        module::load(&context.module(TEST))?;
    }
    Ok(())
}

/// A session with files that hold `base`, `base + 2` and `base + 4` under these tokens.
fn session_of_three(name: &str, base: u64) -> Result<Session<Outgoing>> {
    let session = create(name)?;
    for n in [base, base + 2, base + 4] {
        session.preserve(test_file(n)?, Token(n))?;
    }
    Ok(session)
}

fn three(context: &mut Context<'_>, name: &str, base: u64) -> Result<()> {
    load(context)?;
    context.keep(session_of_three(name, base)?);
    Ok(())
}

fn expect_order(log: &mut Reader, names: &[&str], expected: &[&str]) -> Result<()> {
    let found = callbacks(log, names)?;
    ensure!(
        found == expected,
        "the callbacks came as {found:?}, expected {expected:?}"
    );
    Ok(())
}

fn unload(context: &mut Context<'_>) -> Result<()> {
    load(context)?;
    let session = create("unload")?;
    module::unload(TEST).context("with a session that has no file of it")?;
    load(context)?;
    let file = test_file(2)?;
    session.preserve(&file, Token(1))?;
    drop(file);
    expect_errno("while preserved", module::unload(TEST), Errno::AGAIN)?;
    drop(session);
    module::unload(TEST).context("after the session was closed")?;
    load(context)?;
    create("unload")?
        .preserve(test_file(4)?, Token(1))
        .context("after it was loaded again")
}

fn preserve_fails(context: &mut Context<'_>) -> Result<()> {
    load(context)?;
    let session = create("preserve-fails")?;
    let file = test_file(2)?;
    for errno in [Errno::NOMEM, Errno::NXIO] {
        set("preserve_errno", -errno.raw_os_error())?;
        let result = session.preserve(&file, Token(1));
        set("preserve_errno", 0)?;
        expect_errno("preserve", result, errno)?;
    }
    let mut log = Reader::from_now()?;
    session
        .preserve(&file, Token(1))
        .context("the same file and token")?;
    drop(session);
    // What failed is not undone a second time.
    expect_order(&mut log, &["unpreserve"], &["unpreserve 2"])
}

fn unpreserve_order(context: &mut Context<'_>) -> Result<()> {
    load(context)?;
    let mut log = Reader::from_now()?;
    drop(session_of_three("unpreserve-order", 20)?);
    expect_order(
        &mut log,
        &["preserve", "unpreserve"],
        &[
            "preserve 20",
            "preserve 22",
            "preserve 24",
            "unpreserve 24",
            "unpreserve 22",
            "unpreserve 20",
        ],
    )
}

/// What is preserved around a file whose freeze fails.
struct Around {
    first: Session<Outgoing>,
    second: Session<Outgoing>,
    memory: std::fs::File,
}

fn around(name: &str) -> Result<Around> {
    let first = session_of_three(&format!("{name}-a"), 80)?;
    let second = create(&format!("{name}-b"))?;
    let memory = data::memfd_with("file", 1, 100_000)?;
    second.preserve(test_file(90)?, Token(90))?;
    second.preserve(&memory, Token(1))?;
    Ok(Around {
        first,
        second,
        memory,
    })
}

fn freeze_fails(context: &mut Context<'_>) -> Result<()> {
    load(context)?;
    let around = around("freeze")?;
    around.second.preserve(test_file(91)?, Token(91))?;
    around.second.preserve(test_file(92)?, Token(92))?;
    // A session after the one that fails is not touched at all.
    let last = create("freeze-c")?;
    last.preserve(test_file(94)?, Token(94))?;

    for errno in [Errno::BUSY, Errno::NODEV] {
        let mut log = Reader::from_now()?;
        set("freeze_errno", -errno.raw_os_error())?;
        let result: Result<(), Errno> = Err(kexec::reboot());
        set("freeze_errno", 0)?;
        expect_errno("reboot", result, errno)?;
        let found = callbacks(&mut log, &["freeze", "unfreeze", "unpreserve"])?;
        let own = |line: &&String| {
            !line
                .split(' ')
                .any(|n| n.parse::<u64>().is_ok_and(|n| n < 80))
        };
        let found: Vec<&String> = found.iter().filter(own).collect();
        let expected = [
            "freeze 80",
            "freeze 82",
            "freeze 84",
            "freeze 90",
            "freeze 91",
            "unfreeze 90",
            "unfreeze 84",
            "unfreeze 82",
            "unfreeze 80",
        ];
        ensure!(found == expected, "the callbacks came as {found:?}");
    }

    // Everything works as before.
    let result = around.second.preserve(&around.memory, Token(2));
    expect_errno("its memfd again", result, Errno::BUSY)?;
    let grow = around
        .memory
        .set_len(200_000)
        .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO));
    expect_errno("growing the memfd", grow, Errno::PERM)?;
    around
        .first
        .preserve(data::memfd_with("more", 2, 5000)?, Token(7))
        .context("another file")?;
    let other = create("freeze-d").context("another session")?;
    other.preserve(test_file(96)?, Token(96))?;
    drop(other);
    create("freeze-d").context("its name again")?;
    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    let hole = rustix::fs::fallocate(&around.memory, punch, 0, data::page());
    expect_errno("a hole in the memfd", hole, Errno::PERM)?;
    // The odd one would fail the reboot of all the scenarios in this kernel only if it were asked
    // to.
    context.keep(around);
    context.keep(last);
    Ok(())
}

fn freeze_failed_after(context: &mut Context<'_>) -> Result<()> {
    load(context)?;
    let first = retrieve("freeze-a")?;
    for n in [80, 82, 84] {
        let file = data::file(first.retrieve(Token(n))?);
        expect_eq("a number", number(&file)?, n)?;
    }
    data::expect_file(&data::file(first.retrieve(Token(7))?), 2, 5000)?;
    finish(first)?;
    let second = retrieve("freeze-b")?;
    data::expect_file(&data::file(second.retrieve(Token(1))?), 1, 100_000)?;
    for n in [92, 91, 90] {
        let file = data::file(second.retrieve(Token(n))?);
        expect_eq("a number", number(&file)?, n)?;
    }
    finish(second)?;
    let last = retrieve("freeze-c")?;
    expect_eq(
        "a number",
        number(&data::file(last.retrieve(Token(94))?))?,
        94,
    )?;
    finish(last)
}

/// All sessions, oldest first, and in each all files, oldest first.
fn freeze_order(context: &mut Context<'_>) -> Result<()> {
    load(context)?;
    let a = session_of_three("freeze-order-a", 200)?;
    let b = session_of_three("freeze-order-b", 210)?;
    a.preserve(test_file(206)?, Token(206))?;
    let c = create("freeze-order-c")?;
    c.preserve(test_file(221)?, Token(221))?;
    let mut log = Reader::from_now()?;
    set("freeze_errno", -Errno::IO.raw_os_error())?;
    let result: Result<(), Errno> = Err(kexec::reboot());
    set("freeze_errno", 0)?;
    expect_errno("reboot", result, Errno::IO)?;
    let found = callbacks(&mut log, &["freeze"])?;
    drop((a, b, c));
    let positions: Vec<Option<usize>> = [200, 202, 204, 206, 210, 212, 214, 221]
        .iter()
        .map(|n| found.iter().position(|line| line == &format!("freeze {n}")))
        .collect();
    ensure!(
        positions.iter().all(Option::is_some) && positions.is_sorted(),
        "the callbacks came as {found:?}"
    );
    Ok(())
}

fn finish_order_after(context: &mut Context<'_>) -> Result<()> {
    load(context)?;
    let session = retrieve("finish-order")?;
    drop(session.retrieve(Token(32))?);
    let mut log = Reader::from_now()?;
    finish(session)?;
    expect_order(
        &mut log,
        &["can_finish", "finish", "retrieve"],
        &[
            "can_finish 30",
            "can_finish 32",
            "can_finish 34",
            "finish 34 status 0",
            "finish 32 status 1",
            "finish 30 status 0",
        ],
    )
}

fn retrieve_fails_after(context: &mut Context<'_>) -> Result<()> {
    load(context)?;
    let session = retrieve("retrieve-fails")?;
    let mut log = Reader::from_now()?;
    set("retrieve_errno", -Errno::NXIO.raw_os_error())?;
    let result = session.retrieve(Token(42));
    set("retrieve_errno", 0)?;
    expect_errno("the first time", result, Errno::NXIO)?;
    let result = session.retrieve(Token(42));
    expect_errno("the second time", result, Errno::NXIO)?;
    // The handler was asked once; the other files are none the worse.
    expect_order(&mut log, &["retrieve"], &["retrieve 42"])?;
    let file = data::file(session.retrieve(Token(40))?);
    expect_eq("a number", number(&file)?, 40)?;
    let mut log = Reader::from_now()?;
    finish(session)?;
    let status = format!("finish 42 status {}", -Errno::NXIO.raw_os_error());
    expect_order(
        &mut log,
        &["finish"],
        &["finish 44 status 0", &status, "finish 40 status 1"],
    )
}

fn refused_after(context: &mut Context<'_>) -> Result<()> {
    load(context)?;
    let session = retrieve("refused-finish")?;
    let file = data::file(session.retrieve(Token(50))?);
    let mut log = Reader::from_now()?;
    set("refuse_finish", "Y")?;
    let refused = session.finish();
    set("refuse_finish", "N")?;
    let refused = refused.err().context("finish worked, expected EBUSY")?;
    expect_eq("finish", refused.errno, Errno::BUSY)?;
    let session = refused.session;
    expect_order(&mut log, &["finish"], &[])?;
    for n in [54, 52, 50] {
        let file = data::file(session.retrieve(Token(n)).context("after the refusal")?);
        expect_eq("a number", number(&file)?, n)?;
    }
    let again = create("refused-finish-next")?.preserve(&file, Token(1));
    expect_errno("preserving a file of it", again, Errno::BUSY)?;
    finish(session)
}

fn refused_close_after(context: &mut Context<'_>) -> Result<()> {
    load(context)?;
    let session = retrieve("refused-close")?;
    drop(session.retrieve(Token(62))?);
    set("refuse_finish", "Y")?;
    drop(session);
    set("refuse_finish", "N")?;
    let session = retrieve("refused-close").context("after the close")?;
    for n in [60, 62, 64] {
        let file = data::file(session.retrieve(Token(n))?);
        expect_eq("a number", number(&file)?, n)?;
    }
    finish(session)
}

fn unload_after(context: &mut Context<'_>) -> Result<()> {
    load(context)?;
    let session = retrieve("unload-in")?;
    drop(session.retrieve(Token(72))?);
    expect_errno("before the finish", module::unload(TEST), Errno::AGAIN)?;
    let name = format!("/sys/module/{TEST}/refcnt");
    let before: i64 = crate::procfs::read(&name)?.parse()?;
    finish(session)?;
    let after: i64 = crate::procfs::read(&name)?.parse()?;
    ensure!(
        after < before,
        "{before} references before the finish, {after} after"
    );
    Ok(())
}

/// The handler is not there when the sessions are read.
pub const MISSING: Group = Group {
    name: "missing-handler",
    scenarios: &[Scenario {
        name: "handler-missing-until-it-is-loaded",
        stages: &[missing_before, missing_after],
    }],
};

fn missing_before(context: &mut Context<'_>) -> Result<()> {
    module::load(&context.module(TEST))?;
    let session = create("missing-handler")?;
    session.preserve(data::memfd_with("file", 1, 5000)?, Token(1))?;
    session.preserve(test_file(6)?, Token(6))?;
    session.preserve(data::memfd_with("file", 2, 5000)?, Token(2))?;
    context.keep(session);
    let other = create("missing-handler-not")?;
    other.preserve(data::memfd_with("file", 3, 5000)?, Token(3))?;
    context.keep(other);
    Ok(())
}

fn missing_after(context: &mut Context<'_>) -> Result<()> {
    let mut log = Reader::from_boot()?;
    let session = retrieve("missing-handler")?;
    data::expect_file(&data::file(session.retrieve(Token(1))?), 1, 5000)?;
    for time in ["once", "twice"] {
        let result = session.retrieve(Token(6));
        expect_errno(
            &format!("without its handler, {time}"),
            result,
            Errno::NOENT,
        )?;
    }
    expect_message(&mut log, &[COMPATIBLE])?;
    data::expect_file(&data::file(session.retrieve(Token(2))?), 2, 5000)?;
    let other = retrieve("missing-handler-not")?;
    data::expect_file(&data::file(other.retrieve(Token(3))?), 3, 5000)?;
    finish(other).context("another session")?;

    let refused = session.finish().err();
    let refused = refused.context("finish worked without the handler")?;
    expect_eq("finish", refused.errno, Errno::BUSY)?;
    let session = refused.session;
    data::expect_file(&data::file(session.retrieve(Token(1))?), 1, 5000)?;

    module::load(&context.module(TEST))?;
    let file = data::file(session.retrieve(Token(6)).context("with its handler")?);
    expect_eq("the number", number(&file)?, 6)?;
    drop(file);
    finish(session).context("with its handler")?;
    module::unload(TEST).context("after the finish")
}
