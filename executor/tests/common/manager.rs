//! The test as executor manager: where the executor counts.

use rdmalib::{
    Access, CompletionQueue, ConnectRequest, Device, Listener, QueuePair, QueuePairConfig, Region,
};
use rfaas_protocol::accounting::{
    AccountingHello, COUNTERS_BYTES, Counters, EXECUTION_NS, EXECUTOR_BEATS, HOT_POLLING_NS,
    INVOCATIONS, MANAGER_BEATS,
};
use rfaas_protocol::{Hello, Role, parse_prefix};
use zerocopy::IntoBytes;

use super::MANAGER_SECRET;

/// The executor's accounting, as its manager has it.
pub struct Manager {
    pub listener: Listener,
    counters: Region,
    beats: u64,
    domain: rdmalib::Domain,
    pub connections: Vec<(QueuePair, CompletionQueue)>,
}

impl Manager {
    pub fn new(device: &Device) -> Self {
        let domain = device.domain().unwrap();
        let access = Access::LOCAL_WRITE | Access::REMOTE_WRITE | Access::REMOTE_ATOMIC;
        let counters = domain.allocate(COUNTERS_BYTES, access).unwrap();
        let listener = device.listen(0).unwrap();
        Manager { listener, counters, beats: 0, domain, connections: vec![] }
    }

    pub fn accept(&mut self, device: &Device, request: ConnectRequest) {
        let (role, body) = Hello::parse(request.private_data()).unwrap();
        assert_eq!(role, Role::Accounting);
        let hello: AccountingHello = parse_prefix(body).unwrap();
        assert_eq!(hello.secret, MANAGER_SECRET);
        let queue = device.completion_queue(16).unwrap();
        let config =
            QueuePairConfig { send_depth: 1, receive_depth: 1, ..QueuePairConfig::default() };
        let mut pair = QueuePair::new(&self.domain, &queue, &queue, &config).unwrap();
        let place = self.counters.remote();
        let answer = Counters { addr: place.addr.into(), key: place.key.into() };
        request.accept(&mut pair, answer.as_bytes()).unwrap();
        self.connections.push((pair, queue));
    }

    pub fn hot_polling_ns(&self) -> u64 {
        self.counters.load_u64(HOT_POLLING_NS as usize).unwrap()
    }

    pub fn execution_ns(&self) -> u64 {
        self.counters.load_u64(EXECUTION_NS as usize).unwrap()
    }

    pub fn executors_beats(&self) -> u64 {
        self.counters.load_u64(EXECUTOR_BEATS as usize).unwrap()
    }

    /// Gives a sign of life of the manager.
    pub fn beat(&mut self) {
        self.beats += 1;
        self.counters.store_u64(MANAGER_BEATS as usize, self.beats).unwrap();
    }

    pub fn invocations(&self) -> u64 {
        self.counters.load_u64(INVOCATIONS as usize).unwrap()
    }
}
