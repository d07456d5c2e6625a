//! A function that never returns costs its caller one call: it ends at its time limit, its process
//! with it, and the same executor serves on.

#![allow(clippy::unwrap_used)] // in what tests share: a failed test is what it is for

use std::time::{Duration, Instant};

use rfaas::{Error, Executor, Spin};
use testkit::functions::faulty;
use testkit::service::{call, cluster, deploy, warm};
use testkit::wait::{eventually, one_at_a_time};
use testkit::{LocalCluster, Options};

/// Of all calls: many times what one takes that returns, also on a busy machine.
const LIMIT: Duration = Duration::from_secs(1);
/// It loops, it sleeps, it waits for a lock that it holds.
const HANGING: [&str; 3] = ["spin_forever", "sleep_forever", "deadlock"];

/// The executor process, of which there is one.
fn process(cluster: &LocalCluster) -> u32 {
    let running = cluster.executors_running();
    assert_eq!(running.len(), 1, "{running:?}");
    running[0]
}

/// One call on each worker, at the same time.
fn all_workers_serve(executor: &mut Executor) {
    let sleep = executor.function("sleep_ms").unwrap();
    let ms = 20u32.to_ne_bytes();
    let input = || {
        let mut input = executor.input(ms.len()).unwrap();
        input.write(0, &ms).unwrap();
        input
    };
    let inputs: Vec<_> = (0..executor.workers()).map(|_| input()).collect();
    let mut outputs: Vec<_> = inputs.iter().map(|_| executor.output(64).unwrap()).collect();
    let sizes = executor.invoke_all(&sleep, &inputs, &mut outputs).unwrap();
    assert_eq!(sizes, vec![ms.len(); executor.workers()]);
}

#[test]
fn a_hung_function_costs_a_call_and_not_the_executor() {
    let _guard = one_at_a_time();
    let directory = tempfile::tempdir().unwrap();
    let library = faulty(directory.path());
    let cluster = cluster(Options::default());
    let client = cluster.client().unwrap();
    for workers in [1, 2] {
        // Functions and buffers from before are used throughout.
        let deployment = warm().spin(Spin::For(Duration::from_millis(1))).invocation_timeout(LIMIT);
        let mut executor = deploy(&client, workers, &library, &deployment);
        let lease = executor.lease_id();
        let echo = executor.function("echo").unwrap();
        let (mut input, mut output) = (executor.input(8).unwrap(), executor.output(64).unwrap());
        for (round, name) in HANGING.into_iter().enumerate() {
            input.fill(u8::try_from(round).unwrap());
            let hanging = executor.function(name).unwrap();
            let hung = process(&cluster);
            let start = Instant::now();
            let error = executor.invoke(&hanging, &input, &mut output).unwrap_err();
            assert!(matches!(error, Error::TimeLimit { after } if after == LIMIT), "{error:?}");
            assert!(start.elapsed() >= LIMIT);
            eventually("its process ends", || !cluster.executors_running().contains(&hung));

            assert_eq!(executor.invoke(&echo, &input, &mut output).unwrap(), 8);
            assert_eq!(output.to_vec(..8).unwrap(), input.to_vec(..).unwrap());
            assert_ne!(process(&cluster), hung);
            all_workers_serve(&mut executor);

            // Asynchronously: the process ends at the latest with the next call.
            let hung = process(&cluster);
            let pending = executor.submit(&hanging, input, output).unwrap();
            let failed = pending.wait().unwrap_err();
            assert!(matches!(failed.error, Error::TimeLimit { .. }), "{failed}");
            let completed = executor.submit(&echo, failed.input, failed.output).unwrap().wait();
            (input, output) = completed.map(|done| (done.input, done.output)).unwrap();
            assert_eq!(output.to_vec(..8).unwrap(), input.to_vec(..).unwrap());
            assert_ne!(process(&cluster), hung);
            all_workers_serve(&mut executor);
        }
        // It is one lease, billed once, for all calls that returned.
        assert_eq!(executor.lease_id(), lease);
        let bill = executor.release().unwrap();
        let returned = u64::try_from(HANGING.len()).unwrap() * (2 + 2 * u64::from(workers));
        assert!(bill.invocations.get() >= returned, "{bill:?}");
        eventually("no process is left", || cluster.executors_running().is_empty());
    }
    drop(client);
    cluster.stop().unwrap();
}

#[test]
fn a_restart_ends_a_process_whatever_its_functions_do() {
    let _guard = one_at_a_time();
    let directory = tempfile::tempdir().unwrap();
    let library = faulty(directory.path());
    let cluster = cluster(Options::default());
    let client = cluster.client().unwrap();
    let mut executor = deploy(&client, 2, &library, &warm());
    for (calls, name) in (1u32..).zip(HANGING) {
        assert_eq!(call(&mut executor, "count", &[]).unwrap(), 1u32.to_ne_bytes(), "round {calls}");
        let hung = process(&cluster);
        let hanging = executor.function(name).unwrap();
        let buffers = (executor.input(8).unwrap(), executor.output(8).unwrap());
        let pending = executor.submit(&hanging, buffers.0, buffers.1).unwrap();
        executor.restart().unwrap();
        let failed = pending.wait().unwrap_err();
        assert!(matches!(failed.error, Error::WorkerLost { .. }), "{failed}");
        assert_ne!(process(&cluster), hung);
    }
    executor.release().unwrap();
    drop(client);
    cluster.stop().unwrap();
}
