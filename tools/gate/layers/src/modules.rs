//! The modules of the workspace, and which file a path leads to.
//!
//! A path is followed through re-exports to the file that defines what it names: `use crate::Error` of a crate whose
//! `lib.rs` says `pub use error::Error` leads to `error.rs`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

use crate::source::{self, Item, Said};

/// A target of a package: a library, a program.
#[derive(Clone, Debug)]
pub struct Target {
    /// What `use` calls it, if it is a library.
    pub library: Option<String>,
    /// The file that it begins with.
    pub root: PathBuf,
}

type Id = usize;

#[derive(Debug, Default)]
struct Module {
    file: PathBuf,
    parent: Option<Id>,
    children: BTreeMap<String, Id>,
    /// What it defines itself.
    defines: BTreeSet<String>,
    /// What it imports: name and path.
    imports: Vec<(String, Vec<String>)>,
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
    libraries: BTreeMap<String, Id>,
    /// What each module says of others, and where.
    said: Vec<(Id, Said)>,
    declared: Vec<(Id, Id, usize)>,
}

/// Longest chain of re-exports that is followed: a circle of them ends there.
const LONGEST: usize = 32;

impl Modules {
    /// Reads `targets`, whose files are under `root`.
    pub fn read(root: &Path, targets: &[Target]) -> anyhow::Result<Self> {
        let mut all = Modules { root: root.to_owned(), ..Modules::default() };
        for target in targets {
            let id = all.add(None, target.root.clone());
            if let Some(name) = &target.library {
                all.libraries.insert(name.clone(), id);
            }
            let directory = target.root.parent().unwrap_or(root).to_owned();
            all.load(id, &directory)?;
        }
        Ok(all)
    }

    fn add(&mut self, parent: Option<Id>, file: PathBuf) -> Id {
        self.modules.push(Module { file, parent, ..Module::default() });
        self.modules.len() - 1
    }

    /// Reads the file of module `id`, whose submodules are in `directory`.
    fn load(&mut self, id: Id, directory: &Path) -> anyhow::Result<()> {
        let file = self.modules[id].file.clone();
        let text = fs::read_to_string(self.root.join(&file))
            .with_context(|| format!("{} cannot be read", file.display()))?;
        let mut inline: BTreeMap<Vec<String>, Id> = BTreeMap::from([(Vec::new(), id)]);
        for said in source::read(&text) {
            let within = inline[&said.within];
            let line = said.line;
            match said.item {
                Item::Module { ref name, ref path } => {
                    let directory = said.within.iter().fold(directory.to_owned(), |d, m| d.join(m));
                    let (file, below) = self.file_of(&file, &directory, name, path.as_deref())?;
                    let child = self.add(Some(within), file);
                    self.modules[within].children.insert(name.clone(), child);
                    self.declared.push((within, child, line));
                    self.load(child, &below)?;
                }
                Item::InlineModule { name } => {
                    let child = self.add(Some(within), file.clone());
                    self.modules[within].children.insert(name.clone(), child);
                    inline.insert([said.within, vec![name]].concat(), child);
                }
                Item::Definition { name, exported } => {
                    if exported {
                        let root = self.root_of(within);
                        let path = self.path_of(within, &name);
                        self.modules[root].imports.push((name.clone(), path));
                    }
                    self.modules[within].defines.insert(name);
                }
                Item::Use { ref path, ref name } => {
                    self.modules[within].imports.push((name.clone(), path.clone()));
                    self.said.push((within, said));
                }
                Item::Mention { .. } => self.said.push((within, said)),
            }
        }
        Ok(())
    }

    /// The file of module `name` declared in `file`, and the directory of its own submodules.
    fn file_of(
        &self,
        file: &Path,
        directory: &Path,
        name: &str,
        path: Option<&str>,
    ) -> anyhow::Result<(PathBuf, PathBuf)> {
        if let Some(path) = path {
            let found = normal(&file.parent().unwrap_or(Path::new("")).join(path));
            let below = found.parent().unwrap_or(Path::new("")).to_owned();
            return Ok((found, below));
        }
        let below = directory.join(name);
        for found in [directory.join(format!("{name}.rs")), below.join("mod.rs")] {
            if self.root.join(&found).is_file() {
                return Ok((found, below));
            }
        }
        bail!("{}: module {name} has no file", file.display())
    }

    fn root_of(&self, mut id: Id) -> Id {
        while let Some(parent) = self.modules[id].parent {
            id = parent;
        }
        id
    }

    /// `crate::…::name` of what module `id` has as `name`.
    fn path_of(&self, mut id: Id, name: &str) -> Vec<String> {
        let mut path = vec![name.to_owned()];
        while let Some(parent) = self.modules[id].parent {
            let own = self.modules[parent].children.iter().find(|(_, child)| **child == id);
            path.extend(own.map(|(name, _)| name.clone()));
            id = parent;
        }
        path.push("crate".into());
        path.reverse();
        path
    }

    /// All arrows between files, sorted; one for each pair.
    pub fn arrows(&self) -> Vec<Arrow> {
        let mut found: BTreeMap<(PathBuf, PathBuf), (bool, usize)> = BTreeMap::new();
        let mut arrow = |from: Id, to: Id, line: usize, only_declared: bool| {
            let (from, to) = (&self.modules[from].file, &self.modules[to].file);
            if from != to {
                let entry =
                    found.entry((from.clone(), to.clone())).or_insert((only_declared, line));
                *entry = (*entry).min((only_declared, line));
            }
        };
        for (id, said) in &self.said {
            let to = match &said.item {
                Item::Use { path, .. } | Item::Mention { path } => self.resolve(*id, path, 0),
                _ => None,
            };
            if let Some(to) = to {
                arrow(*id, to, said.line, false);
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
    fn resolve(&self, id: Id, path: &[String], depth: usize) -> Option<Id> {
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
                let imported =
                    module.imports.iter().find(|(known, path)| known == name && *path != [name]);
                if let Some((_, to)) = imported {
                    return self.resolve(id, &[to, rest].concat(), depth + 1);
                }
                self.walk(*self.libraries.get(name)?, rest, depth)
            }
        }
    }

    /// The same for a path that begins in module `id`.
    fn walk(&self, mut id: Id, path: &[String], depth: usize) -> Option<Id> {
        for (at, name) in path.iter().enumerate() {
            let module = &self.modules[id];
            if let Some(child) = module.children.get(name) {
                id = *child;
                continue;
            }
            if module.defines.contains(name) {
                return Some(id);
            }
            let rest = &path[at + 1..];
            let imported =
                module.imports.iter().find(|(known, to)| known == name && *to != [name.clone()]);
            if let Some((_, to)) = imported {
                // What is re-exported from a crate that is not ours counts as this module's.
                return self.resolve(id, &[to, rest].concat(), depth + 1).or(Some(id));
            }
            let globs = module.imports.iter().filter(|(known, _)| known == "*");
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

    fn provides(&self, id: Id, name: &str, depth: usize) -> bool {
        let module = &self.modules[id];
        depth <= LONGEST
            && (module.children.contains_key(name)
                || module.defines.contains(name)
                || module.imports.iter().any(|(known, _)| known == name))
    }
}

/// `a/b/../c` as `a/c`.
fn normal(path: &Path) -> PathBuf {
    let mut normal = PathBuf::new();
    for part in path.components() {
        match part.as_os_str().to_str() {
            Some("..") => {
                normal.pop();
            }
            Some(".") => {}
            _ => normal.push(part),
        }
    }
    normal
}
