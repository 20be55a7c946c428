// SPDX-License-Identifier: GPL-2.0

//! The Live Update Orchestrator: open files that survive the replacement of the kernel.
//!
//! Userspace collects open files in named *sessions* through `/dev/liveupdate`. A *file handler*
//! saves the state of each kind of file into memory that Kexec Handover (KHO) carries into the next
//! kernel, and makes the file anew there.
//!
//! A live update runs through these steps; each of them can fail, and until the kexec a failure
//! takes back whatever was done:
//!
//! 1. A session is created and files are preserved in it (`outgoing`, `outgoing_files`).
//! 2. `reboot(2)` freezes them all and writes them down in the format of [`luo_abi`].
//! 3. The next kernel finds that at boot, and reads it when the device is first opened
//!    (`incoming`, `incoming_files`).
//! 4. Userspace retrieves its sessions and files, and finishes the sessions.
//!
//! Locks, in the order in which they are taken:
//!
//! 1. `Luo::serialize`: for reading by everything that changes a session; for writing by the
//!    reboot, which keeps it for ever if it succeeds.
//! 2. `Luo::outgoing` or `Luo::incoming`: the list of sessions.
//! 3. A session's mutex: its files.
//! 4. An FLB's mutex, that of the outgoing half before that of the incoming ([`luo_flb`]).
//! 5. The mutex of an outgoing FLB's state ([`flb::Outgoing::state`]).
//! 6. The registry's (`luo_register_rwlock`) and that of `preserved_ids`.
//!
//! A handler is called with the first held for reading and the third; `freeze` and `unfreeze` with
//! the first and the second held for writing, and the third. An FLB is called with its mutex held,
//! and whatever those hold who want it. Nobody is called under the last.
//!
//! This crate implements the C API of `<linux/liveupdate.h>`, so that C handlers run on it
//! unchanged. Handlers in Rust implement [`LiveupdateFileHandler`].
//!
//! C header: [`include/linux/liveupdate.h`](srctree/include/linux/liveupdate.h)

mod autoload;
mod bindings;
mod block;
mod capi;
pub mod context;
mod device;
pub mod flb;
mod flbs;
pub mod handler;
mod incoming;
mod incoming_files;
pub mod kho;
pub mod miscdevice;
mod module_ref;
mod outgoing;
mod outgoing_files;
mod preserved_ids;
pub mod registration;
mod registry;
mod rwsem;
mod session_file;
#[cfg(CONFIG_LIVEUPDATE_RUST_KUNIT_TEST)]
mod testing;
mod uapi;
mod waist;

pub use handler::LiveupdateFileHandler;
pub use luo_abi::WireState;

use kernel::{
    miscdevice::MiscDeviceRegistration,
    module::ThisModule,
    prelude::*,
    str::BStr,
    sync::{
        Arc,
        SetOnce, //
    },
};

use crate::{
    flbs::IncomingFlbs,
    incoming::Handover,
    outgoing::OutgoingSessions,
    preserved_ids::PreservedIds,
    registry::Registry,
    rwsem::{
        new_rwsem,
        RwSemaphore, //
    },
};

use luo_abi::{
    luo::{
        self,
        KHO_ENTRY_NAME, //
    },
    Text, //
};

const __LOG_PREFIX: &[u8] = b"luo\0";

/// The core is built in, so it belongs to no module.
struct LocalModule;

impl kernel::ModuleMetadata for LocalModule {
    const NAME: &'static CStr = c"luo";
    // SAFETY: Built-in code has a null `THIS_MODULE`.
    const THIS_MODULE: ThisModule = unsafe { ThisModule::from_ptr(core::ptr::null_mut()) };
}

/// The orchestrator's state. There is one in a running kernel; tests make more.
#[pin_data]
pub(crate) struct Luo {
    /// How many live updates led to this kernel.
    liveupdate_num: u64,
    #[pin]
    registry: Registry,
    preserved: Arc<PreservedIds>,
    incoming_flbs: IncomingFlbs,
    #[pin]
    serialize: RwSemaphore<()>,
    #[pin]
    outgoing: RwSemaphore<OutgoingSessions>,
    #[pin]
    incoming: RwSemaphore<Handover>,
}

