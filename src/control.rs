//! The Unix socket in the state directory through which a running kite speaks with its owner.
//!
//! Who connects says one word, and what belongs to it, and closes its half; the answer is JSON. Only the user
//! that runs kite, and root, are listened to.

use std::fs::DirBuilder;
use std::io::ErrorKind;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::sync::{Mutex, Semaphore};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use zeroize::Zeroizing;

use crate::code::{Code, Coded};
use crate::dial::{OriginAddr, OriginDialer, OriginError};
use crate::frontend::kites;
use crate::listen::{self, UnixListener, UnixStream};
use crate::observe::status::Status;
use crate::reload::{Answer, Order};
use crate::web::Invitation;
use crate::wiped;

/// How long one who asks may take to speak, and to read the answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// The pause after a failed accept.
const PAUSE: Duration = Duration::from_millis(100);
/// How often it is looked whether one who waits for visits is still there.
const LOOK: Duration = Duration::from_secs(1);
/// The longest order, in bytes. A configuration file of the largest size fits.
const MAX_ORDER: u64 = 4 * 1024 * 1024;
/// The longest answer that is read, in bytes. One tunnel takes some 300.
const MAX_ANSWER: u64 = 64 * 1024 * 1024;
/// How long an answer is waited for. To look at a new origin takes 5 s at most.
const ANSWER: Duration = Duration::from_secs(30);
/// The same for one that comes after visits. The kite itself gives up sooner ([`crate::run`]).
const PROBE_ANSWER: Duration = Duration::from_secs(150);
/// Most who are answered at one time. Others wait in the kernel's queue.
pub const MAX_ASKERS: usize = 16;
/// Most of them who wait for visits. Others are told so at once.
pub const MAX_PROBES: usize = 2;
/// The same, for what comes of an upgrade.
const UPGRADING: Duration = Duration::from_secs(150);
/// What asks for a [`Status`].
const STATUS: &str = "status\n";
/// What asks for a [`Status`] after visits to all kites.
const PROBE: &str = "probe\n";
/// What comes before an [`Order`].
const RELOAD: &str = "reload\n";
/// Asks for the way to the status page.
const WEB: &str = "web\n";
/// Asks a frontend to read its configuration again.
const REREAD: &str = "reread\n";
/// Asks a frontend to have the program on the disk take its place.
const UPGRADE: &str = "upgrade\n";
/// What comes before an [`kites::Order`].
const KITES: &str = "kites\n";
/// What one who does not understand says.
pub const OTHER_VERSION: &str = "it is of another version; restart it, or use its own `kite`";

/// What a running kite can be asked.
#[async_trait]
pub trait Desk: Send + Sync + 'static {
    /// How it is.
    fn status(&self) -> Status;

    /// How it is, after visits to all its kites from outside.
    async fn probe(&self) -> Status {
        self.status()
    }

    /// To take another configuration.
    async fn reload(&self, order: Order) -> Answer;

    /// To read its configuration again by itself.
    async fn reread(&self) -> Answer {
        Answer::Refused("it is a backend: use `kite reload`".to_owned())
    }

    /// To have the program on the disk take its place.
    async fn upgrade(&self) -> Answer {
        Answer::Refused("it is a backend: restart it".to_owned())
    }

    /// For the way to its status page.
    fn web(&self) -> Invitation {
        Invitation::Off
    }
    /// To add, remove or name kites that may fly.
    async fn kites(&self, _: kites::Order) -> kites::Answer {
        kites::Answer::Refused("a backend keeps no kites of others".to_owned())
    }
}

/// The socket, open. Who asks waits in the kernel's queue until [`offer`].
#[derive(Debug)]
pub struct Socket(listen::PrivatePort);

