//! The description of the HTTP interface that is checked in is the one that the types have.

use std::fs;
use std::path::Path;

use rfaas_api::{OPENAPI, document};

/// Set, this has the test write openapi.json instead of comparing it.
const WRITE: &str = "RFAAS_WRITE_OPENAPI";

#[test]
fn openapi_json_is_generated_from_the_types() {
    let generated = document::text();
    if std::env::var_os(WRITE).is_some() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("openapi.json");
        fs::write(path, generated).unwrap();
        return;
    }
    assert!(
        generated == OPENAPI,
        "openapi.json is not what the types of this crate have. Write it anew, and look at what changed:\n  \
         {WRITE}=1 cargo test -p rfaas_api --test openapi"
    );
}
