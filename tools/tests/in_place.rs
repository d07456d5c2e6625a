//! Calls in place, with real processes: at every size what calls that are sent return, the same errors, and nothing
//! left behind. On RDMA devices the same calls are sent.

#![allow(clippy::unwrap_used)] // in what tests share: a failed test is what it is for

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use rfaas::{Error, Executor, Spin};
use testkit::functions::faulty;
use testkit::leftovers::Leftovers;
use testkit::run::{kill_9, library, run};
use testkit::service::{all_is_free, call_with_room, cluster, deploy, warm};
use testkit::test_devices::patience;
use testkit::wait::{eventually, one_at_a_time, rounds};
use testkit::waiting::Waiting;
use testkit::{LocalCluster, Options};

/// Runs the benchmark of one call after the other, in place, which compares what comes back.
fn benchmark(cluster: &LocalCluster, name: &str, bytes: usize, hot_timeout: &str) {
    let mut command = cluster.benchmark_command("warm_benchmarker").unwrap();
    command.args(["--json", "--in-place", "--name", name, "--hot-timeout", hot_timeout]);
    command.args(["-s", &bytes.to_string(), "--repetitions", &rounds(100).to_string()]);
    command.arg("--functions").arg(library("functions"));
    let told = run(command).success().json();
    assert_eq!(told["in_place"], true);
    assert_eq!(told["function"], name);
    assert_eq!(told["payload_bytes"], bytes);
    assert!(told["round_trip_ns"]["p50"].as_u64().unwrap() > 0, "{told}");
    let calls = u64::from(rounds(100));
    assert!(told["bill"]["invocations"].as_u64().unwrap() > calls, "{told}");
}

#[test]
fn payloads_in_place_come_back_as_they_were_built() {
    let _guard = one_at_a_time();
    for max_inline_data in [0, 256] {
        let cluster = cluster(Options { max_inline_data, ..Options::default() });
        for bytes in [1, 64, 4096, 1 << 20, 16 << 20] {
            for hot_timeout in ["-1", "0"] {
                benchmark(&cluster, "empty", bytes, hot_timeout);
                benchmark(&cluster, "edges", bytes, hot_timeout);
            }
        }
        cluster.stop().unwrap();
    }
}

/// Calls `function` in place.
fn in_place(executor: &mut Executor, function: &str, input: &[u8]) -> rfaas::Result<Vec<u8>> {
    let function = executor.function(function)?;
    let mut call = executor.in_place(&function, input.len())?;
    call.write(0, input)?;
    call.invoke()?.to_vec(..)
}

/// The same call, sent.
fn sent(executor: &mut Executor, function: &str, input: &[u8]) -> rfaas::Result<Vec<u8>> {
    call_with_room(executor, function, input, 4096)
}

/// Both ways have the same result or the same error, each on an executor of its own or the same again.
#[test]
fn a_call_in_place_ends_as_one_that_is_sent() {
    let _guard = one_at_a_time();
    let directory = tempfile::tempdir().unwrap();
    let library = faulty(directory.path());
    let cluster = cluster(Options::default());
    let client = cluster.client().unwrap();
    // Only of what is to run into it: what ends by itself may take its time on a busy machine.
    let limit = patience(Duration::from_secs(2));
    let number = |n: u32| n.to_ne_bytes().to_vec();
    for spin in [Spin::Always, Spin::Never] {
        for (function, input) in [
            ("echo", vec![]),
            ("echo", vec![1; 4096]),
            ("echo", vec![1; 4097]),
            ("fill", number(4096)),
            ("claim", number(4097)),
            ("claim", number(u32::MAX)),
            ("crash", number(0)),
            ("exit_with", number(3)),
            ("sleep_forever", number(0)),
        ] {
            let mut deployment = warm().spin(spin);
            if function == "sleep_forever" {
                deployment = deployment.invocation_timeout(limit);
            }
            let ended = [sent, in_place].map(|call| {
                let mut executor = deploy(&client, 1, &library, &deployment);
                let ended = call(&mut executor, function, &input).map_err(|e| e.to_string());
                // And the next is told the same, whichever way it goes.
                let next = in_place(&mut executor, "echo", &[5; 64]).map_err(|e| e.to_string());
                let after = sent(&mut executor, "echo", &[6; 64]).map_err(|e| e.to_string());
                drop(executor);
                all_is_free(&cluster);
                (ended, next, after)
            });
            assert_eq!(ended[0], ended[1], "{function}");
        }
    }
    cluster.stop().unwrap();
}

/// Whoever builds a payload through the pointer, as an image decoder does, builds the function's input.
#[test]
fn pointers_lead_to_the_input_and_the_output_themselves() {
    let _guard = one_at_a_time();
    let cluster = cluster(Options::default());
    let client = cluster.client().unwrap();
    let mut executor = deploy(&client, 1, &library("functions"), &warm());
    let empty = executor.function("empty").unwrap();
    // Memory of this process, by address.
    let memory = File::options().read(true).write(true).open("/proc/self/mem").unwrap();
    let mut call = executor.in_place(&empty, 4096).unwrap();
    for round in 1..10u8 {
        memory.write_all_at(&[round; 4096], call.as_mut_ptr().addr() as u64).unwrap();
        let result = call.invoke().unwrap();
        assert_eq!(result.to_vec(..).unwrap(), [round; 4096]);
        let mut seen = [0; 4096];
        memory.read_exact_at(&mut seen, result.as_ptr().addr() as u64).unwrap();
        assert_eq!(seen, [round; 4096]);
        call = result.again(4096).unwrap();
    }
    drop(call);
    executor.release().unwrap();
    cluster.stop().unwrap();
}

/// Mappings of the embedded device's memory in this process.
fn mappings() -> usize {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    maps.lines().filter(|line| line.contains("memfd:rdmalib-shm")).count()
}

#[test]
fn an_executor_that_is_killed_in_a_call_in_place_is_an_error_and_leaves_nothing() {
    let _guard = one_at_a_time();
    let waiting = Waiting::build();
    let before_all = Leftovers::list(waiting.directory());
    let cluster = cluster(Options { view: waiting.view(), ..Options::default() });
    let client = cluster.client().unwrap();
    let mut mapped = None;
    for round in 0..5u8 {
        waiting.reset();
        let mut executor = deploy(&client, 1, waiting.library(), &warm());
        let [process] = cluster.executors_running()[..] else { panic!("one executor") };
        // First one that returns, so that all there is to map is mapped.
        assert_eq!(in_place(&mut executor, "echo", &[round; 4096]).unwrap(), [round; 4096]);
        let wait = executor.function("wait").unwrap();
        let call = executor.in_place(&wait, 4096).unwrap();
        let error = std::thread::scope(|scope| {
            scope.spawn(|| {
                waiting.is_running();
                kill_9(process);
            });
            call.invoke().unwrap_err()
        });
        assert!(matches!(error, Error::FunctionCrashed { signal: 9 }), "{error}");
        let error = executor.in_place(&wait, 1).unwrap_err();
        assert!(matches!(error, Error::FunctionCrashed { signal: 9 }), "{error}");
        drop(executor);
        eventually("its process is gone", || cluster.executors_running().is_empty());
        // From the first one on, what a client keeps for all of its executors is there.
        eventually("its memory is given back", || mappings() <= mapped.unwrap_or(usize::MAX));
        mapped.get_or_insert_with(mappings);
    }
    drop(client);
    cluster.stop().unwrap();
    waiting.reset();
    Leftovers::nothing_new_since(&before_all, waiting.directory());
}
