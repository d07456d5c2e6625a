//! Which nodes a request goes to: pure, from what is free, by the operator's policy and the request's wish.
//!
//! ```text
//!   NodeTable ──set, as nodes change──▶ Places: trees of what is free, of what there is, of labels
//!                                         │
//!                                       order: by number, or the largest first, as they are needed
//!                                         │
//!     place(policy, Gang{workers, wish}) ─┴─ better, away: would workers that run be better off elsewhere?
//! ```
//! * ALL OR NONE - a gang gets a node for each of its workers, or nothing.
//! * A node that leaves gets only what ends before, under every policy, and is tried last.
//! * A wish that cannot be met is refused by the name of the constraint.
//! * Equals are told apart by number, so the same request on the same cluster has the same answer.
//!
//! Elsewhere: the names of policies (`rfaas_protocol::placement`), who holds what (`pool`).

mod better;
mod gang;
mod order;
mod places;
mod tree;
mod wish;

pub use better::{Advice, away, better};
pub use gang::{Gang, place};
pub use places::{LabelSet, MAX_DIFFERENT_LABELS, Place, Places};
pub use rfaas_protocol::constraints::Constraint;
pub use rfaas_protocol::placement::Policy;
pub use wish::{LeaveFree, Refused, Wish};
