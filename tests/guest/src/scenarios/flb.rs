// SPDX-License-Identifier: GPL-2.0

//! FLBs: with which file they come and go, what failing callbacks leave of them, and who keeps them
//! otherwise.
//!
//! Files of kind a depend on FLBs 1 and 2, those of kind b on FLB 2.

use crate::context::{Context, create, expect_eq, expect_errno, finish, retrieve};
use crate::kexec;
use crate::kmsg::Reader;
use crate::module;
use crate::registry::{Group, Scenario};
use crate::sdk::{self, File, expect, fail, never_fail};
use anyhow::{Context as _, Result};
use liveupdate::{Errno, Outgoing, Session, Token};

/// Before the kexec.
pub const GROUP: Group = Group {
    name: "flb",
    scenarios: &[
        Scenario {
            name: "flb-comes-with-the-first-file-and-goes-with-the-last",
            stages: &[first_and_last],
        },
        Scenario {
            name: "flb-is-unpreserved-if-the-file-fails",
            stages: &[file_fails],
        },
        Scenario {
            name: "flb-failure-takes-back-those-before-it",
            stages: &[flb_fails],
        },
        Scenario {
            name: "flb-stays-if-the-freeze-fails",
            stages: &[freeze_fails],
        },
        Scenario {
            name: "flb-stays-as-long-as-it-is-in-use",
            stages: &[in_use],
        },
    ],
};

/// Each needs a machine of its own, since an FLB's life ends with the last file of all.
pub const AFTER: Group = Group {
    name: "flb-after",
    scenarios: &[
        Scenario {
            name: "flb-is-finished-with-the-last-file",
            stages: &[two_sessions, finished_with_last],
        },
        Scenario {
            name: "flb-nobody-asks-for",
            stages: &[two_sessions, nobody_asks],
        },
        Scenario {
            name: "flb-retrieve-failure-is-final",
            stages: &[two_sessions, retrieve_fails],
        },
        Scenario {
            name: "flb-retrieve-failure-at-the-end",
            stages: &[two_sessions, retrieve_fails_at_the_end],
        },
        Scenario {
            name: "flb-is-finished-if-the-files-failed",
            stages: &[two_sessions, files_fail],
        },
        Scenario {
            name: "flb-in-use-outlives-the-files",
            stages: &[two_sessions, guard_outlives],
        },
        Scenario {
            name: "flb-users-are-not-handed-over",
            stages: &[used_at_reboot, used_after],
        },
        Scenario {
            name: "flb-lives-on-both-sides",
            stages: &[two_sessions, both_sides],
        },
    ],
};

/// What is looked at in the log.
const ALL: &[&str] = &[
    "preserve",
    "unpreserve",
    "freeze",
    "unfreeze",
    "retrieve",
    "finish",
    "flb-1",
    "flb-2",
];

const FLBS: &[&str] = &["flb-1", "flb-2"];

fn first_and_last(context: &mut Context<'_>) -> Result<()> {
    sdk::load(context)?;
    let mut log = Reader::from_now()?;
    let session = create("first")?;
    let other = create("last")?;
    session.preserve(File::new_b(1)?, Token(1))?;
    other.preserve(File::new(2)?, Token(2))?;
    session.preserve(File::new(3)?, Token(3))?;
    let lines = [
        "flb-2 preserve",
        "preserve 1 as 1:",
        "flb-1 preserve",
        "preserve 2 as 2:",
        "preserve 3 as 3:",
    ];
    expect(&mut log, ALL, &lines)?;
    drop(session);
    expect(&mut log, ALL, &["unpreserve 3", "unpreserve 1"])?;
    drop(other);
    let lines = ["unpreserve 2", "flb-2 unpreserve 2", "flb-1 unpreserve 1"];
    expect(&mut log, ALL, &lines)?;
    // And once more.
    drop(sdk::session_of("again", &[4])?);
    let lines = [
        "flb-1 preserve",
        "flb-2 preserve",
        "preserve 4 as 4:",
        "unpreserve 4",
        "flb-2 unpreserve 2",
        "flb-1 unpreserve 1",
    ];
    expect(&mut log, ALL, &lines)
}

