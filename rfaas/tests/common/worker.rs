//! A worker thread: takes requests from its slots, answers as its functions say.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Mutex;
use std::thread;
use std::time::Duration;

use rdmalib::{
    Access, CompletionQueue, Device, Flags, Opcode, Operation, QueuePair, QueuePairConfig, Region,
    RemoteAddress, Source, State, Status, WorkRequest,
};
use rfaas_protocol::allocation::Allocate;
use rfaas_protocol::invocation::{
    FailureDetail, HEADER_SPACE, InPlaceDetail, ReplyImmediate, ReplyStatus, RequestHeader,
    RequestImmediate,
};
use rfaas_protocol::session::WorkerHello;
use rfaas_protocol::{Hello, Role, Secret};
use zerocopy::{FromBytes, IntoBytes};

use super::{Exit, FUNCTIONS, LONG, Shared, Start, lock};

/// Dials the client and works until the executor ends.
pub fn run(
    start: &Start,
    shared: &Mutex<Shared>,
    device: &Device,
    allocate: &Allocate,
    index: u16,
) {
    let Some(mut worker) = Worker::dial(start, device, allocate, index) else { return };
    loop {
        if lock(shared).executor_ends.is_some() {
            return;
        }
        match worker.completions.poll_one() {
            Some(done) if done.status != Status::Success => return,
            Some(done) if done.opcode == Opcode::ReceiveWithImmediate => {
                worker.queue_pair.post_receive(0, None).ok();
                let immediate = RequestImmediate::from_wire(done.immediate.unwrap());
                match worker.serve(immediate, done.bytes, shared) {
                    Next::Go => {}
                    Next::Hang => return worker.hang(shared),
                    Next::Unplug => return,
                    Next::Exit(exit) => {
                        lock(shared).executor_ends.get_or_insert(exit);
                        return;
                    }
                }
            }
            Some(_) => {}
            None => thread::yield_now(),
        }
    }
}

enum Next {
    Go,
    /// The worker does nothing any more.
    Hang,
    /// Its connection ends.
    Unplug,
    /// The executor ends.
    Exit(Exit),
}

struct Worker {
    index: u16,
    queue_pair: QueuePair,
    completions: CompletionQueue,
    slots: Region,
    stride: usize,
    outputs: Region,
    output_stride: usize,
    held: Vec<(u16, RequestHeader)>,
    /// The last header of each slot.
    last: HashMap<u16, RequestHeader>,
}

impl Worker {
    fn dial(start: &Start, device: &Device, allocate: &Allocate, index: u16) -> Option<Worker> {
        let slots = usize::from(allocate.slots.get());
        let stride = HEADER_SPACE + (allocate.input_bytes.get() as usize).next_multiple_of(64);
        let output_stride =
            HEADER_SPACE + (allocate.output_bytes.get() as usize).next_multiple_of(64);
        let domain = device.domain().unwrap();
        let access = Access::LOCAL_WRITE | Access::REMOTE_WRITE | Access::REMOTE_READ;
        let input = domain.allocate(slots * stride, access).unwrap();
        let outputs = domain.allocate(slots * output_stride, Access::REMOTE_READ).unwrap();
        let hello = WorkerHello {
            session: allocate.session,
            worker: index.into(),
            slots: allocate.slots,
            slot_stride: u32::try_from(stride).unwrap().into(),
            input_addr: input.remote().addr.into(),
            input_key: input.remote().key.into(),
        };
        let wrong = WorkerHello { slot_stride: 64.into(), ..hello };
        let wrongs = [
            WorkerHello { session: Secret::generate(), ..hello },
            WorkerHello { worker: u16::MAX.into(), ..hello },
            WorkerHello { slots: 0.into(), ..hello },
            WorkerHello { input_addr: (input.remote().addr + 1).into(), ..hello },
            wrong,
        ];
        let config = QueuePairConfig {
            send_depth: 4096,
            receive_depth: allocate.slots.get().into(),
            ..QueuePairConfig::default()
        };
        let connect = |hello: &WorkerHello| {
            let completions = device.completion_queue(8192).unwrap();
            let mut queue_pair =
                QueuePair::new(&domain, &completions, &completions, &config).unwrap();
            for _ in 0..slots {
                queue_pair.post_receive(0, None).unwrap();
            }
            let to = allocate.client.into();
            let connected = queue_pair.connect(to, &Hello::with(Role::Worker, hello), LONG);
            connected.map(|_| (queue_pair, completions))
        };
        if *start == Start::WrongNumbers {
            for wrong in wrongs {
                assert!(matches!(connect(&wrong), Err(rdmalib::Error::Rejected { .. })));
            }
        }
        let (queue_pair, completions) = connect(&hello).ok()?;
        if *start == Start::WrongNumbers {
            // A second one under the same number.
            assert!(connect(&hello).is_err());
        }
        Some(Worker {
            index,
            queue_pair,
            completions,
            slots: input,
            stride,
            outputs,
            output_stride,
            held: Vec::new(),
            last: HashMap::new(),
        })
    }

