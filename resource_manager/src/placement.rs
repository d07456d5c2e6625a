//! Which node a lease goes to: pure, from what is free.
//!
//! First fit: the first node, in the order given (the pool's: by name), on which the whole lease
//! fits. A lease is never split over nodes.

/// A node that takes leases, and what is free on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate<'a> {
    /// Its name.
    pub node: &'a str,
    /// Free cores.
    pub cores: u32,
    /// Free memory, in MB.
    pub memory: u32,
}

/// The node for a lease of `cores` and `memory` (MB), if there is one.
pub fn first_fit<'a>(
    mut candidates: impl Iterator<Item = Candidate<'a>>,
    cores: u32,
    memory: u32,
) -> Option<&'a str> {
    candidates.find(|c| c.cores >= cores && c.memory >= memory).map(|c| c.node)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODES: [Candidate<'_>; 3] = [
        Candidate { node: "a", cores: 1, memory: 4096 },
        Candidate { node: "b", cores: 8, memory: 256 },
        Candidate { node: "c", cores: 4, memory: 1024 },
    ];

    #[test]
    fn the_first_node_with_enough_of_both_is_taken() {
        assert_eq!(first_fit(NODES.into_iter(), 1, 256), Some("a"));
        assert_eq!(first_fit(NODES.into_iter(), 2, 256), Some("b"));
        assert_eq!(first_fit(NODES.into_iter(), 2, 512), Some("c"));
    }

    #[test]
    fn a_lease_is_not_split_over_nodes() {
        assert_eq!(first_fit(NODES.into_iter(), 9, 1), None);
        assert_eq!(first_fit(NODES.into_iter(), 2, 2048), None);
        assert_eq!(first_fit(std::iter::empty(), 1, 1), None);
    }
}
