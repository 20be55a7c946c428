// SPDX-License-Identifier: GPL-2.0

//! What the formats are, byte by byte, and what is refused when it is not of them.

use luo_abi::{
    block::{
        self,
        BadBlock, //
    },
    iommufd::{
        self,
        AccountMode,
        Iommufd,
        Item,
        Record, //
    },
    kho::Vmalloc,
    luo::{
        self,
        Compatible,
        SessionName, //
    },
    memfd::{
        self,
        Folio,
        Memfd, //
    },
    vfio::{
        self,
        PciAddress,
        PciDevices,
        PciHeader,
        PciIdentity,
        VfioDevice, //
    },
    BadText,
    Text, //
};
use std::mem::size_of;
use zerocopy::{
    FromBytes,
    FromZeros,
    IntoBytes, //
};

const PAGE: usize = 4096;

/// Field by field what a C compiler lays out on a little-endian machine.
fn concat(fields: &[&[u8]]) -> Vec<u8> {
    fields.concat()
}

fn padded<const N: usize>(text: &str) -> [u8; N] {
    let mut field = [0; N];
    field[..text.len()].copy_from_slice(text.as_bytes());
    field
}

fn block_of(count: u64, entries: &[luo::File]) -> Vec<u8> {
    let header = block::Header {
        next: 0x1234_5000,
        count,
    };
    let mut bytes = concat(&[header.as_bytes(), entries.as_bytes()]);
    bytes.resize(PAGE, 0);
    bytes
}

fn file(token: u64) -> luo::File {
    luo::File {
        compatible: Compatible::new(b"memfd-v2").unwrap(),
        data: 0xabc000,
        token,
    }
}

#[test]
fn header_is_what_c_writes() {
    let header = luo::Header {
        compatible: luo::Header::COMPATIBLE,
        liveupdate_num: 3,
        sessions_pa: 0x1000,
        flbs_pa: 0x2000,
    };
    let bytes = concat(&[
        &padded::<8>("luo-v5"),
        &3u64.to_ne_bytes(),
        &0x1000u64.to_ne_bytes(),
        &0x2000u64.to_ne_bytes(),
    ]);
    assert_eq!(header.as_bytes(), bytes);
    assert_eq!(luo::Header::read_from_bytes(&bytes).unwrap(), header);
    assert_eq!(luo::KHO_ENTRY_NAME, c"LUO");
}

#[test]
fn session_is_what_c_writes() {
    let session = luo::Session {
        name: SessionName::new(b"vm-1").unwrap(),
        files_pa: 0x3000,
        file_count: 2,
    };
    let bytes = concat(&[
        &padded::<64>("vm-1"),
        &0x3000u64.to_ne_bytes(),
        &2u64.to_ne_bytes(),
    ]);
    assert_eq!(session.as_bytes(), bytes);
    assert_eq!(luo::Session::read_from_bytes(&bytes).unwrap(), session);
}

#[test]
fn file_is_what_c_writes() {
    let bytes = concat(&[
        &padded::<48>("memfd-v2"),
        &0xabc000u64.to_ne_bytes(),
        &7u64.to_ne_bytes(),
    ]);
    assert_eq!(file(7).as_bytes(), bytes);
    assert_eq!(luo::File::read_from_bytes(&bytes).unwrap(), file(7));
}

#[test]
fn flbs_are_what_c_writes() {
    let header = luo::FlbHeader {
        page_count: 1,
        count: 1,
    };
    let flb = luo::Flb {
        name: Compatible::new(b"pci-v1").unwrap(),
        data: 5,
        count: 9,
    };
    let bytes = concat(&[
        &1u64.to_ne_bytes(),
        &1u64.to_ne_bytes(),
        &padded::<48>("pci-v1"),
        &5u64.to_ne_bytes(),
        &9u64.to_ne_bytes(),
    ]);
    assert_eq!(concat(&[header.as_bytes(), flb.as_bytes()]), bytes);
}

#[test]
fn memfd_is_what_c_writes() {
    let state = Memfd {
        pos: 1,
        size: 2,
        seals: 0x3,
        flags: 0,
        nr_folios: 4,
        folios: Vmalloc {
            first: 0x5000,
            total_pages: 6,
            flags: 1,
            order: 0,
        },
    };
    let bytes = concat(&[
        &1u64.to_ne_bytes(),
        &2u64.to_ne_bytes(),
        &3u32.to_ne_bytes(),
        &0u32.to_ne_bytes(),
        &4u64.to_ne_bytes(),
        &0x5000u64.to_ne_bytes(),
        &6u32.to_ne_bytes(),
        &1u16.to_ne_bytes(),
        &0u16.to_ne_bytes(),
    ]);
    assert_eq!(state.as_bytes(), bytes);
    assert_eq!(Memfd::read_from_bytes(&bytes).unwrap(), state);
    assert_eq!(memfd::COMPATIBLE, c"memfd-v2");
}

