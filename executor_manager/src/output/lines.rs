//! What the program `executor` says before it lets functions speak, taken apart into lines for the log. Pure.
//!
//! The first byte [`FUNCTIONS_WRITE`] is the executor's own: no line of its log has one. What comes
//! behind it may be of anybody.

use rfaas_protocol::assignment::FUNCTIONS_WRITE;

/// Longest line that is passed on, in bytes; the rest of it is left out. Two terminals wide and many lines of
/// messages high.
const LINE_BYTES: usize = 1000;

/// The lines, and the beginning of one whose end has not come.
#[derive(Debug, Default)]
pub(super) struct ExecutorLines {
    line: Vec<u8>,
    /// Functions may have written what comes.
    over: bool,
}

impl ExecutorLines {
    /// Takes in what was written next, and passes on whole lines. Returns what is not the executor's own.
    pub(super) fn take<'a>(&mut self, bytes: &'a [u8], mut pass: impl FnMut(&str)) -> &'a [u8] {
        if self.over {
            return bytes;
        }
        let end = bytes.iter().position(|byte| *byte == FUNCTIONS_WRITE);
        let (own, rest) = match end {
            Some(end) => (&bytes[..end], &bytes[end + 1..]),
            None => (bytes, &[][..]),
        };
        for piece in own.split_inclusive(|byte| *byte == b'\n') {
            let text = piece.strip_suffix(b"\n").unwrap_or(piece);
            let room = LINE_BYTES - self.line.len();
            self.line.extend_from_slice(&text[..text.len().min(room)]);
            if text.len() < piece.len() {
                self.end(&mut pass);
            }
        }
        if end.is_some() {
            self.end(&mut pass);
            self.over = true;
        }
        rest
    }

    /// Passes on the line that was begun; empty ones say nothing.
    pub(super) fn end(&mut self, mut pass: impl FnMut(&str)) {
        if !self.line.is_empty() {
            pass(&String::from_utf8_lossy(&self.line));
        }
        self.line.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(lines: &mut ExecutorLines, bytes: &[u8]) -> (Vec<String>, Vec<u8>) {
        let mut passed = Vec::new();
        let rest = lines.take(bytes, |line| passed.push(line.to_owned())).to_vec();
        (passed, rest)
    }

    #[test]
    fn lines_are_put_together_and_long_ones_are_cut() {
        let mut lines = ExecutorLines::default();
        assert_eq!(take(&mut lines, b"one\n\ntwo"), (vec!["one".into()], vec![]));
        assert_eq!(take(&mut lines, b" and a half\n").0, ["two and a half"]);
        assert_eq!(take(&mut lines, &[b'x'; 5 * LINE_BYTES]), (vec![], vec![]));
        assert_eq!(take(&mut lines, b"y\nz").0, ["x".repeat(LINE_BYTES)]);
        lines.end(|line| assert_eq!(line, "z", "its last line has no end"));
    }

    #[test]
    fn what_functions_write_is_never_taken_for_a_line_of_the_executor() {
        let mut lines = ExecutorLines::default();
        assert_eq!(take(&mut lines, b"one\ntw").0, ["one"]);
        let (passed, rest) = take(&mut lines, b"o\0forged\n\0forged\n");
        assert_eq!(passed, ["two"]);
        assert_eq!(rest, b"forged\n\0forged\n");
        assert_eq!(take(&mut lines, b"forged\n"), (vec![], b"forged\n".to_vec()));
        lines.end(|line| panic!("{line}"));
    }
}