    fn serve(
        &mut self,
        immediate: RequestImmediate,
        message_bytes: u32,
        shared: &Mutex<Shared>,
    ) -> Next {
        let slot = u16::try_from(immediate.slot).unwrap();
        let at = usize::from(slot) * self.stride;
        if immediate.again {
            let last = self.last.get_mut(&slot).expect("there was one before");
            last.sequence = last.sequence.get().wrapping_add(1).into();
            last.input_bytes = message_bytes.into();
            lock(shared).repeated += 1;
        } else {
            let mut bytes = [0; size_of::<RequestHeader>()];
            self.slots.read(at + HEADER_SPACE - bytes.len(), &mut bytes).unwrap();
            self.last.insert(slot, RequestHeader::read_from_bytes(&bytes).unwrap());
        }
        let header = self.last[&slot];
        let mut input = vec![0; header.input_bytes.get() as usize];
        self.slots.read(at + HEADER_SPACE, &mut input).unwrap();
        let first = input.first().copied().unwrap_or_default();
        lock(shared).taken += 1;
        match FUNCTIONS[header.function.get() as usize] {
            "empty" => self.answer(slot, &header, &input),
            "exit" => return Next::Exit(Exit { signal: 0, status: 3 }),
            "flush" => {
                for (slot, header) in std::mem::take(&mut self.held).into_iter().rev() {
                    let at = usize::from(slot) * self.stride + HEADER_SPACE;
                    let mut input = vec![0; header.input_bytes.get() as usize];
                    self.slots.read(at, &mut input).unwrap();
                    self.answer(slot, &header, &input);
                }
                self.answer(slot, &header, &[]);
            }
            "grow" => {
                let bytes = u32::from_le_bytes(input[..4].try_into().unwrap());
                if bytes <= header.output_capacity.get() {
                    self.answer(slot, &header, &vec![first; bytes as usize]);
                } else {
                    self.fail(slot, &header, bytes);
                }
            }
            "hold" => self.held.push((slot, header)),
            "late" => self.write_until_cut(&header),
            "misplaced" => self.misplace(slot, &header, first),
            "never" => return Next::Hang,
            "oversize" if header.output_stays() => {
                let bytes = header.output_capacity.get() + 1;
                self.stays(slot, &header, self.output(slot), bytes);
            }
            "oversize" => {
                // To the start of the header space, so that it does land somewhere.
                let bytes = header.output_capacity.get() as usize + 1;
                self.reply(slot, &header, reply_addr(&header, -1), bytes, ReplyStatus::Ok, slot);
            }
            "segfault" => return Next::Exit(Exit { signal: 11, status: 0 }),
            "sleep" => {
                thread::sleep(Duration::from_millis(first.into()));
                if lock(shared).executor_ends.is_some() {
                    return Next::Hang; // the dead do not answer
                }
                self.answer(slot, &header, &input);
            }
            "strangers" => {
                self.reply(slot, &header, reply_addr(&header, 0), 0, ReplyStatus::Ok, slot + 999);
            }
            "twice" => {
                self.answer(slot, &header, &input);
                self.answer(slot, &header, &input);
            }
            "unplug" => return Next::Unplug,
            "where" => self.answer(slot, &header, &self.index.to_le_bytes()),
            other => panic!("no function {other}"),
        }
        Next::Go
    }

    /// Until the client cuts the connection, or the executor ends.
    fn hang(&self, shared: &Mutex<Shared>) {
        while self.queue_pair.state() == State::Connected && lock(shared).executor_ends.is_none() {
            thread::sleep(Duration::from_millis(1));
        }
    }

    fn answer(&mut self, slot: u16, header: &RequestHeader, output: &[u8]) {
        let at = usize::from(slot) * self.output_stride + HEADER_SPACE;
        self.outputs.write(at, output).unwrap();
        if header.output_stays() {
            return self.stays(slot, header, self.output(slot), output.len() as u32);
        }
        self.reply(slot, header, reply_addr(header, 0), output.len(), ReplyStatus::Ok, slot);
    }

