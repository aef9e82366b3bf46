//! A backend's rc files in kite's terms: kites, frontends, and the way out.

use std::net::IpAddr;
use std::path::Path;

use toml::{Table, Value};
use zeroize::Zeroizing;

use super::translation::{Translation, path, secret};
use super::{Mistake, Role, Setting, list, port};
use crate::kite::{KiteName, Protocol, Secret};

/// What pagekite.py 1.5.2 dials with `defaults`, before the service's domain.
const POOL: &str = "fe4_152";
/// The port of a frontend that names none, and of pools.
const USUAL_PORT: u16 = 443;
/// The domain of `defaults`.
const SERVICE: &str = "b5p.us";
/// Whose certificates the frontends of `defaults` may have.
const SERVICE_CERTIFICATES: [&str; 8] = [
    SERVICE,
    "frontends.b5p.us",
    "pagekite.net",
    "pagekite.me",
    "pagekite.com",
    "pagekite.org",
    "testing.is",
    "302.is",
];
/// Where systems keep the web's authorities, which kite has of its own.
const SYSTEM_ROOTS: [&str; 6] = [
    "auto",
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/pki/tls/cacert.pem",
    "/etc/ssl/cert.pem",
];

/// Everything so far.
#[derive(Default)]
struct Backend<'a> {
    out: Translation,
    kitename: Option<String>,
    kitesecret: Zeroizing<String>,
    services: Vec<Service<'a>>,
    site_options: Vec<&'a Setting>,
    frontends: Vec<(String, &'a Setting)>,
    pool: Option<(String, &'a Setting)>,
    never: Vec<&'a Setting>,
    certificates: Vec<String>,
    unchecked: Option<&'a Setting>,
    authorities: Option<&'a Setting>,
    proxies: Vec<&'a Setting>,
}

/// A kite of `service_on` or `service_off`.
struct Service<'a> {
    setting: &'a Setting,
    on: bool,
    /// As kite writes it: `http`, `raw-22`.
    protocol: String,
    port: Option<u16>,
    name: KiteName,
    origin: Origin,
    /// The origin's host as it was written.
    host: String,
    secret: Option<Secret>,
    told: Told,
}

/// What `service_cfg` says of whom the origin hears of.
#[derive(Default)]
struct Told {
    raw_headers: bool,
    host: Option<String>,
    proxy_header: bool,
}

#[derive(Clone, Copy)]
enum Origin {
    At(IpAddr, u16),
    /// pagekite.py's own web server.
    Builtin,
}

/// Like [`str::replace`], which leaves copies behind as its text grows.
fn replaced(text: &str, word: &str, value: &str) -> Zeroizing<String> {
    let room = text.len() + text.matches(word).count() * value.len();
    let mut filled = Zeroizing::new(String::with_capacity(room));
    for (i, part) in text.split(word).enumerate() {
        filled.push_str(if i == 0 { "" } else { value });
        filled.push_str(part);
    }
    filled
}

pub(super) fn translate(settings: &[Setting], base: &Path) -> Result<Translation, Mistake> {
    let mut backend = Backend::default();
    for setting in settings {
        backend.take(setting)?;
    }
    backend.finish(base)
}

impl<'a> Backend<'a> {
    fn take(&mut self, s: &'a Setting) -> Result<(), Mistake> {
        match s.name {
            "kitename" => self.kitename = Some(s.value.to_string()),
            "kitesecret" => self.kitesecret.clone_from(&s.value),
            "service_on" | "backend" => self.service(s, true)?,
            "service_off" | "define_backend" => self.service(s, false)?,
            "service_cfg" | "be_config" => self.site_options.push(s),
            "frontend" => self.frontends.push((with_port(&s.value), s)),
            "frontends" => self.pool(s)?,
            "nofrontend" => self.never.push(s),
            "defaults" => self.defaults(s, SERVICE, &[]),
            "whitelabel" | "whitelabels" => {
                let own = [format!("fe.{}", *s.value), s.value.to_string()];
                self.defaults(s, &s.value, &own);
            }
            "fe_certname" => self.certificate(s)?,
            "fe_nocertcheck" => self.unchecked = Some(s),
            "ca_certs" => self.authorities = Some(s),
            "torify" | "socksify" | "proxy" => self.proxies.push(s),
            "noproxy" => self.proxies.clear(),
            _ => self.out.other(s, Role::Backend),
        }
        Ok(())
    }

