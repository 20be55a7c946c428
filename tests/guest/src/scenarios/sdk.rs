// SPDX-License-Identifier: GPL-2.0

//! What a handler written with the SDK can ask about its session: the tokens of other files before
//! the kexec, the files themselves after it.

use crate::context::{
    Context, create, device, expect_eq, expect_errno, expect_message, finish, retrieve,
};
use crate::data;
use crate::kexec;
use crate::kmsg::Reader;
use crate::registry::{Group, Scenario};
use crate::sdk::{self, File, expect, fail, never_fail, said};
use anyhow::{Context as _, Result, ensure};
use liveupdate::{Errno, Incoming, Session, SessionName, Token};
use std::fs;
use std::os::fd::{AsFd, AsRawFd};

pub const GROUP: Group = Group {
    name: "sdk",
    scenarios: &[
        Scenario {
            name: "sdk-tokens-of-other-files",
            stages: &[tokens],
        },
        Scenario {
            name: "sdk-failures-before-the-kexec",
            stages: &[failures],
        },
        Scenario {
            name: "sdk-retrieve-fetches-other-files",
            stages: &[fetch_before, fetch_after],
        },
        Scenario {
            name: "sdk-fetch-fails-cleanly",
            stages: &[fetch_fails_before, fetch_fails_after],
        },
        Scenario {
            name: "sdk-cycles-are-errors",
            stages: &[cycles_before, cycles_after],
        },
        Scenario {
            name: "sdk-chains-have-a-limit",
            stages: &[chains_before, chains_after],
        },
        Scenario {
            name: "sdk-finish-looks-files-up",
            stages: &[finish_before, finish_after],
        },
        Scenario {
            name: "sdk-finish-can-be-refused",
            stages: &[refuse_before, refuse_after],
        },
    ],
};

/// Has the reboot fail in the freeze of a file of its own, after all others; the callbacks said
/// what is returned.
fn reboot_in_vain(callbacks: &[&str]) -> Result<Vec<String>> {
    const LAST: u64 = 999;
    let last = sdk::session_of("in-vain", &[LAST])?;
    let mut log = Reader::from_now()?;
    fail("freeze", LAST, Errno::IO)?;
    let result: Result<(), Errno> = Err(kexec::reboot());
    never_fail("freeze")?;
    expect_errno("reboot", result, Errno::IO)?;
    let found = said(&mut log, callbacks)?;
    drop(last);
    Ok(found)
}

fn expect_among(found: &[String], expected: &[&str]) -> Result<()> {
    let positions: Vec<_> = expected
        .iter()
        .map(|line| found.iter().position(|found| found == line))
        .collect();
    ensure!(
        positions.iter().all(Option::is_some) && positions.is_sorted(),
        "{found:?}, expected {expected:?} among them, in this order"
    );
    Ok(())
}

fn tokens(context: &mut Context<'_>) -> Result<()> {
    sdk::load(context)?;
    let session = create("tokens")?;
    let other = create("tokens-other")?;
    let first = File::new(10)?;
    session.preserve(&first, Token(1))?;
    // By a token that means another file here.
    let elsewhere = File::new(11)?;
    other.preserve(&elsewhere, Token(1))?;
    let memfd = data::memfd_with("file", 1, 5000)?;
    session.preserve(&memfd, Token(3))?;
    let path = format!("/proc/self/fd/{}", memfd.as_raw_fd());
    let reopened = fs::File::open(path).context("opening the memfd once more")?;
    let later = File::new(12)?;

    let file = File::new_b(13)?;
    file.needs(&first)?;
    file.needs(&reopened)?;
    file.needs(&elsewhere)?;
    file.needs(&later)?;
    let itself = File::new(14)?;
    itself.needs(&itself)?;
    itself.needs(&file)?;
    itself.needs(first.as_fd().try_clone_to_owned()?)?;
    // No handler at all.
    itself.needs(fs::File::open("/proc/self/status")?)?;

    let mut log = Reader::from_now()?;
    session.preserve(&file, Token(9))?;
    session.preserve(&itself, Token(u64::MAX))?;
    expect(
        &mut log,
        &["preserve"],
        &[
            "preserve 13 as 9: 1 3 none none",
            "preserve 14 as 18446744073709551615: none 9 1 none",
        ],
    )?;

    // What is there by then.
    session.preserve(&later, Token(4))?;
    let found = reboot_in_vain(&["freeze", "unfreeze"])?;
    let expected = [
        "freeze 13 as 9: 1 3 none 4",
        "freeze 14 as 18446744073709551615: 18446744073709551615 9 1 none",
        "unfreeze 14",
        "unfreeze 13",
    ];
    expect_among(&found, &expected)?;

    // What is there no more.
    drop(other);
    let other = create("tokens-other")?;
    let asks = File::new(15)?;
    asks.needs(&elsewhere)?;
    asks.needs(&first)?;
    let mut log = Reader::from_now()?;
    other.preserve(&asks, Token(1))?;
    expect(&mut log, &["preserve"], &["preserve 15 as 1: none none"])?;
    // It keeps itself open.
    itself.command("forget")
}

