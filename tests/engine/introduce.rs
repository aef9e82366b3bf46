//! Origins that are told who their visitor is, and how a frontend knows.

use std::net::SocketAddr;
use std::time::Duration;

use kite::backend::introduce::Tell;
use kite::config::{ProofRule, Service};
use kite::kite::Protocol;
use kite::proxy_header::{Version, read};
use kite::shutdown::Trigger;
use kite::sniff::Sniff;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::attacks::Hostile;
use crate::hostile::{admit, frame};
use crate::origins::{Kind, Recorder};
use crate::roles::{
    NAME, Side, any, ask, backend, client_hello, frontend, frontend_in, kites, origin, service,
    until,
};

fn proxy(version: Version) -> Tell {
    Tell {
        proxy_protocol: Some(version),
        ..Tell::default()
    }
}

fn forwarded() -> Tell {
    Tell {
        forwarded_headers: true,
        ..Tell::default()
    }
}

/// A kite whose origin says back what it hears.
async fn echoing(front: Side, protocol: Protocol, tell: Tell) -> (Side, Trigger) {
    let (origin, _) = origin(b"").await;
    let kite = Service {
        tell,
        ..service(protocol, NAME, origin, "right")
    };
    let back = backend(&front.address, vec![kite]);
    until("the kite is up", || kites(&front.handle).len() == 1).await;
    (front, back)
}

/// A visitor who says something and half-closes: its address, and all that came back.
async fn visit(to: SocketAddr, says: &[u8]) -> (SocketAddr, Vec<u8>) {
    let mut conn = TcpStream::connect(to).await.unwrap();
    let me = conn.local_addr().unwrap();
    conn.write_all(says).await.unwrap();
    conn.shutdown().await.unwrap();
    let mut got = Vec::new();
    tokio::time::timeout(Duration::from_secs(20), conn.read_to_end(&mut got))
        .await
        .expect("an end in time")
        .unwrap();
    (me, got)
}

/// Whom the header names, and what is behind it.
fn unwrapped(bytes: &[u8]) -> (Option<SocketAddr>, &[u8]) {
    let Sniff::Found(header) = read(bytes) else {
        panic!("no header: {:?}", String::from_utf8_lossy(bytes));
    };
    (header.from, &bytes[header.len..])
}

#[tokio::test]
async fn every_kind_of_kite_can_have_a_proxy_header() {
    let connect = b"CONNECT bob.alice.example:22 HTTP/1.1\r\n\r\n";
    let established = b"HTTP/1.0 200 Connection Established\r\n\r\n";
    let request = b"POST / HTTP/1.1\r\nHost: bob.alice.example\r\n\r\nPROXY UNKNOWN\r\n";
    let hello = client_hello(Some(NAME));
    for version in [Version::V1, Version::V2] {
        for (protocol, says, skip) in [
            (Protocol::Http, &request[..], 0),
            (Protocol::Https, &hello, 0),
            (Protocol::Raw, connect, established.len()),
        ] {
            let (front, _back) = echoing(frontend(&[protocol]), protocol, proxy(version)).await;
            let (me, got) = visit(front.public, says).await;
            let (from, rest) = unwrapped(&got[skip..]);
            assert_eq!(from, Some(me), "{protocol} {version:?}");
            let said: &[u8] = if skip > 0 { b"" } else { says };
            assert_eq!(rest, said, "{protocol} {version:?}");
        }
    }
}

/// A server that speaks first is told before anybody has said anything.
#[tokio::test]
async fn a_raw_origin_is_told_at_once() {
    let front = frontend(&[Protocol::Raw]);
    let (front, _back) = echoing(front, Protocol::Raw, proxy(Version::V1)).await;
    let mut conn = TcpStream::connect(front.public).await.unwrap();
    let me = conn.local_addr().unwrap();
    conn.write_all(b"CONNECT bob.alice.example:22 HTTP/1.1\r\n\r\n")
        .await
        .unwrap();
    let line = format!(
        "HTTP/1.0 200 Connection Established\r\n\r\nPROXY TCP4 127.0.0.1 0.0.0.0 {} 22\r\n",
        me.port()
    );
    let mut got = vec![0; line.len()];
    tokio::time::timeout(Duration::from_secs(20), conn.read_exact(&mut got))
        .await
        .expect("in time")
        .unwrap();
    assert_eq!(String::from_utf8(got).unwrap(), line);
}

