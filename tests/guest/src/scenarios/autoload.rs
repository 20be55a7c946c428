// SPDX-License-Identifier: GPL-2.0

//! Handlers that are not loaded when their files come over.

use crate::context::{Context, create, expect_eq, expect_errno, expect_message, finish, retrieve};
use crate::data;
use crate::kmsg::Reader;
use crate::module;
use crate::registry::{Group, Scenario};
use crate::sdk::{self, A, B, FLBS, File, MODULE, expect};
use anyhow::{Context as _, Result, ensure};
use liveupdate::{Errno, Token};
use std::fs;
use std::thread;

/// The machine has to have modprobe. Each of them unloads the module when it is done.
pub const GROUP: Group = Group {
    name: "autoload",
    scenarios: &[
        Scenario {
            name: "autoload-by-retrieve",
            stages: &[|context| files(context, "by-retrieve"), by_retrieve],
        },
        Scenario {
            name: "autoload-by-finish",
            stages: &[|context| files(context, "by-finish"), by_finish],
        },
        Scenario {
            name: "autoload-by-close",
            stages: &[|context| files(context, "by-close"), by_close],
        },
        Scenario {
            name: "autoload-of-what-a-file-needs",
            stages: &[needed_before, needed_after],
        },
        Scenario {
            name: "autoload-holds-no-lock",
            stages: &[slow_before, slow_after],
        },
        Scenario {
            name: "autoload-finds-no-module",
            stages: &[missing_before, missing_after],
        },
    ],
};

/// A session with a memfd as token 1, and files of both kinds as tokens 2 and 3.
fn files(context: &mut Context<'_>, name: &str) -> Result<()> {
    sdk::load(context)?;
    let session = create(name)?;
    session.preserve(data::memfd_with("file", 1, 5000)?, Token(1))?;
    session.preserve(File::new(2)?, Token(2))?;
    session.preserve(File::new_b(3)?, Token(3))?;
    context.keep(session);
    Ok(())
}

fn expect_loaded(when: &str, expected: bool) -> Result<()> {
    expect_eq(
        &format!("loaded {when}"),
        module::is_loaded(MODULE),
        expected,
    )
}

fn by_retrieve(_: &mut Context<'_>) -> Result<()> {
    expect_loaded("at boot", false)?;
    let session = retrieve("by-retrieve")?;
    expect_loaded("for a session", false)?;
    // Any file has all of the session loaded, since it may need others.
    let memfd = || data::expect_file(&data::file(session.retrieve(Token(1))?), 1, 5000);
    memfd()?;
    expect_loaded("with the first file", true)?;
    module::unload(MODULE).context("with no file of it retrieved")?;
    memfd()?;
    expect_loaded("for a file that is there", false)?;
    let file = File::retrieved(&session, 3).context("a file of it")?;
    expect_loaded("for a file of it", true)?;
    expect_eq("the file", file.text()?.as_str(), "3")?;
    drop(file);
    finish(session)?;
    module::unload(MODULE).context("after the finish")
}

fn by_finish(_: &mut Context<'_>) -> Result<()> {
    expect_loaded("at first", false)?;
    let session = retrieve("by-finish")?;
    let mut log = Reader::from_now()?;
    finish(session)?;
    expect_loaded("by the finish", true)?;
    let lines = ["finish 3 unclaimed", "finish 2 unclaimed"];
    expect(&mut log, &["retrieve", "finish"], &lines)?;
    module::unload(MODULE).context("after the finish")
}

fn by_close(_: &mut Context<'_>) -> Result<()> {
    expect_loaded("at first", false)?;
    let session = retrieve("by-close")?;
    let mut log = Reader::from_now()?;
    drop(session);
    expect_loaded("by the close", true)?;
    let lines = ["finish 3 unclaimed", "finish 2 unclaimed"];
    expect(&mut log, &["retrieve", "finish"], &lines)?;
    module::unload(MODULE).context("after the close")?;
    expect_errno("the session", try_retrieve("by-close"), Errno::NOENT)
}

fn try_retrieve(name: &str) -> Result<(), Errno> {
    match retrieve(name) {
        Ok(_) => Ok(()),
        Err(error) => Err(error.downcast_ref().copied().unwrap_or(Errno::IO)),
    }
}

/// A module that modprobe does not know.
const NONE: &str = "luo_sdk_none";
const NONE_A: &str = "luo-sdk-none-a";

fn load_none(context: &Context<'_>) -> Result<()> {
    let changes = [
        (A, NONE_A),
        (B, "luo-sdk-none-b"),
        (FLBS[0], "luo-sdk-non-1"),
        (FLBS[1], "luo-sdk-non-2"),
    ];
    match module::is_loaded(NONE) {
        true => Ok(()),
        false => sdk::load_like(context, NONE, &changes),
    }
}

fn needed_before(context: &mut Context<'_>) -> Result<()> {
    sdk::load(context)?;
    load_none(context)?;
    let session = create("needed")?;
    let file = File::new(1)?;
    session.preserve(&file, Token(1))?;
    let needs = File::of(NONE, 2)?;
    needs.needs(&file)?;
    session.preserve(&needs, Token(2))?;
    context.keep(session);
    Ok(())
}

