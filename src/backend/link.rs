//! One of the tunnels to one frontend: dialled, flown, lost, and dialled again.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::watch::Receiver;
use tokio::task::JoinSet;

use super::flight::{Crew, Fate, Flight, RETIRE};
use super::homes::Homes;
use super::keys::Keys;
use super::later::{Later, Terms, named_at_first};
use super::report::{Report, flown, keep_unread, shown_kite, wanted};
use super::siblings::Siblings;
use super::stream::Noise;
use super::watch::Watch;
use super::{
    HANDSHAKE_TIMEOUT, LIVED, QUICK_FOR, RETRY_FIRST, RETRY_MAX, RETRY_QUICK, RETRY_REFUSED,
};
use crate::code::{Code, Coded};
use crate::config::Service;
use crate::dial::{BoxConn, DialError, Dialer, Dialled, FrontendAddr, Lane, Trust};
use crate::observe::board::{Board, Slot, Stage};
use crate::random::{jitter, random_hex};
use crate::shutdown::Shutdown;
use crate::tunnel::buffer::{BUFFER_PAYLOAD, Pool};
use crate::tunnel::mux::{Liveness, RECV_WINDOW_KB, Settings, Side};
use crate::tunnel::{Ended, Tunnel};
use crate::wire::Binding;
use crate::wire::handshake::{
    BackendHandshake, HandshakeError, Options, ProofPolicy, RefusalKind, Step, Verdict,
};
use crate::wire::mark::MarkKey;

/// Asked of the connection at once during the handshake, in bytes.
const READ: usize = 4 * 1024;

/// The kites to fly at one frontend. They change when the configuration is read again.
pub(super) type Services = Arc<Vec<Service>>;

/// What all tunnels of a backend have in common.
pub(super) struct Base {
    pub(super) dialer: Arc<dyn Dialer>,
    pub(super) watch: Arc<Watch>,
    pub(super) noise: Arc<Noise>,
    pub(super) keys: Arc<Keys>,
    pub(super) board: Board,
    pub(super) pool: Pool,
    /// How long streams may go on after the order to stop.
    pub(super) drain: Duration,
    pub(super) homes: Homes,
    /// What we are known by in fleets.
    pub(super) mark: MarkKey,
}

/// One of the tunnels to one frontend.
pub(super) struct Link {
    address: FrontendAddr,
    lane: Lane,
    services: Receiver<Services>,
    /// What the last handshake asked for.
    asked: Services,
    /// The first of them that the next handshake names: others than those that have been refused alone.
    first: usize,
    dialer: Arc<dyn Dialer>,
    pool: Pool,
    watch: Arc<Watch>,
    noise: Arc<Noise>,
    keys: Arc<Keys>,
    siblings: Arc<Siblings>,
    homes: Homes,
    mark: MarkKey,
    slot: Slot,
    /// The frontend in logs; with the tunnel's number, if there are several.
    shown: String,
    /// The last tunnel's name, so that the next replaces it instead of being its rival.
    session: Option<String>,
    /// The name of what is the matter, once it has been logged.
    trouble: Option<&'static str>,
    /// This frontend drops tunnels that send PING (protocol page §8).
    dies_of_ping: bool,
}

