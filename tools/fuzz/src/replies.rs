//! Replies: a worker that follows no protocol, as a function in its process may make it, answers an honest caller as it
//! likes.
//!
//! ```text
//!   caller: calls, in place or not ──request──▶ worker: input ──▶ replies, writes, messages ──▶ outcome, canaries
//! ```
//! Whatever it does: a call ends, with no more bytes than its output holds or with an error in a line, and no other
//! memory of the caller changes.

use std::time::Duration;

use rdmalib::{
    Access, CompletionQueue, Device, Domain, Flags, Listener, Operation, QueuePair,
    QueuePairConfig, Region, RemoteAddress, Source, Status, WorkRequest,
};
use rfaas_call::Spin;
use rfaas_call::caller::{
    Accepted, Call, CallError, CallLimits, Called, Caller, Calls, Driver, End, InputBuffer,
    MappedSlot, OutputBuffer, Owner, SlotNeeds, Unconnected, Workers, completion_queue,
};
use rfaas_protocol::invocation::{
    FailureDetail, HEADER_SPACE, InPlaceDetail, ReplyImmediate, ReplyStatus, RequestHeader,
};
use rfaas_protocol::session::WorkerHello;
use rfaas_protocol::{Hello, Role, Secret, parse_prefix};
use zerocopy::{FromBytes, IntoBytes};

use crate::assert_line;
use crate::cursor::Cursor;
use crate::device::with_device;

/// Slots that the caller uses, and largest input.
const SLOTS: u16 = 2;
const INPUT_BYTES: usize = 128;
/// Largest output, and what its buffer has.
const OUTPUT_BYTES: usize = 192;
/// Calls that are made, unless the connection ends before.
const CALLS: usize = 4;
/// Most steps of the worker, and most bytes of each.
const MOST_STEPS: usize = 32;
const MOST_PIECE: usize = 256;
/// Requests and receives of the worker.
const DEPTH: u32 = 64;
const RECEIVE: u64 = 1;
const CANARY: u8 = 0xa5;
/// Both ends are in this process. Only a finding takes so long.
const LONGEST: Duration = Duration::from_secs(50);
/// What the owner says of the end of the connection.
const CAUSE: u32 = 7;

/// The owner of the connection: it knows why that ends.
struct Knows;

impl Owner for Knows {
    type Cause = u32;

    fn noted(&self) -> Option<End<u32>> {
        None
    }

    fn ask(&self) -> Option<u32> {
        Some(CAUSE)
    }
}

pub(crate) fn run(bytes: &[u8]) {
    with_device(|device| exchange(device, bytes));
}

fn exchange(device: &Device, bytes: &[u8]) {
    let mut listener = device.listen(0).expect("an address");
    let to = listener.local_addr();
    let mut input = Cursor::new(bytes);
    // Which calls are in place, and what is wrong with the hello.
    let (in_place, lie) = (input.u8(), input.array::<2>());
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let mut worker = Worker::new(device);
            let hello = Hello::with(Role::Worker, &worker.hello(lie));
            if worker.queue_pair.connect(to, &hello, LONGEST).is_ok() {
                worker.play(&mut input);
            }
        });
        call(device, &mut listener, in_place);
    });
}

/// The caller's side.
fn call(device: &Device, listener: &mut Listener, in_place: u8) {
    let domain = device.domain().expect("a domain");
    let Some(mut caller) = caller(device, &domain, listener) else { return };
    let canary = OutputBuffer::allocate(&domain, OUTPUT_BYTES).expect("memory");
    canary.fill(OUTPUT_BYTES, CANARY).expect("all of it");
    let input = InputBuffer::allocate(&domain, INPUT_BYTES / 2).expect("memory");
    let mut output = OutputBuffer::allocate(&domain, OUTPUT_BYTES).expect("memory");
    for number in 0..CALLS {
        let called = match in_place >> number & 1 {
            0 => call_one(&mut caller, &input, &mut output),
            _ => call_in_place(&mut caller, &input, &mut output),
        };
        match called {
            Ok(Some(bytes)) => assert!(bytes <= OUTPUT_BYTES),
            Ok(None) => break, // the worker is given up
            Err(error) => assert_line(&error.to_string()),
        }
    }
    let canary = canary.to_vec(..OUTPUT_BYTES).expect("all of it");
    assert_eq!(canary, [CANARY; OUTPUT_BYTES], "a worker has written where it may not");
}

