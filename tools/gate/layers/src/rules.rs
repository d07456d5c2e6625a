//! The rules, as `layers.rules` has them, and what breaks them.
//!
//! ```text
//!   crates                        layers of crates, the lowest first: one may use those below it
//!     a
//!     b c | d                       … and those of its group: b and c may use each other, neither may use d
//!   never a b: c d                a and b use neither c nor d, although these are below them
//!   modules some/src              the same for the files of a directory: `x` is x.rs and what is in x/
//!     x
//!     *                             all that is not named
//!   acyclic some/src              no circle of files, where a declaration (`mod x;`) counts as an import
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

use crate::modules::Arrow;

/// One layer: groups that do not use each other, each of one or several names. `*` is what no other group names.
type Layer = Vec<Vec<String>>;

/// All rules.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Rules {
    crates: Vec<Layer>,
    /// A crate, and one that it does not use.
    never: Vec<(String, String)>,
    /// Directories of modules, and their layers.
    modules: Vec<(PathBuf, Vec<Layer>)>,
    /// Directories whose files have no circle.
    acyclic: Vec<PathBuf>,
}

impl Rules {
    /// Reads them.
    pub fn parse(text: &str) -> anyhow::Result<Self> {
        let mut rules = Rules::default();
        let mut layers: Option<&mut Vec<Layer>> = None;
        for (number, line) in (1..).zip(text.lines()) {
            let line = line.split('#').next().unwrap_or_default();
            let words: Vec<&str> = line.split_whitespace().collect();
            if line.starts_with(char::is_whitespace) && !words.is_empty() {
                let layers =
                    layers.as_mut().with_context(|| format!("line {number}: a layer of what?"))?;
                let groups = line.split('|');
                layers.push(
                    groups.map(|g| g.split_whitespace().map(str::to_owned).collect()).collect(),
                );
                continue;
            }
            match words[..] {
                [] => {}
                ["crates"] => layers = Some(&mut rules.crates),
                ["modules", directory] => {
                    rules.modules.push((directory.into(), Vec::new()));
                    layers = rules.modules.last_mut().map(|(_, layers)| layers);
                }
                ["never", ..] => rules
                    .never
                    .extend(pairs(line).with_context(|| format!("line {number}: never a b: c d"))?),
                ["acyclic", directory] => rules.acyclic.push(directory.into()),
                _ => bail!("line {number}: {line:?} is no rule"),
            }
        }
        Ok(rules)
    }

    /// What breaks them, a line each. `crates` are the members of the workspace, each with those that it depends on.
    pub fn broken(
        &self,
        crates: &BTreeMap<String, BTreeSet<String>>,
        arrows: &[Arrow],
    ) -> Vec<String> {
        let mut broken = self.broken_by_crates(crates);
        for (directory, layers) in &self.modules {
            broken.extend(broken_by_modules(directory, layers, arrows));
        }
        for directory in &self.acyclic {
            broken.extend(circles(directory, arrows));
        }
        broken
    }

    fn broken_by_crates(&self, crates: &BTreeMap<String, BTreeSet<String>>) -> Vec<String> {
        let place = |name: &str| place(&self.crates, |known| known == name);
        let mut broken = Vec::new();
        for (name, uses) in crates {
            let Some(from) = place(name) else {
                broken.push(format!("crate {name} is in no layer"));
                continue;
            };
            for used in uses {
                if place(used).is_some_and(|to| !may_use(from, to)) {
                    broken.push(format!("crate {name} depends on {used}, which is not below it"));
                }
                if self.never.contains(&(name.clone(), used.clone())) {
                    broken.push(format!("crate {name} depends on {used}, which it never may"));
                }
            }
        }
        for (name, used) in &self.never {
            for unknown in [name, used].into_iter().filter(|name| !crates.contains_key(*name)) {
                broken.push(format!("`never` names {unknown}, which is no crate"));
            }
        }
        broken
    }
}

