//! A tunnel's life once it stands: streams are served until it is lost, replaced, or told to stop.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::siblings::Siblings;
use super::{DRAIN, stream};
use crate::config::Service;
use crate::shutdown::Shutdown;
use crate::tunnel::{Ended, Tunnel};
use crate::wire::Verdict;

/// How long the streams of a tunnel that was replaced may go on.
pub const RETIRE: Duration = Duration::from_secs(300);
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
        let started = Instant::now();
        let mut streams = JoinSet::new();
        let mut retired = Box::pin(async move {
            // Without the message the link is gone, and the order to stop comes.
            if retired.await.is_err() {
                std::future::pending::<()>().await;
            }
        });
        loop {
            tokio::select! {
                incoming = tunnel.accept() => match incoming {
                    Some(incoming) => {
                        streams.spawn(stream::serve(incoming, self.services.clone()));
                    }
                    None => break,
                },
                Some(_) = streams.join_next() => {}
                () = &mut retired => {
                    self.drain(tunnel, &mut streams, RETIRE).await;
                    tracing::info!("frontend {}: the replaced tunnel is closed", self.frontend);
                    break;
                }
                () = self.shutdown.requested() => {
                    tracing::info!("frontend {}: stopping, {} open streams", self.frontend, tunnel.streams());
                    self.drain(tunnel, &mut streams, DRAIN).await;
                    return tunnel.ended().await;
                }
            }
        }
        let why = tunnel.ended().await;
        // Each stream sees the end for itself, and closes its origin's connection.
        streams.detach_all();
        tracing::debug!(
            "frontend {}: a tunnel ended after {} s",
            self.frontend,
            started.elapsed().as_secs()
        );
        why
    }

    /// Lets the streams end, for so long, and closes the tunnel.
    async fn drain(&self, tunnel: &Tunnel, streams: &mut JoinSet<()>, patience: Duration) {
        let rest = async { while streams.join_next().await.is_some() {} };
        tokio::select! {
            _ = timeout(patience, rest) => {}
            _ = tunnel.ended() => {}
            () = self.stopping_soon(patience) => {}
        }
        tunnel.close("the backend stops using it");
    }

    /// The order to stop cuts a long farewell short.
    async fn stopping_soon(&self, patience: Duration) {
        if patience <= DRAIN {
            return std::future::pending().await;
        }
        self.shutdown.requested().await;
        tokio::time::sleep(DRAIN).await;
    }
}
