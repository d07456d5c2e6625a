//! How two processes of one host meet: an abstract Unix socket named after the address, one message
//! each way with the descriptor of the sender's domain. Then the socket stays as doorbell and as
//! sign of life: the kernel closes it when its process ends, however it ends.
//!
//! Abstract sockets (`unix(7)`) leave no file behind and belong to a network namespace, as
//! addresses do. They have no permissions: as with TCP on localhost, any local user may connect,
//! and what a peer says is checked before it is used.
//!
//! A connector that is turned away is told why, if it still listens.
//!
//! * `connector` - connecting; `listener` - waiting for connectors; `request` - answering one
//! * `message` - what both send; `names` - the name of the socket

mod connector;
mod listener;
mod message;
mod names;
mod request;

pub(super) use self::connector::connect_to;
pub(crate) use self::listener::Listener;
pub(crate) use self::request::ConnectRequest;
