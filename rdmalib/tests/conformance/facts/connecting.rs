//! Two queue pairs meet, or do not.

use std::thread;
use std::time::Duration;

use rdmalib::{
    Access, Device, Error, Flags, MAX_ACCEPT_DATA, MAX_CONNECT_DATA, MAX_REJECT_DATA, Operation,
    PrivateData, QueuePairConfig, Result, Source, State, Status,
};

use crate::Fixture;
use crate::ends::*;

fn end(device: &Device) -> End {
    End::new(device, &QueuePairConfig::default())
}

/// Connects with `data`; the listener's side does what `answer` says. The connector's result.
fn connect(
    fixture: &Fixture,
    data: &[u8],
    answer: impl FnOnce(rdmalib::ConnectRequest, &mut End),
) -> Result<PrivateData> {
    let (server, client) = open(fixture);
    let (mut listener, to) = listen(&server);
    let (mut server, mut client) = (end(&server), end(&client));
    thread::scope(|scope| {
        let connector = scope.spawn(|| client.pair.connect(to, data, PATIENCE));
        answer(listener.next(PATIENCE).unwrap().expect("a connector comes"), &mut server);
        connector.join().expect("connecting does not panic")
    })
}

fn pattern(bytes: usize) -> Vec<u8> {
    (1..=bytes).map(|n| n as u8).collect()
}

pub fn private_data_travels_both_ways(fixture: &Fixture) {
    for (there, back) in [(0, 0), (1, 3), (MAX_CONNECT_DATA, MAX_ACCEPT_DATA)] {
        let answer = connect(fixture, &pattern(there), |request, server| {
            assert_eq!(request.private_data()[..there], pattern(there));
            assert!(!request.peer().is_empty());
            request.accept(&mut server.pair, &pattern(back)).unwrap();
        });
        assert_eq!(answer.unwrap().as_slice()[..back], pattern(back));
    }
}

pub fn too_much_private_data_is_refused(fixture: &Fixture) {
    let (device, _) = open(fixture);
    let (_listener, to) = listen(&device);
    let too_long = end(&device).pair.connect(to, &pattern(MAX_CONNECT_DATA + 1), PATIENCE);
    assert!(matches!(too_long, Err(Error::PrivateDataTooLong { .. })), "{too_long:?}");
    let refused = connect(fixture, &[], |request, server| {
        let too_long = request.accept(&mut server.pair, &pattern(MAX_ACCEPT_DATA + 1));
        assert!(matches!(too_long, Err(Error::PrivateDataTooLong { .. })), "{too_long:?}");
        assert_eq!(server.pair.state(), State::Init);
    });
    assert!(matches!(refused, Err(Error::Rejected { .. })), "{refused:?}");
}

pub fn a_rejection_carries_private_data(fixture: &Fixture) {
    let refused = connect(fixture, b"please", |request, _| {
        request.reject(&pattern(MAX_REJECT_DATA)).unwrap();
    });
    match refused {
        Err(Error::Rejected { private_data }) => {
            assert_eq!(private_data.as_slice()[..MAX_REJECT_DATA], pattern(MAX_REJECT_DATA));
        }
        other => panic!("{other:?}"),
    }
}

pub fn a_dropped_request_is_a_rejection(fixture: &Fixture) {
    let refused = connect(fixture, &[], |request, _| drop(request));
    match refused {
        Err(Error::Rejected { private_data }) => {
            assert!(private_data.as_slice().iter().all(|byte| *byte == 0));
        }
        other => panic!("{other:?}"),
    }
}

pub fn connecting_where_nobody_listens_is_refused(fixture: &Fixture) {
    let (server, client) = open(fixture);
    let to = listen(&server).1; // the listener is gone again
    let refused = end(&client).pair.connect(to, &[], PATIENCE);
    assert!(matches!(refused, Err(Error::ConnectionRefused(addr)) if addr == to), "{refused:?}");
}

pub fn connecting_to_who_does_not_answer_times_out(fixture: &Fixture) {
    let (server, client) = open(fixture);
    let (_listener, to) = listen(&server);
    let mut client = end(&client);
    let late = client.pair.connect(to, &[], Duration::from_millis(50));
    assert!(matches!(late, Err(Error::TimedOut { .. })), "{late:?}");
}

pub fn an_address_has_one_listener(fixture: &Fixture) {
    let (device, _) = open(fixture);
    let (_first, addr) = listen(&device);
    let second = device.listen(addr.port());
    let refused = second.expect_err("the address is taken");
    assert!(matches!(refused, Error::AddressInUse(taken) if taken == addr), "{refused:?}");
}

pub fn a_listener_gives_its_address_back(fixture: &Fixture) {
    let (device, _) = open(fixture);
    let (first, addr) = listen(&device);
    drop(first);
    assert_eq!(device.listen(addr.port()).unwrap().local_addr(), addr);
}

