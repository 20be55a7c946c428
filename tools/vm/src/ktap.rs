// SPDX-License-Identifier: GPL-2.0

//! Test results as the kernel prints them: KTAP, and the TAP that it grew out of.
//!
//! One parser serves KUnit, the kernel's own selftests and the scenarios. Lines that are no result
//! are skipped, since other messages come in between.

use regex::Regex;
use std::sync::LazyLock;

/// A result, with those of its subtests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// The test's name.
    pub name: String,
    /// What came of it.
    pub result: Verdict,
    /// What it had to say: the text after `#`, and the remarks above it.
    pub remarks: Vec<String>,
    /// Its subtests.
    pub children: Vec<Node>,
}

/// What came of a test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// `ok`.
    Ok,
    /// `not ok`.
    NotOk,
    /// `ok`, but with the directive SKIP.
    Skipped,
}

/// Reads results line by line.
#[derive(Default)]
pub struct Parser {
    // For each depth the results that wait for that of the test which they belong to.
    open: Vec<Vec<Node>>,
    // For each depth the number of tests that were announced.
    plans: Vec<Option<usize>>,
    // For each depth whether tests of it were begun to be reported.
    subtests: Vec<bool>,
    remarks: Vec<String>,
}

static RESULT: LazyLock<Regex> =
    LazyLock::new(|| pattern(r"^( *)(not )?ok (\d+)(?: -)?(?: (.*))?$"));
static PLAN: LazyLock<Regex> = LazyLock::new(|| pattern(r"^( *)1\.\.(\d+)( |$)"));

fn pattern(text: &str) -> Regex {
    // The patterns are fixed, and the tests below try each.
    Regex::new(text).unwrap_or_else(|error| unreachable!("{error}"))
}

impl Parser {
    /// Takes one line; gives the result of an outermost test when it is complete.
    pub fn line(&mut self, line: &str) -> Option<Node> {
        if let Some(found) = PLAN.captures(line) {
            let depth = found[1].len() / 4;
            self.plans.resize(self.plans.len().max(depth + 1), None);
            self.plans[depth] = found[2].parse().ok();
            return None;
        }
        let Some(found) = RESULT.captures(line) else {
            let text = line.trim_start();
            if text.starts_with("# Subtest") {
                let depth = (line.len() - text.len()) / 4;
                let known = self.subtests.len().max(depth + 1);
                self.subtests.resize(known, false);
                self.subtests[depth] = true;
            }
            if let Some(remark) = text.strip_prefix("# ") {
                self.remarks.push(remark.to_owned());
            }
            return None;
        };
        let depth = found[1].len() / 4;
        let text = found.get(4).map_or("", |text| text.as_str());
        let (name, comment) = match text.split_once(" # ").or_else(|| text.split_once("# ")) {
            Some((name, comment)) => (name.trim(), Some(comment.trim())),
            None => (text.trim(), None),
        };
        let skipped = comment.is_some_and(|text| text.to_ascii_uppercase().starts_with("SKIP"));
        let mut remarks = std::mem::take(&mut self.remarks);
        remarks.extend(comment.map(str::to_owned));
        let mut result = match (found.get(2), skipped) {
            (Some(_), _) => Verdict::NotOk,
            (None, true) => Verdict::Skipped,
            (None, false) => Verdict::Ok,
        };
        let children = match self.open.get_mut(depth + 1) {
            Some(children) => std::mem::take(children),
            None => Vec::new(),
        };
        let planned = self.plans.get_mut(depth + 1).and_then(Option::take);
        let begun = self.subtests.get_mut(depth + 1).is_some_and(std::mem::take);
        let wrong = match (planned, children.len()) {
            (None, 0) | (Some(0), 0) if begun => Some("it has no tests".to_owned()),
            (None, 0) => None,
            (None, ran) => Some(format!("how many tests there are was not said, {ran} ran")),
            (Some(planned), ran) if planned == ran => None,
            (Some(planned), ran) => Some(format!("{planned} tests were announced, {ran} ran")),
        };
        if let (Some(wrong), Verdict::Ok) = (wrong, result) {
            remarks.push(wrong);
            result = Verdict::NotOk;
        }
        let node = Node {
            name: name.to_owned(),
            result,
            remarks,
            children,
        };
        if depth == 0 {
            return Some(node);
        }
        if self.open.len() <= depth {
            self.open.resize(depth + 1, Vec::new());
        }
        self.open[depth].push(node);
        None
    }

