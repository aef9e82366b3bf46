//! Tahoe-LAFS' `tahoe.cfg`: which of its lines show a node's address or keep visitors away,
//! which lines do not, and a way to put them in.
//!
//! [`check`] and [`Kite::lines`] look at texts only; [`dir`] reads and writes a node's directory.

pub mod cfg;
pub mod dir;
pub(crate) mod endpoint;
mod rules;
mod run;

use std::fmt;
use std::net::SocketAddr;

use crate::code::{Code, Coded};
use crate::config::NodeSide;
use crate::dial::OriginAddr;
use crate::kite::{KiteName, Protocol};
use crate::sniff::TubId;
use cfg::{Cfg, Change};
use endpoint::{Endpoint, Hint};
pub use rules::check;
pub use run::{TahoeError, run, running};

/// The public port of foolscap visitors, unless said otherwise.
pub const PUBLIC_PORT: u16 = 80;

/// What a node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A client, which every storage server is, too.
    Client,
    /// An introducer.
    Introducer,
}

/// What a node's files say.
#[derive(Debug)]
pub struct Node {
    /// Which program it is.
    pub kind: Kind,
    /// `tahoe.cfg`.
    pub cfg: Cfg,
    /// `private/introducers.yaml`, if it is there.
    pub introducers: Option<String>,
    /// `private/servers.yaml`, if it is there.
    pub servers: Option<String>,
    /// The TubID in `my_nodeid`, which Tahoe writes at the node's first start.
    pub tub: Option<TubId>,
}

impl Node {
    /// Where its tub listens, if this machine reaches it there.
    pub fn tub_address(&self) -> Option<SocketAddr> {
        let endpoint = Endpoint::parse(self.cfg.value("node", "tub.port")?);
        endpoint.reached_here()
    }
}

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    /// Somebody learns the node's address.
    Leak,
    /// The node does not start, or visitors do not find it.
    Broken,
    /// Worth knowing.
    Note,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Leak => "leak",
            Self::Broken => "broken",
            Self::Note => "note",
        })
    }
}

/// One thing to say about a node's configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// From the node's directory.
    pub file: &'static str,
    /// Counted from one; `None` if it is about nothing that is written.
    pub line: Option<usize>,
    /// What is wrong.
    pub what: String,
    /// What to put instead.
    pub instead: Vec<Change>,
}

/// The kites in front of one node, as far as the node must know them.
#[derive(Debug, Clone)]
pub struct Kite {
    /// Where visitors are brought to.
    pub origin: SocketAddr,
    /// The backend's SOCKS port.
    pub socks: Option<SocketAddr>,
    /// What clients are told. Never empty.
    pub names: Vec<Public>,
    /// Whether Tahoe's HTTPS protocol is carried.
    pub https: bool,
    /// The tubs that visitors may ask for, where a kite names one.
    pub tubs: Vec<(KiteName, TubId)>,
}

/// A public name of a node.
#[derive(Debug, Clone)]
pub struct Public {
    /// The kite's.
    pub name: KiteName,
    /// Where visitors come in; `None` if it has a port of its own that nobody has named.
    pub port: Option<u16>,
}

/// Why a configuration gives no lines for a node.
#[derive(Debug, thiserror::Error)]
pub enum KiteError {
    /// No kite for Tahoe.
    #[error(
        "no kite is foolscap or tahoe-https, so there is no node behind this configuration; add a kite with one of the two"
    )]
    NoNode,
    /// More than one node.
    #[error(
        "the kites lead to several nodes, {0}; give a configuration with the kites of one of them"
    )]
    Nodes(String),
    /// An origin that no tub can have.
    #[error(
        "{0}: foolscap drops everyone who comes in over a Unix socket; use a port on loopback, such as 127.0.0.1:49293"
    )]
    Unix(OriginAddr),
    /// A name that cannot be announced.
    #[error(
        "{0} cannot stand in tub.location, whose names have letters, digits, '-' and '.'; name one host"
    )]
    Name(KiteName),
    /// The port of a `tahoe-https` kite.
    #[error(
        "the public port of {0} is not known: a tahoe-https kite has one of its own; add --public-port {0}=PORT"
    )]
    Port(KiteName),
    /// The node would go out directly.
    #[error(
        "there is no SOCKS port through which the node could go out; add --via-tor --socks-listen 127.0.0.1:9150, \
         or enabled = true and socks_listen = \"127.0.0.1:9150\" under [tor]"
    )]
    Socks,
}

impl Coded for KiteError {
    fn code(&self) -> Code {
        Code::NoNodeLines
    }
}

