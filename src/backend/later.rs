//! Kites that are called by their tubs and do not fly yet at a frontend whose tunnel stands: those that it has heard and will
//! visit, and those that are asked for again, or for the first time, within the tunnel (protocol page §3.8, §21.8).

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use super::keys::Keys;
use super::link::{Services, flown, wanted};
use super::siblings::Siblings;
use super::watch::Watch;
use super::{HANDSHAKE_TIMEOUT, RETRY_REFUSED};
use crate::config::{ProvenBy, Service};
use crate::random::{jitter, random_hex};
use crate::wire::handshake::{
    BackendHandshake, HandshakeError, Options, ProofPolicy, RefusalKind, Verdict, Within,
};
use crate::wire::{KiteId, Lines};

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
    /// Whether it takes tunnels beside each other.
    pub(super) beside: bool,
    pub(super) keys: Arc<Keys>,
    pub(super) watch: Arc<Watch>,
    pub(super) siblings: Arc<Siblings>,
}

/// Those of one tunnel.
pub(super) struct Later {
    terms: Terms,
    asked: Services,
    kites: Vec<Kite>,
    /// The question that is not answered yet, and when it was put.
    question: Option<(BackendHandshake, Instant)>,
    looks: JoinSet<(usize, bool)>,
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
    /// Its origin is looked at then. Nobody is asked to visit one that is not there.
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
            looks: JoinSet::new(),
        }
    }

    /// Notes what the handshake, or a question, has come to: what was passed over is asked for now, what was refused perhaps
    /// later.
    pub(super) fn learn(&mut self, verdict: &Verdict, now: Instant) {
        for id in &verdict.heard {
            self.put(id, Stage::Awaited(now));
        }
        for refusal in &verdict.refused {
            self.refused(&refusal.id, &refusal.why, now);
        }
    }

    /// Those that the handshake had no room for are asked for as soon as may be.
    pub(super) fn ask_for_the_rest(&mut self, named: &[usize], now: Instant) {
        for at in (0..self.asked.len()).filter(|at| !named.contains(at)) {
            let stage = Stage::Due(now);
            let wait = AGAIN_FIRST;
            self.kites.push(Kite { at, stage, wait });
        }
    }

    /// The frontend does not fly this one.
    pub(super) fn refused(&mut self, id: &KiteId, why: &RefusalKind, now: Instant) {
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
            | RefusalKind::Tub => return self.forget(id),
        };
        if let Some(kite) = self.put(id, Stage::Due(now)) {
            let wait = kite.wait.max(first);
            kite.stage = Stage::Due(now + jitter(wait));
            kite.wait = (wait * 2).min(most);
        }
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

    /// Is any?
    pub(super) fn awaits(&self) -> bool {
        self.awaited() > 0
    }

    /// Kites that the frontend was told of and that may be visited: `proto` and `name` of each.
    pub(super) fn offered(&self) -> impl Iterator<Item = (String, String)> {
        let told = |k: &&Kite| matches!(k.stage, Stage::Asked | Stage::Awaited(_));
        let service = |k: &Kite| self.asked.get(k.at);
        let kites = self.kites.iter().filter(told).filter_map(service);
        kites.map(|s| (s.ported().on_wire(), s.name.to_string()))
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
        if self
            .question
            .as_ref()
            .is_some_and(|(_, since)| now - *since > HANDSHAKE_TIMEOUT)
        {
            self.question = None;
        }
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
                kite.stage = Stage::Looking;
                let (at, watch) = (kite.at, self.terms.watch.clone());
                self.looks
                    .spawn(async move { (at, watch.trusts(&service).await) });
            }
        }
        unanswered.then(|| self.ask(now)).flatten()
    }

    /// The next question, if there is one.
    fn ask(&mut self, now: Instant) -> Option<Lines> {
        let room = MAX_AWAITED.saturating_sub(self.awaited()).min(MAX_SHOWN);
        let ready = self.kites.iter_mut().filter(|k| k.stage == Stage::Ready);
        let mut kites = Vec::new();
        for kite in ready.take(room) {
            kite.stage = Stage::Asked;
            kites.extend(self.asked.get(kite.at));
        }
        if kites.is_empty() {
            return None;
        }
        let Terms { keys, siblings, .. } = &self.terms;
        let options = Options {
            offer_beside: self.terms.beside,
            beside: siblings.standing(),
            proof: self.terms.proof.clone(),
            ..Options::default()
        };
        let kites = kites.into_iter().map(|s| wanted(s, keys)).collect();
        let (machine, question) =
            BackendHandshake::within(kites, options, self.terms.proven, || random_hex(8));
        self.question = Some((machine, now));
        Some(question)
    }

    /// Hears what the frontend says to the question.
    pub(super) fn hear(&mut self, lines: &Lines) -> Result<Within, HandshakeError> {
        let Some((machine, _)) = &mut self.question else {
            return Ok(Within::Wait);
        };
        let heard = machine.hear(lines)?;
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

    /// Where a kite is among the services, if it is called by its tub.
    fn place(&self, id: &KiteId) -> Option<usize> {
        let is = |s: &Service| (s.ported().on_wire(), s.name.to_string()) == flown(id);
        let by_tub = |s: &Service| s.by != ProvenBy::Secret && is(s);
        self.asked.iter().position(by_tub)
    }
}

/// Those of the services that a handshake may name, by their places: all, but not too many tubs.
pub(super) fn named_at_first(services: &[Service]) -> Vec<usize> {
    let mut tubs = 0;
    let mut fits = |service: &Service| {
        let by_tub = service.by != ProvenBy::Secret;
        tubs += usize::from(by_tub);
        !by_tub || tubs <= MAX_SHOWN
    };
    let all = services.iter().enumerate();
    all.filter(|(_, s)| fits(s)).map(|(at, _)| at).collect()
}
