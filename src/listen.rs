//! The way in: listening sockets, and an accept loop that nothing stops.

use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use socket2::{Domain, SockAddr, Socket, Type};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// The sockets of this room, for those who are handed one. To open one, come here or to [`crate::dial`].
pub use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

use crate::code::Code;
use crate::dial::tune_tunnel;
use crate::tunnel::splice::Local;

/// Connections that the kernel holds for us until they are accepted.
const BACKLOG: i32 = 1024;
/// How long to wait when accepting fails, most often for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Silence after which the kernel asks whether a visitor is still there. Idle
/// connections are never cut for being idle: foolscap's are silent for weeks.
const KEEPALIVE: Duration = Duration::from_secs(60);
/// The kernel asks so often, and gives up after [`KEEPALIVE_TRIES`].
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);
/// Unanswered questions before a visitor counts as gone.
const KEEPALIVE_TRIES: u32 = 4;

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
    /// Listens at a path, unless somebody does so already. What an earlier run has left goes.
    #[expect(
        clippy::disallowed_methods,
        reason = "the one place that binds a Unix socket: in the state directory, for `kite status`"
    )]
    pub fn open(path: &Path) -> io::Result<Self> {
        let (address, asking) = (SockAddr::unix(path)?, unix_socket()?);
        if let Err(e) = asking.connect(&address)
            && e.kind() == io::ErrorKind::ConnectionRefused
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

/// The next connection. Failures are logged and waited out, never passed on: one
/// shortage of descriptors must not end a frontend.
pub async fn accept(listener: &TcpListener) -> (TcpStream, SocketAddr) {
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                // Options that cannot be set concern a connection that is gone already.
                let _ = stream.set_nodelay(true);
                let probe = socket2::TcpKeepalive::new()
                    .with_time(KEEPALIVE)
                    .with_interval(KEEPALIVE_INTERVAL)
                    .with_retries(KEEPALIVE_TRIES);
                let _ = socket2::SockRef::from(&stream).set_tcp_keepalive(&probe);
                return (stream, peer);
            }
            Err(e) => {
                tracing::warn!(
                    "[{}] cannot accept a connection: {}; trying again",
                    Code::AcceptFailed,
                    e.kind()
                );
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
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
