//! A second opinion on `rdmalib/src/providers/verbs/bindings/types.rs`: is each struct as large, each field
//! where, and each constant what it is in `rdma-sys`, a crate that others made?
//!
//! rdma-sys generates its bindings with an older bindgen from the headers installed here, and writes
//! everything that has to do with a union by hand: work requests, completions, events. `build.rs`
//! lists what is compared. Exit status: 0 equal, 1 different.

#[allow(dead_code, non_camel_case_types)]
#[rustfmt::skip]
#[path = "../../../../rdmalib/src/providers/verbs/bindings/types.rs"]
mod ours;

// The layouts that bindgen read from the headers; that this compiles is the comparison.
#[allow(clippy::all)]
#[rustfmt::skip]
mod layouts;

use std::mem::{align_of, offset_of, size_of};
use std::process::ExitCode;

/// What was compared, and what was not equal.
#[derive(Default)]
struct Found {
    types: u32,
    fields: u32,
    constants: u32,
    different: Vec<String>,
}

impl Found {
    fn compare(&mut self, what: &str, ours: i64, theirs: i64) {
        if ours != theirs {
            self.different.push(format!("{what}: {ours} here, {theirs} in rdma-sys"));
        }
    }
}

macro_rules! layout {
    ($found:ident, $ours:ident, $theirs:ident) => {{
        type Ours = ours::$ours;
        type Theirs = rdma_sys::$theirs;
        let name = stringify!($ours);
        $found.compare(
            &format!("size of {name}"),
            size_of::<Ours>() as i64,
            size_of::<Theirs>() as i64,
        );
        $found.compare(
            &format!("alignment of {name}"),
            align_of::<Ours>() as i64,
            align_of::<Theirs>() as i64,
        );
        $found.types += 1;
    }};
}

macro_rules! offset {
    ($found:ident, $kind:ident $ours:ident.$field:ident, $theirs:ident.$their_field:ident) => {{
        let name = stringify!($ours.$field);
        let ours = offset_of!(ours::$ours, $field) as i64;
        let theirs = offset_of!(rdma_sys::$theirs, $their_field) as i64;
        $found.compare(&format!("offset of {name}"), ours, theirs);
        offset!(@width $found, $kind name, $ours.$field, $theirs.$their_field);
        $found.fields += 1;
    }};
    (@width $found:ident, struct $name:ident, $ours:ident.$field:ident, $theirs:ident.$their_field:ident) => {
        let ours = width::<ours::$ours, _>(|it| &it.$field);
        let theirs = width::<rdma_sys::$theirs, _>(|it| &it.$their_field);
        $found.compare(&format!("size of {}", $name), ours, theirs);
    };
    // A safe program cannot name the type of a union's field: the size of the union must do.
    (@width $found:ident, union $name:ident, $($field:tt)*) => {};
}

macro_rules! constant {
    ($found:ident, $name:ident, $theirs:expr) => {{
        $found.compare(stringify!($name), i64::from(ours::$name), $theirs as i64);
        $found.constants += 1;
    }};
}

fn width<T, F>(_: fn(&T) -> &F) -> i64 {
    size_of::<F>() as i64
}

fn main() -> ExitCode {
    let mut found = Found::default();
    include!(concat!(env!("OUT_DIR"), "/calls.rs"));
    println!(
        "compared with rdma-sys: {} sizes and alignments, {} fields, {} constants",
        found.types, found.fields, found.constants
    );
    for difference in &found.different {
        println!("DIFFERENT: {difference}");
    }
    // An empty comparison is no witness.
    if found.different.is_empty() && found.types > 0 && found.fields > 0 && found.constants > 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
