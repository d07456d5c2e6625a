//! Calls: a caller that follows no protocol writes headers, inputs and immediate data to a worker, as it likes.
//!
//! ```text
//!   input ──▶ caller: writes, sends ──device shm──▶ Callee (its slots, its checks) ──▶ Service: what it was asked for
//!             replies, canaries ◀───────────────────────── replies
//! ```
//! Whatever it writes: the function is called with slots and sizes that exist, a reply names a slot and lands where its
//! key allows, and nothing else of the caller's memory changes.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use rdmalib::{
    Access, CompletionQueue, Device, Flags, Listener, Opcode, Operation, QueuePair,
    QueuePairConfig, Region, RemoteAddress, Source, Status, WorkRequest,
};
use rfaas_call::Place;
use rfaas_call::callee::{
    Callee, CallerConnection, Layout, Service, ServiceEnd, SlotMemory, request_queue,
};
use rfaas_protocol::invocation::{HEADER_SPACE, ReplyImmediate, RequestHeader, RequestImmediate};
use rfaas_protocol::session::WorkerHello;
use rfaas_protocol::{Hello, Secret, parse_prefix};
use zerocopy::IntoBytes;

use crate::assert_line;
use crate::cursor::Cursor;
use crate::device::with_device;

/// Largest input and output of the worker.
const DATA_BYTES: u32 = 256;
/// Bytes of the caller that a worker may write.
const REPLY_BYTES: usize = 1024;
/// Bytes of the caller that nobody may write, before and behind.
const CANARY_BYTES: usize = 512;
const CANARY: u8 = 0xa5;
/// Most steps of an input: the worker has receives for as many requests.
const MOST_STEPS: usize = 32;
/// Most bytes of one step: those of a request with a larger input than the worker takes.
const MOST_PIECE: usize = 512;
/// Requests and receives of the caller.
const DEPTH: u32 = 64;
/// Id of its receives.
const RECEIVE: u64 = 1;
/// Bit of a step: the worker serves what has arrived.
const SERVE: u8 = 0x80;
/// Both ends are in this process. Only a finding takes so long.
const CONNECT_TIME: Duration = Duration::from_secs(60);

pub(crate) fn run(bytes: &[u8]) {
    with_device(|device| exchange(device, Cursor::new(bytes)));
}

fn exchange(device: &Device, mut input: Cursor<'_>) {
    let slots = 1 + u16::from(input.u8() % 4);
    let (mut callee, mut caller) = connected(device, slots);
    let mut asked = Asked { slots, idle: 0, inputs: BTreeSet::new(), outputs: BTreeSet::new() };
    let mut steps = 0;
    while !input.is_empty() && steps < MOST_STEPS {
        let step = input.u8();
        caller.step(step, &mut input);
        steps += 1;
        // Else what comes next meets a worker that has not looked yet.
        if step & SERVE != 0 && !asked.serve(&mut callee) {
            break;
        }
    }
    asked.serve(&mut callee);
    caller.check(slots);
}

/// The two ends of a connection.
fn connected(device: &Device, slots: u16) -> (Callee<Box<SlotMemory>>, Caller) {
    let layout = Layout::new(slots, DATA_BYTES, DATA_BYTES, 4096).expect("it makes sense");
    let domain = device.domain().expect("a domain");
    let memory = Box::new(SlotMemory::new(&domain, layout).expect("memory"));
    let requests = request_queue(device, &layout).expect("a queue");
    let connection = CallerConnection::new(device, &domain, memory, &requests);
    let mut connection = connection.expect("a connection");
    let mut listener = device.listen(0).expect("an address");
    let to = listener.local_addr();
    let caller = std::thread::scope(|scope| {
        let dialled = scope.spawn(|| {
            let dial = |queue_pair: &mut QueuePair, hello: &[u8]| {
                queue_pair.connect(to, hello, CONNECT_TIME).map(drop)
            };
            connection.connect(Secret([7; 16]), 0, dial).expect("the caller accepts");
        });
        let caller = Caller::accept(device, &mut listener);
        dialled.join().expect("it is connected");
        caller
    });
    (Callee::new(connection, requests), caller)
}

