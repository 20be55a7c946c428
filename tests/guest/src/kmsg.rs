// SPDX-License-Identifier: GPL-2.0

//! The kernel log, which process 1 prints to and in which it looks for the kernel's own messages.
//!
//! A line that goes through the log reaches the serial console whole and in order with what the
//! kernel says, which a line written to the console itself does not.

use crate::protocol::{Event, MAX_LINE, PREFIX};
use anyhow::{Context, Result};
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::OpenOptionsExt;

const PATH: &str = "/dev/kmsg";

/// Prints lines; there is nobody to tell if that fails.
pub fn say(text: impl AsRef<str>) {
    say_as("", text.as_ref());
}

/// Prints lines, in as many pieces as they need, each with what says of which kind it is.
fn say_as(kind: &str, text: &str) {
    let Ok(mut log) = File::options().write(true).open(PATH) else {
        return;
    };
    for line in text.lines() {
        for piece in pieces(line, MAX_LINE - kind.len()) {
            let _ = log.write_all(format!("<6>{PREFIX}{kind}{piece}\n").as_bytes());
        }
    }
}

/// A line in pieces of at most so many bytes, at least one.
fn pieces(line: &str, most: usize) -> Vec<&str> {
    let mut pieces = Vec::new();
    let mut rest = line;
    loop {
        let mut cut = rest.len().min(most);
        while !rest.is_char_boundary(cut) {
            cut -= 1;
        }
        let (piece, tail) = rest.split_at(cut);
        pieces.push(piece);
        if tail.is_empty() {
            return pieces;
        }
        rest = tail;
    }
}

/// Prints a remark.
pub fn remark(text: impl AsRef<str>) {
    say_as("# ", text.as_ref());
}

/// Prints one line of a longer text.
pub fn text(kind: &str, line: impl AsRef<str>) {
    let line = line.as_ref();
    // An empty line counts as well.
    say_as(
        &format!("|{kind} "),
        if line.is_empty() { "\n" } else { line },
    );
}

/// Prints an event, which has to fit into one line.
pub fn event(event: &Event) {
    match serde_json::to_string(event) {
        Ok(json) if json.len() + 2 <= MAX_LINE => say(format!("= {json}")),
        Ok(json) => say(format!("not ok 0 - an event # too long to print: {json}")),
        Err(error) => say(format!("not ok 0 - an event # not printed: {error}")),
    }
}

/// The kernel's messages from some moment on.
pub struct Reader {
    log: File,
}

impl Reader {
    /// Starts with what is logged after this call.
    pub fn from_now() -> Result<Self> {
        let reader = Self::from_boot()?;
        rustix::fs::seek(&reader.log, rustix::fs::SeekFrom::End(0))
            .context("seeking in the kernel log")?;
        Ok(reader)
    }

    /// Starts with the first message that is still there.
    pub fn from_boot() -> Result<Self> {
        let log = File::options()
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(PATH)
            .context("opening the kernel log")?;
        Ok(Self { log })
    }

    /// The kernel's messages so far that were not read before, without process 1's own.
    pub fn lines(&mut self) -> Result<Vec<String>> {
        let mut lines = Vec::new();
        let mut record = [0; 8192];
        loop {
            match self.log.read(&mut record) {
                Ok(0) => return Ok(lines),
                Ok(len) => {
                    let record = String::from_utf8_lossy(&record[..len]);
                    // `level,sequence,time,flags;text`, then lines that begin with a space.
                    let text = record.split_once(';').map_or("", |(_, text)| text);
                    let text = text.lines().next().unwrap_or("");
                    if !text.starts_with(PREFIX) {
                        lines.push(text.to_owned());
                    }
                }
                // Messages were overwritten before they were read; the next read goes on after.
                Err(error) if error.raw_os_error() == Some(libc::EPIPE) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(lines),
                Err(error) => return Err(error).context("reading the kernel log"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_line_is_cut_between_characters() {
        assert_eq!(pieces("", 4), [""]);
        assert_eq!(pieces("abcd", 4), ["abcd"]);
        assert_eq!(pieces("abcdefghi", 4), ["abcd", "efgh", "i"]);
        assert_eq!(pieces("abcédef", 4), ["abc", "éde", "f"]);
    }
}
