//! The embedded Tor client: its configuration, its start, its streams.
//!
//! Arti runs on the guarded runtime of [`runtime`], whose every socket passes
//! [`relays`]. Everything that leaves does so through [`Client::connect`] or
//! through an [`onion`] service.
//!
//! Arti has one habit that no caller can change: 5 s after the signed directory has said that
//! its protocol is obsolete, it ends the process. [`Client::watch`] sees that coming.

mod health;
pub mod onion;
pub mod relays;
pub mod runtime;
mod watch;

use std::collections::{BTreeSet, HashSet};
use std::fmt;
use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::Read;
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use arti_client::config::{CfgPath, TorClientConfigBuilder};
use arti_client::status::{BlockageKind, BootstrapEvents, BootstrapStatus};
use arti_client::{BootstrapBehavior, HasKind, StreamPrefs, TorClient, TorClientConfig};
use futures::StreamExt;
use futures::future::BoxFuture;
use rand::Rng;
use serde::Deserialize;
use tokio::sync::watch as signal;
use tokio::time::{sleep, timeout};
use tor_dircommon::fallback::FallbackList;
use tor_guardmgr::GuardMgrConfig;
use tor_guardmgr::bridge::BridgeConfig;
use tor_linkspec::{ChannelMethod, HasAddrs, HasChanMethod};
use tor_netdir::Timeliness;

use self::health::Pulse;
pub use self::health::Trouble;
pub use self::onion::OnionService;
pub use self::relays::Peer;
use self::relays::{Bridges, Rules};
pub use self::runtime::{DialReport, Refusal};
use self::runtime::{Guarded, Ledger, Maker};
pub use arti_client::{DataStream, ErrorKind, IsolationToken};

/// First wait after a failed bootstrap. Arti has tried many relays by then.
const RETRY_FIRST: Duration = Duration::from_secs(2);

/// Longest wait between two attempts to bootstrap.
const RETRY_MAX: Duration = Duration::from_secs(60);

/// Longest wait for an Arti that is being replaced to let go of its files.
const STOP_WAIT: Duration = Duration::from_secs(10);

/// Longest wait for an onion service to be reached by its own client. It takes some seconds.
const ITSELF_WAIT: Duration = Duration::from_secs(60);

/// What one kite holds locked in Arti's state directory.
const LOCK_FILE: &str = "kite.lock";

/// Largest configuration file that is read, in bytes. A thousand bridge lines fit.
const MAX_CONFIG: u64 = 1 << 20;

/// Arti makes circuits for these ports from stable relays. Its own list (`tor-circmgr` 0.47,
/// `long_lived_ports_default`) has a dozen, and neither 80 nor 443; but a tunnel lives for weeks whatever its frontend's
/// port, and so do the connections that a node makes through the SOCKS port.
const LONG_LIVED: std::ops::RangeInclusive<u16> = 1..=u16::MAX;

/// What kite needs to know to start Tor.
#[derive(Clone, Debug, Default)]
pub struct TorSettings {
    /// kite's state directory. Arti's goes to `tor/` below it, readable by its owner alone.
    pub state_dir: PathBuf,
    /// A file with settings of Arti's own, laid over kite's: bridges, `address_filter`,
    /// `path_rules`, … even other directories.
    pub config: Option<PathBuf>,
}

/// What a Tor client wants of its machine besides the network.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// Where it keeps its state. Need not exist yet.
    pub state_dir: PathBuf,
    /// Where it keeps its copy of the directory. Need not exist yet.
    pub cache_dir: PathBuf,
    /// Pluggable transports that it starts.
    pub programs: Vec<PathBuf>,
}

/// The first hops that the settings name, for who watches a Tor client from outside.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FirstHops {
    /// Directory caches that serve before there is a directory.
    pub fallbacks: HashSet<SocketAddr>,
    /// Guards of an earlier run.
    pub guards: HashSet<SocketAddr>,
    /// Present when bridges are in use, and then instead of all others. Those behind a transport, too.
    pub bridges: Option<HashSet<SocketAddr>>,
    /// The proxy that everything goes through.
    pub proxy: Option<SocketAddr>,
    /// Ports of transports that somebody else runs.
    pub transports: HashSet<SocketAddr>,
}

