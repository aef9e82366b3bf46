//! From a validated configuration to a running role. Here the way out is chosen,
//! once, before anything is dialled.

mod frontend;
mod upgrade;
mod walls;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use futures::future::{BoxFuture, join_all};
use tokio::signal::unix::Signal;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::backend::probe::{self, Seen};
use crate::backend::{self};
use crate::code::{Code, Coded};
use crate::config::{self, BackendConfig, ConfigError, SECRET_VARIABLE};
use crate::control::{self, Desk};
use crate::descriptors;
use crate::dial::origin::MAX_ORIGIN_CONNECTIONS;
use crate::dial::supervisor::Supervisor;
use crate::dial::{Dialer, DirectDialer, Egress, EgressError, TorDialer};
use crate::frontend::book::BookError;
use crate::frontend::{FrontendError, cannot_listen};
use crate::kite::Protocol;
use crate::listen::Port;
use crate::observe::board::Board;
use crate::observe::progress::{self, Event};
use crate::observe::score::Scores;
use crate::observe::status::{self, Role, Status};
use crate::observe::traffic::Speed;
use crate::privilege::PrivilegeError;
use crate::reload::{Answer, Order, Reloader};
use crate::sandbox;
use crate::shutdown::{self, Shutdown};
use crate::socks;
use crate::tls::{FileError, TlsClient};
use crate::tor::{self, TorError, TorSettings};
use crate::way_out;
use crate::web::{DoorError, Doors, Invitation, Reception};
use crate::witness::Witness;

pub use self::frontend::{Handover, frontend};
pub use self::upgrade::UpgradeError;

/// Reads a configuration again, as it was read at the start.
pub type Reread<C> = Box<dyn Fn() -> Result<C, ConfigError> + Send + Sync>;

/// What a backend gets to end in once Tor is obsolete: Arti ends the process soon after.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// How often it is looked, for a supervisor that waits, whether a kite flies.
const READY_POLL: Duration = Duration::from_millis(250);

/// How long one who asks for visits waits for them.
const PROBE_NOW: Duration = Duration::from_secs(120);
/// How long frontends may take until the start screen is shown without them.
const SCREEN: Duration = Duration::from_secs(30);
/// How long the first visits may take beyond that.
const SCREEN_VISITS: Duration = Duration::from_secs(20);

/// Why a role ended otherwise than as asked.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The frontend could not start.
    #[error(transparent)]
    Frontend(#[from] FrontendError),
    /// It is not clear how to go out.
    #[error(transparent)]
    Egress(#[from] EgressError),
    /// A certificate or key file is of no use.
    #[error(transparent)]
    File(#[from] FileError),
    /// The embedded Tor could not start.
    #[error("{}; {}", .0, .0.hint())]
    Tor(#[from] TorError),
    /// The SOCKS port cannot be opened.
    #[error(
        "cannot listen on {address} for SOCKS: {source}; choose another port with --socks-listen"
    )]
    Socks {
        /// The address from the configuration.
        address: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
    /// Root's rights cannot be given up as they should.
    #[error(transparent)]
    Privilege(#[from] PrivilegeError),
    /// Metrics or the status page cannot be offered.
    #[error(transparent)]
    Door(#[from] DoorError),
    /// A program that we start would know the secret.
    #[error(
        "{SECRET_VARIABLE} is set, and {} would inherit it; put the secret into a file (--secret-file, secret_file)",
        program.display()
    )]
    SecretInherited {
        /// The program of a pluggable transport.
        program: PathBuf,
    },
    /// An origin that must not become public.
    #[error(
        "{kite}: the origin {origin} is a web server, not a foolscap port. {remedy}",
        remedy = probe::WEB_REMEDY
    )]
    WebOrigin {
        /// The kite.
        kite: String,
        /// The address.
        origin: String,
    },
}

impl Coded for RunError {
    fn code(&self) -> Code {
        match self {
            Self::Frontend(e) => e.code(),
            Self::Egress(e) => e.code(),
            // A backend has no other file of this kind.
            Self::File(_) => Code::CaFile,
            Self::Tor(e) => e.code(),
            Self::Socks { source, .. } => cannot_listen(source),
            Self::Privilege(e) => e.code(),
            Self::Door(e) => e.code(),
            Self::SecretInherited { .. } => Code::SecretInherited,
            Self::WebOrigin { .. } => Code::OriginIsWeb,
        }
    }
}

impl RunError {
    /// True if neither a restart nor another configuration helps, but a newer kite.
    pub fn is_obsolete(&self) -> bool {
        matches!(self, Self::Tor(TorError::Obsolete))
    }

