// SPDX-License-Identifier: GPL-2.0

//! A handler's module: when it is used, when it can go, and that all of it comes and goes together.

use crate::context::{Context, create, expect_eq, expect_errno, finish, retrieve};
use crate::kmsg::{self, Reader};
use crate::module;
use crate::registry::{Group, Scenario};
use crate::sdk::{self, A, B, FLBS, File, MODULE, expect, fail, never_fail};
use anyhow::{Context as _, Result, ensure};
use liveupdate::{DEVICE_PATH, Device, Errno, SessionName, Token};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// The last one keeps the module in use until the kexec.
pub const GROUP: Group = Group {
    name: "unload",
    scenarios: &[
        Scenario {
            name: "unload-is-refused-exactly-while-a-file-is-preserved",
            stages: &[while_preserved],
        },
        Scenario {
            name: "unload-while-others-preserve",
            stages: &[in_a_loop],
        },
        Scenario {
            name: "unload-takes-handlers-and-flbs-away",
            stages: &[all_go],
        },
        Scenario {
            name: "load-fails-whole-if-a-name-is-taken",
            stages: &[clash],
        },
        Scenario {
            name: "load-is-not-done-before-init-is",
            stages: &[slow_init],
        },
        Scenario {
            name: "load-that-fails-late-leaves-nothing",
            stages: &[failing_init],
        },
        Scenario {
            name: "unload-with-incoming-files",
            stages: &[incoming_before, incoming_after],
        },
    ],
};

/// The kernel is given `liveupdate=off`.
pub const OFF: Group = Group {
    name: "unload-off",
    scenarios: &[Scenario {
        name: "load-while-live-update-is-off",
        stages: &[off],
    }],
};

fn while_preserved(context: &mut Context<'_>) -> Result<()> {
    sdk::load_anew(context)?;
    let session = create("unload")?;
    module::unload(MODULE).context("with a session that has no file")?;
    module::load(&context.module(MODULE))?;
    let file = File::new(1)?;
    expect_errno("while open", module::unload(MODULE), Errno::AGAIN)?;
    fail("preserve", 1, Errno::NXIO)?;
    expect_errno("preserve", session.preserve(&file, Token(1)), Errno::NXIO)?;
    fail("flb-preserve", 2, Errno::NXIO)?;
    expect_errno("preserve", session.preserve(&file, Token(1)), Errno::NXIO)?;
    never_fail("flb-preserve")?;
    drop(file);
    module::unload(MODULE).context("after it was not preserved")?;
    module::load(&context.module(MODULE))?;
    session.preserve(File::new_b(1)?, Token(1))?;
    for _ in 0..3 {
        expect_errno("while preserved", module::unload(MODULE), Errno::AGAIN)?;
    }
    drop(session);
    module::unload(MODULE).context("after the session was closed")
}

/// How often a module is loaded and unloaded: at least and, if it does not take longer than that, at
/// the most.
const LEAST: u32 = 20;
const ROUNDS: u32 = 300;
const PATIENCE: Duration = Duration::from_secs(20);

fn in_a_loop(context: &mut Context<'_>) -> Result<()> {
    let path = context.module(MODULE);
    let done = AtomicBool::new(false);
    let start = Instant::now();
    let (rounds, refused, others) = thread::scope(|scope| -> Result<_> {
        let other = scope.spawn(|| preserve_all_the_time(&done));
        let mut refused = 0_u32;
        let mut rounds = 0_u32;
        let result = (|| -> Result<()> {
            while rounds < LEAST || (rounds < ROUNDS && start.elapsed() < PATIENCE) {
                module::load_with(&path, "quiet=y")?;
                // Sometimes at once, sometimes when the other is at it.
                thread::sleep(Duration::from_micros(u64::from(rounds % 7) * 200));
                loop {
                    match module::unload(MODULE) {
                        Ok(()) => break,
                        Err(Errno::AGAIN) => refused += 1,
                        Err(errno) => return Err(errno).context("unloading"),
                    }
                    thread::sleep(Duration::from_micros(50));
                }
                rounds += 1;
            }
            Ok(())
        })();
        done.store(true, Ordering::Relaxed);
        let others = other.join().map_err(|_| anyhow::anyhow!("a panic"))??;
        result?;
        Ok((rounds, refused, others))
    })?;
    kmsg::remark(format!(
        "{rounds} times loaded and unloaded, {refused} refusals; {} files preserved, {} not",
        others.0, others.1
    ));
    ensure!(refused > 0, "unloading was never refused");
    ensure!(others.0 > 0, "no file was preserved");
    Ok(())
}