impl TorSettings {
    /// Reads the settings and says whom they name; dials nothing.
    pub fn first_hops(&self) -> Result<FirstHops, TorError> {
        let (config, rules, _) = configure(self)?;
        let all: &[BridgeConfig] = config.as_ref();
        let named = |bridge: &BridgeConfig| bridge.chan_method().socket_addrs().map(<[_]>::to_vec);
        Ok(FirstHops {
            bridges: rules
                .bridges
                .is_some()
                .then(|| all.iter().filter_map(named).flatten().collect()),
            transports: rules.bridges.map(|b| b.transports).unwrap_or_default(),
            fallbacks: rules.fallbacks,
            guards: rules.guards,
            proxy: rules.proxy,
        })
    }

    /// Reads the settings and says what they lead to; dials and creates nothing.
    pub fn needs(&self) -> Result<Needs, TorError> {
        configure(self).map(|(_, _, needs)| needs)
    }
}

/// Why Tor cannot be started. Trouble on the network is no such reason: that is waited for.
#[derive(Debug, thiserror::Error)]
pub enum TorError {
    /// The file is not there, or not readable.
    #[error("Tor's configuration {}: {source}", path.display())]
    Unreadable {
        /// The configuration file.
        path: PathBuf,
        /// The system's words.
        source: std::io::Error,
    },
    /// The file says something that we, or Arti, cannot follow.
    #[error("Tor's configuration {}: {reason}", path.display())]
    Config {
        /// The configuration file, or "built-in defaults".
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// Another process, most likely another kite, has locked the state directory.
    #[error("Tor's state directory is in use by another process")]
    InUse,
    /// Others could read or change Arti's files, or those above them.
    #[error("Tor's state directory is not safe: {reason}")]
    Permissions {
        /// Arti's words, which name the file and the bits.
        reason: String,
    },
    /// Arti cannot work on this machine.
    #[error("Tor cannot start: {reason}")]
    Local {
        /// Arti's words.
        reason: String,
    },
    /// The Tor network demands a protocol that this Arti does not speak.
    #[error("tor-obsolete: {}", Trouble::Obsolete)]
    Obsolete,
    /// A tool must run before this one: [`Client::bootstrap`].
    #[error("Tor is not ready yet")]
    NotBootstrapped,
    /// The onion service cannot be offered.
    #[error("the onion service '{nickname}' cannot start: {reason}")]
    Onion {
        /// Its name among the services of this state directory.
        nickname: String,
        /// What is wrong.
        reason: String,
    },
}

impl TorError {
    /// What the user can do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Unreadable { .. } => "check the path and its permissions",
            Self::Config { .. } => {
                "see Arti's documentation of its configuration file; kite reads the sections of the client library only"
            }
            Self::InUse => "stop the other kite, or give each its own state_dir",
            Self::Permissions { .. } => {
                "make the directory private (chmod 700), and let only its owner write to those above it"
            }
            Self::Local { .. } => {
                "check the state directory's disk, permissions and free space; a damaged file in tor/state comes from a backup, or is \
                 moved away: guards are chosen anew then, and an onion service without its key gets another name"
            }
            Self::Obsolete => Trouble::Obsolete.remedy(),
            Self::NotBootstrapped => "wait for Tor to start",
            Self::Onion { .. } => "check the nickname, and the permissions of the state directory",
        }
    }

    /// Its code in kite's catalogue, which never changes.
    pub fn kite_code(&self) -> &'static str {
        match self {
            Self::Local { .. } => "KITE-T12",
            Self::Unreadable { .. } | Self::Config { .. } => "KITE-T13",
            Self::InUse => "KITE-T14",
            Self::Permissions { .. } => "KITE-T15",
            Self::NotBootstrapped => "KITE-T16",
            Self::Onion { .. } => "KITE-T17",
            Self::Obsolete => Trouble::Obsolete.kite_code(),
        }
    }

    /// What an error of Arti's means when something is being started.
    fn sort(error: &arti_client::Error) -> Self {
        match error.kind() {
            ErrorKind::LocalResourceAlreadyInUse => Self::InUse,
            ErrorKind::FsPermissions => Self::Permissions {
                reason: chain(error),
            },
            ErrorKind::BootstrapRequired => Self::NotBootstrapped,
            ErrorKind::SoftwareDeprecated => Self::Obsolete,
            _ => Self::Local {
                reason: chain(error),
            },
        }
    }
}

/// Errors that waiting does not mend. The rest is the network's, and is tried again.
fn is_local(kind: ErrorKind) -> bool {
    matches!(
        kind,
        ErrorKind::LocalResourceAlreadyInUse
            | ErrorKind::FsPermissions
            | ErrorKind::PersistentStateAccessFailed
            | ErrorKind::PersistentStateCorrupted
            | ErrorKind::CacheAccessFailed
            | ErrorKind::CacheCorrupted
            | ErrorKind::KeystoreAccessFailed
            | ErrorKind::KeystoreCorrupted
            | ErrorKind::InvalidConfig
            | ErrorKind::NoHomeDirectory
            | ErrorKind::FeatureDisabled
            | ErrorKind::SoftwareDeprecated
            | ErrorKind::BadApiUsage
            | ErrorKind::Internal
    )
}

