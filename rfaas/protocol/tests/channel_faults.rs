//! Control connections whose messages meet faults (`rdmalib::faults`), both ends in this process.

#![allow(clippy::unwrap_used)] // in helpers too: what fails there is the test

use std::thread;
use std::time::{Duration, Instant};

use rdmalib::faults::{Chances, Fault, Script};
use rdmalib::{Access, Device, Listener};
use rdmalib_testing::device;
use rfaas_protocol::channel::{Channel, ChannelError, Incoming};
use rfaas_protocol::node::{LeaseEndedAck, ToNode};
use rfaas_protocol::{Empty, Malformed, Role};

/// Ends what hangs; nothing here takes nearly as long.
const LONG: Duration = Duration::from_secs(30);
const SHORT: Duration = Duration::from_millis(30);

/// A server and the clients that connected to it.
struct Server {
    device: Device,
    listener: Listener,
}

impl Server {
    fn new() -> Server {
        let device = device();
        let listener = device.listen(0).unwrap();
        Server { device, listener }
    }

    /// Both ends of one more connection, the client's first: it meets `script`.
    fn connect(&mut self, script: Script) -> (Channel, Channel) {
        let (device, to) = (self.device.clone(), self.listener.local_addr());
        let client = thread::spawn(move || {
            let mut client = Channel::new(&device, 8).unwrap();
            client.connect(to, Role::Node, &Empty {}, LONG).unwrap();
            client.inject(script);
            client
        });
        let mut server = Channel::new(&self.device, 8).unwrap();
        server.accept(self.listener.next(LONG).unwrap().unwrap(), &Empty {}).unwrap();
        (client.join().unwrap(), server)
    }
}

fn pair(script: Script) -> (Channel, Channel) {
    Server::new().connect(script)
}

fn ack(lease: u64) -> ToNode {
    ToNode::EndedAck(LeaseEndedAck { lease: lease.into() })
}

fn takes(server: &mut Channel, lease: u64) {
    assert_eq!(server.receive(LONG).unwrap(), Incoming::Message(ack(lease)));
}

#[test]
fn a_dropped_message_never_comes() {
    let (mut client, mut server) = pair(Script::new().at(0, Fault::Drop));
    client.send(&ack(1)).unwrap();
    client.flush(LONG).unwrap();
    let error = server.receive::<ToNode>(SHORT).unwrap_err();
    assert!(matches!(error, ChannelError::TimedOut { .. }), "{error}");
    client.send(&ack(2)).unwrap();
    takes(&mut server, 2);
    server.send(&ack(3)).unwrap(); // the other way is as it was
    takes(&mut client, 3);
}

#[test]
fn a_late_message_comes_before_what_was_sent_after_it() {
    let (mut client, mut server) = pair(Script::new().at(1, Fault::Delay(2 * SHORT)));
    let start = Instant::now();
    (0..4).for_each(|lease| client.send(&ack(lease)).unwrap());
    takes(&mut server, 0);
    takes(&mut server, 1);
    assert!(start.elapsed() >= 2 * SHORT);
    takes(&mut server, 2);
    takes(&mut server, 3);
}

#[test]
fn flushing_waits_for_a_late_message() {
    let (mut client, mut server) = pair(Script::new().at(0, Fault::Delay(2 * SHORT)));
    client.send(&ack(1)).unwrap();
    let error = client.flush(Duration::ZERO).unwrap_err();
    assert!(matches!(error, ChannelError::TimedOut { .. }), "{error}");
    client.flush(LONG).unwrap();
    drop(client);
    takes(&mut server, 1);
}

#[test]
fn a_duplicated_message_comes_twice() {
    let (mut client, mut server) = pair(Script::new().at(0, Fault::Duplicate));
    client.send(&ack(1)).unwrap();
    client.send(&ack(2)).unwrap();
    for lease in [1, 1, 2] {
        takes(&mut server, lease);
    }
    client.flush(LONG).unwrap();
}

#[test]
fn a_truncated_message_is_malformed_and_concerns_its_own_connection_only() {
    let mut server = Server::new();
    for bytes in 0..size_of::<LeaseEndedAck>() {
        let (mut client, mut ours) = server.connect(Script::new().at(1, Fault::Truncate(bytes)));
        let (mut other, mut beside) = server.connect(Script::new());
        client.send(&ack(1)).unwrap();
        client.send(&ack(2)).unwrap();
        takes(&mut ours, 1);
        let error = ours.receive::<ToNode>(LONG).unwrap_err();
        assert!(matches!(error, ChannelError::Malformed(Malformed::Length { .. })), "{error}");
        drop(ours); // as servers do
        let end = client.receive::<ToNode>(LONG).unwrap_err();
        assert!(matches!(end, ChannelError::Disconnected), "{end}");
        other.send(&ack(3)).unwrap();
        takes(&mut beside, 3);
    }
}

#[test]
fn a_disconnect_is_told_after_all_that_arrived_before() {
    let (mut client, mut server) = pair(Script::new().at(3, Fault::Disconnect));
    (0..3).for_each(|lease| client.send(&ack(lease)).unwrap());
    client.flush(LONG).unwrap();
    // Taken, but it does not arrive: as if the connection had ended a moment later.
    client.send(&ack(3)).unwrap();
    assert!(matches!(client.flush(LONG), Err(ChannelError::Disconnected)));
    assert!(!client.is_connected());
    (0..3).for_each(|lease| takes(&mut server, lease));
    let end = server.receive::<ToNode>(LONG).unwrap_err();
    assert!(matches!(end, ChannelError::Disconnected), "{end}");
}

#[test]
fn a_write_meets_faults_as_a_message_does() {
    let (mut client, mut server) =
        pair(Script::new().at(0, Fault::Truncate(5)).at(1, Fault::Drop).at(2, Fault::Duplicate));
    let target = server.domain().allocate(8, Access::LOCAL_WRITE | Access::REMOTE_WRITE).unwrap();
    let source = client.domain().allocate(8, Access::empty()).unwrap();
    source.fill(0..8, 7).unwrap();
    for immediate in 0..3 {
        client.write_with_immediate(&source, 8, target.remote(), immediate).unwrap();
    }
    for (immediate, bytes) in [(0, 5), (2, 8), (2, 8)] {
        let written = server.receive::<ToNode>(LONG).unwrap();
        assert_eq!(written, Incoming::Written { immediate, bytes });
    }
}

#[test]
fn a_channel_never_runs_out_of_slots_whatever_its_messages_meet() {
    let chances = Chances {
        drop: 0.2,
        delay: 0.1,
        delay_for: Duration::from_millis(1),
        duplicate: 0.2,
        ..Chances::default()
    };
    let script = Script::random(7, chances).unwrap();
    let expected: Vec<u64> = (0..500)
        .flat_map(|lease| match script.fault(lease, 0) {
            Some(Fault::Drop) => vec![],
            Some(Fault::Duplicate) => vec![lease; 2],
            _ => vec![lease],
        })
        .collect();
    let (mut client, mut server) = pair(script);
    thread::scope(|scope| {
        scope.spawn(move || {
            for lease in 0..500 {
                // One at a time: with a full queue a duplicate would be sent once.
                client.send(&ack(lease)).unwrap();
                client.flush(LONG).unwrap();
            }
        });
        expected.iter().for_each(|lease| takes(&mut server, *lease));
        let end = server.receive::<ToNode>(LONG).unwrap_err();
        assert!(matches!(end, ChannelError::Disconnected), "{end}");
    });
}
