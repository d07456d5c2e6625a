//! How an executor process begins and ends: loading, crashing, being told to stop, losing its peers; and
//! what it has counted by then.

mod common;

use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::{DEADLINE, Session, Setup, compile, eventually, faulty, spawn, wait_for};
use rdmalib::{QueuePair, QueuePairConfig};
use rfaas_protocol::assignment::{Instructions, MANAGER_LOST};
use rfaas_protocol::channel::Incoming;
use rfaas_protocol::edge::{EdgeHello, InputKind, Join, Takes};
use rfaas_protocol::session::{EdgeIn, FromExecutor, Part, ToExecutor};
use rfaas_protocol::{Empty, Hello, Role, Secret, Text};
use zerocopy::IntoBytes;

/// Milliseconds in nanoseconds.
const MS: u64 = 1_000_000;

fn serving() -> Session {
    Session::start(&Setup::default(), &faulty())
}

/// Starts `function` and waits until the executor has taken the request.
fn start_call(session: &mut Session, function: &str, input: &[u8]) {
    let function = session.function(function);
    session.workers[0].submit(0, function, input);
}

#[test]
fn sigterm_and_sigint_end_it_with_status_0() {
    for signal in ["TERM", "INT"] {
        let mut session = serving();
        let echo = session.function("echo");
        session.workers[0].call(echo, b"abc");
        session.signal(signal);
        assert_eq!(session.exit_status().code(), Some(0));
        assert_eq!(session.manager.invocations(), 1);
    }
}

#[test]
fn a_worker_of_a_graph_waits_for_who_dials_it_as_long_as_its_client_wants_to() {
    const LONGER_THAN_A_DIAL: Duration = Duration::from_millis(5500);
    const SECRET: Secret = Secret([9; 16]);
    let (setup, code) = (Setup { graph: true, ..Setup::default() }, faulty());
    let mut session = Session::spawn(&setup, &code);
    session.connect_control(&setup, &code, Duration::ZERO);
    let control = session.control.as_mut().unwrap();
    let Incoming::Message(FromExecutor::Listening(listening)) = control.receive(DEADLINE).unwrap()
    else {
        panic!("it does not say where it is dialled")
    };
    let part = Part {
        worker: 0.into(),
        function: 0.into(),
        member: 0.into(),
        members: 1.into(),
        join: Join::All.to_wire(),
        wanted: 0.into(),
        takes: Takes::Whole.to_wire(),
        batch: 0.into(),
        within_ms: 0.into(),
        batch_wait_us: 0.into(),
        name: Text::new("echo").unwrap(),
    };
    let (kind, on_link) = (InputKind::Whole.to_wire(), 0.into());
    let input = EdgeIn { secret: SECRET, bytes: 64.into(), kind, on_link };
    for told in [ToExecutor::Part(part), ToExecutor::EdgeIn(input), ToExecutor::Complete(Empty {})]
    {
        control.send(&told).unwrap();
    }
    session.connect_control(&setup, &code, LONGER_THAN_A_DIAL);
    assert_eq!(session.workers.len(), 0, "it has dialled the client before its edges are there");

    let domain = session.device.domain().unwrap();
    let queue = session.device.completion_queue(4).unwrap();
    let config = QueuePairConfig { send_depth: 1, receive_depth: 1, ..QueuePairConfig::default() };
    let mut sender = QueuePair::new(&domain, &queue, &queue, &config).unwrap();
    let hello = Hello::with(Role::Edge, &EdgeHello { secret: SECRET });
    sender.connect(listening.address.into(), &hello, DEADLINE).unwrap();
    session.connect(&setup, &code);
    assert!(session.listed().unwrap().contains(&"echo".to_owned()));
}

#[test]
fn it_ends_when_its_client_is_gone() {
    let mut session = serving();
    session.control = None;
    assert_eq!(session.exit_status().code(), Some(0));
}

#[test]
fn it_ends_when_its_manager_ends_an_accounting_connection() {
    let mut session = Session::start(&Setup { workers: 2, ..Setup::default() }, &faulty());
    session.manager.connections.pop();
    assert_eq!(session.exit_status().code(), Some(0));
}

