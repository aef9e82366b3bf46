//! docs/limits.md has every bound, with the value that the sources give it.

use std::collections::BTreeMap;
use std::fs;

use super::{read, root};

const PAGE: &str = "docs/limits.md";

/// Bounds by their name that are in no table, and why.
const LEFT_OUT: &[(&str, &str)] = &[
    (
        "src/backend/siblings.rs::MAX_NAMED",
        "MAX_BESIDE, for our own words",
    ),
    (
        "src/backend/later.rs::",
        "what we ask frontends, and how often",
    ),
    ("src/check/", "a command for its own user"),
    ("src/code/", "text"),
    ("src/config/etcd.rs::MAX_", "the operator's own file"),
    ("src/config.rs::MAX_CONTACT", "the operator's own text"),
    ("src/config.rs::MAX_FILE", "the operator's own file"),
    ("src/demo", "a command for its own user"),
    (
        "src/dial/",
        "what we ask others, and for how long: no stranger's choice",
    ),
    (
        "src/dial.rs::",
        "what we ask others, and for how long: no stranger's choice",
    ),
    (
        "src/frontend/acme",
        "what we ask an authority, and for how long",
    ),
    (
        "src/frontend/authority.rs::MAX_PARALLEL",
        "of a key, not of what strangers do",
    ),
    (
        "src/frontend/authority.rs::MOST_UNANSWERED",
        "how long silence is borne, not what it costs",
    ),
    (
        "src/frontend/authority/dns.rs::MAX_ALIASES",
        "within one answer of 4 KiB",
    ),
    (
        "src/frontend/authority/judge.rs::PATIENCE",
        "the embedding program's own",
    ),
    ("src/frontend/invitations.rs::MAX_DAYS", "of a flag"),
    ("src/frontend/kites.rs::MAX_DAYS", "of a flag"),
    (
        "src/fleet/etcd/record.rs::MAX_PART",
        "within MAX_ANSWER and MAX_LINE",
    ),
    ("src/fleet/etcd/wire.rs::MAX_REASON", "text that is shown"),
    ("src/fuzzing", "for tests"),
    ("src/invitation.rs::MAX_LINE", "the user's own line"),
    (
        "src/kite.rs::MAX_",
        "of a name, or of the user's own secret",
    ),
    ("src/observe/board.rs::", "in the table by another name"),
    (
        "src/observe/progress.rs::MAX_SPINNERS",
        "the user's own screen",
    ),
    ("src/proxy_header.rs::MAX_TEXT", "within MAX_HEADER"),
    ("src/rc/", "the operator's own files"),
    (
        "src/sniff.rs::MAX_FIRST_FLIGHT",
        "the larger of two that are there",
    ),
    (
        "src/sniff/minecraft.rs::MAX_LENGTH",
        "within MAX_MINECRAFT_HANDSHAKE",
    ),
    (
        "src/sniff/minecraft.rs::MAX_SERVER",
        "within MAX_MINECRAFT_HANDSHAKE",
    ),
    ("src/sniff/tls.rs::MAX_RECORD", "within MAX_CLIENT_HELLO"),
    ("src/tahoe/", "the user's own files"),
    ("src/tls.rs::MAX_REASON", "text that is shown"),
    ("src/visit.rs::", "what we ask as a visitor of our own"),
    ("src/tls/files.rs::MAX_PEM", "the operator's own file"),
    (
        "src/sniff/storage.rs::MAX_RECORD",
        "of TLS; a record is counted off, and not kept",
    ),
    (
        "src/tunnel/buffer.rs::MAX_SLICES",
        "how it is done, and no bound of what",
    ),
    ("src/wire/frame.rs::MAX_HOST", "within ESTABLISHED"),
    ("src/wire/frame.rs::MAX_WORD", "within ESTABLISHED"),
    (
        "src/wire/join.rs::MAX_ANSWER_HEAD",
        "of the frontend that was chosen",
    ),
    ("src/wire/lines.rs::MAX_TEXT", "within ESTABLISHED"),
    ("src/wire/lines.rs::MAX_WORD", "within ESTABLISHED"),
    ("src/wire/service.rs::MAX_", "within ESTABLISHED"),
    ("src/wizard/", "the user's own answers"),
    ("src/backend/probe.rs::", "what we ask our own origin"),
    ("src/control.rs::MAX_ANSWER", "what we ask our own kite"),
    ("tor/src/", "Arti's own affairs, and what we ask of them"),
];

/// Names that say that something is bounded.
fn is_bound(name: &str, kind: &str) -> bool {
    let begins = ["MAX_", "MOST_"].iter().any(|p| name.starts_with(p));
    let ends = ["_MAX", "TIMEOUT", "PATIENCE"];
    let ends = ends.iter().any(|s| name.ends_with(s)) && !name.starts_with("RETRY");
    begins || ends || ["Limits", "Rate"].contains(&kind)
}

/// A constant, as it stands in the sources.
struct Constant {
    kind: String,
    value: String,
}

