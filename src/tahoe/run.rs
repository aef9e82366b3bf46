//! `kite tahoe`: the lines for a node, printed or put into its file.

use std::io::Write;
use std::path::Path;

use super::cfg::Change;
use super::dir::{DirError, NodeDir};
use super::{Finding, Kind, Kite, KiteError, PUBLIC_PORT, Severity, announced_port, check, show};
use crate::check::node::report;
use crate::cli::TahoeArgs;
use crate::code::{Code, Coded};
use crate::config::{ConfigError, NodeSide};
use crate::control;
use crate::kite::KiteName;
use crate::observe::status::{self, Role, Status};

/// Why there are no lines.
#[derive(Debug, thiserror::Error)]
pub enum TahoeError {
    /// The backend's configuration is of no use.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// It gives no lines.
    #[error(transparent)]
    Kite(#[from] KiteError),
    /// The node's directory is of no use.
    #[error(transparent)]
    Dir(#[from] DirError),
    /// A flag that is no port.
    #[error("--public-port {0}: this is no port; write 80, or tahoebob.alice.example=8443")]
    Port(String),
    /// Nobody reads the lines.
    #[error("cannot write the lines: {0}; see where the output goes")]
    Output(#[from] std::io::Error),
}

impl Coded for TahoeError {
    fn code(&self) -> Code {
        match self {
            Self::Config(e) => e.code(),
            Self::Kite(e) => e.code(),
            Self::Dir(e) => e.code(),
            Self::Port(_) => Code::BadValue,
            Self::Output(_) => Code::OutputFailed,
        }
    }
}

/// Prints the lines, or writes them into a node's file. False if something leaks even so.
pub fn run(
    args: &TahoeArgs,
    running: Option<&Status>,
    out: &mut impl Write,
) -> Result<bool, TahoeError> {
    let side = NodeSide::load(&args.backend)?;
    let ports = args.public_port.iter().map(|text| public_port(text));
    let ports = ports.collect::<Result<Vec<_>, _>>()?;
    // The port of one kite goes before the port of all.
    let flag = |name: &KiteName| {
        let one = ports.iter().find(|(kite, _)| kite.as_ref() == Some(name));
        let all = ports.iter().find(|(kite, _)| kite.is_none());
        one.or(all).map(|(_, port)| *port)
    };
    let Some(dir) = &args.write else {
        let kite = Kite::new(&side, flag)?;
        print(&kite, args.public_port.is_empty(), running, out)?;
        return Ok(true);
    };
    let mut node = NodeDir::read(dir)?;
    let kite = Kite::new(&side, |name| {
        flag(name).or_else(|| announced_port(&node.node.cfg, name))
    })?;
    write(dir, &mut node, &kite, running, out)
}

/// How the backend is whose node this is, if it runs.
pub async fn running(args: &TahoeArgs) -> Option<Status> {
    let dir = NodeSide::load(&args.backend).ok()?.state_dir?;
    control::status(&Role::Backend.socket(&dir)).await.ok()
}

/// Whether visitors come by the hints of the lines, as far as the running backend has seen: in all, and through each frontend.
fn proof(kite: &Kite, running: Option<&Status>) -> Vec<String> {
    let Some(status) = running else {
        return vec![
            "not proven: no kite runs that could say whether visitors come here".to_owned(),
        ];
    };
    let proven = status.proven_hints();
    let location = kite.location();
    let mut missing = location
        .split(',')
        .filter(|hint| !proven.iter().any(|p| p == hint));
    let mut lines = vec![match missing.next() {
        None => {
            "proven: a visitor from outside came to this node, through each frontend".to_owned()
        }
        Some(hint) => {
            format!("not proven: {hint}; `kite status` says what its visitor from outside found")
        }
    }];
    let known = |k: &&status::Kite| {
        kite.names
            .iter()
            .any(|n| k.kite.ends_with(&format!(":{}", n.name)))
    };
    for one in status.kites.iter().filter(known) {
        for visit in one.by_name.iter().filter(|p| p.frontend.is_none()) {
            lines.push(format!("  {} by its name: {}", one.kite, visit.word()));
        }
        for at in &one.wanted_at {
            let word = one
                .probe(at)
                .map_or_else(|| one.unvisited(at), |p| p.word());
            lines.push(format!("  {} through {at}: {word}", one.kite));
        }
    }
    lines
}

fn print(
    kite: &Kite,
    usual_port: bool,
    running: Option<&Status>,
    out: &mut impl Write,
) -> Result<(), TahoeError> {
    let mut lines = kite.lines(Kind::Client)?;
    lines.insert(
        1,
        Change::set("node", "web.port", "tcp:3456:interface=127.0.0.1"),
    );
    writeln!(out, "# tahoe.cfg of the node at {}", kite.origin)?;
    writeln!(
        out,
        "# tub.location is {}",
        proof(kite, running).join("\n# ")
    )?;
    if usual_port {
        writeln!(
            out,
            "# Visitors come to the frontends' port {PUBLIC_PORT}; if it is another, give --public-port."
        )?;
    }
    Ok(out.write_all(show(&lines, "").as_bytes())?)
}

fn write(
    dir: &Path,
    node: &mut NodeDir,
    kite: &Kite,
    running: Option<&Status>,
    out: &mut impl Write,
) -> Result<bool, TahoeError> {
    let written = node.write(kite)?;
    let file = dir.join("tahoe.cfg");
    if written.changes.is_empty() {
        writeln!(
            out,
            "{}: all lines are there already, nothing was changed",
            file.display()
        )?;
    } else {
        writeln!(out, "{}: changed", file.display())?;
        out.write_all(show(&written.changes, "  ").as_bytes())?;
        if let Some(backup) = &written.backup {
            writeln!(out, "The old file is {}.", backup.display())?;
        }
        writeln!(out, "Restart the node: it reads the file at its start.")?;
    }
    writeln!(
        out,
        "Its tub.location is {}",
        proof(kite, running).join("\n")
    )?;
    let left: Vec<Finding> = check(&node.node, Some(kite))
        .into_iter()
        .filter(|f| f.severity != Severity::Note)
        .collect();
    Ok(left.is_empty() || report(dir, &left, out)?)
}

/// `80`, or `KITE=8443`.
fn public_port(text: &str) -> Result<(Option<KiteName>, u16), TahoeError> {
    let wrong = || TahoeError::Port(text.to_owned());
    let (kite, port) = match text.split_once('=') {
        Some((kite, port)) => (Some(kite.parse().map_err(|_| wrong())?), port),
        None => (None, text),
    };
    let port = port.parse().ok().filter(|p| *p != 0).ok_or_else(wrong)?;
    Ok((kite, port))
}
