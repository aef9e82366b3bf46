//! What a backend is doing now: written by its tunnels, read by whoever asks.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use super::arrivals::{Arrivals, Look};
use super::score::{Scores, Verdict};
use super::status::{Outcome, Way};
use super::traffic::{Count, Ledger, Of};
use crate::config::Service;
use crate::dial::Lane;
use crate::tunnel::Tunnel;

/// Troubles that are remembered. One that comes again is counted, and takes no other place.
pub const MAX_TROUBLES: usize = 32;

/// Before a tunnel whose frontend still brings no visitor of ours is made anew a second time; twice as long each time that it was in vain.
pub const RENEW_AGAIN: Duration = Duration::from_secs(600);
/// The longest of these waits.
pub const RENEW_RARELY: Duration = Duration::from_secs(6 * 3600);

/// One entry for each tunnel that a backend keeps, in the order of the configuration; what its origins were last seen
/// to be; what went wrong of late; and what passes.
#[derive(Clone, Default)]
pub struct Board {
    pinned: Arc<Mutex<Pinned>>,
    ledger: Ledger,
    arrivals: Arrivals,
    scores: Scores,
    news: Arc<Notify>,
}

#[derive(Default)]
struct Pinned {
    entries: Vec<Entry>,
    origins: Vec<Origin>,
    troubles: VecDeque<Trouble>,
    probes: Vec<Probed>,
    names: Vec<Probed>,
}

/// What a kite's origin was last seen to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// The kite, `protocol:name`.
    pub kite: String,
    /// Its address.
    pub address: String,
    /// `unknown` before the first look, and for kites whose origins are not looked at.
    pub state: &'static str,
    /// Since when it was seen so.
    pub since: Instant,
    /// The last look.
    pub seen: Option<Instant>,
    /// What was wrong last.
    pub trouble: Option<String>,
}

/// A visit that a backend paid to a kite of its own.
#[derive(Debug, Clone)]
pub struct Probed {
    /// The frontend that it was to come in by, or was seen to; none if its goal was the kite's name, and it was seen nowhere.
    pub frontend: Option<String>,
    /// The kite, `protocol:name`.
    pub kite: String,
    /// Where it went: `host:port`.
    pub to: String,
    /// What that is.
    pub way: Way,
    /// What became of it.
    pub outcome: Outcome,
    /// In one word.
    pub finding: &'static str,
    /// In a sentence.
    pub text: String,
    /// When it was over.
    pub at: Instant,
    /// How long it took.
    pub took: Duration,
    /// What came of this one and those before.
    pub record: Record,
}

impl Probed {
    /// What it says of its frontend: nothing, if it was not paid, or if what is behind the kite is to blame.
    fn verdict(&self, is_unfit: bool) -> Option<Verdict> {
        match (self.outcome, self.finding) {
            (Outcome::Proven, _) => Some(Verdict::Good),
            (Outcome::Reached | Outcome::NotProbed, _) => None,
            (Outcome::Failed, "other-node" | "altered") => Some(Verdict::Astray),
            (Outcome::Failed, "not-up") if is_unfit => None,
            (Outcome::Failed, _) => Some(Verdict::NoWay),
        }
    }

    /// It came to the frontend, and there no tunnel took it to us.
    fn met_silence(&self, is_unfit: bool) -> bool {
        let silence = ["not-up", "closed", "timed-out"];
        self.way == Way::Frontend && silence.contains(&self.finding) && !is_unfit
    }
}

/// What came of the visits to one kite through one frontend, since the start. Those that could not be paid do not count.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Record {
    /// How many were paid.
    pub visits: u64,
    /// How many proved the way.
    pub proven: u64,
    /// When one did last.
    pub last_proven: Option<Instant>,
}

impl Record {
    fn with(mut self, visit: &Probed) -> Self {
        match visit.outcome {
            Outcome::NotProbed => return self,
            Outcome::Proven => {
                self.proven += 1;
                self.last_proven = Some(visit.at);
            }
            Outcome::Reached | Outcome::Failed => {}
        }
        self.visits += 1;
        self
    }
}

/// Something went wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trouble {
    /// The last time.
    pub at: Instant,
    /// With whom: a frontend's address, or a kite.
    pub with: String,
    /// What.
    pub what: String,
    /// How often.
    pub times: u64,
}

struct Entry {
    /// No other on the board has it.
    id: u64,
    frontend: String,
    lane: Lane,
    stage: Stage,
    since: Instant,
    last_error: Option<String>,
    kites: Vec<String>,
    connects: u64,
    renewal: Renewal,
}

