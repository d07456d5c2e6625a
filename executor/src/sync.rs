//! The only door to atomics in this program: the word that ends it, and the line on which a worker
//! shows what it has done.

pub(crate) use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