/// An error with its causes. Only for local trouble: Arti scrubs addresses, but need not be tested.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let inner_text = inner.to_string();
        if !text.ends_with(&inner_text) {
            text = format!("{text}: {inner_text}");
        }
        cause = inner.source();
    }
    text
}

/// How far Tor is.
#[derive(Clone, Debug, PartialEq)]
pub struct Progress {
    /// From 0.0, just started, to 1.0, ready.
    pub fraction: f32,
    /// Streams can be opened now. It can become false again.
    pub ready: bool,
    /// One sentence for a person. Holds no address.
    pub text: String,
    /// Why it does not go on, if Arti knows. Its best guess: say so when showing it.
    pub blocked: Option<String>,
    /// What kite itself has found out: see [`Client::watch`].
    pub trouble: Option<Trouble>,
}

impl From<&BootstrapStatus> for Progress {
    fn from(status: &BootstrapStatus) -> Self {
        let blocked = status.blocked();
        let (text, blocked) = match blocked {
            // Arti's word for a client that has not been told to begin.
            Some(b) if matches!(b.kind(), BlockageKind::Disabled) => {
                ("not started".to_owned(), None)
            }
            other => (status.to_string(), other.map(|b| b.to_string())),
        };
        Self {
            fraction: status.as_frac(),
            ready: status.ready_for_traffic(),
            text,
            blocked,
            trouble: None,
        }
    }
}

/// The embedded Tor client. One for each process and state directory.
pub struct Client {
    /// The Arti in use: none while it is being replaced.
    slot: Arc<Slot>,
    /// Counts replacements; whoever holds an old Arti must then let it go.
    generation: signal::Sender<u64>,
    config: TorClientConfig,
    maker: Maker,
    bridges: bool,
    /// The programs of pluggable transports that Arti starts.
    transports: Vec<PathBuf>,
    /// Counts how often the machine slept, or its clock was set.
    sleeps: signal::Sender<u64>,
    pulse: Pulse,
    /// What [`Client::watch`] has found.
    trouble: Mutex<Option<Trouble>>,
    ledger: Ledger,
    /// Held open, and thereby locked, as long as there is a client.
    _lock: File,
}

type Arti = Arc<TorClient<Guarded>>;

/// An Arti, and what ends its tasks when it is dropped.
type Running = (Arti, signal::Sender<()>);

#[derive(Default)]
struct Slot(Mutex<Option<Running>>);

impl Slot {
    fn get(&self) -> Option<Arti> {
        Some(self.lock().as_ref()?.0.clone())
    }

    fn swap(&self, running: Option<Running>) -> Option<Running> {
        std::mem::replace(&mut *self.lock(), running)
    }

    fn lock(&self) -> MutexGuard<'_, Option<Running>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn create(
    config: &TorClientConfig,
    maker: &Maker,
    behavior: BootstrapBehavior,
) -> Result<Running, TorError> {
    try_create(config, maker, behavior).map_err(|e| TorError::sort(&e))
}

fn try_create(
    config: &TorClientConfig,
    maker: &Maker,
    behavior: BootstrapBehavior,
) -> Result<Running, Box<arti_client::Error>> {
    let (runtime, end) = maker.runtime();
    let arti = TorClient::with_runtime(runtime)
        .config(config.clone())
        .bootstrap_behavior(behavior)
        .create_unbootstrapped()?;
    Ok((arti, end))
}

/// The cached directory, and what each SQLite database begins with.
const CACHE: (&str, &[u8]) = ("dir.sqlite3", b"SQLite format 3\0");

/// Is there a cached directory, of which even the beginning is spoiled?
fn is_spoiled(cache_dir: &Path) -> bool {
    let mut first = [0; 16];
    let read = std::fs::File::open(cache_dir.join(CACHE.0))
        .and_then(|mut file| std::io::Read::read(&mut file, &mut first));
    matches!(read, Ok(1..)) && first != CACHE.1
}

/// Puts a damaged cache out of the way: what was in it is fetched again.
fn set_aside(cache_dir: &Path) {
    let file = cache_dir.join(CACHE.0);
    let moved = std::fs::rename(&file, file.with_extension("damaged"));
    for rest in ["sqlite3-wal", "sqlite3-shm"] {
        let _ = std::fs::remove_file(file.with_extension(rest));
    }
    if moved.is_ok() {
        tracing::info!(
            "Tor: the cached directory {} was damaged; it is set aside, and fetched anew",
            file.display()
        );
    }
}

