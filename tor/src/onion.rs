//! The tunnel port as an onion service: no public address, no name, no certificate, no exit.
//!
//! The key stays in Arti's keystore under the state directory, so the address is the
//! same at each start for the same nickname.

use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt};
use rand::Rng;
use safelog::DisplayRedacted;
use tokio::sync::watch as signal;
use tokio::time::{Instant, sleep, sleep_until, timeout};
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

/// Between two looks at the service from outside. Relays forget a descriptor after three hours, or when they are
/// restarted, and Arti uploads it again after one or two, by a timer that stands still while the machine sleeps.
const LOOK_EVERY: Duration = Duration::from_secs(600);

/// After a look that failed, or when Arti is in trouble, comes another after this long; then after twice as long each
/// time, up to [`LOOK_EVERY`].
const LOOK_AGAIN: Duration = Duration::from_secs(30);

/// What a launched service gets to be published, before the first look.
const PUBLISH_WAIT: Duration = Duration::from_secs(60);

/// So many looks in a row that failed mean that the service is lost. One can be an accident on the way.
const LOST_AFTER: u32 = 2;

/// Between two attempts to launch a service anew. The old one needs a moment to let go of its files.
const LAUNCH_AGAIN: Duration = Duration::from_millis(250);

/// After so many attempts in vain, half a minute, the log says so.
const LAUNCHES_TOLD: u32 = 120;

/// A running onion service. Dropping it takes the service down; who has come in through it stays.
pub struct OnionService {
    running: Arc<RunningOnionService>,
    address: String,
    port: u16,
    /// Tells when its Arti is replaced.
    renewed: signal::Receiver<u64>,
    /// Tells when the machine slept.
    slept: signal::Receiver<u64>,
}

/// What is held against a service, through all its launches.
#[derive(Debug, Default)]
pub struct Doubts(u32);

impl Doubts {
    /// How long to wait for the next look, at most.
    fn longest_pause(&self) -> Duration {
        match self.0.checked_sub(1) {
            None => LOOK_EVERY,
            Some(doublings) => LOOK_AGAIN
                .saturating_mul(2u32.saturating_pow(doublings))
                .min(LOOK_EVERY),
        }
    }

    /// How long to wait for the next look. Many services have no common rhythm.
    fn pause(&self) -> Duration {
        let part = rand::rng().random_range(0.5..=1.0);
        self.longest_pause().mul_f64(part)
    }

    /// There is a reason to look soon, and to forgive no failure.
    fn rouse(&mut self) {
        self.0 = self.0.max(1);
    }

    /// A look succeeded, or failed; true if the service is lost.
    fn looked(&mut self, reached: bool) -> bool {
        match reached {
            true => self.0 = 0,
            false => self.0 = self.0.saturating_add(1),
        }
        self.0 >= LOST_AFTER
    }
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
        // Before Arti is taken, so that no replacement is missed.
        let (renewed, slept) = (client.generation.subscribe(), client.sleeps.subscribe());
        let arti = client.arti().ok_or(TorError::NotBootstrapped)?;
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
        let service = Self {
            running,
            address,
            port,
            renewed,
            slept,
        };
        Ok((service, conns))
    }

    /// Launches a service that was [lost](Self::lost), and has been dropped, with the same key. Tries until that succeeds.
    pub async fn relaunch(
        client: &Client,
        nickname: &str,
        port: u16,
    ) -> (Self, impl Stream<Item = DataStream> + Send + use<>) {
        let mut tries: u32 = 0;
        loop {
            match Self::launch(client, nickname, port) {
                Ok(launched) => return launched,
                Err(e) => {
                    tries = tries.saturating_add(1);
                    if tries == LAUNCHES_TOLD {
                        tracing::warn!(
                            "[{}] {e}; {}; kite goes on trying",
                            e.kite_code(),
                            e.hint()
                        );
                    }
                }
            }
            sleep(LAUNCH_AGAIN).await;
        }
    }

    /// Waits until the service must be launched anew, and says why: its Arti has been replaced; the machine slept,
    /// and Arti's timers are late by so much; or it cannot be reached from outside, whatever Arti believes of it.
    pub async fn lost(&self, client: &Client, doubts: &mut Doubts) -> &'static str {
        let (mut renewed, mut slept) = (self.renewed.clone(), self.slept.clone());
        // Both fail only without a client, and then nothing matters.
        let why = tokio::select! {
            _ = renewed.changed() => "Tor has begun anew",
            _ = slept.changed() => "its descriptor may have expired",
            () = self.unreachable(client, doubts) => "it could not be reached by its address",
        };
        doubts.rouse();
        why
    }

    /// Looks from time to time, and soon if Arti itself is in trouble, until that has failed too often.
    async fn unreachable(&self, client: &Client, doubts: &mut Doubts) {
        let mut events = self.running.status_events().fuse();
        let first = Instant::now() + PUBLISH_WAIT;
        let mut next = first.max(Instant::now() + doubts.pause());
        loop {
            tokio::select! {
                Some(status) = events.next() => {
                    if is_troubled(status.state()) {
                        next = next.min(first.max(Instant::now() + LOOK_AGAIN));
                    }
                    continue;
                }
                () = sleep_until(next) => {}
            }
            let reached = client.reaches_itself(&self.address, self.port).await;
            tracing::debug!("the onion service was reached from outside: {reached}");
            if doubts.looked(reached) {
                return;
            }
            next = Instant::now() + doubts.pause();
        }
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

/// Arti knows itself that something is wrong.
fn is_troubled(state: State) -> bool {
    matches!(state, State::Recovering | State::Broken | State::Shutdown)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looks_follow_each_other_closely_only_while_they_fail() {
        let mut doubts = Doubts::default();
        assert_eq!(doubts.longest_pause(), LOOK_EVERY);
        assert!(!doubts.looked(true));
        assert!(!doubts.looked(false), "an accident");
        assert_eq!(doubts.longest_pause(), LOOK_AGAIN);
        assert!(doubts.looked(false));
        assert_eq!(doubts.longest_pause(), LOOK_AGAIN * 2);
        for _ in 0..40 {
            assert!(doubts.looked(false));
        }
        assert_eq!(doubts.longest_pause(), LOOK_EVERY);
        assert!(!doubts.looked(true));
        assert_eq!(doubts.longest_pause(), LOOK_EVERY);
    }

    #[test]
    fn after_a_new_launch_one_failure_suffices() {
        let mut doubts = Doubts::default();
        doubts.rouse();
        assert_eq!(doubts.longest_pause(), LOOK_AGAIN);
        assert!(doubts.looked(false));
        doubts.rouse();
        assert_eq!(
            doubts.longest_pause(),
            LOOK_AGAIN * 2,
            "no doubt is forgotten"
        );
    }
}