#[test]
fn it_gives_signs_of_life_whatever_its_functions_do() {
    let setup = Setup { heartbeat_ms: 20, ..Setup::default() };
    let mut session = Session::start(&setup, &faulty());
    start_call(&mut session, "spin_forever", &[]);
    let before = session.manager.executors_beats();
    eventually("ten beats", || session.manager.executors_beats() >= before + 10);
}

/// A limit of silence that a busy machine does not reach between two signs of life.
const SILENCE_MS: u32 = 3000;
const SILENCE: Duration = Duration::from_millis(SILENCE_MS as u64);

/// The manager gives signs of life for half as long again as the limit of silence; the executor serves. Returns a
/// time before the last sign.
fn outlives_beats(session: &mut Session) -> Instant {
    let start = Instant::now();
    let mut last = start;
    while start.elapsed() < SILENCE * 3 / 2 {
        last = Instant::now();
        session.manager.beat();
        std::thread::sleep(Duration::from_millis(20));
    }
    let echo = session.function("echo");
    assert_eq!(session.workers[0].call(echo, b"abc"), b"abc");
    last
}

#[test]
fn it_ends_when_its_manager_is_silent_and_not_before() {
    let setup = Setup { heartbeat_ms: 20, silence_ms: SILENCE_MS, ..Setup::default() };
    let mut session = Session::start(&setup, &faulty());
    let silent = outlives_beats(&mut session);
    assert_eq!(session.exit_status().code(), Some(MANAGER_LOST));
    assert!(silent.elapsed() >= SILENCE, "{:?}", silent.elapsed());
}

#[test]
fn one_that_was_stopped_itself_does_not_take_that_time_for_its_managers_silence() {
    let setup = Setup { heartbeat_ms: 20, silence_ms: SILENCE_MS, ..Setup::default() };
    let mut session = Session::start(&setup, &faulty());
    session.signal("STOP");
    std::thread::sleep(SILENCE * 3 / 2);
    session.signal("CONT");
    outlives_beats(&mut session);
}

#[test]
fn it_gives_signs_of_life_before_its_client_answers() {
    let setup = Setup { heartbeat_ms: 20, ..Setup::default() };
    let mut session = Session::spawn(&setup, &faulty());
    eventually("ten beats", || {
        if let Some(request) = session.manager.listener.try_next().unwrap() {
            session.manager.accept(&session.device, request);
        }
        session.manager.executors_beats() >= 10
    });
}

#[test]
fn it_ends_also_while_a_function_hangs_and_counts_the_time_until_then() {
    for function in ["sleep_forever", "spin_forever"] {
        let mut session = serving();
        let echo = session.function("echo");
        session.workers[0].call(echo, b"abc");
        let counted = session.manager.execution_ns();
        start_call(&mut session, function, &[]);
        // While it runs it is counted now and then; at the end the time since then is.
        let told = wait_for("it is counted", || {
            Some(session.manager.execution_ns()).filter(|&told| told > counted + 10 * MS)
        });
        std::thread::sleep(Duration::from_millis(300));
        session.terminate();
        assert_eq!(session.exit_status().code(), Some(0));
        let all = session.manager.execution_ns();
        assert!(all >= told + 300 * MS, "{told}, then {all}");
        assert_eq!(session.manager.invocations(), 1, "the call that hangs is not one");
    }
}

#[test]
fn a_long_call_is_counted_while_it_runs_and_once() {
    let mut session = serving();
    let sleep_ms = session.function("sleep_ms");
    session.workers[0].submit(0, sleep_ms, 2500u32.as_bytes());
    eventually("execution is counted", || session.manager.execution_ns() > 0);
    assert_eq!(session.manager.invocations(), 0, "the call has not returned yet");
    session.workers[0].reply().unwrap();
    session.workers[0].call(sleep_ms, 100u32.as_bytes());
    session.terminate();
    assert_eq!(session.exit_status().code(), Some(0));
    assert_eq!(session.manager.invocations(), 2);
    assert!(session.manager.execution_ns() >= 2600 * MS);
}

