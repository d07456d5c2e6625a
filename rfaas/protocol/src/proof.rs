//! Proofs of identity: both ends of a connection prove that they know a secret, and neither shows it.
//!
//! ```text
//!   node ──Hello, nonce──▶ resource manager        client ──Hello, lease, nonce──▶ node
//!        ◀──nonce, proof──                                ◀──nonce, proof──         knows the cluster
//!        ──Register, proof──▶  cluster secret             ──Allocate, proof──▶      secret: lease key
//! ```
//! The called side proves itself first, in its acceptance, so that costs no round trip. The calling side says nothing
//! before it has checked that. A proof is a HMAC-SHA256 (RFC 2104) over a label, both nonces of this connection and the
//! message. So it is worth nothing on another connection, in the other direction, or beside another message.
//! * The called side proves that it is *at the address that was called*: a process that listens in
//!   another's place cannot have the real one answer for it.
//! * Proofs and secrets are compared in the same time, wherever they differ.

use std::fmt;
use std::hint::black_box;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use zerocopy::little_endian::U64;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::wire;

/// Random bytes, fresh for each end of each connection.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct Nonce(pub [u8; 16]);

impl Nonce {
    /// Draws a fresh one.
    pub fn generate() -> Self {
        Nonce(random())
    }
}

/// The nonces of both ends of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Nonces {
    /// The nonce of the calling side.
    pub caller: Nonce,
    /// The nonce of the called side.
    pub called: Nonce,
}

/// Proves that its sender knows a secret.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Proof([u8; 32]);

impl Proof {
    /// No proof, where there is no secret to know.
    pub const NONE: Proof = Proof([0; 32]);

    /// Proves that somebody who knows `secret` says `said` as `label` on the connection of these nonces.
    pub(super) fn new(secret: &[u8], label: &[u8], nonces: &Nonces, said: &[&[u8]]) -> Self {
        Proof(proof(secret, label, nonces, said).finalize().into_bytes().into())
    }

    /// Returns whether it is that.
    pub(super) fn verify(
        &self,
        secret: &[u8],
        label: &[u8],
        nonces: &Nonces,
        said: &[&[u8]],
    ) -> bool {
        proof(secret, label, nonces, said).verify_slice(&self.0).is_ok()
    }
}

/// Compares in the same time, wherever they differ.
impl PartialEq for Proof {
    fn eq(&self, other: &Self) -> bool {
        same(&self.0, &other.0)
    }
}
impl Eq for Proof {}

impl fmt::Debug for Proof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Proof(..)")
    }
}

fn proof(secret: &[u8], label: &[u8], nonces: &Nonces, said: &[&[u8]]) -> Hmac<Sha256> {
    let mut mac = keyed(secret, label);
    mac.update(nonces.caller.as_bytes());
    mac.update(nonces.called.as_bytes());
    said.iter().for_each(|part| mac.update(part));
    mac
}

/// Returns a HMAC that no other use of the secret can be mistaken for: no label begins with another
/// one.
pub(super) fn keyed(secret: &[u8], label: &[u8]) -> Hmac<Sha256> {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret).expect("HMAC takes keys of any length");
    mac.update(label);
    mac
}

/// Returns the first half of a HMAC: 128 bits (RFC 2104, 5).
pub(super) fn half(mac: Hmac<Sha256>) -> [u8; 16] {
    let [half @ .., _, _, _, _, _, _, _, _, _, _, _, _, _, _, _, _]: [u8; 32] =
        mac.finalize().into_bytes().into();
    half
}

/// Returns whether `a` and `b` are the same, in the same time wherever they differ.
pub(super) fn same<const N: usize>(a: &[u8; N], b: &[u8; N]) -> bool {
    // Looked at whole: the compiler may not stop at the first difference.
    let differ = a.iter().zip(b).fold(0, |differ, (a, b)| black_box(differ | (a ^ b)));
    black_box(differ) == 0
}

/// Returns bytes from the system's random source.
pub(super) fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).expect("Linux always has a random source (getrandom(2))");
    bytes
}

