//! The test as a client of an executor manager.

use std::net::SocketAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rfaas_protocol::allocation::{
    Allocate, AllocateRefused, ClaimHello, ExecutorExited, FromClient, NodeProof, ReadOutput,
    RefusedBecause, Renew, Serves, ToClient,
};
use rfaas_protocol::channel::{Channel, ChannelError, Incoming};
use rfaas_protocol::lease::{ClientName, EndReason, LeaseKey, LeaseTerms, NodeName, Token};
use rfaas_protocol::library::LibraryHash;
use rfaas_protocol::node::Bill;
use rfaas_protocol::{Clock, Empty, Nonce, Nonces, Proof, Role, Secret, parse_prefix};

use super::{NODE, PATIENCE, SECRET, device};

pub fn terms(lease: u64, cores: u32, memory: u32, lasts: Duration) -> LeaseTerms {
    let end = SystemTime::now().duration_since(UNIX_EPOCH).unwrap() + lasts;
    LeaseTerms {
        lease: lease.into(),
        cores: cores.into(),
        memory: memory.into(),
        expires_at_ms: (end.as_millis() as u64).into(),
        instance: 0.into(),
        node: NodeName::new(NODE).unwrap(),
        client: ClientName::new("tester").unwrap(),
    }
}

pub fn hour() -> Duration {
    Duration::from_secs(3600)
}

pub fn unsigned(cores: u32) -> Token {
    Token::unsigned(terms(0, cores, 100, hour()))
}

/// A claim that is not proved yet.
pub fn allocate(token: Token) -> Allocate {
    Allocate {
        signed: token.signed(),
        clock: Clock::now(),
        proof: Proof::NONE,
        client: SocketAddr::from(([127, 0, 0, 1], 4000)).into(),
        session: Secret([9; 16]),
        hot_timeout_ms: (-1).into(),
        input_bytes: 64.into(),
        output_bytes: 64.into(),
        code_bytes: 1000.into(),
        code_hash: LibraryHash([0; 32]),
        slots: 4.into(),
        serves: Serves::Calls.to_wire(),
    }
}

/// One that knows the cluster secret, and so can claim whatever a test makes up.
pub struct Client {
    pub channel: Channel,
    address: SocketAddr,
    hello: ClaimHello,
    pub nonces: Nonces,
    holds: bool,
}

impl Client {
    /// For no lease that was granted.
    pub fn connect(address: SocketAddr) -> Self {
        Client::connect_for(address, 0, 0)
    }

    /// For this lease, of this run of its node; which proves itself.
    pub fn connect_for(address: SocketAddr, lease: u64, instance: u64) -> Self {
        let mut channel = Channel::new(&device(), 16).unwrap();
        let nonce = Nonce::generate();
        let hello = ClaimHello { lease: lease.into(), instance: instance.into(), nonce };
        let answer = channel.connect(address, Role::Allocation, &hello, PATIENCE).unwrap();
        let proof: NodeProof = parse_prefix(answer.as_slice()).unwrap();
        Client { channel, address, hello, nonces: proof.nonces(&hello), holds: false }
    }

    pub fn send(&mut self, message: &FromClient) {
        self.channel.send(message).unwrap();
    }

    /// The next message that is not a heartbeat, which it answers.
    pub fn next(&mut self) -> ToClient {
        loop {
            match self.channel.receive(PATIENCE).unwrap() {
                Incoming::Message(ToClient::Heartbeat(_)) => self.beat(),
                Incoming::Message(message) => {
                    match message {
                        ToClient::Allocated(_) => self.holds = true,
                        ToClient::Released(_) => self.holds = false,
                        _ => {}
                    }
                    return message;
                }
                other => panic!("{other:?}"),
            }
        }
    }

    pub fn beat(&mut self) {
        self.send(&FromClient::Heartbeat(Empty {}));
    }

    /// The next heartbeat, which must come before anything else.
    pub fn heartbeat(&mut self) {
        let next = self.channel.receive(PATIENCE).unwrap();
        assert!(matches!(next, Incoming::Message(ToClient::Heartbeat(_))), "{next:?}");
    }

