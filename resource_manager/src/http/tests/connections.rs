//! Clients that are slow, do not read, or have closed one side.

use super::*;

#[test]
fn a_client_that_has_closed_its_sending_side_is_answered() {
    let world = World::new();
    for number in 0..20 {
        let target = format!("/add?node=n{number}");
        for (method, target, body) in [("POST", &*target, NODE), ("GET", "/nodes", "")] {
            let mut stream = TcpStream::connect(world.address).unwrap();
            let length = body.len();
            let request = format!(
                "{method} {target} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n{body}"
            );
            stream.write_all(request.as_bytes()).unwrap();
            stream.shutdown(std::net::Shutdown::Write).unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).unwrap();
            assert!(answer.starts_with("HTTP/1.1 200"), "{method}: {answer:?}");
        }
    }
}

/// A client that asks for much and does not read. Returns when nothing more is taken from it, with
/// how often it has asked at least.
fn does_not_read(world: &World) -> (TcpStream, usize) {
    let mut stream = TcpStream::connect(world.address).unwrap();
    stream.set_write_timeout(Some(Duration::from_millis(100))).unwrap();
    let ask = b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n".repeat(100);
    let mut asked = 0;
    while stream.write_all(&ask).is_ok() {
        asked += 100;
    }
    (stream, asked)
}

#[test]
fn clients_that_do_not_read_keep_nobody_out() {
    let world = World::new();
    let held: Vec<_> = thread::scope(|scope| {
        let one = || scope.spawn(|| does_not_read(&world));
        let all: Vec<_> = (0..MAX_CONNECTIONS).map(|_| one()).collect();
        all.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    for _ in 0..3 {
        assert_eq!(world.call("GET", "/healthz", "").0, 200);
    }
    drop(held);
}

#[test]
fn clients_that_send_slowly_keep_nobody_out() {
    let world = World::new();
    let (address, done) = (world.address, Arc::new(AtomicBool::new(false)));
    let (full, is_full) = std::sync::mpsc::channel();
    let over = done.clone();
    // Each sends a byte now and then, so that its head is there in time, and the next one, for ever.
    let slow = thread::spawn(move || {
        let connect = || TcpStream::connect(address).unwrap();
        let mut all: Vec<_> = (0..MAX_CONNECTIONS).map(|_| connect()).collect();
        for byte in b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n".iter().cycle() {
            for stream in &mut all {
                if stream.write_all(&[*byte]).is_err() {
                    *stream = connect();
                }
            }
            let _ = full.send(());
            if over.load(Ordering::Relaxed) {
                return;
            }
            thread::sleep(Duration::from_millis(100));
        }
    });
    for _ in 0..3 {
        is_full.recv().unwrap();
        assert_eq!(world.call("GET", "/healthz", "").0, 200);
    }
    done.store(true, Ordering::Relaxed);
    slow.join().unwrap();
}

#[test]
fn a_client_that_does_not_read_on_is_cut_off() {
    let world = World::new();
    let (mut stream, asked) = does_not_read(&world);
    thread::sleep(REQUEST_TIME + Duration::from_secs(2));
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let mut rest = Vec::new();
    match stream.read_to_end(&mut rest) {
        Ok(_) => {}
        Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{error}"),
    }
    let answers = String::from_utf8_lossy(&rest).matches("HTTP/1.1 200").count();
    assert!(answers < asked, "all of {asked} requests were answered");
    assert_eq!(world.call("GET", "/healthz", "").0, 200);
}
