// SPDX-License-Identifier: GPL-2.0

//! Grafting onto a kernel tree, and undoing it.

use crate::paths;
use crate::suite::{Job, Report};
use anyhow::{Context, Result, bail, ensure};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

type Test = fn(&Tree) -> Result<()>;

const TESTS: [(&str, Test); 5] = [
    ("links-the-project", links),
    ("twice-is-once", twice),
    ("undo-restores-every-byte", undo),
    ("spares-a-tree-of-hard-links", hard_links),
    ("refuses-what-is-no-kernel", refuses),
];

/// Each on a tree of its own.
pub fn jobs() -> Vec<Job> {
    let tests = TESTS.iter().map(|(name, _)| format!("graft/{name}"));
    vec![Job::new("graft", tests.collect(), |chosen| {
        let reports = TESTS
            .iter()
            .map(|(name, test)| Report::of(format!("graft/{name}"), || test(&Tree::new()?)));
        Ok(reports
            .filter(|report| chosen.contains(&report.name))
            .collect())
    })]
}

/// What of a kernel tree is grafted onto.
const PARTS: [&str; 3] = ["Makefile", "kernel/liveupdate", "drivers/iommu/iommufd"];

struct Tree {
    _dir: TempDir,
    root: PathBuf,
}

impl Tree {
    fn new() -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("luo-graft-").tempdir()?;
        let root = dir.path().join("linux");
        let source = paths::kernel_source()?;
        for part in PARTS {
            copy(&source.join(part), &root.join(part), &|from, to| {
                fs::copy(from, to).map(drop)
            })?;
        }
        Ok(Self { _dir: dir, root })
    }

    fn graft(&self, args: &[&str]) -> Result<()> {
        graft(&self.root, args)
    }

    /// Every file and link with its contents and permissions.
    fn contents(&self) -> Result<BTreeMap<PathBuf, (u32, Vec<u8>)>> {
        let mut contents = BTreeMap::new();
        collect(&self.root, &mut contents)?;
        Ok(contents)
    }
}

fn graft(tree: &Path, args: &[&str]) -> Result<()> {
    let output = Command::new(paths::root().join("tools/graft"))
        .arg(tree)
        .args(args)
        .output()
        .context("starting tools/graft")?;
    if !output.status.success() {
        let errors = String::from_utf8_lossy(&output.stderr);
        bail!("tools/graft: {}", errors.trim());
    }
    Ok(())
}

fn copy(from: &Path, to: &Path, file: &dyn Fn(&Path, &Path) -> std::io::Result<()>) -> Result<()> {
    if !from.is_dir() {
        fs::create_dir_all(to.parent().context("a path has no parent")?)?;
        return file(from, to).with_context(|| format!("copying {}", from.display()));
    }
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        copy(&entry.path(), &to.join(entry.file_name()), file)?;
    }
    Ok(())
}

fn collect(path: &Path, contents: &mut BTreeMap<PathBuf, (u32, Vec<u8>)>) -> Result<()> {
    let meta = fs::symlink_metadata(path)?;
    let mode = meta.permissions().mode();
    if meta.is_dir() {
        for entry in fs::read_dir(path)? {
            collect(&entry?.path(), contents)?;
        }
    } else if meta.is_symlink() {
        let target = fs::read_link(path)?.into_os_string().into_encoded_bytes();
        contents.insert(path.to_owned(), (mode, target));
    } else {
        contents.insert(path.to_owned(), (mode, fs::read(path)?));
    }
    Ok(())
}

fn links(tree: &Tree) -> Result<()> {
    let before = tree.contents()?;
    tree.graft(&[])?;
    let after = tree.contents()?;
    let target = fs::read_link(tree.root.join("kernel/liveupdate/luo"))?;
    ensure!(
        target.canonicalize()? == paths::root().canonicalize()?,
        "it links {}",
        target.display()
    );
    let changed: Vec<_> = after
        .iter()
        .filter(|(path, content)| before.get(*path).is_some_and(|old| old != *content))
        .filter_map(|(path, _)| path.strip_prefix(&tree.root).ok())
        .collect();
    let allowed = [
        "kernel/liveupdate/Kconfig",
        "kernel/liveupdate/Makefile",
        "drivers/iommu/iommufd/Makefile",
    ];
    ensure!(
        !changed.is_empty() && changed.iter().all(|path| allowed.iter().any(|a| path == a)),
        "it changed {changed:?}"
    );
    let lost: Vec<_> = before
        .keys()
        .filter(|path| !after.contains_key(*path))
        .collect();
    ensure!(lost.is_empty(), "{lost:?} are gone");
    Ok(())
}

fn twice(tree: &Tree) -> Result<()> {
    tree.graft(&[])?;
    let once = tree.contents()?;
    tree.graft(&[])?;
    ensure!(
        tree.contents()? == once,
        "the second time changed something"
    );
    Ok(())
}

fn undo(tree: &Tree) -> Result<()> {
    let before = tree.contents()?;
    tree.graft(&["--undo"]).context("undoing nothing")?;
    ensure!(
        tree.contents()? == before,
        "undoing nothing changed something"
    );
    tree.graft(&[])?;
    tree.graft(&[])?;
    tree.graft(&["--undo"])?;
    ensure!(tree.contents()? == before, "something was left");
    tree.graft(&["--undo"]).context("undoing twice")?;
    ensure!(
        tree.contents()? == before,
        "undoing twice changed something"
    );
    Ok(())
}

fn hard_links(tree: &Tree) -> Result<()> {
    let before = tree.contents()?;
    let clone = tree.root.with_file_name("clone");
    copy(&tree.root, &clone, &|from, to| fs::hard_link(from, to))?;
    graft(&clone, &[])?;
    ensure!(tree.contents()? == before, "the other tree changed as well");
    Ok(())
}

fn refuses(tree: &Tree) -> Result<()> {
    let makefile = tree.root.join("Makefile");
    let text = fs::read_to_string(&makefile)?;
    fs::write(&makefile, text.replace("PATCHLEVEL = 3", "PATCHLEVEL = 2"))?;
    let before = tree.contents()?;
    ensure!(tree.graft(&[]).is_err(), "it took another version");
    ensure!(tree.contents()? == before, "it changed another version");
    let nowhere = tree.root.join("nowhere");
    ensure!(graft(&nowhere, &[]).is_err(), "it took what is not there");
    ensure!(!nowhere.exists(), "it made what was not there");
    Ok(())
}