/// Visitors by IPv4, by IPv6, and by IPv4 on a port for both (protocol page §6.2).
#[tokio::test]
async fn each_family_is_told_as_it_is() {
    let request = b"GET / HTTP/1.1\r\nHost: bob.alice.example\r\n\r\n";
    for (listen, to) in [
        ("127.0.0.1:0", "127.0.0.1"),
        ("[::1]:0", "::1"),
        ("[::]:0", "127.0.0.1"),
        ("[::]:0", "::1"),
    ] {
        let state = tempfile::tempdir().unwrap();
        let listen = listen.parse().unwrap();
        let mut front = frontend_in(state.path(), listen, &[Protocol::Http], ProofRule::Optional);
        front.address = front.address.replace("YOUR-PUBLIC-NAME", "127.0.0.1");
        let (front, _back) = echoing(front, Protocol::Http, proxy(Version::V2)).await;
        let to = SocketAddr::new(to.parse().unwrap(), front.public.port());
        let (me, got) = visit(to, request).await;
        assert_eq!(unwrapped(&got), (Some(me), &request[..]), "{listen} {to}");
    }
}

#[tokio::test]
async fn a_request_is_changed_where_that_is_asked_for_and_nowhere_else() {
    let request = b"POST /x HTTP/1.1\r\nHost: bob.alice.example\r\nX-Forwarded-For: 9.9.9.9\r\nConnection: keep-alive\r\n\
        Content-Length: 5\r\n\r\nhelloGET /second HTTP/1.1\r\nHost: bob.alice.example\r\nX-Forwarded-For: 8.8.8.8\r\n\r\n";
    // As it always was.
    let front = frontend(&[Protocol::Http]);
    let (front, _back) = echoing(front, Protocol::Http, Tell::default()).await;
    assert_eq!(visit(front.public, request).await.1, request);
    // As pagekite.py's backends have it (protocol page §10.2), but for the first head alone.
    let (front, _back) = echoing(frontend(&[Protocol::Http]), Protocol::Http, forwarded()).await;
    let got = visit(front.public, request).await.1;
    let expected = format!(
        "POST /x HTTP/1.1\r\nX-Forwarded-For: 127.0.0.1\r\nX-Forwarded-Proto: http\r\nX-Forwarded-Port: {}\r\n\
         Connection: close\r\nHost: bob.alice.example\r\nX-Old-X-Forwarded-For: 9.9.9.9\r\nX-Old-Connection: keep-alive\r\n\
         Content-Length: 5\r\n\r\nhelloGET /second HTTP/1.1\r\nHost: bob.alice.example\r\nX-Forwarded-For: 8.8.8.8\r\n\r\n",
        front.public.port()
    );
    assert_eq!(String::from_utf8(got).unwrap(), expected);
}

/// Large bodies fill windows: bytes that are ours must not be counted as the visitor's.
#[tokio::test]
async fn much_passes_behind_a_changed_beginning() {
    let tell = Tell {
        proxy_protocol: Some(Version::V2),
        ..forwarded()
    };
    let (front, _back) = echoing(frontend(&[Protocol::Http]), Protocol::Http, tell).await;
    let head = b"POST /x HTTP/1.1\r\nHost: bob.alice.example\r\n\r\n";
    let body: Vec<u8> = (0..6_000_000u32).map(|n| (n % 251) as u8).collect();
    let conn = TcpStream::connect(front.public).await.unwrap();
    let (mut r, mut w) = conn.into_split();
    let sent = [&head[..], &body].concat();
    let writing = tokio::spawn(async move {
        w.write_all(&sent).await.unwrap();
        w.shutdown().await.unwrap();
    });
    let mut got = Vec::new();
    tokio::time::timeout(Duration::from_secs(60), r.read_to_end(&mut got))
        .await
        .expect("in time")
        .unwrap();
    writing.await.unwrap();
    assert!(got.ends_with(&body));
}