/// When a tunnel that stands and brings no visitors is made anew: rarely, since the tunnel may not be to blame.
#[derive(Debug, Default)]
struct Renewal {
    is_due: bool,
    last: Option<Instant>,
    in_vain: u32,
}

impl Renewal {
    fn ask(&mut self, now: Instant) {
        let longer = 1 << self.in_vain.saturating_sub(1).min(16);
        let wait = RENEW_AGAIN.saturating_mul(longer).min(RENEW_RARELY);
        if self.last.is_none_or(|last| now >= last + wait) {
            self.is_due = true;
            self.last = Some(now);
            self.in_vain = self.in_vain.saturating_add(1);
        }
    }
}

/// What a tunnel's keeper is at.
pub enum Stage {
    /// Another tunnel to this frontend comes first, or the frontend takes one only.
    Idle,
    /// On the way to the frontend.
    Dialling,
    /// The tunnel stands.
    Up(Tunnel),
    /// Until the next attempt.
    Waiting(Instant),
}

/// One tunnel's place on the board. Dropped, it is free.
pub struct Slot {
    board: Board,
    id: u64,
}

/// A tunnel as the board shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct View {
    /// The frontend's address, as configured.
    pub frontend: String,
    /// Its number among the tunnels to this frontend.
    pub lane: Lane,
    /// `idle`, `dialling`, `up`, `suspect` (the frontend owes a sign of life) or `waiting`.
    pub state: &'static str,
    /// How long it has been so.
    pub since: Duration,
    /// The last measured round trip, if it stands.
    pub round_trip: Option<Duration>,
    /// Visitors' streams that are open.
    pub streams: usize,
    /// Until the next attempt.
    pub retry_in: Option<Duration>,
    /// Why it does not stand, or did not the last time.
    pub last_error: Option<String>,
    /// The kites that it flies.
    pub kites: Vec<String>,
    /// How often it has come to stand.
    pub connects: u64,
}

impl Board {
    /// A board whose frontends' scores are these.
    pub fn with_scores(scores: Scores) -> Self {
        Self {
            scores,
            ..Self::default()
        }
    }

    /// How the frontends do.
    pub fn scores(&self) -> &Scores {
        &self.scores
    }

    /// A place for one tunnel.
    pub fn slot(&self, frontend: &str, lane: Lane) -> Slot {
        let entries = &mut self.lock().entries;
        let id = entries.last().map_or(0, |last| last.id + 1);
        entries.push(Entry {
            id,
            frontend: frontend.to_owned(),
            lane,
            stage: Stage::Idle,
            since: Instant::now(),
            last_error: None,
            kites: Vec::new(),
            connects: 0,
            renewal: Renewal::default(),
        });
        Slot {
            board: self.clone(),
            id,
        }
    }

    /// Everything, now.
    pub fn view(&self) -> Vec<View> {
        let now = Instant::now();
        let pinned = self.lock();
        pinned.entries.iter().map(|entry| entry.view(now)).collect()
    }

    /// Waits until a tunnel's keeper has written something since the last call. For one reader.
    pub async fn news(&self) {
        self.news.notified().await;
    }

    /// The counts of what passes.
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// These are the kites from now on. What was seen of their origins stays.
    pub fn turn_to(&self, services: &[Service]) {
        let pinned = &mut *self.lock();
        let mut old = std::mem::take(&mut pinned.origins);
        let place = |service: &Service| {
            let (kite, address) = (kite_of(service), service.origin.to_string());
            let same = |o: &Origin| (&o.kite, &o.address) == (&kite, &address);
            match old.iter().position(same) {
                Some(at) => old.swap_remove(at),
                None => Origin {
                    kite,
                    address,
                    state: "unknown",
                    since: Instant::now(),
                    seen: None,
                    trouble: None,
                },
            }
        };
        pinned.origins = services.iter().map(place).collect();
        let kites: Vec<_> = services.iter().map(kite_of).collect();
        pinned.probes.retain(|p| kites.contains(&p.kite));
        pinned.names.retain(|p| kites.contains(&p.kite));
    }

    /// A kite's origin was looked at. `trouble` is what is wrong with it.
    pub fn saw(&self, service: &Service, state: &'static str, trouble: Option<String>) {
        let kite = kite_of(service);
        let now = Instant::now();
        let changed = {
            let mut pinned = self.lock();
            let origin = pinned.origins.iter_mut().find(|o| o.kite == kite);
            let Some(origin) = origin else { return };
            let changed = origin.state != state;
            if changed {
                origin.since = now;
                origin.state = state;
            }
            origin.seen = Some(now);
            if trouble.is_some() {
                origin.trouble.clone_from(&trouble);
            }
            changed
        };
        if let Some(trouble) = trouble.filter(|_| changed) {
            self.trouble(&kite, &trouble);
        }
    }

