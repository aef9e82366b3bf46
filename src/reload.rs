//! `kite reload`: a running backend is given its configuration anew.
//!
//! Behind the walls of Tor mode a backend can read no file outside its state directory, so the command
//! reads, and checks, and sends what it has read over the control socket. What the walls and Tor were made for at the
//! start cannot change, and is compared; frontends and kites can.

use std::collections::BTreeSet;
use std::fmt::Display;
use std::net::SocketAddr;
use std::path::{Path, PathBuf, absolute};

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::backend::Plan;
use crate::backend::introduce::Tell;
use crate::config::{BackendConfig, Frontend, ProvenBy, Service};
use crate::dial::OriginAddr;
use crate::kite::{Ported, Secret};
use crate::proxy_header::Version;
use crate::wiped::Exposed;

/// A backend's configuration, on its way to it. Holds secrets: not for logs.
#[derive(Serialize, Deserialize)]
pub struct Order {
    fixed: Fixed,
    frontends: Vec<FrontendOrder>,
    kites: Vec<KiteOrder>,
}

/// What became of an order.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Answer {
    /// It is carried out. What has changed, a line each; nothing if all was the same.
    Changed(Vec<String>),
    /// Nothing has changed, for this reason.
    Refused(String),
}

/// What must stay as it was when the backend started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fixed {
    via_tor: bool,
    tor_config: Option<PathBuf>,
    socks_listen: Option<SocketAddr>,
    ca_file: Option<PathBuf>,
    metrics_listen: Option<String>,
    web_listen: Option<String>,
}

#[derive(Serialize, Deserialize)]
struct FrontendOrder {
    address: String,
    kites: Option<Vec<String>>,
    tunnels: u8,
    homes: bool,
}

#[derive(Serialize, Deserialize)]
struct KiteOrder {
    protocol: String,
    name: String,
    origin: String,
    tub: Option<String>,
    tls_at_frontend: bool,
    proxy_protocol: Option<Version>,
    forwarded_headers: bool,
    rewrite_host: Option<String>,
    secret: Exposed,
    by: ProvenBy,
}

impl Fixed {
    /// Takes it out of a configuration.
    pub fn of(config: &BackendConfig) -> Self {
        // Two processes may have been started in different directories.
        let place = |path: &Option<PathBuf>| {
            let whole = |path: &PathBuf| absolute(path).unwrap_or_else(|_| path.clone());
            path.as_ref().map(whole)
        };
        Self {
            via_tor: config.tor.enabled,
            tor_config: place(&config.tor.config),
            socks_listen: config.socks,
            ca_file: place(&config.ca_file),
            metrics_listen: config.local.metrics.as_ref().map(ToString::to_string),
            web_listen: config.local.web.as_ref().map(ToString::to_string),
        }
    }

    /// The first key in which another differs.
    fn differs(&self, other: &Self) -> Option<&'static str> {
        [
            (self.via_tor != other.via_tor, "tor.enabled"),
            (self.tor_config != other.tor_config, "tor.config"),
            (self.socks_listen != other.socks_listen, "tor.socks_listen"),
            (self.ca_file != other.ca_file, "ca_file"),
            (
                self.metrics_listen != other.metrics_listen,
                "metrics.listen",
            ),
            (self.web_listen != other.web_listen, "web.listen"),
        ]
        .into_iter()
        .find_map(|(differs, key)| differs.then_some(key))
    }
}

impl Order {
    /// To take this configuration.
    pub fn new(config: &BackendConfig) -> Self {
        let texts = |names: &Vec<_>| names.iter().map(ToString::to_string).collect();
        let frontend = |f: &Frontend| FrontendOrder {
            address: f.address.to_string(),
            kites: f.kites.as_ref().map(texts),
            tunnels: f.tunnels,
            homes: f.homes,
        };
        let kite = |s: &Service| KiteOrder {
            protocol: s.ported().to_string(),
            name: s.name.to_string(),
            origin: s.origin.to_string(),
            tub: s.tub.map(|tub| tub.as_str().to_owned()),
            tls_at_frontend: s.tls_at_frontend,
            proxy_protocol: s.tell.proxy_protocol,
            forwarded_headers: s.tell.forwarded_headers,
            rewrite_host: s.tell.rewrite_host.clone(),
            secret: Exposed::new(s.secret.expose()),
            by: s.by,
        };
        Self {
            fixed: Fixed::of(config),
            frontends: config.frontends.iter().map(frontend).collect(),
            kites: config.services.iter().map(kite).collect(),
        }
    }

