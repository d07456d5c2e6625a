//! Edges over the embedded device: payloads arrive, joins wait for all of them, failures are passed on, and whatever a
//! sender writes, the worker calls its function with slots and sizes that exist, or ends.

#![allow(clippy::unwrap_used)] // in helpers too: what fails there is the test

use std::net::IpAddr;
use std::time::{Duration, Instant};

use rdmalib::{
    Access, CompletionQueue, Device, DeviceSpec, Domain, Flags, Operation, Provider, QueuePair,
    QueuePairConfig, Region, RemoteAddress, Source, WorkRequest,
};
use rfaas_call::Place;
use rfaas_call::callee::{Layout, Service, SlotMemory};
use rfaas_call::edge::{
    Arrival, BatchPlan, BatchRun, Denied, Hop, HopEnd, InLink, InputFrom, JoinPlan, Link, LinkEnd,
    OutLink, SlotUse, Stage, StageInput, StageMemory, StageOutput, Turn, arrival_queue,
};
use rfaas_protocol::edge::{
    EdgeFailure, EdgeHello, EdgeImmediate, EdgeShape, EdgeSlots, EdgeStatus, FailedBecause,
    InputKind, OutputKind, Takes,
};
use rfaas_protocol::{Hello, Role, Secret, parse_prefix};
use zerocopy::IntoBytes;

const WITHIN: Duration = Duration::from_secs(60);
const SHAPE: EdgeShape = EdgeShape { slots: 2, bytes: 256 };
/// Polls, a millisecond each, in which an end that comes is known.
const PATIENCE: u32 = 60_000;
/// Number of the function in its graph.
const IN_GRAPH: u16 = 7;

/// A link of one edge, which has this number.
fn one(number: usize) -> Link {
    Link::new([(number, SHAPE)])
}

fn device() -> Device {
    let ip_address: IpAddr = "127.0.0.1".parse().unwrap();
    let name = "shm0".into();
    Device::open(&DeviceSpec { name, provider: Provider::Shm, ip_address, max_inline_data: 0 })
        .unwrap()
}

/// Counts what it is asked for; its function says that it returns `returns` bytes.
#[derive(Default)]
struct Asked {
    /// Polls in a row that have found nothing, and how many end it.
    idle: u32,
    patience: u32,
    calls: Vec<u32>,
    returns: u32,
    /// Inputs of each batch; how their runs are ended, by slot; and what the function returns.
    batches: Vec<Vec<u32>>,
    ends: [(u32, u32, i32); 2],
    fails: i32,
    /// Until when it has idled last.
    until: Option<Instant>,
}

impl Service for Asked {
    fn is_stopped(&self) -> bool {
        self.idle > self.patience
    }

    fn arrived(&mut self) {
        self.idle = 0;
    }

    fn call(&mut self, _function: u32, place: Place<'_>) -> Option<u32> {
        assert!(place.input().addr().is_multiple_of(64));
        assert!(place.output().addr().is_multiple_of(64));
        assert!(place.input_bytes() <= SHAPE.bytes);
        self.calls.push(place.input_bytes());
        Some(self.returns)
    }

    fn call_batch(
        &mut self,
        _function: u32,
        runs: &mut [BatchRun],
        turn: &mut dyn Turn,
    ) -> Option<i32> {
        assert_eq!(turn.about().function, IN_GRAPH);
        assert_eq!((turn.area().1, turn.input(0)), (0, Err(Denied::Rights)));
        for run in &mut *runs {
            assert_eq!((run.room, run.output_bytes), (SHAPE.bytes, u32::MAX));
            assert!(run.input.addr().is_multiple_of(64) && run.output.addr().is_multiple_of(64));
            (run.output_bytes, run.ended, run.code) = self.ends[run.slot as usize];
        }
        self.batches.push(runs.iter().map(|run| run.input_bytes).collect());
        Some(self.fails)
    }

    fn answered(&mut self) {}

    fn idle(&mut self, _: &mut CompletionQueue, until: Option<Instant>) -> rdmalib::Result<()> {
        self.until = until;
        self.idle += 1;
        if self.idle > 1 {
            std::thread::sleep(Duration::from_millis(1)); // that a peer is gone is not known at once
        }
        Ok(())
    }
}

