//! An executor that calls a function on another executor, through the engine that clients use and with no client in
//! between.
//!
//! ```text
//!   this test ──call──▶ X: an executor, whose function calls ──▶ Y: an executor
//!   (as X's client         this test program again                the program `executor`, which dials X
//!    and manager)          callee half + caller half              as it would dial a client
//! ```
//! X is a process that serves calls with the executor's own parts (`executor::run`). The thread
//! that serves a call holds the caller half of X's connection to Y. X started Y and owns it: why Y
//! has ended, the engine asks X.

#![allow(clippy::unwrap_used)] // in helpers too: what fails there is the test
#![allow(unsafe_code)] // a function of a library gives pointers: see `relay`

mod common;

use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command};
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};
use std::{env, fs, io, slice, thread};

use common::{DEADLINE, Manager, Session, Setup, compile, device, instructions, spawn, spawn_as};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rdmalib::{Access, ConnectRequest, Device, Domain, RemoteAddress};
use rfaas_call::Spin;
use rfaas_call::caller::{
    Accepted, Call, CallError, CallLimits, Called, Caller, Calls, Driver, End, Failure,
    InputBuffer, OutputBuffer, Owner, SlotNeeds, Unconnected, Workers, completion_queue,
};
use rfaas_protocol::assignment::Instructions;
use rfaas_protocol::channel::{Channel, Incoming};
use rfaas_protocol::session::{ExecutorHello, FromExecutor, WorkerHello};
use rfaas_protocol::{Empty, Hello, Role, parse_prefix};

/// Largest input and output of either executor.
const MOST_BYTES: u32 = 1 << 20;
/// Longest time until a call on an executor that was killed has failed: the engine waits a second for the cause, and
/// here it is known at once.
const BOUND: Duration = Duration::from_secs(10);
/// What X puts in front of an error.
const FAILED: &str = "failed: ";

fn setup() -> Setup {
    Setup { input_bytes: MOST_BYTES, output_bytes: MOST_BYTES, ..Setup::default() }
}

// ---- the test, which is X's client and manager ----

/// The driver's end: X, and where X has written who Y is.
struct Pair {
    x: Session,
    files: tempfile::TempDir,
}

impl Pair {
    fn start() -> Pair {
        let files = tempfile::tempdir().unwrap();
        let path = |name: &str| files.path().join(name);
        fs::write(path("y.so"), common::faulty()).unwrap();
        let manager_of_y = manage_y(device());
        let code = compile("tests/functions/relay.c", &[]);
        let mut x = Session::spawn_by(&setup(), &code, |instructions| {
            let mut command = Command::new(env::current_exe().unwrap());
            command.args(["process_x", "--exact", "--ignored", "--nocapture"]);
            command.env("RELAY_ADDRESS", path("address")).env("RELAY_FILES", files.path());
            spawn_as(command.env("RELAY_MANAGER", manager_of_y.to_string()), instructions)
        });
        x.connect(&setup(), &code);
        x.functions = x.listed().expect("the library is loaded");
        Pair { x, files }
    }

    fn kill_y(&self) {
        let pid = fs::read_to_string(self.files.path().join("pid")).unwrap();
        kill(Pid::from_raw(pid.parse().unwrap()), Signal::SIGKILL).unwrap();
    }

    /// Calls a function of X.
    fn call(&mut self, function: &str, input: &[u8]) -> Vec<u8> {
        let function = self.x.function(function);
        self.x.workers[0].call(function, input)
    }
}

/// Takes the connections of Y to its manager, as long as this process lives.
fn manage_y(device: Device) -> std::net::SocketAddr {
    let mut manager = Manager::new(&device);
    let address = manager.listener.local_addr();
    thread::spawn(move || {
        loop {
            match manager.listener.try_next().unwrap() {
                Some(request) => manager.accept(&device, request),
                None => thread::sleep(Duration::from_millis(1)),
            }
        }
    });
    address
}

/// The error that X's engine had.
#[track_caller]
fn error_of(answer: &[u8]) -> &str {
    let text = std::str::from_utf8(answer).unwrap();
    text.strip_prefix(FAILED).unwrap_or_else(|| panic!("no error: {text}"))
}

#[test]
fn an_executor_calls_a_function_on_another_executor() {
    let mut pair = Pair::start();
    for bytes in [64, MOST_BYTES as usize] {
        let input: Vec<u8> = (0..bytes).map(|n| n as u8).collect();
        for _ in 0..3 {
            assert_eq!(pair.call("relay_echo", &input), input);
        }
    }
}