    /// The plan, as it was before it became text; none if this is no text of this version's.
    fn plan(&self) -> Option<Plan> {
        let frontend = |f: &FrontendOrder| {
            let kites = match &f.kites {
                Some(names) => Some(
                    names
                        .iter()
                        .map(|n| n.parse().ok())
                        .collect::<Option<_>>()?,
                ),
                None => None,
            };
            Some(Frontend {
                address: f.address.parse().ok()?,
                kites,
                tunnels: f.tunnels,
                homes: f.homes,
            })
        };
        let kite = |k: &KiteOrder| {
            let Ported { protocol, port } = k.protocol.parse().ok()?;
            Some(Service {
                protocol,
                port,
                name: k.name.parse().ok()?,
                // Whether it may be another machine's was decided when the file was read.
                origin: OriginAddr::parse(&k.origin, true).ok()?,
                tub: match &k.tub {
                    Some(tub) => Some(tub.parse().ok()?),
                    None => None,
                },
                tls_at_frontend: k.tls_at_frontend,
                secret: match k.by {
                    ProvenBy::TubKey => Secret::key(k.secret.bytes())?,
                    ProvenBy::Secret | ProvenBy::Node => Secret::new(k.secret.bytes())?,
                },
                by: k.by,
                tell: Tell {
                    proxy_protocol: k.proxy_protocol,
                    forwarded_headers: k.forwarded_headers,
                    rewrite_host: k.rewrite_host.clone(),
                },
            })
        };
        Some(Plan {
            frontends: self.frontends.iter().map(frontend).collect::<Option<_>>()?,
            services: self.kites.iter().map(kite).collect::<Option<_>>()?,
        })
    }
}

/// Where a running backend's plan changes.
pub struct Reloader {
    fixed: Fixed,
    /// The Unix sockets that can be dialled; none if all can.
    sockets: Option<BTreeSet<PathBuf>>,
    plans: watch::Sender<Plan>,
}

impl Reloader {
    /// For a backend with this configuration; `confined` if it has given up what it did not need for that.
    pub fn new(config: &BackendConfig, confined: bool) -> Self {
        let sockets = config.services.iter().filter_map(|s| socket(&s.origin));
        let plan = Plan {
            frontends: config.frontends.clone(),
            services: config.services.clone(),
        };
        Self {
            fixed: Fixed::of(config),
            sockets: confined.then(|| sockets.map(Path::to_path_buf).collect()),
            plans: watch::Sender::new(plan),
        }
    }

    /// The plan, now.
    pub fn plan(&self) -> Plan {
        self.plans.borrow().clone()
    }

    /// The plan, now and later.
    pub fn plans(&self) -> watch::Receiver<Plan> {
        self.plans.subscribe()
    }

    /// The order as a plan, if this process can follow it.
    pub fn accept(&self, order: &Order) -> Result<Plan, String> {
        let restart = |what: &dyn Display| {
            format!("{what}, which takes effect at a start only; restart kite instead")
        };
        if let Some(key) = self.fixed.differs(&order.fixed) {
            return Err(restart(&format_args!("`{key}` has changed")));
        }
        let plan = order
            .plan()
            .ok_or("it is of another version; restart it, or use its own `kite reload`")?;
        let old = self.plans.borrow();
        for frontend in &plan.frontends {
            let known = old.frontends.iter().find(|f| f.address == frontend.address);
            if known.is_some_and(|f| f.tunnels != frontend.tunnels) {
                let address = &frontend.address;
                return Err(restart(&format_args!("{address}: `tunnels` has changed")));
            }
        }
        if let Some(open) = &self.sockets {
            let mut wanted = plan.services.iter().filter_map(|s| socket(&s.origin));
            if let Some(path) = wanted.find(|path| !open.contains(*path)) {
                return Err(restart(&format_args!(
                    "unix:{} is a new origin, and the sandbox keeps this process from it",
                    path.display()
                )));
            }
        }
        Ok(plan)
    }

