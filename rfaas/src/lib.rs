//! rfaas
pub mod protocol;
