//! Checks the layers of the workspace in the current directory; `--print` prints who imports whom instead.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, bail};

const USAGE: &str = "usage: layers [--print | RULES]";

fn main() -> anyhow::Result<ExitCode> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let root = std::env::current_dir()?.canonicalize()?;
    let (crates, arrows) = layers::workspace(&root)?;
    let mut out = std::io::stdout().lock();
    let rules: PathBuf = match &arguments[..] {
        [flag] if flag == "--print" => {
            for (name, used) in
                crates.iter().flat_map(|(name, uses)| uses.iter().map(move |u| (name, u)))
            {
                writeln!(out, "crate {name} -> {used}")?;
            }
            for arrow in &arrows {
                let how = if arrow.only_declared { " (declared)" } else { "" };
                writeln!(out, "{} -> {}{how}", arrow.from.display(), arrow.to.display())?;
            }
            return Ok(ExitCode::SUCCESS);
        }
        [file] if !file.starts_with('-') => file.into(),
        [] => "tools/gate/layers.rules".into(),
        _ => bail!(USAGE),
    };
    let text = std::fs::read_to_string(&rules).with_context(|| rules.display().to_string())?;
    let rules = layers::Rules::parse(&text).with_context(|| rules.display().to_string())?;
    let broken = rules.broken(&crates, &arrows);
    for line in &broken {
        writeln!(out, "{line}")?;
    }
    Ok(ExitCode::from(u8::from(!broken.is_empty())))
}
