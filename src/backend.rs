//! The hidden side: keeps a tunnel to every frontend, and passes its streams on to
//! the origin once they have shown that they are what the kite is for.
//!
//! This room is handed one [`Dialer`] and asks it for everything: it cannot tell
//! Tor from direct, and has no way of its own to open a connection to a frontend.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinSet;

pub mod policy;
pub mod probe;
mod stream;

use crate::config::{Frontend, Service};
use crate::dial::{BoxConn, DialError, Dialer, Dialled, FrontendAddr, Trust};
use crate::random::{jitter, random_hex};
use crate::shutdown::Shutdown;
use crate::tunnel::buffer::{BUFFER_PAYLOAD, Pool};
use crate::tunnel::mux::{LEGACY_WINDOW, Liveness, MAX_STREAMS, RECV_WINDOW_KB, Settings, Side};
use crate::tunnel::{Ended, Tunnel};
use crate::wire::handshake::{
    BackendHandshake, HandshakeError, Options, ProofPolicy, RefusalKind, Step, Verdict, Wanted,
};
use crate::wire::{Binding, KiteId};

/// The first wait before a frontend is dialled again.
pub const RETRY_FIRST: Duration = Duration::from_millis(500);
/// The longest wait between two tries.
pub const RETRY_MAX: Duration = Duration::from_secs(30);
/// The longest wait after a frontend refused all kites: that is for people to mend.
pub const RETRY_REFUSED: Duration = Duration::from_secs(120);
/// A tunnel that lived this long was a success: waits begin anew after it.
pub const LIVED: Duration = Duration::from_secs(30);
/// How long a frontend may take from our request to its verdict. Over Tor each of
/// the round trips can take seconds.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(60);
/// How long open streams may go on after the order to stop.
pub const DRAIN: Duration = Duration::from_secs(5);
/// Payload of a frame to a frontend of unknown kind, in bytes: what pagekite.py's own
/// backend sends at most (protocol page §6.5). Its frontend passes no more on at once,
/// holds back what is over, and then cuts off a visitor who has half-closed.
const LEGACY_PAYLOAD: usize = 16 * 1024 - 128;
/// Asked of the connection at once during the handshake, in bytes.
const READ: usize = 4 * 1024;

/// Keeps a tunnel to each of `frontends` until `shutdown`.
pub async fn run(
    frontends: Vec<Frontend>,
    services: Vec<Service>,
    dialer: Arc<dyn Dialer>,
    shutdown: Shutdown,
) {
    let services = Arc::new(services);
    let pool = Pool::new();
    let mut tasks = JoinSet::new();
    for frontend in frontends {
        if *frontend.address.trust() == Trust::Plain {
            tracing::warn!(
                "frontend {}: plain:// is not protected; whoever carries the connection can take the kite over",
                frontend.address
            );
        }
        let flown: Vec<Service> = services
            .iter()
            .filter(|s| {
                frontend
                    .kites
                    .as_ref()
                    .is_none_or(|names| names.contains(&s.name))
            })
            .cloned()
            .collect();
        let link = Link {
            address: frontend.address,
            services: Arc::new(flown),
            dialer: dialer.clone(),
            pool: pool.clone(),
            memory: Memory::default(),
        };
        tasks.spawn(link.keep(shutdown.clone()));
    }
    while tasks.join_next().await.is_some() {}
}

/// One frontend and the tunnel to it.
struct Link {
    address: FrontendAddr,
    services: Arc<Vec<Service>>,
    dialer: Arc<dyn Dialer>,
    pool: Pool,
    memory: Memory,
}

