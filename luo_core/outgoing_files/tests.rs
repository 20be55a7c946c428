// SPDX-License-Identifier: GPL-2.0

//! The life of files before the kexec, with every callback failing at every step.

use super::*;
use crate::testing::{
    calls_were,
    fail,
    luo,
    never_fail,
    raw,
    raw_flb,
    Call::*,
    TestFile,
    Told,
    BARE,
    FAILURE,
    FIRST,
    FULL,
    SECOND, //
};
use kernel::sync::{
    atomic::Relaxed,
    Arc, //
};

/// An orchestrator with both handlers.
fn luo_with_handlers() -> Result<Arc<Luo>> {
    let luo = luo()?;
    // SAFETY: Static handlers are always valid.
    unsafe {
        luo.registry.register(raw(&BARE))?;
        luo.registry.register(raw(&FULL))?;
    }
    Ok(luo)
}

/// As above; files of the full one depend on both FLBs, those of the bare one on the second.
fn luo_with_flbs() -> Result<Arc<Luo>> {
    let luo = luo_with_handlers()?;
    // SAFETY: Static FLBs are always valid.
    unsafe {
        luo.registry.register_flb(raw(&FULL), raw_flb(&FIRST))?;
        luo.registry.register_flb(raw(&FULL), raw_flb(&SECOND))?;
        luo.registry.register_flb(raw(&BARE), raw_flb(&SECOND))?;
    }
    Ok(luo)
}

impl OutgoingFiles {
    fn preserve_open(&mut self, luo: &Luo, token: u64, file: &ARef<File>) -> Result {
        self.preserve_file(luo, token, || Ok(file.clone()))
    }

    /// Preserves a new file by its number.
    fn preserve_new(&mut self, luo: &Luo, data: &Arc<TestFile>) -> Result {
        self.preserve_open(luo, data.number.into(), &data.open()?)
    }
}

fn privates(data: &TestFile) -> i32 {
    data.privates.load(Relaxed)
}

#[kunit_tests(luo_outgoing_files)]
mod cases {
    use super::*;

    #[test]
    fn files_go_in_the_opposite_order() -> Result {
        let luo = luo_with_handlers()?;
        let mut files = OutgoingFiles::new();
        let first = TestFile::new(1)?;
        let second = TestFile::bare(2)?;
        let third = TestFile::new(3)?;
        for data in [&first, &second, &third] {
            files.preserve_new(&luo, data)?;
        }
        assert!(calls_were(&[(Preserve, 1), (Preserve, 2), (Preserve, 3)]));
        assert_eq!((privates(&first), privates(&third)), (1, 1));
        assert_eq!(files.freeze(&luo)?.count, 3);
        assert!(calls_were(&[(Freeze, 1), (Freeze, 3)]));
        files.unfreeze();
        assert!(calls_were(&[(Unfreeze, 3), (Unfreeze, 1)]));
        files.unpreserve_all();
        assert!(calls_were(&[
            (Unpreserve, 3),
            (Unpreserve, 2),
            (Unpreserve, 1)
        ]));
        assert_eq!((privates(&first), privates(&third)), (0, 0));
        assert_eq!(files.blocks.phys(), 0);
        assert_eq!(files.freeze(&luo)?.count, 0);
        // The end of the session does it too, for what came since.
        files.preserve_new(&luo, &first)?;
        drop(files);
        assert!(calls_were(&[(Preserve, 1), (Unpreserve, 1)]));
        assert_eq!(privates(&first), 0);
        Ok(())
    }

    #[test]
    fn a_file_that_cannot_be_preserved_leaves_nothing() -> Result {
        let luo = luo_with_handlers()?;
        let mut files = OutgoingFiles::new();
        let data = TestFile::new(1)?;
        fail(Preserve, 1);
        for _ in 0..3 {
            assert_eq!(files.preserve_new(&luo, &data), Err(FAILURE));
            assert!(calls_were(&[(Preserve, 1)]));
            assert_eq!(privates(&data), 0);
            assert_eq!(files.blocks.phys(), 0);
            assert_eq!(luo.preserved.token(1), None);
        }
        assert_eq!(files.freeze(&luo)?.count, 0);
        files.unpreserve_all();
        assert!(calls_were(&[]));

        // Neither its token nor its id is taken, and another file is none the worse.
        never_fail();
        let other = TestFile::bare(1)?;
        files.preserve_new(&luo, &other)?;
        let mut elsewhere = OutgoingFiles::new();
        elsewhere.preserve_new(&luo, &data)?;
        fail(Preserve, 2);
        let failing = TestFile::new(2)?;
        assert_eq!(files.preserve_new(&luo, &failing), Err(FAILURE));
        assert!(calls_were(&[(Preserve, 1), (Preserve, 1), (Preserve, 2)]));
        assert_eq!(files.freeze(&luo)?.count, 1);
        assert!(files.blocks.phys() != 0);
        Ok(())
    }