fn file_fails(context: &mut Context<'_>) -> Result<()> {
    sdk::load(context)?;
    let session = create("file-fails")?;
    let file = File::new(1)?;
    let mut log = Reader::from_now()?;
    fail("preserve", 1, Errno::NXIO)?;
    expect_errno("preserve", session.preserve(&file, Token(1)), Errno::NXIO)?;
    let lines = [
        "flb-1 preserve",
        "flb-2 preserve",
        "preserve 1 as 1:",
        "flb-2 unpreserve 2",
        "flb-1 unpreserve 1",
    ];
    expect(&mut log, ALL, &lines)?;
    // With another file there, only the FLB goes that nobody else needs.
    session.preserve(File::new_b(2)?, Token(2))?;
    expect_errno("preserve", session.preserve(&file, Token(1)), Errno::NXIO)?;
    never_fail("preserve")?;
    let lines = [
        "flb-2 preserve",
        "preserve 2 as 2:",
        "flb-1 preserve",
        "preserve 1 as 1:",
        "flb-1 unpreserve 1",
    ];
    expect(&mut log, ALL, &lines)?;
    drop(session);
    expect(&mut log, ALL, &["unpreserve 2", "flb-2 unpreserve 2"])
}

fn flb_fails(context: &mut Context<'_>) -> Result<()> {
    sdk::load(context)?;
    let session = create("flb-fails")?;
    let file = File::new(1)?;
    let mut log = Reader::from_now()?;
    fail("flb-preserve", 2, Errno::NODEV)?;
    for _ in 0..2 {
        expect_errno("preserve", session.preserve(&file, Token(1)), Errno::NODEV)?;
        let lines = ["flb-1 preserve", "flb-2 preserve", "flb-1 unpreserve 1"];
        expect(&mut log, ALL, &lines)?;
    }
    fail("flb-preserve", 1, Errno::NOMEM)?;
    expect_errno("preserve", session.preserve(&file, Token(1)), Errno::NOMEM)?;
    expect(&mut log, ALL, &["flb-1 preserve"])?;
    expect_errno("outgoing", file.try_command("outgoing 1"), Errno::NOENT)?;
    expect_errno("outgoing", file.try_command("outgoing 2"), Errno::NOENT)?;
    // A file without that FLB.
    session.preserve(File::new_b(2)?, Token(2))?;
    never_fail("flb-preserve")?;
    // The file was not preserved, and so can be: here or elsewhere.
    create("flb-fails-other")?
        .preserve(&file, Token(1))
        .context("elsewhere")?;
    session.preserve(&file, Token(1)).context("here")?;
    drop(session);
    let lines = [
        "flb-2 preserve",
        "preserve 2 as 2:",
        "flb-1 preserve",
        "preserve 1 as 1:",
        "unpreserve 1",
        "flb-1 unpreserve 1",
        "flb-1 preserve",
        "preserve 1 as 1:",
        "unpreserve 1",
        "flb-1 unpreserve 1",
        "unpreserve 2",
        "flb-2 unpreserve 2",
    ];
    expect(&mut log, ALL, &lines)
}

fn freeze_fails(context: &mut Context<'_>) -> Result<()> {
    sdk::load(context)?;
    let session = sdk::session_of("freeze-fails", &[1, 2, 3])?;
    let mut log = Reader::from_now()?;
    for _ in 0..2 {
        fail("freeze", 3, Errno::NODEV)?;
        let result: Result<(), Errno> = Err(kexec::reboot());
        never_fail("freeze")?;
        expect_errno("reboot", result, Errno::NODEV)?;
        let lines = [
            "freeze 1 as 1:",
            "freeze 2 as 2:",
            "freeze 3 as 3:",
            "unfreeze 2",
            "unfreeze 1",
        ];
        expect(&mut log, ALL, &lines)?;
    }
    // They are as they were.
    let user = File::new(0)?;
    user.command("note 1 77")?;
    session.preserve(File::new(4)?, Token(4))?;
    drop(session);
    let lines = [
        "preserve 4 as 4:",
        "unpreserve 4",
        "unpreserve 3",
        "unpreserve 2",
        "unpreserve 1",
        "flb-2 unpreserve 2",
        "flb-1 unpreserve 77",
    ];
    expect(&mut log, ALL, &lines)
}

