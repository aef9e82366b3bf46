//! The rules: what in a node's configuration shows its address, and what keeps visitors
//! away. Each is from Tahoe-LAFS 1.20 and foolscap 24.9, as they behave, not as documented.

use super::cfg::Change;
use super::endpoint::{self, Endpoint, Hint, Reach};
use super::{Finding, Kind, Kite, Node, Severity};
use Severity::{Broken, Leak, Note};

/// What there is to say of a node, in the order of its files. With a `kite` the node is compared with it, too.
pub fn check(node: &Node, kite: Option<&Kite>) -> Vec<Finding> {
    let mut report = Report {
        node,
        kite,
        findings: vec![],
    };
    report.tub_port();
    report.tub_location();
    report.reveal();
    report.web_port();
    report.log_gatherer();
    report.connections();
    if node.kind == Kind::Client {
        report.storage_protocol();
        report.sftp();
        report.plugins();
        report.servers();
    }
    report.introducers();
    report.tub_id();
    report.habits();
    let place = |f: &Finding| (f.file, f.line.unwrap_or(usize::MAX));
    report.findings.sort_by_key(place);
    report.findings
}

/// Ports where none is given: the tub's, the web interface's and SFTP's.
const TUB: u16 = 49293;
const WEB: u16 = 3456;
const SFTP: u16 = 8022;

struct Report<'a> {
    node: &'a Node,
    kite: Option<&'a Kite>,
    findings: Vec<Finding>,
}

