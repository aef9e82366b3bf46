//! Who can see what, as configured: from a configuration to statements in plain words. Nothing is dialled, and
//! nothing is said that the configuration does not bring about.

use std::fmt;

use serde::Serialize;

use crate::config::outline::{BackendOutline, FrontendOutline};
use crate::config::{Frontend, OpenProof, Service};
use crate::dial::{FrontendAddr, OriginAddr, Trust};
use crate::frontend::authority;
use crate::kite::Protocol;
use crate::observe::status::Role;

/// What a configuration means for everybody around it.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Sight {
    /// Whose configuration it is.
    pub role: Role,
    /// Who is there.
    pub parties: Vec<Party>,
    /// What is not protected.
    pub unprotected: Vec<String>,
}

/// Somebody, and what they see.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Party {
    /// Who.
    pub who: String,
    /// What they see.
    pub sees: Vec<String>,
    /// What they do not.
    pub never: Vec<String>,
}

impl Party {
    fn new(who: impl Into<String>) -> Self {
        Self {
            who: who.into(),
            sees: Vec::new(),
            never: Vec::new(),
        }
    }

    fn sees(mut self, what: impl Into<String>) -> Self {
        self.sees.push(what.into());
        self
    }

    fn never(mut self, what: impl Into<String>) -> Self {
        self.never.push(what.into());
        self
    }

    /// The first of the two if so, else the second.
    fn address(self, sees: bool) -> Self {
        match sees {
            true => self.sees(ADDRESS),
            false => self.never(ADDRESS),
        }
    }
}

const ADDRESS: &str = "this machine's address";
const TRAFFIC: &str = "how much passes, and when";
const THAT_TOR: &str = "that this machine uses Tor";

/// How a frontend is reached.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Onion,
    Exit,
    Direct,
}

impl Way {
    fn to(address: &FrontendAddr, via_tor: bool) -> Self {
        match (via_tor, address.is_onion()) {
            (true, true) => Self::Onion,
            (true, false) => Self::Exit,
            (false, _) => Self::Direct,
        }
    }

    fn words(self) -> &'static str {
        match self {
            Self::Onion => "an onion service, within Tor",
            Self::Exit => "through Tor's exits",
            Self::Direct => "dialled directly, without Tor",
        }
    }
}

type Kite = Service<()>;

/// What a backend's configuration means.
pub fn of_backend(config: &BackendOutline) -> Sight {
    let node = &config.node;
    let via_tor = node.via_tor;
    let ways: Vec<Way> = config
        .frontends
        .iter()
        .map(|f| Way::to(&f.address, via_tor))
        .collect();
    let plain = |way: Way| {
        let mut all = config.frontends.iter().zip(&ways);
        all.any(|(f, w)| *w == way && *f.address.trust() == Trust::Plain)
    };
    let mut parties: Vec<Party> = config
        .frontends
        .iter()
        .zip(&ways)
        .map(|(frontend, way)| of_frontend(frontend, *way, &node.kites))
        .collect();
    if ways.contains(&Way::Exit) {
        parties.push(exit(plain(Way::Exit)));
    }
    if via_tor {
        parties.push(
            Party::new("the guard: the first Tor relay, the same for months (or your bridge)")
                .sees(ADDRESS)
                .sees(THAT_TOR)
                .sees(TRAFFIC)
                .never("the frontends, the kites' names, the visitors")
                .never("anything of what passes"),
        );
    }
    parties.push(between(&node.kites, ways.contains(&Way::Direct)));
    parties.push(provider(via_tor, plain(Way::Direct)));
    parties.push(visitors(&node.kites));
    parties.push(others_of_the_node(
        node.socks.is_some(),
        via_tor,
        &node.kites,
    ));
    parties.push(neighbours(node.socks.is_some()));
    Sight {
        role: Role::Backend,
        parties,
        unprotected: weak_points(config),
    }
}

/// The kites that fly at a frontend.
fn flown<'a>(frontend: &Frontend, kites: &'a [Kite]) -> Vec<&'a Kite> {
    let wanted = |kite: &&Kite| {
        let names = frontend.kites.as_ref();
        names.is_none_or(|names| names.contains(&kite.name))
    };
    kites.iter().filter(wanted).collect()
}

fn shown(kite: &Kite) -> String {
    format!("{}:{}", kite.ported(), kite.name)
}

