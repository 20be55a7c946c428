// SPDX-License-Identifier: GPL-2.0

//! Handovers that somebody spoilt.
//!
//! Most of a handover is written within reboot(2), which does not come back. But on its way the
//! kernel waits for programs that it started itself. So it is made to look for a module, the
//! program that is to load it is this one, and it spoils the handover before it ends.

use crate::context::{
    Context, create, device, expect_eq, expect_errno, finish, retrieve, wait_for,
};
use crate::data;
use crate::handover::{At, Memory, outgoing_header};
use crate::kmsg;
use crate::procfs;
use crate::registry::{Group, Scenario, Stage};
use crate::scenarios::{iommu, vfio};
use anyhow::{Context as _, Result, bail, ensure};
use liveupdate::{Device, Errno, SessionName, Token};
use luo_abi::luo;
use luo_abi::memfd::{Folio, Memfd};
use luo_abi::{Text, block};
use rustix::mount::MountFlags;
use std::path::Path;

/// The kernel looks for a module of this name when it does not know a file system.
const MODULE: &str = "fs-luo-";
/// The program says here that it is ready.
const READY: &str = "/tmp/spoiling";
/// And here which handlers the kernel asked for.
const ASKED: &str = "/tmp/asked";
/// What the kernel says when all is written.
const WRITTEN: &str = "sessions frozen and written down";
/// An address where no machine of these tests has memory.
const WILD: u64 = 0xdead_beef_0000;

/// The first kernel hands over and spoils it, the second one has to refuse it, the third one has
/// to be as good as new.
const fn fatal(name: &'static str, stages: &'static [Stage]) -> Scenario {
    Scenario { name, stages }
}

macro_rules! fatal {
    ($($name:literal),* $(,)?) => {
        &[$(fatal(concat!("corrupt-", $name), &[
            |context| hand_over(context, $name),
            refused,
            as_good_as_new,
        ])),*]
    };
}

/// What a kernel refuses as a whole. Each needs a machine of its own.
pub const FATAL: Group = Group {
    name: "corrupt",
    scenarios: fatal![
        "header-format",
        "header-binary",
        "sessions-address-wild",
        "sessions-address-odd",
        "sessions-address-not-preserved",
        "sessions-cycle",
        "sessions-next-wild",
        "sessions-count-zero",
        "sessions-count-huge",
        "session-name-endless",
        "session-name-empty",
        "session-name-twice",
        "files-address-wild",
        "files-cycle",
        "files-count-wrong",
        "files-count-huge",
        "file-compatible-endless",
        "flbs-address-wild",
        "flbs-address-odd",
        "flbs-address-not-preserved",
        "flbs-pages-none",
        "flbs-pages-two",
        "flbs-count-64",
        "flbs-count-huge",
        "flbs-name-endless",
        "flbs-name-empty",
        "flbs-name-twice",
    ],
};

/// What looks odd and is not refused. Each needs a machine of its own.
pub const ACCEPTED: Group = Group {
    name: "corrupt-not",
    scenarios: &[
        Scenario {
            name: "corrupt-not-flbs-address-none",
            stages: &[
                |context| hand_over(context, "flbs-address-none"),
                accepted,
                as_good_as_new,
            ],
        },
        Scenario {
            name: "corrupt-not-flbs-unknown",
            stages: &[
                |context| hand_over(context, "flbs-unknown"),
                accepted,
                as_good_as_new,
            ],
        },
    ],
};

/// Names of handlers that must not get to userspace.
pub const NAMES: Group = Group {
    name: "corrupt-names",
    scenarios: &[Scenario {
        name: "corrupt-names",
        stages: &[
            |context| hand_over(context, "names"),
            names_after,
            as_good_as_new,
        ],
    }],
};

/// What spoils one file.
pub const MEMFD: Group = Group {
    name: "corrupt-memfd",
    scenarios: &[Scenario {
        name: "corrupt-memfds",
        stages: &[
            |context| hand_over(context, "memfds"),
            memfds_after,
            as_good_as_new,
        ],
    }],
};