    /// Returns where the output of `slot` is.
    fn output(&self, slot: u16) -> RemoteAddress {
        let at = usize::from(slot) * self.output_stride + HEADER_SPACE;
        self.outputs.remote().offset(at as u64)
    }

    /// Says that `bytes` bytes of output have stayed at `place`.
    fn stays(&mut self, slot: u16, header: &RequestHeader, place: RemoteAddress, bytes: u32) {
        let detail = InPlaceDetail {
            output_addr: place.addr.into(),
            output_key: place.key.into(),
            output_bytes: bytes.into(),
        };
        let at = usize::from(slot) * self.output_stride;
        self.outputs.write(at, detail.as_bytes()).unwrap();
        let range = at..at + detail.as_bytes().len();
        self.reply_with(range, header, reply_addr(header, 0), ReplyStatus::Ok, slot);
    }

    /// Answers a call in place as it cannot be, in one of four ways.
    fn misplace(&mut self, slot: u16, header: &RequestHeader, way: u8) {
        let RemoteAddress { addr, key } = self.output(slot);
        let place = match way {
            0 => RemoteAddress { addr, key: key ^ 1 << 20 },
            1 => RemoteAddress { addr: addr + (1 << 40), key },
            2 => RemoteAddress { addr: addr + 1, key },
            _ => return self.reply(slot, header, reply_addr(header, 0), 3, ReplyStatus::Ok, slot),
        };
        self.stays(slot, header, place, 1);
    }

    fn fail(&mut self, slot: u16, header: &RequestHeader, needed: u32) {
        let detail = FailureDetail { needed_bytes: u64::from(needed).into() };
        let at = usize::from(slot) * self.output_stride + HEADER_SPACE;
        self.outputs.write(at, detail.as_bytes()).unwrap();
        let to = reply_addr(header, -(HEADER_SPACE as i64));
        let status = ReplyStatus::OutputTooLarge;
        self.reply(slot, header, to, detail.as_bytes().len(), status, slot);
    }

    /// Writes `bytes` bytes of the slot's output; says that it answers `said`.
    fn reply(
        &mut self,
        slot: u16,
        header: &RequestHeader,
        to: RemoteAddress,
        bytes: usize,
        status: ReplyStatus,
        said: u16,
    ) {
        let at = usize::from(slot) * self.output_stride + HEADER_SPACE;
        self.reply_with(at..at + bytes, header, to, status, said);
    }

    /// Likewise with other bytes.
    fn reply_with(
        &mut self,
        bytes: Range<usize>,
        header: &RequestHeader,
        to: RemoteAddress,
        status: ReplyStatus,
        said: u16,
    ) {
        let reply = ReplyImmediate { slot: said, status, sequence: header.sequence.get() as u8 };
        let request = WorkRequest {
            id: 1,
            operation: Operation::Write {
                source: Source::Region(self.outputs.slice(bytes).unwrap()),
                to,
                immediate: Some(reply.to_wire()),
            },
            flags: Flags::SIGNALED | Flags::SOLICITED,
        };
        // Fails if the client has gone meanwhile, which the next poll tells.
        while let Err(rdmalib::Error::QueueFull { .. }) = self.queue_pair.post(&request) {
            self.completions.poll_one();
        }
    }

    /// A function that ignores its time limit and keeps writing to where the output is to go.
    fn write_until_cut(&mut self, header: &RequestHeader) {
        for round in 1u32.. {
            self.outputs.write(0, &round.to_le_bytes()).unwrap();
            let request = WorkRequest {
                id: 1,
                operation: Operation::Write {
                    source: Source::Region(self.outputs.slice(0..4).unwrap()),
                    to: reply_addr(header, 0),
                    immediate: None,
                },
                flags: Flags::SIGNALED,
            };
            self.queue_pair.post(&request).ok();
            while let Some(done) = self.completions.poll_one() {
                if done.status != Status::Success {
                    return;
                }
            }
        }
    }
}

/// Returns where the output goes, and some bytes further.
fn reply_addr(header: &RequestHeader, further: i64) -> RemoteAddress {
    let addr = header.reply_addr.get().wrapping_add_signed(further);
    RemoteAddress { addr, key: header.reply_key.get() }
}
