//! Stable codes for all that can go wrong: `KITE-T…` Tor, `KITE-F…` frontends, their tunnels and certificates,
//! `KITE-B…` the origin behind a backend, `KITE-C…` configuration, usage, files and the control socket.
//!
//! One catalogue has them all ([`Code::ALL`]). A code never changes its meaning, and is not used again when what
//! it was for is gone. Messages carry it in front: `[KITE-C04] …`; `kite explain KITE-C04` says the rest.

use std::fmt;
use std::str::FromStr;

use serde::{Serialize, Serializer};

use crate::tor::{TorError, Trouble};

mod catalogue;

pub use catalogue::Code;

/// What every code begins with.
const PREFIX: &str = "KITE-";

/// An error with a code of its own.
pub trait Coded {
    /// The code for this very case.
    fn code(&self) -> Code;
}

/// What the catalogue says of a code.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Entry {
    /// The code.
    pub code: Code,
    /// What is the matter, in a few words.
    pub title: &'static str,
    /// How it comes about.
    pub cause: &'static str,
    /// What it is about, which the message names.
    pub subject: &'static str,
    /// What to do.
    pub remedy: &'static str,
    /// What kite does by itself.
    pub then: Then,
    /// A message as it may look, without the code.
    pub example: &'static str,
}

/// What kite does about trouble by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Then {
    /// It tries again, and mends it if the world lets it.
    TriesAgain,
    /// It goes on with everything else, and this stays as it is.
    GoesOn,
    /// The command ends, or does not begin.
    Ends,
}

impl fmt::Display for Then {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::TriesAgain => "tries again by itself; no restart is needed",
            Self::GoesOn => "goes on with everything else, and leaves this as it is",
            Self::Ends => "ends, or does not begin, until this is mended",
        })
    }
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}: {}", self.code, self.title)?;
        writeln!(f)?;
        writeln!(f, "  why:      {}", self.cause)?;
        writeln!(f, "  about:    {}", self.subject)?;
        writeln!(f, "  to do:    {}", self.remedy)?;
        writeln!(f, "  kite:     {}", self.then)?;
        writeln!(f, "  as in:    [{}] {}", self.code, self.example)
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl Serialize for Code {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(self.as_str())
    }
}

/// A text that is no code.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{text}' is no code; {}`kite explain --list` shows all", near(*.nearest))]
pub struct Unknown {
    text: String,
    nearest: Option<Code>,
}

fn near(nearest: Option<Code>) -> String {
    nearest.map_or_else(String::new, |code| {
        format!("the nearest is {code} ({}), and ", code.entry().title)
    })
}

impl Coded for Unknown {
    fn code(&self) -> Code {
        Code::Usage
    }
}

impl FromStr for Code {
    type Err = Unknown;

    /// In capitals or not, with `KITE-` or without.
    fn from_str(text: &str) -> Result<Self, Unknown> {
        let wanted = text.trim().trim_matches(['[', ']']).to_ascii_uppercase();
        let wanted = wanted.strip_prefix(PREFIX).unwrap_or(&wanted);
        let found = Self::ALL.iter().find(|code| code.short() == wanted);
        found.copied().ok_or_else(|| Unknown {
            // A word of any length may have been typed.
            text: text.chars().take(40).collect(),
            nearest: nearest(wanted),
        })
    }
}

/// The code with the same letter whose number is nearest.
fn nearest(wanted: &str) -> Option<Code> {
    let area = wanted.chars().next()?;
    let number = |text: &str| text.get(1..)?.parse::<u32>().ok();
    let wanted = number(wanted)?;
    let same = Code::ALL.iter().filter(|c| c.short().starts_with(area));
    same.min_by_key(|code| number(code.short()).unwrap_or(u32::MAX).abs_diff(wanted))
        .copied()
}

impl Code {
    /// Without `KITE-`: `F02`.
    pub fn short(self) -> &'static str {
        self.as_str().trim_start_matches(PREFIX)
    }

    /// The code in front of a message of kite's, `[KITE-F02] …`, and the message behind it.
    pub fn leading(message: &str) -> Option<(Self, &str)> {
        let (code, rest) = message.strip_prefix('[')?.split_once("] ")?;
        let known = Self::ALL.iter().find(|known| known.as_str() == code)?;
        Some((*known, rest))
    }
}

/// Tor's crate is below this one, and names its codes itself.
fn of_tor(code: &str) -> Code {
    code.parse().unwrap_or(Code::Broken)
}

impl Coded for Trouble {
    fn code(&self) -> Code {
        of_tor(self.kite_code())
    }
}

