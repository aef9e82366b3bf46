//! docs/reference.md and the JSON schemas, made of the command line and of the files' structs. What has no description fails here.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;

use clap::{Arg, ArgAction, Command, CommandFactory};
use kite::cli::Cli;
use kite::config::file::{backend_schema, frontend_schema};
use serde_json::{Map, Value};

use super::root;

const HEAD: &str = "\
# Reference

Every key of both files, every command and every flag. This page is made from the program
(`KITE_UPDATE=1 cargo test --test surface`), and a test compares the two.

* What stands on the command line replaces the file's key. Unknown keys are errors. Paths in a file are relative to that file.
* A secret is never an argument: it is in a file that only its owner can read, or in the variable `KITE_SECRET`.
* `NO_COLOR` takes the colours from the log.
* SIGTERM and SIGINT: take nothing new, let streams finish for 5 s, end. A second one ends at once.
* Exit status: 0 ended as asked, 1 failed at run time, or a check found something, 2 wrong usage or configuration, 3 the Tor
  network demands a newer kite.
* Editors that know JSON schemas (by [taplo](https://taplo.tamasfe.dev/), for one) can check the files while they are written:
  [frontend.schema.json](frontend.schema.json), [backend.schema.json](backend.schema.json).
";

/// Is `text` what is kept under docs/? With `KITE_UPDATE=1` it is put there.
fn is_kept(name: &str, text: &str) {
    let kept = root().join("docs").join(name);
    if std::env::var_os("KITE_UPDATE").is_some() {
        fs::write(&kept, text).unwrap();
    }
    assert!(
        fs::read_to_string(&kept).is_ok_and(|old| old == text),
        "docs/{name} is out of date; run: KITE_UPDATE=1 cargo test --test surface"
    );
}

#[test]
fn the_reference_is_that_of_the_program() {
    let mut page = HEAD.to_owned();
    let command = Cli::command();
    let mut keys = Keys::default();
    for (command, title, schema) in [
        ("frontend", "A frontend's file", frontend_schema()),
        ("backend", "A backend's file", backend_schema()),
    ] {
        writeln!(page, "\n## {title}\n\n`kite {command} --config FILE`.").unwrap();
        let root = schema.to_value();
        keys.file(command, &root, &mut page);
    }
    page.push_str("\n## Commands\n");
    writeln!(page, "\nEvery command has:\n\n{FLAGS}").unwrap();
    for arg in command.get_arguments().filter(|a| a.is_global_set()) {
        page.push_str(&row(arg, None));
    }
    commands(&command, "kite", &keys, &mut page);
    assert!(page.contains(&format!("`{}`", kite::config::SECRET_VARIABLE)));
    is_kept("reference.md", &page);
    keys.flags_are_there(&command);
}

#[test]
fn the_schemas_are_those_of_the_files() {
    for (name, schema) in [
        ("frontend", frontend_schema()),
        ("backend", backend_schema()),
    ] {
        let mut text = serde_json::to_string_pretty(&schema).unwrap();
        text.push('\n');
        is_kept(&format!("{name}.schema.json"), &text);
    }
}

#[test]
fn a_key_without_a_description_is_seen() {
    let mut schema = backend_schema().to_value();
    let origin = schema
        .pointer_mut("/$defs/ServiceEntry/properties/origin")
        .and_then(Value::as_object_mut)
        .unwrap();
    origin.remove("description").unwrap();
    let seen = std::panic::catch_unwind(|| {
        Keys::default().file("backend", &schema, &mut String::new());
    });
    assert!(seen.is_err());
}

// -------------------------------------------------------------------- keys

/// Which keys a flag stands for, as `command --flag`.
#[derive(Default)]
struct Keys {
    of_flag: BTreeMap<String, Vec<String>>,
}

impl Keys {
    /// A section for each table of a file.
    fn file(&mut self, command: &str, schema: &Value, page: &mut String) {
        let mut waiting = vec![(String::new(), schema)];
        let mut written = BTreeSet::new();
        while let Some((place, table)) = waiting.pop() {
            if !written.insert(place.clone()) {
                continue;
            }
            if !place.is_empty() {
                let about = text(table, "description")
                    .unwrap_or_else(|| panic!("{place} has no description"));
                writeln!(page, "\n### {place} of a {command}\n\n{about}").unwrap();
            }
            page.push_str("\n| key | value | default | flag | meaning |\n|---|---|---|---|---|\n");
            let required: Vec<&str> = table["required"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(Value::as_str)
                .collect();
            let mut below = vec![];
            for (key, value) in properties(table) {
                let about = text(value, "description")
                    .unwrap_or_else(|| panic!("{place} {key} has no description"));
                let (kind, tables) = kind(schema, key, value);
                below.extend(tables);
                let default = match value.get("default") {
                    _ if required.contains(&key.as_str()) => "required".to_owned(),
                    None | Some(Value::Null | Value::Object(_)) => "—".to_owned(),
                    Some(Value::Array(list)) if list.is_empty() => "—".to_owned(),
                    Some(value) => format!("`{value}`"),
                };
                let flag = text(value, "x-flag").unwrap_or_default();
                let shown = match flag {
                    "" => String::new(),
                    flag => format!("`{flag}`"),
                };
                if !flag.is_empty() {
                    let whole = format!("{place} {key}").trim().to_owned();
                    self.of_flag
                        .entry(format!("{command} {flag}"))
                        .or_default()
                        .push(whole);
                }
                let about = format!("{about}{}", choices(schema, value));
                writeln!(
                    page,
                    "| `{key}` | {kind} | {default} | {shown} | {} |",
                    cell(&about)
                )
                .unwrap();
            }
            below.reverse();
            waiting.extend(below);
        }
    }

    /// A key names no flag that the command does not have.
    fn flags_are_there(&self, root: &Command) {
        for name in self.of_flag.keys() {
            let (command, flag) = name.split_once(' ').unwrap();
            let command = root.find_subcommand(command).unwrap();
            let there = command.get_arguments().any(|arg| spelled(arg) == flag);
            assert!(there, "a key says that its flag is {name}");
        }
        for command in ["frontend", "backend"] {
            for arg in root.find_subcommand(command).unwrap().get_arguments() {
                let name = format!("{command} {}", spelled(arg));
                let known = self.of_flag.contains_key(&name) || spelled(arg) == "--config";
                assert!(
                    known || ONLY_FLAGS.contains(&name.as_str()),
                    "no key of src/config/file.rs says that `{name}` is its flag"
                );
            }
        }
    }
}

/// Flags that have no key, since they are about one start and not about a configuration: as `backend --json`.
const ONLY_FLAGS: &[&str] = &[];

fn text<'a>(value: &'a Value, key: &str) -> Option<&'a str> {
    value.get(key).and_then(Value::as_str)
}

fn properties(table: &Value) -> &Map<String, Value> {
    table["properties"].as_object().unwrap()
}

/// What a `$ref` means, here or in one arm of "or null".
fn resolved<'a>(schema: &'a Value, value: &'a Value) -> &'a Value {
    if let Some(name) = text(value, "$ref") {
        return schema.pointer(name.trim_start_matches('#')).unwrap();
    }
    value
        .get("anyOf")
        .and_then(Value::as_array)
        .and_then(|arms| arms.iter().find(|arm| arm.get("$ref").is_some()))
        .map_or(value, |arm| resolved(schema, arm))
}

/// What kind of value a key has, and the tables that are below it with their places.
fn kind<'a>(
    schema: &'a Value,
    key: &str,
    value: &'a Value,
) -> (&'static str, Vec<(String, &'a Value)>) {
    let value = resolved(schema, value);
    if value.get("properties").is_some() {
        return ("table", vec![(format!("`[{key}]`"), value)]);
    }
    if let Some(items) = value.get("items") {
        let item = resolved(schema, items);
        if item.get("properties").is_some() {
            return ("tables", vec![(format!("`[[{key}]]`"), item)]);
        }
        let arms = item.get("anyOf").and_then(Value::as_array);
        let table = arms
            .into_iter()
            .flatten()
            .map(|arm| resolved(schema, arm))
            .find(|arm| arm.get("properties").is_some());
        return match table {
            Some(table) => ("texts or tables", vec![(format!("`[[{key}]]`"), table)]),
            None => ("list of texts", vec![]),
        };
    }
    let kind = match &value["type"] {
        Value::Array(kinds) => kinds.iter().find_map(Value::as_str),
        kind => kind.as_str(),
    };
    let kind = match kind {
        Some("boolean") => "`true` or `false`",
        Some("integer") => "number",
        _ => "text",
    };
    (kind, vec![])
}

