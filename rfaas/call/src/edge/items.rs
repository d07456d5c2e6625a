//! Payloads that are lists of items: read with care, since a peer may change the bytes meanwhile, and written.
//!
//! ```text
//!   | ItemHeader (8) | bytes of the item, and as many as bring the next header to a multiple of 8 | ItemHeader | …
//! ```

use rdmalib::Region;
use rfaas_protocol::edge::ItemHeader;
use zerocopy::{FromBytes, IntoBytes};

/// Bytes of a header.
pub(super) const HEADER: u32 = size_of::<ItemHeader>() as u32;

/// An item of a payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Item {
    pub(super) key: u32,
    /// Where its bytes are, from the start of the payload.
    pub(super) at: u32,
    pub(super) bytes: u32,
}

/// The items of a payload.
#[derive(Debug)]
pub(super) struct Items<'a> {
    region: &'a Region,
    start: usize,
    bytes: u32,
    next: u32,
}

impl<'a> Items<'a> {
    /// Reads those of the payload of `bytes` bytes at `start`, which is all in `region`.
    pub(super) fn of((region, start): (&'a Region, usize), bytes: u32) -> Self {
        Items { region, start, bytes, next: 0 }
    }

    /// Reads those from the header at `next` on.
    pub(super) fn from(place: (&'a Region, usize), bytes: u32, next: u32) -> Self {
        Items { next, ..Items::of(place, bytes) }
    }
}

impl Iterator for Items<'_> {
    /// An error: what follows is no item.
    type Item = Result<Item, NotItems>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.next >= self.bytes {
            return None;
        }
        let item = self.read();
        self.next = match item {
            Ok(item) => after(item.at, item.bytes).unwrap_or(self.bytes),
            Err(NotItems) => self.bytes,
        };
        Some(item)
    }
}

/// A payload is no list of items.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NotItems;

impl Items<'_> {
    /// Reads the header at `next`, once.
    fn read(&self) -> Result<Item, NotItems> {
        let at = self.next.checked_add(HEADER).filter(|at| *at <= self.bytes).ok_or(NotItems)?;
        let mut header = [0; HEADER as usize];
        let place = self.start.checked_add(self.next as usize).ok_or(NotItems)?;
        self.region.read(place, &mut header).map_err(|_| NotItems)?;
        let header = ItemHeader::read_from_bytes(&header).map_err(|_| NotItems)?;
        let (key, bytes) = (header.key.get(), header.bytes.get());
        match bytes <= self.bytes - at {
            true => Ok(Item { key, at, bytes }),
            false => Err(NotItems),
        }
    }
}

/// Returns where the header behind an item is.
#[inline]
pub(super) fn after(at: u32, bytes: u32) -> Option<u32> {
    at.checked_add(bytes)?.checked_next_multiple_of(HEADER)
}

/// Writes the header of an item in front of `at`, which is at least [`HEADER`] from the start.
pub(super) fn write_header((region, start): (&Region, usize), item: Item) -> rdmalib::Result<()> {
    let header = ItemHeader { key: item.key.into(), bytes: item.bytes.into() };
    region.write(start + (item.at - HEADER) as usize, header.as_bytes())
}

/// Bytes that are copied at a time.
const PIECE: usize = 4096;

/// Copies `bytes` bytes from one place to another one.
pub(super) fn copy(
    from: (&Region, usize),
    to: (&Region, usize),
    bytes: u32,
) -> rdmalib::Result<()> {
    let mut piece = [0; PIECE];
    let mut done = 0;
    while done < bytes as usize {
        let part = &mut piece[..PIECE.min(bytes as usize - done)];
        from.0.read(from.1 + done, part)?;
        to.0.write(to.1 + done, part)?;
        done += part.len();
    }
    Ok(())
}
