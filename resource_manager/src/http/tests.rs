//! The HTTP interface over real sockets, in front of a loop that only has a pool.

mod access;
mod connections;
mod documents;
mod leases;
mod lists;
mod placement;
mod requests;
mod waiting;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::num::NonZeroU64;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rfaas_protocol::isolation::{Layer, Layers};
use serde_json::{Value, json};
use tokio::runtime;
use tokio::sync::oneshot;

use super::*;
use rfaas_config::AddressRange;
use tokio::net::TcpListener;

use crate::commands::{Command, Inbox, commands};
use crate::ledger::Ledger;
use crate::pool::{Ask, Capacity, FairUse, GraphWorker, LinkId, NodeSpec, Run};

/// Carries out work, without devices. Ends when told to stop.
fn serve_pool(inbox: &Inbox, mut ledger: Ledger, rules: FairUse) {
    let pool = Pool::new(Now::read(), Duration::from_secs(10));
    let mut pool = pool.with_rules(Now::read(), rules);
    loop {
        let now = Now::read();
        pool.tick(now, &mut Vec::new());
        let command = inbox.try_next();
        let answer = match command {
            Some(Command::Work(work)) => Some(work(&mut pool, now, &mut Vec::new())),
            Some(Command::Stop) => return,
            None => None,
        };
        ledger.settle(now, pool.take_changes()).unwrap();
        match answer {
            Some(answer) => answer(),
            None => thread::sleep(Duration::from_millis(1)),
        }
    }
}

/// An interface at a port of its own.
struct World {
    address: SocketAddr,
    commands: Commands,
    stop: Option<oneshot::Sender<()>>,
    threads: Vec<JoinHandle<()>>,
}

impl World {
    fn new() -> Self {
        World::with(Access::default(), FairUse::default(), None)
    }

    /// One with these rules; all requests seem to come `from` there.
    fn with(access: Access, rules: FairUse, from: Option<Ends>) -> Self {
        let (commands, inbox) = commands().unwrap();
        let runtime = runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        let (durable, events) = (Arc::new(StateFile::in_memory().unwrap()), Arc::default());
        let ledger = Ledger::new(durable.clone(), Arc::clone(&events), Duration::from_secs(1));
        let api = Api::new(commands.clone(), durable, events, Arc::from(&b"42"[..]), access);
        let (stop, stopped) = oneshot::channel();
        let router = match from {
            Some(ends) => router(api).layer(Extension(ends)), // within that of the connection
            None => router(api),
        };
        let http = move || {
            runtime.block_on(async {
                tokio::select! {
                    () = serve(listener, router) => {}
                    _ = stopped => {}
                }
            });
        };
        let threads =
            vec![thread::spawn(http), thread::spawn(move || serve_pool(&inbox, ledger, rules))];
        World { address, commands, stop: Some(stop), threads }
    }

    /// Sends bytes, reads until the interface closes.
    fn raw(&self, request: &[u8]) -> String {
        let mut stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream.write_all(request).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    /// Status and body of a request, its body as `curl -d` sends it.
    fn text(&self, method: &str, target: &str, body: &str) -> (u16, String) {
        let length = body.len();
        let answer = self.raw(
            format!(
                "{method} {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\
                 Content-Type: application/x-www-form-urlencoded\r\n\
                 Content-Length: {length}\r\n\r\n{body}"
            )
            .as_bytes(),
        );
        let status = answer[9..12].parse().unwrap();
        (status, answer.split_once("\r\n\r\n").unwrap().1.to_owned())
    }

    /// Status and JSON of a request with such header lines.
    fn with_head(&self, method: &str, target: &str, head: &str, body: &str) -> (u16, Value) {
        let length = body.len();
        let request = format!(
            "{method} {target} HTTP/1.1\r\nConnection: close\r\nContent-Length: {length}\r\n{head}\r\n\r\n{body}"
        );
        let answer = self.raw(request.as_bytes());
        let json = answer.split_once("\r\n\r\n").unwrap().1;
        (answer[9..12].parse().unwrap(), serde_json::from_str(json).unwrap())
    }

    fn call(&self, method: &str, target: &str, body: &str) -> (u16, Value) {
        let (status, text) = self.text(method, target, body);
        (status, serde_json::from_str(&text).unwrap_or_else(|_| panic!("{status} {text:?}")))
    }

    /// Does what a client does that says what its lease is for.
    fn note_worker(&self, lease: u64, graph: u64) {
        let lease = LeaseId::new(lease).unwrap();
        let (name, functions) = ("words".into(), "split\ncount".into());
        let worker = GraphWorker { graph, name, lane: 0, worker: 0, functions };
        self.commands.tell(move |pool, _, _| pool.note_worker(lease, worker)).unwrap();
    }

    /// Does what an executor manager does when it registers.
    fn connect(&self, node: &'static str) {
        self.commands
            .tell(move |pool, now, out| {
                let link = LinkId(node.as_bytes()[0].into());
                let address = SocketAddr::from(([192, 168, 0, 29], 10_005));
                let isolation = [Layer::User, Layer::Seccomp].into_iter().collect();
                let run = Run { instance: NonZeroU64::MIN, address, clock_ahead_ms: 0, isolation };
                pool.node_connected(now, node, run, link, out).unwrap();
            })
            .unwrap();
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.commands.stop().unwrap();
        drop(self.stop.take());
        self.threads.drain(..).for_each(|thread| thread.join().unwrap());
    }
}

/// The tutorial's.
const NODE: &str = r#"{"ip_address": "192.168.0.29", "port": 10005, "cores": 1, "memory": 512}"#;