/// Why there is no tunnel.
#[derive(Debug, thiserror::Error)]
enum LinkError {
    #[error("{} ({})", .0, .0.hint())]
    Dial(#[from] DialError),
    #[error(transparent)]
    Handshake(#[from] HandshakeError),
    #[error("the connection broke during the handshake: {}; look at the frontend's log", .0.kind())]
    Io(#[from] std::io::Error),
    #[error("the frontend closed the connection during the handshake; look at its log")]
    Closed,
    #[error("the frontend gave no verdict within {} s; look at its log", HANDSHAKE_TIMEOUT.as_secs())]
    TimedOut,
    #[error("the frontend refused every kite; the lines `kite refused` before this one say why")]
    AllRefused,
}

impl LinkError {
    /// The state's name; docs/states.md lists them.
    fn name(&self) -> &'static str {
        match self {
            Self::Dial(e) => e.name(),
            Self::AllRefused => "kites-refused",
            Self::Handshake(_) | Self::Io(_) | Self::Closed | Self::TimedOut => "handshake-failed",
        }
    }

    fn code(&self) -> Code {
        match self {
            Self::Dial(e) => e.code(),
            Self::AllRefused => Code::KitesRefused,
            Self::Handshake(_) | Self::Io(_) | Self::Closed | Self::TimedOut => {
                Code::HandshakeFailed
            }
        }
    }

    /// Nobody listens on the frontend's port.
    fn is_refusal(&self) -> bool {
        matches!(self, Self::Dial(DialError::Refused))
    }

    /// The connection stood, and brought nothing: perhaps another circuit does.
    fn blames_path(&self) -> bool {
        // The dialer itself has seen to its own.
        matches!(self, Self::Io(_) | Self::Closed | Self::TimedOut)
    }
}

impl Link {
    /// One that has dialled nothing yet.
    pub(super) fn new(
        base: &Base,
        address: FrontendAddr,
        lane: Lane,
        services: Receiver<Services>,
        siblings: Arc<Siblings>,
    ) -> Self {
        Self {
            lane,
            asked: Services::default(),
            first: 0,
            services,
            dialer: base.dialer.clone(),
            pool: base.pool.clone(),
            watch: base.watch.clone(),
            noise: base.noise.clone(),
            keys: base.keys.clone(),
            siblings,
            homes: base.homes.clone(),
            mark: base.mark.clone(),
            slot: base.board.slot(&address.to_string(), lane),
            shown: match lane {
                Lane(0) => address.to_string(),
                Lane(n) => format!("{address} (tunnel {})", n + 1),
            },
            address,
            session: None,
            trouble: None,
            dies_of_ping: false,
        }
    }

    /// Dials, flies, and begins again, until `shutdown`.
    pub(super) async fn keep(mut self, shutdown: Shutdown) {
        let mut flights = JoinSet::new();
        tokio::select! {
            () = self.keep_on(&mut flights, &shutdown) => {}
            () = shutdown.requested() => {}
        }
        // Each flight hears the order itself, and lets its streams end.
        while flights.join_next().await.is_some() {}
    }

    async fn keep_on(&mut self, flights: &mut JoinSet<()>, shutdown: &Shutdown) {
        let mut wait = RETRY_FIRST;
        let mut lost: Option<Instant> = None;
        let mut current: Option<Flight> = None;
        // Nothing is wrong with the one that another is made for, as far as its streams can tell.
        let mut outdated = false;
        let siblings = self.siblings.clone();
        loop {
            if current.is_none() {
                if self.lane != Lane(0) {
                    self.slot.set(Stage::Idle);
                    self.siblings.wanted().await;
                }
                self.slot.set(Stage::Dialling);
            }
            let turn = match outdated {
                true => Some(siblings.turn().await),
                false => None,
            };
            let failing = current.as_ref().and_then(|f| f.verdict.session_id.clone());
            let outcome = self.connect(failing).await;
            match outcome {
                Ok((tunnel, verdict, later)) => {
                    self.trouble = None;
                    let mut next = self.fly(flights, tunnel, verdict, later, shutdown);
                    drop(turn);
                    if let Some(old) = current.take() {
                        let now: Vec<_> = next.offered().chain(next.to_come()).collect();
                        let gone = old.verdict.flying.iter().map(flown);
                        for (proto, name) in gone.filter(|kite| !now.contains(kite)) {
                            tracing::info!("kite down: {proto}:{name} via {}", self.shown);
                        }
                        // If nothing is wrong with it, its streams have all the time they want.
                        next.succeed(old, (!outdated).then_some(RETIRE));
                    }
                    current = Some(next);
                }
                Err(e) => {
                    drop(turn);
                    self.complain(&e);
                    if e.blames_path() {
                        self.dialer.leave(&self.address, self.lane);
                    }
                    let cheap = e.is_refusal() && self.dialer.refusals_are_cheap();
                    let restarts = cheap && lost.is_some_and(|at| at.elapsed() < QUICK_FOR);
                    let mut quick = RETRY_QUICK;
                    let (wait, most) = match e {
                        _ if restarts => (&mut quick, RETRY_QUICK),
                        LinkError::AllRefused => (&mut wait, RETRY_REFUSED),
                        _ => (&mut wait, RETRY_MAX),
                    };
                    self.pause(wait, most, current.is_none()).await;
                }
            }
            outdated = false;
            let Some(flight) = &mut current else { continue };
            match flight.watch(&mut self.services, &self.slot).await {
                Fate::Lost(why) => {
                    let lived = flight.since.elapsed();
                    self.lost(flight, &why);
                    current = None;
                    if lived >= LIVED {
                        lost = Some(Instant::now());
                        wait = RETRY_FIRST;
                    }
                    self.pause(&mut wait, RETRY_MAX, true).await;
                }
                // It is replaced before it is given up.
                Fate::Suspect => {
                    tracing::info!(
                        "frontend {}: it does not answer; making another tunnel on another way",
                        self.shown
                    );
                    self.dialer.leave(&self.address, self.lane);
                }
                Fate::Silent => {
                    tracing::info!(
                        "frontend {}: a visitor of our own did not come through; making another tunnel on another way",
                        self.shown
                    );
                    self.dialer.leave(&self.address, self.lane);
                    outdated = true;
                }
                Fate::Outdated => {
                    tracing::info!(
                        "frontend {}: its kites have changed; making another tunnel for them",
                        self.shown
                    );
                    outdated = true;
                }
                Fate::Leaving { said } => {
                    if !said {
                        tracing::info!(
                            "frontend {}: it stops, or starts anew; making another tunnel",
                            self.shown
                        );
                        lost = Some(Instant::now());
                        wait = RETRY_FIRST;
                    }
                    outdated = true;
                }
            }
        }
    }

    /// One line for each state, not for each try; and none for Tor's, which speaks for itself.
    fn complain(&mut self, error: &LinkError) {
        let (name, code, shown) = (error.name(), error.code(), &self.shown);
        let tors = matches!(error, LinkError::Dial(e) if e.is_tors());
        if tors || self.trouble.replace(name) == Some(name) {
            tracing::debug!("frontend {shown}: {name}: {error}");
        } else {
            tracing::warn!("[{code}] frontend {shown}: {name}: {error}");
        }
        self.slot.failed(&format!("[{code}] {name}: {error}"));
    }

    /// Waits before the next attempt, twice as long each time. Jitter keeps backends from
    /// returning in step. Two frontends that a node loses at one instant can still tell that it came back at one time.
    /// Ends early when the kites change: that may have been the trouble.
    async fn pause(&mut self, wait: &mut Duration, most: Duration, show: bool) {
        let pause = jitter(*wait);
        *wait = (*wait * 2).min(most);
        tracing::debug!(
            "frontend {}: retry in {:.1} s",
            self.shown,
            pause.as_secs_f64()
        );
        if show {
            self.slot.set(Stage::Waiting(Instant::now() + pause));
        }
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            Ok(()) = self.services.changed() => {
                self.trouble = None;
                *wait = RETRY_FIRST;
            }
        }
    }

    /// One attempt at a tunnel; beside the session `failing`, if that is to be replaced.
    async fn connect(
        &mut self,
        failing: Option<String>,
    ) -> Result<(Tunnel, Box<Verdict>, Later), LinkError> {
        self.asked = self.services.borrow_and_update().clone();
        let named = named_at_first(&self.asked, self.first);
        let Dialled { mut conn, binding } = self.dialer.dial(&self.address, self.lane).await?;
        let proof = self.proof_policy(binding)?;
        let retire = failing.clone();
        let handshake = self.shake_hands(&mut conn, &named, proof.clone(), failing);
        let (buf, mut verdict, redialled) =
            match tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake).await {
                Ok(done) => done?,
                Err(_) => return Err(LinkError::TimedOut),
            };
        let conn = redialled.unwrap_or(conn);
        keep_unread(&self.asked, &mut verdict);
        let terms = Terms {
            proof,
            proven: verdict.agreed,
            peer: verdict.peer.clone(),
            retire,
            mark: self.mark.clone(),
            keys: self.keys.clone(),
            watch: self.watch.clone(),
            siblings: self.siblings.clone(),
        };
        let mut later = Later::new(self.asked.clone(), terms);
        later.learn(&verdict, Instant::now());
        later.ask_for_the_rest(&named, &mut verdict, Instant::now());
        let shown = &self.shown;
        tracing::info!("frontend {shown}: connected ({})", self.dialer.describe());
        let report = self.report();
        report.kites(&verdict);
        report.proof(&verdict);
        if let Some(motd) = &verdict.motd {
            tracing::info!("frontend {shown} says: {motd}");
        }
        if verdict.flying.is_empty() && verdict.heard.is_empty() {
            self.first = (self.first + named.len()) % self.asked.len().max(1);
            // Another tunnel of ours may still be in the way; its name is worth keeping.
            return Err(LinkError::AllRefused);
        }
        self.homes.hear(&self.address, &verdict);
        self.session.clone_from(&verdict.session_id);
        let liveness = if self.dies_of_ping {
            Liveness::QUIET
        } else {
            Liveness::DEFAULT
        };
        let settings = Settings::agreed(Side::Backend, verdict.peer.kite_mux, liveness);
        let tunnel = Tunnel::start(conn, buf, settings, self.pool.clone());
        Ok((tunnel, verdict, later))
    }

