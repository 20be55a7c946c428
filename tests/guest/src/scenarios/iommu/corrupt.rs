// SPDX-License-Identifier: GPL-2.0

//! Iommufds whose records somebody spoilt.
//!
//! Each fails alone: the rest of its session comes over, with the memory that it was to map.

use super::{MIB, expect_mappings, load, part, retrieved};
use crate::context::{Context, create, expect_message, finish, retrieve};
use crate::data;
use crate::errno::name;
use crate::handover::{At, Memory};
use crate::iommufd::{Access, Iommufd};
use crate::kmsg::Reader;
use crate::registry::{Group, Scenario};
use crate::scenarios::corrupt::start_spoiling;
use anyhow::{Context as _, Result, ensure};
use liveupdate::{Errno, Token};
use luo_abi::iommufd::{self as abi, AccountMode, Item, Record};
use luo_abi::luo;
use luo_abi::memfd::Memfd;
use zerocopy::IntoBytes;

pub const GROUP: Group = Group {
    name: "iommu-corrupt",
    scenarios: &[Scenario {
        name: "corrupt-iommufds",
        stages: &[before, after],
    }],
};

/// What the program that spoils is told.
pub const HOW: &str = "iommufds";

const SESSION: &str = "corrupt-iommufds";
/// An address where no machine of these tests has memory.
const WILD: u64 = 0xdead_beef_0000;

/// The token of the memory that is mapped, of memory that cannot be retrieved, and of a sound
/// iommufd.
const MEMORY: u64 = 1;
const LOST: u64 = 2;
const SOUND: u64 = 3;
/// The token of the first iommufd that is spoilt. The others follow.
const FIRST: u64 = 100;
/// There is no file of this token.
const NONE: u64 = 99;

/// What every iommufd has: IOAS 1 with mappings at 1 and 2 MiB and a range, and IOAS 5 with a copy.
fn make(memory: &std::fs::File) -> Result<Iommufd> {
    let iommufd = Iommufd::open()?;
    for _ in 1..=5 {
        iommufd.alloc_ioas()?;
    }
    for id in 2..=4 {
        iommufd.destroy(id)?;
    }
    iommufd.allow_iovas(1, &[(0x1000, 0xffff)])?;
    let map = |iova, part, access| iommufd.map_file(1, Some(iova), part, access);
    map(MIB, part(memory, 0, 0x4000), Access::ReadWrite)?;
    map(2 * MIB, part(memory, 0x4000, 0x1000), Access::Read)?;
    iommufd.copy((1, MIB), 0x4000, 5, Some(MIB), Access::ReadWrite)?;
    Ok(iommufd)
}

/// The records of such an iommufd, by their places.
const IOAS: usize = 0;
const RANGE: usize = 1;
const FILE: usize = 2;
const PAGES: usize = 3;
const MAPPING: usize = 4;
const OTHER_PAGES: usize = 5;
const OTHER_MAPPING: usize = 6;
const OTHER_IOAS: usize = 7;
const COPY: usize = 8;
const RECORDS: usize = 9;

/// What of an iommufd is spoilt.
struct Handed {
    entry: luo::File,
    state: abi::Iommufd,
    records: Vec<Record>,
}

impl Handed {
    /// Overwrites bytes of a record.
    fn set(&mut self, record: usize, offset: usize, bytes: &[u8]) {
        self.records[record].as_mut_bytes()[offset..][..bytes.len()].copy_from_slice(bytes);
    }

    fn put(&mut self, record: usize, item: Item) {
        self.records[record] = item.into();
    }

    fn put_pages(&mut self, start: u64, length: u64) {
        let item = Item::Pages {
            file: 0,
            start,
            length,
            writable: true,
            account_mode: AccountMode::None,
        };
        self.put(PAGES, item);
    }