    /// True if the configuration is to be mended, false if the world is.
    pub fn is_configuration(&self) -> bool {
        match self {
            Self::Frontend(
                FrontendError::Bind { .. }
                | FrontendError::Abandoned(_)
                | FrontendError::Book(BookError::NoRoom(_)),
            )
            | Self::Socks { .. }
            | Self::Door(_) => false,
            Self::Frontend(_)
            | Self::Egress(_)
            | Self::File(_)
            | Self::Privilege(_)
            | Self::SecretInherited { .. }
            | Self::WebOrigin { .. } => true,
            Self::Tor(e) => matches!(e, TorError::Unreadable { .. } | TorError::Config { .. }),
        }
    }
}

/// What Tor will want of this machine. An error if a program that it starts would inherit the secret.
pub fn needs(settings: &TorSettings) -> Result<tor::Needs, RunError> {
    let needs = settings.needs()?;
    if let Some(program) = needs.programs.first()
        && std::env::var_os(SECRET_VARIABLE).is_some()
    {
        return Err(RunError::SecretInherited {
            program: program.clone(),
        });
    }
    Ok(needs)
}

/// A backend that has all it wants of this machine, files read and ports open, and has dialled nothing.
pub struct Backend {
    config: BackendConfig,
    egress: Egress,
    tls: TlsClient,
    socks: Option<(Port, SocketAddr)>,
    control: Option<control::Socket>,
    supervisor: Arc<Supervisor>,
    doors: Doors,
    sandbox: sandbox::Report,
    reread: Option<Reread<BackendConfig>>,
}

impl Backend {
    /// With a way to read its configuration again at SIGHUP.
    pub fn rereads(mut self, reread: Reread<BackendConfig>) -> Self {
        self.reread = Some(reread);
        self
    }

    /// True if it goes out through Tor.
    pub fn uses_tor(&self) -> bool {
        self.config.tor.enabled
    }

    /// Chooses the way out, and opens what a sandboxed process could not open any more.
    pub fn prepare(config: BackendConfig) -> Result<Self, RunError> {
        descriptors::raise(MAX_ORIGIN_CONNECTIONS);
        let egress = Egress::decide(config.egress())?;
        let tls = TlsClient::new(config.ca_file.as_deref())?;
        let open = |address| {
            let port = Port::open(address).map_err(|source| RunError::Socks { address, source })?;
            Ok::<_, RunError>((port, address))
        };
        let socks = config.socks.map(open).transpose()?;
        let control = control::Socket::open(&Role::Backend.socket(&config.state_dir));
        let doors = Doors::open(&config.local, &config.state_dir, Role::Backend)?;
        Ok(Self {
            config,
            egress,
            tls,
            socks,
            control,
            supervisor: Arc::new(Supervisor::find()),
            doors,
            sandbox: sandbox::Report::default(),
            reread: None,
        })
    }

    /// In Tor mode, gives up what this backend has no need of, for good: see [`sandbox::enter`], which
    /// wants to be called before any other thread is there. The log says what stands and what is missing.
    pub fn confine(&mut self) -> Result<(), RunError> {
        let Egress::Tor(settings) = &self.egress else {
            return Ok(());
        };
        let keep = way_out::of_backend(&self.config);
        self.sandbox = sandbox::enter(&way_out::plan(settings, keep)?);
        self.sandbox.tell();
        Ok(())
    }