wire! {
    /// What a wall clock says, in milliseconds since the Unix epoch.
    pub struct Clock [8 bytes] {
        /// Milliseconds.
        pub ms: U64,
    }
}

impl Clock {
    /// Clocks that differ by less are taken to agree: those that are kept by NTP differ by milliseconds, and leases
    /// and bills are not that exact.
    pub const AGREE: Duration = Duration::from_secs(1);

    /// Reads this machine's clock.
    pub fn now() -> Self {
        SystemTime::now().into()
    }

    /// Returns what it says, as a time.
    pub fn time(self) -> SystemTime {
        UNIX_EPOCH + Duration::from_millis(self.ms.get())
    }

    /// Returns how far it is ahead of one that says `other`, in milliseconds; negative: behind.
    /// People are told whole seconds: what it says was under way for a part of one.
    pub fn ahead_of(self, other: SystemTime) -> i64 {
        let difference = i128::from(self.ms.get()) - i128::from(Clock::from(other).ms.get());
        i64::try_from(difference).unwrap_or(if difference > 0 { i64::MAX } else { i64::MIN })
    }
}

/// Whether people are to be told that a peer's clock differs: if it does for a while. Once may mean that what it said
/// was read late, since one of us was stopped.
#[derive(Clone, Copy, Debug, Default)]
pub struct ClockWatch {
    differs_since: Option<Instant>,
    told: bool,
}

impl ClockWatch {
    /// At `now`, the clock is `ahead_ms` milliseconds ahead as far as is known; negative: behind. Returns whether that
    /// is to be told, which it is once.
    pub fn is_to_be_told(&mut self, now: Instant, ahead_ms: i64) -> bool {
        // What is said is exact to some hundred milliseconds: once told, it differs until it is well below that.
        let agree = Clock::AGREE.as_millis() / if self.told { 2 } else { 1 };
        if u128::from(ahead_ms.unsigned_abs()) < agree {
            *self = ClockWatch::default();
            return false;
        }
        let since = *self.differs_since.get_or_insert(now);
        let tell = !self.told && now.saturating_duration_since(since) >= Clock::AGREE;
        self.told |= tell;
        tell
    }
}

impl From<SystemTime> for Clock {
    fn from(time: SystemTime) -> Self {
        let since = time.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
        Clock { ms: u64::try_from(since).unwrap_or(u64::MAX).into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn people_are_told_once_of_a_clock_that_differs_for_a_while() {
        let (start, second) = (Instant::now(), Duration::from_secs(1));
        let mut watch = ClockWatch::default();
        // What waited while we were stopped, all of it at once, and then what is new.
        for late in [-9000, -8000, -1000, -999] {
            assert!(!watch.is_to_be_told(start, late));
        }
        for (seconds, ahead_ms, told) in [
            (1, 5000, false),
            (2, 6000, true),
            (3, 999, false),
            (4, 1000, false),
            (5, 1000, false),
            (9, -6000, false),
            (10, 0, false),
            (11, 1000, false),
            (12, 1000, true),
        ] {
            assert_eq!(watch.is_to_be_told(start + seconds * second, ahead_ms), told, "{seconds}");
        }
    }

    #[test]
    fn a_difference_anywhere_is_one() {
        let bytes: [u8; 16] = random();
        assert!(same(&bytes, &bytes.clone()));
        for bit in 0..128 {
            let mut other = bytes;
            other[bit / 8] ^= 1 << (bit % 8);
            assert!(!same(&bytes, &other), "bit {bit}");
        }
    }

    #[test]
    fn clocks_differ_by_what_they_say() {
        let at = |ms| Clock { ms: U64::new(ms) };
        assert_eq!(at(7_000).ahead_of(at(5_000).time()), 2_000);
        assert_eq!(at(5_000).ahead_of(at(7_000).time()), -2_000);
        assert_eq!(at(u64::MAX).ahead_of(UNIX_EPOCH), i64::MAX, "no overflow, whatever it says");
        assert_eq!(at(0).ahead_of(at(u64::MAX).time()), i64::MIN);
    }
}
