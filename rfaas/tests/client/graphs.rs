//! Workers of a graph that follow no protocol on their way to the client: whatever one writes, the run fails with its
//! name, in time; other lanes and other clients serve on, and so does its own once it was started again.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::channel;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rdmalib::{
    Access, CompletionQueue, Device, Domain, Flags, Opcode, Operation, QueuePair, QueuePairConfig,
    Region, RemoteAddress, Source, Status, WorkRequest,
};
use rfaas::{Client, CompiledGraph, Deployment, Error, Graph, Lanes, Run, Spin};
use rfaas_config::{ExecutorEntry, ExecutorsDatabase};
use rfaas_protocol::allocation::{
    Allocate, Allocated, ExecutorExited, FromClient, Released, ToClient,
};
use rfaas_protocol::channel::{Channel, ChannelError, Incoming, refuse};
use rfaas_protocol::edge::{
    EdgeFailure, EdgeHello, EdgeImmediate, EdgeShape, EdgeSlots, EdgeStatus, FailedBecause,
};
use rfaas_protocol::node::Bill;
use rfaas_protocol::session::{
    CodeFrom, EdgeOut, ExecutorHello, FromExecutor, FunctionNames, Listening, ToExecutor,
    WorkerHello,
};
use rfaas_protocol::{Empty, Hello, Role, parse_prefix};
use zerocopy::IntoBytes;

use crate::common::{LONG, library, open_device};

/// A function that the library has. Nobody calls it here.
const FUNCTION: &str = "abs";
/// Largest input and output.
const BYTES: u32 = 256;
/// Limit of a run that is never answered.
const LIMIT: Duration = Duration::from_secs(2);
/// Posts of a worker that floods.
const FLOOD: u32 = 10_000;
/// What the worker does with a run, by the first byte of its input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Conduct {
    /// Returns its input.
    Answers,
    /// Writes over all slots that it was given, and then answers.
    ScribblesAndAnswers,
    /// Writes behind the last of them.
    ScribblesBehind,
    /// Writes to another place of the client's memory with the same key.
    ScribblesElsewhere,
    ForgesTheRun,
    /// Answers in a slot in which no run is, in one that does not exist, over an edge that does not.
    NamesAFreeSlot,
    NamesNoSlot,
    NamesNoEdge,
    HasNoStatus,
    /// Says that it has written in place, which it cannot.
    IsInPlace,
    Overflows,
    AnswersTwice,
    Floods,
    FloodsMessages,
    /// Fails for no reason, and in a function that there is not.
    FailsForNothing,
    FailsForAnother,
    Leaves,
    NeverAnswers,
}

impl Conduct {
    const HOSTILE: [(Conduct, &str); 16] = [
        (Conduct::ScribblesBehind, "it ended its connection"),
        (Conduct::ScribblesElsewhere, "it ended its connection"),
        (Conduct::ForgesTheRun, "it wrote an output that is not waited for"),
        (Conduct::NamesAFreeSlot, "it wrote an output that is not waited for"),
        (Conduct::NamesNoSlot, "it named a slot that it was not given"),
        (Conduct::NamesNoEdge, "it named an edge that it was not given"),
        (Conduct::HasNoStatus, "it used a status that does not exist"),
        (Conduct::IsInPlace, "it has mapped what it may not"),
        (Conduct::Overflows, "it ended its connection"), // behind the last slot is nothing it may write
        (Conduct::AnswersTwice, "it wrote an output"),
        (Conduct::Floods, "it wrote an output that is not waited for"),
        (Conduct::FloodsMessages, "it ended its connection"), // no receive there has room for any
        (Conduct::FailsForNothing, "it failed for no reason there is"),
        (Conduct::FailsForAnother, "it failed in a function that is not in the graph"),
        (Conduct::Leaves, "it ended its connection"),
        (Conduct::NeverAnswers, ""),
    ];

    fn of(byte: u8) -> Conduct {
        let all = [Conduct::Answers, Conduct::ScribblesAndAnswers];
        let mut all = all.into_iter().chain(Conduct::HOSTILE.map(|(conduct, _)| conduct));
        all.find(|conduct| *conduct as u8 == byte).unwrap()
    }
}