/// A worker with `inputs` inputs, all of which the test writes to, and an output that it reads.
struct Scene {
    hop: Hop<Box<SlotMemory>>,
    senders: Vec<OutLink>,
    /// The test's end of the output.
    output: InLink,
    arrivals: CompletionQueue,
    /// What is sent lies here.
    payload: Region,
    asked: Asked,
}

/// A stage that waits for so many inputs and hands on to these edges.
fn stage(
    domain: &Domain,
    inputs: usize,
    outputs: &[usize],
    batch: Option<BatchPlan>,
) -> StageMemory<Box<SlotMemory>> {
    let input = |number| StageInput { from: InputFrom::Edge(number), kind: InputKind::Whole };
    let output = |edge: &usize| StageOutput {
        kind: OutputKind::Whole,
        bytes: SHAPE.bytes,
        to: vec![*edge],
        here: vec![],
    };
    let stage = Stage {
        function: (0, IN_GRAPH),
        member: (0, 1),
        join: JoinPlan::ALL,
        takes: Takes::Whole,
        batch,
        inputs: (0..inputs).map(input).collect(),
        outputs: outputs.iter().map(output).collect(),
    };
    let areas = areas(domain, &stage);
    StageMemory { stage, areas }
}

/// What it writes to.
#[allow(clippy::vec_box)] // a stage holds its areas by what points to them
fn areas(domain: &Domain, stage: &Stage) -> Vec<Box<SlotMemory>> {
    let layout = Layout::new(SHAPE.slots, 0, SHAPE.bytes, 4096).unwrap();
    (0..stage.areas()).map(|_| Box::new(SlotMemory::new(domain, layout).unwrap())).collect()
}

/// Connects `sender` to `receiver`.
fn connect(device: &Device, sender: &mut OutLink, receiver: &mut InLink) {
    let mut listener = device.listen(0).unwrap();
    let to = listener.local_addr();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let request = listener.next(WITHIN).unwrap().unwrap();
            let (role, body) = Hello::parse(request.private_data()).unwrap();
            assert_eq!(role, Role::Edge);
            assert_eq!(parse_prefix(body), Ok(EdgeHello { secret: Secret([3; 16]) }));
            receiver.accept(request).unwrap();
        });
        let dial = |queue_pair: &mut QueuePair, hello: &[u8]| queue_pair.connect(to, hello, WITHIN);
        sender.connect(Secret([3; 16]), dial, |malformed| panic!("{malformed}")).unwrap();
    });
}

impl Scene {
    fn new(inputs: usize) -> Scene {
        Scene::with(inputs, |_| {})
    }

    /// A worker with an input, whose function takes batches.
    fn of_batches(most: u16, wait: Duration) -> Scene {
        Scene::with(1, |stage| stage.batch = Some(BatchPlan { most, wait }))
    }

    /// Makes one whose stage is `changed`.
    fn with(inputs: usize, changed: impl FnOnce(&mut Stage)) -> Scene {
        let device = device();
        let (domain, of_test) = (device.domain().unwrap(), device.domain().unwrap());
        let queue = |ins, outs| arrival_queue(&device, &vec![one(0); ins], outs).unwrap();
        let (of_hop, arrivals) = (queue(inputs, 1), queue(1, inputs));
        let mut ins = Vec::new();
        let mut senders = Vec::new();
        for number in 0..inputs {
            let mut edge = InLink::new(&device, number, one(number), &of_hop).unwrap();
            let mut sender =
                OutLink::new(&device, &of_test, number, one(number), &arrivals).unwrap();
            connect(&device, &mut sender, &mut edge);
            ins.push(edge);
            senders.push(sender);
        }
        let mut out = OutLink::new(&device, &domain, 0, one(0), &of_hop).unwrap();
        let mut output = InLink::new(&device, 0, one(0), &arrivals).unwrap();
        connect(&device, &mut out, &mut output);
        let mut stage = stage(&domain, inputs, &[0], None);
        changed(&mut stage.stage);
        stage.areas = areas(&domain, &stage.stage);
        let hop = Hop::new((ins, vec![out]), vec![stage], of_hop, &domain).unwrap();
        let payload = of_test.allocate(SHAPE.bytes as usize, Access::empty()).unwrap();
        let asked = Asked { patience: 1, ..Asked::default() };
        Scene { hop, senders, output, arrivals, payload, asked }
    }