/// Size of the files that are to be spoilt.
const LEN: u64 = 40_000;

fn hand_over(context: &mut Context<'_>, how: &str) -> Result<()> {
    let bad = create("bad")?;
    for token in 0..=MEMFDS.len() as u64 + 1 {
        bad.preserve(data::memfd_with("file", token, LEN)?, Token(token))?;
    }
    context.keep(bad);
    let good = create("good")?;
    good.preserve(data::memfd_with("file", 99, LEN)?, Token(1))?;
    context.keep(good);
    // A second block.
    for i in 0..60 {
        context.keep(create(&format!("plain-{i}"))?);
    }
    start_spoiling(how)
}

/// Starts the program that spoils this kernel's handover when all of it is written.
pub fn start_spoiling(how: &str) -> Result<()> {
    procfs::write("/proc/sys/kernel/modprobe", "/init")?;
    let unknown = format!("luo-{how}");
    std::thread::spawn(move || {
        let none: Option<&std::ffi::CStr> = None;
        // It fails, when the program that looks for a module of this name has ended.
        let _ = rustix::mount::mount("none", "/tmp", unknown.as_str(), MountFlags::empty(), none);
    });
    wait_for("the program that spoils", || Path::new(READY).exists())
}

/// What the program does that the kernel takes for modprobe.
pub fn modprobe(module: &str) -> Result<()> {
    if module.starts_with("luo:") {
        let asked = std::fs::read_to_string(ASKED).unwrap_or_default();
        return Ok(std::fs::write(ASKED, format!("{asked}{module}\n"))?);
    }
    match module.strip_prefix(MODULE) {
        Some(how) => spoil(how),
        None => bail!("there is no module {module}"),
    }
}

fn spoil(how: &str) -> Result<()> {
    let memory = Memory::open()?;
    let pa = outgoing_header(&memory)?.pa;
    let mut log = kmsg::Reader::from_now()?;
    std::fs::write(READY, "")?;
    wait_for("reboot(2)", || {
        let lines = log.lines().unwrap_or_default();
        lines.iter().any(|line| line.contains(WRITTEN))
    })?;
    match how {
        iommu::corrupt::HOW => {
            let header: At<luo::Header> = memory.read(pa)?;
            iommu::corrupt::spoil(&memory, &header.value)?;
        }
        vfio::corrupt::HOW => {
            let header: At<luo::Header> = memory.read(pa)?;
            vfio::corrupt::spoil(&memory, &header.value)?;
        }
        _ => Handover { memory, pa }.spoil(how)?,
    }
    kmsg::remark(format!("spoilt: {how}"));
    Ok(())
}

struct Handover {
    memory: Memory,
    pa: u64,
}

