//! Faults by script, for tests: what a queue pair's sends and writes meet on their way (feature
//! `faults`).
//!
//! ```text
//!   Script: "request 3 is dropped", or seed and chances ──┐
//!   post ──▶ Faulty ──which fault has request n?──────────▶ Lane ──▶ provider's send queue ──▶ peer
//!                                                            └─▶ held back, in order ──helper thread──▲
//! ```
//! [`QueuePair::inject`](crate::QueuePair::inject) puts a script before one queue pair, and the
//! variable [`VARIABLE`] one before every queue pair of a process. It works above the providers,
//! and so alike on each.
//!
//! The fault of a request follows from the script, the request's number and its length alone, not
//! from time or threads. Requests that were refused (a full queue) have no number.
//!
//! A reliable connection keeps order: what is posted behind a request that is held back is held
//! back behind it.
//!
//! Whatever its fault, a request that was taken completes as often as without: once if it was
//! signaled. Only the copies of a duplicate both complete if the connection ends under them.
//!
//! A reliable connection never loses, repeats or cuts a message by itself. Under test is what
//! programs do when the *other program* did not send something, sent it twice, or sent nonsense,
//! and when it was late or went away.
//!
//! Elsewhere: which fault each request meets (`script`), carrying faults out (`lane`).

mod lane;
mod script;

pub(crate) use self::lane::{Faulty, Request};
pub use self::script::{Chances, Fault, InvalidScript, MAX_DELAY, Script, VARIABLE};
pub(crate) use self::script::{of_environment, read_environment};