    fn fly(
        &self,
        flights: &mut JoinSet<()>,
        tunnel: Tunnel,
        verdict: Box<Verdict>,
        later: Later,
        shutdown: &Shutdown,
    ) -> Flight {
        self.slot.set(Stage::Up(tunnel.clone()));
        let kites = verdict.flying.iter().map(|id| shown_kite(&self.asked, id));
        self.slot.flies(kites.collect());
        let crew = Crew {
            services: self.services.clone(),
            watch: self.watch.clone(),
            noise: self.noise.clone(),
            frontend: self.shown.clone(),
            address: self.address.clone(),
            homes: self.homes.clone(),
            siblings: self.siblings.clone(),
            shutdown: shutdown.clone(),
            tally: self.slot.tally(),
        };
        Flight::start(flights, tunnel, verdict, (self.asked.clone(), later), crew)
    }

    /// Says that a tunnel is gone, and learns from it.
    fn lost(&mut self, flight: &mut Flight, why: &Ended) {
        flight.part();
        // pagekite.py gives a tunnel another name with each verdict.
        self.session.clone_from(&flight.verdict.session_id);
        for id in flight.unanswered(true) {
            self.report().refused(&id, &RefusalKind::Unanswered);
        }
        if flight.verdict.peer.kite_mux.is_none()
            && matches!(why, Ended::ByPeer | Ended::Io(_))
            && flight.tunnel.ping_unanswered()
        {
            tracing::info!(
                "frontend {}: it seems to drop tunnels at a PING; none from now on",
                self.shown
            );
            self.dies_of_ping = true;
        }
        for id in &flight.verdict.flying {
            let kite = shown_kite(&self.asked, id);
            tracing::info!("kite down: {kite} via {}", self.shown);
        }
        let lost = format!("lost after {} s: {why}", flight.since.elapsed().as_secs());
        let code = Code::TunnelLost;
        tracing::warn!("[{code}] frontend {}: {lost}; kite dials again", self.shown);
        self.slot.failed(&format!("[{code}] {lost}"));
    }

