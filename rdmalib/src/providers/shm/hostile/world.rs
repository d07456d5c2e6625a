//! Two connected ends in one process, what they have posted, and what came of it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::super::arena::Arena;
use super::super::completion::CompletionQueue;
use super::super::core::TAG_SHARED;
use super::super::mapping::Mapping;
use super::super::queue_pair::{ReceiveQueue, SendQueue};
use super::super::shared_copy::{Job, MIN_BYTES};
use super::super::space::{KEYS, WORDS_PER_KEY, segment};
use super::steps::{Key, Place, Step, Verb};
use crate::contract::{
    CompletionQueue as _, Device as _, Domain as _, Listener as _, ReceiveQueue as _,
    SendQueue as _,
};
// The steps go through the device itself; what they need around it, through the facade.
use crate::facade::{Device, Domain, Operation, Region, RemoteMapping, Source, WorkRequest};
use crate::providers::Any;
use crate::sync::Ordering;
use crate::types::{
    Access, DeviceSpec, Error, Flags, Opcode, PrivateData, Provider, QueuePairConfig,
    RemoteAddress, Status, WorkCompletion,
};
use rdmalib_ring::{
    CARRIED, MAX_CARRIED, PAYLOAD, Side, TURN_SLOT, Way, Words, arrival_word, words_needed,
};

/// How long a fact waits for what must happen; only reached when the fact is wrong.
const PATIENCE: Duration = Duration::from_secs(30);
const CONFIG: fn() -> QueuePairConfig = || QueuePairConfig {
    send_depth: 16,
    receive_depth: 8,
    max_inline_data: 256,
    rnr_timer: Duration::from_micros(50),
    ..QueuePairConfig::default()
};
const RING_DEPTH: u32 = 8;

/// Regions that steps name, in each domain.
pub(super) const REGIONS: usize = 5;
const OPEN: usize = 0;
const SPARE: usize = 1;
const PRIVATE: usize = 2;
const READABLE: usize = 3;
const BUFFERS: usize = 4;
/// Sizes and rights of them. Not all end where a page does.
const KINDS: [(usize, Access); REGIONS] = [
    (1000, Access::all()),
    (4096, Access::all()),
    (4096, Access::LOCAL_WRITE),
    (5000, Access::REMOTE_READ),
    (4096, Access::LOCAL_WRITE),
];
/// What is in those that peers may not write.
const KEPT: u8 = 0x11;
const PAGE: usize = 4096;

/// One end of a connection.
pub(super) struct End {
    arena: Arc<Arena>,
    domain: Domain,
    /// All of the domain, as the peer has it.
    memory: Mapping,
    regions: [Option<Region>; REGIONS],
    names: [RemoteAddress; REGIONS],
    /// In the place of SPARE, when that was freed.
    successor: Option<Region>,
    scratch: Region,
    send: SendQueue,
    receive: ReceiveQueue,
    next_id: u64,
    /// Receives that have not completed, in order.
    receives: VecDeque<u64>,
    /// Requests that have not completed, in order, and whether they will for certain.
    requests: VecDeque<(u64, bool)>,
    taken: u32,
    from_ring: u32,
}

/// Who accepts is the first of two ends.
const SIDES: [Side; 2] = [Side::Acceptor, Side::Connector];

pub(super) struct World {
    device: Device,
    pub(super) ends: [End; 2],
    queues: [CompletionQueue; 2],
}

impl End {
    fn new(device: &Device, queue: &CompletionQueue) -> End {
        let domain = device.domain().unwrap();
        let Any::Shm(shm) = &*domain.inner else { unreachable!("an shm device") };
        let (send, receive) = shm.queue_pair(queue, queue, &CONFIG()).unwrap();
        let arena = shm.arena.clone();
        let regions = KINDS.map(|(bytes, access)| domain.allocate(bytes, access).unwrap());
        for kept in [PRIVATE, READABLE] {
            regions[kept].fill(0..regions[kept].len(), KEPT).unwrap();
        }
        let names = regions.each_ref().map(Region::remote);
        let scratch = domain.allocate(PAGE, Access::LOCAL_WRITE).unwrap();
        let (start, bytes) = segment(0);
        End {
            memory: Mapping::new(arena.file(), 0, (start + bytes) as usize).unwrap(),
            arena,
            domain,
            regions: regions.map(Some),
            names,
            successor: None,
            scratch,
            send,
            receive,
            next_id: 0,
            receives: VecDeque::new(),
            requests: VecDeque::new(),
            taken: 0,
            from_ring: 0,
        }
    }

