// SPDX-License-Identifier: GPL-2.0

//! Live update of memfds, in the format `memfd-v2`.
//!
//! What survives: the contents, the size, the file position and the seals. While a memfd is
//! preserved, its size cannot change and nothing can be punched out of it; it can be read, written
//! and mapped as ever, until the machine reboots. All pages of a sparse file are allocated when it
//! is preserved.
//!
//! What does not survive: the name, the descriptor's flags (`FD_CLOEXEC`), that a description was
//! opened for reading only, memory policies, and whatever is attached to mappings. Files in huge
//! pages (`MFD_HUGETLB`) are refused with `EOPNOTSUPP`.
//!
//! C counterpart: `mm/memfd_luo.c`.

mod bindings;
mod shmem;

use kernel::{
    fs::File,
    prelude::*,
    sync::aref::ARef, //
};

use crate::shmem::{
    PinnedFolios,
    Shmem, //
};

use luo_abi::memfd::{
    self,
    Folio,
    Memfd, //
};
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
        PreservedArray, //
    },
    LiveupdateFileHandler, //
};

luo_core::module_liveupdate! {
    handlers: [MemfdHandler],
    name: "luo_memfd",
    authors: ["Rust Live Update Orchestrator maintainers"],
    description: "Live update of memfds",
    license: "GPL",
}

struct MemfdHandler;

/// The preserved folios of a file, pinned where they are.
struct PreservedFolios {
    /// The first `done` of them are filled in.
    array: PreservedArray<Folio>,
    done: usize,
}

impl PreservedFolios {
    fn new(folios: PinnedFolios) -> Result<Self> {
        let mut preserved = Self {
            array: PreservedArray::zeroed(folios.len())?,
            done: 0,
        };
        for (entry, folio) in preserved.array.entries_mut().iter_mut().zip(folios) {
            *entry = folio.preserve()?;
            preserved.done += 1;
        }
        Ok(preserved)
    }
}

impl Drop for PreservedFolios {
    fn drop(&mut self) {
        for entry in self.array.entries().iter().take(self.done) {
            shmem::unpreserve(entry);
        }
    }
}

#[vtable]
impl LiveupdateFileHandler for MemfdHandler {
    const COMPATIBLE: &'static CStr = memfd::COMPATIBLE;

    type State = Memfd;

    /// `None` for an empty file.
    type Private = Option<PreservedFolios>;

    fn can_preserve(file: &File) -> bool {
        Shmem::is_memfd(file)
    }

    /// Two descriptions of a memfd have one inode.
    fn id(file: &File) -> usize {
        Shmem::inode_id(file)
    }

    fn preserve(cx: &Preserve<'_>, state: &mut Memfd) -> Result<Self::Private> {
        let file = Shmem::new(cx.file()).inspect_err(|_| {
            pr_info!("a file in huge pages (MFD_HUGETLB) cannot be preserved\n");
        })?;
        let frozen = file.freeze_size();
        let size = file.size();
        let seals = file.seals()?;
        if seals & !memfd::ALL_SEALS != 0 {
            return Err(EOPNOTSUPP);
        }
        let folios = match size {
            0 => None,
            _ => Some(PreservedFolios::new(file.pin(size)?)?),
        };
        *state = Memfd {
            pos: file.position(),
            size,
            seals,
            flags: 0,
            nr_folios: folios.as_ref().map_or(0, |folios| folios.done as u64),
            folios: folios
                .as_ref()
                .map(|folios| folios.array.descriptor())
                .unwrap_or_default(),
        };
        frozen.keep();
        Ok(folios)
    }

    fn unpreserve(file: &File, _state: &Memfd, folios: Self::Private) {
        drop(folios);
        if let Ok(file) = Shmem::new(file) {
            file.thaw_size();
        }
    }

    /// The position may have moved; nothing else has changed since.
    fn freeze(cx: &Freeze<'_>, state: &mut Memfd, _folios: &mut Self::Private) -> Result {
        state.pos = Shmem::new(cx.file())?.position();
        Ok(())
    }

    fn retrieve(_cx: &mut Retrieve<'_>, state: &Memfd) -> Result<ARef<File>> {
        let mut folios = handed_over(state)?;
        restore(state, &mut folios).inspect_err(|err| {
            pr_err!("a memfd cannot be restored: {err:?}\n");
            discard(folios);
        })
    }

    fn finish(_cx: &Finish<'_>, outcome: Outcome<'_, Memfd>) {
        if let Outcome::Unclaimed(state) = outcome {
            if let Ok(folios) = handed_over(state) {
                discard(folios);
            }
        }
    }
}

type Folios = Option<ClaimedArray<Folio>>;

/// The list of folios that came with a file.
///
/// Fails with `EINVAL` if it cannot be that long; then all of them stay reserved.
fn handed_over(state: &Memfd) -> Result<Folios> {
    let Memfd {
        nr_folios, folios, ..
    } = *state;
    match nr_folios {
        0 => Ok(None),
        _ => ClaimedArray::new(&folios, nr_folios)
            .inspect_err(|_| pr_err!("a memfd came without its list of {nr_folios} folios\n"))
            .map(Some),
    }
}

/// Frees all folios that are still on the list.
fn discard(folios: Folios) {
    for folio in folios.into_iter().flatten().flatten() {
        drop(shmem::claim(&folio));
    }
}

fn restore(state: &Memfd, folios: &mut Folios) -> Result<ARef<File>> {
    let Memfd {
        pos,
        size,
        seals,
        flags,
        nr_folios,
        ..
    } = *state;
    if seals & !memfd::ALL_SEALS != 0 || flags != 0 {
        return Err(EOPNOTSUPP);
    }
    let pages = shmem::pages(size)?;
    if nr_folios > pages {
        return Err(EINVAL);
    }

    let file = Shmem::create(seals)?;
    file.set_position(pos)?;
    file.set_size(size);
    let mut added = 0;
    while let Some(entry) = folios.as_mut().and_then(Iterator::next) {
        let entry = entry?;
        // No folio is at frame 0; C skips such entries too.
        if entry.pfn() == 0 {
            continue;
        }
        let folio = shmem::claim(&entry)?;
        let index = entry.index;
        if index >= pages {
            return Err(EINVAL);
        }
        added += file.insert(folio, &entry)?;
    }
    file.account(added)?;
    Ok(file.into_file())
}
