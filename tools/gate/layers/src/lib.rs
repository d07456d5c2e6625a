//! Who imports whom: crates from `cargo metadata`, files from their `use` and `mod` lines and the paths in their code;
//! and whether that is what `layers.rules` allows.
//!
//! ```text
//!   source text ─ source ─▶ what a file says ─ modules ─▶ arrows from file to file ─ rules ─▶ what is broken
//! ```

mod modules;
mod rules;
mod source;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, bail};
use serde_json::Value;

pub use modules::{Arrow, CrateRoot, Modules};
pub use rules::Rules;

/// Members of a workspace, each with the members that it depends on.
pub type Crates = BTreeMap<String, BTreeSet<String>>;

/// Members of the workspace at `root`, and the arrows between their files.
pub fn workspace(root: &Path) -> anyhow::Result<(Crates, Vec<Arrow>)> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let told = Command::new(cargo)
        .args(["metadata", "--format-version", "1", "--no-deps"])
        .current_dir(root)
        .output()
        .context("cargo metadata cannot be started")?;
    if !told.status.success() {
        bail!("cargo metadata: {}", String::from_utf8_lossy(&told.stderr).trim());
    }
    let metadata: Value = serde_json::from_slice(&told.stdout).context("cargo metadata")?;
    let mut crates = Crates::new();
    let mut targets = Vec::new();
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    for package in list(&metadata["packages"]) {
        let name = text(&package["name"]);
        let uses = list(&package["dependencies"]);
        // Those of tests too; a crate may test itself with other features.
        let uses =
            uses.iter().filter(|used| used["path"].is_string()).map(|used| text(&used["name"]));
        crates.insert(name.clone(), uses.filter(|used| *used != name).collect());
        for target in list(&package["targets"]) {
            let kinds: Vec<String> = list(&target["kind"]).iter().map(text).collect();
            let file = text(&target["src_path"]);
            let file = Path::new(&file).strip_prefix(root).unwrap_or(Path::new(&file)).to_owned();
            let is_library = kinds.iter().any(|kind| kind.ends_with("lib"));
            if is_library || kinds.iter().any(|kind| kind == "bin") {
                let library = is_library.then(|| text(&target["name"]).replace('-', "_"));
                targets.push(CrateRoot { library, root: file });
            }
        }
    }
    let arrows = Modules::read(root, &targets)?.arrows();
    Ok((crates, arrows))
}
