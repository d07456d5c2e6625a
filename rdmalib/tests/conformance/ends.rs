//! Two connected ends in one process, and the calls that most facts make.

use std::net::SocketAddr;
use std::ops::Range;
use std::time::{Duration, Instant};

use rdmalib::{
    Access, CompletionQueue, Device, Domain, Flags, Listener, Operation, QueuePair,
    QueuePairConfig, Region, RemoteAddress, Source, Status, WorkCompletion, WorkRequest,
};

use crate::Fixture;

/// How long a fact waits for what must happen: long, since machines are slow at times, and only
/// reached when the fact is wrong.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// All rights.
pub const ALL: Access = Access::all();

/// One end of a connection, with completion queues of its own.
pub struct End {
    pub device: Device,
    pub domain: Domain,
    pub sends: CompletionQueue,
    pub receives: CompletionQueue,
    pub pair: QueuePair,
}

impl End {
    /// Not connected yet.
    pub fn new(device: &Device, config: &QueuePairConfig) -> End {
        let domain = device.domain().unwrap();
        let sends = device.completion_queue(config.send_depth).unwrap();
        let receives = device.completion_queue(config.receive_depth).unwrap();
        let pair = QueuePair::new(&domain, &sends, &receives, config).unwrap();
        End { device: device.clone(), domain, sends, receives, pair }
    }

    pub fn region(&self, bytes: usize) -> Region {
        self.domain.allocate(bytes, ALL).unwrap()
    }

    pub fn post(&mut self, id: u64, operation: Operation<'_>, flags: Flags) {
        self.pair.post(&WorkRequest { id, operation, flags }).unwrap();
    }

    /// Posts it signaled and waits for its completion.
    pub fn run(&mut self, operation: Operation<'_>) -> Status {
        self.post(77, operation, Flags::SIGNALED);
        let done = next(&mut self.sends);
        assert_eq!(done.id, 77);
        done.status
    }

    pub fn post_receives(&mut self, ids: Range<u64>) {
        ids.for_each(|id| self.pair.post_receive(id, None).unwrap());
    }
}

/// The next completion; panics if none comes.
pub fn next(queue: &mut CompletionQueue) -> WorkCompletion {
    let start = Instant::now();
    loop {
        if let Some(completion) = queue.poll_one() {
            return completion;
        }
        assert!(start.elapsed() < PATIENCE, "no completion came");
        std::thread::yield_now();
    }
}

/// Asserts that nothing completes for a while.
pub fn stays_empty(queue: &mut CompletionQueue) {
    let start = Instant::now();
    while start.elapsed() < Duration::from_millis(30) {
        assert_eq!(queue.poll_one(), None);
        std::thread::yield_now();
    }
}

pub fn open(fixture: &Fixture) -> (Device, Device) {
    (Device::open(&fixture.server).unwrap(), Device::open(&fixture.client).unwrap())
}

/// Connects `client` to `server`, in this thread and another.
pub fn join(server: &mut End, client: &mut End) {
    let mut listener = server.device.listen(0).unwrap();
    let to = listener.local_addr();
    std::thread::scope(|scope| {
        scope.spawn(|| client.pair.connect(to, &[], PATIENCE).unwrap());
        accept(&mut listener, server);
    });
}

/// Takes the next connector.
pub fn accept(listener: &mut Listener, server: &mut End) {
    let request = listener.next(PATIENCE).unwrap().expect("a connector comes");
    request.accept(&mut server.pair, &[]).unwrap();
}

/// Two connected ends: (server, client).
pub fn ends_with(fixture: &Fixture, config: &QueuePairConfig) -> (End, End) {
    let (server, client) = open(fixture);
    let (mut server, mut client) = (End::new(&server, config), End::new(&client, config));
    join(&mut server, &mut client);
    (server, client)
}

/// With the usual sizes.
pub fn ends(fixture: &Fixture) -> (End, End) {
    ends_with(fixture, &QueuePairConfig { max_inline_data: 256, ..QueuePairConfig::default() })
}

pub fn write<'a>(from: &'a Region, range: Range<usize>, to: RemoteAddress) -> Operation<'a> {
    Operation::Write { source: Source::Region(from.slice(range).unwrap()), to, immediate: None }
}

pub fn write_imm<'a>(
    from: &'a Region,
    range: Range<usize>,
    to: RemoteAddress,
    immediate: u32,
) -> Operation<'a> {
    Operation::Write {
        source: Source::Region(from.slice(range).unwrap()),
        to,
        immediate: Some(immediate),
    }
}

pub fn bytes(region: &Region) -> Vec<u8> {
    let mut out = vec![0; region.len()];
    region.read(0, &mut out).unwrap();
    out
}

/// A listener and its address.
pub fn listen(device: &Device) -> (Listener, SocketAddr) {
    let listener = device.listen(0).unwrap();
    let addr = listener.local_addr();
    (listener, addr)
}