    /// Runs until `shutdown`. `progress` hears of Tor's start, and of the way to each frontend.
    pub async fn run(
        self,
        mut progress: impl FnMut(&Event<'_>) + Send,
        shutdown: Shutdown,
    ) -> Result<(), RunError> {
        let shutdown = shutdown.within(self.config.drain);
        // From here on: while Tor starts they would end this process else, and what they ask for comes after.
        let signals = shutdown::hangups().and_then(|hangups| Ok((hangups, shutdown::upgrades()?)));
        let board = Board::with_scores(Scores::open(&self.config.state_dir));
        board.turn_to(&self.config.services);
        tokio::select! {
            seen = check_origins(&self.config.services, &board) => seen?,
            () = shutdown.requested() => return Ok(()),
        }
        let tor: Arc<OnceLock<Arc<tor::Client>>> = Arc::default();
        let reloader = Reloader::new(&self.config, self.config.tor.enabled);
        let plans = reloader.plans();
        let speed = Speed::default();
        let witness: Arc<OnceLock<Arc<Witness>>> = Arc::default();
        let desk = Arc::new(BackendDesk {
            via: if self.config.tor.enabled {
                "Tor"
            } else {
                "direct"
            },
            tor: tor.clone(),
            sandbox: self.sandbox.to_string().lines().map(Into::into).collect(),
            board: board.clone(),
            began: Instant::now(),
            speed: speed.clone(),
            witness: witness.clone(),
            reloader,
            reception: self.doors.reception(),
        });
        let seen: Arc<dyn Desk> = desk.clone();
        let _doors = self.doors.offer(&seen);
        // Dropped, it closes the port and all that came in there.
        let mut ports = JoinSet::new();
        ports.spawn(speed.watch(board.ledger().clone()));
        let _control;
        let mut obsolete: BoxFuture<TorError> = Box::pin(std::future::pending());
        let dialer: Arc<dyn Dialer> = match self.egress {
            Egress::Direct(allowed) => {
                tracing::info!(
                    "Tor is off: frontends see this machine's address; --via-tor hides it"
                );
                _control = control::offer(self.control, desk.clone());
                Arc::new(DirectDialer::new(allowed, self.tls))
            }
            Egress::Tor(settings) => {
                let client = Arc::new(tor::Client::start(settings)?);
                let _ = tor.set(client.clone());
                _control = control::offer(self.control, desk.clone());
                let watched = client.clone();
                obsolete = Box::pin(async move { watched.watch().await });
                let mut show = |p| {
                    progress(&Event::Tor(&p));
                    self.supervisor.status(&format!("Tor: {}", p.text));
                };
                tokio::select! {
                    started = client.bootstrap(&mut show) => started?,
                    end = &mut obsolete => return Err(end.into()),
                    () = shutdown.requested() => return Ok(()),
                }
                tracing::info!("Tor ready");
                if let Some((port, address)) = self.socks {
                    let failed = |source| RunError::Socks { address, source };
                    let listener = port.listener().map_err(failed)?;
                    tracing::info!(
                        "SOCKS port on {address}: what comes in there goes out through Tor"
                    );
                    ports.spawn(socks::serve(listener, client.clone()));
                }
                Arc::new(TorDialer::new(client, self.tls))
            }
        };
        let own = Arc::new(Witness::new(
            plans.clone(),
            dialer.clone(),
            board.clone(),
            self.config.witnessing,
        ));
        let _ = witness.set(own.clone());
        let visits = self.config.witnessing.enabled;
        if visits {
            ports.spawn(async move { own.watch().await });
        }
        let greeting = desk.clone();
        ports.spawn(async move { greeting.greet(visits).await });
        let reread = self.reread.filter(|_| !self.config.tor.enabled);
        if let Ok(signals) = signals {
            ports.spawn(heed_signals(signals, self.supervisor.clone(), desk, reread));
        }
        let (stop, order) = shutdown::channel();
        let order = order.within(self.config.drain);
        tokio::spawn(tell_flight(
            self.supervisor,
            board.clone(),
            shutdown.clone(),
        ));
        let mut telling = pin!(tell_tunnels(board.clone(), progress));
        let mut serving = pin!(backend::run(plans, dialer, board, order));
        tokio::select! {
            () = &mut serving => Ok(()),
            never = &mut telling => match never {},
            () = shutdown.requested() => {
                stop.stop();
                serving.await;
                Ok(())
            }
            end = obsolete => {
                stop.stop();
                let _ = timeout(LAST_WORDS, serving).await;
                Err(end.into())
            }
        }
    }
}

/// Tells of each tunnel's way to its frontend, for ever.
async fn tell_tunnels(board: Board, mut progress: impl FnMut(&Event<'_>) + Send) -> Infallible {
    loop {
        let tunnels = board.view();
        tunnels
            .iter()
            .for_each(|view| progress(&Event::Tunnel(view)));
        board.news().await;
    }
}

/// Tells a supervisor that a frontend has taken a kite, which is what a backend is started for; and when it ends.
async fn tell_flight(supervisor: Arc<Supervisor>, board: Board, shutdown: Shutdown) {
    if !supervisor.is_there() {
        return;
    }
    supervisor.status("no frontend has taken a kite yet");
    let flight = async {
        while board.view().iter().all(|tunnel| tunnel.kites.is_empty()) {
            sleep(READY_POLL).await;
        }
    };
    tokio::select! {
        () = flight => supervisor.ready("a kite flies; `kite status` says more"),
        () = shutdown.requested() => {}
    }
    tell_end(supervisor, shutdown).await;
}

/// Tells a supervisor that the end was asked for.
async fn tell_end(supervisor: Arc<Supervisor>, shutdown: Shutdown) {
    shutdown.requested().await;
    supervisor.stopping(shutdown.drain());
}

/// Reads a backend's configuration again at each SIGHUP, for ever. Behind its walls it has no way to do that. SIGUSR2 is for
/// frontends.
async fn heed_signals(
    (mut hangups, mut upgrades): (Signal, Signal),
    supervisor: Arc<Supervisor>,
    desk: Arc<BackendDesk>,
    reread: Option<Reread<BackendConfig>>,
) {
    loop {
        tokio::select! {
            Some(()) = hangups.recv() => {}
            Some(()) = upgrades.recv() => {
                tracing::info!("SIGUSR2 means nothing to a backend; restart it for another program");
                continue;
            }
            else => return,
        }
        supervisor.reloading();
        match reread.as_ref().map(|read| read()) {
            Some(Ok(config)) => {
                // It logs what comes of it.
                desk.reload(Order::new(&config)).await;
            }
            Some(Err(e)) => {
                tracing::warn!("[{}] reload: nothing was changed: {e}", Code::ReloadRefused)
            }
            None => tracing::warn!(
                "[{}] reload: nothing was changed: the sandbox keeps this process from its configuration; run \
                 `kite reload` with the same flags instead of a signal",
                Code::ReloadRefused
            ),
        }
        supervisor.ready("the configuration was read again; `kite status` says how it is");
    }
}

/// What a running backend can be asked.
struct BackendDesk {
    via: &'static str,
    tor: Arc<OnceLock<Arc<tor::Client>>>,
    sandbox: Vec<String>,
    board: Board,
    began: Instant,
    speed: Speed,
    witness: Arc<OnceLock<Arc<Witness>>>,
    reloader: Reloader,
    reception: Arc<Reception>,
}

impl BackendDesk {
    /// Shows the start screen, once each frontend is up and has been visited, or that took too long: in lines of the
    /// log, or on standard output if that is a terminal.
    async fn greet(&self, visits: bool) {
        let began = Instant::now();
        let is_done = |status: &Status| {
            let all_up = !status.frontends.is_empty() && status.frontends.iter().all(|f| f.up > 0);
            let visited = |k: &status::Kite| {
                let seen = |at: &String| k.probe(at).is_some();
                !k.kite.starts_with("foolscap") || k.flies_at.iter().all(seen)
            };
            let seen = !visits || status.kites.iter().all(visited);
            match (all_up, seen) {
                (true, true) => true,
                (_, true) => began.elapsed() >= SCREEN,
                _ => began.elapsed() >= SCREEN + SCREEN_VISITS,
            }
        };
        let mut status = self.status();
        while !is_done(&status) {
            tokio::time::sleep(Duration::from_millis(500)).await;
            status = self.status();
        }
        progress::say(&status.screen());
    }
}

#[async_trait]
impl Desk for BackendDesk {
    fn status(&self) -> Status {
        let tor = self.tor.get();
        let mut status = Status {
            via: Some(self.via.to_owned()),
            tor: tor.map(|c| status::Tor::new(c.progress(), &c.dialled())),
            sandbox: self.sandbox.clone(),
            ..Status::of_backend(self.began, &self.board, &self.speed, &self.reloader.plan())
        };
        if tor.is_some() {
            status.tunnels = status.tunnels.into_iter().map(|t| t.in_tor()).collect();
        }
        status
    }

    fn web(&self) -> Invitation {
        self.reception.invite()
    }

    async fn probe(&self) -> Status {
        if let Some(witness) = self.witness.get() {
            // What is not over by then is not known, and the answer says how old the last visits are.
            let _ = timeout(PROBE_NOW, witness.visit_all()).await;
        }
        self.status()
    }

    async fn reload(&self, order: Order) -> Answer {
        let refused = |why: String| {
            tracing::warn!(
                "[{}] reload: nothing was changed: {why}",
                Code::ReloadRefused
            );
            Answer::Refused(why)
        };
        let plan = match self.reloader.accept(&order) {
            Ok(plan) => plan,
            Err(why) => return refused(why),
        };
        if let Err(e) = check_origins(&plan.services, &self.board).await {
            return refused(e.to_string());
        }
        let changes = self.reloader.turn_to(plan);
        changes
            .iter()
            .for_each(|line| tracing::info!("reload: {line}"));
        Answer::Changed(changes)
    }
}

/// Looks at each origin. One that is down may come up later, and is looked at again before
/// it gets a visitor; a web server behind a foolscap kite is a mistake that must not fly.
async fn check_origins(services: &[config::Service], board: &Board) -> Result<(), RunError> {
    for service in services.iter().filter(|s| s.protocol.is_plaintext()) {
        tracing::warn!(
            "[{}] {}:{}: frontends, and everyone between them and visitors, can read what this kite carries; give it \
             protocol = \"https\" if its origin has TLS",
            Code::PlaintextKite,
            service.ported(),
            service.name
        );
    }
    let foolscap = services.iter().filter(|s| s.protocol == Protocol::Foolscap);
    let looks = foolscap.map(|s| async move { (s, probe::look(s).await) });
    for (service, seen) in join_all(looks).await {
        if seen == Seen::Web {
            return Err(RunError::WebOrigin {
                kite: service.name.to_string(),
                origin: service.origin.to_string(),
            });
        }
        seen.log(service);
        seen.note(service, board);
    }
    Ok(())
}
