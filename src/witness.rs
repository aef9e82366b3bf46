//! A backend's own visitor: goes to its foolscap kites from outside, where any visitor goes, and sees whether it comes
//! to the node that it left, and by which frontend.
//!
//! Through Tor it goes through an exit, on a circuit that nothing else uses: first where the kite's name leads, then to the own
//! address of each frontend that it was not seen to come in by. In direct mode it goes to the frontends' addresses. It uses
//! the dialer that the backend was given, and so has no other way. A frontend is called proven only if the visitor was seen
//! to come in by one of its tunnels ([`crate::observe::arrivals`]).

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures::StreamExt;
use futures::stream;
use tokio::sync::{Semaphore, watch};
use tokio::time::{sleep, timeout};

use crate::backend::Plan;
use crate::code::Code;
use crate::config::Service;
use crate::dial::{DialError, Dialer, FrontendAddr, Goal};
use crate::kite::Protocol;
use crate::observe::arrivals::{Arrival, Imprint};
use crate::observe::board::{Board, Probed, Record, kite_of};
use crate::observe::status::{Outcome, Way};
use crate::random::jitter;
use crate::sniff::TubId;
use crate::sniff::foolscap::{TUB_ID_LEN, probe_request};
use crate::visit::{self, VisitError};

/// After a kite came up, before its first visitor of ours comes.
pub const SETTLED: Duration = Duration::from_secs(2);
/// Between two visits that found all well, with jitter: rarely enough to be no beacon.
pub const EVERY: Duration = Duration::from_secs(6 * 3600);
/// After a visit that did not, and at least between any two that nobody asked for.
pub const AGAIN: Duration = Duration::from_secs(600);
/// How long one visit may take. Through Tor it needs a circuit of its own.
pub const VISIT: Duration = Duration::from_secs(60);
/// Kites that are visited at one time, each by one visitor.
pub const AT_ONCE: usize = 2;
/// Before a visit, with jitter: so that those of many kites are no volley.
pub const STAGGER: Duration = Duration::from_millis(600);
/// Visits in [`SPAN`], whoever asks for them. Beyond that the last ones must do.
pub const MOST: usize = 240;
/// See [`MOST`].
pub const SPAN: Duration = Duration::from_secs(3600);
/// How often the tunnels are looked at for kites that came up.
const LOOK: Duration = Duration::from_secs(1);

/// Whether a backend visits itself, and at which port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Witnessing {
    /// It does.
    pub enabled: bool,
    /// The frontends' port for visitors. Without it, see [`Witnessing::port`].
    pub public_port: Option<u16>,
}

impl Default for Witnessing {
    fn default() -> Self {
        Self {
            enabled: true,
            public_port: None,
        }
    }
}

impl Witnessing {
    /// Where a frontend's visitors come in, as far as one can know: at the port that backends dial, since a kite
    /// frontend takes both on each; but at 80, where foolscap's visitors are sent, if that is 443 or an onion service's.
    pub fn port(&self, frontend: &FrontendAddr) -> u16 {
        let usual = match frontend.port() {
            _ if frontend.is_onion() => crate::tahoe::PUBLIC_PORT,
            443 => crate::tahoe::PUBLIC_PORT,
            port => port,
        };
        self.public_port.unwrap_or(usual)
    }
}

/// Visits the kites of a plan.
pub struct Witness {
    plans: watch::Receiver<Plan>,
    dialer: Arc<dyn Dialer>,
    board: Board,
    how: Witnessing,
    turns: Semaphore,
    paid: Mutex<VecDeque<Instant>>,
}

/// A frontend and a kite, as the board writes them.
type Pair = (String, String);

/// A kite that flies, and where.
struct Flying {
    service: Service,
    frontends: Vec<FrontendAddr>,
}

impl Flying {
    fn pairs(&self) -> impl Iterator<Item = Pair> {
        let kite = kite_of(&self.service);
        let pair = move |f: &FrontendAddr| (f.to_string(), kite.clone());
        self.frontends.iter().map(pair)
    }
}

