//! Function libraries: any file as ELF. The client reads its own, the executor what a client has sent.

use rfaas_protocol::library::exported_functions;
use rfaas_protocol::session::{MAX_FUNCTION_NAME_BYTES, MAX_FUNCTIONS};

use crate::assert_line;

pub(crate) fn run(bytes: &[u8]) {
    let names = match exported_functions(bytes) {
        Ok(names) => names,
        Err(error) => return assert_line(&error.to_string()),
    };
    assert!((1..=MAX_FUNCTIONS).contains(&names.len()));
    assert!(names.iter().all(|name| (1..=MAX_FUNCTION_NAME_BYTES).contains(&name.len())));
    assert!(names.is_sorted_by(|a, b| a < b), "each once, by name");
}