/// A head that a frontend sends in pieces, one of which takes its time.
#[tokio::test]
async fn a_head_in_pieces_is_changed_as_a_whole() {
    let node = Recorder::start(Kind::Mute, any()).await;
    let liar = Hostile::new(true).await;
    let kite = Service {
        tell: forwarded(),
        ..service(Protocol::Http, NAME, node.address, "right")
    };
    let _back = backend(&liar.address(), vec![kite]);
    let mut conn = admit(&liar).await;
    let request = b"GET / HTTP/1.1\r\nHost: bob.alice.example\r\nX-Real-IP: 9.9.9.9\r\n\r\nbody";
    let opening =
        format!("SID: 1\r\nProto: http\r\nHost: {NAME}\r\nPort: 80\r\nRIP: 203.0.113.7\r\nRTLS: 1");
    let mut headers = opening.as_str();
    for piece in request.chunks(7) {
        conn.write_all(&frame(headers, piece)).await.unwrap();
        conn.flush().await.unwrap();
        headers = "SID: 1";
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let expected = "GET / HTTP/1.1\r\nX-Forwarded-For: 203.0.113.7\r\nX-Forwarded-Proto: https\r\n\
        X-Forwarded-Port: 80\r\nConnection: close\r\nHost: bob.alice.example\r\nX-Old-X-Real-IP: 9.9.9.9\r\n\r\nbody";
    until("the origin has it all", || {
        node.visits().concat().len() >= expected.len()
    })
    .await;
    assert_eq!(String::from_utf8(node.visits().concat()).unwrap(), expected);
}

#[tokio::test]
async fn a_visitor_that_breaks_off_breaks_the_origins_connection() {
    let listener = TcpListener::bind(any()).await.unwrap();
    let front = frontend(&[Protocol::Http]);
    let tell = Tell {
        proxy_protocol: Some(Version::V1),
        ..forwarded()
    };
    let kite = Service {
        tell,
        ..service(
            Protocol::Http,
            NAME,
            listener.local_addr().unwrap(),
            "right",
        )
    };
    let _back = backend(&front.address, vec![kite]);
    until("the kite is up", || kites(&front.handle).len() == 1).await;
    let mut visitor = TcpStream::connect(front.public).await.unwrap();
    visitor
        .write_all(b"POST / HTTP/1.1\r\nHost: bob.alice.example\r\n\r\nhalf")
        .await
        .unwrap();
    let (mut conn, _) = listener.accept().await.unwrap();
    let mut got = Vec::new();
    while !got.ends_with(b"half") {
        assert!(conn.read_buf(&mut got).await.unwrap() > 0);
    }
    visitor.set_zero_linger().unwrap();
    drop(visitor);
    let end = tokio::time::timeout(Duration::from_secs(20), conn.read_buf(&mut got)).await;
    let end = end.expect("in time").map_err(|e| e.kind());
    assert_eq!(end, Err(std::io::ErrorKind::ConnectionReset));
}

/// A Tahoe node knows no PROXY header. Its backend finds that out, and says so instead of failing visitor by visitor.
#[tokio::test]
async fn a_node_that_knows_no_header_gets_no_visitors() {
    let node = Recorder::start(Kind::Node, any()).await;
    let front = frontend(&[Protocol::Foolscap]);
    let kite = Service {
        tell: proxy(Version::V1),
        ..service(Protocol::Foolscap, NAME, node.address, "right")
    };
    let _back = backend(&front.address, vec![kite]);
    until("the kite is up", || kites(&front.handle).len() == 1).await;
    let answer = ask(front.public, crate::roles::foolscap_request(NAME)).await;
    assert!(answer.starts_with(b"HTTP/1.1 503 "), "{answer:?}");
    let visits = node.visits();
    assert!(
        !visits.is_empty()
            && visits
                .iter()
                .all(|v| v.starts_with(b"PROXY UNKNOWN\r\nGET /id/")),
        "{visits:?}"
    );
}
