//! The modules of the workspace, and which file a path leads to.
//!
//! A path is followed through re-exports to the file that defines what it names: `use crate::Error` of a crate whose
//! `lib.rs` says `pub use error::Error` leads to `error.rs`.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;

use crate::source::{self, Statements};

/// A target of a package: a library, a program.
#[derive(Clone, Debug)]
pub struct CrateRoot {
    /// What `use` calls it, if it is a library.
    pub library: Option<String>,
    /// The file that it begins with.
    pub root: PathBuf,
}

type ModuleId = usize;

#[derive(Debug)]
struct Module {
    file: PathBuf,
    parent: Option<ModuleId>,
    children: BTreeMap<String, ModuleId>,
    said: Statements,
}

/// An arrow from a file to one that it imports something of, or declares as its module.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Arrow {
    /// The file that imports.
    pub from: PathBuf,
    /// The file that defines what is imported.
    pub to: PathBuf,
    /// Line of the first import, in `from`.
    pub line: usize,
    /// It is declared, and nothing is imported.
    pub only_declared: bool,
}

/// All modules of the workspace.
#[derive(Debug, Default)]
pub struct Modules {
    root: PathBuf,
    modules: Vec<Module>,
    libraries: BTreeMap<String, ModuleId>,
    /// Modules, those that they declare, and where.
    declared: Vec<(ModuleId, ModuleId, usize)>,
}

/// Longest chain of re-exports that is followed: a circle of them ends there.
const LONGEST: usize = 32;

impl Modules {
    /// Reads `targets`, whose files are under `root`.
    pub fn read(root: &Path, targets: &[CrateRoot]) -> anyhow::Result<Self> {
        let mut all = Modules { root: root.to_owned(), ..Modules::default() };
        for target in targets {
            let directory = target.root.parent().unwrap_or(root);
            let id = all.add(None, target.root.clone(), directory, None)?;
            if let Some(name) = &target.library {
                all.libraries.insert(name.clone(), id);
            }
        }
        Ok(all)
    }

    /// Adds a module that says `said` or, if it is a whole file, what is in there, with its submodules: their files
    /// are in `directory`.
    fn add(
        &mut self,
        parent: Option<ModuleId>,
        file: PathBuf,
        directory: &Path,
        said: Option<Statements>,
    ) -> anyhow::Result<ModuleId> {
        let said = match said {
            Some(said) => said,
            None => fs::read_to_string(self.root.join(&file))
                .map_err(anyhow::Error::from)
                .and_then(|text| Ok(source::read(&text)?))
                .with_context(|| format!("{} cannot be read", file.display()))?,
        };
        let id = self.modules.len();
        self.modules.push(Module { file: file.clone(), parent, children: BTreeMap::new(), said });
        for (name, line, inside) in std::mem::take(&mut self.modules[id].said.modules) {
            let below = directory.join(&name);
            let mut places = [below.with_extension("rs"), below.join("mod.rs")].into_iter();
            let own = match &inside {
                Some(_) => file.clone(),
                None => places
                    .find(|place| self.root.join(place).is_file())
                    .with_context(|| format!("{}: module {name} has no file", file.display()))?,
            };
            let child = self.add(Some(id), own, &below, inside)?;
            self.modules[id].children.insert(name, child);
            self.declared.push((id, child, line));
        }
        Ok(id)
    }

    fn root_of(&self, mut id: ModuleId) -> ModuleId {
        while let Some(parent) = self.modules[id].parent {
            id = parent;
        }
        id
    }

    /// All arrows between files, sorted; one for each pair.
    pub fn arrows(&self) -> Vec<Arrow> {
        let mut found: BTreeMap<(PathBuf, PathBuf), (bool, usize)> = BTreeMap::new();
        let mut arrow = |from: ModuleId, to: ModuleId, line: usize, only_declared: bool| {
            let (from, to) = (&self.modules[from].file, &self.modules[to].file);
            if from != to {
                let entry =
                    found.entry((from.clone(), to.clone())).or_insert((only_declared, line));
                *entry = (*entry).min((only_declared, line));
            }
        };
        for (id, module) in self.modules.iter().enumerate() {
            for (path, line) in &module.said.paths {
                if let Some(to) = self.resolve(id, path, 0) {
                    arrow(id, to, *line, false);
                }
            }
        }
        for (parent, child, line) in &self.declared {
            arrow(*parent, *child, *line, true);
        }
        found
            .into_iter()
            .map(|((from, to), (only_declared, line))| Arrow { from, to, line, only_declared })
            .collect()
    }

    /// The module that defines what `path` names when module `id` says it; `None` if that is none of ours.
    fn resolve(&self, id: ModuleId, path: &[String], depth: usize) -> Option<ModuleId> {
        if depth > LONGEST {
            return None;
        }
        let (first, rest) = path.split_first()?;
        match first.as_str() {
            "crate" => self.walk(self.root_of(id), rest, depth),
            "self" => self.walk(id, rest, depth),
            "super" => {
                let (mut at, mut rest) = (self.modules[id].parent?, rest);
                while let Some(("super", more)) = rest.split_first().map(|(f, m)| (f.as_str(), m)) {
                    (at, rest) = (self.modules[at].parent?, more);
                }
                self.walk(at, rest, depth)
            }
            name => {
                let module = &self.modules[id];
                if module.children.contains_key(name) {
                    return self.walk(id, path, depth);
                }
                // A name that is imported as itself (`use serde;`) leads nowhere here.
                let imported = module
                    .said
                    .imports
                    .iter()
                    .find(|(known, path)| known == name && *path != [name]);
                if let Some((_, to)) = imported {
                    return self.resolve(id, &[to, rest].concat(), depth + 1);
                }
                self.walk(*self.libraries.get(name)?, rest, depth)
            }
        }
    }

    /// The same for a path that begins in module `id`.
    fn walk(&self, mut id: ModuleId, path: &[String], depth: usize) -> Option<ModuleId> {
        for (at, name) in path.iter().enumerate() {
            let module = &self.modules[id];
            if let Some(child) = module.children.get(name) {
                id = *child;
                continue;
            }
            if module.said.defines.contains(name) {
                return Some(id);
            }
            let rest = &path[at + 1..];
            let imported = module
                .said
                .imports
                .iter()
                .find(|(known, to)| known == name && *to != [name.clone()]);
            if let Some((_, to)) = imported {
                // What is re-exported from a crate that is not ours counts as this module's.
                return self.resolve(id, &[to, rest].concat(), depth + 1).or(Some(id));
            }
            let globs = module.said.imports.iter().filter(|(known, _)| known == "*");
            let mut from_globs = globs
                .filter_map(|(_, to)| self.resolve(id, to, depth + 1))
                .filter(|target| *target != id && self.provides(*target, name, depth + 1));
            if let Some(target) = from_globs.next() {
                return self.walk(target, &path[at..], depth + 1);
            }
            return Some(id);
        }
        Some(id)
    }

    fn provides(&self, id: ModuleId, name: &str, depth: usize) -> bool {
        let module = &self.modules[id];
        depth <= LONGEST
            && (module.children.contains_key(name)
                || module.said.defines.contains(name)
                || module.said.imports.iter().any(|(known, _)| known == name))
    }
}
