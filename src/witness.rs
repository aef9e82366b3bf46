//! A backend's own visitor: goes to its foolscap kites from outside, where any visitor goes, and sees whether it comes
//! to the node that it left.
//!
//! Through Tor it goes through an exit, on a circuit that nothing else uses, to the kite's public name. In direct mode
//! it goes to the frontend's address. It uses the dialer that the backend was given, and so has no other way.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::join_all;
use tokio::sync::watch;
use tokio::time::timeout;

use crate::backend::Plan;
use crate::code::Code;
use crate::config::Service;
use crate::dial::{DialError, Dialer, FrontendAddr};
use crate::kite::Protocol;
use crate::observe::board::{Board, Probed, kite_of};
use crate::observe::status::Outcome;
use crate::random::jitter;
use crate::sniff::TubId;
use crate::sniff::foolscap::TUB_ID_LEN;
use crate::visit::{self, VisitError};

/// After a kite came up, before its first visitor of ours comes.
pub const SETTLED: Duration = Duration::from_secs(2);
/// Between two visits that found all well, with jitter: rarely enough to be no beacon.
pub const EVERY: Duration = Duration::from_secs(6 * 3600);
/// After a visit that did not, and at least between any two.
pub const AGAIN: Duration = Duration::from_secs(600);
/// How long one visit may take. Through Tor it needs a circuit of its own.
pub const VISIT: Duration = Duration::from_secs(60);
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
}

/// A frontend and a kite, as the board writes them.
type Pair = (String, String);

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
        }
    }

    /// Visits each kite after it came up, and rarely from then on, for as long as it is polled.
    pub async fn watch(&self) {
        let mut due: HashMap<Pair, Instant> = HashMap::new();
        let mut visited: HashMap<Pair, Instant> = HashMap::new();
        loop {
            tokio::time::sleep(LOOK).await;
            let flying = self.flying();
            // Nothing is due where nothing flies.
            due.retain(|pair, _| flying.iter().any(|(_, _, at)| at == pair));
            let now = Instant::now();
            for (frontend, service, pair) in flying {
                let earliest = visited.get(&pair).map(|last| *last + AGAIN);
                let first = earliest.map_or(now + SETTLED, |at| at.max(now + SETTLED));
                let at = *due.entry(pair.clone()).or_insert(first);
                if at > now {
                    continue;
                }
                let outcome = self.visit(&frontend, &service).await;
                let wait = match outcome {
                    Outcome::Proven | Outcome::Reached => EVERY,
                    Outcome::Failed | Outcome::NotProbed => AGAIN,
                };
                visited.insert(pair.clone(), Instant::now());
                due.insert(pair, Instant::now() + jitter(wait));
            }
            visited.retain(|_, last| last.elapsed() < 2 * EVERY);
        }
    }

    /// Visits all kites that fly, now.
    pub async fn visit_all(&self) {
        let flying = self.flying();
        let visits = flying.iter().map(|(frontend, service, _)| async {
            let _ = self.visit(frontend, service).await;
        });
        join_all(visits).await;
    }

    /// The foolscap kites that fly, and where.
    fn flying(&self) -> Vec<(FrontendAddr, Service, Pair)> {
        let plan = self.plans.borrow().clone();
        let views = self.board.view();
        let mut flying = Vec::new();
        for frontend in &plan.frontends {
            for service in &plan.services {
                let pair = (frontend.address.to_string(), kite_of(service));
                let up = views
                    .iter()
                    .any(|v| v.state == "up" && v.frontend == pair.0 && v.kites.contains(&pair.1));
                if up && service.protocol == Protocol::Foolscap {
                    flying.push((frontend.address.clone(), service.clone(), pair));
                }
            }
        }
        flying
    }

    /// One visit. What it found is written on the board.
    pub async fn visit(&self, frontend: &FrontendAddr, service: &Service) -> Outcome {
        let began = Instant::now();
        let port = self.how.port(frontend);
        let found = match () {
            () if service.name.is_wildcard() => Found {
                outcome: Outcome::NotProbed,
                finding: "wildcard",
                text: "the kite is a wildcard and has no name that one could visit".to_owned(),
            },
            () => match timeout(VISIT, self.go(frontend, service, port)).await {
                Ok(found) => found,
                Err(_) => Found::timed_out(),
            },
        };
        let kite = kite_of(service);
        let address = frontend.to_string();
        match found.outcome {
            Outcome::Proven => tracing::info!("{kite} via {address}: {}", found.text),
            Outcome::Reached | Outcome::NotProbed => {
                tracing::info!("{kite} via {address}: not proven: {}", found.text);
            }
            Outcome::Failed => {
                let code = match found.finding {
                    "other-node" => Code::OtherNode,
                    _ => Code::VisitFailed,
                };
                tracing::warn!(
                    "[{code}] {kite} via {address}: a visitor does not come to this node: {}",
                    found.text
                );
                self.board
                    .trouble(&kite, &format!("[{code}] {}", found.text));
            }
        }
        self.board.probed(Probed {
            frontend: address,
            kite,
            to: format!("{}:{port}", service.name),
            outcome: found.outcome,
            finding: found.finding,
            text: found.text,
            at: Instant::now(),
            took: began.elapsed(),
        });
        found.outcome
    }

    async fn go(&self, frontend: &FrontendAddr, service: &Service, port: u16) -> Found {
        let dialled = self.dialer.visit(frontend, &service.name, port).await;
        let mut conn = match dialled {
            Ok(conn) => conn,
            Err(e) => return Found::undialled(&e, frontend),
        };
        let tub = match service.tub {
            Some(tub) => tub,
            None => {
                // One that belongs to nobody: a node says that it does not know it.
                let mut random = [0; TUB_ID_LEN];
                rand::RngCore::fill_bytes(&mut rand::rng(), &mut random);
                let tub = TubId::from_random(random);
                return Found::nameless(visit::ask(&mut conn, &service.name, tub).await);
            }
        };
        let asked = visit::ask(&mut conn, &service.name, tub).await;
        match asked {
            Ok(()) => match visit::secure(conn, tub).await {
                Ok(_) => Found {
                    outcome: Outcome::Proven,
                    finding: "own-node",
                    text: format!(
                        "a visitor from outside comes to this node, tub {tub}, and nothing was changed on the way",
                        tub = tub.as_str()
                    ),
                },
                Err(e) => Found::failed(&e),
            },
            Err(e) => Found::failed(&e),
        }
    }
}

