//! resource_manager
fn main() {}
