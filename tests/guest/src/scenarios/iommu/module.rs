// SPDX-License-Identifier: GPL-2.0

//! The handler's module: when it may go, and that it comes when it is needed.

use super::{IOMMUFD, IOVA, MIB, Mapped, expect_mappings, hand_over, retrieved};
use crate::context::{Context, create, expect_eq, expect_errno, finish, retrieve};
use crate::iommufd::{HANDLER, Iommufd};
use crate::module;
use crate::registry::{Group, Scenario};
use anyhow::{Context as _, Result, ensure};
use liveupdate::Errno;

/// The machine has to have modprobe. Each of them unloads the module when it is done.
pub const GROUP: Group = Group {
    name: "iommu-module",
    scenarios: &[
        Scenario {
            name: "iommu-module-stays-while-it-is-needed",
            stages: &[stays],
        },
        Scenario {
            name: "iommu-module-loaded-by-retrieve",
            stages: &[
                |context| hand_over(context, "by-retrieve", MIB),
                by_retrieve,
            ],
        },
        Scenario {
            name: "iommu-module-loaded-by-finish",
            stages: &[|context| hand_over(context, "by-finish", MIB), by_finish],
        },
    ],
};

fn unload(when: &str) -> Result<()> {
    module::unload(HANDLER).with_context(|| when.to_owned())
}

fn refused(when: &str) -> Result<()> {
    expect_errno(when, module::unload(HANDLER), Errno::AGAIN)
}

fn stays(context: &mut Context<'_>) -> Result<()> {
    let mapped = Mapped::new(context, MIB)?;
    let session = create("stays-loaded")?;
    unload("with an iommufd that is not preserved")?;
    let none = session.preserve(&mapped.iommufd, IOMMUFD);
    expect_errno("without the module", none, Errno::NOENT)?;
    super::load(context)?;
    let early = session.preserve(&mapped.iommufd, IOMMUFD);
    expect_errno("before its memory", early, Errno::XDEV)?;
    unload("after a refusal")?;
    super::load(context)?;
    mapped.preserve(&session)?;
    for _ in 0..3 {
        refused("with one that is preserved")?;
    }
    drop(mapped);
    refused("with one that only the session has")?;
    drop(session);
    unload("after the session was closed")
}

fn by_retrieve(_: &mut Context<'_>) -> Result<()> {
    ensure!(!module::is_loaded(HANDLER), "it is there already");
    let session = retrieve("by-retrieve")?;
    let iommufd = retrieved(&session, IOMMUFD)?;
    ensure!(module::is_loaded(HANDLER), "it is not there");
    for _ in 0..3 {
        refused("before the finish")?;
    }
    finish(session)?;
    unload("after the finish")?;
    // The iommufd does not need it any more.
    expect_eq("a new IOAS", iommufd.alloc_ioas(), Ok(2))?;
    expect_mappings(&iommufd, 1, &[(IOVA, MIB)])?;
    drop(iommufd);
    Iommufd::open().map(drop)
}

fn by_finish(_: &mut Context<'_>) -> Result<()> {
    ensure!(!module::is_loaded(HANDLER), "it is there already");
    finish(retrieve("by-finish")?)?;
    ensure!(module::is_loaded(HANDLER), "it is not there");
    unload("after the finish")
}
