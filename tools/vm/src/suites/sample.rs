// SPDX-License-Identifier: GPL-2.0

//! The samples, and the page that teaches how to write one.

use crate::suite::{Job, Report, boot, last};
use crate::vm::Config;
use crate::{guest, paths, sdk};
use anyhow::{Context, Result, ensure};
use regex::Regex;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// The page.
const PAGE: &str = "Documentation/writing-a-handler.rst";
/// What it builds.
const COUNTER: &str = "samples/counter";
/// The module.
const MODULE: &str = "luo_sample_counter.ko";
/// How long the smallest handler may be, in lines of code.
const LINES: usize = 60;

/// Somebody follows the samples' headers, with the modules of the kernel and with one that was
/// built outside its tree.
pub fn jobs() -> Vec<Job> {
    vec![
        headers(
            "sample-header/rust",
            &["counter-as-its-header-says", "shared-as-its-header-says"],
        ),
        Job::single(
            "sample-out-of-tree/rust/counter-as-its-header-says",
            out_of_tree,
        ),
        host("sample/counter-lines", counter_lines),
        host("sample/no-unsafe", no_unsafe),
        host("docs/writing-a-handler", follow_page),
    ]
}

fn host(name: &str, test: fn() -> Result<()>) -> Job {
    Job::single(name, move |name| Ok(Report::of(name, test)))
}

/// A machine with the program `luo`.
fn config() -> Result<Config> {
    let mut config = Config::new(["rust"; 2]);
    config.programs = vec![("luo".to_owned(), guest::prompt()?)];
    Ok(config)
}

fn headers(name: &'static str, scenarios: &[&str]) -> Job {
    let tests = scenarios
        .iter()
        .map(|scenario| format!("{name}/{scenario}"));
    Job::new(name, tests.collect(), move |tests| {
        let mut config = config()?;
        config.scenarios = tests.iter().map(|test| last(test).to_owned()).collect();
        let outcome = boot(name, &config)?;
        let report = |test: &String| {
            Report::new(test, outcome.scenario_alone(last(test), config.chain.len()))
                .with_tail(|| outcome.tail_of(last(test)))
        };
        Ok(tests.iter().map(report).collect())
    })
}

/// The folder of the sample, copied to where nothing else is, gives a module that works.
fn out_of_tree(name: &str) -> Result<Report> {
    let dir = tempfile::Builder::new().prefix("luo-sample-").tempdir()?;
    sdk::copy(&paths::root().join(COUNTER), dir.path())?;
    sdk::build(dir.path())?;
    let mut config = config()?;
    config.scenarios = vec![last(name).to_owned()];
    config
        .programs
        .push((MODULE.to_owned(), dir.path().join(MODULE)));
    config.args.insert(MODULE.to_owned(), MODULE.to_owned());
    let outcome = boot(name, &config)?;
    let mut result = outcome.scenario_alone(last(name), config.chain.len());
    let loaded = outcome.lines.iter();
    let loaded = loaded.filter(|line| line.body().contains("loading out-of-tree module"));
    if result.is_ok() && loaded.count() != config.chain.len() {
        result = Err("it was not the module from outside that was loaded".to_owned());
    }
    Ok(Report::new(name, result.map(|_| outcome.time)).with_tail(|| outcome.tail()))
}

/// The source without comments and blank lines.
fn code(source: &str) -> Vec<&str> {
    let lines = source.lines();
    let lines = lines.filter(|line| !line.trim().is_empty() && !line.trim().starts_with("//"));
    lines.collect()
}

/// The lines of the item that starts with `first`, with its attributes, to its closing brace.
fn item<'a>(code: &[&'a str], first: &str) -> Result<Vec<&'a str>> {
    let start = code.iter().position(|line| line.starts_with(first));
    let start = start.with_context(|| format!("there is no {first:?}"))?;
    let attributes = code[..start].iter().rev();
    let attributes = attributes.take_while(|line| line.starts_with("#["));
    let rest = &code[start..];
    let end = match rest[0].ends_with(';') {
        true => 0,
        false => rest
            .iter()
            .position(|line| *line == "}")
            .with_context(|| format!("{first:?} has no end"))?,
    };
    Ok(code[start - attributes.count()..=start + end].to_vec())
}

/// The state and the handler; the device would be there without them.
fn counter_lines() -> Result<()> {
    let source = fs::read_to_string(paths::root().join(COUNTER).join("counter.rs"))?;
    let code = code(&source);
    let mut handler = Vec::new();
    for first in [
        "struct CounterState ",
        "impl CounterState ",
        "struct CounterHandler;",
        "impl LiveupdateFileHandler for CounterHandler ",
    ] {
        handler.extend(item(&code, first)?);
    }
    let len = handler.len();
    ensure!(
        len <= LINES,
        "the handler has {len} lines of code, more than {LINES}"
    );
    Ok(())
}

/// Nor anything that would allow it.
fn no_unsafe() -> Result<()> {
    let word = Regex::new(r"\bunsafe")?;
    let mut sources = 0;
    for sample in fs::read_dir(paths::root().join("samples"))? {
        for entry in fs::read_dir(sample?.path())? {
            let path = entry?.path();
            let text = fs::read_to_string(&path)?;
            sources += usize::from(path.extension().is_some_and(|extension| extension == "rs"));
            if let Some(at) = text.lines().position(|line| word.is_match(line)) {
                anyhow::bail!("{}:{}: unsafe", path.display(), at + 1);
            }
        }
    }
    ensure!(sources >= 2, "only {sources} sources were found");
    Ok(())
}