/// Accepts the worker, if what it offers will do.
fn caller(device: &Device, domain: &Domain, listener: &mut Listener) -> Option<Caller<Knows>> {
    let request = listener.next(LONGEST).expect("it listens").expect("a worker dials");
    let (_, hello) = Hello::parse(request.private_data()).expect("a hello");
    let hello: WorkerHello = parse_prefix(hello).expect("that of a worker");
    let needs = SlotNeeds { slots: SLOTS, input_bytes: INPUT_BYTES };
    if let Err(lacks) = needs.check(&hello) {
        assert_line(&lacks);
        return None;
    }
    let completions = completion_queue(device, 1, SLOTS).expect("a queue");
    let waiting = Unconnected::new(0, needs, device, domain, &completions).expect("memory");
    let accepted = waiting.accept(request, &hello, needs);
    let Accepted { connection, receives } = accepted.expect("it waits");
    let workers = Workers::new(vec![connection], LONGEST);
    let driver = Driver::new(completions, vec![receives]);
    let limits = CallLimits { spin: Spin::Always, timeout: LONGEST, output_bytes: OUTPUT_BYTES };
    Some(Caller::new(Calls::new(workers, driver, limits, Knows)))
}

/// Returns how many bytes of output there are; `None`: the worker has to be replaced.
fn call_one(
    caller: &mut Caller<Knows>,
    input: &InputBuffer,
    output: &mut OutputBuffer,
) -> Result<Option<usize>, CallError<u32>> {
    let call = Call::new(0, input, output, OUTPUT_BYTES);
    match caller.call(&call)? {
        Called::Done(outcome) => caller.read_outcome(outcome, output).map(Some),
        Called::MustReplace => Ok(None),
    }
}

/// Likewise, in the memory of the worker.
fn call_in_place(
    caller: &mut Caller<Knows>,
    head: &InputBuffer,
    reply: &mut OutputBuffer,
) -> Result<Option<usize>, CallError<u32>> {
    let Called::Done(Some(mut slot)) = MappedSlot::find(caller)? else { return Ok(None) };
    let (mapping, offset) = slot.input();
    mapping.write(offset, &[1; 8])?;
    let call = slot.request(0, 8, (head, reply), OUTPUT_BYTES);
    let outcome = caller.call_in_place(&call)?;
    let bytes = slot.read_outcome(caller, &call, outcome, reply)?;
    if let Some(output) = slot.output() {
        output.read(0, &mut vec![0; bytes])?; // all of it can be read, whatever it is
    }
    Ok(Some(bytes))
}

/// The worker, which may answer what it likes.
struct Worker {
    queue_pair: QueuePair, // first: its requests name the memory below
    completions: CompletionQueue,
    /// Its slots, and what it says that outputs are.
    slots: Region,
    outputs: Region,
    pieces: Region,
    used: usize,
    /// The last request, as far as it has come.
    asked: Option<RequestHeader>,
    /// It has said something since, or nobody has asked. Else the caller waits too.
    spoke: bool,
}

impl Worker {
    const STRIDE: usize = INPUT_BYTES + HEADER_SPACE;

    fn new(device: &Device) -> Worker {
        let domain = device.domain().expect("a domain");
        let region = |bytes, access| domain.allocate(bytes, access).expect("memory");
        let slots = region(usize::from(SLOTS) * Self::STRIDE, Access::all());
        let outputs = region(OUTPUT_BYTES, Access::REMOTE_READ);
        let pieces = region(MOST_STEPS * MOST_PIECE, Access::empty());
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
        Worker {
            queue_pair,
            completions,
            slots,
            outputs,
            pieces,
            used: 0,
            asked: None,
            spoke: true,
        }
    }

    /// Says where its slots are, with a lie of the input in one place.
    fn hello(&self, [place, by]: [u8; 2]) -> WorkerHello {
        let slots = self.slots.remote();
        let mut hello = WorkerHello {
            session: Secret([7; 16]),
            worker: 0.into(),
            slots: SLOTS.into(),
            slot_stride: (Self::STRIDE as u32).into(),
            input_addr: slots.addr.into(),
            input_key: slots.key.into(),
        };
        let bytes = hello.as_mut_bytes();
        let place = usize::from(place) % bytes.len();
        bytes[place] ^= by;
        hello
    }