    #[test]
    fn what_is_refused_never_gets_to_the_handler() -> Result {
        let luo = luo_with_handlers()?;
        let mut files = OutgoingFiles::new();
        let mut elsewhere = OutgoingFiles::new();
        let data = TestFile::new(1)?;
        let file = data.open()?;
        files.preserve_open(&luo, 1, &file)?;
        assert!(calls_were(&[(Preserve, 1)]));
        // A token that is taken, before the file is even looked for.
        assert_eq!(files.preserve_file(&luo, 1, || Err(EBADF)), Err(EEXIST));
        // No file.
        assert_eq!(files.preserve_file(&luo, 2, || Err(EBADF)), Err(EBADF));
        // The same file, and another description of it, in both sessions.
        for file in [&file, &data.open()?] {
            assert_eq!(files.preserve_open(&luo, 2, file), Err(EBUSY));
            assert_eq!(elsewhere.preserve_open(&luo, 2, file), Err(EBUSY));
        }
        assert_eq!(elsewhere.blocks.phys(), 0);
        // No handler.
        luo.registry.unregister(raw(&BARE));
        let bare = TestFile::bare(2)?;
        assert_eq!(files.preserve_new(&luo, &bare), Err(ENOENT));
        assert!(calls_were(&[]));
        files.unpreserve_all();
        elsewhere.preserve_open(&luo, 2, &file)?;
        Ok(())
    }

    #[test]
    fn a_failing_freeze_takes_back_those_before_it() -> Result {
        let luo = luo_with_handlers()?;
        let mut files = OutgoingFiles::new();
        let all = [TestFile::new(1)?, TestFile::new(2)?, TestFile::new(3)?];
        for data in &all {
            files.preserve_new(&luo, data)?;
        }
        assert!(calls_were(&[(Preserve, 1), (Preserve, 2), (Preserve, 3)]));

        fail(Freeze, 1);
        assert_eq!(files.freeze(&luo).err(), Some(FAILURE));
        assert!(calls_were(&[(Freeze, 1)]));
        fail(Freeze, 2);
        assert_eq!(files.freeze(&luo).err(), Some(FAILURE));
        assert!(calls_were(&[(Freeze, 1), (Freeze, 2), (Unfreeze, 1)]));
        fail(Freeze, 3);
        assert_eq!(files.freeze(&luo).err(), Some(FAILURE));
        assert!(calls_were(&[
            (Freeze, 1),
            (Freeze, 2),
            (Freeze, 3),
            (Unfreeze, 2),
            (Unfreeze, 1),
        ]));
        never_fail();
        assert!(all.iter().all(|data| privates(data) == 1));
        // It may work the next time, and then leave.
        assert_eq!(files.freeze(&luo)?.count, 3);
        files.unfreeze();
        drop(files);
        assert!(all.iter().all(|data| privates(data) == 0));
        assert!(calls_were(&[
            (Freeze, 1),
            (Freeze, 2),
            (Freeze, 3),
            (Unfreeze, 3),
            (Unfreeze, 2),
            (Unfreeze, 1),
            (Unpreserve, 3),
            (Unpreserve, 2),
            (Unpreserve, 1),
        ]));
        Ok(())
    }

    #[test]
    fn a_token_is_that_of_any_description_in_the_session() -> Result {
        let luo = luo_with_handlers()?;
        let mut files = OutgoingFiles::new();
        let mut elsewhere = OutgoingFiles::new();
        let other = TestFile::new(7)?;

        let told = |files: &mut OutgoingFiles, number: u32, other: &Arc<TestFile>| -> Result<_> {
            let data = TestFile::new(number)?;
            data.other.populate(other.open()?);
            files.preserve_new(&luo, &data)?;
            Ok((data.told(), data))
        };
        // Nowhere preserved, then here, then elsewhere only.
        assert_eq!(told(&mut files, 1, &other)?.0, Told::NoToken);
        files.preserve_open(&luo, 70, &other.open()?)?;
        assert_eq!(told(&mut files, 2, &other)?.0, Told::Token(70));
        assert_eq!(told(&mut elsewhere, 3, &other)?.0, Told::NoToken);
        // A token of the same number means another file here.
        let bare = TestFile::bare(8)?;
        elsewhere.preserve_open(&luo, 70, &bare.open()?)?;
        assert_eq!(told(&mut elsewhere, 4, &other)?.0, Told::NoToken);

        // Itself: not yet in preserve, but in freeze.
        let itself = TestFile::new(5)?;
        let (first, data) = told(&mut files, 5, &itself)?;
        assert_eq!(first, Told::NoToken);
        files.freeze(&luo)?;
        assert_eq!(data.told(), Told::Token(5));
        files.unfreeze();
        assert_eq!(data.told(), Told::Never);

        // What was given up has none any more.
        let (_, asking) = told(&mut elsewhere, 6, &bare)?;
        elsewhere.freeze(&luo)?;
        // By the address of the file, as the handler has no id: another description is another.
        assert_eq!(asking.told(), Told::NoToken);
        files.unpreserve_all();
        assert_eq!(told(&mut files, 9, &other)?.0, Told::NoToken);
        // No handler for such a file.
        luo.registry.unregister(raw(&BARE));
        assert_eq!(told(&mut files, 10, &bare)?.0, Told::NoToken);
        Ok(())
    }

