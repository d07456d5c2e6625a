//! Floors: what the machine itself takes for the least that a round trip needs.

pub mod bounce;
pub mod copies;
pub mod eventfd;
pub mod verbs;
