// SPDX-License-Identifier: GPL-2.0

//! Does what the header of a sample says, and expects what it shows.

use crate::context::{Context, expect_eq};
use crate::module;
use crate::plan::PROGRAM_DIR;
use anyhow::{Context as _, Result, bail};
use std::io::{Read, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

/// What the prompt prints when it waits.
const WAITS: &str = "luo> ";

/// The transcripts in the header of a source file, each line by line: what stands between
/// ` ```text ` and ` ``` `.
fn transcripts(source: &str) -> Vec<Vec<&str>> {
    let mut found = Vec::new();
    let mut open = false;
    for line in source.lines().filter_map(|line| line.strip_prefix("//!")) {
        let line = line.strip_prefix(' ').unwrap_or(line);
        match (line, found.last_mut()) {
            ("```text", _) => {
                open = true;
                found.push(Vec::new());
            }
            ("```", _) => open = false,
            (line, Some(last)) if open => last.push(line),
            _ => {}
        }
    }
    found
}

/// A command, and what it is shown to print.
fn commands<'a>(transcript: &[&'a str]) -> Vec<(&'a str, Vec<&'a str>)> {
    let mut commands: Vec<(&str, Vec<&str>)> = Vec::new();
    for line in transcript {
        match commands.last_mut() {
            Some((_, output)) if !line.starts_with("# ") && !line.starts_with(WAITS) => {
                output.push(line);
            }
            _ => commands.push((line, Vec::new())),
        }
    }
    commands
}

/// Does what the transcript of this kernel in the header of `source` says.
pub fn follow(context: &mut Context<'_>, source: &str) -> Result<()> {
    let transcripts = transcripts(source);
    let transcript = transcripts
        .get(context.stage)
        .context("the header has no transcript for this kernel")?;
    let mut prompt = None;
    for (command, output) in commands(transcript) {
        let found = run(context, &mut prompt, command).with_context(|| command.to_owned())?;
        expect_eq(command, found.as_str(), &output.join("\n"))?;
    }
    // Process 1 does the reboot, and until then the program waits.
    if let Some(prompt) = prompt {
        context.keep(prompt);
    }
    Ok(())
}

/// Says what the command printed.
fn run(context: &Context<'_>, prompt: &mut Option<Prompt>, command: &str) -> Result<String> {
    if let Some(line) = command.strip_prefix(WAITS) {
        let running = prompt.as_mut().context("luo is not running")?;
        return match line {
            "kexec" => Ok(String::new()),
            "exit" => {
                running.exit()?;
                *prompt = None;
                Ok(String::new())
            }
            _ => running.ask(line),
        };
    }
    match command.split(' ').collect::<Vec<_>>()[..] {
        ["#", "insmod", file] => {
            let name = file.strip_suffix(".ko").context("a module is a .ko")?;
            module::load(&context.module(name))?;
        }
        ["#", "rmmod", name] => module::unload(name)?,
        // Process 1 has done that when it started.
        ["#", "kexec", "-s", "-l", ..] => {}
        ["#", "luo"] => *prompt = Some(Prompt::start()?),
        _ => bail!("no such command is known here"),
    }
    Ok(String::new())
}

/// The program `luo`, as somebody who types sees it.
struct Prompt {
    child: Child,
    input: ChildStdin,
    output: ChildStdout,
}

impl Prompt {
    fn start() -> Result<Self> {
        let path = format!("{PROGRAM_DIR}/luo");
        let mut child = Command::new(&path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("starting {path}"))?;
        let input = child.stdin.take().context("it has no input")?;
        let output = child.stdout.take().context("it has no output")?;
        let mut prompt = Self {
            child,
            input,
            output,
        };
        prompt.answer()?;
        Ok(prompt)
    }

    fn ask(&mut self, line: &str) -> Result<String> {
        writeln!(self.input, "{line}")?;
        self.answer()
    }

    /// What it prints until it waits again.
    fn answer(&mut self) -> Result<String> {
        let mut answer = String::new();
        let mut byte = [0];
        loop {
            if let Some(answer) = answer.strip_suffix(WAITS) {
                return Ok(answer.trim_end().to_owned());
            }
            self.output
                .read_exact(&mut byte)
                .with_context(|| format!("it ended after {answer:?}"))?;
            answer.push(char::from(byte[0]));
        }
    }

    fn exit(&mut self) -> Result<()> {
        writeln!(self.input, "exit")?;
        let status = self.child.wait()?;
        if !status.success() {
            bail!("luo: {status}");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOURCE: &str = "\
//! A sample.
//!
//! ```text
//! # insmod x.ko
//! # luo
//! luo> create demo
//! session demo is there
//! ```
//! And then:
//! ```text
//! # rmmod x
//! ```
use x;
";

    #[test]
    fn a_header_has_transcripts() {
        let found = transcripts(SOURCE);
        assert_eq!(found.len(), 2);
        assert_eq!(found[1], ["# rmmod x"]);
        assert_eq!(
            commands(&found[0]),
            [
                ("# insmod x.ko", vec![]),
                ("# luo", vec![]),
                ("luo> create demo", vec!["session demo is there"]),
            ]
        );
    }
}
