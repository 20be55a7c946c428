// SPDX-License-Identifier: GPL-2.0

//! One line of a serial console.

use luo_guest::protocol::PREFIX;
use std::time::Instant;

/// A line, taken apart.
#[derive(Clone, Debug)]
pub struct Line {
    /// When it arrived here.
    pub at: Instant,
    /// The kernel's own time in seconds since its start, if the line has one.
    pub seconds: Option<f64>,
    /// All of it.
    pub raw: String,
    /// Where what follows the kernel's time begins.
    body: usize,
}

impl Line {
    /// Takes a line apart.
    pub fn new(raw: &str) -> Self {
        let mut seconds = None;
        let mut body = 0;
        // `[   12.345678] text`; with CONFIG_PRINTK_CALLER the caller stands in brackets as well.
        if let Some((time, _)) = raw.strip_prefix('[').and_then(|rest| rest.split_once(']'))
            && let Ok(time) = time.trim().parse::<f64>()
        {
            seconds = Some(time);
            body = raw.find(']').map_or(0, |at| at + 1);
            if raw[body..].starts_with(' ') {
                body += 1;
            }
        }
        Self {
            at: Instant::now(),
            seconds,
            raw: raw.to_owned(),
            body,
        }
    }

    /// The line without the kernel's time.
    pub fn body(&self) -> &str {
        &self.raw[self.body..]
    }

    /// What process 1 said, if it is its line.
    pub fn guest(&self) -> Option<&str> {
        self.body().strip_prefix(PREFIX)
    }
}

/// Bytes of a console as text: control sequences and carriage returns are dropped.
pub fn clean(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    console::strip_ansi_codes(&text)
        .chars()
        .filter(|&c| c == '\t' || !c.is_control())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_time_is_taken_off_and_indentation_is_kept() {
        let line = Line::new("[    1.234567]     ok 1 name");
        assert_eq!(line.seconds, Some(1.234567));
        assert_eq!(line.body(), "    ok 1 name");
    }

    #[test]
    fn a_line_without_time_is_taken_as_it_is() {
        let line = Line::new("SeaBIOS [x]");
        assert_eq!(line.seconds, None);
        assert_eq!(line.body(), "SeaBIOS [x]");
        assert_eq!(Line::new("[bracket] text").body(), "[bracket] text");
    }

    #[test]
    fn process_1s_lines_are_told_from_the_kernels() {
        assert_eq!(Line::new("[ 1.0] luo-guest: # a").guest(), Some("# a"));
        assert_eq!(Line::new("[ 1.0] luo: # a").guest(), None);
    }

    #[test]
    fn control_sequences_are_dropped() {
        assert_eq!(clean(b"\x1b[2J\x1bcbooting\r"), "booting");
    }
}
