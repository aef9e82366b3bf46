//! Ports behind load balancers: whoever may say so says whom a connection is from, and nobody else gets in.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use futures::StreamExt;
use kite::backend::introduce::Tell;
use kite::config::{ProofRule, Service};
use kite::dial::{FrontendAddr, Lane};
use kite::frontend::balancer::{Balancers, HEADER_TIMEOUT};
use kite::frontend::handshakes::{MAX_HANDSHAKES, SPAN};
use kite::frontend::{Frontend, Handle};
use kite::kite::Protocol;
use kite::proxy_header::{Version, write};
use kite::shutdown::{self, Trigger};
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};

use crate::roles::{NAME, any, backend, dialer, frontend_config, kites, origin, service, until};

/// A frontend whose one port is behind load balancers.
struct Behind {
    port: SocketAddr,
    pinned: String,
    handle: Handle,
    _trigger: Trigger,
    _state: tempfile::TempDir,
}

fn behind(balancers: Balancers) -> Behind {
    let state = tempfile::tempdir().unwrap();
    let mut config = frontend_config(state.path(), any(), &[Protocol::Http], ProofRule::Optional);
    config.listen.truncate(1);
    config.listen[0].balancers = Some(balancers);
    let frontend = Frontend::new(config).unwrap();
    let (port, handle) = (frontend.local_addrs()[0], frontend.handle());
    let pinned = frontend.pinned_addresses().remove(0);
    let (trigger, order) = shutdown::channel();
    tokio::spawn(frontend.run(order));
    Behind {
        port,
        pinned,
        handle,
        _trigger: trigger,
        _state: state,
    }
}

/// A load balancer of few words: each connection goes on with this header in front.
async fn balancer(to: SocketAddr, header: Vec<u8>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut near, _)) = listener.accept().await {
            let header = header.clone();
            tokio::spawn(async move {
                let mut far = TcpStream::connect(to).await.unwrap();
                far.write_all(&header).await.unwrap();
                let _ = copy_bidirectional(&mut near, &mut far).await;
            });
        }
    });
    address
}

const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: bob.alice.example\r\n\r\n";

