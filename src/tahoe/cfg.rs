//! `tahoe.cfg` as Python's configparser reads it for Tahoe, with the place of every line,
//! so that single lines can be changed and all others stay.

use std::collections::BTreeMap;

/// Sections whose values Tahoe looks at, and Python therefore interpolates.
const LOOKED_AT: [&str; 7] = [
    "node",
    "client",
    "storage",
    "connections",
    "tor",
    "i2p",
    "sftpd",
];

/// Why a text is no configuration.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {problem}")]
pub struct CfgError {
    /// Counted from one.
    pub line: usize,
    /// What is wrong there.
    pub problem: &'static str,
}

/// One option.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Sections are told apart by case.
    pub section: String,
    /// In lower case, as Python has it.
    pub key: String,
    /// With continuation lines joined by line feeds.
    pub value: String,
    /// Where it begins, counted from one.
    pub line: usize,
    /// The lines that go on with the value, counted from one.
    more: Vec<usize>,
}

/// A line to write: `value` under `[section]`, or no such line at all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Without brackets.
    pub section: &'static str,
    /// As Tahoe's documentation spells it.
    pub key: &'static str,
    /// `None` to remove it.
    pub value: Option<String>,
}

impl Change {
    /// The option shall have this value.
    pub fn set(section: &'static str, key: &'static str, value: impl Into<String>) -> Self {
        Self {
            section,
            key,
            value: Some(value.into()),
        }
    }

    /// The option shall not be there.
    pub fn remove(section: &'static str, key: &'static str) -> Self {
        Self {
            section,
            key,
            value: None,
        }
    }
}

/// A configuration that has been read.
#[derive(Debug, Default)]
pub struct Cfg {
    entries: Vec<Entry>,
    /// Sections in the order of their headers, and the headers' lines.
    headers: Vec<(String, usize)>,
}

impl Cfg {
    /// Reads a text as `ConfigParser(strict=False)` does. Of an option that is given twice the last counts.
    pub fn parse(text: &str) -> Result<Self, CfgError> {
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let mut cfg = Self::default();
        let (mut indent, mut in_option) = (0, false);
        for (index, line) in text.split('\n').enumerate() {
            let number = index + 1;
            let error = |problem| CfgError {
                line: number,
                problem,
            };
            let content = line.trim();
            if line.strip_suffix('\r').unwrap_or(line).contains('\r') {
                return Err(error(
                    "a carriage return stands within it, where Python begins another line; make line feeds of them",
                ));
            }
            if content.is_empty() || content.starts_with(['#', ';']) {
                continue;
            }
            let depth = line.chars().take_while(|c| c.is_whitespace()).count();
            if in_option && depth > indent {
                if let Some(entry) = cfg.entries.last_mut() {
                    // Empty lines within a value belong to it; nobody here needs their number.
                    entry.value.push('\n');
                    entry.value.push_str(content);
                    entry.more.push(number);
                }
                continue;
            }
            indent = depth;
            if let Some(name) = header(content) {
                cfg.headers.push((name.to_owned(), number));
                in_option = false;
                continue;
            }
            let (section, _) = cfg
                .headers
                .last()
                .ok_or(error("there is no [section] before it"))?;
            if section == "DEFAULT" {
                return Err(error(
                    "kite does not read [DEFAULT]; put the line into its own section",
                ));
            }
            let (key, value) = content
                .split_once(['=', ':'])
                .ok_or(error("it is neither a [section] nor `key = value`"))?;
            if key.trim().is_empty() {
                return Err(error("there is no key before the sign"));
            }
            cfg.entries.push(Entry {
                section: section.clone(),
                key: key.trim_end().to_lowercase(),
                value: value.trim().to_owned(),
                line: number,
                more: vec![],
            });
            in_option = true;
        }
        for entry in &mut cfg.entries {
            if LOOKED_AT.contains(&entry.section.as_str()) {
                let plain = entry.value.replace("%%", "");
                if plain.contains('%') {
                    return Err(CfgError {
                        line: entry.line,
                        problem: "Python replaces what stands behind a %, and kite does not; write %% for a %, and values in full",
                    });
                }
                entry.value = entry.value.replace("%%", "%");
            }
        }
        Ok(cfg)
    }

    /// The option that counts; the key in any case.
    pub fn entry(&self, section: &str, key: &str) -> Option<&Entry> {
        self.all(section, key).next_back()
    }