impl Socket {
    /// Opens it, in a process that can still open sockets. Without it kite works, too: trouble is only logged.
    pub fn open(path: &Path) -> Option<Self> {
        if let Some(dir) = path.parent() {
            // If it cannot be made, the socket cannot, and that is said.
            let mut builder = DirBuilder::new();
            let _ = builder.recursive(true).mode(0o700).create(dir);
        }
        let opened = listen::PrivatePort::open(path);
        opened
            .inspect_err(|e| {
                let (code, shown) = (Code::NoControlSocket, path.display());
                match e.kind() {
                    ErrorKind::AddrInUse => tracing::warn!(
                        "[{code}] `kite status` will show another kite: one with the state directory of {shown} runs, or lets its \
                         visitors end; start this one again when it is gone"
                    ),
                    _ => tracing::warn!(
                        "[{code}] `kite status` will not work: {shown}: {e}; choose a shorter or writable --state-dir"
                    ),
                }
            })
            .ok()
            .map(Self)
    }
}

/// Answers on the socket from now on, until what it returns is dropped. Must be called within a Tokio runtime.
pub fn offer(socket: Option<Socket>, desk: Arc<dyn Desk>) -> Offered {
    let mut offered = Offered(JoinSet::new());
    let Some(Socket(port)) = socket else {
        return offered;
    };
    match port.listener() {
        Ok((listener, owner)) => {
            offered.0.spawn(serve(listener, owner, desk));
        }
        Err(e) => tracing::warn!(
            "[{}] `kite status` will not work: {e}; restart kite",
            Code::NoControlSocket
        ),
    }
    offered
}

/// A socket on which questions are answered.
pub struct Offered(JoinSet<()>);

impl Offered {
    /// Until it is closed.
    pub async fn close(mut self) {
        self.0.shutdown().await;
    }
}

async fn serve(listener: UnixListener, owner: u32, desk: Arc<dyn Desk>) {
    let counter = Arc::new(Counter {
        desk,
        orders: Mutex::new(()),
        probes: Semaphore::new(MAX_PROBES),
    });
    let mut askers = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept(), if askers.len() < MAX_ASKERS => match accepted {
                Ok((conn, _)) => {
                    let peer = conn.peer_cred().map(|cred| cred.uid());
                    if peer.is_ok_and(|uid| uid == owner || uid == 0) {
                        let counter = counter.clone();
                        askers.spawn(async move { counter.answer(conn).await });
                    }
                }
                Err(_) => sleep(PAUSE).await,
            },
            Some(_) = askers.join_next() => {}
        }
    }
}

/// Where several are served at a time.
struct Counter {
    desk: Arc<dyn Desk>,
    /// Held by who gives an order: one after the other is carried out.
    orders: Mutex<()>,
    probes: Semaphore,
}

impl Counter {
    async fn answer(&self, mut conn: UnixStream) {
        let desk = &self.desk;
        // It may hold secrets.
        let words = wiped::read_async(&mut conn, MAX_ORDER);
        let Ok(Ok(asked)) = timeout(PATIENCE, words).await else {
            return;
        };
        let text = if asked.as_slice() == STATUS.as_bytes() {
            serde_json::to_vec(&desk.status())
        } else if asked.as_slice() == WEB.as_bytes() {
            serde_json::to_vec(&desk.web())
        } else if asked.as_slice() == REREAD.as_bytes() {
            let _turn = self.orders.lock().await;
            serde_json::to_vec(&desk.reread().await)
        } else if asked.as_slice() == UPGRADE.as_bytes() {
            // This very socket, with all who are answered, is closed meanwhile.
            let desk = desk.clone();
            tokio::spawn(async move { say(conn, serde_json::to_vec(&desk.upgrade().await)).await });
            return;
        } else if asked.as_slice() == PROBE.as_bytes() {
            // Who leaves meanwhile gives up its turn.
            tokio::select! {
                status = self.probe() => serde_json::to_vec(&status),
                () = gone(&conn) => return,
            }
        } else if let Some(order) = asked.strip_prefix(RELOAD.as_bytes()) {
            let _turn = self.orders.lock().await;
            let answer = match serde_json::from_slice(order) {
                Ok(order) => desk.reload(order).await,
                Err(_) => Answer::Refused(
                    "it is of another version; restart it, or use its own `kite reload`".to_owned(),
                ),
            };
            serde_json::to_vec(&answer)
        } else if let Some(order) = asked.strip_prefix(KITES.as_bytes()) {
            let _turn = self.orders.lock().await;
            let answer = match serde_json::from_slice(order) {
                Ok(order) => desk.kites(order).await,
                Err(_) => kites::Answer::Refused(OTHER_VERSION.to_owned()),
            };
            serde_json::to_vec(&answer)
        } else {
            return;
        };
        say(conn, text).await;
    }

