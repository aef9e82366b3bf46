//! The tunnel port as an onion service: no public address, no name, no certificate, no exit.
//!
//! The key stays in Arti's keystore under the state directory, so the address is the
//! same at each start for the same nickname.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures::{Stream, StreamExt};
use safelog::DisplayRedacted;
use tokio::time::timeout;
use tor_cell::relaycell::msg::Connected;
use tor_hsservice::config::OnionServiceConfigBuilder;
use tor_hsservice::status::State;
use tor_hsservice::{RunningOnionService, StreamRequest, handle_rend_requests};
use tor_proto::stream::IncomingStreamRequest;

use crate::{Client, DataStream, TorError};

/// Most streams on one visitor's circuit. A backend needs one; a browser some.
const MAX_STREAMS_PER_CIRCUIT: u32 = 64;

/// Streams being accepted at once, so that one slow circuit does not hold up the others.
const MAX_ACCEPTING: usize = 64;

/// A running onion service. Dropping it takes the service down.
pub struct OnionService {
    running: Arc<RunningOnionService>,
    address: String,
}

impl OnionService {
    /// Starts a service with one port, and gives the connections that come in through it.
    ///
    /// The client must have been bootstrapped. The stream must be polled, or nobody gets in;
    /// it ends when the service does. Nothing is known of the peers, which is the point.
    pub fn launch(
        client: &Client,
        nickname: &str,
        port: u16,
    ) -> Result<(Self, impl Stream<Item = DataStream> + Send + use<>), TorError> {
        let invalid = |reason: String| TorError::Onion {
            nickname: nickname.to_owned(),
            reason,
        };
        let config = OnionServiceConfigBuilder::default()
            .nickname(nickname.to_owned().try_into().map_err(|_| {
                invalid("a nickname has letters, digits, '-' and '_' only".to_owned())
            })?)
            .max_concurrent_streams_per_circuit(MAX_STREAMS_PER_CIRCUIT)
            .build()
            .map_err(|e| invalid(e.to_string()))?;
        let arti = client.arti().ok_or(TorError::NotBootstrapped)?;
        client.serves.store(true, Ordering::Relaxed);
        let launched = arti
            .launch_onion_service(config)
            .map_err(|e| TorError::sort(&e))?;
        let (running, requests) = launched.ok_or_else(|| invalid("it is disabled".to_owned()))?;
        let address = running
            .onion_address()
            .ok_or_else(|| invalid("its key is missing".to_owned()))?
            .display_unredacted()
            .to_string();
        let conns = handle_rend_requests(requests)
            .map(move |request| accept(request, port))
            .buffer_unordered(MAX_ACCEPTING)
            .filter_map(std::future::ready);
        Ok((Self { running, address }, conns))
    }

    /// The service's name, `….onion`, without a port.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// True as long as Arti believes that the service can be reached.
    pub fn is_reachable(&self) -> bool {
        self.running.status().state().is_fully_reachable()
    }

    /// What it is doing, in a few words.
    pub fn state(&self) -> &'static str {
        match self.running.status().state() {
            State::Shutdown => "it has ended",
            State::Bootstrapping => "it is being set up",
            State::DegradedReachable | State::DegradedUnreachable | State::Running => {
                "it is published"
            }
            State::Recovering => "it recovers from trouble",
            State::Broken => "it has met trouble",
            _ => "its state is unknown",
        }
    }

    /// Waits until the descriptor is out and trying makes sense; `false` if that takes longer than `patience`.
    ///
    /// On a network with one time period Arti calls a good service unreachable, because nobody
    /// takes the descriptor for the next one. So this says when to begin trying, not that it will work.
    pub async fn wait_published(&self, patience: Duration) -> bool {
        let mut events = self.running.status_events();
        let published = async {
            loop {
                match self.running.status().state() {
                    State::Running | State::DegradedReachable | State::DegradedUnreachable => {
                        return true;
                    }
                    _ => {}
                }
                if events.next().await.is_none() {
                    // The service has ended: it will not be published any more.
                    return std::future::pending().await;
                }
            }
        };
        timeout(patience, published).await.unwrap_or(false)
    }
}

impl std::fmt::Debug for OnionService {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("OnionService")
    }
}

/// Answers one request. For another port or purpose the circuit is closed, as other services do.
async fn accept(request: StreamRequest, port: u16) -> Option<DataStream> {
    match request.request() {
        IncomingStreamRequest::Begin(begin) if begin.port() == port => {
            let stream = request.accept(Connected::new_empty()).await.ok()?;
            Some(stream)
        }
        _ => {
            // It can only fail for a circuit that is gone already.
            let _ = request.shutdown_circuit();
            None
        }
    }
}