impl Coded for TorError {
    fn code(&self) -> Code {
        of_tor(self.kite_code())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_code_is_read_as_it_is_written() {
        for code in Code::ALL {
            for text in [
                code.as_str().to_owned(),
                code.as_str().to_lowercase(),
                code.short().to_owned(),
                code.short().to_lowercase(),
                format!("[{code}]"),
            ] {
                assert_eq!(text.parse(), Ok(*code), "{text}");
            }
            let line = format!("[{code}] frontend a.example:443: [KITE-C99] x");
            assert_eq!(
                Code::leading(&line),
                Some((*code, "frontend a.example:443: [KITE-C99] x"))
            );
        }
        assert_eq!(Code::leading("KITE-T01 x"), None);
        assert_eq!(Code::leading("[KITE-T99] x"), None);
    }

    #[test]
    fn an_unknown_code_names_the_nearest() {
        let said = |text: &str| text.parse::<Code>().expect_err(text).to_string();
        assert!(said("KITE-T99").contains("the nearest is KITE-T19"));
        assert!(said("b0").contains("the nearest is KITE-B01"));
        assert!(!said("X01").contains("nearest"));
        assert!(!said("").contains("nearest"));
        assert!(!said("é").contains("nearest"));
        assert!(said("nonsense").contains("--list"));
        assert!(said(&"x".repeat(10_000)).len() < 200);
    }

    #[test]
    fn the_catalogue_has_all_parts_of_each_and_nothing_twice() {
        let mut ids = BTreeSet::new();
        let mut said = BTreeSet::new();
        for code in Code::ALL {
            let id = code.as_str();
            assert!(ids.insert(id), "{id} is there twice");
            let number = id.get(6..).and_then(|n| n.parse::<u8>().ok());
            assert!(
                id.len() == 8
                    && number.is_some()
                    && matches!(id.as_bytes()[5], b'T' | b'F' | b'B' | b'C'),
                "{id}"
            );
            let entry = code.entry();
            for part in [
                entry.title,
                entry.cause,
                entry.subject,
                entry.remedy,
                entry.example,
            ] {
                assert!(part.len() > 10 && part.trim() == part, "{id}: '{part}'");
            }
            for sentence in [entry.cause, entry.remedy] {
                assert!(sentence.ends_with(['.', ')']), "{id}: {sentence}");
            }
            // Two codes that say the same are one too many.
            for part in [entry.title, entry.cause] {
                assert!(said.insert(part), "{id}: {part}");
            }
            let shown = entry.to_string();
            for part in [id, entry.cause, entry.subject, entry.remedy, entry.example] {
                assert!(shown.contains(part), "{shown}");
            }
        }
    }

    #[test]
    fn numbers_have_no_gap() {
        for area in ['T', 'F', 'B', 'C'] {
            let of: Vec<u32> = Code::ALL
                .iter()
                .filter(|c| c.short().starts_with(area))
                .filter_map(|c| c.short().get(1..)?.parse().ok())
                .collect();
            assert_eq!(of, (1..=of.len() as u32).collect::<Vec<_>>(), "{area}");
        }
    }

    #[test]
    fn tors_own_codes_are_in_the_catalogue() {
        let troubles = [
            (Trouble::NoNetwork, Code::NoNetwork),
            (Trouble::TorUnreachable, Code::TorUnreachable),
            (Trouble::TorBlocked, Code::TorBlocked),
            (Trouble::GuardsDown, Code::GuardsDown),
            (Trouble::BridgeDown, Code::BridgeDown),
            (Trouble::TransportFailed, Code::TransportFailed),
            (Trouble::ClockWrong, Code::ClockWrong),
            (Trouble::DirectoryExpired, Code::DirectoryExpired),
            (Trouble::DirectoryUnavailable, Code::DirectoryUnavailable),
            (Trouble::CircuitsFailing, Code::CircuitsFailing),
            (Trouble::Obsolete, Code::TorObsolete),
        ];
        for (trouble, code) in troubles {
            assert_eq!(trouble.code(), code);
            assert!(code.entry().example.contains(trouble.name()), "{code}");
        }
        let text = String::new;
        let errors = [
            (TorError::Local { reason: text() }, Code::TorLocal),
            (
                TorError::Config {
                    path: text().into(),
                    reason: text(),
                },
                Code::TorConfig,
            ),
            (TorError::InUse, Code::TorInUse),
            (
                TorError::Permissions { reason: text() },
                Code::TorPermissions,
            ),
            (TorError::NotBootstrapped, Code::TorStarting),
            (
                TorError::Onion {
                    nickname: text(),
                    reason: text(),
                },
                Code::OnionFailed,
            ),
            (TorError::Obsolete, Code::TorObsolete),
        ];
        for (error, code) in errors {
            assert_eq!(error.code(), code);
        }
    }
}
