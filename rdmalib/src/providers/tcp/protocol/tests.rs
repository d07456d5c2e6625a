//! The protocol without sockets: what one end sends reaches the other in pieces of any size; and
//! peers that send anything at all.

use proptest::collection::vec;
use proptest::prelude::*;
use zerocopy::IntoBytes;
use zerocopy::little_endian::{U32, U64};

use std::sync::Arc;
use std::time::Duration;

use super::super::memory::{Keys, Place, Region};
use super::super::wire::{FrameFlags, HEADER, Header, Kind};
use super::terms::EAGER;
use super::{Protocol, Terms};
use crate::contract::Region as _;
use crate::types::work::{Operation, Slice, Source, WorkRequest};
use crate::types::{Access, Flags, RemoteAddress, State, Status};

const DEPTH: u32 = 8;
const BYTES: usize = 200_000;

struct End {
    protocol: Protocol,
    region: Region,
    keys: Arc<Keys>,
}

fn end(patience: Option<Duration>) -> End {
    let keys = Arc::new(Keys::default());
    let region = Region::new(&keys, BYTES, Access::all()).unwrap();
    let mut protocol = Protocol::new(7, keys.clone(), DEPTH, DEPTH);
    protocol.connected(Terms { send_depth: DEPTH, patience }).unwrap();
    End { protocol, region, keys }
}

fn bytes(region: &Region, offset: usize, length: usize) -> Vec<u8> {
    let mut out = Vec::new();
    region.memory().append_to(offset, length, &mut out);
    out
}

/// What `protocol` sends now, at most `most` bytes of it.
fn output(protocol: &mut Protocol, most: usize) -> Vec<u8> {
    let (frames, large) = protocol.chunks();
    let mut out = frames.to_vec();
    if let Some((place, length)) = large {
        place.memory.append_to(place.offset, length, &mut out);
    }
    out.truncate(most);
    protocol.sent(out.len());
    out
}

/// Gives `bytes` to `protocol`, some of them straight to their place if `direct`.
fn input(protocol: &mut Protocol, mut bytes: &[u8], direct: bool) {
    if direct && let Some((place, length)) = protocol.landing() {
        let (these, rest) = bytes.split_at(length.min(bytes.len()));
        place.memory.put(place.offset, these);
        protocol.landed(these.len());
        bytes = rest;
    }
    protocol.input(bytes);
}

/// Moves everything, in pieces of the sizes `cuts`, until both ends have nothing to say.
fn settle(one: &mut End, other: &mut End, cuts: &[usize]) {
    let mut cuts = cuts.iter().copied().cycle();
    let mut cut = || cuts.next().unwrap_or(usize::MAX).max(1);
    loop {
        let mut moved = false;
        for (from, to) in [(0, 1), (1, 0)] {
            let ends = [&mut *one, &mut *other];
            let piece = output(&mut ends[from].protocol, cut());
            moved |= !piece.is_empty();
            input(&mut ends[to].protocol, &piece, piece.len().is_multiple_of(2));
        }
        if !moved {
            one.protocol.acknowledge();
            other.protocol.acknowledge();
            if !one.protocol.has_output() && !other.protocol.has_output() {
                return;
            }
        }
    }
}

#[derive(Clone, Debug)]
enum Step {
    Send(usize),
    Write { from: usize, to: usize, length: usize, immediate: bool },
    Read { from: usize, into: usize, length: usize },
    Add(u64),
    Receive,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let length = prop_oneof![0..200usize, 15_000..18_000usize, 60_000..70_000usize];
    let step = prop_oneof![
        length.clone().prop_map(Step::Send),
        (0..9000usize, 0..9000usize, length.clone(), any::<bool>())
            .prop_map(|(from, to, length, immediate)| Step::Write { from, to, length, immediate }),
        (0..9000usize, 0..9000usize, length).prop_map(|(from, into, length)| Step::Read {
            from,
            into,
            length
        }),
        any::<u64>().prop_map(Step::Add),
        Just(Step::Receive),
        Just(Step::Receive),
    ];
    vec(step, 1..40)
}

