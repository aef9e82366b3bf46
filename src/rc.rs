//! The rc files of pagekite.py, as they are: `~/.pagekite.rc`, `/etc/pagekite.d/*.rc`.
//!
//! ```text
//! files ── read ──▶ settings ── backend, frontend ──▶ TOML, secrets, notes ──▶ config
//!           parse                                              └── import ──▶ kite.toml
//! ```
//!
//! An rc file is translated to the TOML that says the same, and that is read like any other: there is one
//! place where a configuration is judged, and `kite import` writes what kite itself would have read. Whatever
//! has no meaning to kite gives one [`Note`]. No secret is in a note or a mistake.
//!
//! `parse`, `options`, `backend` and `frontend` know text and nothing else; `read` knows files.

mod backend;
mod frontend;
pub mod import;
mod options;
mod parse;
mod read;
mod translation;

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use zeroize::Zeroizing;

use self::options::Spec;
pub use self::parse::parse;
pub use self::read::{Rc, is_rc, usual};
pub use self::translation::Translation;

/// Where an option stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    file: Arc<str>,
    /// From 1; 0 for the file as a whole.
    line: usize,
}

impl Place {
    fn line(file: &Arc<str>, line: usize) -> Self {
        Self {
            file: file.clone(),
            line,
        }
    }

    fn file(path: &Path) -> Self {
        Self {
            file: path.display().to_string().into(),
            line: 0,
        }
    }

    fn setting(self, spec: &'static Spec, value: &str) -> Setting {
        Setting {
            place: self,
            name: spec.name,
            spec,
            value: Zeroizing::new(value.to_owned()),
        }
    }

    fn mistake(&self, problem: impl Into<String>, remedy: impl Into<String>) -> Mistake {
        Mistake {
            place: self.clone(),
            problem: problem.into(),
            remedy: remedy.into(),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => f.write_str(&self.file),
            line => write!(f, "{}:{line}", self.file),
        }
    }
}

/// One option of a file.
#[derive(Clone, PartialEq, Eq)]
pub struct Setting {
    /// Where it stands.
    pub place: Place,
    /// The option in full, without dashes.
    pub name: &'static str,
    /// What belongs to it; nothing for a flag. May be a secret, or hold one.
    pub value: Zeroizing<String>,
    spec: &'static Spec,
}

impl Setting {
    fn mistake(&self, problem: impl fmt::Display, remedy: impl Into<String>) -> Mistake {
        self.place
            .mistake(format!("{}: {problem}", self.name), remedy)
    }

    fn note(&self, text: impl Into<String>) -> Note {
        Note {
            place: self.place.clone(),
            option: self.name,
            text: text.into(),
        }
    }
}

impl fmt::Debug for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} = …", self.place, self.name)
    }
}

/// What is wrong with a file, where, and what to do about it. Ends the reading.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistake {
    /// Where it is.
    pub place: Place,
    /// What it is.
    pub problem: String,
    /// What to do about it.
    pub remedy: String,
}

/// What has no meaning to kite, or another than it had. The rest of the file holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    place: Place,
    option: &'static str,
    text: String,
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.option.is_empty() {
            return write!(f, "{}: {}", self.place, self.text);
        }
        write!(f, "{}: {}: {}", self.place, self.option, self.text)
    }
}

/// Which role a configuration is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The hidden side.
    Backend,
    /// The public side.
    Frontend,
}

/// What commas part.
fn list(value: &str) -> impl Iterator<Item = &str> {
    value
        .split(',')
        .map(str::trim)
        .filter(|part| !part.is_empty())
}

#[cfg(test)]
mod tests;

/// A port from 1 to 65535.
fn port(text: &str) -> Option<u16> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    text.parse().ok().filter(|port| digits && *port != 0)
}
