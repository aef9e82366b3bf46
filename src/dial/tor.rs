//! Dialling frontends through Tor, and never otherwise.
//!
//! There is nothing to fall back to in this file: it knows no socket. Names travel
//! to the exit relay as text. Each tunnel of each frontend has circuits of its own, so that
//! two frontends, or one exit, cannot tell that they serve the same node, and no circuit takes
//! two tunnels with it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use tokio::time::timeout;

use super::{
    BoxConn, DialError, Dialer, Dialled, FrontendAddr, Goal, Lane, TOR_DIAL_TIMEOUT, prove,
};
use crate::tls::TlsClient;
use crate::tor::{Client, DataStream, ErrorKind, IsolationToken};

/// Dials through the embedded Tor client.
#[derive(Debug)]
pub struct TorDialer {
    client: Arc<Client>,
    tls: TlsClient,
    /// One entry for each tunnel ever dialled, of which the configuration has a handful.
    isolation: Mutex<HashMap<Place, IsolationToken>>,
}

/// Exits asked in one dial, one after the other, while each says that it cannot find or reach the host.
const MAX_EXITS_A_DIAL: usize = 3;

/// Whom a circuit belongs to.
type Place = (Box<str>, u16, Lane);

impl TorDialer {
    /// The client may still be bootstrapping; until it is done, dialling fails with
    /// [`DialError::NotBootstrapped`] or waits.
    pub fn new(client: Arc<Client>, tls: TlsClient) -> Self {
        Self {
            client,
            tls,
            isolation: Mutex::default(),
        }
    }

    /// The tunnel's circuits. They are shared with nothing else.
    fn isolation_of(&self, to: &FrontendAddr, lane: Lane) -> IsolationToken {
        let mut map = self
            .isolation
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        *map.entry(place(to, lane))
            .or_insert_with(IsolationToken::new)
    }

    async fn attempt(&self, to: &FrontendAddr, lane: Lane) -> Result<Dialled, DialError> {
        let isolation = self.isolation_of(to, lane);
        let stream = self
            .connect(to.host(), to.port(), isolation, || self.renew(to, lane))
            .await?;
        prove(stream, to, &self.tls).await
    }

    async fn connect(
        &self,
        host: &str,
        port: u16,
        isolation: IsolationToken,
        another: impl Fn() -> IsolationToken,
    ) -> Result<DataStream, DialError> {
        let dialling = ask_exits(isolation, another, |isolation| async move {
            let answer = self.client.connect(host, port, isolation).await;
            answer.map_err(sort)
        });
        timeout(TOR_DIAL_TIMEOUT, dialling)
            .await
            .map_err(|_| DialError::TimedOut)?
    }

    /// Leaves the tunnel's circuits behind for others.
    fn renew(&self, to: &FrontendAddr, lane: Lane) -> IsolationToken {
        let new = IsolationToken::new();
        self.isolation
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(place(to, lane), new);
        new
    }
}

/// Asks for a stream on a circuit of this isolation. What its exit cannot find or reach, the next may: so
/// [`MAX_EXITS_A_DIAL`] are asked, each on a circuit of another isolation.
async fn ask_exits<T, F>(
    mut isolation: IsolationToken,
    another: impl Fn() -> IsolationToken,
    ask: impl Fn(IsolationToken) -> F,
) -> Result<T, DialError>
where
    F: Future<Output = Result<T, DialError>>,
{
    for _ in 1..MAX_EXITS_A_DIAL {
        match ask(isolation).await {
            Err(error) if error.is_this_exits() => isolation = another(),
            result => return result,
        }
    }
    ask(isolation).await
}

fn place(to: &FrontendAddr, lane: Lane) -> Place {
    (to.host().into(), to.port(), lane)
}

#[async_trait]
impl Dialer for TorDialer {
    async fn dial(&self, to: &FrontendAddr, lane: Lane) -> Result<Dialled, DialError> {
        let result = self.attempt(to, lane).await;
        if result.as_ref().is_err_and(DialError::blames_path) {
            self.leave(to, lane);
        }
        result
    }