    /// Writes `bytes` bytes to input number `input`.
    fn send(&mut self, input: usize, slot: u16, run: u8, bytes: usize) {
        let payload = self.payload.slice(0..bytes).unwrap();
        self.senders[input].send_slice(0, SlotUse { slot, run }, payload).unwrap();
    }

    /// Has the worker take what is there.
    fn serve(&mut self) -> HopEnd {
        self.asked.idle = 0;
        self.hop.serve(&mut self.asked)
    }

    /// What has come over the output.
    fn outputs(&mut self) -> Vec<Arrival> {
        let mut found = Vec::new();
        while let Some(done) = self.arrivals.poll_one() {
            assert_eq!(LinkEnd::of(done.id), LinkEnd::In(0), "{done:?}");
            found.extend(self.output.read(&done).unwrap());
            self.output.repost().unwrap();
        }
        found
    }
}

#[test]
fn what_a_function_returns_is_written_to_the_next_slot_of_the_same_run() {
    let mut scene = Scene::new(1);
    for (returns, (slot, run)) in [(5, (0, 1)), (0, (1, 1)), (256, (0, 2)), (64, (0, 255))] {
        scene.asked.returns = returns;
        scene.send(0, slot, run, 100);
        assert!(matches!(scene.serve(), HopEnd::Stopped));
        let expected = Arrival { edge: 0, slot, run, status: EdgeStatus::Value, bytes: returns };
        assert_eq!(scene.outputs(), [expected]);
    }
    assert_eq!(scene.asked.calls, [100; 4]);
}

#[test]
fn a_function_with_several_inputs_is_called_when_all_are_there() {
    let mut scene = Scene::new(3);
    for input in [2, 0] {
        scene.send(input, 0, 1, 10 + input);
        assert!(matches!(scene.serve(), HopEnd::Stopped));
        assert_eq!((scene.outputs().len(), scene.asked.calls.len()), (0, 0));
    }
    scene.send(1, 0, 1, 11);
    assert!(matches!(scene.serve(), HopEnd::Stopped));
    assert_eq!((scene.outputs().len(), scene.asked.calls.as_slice()), (1, [10].as_slice()));
}

#[test]
fn a_function_that_returns_too_much_fails_the_run_and_those_behind_it_are_not_called() {
    let mut scene = Scene::new(1);
    scene.asked.returns = 257;
    scene.send(0, 1, 9, 1);
    assert!(matches!(scene.serve(), HopEnd::Stopped));
    let [arrival] = scene.outputs()[..] else { panic!("one arrival") };
    assert_eq!((arrival.slot, arrival.run, arrival.status), (1, 9, EdgeStatus::Failed));
    let failure = scene.output.failure(0, 1).unwrap();
    let expected = EdgeFailure {
        because: FailedBecause::OutputTooLarge.to_wire(),
        function: IN_GRAPH.into(),
        member: 0.into(),
        unused: 0.into(),
        returned: 257.into(),
        most: 256.into(),
    };
    assert_eq!(failure, expected);
    scene.asked.returns = 1;
    scene.send(0, 1, 10, 1);
    assert!(matches!(scene.serve(), HopEnd::Stopped));
    assert_eq!(scene.outputs()[0].status, EdgeStatus::Value);
}

/// Its function calls another, and waits long for the answer.
struct Calls {
    stops_at: Instant,
    told: Vec<Denied>,
}

impl Service for Calls {
    fn is_stopped(&self) -> bool {
        self.stop()()
    }

    fn stop(&self) -> impl Fn() -> bool + use<> {
        let at = self.stops_at;
        move || Instant::now() >= at
    }

    fn arrived(&mut self) {}

    fn call(&mut self, _: u32, _: Place<'_>) -> Option<u32> {
        panic!("it is called in a graph")
    }

