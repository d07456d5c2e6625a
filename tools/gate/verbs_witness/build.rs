//! Lists what `types.rs` declares as calls of the macros of `main.rs`, so that every type, field and
//! constant that is bound is compared.

use std::fmt::Write;
use std::path::Path;
use std::{env, fs};

const TYPES: &str = "../../../rdmalib/src/providers/verbs/bindings/types.rs";

/// Types that rdma-sys calls otherwise: C gives them no name.
const TYPE_NAMES: &[(&str, &str)] = &[
    ("ibv_async_event__bindgen_ty_1", "ibv_async_event_element_t"),
    ("ibv_gid__bindgen_ty_1", "ibv_gid_global_t"),
    ("ibv_send_wr__bindgen_ty_1", "imm_data_invalidated_rkey_union_t"),
    ("ibv_send_wr__bindgen_ty_2", "wr_t"),
    ("ibv_send_wr__bindgen_ty_2__bindgen_ty_1", "rdma_t"),
    ("ibv_send_wr__bindgen_ty_2__bindgen_ty_2", "atomic_t"),
    ("ibv_send_wr__bindgen_ty_2__bindgen_ty_3", "ud_t"),
    ("ibv_send_wr__bindgen_ty_3", "qp_type_t"),
    ("ibv_send_wr__bindgen_ty_3__bindgen_ty_1", "xrc_t"),
    ("ibv_send_wr__bindgen_ty_4", "bind_mw_tso_union_t"),
    ("ibv_send_wr__bindgen_ty_4__bindgen_ty_1", "bind_mw_t"),
    ("ibv_send_wr__bindgen_ty_4__bindgen_ty_2", "tso_t"),
    ("ibv_wc__bindgen_ty_1", "imm_data_invalidated_rkey_union_t"),
    ("rdma_addr__bindgen_ty_1", "src_addr_union_t"),
    ("rdma_addr__bindgen_ty_2", "dst_addr_union_t"),
    ("rdma_addr__bindgen_ty_3", "addr_union_t"),
    ("rdma_cm_event__bindgen_ty_1", "param_t"),
];

/// Fields that rdma-sys calls otherwise.
const FIELD_NAMES: &[(&str, &str, &str)] = &[
    ("ibv_send_wr", "__bindgen_anon_1", "imm_data_invalidated_rkey_union"),
    ("ibv_send_wr", "__bindgen_anon_2", "bind_mw_tso_union"),
    ("ibv_send_wr__bindgen_ty_1", "invalidate_rkey", "invalidated_rkey"),
    ("ibv_wc", "__bindgen_anon_1", "imm_data_invalidated_rkey_union"),
    ("rdma_addr", "__bindgen_anon_1", "src_addr_union"),
    ("rdma_addr", "__bindgen_anon_2", "dst_addr_union"),
];

/// Enums whose constants rdma-sys wraps in a struct, to be combined by `|`.
const FLAGS: &[&str] = &["ibv_access_flags", "ibv_qp_attr_mask", "ibv_send_flags", "ibv_wc_flags"];

fn main() {
    println!("cargo::rerun-if-changed={TYPES}");
    println!("cargo::rerun-if-changed=build.rs");
    let types = fs::read_to_string(TYPES)
        .expect("the bindings are in rdmalib/src/providers/verbs/bindings");
    let calls = calls(&types);
    let file = Path::new(&env::var_os("OUT_DIR").expect("set by cargo")).join("calls.rs");
    fs::write(file, calls).expect("cargo made OUT_DIR");
}

fn calls(types: &str) -> String {
    let mut calls = String::from("{\n");
    let mut declared: Option<(&str, &str)> = None; // the struct or union whose fields are read
    for line in types.lines() {
        if let Some((kind, name)) = opening(line) {
            declared = Some((kind, name));
            let theirs = find(TYPE_NAMES, |row| row.0 == name).map_or(name, |row| row.1);
            writeln!(calls, "layout!(found, {name}, {theirs});").expect("a string");
        } else if line == "}" {
            declared = None;
        } else if let Some(((kind, of), field)) = declared.zip(field(line)) {
            let theirs = find(TYPE_NAMES, |row| row.0 == of).map_or(of, |row| row.1);
            let their_field =
                find(FIELD_NAMES, |row| (row.0, row.1) == (of, field)).map_or(field, |row| row.2);
            writeln!(calls, "offset!(found, {kind} {of}.{field}, {theirs}.{their_field});")
                .expect("a string");
        } else if let Some((name, of)) = constant(line) {
            let value = if FLAGS.contains(&of) { ".0" } else { "" };
            writeln!(calls, "constant!(found, {name}, rdma_sys::{of}::{name}{value});")
                .expect("a string");
        }
    }
    calls + "}\n"
}

/// `pub struct NAME {`, but not one that has no fields, which bindgen writes in one line.
fn opening(line: &str) -> Option<(&str, &str)> {
    let (kind, name) = line.strip_prefix("pub ")?.strip_suffix(" {")?.split_once(' ')?;
    matches!(kind, "struct" | "union").then_some((kind, name))
}

/// `    pub FIELD: TYPE,` or its first line.
fn field(line: &str) -> Option<&str> {
    Some(line.strip_prefix("    pub ")?.split_once(':')?.0)
}

/// `pub const NAME: ENUM = VALUE;`
fn constant(line: &str) -> Option<(&str, &str)> {
    line.strip_prefix("pub const ")?.split_once(" = ")?.0.split_once(": ")
}

fn find<T>(table: &[T], holds: impl Fn(&T) -> bool) -> Option<&T> {
    table.iter().find(|row| holds(row))
}
