//! Cores and memory: what a node has, what a lease holds.

/// Cores, and memory in MB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// Cores.
    pub cores: u32,
    /// Memory in MB.
    pub memory: u32,
}

impl Capacity {
    /// No cores and no memory.
    pub const NOTHING: Capacity = Capacity { cores: 0, memory: 0 };

    /// Returns whether `wanted` fits into it.
    pub fn holds(self, wanted: Capacity) -> bool {
        self.cores >= wanted.cores && self.memory >= wanted.memory
    }
}