#[test]
fn execution_is_counted_in_full_and_with_no_polling_in_a_warm_worker() {
    let mut session = serving();
    let sleep_ms = session.function("sleep_ms");
    for _ in 0..3 {
        session.workers[0].call(sleep_ms, 50u32.as_bytes());
    }
    // Counted when the worker goes to sleep, not only at its end.
    eventually("the calls are counted", || session.manager.invocations() == 3);
    assert!(session.manager.execution_ns() >= 150 * MS);
    let polled = session.manager.hot_polling_ns();
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(session.manager.hot_polling_ns(), polled, "a sleeping worker does not poll");
}

#[test]
fn a_hot_worker_is_counted_as_polling_while_it_has_no_work() {
    let session = Session::start(&Setup { hot_timeout_ms: -1, ..Setup::default() }, &faulty());
    for _ in 0..3 {
        let before = session.manager.hot_polling_ns();
        eventually("more polling", || session.manager.hot_polling_ns() >= before + 90 * MS);
    }
    assert_eq!(session.manager.execution_ns(), 0);
}

#[test]
fn a_hot_timeout_polls_that_long_after_each_invocation_then_sleeps() {
    let setup = Setup { hot_timeout_ms: 400, ..Setup::default() };
    let mut session = Session::start(&setup, &faulty());
    let echo = session.function("echo");
    let mut polled = 0;
    for _ in 0..3 {
        session.workers[0].call(echo, b"abc");
        // Settled when it falls asleep; asleep, nothing is added any more.
        eventually("the worker sleeps", || {
            let before = session.manager.hot_polling_ns();
            std::thread::sleep(Duration::from_millis(250));
            let now = session.manager.hot_polling_ns();
            now == before && now >= polled + 400 * MS
        });
        polled = session.manager.hot_polling_ns();
    }
    assert_eq!(session.workers[0].call(echo, b"awake again"), b"awake again");
}

#[test]
fn a_crash_in_a_function_ends_it_by_the_signal() {
    for (function, input, signal) in [
        ("crash", 0u32, 11),
        ("abort_now", 0, 6),
        ("raise_signal", 8, 8),  // SIGFPE
        ("raise_signal", 9, 9),  // SIGKILL
        ("fill", 1 << 20, 11),   // runs into the guard behind its output
        ("fill", 4096 + 64, 11), // only just
    ] {
        let mut session = serving();
        start_call(&mut session, function, input.as_bytes());
        assert_eq!(session.exit_status().signal(), Some(signal), "{function} {input}");
        assert!(session.workers[0].ends());
    }
}

#[test]
fn an_exit_in_a_function_ends_it_with_that_status() {
    for status in [0, 7] {
        let mut session = serving();
        start_call(&mut session, "exit_with", i32::as_bytes(&status));
        assert_eq!(session.exit_status().code(), Some(status));
        assert!(session.workers[0].ends());
    }
}

#[test]
fn an_exception_that_leaves_a_function_aborts() {
    let code = compile("tests/functions/throws.cpp", &[]);
    let mut session = Session::start(&Setup::default(), &code);
    start_call(&mut session, "throws", &[]);
    assert_eq!(session.exit_status().signal(), Some(6));
}

#[test]
fn constructors_run_once_and_destructors_run_at_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log");
    let setup = Setup {
        workers: 3,
        env: vec![("FUNCTION_LOG".into(), log.to_str().unwrap().into())],
        ..Setup::default()
    };
    let mut session = Session::start(&setup, &compile("tests/functions/constructor.c", &[]));
    assert_eq!(std::fs::read_to_string(&log).unwrap(), "loaded\n");
    session.terminate();
    assert_eq!(session.exit_status().code(), Some(0));
    assert_eq!(std::fs::read_to_string(&log).unwrap(), "loaded\nunloaded\n");
}

#[test]
fn destructors_that_hang_do_not_keep_it() {
    let setup = Setup { env: vec![("FUNCTION_HANG".into(), "end".into())], ..Setup::default() };
    let mut session = Session::start(&setup, &compile("tests/functions/constructor.c", &[]));
    session.terminate();
    assert_eq!(session.exit_status().code(), Some(0));
}