/// The handler of the file that is asked for is there, that of the one it needs is not.
fn needed_after(context: &mut Context<'_>) -> Result<()> {
    expect_loaded("at first", false)?;
    load_none(context)?;
    let session = retrieve("needed")?;
    let file = File::retrieved(&session, 2).context("what needs another")?;
    expect_loaded("for what is needed", true)?;
    // To each module, a file of the other is another's.
    expect_eq("the file", file.text()?.as_str(), "2 1=other")?;
    finish(session)?;
    drop(file);
    module::unload(NONE).context("after the finish")?;
    module::unload(MODULE).context("after the finish")
}

fn slow_before(context: &mut Context<'_>) -> Result<()> {
    files(context, "slow")?;
    let other = create("slow-other")?;
    other.preserve(data::memfd_with("file", 2, 5000)?, Token(1))?;
    context.keep(other);
    Ok(())
}

/// While the module takes its time to load, all but who waits for it goes on.
fn slow_after(_: &mut Context<'_>) -> Result<()> {
    const CONF: &str = "/etc/modprobe.d/luo.conf";
    fs::create_dir_all("/etc/modprobe.d")?;
    fs::write(CONF, format!("options {MODULE} init_ms=1500\n"))?;
    expect_loaded("at first", false)?;
    let session = retrieve("slow")?;
    thread::scope(|scope| -> Result<()> {
        let waiting = scope.spawn(|| File::retrieved(&session, 2));
        while !waiting.is_finished() && !fs::exists(format!("/dev/{MODULE}"))? {
            thread::yield_now();
        }
        // Init has made the device and sleeps now.
        let next = create("slow-next")?;
        next.preserve(data::memfd_with("file", 3, 5000)?, Token(1))?;
        drop(next);
        let other = retrieve("slow-other")?;
        data::expect_file(&data::file(other.retrieve(Token(1))?), 2, 5000)?;
        finish(other)?;
        // The very session is not locked either; a file that it does not have needs no module.
        expect_errno("no such token", session.retrieve(Token(99)), Errno::NOENT)?;
        ensure!(!waiting.is_finished(), "it did not wait for the module");
        expect_loaded("by then", false)?;
        let file = waiting.join().map_err(|_| anyhow::anyhow!("a panic"))??;
        expect_loaded("in the end", true)?;
        expect_eq("the file", file.text()?.as_str(), "2")
    })?;
    finish(session)?;
    fs::remove_file(CONF)?;
    module::unload(MODULE).context("after the finish")
}

fn missing_before(context: &mut Context<'_>) -> Result<()> {
    sdk::load(context)?;
    load_none(context)?;
    let session = create("missing")?;
    session.preserve(File::of(NONE, 1)?, Token(1))?;
    session.preserve(File::new(2)?, Token(2))?;
    session.preserve(data::memfd_with("file", 3, 5000)?, Token(3))?;
    // This one needs what is missing, and can do without.
    let needs = File::new(4)?;
    needs.command("token 1")?;
    needs.command("lenient")?;
    session.preserve(&needs, Token(4))?;
    context.keep(session);
    Ok(())
}

fn missing_after(context: &mut Context<'_>) -> Result<()> {
    expect_loaded("at first", false)?;
    let session = retrieve("missing")?;
    let mut log = Reader::from_now()?;
    for time in ["once", "twice"] {
        let result = session.retrieve(Token(1));
        expect_errno(
            &format!("without its handler, {time}"),
            result,
            Errno::NOENT,
        )?;
        let alias = format!("alias 'luo:{NONE_A}'");
        let words = ["luo: token 0x1 ", &format!("'{NONE_A}'"), &alias];
        expect_message(&mut log, &words)?;
    }
    // All else works.
    let file = File::retrieved(&session, 2)?;
    expect_eq("another file", file.text()?.as_str(), "2")?;
    drop(file);
    data::expect_file(&data::file(session.retrieve(Token(3))?), 3, 5000)?;
    let file = File::retrieved(&session, 4)?;
    expect_eq("one that needs it", file.text()?.as_str(), "4")?;
    drop(file);
    let mut log = Reader::from_now()?;
    let refused = session.finish().err().context("the finish worked")?;
    expect_eq("finish", refused.errno, Errno::BUSY)?;
    expect_message(&mut log, &["luo: token 0x1 ", NONE_A])?;
    drop(refused.session);
    let session = retrieve("missing").context("after it was closed")?;
    data::expect_file(&data::file(session.retrieve(Token(3))?), 3, 5000)?;

    load_none(context)?;
    let file = File::retrieved(&session, 1).context("with its handler")?;
    expect_eq("the file", file.text()?.as_str(), "1")?;
    drop(file);
    finish(session)?;
    module::unload(NONE).context("after the finish")?;
    module::unload(MODULE).context("after the finish")
}
