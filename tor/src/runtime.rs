//! The runtime that Arti lives in: Tokio's, with a gate where sockets are made.
//!
//! Arti opens sockets only through the runtime that it is given. In ours every TCP
//! connection passes the `Gate`, which asks [`crate::relays`] and keeps count;
//! Unix sockets, datagram sockets and listeners cannot be had at all.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use async_trait::async_trait;
use tor_linkspec::HasAddrs;
use tor_netdir::NetDir;
use tor_rtcompat::tokio::TokioRustlsRuntime as Base;
use tor_rtcompat::unimpl::{FakeListener, FakeStream};
use tor_rtcompat::{
    CompoundRuntime, NetStreamListener, NetStreamProvider, RealCoarseTimeProvider,
    TcpConnectOptions, TcpListenOptions, UdpProvider, UdpSocket, UnixConnectOptions,
    UnixListenOptions,
};

use crate::relays::{Peer, Rules};

/// The runtime type that Arti sees.
pub(crate) type Guarded =
    CompoundRuntime<Base, Base, RealCoarseTimeProvider, Gate, NoSockets, Base, NoSockets>;

/// Where the current directory can be found, once there is one.
type Directory = Box<dyn Fn() -> Option<Arc<NetDir>> + Send + Sync>;

/// Most addresses that the report lists one by one. A client has a handful of guards; past
/// this, only the counts by kind go on.
const MAX_LISTED: usize = 1024;

/// What Arti wanted and did not get.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Refusal {
    /// TCP to an address that is no relay, bridge or the like.
    Stranger,
    /// A Unix socket.
    UnixSocket,
    /// A datagram socket.
    Datagram,
    /// A listening socket.
    Listener,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Stranger => "stranger",
            Self::UnixSocket => "Unix socket",
            Self::Datagram => "datagram socket",
            Self::Listener => "listening socket",
        })
    }
}

/// What Arti has dialled so far, for status and for tests.
///
/// Neither `Display` nor `Debug` shows an address.
#[derive(Clone, Default)]
pub struct DialReport {
    /// Attempts let through, by what they went to.
    pub allowed: BTreeMap<Peer, u64>,
    /// Attempts refused. Any is a bug, in Arti or in kite, and worth a report.
    pub refused: BTreeMap<Refusal, u64>,
    listed: BTreeMap<SocketAddr, Option<Peer>>,
}

impl DialReport {
    /// How many attempts were let through.
    pub fn total_allowed(&self) -> u64 {
        self.allowed.values().sum()
    }

    /// How many attempts were refused.
    pub fn total_refused(&self) -> u64 {
        self.refused.values().sum()
    }

    /// The addresses themselves, at most 1,024, with what each was last held for (`None`: refused).
    ///
    /// Guards identify a Tor client: for tests, never for logs.
    pub fn addresses(&self) -> &BTreeMap<SocketAddr, Option<Peer>> {
        &self.listed
    }
}

