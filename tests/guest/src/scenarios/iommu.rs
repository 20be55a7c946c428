// SPDX-License-Identifier: GPL-2.0

//! An iommufd and what is in it, from one kernel to the next.

pub mod comes_over;
pub mod corrupt;
pub mod cost;
pub mod device;
pub mod format;
pub mod many;
pub mod module;
pub mod preserved;
pub mod reboot;
pub mod refused;

use crate::context::{Context, create, expect_eq};
use crate::data;
use crate::iommufd::{self, Access, Iommufd, Part};
use crate::vfio;
use anyhow::{Context as _, Result};
use liveupdate::{Errno, Incoming, Outgoing, Session, Token};
use std::fs::File;

const MIB: u64 = 1 << 20;

/// The tokens of the memory and of the iommufd.
const MEMORY: Token = Token(1);
const IOMMUFD: Token = Token(2);

/// Sees to it that iommufd, VFIO and the handler are there.
fn load(context: &Context<'_>) -> Result<()> {
    vfio::load(context)?;
    iommufd::load_handler(context)
}

/// A part of a file.
fn part(file: &File, start: u64, len: u64) -> Part<'_> {
    Part { file, start, len }
}

/// An iommufd of an incoming session.
fn retrieved(session: &Session<Incoming>, token: Token) -> Result<Iommufd> {
    let fd = session.retrieve(token).context("retrieving an iommufd")?;
    Ok(Iommufd::from(fd))
}

/// Expects an IOAS to have these mappings, by IOVA and length, and no other; unmaps them.
fn expect_mappings(iommufd: &Iommufd, ioas: u32, expected: &[(u64, u64)]) -> Result<()> {
    for &(iova, len) in expected {
        let unmapped = iommufd.unmap(ioas, iova, len);
        let unmapped = unmapped.with_context(|| format!("IOAS {ioas}: unmapping {iova:#x}"))?;
        expect_eq(&format!("bytes of IOAS {ioas}, {iova:#x}"), unmapped, len)?;
    }
    let rest = iommufd.unmap_all(ioas);
    let rest = rest.with_context(|| format!("IOAS {ioas}"))?;
    expect_eq(&format!("other bytes of IOAS {ioas}"), rest, 0)
}

/// Memory and an iommufd in which it is mapped once, at [`IOVA`].
pub struct Mapped {
    memory: File,
    iommufd: Iommufd,
    ioas: u32,
}

const IOVA: u64 = 0x40_0000;

impl Mapped {
    fn new(context: &Context<'_>, len: u64) -> Result<Self> {
        load(context)?;
        let memory = data::memfd_with("memory", 1, len)?;
        let iommufd = Iommufd::open()?;
        let ioas = iommufd.alloc_ioas()?;
        let mapped = Self {
            memory,
            iommufd,
            ioas,
        };
        mapped.map(IOVA, 0, len)?;
        Ok(mapped)
    }

    /// Maps a part of the memory once more.
    fn map(&self, iova: u64, start: u64, len: u64) -> Result<(), Errno> {
        let part = part(&self.memory, start, len);
        let place = self
            .iommufd
            .map_file(self.ioas, Some(iova), part, Access::ReadWrite)?;
        assert_eq!(place, iova, "that was not asked for");
        Ok(())
    }

    fn unmap(&self, iova: u64, len: u64) -> Result<u64, Errno> {
        self.iommufd.unmap(self.ioas, iova, len)
    }

    fn preserve(&self, session: &Session<Outgoing>) -> Result<()> {
        session.preserve(&self.memory, MEMORY).context("memory")?;
        session
            .preserve(&self.iommufd, IOMMUFD)
            .context("its iommufd")
    }

    /// Preserves it in a session of its own.
    fn preserved(&self, name: &str) -> Result<Session<Outgoing>> {
        let session = create(name)?;
        self.preserve(&session)?;
        Ok(session)
    }
}

/// Preserves memory of so many bytes, and an iommufd in which it is mapped, in a session of their own.
fn hand_over(context: &mut Context<'_>, name: &str, len: u64) -> Result<()> {
    let mapped = Mapped::new(context, len)?;
    let session = mapped.preserved(name)?;
    context.keep((session, mapped));
    Ok(())
}