impl Witness {
    /// One that has seen nothing yet.
    pub fn new(
        plans: watch::Receiver<Plan>,
        dialer: Arc<dyn Dialer>,
        board: Board,
        how: Witnessing,
    ) -> Self {
        Self {
            plans,
            dialer,
            board,
            how,
            turns: Semaphore::new(AT_ONCE),
            paid: Mutex::default(),
        }
    }

    /// Visits each kite after it came up, and rarely from then on, for as long as it is polled.
    pub async fn watch(&self) {
        let mut due: HashMap<Pair, Instant> = HashMap::new();
        loop {
            sleep(LOOK).await;
            let flying = self.flying();
            // Nothing is due where nothing flies.
            due.retain(|pair, _| flying.iter().any(|kite| kite.pairs().any(|at| at == *pair)));
            for kite in flying {
                let now = Instant::now();
                let mut is_due = false;
                for pair in kite.pairs() {
                    let at = due.entry(pair).or_insert_with(|| now + jitter(SETTLED));
                    is_due |= *at <= now;
                }
                if !is_due {
                    continue;
                }
                let lately = now.checked_sub(AGAIN);
                self.round(&kite, |at| lately.is_none_or(|lately| at >= lately))
                    .await;
                let (probes, names) = (self.board.probes(), self.board.by_name());
                let failed = |p: &Probed| p.outcome == Outcome::Failed || p.finding == NO_WAY;
                let of_kite = |p: &&Probed| p.kite == kite_of(&kite.service);
                let unnamed = names.iter().filter(of_kite).any(failed);
                for pair in kite.pairs() {
                    let last = probes.iter().find(|p| is_of(p, &pair));
                    let wait = match last {
                        Some(p) if !unnamed && !failed(p) => EVERY,
                        _ => AGAIN,
                    };
                    // Whoever was neither due nor visited keeps its time.
                    let was_due = due.get(&pair).is_some_and(|at| *at <= now);
                    if was_due || last.is_some_and(|p| p.at >= now) {
                        due.insert(pair, Instant::now() + jitter(wait));
                    }
                }
            }
        }
    }

    /// Visits all kites that fly. What another has visited since this was asked for is not visited again.
    pub async fn visit_all(&self) {
        let asked = Instant::now();
        let rounds = stream::iter(self.flying());
        let round = |kite: Flying| async move { self.round(&kite, |at| at >= asked).await };
        rounds.for_each_concurrent(AT_ONCE, round).await;
    }

    /// The foolscap kites that fly, and where.
    fn flying(&self) -> Vec<Flying> {
        let plan = self.plans.borrow().clone();
        let views = self.board.view();
        let foolscap = plan.services.iter();
        let foolscap = foolscap.filter(|s| s.protocol == Protocol::Foolscap);
        let flies = |service: &Service| {
            let kite = kite_of(service);
            let is_up = |f: &FrontendAddr| {
                let at = f.to_string();
                let mut here = views.iter().filter(|v| v.frontend == at);
                here.any(|v| v.state == "up" && v.kites.contains(&kite))
            };
            let frontends = plan.frontends.iter().map(|f| f.address.clone());
            Flying {
                service: service.clone(),
                frontends: frontends.filter(is_up).collect(),
            }
        };
        let all = foolscap.map(flies);
        all.filter(|kite| !kite.frontends.is_empty()).collect()
    }

