//! A Unix stream socket with blocking calls: the least that two processes without shared memory need.

use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use rfaas_program::Failure;

use crate::PAYLOADS;
use crate::contender::{Contender, Id, NotMeasured, Round};
use crate::echo::{Echo, measure};
use crate::effort::Effort;
use crate::server::{Role, os};
use benchmarks::machine::{End, settle_down};
use benchmarks::peer::PeerProcess;

/// Bytes of the length in front of a message.
const PREFIX_BYTES: usize = size_of::<u32>();

/// Length-prefixed messages.
#[derive(Debug)]
pub struct Unix;

impl Contender for Unix {
    fn id(&self) -> Id {
        Id::Unix
    }

    fn settings(&self) -> String {
        "std, one connected stream pair, blocking, length and payload in one write".into()
    }

    fn payloads(&self) -> Vec<u32> {
        PAYLOADS.to_vec()
    }

    fn measure(&self, payload: u32, effort: Effort) -> Result<Round, NotMeasured> {
        let (stream, theirs) = UnixStream::pair().map_err(os("socketpair"))?;
        let peer = Role::Unix.start(theirs.into())?;
        let mut message = payload.to_le_bytes().to_vec();
        message.resize(PREFIX_BYTES + payload as usize, 0);
        let mut client =
            SocketCaller { stream, answer: vec![0; message.len()], message, _peer: peer };
        settle_down(End::First);
        Ok(Round::of(measure(&mut client, payload, effort)?))
    }
}

struct SocketCaller {
    stream: UnixStream,
    message: Vec<u8>,
    answer: Vec<u8>,
    _peer: PeerProcess,
}

impl Echo for SocketCaller {
    fn write(&mut self, offset: usize, bytes: &[u8]) -> Result<(), Failure> {
        let at = PREFIX_BYTES + offset;
        self.message[at..at + bytes.len()].copy_from_slice(bytes);
        Ok(())
    }

    fn round_trip(&mut self) -> Result<usize, Failure> {
        self.stream.write_all(&self.message).map_err(os("Unix socket"))?;
        let got = receive(&mut self.stream, &mut self.answer).map_err(os("Unix socket"))?;
        Ok(got - PREFIX_BYTES)
    }

    fn read(&self, offset: usize, out: &mut [u8]) -> Result<(), Failure> {
        let at = PREFIX_BYTES + offset;
        out.copy_from_slice(&self.answer[at..at + out.len()]);
        Ok(())
    }
}

/// Reads one message, length and payload, to the start of `into`, which grows as needed. Small ones take one read:
/// nobody sends a second message before the first was answered. 0 is the end of the connection.
fn receive(stream: &mut UnixStream, into: &mut Vec<u8>) -> io::Result<usize> {
    let mut got = 0;
    loop {
        if got >= PREFIX_BYTES {
            let prefix = into.first_chunk().expect("`got` bytes are there");
            let all = PREFIX_BYTES + u32::from_le_bytes(*prefix) as usize;
            if into.len() < all {
                into.resize(all, 0);
            }
            if got >= all {
                return Ok(all);
            }
        }
        match stream.read(&mut into[got..])? {
            0 if got == 0 => return Ok(0),
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            more => got += more,
        }
    }
}

/// The other process: sends back what it gets until the connection ends.
pub fn serve(end: OwnedFd) -> Result<(), Failure> {
    let mut stream = UnixStream::from(end);
    let mut message = vec![0; 1 << 16];
    loop {
        match receive(&mut stream, &mut message).map_err(os("Unix socket"))? {
            0 => return Ok(()),
            bytes => stream.write_all(&message[..bytes]).map_err(os("Unix socket"))?,
        }
    }
}
