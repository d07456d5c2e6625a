//! The resource manager's HTTP interface: any bytes over a connection, answered as the program answers them, by a pool
//! with one node and one lease.
//!
//! Whatever is asked, the connection is answered and ends. An answer is no failure of the server. One that says what is
//! wrong is JSON with a line for people.

use std::cell::Cell;
use std::net::{Ipv4Addr, SocketAddr};
use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use rdmalib::Peer;
use resource_manager::commands::{Command, Inbox, commands};
use resource_manager::http::{Access, Api, router, serve};
use resource_manager::pool::{Ask, Capacity, LinkId, NodeSpec, Now, Pool, Run};
use resource_manager::state::StateFile;
use rfaas_protocol::isolation::Layers;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket};
use tokio::runtime::{Builder, Runtime};

use crate::{SECRET, assert_line};

/// Where the executor manager of the node listens.
const NODE: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::new(192, 168, 0, 29)), 10_005);
/// Far more than any answer takes. Only a finding takes so long.
const ANSWER_TIME: Duration = Duration::from_secs(60);

pub(crate) fn run(bytes: &[u8]) {
    thread_local!(static SERVER: Server = Server::new());
    let answer = SERVER.with(|server| server.answer(bytes));
    check(bytes, &answer);
}

/// The interface at a port of its own, served by the thread that asks.
struct Server {
    runtime: Runtime,
    address: SocketAddr,
    inbox: Inbox,
    asked: Cell<u32>,
}

impl Server {
    fn new() -> Server {
        let (commands, inbox) = commands().expect("a descriptor");
        let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).expect("a port");
        let address = listener.local_addr().expect("it is bound");
        let (durable, events) = (StateFile::in_memory().expect("memory"), Arc::default());
        let access = Access::new(&[], "127.0.0.1");
        let api = Api::new(commands, Arc::new(durable), events, SECRET.into(), access);
        runtime.spawn(serve(listener, router(api)));
        Server { runtime, address, inbox, asked: Cell::new(0) }
    }

    /// Returns what is answered to `bytes` until the connection ends.
    fn answer(&self, bytes: &[u8]) -> Vec<u8> {
        self.asked.set(self.asked.get().wrapping_add(1));
        let [a, b, c, _] = (self.asked.get() << 8).to_be_bytes();
        let talk = async {
            // From another address of this machine each time: a pair of ports is not used again for a minute.
            let socket = TcpSocket::new_v4().expect("a socket");
            socket.bind(SocketAddr::from(([127, a, b, c.max(1)], 0))).expect("of this machine");
            let mut stream = socket.connect(self.address).await.expect("it listens");
            let mut answer = Vec::new();
            // The server may have seen enough before all was sent, and then the rest is of no interest.
            let _ = stream.write_all(bytes).await;
            let _ = stream.shutdown().await;
            let _ = stream.read_to_end(&mut answer).await;
            answer
        };
        self.runtime.block_on(async {
            tokio::select! {
                answer = tokio::time::timeout(ANSWER_TIME, talk) => answer.expect("an answer in time"),
                () = self.serve_pool() => unreachable!("it has no end"),
            }
        })
    }

    /// Carries out what handlers ask of the pool.
    async fn serve_pool(&self) {
        let mut pool = pool();
        loop {
            self.inbox.acknowledge();
            while let Some(command) = self.inbox.try_next() {
                let Command::Work(work) = command else { continue };
                let answer = work(&mut pool, now(), &mut Vec::new());
                answer();
            }
            tokio::task::yield_now().await;
        }
    }
}

/// The time, of which ids of leases are made: the lease that there is, is always number 1.
fn now() -> Now {
    Now { wall: UNIX_EPOCH, ..Now::read() }
}

/// A pool with a node that has room, and a lease on it.
fn pool() -> Pool {
    let now = now();
    let mut pool = Pool::new(now, Duration::from_secs(10));
    let capacity = Capacity { cores: 4, memory: 4096 };
    let spec = NodeSpec::new("node", &NODE.ip().to_string(), NODE.port(), capacity);
    pool.add_node(now, spec.expect("it makes sense"), &mut Vec::new()).expect("it is the first");
    let isolation = Layers::all();
    let run = Run { instance: NonZeroU64::MIN, address: NODE, clock_ahead_ms: 0, isolation };
    pool.node_connected(now, "node", run, LinkId(1), &mut Vec::new()).expect("it is known");
    let ask = Ask::new(1, 64, Duration::from_secs(60), "somebody").expect("it makes sense");
    pool.request(now, &ask.by(Peer::Address(Ipv4Addr::LOCALHOST.into()))).expect("there is room");
    pool
}

/// Checks the first answer.
fn check(asked: &[u8], mut answer: &[u8]) {
    const GO_ON: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";
    while let Some(rest) = answer.strip_prefix(GO_ON) {
        answer = rest;
    }
    if answer.is_empty() {
        return; // nothing was asked, or not all of it
    }
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n").expect("a whole head");
    let (head, body) = (&answer[..end], &answer[end + 4..]);
    let head = std::str::from_utf8(head).expect("no header has other bytes");
    let mut lines = head.split("\r\n");
    let status = lines.next().expect("a line").split(' ').nth(1).map(str::parse);
    let status: u16 = status.expect("a status").expect("a number");
    // What it does not do is not its failure (RFC 9110, 15.6.2 and 15.6.6).
    assert!((100..500).contains(&status) || matches!(status, 501 | 505), "{head}");
    let header = |name: &str| {
        let value = |line: &str| {
            let (found, value) = line.split_once(':')?;
            found.eq_ignore_ascii_case(name).then(|| value.trim().to_owned())
        };
        lines.clone().find_map(value)
    };
    assert_eq!(header("access-control-allow-origin"), None, "no page reads this");
    let is_json = header("content-type").is_some_and(|kind| kind == "application/json");
    let bytes = header("content-length").and_then(|length| length.parse().ok());
    if !is_json || asked.trim_ascii_start().starts_with(b"HEAD") {
        return;
    }
    let Some(body) = bytes.and_then(|bytes: usize| body.get(..bytes)) else { return };
    let body: serde_json::Value = serde_json::from_slice(body).expect("it says that it is JSON");
    if status >= 400 {
        assert_line(body["error"].as_str().unwrap_or_else(|| panic!("{body}")));
    }
}
