//! What the two ends do, as data: what the API allows, and what it does not.

use proptest::collection::vec;
use proptest::prelude::*;

use super::super::core::{TAG_IMMEDIATE, TAG_SHARED, TAG_TOO_LONG, TAG_WRITE};
use super::super::space::KEYS;
use super::world::REGIONS;
use rdmalib_ring::{CARRIED, Way};

/// A place in an end's domain.
#[derive(Clone, Copy, Debug)]
pub(super) enum Place {
    /// So far behind the start of a region.
    Region(usize, i64),
    /// So far behind the start of the ring.
    Ring(i64),
    /// So far behind the payload of the next arrival, if it comes that way.
    Payload(Way, i64),
    /// So far behind the end of the first segment, which is the end of the file.
    Limit(i64),
    Anywhere(u64),
}

/// A key of an end's domain.
#[derive(Clone, Copy, Debug)]
pub(super) enum Key {
    /// Of a region, also if it was freed.
    Of(usize),
    /// One that [`Step::Lie`] may have made.
    Forged(u32),
    Any(u64),
}

/// What is posted.
#[derive(Clone, Copy, Debug)]
pub(super) enum Verb {
    Send,
    Write,
    WriteWithImmediate,
    Read,
    FetchAdd,
    CompareSwap,
}

/// One step of the end that it names; scribbles go into that end's domain.
#[derive(Clone, Debug)]
pub(super) enum Step {
    Post {
        end: usize,
        verb: Verb,
        bytes: usize,
        inline: bool,
        flags: u32,
        to: Place,
        key: Key,
    },
    Receive {
        end: usize,
        bytes: Option<usize>,
    },
    Poll {
        end: usize,
        most: usize,
    },
    Sleep {
        end: usize,
    },
    /// A region is freed; the next time, another takes its place.
    Replace {
        end: usize,
    },
    Map {
        end: usize,
        to: Place,
        key: Key,
        bytes: usize,
    },
    /// An arrival for the next receive, or one of the next.
    Forge {
        end: usize,
        way: Way,
        ahead: u32,
        immediate: u32,
        bytes: u32,
        tag: u32,
        to: Place,
        key: Key,
        payload: u64,
    },
    /// An entry of the key table.
    Lie {
        end: usize,
        key: Key,
        access: u32,
        start: Place,
        bytes: u64,
    },
    /// Word of the ring.
    Scribble {
        end: usize,
        word: usize,
        value: u64,
    },
    /// Word of the domain.
    ScribbleFar {
        end: usize,
        word: usize,
        value: u64,
    },
}

/// Entries of the key table that keys are forged for: those in use, and some that are not.
const ENTRIES: u32 = 8;

fn way() -> impl Strategy<Value = Way> {
    prop_oneof![Just(Way::Ring), Just(Way::TurnSlot)]
}

fn place() -> impl Strategy<Value = Place> {
    let near = || prop_oneof![-130..130i64, 3900..4100i64];
    prop_oneof![
        6 => (0..REGIONS, near()).prop_map(|(region, offset)| Place::Region(region, offset)),
        6 => (0..REGIONS).prop_map(|region| Place::Region(region, 0)),
        2 => (0..2200i64).prop_map(Place::Ring),
        2 => (way(), -100..100i64).prop_map(|(way, offset)| Place::Payload(way, offset)),
        2 => (-130..10i64).prop_map(Place::Limit),
        1 => any::<u64>().prop_map(Place::Anywhere),
    ]
}

fn key() -> impl Strategy<Value = Key> {
    prop_oneof![
        8 => (0..REGIONS).prop_map(Key::Of),
        3 => (0..ENTRIES).prop_map(Key::Forged),
        1 => prop_oneof![Just(0), Just(KEYS as u64), any::<u32>().prop_map(u64::from), any::<u64>()].prop_map(Key::Any),
    ]
}

/// Where a key and a place agree, more often than chance would have it.
fn target() -> impl Strategy<Value = (Place, Key)> {
    let within = || (0..REGIONS, prop_oneof![3 => Just(0i64), 1 => 0..1100i64]);
    prop_oneof![
        3 => within().prop_map(|(n, offset)| (Place::Region(n, offset), Key::Of(n))),
        2 => (place(), key()),
        2 => (place(), (0..ENTRIES).prop_map(Key::Forged)),
    ]
}