#[test]
fn it_ends_also_while_a_constructor_hangs() {
    // It may log while the constructor has the dynamic loader's lock.
    let env = [("FUNCTION_HANG", "start"), ("RUST_LOG", "debug")];
    let env = env.map(|(key, value)| (key.into(), value.into())).into();
    let setup = Setup { env, ..Setup::default() };
    let code = compile("tests/functions/constructor.c", &[]);
    for told in [true, false] {
        let mut session = Session::spawn(&setup, &code);
        session.connect_control(&setup, &code, Duration::from_millis(50));
        if told {
            session.terminate();
        } else {
            session.control = None;
        }
        assert_eq!(session.exit_status().code(), Some(0));
    }
}

#[test]
fn a_library_that_cannot_be_loaded_is_told_to_the_client_and_ends_it_with_status_3() {
    let needs_another = {
        let dir = tempfile::tempdir().unwrap();
        let directory = dir.path().to_str().unwrap();
        let other = dir.path().join("libabsent.so");
        common::compile_to("tests/functions/absent.c", &other, &["-Wl,-soname,libabsent.so.9"]);
        let options = [&format!("-L{directory}"), "-Wl,--no-as-needed", "-labsent"];
        compile("tests/functions/allocations.c", &options.map(|s| s as &str))
    };
    let undefined = compile("tests/functions/undefined.c", &[]);
    let no_functions = compile("tests/functions/no_functions.c", &[]);
    let cases: [(&[u8], &str); 5] = [
        (&needs_another, "libabsent.so.9"),
        (&undefined, "function_of_nobody"),
        (&no_functions, "no functions"),
        (b"#!/bin/sh\necho hello\n", "ELF"),
        (&needs_another[..1000], ""),
    ];
    for (code, words) in cases {
        let (mut session, listed) = Session::start_and_list(&Setup::default(), code);
        let error = listed.unwrap_err();
        assert!(error.contains(words), "{error}");
        assert!(!error.contains("/proc/"), "{error}");
        session.control = None;
        assert_eq!(session.exit_status().code(), Some(3));
    }
}

#[test]
fn a_client_that_stays_after_a_failed_load_does_not_keep_it() {
    let (mut session, listed) = Session::start_and_list(&Setup::default(), b"nothing");
    assert!(listed.is_err());
    assert_eq!(session.exit_status().code(), Some(3));
}

#[test]
fn workers_are_pinned_to_the_cpus_of_the_assignment() {
    let cpus = std::fs::read_to_string("/proc/self/status").unwrap();
    let mine = cpus.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).unwrap();
    let cpu: usize = mine.trim().split(['-', ',']).next().unwrap().parse().unwrap();
    let setup = Setup { pin_to: Some(vec![cpu, 1_000_000]), workers: 2, ..Setup::default() };
    let mut session = Session::start(&setup, &faulty());
    let threads = format!("/proc/{}/task", session.child.id());
    let allowed = |name: &str| {
        std::fs::read_dir(&threads).unwrap().find_map(|thread| {
            let status = std::fs::read_to_string(thread.unwrap().path().join("status")).unwrap();
            status.contains(&format!("Name:\t{name}\n")).then(|| {
                let list = status.lines().find_map(|l| l.strip_prefix("Cpus_allowed_list:"));
                list.unwrap().trim().to_owned()
            })
        })
    };
    assert_eq!(allowed("worker-0"), Some(cpu.to_string()));
    // A CPU that is not there costs speed, not the lease.
    assert_eq!(allowed("worker-1").as_deref(), Some(mine.trim()));
    let echo = session.function("echo");
    assert_eq!(session.workers[1].call(echo, b"abc"), b"abc");
}

