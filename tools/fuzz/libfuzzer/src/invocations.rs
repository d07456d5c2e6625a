//! Drives target `invocations` of the crate `fuzz`.

#![no_main]

libfuzzer_sys::fuzz_target!(init: fuzz::limit_memory(), |bytes: &[u8]| fuzz::run("invocations", bytes));