    /// How the kite is after visits; `None` if too many wait for some already.
    async fn probe(&self) -> Option<Status> {
        let _turn = self.probes.try_acquire().ok()?;
        Some(self.desk.probe().await)
    }
}

/// Waits until the other side has left altogether. That it says no more is no sign of it.
async fn gone(conn: &UnixStream) {
    loop {
        sleep(LOOK).await;
        let ready = conn.ready(Interest::WRITABLE).await;
        if ready.map_or(true, |ready| ready.is_write_closed()) {
            return;
        }
    }
}

async fn say(mut conn: UnixStream, text: serde_json::Result<Vec<u8>>) {
    let Ok(text) = text else { return };
    let _ = timeout(PATIENCE, async {
        conn.write_all(&text).await?;
        conn.shutdown().await
    })
    .await;
}

/// Asks a running kite how it is.
pub async fn status(socket: &Path) -> Result<Status, AskError> {
    ask(socket, STATUS.as_bytes(), ANSWER).await
}

/// Asks a running kite for the way to its status page.
pub async fn web(socket: &Path) -> Result<Invitation, AskError> {
    ask(socket, WEB.as_bytes(), ANSWER).await
}

/// Has a running frontend read its configuration again.
pub async fn reread(socket: &Path) -> Result<Answer, AskError> {
    ask(socket, REREAD.as_bytes(), ANSWER).await
}

/// Has the program on the disk take a running frontend's place.
pub async fn upgrade(socket: &Path) -> Result<Answer, AskError> {
    ask(socket, UPGRADE.as_bytes(), UPGRADING).await
}

/// Has a running kite visit its own kites from outside, and asks it then how it is.
pub async fn probe(socket: &Path) -> Result<Status, AskError> {
    let asked: Option<Status> = ask(socket, PROBE.as_bytes(), PROBE_ANSWER).await?;
    asked.ok_or_else(|| AskError::Busy(socket.display().to_string()))
}

/// Gives a running kite another configuration.
pub async fn reload(socket: &Path, order: &Order) -> Result<Answer, AskError> {
    let mut text = Zeroizing::new(RELOAD.as_bytes().to_vec());
    serde_json::to_writer(&mut *text, order)
        .map_err(|_| AskError::Strange(socket.display().to_string()))?;
    if text.len() as u64 > MAX_ORDER {
        return Err(AskError::TooLong);
    }
    ask(socket, &text, ANSWER).await
}

/// Has a running frontend add, remove or name kites.
pub async fn kites(socket: &Path, order: &kites::Order) -> Result<kites::Answer, AskError> {
    let mut text = Zeroizing::new(KITES.as_bytes().to_vec());
    serde_json::to_writer(&mut *text, order)
        .map_err(|_| AskError::Strange(socket.display().to_string()))?;
    ask(socket, &text, ANSWER).await
}

