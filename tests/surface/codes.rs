//! Nothing that goes wrong is without a code: errors that reach a user, and log lines that say that something is
//! the matter. And no code is there for nothing.

use std::collections::BTreeSet;
use std::fs;

use kite::code::Code;

use super::root;

/// Errors that are never shown alone: what shows them has the code.
const INNER: &[(&str, &str)] = &[
    ("Breach", "within PolicyError"),
    ("Broken", "a stream's end, for the program"),
    ("End", "the frontend's line for it has the code"),
    ("Ended", "the lines for a tunnel's end have the code"),
    ("FileProblem", "within FileError"),
    ("FrameError", "within the end of a tunnel"),
    ("HandshakeError", "within LinkError"),
    ("LinesError", "within FrameError"),
    ("MuxError", "within the end of a tunnel"),
    ("NameError", "within ConfigError"),
    ("OpenError", "the frontend's line for it has the code"),
    ("OriginAddrError", "within ConfigError"),
    ("Over", "what strangers do is no trouble"),
    ("PinError", "within TargetError"),
    ("PolicyError", "what strangers do is no trouble"),
    ("PortedError", "within ConfigError"),
    ("Refusal", "what strangers do is no trouble"),
    ("Silence", "the frontend's lines for it have the code"),
    ("TargetError", "within ConfigError"),
];

/// The sources of both crates without their tests, by name.
fn sources() -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut rooms = vec![root().join("src"), root().join("tor/src")];
    while let Some(room) = rooms.pop() {
        for entry in fs::read_dir(&room).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(root()).unwrap().display().to_string();
            if path.is_dir() {
                rooms.push(path);
            } else if name.ends_with(".rs") && !name.ends_with("/tests.rs") {
                let text = fs::read_to_string(&path).unwrap();
                let text = text.split("\n#[cfg(test)]\nmod ").next().unwrap();
                found.push((name, text.to_owned()));
            }
        }
    }
    assert!(found.len() > 50, "the sources were not found");
    found
}

/// The first literal of each `warn!` and `error!`, with its line.
fn warnings(text: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for call in ["warn!(", "error!("] {
        for (at, _) in text.match_indices(call) {
            let line = text[..at].matches('\n').count() + 1;
            let inside = &text[at + call.len()..];
            let literal = inside.split('"').nth(1).unwrap_or_default();
            found.push((line, literal.to_owned()));
        }
    }
    found
}

fn has_code(literal: &str) -> bool {
    ["[{}] ", "[{code}] ", "[KITE-"]
        .iter()
        .any(|c| literal.starts_with(c))
}

#[test]
fn every_warning_of_the_log_begins_with_a_code() {
    let mut seen = 0;
    for (name, text) in sources() {
        for (line, literal) in warnings(&text) {
            seen += 1;
            assert!(
                has_code(&literal),
                "{name}:{line}: a warning without a code (src/code.rs): {literal}"
            );
        }
    }
    assert!(seen > 30, "only {seen} warnings were found");
}

#[test]
fn a_warning_without_a_code_is_seen() {
    let text = "x;\n tracing::warn!(\n ?sid,\n \"[{}] a\", Code::X);\n warn!(\"b {x}\");\n error!(\"[KITE-T01] c\")";
    let found = warnings(text);
    let bare: Vec<_> = found.iter().filter(|(_, l)| !has_code(l)).collect();
    assert_eq!(found.len(), 3);
    assert_eq!(bare, [&(5, "b {x}".to_owned())]);
}

/// The names of what is declared as an error.
fn errors(text: &str) -> Vec<String> {
    let derives = text.match_indices("thiserror::Error)]").map(|(at, _)| at);
    let behind = derives.filter_map(|at| {
        let rest = &text[at..];
        let (_, name) = rest
            .split_once("enum ")
            .filter(|(skipped, _)| !skipped.contains("struct ") && !skipped.contains('{'))?;
        name.split([' ', '<']).next()
    });
    behind.map(str::to_owned).collect()
}

#[test]
fn every_error_has_a_code_or_is_shown_within_one_that_has() {
    let sources = sources();
    let whole: String = sources.iter().map(|(_, text)| text.as_str()).collect();
    let mut inner = BTreeSet::new();
    for (name, text) in &sources {
        for error in errors(text) {
            let coded = whole.contains(&format!("impl Coded for {error} "))
                // Tor's crate is below the catalogue, and names its codes itself.
                || error == "TorError";
            let known = INNER.iter().find(|(known, _)| *known == error);
            assert!(
                coded || known.is_some() || !text.contains(&format!("pub enum {error}")),
                "{name}: {error} has no code (src/code.rs)"
            );
            if !coded {
                inner.extend(known);
            }
        }
    }
    for (name, why) in INNER {
        assert!(
            inner.iter().any(|(n, _)| n == name),
            "{name} ({why}) is not there any more"
        );
    }
}

#[test]
fn every_code_is_used() {
    let outside: String = sources()
        .into_iter()
        .filter(|(name, _)| name != "src/code/catalogue.rs")
        .map(|(_, text)| text)
        .collect();
    for code in Code::ALL {
        let named = format!("Code::{code:?}");
        let used = outside.match_indices(&named).any(|(at, _)| {
            let next = outside[at + named.len()..].chars().next();
            !next.is_some_and(|c| c.is_alphanumeric())
        });
        assert!(
            used || outside.contains(code.as_str()),
            "{code} ({code:?}) stands for nothing in the sources"
        );
    }
}
