//! Kites that do not fly yet at a frontend whose tunnel stands (protocol page §3.8, §21.8): those that the first request had no
//! room for, those that are asked for again, and those called by their tubs that it has heard and will visit.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use super::keys::Keys;
use super::link::Services;
use super::report::{flown, wanted};
use super::siblings::Siblings;
use super::watch::Watch;
use super::{HANDSHAKE_TIMEOUT, RETRY_REFUSED};
use crate::config::{ProvenBy, Service};
use crate::random::{jitter, random_hex};
use crate::wire::handshake::{
    BackendHandshake, HandshakeError, Options, PeerParams, ProofPolicy, Refusal, RefusalKind,
    Verdict, Within,
};
use crate::wire::mark::MarkKey;
use crate::wire::{KiteId, Lines};

/// Most kites that one head, or one frame, asks for: a frontend may name two homes for each, and frames have 64 lines of a kind.
pub const MAX_ASKED: usize = 32;
/// What the lines for them may take, in bytes. A request has 16 KiB, and the verdict on it, which says more of each, 32.
const ROOM: usize = 8 * 1024;
/// What one of them takes, besides its name, of which there is one in each of two lines.
const TAKES: usize = 180;
/// Most tubs that one frame shows. A frontend looks at 16, and before a kite flies takes frames of 32 KiB.
pub const MAX_SHOWN: usize = 8;
/// Most kites of a tunnel that wait to be visited: what a frontend visits at one time, by one tunnel.
pub const MAX_AWAITED: usize = 16;
/// How long a visit is waited for: a frontend takes 45 s to find time for one, and 45 s for itself.
pub const VISITED_WITHIN: Duration = Duration::from_secs(120);
/// The first wait before a kite is asked for again that the frontend had no place or no time for, or did not come to.
const AGAIN_FIRST: Duration = Duration::from_secs(2);
/// The longest one, where the operator has said no.
const AGAIN_MAX: Duration = Duration::from_secs(600);
/// Between two looks at an origin that is not fit to be visited.
const LOOK_AGAIN: Duration = Duration::from_secs(3);

/// What a question within a tunnel needs to know of it.
pub(super) struct Terms {
    /// What a proof is bound to.
    pub(super) proof: ProofPolicy,
    /// Whether the frontend agreed to [`crate::wire::handshake::KITE_PROOF`].
    pub(super) proven: bool,
    /// What else it is able to do.
    pub(super) peer: PeerParams,
    /// A tunnel of ours that this one takes the place of.
    pub(super) retire: Option<String>,
    pub(super) mark: MarkKey,
    pub(super) keys: Arc<Keys>,
    pub(super) watch: Arc<Watch>,
    pub(super) siblings: Arc<Siblings>,
}

/// Those of one tunnel.
pub(super) struct Later {
    terms: Terms,
    asked: Services,
    kites: Vec<Kite>,
    question: Option<Question>,
    /// None is put before that.
    not_before: Instant,
    looks: JoinSet<(usize, bool)>,
}

/// One that is not answered yet.
struct Question {
    machine: BackendHandshake,
    since: Instant,
}

struct Kite {
    /// Its place among the services.
    at: usize,
    stage: Stage,
    /// The wait before the next time.
    wait: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// It is to be asked for then. If that makes somebody visit it, its origin is looked at before.
    Due(Instant),
    /// It is being looked at.
    Looking,
    /// It is there: the next question is for this kite.
    Ready,
    /// It is asked for.
    Asked,
    /// It was heard, at this time.
    Awaited(Instant),
}

impl Later {
    /// None yet.
    pub(super) fn new(asked: Services, terms: Terms) -> Self {
        Self {
            terms,
            asked,
            kites: Vec::new(),
            question: None,
            not_before: Instant::now(),
            looks: JoinSet::new(),
        }
    }

    /// Notes what the handshake, or a question, has come to: what was refused is perhaps asked for later.
    pub(super) fn learn(&mut self, verdict: &Verdict, now: Instant) {
        for id in &verdict.flying {
            self.forget(id);
        }
        for id in &verdict.heard {
            self.put(id, Stage::Awaited(now));
        }
        for refusal in &verdict.refused {
            self.refused(&refusal.id, &refusal.why, now);
        }
    }

