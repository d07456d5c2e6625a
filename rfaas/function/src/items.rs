//! Payloads that are lists of items, for edges that deal them out.
//!
//! ```text
//!   key u32 │ bytes u32 │ data … │ what brings the next one to a multiple of 8 bytes from the start of the payload
//! ```

use crate::end::{Denied, Failure};

/// An item.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Item<'a> {
    /// Any number.
    pub key: u32,
    /// Its bytes.
    pub data: &'a [u8],
}

/// The items of a payload, in their order. Where one cannot be read, that is the last.
#[derive(Clone, Debug)]
pub struct Items<'a> {
    rest: &'a [u8],
}

/// A payload is no list of items: so many bytes before its end, there is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotItems {
    /// Bytes from there to the end.
    pub left: usize,
}

/// Returns the items of `payload`.
///
/// ```
/// use rfaas_function::{Output, items};
///
/// let mut place = [0; 32];
/// let mut output = Output::new(&mut place);
/// output.push_item(7, b"seven")?;
/// output.push_item(8, b"eight")?;
/// for item in items(output.written()) {
///     let item = item?;
///     assert_eq!(item.data.len(), 5);
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn items(payload: &[u8]) -> Items<'_> {
    Items { rest: payload }
}

/// Returns what is in front of an item.
pub(crate) fn header(key: u32, bytes: u32) -> [u8; 8] {
    (u64::from(key) | u64::from(bytes) << 32).to_le_bytes()
}

impl<'a> Items<'a> {
    fn read(&self) -> Option<(Item<'a>, &'a [u8])> {
        let (header, rest) = self.rest.split_first_chunk()?;
        let header = u64::from_le_bytes(*header);
        let bytes = usize::try_from(header >> 32).ok()?;
        let (data, _) = rest.split_at_checked(bytes)?;
        // Behind the last one, nothing needs to stand.
        let next = bytes.next_multiple_of(8).min(rest.len());
        Some((Item { key: header as u32, data }, &rest[next..]))
    }
}

impl<'a> Iterator for Items<'a> {
    type Item = Result<Item<'a>, NotItems>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let read = self.read().ok_or(NotItems { left: self.rest.len() });
        let (item, rest) =
            read.map_or_else(|error| (Err(error), &[][..]), |(item, rest)| (Ok(item), rest));
        self.rest = rest;
        Some(item)
    }
}

/// The run fails with the code of [`Denied::Bounds`].
impl From<NotItems> for Failure {
    fn from(_: NotItems) -> Self {
        Denied::Bounds.into()
    }
}

impl std::fmt::Display for NotItems {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "the last {} bytes are no list of items", self.left)
    }
}

impl std::error::Error for NotItems {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_item_is_the_end() {
        let one = [&header(1, 3)[..], b"abc"].concat();
        let item = Item { key: 1, data: b"abc" };
        assert_eq!(items(&one).collect::<Vec<_>>(), [Ok(item)]);
        for (behind, left) in [(&b"....."[..], None), (b".....1234567", Some(7))] {
            let payload = [&one[..], behind].concat();
            let mut read = items(&payload);
            assert_eq!(read.next(), Some(Ok(item)));
            assert_eq!(read.next(), left.map(|left| Err(NotItems { left })));
            assert_eq!(read.next(), None);
        }
        for bytes in [4, u32::MAX] {
            let payload = [&header(1, bytes)[..], b"abc"].concat();
            assert_eq!(items(&payload).collect::<Vec<_>>(), [Err(NotItems { left: 11 })]);
        }
    }
}