/// The orchestrator; empty if live update is off.
static LUO: SetOnce<Arc<Luo>> = SetOnce::new();

static DEVICE: SetOnce<Pin<KBox<MiscDeviceRegistration<device::Device>>>> = SetOnce::new();

impl Luo {
    fn new(handed_over: HandedOver) -> Result<Arc<Self>> {
        let HandedOver {
            liveupdate_num,
            sessions,
            flbs,
        } = handed_over;
        let preserved = PreservedIds::new()?;
        Arc::pin_init(
            pin_init!(Self {
                liveupdate_num,
                registry <- Registry::new(),
                preserved,
                incoming_flbs: flbs,
                serialize <- new_rwsem!((), c"luo_serialize"),
                outgoing <- new_rwsem!(OutgoingSessions::new(), c"luo_outgoing"),
                incoming <- new_rwsem!(sessions, c"luo_incoming"),
            }),
            GFP_KERNEL,
        )
    }
}

/// A string from another kernel or from userspace, fit for the log.
fn shown<const N: usize>(text: &Text<N>) -> &BStr {
    BStr::from_bytes(text.up_to_nul())
}

/// What the previous kernel left.
struct HandedOver {
    liveupdate_num: u64,
    sessions: Handover,
    flbs: IncomingFlbs,
}

impl HandedOver {
    /// No FLBs.
    fn new(liveupdate_num: u64, sessions: Handover) -> Self {
        Self {
            liveupdate_num,
            sessions,
            flbs: IncomingFlbs::Nothing,
        }
    }
}

/// Reads the header that the previous kernel left, if there was one, and the FLBs.
fn read_header() -> Result<HandedOver> {
    // SAFETY: The name is the core's, which reads it once.
    let Some(header) = (unsafe { kho::claim_subtree::<luo::Header>(KHO_ENTRY_NAME) })? else {
        return Ok(HandedOver::new(0, Handover::Unread(0)));
    };
    let luo::Header {
        compatible,
        liveupdate_num,
        sessions_pa,
        flbs_pa,
    } = *header;
    if compatible != luo::Header::COMPATIBLE {
        pr_err!(
            "unknown format '{}'\n",
            shown(&Text::from_bytes(compatible))
        );
        header.leak();
        return Err(EINVAL);
    }
    let flbs = IncomingFlbs::read(flbs_pa)?;
    pr_info!("live update number {liveupdate_num}\n");
    Ok(HandedOver {
        liveupdate_num,
        sessions: Handover::Unread(sessions_pa),
        flbs,
    })
}

/// Finds what the previous kernel left. Called at early initcall level, before any handler.
fn early_init(enabled: bool) -> Result {
    if !enabled {
        if let Ok(Some(_)) = kho::incoming_subtree(KHO_ENTRY_NAME) {
            pr_warn!("live update is off: what was handed over stays reserved and out of reach\n");
        }
        return Ok(());
    }
    if !kho::is_enabled() {
        pr_warn!("live update is off because KHO is\n");
        return Ok(());
    }
    let handed_over = read_header().unwrap_or_else(|err| {
        pr_err!("what was handed over is unusable ({err:?}): live update is over until the machine reboots\n");
        HandedOver {
            flbs: IncomingFlbs::Broken,
            ..HandedOver::new(0, Handover::Broken)
        }
    });
    LUO.populate(Luo::new(handed_over)?);
    Ok(())
}

/// Lets userspace in, and has KHO hand over what it will preserve. Called at late initcall level.
fn late_init() -> Result {
    let Some(luo) = LUO.as_ref() else {
        return Ok(());
    };
    luo.announce()?;
    DEVICE.populate(KBox::pin_init(device::Device::register(), GFP_KERNEL)?);
    Ok(())
}