    /// Visits one kite: where its name leads, and each of its frontends that this does not prove. What was visited at a time
    /// that is fresh enough is passed over.
    async fn round(&self, kite: &Flying, is_fresh: impl Fn(Instant) -> bool) {
        // It is never closed. Whoever waited may find that another has done it.
        let Ok(_turn) = self.turns.acquire().await else {
            return;
        };
        let Flying { service, frontends } = kite;
        let name = kite_of(service);
        let is_old = |f: &&FrontendAddr| {
            let pair = (f.to_string(), name.clone());
            let probes = self.board.probes();
            let mut last = probes.iter().filter(|p| is_of(p, &pair));
            last.next().is_none_or(|p| !is_fresh(p.at))
        };
        let mut ports: Vec<u16> = frontends.iter().map(|f| self.how.port(f)).collect();
        ports.sort_unstable();
        ports.dedup();
        if !self.dialer.finds_names() || service.name.is_wildcard() {
            ports.clear();
        }
        let old: Vec<_> = frontends.iter().filter(is_old).collect();
        for port in ports {
            let to = format!("{}:{port}", service.name);
            let names = self.board.by_name();
            let mut last = names.iter().filter(|p| p.kite == name && p.to == to);
            if !old.is_empty() && last.next().is_none_or(|p| !is_fresh(p.at)) {
                self.visit(service, Goal::Name(&service.name), port).await;
            }
        }
        for frontend in old.iter().filter(|f| is_old(f)) {
            let goal = Goal::Frontend(frontend);
            self.visit(service, goal, self.how.port(frontend)).await;
        }
    }

    /// One visit, out of turn. What it found is written on the board, and said here; nothing if there were too many of late.
    pub async fn visit(&self, service: &Service, goal: Goal<'_>, port: u16) -> Option<Probed> {
        let (way, host, frontend) = match goal {
            Goal::Name(name) => (Way::Name, name.to_string(), None),
            Goal::Frontend(f) => (Way::Frontend, host_of(f), Some(f)),
        };
        let kite = kite_of(service);
        let mut began = Instant::now();
        let mut found = match frontend {
            _ if service.name.is_wildcard() => Found::unvisited(
                "wildcard",
                "the kite is a wildcard and has no name that one could visit",
            ),
            Some(f) if f.is_onion() => Found::unvisited(
                "onion",
                "an onion frontend takes no visitors at its onion address, and the kite's name does not lead to it",
            ),
            _ => {
                self.may_pay().then_some(())?;
                sleep(jitter(STAGGER)).await;
                began = Instant::now();
                match timeout(VISIT, self.go(service, goal, port)).await {
                    Ok(found) => found,
                    Err(_) => Found::timed_out(),
                }
            }
        };
        let goal = frontend.map(ToString::to_string);
        found.settle(goal.as_deref());
        let by = goal.or(found.through.take());
        let shown = by
            .clone()
            .unwrap_or_else(|| format!("its name, {host}:{port}"));
        let text = &found.text;
        match found.outcome {
            Outcome::Proven => tracing::info!("{kite} via {shown}: {text}"),
            Outcome::Reached | Outcome::NotProbed => {
                tracing::info!("{kite} via {shown}: not proven: {text}");
            }
            Outcome::Failed => {
                let code = match found.finding {
                    "other-node" => Code::OtherNode,
                    _ => Code::VisitFailed,
                };
                tracing::warn!(
                    "[{code}] {kite} via {shown}: a visitor does not come to this node: {text}"
                );
                self.board.trouble(&kite, &format!("[{code}] {text}"));
            }
        }
        let visit = Probed {
            frontend: by,
            kite,
            to: format!("{host}:{port}"),
            way,
            outcome: found.outcome,
            finding: found.finding,
            text: found.text,
            at: Instant::now(),
            took: began.elapsed(),
            record: Record::default(),
        };
        self.board.probed(visit.clone());
        self.board.scores().keep().await;
        Some(visit)
    }

    /// Whether one more may be paid now. It is counted.
    fn may_pay(&self) -> bool {
        let mut paid = self.paid.lock().unwrap_or_else(PoisonError::into_inner);
        while paid.front().is_some_and(|at| at.elapsed() >= SPAN) {
            paid.pop_front();
        }
        if paid.len() >= MOST {
            tracing::debug!("no visit is paid: there were {MOST} in the last hour");
            return false;
        }
        paid.push_back(Instant::now());
        true
    }

