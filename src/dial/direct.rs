//! Dialling without Tor, for those who have nothing to hide from whom they dial.
//!
//! The one file that may ask the system's resolver.

use std::io;
use std::net::SocketAddr;
use std::time::Instant;

use async_trait::async_trait;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::{
    BoxConn, DIRECT_DIAL_TIMEOUT, DialError, Dialer, Dialled, DirectAllowed, FrontendAddr, Goal,
    Lane, prove, tune, tune_tunnel,
};
use crate::tls::TlsClient;

/// Dials over the Internet: the frontend sees this machine's address, the resolver the frontend's name.
#[derive(Debug)]
pub struct DirectDialer {
    allowed: DirectAllowed,
    tls: TlsClient,
}

impl DirectDialer {
    /// Takes the permission that only a decision against Tor gives out.
    pub fn new(allowed: DirectAllowed, tls: TlsClient) -> Self {
        Self { allowed, tls }
    }
}

/// A permission to dial directly. What it is for decides who can have one.
pub(super) trait Permission: Sync {}
impl Permission for DirectAllowed {}

#[async_trait]
impl Dialer for DirectDialer {
    async fn dial(&self, to: &FrontendAddr, _: Lane) -> Result<Dialled, DialError> {
        if to.is_onion() {
            return Err(DialError::NeedsTor);
        }
        let conn = connect(&self.allowed, to.host(), to.port()).await?;
        tune_tunnel(&conn);
        prove(conn, to, &self.tls).await
    }

    async fn visit(&self, goal: Goal<'_>, port: u16) -> Result<BoxConn, DialError> {
        let Goal::Frontend(frontend) = goal else {
            return Err(DialError::Socket(io::ErrorKind::Unsupported));
        };
        if frontend.is_onion() {
            return Err(DialError::NeedsTor);
        }
        let conn = connect(&self.allowed, frontend.host(), port).await?;
        Ok(Box::new(conn))
    }

    fn refusals_are_cheap(&self) -> bool {
        true
    }

    fn reaches_onions(&self) -> bool {
        false
    }

    fn describe(&self) -> &'static str {
        "direct"
    }
}

/// Opens a connection, within [`DIRECT_DIAL_TIMEOUT`], for who has the permission.
pub(super) async fn connect(
    _: &impl Permission,
    host: &str,
    port: u16,
) -> Result<TcpStream, DialError> {
    let begun = Instant::now();
    let addresses = timeout(DIRECT_DIAL_TIMEOUT, resolve(host, port))
        .await
        .map_err(|_| DialError::TimedOut)??;
    try_all(&addresses, begun + DIRECT_DIAL_TIMEOUT).await
}

/// Tries addresses in the resolver's order. Each has an equal share of the time that is left: one that swallows what is sent
/// to it keeps nobody from the next.
async fn try_all(addresses: &[SocketAddr], until: Instant) -> Result<TcpStream, DialError> {
    let mut last = DialError::NameNotFound;
    for (before, addr) in addresses.iter().enumerate() {
        let left = until.saturating_duration_since(Instant::now());
        let shares = u32::try_from(addresses.len() - before).unwrap_or(u32::MAX);
        #[expect(
            clippy::disallowed_methods,
            reason = "its caller has a Permission: Tor was not chosen, or this is a frontend"
        )]
        let attempt = async {
            let conn = TcpStream::connect(addr).await?;
            tune(&conn).map(|()| conn)
        };
        last = match timeout(left / shares, attempt).await {
            Ok(Ok(conn)) => return Ok(conn),
            Ok(Err(error)) => sort(&error),
            Err(_) => DialError::TimedOut,
        };
    }
    Err(last)
}

async fn resolve(host: &str, port: u16) -> Result<Vec<SocketAddr>, DialError> {
    #[expect(
        clippy::disallowed_methods,
        reason = "its caller has a Permission: Tor was not chosen, or this is a frontend"
    )]
    let found = tokio::net::lookup_host((host, port)).await;
    found
        .map(Iterator::collect)
        .map_err(|_| DialError::NameNotFound)
}

