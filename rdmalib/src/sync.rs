//! The only door to atomics. The model checker sees those of `rdmalib_ring`, where the lock-free
//! code is.

pub(crate) use std::sync::atomic::{
    AtomicBool, AtomicU32, AtomicU64, Ordering, compiler_fence, fence,
};