impl Handover {
    fn spoil(&self, how: &str) -> Result<()> {
        let mut header: At<luo::Header> = self.memory.read(self.pa)?;
        let sessions = self
            .memory
            .chain::<luo::Session>(header.value.sessions_pa)?;
        let mut block: At<block::Header> = sessions[0].header;
        let mut session = sessions[0].entries[0];
        let files = self.memory.chain::<luo::File>(session.value.files_pa)?;
        let mut file_block = files[0].header;
        let file = files[0].entries[0];
        let mut flbs: At<luo::FlbHeader> = self.memory.read(header.value.flbs_pa)?;
        let mut flb: At<luo::Flb> = self
            .memory
            .read(flbs.pa + size_of_val(&flbs.value) as u64)?;
        match how {
            "header-format" => header.value.compatible = *b"luo-v4\0\0",
            "header-binary" => header.value.compatible = [0xff; 8],
            "sessions-address-wild" => header.value.sessions_pa = WILD,
            "sessions-address-odd" => header.value.sessions_pa += 8,
            "sessions-address-not-preserved" => header.value.sessions_pa = 32 << 20,
            "sessions-cycle" => block.value.next = block.pa,
            "sessions-next-wild" => block.value.next = WILD,
            "sessions-count-zero" => block.value.count = 0,
            "sessions-count-huge" => block.value.count = u64::MAX,
            "session-name-endless" => self.memory.write(session.pa, &[b'e'; 64])?,
            "session-name-empty" => self.memory.write(session.pa, &[0_u8; 64])?,
            "session-name-twice" => {
                let mut second = sessions[0].entries[1];
                second.value.name = session.value.name;
                self.memory.put(&second)?;
            }
            "files-address-wild" => session.value.files_pa = WILD,
            "files-cycle" => file_block.value.next = file_block.pa,
            "files-count-wrong" => session.value.file_count += 1,
            "files-count-huge" => session.value.file_count = u64::MAX,
            "file-compatible-endless" => self.memory.write(file.pa, &[b'e'; 48])?,
            "flbs-address-wild" => header.value.flbs_pa = WILD,
            "flbs-address-odd" => header.value.flbs_pa += 8,
            "flbs-address-not-preserved" => header.value.flbs_pa = 32 << 20,
            "flbs-address-none" => header.value.flbs_pa = 0,
            "flbs-pages-none" => flbs.value.page_count = 0,
            "flbs-pages-two" => flbs.value.page_count = 2,
            // One more than there is room for.
            "flbs-count-64" => flbs.value.count = 64,
            "flbs-count-huge" => flbs.value.count = u64::MAX,
            "flbs-name-endless" | "flbs-name-empty" | "flbs-name-twice" | "flbs-unknown" => {
                let name = |text| Text::new(text).context("a name");
                let size = size_of_val(&flb.value) as u64;
                flbs.value.count = 2;
                flb.value = luo::Flb {
                    name: name(b"one")?,
                    data: WILD,
                    count: 1,
                };
                self.memory.put(&flb)?;
                flb.pa += size;
                flb.value.name = match how {
                    "flbs-name-endless" => Text::from_bytes([b'e'; luo::COMPATIBLE_LEN]),
                    "flbs-name-empty" => Text::from_bytes([0; luo::COMPATIBLE_LEN]),
                    "flbs-name-twice" => name(b"one")?,
                    _ => name(b"two")?,
                };
                self.memory.put(&flb)?;
            }
            "names" => {
                for (name, file) in HOSTILE.iter().zip(&files[0].entries[1..]) {
                    let mut file = *file;
                    file.value.compatible = Text::new(name).context("a name")?;
                    self.memory.put(&file)?;
                }
            }
            "memfds" => {
                let all = MEMFDS.iter().chain(&[HOLE]);
                for (how, file) in all.zip(&mut files[0].entries.clone()[1..]) {
                    self.spoil_memfd(how, file)?;
                }
            }
            _ => bail!("nobody knows how to spoil {how}"),
        }
        // What was not changed is written as it was; what was written above stays.
        match how {
            _ if ["header", "sessions-address", "flbs-address"]
                .iter()
                .any(|place| how.starts_with(place)) =>
            {
                self.memory.put(&header)
            }
            _ if how.starts_with("flbs") => self.memory.put(&flbs),
            _ if how.starts_with("sessions") => self.memory.put(&block),
            "files-cycle" => self.memory.put(&file_block),
            _ if how.starts_with("files") => self.memory.put(&session),
            _ => Ok(()),
        }
    }

