//! The protocol of one connection: bytes in, bytes out, no socket. Requests, receives and their
//! completions are here; what moves the bytes is a carrier, which asks this what to send
//! ([`Protocol::chunks`]) and where bytes belong ([`Protocol::landing`]).
//!
//! ```text
//!   post ──▶ requests ──┐                                  ┌──▶ memory, receives ──▶ completions
//!            answers ───┴─▶ frames ──▶ carrier ··· carrier ──▶ frames
//!   completions ◀── pending ◀── acknowledgements, answers ─────────┘
//! ```
//! * A request is carried out when its bytes are in place and, if it needs a receive, that has been
//!   used up. Acknowledgements count such requests, and travel in every header.
//! * A receiver that has posted no receive never stops reading: it puts the bytes in place and holds
//!   the completion. Messages have no place yet: up to [`EAGER`](terms::EAGER) bytes of them are kept, and a
//!   longer one is announced and comes when there is a receive.
//! * What a peer sends is checked before it is used. What it can make this side keep is bounded: as
//!   many held requests and answers as its send queue has places, and [`EAGER`](terms::EAGER) bytes.
//! * A connection ends once ([`Protocol::end`]): what is posted then and later is flushed.
//!
//! Elsewhere: the state of an end (`connection`, `sent`, `received`), what is sent (`sending`), what arrives
//! (`receiving`), what ends tell each other and their bounds (`terms`), frames (`wire`), moving bytes
//! (`carrier`). A carrier that delivers messages in order can carry this as well as a byte stream.

mod connection;
mod received;
mod receiving;
mod sending;
mod sent;
mod terms;
#[cfg(test)]
mod tests;

pub(super) use self::connection::Protocol;
pub(super) use self::terms::Terms;