    /// The origins, in the order of the configuration.
    pub fn origins(&self) -> Vec<Origin> {
        self.lock().origins.clone()
    }

    /// A visit is over. It takes the place of the one before.
    pub fn probed(&self, visit: Probed) {
        let pinned = &mut *self.lock();
        let fit = ["speaks foolscap", "unknown"];
        let is_unfit = |o: &Origin| o.kite == visit.kite && !fit.contains(&o.state);
        let is_unfit = pinned.origins.iter().any(is_unfit);
        if let (Some(at), Some(verdict)) = (&visit.frontend, visit.verdict(is_unfit)) {
            self.scores.take(at, &visit.kite, visit.way, verdict);
        }
        let began = visit.at.checked_sub(visit.took);
        for entry in &mut pinned.entries {
            if Some(&entry.frontend) != visit.frontend.as_ref()
                || !entry.kites.contains(&visit.kite)
            {
                continue;
            }
            if visit.outcome == Outcome::Proven {
                entry.renewal = Renewal::default();
            } else if visit.met_silence(is_unfit) && began.is_some_and(|began| entry.since <= began)
            {
                entry.renewal.ask(visit.at);
            }
        }
        if visit.way == Way::Name {
            let before = |p: &Probed| (&p.kite, &p.to) == (&visit.kite, &visit.to);
            put(&mut pinned.names, before, visit.clone());
        }
        if visit.frontend.is_some() {
            let before = |p: &Probed| (&p.kite, &p.frontend) == (&visit.kite, &visit.frontend);
            put(&mut pinned.probes, before, visit.clone());
        }
    }

    /// The last visit to each kite through each frontend.
    pub fn probes(&self) -> Vec<Probed> {
        self.lock().probes.clone()
    }

    /// The last visit by the name of each kite, whose `frontend` is the one that it came in by.
    pub fn by_name(&self) -> Vec<Probed> {
        self.lock().names.clone()
    }

    /// Visitors of our own, and by whom they come in.
    pub fn arrivals(&self) -> &Arrivals {
        &self.arrivals
    }

    /// Something went wrong with a frontend, or a kite.
    pub fn trouble(&self, with: &str, what: &str) {
        let troubles = &mut self.lock().troubles;
        let at = Instant::now();
        let again = |t: &&mut Trouble| t.with == with && t.what == what;
        if let Some(same) = troubles.iter_mut().find(again) {
            (same.at, same.times) = (at, same.times + 1);
            return;
        }
        if troubles.len() >= MAX_TROUBLES {
            troubles.pop_front();
        }
        troubles.push_back(Trouble {
            at,
            with: with.to_owned(),
            what: what.to_owned(),
            times: 1,
        });
    }

