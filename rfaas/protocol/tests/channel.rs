//! Control connections on the embedded device, both ends in this process.

#![allow(clippy::unwrap_used)] // in helpers too: what fails there is the test

use std::os::fd::AsFd;
use std::thread;
use std::time::{Duration, Instant};

use rdmalib::{
    Access, CompletionQueue, Device, Domain, Flags, Listener, Operation, QueuePair,
    QueuePairConfig, RemoteAddress, Source, Status, WorkRequest,
};
use rdmalib_testing::device;
use rfaas_protocol::accounting::Counters;
use rfaas_protocol::channel::{Channel, ChannelError, Incoming, limit_peers_to_messages, refuse};
use rfaas_protocol::lease::{ClientName, LeaseRequest};
use rfaas_protocol::node::{FromNode, LeaseEndedAck, ToNode};
use rfaas_protocol::{
    Clock, Empty, Hello, MAX_MESSAGE_BYTES, Malformed, MessageKind, Refusal, Role, parse_prefix,
};
use rfaas_protocol::{allocation, lease};

/// Ends what hangs; nothing here takes nearly as long.
const LONG: Duration = Duration::from_secs(30);
const SHORT: Duration = Duration::from_millis(30);

/// A listener and what connects to it: run `client` against `server`, each with the device.
fn meet<C: Send, S>(
    client: impl FnOnce(&Device, std::net::SocketAddr) -> C + Send,
    server: impl FnOnce(&Device, &mut Listener) -> S,
) -> (C, S) {
    let device = device();
    let mut listener = device.listen(0).unwrap();
    let addr = listener.local_addr();
    thread::scope(|scope| {
        let client = scope.spawn(|| client(&device, addr));
        let server = server(&device, &mut listener);
        (client.join().unwrap(), server)
    })
}

/// Two connected channels, the connecting one first.
fn pair(client_depth: u32, server_depth: u32) -> (Channel, Channel) {
    meet(
        |device, addr| {
            let mut channel = Channel::new(device, client_depth).unwrap();
            channel.connect(addr, Role::Node, &Empty {}, LONG).unwrap();
            channel
        },
        |device, listener| {
            let mut channel = Channel::new(device, server_depth).unwrap();
            channel.accept(listener.next(LONG).unwrap().unwrap(), &Empty {}).unwrap();
            channel
        },
    )
}

/// A channel whose peer is no channel but `client`, which does what it likes.
fn meet_raw<C: Send>(
    client: impl FnOnce(&mut QueuePair, &Domain, &mut CompletionQueue) -> C + Send,
) -> (Channel, C) {
    let (client, server) = meet(
        |device, addr| {
            let (domain, mut completions) =
                (device.domain().unwrap(), device.completion_queue(256).unwrap());
            let config = QueuePairConfig::default();
            let mut queue_pair =
                QueuePair::new(&domain, &completions, &completions, &config).unwrap();
            let hello = Hello::with(Role::Node, &Empty {});
            queue_pair.connect(addr, &hello, LONG).unwrap();
            client(&mut queue_pair, &domain, &mut completions)
        },
        |device, listener| {
            let mut channel = Channel::new(device, 4).unwrap();
            channel.accept(listener.next(LONG).unwrap().unwrap(), &Empty {}).unwrap();
            channel
        },
    );
    (server, client)
}

fn ack(lease: u64) -> ToNode {
    ToNode::EndedAck(LeaseEndedAck { lease: lease.into() })
}

/// A peer that sends what it likes.
struct Raw(Vec<u8>);

impl MessageKind for Raw {
    fn encode(&self) -> Vec<u8> {
        self.0.clone()
    }

    fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        Ok(Raw(bytes.to_vec()))
    }
}

#[test]
fn a_channel_may_move_to_another_thread() {
    fn check<T: Send>() {}
    check::<Channel>();
    check::<ChannelError>();
}