    /// How the next arrival would go from here.
    pub(super) fn way(&mut self) -> Option<Way> {
        self.send.way()
    }

    /// Receives that have completed.
    pub(super) fn taken(&self) -> u32 {
        self.taken
    }

    /// The file, mapped once more.
    pub(super) fn second_view(&self) -> Mapping {
        Mapping::new(self.arena.file(), 0, self.memory.len()).unwrap()
    }

    /// All words of the domain, the free ones included.
    pub(super) fn all_words(&self) -> Vec<u64> {
        self.memory.words().iter().map(|word| word.load(Ordering::Relaxed)).collect()
    }

    /// Indices of words that mean most, and values that mean most there.
    pub(super) fn telling_words(&self) -> (Vec<usize>, Vec<u64>) {
        let ring = self.ring_word(0);
        let places = (ring..ring + words_needed(RING_DEPTH)).chain(0..8 * WORDS_PER_KEY);
        let keys = self.names.iter().map(|name| name.key);
        let limit = segment(0).0 + segment(0).1;
        let values = (self.names.iter().map(|name| name.addr))
            .chain(keys.clone())
            .chain(keys.map(|key| key << 32 | u64::from(Access::all().bits())))
            .chain([0, 8, 4096, u64::MAX, limit - 8, limit - 96, limit, 8 * ring as u64 + 600])
            .chain((1..40).flat_map(|number| [0, 1 << 63].map(|side| side | number << 32)))
            .chain([1, 8, 33, 96, 97, 5000].map(|bytes| bytes << 32 | u64::from(CARRIED | 3)));
        (places.collect(), values.collect())
    }

    fn ring_word(&self, word: usize) -> usize {
        self.send.core().ring().0 as usize / 8 + word
    }

    /// Where the next arrival is, if it comes that way, or one `ahead` of it. The turn slot is in
    /// the connector's memory.
    fn arrival_word(&self, way: Way, ahead: u32) -> usize {
        self.ring_word(match way {
            Way::Ring => arrival_word(self.from_ring.wrapping_add(ahead), RING_DEPTH - 1),
            Way::TurnSlot => TURN_SLOT,
        })
    }

    fn address(&self, place: Place) -> u64 {
        let (start, offset) = match place {
            Place::Region(number, offset) => (self.names[number].addr, offset),
            Place::Ring(offset) => (self.send.core().ring().0, offset),
            Place::Payload(way, offset) => {
                (8 * (self.arrival_word(way, 0) + PAYLOAD) as u64, offset)
            }
            Place::Limit(offset) => (segment(0).0 + segment(0).1, offset),
            Place::Anywhere(addr) => (addr, 0),
        };
        start.wrapping_add_signed(offset)
    }

    fn key(&self, key: Key) -> u64 {
        match key {
            Key::Of(number) => self.names[number].key,
            Key::Forged(entry) => KEYS as u64 | u64::from(entry), // its first generation
            Key::Any(key) => key,
        }
    }

    fn target(&self, place: Place, key: Key) -> RemoteAddress {
        RemoteAddress { addr: self.address(place), key: self.key(key) }
    }

    fn store(&self, word: usize, value: u64) {
        self.memory.words()[word].store(value, Ordering::Relaxed);
    }

