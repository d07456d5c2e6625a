//! Dialling manager and client, and why a connection could not be made, in words for people.

use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use rdmalib::{Error as RdmaError, PrivateData, QueuePair, RemoteAddress};
use rfaas_program::describe;
use rfaas_protocol::accounting::{AccountingHello, Counters};
use rfaas_protocol::{Hello, Malformed, Refusal, Role, parse_prefix};

use crate::plan::{DIAL_TIMEOUT, Plan, StandbyPlan};

/// Pause before the first new try where others crowd; each one is twice as long as the last.
const FIRST_PAUSE: Duration = Duration::from_millis(2);
/// The longest one.
const LONGEST_PAUSE: Duration = Duration::from_millis(100);

/// A connection was not made.
#[derive(Debug, thiserror::Error)]
#[error("cannot connect to the {peer} at {addr}: {why}")]
pub struct DialError {
    peer: &'static str,
    addr: SocketAddr,
    why: String,
}

impl DialError {
    /// Makes one of `error`: `peer` at `addr` did not take the connection.
    pub fn new(peer: &'static str, addr: SocketAddr, error: &RdmaError) -> Self {
        let refusal = match error {
            RdmaError::Rejected { private_data } => refusal(private_data.as_slice()),
            _ => None,
        };
        DialError { peer, addr, why: refusal.unwrap_or_else(|| describe(error)) }
    }

    /// Makes one of `error`: `peer` at `addr` took the connection, but with an answer that means nothing.
    pub fn malformed(peer: &'static str, addr: SocketAddr, error: &Malformed) -> Self {
        DialError { peer, addr, why: error.to_string() }
    }
}

/// Connects to the listener at `to`, within `timeout`. Tries again if others that connect at the same time have taken
/// this one's place: it has done nothing wrong, and nothing has happened yet.
pub fn dial(
    queue_pair: &mut QueuePair,
    to: SocketAddr,
    hello: &[u8],
    timeout: Duration,
) -> rdmalib::Result<PrivateData> {
    let deadline = Instant::now() + timeout;
    let mut pause = FIRST_PAUSE;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match queue_pair.connect(to, hello, left) {
            Err(
                RdmaError::TooManyConnections(_)
                | RdmaError::ConnectionDropped(_)
                | RdmaError::ListenerExhausted(_),
            ) if left > pause => {
                thread::sleep(pause);
                pause = (2 * pause).min(LONGEST_PAUSE);
            }
            ended => return ended,
        }
    }
}

/// Connects to the counters of this executor at its manager, within `timeout`.
pub fn dial_manager(
    queue_pair: &mut QueuePair,
    plan: &StandbyPlan,
    timeout: Duration,
) -> Result<RemoteAddress, DialError> {
    const PEER: &str = "executor manager";
    let hello = Hello::with(Role::Accounting, &AccountingHello { secret: plan.manager_secret });
    let answer = dial(queue_pair, plan.manager, &hello, timeout)
        .map_err(|error| DialError::new(PEER, plan.manager, &error))?;
    let counters: Counters = parse_prefix(answer.as_slice())
        .map_err(|source| DialError::malformed(PEER, plan.manager, &source))?;
    Ok(RemoteAddress { addr: counters.addr.get(), key: counters.key.get() })
}

/// Connects a worker to the client of `plan`.
pub fn dial_client(queue_pair: &mut QueuePair, plan: &Plan, hello: &[u8]) -> Result<(), DialError> {
    dial(queue_pair, plan.client, hello, DIAL_TIMEOUT)
        .map(drop)
        .map_err(|error| DialError::new("client", plan.client, &error))
}

/// Returns the words of a rejection, if there are any.
fn refusal(private_data: &[u8]) -> Option<String> {
    let refusal: Refusal = parse_prefix(private_data).ok()?;
    let words = refusal.get().ok().filter(|words| !words.is_empty())?;
    Some(words.replace(char::is_control, " "))
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::{SocketAddr as UnixAddr, UnixListener};

    use rdmalib::{Device, DeviceSpec, Provider, QueuePairConfig};

    use super::*;

    #[test]
    fn who_is_dropped_because_others_crowd_tries_again() {
        let to: SocketAddr = "127.0.0.1:7".parse().unwrap(); // nobody else listens there
        let name = UnixAddr::from_abstract_name(format!("rdmalib-shm/{to}")).unwrap();
        let listener = UnixListener::bind_addr(&name).unwrap();
        let crowded = thread::spawn(move || {
            drop(listener.accept().unwrap());
            let (mut socket, _) = listener.accept().unwrap();
            socket.read_exact(&mut [0; 224]).unwrap(); // a message of the handshake
        });
        let device = Device::open(&DeviceSpec {
            name: "shm0".into(),
            provider: Provider::Shm,
            ip_address: to.ip(),
            max_inline_data: 0,
        })
        .unwrap();
        let (domain, queue) = (device.domain().unwrap(), device.completion_queue(128).unwrap());
        let config = QueuePairConfig::default();
        let mut queue_pair = QueuePair::new(&domain, &queue, &queue, &config).unwrap();
        let error = dial(&mut queue_pair, to, &[], DIAL_TIMEOUT).unwrap_err();
        crowded.join().unwrap(); // it was dialled twice, and then there is no listener
        assert!(matches!(error, RdmaError::ConnectionRefused(_)), "{error}");
    }
}