impl Client {
    /// Makes a client that has dialled nothing yet; [`Client::bootstrap`] comes next.
    ///
    /// Must be called inside a Tokio runtime, after a rustls provider has been installed
    /// for the process .
    pub fn start(settings: TorSettings) -> Result<Self, TorError> {
        // Arti panics on either; an error is kinder.
        if rustls::crypto::CryptoProvider::get_default().is_none() {
            return Err(TorError::Local {
                reason: "no rustls cryptography provider is installed".to_owned(),
            });
        }
        let (config, rules, needs) = configure(&settings)?;
        let lock = lock(&needs.state_dir)?;
        let bridges = rules.bridges.is_some();
        let (maker, ledger) = Maker::new(rules).map_err(|e| TorError::Local {
            reason: e.to_string(),
        })?;
        let slot = Arc::new(Slot::default());
        if is_spoiled(&needs.cache_dir) {
            set_aside(&needs.cache_dir);
        }
        let made = try_create(&config, &maker, BootstrapBehavior::Manual);
        let running = match made {
            Ok(running) => running,
            Err(e) if e.kind() == ErrorKind::CacheCorrupted => {
                set_aside(&needs.cache_dir);
                create(&config, &maker, BootstrapBehavior::Manual)?
            }
            Err(e) => return Err(TorError::sort(&e)),
        };
        slot.swap(Some(running));
        follow(&maker, &slot);
        Ok(Self {
            slot,
            generation: signal::Sender::new(0),
            config,
            maker,
            bridges,
            transports: needs.programs,
            sleeps: signal::Sender::new(0),
            pulse: Pulse::default(),
            trouble: Mutex::default(),
            ledger,
            _lock: lock,
        })
    }

    /// Brings Tor up, telling `progress` about each step.
    ///
    /// Goes on for as long as it takes: with the network down, a censor in between, or a clock
    /// that is wrong, it keeps trying, at most a minute apart, and says in
    /// [`Progress::blocked`] what Arti thinks is the matter. Returns early only for
    /// errors on this machine. May be called again, and cancelled by dropping.
    pub fn bootstrap<'a>(
        &'a self,
        progress: &'a mut (dyn FnMut(Progress) + Send),
    ) -> BoxFuture<'a, Result<(), TorError>> {
        Box::pin(async move {
            let _waiting = self.pulse.asked();
            let mut renewed = self.generation.subscribe();
            loop {
                let Some(arti) = self.arti() else {
                    // It is being replaced.
                    let _ = renewed.changed().await;
                    continue;
                };
                let outcome = tokio::select! {
                    outcome = bring_up(arti, progress) => outcome,
                    _ = renewed.changed() => continue,
                };
                if outcome.is_ok() {
                    self.pulse.ended(&Ok(()));
                }
                return outcome;
            }
        })
    }

    /// Opens a stream to a host, given as text and looked up by the exit relay, or to an onion service.
    ///
    /// It shares a circuit only with streams of the same isolation token. Bounded by Arti's own
    /// time-outs alone, so put one around it.
    pub fn connect<'a>(
        &'a self,
        host: &'a str,
        port: u16,
        isolation: IsolationToken,
    ) -> BoxFuture<'a, Result<DataStream, ErrorKind>> {
        let mut prefs = StreamPrefs::new();
        prefs.set_isolation(isolation);
        // Boxed here, so that who calls it need not compile Arti again.
        Box::pin(async move {
            let _waiting = self.pulse.asked();
            let mut renewed = self.generation.subscribe();
            let arti = self.arti().ok_or(ErrorKind::BootstrapRequired)?;
            let outcome = tokio::select! {
                opened = arti.connect_with_prefs((host, port), &prefs) => opened.map_err(|error| error.kind()),
                _ = renewed.changed() => Err(ErrorKind::ReactorShuttingDown),
            };
            self.pulse.ended(&outcome);
            outcome
        })
    }

    /// Dials an onion service that runs in this very client, from outside: with a descriptor fetched for the purpose.
    async fn reaches_itself(&self, service: &str, port: u16) -> bool {
        let dialling = self.connect(service, port, IsolationToken::new());
        let Ok(outcome) = timeout(ITSELF_WAIT, dialling).await else {
            return false;
        };
        if !outcome.as_ref().is_err_and(|e| health::blames_tor(*e)) {
            // Until the next time nobody waits for Tor.
            self.pulse.ended(&Ok(()));
        }
        outcome.is_ok()
    }

    /// True if a stream can be opened now, as far as Arti knows.
    pub fn ready(&self) -> bool {
        self.progress().ready
    }

    /// How far Tor is, now.
    pub fn progress(&self) -> Progress {
        let arti = self.arti();
        let status = arti.map(|arti| arti.bootstrap_status()).unwrap_or_default();
        Progress {
            trouble: self.trouble(),
            ..Progress::from(&status)
        }
    }

    /// What keeps Tor from working, as far as [`Client::watch`] has found out.
    pub fn trouble(&self) -> Option<Trouble> {
        *self.trouble.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What Arti has dialled so far.
    pub fn dialled(&self) -> DialReport {
        self.ledger.report()
    }

    fn arti(&self) -> Option<Arti> {
        self.slot.get()
    }

    fn heard_nothing_for(&self, long: Duration) -> bool {
        self.ledger
            .heard()
            .is_none_or(|at: Instant| at.elapsed() >= long)
    }

    /// Puts a fresh Arti, with the same settings and files, in place of this one. Fails when this machine is in the way
    /// (then there is none until the next attempt), or the network demands a newer one.
    async fn renew(&self) -> Result<(), TorError> {
        if let Some((old, tasks)) = self.slot.swap(None) {
            self.generation.send_modify(|n| *n += 1);
            let stopped = old.wait_for_stop();
            drop((old, tasks));
            if timeout(STOP_WAIT, stopped).await.is_err() {
                tracing::debug!("the old Arti has not let go of its files");
            }
        }
        self.ledger.forget();
        let outcome = create(&self.config, &self.maker, BootstrapBehavior::OnDemand);
        let outcome = outcome.map(|running| {
            tracing::debug!("a fresh Arti");
            self.slot.swap(Some(running));
        });
        self.generation.send_modify(|n| *n += 1);
        outcome
    }
}

