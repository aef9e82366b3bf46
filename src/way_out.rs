//! The way out of a command that goes out once, and ends: `kite check` where no kite runs, and `kite backend join`. It is
//! chosen as a backend's, and goes within the same walls.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::config::{BackendConfig, Service};
use crate::dial::{Dialer, DirectDialer, Egress, EgressArgs, OriginAddr, TorDialer};
use crate::run::{RunError, needs};
use crate::sandbox;
use crate::tls::TlsClient;
use crate::tor::{Client, Progress, TorSettings};

/// A way out that has been chosen. What it needs of files it has read, and nothing has been dialled.
#[derive(Debug)]
pub struct WayOut {
    egress: Egress,
    tls: TlsClient,
}

/// A way out that stands, for as long as this lives.
pub struct Opened {
    /// What dials.
    pub dialer: Arc<dyn Dialer>,
    /// The Tor client behind it, in Tor mode.
    pub client: Option<Arc<Client>>,
}

impl WayOut {
    /// Chooses it.
    pub fn choose(args: EgressArgs, ca_file: Option<&Path>) -> Result<Self, RunError> {
        let egress = Egress::decide(args)?;
        let tls = TlsClient::new(ca_file)?;
        if let Egress::Tor(settings) = &egress {
            needs(settings)?;
        }
        Ok(Self { egress, tls })
    }

    /// In Tor mode, gives up all that this command has no need of, for good; see [`sandbox::enter`], which wants to be called
    /// before any other thread is there. `keep` is what it needs besides Tor.
    pub fn confine(&self, keep: sandbox::Plan) -> Result<(), RunError> {
        if let Egress::Tor(settings) = &self.egress {
            sandbox::enter(&plan(settings, keep)?).tell();
        }
        Ok(())
    }

    /// Opens it, however long Tor takes to start. `progress` hears of that.
    pub async fn open(self, mut progress: impl FnMut(Progress) + Send) -> Result<Opened, RunError> {
        let settings = match self.egress {
            Egress::Direct(allowed) => {
                return Ok(Opened {
                    dialer: Arc::new(DirectDialer::new(allowed, self.tls)),
                    client: None,
                });
            }
            Egress::Tor(settings) => settings,
        };
        let client = Arc::new(Client::start(settings)?);
        client.bootstrap(&mut progress).await?;
        Ok(Opened {
            dialer: Arc::new(TorDialer::new(client.clone(), self.tls)),
            client: Some(client),
        })
    }
}

/// What stays open to whoever goes out through this Tor, and keeps this besides.
pub(crate) fn plan(
    settings: &TorSettings,
    mut keep: sandbox::Plan,
) -> Result<sandbox::Plan, RunError> {
    let needs = needs(settings)?;
    keep.directories.extend([needs.state_dir, needs.cache_dir]);
    keep.files.extend(settings.config.iter().cloned());
    keep.programs.extend(needs.programs);
    Ok(keep)
}

/// What a backend with this configuration needs besides Tor: its state directory, and the sockets of its origins.
pub(crate) fn of_backend(config: &BackendConfig) -> sandbox::Plan {
    let unix = |service: &Service| -> Option<PathBuf> {
        match &service.origin {
            OriginAddr::Unix(path) => Some(path.clone()),
            OriginAddr::Tcp(_) => None,
        }
    };
    sandbox::Plan {
        directories: vec![config.state_dir.clone()],
        sockets: config.services.iter().filter_map(unix).collect(),
        ..sandbox::Plan::default()
    }
}
