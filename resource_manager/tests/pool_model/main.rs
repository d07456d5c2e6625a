//! The pool under random events, with executor managers that lose, repeat, reorder, ignore and
//! forget, and with a resource manager that is killed at any moment: its invariants hold after each
//! event, and in the end everything is free and billed once.
//!
//! `PROPTEST_CASES=100000 cargo test -p resource_manager --test pool_model` is the long run.

#![allow(clippy::unwrap_used)] // a test's way to fail, in functions that are no tests too

mod lifetimes;
mod managers;
mod store;
mod world;

use proptest::prelude::*;
use world::World;

const NODES: usize = 3;

#[derive(Clone, Debug)]
enum Op {
    Add {
        node: usize,
        cores: u32,
        memory: u32,
    },
    Remove {
        node: usize,
        grace_ms: u64,
    },
    Connect {
        node: usize,
        obeys: bool,
    },
    Disconnect {
        node: usize,
    },
    /// An executor manager is killed and started again.
    Restart {
        node: usize,
    },
    /// An executor manager is to stop.
    Stop {
        node: usize,
    },
    Request {
        cores: u32,
        memory: u32,
        timeout_ms: u64,
        max_nodes: u32,
        while_connected: bool,
    },
    /// A client asks for workers beside those of its leases.
    Grow {
        leases: [usize; 2],
        workers: u32,
        each: (u32, u32),
        timeout_ms: u64,
    },
    Renew {
        lease: usize,
        timeout_ms: u64,
    },
    /// A client of a user could not use its lease, or says so.
    Replace {
        lease: usize,
        origin: usize,
    },
    /// A client shows its token, perhaps that of a renewal.
    Claim {
        lease: usize,
    },
    Work {
        lease: usize,
    },
    /// A lease ends at its executor manager.
    End {
        lease: usize,
    },
    Delete {
        lease: usize,
    },
    ClientGone {
        lease: usize,
    },
    /// A report arrives, not always the first; perhaps it will again.
    Deliver {
        node: usize,
        which: usize,
        again: bool,
    },
    /// A report is lost.
    Lose {
        node: usize,
        which: usize,
    },
    /// A node tells of a lease that was not granted, or not so.
    Forge {
        node: usize,
        lease: usize,
        lie: Lie,
    },
    Pass {
        ms: u64,
    },
    /// What was not urgent is made durable.
    Flush,
    /// The resource manager is killed during the next event, before or after its changes were made durable,
    /// and started again.
    Crash {
        committed: bool,
        down_ms: u64,
    },
}

/// What is not as it was granted.
#[derive(Clone, Copy, Debug)]
enum Lie {
    Node,
    Id { beyond: u64 },
    Cores,
    Memory,
    Client,
    Instance,
    Expiry,
}

fn lie() -> impl Strategy<Value = Lie> {
    prop_oneof![
        Just(Lie::Node),
        (1..1_000_u64).prop_map(|beyond| Lie::Id { beyond }),
        Just(Lie::Cores),
        Just(Lie::Memory),
        Just(Lie::Client),
        Just(Lie::Instance),
        Just(Lie::Expiry),
    ]
}

fn op() -> impl Strategy<Value = Op> {
    let node = || 0..NODES;
    let lease = || 0..40_usize;
    prop_oneof![
        2 => (node(), 1..8_u32, 1..8_u32)
            .prop_map(|(node, cores, memory)| Op::Add { node, cores, memory }),
        1 => (node(), 0..30_000_u64).prop_map(|(node, grace_ms)| Op::Remove { node, grace_ms }),
        6 => (node(), any::<bool>()).prop_map(|(node, obeys)| Op::Connect { node, obeys }),
        1 => node().prop_map(|node| Op::Disconnect { node }),
        1 => node().prop_map(|node| Op::Restart { node }),
        1 => node().prop_map(|node| Op::Stop { node }),
        8 => (1..9_u32, 1..9_u32, 1..60_000_u64, 1..4_u32, any::<bool>()).prop_map(
            |(cores, memory, timeout_ms, max_nodes, while_connected)| Op::Request {
                cores, memory, timeout_ms, max_nodes, while_connected
            }
        ),
        4 => ([lease(), lease()], 1..5_u32, (1..3_u32, 1..3_u32), 1..60_000_u64).prop_map(
            |(leases, workers, each, timeout_ms)| Op::Grow { leases, workers, each, timeout_ms }
        ),
        2 => (lease(), 1..60_000_u64).prop_map(|(lease, timeout_ms)| Op::Renew { lease, timeout_ms }),
        3 => (lease(), 0..2_usize).prop_map(|(lease, origin)| Op::Replace { lease, origin }),
        8 => lease().prop_map(|lease| Op::Claim { lease }),
        4 => lease().prop_map(|lease| Op::Work { lease }),
        4 => lease().prop_map(|lease| Op::End { lease }),
        1 => lease().prop_map(|lease| Op::Delete { lease }),
        1 => lease().prop_map(|lease| Op::ClientGone { lease }),
        16 => (node(), 0..8_usize, any::<bool>())
            .prop_map(|(node, which, again)| Op::Deliver { node, which, again }),
        1 => (node(), 0..8_usize).prop_map(|(node, which)| Op::Lose { node, which }),
        3 => (node(), lease(), lie()).prop_map(|(node, lease, lie)| Op::Forge { node, lease, lie }),
        4 => (0..8_000_u64).prop_map(|ms| Op::Pass { ms }),
        2 => Just(Op::Flush),
        2 => (any::<bool>(), 0..8_000_u64)
            .prop_map(|(committed, down_ms)| Op::Crash { committed, down_ms }),
    ]
}

/// Cases of the gate, unless the environment says how many.
fn config() -> ProptestConfig {
    let config = ProptestConfig::default();
    match std::env::var_os("PROPTEST_CASES") {
        Some(_) => config,
        None => ProptestConfig { cases: 2_000, ..config },
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn nothing_is_over_committed_and_every_lease_ends_and_is_billed_once(
        ops in proptest::collection::vec(op(), 1..160),
    ) {
        let mut world = World::new();
        // So that most runs have something to grant.
        for node in 0..NODES {
            world.apply(&Op::Add { node, cores: 4, memory: 4 });
            world.apply(&Op::Connect { node, obeys: node != 0 });
        }
        for op in &ops {
            world.apply(op);
        }
        world.come_to_rest();
    }
}