fn request<'a>(
    operation: Operation<&'a Arc<super::super::memory::Memory>, &'a [u8]>,
    id: u64,
) -> WorkRequest<&'a Arc<super::super::memory::Memory>, &'a [u8]> {
    WorkRequest { id, operation, flags: Flags::SIGNALED }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Requests of one end, receives of the other, and what both have in memory then.
    #[test]
    fn requests_are_carried_out_in_order_however_the_bytes_are_cut(
        steps in steps(),
        cuts in vec(1..70_000usize, 1..20),
    ) {
        let (mut one, mut other) = (end(None), end(None));
        let pattern: Vec<u8> = (0..BYTES).map(|at| (at % 251) as u8).collect();
        one.region.memory().put(0, &pattern);
        let mut here = pattern;
        let mut there = vec![0; BYTES];
        // Counter, behind everything else that is written; messages land in the second half.
        let (counter, landing) = (BYTES - 8, BYTES / 2);
        let (mut posted, mut done, mut receives, mut received) = (0u64, 0u64, 0u64, 0u64);
        let mut expected = Vec::new();
        for step in steps {
            let memory = one.region.memory();
            let at = |offset: usize| other.region.remote().offset(offset as u64);
            let slice = |offset, bytes| Slice { region: memory, offset, bytes };
            let operation = match step {
                Step::Receive => {
                    if other.protocol.check_receive().is_ok() {
                        let memory = other.region.memory().clone();
                        let place = Place { memory, offset: landing };
                        other.protocol.post_receive(receives, Some((place, 70_000)));
                        receives += 1;
                    }
                    None
                }
                Step::Send(length) => {
                    let source = Source::Region(slice(0, length));
                    expected.push((length, Some(posted as u32)));
                    Some(Operation::Send { source, immediate: Some(posted as u32) })
                }
                Step::Write { from, to, length, immediate } => {
                    let source = Source::Region(slice(from, length));
                    let immediate = immediate.then_some(posted as u32);
                    if immediate.is_some() {
                        expected.push((length, immediate));
                    }
                    there[to..to + length].copy_from_slice(&here[from..from + length]);
                    Some(Operation::Write { source, to: at(to), immediate })
                }
                Step::Read { from, into, length } => {
                    here[into..into + length].copy_from_slice(&there[from..from + length]);
                    Some(Operation::Read { into: slice(into, length), from: at(from) })
                }
                Step::Add(add) => {
                    let old = u64::from_ne_bytes(there[counter..].try_into().unwrap());
                    there[counter..].copy_from_slice(&old.wrapping_add(add).to_ne_bytes());
                    here[landing..landing + 8].copy_from_slice(&old.to_ne_bytes());
                    let into = slice(landing, 8);
                    Some(Operation::FetchAdd { into, at: at(counter), add })
                }
            };
            if let Some(operation) = operation {
                one.protocol.post(&request(operation, posted)).unwrap();
                posted += 1;
            }
            // Sources and results of the model are as of now, so everything is moved at once, with
            // receives for what needs some.
            settle(&mut one, &mut other, &cuts);
            while (received as usize) < expected.len() {
                if receives == received {
                    let memory = other.region.memory().clone();
                    let place = Place { memory, offset: landing };
                    other.protocol.post_receive(receives, Some((place, 70_000)));
                    receives += 1;
                    settle(&mut one, &mut other, &cuts);
                }
                let arrived = other.protocol.take_receive().expect("there is a receive for it");
                let (length, immediate) = expected[received as usize];
                prop_assert_eq!((arrived.id, arrived.status), (received, Status::Success));
                prop_assert_eq!((arrived.bytes as usize, arrived.immediate), (length, immediate));
                received += 1;
            }
            settle(&mut one, &mut other, &cuts);
            while let Some(sent) = one.protocol.take_send() {
                prop_assert_eq!((sent.id, sent.status), (done, Status::Success));
                done += 1;
            }
            prop_assert_eq!(done, posted);
            prop_assert!(bytes(&one.region, 0, BYTES) == here);
            prop_assert!(bytes(&other.region, 0, landing) == there[..landing]);
            prop_assert_eq!(bytes(&other.region, counter, 8), &there[counter..]);
        }
    }

    #[test]
    fn no_bytes_of_a_peer_are_a_reason_to_panic(
        noise in vec(any::<u8>(), 0..400),
        cuts in vec(1..50usize, 1..9),
    ) {
        let mut end = busy_end();
        give(&mut end, &noise, &cuts);
    }

    /// As above, but what it sends are frames.
    #[test]
    fn no_frames_of_a_peer_reach_what_it_has_no_key_for(
        frames in vec(frame(), 1..40),
        cuts in vec(1..3000usize, 1..9),
    ) {
        let mut end = busy_end();
        let secret = Region::new(&end.keys, 4096, Access::LOCAL_WRITE).unwrap();
        secret.memory().put(0, &[0x5e; 4096]);
        let key = end.region.remote().key as u32;
        let mut all = Vec::new();
        for (mut header, known, payload) in frames {
            header.key = U32::new(match known {
                0 => key,
                1 => secret.remote().key as u32,
                other => other,
            });
            all.extend_from_slice(header.as_bytes());
            all.extend(std::iter::repeat_n(0xeb, payload));
        }
        give(&mut end, &all, &cuts);
        prop_assert_eq!(bytes(&secret, 0, 4096), vec![0x5e; 4096]);
        let (held, kept) = end.protocol.receiving.kept_for_the_peer();
        prop_assert!(held <= DEPTH as usize && kept <= EAGER);
        prop_assert!(end.protocol.answers() <= DEPTH as usize);
        // Whatever it was, the end still flushes everything, once.
        end.protocol.end(Status::Flushed);
        let flushed = std::iter::from_fn(|| end.protocol.take_send()).count();
        prop_assert_eq!(flushed, 4);
        let receives = std::iter::from_fn(|| end.protocol.take_receive()).count();
        prop_assert_eq!(receives, 3);
    }
}

