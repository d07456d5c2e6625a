//! The only door to atomics: `std`'s, or `loom`'s when its model checker runs the tests.

#[cfg(not(loom))]
pub(crate) use std::sync::atomic::{
    AtomicBool, AtomicU32, AtomicU64, Ordering, compiler_fence, fence,
};

#[cfg(loom)]
pub(crate) use loom::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};

/// `std`'s. The model has no compiler between it and the code.
#[cfg(loom)]
pub(crate) fn compiler_fence(_: Ordering) {}