/// A node whose executors are such workers; ends when dropped.
struct Node {
    address: SocketAddr,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Node {
    fn start() -> Node {
        let (address_out, address_in) = channel();
        let stop = Arc::new(AtomicBool::new(false));
        let stops = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            let device = rdmalib_testing::device(); // as another process would open it
            let mut listener = device.listen(0).unwrap();
            address_out.send(listener.local_addr()).unwrap();
            let leases = AtomicU64::new(0);
            thread::scope(|scope| {
                while !stops.load(Ordering::Relaxed) {
                    let next = listener.next(Duration::from_millis(5)).unwrap();
                    let Some(request) = next else { continue };
                    let Ok((Role::Allocation, _)) = Hello::parse(request.private_data()) else {
                        refuse(request, "this is an executor manager");
                        continue;
                    };
                    let mut client = Channel::new(&device, 8).unwrap();
                    if client.accept(request, &Empty {}).is_ok() {
                        let lease = 1 + leases.fetch_add(1, Ordering::Relaxed);
                        let (device, stops) = (&device, &stops);
                        scope.spawn(move || manage(device, &mut client, lease, stops));
                    }
                }
            });
        });
        Node { address: address_in.recv().unwrap(), stop, thread: Some(thread) }
    }

    /// A graph of one function, compiled by a client of its own: two lanes, which have a run at a time each.
    fn compile(&self, limit: Duration) -> CompiledGraph {
        let entry = ExecutorEntry {
            node: "hostile".into(),
            address: self.address.ip().to_string(),
            port: self.address.port(),
            cores: 64,
            memory: 65536,
            labels: Vec::new(),
        };
        let database = ExecutorsDatabase { executors: vec![entry] };
        let client = Client::with_executors(open_device(), database).unwrap();
        let mut graph = Graph::new();
        let function = graph.function(library(), FUNCTION);
        graph.input(function, BYTES as usize).output(function, BYTES as usize);
        graph.lanes(Lanes::exactly(2));
        let deployment = Deployment::new().spin(Spin::Never).slots(1).invocation_timeout(limit);
        client.compile_with(&graph, &deployment).unwrap()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().unwrap();
        if !thread::panicking() {
            thread.join().unwrap();
        }
    }
}

/// The executor manager, of one lease.
fn manage(device: &Device, client: &mut Channel, lease: u64, stop: &AtomicBool) {
    let (exits, exited) = channel();
    thread::scope(|scope| {
        while !stop.load(Ordering::Relaxed) {
            if exited.try_recv().is_ok() {
                let exit = ExecutorExited {
                    signal: 0.into(),
                    status: 0.into(),
                    silent: 0.into(),
                    memory_limit: 0.into(),
                    memory_used: 0.into(),
                };
                client.send(&ToClient::ExecutorExited(exit)).ok();
            }
            match client.receive(Duration::from_millis(1)) {
                Ok(Incoming::Message(FromClient::Allocate(allocate))) => {
                    let (heartbeat_ms, silence_ms) = (1000.into(), 3_600_000.into());
                    let allocated = Allocated { lease: lease.into(), heartbeat_ms, silence_ms };
                    client.send(&ToClient::Allocated(allocated)).unwrap();
                    let exits = exits.clone();
                    scope.spawn(move || {
                        execute(device, &allocate, stop);
                        exits.send(()).ok();
                    });
                }
                Ok(Incoming::Message(FromClient::Release(_))) => {
                    client.send(&ToClient::Released(Released { bill: Bill::default() })).ok();
                }
                Ok(Incoming::Message(_)) | Err(ChannelError::TimedOut { .. }) => {}
                Ok(Incoming::Written { .. }) | Err(_) => return,
            }
        }
    });
}

