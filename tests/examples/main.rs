//! Each program in examples/ runs, over real sockets, and says what it was made to show.
//!
//! They are run as built: `cargo test` builds them, `cargo test --test examples` alone does not.
#![allow(clippy::unwrap_used, clippy::panic)]
#![allow(clippy::disallowed_methods, reason = "a test starts what it tests")]

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

/// The example, a file for it to read, and what it says among other things.
const SHOWN: [(&str, Option<&str>, &str); 8] = [
    (
        "custom_dialer",
        None,
        "a kite flies, by 1 connection through the proxy",
    ),
    ("embedded_backend", None, "hello"),
    ("local_tunnel", None, "frontend: HELLO, TUNNEL"),
    (
        "own_authentication",
        None,
        "web.stranger.example: [KITE-F13] kites-refused",
    ),
    ("own_authentication", None, "a visitor reads: hello"),
    (
        "sniff_capture",
        Some("tests/fixtures/capture.pcap"),
        "a TLS ClientHello of a visitor, for bob.alice.example",
    ),
    (
        "sniff_capture",
        Some("tests/fixtures/capture.pcap"),
        "foolscap's opening, for tahoebob.alice.example",
    ),
    ("sniff_file", Some("README.md"), "a frontend answers with"),
];

#[test]
fn each_example_shows_what_it_was_made_for() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    // target/PROFILE/deps/examples-…: beside it are the examples.
    let here = std::env::current_exe().unwrap();
    let built = here.parent().unwrap().parent().unwrap().join("examples");
    for (name, file, says) in SHOWN {
        let program = built.join(name);
        let done = Command::new(&program)
            .args(file.map(|file| root.join(file)))
            .output()
            .unwrap_or_else(|e| panic!("{}: {e}; run: cargo build --examples", program.display()));
        let said = String::from_utf8_lossy(&done.stdout);
        let aside = String::from_utf8_lossy(&done.stderr);
        assert!(done.status.success(), "{name}: {said}\n{aside}");
        assert!(
            said.contains(says),
            "{name}: no '{says}' in: {said}\n{aside}"
        );
    }
}

#[test]
fn no_example_is_left_out() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples");
    let there: BTreeSet<String> = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    let shown: BTreeSet<String> = SHOWN
        .iter()
        .map(|(name, ..)| format!("{name}.rs"))
        .collect();
    assert_eq!(there, shown);
}