/// What a worker is asked for.
struct Asked {
    slots: u16,
    /// Polls in a row that have found nothing.
    idle: u32,
    /// Where functions were told that their inputs are, and their outputs go.
    inputs: BTreeSet<usize>,
    outputs: BTreeSet<usize>,
}

impl Asked {
    /// Has `callee` answer what has arrived. Returns whether it goes on.
    fn serve(&mut self, callee: &mut Callee<Box<SlotMemory>>) -> bool {
        self.idle = 0;
        let end = callee.serve(self);
        assert_line(&end.to_string());
        matches!(end, ServiceEnd::Stopped)
    }
}

impl Service for Asked {
    fn is_stopped(&self) -> bool {
        self.idle > 1
    }

    fn arrived(&mut self) {
        self.idle = 0;
    }

    fn call(&mut self, function: u32, place: Place<'_>) -> Option<u32> {
        let (input, input_bytes, output) = (place.input(), place.input_bytes(), place.output());
        assert!(input_bytes <= DATA_BYTES);
        assert!(input.addr().is_multiple_of(64) && output.addr().is_multiple_of(64));
        // Of one slot there is one input and one output.
        self.inputs.insert(input.addr());
        self.outputs.insert(output.addr());
        let most = usize::from(self.slots);
        assert!(self.inputs.len() <= most && self.outputs.len() <= most);
        match function {
            0 => Some(input_bytes),
            1 => Some(0),
            2 => Some(DATA_BYTES),
            3 => Some(u32::MAX),
            _ => None,
        }
    }

    fn answered(&mut self) {}

    fn idle(&mut self, _: &mut CompletionQueue, _: Option<Instant>) -> rdmalib::Result<()> {
        self.idle += 1;
        Ok(())
    }
}

/// The caller, which may write what it likes.
struct Caller {
    queue_pair: QueuePair, // first: its requests name the memory below
    completions: CompletionQueue,
    before: Region,
    replies: Region,
    behind: Region,
    /// What is written lies here, one piece behind the other.
    pieces: Region,
    used: usize,
    posted: usize,
    worker: WorkerHello,
}

impl Caller {
    fn accept(device: &Device, listener: &mut Listener) -> Caller {
        let request = listener.next(CONNECT_TIME).expect("it listens").expect("a worker dials");
        let (_, hello) = Hello::parse(request.private_data()).expect("a hello");
        let worker: WorkerHello = parse_prefix(hello).expect("that of a worker");
        let domain = device.domain().expect("a domain");
        let region = |bytes, access| domain.allocate(bytes, access).expect("memory");
        let before = region(CANARY_BYTES, Access::LOCAL_WRITE);
        let replies = region(REPLY_BYTES, Access::LOCAL_WRITE | Access::REMOTE_WRITE);
        let behind = region(CANARY_BYTES, Access::LOCAL_WRITE);
        let pieces = region(MOST_STEPS * MOST_PIECE, Access::empty());
        for canary in [&before, &behind] {
            canary.fill(0..CANARY_BYTES, CANARY).expect("all of it");
        }
        let completions = device.completion_queue(2 * DEPTH).expect("a queue");
        let config = QueuePairConfig {
            send_depth: DEPTH,
            receive_depth: DEPTH,
            ..QueuePairConfig::default()
        };
        let mut queue_pair =
            QueuePair::new(&domain, &completions, &completions, &config).expect("a queue pair");
        for _ in 0..DEPTH {
            queue_pair.post_receive(RECEIVE, None).expect("there is room");
        }
        request.accept(&mut queue_pair, &[]).expect("the worker waits");
        let (used, posted) = (0, 0);
        Caller { queue_pair, completions, before, replies, behind, pieces, used, posted, worker }
    }