#[test]
fn a_call_on_an_executor_that_was_killed_is_a_typed_error_in_bounded_time() {
    let mut pair = Pair::start();
    assert_eq!(pair.call("relay_echo", &[7; 64]), [7; 64]);
    pair.kill_y();
    for _ in 0..2 {
        let start = Instant::now();
        let answer = pair.call("relay_echo", &[7; 64]);
        assert_eq!(error_of(&answer), "the other executor was killed by signal 9");
        assert!(start.elapsed() < BOUND, "{:?}", start.elapsed());
    }
}

#[test]
fn a_call_in_flight_fails_when_its_executor_is_killed() {
    let mut pair = Pair::start();
    let function = pair.x.function("relay_hang");
    pair.x.workers[0].submit(0, function, &[1; 64]);
    // Until Y is in its function, and not on the way there.
    thread::sleep(Duration::from_millis(200));
    let start = Instant::now();
    pair.kill_y();
    let reply = pair.x.workers[0].reply().expect("X answers");
    assert_eq!(error_of(&reply.output), "the other executor was killed by signal 9");
    assert!(start.elapsed() < BOUND, "{:?}", start.elapsed());
}

// ---- process X ----

/// X's connection to Y.
static Y: OnceLock<Mutex<CallerOfY>> = OnceLock::new();

/// Y as its owner has it: it knows how its child has ended.
struct OwnedProcess(Mutex<Child>);

impl Owner for OwnedProcess {
    /// The signal that has ended it, if it was one.
    type Cause = Option<i32>;

    fn noted(&self) -> Option<End<Self::Cause>> {
        None // nobody else waits for the child
    }

    fn ask(&self) -> Option<Self::Cause> {
        let ended = self.0.lock().unwrap().try_wait().ok().flatten();
        ended.map(|status| status.signal())
    }
}

/// The caller half of X's connection to Y, and what a call needs.
struct CallerOfY {
    caller: Caller<OwnedProcess>,
    input: InputBuffer,
    output: OutputBuffer,
    /// Numbers of `echo` and `sleep_forever`.
    functions: [u16; 2],
    _control: Channel,
}

#[test]
#[ignore = "it is process X of the other tests, which start it"]
fn process_x() {
    let Ok(files) = env::var("RELAY_FILES") else { return }; // all ignored tests were asked for
    let files = std::path::Path::new(&files);
    let y = CallerOfY::start(&files.join("y.so"), &files.join("pid"));
    assert!(Y.set(Mutex::new(y)).is_ok());
    let address = relay as extern "C" fn(u32, *const u8, u32, *mut u8) -> u32 as usize;
    fs::write(files.join("address"), format!("{address:x}")).unwrap();
    // From here on it is an executor.
    let instructions: Instructions = serde_json::from_reader(io::stdin()).unwrap();
    let assignment = instructions.assignment.expect("there is a lease");
    let work = executor::Work::Assigned(assignment, executor::GivenFile::Absent);
    let ended = executor::run(instructions.standby, work, None).expect("an executor");
    executor::leave_at_once(ended.status)
}

