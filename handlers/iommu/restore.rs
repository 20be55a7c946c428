// SPDX-License-Identifier: GPL-2.0

//! How an iommufd is made of records that the previous kernel left.

use kernel::{
    fs::File,
    prelude::*,
    sync::aref::ARef, //
};

use crate::{
    handed_over,
    iommufd::{
        self,
        NewIoas,
        NewIommufd,
        Pages, //
    }, //
};

use luo_abi::iommufd::{
    self as abi,
    Item, //
};
use luo_core::context::Retrieve;

/// Makes an iommufd, in one pass over its records.
///
/// Fails with `EINVAL` if a record or their order is wrong, and as fetching the memfds does.
pub(crate) fn iommufd(cx: &mut Retrieve<'_>, state: &abi::Iommufd) -> Result<NewIommufd> {
    let records = handed_over(state)?;
    let flags = state.flags;
    if flags & !abi::Iommufd::ACCOUNT_PROCESS != 0 {
        return Err(EINVAL);
    }
    let iommufd = NewIommufd::new(flags != 0)?;
    let mut builder = Builder {
        iommufd: &iommufd,
        files: KVVec::new(),
        pages: KVVec::new(),
        ioas: None,
    };
    for (i, record) in records.into_iter().flatten().enumerate() {
        record
            .and_then(|record| builder.add(cx, record.item().ok_or(EINVAL)?))
            .inspect_err(|err| pr_err!("record {i} of an iommufd is of no use: {err:?}\n"))?;
    }
    Ok(iommufd)
}

/// An iommufd that is being made.
struct Builder<'a> {
    iommufd: &'a NewIommufd,
    files: KVVec<ARef<File>>,
    pages: KVVec<Pages>,
    /// The last one, with its id.
    ioas: Option<(u32, NewIoas<'a>)>,
}

impl Builder<'_> {
    fn add(&mut self, cx: &mut Retrieve<'_>, item: Item) -> Result {
        match item {
            Item::File { token } => self.files.push(memory(cx, token)?, GFP_KERNEL)?,
            Item::Pages {
                file,
                start,
                length,
                writable,
                account_mode,
            } => {
                let file = self.files.get(file as usize).ok_or(EINVAL)?;
                let pages = Pages::new(file, start, length, writable, account_mode)?;
                self.pages.push(pages, GFP_KERNEL)?;
            }
            Item::Ioas { id, huge_pages } => {
                let last = self.ioas.as_ref().map_or(0, |(id, _)| *id);
                if id <= last || i32::try_from(id).is_err() {
                    return Err(EINVAL);
                }
                let ioas = self.iommufd.create_ioas(id)?;
                if !huge_pages {
                    ioas.no_huge_pages()?;
                }
                self.ioas = Some((id, ioas));
            }
            Item::Range { start, last } => self.ioas()?.allow(start, last)?,
            Item::Mapping {
                pages,
                iova,
                length,
                start,
                readable,
                writeable,
            } => {
                let pages = self.pages.get(pages as usize).ok_or(EINVAL)?;
                self.ioas()?
                    .map(iova, length, pages, start, readable, writeable)?;
            }
        }
        Ok(())
    }

    fn ioas(&self) -> Result<&NewIoas<'_>> {
        let (_, ioas) = self.ioas.as_ref().ok_or(EINVAL)?;
        Ok(ioas)
    }
}

/// A memfd of the session, which is retrieved now if nobody did that before.
fn memory(cx: &mut Retrieve<'_>, token: u64) -> Result<ARef<File>> {
    let file = cx
        .fetch(token)
        .inspect_err(|err| pr_err!("token {token:#x}: the mapped memfd is not there: {err:?}\n"))?;
    if !iommufd::is_memory(&file) {
        pr_err!("token {token:#x}: a file that is mapped is no memfd\n");
        return Err(EINVAL);
    }
    Ok(file)
}
