//! Tests of the whole device against a peer that writes what it likes into all memory that it has:
//! both ends of a connection do, each into the other's domain and into its own.
//!
//! ```text
//!   canaries │ this end ◀── scribbles, forged arrivals, lies in the key table ──▶ other end │ canaries
//!            │     └── one completion queue ──┐
//!            │ bystander: domains and a connection of its own, in the same process
//! ```
//! What is forged looks right as often as not: next sequence number, keys and addresses of regions,
//! of their ends, of the ring, of the end of what is mapped. Elsewhere: the two ends (`world`), the
//! steps (`steps`).

mod steps;
mod world;

use fastrand::Rng;
use proptest::prelude::*;

use super::core::TAG_WRITE;
use super::mapping::Mapping;
use crate::sync::Ordering;
use crate::types::{Access, Flags};
use rdmalib_ring::{CARRIED, Way, Words};
use steps::{Key, Place, Step, Verb, steps};
use world::{End, World};

/// Ordinary memory of the process, small and large, which nobody may change.
struct Canaries(Vec<Vec<u64>>);

const CANARY: u64 = 0x5afe_5afe_5afe_5afe;

impl Canaries {
    fn new() -> Canaries {
        // The large ones are mapped by the allocator, next to where the device maps.
        let words = [1 << 16, 4, 64, 512, 4, 64, 512, 1 << 16];
        Canaries(words.into_iter().map(|words| vec![CANARY; words]).collect())
    }

    fn are_unchanged(&self) -> bool {
        self.0.iter().flatten().all(|word| *word == CANARY)
    }
}

/// Two ends with neighbours, and what was there before the steps.
struct Scene {
    below: Canaries,
    world: World,
    bystander: World,
    before: [Vec<u64>; 2],
    above: Canaries,
}

impl Scene {
    fn new() -> Scene {
        let below = Canaries::new();
        let mut world = World::new();
        let mut bystander = world.neighbour();
        bystander.both_ways(&mut world);
        let before = bystander.ends.each_ref().map(End::all_words);
        Scene { below, world, bystander, before, above: Canaries::new() }
    }

    fn play(&mut self, steps: &[Step]) {
        steps.iter().for_each(|step| self.world.step(step));
    }

    /// Everything posted completes, and the neighbours are as they were, and as useful.
    fn end(mut self) -> World {
        self.world.end();
        assert!(self.below.are_unchanged() && self.above.are_unchanged(), "a canary is dead");
        for (end, before) in self.bystander.ends.iter().zip(&self.before) {
            assert!(end.all_words() == *before, "a bystander's memory has changed");
        }
        self.bystander.both_ways(&mut self.world);
        self.world
    }
}

proptest! {
    /// A peer that lies in arrivals writes what its keys allow, and nothing else of the domain.
    #[test]
    fn a_forged_arrival_writes_where_its_key_allows(steps in steps(false)) {
        let mut scene = Scene::new();
        scene.play(&steps);
        for end in &scene.end().ends {
            end.assert_protected_is_unchanged();
        }
    }

    /// A peer that writes anything anywhere spoils the domain that it was given, and nothing else
    /// of the process: no panic, no fault, no completion too many, none missing, none out of turn.
    #[test]
    fn a_peer_that_scribbles_over_everything_gets_no_further_than_the_domain(steps in steps(true)) {
        let mut scene = Scene::new();
        scene.play(&steps);
        scene.end();
    }

    /// Also if it does so between one look at a word and the next.
    #[test]
    fn a_peer_that_scribbles_meanwhile_gets_no_further_than_the_domain(
        steps in steps(true),
        seed in 1u64..,
    ) {
        let mut scene = Scene::new();
        let victims = scene.world.ends.each_ref().map(Victim::new);
        let mut random = Rng::with_seed(seed);
        std::thread::scope(|scope| {
            let player = scope.spawn(|| scene.play(&steps));
            while !player.is_finished() {
                victims[random.usize(..2)].scribble(&mut random);
            }
            if let Err(panic) = player.join() {
                std::panic::resume_unwind(panic);
            }
        });
        scene.end();
    }
}

/// Copied with an overlap: found by the properties above.
#[test]
fn a_payload_that_is_to_land_on_itself_does_no_harm() {
    for way in [Way::Ring, Way::TurnSlot] {
        for (offset, bytes) in [(1, 96), (-1, 96), (8, 16), (31, 33), (1, 2), (0, 64)] {
            // The connector: the turn slot is in its memory.
            let (mut scene, end, key) = (Scene::new(), 1, Key::Forged(5));
            let (tag, to) = (TAG_WRITE | CARRIED, Place::Payload(way, offset));
            let (access, start) = (Access::all().bits(), Place::Anywhere(0));
            let (ahead, immediate, payload) = (0, 0, 0x0102_0304);
            scene.play(&[
                Step::Receive { end: 1 - end, bytes: None },
                small(end),
                Step::Receive { end, bytes: None },
                Step::Lie { end, key, access, start, bytes: u64::MAX },
                Step::Forge { end, way, ahead, immediate, bytes, tag, to, key, payload },
                Step::Poll { end, most: 1 },
            ]);
            assert_eq!(scene.world.ends[end].taken(), 1);
            scene.end();
        }
    }
}

/// A small write, through the turn slot if it is owned.
fn small(end: usize) -> Step {
    let (verb, flags) = (Verb::WriteWithImmediate, Flags::WITH_COMPLETION.bits());
    let (to, key) = (Place::Region(0, 0), Key::Of(0));
    Step::Post { end, verb, bytes: 8, inline: true, flags, to, key }
}

/// A peer that answers at once overwrites the turn slot while the sender still reads the job there.
#[test]
fn a_write_that_both_copy_goes_by_the_ring() {
    let (mut scene, connector) = (Scene::new(), 1);
    scene.play(&[Step::Receive { end: 0, bytes: None }, Step::Receive { end: 0, bytes: None }]);
    scene.world.write_together(connector);
    assert_eq!(scene.world.ends[connector].way(), Some(Way::TurnSlot));
    scene.play(&[small(connector)]);
    assert_eq!(scene.world.ends[connector].way(), Some(Way::Ring));
    scene.end();
}

/// What a thread needs to scribble over an end's domain.
struct Victim {
    memory: Mapping,
    /// Words that mean most.
    places: Vec<usize>,
    /// Values that mean most there.
    values: Vec<u64>,
}

impl Victim {
    fn new(end: &End) -> Victim {
        let (places, values) = end.telling_words();
        Victim { memory: end.second_view(), places, values }
    }

    fn scribble(&self, random: &mut Rng) {
        let words = self.memory.words();
        let at = match random.usize(..8) {
            0 => random.usize(..words.len()),
            _ => self.places[random.usize(..self.places.len())],
        };
        let value = match random.usize(..8) {
            0 => random.u64(..),
            _ => self.values[random.usize(..self.values.len())],
        };
        words[at].store(value, Ordering::Relaxed);
    }
}
