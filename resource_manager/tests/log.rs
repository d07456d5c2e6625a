//! The log of the program: nobody can fill it, and it may be a thing that cannot be written.

#![allow(clippy::unwrap_used)] // a test's way to fail, in functions that are no tests too

mod support;

use std::fs::File;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rfaas_protocol::channel::ChannelError;
use rfaas_protocol::lease::ToClient;
use rfaas_protocol::node::FromNode;
use rfaas_protocol::{Clock, Role};
use serde_json::json;
use support::*;

/// One whose log nobody reads, so that its ports have to be chosen before.
struct Blind {
    child: Child,
    rdma: SocketAddr,
    http: SocketAddr,
    _files: Files,
}

/// Starts one with what `log` returns as standard error; returns when it serves.
fn start(log: impl Fn() -> Stdio) -> Blind {
    for _ in 0..10 {
        let http = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let rdma = device().listen(0).unwrap().local_addr();
        let ports =
            [("rdma_device_port", json!(rdma.port())), ("http_network_port", json!(http.port()))];
        let files = Files::new(&ports);
        let mut child = files.command(&["-v"]).stdout(Stdio::null()).stderr(log()).spawn().unwrap();
        let serves = wait_for("an answer", || {
            if child.try_wait().unwrap().is_some() {
                return Some(false); // somebody else has taken one of the ports meanwhile
            }
            support::http(http, "GET", "/healthz", "").ok().map(|_| true)
        });
        if serves {
            return Blind { child, rdma, http, _files: files };
        }
    }
    panic!("it does not start, whatever its ports are");
}

fn stop(mut child: Child) {
    kill(Pid::from_raw(child.id() as i32), Signal::SIGTERM).unwrap();
    let status = wait_for("its end", || child.try_wait().unwrap());
    assert_eq!(status.code(), Some(0));
}

/// A client asks for what there is not.
fn refused(rdma: SocketAddr, times: u32) {
    let mut client = Client::new(rdma);
    for number in 1..=times {
        // Each is another request, and so another line.
        assert!(matches!(client.ask(1 + number, 64, 1000), ToClient::Refused(_)));
    }
}

#[test]
fn a_manager_serves_whatever_becomes_of_its_log() {
    let (reader, mut full) = std::io::pipe().unwrap();
    full.write_all(&[b'x'; 1 << 16]).unwrap(); // as much as a pipe holds
    let full_disk = || File::options().write(true).open("/dev/full").unwrap().into();
    let broken_pipe = || std::io::pipe().unwrap().1.into();
    let full_pipe = || full.try_clone().unwrap().into();
    let logs: [&dyn Fn() -> Stdio; 3] = [&full_disk, &broken_pipe, &full_pipe];
    for log in logs {
        let manager = start(log);
        refused(manager.rdma, 500);
        stop(manager.child);
    }
    drop(reader);
}

#[test]
fn what_clients_and_strangers_provoke_is_told_a_few_times_and_then_counted() {
    let (mut reader, writer) = std::io::pipe().unwrap();
    let Blind { child, rdma, http, _files } = start(|| writer.try_clone().unwrap().into());
    drop(writer);
    let log = Arc::new(Mutex::new(Vec::new()));
    let reading = {
        let log = log.clone();
        std::thread::spawn(move || {
            let mut some = [0; 4096];
            while let Ok(read @ 1..) = reader.read(&mut some) {
                log.lock().unwrap().extend_from_slice(&some[..read]);
            }
        })
    };
    let text = || String::from_utf8(log.lock().unwrap().clone()).unwrap();
    let begun = Instant::now();
    let body = support::new_node(1, 64);
    assert_eq!(support::http(http, "POST", "/add?node=a", &body).unwrap().0, 200);
    let _node = Node::ready(rdma, "a");
    // The same refusal 3000 times, and 2000 that differ; executors at the wrong door.
    let mut client = Client::new(rdma);
    for _ in 0..3000 {
        assert!(matches!(client.ask(3000, 64, 1000), ToClient::Refused(_)));
    }
    refused(rdma, 2000);
    for _ in 0..20 {
        assert!(dial(rdma, Role::Accounting).is_err());
    }
    // Clients that say what is no message of theirs.
    for _ in 0..200 {
        let mut client = Client::new(rdma);
        client.channel.send(&FromNode::Heartbeat(Clock::now())).unwrap();
        let end = client.channel.receive::<ToClient>(PATIENCE);
        assert!(matches!(end, Err(ChannelError::Disconnected)), "{end:?}");
    }
    let told = wait_for("the count", || {
        let text = text();
        let counted =
            |line: &&str| line.contains("lease denied") && line.contains("more like this in");
        text.lines().find(counted).map(str::to_owned)
    });
    assert!(told.contains("cores and 64 MB in all"), "what it is that was counted: {told}");
    let text = text();
    let denied = text.lines().filter(|line| line.contains("lease denied")).count();
    // What there is for one place of the program, at once and with time, and the counts.
    let most = 500 + 25 * begun.elapsed().as_secs();
    assert!(denied as u64 <= most, "{denied} of 5000 refusals are in the log");
    let malformed = text.lines().filter(|line| line.contains("of a client dropped")).count();
    assert!((1..=25).contains(&malformed), "{malformed}\n{text}");
    let strangers = text.lines().filter(|line| line.contains("connection refused")).count();
    assert!((1..=25).contains(&strangers), "{strangers}\n{text}");
    stop(child);
    reading.join().unwrap();
}