fn in_use(context: &mut Context<'_>) -> Result<()> {
    sdk::load(context)?;
    let user = File::new(0)?;
    expect_errno("no file", user.try_command("outgoing 1"), Errno::NOENT)?;
    expect_errno(
        "nothing came",
        user.try_command("incoming 1"),
        Errno::NODATA,
    )?;
    let session = sdk::session_of("in-use", &[1])?;
    let mut log = Reader::from_now()?;
    for _ in 0..2 {
        user.command("outgoing 1")?;
    }
    let other = File::new(0)?;
    other.command("outgoing 1")?;
    drop(session);
    expect(&mut log, ALL, &["unpreserve 1", "flb-2 unpreserve 2"])?;
    // It can be had, changed, and preserved again.
    user.command("note 1 5")?;
    let session = sdk::session_of("in-use", &[2])?;
    expect(&mut log, ALL, &["flb-2 preserve", "preserve 2 as 2:"])?;
    drop(session);
    drop(other);
    expect(&mut log, ALL, &["unpreserve 2", "flb-2 unpreserve 2"])?;
    user.command("release")?;
    expect(&mut log, ALL, &["flb-1 unpreserve 5"])?;
    expect_errno("released", user.try_command("outgoing 1"), Errno::NOENT)?;

    // A file that is preserved may be a user.
    let session = create("in-use")?;
    let file = File::new(3)?;
    session.preserve(&file, Token(3))?;
    file.command("outgoing 1")?;
    file.command("outgoing 2")?;
    drop(file);
    let lines = ["flb-1 preserve", "flb-2 preserve", "preserve 3 as 3:"];
    expect(&mut log, ALL, &lines)?;
    drop(session);
    let mut found = sdk::said(&mut log, ALL)?;
    found.sort_unstable();
    let lines = ["flb-1 unpreserve 1", "flb-2 unpreserve 2", "unpreserve 3"];
    expect_eq("what is left", found, lines.map(str::to_owned).to_vec())?;
    drop(user);
    module::unload(sdk::MODULE).context("with all gone")
}

/// Files 1 (a) and 2 (b) in one session, 3 (a) in another.
fn two_sessions(context: &mut Context<'_>) -> Result<()> {
    sdk::load(context)?;
    let session = one_of_each("one")?;
    context.keep(session);
    context.keep(sdk::session_of("two", &[3])?);
    File::new(0)?.command("note 1 77")
}

fn one_of_each(name: &str) -> Result<Session<Outgoing>> {
    let session = sdk::session_of(name, &[1])?;
    session.preserve(File::new_b(2)?, Token(2))?;
    Ok(session)
}

fn finished_with_last(context: &mut Context<'_>) -> Result<()> {
    sdk::load(context)?;
    let mut log = Reader::from_now()?;
    let user = File::new(0)?;
    user.command("incoming 1")?;
    user.command("release")?;
    user.command("incoming 1")?;
    user.command("release")?;
    expect(&mut log, ALL, &["flb-1 retrieve 77"])?;
    let two = retrieve("two")?;
    drop(two.retrieve(Token(3))?);
    finish(two)?;
    let lines = ["retrieve 3 as 3", "finish 3 retrieved"];
    expect(&mut log, ALL, &lines)?;
    user.command("incoming 2")?;
    user.command("release")?;
    finish(retrieve("one")?)?;
    let lines = [
        "flb-2 retrieve 2",
        "finish 2 unclaimed",
        "finish 1 unclaimed",
        "flb-2 finish 2",
        "flb-1 finish 77",
    ];
    expect(&mut log, ALL, &lines)?;
    gone(&user)?;
    drop(user);
    module::unload(sdk::MODULE).context("after all")
}

/// Neither FLB can be had any more.
fn gone(user: &File) -> Result<()> {
    for flb in [1, 2] {
        let result = user.try_command(&format!("incoming {flb}"));
        expect_errno("a finished FLB", result, Errno::NODATA)?;
    }
    Ok(())
}