async fn ask<T: DeserializeOwned>(
    socket: &Path,
    words: &[u8],
    patience: Duration,
) -> Result<T, AskError> {
    let shown = || socket.display().to_string();
    let address = OriginAddr::Unix(socket.to_owned());
    let mut conn = OriginDialer::new()
        .dial(&address)
        .await
        .map_err(|e| match e {
            // It is there, and another user's.
            OriginError::Failed(_, ErrorKind::PermissionDenied) => AskError::Silent(shown()),
            _ => AskError::Nobody(shown()),
        })?;
    let mut text = Vec::new();
    let conversation = async {
        // One who is not listened to cannot write all, and sees then that there is no answer.
        if conn.write_all(words).await.is_ok() {
            let _ = conn.shutdown().await;
        }
        conn.take(MAX_ANSWER).read_to_end(&mut text).await
    };
    match timeout(patience, conversation).await {
        Ok(Ok(1..)) => serde_json::from_slice(&text).map_err(|_| AskError::Strange(shown())),
        _ => Err(AskError::Silent(shown())),
    }
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// No kite listens there.
    #[error("no kite answers at {0}; is it running, and with this state directory (--state-dir)?")]
    Nobody(String),
    /// It does not talk to us.
    #[error("the kite at {0} gave no answer; ask as the user that runs it, or as root")]
    Silent(String),
    /// It says what we do not understand.
    #[error("the kite at {0} is of another version; restart it, or use its own `kite`")]
    Strange(String),
    /// It is at it already, for others.
    #[error(
        "the kite at {0} is being checked by {MAX_PROBES} others already; try again when one of them is done"
    )]
    Busy(String),
    /// Nobody would read all of it.
    #[error("the configuration is too long to be sent; restart kite instead")]
    TooLong,
}

impl Coded for AskError {
    fn code(&self) -> Code {
        match self {
            Self::Nobody(_) => Code::NobodyThere,
            Self::Silent(_) | Self::Busy(_) => Code::NoAnswer,
            Self::Strange(_) => Code::OtherVersion,
            Self::TooLong => Code::ReloadRefused,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;
    use tokio::sync::Notify;

    /// Whose visits last until it is said that they are over.
    struct Slow {
        begun: Semaphore,
        over: Notify,
    }

    #[async_trait]
    impl Desk for Slow {
        fn status(&self) -> Status {
            Status::new(crate::observe::status::Role::Backend, Instant::now())
        }

        async fn probe(&self) -> Status {
            self.begun.add_permits(1);
            self.over.notified().await;
            self.status()
        }

        async fn reload(&self, _: Order) -> Answer {
            Answer::Refused("never".to_owned())
        }
    }

    #[tokio::test]
    async fn one_who_waits_for_visits_keeps_nobody_else_waiting() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("backend.sock");
        let desk = Arc::new(Slow {
            begun: Semaphore::new(0),
            over: Notify::new(),
        });
        let _offered = offer(Socket::open(&path), desk.clone());
        let checks: Vec<_> = (0..MAX_PROBES)
            .map(|_| {
                let path = path.clone();
                tokio::spawn(async move { probe(&path).await })
            })
            .collect();
        let begun = desk
            .begun
            .acquire_many(u32::try_from(MAX_PROBES).expect("few"));
        drop(timeout(PATIENCE, begun).await.expect("both at one time"));
        let others = (0..3 * MAX_ASKERS).map(|_| status(&path));
        let answers = timeout(PATIENCE, futures::future::join_all(others)).await;
        assert!(answers.expect("at once").iter().all(Result::is_ok));
        let one_more = timeout(PATIENCE, probe(&path)).await.expect("at once");
        assert!(matches!(one_more, Err(AskError::Busy(_))), "{one_more:?}");
        // One who is gone keeps nobody waiting.
        let mut checks = checks.into_iter();
        checks.next().expect("two").abort();
        let moment = Duration::from_millis(100);
        let room = async {
            while let Ok(Err(AskError::Busy(_))) = timeout(moment, probe(&path)).await {
                sleep(moment).await;
            }
        };
        timeout(PATIENCE, room).await.expect("there is room again");
        desk.over.notify_waiters();
        for check in checks {
            check.await.expect("no panic").expect("an answer");
        }
    }
}
