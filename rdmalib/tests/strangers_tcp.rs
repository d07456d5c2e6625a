//! Who else connects to a listener on TCP: port scanners, browsers, and those that say nothing.

#![allow(clippy::unwrap_used)] // a test's way to fail, in functions that are no tests too

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use rdmalib::{Device, DeviceSpec, Listener, Provider, QueuePair, QueuePairConfig};

const PATIENCE: Duration = Duration::from_secs(30);

fn device() -> Device {
    let spec = DeviceSpec {
        name: "tcp0".into(),
        provider: Provider::Tcp,
        ip_address: [127, 0, 0, 1].into(),
        max_inline_data: 0,
    };
    Device::open(&spec).unwrap()
}

fn listener() -> (Device, Listener, SocketAddr) {
    let device = device();
    let listener = device.listen(0).unwrap();
    let addr = listener.local_addr();
    (device, listener, addr)
}

/// Whether `socket` was closed, while the listener goes on.
fn is_closed(listener: &mut Listener, socket: &mut TcpStream, within: Duration) -> bool {
    socket.set_read_timeout(Some(Duration::from_millis(10))).unwrap();
    let start = Instant::now();
    while start.elapsed() < within {
        assert!(listener.try_next().unwrap().is_none(), "that was no request");
        match socket.read(&mut [0; 64]) {
            Ok(0) => return true,
            Ok(_) => {}
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(_) => return true,
        }
    }
    false
}

/// A friend connects, whoever else does.
fn a_friend_connects(device: &Device, listener: &mut Listener, addr: SocketAddr) {
    let pair = || {
        let queue = device.completion_queue(128).unwrap();
        let config = QueuePairConfig::default();
        QueuePair::new(&device.domain().unwrap(), &queue, &queue, &config).unwrap()
    };
    let (mut here, mut there) = (pair(), pair());
    std::thread::scope(|scope| {
        scope.spawn(|| there.connect(addr, b"friend", PATIENCE).unwrap());
        let request = listener.next(PATIENCE).unwrap().expect("the friend comes");
        assert_eq!(request.private_data(), b"friend");
        request.accept(&mut here, &[]).unwrap();
    });
}

#[test]
fn who_speaks_another_protocol_is_closed_at_once() {
    let (device, mut listener, addr) = listener();
    for words in [&b"GET / HTTP/1.1\r\n\r\n"[..], b"\x16\x03\x01", b"rdma/tcp\x02\x01", b"x"] {
        let mut socket = TcpStream::connect(addr).unwrap();
        socket.write_all(words).unwrap();
        if words.len() > 8 && words.starts_with(b"rdma/tcp") {
            socket.write_all(&[0; 80]).unwrap(); // known when all of it is there
        }
        assert!(is_closed(&mut listener, &mut socket, PATIENCE), "{words:?}");
    }
    a_friend_connects(&device, &mut listener, addr);
}

#[test]
fn who_says_nothing_keeps_nobody_waiting() {
    let (device, mut listener, addr) = listener();
    // More of one address than are waited for.
    let mut silent: Vec<_> = (0..100).map(|_| TcpStream::connect(addr).unwrap()).collect();
    silent[99].write_all(b"rdma/tc").unwrap(); // says something, but not all of it
    let start = Instant::now();
    a_friend_connects(&device, &mut listener, addr);
    assert!(start.elapsed() < PATIENCE);
    let first = &mut silent[0];
    assert!(is_closed(&mut listener, first, PATIENCE), "it made room for others");
    let last = &mut silent[99];
    assert!(!is_closed(&mut listener, last, Duration::from_millis(50)), "it has its time");
    assert!(is_closed(&mut listener, last, PATIENCE), "and no more");
}

#[test]
fn who_sends_frames_before_it_is_accepted_is_refused() {
    let (device, mut listener, addr) = listener();
    let mut socket = TcpStream::connect(addr).unwrap();
    let mut request = b"rdma/tcp\x01\x01\0\0\0\0\0\0".to_vec();
    request.extend(64u32.to_le_bytes());
    request.extend([0xff; 8]);
    request.extend([0; 4]);
    socket.write_all(&request).unwrap();
    socket.write_all(&[1; 32]).unwrap();
    let heard = listener.next(PATIENCE).unwrap().expect("it is a request");
    std::thread::sleep(Duration::from_millis(20));
    let queue = device.completion_queue(128).unwrap();
    let config = QueuePairConfig::default();
    let mut pair = QueuePair::new(&device.domain().unwrap(), &queue, &queue, &config).unwrap();
    assert!(heard.accept(&mut pair, &[]).is_err());
    assert_eq!(pair.state(), rdmalib::State::Init);
}
