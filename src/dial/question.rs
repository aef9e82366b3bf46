//! One question to one server of the DNS, for a frontend that was told to ask there who may fly
//! (protocol page §12). Nothing else in kite asks the DNS but [`super::direct`], and a backend never comes here.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

/// How long a datagram is waited for.
const PATIENCE: Duration = Duration::from_secs(2);
/// How often it is sent.
const TRIES: u32 = 2;
/// How long the same may take over TCP, when an answer does not fit into a datagram.
const TCP_PATIENCE: Duration = Duration::from_secs(3);
/// The longest answer in a datagram, in bytes.
const MAX_DATAGRAM: usize = 4096;
/// Datagrams that are looked at until one is the answer.
const MAX_STRAY: usize = 64;

/// What came.
#[derive(Debug)]
pub enum Reply<T> {
    /// The answer.
    Taken(T),
    /// The answer, but it does not fit into a datagram.
    Cut,
    /// Something else.
    Other,
}

impl<T> Reply<T> {
    /// The answer, if it is one.
    pub fn taken(self) -> Option<T> {
        match self {
            Self::Taken(answer) => Some(answer),
            Self::Cut | Self::Other => None,
        }
    }
}

/// Asks, and gives the first reply that `take` knows for the answer. The kernel lets through what comes from the server's
/// address and port only; each question has a port of its own.
pub async fn ask<T>(
    server: SocketAddr,
    query: &[u8],
    take: impl Fn(&[u8]) -> Reply<T>,
) -> io::Result<T> {
    for _ in 0..TRIES {
        match timeout(PATIENCE, by_datagram(server, query, &take)).await {
            Ok(Ok(Reply::Taken(answer))) => return Ok(answer),
            Ok(Ok(Reply::Cut)) => return over_tcp(server, query, &take).await,
            Ok(Ok(Reply::Other)) | Err(_) => {}
            Ok(Err(e)) => return Err(e),
        }
    }
    Err(io::ErrorKind::TimedOut.into())
}

#[expect(
    clippy::disallowed_methods,
    reason = "a frontend asks the server that its operator named; it is no way out for a backend"
)]
async fn by_datagram<T>(
    server: SocketAddr,
    query: &[u8],
    take: &impl Fn(&[u8]) -> Reply<T>,
) -> io::Result<Reply<T>> {
    let any: SocketAddr = match server {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(server).await?;
    socket.send(query).await?;
    let mut buffer = vec![0; MAX_DATAGRAM];
    for _ in 0..MAX_STRAY {
        let read = socket.recv(&mut buffer).await?;
        match take(buffer.get(..read).unwrap_or_default()) {
            Reply::Other => {}
            reply => return Ok(reply),
        }
    }
    Ok(Reply::Other)
}

async fn over_tcp<T>(
    server: SocketAddr,
    query: &[u8],
    take: &impl Fn(&[u8]) -> Reply<T>,
) -> io::Result<T> {
    let answer = timeout(TCP_PATIENCE, by_stream(server, query)).await??;
    match take(&answer) {
        Reply::Taken(answer) => Ok(answer),
        Reply::Cut | Reply::Other => Err(io::ErrorKind::InvalidData.into()),
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "the same question to the same server, for an answer that is too long for a datagram"
)]
async fn by_stream(server: SocketAddr, query: &[u8]) -> io::Result<Vec<u8>> {
    let length = u16::try_from(query.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let mut conn = TcpStream::connect(server).await?;
    let mut text = length.to_be_bytes().to_vec();
    text.extend_from_slice(query);
    conn.write_all(&text).await?;
    let length = conn.read_u16().await?;
    let mut answer = vec![0; length.into()];
    conn.read_exact(&mut answer).await?;
    Ok(answer)
}

/// The first server of `/etc/resolv.conf`, as this machine asks it.
pub fn usual_server(resolv_conf: &str) -> Option<SocketAddr> {
    let servers = resolv_conf.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        (words.next() == Some("nameserver")).then(|| words.next())?
    });
    let mut addresses = servers.filter_map(|word| word.parse().ok());
    addresses.next().map(|ip| SocketAddr::new(ip, 53))
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "tests listen on loopback")]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    fn take(bytes: &[u8]) -> Reply<Vec<u8>> {
        match bytes {
            b"cut" => Reply::Cut,
            b"stray" => Reply::Other,
            answer => Reply::Taken(answer.to_vec()),
        }
    }

    async fn server() -> (UdpSocket, SocketAddr) {
        let socket = UdpSocket::bind("127.0.0.1:0").await.expect("bind");
        let address = socket.local_addr().expect("address");
        (socket, address)
    }

    #[tokio::test]
    async fn strays_are_passed_over_and_what_is_lost_is_asked_again() {
        let (socket, address) = server().await;
        let serving = tokio::spawn(async move {
            let mut buffer = [0; 64];
            // The first question is lost.
            socket.recv_from(&mut buffer).await.expect("a question");
            let (n, from) = socket.recv_from(&mut buffer).await.expect("a question");
            assert_eq!(&buffer[..n], b"who?");
            let stranger = UdpSocket::bind("127.0.0.1:0").await.expect("bind");
            stranger.send_to(b"forged", from).await.expect("send");
            socket.send_to(b"stray", from).await.expect("send");
            socket.send_to(b"bob", from).await.expect("send");
        });
        assert_eq!(
            ask(address, b"who?", take).await.expect("an answer"),
            b"bob"
        );
        serving.await.expect("the server");
    }

    /// At one port by UDP and by TCP, of which somebody else may have the latter.
    async fn server_of_both() -> (UdpSocket, TcpListener, SocketAddr) {
        loop {
            let (socket, address) = server().await;
            match TcpListener::bind(address).await {
                Ok(listener) => return (socket, listener, address),
                Err(e) => assert_eq!(e.kind(), io::ErrorKind::AddrInUse),
            }
        }
    }

    #[tokio::test]
    async fn a_cut_answer_comes_over_tcp() {
        let (socket, listener, address) = server_of_both().await;
        tokio::spawn(async move {
            let mut buffer = [0; 64];
            let (_, from) = socket.recv_from(&mut buffer).await.expect("a question");
            socket.send_to(b"cut", from).await.expect("send");
            let (mut conn, _) = listener.accept().await.expect("a connection");
            let n = usize::from(conn.read_u16().await.expect("a length"));
            conn.read_exact(&mut buffer[..n]).await.expect("a question");
            assert_eq!(&buffer[..n], b"who?");
            conn.write_all(b"\0\x03bob").await.expect("write");
        });
        assert_eq!(
            ask(address, b"who?", take).await.expect("an answer"),
            b"bob"
        );
    }

    #[tokio::test]
    async fn silence_has_an_end() {
        let (_socket, address) = server().await;
        let e = ask(address, b"who?", take)
            .await
            .expect_err("nobody answers");
        assert_eq!(e.kind(), io::ErrorKind::TimedOut);
    }

    #[test]
    fn the_usual_server_is_the_first() {
        let text = "# a comment\nsearch example\nnameserver 192.0.2.1\nnameserver ::1\n";
        assert_eq!(
            usual_server(text),
            Some("192.0.2.1:53".parse().expect("an address"))
        );
        assert_eq!(
            usual_server("nameserver ::1"),
            Some("[::1]:53".parse().expect("an address"))
        );
        assert_eq!(usual_server("nameserver\n#nameserver 192.0.2.1"), None);
    }
}
