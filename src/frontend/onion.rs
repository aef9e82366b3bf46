//! The tunnel port as an onion service: backends come in through Tor, no exit sees
//! them, and nobody learns an address from the other.

use std::time::Duration;

use futures::StreamExt;
use tokio::task::JoinHandle;

use super::Handle;
use crate::dial::BoxConn;
use crate::tor::{Client, OnionService, TorError};

/// The port of the service.
pub const PORT: u16 = 443;
/// The service's name in Arti's keystore. Another name would mean another key and address.
const NICKNAME: &str = "tunnels";
/// How often a service that is not published yet says so.
const STILL_WAITING: Duration = Duration::from_secs(60);

/// An onion service that leads to a frontend's tunnels. Dropping it takes the service down.
#[derive(Debug)]
pub struct OnionDoor {
    service: OnionService,
    serving: JoinHandle<()>,
}

impl OnionDoor {
    /// Opens it. The client must have been bootstrapped.
    pub fn open(client: &Client, frontend: Handle) -> Result<Self, TorError> {
        let (service, conns) = OnionService::launch(client, NICKNAME, PORT)?;
        let name = service.address().to_owned();
        let conns = conns.map(|conn| Box::new(conn) as BoxConn);
        let serving = tokio::spawn(async move {
            frontend.enter(conns, &name).await;
            tracing::error!(
                "the onion service has ended, and backends cannot come through it; restart kite"
            );
        });
        Ok(Self { service, serving })
    }

    /// What backends are given: the key itself, hence without a pin.
    pub fn address(&self) -> String {
        format!("{}:{PORT}", self.service.address())
    }

    /// Waits until dialling it makes sense, for as long as that takes; Arti goes on trying.
    pub async fn published(&self) {
        while !self.service.wait_published(STILL_WAITING).await {
            tracing::warn!(
                "the onion service is not published yet ({}); kite goes on trying, and backends that come \
                 through other ports are served",
                self.service.state()
            );
        }
    }
}

impl Drop for OnionDoor {
    fn drop(&mut self) {
        self.serving.abort();
    }
}
