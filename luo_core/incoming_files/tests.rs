// SPDX-License-Identifier: GPL-2.0

//! The life of files after the kexec.
//!
//! No kernel handed anything over to these tests, so there is no state that could be claimed. Their
//! handlers are C ones, to which the handed over data is a number and not an address.

use super::*;
use crate::{
    bindings,
    handler::errno,
    testing::{
        called,
        calls_were,
        data,
        fail,
        luo,
        never_fail,
        raw,
        Call::*,
        TestFile,
        BARE,
        FAILURE,
        FULL, //
    },
    waist::CallArgs, //
};
use core::ptr::NonNull;
use kernel::{
    ffi::c_int,
    sync::{
        aref::ARef,
        Arc, //
    },
};

type Args = bindings::liveupdate_file_op_args;

/// What is handed over of a file: its number, which is also its token, and the tokens of up to
/// three files that it needs.
fn handed_over(number: u8, needs: &[u8]) -> u64 {
    let mut bytes = [number, 0, 0, 0, 0, 0, 0, 0];
    for (slot, token) in bytes.iter_mut().skip(1).zip(needs) {
        *slot = *token;
    }
    u64::from_le_bytes(bytes)
}

fn number(data: u64) -> u32 {
    u32::from(data.to_le_bytes()[0])
}

fn needs(data: u64) -> impl Iterator<Item = u64> {
    data.to_le_bytes()
        .into_iter()
        .skip(1)
        .filter(|token| *token != 0)
        .map(u64::from)
}

fn try_retrieve(data: u64, context: &mut crate::context::Retrieve<'_>) -> Result<ARef<File>> {
    called(Retrieve, number(data))?;
    for token in needs(data) {
        context.fetch(token)?;
    }
    TestFile::new(number(data))?.open()
}

