//! The public side: takes visitors and backends on the same ports, tells them apart
//! by their first bytes, and joins each visitor with the tunnel of the kite it wants.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Instant;

use futures::{Stream, StreamExt};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot, watch};

pub mod account;
pub mod accounts;
mod acme;
pub mod auth;
pub mod authority;
pub mod awaited;
pub mod balancer;
pub mod blocked;
pub mod book;
mod certificates;
pub mod doorstep;
pub mod handshakes;
pub mod invitations;
pub mod invited;
mod join;
mod keeper;
pub mod kites;
mod leave;
pub mod limits;
mod motd;
pub mod onion;
pub mod open;
mod own_page;
mod passing;
mod register;
pub mod registry;
mod reread;
pub mod storage;
mod visitor;
mod visits;

use crate::code::{Code, Coded};
use crate::config::{FrontendConfig, Listen};
use crate::descriptors;
use crate::dial::BoxConn;
use crate::fleet::etcd::Etcd;
use crate::fleet::member::{Member, Members};
use crate::fleet::{self, Fleet};
use crate::kite::KiteName;
use crate::listen::handed::Handed;
use crate::listen::{self, Port, TcpListener, TcpStream};
use crate::observe::hush::{Hush, Hushes};
use crate::observe::traffic::{Count, Ledger, Of};
use crate::shutdown::Shutdown;
use crate::tls::{FileError, MemberTls, Pin, TlsServer};
use crate::tunnel::buffer::Pool;
use crate::wire::Binding;
use accounts::{Accounts, Listed};
use acme::{Challenges, Issuer};
use auth::Judge;
use authority::Authorities;
use awaited::{Awaited, Whom};
use book::BookError;
use certificates::Certificates;
use doorstep::Doorstep;
use handshakes::Handshakes;
use motd::Motd;
use registry::{Registry, TunnelView};
use storage::Policy;

/// Connections served at a time, visitors and backends together, if the process may have as many files open. For more, those
/// that have not said what they want are closed; if there are none, new ones wait in the kernel's queue.
pub const MAX_CONNECTIONS: usize = 16 * 1024;

