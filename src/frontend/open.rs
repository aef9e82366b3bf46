//! Kites that need no account here: each is called by its node's tub, and proves it (protocol page §21.8).
//!
//! Two things are looked at. The tub's key must have signed for this very tunnel, which nobody can have relayed; an operator
//! may do without ([`OpenProof::Node`]). Then a visit is paid through the tunnel, by foolscap's own opening and TLS, and
//! must come to that tub. Only then does the kite fly: a name is held for nobody who has not shown both.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::account::{Account, End};
use super::auth::Leave;
use super::visits::Visits;
use crate::clock::now_unix;
use crate::config::{Open as Config, OpenProof};
use crate::household::Visitor;
use crate::kite::{KiteName, Protocol};
use crate::sniff::TubId;
use crate::tub;
use crate::tunnel::Tunnel;
use crate::tunnel::splice::splice;
use crate::visit::{self, VisitError};
use crate::wire::frame::Open as Opening;
use crate::wire::tub::{KITE_TUB, TubClaim, message};
use crate::wire::{Binding, KiteId, Lines};

/// The wire's word for what these kites carry; those of one port are not among them.
const PROTO: &str = "http";
/// How long a visit through a new tunnel may take, and how long it is waited for its turn. Over Tor it has some round trips.
pub const VISIT: Duration = Duration::from_secs(45);
/// Kites that one frame may show tubs for, and certificates that are looked at.
pub const MAX_TUBS: usize = 16;
/// How long it is remembered that a tub's key was shown: so long the node alone does not do.
pub const KEY_REMEMBERED: Duration = Duration::from_secs(7 * 24 * 60 * 60);
/// Kites that do not fly and whose use is remembered, so that nobody gets a new quota by coming anew.
pub const MAX_REMEMBERED: usize = 4096;
/// What a visit's end of a pipe holds, in bytes: a flight of TLS.
const PIPE: usize = 16 * 1024;

// Why a kite may not fly, in the wire's words.

/// The key that was shown is not the tub's.
const OTHER_KEY: &str = "tub";
/// The tub's key must sign.
pub(super) const NO_KEY: &str = "tub-key";
/// The visit did not come to the tub.
const NO_NODE: &str = "tub-node";
/// There are too many.
const FULL: &str = "full";
/// Too much is to be looked at now.
const OVERLOAD: &str = "overload";

/// The open side of a frontend.
pub struct Open {
    config: Config,
    kites: Mutex<Kites>,
    visits: Visits,
    patience: Duration,
    /// Who takes a name from another, and who gets one, do so one after the other.
    order: Mutex<()>,
    turned_away: AtomicU64,
}

/// How full an open frontend is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Occupancy {
    /// Kites that fly.
    pub flying: usize,
    /// How many may.
    pub most: u32,
    /// How often one more was refused, since the start: for all places, or all of its address, were taken.
    pub turned_away: u64,
}

#[derive(Default)]
struct Kites {
    by_name: HashMap<KiteName, Known>,
    /// Those that do not fly, the longest gone first; perhaps some that fly again.
    gone: VecDeque<KiteName>,
    /// Those whose tub's key was shown: when, and whether one who showed it is still to be visited. Of others at most
    /// [`MAX_REMEMBERED`].
    keyed: HashMap<KiteName, (Instant, Weak<()>)>,
}

impl Kites {
    /// Nobody flies it any more.
    fn went(&mut self, name: KiteName) {
        let Self { by_name, gone, .. } = self;
        gone.push_back(name);
        while gone.len() > MAX_REMEMBERED {
            let Some(oldest) = gone.pop_front() else {
                break;
            };
            let is_back = gone.contains(&oldest);
            if by_name
                .get(&oldest)
                .is_some_and(|k| k.flown_by.is_empty() && !is_back)
            {
                by_name.remove(&oldest);
            }
        }
    }

    /// The tub's key was shown.
    fn key_was_shown(&mut self, name: &KiteName, by: &Arc<()>) {
        self.keyed
            .insert(name.clone(), (Instant::now(), Arc::downgrade(by)));
        if self.keyed.len() > MAX_REMEMBERED {
            let all = self.keyed.iter();
            let idle = all.filter(|(_, shown)| shown.1.strong_count() == 0);
            let oldest = idle.min_by_key(|(_, shown)| shown.0);
            if let Some(oldest) = oldest.map(|(name, _)| name.clone()) {
                self.keyed.remove(&oldest);
            }
        }
    }

