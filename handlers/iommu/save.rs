// SPDX-License-Identifier: GPL-2.0

//! How an iommufd is put into records.

use kernel::{
    prelude::*,
    rbtree::RBTree, //
};

use crate::iommufd::{
    self,
    Ioas,
    Iommufd,
    LockedIoas,
    MappedPages,
    Mapping,
    Object, //
};

use luo_abi::iommufd::{
    self as abi,
    AccountMode,
    Item,
    Record, //
};
use luo_core::{
    context::Saving,
    kho::PreservedArray, //
};

/// Passes on each IOAS of an iommufd, with its id.
///
/// Fails with `EOPNOTSUPP` if there is something in the iommufd that cannot be preserved.
pub(crate) fn each_ioas(iommufd: &Iommufd, mut f: impl FnMut(u32, Ioas) -> Result) -> Result {
    if iommufd.is_container() {
        pr_info!("an iommufd that serves VFIO's container ioctls cannot be preserved\n");
        return Err(EOPNOTSUPP);
    }
    for (id, object) in iommufd.objects() {
        match object {
            Object::Ioas(ioas) => f(id, ioas)?,
            Object::ComesBack => (),
            Object::Lost => {
                pr_info!("object {id} of an iommufd would be lost, destroy it first\n");
                return Err(EOPNOTSUPP);
            }
        }
    }
    Ok(())
}

/// The state of an iommufd with these records.
pub(crate) fn state(
    account_mode: AccountMode,
    records: Option<&PreservedArray<Record>>,
) -> abi::Iommufd {
    abi::Iommufd {
        account_mode: account_mode as u32,
        flags: 0,
        nr_records: records.map_or(0, |records| records.entries().len() as u64),
        records: records.map(PreservedArray::descriptor).unwrap_or_default(),
    }
}

/// The records of an iommufd, as they are made.
pub(crate) struct Records<'a, Phase> {
    cx: &'a Saving<'a, Phase>,
    records: KVVec<Record>,
    /// The numbers of files, by their addresses.
    files: RBTree<usize, u32>,
    /// The numbers of pages, by their addresses.
    pages: RBTree<usize, u32>,
    nr_files: u32,
    nr_pages: u32,
}

impl<'a, Phase> Records<'a, Phase> {
    /// None yet.
    pub(crate) fn new(cx: &'a Saving<'a, Phase>) -> Self {
        Self {
            cx,
            records: KVVec::new(),
            files: RBTree::new(),
            pages: RBTree::new(),
            nr_files: 0,
            nr_pages: 0,
        }
    }

    /// Adds an IOAS with all that is in it.
    ///
    /// Errors: `ENOMEM`; `EBUSY`, a mapping is just being made or removed; `EOPNOTSUPP`, a mapping is
    /// not of a memfd; `EBADFD`, it is of one that the session does not preserve.
    pub(crate) fn add(&mut self, id: u32, ioas: &LockedIoas) -> Result {
        self.push(Item::Ioas {
            id,
            huge_pages: ioas.huge_pages(),
        })?;
        for (start, last) in ioas.ranges() {
            self.push(Item::Range { start, last })?;
        }
        for (iova, mapping) in ioas.mappings() {
            mapping
                .and_then(|mapping| self.add_mapping(&mapping))
                .inspect_err(|err| pr_info!("IOAS {id}, IOVA {iova:#x}: {}\n", reason(*err)))?;
        }
        Ok(())
    }

    fn push(&mut self, item: Item) -> Result {
        self.records.push(item.into(), GFP_KERNEL)?;
        Ok(())
    }

    fn add_mapping(&mut self, mapping: &Mapping<'_>) -> Result {
        let pages = self.pages(&mapping.pages)?;
        self.push(Item::Mapping {
            pages,
            iova: mapping.iova,
            length: mapping.length,
            start: mapping.start,
            readable: mapping.readable,
            writeable: mapping.writeable,
        })
    }

    /// The number of some pages.
    fn pages(&mut self, pages: &MappedPages<'_>) -> Result<u32> {
        if let Some(number) = self.pages.get(&pages.id) {
            return Ok(*number);
        }
        let item = Item::Pages {
            file: self.file(pages)?,
            start: pages.start,
            length: pages.length,
            writable: pages.writable,
            account_mode: pages.account_mode,
        };
        self.push(item)?;
        let number = next(&mut self.nr_pages)?;
        self.pages
            .try_create_and_insert(pages.id, number, GFP_KERNEL)?;
        Ok(number)
    }

    /// The number of the file of some pages.
    fn file(&mut self, pages: &MappedPages<'_>) -> Result<u32> {
        let id = pages.file.as_ptr() as usize;
        if let Some(number) = self.files.get(&id) {
            return Ok(*number);
        }
        if !iommufd::is_memory(pages.file) {
            return Err(EOPNOTSUPP);
        }
        let token = self.cx.token_of(pages.file).ok_or(EBADFD)?;
        self.push(Item::File { token })?;
        let number = next(&mut self.nr_files)?;
        self.files.try_create_and_insert(id, number, GFP_KERNEL)?;
        Ok(number)
    }

    /// Whether others are the same.
    pub(crate) fn are(&self, others: Option<&PreservedArray<Record>>) -> bool {
        self.records[..] == *others.map_or(&[][..], PreservedArray::entries)
    }

    /// Hands them over to the next kernel.
    pub(crate) fn preserve(&self) -> Result<Option<PreservedArray<Record>>> {
        if self.records.is_empty() {
            return Ok(None);
        }
        let mut array = PreservedArray::zeroed(self.records.len())?;
        array.entries_mut().copy_from_slice(&self.records);
        Ok(Some(array))
    }
}

/// Counts on, and returns the number before.
fn next(count: &mut u32) -> Result<u32> {
    let number = *count;
    *count = number.checked_add(1).ok_or(E2BIG)?;
    Ok(number)
}

/// What a user can do about a mapping that is not preserved.
fn reason(err: Error) -> &'static str {
    match err {
        EBADFD => "preserve the memfd that is mapped here first, in the same session",
        EBUSY => "this is just being mapped or unmapped, try again",
        EOPNOTSUPP => "only memfds can be mapped here, and by descriptor (IOMMU_IOAS_MAP_FILE)",
        _ => "this cannot be preserved",
    }
}
