//! The report of a benchmark: a table or one JSON object, and every sample as CSV.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use rfaas::Bill;
use rfaas_program::{Failure, print};
use serde_json::{Map, Value, json};

use crate::cli::{Measure, Printing};
use crate::machine::Machine;
use crate::plan::RunPlan;
use crate::samples::{Samples, Statistics};

/// Results, as they are collected.
#[derive(Debug)]
pub struct Report {
    json: Map<String, Value>,
    title: String,
    rows: Vec<(String, Statistics<u64>)>,
}

impl Report {
    /// A report of `benchmark`, with what every one says about its run; `function` is what was called, if
    /// anything.
    pub fn new(benchmark: &str, plan: &RunPlan, function: Option<&str>) -> Self {
        let device = &plan.device.device;
        let machine = Machine::this();
        let mode = match plan.hot_timeout_ms {
            -1 => "hot".to_owned(),
            0 => "warm".to_owned(),
            ms => format!("hot for {ms} ms"),
        };
        let title = format!(
            "{benchmark}: {}{} bytes, {mode}, {} repetitions\ndevice {} ({}) on {machine}",
            function.map(|name| format!("{name}, ")).unwrap_or_default(),
            plan.payload_bytes,
            plan.repetitions,
            device.name(),
            device.provider(),
        );
        let mut report = Report { json: Map::new(), title, rows: Vec::new() };
        report.set("benchmark", benchmark);
        report.set("provider", device.provider().to_string());
        report.set("device", device.name());
        if let Some(function) = function {
            report.set("function", function);
        }
        report.set("hot_timeout_ms", plan.hot_timeout_ms);
        report.set("payload_bytes", plan.payload_bytes);
        report.set("repetitions", plan.repetitions);
        report.set("warmup_repetitions", plan.warmup_repetitions);
        report.set("machine", json!(machine));
        report
    }

    /// Sets a key of the JSON object.
    pub fn set(&mut self, key: &str, value: impl Into<Value>) {
        self.json.insert(key.to_owned(), value.into());
    }

    /// The time of one round trip.
    pub fn round_trip(&mut self, samples: &Samples) {
        let statistics = samples.statistics();
        self.set("round_trip_ns", json!(statistics));
        self.rows.push(("round trip".into(), statistics));
    }

    /// Adds the time of one phase. The report keeps the order of these calls.
    pub fn phase(&mut self, name: &str, samples: &Samples) {
        let statistics = samples.statistics();
        let phases = self.json.entry("phases_us").or_insert_with(|| Value::Object(Map::new()));
        phases[name] = json!(statistics.microseconds());
        self.rows.push((name.replace('_', " "), statistics));
    }

    /// Adds what a phase, or all of them, take at least. The report keeps the order of these calls.
    pub fn floor(&mut self, name: &str, samples: &Samples) {
        let statistics = samples.statistics();
        let floors = self.json.entry("floors_us").or_insert_with(|| Value::Object(Map::new()));
        floors[name] = json!(statistics.microseconds());
        self.rows.push((format!("({})", name.replace('_', " ")), statistics));
    }

    /// What the run was billed.
    pub fn bill(&mut self, bill: &Bill) {
        let bill = json!({
            "allocated_ns": bill.allocated_ns.get(),
            "hot_polling_ns": bill.hot_polling_ns.get(),
            "execution_ns": bill.execution_ns.get(),
            "invocations": bill.invocations.get(),
        });
        self.set("bill", bill);
    }

    /// The tutorial's line.
    pub fn summary(&self, samples: &Samples) -> String {
        let statistics = samples.statistics();
        let repetitions = samples.each().len();
        let (average, median) = (statistics.mean as f64 / 1000.0, statistics.p50 as f64 / 1000.0);
        format!("Executed {repetitions} repetitions, avg {average} usec/iter, median {median}")
    }

    /// The table.
    pub fn table(&self) -> String {
        let mut table = format!("{}\n\n{:>14}", self.title, "µs");
        for column in ["min", "mean", "p50", "p90", "p99", "p99.9", "max"] {
            table += &format!("{column:>12}");
        }
        for (name, statistics) in &self.rows {
            table += &format!("\n{name:>14}");
            for ns in statistics.columns() {
                table += &format!("{:>12.3}", ns as f64 / 1000.0);
            }
        }
        table
    }

    /// Writes all samples if `flags` name a file for them: a column for each of `columns`. Then prints the object, or
    /// `text` and the table.
    pub fn finish(
        self,
        flags: &Measure,
        columns: &[(&str, &Samples)],
        text: &str,
    ) -> Result<(), Failure> {
        if let Some(file) = &flags.output_stats {
            write_csv(file, columns)?;
        }
        let table = format!("{text}{}\n", self.table());
        print_one(flags.printing, Value::Object(self.json), table)
    }
}

/// Prints `object` or, for people, `table`.
pub fn print_one(printing: Printing, object: Value, table: String) -> Result<(), Failure> {
    print(if printing.json { format!("{object}\n") } else { table })
}

/// Writes every sample to `file`: a row for each repetition, a column for each of `columns`, in ns.
fn write_csv(file: &Path, columns: &[(&str, &Samples)]) -> Result<(), Failure> {
    let write = || {
        let mut out = BufWriter::new(File::create(file)?);
        let names: Vec<_> = columns.iter().map(|(name, _)| *name).collect();
        writeln!(out, "id,{}", names.join(","))?;
        let rows = columns.iter().map(|(_, samples)| samples.each().len()).min().unwrap_or(0);
        for row in 0..rows {
            write!(out, "{row}")?;
            for (_, samples) in columns {
                write!(out, ",{}", samples.each()[row])?;
            }
            writeln!(out)?;
        }
        out.flush()
    };
    write()
        .map_err(|error| Failure::input(format!("{}: cannot be written: {error}", file.display())))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn csv_has_a_header_and_a_row_for_each_repetition() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let (mut a, mut b) = (Samples::with_capacity(2), Samples::with_capacity(2));
        for ns in [1, 2] {
            a.record(Duration::from_nanos(ns));
            b.record(Duration::from_nanos(10 * ns));
        }
        write_csv(file.path(), &[("connect", &a), ("submit", &b)]).unwrap();
        let text = std::fs::read_to_string(file.path()).unwrap();
        assert_eq!(text, "id,connect,submit\n0,1,10\n1,2,20\n");
    }

    #[test]
    fn a_csv_file_that_cannot_be_written_is_bad_input() {
        let error = write_csv(Path::new("/nowhere/x.csv"), &[]).unwrap_err();
        assert_eq!(error.status(), 2);
        assert!(error.to_string().starts_with("/nowhere/x.csv: cannot be written"), "{error}");
    }
}