/// Says how many files were preserved, and how many had no handler (any more).
fn preserve_all_the_time(done: &AtomicBool) -> Result<(u32, u32)> {
    let device = Device::open()?;
    let (mut preserved, mut missed) = (0, 0);
    while !done.load(Ordering::Relaxed) {
        let files: Vec<File> = [File::new(1), File::new_b(2)]
            .into_iter()
            .flatten()
            .collect();
        let session = device.create_session(&SessionName::new("loop")?)?;
        for (token, file) in (1..).zip(&files) {
            match session.preserve(file, Token(token)) {
                Ok(()) => preserved += 1,
                // The device comes before the handlers do.
                Err(Errno::NOENT) => missed += 1,
                Err(errno) => return Err(errno).context("preserving"),
            }
        }
        drop((session, files));
        // Or the module would hardly ever be free to go.
        thread::sleep(Duration::from_micros(100));
    }
    Ok((preserved, missed))
}

fn all_go(context: &mut Context<'_>) -> Result<()> {
    for _ in 0..3 {
        sdk::load_anew(context)?;
        let mut log = Reader::from_now()?;
        let session = sdk::session_of("all-go", &[1])?;
        session.preserve(File::new_b(2)?, Token(2))?;
        drop(session);
        let lines = [
            "flb-1 preserve",
            "flb-2 preserve",
            "flb-2 unpreserve 2",
            "flb-1 unpreserve 1",
        ];
        expect(&mut log, &["flb-1", "flb-2"], &lines)?;
        module::unload(MODULE)?;
        // All names are free.
        sdk::load_like(context, "luo_sdk_twin", &[])?;
        let file = File::of("luo_sdk_twin", 3)?;
        create("twin")?.preserve(&file, Token(3))?;
        drop(file);
        module::unload("luo_sdk_twin")?;
    }
    Ok(())
}

const TWIN: &str = "luo_sdk_twin";
const OTHER_A: (&str, &str) = (A, "luo-sdk-twin-a");
const OTHER_B: (&str, &str) = (B, "luo-sdk-twin-b");
const OTHER_FLBS: [(&str, &str); 2] = [(FLBS[0], "luo-sdk-new-1"), (FLBS[1], "luo-sdk-new-2")];

fn clash(context: &mut Context<'_>) -> Result<()> {
    sdk::load_anew(context)?;
    let [flb_1, flb_2] = OTHER_FLBS;
    // Each has one name that is taken, and others that are not.
    let clashes = [
        ("both handlers", vec![flb_1, flb_2]),
        ("the first handler", vec![OTHER_B, flb_1, flb_2]),
        ("the second handler", vec![OTHER_A, flb_1, flb_2]),
        ("the first FLB", vec![OTHER_A, OTHER_B, flb_2]),
        ("the second FLB", vec![OTHER_A, OTHER_B, flb_1]),
        ("all", vec![]),
    ];
    for (what, changes) in &clashes {
        let result = sdk::load_like(context, TWIN, changes);
        let errno = result
            .err()
            .with_context(|| format!("it was loaded, {what} being taken"))?;
        let errno = errno
            .downcast_ref::<Errno>()
            .context("it is another error")?;
        // The module loader has EEXIST mean that the module is there already.
        expect_eq(&format!("{what} being taken"), *errno, Errno::BUSY)?;
        ensure!(
            !Path::new("/dev/luo_sdk_twin").exists(),
            "{what} being taken: it left its device"
        );
        works(MODULE).with_context(|| format!("the first one, {what} being taken"))?;
    }
    // Nothing stayed registered of any of them.
    let all = [OTHER_A, OTHER_B, flb_1, flb_2];
    sdk::load_like(context, TWIN, &all).context("one without a name that is taken")?;
    works(TWIN)?;
    works(MODULE)?;
    module::unload(MODULE)?;
    works(TWIN)?;
    module::unload(TWIN)?;
    for (what, changes) in &clashes {
        sdk::load_like(context, TWIN, changes)
            .with_context(|| format!("{what} being taken no more"))?;
        works(TWIN)?;
        module::unload(TWIN)?;
    }
    Ok(())
}