pub fn several_clients_connect_at_once(fixture: &Fixture) {
    const CLIENTS: usize = 12;
    let (server, client) = open(fixture);
    let (mut listener, to) = listen(&server);
    thread::scope(|scope| {
        for n in 0..CLIENTS {
            let mut client = end(&client);
            scope.spawn(move || {
                client.post_receives(0..1);
                let answer = client.pair.connect(to, &[n as u8], PATIENCE).unwrap();
                assert_eq!(answer.as_slice()[0], n as u8);
                assert_eq!(next(&mut client.receives).immediate, Some(n as u32));
            });
        }
        let mut servers = Vec::new();
        for _ in 0..CLIENTS {
            let request = listener.next(PATIENCE).unwrap().expect("a connector comes");
            let mut server = end(&server);
            let n = request.private_data()[0];
            request.accept(&mut server.pair, &[n]).unwrap();
            let immediate = Some(u32::from(n));
            let message = Operation::Send { source: Source::Inline(&[]), immediate };
            assert_eq!(server.run(message), Status::Success);
            servers.push(server);
        }
    });
}

pub fn the_same_two_connect_again_and_again(fixture: &Fixture) {
    let (server, client) = open(fixture);
    let (mut listener, to) = listen(&server);
    for round in 0..100 {
        let (mut server, mut client) = (end(&server), end(&client));
        client.post_receives(0..1);
        thread::scope(|scope| {
            scope.spawn(|| client.pair.connect(to, &[], PATIENCE).unwrap());
            accept(&mut listener, &mut server);
        });
        let message = Operation::Send { source: Source::Inline(&[]), immediate: Some(round) };
        assert_eq!(server.run(message), Status::Success);
        assert_eq!(next(&mut client.receives).immediate, Some(round));
    }
}

pub fn a_connection_is_made_once(fixture: &Fixture) {
    let (_server, mut client) = ends(fixture);
    let to = listen(&client.device).1;
    let again = client.pair.connect(to, &[], PATIENCE);
    assert!(matches!(again, Err(Error::InvalidArgument(_))), "{again:?}");
    assert_eq!(client.pair.state(), State::Connected);
}

pub fn what_arrives_during_an_accept_keeps_its_order(fixture: &Fixture) {
    const MESSAGES: u32 = 4;
    let (server, client) = open(fixture);
    let config = QueuePairConfig::default();
    for _ in 0..fixture.rounds(400) {
        let (mut server, mut client) = (End::new(&server, &config), End::new(&client, &config));
        server.post_receives(0..MESSAGES.into());
        let End { device, receives, pair, .. } = &mut server;
        let (mut listener, to) = listen(device);
        thread::scope(|scope| {
            scope.spawn(|| {
                client.pair.connect(to, &[], PATIENCE).unwrap();
                for n in 0..MESSAGES {
                    let source = Source::Inline(&[]);
                    client.post(0, Operation::Send { source, immediate: Some(n) }, Flags::SIGNALED);
                }
            });
            // Somebody else polls meanwhile.
            scope.spawn(|| {
                for n in 0..MESSAGES {
                    let done = next(receives);
                    assert_eq!((done.id, done.immediate), (n.into(), Some(n)));
                }
            });
            let request = listener.next(PATIENCE).unwrap().expect("a connector comes");
            request.accept(pair, &[]).unwrap();
        });
    }
}

/// What an assertion or an error shows is for people: no mappings, descriptors, keys.
pub fn objects_show_themselves_in_one_short_line(fixture: &Fixture) {
    let (server, client) = open(fixture);
    let (mut listener, to) = listen(&server);
    let (mut server, mut client) = (end(&server), end(&client));
    let target = server.region(64);
    let mut shown = thread::scope(|scope| {
        let connector = scope.spawn(|| client.pair.connect(to, &[], PATIENCE).unwrap());
        let request = listener.next(PATIENCE).unwrap().expect("a connector comes");
        let shown = format!("{request:?}");
        request.accept(&mut server.pair, &[]).unwrap();
        connector.join().expect("connecting does not panic");
        vec![shown]
    });
    let mapping = client.pair.map_remote(target.remote(), 64, Access::REMOTE_READ).unwrap();
    shown.extend(mapping.map(|mapping| format!("{mapping:?}")));
    shown.extend([
        format!("{:?}", server.device),
        format!("{:?}", server.domain),
        format!("{:?}", server.sends),
        format!("{:?}", server.sends.waker()),
        format!("{listener:?}"),
        format!("{target:?}"),
        format!("{:?}", target.slice(1..3).unwrap()),
        format!("{:?}", server.pair),
    ]);
    let (send, receive) = server.pair.split();
    shown.extend([format!("{send:?}"), format!("{receive:?}")]);
    for text in &shown {
        assert!(text.len() <= 100 && !text.contains('\n'), "{} bytes: {text}", text.len());
    }
    let name = &fixture.server.name;
    assert!(shown.iter().any(|text| text.starts_with(&format!("Device({name}, "))), "{shown:?}");
    assert!(shown.contains(&"Region(64 bytes)".into()), "{shown:?}");
}