    /// From now on it is this plan. Says what has changed.
    pub fn turn_to(&self, plan: Plan) -> Vec<String> {
        let old = self.plans.send_replace(plan);
        changes(&old, &self.plans.borrow())
    }
}

fn socket(origin: &OriginAddr) -> Option<&Path> {
    match origin {
        OriginAddr::Unix(path) => Some(path),
        OriginAddr::Tcp(_) => None,
    }
}

/// What differs, a line each, without any secret.
fn changes(old: &Plan, new: &Plan) -> Vec<String> {
    let mut lines = Vec::new();
    for frontend in &new.frontends {
        let address = &frontend.address;
        match old.frontends.iter().find(|f| f.address == *address) {
            None => lines.push(format!("frontend {address}: added")),
            Some(was) if was.kites != frontend.kites => {
                lines.push(format!("frontend {address}: flies other kites"));
            }
            Some(_) => {}
        }
    }
    let kept = |address| new.frontends.iter().any(|f| f.address == address);
    for gone in old.frontends.iter().filter(|f| !kept(f.address.clone())) {
        lines.push(format!("frontend {}: removed", gone.address));
    }
    let is = |a: &Service, b: &Service| (a.ported(), &a.name) == (b.ported(), &b.name);
    for kite in &new.services {
        let shown = format!("kite {}:{}", kite.ported(), kite.name);
        let Some(was) = old.services.iter().find(|s| is(s, kite)) else {
            lines.push(format!("{shown}: added"));
            continue;
        };
        let parts = [
            (was.origin != kite.origin, "origin"),
            (was.tub != kite.tub, "tub_id"),
            (
                was.tell.proxy_protocol != kite.tell.proxy_protocol,
                "proxy_protocol",
            ),
            (
                was.tell.forwarded_headers != kite.tell.forwarded_headers,
                "forwarded_headers",
            ),
            (
                was.tell.rewrite_host != kite.tell.rewrite_host,
                "rewrite_host",
            ),
            (was.tls_at_frontend != kite.tls_at_frontend, "tls"),
            (was.by != kite.by, "proof"),
            (was.by == kite.by && !was.is_proved_as(kite), "secret"),
        ];
        let parts: Vec<_> = parts.iter().filter(|p| p.0).map(|p| p.1).collect();
        if !parts.is_empty() {
            lines.push(format!("{shown}: another {}", parts.join(", another ")));
        }
    }
    for gone in &old.services {
        if !new.services.iter().any(|s| is(s, gone)) {
            lines.push(format!("kite {}:{}: removed", gone.ported(), gone.name));
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::TorChoice;

    fn service(text: &str, secret: &str) -> Service {
        let mut parts = text.splitn(3, ':');
        let mut part = || parts.next().expect("PROTOCOL:NAME:ORIGIN");
        let Ported { protocol, port } = part().parse().expect("a protocol");
        Service {
            protocol,
            port,
            name: part().parse().expect("a name"),
            origin: OriginAddr::parse(part(), true).expect("an origin"),
            secret: Secret::new(secret.as_bytes()).expect("a secret"),
            by: ProvenBy::Secret,
            tub: None,
            tls_at_frontend: false,
            tell: Tell::default(),
        }
    }

    fn config(frontends: &[(&str, Option<&str>)], services: &[Service]) -> BackendConfig {
        let frontend = |(address, kite): &(&str, Option<&str>)| Frontend {
            address: address.parse().expect("an address"),
            kites: kite.map(|name| vec![name.parse().expect("a name")]),
            tunnels: 2,
            homes: false,
        };
        BackendConfig {
            tor: TorChoice {
                enabled: true,
                said: true,
                config: Some("arti.toml".into()),
            },
            socks: None,
            frontends: frontends.iter().map(frontend).collect(),
            services: services.to_vec(),
            ca_file: None,
            state_dir: "/unused".into(),
            local: Default::default(),
            witnessing: Default::default(),
            drain: Default::default(),
        }
    }

    /// As it travels.
    fn sent(config: &BackendConfig) -> Order {
        let text = serde_json::to_vec(&Order::new(config)).expect("JSON");
        serde_json::from_slice(&text).expect("an order")
    }

    const PINNED: &str = "a.example:443#sha256:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8";

    fn old() -> BackendConfig {
        let bob = service("foolscap:bob.a.example:127.0.0.1:1", "s1");
        let web = service("http:web.a.example:192.168.1.5:80", "s2");
        config(&[(PINNED, None), ("b.example:443", None)], &[bob, web])
    }

    #[test]
    fn an_order_arrives_as_it_was_sent() {
        let old = old();
        let reloader = Reloader::new(&old, true);
        let plan = reloader.accept(&sent(&old)).expect("the same again");
        assert_eq!(reloader.turn_to(plan), Vec::<String>::new());
    }

    #[test]
    fn every_change_is_told_and_no_secret() {
        let reloader = Reloader::new(&old(), true);
        let bob = service("foolscap:bob.a.example:127.0.0.1:2", "s3");
        let new = service("https:new.a.example:[::1]:443", "s1");
        let order = sent(&config(
            &[(PINNED, Some("bob.a.example")), ("c.example:443", None)],
            &[bob, new],
        ));
        let plan = reloader.accept(&order).expect("nothing is in the way");
        let said = reloader.turn_to(plan);
        assert_eq!(
            said,
            [
                format!("frontend {PINNED}: flies other kites"),
                "frontend c.example:443: added".into(),
                "frontend b.example:443: removed".into(),
                "kite foolscap:bob.a.example: another origin, another secret".into(),
                "kite https:new.a.example: added".into(),
                "kite http:web.a.example: removed".into(),
            ]
        );
        assert_eq!(reloader.plans().borrow().services.len(), 2);
    }

    #[test]
    fn what_an_origin_is_told_travels_too() {
        let reloader = Reloader::new(&old(), true);
        let mut new = old();
        new.services[1].tell = Tell {
            proxy_protocol: Some(Version::V2),
            forwarded_headers: true,
            rewrite_host: Some("intranet".into()),
        };
        new.services[1].tls_at_frontend = true;
        let plan = reloader.accept(&sent(&new)).expect("nothing is in the way");
        assert_eq!(plan.services[1].tell, new.services[1].tell);
        assert_eq!(
            reloader.turn_to(plan),
            [
                "kite http:web.a.example: another proxy_protocol, another forwarded_headers, another rewrite_host, another tls"
            ]
        );
    }

    #[test]
    fn what_takes_a_restart_is_refused_and_changes_nothing() {
        let reloader = Reloader::new(&old(), true);
        let refused = |change: &dyn Fn(&mut BackendConfig)| {
            let mut new = old();
            change(&mut new);
            let order = sent(&new);
            match reloader.accept(&order) {
                Ok(_) => panic!("accepted"),
                Err(why) => why,
            }
        };
        type Change = fn(&mut BackendConfig);
        let changes: [(&str, Change); 6] = [
            ("tor.enabled", |c| c.tor.enabled = false),
            ("tor.config", |c| c.tor.config = None),
            ("socks_listen", |c| {
                c.socks = Some(([127, 0, 0, 1], 9150).into());
            }),
            ("ca_file", |c| c.ca_file = Some("ca.pem".into())),
            ("tunnels", |c| c.frontends[0].tunnels = 1),
            ("unix:/run/x", |c| {
                c.services[1].origin = OriginAddr::Unix("/run/x".into());
            }),
        ];
        for (key, change) in changes {
            let why = refused(&change);
            assert!(why.contains(key) && why.contains("restart kite"), "{why}");
        }
        assert_eq!(reloader.plans().borrow().frontends.len(), 2);
        // Without walls any socket will do.
        let mut new = old();
        new.services[1].origin = OriginAddr::Unix("/run/x".into());
        assert!(Reloader::new(&old(), false).accept(&sent(&new)).is_ok());
    }
}
