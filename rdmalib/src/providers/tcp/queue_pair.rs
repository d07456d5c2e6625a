//! The halves of a queue pair: checking requests, and handing them to the protocol.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use super::carrier::STAGING;
use super::completion::CompletionQueue;
use super::core::Core;
use super::engine::EngineHandle;
use super::handshake::{ConnectRequest, connect_to};
use super::memory::{Keys, Memory as OwnMemory, NeverMapped, Place, Region};
use super::protocol::Terms;
use super::wire::MAX_QUEUE_DEPTH;
use crate::contract::{self, Memory};
use crate::types::work::{MessageLimits, Slice, WorkRequest};
use crate::types::{
    Access, Error, PrivateData, QueuePairConfig, RemoteAddress, Result, RnrRetry, State,
};

/// Inline data is copied while posting; the limit is that of common cards.
pub(super) const MAX_INLINE_DATA: u32 = 512;
/// Most bytes of one request: a frame says its length in 32 bits.
const MAX_BYTES: usize = u32::MAX as usize;

/// Returns the memory of `region`, if it is of the domain with these keys.
#[inline]
fn memory_in<'a, M: Memory<'a, Region>>(keys: &Arc<Keys>, region: M) -> Result<&'a Arc<OwnMemory>> {
    let Some(region) = region.of_provider() else {
        return Err(Error::InvalidArgument("memory region is of another device"));
    };
    if !region.is_in(keys) {
        return Err(Error::InvalidArgument("memory region is of another protection domain"));
    }
    Ok(region.memory())
}

/// Makes the two halves of a queue pair.
pub(super) fn queue_pair(
    (keys, engine, from): (&Arc<Keys>, &Arc<EngineHandle>, IpAddr),
    send: &CompletionQueue,
    receive: &CompletionQueue,
    config: &QueuePairConfig,
) -> Result<(SendQueue, ReceiveQueue)> {
    let depths = [config.send_depth, config.receive_depth];
    if depths.iter().any(|depth| !(1..=MAX_QUEUE_DEPTH).contains(depth)) {
        return Err(Error::InvalidArgument("queue depths are from 1 to 16384"));
    }
    if config.max_inline_data > MAX_INLINE_DATA {
        return Err(Error::InvalidArgument("max_inline_data is larger than the device's limit"));
    }
    let core = Core::new(send.members(), receive.members(), config, keys, engine)?;
    let patience = match config.rnr_retry {
        RnrRetry::Forever => None,
        RnrRetry::Times(times) => Some(config.rnr_timer.saturating_mul(times.into())),
    };
    let terms = Terms { send_depth: config.send_depth, patience };
    let limits = MessageLimits { inline: config.max_inline_data as usize, bytes: MAX_BYTES };
    let receive = ReceiveQueue { core: core.clone(), keys: keys.clone() };
    let send = SendQueue { core, keys: keys.clone(), limits, terms, from };
    Ok((send, receive))
}

/// The half that sends.
#[derive(Debug)]
pub(crate) struct SendQueue {
    core: Arc<Core>,
    keys: Arc<Keys>,
    limits: MessageLimits,
    terms: Terms,
    /// The device's address.
    from: IpAddr,
}

impl SendQueue {
    /// Checks a request as this provider has it.
    #[inline]
    fn check<'a, M: Memory<'a, Region>>(
        &self,
        request: &WorkRequest<M, &'a [u8]>,
    ) -> Result<WorkRequest<&'a Arc<OwnMemory>, &'a [u8]>> {
        request.check(self.limits, |region| memory_in(&self.keys, region))
    }
}

impl contract::SendQueue for SendQueue {
    type Region = Region;
    type RemoteMemory = NeverMapped;
    type ConnectRequest = ConnectRequest;

    fn number(&self) -> u32 {
        self.core.number()
    }

    fn state(&self) -> State {
        self.core.state()
    }

    fn peer(&self) -> Option<String> {
        self.core.peer()
    }

    /// The kernel does not know which user listens.
    fn connect(
        &mut self,
        to: SocketAddr,
        _listener: Option<u32>,
        private_data: &PrivateData,
        timeout: Duration,
    ) -> Result<PrivateData> {
        let (carrier, terms, answer) =
            connect_to(self.from, to, self.terms, private_data, timeout)?;
        self.core.connected(carrier, terms, to.to_string())?;
        Ok(answer)
    }

    fn accept(&mut self, request: ConnectRequest, private_data: &PrivateData) -> Result<()> {
        let (carrier, terms, peer) = request.accept(self.terms, private_data)?;
        self.core.connected(carrier, terms, peer)
    }

    fn disconnect(&mut self) {
        self.core.disconnect(&mut vec![0; STAGING]);
    }

    #[inline]
    fn post<'a, M: Memory<'a, Region>>(
        &mut self,
        request: &WorkRequest<M, &'a [u8]>,
    ) -> Result<()> {
        let request = self.check(request)?;
        let mut inner = self.core.lock();
        inner.protocol.post(&request)?;
        Core::note_answer(&mut inner);
        self.core.after(&mut inner);
        Ok(())
    }

    fn post_list<'a, M: Memory<'a, Region>>(
        &mut self,
        requests: &[WorkRequest<M, &'a [u8]>],
    ) -> (usize, Result<()>) {
        let mut inner = self.core.lock();
        let mut posted = 0;
        let mut result = Ok(());
        for request in requests {
            result = self.check(request).and_then(|request| inner.protocol.post(&request));
            if result.is_err() {
                break;
            }
            posted += 1;
        }
        Core::note_answer(&mut inner);
        self.core.after(&mut inner);
        (posted, result)
    }

    #[cfg(feature = "faults")]
    fn check_room(&self, ahead: u32) -> Result<()> {
        self.core.lock().protocol.check_room(ahead)
    }

    fn map_remote(
        &mut self,
        _at: RemoteAddress,
        _bytes: usize,
        _access: Access,
    ) -> Result<Option<NeverMapped>> {
        Ok(None)
    }
}

impl Drop for SendQueue {
    fn drop(&mut self) {
        self.core.disconnect(&mut vec![0; STAGING]);
        self.core.half_dropped();
    }
}

/// The half that posts receives.
#[derive(Debug)]
pub(crate) struct ReceiveQueue {
    core: Arc<Core>,
    keys: Arc<Keys>,
}

impl contract::ReceiveQueue for ReceiveQueue {
    type Region = Region;

    #[inline]
    fn post<'a, M: Memory<'a, Region>>(&mut self, id: u64, buffer: Option<Slice<M>>) -> Result<()> {
        let buffer = match buffer {
            None => None,
            Some(slice) => {
                let memory = memory_in(&self.keys, slice.region)?;
                if !memory.access().contains(Access::LOCAL_WRITE) {
                    return Err(Error::InvalidArgument("a receive buffer needs LOCAL_WRITE"));
                }
                if slice.bytes > MAX_BYTES {
                    return Err(Error::InvalidArgument("a message has less than 4 GiB"));
                }
                Some((Place { memory: memory.clone(), offset: slice.offset }, slice.bytes))
            }
        };
        let mut inner = self.core.lock();
        inner.protocol.check_receive()?;
        if inner.protocol.post_receive(id, buffer) {
            inner.protocol.acknowledge(); // the peer waits for it
        }
        self.core.after(&mut inner);
        Ok(())
    }
}

impl Drop for ReceiveQueue {
    fn drop(&mut self) {
        self.core.half_dropped();
    }
}
