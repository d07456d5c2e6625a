//! A place that a payload is written to.

use std::io;

use crate::end::{Denied, Failure};
use crate::items::header;

/// Where a payload goes: bytes are added behind those that are written, up to the room that there is.
#[derive(Debug)]
pub struct Output<'a> {
    place: &'a mut [u8],
    written: usize,
}

/// There is no room for what is to be written. Nothing of it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full {
    /// Bytes that are to be added.
    pub needed: usize,
    /// Bytes that can be.
    pub left: usize,
}

impl<'a> Output<'a> {
    /// Makes one that writes to `place`: for tests.
    pub fn new(place: &'a mut [u8]) -> Self {
        Output { place, written: 0 }
    }

    /// Returns how many bytes can be added.
    pub fn left(&self) -> usize {
        self.place.len() - self.written
    }

    /// Returns what is written.
    pub fn written(&self) -> &[u8] {
        &self.place[..self.written]
    }

    /// Adds `bytes`.
    pub fn extend(&mut self, bytes: &[u8]) -> Result<(), Full> {
        self.reserve(bytes.len())?.copy_from_slice(bytes);
        Ok(())
    }

    /// Adds `bytes` bytes, and returns them to be written: they are what was there before.
    pub fn reserve(&mut self, bytes: usize) -> Result<&mut [u8], Full> {
        if bytes > self.left() {
            return Err(Full { needed: bytes, left: self.left() });
        }
        let start = self.written;
        self.written += bytes;
        Ok(&mut self.place[start..self.written])
    }

    /// Adds an item, for an edge that takes items: what is written is to be nothing but items.
    pub fn push_item(&mut self, key: u32, data: &[u8]) -> Result<(), Full> {
        self.reserve_item(key, data.len())?.copy_from_slice(data);
        Ok(())
    }

    /// Adds an item of `bytes` bytes, and returns these to be written.
    pub fn reserve_item(&mut self, key: u32, bytes: usize) -> Result<&mut [u8], Full> {
        let full = Full { needed: bytes.saturating_add(8), left: self.left() };
        let whole = full.needed.checked_next_multiple_of(8).ok_or(full)?;
        let size = u32::try_from(bytes).map_err(|_| full)?;
        let (start, rest) = self.reserve(whole)?.split_at_mut(8);
        start.copy_from_slice(&header(key, size));
        let (data, behind) = rest.split_at_mut(bytes);
        behind.fill(0);
        Ok(data)
    }

    /// Forgets what is written behind the first `bytes` bytes.
    pub fn truncate(&mut self, bytes: usize) {
        self.written = self.written.min(bytes);
    }
}

/// Fails with [`WriteZero`](io::ErrorKind::WriteZero) when it is full.
impl io::Write for Output<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let fits = bytes.len().min(self.left());
        self.extend(&bytes[..fits]).map_err(io::Error::other)?;
        Ok(fits)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The run fails with the code of [`Denied::Bounds`].
impl From<Full> for Failure {
    fn from(_: Full) -> Self {
        Denied::Bounds.into()
    }
}

impl std::fmt::Display for Full {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes do not fit into the {} that are left", self.needed, self.left)
    }
}

impl std::error::Error for Full {}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // a test that cannot go on fails

    use std::io::Write;

    use super::*;
    use crate::items;

    #[test]
    fn what_does_not_fit_is_not_written() {
        let mut place = [7; 10];
        let mut output = Output::new(&mut place);
        output.extend(b"abc").unwrap();
        assert_eq!(output.extend(b"12345678"), Err(Full { needed: 8, left: 7 }));
        assert_eq!(output.push_item(1, b""), Err(Full { needed: 8, left: 7 }));
        assert_eq!(output.reserve_item(1, usize::MAX).unwrap_err().left, 7);
        let error = output.write_all(b"12345678").unwrap_err();
        assert_eq!(Failure::from(error).code(), -4);
        assert_eq!((output.written(), output.left()), (&b"abc1234567"[..], 0));
        output.truncate(2);
        assert_eq!(output.written(), b"ab");
    }

    #[test]
    fn items_that_are_written_are_read() {
        let mut place = [7; 64];
        let mut output = Output::new(&mut place);
        for item in [&b""[..], b"1", b"12345678", b"123456789"] {
            output.push_item(item.len() as u32, item).unwrap();
        }
        assert_eq!(output.written().len(), 64);
        assert_eq!(output.written()[17..24], [0; 7]);
        for item in items(output.written()) {
            let item = item.unwrap();
            assert_eq!(item.data, &b"123456789"[..item.key as usize]);
        }
        assert_eq!(items(output.written()).count(), 4);
    }
}
