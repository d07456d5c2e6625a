//! One stream of an executor, taken apart into lines. Pure but for reading.

use std::io::{self, Read};
use std::os::fd::AsFd;

/// Longest line that is passed on, in bytes; the rest of it is left out. Two terminals wide and many lines of
/// messages high.
pub(super) const LINE_BYTES: usize = 1000;

/// Where a stream is read from, without waiting.
pub(super) trait Readable: Read + AsFd + Send {}

impl<S: Read + AsFd + Send> Readable for S {}

/// What an executor writes to one of its standard descriptors.
pub(super) struct Stream {
    name: &'static str,
    pub(super) from: Box<dyn Readable>,
    /// The beginning of a line whose end has not come.
    line: Vec<u8>,
    /// More of it came than is passed on.
    cut: bool,
}

/// A line, as far as it is passed on.
pub(super) struct Line<'a> {
    pub(super) stream: &'static str,
    pub(super) bytes: &'a [u8],
    pub(super) cut: bool,
}

impl Stream {
    pub(super) fn new(name: &'static str, from: impl Readable + 'static) -> Self {
        Stream { name, from: Box::new(from), line: Vec::new(), cut: false }
    }

    /// Reads once; returns how much there was, or `None` when nobody can write any more.
    pub(super) fn read(&mut self, buffer: &mut [u8], pass: impl FnMut(Line<'_>)) -> Option<usize> {
        match self.from.read(buffer) {
            Ok(0) => {
                self.end(pass);
                None
            }
            Ok(read) => {
                self.take(&buffer[..read], pass);
                Some(read)
            }
            Err(error) => match error.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Some(0),
                _ => None, // nobody will write to it again
            },
        }
    }

    fn take(&mut self, bytes: &[u8], mut pass: impl FnMut(Line<'_>)) {
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            let text = piece.strip_suffix(b"\n").unwrap_or(piece);
            let room = LINE_BYTES - self.line.len();
            self.line.extend_from_slice(&text[..text.len().min(room)]);
            self.cut |= text.len() > room;
            if text.len() < piece.len() {
                self.end(&mut pass);
            }
        }
    }

    /// Passes on the line that was begun; empty ones say nothing.
    pub(super) fn end(&mut self, mut pass: impl FnMut(Line<'_>)) {
        if !self.line.is_empty() {
            pass(Line { stream: self.name, bytes: &self.line, cut: self.cut });
        }
        self.line.clear();
        self.cut = false;
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    use super::super::CHUNK;
    use super::*;

    fn read(stream: &mut Stream) -> (Option<usize>, Vec<String>) {
        let mut lines = Vec::new();
        let read = stream.read(&mut [0; CHUNK], |line| {
            let cut = if line.cut { "…" } else { "" };
            lines.push(format!("{}{cut}", String::from_utf8_lossy(line.bytes)));
        });
        (read, lines)
    }

    #[test]
    fn lines_are_put_together_and_long_ones_are_cut() {
        let (from, mut to) = UnixStream::pair().unwrap();
        from.set_nonblocking(true).unwrap();
        let mut stream = Stream::new("stdout", from);
        assert_eq!(read(&mut stream), (Some(0), vec![]));
        to.write_all(b"one\n\ntwo").unwrap();
        assert_eq!(read(&mut stream), (Some(8), vec!["one".into()]));
        to.write_all(b" and a half\n").unwrap();
        assert_eq!(read(&mut stream).1, ["two and a half"]);
        to.write_all(&[b'x'; CHUNK]).unwrap();
        assert_eq!(read(&mut stream), (Some(CHUNK), vec![]));
        assert!(stream.line.len() <= LINE_BYTES);
        to.write_all(b"y\nz").unwrap();
        assert_eq!(read(&mut stream).1, [format!("{}…", "x".repeat(LINE_BYTES))]);
        drop(to);
        assert_eq!(read(&mut stream), (None, vec!["z".into()]), "its last line has no end");
    }
}