async fn bring_up(arti: Arti, progress: &mut (dyn FnMut(Progress) + Send)) -> Result<(), TorError> {
    let mut events = arti.bootstrap_events();
    let mut wait = RETRY_FIRST;
    loop {
        let outcome = {
            let attempt = arti.bootstrap();
            tokio::pin!(attempt);
            loop {
                tokio::select! {
                    outcome = &mut attempt => break outcome,
                    Some(status) = events.next() => progress(Progress::from(&status)),
                }
            }
        };
        let Err(error) = outcome else {
            return until_ready(&arti, &mut events, progress).await;
        };
        if is_local(error.kind()) {
            return Err(TorError::sort(&error));
        }
        // The kind's text, not the error's: that one may name relays.
        let reason = error.kind().to_string();
        tracing::debug!(
            "Tor could not start ({reason}); trying again in {} s",
            wait.as_secs()
        );
        let mut now = Progress::from(&arti.bootstrap_status());
        now.blocked.get_or_insert(reason);
        progress(now);
        let pause = wait.mul_f64(rand::rng().random_range(0.5..=1.0));
        sleep(pause).await;
        wait = (wait * 2).min(RETRY_MAX);
    }
}

/// A directory from the cache makes Arti call itself bootstrapped before it has reached
/// any relay. Goes on until one has answered.
async fn until_ready(
    arti: &Arti,
    events: &mut BootstrapEvents,
    progress: &mut (dyn FnMut(Progress) + Send),
) -> Result<(), TorError> {
    let mut now = Progress::from(&arti.bootstrap_status());
    loop {
        let ready = now.ready;
        progress(now);
        if ready {
            return Ok(());
        }
        now = match events.next().await {
            Some(status) => Progress::from(&status),
            None => {
                return Err(TorError::Local {
                    reason: "Arti has stopped".to_owned(),
                });
            }
        };
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Client")
    }
}

/// Shows the gate the client's directory, without keeping the client alive.
fn follow(maker: &Maker, slot: &Arc<Slot>) {
    let slot = Arc::downgrade(slot);
    maker.gate().follow(Box::new(move || {
        let directory = slot.upgrade()?.get()?.dirmgr().ok()?;
        // However old: an expired directory still says which addresses are relays.
        directory.netdir(Timeliness::Unchecked).ok()
    }));
}

/// Keeps other kites out of the directory. Arti would let a second process in, which could then
/// neither keep its guards nor offer an onion service, and would say so in a log line only.
fn lock(state_dir: &Path) -> Result<File, TorError> {
    let local = |e: std::io::Error| TorError::Local {
        reason: format!("{}: {e}", state_dir.display()),
    };
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(state_dir)
        .map_err(local)?;
    let mut options = OpenOptions::new();
    options.create(true).truncate(false).write(true).mode(0o600);
    let file = options.open(state_dir.join(LOCK_FILE)).map_err(local)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(TorError::InUse),
        Err(TryLockError::Error(e)) => Err(local(e)),
    }
}

