//! The runtime that Arti lives in: Tokio's, with a gate where sockets are made.
//!
//! Arti opens sockets only through the runtime that it is given. In ours every TCP
//! connection passes the `Gate`, which asks [`crate::relays`] and keeps count;
//! Unix sockets, datagram sockets and listeners cannot be had at all.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use futures::io::{AsyncRead, AsyncWrite, IoSlice};
use futures::task::{FutureObj, Spawn, SpawnError};
use tokio::net::TcpSocket;
use tokio::sync::watch;
use tokio::time::sleep;
use tor_linkspec::HasAddrs;
use tor_netdir::NetDir;
use tor_rtcompat::tokio::TokioRustlsRuntime as Base;
use tor_rtcompat::unimpl::{FakeListener, FakeStream};
use tor_rtcompat::{
    Blocking, CompoundRuntime, NetStreamListener, NetStreamProvider, RealCoarseTimeProvider,
    StreamOps, TcpConnectOptions, TcpListenOptions, UdpProvider, UdpSocket, UnixConnectOptions,
    UnixListenOptions,
};

use crate::relays::{Peer, Rules};

/// The runtime type that Arti sees.
pub(crate) type Guarded =
    CompoundRuntime<Nursery, Base, RealCoarseTimeProvider, Gate, NoSockets, Base, NoSockets>;

/// A connection, as Arti's traits want it.
type Tcp = <Base as NetStreamProvider<SocketAddr>>::Stream;

/// Where the current directory can be found, once there is one.
type Directory = Box<dyn Fn() -> Option<Arc<NetDir>> + Send + Sync>;

/// Most addresses that the report lists one by one. A client has a handful of guards; past
/// this, only the counts by kind go on.
const MAX_LISTED: usize = 1024;

/// Between two looks for a route, when there is none. Failing at once would have Arti blame
/// one relay after the other, and leave each alone for minutes.
const ROUTE_POLL: Duration = Duration::from_millis(500);

/// Longest wait for a route in one attempt. Arti's own patience is 5 s, with a transport 10 s.
const ROUTE_WAIT: Duration = Duration::from_secs(30);

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
pub(crate) struct Ledger {
    dials: Arc<Mutex<DialReport>>,
    line: Arc<Mutex<Line>>,
}

/// How Arti's connections fare.
#[derive(Default)]
struct Line {
    /// Attempts that failed since one succeeded, or a relay was heard.
    failed: u32,
    /// The last of them found no route.
    no_route: bool,
    /// A connection was taken, by whomever.
    taken: bool,
    /// When a relay last sent anything.
    heard: Option<Instant>,
    /// Whom Arti wanted to reach last.
    wanted: Option<SocketAddr>,
}

impl Ledger {
    pub(crate) fn report(&self) -> DialReport {
        self.dials().clone()
    }

    /// Attempts that failed since one succeeded or a relay was heard, and whether a route is missing.
    pub(crate) fn attempts(&self) -> (u32, bool) {
        let line = self.line();
        (line.failed, line.no_route)
    }

    /// When a relay last sent anything.
    pub(crate) fn heard(&self) -> Option<Instant> {
        self.line().heard
    }

    /// Was any connection taken, since Arti began?
    pub(crate) fn taken(&self) -> bool {
        self.line().taken
    }

    /// Whom Arti wanted to reach last.
    pub(crate) fn wanted(&self) -> Option<SocketAddr> {
        self.line().wanted
    }

    /// A fresh Arti has heard nothing yet.
    pub(crate) fn forget(&self) {
        let wanted = self.wanted();
        *self.line() = Line {
            wanted,
            ..Line::default()
        };
    }

    fn note_failure(&self, no_route: bool) {
        let mut line = self.line();
        line.failed = line.failed.saturating_add(1);
        line.no_route = no_route;
    }

    fn note_success(&self) {
        let mut line = self.line();
        line.failed = 0;
        line.no_route = false;
        line.taken = true;
    }

    fn note_heard(&self) {
        self.note_success();
        self.line().heard = Some(Instant::now());
    }