/// # Safety
///
/// Only for the orchestrator.
unsafe extern "C" fn retrieve(args: *mut Args) -> c_int {
    // SAFETY: The caller lends us its arguments.
    let call = unsafe { &mut *args.cast::<CallArgs<crate::context::Retrieve<'_>>>() };
    let file = try_retrieve(call.args.serialized_data, &mut call.context);
    errno(file.map(|file| call.args.file = ARef::into_raw(file).as_ptr().cast()))
}

extern "C" fn retrieve_nothing(_args: *mut Args) -> c_int {
    0
}

/// # Safety
///
/// Only for the orchestrator.
unsafe extern "C" fn can_finish(args: *mut Args) -> bool {
    // SAFETY: The caller lends us its arguments.
    called(CanFinish, number(unsafe { (*args).serialized_data })).is_ok()
}

/// # Safety
///
/// Only for the orchestrator.
unsafe extern "C" fn finish(args: *mut Args) {
    // SAFETY: The caller lends us its arguments.
    let CallArgs { args, context } =
        unsafe { &*args.cast::<CallArgs<crate::context::Finish<'_>>>() };
    let call = match args.retrieve_status {
        0 => FinishUnclaimed,
        1.. => FinishRetrieved,
        _ => FinishFailed,
    };
    let _ = called(call, number(args.serialized_data));
    for token in needs(args.serialized_data) {
        let call = match context.retrieved(token) {
            Some(file) if data(file).is_ok_and(|data| u64::from(data.number) == token) => Found,
            Some(_) => continue,
            None => Missed,
        };
        let _ = called(call, token as u32);
    }
}

extern "C" fn can_preserve(
    _handler: *mut bindings::liveupdate_file_handler,
    _file: *mut bindings::file,
) -> bool {
    false
}

extern "C" fn preserve(_args: *mut Args) -> c_int {
    EOPNOTSUPP.to_errno()
}

extern "C" fn unpreserve(_args: *mut Args) {}

/// Two files of a number are two descriptions of one, as with the handler before the kexec.
///
/// # Safety
///
/// Only for the orchestrator, with a valid `file`.
unsafe extern "C" fn id(file: *mut bindings::file) -> usize {
    // SAFETY: The caller guarantees that the file is valid and that its position is not in use.
    let file = unsafe { File::from_raw_file(file) };
    data(file).map_or(0, |data| data.number as usize)
}

const OPS: bindings::liveupdate_file_ops = bindings::liveupdate_file_ops {
    can_preserve: Some(can_preserve),
    preserve: Some(preserve),
    unpreserve: Some(unpreserve),
    freeze: None,
    unfreeze: None,
    retrieve: Some(retrieve),
    can_finish: Some(can_finish),
    finish: Some(finish),
    get_id: Some(id),
    owner: core::ptr::null_mut(),
};

/// A handler without what it need not have, which takes a retrieve for done that gave no file.
const BROKEN_OPS: bindings::liveupdate_file_ops = bindings::liveupdate_file_ops {
    retrieve: Some(retrieve_nothing),
    can_finish: None,
    get_id: None,
    ..OPS
};

/// An orchestrator, and a handler that goes with it.
struct Fixture {
    luo: Arc<Luo>,
    handler: KBox<bindings::liveupdate_file_handler>,
}

impl Fixture {
    fn new() -> Result<Self> {
        Self::with(&OPS)
    }

    fn with(ops: &'static bindings::liveupdate_file_ops) -> Result<Self> {
        let mut handler: bindings::liveupdate_file_handler = pin_init::zeroed();
        handler.ops = ops;
        for (slot, byte) in handler.compatible.iter_mut().zip(*b"test") {
            *slot = byte;
        }
        let mut fixture = Self {
            luo: luo()?,
            handler: KBox::new(handler, GFP_KERNEL)?,
        };
        fixture.register()?;
        Ok(fixture)
    }

    fn raw(&mut self) -> NonNull<bindings::liveupdate_file_handler> {
        (&mut *self.handler).into()
    }

    fn register(&mut self) -> Result {
        let raw = self.raw();
        // SAFETY: It is valid until it is dropped, which unregisters it.
        unsafe { self.luo.registry.register(raw) }
    }

    fn unregister(&mut self) {
        let raw = self.raw();
        self.luo.registry.unregister(raw);
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        self.unregister();
    }
}

fn empty() -> IncomingFiles {
    IncomingFiles {
        files: KVVec::new(),
        by_token: RBTree::new(),
        handlers: RBTree::new(),
    }
}

fn add(files: &mut IncomingFiles, compatible: &[u8], token: u64, data: u64) -> Result {
    files.add(&luo::File {
        compatible: Compatible::new(compatible).ok_or(EINVAL)?,
        data,
        token,
    })
}

/// Files with the tokens 1, 2 and so on, each with those that it needs.
fn files(needs: &[&[u8]]) -> Result<IncomingFiles> {
    let mut files = empty();
    for (number, needs) in (1..).zip(needs) {
        add(
            &mut files,
            b"test",
            number.into(),
            handed_over(number, needs),
        )?;
    }
    Ok(files)
}

/// A chain of files of which each needs the next.
fn chain(length: u8) -> Result<IncomingFiles> {
    let mut files = empty();
    for number in 1..=length {
        let next = [number + 1];
        let needs = match number < length {
            true => &next[..],
            false => &[],
        };
        add(
            &mut files,
            b"test",
            number.into(),
            handed_over(number, needs),
        )?;
    }
    Ok(files)
}

fn same(one: &File, other: &File) -> bool {
    core::ptr::eq(one, other)
}

#[kunit_tests(luo_incoming_files)]
mod cases {
    use super::*;

    #[test]
    fn a_file_is_retrieved_once() -> Result {
        let fixture = Fixture::new()?;
        let mut files = files(&[&[], &[]])?;
        assert!(files.retrieved(1).is_none());
        let file = files.retrieve(&fixture.luo, 1)?;
        assert_eq!(data(&file)?.number, 1);
        assert!(same(&*files.retrieve(&fixture.luo, 1)?, &file));
        assert!(files.retrieved(1).is_some_and(|found| same(found, &file)));
        assert!(calls_were(&[(Retrieve, 1)]));
        assert_eq!(files.retrieve(&fixture.luo, 3).err(), Some(ENOENT));
        assert!(files.retrieved(3).is_none());
        // It is in the orchestrator's care until the finish.
        assert_eq!(fixture.luo.preserved.token(1), Some(1));
        assert_eq!(fixture.luo.preserved.token(2), None);
        files.finish(&fixture.luo)?;
        assert_eq!(fixture.luo.preserved.token(1), None);
        assert!(calls_were(&[
            (CanFinish, 1),
            (CanFinish, 2),
            (FinishUnclaimed, 2),
            (FinishRetrieved, 1),
        ]));
        // There is nothing left to retrieve, or to finish.
        assert_eq!(files.retrieve(&fixture.luo, 1).err(), Some(ENOENT));
        files.finish(&fixture.luo)?;
        assert!(calls_were(&[]));
        Ok(())
    }

    #[test]
    fn a_failure_is_final() -> Result {
        let fixture = Fixture::new()?;
        let mut files = files(&[&[], &[1], &[]])?;
        fail(Retrieve, 1);
        assert_eq!(files.retrieve(&fixture.luo, 2).err(), Some(FAILURE));
        never_fail();
        for token in [1, 2, 1] {
            assert_eq!(files.retrieve(&fixture.luo, token).err(), Some(FAILURE));
            assert!(files.retrieved(token).is_none());
        }
        assert!(calls_were(&[(Retrieve, 2), (Retrieve, 1)]));
        files.finish(&fixture.luo)?;
        assert!(calls_were(&[
            (CanFinish, 1),
            (CanFinish, 2),
            (CanFinish, 3),
            (FinishUnclaimed, 3),
            (FinishFailed, 2),
            (Missed, 1),
            (FinishFailed, 1),
        ]));
        Ok(())
    }

    #[test]
    fn a_handler_has_to_give_a_file() -> Result {
        let fixture = Fixture::with(&BROKEN_OPS)?;
        let mut files = files(&[&[]])?;
        assert_eq!(files.retrieve(&fixture.luo, 1).err(), Some(EINVAL));
        files.finish(&fixture.luo)?;
        assert!(calls_were(&[(FinishFailed, 1)]));
        Ok(())
    }

    #[test]
    fn other_files_are_fetched() -> Result {
        let fixture = Fixture::new()?;
        let mut files = files(&[&[], &[1, 4], &[1], &[]])?;
        files.retrieve(&fixture.luo, 2)?;
        assert!(calls_were(&[(Retrieve, 2), (Retrieve, 1), (Retrieve, 4)]));
        files.retrieve(&fixture.luo, 3)?;
        files.retrieve(&fixture.luo, 4)?;
        assert!(calls_were(&[(Retrieve, 3)]));
        files.finish(&fixture.luo)?;
        assert!(calls_were(&[
            (CanFinish, 1),
            (CanFinish, 2),
            (CanFinish, 3),
            (CanFinish, 4),
            (FinishRetrieved, 4),
            (FinishRetrieved, 3),
            (Found, 1),
            (FinishRetrieved, 2),
            (Found, 1),
            (Missed, 4),
            (FinishRetrieved, 1),
        ]));
        Ok(())
    }

    #[test]
    fn a_file_of_no_token_cannot_be_fetched() -> Result {
        let fixture = Fixture::new()?;
        let mut files = files(&[&[9]])?;
        assert_eq!(files.retrieve(&fixture.luo, 1).err(), Some(ENOENT));
        assert_eq!(files.retrieve(&fixture.luo, 1).err(), Some(ENOENT));
        assert!(calls_were(&[(Retrieve, 1)]));
        Ok(())
    }

    #[test]
    fn a_cycle_is_an_error() -> Result {
        let fixture = Fixture::new()?;
        let mut files = files(&[&[1], &[3], &[4], &[2], &[]])?;
        assert_eq!(files.retrieve(&fixture.luo, 1).err(), Some(EDEADLK));
        assert_eq!(files.retrieve(&fixture.luo, 3).err(), Some(EDEADLK));
        for token in 1..=4 {
            assert_eq!(files.retrieve(&fixture.luo, token).err(), Some(EDEADLK));
        }
        assert!(calls_were(&[
            (Retrieve, 1),
            (Retrieve, 3),
            (Retrieve, 4),
            (Retrieve, 2)
        ]));
        files.retrieve(&fixture.luo, 5)?;
        files.finish(&fixture.luo)
    }

    #[test]
    fn a_chain_has_a_limit() -> Result {
        let fixture = Fixture::new()?;
        let longest = MAX_DEPTH as u8;
        assert!(chain(longest)?.retrieve(&fixture.luo, 1).is_ok());

        let mut files = chain(longest + 1)?;
        assert_eq!(files.retrieve(&fixture.luo, 1).err(), Some(ELOOP));
        // The one too many was not even tried.
        for token in 1..=longest {
            let result = files.retrieve(&fixture.luo, token.into());
            assert_eq!(result.err(), Some(ELOOP));
        }
        assert!(files.retrieve(&fixture.luo, (longest + 1).into()).is_ok());

        // What is there already is no link of a chain.
        let mut files = chain(2 * longest)?;
        files.retrieve(&fixture.luo, (longest + 1).into())?;
        assert!(files.retrieve(&fixture.luo, 1).is_ok());
        Ok(())
    }

    #[test]
    fn a_missing_handler_can_come_later() -> Result {
        let mut fixture = Fixture::new()?;
        let luo = fixture.luo.clone();
        let mut files = files(&[&[], &[]])?;
        add(&mut files, b"other", 3, 0)?;
        files.retrieve(&luo, 2)?;
        fixture.unregister();
        let missing = |files: &IncomingFiles, token| -> Result<usize> {
            Ok(files.missing_handlers(&luo, token)?.len())
        };
        assert_eq!(missing(&files, None)?, 2);
        // What a file will need is not known before it was tried.
        assert_eq!(missing(&files, Some(1))?, 2);
        assert_eq!(missing(&files, Some(2))?, 0);
        assert_eq!(missing(&files, Some(9))?, 0);
        assert_eq!(files.retrieve(&luo, 1).err(), Some(ENOENT));
        assert!(files.retrieve(&luo, 2).is_ok());
        assert_eq!(files.finish(&luo), Err(EBUSY));
        assert!(calls_were(&[(Retrieve, 2)]));

        fixture.register()?;
        assert_eq!(missing(&files, None)?, 1);
        assert_eq!(missing(&files, Some(1))?, 1);
        // Its absence is not held against the file.
        assert!(files.retrieve(&luo, 1).is_ok());
        assert_eq!(files.finish(&luo), Err(EBUSY));
        assert!(calls_were(&[(Retrieve, 1), (CanFinish, 1), (CanFinish, 2)]));
        Ok(())
    }

    #[test]
    fn a_refused_finish_changes_nothing() -> Result {
        let fixture = Fixture::new()?;
        let mut files = files(&[&[], &[], &[]])?;
        let file = files.retrieve(&fixture.luo, 1)?;
        fail(CanFinish, 2);
        for _ in 0..2 {
            assert_eq!(files.finish(&fixture.luo), Err(EBUSY));
        }
        assert!(calls_were(&[
            (Retrieve, 1),
            (CanFinish, 1),
            (CanFinish, 2),
            (CanFinish, 1),
            (CanFinish, 2),
        ]));
        // Only the handler of what was retrieved stays in use.
        let used = files.files.iter().map(|file| file.handler.is_some());
        assert!(used.eq([true, false, false]));
        assert!(same(&*files.retrieve(&fixture.luo, 1)?, &file));
        never_fail();
        files.retrieve(&fixture.luo, 3)?;
        files.finish(&fixture.luo)?;
        assert!(calls_were(&[
            (Retrieve, 3),
            (CanFinish, 1),
            (CanFinish, 2),
            (CanFinish, 3),
            (FinishRetrieved, 3),
            (FinishUnclaimed, 2),
            (FinishRetrieved, 1),
        ]));
        Ok(())
    }

    #[test]
    fn a_retrieved_file_is_in_one_session() -> Result {
        let fixture = Fixture::new()?;
        let luo = &fixture.luo;
        let mut first = files(&[&[]])?;
        let mut second = files(&[&[]])?;
        first.retrieve(luo, 1)?;
        // Another one that is the same by its id: it is given all the same.
        second.retrieve(luo, 1)?;
        second.finish(luo)?;
        assert_eq!(luo.preserved.token(1), Some(1));
        first.finish(luo)?;
        assert_eq!(luo.preserved.token(1), None);
        Ok(())
    }

    #[test]
    fn broken_entries_are_refused() -> Result {
        let mut files = files(&[&[]])?;
        assert_eq!(add(&mut files, b"test", 1, 0), Err(EINVAL));
        let unnamed = luo::File {
            compatible: Compatible::from_bytes([0; luo::COMPATIBLE_LEN]),
            data: 0,
            token: 2,
        };
        assert_eq!(files.add(&unnamed), Err(EINVAL));
        let endless = luo::File {
            compatible: Compatible::from_bytes([b'x'; luo::COMPATIBLE_LEN]),
            ..unnamed
        };
        assert_eq!(files.add(&endless), Err(EINVAL));
        Ok(())
    }

    /// To a handler in Rust the data is the address of its state, and these are none.
    #[test]
    fn a_state_that_was_not_handed_over_is_refused() -> Result {
        let luo = luo()?;
        // SAFETY: Static handlers are always valid.
        unsafe {
            luo.registry.register(raw(&FULL))?;
            luo.registry.register(raw(&BARE))?;
        }
        let mut files = empty();
        add(&mut files, b"luo-kunit-bare", 1, 0)?;
        add(&mut files, b"luo-kunit-bare", 2, 0x1000)?;
        add(&mut files, b"luo-kunit-bare", 3, u64::MAX)?;
        for token in 1..=2 {
            assert_eq!(files.retrieve(&luo, token).err(), Some(EINVAL));
        }
        // The finish of what failed needs no state; that of what was not tried is not called.
        files.finish(&luo)?;
        assert!(calls_were(&[(FinishFailed, 2), (FinishFailed, 1)]));
        Ok(())
    }
}