    /// How many outermost tests were announced, if that was said.
    pub fn announced(&self) -> Option<usize> {
        self.plans.first().copied().flatten()
    }
}

impl Node {
    /// The innermost tests with their whole names, this one's own if it has no subtests.
    ///
    /// A test that failed though all of its subtests passed counts as a test of its own.
    pub fn leaves(&self) -> Vec<(String, &Node)> {
        let mut leaves = Vec::new();
        self.collect("", &mut leaves);
        leaves
    }

    fn collect<'a>(&'a self, path: &str, leaves: &mut Vec<(String, &'a Node)>) {
        let name = if path.is_empty() {
            self.name.clone()
        } else {
            format!("{path}.{}", self.name)
        };
        let before = leaves.len();
        for child in &self.children {
            child.collect(&name, leaves);
        }
        let explained = leaves[before..]
            .iter()
            .any(|(_, leaf)| leaf.result == Verdict::NotOk);
        if self.children.is_empty() || (self.result == Verdict::NotOk && !explained) {
            leaves.push((name, self));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Vec<Node> {
        let mut parser = Parser::default();
        text.lines().filter_map(|line| parser.line(line)).collect()
    }

    fn leaves(text: &str) -> Vec<(String, Verdict)> {
        parse(text)
            .iter()
            .flat_map(Node::leaves)
            .map(|(name, node)| (name, node.result))
            .collect()
    }

    #[test]
    fn kunit_prints_suites_with_tests_in_them() {
        let text = "\
KTAP version 1
1..1
    KTAP version 1
    # Subtest: luo_block
    # module: luo_core
    1..2
    ok 1 grow
some message in between
    # shrink: EXPECTATION FAILED at x.rs:7
    not ok 2 shrink
# luo_block: pass:1 fail:1 skip:0 total:2
not ok 1 luo_block";
        assert_eq!(
            leaves(text),
            [
                ("luo_block.grow".to_owned(), Verdict::Ok),
                ("luo_block.shrink".to_owned(), Verdict::NotOk),
            ]
        );
        let nodes = parse(text);
        let why = &nodes[0].children[1].remarks;
        assert!(why.iter().any(|line| line.contains("EXPECTATION FAILED")));
    }

    #[test]
    fn selftests_print_tap() {
        let text = "\
TAP version 13
1..2
# Starting 2 tests from 1 test cases.
ok 1 liveupdate_device.basic_open_close
ok 2 liveupdate_device.exclusive_open # SKIP no device";
        assert_eq!(
            leaves(text),
            [
                ("liveupdate_device.basic_open_close".to_owned(), Verdict::Ok),
                (
                    "liveupdate_device.exclusive_open".to_owned(),
                    Verdict::Skipped
                ),
            ]
        );
    }

    #[test]
    fn a_suite_that_lost_a_test_failed() {
        let text = "    1..2\n    ok 1 a\nok 1 suite";
        assert_eq!(
            leaves(text),
            [
                ("suite.a".to_owned(), Verdict::Ok),
                ("suite".to_owned(), Verdict::NotOk),
            ]
        );
    }

    #[test]
    fn a_suite_says_how_many_tests_it_has() {
        let text = "    # Subtest: suite\n    ok 1 a\nok 1 suite";
        assert_eq!(parse(text)[0].result, Verdict::NotOk);
    }

    #[test]
    fn a_suite_without_tests_failed() {
        for plan in ["", "    1..0\n"] {
            let text = format!("    # Subtest: suite\n{plan}ok 1 suite\nok 2 other");
            let results: Vec<Verdict> = parse(&text).iter().map(|node| node.result).collect();
            assert_eq!(results, [Verdict::NotOk, Verdict::Ok]);
        }
    }

    #[test]
    fn scenarios_say_why_they_failed() {
        let nodes = parse("not ok 3 - memfd-holes stage 1 # byte 7 is 0x00, expected 0x01");
        assert_eq!(nodes[0].name, "memfd-holes stage 1");
        assert_eq!(nodes[0].result, Verdict::NotOk);
        assert_eq!(nodes[0].remarks, ["byte 7 is 0x00, expected 0x01"]);
    }

    #[test]
    fn what_is_no_result_is_skipped() {
        assert!(parse("ok computer\nnot okay 1\nokay 1 x\n[    1.0] ok 1 x").is_empty());
    }

    #[test]
    fn the_number_of_announced_tests_is_kept() {
        let mut parser = Parser::default();
        parser.line("1..14");
        assert_eq!(parser.announced(), Some(14));
    }
}