    /// Does what the input says, and then ends the connection.
    fn play(&mut self, input: &mut Cursor<'_>) {
        for _ in 0..MOST_STEPS {
            if input.is_empty() || !self.step(input) {
                break;
            }
        }
        self.queue_pair.disconnect();
    }

    /// Returns whether the connection lasts.
    fn step(&mut self, input: &mut Cursor<'_>) -> bool {
        match input.u8() % 6 {
            // Replies come to requests, most of the time.
            0 => return self.wait_for_request(),
            1 => {
                let (status, bytes) = (input.u8(), usize::from(input.u8()));
                self.reply(status, [0; 2], &[CANARY; MOST_PIECE][..bytes]);
            }
            2 => {
                let (status, wrong) = (input.u8(), input.array());
                let detail = FailureDetail { needed_bytes: input.u64().into() };
                self.reply(status, wrong, detail.as_bytes());
            }
            3 => {
                let (lie, bytes) = (u64::from(input.u16()), input.u32());
                let RemoteAddress { addr, key } = self.outputs.remote();
                let detail = InPlaceDetail {
                    output_addr: (addr ^ lie << 6).into(), // a multiple of 64, or not in the domain
                    output_key: (key ^ u64::from(input.u8())).into(),
                    output_bytes: bytes.into(),
                };
                self.reply(0, [0; 2], detail.as_bytes());
            }
            4 => {
                let (immediate, offset) = (input.u32(), input.u16());
                let (to, bytes) = (self.place(i64::from(offset) - 64), input.bytes(64));
                self.post(bytes, |source| Operation::Write {
                    source,
                    to,
                    immediate: Some(immediate),
                });
            }
            _ => {
                let bytes = input.bytes(64);
                self.post(bytes, |source| Operation::Send { source, immediate: None });
            }
        }
        true
    }

    /// Waits for a request and reads its header; false: there will be none.
    fn wait_for_request(&mut self) -> bool {
        while self.spoke {
            let Some(done) = self.completions.poll_one() else {
                std::thread::yield_now();
                continue;
            };
            if done.status != Status::Success {
                return false;
            }
            if done.id != RECEIVE {
                continue;
            }
            let slot = done.immediate.unwrap_or(0) as usize & 1;
            let mut header = [0; size_of::<RequestHeader>()];
            let at = slot * Self::STRIDE + HEADER_SPACE - header.len();
            self.slots.read(at, &mut header).expect("it is in the slot");
            self.asked = RequestHeader::read_from_bytes(&header).ok();
            self.spoke = false;
            return self.queue_pair.post_receive(RECEIVE, None).is_ok();
        }
        true
    }

    /// Names a place beside the start of the caller's output.
    fn place(&self, offset: i64) -> RemoteAddress {
        let asked = self.asked.map(|asked| (asked.reply_addr.get(), asked.reply_key.get()));
        let (addr, key) = asked.unwrap_or_default();
        RemoteAddress { addr: addr.wrapping_add_signed(offset), key }
    }

    /// Answers the last request, but for `wrong` in slot and sequence.
    fn reply(&mut self, status: u8, [slot, sequence]: [u8; 2], bytes: &[u8]) {
        let status = match status % 4 {
            0 => ReplyStatus::Ok,
            1 => ReplyStatus::UnknownFunction,
            2 => ReplyStatus::OutputTooLarge,
            _ => ReplyStatus::Malformed,
        };
        let expected = self.asked.map_or(0, |asked| asked.sequence.get());
        let reply = ReplyImmediate {
            slot: slot.into(),
            status,
            sequence: (expected as u8).wrapping_add(sequence),
        };
        let failed = status != ReplyStatus::Ok;
        let to = self.place(if failed { -(HEADER_SPACE as i64) } else { 0 });
        let immediate = Some(reply.to_wire());
        self.post(bytes, |source| Operation::Write { source, to, immediate });
    }

    fn post(&mut self, bytes: &[u8], operation: impl FnOnce(Source<'_>) -> Operation<'_>) {
        self.spoke = true;
        let piece = self.used..self.used + bytes.len();
        self.used = piece.end;
        self.pieces.write(piece.start, bytes).expect("there is room");
        let source = Source::Region(self.pieces.slice(piece).expect("likewise"));
        let (operation, flags) = (operation(source), Flags::SIGNALED);
        if let Err(error) = self.queue_pair.post(&WorkRequest { id: 0, operation, flags }) {
            assert_line(&error.to_string()); // the caller has cut the connection
        }
    }
}
