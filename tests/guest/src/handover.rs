// SPDX-License-Identifier: GPL-2.0

//! What one kernel left for the next in memory, read and changed through `/dev/mem`.

use crate::procfs;
use anyhow::{Context, Result, anyhow, bail, ensure};
use luo_abi::iommufd::{Iommufd, Record};
use luo_abi::kho::Vmalloc;
use luo_abi::luo;
use luo_abi::memfd::{Folio, Memfd};
use luo_abi::{Text, block};
use rustix::param::page_size;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// KHO's files.
const KHO: &str = "/sys/kernel/debug/kho";

/// The machine's memory by physical address.
pub struct Memory {
    file: File,
}

/// Something in memory and where it is.
#[derive(Clone, Copy, Debug)]
pub struct At<T> {
    /// Its physical address.
    pub pa: u64,
    /// A copy of it.
    pub value: T,
}

/// One block of a chain.
pub struct Block<T> {
    /// Its header.
    pub header: At<block::Header>,
    /// What is in it.
    pub entries: Vec<At<T>>,
}

impl Memory {
    /// Opens the memory for reading and writing.
    pub fn open() -> Result<Self> {
        let file = File::options()
            .read(true)
            .write(true)
            .open("/dev/mem")
            .context("opening /dev/mem")?;
        Ok(Self { file })
    }

    /// Copies bytes out of memory.
    pub fn bytes(&self, pa: u64, len: usize) -> Result<Vec<u8>> {
        let mut bytes = vec![0; len];
        self.file
            .read_exact_at(&mut bytes, pa)
            .with_context(|| format!("reading memory at {pa:#x}"))?;
        Ok(bytes)
    }

    /// Copies a structure out of memory.
    pub fn read<T: FromBytes>(&self, pa: u64) -> Result<At<T>> {
        let bytes = self.bytes(pa, size_of::<T>())?;
        let value = T::read_from_bytes(&bytes).map_err(|_| anyhow!("a size is wrong"))?;
        Ok(At { pa, value })
    }

    /// Overwrites memory.
    pub fn write<T: IntoBytes + Immutable>(&self, pa: u64, value: &T) -> Result<()> {
        self.file
            .write_all_at(value.as_bytes(), pa)
            .with_context(|| format!("writing memory at {pa:#x}"))
    }

    /// Overwrites a structure where it is.
    pub fn put<T: IntoBytes + Immutable>(&self, what: &At<T>) -> Result<()> {
        self.write(what.pa, &what.value)
    }

    /// Reads a chain of blocks.
    pub fn chain<T: FromBytes + KnownLayout>(&self, head: u64) -> Result<Vec<Block<T>>> {
        let mut blocks = Vec::new();
        let mut pa = head;
        while pa != 0 {
            ensure!(blocks.len() < block::MAX_BLOCKS, "the chain has no end");
            let header: At<block::Header> = self.read(pa)?;
            let first = pa + size_of::<block::Header>() as u64;
            let room = block::entries_per_block::<T>(page_size());
            let count = header.value.count;
            ensure!(count <= room as u64, "a block counts {count} entries");
            let entries = (0..count)
                .map(|i| self.read(first + i * size_of::<T>() as u64))
                .collect::<Result<_>>()?;
            pa = header.value.next;
            blocks.push(Block { header, entries });
        }
        Ok(blocks)
    }

    /// Reads the list of a memfd's folios, each with its own address.
    pub fn folios(&self, memfd: &Memfd) -> Result<Vec<At<Folio>>> {
        self.array(&memfd.folios, memfd.nr_folios)
    }

    /// Reads the records of an iommufd, each with its own address.
    pub fn records(&self, iommufd: &Iommufd) -> Result<Vec<At<Record>>> {
        self.array(&iommufd.records, iommufd.nr_records)
    }

    /// Reads the entries of a preserved area that is an array of so many.
    fn array<T: FromBytes>(&self, area: &Vmalloc, len: u64) -> Result<Vec<At<T>>> {
        let pages = self.vmalloc_pages(area)?;
        let per_page = page_size() / size_of::<T>();
        (0..len)
            .map(|i| {
                let page = usize::try_from(i)? / per_page;
                let offset = (usize::try_from(i)? % per_page) * size_of::<T>();
                let pa = pages.get(page).context("an area is short")?;
                self.read(pa + offset as u64)
            })
            .collect()
    }

    /// Reads the files of a session.
    pub fn files(&self, header: &luo::Header, session: &str) -> Result<Vec<At<luo::File>>> {
        let name = Text::new(session.as_bytes()).context("a session's name")?;
        let blocks = self.chain::<luo::Session>(header.sessions_pa)?;
        let mut sessions = blocks.iter().flat_map(|block| &block.entries);
        let found = sessions.find(|found| found.value.name == name);
        let found = found.with_context(|| format!("there is no session {session}"))?;
        let blocks = self.chain(found.value.files_pa)?;
        Ok(blocks.into_iter().flat_map(|block| block.entries).collect())
    }