    /// Those that the handshake had no room for are asked for as soon as may be. If the frontend takes none within a tunnel,
    /// they are refused.
    pub(super) fn ask_for_the_rest(
        &mut self,
        named: &[usize],
        verdict: &mut Verdict,
        now: Instant,
    ) {
        for (at, service) in self.asked.iter().enumerate() {
            if named.contains(&at) {
                continue;
            }
            if !self.terms.peer.add_kites {
                let (id, why) = (id_of(service), RefusalKind::NoMore);
                verdict.refused.push(Refusal { id, why });
            } else if !self.terms.siblings.has_given_up(&flown(&id_of(service))) {
                let (stage, wait) = (Stage::Due(now), AGAIN_FIRST);
                self.kites.push(Kite { at, stage, wait });
            }
        }
    }

    /// The frontend does not fly this one, that it was asked for.
    pub(super) fn refused(&mut self, id: &KiteId, why: &RefusalKind, now: Instant) {
        // An older program ends the tunnel when it refuses all of a question.
        let again = self.is_by_tub(id)
            || self.terms.peer.kite_mux.is_some()
                && matches!(
                    why,
                    RefusalKind::Busy | RefusalKind::Full | RefusalKind::Duplicate
                );
        if again {
            return self.again(id, why, now);
        }
        self.forget(id);
        if self.terms.peer.kite_mux.is_none() {
            self.terms.siblings.give_up(flown(id), false);
            // Whatever is asked for meanwhile would be taken for what it is ended by.
            self.not_before = now + LOOK_AGAIN;
        }
    }

    /// The frontend does not fly this one any more, or not after all. Whoever has taken it over keeps it.
    pub(super) fn ended(&mut self, id: &KiteId, why: &RefusalKind, now: Instant) {
        match why {
            RefusalKind::Duplicate if !self.is_by_tub(id) => self.forget(id),
            _ => self.refused(id, why, now),
        }
    }

    fn again(&mut self, id: &KiteId, why: &RefusalKind, now: Instant) {
        let (first, most) = match why {
            RefusalKind::Busy
            | RefusalKind::Full
            | RefusalKind::TubNode
            | RefusalKind::Duplicate => (AGAIN_FIRST, RETRY_REFUSED),
            // That is for people to mend, at the frontend.
            RefusalKind::Quota
            | RefusalKind::Expired
            | RefusalKind::Unauthorized
            | RefusalKind::TubKey
            | RefusalKind::Other(_) => (RETRY_REFUSED, AGAIN_MAX),
            // And that here.
            RefusalKind::Signature
            | RefusalKind::Port
            | RefusalKind::Proto
            | RefusalKind::Proof
            | RefusalKind::TlsEnded
            | RefusalKind::NoTubs
            | RefusalKind::NoMore
            | RefusalKind::Unanswered
            | RefusalKind::Tub => return self.forget(id),
        };
        if let Some(kite) = self.put(id, Stage::Due(now)) {
            let wait = kite.wait.max(first);
            kite.stage = Stage::Due(now + jitter(wait));
            kite.wait = (wait * 2).min(most);
        }
    }

    /// Those of a question that an older frontend has not answered: the tunnel is over, or it has been silent for too long.
    /// If it happens again they are left out for a while, since such a program ends the tunnel when it refuses all of a
    /// question.
    pub(super) fn unanswered(&mut self, over: bool, now: Instant) -> Vec<KiteId> {
        let silent = |q: &mut Question| over || now - q.since > HANDSHAKE_TIMEOUT;
        if self.terms.peer.kite_mux.is_some() || self.question.take_if(silent).is_none() {
            return Vec::new();
        }
        let (asked, kept): (Vec<_>, Vec<_>) =
            (self.kites.drain(..)).partition(|k| k.stage == Stage::Asked);
        self.kites = kept;
        let services = asked.iter().filter_map(|k| self.asked.get(k.at));
        let ids: Vec<_> = services.map(id_of).collect();
        for id in &ids {
            self.terms.siblings.give_up(flown(id), true);
        }
        ids
    }