/// What is remembered of a frontend from one tunnel to the next.
#[derive(Default)]
struct Memory {
    /// The last tunnel's name, so that the next replaces it instead of being its rival.
    session: Option<String>,
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
    #[error("the connection broke during the handshake: {}", .0.kind())]
    Io(#[from] std::io::Error),
    #[error("the frontend closed the connection during the handshake")]
    Closed,
    #[error("the frontend gave no verdict within {} s", HANDSHAKE_TIMEOUT.as_secs())]
    TimedOut,
    #[error("the frontend refused every kite")]
    AllRefused,
}

/// A tunnel and what was agreed for it.
struct Flight {
    tunnel: Tunnel,
    verdict: Box<Verdict>,
}

impl Link {
    /// Dials, flies, and begins again, until `shutdown`.
    async fn keep(mut self, shutdown: Shutdown) {
        let mut wait = RETRY_FIRST;
        loop {
            let mut refused = false;
            let attempt = tokio::select! {
                attempt = self.connect() => attempt,
                () = shutdown.requested() => return,
            };
            match attempt {
                Ok(flight) => {
                    let since = Instant::now();
                    if self.fly(flight, &shutdown).await.is_break() {
                        return;
                    }
                    if since.elapsed() >= LIVED {
                        wait = RETRY_FIRST;
                    }
                }
                Err(e) => {
                    tracing::warn!("frontend {}: {e}", self.address);
                    refused = matches!(e, LinkError::AllRefused);
                }
            }
            // Jitter keeps backends from returning in step, and frontends from linking
            // one node's reconnects by their instants.
            let pause = jitter(wait);
            tracing::info!(
                "frontend {}: retry in {:.1} s",
                self.address,
                pause.as_secs_f64()
            );
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = shutdown.requested() => return,
            }
            wait = (wait * 2).min(if refused { RETRY_REFUSED } else { RETRY_MAX });
        }
    }

    /// One attempt at a tunnel.
    async fn connect(&mut self) -> Result<Flight, LinkError> {
        let Dialled { mut conn, binding } = self.dialer.dial(&self.address).await?;
        let handshake = self.shake_hands(&mut conn, self.proof_policy(binding)?);
        let (buf, verdict, redialled) =
            match tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake).await {
                Ok(done) => done?,
                Err(_) => return Err(LinkError::TimedOut),
            };
        let conn = redialled.unwrap_or(conn);
        self.report(&verdict);
        if verdict.flying.is_empty() {
            // Another tunnel of ours may still be in the way; its name is worth keeping.
            return Err(LinkError::AllRefused);
        }
        self.memory.session.clone_from(&verdict.session_id);
        let tunnel = Tunnel::start(conn, buf, self.settings(&verdict), self.pool.clone());
        Ok(Flight { tunnel, verdict })
    }

    /// The handshake; the connection it ended on, if that is a new one.
    async fn shake_hands(
        &self,
        conn: &mut BoxConn,
        proof: ProofPolicy,
    ) -> Result<(BytesMut, Box<Verdict>, Option<BoxConn>), LinkError> {
        let wanted = self.services.iter().map(|s| Wanted {
            proto: s.protocol.on_wire().to_owned(),
            name: s.name.clone(),
            secret: s.secret.clone(),
            bsalt: random_hex(36),
        });
        let options = Options {
            replace: self.memory.session.clone(),
            window_kb: RECV_WINDOW_KB,
            frame: BUFFER_PAYLOAD as u32,
            offer_mux: true,
            proof,
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
                    let mut next = self.dialer.dial(&self.address).await?.conn;
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
            (Trust::Roots | Trust::Onion, Some(binding)) => Ok(ProofPolicy::Offer(binding)),
            (Trust::Roots | Trust::Onion | Trust::Plain, _) => Ok(ProofPolicy::Off),
        }
    }

    fn settings(&self, verdict: &Verdict) -> Settings {
        let mux = verdict.peer.kite_mux;
        Settings {
            side: Side::Backend,
            kite: mux.is_some(),
            max_payload: mux.map_or(LEGACY_PAYLOAD, |m| BUFFER_PAYLOAD.min(m.frame as usize)),
            send_window: mux.map_or(LEGACY_WINDOW, |m| u64::from(m.window_kb) * 1024),
            recv_window: u64::from(RECV_WINDOW_KB) * 1024,
            max_streams: MAX_STREAMS,
            liveness: if self.memory.dies_of_ping {
                Liveness::QUIET
            } else {
                Liveness::DEFAULT
            },
        }
    }

    fn report(&self, verdict: &Verdict) {
        let address = &self.address;
        tracing::info!("frontend {address}: connected ({})", self.dialer.describe());
        for id in &verdict.flying {
            tracing::info!("kite up: {} via {address}", self.shown(id));
        }
        for refusal in &verdict.refused {
            let (why, remedy) = explain(&refusal.why);
            tracing::warn!(
                "kite refused: {} via {address}: {why}; {remedy}",
                self.shown(&refusal.id)
            );
        }
        for id in &verdict.tls_ended {
            tracing::warn!(
                "{}: the frontend {address} ends TLS for it, and reads what it carries",
                self.shown(id)
            );
        }
        if !verdict.proven && !verdict.flying.is_empty() && *address.trust() != Trust::Plain {
            tracing::warn!(
                "frontend {address}: it does not prove that it knows the secret, and can use our answer at \
                 another frontend (an old program, or kite behind another's TLS or Tor); give each frontend \
                 its own secret, or pin the key that kite prints there"
            );
        }
        if !verdict.challenged && !verdict.flying.is_empty() && *address.trust() == Trust::Plain {
            tracing::warn!(
                "frontend {address}: it asked for no proof of the secret; it may be anybody"
            );
        }
        if let Some(motd) = &verdict.motd {
            tracing::info!("frontend {address} says: {motd}");
        }
    }

    /// A kite as the operator wrote it: by its own protocol, not the wire's.
    fn shown(&self, id: &KiteId) -> String {
        let ours = self.services.iter().find(|s| flies_as(s, id));
        format!(
            "{}:{}",
            ours.map_or(id.proto.as_str(), |s| s.protocol.as_str()),
            id.name
        )
    }

    /// Serves the tunnel's streams until it ends; break at shutdown.
    async fn fly(&mut self, flight: Flight, shutdown: &Shutdown) -> std::ops::ControlFlow<()> {
        let Flight { tunnel, verdict } = flight;
        let started = Instant::now();
        // A kite that was refused here is none of this frontend's business.
        let flown: Arc<Vec<Service>> = Arc::new(
            self.services
                .iter()
                .filter(|s| verdict.flying.iter().any(|id| flies_as(s, id)))
                .cloned()
                .collect(),
        );
        let mut streams = JoinSet::new();
        loop {
            tokio::select! {
                incoming = tunnel.accept() => match incoming {
                    Some(incoming) => {
                        streams.spawn(stream::serve(incoming, flown.clone()));
                    }
                    None => break,
                },
                Some(_) = streams.join_next() => {}
                () = shutdown.requested() => {
                    tracing::info!("frontend {}: stopping, {} open streams", self.address, tunnel.streams());
                    let rest = async { while streams.join_next().await.is_some() {} };
                    let _ = tokio::time::timeout(DRAIN, rest).await;
                    tunnel.close("the backend stops");
                    tunnel.ended().await;
                    return std::ops::ControlFlow::Break(());
                }
            }
        }
        let why = tunnel.ended().await;
        // Each stream sees the end for itself, and closes its origin's connection.
        streams.detach_all();
        if verdict.peer.kite_mux.is_none()
            && matches!(why, Ended::ByPeer | Ended::Io(_))
            && tunnel.ping_unanswered()
        {
            tracing::info!(
                "frontend {}: it seems to drop tunnels at a PING; none from now on",
                self.address
            );
            self.memory.dies_of_ping = true;
        }
        for id in &verdict.flying {
            tracing::info!("kite down: {} via {}", self.shown(id), self.address);
        }
        tracing::warn!(
            "frontend {}: lost after {} s: {why}",
            self.address,
            started.elapsed().as_secs()
        );
        std::ops::ControlFlow::Continue(())
    }
}