    fn is_keyed(&self, name: &KiteName) -> bool {
        let shown = self.keyed.get(name);
        shown.is_some_and(|(at, by)| by.strong_count() > 0 || at.elapsed() < KEY_REMEMBERED)
            || self
                .by_name
                .get(name)
                .is_some_and(|k| k.proof == OpenProof::Key && !k.flown_by.is_empty())
    }
}

struct Known {
    account: Arc<Account>,
    proof: OpenProof,
    /// The sessions that fly it, and where they come from.
    flown_by: Vec<(String, Option<Visitor>)>,
}

/// A kite that has proved all that can be proved before its tunnel stands.
pub(super) struct Pending {
    pub(super) id: KiteId,
    pub(super) name: KiteName,
    tub: TubId,
    proof: OpenProof,
    /// While it is there the name is for the tub's key alone, if that was shown.
    _shown: Arc<()>,
    /// The sessions that it named.
    pub(super) named: Named,
}

/// The sessions that a request named.
#[derive(Clone, Default)]
pub(super) struct Named {
    pub(super) replace: Option<String>,
    pub(super) beside: Vec<String>,
    pub(super) retire: Option<String>,
    pub(super) several: bool,
}

impl Open {
    /// As the operator has it.
    pub fn new(config: Config) -> Self {
        Self {
            config,
            kites: Mutex::default(),
            visits: Visits::new(VISIT),
            patience: VISIT,
            order: Mutex::default(),
            turned_away: AtomicU64::new(0),
        }
    }

    /// What its kites are called below.
    pub fn domain(&self) -> &KiteName {
        &self.config.domain
    }

    /// How full it is.
    pub fn occupancy(&self) -> Occupancy {
        let kites = self.kites();
        let flying = kites.by_name.values().filter(|k| !k.flown_by.is_empty());
        Occupancy {
            flying: flying.count(),
            most: self.config.kites,
            turned_away: self.turned_away.load(Ordering::Relaxed),
        }
    }

    /// The tub that a kite of this name is called by, if it is one of these.
    pub fn tub(&self, name: &KiteName) -> Option<TubId> {
        let (label, domain) = name.as_str().split_once('.')?;
        (domain == self.config.domain.as_str())
            .then(|| TubId::from_bytes(label.as_bytes()))
            .flatten()
    }