    /// `proto[,proto…][/port]:name:host:port:secret`. The secret may be left out if another kite of the name has one.
    fn service(&mut self, s: &'a Setting, on: bool) -> Result<(), Mistake> {
        let text = self.filled_in(s)?;
        let parts: Vec<&str> = text.split(':').collect();
        let (protos, name, host, at, own) = match *parts.as_slice() {
            [protos, name, host, at, own] => (protos, name, host, at, Some(own)),
            [protos, name, host, at] => (protos, name, host, at, None),
            [protos, name, at] => (protos, name, "", at, None),
            _ => {
                return Err(s.mistake(
                    "this is not PROTOCOL:NAME:HOST:PORT:SECRET",
                    "write, for instance, http:bob.alice.example:localhost:80:@kitesecret; a secret with a ':' in it cannot be used",
                ));
            }
        };
        let name: KiteName = name.replace('/', "").parse().map_err(|_| {
            // What stands there may be the secret, in the wrong place.
            s.mistake(
                "its second part is no kite's name",
                "write PROTOCOL:NAME:HOST:PORT:SECRET, with a name such as bob.alice.example",
            )
        })?;
        let origin = origin(s, host, at)?;
        let known = |other: &&Service| other.name == name && other.secret.is_some();
        let secret = match own {
            Some(own) => Some(secret(s, own)?),
            None => self
                .services
                .iter()
                .find(known)
                .and_then(|o| o.secret.clone()),
        };
        if secret.is_none() && on {
            return Err(s.mistake(
                format!("{name} has no secret"),
                "write it, or @kitesecret, as the fifth part of the line",
            ));
        }
        if self.kitename.is_none() {
            self.kitename = Some(name.to_string());
            if let Some(own) = own {
                own.clone_into(&mut self.kitesecret);
            }
        }
        for word in list(&protos.replace('/', "-").to_lowercase()) {
            let (word, port) = protocol(s, word)?;
            let shown = match port {
                Some(port) => format!("{word}-{port}"),
                None => word.to_owned(),
            };
            if let Some(first) = self
                .services
                .iter()
                .find(|o| o.protocol == shown && o.name == name)
            {
                return Err(s.mistake(
                    format!("{shown}:{name} is in {} already", first.setting.place),
                    "keep one of the two",
                ));
            }
            self.services.push(Service {
                setting: s,
                on,
                protocol: shown,
                port,
                name: name.clone(),
                origin,
                host: if host.is_empty() { "localhost" } else { host }.to_owned(),
                secret: secret.clone(),
                told: Told::default(),
            });
        }
        Ok(())
    }

    /// With what `@kitename` and `@kitesecret` were before this line.
    fn filled_in(&self, s: &Setting) -> Result<Zeroizing<String>, Mistake> {
        let name = self.kitename.as_deref().unwrap_or_default();
        for (word, value) in [("kitename", name), ("kitesecret", self.kitesecret.as_str())] {
            if value.is_empty() && s.value.contains(&format!("@{word}")) {
                return Err(s.mistake(
                    format!("@{word} has no value yet"),
                    format!("write {word} = … in a line before this one"),
                ));
            }
        }
        let text = replaced(&s.value, "@kitesecret", &self.kitesecret);
        Ok(replaced(&text, "@kitename", name))
    }

