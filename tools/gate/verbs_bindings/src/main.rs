//! Writes `rdmalib/src/providers/verbs/bindings/{types,ibverbs,rdmacm}.rs` and the witness's
//! `layouts.rs` from the headers of rdma-core, or, with `--check`, compares what it would write with what
//! is there.
//!
//! ```text
//!   infiniband/verbs.h, rdma/rdma_cma.h ─▶ types.rs    what crosses the boundary: structs, constants
//!                                       ├▶ layouts.rs  assertions: sizes and offsets of types.rs
//!                                       ├▶ ibverbs.rs  struct Ibverbs: a table of functions
//!                                       └▶ rdmacm.rs   struct Rdmacm: likewise
//! ```
//! * Only what is named below is bound, and what that is made of.
//! * A C enum is an integer and constants: the library and the device may return any value.
//! * The same headers give the same bytes; headers of another release are refused.
//! * A struct that only passes by as a pointer has no fields here. `ibv_port_attr` is not
//!   bound at all: it grew between releases, and `ibv_query_port` writes as much as it knows.
//!
//! Exit status: 0 done (or equal), 1 different, 2 the bindings cannot be generated here.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::{env, fs, panic};

use anyhow::{Context, Result, bail, ensure};
use bindgen::callbacks::{DeriveTrait, ImplementsTrait, ParseCallbacks};
use bindgen::{Builder, EnumVariation, Formatter, RustEdition, RustTarget};

/// The release of rdma-core whose headers are bound. To move on: change this, generate, read the
/// difference, and run `tools/gate/verbs_witness` if it knows that release.
const RDMA_CORE: &str = "44.0";

/// Where the bindings live, and where the assertions of their layouts do.
const BINDINGS: &str = "rdmalib/src/providers/verbs/bindings";
const WITNESS: &str = "tools/gate/verbs_witness/src";

/// Where the sizes and offsets are asserted. Elsewhere they follow from the same declarations.
const MACHINE: &str = "x86_64";

const HEADERS: &str = "#include <infiniband/verbs.h>\n#include <rdma/rdma_cma.h>\n";

const PACKAGES: &str = "Debian 12 has them in libibverbs-dev, librdmacm-dev and libclang1-14";

/// Functions of libibverbs. Those of the data path are not here: they are in `ibv_context_ops`.
const IBVERBS: &[&str] = &[
    "ibv_fork_init",
    "ibv_get_device_list",
    "ibv_free_device_list",
    "ibv_get_device_name",
    "ibv_open_device",
    "ibv_close_device",
    "ibv_query_device",
    "ibv_alloc_pd",
    "ibv_dealloc_pd",
    "ibv_reg_mr",
    "ibv_dereg_mr",
    "ibv_create_comp_channel",
    "ibv_destroy_comp_channel",
    "ibv_create_cq",
    "ibv_destroy_cq",
    "ibv_get_cq_event",
    "ibv_ack_cq_events",
    "ibv_create_qp",
    "ibv_modify_qp",
    "ibv_destroy_qp",
    "ibv_get_async_event",
    "ibv_ack_async_event",
    "ibv_event_type_str",
];

/// Functions of librdmacm.
const RDMACM: &[&str] = &[
    "rdma_create_event_channel",
    "rdma_destroy_event_channel",
    "rdma_create_id",
    "rdma_destroy_id",
    "rdma_bind_addr",
    "rdma_resolve_addr",
    "rdma_resolve_route",
    "rdma_connect",
    "rdma_establish",
    "rdma_listen",
    "rdma_accept",
    "rdma_reject",
    "rdma_notify",
    "rdma_disconnect",
    "rdma_get_cm_event",
    "rdma_ack_cm_event",
    "rdma_migrate_id",
    "rdma_init_qp_attr",
    "rdma_event_str",
    "rdma_get_src_port",
];

/// Types those functions take; what they are made of follows by itself.
const TYPES: &[&str] = &[
    "ibv_access_flags",
    "ibv_async_event",
    "ibv_comp_channel",
    "ibv_context",
    "ibv_cq",
    "ibv_device",
    "ibv_device_attr",
    "ibv_mr",
    "ibv_pd",
    "ibv_qp",
    "ibv_qp_attr",
    "ibv_qp_attr_mask",
    "ibv_qp_init_attr",
    "ibv_recv_wr",
    "ibv_send_flags",
    "ibv_send_wr",
    "ibv_sge",
    "ibv_wc",
    "ibv_wc_flags",
    "rdma_cm_event",
    "rdma_cm_id",
    "rdma_conn_param",
    "rdma_event_channel",
];

