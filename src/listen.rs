//! The way in: listening sockets, and an accept loop that nothing stops.

pub mod handed;

use std::fmt;
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::str::FromStr;
use std::sync::LazyLock;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use socket2::{Domain, SockAddr, Socket, Type};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// The sockets of this room, for those who are handed one. To open one, come here or to [`crate::dial`].
pub use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

use crate::code::Code;
use crate::dial::{BoxConn, keepalive, tune_stream, tune_tunnel};
use crate::observe::hush::Hush;
use crate::tunnel::splice::Local;

/// Connections that the kernel holds for us until they are accepted.
const BACKLOG: i32 = 1024;
/// How long to wait when accepting fails, most often for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Unanswered questions before a visitor counts as gone. Idle connections are never cut for being idle: foolscap's are silent for
/// weeks.
const KEEPALIVE_TRIES: u32 = 6;

/// An open port that nobody accepts from yet; who connects waits in the kernel's queue.
#[derive(Debug)]
pub struct Port(std::net::TcpListener);

impl Port {
    /// Listens on one address.
    pub fn open(address: SocketAddr) -> io::Result<Self> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
        // A restarted frontend must not wait for old connections to time out.
        socket.set_reuse_address(true)?;
        bind_socket(&socket, address)?;
        socket.listen(BACKLOG)?;
        socket.set_nonblocking(true)?;
        Ok(Self(socket.into()))
    }

    /// Hands it to Tokio. Must be called within a runtime.
    pub fn listener(self) -> io::Result<TcpListener> {
        TcpListener::from_std(self.0)
    }
}

/// Listens on one address. Must be called within a Tokio runtime.
pub fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    Port::open(address)?.listener()
}

#[expect(
    clippy::disallowed_methods,
    reason = "the one place that binds: an address from the configuration, to listen on"
)]
fn bind_socket(socket: &Socket, address: SocketAddr) -> io::Result<()> {
    socket.bind(&address.into())
}

/// The same as [`Port`] for a Unix socket that nobody but its owner may use.
#[derive(Debug)]
pub struct PrivatePort(std::os::unix::net::UnixListener, u32);

impl PrivatePort {
    /// Listens at a path, unless somebody does so already. A socket that an earlier run has left goes; another file stays.
    #[expect(
        clippy::disallowed_methods,
        reason = "the one place that binds a Unix socket: in the state directory for `kite status`, or where the operator wants metrics or the status page"
    )]
    pub fn open(path: &Path) -> io::Result<Self> {
        let (address, asking) = (SockAddr::unix(path)?, unix_socket()?);
        let is_socket = || std::fs::symlink_metadata(path).is_ok_and(|m| m.file_type().is_socket());
        if let Err(e) = asking.connect(&address)
            && e.kind() == io::ErrorKind::ConnectionRefused
            && is_socket()
        {
            std::fs::remove_file(path)?;
        }
        let socket = unix_socket()?;
        socket.bind(&address)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
        socket.listen(BACKLOG)?;
        Ok(Self(socket.into(), std::fs::metadata(path)?.uid()))
    }

    /// Hands it to Tokio, and says who owns it. Must be called within a runtime.
    pub fn listener(self) -> io::Result<(UnixListener, u32)> {
        Ok((UnixListener::from_std(self.0)?, self.1))
    }
}

fn unix_socket() -> io::Result<Socket> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// A place that only this machine can reach: a loopback address, or a Unix socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LocalAddr {
    /// `127.0.0.1:7465`.
    Tcp(SocketAddr),
    /// `unix:/run/kite/page.sock`.
    Unix(PathBuf),
}

impl FromStr for LocalAddr {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            let path = PathBuf::from(path);
            return match path.is_absolute() {
                true => Ok(Self::Unix(path)),
                false => Err(format!("{} is no absolute path", path.display())),
            };
        }
        let address: SocketAddr = text
            .parse()
            .map_err(|_| format!("'{text}' is no address with a port"))?;
        match address.ip().is_loopback() {
            true => Ok(Self::Tcp(address)),
            false => Err(format!("{address} can be reached from other machines")),
        }
    }
}

impl fmt::Display for LocalAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// An open port at a [`LocalAddr`], from which nobody accepts yet.
#[derive(Debug)]
pub struct LocalPort(LocalAddr, Opened);

#[derive(Debug)]
enum Opened {
    Tcp(Port),
    Unix(PrivatePort),
}

impl LocalPort {
    /// Listens there. A Unix socket is for its owner alone.
    pub fn open(address: &LocalAddr) -> io::Result<Self> {
        let opened = match address {
            LocalAddr::Tcp(address) => Opened::Tcp(Port::open(*address)?),
            LocalAddr::Unix(path) => Opened::Unix(PrivatePort::open(path)?),
        };
        Ok(Self(address.clone(), opened))
    }

