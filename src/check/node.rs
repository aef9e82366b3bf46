//! `kite check --node`: the configuration of a Tahoe-LAFS node.

use std::io::{self, Write};
use std::path::Path;

use super::CheckError;
use crate::cli::BackendArgs;
use crate::config::NodeSide;
use crate::tahoe::dir::NodeDir;
use crate::tahoe::{self, Finding, Kite, Severity};

/// Checks a node's directory, beside the backend's configuration if there is one. True if all is well.
pub fn run(dir: &Path, config: Option<&Path>, out: &mut impl Write) -> Result<bool, CheckError> {
    let node = NodeDir::read(dir)?.node;
    let kite = match config {
        Some(config) => {
            let side = NodeSide::load(&BackendArgs {
                config: Some(config.to_path_buf()),
                ..BackendArgs::default()
            })?;
            let announced = |name: &_| tahoe::announced_port(&node.cfg, name);
            Some(Kite::new(&side, announced)?)
        }
        None => None,
    };
    Ok(report(dir, &tahoe::check(&node, kite.as_ref()), out)?)
}

/// Writes the findings, and a verdict behind them. True if all is well.
pub fn report(dir: &Path, findings: &[Finding], out: &mut impl Write) -> io::Result<bool> {
    for finding in findings {
        let file = dir.join(finding.file);
        write!(out, "{}:", file.display())?;
        if let Some(line) = finding.line {
            write!(out, "{line}:")?;
        }
        writeln!(out, " {}: {}", finding.severity, finding.what)?;
        if !finding.instead.is_empty() {
            writeln!(
                out,
                "  instead:\n{}",
                tahoe::show(&finding.instead, "    ").trim_end()
            )?;
        }
    }
    let count = |severity| findings.iter().filter(|f| f.severity == severity).count();
    let (leaks, broken) = (count(Severity::Leak), count(Severity::Broken));
    let verdict = match (leaks, broken) {
        (0, 0) => "no leak, and nothing is broken".to_owned(),
        (0, broken) => format!("no leak, but broken: {broken}"),
        (leaks, broken) => format!("leaks: {leaks}, broken: {broken}"),
    };
    let notes = count(Severity::Note);
    writeln!(out, "{}: {verdict}; notes: {notes}", dir.display())?;
    Ok(leaks + broken == 0)
}
