//! Reaching a program by a name that has several addresses: each is tried, as `ssh` and `curl` do. A name is often both
//! ::1 and 127.0.0.1, or the address of a node's Ethernet and that of its IPoIB, and a program listens on one of them.
//!
//! All tries together take the time that one may: each has an equal share of what is left. If none succeeds, the error
//! says why for each.
//!
//! Elsewhere: looking names up (`rfaas_config`).

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use crate::channel::ChannelError;

/// Calls `connect` with the `addresses` of one program until one is reached, all of them within
/// `limit`. Addresses of the family of `from`, the device's own, come first; a device has no way to
/// others.
pub fn reach<T>(
    from: IpAddr,
    addresses: &[SocketAddr],
    limit: Duration,
    mut connect: impl FnMut(SocketAddr, Duration) -> Result<T, ChannelError>,
) -> Result<T, ChannelError> {
    let mut addresses = addresses.to_vec();
    addresses.sort_by_key(|address| address.is_ipv4() != from.is_ipv4()); // stable
    let deadline = Instant::now() + limit;
    let mut tried = Vec::new();
    for (left, address) in (1..=addresses.len() as u32).rev().zip(addresses) {
        let share = deadline.saturating_duration_since(Instant::now()) / left;
        match connect(address, share) {
            Ok(reached) => return Ok(reached),
            Err(error) => tried.push(Tried { address, error }),
        }
    }
    Err(match tried.pop() {
        Some(only) if tried.is_empty() => only.error,
        last => ChannelError::NoneReached(tried.into_iter().chain(last).collect()),
    })
}

/// An address of a program, and why it was not reached there.
#[derive(Debug)]
pub struct Tried {
    /// The address.
    pub address: SocketAddr,
    /// What happened.
    pub error: ChannelError,
}

impl fmt::Display for Tried {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (address, error) = (self.address.to_string(), self.error.to_string());
        // Most errors of devices name it.
        if error.contains(&address) { f.write_str(&error) } else { write!(f, "{address}: {error}") }
    }
}

/// Lists all of them, for a sentence.
pub(crate) fn list(tried: &[Tried]) -> String {
    let tried: Vec<String> = tried.iter().map(Tried::to_string).collect();
    tried.join("; ")
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    const HERE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

    fn addresses(texts: &[&str]) -> Vec<SocketAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn addresses_are_tried_in_order_with_those_of_the_devices_family_first() {
        let all = addresses(&["[::1]:7", "127.0.0.1:7", "[::2]:7", "127.0.0.2:7"]);
        let mut seen = Vec::new();
        let reached = reach(HERE, &all, Duration::from_secs(60), |address, _| {
            seen.push(address);
            if seen.len() == 3 { Ok(address) } else { Err(ChannelError::Disconnected) }
        });
        assert_eq!(reached.unwrap(), all[0]);
        assert_eq!(seen, addresses(&["127.0.0.1:7", "127.0.0.2:7", "[::1]:7"]));
    }

    #[test]
    fn all_tries_together_have_the_time_of_one() {
        let all = addresses(&["127.0.0.1:7", "127.0.0.2:7", "127.0.0.3:7"]);
        let mut shares = Vec::new();
        let error = reach::<()>(HERE, &all, Duration::from_secs(60), |_, share| {
            shares.push(share);
            Err(ChannelError::Disconnected)
        });
        assert!(shares[0] <= Duration::from_secs(20), "{shares:?}");
        assert!(shares[2] > shares[0], "what was not used is the next one's: {shares:?}");
        let told = error.unwrap_err().to_string();
        assert!(all.iter().all(|address| told.contains(&address.to_string())), "{told}");
    }

    #[test]
    fn a_program_with_one_address_is_told_of_as_before() {
        let error = reach::<()>(HERE, &addresses(&["127.0.0.1:7"]), Duration::ZERO, |_, _| {
            Err(ChannelError::Disconnected)
        });
        assert!(matches!(error, Err(ChannelError::Disconnected)));
    }
}