fn flies_as(service: &Service, id: &KiteId) -> bool {
    service.name.as_str() == id.name && service.protocol.on_wire() == id.proto
}

async fn send(conn: &mut BoxConn, bytes: &[u8]) -> std::io::Result<()> {
    conn.write_all(bytes).await?;
    conn.flush().await
}

/// A refusal in words, and what to do about it.
fn explain(why: &RefusalKind) -> (&str, &'static str) {
    match why {
        RefusalKind::Signature => (
            "the secret is wrong",
            "compare the secret files of both sides",
        ),
        RefusalKind::Unauthorized => (
            "the frontend does not know this name",
            "correct the name, or ask the frontend's operator to allow it",
        ),
        RefusalKind::Quota => (
            "the quota is used up",
            "ask the frontend's operator for more",
        ),
        RefusalKind::Port => (
            "the frontend does not serve this port",
            "use one of its ports",
        ),
        RefusalKind::Proto => (
            "the frontend does not carry this protocol for this name",
            "ask its operator to add it to `protocols`",
        ),
        RefusalKind::Duplicate => (
            "another tunnel flies this kite",
            "if it is an old one of this node the frontend will find out within a minute; else stop the other backend",
        ),
        RefusalKind::Other(text) if text.is_empty() => {
            ("no reason was given", "ask the frontend's operator")
        }
        RefusalKind::Other(text) => (text, "ask the frontend's operator"),
    }
}
