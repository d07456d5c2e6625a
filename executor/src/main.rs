//! executor
fn main() {}
