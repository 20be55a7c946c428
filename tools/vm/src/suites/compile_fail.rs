// SPDX-License-Identifier: GPL-2.0

//! What must not compile. Each case changes a good module a little, and the compiler has to say
//! what is wrong, and where.

use crate::sdk;
use crate::suite::{Job, Report};
use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::Instant;

/// The module that is as it should be.
const GOOD: &str = include_str!("../../../../tests/compile-fail/good.rs");
/// The cases; how they are written stands at its top.
const CASES: &str = include_str!("../../../../tests/compile-fail/cases.txt");

const NAME: &str = "compile-fail";

/// The good module, and all cases with one run of make.
pub fn jobs() -> Vec<Job> {
    let good = Job::single("compile-fail/good", |name| Ok(Report::of(name, good)));
    let cases = match parse(CASES) {
        Ok(cases) => {
            let tests = cases.iter().map(|case| format!("{NAME}/{}", case.name));
            Job::new(NAME, tests.collect(), move |chosen| run(&cases, chosen))
        }
        Err(error) => Job::single(format!("{NAME}/cases.txt"), move |_| Err(error)),
    };
    vec![cases, good]
}

/// It has to compile, link and be without warnings, or nothing is learned from a case.
fn good() -> Result<()> {
    let dir = folder(["good"].into_iter(), "")?;
    fs::write(dir.path().join("good.rs"), GOOD)?;
    let output = sdk::shell(dir.path(), MAKE)?;
    ensure!(output.status.success(), "{}", sdk::text(&output));
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(!errors.contains("good.rs:"), "{errors}");
    Ok(())
}

const MAKE: &str = "make LLVM=1 -C $KERNEL_BUILD M=$PWD";

/// An empty folder but for a Makefile for these modules.
fn folder<'a>(names: impl Iterator<Item = &'a str>, flags: &str) -> Result<tempfile::TempDir> {
    let dir = tempfile::Builder::new()
        .prefix("luo-compile-fail-")
        .tempdir()?;
    let objects: Vec<String> = names.map(|name| format!("{name}.o")).collect();
    let objects = objects.join(" ");
    let makefile =
        format!("obj-m := {objects}\ninclude $(LUO_SDK)/luo.mk\nsubdir-rustflags-y += {flags}\n");
    fs::write(dir.path().join("Makefile"), makefile)?;
    Ok(dir)
}

fn run(cases: &[Case], chosen: &[String]) -> Result<Vec<Report>> {
    let start = Instant::now();
    let mut reports = Vec::new();
    let mut changed = Vec::new();
    for case in cases {
        let name = format!("{NAME}/{}", case.name);
        if chosen.contains(&name) {
            match case.apply(GOOD) {
                Ok(change) => changed.push((case, change)),
                Err(error) => reports.push(Report::new(name, Err(format!("{error:#}")))),
            }
        }
    }
    let files = changed.iter().map(|(case, _)| case.file());
    let files: Vec<String> = files.collect();
    let dir = folder(files.iter().map(String::as_str), "--error-format=json")?;
    for (file, (_, change)) in files.iter().zip(&changed) {
        fs::write(dir.path().join(format!("{file}.rs")), &change.source)?;
    }
    // One after the other: long lines of what they print at a time would get mixed up.
    let script = format!("{MAKE} -k -j1 >>output 2>&1 || true");
    sdk::shell(dir.path(), &script)?;
    let text = fs::read_to_string(dir.path().join("output"))?;
    let lines = text.lines().filter(|line| line.starts_with('{'));
    let values = lines.map(|line| serde_json::from_str(line).context("what rustc printed"));
    let values: Vec<Value> = values.collect::<Result<_>>()?;
    let errors: Vec<CompilerError> = values.iter().filter_map(CompilerError::read).collect();
    let each = start.elapsed() / u32::try_from(changed.len().max(1))?;
    for (file, (case, change)) in files.iter().zip(&changed) {
        let own = errors.iter().filter(|error| error.file == *file);
        let own: Vec<&CompilerError> = own.collect();
        let result = check(case, change, &own, dir.path(), file);
        let result = result.map_err(|error| format!("{error:#}"));
        let report = Report::new(format!("{NAME}/{}", case.name), result.map(|()| each));
        reports.push(report.with_tail(|| tail(&own, &text)));
    }
    Ok(reports)
}