#[test]
fn who_connects_tells_its_role_and_is_answered() {
    let counters = Counters { addr: 0x1234_5678_9abc.into(), key: 7.into() };
    let challenge = LeaseEndedAck { lease: 77.into() };
    let (answer, ()) = meet(
        |device, addr| {
            let mut channel = Channel::new(device, 4).unwrap();
            assert!(!channel.is_connected());
            let answer = channel.connect(addr, Role::Accounting, &challenge, LONG).unwrap();
            assert!(channel.is_connected());
            answer
        },
        |device, listener| {
            let request = listener.next(LONG).unwrap().unwrap();
            let (role, body) = Hello::parse(request.private_data()).unwrap();
            assert_eq!((role, parse_prefix(body)), (Role::Accounting, Ok(challenge)));
            let mut channel = Channel::new(device, 4).unwrap();
            channel.accept(request, &counters).unwrap();
            // Stays until the peer has looked.
            let _ = channel.receive::<FromNode>(LONG);
        },
    );
    assert_eq!(parse_prefix(answer.as_slice()), Ok(counters));
}

#[test]
fn messages_go_both_ways_in_order() {
    let (mut client, mut server) = pair(8, 8);
    thread::scope(|scope| {
        scope.spawn(|| {
            for i in 0..1000 {
                client.send(&ack(i)).unwrap();
                assert_eq!(client.receive(LONG).unwrap(), Incoming::Message(ack(i + 1)));
            }
        });
        for i in 0..1000 {
            assert_eq!(server.receive(LONG).unwrap(), Incoming::Message(ack(i)));
            server.send(&ack(i + 1)).unwrap();
        }
    });
}

#[test]
fn long_messages_and_neighbours_are_not_mixed_up() {
    let (mut client, mut server) = pair(4, 3);
    let sent: Vec<Vec<u8>> =
        (0..40u8).map(|i| vec![i; if i % 2 == 0 { MAX_MESSAGE_BYTES } else { 3 }]).collect();
    for bytes in &sent {
        client.send(&Raw(bytes.clone())).unwrap();
    }
    for bytes in &sent {
        let Incoming::Message(Raw(received)) = server.receive(LONG).unwrap() else { panic!() };
        assert_eq!(&received, bytes);
    }
}

#[test]
fn the_text_of_a_refusal_arrives() {
    let (error, ()) = meet(
        |device, addr| {
            let mut channel = Channel::new(device, 4).unwrap();
            channel.connect(addr, Role::Lease, &Empty {}, LONG).unwrap_err()
        },
        |_, listener| refuse(listener.next(LONG).unwrap().unwrap(), "no room\nhere: \u{1b}[31mé"),
    );
    let ChannelError::Refused(why) = error else { panic!("{error}") };
    assert_eq!(why, "no room here:  [31mé");
}

#[test]
fn a_refusal_that_is_too_long_is_cut() {
    let (error, ()) = meet(
        |device, addr| {
            let mut channel = Channel::new(device, 4).unwrap();
            channel.connect(addr, Role::Lease, &Empty {}, LONG).unwrap_err()
        },
        |_, listener| refuse(listener.next(LONG).unwrap().unwrap(), &"x".repeat(1000)),
    );
    let ChannelError::Refused(why) = error else { panic!("{error}") };
    assert_eq!(why, "x".repeat(120));
}

#[test]
fn a_rejection_without_words_or_with_nonsense_is_a_rejection() {
    for nonsense in [&[][..], &[0xff; 148], &[5, 0, 0xff]] {
        let (error, ()) = meet(
            |device, addr| {
                let mut channel = Channel::new(device, 4).unwrap();
                channel.connect(addr, Role::Lease, &Empty {}, LONG).unwrap_err()
            },
            |_, listener| listener.next(LONG).unwrap().unwrap().reject(nonsense).unwrap(),
        );
        let rejected = matches!(error, ChannelError::Rdma(rdmalib::Error::Rejected { .. }));
        assert!(rejected, "{error}");
    }
    assert_eq!(Refusal::truncated("").get(), Ok(""));
}