/// What a failed connection means.
fn sort(error: &io::Error) -> DialError {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => DialError::Refused,
        io::ErrorKind::TimedOut => DialError::TimedOut,
        io::ErrorKind::HostUnreachable
        | io::ErrorKind::NetworkUnreachable
        | io::ErrorKind::NetworkDown
        | io::ErrorKind::AddrNotAvailable => DialError::Unreachable,
        io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionAborted => DialError::Closed,
        other => DialError::Socket(other),
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "tests listen on loopback")]
mod tests {
    use super::*;
    use crate::dial::{Egress, EgressArgs};
    use crate::tls::{TlsError, TlsServer};
    use crate::tor::TorSettings;
    use std::time::Duration;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    fn dialer() -> DirectDialer {
        let tor = TorSettings {
            state_dir: "/unused".into(),
            config: None,
        };
        match Egress::decide(EgressArgs {
            via_tor: false,
            tor,
        }) {
            Ok(Egress::Direct(allowed)) => {
                DirectDialer::new(allowed, TlsClient::new(None).expect("roots"))
            }
            other => panic!("{other:?}"),
        }
    }

    async fn dial(text: &str) -> Result<BoxConn, DialError> {
        let dialled = dialer()
            .dial(&text.parse().expect("address"), Lane(0))
            .await?;
        Ok(dialled.conn)
    }

    #[tokio::test]
    async fn plain_and_pinned_connections_carry_bytes() {
        let dir = tempfile::tempdir().expect("a directory");
        let server = TlsServer::load_or_create(dir.path()).expect("a key");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let port = listener.local_addr().expect("address").port();
        let pin = server.pin();
        let echo = tokio::spawn(async move {
            let (mut plain, _) = listener.accept().await.expect("accept");
            plain.write_all(b"plain").await.expect("write");
            let (pinned, _) = listener.accept().await.expect("accept");
            let mut pinned = server.accept(pinned).await.expect("handshake");
            pinned.write_all(b"pinned").await.expect("write");
            pinned.shutdown().await.expect("shutdown");
            let (wrong, _) = listener.accept().await.expect("accept");
            assert!(server.accept(wrong).await.is_err());
        });
        let mut got = [0; 6];
        let mut conn = dial(&format!("plain://127.0.0.1:{port}"))
            .await
            .expect("plain");
        conn.read_exact(&mut got[..5]).await.expect("read");
        assert_eq!(&got[..5], b"plain");
        let mut conn = dial(&format!("127.0.0.1:{port}#{pin}"))
            .await
            .expect("pinned");
        conn.read_exact(&mut got).await.expect("read");
        assert_eq!(&got, b"pinned");
        let other = "sha256:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8";
        let wrong = dial(&format!("127.0.0.1:{port}#{other}")).await.err();
        assert!(
            matches!(wrong, Some(DialError::Tls(TlsError::WrongPin { found, .. })) if found == pin)
        );
        echo.await.expect("the server's side");
    }

    #[tokio::test]
    async fn an_address_that_swallows_everything_keeps_nobody_from_the_next() {
        let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
        socket
            .bind("127.0.0.1:0".parse().expect("an address"))
            .expect("bind");
        let full = socket.listen(1).expect("listen");
        let swallows = full.local_addr().expect("an address");
        let mut waiting = Vec::new();
        while let Ok(conn) = timeout(Duration::from_millis(50), TcpStream::connect(swallows)).await
        {
            waiting.push(conn);
            assert!(waiting.len() < 100, "its queue is never full");
        }
        let good = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let good = good.local_addr().map(|at| (good, at)).expect("an address");
        let soon = || Instant::now() + Duration::from_secs(1);
        let conn = try_all(&[swallows, good.1], soon())
            .await
            .expect("the other one");
        assert_eq!(conn.peer_addr().ok(), Some(good.1));
        let alone = try_all(&[swallows], soon()).await;
        assert_eq!(alone.err(), Some(DialError::TimedOut));
    }

    #[tokio::test]
    async fn failures_are_told_apart() {
        let closed = TcpListener::bind("127.0.0.1:0")
            .await
            .and_then(|l| l.local_addr())
            .expect("a port");
        assert_eq!(
            dial(&format!("plain://{closed}")).await.err(),
            Some(DialError::Refused)
        );
        let onion = "2gzyxa5ihm7nsggfxnu52rck2vv4rvmdlkiu3zzui5du4xyclen53wid.onion:80";
        assert_eq!(dial(onion).await.err(), Some(DialError::NeedsTor));
        assert_eq!(
            dial("plain://nosuch.invalid:80").await.err(),
            Some(DialError::NameNotFound)
        );
    }
}