    fn id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    fn post(&mut self, verb: Verb, bytes: usize, inline: bool, flags: u32, to: RemoteAddress) {
        let id = self.id();
        let flags = Flags::from_bits_truncate(flags);
        let data = [0xab; PAGE];
        let source = match inline {
            true => Source::Inline(&data[..bytes]),
            false => Source::Region(self.scratch.slice(0..bytes).unwrap()),
        };
        let into = |bytes| self.scratch.slice(0..bytes).unwrap();
        let immediate = Some(id as u32);
        let operation = match verb {
            Verb::Send => Operation::Send { source, immediate: inline.then_some(7) },
            Verb::Write => Operation::Write { source, to, immediate: None },
            Verb::WriteWithImmediate => Operation::Write { source, to, immediate },
            Verb::Read => Operation::Read { into: into(bytes), from: to },
            Verb::FetchAdd => Operation::FetchAdd { into: into(8), at: to, add: 1 },
            Verb::CompareSwap => {
                Operation::CompareSwap { into: into(8), at: to, expect: 0, swap: id }
            }
        };
        match self.send.post(&WorkRequest { id, operation, flags }) {
            Ok(()) => self.requests.push_back((id, flags.contains(Flags::SIGNALED))),
            Err(
                Error::QueueFull { .. } | Error::InlineTooLarge { .. } | Error::InvalidArgument(_),
            ) => {}
            Err(other) => panic!("posting {verb:?}: {other}"),
        }
    }

    fn post_receive(&mut self, bytes: Option<usize>) {
        let id = self.id();
        let buffers = self.regions[BUFFERS].as_ref().unwrap();
        let posted = self.receive.post(id, bytes.map(|bytes| buffers.slice(0..bytes).unwrap()));
        match posted {
            Ok(()) => self.receives.push_back(id),
            Err(Error::QueueFull { depth }) => assert_eq!(self.receives.len(), depth as usize),
            Err(other) => panic!("posting a receive: {other}"),
        }
    }

    /// Takes note of a completion, which must be of the request that is next.
    fn complete(&mut self, done: &WorkCompletion) {
        assert_eq!(done.queue_pair, self.send.number(), "a completion of a bystander");
        let received = self.receives.front() == Some(&done.id);
        if received {
            self.receives.pop_front();
            self.taken += 1;
            let kinds = [Opcode::Receive, Opcode::ReceiveWithImmediate];
            assert!(kinds.contains(&done.opcode), "{done:?}");
            let ends = [Status::Success, Status::Flushed, Status::LocalLengthError];
            assert!(ends.contains(&done.status), "{done:?}");
            return;
        }
        loop {
            let (id, signaled) = self.requests.pop_front().expect("something was posted");
            if id == done.id {
                assert!(signaled || done.status != Status::Success, "{done:?}");
                return;
            }
            assert!(!signaled, "request {id} has not completed before {done:?}");
        }
    }

    /// Frees SPARE. If it was freed, its place goes to another region, of which the peer has no
    /// key.
    fn replace(&mut self) {
        if self.regions[SPARE].take().is_none() && self.successor.is_none() {
            let successor = self.domain.allocate(KINDS[SPARE].0, Access::all()).unwrap();
            successor.fill(0..successor.len(), KEPT).unwrap();
            self.successor = Some(successor);
        }
    }

    fn all_complete(&self) -> bool {
        self.receives.is_empty() && !self.requests.iter().any(|(_, signaled)| *signaled)
    }

    /// What keys do not allow a peer to write is as it was.
    pub(super) fn assert_protected_is_unchanged(&self) {
        for kept in [PRIVATE, READABLE].map(|kept| self.regions[kept].as_ref().unwrap()) {
            self.assert_filled(kept.remote().addr, kept.len(), KEPT);
            self.assert_slack(kept);
        }
        self.assert_slack(self.regions[OPEN].as_ref().unwrap());
        if let Some(successor) = &self.successor {
            self.assert_filled(successor.remote().addr, successor.len(), KEPT);
        } else if self.regions[SPARE].is_none() {
            self.assert_filled(self.names[SPARE].addr, KINDS[SPARE].0, 0);
        }
        let last = &self.scratch; // behind it all is free
        let free = last.remote().addr + PAGE as u64;
        self.assert_filled(free, self.memory.len() - free as usize, 0);
    }

    /// The rest of the region's last page.
    fn assert_slack(&self, region: &Region) {
        let bytes = region.len().next_multiple_of(PAGE) - region.len();
        self.assert_filled(region.remote().addr + region.len() as u64, bytes, 0);
    }