/// The page's blocks with a caption, joined by what the caption is: the name of a file.
fn files(page: &str) -> BTreeMap<String, String> {
    let mut files: BTreeMap<String, String> = BTreeMap::new();
    for (caption, text) in blocks(page) {
        if let Some(name) = caption {
            let file = files.entry(name.to_owned()).or_default();
            if !file.is_empty() {
                file.push('\n');
            }
            file.push_str(&text);
        }
    }
    files
}

/// The page's blocks of code: the caption, if there is one, and the text.
fn blocks(page: &str) -> Vec<(Option<&str>, String)> {
    let mut blocks = Vec::new();
    let mut lines = page.lines().peekable();
    while let Some(line) = lines.next() {
        let code = line.starts_with(".. code-block:: ");
        if !code && (line.starts_with(".. ") || !line.ends_with("::")) {
            continue;
        }
        let mut caption = None;
        while let Some(option) = lines.next_if(|line| line.starts_with("   :")) {
            caption = caption.or(option.strip_prefix("   :caption: "));
        }
        while lines.next_if(|line| line.is_empty()).is_some() {}
        // The options of a directive say how far it is indented; the first line does of others.
        let indent = match lines.peek() {
            Some(line) if !code => line.len() - line.trim_start().len(),
            _ => 3,
        };
        let mut text = String::new();
        while let Some(line) = lines.next_if(|line| line.is_empty() || line.starts_with("   ")) {
            text += line.get(indent..).unwrap_or("");
            text.push('\n');
        }
        blocks.push((caption, format!("{}\n", text.trim_matches('\n'))));
    }
    blocks
}

/// Whoever does word by word what the page says, in an empty folder, gets the sample.
fn follow_page() -> Result<()> {
    let page = fs::read_to_string(paths::root().join(PAGE)).context(PAGE)?;
    let dir = tempfile::Builder::new().prefix("luo-page-").tempdir()?;
    let sample = paths::root().join(COUNTER);
    let files = files(&page);
    let names: Vec<_> = files.keys().map(String::as_str).collect();
    ensure!(
        names == ["Makefile", "counter.rs"],
        "the page has these files: {names:?}"
    );
    for (name, text) in &files {
        let expected = fs::read_to_string(sample.join(name)).context(COUNTER)?;
        let differs = text.lines().zip(expected.lines()).position(|(a, b)| a != b);
        ensure!(
            *text == expected,
            "{PAGE} and {COUNTER}/{name} differ in line {}",
            1 + differs.unwrap_or(text.lines().count().min(expected.lines().count()))
        );
        fs::write(dir.path().join(name), text)?;
    }
    let commands = blocks(&page);
    let commands = commands
        .iter()
        .filter(|(caption, text)| caption.is_none() && text.starts_with("make LLVM="));
    let commands: Vec<_> = commands.map(|(_, text)| text.as_str()).collect();
    let [command] = commands[..] else {
        anyhow::bail!("the page builds it {} times", commands.len());
    };
    let output = sdk::shell(dir.path(), command)?;
    ensure!(output.status.success(), "{command}{}", sdk::text(&output));
    ensure!(
        dir.path().join(MODULE).is_file(),
        "there is no {MODULE} after {command}"
    );
    alias(&page, dir.path())
}

/// What the page shows of `modinfo` is so.
fn alias(page: &str, dir: &Path) -> Result<()> {
    let shown = blocks(page).into_iter().find_map(|(_, text)| {
        let (command, output) = text.strip_prefix("$ modinfo")?.split_once('\n')?;
        Some((format!("modinfo{command}"), output.to_owned()))
    });
    let (command, expected) = shown.context("the page does not show the alias")?;
    let output = sdk::text(&sdk::shell(dir, &format!("PATH=$PATH:/sbin {command}"))?);
    ensure!(
        output == expected,
        "{command}: {output:?}, and the page says {expected:?}"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOURCE: &str = "\
// A comment.
struct Other {
    a: u8,
}

#[derive(A)]
#[repr(C)]
/// Documented.
struct One {
    a: u8, // too

}
struct Two;
";

    #[test]
    fn an_item_ends_with_its_brace() {
        let code = code(SOURCE);
        let one = [
            "#[derive(A)]",
            "#[repr(C)]",
            "struct One {",
            "    a: u8, // too",
            "}",
        ];
        assert_eq!(item(&code, "struct One ").unwrap(), one);
        assert_eq!(item(&code, "struct Two;").unwrap(), ["struct Two;"]);
        assert!(item(&code, "struct Three").is_err());
    }

    const PAGE: &str = "\
Title
=====

.. code-block:: rust
   :caption: a.rs

       fn a() {

           b();
       }

Text::

    $ modinfo x
    y

::

    make LLVM=1

.. code-block:: rust
   :caption: a.rs

   fn b() {}
";

    #[test]
    fn blocks_of_one_caption_are_one_file() {
        let files = files(PAGE);
        assert_eq!(files.len(), 1);
        assert_eq!(
            files["a.rs"],
            "    fn a() {\n\n        b();\n    }\n\nfn b() {}\n"
        );
        let found = blocks(PAGE);
        assert_eq!(found[1], (None, "$ modinfo x\ny\n".to_owned()));
        assert_eq!(found[2], (None, "make LLVM=1\n".to_owned()));
    }
}
