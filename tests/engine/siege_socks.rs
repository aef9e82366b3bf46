//! The SOCKS port, which any program on the node's machine can reach: whatever those do, the node is served in the end.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use kite::socks::{Exit, HANDSHAKE, MAX_CONNECTIONS, serve};
use kite::tor::{ErrorKind, IsolationToken};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use crate::roles::any;

/// Whoever behaves well is served within this: some turns may go before.
const IN_THE_END: Duration = Duration::from_secs(60);
const GREETING: &[u8] = b"\x05\x01\x00";
const REQUEST: &[u8] = b"\x05\x01\x00\x03\x12intro.grid.example\x00\x50";
const GRANTED: &[u8] = b"\x05\x00\x05\x00\x00\x01\x00\x00\x00\x00\x00\x00";

/// On the other side of Tor there is one host, which echoes.
struct Echo;

impl Exit for Echo {
    type Stream = DuplexStream;

    fn connect<'a>(
        &'a self,
        host: &'a str,
        port: u16,
        _: IsolationToken,
    ) -> BoxFuture<'a, Result<DuplexStream, ErrorKind>> {
        if (host, port) != ("intro.grid.example", 80) {
            return Box::pin(async { Err(ErrorKind::InvalidStreamTarget) });
        }
        let (near, far) = duplex(4096);
        tokio::spawn(async move {
            let (mut from, mut to) = tokio::io::split(far);
            let _ = tokio::io::copy(&mut from, &mut to).await;
        });
        Box::pin(async { Ok(near) })
    }
}

/// A port, and a task that serves it.
fn port() -> (SocketAddr, tokio::task::JoinHandle<()>) {
    let listener = kite::listen::bind(any()).unwrap();
    let at = listener.local_addr().unwrap();
    (at, tokio::spawn(serve(listener, Arc::new(Echo))))
}

/// A client of the node asks for a connection, as Tahoe does, and uses it.
async fn is_served(at: SocketAddr) {
    let served = timeout(IN_THE_END, async {
        let mut conn = TcpStream::connect(at).await.unwrap();
        conn.write_all(&[GREETING, REQUEST].concat()).await.unwrap();
        let mut reply = [0; GRANTED.len()];
        conn.read_exact(&mut reply).await.unwrap();
        assert_eq!(reply, GRANTED);
        conn.write_all(b"hello").await.unwrap();
        let mut echo = [0; 5];
        conn.read_exact(&mut echo).await.unwrap();
        assert_eq!(&echo, b"hello");
    });
    served.await.expect("a well-behaved client is served");
}

/// Twice as many as there are places say something, and never what they want; some of them one byte after the other.
#[tokio::test]
async fn half_a_handshake_keeps_a_place_for_a_moment_only() {
    let (at, serving) = port();
    is_served(at).await;
    let words = [GREETING, REQUEST].concat();
    let (began, mut crowd) = (Instant::now(), Vec::new());
    for n in 0..2 * MAX_CONNECTIONS - 48 {
        let mut conn = TcpStream::connect(at).await.unwrap();
        conn.write_all(&words[..n % words.len()]).await.unwrap();
        crowd.push(conn);
    }
    let (mut drips, byte_by_byte) = (crowd.swap_remove(0), words.clone());
    let dripping = tokio::spawn(async move {
        for byte in byte_by_byte.iter().cycle() {
            if drips.write_all(&[*byte]).await.is_err() {
                return;
            }
            sleep(Duration::from_millis(500)).await;
        }
    });
    // As many as there are places go before it, and others behind those wait in the kernel's queue.
    is_served(at).await;
    assert!(
        began.elapsed() >= HANDSHAKE,
        "there are more places than there may be"
    );
    // No byte has made it longer.
    timeout(IN_THE_END, dripping)
        .await
        .expect("an end")
        .unwrap();
    serving.abort();
}

/// Lengths that are not there, or as long as they can be, and noise: an answer or an end at once, and no more.
#[tokio::test]
async fn absurd_words_are_answered_or_end_at_once() {
    let (at, serving) = port();
    let long = [&b"\x05\x01\x00\x03\xff"[..], &[b'x'; 255], b"\x00\x50"].concat();
    let with_credentials = [
        &b"\x05\x01\x02\x01\xff"[..],
        &[b'u'; 255],
        b"\xff",
        &[b'p'; 255],
        b"\x05\x07\x00\x01\x01\x02\x03\x04\x00\x50",
    ];
    for words in [
        b"\x05\xff".repeat(200),
        [GREETING, b"\x05\x01\x00\x03\x00\x00\x50"].concat(),
        [GREETING, b"\x05\x01\x00\x03\x03\xff\xfe\x00\x00\x50"].concat(),
        [GREETING, b"\x05\x01\x00\x03\x05a\0b.c\x00\x50"].concat(),
        [GREETING, b"\x05\x09\x00\x03", &long].concat(),
        with_credentials.concat(),
        b"\x05\x00".to_vec(),
        b"\x04\x01".repeat(100_000),
        vec![0; 100_000],
        vec![0xff; 100_000],
        b"CONNECT a:80 HTTP/1.1\r\n\r\n".repeat(1000),
    ] {
        let mut conn = TcpStream::connect(at).await.unwrap();
        // It may have been cut off by then, which is one of the right answers.
        let _ = conn.write_all(&words).await;
        let mut answer = Vec::new();
        let end = conn.read_to_end(&mut answer);
        let end = timeout(HANDSHAKE / 2, end).await;
        assert!(
            end.is_ok(),
            "{:x?}: it waits",
            &words[..words.len().min(20)]
        );
        assert!(answer.len() < 100, "{answer:x?}");
    }
    is_served(at).await;
    serving.abort();
}