/// Each callback's error is what userspace gets, and nothing is left of the file.
fn failures(context: &mut Context<'_>) -> Result<()> {
    sdk::load(context)?;
    let session = sdk::session_of("failures", &[1, 2])?;
    let file = File::new(3)?;
    let mut log = Reader::from_now()?;
    for errno in [Errno::NOMEM, Errno::NXIO] {
        fail("preserve", 3, errno)?;
        expect_errno("preserve", session.preserve(&file, Token(3)), errno)?;
    }
    never_fail("preserve")?;
    session
        .preserve(&file, Token(3))
        .context("the same once more")?;
    session.preserve(File::new(4)?, Token(4))?;
    let again = create("failures-other")?.preserve(&file, Token(1));
    expect_errno("in another session", again, Errno::BUSY)?;

    fail("freeze", 3, Errno::NODEV)?;
    let result: Result<(), Errno> = Err(kexec::reboot());
    never_fail("freeze")?;
    expect_errno("reboot", result, Errno::NODEV)?;
    drop(session);
    let found = said(&mut log, &["preserve", "freeze", "unfreeze", "unpreserve"])?;
    let expected = [
        "preserve 3 as 3:",
        "preserve 3 as 3:",
        "preserve 3 as 3:",
        "preserve 4 as 4:",
        "freeze 1 as 1:",
        "freeze 2 as 2:",
        "freeze 3 as 3:",
        "unfreeze 2",
        "unfreeze 1",
        "unpreserve 4",
        "unpreserve 3",
        "unpreserve 2",
        "unpreserve 1",
    ];
    ensure!(found == expected, "{found:?}, expected {expected:?}");
    Ok(())
}

fn fetch_before(context: &mut Context<'_>) -> Result<()> {
    sdk::load(context)?;
    let session = create("fetch")?;
    let first = File::new(1)?;
    session.preserve(&first, Token(1))?;
    let second = File::new_b(2)?;
    second.needs(&first)?;
    session.preserve(&second, Token(2))?;
    // It needs what comes later, and two files.
    let third = File::new(3)?;
    let fourth = File::new_b(4)?;
    third.needs(&fourth)?;
    third.needs(&first)?;
    session.preserve(&third, Token(3))?;
    session.preserve(&fourth, Token(4))?;
    let memfd = data::memfd_with("file", 5, 50_000)?;
    session.preserve(&memfd, Token(5))?;
    let sixth = File::new(6)?;
    sixth.needs(&memfd)?;
    session.preserve(&sixth, Token(6))?;
    let seventh = File::new(7)?;
    seventh.needs(&sixth)?;
    seventh.needs(&memfd)?;
    session.preserve(&seventh, Token(7))?;
    context.keep(session);
    Ok(())
}

fn expect_text(file: &File, text: &str) -> Result<()> {
    expect_eq("the file's text", file.text()?.as_str(), text)
}