/// Kite's defaults, the user's file over them, and what follows from both for the gate.
fn configure(settings: &TorSettings) -> Result<(TorClientConfig, Rules, Needs), TorError> {
    let path = settings
        .config
        .clone()
        .unwrap_or_else(|| "built-in defaults".into());
    let bad = |reason: String| TorError::Config {
        path: path.clone(),
        reason,
    };
    let table = match &settings.config {
        Some(file) => read_config(file)?,
        None => toml::Table::new(),
    };
    let user =
        User::deserialize(toml::Value::Table(table.clone())).map_err(|e| bad(e.to_string()))?;

    let mut unknown = BTreeSet::new();
    let mut builder: TorClientConfigBuilder =
        serde_ignored::deserialize(toml::Value::Table(table), |key| {
            unknown.insert(key.to_string());
        })
        .map_err(|e| bad(e.to_string()))?;
    if !unknown.is_empty() {
        // A bridge section with a typing error must not mean no bridges.
        let keys = unknown.into_iter().collect::<Vec<_>>().join(", ");
        return Err(bad(format!("unknown keys: {keys}")));
    }
    let base = settings.state_dir.join("tor");
    if user.storage.state_dir.is_none() {
        builder
            .storage()
            .state_dir(CfgPath::new_literal(base.join("state")));
    }
    if user.storage.cache_dir.is_none() {
        builder
            .storage()
            .cache_dir(CfgPath::new_literal(base.join("cache")));
    }
    builder
        .path_rules()
        .set_long_lived_ports(LONG_LIVED.collect());
    let config = builder.build().map_err(|e| bad(e.to_string()))?;

    let place = |path: &CfgPath| path.path(config.as_ref()).map_err(|e| bad(e.to_string()));
    let directory = |users: &Option<CfgPath>, usual: &str| match users {
        Some(dir) => place(dir),
        None => Ok(base.join(usual)),
    };
    let transports = user.bridges.transports.iter();
    let needs = Needs {
        state_dir: directory(&user.storage.state_dir, "state")?,
        cache_dir: directory(&user.storage.cache_dir, "cache")?,
        programs: transports
            .filter_map(|t| t.path.as_ref().map(place))
            .collect::<Result<_, _>>()?,
    };
    let rules = rules(&config, &user, &needs.state_dir).map_err(bad)?;
    Ok((config, rules, needs))
}

fn read_config(path: &Path) -> Result<toml::Table, TorError> {
    let unreadable = |source| TorError::Unreadable {
        path: path.to_owned(),
        source,
    };
    let file = File::open(path).map_err(unreadable)?;
    let mut text = String::new();
    let size = file
        .take(MAX_CONFIG + 1)
        .read_to_string(&mut text)
        .map_err(unreadable)?;
    let bad = |reason: String| TorError::Config {
        path: path.to_owned(),
        reason,
    };
    if size as u64 > MAX_CONFIG {
        return Err(bad("it is too large".to_owned()));
    }
    text.parse()
        .map_err(|e: toml::de::Error| bad(e.to_string()))
}

