//! Which kite flies on which tunnel.
//!
//! A name is reserved before the backend hears that it flies, and found by visitors
//! only once its tunnel stands: nobody is routed into a handshake.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use tokio::sync::watch;

use super::account::{Account, End};
use super::auth::Leave;
use super::blocked::Blocked;
use crate::config::MAX_TUNNELS;
use crate::fleet::map::{Flight, Rank, places};
use crate::kite::{KiteName, Protocol};
use crate::observe::traffic::{Count, Ledger, Of};
use crate::tunnel::Tunnel;
use crate::wire::KiteId;

/// Most tunnels that fly one kite: as many as a backend may keep, and as many that replace them.
pub const MAX_BESIDE: usize = 2 * MAX_TUNNELS as usize;
/// Most kites that one tunnel flies: a wildcard would let it fill the registry.
pub const MAX_KITES: usize = 1024;

/// Wishes to replace a session that are remembered until the backend has dialled again with its proof.
pub const MAX_WISHES: usize = 256;
/// How old a measured round trip may be where visitors are shared out by it; then the tunnel is asked again.
const MEASURED_FOR: Duration = Duration::from_secs(10);
/// What a backend must be nearer by, besides a quarter, to take the visitors over from another: on a short path a quarter is
/// chance.
const NEARER_BY: Duration = Duration::from_millis(5);

/// All kites that fly here.
#[derive(Default)]
pub struct Registry(RwLock<Sky>, watch::Sender<u64>);

#[derive(Default)]
struct Sky {
    kites: HashMap<Arc<Key>, Entry>,
    /// What each session has claimed, so that a tunnel that comes or goes costs the same among
    /// many. It may name a kite that another session has taken over.
    sessions: HashMap<String, BTreeSet<Arc<Key>>>,
    /// By whom it was wished, and whom it would replace; at most [`MAX_WISHES`].
    wishes: VecDeque<(String, String)>,
    /// Each tunnel, from its verdict to its end; it may fly nothing any more.
    standing: HashMap<String, Standing>,
    /// Backends that have been given a number.
    backends: u64,
    /// Where visitors are counted.
    ledger: Ledger,
    /// What nobody flies.
    blocked: Arc<Blocked>,
}

impl Sky {
    /// What a session wished to replace when it was challenged.
    fn wish_of(&self, session: &str) -> Option<String> {
        let wish = self.wishes.iter().find(|(by, _)| by == session);
        wish.map(|(_, other)| other.clone())
    }

    /// The kites that a session holds.
    fn held<'a>(&'a self, session: &'a str) -> impl Iterator<Item = (&'a Key, &'a Entry)> {
        let keys = self.sessions.get(session).into_iter().flatten();
        keys.filter_map(move |key| {
            let entry = self.kites.get(key)?;
            entry.of(session).map(|_| (&**key, entry))
        })
    }
}

/// Wire protocol with its port, if any (`http`, `raw-22`), and name.
pub type Key = (String, String);

/// A tunnel that stands, whatever it flies.
#[derive(Clone)]
pub struct Standing {
    /// Its session.
    pub session: String,
    /// The tunnel.
    pub tunnel: Tunnel,
    /// Its backend understands that this frontend goes away (protocol page §21.7).
    pub hears_away: bool,
}

/// A tunnel as others may see it.
#[derive(Debug, Clone)]
pub struct TunnelView {
    /// Where it comes from, as logs say it: scrubbed unless peers may be logged.
    pub peer: String,
    /// `protocol:name` of what it flies.
    pub kites: Vec<String>,
    /// Visitors' streams that are open.
    pub streams: usize,
    /// The last measured round trip.
    pub round_trip: Option<Duration>,
    /// The backend has answered of late.
    pub answers: bool,
}

struct Entry {
    terms: Terms,
    storage_only: bool,
    /// Several backends may fly it.
    several: bool,
    account: Arc<Account>,
    /// Never empty, at most [`MAX_BESIDE`] of each backend.
    holders: Vec<Holder>,
    /// The backend that visitors are brought to, where there are several. 0 is none.
    favourite: AtomicU64,
    /// Where its visitors are counted.
    count: Arc<Count>,
}

impl Entry {
    fn of(&self, session: &str) -> Option<&Holder> {
        self.holders.iter().find(|h| h.session == session)
    }

