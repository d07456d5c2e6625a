//! The HTTP interface of a resource manager in this process, in front of a loop that only has a pool.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::num::NonZeroU64;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use resource_manager::commands::{Command, Commands, Inbox, commands};
use resource_manager::http::{Access, Api, router, serve};
use resource_manager::pool::{LinkId, Now, Pool, Run};
use resource_manager::state::StateFile;
use rfaas_protocol::isolation::Layers;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::runtime;
use tokio::sync::oneshot;

const PATIENCE: Duration = Duration::from_secs(20);

pub struct House {
    address: SocketAddr,
    commands: Commands,
    stop: Option<oneshot::Sender<()>>,
    threads: Vec<JoinHandle<()>>,
}

fn serve_pool(inbox: &Inbox) {
    let mut pool = Pool::new(Now::read(), Duration::from_secs(10));
    loop {
        let (now, mut out) = (Now::read(), Vec::new());
        pool.tick(now, &mut out);
        match inbox.try_next() {
            Some(Command::Work(work)) => work(&mut pool, now, &mut out)(),
            Some(Command::Stop) => return,
            None => thread::sleep(Duration::from_millis(1)),
        }
    }
}

impl House {
    pub fn new() -> Self {
        let (commands, inbox) = commands().unwrap();
        let runtime = runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        let durable = Arc::new(StateFile::in_memory().unwrap());
        let secret = Arc::from(&b"42"[..]);
        let api = Api::new(commands.clone(), durable, Arc::default(), secret, Access::default());
        let (stop, stopped) = oneshot::channel();
        let http = move || {
            runtime.block_on(async {
                tokio::select! {
                    () = serve(listener, router(api)) => {}
                    _ = stopped => {}
                }
            });
        };
        let threads = vec![thread::spawn(http), thread::spawn(move || serve_pool(&inbox))];
        House { address, commands, stop: Some(stop), threads }
    }

    /// Status and JSON of a request.
    pub fn call(&self, method: &str, target: &str, body: &str) -> (u16, Value) {
        let mut stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let length = body.len();
        let head = "Host: x\r\nConnection: close";
        let request = format!(
            "{method} {target} HTTP/1.1\r\n{head}\r\nContent-Length: {length}\r\n\r\n{body}"
        );
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let json = answer.split_once("\r\n\r\n").unwrap().1;
        (answer[9..12].parse().unwrap(), serde_json::from_str(json).unwrap())
    }

    pub fn get(&self, target: &str) -> Value {
        let (status, answer) = self.call("GET", target, "");
        assert_eq!(status, 200, "{target}: {answer}");
        answer
    }

    /// Adds a node, and does what its executor manager does when it registers. Returns the answer to the former.
    pub fn node(&self, name: &str, cores: u64) -> (u16, Value) {
        let node = json!({"ip_address": "192.168.0.29", "port": 10_005, "cores": cores, "memory": 1 << 20});
        let added = self.call("POST", &format!("/add?node={name}"), &node.to_string());
        let name = name.to_owned();
        let register = move |pool: &mut Pool, now: Now, out: &mut Vec<_>| {
            let number = pool.nodes().iter().position(|node| **node.spec.name() == *name).unwrap();
            let address = SocketAddr::from(([192, 168, 0, 29], 10_005));
            let (instance, isolation) = (NonZeroU64::MIN, Layers::NONE);
            let run = Run { instance, address, clock_ahead_ms: 0, isolation };
            // It may be connected already.
            let _ = pool.node_connected(now, &name, run, LinkId(1_000 + number as u64), out);
        };
        self.commands.tell(register).unwrap();
        added
    }

    /// Ends the connections of all executor managers.
    pub fn disconnect_all(&self) {
        let disconnect = |pool: &mut Pool, now: Now, out: &mut Vec<_>| {
            (0..2_000).for_each(|link| pool.node_disconnected(now, LinkId(link), out));
        };
        self.commands.tell(disconnect).unwrap();
    }
}

impl Drop for House {
    fn drop(&mut self) {
        self.commands.stop().unwrap();
        drop(self.stop.take());
        self.threads.drain(..).for_each(|thread| thread.join().unwrap());
    }
}
