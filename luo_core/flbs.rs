// SPDX-License-Identifier: GPL-2.0

//! File-lifecycle-bound objects (FLBs): which there are, and their C callbacks.
//!
//! An FLB is a C `struct liveupdate_flb`, whether a C or a Rust module registered it. Its life
//! cycle is [`luo_flb`]'s; here is what that calls. No lock of the registry is held meanwhile.
//!
//! C counterpart: `kernel/liveupdate/luo_flb.c`.

use kernel::{
    ffi::{
        c_int,
        c_void, //
    },
    page::PAGE_SIZE,
    prelude::*,
    sync::Arc, //
};

use core::{
    mem::size_of,
    ptr::NonNull, //
};

use crate::{
    bindings,
    kho::Claimed,
    module_ref::ModuleRef,
    shown,
    Luo, //
};

use luo_abi::{
    luo::{
        self,
        Compatible,
        FlbHeader, //
    },
    Text, //
};
use luo_flb::{
    Incoming,
    Outgoing, //
};
use zerocopy_derive::{
    FromBytes,
    Immutable,
    IntoBytes,
    KnownLayout, //
};

/// How many FLBs fit into the page in which they are handed over, and so how many there can be.
pub(crate) const MAX_FLBS: usize = (PAGE_SIZE - size_of::<FlbHeader>()) / size_of::<luo::Flb>();

/// The page in which FLBs are handed over.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct FlbPage {
    pub(crate) header: FlbHeader,
    pub(crate) entries: [luo::Flb; MAX_FLBS],
    rest: [u8; (PAGE_SIZE - size_of::<FlbHeader>()) % size_of::<luo::Flb>()],
}

/// An FLB that at least one handler depends on.
///
/// # Invariants
///
/// `raw` is valid and has all callbacks as long as it is registered.
#[pin_data]
pub(crate) struct Flb {
    raw: NonNull<bindings::liveupdate_flb>,
    #[pin]
    outgoing: Outgoing<Live>,
}

// SAFETY: An FLB's callbacks may be called from any task.
unsafe impl Send for Flb {}

// SAFETY: As above; what a shared reference gives access to does not change while registered.
unsafe impl Sync for Flb {}

impl Flb {
    /// Prepares an FLB for its first handler.
    ///
    /// # Safety
    ///
    /// `raw` must be valid, with all callbacks, as long as it is registered.
    pub(crate) unsafe fn new(raw: NonNull<bindings::liveupdate_flb>) -> Result<Arc<Self>> {
        Arc::pin_init(
            // INVARIANT: The caller guarantees it.
            pin_init!(Self {
                raw,
                outgoing <- Outgoing::new(),
            }),
            GFP_KERNEL,
        )
    }

    /// Whether this is the FLB at `raw`.
    pub(crate) fn is(&self, raw: NonNull<bindings::liveupdate_flb>) -> bool {
        self.raw == raw
    }

    /// The string that names the FLB, while it is registered.
    pub(crate) fn compatible(&self) -> Compatible {
        // SAFETY: By the type invariant it is valid, as it is registered.
        unsafe { compatible(self.raw) }
    }

    /// The entry that tells the next kernel of the FLB, if files depend on it.
    pub(crate) fn entry(&self) -> Option<luo::Flb> {
        let (data, count) = self.outgoing.handover()?;
        Some(luo::Flb {
            name: self.compatible(),
            data,
            count,
        })
    }

    /// The live object, in use until [`Flb::put`].
    ///
    /// Fails with `ENOENT` if no file depends on the FLB, or it has no object.
    pub(crate) fn get(&self) -> Result<NonNull<c_void>> {
        let object = self.outgoing.get(|live| live.object)?;
        NonNull::new(object)
            .ok_or(ENOENT)
            .inspect_err(|_| self.put())
    }

    /// Takes back [`Flb::get`].
    pub(crate) fn put(&self) {
        self.outgoing.put(Live::unpreserve);
    }
}

