//! What one operation costs in instructions, which do not change with the machine's mood:
//! `cargo bench --bench instructions`.
//!
//! ```text
//! cargo bench --bench instructions              every operation
//! cargo bench --bench instructions -- decode    those whose name has this in it
//! ```
//!
//! Inputs are recordings of real programs where there are any (`tests/fixtures`). docs/performance.md keeps what
//! was found.
#![allow(
    clippy::disallowed_methods,
    reason = "a benchmark starts valgrind on itself"
)]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a benchmark"
)]

mod count;
mod mux;
mod recorded;
mod sniff;
mod wire;

use count::Case;

/// Streams beside the one that is measured.
const STREAMS: [usize; 4] = [1, 16, 1000, 10_000];

fn main() {
    let args: Vec<String> = std::env::args()
        .skip(1)
        .filter(|a| a != "--bench")
        .collect();
    let cases: Vec<Case> = wire::cases()
        .into_iter()
        .chain(sniff::cases())
        .chain(mux::cases(&STREAMS))
        .collect();
    if count::repeated(&args, &cases) {
        return;
    }
    println!("instructions for each, by valgrind\n");
    for case in &cases {
        if !args.is_empty() && !args.iter().any(|a| case.name.contains(a.as_str())) {
            continue;
        }
        let each = count::instructions(case);
        let verdict = match case.goal {
            Some(goal) if each <= goal => format!("   at most {goal}: reached"),
            Some(goal) => format!("   at most {goal}: MISSED"),
            None => String::new(),
        };
        println!("{:72} {each:9.0}{verdict}", case.name);
    }
}