/// The few of Arti's settings that we must see ourselves, since its built configuration does not show them.
#[derive(Default, Deserialize)]
#[serde(default)]
struct User {
    storage: UserStorage,
    bridges: UserBridges,
    channel: UserChannel,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct UserStorage {
    state_dir: Option<CfgPath>,
    cache_dir: Option<CfgPath>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct UserBridges {
    transports: Vec<UserTransport>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct UserTransport {
    path: Option<CfgPath>,
    proxy_addr: Option<SocketAddr>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct UserChannel {
    outbound_proxy: Option<String>,
}

/// What the gate lets through under this configuration.
fn rules(config: &TorClientConfig, user: &User, state_dir: &Path) -> Result<Rules, String> {
    let fallbacks: &FallbackList = config.as_ref();
    let fallbacks = fallbacks
        .iter()
        .flat_map(|f| f.addrs().collect::<Vec<_>>())
        .collect();
    let guards = relays::guards_of_earlier_runs(state_dir);
    let proxy = match user.channel.outbound_proxy.as_deref() {
        None | Some("") => None,
        Some(url) => Some(
            proxy_address(url).ok_or("channel.outbound_proxy needs an IP address and a port")?,
        ),
    };
    let bridges = if config.bridges_enabled() {
        Some(bridges(config, user)?)
    } else {
        None
    };
    Ok(Rules {
        fallbacks,
        guards,
        bridges,
        proxy,
    })
}

fn bridges(config: &TorClientConfig, user: &User) -> Result<Bridges, String> {
    let all: &[BridgeConfig] = config.as_ref();
    let direct = all
        .iter()
        .filter(|bridge| matches!(bridge.chan_method(), ChannelMethod::Direct(_)))
        .flat_map(|bridge| bridge.addrs().collect::<Vec<_>>())
        .collect();
    let transports = &user.bridges.transports;
    let ports = transports
        .iter()
        .filter_map(|t| t.proxy_addr)
        .collect::<Vec<_>>();
    if ports.iter().any(|port| !port.ip().is_loopback()) {
        return Err("bridges.transports: proxy_addr must be a loopback address, or Tor's traffic could be seen".to_owned());
    }
    Ok(Bridges {
        direct,
        transports: ports.into_iter().collect(),
        managed: transports.iter().any(|t| t.path.is_some()),
    })
}

/// The address in `socks5://user:password@192.0.2.1:1080`. Arti's parser has been over it already.
fn proxy_address(url: &str) -> Option<SocketAddr> {
    let authority = url.split_once("://")?.1.trim_end_matches('/');
    let place = authority
        .rsplit_once('@')
        .map_or(authority, |(_, place)| place);
    place.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(dir: &tempfile::TempDir, text: Option<&str>) -> TorSettings {
        let config = text.map(|text| {
            let path = dir.path().join("arti.toml");
            std::fs::write(&path, text).expect("write");
            path
        });
        TorSettings {
            state_dir: dir.path().join("kite"),
            config,
        }
    }

    fn configured(text: &str) -> Result<(TorClientConfig, Rules), TorError> {
        let dir = tempfile::tempdir().expect("a directory");
        configure(&settings(&dir, Some(text))).map(|(config, rules, _)| (config, rules))
    }

    /// Arti keeps the list to itself, but not from `Debug`.
    fn long_lived(config: &TorClientConfig) -> BTreeSet<u16> {
        let text = format!("{config:?}");
        let list = text
            .split("long_lived_ports: {")
            .nth(1)
            .and_then(|t| t.split('}').next());
        list.expect("the list")
            .split(", ")
            .map(|p| p.parse().expect("a port"))
            .collect()
    }

    fn refused(text: &str) -> String {
        match configured(text) {
            Ok(_) => panic!("accepted: {text}"),
            Err(e) => {
                assert!(e.to_string().contains("arti.toml"), "names the file: {e}");
                e.to_string()
            }
        }
    }

    const OBFS4: &str = "obfs4 192.0.2.55:38114 316E643333645F6D79216558614D3931657A5F5F \
        cert=YXJlIGZyZXF1ZW50bHkgZnVsbCBvZiBsaXR0bGUgbWVzc2FnZXMgeW91IGNhbiBmaW5kLg iat-mode=0";

    #[test]
    fn defaults_know_the_public_network_and_want_stable_relays() {
        let dir = tempfile::tempdir().expect("a directory");
        let (config, rules, needs) = configure(&settings(&dir, None)).expect("defaults");
        assert!(rules.fallbacks.len() > 100);
        assert!(rules.bridges.is_none() && rules.proxy.is_none() && rules.guards.is_empty());
        let usual = Needs {
            state_dir: dir.path().join("kite/tor/state"),
            cache_dir: dir.path().join("kite/tor/cache"),
            programs: vec![],
        };
        assert_eq!(needs, usual);
        assert_eq!(long_lived(&config), LONG_LIVED.collect());
    }

    #[test]
    fn the_file_is_laid_over_the_defaults() {
        let (config, _) = configured(
            "[path_rules]\nlong_lived_ports = [80]\n[storage]\nstate_dir = \"/elsewhere\"\n",
        )
        .expect("a good file");
        let text = format!("{config:?}");
        assert!(
            text.contains("/elsewhere") && text.contains("kite/tor/cache"),
            "{text}"
        );
        assert_eq!(long_lived(&config), LONG_LIVED.collect());
    }

    #[test]
    fn bridges_replace_everything_else() {
        let (_, rules) = configured(
            "[bridges]\nbridges = [\"192.0.2.56:443 0011223344556677889900112233445566778899\"]\n",
        )
        .expect("a good file");
        let bridges = rules.bridges.expect("bridges");
        assert_eq!(
            bridges.direct,
            ["192.0.2.56:443".parse().expect("address")].into()
        );
        assert!(!bridges.managed && bridges.transports.is_empty());

        let (_, rules) = configured(&format!(
            "[bridges]\nbridges = [\"{OBFS4}\"]\n[[bridges.transports]]\nprotocols = [\"obfs4\"]\npath = \"/usr/bin/obfs4proxy\"\n"
        ))
        .expect("a good file");
        let bridges = rules.bridges.expect("bridges");
        assert!(
            bridges.managed && bridges.direct.is_empty(),
            "the transport dials the bridge, Arti does not"
        );
        let dir = tempfile::tempdir().expect("a directory");
        let file = format!(
            "[bridges]\nbridges = [\"{OBFS4}\"]\n[[bridges.transports]]\nprotocols = [\"obfs4\"]\npath = \"/usr/bin/obfs4proxy\"\n"
        );
        let settings = settings(&dir, Some(&file));
        let hops = settings.first_hops().expect("a good file");
        let bridge = "192.0.2.55:38114".parse().expect("address");
        assert_eq!(hops.bridges, Some([bridge].into()));
        let programs = settings.needs().expect("a good file").programs;
        assert_eq!(programs, [PathBuf::from("/usr/bin/obfs4proxy")]);

        let (_, rules) = configured("[bridges]\nenabled = false\nbridges = [\"192.0.2.56:443 0011223344556677889900112233445566778899\"]\n")
            .expect("a good file");
        assert!(rules.bridges.is_none());
    }

    #[test]
    fn transports_elsewhere_are_refused() {
        let file = |port: &str| {
            format!(
                "[bridges]\nbridges = [\"{OBFS4}\"]\n[[bridges.transports]]\nprotocols = [\"obfs4\"]\nproxy_addr = \"{port}\"\n"
            )
        };
        let (_, rules) = configured(&file("127.0.0.1:4000")).expect("a good file");
        assert_eq!(
            rules.bridges.expect("bridges").transports,
            ["127.0.0.1:4000".parse().expect("address")].into()
        );
        assert!(refused(&file("192.0.2.1:4000")).contains("loopback"));
    }

    #[test]
    fn a_proxy_is_found_in_its_url() {
        for url in [
            "socks5://192.0.2.1:1080",
            "socks5://u:p@192.0.2.1:1080",
            "http://192.0.2.1:1080/",
        ] {
            assert_eq!(
                proxy_address(url),
                Some("192.0.2.1:1080".parse().expect("address")),
                "{url}"
            );
        }
        let (_, rules) = configured("[channel]\noutbound_proxy = \"socks5://192.0.2.1:1080\"\n")
            .expect("a good file");
        assert_eq!(
            rules.proxy,
            Some("192.0.2.1:1080".parse().expect("address"))
        );
    }

    #[test]
    fn mistakes_are_named() {
        assert!(refused("[brigdes]\nbridges = []\n").contains("brigdes"));
        assert!(
            refused("[address_filter]\nallow_local_adrs = true\n").contains("allow_local_adrs")
        );
        assert!(refused("[storage\n").contains("line 1"));
        assert!(refused("[path_rules]\nlong_lived_ports = \"x\"\n").contains("long_lived_ports"));
        assert!(refused("[bridges]\nenabled = true\n").contains("bridges"));
        let dir = tempfile::tempdir().expect("a directory");
        let missing = TorSettings {
            config: Some(dir.path().join("none.toml")),
            ..settings(&dir, None)
        };
        assert!(
            configure(&missing)
                .expect_err("missing")
                .to_string()
                .contains("none.toml")
        );
    }

    #[tokio::test]
    async fn a_client_starts_cold_and_dials_nothing() {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let dir = tempfile::tempdir().expect("a directory");
        let settings = TorSettings {
            state_dir: dir.path().to_owned(),
            ..TorSettings::default()
        };
        let client = Client::start(settings.clone()).expect("a client");
        assert!(matches!(
            Client::start(settings).err(),
            Some(TorError::InUse)
        ));
        assert!(!client.ready());
        let progress = client.progress();
        assert!(
            progress.fraction == 0.0
                && progress.text == "not started"
                && progress.blocked.is_none()
        );
        let error = client
            .connect("alice.example", 443, IsolationToken::new())
            .await
            .expect_err("an error");
        assert_eq!(error, ErrorKind::BootstrapRequired);
        assert!(matches!(
            OnionService::launch(&client, "kite", 443).err(),
            Some(TorError::NotBootstrapped)
        ));
        assert_eq!(client.dialled().to_string(), "0 dials; 0 refused");
    }
}