#[test]
fn folio_shares_a_word_as_c_bit_fields_do() {
    let folio = Folio::new(0x12345, Folio::DIRTY | Folio::UPTODATE, 9).unwrap();
    let word: u64 = 0x12345 | 3 << 52;
    assert_eq!(
        folio.as_bytes(),
        concat(&[&word.to_ne_bytes(), &9u64.to_ne_bytes()])
    );
    assert_eq!((folio.pfn(), folio.flags()), (0x12345, 3));
}

#[test]
fn folio_has_limits() {
    assert!(Folio::new((1 << 52) - 1, (1 << 12) - 1, u64::MAX).is_some());
    assert!(Folio::new(1 << 52, 0, 0).is_none());
    assert!(Folio::new(0, 1 << 12, 0).is_none());
}

#[test]
fn wrong_sizes_are_refused() {
    let bytes = [0; 256];
    for size in [0, 1, 31, 33] {
        assert!(luo::Header::read_from_bytes(&bytes[..size]).is_err());
    }
    assert!(luo::Session::read_from_bytes(&bytes[..79]).is_err());
    assert!(luo::File::read_from_bytes(&bytes[..65]).is_err());
    assert!(Memfd::read_from_bytes(&bytes[..47]).is_err());
    assert!(Folio::read_from_bytes(&bytes[..15]).is_err());
}

#[test]
fn block_round_trip() {
    let files: Vec<_> = (0..block::entries_per_block::<luo::File>(PAGE) as u64)
        .map(file)
        .collect();
    assert_eq!(files.len(), 63);
    let bytes = block_of(files.len() as u64, &files);
    let (header, entries) = block::parse::<luo::File>(&bytes).unwrap();
    let block::Header { next, count } = header;
    assert_eq!((next, count), (0x1234_5000, 63));
    assert_eq!(entries.collect::<Vec<_>>(), files);
}

#[test]
fn block_yields_no_more_than_it_counts() {
    let bytes = block_of(1, &[file(1), file(2)]);
    let (_, entries) = block::parse::<luo::File>(&bytes).unwrap();
    assert_eq!(entries.collect::<Vec<_>>(), [file(1)]);
}

#[test]
fn block_can_be_empty() {
    let bytes = block_of(0, &[file(1)]);
    let (_, mut entries) = block::parse::<luo::File>(&bytes).unwrap();
    assert_eq!(entries.next(), None);
}

#[test]
fn wrong_counts_are_refused() {
    for count in [64, u64::MAX] {
        let bytes = block_of(count, &[file(1)]);
        assert_eq!(
            block::parse::<luo::File>(&bytes).err(),
            Some(BadBlock::Count(count))
        );
    }
}

#[test]
fn truncated_blocks_are_refused() {
    let bytes = block_of(2, &[file(1), file(2)]);
    assert_eq!(
        block::parse::<luo::File>(&bytes[..15]).err(),
        Some(BadBlock::Truncated)
    );
    let short = &bytes[..size_of::<block::Header>() + 2 * size_of::<luo::File>() - 1];
    assert_eq!(
        block::parse::<luo::File>(short).err(),
        Some(BadBlock::Count(2))
    );
}

#[test]
fn capacities_are_those_of_c() {
    assert_eq!(block::entries_per_block::<luo::Session>(PAGE), 51);
    assert_eq!(block::entries_per_block::<luo::File>(PAGE), 63);
    assert_eq!(block::entries_per_block::<luo::File>(15), 0);
}

#[test]
fn text_has_one_to_n_minus_one_bytes() {
    assert!(Text::<4>::new(b"").is_none());
    assert!(Text::<4>::new(b"abcd").is_none());
    assert!(Text::<4>::new(b"a\0b").is_none());
    assert_eq!(Text::<4>::new(b"abc").unwrap().field(), b"abc\0");
}

#[test]
fn text_from_a_field_ends_at_the_first_nul() {
    let text = Text::<8>::from_field(b"ab\0cd\0ef").unwrap();
    assert_eq!(text, Text::new(b"ab").unwrap());
    assert_eq!(text.bytes(), Ok(&b"ab"[..]));
}

#[test]
fn fields_that_are_no_text_are_refused() {
    assert_eq!(Text::<4>::from_field(b"\0abc"), Err(BadText::Empty));
    assert_eq!(Text::<4>::from_field(b"abcd"), Err(BadText::NotTerminated));
    assert_eq!(
        Text::<4>::from_bytes(*b"abcd").bytes(),
        Err(BadText::NotTerminated)
    );
}