    fn dials(&self) -> MutexGuard<'_, DialReport> {
        self.dials.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn line(&self) -> MutexGuard<'_, Line> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn allow(&self, addr: &SocketAddr, peer: Peer) {
        let mut report = self.dials();
        *report.allowed.entry(peer).or_default() += 1;
        list(&mut report, addr, Some(peer));
    }

    /// Counts and, the first time, says aloud: a refusal should never happen.
    fn refuse(&self, what: Refusal, addr: Option<&SocketAddr>) -> io::Error {
        let mut report = self.dials();
        if report.total_refused() == 0 {
            tracing::warn!(
                "[KITE-T19] kept Arti from opening a connection that is none of Tor's ({what}); kite stays safe, please report it"
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
    type Stream = Wire;
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
        self.ledger.line().wanted = Some(*addr);
        let mut attempt = Attempt(Some(self.ledger.clone()));
        let begun = Instant::now();
        loop {
            match dial(addr, options).await {
                Err(e) if is_no_route(e.kind()) && begun.elapsed() < ROUTE_WAIT => {
                    self.ledger.note_failure(true);
                    sleep(ROUTE_POLL).await;
                }
                outcome => {
                    attempt.0 = None;
                    match &outcome {
                        Ok(_) => self.ledger.note_success(),
                        Err(e) => self.ledger.note_failure(is_no_route(e.kind())),
                    }
                    return outcome.map(|inner| Wire {
                        inner,
                        ledger: self.ledger.clone(),
                    });
                }
            }
        }
    }

    async fn listen(&self, _: &SocketAddr, _: &TcpListenOptions) -> io::Result<Never> {
        Err(self.ledger.refuse(Refusal::Listener, None))
    }
}

/// A connection such as Arti's runtime would make, but without Nagle's algorithm. Arti sends whole cells; one that has
/// to wait until the relay acknowledges the one before it waits for 40 ms.
#[expect(
    clippy::disallowed_methods,
    reason = "the gate itself: an address that it has let through"
)]
async fn dial(addr: &SocketAddr, options: &TcpConnectOptions) -> io::Result<Tcp> {
    let socket = match addr {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    let size = |bytes: usize| u32::try_from(bytes).unwrap_or(u32::MAX);
    let common = options.common();
    if let Some(bytes) = *common.send_buffer_size() {
        socket.set_send_buffer_size(size(bytes))?;
    }
    if let Some(bytes) = *common.recv_buffer_size() {
        socket.set_recv_buffer_size(size(bytes))?;
    }
    socket.set_nodelay(true)?;
    Ok(socket.connect(*addr).await?.into())
}

/// The system itself knows that nothing can be reached.
fn is_no_route(kind: io::ErrorKind) -> bool {
    matches!(
        kind,
        io::ErrorKind::NetworkUnreachable | io::ErrorKind::NetworkDown
    )
}

/// An attempt to connect. Arti drops those that take it too long, and they have failed then.
struct Attempt(Option<Ledger>);

impl Drop for Attempt {
    fn drop(&mut self) {
        if let Some(ledger) = self.0.take() {
            let (_, no_route) = ledger.attempts();
            ledger.note_failure(no_route);
        }
    }
}

/// A connection of Arti's; what comes in is a sign of life.
pub(crate) struct Wire {
    inner: Tcp,
    ledger: Ledger,
}

impl AsyncRead for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let n = ready!(Pin::new(&mut self.inner).poll_read(cx, buf))?;
        if n > 0 {
            self.ledger.note_heard();
        }
        Poll::Ready(Ok(n))
    }
}

impl AsyncWrite for Wire {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, bufs)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_close(cx)
    }
}

impl StreamOps for Wire {
    fn set_tcp_notsent_lowat(&self, lowat: u32) -> io::Result<()> {
        self.inner.set_tcp_notsent_lowat(lowat)
    }

    fn new_handle(&self) -> Box<dyn StreamOps + Send + Unpin> {
        self.inner.new_handle()
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

/// Where Arti's tasks live, so that they can end with it. Left to themselves, some go on
/// for a minute, and hold its files.
#[derive(Clone)]
pub(crate) struct Nursery {
    base: Base,
    end: watch::Receiver<()>,
}

impl Spawn for Nursery {
    fn spawn_obj(&self, task: FutureObj<'static, ()>) -> Result<(), SpawnError> {
        let mut end = self.end.clone();
        self.base.spawn_obj(FutureObj::new(Box::new(async move {
            tokio::select! {
                () = task => {}
                // Also when nobody is left to say so.
                _ = end.changed() => {}
            }
        })))
    }
}

impl Blocking for Nursery {
    type ThreadHandle<T: Send + 'static> = <Base as Blocking>::ThreadHandle<T>;

    fn spawn_blocking<F, T>(&self, f: F) -> Self::ThreadHandle<T>
    where
        F: FnOnce() -> T + Send + 'static,
        T: Send + 'static,
    {
        self.base.spawn_blocking(f)
    }

    fn reenter_block_on<F>(&self, future: F) -> F::Output
    where
        F: Future,
        F::Output: Send + 'static,
    {
        self.base.reenter_block_on(future)
    }
}

/// Makes runtimes with one gate and one ledger.
pub(crate) struct Maker {
    base: Base,
    gate: Gate,
    none: NoSockets,
}

impl Maker {
    /// For the Tokio runtime that we are called in.
    ///
    /// Panics without a rustls provider: [`crate::Client::start`] checks that first.
    pub(crate) fn new(rules: Rules) -> io::Result<(Self, Ledger)> {
        let base = Base::current()?;
        let ledger = Ledger::default();
        let gate = Gate {
            rules: Arc::new(rules),
            directory: Arc::default(),
            ledger: ledger.clone(),
        };
        let none = NoSockets(ledger.clone());
        Ok((Self { base, gate, none }, ledger))
    }

    /// A runtime, and what ends its tasks when it is dropped.
    pub(crate) fn runtime(&self) -> (Guarded, watch::Sender<()>) {
        let (end, ended) = watch::channel(());
        let nursery = Nursery {
            base: self.base.clone(),
            end: ended,
        };
        let runtime = CompoundRuntime::new(
            nursery,
            self.base.clone(),
            RealCoarseTimeProvider::new(),
            self.gate.clone(),
            self.none.clone(),
            self.base.clone(),
            self.none.clone(),
        );
        (runtime, end)
    }

    /// The gate that they share.
    pub(crate) fn gate(&self) -> &Gate {
        &self.gate
    }
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
        let (maker, ledger) = Maker::new(rules(relay)).expect("a maker");
        let (runtime, _end) = maker.runtime();

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