/// An FLB whose module cannot go away.
///
/// # Invariants
///
/// `raw` is valid and has all callbacks, and `_module` is the one that owns it.
#[derive(Clone)]
struct FlbRef {
    raw: NonNull<bindings::liveupdate_flb>,
    _module: ModuleRef,
}

// SAFETY: As for `Flb`.
unsafe impl Send for FlbRef {}

// SAFETY: As for `Flb`.
unsafe impl Sync for FlbRef {}

/// A live object, and the FLB that made it.
struct Live {
    flb: FlbRef,
    object: *mut c_void,
}

// SAFETY: The object belongs to the FLB, whose callbacks may be called from any task.
unsafe impl Send for Live {}

type FlbArgs = bindings::liveupdate_flb_op_args;

impl FlbRef {
    /// Takes a reference to the module behind an FLB; `None` if it is not live (any more).
    ///
    /// # Safety
    ///
    /// `raw` must be valid, with all callbacks, as long as its module is there.
    unsafe fn new(raw: NonNull<bindings::liveupdate_flb>) -> Option<Self> {
        // SAFETY: The caller guarantees validity; the owner is valid too or null.
        let module = unsafe { ModuleRef::get_live((*(*raw.as_ptr()).ops).owner) };
        // INVARIANT: It is the owner.
        module.map(|_module| Self { raw, _module })
    }

    fn ops(&self) -> &bindings::liveupdate_flb_ops {
        // SAFETY: By the type invariant the FLB is valid, and its `ops` do not change.
        unsafe { &*(*self.raw.as_ptr()).ops }
    }

    fn args(&self, data: u64, object: *mut c_void) -> FlbArgs {
        FlbArgs {
            flb: self.raw.as_ptr(),
            data,
            obj: object,
        }
    }

    fn call(
        &self,
        callback: Option<unsafe extern "C" fn(*mut FlbArgs) -> c_int>,
        args: &mut FlbArgs,
    ) -> Result {
        let callback = callback.ok_or(EINVAL)?;
        // SAFETY: By the type invariant the FLB is valid, and `args` is for this callback.
        match unsafe { callback(args) } {
            0 => Ok(()),
            errno => Err(Error::from_errno(errno)),
        }
    }

    fn preserve(self) -> Result<(u64, Live)> {
        let mut args = self.args(0, core::ptr::null_mut());
        self.call(self.ops().preserve, &mut args)?;
        let live = Live {
            object: args.obj,
            flb: self,
        };
        Ok((args.data, live))
    }

    fn retrieve(self, data: u64) -> Result<Live> {
        let mut args = self.args(data, core::ptr::null_mut());
        self.call(self.ops().retrieve, &mut args)
            .inspect_err(|err| {
                // SAFETY: By the type invariant the FLB is valid.
                let name = unsafe { compatible(self.raw) };
                pr_err!("the FLB '{}' cannot be retrieved: {err:?}\n", shown(&name));
            })?;
        Ok(Live {
            object: args.obj,
            flb: self,
        })
    }
}

impl Live {
    fn unpreserve(data: u64, live: Self) {
        let mut args = live.flb.args(data, live.object);
        if let Some(unpreserve) = live.flb.ops().unpreserve {
            // SAFETY: The FLB and all arguments are valid.
            unsafe { unpreserve(&mut args) };
        }
    }

    fn finish(live: Self) {
        let mut args = live.flb.args(0, live.object);
        if let Some(finish) = live.flb.ops().finish {
            // SAFETY: The FLB and all arguments are valid.
            unsafe { finish(&mut args) };
        }
    }
}

/// The FLBs that a handler depends on, in the order of their registration.
///
/// It is what the handler depended on when this was made; its file takes back what it counted.
pub(crate) struct HandlerFlbs(KVec<Dependency>);

struct Dependency {
    flb: Arc<Flb>,
    /// Keeps `flb.raw` valid.
    module: FlbRef,
}

