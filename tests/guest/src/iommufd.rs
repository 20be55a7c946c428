// SPDX-License-Identifier: GPL-2.0

//! An iommufd: address spaces of devices and what is mapped in them.
//!
//! C header: [`include/uapi/linux/iommufd.h`](srctree/include/uapi/linux/iommufd.h)
//!
//! Every call gives the errno that the kernel gave.

use crate::context::Context;
use crate::data::Mapping;
use crate::{module, raw};
use anyhow::{Context as _, Result};
use iommufd_bindings::*;
use rustix::io::Errno;
use rustix::ioctl::opcode;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// The module that has iommufds come over.
pub const HANDLER: &str = "luo_iommu";

/// Loads the handler, if it is not there.
pub fn load_handler(context: &Context<'_>) -> Result<()> {
    match module::is_loaded(HANDLER) {
        true => Ok(()),
        false => module::load(&context.module(HANDLER)),
    }
}

/// Where an iommufd comes from.
pub const PATH: &str = "/dev/iommu";

/// What a device may do with a mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Read it.
    Read,
    /// Write to it.
    Write,
    /// Both.
    ReadWrite,
}

impl Access {
    fn flags(self) -> u32 {
        const READ: u32 = iommufd_ioas_map_flags_IOMMU_IOAS_MAP_READABLE;
        const WRITE: u32 = iommufd_ioas_map_flags_IOMMU_IOAS_MAP_WRITEABLE;
        match self {
            Access::Read => READ,
            Access::Write => WRITE,
            Access::ReadWrite => READ | WRITE,
        }
    }
}

/// Part of a file, to be mapped.
#[derive(Clone, Copy, Debug)]
pub struct Part<'a> {
    /// The file.
    pub file: &'a File,
    /// Where in it the part begins, in bytes.
    pub start: u64,
    /// Its bytes.
    pub len: u64,
}

/// An iommufd.
#[derive(Debug)]
pub struct Iommufd {
    fd: OwnedFd,
}

impl From<OwnedFd> for Iommufd {
    fn from(fd: OwnedFd) -> Self {
        Self { fd }
    }
}

impl AsFd for Iommufd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Iommufd {
    /// A new one without any object.
    pub fn open() -> Result<Self> {
        let file = File::options().read(true).write(true).open(PATH);
        let file = file.with_context(|| format!("opening {PATH}"))?;
        Ok(Self { fd: file.into() })
    }

    fn call<T: Copy>(&self, command: u32, arg: T) -> Result<T, Errno> {
        raw::ioctl_with(&self.fd, number(command), arg)
    }

    /// An IOAS without mappings; its id.
    pub fn alloc_ioas(&self) -> Result<u32, Errno> {
        let arg = iommu_ioas_alloc {
            size: size::<iommu_ioas_alloc>(),
            ..Default::default()
        };
        Ok(self.call(IOMMUFD_CMD_IOAS_ALLOC, arg)?.out_ioas_id)
    }

    /// Maps part of a file at an IOVA, or where the kernel likes; says where it is.
    pub fn map_file(
        &self,
        ioas: u32,
        iova: Option<u64>,
        part: Part<'_>,
        access: Access,
    ) -> Result<u64, Errno> {
        let arg = iommu_ioas_map_file {
            size: size::<iommu_ioas_map_file>(),
            flags: access.flags() | fixed(iova),
            ioas_id: ioas,
            fd: part.file.as_raw_fd(),
            start: part.start,
            length: part.len,
            iova: iova.unwrap_or_default(),
        };
        Ok(self.call(IOMMUFD_CMD_IOAS_MAP_FILE, arg)?.iova)
    }

    /// Maps memory of this process; its virtual addresses count, not the file, if it has one.
    pub fn map(
        &self,
        ioas: u32,
        iova: Option<u64>,
        memory: &Mapping,
        access: Access,
    ) -> Result<u64, Errno> {
        let arg = iommu_ioas_map {
            size: size::<iommu_ioas_map>(),
            flags: access.flags() | fixed(iova),
            ioas_id: ioas,
            user_va: memory.address(),
            length: memory.len(),
            iova: iova.unwrap_or_default(),
            ..Default::default()
        };
        Ok(self.call(IOMMUFD_CMD_IOAS_MAP, arg)?.iova)
    }

