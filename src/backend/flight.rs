//! A tunnel's life once it stands: streams are served until it is lost, replaced, or told to stop.

use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::{interval, timeout};

use super::siblings::Siblings;
use super::watch::Watch;
use super::{DRAIN, stream};
use crate::config::Service;
use crate::shutdown::Shutdown;
use crate::tunnel::{Ended, Tunnel};
use crate::wire::Verdict;

/// How long the streams of a tunnel that was replaced may go on.
pub const RETIRE: Duration = Duration::from_secs(300);
/// A replaced tunnel that carries nothing is closed after so long: visitors that were sent
/// into it before the frontend heard of its successor have arrived by then.
const LAST_VISITORS: Duration = Duration::from_secs(10);
/// How often a tunnel is asked whether its frontend owes it a sign of life.
const LOOK: Duration = Duration::from_secs(1);

/// A tunnel that stands. Its streams are served in a task of its own.
pub(super) struct Flight {
    /// The tunnel.
    pub(super) tunnel: Tunnel,
    /// What was agreed for it.
    pub(super) verdict: Box<Verdict>,
    /// When it began.
    pub(super) since: Instant,
    retire: oneshot::Sender<()>,
    lost: oneshot::Receiver<Ended>,
}

/// What has become of a flight.
pub(super) enum Fate {
    /// It is over.
    Lost(Ended),
    /// The frontend does not answer, and another tunnel may take its place.
    Suspect,
}

/// What a flight's task needs.
pub(super) struct Crew {
    /// The kites that fly.
    pub(super) services: Arc<Vec<Service>>,
    /// What is known of their origins.
    pub(super) watch: Arc<Watch>,
    /// The frontend, for logs.
    pub(super) frontend: String,
    /// The other tunnels to it.
    pub(super) siblings: Arc<Siblings>,
    /// The order to stop.
    pub(super) shutdown: Shutdown,
}

impl Flight {
    /// Serves the tunnel's streams in a task of `tasks`, to its end.
    pub(super) fn start(
        tasks: &mut JoinSet<()>,
        tunnel: Tunnel,
        verdict: Box<Verdict>,
        crew: Crew,
    ) -> Self {
        let (retire, retired) = oneshot::channel();
        let (ended, lost) = oneshot::channel();
        let (session, serving) = (verdict.session_id.clone(), tunnel.clone());
        // Before the task begins: the next handshake may be sooner.
        if let Some(session) = &session {
            crew.siblings.up(session, verdict.peer.beside);
        }
        tasks.spawn(async move {
            let siblings = crew.siblings.clone();
            let why = crew.serve(&serving, retired).await;
            if let Some(session) = &session {
                siblings.down(session);
            }
            // Nobody listens any more if it was replaced.
            let _ = ended.send(why);
        });
        Self {
            tunnel,
            verdict,
            since: Instant::now(),
            retire,
            lost,
        }
    }

    /// Waits until there is something to be done about it.
    pub(super) async fn watch(&mut self) -> Fate {
        loop {
            match timeout(LOOK, &mut self.lost).await {
                Ok(why) => return Fate::Lost(why.unwrap_or(Ended::ByPeer)),
                Err(_) if self.verdict.peer.beside && self.tunnel.is_suspect() => {
                    return Fate::Suspect;
                }
                Err(_) => {}
            }
        }
    }

    /// Another has taken its place: it ends with its streams, at the latest after [`RETIRE`].
    pub(super) fn retire(self) {
        let _ = self.retire.send(());
    }
}

impl Crew {
    async fn serve(self, tunnel: &Tunnel, retired: oneshot::Receiver<()>) -> Ended {
        let mut streams = JoinSet::new();
        let mut retired = pin!(async move {
            // Without the message the link is gone, and the order to stop comes.
            if retired.await.is_err() {
                std::future::pending::<()>().await;
            }
        });
        let mut retiring = None;
        let mut look = interval(LAST_VISITORS);
        loop {
            tokio::select! {
                incoming = tunnel.accept() => match incoming {
                    Some(incoming) => {
                        streams.spawn(stream::serve(incoming, self.services.clone(), self.watch.clone()));
                    }
                    None => break,
                },
                Some(_) = streams.join_next() => {}
                () = &mut retired, if retiring.is_none() => {
                    retiring = Some(Instant::now());
                    look.reset();
                }
                _ = look.tick(), if retiring.is_some() => {
                    let too_long = retiring.is_some_and(|since| since.elapsed() >= RETIRE);
                    if streams.is_empty() || too_long {
                        tracing::info!("frontend {}: the replaced tunnel is closed", self.frontend);
                        tunnel.close("another tunnel has taken its place");
                        break;
                    }
                }
                () = self.shutdown.requested() => {
                    tracing::info!("frontend {}: stopping, {} open streams", self.frontend, tunnel.streams());
                    let rest = async { while streams.join_next().await.is_some() {} };
                    let _ = timeout(DRAIN, rest).await;
                    tunnel.close("the backend stops");
                    break;
                }
            }
        }
        let why = tunnel.ended().await;
        // Each stream sees the end for itself, and closes its origin's connection.
        streams.detach_all();
        why
    }
}