fn of_frontend(frontend: &Frontend, way: Way, kites: &[Kite]) -> Party {
    let flown = flown(frontend, kites);
    let names: Vec<String> = flown.iter().map(|kite| shown(kite)).collect();
    let mut party = Party::new(format!("frontend {} ({})", frontend.address, way.words()))
        .address(way == Way::Direct)
        .sees(format!(
            "the kites {}, and that one machine has them all",
            names.join(", ")
        ))
        .sees("the addresses of their visitors")
        .sees(TRAFFIC);
    for kite in flown {
        party = match (kite.protocol, kite.tls_at_frontend) {
            (_, true) => party.sees(format!(
                "all that {} carries: it ends its visitors' TLS, as tls = \"frontend\" asks it to",
                shown(kite)
            )),
            (Protocol::Http | Protocol::Websocket, false) => party.sees(format!(
                "all that {} carries: it has no TLS of its own",
                shown(kite)
            )),
            (protocol, _) if protocol.is_plaintext() => party.sees(format!(
                "all that {} carries, unless visitor and origin encrypt it themselves",
                shown(kite)
            )),
            (protocol, _) => {
                if protocol == Protocol::Foolscap {
                    party = party.sees(format!(
                        "the TubID behind {}, which is the same at every frontend",
                        shown(kite)
                    ));
                }
                party.never(format!(
                    "what {} carries: its TLS ends at the origin",
                    shown(kite)
                ))
            }
        };
    }
    party
}

/// The relay that dials frontends for us.
fn exit(plain: bool) -> Party {
    let party = Party::new("the exit: the last Tor relay on the way to a frontend")
        .never(ADDRESS)
        .sees("which frontend is dialled, and that it is for a kite")
        .sees(TRAFFIC);
    match plain {
        true => {
            party.sees("everything in a tunnel to a plain:// address, which it can change as well")
        }
        false => party.never("the kites' names, or anything within a tunnel: it has TLS"),
    }
}

/// Whoever carries the visitors' packets.
fn between(kites: &[Kite], direct: bool) -> Party {
    let mut party =
        Party::new("the frontends' own networks, and everybody between them and visitors")
            .address(direct)
            .sees("the visitors' addresses, and the kites' names, which visitors send in the clear")
            .sees(TRAFFIC);
    for kite in kites {
        party = match (kite.protocol.is_plaintext(), kite.tls_at_frontend) {
            (true, true) => party.sees(format!(
                "all that {} carries, of visitors who do not come by https",
                shown(kite)
            )),
            (true, false) => party.sees(format!(
                "all that {} carries, unless visitor and origin encrypt it themselves",
                shown(kite)
            )),
            (false, _) => party.never(format!("what {} carries", shown(kite))),
        };
    }
    party
}

/// Whoever carries this machine's packets.
fn provider(via_tor: bool, plain: bool) -> Party {
    let party = Party::new("this machine's network: its router, its provider")
        .sees(ADDRESS)
        .sees(TRAFFIC);
    if via_tor {
        return party
            .sees("that this machine uses Tor, unless bridges hide it")
            .never("the frontends, the kites' names, the visitors")
            .never("anything of what passes");
    }
    let party = party.sees("which frontends are dialled, and that it is for kites");
    match plain {
        true => {
            party.sees("everything in a tunnel to a plain:// address, which it can change as well")
        }
        false => {
            party.never("the kites' names, the visitors, or anything within a tunnel: it has TLS")
        }
    }
}

fn visitors(kites: &[Kite]) -> Party {
    let tahoe = kites.iter().any(|k| is_tahoe(k.protocol));
    let party = Party::new("visitors, and everybody who knows a kite's name")
        .sees("the frontends' addresses, and whether a kite flies")
        .sees("what the origin itself says to them")
        .never(ADDRESS);
    match tahoe {
        true => party.sees("the node's certificate, which is the same under all its names"),
        false => party,
    }
}

fn is_tahoe(protocol: Protocol) -> bool {
    matches!(protocol, Protocol::Foolscap | Protocol::TahoeHttps)
}