    /// Whether visitors' TLS may be ended here: if all backends agree.
    fn end_tls(&self) -> EndTls {
        let mut said = self.holders.iter().map(|h| h.end_tls);
        let first = said.next().unwrap_or_default();
        match said.all(|other| other == first) {
            true => first,
            false => EndTls::No,
        }
    }

    /// The tunnel for the next visitor: of the backend that is [nearest](choose), the tunnel with the fewest streams. One
    /// that owes us a sign of life only if all do.
    fn tunnel(&self) -> Option<&Tunnel> {
        let best_of = |backend: Option<u64>| {
            let all = self.holders.iter();
            let theirs = all.filter(|h| backend.is_none_or(|b| h.backend == b));
            let tunnels = theirs.filter_map(|h| h.tunnel.as_ref());
            let standing = tunnels.filter(|t| !t.is_closed());
            standing.min_by_key(|t| (t.is_suspect(), t.streams()))
        };
        let first = self.holders.first()?.backend;
        if self.holders.iter().all(|h| h.backend == first) {
            return best_of(None);
        }
        let mut backends: Vec<u64> = self.holders.iter().map(|h| h.backend).collect();
        backends.sort_unstable();
        backends.dedup();
        let candidates = backends.iter().filter_map(|backend| {
            let tunnel = best_of(Some(*backend))?;
            tunnel.measure(MEASURED_FOR);
            Some(Candidate {
                backend: *backend,
                suspect: tunnel.is_suspect(),
                round_trip: tunnel.shortest_rtt(),
                streams: tunnel.streams(),
            })
        });
        let favourite = self.favourite.load(Ordering::Relaxed);
        let chosen = choose(favourite, &candidates.collect::<Vec<_>>())?;
        self.favourite.store(chosen, Ordering::Relaxed);
        best_of(Some(chosen))
    }
}

/// A backend that a visitor could be brought to: its best tunnel.
#[derive(Debug, Clone, Copy)]
struct Candidate {
    backend: u64,
    suspect: bool,
    /// The shortest of late, if any was measured.
    round_trip: Option<Duration>,
    streams: usize,
}

impl Candidate {
    /// By so much that it is no accident: by a quarter, and [`NEARER_BY`].
    fn is_clearly_nearer_than(&self, other: &Self) -> bool {
        match (self.round_trip, other.round_trip) {
            (Some(ours), Some(theirs)) => ours * 4 / 3 + NEARER_BY < theirs,
            _ => false,
        }
    }
}

/// The backend for the next visitor: the one that had the last, unless it owes a sign of life that another does not, or
/// another is clearly nearer. Then the nearest; of several that are about as near, the one with the fewest streams.
fn choose(favourite: u64, candidates: &[Candidate]) -> Option<u64> {
    let suspects = candidates.iter().all(|c| c.suspect);
    let fit = || candidates.iter().filter(|c| c.suspect == suspects);
    let beaten = |c: &Candidate| fit().any(|other| other.is_clearly_nearer_than(c));
    if let Some(last) = fit().find(|c| c.backend == favourite)
        && !beaten(last)
    {
        return Some(favourite);
    }
    let near = fit().filter(|c| !beaten(c));
    // One that has not been measured yet is not known to be near.
    near.min_by_key(|c| (c.round_trip.is_none(), c.streams, c.round_trip))
        .map(|c| c.backend)
}

struct Holder {
    session: String,
    /// What the backend chose for this handshake; it knows its kite by it.
    bsalt: String,
    /// Tunnels of one backend have one number.
    backend: u64,
    /// When it was claimed, on the fleet's clock.
    since: u64,
    /// What its backend is known by in the fleet, if it says so.
    mark: Option<String>,
    end_tls: EndTls,
    peer: String,
    /// None until it stands.
    tunnel: Option<Tunnel>,
}

/// What visitors may use a kite for.
pub type Terms = BTreeSet<Protocol>;

/// Whether a kite's backend lets the frontend end its visitors' TLS.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum EndTls {
    /// It knows how to ask, and did not.
    #[default]
    No,
    /// It has asked for it (protocol page §21.5).
    Asked,
    /// It does not know how to ask: an older program.
    Unsaid,
}

/// A kite that has been taken down.
pub struct Revoked {
    /// Its protocol and name.
    pub key: Arc<(String, String)>,
    /// Why.
    pub end: End,
    /// The tunnels that flew it.
    pub tunnels: Vec<Grounded>,
}