    /// The frontend says OK to a kite. True if it was awaited, and flies from now on.
    pub(super) fn flies(&mut self, id: &KiteId) -> bool {
        let awaited = self.is_awaited(id);
        if awaited {
            self.forget(id);
        }
        awaited
    }

    /// Is this one heard, and not visited yet?
    pub(super) fn is_awaited(&self, id: &KiteId) -> bool {
        let at = self.place(id);
        let mut all = self.kites.iter();
        all.any(|k| Some(k.at) == at && matches!(k.stage, Stage::Awaited(_)))
    }

    /// Is anything on its way?
    pub(super) fn awaits(&self) -> bool {
        self.kites.iter().any(|k| match k.stage {
            Stage::Ready | Stage::Asked | Stage::Awaited(_) => true,
            Stage::Looking => false,
            // By now, if it were not for a first time.
            Stage::Due(_) => k.wait == AGAIN_FIRST && !self.by_tub(k.at),
        })
    }

    /// Kites that the frontend was told of and that may be visited: `proto` and `name` of each.
    pub(super) fn offered(&self) -> impl Iterator<Item = (String, String)> {
        let told = |k: &&Kite| matches!(k.stage, Stage::Asked | Stage::Awaited(_));
        let told = self.kites.iter().filter(told);
        self.names(told.filter(|k| self.by_tub(k.at)))
    }

    /// Kites that may fly soon: `proto` and `name` of each.
    pub(super) fn to_come(&self) -> impl Iterator<Item = (String, String)> {
        self.names(self.kites.iter())
    }

