//! kite through a Tor network of its own, and what else wants real peers: `cargo bench --bench tor`.
//!
//! ```text
//! cargo bench --bench tor                     every row
//! cargo bench --bench tor -- stream circuits  some rows
//! ```
//!
//! `tests/run setup` installs the peers. `rows.py` makes the network, comes as a visitor and prints the figures; this
//! program is what it cannot be: the hidden machine, on which one Tor client serves kite's backends and bare streams
//! alike. docs/performance.md keeps what was found.
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

#[path = "../compare/delay.rs"]
mod delay;
mod hidden;

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

fn main() {
    let args: Vec<String> = std::env::args()
        .skip(1)
        .filter(|a| a != "--bench")
        .collect();
    match args.first().map(String::as_str) {
        Some("hidden") => hidden::serve(&args[1..]),
        Some("delay") => delay::relay(&args[1..]),
        _ => measure(&args),
    }
}

/// Becomes the harness, which starts this program again in its other roles.
fn measure(rows: &[String]) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let venv = std::env::var_os("KITE_TEST_VENV").map_or(root.join("target/venv"), PathBuf::from);
    let python = venv.join("bin/python");
    assert!(
        python.exists(),
        "no {}; run: tests/run setup",
        python.display()
    );
    let error = Command::new(python)
        .arg(root.join("benches/tor/rows.py"))
        .args(rows)
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("KITE", env!("CARGO_BIN_EXE_kite"))
        .env("KITE_BENCH", std::env::current_exe().unwrap())
        .exec();
    panic!("{error}");
}