    /// Judges what a kite shows of its tub, with the answer to a challenge that was ours; `binding` is what the tunnel is
    /// known by. What is left to be done is a visit through the tunnel.
    pub(super) fn judge(
        &self,
        claim: &TubClaim,
        fsalt: &str,
        lines: &Lines,
        binding: Option<&Binding>,
        named: &Named,
    ) -> Result<Pending, &'static str> {
        let id = &claim.id;
        let name: KiteName = id.name.parse().map_err(|_| "unauthorized")?;
        let tub = self.tub(&name).ok_or("unauthorized")?;
        // One way to write it, so that it is one kite.
        if name.as_str() != id.name {
            return Err("unauthorized");
        }
        if id.proto != PROTO {
            return Err("proto");
        }
        let proof = match (&claim.signature, binding) {
            (Some(signature), Some(binding)) => {
                let message = message(id, fsalt, binding);
                let mut shown = lines.tub_certificates.iter().take(MAX_TUBS);
                let own = shown.find(|shown| tub::tub_of(&shown.0) == tub.as_str());
                let signed = own.is_some_and(|certificate| {
                    tub::is_signed(
                        tub,
                        &certificate.0,
                        signature.scheme,
                        &message,
                        &signature.bytes,
                    )
                });
                // Whoever shows a wrong one is not asked for less.
                if !signed {
                    return Err(OTHER_KEY);
                }
                OpenProof::Key
            }
            _ if self.config.proof == OpenProof::Key || self.kites().is_keyed(&name) => {
                return Err(NO_KEY);
            }
            _ => OpenProof::Node,
        };
        let shown = Arc::new(());
        if proof == OpenProof::Key {
            self.kites().key_was_shown(&name, &shown);
        }
        Ok(Pending {
            _shown: shown,
            id: id.clone(),
            name,
            tub,
            proof,
            named: named.clone(),
        })
    }

    /// Whoever gets a name here, or takes one away, holds this until the registry knows it.
    pub(super) fn in_order(&self) -> MutexGuard<'_, ()> {
        self.order.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has this session got its place for the kite already? Then no visit is left to be paid.
    pub(super) fn is_seated(&self, pending: &Pending, session: &str) -> bool {
        let mut kites = self.kites();
        let known = kites.by_name.get_mut(&pending.name);
        let Some(known) = known.filter(|k| k.flown_by.iter().any(|(by, _)| by == session)) else {
            return false;
        };
        if pending.proof == OpenProof::Key {
            known.proof = OpenProof::Key;
        }
        true
    }

    /// Pays the visit through the tunnel that stands now. It is bounded in time, in number and in rate.
    pub(super) async fn visit(
        &self,
        pending: &Pending,
        peer: Option<Visitor>,
        tunnel: &Tunnel,
        port: u16,
    ) -> Result<(), &'static str> {
        let Some(_turn) = self.visits.turn(peer).await else {
            return Err(OVERLOAD);
        };
        let visiting = through(tunnel, &pending.name, pending.tub, port);
        let visited = tokio::time::timeout(self.patience, visiting).await;
        match visited {
            Ok(Ok(())) => Ok(()),
            Ok(Err(why)) => {
                tracing::debug!("a visit through the tunnel of {}: {why}", pending.name);
                Err(NO_NODE)
            }
            Err(_) => Err(NO_NODE),
        }
    }

    /// Gives a kite its place, if there is one. Until the session [leaves](Open::leave) it is taken.
    pub(super) fn seat(
        &self,
        pending: &Pending,
        session: &str,
        peer: Option<Visitor>,
        now_unix: u64,
    ) -> Result<Leave, &'static str> {
        let mut kites = self.kites();
        if pending.proof == OpenProof::Node && kites.is_keyed(&pending.name) {
            return Err(NO_KEY);
        }
        let flies = |known: &&Known| !known.flown_by.is_empty();
        let is_new = !kites.by_name.get(&pending.name).is_some_and(|k| flies(&k));
        if is_new {
            let all = kites.by_name.values().filter(flies).count();
            let from =
                |known: &&Known| peer.is_some() && known.flown_by.iter().any(|f| f.1 == peer);
            let same = kites.by_name.values().filter(from).count();
            let fits = |n: usize, most: u32| u32::try_from(n).is_ok_and(|n| n < most);
            if !fits(all, self.config.kites) || !fits(same, self.config.per_address) {
                self.turned_away.fetch_add(1, Ordering::Relaxed);
                return Err(FULL);
            }
        }
        let limits = &self.config.limits;
        let known = kites
            .by_name
            .entry(pending.name.clone())
            .or_insert_with(|| Known {
                account: Account::new(pending.name.as_str(), limits.clone(), None, None),
                proof: pending.proof,
                flown_by: Vec::new(),
            });
        if is_new {
            known.proof = pending.proof;
        }
        if known.account.standing(now_unix).is_err() {
            return Err("noquota");
        }
        if !known.flown_by.iter().any(|(by, _)| by == session) {
            known.flown_by.push((session.to_owned(), peer));
        }
        Ok(Leave {
            terms: [Protocol::Foolscap].into(),
            storage_only: true,
            account: known.account.clone(),
            backends: 1,
            proof: None,
        })
    }

    /// A session is over; or it did not get this one of its kites.
    pub(super) fn leave(&self, session: &str, only: Option<&Pending>) {
        let mut kites = self.kites();
        let meant = |name: &KiteName| only.is_none_or(|pending| pending.name == *name);
        let mut went = Vec::new();
        for (name, known) in kites.by_name.iter_mut().filter(|(name, _)| meant(name)) {
            let before = known.flown_by.len();
            known.flown_by.retain(|(by, _)| by != session);
            if known.flown_by.is_empty() && before > 0 {
                went.push((name.clone(), known.proof));
            }
        }
        for (name, proof) in went {
            if proof == OpenProof::Key {
                kites.key_was_shown(&name, &Arc::default());
            }
            kites.went(name);
        }
    }

    /// Somebody has shown more than the one who flies this kite: the operator's leave, or the tub's key where that one
    /// showed none. True if a kite must come down for that.
    pub(super) fn gives_way(&self, name: &str, to: Option<&Pending>) -> bool {
        let mut kites = self.kites();
        // What is written otherwise is another kite.
        let parsed = name.parse().ok();
        let Some(parsed) = parsed.filter(|n: &KiteName| n.as_str() == name) else {
            return false;
        };
        let Some(known) = kites.by_name.get_mut(&parsed) else {
            return false;
        };
        let outdone = match to {
            None => true,
            Some(pending) => pending.proof == OpenProof::Key && known.proof == OpenProof::Node,
        };
        if known.flown_by.is_empty() || !outdone {
            return false;
        }
        // Its visitors go, and what they used is still used.
        let (used, limits) = known.account.used(now_unix());
        known.account.end(End::Outdone);
        known.account = Account::new(name, limits, None, Some(used));
        known.flown_by.clear();
        kites.went(parsed);
        true
    }

    /// Ends the kites that fly under names which are not for strangers any more. They come down at the next look at accounts.
    pub(super) fn end_where(&self, is_taken: impl Fn(&KiteName) -> bool) {
        self.kites().by_name.retain(|name, known| {
            let ends = !known.flown_by.is_empty() && is_taken(name);
            if ends {
                known.account.end(End::Removed);
            }
            !ends
        });
    }

    fn kites(&self) -> MutexGuard<'_, Kites> {
        self.kites.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a frontend with such kites says in the head of its answer.