/// All constants with a type, by `file::NAME`.
fn constants() -> BTreeMap<String, Constant> {
    let mut found = BTreeMap::new();
    let mut rooms = vec![root().join("src"), root().join("tor/src")];
    while let Some(room) = rooms.pop() {
        for entry in fs::read_dir(&room).unwrap() {
            let path = entry.unwrap().path();
            let file = path.strip_prefix(root()).unwrap().display().to_string();
            if path.is_dir() {
                rooms.push(path);
            } else if file.ends_with(".rs") && !file.ends_with("/tests.rs") {
                let text = fs::read_to_string(&path).unwrap();
                let text = text
                    .split("\n#[cfg(test)]\nmod ")
                    .next()
                    .unwrap()
                    .to_owned();
                for (name, constant) in constants_of(&text) {
                    found.insert(format!("{file}::{name}"), constant);
                }
            }
        }
    }
    assert!(found.len() > 300, "the sources were not found");
    found
}

fn constants_of(text: &str) -> Vec<(String, Constant)> {
    let mut found = Vec::new();
    for (at, _) in text.match_indices("const ") {
        let before = text[..at].rsplit('\n').next().unwrap().trim();
        if !matches!(before, "" | "pub" | "pub(super)" | "pub(crate)") {
            continue;
        }
        let rest = &text[at + 6..];
        let Some((name, rest)) = rest.split_once(':') else {
            continue;
        };
        let Some((kind, rest)) = rest.split_once('=') else {
            continue;
        };
        if !name
            .chars()
            .all(|c| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_')
        {
            continue;
        }
        let value = rest.split(';').next().unwrap();
        let constant = Constant {
            kind: kind.trim().to_owned(),
            value: value.split_whitespace().collect::<Vec<_>>().join(" "),
        };
        found.push((name.to_owned(), constant));
    }
    found
}

/// The numbers that an expression comes to, times in milliseconds.
struct Reckoner<'a> {
    all: &'a BTreeMap<String, Constant>,
    file: &'a str,
    rest: &'a str,
}

impl<'a> Reckoner<'a> {
    fn numbers(all: &'a BTreeMap<String, Constant>, key: &'a str) -> Vec<u128> {
        let constant = all.get(key).unwrap_or_else(|| panic!("there is no {key}"));
        let (file, _) = key.split_once("::").unwrap();
        let of = |rest: &'a str| Reckoner { all, file, rest }.sum();
        match constant.value.split_once('{') {
            // The fields of a struct that are numbers.
            Some((_, fields)) => fields
                .trim_end_matches('}')
                .split(',')
                .filter_map(|field| field.split_once(':'))
                .map(|(_, value)| value.trim())
                .filter(|value| !["true", "false"].contains(value))
                .map(of)
                .collect(),
            None => vec![of(&constant.value)],
        }
    }

    fn skip(&mut self, token: &str) -> bool {
        self.rest = self.rest.trim_start();
        let there = self.rest.strip_prefix(token);
        self.rest = there.unwrap_or(self.rest);
        there.is_some()
    }

    fn sum(&mut self) -> u128 {
        let mut value = self.product();
        loop {
            match () {
                () if self.skip("+") => value += self.product(),
                () if self.skip("-") => value -= self.product(),
                () if self.skip("<<") => value <<= self.product(),
                () => return value,
            }
        }
    }

    fn product(&mut self) -> u128 {
        let mut value = self.term();
        loop {
            match () {
                () if self.skip("*") => value *= self.term(),
                () if self.skip("/") => value /= self.term(),
                () if self.skip("as usize") || self.skip("as u32") || self.skip("as u64") => {}
                () => return value,
            }
        }
    }

    fn term(&mut self) -> u128 {
        for (call, factor) in [
            ("Duration::from_secs(", 1000),
            ("Duration::from_millis(", 1),
        ] {
            if self.skip(call) {
                let value = self.sum() * factor;
                assert!(self.skip(")"), "{}", self.rest);
                return value;
            }
        }
        if self.skip("(") {
            let value = self.sum();
            assert!(self.skip(")"), "{}", self.rest);
            return value;
        }
        let end = self
            .rest
            .find(|c: char| !c.is_ascii_alphanumeric() && c != '_')
            .unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest;
        if word.starts_with(|c: char| c.is_ascii_digit()) {
            return word
                .replace('_', "")
                .parse()
                .unwrap_or_else(|_| panic!("{word}"));
        }
        let here = format!("{}::{word}", self.file);
        let key = match self.all.contains_key(&here) {
            true => here,
            false => {
                let mut named = self
                    .all
                    .keys()
                    .filter(|k| k.ends_with(&format!("::{word}")));
                let key = named.next().unwrap_or_else(|| panic!("there is no {word}"));
                assert_eq!(named.next(), None, "{word} is two constants");
                key.clone()
            }
        };
        let constant = self.all.get(&key).unwrap();
        let (file, _) = key.split_once("::").unwrap();
        let mut inner = Reckoner {
            all: self.all,
            file,
            rest: &constant.value,
        };
        inner.sum()
    }
}