fn fetch_after(context: &mut Context<'_>) -> Result<()> {
    const CALLBACKS: &[&str] = &["retrieve", "fetch"];
    sdk::load(context)?;
    let session = retrieve("fetch")?;
    let mut log = Reader::from_now()?;
    let second = File::retrieved(&session, 2).context("token 2")?;
    let lines = ["retrieve 2 as 2", "retrieve 1 as 1", "fetch 1 for 2"];
    expect(&mut log, CALLBACKS, &lines)?;
    expect_text(&second, "2 1=1")?;
    // The user gets the very same file.
    let first = File::retrieved(&session, 1).context("token 1")?;
    expect(&mut log, CALLBACKS, &[]).context("a file that was fetched")?;
    first.command("number 100")?;
    expect_text(&second, "2 1=100")?;

    // As do other files, of what the user got.
    let fourth = File::retrieved(&session, 4).context("token 4")?;
    let third = File::retrieved(&session, 3).context("token 3")?;
    let lines = [
        "retrieve 4 as 4",
        "retrieve 3 as 3",
        "fetch 4 for 3",
        "fetch 1 for 3",
    ];
    expect(&mut log, CALLBACKS, &lines)?;
    fourth.command("number 400")?;
    expect_text(&third, "3 4=400 1=100")?;

    let seventh = File::retrieved(&session, 7).context("token 7")?;
    let lines = [
        "retrieve 7 as 7",
        "retrieve 6 as 6",
        "fetch 5 for 6",
        "fetch 6 for 7",
        "fetch 5 for 7",
    ];
    expect(&mut log, CALLBACKS, &lines)?;
    expect_text(&seventh, "7 6=6 5=other")?;
    let memfd = data::file(session.retrieve(Token(5)).context("the memfd")?);
    data::expect_file(&memfd, 5, 50_000)?;
    let sixth = File::retrieved(&session, 6).context("token 6")?;
    expect_text(&sixth, "6 5=other")?;
    expect(&mut log, CALLBACKS, &[]).context("files that were fetched")?;

    finish(session)?;
    // They outlive the session.
    expect_text(&third, "3 4=400 1=100")?;
    data::expect_file(&memfd, 5, 50_000)?;
    expect(&mut log, &["finish"], &FETCHED)
}

/// The finish of a file finds those that were preserved before it, since the last one is first.
const FETCHED: [&str; 12] = [
    "finish 7 retrieved",
    "finish 7 finds 6 the same",
    "finish 7 finds 5 the same",
    "finish 6 retrieved",
    "finish 6 finds 5 the same",
    "finish 4 retrieved",
    "finish 3 retrieved",
    "finish 3 finds 4 not there",
    "finish 3 finds 1 the same",
    "finish 2 retrieved",
    "finish 2 finds 1 the same",
    "finish 1 retrieved",
];

fn fetch_fails_before(context: &mut Context<'_>) -> Result<()> {
    sdk::load(context)?;
    let session = create("fetch-fails")?;
    let nothing = File::new(1)?;
    nothing.command("token 99")?;
    session.preserve(&nothing, Token(1))?;
    let elsewhere = File::new(2)?;
    elsewhere.command("token 20")?;
    session.preserve(&elsewhere, Token(2))?;
    session.preserve(File::new(3)?, Token(3))?;
    for token in [4, 5] {
        let file = File::new_b(token)?;
        file.command(&format!("token {}", token - 1))?;
        session.preserve(&file, Token(token))?;
    }
    let lenient = File::new(6)?;
    lenient.command("token 3")?;
    lenient.command("token 7")?;
    lenient.command("lenient")?;
    session.preserve(&lenient, Token(6))?;
    session.preserve(File::new(7)?, Token(7))?;
    context.keep(session);
    context.keep(sdk::session_of("fetch-fails-other", &[20])?);
    Ok(())
}

fn fetch_fails_after(context: &mut Context<'_>) -> Result<()> {
    sdk::load(context)?;
    let session = retrieve("fetch-fails")?;
    let mut log = Reader::from_now()?;
    for time in ["once", "twice"] {
        for (token, what) in [(1, "no such token"), (2, "another session's token")] {
            let result = session.retrieve(Token(token));
            expect_errno(&format!("{what}, {time}"), result, Errno::NOENT)?;
        }
    }
    let lines = [
        "retrieve 1 as 1",
        "fetch 99 for 1: ENOENT",
        "retrieve 2 as 2",
        "fetch 20 for 2: ENOENT",
    ];
    expect(&mut log, &["retrieve", "fetch"], &lines)?;
    let other = retrieve("fetch-fails-other")?;
    expect_text(&File::retrieved(&other, 20)?, "20")?;
    finish(other)?;

    let mut log = Reader::from_now()?;
    // The error of one is that of all who need it.
    fail("retrieve", 3, Errno::NXIO)?;
    expect_errno("token 5", session.retrieve(Token(5)), Errno::NXIO)?;
    never_fail("retrieve")?;
    for token in [3, 4, 5] {
        let result = session.retrieve(Token(token));
        expect_errno(&format!("token {token} again"), result, Errno::NXIO)?;
    }
    // A file may do without.
    let lenient = File::retrieved(&session, 6)?;
    expect_text(&lenient, "6 7=7")?;
    let lines = [
        "retrieve 5 as 5",
        "retrieve 4 as 4",
        "retrieve 3 as 3",
        "fetch 3 for 4: ENXIO",
        "fetch 4 for 5: ENXIO",
        "retrieve 6 as 6",
        "fetch 3 for 6: ENXIO",
        "retrieve 7 as 7",
        "fetch 7 for 6",
    ];
    expect(&mut log, &["retrieve", "fetch"], &lines)?;

    let mut log = Reader::from_now()?;
    finish(session)?;
    let lines = [
        "finish 7 retrieved",
        "finish 6 retrieved",
        "finish 6 finds 3 not there",
        "finish 6 finds 7 not there",
        "finish 5 failed ENXIO",
        "finish 4 failed ENXIO",
        "finish 3 failed ENXIO",
        "finish 2 failed ENOENT",
        "finish 1 failed ENOENT",
    ];
    expect(&mut log, &["finish"], &lines)
}

