//! Plots, as SVG: lines of medians, with what lies around them, and the machine's facts.
//!
//! On white, so that they can be read on a page of any colour. Texts are the viewer's own sans-serif font.

use std::fs;
use std::path::Path;

use plotters::coord::Shift;
use plotters::coord::ranged1d::{Ranged, ValueFormatter};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use rfaas_program::Failure;

use crate::contender::{Id, Kind};
use crate::files::{Comparison, unwritable};
use crate::results::{Rates, Row, Spread};
use crate::table::{count, size, time};

/// Pixels of a plot, and of the chart without its legend.
const SIZE: (u32, u32) = (960, 540);
const CHART_WIDTH: u32 = 740;
/// Between two entries of the legend.
const LEGEND_STEP: i32 = 24;
/// What is drawn fainter if ours is on several devices: all but the first.
const FAINT: f64 = 0.45;

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type DrawingFailure = DrawingAreaErrorKind<std::io::Error>;
type Drawn = Result<(), DrawingFailure>;
type Plot = fn(&Area<'_>, &Comparison) -> Drawn;

/// Draws all that there are figures for into `directory`.
pub fn draw(directory: &Path, comparison: &Comparison) -> Result<(), Failure> {
    let plots: [(&str, Plot); 4] = [
        ("round_trips.svg", round_trips),
        ("distribution.svg", distribution),
        ("in_flight.svg", in_flight),
        ("scaling.svg", scaling),
    ];
    for (name, plot) in plots {
        let file = directory.join(name);
        let mut svg = String::new();
        {
            let whole = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
            whole.fill(&WHITE).map_err(unwritable(&file))?;
            plot(&whole, comparison).map_err(unwritable(&file))?;
            whole.present().map_err(unwritable(&file))?;
        }
        fs::write(&file, lighter(&svg)).map_err(unwritable(&file))?;
    }
    Ok(())
}

/// The same picture in fewer bytes: without white lines on white, and without what is the default.
fn lighter(svg: &str) -> String {
    let seen = svg.lines().filter(|line| !line.contains("stroke=\"#FFFFFF\""));
    let mut lighter: String = seen.flat_map(|line| [line, "\n"]).collect();
    for width in 1..=3 {
        lighter = lighter.replace(&format!(" stroke=\"none\" stroke-width=\"{width}\""), "");
    }
    for default in [" opacity=\"1\"", " stroke=\"none\"", " stroke-width=\"1\""] {
        lighter = lighter.replace(default, "");
    }
    lighter.replace(" \"/>", "\"/>")
}

/// Lines of a plot: whose, in which style, through which points.
struct Curve {
    name: String,
    style: ShapeStyle,
    dashed: bool,
    points: Vec<(f64, f64)>,
    /// Marks beside the line.
    marks: Vec<(f64, f64)>,
    /// Bars through points of the line: where, from, to.
    bars: Vec<(f64, f64, f64)>,
}

impl Curve {
    fn of(row: &Row, devices: &[(String, rdmalib::Provider)]) -> Self {
        let first = devices.first().map(|(name, _)| name.as_str());
        let faint = row.device.is_some() && row.device.as_deref() != first;
        Curve {
            name: row.name.clone(),
            style: colour(row.id)
                .mix(if faint { FAINT } else { 1.0 })
                .stroke_width(width(row.kind)),
            dashed: row.kind == Kind::Floor,
            points: vec![],
            marks: vec![],
            bars: vec![],
        }
    }
}

fn round_trips(area: &Area<'_>, comparison: &Comparison) -> Drawn {
    let line = |row: &Row| {
        let mut line = Curve::of(row, &comparison.devices);
        for (&payload, cell) in &row.cells {
            let at = f64::from(payload);
            line.points.extend(cell.p50().map(|p50| (at, p50.median)));
            line.marks.extend(cell.p99().map(|p99| (at, p99.median)));
        }
        line
    };
    let lines: Vec<_> = comparison.results.rows.iter().map(line).collect();
    let (x, y) = (span(&lines, |point| point.0), span(&lines, |point| point.1));
    let title = "Round trip by payload: median (line) and 99th percentile (×)";
    let (chart, legend_area) = frame(area, title, comparison)?;
    let mut chart = builder(&chart).build_cartesian_2d(
        (x.0 / 1.5..x.1 * 1.5).log_scale().base(4.0),
        (y.0 / 1.5..y.1 * 1.5).log_scale(),
    )?;
    let bytes = |bytes: &f64| size(bytes.round() as u32);
    mesh(&mut chart, ("payload", &bytes), ("round trip", &|ns| round(time(*ns))))?;
    lines.iter().try_for_each(|line| draw_line(&mut chart, line))?;
    legend(&legend_area, &lines)
}

fn distribution(area: &Area<'_>, comparison: &Comparison) -> Drawn {
    let line = |of: &crate::files::Distribution| {
        let row = comparison.results.rows.iter().find(|row| row.name == of.name)?;
        let mut line = Curve::of(row, &comparison.devices);
        let shown = of.points.iter().filter(|(share, _)| *share <= 0.999);
        line.points = shown.map(|&(share, ns)| (ns.max(1) as f64, share)).collect();
        Some(line)
    };
    let lines: Vec<_> = comparison.distributions.iter().filter_map(line).collect();
    let x = span(&lines, |point| point.0);
    let title = "Round trips of 64 B that take no longer than a time, up to the 99.9th percentile";
    let (chart, legend_area) = frame(area, title, comparison)?;
    let mut chart =
        builder(&chart).build_cartesian_2d((x.0 / 1.2..x.1 * 1.2).log_scale(), 0.0..1.0)?;
    let percent = |share: &f64| format!("{:.0} %", share * 100.0);
    mesh(&mut chart, ("time", &|ns| round(time(*ns))), ("share of round trips", &percent))?;
    lines.iter().try_for_each(|line| draw_line(&mut chart, line))?;
    legend(&legend_area, &lines)
}

fn in_flight(area: &Area<'_>, comparison: &Comparison) -> Drawn {
    let lines: Vec<_> = comparison.results.in_flight.iter().enumerate().map(rates).collect();
    let (x, y) = (span(&lines, |point| point.0), span(&lines, |point| point.1));
    let title = "Invocations of 64 B per second by number in flight, one worker; bars: all runs";
    let (chart, legend_area) = frame(area, title, comparison)?;
    let mut chart = builder(&chart)
        .build_cartesian_2d((x.0 / 1.2..x.1 * 1.2).log_scale().base(2.0), 0.0..y.1 * 1.15)?;
    let number = |number: &f64| format!("{number:.0}");
    mesh(
        &mut chart,
        ("in flight", &number),
        ("invocations per second", &|rate| round(count(*rate))),
    )?;
    lines.iter().try_for_each(|line| draw_line(&mut chart, line))?;
    legend(&legend_area, &lines)
}

fn scaling(area: &Area<'_>, comparison: &Comparison) -> Drawn {
    let lines: Vec<_> = comparison.results.scaling.iter().enumerate().map(rates).collect();
    let (x, y) = (span(&lines, |point| point.0), span(&lines, |point| point.1));
    let title = "Invocations of 64 B per second by workers, 16 in flight on each; bars: all runs";
    let (chart, legend_area) = frame(area, title, comparison)?;
    let mut chart = builder(&chart).build_cartesian_2d(0.0..x.1 + 1.0, 0.0..y.1 * 1.15)?;
    let number = |number: &f64| match number.fract() {
        0.0 => format!("{number:.0}"),
        _ => String::new(),
    };
    mesh(
        &mut chart,
        ("workers", &number),
        ("invocations per second", &|rate| round(count(*rate))),
    )?;
    lines.iter().try_for_each(|line| draw_line(&mut chart, line))?;
    legend(&legend_area, &lines)
}

fn rates((number, rates): (usize, &Rates)) -> Curve {
    let each = rates
        .by
        .iter()
        .filter_map(|(&by, runs)| Some((f64::from(by), Spread::of(runs.iter().copied())?)));
    let each: Vec<_> = each.collect();
    Curve {
        name: format!("invocation, {}", rates.device),
        style: colour(Id::Service).mix(if number == 0 { 1.0 } else { FAINT }).stroke_width(3),
        dashed: false,
        points: each.iter().map(|(by, spread)| (*by, spread.median)).collect(),
        marks: vec![],
        bars: each.iter().map(|(by, spread)| (*by, spread.min, spread.max)).collect(),
    }
}

/// Title, facts, and what is left for the chart and for its legend.
fn frame<'a>(
    area: &Area<'a>,
    title: &str,
    comparison: &Comparison,
) -> Result<(Area<'a>, Area<'a>), DrawingFailure> {
    let facts = format!(
        "{}; {} runs{}",
        comparison.machine,
        comparison.runs,
        if comparison.quick { ", QUICK: too few repetitions for figures" } else { "" }
    );
    let style = |size: i32, colour: &RGBColor| {
        ("sans-serif", size).into_font().color(colour).pos(Pos::new(HPos::Left, VPos::Top))
    };
    area.draw(&Text::new(title.to_owned(), (20, 14), style(20, &BLACK)))?;
    area.draw(&Text::new(facts, (20, 42), style(14, &RGBColor(90, 90, 90))))?;
    let (_, below) = area.split_vertically(66);
    Ok(below.split_horizontally(CHART_WIDTH))
}

