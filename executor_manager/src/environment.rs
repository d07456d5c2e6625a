//! The environment of executors, by allow-list: what a shell gives every program, and what libraries for
//! computing read. Functions are foreign code, and environments hold secrets: the cluster's, and tokens
//! and keys of the user who started the manager.
//!
//! Elsewhere: the setting `executor.environment`, which adds names (`rfaas_config`).

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

use rfaas_config::SECRET_VARIABLE;

/// Variables that executors get, if the manager has them; `docs/configuration.md` lists them.
const NAMES: [&str; 22] = [
    "PATH",
    "HOME",
    "USER",
    "LOGNAME",
    "SHELL",
    "LANG",
    "LANGUAGE",
    "TZ",
    "TZDIR",
    "TMPDIR",
    "LD_LIBRARY_PATH",
    "GLIBC_TUNABLES",
    "CUDA_VISIBLE_DEVICES",
    "NVIDIA_VISIBLE_DEVICES",
    "ROCR_VISIBLE_DEVICES",
    "HIP_VISIBLE_DEVICES",
    "ZE_AFFINITY_MASK",
    "NO_COLOR",
    // The executor's own: what it logs, and faults that tests ask for (no effect in programs for use).
    "RUST_LOG",
    "RUST_BACKTRACE",
    "RDMALIB_FAULTS",
    // rdma-core's, which the executor loads.
    "IBV_CONFIG_DIR",
];

/// Beginnings of such names: the locale; OpenMP and its implementations; BLAS libraries; allocators; drivers of
/// rdma-core.
const PREFIXES: [&str; 14] = [
    "LC_",
    "OMP_",
    "GOMP_",
    "KMP_",
    "LIBOMP_",
    "MKL_",
    "OPENBLAS_",
    "GOTO_",
    "BLIS_",
    "NUMEXPR_",
    "MALLOC_",
    "RDMAV_",
    "MLX4_",
    "MLX5_",
];

/// The variables of this process that its executors get, those named `more` too.
pub fn of_executors(more: &[String]) -> Vec<(OsString, OsString)> {
    std::env::vars_os().filter(|(name, _)| passes(name, more)).collect()
}

fn passes(name: &OsStr, more: &[String]) -> bool {
    name != SECRET_VARIABLE // whatever the lists say
        && (NAMES.iter().any(|listed| name == *listed)
            || PREFIXES.iter().any(|prefix| name.as_bytes().starts_with(prefix.as_bytes()))
            || more.iter().any(|listed| name == listed.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_listed_passes_and_nothing_else() {
        let more = ["SCRATCH".to_owned(), SECRET_VARIABLE.to_owned()];
        for name in ["PATH", "LC_ALL", "OMP_NUM_THREADS", "MKL_DYNAMIC", "SCRATCH"] {
            assert!(passes(name.as_ref(), &more), "{name}");
        }
        for name in [SECRET_VARIABLE, "AWS_SECRET_ACCESS_KEY", "SCRATCHES", "PAT", "OMP", ""] {
            assert!(!passes(name.as_ref(), &more), "{name}");
        }
    }

    #[test]
    fn every_name_is_explained() {
        let path =
            std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/configuration.md");
        let text = std::fs::read_to_string(path).unwrap();
        let stars = PREFIXES.iter().map(|prefix| format!("`{prefix}*`"));
        for name in NAMES.iter().map(|name| format!("`{name}`")).chain(stars) {
            assert!(text.contains(&name), "{name} is not in docs/configuration.md");
        }
    }
}
