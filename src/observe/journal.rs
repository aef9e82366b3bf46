//! Log lines as entries of systemd's journal, with levels and fields
//! ([Native Journal Protocol](https://systemd.io/JOURNAL_NATIVE_PROTOCOL/)): a datagram each.
//!
//! They go the way of all lines ([`super::stderr`]), so that nobody waits for a journal that has stopped.

use std::fmt::{self, Write as _};
use std::io::Write;

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

use super::stderr::{MAX_LINE, Stderr};

/// Who speaks.
const IDENTIFIER: &str = "kite";
/// What is put before the names of a line's own fields: `KITE_PEER`.
const PREFIX: &str = "KITE_";
/// What a field takes besides its value and its name: two line breaks and the length.
const FRAME: usize = 10;

/// Hands each line on as an entry. Spans are not told: kite has none.
pub(super) struct Journal;

impl<S: Subscriber> Layer<S> for Journal {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut entry = Entry::of(event.metadata());
        event.record(&mut entry);
        // It takes everything.
        let _ = Stderr.write(&entry.0);
    }
}

/// Of so many lines nothing is in the journal.
pub(super) fn missing(lines: u64) -> Vec<u8> {
    let mut entry = Entry::new(Level::WARN);
    entry.put(
        "MESSAGE",
        &format!("{lines} log lines are not here: the journal took none for a while"),
    );
    entry.0
}

/// Fields, as the protocol has them; [`MAX_LINE`] at most.
struct Entry(Vec<u8>);

impl Entry {
    fn new(level: Level) -> Self {
        let mut entry = Self(Vec::with_capacity(256));
        entry.put("PRIORITY", priority(level));
        entry.put("SYSLOG_IDENTIFIER", IDENTIFIER);
        entry
    }

    fn of(meta: &Metadata<'_>) -> Self {
        let mut entry = Self::new(*meta.level());
        entry.put("TARGET", meta.target());
        if let (Some(file), Some(line)) = (meta.file(), meta.line()) {
            entry.put("CODE_FILE", file);
            entry.put("CODE_LINE", &line.to_string());
        }
        entry
    }

    /// A field, with its value's length, since that may have line breaks. Of one for which there is no room the beginning is put.
    fn put(&mut self, name: &str, value: &str) {
        let room = MAX_LINE.saturating_sub(self.0.len() + name.len() + FRAME);
        let value = value.get(..value.floor_char_boundary(room)).unwrap_or("");
        if value.is_empty() {
            return;
        }
        self.0.extend_from_slice(name.as_bytes());
        self.0.push(b'\n');
        self.0
            .extend_from_slice(&(value.len() as u64).to_le_bytes());
        self.0.extend_from_slice(value.as_bytes());
        self.0.push(b'\n');
    }
}

impl Visit for Entry {
    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "message" => self.put("MESSAGE", value),
            own => self.put(&name_of(own), value),
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let mut text = String::new();
        let _ = write!(text, "{value:?}");
        self.record_str(field, &text);
    }
}

/// The journal takes capital letters, digits and low lines.
fn name_of(field: &str) -> String {
    let fit = |c: char| match c.is_ascii_alphanumeric() {
        true => c.to_ascii_uppercase(),
        false => '_',
    };
    PREFIX.chars().chain(field.chars().map(fit)).collect()
}

/// As syslog counts (RFC 5424 §6.2.1).
fn priority(level: Level) -> &'static str {
    match level {
        Level::ERROR => "3",
        Level::WARN => "4",
        Level::INFO => "6",
        Level::DEBUG | Level::TRACE => "7",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What an entry says, field by field.
    fn read(mut entry: &[u8]) -> Vec<(String, String)> {
        let mut fields = Vec::new();
        while !entry.is_empty() {
            let end = entry.iter().position(|b| *b == b'\n').expect("a name");
            let (name, rest) = entry.split_at(end);
            let (length, rest) = rest[1..].split_at(8);
            let length = u64::from_le_bytes(length.try_into().unwrap()) as usize;
            let (value, rest) = rest.split_at(length);
            let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("text");
            fields.push((text(name), text(value)));
            entry = rest.strip_prefix(b"\n").expect("a line break");
        }
        fields
    }

    #[test]
    fn values_may_have_line_breaks_and_names_are_the_journals() {
        let mut entry = Entry::new(Level::INFO);
        entry.put("MESSAGE", "two\nlines");
        entry.put(&name_of("log.peer-1"), "é");
        entry.put(&name_of("nothing"), "");
        let own = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        assert_eq!(
            read(&entry.0),
            [
                own("PRIORITY", "6"),
                own("SYSLOG_IDENTIFIER", "kite"),
                own("MESSAGE", "two\nlines"),
                own("KITE_LOG_PEER_1", "é"),
            ]
        );
        assert!(read(&missing(7))[2].1.starts_with("7 log lines"));
    }

    #[test]
    fn an_entry_has_a_length_and_is_whole() {
        let mut entry = Entry::new(Level::WARN);
        entry.put("KITE_A", "a");
        entry.put("MESSAGE", &"é".repeat(MAX_LINE));
        entry.put("KITE_B", &"b".repeat(MAX_LINE));
        assert!(entry.0.len() <= MAX_LINE);
        let fields = read(&entry.0);
        let (name, last) = fields.last().expect("fields");
        assert_eq!(name, "MESSAGE");
        assert!(last.len() > MAX_LINE - 200 && last.chars().all(|c| c == 'é'));
    }
}