#[test]
fn bad_instructions_are_one_line_and_status_2() {
    let setup = Setup::default();
    let address = "127.0.0.1:1".parse().unwrap();
    let mut good = common::instructions(&setup, address, address, b"code");
    let json = |good: &Instructions| serde_json::to_string(good).unwrap();
    let mut inputs = vec![
        (String::new(), "instructions"),
        ("{".into(), "instructions"),
        ("[1, 2]".into(), "instructions"),
        (json(&good).replace("lease", "lise"), "lise"),
        (json(&good)[..40].into(), "instructions"),
    ];
    good.assignment.as_mut().unwrap().workers = 0;
    inputs.push((json(&good), "workers"));
    good.assignment.as_mut().unwrap().workers = 1;
    good.standby.device.provider = "verb".into();
    inputs.push((json(&good), "provider"));
    good.assignment = None; // and no channel over which it comes
    inputs.push((json(&good), "manager's channel"));
    for (input, words) in inputs {
        let child = spawn(&input, &[]);
        let output = child.wait_with_output().unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{error}");
        assert!(error.starts_with("error: ") && error.contains(words), "{error}");
        assert_eq!(error.lines().count(), 1, "{error}");
        assert!(output.stdout.is_empty());
    }
}

#[test]
fn a_bad_flag_is_one_line_and_status_2() {
    let program = env!("CARGO_BIN_EXE_executor");
    let output = Command::new(program).arg("--cores").stdin(Stdio::null()).output().unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(error.starts_with("error: ") && error.contains("--cores"), "{error}");
    assert_eq!(error.lines().count(), 1, "{error}");
}

#[test]
fn help_says_who_starts_it() {
    let program = env!("CARGO_BIN_EXE_executor");
    let output = Command::new(program).arg("--help").output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert!(String::from_utf8(output.stdout).unwrap().contains("executor_manager starts it"));
}

#[test]
fn peers_that_are_not_there_are_one_line_and_status_1() {
    let setup = Setup::default();
    let address = "127.0.0.1:1".parse().unwrap();
    let instructions = common::instructions(&setup, address, address, b"code");
    let child = spawn(&serde_json::to_string(&instructions).unwrap(), &[]);
    let output = child.wait_with_output().unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(error.starts_with("error: ") && error.contains("127.0.0.1:1"), "{error}");
    assert_eq!(error.lines().count(), 1, "{error}");
}

#[test]
fn a_manager_that_refuses_its_connections_ends_it_with_its_words() {
    let setup = Setup::default();
    let code = faulty();
    let mut session = Session::spawn(&setup, &code);
    let request = session.listener.next(DEADLINE).unwrap().expect("the executor dials the client");
    let mut control = rfaas_protocol::channel::Channel::new(&session.device, 4).unwrap();
    control.accept(request, &rfaas_protocol::Empty {}).unwrap();
    // For its signs of life, and perhaps for the worker, whichever is first: one is enough.
    let request = session.manager.listener.next(DEADLINE).unwrap().expect("it dials");
    rfaas_protocol::channel::refuse(request, "no such executor");
    wait_for("it ends", || {
        if let Some(request) = session.manager.listener.next(Duration::from_millis(1)).unwrap() {
            rfaas_protocol::channel::refuse(request, "no such executor");
        }
        session.child.try_wait().unwrap()
    });
    assert_eq!(session.exit_status().code(), Some(1));
    let mut error = String::new();
    session.child.stderr.take().unwrap().read_to_string(&mut error).unwrap();
    assert!(error.contains("no such executor"), "{error}");
    assert_eq!(error.lines().count(), 1, "{error}");
}

#[test]
fn it_dies_with_its_manager() {
    let setup = Setup { hot_timeout_ms: -1, ..Setup::default() };
    let code = faulty();
    let dir = tempfile::tempdir().unwrap();
    let input = dir.path().join("instructions.json");
    let mut session = Session::spawn_by(&setup, &code, |instructions| {
        std::fs::write(&input, instructions).unwrap();
        // A shell in the manager's place.
        Command::new("sh")
            .args(["-c", r#""$0" < "$1" & echo $!; wait"#, env!("CARGO_BIN_EXE_executor")])
            .arg(&input)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap()
    });
    session.connect(&setup, &code);
    let mut pid = String::new();
    BufReader::new(session.child.stdout.take().unwrap()).read_line(&mut pid).unwrap();
    let status = format!("/proc/{}/status", pid.trim());
    let alive =
        || std::fs::read_to_string(&status).is_ok_and(|status| !status.contains("State:\tZ"));
    assert!(alive());
    session.child.kill().unwrap();
    eventually("the end of the executor", || !alive());
}
