// SPDX-License-Identifier: GPL-2.0

//! How an iommufd is put into records.

use kernel::{
    prelude::*,
    rbtree::RBTree, //
};

use crate::iommufd::{
    self,
    Iommufd,
    LockedIoas,
    MappedPages,
    Mapping,
    Object, //
};

use luo_abi::iommufd::{
    self as abi,
    Item,
    Record, //
};
use luo_core::{
    context::Saving,
    kho::PreservedArray, //
};

/// The state of an iommufd with these records.
pub(crate) fn state(iommufd: &Iommufd, records: Option<&PreservedArray<Record>>) -> abi::Iommufd {
    abi::Iommufd {
        flags: match iommufd.accounts_process() {
            true => abi::Iommufd::ACCOUNT_PROCESS,
            false => 0,
        },
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
    /// Those of an iommufd. Each IOAS is locked, and passed on to `f` when it is recorded.
    ///
    /// Errors: `ENOMEM`; `E2BIG`; `EBUSY`, an IOAS or a mapping is in use in a way that it may change;
    /// `EOPNOTSUPP`, something would be lost; `EXDEV`, the session does not preserve a memfd that is
    /// mapped; and those of `f`.
    pub(crate) fn of(
        cx: &'a Saving<'a, Phase>,
        iommufd: &Iommufd,
        mut f: impl FnMut(LockedIoas) -> Result,
    ) -> Result<Self> {
        let mut records = Self {
            cx,
            records: KVVec::new(),
            files: RBTree::new(),
            pages: RBTree::new(),
            nr_files: 0,
            nr_pages: 0,
        };
        for (id, object) in iommufd.objects() {
            match object {
                Object::Ioas(ioas) => {
                    let ioas = ioas.try_lock().ok_or(EBUSY).inspect_err(|_| {
                        records.complain(id, "it is in use, try again");
                    })?;
                    records.add(id, &ioas)?;
                    f(ioas)?;
                }
                Object::ComesBack => (),
                Object::Lost => {
                    records.complain(id, "it would be lost, destroy it first");
                    return Err(EOPNOTSUPP);
                }
            }
        }
        if let Some(id) = iommufd.container() {
            records.complain(id, "it serves VFIO's container ioctls, which would be lost");
            return Err(EOPNOTSUPP);
        }
        Ok(records)
    }

    fn complain(&self, id: u32, why: &str) {
        let token = self.cx.token();
        pr_info!("token {token:#x}, object {id}: {why}\n");
    }

    /// Adds an IOAS with all that is in it.
    fn add(&mut self, id: u32, ioas: &LockedIoas) -> Result {
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
                .inspect_err(|err| {
                    let (token, why) = (self.cx.token(), reason(*err));
                    pr_info!("token {token:#x}, IOAS {id}, IOVA {iova:#x}: {why}\n");
                })?;
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
        let token = self.cx.token_of(pages.file).ok_or(EXDEV)?;
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
        EXDEV => "preserve the memfd that is mapped here first, in the same session",
        EBUSY => "this is just being mapped or unmapped, try again",
        EOPNOTSUPP => {
            "this is no memfd, or one of hugetlb, or it was not mapped by IOMMU_IOAS_MAP_FILE"
        }
        _ => "there is no memory to preserve this, or no number",
    }
}