/// What a visitor hears who writes this.
async fn say(to: SocketAddr, pieces: &[&[u8]]) -> Vec<u8> {
    let mut conn = TcpStream::connect(to).await.unwrap();
    conn.set_nodelay(true).unwrap();
    for piece in pieces {
        // It may have been cut off already.
        let _ = conn.write_all(piece).await;
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let _ = conn.shutdown().await;
    let mut got = Vec::new();
    let reading = conn.read_to_end(&mut got);
    let _ = tokio::time::timeout(Duration::from_secs(20), reading)
        .await
        .expect("an end in time");
    got
}

/// A kite that says back its visitors' requests, with their addresses in it; its tunnel comes through a balancer, too.
async fn flying() -> (Behind, Trigger) {
    let front = behind(Balancers::on_this_machine());
    let (origin, _) = origin(b"").await;
    let from = Some("198.51.100.1:1".parse().unwrap());
    let through = balancer(front.port, write(Version::V2, from, 443, "")).await;
    let pin = front.pinned.split_once('#').unwrap().1;
    let kite = Service {
        tell: Tell {
            forwarded_headers: true,
            ..Tell::default()
        },
        ..service(Protocol::Http, NAME, origin, "right")
    };
    let back = backend(&format!("{through}#{pin}"), vec![kite]);
    until("the kite is up", || kites(&front.handle).len() == 1).await;
    (front, back)
}

#[tokio::test]
async fn the_address_that_is_told_is_the_visitors() {
    let (front, _back) = flying().await;
    let port = front.port;
    let told = |header: Vec<u8>| async move {
        let whole = [&header[..], REQUEST].concat();
        let at_once = say(port, &[&whole]).await;
        let in_pieces = say(port, &whole.chunks(5).collect::<Vec<_>>()).await;
        assert_eq!(at_once, in_pieces);
        let text = String::from_utf8(at_once).unwrap();
        let line = text.lines().find(|l| l.starts_with("X-Forwarded-For: "));
        let line = line.unwrap_or_else(|| panic!("not served: {text}"));
        // The local port is the one that is called; a balancer's may be another.
        assert!(text.contains(&format!("X-Forwarded-Port: {}\r\n", port.port())));
        line.strip_prefix("X-Forwarded-For: ").unwrap().to_owned()
    };
    for version in [Version::V1, Version::V2] {
        for (from, shown) in [
            ("203.0.113.7:4711", "203.0.113.7"),
            ("[2001:db8::7]:4711", "2001:db8::7"),
            ("[::ffff:203.0.113.7]:4711", "203.0.113.7"),
        ] {
            let header = write(version, Some(from.parse().unwrap()), 9, "other.example");
            assert_eq!(told(header).await, shown);
        }
        // The balancer's own connection, or one that it knows nothing of.
        assert_eq!(told(write(version, None, 9, "")).await, "127.0.0.1");
    }
}

#[tokio::test]
async fn without_a_header_nobody_gets_in() {
    let (front, _back) = flying().await;
    let ping = b"GET /ping HTTP/1.1\r\nHost: ping.pagekite\r\n\r\n";
    for first in [
        REQUEST,
        ping,
        b"CONNECT PageKite:1 HTTP/1.0\r\n\r\n",
        b"PROXY TCP4 203.0.113.7 1 1\r\nGET / HTTP/1.1\r\nHost: bob.alice.example\r\n\r\n",
        b"PROXY TCP4 203.0.113.7",
        b"\r\n\r\n\0\r\nQUIT\n\x31\x11\0\0",
        b"\r\n\r\n\0\r\nQUIT\n\x21\x11\xff\xff",
        b"",
    ] {
        assert_eq!(say(front.port, &[first]).await, b"", "{first:?}");
    }
    // Others are served as before.
    let header = write(Version::V1, None, 80, "");
    assert!(!say(front.port, &[&header, REQUEST]).await.is_empty());
}

#[tokio::test]
async fn whoever_says_nothing_is_cut_off() {
    let front = behind(Balancers::on_this_machine());
    let mut conn = TcpStream::connect(front.port).await.unwrap();
    conn.write_all(b"PROXY ").await.unwrap();
    let began = Instant::now();
    let end = tokio::time::timeout(HEADER_TIMEOUT * 2, conn.read(&mut [0])).await;
    let end = end.expect("in time").map_err(|e| e.kind());
    assert!(
        matches!(end, Ok(0) | Err(std::io::ErrorKind::ConnectionReset)),
        "{end:?}"
    );
    assert!(began.elapsed() >= HEADER_TIMEOUT - Duration::from_millis(500));
}

#[tokio::test]
async fn a_stranger_may_say_nothing() {
    let others = ["10.0.0.0/8".to_owned(), "::1".to_owned()];
    let front = behind(Balancers::parse(&others).unwrap());
    let header = write(Version::V1, Some("10.0.0.1:1".parse().unwrap()), 80, "");
    let ping = b"GET /ping HTTP/1.1\r\nHost: ping.pagekite\r\n\r\n";
    assert_eq!(say(front.port, &[&header, ping]).await, b"");
    // The same words are good where they may be said.
    let front = behind(Balancers::parse(&["127.0.0.0/8".to_owned()]).unwrap());
    assert!(
        say(front.port, &[&header, ping])
            .await
            .starts_with(b"HTTP/1.1 503 Unavailable\r\n")
    );
}

#[test]
fn who_is_a_balancer() {
    let parse = |texts: &[&str]| {
        let texts: Vec<String> = texts.iter().map(|&t| t.to_owned()).collect();
        Balancers::parse(&texts)
    };
    let some = parse(&["10.1.0.0/16", "192.0.2.5", "fd00::/64", "::ffff:192.0.2.6"]).unwrap();
    for (peer, is_one) in [
        ("10.1.200.3", true),
        ("::ffff:10.1.200.3", true),
        ("10.2.0.1", false),
        ("192.0.2.5", true),
        ("192.0.2.6", true),
        ("192.0.2.7", false),
        ("fd00::7", true),
        ("fd00:0:0:1::7", false),
        ("::1", false),
    ] {
        assert_eq!(some.include(peer.parse().unwrap()), is_one, "{peer}");
    }
    for bad in [
        &["0.0.0.0/0"][..],
        &["::/0"],
        &["10.0.0.0/33"],
        &["balancer.example"],
        &["10.0.0.1:80"],
        &[""],
        &[],
    ] {
        assert!(parse(bad).is_err(), "{bad:?}");
    }
}

/// Twice as many as it may begin at once take the time in which it may begin as many more; another address' are not held up.
#[tokio::test(flavor = "multi_thread")]
async fn handshakes_of_one_address_are_paced() {
    let front = behind(Balancers::on_this_machine());
    let (_, pin) = front.pinned.split_once('#').unwrap();
    let by = async |address: &str| {
        let header = format!("PROXY TCP4 {address} 192.0.2.1 1 1\r\n");
        let at = balancer(front.port, header.into_bytes()).await;
        format!("{at}#{pin}").parse::<FrontendAddr>().unwrap()
    };
    let (eager, other) = (by("203.0.113.7").await, by("203.0.113.8").await);
    let began = Instant::now();
    let dial = |to: FrontendAddr| async move { drop(dialer().dial(&to, Lane(0)).await.unwrap()) };
    let number = 2 * MAX_HANDSHAKES as usize;
    let all = futures::stream::iter(0..number).map(|_| dial(eager.clone()));
    let (first, rest) = (all.buffer_unordered(64).collect::<Vec<_>>(), async {
        dial(other.clone()).await;
        began.elapsed()
    });
    let (done, others) = tokio::join!(first, rest);
    assert_eq!(done.len(), number, "nobody is refused");
    let took = began.elapsed();
    assert!(took >= SPAN - SPAN / 16, "{took:?}");
    assert!(others < took, "{others:?} of {took:?}");
}