impl CallerOfY {
    /// Starts Y with the library at `library`, and is the client that it dials.
    fn start(library: &std::path::Path, pid: &std::path::Path) -> CallerOfY {
        let (device, setup, code) = (device(), setup(), fs::read(library).unwrap());
        let mut listener = device.listen(0).unwrap();
        let manager = env::var("RELAY_MANAGER").unwrap().parse().unwrap();
        let instructions = instructions(&setup, manager, listener.local_addr(), &code);
        let child = spawn(&serde_json::to_string(&instructions).unwrap(), &[]);
        fs::write(pid, child.id().to_string()).unwrap();

        let domain = device.domain().unwrap();
        let needs = SlotNeeds { slots: setup.slots, input_bytes: setup.input_bytes as usize };
        let completions = completion_queue(&device, 1, needs.slots).unwrap();
        let (mut control, mut worker) = (None, None);
        while control.is_none() || worker.is_none() {
            let request = listener.next(DEADLINE).unwrap().expect("Y dials");
            let (role, body) = Hello::parse(request.private_data()).unwrap();
            match role {
                Role::Executor => {
                    let hello = parse_prefix(body).unwrap();
                    control = Some(accept_control(&device, request, &hello, &code));
                }
                Role::Worker => {
                    let hello: WorkerHello = parse_prefix(body).unwrap();
                    needs.check(&hello).unwrap();
                    let waiting = Unconnected::new(0, needs, &device, &domain, &completions);
                    worker = waiting.unwrap().accept(request, &hello, needs);
                }
                other => panic!("{other:?}"),
            }
        }
        let (mut control, Accepted { connection, receives }) = (control.unwrap(), worker.unwrap());
        let names = function_names(&mut control);
        let number = |name| names.iter().position(|n| n == name).unwrap() as u16;
        let limits = CallLimits {
            spin: Spin::Always,
            timeout: DEADLINE,
            output_bytes: setup.output_bytes as usize,
        };
        let owner = OwnedProcess(Mutex::new(child));
        let driver = Driver::new(completions, vec![receives]);
        let workers = Workers::new(vec![connection], limits.timeout);
        let buffers = |domain: &Domain| {
            let input = InputBuffer::allocate(domain, setup.input_bytes as usize)?;
            Ok::<_, rdmalib::Error>((input, OutputBuffer::allocate(domain, limits.output_bytes)?))
        };
        let (input, output) = buffers(&domain).unwrap();
        CallerOfY {
            caller: Caller::new(Calls::new(workers, driver, limits, owner)),
            input,
            output,
            functions: [number("echo"), number("sleep_forever")],
            _control: control,
        }
    }

    /// Calls a function of Y.
    fn call(&mut self, which: usize, bytes: &[u8]) -> Result<Vec<u8>, CallError<Option<i32>>> {
        self.input.set_len(bytes.len())?;
        self.input.write(0, bytes)?;
        let (function, most) = (self.functions[which], MOST_BYTES as usize);
        let call = Call::new(function, &self.input, &self.output, most);
        let Called::Done(outcome) = self.caller.call(&call)? else {
            panic!("connections must be replaced")
        };
        let bytes = self.caller.read_outcome(outcome, &mut self.output)?;
        Ok(self.output.to_vec(..bytes)?)
    }
}

/// Accepts the connection of process Y and sends it its library.
fn accept_control(
    device: &Device,
    request: ConnectRequest,
    hello: &ExecutorHello,
    code: &[u8],
) -> Channel {
    let mut control = Channel::new(device, 64).unwrap();
    control.accept(request, &Empty {}).unwrap();
    let source = control.domain().allocate(code.len(), Access::empty()).unwrap();
    source.write(0, code).unwrap();
    let to = RemoteAddress { addr: hello.code_addr.get(), key: hello.code_key.get() };
    control.write_with_immediate(&source, code.len(), to, 0).unwrap();
    control.flush(DEADLINE).unwrap();
    control
}

/// The names of Y's functions.
fn function_names(control: &mut Channel) -> Vec<String> {
    let mut names = vec![];
    loop {
        match control.receive(DEADLINE).unwrap() {
            Incoming::Message(FromExecutor::Functions(part)) => {
                names.extend(part.get().unwrap().into_iter().map(str::to_owned));
                if names.len() == part.count.get() as usize {
                    return names;
                }
            }
            other => panic!("{other:?}"),
        }
    }
}

/// What X's library calls, on the thread that serves the call: calls Y, and answers with Y's output or with the error.
extern "C" fn relay(which: u32, input: *const u8, bytes: u32, output: *mut u8) -> u32 {
    // SAFETY: a function's input, which is valid and not written until the function returns: the test writes its slots
    // only when their replies are there.
    let input = unsafe { slice::from_raw_parts(input, bytes as usize) };
    let answer = match Y.get().unwrap().lock().unwrap().call(which as usize, input) {
        Ok(output) => output,
        Err(CallError::Failed(Failure::Ended(Some(signal)))) => {
            format!("{FAILED}the other executor was killed by signal {signal}").into_bytes()
        }
        Err(other) => format!("{FAILED}{other:?}").into_bytes(),
    };
    // SAFETY: a function's output, which has room for `MOST_BYTES` bytes, and that is the most that Y answers. It is
    // valid until the function returns, and nobody else uses it until then.
    let output = unsafe { slice::from_raw_parts_mut(output, answer.len()) };
    output.copy_from_slice(&answer);
    answer.len() as u32
}
