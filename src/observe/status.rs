//! `kite status`: what a running kite says of itself, over its control socket ([`crate::control`]).

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::frontend::registry::TunnelView;
use crate::observe::board::View;
use crate::tor::{DialReport, Progress};

/// The two roles. Both may run with one state directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// The hidden side.
    Backend,
    /// The public side.
    Frontend,
}

impl Role {
    /// Where a kite of this role answers.
    pub fn socket(self, state_dir: &Path) -> PathBuf {
        state_dir.join(match self {
            Self::Backend => "backend.sock",
            Self::Frontend => "frontend.sock",
        })
    }
}

/// How a kite is. Times are in seconds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// What it is.
    pub role: Role,
    /// Its version.
    pub version: String,
    /// Since it started.
    pub up: u64,
    /// How it goes out: "Tor" or "direct"; none for a frontend.
    pub via: Option<String>,
    /// The embedded Tor client, if there is one.
    pub tor: Option<Tor>,
    /// What the kernel keeps from this process, one line each.
    pub sandbox: Vec<String>,
    /// A backend's tunnels.
    pub tunnels: Vec<Tunnel>,
    /// A frontend's backends.
    pub backends: Vec<Backend>,
    /// What backends dial to reach this frontend.
    pub addresses: Vec<String>,
}

/// The embedded Tor client.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Tor {
    /// `working`, `starting`, or what is the matter, by the name that it has in docs/states.md.
    pub state: String,
    /// Streams can be opened, as far as it knows.
    pub ready: bool,
    /// What it says of itself; or what is the matter, and what to do.
    pub text: String,
    /// Connections it has opened, by what they went to.
    pub dials: BTreeMap<String, u64>,
    /// Connections that were kept from it. There should be none.
    pub refused: BTreeMap<String, u64>,
}

/// One of a backend's tunnels.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Tunnel {
    /// The frontend's address, as configured.
    pub frontend: String,
    /// Its number among the tunnels to this frontend, from 1.
    pub tunnel: u8,
    /// `up`, `suspect`, `dialling`, `waiting` or `idle`.
    pub state: String,
    /// How long it has been so.
    pub since: u64,
    /// Through Tor, while it is up: how long its circuit has been in use. Arti may have built it some minutes before,
    /// to have one in reserve, and does not say when.
    pub circuit_age: Option<u64>,
    /// The last measured round trip, in milliseconds.
    pub round_trip_ms: Option<u64>,
    /// Open streams.
    pub streams: usize,
    /// Until the next attempt.
    pub retry_in: Option<u64>,
    /// What went wrong last.
    pub last_error: Option<String>,
    /// The kites that it flies.
    pub kites: Vec<String>,
}

/// One of a frontend's tunnels.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Backend {
    /// Where it comes from; scrubbed unless peers may be logged.
    pub peer: String,
    /// `protocol:name` of what it flies.
    pub kites: Vec<String>,
}

impl Status {
    /// One that says nothing yet.
    pub fn new(role: Role, began: Instant) -> Self {
        Self {
            role,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            up: began.elapsed().as_secs(),
            via: None,
            tor: None,
            sandbox: Vec::new(),
            tunnels: Vec::new(),
            backends: Vec::new(),
            addresses: Vec::new(),
        }
    }

    /// Nothing is amiss: a backend has a tunnel to each of its frontends.
    pub fn is_well(&self) -> bool {
        let stands = |frontend: &str| {
            let mut tunnels = self.tunnels.iter().filter(|t| t.frontend == frontend);
            tunnels.any(|t| t.state == "up")
        };
        self.tunnels.iter().all(|t| stands(&t.frontend))
            && self.tor.as_ref().is_none_or(|tor| tor.refused.is_empty())
    }
}

impl From<View> for Tunnel {
    fn from(view: View) -> Self {
        Self {
            frontend: view.frontend,
            tunnel: view.lane.0 + 1,
            state: view.state.to_owned(),
            since: view.since.as_secs(),
            circuit_age: None,
            round_trip_ms: view.round_trip.map(|d| d.as_millis() as u64),
            streams: view.streams,
            retry_in: view.retry_in.map(|d| d.as_secs()),
            last_error: view.last_error,
            kites: view.kites,
        }
    }
}

