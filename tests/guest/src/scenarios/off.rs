// SPDX-License-Identifier: GPL-2.0

//! Kernels in which live update is switched off.

use crate::context::{Context, create, device, expect_errno, finish, retrieve};
use crate::data;
use crate::registry::{Group, Scenario};
use anyhow::{Result, ensure};
use liveupdate::{DEVICE_PATH, Device, Errno, SessionName, Token};
use std::path::Path;

/// The kernels are given: nothing, `liveupdate=off`, `kho=off`, nothing, `liveupdate=off`.
pub const GROUP: Group = Group {
    name: "off",
    scenarios: &[Scenario {
        name: "switched-off",
        stages: &[on, off, off, on_again, off],
    }],
};

fn on(context: &mut Context<'_>) -> Result<()> {
    let session = create("off")?;
    session.preserve(data::memfd_with("file", 1, 100_000)?, Token(1))?;
    context.keep(session);
    Ok(())
}

fn off(_: &mut Context<'_>) -> Result<()> {
    expect_errno("opening the device", Device::open(), Errno::NOENT)?;
    ensure!(!Path::new(DEVICE_PATH).exists(), "{DEVICE_PATH} is there");
    // The machine is as good as any.
    data::expect_file(&data::memfd_with("file", 1, 10 << 20)?, 1, 10 << 20)
}

/// After kernels that were off nothing comes over, and live update works.
fn on_again(context: &mut Context<'_>) -> Result<()> {
    let result = device()?.retrieve_session(&SessionName::new("off")?);
    expect_errno("the lost session", result, Errno::NOENT)?;
    on(context)?;
    let unknown = retrieve("unknown");
    ensure!(unknown.is_err(), "an unknown session came over");
    let session = create("finish")?;
    let incoming = crate::context::as_incoming(&session)?;
    ensure!(
        finish(incoming).is_err(),
        "an outgoing session was finished"
    );
    Ok(())
}
