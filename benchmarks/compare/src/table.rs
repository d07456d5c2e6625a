//! The table for people: figures, ratios, and how everybody was set up.

use std::fmt::Write;

use crate::PAYLOADS;
use crate::contender::Kind;
use crate::files::Comparison;
use crate::ratios::{Aim, Ratio};
use crate::results::{Cell, Rates, Row, Spread};

/// Width of names, and of a column of figures.
const NAME: usize = 32;
const COLUMN: usize = 10;

/// All of it.
pub fn table(comparison: &Comparison) -> String {
    let mut out = format!(
        "compare: {} runs on {}\nclient on the first CPU, server on the last; medians of the runs' percentiles{}\n",
        comparison.runs,
        comparison.machine,
        if comparison.quick { "; QUICK: too few repetitions for figures" } else { "" },
    );
    by_payload(&mut out, "p50", &comparison.results.rows, Cell::p50);
    not_run(&mut out, &comparison.results.rows);
    by_payload(&mut out, "p99", &comparison.results.rows, Cell::p99);
    by_payload(&mut out, "p99.9", &comparison.results.rows, Cell::p999);
    spreads(&mut out, &comparison.results.rows);
    rates(
        &mut out,
        "invocations per second, 64 B, by number in flight, one worker",
        &comparison.results.in_flight,
    );
    rates(&mut out, "invocations per second, 64 B, by workers", &comparison.results.scaling);
    rates(
        &mut out,
        "ib_write_bw, bytes per second, by bytes of a message",
        &comparison.results.bandwidth,
    );
    ratios(&mut out, &comparison.ratios);
    settings(&mut out, &comparison.results.rows);
    out
}

/// A line; writing to a string does not fail.
macro_rules! line {
    ($out:expr, $($what:tt)*) => { writeln!($out, $($what)*).expect("a string takes all") };
}

fn by_payload(out: &mut String, title: &str, rows: &[Row], of: fn(&Cell) -> Option<Spread>) {
    line!(out, "\nround trip {title}");
    let columns: String =
        PAYLOADS.iter().map(|&bytes| format!("{:>COLUMN$}", size(bytes))).collect();
    line!(out, "{:NAME$}{columns}", "");
    for row in rows {
        let figures = PAYLOADS.map(|payload| row.cells.get(&payload).and_then(of));
        if figures.iter().any(Option::is_some) {
            let figure = |spread: &Option<Spread>| {
                let text = spread.as_ref().map(|spread| time(spread.median)).unwrap_or_default();
                format!("{text:>COLUMN$}")
            };
            line!(out, "{:NAME$}{}", row.name, figures.iter().map(figure).collect::<String>());
        }
    }
}

/// Below the first table, as further rows of it.
fn not_run(out: &mut String, rows: &[Row]) {
    for row in rows.iter().filter(|row| row.cells.is_empty()) {
        let reason = row.not_run.as_deref().unwrap_or("no runs");
        line!(out, "{:NAME$}  not run: {reason}", row.name);
    }
}

/// How far the runs lie apart where the ratios are.
fn spreads(out: &mut String, rows: &[Row]) {
    line!(out, "\nsmallest to largest of the runs");
    for row in rows {
        let payload = if row.cells.contains_key(&64) { 64 } else { 8 };
        let Some(cell) = row.cells.get(&payload) else { continue };
        let range = |name: &str, spread: Option<Spread>| {
            let text = spread.map(|spread| format!("{} – {}", time(spread.min), time(spread.max)));
            text.map(|text| format!("   {name} {text:21}")).unwrap_or_default()
        };
        let p50 = if cell.is_mean() { "mean" } else { "p50" };
        line!(
            out,
            "{:NAME$}{payload:>3} B{}{}{}",
            row.name,
            range(p50, cell.p50()),
            range("p99", cell.p99()),
            range("p99.9", cell.p999())
        );
    }
}