    async fn visit(&self, goal: Goal<'_>, port: u16) -> Result<BoxConn, DialError> {
        // Names are found at the exit.
        let host = match goal {
            Goal::Name(kite) => kite.as_str(),
            Goal::Frontend(frontend) => frontend.host(),
        };
        let stream = self
            .connect(host, port, IsolationToken::new(), IsolationToken::new)
            .await?;
        Ok(Box::new(stream))
    }

    fn finds_names(&self) -> bool {
        true
    }

    /// Leaves the tunnel's circuits behind: the next attempt goes another way, and not
    /// through the exit that could not, or would not, get through.
    fn leave(&self, to: &FrontendAddr, lane: Lane) {
        self.renew(to, lane);
    }

    fn describe(&self) -> &'static str {
        "Tor"
    }
}

/// What Arti's error means for us. Every kind of version 0.47 is named, so that an upgrade
/// is read against this list; `ErrorKind` is open-ended, and what is new means another try through Tor.
pub(crate) fn sort(kind: ErrorKind) -> DialError {
    use ErrorKind as K;
    match kind {
        K::RemoteHostNotFound | K::RemoteHostResolutionFailed => DialError::NameNotFound,
        K::RemoteConnectionRefused => DialError::Refused,
        K::RemoteNetworkFailed => DialError::Unreachable,
        K::RemoteNetworkTimeout | K::ExitTimeout => DialError::TimedOut,
        K::RemoteStreamClosed | K::RemoteStreamReset => DialError::Closed,
        // The exit's reason was MISC, which C tor sends for a refused connection too.
        K::RemoteStreamError => DialError::ExitFailed,
        K::ExitPolicyRejected | K::NoExit => DialError::ExitPolicy,

        K::OnionServiceNotFound => DialError::OnionNotFound,
        K::OnionServiceNotRunning
        | K::OnionServiceConnectionFailed
        | K::OnionServiceProtocolViolation => DialError::OnionDown,
        K::OnionServiceMissingClientAuth | K::OnionServiceWrongClientAuth => DialError::OnionAuth,
        K::OnionServiceAddressInvalid | K::InvalidStreamTarget => DialError::BadAddress,
        K::ForbiddenStreamTarget => DialError::ForbiddenAddress,

        K::BootstrapRequired => DialError::NotBootstrapped,
        K::TorAccessFailed | K::LocalNetworkError => DialError::TorUnreachable,
        K::DirectoryExpired => DialError::TorDirectory("it has expired"),
        K::TorDirectoryError => DialError::TorDirectory("it could not be fetched"),
        K::TorDirectoryUnusable => DialError::TorDirectory("it does not suffice"),
        K::ClockSkew => DialError::TorDirectory("the clock seems wrong"),
        K::SoftwareDeprecated => DialError::TorObsolete,

        K::LocalResourceAlreadyInUse => {
            DialError::TorLocal("its state directory is in use by another process")
        }
        K::FsPermissions => DialError::TorLocal("its state directory has unsafe permissions"),
        K::PersistentStateAccessFailed | K::CacheAccessFailed | K::KeystoreAccessFailed => {
            DialError::TorLocal("its files cannot be read or written")
        }
        K::PersistentStateCorrupted | K::CacheCorrupted | K::KeystoreCorrupted => {
            DialError::TorLocal("its files are corrupt")
        }
        K::InvalidConfig | K::InvalidConfigTransition | K::NoHomeDirectory | K::FeatureDisabled => {
            DialError::TorLocal("its configuration is not usable")
        }
        K::ExternalToolFailed => DialError::TorLocal("the pluggable transport failed"),
        K::LocalResourceExhausted => DialError::TorLocal("memory or another resource ran out"),

        K::TorNetworkTimeout => DialError::Circuit("too slow"),
        K::CircuitCollapse => DialError::Circuit("it broke"),
        K::CircuitRefused | K::RelayTooBusy => DialError::Circuit("a relay declined"),
        K::NoPath => DialError::Circuit("no path through the known relays"),
        K::RelayIdMismatch | K::TorProtocolViolation | K::RemoteProtocolViolation => {
            DialError::Circuit("a relay reported an error or broke the rules")
        }
        K::ReactorShuttingDown | K::ArtiShuttingDown => DialError::Circuit("Tor is shutting down"),
        K::TransientFailure => DialError::Circuit("passing trouble"),
        K::NotImplemented
        | K::LocalProtocolViolation
        | K::TorDocumentRejected
        | K::BadApiUsage
        | K::Internal
        | K::Other => DialError::Circuit("Arti gave no better reason"),
        _ => DialError::Circuit("an error that this version of kite does not know"),
    }
}