/// A tunnel that has lost a kite.
pub struct Grounded {
    /// The tunnel.
    pub tunnel: Tunnel,
    /// The kite that it has lost.
    pub id: KiteId,
    /// A kite that it still flies.
    pub other: Option<KiteId>,
}

fn kite_id((proto, name): &Key, bsalt: &str) -> KiteId {
    KiteId {
        proto: proto.clone(),
        name: name.clone(),
        bsalt: bsalt.to_owned(),
    }
}

/// Who claims a name. It has just proved the kite's secret.
#[derive(Clone, Copy)]
pub struct Claimant<'a> {
    /// The session of its tunnel.
    pub session: &'a str,
    /// Where it comes from, as logs say it.
    pub peer: &'a str,
    /// A session that is to end, if it stands.
    pub replace: Option<&'a str>,
    /// Sessions that do not mind company (protocol page §21.4).
    pub beside: &'a [String],
    /// A session that is to get no more visitors (protocol page §21.4).
    pub retire: Option<&'a str>,
    /// Whether its visitors' TLS may be ended here.
    pub end_tls: EndTls,
    /// Now, on the fleet's clock, if there is one.
    pub since: u64,
    /// What its backend is known by in the fleet, if it says so.
    pub mark: Option<&'a str>,
    /// It said KiteBeside1: if the terms allow several backends, it may be one of them (protocol page §21.6).
    pub several: bool,
}

impl<'a> Claimant<'a> {
    /// One that says no more than it has to.
    pub fn new(session: &'a str, peer: &'a str) -> Self {
        Self {
            session,
            peer,
            replace: None,
            beside: &[],
            retire: None,
            end_tls: EndTls::No,
            since: 0,
            mark: None,
            several: false,
        }
    }
}

/// What became of a wish for a name.
pub enum Claim {
    /// It is reserved for this session.
    Granted,
    /// The tunnel of this session flies it already.
    Held,
    /// Another tunnel has it. If that one is dead it will be found out: it is being asked.
    Duplicate,
    /// This session flies [`MAX_KITES`] already.
    Full,
    /// The operator has blocked the name.
    Blocked,
}

/// How well a kite fits a visitor, and what it is.
#[derive(Debug, Clone, Copy)]
pub struct Standpoint {
    /// How well.
    pub rank: Rank,
    /// All its tunnels owe us a sign of life.
    pub suspect: bool,
    /// Its visitors are held to what storage traffic looks like.
    pub storage_only: bool,
}

/// A kite that serves a visitor.
pub struct Found {
    /// The wire protocol that was found, without its port.
    pub proto: String,
    /// What the kite may be used for.
    pub terms: Terms,
    /// Its visitors are held to what storage traffic looks like.
    pub storage_only: bool,
    /// Whether its visitors' TLS may be ended here.
    pub end_tls: EndTls,
    /// What its visitors are charged to.
    pub account: Arc<Account>,
    /// Where it is counted.
    pub count: Arc<Count>,
    /// It is the last resort, and not the visitor's own.
    pub is_catch_all: bool,
    /// The way there.
    pub tunnel: Tunnel,
}

impl Registry {
    /// The counts of what passes.
    pub fn ledger(&self) -> Ledger {
        let sky = self.0.read().unwrap_or_else(PoisonError::into_inner);
        sky.ledger.clone()
    }

