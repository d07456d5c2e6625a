//! Instructions and assignment, checked: everything that can be wrong with them is found here, before a device is
//! opened or anybody dialled. Pure.

use std::net::SocketAddr;
use std::time::Duration;

use nix::unistd::{SysconfVar, sysconf};
use rdmalib::DeviceSpec;
use rfaas_call::Spin;
use rfaas_call::callee::{BadLayout, Layout};
use rfaas_protocol::Secret;
use rfaas_protocol::assignment::{Assignment, PreloadedLibrary, Standby};
use rfaas_protocol::heartbeat::Heartbeat;
use rfaas_protocol::library::LibraryHash;

/// Most time that the executor manager or the client has to accept a connection, however many workers
/// come at once. Both wait for us.
pub const DIAL_TIMEOUT: Duration = Duration::from_secs(5);

/// Time that a client has until all executors of its graph have started and it has told each its part: it gives up
/// before by its own limit, half a minute by default.
pub const PARTS_TIMEOUT: Duration = Duration::from_secs(300);

/// Most time that the client has to write its code: 4 GB at 1 Gb/s.
const CODE_TIMEOUT: Duration = Duration::from_secs(40);
/// What it has to write at least, of code that takes less: the share of each of 50 executors that it deploys at once
/// over such a network.
const CODE_BYTES_PER_SECOND: f64 = 2e6;

/// What is wrong with an assignment.
#[derive(Debug, thiserror::Error)]
pub enum BadAssignment {
    /// A field has a value that it cannot have.
    #[error("assignment: {field} is {value}: {expected}")]
    Field {
        /// Its key.
        field: &'static str,
        /// Its value.
        value: String,
        /// What it may be.
        expected: String,
    },
    /// Slots or sizes.
    #[error("assignment: {0}")]
    Layout(#[from] BadLayout),
}

/// What an executor needs before it has a lease.
#[derive(Clone, Debug)]
pub struct StandbyPlan {
    /// Device to open.
    pub device: DeviceSpec,
    /// Where time is counted.
    pub manager: SocketAddr,
    /// What workers show there.
    pub manager_secret: Secret,
    /// Most workers, from 1.
    pub most_workers: u16,
    /// Soft limit of open descriptors that the manager was started with.
    pub open_files: u64,
    /// Signs of life between executor and manager.
    pub heartbeat: Heartbeat,
    /// Most time that manager and client have to accept the first connection: who takes longer is silent.
    pub first_dial_timeout: Duration,
    /// Memory, in MB, of a lease for which `/tmp` is as large as it is to be.
    pub memory: Option<u32>,
    /// Libraries that are loaded before there is a lease.
    pub preload: Vec<PreloadedLibrary>,
}

/// What an executor is to do.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Lease that it works for; for logs.
    pub lease: u64,
    /// Client to dial.
    pub client: SocketAddr,
    /// What executor and workers show there.
    pub session: Secret,
    /// One entry a worker: the CPU that it is pinned to.
    pub workers: Vec<Option<usize>>,
    /// Memory of each worker.
    pub layout: Layout,
    /// How workers wait for work.
    pub spin: Spin,
    /// Size of the function library, in bytes.
    pub code_bytes: u32,
    /// What it is known by.
    pub code_hash: LibraryHash,
    /// Workers serve a graph.
    pub graph: bool,
}

fn bad(field: &'static str, value: String, expected: &str) -> BadAssignment {
    BadAssignment::Field { field, value, expected: expected.into() }
}

impl TryFrom<Standby> for StandbyPlan {
    type Error = BadAssignment;

    fn try_from(from: Standby) -> Result<Self, BadAssignment> {
        let provider = from.device.provider.parse().map_err(|_| {
            bad("provider", format!("{:?}", from.device.provider), "\"verbs\" or \"shm\"")
        })?;
        if from.most_workers == 0 {
            return Err(bad("most_workers", "0".into(), "an executor has at least one"));
        }
        let heartbeat = Heartbeat::from_ms(from.heartbeat_ms, from.silence_ms);
        Ok(StandbyPlan {
            device: DeviceSpec {
                name: from.device.name,
                provider,
                ip_address: from.device.ip_address,
                max_inline_data: from.device.max_inline_data,
            },
            manager: from.manager,
            manager_secret: from.manager_secret.0,
            most_workers: from.most_workers,
            open_files: from.open_files,
            heartbeat,
            first_dial_timeout: heartbeat.silence.min(DIAL_TIMEOUT),
            memory: from.memory,
            preload: from.preload,
        })
    }
}

impl TryFrom<Assignment> for Plan {
    type Error = BadAssignment;

    fn try_from(from: Assignment) -> Result<Self, BadAssignment> {
        if from.workers == 0 {
            return Err(bad("workers", "0".into(), "an executor has at least one"));
        }
        if from.code_bytes == 0 {
            return Err(bad("code_bytes", "0".into(), "a function library is not empty"));
        }
        let spin = Spin::from_hot_timeout_ms(from.hot_timeout_ms).ok_or_else(|| {
            let expected = "−1 (always hot), 0 (always warm) or milliseconds";
            bad("hot_timeout_ms", from.hot_timeout_ms.to_string(), expected)
        })?;
        let workers = match from.pin_to {
            None => vec![None; usize::from(from.workers)],
            Some(cpus) if cpus.len() == usize::from(from.workers) => {
                cpus.into_iter().map(Some).collect()
            }
            Some(cpus) => {
                let expected = format!("one CPU for each of {} workers", from.workers);
                return Err(bad("pin_to", format!("{cpus:?}"), &expected));
            }
        };
        Ok(Plan {
            lease: from.lease,
            client: from.client,
            session: from.session_secret.0,
            workers,
            layout: Layout::new(from.slots, from.input_bytes, from.output_bytes, page_bytes())?,
            spin,
            code_bytes: from.code_bytes,
            code_hash: from.code_hash,
            graph: from.graph,
        })
    }
}