    /// Maps what is mapped at `from` (IOAS, IOVA) in another IOAS as well, or elsewhere in the
    /// same; both share their pages.
    pub fn copy(
        &self,
        from: (u32, u64),
        len: u64,
        ioas: u32,
        iova: Option<u64>,
        access: Access,
    ) -> Result<u64, Errno> {
        let arg = iommu_ioas_copy {
            size: size::<iommu_ioas_copy>(),
            flags: access.flags() | fixed(iova),
            dst_ioas_id: ioas,
            src_ioas_id: from.0,
            length: len,
            dst_iova: iova.unwrap_or_default(),
            src_iova: from.1,
        };
        Ok(self.call(IOMMUFD_CMD_IOAS_COPY, arg)?.dst_iova)
    }

    /// Unmaps all mappings within a range; says how many bytes they had.
    pub fn unmap(&self, ioas: u32, iova: u64, len: u64) -> Result<u64, Errno> {
        let arg = iommu_ioas_unmap {
            size: size::<iommu_ioas_unmap>(),
            ioas_id: ioas,
            iova,
            length: len,
        };
        Ok(self.call(IOMMUFD_CMD_IOAS_UNMAP, arg)?.length)
    }

    /// Unmaps all that there is; says how many bytes they had.
    pub fn unmap_all(&self, ioas: u32) -> Result<u64, Errno> {
        self.unmap(ioas, 0, u64::MAX)
    }

    /// Charges this process for all that is pinned.
    pub fn change_process(&self) -> Result<(), Errno> {
        let arg = iommu_ioas_change_process {
            size: size::<iommu_ioas_change_process>(),
            ..Default::default()
        };
        self.call(IOMMUFD_CMD_IOAS_CHANGE_PROCESS, arg).map(drop)
    }

    /// The IOVAs that may be mapped: the first and last of each range.
    pub fn iova_ranges(&self, ioas: u32) -> Result<Vec<(u64, u64)>, Errno> {
        let mut ranges = [iommu_iova_range::default(); 64];
        let arg = iommu_ioas_iova_ranges {
            size: size::<iommu_ioas_iova_ranges>(),
            ioas_id: ioas,
            num_iovas: ranges.len() as u32,
            allowed_iovas: ranges.as_mut_ptr().expose_provenance() as u64,
            ..Default::default()
        };
        let found = self.call(IOMMUFD_CMD_IOAS_IOVA_RANGES, arg)?.num_iovas;
        let found = ranges.iter().take(found as usize);
        Ok(found.map(|range| (range.start, range.last)).collect())
    }

    /// Says which IOVAs must stay usable, the first and last of each range.
    pub fn allow_iovas(&self, ioas: u32, ranges: &[(u64, u64)]) -> Result<(), Errno> {
        let range = |&(start, last): &(u64, u64)| iommu_iova_range { start, last };
        let ranges: Vec<iommu_iova_range> = ranges.iter().map(range).collect();
        let arg = iommu_ioas_allow_iovas {
            size: size::<iommu_ioas_allow_iovas>(),
            ioas_id: ioas,
            num_iovas: ranges.len() as u32,
            allowed_iovas: ranges.as_ptr().expose_provenance() as u64,
            ..Default::default()
        };
        self.call(IOMMUFD_CMD_IOAS_ALLOW_IOVAS, arg).map(drop)
    }

    fn option(&self, op: u32, option: u32, object: u32, value: u64) -> Result<u64, Errno> {
        let arg = iommu_option {
            size: size::<iommu_option>(),
            option_id: option,
            op: op as u16,
            object_id: object,
            val64: value,
            ..Default::default()
        };
        Ok(self.call(IOMMUFD_CMD_OPTION, arg)?.val64)
    }

    fn get(&self, option: u32, object: u32) -> Result<u64, Errno> {
        self.option(iommufd_option_ops_IOMMU_OPTION_OP_GET, option, object, 0)
    }

    fn set(&self, option: u32, object: u32, value: u64) -> Result<(), Errno> {
        let op = iommufd_option_ops_IOMMU_OPTION_OP_SET;
        self.option(op, option, object, value).map(drop)
    }

    /// Whether an IOAS's mappings use pages as large as they can.
    pub fn huge_pages(&self, ioas: u32) -> Result<bool, Errno> {
        Ok(self.get(iommufd_option_IOMMU_OPTION_HUGE_PAGES, ioas)? != 0)
    }

