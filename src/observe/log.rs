//! Log lines: for people as text, for programs as JSON, or to the journal in its own protocol. None has
//! anybody's address unless the operator asked for it: that is seen to where a line is made.

use std::fs::File;
use std::io::IsTerminal;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use clap::ValueEnum;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry};

use super::journal::Journal;
use super::stderr::{self, Stderr};
use crate::dial::supervisor::JournalSocket;

/// Levels that apply to kite's own lines; from the libraries only warnings are of use.
const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
/// Where journald listens. The one Unix socket besides origins that a kite in Tor mode speaks to.
pub const JOURNAL: &str = "/run/systemd/journal/socket";
/// systemd says in this variable which file the journal is, as `device:inode`.
const JOURNAL_STREAM: &str = "JOURNAL_STREAM";

/// How log lines are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Lines for people, on standard error.
    Text,
    /// One JSON object a line, on standard error: timestamp, level, message, and what else there is to say.
    Json,
    /// Straight to systemd's journal, with levels and fields.
    Journald,
}

impl Format {
    /// The journal's own if standard error is the journal anyway, else text.
    fn usual() -> Self {
        let journal = std::env::var(JOURNAL_STREAM).unwrap_or_default();
        match is_stderr(&journal) && Path::new(JOURNAL).exists() {
            true => Self::Journald,
            false => Self::Text,
        }
    }
}

/// Begins logging. `level` is one word for kite, or filters such as `kite=debug,arti_client=info`.
/// Call it before the sandbox closes: the journal's socket is opened here.
pub fn init(level: &str, format: Option<Format>) -> Result<(), String> {
    let filters = match LEVELS.contains(&level) {
        true => format!("error,kite={level}"),
        false => level.to_owned(),
    };
    let filter = EnvFilter::try_new(&filters)
        .map_err(|e| format!("--log {level}: {e}; write a level such as info"))?;
    let layer = match format {
        None if Format::usual() == Format::Journald => journald().unwrap_or_else(|_| text()),
        None | Some(Format::Text) => text(),
        Some(Format::Json) => json(),
        Some(Format::Journald) => journald().map_err(|e| {
            format!(
                "--log-format journald: {JOURNAL} cannot be spoken to: {e}; does systemd's journald run here? If not, use text or json"
            )
        })?,
    };
    tracing_subscriber::registry()
        .with(layer.with_filter(filter))
        .try_init()
        .map_err(|e| e.to_string())
}

type BoxLayer = Box<dyn Layer<Registry> + Send + Sync>;

fn text() -> BoxLayer {
    let colours = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    tracing_subscriber::fmt::layer()
        .with_writer(Stderr::default)
        .with_target(false)
        .with_ansi(colours)
        .boxed()
}

fn json() -> BoxLayer {
    tracing_subscriber::fmt::layer()
        .json()
        .flatten_event(true)
        .with_current_span(false)
        .with_span_list(false)
        .with_writer(Stderr::default)
        .with_target(false)
        .boxed()
}

fn journald() -> std::io::Result<BoxLayer> {
    stderr::to_journal(JournalSocket::open(Path::new(JOURNAL))?);
    Ok(Journal.boxed())
}

/// Is standard error this file, `device:inode`?
fn is_stderr(file: &str) -> bool {
    let Some((device, inode)) = file.split_once(':') else {
        return false;
    };
    let meta = std::io::stderr()
        .as_fd()
        .try_clone_to_owned()
        .and_then(|own| File::from(own).metadata());
    meta.is_ok_and(|meta| device.parse() == Ok(meta.dev()) && inode.parse() == Ok(meta.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn standard_error_is_known_by_its_numbers() {
        let own = std::io::stderr()
            .as_fd()
            .try_clone_to_owned()
            .expect("a file");
        let meta = File::from(own).metadata().expect("its numbers");
        assert!(is_stderr(&format!("{}:{}", meta.dev(), meta.ino())));
        for other in [
            "",
            ":",
            "8:x",
            &format!("{}:{}", meta.dev(), meta.ino() + 1),
        ] {
            assert!(!is_stderr(other), "{other}");
        }
    }
}
