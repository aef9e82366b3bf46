//! A running frontend takes another configuration: what may fly, how much, and the certificates. What was made at the start
//! stays as it is, and a configuration that changes it is refused as a whole.

use std::collections::BTreeMap;
use std::mem::take;

use super::Shared;
use super::limits::Limits;
use crate::config::{CertificateFiles, FrontendConfig, Grant};

/// What a frontend was told, as far as a reload must know.
pub(super) struct Terms {
    fixed: Fixed,
    kites: Vec<Grant>,
    limits: Limits,
    certificates: Vec<CertificateFiles>,
    motd: Option<std::path::PathBuf>,
}

/// What takes effect at a start only: each key, and what it says, as text.
type Fixed = Vec<(&'static str, String)>;

impl Terms {
    pub(super) fn of(config: &FrontendConfig) -> Self {
        Self {
            fixed: fixed(config),
            kites: config.kites.clone(),
            limits: config.limits.clone(),
            certificates: config.certificates.clone(),
            motd: config.motd.clone(),
        }
    }
}

/// What needs ports, files, programs or addresses that the kernel keeps from a running frontend, and from what takes its place.
const FOR_A_RESTART: [&str; 9] = [
    "listen",
    "authorities",
    "onion",
    "state_dir",
    "acme",
    "metrics.listen",
    "web.listen",
    "fleet",
    "user",
];

fn fixed(config: &FrontendConfig) -> Fixed {
    let FrontendConfig {
        listen,
        authorities,
        name,
        onion,
        state_dir,
        log_peers,
        acme,
        local,
        page,
        policy,
        open,
        fleet,
        drain,
        grace,
        user,
        read_from: _,
        kites: _,
        limits: _,
        certificates: _,
        motd: _,
    } = config;
    vec![
        ("listen", format!("{listen:?}")),
        ("authorities", format!("{authorities:?}")),
        ("name", format!("{name:?}")),
        ("onion", format!("{onion:?}")),
        ("state_dir", format!("{state_dir:?}")),
        ("log_peers", format!("{log_peers:?}")),
        ("acme", format!("{acme:?}")),
        ("metrics.listen", format!("{:?}", local.metrics)),
        ("web.listen", format!("{:?}", local.web)),
        ("page", format!("{page:?}")),
        ("policy", format!("{policy:?}")),
        ("open", format!("{open:?}")),
        ("fleet", format!("{fleet:?}")),
        ("drain", format!("{drain:?}")),
        ("grace", format!("{grace:?}")),
        ("user", format!("{user:?}")),
    ]
}

impl Shared {
    /// Takes another configuration. What has changed, a line each; or why nothing has.
    pub(super) fn turn_to(&self, mut config: FrontendConfig) -> Result<Vec<String>, String> {
        let mut terms = self.terms();
        let new = Terms::of(&config);
        let differs = terms.fixed.iter().zip(&new.fixed).find(|(a, b)| a != b);
        if let Some(((key, _), _)) = differs {
            let remedy = match FOR_A_RESTART.contains(key) {
                true => "restart the frontend: an upgrade stays within what the running one may do",
                false => {
                    "`kite frontend upgrade` starts it anew, and no visitor is refused meanwhile"
                }
            };
            return Err(format!(
                "`{key}` has changed, which takes effect at a start only; {remedy}"
            ));
        }
        let mut lines = kites(&terms.kites, &new.kites);
        if new.limits != terms.limits {
            lines.push("limits: others".to_owned());
        }
        // Also if the files are the same: what is in them may be new.
        self.certificates
            .turn_to(take(&mut config.certificates))
            .map_err(|e| e.to_string())?;
        if new.certificates != terms.certificates {
            lines.push("certificates: others".to_owned());
            self.certificates.announce();
        }
        let taken = self
            .accounts
            .turn_to(take(&mut config.kites), take(&mut config.limits));
        if let Err(e) = taken {
            // They were good when they were taken.
            let _ = self.certificates.turn_to(terms.certificates.clone());
            return Err(e.to_string());
        }
        if new.motd != terms.motd {
            self.motd.read_from(take(&mut config.motd));
            lines.push("motd_file: another".to_owned());
        }
        self.revoke();
        *terms = new;
        Ok(lines)
    }
}

/// What differs, a line each, without any secret.
fn kites(old: &[Grant], new: &[Grant]) -> Vec<String> {
    fn by_name(all: &[Grant]) -> BTreeMap<String, Vec<&Grant>> {
        let mut named: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for grant in all {
            named
                .entry(grant.pattern.to_string())
                .or_default()
                .push(grant);
        }
        named
    }
    let (old, new) = (by_name(old), by_name(new));
    let mut lines = Vec::new();
    for (name, grants) in &new {
        match old.get(name) {
            None => lines.push(format!("kite {name}: added")),
            Some(was) if was != grants => lines.push(format!("kite {name}: on other terms")),
            Some(_) => {}
        }
    }
    let gone = old.keys().filter(|name| !new.contains_key(*name));
    lines.extend(gone.map(|name| format!("kite {name}: removed")));
    lines
}