/// 1 needs itself, 2 and 3 each other, 4 to 6 form a circle; 7 can do without 8, which needs it; 9
/// needs none.
fn cycles_before(context: &mut Context<'_>) -> Result<()> {
    sdk::load(context)?;
    for name in ["cycles", "cycles-closed"] {
        let session = create(name)?;
        let needs = [1, 3, 2, 5, 6, 4, 8, 7];
        for (token, needed) in (1..).zip(needs) {
            let file = File::new(token)?;
            file.command(&format!("token {needed}"))?;
            if token == 7 {
                file.command("lenient")?;
            }
            session.preserve(&file, Token(token))?;
        }
        session.preserve(File::new(9)?, Token(9))?;
        context.keep(session);
    }
    Ok(())
}

fn cycles_after(context: &mut Context<'_>) -> Result<()> {
    sdk::load(context)?;
    let session = retrieve("cycles")?;
    let mut log = Reader::from_now()?;
    let deadlock = |session: &Session<Incoming>, token| {
        let result = session.retrieve(Token(token));
        expect_errno(&format!("token {token}"), result, Errno::DEADLK)
    };
    deadlock(&session, 1)?;
    deadlock(&session, 2)?;
    deadlock(&session, 4)?;
    let lines = [
        "retrieve 1 as 1",
        "fetch 1 for 1: EDEADLK",
        "retrieve 2 as 2",
        "retrieve 3 as 3",
        "fetch 2 for 3: EDEADLK",
        "fetch 3 for 2: EDEADLK",
        "retrieve 4 as 4",
        "retrieve 5 as 5",
        "retrieve 6 as 6",
        "fetch 4 for 6: EDEADLK",
        "fetch 6 for 5: EDEADLK",
        "fetch 5 for 4: EDEADLK",
    ];
    expect(&mut log, &["retrieve", "fetch"], &lines)?;
    // All that are in it have failed, for good.
    for token in 1..=6 {
        deadlock(&session, token)?;
    }
    let seventh = File::retrieved(&session, 7).context("what can do without")?;
    expect_text(&seventh, "7")?;
    deadlock(&session, 8)?;
    expect_text(&File::retrieved(&session, 9)?, "9")?;
    finish(session)?;

    let session = retrieve("cycles-closed")?;
    deadlock(&session, 3)?;
    // From the other end it is 7 that gets the error, and can do without.
    let eighth = File::retrieved(&session, 8).context("what needs that")?;
    expect_text(&eighth, "8 7=7")?;
    let mut log = Reader::from_now()?;
    drop(session);
    let lines = [
        "finish 9 unclaimed",
        "finish 8 retrieved",
        "finish 8 finds 7 the same",
        "finish 7 retrieved",
        "finish 7 finds 8 not there",
        "finish 6 unclaimed",
        "finish 6 finds 4 not there",
        "finish 5 unclaimed",
        "finish 5 finds 6 not there",
        "finish 4 unclaimed",
        "finish 4 finds 5 not there",
        "finish 3 failed EDEADLK",
        "finish 2 failed EDEADLK",
        "finish 1 unclaimed",
        "finish 1 finds 1 not there",
    ];
    expect(&mut log, &["finish"], &lines)?;
    let result = device()?.retrieve_session(&SessionName::new("cycles-closed")?);
    expect_errno("the closed session", result, Errno::NOENT)
}

/// How many files may wait for each other.
const DEPTH: u64 = 8;

fn chains_before(context: &mut Context<'_>) -> Result<()> {
    sdk::load(context)?;
    for (name, length) in [
        ("chain-longest", DEPTH),
        ("chain-too-long", DEPTH + 1),
        ("chain-from-its-end", DEPTH + 4),
        ("chain-begun", DEPTH + 1),
    ] {
        let session = create(name)?;
        for token in 1..=length {
            let file = File::new(token)?;
            if token < length {
                file.command(&format!("token {}", token + 1))?;
            }
            session.preserve(&file, Token(token))?;
        }
        context.keep(session);
    }
    Ok(())
}

