//! `kite explain`: what a code means, and who can see what of a configuration.

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::Path;

use clap::Parser;

use crate::cli::{Cli, Command, ExplainArgs};
use crate::code::{Code, Coded, Entry, Unknown};
use crate::config::ConfigError;
use crate::config::outline::{BackendOutline, FrontendOutline, role_of};
use crate::rc::Role;

pub mod sight;

use sight::Sight;

/// Why nothing was explained.
#[derive(Debug, thiserror::Error)]
pub enum ExplainError {
    /// No such code.
    #[error(transparent)]
    Unknown(#[from] Unknown),
    /// The configuration is of no use.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The flags are none of the role's.
    #[error("{}", .0.to_string().trim_end())]
    Flags(#[from] clap::Error),
    /// Nothing was asked.
    #[error(
        "there is nothing to explain; give a code such as KITE-C04, --list for all codes, or, for who can see what, \
         --config FILE or `backend` and its flags"
    )]
    Nothing,
    /// Nobody reads the answer.
    #[error("cannot write: {0}; see where the output goes")]
    Output(#[from] io::Error),
}

impl Coded for ExplainError {
    fn code(&self) -> Code {
        match self {
            Self::Unknown(e) => e.code(),
            Self::Config(e) => e.code(),
            Self::Flags(_) | Self::Nothing => Code::Usage,
            Self::Output(_) => Code::OutputFailed,
        }
    }
}

/// Writes what the flags ask for.
pub fn run(args: &ExplainArgs, out: &mut impl Write) -> Result<(), ExplainError> {
    if args.list {
        return Ok(list(args.json, out)?);
    }
    let config = args.config.as_deref();
    let sight = match (args.what.as_deref(), config) {
        (Some(role @ ("backend" | "frontend")), _) => sight_of(role, &args.flags, config)?,
        (Some(code), _) if args.flags.is_empty() => {
            let entry = code.parse::<Code>()?.entry();
            return Ok(write(&entry, args.json, out)?);
        }
        (None, Some(config)) => {
            let role = match role_of(config)? {
                Role::Backend => "backend",
                Role::Frontend => "frontend",
            };
            sight_of(role, &[], Some(config))?
        }
        _ => return Err(ExplainError::Nothing),
    };
    Ok(write(&sight, args.json, out)?)
}

fn list(as_json: bool, out: &mut impl Write) -> io::Result<()> {
    let mut entries = Code::ALL.iter().map(|code| code.entry());
    match as_json {
        true => json(&entries.collect::<Vec<_>>(), out),
        false => entries.try_for_each(|entry| writeln!(out, "{}  {}", entry.code, entry.title)),
    }
}

fn write(
    what: &(impl serde::Serialize + std::fmt::Display),
    as_json: bool,
    out: &mut impl Write,
) -> io::Result<()> {
    match as_json {
        true => json(what, out),
        false => write!(out, "{what}"),
    }
}

/// Who sees what of a role that is started with these flags: they are read as they would be then.
fn sight_of(role: &str, flags: &[OsString], config: Option<&Path>) -> Result<Sight, ExplainError> {
    let words = [OsString::from("kite"), role.into()].into_iter();
    let file = config.map(|file| [OsString::from("--config"), file.into()]);
    let words = words.chain(file.into_iter().flatten());
    match Cli::try_parse_from(words.chain(flags.iter().cloned()))?.command {
        Command::Backend(args) if args.command.is_none() => {
            Ok(sight::of_backend(&BackendOutline::load(&args.run)?))
        }
        Command::Frontend(args) if args.command.is_none() => {
            Ok(sight::of_public_side(&FrontendOutline::load(&args)?))
        }
        _ => Err(ExplainError::Nothing),
    }
}

fn json(what: &(impl serde::Serialize + ?Sized), out: &mut impl Write) -> io::Result<()> {
    serde_json::to_writer_pretty(&mut *out, what)?;
    writeln!(out)
}

/// The catalogue as a page of the documentation.
pub fn page() -> String {
    let mut page = String::from(
        "# Errors\n\n\
         Whatever can go wrong has a code, which messages and log lines carry in front. A code never changes its\n\
         meaning. This page is made from the same catalogue as `kite explain CODE`.\n",
    );
    let areas = [
        ("T", "Tor"),
        ("F", "Frontends, their tunnels and certificates"),
        ("B", "The origin"),
        ("C", "Configuration, usage, files"),
    ];
    for (letter, title) in areas {
        page += &format!("\n## {title}: KITE-{letter}\n");
        let of = Code::ALL.iter().filter(|c| c.short().starts_with(letter));
        for entry in of.map(|code| code.entry()) {
            page += &section(&entry);
        }
    }
    page
}

fn section(entry: &Entry) -> String {
    let Entry {
        code,
        title,
        cause,
        subject,
        remedy,
        then,
        example,
    } = entry;
    format!(
        "\n### {code}: {title}\n\n\
         {cause}\n\n\
         * About: {subject}\n\
         * To do: {remedy}\n\
         * kite {then}\n\n\
         ```\n[{code}] {example}\n```\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(args: ExplainArgs) -> Result<String, ExplainError> {
        let mut out = Vec::new();
        run(&args, &mut out)?;
        Ok(String::from_utf8(out).expect("text"))
    }

    #[test]
    fn a_code_is_explained_in_words_and_for_programs() {
        let args = |json| ExplainArgs {
            what: Some("f04".into()),
            json,
            ..ExplainArgs::default()
        };
        let entry = Code::WrongPin.entry();
        let text = said(args(false)).expect("it is known");
        assert!(text.starts_with("KITE-F04: ") && text.contains(entry.remedy));
        let json: serde_json::Value =
            serde_json::from_str(&said(args(true)).expect("it is known")).expect("JSON");
        assert_eq!(json["code"], "KITE-F04");
        assert_eq!(json["remedy"], entry.remedy);
        assert_eq!(json["then"], "tries-again");
    }

    #[test]
    fn the_list_has_every_code_on_a_line() {
        let args = |json| ExplainArgs {
            list: true,
            json,
            ..ExplainArgs::default()
        };
        let text = said(args(false)).expect("a list");
        let listed: Vec<_> = text.lines().filter_map(|l| l.split("  ").next()).collect();
        let all: Vec<_> = Code::ALL.iter().map(|c| c.as_str()).collect();
        assert_eq!(listed, all);
        let json: serde_json::Value =
            serde_json::from_str(&said(args(true)).expect("a list")).expect("JSON");
        assert_eq!(json.as_array().map(Vec::len), Some(all.len()));
    }

    #[test]
    fn what_cannot_be_explained_says_what_can() {
        let unknown = ExplainArgs {
            what: Some("KITE-C99".into()),
            ..ExplainArgs::default()
        };
        let error = said(unknown).expect_err("there is none");
        assert!(
            error.to_string().contains("the nearest is KITE-C"),
            "{error}"
        );
        assert_eq!(error.code(), Code::Usage);
        let error = said(ExplainArgs::default()).expect_err("nothing");
        assert!(error.to_string().contains("--list"));
    }
}
