//! Dialling the server behind a backend: by number or by path, never by name.

use std::io;
use std::pin::Pin;
use std::sync::LazyLock;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::timeout;

use super::{OriginAddr, tune, tune_stream};
use crate::code::{Code, Coded};
use crate::descriptors;

/// Longest wait for an origin. It is on this machine, or in the next room at most.
pub const ORIGIN_DIAL_TIMEOUT: Duration = Duration::from_secs(10);

/// Connections to origins at a time, of all tunnels of this process, if it may have as many files open. Visitors beyond that
/// are refused: Tor and the state directory need files, too.
pub const MAX_ORIGIN_CONNECTIONS: usize = 8 * 1024;

/// Counted from the first dial on, when the process has the limit that it will have.
static SLOTS: LazyLock<Semaphore> =
    LazyLock::new(|| Semaphore::new(descriptors::room_for(MAX_ORIGIN_CONNECTIONS)));

/// Opens connections to origins. Used in Tor mode too: an origin is no way to the Internet.
#[derive(Clone, Copy, Debug, Default)]
pub struct OriginDialer;

/// Why an origin could not be reached.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OriginError {
    /// Nobody listens, or there is no such socket.
    #[error("nothing listens at the origin {0}")]
    Refused(OriginAddr),
    /// Too slow: most often a full queue of a server that hangs.
    #[error("the origin {0} did not answer within {secs} s", secs = ORIGIN_DIAL_TIMEOUT.as_secs())]
    TimedOut(OriginAddr),
    /// No more files may be opened for origins.
    #[error(
        "the origin {0} was not dialled: as many connections to origins are open as there may be"
    )]
    TooMany(OriginAddr),
    /// The rest.
    #[error("the origin {0} cannot be reached ({1})")]
    Failed(OriginAddr, io::ErrorKind),
}

impl OriginError {
    /// What the user can do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Refused(_) => "check that the server runs, and that it listens on this address",
            Self::TimedOut(_) => "look at the server: it accepts no connections",
            Self::TooMany(_) => {
                "raise the limit of open files, or limit the kite's streams at its frontend"
            }
            Self::Failed(..) => {
                "check the address, the socket's permissions and the limits of open files"
            }
        }
    }
}

impl Coded for OriginError {
    fn code(&self) -> Code {
        match self {
            Self::Refused(_) => Code::OriginDown,
            Self::TimedOut(_) => Code::OriginSlow,
            Self::TooMany(_) | Self::Failed(..) => Code::OriginUnreachable,
        }
    }
}

impl OriginDialer {
    /// A dialer. It holds nothing.
    pub fn new() -> Self {
        Self
    }

    /// Opens a connection within [`ORIGIN_DIAL_TIMEOUT`].
    pub async fn dial(&self, to: &OriginAddr) -> Result<OriginConn, OriginError> {
        // Nobody closes the semaphore.
        let Ok(slot) = SLOTS.try_acquire() else {
            return Err(OriginError::TooMany(to.clone()));
        };
        match timeout(ORIGIN_DIAL_TIMEOUT, connect(to)).await {
            Ok(Ok(socket)) => Ok(OriginConn {
                socket,
                _slot: slot,
            }),
            Ok(Err(error)) => Err(match error.kind() {
                io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound => {
                    OriginError::Refused(to.clone())
                }
                other => OriginError::Failed(to.clone(), other),
            }),
            Err(_) => Err(OriginError::TimedOut(to.clone())),
        }
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "origins are literal addresses or paths, listed by the operator"
)]
async fn connect(to: &OriginAddr) -> io::Result<Socket> {
    match to {
        OriginAddr::Tcp(addr) => {
            let conn = TcpStream::connect(*addr).await?;
            tune(&conn)?;
            tune_stream(&conn);
            Ok(Socket::Tcp(conn))
        }
        OriginAddr::Unix(path) => Ok(Socket::Unix(UnixStream::connect(path).await?)),
    }
}

/// A connection to an origin.
#[derive(Debug)]
pub struct OriginConn {
    socket: Socket,
    _slot: SemaphorePermit<'static>,
}

#[derive(Debug)]
enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl OriginConn {
    /// Makes the drop that follows send a reset instead of an orderly end, so that the
    /// origin does not take a broken-off upload for a whole one. Unix sockets have no such thing.
    pub fn reset(&self) {
        if let Socket::Tcp(conn) = &self.socket {
            // A socket that cannot be told so is broken already.
            let _ = conn.set_zero_linger();
        }
    }
}

impl AsyncRead for OriginConn {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match &mut self.get_mut().socket {
            Socket::Tcp(conn) => Pin::new(conn).poll_read(cx, buf),
            Socket::Unix(conn) => Pin::new(conn).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for OriginConn {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().socket {
            Socket::Tcp(conn) => Pin::new(conn).poll_write(cx, buf),
            Socket::Unix(conn) => Pin::new(conn).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().socket {
            Socket::Tcp(conn) => Pin::new(conn).poll_write_vectored(cx, bufs),
            Socket::Unix(conn) => Pin::new(conn).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().socket {
            Socket::Tcp(conn) => Pin::new(conn).poll_flush(cx),
            Socket::Unix(conn) => Pin::new(conn).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().socket {
            Socket::Tcp(conn) => Pin::new(conn).poll_shutdown(cx),
            Socket::Unix(conn) => Pin::new(conn).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "tests listen on loopback")]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, UnixListener};

    #[tokio::test]
    async fn tcp_closes_in_order_or_resets() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let to = OriginAddr::Tcp(listener.local_addr().expect("address"));
        for reset in [false, true] {
            let mut near = OriginDialer::new().dial(&to).await.expect("dial");
            let (mut far, _) = listener.accept().await.expect("accept");
            near.write_all(b"hello").await.expect("write");
            let mut got = [0; 5];
            far.read_exact(&mut got).await.expect("read");
            if reset {
                near.reset();
            }
            drop(near);
            let end = far.read(&mut got).await.map_err(|e| e.kind());
            assert_eq!(
                end,
                if reset {
                    Err(io::ErrorKind::ConnectionReset)
                } else {
                    Ok(0)
                }
            );
        }
        drop(listener);
        assert_eq!(
            OriginDialer::new().dial(&to).await.err(),
            Some(OriginError::Refused(to))
        );
    }

    #[tokio::test]
    async fn unix_sockets_work_and_go_missing() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("node.sock");
        let listener = UnixListener::bind(&path).expect("bind");
        let to = OriginAddr::Unix(path);
        let mut near = OriginDialer::new().dial(&to).await.expect("dial");
        let (mut far, _) = listener.accept().await.expect("accept");
        near.reset();
        near.shutdown().await.expect("shutdown");
        assert_eq!(far.read(&mut [0]).await.expect("read"), 0);
        let missing = OriginAddr::Unix(dir.path().join("other.sock"));
        let error = OriginDialer::new()
            .dial(&missing)
            .await
            .expect_err("nothing there");
        assert_eq!(error, OriginError::Refused(missing));
    }
}