    fn names<'a>(
        &'a self,
        kites: impl Iterator<Item = &'a Kite>,
    ) -> impl Iterator<Item = (String, String)> {
        let services = kites.filter_map(|k| self.asked.get(k.at));
        services.map(|s| flown(&id_of(s)))
    }

    /// Does what is due now. What it returns is to be sent.
    pub(super) fn tend(&mut self, now: Instant) -> Option<Lines> {
        while let Some(Ok((at, fit))) = self.looks.try_join_next() {
            let looking = |k: &&mut Kite| k.at == at && k.stage == Stage::Looking;
            if let Some(kite) = self.kites.iter_mut().find(looking) {
                kite.stage = match fit {
                    true => Stage::Ready,
                    false => Stage::Due(now + LOOK_AGAIN),
                };
            }
        }
        let silent = |q: &mut Question| now - q.since > HANDSHAKE_TIMEOUT;
        let _ = self.question.take_if(silent);
        let unanswered = self.question.is_none();
        for kite in &mut self.kites {
            let too_long = match kite.stage {
                Stage::Asked => unanswered,
                Stage::Awaited(since) => now - since > VISITED_WITHIN,
                _ => false,
            };
            if too_long {
                kite.stage = Stage::Due(now + jitter(kite.wait));
                kite.wait = (kite.wait * 2).min(RETRY_REFUSED);
            }
            if matches!(kite.stage, Stage::Due(then) if then <= now)
                && let Some(service) = self.asked.get(kite.at).cloned()
            {
                if service.by == ProvenBy::Secret {
                    kite.stage = Stage::Ready;
                    continue;
                }
                kite.stage = Stage::Looking;
                let (at, watch) = (kite.at, self.terms.watch.clone());
                self.looks
                    .spawn(async move { (at, watch.trusts(&service).await) });
            }
        }
        match unanswered && now >= self.not_before {
            true => self.ask(now),
            false => None,
        }
    }

    /// The next question, if there is one.
    fn ask(&mut self, now: Instant) -> Option<Lines> {
        let mut room = Room {
            tubs: MAX_AWAITED.saturating_sub(self.awaited()).min(MAX_SHOWN),
            ..Room::default()
        };
        let ready = self.kites.iter_mut().filter(|k| k.stage == Stage::Ready);
        let mut kites = Vec::new();
        for kite in ready {
            if let Some(service) = self.asked.get(kite.at)
                && room.takes(service)
            {
                kite.stage = Stage::Asked;
                kites.push(service);
            }
        }
        if kites.is_empty() {
            return None;
        }
        let Terms { keys, peer, .. } = &self.terms;
        let options = Options {
            offer_beside: peer.beside,
            beside: self.terms.siblings.standing(),
            retire: self.terms.retire.clone(),
            proof: self.terms.proof.clone(),
            mark: Some(self.terms.mark.clone()),
            ..Options::default()
        };
        let (peer, proven) = (peer.clone(), self.terms.proven);
        let kites = kites.into_iter().map(|s| wanted(s, keys)).collect();
        let (machine, question) =
            BackendHandshake::within(kites, options, peer, proven, || random_hex(8));
        self.question = Some(Question {
            machine,
            since: now,
        });
        Some(question)
    }

    /// Hears what the frontend says to the question.
    pub(super) fn hear(&mut self, lines: &Lines) -> Result<Within, HandshakeError> {
        let Some(question) = &mut self.question else {
            return Ok(Within::Wait);
        };
        let heard = question.machine.hear(lines)?;
        if matches!(heard, Within::Done(_)) {
            self.question = None;
        }
        Ok(heard)
    }

    fn awaited(&self) -> usize {
        let awaited = |k: &&Kite| matches!(k.stage, Stage::Awaited(_));
        self.kites.iter().filter(awaited).count()
    }

    fn forget(&mut self, id: &KiteId) {
        let at = self.place(id);
        self.kites.retain(|k| Some(k.at) != at);
    }

    fn put(&mut self, id: &KiteId, stage: Stage) -> Option<&mut Kite> {
        let at = self.place(id)?;
        if !self.kites.iter().any(|k| k.at == at) {
            let wait = AGAIN_FIRST;
            self.kites.push(Kite { at, stage, wait });
        }
        let kite = self.kites.iter_mut().find(|k| k.at == at)?;
        kite.stage = stage;
        Some(kite)
    }

    /// Where a kite is among the services.
    fn place(&self, id: &KiteId) -> Option<usize> {
        let is = |s: &Service| flown(&id_of(s)) == flown(id);
        self.asked.iter().position(is)
    }

    fn by_tub(&self, at: usize) -> bool {
        let service = self.asked.get(at);
        service.is_some_and(|s| s.by != ProvenBy::Secret)
    }

    fn is_by_tub(&self, id: &KiteId) -> bool {
        self.place(id).is_some_and(|at| self.by_tub(at))
    }
}

/// What a kite is called, without any handshake's salt.
fn id_of(service: &Service) -> KiteId {
    KiteId {
        proto: service.ported().on_wire(),
        name: service.name.to_string(),
        bsalt: String::new(),
    }
}

/// What one head, or frame, can ask for still.
struct Room {
    kites: usize,
    tubs: usize,
    bytes: usize,
}

impl Default for Room {
    fn default() -> Self {
        Self {
            kites: MAX_ASKED,
            tubs: MAX_SHOWN,
            bytes: ROOM,
        }
    }
}

impl Room {
    fn takes(&mut self, service: &Service) -> bool {
        let tubs = usize::from(service.by != ProvenBy::Secret);
        let bytes = TAKES + 2 * service.name.as_str().len();
        let fits = self.kites > 0 && tubs <= self.tubs && bytes <= self.bytes;
        if fits {
            self.kites -= 1;
            self.tubs -= tubs;
            self.bytes -= bytes;
        }
        fits
    }
}

/// Those of the services that a handshake may name, by their places; it begins with the one at `first`.
pub(super) fn named_at_first(services: &[Service], first: usize) -> Vec<usize> {
    let mut room = Room::default();
    let (before, after) = services.split_at(first.min(services.len()));
    let after = after
        .iter()
        .enumerate()
        .map(|(at, s)| (at + before.len(), s));
    let all = after.chain(before.iter().enumerate());
    all.filter(|(_, s)| room.takes(s))
        .map(|(at, _)| at)
        .collect()
}