    #[test]
    fn flbs_come_before_and_go_after_the_file() -> Result {
        let luo = luo_with_flbs()?;
        let mut files = OutgoingFiles::new();
        files.preserve_new(&luo, &TestFile::new(1)?)?;
        files.preserve_new(&luo, &TestFile::bare(2)?)?;
        assert!(calls_were(&[
            (FlbPreserve, 1),
            (FlbPreserve, 2),
            (Preserve, 1),
            (Preserve, 2),
        ]));
        let counts = |index: usize| -> Option<u64> {
            let flbs = luo.registry.all_flbs();
            Some(flbs.get(index)?.as_ref()?.entry()?.count)
        };
        assert_eq!((counts(0), counts(1)), (Some(1), Some(2)));
        files.freeze(&luo)?;
        files.unfreeze();
        assert!(calls_were(&[(Freeze, 1), (Unfreeze, 1)]));
        files.unpreserve_all();
        assert!(calls_were(&[
            (Unpreserve, 2),
            (Unpreserve, 1),
            (FlbUnpreserve, 2),
            (FlbUnpreserve, 1),
        ]));
        assert_eq!((counts(0), counts(1)), (None, None));
        Ok(())
    }

    #[test]
    fn flbs_are_taken_back_if_the_file_cannot_be_preserved() -> Result {
        let luo = luo_with_flbs()?;
        let mut files = OutgoingFiles::new();
        let data = TestFile::new(1)?;
        fail(Preserve, 1);
        assert_eq!(files.preserve_new(&luo, &data), Err(FAILURE));
        assert!(calls_were(&[
            (FlbPreserve, 1),
            (FlbPreserve, 2),
            (Preserve, 1),
            (FlbUnpreserve, 2),
            (FlbUnpreserve, 1),
        ]));
        fail(FlbPreserve, 2);
        assert_eq!(files.preserve_new(&luo, &data), Err(FAILURE));
        assert!(calls_were(&[
            (FlbPreserve, 1),
            (FlbPreserve, 2),
            (FlbUnpreserve, 1),
        ]));
        fail(FlbPreserve, 1);
        assert_eq!(files.preserve_new(&luo, &data), Err(FAILURE));
        assert!(calls_were(&[(FlbPreserve, 1)]));
        assert_eq!(luo.preserved.token(1), None);

        // Those that another file needs stay.
        never_fail();
        files.preserve_new(&luo, &TestFile::bare(2)?)?;
        fail(Preserve, 1);
        assert_eq!(files.preserve_new(&luo, &data), Err(FAILURE));
        assert!(calls_were(&[
            (FlbPreserve, 2),
            (Preserve, 2),
            (FlbPreserve, 1),
            (Preserve, 1),
            (FlbUnpreserve, 1),
        ]));
        // As they do if the freeze fails.
        never_fail();
        files.preserve_new(&luo, &data)?;
        fail(Freeze, 1);
        assert_eq!(files.freeze(&luo).err(), Some(FAILURE));
        assert!(calls_were(&[(FlbPreserve, 1), (Preserve, 1), (Freeze, 1),]));
        never_fail();
        drop(files);
        assert!(calls_were(&[
            (Unpreserve, 1),
            (FlbUnpreserve, 1),
            (Unpreserve, 2),
            (FlbUnpreserve, 2),
        ]));
        Ok(())
    }

    #[test]
    fn a_user_of_an_flb_outlives_the_files_and_is_not_handed_over() -> Result {
        let luo = luo_with_flbs()?;
        let first = luo.registry.flb(raw_flb(&FIRST))?;
        assert_eq!(first.get().err(), Some(ENOENT));
        let mut files = OutgoingFiles::new();
        files.preserve_new(&luo, &TestFile::new(1)?)?;
        assert!(first.get().is_ok());
        assert!(first.get().is_ok());
        assert_eq!(first.entry().map(|entry| entry.count), Some(1));
        assert!(calls_were(&[
            (FlbPreserve, 1),
            (FlbPreserve, 2),
            (Preserve, 1),
        ]));
        files.unpreserve_all();
        assert!(calls_were(&[(Unpreserve, 1), (FlbUnpreserve, 2)]));
        assert!(first.entry().is_none());
        first.put();
        assert!(calls_were(&[]));
        first.put();
        assert!(calls_were(&[(FlbUnpreserve, 1)]));
        assert_eq!(first.get().err(), Some(ENOENT));
        Ok(())
    }

    #[test]
    fn all_files_are_counted() -> Result {
        let luo = luo_with_handlers()?;
        let mut files = OutgoingFiles::new();
        // More than one block.
        let count = 100;
        for number in 1..=count {
            let data = match number % 2 {
                0 => TestFile::bare(number)?,
                _ => TestFile::new(number)?,
            };
            files.preserve_new(&luo, &data)?;
        }
        let written = files.freeze(&luo)?;
        assert_eq!(written.count, u64::from(count));
        assert!(written.phys != 0);
        let distinct = files.files.iter().all(|file| file.saved.data != 0);
        assert!(distinct);
        files.unfreeze();
        Ok(())
    }
}
