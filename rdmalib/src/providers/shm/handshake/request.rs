//! A connector that waits for an answer.

use std::os::unix::net::UnixStream;

use super::super::closer::ClosedLater;
use super::super::link::Link;
use super::super::mapping::SharedFile;
use super::super::peer::{origin, peer_of};
use super::super::unread::Connected;
use super::message::{ACCEPT, Message, REJECT, send_message};
use crate::contract;
use crate::types::{Peer, PrivateData, Result};

/// A connector that waits for an answer.
#[derive(Debug)]
pub(crate) struct ConnectRequest {
    socket: ClosedLater<UnixStream>,
    link: Link,
    private_data: PrivateData,
}

impl contract::ConnectRequest for ConnectRequest {
    fn private_data(&self) -> &[u8] {
        self.private_data.as_slice()
    }

    fn peer(&self) -> String {
        peer_of(&self.socket)
    }

    fn origin(&self) -> Peer {
        origin(&self.socket)
    }

    fn reject(self, private_data: &PrivateData) -> Result<()> {
        send_message(&self.socket, &Message::new(REJECT, (0, 0), private_data), None)
    }
}

impl ConnectRequest {
    /// The request that came over `socket`, of the peer that `link` leads to.
    pub(super) fn new(
        socket: ClosedLater<UnixStream>,
        link: Link,
        private_data: PrivateData,
    ) -> Self {
        ConnectRequest { socket, link, private_data }
    }

    /// Connects the receive ring `ring` of the domain `file` to the peer.
    pub(in super::super) fn accept(
        self,
        (file, ring): (&SharedFile, (u64, u32)),
        private_data: &PrivateData,
    ) -> Result<(Link, ClosedLater<Connected>)> {
        let peer = origin(&self.socket);
        let socket = self.socket.map(|socket| Connected::of_connector(socket, peer));
        send_message(&socket, &Message::new(ACCEPT, ring, private_data), Some(file))?;
        socket.is_accepted();
        Ok((self.link, socket))
    }
}

#[cfg(test)]
mod tests {
    use std::thread;
    use std::time::Duration;

    use super::super::super::device::Device;
    use super::*;
    use crate::contract::{Device as _, Domain as _, Listener as _, SendQueue as _};
    use crate::types::{DeviceSpec, Error, Provider, QueuePairConfig, State};

    /// Only a failing test waits so long.
    const PATIENCE: Duration = Duration::from_secs(60);

    #[test]
    fn a_connection_that_cannot_be_watched_is_over() {
        let device = Device::open(&DeviceSpec {
            name: "shm0".into(),
            provider: Provider::Shm,
            ip_address: [127, 0, 0, 1].into(),
            max_inline_data: 0,
        })
        .unwrap();
        let (domain, queue) = (device.domain().unwrap(), device.completion_queue(256).unwrap());
        let end = || domain.queue_pair(&queue, &queue, &QueuePairConfig::default()).unwrap();
        let ((mut server, _receive), (mut client, _)) = (end(), end());
        let mut listener = device.listen(([127, 0, 0, 1], 0).into()).unwrap();
        let to = listener.local_addr();
        thread::scope(|scope| {
            let client = &mut client;
            scope.spawn(move || client.connect(to, None, &PrivateData::nothing(), PATIENCE));
            let request = listener.next(PATIENCE).unwrap().expect("a connector comes");
            // The kernel takes a descriptor into an epoll set once (EEXIST).
            queue.members().watch(&**server.core(), &*request.socket).unwrap();
            let accepted = server.accept(request, &PrivateData::nothing());
            assert!(matches!(accepted, Err(Error::Os { .. })), "{accepted:?}");
            assert_eq!(server.state(), State::Error);
        });
    }
}