impl Plan {
    /// Checks that an executor with `most` workers can carry this out.
    pub fn fits(self, most: u16) -> Result<Self, BadAssignment> {
        let workers = self.workers.len();
        if workers > usize::from(most) {
            let expected = format!("this executor has at most {most}");
            return Err(bad("workers", workers.to_string(), &expected));
        }
        Ok(self)
    }

    /// Returns how long the client may take to write its code, if it may take `first` to answer at all.
    pub fn code_within(&self, first: Duration) -> Duration {
        let seconds = f64::from(self.code_bytes) / CODE_BYTES_PER_SECOND;
        (first + Duration::from_secs_f64(seconds)).min(CODE_TIMEOUT)
    }
}

/// Returns the size of a page of this machine's memory, in bytes.
pub fn page_bytes() -> usize {
    const USUAL: usize = 4096;
    match sysconf(SysconfVar::PAGE_SIZE) {
        Ok(Some(bytes)) => usize::try_from(bytes).unwrap_or(USUAL),
        _ => USUAL, // POSIX requires the value; guards of another size are refused by mprotect(2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A standby and an assignment, changed where they have the key.
    fn plans(change: &str) -> Result<(StandbyPlan, Plan), String> {
        let mut standby: serde_json::Value = serde_json::from_str(
            r#"{"device": {"name": "shm0", "provider": "shm", "ip_address": "127.0.0.1",
                "max_inline_data": 0}, "manager": "127.0.0.1:10005",
                "manager_secret": "000102030405060708090a0b0c0d0e0f", "most_workers": 2,
                "open_files": 1024, "heartbeat_ms": 1000, "silence_ms": 5000}"#,
        )
        .unwrap();
        let mut assignment: serde_json::Value = serde_json::from_str(
            r#"{"lease": 7, "memory": 512, "client": "[::1]:4000",
                "session_secret": "ffffffffffffffffffffffffffffffff", "workers": 2, "pin_to": null,
                "slots": 4, "input_bytes": 64, "output_bytes": 64, "code_bytes": 9,
                "code_hash": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
                "library": "absent", "hot_timeout_ms": -1, "graph": false}"#,
        )
        .unwrap();
        let changes: serde_json::Value = serde_json::from_str(change).unwrap();
        for (key, value) in changes.as_object().unwrap() {
            let part = if standby.get(key).is_some() { &mut standby } else { &mut assignment };
            part[key] = value.clone();
        }
        let standby: Standby = serde_json::from_value(standby).map_err(|e| e.to_string())?;
        let assignment: Assignment =
            serde_json::from_value(assignment).map_err(|e| e.to_string())?;
        let standby = StandbyPlan::try_from(standby).map_err(|e| e.to_string())?;
        let plan = Plan::try_from(assignment).and_then(|plan| plan.fits(standby.most_workers));
        Ok((standby, plan.map_err(|e| e.to_string())?))
    }

    #[test]
    fn an_assignment_becomes_a_plan() {
        let (standby, plan) = plans(r#"{"pin_to": [3, 5]}"#).unwrap();
        assert_eq!(plan.workers, [Some(3), Some(5)]);
        assert_eq!(plan.spin, Spin::Always);
        assert_eq!(plan.session.0, [0xff; 16]);
        assert_eq!(standby.first_dial_timeout, DIAL_TIMEOUT);
        assert_eq!(plans("{}").unwrap().1.workers, [None, None]);
    }

    #[test]
    fn a_client_has_more_time_for_more_code_but_not_any_time() {
        let within = |bytes: u32| {
            let (_, plan) = plans(&format!(r#"{{"code_bytes": {bytes}}}"#)).unwrap();
            plan.code_within(DIAL_TIMEOUT)
        };
        assert!(DIAL_TIMEOUT < within(1) && within(1) < DIAL_TIMEOUT + Duration::from_millis(1));
        assert_eq!(within(50_000_000), DIAL_TIMEOUT + Duration::from_secs(25));
        assert_eq!(within(u32::MAX), CODE_TIMEOUT);
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (change, words) in [
            (r#"{"workers": 0}"#, "workers"),
            (r#"{"workers": 3}"#, "at most 2"),
            (r#"{"most_workers": 0}"#, "most_workers"),
            (r#"{"manager_secret": "abc"}"#, "32 hex digits"),
            (r#"{"code_bytes": 0}"#, "code_bytes"),
            (r#"{"code_hash": "ab"}"#, "64 hex digits"),
            (r#"{"library": "stolen"}"#, "stolen"),
            (r#"{"hot_timeout_ms": -2}"#, "hot_timeout_ms"),
            (r#"{"pin_to": [1]}"#, "one CPU for each of 2 workers"),
            (r#"{"slots": 0}"#, "0 input slots"),
            (r#"{"slots": 2000}"#, "2000 input slots"),
            (r#"{"input_bytes": 4294967295}"#, "too large"),
            (r#"{"session_secret": "abc"}"#, "32 hex digits"),
            (r#"{"unheard": 1}"#, "unheard"),
        ] {
            let error = plans(change).unwrap_err();
            assert!(error.contains(words), "{change}: {error}");
        }
    }
}