    /// Both are multiples of eight.
    fn assert_filled(&self, addr: u64, bytes: usize, value: u8) {
        let words = &self.memory.words()[addr as usize / 8..][..bytes / 8];
        let value = u64::from_ne_bytes([value; 8]);
        let wrong = words.iter().position(|word| word.load(Ordering::Relaxed) != value);
        assert_eq!(wrong, None, "{bytes} bytes from {addr:#x} on were changed, at this word");
    }
}

impl World {
    pub(super) fn new() -> World {
        let device = Device::open(&DeviceSpec {
            name: "shm".into(),
            provider: Provider::Shm,
            ip_address: "127.0.0.77".parse().unwrap(),
            max_inline_data: 256,
        });
        World::on(device.unwrap(), None)
    }

    /// Domains and a connection of its own, on the same device; its first end completes into the
    /// queue of ours.
    pub(super) fn neighbour(&self) -> World {
        World::on(self.device.clone(), Some(&self.queues[0]))
    }

    fn on(device: Device, shared: Option<&CompletionQueue>) -> World {
        let queues = [128, 128].map(|capacity| CompletionQueue::new(capacity).unwrap());
        let mut ends = [shared.unwrap_or(&queues[0]), &queues[1]].map(|q| End::new(&device, q));
        let Any::Shm(shm) = &*device.inner else { unreachable!("an shm device") };
        let address = (device.ip_address(), 0).into();
        let mut listener = shm.listen(address).unwrap();
        let to = listener.local_addr();
        let no_data = PrivateData::nothing;
        let [server, client] = &mut ends;
        std::thread::scope(|scope| {
            scope.spawn(|| client.send.connect(to, None, &no_data(), PATIENCE).unwrap());
            let request = listener.next(PATIENCE).unwrap().expect("a connector comes");
            server.send.accept(request, &no_data()).unwrap();
        });
        World { device, ends, queues }
    }

    pub(super) fn step(&mut self, step: &Step) {
        match *step {
            Step::Post { end, verb, bytes, inline, flags, to, key } => {
                let to = self.ends[1 - end].target(to, key);
                self.ends[end].post(verb, bytes, inline, flags, to);
            }
            Step::Receive { end, bytes } => self.ends[end].post_receive(bytes),
            Step::Poll { end, most } => self.poll(end, most),
            Step::Sleep { end } => self.queues[end].wait(Some(Duration::ZERO)).unwrap(),
            Step::Replace { end } => self.ends[end].replace(),
            Step::Map { end, to, key, bytes } => {
                let to = self.ends[1 - end].target(to, key);
                let bytes = bytes.max(1);
                if let Ok(Some(mapping)) =
                    self.ends[end].send.map_remote(to, bytes, Access::REMOTE_READ)
                {
                    let mapping = RemoteMapping::new(Any::Shm(mapping), Access::REMOTE_READ);
                    mapping.read(0, &mut vec![0; bytes]).unwrap();
                }
            }
            Step::Lie { end, key, access, start, bytes } => {
                let end = &self.ends[end];
                let (key, start) = (end.key(key), end.address(start));
                let entry = WORDS_PER_KEY * (key as usize & (KEYS - 1));
                end.store(entry, key << 32 | u64::from(access));
                end.store(entry + 1, start);
                end.store(entry + 2, bytes);
            }
            Step::Scribble { end, word, value } => {
                let end = &self.ends[end];
                end.store(end.ring_word(word % words_needed(RING_DEPTH)), value);
            }
            Step::ScribbleFar { end, word, value } => {
                let end = &self.ends[end];
                end.store(word % end.memory.words().len(), value);
            }
            Step::Forge { .. } => self.forge(step),
        }
    }