    fn call_in(&mut self, _: u32, _: Place<'_>, turn: &mut dyn Turn) -> Option<u32> {
        let limit = u64::try_from(WITHIN.as_nanos()).unwrap();
        self.told.push(turn.call(0, 8, limit).unwrap_err());
        Some(0)
    }

    fn answered(&mut self) {}

    fn idle(&mut self, _: &mut CompletionQueue, _: Option<Instant>) -> rdmalib::Result<()> {
        Ok(())
    }
}

#[test]
fn a_function_that_waits_for_an_answer_hears_that_its_worker_is_to_end_or_its_peer_is_gone() {
    let scene = || {
        let mut scene = Scene::with(2, |stage| {
            stage.inputs[1].kind = InputKind::Answer;
            stage.outputs[0].kind = OutputKind::Call;
        });
        scene.send(0, 0, 1, 8);
        scene
    };
    let mut stopped = scene();
    let mut calls = Calls { stops_at: Instant::now() + Duration::from_millis(50), told: vec![] };
    let end = stopped.hop.serve(&mut calls);
    assert!(matches!(end, HopEnd::Stopped), "{end:?}");
    assert_eq!(calls.told, [Denied::Lost], "in time: it does not wait for its limit");
    assert_eq!(stopped.outputs().len(), 1, "it was asked");

    let mut left = scene();
    let mut calls = Calls { stops_at: Instant::now() + 2 * WITHIN, told: vec![] };
    let answers = left.senders.pop().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(50));
            drop(answers);
        });
        let end = left.hop.serve(&mut calls);
        assert!(matches!(end, HopEnd::SenderGone(1)), "{end:?}");
    });
    assert_eq!(calls.told, [Denied::Lost]);
}

#[test]
fn runs_that_are_complete_are_taken_together_as_many_as_a_batch_has() {
    for (most, batches) in [(1, vec![vec![10], vec![20]]), (2, vec![vec![10, 20]])] {
        let mut scene = Scene::of_batches(most, Duration::ZERO);
        scene.asked.ends = [(5, 0, 0), (6, 0, 0)];
        scene.send(0, 1, 9, 10);
        scene.send(0, 0, 4, 20);
        assert!(matches!(scene.serve(), HopEnd::Stopped));
        assert_eq!(scene.asked.batches, batches);
        let value =
            |slot, run, bytes| Arrival { edge: 0, slot, run, status: EdgeStatus::Value, bytes };
        assert_eq!(scene.outputs(), [value(1, 9, 6), value(0, 4, 5)]);
    }
}

#[test]
fn a_batch_that_is_not_full_waits_for_others_and_not_longer_than_it_may() {
    let long = Duration::from_secs(3600);
    let mut scene = Scene::of_batches(2, long);
    scene.asked.ends = [(5, 0, 0); 2];
    scene.send(0, 0, 1, 10);
    let before = Instant::now();
    assert!(matches!(scene.serve(), HopEnd::Stopped));
    assert_eq!((scene.outputs().len(), scene.asked.batches.len()), (0, 0));
    assert!(scene.asked.until.is_some_and(|at| at >= before + long));
    scene.send(0, 1, 2, 20);
    assert!(matches!(scene.serve(), HopEnd::Stopped));
    assert_eq!((scene.outputs().len(), scene.asked.batches.remove(0)), (2, vec![10, 20]));
    assert_eq!(scene.asked.until, None, "nothing is complete");

    const SHORT: Duration = Duration::from_millis(20);
    let mut scene = Scene::of_batches(2, SHORT);
    scene.asked.ends = [(5, 0, 0); 2];
    scene.asked.patience = 1000;
    scene.send(0, 0, 1, 10);
    let begun = Instant::now();
    assert!(matches!(scene.serve(), HopEnd::Stopped));
    assert!(begun.elapsed() >= SHORT);
    assert_eq!((scene.outputs().len(), scene.asked.batches.remove(0)), (1, vec![10]));
}

