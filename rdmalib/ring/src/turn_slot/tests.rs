//! A whole connection, whose two ends use the slot: all interleavings (loom), and against a model.

use super::*;
use crate::{ArrivalPusher, ArrivalTaker, NOWHERE, ReceivePoster, Way, turn_slot, words_needed};

type Memory = Arc<Vec<AtomicU64>>;

/// One end, whose parts may be in several threads.
struct End {
    post: ReceivePoster<Memory>,
    take: ArrivalTaker<Memory>,
    push: ArrivalPusher<Memory>,
}

/// Connector and acceptor, new; `posted` receives each.
fn connection(depth: u32, posted: u32) -> [End; 2] {
    let rings = [0, 1].map(|_| -> Memory {
        Arc::new((0..words_needed(depth)).map(|_| AtomicU64::new(0)).collect())
    });
    let mut ends = [Side::Connector, Side::Acceptor].map(|side| {
        let (mine, theirs) = (&rings[side as usize], &rings[1 - side as usize]);
        let slot = turn_slot(rings[0].clone(), side);
        let mut end = End {
            post: ReceivePoster::new(mine.clone(), depth),
            take: ArrivalTaker::new(mine.clone(), depth),
            push: ArrivalPusher::new(theirs.clone(), depth).expect("sizes agree"),
        };
        end.take.connect(&slot, true);
        end.push.connect(slot);
        end
    });
    for end in &mut ends {
        (0..posted).for_each(|_| {
            end.post.post(NOWHERE);
        });
    }
    ends
}

/// First and last word of a payload.
const ENDS: [usize; 2] = [0, arrival::MAX_CARRIED / 8 - 1];

fn carried(n: u32) -> Arrival {
    let carried_to = Some((8, 9));
    Arrival { immediate: n, bytes: arrival::MAX_CARRIED as u32, tag: n & 0xff, carried_to }
}

/// Pushes [`carried`] with a payload of its number, for which there is a receive. Whether to wake
/// the owner.
fn push(end: &mut ArrivalPusher<Memory>, way: Way, n: u32) -> bool {
    assert!(end.may_push(), "posted before");
    let (memory, word) = end.payload(way);
    ENDS.iter().for_each(|at| memory[word + at].store(n.into(), Ordering::Relaxed));
    end.push(way, carried(n), false)
}

/// What the payload that was taken last says.
fn payload(end: &ArrivalTaker<Memory>) -> [u64; 2] {
    let (memory, word) = end.payload();
    ENDS.map(|at| memory[word + at].load(Ordering::Relaxed))
}

/// Takes what [`push`] has pushed, if something is there: its number.
fn take(end: &mut ArrivalTaker<Memory>) -> Option<u32> {
    let n = end.take()?.immediate;
    assert_eq!(payload(end), [n.into(); 2]);
    end.done();
    Some(n)
}

/// A connection whose slot the acceptor owns.
#[cfg(loom)]
fn served(depth: u32) -> [End; 2] {
    let [mut a, mut b] = connection(depth, depth);
    push(&mut a.push, Way::TurnSlot, 9);
    assert_eq!(take(&mut b.take), Some(9));
    b.post.post(NOWHERE);
    [a, b]
}

#[cfg(loom)]
mod model {
    use loom::cell::UnsafeCell;
    use loom::thread::spawn;

    use super::*;
    use crate::Arm;

    /// Poster and poller of the end that answers are two threads. Bytes that are copied as `bytes`
    /// are here: the model fails if somebody writes while somebody else reads or writes.
    #[test]
    fn loom_only_the_end_whose_turn_it_is_touches_the_slot() {
        loom::model(|| {
            let [mut a, b] = connection(1, 1);
            let End { take: mut taker, push: mut answer, .. } = b;
            let bytes = Arc::new(UnsafeCell::new(()));
            let send = |end: &mut ArrivalPusher<Memory>, bytes: &UnsafeCell<()>, n| {
                bytes.with_mut(|_| ());
                push(end, Way::TurnSlot, n);
            };
            let take_one = |end: &mut ArrivalTaker<Memory>, bytes: &UnsafeCell<()>| {
                if end.take().is_some() {
                    bytes.with(|_| ());
                    end.done();
                }
            };
            let (sent, answered) = (bytes.clone(), bytes.clone());
            let connector = spawn(move || {
                send(&mut a.push, &sent, 1);
                take_one(&mut a.take, &sent);
            });
            let answerer = spawn(move || {
                if answer.way() == Way::TurnSlot {
                    send(&mut answer, &answered, 2);
                }
            });
            take_one(&mut taker, &bytes);
            connector.join().expect("no panic");
            answerer.join().expect("no panic");
        });
    }

    #[test]
    fn loom_what_is_sent_is_whole_and_stays_until_it_was_read() {
        loom::model(|| {
            let [mut a, b] = connection(1, 1);
            let End { take: mut taker, push: mut answer, .. } = b;
            let connector = spawn(move || {
                push(&mut a.push, Way::TurnSlot, 1);
                take(&mut a.take).inspect(|n| assert_eq!(*n, 2));
            });
            let answerer = spawn(move || {
                if answer.way() == Way::TurnSlot {
                    push(&mut answer, Way::TurnSlot, 2);
                }
            });
            take(&mut taker).inspect(|n| assert_eq!(*n, 1));
            connector.join().expect("no panic");
            answerer.join().expect("no panic");
        });
    }

