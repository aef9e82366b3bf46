//! The way in: listening sockets, and an accept loop that nothing stops.

use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::time::Duration;

use tokio::net::TcpSocket;

/// The sockets of this room, for those who are handed one. To open one, come here or to [`crate::dial`].
pub use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

use crate::tunnel::splice::Local;

/// Connections that the kernel holds for us until they are accepted.
const BACKLOG: u32 = 1024;
/// How long to wait when accepting fails, most often for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Silence after which the kernel asks whether a visitor is still there. Idle
/// connections are never cut for being idle: foolscap's are silent for weeks.
const KEEPALIVE: Duration = Duration::from_secs(60);
/// The kernel asks so often, and gives up after [`KEEPALIVE_TRIES`].
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);
/// Unanswered questions before a visitor counts as gone.
const KEEPALIVE_TRIES: u32 = 4;

/// Listens on one address. Must be called within a Tokio runtime.
pub fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    // A restarted frontend must not wait for old connections to time out.
    socket.set_reuseaddr(true)?;
    bind_socket(&socket, address)?;
    socket.listen(BACKLOG)
}

#[expect(
    clippy::disallowed_methods,
    reason = "the one place that binds: an address from the configuration, to listen on"
)]
fn bind_socket(socket: &TcpSocket, address: SocketAddr) -> io::Result<()> {
    socket.bind(address)
}

/// Listens on a Unix socket that nobody but its owner may use; says who that is. Must be
/// called within a Tokio runtime.
#[expect(
    clippy::disallowed_methods,
    reason = "the one place that binds a Unix socket: in the state directory, for `kite status`"
)]
pub fn bind_private(path: &Path) -> io::Result<(UnixListener, u32)> {
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok((listener, std::fs::metadata(path)?.uid()))
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
                tracing::warn!("cannot accept a connection: {}; trying again", e.kind());
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

impl Local for TcpStream {
    fn reset(&self) {
        let _ = self.set_zero_linger();
    }
}
