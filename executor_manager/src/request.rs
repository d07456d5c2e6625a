//! What a client shows and asks for, judged before anything changes: its lease, that it is its own, and the numbers
//! of the executor that it wants. Pure.
//!
//! Every number here comes from a stranger. It is compared in types that cannot overflow, and a
//! refusal says which number was wrong and what would be right.
//!
//! Elsewhere: whether cores and memory are free (`allocations`), starting the executor (`spawn`).

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rfaas_protocol::allocation::{
    Allocate, AllocateRefused, ClaimHello, NodeProof, RefusedBecause, Serves, ToClient,
};
use rfaas_protocol::invocation::{HEADER_SPACE, MAX_SLOTS};
use rfaas_protocol::lease::{ClientName, LeaseId, LeaseKey, Reason, SignedTerms};
use rfaas_protocol::library::LibraryHash;
use rfaas_protocol::{Clock, Malformed, Nonce, Nonces, Secret};

use crate::identity::Identity;

/// Bytes of one MB of lease memory: the generous reading, so that nobody is refused over 4 %.
const MB: u128 = 1 << 20;

/// Why a claim is not met.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestRefusal {
    /// What the client may decide on.
    pub because: RefusedBecause,
    /// The reason in words.
    pub reason: String,
}

impl RequestRefusal {
    /// A refusal with its reason in words.
    pub fn new(because: RefusedBecause, reason: impl Into<String>) -> Self {
        RequestRefusal { because, reason: reason.into() }
    }

    /// What was asked for is of a lease, and the client has claimed none on this connection.
    pub fn no_lease() -> Self {
        RequestRefusal::new(RefusedBecause::LeaseEnded, "this connection holds no lease")
    }

    /// A node that is to stop takes nothing on.
    pub fn draining() -> Self {
        RequestRefusal::new(RefusedBecause::Draining, "this node is being shut down")
    }

    /// The answer to the client; a reason that is too long for it is cut.
    pub fn message(&self) -> ToClient {
        ToClient::Refused(AllocateRefused {
            because: self.because.to_wire(),
            reason: Reason::truncated(&self.reason),
        })
    }
}

/// The authority whose tokens count on this node.
#[derive(Debug)]
pub enum Authority {
    /// Tokens count that the resource manager signed with the cluster secret for this run of this node.
    ResourceManager(Arc<Identity>),
    /// Nobody signs: every client that reaches this node may claim what is free.
    Anyone,
}

/// How a client has opened its connection.
#[derive(Clone, Copy, Debug)]
pub enum Opening {
    /// It proves nothing, as clients of older releases.
    Old,
    /// For no lease that was granted.
    Unsigned,
    /// For a lease, of which it is to know the key.
    Lease {
        /// The key.
        key: LeaseKey,
        /// The nonces of the connection.
        nonces: Nonces,
    },
}

impl Authority {
    /// What a client that opens with `hello` at `address` is answered, by which this node proves itself.
    pub fn answer(&self, hello: Option<ClaimHello>, address: SocketAddr) -> (Opening, NodeProof) {
        let hello = hello.filter(|hello| hello.nonce != Nonce([0; 16]));
        match (self, hello) {
            (_, None) => (Opening::Old, NodeProof::none()),
            (Authority::ResourceManager(identity), Some(hello)) if hello.lease.get() != 0 => {
                let key = hello.key(&identity.secret);
                let proof = NodeProof::new(&hello, address, &key);
                (Opening::Lease { key, nonces: proof.nonces(&hello) }, proof)
            }
            (_, Some(_)) => (Opening::Unsigned, NodeProof::none()),
        }
    }