/// Whether files of both kinds can be preserved.
fn works(module: &str) -> Result<()> {
    let session = create("works")?;
    session.preserve(File::of(module, 1)?, Token(1))?;
    let file = File::of(module, 2)?;
    file.command("kind b")?;
    session.preserve(file, Token(2))?;
    Ok(())
}

/// Loads a module whose init takes some time, and calls a function again and again meanwhile.
fn while_loading(
    path: &Path,
    parameters: &str,
    mut each: impl FnMut() -> Result<()>,
) -> Result<()> {
    thread::scope(|scope| {
        let loading = scope.spawn(|| module::load_with(path, parameters));
        while !loading.is_finished() {
            each()?;
        }
        loading.join().map_err(|_| anyhow::anyhow!("a panic"))?
    })
}

fn slow_init(context: &mut Context<'_>) -> Result<()> {
    let session = create("slow")?;
    let mut tries = 0;
    while_loading(&context.module(MODULE), "init_ms=500", || {
        // The device is there before the handlers are.
        let (Ok(a), Ok(b)) = (File::new(1), File::new_b(2)) else {
            return Ok(());
        };
        let first = session.preserve(&a, Token(2 * tries));
        let second = session.preserve(&b, Token(2 * tries + 1));
        tries += 1;
        match (first, second) {
            (Err(Errno::NOENT), Err(Errno::NOENT)) => Ok(()),
            // It is done.
            (Err(Errno::NOENT) | Ok(()), Ok(())) => Ok(()),
            other => anyhow::bail!("while it is being loaded: {other:?}"),
        }
    })?;
    ensure!(tries > 3, "only {tries} tries while it was being loaded");
    works(MODULE).context("after it")?;
    drop(session);
    module::unload(MODULE)?;

    // One in C registers its handler first and then takes its time.
    let session = create("slow")?;
    let mut tries = 0;
    let path = context.module(module::TEST);
    while_loading(&path, "init_ms=500", || {
        let Ok(file) = module::test_file(1) else {
            return Ok(());
        };
        match session.preserve(&file, Token(tries)) {
            Err(Errno::NOENT) => {}
            // It is done.
            Ok(()) if module::is_loaded(module::TEST) => {}
            other => anyhow::bail!("while it is being loaded: {other:?}"),
        }
        tries += 1;
        Ok(())
    })?;
    ensure!(tries > 3, "only {tries} tries while it was being loaded");
    drop(session);
    create("slow")?.preserve(module::test_file(1)?, Token(1))?;
    Ok(module::unload(module::TEST)?)
}

fn failing_init(context: &mut Context<'_>) -> Result<()> {
    let errno = Errno::NXIO.raw_os_error();
    // The parameter of the one in C is what its init returns.
    for (name, parameters) in [
        (MODULE, format!("init_errno={errno}")),
        (MODULE, format!("init_errno={errno} init_ms=100")),
        (module::TEST, format!("init_errno=-{errno} init_ms=100")),
    ] {
        let path = context.module(name);
        // No handler takes such a file, so all of them are gone through, that of the module too.
        let file = std::fs::File::open("/proc/self/status")?;
        let result = while_loading(&path, &parameters, || {
            let result = create("failing")?.preserve(&file, Token(1));
            expect_errno("a file of no handler", result, Errno::NOENT)
        });
        let error = result.err().context("it was loaded")?;
        let found = error.downcast_ref::<Errno>().context("another error")?;
        expect_eq("loading it", *found, Errno::NXIO)?;
        ensure!(!module::is_loaded(name), "{name} is there");
        module::load(&path).context("without a failure")?;
        module::unload(name)?;
    }
    Ok(())
}