    fn pool(&mut self, s: &'a Setting) -> Result<(), Mistake> {
        let wrong = || {
            s.mistake(
                "this is not COUNT:NAME:PORT",
                "write, for instance, 1:frontends.alice.example:443",
            )
        };
        let mut parts = s.value.split(':');
        let (Some(count), Some(name), Some(at), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(wrong());
        };
        let count: u32 = count.parse().map_err(|_| wrong())?;
        let at = port(at).ok_or_else(wrong)?;
        if let Some(file) = name.strip_prefix('@') {
            return Err(s.mistake(
                format!("kite reads no list of frontends from a file, such as {file:?}"),
                "write each of its frontends as frontend = HOST:PORT",
            ));
        }
        if count > 1 {
            self.out.note(s, format!("kite dials {name}:{at} as one frontend; which of its addresses, is left to who resolves it"));
        }
        self.pool = Some((format!("{name}:{at}"), s));
        Ok(())
    }

    fn defaults(&mut self, s: &'a Setting, domain: &str, certificates: &[String]) {
        self.pool = Some((format!("{POOL}.{domain}:{USUAL_PORT}"), s));
        let service = SERVICE_CERTIFICATES.iter().map(|&name| name.to_owned());
        for name in certificates.iter().cloned().chain(service) {
            if !self.certificates.contains(&name) {
                self.certificates.push(name);
            }
        }
        self.out.note(
            s,
            format!("kite dials one frontend of {domain}, but tells no name server which; let the kites' names lead there yourself"),
        );
    }

    fn certificate(&mut self, s: &Setting) -> Result<(), Mistake> {
        if s.value.is_empty() {
            self.certificates.clear();
            return Ok(());
        }
        let name = s.value.to_lowercase();
        if name.contains('/') {
            return Err(s.mistake(
                "kite does not pin a certificate by its SHA-1",
                "write the name alone; or `kite import` the file, and pin the frontend's key with #sha256:…",
            ));
        }
        if !self.certificates.contains(&name) {
            self.certificates.push(name);
        }
        Ok(())
    }

    fn finish(mut self, base: &Path) -> Result<Translation, Mistake> {
        self.way_out();
        self.dial(base)?;
        self.sites()?;
        self.fly();
        Ok(self.out)
    }

    /// Whoever asked for a proxy wants no frontend to see this machine: it is Tor, or nothing.
    fn way_out(&mut self) {
        let is_none = |s: &&Setting| {
            let kind = s.value.split([':', '!', '/', '@']).next();
            s.name == "proxy" && matches!(kind, Some("none" | "default"))
        };
        for s in self.proxies.iter().filter(|s| !is_none(s)) {
            if self.out.proxied.is_none() {
                self.out.proxied = Some(s.place.clone());
                let tor = Table::from_iter([("enabled".to_owned(), Value::Boolean(true))]);
                self.out.set("tor", tor, s);
            }
            self.out.note(
                s,
                "kite goes out through the Tor that is built in, and uses no other proxy",
            );
        }
    }

    fn dial(&mut self, base: &Path) -> Result<(), Mistake> {
        let mut frontends = std::mem::take(&mut self.frontends);
        frontends.extend(self.pool.take());
        for s in &self.never {
            let before = frontends.len();
            let never = with_port(&s.value);
            frontends.retain(|(place, _)| *place != never);
            if frontends.len() == before {
                self.out.note(
                    s,
                    "kite dials names, and cannot tell to which address they lead",
                );
            }
        }
        let mut seen = Vec::new();
        for (place, s) in frontends {
            if seen.contains(&place) {
                continue;
            }
            let address = self.address(&place);
            let entry = Table::from_iter([("address".to_owned(), Value::String(address))]);
            self.out.push("frontends", entry, s);
            seen.push(place);
        }
        if let Some(s) = self.unchecked {
            self.out.note(s, "kite has no TLS without a check: the frontend needs a certificate for its name, or for one of fe_certname");
        }
        if let Some(s) = self.authorities {
            if SYSTEM_ROOTS.contains(&s.value.as_str()) {
                self.out
                    .remark(s, "kite has the web's authorities built in");
            } else {
                self.out.set("ca_file", path(base, &s.value), s);
                if !self.certificates.is_empty() || self.unchecked.is_some() {
                    self.out.note(
                        s,
                        "kite trusts these besides the web's authorities, which are built in",
                    );
                }
            }
        }
        Ok(())
    }