fn chains_after(context: &mut Context<'_>) -> Result<()> {
    sdk::load(context)?;
    let session = retrieve("chain-longest")?;
    let first = File::retrieved(&session, 1).context("the longest chain")?;
    expect_text(&first, "1 2=2")?;
    let last = File::retrieved(&session, DEPTH)?;
    expect_text(&last, &DEPTH.to_string())?;
    finish(session)?;

    let session = retrieve("chain-too-long")?;
    let mut log = Reader::from_now()?;
    expect_errno("a longer one", session.retrieve(Token(1)), Errno::LOOP)?;
    expect_message(
        &mut log,
        &["luo: ", "too many files depend on each other", "0x9"],
    )?;
    // All that waited have failed with it. The last one is none the worse.
    for token in 1..=DEPTH {
        let result = session.retrieve(Token(token));
        expect_errno(&format!("token {token}"), result, Errno::LOOP)?;
    }
    let last = File::retrieved(&session, DEPTH + 1).context("its last file")?;
    expect_text(&last, &(DEPTH + 1).to_string())?;
    finish(session)?;

    let session = retrieve("chain-from-its-end")?;
    for token in (1..=DEPTH + 4).rev() {
        File::retrieved(&session, token).with_context(|| format!("from the end: {token}"))?;
    }
    finish(session)?;

    // What was retrieved before does not count.
    let session = retrieve("chain-begun")?;
    File::retrieved(&session, DEPTH + 1)?;
    let first = File::retrieved(&session, 1).context("with its last file there")?;
    expect_text(&first, "1 2=2")?;
    finish(session)
}

fn finish_before(context: &mut Context<'_>) -> Result<()> {
    sdk::load(context)?;
    let session = create("finish-looks")?;
    session.preserve(File::new(1)?, Token(1))?;
    for (token, needed) in [(2, 1), (3, 1), (4, 3), (5, 9)] {
        let file = File::new(token)?;
        file.command(&format!("token {needed}"))?;
        session.preserve(&file, Token(token))?;
    }
    context.keep(session);
    Ok(())
}

fn finish_after(context: &mut Context<'_>) -> Result<()> {
    sdk::load(context)?;
    let session = retrieve("finish-looks")?;
    let second = File::retrieved(&session, 2)?;
    let mut log = Reader::from_now()?;
    finish(session)?;
    // 3 was never retrieved, and is not for the sake of 4.
    let lines = [
        "finish 5 unclaimed",
        "finish 5 finds 9 not there",
        "finish 4 unclaimed",
        "finish 4 finds 3 not there",
        "finish 3 unclaimed",
        "finish 3 finds 1 there",
        "finish 2 retrieved",
        "finish 2 finds 1 the same",
        "finish 1 retrieved",
    ];
    expect(&mut log, &["retrieve", "fetch", "finish"], &lines)?;
    expect_text(&second, "2 1=1")
}

fn refuse_before(context: &mut Context<'_>) -> Result<()> {
    sdk::load(context)?;
    context.keep(sdk::session_of("refuse", &[41, 42, 43])?);
    Ok(())
}

fn refuse_after(context: &mut Context<'_>) -> Result<()> {
    sdk::load(context)?;
    let session = retrieve("refuse")?;
    let file = File::retrieved(&session, 41)?;
    let mut log = Reader::from_now()?;
    fail("can_finish", 42, Errno::BUSY)?;
    let refused = session.finish().err().context("the finish worked")?;
    expect_eq("finish", refused.errno, Errno::BUSY)?;
    let session = refused.session;
    let lines = ["can_finish 41 retrieved", "can_finish 42 not retrieved"];
    expect(&mut log, &["can_finish", "finish"], &lines)?;
    // As does the end of the session's file.
    drop(session);
    let session = retrieve("refuse").context("after it was closed")?;
    never_fail("can_finish")?;
    file.command("number 44")?;
    expect_text(&File::retrieved(&session, 41)?, "44")?;
    expect_text(&File::retrieved(&session, 43)?, "43")?;
    let mut log = Reader::from_now()?;
    finish(session)?;
    let lines = [
        "finish 43 retrieved",
        "finish 42 unclaimed",
        "finish 41 retrieved",
    ];
    expect(&mut log, &["finish"], &lines)
}
