//! executor_manager
fn main() {}
