//! How objects print themselves with `{:?}`: in a few words, for people. What they are made of (mappings,
//! descriptors, queues) says nothing to whom an error or an assertion shows one, and a key is nobody else's.

use std::fmt::{Debug, Formatter, Result};

use crate::{
    CompletionQueue, ConnectRequest, Device, Domain, Listener, QueuePair, ReceiveQueue, Region,
    RemoteMapping, SendQueue, Slice, Waker,
};

impl Debug for Device {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        write!(f, "Device({}, {}, {})", self.name(), self.provider(), self.ip_address())
    }
}

impl Debug for Domain {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        f.debug_struct("Domain").finish_non_exhaustive()
    }
}

impl Debug for Region {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        write!(f, "Region({} bytes)", self.len())
    }
}

impl Debug for RemoteMapping {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        write!(f, "RemoteMapping({} bytes)", self.len())
    }
}

impl Debug for Slice<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        let Slice { region, offset, bytes } = self;
        write!(f, "Slice({bytes} bytes from {offset} on, of {})", region.len())
    }
}

impl Debug for CompletionQueue {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        f.debug_struct("CompletionQueue").finish_non_exhaustive()
    }
}

impl Debug for Waker {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        f.write_str("Waker")
    }
}

impl Debug for Listener {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        write!(f, "Listener({})", self.local_addr())
    }
}

impl Debug for ConnectRequest {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        write!(f, "ConnectRequest({})", self.peer())
    }
}

impl Debug for QueuePair {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        write!(f, "QueuePair({}, {:?})", self.number(), self.state())
    }
}

impl Debug for SendQueue {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        write!(f, "SendQueue({}, {:?})", self.number(), self.state())
    }
}

impl Debug for ReceiveQueue {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        f.debug_struct("ReceiveQueue").finish_non_exhaustive()
    }
}