    /// What went wrong, the last first.
    pub fn troubles(&self) -> Vec<Trouble> {
        let mut all: Vec<_> = self.lock().troubles.iter().cloned().collect();
        all.sort_by_key(|t| std::cmp::Reverse(t.at));
        all
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Pinned> {
        self.pinned.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Slot {
    /// It is at something else now.
    pub fn set(&self, stage: Stage) {
        self.change(|entry| {
            match stage {
                Stage::Up(_) => {
                    entry.connects += 1;
                    entry.renewal.is_due = false;
                }
                _ => entry.kites.clear(),
            }
            entry.stage = stage;
            entry.since = Instant::now();
        });
    }

    /// The kites that its tunnel flies.
    pub fn flies(&self, kites: Vec<String>) {
        self.change(|entry| entry.kites = kites);
    }

    /// What went wrong.
    pub fn failed(&self, why: &str) {
        let mut with = None;
        self.change(|entry| {
            entry.last_error = Some(why.to_owned());
            with = Some(entry.frontend.clone());
        });
        if let Some(frontend) = with {
            self.board.trouble(&frontend, why);
        }
    }

    /// Something went wrong that is no reason for it not to stand.
    pub fn trouble(&self, what: &str) {
        let mut with = None;
        self.change(|entry| with = Some(entry.frontend.clone()));
        if let Some(frontend) = with {
            self.board.trouble(&frontend, what);
        }
    }

    /// Whether its tunnel stands, and is to be made anew all the same, since a visitor of ours did not come through. Says so once.
    pub fn is_to_be_renewed(&self) -> bool {
        let mut pinned = self.board.lock();
        let own = pinned.entries.iter_mut().find(|e| e.id == self.id);
        own.is_some_and(|entry| std::mem::take(&mut entry.renewal.is_due))
    }

    /// Where its visitors are counted.
    pub fn tally(&self) -> Tally {
        let mut tunnel = None;
        self.change(|entry| tunnel = Some((entry.frontend.clone(), entry.lane.0 + 1)));
        Tally {
            ledger: self.board.ledger.clone(),
            arrivals: self.board.arrivals.clone(),
            tunnel,
        }
    }

    fn change(&self, act: impl FnOnce(&mut Entry)) {
        let mut pinned = self.board.lock();
        if let Some(entry) = pinned.entries.iter_mut().find(|e| e.id == self.id) {
            act(entry);
        }
        drop(pinned);
        self.board.news.notify_one();
    }
}

/// Where the visitors of one tunnel are counted.
#[derive(Clone)]
pub struct Tally {
    ledger: Ledger,
    arrivals: Arrivals,
    tunnel: Option<(String, u8)>,
}

impl Tally {
    /// Looks who comes in, if a visitor of our own is on its way.
    pub fn look(&self) -> Option<Look> {
        let (frontend, _) = self.tunnel.as_ref()?;
        self.arrivals.look(frontend)
    }

    /// Those of one kite; or those of none.
    pub fn of(&self, service: Option<&Service>) -> Arc<Count> {
        self.ledger.count(Of {
            tunnel: self.tunnel.clone(),
            kite: service.map(kite_of),
        })
    }
}

/// Puts a visit in the place of the one before.
fn put(visits: &mut Vec<Probed>, before: impl Fn(&Probed) -> bool, visit: Probed) {
    match visits.iter_mut().find(|p| before(p)) {
        Some(old) => {
            let record = old.record.with(&visit);
            *old = Probed { record, ..visit };
        }
        None => {
            let record = Record::default().with(&visit);
            visits.push(Probed { record, ..visit });
        }
    }
}

/// A kite as its owner wrote it.
pub fn kite_of(service: &Service) -> String {
    format!("{}:{}", service.ported(), service.name)
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut pinned = self.board.lock();
        pinned.entries.retain(|entry| entry.id != self.id);
    }
}

impl Entry {
    fn view(&self, now: Instant) -> View {
        let tunnel = match &self.stage {
            Stage::Up(tunnel) => Some(tunnel),
            _ => None,
        };
        View {
            frontend: self.frontend.clone(),
            lane: self.lane,
            state: match &self.stage {
                Stage::Idle => "idle",
                Stage::Dialling => "dialling",
                Stage::Up(tunnel) if tunnel.is_suspect() => "suspect",
                Stage::Up(_) => "up",
                Stage::Waiting(_) => "waiting",
            },
            since: now.saturating_duration_since(self.since),
            round_trip: tunnel.and_then(Tunnel::rtt),
            streams: tunnel.map_or(0, Tunnel::streams),
            retry_in: match self.stage {
                Stage::Waiting(until) => Some(until.saturating_duration_since(now)),
                _ => None,
            },
            last_error: self.last_error.clone(),
            kites: self.kites.clone(),
            connects: self.connects,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tunnel_is_made_anew_ever_more_rarely() {
        let start = Instant::now();
        let mut renewal = Renewal::default();
        // A visit every ten seconds for two days, and none of them comes through.
        let due: Vec<u64> = (0..2 * 8640)
            .map(|n| 10 * n)
            .filter(|at| {
                renewal.ask(start + Duration::from_secs(*at));
                std::mem::take(&mut renewal.is_due)
            })
            .collect();
        let (again, rarely) = (RENEW_AGAIN.as_secs(), RENEW_RARELY.as_secs());
        let waits: Vec<u64> = due.windows(2).map(|two| two[1] - two[0]).collect();
        assert_eq!(due[0], 0);
        assert_eq!(waits[..3], [again, 2 * again, 4 * again]);
        assert_eq!(waits.iter().max(), Some(&rarely));
        assert_eq!(due.len(), 13, "in two days: {due:?}");
    }

    #[test]
    fn the_oldest_trouble_is_forgotten() {
        let board = Board::default();
        for n in 0..=MAX_TROUBLES {
            board.trouble("alice.example", &format!("trouble {n}"));
            board.trouble("alice.example", "the same again");
        }
        let troubles = board.troubles();
        assert_eq!(troubles.len(), MAX_TROUBLES);
        let has = |what: &str| troubles.iter().find(|t| t.what == what);
        assert!(has("trouble 0").is_none() && has("trouble 3").is_some());
    }
}
