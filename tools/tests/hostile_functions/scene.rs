//! A cluster with an honest neighbour on it, on which hostile functions are called one by one.

use std::net::{IpAddr, Ipv4Addr};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use rfaas::{Client, Error, LeaseRequest, describe};
use rfaas_config::ExecutorSettings;
use rfaas_protocol::heartbeat::Heartbeat;
use testkit::run::{Running, library};
use testkit::service::{call, cluster, warm};
use testkit::{LocalCluster, Options};

use crate::attacks::{Attack, Input};
use crate::client;
use crate::left::Left;
use crate::libraries::Libraries;
use crate::neighbour::{Neighbour, p99};
use crate::table::{Isolation, Row};

/// A name of the machine on the embedded device that nobody else uses.
const ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 71, 0, 4));
/// A socket that some other program of the machine listens at.
const OTHER: &str = "rfaas-hostile-other";
/// The neighbour's file (`library/reaches.cpp`).
const TENANT_FILE: &str = "/tmp/rfaas-hostile-tenant";
/// The longest that what an attack has left may take to be gone; then it is left behind. Of one that nothing contains,
/// something is left for certain; else it is gone soon, but for a machine that is busy.
const GONE: Duration = Duration::from_secs(3);
const GONE_IF_CONTAINED: Duration = Duration::from_secs(60);
/// The longest that a client may take; then it hangs. Longer than its own limits together.
const CLIENT: Duration = Duration::from_secs(60);
/// The same without a manager, which is the attack's doing.
const CLIENT_ALONE: Duration = Duration::from_secs(3);
/// Between looks, and between calls of the neighbour.
const PAUSE: Duration = Duration::from_millis(5);
/// How often the neighbour calls while nobody is hostile.
const IN_PEACE: usize = 40;

pub struct Scene {
    isolation: Isolation,
    libraries: Libraries,
    neighbour: Neighbour,
    client: Client,
    cluster: LocalCluster,
    layers: Vec<String>,
    _other: UnixListener,
}

/// What an attack's client said, and did not.
struct Said {
    got: String,
    after: String,
    answer: String,
}

impl Scene {
    pub fn start(isolation: Isolation) -> Self {
        let libraries = Libraries::build();
        let (neighbour, client, cluster) = served(isolation, &libraries);
        let name = SocketAddr::from_abstract_name(OTHER).unwrap();
        let _other = UnixListener::bind_addr(&name).unwrap();
        let layers = layers(&cluster);
        Scene { isolation, libraries, neighbour, client, cluster, layers, _other }
    }

    /// What the neighbour could make for others to reach for.
    pub fn settled(&self) -> &str {
        &self.neighbour.settled
    }

    /// The layers of isolation that the node has.
    pub fn layers(&self) -> &[String] {
        &self.layers
    }

    /// The neighbour's p99 while nobody is hostile.
    pub fn in_peace(&mut self) -> Option<Duration> {
        let mut times = Vec::new();
        for _ in 0..IN_PEACE {
            self.neighbour.calls(&mut times).unwrap();
            thread::sleep(PAUSE);
        }
        p99(&times)
    }

    /// Makes `attack` and looks at what came of it. Afterwards everything is as before, if need be
    /// with another cluster.
    pub fn row(&mut self, attack: &'static Attack) -> Row {
        let managers = self.managers();
        // What they cost a manager is the same before and after.
        let stand = ExecutorSettings::default().prewarmed() as usize;
        self.cluster.wait_for_rest(stand);
        let before = Left::list(&managers, self.cluster.directory());
        let (mut times, mut harm) = (Vec::new(), Vec::new());
        let Said { got, after, answer } = self.make(attack, &mut times, &mut harm);
        let mut needs_another = !harm.is_empty();
        if self.dead_managers(&mut harm) {
            needs_another = true;
        } else if let Err(error) = self.next_client() {
            harm.push(format!("the next client was not served: {}", describe(&error)));
            needs_another = true;
        }
        let contained = attack.is_contained_by(&self.layers);
        let gone = if contained { GONE_IF_CONTAINED } else { GONE };
        let left = self.left(&before, &managers, needs_another, gone);
        if needs_another {
            (self.neighbour, self.client, self.cluster) = served(self.isolation, &self.libraries);
        }
        Row { attack, got, after, answer, harm, left, p99: p99(&times) }
    }

    /// The attack, while the neighbour calls.
    fn make(&mut self, attack: &Attack, times: &mut Vec<Duration>, harm: &mut Vec<String>) -> Said {
        let library = match attack.input {
            Input::Load => self.libraries.constructor(attack.name),
            _ => self.libraries.functions(),
        };
        let input = self.input(attack.input);
        let mut attacker = client::spawn(attack, &input, library, &self.cluster);
        let begin = Instant::now();
        let (mut neighbour, mut died, mut killed) = (Ok(()), None, false);
        while !attacker.has_ended() {
            if neighbour.is_ok() {
                neighbour = self.neighbour.calls(times);
            }
            if died.is_none() && self.dead_managers(&mut Vec::new()) {
                died = Some(Instant::now());
            }
            let alone = died.is_some_and(|at| at.elapsed() > CLIENT_ALONE);
            if !killed && (alone || begin.elapsed() > CLIENT) {
                attacker.signal(Signal::SIGKILL);
                killed = true;
                harm.extend((!alone).then(|| "its client hung".into()));
            }
            thread::sleep(PAUSE);
        }
        if let Err(error) = neighbour {
            harm.push(format!("the neighbour's calls failed: {}", describe(&error)));
        }
        Said::by(attacker, killed, harm)
    }