    /// The handshake; the connection it ended on, if that is a new one.
    async fn shake_hands(
        &self,
        conn: &mut BoxConn,
        named: &[usize],
        proof: ProofPolicy,
        failing: Option<String>,
    ) -> Result<(BytesMut, Box<Verdict>, Option<BoxConn>), LinkError> {
        let services = named.iter().filter_map(|at| self.asked.get(*at));
        let wanted = services.map(|s| wanted(s, &self.keys));
        let options = Options {
            replace: self.session.clone().filter(|s| !self.siblings.stands(s)),
            offer_beside: true,
            beside: self.siblings.standing(),
            retire: failing,
            window_kb: RECV_WINDOW_KB,
            frame: BUFFER_PAYLOAD as u32,
            offer_mux: true,
            proof,
            mark: Some(self.mark.clone()),
        };
        let (mut machine, request) =
            BackendHandshake::new(wanted.collect(), options, || random_hex(8));
        let mut redialled: Option<BoxConn> = None;
        let mut buf = BytesMut::new();
        send(conn, &request).await?;
        loop {
            let conn = redialled.as_mut().unwrap_or(conn);
            match machine.step(&mut buf)? {
                Step::Done(verdict) => return Ok((buf, verdict, redialled)),
                Step::Send(bytes) => send(conn, &bytes).await?,
                Step::Redial(request) => {
                    let _ = conn.shutdown().await;
                    let mut next = self.dialer.dial(&self.address, self.lane).await?.conn;
                    send(&mut next, &request).await?;
                    redialled = Some(next);
                    buf.clear();
                }
                Step::NeedMore => {
                    buf.reserve(READ);
                    if conn.read_buf(&mut buf).await? == 0 {
                        return Err(LinkError::Closed);
                    }
                }
            }
        }
    }

    /// A pin is a key that only a kite frontend prints, so one that has no proof is an
    /// impostor or a relic. Behind a certificate, or an onion name, may be an old program.
    fn proof_policy(&self, binding: Option<Binding>) -> Result<ProofPolicy, HandshakeError> {
        match (self.address.trust(), binding) {
            (Trust::Pin(_), Some(binding)) => Ok(ProofPolicy::Demand(binding)),
            // A pinned session is TLS 1.3 and always has one; if not, nothing is said there.
            (Trust::Pin(_), None) => Err(HandshakeError::NoProof),
            (Trust::Roots | Trust::Names(_) | Trust::Onion, Some(binding)) => {
                Ok(ProofPolicy::Offer(binding))
            }
            (Trust::Roots | Trust::Names(_) | Trust::Onion | Trust::Plain, _) => {
                Ok(ProofPolicy::Off)
            }
        }
    }

    fn report(&self) -> Report<'_> {
        Report {
            asked: &self.asked,
            frontend: &self.shown,
            trust: self.address.trust(),
            noise: &self.noise,
            slot: &self.slot,
        }
    }
}

async fn send(conn: &mut BoxConn, bytes: &[u8]) -> std::io::Result<()> {
    conn.write_all(bytes).await?;
    conn.flush().await
}
