// SPDX-License-Identifier: GPL-2.0

//! Live update of iommufds, in the format `iommufd-ioas-v1`.
//!
//! What survives: each IOAS with its id, its allowed ranges and its option for huge pages; each
//! mapping of a memfd, at the same IOVA, with the same rights; which mappings share their pages; how
//! pages are accounted. A device that is bound and attached to an IOAS again finds everything mapped.
//! The memfds are preserved in the same session, before the iommufd.
//!
//! While an iommufd is preserved, what was mapped then cannot be unmapped (`EBUSY`), and an IOAS that
//! was there cannot be destroyed (`EBUSY`). Whatever is added later is preserved too: all is read
//! again when the machine reboots, and from then on no IOAS and no mapping changes any more.
//!
//! What does not survive: devices and what they are attached to, which come back when they are bound
//! and attached, with other ids. What would be lost is refused with `EOPNOTSUPP`: page tables made by
//! hand, vIOMMUs, event queues and the like, mappings by address or of a dma-buf, and VFIO's
//! container.

mod bindings;
mod iommufd;
mod restore;
mod save;

use kernel::{
    fs::File,
    prelude::*,
    sync::aref::ARef, //
};

use crate::{
    iommufd::{
        IoasHold,
        Iommufd,
        IommufdHold,
        NewIommufd,
        PinnedIoas, //
    },
    save::Records, //
};

use luo_abi::iommufd as abi;
use luo_core::{
    context::{
        Finish,
        Freeze,
        Preserve,
        Retrieve, //
    },
    handler::Outcome,
    kho::{
        ClaimedArray,
        PreservedArray,
        Vmalloc, //
    },
    LiveupdateFileHandler, //
};

luo_core::module_liveupdate! {
    handlers: [IommufdHandler],
    name: "luo_iommu",
    authors: ["Rust Live Update Orchestrator maintainers"],
    description: "Live update of iommufds",
    license: "GPL",
}

struct IommufdHandler;

/// A preserved iommufd.
struct Preserved {
    /// What keeps it as it is from freeze on.
    hold: Option<Hold>,
    /// What was there when it was preserved.
    _pinned: KVec<PinnedIoas>,
    /// `None` without an IOAS.
    records: Option<PreservedArray<abi::Record>>,
}

/// An iommufd whose IOASes do not change.
struct Hold {
    _ioases: KVec<IoasHold>,
    _iommufd: IommufdHold,
}

#[vtable]
impl LiveupdateFileHandler for IommufdHandler {
    const COMPATIBLE: &'static CStr = abi::COMPATIBLE;

    type State = abi::Iommufd;

    type Private = Preserved;

    fn can_preserve(file: &File) -> bool {
        Iommufd::new(file.into()).is_ok()
    }

    fn preserve(cx: &Preserve<'_>, state: &mut abi::Iommufd) -> Result<Preserved> {
        let iommufd = Iommufd::new(cx.file().into())?;
        let mut pinned = KVec::new();
        let records = Records::of(cx, &iommufd, |ioas| {
            pinned.push(ioas.pin()?, GFP_KERNEL)?;
            Ok(())
        })?
        .preserve()?;
        *state = save::state(&iommufd, records.as_ref());
        Ok(Preserved {
            hold: None,
            _pinned: pinned,
            records,
        })
    }

    fn unpreserve(_file: &File, _state: &abi::Iommufd, preserved: Preserved) {
        drop(preserved);
    }

    fn freeze(cx: &Freeze<'_>, state: &mut abi::Iommufd, preserved: &mut Preserved) -> Result {
        let iommufd = Iommufd::new(cx.file().into())?;
        let hold = iommufd.try_hold().ok_or(EBUSY).inspect_err(|_| {
            let token = cx.token();
            pr_info!("token {token:#x}: IOASes are just being made or changed, try again\n");
        })?;
        let mut ioases = KVec::new();
        let records = Records::of(cx, &iommufd, |ioas| {
            ioases.push(ioas.hold(), GFP_KERNEL)?;
            Ok(())
        })?;
        if !records.are(preserved.records.as_ref()) {
            preserved.records = records.preserve()?;
        }
        *state = save::state(&iommufd, preserved.records.as_ref());
        preserved.hold = Some(Hold {
            _ioases: ioases,
            _iommufd: hold,
        });
        Ok(())
    }

    fn unfreeze(_file: &File, _state: &abi::Iommufd, preserved: &mut Preserved) {
        preserved.hold = None;
    }

    fn retrieve(cx: &mut Retrieve<'_>, state: &abi::Iommufd) -> Result<ARef<File>> {
        restore::iommufd(cx, state)
            .map(NewIommufd::into_file)
            .inspect_err(|err| pr_err!("token {:#x}: the iommufd is lost: {err:?}\n", cx.token()))
    }

    fn finish(_cx: &Finish<'_>, outcome: Outcome<'_, abi::Iommufd>) {
        if let Outcome::Unclaimed(state) = outcome {
            drop(handed_over(state));
        }
    }
}

/// The records that came with an iommufd; dropping them frees what was not read.
///
/// Fails with `EINVAL` if they cannot be that many; then all of them stay reserved.
fn handed_over(state: &abi::Iommufd) -> Result<Option<ClaimedArray<abi::Record>>> {
    let abi::Iommufd {
        nr_records,
        records,
        ..
    } = *state;
    match nr_records {
        0 if records == Vmalloc::default() => Ok(None),
        _ => ClaimedArray::new(&records, nr_records)
            .inspect_err(|_| pr_err!("an iommufd came without its {nr_records} records\n"))
            .map(Some),
    }
}
