//! The tunnel port as an onion service: backends come in through Tor, no exit sees
//! them, and nobody learns an address from the other.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::BoxStream;
use tokio::sync::watch as signal;
use tokio::task::{JoinHandle, JoinSet};

use super::Handle;
use crate::code::Code;
use crate::dial::BoxConn;
use crate::tor::onion::Doubts;
use crate::tor::{Client, DataStream, OnionService, TorError};

/// The port of the service.
pub const PORT: u16 = 443;
/// The service's name in Arti's keystore. Another name would mean another key and address.
const NICKNAME: &str = "tunnels";
/// How often a service that is not published yet says so.
const STILL_WAITING: Duration = Duration::from_secs(60);

/// An onion service that leads to a frontend's tunnels. Dropping it takes the service down.
#[derive(Debug)]
pub struct OnionDoor {
    address: String,
    published: signal::Receiver<bool>,
    keeping: JoinHandle<()>,
}

impl OnionDoor {
    /// Opens it. The client must have been bootstrapped.
    pub fn open(client: Arc<Client>, frontend: Handle) -> Result<Self, TorError> {
        let (service, conns) = OnionService::launch(&client, NICKNAME, PORT)?;
        let address = format!("{}:{PORT}", service.address());
        let (tell, published) = signal::channel(false);
        let keeping = tokio::spawn(keep(client, frontend, service, Box::pin(conns), tell));
        Ok(Self {
            address,
            published,
            keeping,
        })
    }

    /// What backends are given: the key itself, hence without a pin.
    pub fn address(&self) -> String {
        self.address.clone()
    }

    /// Waits until dialling it makes sense, for as long as that takes; Arti goes on trying.
    pub async fn published(&self) {
        // It fails only if the door is being closed.
        let _ = self.published.clone().wait_for(|yes| *yes).await;
    }
}

impl Drop for OnionDoor {
    fn drop(&mut self) {
        self.keeping.abort();
    }
}

/// Lets in who comes, and launches the service anew whenever it is lost. Tunnels that came in before stay, unless
/// their Arti is gone.
async fn keep(
    client: Arc<Client>,
    frontend: Handle,
    mut service: OnionService,
    mut conns: BoxStream<'static, DataStream>,
    tell: signal::Sender<bool>,
) {
    let mut doubts = Doubts::default();
    // One for each launch, as long as somebody is left who came in by it.
    let mut entrances = JoinSet::new();
    loop {
        let (inside, name) = (frontend.clone(), service.address().to_owned());
        let peers = conns.map(|conn| Box::new(conn) as BoxConn);
        entrances.spawn(async move {
            inside.enter(peers, &name).await;
            tracing::debug!("an entrance of the onion service closes: it was lost, and nobody is left who came by it");
        });
        while entrances.try_join_next().is_some() {}
        let why = tokio::select! {
            why = service.lost(&client, &mut doubts) => why,
            never = announce(&service, &tell) => match never {},
        };
        tracing::info!("launching the onion service anew: {why}");
        drop(service);
        let (again, peers) = OnionService::relaunch(&client, NICKNAME, PORT).await;
        (service, conns) = (again, Box::pin(peers));
    }
}

/// Tells once that the service is published, and then does nothing more.
async fn announce(service: &OnionService, tell: &signal::Sender<bool>) -> Infallible {
    if !*tell.borrow() {
        while !service.wait_published(STILL_WAITING).await {
            tracing::warn!(
                "[{}] the onion service is not published yet ({}); kite goes on trying, and backends that come \
                 through other ports are served",
                Code::OnionUnpublished,
                service.state()
            );
        }
        tell.send_replace(true);
    }
    std::future::pending().await
}