/// An executor with a worker, until the client has closed its connections.
fn execute(device: &Device, allocate: &Allocate, stop: &AtomicBool) {
    let client = allocate.client.into();
    let mut control = Channel::new(device, 16).unwrap();
    let hello = ExecutorHello {
        session: allocate.session,
        code_addr: 0.into(),
        code_key: 0.into(),
        code_from: CodeFrom::Node.to_wire(),
    };
    if control.connect(client, Role::Executor, &hello, LONG).is_err() {
        return;
    }
    let address = SocketAddr::from(([127, 0, 0, 1], 1)).into(); // nobody is told to dial it
    control.send(&FromExecutor::Listening(Listening { address })).unwrap();
    let mut output = None;
    loop {
        match control.receive::<ToExecutor>(LONG) {
            Ok(Incoming::Message(ToExecutor::EdgeOut(edge))) => output = Some(edge),
            Ok(Incoming::Message(ToExecutor::Complete(_))) => break,
            Ok(Incoming::Message(_)) => {}
            _ => return,
        }
    }
    let Some(mut worker) = Worker::connect(device, allocate, &output.unwrap()) else { return };
    let (names, _) = FunctionNames::from(&[FUNCTION.to_owned()], 0);
    if control.send(&FromExecutor::Functions(names)).is_err() {
        return;
    }
    while !stop.load(Ordering::Relaxed) && worker.serve() {
        match control.try_receive::<ToExecutor>() {
            Ok(None) => thread::sleep(Duration::from_micros(100)),
            _ => return,
        }
    }
}

struct Worker {
    input: QueuePair,
    inputs: CompletionQueue,
    slots: Region,
    shape: EdgeShape,
    output: QueuePair,
    outputs: CompletionQueue,
    to: RemoteAddress,
    payload: Region,
    _domain: Domain,
}

impl Worker {
    /// Connects its output, and then its input.
    fn connect(device: &Device, allocate: &Allocate, edge: &EdgeOut) -> Option<Worker> {
        let domain = device.domain().unwrap();
        let shape = EdgeShape { slots: allocate.slots.get(), bytes: BYTES };
        let queue_pair = |receive_depth| {
            let completions = device.completion_queue(4096).unwrap();
            let config =
                QueuePairConfig { send_depth: 1024, receive_depth, ..QueuePairConfig::default() };
            let queue_pair = QueuePair::new(&domain, &completions, &completions, &config).unwrap();
            (queue_pair, completions)
        };
        let (mut output, outputs) = queue_pair(1);
        let hello = Hello::with(Role::Edge, &EdgeHello { secret: edge.secret });
        let answer = output.connect(edge.to.into(), &hello, LONG).ok()?;
        let EdgeSlots { addr, key } = parse_prefix(answer.as_slice()).unwrap();
        let to = RemoteAddress { addr: addr.get(), key: key.get() };

        let access = Access::LOCAL_WRITE | Access::REMOTE_WRITE;
        let bytes = usize::try_from(shape.all_bytes()).unwrap();
        let slots = domain.allocate(bytes, access).unwrap();
        let (mut input, inputs) = queue_pair(shape.slots.into());
        for _ in 0..shape.slots {
            input.post_receive(0, None).unwrap();
        }
        let hello = WorkerHello {
            session: allocate.session,
            worker: 0.into(),
            slots: shape.slots.into(),
            slot_stride: u32::try_from(shape.stride()).unwrap().into(),
            input_addr: slots.remote().addr.into(),
            input_key: slots.remote().key.into(),
        };
        input.connect(allocate.client.into(), &Hello::with(Role::Worker, &hello), LONG).ok()?;
        let payload = domain.allocate(2 * BYTES as usize, Access::empty()).unwrap();
        let _domain = domain;
        Some(Worker { input, inputs, slots, shape, output, outputs, to, payload, _domain })
    }

    /// Takes a run, if there is one. Returns whether it goes on.
    fn serve(&mut self) -> bool {
        let Some(done) = self.inputs.poll_one() else { return true };
        if done.status != Status::Success {
            return false;
        }
        if done.opcode != Opcode::ReceiveWithImmediate {
            return true;
        }
        self.input.post_receive(0, None).ok();
        let run = EdgeImmediate::from_wire(done.immediate.unwrap()).unwrap();
        let mut input = vec![0; done.bytes as usize];
        self.slots.read(self.shape.start(run.slot) as usize, &mut input).unwrap();
        self.behave(Conduct::of(input[0]), run, &input)
    }

