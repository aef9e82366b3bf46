//! kite beside its peers, row by row, in interleaved rounds: `cargo bench --bench compare`.
//!
//! ```text
//! cargo bench --bench compare                     every row
//! cargo bench --bench compare -- stream connect   some rows
//! ```
//!
//! Every party is a process of its own. What counts are ratios of medians within one run: the machine's mood
//! hits all alike. Peers: `apt-get install haproxy openssh-server`. docs/performance.md keeps what was found.
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

mod delay;
mod load;
#[expect(dead_code, reason = "shared with another benchmark")]
mod party;
mod route;
mod rows;

/// Interleaved rounds, of which the median counts.
const ROUNDS: usize = 5;

fn main() {
    let args: Vec<String> = std::env::args()
        .skip(1)
        .filter(|a| a != "--bench")
        .collect();
    match args.first().map(String::as_str) {
        Some("origin") => load::origin(),
        Some("mux-delay") => delay::relay(&args[1..]),
        _ => rows::measure(&args),
    }
}