    /// Whether `allocate`, said on a connection that was opened so, is a claim of the lease's holder, and for how
    /// long. `now`: by the resource manager's clock.
    pub fn admit_claim(
        &self,
        allocate: &Allocate,
        opening: &Opening,
        now: SystemTime,
    ) -> Result<Duration, RequestRefusal> {
        let time_left = self.admit(&allocate.signed, allocate.clock, None, now)?;
        let proved = match (self, opening) {
            (Authority::Anyone, _) => true,
            (_, Opening::Lease { key, nonces }) => allocate.verify(key, nonces),
            (_, Opening::Old | Opening::Unsigned) => false,
        };
        match proved {
            true => Ok(time_left),
            false => Err(RequestRefusal::new(
                RefusedBecause::BadToken,
                "the client did not prove that the lease is its own on this connection",
            )),
        }
    }

    /// Whether `token` entitles its holder to a lease here at `now`, and for how long. `held`: the lease
    /// that its connection has already. `clock`: what its holder's says, by which an unsigned claim ends.
    pub fn admit(
        &self,
        token: &SignedTerms,
        clock: Clock,
        held: Option<LeaseId>,
        now: SystemTime,
    ) -> Result<Duration, RequestRefusal> {
        let bad = |reason: String| Err(RequestRefusal::new(RefusedBecause::BadToken, reason));
        let lease = token.terms.lease.get();
        match self {
            Authority::ResourceManager(identity) => {
                if !token.verify(&identity.secret) {
                    return bad(if lease == 0 {
                        "this node leases through its resource manager: ask that for a lease".into()
                    } else {
                        "the token was not signed by this cluster's resource manager".into()
                    });
                }
                let (granted, node) = (token.terms.node, identity.name);
                if granted.get() != node.get() {
                    return bad(format!("the lease is for node {granted:?}, this is {node:?}"));
                }
                if lease == 0 {
                    return bad("the token names no lease".into());
                }
                if token.terms.instance.get() != identity.instance.get() {
                    let reason = "the lease was granted before this executor manager was started";
                    return Err(RequestRefusal::new(RefusedBecause::LeaseEnded, reason));
                }
            }
            Authority::Anyone if lease != 0 && held.is_none_or(|held| held.get() != lease) => {
                return bad(format!(
                    "this node runs without a resource manager and does not know lease {lease}"
                ));
            }
            Authority::Anyone => {}
        }
        let now = match self {
            Authority::ResourceManager(_) => now,
            Authority::Anyone => clock.time(),
        };
        let end = UNIX_EPOCH + Duration::from_millis(token.terms.expires_at_ms.get());
        match end.duration_since(now) {
            Ok(left) if !left.is_zero() => Ok(left),
            _ => Err(RequestRefusal::new(RefusedBecause::LeaseEnded, "the lease has expired")),
        }
    }
}

/// The executor that a client wants: its claim without the token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deployment {
    /// Where the client waits for executor and workers.
    pub client: SocketAddr,
    /// What they show there.
    pub session: Secret,
    /// Polling mode, as in [`Allocate`].
    pub hot_timeout_ms: i64,
    /// Largest input, in bytes.
    pub input_bytes: u32,
    /// Largest output, in bytes.
    pub output_bytes: u32,
    /// Size of the function library, in bytes.
    pub code_bytes: u32,
    /// What it is known by.
    pub code_hash: LibraryHash,
    /// Name of the client whose it is, as in the terms of its lease.
    pub owner: ClientName,
    /// Input slots of each worker.
    pub slots: u16,
    /// Workers serve a graph.
    pub graph: bool,
}

impl TryFrom<&Allocate> for Deployment {
    type Error = Malformed;

    fn try_from(wire: &Allocate) -> Result<Self, Malformed> {
        Ok(Deployment {
            client: wire.client.into(),
            session: wire.session,
            hot_timeout_ms: wire.hot_timeout_ms.get(),
            input_bytes: wire.input_bytes.get(),
            output_bytes: wire.output_bytes.get(),
            code_bytes: wire.code_bytes.get(),
            code_hash: wire.code_hash,
            owner: wire.signed.terms.client,
            slots: wire.slots.get(),
            graph: Serves::from_wire(wire.serves)? == Serves::Graph,
        })
    }
}