/// Why a frontend cannot start.
#[derive(Debug, thiserror::Error)]
pub enum FrontendError {
    /// An address cannot be listened on.
    #[error("cannot listen on {address}: {}; the address is given with --listen", bind_problem(.source, address.port()))]
    Bind {
        /// The address from the configuration.
        address: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
    /// A supervisor has opened a port that nothing is to be done with.
    #[error(
        "{} {} handed over, and the configuration does not listen there; add it to `listen`, or take it out of the \
         socket unit",
        list(.0), if .0.len() == 1 { "was" } else { "were" }
    )]
    Handed(Vec<SocketAddr>),
    /// The frontend whose place this one was to take.
    #[error("the frontend that was to be replaced did not let go ({0}), and goes on; try again")]
    Abandoned(std::io::Error),
    /// The state directory cannot be made.
    #[error("cannot make the state directory {}: {source}; give --state-dir DIR with a place that this user may write to", .path.display())]
    StateDir {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The key cannot be used.
    #[error(transparent)]
    Key(#[from] FileError),
    /// The book cannot be used.
    #[error(transparent)]
    Book(#[from] BookError),
}

impl Coded for FrontendError {
    fn code(&self) -> Code {
        match self {
            Self::Bind { source, .. } => cannot_listen(source),
            Self::Handed(_) => Code::SocketUnwanted,
            Self::Abandoned(_) => Code::UpgradeFailed,
            Self::StateDir { .. } => Code::StateDir,
            Self::Key(e) => e.code(),
            Self::Book(e) => e.code(),
        }
    }
}

fn list(addresses: &[SocketAddr]) -> String {
    let all: Vec<_> = addresses.iter().map(ToString::to_string).collect();
    all.join(", ")
}

/// Why an address cannot be listened on, in one code.
pub(crate) fn cannot_listen(error: &std::io::Error) -> Code {
    match error.kind() {
        std::io::ErrorKind::AddrInUse => Code::PortTaken,
        _ => Code::PortForbidden,
    }
}

/// Ports below this are for root, and for who was granted them.
const FREE_PORTS: u16 = 1024;

pub(crate) fn bind_problem(error: &std::io::Error, port: u16) -> String {
    match error.kind() {
        std::io::ErrorKind::AddrInUse => {
            "another program uses this port; stop it, or choose another port".into()
        }
        std::io::ErrorKind::PermissionDenied if port >= FREE_PORTS => {
            "the system forbids it; if this was an upgrade, the ports of the frontend that runs cannot become more: restart it instead".into()
        }
        std::io::ErrorKind::PermissionDenied => {
            "this user may not use ports below 1024; grant CAP_NET_BIND_SERVICE, or choose a higher port".into()
        }
        std::io::ErrorKind::AddrNotAvailable => "this machine has no such address; use 0.0.0.0 for all it has".into(),
        _ => format!("{error}; choose another address"),
    }
}

/// The permission to speak with a certificate authority directly. No other room can make one, so no
/// backend has it.
#[derive(Debug)]
pub struct PublicSide(());

/// A frontend that has bound its ports and loaded its key.
pub struct Frontend {
    shared: Arc<Shared>,
    issuer: Option<Issuer>,
    listeners: Vec<(Arc<TcpListener>, Listen)>,
    /// Where other members of the fleet come in.
    inner: Option<Arc<TcpListener>>,
    /// The etcd that has the fleet's book, and what stands there of this frontend.
    etcd: Option<(Etcd, Member)>,
}

/// A frontend whose ports are open and whose keys are read, and that has not looked into its book yet: another may have that.
pub struct Prepared {
    config: FrontendConfig,
    tls: TlsServer,
    certificates: Arc<Certificates>,
    listeners: Vec<(Arc<TcpListener>, Listen)>,
    fleet: Option<(Fleet, Arc<TcpListener>)>,
    etcd: Option<(Etcd, Member)>,
}

/// What every connection of a frontend needs.
struct Shared {
    accounts: Arc<Accounts>,
    motd: Motd,
    judge: Judge,
    registry: Registry,
    /// Visitors of no kite.
    strangers: Arc<Count>,
    /// Our own key, which kite backends pin.
    tls: TlsServer,
    /// What authorities have signed.
    certificates: Arc<Certificates>,
    challenges: Arc<Challenges>,
    name: Option<String>,
    /// For visitors of that name.
    own_page: Option<own_page::Ready>,
    policy: Policy,
    /// Kites of strangers, if they are taken.
    open: Option<open::Open>,
    /// The other frontends of the domain, if there are any.
    fleet: Option<Arc<Fleet>>,
    /// For whoever wants more than storage of a kite that carries nothing else.
    storage_page: own_page::Ready,
    log_peers: bool,
    uuid: String,
    pool: Pool,
    slots: Arc<Semaphore>,
    /// All slots.
    most: usize,
    doorstep: Arc<Doorstep>,
    handshakes: Handshakes,
    arriving: leave::Arriving,
    /// Whether this frontend goes away.
    going: watch::Sender<bool>,
    awaited: Awaited,
    /// What a reload compares with.
    terms: Mutex<reread::Terms>,
    /// Connections that were turned away behind a load balancer.
    unintroduced: Hush,
    /// What was said of kites that may not fly.
    refused: Hushes,
    /// Requests for a tunnel that came to nothing.
    in_vain: Hush,
    /// Visitors for whom a tunnel had no stream.
    no_stream: Hush,
}

impl Prepared {
    /// Opens the ports that were not handed over, and reads what there is of keys and certificates. Must be called within
    /// a Tokio runtime.
    pub fn new(config: FrontendConfig, handed: &mut Handed) -> Result<Self, FrontendError> {
        std::fs::create_dir_all(&config.state_dir).map_err(|source| FrontendError::StateDir {
            path: config.state_dir.clone(),
            source,
        })?;
        let tls = TlsServer::load_or_create(&config.state_dir)?;
        let certificates = Arc::new(Certificates::load(config.certificates.clone())?);
        let mut open = |address| {
            let open = |port: Option<Port>| match port {
                Some(port) => port.listener(),
                None => listen::bind(address),
            };
            let listener = handed.take(address).and_then(open);
            let listener = listener.map_err(|source| FrontendError::Bind { address, source })?;
            Ok::<_, FrontendError>(Arc::new(listener))
        };
        let mut listeners = Vec::new();
        for listen in config.listen.clone() {
            listeners.push((open(listen.address)?, listen));
        }
        let mut etcd = None;
        let fleet = match &config.fleet {
            Some(fleet) => {
                let tls = MemberTls::load_or_create(&config.state_dir)?;
                let members = Members::new(fleet.members.clone());
                let mut known = Fleet::new(fleet.id.clone(), members, tls);
                if let Some(config) = &fleet.etcd {
                    let book = Etcd::new(config.settings.clone())?;
                    known = known.kept_in(book.state());
                    let me = Member {
                        id: fleet.id.clone(),
                        address: config.address,
                        pin: known.pin(),
                        public: config.public.clone(),
                    };
                    etcd = Some((book, me));
                }
                Some((known, open(fleet.listen)?))
            }
            None => None,
        };
        Ok(Self {
            fleet,
            etcd,
            config,
            tls,
            certificates,
            listeners,
        })
    }

    /// Opens the book, too: all is there. From now on visitors of these kites wait for a while for them.
    pub fn complete(self, awaited: Whom) -> Result<Frontend, FrontendError> {
        let Self {
            config,
            tls,
            certificates,
            listeners,
            fleet,
            etcd,
        } = self;
        let (fleet, inner) = match fleet {
            Some((fleet, listener)) => (Some(Arc::new(fleet)), Some(listener)),
            None => (None, None),
        };
        let terms = reread::Terms::of(&config);
        let sniffed = listeners.iter().filter(|(_, listen)| !listen.raw);
        let ports: Vec<u16> = sniffed.map(|(l, listen)| public_port(l, listen)).collect();
        let accounts = Accounts::open(config.kites, config.limits, &config.state_dir)?;
        let accounts = Arc::new(accounts);
        let challenges: Arc<Challenges> = Arc::default();
        let issuer = config.acme.map(|acme| {
            let (challenges, certificates) = (challenges.clone(), certificates.clone());
            Issuer::new(
                acme,
                config.state_dir.clone(),
                &ports,
                challenges,
                certificates,
            )
        });
        let issuer = issuer.transpose()?;
        let registry = Registry::default();
        registry.keep_from(accounts.blocked());
        let most = descriptors::room_for(MAX_CONNECTIONS);
        let shared = Shared {
            strangers: registry.ledger().count(Of::default()),
            judge: Judge::new(
                accounts.clone(),
                Authorities::new(config.authorities),
                ports,
                config.policy,
            ),
            accounts,
            motd: Motd::new(config.motd),
            registry,
            tls,
            certificates,
            challenges,
            own_page: own_page::Ready::new(
                &config.page,
                config.name.as_deref(),
                config.policy,
                config.open.as_ref(),
            ),
            policy: config.policy,
            open: config.open.map(open::Open::new),
            fleet,
            storage_page: own_page::Ready::storage_only(&config.page),
            name: config.name,
            log_peers: config.log_peers,
            uuid: crate::random::random_hex(40),
            pool: Pool::new(),
            slots: Arc::new(Semaphore::new(most)),
            most,
            doorstep: Arc::default(),
            handshakes: Handshakes::default(),
            arriving: leave::Arriving::default(),
            going: watch::Sender::new(false),
            awaited: Awaited::new(awaited, config.grace),
            terms: Mutex::new(terms),
            unintroduced: Hush::default(),
            refused: Hushes::default(),
            in_vain: Hush::default(),
            no_stream: Hush::default(),
        };
        Ok(Frontend {
            shared: Arc::new(shared),
            issuer,
            listeners,
            inner,
            etcd,
        })
    }
}

impl Frontend {
    /// Binds and loads. Must be called within a Tokio runtime.
    pub fn new(config: FrontendConfig) -> Result<Self, FrontendError> {
        Prepared::new(config, &mut Handed::default())?.complete(Whom::entitled())
    }

    /// The sockets that listen, for as long as they do.
    pub fn sockets(&self) -> Vec<Weak<TcpListener>> {
        let public = self.listeners.iter().map(|(l, _)| l);
        public.chain(&self.inner).map(Arc::downgrade).collect()
    }

    /// The addresses that are listened on.
    pub fn local_addrs(&self) -> Vec<SocketAddr> {
        self.listeners
            .iter()
            .filter_map(|(l, _)| l.local_addr().ok())
            .collect()
    }

    /// What backends are to be given, pins included: one address for each port that
    /// belongs to no kite. Behind a load balancer it is the balancer's name that counts.
    pub fn pinned_addresses(&self) -> Vec<String> {
        let pin = self.shared.tls.pin();
        let name = self.shared.name.as_deref();
        let shared_ports = self
            .listeners
            .iter()
            .filter(|(_, listen)| listen.kite.is_none());
        shared_ports
            .filter_map(|(l, listen)| Some((l.local_addr().ok()?, public_port(l, listen))))
            .map(|(address, port)| pinned_address(name, address, port, &pin))
            .collect()
    }

    /// A handle that outlives [`Frontend::run`]'s taking of `self`.
    pub fn handle(&self) -> Handle {
        Handle(self.shared.clone())
    }

    /// Serves until `shutdown`, and lets then what runs end for as long as that says.
    pub async fn run(self, shutdown: Shutdown) {
        for address in self.local_addrs() {
            tracing::info!("listening on {address}");
        }
        for address in self.pinned_addresses() {
            tracing::info!("backends dial {address}");
        }
        if self.shared.policy.is_storage_only() {
            tracing::info!(
                "storage only: whatever a kite is allowed, it carries Tahoe's storage traffic and nothing else"
            );
        }
        if let Some(open) = &self.shared.open {
            tracing::info!(
                "open to storage nodes: TUBID.{} flies without an account; its backend says proof = \"tub\"",
                open.domain()
            );
        }
        self.shared.certificates.announce();
        let mut loops = tokio::task::JoinSet::new();
        loops.spawn(certificates::keep_fresh(self.shared.certificates.clone()));
        if let Some(issuer) = self.issuer {
            loops.spawn(issuer.run());
        }
        for (listener, listen) in self.listeners {
            loops.spawn(accept_loop(self.shared.clone(), listener, listen));
        }
        loops.spawn(keeper::keep(self.shared.clone()));
        if let (Some(fleet), Some(listener)) = (self.shared.fleet.clone(), self.inner) {
            tracing::info!("fleet: this is {}; {}", fleet.me(), fleet.entry(&listener));
            fleet.look_at_itself();
            loops.spawn(fleet::link::run(fleet, listener, self.shared.clone()));
        }
        let book = self.etcd.zip(self.shared.fleet.clone());
        let book = book.map(|((etcd, me), fleet)| {
            let (over, ended) = oneshot::channel::<()>();
            let host = self.shared.clone();
            let over_then = async move {
                let _ = ended.await;
            };
            let keeping = tokio::spawn(async move { etcd.keep(fleet, host, &me, over_then).await });
            (over, keeping)
        });
        shutdown.requested().await;
        // Dropping the loops closes the listening sockets.
        loops.shutdown().await;
        leave::leave(&self.shared, shutdown.drain()).await;
        // What flies here stands in etcd until it has landed.
        if let Some((over, keeping)) = book {
            drop(over);
            let _ = keeping.await;
        }
        keeper::save(&self.shared).await;
    }
}

/// Stands in a printed address where only the operator knows what belongs there.
const UNKNOWN_NAME: &str = "YOUR-PUBLIC-NAME";

/// What backends are given for one port.
fn pinned_address(name: Option<&str>, address: SocketAddr, port: u16, pin: &Pin) -> String {
    let host = match (name, address.ip()) {
        (Some(name), _) => name.to_owned(),
        (None, ip) if ip.is_unspecified() => UNKNOWN_NAME.into(),
        (None, std::net::IpAddr::V6(ip)) => format!("[{ip}]"),
        (None, ip) => ip.to_string(),
    };
    format!("{host}:{port}#{pin}")
}

/// Looks at a running frontend, and brings it an [onion service's](onion) connections.
#[derive(Clone)]
pub struct Handle(Arc<Shared>);

impl Handle {
    /// Serves connections that came through the onion service of this name, until there are
    /// no more. They must be backends'. The name is the one they dialled: proofs are bound to it.
    pub async fn enter(&self, conns: impl Stream<Item = BoxConn>, onion: &str) {
        let mut conns = pin!(conns);
        loop {
            // Without a slot new connections wait in the service.
            let Some(slot) = self.0.slot().await else {
                return;
            };
            let mut going = self.0.going.subscribe();
            let next = tokio::select! {
                next = conns.next() => next,
                _ = going.wait_for(|going| *going) => None,
            };
            let Some(conn) = next else { return };
            let shared = self.0.clone();
            let binding = Some(Binding::onion(onion));
            tokio::spawn(async move {
                visitor::serve_inner(&shared, conn, binding, ONION_PEER).await;
                drop(slot);
            });
        }
    }

    /// Adds, removes or names kites. What is removed comes down at once.
    pub async fn kites(&self, order: kites::Order) -> kites::Answer {
        let shared = self.0.clone();
        // It waits for the disk.
        let done = tokio::task::spawn_blocking(move || {
            let blocked = match &order {
                kites::Order::Block { name } => name.parse::<KiteName>().ok(),
                _ => None,
            };
            let down = |name: &KiteName| {
                let flying = shared.registry.flying().into_iter();
                flying
                    .filter(|(_, host)| host.parse().is_ok_and(|host| name.covers(&host)))
                    .count()
            };
            let down = blocked.as_ref().map(down);
            let mut answer = order.carry_out(&shared.accounts);
            if let kites::Answer::All(all) = &mut answer {
                let (now, seen) = shared.registry.names();
                Listed::fly(all, &now, &seen);
            }
            shared.revoke();
            if let (kites::Answer::Done, Some(name), Some(down)) = (&answer, blocked, down) {
                let above = shared.registry.cut_above(&name);
                answer = kites::Answer::Grounded { down, above };
            }
            answer
        });
        done.await
            .unwrap_or_else(|_| kites::Answer::Refused("the frontend stops".to_owned()))
    }

    /// What is carried, whatever kites are allowed.
    pub fn policy(&self) -> Policy {
        self.0.policy
    }

    /// Takes another configuration. What has changed, a line each; or why nothing has.
    pub async fn turn_to(&self, config: FrontendConfig) -> Result<Vec<String>, String> {
        let shared = self.0.clone();
        // It waits for the disk.
        let done = tokio::task::spawn_blocking(move || shared.turn_to(config));
        done.await
            .unwrap_or_else(|_| Err("the frontend stops".to_owned()))
    }

    /// Who is to be expected back by the one that takes this one's place: what flies, and who is still expected here. All get
    /// its whole `grace`.
    pub fn expected(&self) -> Whom {
        let mut whom = self.0.awaited.still();
        whom.flown.extend(self.0.registry.flying());
        whom
    }

    /// Lets go of the book, for the kite that takes this one's place; what has been used is written down first.
    pub async fn lend_book(&self) {
        keeper::save(&self.0).await;
        let accounts = self.0.accounts.clone();
        let _ = tokio::task::spawn_blocking(move || accounts.lend_book(true)).await;
    }

    /// Has the book again, with what the other may have written: nobody has taken this one's place.
    pub async fn take_book_back(&self) {
        let accounts = self.0.accounts.clone();
        let _ = tokio::task::spawn_blocking(move || accounts.lend_book(false)).await;
    }

    /// The fleet that this frontend is a part of.
    pub fn fleet(&self) -> Option<&Fleet> {
        self.0.fleet.as_deref()
    }

    /// Its open side, if it has one.
    pub fn open(&self) -> Option<&open::Open> {
        self.0.open.as_ref()
    }

    /// The counts of what passes.
    pub fn ledger(&self) -> Ledger {
        self.0.registry.ledger()
    }

    /// The tunnels that are up.
    pub fn tunnels(&self) -> Vec<TunnelView> {
        self.0.registry.overview()
    }
}

/// What logs call a backend that came through an onion service.
const ONION_PEER: &str = "an onion circuit";

/// The port as visitors know it.
fn public_port(listener: &TcpListener, listen: &Listen) -> u16 {
    let local = || listener.local_addr().map(|a| a.port());
    listen
        .port
        .unwrap_or_else(|| local().unwrap_or(listen.address.port()))
}

async fn accept_loop(shared: Arc<Shared>, listener: Arc<TcpListener>, listen: Listen) {
    let port = public_port(&listener, &listen);
    let balancers = listen.balancers.map(Arc::new);
    loop {
        // Without a slot new connections wait in the kernel.
        let Some(slot) = shared.slot().await else {
            return;
        };
        let (conn, peer) = listen::accept(&listener).await;
        let door = Arrival {
            peer,
            port,
            port_kite: listen.kite.clone(),
            raw: listen.raw,
            brought: None,
        };
        let (shared, balancers) = (shared.clone(), balancers.clone());
        tokio::spawn(async move {
            visitor::serve(&shared, conn, door, balancers.as_deref()).await;
            drop(slot);
        });
    }
}

/// How a connection came in.
struct Arrival {
    /// Whom it is from: the peer, or whom a load balancer named.
    peer: SocketAddr,
    /// As visitors know it.
    port: u16,
    port_kite: Option<KiteName>,
    /// It is that kite's, whatever it says.
    raw: bool,
    /// The member of the fleet that has brought it here.
    brought: Option<passing::By>,
}

impl Shared {
    /// A slot for one more connection. If all are taken, one that stands at the doorstep is closed for it; if there is none,
    /// this waits until somebody leaves.
    async fn slot(&self) -> Option<OwnedSemaphorePermit> {
        if let Ok(slot) = self.slots.clone().try_acquire_owned() {
            return Some(slot);
        }
        self.doorstep.send_one_away();
        // Nobody closes the semaphore.
        self.slots.clone().acquire_owned().await.ok()
    }

    /// A request for a tunnel came to nothing. Strangers can bring that about, so it is seldom said.
    fn in_vain(&self, what: impl FnOnce() -> String) {
        if let Some(before) = self.in_vain.due(Instant::now()) {
            tracing::info!("{}{before}", what());
        }
    }

    /// Does this frontend go away?
    fn leaving(&self) -> bool {
        *self.going.borrow()
    }

    fn terms(&self) -> std::sync::MutexGuard<'_, reread::Terms> {
        self.terms.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Is this the frontend's own public name?
    fn is_called(&self, name: &KiteName) -> bool {
        let own = self.name.as_ref();
        own.is_some_and(|own| own.eq_ignore_ascii_case(name.as_str()))
    }

    /// What logs call a peer.
    fn shown(&self, peer: SocketAddr) -> String {
        if self.log_peers {
            peer.to_string()
        } else {
            "[scrubbed]".into()
        }
    }
}

/// A visitor's or backend's socket.
type Socket = TcpStream;