fn builder<'a, 'b>(area: &'a Area<'b>) -> ChartBuilder<'a, 'b, SVGBackend<'b>> {
    let mut builder = ChartBuilder::on(area);
    builder.margin(12).x_label_area_size(46).y_label_area_size(78);
    builder
}

type Axis<'a> = (&'a str, &'a dyn Fn(&f64) -> String);

fn mesh<X, Y>(
    chart: &mut ChartContext<'_, SVGBackend<'_>, Cartesian2d<X, Y>>,
    x: Axis<'_>,
    y: Axis<'_>,
) -> Drawn
where
    X: Ranged<ValueType = f64> + ValueFormatter<f64>,
    Y: Ranged<ValueType = f64> + ValueFormatter<f64>,
{
    chart
        .configure_mesh()
        .x_desc(x.0)
        .y_desc(y.0)
        .x_label_formatter(x.1)
        .y_label_formatter(y.1)
        .label_style(("sans-serif", 14))
        .axis_desc_style(("sans-serif", 15))
        .light_line_style(WHITE)
        .bold_line_style(RGBColor(225, 225, 225))
        .draw()
}

fn draw_line<X, Y>(
    chart: &mut ChartContext<'_, SVGBackend<'_>, Cartesian2d<X, Y>>,
    line: &Curve,
) -> Drawn
where
    X: Ranged<ValueType = f64>,
    Y: Ranged<ValueType = f64>,
{
    let points = line.points.iter().copied();
    if line.dashed {
        chart.draw_series(DashedLineSeries::new(points, 7, 5, line.style))?;
    } else {
        chart.draw_series(LineSeries::new(points, line.style))?;
    }
    if line.points.len() < 40 {
        let dots = line.points.iter().map(|&at| Circle::new(at, 3, line.style.filled()));
        chart.draw_series(dots)?;
    }
    chart
        .draw_series(line.marks.iter().map(|&at| Cross::new(at, 3, line.style.stroke_width(1))))?;
    let bars = line.bars.iter().map(|&(at, from, to)| {
        PathElement::new(vec![(at, from), (at, to)], line.style.stroke_width(1))
    });
    chart.draw_series(bars)?;
    Ok(())
}

