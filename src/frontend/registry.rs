//! Which kite flies on which tunnel.
//!
//! A name is reserved before the backend hears that it flies, and found by visitors
//! only once its tunnel stands: nobody is routed into a handshake.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{PoisonError, RwLock};

use crate::kite::{KiteName, Protocol};
use crate::tunnel::Tunnel;
use crate::wire::KiteId;

/// The catch-all name of PageKite (protocol page §5.2).
const CATCH_ALL: &str = "unknown";

/// All kites that fly here.
#[derive(Default)]
pub struct Registry(RwLock<HashMap<Key, Entry>>);

/// Wire protocol with its port, if any (`http`, `raw-22`), and name.
type Key = (String, String);

/// A tunnel as others may see it.
#[derive(Debug, Clone)]
pub struct TunnelView {
    /// Where it comes from, as logs say it: scrubbed unless peers may be logged.
    pub peer: String,
    /// `protocol:name` of what it flies.
    pub kites: Vec<String>,
}

struct Entry {
    session: String,
    peer: String,
    terms: Terms,
    tunnel: Option<Tunnel>,
}

/// What visitors may use a kite for.
pub type Terms = BTreeSet<Protocol>;

/// Who claims a name.
#[derive(Clone, Copy)]
pub struct Claimant<'a> {
    /// The session of its tunnel.
    pub session: &'a str,
    /// Where it comes from, as logs say it.
    pub peer: &'a str,
}

/// What became of a wish for a name.
pub enum Claim {
    /// It is reserved for this session.
    Granted,
    /// The tunnel of this session flies it already.
    Held,
    /// Another tunnel has it. If that one is dead it will be found out: it is being asked.
    Duplicate,
}

/// A kite that serves a visitor.
pub struct Found {
    /// The wire protocol that was found, without its port.
    pub proto: String,
    /// What the kite may be used for.
    pub terms: Terms,
    /// The way there.
    pub tunnel: Tunnel,
}

impl Registry {
    /// Reserves a name for `session`. A holder whose session is `replace` gives way:
    /// the claimant has just proved the kite's secret.
    pub fn claim(
        &self,
        id: &KiteId,
        terms: Terms,
        claimant: Claimant<'_>,
        replace: Option<&str>,
    ) -> Claim {
        let mut map = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let key = (id.proto.clone(), id.name.clone());
        if let Some(holder) = map.get(&key) {
            if holder.session == claimant.session {
                return Claim::Held;
            }
            match &holder.tunnel {
                Some(tunnel) if tunnel.is_closed() => {}
                Some(tunnel) if replace == Some(holder.session.as_str()) => {
                    tunnel.close("replaced by its backend")
                }
                Some(tunnel) => {
                    tunnel.ask();
                    return Claim::Duplicate;
                }
                None => return Claim::Duplicate,
            }
        }
        let Claimant { session, peer } = claimant;
        map.insert(
            key,
            Entry {
                session: session.to_owned(),
                peer: peer.to_owned(),
                terms,
                tunnel: None,
            },
        );
        Claim::Granted
    }

    /// The tunnel of `session` stands: visitors may come.
    pub fn activate(&self, session: &str, tunnel: &Tunnel) {
        let mut map = self.0.write().unwrap_or_else(PoisonError::into_inner);
        for entry in map.values_mut().filter(|e| e.session == session) {
            entry.tunnel = Some(tunnel.clone());
        }
    }

    /// The tunnel of `session` is gone. Returns the kites that came down.
    pub fn release(&self, session: &str) -> Vec<(String, String)> {
        let mut map = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let gone: Vec<Key> = map
            .iter()
            .filter(|(_, e)| e.session == session)
            .map(|(k, _)| k.clone())
            .collect();
        for key in &gone {
            map.remove(key);
        }
        gone
    }

    /// The kites of `session`.
    pub fn of_session(&self, session: &str) -> Vec<(String, String)> {
        let map = self.0.read().unwrap_or_else(PoisonError::into_inner);
        map.iter()
            .filter(|(_, e)| e.session == session)
            .map(|(k, _)| k.clone())
            .collect()
    }

    /// The kite for a visitor: the first of `protos` that has the name, on this port
    /// or any; exactly, or by the nearest wildcard; else the catch-all.
    pub fn find(&self, protos: &[&str], port: u16, host: &KiteName) -> Option<Found> {
        let map = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let mut key = (String::new(), String::new());
        let mut look = |proto: &str, with_port: bool, name: &str| {
            key.0 = if with_port {
                format!("{proto}-{port}")
            } else {
                proto.to_owned()
            };
            name.clone_into(&mut key.1);
            let entry = map.get(&key)?;
            let tunnel = entry.tunnel.clone().filter(|t| !t.is_closed())?;
            Some(Found {
                proto: proto.to_owned(),
                terms: entry.terms.clone(),
                tunnel,
            })
        };
        for proto in protos {
            for with_port in [true, false] {
                let hit = look(proto, with_port, host.as_str()).or_else(|| {
                    host.wildcards()
                        .find_map(|name| look(proto, with_port, &name))
                });
                if hit.is_some() {
                    return hit;
                }
            }
        }
        look(protos.first()?, false, CATCH_ALL)
    }

    /// The tunnels that are up, with their kites, in the order of their sessions.
    pub fn overview(&self) -> Vec<TunnelView> {
        let map = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let mut views: BTreeMap<&str, TunnelView> = BTreeMap::new();
        for ((proto, name), entry) in map.iter().filter(|(_, e)| e.tunnel.is_some()) {
            let view = views.entry(&entry.session);
            let view = view.or_insert_with(|| TunnelView {
                peer: entry.peer.clone(),
                kites: Vec::new(),
            });
            view.kites.push(format!("{proto}:{name}"));
        }
        views.into_values().collect()
    }

    /// Every tunnel that flies something, each once.
    pub fn tunnels(&self) -> Vec<Tunnel> {
        let map = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let mut all: Vec<Tunnel> = Vec::new();
        for tunnel in map.values().filter_map(|e| e.tunnel.as_ref()) {
            if !all.iter().any(|t| t.is_same(tunnel)) {
                all.push(tunnel.clone());
            }
        }
        all
    }
}