#[test]
fn one_run_of_a_batch_fails_or_all_of_them() {
    let mut scene = Scene::of_batches(2, Duration::ZERO);
    let because = |scene: &mut Scene| {
        scene.send(0, 0, 1, 1);
        scene.send(0, 1, 1, 1);
        assert!(matches!(scene.serve(), HopEnd::Stopped));
        let outputs = scene.outputs();
        let of = |arrival: &Arrival| match arrival.status {
            EdgeStatus::Failed => {
                let failure = scene.output.failure(0, arrival.slot).unwrap();
                let because = FailedBecause::from_wire(failure.because).unwrap();
                assert_eq!((failure.function.get(), failure.member.get()), (IN_GRAPH, 0));
                Err((because, failure.returned.get()))
            }
            _ => Ok(arrival.bytes),
        };
        outputs.iter().map(of).collect::<Vec<_>>()
    };
    for (end, expected) in [
        ((0, BatchRun::FAILED, -9), Err((FailedBecause::Function, -9_i32 as u32))),
        ((0, 77, 3), Err((FailedBecause::Function, 3))),
        ((8, BatchRun::NO_VALUE, 3), Err((FailedBecause::NoValue, 0))),
        ((257, 0, 0), Err((FailedBecause::OutputTooLarge, 257))),
        ((u32::MAX, 0, 0), Err((FailedBecause::OutputTooLarge, u32::MAX))),
    ] {
        scene.asked.ends = [(7, 0, 0), end];
        assert_eq!(because(&mut scene), [Ok(7), expected]);
    }
    scene.asked.ends = [(7, 0, 0), (8, 0, 0)];
    scene.asked.fails = 5;
    assert_eq!(because(&mut scene), [Err((FailedBecause::Function, 5)); 2]);
    scene.asked.fails = 0;
    assert_eq!(because(&mut scene), [Ok(7), Ok(8)]);
}

#[test]
fn a_sender_or_receiver_that_is_gone_ends_the_worker() {
    let mut scene = Scene::new(2);
    scene.asked.patience = PATIENCE;
    scene.senders.remove(1);
    assert!(matches!(scene.serve(), HopEnd::SenderGone(1)));
    let Scene { mut hop, output, mut asked, .. } = Scene::new(1);
    asked.patience = PATIENCE;
    drop(output);
    // The sender of the test is gone too.
    assert!(matches!(hop.serve(&mut asked), HopEnd::SenderGone(0) | HopEnd::ReceiverGone(0)));
}

/// A sender that follows no protocol.
struct Hostile {
    queue_pair: QueuePair,
    to: RemoteAddress,
    payload: Region,
    _completions: CompletionQueue,
}

impl Hostile {
    fn new(device: &Device, domain: &Domain, receiver: &mut InLink) -> Hostile {
        let completions = device.completion_queue(64).unwrap();
        let config = QueuePairConfig { receive_depth: 1, ..QueuePairConfig::default() };
        let config = QueuePairConfig { send_depth: 32, ..config };
        let mut queue_pair = QueuePair::new(domain, &completions, &completions, &config).unwrap();
        let mut listener = device.listen(0).unwrap();
        let to = listener.local_addr();
        let answer = std::thread::scope(|scope| {
            scope.spawn(|| receiver.accept(listener.next(WITHIN).unwrap().unwrap()).unwrap());
            queue_pair.connect(to, &[], WITHIN).unwrap()
        });
        let slots: EdgeSlots = parse_prefix(answer.as_slice()).unwrap();
        let to = RemoteAddress { addr: slots.addr.get(), key: slots.key.get() };
        let payload = domain.allocate(1024, Access::empty()).unwrap();
        Hostile { queue_pair, to, payload, _completions: completions }
    }

    fn write(&mut self, immediate: Option<u32>, bytes: usize) {
        let source = Source::Region(self.payload.slice(0..bytes).unwrap());
        let operation = Operation::Write { source, to: self.to, immediate };
        let flags = Flags::SOLICITED | Flags::SIGNALED;
        self.queue_pair.post(&WorkRequest { id: 0, operation, flags }).unwrap();
    }

    fn message(&mut self, bytes: &[u8]) {
        self.payload.write(0, bytes).unwrap();
        let source = Source::Region(self.payload.slice(0..bytes.len()).unwrap());
        let operation = Operation::Send { source, immediate: None };
        let flags = Flags::SOLICITED | Flags::SIGNALED;
        self.queue_pair.post(&WorkRequest { id: 0, operation, flags }).unwrap();
    }
}