fn nobody_asks(context: &mut Context<'_>) -> Result<()> {
    sdk::load(context)?;
    let mut log = Reader::from_now()?;
    finish(retrieve("one")?)?;
    expect(&mut log, FLBS, &[])?;
    finish(retrieve("two")?)?;
    let lines = [
        "flb-2 retrieve 2",
        "flb-2 finish 2",
        "flb-1 retrieve 77",
        "flb-1 finish 77",
    ];
    expect(&mut log, FLBS, &lines)?;
    let user = File::new(0)?;
    gone(&user)?;
    drop(user);
    module::unload(sdk::MODULE)?;
    // That it is over is not the module's to remember.
    sdk::load(context)?;
    gone(&File::new(0)?)
}

fn retrieve_fails(context: &mut Context<'_>) -> Result<()> {
    sdk::load(context)?;
    let user = File::new(0)?;
    let mut log = Reader::from_now()?;
    fail("flb-retrieve", 1, Errno::NXIO)?;
    expect_errno("incoming", user.try_command("incoming 1"), Errno::NXIO)?;
    never_fail("flb-retrieve")?;
    for _ in 0..2 {
        expect_errno("incoming", user.try_command("incoming 1"), Errno::NXIO)?;
    }
    user.command("incoming 2")?;
    expect(&mut log, FLBS, &["flb-1 retrieve 77", "flb-2 retrieve 2"])?;
    // The files are none the worse.
    for (name, tokens) in [("one", &[1, 2][..]), ("two", &[3])] {
        let session = retrieve(name)?;
        for &token in tokens {
            File::retrieved(&session, token).with_context(|| format!("token {token}"))?;
        }
        finish(session)?;
    }
    expect(&mut log, FLBS, &[])?;
    user.command("release")?;
    expect(&mut log, FLBS, &["flb-2 finish 2"])?;
    expect_errno("incoming", user.try_command("incoming 1"), Errno::NXIO)?;
    drop(user);
    module::unload(sdk::MODULE).context("after all")?;
    sdk::load(context)?;
    let user = File::new(0)?;
    expect_errno("reloaded", user.try_command("incoming 1"), Errno::NXIO)?;
    // Both can be preserved again.
    let mut log = Reader::from_now()?;
    drop(sdk::session_of("again", &[5])?);
    let lines = [
        "flb-1 preserve",
        "flb-2 preserve",
        "flb-2 unpreserve 2",
        "flb-1 unpreserve 1",
    ];
    expect(&mut log, FLBS, &lines)
}

fn retrieve_fails_at_the_end(context: &mut Context<'_>) -> Result<()> {
    sdk::load(context)?;
    fail("flb-retrieve", 2, Errno::NXIO)?;
    let mut log = Reader::from_now()?;
    finish(retrieve("one")?)?;
    finish(retrieve("two")?)?;
    never_fail("flb-retrieve")?;
    let lines = ["flb-2 retrieve 2", "flb-1 retrieve 77", "flb-1 finish 77"];
    expect(&mut log, FLBS, &lines)?;
    let result = File::new(0)?.try_command("incoming 2");
    expect_errno("incoming", result, Errno::NXIO)?;
    module::unload(sdk::MODULE).context("after all")
}

fn files_fail(context: &mut Context<'_>) -> Result<()> {
    sdk::load(context)?;
    let mut log = Reader::from_now()?;
    let one = retrieve("one")?;
    for token in [1, 2] {
        fail("retrieve", token, Errno::NXIO)?;
        for _ in 0..2 {
            expect_errno("retrieve", one.retrieve(Token(token)), Errno::NXIO)?;
        }
    }
    never_fail("retrieve")?;
    finish(one)?;
    let lines = [
        "retrieve 1 as 1",
        "retrieve 2 as 2",
        "finish 2 failed ENXIO",
        "finish 1 failed ENXIO",
    ];
    expect(&mut log, ALL, &lines)?;
    let two = retrieve("two")?;
    fail("retrieve", 3, Errno::BUSY)?;
    expect_errno("retrieve", two.retrieve(Token(3)), Errno::BUSY)?;
    // It is what the close does as well.
    drop(two);
    let lines = [
        "retrieve 3 as 3",
        "finish 3 failed EBUSY",
        "flb-2 retrieve 2",
        "flb-2 finish 2",
        "flb-1 retrieve 77",
        "flb-1 finish 77",
    ];
    expect(&mut log, ALL, &lines)?;
    gone(&File::new(0)?)?;
    module::unload(sdk::MODULE).context("after all")
}