fn legend(area: &Area<'_>, lines: &[Curve]) -> Drawn {
    let text = ("sans-serif", 14).into_font().color(&BLACK).pos(Pos::new(HPos::Left, VPos::Center));
    let drawn = lines.iter().filter(|line| !line.points.is_empty());
    for (line, at) in drawn.zip((0..).map(|number| 24 + LEGEND_STEP * number)) {
        let ends: &[(i32, i32)] = if line.dashed { &[(0, 8), (13, 21)] } else { &[(0, 21)] };
        for &(from, to) in ends {
            area.draw(&PathElement::new(vec![(from, at), (to, at)], line.style))?;
        }
        area.draw(&Text::new(line.name.clone(), (28, at), text.clone()))?;
    }
    Ok(())
}

/// From the least to the most of what `of` takes from all that is drawn; never empty, and above zero.
fn span(lines: &[Curve], of: fn(&(f64, f64)) -> f64) -> (f64, f64) {
    let all = lines.iter().flat_map(|line| {
        let bars = line.bars.iter().map(|&(at, _, to)| (at, to));
        line.points.iter().chain(&line.marks).copied().chain(bars)
    });
    let all = all.map(|point| of(&point)).filter(|value| *value > 0.0);
    let (least, most) = all.fold((f64::MAX, 0.0), |(least, most): (f64, f64), value| {
        (least.min(value), most.max(value))
    });
    if least > most { (1.0, 2.0) } else { (least, most.max(least * 1.5)) }
}