impl HandlerFlbs {
    /// Takes references to the modules behind `flbs`, which are registered throughout this call.
    ///
    /// Errors: `ENOENT`, a module is not live (any more); `ENOMEM`.
    pub(crate) fn new(flbs: &[Arc<Flb>]) -> Result<Self> {
        let mut found = KVec::with_capacity(flbs.len(), GFP_KERNEL)?;
        for flb in flbs {
            let dependency = Dependency {
                // SAFETY: By its invariant a registered FLB is valid.
                module: unsafe { FlbRef::new(flb.raw) }.ok_or(ENOENT)?,
                flb: flb.clone(),
            };
            found.push(dependency, GFP_KERNEL)?;
        }
        Ok(Self(found))
    }

    /// Counts a file that is about to be preserved. On an error none of the FLBs has counted it.
    ///
    /// C counterpart: `luo_flb_file_preserve()`.
    pub(crate) fn preserve(&self) -> Result {
        for (done, dependency) in self.0.iter().enumerate() {
            if let Err(err) = dependency.preserve() {
                self.unpreserve_first(done);
                return Err(err);
            }
        }
        Ok(())
    }

    /// Takes back [`HandlerFlbs::preserve`].
    ///
    /// C counterpart: `luo_flb_file_unpreserve()`.
    pub(crate) fn unpreserve(&self) {
        self.unpreserve_first(self.0.len());
    }

    fn unpreserve_first(&self, count: usize) {
        for dependency in self.0.iter().take(count).rev() {
            dependency.flb.outgoing.remove_file(Live::unpreserve);
        }
    }

    /// Takes account of a file that was finished.
    ///
    /// C counterpart: `luo_flb_file_finish()`.
    pub(crate) fn finish(&self, incoming: &IncomingFlbs) {
        for Dependency { flb, module } in self.0.iter().rev() {
            if let Ok(found) = incoming.find(&flb.compatible()) {
                found
                    .state
                    .remove_file(|data| module.clone().retrieve(data), Live::finish);
            }
        }
    }
}

impl Dependency {
    fn preserve(&self) -> Result {
        self.flb
            .outgoing
            .add_file(|| self.module.clone().preserve())
    }
}

/// What the previous kernel handed over of its FLBs.
pub(crate) enum IncomingFlbs {
    /// There was no previous kernel, or it knew no FLBs.
    Nothing,
    /// It is broken.
    Broken,
    /// By their compatible strings, no two of which are the same.
    Flbs(KVec<Pin<KBox<IncomingFlb>>>),
}

/// An FLB that the previous kernel handed over.
#[pin_data]
pub(crate) struct IncomingFlb {
    name: Compatible,
    #[pin]
    state: Incoming<Live>,
}

impl IncomingFlbs {
    /// Reads the page at a physical address that the previous kernel handed over; 0 is none.
    ///
    /// Fails with `EINVAL` if it is broken, and with `ENOMEM`.
    ///
    /// C counterpart: `luo_flb_setup_incoming()`.
    pub(crate) fn read(phys: u64) -> Result<Self> {
        if phys == 0 {
            return Ok(Self::Nothing);
        }
        let page = Claimed::<FlbPage>::new(phys)
            .inspect_err(|_| pr_err!("no FLBs were handed over at {phys:#x}\n"))?;
        let FlbHeader { page_count, count } = page.header;
        let entries = usize::try_from(count)
            .ok()
            .and_then(|count| page.entries.get(..count));
        let Some(entries) = entries.filter(|_| page_count == 1) else {
            pr_err!("{count} FLBs in {page_count} pages were handed over\n");
            return Err(EINVAL);
        };
        let mut flbs = KVec::with_capacity(entries.len(), GFP_KERNEL)?;
        for entry in entries {
            let flb = Self::read_entry(entry, &flbs)?;
            flbs.push(flb, GFP_KERNEL)?;
        }
        Ok(Self::Flbs(flbs))
    }

    fn read_entry(
        entry: &luo::Flb,
        before: &[Pin<KBox<IncomingFlb>>],
    ) -> Result<Pin<KBox<IncomingFlb>>> {
        let luo::Flb { name, data, count } = *entry;
        let Ok(name) = Compatible::from_field(name.field()) else {
            pr_err!("an FLB without a proper compatible string was handed over\n");
            return Err(EINVAL);
        };
        if before.iter().any(|flb| flb.name == name) {
            pr_err!("the FLB '{}' was handed over twice\n", shown(&name));
            return Err(EINVAL);
        }
        KBox::pin_init(
            pin_init!(IncomingFlb {
                name,
                state <- Incoming::new(data, count),
            }),
            GFP_KERNEL,
        )
    }

