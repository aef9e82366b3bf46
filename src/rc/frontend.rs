//! A frontend's rc files in kite's terms: where it listens, and who may fly what.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use toml::{Table, Value};

use super::translation::{Translation, path, secret};
use super::{Mistake, Role, Setting, list, port};
use crate::frontend::limits::Rate;
use crate::kite::{KiteName, Protocol};

/// What pagekite.py's frontend carries unless told otherwise.
const PROTOCOLS: [&str; 9] = [
    "http",
    "http2",
    "http3",
    "https",
    "websocket",
    "irc",
    "raw",
    "minecraft",
    "xmpp",
];
/// Raw kites at any port, by CONNECT.
const VIRTUAL: &str = "virtual";

/// Everything so far.
struct Frontend<'a> {
    out: Translation,
    host: IpAddr,
    ports: Vec<u16>,
    ports_from: &'a Setting,
    aliases: Vec<(u16, u16, &'a Setting)>,
    protocols: Vec<String>,
    /// `http:bob.example`, and where it was said.
    granted: Vec<(String, &'a Setting)>,
    /// Who is asked about kites below a name, or about all that are not listed.
    authorities: Vec<(Option<String>, String, &'a Setting)>,
    /// `tls_endpoint`, by its name.
    certificates: Vec<(String, Table, &'a Setting)>,
    default_certificate: Option<&'a Setting>,
    /// The kites, which get their rates at the end.
    kites: Vec<(Table, KiteName, &'a Setting)>,
    /// How many visitors the kites below a name may have.
    rates: Vec<(String, Table)>,
    /// There is a line that lets visitors get to raw kites.
    raw_open: bool,
}

pub(super) fn translate(settings: &[Setting], base: &Path) -> Result<Translation, Mistake> {
    let Some(first) = settings.iter().find(|s| s.name == "isfrontend") else {
        return Ok(Translation::default());
    };
    let mut frontend = Frontend {
        out: Translation::default(),
        host: IpAddr::from([0, 0, 0, 0]),
        ports: vec![80],
        ports_from: first,
        aliases: Vec::new(),
        protocols: PROTOCOLS.iter().map(|&p| p.to_owned()).collect(),
        granted: Vec::new(),
        authorities: Vec::new(),
        certificates: Vec::new(),
        default_certificate: None,
        kites: Vec::new(),
        rates: Vec::new(),
        raw_open: settings.iter().any(|s| s.name == "rawports"),
    };
    for setting in settings {
        frontend.take(setting, base)?;
    }
    Ok(frontend.finish(settings))
}

impl<'a> Frontend<'a> {
    fn take(&mut self, s: &'a Setting, base: &Path) -> Result<(), Mistake> {
        match s.name {
            "host" => {
                self.host = s.value.parse().map_err(|_| {
                    s.mistake(
                        "it is a name, which would have to be looked up",
                        "write the address in numbers; without the line kite listens on all",
                    )
                })?;
            }
            "ports" => {
                self.ports = ports(s)?;
                self.ports_from = s;
            }
            "rawports" => self.raw_ports(s)?,
            "portalias" => {
                let alias = s.value.split_once(':');
                let alias = alias.and_then(|(at, as_)| Some((port(at)?, port(as_)?)));
                let (at, shown) = alias.ok_or_else(|| {
                    s.mistake("this is not PORT:PORT", "write, for instance, 8080:80")
                })?;
                self.aliases.push((at, shown, s));
            }
            "protos" => self.protocols = list(&s.value.to_lowercase()).map(Into::into).collect(),
            "domain" => self.domain(s)?,
            "tunnel_acl" | "client_acl" | "accept_acl_file" => {
                return Err(s.mistake(
                    "kite's frontend chooses nobody by their address, and without it all would come in",
                    "let a firewall choose, and remove the line",
                ));
            }
            "authdomain" => {
                let (below, asked) = match s.value.split_once(':') {
                    Some((below, asked)) => (Some(below.to_lowercase()), asked),
                    None => (None, s.value.as_str()),
                };
                if below.is_none() {
                    self.authorities.clear();
                }
                self.authorities.retain(|(other, ..)| *other != below);
                self.authorities.push((below, asked.to_owned(), s));
            }
            "authfail_closed" => self.out.remark(s, "kite does so in any case"),
            "motd" => self.out.set("motd_file", path(base, &s.value), s),
            "tls_endpoint" => {
                let (name, file) = s.value.split_once(':').ok_or_else(|| {
                    s.mistake(
                        "this is not NAME:FILE",
                        "write, for instance, alice.example:/etc/ssl/private/alice.example.pem",
                    )
                })?;
                let certificate = Table::from_iter([
                    ("cert".to_owned(), Value::String(path(base, file))),
                    ("endpoints".to_owned(), Value::Boolean(true)),
                ]);
                self.certificates
                    .push((name.to_lowercase(), certificate, s));
            }
            "tls_default" => self.default_certificate = Some(s),
            "ratelimit_ips" => self.rate(s)?,
            _ => self.out.other(s, Role::Frontend),
        }
        Ok(())
    }

    fn raw_ports(&mut self, s: &Setting) -> Result<(), Mistake> {
        for word in list(&s.value) {
            if word == VIRTUAL {
                continue;
            }
            let number = port(word).ok_or_else(|| {
                s.mistake(
                    "there is something else than ports and `virtual`",
                    "write, for instance, virtual",
                )
            })?;
            self.out.note(s, format!("kite does not guess whose visitors come to {number}; `kite import` the file, and give the port to one kite: [[listen]] with address, kite, and protocol = \"raw\""));
        }
        Ok(())
    }

    /// `[name:]visitors/seconds`; the kites below the name, or all that have no other.
    fn rate(&mut self, s: &'a Setting) -> Result<(), Mistake> {
        let (name, rate) = match s.value.split_once(':') {
            Some(("*", rate)) => (None, rate),
            Some((name, rate)) => (Some(name), rate),
            None => (None, s.value.as_str()),
        };
        let wrong = || s.mistake("this is not VISITORS/SECONDS", "write, for instance, 20/60");
        let rate: Rate = rate.parse().map_err(|_| wrong())?;
        let rate = Table::from_iter([("visitors".to_owned(), Value::String(rate.to_string()))]);
        match name {
            None => self.out.set("limits", rate, s),
            Some(name) => self.rates.push((name.to_lowercase(), rate)),
        }
        Ok(())
    }

    /// `authdomain`: a name to ask the DNS below, or, with a `/`, a program.
    fn ask(&mut self, settings: &[Setting]) {
        let closed = settings.iter().any(|s| s.name == "authfail_closed");
        let carried = self.protocols.iter().filter(|p| {
            p.parse::<Protocol>()
                .is_ok_and(|p| p != Protocol::Raw || self.raw_open)
        });
        let carried: Vec<Value> = carried.cloned().map(Value::String).collect();
        for (below, asked, s) in std::mem::take(&mut self.authorities) {
            let key = if asked.contains('/') {
                "program"
            } else {
                "dns"
            };
            let mut entry = Table::from_iter([
                (key.to_owned(), Value::String(asked)),
                ("protocols".to_owned(), Value::Array(carried.clone())),
            ]);
            if let Some(below) = below {
                if let Some(rate) = self.rate_of(&below) {
                    entry.insert("limits".to_owned(), Value::Table(rate));
                }
                entry.insert("domain".to_owned(), Value::String(below));
            }
            self.out.push("authorities", entry, s);
            if !closed {
                self.out.note(
                    s,
                    "without an answer no kite flies, as with authfail_closed",
                );
            }
        }
    }

    /// The rate for a name, or the nearest above it.
    fn rate_of(&self, kite: &str) -> Option<Table> {
        let is_above = |name: &str| {
            kite.strip_suffix(name)
                .is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
        };
        let above = self.rates.iter().filter(|(name, _)| is_above(name));
        above
            .max_by_key(|(name, _)| name.len())
            .map(|(_, rate)| rate.clone())
    }

    /// `proto[,proto…]:name:secret`.
    fn domain(&mut self, s: &'a Setting) -> Result<(), Mistake> {
        let parts: Vec<&str> = s.value.split(':').collect();
        let [protos, name, own] = *parts.as_slice() else {
            return Err(s.mistake(
                "this is not PROTOCOL:NAME:SECRET",
                "write, for instance, http:bob.alice.example:SECRET; a secret with a ':' in it cannot be used",
            ));
        };
        let name: KiteName = name.parse().map_err(|_| {
            // What stands there may be the secret, in the wrong place.
            s.mistake(
                "its second part is no kite's name",
                "write PROTOCOL:NAME:SECRET, with a name such as bob.alice.example or *.alice.example",
            )
        })?;
        let secret = secret(s, own)?;
        let all = matches!(protos, "*" | "");
        let words: Vec<String> = match all {
            true => self.protocols.clone(),
            false => list(&protos.to_lowercase()).map(Into::into).collect(),
        };
        let mut carried = Vec::new();
        for word in words {
            let kite = format!("{word}:{name}");
            if let Some((_, first)) = self.granted.iter().find(|(granted, _)| *granted == kite) {
                return Err(s.mistake(
                    format!("{kite} is in {} already", first.place),
                    "keep one of the two",
                ));
            }
            if word == Protocol::Raw.as_str() && !self.raw_open {
                // pagekite.py lets nobody in without that line.
                let why = "without rawports = virtual nobody gets to raw kites, so they cannot fly";
                match all {
                    true => self.out.remark(s, why),
                    false => self.out.note(s, why),
                }
            } else if word.parse::<Protocol>().is_ok() {
                carried.push(Value::String(word));
            } else if all {
                self.out.remark(s, format!("kite does not carry {word}"));
            } else if word.contains('-') {
                self.out.note(
                    s,
                    format!(
                        "{name} may not fly for one port alone; give it the protocol, or nothing"
                    ),
                );
            } else if PROTOCOLS.contains(&word.as_str()) {
                self.out.note(
                    s,
                    format!("kite does not carry {word}, so {name} cannot fly it"),
                );
            } else {
                return Err(s.mistake(
                    "its first part has a word that is no protocol",
                    "use http, https, websocket or raw, several with commas, or * for all",
                ));
            }
            self.granted.push((kite, s));
        }
        if carried.is_empty() {
            return Ok(());
        }
        let kept = self.out.keep(name.as_str(), secret);
        let entry = Table::from_iter([
            ("name".to_owned(), Value::String(name.to_string())),
            ("protocols".to_owned(), Value::Array(carried)),
            ("secret_file".to_owned(), Value::String(kept)),
        ]);
        self.kites.push((entry, name, s));
        Ok(())
    }

    fn finish(mut self, settings: &[Setting]) -> Translation {
        let aliases = std::mem::take(&mut self.aliases);
        for (at, _, s) in &aliases {
            if !self.ports.contains(at) {
                self.out.note(s, format!("kite does not listen on {at}"));
            }
        }
        let at = |port: &u16| {
            let address = Value::String(SocketAddr::new(self.host, *port).to_string());
            match aliases.iter().rfind(|(at, ..)| at == port) {
                None => address,
                Some((_, shown, _)) => Value::Table(Table::from_iter([
                    ("address".to_owned(), address),
                    ("port".to_owned(), Value::Integer((*shown).into())),
                ])),
            }
        };
        let listen: Vec<Value> = self.ports.iter().map(at).collect();
        self.out.set("listen", listen, self.ports_from);
        self.ask(settings);
        let default = self.default_certificate.map(|s| s.value.to_lowercase());
        let mut found = false;
        for (name, mut certificate, s) in std::mem::take(&mut self.certificates) {
            if Some(&name) == default.as_ref() && !found {
                found = true;
                certificate.insert("default".to_owned(), Value::Boolean(true));
            }
            self.out.push("certificates", certificate, s);
        }
        if let Some(s) = self.default_certificate.filter(|_| !found) {
            self.out.note(s, "there is no tls_endpoint of this name");
        }
        for (mut entry, name, s) in std::mem::take(&mut self.kites) {
            if let Some(rate) = self.rate_of(name.as_str()) {
                entry.insert("limits".to_owned(), Value::Table(rate));
            }
            self.out.push("kites", entry, s);
        }
        self.out
    }
}

fn ports(s: &Setting) -> Result<Vec<u16>, Mistake> {
    let ports: Option<Vec<u16>> = s.value.split(',').map(|word| port(word.trim())).collect();
    ports.ok_or_else(|| {
        s.mistake(
            "these are no ports",
            "write numbers from 1 to 65535, several with commas",
        )
    })
}