impl Deployment {
    /// Whether an executor with these numbers can exist in a lease of `cores` and `memory` (MB).
    pub fn check(&self, cores: u32, memory: u32) -> Result<(), RequestRefusal> {
        let bad = |reason: String| Err(RequestRefusal::new(RefusedBecause::BadRequest, reason));
        if cores == 0 || cores > u32::from(u16::MAX) {
            return bad(format!("a lease has 1 to {} cores, not {cores}", u16::MAX));
        }
        if memory == 0 {
            return bad("a lease has at least 1 MB of memory, not 0".into());
        }
        if self.slots == 0 || usize::from(self.slots) > MAX_SLOTS {
            return bad(format!("a worker has 1 to {MAX_SLOTS} slots, not {}", self.slots));
        }
        for (what, bytes) in [
            ("largest input", self.input_bytes),
            ("largest output", self.output_bytes),
            ("function library", self.code_bytes),
        ] {
            if bytes == 0 {
                return bad(format!("the {what} has at least 1 byte, not 0"));
            }
        }
        if self.hot_timeout_ms < -1 {
            return bad(format!(
                "the hot timeout is -1 (always hot), 0 (always warm) or milliseconds, not {}",
                self.hot_timeout_ms
            ));
        }
        if self.client.ip().is_unspecified() || self.client.port() == 0 {
            return bad(format!(
                "no executor can dial {}: not an address of a client",
                self.client
            ));
        }
        let needed = self.memory_needed(cores);
        if needed > u128::from(memory) {
            return bad(format!(
                "{cores} workers with {} slots for inputs of {} and outputs of {} bytes, and a library \
                 of {} bytes, need {needed} MB of memory; the lease has {memory} MB",
                self.slots, self.input_bytes, self.output_bytes, self.code_bytes
            ));
        }
        Ok(())
    }