#[test]
fn text_is_printed_safely() {
    let text = Text::<8>::from_bytes(*b"a\n\x1b[\xff\"xy");
    assert_eq!(text.to_string(), "a\\n\\x1b[\\xff\\\"xy");
    assert_eq!(Text::<8>::from_bytes(*b"ab\0cdefg").to_string(), "ab");
}

/// Nothing that can be in memory makes a parser panic.
#[test]
fn any_bytes_are_parsed_without_panic() {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut bytes = vec![0; PAGE];
    for round in 0..20_000 {
        for word in bytes.chunks_exact_mut(8) {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            word.copy_from_slice(&state.to_ne_bytes());
        }
        // Most random counts are absurd; make some of them plausible.
        if round % 2 == 0 {
            bytes[8..16].copy_from_slice(&(state % 66).to_ne_bytes());
        }
        let len = (state >> 32) as usize % (PAGE + 1);
        if let Ok((_, entries)) = block::parse::<luo::Session>(&bytes[..len]) {
            for session in entries {
                let _ = (
                    SessionName::from_field(session.name.field()),
                    session.name.to_string(),
                );
            }
        }
        if let Ok((_, entries)) = block::parse::<luo::File>(&bytes[..len]) {
            assert!(entries.count() <= 63);
        }
        if let Ok(folio) = Folio::read_from_bytes(&bytes[..16]) {
            assert_eq!(
                Folio::new(folio.pfn(), folio.flags(), folio.index),
                Some(folio)
            );
        }
    }
}

/// One of each kind, with what it is in memory.
fn items() -> [(Item, [u8; 32]); 8] {
    let record = |kind: u16, flags: u16, index: u32, [a, b, c]: [u64; 3]| {
        let parts = [
            &kind.to_ne_bytes()[..],
            &flags.to_ne_bytes(),
            &index.to_ne_bytes(),
            &a.to_ne_bytes(),
            &b.to_ne_bytes(),
            &c.to_ne_bytes(),
        ];
        concat(&parts).try_into().unwrap()
    };
    let pages = |writable, account_mode| Item::Pages {
        file: 7,
        start: 0x3000,
        length: 0x5000,
        writable,
        account_mode,
    };
    let mapping = |readable, writeable| Item::Mapping {
        pages: 9,
        iova: 0x10_0000,
        length: 0x2000,
        start: 0x800,
        readable,
        writeable,
    };
    let range = Item::Range {
        start: 0x1000,
        last: 0xffff,
    };
    let small = Item::Ioas {
        id: 4,
        huge_pages: false,
    };
    let huge = Item::Ioas {
        id: 5,
        huge_pages: true,
    };
    [
        (Item::File { token: 42 }, record(1, 0, 0, [42, 0, 0])),
        (
            pages(true, AccountMode::None),
            record(2, 1, 7, [0x3000, 0x5000, 0]),
        ),
        (
            pages(false, AccountMode::Process),
            record(2, 0, 7, [0x3000, 0x5000, 2]),
        ),
        (small, record(3, 1, 4, [0; 3])),
        (huge, record(3, 0, 5, [0; 3])),
        (range, record(4, 0, 0, [0x1000, 0xffff, 0])),
        (
            mapping(true, false),
            record(5, 1, 9, [0x10_0000, 0x2000, 0x800]),
        ),
        (
            mapping(false, true),
            record(5, 2, 9, [0x10_0000, 0x2000, 0x800]),
        ),
    ]
}

#[test]
fn records_of_an_iommufd_say_what_they_were_made_of() {
    for (item, bytes) in items() {
        let record = Record::from(item);
        assert_eq!(record.as_bytes(), bytes, "{item:?}");
        assert_eq!(Record::read_from_bytes(&bytes).unwrap().item(), Some(item));
    }
}

/// Every byte of a record means something or is 0: changed, it is another record or none.
#[test]
fn nothing_in_a_record_of_an_iommufd_is_ignored() {
    for (item, bytes) in items() {
        for bit in 0..bytes.len() * 8 {
            let mut bytes = bytes;
            bytes[bit / 8] ^= 1 << (bit % 8);
            let other = Record::read_from_bytes(&bytes).unwrap().item();
            assert_ne!(other, Some(item), "bit {bit}");
        }
    }
    assert_eq!(Record::default().item(), None);
}