    /// Whichever way each of them goes, that can be.
    #[test]
    fn loom_what_is_pushed_is_taken_in_order() {
        for ways in [[Way::TurnSlot, Way::Ring], [Way::Ring, Way::TurnSlot], [Way::Ring, Way::Ring]]
        {
            loom::model(move || {
                let [a, mut b] = connection(2, 2);
                let mut pusher = a.push;
                let peer = spawn(move || {
                    push(&mut pusher, ways[0], 1);
                    push(&mut pusher, ways[1], 2);
                });
                let mut taken = (0..3).filter_map(|_| take(&mut b.take)).collect::<Vec<_>>();
                peer.join().expect("no panic");
                taken.extend((0..2).filter_map(|_| take(&mut b.take)));
                assert_eq!(taken, [1, 2]);
            });
        }
    }

    /// The poller may not have seen yet that its poster has sent through the slot, which is owned
    /// again.
    #[test]
    fn loom_an_answer_through_the_slot_comes_before_the_next_through_the_ring() {
        loom::model(|| {
            let [mut a, b] = served(2);
            let End { take: mut taker, push: mut sender, .. } = b;
            let poster = spawn(move || push(&mut sender, Way::TurnSlot, 5));
            let peer = spawn(move || {
                if take(&mut a.take).is_some() {
                    assert_eq!(a.push.way(), Way::TurnSlot);
                    push(&mut a.push, Way::TurnSlot, 1);
                    push(&mut a.push, Way::Ring, 2);
                }
            });
            take(&mut taker).inspect(|n| assert_eq!(*n, 1));
            poster.join().expect("no panic");
            peer.join().expect("no panic");
        });
    }

    /// `arm, poll again, sleep` against a send: never asleep with an arrival.
    #[test]
    fn loom_no_wakeup_through_the_slot_is_lost() {
        loom::model(|| {
            let [mut a, mut b] = connection(1, 1);
            let peer = spawn(move || push(&mut a.push, Way::TurnSlot, 1));
            b.take.arm(Arm::Any);
            let seen = b.take.ready();
            let rung = peer.join().expect("no panic");
            assert!(seen || rung);
            assert_eq!(take(&mut b.take), Some(1));
        });
    }

    /// Nor if the sleeper's poster has sent through the slot just before.
    #[test]
    fn loom_no_wakeup_by_an_answer_is_lost() {
        loom::model(|| {
            let [mut a, b] = served(1);
            let End { take: mut taker, push: mut sender, .. } = b;
            let poster = spawn(move || push(&mut sender, Way::TurnSlot, 5));
            let peer = spawn(move || {
                let taken = take(&mut a.take).is_some();
                taken.then(|| push(&mut a.push, Way::TurnSlot, 1))
            });
            taker.arm(Arm::Any);
            let seen = taker.ready();
            poster.join().expect("no panic");
            let rung = peer.join().expect("no panic");
            assert!(seen || rung != Some(false));
        });
    }
}

#[cfg(not(loom))]
mod facts {
    use std::collections::VecDeque;

    use proptest::prelude::*;
    use proptest::test_runner::TestCaseResult;

    use super::*;
    use crate::{POSTED, Receive, TURN_SLOT, arrival_word};

    const DEPTH: u32 = 8;

    /// What one end does.
    #[derive(Clone, Copy, Debug)]
    enum Step {
        Post,
        Push { by_ring: bool },
        Take,
        PutBack,
        Done,
    }

    /// What is on its way to one end, and what it has taken and not done with.
    #[derive(Debug, Default)]
    struct Model {
        receives: VecDeque<Receive>,
        arrivals: VecDeque<u32>,
        holds: Option<u32>,
        next: u32,
    }

    fn step() -> impl Strategy<Value = (usize, Step)> {
        let step = prop_oneof![
            4 => Just(Step::Post),
            3 => Just(Step::Push { by_ring: false }),
            1 => Just(Step::Push { by_ring: true }),
            4 => Just(Step::Take),
            1 => Just(Step::PutBack),
            4 => Just(Step::Done),
        ];
        (0..2usize, step)
    }

    fn start() -> impl Strategy<Value = u32> {
        prop_oneof![Just(0), Just(u32::MAX - 20), Just((1 << 31) - 20), any::<u32>()]
    }

    /// As if so many arrivals had come to each end, so many of them by the ring.
    fn old_connection(arrived: [u32; 2], by_ring: [u32; 2]) -> [End; 2] {
        let mut ends = connection(DEPTH, 0);
        for to in 0..2 {
            let (arrived, by_ring) = (arrived[to], by_ring[to]);
            let words = ends[to].take.words.clone();
            words[POSTED].store(arrived.into(), Ordering::Relaxed);
            for index in (0..DEPTH).map(|back| by_ring.wrapping_sub(1 + back)) {
                let sequence = u64::from(index.wrapping_add(1)) << 32;
                words[arrival_word(index, DEPTH - 1)].store(sequence, Ordering::Relaxed);
            }
            ends[to].post.posted = arrived;
            (ends[to].take.taken, ends[to].take.from_ring) = (arrived, by_ring);
            let push = &mut ends[1 - to].push;
            (push.pushed, push.posted_seen, push.in_ring) = (arrived, arrived, by_ring);
        }
        ends
    }