/// The numbers of a cell such as `10 in 60`, `64 KiB` or `1 MiB, 64 KiB`.
fn told(cell: &str) -> Vec<u128> {
    let words: Vec<String> = cell
        .split_whitespace()
        .map(|w| w.trim_end_matches(',').replace(',', ""))
        .collect();
    let mut numbers = Vec::new();
    for (at, word) in words.iter().enumerate() {
        if let Ok(number) = word.parse::<u128>() {
            let factor = match words.get(at + 1).map(String::as_str) {
                Some("KiB") => 1 << 10,
                Some("MiB") => 1 << 20,
                Some("s") => 1000,
                Some("ms") | Some("in") | None => 1,
                Some(other) => panic!("what is a {other}?"),
            };
            numbers.push(number * factor);
        }
    }
    numbers
}

/// The rows: the constant as `file::NAME`, if it is one, the default, and the test.
fn rows(page: &str) -> Vec<(Option<String>, String, String)> {
    let cells = |line: &str| -> Vec<String> {
        line.trim_matches('|')
            .split('|')
            .map(|c| c.trim().to_owned())
            .collect()
    };
    let of_a_table = |line: &&str| line.starts_with("| `");
    let row = |line: &str| {
        let cells = cells(line);
        assert_eq!(cells.len(), 5, "{line}");
        let quoted: Vec<&str> = cells[0].split('`').skip(1).step_by(2).collect();
        let constant = match quoted[..] {
            [name, file] if file.ends_with(".rs") => Some(format!("src/{file}::{name}")),
            _ => None,
        };
        (constant, cells[1].clone(), cells[4].clone())
    };
    page.lines().filter(of_a_table).map(row).collect()
}

/// Is there a test of this name?
fn is_test(file: &str, name: &str) -> bool {
    let text = fs::read_to_string(root().join(file)).unwrap_or_default();
    let begins = match file.ends_with(".py") {
        true => format!("\ndef {name}("),
        false => format!("fn {name}("),
    };
    name.len() > 4 && text.contains(&begins)
}

/// What is wrong with the page.
fn complaints(page: &str) -> Vec<String> {
    let all = constants();
    let mut found = Vec::new();
    let rows = rows(page);
    for (constant, default, test) in &rows {
        match constant {
            Some(key) if !all.contains_key(key) => found.push(format!("there is no {key}")),
            Some(key) => {
                let (told, is) = (told(default), Reckoner::numbers(&all, key));
                if told != is {
                    found.push(format!("{key} is {is:?}, and not {default}"));
                }
            }
            None if default == "none" => {}
            None => found.push(format!(
                "a row without a constant, and a default: {default}"
            )),
        }
        let named = test.trim_matches('`').split_once("::");
        if !named.is_some_and(|(file, name)| is_test(file, name)) {
            let what = constant.as_deref().unwrap_or("a key");
            found.push(format!("{what}: there is no such test: {test}"));
        }
    }
    for (key, constant) in &all {
        let (_, name) = key.split_once("::").unwrap();
        let listed = rows.iter().any(|(row, ..)| row.as_ref() == Some(key));
        let left_out = LEFT_OUT.iter().any(|(start, _)| key.starts_with(start));
        if is_bound(name, &constant.kind) && !listed && !left_out {
            found.push(format!("{key} has no row"));
        }
    }
    found
}

#[test]
fn every_bound_has_a_row_and_every_row_is_true() {
    let complaints = complaints(&read(PAGE));
    assert!(complaints.is_empty(), "{PAGE}:\n{}", complaints.join("\n"));
}

#[test]
fn nothing_is_left_out_that_is_not_there() {
    let all = constants();
    for (start, _) in LEFT_OUT {
        assert!(
            all.keys().any(|key| key.starts_with(start)),
            "{start} is gone"
        );
    }
}

#[test]
fn a_row_that_is_not_true_is_seen() {
    let page = read(PAGE);
    let row = "| `MAX_STREAMS` in `tunnel/mux.rs` | 4,096 |";
    assert!(page.contains(row));
    let of = |page: &str| complaints(page).join("\n");
    assert!(
        of(&page.replace(row, &row.replace("4,096", "4,097"))).contains("MAX_STREAMS is [4096]")
    );
    assert!(
        of(&page.replace(row, &row.replace("MAX_STREAMS", "MAX_OTHER")))
            .contains("there is no src/tunnel/mux.rs::MAX_OTHER")
    );
    let test = "tests/engine/hostile.rs::a_flood_of_openings_is_bounded";
    assert!(page.contains(test));
    for other in ["—", "tests/engine/hostile.rs::a_flood", "a_flood"] {
        let complaint = of(&page.replace(&format!("`{test}`"), other));
        assert!(complaint.contains("there is no such test"), "{other}");
    }
    let without: String = page
        .lines()
        .filter(|l| !l.starts_with(row))
        .collect::<Vec<_>>()
        .join("\n");
    assert_eq!(of(&without), "src/tunnel/mux.rs::MAX_STREAMS has no row");
}