fn size() -> impl Strategy<Value = usize> {
    prop_oneof![4 => 0..140usize, 1 => Just(512), 1 => 0..4096usize]
}

fn legal() -> impl Strategy<Value = Step> {
    let verb = prop_oneof![
        2 => Just(Verb::Send),
        2 => Just(Verb::Write),
        6 => Just(Verb::WriteWithImmediate),
        1 => Just(Verb::Read),
        1 => Just(Verb::FetchAdd),
        1 => Just(Verb::CompareSwap),
    ];
    // Requests that fail end the connection, so most of them go where they may.
    let target = prop_oneof![
        8 => (0..100i64).prop_map(|at| (Place::Region(0, 8 * at), Key::Of(0))),
        1 => target(),
    ];
    let bytes = prop_oneof![1 => Just(None), 1 => size().prop_map(Some)];
    prop_oneof![
        6 => (0..2usize, verb, size(), any::<bool>(), 0..16u32, target).prop_map(
            |(end, verb, bytes, inline, flags, (to, key))| Step::Post {
                end, verb, bytes, inline, flags, to, key,
            }
        ),
        6 => (0..2usize, bytes).prop_map(|(end, bytes)| Step::Receive { end, bytes }),
        6 => (0..2usize, 1..12usize).prop_map(|(end, most)| Step::Poll { end, most }),
        1 => (0..2usize).prop_map(|end| Step::Sleep { end }),
        1 => (0..2usize).prop_map(|end| Step::Replace { end }),
        1 => (0..2usize, place(), key(), size()).prop_map(
            |(end, to, key, bytes)| Step::Map { end, to, key, bytes }
        ),
    ]
}

fn forge() -> impl Strategy<Value = Step> {
    let known = TAG_IMMEDIATE | TAG_WRITE | CARRIED;
    let tag = prop_oneof![
        8 => Just(known),
        4 => Just(known | TAG_SHARED),
        1 => Just(known | TAG_TOO_LONG),
        1 => any::<u32>(),
        4 => any::<u32>().prop_map(|tag| tag & !TAG_TOO_LONG | CARRIED),
    ];
    let bytes = prop_oneof![
        6 => 0..98u32,
        1 => any::<u32>(),
        1 => Just(u32::MAX),
        1 => 97..5000u32,
    ];
    let ahead = prop_oneof![6 => Just(0), 1 => 0..9u32];
    (0..2usize, way(), ahead, any::<u32>(), bytes, tag, target(), any::<u64>()).prop_map(
        |(end, way, ahead, immediate, bytes, tag, (to, key), payload)| Step::Forge {
            end,
            way,
            ahead,
            immediate,
            bytes,
            tag,
            to,
            key,
            payload,
        },
    )
}

fn lie() -> impl Strategy<Value = Step> {
    let bytes = prop_oneof![0..200u64, Just(1 << 20), Just(u64::MAX), any::<u64>()];
    let access = prop_oneof![3 => Just(15), 1 => any::<u32>()];
    // A key for everything, or for something.
    let range = prop_oneof![Just((Place::Anywhere(0), u64::MAX)), (place(), bytes),];
    (0..2usize, key(), access, range).prop_map(|(end, key, access, (start, bytes))| Step::Lie {
        end,
        key,
        access,
        start,
        bytes,
    })
}

/// A word that may mean something.
fn value() -> impl Strategy<Value = u64> {
    prop_oneof![
        any::<u64>(),
        0..200u64,
        Just(u64::MAX),
        (0..20u64, any::<u32>()).prop_map(|(high, low)| high << 32 | u64::from(low)),
        (0..20u64, any::<u32>()).prop_map(|(high, low)| 1 << 63 | high << 32 | u64::from(low)),
    ]
}

/// Steps of both ends; unless it is `everything`, the only lies are those of [`Step::Forge`].
pub(super) fn steps(everything: bool) -> impl Strategy<Value = Vec<Step>> {
    let far = if everything { 1 } else { 0 };
    let step = prop_oneof![
        12 => legal(),
        6 => forge(),
        6 * far => lie(),
        4 * far => (0..2usize, any::<usize>(), value()).prop_map(
            |(end, word, value)| Step::Scribble { end, word, value }
        ),
        far => (0..2usize, any::<usize>(), value()).prop_map(
            |(end, word, value)| Step::ScribbleFar { end, word, value }
        ),
    ];
    vec(step, 1..120)
}