    /// Waits for the end of the connection, saying nothing.
    pub fn ended(&mut self) {
        loop {
            match self.channel.receive::<ToClient>(PATIENCE) {
                Err(ChannelError::Disconnected) => return,
                Ok(Incoming::Message(ToClient::Heartbeat(_) | ToClient::LeaseEnding(_))) => {}
                other => panic!("{other:?}"),
            }
        }
    }

    /// Claims, on a connection for this lease.
    pub fn ask(&mut self, allocate: Allocate) -> ToClient {
        let (lease, instance) = (allocate.signed.terms.lease, allocate.signed.terms.instance);
        if (lease, instance) != (self.hello.lease, self.hello.instance) && !self.holds {
            *self = Client::connect_for(self.address, lease.get(), instance.get());
        }
        self.send(&FromClient::Allocate(self.proved(allocate)));
        self.next()
    }

    /// The same claim, proved on this connection.
    pub fn proved(&self, allocate: Allocate) -> Allocate {
        let key = LeaseKey::derive(self.hello.lease, self.hello.instance, SECRET);
        allocate.proved(&key, &self.nonces)
    }

    /// Claims; returns the number of the lease.
    pub fn claim(&mut self, token: Token) -> u64 {
        match self.ask(allocate(token)) {
            ToClient::Allocated(allocated) => allocated.lease.get(),
            other => panic!("{other:?}"),
        }
    }

    /// Waits to be told that the executor has exited.
    pub fn exited(&mut self) -> ExecutorExited {
        match self.next() {
            ToClient::ExecutorExited(exited) => exited,
            other => panic!("{other:?}"),
        }
    }

    /// Everything that was written in its lease and is kept, in pieces of one stream (1 or 2), and how many bytes
    /// were dropped.
    pub fn printed(&mut self) -> (Vec<(u16, Vec<u8>)>, u64) {
        let (mut pieces, mut from, mut dropped, mut end) =
            (Vec::<(u16, Vec<u8>)>::new(), 0, 0, None);
        loop {
            self.send(&FromClient::ReadOutput(ReadOutput { from: from.into() }));
            let part = match self.next() {
                ToClient::OutputPart(part) => part,
                other => panic!("{other:?}"),
            };
            assert_eq!(part.from.get(), from);
            dropped += part.at.get() - from;
            let (stream, bytes) = (part.stream.get(), part.bytes().unwrap());
            from = part.at.get() + bytes.len() as u64;
            match pieces.last_mut().filter(|last| last.0 == stream) {
                _ if bytes.is_empty() => {}
                Some(last) => last.1.extend(bytes),
                None => pieces.push((stream, bytes.to_vec())),
            }
            if bytes.is_empty() || from >= *end.get_or_insert(part.end.get()) {
                return (pieces, dropped);
            }
        }
    }

    /// Claims and is refused.
    pub fn refused(&mut self, allocate: Allocate) -> (RefusedBecause, String) {
        match self.ask(allocate) {
            ToClient::Refused(refused) => why(&refused),
            other => panic!("{other:?}"),
        }
    }

    /// Renews; returns the new end, in ms since the epoch.
    pub fn renew(&mut self, token: Token) -> Result<u64, (RefusedBecause, String)> {
        self.send(&FromClient::Renew(Renew { signed: token.signed(), clock: Clock::now() }));
        match self.next() {
            ToClient::Renewed(renewed) => Ok(renewed.expires_at_ms.get()),
            ToClient::Refused(refused) => Err(why(&refused)),
            other => panic!("{other:?}"),
        }
    }

    pub fn release(&mut self) -> Bill {
        self.send(&FromClient::Release(Empty {}));
        match self.next() {
            ToClient::Released(released) => released.bill,
            other => panic!("{other:?}"),
        }
    }

    /// Waits to be told that the lease ends; returns why and the grace in ms.
    pub fn ending(&mut self) -> (EndReason, u32) {
        match self.next() {
            ToClient::LeaseEnding(ending) => {
                (EndReason::from_wire(ending.reason).unwrap(), ending.grace_ms.get())
            }
            other => panic!("{other:?}"),
        }
    }
}

fn why(refused: &AllocateRefused) -> (RefusedBecause, String) {
    let because = RefusedBecause::from_wire(refused.because).unwrap();
    (because, refused.reason.get().unwrap().to_owned())
}
