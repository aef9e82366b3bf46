//! From a validated configuration to a running role. Here the way out is chosen,
//! once, before anything is dialled.

use std::net::SocketAddr;
use std::pin::pin;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::backend::probe::{self, Seen};
use crate::backend::{self};
use crate::config::{self, BackendConfig, FrontendConfig};
use crate::dial::{Dialer, DirectDialer, Egress, EgressArgs, EgressError, OriginAddr, TorDialer};
use crate::frontend::onion::OnionDoor;
use crate::frontend::{Frontend, FrontendError, Handle};
use crate::kite::Protocol;
use crate::listen::Port;
use crate::observe::board::Board;
use crate::observe::status::{self, Role, Status};
use crate::sandbox;
use crate::shutdown::{self, Shutdown};
use crate::socks;
use crate::tls::{FileError, TlsClient};
use crate::tor::{self, Progress, TorError, TorSettings};

/// What a backend gets to end in once Tor is obsolete: Arti ends the process soon after.
const LAST_WORDS: Duration = Duration::from_secs(2);

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

impl RunError {
    /// True if neither a restart nor another configuration helps, but a newer kite.
    pub fn is_obsolete(&self) -> bool {
        matches!(self, Self::Tor(TorError::Obsolete))
    }

    /// True if the configuration is to be mended, false if the world is.
    pub fn is_configuration(&self) -> bool {
        match self {
            Self::Frontend(FrontendError::Bind { .. }) | Self::Socks { .. } => false,
            Self::Frontend(_) | Self::Egress(_) | Self::File(_) | Self::WebOrigin { .. } => true,
            Self::Tor(e) => matches!(e, TorError::Unreadable { .. } | TorError::Config { .. }),
        }
    }
}

/// Runs a frontend until `shutdown`. `progress` hears of Tor's start, if it is an onion
/// frontend; visitors, and backends on other ports, are served meanwhile.
pub async fn frontend(
    config: FrontendConfig,
    progress: impl FnMut(&Progress) + Send,
    shutdown: Shutdown,
) -> Result<(), RunError> {
    let settings = config.onion.enabled.then(|| TorSettings {
        state_dir: config.state_dir.clone(),
        config: config.onion.config.clone(),
        long_lived_ports: Vec::new(),
    });
    let state_dir = config.state_dir.clone();
    let frontend = Frontend::new(config)?;
    let onion: Arc<OnceLock<String>> = Arc::default();
    let handle = frontend.handle();
    let published = onion.clone();
    let pinned = frontend.pinned_addresses();
    let began = Instant::now();
    let report = move || Status {
        addresses: pinned.iter().chain(published.get()).cloned().collect(),
        backends: handle.tunnels().into_iter().map(Into::into).collect(),
        ..Status::new(Role::Frontend, began)
    };
    let socket = status::Socket::open(&Role::Frontend.socket(&state_dir));
    status::offer(socket, report);
    let Some(settings) = settings else {
        frontend.run(shutdown).await;
        return Ok(());
    };
    let client = Arc::new(tor::Client::start(settings)?);
    let opening = open_door(&client, frontend.handle(), &onion, progress);
    let mut serving = pin!(frontend.run(shutdown));
    let mut obsolete = pin!(client.watch());
    // The service lives as long as its handle: until all tunnels have ended.
    let _door = tokio::select! {
        () = &mut serving => return Ok(()),
        door = opening => door?,
        end = &mut obsolete => return Err(end.into()),
    };
    tokio::select! {
        () = serving => Ok(()),
        end = obsolete => Err(end.into()),
    }
}

/// Starts Tor and publishes the frontend's onion service, however long it takes.
async fn open_door(
    client: &Arc<tor::Client>,
    frontend: Handle,
    address: &OnceLock<String>,
    mut progress: impl FnMut(&Progress) + Send,
) -> Result<OnionDoor, RunError> {
    client.bootstrap(&mut |p| progress(&p)).await?;
    tracing::info!("Tor ready; publishing the onion service, which can take a minute");
    let door = OnionDoor::open(client.clone(), frontend)?;
    door.published().await;
    tracing::info!("backends dial {}", door.address());
    let _ = address.set(door.address());
    Ok(door)
}

/// A backend that has all it wants of this machine, files read and ports open, and has dialled nothing.
pub struct Backend {
    config: BackendConfig,
    egress: Egress,
    tls: TlsClient,
    socks: Option<(Port, SocketAddr)>,
    status: Option<status::Socket>,
    sandbox: sandbox::Report,
}