/// An end with receives posted and requests under way.
fn busy_end() -> End {
    let mut end = end(Some(Duration::from_secs(9)));
    for id in 0..3 {
        let place = Place { memory: end.region.memory().clone(), offset: 0 };
        end.protocol.post_receive(id, Some((place, 100)));
    }
    let memory = end.region.memory().clone();
    let slice = |bytes| Slice { region: &memory, offset: 0, bytes };
    let from = RemoteAddress { addr: 4096, key: 1 };
    for operation in [
        Operation::Read { into: slice(100), from },
        Operation::FetchAdd { into: slice(8), at: from, add: 1 },
        Operation::Write { source: Source::Region(slice(50)), to: from, immediate: None },
        Operation::Send { source: Source::Region(slice(EAGER + 1)), immediate: None },
    ] {
        end.protocol.post(&request(operation, 1)).unwrap();
    }
    output(&mut end.protocol, usize::MAX);
    end
}

fn give(end: &mut End, mut bytes: &[u8], cuts: &[usize]) {
    for cut in cuts.iter().cycle() {
        if bytes.is_empty() {
            return;
        }
        let (piece, rest) = bytes.split_at((*cut).min(bytes.len()));
        input(&mut end.protocol, piece, cut % 2 == 0);
        // What it answers is read now and then only.
        if cut % 3 == 0 {
            output(&mut end.protocol, *cut);
        }
        end.protocol.end_if_told();
        bytes = rest;
    }
}

/// A header that means something, which key it has (0: the region's, 1: of memory without rights),
/// and how many bytes follow.
fn frame() -> impl Strategy<Value = (Header, u32, usize)> {
    let kinds = prop_oneof![
        Just(Kind::Send),
        Just(Kind::Write),
        Just(Kind::Read),
        Just(Kind::FetchAdd),
        Just(Kind::CompareSwap),
        Just(Kind::Announce),
        Just(Kind::Data),
        Just(Kind::Acknowledge),
        Just(Kind::Answer),
        Just(Kind::Clear),
        Just(Kind::Failed),
    ];
    let length = prop_oneof![Just(0u32), Just(8), Just(16), Just(100), 0..300u32, any::<u32>()];
    let address = prop_oneof![Just(4096u64), 4096..9000u64, any::<u64>()];
    let key = prop_oneof![Just(0u32), Just(0), Just(1), any::<u32>()];
    (kinds, length, address, key, 0..6u32, 0..4u32, 0..4u8, any::<bool>()).prop_map(
        |(kind, length, address, key, sequence, acknowledged, flags, whole)| {
            let mut header = Header::new(kind, sequence, length);
            header.set_flags(FrameFlags::from_bits_truncate(flags));
            header.address = U64::new(address);
            header.acknowledged = U32::new(acknowledged);
            header.immediate = U32::new(sequence);
            let carries = !matches!(
                kind,
                Kind::Read | Kind::Announce | Kind::Acknowledge | Kind::Clear | Kind::Failed
            );
            let payload = if carries && whole { length.min(2000) as usize } else { 0 };
            (header, key, payload)
        },
    )
}

#[test]
fn a_peer_cannot_have_more_kept_than_it_said() {
    let mut end = end(None);
    for sequence in 0..DEPTH {
        end.protocol.input(Header::new(Kind::Send, sequence, 0).as_bytes());
        assert!(end.protocol.is_open());
    }
    end.protocol.input(Header::new(Kind::Send, DEPTH, 0).as_bytes());
    assert!(!end.protocol.is_open(), "one more than its send queue has places");
}

#[test]
fn a_peer_cannot_have_more_bytes_kept_than_there_is_room_for() {
    let mut end = end(None);
    let mut message = Header::new(Kind::Send, 0, EAGER as u32).as_bytes().to_vec();
    message.resize(HEADER + EAGER, 1);
    end.protocol.input(&message);
    assert!(end.protocol.is_open());
    end.protocol.input(Header::new(Kind::Send, 1, 1).as_bytes());
    assert!(!end.protocol.is_open());
}

