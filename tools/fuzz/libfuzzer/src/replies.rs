//! Drives target `replies` of the crate `fuzz`.

#![no_main]

libfuzzer_sys::fuzz_target!(init: fuzz::limit_memory(), |bytes: &[u8]| fuzz::run("replies", bytes));