    /// A mapping of the first pages in the place of the second mapping.
    fn put_mapping(&mut self, iova: u64, length: u64, start: u64) {
        let item = Item::Mapping {
            pages: 0,
            iova,
            length,
            start,
            readable: true,
            writeable: false,
        };
        self.put(OTHER_MAPPING, item);
    }

    fn put_ioas(&mut self, record: usize, id: u32) {
        let huge_pages = true;
        self.put(record, Item::Ioas { id, huge_pages });
    }

    fn put_range(&mut self, record: usize, start: u64, last: u64) {
        self.put(record, Item::Range { start, last });
    }

    fn put_file(&mut self, token: u64) {
        self.put(FILE, Item::File { token });
    }
}

/// Fields of a record.
const KIND: usize = 0;
const FLAGS: usize = 2;
const INDEX: usize = 4;
const A: usize = 8;
const B: usize = 16;
const C: usize = 24;

/// Spoils something.
type Spoil = fn(&mut Handed);

/// What is spoilt, how, and what the retrieve fails with.
type Case = (&'static str, Spoil, Errno);

const EINVAL: Errno = Errno::INVAL;

const CASES: &[Case] = &[
    ("state's flags", |it| it.state.flags = 2, EINVAL),
    ("state's last flag", |it| it.state.flags = 1 << 63, EINVAL),
    ("one record more", |it| it.state.nr_records += 1, EINVAL),
    ("many records more", |it| it.state.nr_records += 128, EINVAL),
    (
        "no record, but a list",
        |it| it.state.nr_records = 0,
        EINVAL,
    ),
    (
        "endless records",
        |it| it.state.nr_records = u64::MAX,
        EINVAL,
    ),
    ("list wild", |it| it.state.records.first = WILD, EINVAL),
    (
        "list not preserved",
        |it| it.state.records.first = 32 << 20,
        EINVAL,
    ),
    (
        "list without pages",
        |it| it.state.records.total_pages = 0,
        EINVAL,
    ),
    (
        "list with more pages",
        |it| it.state.records.total_pages = u32::MAX,
        EINVAL,
    ),
    ("list of an order", |it| it.state.records.order = 1, EINVAL),
    ("kind 0", |it| it.set(RANGE, KIND, &[0, 0]), EINVAL),
    ("kind 6", |it| it.set(RANGE, KIND, &[6, 0]), EINVAL),
    ("kind 0x103", |it| it.set(OTHER_IOAS, KIND, &[3, 1]), EINVAL),
    ("file's flags", |it| it.set(FILE, FLAGS, &[1]), EINVAL),
    ("file's index", |it| it.set(FILE, INDEX, &[1]), EINVAL),
    ("file's second field", |it| it.set(FILE, B, &[1]), EINVAL),
    ("file's third field", |it| it.set(FILE, C, &[1]), EINVAL),
    ("pages' flags", |it| it.set(PAGES, FLAGS, &[3]), EINVAL),
    ("IOAS's flags", |it| it.set(IOAS, FLAGS, &[2]), EINVAL),
    ("IOAS's first field", |it| it.set(IOAS, A, &[1]), EINVAL),
    ("IOAS's third field", |it| it.set(IOAS, C, &[1]), EINVAL),
    ("range's flags", |it| it.set(RANGE, FLAGS, &[1]), EINVAL),
    ("range's index", |it| it.set(RANGE, INDEX, &[1]), EINVAL),
    ("range's third field", |it| it.set(RANGE, C, &[1]), EINVAL),
    ("mapping's flags", |it| it.set(MAPPING, FLAGS, &[7]), EINVAL),
    ("no such token", |it| it.put_file(NONE), Errno::NOENT),
    (
        "memory that is lost",
        |it| it.put_file(LOST),
        Errno::OPNOTSUPP,
    ),
    ("an iommufd as memory", |it| it.put_file(SOUND), EINVAL),
    (
        "itself as memory",
        |it| it.put_file(it.entry.token),
        Errno::DEADLK,
    ),
    ("pages of no file", |it| it.set(PAGES, INDEX, &[1]), EINVAL),
    (
        "pages of a file that comes later",
        |it| it.records.swap(FILE, PAGES),
        EINVAL,
    ),
    ("pages that begin odd", |it| it.put_pages(1, 0x4000), EINVAL),
    ("pages that end odd", |it| it.put_pages(0, 0x4001), EINVAL),
    ("no pages", |it| it.put_pages(0, 0), EINVAL),
    (
        "pages that wrap around",
        |it| it.put_pages(u64::MAX - 0xfff, 0x4000),
        EINVAL,
    ),
    ("pages' account mode", |it| it.set(PAGES, C, &[3]), EINVAL),
    ("IOAS 0", |it| it.put_ioas(IOAS, 0), EINVAL),
    ("IOAS twice", |it| it.put_ioas(OTHER_IOAS, 1), EINVAL),
    ("IOASes descending", |it| it.put_ioas(IOAS, 9), EINVAL),
    (
        "IOAS of a huge id",
        |it| it.put_ioas(OTHER_IOAS, 1 << 31),
        EINVAL,
    ),
    (
        "IOAS of the last id",
        |it| it.put_ioas(OTHER_IOAS, u32::MAX),
        EINVAL,
    ),
    (
        "range before any IOAS",
        |it| it.records.swap(IOAS, RANGE),
        EINVAL,
    ),
    (
        "range of one",
        |it| it.put_range(RANGE, 0x1000, 0x1000),
        EINVAL,
    ),
    (
        "range of less",
        |it| it.put_range(RANGE, 0x1000, 0xfff),
        EINVAL,
    ),
    (
        "ranges that overlap",
        |it| {
            it.put_range(FILE, 0xffff, 0x1_ffff);
        },
        EINVAL,
    ),
    (
        "mapping before any IOAS",
        |it| {
            it.records.rotate_left(2);
        },
        EINVAL,
    ),
    (
        "mapping of no pages",
        |it| it.set(COPY, INDEX, &[2]),
        EINVAL,
    ),
    (
        "mapping of pages that come later",
        |it| it.records.swap(OTHER_PAGES, OTHER_MAPPING),
        EINVAL,
    ),
    (
        "mapping of nothing",
        |it| it.put_mapping(2 * MIB, 0, 0),
        EINVAL,
    ),
    (
        "mapping beyond its pages",
        |it| it.put_mapping(2 * MIB, 0x4000, 1),
        EINVAL,
    ),
    (
        "mapping that wraps around in its pages",
        |it| it.put_mapping(2 * MIB, 0x1000, u64::MAX - 0xff),
        EINVAL,
    ),
    (
        "mapping that wraps around",
        |it| it.put_mapping(u64::MAX - 0xffe, 0x1000, 0),
        Errno::OVERFLOW,
    ),
    (
        "mapping over another",
        |it| it.put_mapping(MIB + 0x3fff, 0x1000, 0),
        Errno::EXIST,
    ),
    (
        "mapping without rights",
        |it| it.set(MAPPING, FLAGS, &[0]),
        EINVAL,
    ),
    (
        "mapping with more rights than its pages",
        |it| it.set(OTHER_MAPPING, FLAGS, &[3]),
        Errno::PERM,
    ),
];

/// Of these the orchestrator knows that they are not even a state.
const STATES: &[(&str, Spoil)] = &[
    ("state wild", |it| it.entry.data = WILD),
    ("state odd", |it| it.entry.data += 8),
    ("state at 0", |it| it.entry.data = 0),
    ("state not preserved", |it| it.entry.data = 32 << 20),
];

/// These nobody retrieves.
const UNCLAIMED: &[(&str, Spoil)] = &[
    ("list wild", |it| it.state.records.first = WILD),
    ("endless records", |it| it.state.nr_records = u64::MAX),
];

fn before(context: &mut Context<'_>) -> Result<()> {
    load(context)?;
    let session = create(SESSION)?;
    let memory = data::memfd_with("memory", 1, MIB)?;
    session.preserve(&memory, Token(MEMORY))?;
    session.preserve(data::memfd_with("lost", 2, MIB)?, Token(LOST))?;
    session.preserve(&make(&memory)?, Token(SOUND))?;
    for (token, _) in (FIRST..).zip(0..CASES.len() + STATES.len() + UNCLAIMED.len()) {
        session.preserve(&make(&memory)?, Token(token))?;
    }
    context.keep(session);
    start_spoiling(HOW)
}

/// Spoils what was handed over, in the kernel that hands it over.
pub fn spoil(memory: &Memory, header: &luo::Header) -> Result<()> {
    let files = memory.files(header, SESSION)?;
    let file = |token| -> Result<At<luo::File>> {
        let found = files.iter().find(|file| file.value.token == token);
        Ok(*found.with_context(|| format!("no file has token {token}"))?)
    };
    let mut lost: At<Memfd> = memory.read(file(LOST)?.value.data)?;
    lost.value.seals = 1 << 20;
    memory.put(&lost)?;
    let cases = CASES.iter().map(|(_, how, _)| how);
    let others = STATES.iter().chain(UNCLAIMED).map(|(_, how)| how);
    for (token, how) in (FIRST..).zip(cases.chain(others)) {
        let mut entry = file(token)?;
        let mut state: At<abi::Iommufd> = memory.read(entry.value.data)?;
        let mut records = memory.records(&state.value)?;
        ensure!(
            records.len() == RECORDS,
            "there are {} records",
            records.len()
        );
        let mut handed = Handed {
            entry: entry.value,
            state: state.value,
            records: records.iter().map(|record| record.value).collect(),
        };
        how(&mut handed);
        (entry.value, state.value) = (handed.entry, handed.state);
        for (record, value) in records.iter_mut().zip(handed.records) {
            record.value = value;
            memory.put(record)?;
        }
        memory.put(&state)?;
        memory.put(&entry)?;
    }
    Ok(())
}

fn after(context: &mut Context<'_>) -> Result<()> {
    load(context)?;
    let session = retrieve(SESSION)?;
    let mut wrong = Vec::new();
    for (token, (how, _, expected)) in (FIRST..).zip(CASES) {
        let mut log = Reader::from_now()?;
        let result = session.retrieve(Token(token)).map(drop);
        if result != Err(*expected) {
            wrong.push(format!("{how}: {result:?}, expected {}", name(*expected)));
        }
        let line = format!("luo_iommu: token {token:#x}: the iommufd is lost");
        if expect_message(&mut log, &[&line]).is_err() {
            wrong.push(format!("{how}: nothing was said of it"));
        }
        if session.retrieve(Token(token)).map(drop) != result {
            wrong.push(format!("{how}: another result the second time"));
        }
    }
    let states = FIRST + CASES.len() as u64..;
    for (token, (how, _)) in states.zip(STATES) {
        if session.retrieve(Token(token)).is_ok() {
            wrong.push(format!("{how}: it works"));
        }
    }
    ensure!(wrong.is_empty(), "{wrong:#?}");

    // The rest of the session is none the worse.
    let memory = data::file(session.retrieve(Token(MEMORY))?);
    data::expect_file(&memory, 1, MIB)?;
    let sound = retrieved(&session, Token(SOUND))?;
    let mut log = Reader::from_now()?;
    finish(session)?;
    expect_message(&mut log, &["luo_iommu: an iommufd came without its"])?;
    expect_mappings(&sound, 1, &[(MIB, 0x4000), (2 * MIB, 0x1000)])?;
    expect_mappings(&sound, 5, &[(MIB, 0x4000)])?;
    let next = create(SESSION)?;
    next.preserve(&memory, Token(MEMORY))?;
    Ok(next.preserve(&make(&memory)?, Token(SOUND))?)
}