impl Kite {
    /// What a backend's configuration means for the node. `port` gives the public port of a name, if it is known.
    pub fn new(
        side: &NodeSide,
        port: impl Fn(&KiteName) -> Option<u16>,
    ) -> Result<Self, KiteError> {
        let tahoe = |p| matches!(p, Protocol::Foolscap | Protocol::TahoeHttps);
        let kites: Vec<_> = side.kites.iter().filter(|k| tahoe(k.protocol)).collect();
        let first = kites.first().ok_or(KiteError::NoNode)?;
        let mut origins: Vec<String> = kites.iter().map(|k| k.origin.to_string()).collect();
        origins.sort();
        origins.dedup();
        if origins.len() > 1 {
            return Err(KiteError::Nodes(origins.join(", ")));
        }
        let own_port = |name: &KiteName| {
            let mut same = kites.iter().filter(|k| k.name == *name);
            same.any(|k| k.protocol == Protocol::TahoeHttps)
        };
        let mut names: Vec<Public> = vec![];
        for kite in &kites {
            let name = &kite.name;
            if name.is_wildcard() || name.as_str().contains('_') {
                return Err(KiteError::Name(name.clone()));
            }
            if !names.iter().any(|n| n.name == *name) {
                let usual = (!own_port(name)).then_some(PUBLIC_PORT);
                names.push(Public {
                    name: name.clone(),
                    port: port(name).or(usual),
                });
            }
        }
        let OriginAddr::Tcp(origin) = first.origin else {
            return Err(KiteError::Unix(first.origin.clone()));
        };
        Ok(Self {
            origin,
            socks: side.socks,
            names,
            https: kites.iter().any(|k| k.protocol == Protocol::TahoeHttps),
            tubs: kites
                .iter()
                .filter_map(|k| Some((k.name.clone(), k.tub?)))
                .collect(),
        })
    }

    /// The lines that a node behind these kites needs, complete.
    pub fn lines(&self, kind: Kind) -> Result<Vec<Change>, KiteError> {
        if let Some(public) = self.names.iter().find(|n| n.port.is_none()) {
            return Err(KiteError::Port(public.name.clone()));
        }
        let socks = Self::socks_port(&self.socks.ok_or(KiteError::Socks)?);
        let mut lines = vec![
            Change::set("node", "reveal-IP-address", "true"),
            Change::set("node", "tub.port", Endpoint::of_origin(&self.origin)),
            Change::set("node", "tub.location", self.location()),
            Change::set("node", "timeout.keepalive", "120"),
            Change::set("node", "timeout.disconnect", "600"),
        ];
        if kind == Kind::Client {
            lines.push(match self.https {
                true => Change::remove("storage", "force_foolscap"),
                false => Change::set("storage", "force_foolscap", "true"),
            });
            lines.push(Change::set("client", "force_foolscap", "true"));
        }
        lines.push(Change::set("connections", "tcp", "tor"));
        lines.push(Change::set("tor", "socks.port", socks));
        Ok(lines)
    }

    /// `tub.location`.
    fn location(&self) -> String {
        let hint = |n: &Public| match n.port {
            Some(port) => format!("tcp:{}:{port}", n.name),
            None => format!("tcp:{}:PORT", n.name),
        };
        self.names.iter().map(hint).collect::<Vec<_>>().join(",")
    }

    /// `[tor] socks.port`.
    fn socks_port(at: &SocketAddr) -> String {
        format!(
            "tcp:{}:{}",
            at.ip().to_string().replace(':', "\\:"),
            at.port()
        )
    }

    fn has(&self, host: &str) -> bool {
        self.names.iter().any(|n| n.name.as_str() == host)
    }
}

/// The public port that a node announces for a name now.
pub fn announced_port(cfg: &Cfg, name: &KiteName) -> Option<u16> {
    let location = cfg.value("node", "tub.location")?.trim();
    location
        .split(',')
        .find_map(|hint| match Hint::parse(hint) {
            Hint::Name { host, port, .. } if host.eq_ignore_ascii_case(name.as_str()) => Some(port),
            _ => None,
        })
}

/// The changes as lines of a `tahoe.cfg`, section by section, each behind `margin`.
pub fn show(changes: &[Change], margin: &str) -> String {
    let mut sections: Vec<&str> = vec![];
    for change in changes {
        if !sections.contains(&change.section) {
            sections.push(change.section);
        }
    }
    let line = |change: &Change| match &change.value {
        Some(value) => format!("{margin}{} = {value}\n", change.key),
        None => format!("{margin}# no {}\n", change.key),
    };
    let section = |name: &str| {
        let lines = changes.iter().filter(|c| c.section == name).map(line);
        format!("{margin}[{name}]\n{}", lines.collect::<String>())
    };
    let between = if margin.is_empty() { "\n" } else { "" };
    let sections: Vec<String> = sections.into_iter().map(section).collect();
    sections.join(between)
}

#[cfg(test)]
mod tests;