    /// The addresses of a preserved area's pages.
    fn vmalloc_pages(&self, area: &Vmalloc) -> Result<Vec<u64>> {
        let slots = page_size() / size_of::<u64>();
        let mut pages = Vec::new();
        let mut list = area.first;
        while list != 0 {
            for i in 1..slots {
                let pa: At<u64> = self.read(list + (i * size_of::<u64>()) as u64)?;
                if pa.value == 0 {
                    break;
                }
                pages.extend((0..1_u64 << area.order).map(|n| pa.value + n * page_size() as u64));
            }
            ensure!(
                pages.len() <= area.total_pages as usize + (1 << area.order),
                "the list of pages has no end"
            );
            list = self.read::<u64>(list)?.value;
        }
        Ok(pages)
    }
}

/// The header that the previous kernel left.
pub fn incoming_header(memory: &Memory) -> Result<At<luo::Header>> {
    let tree = fs::read(format!("{KHO}/in/fdt")).context("reading KHO's tree")?;
    let tree = fdt::Fdt::new(&tree).map_err(|error| anyhow!("KHO's tree: {error}"))?;
    let entry = luo::KHO_ENTRY_NAME.to_str()?;
    let property = tree
        .find_node(&format!("/{entry}"))
        .and_then(|node| node.property("preserved-data"))
        .with_context(|| format!("KHO's tree has no data of {entry}"))?;
    match property.value.try_into() {
        Ok(bytes) => memory.read(u64::from_ne_bytes(bytes)),
        Err(_) => bail!("an address has {} bytes", property.value.len()),
    }
}

/// The header that the next kernel will find.
///
/// KHO shows what is in it, but not where it is. So it is looked for: around the page of FLBs that
/// it points to, which was allocated at the same time, and then everywhere. That address in it
/// tells it from any other.
pub fn outgoing_header(memory: &Memory) -> Result<At<luo::Header>> {
    let entry = luo::KHO_ENTRY_NAME.to_str()?;
    let wanted = fs::read(format!("{KHO}/out/sub_fdts/{entry}")).context("reading KHO's entry")?;
    let header = luo::Header::read_from_bytes(&wanted)
        .map_err(|_| anyhow!("KHO's entry has {} bytes", wanted.len()))?;
    let around = header.flbs_pa.saturating_sub(NEAR)..header.flbs_pa.saturating_add(NEAR);
    for range in [around, 0..u64::MAX] {
        for (start, end) in ram()? {
            let (start, end) = (start.max(range.start), end.min(range.end));
            if let Some(pa) = find_page(memory, start, end, &wanted)? {
                return memory.read(pa);
            }
        }
    }
    bail!("no page looks like the header")
}

/// A page that starts with certain bytes.
pub fn page_with(memory: &Memory, wanted: &[u8]) -> Result<u64> {
    for (start, end) in ram()? {
        if let Some(pa) = find_page(memory, start, end, wanted)? {
            return Ok(pa);
        }
    }
    bail!("no page starts with {wanted:x?}")
}

/// How far off the header may be from what was allocated with it.
const NEAR: u64 = 16 << 20;

/// The first page that starts with certain bytes.
fn find_page(memory: &Memory, start: u64, end: u64, wanted: &[u8]) -> Result<Option<u64>> {
    let mut at = start;
    while at < end {
        let len = usize::try_from((end - at).min(1 << 20))?;
        let bytes = memory.bytes(at, len)?;
        let mut pages = bytes.chunks(page_size());
        if let Some(i) = pages.position(|page| page.starts_with(wanted)) {
            return Ok(Some(at + (i * page_size()) as u64));
        }
        at += len as u64;
    }
    Ok(None)
}

/// Where the machine's memory is: start and end of each part, in whole pages.
///
/// On some machines the first MiB belongs to the firmware; nothing is handed over there.
fn ram() -> Result<Vec<(u64, u64)>> {
    let map = procfs::read("/proc/iomem")?;
    map.lines()
        .filter(|line| !line.starts_with(' '))
        .filter_map(|line| line.strip_suffix(" : System RAM"))
        .map(|range| {
            let (start, last) = range.split_once('-').context("/proc/iomem")?;
            let (start, last) = (
                u64::from_str_radix(start, 16)?,
                u64::from_str_radix(last, 16)?,
            );
            let page = page_size() as u64;
            Ok((
                start.max(1 << 20).next_multiple_of(page),
                (last + 1) / page * page,
            ))
        })
        .collect()
}