    async fn go(&self, service: &Service, goal: Goal<'_>, port: u16) -> Found {
        let expected = self.board.arrivals().expect();
        let mut conn = match self.dialer.visit(goal, port).await {
            Ok(conn) => conn,
            Err(e) => {
                let frontends = &self.plans.borrow().frontends;
                let hidden = frontends.iter().all(|f| f.address.is_onion());
                return Found::undialled(&e, goal, hidden);
            }
        };
        let Some(tub) = service.tub else {
            // One that belongs to nobody: a node says that it does not know it.
            let mut random = [0; TUB_ID_LEN];
            rand::RngCore::fill_bytes(&mut rand::rng(), &mut random);
            let tub = TubId::from_random(random);
            let asked = visit::ask(&mut conn, &service.name, tub).await;
            let mark = tub.as_str().as_bytes().try_into().ok();
            let arrival = mark.and_then(|mark| expected.arrival(&mark));
            let opening = probe_request(tub, &service.name);
            return Found::nameless(asked.map(drop)).seen(arrival, &opening, None);
        };
        let asked = visit::ask(&mut conn, &service.name, tub).await;
        let answer = match asked {
            Ok(answer) => answer,
            Err(e) => return Found::failed(&e),
        };
        match visit::secure(conn, tub).await {
            Ok(met) => {
                let opening = probe_request(tub, &service.name);
                let arrival = expected.arrival(&met.random);
                Found::own_node(tub).seen(arrival, &opening, Some(&answer))
            }
            Err(e) => Found::failed(&e),
        }
    }
}

fn is_of(visit: &Probed, (frontend, kite): &Pair) -> bool {
    visit.frontend.as_ref() == Some(frontend) && visit.kite == *kite
}

/// As it stands before a port.
fn host_of(frontend: &FrontendAddr) -> String {
    let host = frontend.host();
    match host.contains(':') {
        true => format!("[{host}]"),
        false => host.to_owned(),
    }
}

/// What a visit found.
struct Found {
    outcome: Outcome,
    finding: &'static str,
    text: String,
    /// The frontend that brought the visitor.
    through: Option<String>,
}

/// The finding where Tor, or the exit, did not get there.
const NO_WAY: &str = "no-way-there";

impl Found {
    fn new(outcome: Outcome, finding: &'static str, text: impl Into<String>) -> Self {
        Self {
            outcome,
            finding,
            text: text.into(),
            through: None,
        }
    }

    /// Nobody went there, for this reason.
    fn unvisited(finding: &'static str, why: &str) -> Self {
        Self::new(Outcome::NotProbed, finding, why)
    }

    /// The visitor came to the end of its way, and this is what it said and was answered. How we have seen it come in, if we
    /// have, must be the same, byte for byte: nobody else vouches for what is said before TLS.
    fn seen(self, arrival: Option<Arrival>, opening: &[u8], answer: Option<&[u8]>) -> Self {
        let Some(arrival) = arrival else {
            return self;
        };
        let sent = Imprint::of(opening);
        let got = answer.map(Imprint::of);
        let by = &arrival.frontend;
        let found = match got {
            _ if arrival.opening != sent => Self::altered(format!(
                "what the visitor opened with, {} bytes, came in by {by} as {} other bytes",
                sent.length, arrival.opening.length
            )),
            Some(got) if arrival.answer != got => Self::altered(format!(
                "what the node answered to the opening, {} bytes, went out by {by} and came to the visitor as {} other bytes",
                arrival.answer.length, got.length
            )),
            _ => self,
        };
        Self {
            through: Some(arrival.frontend),
            ..found
        }
    }

    fn altered(what: String) -> Self {
        let remedy = "something on the way rewrites what passes: the frontend, or a proxy before it; have its operator pass on TCP as it is";
        Self::new(Outcome::Failed, "altered", format!("{what}; {remedy}"))
    }

