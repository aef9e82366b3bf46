//! A frontend's rc files in kite's terms: where it listens, and who may fly what.

use std::net::IpAddr;
use std::path::Path;

use toml::{Table, Value};

use super::translation::{Translation, secret};
use super::{Mistake, Role, Setting, list, port};
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
}

pub(super) fn translate(settings: &[Setting], _base: &Path) -> Result<Translation, Mistake> {
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
    };
    for setting in settings {
        frontend.take(setting)?;
    }
    Ok(frontend.finish())
}

impl<'a> Frontend<'a> {
    fn take(&mut self, s: &'a Setting) -> Result<(), Mistake> {
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
            "authdomain" | "authfail_closed" => self.out.note(
                s,
                "kite asks no name server who may fly; write each kite as domain = PROTOCOL:NAME:SECRET",
            ),
            "motd" => self.out.note(s, "kite sends backends no message"),
            "tls_endpoint" | "tls_default" => self
                .out
                .note(s, "kite's frontend ends no TLS of visitors; fly an https kite instead"),
            "ratelimit_ips" => self.out.note(s, "kite does not count visitors"),
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
            self.out.note(s, format!("kite does not listen on {number} for raw kites; they are reached by HTTP CONNECT to the other ports"));
        }
        Ok(())
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
        let name: KiteName = name.parse().map_err(|e| {
            s.mistake(
                format!("its second part is no kite's name: {e}"),
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
            if word.parse::<Protocol>().is_ok() {
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
        self.out.push("kites", entry, s);
        Ok(())
    }

    fn finish(mut self) -> Translation {
        for (at, shown, s) in std::mem::take(&mut self.aliases) {
            self.out.note(
                s,
                format!("kite listens on {at}, and calls it so and not {shown}"),
            );
        }
        let at =
            |port: &u16| Value::String(std::net::SocketAddr::new(self.host, *port).to_string());
        let listen: Vec<Value> = self.ports.iter().map(at).collect();
        self.out.set("listen", listen, self.ports_from);
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
