// SPDX-License-Identifier: GPL-2.0

//! An iommufd with its IOASes, format `iommufd-ioas-v1`.
//!
//! A file entry's `data` is the physical address of an [`Iommufd`]. Its `records` describe a vmalloc
//! area that is an array of [`Record`]s, each of which says one thing: see [`Item`]. Whatever an item
//! refers to comes before it. No C header has this format; it is our own.

use crate::{
    assert_layout,
    kho::Vmalloc, //
};
use zerocopy_derive::{
    FromBytes,
    Immutable,
    IntoBytes,
    KnownLayout,
    Unaligned, //
};

/// The handler's compatible string.
pub const COMPATIBLE: &core::ffi::CStr = c"iommufd-ioas-v1";

/// A file's state.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
    Unaligned,
)]
#[repr(C, packed)]
pub struct Iommufd {
    /// [`Iommufd::ACCOUNT_PROCESS`] or 0.
    pub flags: u64,
    /// Number of [`Record`]s; 0 if there is no IOAS.
    pub nr_records: u64,
    /// The array of [`Record`]s; all zero if there is none.
    pub records: Vmalloc,
}

assert_layout!(
    Iommufd, size 32,
    flags at 0, nr_records at 8, records at 16,
);

impl Iommufd {
    /// New mappings are accounted to a process, and not to a user (`IOMMU_OPTION_RLIMIT_MODE`).
    pub const ACCOUNT_PROCESS: u64 = 1 << 0;
}

/// How pinned pages are counted against a limit (`IOPT_PAGES_ACCOUNT_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AccountMode {
    /// They are not: whoever mapped them may lock any amount of memory.
    None = 0,
    /// Those of the user.
    User = 1,
    /// Those of the process.
    Process = 2,
}

impl AccountMode {
    /// The mode of a number in the format, which is that of C.
    pub const fn new(mode: u64) -> Option<Self> {
        match mode {
            0 => Some(Self::None),
            1 => Some(Self::User),
            2 => Some(Self::Process),
            _ => None,
        }
    }
}

/// One thing of many that make up an iommufd. All lengths, offsets and addresses are in bytes.
///
/// | item    | `kind` | `flags` bit 0 | bit 1     | `index`  | `a`    | `b`    | `c`          |
/// |---------|--------|---------------|-----------|----------|--------|--------|--------------|
/// | file    | 1      |               |           |          | token  |        |              |
/// | pages   | 2      | writable      |           | of file  | start  | length | account mode |
/// | IOAS    | 3      | no huge pages |           | its id   |        |        |              |
/// | range   | 4      |               |           |          | first  | last   |              |
/// | mapping | 5      | readable      | writeable | of pages | IOVA   | length | start        |
///
/// What is empty in the table is 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Item {
    /// A file that is mapped. Files are numbered from 0 in their order.
    File {
        /// Its token in the session that the iommufd is in.
        token: u64,
    },
    /// Pages that one or more mappings share, so that they are pinned and accounted once. Pages are
    /// numbered from 0 in their order.
    Pages {
        /// The number of the file that they are a piece of.
        file: u32,
        /// Where in the file they start; a multiple of the page size.
        start: u64,
        /// A multiple of the page size.
        length: u64,
        /// Whether mappings of them can be writeable.
        writable: bool,
        /// How they are accounted when they are pinned.
        account_mode: AccountMode,
    },
    /// An address space. Ids are ascending.
    Ioas {
        /// Its id.
        id: u32,
        /// Whether it can be mapped with huge pages (`IOMMU_OPTION_HUGE_PAGES`).
        huge_pages: bool,
    },
    /// A range of IOVAs that the last IOAS is allowed to choose from (`IOMMU_IOAS_ALLOW_IOVAS`).
    Range {
        /// The first IOVA.
        start: u64,
        /// The last one.
        last: u64,
    },
    /// A mapping in the last IOAS.
    Mapping {
        /// The number of the pages that it is of.
        pages: u32,
        /// Where it starts.
        iova: u64,
        /// Its length.
        length: u64,
        /// Where it starts within the pages.
        start: u64,
        /// Whether a device may read through it.
        readable: bool,
        /// Whether a device may write through it.
        writeable: bool,
    },
}

/// An [`Item`] as it is handed over.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
    Unaligned,
)]
#[repr(C, packed)]
pub struct Record {
    kind: u16,
    flags: u16,
    index: u32,
    a: u64,
    b: u64,
    c: u64,
}

assert_layout!(
    Record, size 32,
    kind at 0, flags at 2, index at 4, a at 8, b at 16, c at 24,
);

const FILE: u16 = 1;
const PAGES: u16 = 2;
const IOAS: u16 = 3;
const RANGE: u16 = 4;
const MAPPING: u16 = 5;

impl From<Item> for Record {
    fn from(item: Item) -> Self {
        let (kind, flags, index, [a, b, c]) = match item {
            Item::File { token } => (FILE, 0, 0, [token, 0, 0]),
            Item::Pages {
                file,
                start,
                length,
                writable,
                account_mode,
            } => {
                let account_mode = account_mode as u64;
                (PAGES, writable.into(), file, [start, length, account_mode])
            }
            Item::Ioas { id, huge_pages } => (IOAS, (!huge_pages).into(), id, [0; 3]),
            Item::Range { start, last } => (RANGE, 0, 0, [start, last, 0]),
            Item::Mapping {
                pages,
                iova,
                length,
                start,
                readable,
                writeable,
            } => {
                let flags = u16::from(readable) | u16::from(writeable) << 1;
                (MAPPING, flags, pages, [iova, length, start])
            }
        };
        Self {
            kind,
            flags,
            index,
            a,
            b,
            c,
        }
    }
}

impl Record {
    /// What the record says; nothing if that is not in the format.
    pub fn item(&self) -> Option<Item> {
        let Self {
            kind,
            flags,
            index,
            a,
            b,
            c,
        } = *self;
        let flag = flags & 1 != 0;
        let item = match kind {
            FILE => Item::File { token: a },
            PAGES => Item::Pages {
                file: index,
                start: a,
                length: b,
                writable: flag,
                account_mode: AccountMode::new(c)?,
            },
            IOAS => Item::Ioas {
                id: index,
                huge_pages: !flag,
            },
            RANGE => Item::Range { start: a, last: b },
            MAPPING => Item::Mapping {
                pages: index,
                iova: a,
                length: b,
                start: c,
                readable: flag,
                writeable: flags & 2 != 0,
            },
            _ => return None,
        };
        // What no item uses is 0.
        (Self::from(item) == *self).then_some(item)
    }
}