    /// What came by another frontend than it went to, or by none of ours, has proven nothing of where it went.
    fn settle(&mut self, goal: Option<&str>) {
        if self.outcome != Outcome::Proven {
            return;
        }
        let how = match (goal, self.through.as_deref()) {
            (Some(goal), Some(by)) if by == goal => return,
            (None, Some(_)) => return,
            (_, Some(by)) => format!("it came in by {by}, to which this frontend's address leads"),
            (_, None) => "it came in by none of this backend's tunnels: another backend flies the kite, too, or the \
                          name leads to the node in another way"
                .to_owned(),
        };
        *self = Self {
            through: self.through.take(),
            ..Self::new(
                Outcome::Reached,
                "other-way",
                format!("a visitor from outside comes to this node, but {how}"),
            )
        };
    }

    fn own_node(tub: TubId) -> Self {
        Self::new(
            Outcome::Proven,
            "own-node",
            format!(
                "a visitor from outside comes to this node, tub {}, and nothing was changed on the way",
                tub.as_str()
            ),
        )
    }

    fn timed_out() -> Self {
        Self::new(
            Outcome::Failed,
            "timed-out",
            format!(
                "no answer within {} s; look whether the tunnel stands, and at the frontend",
                VISIT.as_secs()
            ),
        )
    }

    /// Where Tor, or the exit, is to blame, nothing is known of the kite.
    fn undialled(error: &DialError, goal: Goal<'_>, hidden: bool) -> Self {
        let (outcome, finding) = match error {
            // The name of a kite at onion frontends may be known to nobody outside.
            DialError::NameNotFound if hidden => (Outcome::NotProbed, NO_WAY),
            DialError::NameNotFound => (Outcome::Failed, "name-not-found"),
            DialError::Refused
            | DialError::Closed
            | DialError::Unreachable
            | DialError::TimedOut => (Outcome::Failed, "unreachable"),
            _ => (Outcome::NotProbed, NO_WAY),
        };
        let text = match (error, goal) {
            (DialError::NameNotFound, Goal::Name(_)) => {
                "the kite's name was not found; have its DNS record lead to the frontend".to_owned()
            }
            _ => format!(
                "the frontend's port for visitors could not be reached: {error}; \
                 if it is another port, set public_port under [probe]"
            ),
        };
        Self::new(outcome, finding, text)
    }

    fn failed(error: &VisitError) -> Self {
        let (finding, remedy) = match error {
            VisitError::Refused { status, line } => match status {
                Some(503) => (
                    "not-up",
                    "the frontend does not know the kite, or its origin is down",
                ),
                Some(403) => (
                    "forbidden",
                    "the frontend does not carry foolscap for this name; ask its operator",
                ),
                Some(429) => ("limits", "the kite's limits at the frontend are used up"),
                Some(404 | 500) if line.contains("unknown TubID") => (
                    "other-node",
                    "the node has another key than tub_id says; correct tub_id, or the name leads to another's node",
                ),
                _ => (
                    "altered",
                    "something on the way does not pass foolscap's opening on as it is",
                ),
            },
            VisitError::OtherNode(_) => (
                "other-node",
                "the name leads to another's node: it was taken over, or tub_id is wrong",
            ),
            VisitError::Tls(_) => ("altered", "something on the way changes what passes"),
            VisitError::Closed | VisitError::Broke(_) => {
                ("closed", "the frontend, or something before it, hung up")
            }
        };
        Self::new(Outcome::Failed, finding, format!("{error}; {remedy}"))
    }

    /// Without a tub, a node can say that it is one, and no more.
    fn nameless(asked: Result<(), VisitError>) -> Self {
        match asked {
            Ok(()) => Self::reached(),
            Err(VisitError::Refused { line, .. }) if line.contains("unknown TubID") => {
                Self::reached()
            }
            Err(e) => Self::failed(&e),
        }
    }

    fn reached() -> Self {
        Self::new(
            Outcome::Reached,
            "some-node",
            "a visitor from outside comes to a foolscap node; set tub_id, and it is seen whether it is this one",
        )
    }
}
