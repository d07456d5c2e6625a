//! executor_manager