/// The words that a key may have, each with its meaning.
fn choices(schema: &Value, value: &Value) -> String {
    let Some(arms) = resolved(schema, value)
        .get("oneOf")
        .and_then(Value::as_array)
    else {
        return String::new();
    };
    arms.iter().fold(String::new(), |mut all, arm| {
        let word = text(arm, "const").unwrap();
        let about = text(arm, "description").unwrap_or_else(|| panic!("{word} has no description"));
        write!(all, " `\"{word}\"`: {}", about.to_owned()).unwrap();
        all
    })
}

/// A text as a cell of a table.
fn cell(text: &str) -> String {
    text.split_whitespace()
        .collect::<Vec<_>>()
        .join(" ")
        .replace('|', "\\|")
}

// ---------------------------------------------------------------- commands

const FLAGS: &str = "| flag | variable | key | meaning |\n|---|---|---|---|";

/// A flag as it is written, or the name of an argument without one.
fn spelled(arg: &Arg) -> String {
    match arg.get_long() {
        Some(long) => format!("--{long}"),
        None => arg
            .get_value_names()
            .and_then(|names| names.first())
            .map_or_else(
                || arg.get_id().to_string().to_uppercase(),
                ToString::to_string,
            ),
    }
}

fn row(arg: &Arg, keys: Option<&Vec<String>>) -> String {
    let mut flag = spelled(arg);
    let takes = matches!(arg.get_action(), ArgAction::Set | ArgAction::Append);
    if takes && arg.get_long().is_some() {
        let name = arg.get_value_names().and_then(|names| names.first());
        let name = name.map_or_else(
            || arg.get_id().to_string().to_uppercase(),
            ToString::to_string,
        );
        flag = format!("{flag} {name}");
    }
    let variable = arg
        .get_env()
        .map_or_else(String::new, |v| format!("`{}`", v.to_str().unwrap()));
    let help = arg
        .get_help()
        .unwrap_or_else(|| panic!("{flag} has no description"))
        .to_string();
    let defaults: Vec<&str> = arg
        .get_default_values()
        .iter()
        .filter_map(|v| v.to_str())
        .collect();
    let default = match (takes, defaults.is_empty()) {
        (true, false) => format!(" [default: {}]", defaults.join(", ")),
        _ => String::new(),
    };
    let keys = keys
        .into_iter()
        .flatten()
        .map(|key| match key.rsplit_once(' ') {
            Some((table, key)) => format!("{table} `{key}`"),
            None => format!("`{key}`"),
        })
        .collect::<Vec<_>>()
        .join(", ");
    format!(
        "| `{}` | {variable} | {keys} | {} |\n",
        flag.replace('|', "\\|"),
        cell(&format!("{help}{default}")).replace('*', "\\*")
    )
}

/// A section for each command below this one.
fn commands(parent: &Command, path: &str, keys: &Keys, page: &mut String) {
    for command in parent.get_subcommands().filter(|c| !c.is_hide_set()) {
        let name = command.get_name();
        if name == "help" {
            continue;
        }
        let path = format!("{path} {name}");
        let about = command
            .get_about()
            .unwrap_or_else(|| panic!("{path} has no description"));
        writeln!(page, "\n### `{path}`\n\n{about}.").unwrap();
        if path == "kite reload" {
            page.push_str(
                "\nIts flags are those of [`kite backend`](#kite-backend), as it was started.\n",
            );
            continue;
        }
        let mut rows = String::new();
        for arg in command.get_arguments().filter(|a| !a.is_hide_set()) {
            let found = keys.of_flag.get(&format!("{name} {}", spelled(arg)));
            rows.push_str(&row(arg, found));
        }
        if !rows.is_empty() {
            writeln!(page, "\n{FLAGS}").unwrap();
            page.push_str(&rows);
        }
        commands(command, &path, keys, page);
    }
}