/// Types that are only ever pointed at, and have no fields here.
const FIELDLESS: &[&str] = &[
    "_compat_ibv_port_attr",
    "ibv_ah",
    "ibv_mw",
    "ibv_mw_bind",
    "ibv_sa_path_rec",
    "ibv_srq",
    "ibv_wq",
];

/// Objects that the libraries make and we hold pointers to: a copy would be meaningless.
const OBJECTS: &[&str] = &[
    "ibv_comp_channel",
    "ibv_context",
    "ibv_cq",
    "ibv_device",
    "ibv_mr",
    "ibv_pd",
    "ibv_qp",
    "rdma_cm_id",
    "rdma_event_channel",
];

/// Types of the C library, taken from the crate `libc`.
const LIBC: &[&str] = &[
    "pthread_cond_t",
    "pthread_mutex_t",
    "sockaddr",
    "sockaddr_in",
    "sockaddr_in6",
    "sockaddr_storage",
];

/// What only those types are made of.
const INNARDS: &[&str] = &[
    "__atomic_wide_counter.*",
    "__pthread_.*",
    "in6?_addr(_t|__.*)?",
    "in_port_t",
    "sa_family_t",
    "ibv_wq_(state|type)",
];

fn main() -> ExitCode {
    let check = match env::args().skip(1).collect::<Vec<_>>().as_slice() {
        [] => false,
        [flag] if flag == "--check" => true,
        _ => {
            eprintln!("usage: verbs_bindings [--check]");
            return ExitCode::from(2);
        }
    };
    match run(check) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// Whether what is committed is (now) what the headers say.
fn run(check: bool) -> Result<bool> {
    let include = require_headers()?;
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../..");
    let builder = || builder(include.as_deref());
    let (types, layouts) = types(builder())?;
    let files = [
        (BINDINGS, "types.rs", types),
        (WITNESS, "layouts.rs", layouts),
        (BINDINGS, "ibverbs.rs", functions(builder(), "Ibverbs", IBVERBS, &[])?),
        (BINDINGS, "rdmacm.rs", functions(builder(), "Rdmacm", RDMACM, &["use libc::sockaddr;"])?),
    ];
    let mut same = true;
    for (directory, name, text) in files {
        let path = root.join(directory).join(name);
        if !check {
            fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        } else if fs::read_to_string(&path).ok().as_deref() != Some(&text) {
            same = false;
            eprintln!("{directory}/{name} is not what the headers of rdma-core {RDMA_CORE} give");
        }
    }
    if !same {
        eprintln!("generate, and see `git diff {BINDINGS} {WITNESS}`:");
        eprintln!("    cargo run --locked --manifest-path tools/gate/verbs_bindings/Cargo.toml");
    }
    Ok(same)
}

/// Refuses to go on with other headers than those that were bound, or without libclang.
///
/// Returns where the C compiler keeps headers of its own (`stddef.h`): libclang is often installed
/// without its own.
fn require_headers() -> Result<Option<PathBuf>> {
    ensure!(
        env::consts::ARCH == MACHINE,
        "the assertions of layouts are those of {MACHINE}: generate there"
    );
    for header in ["infiniband/verbs.h", "rdma/rdma_cma.h"] {
        ensure!(
            Path::new("/usr/include").join(header).exists(),
            "no headers of rdma-core: /usr/include/{header} is missing; {PACKAGES}"
        );
    }
    let release = release()?;
    ensure!(
        release == RDMA_CORE,
        "the headers are rdma-core {release}'s, the bindings are generated from {RDMA_CORE}'s; {PACKAGES}"
    );
    ensure!(panic::catch_unwind(bindgen::clang_version).is_ok(), "no libclang; {PACKAGES}");
    let compiler = Command::new("cc").arg("-print-file-name=include").output();
    let include = compiler.ok().and_then(|output| String::from_utf8(output.stdout).ok());
    Ok(include.map(|path| PathBuf::from(path.trim())).filter(|path| path.is_absolute()))
}

/// The release of the headers: `44.0` if `libibverbs.pc` says `Version: 1.14.44.0`.
fn release() -> Result<String> {
    for library in ["/usr/lib/x86_64-linux-gnu", "/usr/lib64", "/usr/lib"] {
        let file = Path::new(library).join("pkgconfig/libibverbs.pc");
        let Ok(text) = fs::read_to_string(&file) else { continue };
        let version =
            text.lines().find_map(|line| line.strip_prefix("Version:")).unwrap_or_default();
        let Some((_, release)) =
            version.trim().split_once('.').and_then(|(_, rest)| rest.split_once('.'))
        else {
            bail!("{} does not say which release of rdma-core it belongs to", file.display());
        };
        return Ok(release.to_owned());
    }
    bail!("libibverbs.pc is missing, which says the release of rdma-core; {PACKAGES}")
}

/// What the files have in common.
fn builder(include: Option<&Path>) -> Builder {
    let builder = bindgen::builder()
        .header_contents("rdma_core.h", HEADERS)
        .parse_callbacks(Box::new(Libc))
        .rust_target(RustTarget::stable(95, 0).expect("a release that bindgen knows"))
        .rust_edition(RustEdition::Edition2024)
        .formatter(Formatter::Prettyplease)
        .disable_header_comment()
        .generate_comments(false)
        .wrap_unsafe_ops(true)
        .default_enum_style(EnumVariation::Consts) // integers: any value may come
        .prepend_enum_name(false)
        .derive_debug(true)
        .derive_default(true);
    match include {
        // After libclang's own, if it has any.
        Some(path) => builder.clang_arg("-idirafter").clang_arg(path.display().to_string()),
        None => builder,
    }
}

/// Returns the types, and the assertions of their layouts, which only the witness needs.
fn types(builder: Builder) -> Result<(String, String)> {
    let builder =
        [LIBC, FIELDLESS, INNARDS].concat().into_iter().fold(builder, Builder::blocklist_type);
    let builder = OBJECTS.iter().fold(builder, |builder, name| builder.no_copy(*name));
    let builder = TYPES.iter().fold(builder, Builder::allowlist_type);
    let builder = FIELDLESS.iter().fold(
        builder.raw_line(format!("use libc::{{{}}};", LIBC.join(", "))),
        |builder, name| {
            builder.raw_line(format!(
                "#[repr(C)]\n#[derive(Debug)]\npub struct {name} {{ _unused: [u8; 0] }}"
            ))
        },
    );
    let text = generate(builder)?;
    // `pthread_mutex_t`, and with it half of the layouts, is the machine's own.
    let ours = format!("#[cfg(target_arch = \"{MACHINE}\")]");
    let (mut types, mut layouts) = (Vec::new(), vec!["use super::ours::*;", ""]);
    let mut in_block = false;
    for line in text.lines() {
        if line == "const _: () = {" {
            let attribute = types.pop().context("bindgen wrote a block without its attribute")?;
            layouts.extend([&*ours, attribute]);
            in_block = true;
        }
        let part = if in_block { &mut layouts } else { &mut types };
        part.push(line);
        in_block &= line != "};";
    }
    ensure!(layouts.len() > 2, "bindgen wrote no assertion of a layout that we recognise");
    Ok((types.join("\n") + "\n", header() + &layouts.join("\n") + "\n"))
}

fn functions(builder: Builder, table: &str, names: &[&str], uses: &[&str]) -> Result<String> {
    let builder = builder
        .raw_line("use super::types::*;")
        .allowlist_recursively(false)
        .dynamic_library_name(table)
        .dynamic_link_require_all(true);
    let builder = uses.iter().fold(builder, |builder, line| builder.raw_line(*line));
    let builder = names.iter().fold(builder, Builder::allowlist_function);
    let text = generate(builder)?;
    for name in names {
        let symbol = format!("b\"{name}\\0\"");
        ensure!(text.contains(&symbol), "the headers declare no function {name}");
    }
    Ok(text)
}

fn generate(builder: Builder) -> Result<String> {
    let text = builder.generate().context("bindgen failed")?.to_string();
    Ok(header() + &text)
}

fn header() -> String {
    format!(
        "// SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause)\n\
         // Generated by bindgen 0.73 from the headers of rdma-core {RDMA_CORE}, used here under their BSD\n\
         // licence (LICENSE.rdma-core). Do not edit; to generate again:\n\
         //     cargo run --locked --manifest-path tools/gate/verbs_bindings/Cargo.toml\n\n"
    )
}

/// What bindgen cannot know about types it does not see.
#[derive(Debug)]
struct Libc;

impl ParseCallbacks for Libc {
    fn blocklisted_type_implements_trait(
        &self,
        name: &str,
        of: DeriveTrait,
    ) -> Option<ImplementsTrait> {
        let name = name.trim_start_matches("struct ");
        let derives = matches!(of, DeriveTrait::Copy | DeriveTrait::Debug) && LIBC.contains(&name);
        derives.then_some(ImplementsTrait::Yes)
    }
}
