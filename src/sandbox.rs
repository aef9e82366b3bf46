//! What the kernel takes away from a backend in Tor mode, so that it could not leak if it tried, and from a frontend, so that
//! who breaks into it finds little more there than the frontend itself.
//!
//! Two layers, for what one cannot express. Landlock (`landlock.rs`): which files, by path. seccomp
//! (`seccomp.rs`): which system calls, by number and plain arguments. Neither can tell a relay's
//! address from a frontend's: TCP to anybody stays possible here, and is the guarded runtime's business.
//!
//! A denied call fails like one without permission. An error in the log is mended sooner than a dead node.

use std::fmt;
use std::path::{Path, PathBuf};

use crate::code::Code;

#[cfg(target_os = "linux")]
mod landlock;
#[cfg(all(
    target_os = "linux",
    any(target_arch = "x86_64", target_arch = "aarch64")
))]
mod seccomp;

/// What stays open. All else goes.
#[derive(Debug, Default)]
pub struct Plan {
    /// Directories to read and write in. They are made, for this user alone, if they are not there.
    pub directories: Vec<PathBuf>,
    /// Files to read; of a directory, those beneath it.
    pub files: Vec<PathBuf>,
    /// Unix sockets to dial. None: not even a socket of that family can be made.
    pub sockets: Vec<PathBuf>,
    /// Programs to start, with the shared libraries of the system. They inherit these walls, and may
    /// listen on a port that the kernel chooses, since pluggable transports do.
    pub programs: Vec<PathBuf>,
    /// Questions go to a server of the DNS: datagrams of the Internet, and no others.
    pub datagrams: bool,
    /// Names are looked up as this machine does it: by datagrams, by a daemon behind a Unix socket, by files in /etc.
    pub names: bool,
    /// TCP ports to listen on from now on; 0 is whichever the kernel chooses.
    pub ports: Vec<u16>,
    /// Unix sockets to listen at, besides those in `directories`.
    pub places: Vec<PathBuf>,
    /// Programs of the operator's that may need anything. They would inherit these walls, so files, sockets and programs stay.
    pub helpers: Vec<PathBuf>,
    /// The program that takes over from this one, when it is replaced by a newer one in place. It inherits these walls, and
    /// raises its own within them. What lies beside it can be started, too: a new version is another file.
    pub own_program: Option<PathBuf>,
}

impl Plan {
    /// Whether somebody listens who does not yet.
    fn listens(&self) -> bool {
        self.starts_programs() || !self.ports.is_empty() || !self.places.is_empty()
    }

    /// Whether programs are started at all.
    fn starts_programs(&self) -> bool {
        !self.programs.is_empty() || !self.helpers.is_empty() || self.own_program.is_some()
    }
}

/// What was taken away, and what this kernel cannot take.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// One line for each layer that stands.
    pub closed: Vec<String>,
    /// What stays possible only because this kernel, or this machine, lacks something. A line each.
    pub missing: Vec<String>,
}

impl Report {
    /// Says in the log what stands, and what is missing.
    pub fn tell(&self) {
        for line in &self.closed {
            tracing::info!("sandbox: {line}");
        }
        for line in &self.missing {
            tracing::warn!(
                "[{}] sandbox: this machine cannot do all: {line}",
                Code::SandboxLacks
            );
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let closed = self.closed.iter().map(|line| ("", line));
        let missing = self.missing.iter().map(|line| ("missing: ", line));
        for (i, (mark, line)) in closed.chain(missing).enumerate() {
            let gap = if i == 0 { "" } else { "\n" };
            write!(f, "{gap}{mark}{line}")?;
        }
        Ok(())
    }
}

/// Confines the calling thread and all that it starts from now on, for good. So it belongs before the
/// first other thread, and behind the last listener: after it no socket can be bound.
///
/// Never fails: what this kernel lacks is in the report.
pub fn enter(plan: &Plan) -> Report {
    let mut report = Report::default();
    for dir in &plan.directories {
        if let Err(e) = make(dir) {
            report.missing.push(format!("{}: {e}", dir.display()));
        }
    }
    layers(plan, &mut report);
    report
}

fn make(dir: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
}

#[cfg(target_os = "linux")]
fn layers(plan: &Plan, report: &mut Report) {
    landlock::enter(plan, report);
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    seccomp::enter(plan, report);
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    report.missing.push(format!(
        "seccomp: kite has no filter for {}; datagrams, listeners and programs are not taken away",
        std::env::consts::ARCH
    ));
}

#[cfg(not(target_os = "linux"))]
fn layers(_: &Plan, report: &mut Report) {
    report.missing.push(format!(
        "Landlock and seccomp: {} has neither; nothing is taken away",
        std::env::consts::OS
    ));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_says_what_stands_and_then_what_is_missing() {
        let report = Report {
            closed: vec!["seccomp: no datagrams".into()],
            missing: vec!["Landlock: not in this kernel".into()],
        };
        assert_eq!(
            report.to_string(),
            "seccomp: no datagrams\nmissing: Landlock: not in this kernel"
        );
        assert_eq!(Report::default().to_string(), "");
    }
}
