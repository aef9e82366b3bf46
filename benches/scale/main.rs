//! How cost grows with the number of streams, tunnels and kites: `cargo bench --bench scale`.
//!
//! ```text
//! cargo bench --bench scale                       everything, from 10 to 10,000
//! cargo bench --bench scale -- tunnels kites      some rows
//! cargo bench --bench scale -- --plot             writes docs/plots/*.svg, too
//! cargo bench --bench scale -- held               1,000 tunnels, 10,000 idle streams, 200 visitors a second for 5 min
//! cargo bench --bench scale -- storm              1,000 backends return to a frontend that was killed
//! cargo bench --bench scale -- capacity           what a core and a GiB of a frontend are good for
//! ```
//!
//! Memory and times are of real kite processes, times as a multiple of the same without kite; instructions are
//! counted by valgrind (`apt-get install valgrind`). 10,000 streams want a limit of 11,000 open files (`ulimit -n`), `held`
//! of 13,000. The last three are not among "everything": they are figures of their own, in docs/limits.md and docs/operations.md.
#![allow(
    clippy::disallowed_methods,
    reason = "a benchmark listens and dials on loopback, and starts programs"
)]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a benchmark"
)]

mod capacity;
#[path = "../instructions/count.rs"]
#[expect(dead_code, reason = "shared with another benchmark")]
mod count;
mod figure;
mod held;
#[path = "../instructions/mux.rs"]
mod mux;
#[path = "../compare/party.rs"]
#[expect(dead_code, reason = "shared with another benchmark")]
mod party;
mod plot;
mod processes;
mod registry;

use figure::{Figure, Goal};

/// How many there are of what is measured.
const NUMBERS: [usize; 4] = [10, 100, 1000, 10_000];

type Row = (&'static str, fn() -> Vec<Figure>);

const ROWS: [Row; 4] = [
    ("streams", processes::streams),
    ("tunnels", processes::tunnels),
    ("kites", processes::kites),
    ("instructions", instructions),
];

fn main() {
    let args: Vec<String> = std::env::args()
        .skip(1)
        .filter(|a| a != "--bench")
        .collect();
    if count::repeated(&args, &counted()) {
        return;
    }
    if args.first().is_some_and(|a| a == "origin") {
        return processes::origin();
    }
    match args.first().map(String::as_str) {
        Some("held") => return held::held(),
        Some("storm") => return held::storm(),
        Some("capacity") => return capacity::capacity(),
        _ => {}
    }
    let (options, names): (Vec<_>, Vec<_>) = args.iter().partition(|a| a.starts_with('-'));
    for name in &names {
        let known = ROWS.iter().any(|(row, _)| row == name);
        assert!(known, "no row is called {name}");
    }
    let mut figures = Vec::new();
    for (name, row) in ROWS {
        if names.is_empty() || names.iter().any(|n| *n == name) {
            println!("\n## {name}");
            figure::head();
            for figure in row() {
                figure.print();
                figures.push(figure);
            }
        }
    }
    if options.iter().any(|o| *o == "--plot") {
        plot::write(&figures);
    }
}

fn counted() -> Vec<count::Case> {
    let mut cases = registry::cases(&NUMBERS);
    cases.extend(mux::cases(&NUMBERS));
    cases
}

/// A figure for each operation: its cases come one after the other, a number each.
fn instructions() -> Vec<Figure> {
    let cases = counted();
    cases
        .chunks(NUMBERS.len())
        .map(|group| {
            let first = &group[0].name;
            let what = first
                .rsplit_once(',')
                .map_or(first.as_str(), |(what, _)| what);
            let values = group.iter().map(count::instructions).collect();
            Figure::new(what, "instructions", "instructions", Goal::Same, values)
        })
        .collect()
}