/// A worker with two inputs that two hostile senders write to; it has no output.
fn under_attack(patience: u32, attack: impl FnOnce(&mut Hostile, &mut Hostile)) -> (HopEnd, usize) {
    let device = device();
    let (domain, of_test) = (device.domain().unwrap(), device.domain().unwrap());
    let arrivals = arrival_queue(&device, &[one(0), one(1)], 0).unwrap();
    let mut ins: Vec<_> = (0..2)
        .map(|number| InLink::new(&device, number, one(number), &arrivals).unwrap())
        .collect();
    let mut first = Hostile::new(&device, &of_test, &mut ins[0]);
    let mut second = Hostile::new(&device, &of_test, &mut ins[1]);
    let stages = vec![stage(&domain, 2, &[], None)];
    let mut hop = Hop::new((ins, vec![]), stages, arrivals, &domain).unwrap();
    attack(&mut first, &mut second);
    let mut asked = Asked { patience, ..Asked::default() };
    let end = hop.serve(&mut asked);
    (end, asked.calls.len())
}

#[test]
fn whatever_a_sender_writes_ends_its_worker_only_and_calls_nothing() {
    let value =
        |slot, run| EdgeImmediate { edge: 0, slot, status: EdgeStatus::Value, run }.to_wire();
    let breach = |attack: &dyn Fn(&mut Hostile, &mut Hostile), words: &str| {
        let (end, calls) = under_attack(PATIENCE, |a, b| attack(a, b));
        assert!(end.to_string().contains(words), "{end}");
        assert_eq!(calls, 0);
    };
    breach(&|a, _| a.write(Some(value(2, 1)), 8), "a slot that it was not given");
    breach(&|a, _| a.write(Some(value(1023, 1)), 8), "a slot that it was not given");
    breach(&|a, _| a.write(Some(1 << 10), 8), "an edge that it was not given");
    breach(&|a, _| a.write(Some(0x001f_fc00), 8), "an edge that it was not given");
    breach(&|a, _| a.write(Some(0x0060_0000), 8), "a status that does not exist");
    breach(&|a, _| a.write(Some(0x00e0_0000), 8), "a status that does not exist");
    breach(&|a, _| a.write(Some(value(0, 1)), 257), "more than a slot holds");
    breach(&|a, _| a.write(Some(1 << 21), 17), "more than a slot holds");
    breach(&|_, b| b.message(b"hello"), "is gone");
    breach(
        &|a, b| {
            a.write(Some(value(0, 1)), 8);
            b.write(Some(value(0, 2)), 8);
        },
        "a slot that is in use",
    );
    // Beyond its slots its key reaches nothing.
    breach(
        &|a, _| {
            a.to = a.to.offset(SHAPE.all_bytes() - 8);
            a.write(Some(value(0, 1)), 16);
        },
        "is gone",
    );
    breach(
        &|a, _| {
            a.to.key ^= 1;
            a.write(Some(value(0, 1)), 16);
        },
        "is gone",
    );
}

#[test]
fn a_failure_of_any_bytes_is_read_and_passed_on() {
    let failed = EdgeImmediate { edge: 0, slot: 0, status: EdgeStatus::Failed, run: 1 }.to_wire();
    let value = EdgeImmediate { edge: 0, slot: 0, status: EdgeStatus::Value, run: 1 }.to_wire();
    let (end, calls) = under_attack(1, |a, b| {
        a.payload.write(0, [0xff; 16].as_bytes()).unwrap();
        a.write(Some(failed), 16);
        b.write(Some(value), 8);
    });
    assert!(matches!(end, HopEnd::Stopped), "{end}");
    assert_eq!(calls, 0);
}