    /// Memory of the buffers of `cores` workers and of the library, in whole MB, rounded up.
    fn memory_needed(&self, cores: u32) -> u128 {
        let buffer = |bytes: u32| (u128::from(bytes) + HEADER_SPACE as u128).next_multiple_of(64);
        let slot = buffer(self.input_bytes) + buffer(self.output_bytes);
        let workers = u128::from(cores) * u128::from(self.slots) * slot;
        (workers + u128::from(self.code_bytes)).div_ceil(MB)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rfaas_protocol::lease::{LeaseTerms, NodeName, Token};
    use zerocopy::FromZeros;

    const SECRET: &[u8] = b"42";
    const INSTANCE: u64 = 5;

    fn terms(lease: u64, node: &str, expires_at_ms: u64) -> LeaseTerms {
        LeaseTerms {
            lease: lease.into(),
            cores: 2.into(),
            memory: 256.into(),
            expires_at_ms: expires_at_ms.into(),
            instance: INSTANCE.into(),
            node: NodeName::new(node).unwrap(),
            client: ClientName::new("someone").unwrap(),
        }
    }

    fn deployment() -> Deployment {
        Deployment {
            client: "127.0.0.1:4000".parse().unwrap(),
            session: Secret([1; 16]),
            hot_timeout_ms: -1,
            input_bytes: 1 << 20,
            output_bytes: 1 << 20,
            code_bytes: 50_000,
            code_hash: LibraryHash([7; 32]),
            owner: ClientName::new("someone").unwrap(),
            graph: false,
            slots: 4,
        }
    }

    fn at(ms: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_millis(ms)
    }

    fn cluster() -> Authority {
        let (name, instance) = (NodeName::new("here").unwrap(), INSTANCE.try_into().unwrap());
        Authority::ResourceManager(Arc::new(Identity {
            name,
            instance,
            address: ([127, 0, 0, 1], 10_005).into(),
            secret: SECRET.into(),
            warning: None,
        }))
    }

    /// As if both clocks said the same.
    fn admit(
        authority: &Authority,
        token: &Token,
        held: Option<LeaseId>,
        ms: u64,
    ) -> Result<Duration, RequestRefusal> {
        authority.admit(&token.signed(), at(ms).into(), held, at(ms))
    }

    fn because(result: Result<Duration, RequestRefusal>) -> RefusedBecause {
        result.unwrap_err().because
    }

    #[test]
    fn a_signed_token_for_this_node_is_admitted_until_it_expires() {
        let token = Token::sign(terms(7, "here", 5000), SECRET);
        assert_eq!(admit(&cluster(), &token, None, 4000), Ok(Duration::from_secs(1)));
        assert_eq!(because(admit(&cluster(), &token, None, 5000)), RefusedBecause::LeaseEnded);
        assert_eq!(because(admit(&cluster(), &token, None, 9000)), RefusedBecause::LeaseEnded);
    }

    #[test]
    fn tokens_of_other_clusters_nodes_and_of_nobody_are_refused() {
        for token in [
            Token::sign(terms(7, "here", 5000), b"43"),
            Token::sign(terms(7, "there", 5000), SECRET),
            Token::sign(terms(0, "here", 5000), SECRET),
            Token::unsigned(terms(7, "here", 5000)),
            Token::unsigned(terms(0, "here", 5000)),
        ] {
            assert_eq!(because(admit(&cluster(), &token, None, 0)), RefusedBecause::BadToken);
        }
        let mut forged = Token::sign(terms(7, "here", 5000), SECRET);
        forged.terms.cores = 64.into();
        assert_eq!(because(admit(&cluster(), &forged, None, 0)), RefusedBecause::BadToken);
    }

    #[test]
    fn a_token_of_another_run_of_the_node_is_one_of_a_lease_that_has_ended() {
        let mut of_before = terms(7, "here", 5000);
        of_before.instance = (INSTANCE - 1).into();
        let refused = admit(&cluster(), &Token::sign(of_before, SECRET), None, 0).unwrap_err();
        assert_eq!(refused.because, RefusedBecause::LeaseEnded);
        assert!(refused.reason.contains("before this executor manager was started"), "{refused:?}");
    }

    #[test]
    fn without_a_resource_manager_unsigned_tokens_are_taken_and_expiry_still_holds() {
        let token = Token::unsigned(terms(0, "any name", 5000));
        assert_eq!(admit(&Authority::Anyone, &token, None, 4999), Ok(Duration::from_millis(1)));
        assert_eq!(
            because(admit(&Authority::Anyone, &token, None, 5000)),
            RefusedBecause::LeaseEnded
        );
        let numbered = Token::unsigned(terms(7, "any name", 5000));
        assert_eq!(
            because(admit(&Authority::Anyone, &numbered, None, 0)),
            RefusedBecause::BadToken
        );
        let held = LeaseId::new(7);
        assert!(admit(&Authority::Anyone, &numbered, held, 0).is_ok(), "it got this number here");
        let endless = Token::unsigned(terms(0, "any name", u64::MAX));
        assert!(admit(&Authority::Anyone, &endless, None, 0).is_ok());
    }

    #[test]
    fn a_claim_is_admitted_by_the_lease_s_key_on_the_connection_that_it_was_made_on() {
        let here = SocketAddr::from(([127, 0, 0, 1], 10_005));
        let token = Token::sign(terms(7, "here", 5000), SECRET);
        let hello = ClaimHello::new(&token);
        let (opening, proof) = cluster().answer(Some(hello), here);
        assert!(proof.verify(&hello, here, token.key()));
        let claim = Allocate { signed: token.signed(), ..Allocate::new_zeroed() };
        let good = claim.proved(token.key(), &proof.nonces(&hello));
        let admit = |claim: &Allocate, opening: &Opening| {
            cluster().admit_claim(claim, opening, at(4000)).map_err(|refused| refused.because)
        };
        assert_eq!(admit(&good, &opening), Ok(Duration::from_secs(1)));
        let bad = Err(RefusedBecause::BadToken);
        assert_eq!(admit(&claim, &opening), bad, "not proved");
        let key = *Token::sign(terms(8, "here", 5000), SECRET).key();
        assert_eq!(admit(&claim.proved(&key, &proof.nonces(&hello)), &opening), bad, "another's");
        let (again, _) = cluster().answer(Some(hello), here);
        assert_eq!(admit(&good, &again), bad, "said again on another connection");
        let changed = Allocate { client: SocketAddr::from(([127, 0, 0, 1], 1)).into(), ..good };
        assert_eq!(admit(&changed, &opening), bad, "changed on its way");
        for hello in [None, Some(ClaimHello::new_zeroed())] {
            let (opening, _) = cluster().answer(hello, here);
            assert!(matches!(opening, Opening::Old));
            assert_eq!(admit(&good, &opening), bad, "of an older release");
        }
        let unsigned = ClaimHello { lease: 0.into(), ..hello };
        assert_eq!(admit(&good, &cluster().answer(Some(unsigned), here).0), bad);
    }

    #[test]
    fn an_unsigned_claim_ends_by_its_holder_s_clock() {
        let token = Token::unsigned(terms(0, "any name", 5000)).signed();
        let left = Authority::Anyone.admit(&token, at(4000).into(), None, at(9_000_000));
        assert_eq!(left, Ok(Duration::from_secs(1)));
    }

    #[test]
    fn impossible_numbers_are_refused_by_name() {
        let wrong = |change: fn(&mut Deployment)| {
            let mut wrong = deployment();
            change(&mut wrong);
            wrong
        };
        for (deployment, named) in [
            (wrong(|d| d.slots = 0), "slots"),
            (wrong(|d| d.slots = MAX_SLOTS as u16 + 1), "slots"),
            (wrong(|d| d.input_bytes = 0), "largest input"),
            (wrong(|d| d.output_bytes = 0), "largest output"),
            (wrong(|d| d.code_bytes = 0), "function library"),
            (wrong(|d| d.hot_timeout_ms = -2), "hot timeout"),
            (wrong(|d| d.hot_timeout_ms = i64::MIN), "hot timeout"),
            (wrong(|d| d.client.set_port(0)), "127.0.0.1:0"),
            (wrong(|d| d.client = "0.0.0.0:1".parse().unwrap()), "0.0.0.0:1"),
        ] {
            let refusal = deployment.check(2, 256).unwrap_err();
            assert_eq!(refusal.because, RefusedBecause::BadRequest);
            assert!(refusal.reason.contains(named), "{refusal:?} does not name {named}");
        }
        for (cores, memory) in [(0, 256), (65_536, 256), (u32::MAX, u32::MAX), (2, 0)] {
            let refusal = deployment().check(cores, memory).unwrap_err();
            assert_eq!(refusal.because, RefusedBecause::BadRequest);
        }
    }

    #[test]
    fn buffers_must_fit_the_memory_of_the_lease_and_the_refusal_says_what_would() {
        let mut large = deployment();
        large.input_bytes = 16 << 20;
        large.output_bytes = 16 << 20;
        assert_eq!(large.check(1, 256), Ok(()), "the tutorial's largest payload in its lease");
        let refusal = large.check(4, 256).unwrap_err();
        assert!(refusal.reason.contains("need 513 MB"), "{refusal:?}");
        assert!(refusal.reason.len() <= 240, "the numbers must reach the client: {refusal:?}");
        assert_eq!(large.check(4, 513), Ok(()));
    }

    #[test]
    fn the_largest_numbers_do_not_overflow() {
        let huge = Deployment {
            input_bytes: u32::MAX,
            output_bytes: u32::MAX,
            code_bytes: u32::MAX,
            slots: MAX_SLOTS as u16,
            ..deployment()
        };
        let refusal = huge.check(65_535, u32::MAX).unwrap_err();
        assert_eq!(refusal.because, RefusedBecause::BadRequest);
    }
}
