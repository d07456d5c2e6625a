//! A graph as text.

use std::fmt;

use super::description::{EdgeKind, Graph, Join};

/// What leads where, a line for each way, and then what functions are. Names are those in the libraries; where several
/// functions have the same, with a number.
///
/// ```
/// let mut graph = rfaas::Graph::new();
/// let split = graph.function("libwords.so", "split");
/// let count = graph.function("libwords.so", "count");
/// graph.workers(count, 4).input(split, 1024).keyed(split, count, 2048).output(count, 64);
/// assert_eq!(
///     graph.to_string(),
///     "input ──▶ split  1024 bytes\n\
///      split ──▶ count  2048 bytes, by key\n\
///      count ──▶ output 0 to 3  64 bytes\n\
///      \n\
///      split  libwords.so\n\
///      count  libwords.so, 4 workers\n"
/// );
/// ```
impl fmt::Display for Graph {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = |function: usize| match self.functions.get(function) {
            None => "a function of another graph".to_owned(),
            Some(described) => {
                let same = |other: &&super::description::Described| other.name == described.name;
                match self.functions.iter().filter(same).count() {
                    1 => described.name.clone(),
                    _ => {
                        let before = self.functions.iter().take(function).filter(same).count();
                        format!("{}#{}", described.name, before + 1)
                    }
                }
            }
        };
        for input in &self.inputs {
            writeln!(f, "input ──▶ {}  {} bytes", name(input.function), input.bytes)?;
        }
        for edge in &self.edges {
            write!(f, "{} ──▶ {}  {} bytes", name(edge.from), name(edge.to), edge.bytes)?;
            match edge.kind {
                EdgeKind::Whole => writeln!(f)?,
                EdgeKind::Each => writeln!(f, ", item by item")?,
                EdgeKind::Keyed => writeln!(f, ", by key")?,
                EdgeKind::Call(answer) => writeln!(f, ", a call; {answer} bytes of answer")?,
            }
        }
        let mut number = 0;
        for output in &self.outputs {
            let workers =
                self.functions.get(output.function).map_or(1, |described| described.workers);
            write!(f, "{} ──▶ output {number}", name(output.function))?;
            if workers > 1 {
                write!(f, " to {}", number + workers - 1)?;
            }
            writeln!(f, "  {} bytes", output.bytes)?;
            number += workers;
        }
        writeln!(f)?;
        for (function, described) in self.functions.iter().enumerate() {
            write!(f, "{}  {}", name(function), described.library.display())?;
            match described.shares {
                Some(with) => write!(f, ", on the worker of {}", name(with))?,
                None if described.workers != 1 => write!(f, ", {} workers", described.workers)?,
                None => {}
            }
            match described.join {
                Join::All => {}
                Join::Of(inputs) => write!(f, ", called with {inputs} inputs")?,
                Join::Any => write!(f, ", called with each input until it has a value")?,
            }
            if let Some(within) = described.within {
                write!(f, ", within {} ms", within.as_millis())?;
            }
            if described.sends {
                write!(f, ", sends before it returns")?;
            }
            if let Some((most, wait)) = described.batch {
                write!(f, ", takes up to {most} runs at once")?;
                if !wait.is_zero() {
                    write!(f, ", which wait for {} µs", wait.as_micros())?;
                }
            }
            if described.again {
                write!(f, ", may be called again")?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}