#[test]
fn nobody_listening_is_an_error_of_the_device() {
    let device = device();
    let addr = device.listen(0).unwrap().local_addr(); // and gone
    let mut channel = Channel::new(&device, 4).unwrap();
    let error = channel.connect(addr, Role::Lease, &Empty {}, LONG).unwrap_err();
    let refused =
        matches!(error, ChannelError::Rdma(rdmalib::Error::ConnectionRefused(at)) if at == addr);
    assert!(refused, "{error}");
}

#[test]
fn a_listener_that_does_not_answer_is_a_timeout() {
    let device = device();
    let listener = device.listen(0).unwrap();
    let mut channel = Channel::new(&device, 4).unwrap();
    let error = channel.connect(listener.local_addr(), Role::Lease, &Empty {}, SHORT).unwrap_err();
    assert!(matches!(error, ChannelError::TimedOut { after: SHORT, .. }), "{error}");
}

#[test]
fn the_end_is_told_after_the_last_message() {
    for dropped in [false, true] {
        let (mut client, mut server) = pair(4, 16);
        for i in 0..10 {
            client.send(&ack(i)).unwrap();
        }
        client.flush(LONG).unwrap();
        if dropped {
            drop(client);
        } else {
            client.disconnect();
            client.disconnect();
            assert!(!client.is_connected());
        }
        for i in 0..10 {
            assert_eq!(server.receive(LONG).unwrap(), Incoming::Message(ack(i)));
        }
        for _ in 0..3 {
            let end = server.receive::<ToNode>(LONG).unwrap_err();
            assert!(matches!(end, ChannelError::Disconnected), "{end}");
            let end = server.try_receive::<ToNode>().unwrap_err();
            assert!(matches!(end, ChannelError::Disconnected), "{end}");
        }
        assert!(!server.is_connected());
        assert!(matches!(server.send(&ack(0)), Err(ChannelError::Disconnected)));
    }
}

#[test]
fn messages_that_fill_every_receive_are_delivered_after_the_end() {
    let (mut client, mut server) = pair(4, 2);
    client.send(&ack(1)).unwrap();
    client.send(&ack(2)).unwrap();
    client.flush(LONG).unwrap();
    drop(client);
    thread::sleep(SHORT);
    assert_eq!(server.receive(LONG).unwrap(), Incoming::Message(ack(1)));
    assert_eq!(server.receive(LONG).unwrap(), Incoming::Message(ack(2)));
    assert!(matches!(server.receive::<ToNode>(LONG), Err(ChannelError::Disconnected)));
}

#[test]
fn our_own_end_is_the_end_too() {
    let (mut client, server) = pair(4, 4);
    client.disconnect();
    assert!(matches!(client.receive::<ToNode>(LONG), Err(ChannelError::Disconnected)));
    assert!(matches!(client.send(&ack(1)), Err(ChannelError::Disconnected)));
    assert!(matches!(
        client.write_with_immediate(
            &client.domain().allocate(8, Access::LOCAL_WRITE).unwrap(),
            8,
            RemoteAddress::default(),
            0
        ),
        Err(ChannelError::Disconnected)
    ));
    drop(server);
}

#[test]
fn a_flood_waits_for_its_receiver_and_loses_nothing() {
    const MESSAGES: u64 = 10_000;
    let (mut client, mut server) = pair(4, 8);
    thread::scope(|scope| {
        scope.spawn(move || {
            for i in 0..MESSAGES {
                while let Err(error) = client.send(&ack(i)) {
                    assert!(matches!(error, ChannelError::Busy), "{error}");
                    client.flush(LONG).unwrap();
                }
            }
            client.flush(LONG).unwrap();
        });
        for i in 0..MESSAGES {
            assert_eq!(server.receive(LONG).unwrap(), Incoming::Message(ack(i)));
        }
        let end = server.receive::<ToNode>(LONG);
        assert!(matches!(end, Err(ChannelError::Disconnected)), "{end:?}");
    });
}