    /// Does `step` on `ends[at]`, if it can be done.
    fn run(ends: &mut [End; 2], models: &mut [Model; 2], at: usize, step: Step) -> TestCaseResult {
        let end = &mut ends[at];
        let room = DEPTH as usize - usize::from(models[at].holds.is_some());
        match step {
            Step::Post if models[at].receives.len() + models[at].arrivals.len() < room => {
                let receive = Receive { place: end.post.posted.into(), key: 1, bytes: 2 };
                end.post.post(receive);
                models[at].receives.push_back(receive);
            }
            Step::Push { by_ring } => {
                let there = &mut models[1 - at];
                let receive = there.receives.pop_front();
                prop_assert_eq!(end.push.may_push(), receive.is_some());
                if let Some(receive) = receive {
                    prop_assert_eq!(end.push.receive(), receive);
                    let way = if by_ring { Way::Ring } else { end.push.way() };
                    there.next += 1;
                    push(&mut end.push, way, there.next);
                    there.arrivals.push_back(there.next);
                }
            }
            Step::Take if models[at].holds.is_none() => {
                let next = models[at].arrivals.pop_front();
                prop_assert_eq!(end.take.ready(), next.is_some());
                prop_assert_eq!(end.take.take(), next.map(carried));
                models[at].holds = next;
            }
            Step::PutBack | Step::Done => {
                if let Some(n) = models[at].holds.take() {
                    prop_assert_eq!(payload(&end.take), [u64::from(n); 2]);
                    if matches!(step, Step::Done) {
                        end.take.done();
                    } else {
                        end.take.put_back();
                        models[at].arrivals.push_front(n);
                    }
                }
            }
            Step::Post | Step::Take => {}
        }
        Ok(())
    }

    proptest! {
        /// From any start, wrap-around of both kinds of number included. The slot was last sent
        /// through a while ago: also when the number in it was due the last time.
        #[test]
        fn arrivals_come_in_order_and_once_whichever_way_each_goes(
            arrived in [start(), start()],
            same in any::<bool>(),
            by_ring in [start(), start()],
            sent in -1..20i32,
            steps in proptest::collection::vec(step(), 1..300),
        ) {
            let arrived = if same { [arrived[0]; 2] } else { arrived };
            let mut ends = old_connection(arrived, by_ring);
            let last = Side::Acceptor.sequence(arrived[0].wrapping_add_signed(sent));
            ends[0].take.words[TURN_SLOT].store(u64::from(last) << 32, Ordering::Relaxed);
            let mut models = [Model::default(), Model::default()];
            for (at, step) in steps {
                run(&mut ends, &mut models, at, step)?;
            }
            // What is still on its way, ends there.
            for at in 0..2 {
                run(&mut ends, &mut models, at, Step::Done)?;
                while !models[at].arrivals.is_empty() {
                    run(&mut ends, &mut models, at, Step::Take)?;
                    run(&mut ends, &mut models, at, Step::Done)?;
                }
                prop_assert!(!ends[at].take.ready());
            }
        }

        #[test]
        fn two_ends_that_answer_each_other_use_the_slot_alone(
            arrived in [start(), start()],
            by_ring in [start(), start()],
        ) {
            let mut ends = old_connection(arrived, by_ring);
            for round in 0..50 {
                for from in 0..2 {
                    let to = 1 - from;
                    ends[to].post.post(NOWHERE);
                    prop_assert_eq!(ends[from].push.way(), Way::TurnSlot);
                    push(&mut ends[from].push, Way::TurnSlot, round);
                    prop_assert_eq!(ends[from].push.way(), Way::Ring);
                    prop_assert!(!ends[from].take.ready(), "its own arrival");
                    prop_assert!(ends[to].take.ready());
                    prop_assert_eq!(take(&mut ends[to].take), Some(round));
                }
            }
            for to in 0..2 {
                prop_assert_eq!(ends[1 - to].push.in_ring, by_ring[to]);
                prop_assert_eq!(ends[to].take.from_ring, by_ring[to]);
            }
        }
    }

    /// The peer may send both ways before the poller, in another thread, knows that they are
    /// connected.
    #[test]
    fn nothing_is_taken_before_the_slot_is_known() {
        let [mut a, b] = connection(4, 4);
        let mut late = ArrivalTaker::new(b.take.words.clone(), 4);
        push(&mut a.push, Way::TurnSlot, 1);
        push(&mut a.push, Way::Ring, 2);
        assert!(!late.ready());
        assert_eq!(take(&mut late), None);
        late.connect(&turn_slot(a.take.words.clone(), Side::Acceptor), false);
        assert!(late.ready());
        assert_eq!([1, 2].map(|_| take(&mut late)), [Some(1), Some(2)]);
    }
}