pub(super) fn capabilities(asked: &Lines, answer: &mut Lines) {
    if asked.has_feature(KITE_TUB) {
        answer.features.push(KITE_TUB.to_owned());
    }
    if !answer.protos.iter().any(|proto| proto == PROTO) {
        answer.protos.push(PROTO.to_owned());
    }
}

/// A visit as a foolscap client pays it, through a tunnel.
async fn through(
    tunnel: &Tunnel,
    name: &KiteName,
    tub: TubId,
    port: u16,
) -> Result<(), VisitError> {
    let opening = Opening {
        proto: PROTO.to_owned(),
        host: name.to_string(),
        port: Some(port),
        ..Opening::default()
    };
    let stream = tunnel
        .open(opening, Bytes::new())
        .map_err(|_| VisitError::Closed)?;
    let (mut ours, theirs) = tokio::io::duplex(PIPE);
    let carrying = splice(stream, theirs, VecDeque::new(), None, Arc::default());
    let visiting = async {
        visit::ask(&mut ours, name, tub).await?;
        // The name in the certificate is no matter, the key is: it has signed this handshake's randomness.
        visit::secure(ours, tub).await.map(drop)
    };
    tokio::pin!(carrying, visiting);
    tokio::select! {
        visited = &mut visiting => visited,
        // What was carried before the end may still be read.
        _ = &mut carrying => visiting.await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frontend::limits::Limits;
    use crate::wire::tub::{TubCertificate, TubSignature};

    const NOW: u64 = 1_700_000_000;

    fn open(proof: OpenProof, kites: u32, per_address: u32) -> Open {
        Open::new(Config {
            domain: "alice.example".parse().expect("a name"),
            proof,
            kites,
            per_address,
            limits: Limits::default(),
        })
    }

    fn tub_key() -> tub::TubKey {
        let key = rcgen::KeyPair::generate().expect("a key");
        let params = rcgen::CertificateParams::new(vec!["newpb_thingy".to_owned()]).expect("names");
        let certificate = params.self_signed(&key).expect("a certificate");
        let pem = certificate.pem() + &key.serialize_pem();
        tub::TubKey::read(pem.as_bytes()).expect("a tub")
    }

    fn id(key: &tub::TubKey, domain: &str) -> KiteId {
        KiteId {
            proto: PROTO.into(),
            name: format!("{}.{domain}", key.tub().expect("a name").as_str()),
            bsalt: "b".into(),
        }
    }

    /// What a kite with this key shows for this connection, under that name.
    fn shown(key: &tub::TubKey, id: &KiteId, fsalt: &str, binding: &Binding) -> (TubClaim, Lines) {
        let (scheme, bytes) = key.sign(&message(id, fsalt, binding)).expect("signed");
        let claim = TubClaim {
            id: id.clone(),
            signature: Some(TubSignature { scheme, bytes }),
        };
        let lines = Lines {
            tub_certificates: vec![TubCertificate(key.certificate().to_vec())],
            ..Lines::default()
        };
        (claim, lines)
    }

    fn said(
        open: &Open,
        claim: &TubClaim,
        fsalt: &str,
        lines: &Lines,
        to: Option<&Binding>,
    ) -> String {
        match open.judge(claim, fsalt, lines, to, &Named::default()) {
            Ok(pending) => format!("{:?}", pending.proof),
            Err(why) => why.to_owned(),
        }
    }

    #[test]
    fn a_key_proves_its_own_name_on_its_own_connection() {
        let (strict, lax) = (open(OpenProof::Key, 9, 9), open(OpenProof::Node, 9, 9));
        let (ours, other) = (tub_key(), tub_key());
        let (here, there) = (Binding::Tls([1; 32]), Binding::Tls([2; 32]));
        let kite = id(&ours, "alice.example");
        let (claim, lines) = shown(&ours, &kite, "t1", &here);
        for open in [&strict, &lax] {
            assert_eq!(said(open, &claim, "t1", &lines, Some(&here)), "Key");
            // Carried to another connection, or shown for another challenge.
            assert_eq!(said(open, &claim, "t1", &lines, Some(&there)), OTHER_KEY);
            assert_eq!(said(open, &claim, "t2", &lines, Some(&here)), OTHER_KEY);
            // Another's key; with the right certificate, too.
            let (stolen, theirs) = shown(&other, &kite, "t1", &here);
            assert_eq!(said(open, &stolen, "t1", &theirs, Some(&here)), OTHER_KEY);
            assert_eq!(said(open, &stolen, "t1", &lines, Some(&here)), OTHER_KEY);
            // Another name.
            let theirs = TubClaim {
                id: id(&other, "alice.example"),
                ..claim.clone()
            };
            assert_eq!(said(open, &theirs, "t1", &lines, Some(&here)), OTHER_KEY);
            for (name, proto, why) in [
                (id(&ours, "carol.example").name, PROTO, "unauthorized"),
                ("bob.alice.example".to_owned(), PROTO, "unauthorized"),
                (format!("www.{}", kite.name), PROTO, "unauthorized"),
                (kite.name.clone(), "https", "proto"),
                (kite.name.clone(), "http-80", "proto"),
            ] {
                let odd = KiteId {
                    name,
                    proto: proto.into(),
                    ..kite.clone()
                };
                let (claim, lines) = shown(&ours, &odd, "t1", &here);
                assert_eq!(said(open, &claim, "t1", &lines, Some(&here)), why);
            }
        }
        let bare = TubClaim {
            signature: None,
            ..claim.clone()
        };
        for binding in [None, Some(&here)] {
            assert_eq!(said(&strict, &bare, "t1", &lines, binding), NO_KEY);
            // Its key has been shown here, and not there.
            assert_eq!(said(&lax, &bare, "t1", &lines, binding), NO_KEY);
            let other = open(OpenProof::Node, 9, 9);
            assert_eq!(said(&other, &bare, "t1", &lines, binding), "Node");
        }
        // On a connection that nothing is known of the key proves nothing.
        assert_eq!(said(&strict, &claim, "t1", &lines, None), NO_KEY);
    }

    fn pending(open: &Open, tub: u8, proof: OpenProof) -> Pending {
        let tub = TubId::from_random([tub; 32]);
        let name = format!("{}.{}", tub.as_str(), open.config.domain);
        Pending {
            id: KiteId {
                proto: PROTO.into(),
                name: name.clone(),
                bsalt: "b".into(),
            },
            name: name.parse().expect("a name"),
            tub,
            proof,
            _shown: Arc::default(),
            named: Named::default(),
        }
    }

    /// A tunnel whose other end says so much to each visitor, and no more.
    fn tunnel_to(says: &'static [u8]) -> (Tunnel, Tunnel) {
        use crate::tunnel::buffer::{BUFFER_PAYLOAD, Pool};
        use crate::tunnel::mux::{Liveness, MAX_STREAMS, Settings, Side};
        let settings = |side| Settings {
            side,
            kite: true,
            max_payload: BUFFER_PAYLOAD,
            send_window: 256 * 1024,
            recv_window: 256 * 1024,
            max_streams: MAX_STREAMS,
            liveness: Liveness::DEFAULT,
        };
        let start =
            |io, side| Tunnel::start(io, bytes::BytesMut::new(), settings(side), Pool::new());
        let (public, hidden) = tokio::io::duplex(64 * 1024);
        let (front, back) = (start(public, Side::Frontend), start(hidden, Side::Backend));
        let node = back.clone();
        tokio::spawn(async move {
            while let Some(mut came) = node.accept().await {
                tokio::spawn(async move {
                    let _ = came.stream.read().await;
                    if !says.is_empty() {
                        came.stream.write(Bytes::from_static(says).into());
                    }
                    while let Ok(Some(_)) = came.stream.read().await {}
                    std::future::pending::<()>().await;
                });
            }
        });
        (front, back)
    }

    #[tokio::test]
    async fn half_a_handshake_is_none_and_takes_no_longer_than_it_may() {
        const YES: &[u8] = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: TLS/1.0, PB/1.0\r\n\r\n";
        const HALF: &[u8] =
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: TLS/1.0, PB/1.0\r\n\r\n\x16\x03\x03\x00\x7a\x02";
        let mut open = open(OpenProof::Key, 9, 9);
        open.patience = Duration::from_millis(300);
        let pending = pending(&open, 1, OpenProof::Key);
        for says in [
            &b""[..],
            b"HTTP/1.1 101",
            YES,
            HALF,
            b"HTTP/1.1 500 no\r\n\r\n",
        ] {
            let (front, _back) = tunnel_to(says);
            let began = Instant::now();
            assert_eq!(open.visit(&pending, None, &front, 80).await, Err(NO_NODE));
            assert!(
                began.elapsed() < Duration::from_secs(10),
                "it ends by itself"
            );
        }
        // One that is gone.
        let (front, _back) = tunnel_to(YES);
        front.close("the test says so");
        assert_eq!(open.visit(&pending, None, &front, 80).await, Err(NO_NODE));
        // There is no turn: nothing is said of the node.
        open.visits = Visits::new(Duration::from_millis(50));
        let mut turns = Vec::new();
        while let Some(turn) = open.visits.turn(None).await {
            turns.push(turn);
        }
        let (front, _back) = tunnel_to(YES);
        assert_eq!(open.visit(&pending, None, &front, 80).await, Err(OVERLOAD));
    }

    #[test]
    fn places_are_counted_and_given_back() {
        let open = open(OpenProof::Key, 3, 2);
        let seat = |tub: u8, session: &str, peer: Option<u64>| {
            let pending = pending(&open, tub, OpenProof::Key);
            let leave = open.seat(&pending, session, peer.map(Visitor), NOW);
            leave.map(|leave| leave.account)
        };
        let first = seat(1, "a", Some(1)).expect("room");
        // Another tunnel of the same kite takes no other place, and is charged to the same account.
        assert!(Arc::ptr_eq(&first, &seat(1, "b", Some(1)).expect("room")));
        assert!(seat(2, "c", Some(1)).is_ok());
        assert_eq!(seat(3, "d", Some(1)).err(), Some(FULL));
        assert!(
            seat(3, "d", None).is_ok(),
            "an onion circuit has no address"
        );
        assert_eq!(seat(4, "e", Some(2)).err(), Some(FULL));
        open.leave("a", None);
        assert_eq!(seat(4, "e", Some(2)).err(), Some(FULL), "b flies it yet");
        let full = Occupancy {
            flying: 3,
            most: 3,
            turned_away: 3,
        };
        assert_eq!(open.occupancy(), full);
        open.leave("b", None);
        assert!(seat(4, "e", Some(2)).is_ok());
        open.leave("c", None);
        assert!(Arc::ptr_eq(&first, &seat(1, "f", Some(1)).expect("room")));
    }

    #[test]
    fn whoever_shows_more_takes_the_name() {
        let open = open(OpenProof::Node, 9, 9);
        let (node, key) = (
            pending(&open, 1, OpenProof::Node),
            pending(&open, 1, OpenProof::Key),
        );
        let name = node.name.to_string();
        let squatter = open.seat(&node, "a", None, NOW).expect("room").account;
        // Asked for again, it is one place.
        for _ in 0..9 {
            assert!(open.seat(&node, "a", None, NOW).is_ok());
        }
        assert_eq!(open.kites().by_name[&node.name].flown_by.len(), 1);
        assert!(open.is_seated(&node, "a") && !open.is_seated(&node, "b"));
        let visitor = squatter.admit(Visitor(1), Instant::now());
        assert!(visitor.is_ok());
        assert!(!open.gives_way(&name, Some(&node)));
        assert!(open.gives_way(&name, Some(&key)));
        assert_eq!(squatter.standing(NOW), Err(End::Outdone));
        // What he used of the name's share is not given back.
        let share = |open: &Open| {
            open.kites().by_name[&key.name]
                .account
                .used(NOW)
                .0
                .connections
        };
        assert_eq!(share(&open), 1);
        assert!(open.kites().by_name[&key.name].flown_by.is_empty());
        let owner = open.seat(&key, "b", None, NOW).expect("room").account;
        assert_eq!(owner.standing(NOW), Ok(()));
        assert!(!open.gives_way(&name, Some(&node)) && !open.gives_way(&name, Some(&key)));
        assert!(open.gives_way(&name, None), "the operator's own kite");
        assert!(!open.gives_way("bob.alice.example", None));
    }

    #[test]
    fn once_the_key_was_shown_the_node_does_not_do() {
        let open = open(OpenProof::Node, 9, 9);
        let (key, here) = (tub_key(), Binding::Tls([1; 32]));
        let kite = id(&key, "alice.example");
        let (claim, lines) = shown(&key, &kite, "t1", &here);
        let bare = TubClaim {
            signature: None,
            ..claim.clone()
        };
        let judge = |claim| open.judge(claim, "t1", &lines, Some(&here), &Named::default());
        let relay = judge(&bare).expect("nothing better was shown");
        let owner = judge(&claim).expect("the key");
        // He was there before, and is quicker.
        assert_eq!(open.seat(&relay, "a", None, NOW).err(), Some(NO_KEY));
        assert_eq!(judge(&bare).err(), Some(NO_KEY));
        // As many others as may be remembered do not make it forgotten while it is to be visited.
        for n in 0..=MAX_REMEMBERED {
            let name = format!("n{n}.alice.example").parse().expect("a name");
            open.kites().key_was_shown(&name, &Arc::default());
        }
        assert!(open.kites().keyed.len() <= MAX_REMEMBERED);
        assert_eq!(open.seat(&relay, "a", None, NOW).err(), Some(NO_KEY));
        assert!(open.seat(&owner, "b", None, NOW).is_ok());
        drop(owner);
        open.leave("b", None);
        assert_eq!(open.seat(&relay, "a", None, NOW).err(), Some(NO_KEY));
    }

    #[test]
    fn what_is_remembered_of_keys_and_of_who_is_gone_has_an_end() {
        let mut kites = Kites::default();
        let name =
            |n: usize| -> KiteName { format!("n{n}.alice.example").parse().expect("a name") };
        let (now, minute) = (Instant::now(), Duration::from_secs(60));
        for (n, ago) in [(0, KEY_REMEMBERED), (1, KEY_REMEMBERED - minute)] {
            let at = now.checked_sub(ago).expect("a time");
            kites.keyed.insert(name(n), (at, Weak::new()));
        }
        assert!(!kites.is_keyed(&name(0)) && kites.is_keyed(&name(1)));
        let account = Account::new("many", Limits::default(), None, None);
        for n in 0..=MAX_REMEMBERED {
            kites.key_was_shown(&name(n), &Arc::default());
            let known = Known {
                account: account.clone(),
                proof: OpenProof::Node,
                flown_by: Vec::new(),
            };
            kites.by_name.insert(name(n), known);
            kites.went(name(n));
        }
        let counts = [kites.keyed.len(), kites.by_name.len(), kites.gone.len()];
        assert_eq!(counts, [MAX_REMEMBERED; 3]);
        assert!(!kites.by_name.contains_key(&name(0)) && !kites.is_keyed(&name(0)));
    }

    #[test]
    fn a_name_is_written_in_one_way() {
        let open = open(OpenProof::Node, 9, 9);
        let pending = pending(&open, 1, OpenProof::Node);
        open.seat(&pending, "a", None, NOW).expect("room");
        let name = pending.name.to_string();
        for odd in [format!("{name}."), name.to_uppercase()] {
            let id = KiteId {
                name: odd.clone(),
                ..pending.id.clone()
            };
            let claim = TubClaim {
                id,
                signature: None,
            };
            assert_eq!(
                said(&open, &claim, "t1", &Lines::default(), None),
                "unauthorized"
            );
            // Nor does another's kite, which nobody finds, take it down.
            assert!(!open.gives_way(&odd, None), "{odd}");
        }
        assert!(open.gives_way(&name, None));
    }
}