    /// A frontend with the proof that it must give.
    fn address(&self, place: &str) -> String {
        let host = place.rsplit_once(':').map_or(place, |(host, _)| host);
        let onion = host.to_ascii_lowercase().ends_with(".onion");
        match self.certificates.as_slice() {
            [] if onion || self.unchecked.is_some() => place.to_owned(),
            [] => format!("plain://{place}"),
            [only] if only == host => place.to_owned(),
            names => format!("{place}#name:{}", names.join(",")),
        }
    }

    fn fly(&mut self) {
        for service in &self.services {
            let (s, name) = (service.setting, &service.name);
            let shown = format!("{}:{name}", service.protocol);
            if !service.on {
                self.out.remark(s, format!("{shown} is off"));
                continue;
            }
            let Origin::At(ip, at) = service.origin else {
                self.out.note(
                    s,
                    format!("{shown} is not flown: kite has no web server of its own"),
                );
                continue;
            };
            let word = service.protocol.split('-').next().unwrap_or_default();
            if service.protocol.parse::<Protocol>().is_err() && word.parse::<Protocol>().is_err() {
                self.out.note(
                    s,
                    format!("{shown} is not flown: kite does not carry {word}"),
                );
                continue;
            }
            let Some(secret) = service.secret.clone() else {
                continue;
            };
            let kept = self.out.keep(name.as_str(), secret);
            let mut entry = Table::from_iter([
                ("name".to_owned(), Value::String(name.to_string())),
                (
                    "protocol".to_owned(),
                    Value::String(service.protocol.clone()),
                ),
                ("origin".to_owned(), Value::String(format!("{ip}:{at}"))),
                ("secret_file".to_owned(), Value::String(kept)),
            ]);
            entry.extend(service.told());
            self.out.push("kites", entry, s);
            if !ip.is_loopback() {
                self.out.note(s, format!("{shown} is served by {ip}, another machine: the way there is not protected by kite"));
                allow(&mut self.out, ip, s);
            }
        }
    }

    /// `service_cfg`: what holds for one site, which is a name and a port.
    fn sites(&mut self) -> Result<(), Mistake> {
        for s in std::mem::take(&mut self.site_options) {
            let mut parts = s.value.splitn(3, ':');
            let (Some(site), Some(key), Some(value)) = (parts.next(), parts.next(), parts.next())
            else {
                return Err(s.mistake(
                    "this is not NAME/PORT:KEY:VALUE",
                    "write, for instance, bob.alice.example/80:rawheaders:True",
                ));
            };
            let is_site = |service: &&mut Service| {
                site == format!("{}/{}", service.name, service.port.unwrap_or(80))
            };
            let mut here: Vec<_> = self.services.iter_mut().filter(is_site).collect();
            if here.is_empty() {
                self.out.note(
                    s,
                    "there is no kite of this name and port (80, if it has none)",
                );
                continue;
            }
            if !here.iter().any(|service| service.on) {
                self.out.remark(s, "the kite is off");
                continue;
            }
            let on = !matches!(value, "False" | "None");
            match key.split('/').next().unwrap_or_default() {
                "password" | "user" => {
                    return Err(s.mistake(
                        "kite asks visitors for no password, and without it all would come in",
                        "let the origin ask, and remove the line",
                    ));
                }
                "ip" => {
                    return Err(s.mistake(
                        "kite's backend does not choose visitors by their address, and without it all would come in",
                        "let the origin or the frontend choose, and remove the line",
                    ));
                }
                "rawheaders" => here.iter_mut().for_each(|k| k.told.raw_headers = on),
                "proxyproto" => here.iter_mut().for_each(|k| k.told.proxy_header = on),
                "rewritehost" => {
                    let host = (on && value != "True").then(|| value.to_owned());
                    for kite in &mut here {
                        kite.told.host = host.clone().or_else(|| on.then(|| kite.host.clone()));
                    }
                }
                "insecure" => self.out.remark(s, "kite does so in any case"),
                _ if !on => self.out.remark(s, "kite does so in any case"),
                _ => self.out.note(
                    s,
                    "it is for pagekite.py's own web server, of which kite has none",
                ),
            }
        }
        Ok(())
    }
}

