//! The memory of a ring.

use std::sync::Arc;

use crate::sync::AtomicU64;

/// Memory that a ring lies in: at least [`words_needed`](crate::words_needed) words, zero at first.
pub trait Words {
    /// Returns all words.
    fn words(&self) -> &[AtomicU64];

    /// Starts to fetch the line of `word`; only a hint.
    #[inline]
    fn prefetch(&self, _word: usize) {}
}

impl Words for Arc<Vec<AtomicU64>> {
    fn words(&self) -> &[AtomicU64] {
        self
    }
}