fn guard_outlives(context: &mut Context<'_>) -> Result<()> {
    sdk::load(context)?;
    let mut log = Reader::from_now()?;
    let user = File::new(0)?;
    user.command("incoming 1")?;
    finish(retrieve("one")?)?;
    finish(retrieve("two")?)?;
    let lines = ["flb-1 retrieve 77", "flb-2 retrieve 2", "flb-2 finish 2"];
    expect(&mut log, FLBS, &lines)?;
    // It can be had until nobody has it.
    let other = File::new(0)?;
    other.command("incoming 1")?;
    expect_errno("the other", other.try_command("incoming 2"), Errno::NODATA)?;
    drop(user);
    expect(&mut log, FLBS, &[])?;
    let refused = module::unload(sdk::MODULE);
    expect_errno("unloading", refused, Errno::AGAIN)?;
    drop(other);
    expect(&mut log, FLBS, &["flb-1 finish 77"])?;
    gone(&File::new(0)?)?;
    module::unload(sdk::MODULE).context("after all")
}

/// FLB 2 has a file and users, FLB 1 only users.
fn used_at_reboot(context: &mut Context<'_>) -> Result<()> {
    sdk::load(context)?;
    let user = File::new(0)?;
    let session = one_of_each("one")?;
    for flb in [1, 1, 2, 2, 2] {
        user.command(&format!("outgoing {flb}"))?;
    }
    drop(session);
    let session = create("one")?;
    session.preserve(File::new_b(2)?, Token(2))?;
    context.keep(user);
    context.keep(session);
    File::new(0)?.command("note 2 88")
}

fn used_after(context: &mut Context<'_>) -> Result<()> {
    sdk::load(context)?;
    let mut log = Reader::from_now()?;
    let user = File::new(0)?;
    let result = user.try_command("incoming 1");
    expect_errno("without a file", result, Errno::NOENT)?;
    finish(retrieve("one")?)?;
    let lines = ["finish 2 unclaimed", "flb-2 retrieve 88", "flb-2 finish 88"];
    expect(&mut log, ALL, &lines)?;
    let result = user.try_command("incoming 2");
    expect_errno("finished", result, Errno::NODATA)?;
    drop(user);
    module::unload(sdk::MODULE).context("after all")
}

/// What came and what goes are two objects.
fn both_sides(context: &mut Context<'_>) -> Result<()> {
    sdk::load(context)?;
    let mut log = Reader::from_now()?;
    let user = File::new(0)?;
    user.command("incoming 1")?;
    expect_errno("nothing goes", user.try_command("outgoing 1"), Errno::NOENT)?;
    let next = sdk::session_of("next", &[4])?;
    user.command("outgoing 1")?;
    user.command("note 1 5")?;
    let lines = ["flb-1 retrieve 77", "flb-1 preserve", "flb-2 preserve"];
    expect(&mut log, FLBS, &lines)?;
    finish(retrieve("one")?)?;
    finish(retrieve("two")?)?;
    expect(&mut log, FLBS, &["flb-2 retrieve 2", "flb-2 finish 2"])?;
    drop(next);
    expect(&mut log, FLBS, &["flb-2 unpreserve 2"])?;
    drop(user);
    let mut found = sdk::said(&mut log, FLBS)?;
    found.sort_unstable();
    let lines = ["flb-1 finish 77", "flb-1 unpreserve 5"];
    expect_eq("what is left", found, lines.map(str::to_owned).to_vec())?;
    module::unload(sdk::MODULE).context("after all")
}