    /// Has an IOAS's mappings use large pages, or not.
    pub fn set_huge_pages(&self, ioas: u32, on: bool) -> Result<(), Errno> {
        self.set(iommufd_option_IOMMU_OPTION_HUGE_PAGES, ioas, on.into())
    }

    /// Whether pinned memory is charged to processes rather than users.
    pub fn rlimit_mode(&self) -> Result<bool, Errno> {
        Ok(self.get(iommufd_option_IOMMU_OPTION_RLIMIT_MODE, 0)? != 0)
    }

    /// Has pinned memory charged to processes, or to users.
    pub fn set_rlimit_mode(&self, process: bool) -> Result<(), Errno> {
        self.set(iommufd_option_IOMMU_OPTION_RLIMIT_MODE, 0, process.into())
    }

    /// The IOAS that the interface of VFIO's containers uses.
    pub fn vfio_ioas(&self) -> Result<u32, Errno> {
        self.with_vfio_ioas(iommufd_vfio_ioas_op_IOMMU_VFIO_IOAS_GET, 0)
    }

    /// Chooses the IOAS that the interface of VFIO's containers uses.
    pub fn set_vfio_ioas(&self, ioas: u32) -> Result<(), Errno> {
        let op = iommufd_vfio_ioas_op_IOMMU_VFIO_IOAS_SET;
        self.with_vfio_ioas(op, ioas).map(drop)
    }

    /// Has the interface of VFIO's containers use none.
    pub fn clear_vfio_ioas(&self) -> Result<(), Errno> {
        let op = iommufd_vfio_ioas_op_IOMMU_VFIO_IOAS_CLEAR;
        self.with_vfio_ioas(op, 0).map(drop)
    }

    fn with_vfio_ioas(&self, op: u32, ioas: u32) -> Result<u32, Errno> {
        let arg = iommu_vfio_ioas {
            size: size::<iommu_vfio_ioas>(),
            ioas_id: ioas,
            op: op as u16,
            ..Default::default()
        };
        Ok(self.call(IOMMUFD_CMD_VFIO_IOAS, arg)?.ioas_id)
    }

    /// A page table of one's own for a device, on an IOAS; its id.
    pub fn alloc_hwpt(&self, device: u32, ioas: u32, flags: u32) -> Result<u32, Errno> {
        let arg = iommu_hwpt_alloc {
            size: size::<iommu_hwpt_alloc>(),
            flags,
            dev_id: device,
            pt_id: ioas,
            ..Default::default()
        };
        Ok(self.call(IOMMUFD_CMD_HWPT_ALLOC, arg)?.out_hwpt_id)
    }

    /// A queue of page faults: its id, and where they are read.
    pub fn alloc_fault_queue(&self) -> Result<(u32, OwnedFd), Errno> {
        let arg = iommu_fault_alloc {
            size: size::<iommu_fault_alloc>(),
            ..Default::default()
        };
        let done = self.call(IOMMUFD_CMD_FAULT_QUEUE_ALLOC, arg)?;
        // SAFETY: the call succeeded, and nobody else knows of the descriptor.
        let fd = unsafe { raw::owned(done.out_fault_fd as i32) };
        Ok((done.out_fault_id, fd))
    }

    /// Destroys an object.
    pub fn destroy(&self, id: u32) -> Result<(), Errno> {
        let arg = iommu_destroy {
            size: size::<iommu_destroy>(),
            id,
        };
        self.call(IOMMUFD_CMD_DESTROY, arg).map(drop)
    }
}

/// The number of an ioctl.
pub const fn number(command: u32) -> u32 {
    opcode::none(IOMMUFD_TYPE, command as u8)
}

fn size<T>() -> u32 {
    size_of::<T>() as u32
}

fn fixed(iova: Option<u64>) -> u32 {
    match iova {
        Some(_) => iommufd_ioas_map_flags_IOMMU_IOAS_MAP_FIXED_IOVA,
        None => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_the_headers() {
        assert_eq!(number(IOMMUFD_CMD_DESTROY), 0x3b80);
        assert_eq!(number(IOMMUFD_CMD_IOAS_MAP_FILE), 0x3b8f);
    }
}