    fn forge(&self, step: &Step) {
        let Step::Forge { end: victim, way, ahead, immediate, bytes, tag, to, key, payload } =
            *step
        else {
            unreachable!("asked for this step only")
        };
        let (end, [_, connector]) = (&self.ends[victim], &self.ends);
        let to = end.target(to, key);
        let number = |next: u32| next.wrapping_add(ahead);
        let (end, stamp) = match way {
            Way::Ring => (end, number(end.from_ring).wrapping_add(1)),
            Way::TurnSlot => (connector, SIDES[victim].other().sequence(number(end.taken))),
        };
        let at = end.arrival_word(way, ahead);
        for word in 0..MAX_CARRIED / 8 {
            end.store(at + PAYLOAD + word, payload);
        }
        let mut bytes = bytes;
        if tag & TAG_SHARED != 0 {
            // One that makes sense, except for where it comes from, and what was copied already.
            bytes = MIN_BYTES as u32 + bytes % (1 << 20);
            Job::new(payload, bytes as usize).write(&end.memory, at + PAYLOAD);
            end.store(at + PAYLOAD + 2, payload % 6);
            end.store(at + PAYLOAD + 3, payload % 7);
        }
        end.store(at + 1, u64::from(bytes) << 32 | u64::from(tag));
        end.store(at + 2, to.addr);
        end.store(at + 3, to.key);
        end.store(at, u64::from(stamp) << 32 | u64::from(immediate));
    }

    fn poll(&mut self, end: usize, most: usize) {
        let mut out = vec![WorkCompletion::default(); most];
        let count = self.queues[end].poll(&mut out);
        out[..count].iter().for_each(|done| self.ends[end].complete(done));
        self.ends[end].from_ring = self.queues[end].places_used(self.ends[end].send.number());
    }

    /// A write from one end to the other that both copy.
    pub(super) fn write_together(&mut self, from: usize) {
        let [source, target] = [from, 1 - from]
            .map(|end| self.ends[end].domain.allocate(MIN_BYTES, Access::all()).unwrap());
        let end = &mut self.ends[from];
        let source = Source::Region(source.slice(0..MIN_BYTES).unwrap());
        let operation = Operation::Write { source, to: target.remote(), immediate: Some(1) };
        let request = WorkRequest { id: end.id(), operation, flags: Flags::WITH_COMPLETION };
        end.send.post(&request).unwrap();
    }

    /// Disconnects; all that was posted completes.
    pub(super) fn end(&mut self) {
        self.ends.iter_mut().for_each(|end| end.send.disconnect());
        let start = Instant::now();
        for end in 0..2 {
            while !self.ends[end].all_complete() {
                self.poll(end, 64);
                assert!(start.elapsed() < PATIENCE, "a request never completes");
            }
        }
    }

    /// Messages of each kind both ways: this world is as good as new.
    pub(super) fn both_ways(&mut self, neighbour: &mut World) {
        let small = Flags::SIGNALED | Flags::WITH_COMPLETION;
        for from in 0..2 {
            self.exchange(neighbour, from, Verb::WriteWithImmediate, small);
            self.exchange(neighbour, from, Verb::WriteWithImmediate, Flags::SIGNALED);
            self.exchange(neighbour, from, Verb::Send, Flags::SIGNALED);
        }
    }

    fn exchange(&mut self, neighbour: &mut World, from: usize, verb: Verb, flags: Flags) {
        let to = 1 - from;
        let mark = self.ends[from].id() as u8;
        self.ends[to].post_receive(Some(50));
        self.ends[from].scratch.fill(0..50, mark).unwrap();
        let target = self.ends[to].names[OPEN];
        self.ends[from].post(verb, 50, false, flags.bits(), target);
        self.await_all(neighbour, from);
        self.await_all(neighbour, to);
        let place = if matches!(verb, Verb::Send) { BUFFERS } else { OPEN };
        let mut got = [0; 50];
        self.ends[to].regions[place].as_ref().unwrap().read(0, &mut got).unwrap();
        assert_eq!(got, [mark; 50]);
    }

    /// Until all that `end` posted has succeeded. The first one's queue is the neighbour's.
    fn await_all(&mut self, neighbour: &mut World, end: usize) {
        let start = Instant::now();
        while !self.ends[end].all_complete() {
            let queue = if end == 0 { &mut neighbour.queues[0] } else { &mut self.queues[end] };
            let mut out = [WorkCompletion::default(); 8];
            let count = queue.poll(&mut out);
            let theirs = neighbour.ends[0].send.number();
            for done in out[..count].iter().filter(|done| done.queue_pair != theirs) {
                assert_eq!(done.status, Status::Success);
                self.ends[end].complete(done);
            }
            assert!(start.elapsed() < PATIENCE, "a bystander waits in vain");
        }
    }
}
