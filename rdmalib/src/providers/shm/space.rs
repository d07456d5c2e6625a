//! Layout of a domain's file: where segments lie, and which parts of the open ones are free. Pure:
//! `arena` keeps the file and its mappings in step.
//!
//! ```text
//!   | key table | segment 0 (1 MiB) | segment 1 (2 MiB) | segment 2 (4 MiB) | …
//! ```
//! A segment is opened, that is mapped as a whole, when first needed, and stays where it is. So
//! memory that was handed out never moves, an address leads to its place without a search, and few
//! segments reach far. A segment that is too small for a request stays closed until something fits.
//! Ranges of different segments are never joined, so each range is mapped in one piece.

/// Regions of one domain; the low bits of a key. More than any program of ours registers.
pub(super) const KEYS: usize = 1 << KEY_INDEX_BITS;
pub(super) const KEY_INDEX_BITS: u32 = 13;
/// Generations of one slot: the high bits of a key, without 0.
pub(super) const GENERATIONS: u32 = (1 << (32 - KEY_INDEX_BITS)) - 1;
pub(super) const WORDS_PER_KEY: usize = 4;
pub(super) const PAGE: u64 = 4096;
/// First byte behind the key table.
pub(super) const DATA_START: u64 = (KEYS * WORDS_PER_KEY * 8) as u64;

/// Size of segment 0.
const FIRST_BYTES: u64 = 1 << 20;
/// The last one ends just below 2^63, where offsets in a file end (`lseek(2)`).
pub(super) const SEGMENTS: usize = 42;

/// Where segment `number` starts in the file, and its size.
pub(super) fn segment(number: usize) -> (u64, u64) {
    let bytes = FIRST_BYTES << number;
    (DATA_START + bytes - FIRST_BYTES, bytes)
}

/// The segment that holds `offset`, and how far in; `None` if no segment can.
#[inline]
pub(super) fn place(offset: u64) -> Option<(usize, u64)> {
    let from_start = offset.checked_sub(DATA_START)?;
    let number = (from_start / FIRST_BYTES + 1).ilog2() as usize;
    (number < SEGMENTS).then(|| (number, offset - segment(number).0))
}

/// The free parts of the open segments.
#[derive(Debug, Default)]
pub(super) struct Space {
    /// Sorted, never adjacent within a segment: (offset, bytes).
    free: Vec<(u64, u64)>,
    /// A bit for each segment.
    open: u64,
}

impl Space {
    /// The first closed segment that holds `bytes`.
    pub(super) fn closed_segment(&self, bytes: u64) -> Option<usize> {
        (0..SEGMENTS).find(|number| self.open >> number & 1 == 0 && segment(*number).1 >= bytes)
    }

    /// Segment `number`, which was closed, is mapped.
    pub(super) fn open(&mut self, number: usize) {
        self.open |= 1 << number;
        let (start, bytes) = segment(number);
        self.give(start, bytes);
    }

    /// Takes `bytes` out: first fit.
    pub(super) fn take(&mut self, bytes: u64) -> Option<u64> {
        let at = self.free.iter().position(|(_, size)| *size >= bytes)?;
        let (offset, size) = self.free[at];
        if size == bytes {
            self.free.remove(at);
        } else {
            self.free[at] = (offset + bytes, size - bytes);
        }
        Some(offset)
    }

    /// Gives back what was taken.
    pub(super) fn give(&mut self, offset: u64, bytes: u64) {
        let at = self.free.partition_point(|(start, _)| *start < offset);
        self.free.insert(at, (offset, bytes));
        self.join(at);
        if let Some(before) = at.checked_sub(1) {
            self.join(before);
        }
    }

    /// Joins the free range at `at` with the next one, if they are adjacent and of one segment.
    fn join(&mut self, at: usize) {
        let Some(&(next, next_bytes)) = self.free.get(at + 1) else { return };
        let (offset, bytes) = self.free[at];
        let same = |a, b| place(a).map(|(number, _)| number) == place(b).map(|(number, _)| number);
        if offset + bytes == next && same(offset, next) {
            self.free[at].1 += next_bytes;
            self.free.remove(at + 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn segments_lie_side_by_side_and_end_where_offsets_do() {
        let mut end = DATA_START;
        for number in 0..SEGMENTS {
            let (start, bytes) = segment(number);
            assert_eq!(start, end);
            assert_eq!(place(start), Some((number, 0)));
            assert_eq!(place(start + bytes - 1), Some((number, bytes - 1)));
            end = start + bytes;
        }
        assert!(i64::try_from(end).is_ok());
        assert_eq!(place(DATA_START - 1), None);
        assert_eq!(place(end), None);
        assert_eq!(place(u64::MAX), None);
    }

    #[test]
    fn a_segment_that_is_too_small_waits_for_something_that_fits() {
        let mut space = Space::default();
        assert_eq!(space.closed_segment(5 * FIRST_BYTES), Some(3));
        space.open(3);
        assert_eq!(space.take(5 * FIRST_BYTES), Some(segment(3).0));
        assert_eq!(space.take(4 * FIRST_BYTES), None);
        assert_eq!(space.closed_segment(4 * FIRST_BYTES), Some(2));
        assert_eq!(space.closed_segment(1), Some(0));
        assert_eq!(space.closed_segment(u64::MAX), None);
    }

    proptest! {
        #[test]
        fn free_ranges_stay_sorted_apart_and_complete(
            sizes in proptest::collection::vec(1u64..1 << 19, 1..60),
        ) {
            let mut space = Space::default();
            space.open(0);
            space.open(1);
            let whole = space.free.clone();
            prop_assert_eq!(whole.len(), 2, "ranges of two segments were joined");
            let mut held = Vec::new();
            for size in sizes {
                if size % 3 == 0 && !held.is_empty() {
                    let (offset, bytes) = held.swap_remove(size as usize % held.len());
                    space.give(offset, bytes);
                } else if let Some(offset) = space.take(size) {
                    prop_assert_eq!(
                        place(offset).map(|(n, _)| n), place(offset + size - 1).map(|(n, _)| n));
                    held.push((offset, size));
                }
                for pair in space.free.windows(2) {
                    let end = pair[0].0 + pair[0].1;
                    prop_assert!(end < pair[1].0 || end == segment(1).0);
                }
            }
            held.into_iter().for_each(|(offset, bytes)| space.give(offset, bytes));
            prop_assert_eq!(space.free, whole);
        }
    }
}
