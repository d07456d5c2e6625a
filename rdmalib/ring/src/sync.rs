//! The only door to atomics: `std`'s, or `loom`'s when its model checker runs the tests.

#[cfg(not(loom))]
pub use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, compiler_fence, fence};

#[cfg(loom)]
pub use loom::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};

/// Does nothing: the model has no compiler between it and the code.
#[cfg(loom)]
pub fn compiler_fence(_: Ordering) {}
