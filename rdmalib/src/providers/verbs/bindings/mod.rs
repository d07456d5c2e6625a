//! Bindings for libibverbs and librdmacm, of which nothing is linked: a table of functions is filled
//! from each library when a program first asks for a device, so machines without them run too.
//!
//! * `types` - structs and constants; what a C program calls `ibv_poll_cq`, `ibv_post_send` and the
//!   like are inline functions there and pointers in `ibv_context_ops` here
//! * `ibverbs`, `rdmacm` - the tables; a library that lacks a function of its table does not load
//!
//! Generated from the headers of rdma-core by `tools/gate/verbs_bindings`, which also says what is bound
//! and what on purpose is not; not to be edited. `tools/gate/verbs_witness` asserts the layouts that
//! bindgen saw, and compares every layout and constant with those of a crate made by others. The headers
//! are dual-licensed; they are used here under their BSD licence, `LICENSE.rdma-core`.

#[allow(clippy::all, clippy::multiple_unsafe_ops_per_block, clippy::undocumented_unsafe_blocks)]
#[allow(dead_code, missing_docs, non_camel_case_types, unsafe_code)]
#[rustfmt::skip]
pub(super) mod ibverbs;
#[allow(clippy::all, clippy::multiple_unsafe_ops_per_block, clippy::undocumented_unsafe_blocks)]
#[allow(dead_code, missing_docs, non_camel_case_types, unsafe_code)]
#[rustfmt::skip]
pub(super) mod rdmacm;
#[allow(clippy::all, clippy::multiple_unsafe_ops_per_block, clippy::undocumented_unsafe_blocks)]
#[allow(dead_code, missing_docs, non_camel_case_types, unsafe_code)]
#[rustfmt::skip]
pub(super) mod types;
