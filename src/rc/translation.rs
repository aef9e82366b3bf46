//! What rc files come to: TOML with the keys of [`crate::config::file`], and what TOML cannot hold.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use toml::{Table, Value};

use super::options::Meaning;
use super::{Mistake, Note, Place, Role, Setting};
use crate::kite::Secret;

/// rc files in kite's own terms.
#[derive(Debug, Clone, Default)]
pub struct Translation {
    /// The configuration, but for the secrets.
    pub table: Table,
    /// The files that `secret_file` names in the table, and what would be in them.
    pub secrets: BTreeMap<String, Secret>,
    /// What holds no longer.
    pub notes: Vec<Note>,
    /// What is as it was wished without a setting; for the reader of an imported file.
    pub remarks: Vec<Note>,
    /// Where Tor, or another proxy, is asked for: nothing may be dialled directly.
    pub proxied: Option<Place>,
    /// The rc files.
    pub shown: String,
    /// Where the parts of the table come from: `kites[0]`, `ca_file`.
    sources: BTreeMap<String, String>,
    names: BTreeMap<&'static str, usize>,
}

impl Translation {
    /// Where a key of the table comes from, as messages say it.
    pub fn place(&self, key: &str) -> String {
        let within = |part: &str| {
            key.strip_prefix(part)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
        };
        let found = self.sources.iter().filter(|(part, _)| within(part));
        let longest = found.max_by_key(|(part, _)| part.len());
        longest.map_or_else(
            || format!("{}: {key}", self.shown),
            |(_, place)| place.clone(),
        )
    }

    pub(super) fn with(mut self, shown: &str, notes: &[Note]) -> Self {
        self.shown = shown.to_owned();
        self.notes.splice(0..0, notes.iter().cloned());
        self
    }

    pub(super) fn note(&mut self, setting: &Setting, text: impl Into<String>) {
        self.notes.push(setting.note(text));
    }

    pub(super) fn remark(&mut self, setting: &Setting, text: impl Into<String>) {
        self.remarks.push(setting.note(text));
    }

    /// Sets a key of its own.
    pub(super) fn set(&mut self, key: &str, value: impl Into<Value>, from: &Setting) {
        self.table.insert(key.to_owned(), value.into());
        self.source(key.to_owned(), from);
    }

    /// Adds a table to a list of tables.
    pub(super) fn push(&mut self, list: &'static str, entry: impl Into<Value>, from: &Setting) {
        let empty = || Value::Array(Vec::new());
        let entries = self.table.entry(list).or_insert_with(empty);
        if let Value::Array(entries) = entries {
            entries.push(entry.into());
        }
        let count = self.names.entry(list).or_default();
        let key = format!("{list}[{count}]");
        *count += 1;
        self.source(key, from);
    }

    fn source(&mut self, key: String, from: &Setting) {
        self.sources
            .insert(key, format!("{}: {}", from.place, from.name));
    }

    /// Keeps a secret for a kite; the name of its file. One secret has one file.
    pub(super) fn keep(&mut self, kite: &str, secret: Secret) -> String {
        if let Some((file, _)) = self.secrets.iter().find(|(_, kept)| **kept == secret) {
            return file.clone();
        }
        let stem = kite.replace('*', "any");
        let mut file = format!("{stem}.secret");
        let mut n = 1;
        while self.secrets.contains_key(&file) {
            n += 1;
            file = format!("{stem}-{n}.secret");
        }
        self.secrets.insert(file.clone(), secret);
        file
    }

    /// Deals with an option that this role has no setting for.
    pub(super) fn other(&mut self, setting: &Setting, role: Role) {
        match (setting.spec.meaning, role) {
            (Meaning::Always, _) => self.remark(setting, "kite does so in any case"),
            (Meaning::Nothing(why), _) => self.note(setting, why),
            (Meaning::Frontend, Role::Backend) => {
                self.note(setting, "it is for a frontend, and this is a backend");
            }
            (Meaning::Backend, Role::Frontend) => {
                self.note(setting, "it is for a backend, and this is a frontend");
            }
            (Meaning::Role | Meaning::Include | Meaning::Backend | Meaning::Frontend, _) => {}
        }
    }
}

/// A secret of a line, or why not.
pub(super) fn secret(setting: &Setting, text: &str) -> Result<Secret, Mistake> {
    Secret::new(text.as_bytes()).ok_or_else(|| {
        setting.mistake(
            "the secret is empty, or longer than a secret can be",
            "write the kite's secret as the last part of the line",
        )
    })
}

/// A file's whole path, so that it is the same wherever kite is started.
pub(super) fn path(base: &Path, file: &str) -> String {
    base.join(file).display().to_string()
}

/// As a file: what cannot be written as TOML's keys stands in comments.
impl fmt::Display for Translation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "# Made by `kite import` from {}.", plain(&self.shown))?;
        for (title, notes) in [
            ("What has no meaning here, or another:", &self.notes),
            ("What needs no key:", &self.remarks),
        ] {
            if !notes.is_empty() {
                writeln!(f, "#\n# {title}")?;
            }
            for note in notes {
                writeln!(f, "#   {}", plain(&note.to_string()))?;
            }
        }
        writeln!(f)?;
        let is_table = |value: &Value| match value {
            Value::Table(_) => true,
            Value::Array(entries) => !entries.is_empty() && entries.iter().all(Value::is_table),
            _ => false,
        };
        for (key, value) in self.table.iter().filter(|(_, v)| !is_table(v)) {
            writeln!(f, "{key} = {value}{}", self.from(key))?;
        }
        for (key, value) in &self.table {
            match value {
                Value::Table(table) => {
                    write_table(f, &format!("[{key}]{}", self.from(key)), table)?
                }
                Value::Array(entries) => {
                    for (i, entry) in entries.iter().enumerate() {
                        let from = self.from(&format!("{key}[{i}]"));
                        if let Value::Table(table) = entry {
                            write_table(f, &format!("[[{key}]]{from}"), table)?;
                        }
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }
}

impl Translation {
    fn from(&self, key: &str) -> String {
        let place = self.sources.get(key);
        place.map_or_else(String::new, |place| format!("  # {}", plain(place)))
    }
}

fn write_table(f: &mut fmt::Formatter<'_>, head: &str, table: &Table) -> fmt::Result {
    writeln!(f, "\n{head}")?;
    table
        .iter()
        .try_for_each(|(key, value)| writeln!(f, "{key} = {value}"))
}

/// For a comment, which ends with its line.
fn plain(text: &str) -> String {
    let plain = |c: char| if c.is_control() { ' ' } else { c };
    text.chars().map(plain).collect()
}