#[cfg(test)]
mod tests {
    use std::future::ready;

    use super::*;

    #[tokio::test]
    async fn some_exits_are_asked_each_on_a_circuit_of_its_own() {
        let asked = &Mutex::new(Vec::new());
        let ask = |answer: fn(usize) -> Result<(), DialError>| {
            asked.lock().unwrap().clear();
            ask_exits(IsolationToken::new(), IsolationToken::new, move |on| {
                let mut asked = asked.lock().unwrap();
                asked.push(on);
                ready(answer(asked.len()))
            })
        };
        let all_deaf = ask(|_| Err(DialError::Unreachable)).await;
        assert!(matches!(all_deaf, Err(DialError::Unreachable)));
        let circuits = asked.lock().unwrap().clone();
        assert_eq!(circuits.len(), MAX_EXITS_A_DIAL);
        for (n, one) in circuits.iter().enumerate() {
            assert!(!circuits[..n].contains(one), "an exit may be asked again");
        }

        let second = ask(|nth| {
            if nth < 2 {
                Err(DialError::NameNotFound)
            } else {
                Ok(())
            }
        })
        .await;
        assert!(second.is_ok());
        assert_eq!(asked.lock().unwrap().len(), 2);

        let down = ask(|_| Err(DialError::Refused)).await;
        assert!(matches!(down, Err(DialError::Refused)));
        assert_eq!(asked.lock().unwrap().len(), 1, "it is down whoever asks");
    }

    #[test]
    fn only_what_an_exit_cannot_do_is_asked_of_the_next_at_once() {
        for kind in [
            ErrorKind::RemoteNetworkFailed,
            ErrorKind::RemoteHostNotFound,
            ErrorKind::ExitPolicyRejected,
        ] {
            assert!(sort(kind).is_this_exits(), "{kind:?}");
        }
        // Whoever is asked: a closed port (as most exits say it), a time that is over, a circuit that Arti itself builds anew.
        for kind in [
            ErrorKind::RemoteConnectionRefused,
            ErrorKind::RemoteStreamError,
            ErrorKind::RemoteNetworkTimeout,
            ErrorKind::CircuitCollapse,
            ErrorKind::OnionServiceNotFound,
            ErrorKind::TorAccessFailed,
        ] {
            assert!(!sort(kind).is_this_exits(), "{kind:?}");
        }
    }

    #[test]
    fn an_exit_that_fails_is_left_behind_and_a_frontend_that_is_down_is_not() {
        for kind in [
            ErrorKind::ExitPolicyRejected,
            ErrorKind::RemoteNetworkTimeout,
            ErrorKind::RemoteHostNotFound,
            ErrorKind::CircuitCollapse,
            ErrorKind::Internal,
        ] {
            assert!(sort(kind).blames_path(), "{kind:?}");
        }
        for kind in [
            ErrorKind::RemoteConnectionRefused,
            ErrorKind::BootstrapRequired,
            ErrorKind::LocalResourceAlreadyInUse,
            ErrorKind::OnionServiceNotFound,
            ErrorKind::TorAccessFailed,
        ] {
            assert!(!sort(kind).blames_path(), "{kind:?}");
        }
    }
}