    /// Counts up whenever [`Registry::flights`] may have changed.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.1.subscribe()
    }

    fn changed(&self) {
        self.1.send_modify(|n| *n = n.wrapping_add(1));
    }

    /// What visitors can be brought to, for others of the fleet: one for each kite and tunnel.
    pub fn flights(&self) -> Vec<(Key, Flight)> {
        let sky = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let all = sky.kites.iter().flat_map(|(key, entry)| {
            let standing = entry.holders.iter().filter(|h| {
                let tunnel = h.tunnel.as_ref();
                tunnel.is_some_and(|t| !t.is_closed())
            });
            standing.map(|h| {
                let flight = Flight {
                    session: h.session.clone(),
                    since: h.since,
                    backend: h.mark.clone(),
                    several: entry.several,
                };
                ((**key).clone(), flight)
            })
        });
        all.collect()
    }

    /// How well the kite fits that [`Registry::find`] would find, if any: to be compared with what flies elsewhere.
    pub fn rank(&self, protos: &[&str], port: u16, host: &KiteName) -> Option<Standpoint> {
        let sky = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let mut doubtful = None;
        for (rank, key) in places(protos, port, host) {
            let Some(entry) = sky.kites.get(&key) else {
                continue;
            };
            let Some(tunnel) = entry.tunnel() else {
                continue;
            };
            let standpoint = Standpoint {
                rank,
                suspect: tunnel.is_suspect(),
                storage_only: entry.storage_only,
            };
            match standpoint.suspect && !rank.is_catch_all {
                true => doubtful = doubtful.or(Some(standpoint)),
                false if rank.is_catch_all => return doubtful.or(Some(standpoint)),
                false => return Some(standpoint),
            }
        }
        doubtful
    }

    /// Another backend has taken a kite over elsewhere in the fleet: the flight of `session` comes down.
    pub fn beaten(&self, key: &Key, session: &str) -> Option<Grounded> {
        let mut sky = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let entry = sky.kites.get_mut(key)?;
        let at = entry.holders.iter().position(|h| h.session == session)?;
        let holder = entry.holders.remove(at);
        if entry.holders.is_empty() {
            sky.kites.remove(key);
        }
        if let Some(keys) = sky.sessions.get_mut(session) {
            keys.remove(key);
        }
        let other = sky
            .held(session)
            .find_map(|(key, entry)| Some(kite_id(key, &entry.of(session)?.bsalt)));
        drop(sky);
        self.changed();
        Some(Grounded {
            tunnel: holder.tunnel?,
            id: kite_id(key, &holder.bsalt),
            other,
        })
    }

    /// These names are for nobody, from now on.
    pub fn keep_from(&self, blocked: Arc<Blocked>) {
        let mut sky = self.0.write().unwrap_or_else(PoisonError::into_inner);
        sky.blocked = blocked;
    }

    /// The names that are for nobody.
    pub fn blocked(&self) -> Arc<Blocked> {
        let sky = self.0.read().unwrap_or_else(PoisonError::into_inner);
        sky.blocked.clone()
    }

    /// Is this name for nobody?
    pub fn is_blocked(&self, name: &KiteName) -> bool {
        let sky = self.0.read().unwrap_or_else(PoisonError::into_inner);
        sky.blocked.covers(name)
    }

    /// Reserves a name for a session: if nobody has it, if one that had it gives way, or
    /// beside one that the claimant knows.
    pub fn claim(&self, id: &KiteId, leave: Leave, claimant: Claimant<'_>) -> Claim {
        let mut sky = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let sky = &mut *sky;
        if sky.blocked.covers_text(&id.name) {
            return Claim::Blocked;
        }
        let key = Arc::new((id.proto.clone(), id.name.clone()));
        let flown = sky.sessions.get(claimant.session);
        if flown.is_some_and(|flown| flown.len() >= MAX_KITES && !flown.contains(&key)) {
            return Claim::Full;
        }
        let wished = claimant.replace.and_then(|named| sky.wish_of(named));
        let entry = sky.kites.entry(key.clone()).or_insert_with(|| Entry {
            terms: Terms::new(),
            storage_only: leave.storage_only,
            several: leave.backends > 1,
            account: leave.account.clone(),
            holders: Vec::new(),
            favourite: AtomicU64::new(0),
            count: sky.ledger.count(Of {
                tunnel: None,
                kite: Some(format!("{}:{}", id.proto, id.name)),
            }),
        });
        let holders = &mut entry.holders;
        if holders.iter().any(|h| h.session == claimant.session) {
            return Claim::Held;
        }
        // The number of the claimant's backend, if it has, or had, a tunnel here.
        let mut ours = None;
        holders.retain(|holder| {
            if claimant.beside.contains(&holder.session) {
                ours = Some(holder.backend);
            }
            let Some(tunnel) = &holder.tunnel else {
                return true;
            };
            let is = |session: Option<&str>| session == Some(holder.session.as_str());
            let replaced = is(claimant.replace) || is(wished.as_deref());
            if replaced {
                tunnel.close("replaced by its backend");
            }
            if replaced || is(claimant.retire) {
                ours = Some(holder.backend);
            }
            !tunnel.is_closed() && !is(claimant.retire)
        });
        let beside_us = holders.iter().filter(|h| Some(h.backend) == ours).count();
        let mut others: Vec<u64> = holders.iter().map(|h| h.backend).collect();
        others.sort_unstable();
        others.dedup();
        let most = if claimant.several { leave.backends } else { 1 };
        let free = match ours {
            Some(_) => beside_us < MAX_BESIDE,
            // Company is for those whom the same grant let in: another's would bring its own terms, and its own end.
            None if Arc::ptr_eq(&entry.account, &leave.account) => {
                others.len() < usize::from(most.max(1))
            }
            None => others.is_empty(),
        };
        if !free {
            let tunnels = holders.iter().filter_map(|h| h.tunnel.as_ref());
            tunnels.for_each(Tunnel::ask);
            return Claim::Duplicate;
        }
        let backend = ours.unwrap_or_else(|| {
            sky.backends += 1;
            sky.backends
        });
        entry.terms = leave.terms;
        entry.storage_only = leave.storage_only;
        entry.several = leave.backends > 1;
        entry.account = leave.account;
        holders.push(Holder {
            session: claimant.session.to_owned(),
            bsalt: id.bsalt.clone(),
            backend,
            since: claimant.since,
            mark: claimant.mark.map(str::to_owned),
            end_tls: claimant.end_tls,
            peer: claimant.peer.to_owned(),
            tunnel: None,
        });
        let session = claimant.session.to_owned();
        sky.sessions.entry(session).or_default().insert(key);
        // Others may have been retired for it.
        self.changed();
        Claim::Granted
    }

    /// Would a claim be a duplicate's now? Whoever is in the way is asked for a sign of life.
    pub fn contested(&self, id: &KiteId, claimant: Claimant<'_>) -> bool {
        let sky = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let named = |session: &String| {
            claimant.beside.contains(session)
                || [claimant.session]
                    .into_iter()
                    .chain(claimant.replace)
                    .chain(claimant.retire)
                    .any(|one| one == session)
        };
        let key = (id.proto.clone(), id.name.clone());
        let Some(entry) = sky.kites.get(&key) else {
            return false;
        };
        let alive = |h: &&Holder| h.tunnel.as_ref().is_none_or(|t| !t.is_closed());
        let mut rivals = entry.holders.iter().filter(alive).peekable();
        if rivals.peek().is_none() || entry.holders.iter().any(|h| named(&h.session)) {
            return false;
        }
        rivals
            .filter_map(|h| h.tunnel.as_ref())
            .for_each(Tunnel::ask);
        true
    }

    /// `session` is challenged, and would like to replace another. A backend that answers by dialling again
    /// (protocol page §3.5) then names `session` instead: what it wished counts with its proof. A session that does not fly
    /// is not remembered.
    pub fn wishes_to_replace(&self, session: &str, other: &str) {
        let mut sky = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if !sky.sessions.contains_key(other) {
            return;
        }
        // One for each that flies, so that nobody crowds out what others wish.
        sky.wishes.retain(|(_, wished)| wished != other);
        if sky.wishes.len() >= MAX_WISHES {
            sky.wishes.pop_front();
        }
        sky.wishes.push_back((session.to_owned(), other.to_owned()));
    }

    /// The tunnel of `session` stands: visitors may come.
    pub fn activate(&self, session: &str, tunnel: &Tunnel) {
        let mut sky = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let Sky {
            kites, sessions, ..
        } = &mut *sky;
        for key in sessions.get(session).into_iter().flatten() {
            let holders = kites.get_mut(key).into_iter().flat_map(|e| &mut e.holders);
            for holder in holders.filter(|h| h.session == session) {
                holder.tunnel = Some(tunnel.clone());
            }
        }
        drop(sky);
        self.changed();
    }

    /// The tunnel of `session` is gone. Returns the kites that came down: those that no
    /// other tunnel flies.
    pub fn release(&self, session: &str) -> Vec<(String, String)> {
        let mut sky = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let mut gone = Vec::new();
        for key in sky.sessions.remove(session).into_iter().flatten() {
            let Some(entry) = sky.kites.get_mut(&key) else {
                continue;
            };
            entry.holders.retain(|h| h.session != session);
            if entry.holders.is_empty() {
                sky.kites.remove(&key);
                gone.push(Arc::unwrap_or_clone(key));
            }
        }
        drop(sky);
        self.changed();
        gone
    }

    /// Takes down the kites whose accounts have ended. Their tunnels, and what else these fly,
    /// stay; a tunnel that flies nothing any more is the caller's to close.
    pub fn revoke(&self, now_unix: u64) -> Vec<Revoked> {
        let standing =
            |blocked: &Blocked, key: &Key, entry: &Entry| match blocked.covers_text(&key.1) {
                true => Err(End::Blocked),
                false => entry.account.standing(now_unix),
            };
        // All are looked at, while visitors go on to find theirs; seldom has one ended.
        let ended: Vec<_> = {
            let sky = self.0.read().unwrap_or_else(PoisonError::into_inner);
            let all = sky.kites.iter();
            all.filter(|(key, entry)| standing(&sky.blocked, key, entry).is_err())
                .map(|(key, _)| key.clone())
                .collect()
        };
        if ended.is_empty() {
            return Vec::new();
        }
        let mut sky = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let mut revoked = Vec::new();
        for key in ended {
            // It may have changed hands, or its limits, since.
            let entry = sky.kites.get(&key);
            let end = entry.map(|entry| standing(&sky.blocked, &key, entry));
            let Some(Err(end)) = end else { continue };
            let Some(entry) = sky.kites.remove(&key) else {
                continue;
            };
            entry.account.cut();
            let mut tunnels = Vec::new();
            for holder in entry.holders {
                if let Some(keys) = sky.sessions.get_mut(&holder.session) {
                    keys.remove(&key);
                }
                let other = sky
                    .held(&holder.session)
                    .find_map(|(key, entry)| Some(kite_id(key, &entry.of(&holder.session)?.bsalt)));
                if let Some(tunnel) = holder.tunnel {
                    tunnels.push(Grounded {
                        tunnel,
                        id: kite_id(&key, &holder.bsalt),
                        other,
                    });
                }
            }
            revoked.push(Revoked { key, end, tunnels });
        }
        drop(sky);
        self.changed();
        revoked
    }

    /// A name has been blocked. Visitors may have come to it by a kite of more names than that, a wildcard's or the catch-all:
    /// all of that one's are sent away, for it is not known who came to which name. How many kites these are.
    pub fn cut_above(&self, name: &KiteName) -> usize {
        let sky = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let above: Vec<_> = name.wildcards().collect();
        let mut cut = 0;
        for (key, entry) in &sky.kites {
            if key.1 == KiteName::CATCH_ALL || above.contains(&key.1) {
                entry.account.cut();
                cut += 1;
            }
        }
        cut
    }

    /// The accounts of all kites that fly, each once.
    pub fn accounts(&self) -> Vec<Arc<Account>> {
        let sky = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let mut all: Vec<_> = sky.kites.values().map(|e| e.account.clone()).collect();
        all.sort_by_key(Arc::as_ptr);
        all.dedup_by(|a, b| Arc::ptr_eq(a, b));
        all
    }

    /// The accounts of the kites of `session`.
    pub fn accounts_of(&self, session: &str) -> Vec<Arc<Account>> {
        let sky = self.0.read().unwrap_or_else(PoisonError::into_inner);
        sky.held(session).map(|(_, e)| e.account.clone()).collect()
    }

    /// A kite that `session` flies, as its backend knows it.
    pub fn one_of(&self, session: &str) -> Option<KiteId> {
        let sky = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let (key, entry) = sky.held(session).next()?;
        Some(kite_id(key, &entry.of(session)?.bsalt))
    }

    /// The kites of `session`, and how many tunnels fly each.
    pub fn of_session(&self, session: &str) -> Vec<(Key, usize)> {
        let sky = self.0.read().unwrap_or_else(PoisonError::into_inner);
        sky.held(session)
            .map(|(key, e)| (key.clone(), e.holders.len()))
            .collect()
    }

    /// The kite for a visitor: the first of `protos` that has the name, on this port
    /// or any; exactly, or by the nearest wildcard; else the catch-all. One whose tunnels all owe us a sign of life
    /// gives way to the next.
    pub fn find(&self, protos: &[&str], port: u16, host: &KiteName) -> Option<Found> {
        let sky = self.0.read().unwrap_or_else(PoisonError::into_inner);
        if sky.blocked.covers(host) {
            return None;
        }
        let mut key = (String::new(), String::new());
        let mut look = |proto: &str, with_port: bool, name: &str| {
            key.0 = if with_port {
                format!("{proto}-{port}")
            } else {
                proto.to_owned()
            };
            name.clone_into(&mut key.1);
            let entry = sky.kites.get(&key)?;
            Some(Found {
                proto: proto.to_owned(),
                terms: entry.terms.clone(),
                storage_only: entry.storage_only,
                end_tls: entry.end_tls(),
                account: entry.account.clone(),
                count: entry.count.clone(),
                is_catch_all: name == KiteName::CATCH_ALL,
                tunnel: entry.tunnel()?.clone(),
            })
        };
        let mut doubtful = None;
        for proto in protos {
            for with_port in [true, false] {
                let hit = look(proto, with_port, host.as_str()).or_else(|| {
                    host.wildcards()
                        .find_map(|name| look(proto, with_port, &name))
                });
                match hit {
                    Some(found) if !found.tunnel.is_suspect() => return Some(found),
                    Some(found) => doubtful = doubtful.or(Some(found)),
                    None => {}
                }
            }
        }
        doubtful.or_else(|| look(protos.first()?, false, KiteName::CATCH_ALL))
    }

    /// The tunnels that are up, with their kites, in the order of their sessions.
    pub fn overview(&self) -> Vec<TunnelView> {
        let sky = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let mut views: BTreeMap<&str, TunnelView> = BTreeMap::new();
        for (key, entry) in &sky.kites {
            let (proto, name) = &**key;
            for holder in &entry.holders {
                let Some(tunnel) = &holder.tunnel else {
                    continue;
                };
                let view = views.entry(&holder.session);
                let view = view.or_insert_with(|| TunnelView {
                    peer: holder.peer.clone(),
                    kites: Vec::new(),
                    streams: tunnel.streams(),
                    round_trip: tunnel.rtt(),
                    answers: !tunnel.is_suspect(),
                });
                view.kites.push(format!("{proto}:{name}"));
            }
        }
        views.into_values().collect()
    }

    /// The names of what each tunnel flies, and of all that has flown.
    pub fn names(&self) -> (Vec<Vec<KiteName>>, Vec<KiteName>) {
        let name = |kite: &String| kite.split_once(':')?.1.parse().ok();
        let now = self.overview();
        let now = now
            .iter()
            .map(|v| v.kites.iter().filter_map(name).collect());
        let seen = self.ledger().sums();
        let seen = seen.iter().filter_map(|(of, _)| of.kite.as_ref());
        (now.collect(), seen.filter_map(name).collect())
    }

    /// What flies, by the wire's protocol and the name.
    pub fn flying(&self) -> Vec<(String, String)> {
        let sky = self.0.read().unwrap_or_else(PoisonError::into_inner);
        sky.kites.keys().map(|key| (**key).clone()).collect()
    }

    /// This tunnel stands from now on.
    pub fn stands(&self, standing: Standing) {
        let mut sky = self.0.write().unwrap_or_else(PoisonError::into_inner);
        sky.standing.insert(standing.session.clone(), standing);
    }

    /// The tunnel of `session` has ended.
    pub fn fell(&self, session: &str) {
        let mut sky = self.0.write().unwrap_or_else(PoisonError::into_inner);
        sky.standing.remove(session);
    }

    /// Every tunnel that stands, also one that only finishes its streams.
    pub fn standing(&self) -> Vec<Standing> {
        let sky = self.0.read().unwrap_or_else(PoisonError::into_inner);
        sky.standing.values().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frontend::limits::Limits;

    fn candidate(backend: u64, round_trip_ms: Option<u64>, streams: usize) -> Candidate {
        Candidate {
            backend,
            suspect: false,
            round_trip: round_trip_ms.map(Duration::from_millis),
            streams,
        }
    }

    /// A session claims a kite by its number.
    fn claim(registry: &Registry, session: &str, n: usize, account: &Arc<Account>) -> Claim {
        let leave = Leave {
            terms: Terms::new(),
            account: account.clone(),
            backends: 1,
            storage_only: false,
            proof: None,
        };
        let claimant = Claimant::new(session, "somewhere");
        let id = kite_id(&("http".into(), format!("k{n}.example")), "b");
        registry.claim(&id, leave, claimant)
    }

    #[test]
    fn one_tunnel_does_not_fill_the_sky() {
        let registry = Registry::default();
        let account = Account::new("a grant", Limits::default(), None, None);
        for n in 0..MAX_KITES {
            let claim = claim(&registry, "greedy", n, &account);
            assert!(matches!(claim, Claim::Granted));
        }
        let by = |session, n| claim(&registry, session, n, &account);
        assert!(matches!(by("greedy", MAX_KITES), Claim::Full));
        assert!(matches!(by("greedy", 0), Claim::Held));
        assert!(matches!(by("other", MAX_KITES), Claim::Granted));
    }

    #[test]
    fn the_oldest_wish_is_forgotten() {
        let registry = Registry::default();
        let account = Account::new("a grant", Limits::default(), None, None);
        let wished = |by: &str| registry.0.read().expect("no panic").wish_of(by);
        for n in 0..=MAX_WISHES {
            let flying = format!("s{n}");
            claim(&registry, &flying, n, &account);
            registry.wishes_to_replace(&format!("w{n}"), &flying);
            registry.wishes_to_replace("nobody", "a session that does not fly");
        }
        assert_eq!(wished("w0"), None);
        assert_eq!(wished("w1").as_deref(), Some("s1"));
        assert_eq!(
            registry.0.read().expect("no panic").wishes.len(),
            MAX_WISHES
        );
    }

    #[test]
    fn of_many_kites_those_come_down_that_have_ended() {
        let registry = Registry::default();
        let mut accounts = Vec::new();
        for n in 0..10_000 {
            let account = Account::new(&n.to_string(), Limits::default(), None, None);
            let claim = claim(&registry, &(n / 1000).to_string(), n, &account);
            assert!(matches!(claim, Claim::Granted));
            accounts.push(account);
        }
        assert!(registry.revoke(1000).is_empty());
        accounts[77].end(End::Removed);
        let revoked = registry.revoke(1000);
        assert_eq!(revoked.len(), 1);
        assert_eq!(
            (revoked[0].key.1.as_str(), &revoked[0].end),
            ("k77.example", &End::Removed)
        );
        assert_eq!(registry.of_session("0").len(), 999);
        assert!(registry.revoke(1000).is_empty());
    }

    #[test]
    fn the_nearest_backend_is_chosen_and_kept() {
        let (near, far) = (candidate(1, Some(20), 9), candidate(2, Some(300), 0));
        assert_eq!(choose(0, &[near, far]), Some(1));
        assert_eq!(choose(2, &[near, far]), Some(1), "it is clearly nearer");
        // A little nearer is not enough to move visitors, either way.
        let (a, b) = (candidate(1, Some(100), 5), candidate(2, Some(110), 0));
        assert_eq!(choose(1, &[a, b]), Some(1));
        assert_eq!(choose(2, &[a, b]), Some(2));
        assert_eq!(
            choose(0, &[a, b]),
            Some(2),
            "about as near: the fewest streams"
        );
        let (a, b) = (candidate(1, Some(1), 0), candidate(2, Some(5), 0));
        assert_eq!(choose(2, &[a, b]), Some(2), "a quarter of little is chance");
        assert_eq!(choose(0, &[]), None);
    }

    #[test]
    fn a_backend_that_does_not_answer_is_left_and_one_that_is_new_is_no_surprise() {
        let suspect = Candidate {
            suspect: true,
            ..candidate(1, Some(1), 0)
        };
        let far = candidate(2, Some(900), 50);
        assert_eq!(choose(1, &[suspect, far]), Some(2));
        let all = Candidate {
            suspect: true,
            ..far
        };
        assert_eq!(
            choose(1, &[suspect, all]),
            Some(1),
            "none answers: as if all did"
        );
        let new = candidate(3, None, 0);
        assert_eq!(choose(0, &[new, far]), Some(2), "not measured yet");
        assert_eq!(
            choose(3, &[new, far]),
            Some(3),
            "nothing is known against it"
        );
        assert_eq!(choose(0, &[new]), Some(3));
    }

    #[test]
    fn a_backend_has_so_many_tunnels_and_no_more() {
        let registry = Registry::default();
        let account = Account::new("a grant", Limits::default(), None, None);
        let sessions: Vec<String> = (0..=MAX_BESIDE).map(|n| format!("s{n}")).collect();
        let by = |n: usize| {
            let leave = Leave {
                terms: Terms::new(),
                account: account.clone(),
                backends: 1,
                storage_only: false,
                proof: None,
            };
            let claimant = Claimant {
                beside: &sessions[..n],
                ..Claimant::new(&sessions[n], "somewhere")
            };
            registry.claim(
                &kite_id(&("http".into(), "k.example".into()), "b"),
                leave,
                claimant,
            )
        };
        assert!((0..MAX_BESIDE).all(|n| matches!(by(n), Claim::Granted)));
        assert!(matches!(by(MAX_BESIDE), Claim::Duplicate));
    }
}
