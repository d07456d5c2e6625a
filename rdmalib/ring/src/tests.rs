//! The ring without the turn slot (`turn_slot::tests`): all interleavings of its orders (loom), and
//! against a model.

use std::sync::Arc;

use super::*;

type Memory = Arc<Vec<AtomicU64>>;

/// One direction of a connection, whose turn slot is never sent through.
fn ring(depth: u32) -> (ReceivePoster<Memory>, ArrivalTaker<Memory>, ArrivalPusher<Memory>) {
    let memory: Memory = Arc::new((0..words_needed(depth)).map(|_| AtomicU64::new(0)).collect());
    let mut take = ArrivalTaker::new(memory.clone(), depth);
    take.connect(&turn_slot(memory.clone(), Side::Connector), false);
    (
        ReceivePoster::new(memory.clone(), depth),
        take,
        ArrivalPusher::new(memory, depth).expect("sizes agree"),
    )
}

fn arrival(immediate: u32) -> Arrival {
    Arrival { immediate, bytes: immediate.wrapping_mul(3), tag: immediate & 0xff, carried_to: None }
}

#[cfg(loom)]
mod model {
    use super::*;

    /// `arm, poll again, sleep` against `push, read ARMED`: never asleep with an arrival.
    #[test]
    fn loom_no_wakeup_is_lost() {
        loom::model(|| {
            let (mut post, mut take, mut push) = ring(2);
            post.post(NOWHERE);
            let peer = loom::thread::spawn(move || {
                assert!(push.may_push(), "posted before the peer started");
                push.push(Way::Ring, arrival(7), false)
            });
            take.arm(Arm::Any);
            let seen = take.take();
            let rung = peer.join().expect("no panic");
            // Either the owner saw it when it polled again, or it was woken.
            assert!(seen.is_some() || rung);
            if seen.is_none() {
                assert_eq!(take.take(), Some(arrival(7)));
            }
        });
    }

    #[test]
    fn loom_a_payload_is_complete_when_its_arrival_is_seen() {
        loom::model(|| {
            let (mut post, mut take, mut push) = ring(2);
            let payload = Arc::new(AtomicU64::new(0));
            post.post(Receive { place: 5, key: 6, bytes: 7 });
            let written = payload.clone();
            let peer = loom::thread::spawn(move || {
                assert!(push.may_push(), "posted before the peer started");
                assert_eq!(push.receive(), Receive { place: 5, key: 6, bytes: 7 });
                written.store(42, Ordering::Relaxed);
                push.push(Way::Ring, arrival(1), false);
            });
            if let Some(got) = take.take() {
                assert_eq!(got, arrival(1));
                assert_eq!(payload.load(Ordering::Relaxed), 42);
            }
            peer.join().expect("no panic");
        });
    }

    /// Both lines of it, and where it belongs.
    #[test]
    fn loom_a_carried_payload_is_complete_when_its_arrival_is_seen() {
        loom::model(|| {
            let (mut post, mut take, mut push) = ring(2);
            let words = take.words.clone();
            post.post(NOWHERE);
            let carried = Arrival { carried_to: Some((8, 9)), ..arrival(1) };
            let ends = [0, MAX_CARRIED / 8 - 1];
            let peer = loom::thread::spawn(move || {
                assert!(push.may_push(), "posted before the peer started");
                for word in ends {
                    let (memory, at) = push.payload(Way::Ring);
                    let payload = &memory[at + word];
                    payload.store(42 + word as u64, Ordering::Relaxed);
                }
                push.push(Way::Ring, carried, false);
            });
            if let Some(got) = take.take() {
                assert_eq!(got, carried);
                for word in ends {
                    let payload = &words[take.payload().1 + word];
                    assert_eq!(payload.load(Ordering::Relaxed), 42 + word as u64);
                }
            }
            peer.join().expect("no panic");
        });
    }

    /// The peer does not fill a place again before its owner has read it and posted another
    /// receive.
    #[test]
    fn loom_a_carried_payload_stays_until_its_receive_is_posted_again() {
        loom::model(|| {
            let (mut post, mut take, mut push) = ring(1);
            let words = take.words.clone();
            post.post(NOWHERE);
            let carried = |n| Arrival { carried_to: Some((8, 9)), ..arrival(n) };
            let peer = loom::thread::spawn(move || {
                for n in [1, 2] {
                    if push.may_push() {
                        let (memory, at) = push.payload(Way::Ring);
                        let payload = &memory[at];
                        payload.store(n.into(), Ordering::Relaxed);
                        push.push(Way::Ring, carried(n), false);
                    }
                }
            });
            for n in [1, 2] {
                let Some(got) = take.take() else { break };
                assert_eq!(got, carried(n));
                let payload = words[take.payload().1].load(Ordering::Relaxed);
                assert_eq!(payload, u64::from(n));
                post.post(NOWHERE);
            }
            peer.join().expect("no panic");
        });
    }