impl Backend {
    /// Chooses the way out, and opens what a sandboxed process could not open any more.
    pub fn prepare(config: BackendConfig) -> Result<Self, RunError> {
        let settings = TorSettings {
            state_dir: config.state_dir.clone(),
            config: config.tor.config.clone(),
            long_lived_ports: config.frontends.iter().map(|f| f.address.port()).collect(),
        };
        let egress = Egress::decide(EgressArgs {
            via_tor: config.tor.enabled,
            tor: settings,
        })?;
        let tls = TlsClient::new(config.ca_file.as_deref())?;
        let open = |address| {
            let port = Port::open(address).map_err(|source| RunError::Socks { address, source })?;
            Ok::<_, RunError>((port, address))
        };
        let socks = config.socks.map(open).transpose()?;
        let status = status::Socket::open(&Role::Backend.socket(&config.state_dir));
        Ok(Self {
            config,
            egress,
            tls,
            socks,
            status,
            sandbox: sandbox::Report::default(),
        })
    }

    /// In Tor mode, gives up what this backend has no need of, for good: see [`sandbox::enter`], which
    /// wants to be called before any other thread is there. The log says what stands and what is missing.
    pub fn confine(&mut self) -> Result<(), RunError> {
        let Egress::Tor(settings) = &self.egress else {
            return Ok(());
        };
        let needs = settings.needs()?;
        let unix = |service: &config::Service| match &service.origin {
            OriginAddr::Unix(path) => Some(path.clone()),
            OriginAddr::Tcp(_) => None,
        };
        self.sandbox = sandbox::enter(&sandbox::Plan {
            directories: vec![
                self.config.state_dir.clone(),
                needs.state_dir,
                needs.cache_dir,
            ],
            files: settings.config.iter().cloned().collect(),
            sockets: self.config.services.iter().filter_map(unix).collect(),
            programs: needs.programs,
        });
        for line in &self.sandbox.closed {
            tracing::info!("sandbox: {line}");
        }
        for line in &self.sandbox.missing {
            tracing::warn!("sandbox: this machine cannot do all: {line}");
        }
        Ok(())
    }

    /// Runs until `shutdown`. `progress` hears of Tor's start.
    pub async fn run(
        self,
        mut progress: impl FnMut(&Progress) + Send,
        shutdown: Shutdown,
    ) -> Result<(), RunError> {
        let config = self.config;
        check_origins(&config).await?;
        let board = Board::default();
        let tor: Arc<OnceLock<Arc<tor::Client>>> = Arc::default();
        let began = Instant::now();
        let (shown, client) = (board.clone(), tor.clone());
        let via = if config.tor.enabled { "Tor" } else { "direct" };
        let sandbox: Vec<String> = self.sandbox.to_string().lines().map(Into::into).collect();
        let report = move || Status {
            via: Some(via.to_owned()),
            tor: client
                .get()
                .map(|c| status::Tor::new(c.progress(), &c.dialled())),
            sandbox: sandbox.clone(),
            tunnels: shown.view().into_iter().map(Into::into).collect(),
            ..Status::new(Role::Backend, began)
        };
        // Dropped, it closes the port and all that came in there.
        let mut ports = JoinSet::new();
        let mut obsolete: BoxFuture<TorError> = Box::pin(std::future::pending());
        let dialer: Arc<dyn Dialer> = match self.egress {
            Egress::Direct(allowed) => {
                tracing::info!(
                    "Tor is off: frontends see this machine's address; --via-tor hides it"
                );
                status::offer(self.status, report);
                Arc::new(DirectDialer::new(allowed, self.tls))
            }
            Egress::Tor(settings) => {
                let client = Arc::new(tor::Client::start(settings)?);
                let _ = tor.set(client.clone());
                status::offer(self.status, report);
                let watched = client.clone();
                obsolete = Box::pin(async move { watched.watch().await });
                let mut show = |p| progress(&p);
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
        let (stop, order) = shutdown::channel();
        let mut serving = pin!(backend::run(
            config.frontends,
            config.services,
            dialer,
            board,
            order
        ));
        tokio::select! {
            () = &mut serving => Ok(()),
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

/// Looks at each origin. One that is down may come up later, and is looked at again before
/// it gets a visitor; a web server behind a foolscap kite is a mistake that must not fly.
async fn check_origins(config: &BackendConfig) -> Result<(), RunError> {
    for service in &config.services {
        if service.protocol.is_plaintext() {
            tracing::warn!(
                "{}:{}: frontends, and everyone between them and visitors, can read what this kite carries",
                service.protocol,
                service.name
            );
        }
        if service.protocol != Protocol::Foolscap {
            continue;
        }
        match probe::look(&service.origin, &service.name).await {
            Seen::Web => {
                return Err(RunError::WebOrigin {
                    kite: service.name.to_string(),
                    origin: service.origin.to_string(),
                });
            }
            seen => seen.log(service),
        }
    }
    Ok(())
}