/// Whom the origin itself connects to: the introducer and other nodes.
fn others_of_the_node(socks: bool, via_tor: bool, kites: &[Kite]) -> Party {
    let tahoe = kites.iter().any(|k| is_tahoe(k.protocol));
    let party = Party::new(match tahoe {
        true => "the introducer, other nodes, and whomever else the node connects to by itself",
        false => "whomever the origin connects to by itself",
    });
    match (socks, via_tor) {
        (true, _) => party
            .sees("a Tor exit, if the node uses kite's SOCKS port (`kite check --node DIR` looks)")
            .sees("this machine's address in all that the node sends past that port"),
        (false, true) => party.sees(
            "this machine's address: there is no SOCKS port, so the node's own connections do not go through Tor",
        ),
        (false, false) => party.sees(ADDRESS),
    }
}

/// Other users of this machine.
fn neighbours(socks: bool) -> Party {
    let party = Party::new("other users of this machine")
        .sees("that kite runs, and the words it was started with")
        .sees("the origin's port on loopback, which they can connect to past kite")
        .never("the secrets, while their files are their owner's alone");
    match socks {
        true => party.sees("the SOCKS port, which they can use as this machine's way into Tor"),
        false => party,
    }
}

/// What is left open, plainly.
fn weak_points(config: &BackendOutline) -> Vec<String> {
    let node = &config.node;
    let mut open = Vec::new();
    if !node.via_tor {
        open.push(
            "Tor is off: every frontend, and everybody on the way to it, sees this machine's address; --via-tor hides it"
                .to_owned(),
        );
    }
    for frontend in &config.frontends {
        let address = &frontend.address;
        match address.trust() {
            Trust::Plain => open.push(format!(
                "{address}: whoever carries the connection can read and change it, and take the kites over; use a pinned address"
            )),
            Trust::Roots | Trust::Names(_) => open.push(format!(
                "{address}: it is believed by a certificate; whoever gets one for its name can pose as it. A pin (#sha256:…) ends that"
            )),
            Trust::Pin(_) | Trust::Onion => {}
        }
    }
    for kite in node.kites.iter().filter(|k| k.protocol.is_plaintext()) {
        open.push(format!(
            "{}: frontends, and everybody between them and visitors, can read what it carries{}",
            shown(kite),
            match kite.tls_at_frontend {
                true => "; with the frontend's certificate only the frontend, for visitors who come by https",
                false => "",
            }
        ));
    }
    for kite in &node.kites {
        if let OriginAddr::Tcp(address) = &kite.origin
            && !address.ip().to_canonical().is_loopback()
        {
            open.push(format!(
                "{}: its origin {address} is not on this machine, so the network in between sees what passes to it",
                shown(kite)
            ));
        }
    }
    if node.via_tor && node.socks.is_none() && node.kites.iter().any(|k| is_tahoe(k.protocol)) {
        open.push(
            "the node's own connections show this machine's address; --socks-listen 127.0.0.1:9150 gives them a way \
             through Tor, and `kite tahoe` the lines for the node"
                .to_owned(),
        );
    }
    if let [only] = config.frontends.as_slice() {
        open.push(format!(
            "{}: it is the only frontend, and can take the kites down; a second one helps",
            only.address
        ));
    }
    if node.via_tor {
        open.push(
            "whoever sees this machine's line and a frontend's at once can match the two by time and amount; Tor does \
             not prevent that"
                .to_owned(),
        );
    }
    open
}