#[test]
fn a_peer_that_takes_nothing_ends_in_busy_and_not_in_a_wait() {
    let (mut client, mut server) = pair(4, 2);
    let mut sent = 0;
    let error = loop {
        match client.send(&ack(sent)) {
            Ok(()) => sent += 1,
            Err(error) => break error,
        }
        assert!(sent < 1000, "accepted without end");
    };
    assert!(matches!(error, ChannelError::Busy), "{error}");
    assert!(client.is_connected());
    let error = client.flush(SHORT).unwrap_err();
    assert!(matches!(error, ChannelError::TimedOut { after: SHORT, .. }), "{error}");
    // The peer wakes up: everything that was accepted arrives, and there is room again.
    for i in 0..sent {
        assert_eq!(server.receive(LONG).unwrap(), Incoming::Message(ack(i)));
    }
    client.flush(LONG).unwrap();
    client.send(&ack(sent)).unwrap();
    assert_eq!(server.receive(LONG).unwrap(), Incoming::Message(ack(sent)));
}

#[test]
fn a_peer_that_leaves_ends_a_flush() {
    let (mut client, server) = pair(4, 1);
    for i in 0..10 {
        client.send(&ack(i)).unwrap();
    }
    thread::scope(|scope| {
        scope.spawn(move || {
            thread::sleep(SHORT);
            drop(server);
        });
        let error = client.flush(LONG).unwrap_err();
        assert!(matches!(error, ChannelError::Disconnected), "{error}");
    });
}

#[test]
fn waiting_has_a_deadline() {
    let (mut client, _server) = pair(4, 4);
    let start = Instant::now();
    let error = client.receive::<ToNode>(SHORT).unwrap_err();
    assert!(matches!(error, ChannelError::TimedOut { after: SHORT, .. }), "{error}");
    assert!(start.elapsed() >= SHORT);
    let error = client.receive::<ToNode>(Duration::ZERO).unwrap_err();
    assert!(matches!(error, ChannelError::TimedOut { .. }), "{error}");
    assert!(client.is_connected());
    assert_eq!(client.try_receive::<ToNode>().unwrap(), None);
}

#[test]
fn a_message_ends_a_wait() {
    let (mut client, mut server) = pair(4, 4);
    thread::scope(|scope| {
        scope.spawn(|| {
            thread::sleep(SHORT);
            server.send(&ack(1)).unwrap();
        });
        assert_eq!(client.receive(LONG).unwrap(), Incoming::Message(ack(1)));
    });
}

#[test]
fn bytes_that_are_no_message_are_an_error_and_the_next_is_read() {
    let (mut client, mut server) = pair(4, 4);
    client.send(&Raw(vec![])).unwrap();
    client.send(&Raw(vec![1])).unwrap();
    client.send(&Raw(vec![0xff; 600])).unwrap();
    let heartbeat = FromNode::Heartbeat(Clock::now());
    client.send(&heartbeat).unwrap();
    for _ in 0..3 {
        let error = server.receive::<FromNode>(LONG).unwrap_err();
        assert!(matches!(error, ChannelError::Malformed(_)), "{error}");
    }
    assert_eq!(server.receive(LONG).unwrap(), Incoming::Message(heartbeat));
}

#[test]
fn a_channel_of_messages_has_room_for_them_and_for_nothing_else() {
    let device = device();
    for depth in [1, 8, 9, 63, 1000, 1025, 4097, device.limits().max_queue_depth] {
        let channel = Channel::of_messages(&device, depth).unwrap();
        let most = (64 + 2 * depth as usize).next_power_of_two() * MAX_MESSAGE_BYTES;
        let more = channel.domain().allocate(most.max(1 << 20) + 1, Access::empty());
        assert!(matches!(more, Err(rdmalib::Error::InvalidArgument(_))), "{depth}: {more:?}");
    }
    let (mut client, mut server) = meet(
        |device, addr| {
            let mut channel = Channel::of_messages(device, 1).unwrap();
            channel.connect(addr, Role::Node, &Empty {}, LONG).unwrap();
            channel
        },
        |device, listener| {
            let mut channel = Channel::of_messages(device, 1).unwrap();
            channel.accept(listener.next(LONG).unwrap().unwrap(), &Empty {}).unwrap();
            channel
        },
    );
    client.send(&ack(1)).unwrap();
    assert_eq!(server.receive(LONG).unwrap(), Incoming::Message(ack(1)));
}

