//! The client's end of one worker.

use std::time::{Duration, Instant};

use rdmalib::{
    Access, CompletionQueue, ConnectRequest, Device, Flags, Operation, QueuePair, QueuePairConfig,
    Region, RemoteAddress, Source, Status, WorkCompletion, WorkRequest,
};
use rfaas_protocol::Empty;
use rfaas_protocol::invocation::{
    FailureDetail, ReplyImmediate, ReplyStatus, RequestHeader, RequestImmediate,
};
use rfaas_protocol::session::WorkerHello;
use zerocopy::{FromBytes, IntoBytes};

use super::{DEADLINE, wait_for};

/// A reply, as the client saw it.
#[derive(Debug, PartialEq, Eq)]
pub struct Reply {
    pub slot: u16,
    pub status: ReplyStatus,
    pub sequence: u8,
    pub output: Vec<u8>,
    pub needed_bytes: u64,
}

/// The client's end of one worker.
pub struct Worker {
    pub pair: QueuePair,
    pub queue: CompletionQueue,
    pub hello: WorkerHello,
    input: Region,
    pub output: Region,
    output_stride: usize,
    sequence: u32,
}

impl Worker {
    pub fn accept(
        device: &Device,
        request: ConnectRequest,
        hello: WorkerHello,
        output: u32,
    ) -> Self {
        let domain = device.domain().unwrap();
        let slots = u32::from(hello.slots.get());
        let config = QueuePairConfig {
            send_depth: 4 * slots,
            receive_depth: 4 * slots,
            ..QueuePairConfig::default()
        };
        let queue = device.completion_queue(8 * slots).unwrap();
        let mut pair = QueuePair::new(&domain, &queue, &queue, &config).unwrap();
        for _ in 0..4 * slots {
            pair.post_receive(0, None).unwrap();
        }
        let output_stride = 64 + (output as usize).next_multiple_of(64);
        let input = slots as usize * hello.slot_stride.get() as usize;
        let remote = Access::LOCAL_WRITE | Access::REMOTE_WRITE;
        let mut worker = Worker {
            input: domain.allocate(input, Access::empty()).unwrap(),
            output: domain.allocate(slots as usize * output_stride, remote).unwrap(),
            pair,
            queue,
            hello,
            output_stride,
            sequence: 0,
        };
        request.accept(&mut worker.pair, Empty {}.as_bytes()).unwrap();
        worker
    }

    /// A header for `slot` as a well-behaved client makes it.
    pub fn header(&mut self, slot: u16, function: u32, input_bytes: usize) -> RequestHeader {
        self.sequence += 1;
        let place =
            self.output.remote().offset((usize::from(slot) * self.output_stride + 64) as u64);
        RequestHeader {
            reply_addr: place.addr.into(),
            reply_key: place.key.into(),
            output_capacity: ((self.output_stride - 64) as u32).into(),
            function: u16::try_from(function).expect("an index has 16 bits").into(),
            flags: 0.into(),
            input_bytes: (input_bytes as u32).into(),
            sequence: self.sequence.into(),
        }
    }

    /// Writes `bytes` where `slot`'s header is, with `immediate`.
    pub fn write(&mut self, slot: u16, bytes: &[u8], immediate: Option<u32>) {
        self.write_at(slot, 32, bytes, immediate);
    }

    /// Asks in `slot` for what was asked there last.
    pub fn submit_again(&mut self, slot: u16, input: &[u8]) {
        let again = RequestImmediate { slot: slot.into(), again: true };
        self.write_at(slot, 64, input, Some(again.to_wire()));
    }

    fn write_at(&mut self, slot: u16, offset: usize, bytes: &[u8], immediate: Option<u32>) {
        let start = usize::from(slot) * self.hello.slot_stride.get() as usize + offset;
        self.input.write(start, bytes).unwrap();
        let to = RemoteAddress {
            addr: self.hello.input_addr.get() + start as u64,
            key: self.hello.input_key.get(),
        };
        let source = Source::Region(self.input.slice(start..start + bytes.len()).unwrap());
        self.pair
            .post(&WorkRequest {
                id: 1,
                operation: Operation::Write { source, to, immediate },
                flags: Flags::SIGNALED,
            })
            .unwrap();
    }

    pub fn submit_with(&mut self, header: RequestHeader, slot: u16, input: &[u8]) {
        let message = [header.as_bytes(), input].concat();
        self.write(slot, &message, Some(slot.into()));
    }

    /// Asks for `function`, without waiting.
    pub fn submit(&mut self, slot: u16, function: u32, input: &[u8]) {
        let header = self.header(slot, function, input.len());
        self.submit_with(header, slot, input);
    }

    /// What completes next, except for sends; `None` when the connection is over.
    fn completion(&mut self) -> Option<WorkCompletion> {
        let start = Instant::now();
        loop {
            match self.queue.poll_one() {
                Some(done) if done.status != Status::Success => return None,
                Some(done) if done.id == 0 => return Some(done),
                Some(_) => {}
                None => {
                    assert!(start.elapsed() < DEADLINE, "no reply within {DEADLINE:?}");
                    self.queue.wait(Some(Duration::from_millis(100))).unwrap();
                }
            }
        }
    }

    /// The next reply; `None` when the connection is over.
    pub fn reply(&mut self) -> Option<Reply> {
        let done = self.completion()?;
        self.pair.post_receive(0, None).unwrap();
        let reply = ReplyImmediate::from_wire(done.immediate.unwrap()).unwrap();
        let area = usize::from(reply.slot) * self.output_stride;
        let ok = reply.status == ReplyStatus::Ok;
        let mut output = vec![0; if ok { done.bytes as usize } else { 0 }];
        self.output.read(area + 64, &mut output).unwrap();
        let mut detail = [0; size_of::<FailureDetail>()];
        if !ok {
            assert_eq!(done.bytes as usize, detail.len());
            self.output.read(area, &mut detail).unwrap();
        }
        let detail = FailureDetail::read_from_bytes(&detail).unwrap();
        Some(Reply {
            slot: reply.slot,
            status: reply.status,
            sequence: reply.sequence,
            output,
            needed_bytes: detail.needed_bytes.get(),
        })
    }

    /// Calls `function` in slot 0 and returns its output.
    pub fn call(&mut self, function: u32, input: &[u8]) -> Vec<u8> {
        self.submit(0, function, input);
        let reply = self.reply().expect("the worker answers");
        assert_eq!((reply.slot, reply.status), (0, ReplyStatus::Ok));
        assert_eq!(reply.sequence, self.sequence as u8);
        reply.output
    }

    /// Whether the worker ends the connection.
    pub fn ends(&mut self) -> bool {
        wait_for("the end of the connection", || {
            while let Some(done) = self.queue.poll_one() {
                if done.status != Status::Success {
                    return Some(true);
                }
            }
            None
        })
    }
}