#[test]
fn an_iommufd_s_state_is_as_documented() {
    let state = Iommufd {
        flags: Iommufd::ACCOUNT_PROCESS,
        nr_records: 3,
        records: Vmalloc {
            first: 0x4000,
            total_pages: 1,
            flags: 0,
            order: 0,
        },
    };
    let bytes = concat(&[
        &1u64.to_ne_bytes(),
        &3u64.to_ne_bytes(),
        state.records.as_bytes(),
    ]);
    assert_eq!(state.as_bytes(), bytes);
    assert_eq!(iommufd::COMPATIBLE, c"iommufd-ioas-v1");
}

fn pci_address(devfn: u8) -> PciAddress {
    PciAddress {
        segment: 0x10,
        bus: 0x3a,
        devfn,
    }
}

#[test]
fn a_vfio_device_s_state_is_as_documented() {
    let state = VfioDevice {
        address: pci_address(0xfb),
        identity: PciIdentity {
            vendor: 0x1b36,
            device: 0x0010,
            subsystem_vendor: 0x1af4,
            subsystem: 0x1100,
            class_revision: 0x0108_0202,
        },
        iommufd: 7,
        resets: 0b10_0100,
        header: PciHeader {
            bars: [1, 2, 3, 4, 5, 6],
            command: 0x506,
            cache_line: 0x10,
            latency: 0x20,
        },
    };
    let bytes = concat(&[
        &0x10u16.to_ne_bytes(),
        &[0x3a, 0xfb],
        &0x1b36u16.to_ne_bytes(),
        &0x0010u16.to_ne_bytes(),
        &0x1af4u16.to_ne_bytes(),
        &0x1100u16.to_ne_bytes(),
        &0x0108_0202u32.to_ne_bytes(),
        &7u64.to_ne_bytes(),
        &0b10_0100u32.to_ne_bytes(),
        &1u32.to_ne_bytes(),
        &2u32.to_ne_bytes(),
        &3u32.to_ne_bytes(),
        &4u32.to_ne_bytes(),
        &5u32.to_ne_bytes(),
        &6u32.to_ne_bytes(),
        &0x506u16.to_ne_bytes(),
        &[0x10, 0x20],
    ]);
    assert_eq!(state.as_bytes(), bytes);
    assert_eq!(state.address.to_string(), "0010:3a:1f.3");
    assert_eq!(
        state.identity.to_string(),
        "1b36:0010 (1af4:1100), class 01080202"
    );
    assert_eq!(vfio::COMPATIBLE, c"luo-vfio-v1");
    assert_eq!(vfio::DEVICES_COMPATIBLE, c"luo-pci-v1");
    assert!(vfio::DEVICES_COMPATIBLE
        .to_bytes()
        .starts_with(vfio::DEVICES_PREFIX));
    assert_eq!(vfio::STALE_DEVICES, c"luo-pci-stale-v1");
    let [.., bus, _cxl] = VfioDevice::RESETS;
    assert_eq!((VfioDevice::RESETS[2], bus), (c"flr", c"bus"));
}

#[test]
fn pci_devices_are_added_and_removed() {
    let mut devices = PciDevices::new_zeroed();
    for devfn in [1, 2, 3] {
        assert!(devices.add(pci_address(devfn)));
    }
    devices.remove(pci_address(1));
    devices.remove(pci_address(9));
    assert_eq!(
        devices.addresses(),
        Some(&[pci_address(3), pci_address(2)][..])
    );
    let mut bytes = concat(&[
        &2u64.to_ne_bytes(),
        &0x10u16.to_ne_bytes(),
        &[0x3a, 3],
        &0x10u16.to_ne_bytes(),
        &[0x3a, 2],
    ]);
    bytes.resize(PAGE, 0);
    assert_eq!(devices.as_bytes(), bytes);
}

#[test]
fn pci_devices_have_a_limit() {
    let mut devices = PciDevices::new_zeroed();
    for _ in 0..vfio::MAX_DEVICES {
        assert!(devices.add(pci_address(0)));
    }
    assert!(!devices.add(pci_address(0)));
    assert_eq!(devices.addresses().unwrap().len(), vfio::MAX_DEVICES);
    devices.spoil();
    assert_eq!(devices.addresses(), None);
}

#[test]
fn more_pci_devices_than_fit_are_none() {
    let full = vfio::MAX_DEVICES as u64;
    for (count, valid) in [
        (0, true),
        (full, true),
        (full + 1, false),
        (u64::MAX, false),
    ] {
        let mut bytes = vec![0; PAGE];
        bytes[..8].copy_from_slice(&u64::to_ne_bytes(count));
        let mut devices = PciDevices::read_from_bytes(&bytes).unwrap();
        assert_eq!(devices.addresses().is_some(), valid, "{count}");
        devices.remove(pci_address(0));
        assert_eq!(devices.add(pci_address(0)), count < full, "{count}");
    }
}