    /// Hands it to Tokio. Must be called within a runtime.
    pub fn listener(self) -> io::Result<LocalListener> {
        Ok(match self.1 {
            Opened::Tcp(port) => {
                let listener = port.listener()?;
                // Port 0 has become another.
                let address = LocalAddr::Tcp(listener.local_addr()?);
                LocalListener(address, Listening::Tcp(listener))
            }
            Opened::Unix(port) => LocalListener(self.0, Listening::Unix(port.listener()?.0)),
        })
    }
}

/// A [`LocalPort`] in a runtime.
#[derive(Debug)]
pub struct LocalListener(LocalAddr, Listening);

#[derive(Debug)]
enum Listening {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl LocalListener {
    /// Where it is.
    pub fn address(&self) -> &LocalAddr {
        &self.0
    }

    /// The next connection. Trouble is waited out.
    pub async fn accept(&self) -> BoxConn {
        match &self.1 {
            Listening::Tcp(listener) => Box::new(accept(listener).await.0),
            Listening::Unix(listener) => loop {
                match listener.accept().await {
                    Ok((conn, _)) => return Box::new(conn),
                    Err(e) => wait_out(&e).await,
                }
            },
        }
    }
}

/// The next connection. Failures are logged and waited out, never passed on: one
/// shortage of descriptors must not end a frontend.
pub async fn accept(listener: &TcpListener) -> (TcpStream, SocketAddr) {
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                // Options that cannot be set concern a connection that is gone already.
                let _ = stream.set_nodelay(true);
                let probe = keepalive().with_retries(KEEPALIVE_TRIES);
                let _ = socket2::SockRef::from(&stream).set_tcp_keepalive(&probe);
                tune_stream(&stream);
                return (stream, peer);
            }
            Err(e) => wait_out(&e).await,
        }
    }
}

/// Accepting failed. A minute of it is one line in the log, or a shortage of files would become one of disk.
async fn wait_out(error: &io::Error) {
    static NOISE: LazyLock<Hush> = LazyLock::new(Hush::default);
    if let Some(before) = NOISE.due(Instant::now()) {
        tracing::warn!(
            "[{}] cannot accept a connection: {error}; trying again{before}",
            Code::AcceptFailed
        );
    }
    tokio::time::sleep(ACCEPT_PAUSE).await;
}

/// What may be a part of something that waits for an acknowledgement, in bytes: two full segments are none.
#[cfg(target_os = "linux")]
const SHORT: usize = 2 * 1400;

/// A tunnel's socket: what has come is acknowledged at once.
///
/// The other end may be a Tor exit, which leaves Nagle's algorithm on: a small piece behind another waits there until
/// the first is acknowledged. The kernel would do that after 40 ms, to send it along with something.
pub struct Prompt(TcpStream);

impl Prompt {
    /// For a connection that turned out to be a backend's.
    pub fn new(conn: TcpStream) -> Self {
        tune_tunnel(&conn);
        Self(conn)
    }
}

impl AsyncRead for Prompt {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let outcome = ready!(Pin::new(&mut self.0).poll_read(cx, buf));
        // A long piece is acknowledged anyway. The kernel forgets the wish soon, so each short one says it anew.
        #[cfg(target_os = "linux")]
        if buf.filled().len() - before < SHORT {
            let _ = self.0.set_quickack(true);
        }
        Poll::Ready(outcome)
    }
}

impl AsyncWrite for Prompt {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

impl Local for TcpStream {
    fn reset(&self) {
        let _ = self.set_zero_linger();
    }
}

impl Local for Prompt {
    fn reset(&self) {
        self.0.reset();
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    /// What fell silent together is not asked together: of ten thousand questions at one instant most are lost, and cut off who is there.
    #[tokio::test]
    async fn each_silent_visitor_is_asked_at_a_time_of_its_own() {
        let port = Port::open("127.0.0.1:0".parse().unwrap()).unwrap();
        let listener = port.listener().unwrap();
        let address = listener.local_addr().unwrap();
        let (mut times, mut intervals) = (HashSet::new(), HashSet::new());
        for _ in 0..100 {
            #[allow(clippy::disallowed_methods, reason = "a visitor on loopback")]
            let visitor = TcpStream::connect(address).await.unwrap();
            let (conn, _) = accept(&listener).await;
            let socket = socket2::SockRef::from(&conn);
            assert!(socket.keepalive().unwrap());
            assert_eq!(socket.tcp_keepalive_retries().unwrap(), KEEPALIVE_TRIES);
            let (time, interval) = (socket.tcp_keepalive_time(), socket.tcp_keepalive_interval());
            let (time, interval) = (time.unwrap().as_secs(), interval.unwrap().as_secs());
            assert!((45..=90).contains(&time) && (10..=20).contains(&interval));
            times.insert(time);
            intervals.insert(interval);
            drop(visitor);
        }
        assert!(
            times.len() > 20 && intervals.len() > 5,
            "{times:?}, {intervals:?}"
        );
    }
}