    /// Does one thing of those that a caller can do.
    fn step(&mut self, step: u8, input: &mut Cursor<'_>) {
        match step % 8 {
            0 => {
                let (to, bytes) = (self.at(input.u16()), piece(input));
                self.write(bytes, to, None);
            }
            1 => {
                let (immediate, to, bytes) = (input.u32(), self.at(input.u16()), piece(input));
                self.write(bytes, to, Some(immediate));
            }
            2 => {
                let bytes = piece(input);
                self.post(bytes, |source| Operation::Send { source, immediate: None });
            }
            3 => {
                let (slot, bytes) = (input.u8(), piece(input));
                let to = self.slot(slot, HEADER_SPACE);
                self.write(bytes, to, Some(immediate(slot, true)));
            }
            other => {
                let key = if other == 4 { input.u64() } else { self.replies.remote().key };
                self.request(key, input);
            }
        }
    }

    /// Writes a request as callers of ours do, but for what it says.
    fn request(&mut self, key: u64, input: &mut Cursor<'_>) {
        let (slot, reply) = (input.u8(), input.u16());
        let header = RequestHeader {
            reply_addr: self.replies.remote().addr.wrapping_add(u64::from(reply)).into(),
            reply_key: key.into(),
            output_capacity: input.u32().into(),
            function: u16::from(input.u8()).into(),
            flags: u16::from(input.u8()).into(),
            input_bytes: u32::from(input.u16()).into(),
            sequence: input.u32().into(),
        };
        let bytes = header.message_bytes().unwrap_or(64).min(MOST_PIECE as u64) as usize;
        let mut message = header.as_bytes().to_vec();
        message.resize(bytes, slot);
        let to = self.slot(slot, HEADER_SPACE - size_of::<RequestHeader>());
        self.write(&message, to, Some(immediate(slot, false)));
    }

    /// Names a place behind the start of the worker's memory.
    fn at(&self, offset: u16) -> RemoteAddress {
        let (addr, key) = (self.worker.input_addr.get(), self.worker.input_key.get());
        RemoteAddress { addr: addr + u64::from(offset), key }
    }

    fn slot(&self, slot: u8, offset: usize) -> RemoteAddress {
        let start = u64::from(slot) * u64::from(self.worker.slot_stride.get());
        let RemoteAddress { addr, key } = self.at(0);
        RemoteAddress { addr: addr + start + offset as u64, key }
    }

    fn write(&mut self, bytes: &[u8], to: RemoteAddress, immediate: Option<u32>) {
        self.post(bytes, |source| Operation::Write { source, to, immediate });
    }

    fn post(&mut self, bytes: &[u8], operation: impl FnOnce(Source<'_>) -> Operation<'_>) {
        let piece = self.used..self.used + bytes.len();
        self.used = piece.end;
        self.pieces.write(piece.start, bytes).expect("there is room");
        let source = Source::Region(self.pieces.slice(piece).expect("likewise"));
        let (operation, flags) = (operation(source), Flags::SIGNALED);
        match self.queue_pair.post(&WorkRequest { id: 0, operation, flags }) {
            Ok(()) => self.posted += 1,
            Err(error) => assert_line(&error.to_string()), // the worker has cut the connection
        }
    }

    /// Checks what came back.
    fn check(&mut self, slots: u16) {
        let mut replies = 0;
        while let Some(done) = self.completions.poll_one() {
            if done.id != RECEIVE || done.status != Status::Success {
                continue;
            }
            assert_eq!(done.opcode, Opcode::ReceiveWithImmediate);
            let immediate = done.immediate.expect("that is what the opcode says");
            let reply = ReplyImmediate::from_wire(immediate).expect("a status that there is");
            assert!(reply.slot < slots && reply.to_wire() == immediate);
            replies += 1;
        }
        assert!(replies <= self.posted, "more replies than requests");
        for canary in [&self.before, &self.behind] {
            let mut bytes = [0; CANARY_BYTES];
            canary.read(0, &mut bytes).expect("all of it");
            assert_eq!(bytes, [CANARY; CANARY_BYTES], "a worker has written where it may not");
        }
    }
}

fn piece<'a>(input: &mut Cursor<'a>) -> &'a [u8] {
    let bytes = usize::from(input.u8());
    input.bytes(bytes)
}

fn immediate(slot: u8, again: bool) -> u32 {
    RequestImmediate { slot: slot.into(), again }.to_wire()
}