    /// All lines that give this option.
    pub fn all<'a>(
        &'a self,
        section: &str,
        key: &str,
    ) -> impl DoubleEndedIterator<Item = &'a Entry> + use<'a> {
        let (section, key) = (section.to_owned(), key.to_lowercase());
        let is = move |e: &&Entry| e.section == section && e.key == key;
        self.entries.iter().filter(is)
    }

    /// The value that counts.
    pub fn value(&self, section: &str, key: &str) -> Option<&str> {
        self.entry(section, key).map(|e| e.value.as_str())
    }

    /// Every option, in the order of the file.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The line of a section's last header.
    pub fn header(&self, section: &str) -> Option<usize> {
        let last = self.headers.iter().rev().find(|(name, _)| name == section);
        last.map(|(_, line)| *line)
    }

    /// The options, with the values that count, that these changes do not mean.
    pub fn others(&self, changes: &[Change]) -> BTreeMap<(&str, &str), &str> {
        let meant = |e: &Entry| {
            let mut changes = changes.iter();
            changes.any(|c| c.section == e.section && c.key.to_lowercase() == e.key)
        };
        self.entries
            .iter()
            .filter(|e| !meant(e))
            .map(|e| ((e.section.as_str(), e.key.as_str()), e.value.as_str()))
            .collect()
    }

    /// The last line of a section, behind which one more option may stand, and the line that it must be indented
    /// like: no deeper than an option above it, and no less than what follows a header.
    fn end(&self, section: &str) -> Option<(usize, usize)> {
        let header = self.header(section)?;
        let last = self.entries.iter().rev();
        let last = last
            .take_while(|e| e.line > header)
            .find(|e| e.section == section);
        if let Some(last) = last {
            return Some((last.more.last().copied().unwrap_or(last.line), last.line));
        }
        let next = self.headers.iter().find(|(_, line)| *line > header);
        Some((header, next.map_or(header, |(_, line)| *line)))
    }
}

/// `[name]`, whatever follows the last bracket.
fn header(content: &str) -> Option<&str> {
    let rest = content.strip_prefix('[')?;
    rest.get(..rest.rfind(']')?).filter(|name| !name.is_empty())
}

/// The text with these changes, and every other line as it was. An option that has its value already keeps its line.
pub fn apply(text: &str, changes: &[Change]) -> Result<String, CfgError> {
    changes
        .iter()
        .try_fold(text.to_owned(), |text, change| apply_one(&text, change))
}

fn apply_one(text: &str, change: &Change) -> Result<String, CfgError> {
    let cfg = Cfg::parse(text)?;
    let mut lines: Vec<String> = text.split_inclusive('\n').map(str::to_owned).collect();
    let crlf = lines.first().is_some_and(|l| l.ends_with("\r\n"));
    let end = if crlf { "\r\n" } else { "\n" };
    let (section, key) = (change.section, change.key);
    let Some(value) = &change.value else {
        for entry in cfg.all(section, key).rev() {
            remove(&mut lines, &entry.more);
            remove(&mut lines, &[entry.line]);
        }
        return Ok(lines.concat());
    };
    let written = |like: &str| {
        let indent: String = like
            .chars()
            .take_while(|c| c.is_whitespace() && !matches!(c, '\r' | '\n'))
            .collect();
        format!("{indent}{key} = {}{end}", value.replace('%', "%%"))
    };
    if let Some(entry) = cfg.entry(section, key) {
        if entry.value != *value {
            remove(&mut lines, &entry.more);
            if let Some(line) = lines.get_mut(entry.line - 1) {
                *line = written(line);
            }
        }
        return Ok(lines.concat());
    }
    if let Some(last) = lines.last_mut().filter(|l| !l.ends_with('\n')) {
        // Half of a line's end may be there.
        last.push_str(if last.ends_with('\r') { "\n" } else { end });
    }
    match cfg.end(section) {
        Some((at, like)) => {
            let new = lines.get(like - 1).map(|l| written(l)).unwrap_or_default();
            lines.insert(at, new);
        }
        None => {
            if !lines.is_empty() {
                lines.push(end.into());
            }
            lines.push(format!("[{section}]{end}"));
            lines.push(written(""));
        }
    }
    Ok(lines.concat())
}

/// Removes lines, counted from one and in their order.
fn remove(lines: &mut Vec<String>, numbers: &[usize]) {
    for number in numbers.iter().rev() {
        if *number <= lines.len() {
            lines.remove(number - 1);
        }
    }
}
