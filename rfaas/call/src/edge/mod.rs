//! The edges of a graph: what a function returns is written to where the next one reads it, and nobody is asked.
//!
//! ```text
//!   client ──▶ InEdge ┐                                        ┌ OutEdge ──▶ InEdge of another worker
//!   worker ──▶ InEdge ┼─ Joins: enough of a run is there ─▶ call ┤
//!   worker ──▶ InEdge ┘                                        ├ OutEdge ──▶ InEdge of the client
//!                                                              └ another stage of the same worker
//! ```
//! * HOSTILE - who writes to an edge reaches the slots of that edge, and nothing else: they are in a protection domain
//!   of their own. Of what it says, slot, size and run are checked.
//! * A slot is used again when its run is over, which is for the client to know. So nothing is acknowledged, and an
//!   edge never has more under way than slots.
//! * An edge that breaks ends the worker: what a run has lost cannot be made up for here.

mod end;
mod ends;
mod hop;
mod incoming;
mod items;
mod join;
mod live;
mod outgoing;
mod stage;
mod wires;

pub use end::HopEnd;
pub use ends::{EdgeEnd, arrival_queue};
pub use hop::{Hop, StageMemory};
pub use incoming::{Arrival, InEdge};
pub use join::{Input, Joined, Joins};
pub use outgoing::{OutEdge, SlotUse};
pub use stage::{InputFrom, JoinPlan, Stage, StageInput, StageOutput};

pub use crate::turn::{About, Denied, Turn, Verdict};
