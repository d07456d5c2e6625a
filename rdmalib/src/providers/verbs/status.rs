//! The device's numbers in our words.

#![allow(unsafe_code)]

use std::time::Duration;

use super::bindings::types::*;
use crate::types::{Opcode, Status};

/// How a request ended; `ibv_poll_cq(3)`.
#[inline]
pub(super) fn of(status: ibv_wc_status) -> Status {
    if status == IBV_WC_SUCCESS { Status::Success } else { of_failure(status) }
}

#[cold]
fn of_failure(status: ibv_wc_status) -> Status {
    match status {
        IBV_WC_LOC_LEN_ERR => Status::LocalLengthError,
        IBV_WC_LOC_PROT_ERR => Status::LocalProtectionError,
        IBV_WC_WR_FLUSH_ERR => Status::Flushed,
        IBV_WC_REM_INV_REQ_ERR => Status::RemoteInvalidRequest,
        IBV_WC_REM_ACCESS_ERR => Status::RemoteAccessError,
        IBV_WC_REM_OP_ERR => Status::RemoteOperationError,
        // No answer, or one that makes no sense: the peer, or the way to it, is gone.
        IBV_WC_RETRY_EXC_ERR | IBV_WC_RESP_TIMEOUT_ERR => Status::RetryExceeded,
        IBV_WC_RNR_RETRY_EXC_ERR => Status::RnrRetryExceeded,
        other => Status::Other(other),
    }
}

/// What it was. The device's word is only good for a success; which queue it was in is ours.
#[inline]
pub(super) fn opcode(opcode: ibv_wc_opcode, receive: bool) -> Opcode {
    match opcode {
        IBV_WC_RECV_RDMA_WITH_IMM if receive => Opcode::ReceiveWithImmediate,
        _ if receive => Opcode::Receive,
        IBV_WC_RDMA_WRITE => Opcode::Write,
        IBV_WC_RDMA_READ => Opcode::Read,
        IBV_WC_FETCH_ADD => Opcode::FetchAdd,
        IBV_WC_COMP_SWAP => Opcode::CompareSwap,
        _ => Opcode::Send,
    }
}

/// Immediate data of a receive, in host byte order.
#[inline]
pub(super) fn immediate(completion: &ibv_wc) -> Option<u32> {
    // SAFETY: both members of the union are a u32.
    let data = unsafe { completion.__bindgen_anon_1.imm_data };
    (completion.wc_flags & IBV_WC_WITH_IMM != 0).then(|| u32::from_be(data))
}

/// Pauses that a receiver that is not ready can ask for, in microseconds: code `n + 1` is the
/// `n`th; code 0 is 655.36 ms (InfiniBand specification 1.4, table 46).
const RNR_TIMERS: [u32; 31] = [
    10, 20, 30, 40, 60, 80, 120, 160, 240, 320, 480, 640, 960, 1280, 1920, 2560, 3840, 5120, 7680,
    10_240, 15_360, 20_480, 30_720, 40_960, 61_440, 81_920, 122_880, 163_840, 245_760, 327_680,
    491_520,
];

/// Code of the shortest pause that is not shorter than `timer`, or of the longest there is.
pub(super) fn rnr_timer_code(timer: Duration) -> u8 {
    let index = RNR_TIMERS.partition_point(|micros| u128::from(*micros) < timer.as_micros());
    if index < RNR_TIMERS.len() { index as u8 + 1 } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_is_never_shorter_than_asked_for() {
        let code = |micros| rnr_timer_code(Duration::from_micros(micros));
        assert_eq!((code(0), code(10), code(11)), (1, 1, 2));
        assert_eq!((code(640), code(641)), (12, 13));
        assert_eq!((code(491_520), code(491_521), code(10_000_000)), (31, 0, 0));
    }

    #[test]
    fn every_status_of_rdma_core_has_a_meaning() {
        let known = [IBV_WC_SUCCESS, IBV_WC_LOC_LEN_ERR, IBV_WC_WR_FLUSH_ERR, IBV_WC_REM_OP_ERR];
        assert!(known.iter().all(|status| !matches!(of(*status), Status::Other(_))));
        for status in IBV_WC_SUCCESS..=IBV_WC_GENERAL_ERR {
            assert_eq!(of(status) == Status::Success, status == IBV_WC_SUCCESS);
        }
        assert_eq!(of(IBV_WC_FATAL_ERR), Status::Other(IBV_WC_FATAL_ERR));
        assert_eq!(of(4711), Status::Other(4711));
    }
}