    fn behave(&mut self, conduct: Conduct, run: EdgeImmediate, input: &[u8]) -> bool {
        let at = self.shape.start(run.slot);
        let all = self.shape.all_bytes();
        self.payload.write(0, input).unwrap();
        let honest = EdgeImmediate { status: EdgeStatus::Value, ..run };
        let as_value = |changed: EdgeImmediate| Some(changed.to_wire());
        let (value, bytes) = (as_value(honest), input.len());
        match conduct {
            Conduct::Answers => self.write(at, value, bytes),
            Conduct::ScribblesAndAnswers => {
                self.payload.write(0, &vec![0xee; self.shape.stride() as usize]).unwrap();
                for slot in 0..self.shape.slots {
                    self.write(self.shape.start(slot), None, self.shape.stride() as usize);
                }
                self.write(at, value, bytes);
            }
            Conduct::ScribblesBehind => self.write(all, value, bytes),
            Conduct::ScribblesElsewhere => self.write(0_u64.wrapping_sub(1 << 20), value, bytes),
            Conduct::ForgesTheRun => {
                let run = honest.run.wrapping_add(1);
                self.write(at, as_value(EdgeImmediate { run, ..honest }), bytes);
            }
            Conduct::NamesAFreeSlot => {
                // There is one slot; it is free once it has its output.
                self.write(at, value, bytes);
                thread::sleep(Duration::from_millis(50));
                self.write(at, value, bytes);
            }
            Conduct::NamesNoSlot => {
                let slot = self.shape.slots;
                self.write(at, as_value(EdgeImmediate { slot, ..honest }), bytes);
            }
            Conduct::NamesNoEdge => {
                self.write(at, as_value(EdgeImmediate { edge: 1, ..honest }), bytes);
            }
            Conduct::HasNoStatus => {
                let bits = honest.to_wire() | 7 << 21;
                self.write(at, Some(bits), bytes);
            }
            Conduct::IsInPlace => {
                let status = EdgeStatus::InPlace;
                self.write(at, as_value(EdgeImmediate { status, ..honest }), 4);
            }
            Conduct::Overflows => self.write(at, value, BYTES as usize + 1),
            Conduct::AnswersTwice => {
                self.write(at, value, bytes);
                self.write(at, value, bytes);
            }
            Conduct::Floods => {
                let run = honest.run.wrapping_sub(1);
                let forged = as_value(EdgeImmediate { run, ..honest });
                (0..FLOOD).for_each(|_| self.write(at, forged, bytes));
            }
            Conduct::FloodsMessages => (0..FLOOD).for_each(|_| self.message(bytes)),
            Conduct::FailsForNothing => self.fail(at, honest, u16::MAX, 0),
            Conduct::FailsForAnother => {
                self.fail(at, honest, FailedBecause::Function.to_wire().get(), 9);
            }
            Conduct::Leaves => return false,
            Conduct::NeverAnswers => {}
        }
        true
    }

    fn fail(&mut self, at: u64, run: EdgeImmediate, because: u16, function: u16) {
        let failure = EdgeFailure {
            because: because.into(),
            function: function.into(),
            member: 0.into(),
            unused: 0.into(),
            returned: 0.into(),
            most: 0.into(),
        };
        self.payload.write(0, failure.as_bytes()).unwrap();
        let immediate = EdgeImmediate { status: EdgeStatus::Failed, ..run }.to_wire();
        self.write(at, Some(immediate), size_of::<EdgeFailure>());
    }

    /// Writes the payload to so many bytes behind the first slot.
    fn write(&mut self, at: u64, immediate: Option<u32>, bytes: usize) {
        let source = Source::Region(self.payload.slice(0..bytes).unwrap());
        let to = RemoteAddress { addr: self.to.addr.wrapping_add(at), key: self.to.key };
        let operation = Operation::Write { source, to, immediate };
        post((&mut self.output, &mut self.outputs), operation);
    }

    fn message(&mut self, bytes: usize) {
        let source = Source::Region(self.payload.slice(0..bytes).unwrap());
        let operation = Operation::Send { source, immediate: None };
        post((&mut self.output, &mut self.outputs), operation);
    }
}

/// Posts it, unless the client has gone.
fn post((output, outputs): (&mut QueuePair, &mut CompletionQueue), operation: Operation<'_>) {
    let request = WorkRequest { id: 0, operation, flags: Flags::SIGNALED | Flags::SOLICITED };
    while let Err(rdmalib::Error::QueueFull { .. }) = output.post(&request) {
        if outputs.poll_one().is_some_and(|done| done.status != Status::Success) {
            return;
        }
    }
}

fn input(conduct: Conduct) -> [u8; 8] {
    let mut input = [7; 8];
    input[0] = conduct as u8;
    input
}