/// What the compiler said of a case, or what make said if it was nothing.
fn tail(own: &[&CompilerError], text: &str) -> Vec<String> {
    let rendered = own.iter().flat_map(|error| error.rendered.lines());
    let mut tail: Vec<String> = rendered.map(str::to_owned).collect();
    if tail.is_empty() {
        let lines = text.lines().filter(|line| !line.starts_with('{'));
        tail.extend(lines.map(str::to_owned));
    }
    tail
}

fn check(
    case: &Case,
    changed: &Changed,
    errors: &[&CompilerError],
    dir: &Path,
    file: &str,
) -> Result<()> {
    ensure!(
        !dir.join(format!("{file}.o")).exists(),
        "it compiles, and must not"
    );
    ensure!(!errors.is_empty(), "the compiler said nothing of it");
    for error in errors {
        ensure!(
            case.expected.iter().any(|expected| expected.is(error)),
            "another error than expected: {}",
            error.title()
        );
    }
    for expected in &case.expected {
        let found: Vec<_> = errors.iter().filter(|error| expected.is(error)).collect();
        ensure!(!found.is_empty(), "no error as expected: {expected:?}");
    }
    let places: BTreeSet<usize> = match &case.at {
        Some(at) => {
            let lines = changed.source.lines().enumerate();
            let found = lines.filter(|(_, line)| line.contains(at.as_str()));
            found.map(|(i, _)| i + 1).collect()
        }
        None => changed.lines.clone(),
    };
    let lines: BTreeSet<usize> = errors.iter().map(|error| error.line).collect();
    ensure!(
        !lines.is_disjoint(&places),
        "the errors are in line {lines:?}, expected in {places:?}"
    );
    Ok(())
}

/// A change that must not compile.
#[derive(Debug, Default)]
struct Case {
    name: String,
    changes: Vec<Change>,
    expected: Vec<Expected>,
    /// Where the error is, if not in a line that was changed.
    at: Option<String>,
}

/// Some lines that follow each other, and what stands there instead.
#[derive(Debug, Default)]
struct Change {
    old: Vec<String>,
    new: Vec<String>,
}

/// An error that the compiler has to report.
#[derive(Debug)]
struct Expected {
    code: Option<String>,
    text: String,
}

impl Expected {
    fn parse(text: &str) -> Self {
        let is_code = |word: &str| {
            word.strip_prefix('E')
                .is_some_and(|n| n.len() == 4 && n.parse::<u32>().is_ok())
        };
        match text.split_once(' ') {
            Some((code, text)) if is_code(code) => Self {
                code: Some(code.to_owned()),
                text: text.to_owned(),
            },
            _ => Self {
                code: None,
                text: text.to_owned(),
            },
        }
    }

    fn is(&self, error: &CompilerError) -> bool {
        self.code == error.code && error.message.contains(&self.text)
    }
}

fn parse(text: &str) -> Result<Vec<Case>> {
    let mut cases: Vec<Case> = Vec::new();
    for (i, line) in text.lines().enumerate() {
        let at = || format!("{NAME}/cases.txt:{}", i + 1);
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if let Some(name) = line.strip_prefix('[') {
            let name = name.strip_suffix(']').with_context(at)?;
            ensure!(
                name != "good" && cases.iter().all(|case| case.name != name),
                "{}: {name} is there already",
                at()
            );
            cases.push(Case {
                name: name.to_owned(),
                ..Case::default()
            });
            continue;
        }
        let case = cases.last_mut().with_context(at)?;
        let (kind, rest) = line.split_at_checked(2).with_context(at)?;
        let rest = rest.to_owned();
        match (kind, case.changes.last_mut()) {
            ("- ", Some(change)) if change.new.is_empty() => change.old.push(rest),
            ("- ", _) => case.changes.push(Change {
                old: vec![rest],
                new: Vec::new(),
            }),
            ("+ ", Some(change)) => change.new.push(rest),
            ("! ", _) => case.expected.push(Expected::parse(&rest)),
            ("@ ", _) => case.at = Some(rest),
            _ => bail!("{}: what is {line:?}?", at()),
        }
    }
    for case in &cases {
        ensure!(
            !case.changes.is_empty() && !case.expected.is_empty(),
            "{NAME}/cases.txt: {} lacks a change or an error",
            case.name
        );
    }
    Ok(cases)
}