#[test]
fn a_request_that_waits_for_too_long_fails_at_its_sender() {
    let (mut one, mut other) = (end(None), end(Some(Duration::from_millis(5))));
    let source = Source::Inline(&[1u8][..]);
    let operation = Operation::Send { source, immediate: None };
    one.protocol.post(&request(operation, 3)).unwrap();
    settle(&mut one, &mut other, &[]);
    let deadline = other.protocol.deadline().expect("it does not wait for ever");
    other.protocol.expire(deadline - Duration::from_millis(1));
    assert!(other.protocol.is_open());
    other.protocol.expire(deadline);
    settle(&mut one, &mut other, &[]);
    other.protocol.end_if_told();
    let failed = one.protocol.take_send().expect("it has failed");
    assert_eq!((failed.id, failed.status), (3, Status::RnrRetryExceeded));
    assert_eq!([one.protocol.state(), other.protocol.state()], [State::Error; 2]);
}

#[test]
fn memory_that_is_freed_while_bytes_arrive_ends_the_request() {
    let (mut one, other) = (end(None), end(None));
    let target = Region::new(&one.keys, 100, Access::all()).unwrap();
    let mut header = Header::new(Kind::Write, 0, 100);
    header.key = U32::new(target.remote().key as u32);
    header.address = U64::new(target.remote().addr);
    one.protocol.input(header.as_bytes());
    one.protocol.input(&[1; 40]);
    let memory = target.memory().clone();
    drop(target);
    one.protocol.input(&[2; 60]);
    let mut seen = Vec::new();
    memory.append_to(0, 100, &mut seen);
    assert_eq!(seen, [[1; 40].as_slice(), &[0; 60]].concat());
    let told = output(&mut one.protocol, usize::MAX);
    let header = Header::of_bytes(told.first_chunk().unwrap());
    assert_eq!(header.kind(), Some(Kind::Failed));
    drop(other);
}

#[test]
fn what_is_carried_out_while_a_long_answer_goes_out_is_acknowledged_behind_it() {
    let (mut one, mut other) = (end(None), end(None));
    let memory = one.region.memory().clone();
    let slice = |bytes| Slice { region: &memory, offset: 0, bytes };
    let there = other.region.remote();
    let read = Operation::Read { into: slice(100_000), from: there };
    one.protocol.post(&request(read, 1)).unwrap();
    let asked = output(&mut one.protocol, usize::MAX);
    input(&mut other.protocol, &asked, false);
    let mut answer = output(&mut other.protocol, 20_000);
    let source = Source::Region(slice(8));
    one.protocol
        .post(&request(Operation::Write { source, to: there, immediate: None }, 2))
        .unwrap();
    let written = output(&mut one.protocol, usize::MAX);
    input(&mut other.protocol, &written, false);
    other.protocol.acknowledge(); // there is no room for it now
    while other.protocol.has_output() {
        answer.extend(output(&mut other.protocol, usize::MAX));
    }
    input(&mut one.protocol, &answer, false);
    let done: Vec<_> = std::iter::from_fn(|| one.protocol.take_send()).collect();
    assert_eq!(
        done.iter().map(|sent| (sent.id, sent.status)).collect::<Vec<_>>(),
        [(1, Status::Success), (2, Status::Success)]
    );
}

#[test]
fn what_waits_for_a_receive_has_not_succeeded_when_a_request_behind_it_fails() {
    let (mut one, mut other) = (end(None), end(None));
    let source = || Source::Inline(&[1u8][..]);
    let to = RemoteAddress { addr: 4096, key: 1 };
    let send = Operation::Send { source: source(), immediate: None };
    one.protocol.post(&request(send, 3)).unwrap();
    let write = Operation::Write { source: source(), to, immediate: None };
    one.protocol.post(&request(write, 4)).unwrap();
    settle(&mut one, &mut other, &[]);
    other.protocol.end_if_told();
    let done: Vec<_> = std::iter::from_fn(|| one.protocol.take_send()).collect();
    assert_eq!(
        done.iter().map(|sent| (sent.id, sent.status)).collect::<Vec<_>>(),
        [(3, Status::Flushed), (4, Status::RemoteAccessError)]
    );
}

#[test]
fn a_fenced_write_has_the_bytes_that_a_read_before_it_has_brought() {
    let (mut one, mut other) = (end(None), end(None));
    other.region.memory().put(0, &[9; 8]);
    let memory = one.region.memory().clone();
    let slice = || Slice { region: &memory, offset: 0, bytes: 8 };
    let there = other.region.remote();
    one.protocol.post(&request(Operation::Read { into: slice(), from: there }, 1)).unwrap();
    let source = Source::Region(slice());
    let write = Operation::Write { source, to: there.offset(100), immediate: None };
    let fenced = Flags::SIGNALED | Flags::FENCE;
    one.protocol.post(&WorkRequest { flags: fenced, ..request(write, 2) }).unwrap();
    settle(&mut one, &mut other, &[]);
    assert_eq!(bytes(&other.region, 100, 8), [9; 8]);
    assert_eq!(std::iter::from_fn(|| one.protocol.take_send()).count(), 2);
}