impl Service<'_> {
    /// The keys for whom the origin hears of. pagekite.py tells an HTTP origin, unless it is told not to.
    fn told(&self) -> Vec<(String, Value)> {
        let word = self.protocol.split('-').next();
        let is_http = matches!(word, Some("http" | "http2" | "http3" | "websocket"));
        let mut keys = Vec::new();
        if is_http && !self.told.raw_headers {
            keys.push(("forwarded_headers".to_owned(), Value::Boolean(true)));
            if let Some(host) = &self.told.host {
                keys.push(("rewrite_host".to_owned(), Value::String(host.clone())));
            }
        }
        if self.told.proxy_header {
            keys.push(("proxy_protocol".to_owned(), Value::String("v1".to_owned())));
        }
        keys
    }
}

/// An origin of another machine, which must be listed.
fn allow(out: &mut Translation, ip: IpAddr, s: &Setting) {
    let mut allowed = match out.table.get("allow_origin") {
        Some(Value::Array(allowed)) => allowed.clone(),
        _ => Vec::new(),
    };
    let ip = Value::String(ip.to_string());
    if !allowed.contains(&ip) {
        allowed.push(ip);
        out.set("allow_origin", allowed, s);
    }
}

/// The word as kite has it, and the port that belongs to it.
fn protocol<'w>(s: &Setting, word: &'w str) -> Result<(&'w str, Option<u16>), Mistake> {
    let (word, at) = match word.rsplit_once('-') {
        Some((word, at)) if at.starts_with(|c: char| c.is_ascii_digit()) => {
            let wrong = || {
                s.mistake(
                    format!(
                        "what follows {} is no port",
                        known(word).unwrap_or("the protocol")
                    ),
                    "write a port from 1 to 65535, as in raw/22",
                )
            };
            (word, Some(port(at).ok_or_else(wrong)?))
        }
        _ => (word, None),
    };
    match word {
        "ssh" => Ok(("raw", at.or(Some(22)))),
        "tls" => Ok(("https", at)),
        _ if known(word).is_some() => Ok((word, at)),
        _ => Err(s.mistake(
            "its first part has a word that is no protocol",
            "use http, https, websocket or raw, several with commas",
        )),
    }
}

/// Protocols of pagekite.py and of kite.
fn known(word: &str) -> Option<&str> {
    const PAGEKITE: [&str; 6] = ["http2", "http3", "irc", "xmpp", "minecraft", "finger"];
    (PAGEKITE.contains(&word) || word.parse::<Protocol>().is_ok()).then_some(word)
}

fn origin(s: &Setting, host: &str, at: &str) -> Result<Origin, Mistake> {
    if at == "builtin" {
        return Ok(Origin::Builtin);
    }
    let at = port(at).ok_or_else(|| {
        s.mistake(
            "the origin's port is no number from 1 to 65535",
            "write PROTOCOL:NAME:HOST:PORT:SECRET",
        )
    })?;
    match host.to_ascii_lowercase().as_str() {
        "" | "localhost" => Ok(Origin::At(IpAddr::from([127, 0, 0, 1]), at)),
        host => host.parse().map(|ip| Origin::At(ip, at)).map_err(|_| {
            s.mistake(
                "the origin's host is a name, which would have to be looked up",
                format!("write localhost, or its address in numbers, such as 192.168.1.5:{at}"),
            )
        }),
    }
}

fn with_port(frontend: &str) -> String {
    if frontend.contains(':') {
        frontend.to_owned()
    } else {
        format!("{frontend}:{USUAL_PORT}")
    }
}
