//! The client against a node that speaks its protocol, in this process, on the embedded device.

#![allow(clippy::unwrap_used)] // in helpers too: what fails there is the test

#[path = "../common/mod.rs"]
mod common;

mod asynchronous;
mod deploying;
mod failing;
mod granting;
mod graphs;
mod in_place;
mod invoking;
mod keeping;
mod printing;
mod proving;
mod replacing;
mod showing;

/// An input with these bytes and an output of 64.
fn buffers(executor: &rfaas::Executor, bytes: &[u8]) -> (rfaas::Input, rfaas::Output) {
    let mut input = executor.input(bytes.len()).unwrap();
    input.write(0, bytes).unwrap();
    (input, executor.output(64).unwrap())
}