    #[test]
    fn loom_a_receive_is_complete_when_its_post_is_seen() {
        loom::model(|| {
            let (mut post, mut take, mut push) = ring(1);
            let peer = loom::thread::spawn(move || {
                if push.may_push() {
                    assert_eq!(push.receive(), Receive { place: 1, key: 2, bytes: 3 });
                    push.push(Way::Ring, arrival(9), false);
                    return true;
                }
                false
            });
            post.post(Receive { place: 1, key: 2, bytes: 3 });
            if peer.join().expect("no panic") {
                assert_eq!(take.take(), Some(arrival(9)));
            }
        });
    }
}

#[cfg(not(loom))]
mod facts {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn nothing_arrives_without_a_posted_receive() {
        let (mut post, mut take, mut push) = ring(4);
        assert!(!push.may_push());
        post.post(NOWHERE);
        assert!(push.may_push());
        assert_eq!(push.receive(), NOWHERE);
        push.push(Way::Ring, arrival(1), false);
        assert!(!push.may_push());
        assert_eq!(take.take(), Some(arrival(1)));
        assert_eq!(take.take(), None);
    }

    /// Or a message that came while its receive was flushed would be another receive's.
    #[test]
    fn nothing_is_taken_after_a_receive_was_given_up() {
        let (mut post, mut take, mut push) = ring(4);
        (0..3).for_each(|_| {
            post.post(NOWHERE);
        });
        take.skip();
        assert!(push.may_push(), "posted, just now");
        push.push(Way::Ring, arrival(1), false);
        assert_eq!(take.take(), None);
        take.connect(&turn_slot(take.words.clone(), Side::Connector), false);
        assert_eq!((take.ready(), take.take(), take.taken()), (false, None, 1));
    }

    #[test]
    fn the_bell_is_rung_once_for_each_arming() {
        let (mut post, take, mut push) = ring(8);
        (0..6).for_each(|_| {
            post.post(NOWHERE);
        });
        let mut next = |solicited| {
            assert!(push.may_push());
            push.push(Way::Ring, arrival(0), solicited)
        };
        assert!(!next(false));
        take.arm(Arm::Any);
        assert!(next(false));
        assert!(!next(false));
        take.arm(Arm::Solicited);
        assert!(!next(false));
        assert!(next(true));
        assert!(!next(true));
    }

    proptest! {
        /// Against a queue, from any start index, wrap-around included.
        #[test]
        fn it_behaves_like_a_bounded_queue(
            start in prop_oneof![Just(0u32), Just(u32::MAX - 20), any::<u32>()],
            steps in proptest::collection::vec(0..3u8, 1..200),
        ) {
            const DEPTH: u32 = 8;
            let (mut post, mut take, mut push) = ring(DEPTH);
            post.posted = start;
            take.taken = start;
            take.from_ring = start;
            push.pushed = start;
            push.in_ring = start;
            push.posted_seen = start;
            let (mut posted, mut in_flight, mut n) = (0, VecDeque::new(), 0u32);
            for step in steps {
                match step {
                    0 if posted + (in_flight.len() as u32) < DEPTH => {
                        post.post(NOWHERE);
                        posted += 1;
                    }
                    1 => {
                        prop_assert_eq!(push.may_push(), posted > 0);
                        if posted > 0 {
                            n += 1;
                            push.push(Way::Ring, arrival(n), false);
                            in_flight.push_back(arrival(n));
                            posted -= 1;
                        }
                    }
                    _ => prop_assert_eq!(take.take(), in_flight.pop_front()),
                }
            }
        }

        /// A peer that writes anything anywhere gets wrong answers, never a panic or a hang.
        #[test]
        fn a_hostile_peer_gets_no_further_than_the_ring(
            scribbles in proptest::collection::vec(
                (prop_oneof![Just(POSTED), any::<usize>()], any::<u64>()),
                1..100,
            ),
        ) {
            let (mut post, mut take, mut push) = ring(4);
            for (at, value) in scribbles {
                let words = post.words.clone();
                post.post(NOWHERE);
                words[at % words.len()].store(value, Ordering::Relaxed);
                let _ = push.may_push().then(|| push.push(Way::Ring, arrival(1), true));
                let _ = take.take();
                prop_assert!(push.posted_seen.wrapping_sub(push.pushed) <= 4);
            }
        }
    }
}