impl Tunnel {
    /// A tunnel through Tor keeps to one circuit from its beginning to its end.
    pub fn in_tor(self) -> Self {
        let stands = matches!(self.state.as_str(), "up" | "suspect");
        Self {
            circuit_age: stands.then_some(self.since),
            ..self
        }
    }
}

impl From<TunnelView> for Backend {
    fn from(view: TunnelView) -> Self {
        Self {
            peer: view.peer,
            kites: view.kites,
        }
    }
}

impl Tor {
    /// From what the client says.
    pub fn new(progress: Progress, dialled: &DialReport) -> Self {
        let named = |(what, n): (String, &u64)| (what, *n);
        let (state, text) = match (progress.trouble, progress.ready) {
            (Some(trouble), _) => (trouble.name(), format!("{trouble}; {}", trouble.remedy())),
            (None, true) => ("working", progress.text),
            (None, false) => ("starting", progress.blocked.unwrap_or(progress.text)),
        };
        Self {
            state: state.to_owned(),
            ready: progress.ready,
            text,
            dials: dialled
                .allowed
                .iter()
                .map(|(p, n)| named((p.to_string(), n)))
                .collect(),
            refused: dialled
                .refused
                .iter()
                .map(|(r, n)| named((r.to_string(), n)))
                .collect(),
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let role = match self.role {
            Role::Backend => "backend",
            Role::Frontend => "frontend",
        };
        writeln!(f, "kite {role} {}, up {}", self.version, Age(self.up))?;
        match (&self.via, &self.tor) {
            (Some(_), Some(_)) => writeln!(
                f,
                "hidden: yes, it goes out through Tor and in no other way"
            )?,
            (Some(_), None) => writeln!(f, "hidden: NO, frontends see this machine's address")?,
            (None, _) => {}
        }
        if let Some(tor) = &self.tor {
            writeln!(f, "Tor: {}; {}", tor.state, tor.text)?;
            writeln!(f, "  dialled: {}", Counts(&tor.dials))?;
            if !tor.refused.is_empty() {
                writeln!(f, "  REFUSED: {}; please report this", Counts(&tor.refused))?;
            }
        }
        for line in &self.sandbox {
            writeln!(f, "sandbox: {line}")?;
        }
        for tunnel in &self.tunnels {
            write!(f, "{tunnel}")?;
        }
        for address in &self.addresses {
            writeln!(f, "backends dial {address}")?;
        }
        for backend in &self.backends {
            writeln!(
                f,
                "tunnel from {}: {}",
                backend.peer,
                backend.kites.join(", ")
            )?;
        }
        Ok(())
    }
}

impl fmt::Display for Tunnel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} tunnel {}: {} for {}",
            self.frontend,
            self.tunnel,
            self.state,
            Age(self.since)
        )?;
        if let Some(age) = self.circuit_age {
            write!(f, ", circuit in use for {}", Age(age))?;
        }
        if let Some(ms) = self.round_trip_ms {
            write!(f, ", round trip {ms} ms")?;
        }
        if self.state == "up" || self.state == "suspect" {
            write!(f, ", {} streams", self.streams)?;
        }
        if let Some(seconds) = self.retry_in {
            write!(f, ", next try in {}", Age(seconds))?;
        }
        writeln!(f)?;
        if !self.kites.is_empty() {
            writeln!(f, "  flies {}", self.kites.join(", "))?;
        }
        match &self.last_error {
            Some(error) => writeln!(f, "  last trouble: {error}"),
            None => Ok(()),
        }
    }
}

/// Seconds, in the two largest units.
struct Age(u64);

impl fmt::Display for Age {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (days, hours, minutes) = (self.0 / 86_400, self.0 / 3_600 % 24, self.0 / 60 % 60);
        match self.0 {
            0..60 => write!(f, "{} s", self.0),
            60..3_600 => write!(f, "{minutes} min {} s", self.0 % 60),
            3_600..86_400 => write!(f, "{hours} h {minutes} min"),
            _ => write!(f, "{days} d {hours} h"),
        }
    }
}

struct Counts<'a>(&'a BTreeMap<String, u64>);

impl fmt::Display for Counts<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("nothing yet");
        }
        let each: Vec<String> = self
            .0
            .iter()
            .map(|(what, n)| format!("{what} {n}"))
            .collect();
        f.write_str(&each.join(", "))
    }
}
