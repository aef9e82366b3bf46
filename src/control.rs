//! The Unix socket in the state directory through which a running kite speaks with its owner.
//!
//! Who connects says one word, and what belongs to it, and closes its half; the answer is JSON. Only the user
//! that runs kite, and root, are listened to.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{sleep, timeout};
use zeroize::Zeroizing;

use crate::code::{Code, Coded};
use crate::dial::{OriginAddr, OriginDialer};
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
/// The longest order, in bytes. A configuration file of the largest size fits.
const MAX_ORDER: u64 = 4 * 1024 * 1024;
/// The longest answer that is read, in bytes. One tunnel takes some 300.
const MAX_ANSWER: u64 = 64 * 1024 * 1024;
/// How long an answer is waited for. To look at a new origin takes 5 s at most.
const ANSWER: Duration = Duration::from_secs(30);
/// What asks for a [`Status`].
const STATUS: &str = "status\n";
/// What asks for a [`Status`] after visits to all kites.
const PROBE: &str = "probe\n";
/// What comes before an [`Order`].
const RELOAD: &str = "reload\n";
/// Asks for the way to the status page.
const WEB: &str = "web\n";
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
                tracing::warn!(
                    "[{}] `kite status` will not work: {}: {e}; choose a shorter or writable --state-dir",
                    Code::NoControlSocket,
                    path.display()
                );
            })
            .ok()
            .map(Self)
    }
}

/// Answers on the socket from now on. Must be called within a Tokio runtime.
pub fn offer(socket: Option<Socket>, desk: Arc<dyn Desk>) {
    let Some(Socket(port)) = socket else { return };
    match port.listener() {
        Ok((listener, owner)) => {
            tokio::spawn(serve(listener, owner, desk));
        }
        Err(e) => tracing::warn!(
            "[{}] `kite status` will not work: {e}; restart kite",
            Code::NoControlSocket
        ),
    }
}

async fn serve(listener: UnixListener, owner: u32, desk: Arc<dyn Desk>) {
    loop {
        match listener.accept().await {
            // One at a time: so orders are carried out in their order.
            Ok((conn, _)) => {
                let peer = conn.peer_cred().map(|cred| cred.uid());
                if peer.is_ok_and(|uid| uid == owner || uid == 0) {
                    answer(conn, &*desk).await;
                }
            }
            Err(_) => sleep(PAUSE).await,
        }
    }
}

async fn answer(mut conn: UnixStream, desk: &dyn Desk) {
    // It may hold secrets.
    let words = wiped::read_async(&mut conn, MAX_ORDER);
    let Ok(Ok(asked)) = timeout(PATIENCE, words).await else {
        return;
    };
    let text = if asked.as_slice() == STATUS.as_bytes() {
        serde_json::to_vec(&desk.status())
    } else if asked.as_slice() == WEB.as_bytes() {
        serde_json::to_vec(&desk.web())
    } else if asked.as_slice() == PROBE.as_bytes() {
        serde_json::to_vec(&desk.probe().await)
    } else if let Some(order) = asked.strip_prefix(RELOAD.as_bytes()) {
        let answer = match serde_json::from_slice(order) {
            Ok(order) => desk.reload(order).await,
            Err(_) => Answer::Refused(
                "it is of another version; restart it, or use its own `kite reload`".to_owned(),
            ),
        };
        serde_json::to_vec(&answer)
    } else if let Some(order) = asked.strip_prefix(KITES.as_bytes()) {
        let answer = match serde_json::from_slice(order) {
            Ok(order) => desk.kites(order).await,
            Err(_) => kites::Answer::Refused(OTHER_VERSION.to_owned()),
        };
        serde_json::to_vec(&answer)
    } else {
        return;
    };
    let Ok(text) = text else { return };
    let _ = timeout(PATIENCE, async {
        conn.write_all(&text).await?;
        conn.shutdown().await
    })
    .await;
}

/// Asks a running kite how it is.
pub async fn status(socket: &Path) -> Result<Status, AskError> {
    ask(socket, STATUS.as_bytes()).await
}

/// Asks a running kite for the way to its status page.
pub async fn web(socket: &Path) -> Result<Invitation, AskError> {
    ask(socket, WEB.as_bytes()).await
}

/// Has a running kite visit its own kites from outside, and asks it then how it is.
pub async fn probe(socket: &Path) -> Result<Status, AskError> {
    ask(socket, PROBE.as_bytes()).await
}

/// Gives a running kite another configuration.
pub async fn reload(socket: &Path, order: &Order) -> Result<Answer, AskError> {
    let mut text = Zeroizing::new(RELOAD.as_bytes().to_vec());
    serde_json::to_writer(&mut *text, order)
        .map_err(|_| AskError::Strange(socket.display().to_string()))?;
    if text.len() as u64 > MAX_ORDER {
        return Err(AskError::TooLong);
    }
    ask(socket, &text).await
}

/// Has a running frontend add, remove or name kites.
pub async fn kites(socket: &Path, order: &kites::Order) -> Result<kites::Answer, AskError> {
    let mut text = Zeroizing::new(KITES.as_bytes().to_vec());
    serde_json::to_writer(&mut *text, order)
        .map_err(|_| AskError::Strange(socket.display().to_string()))?;
    ask(socket, &text).await
}

async fn ask<T: DeserializeOwned>(socket: &Path, words: &[u8]) -> Result<T, AskError> {
    let shown = || socket.display().to_string();
    let address = OriginAddr::Unix(socket.to_owned());
    let mut conn = OriginDialer::new()
        .dial(&address)
        .await
        .map_err(|_| AskError::Nobody(shown()))?;
    let mut text = Vec::new();
    let conversation = async {
        // One who is not listened to cannot write all, and sees then that there is no answer.
        if conn.write_all(words).await.is_ok() {
            let _ = conn.shutdown().await;
        }
        conn.take(MAX_ANSWER).read_to_end(&mut text).await
    };
    match timeout(ANSWER, conversation).await {
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
    /// Nobody would read all of it.
    #[error("the configuration is too long to be sent; restart kite instead")]
    TooLong,
}

impl Coded for AskError {
    fn code(&self) -> Code {
        match self {
            Self::Nobody(_) => Code::NobodyThere,
            Self::Silent(_) => Code::NoAnswer,
            Self::Strange(_) => Code::OtherVersion,
            Self::TooLong => Code::ReloadRefused,
        }
    }
}