/// What a visit found.
struct Found {
    outcome: Outcome,
    finding: &'static str,
    text: String,
}

impl Found {
    fn timed_out() -> Self {
        Self {
            outcome: Outcome::Failed,
            finding: "timed-out",
            text: format!(
                "no answer within {} s; look whether the tunnel stands, and at the frontend",
                VISIT.as_secs()
            ),
        }
    }

    /// Where Tor, or the exit, is to blame, nothing is known of the kite.
    fn undialled(error: &DialError, frontend: &FrontendAddr) -> Self {
        let unknown = match error {
            DialError::Refused | DialError::Closed => false,
            // The name of a kite at an onion frontend may be known to nobody outside.
            DialError::NameNotFound => frontend.is_onion(),
            DialError::Unreachable | DialError::TimedOut => false,
            _ => true,
        };
        let (outcome, finding) = match (unknown, error) {
            (true, _) => (Outcome::NotProbed, "no-way-there"),
            (false, DialError::NameNotFound) => (Outcome::Failed, "name-not-found"),
            (false, _) => (Outcome::Failed, "unreachable"),
        };
        let text = match error {
            DialError::NameNotFound => {
                "the kite's name was not found; have its DNS record lead to the frontend".to_owned()
            }
            _ => format!(
                "the frontend's port for visitors could not be reached: {error}; \
                 if it is another port, set public_port under [probe]"
            ),
        };
        Self {
            outcome,
            finding,
            text,
        }
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
        Self {
            outcome: Outcome::Failed,
            finding,
            text: format!("{error}; {remedy}"),
        }
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
        Self {
            outcome: Outcome::Reached,
            finding: "some-node",
            text: "a visitor from outside comes to a foolscap node; set tub_id, and it is seen whether it is this one"
                .to_owned(),
        }
    }
}