#[test]
fn a_run_that_has_failed_before_is_in_no_batch_and_one_that_comes_twice_is_in_one() {
    let device = device();
    let (domain, of_test) = (device.domain().unwrap(), device.domain().unwrap());
    let arrivals = arrival_queue(&device, &[one(0)], 0).unwrap();
    let mut link = InLink::new(&device, 0, one(0), &arrivals).unwrap();
    let mut sender = Hostile::new(&device, &of_test, &mut link);
    let plan = BatchPlan { most: 2, wait: Duration::ZERO };
    let stages = vec![stage(&domain, 1, &[], Some(plan))];
    let mut hop = Hop::new((vec![link], vec![]), stages, arrivals, &domain).unwrap();
    let mut asked = Asked { patience: 1, ..Asked::default() };
    let immediate =
        |slot, status, run| Some(EdgeImmediate { edge: 0, slot, status, run }.to_wire());
    for (slot, status, run, bytes) in [
        (1, EdgeStatus::Value, 1, 8),
        (0, EdgeStatus::Failed, 1, 16),
        (0, EdgeStatus::Value, 2, 10), // its slot is free again
        (1, EdgeStatus::Value, 1, 12),
    ] {
        sender.write(immediate(slot, status, run), bytes);
    }
    assert!(matches!(hop.serve(&mut asked), HopEnd::Stopped));
    // What came for the second time counts for nothing.
    assert_eq!(asked.batches, [[8, 10]]);
}

#[test]
fn a_payload_that_comes_twice_in_a_run_counts_once() {
    let value = EdgeImmediate { edge: 0, slot: 0, status: EdgeStatus::Value, run: 1 }.to_wire();
    let (end, calls) = under_attack(1, |a, b| {
        a.write(Some(value), 8);
        a.write(Some(value), 16);
        b.write(Some(value), 8);
    });
    assert!(matches!(end, HopEnd::Stopped), "{end}");
    assert_eq!(calls, 1);
}

#[test]
fn edges_that_share_a_link_have_their_own_slots_and_each_is_its_own_input() {
    let device = device();
    let (domain, of_test) = (device.domain().unwrap(), device.domain().unwrap());
    // The first on the link is input 1, of another size.
    let large = EdgeShape { bytes: 200, ..SHAPE };
    let edges = || Link::new([(1, large), (0, SHAPE)]);
    let of_hop = arrival_queue(&device, &[edges()], 1).unwrap();
    let mut arrivals = arrival_queue(&device, &[Link::new([(0, SHAPE), (1, SHAPE)])], 1).unwrap();
    let mut link = InLink::new(&device, 0, edges(), &of_hop).unwrap();
    let mut sender = OutLink::new(&device, &of_test, 0, edges(), &arrivals).unwrap();
    connect(&device, &mut sender, &mut link);
    // Both outputs of the worker go over one link too.
    let both = || Link::new([(0, SHAPE), (1, SHAPE)]);
    let mut out = OutLink::new(&device, &domain, 0, both(), &of_hop).unwrap();
    let mut outputs = InLink::new(&device, 0, both(), &arrivals).unwrap();
    connect(&device, &mut out, &mut outputs);
    let stages = vec![stage(&domain, 2, &[0, 1], None)];
    let mut hop = Hop::new((vec![link], vec![out]), stages, of_hop, &domain).unwrap();
    let payload = of_test.allocate(256, Access::empty()).unwrap();
    let mut asked = Asked { patience: 1, returns: 3, ..Asked::default() };
    for (run, slot) in [(1, 0), (1, 1), (2, 1)] {
        for (edge, bytes) in [(0, 100), (1, 50)] {
            let to = SlotUse { slot, run };
            sender.send_slice(edge, to, payload.slice(0..bytes).unwrap()).unwrap();
        }
        asked.idle = 0;
        assert!(matches!(hop.serve(&mut asked), HopEnd::Stopped));
        for edge in [0, 1] {
            let arrival = outputs.read(&arrivals.poll_one().unwrap()).unwrap().unwrap();
            let status = EdgeStatus::Value;
            assert_eq!(arrival, Arrival { edge, slot, run, status, bytes: 3 });
            outputs.repost().unwrap();
        }
    }
    assert_eq!(asked.calls, [50; 3], "input 0 is the second of the link");
    // More than the smaller one holds.
    let to = SlotUse { slot: 0, run: 3 };
    sender.send_slice(0, to, payload.slice(0..201).unwrap()).unwrap();
    asked.idle = 0;
    let end = hop.serve(&mut asked);
    assert!(end.to_string().contains("more than a slot holds"), "{end}");
}
