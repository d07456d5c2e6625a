//! What is an executor's own.

/// What one executor may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    /// Memory of its lease, in bytes.
    pub memory: u64,
    /// What the executor itself needs besides, in bytes: stacks, buffers, the library.
    pub base: u64,
}
