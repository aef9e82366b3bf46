//! Plots, by hand: both axes logarithmic, one line for each figure.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use crate::NUMBERS;
use crate::figure::Figure;

/// Pixels of a decade.
const DECADE: f64 = 130.0;
const LOW_DECADE: f64 = 46.0;
/// Where the axes begin.
const LEFT: f64 = 60.0;
const TOP: f64 = 40.0;
/// Room for the names beside the lines.
const NAMES: f64 = 330.0;
/// Colours that are told apart by those who see few.
const COLOURS: [&str; 6] = [
    "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#8c6d00", "#333333",
];

/// Writes each plot that has a figure.
pub fn write(figures: &[Figure]) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    fs::create_dir_all(root.join("docs/plots")).unwrap();
    for (plot, title) in [
        ("memory", "memory, in KB, by number"),
        ("time", "time by number"),
        ("instructions", "instructions of one operation, by number"),
    ] {
        let lines: Vec<&Figure> = figures.iter().filter(|f| f.plot == plot).collect();
        if !lines.is_empty() {
            let path = format!("docs/plots/scale-{plot}.svg");
            fs::write(root.join(&path), draw(title, &lines)).unwrap();
            println!("\nwrote {path}");
        }
    }
}

fn draw(title: &str, lines: &[&Figure]) -> String {
    let values = || {
        lines
            .iter()
            .flat_map(|f| &f.values)
            .map(|v| v.max(1e-3).log10())
    };
    let low = values().fold(f64::MAX, f64::min).floor();
    let high = values().fold(f64::MIN, f64::max).ceil().max(low + 1.0);
    let first = (NUMBERS[0] as f64).log10();
    let across = (NUMBERS.len() - 1) as f64 * DECADE;
    let down = ((high - low) * LOW_DECADE).max(20.0 * lines.len() as f64);
    let x = |n: f64| LEFT + (n.log10() - first) * DECADE;
    let y = |v: f64| TOP + (high - v.max(1e-3).log10()) / (high - low) * down;
    let (width, height) = (LEFT + across + NAMES, TOP + down + 40.0);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n\
         <text x=\"{LEFT}\" y=\"20\" font-size=\"14\">{title}</text>\n"
    );
    let mut put = |line: std::fmt::Arguments<'_>| writeln!(svg, "{line}").unwrap();
    for n in NUMBERS {
        let x = x(n as f64);
        put(format_args!(
            "<path d=\"M{x:.0} {TOP}v{down:.0}\" stroke=\"#ddd\"/>"
        ));
        let base = TOP + down + 18.0;
        put(format_args!(
            "<text x=\"{x:.0}\" y=\"{base:.0}\" text-anchor=\"middle\">{n}</text>"
        ));
    }
    for decade in low as i32..=high as i32 {
        let value = 10f64.powi(decade);
        let y = y(value);
        put(format_args!(
            "<path d=\"M{LEFT} {y:.0}h{across:.0}\" stroke=\"#ddd\"/>"
        ));
        let (x, base) = (LEFT - 6.0, y + 4.0);
        put(format_args!(
            "<text x=\"{x}\" y=\"{base:.0}\" text-anchor=\"end\">{}</text>",
            words(value)
        ));
    }
    // Names stand where their lines end, and never on each other.
    let mut order: Vec<usize> = (0..lines.len()).collect();
    order.sort_by(|a, b| y(last(lines[*a])).total_cmp(&y(last(lines[*b]))));
    let mut free = TOP;
    for (rank, at) in order.iter().enumerate() {
        let (figure, colour) = (lines[*at], COLOURS[*at % COLOURS.len()]);
        let dash = if *at < COLOURS.len() {
            ""
        } else {
            " stroke-dasharray=\"5 3\""
        };
        let points: Vec<String> = NUMBERS
            .iter()
            .zip(&figure.values)
            .map(|(n, v)| format!("{:.1},{:.1}", x(*n as f64), y(*v)))
            .collect();
        put(format_args!(
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"{dash}/>",
            points.join(" ")
        ));
        let below = (order.len() - rank) as f64 * 16.0;
        let base = (y(last(figure)) + 4.0)
            .max(free)
            .min(TOP + down + 20.0 - below);
        free = base + 16.0;
        let x = LEFT + across + 8.0;
        put(format_args!(
            "<text x=\"{x:.0}\" y=\"{base:.0}\" fill=\"{colour}\">{}, {}</text>",
            figure.what, figure.unit
        ));
    }
    svg.push_str("</svg>\n");
    svg
}

fn last(figure: &Figure) -> f64 {
    figure.values.last().copied().unwrap_or_default()
}

fn words(value: f64) -> String {
    match value {
        v if v >= 1e6 => format!("{}M", v / 1e6),
        v if v >= 1e3 => format!("{}k", v / 1e3),
        v => format!("{v}"),
    }
}