    fn input(&self, kind: Input) -> String {
        let base = self.cluster.http().unwrap().base();
        let directory = self.cluster.directory().display();
        match kind {
            // As long as a header and some.
            Input::Any | Input::Load => "anything".repeat(8),
            Input::HttpPort => base.rsplit(':').next().unwrap().to_owned(),
            Input::SecretFiles => {
                format!("{directory}/executor_manager.json\n{directory}/resource_manager.json\n")
            }
        }
    }

    fn managers(&mut self) -> [u32; 2] {
        let resource_manager = self.cluster.resource_manager().unwrap().id();
        [self.cluster.executor_manager().unwrap().id(), resource_manager]
    }

    /// Adds those that have ended; whether there are any.
    fn dead_managers(&mut self, harm: &mut Vec<String>) -> bool {
        let ended = |manager: &mut testkit::process::Process| {
            manager.exit_status().map(|status| format!("the {} died: {status}", manager.name()))
        };
        let before = harm.len();
        harm.extend(self.cluster.executor_manager().and_then(ended));
        harm.extend(self.cluster.resource_manager().and_then(ended));
        harm.len() > before
    }

    /// Is served from lease to release.
    fn next_client(&self) -> Result<(), Error> {
        let lease = self.client.lease(LeaseRequest::new(1, 64))?;
        let mut executor = lease.deploy_with(library("functions"), &warm())?;
        assert_eq!(call(&mut executor, "empty", &[3; 64])?, [3; 64]);
        executor.release().map(drop)
    }

    /// Waits until nothing is left of an attack; what still is when that takes longer than `gone` is removed.
    /// Without the cluster that there was, only what has nothing to do with that is looked for.
    fn left(&self, before: &Left, managers: &[u32], without: bool, gone: Duration) -> Vec<String> {
        let begin = Instant::now();
        loop {
            let now = Left::list(managers, self.cluster.directory());
            let mut left = now.since(before);
            if !without {
                left.extend(self.cores_taken());
            }
            if left.is_empty() {
                return left;
            }
            if begin.elapsed() > gone {
                now.remove(before);
                return left;
            }
            thread::sleep(PAUSE);
        }
    }

    /// Cores that are not free besides the neighbour's.
    fn cores_taken(&self) -> Option<String> {
        let nodes = self.cluster.http().unwrap().get("/nodes").ok()?.body;
        let cores = |key: &str| nodes[0][key].as_u64();
        let taken = cores("cores")?.checked_sub(cores("free_cores")? + 1)?;
        (taken > 0).then(|| format!("{taken} core taken"))
    }

    pub fn end(self) {
        let Scene { neighbour, client, cluster, .. } = self;
        drop((neighbour, client));
        cluster.stop().unwrap();
        // Without isolation it is a file of the machine; in a sandbox it was never there.
        let _ = std::fs::remove_file(TENANT_FILE);
    }
}

fn layers(cluster: &LocalCluster) -> Vec<String> {
    let nodes = cluster.http().unwrap().get("/nodes").unwrap().body;
    let layers = nodes[0]["isolation"].as_array().unwrap();
    layers.iter().map(|layer| layer.as_str().unwrap().to_owned()).collect()
}

fn served(isolation: Isolation, libraries: &Libraries) -> (Neighbour, Client, LocalCluster) {
    let heartbeat = Heartbeat { silence: Duration::from_secs(10), ..Options::default().heartbeat };
    let options = Options {
        address: ADDRESS,
        cores: 8,
        memory: 4096,
        pin_threads: true,
        talkative: false,
        heartbeat,
        ..Options::default()
    };
    let cluster = cluster(isolation.apply(options));
    let client = cluster.client().unwrap();
    (Neighbour::new(&client, &libraries.functions()), client, cluster)
}

impl Said {
    /// Adds to `harm` how it ended, if that was not its own doing, nor that of who `killed` it.
    fn by(attacker: Running, killed: bool, harm: &mut Vec<String>) -> Self {
        let finished = attacker.finish();
        let said = |key| finished.said(key).pop();
        if !finished.status.success() && !killed {
            let last = finished.stderr.lines().last().unwrap_or_default();
            harm.push(format!("its client died: {}, {last}", finished.status));
        }
        Said {
            got: said(client::GOT).unwrap_or_else(|| "nothing".into()),
            after: said(client::AFTER).unwrap_or_else(|| "-".into()),
            answer: said(client::ANSWER).unwrap_or_default(),
        }
    }
}