    fn spoil_memfd(&self, how: &str, file: &mut At<luo::File>) -> Result<()> {
        let mut memfd: At<Memfd> = self.memory.read(file.value.data)?;
        let folios = self.memory.folios(&memfd.value)?;
        let folio = folios.first().context("a file has no folio")?;
        let index = folio.value.index;
        let put_folio = |pfn: u64, index: u64| self.put_folio(folio, pfn, index);
        match how {
            "state wild" => file.value.data = WILD,
            "state odd" => file.value.data += 8,
            "state at 0" => file.value.data = 0,
            "state not preserved" => file.value.data = 32 << 20,
            "seals unknown" => memfd.value.seals = 1 << 20,
            "flags unknown" => memfd.value.flags = 1,
            "size 0" => memfd.value.size = 0,
            "size huge" => memfd.value.size = u64::MAX,
            "position negative" => memfd.value.pos = 1 << 63,
            "count of folios too large" => memfd.value.nr_folios += 1000,
            "count of folios huge" => memfd.value.nr_folios = u64::MAX,
            "list wild" => memfd.value.folios.first = WILD,
            "list not preserved" => memfd.value.folios.first = 32 << 20,
            "list without pages" => memfd.value.folios.total_pages = 0,
            "list with too many pages" => memfd.value.folios.total_pages = u32::MAX,
            "list of a huge order" => memfd.value.folios.order = 60,
            HOLE => put_folio(0, index)?,
            "frame wild" => put_folio(WILD >> 12, index)?,
            "frame not preserved" => put_folio((32 << 20) >> 12, index)?,
            "frame of another folio" => {
                let other = folios.get(1).context("a file has one folio")?;
                put_folio(other.value.pfn(), index)?;
            }
            "frame wild in the middle" => self.put_frame(&folios[folios.len() / 2], WILD >> 12)?,
            "frame not preserved at the end" => {
                self.put_frame(&folios[folios.len() - 1], (32 << 20) >> 12)?;
            }
            "index beyond the end" => put_folio(folio.value.pfn(), 1 << 40)?,
            "index twice" => put_folio(folio.value.pfn(), index + 1)?,
            _ => bail!("nobody knows how to spoil {how}"),
        }
        self.memory.put(&memfd)?;
        self.memory.put(file)
    }
}

impl Handover {
    fn put_folio(&self, folio: &At<Folio>, pfn: u64, index: u64) -> Result<()> {
        let value = Folio::new(pfn, folio.value.flags(), index).context("a folio's entry")?;
        let pa = folio.pa;
        self.memory.put(&At { pa, value })
    }

    fn put_frame(&self, folio: &At<Folio>, pfn: u64) -> Result<()> {
        self.put_folio(folio, pfn, folio.value.index)
    }
}

/// What is wrong with the files of tokens 1, 2 and so on.
const MEMFDS: &[&str] = &[
    "state wild",
    "state odd",
    "state at 0",
    "state not preserved",
    "seals unknown",
    "flags unknown",
    "size 0",
    "size huge",
    "position negative",
    "count of folios too large",
    "count of folios huge",
    "list wild",
    "list not preserved",
    "list without pages",
    "list with too many pages",
    "list of a huge order",
    "frame wild",
    "frame not preserved",
    "frame of another folio",
    "index beyond the end",
    "index twice",
    "frame wild in the middle",
    "frame not preserved at the end",
];

/// What is no mistake: older formats marked holes that way. It is done to the last file.
const HOLE: &str = "frame 0";

fn refused(_: &mut Context<'_>) -> Result<()> {
    for time in ["first", "second"] {
        let result = Device::open().map(drop);
        expect_errno(&format!("the {time} open"), result, Errno::IO)?;
    }
    let lines = kmsg::Reader::from_boot()?.lines()?;
    let said = lines
        .iter()
        .filter(|line| line.contains("live update is over"));
    expect_eq("kernel messages about it", said.count(), 1)?;
    // The machine is as good as any.
    data::expect_file(&data::memfd_with("file", 1, 20 << 20)?, 1, 20 << 20)
}

fn as_good_as_new(_: &mut Context<'_>) -> Result<()> {
    let result = device()?.retrieve_session(&SessionName::new("good")?);
    expect_errno("a session of the spoilt handover", result, Errno::NOENT)?;
    let session = create("good")?;
    session.preserve(data::memfd_with("file", 1, LEN)?, Token(1))?;
    Ok(())
}