/// What a frontend's configuration means.
pub fn of_public_side(config: &FrontendOutline) -> Sight {
    let readable: Vec<String> = config
        .kites
        .iter()
        .filter(|(_, protocols)| protocols.iter().any(|p| p.is_plaintext()))
        .map(|(name, _)| name.to_string())
        .collect();
    let mut own = Party::new("this frontend, and whoever runs or takes this machine")
        .sees("the kites' names, and who visits them from which address")
        .sees("the addresses of backends that come without Tor")
        .sees(TRAFFIC)
        .never("the addresses of backends that come through Tor")
        .never("what foolscap, tahoe-https and https kites carry: their TLS ends at the origin");
    if !readable.is_empty() {
        own = own.sees(format!(
            "all that kites without TLS of their own carry, which may fly as {}",
            readable.join(", ")
        ));
    }
    if config.policy.is_storage_only() {
        own = own.never(
            "anything that a browser shows: whatever kites are allowed, it carries foolscap and Tahoe's HTTPS storage alone \
             (policy = \"storage-only\")",
        );
    }
    if config.certificates {
        own = own.sees(
            "all that kites carry which ask it to end their visitors' TLS (tls = \"frontend\")",
        );
    }
    if config.endpoints {
        own = own.sees("all that http kites of older backends carry, whose TLS it ends unasked (endpoints = true)");
    }
    let log = Party::new("readers of this frontend's log")
        .sees("the kites' names, and when they come and go");
    let log = match config.log_peers {
        true => log.sees("the addresses of visitors and backends (log_peers is on)"),
        false => log.never("anybody's address (log_peers is off)"),
    };
    let mut parties = vec![
        own,
        log,
        Party::new("this machine's network: its router, its provider")
            .sees("the addresses of visitors, and of backends that come to its public ports")
            .sees("the kites' names, which visitors send in the clear")
            .sees("what kites without TLS of their own carry")
            .never("anything within a tunnel: it has TLS"),
        Party::new("visitors, and everybody else")
            .sees("this machine's address: a frontend is public, also one with an onion service")
            .sees("whether a kite flies, if they know its name")
            .never("the addresses of backends"),
    ];
    if config.onion {
        parties.push(
            Party::new("Tor's relays")
                .sees("that there is an onion service, if they hold its descriptor")
                .never("that it is this frontend")
                .never("the addresses of backends, other than their own guards"),
        );
    }
    if let Some(directory) = &config.acme {
        parties.push(
            Party::new(format!("the certificate authority {directory}"))
                .sees("this machine's address, and the names of [acme], which it publishes"),
        );
    }
    for authority in &config.authorities {
        parties.push(match authority {
            authority::Source::Program(path) => {
                Party::new(format!("the program {}", path.display())).sees(
                    "the names of kites that are not listed here, and the proofs of their secrets",
                )
            }
            authority::Source::Judge(_) => Party::new(
                "the program that this frontend is a part of",
            )
            .sees("the names of kites that are not listed here, and the proofs of their secrets"),
            authority::Source::Dns { suffix, resolver } => Party::new(format!(
                "the name server {resolver}, and everybody on the way to {suffix}"
            ))
            .sees("the names of kites that are not listed here, in the clear"),
        });
    }
    parties.push(
        Party::new("other users of this machine")
            .sees("that kite runs, and the words it was started with")
            .never("the secrets, while their files are their owner's alone"),
    );
    Sight {
        role: Role::Frontend,
        parties,
        unprotected: open_of_public_side(config, &readable),
    }
}

fn open_of_public_side(config: &FrontendOutline, readable: &[String]) -> Vec<String> {
    let mut open = Vec::new();
    match &config.open {
        Some((domain, OpenProof::Key)) => open.push(format!(
            "strangers may fly kites below {domain}, each under its own tub's name; two programs can put anything into their TLS"
        )),
        Some((domain, OpenProof::Node)) => open.push(format!(
            "strangers may fly kites below {domain}, and whoever can reach a node can fly a kite in its name, until it comes \
             with its key (proof = \"node\")"
        )),
        None => {}
    }
    if !readable.is_empty() {
        open.push(format!(
            "kites without TLS of their own may fly as {}: everybody between here and their visitors can read them, \
             unless they ask for this frontend's certificate",
            readable.join(", ")
        ));
    }
    if !config.onion {
        open.push(
            "backends that dial directly show their address here; with --onion they can come without an exit, too"
                .to_owned(),
        );
    }
    if config.log_peers {
        open.push("visitors' and backends' addresses are in the log (log_peers)".to_owned());
    }
    let asks_dns = |a: &authority::Source| matches!(a, authority::Source::Dns { .. });
    if config.authorities.iter().any(asks_dns) {
        open.push("whom the DNS says may fly can be changed by who answers in its place: it is not signed".to_owned());
    }
    open
}

impl fmt::Display for Sight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let role = match self.role {
            Role::Backend => "backend",
            Role::Frontend => "frontend",
        };
        writeln!(f, "Who can see what, as this {role} is configured:")?;
        for party in &self.parties {
            writeln!(f, "\n{}", party.who)?;
            for what in &party.sees {
                writeln!(f, "  sees      {what}")?;
            }
            for what in &party.never {
                writeln!(f, "  sees not  {what}")?;
            }
        }
        writeln!(f, "\nNot protected")?;
        if self.unprotected.is_empty() {
            writeln!(f, "  nothing that kite knows of")?;
        }
        for what in &self.unprotected {
            writeln!(f, "  - {what}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
