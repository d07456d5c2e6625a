//! What the next deployment of a client needs and what depends on nobody: made when the client connects, and when a
//! deployment has used it, while the client waits for something else: the bill of a lease, or else the grant of the
//! next.
//!
//! There is at most one of each. Without one, the deployment makes it. A listener goes from one deployment to the next;
//! whoever has dialled in between is refused then.

use std::sync::{Mutex, MutexGuard, PoisonError};

use rdmalib::{Domain, Listener};
use rfaas_config::OpenDevice;
use rfaas_protocol::channel::{Channel, ChannelError, refuse};

/// Messages that an executor may be ahead of its client. One names the functions of a usual library.
const CONTROL_RECEIVES: u32 = 16;

/// Most of those that have dialled in between that are refused one by one: there are none unless somebody looks for
/// listeners.
const MOST_REFUSED: usize = 16;

/// The spares of one client.
#[derive(Debug, Default)]
pub(crate) struct Spares(Mutex<Spare>);

#[derive(Debug, Default)]
struct Spare {
    connection: Option<Channel>,
    control: Option<Channel>,
    domain: Option<Domain>,
    listener: Option<Listener>,
}

impl Spares {
    /// Makes what is missing. An error comes again when it is needed.
    pub(crate) fn fill(&self, device: &OpenDevice) {
        let mut spare = self.lock();
        if spare.connection.is_none() {
            spare.connection = connection(device).ok();
        }
        if spare.control.is_none() {
            spare.control = control(device).ok();
        }
        if spare.domain.is_none() {
            spare.domain = device.device.domain().ok();
        }
        if spare.listener.is_none() && may_keep_listener(device) {
            spare.listener = listener(device).ok();
        }
    }

    /// Returns a connection that may be connected to an executor manager.
    pub(crate) fn connection(&self, device: &OpenDevice) -> Result<Channel, ChannelError> {
        let spare = self.lock().connection.take();
        spare.map_or_else(|| connection(device), Ok)
    }

    /// Returns a connection that an executor may be connected to.
    pub(crate) fn control(&self, device: &OpenDevice) -> Result<Channel, ChannelError> {
        let spare = self.lock().control.take();
        spare.map_or_else(|| control(device), Ok)
    }

    /// Returns a domain of which nothing is used.
    pub(crate) fn domain(&self, device: &OpenDevice) -> rdmalib::Result<Domain> {
        let spare = self.lock().domain.take();
        spare.map_or_else(|| device.device.domain(), Ok)
    }

    /// Returns a listener, where `device` says, at which nobody waits.
    pub(crate) fn listener(&self, device: &OpenDevice) -> rdmalib::Result<Listener> {
        let spare = self.lock().listener.take();
        let spare = spare.and_then(emptied);
        spare.map_or_else(|| listener(device), Ok)
    }

    /// Takes a listener back.
    pub(crate) fn keep_listener(&self, listener: Listener, device: &OpenDevice) {
        if may_keep_listener(device) {
            self.lock().listener = Some(listener);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Spare> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn listener(device: &OpenDevice) -> rdmalib::Result<Listener> {
    device.device.listen(device.entry.port)
}

/// Whether a listener may stay. One at a port that the user has chosen is closed: another client may need that.
fn may_keep_listener(device: &OpenDevice) -> bool {
    device.entry.port == 0
}

/// Refuses those that wait at `listener`. `None`: they are too many, or it has failed; another one has none.
fn emptied(mut listener: Listener) -> Option<Listener> {
    for _ in 0..MOST_REFUSED {
        match listener.try_next() {
            Ok(Some(request)) => refuse(request, "this client waits for no executor"),
            Ok(None) => return Some(listener),
            Err(_) => return None,
        }
    }
    None
}

fn connection(device: &OpenDevice) -> Result<Channel, ChannelError> {
    let mut channel = Channel::new(&device.device, device.entry.default_receive_buffer_size)?;
    channel.expect_listener(device.trusted_user);
    Ok(channel)
}

fn control(device: &OpenDevice) -> Result<Channel, ChannelError> {
    Channel::new(&device.device, CONTROL_RECEIVES)
}
