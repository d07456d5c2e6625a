//! Why a layer is not put on.

use std::io;

use rfaas_protocol::isolation::Layer;

/// Why a layer could not be put on.
#[derive(Debug, thiserror::Error)]
#[error("{layer}: {what}: {source}")]
pub struct Error {
    /// The layer.
    pub layer: Layer,
    /// What was done for it.
    pub what: String,
    /// What the system said.
    #[source]
    pub source: io::Error,
}

/// Makes an [`Error`] of what the system said.
pub fn failed<E: Into<io::Error>>(
    layer: Layer,
    what: impl Into<String>,
) -> impl FnOnce(E) -> Error {
    move |source| Error { layer, what: what.into(), source: source.into() }
}
