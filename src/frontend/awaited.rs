//! Kites that are expected back after a start. Their visitors wait for a while, instead of being told that nobody is there.

use std::collections::HashSet;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, timeout};

use super::{Arrival, Shared};
use crate::kite::KiteName;
use crate::sniff::{HttpKind, Visitor};

/// Most visitors that wait at a time. More are told at once.
pub const MAX_WAITING: usize = 4096;
/// After news, until each looks whether its kite is back: while many come back, nobody looks at each of them.
const LOOK: Duration = Duration::from_millis(50);
/// Without news each looks so often.
const REST: Duration = Duration::from_secs(1);

/// Who is expected.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Whom {
    /// All who may fly: after a start of which nothing more is known.
    pub entitled: bool,
    /// These, by the wire's protocol and the name: they flew at a kite that was here before.
    pub flown: HashSet<(String, String)>,
}

impl Whom {
    /// All who may fly.
    pub fn entitled() -> Self {
        Self {
            entitled: true,
            ..Self::default()
        }
    }
}

/// The time in which somebody is expected.
pub(super) struct Awaited {
    until: Instant,
    whom: Whom,
    places: Semaphore,
}

/// What is behind a request, whatever it turns out to be.
const REQUEST: &[&str] = &["websocket", "http", "http2", "http3"];
/// What has TLS of its own.
const TLS: &[&str] = &["https"];
/// What is behind TLS that may be ended here.
pub(super) const ENDED: &[&str] = &["https", "http", "http2", "http3", "websocket"];

impl Awaited {
    pub(super) fn new(whom: Whom, grace: Duration) -> Self {
        Self {
            until: Instant::now() + grace,
            whom,
            places: Semaphore::new(MAX_WAITING),
        }
    }

    /// Who is still expected; nobody once the time is over.
    pub(super) fn still(&self) -> Whom {
        match Instant::now() < self.until {
            true => self.whom.clone(),
            false => Whom::default(),
        }
    }

    /// Is a kite expected that would take this visitor?
    fn expects(&self, shared: &Shared, protos: &[&str], port: u16, host: &KiteName) -> bool {
        let Whom { entitled, flown } = &self.whom;
        let mut names = std::iter::once(host.to_string()).chain(host.wildcards());
        let flew = names.any(|name| {
            protos.iter().any(|proto| {
                flown.contains(&((*proto).to_owned(), name.clone()))
                    || flown.contains(&(format!("{proto}-{port}"), name.clone()))
            })
        });
        let may_fly = || {
            let holdings = shared.accounts.covering(host);
            let mut allowed = holdings.iter().flat_map(|h| &h.grant.protocols);
            allowed.any(|protocol| protos.contains(&protocol.on_wire()))
        };
        // Who asks for ourselves waits for nobody who only may fly.
        flew || (*entitled && !shared.is_called(host) && may_fly())
    }
}

impl Shared {
    /// Keeps a visitor until a kite is there that may be meant, if one is expected here, or not known yet not to be elsewhere in
    /// the fleet. Who has come for anything else goes on at once; so does everybody when the time is over.
    pub(super) async fn hold(&self, visitor: Option<&Visitor>, door: &Arrival) {
        let Some((mut protos, host)) = wanted(visitor, door) else {
            return;
        };
        if protos == TLS && self.certificates.find(&host).is_some() {
            protos = ENDED;
        }
        let awaited = &self.awaited;
        let host = crate::sniff::without_ip_prefix(&host).unwrap_or(host);
        if self.registry.is_blocked(&host) {
            return;
        }
        let is_back = || {
            let found = self.registry.find(protos, door.port, &host);
            found.is_some_and(|found| !found.is_catch_all)
                || self.flies_elsewhere(protos, door.port, &host)
        };
        let expected = Instant::now() < awaited.until
            && !is_back()
            && awaited.expects(self, protos, door.port, &host);
        let fleet = self.fleet.as_ref().filter(|_| door.brought.is_none());
        let may_be = || expected && Instant::now() < awaited.until;
        let may_be = || may_be() || fleet.is_some_and(|fleet| fleet.is_young());
        if is_back() || !may_be() {
            return;
        }
        let Ok(_place) = awaited.places.try_acquire() else {
            return;
        };
        tracing::debug!("a visitor waits for {host}, which is not back yet");
        let mut here = self.registry.changes();
        let mut elsewhere = fleet.map(|fleet| fleet.news());
        while may_be() && !self.leaving() && !is_back() {
            let changed = async {
                match &mut elsewhere {
                    Some(news) => {
                        tokio::select! { _ = here.changed() => {}, _ = news.changed() => {} }
                    }
                    None => drop(here.changed().await),
                }
            };
            let _ = timeout(REST, changed).await;
            sleep(LOOK).await;
        }
    }

    /// So many wait for somebody who is not back that whoever seems to have left had better make room.
    pub(super) fn waits_crowd(&self) -> bool {
        self.awaited.places.available_permits() < MAX_WAITING / 2
    }
}

/// What a visitor may want, by the wire's words, and of whom. A backend wants nothing of a kite.
pub(super) fn wanted(
    visitor: Option<&Visitor>,
    door: &Arrival,
) -> Option<(&'static [&'static str], KiteName)> {
    Some(match visitor {
        None => (&["raw"], door.port_kite.clone()?),
        Some(Visitor::Tls(hello)) if hello.alpn_kite || hello.alpn_acme => return None,
        Some(Visitor::Tls(hello)) => (TLS, hello.sni.clone().or(door.port_kite.clone())?),
        Some(Visitor::Xmpp(host)) => (&["xmpp"], host.clone()),
        Some(Visitor::Minecraft(host)) => (&["minecraft"], host.clone()),
        Some(Visitor::Http(head)) => match &head.kind {
            HttpKind::Request | HttpKind::Websocket => (REQUEST, head.host.clone()?),
            HttpKind::Connect { host, port } => match port {
                80 | 8080 => (&["http", "raw"], host.clone()),
                443 => (&["https", "raw"], host.clone()),
                _ => (&["raw"], host.clone()),
            },
            HttpKind::Tunnel | HttpKind::Ping => return None,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_not_come_back_is_still_expected_while_there_is_time() {
        let whom = Whom {
            entitled: true,
            flown: [("http".to_owned(), "bob.example".to_owned())].into(),
        };
        let awaited = Awaited::new(whom.clone(), Duration::from_secs(300));
        assert_eq!(awaited.still(), whom);
        let awaited = Awaited::new(whom, Duration::ZERO);
        assert_eq!(awaited.still(), Whom::default());
    }
}
