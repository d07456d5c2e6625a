//! Why a connection could not be made, in words for people.

use std::error::Error;
use std::net::SocketAddr;
use std::time::Duration;

use rdmalib::{QueuePair, RemoteAddress};
use rfaas::protocol::accounting::{AccountingHello, Counters};
use rfaas::protocol::{Hello, Malformed, Refusal, Role, parse_prefix};

use crate::plan::Plan;

/// Most time that the executor manager or the client has to accept a connection, however many workers
/// come at once. Both wait for us.
pub const DIAL_TIMEOUT: Duration = Duration::from_secs(5);

/// A connection was not made.
#[derive(Debug, thiserror::Error)]
#[error("cannot connect to the {peer} at {addr}: {why}")]
pub struct DialError {
    peer: &'static str,
    addr: SocketAddr,
    why: String,
}

impl DialError {
    /// `peer` at `addr` did not take the connection.
    pub fn new(peer: &'static str, addr: SocketAddr, error: &rdmalib::Error) -> Self {
        let refusal = match error {
            rdmalib::Error::Rejected { private_data } => refusal(private_data.as_slice()),
            _ => None,
        };
        DialError { peer, addr, why: refusal.unwrap_or_else(|| in_full(error)) }
    }

    /// `peer` at `addr` took it, but with an answer that means nothing.
    pub fn malformed(peer: &'static str, addr: SocketAddr, error: &Malformed) -> Self {
        DialError { peer, addr, why: error.to_string() }
    }
}

/// Connects to the counters of this executor at its manager, within `timeout`.
pub fn dial_manager(
    queue_pair: &mut QueuePair,
    plan: &Plan,
    timeout: Duration,
) -> Result<RemoteAddress, DialError> {
    const PEER: &str = "executor manager";
    let hello = Hello::with(Role::Accounting, &AccountingHello { secret: plan.manager_secret });
    let answer = queue_pair
        .connect(plan.manager, &hello, timeout)
        .map_err(|error| DialError::new(PEER, plan.manager, &error))?;
    let counters: Counters = parse_prefix(answer.as_slice())
        .map_err(|source| DialError::malformed(PEER, plan.manager, &source))?;
    Ok(RemoteAddress { addr: counters.addr.get(), key: counters.key.get() })
}

/// An error with its causes, on one line.
pub fn in_full(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// The words of a rejection, if there are any.
fn refusal(private_data: &[u8]) -> Option<String> {
    let refusal: Refusal = parse_prefix(private_data).ok()?;
    let words = refusal.get().ok().filter(|words| !words.is_empty())?;
    Some(words.replace(char::is_control, " "))
}
