//! The edges of a graph: what a function returns is written to where the next one reads it, and nobody is asked.
//!
//! ```text
//!   client ──▶ InLink ┐                                        ┌ OutLink ──▶ InLink of another worker
//!   worker ──▶ InLink ┼─ Joins: enough of a run is there ─▶ call ┤
//!   worker ──▶ InLink ┘                                        ├ OutLink ──▶ InLink of the client
//!                                                              └ another stage of the same worker
//! ```
//! * A link is a connection, which edges share that go from one worker to the same other one.
//! * HOSTILE - who writes to a link reaches the slots of its edges, and nothing else: they are in a protection domain
//!   of their own. Of what it says, edge, slot, size and run are checked.
//! * A slot is used again when its run is over, which is for the client to know. So nothing is acknowledged, and an
//!   edge never has more under way than slots.
//! * A link that breaks ends the worker: what a run has lost cannot be made up for here.

mod batch;
mod end;
mod ends;
mod hop;
mod incoming;
mod items;
mod join;
mod link;
mod live;
mod notes;
mod outgoing;
mod stage;
mod wires;

pub use end::HopEnd;
pub use ends::{LinkEnd, arrival_queue};
pub use hop::{Hop, StageMemory};
pub use incoming::{Arrival, InLink};
pub use join::{Input, Joined, Joins};
pub use link::{EdgeAt, Link};
pub use outgoing::{OutLink, SlotUse};
pub use stage::{BatchPlan, InputFrom, JoinPlan, Stage, StageInput, StageOutput};

pub use crate::turn::{About, BatchRun, Denied, Turn, Verdict};