fn rates(out: &mut String, title: &str, all: &[Rates]) {
    if all.is_empty() {
        return;
    }
    line!(out, "\n{title}");
    for rates in all {
        if let Some(reason) = &rates.not_run {
            line!(out, "{:NAME$}  not run: {reason}", rates.device);
        }
        for (number, runs) in &rates.by {
            if let Some(Spread { median, min, max, .. }) = Spread::of(runs.iter().copied()) {
                let range = format!("{} – {}", count(min), count(max));
                line!(
                    out,
                    "{:NAME$}{number:>COLUMN$}{:>12}   {range}",
                    rates.device,
                    count(median)
                );
            }
        }
    }
}

fn ratios(out: &mut String, all: &[Ratio]) {
    line!(
        out,
        "\n{:74}{:>12}   {:26}aim",
        "ratio, within each run",
        "median",
        "smallest – largest"
    );
    for Ratio { what, device, unit, aim, spread, .. } in all {
        let figure = |value: f64| match *unit {
            "/s" => format!("{}/s", count(value)),
            "ns" => format!("{value:.0} ns"),
            unit => format!("{value:.2} {unit}"),
        };
        let met = if aim.is_met(spread.median) { "" } else { ", missed" };
        let aim = match aim {
            Aim::AtMost(most) => format!("at most {}", figure(*most)),
            Aim::AtLeast(least) => format!("at least {}", figure(*least)),
        };
        let range = format!("{} – {}", figure(spread.min), figure(spread.max));
        let what = format!("{device}: {what}");
        line!(out, "{what:74}{:>12}   {range:26}{aim}{met}", figure(spread.median));
    }
}

fn settings(out: &mut String, rows: &[Row]) {
    line!(out, "\nsettings; payloads are checked after the clock");
    for (kind, name) in [(Kind::Floor, "floor"), (Kind::Ours, "ours"), (Kind::Peer, "peer")] {
        for row in rows.iter().filter(|row| row.kind == kind) {
            line!(out, "{name:6}{:NAME$}{}", row.name, row.settings);
            if let Some(reason) = row.not_run.as_ref().filter(|_| !row.cells.is_empty()) {
                line!(out, "{:6}{:NAME$}not all of it was run: {reason}", "", "");
            }
        }
    }
}

/// A payload: `64 B`, `4 KiB`.
pub fn size(bytes: u32) -> String {
    match bytes {
        0..1024 => format!("{bytes} B"),
        1024..1_048_576 => format!("{} KiB", bytes >> 10),
        _ => format!("{} MiB", bytes >> 20),
    }
}

/// A time in ns, with three digits.
pub fn time(ns: f64) -> String {
    match ns {
        ..999.5 => format!("{ns:.0} ns"),
        ..9_995.0 => format!("{:.2} µs", ns / 1e3),
        ..99_950.0 => format!("{:.1} µs", ns / 1e3),
        ..999_500.0 => format!("{:.0} µs", ns / 1e3),
        ..9_995_000.0 => format!("{:.2} ms", ns / 1e6),
        _ => format!("{:.1} ms", ns / 1e6),
    }
}

/// A number of many digits.
pub fn count(number: f64) -> String {
    match number {
        ..9_999.5 => format!("{number:.0}"),
        ..999_500.0 => format!("{:.0} k", number / 1e3),
        _ => format!("{:.2} M", number / 1e6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_have_three_digits_and_a_unit() {
        let times = [140.4, 999.6, 1234.0, 51_234.0, 123_456.0, 5_898_480.0, 12_345_678.0];
        let texts = times.map(time);
        assert_eq!(
            texts,
            ["140 ns", "1.00 µs", "1.23 µs", "51.2 µs", "123 µs", "5.90 ms", "12.3 ms"]
        );
        assert_eq!([8, 1024, 65_536, 16 << 20].map(size), ["8 B", "1 KiB", "64 KiB", "16 MiB"]);
        assert_eq!([950.0, 28_000.0, 4_250_000.0].map(count), ["950", "28 k", "4.25 M"]);
    }
}