/// A run that is answered as it should be.
fn answers(graph: &mut CompiledGraph) {
    let honest = input(Conduct::Answers);
    assert_eq!(graph.run(&honest).unwrap(), [honest.to_vec()]);
}

/// A run that is answered as it should be, once there is a lane for it: one that was cut starts again.
fn submit_when_free(graph: &mut CompiledGraph) -> Run {
    let start = Instant::now();
    loop {
        match graph.submit(&input(Conduct::Answers)) {
            Err(Error::AllSlotsBusy) if start.elapsed() < LONG => {
                thread::sleep(Duration::from_millis(1))
            }
            submitted => return submitted.unwrap(),
        }
    }
}

#[test]
fn whatever_a_worker_writes_fails_its_lane_with_its_name_and_nobody_else_notices() {
    let node = Node::start();
    let mut other = node.compile(LONG);
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        // Another client of the same node is served all the time.
        let served = scope.spawn(|| {
            let mut runs = 0;
            while !stop.load(Ordering::Relaxed) {
                answers(&mut other);
                runs += 1;
            }
            runs
        });
        let _stops = StopsWhenDropped(&stop);
        for (conduct, words) in Conduct::HOSTILE {
            // The others end long before their limit, which would be another error.
            let limit = if conduct == Conduct::NeverAnswers { LIMIT } else { LONG };
            let mut graph = node.compile(limit);
            answers(&mut graph);
            let bad = graph.submit(&input(conduct)).unwrap();
            let good = graph.submit(&input(Conduct::Answers)).unwrap();
            let good = graph.wait(good);
            assert_eq!(good.unwrap(), [input(Conduct::Answers)], "{conduct:?}: the other lane");
            match graph.wait(bad) {
                // It was there before what is wrong came.
                Ok(outputs) => {
                    assert!(matches!(conduct, Conduct::AnswersTwice | Conduct::NamesAFreeSlot));
                    assert_eq!(outputs, [input(conduct)]);
                }
                Err(Error::TimeLimit { after }) => {
                    assert_eq!((conduct, after), (Conduct::NeverAnswers, LIMIT));
                }
                Err(Error::GraphFailed { function, worker, node, source }) => {
                    assert_eq!((&*function, worker, &*node), (FUNCTION, 0, "hostile"));
                    // Of one that has left, its manager may tell before its connection does.
                    let left = conduct == Conduct::Leaves;
                    let reason = source.to_string();
                    let told = reason.contains(words) || (left && reason.contains("exit status 0"));
                    assert!(told, "{conduct:?}: {reason}");
                }
                Err(error) => panic!("{conduct:?}: {error:?}"),
            }
            // Both lanes serve again. What came behind a good answer may be noticed with the next run.
            let mut late = matches!(conduct, Conduct::AnswersTwice | Conduct::NamesAFreeSlot);
            loop {
                let runs = [(); 2].map(|()| submit_when_free(&mut graph));
                let outcomes = runs.map(|run| graph.wait(run));
                let failed = outcomes.iter().filter(|outcome| outcome.is_err()).count();
                for outputs in outcomes.iter().flatten() {
                    assert_eq!(*outputs, [input(Conduct::Answers)], "{conduct:?}");
                }
                if failed == 0 {
                    break;
                }
                assert!(std::mem::take(&mut late) && failed == 1, "{conduct:?}: {outcomes:?}");
            }
            graph.release().unwrap();
        }
        stop.store(true, Ordering::Relaxed);
        assert!(served.join().unwrap() > 0);
    });
}

/// What a worker writes into its own slots is what it returns, whatever it writes besides.
#[test]
fn a_worker_that_writes_over_its_slots_changes_what_it_returns_and_nothing_else() {
    let node = Node::start();
    let mut graph = node.compile(LONG);
    for _ in 0..4 {
        let bad = graph.submit(&input(Conduct::ScribblesAndAnswers)).unwrap();
        let good = graph.submit(&input(Conduct::Answers)).unwrap();
        assert_eq!(graph.wait(good).unwrap(), [input(Conduct::Answers)]);
        assert_eq!(graph.wait(bad).unwrap(), [[0xee; 8]]);
    }
    graph.release().unwrap();
}

struct StopsWhenDropped<'a>(&'a AtomicBool);

impl Drop for StopsWhenDropped<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