impl Report<'_> {
    /// The value as Tahoe takes it: of a tub's, white space around it does not count.
    fn value(&self, section: &str, key: &str) -> Option<&str> {
        let value = self.node.cfg.value(section, key);
        value.map(|v| if key.starts_with("tub.") { v.trim() } else { v })
    }

    /// Without the option: the default. A word that Python does not take for a truth value is reported.
    fn boolean(&mut self, section: &'static str, key: &'static str, default: bool) -> bool {
        let Some(word) = self.value(section, key) else {
            return default;
        };
        match word.to_lowercase().as_str() {
            "1" | "yes" | "true" | "on" => true,
            "0" | "no" | "false" | "off" => false,
            _ => {
                let what = format!("'{word}' is neither true nor false: the node does not start");
                let instead = vec![Change::set(section, key, default.to_string())];
                self.add(Broken, section, key, what, instead);
                default
            }
        }
    }

    /// Something about an option, or about its absence.
    fn add(
        &mut self,
        severity: Severity,
        section: &str,
        key: &str,
        what: impl Into<String>,
        instead: Vec<Change>,
    ) {
        let cfg = &self.node.cfg;
        let line = cfg.entry(section, key).map(|e| e.line);
        let finding = Finding {
            severity,
            file: "tahoe.cfg",
            line: line.or(cfg.header(section)),
            what: what.into(),
            instead,
        };
        // Several rules may stumble over one line.
        if !self.findings.contains(&finding) {
            self.findings.push(finding);
        }
    }

    fn hints(&self) -> Vec<Hint> {
        let location = self.value("node", "tub.location").unwrap_or_default();
        location.split(',').map(Hint::parse).collect()
    }

    fn takes_visitors(&self) -> bool {
        self.value("node", "tub.port") != Some("disabled")
    }

    fn uses_tor(&self) -> bool {
        self.value("connections", "tcp")
            .is_some_and(|v| v.eq_ignore_ascii_case("tor"))
    }

    // ------------------------------------------------------------ who comes in

    fn tub_port(&mut self) {
        let kite = self.kite;
        let text = self.value("node", "tub.port").map(str::to_owned);
        let fault = |e: &Endpoint| {
            if e.port == Some(0) {
                let what = "tub.port has the number 0: the node does not start";
                return Some((Broken, what.to_owned()));
            }
            if e.is_unix() {
                let what = "foolscap drops everyone who comes in over a Unix socket";
                return Some((Broken, what.to_owned()));
            }
            // An address of the machine may be listed as the origin; then its operator wants it so.
            let listed = kite.is_some_and(|k| e.reach == Reach::Address(k.origin.ip()));
            exposed(&e.reach).filter(|_| !listed).map(|whom| {
                let finds = "so whoever tries this machine's address finds the node there";
                (Leak, format!("tub.port listens on {whom}, {finds}"))
            })
        };
        let parts = text.as_deref().unwrap_or_default().split(',');
        let endpoints: Vec<(&str, Endpoint)> = parts.map(|p| (p, Endpoint::parse(p))).collect();
        let mended = match kite {
            Some(kite) => Endpoint::of_origin(&kite.origin),
            None if matches!(text.as_deref(), None | Some("" | "disabled")) => {
                endpoint::loopback(TUB)
            }
            None => {
                let mend = |(part, e): &(&str, Endpoint)| match fault(e) {
                    Some(_) => e.on_loopback(TUB),
                    None => (*part).to_owned(),
                };
                endpoints.iter().map(mend).collect::<Vec<_>>().join(",")
            }
        };
        let mut add = |severity, what: &str| {
            let instead = vec![Change::set("node", "tub.port", mended.clone())];
            self.add(severity, "node", "tub.port", what, instead);
        };
        match text.as_deref() {
            None => add(
                Leak,
                "there is no tub.port: the node takes some port on all interfaces, so whoever tries this machine's \
                 address finds the node there",
            ),
            Some("") => add(Broken, "tub.port is empty: the node does not start"),
            Some("disabled") => {
                let announced = self.value("node", "tub.location") != Some("disabled");
                let stores =
                    self.node.kind == Kind::Client && self.boolean("storage", "enabled", true);
                if announced || stores || kite.is_some() {
                    let what = "tub.port is disabled, but the node is to have visitors";
                    let instead = vec![Change::set("node", "tub.port", mended)];
                    self.add(Broken, "node", "tub.port", what, instead);
                }
            }
            Some(_) => {
                for (_, endpoint) in &endpoints {
                    if let Some((severity, what)) = fault(endpoint) {
                        add(severity, &what);
                    }
                }
                if let Some(Kite { origin, .. }) = kite
                    && !endpoints.iter().any(|(_, e)| e.is(origin))
                {
                    let what = format!(
                        "kite brings visitors to {origin}, where this node does not listen"
                    );
                    add(Broken, &what);
                }
            }
        }
    }

    fn tub_location(&mut self) {
        let text = self.value("node", "tub.location").map(str::to_owned);
        let readable = |hint: &&str| {
            let good = |h| matches!(h, Hint::Name { .. } | Hint::Tor { .. } | Hint::Other(_));
            good(Hint::parse(hint)) && *hint != "AUTO"
        };
        let parts = text.as_deref().unwrap_or_default().split(',');
        let mended = match self.kite {
            Some(kite) => kite.location(),
            None => parts.filter(readable).collect::<Vec<_>>().join(","),
        };
        let mended = match mended.as_str() {
            "" | "disabled" => "tcp:KITENAME:80".to_owned(),
            _ => mended,
        };
        let instead = vec![Change::set("node", "tub.location", mended)];
        let Some(text) = text else {
            if self.takes_visitors() {
                let what = "there is no tub.location: the node announces every address that this machine has";
                self.add(Leak, "node", "tub.location", what, instead);
            }
            return;
        };
        if text.is_empty() || (text == "disabled") == self.takes_visitors() {
            let what = "tub.location does not go with tub.port: the node does not start";
            return self.add(Broken, "node", "tub.location", what, instead);
        }
        if text == "disabled" {
            return;
        }
        let mut announced = vec![];
        for text in text.split(',') {
            let (severity, what) = match Hint::parse(text) {
                _ if text == "AUTO" => (
                    Leak,
                    "AUTO announces every address that this machine has".to_owned(),
                ),
                Hint::Number(ip) if ip.is_loopback() => (
                    Broken,
                    format!("'{text}' leads visitors to their own machines"),
                ),
                Hint::Number(_) => (
                    Leak,
                    format!(
                        "'{text}' announces a number: this machine's, or a frontend's, which cannot tell from a \
                         number whom to bring visitors to"
                    ),
                ),
                Hint::Bad => (Broken, format!("clients cannot read the hint '{text}'")),
                Hint::Name { host, .. } => {
                    let host = host.trim_end_matches('.').to_lowercase();
                    let strange = self.kite.is_some_and(|k| !k.has(&host));
                    announced.push(host);
                    if !strange {
                        continue;
                    }
                    (
                        Leak,
                        format!(
                            "'{text}' is no kite of this configuration; who looks it up may find this machine"
                        ),
                    )
                }
                Hint::Tor { onion } => {
                    if !onion && !self.boolean("storage", "force_foolscap", false) {
                        let what = format!(
                            "'{text}' is no onion: without force_foolscap the node does not start"
                        );
                        let instead = vec![Change::set("storage", "force_foolscap", "true")];
                        self.add(Broken, "node", "tub.location", what, instead);
                    }
                    continue;
                }
                Hint::Other(kind) => {
                    let what = format!("kite has no part in what comes in by {kind}");
                    self.add(Note, "node", "tub.location", what, vec![]);
                    continue;
                }
            };
            self.add(severity, "node", "tub.location", what, instead.clone());
        }
        if self.kite.is_none() && !announced.is_empty() {
            let what = "kite cannot tell whether these names lead to frontends; compare with the backend's file by --config";
            self.add(Note, "node", "tub.location", what, vec![]);
        }
        let missing: Vec<&str> = self
            .kite
            .iter()
            .flat_map(|k| &k.names)
            .map(|n| n.name.as_str())
            .filter(|name| !announced.iter().any(|a| a == name))
            .collect();
        if !missing.is_empty() {
            let what = format!("clients are not told of {}", missing.join(", "));
            self.add(Broken, "node", "tub.location", what, instead);
        }
    }

    fn reveal(&mut self) {
        if self.boolean("node", "reveal-IP-address", true) || !self.takes_visitors() {
            return;
        }
        let tcp = self.hints().iter().any(Hint::is_tcp);
        let auto = self
            .value("node", "tub.location")
            .is_none_or(|l| l.split(',').any(|h| h == "AUTO"));
        if tcp || auto {
            let what = "with reveal-IP-address = false and such a tub.location the node does not start; the hints name \
                        frontends, not the node, but Tahoe cannot know that";
            let instead = vec![Change::set("node", "reveal-IP-address", "true")];
            self.add(Broken, "node", "reveal-IP-address", what, instead);
        }
    }

    fn web_port(&mut self) {
        let Some(text) = self.value("node", "web.port").filter(|v| !v.is_empty()) else {
            return;
        };
        let typed = text.starts_with(|c: char| c.is_ascii_digit());
        let endpoint = Endpoint::parse(&if typed {
            format!("tcp:{text}")
        } else {
            text.to_owned()
        });
        let origin = self.kite.map(|k| k.origin);
        let mut add = |severity, what, port| {
            let instead = vec![Change::set("node", "web.port", port)];
            self.add(severity, "node", "web.port", what, instead);
        };
        if let Some(origin) = origin.filter(|o| endpoint.is(o)) {
            let what = "the web interface is the kite's origin: it would become public, and its URLs are the keys to \
                        the files";
            let other = if origin.port() == WEB { WEB + 1 } else { WEB };
            add(Broken, what.to_owned(), endpoint::loopback(other));
        } else if let Some(whom) = exposed(&endpoint.reach) {
            let what = format!(
                "the web interface listens on {whom}: it shows which node this is, and its URLs are the keys to the files"
            );
            add(Leak, what, endpoint.on_loopback(WEB));
        }
    }

    fn sftp(&mut self) {
        if !self.boolean("sftpd", "enabled", false) {
            return;
        }
        let endpoint = Endpoint::parse(self.value("sftpd", "port").unwrap_or("tcp:8022"));
        if let Some(whom) = exposed(&endpoint.reach) {
            let what = format!(
                "SFTP listens on {whom}, so whoever tries this machine's address finds the node there"
            );
            let instead = vec![Change::set("sftpd", "port", endpoint.on_loopback(SFTP))];
            self.add(Leak, "sftpd", "port", what, instead);
        }
    }

    /// Clients prefer Tahoe's HTTPS protocol if there is an address for it.
    fn storage_protocol(&mut self) {
        let forced = self.boolean("storage", "force_foolscap", false);
        let stores = self.boolean("storage", "enabled", true) && self.takes_visitors();
        let typed = self
            .hints()
            .iter()
            .any(|h| matches!(h, Hint::Name { typed: true, .. }));
        let https = self.kite.is_some_and(|k| k.https);
        if https && forced {
            let what = "with force_foolscap the tahoe-https kite gets no visitors";
            let instead = vec![Change::remove("storage", "force_foolscap")];
            self.add(Note, "storage", "force_foolscap", what, instead);
        }
        if stores && typed && !forced && !https {
            let mut what = "clients use Tahoe's HTTPS protocol, which names no server, so that no frontend can tell \
                            whom to bring them to"
                .to_owned();
            if self.kite.is_none() {
                what += " (but on a public port of the node's own: then say so with --config)";
            }
            let instead = vec![Change::set("storage", "force_foolscap", "true")];
            self.add(Broken, "storage", "force_foolscap", what, instead);
        }
        let control =
            self.value("tor", "control.port").is_some() || self.boolean("tor", "launch", false);
        if self.uses_tor() && !control && !self.boolean("client", "force_foolscap", false) {
            let what = "through a SOCKS port Tahoe's HTTPS protocol does not work: this node reaches no other that has it";
            let instead = vec![Change::set("client", "force_foolscap", "true")];
            self.add(Broken, "client", "force_foolscap", what, instead);
        }
    }

    // ------------------------------------------------------------ how it goes out

    fn connections(&mut self) {
        let socks = self.kite.and_then(|k| k.socks);
        let port = socks.map_or("tcp:127.0.0.1:9150".into(), |at| Kite::socks_port(&at));
        let port = Change::set("tor", "socks.port", port);
        let through = vec![Change::set("connections", "tcp", "tor"), port.clone()];
        let word = self
            .value("connections", "tcp")
            .unwrap_or("tcp")
            .to_lowercase();
        match word.as_str() {
            "tor" => self.tor(socks.is_some(), port),
            "tcp" => {
                let what = "the node connects directly: the introducer, every storage server and its own frontends see \
                            this machine's address";
                self.add(Leak, "connections", "tcp", what, through);
            }
            "disabled" => {
                let what = "the node connects to nothing, not even to the introducer that would announce it";
                self.add(Broken, "connections", "tcp", what, through);
            }
            "i2p" => {
                let what = "kite has no part in what goes out by I2P";
                self.add(Note, "connections", "tcp", what, vec![]);
            }
            _ => {
                let what = format!(
                    "Tahoe knows no '{word}': the node does not start (a comment needs a line of its own)"
                );
                self.add(Broken, "connections", "tcp", what, through);
            }
        }
    }

    fn tor(&mut self, kite_listens: bool, port: Change) {
        if !self.boolean("tor", "enabled", true) {
            let what = "Tor is off, but [connections] wants it: the node does not start";
            self.add(
                Broken,
                "tor",
                "enabled",
                what,
                vec![Change::remove("tor", "enabled")],
            );
        }
        // Tahoe's order: launch, socks.port, control.port, then the usual ports.
        if self.boolean("tor", "launch", false) {
            let (severity, instead) = match kite_listens {
                true => (Broken, vec![Change::remove("tor", "launch"), port]),
                false => (Note, vec![]),
            };
            let what = "the node starts a Tor of its own, and socks.port does not count";
            return self.add(severity, "tor", "launch", what, instead);
        }
        let Some(text) = self.value("tor", "socks.port").filter(|v| !v.is_empty()) else {
            let what = match self.value("tor", "control.port") {
                Some(_) => "the node asks the Tor behind control.port where to go out",
                None => "without socks.port the node tries 127.0.0.1:9050, then 9150",
            };
            let severity = if kite_listens { Broken } else { Note };
            return self.add(severity, "tor", "socks.port", what, vec![port]);
        };
        let (severity, what) = match endpoint::client(text) {
            None => (
                Broken,
                format!("'{text}' is no tcp:HOST:PORT: the node does not start"),
            ),
            Some((Reach::Local, at)) => match self.kite.and_then(|k| k.socks) {
                Some(socks) if at != Some(socks.port()) => {
                    (Broken, format!("kite's SOCKS port is {socks}"))
                }
                _ => return,
            },
            Some(_) => (
                Leak,
                format!(
                    "'{text}' is not on this machine: whom the node connects to crosses a network in the clear"
                ),
            ),
        };
        self.add(severity, "tor", "socks.port", what, vec![port]);
    }

    fn log_gatherer(&mut self) {
        if self
            .value("node", "log_gatherer.furl")
            .is_some_and(|v| !v.is_empty())
        {
            let what =
                "the node connects to the log gatherer directly, whatever [connections] says";
            let instead = vec![Change::remove("node", "log_gatherer.furl")];
            self.add(Leak, "node", "log_gatherer.furl", what, instead);
        }
    }

    fn plugins(&mut self) {
        for (section, key) in [("client", "storage.plugins"), ("storage", "plugins")] {
            if self.value(section, key).is_some_and(|v| !v.is_empty()) {
                let what = "kite does not know whom a plugin connects to, or how";
                self.add(Note, section, key, what, vec![]);
            }
        }
    }

    /// `connections: {tcp: tcp}` beside a static server goes before `[connections]`.
    fn servers(&mut self) {
        for (number, line) in numbered(self.node.servers.as_deref()) {
            let bare: String = line
                .chars()
                .filter(|c| !matches!(c, '"' | '\'' | ' ' | '\t'))
                .collect();
            let direct = bare.match_indices("tcp:tcp").any(|(at, found)| {
                !bare[at + found.len()..].starts_with(|c: char| c.is_alphanumeric() || c == ':')
            });
            if direct {
                self.findings.push(Finding {
                    severity: Leak,
                    file: "private/servers.yaml",
                    line: Some(number),
                    what: "the node connects to this server directly, whatever [connections] says; write tcp: tor".into(),
                    instead: vec![],
                });
            }
        }
    }

    /// Through Tor, foolscap leaves out hints with private and IPv6 numbers.
    fn introducers(&mut self) {
        if !self.uses_tor() {
            return;
        }
        let cfg = self.node.cfg.entry("client", "introducer.furl");
        let cfg = cfg.map(|e| ("tahoe.cfg", e.line, e.value.as_str()));
        let yaml = numbered(self.node.introducers.as_deref());
        let yaml = yaml.map(|(number, line)| ("private/introducers.yaml", number, line));
        for (file, line, text) in cfg.into_iter().chain(yaml) {
            let hints = text
                .split_once("pb://")
                .and_then(|(_, rest)| rest.split_once('@'));
            let Some((hints, _)) = hints.and_then(|(_, rest)| rest.split_once('/')) else {
                continue;
            };
            if !hints.split(',').any(|h| Hint::parse(h).goes_through_tor()) {
                self.findings.push(Finding {
                    severity: Broken,
                    file,
                    line: Some(line),
                    what: format!("the introducer's {hints} cannot be reached through Tor; ask for a FURL with a name"),
                    instead: vec![],
                });
            }
        }
    }

    // ------------------------------------------------------------ the tub that the kites name

    fn tub_id(&mut self) {
        let (Some(kite), Some(own)) = (self.kite, &self.node.tub) else {
            return;
        };
        let others = kite.tubs.iter().filter(|(_, tub)| tub != own);
        let findings = others.map(|(name, _)| Finding {
            severity: Broken,
            file: "my_nodeid",
            line: Some(1),
            what: format!(
                "this is not the tub_id of {name} in kite's configuration: all its visitors are turned away; \
                 put this one there, or leave tub_id out"
            ),
            instead: vec![],
        });
        self.findings.extend(findings);
    }

    // ------------------------------------------------------------ what else is worth a word

    fn habits(&mut self) {
        let missing = [("timeout.keepalive", "120"), ("timeout.disconnect", "600")]
            .into_iter()
            .filter(|(key, _)| self.value("node", key).is_none_or(str::is_empty))
            .map(|(key, value)| Change::set("node", key, value))
            .collect::<Vec<_>>();
        if let Some(first) = missing.first() {
            let key = first.key;
            self.add(
                Note,
                "node",
                key,
                "without these a dead path may never be noticed",
                missing,
            );
        }
        let entries = self.node.cfg.entries();
        for (i, entry) in entries.iter().enumerate() {
            let again = |e: &&super::cfg::Entry| e.section == entry.section && e.key == entry.key;
            if let Some(later) = entries[i + 1..].iter().find(again) {
                self.findings.push(Finding {
                    severity: Note,
                    file: "tahoe.cfg",
                    line: Some(entry.line),
                    what: format!(
                        "{} is given again in line {}, which counts",
                        entry.key, later.line
                    ),
                    instead: vec![],
                });
            }
        }
        self.findings.push(Finding {
            severity: Note,
            file: "tahoe.cfg",
            line: None,
            what: "every node opens a log tub on a random port of all interfaces, and no setting turns it off: let a \
                   firewall drop what comes in, except on loopback"
                .into(),
            instead: vec![],
        });
    }
}

/// Whom it is open to, if not this machine alone.
fn exposed(reach: &Reach) -> Option<String> {
    match reach {
        Reach::Local | Reach::Overlay => None,
        Reach::Address(_) | Reach::Unknown => Some(reach.to_string()),
    }
}

/// The lines of a YAML file, without comments, counted from one.
fn numbered(text: Option<&str>) -> impl Iterator<Item = (usize, &str)> {
    let lines = text.unwrap_or_default().lines().enumerate();
    lines
        .map(|(i, line)| (i + 1, line))
        .filter(|(_, line)| !line.trim_start().starts_with('#'))
}