#[test]
fn the_deepest_channel_fits_into_what_a_program_of_channels_takes_of_a_peer() {
    limit_peers_to_messages();
    let depth = device().limits().max_queue_depth;
    let (mut client, mut server) = pair(depth, 1);
    for number in 0..=depth {
        server.send(&ack(number.into())).unwrap(); // into one receive after the other
        assert_eq!(client.receive(LONG).unwrap(), Incoming::Message(ack(number.into())));
    }
}

#[test]
fn a_message_that_is_too_long_ends_the_connection_after_what_came_before() {
    let (mut server, ()) = meet_raw(|queue_pair, domain, completions| {
        let region = domain.allocate(2 * MAX_MESSAGE_BYTES, Access::empty()).unwrap();
        let hello = ack(1).encode();
        region.write(0, &hello).unwrap();
        for (id, len) in [(0, hello.len()), (1, MAX_MESSAGE_BYTES + 1)] {
            let source = Source::Region(region.slice(0..len).unwrap());
            let operation = Operation::Send { source, immediate: Some(9) };
            queue_pair.post(&WorkRequest { id, operation, flags: Flags::SIGNALED }).unwrap();
        }
        let statuses = [0, 1].map(|_| {
            let start = Instant::now();
            loop {
                if let Some(completion) = completions.poll_one() {
                    return completion.status;
                }
                assert!(start.elapsed() < LONG, "no completion");
                completions.wait(Some(LONG)).unwrap();
            }
        });
        assert_eq!(statuses[0], Status::Success);
        assert_ne!(statuses[1], Status::Success);
    });
    assert_eq!(server.receive(LONG).unwrap(), Incoming::Message(ack(1)));
    assert!(matches!(server.receive::<ToNode>(LONG), Err(ChannelError::Disconnected)));
}

#[test]
fn a_message_of_one_conversation_is_none_of_another() {
    let (mut client, mut server) = pair(4, 4);
    let request = lease::FromClient::Request(LeaseRequest {
        request: 1.into(),
        cores: 1.into(),
        memory: 1.into(),
        timeout_ms: 1.into(),
        max_nodes: 1.into(),
        client: ClientName::new("alice").unwrap(),
    });
    client.send(&request).unwrap();
    let error = server.receive::<allocation::FromClient>(LONG).unwrap_err();
    assert!(matches!(error, ChannelError::Malformed(Malformed::Length { .. })), "{error}");
}

#[test]
fn a_write_lands_in_memory_of_the_channels_domain_and_is_told() {
    let (mut client, mut server) = pair(4, 4);
    let target = client.domain().allocate(100, Access::LOCAL_WRITE | Access::REMOTE_WRITE).unwrap();
    let source = server.domain().allocate(100, Access::empty()).unwrap();
    source.fill(0..100, 7).unwrap();
    server.send(&ack(1)).unwrap();
    server.write_with_immediate(&source, 60, target.remote(), 0xdead_beef).unwrap();
    server.write_with_immediate(&source, 0, target.remote(), 2).unwrap();
    server.send(&ack(2)).unwrap();
    server.flush(LONG).unwrap();

    assert_eq!(client.receive(LONG).unwrap(), Incoming::Message(ack(1)));
    let written = client.receive::<ToNode>(LONG).unwrap();
    assert_eq!(written, Incoming::Written { immediate: 0xdead_beef, bytes: 60 });
    let mut bytes = [0; 100];
    target.read(0, &mut bytes).unwrap();
    assert_eq!(bytes[..60], [7; 60]);
    assert_eq!(bytes[60..], [0; 40]);
    let written = client.receive::<ToNode>(LONG).unwrap();
    assert_eq!(written, Incoming::Written { immediate: 2, bytes: 0 });
    assert_eq!(client.receive(LONG).unwrap(), Incoming::Message(ack(2)));

    let error = server.write_with_immediate(&source, 101, target.remote(), 0).unwrap_err();
    assert!(matches!(error, ChannelError::Rdma(rdmalib::Error::OutOfBounds { .. })), "{error}");
    assert!(server.is_connected());
}