impl fmt::Display for DialReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} dials", self.total_allowed())?;
        for (peer, n) in &self.allowed {
            write!(f, ", {peer} {n}")?;
        }
        write!(f, "; {} refused", self.total_refused())?;
        for (refusal, n) in &self.refused {
            write!(f, ", {refusal} {n}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for DialReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The count, shared between the gate and whoever asks.
#[derive(Clone, Default)]
pub(crate) struct Ledger(Arc<Mutex<DialReport>>);

impl Ledger {
    pub(crate) fn report(&self) -> DialReport {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn allow(&self, addr: &SocketAddr, peer: Peer) {
        let mut report = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *report.allowed.entry(peer).or_default() += 1;
        list(&mut report, addr, Some(peer));
    }

    /// Counts and, the first time, says aloud: a refusal should never happen.
    fn refuse(&self, what: Refusal, addr: Option<&SocketAddr>) -> io::Error {
        let mut report = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if report.total_refused() == 0 {
            tracing::warn!(
                "kept Arti from opening a connection that is none of Tor's ({what}); kite stays safe, please report it"
            );
        }
        *report.refused.entry(what).or_default() += 1;
        if let Some(addr) = addr {
            list(&mut report, addr, None);
        }
        io::Error::new(
            io::ErrorKind::PermissionDenied,
            format!("refused by kite: {what}"),
        )
    }
}

fn list(report: &mut DialReport, addr: &SocketAddr, peer: Option<Peer>) {
    let listed = &mut report.listed;
    if listed.len() < MAX_LISTED || listed.contains_key(addr) {
        listed.insert(*addr, peer);
    }
}

/// TCP for Arti, to relays only.
#[derive(Clone)]
pub(crate) struct Gate {
    inner: Base,
    rules: Arc<Rules>,
    directory: Arc<OnceLock<Directory>>,
    ledger: Ledger,
}

impl Gate {
    /// Tells the gate where the directory is. To be called once, as soon as there is a client:
    /// the directory lives in the client, which lives in the runtime, which the gate is part of.
    pub(crate) fn follow(&self, directory: Directory) {
        // Only a second call can fail, and the first stays right.
        let _ = self.directory.set(directory);
    }

    fn judge(&self, addr: &SocketAddr) -> Option<Peer> {
        let directory = self.directory.get().and_then(|current| current());
        self.rules.judge(
            addr,
            directory.map(|dir| move |addr: &SocketAddr| lists(&dir, addr)),
        )
    }
}

/// Is it the address of a relay in this directory? Some thousand comparisons, for the few dials there are.
fn lists(directory: &NetDir, addr: &SocketAddr) -> bool {
    directory
        .relays()
        .any(|relay| relay.addrs().any(|a| a == *addr))
}

#[async_trait]
impl NetStreamProvider<SocketAddr> for Gate {
    type Stream = <Base as NetStreamProvider<SocketAddr>>::Stream;
    type Listener = Never;
    type ConnectOptions = TcpConnectOptions;
    type ListenOptions = TcpListenOptions;

    async fn connect(
        &self,
        addr: &SocketAddr,
        options: &TcpConnectOptions,
    ) -> io::Result<Self::Stream> {
        let Some(peer) = self.judge(addr) else {
            return Err(self.ledger.refuse(Refusal::Stranger, Some(addr)));
        };
        self.ledger.allow(addr, peer);
        self.inner.connect(addr, options).await
    }

    async fn listen(&self, _: &SocketAddr, _: &TcpListenOptions) -> io::Result<Never> {
        Err(self.ledger.refuse(Refusal::Listener, None))
    }
}

/// A listener that cannot exist.
pub(crate) enum Never {}

impl NetStreamListener<SocketAddr> for Never {
    type Stream = <Gate as NetStreamProvider<SocketAddr>>::Stream;
    type Incoming = futures::stream::Pending<io::Result<(Self::Stream, SocketAddr)>>;

    fn incoming(self) -> Self::Incoming {
        match self {}
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        match *self {}
    }
}

/// Unix and datagram sockets for Arti: none.
#[derive(Clone)]
pub(crate) struct NoSockets(Ledger);

type UnixAddr = tor_general_addr::unix::SocketAddr;

#[async_trait]
impl NetStreamProvider<UnixAddr> for NoSockets {
    type Stream = FakeStream;
    type Listener = FakeListener<UnixAddr>;
    type ConnectOptions = UnixConnectOptions;
    type ListenOptions = UnixListenOptions;

    async fn connect(&self, _: &UnixAddr, _: &UnixConnectOptions) -> io::Result<FakeStream> {
        Err(self.0.refuse(Refusal::UnixSocket, None))
    }

    async fn listen(&self, _: &UnixAddr, _: &UnixListenOptions) -> io::Result<Self::Listener> {
        Err(self.0.refuse(Refusal::UnixSocket, None))
    }
}

#[async_trait]
impl UdpProvider for NoSockets {
    type UdpSocket = NoDatagrams;

    async fn bind(&self, _: &SocketAddr) -> io::Result<NoDatagrams> {
        Err(self.0.refuse(Refusal::Datagram, None))
    }
}

/// A datagram socket that cannot exist.
pub(crate) enum NoDatagrams {}

#[async_trait]
impl UdpSocket for NoDatagrams {
    async fn recv(&self, _: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        match *self {}
    }

    async fn send(&self, _: &[u8], _: &SocketAddr) -> io::Result<usize> {
        match *self {}
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        match *self {}
    }
}

/// Puts the gate into the Tokio runtime that we are called in.
///
/// Panics without a rustls provider: [`crate::Client::start`] checks that first.
pub(crate) fn guarded(rules: Rules) -> io::Result<(Guarded, Gate, Ledger)> {
    let base = Base::current()?;
    let ledger = Ledger::default();
    let gate = Gate {
        inner: base.clone(),
        rules: Arc::new(rules),
        directory: Arc::default(),
        ledger: ledger.clone(),
    };
    let none = NoSockets(ledger.clone());
    let runtime = CompoundRuntime::new(
        base.clone(),
        base.clone(),
        RealCoarseTimeProvider::new(),
        gate.clone(),
        none.clone(),
        base,
        none,
    );
    Ok((runtime, gate, ledger))
}

#[cfg(test)]
#[allow(
    clippy::disallowed_methods,
    reason = "tests listen on loopback, and ask Arti's traits for what they refuse"
)]
mod tests {
    use super::*;

    fn rules(allowed: SocketAddr) -> Rules {
        Rules {
            fallbacks: [allowed].into(),
            ..Rules::default()
        }
    }

    #[tokio::test]
    async fn every_socket_is_counted_and_strangers_get_none() {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
            .await
            .expect("bind");
        let relay = listener.local_addr().expect("address");
        let stranger: SocketAddr = "192.0.2.1:443".parse().expect("address");
        let (runtime, _gate, ledger) = guarded(rules(relay)).expect("a runtime");

        NetStreamProvider::<SocketAddr>::connect(&runtime, &relay, &Default::default())
            .await
            .expect("a relay");
        let refused =
            NetStreamProvider::<SocketAddr>::connect(&runtime, &stranger, &Default::default())
                .await;
        assert_eq!(
            refused.err().map(|e| e.kind()),
            Some(io::ErrorKind::PermissionDenied)
        );
        assert!(UdpProvider::bind(&runtime, &relay).await.is_err());
        let listen =
            NetStreamProvider::<SocketAddr>::listen(&runtime, &relay, &Default::default()).await;
        assert!(listen.is_err());
        let unix = UnixAddr::from_pathname("/run/nowhere").expect("address");
        let unix =
            NetStreamProvider::<UnixAddr>::connect(&runtime, &unix, &Default::default()).await;
        assert!(unix.is_err());

        let report = ledger.report();
        assert_eq!(report.allowed, [(Peer::Fallback, 1)].into());
        let all = [
            Refusal::Stranger,
            Refusal::UnixSocket,
            Refusal::Datagram,
            Refusal::Listener,
        ];
        assert_eq!(report.refused, all.map(|r| (r, 1)).into());
        assert_eq!(
            report.addresses(),
            &[(relay, Some(Peer::Fallback)), (stranger, None)].into()
        );
        for text in [report.to_string(), format!("{report:?}")] {
            assert!(
                !text.contains("192.0.2.1") && !text.contains("127.0.0.1"),
                "{text}"
            );
            assert!(
                text.starts_with("1 dials, directory cache 1; 4 refused, stranger 1"),
                "{text}"
            );
        }
    }
}
