//! The table: a row for each attack, and whether it was contained.

use std::process::Command;
use std::time::Duration;

use testkit::Options;

use crate::attacks::{ATTACKS, Attack, Harm, Input};
use crate::scene::Scene;

/// Environment variables: of whom the table is; which attacks, if not all: names that contain this.
const TABLE: &str = "HOSTILE_TABLE";
const ONLY: &str = "HOSTILE_ONLY";

/// What executors are isolated by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isolation {
    /// Nothing but being a process.
    None,
    /// All layers that this kernel offers.
    Sandbox,
}

impl Isolation {
    pub const ALL: [Isolation; 2] = [Isolation::None, Isolation::Sandbox];

    /// What its table shows.
    pub fn fact(self) -> &'static str {
        match self {
            Isolation::None => "without_isolation_only_what_is_said_to_escape_escapes",
            Isolation::Sandbox => "in_the_sandbox_only_what_no_layer_contains_escapes",
        }
    }

    fn name(self) -> &'static str {
        match self {
            Isolation::None => "none",
            Isolation::Sandbox => "sandbox",
        }
    }

    /// Has a cluster isolate its executors so.
    pub fn apply(self, options: Options) -> Options {
        let isolation = match self {
            Isolation::None => rfaas_config::Isolation::None,
            Isolation::Sandbox => rfaas_config::Isolation::Sandbox,
        };
        Options { isolation, ..options }
    }

    /// Tells `command` that its process is to print this table.
    pub fn tell(self, command: &mut Command) {
        command.env(TABLE, self.name());
    }

    /// The one that this process is to print.
    pub fn wanted() -> Option<Self> {
        let wanted = std::env::var(TABLE).ok()?;
        Isolation::ALL.into_iter().find(|isolation| isolation.name() == wanted)
    }
}

/// What came of an attack.
pub struct Row {
    pub attack: &'static Attack,
    /// What its client got, after how long, and what the function says that it did.
    pub got: String,
    pub after: String,
    pub answer: String,
    /// What managers, neighbour, next client and its own client suffered.
    pub harm: Vec<String>,
    /// What was left.
    pub left: Vec<String>,
    /// The neighbour's meanwhile.
    pub p99: Option<Duration>,
}

impl Row {
    /// Whether it was not contained.
    fn escaped(&self) -> bool {
        !self.left.is_empty() || self.reached().is_some()
    }

    /// What it did besides what it left.
    fn reached(&self) -> Option<String> {
        let mut why = self.harm.clone();
        if self.attack.harm == Harm::Did && self.answer.starts_with("did") {
            why.push(self.answer.clone());
        }
        if !self.attack.sees.iter().any(|sees| self.got.starts_with(sees)) {
            why.push(format!("its client may get {:?}", self.attack.sees));
        }
        (!why.is_empty()).then(|| why.join("; "))
    }

    /// What it says that it was refused.
    fn said(&self) -> String {
        let refused = self.answer.starts_with("refused");
        if refused { self.answer.clone() } else { String::new() }
    }

    fn columns(&self) -> [String; 6] {
        let name = self.attack.name.to_lowercase();
        let constructor = self.attack.input == Input::Load;
        let left = if self.left.is_empty() { "nothing".into() } else { self.left.join(", ") };
        let escaped = if self.escaped() { "NO" } else { "yes" };
        [
            if constructor { format!("a constructor {name}") } else { name },
            self.got.clone(),
            self.after.clone(),
            left,
            shown(self.p99),
            [escaped, &self.reached().unwrap_or_else(|| self.said())].join(" ").trim().into(),
        ]
    }
}

fn shown(time: Option<Duration>) -> String {
    time.map_or_else(|| "-".into(), |time| format!("{time:.1?}"))
}

/// Runs as process 1 of a namespace of its own: prints the table, and fails if it is not as it should be.
pub fn act(isolation: Isolation) {
    assert_eq!(std::process::id(), 1, "functions kill everything that is not process 1");
    let only = std::env::var(ONLY).unwrap_or_default();
    let mut scene = Scene::start(isolation);
    let peace = scene.in_peace();
    let (settled, layers) = (scene.settled().to_owned(), scene.layers().to_vec());
    let chosen = ATTACKS.iter().filter(|attack| attack.name.contains(&only));
    let rows: Vec<Row> = chosen.map(|attack| scene.row(attack)).collect();
    scene.end();

    println!("\nhostile functions, isolation: {} ({})", isolation.name(), layers.join(", "));
    println!("the neighbour {settled}; its p99 in peace: {}", shown(peace));
    print(&rows);
    let escapes = |row: &&Row| row.escaped();
    let unexpected: Vec<&str> = rows
        .iter()
        .filter(escapes)
        .filter(|row| row.attack.is_contained_by(&layers))
        .map(|row| row.attack.name)
        .collect();
    let escaped = rows.iter().filter(escapes).count();
    println!("{} of {} contained", rows.len() - escaped, rows.len());
    assert!(!rows.is_empty(), "no attack has {only:?} in its name");
    assert!(unexpected.is_empty(), "not contained: {unexpected:?}");
}

fn print(rows: &[Row]) {
    let titles = ["function", "its client got", "after", "left", "neighbour's p99", "contained"];
    let lines: Vec<[String; 6]> = rows.iter().map(Row::columns).collect();
    let width = |column: usize| {
        let longest = lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
        longest.max(titles[column].len())
    };
    let print = |line: &[String; 6]| {
        let columns = line.iter().enumerate();
        let columns: Vec<_> = columns.map(|(i, text)| format!("{text:<0$}", width(i))).collect();
        println!("  {}", columns.join("  ").trim_end());
    };
    print(&titles.map(String::from));
    lines.iter().for_each(print);
}