/// Labels of an axis are round numbers.
fn round(label: String) -> String {
    label.replace(".00 ", " ").replace(".0 ", " ")
}

fn width(kind: Kind) -> u32 {
    if kind == Kind::Ours { 3 } else { 2 }
}

/// Ours are blue, floors grey, peers everything else.
fn colour(id: Id) -> RGBColor {
    match id {
        Id::Bounce => RGBColor(60, 60, 60),
        Id::Copies => RGBColor(120, 120, 120),
        Id::Eventfd => RGBColor(160, 150, 120),
        Id::WriteLat => RGBColor(90, 70, 70),
        Id::VerbsPolling => RGBColor(100, 100, 80),
        Id::VerbsSleeping => RGBColor(140, 140, 110),
        Id::Transport => RGBColor(90, 170, 240),
        Id::TransportWarm => RGBColor(120, 150, 190),
        Id::Service => RGBColor(10, 60, 180),
        Id::InPlace => RGBColor(0, 150, 200),
        Id::ServiceWarm => RGBColor(70, 60, 150),
        Id::UcxMessage => RGBColor(214, 92, 0),
        Id::UcxPut => RGBColor(240, 170, 60),
        Id::Libfabric => RGBColor(160, 100, 30),
        Id::Unix => RGBColor(0, 130, 90),
        Id::GrpcUnix => RGBColor(200, 30, 60),
        Id::GrpcTcp => RGBColor(235, 110, 150),
        Id::Http => RGBColor(130, 50, 150),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lighter_picture_keeps_all_that_is_seen() {
        let svg = "<svg>\n<line opacity=\"1\" stroke=\"#FFFFFF\" x1=\"1\"/>\n\
                   <line opacity=\"0.4\" stroke=\"#000000\" stroke-width=\"1\" x1=\"2\"/>\n\
                   <circle r=\"3\" opacity=\"1\" fill=\"#000000\" stroke=\"none\" stroke-width=\"3\"/>\n</svg>\n";
        let expected = "<svg>\n<line opacity=\"0.4\" stroke=\"#000000\" x1=\"2\"/>\n\
                        <circle r=\"3\" fill=\"#000000\"/>\n</svg>\n";
        assert_eq!(lighter(svg), expected);
    }

    #[test]
    fn a_span_holds_all_that_is_drawn_and_is_never_empty() {
        let line = |points: &[(f64, f64)], marks: &[(f64, f64)]| Curve {
            name: String::new(),
            style: BLACK.stroke_width(1),
            dashed: false,
            points: points.to_vec(),
            marks: marks.to_vec(),
            bars: vec![],
        };
        let lines = [line(&[(1.0, 5.0), (64.0, 2.0)], &[(8.0, 100.0)]), line(&[], &[])];
        assert_eq!(span(&lines, |point| point.0), (1.0, 64.0));
        assert_eq!(span(&lines, |point| point.1), (2.0, 100.0));
        assert_eq!(span(&lines[1..], |point| point.1), (1.0, 2.0));
        let bars = Curve { bars: vec![(1.0, 2.0, 300.0)], ..line(&[(1.0, 5.0)], &[]) };
        assert_eq!(span(&[bars], |point| point.1), (5.0, 300.0));
    }
}