/// `first` has three files of which some will be retrieved, `second` one that will not.
fn incoming_before(context: &mut Context<'_>) -> Result<()> {
    sdk::load(context)?;
    context.keep(sdk::session_of("first", &[1, 2, 3])?);
    let second = create("second")?;
    second.preserve(File::new_b(4)?, Token(4))?;
    context.keep(second);
    context.keep(create("empty")?);
    Ok(())
}

fn incoming_after(context: &mut Context<'_>) -> Result<()> {
    let path = context.module(MODULE);
    let unload = |when: &str| module::unload(MODULE).with_context(|| when.to_owned());
    let refused = |when: &str| expect_errno(when, module::unload(MODULE), Errno::AGAIN);
    module::load(&path)?;
    unload("before anything was read")?;
    let first = retrieve("first")?;
    let second = retrieve("second")?;
    module::load(&path)?;
    unload("with sessions of which no file was retrieved")?;
    module::load(&path)?;

    // A finish that is refused does not keep the module.
    fail("can_finish", 4, Errno::BUSY)?;
    let error = second.finish().err().context("the finish worked")?;
    expect_eq("finish", error.errno, Errno::BUSY)?;
    let second = error.session;
    never_fail("can_finish")?;
    unload("after a finish that was refused")?;
    module::load(&path)?;

    // Nor does a file that was not retrieved.
    fail("retrieve", 1, Errno::NXIO)?;
    expect_errno("retrieve", first.retrieve(Token(1)), Errno::NXIO)?;
    unload("after a retrieve that failed")?;
    expect_errno("the same", first.retrieve(Token(1)), Errno::NXIO)?;
    expect_errno("another", first.retrieve(Token(2)), Errno::NOENT)?;
    module::load(&path)?;
    expect_errno("the same", first.retrieve(Token(1)), Errno::NXIO)?;

    let file = File::retrieved(&first, 2)?;
    refused("with a retrieved file that is open")?;
    drop(file);
    for _ in 0..3 {
        refused("with a retrieved file")?;
    }
    let mut log = Reader::from_now()?;
    finish(first)?;
    let lines = [
        "finish 3 unclaimed",
        "finish 2 retrieved",
        "finish 1 failed ENXIO",
    ];
    expect(&mut log, &["finish"], &lines)?;
    unload("after the finish, with another session waiting")?;
    let refused_again = second.finish().err().context("the finish worked")?;
    expect_eq("without the module", refused_again.errno, Errno::BUSY)?;
    let second = refused_again.session;
    module::load(&path)?;
    let file = File::retrieved(&second, 4)?;
    expect_eq("the file", file.text()?.as_str(), "4")?;
    finish(second)?;
    refused("with an open file")?;
    drop(file);
    unload("after all")?;
    finish(retrieve("empty")?).context("a session without files needs no module")
}

fn off(context: &mut Context<'_>) -> Result<()> {
    ensure!(!Path::new(DEVICE_PATH).exists(), "{DEVICE_PATH} is there");
    for name in [MODULE, module::TEST] {
        for _ in 0..2 {
            let path = context.module(name);
            if name == module::TEST {
                // The C API says that it is off.
                let error = module::load(&path).err().context("it was loaded")?;
                let errno = error.downcast_ref::<Errno>().context("another error")?;
                expect_eq(name, *errno, Errno::OPNOTSUPP)?;
            } else {
                module::load(&path).with_context(|| name.to_owned())?;
                module::unload(name).with_context(|| format!("unloading {name}"))?;
            }
        }
    }
    module::load(&context.module(MODULE))?;
    let user = File::new(1)?;
    expect_eq("its file", user.text()?.as_str(), "1")?;
    for command in ["incoming 1", "outgoing 1"] {
        let result = user.try_command(command);
        expect_errno(command, result, Errno::OPNOTSUPP)?;
    }
    drop(user);
    // Without registrations, nothing clashes.
    sdk::load_like(context, TWIN, &[])?;
    module::unload(TWIN)?;
    module::unload(MODULE)?;
    expect_errno("opening the device", Device::open(), Errno::NOENT)
}
