//! How much the control group of an executor may have: as much as its limit of private memory is where there is no
//! group (`rfaas_sandbox`, the executor's `confinement`), so that one process alone meets that first, which it can
//! handle.

use rfaas_program::footprint::footprint;
use rfaas_protocol::assignment::{Assignment, PreloadedLibrary};
use rfaas_protocol::isolation::OWN_MEMORY;

use super::GroupLimits;

/// Returns what the group of an executor with this assignment may have, if it has the libraries `preload` too.
pub fn limits_of(assignment: &Assignment, preload: &[PreloadedLibrary]) -> GroupLimits {
    let leased = u64::from(assignment.memory) << 20;
    let memory = OWN_MEMORY.saturating_add(footprint(assignment, preload)).saturating_add(leased);
    GroupLimits { memory, cpus: assignment.pin_to.clone() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_loaded_before_is_not_taken_from_the_lease() {
        let assignment: Assignment = serde_json::from_str(
            r#"{"lease": 7, "memory": 512, "client": "127.0.0.1:4000",
                "session_secret": "000102030405060708090a0b0c0d0e0f", "workers": 2, "pin_to": [1],
                "slots": 1, "input_bytes": 64, "output_bytes": 64, "code_bytes": 1000,
                "code_hash": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
                "library": "absent", "hot_timeout_ms": 0, "graph": false}"#,
        )
        .unwrap();
        let library = |bytes| PreloadedLibrary { hash: assignment.code_hash, bytes };
        let memory = |preload: &[_]| limits_of(&assignment, preload).memory;
        assert_eq!(memory(&[library(5000), library(1)]), memory(&[]) + 5001);
        let most = Assignment {
            workers: u16::MAX,
            slots: u16::MAX,
            input_bytes: u32::MAX,
            output_bytes: u32::MAX,
            ..assignment.clone()
        };
        assert_eq!(limits_of(&most, &[]).memory, u64::MAX);
    }
}
