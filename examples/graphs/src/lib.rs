//! Functions for graphs, and their plain counterparts that tests compare them with.
//!
//! Elsewhere: what runs them, and compares them with calls through the client (`program/`).

pub mod image;
pub mod rod;
pub mod words;