    fn find(&self, name: &Compatible) -> Result<&IncomingFlb> {
        match self {
            Self::Nothing => Err(ENODATA),
            Self::Broken => Err(EIO),
            Self::Flbs(flbs) => flbs
                .iter()
                .find(|flb| flb.name == *name)
                .map(|flb| &**flb)
                .ok_or(ENOENT),
        }
    }
}

impl Luo {
    /// Whether an FLB came from the previous kernel whose compatible string begins with `prefix`.
    pub(crate) fn has_incoming_flb(&self, prefix: &[u8]) -> bool {
        match &self.incoming_flbs {
            IncomingFlbs::Flbs(flbs) => flbs
                .iter()
                .any(|flb| flb.name.up_to_nul().starts_with(prefix)),
            _ => false,
        }
    }

    /// The live object that came from the previous kernel, in use until [`Luo::put_incoming_flb`].
    ///
    /// Errors: `ENODATA`, nothing was handed over, or the object was finished; `EIO`, what was handed
    /// over is broken; `ENOENT`, this FLB was not handed over; `ENODEV`, it was, but its module is not
    /// live; `EEXIST`, it was retrieved by another FLB of the same name; and what its `retrieve`
    /// failed with.
    ///
    /// # Safety
    ///
    /// `flb` must be valid, with all callbacks, as long as its module is there.
    pub(crate) unsafe fn get_incoming_flb(
        &self,
        flb: NonNull<bindings::liveupdate_flb>,
    ) -> Result<*mut c_void> {
        // SAFETY: The caller guarantees validity.
        let found = self.incoming_flbs.find(&unsafe { compatible(flb) })?;
        // SAFETY: The caller guarantees validity.
        let module = unsafe { FlbRef::new(flb) }.ok_or(ENODEV)?;
        let (owner, object) = found.state.get(
            |data| module.retrieve(data),
            |live| (live.flb.raw, live.object),
        )?;
        if owner != flb {
            found.state.put(Live::finish);
            return Err(EEXIST);
        }
        Ok(object)
    }

    /// Takes back [`Luo::get_incoming_flb`].
    ///
    /// # Safety
    ///
    /// `flb` must be valid.
    pub(crate) unsafe fn put_incoming_flb(&self, flb: NonNull<bindings::liveupdate_flb>) {
        // SAFETY: The caller guarantees validity.
        if let Ok(found) = self.incoming_flbs.find(&unsafe { compatible(flb) }) {
            found.state.put(Live::finish);
        }
    }
}

/// The string that names `flb`, as it is: possibly not a string at all.
///
/// # Safety
///
/// `flb` must be valid.
pub(crate) unsafe fn compatible(flb: NonNull<bindings::liveupdate_flb>) -> Compatible {
    // SAFETY: The caller guarantees validity; `c_char` and `u8` have the same layout.
    let field: [u8; luo::COMPATIBLE_LEN] =
        unsafe { *(&raw const (*flb.as_ptr()).compatible).cast() };
    Compatible::from_field(&field).unwrap_or(Text::from_bytes(field))
}

/// Whether `flb` has all callbacks that it must have.
///
/// # Safety
///
/// `flb` must be valid.
pub(crate) unsafe fn is_complete(flb: NonNull<bindings::liveupdate_flb>) -> bool {
    // SAFETY: The caller guarantees validity.
    match unsafe { (*flb.as_ptr()).ops.as_ref() } {
        Some(ops) => {
            ops.preserve.is_some()
                && ops.unpreserve.is_some()
                && ops.retrieve.is_some()
                && ops.finish.is_some()
        }
        None => false,
    }
}

#[cfg(CONFIG_LIVEUPDATE_RUST_KUNIT_TEST)]
mod tests;
