//! Executor managers: who comes to them, and to whom they go.

use std::time::{Duration, Instant};

use rfaas::{Client, Error, LeaseRequest};
use rfaas_config::{ExecutorManagerConfig, ExecutorsDatabase};
use testkit::Options;
use testkit::test_devices::patience;

use super::Scene;
use testkit::run::{command, library, start};
use testkit::service::{call, deploy, warm};
use testkit::wait::{eventually, rounds};

#[test]
fn the_first_request_on_a_new_connection_is_answered() {
    for rdma_sleep in [true, false] {
        let scene = Scene::new(Options { cores: 8, rdma_sleep, ..Options::default() });
        // A client sends its request the moment it is connected; many come at once.
        std::thread::scope(|scope| {
            for client in 0..8u8 {
                let scene = &scene;
                scope.spawn(move || {
                    for round in 0..rounds(30) as u8 {
                        let client_of_its_own = scene.cluster.client().unwrap();
                        let mut executor =
                            deploy(&client_of_its_own, 1, &library("functions"), &warm());
                        let sent = [client ^ round; 8];
                        assert_eq!(call(&mut executor, "empty", &sent).unwrap(), sent);
                        executor.release().unwrap();
                    }
                });
            }
        });
        scene.is_free();
        scene.ends();
    }
}

#[test]
fn an_idle_client_does_not_slow_down_the_others() {
    let scene = Scene::small();
    let idle = deploy(&scene.client, 1, &library("functions"), &warm());
    // The original waited 100 ms in each round of its loop once it had a client. What is claimed here has no token:
    // an answer is all there is to it.
    let device = scene.cluster.open_device().unwrap();
    let database = ExecutorsDatabase::load(scene.cluster.executors()).unwrap();
    let stranger = Client::with_executors(device, database).unwrap();
    let answered = || {
        let start = Instant::now();
        let lease = stranger.lease(LeaseRequest::new(1, 64)).unwrap();
        let error = lease.deploy_with(library("functions"), &warm()).unwrap_err();
        assert!(matches!(error, Error::AllocationRefused { .. }), "{error:?}");
        start.elapsed()
    };
    // Only the fastest one counts: a wait in the loop would be in each of them.
    let fastest = (0..20).map(|_| answered()).min().unwrap();
    assert!(fastest < patience(Duration::from_millis(100)), "{fastest:?}");
    idle.release().unwrap();
    scene.ends();
}

#[test]
fn an_executor_manager_with_another_secret_says_so_and_the_others_go_on() {
    let scene = Scene::small();
    // As the node's own, except for the secret and the port.
    let mut config =
        ExecutorManagerConfig::load(scene.cluster.directory().join("executor_manager.json"))
            .unwrap();
    config.config.resource_manager_secret = 43.into();
    config.config.rdma_device_port = 0;
    let file = scene.directory.path().join("wrong.json");
    std::fs::write(&file, serde_json::to_string(&config).unwrap()).unwrap();
    let mut manager = command("executor_manager", ["--config"]);
    manager.arg(&file).arg("--device-database");
    manager.arg(scene.cluster.directory().join("server_devices.json"));
    let mut running = start(manager);
    running.says("secret");
    assert!(!running.words().contains("panicked"), "{}", running.words());

    let mut executor = deploy(&scene.client, 2, &library("functions"), &warm());
    assert_eq!(call(&mut executor, "empty", &[1; 8]).unwrap(), [1; 8]);
    executor.release().unwrap();
    // Stopping it is clean, if it is still there.
    running.signal(nix::sys::signal::Signal::SIGTERM);
    eventually("it ends", || running.has_ended());
    scene.ends();
}