/// What a case makes of the good module.
struct Changed {
    source: String,
    /// The numbers of the lines that are new.
    lines: BTreeSet<usize>,
}

impl Case {
    /// The name of its file, without extension, which is that of a crate.
    fn file(&self) -> String {
        self.name.replace('-', "_")
    }

    fn apply(&self, good: &str) -> Result<Changed> {
        let mut lines: Vec<(&str, bool)> = good.lines().map(|line| (line, false)).collect();
        for change in &self.changes {
            let old = &change.old;
            let is_it = |window: &[(&str, bool)]| {
                let same = |((line, _), old): (&(&str, bool), &String)| line.trim() == old.trim();
                window.iter().zip(old).all(same)
            };
            let found = lines.windows(old.len()).enumerate();
            let found: Vec<usize> = found
                .filter(|(_, window)| is_it(window))
                .map(|(i, _)| i)
                .collect();
            let [at] = found[..] else {
                bail!("{}: {old:?} is there {} times", self.name, found.len());
            };
            let new = change.new.iter().map(|line| (line.as_str(), true));
            lines.splice(at..at + old.len(), new);
        }
        let new = lines.iter().enumerate().filter(|(_, (_, new))| *new);
        Ok(Changed {
            lines: new.map(|(i, _)| i + 1).collect(),
            source: lines.iter().map(|(line, _)| format!("{line}\n")).collect(),
        })
    }
}

/// An error of the compiler.
#[derive(Debug)]
struct CompilerError {
    /// The file it is in, without extension.
    file: String,
    line: usize,
    code: Option<String>,
    message: String,
    rendered: String,
}

impl CompilerError {
    /// Reads a message of what rustc prints with `--error-format=json`.
    fn read(value: &Value) -> Option<Self> {
        if value["level"] != "error" {
            return None;
        }
        let spans = value["spans"].as_array()?;
        let mut span = spans.iter().find(|span| span["is_primary"] == true)?;
        // Where the outermost macro is called.
        while !span["expansion"].is_null() {
            span = &span["expansion"]["span"];
        }
        Some(Self {
            file: span["file_name"].as_str()?.strip_suffix(".rs")?.to_owned(),
            line: usize::try_from(span["line_start"].as_u64()?).ok()?,
            code: value["code"]["code"].as_str().map(str::to_owned),
            message: value["message"].as_str()?.to_owned(),
            rendered: value["rendered"].as_str().unwrap_or_default().to_owned(),
        })
    }

    fn title(&self) -> String {
        let code = self.code.as_deref().unwrap_or("no code");
        format!("{code} {} (line {})", self.message, self.line)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_case_is_of_the_good_module() {
        let cases = parse(CASES).unwrap();
        assert!(cases.len() > 50);
        for case in cases {
            let changed = case.apply(GOOD).unwrap();
            assert_ne!(changed.source, GOOD);
            if let Some(at) = case.at {
                assert!(changed.source.contains(&at), "{}: {at}", case.name);
            }
        }
    }

    #[test]
    fn a_case_changes_what_it_says() {
        let text = "[a]\n- b\n- c\n+  x\n- e\n! E0001 wrong\n! all wrong\n@ d\n";
        let cases = parse(text).unwrap();
        let changed = cases[0].apply("a\n b\n c\nd\ne\n").unwrap();
        assert_eq!(changed.source, "a\n x\nd\n");
        assert_eq!(changed.lines, BTreeSet::from([2]));
        assert_eq!(cases[0].expected[0].code.as_deref(), Some("E0001"));
        assert_eq!(cases[0].expected[1].text, "all wrong");
        assert!(cases[0].apply("b\nc\nb\nc\ne\n").is_err());
        assert!(parse("[a]\n- b\n").is_err());
        assert!(parse("[a]\n? b\n").is_err());
    }

    #[test]
    fn an_error_is_where_the_macro_is_called() {
        let line = r#"{"level":"error","message":"bad","code":{"code":"E0080"},"rendered":"",
            "spans":[{"is_primary":true,"file_name":"/core.rs","line_start":7,"expansion":
            {"span":{"file_name":"case.rs","line_start":3,"expansion":null}}}]}"#;
        let error = CompilerError::read(&serde_json::from_str(line).unwrap()).unwrap();
        assert_eq!((error.file.as_str(), error.line), ("case", 3));
    }
}
