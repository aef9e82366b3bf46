//! Visitors between the members of a fleet: those whose kite flies elsewhere are passed on, and those that other members
//! bring are served.

use std::sync::Arc;

use bytes::BytesMut;
use futures::future::BoxFuture;
use tokio::sync::watch;
use tokio::time::timeout;

use super::awaited::wanted;
use super::registry::{Grounded, Standpoint};
use super::{Arrival, Shared, visitor};
use crate::code::Code;
use crate::fleet::forward::{GO_TIMEOUT, Taken};
use crate::fleet::header::{MAX_HOPS, Passed};
use crate::fleet::map::{Flight, Hit, Key};
use crate::fleet::{Brought, Host};
use crate::kite::KiteName;
use crate::sniff::{HttpKind, Visitor};
use crate::wire::Lines;

/// Whose a visitor is.
pub(super) enum Turn {
    /// This frontend's.
    Ours,
    /// Another member has taken it.
    Theirs(Box<Taken>),
    /// Another member has brought it, and nothing flies here that could be meant.
    Nobodys,
}

impl Shared {
    /// Whose visitor is this? One that is not ours is offered to the members that fly its kite.
    pub(super) async fn turn(
        &self,
        visitor: Option<&Visitor>,
        door: &Arrival,
        first: &[u8],
    ) -> Turn {
        if let Some(brought) = &door.brought {
            return match self.serves(visitor, door, brought.storage_only) {
                true => Turn::Ours,
                false => Turn::Nobodys,
            };
        }
        let Some(fleet) = &self.fleet else {
            return Turn::Ours;
        };
        let Some((hit, host)) = self.elsewhere(visitor, door) else {
            return Turn::Ours;
        };
        let (proto, name) = &hit.key;
        let passed = Passed {
            from: door.peer,
            port: door.port,
            kite: format!("{proto}:{name}"),
            port_kite: door.port_kite.clone(),
            raw: door.raw,
            storage_only: self.policy.is_storage_only(),
            hops: MAX_HOPS,
        };
        match fleet.offer(&hit, &host, &passed, first).await {
            Some(taken) => {
                tracing::debug!("a visitor of {host} is passed on to {}", taken.member());
                Turn::Theirs(Box::new(taken))
            }
            None => Turn::Ours,
        }
    }

    /// Does anything fly here for a visitor that another member has brought?
    fn serves(&self, visitor: Option<&Visitor>, door: &Arrival, storage_only: bool) -> bool {
        let Some((protos, host)) = self.wants(visitor, door) else {
            return false;
        };
        let found = self.registry.rank(protos, door.port, &host);
        // The other member carries nothing but storage traffic, on which this one must not go back.
        let fits = |s: &Standpoint| !storage_only || s.storage_only;
        found.as_ref().is_some_and(fits)
    }

    /// What a visitor may want of a kite, by the wire's words, and of which; none if it wants none.
    fn wants(
        &self,
        visitor: Option<&Visitor>,
        door: &Arrival,
    ) -> Option<(&'static [&'static str], KiteName)> {
        let (mut protos, host) = wanted(visitor, door)?;
        match visitor {
            Some(Visitor::Http(head)) if head.kind == HttpKind::Request => {
                protos = visitor::WEB_PROTOS;
            }
            // Its TLS may be ended where the kite flies. But who asks for a frontend, and was not sent here, asks for this one.
            Some(Visitor::Tls(_)) if door.brought.is_some() || !self.is_called(&host) => {
                protos = super::awaited::ENDED;
            }
            _ => {}
        }
        let host = crate::sniff::without_ip_prefix(&host).unwrap_or(host);
        (!self.registry.is_blocked(&host)).then_some((protos, host))
    }

    /// Where else in the fleet a visitor's kite flies, if it fits better than what flies here.
    fn elsewhere(&self, visitor: Option<&Visitor>, door: &Arrival) -> Option<(Hit, KiteName)> {
        let fleet = self.fleet.as_ref()?;
        if let Some(Visitor::Http(head)) = visitor
            && self.policy.is_storage_only()
            && head.foolscap.is_none()
        {
            return None;
        }
        let (protos, host) = self.wants(visitor, door)?;
        let hit = fleet.find(protos, door.port, &host)?;
        let is_port_kites = matches!(visitor, None | Some(Visitor::Tls(_)))
            && door.port_kite.as_ref() == Some(&host);
        // What is ours goes before the last resort, here as among our own kites.
        let is_tls = matches!(visitor, Some(Visitor::Tls(_))) || asks_for_tls(visitor);
        let is_ours = || self.is_called(&host) || is_tls && self.certificates.find(&host).is_some();
        if hit.rank.is_catch_all && (is_port_kites || is_ours()) {
            return None;
        }
        let better = match self.registry.rank(protos, door.port, &host) {
            None => true,
            Some(here) => hit.rank < here.rank || here.suspect && !hit.rank.is_catch_all,
        };
        better.then_some((hit, host))
    }

    /// Is a kite known to fly elsewhere in the fleet that one of these words leads to?
    pub(super) fn flies_elsewhere(&self, protos: &[&str], port: u16, host: &KiteName) -> bool {
        let hit = self.fleet.as_ref().and_then(|f| f.find(protos, port, host));
        hit.is_some_and(|hit| !hit.rank.is_catch_all)
    }
}

impl Host for Shared {
    fn changes(&self) -> watch::Receiver<u64> {
        self.registry.changes()
    }

    fn flights(&self) -> Vec<(Key, Flight)> {
        self.registry.flights()
    }

    fn beaten(&self, key: &Key, session: &str) {
        let Some(Grounded { tunnel, id, other }) = self.registry.beaten(key, session) else {
            return;
        };
        let (proto, name) = key;
        tracing::warn!(
            "[{}] kite down: {proto}:{name}: another backend flies it at another member of the fleet now",
            Code::KiteTaken
        );
        let last = other.is_none();
        tunnel.send_kites(Lines {
            // pagekite.py closes the whole tunnel on a verdict without any OK.
            ok: other.into_iter().collect(),
            duplicate: vec![id],
            ..Lines::default()
        });
        if last {
            tunnel.close("its kites fly at another member of the fleet");
        }
    }

    fn take(
        self: Arc<Self>,
        conn: Brought,
        first: BytesMut,
        passed: Passed,
    ) -> BoxFuture<'static, ()> {
        let arriving = self.arriving.one();
        Box::pin(async move {
            // Where there is no slot the other member asks the next one.
            let Ok(Some(slot)) = timeout(GO_TIMEOUT, self.slot()).await else {
                return;
            };
            let door = Arrival {
                peer: passed.from,
                port: passed.port,
                port_kite: passed.port_kite,
                raw: passed.raw,
                brought: Some(By {
                    storage_only: passed.storage_only,
                }),
            };
            visitor::serve_brought(&self, conn, first, door, arriving).await;
            drop(slot);
        })
    }

    fn arrives(&self) -> Box<dyn Send> {
        Box::new(self.arriving.one())
    }
}

/// `CONNECT NAME:443`.
fn asks_for_tls(visitor: Option<&Visitor>) -> bool {
    let Some(Visitor::Http(head)) = visitor else {
        return false;
    };
    matches!(head.kind, HttpKind::Connect { port: 443, .. })
}

/// The member that has brought a visitor.
pub(super) struct By {
    /// It carries storage traffic and nothing else.
    storage_only: bool,
}
