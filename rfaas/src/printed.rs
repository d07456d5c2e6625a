//! What functions have written on standard output and error, as their node has kept it.
//!
//! Elsewhere: asking for it (`executor_manager`).

use std::fmt;

use rfaas_protocol::Malformed;
use rfaas_protocol::allocation::OutputStream;

/// What functions have written on standard output and error, as far as their node has kept it:
/// [`Executor::printed`](crate::Executor::printed). `Display` is all of it as text.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Printed {
    /// Neighbours are of different streams, or bytes between them were dropped.
    pieces: Vec<(OutputStream, Vec<u8>)>,
    dropped: u64,
    /// Bytes that were written, dropped ones too.
    end: u64,
}

impl Printed {
    /// Returns the bytes of both streams, piece by piece, in the order in which the node has read them. What was
    /// written to one stream is in its order; what two streams, or two threads, wrote at the same time need not be.
    pub fn pieces(&self) -> impl Iterator<Item = (OutputStream, &[u8])> {
        self.pieces.iter().map(|(stream, bytes)| (*stream, &bytes[..]))
    }

    /// Returns what was written to standard output.
    pub fn stdout(&self) -> Vec<u8> {
        self.of(OutputStream::Stdout)
    }

    /// Returns what was written to standard error.
    pub fn stderr(&self) -> Vec<u8> {
        self.of(OutputStream::Stderr)
    }

    fn of(&self, wanted: OutputStream) -> Vec<u8> {
        let pieces = self.pieces().filter(|(stream, _)| *stream == wanted);
        pieces.flat_map(|(_, bytes)| bytes).copied().collect()
    }

    /// Returns how many bytes, of both streams, were written and are not here: too much was written.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    /// Returns whether nothing is here.
    pub fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// Returns how many bytes were written before the next ones, as far as is known.
    pub(crate) fn end(&self) -> u64 {
        self.end
    }

    /// Adds the next part, which `at` bytes come before.
    pub(crate) fn add(
        &mut self,
        at: u64,
        stream: OutputStream,
        bytes: &[u8],
    ) -> Result<(), Malformed> {
        let malformed = Malformed::Field("position of output");
        let dropped = at.checked_sub(self.end).ok_or(malformed.clone())?;
        self.end = at.checked_add(bytes.len() as u64).ok_or(malformed)?;
        self.dropped += dropped; // its sum is at most `at`
        match self.pieces.last_mut().filter(|(last, _)| *last == stream && dropped == 0) {
            _ if bytes.is_empty() => {}
            Some((_, last)) => last.extend_from_slice(bytes),
            None => self.pieces.push((stream, bytes.to_vec())),
        }
        Ok(())
    }
}

/// All of it as text; what is no UTF-8 is replaced. It may have control characters.
impl fmt::Display for Printed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes: Vec<u8> = self.pieces().flat_map(|(_, bytes)| bytes).copied().collect();
        f.write_str(&String::from_utf8_lossy(&bytes))
    }
}

impl fmt::Debug for Printed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes: usize = self.pieces.iter().map(|(_, bytes)| bytes.len()).sum();
        write!(f, "Printed({bytes} bytes, {} dropped)", self.dropped)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use OutputStream::{Stderr, Stdout};

    #[test]
    fn parts_are_put_together_and_gaps_are_counted() {
        let mut printed = Printed::default();
        printed.add(10, Stdout, b"gr\xc3").unwrap();
        printed.add(13, Stdout, b"\xbc\xc3\x9fe").unwrap();
        printed.add(17, Stderr, b"oh\n").unwrap();
        printed.add(25, Stderr, b"\xff").unwrap();
        printed.add(26, Stdout, b"").unwrap();
        assert_eq!(printed.to_string(), "grüßeoh\n\u{fffd}");
        assert_eq!(printed.stdout(), "grüße".as_bytes());
        assert_eq!(printed.stderr(), b"oh\n\xff");
        assert_eq!((printed.dropped(), printed.end()), (15, 26));
        assert_eq!(printed.pieces().count(), 3);
        assert_eq!(format!("{printed:?}"), "Printed(11 bytes, 15 dropped)");
    }

    #[test]
    fn a_node_that_contradicts_itself_is_malformed() {
        let mut printed = Printed::default();
        printed.add(0, Stdout, b"abc").unwrap();
        assert!(printed.add(2, Stdout, b"c").is_err());
        assert!(printed.add(u64::MAX, Stdout, b"c").is_err());
    }
}