/// All pairs of `never a b: c d`.
fn pairs(line: &str) -> Option<Vec<(String, String)>> {
    let (users, used) = line.strip_prefix("never")?.split_once(':')?;
    let of = |user: &str| {
        used.split_whitespace()
            .map(move |used| (user.to_owned(), used.to_owned()))
            .collect::<Vec<_>>()
    };
    let pairs: Vec<_> = users.split_whitespace().flat_map(of).collect();
    (!pairs.is_empty()).then_some(pairs)
}

/// Layer and group of the first that names it; of `*` if none does.
fn place(layers: &[Layer], names: impl Fn(&str) -> bool) -> Option<(usize, usize)> {
    let groups = || {
        layers.iter().enumerate().flat_map(|(at, layer)| {
            layer.iter().enumerate().map(move |(group, all)| ((at, group), all))
        })
    };
    let named = groups().find(|(_, group)| group.iter().any(|name| names(name)));
    named
        .or_else(|| groups().find(|(_, group)| group.iter().any(|name| name == "*")))
        .map(|(at, _)| at)
}

fn may_use(from: (usize, usize), to: (usize, usize)) -> bool {
    to.0 < from.0 || to == from
}

fn broken_by_modules(directory: &Path, layers: &[Layer], arrows: &[Arrow]) -> Vec<String> {
    let place = |file: &Path| {
        let file = file.strip_prefix(directory).ok()?;
        let stem = file.with_extension("");
        Some(place(layers, |name| stem == Path::new(name) || file.starts_with(name)))
    };
    let mut broken = Vec::new();
    let mut unknown = BTreeSet::new();
    for arrow in arrows {
        let (Some(from), Some(to)) = (place(&arrow.from), place(&arrow.to)) else { continue };
        match (from, to) {
            (Some(from), Some(to)) if !may_use(from, to) => broken.push(format!(
                "{}:{} imports {}, which is not below it",
                arrow.from.display(),
                arrow.line,
                arrow.to.display()
            )),
            (Some(_), Some(_)) => {}
            (None, _) => {
                unknown.insert(&arrow.from);
            }
            (_, None) => {
                unknown.insert(&arrow.to);
            }
        }
    }
    broken.extend(unknown.iter().map(|file| format!("{} is in no layer", file.display())));
    if !arrows.iter().any(|arrow| arrow.from.starts_with(directory)) {
        broken.push(format!("{} has no modules", directory.display()));
    }
    broken
}

/// The circles of files in `directory`, each once.
fn circles(directory: &Path, arrows: &[Arrow]) -> Vec<String> {
    let mut next: BTreeMap<&Path, Vec<&Path>> = BTreeMap::new();
    for arrow in arrows {
        if arrow.from.starts_with(directory) && arrow.to.starts_with(directory) {
            next.entry(&arrow.from).or_default().push(&arrow.to);
        }
    }
    if next.is_empty() {
        return vec![format!("{} has no modules", directory.display())];
    }
    let mut told = BTreeSet::new();
    let mut found = Vec::new();
    for start in next.keys() {
        let Some(circle) = way_back(start, &next) else { continue };
        let members: BTreeSet<&Path> = circle.iter().copied().collect();
        if members.is_disjoint(&told) {
            let names: Vec<String> = circle.iter().map(|file| file.display().to_string()).collect();
            found.push(format!("a circle: {} -> {}", names.join(" -> "), start.display()));
        }
        told.extend(members);
    }
    found
}

/// A shortest way from `start` to itself.
fn way_back<'a>(
    start: &'a Path,
    next: &BTreeMap<&'a Path, Vec<&'a Path>>,
) -> Option<Vec<&'a Path>> {
    let mut ways = std::collections::VecDeque::from([vec![start]]);
    let mut seen = BTreeSet::new();
    while let Some(way) = ways.pop_front() {
        for to in next.get(way.last()?).into_iter().flatten() {
            if *to == start {
                return Some(way);
            }
            if seen.insert(*to) {
                ways.push_back([way.as_slice(), &[*to]].concat());
            }
        }
    }
    None
}