fn memfds_after(_: &mut Context<'_>) -> Result<()> {
    let bad = retrieve("bad")?;
    let mut wrong = Vec::new();
    for (token, how) in (1..).zip(MEMFDS) {
        match bad.retrieve(Token(token)) {
            Err(Errno::OPNOTSUPP) => {}
            Err(errno) if how.ends_with("unknown") => wrong.push(format!("{how}: {errno}")),
            Err(errno) => kmsg::remark(format!("{how}: {errno}")),
            Ok(_) => wrong.push(format!("{how}: worked")),
        }
    }
    let token = MEMFDS.len() as u64 + 1;
    let hole = data::file(bad.retrieve(Token(token)).context(HOLE)?);
    data::expect_len(&hole, LEN)?;
    data::expect_zeros(&hole, 0, data::page())?;
    data::expect_file(&data::file(bad.retrieve(Token(0))?), 0, LEN).context("the sound file")?;
    finish(bad).context("finishing its session")?;
    let good = retrieve("good")?;
    data::expect_file(&data::file(good.retrieve(Token(1))?), 99, LEN)?;
    finish(good)?;
    ensure!(wrong.is_empty(), "{wrong:?}");
    Ok(())
}

/// Compatible strings that have no alias, and last one that has.
const HOSTILE: [&[u8]; 12] = [
    b"../../../tmp/x",
    b"/tmp/x",
    b"a b",
    b"a;reboot",
    b"$(reboot)",
    b"%s%n%x",
    b"a\nluo_test",
    b"a\x1b[2J",
    b"\xff\xfe",
    b"luo:memfd-v2",
    b"*",
    MISSING.as_bytes(),
];

/// There is no such handler.
const MISSING: &str = "Aa0-_.,+";

/// What has no proper alias is said to be missing, and nobody is asked for it.
fn names_after(_: &mut Context<'_>) -> Result<()> {
    procfs::write("/proc/sys/kernel/modprobe", "/init")?;
    let asked = || std::fs::read_to_string(ASKED).unwrap_or_default();
    let session = retrieve("bad")?;
    data::expect_file(&data::file(session.retrieve(Token(0))?), 0, LEN)?;
    let alias = format!("luo:{MISSING}\n");
    expect_eq("what was asked for at first", asked(), alias.clone())?;
    let mut log = kmsg::Reader::from_now()?;
    for (token, name) in (1..).zip(HOSTILE) {
        let result = session.retrieve(Token(token));
        let name = String::from_utf8_lossy(name);
        expect_errno(&format!("a file of {name:?}"), result, Errno::NOENT)?;
    }
    let token = HOSTILE.len() as u64 + 1;
    data::expect_file(&data::file(session.retrieve(Token(token))?), token, LEN)?;
    let refused = session.finish().err().context("the finish worked")?;
    expect_eq("finish", refused.errno, Errno::BUSY)?;
    drop(refused.session);
    // Again and again, but nothing else.
    let asked = asked();
    let times = asked.lines().count();
    ensure!(times > 1, "the kernel asked {times} times");
    expect_eq("what was asked for", asked, alias.repeat(times))?;

    let lines = log.lines()?;
    for (token, name) in (1..).zip(HOSTILE) {
        let shown = Text::<{ luo::COMPATIBLE_LEN }>::new(name).context("a name")?;
        let wanted = format!("token {token:#x} needs the handler '");
        let line = lines.iter().find(|line| line.contains(&wanted));
        let line = line.with_context(|| format!("there is no line for token {token}"))?;
        let has_alias = line.contains("alias");
        expect_eq(
            &format!("an alias for {shown}"),
            has_alias,
            name == MISSING.as_bytes(),
        )?;
    }
    let good = retrieve("good")?;
    data::expect_file(&data::file(good.retrieve(Token(1))?), 99, LEN)?;
    finish(good)
}

fn accepted(_: &mut Context<'_>) -> Result<()> {
    for (name, token, seed) in [("bad", 3, 3), ("good", 1, 99)] {
        let session = retrieve(name)?;
        data::expect_file(&data::file(session.retrieve(Token(token))?), seed, LEN)?;
        finish(session)?;
    }
    let lines = kmsg::Reader::from_boot()?.lines()?;
    let said = lines
        .iter()
        .filter(|line| line.contains("live update is over"));
    expect_eq("kernel messages about it", said.count(), 0)
}