#[test]
fn a_write_that_the_peer_does_not_allow_ends_the_connection_of_both() {
    let (mut client, mut server) = pair(4, 4);
    let target = client.domain().allocate(64, Access::LOCAL_WRITE).unwrap();
    let source = server.domain().allocate(64, Access::empty()).unwrap();
    source.fill(0..64, 7).unwrap();
    client.send(&ack(5)).unwrap();
    server.write_with_immediate(&source, 64, target.remote(), 1).unwrap();
    assert!(matches!(server.flush(LONG), Err(ChannelError::Disconnected)));
    assert_eq!(server.receive(LONG).unwrap(), Incoming::Message(ack(5)));
    assert!(matches!(server.receive::<ToNode>(LONG), Err(ChannelError::Disconnected)));
    assert!(matches!(client.receive::<ToNode>(LONG), Err(ChannelError::Disconnected)));
    let mut bytes = [1; 64];
    target.read(0, &mut bytes).unwrap();
    assert_eq!(bytes, [0; 64]);
}

/// Returns whether `channel`'s descriptor becomes readable in time.
fn readable(channel: &Channel, timeout: Duration) -> bool {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    let mut fds = [PollFd::new(channel.as_fd(), PollFlags::POLLIN)];
    let timeout = PollTimeout::try_from(timeout).unwrap();
    poll(&mut fds, timeout).unwrap() == 1
}

#[test]
fn an_armed_channel_is_readable_when_something_arrives_or_ends() {
    let (mut client, mut server) = pair(4, 4);
    for i in 0..100 {
        server.arm().unwrap();
        assert_eq!(server.try_receive::<ToNode>().unwrap(), None);
        client.send(&ack(i)).unwrap();
        assert!(readable(&server, LONG));
        server.acknowledge().unwrap();
        assert_eq!(server.try_receive().unwrap(), Some(Incoming::Message(ack(i))));
    }
    server.arm().unwrap();
    assert_eq!(server.try_receive::<ToNode>().unwrap(), None);
    assert!(!readable(&server, SHORT), "nothing arrived");
    drop(client);
    assert!(readable(&server, LONG));
    server.acknowledge().unwrap();
    assert!(matches!(server.receive::<ToNode>(LONG), Err(ChannelError::Disconnected)));
}

#[test]
fn what_is_not_announced_wakes_nobody_and_is_taken_in_its_turn() {
    let (mut client, mut server) = pair(4, 4);
    for i in 0..100 {
        server.arm_for_announced().unwrap();
        assert_eq!(server.try_receive::<ToNode>().unwrap(), None);
        client.send_unannounced(&ack(2 * i)).unwrap();
        client.flush(LONG).unwrap();
        assert!(!readable(&server, Duration::ZERO), "it wakes nobody");
        client.send(&ack(2 * i + 1)).unwrap();
        assert!(readable(&server, LONG));
        server.acknowledge().unwrap();
        for i in [2 * i, 2 * i + 1] {
            assert_eq!(server.receive(LONG).unwrap(), Incoming::Message(ack(i)));
        }
    }
    server.arm().unwrap();
    client.send_unannounced(&ack(200)).unwrap();
    assert!(readable(&server, LONG), "it asked for all");
    server.acknowledge().unwrap();
    server.receive::<ToNode>(LONG).unwrap();
    server.arm_for_announced().unwrap();
    drop(client);
    assert!(readable(&server, LONG), "an end is always announced");
}

#[test]
fn a_channel_without_receives_or_before_its_connection_is_an_error() {
    let device = device();
    let error = Channel::new(&device, 0).unwrap_err();
    assert!(matches!(error, ChannelError::Rdma(rdmalib::Error::InvalidArgument(_))), "{error}");
    let mut channel = Channel::new(&device, 1).unwrap();
    for _ in 0..200 {
        assert!(channel.send(&ack(0)).is_err(), "and no slot is lost");
    }
    channel.flush(Duration::ZERO).unwrap();
    assert_eq!(channel.try_receive::<ToNode>().unwrap(), None);
}
