//! A real frontend and a real backend on loopback sockets, in direct mode.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use kite::backend::Plan;
use kite::backend::introduce::Tell;
use kite::config::{Frontend as To, FrontendConfig, Grant, Listen, ProofRule, ProvenBy, Service};
use kite::dial::{Dialer, DirectDialer, Egress, EgressArgs, OriginAddr};
use kite::frontend::limits::Limits;
use kite::frontend::{Frontend, Handle};
use kite::kite::{Protocol, Secret};
use kite::observe::board::Board;
use kite::shutdown::{self, Trigger};
use kite::tls::TlsClient;
use kite::tor::TorSettings;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

pub const NAME: &str = "bob.alice.example";
pub const TUB: &str = "rznjxrmn666ovyilykucaws7ap26djwf";
const OTHER_TUB: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
pub const SWITCHING: &[u8] =
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: TLS/1.0, PB/1.0\r\nConnection: Upgrade\r\n\r\n";

pub const UNKNOWN_TUB: &[u8] = b"HTTP/1.1 500 Internal Server Error: unknown TubID\r\n\r\n";

pub fn foolscap_request(host: &str) -> Vec<u8> {
    format!(
        "GET /id/{TUB} HTTP/1.1\r\nHost: {host}\r\nUpgrade: TLS/1.0\r\nConnection: Upgrade\r\n\r\n"
    )
    .into_bytes()
}

pub fn secret(text: &str) -> Secret {
    Secret::new(text.as_bytes()).unwrap()
}

pub struct Side {
    pub public: SocketAddr,
    pub port_kite: SocketAddr,
    at: Vec<SocketAddr>,
    pub address: String,
    pub handle: Handle,
    trigger: Trigger,
    done: tokio::task::JoinHandle<()>,
    state: Option<tempfile::TempDir>,
}

impl Side {
    /// Stops it, and waits until it has.
    pub async fn stop(self) {
        self.trigger.stop();
        self.done.await.unwrap();
    }
}

/// A frontend with a shared port and a port that belongs to [`NAME`].
pub fn frontend(protocols: &[Protocol]) -> Side {
    let state = tempfile::tempdir().unwrap();
    let mut side = frontend_in(state.path(), any(), protocols, ProofRule::Optional);
    side.state = Some(state);
    side
}

/// A frontend that grants one pattern.
pub fn frontend_for(pattern: &str, secret_text: &str, protocols: &[Protocol]) -> Side {
    let state = tempfile::tempdir().unwrap();
    let mut config = frontend_config(state.path(), any(), protocols, ProofRule::Optional);
    config.kites[0].pattern = pattern.parse().unwrap();
    config.kites[0].secret = secret(secret_text);
    let mut side = start(config);
    side.state = Some(state);
    side
}

pub fn frontend_in(
    state: &Path,
    listen: SocketAddr,
    protocols: &[Protocol],
    proof: ProofRule,
) -> Side {
    start(frontend_config(state, listen, protocols, proof))
}

/// A shared port, and one that belongs to [`NAME`]; one grant for all below `alice.example`.
pub fn frontend_config(
    state: &Path,
    listen: SocketAddr,
    protocols: &[Protocol],
    proof: ProofRule,
) -> FrontendConfig {
    let own = Listen {
        kite: Some(NAME.parse().unwrap()),
        ..Listen::at(any())
    };
    let grant = Grant {
        proof,
        ..grant("*.alice.example", protocols)
    };
    config_of(state, vec![Listen::at(listen), own], vec![grant])
}

/// What the right secret allows.
pub fn grant(pattern: &str, protocols: &[Protocol]) -> Grant {
    Grant {
        pattern: pattern.parse().unwrap(),
        protocols: protocols.iter().copied().collect(),
        secret: secret("right"),
        proof: ProofRule::Optional,
        backends: 1,
        limits: Limits::default(),
        expires: None,
    }
}

/// With these ports, of which there are two or more.
pub fn config_of(state: &Path, listen: Vec<Listen>, kites: Vec<Grant>) -> FrontendConfig {
    FrontendConfig {
        listen,
        kites,
        state_dir: state.to_path_buf(),
        log_peers: true,
        drain: shutdown::DRAIN,
        ..FrontendConfig::default()
    }
}

pub fn start(config: FrontendConfig) -> Side {
    let drain = config.drain;
    let frontend = Frontend::new(config).unwrap();
    let addrs = frontend.local_addrs();
    let address = frontend.pinned_addresses().remove(0);
    let handle = frontend.handle();
    let (trigger, order) = shutdown::channel();
    let done = tokio::spawn(frontend.run(order.within(drain)));
    Side {
        public: addrs[0],
        port_kite: addrs[1],
        at: addrs,
        address,
        handle,
        trigger,
        done,
        state: None,
    }
}

/// With these ports, of which there are two or more; and where they are.
pub fn frontend_of(
    state: &Path,
    listen: Vec<Listen>,
    kites: Vec<Grant>,
) -> (Side, Vec<SocketAddr>) {
    let side = start(config_of(state, listen, kites));
    let at = side.at.clone();
    (side, at)
}

pub fn dialer() -> Arc<dyn Dialer> {
    let Ok(Egress::Direct(allowed)) = Egress::decide(EgressArgs {
        via_tor: false,
        tor: TorSettings::default(),
    }) else {
        panic!("direct mode is what was asked for")
    };
    Arc::new(DirectDialer::new(allowed, TlsClient::new(None).unwrap()))
}

pub fn service(protocol: Protocol, name: &str, origin: SocketAddr, secret_text: &str) -> Service {
    Service {
        protocol,
        port: None,
        name: name.parse().unwrap(),
        origin: OriginAddr::parse(&origin.to_string(), false).unwrap(),
        secret: secret(secret_text),
        by: ProvenBy::Secret,
        tub: None,
        tls_at_frontend: false,
        tell: Tell::default(),
    }
}

/// A backend; dropping the trigger stops it.
pub fn backend(address: &str, services: Vec<Service>) -> Trigger {
    backend_of(&[address], services)
}

/// A backend of several frontends.
pub fn backend_of(addresses: &[&str], services: Vec<Service>) -> Trigger {
    let (trigger, order) = shutdown::channel();
    let to = |address: &&str| To {
        address: address.parse().unwrap(),
        kites: None,
        tunnels: 1,
        homes: false,
    };
    let all = addresses.iter().map(to).collect();
    tokio::spawn(kite::backend::run(
        Plan::fixed(all, services),
        dialer(),
        Board::default(),
        order,
    ));
    trigger
}

/// A frontend, and a backend whose kites fly there: each name with its protocol and origin.
pub async fn flying(kites_wanted: &[(Protocol, &str, SocketAddr)]) -> (Side, Trigger) {
    let protocols: Vec<Protocol> = kites_wanted
        .iter()
        .map(|(protocol, ..)| *protocol)
        .collect();
    let front = frontend(&protocols);
    let service = |(protocol, name, origin): &(Protocol, &str, SocketAddr)| {
        service(*protocol, name, *origin, "right")
    };
    let back = backend(&front.address, kites_wanted.iter().map(service).collect());
    let all = kites_wanted.len();
    until("the kites are up", || kites(&front.handle).len() == all).await;
    (front, back)
}

pub async fn until(what: &str, ready: impl Fn() -> bool) {
    tokio::time::timeout(Duration::from_secs(20), async {
        while !ready() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await
    .unwrap_or_else(|_| panic!("it never came to this: {what}"));
}

pub fn kites(handle: &Handle) -> Vec<String> {
    handle.tunnels().into_iter().flat_map(|t| t.kites).collect()
}

/// An origin that counts its visitors and answers each with `script`, then echoes. With a
/// script it is a foolscap node, and a probe is answered and not counted.
pub async fn origin(script: &'static [u8]) -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let visitors = Arc::new(AtomicUsize::new(0));
    let count = visitors.clone();
    tokio::spawn(async move {
        while let Ok((mut conn, _)) = listener.accept().await {
            let count = count.clone();
            tokio::spawn(async move {
                if !script.is_empty() {
                    let mut first = vec![0; 4096];
                    let read = conn.read(&mut first).await.unwrap_or(0);
                    if is_probe(&first[..read]) {
                        return conn.write_all(UNKNOWN_TUB).await.unwrap();
                    }
                }
                count.fetch_add(1, Ordering::SeqCst);
                let _ = conn.write_all(script).await;
                let (mut r, mut w) = conn.split();
                let _ = tokio::io::copy(&mut r, &mut w).await;
                let _ = w.shutdown().await;
            });
        }
    });
    (address, visitors)
}

/// The backend's own question, for a tub that is not [`TUB`].
pub fn is_probe(first: &[u8]) -> bool {
    first.starts_with(b"GET /id/") && !first[8..].starts_with(TUB.as_bytes())
}

pub async fn ask(to: SocketAddr, request: impl AsRef<[u8]>) -> Vec<u8> {
    let mut conn = TcpStream::connect(to).await.unwrap();
    conn.write_all(request.as_ref()).await.unwrap();
    let mut got = Vec::new();
    let _ = tokio::time::timeout(Duration::from_secs(10), conn.read_to_end(&mut got))
        .await
        .expect("an answer");
    got
}

/// A visitor who has negotiated with the node behind this name.
pub async fn negotiate(to: SocketAddr, name: &str) -> TcpStream {
    let mut conn = TcpStream::connect(to).await.unwrap();
    conn.write_all(&foolscap_request(name)).await.unwrap();
    let mut answer = vec![0; SWITCHING.len()];
    let reading = conn.read_exact(&mut answer);
    tokio::time::timeout(Duration::from_secs(20), reading)
        .await
        .expect("an answer in time")
        .expect("the whole answer");
    assert_eq!(answer, SWITCHING);
    conn
}

pub fn any() -> SocketAddr {
    ([127, 0, 0, 1], 0).into()
}

#[tokio::test]
async fn foolscap_goes_through_and_nothing_else() {
    let (origin, visitors) = origin(SWITCHING).await;
    let (front, _back) = flying(&[(Protocol::Foolscap, NAME, origin)]).await;
    assert_eq!(kites(&front.handle), ["http:bob.alice.example"]);

    let mut visitor = TcpStream::connect(front.public).await.unwrap();
    visitor
        .write_all(&foolscap_request("BOB.alice.example."))
        .await
        .unwrap();
    let mut answer = vec![0; SWITCHING.len()];
    visitor.read_exact(&mut answer).await.unwrap();
    assert_eq!(answer, SWITCHING);
    let records = [
        &[0x16, 3, 1, 0, 5][..],
        b"hello",
        &[0x17, 3, 3, 0, 3],
        b"abc",
    ]
    .concat();
    visitor.write_all(&records).await.unwrap();
    visitor.shutdown().await.unwrap();
    let mut echoed = Vec::new();
    visitor.read_to_end(&mut echoed).await.unwrap();
    assert_eq!(
        echoed, records,
        "the bytes after the upgrade came back as they were sent"
    );
    assert_eq!(visitors.load(Ordering::SeqCst), 1);

    // Nothing else reaches the origin, and everyone is told.
    let head = b"GET /uri HTTP/1.1\r\nHost: bob.alice.example\r\n\r\n";
    assert!(ask(front.public, head).await.starts_with(b"HTTP/1.1 403 "));
    let head = b"GET / HTTP/1.1\r\nHost: other.alice.example\r\n\r\n";
    assert!(
        ask(front.public, head)
            .await
            .starts_with(b"HTTP/1.1 503 Unavailable\r\n")
    );
    assert!(
        ask(front.public, b"GET / HTTP/1.1\r\nA: b\r\n\r\n")
            .await
            .starts_with(b"HTTP/1.1 400 ")
    );
    assert!(
        ask(front.public, b"SSH-2.0-x\r\n")
            .await
            .starts_with(b"HTTP/1.1 400 ")
    );
    assert!(ask(front.public, b"\x05\x01\x00").await.is_empty());
    assert_eq!(visitors.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_visitor_for_another_tub_is_turned_away() {
    let (origin, visitors) = origin(SWITCHING).await;
    for (tub, answer) in [(TUB, "101"), (OTHER_TUB, "404")] {
        let front = frontend(&[Protocol::Foolscap]);
        let kite = Service {
            tub: Some(tub.parse().unwrap()),
            ..service(Protocol::Foolscap, NAME, origin, "right")
        };
        let _back = backend(&front.address, vec![kite]);
        until("the kite is up", || kites(&front.handle).len() == 1).await;
        let mut visitor = TcpStream::connect(front.public).await.unwrap();
        visitor.write_all(&foolscap_request(NAME)).await.unwrap();
        let mut said = [0; 12];
        visitor.read_exact(&mut said).await.unwrap();
        assert_eq!(said, format!("HTTP/1.1 {answer}").as_bytes());
    }
    assert_eq!(visitors.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn plaintext_after_the_upgrade_is_cut_off() {
    let (origin, _) = origin(SWITCHING).await;
    let (front, _back) = flying(&[(Protocol::Foolscap, NAME, origin)]).await;
    let mut visitor = TcpStream::connect(front.public).await.unwrap();
    visitor.write_all(&foolscap_request(NAME)).await.unwrap();
    let mut answer = vec![0; SWITCHING.len()];
    visitor.read_exact(&mut answer).await.unwrap();
    visitor
        .write_all(b"GET /uri/URI:DIR2 HTTP/1.1\r\n\r\n")
        .await
        .unwrap();
    let mut rest = Vec::new();
    let end = visitor.read_to_end(&mut rest).await;
    assert!(end.is_err() && rest.is_empty(), "{end:?} {rest:?}");
}

/// A ClientHello without a server name, as Tahoe's HTTPS protocol sends it.
pub fn client_hello(name: Option<&str>) -> Vec<u8> {
    hello_offering(name, None)
}

/// The same, perhaps with a protocol that it offers.
pub fn hello_offering(name: Option<&str>, protocol: Option<&[u8]>) -> Vec<u8> {
    let roots = rustls::RootCertStore {
        roots: webpki_roots::TLS_SERVER_ROOTS.to_vec(),
    };
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = protocol.into_iter().map(<[u8]>::to_vec).collect();
    let server = match name {
        Some(name) => name.to_owned().try_into().unwrap(),
        None => {
            rustls::pki_types::ServerName::IpAddress(std::net::IpAddr::from([127, 0, 0, 1]).into())
        }
    };
    let mut hello = Vec::new();
    rustls::ClientConnection::new(Arc::new(config), server)
        .unwrap()
        .write_tls(&mut hello)
        .unwrap();
    hello
}

#[tokio::test]
async fn tls_goes_by_name_or_by_port_or_is_refused_aloud() {
    const ALERT: &[u8] = &[0x15, 3, 3, 0, 2, 2, 0x31];
    let (origin, visitors) = origin(b"").await;
    let (front, _back) = flying(&[
        (Protocol::TahoeHttps, NAME, origin),
        (Protocol::Https, "eve.alice.example", origin),
    ])
    .await;

    for (to, hello, passes) in [
        (front.public, client_hello(None), false),
        (front.port_kite, client_hello(None), true),
        (front.public, client_hello(Some("eve.alice.example")), true),
        (
            front.public,
            client_hello(Some("nobody.alice.example")),
            false,
        ),
    ] {
        let before = visitors.load(Ordering::SeqCst);
        let mut visitor = TcpStream::connect(to).await.unwrap();
        for piece in hello.chunks(300) {
            visitor.write_all(piece).await.unwrap();
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        visitor.shutdown().await.unwrap();
        let mut got = Vec::new();
        visitor.read_to_end(&mut got).await.unwrap();
        assert_eq!(got, if passes { &hello } else { ALERT });
        assert_eq!(
            visitors.load(Ordering::SeqCst) - before,
            usize::from(passes)
        );
    }
}

#[tokio::test]
async fn a_dead_origin_is_said_at_once() {
    let gone = TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap();
    let (front, _back) = flying(&[(Protocol::Foolscap, NAME, gone)]).await;
    assert!(
        ask(front.public, &foolscap_request(NAME))
            .await
            .starts_with(b"HTTP/1.1 503 Unavailable\r\n")
    );
}

#[tokio::test]
async fn a_wrong_secret_or_a_foreign_name_flies_nothing() {
    let front = frontend(&[Protocol::Foolscap]);
    let (origin, _) = origin(SWITCHING).await;
    let _wrong = backend(
        &front.address,
        vec![service(Protocol::Foolscap, NAME, origin, "wrong")],
    );
    let _foreign = backend(
        &front.address,
        vec![service(
            Protocol::Foolscap,
            "bob.carol.example",
            origin,
            "right",
        )],
    );
    let _proto = backend(
        &front.address,
        vec![service(Protocol::Http, "x.alice.example", origin, "wrong")],
    );
    tokio::time::sleep(Duration::from_millis(800)).await;
    assert!(front.handle.tunnels().is_empty());
    // A refused kite beside a good one does not bring the good one down.
    let both = vec![
        service(Protocol::Foolscap, NAME, origin, "right"),
        service(Protocol::Foolscap, "bob.carol.example", origin, "right"),
    ];
    let _good = backend(&front.address, both);
    until("the good one flies", || {
        kites(&front.handle) == ["http:bob.alice.example"]
    })
    .await;
}

#[tokio::test]
async fn a_wrong_pin_is_told_nothing() {
    let front = frontend(&[Protocol::Foolscap]);
    let liar = frontend(&[Protocol::Foolscap]);
    let pin = front.address.split_once('#').unwrap().1;
    let (origin, _) = origin(SWITCHING).await;
    let mixed = format!("{}#{pin}", liar.public);
    let _back = backend(
        &mixed,
        vec![service(Protocol::Foolscap, NAME, origin, "right")],
    );
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert!(liar.handle.tunnels().is_empty());
}

#[tokio::test]
async fn a_second_backend_does_not_take_a_kite_away() {
    let (first, first_visitors) = origin(SWITCHING).await;
    let (second, second_visitors) = origin(SWITCHING).await;
    let (front, one) = flying(&[(Protocol::Foolscap, NAME, first)]).await;
    let _two = backend(
        &front.address,
        vec![service(Protocol::Foolscap, NAME, second, "right")],
    );
    tokio::time::sleep(Duration::from_millis(500)).await;
    let visit = async || {
        let mut visitor = TcpStream::connect(front.public).await.unwrap();
        visitor.write_all(&foolscap_request(NAME)).await.unwrap();
        visitor.read_exact(&mut [0; 12]).await.unwrap();
    };
    visit().await;
    assert_eq!(
        (
            first_visitors.load(Ordering::SeqCst),
            second_visitors.load(Ordering::SeqCst)
        ),
        (1, 0)
    );
    // When the first leaves, its name is free.
    one.stop();
    until("the first is gone", || front.handle.tunnels().is_empty()).await;
}

#[tokio::test]
async fn a_restarted_frontend_is_found_again() {
    let (origin, _) = origin(SWITCHING).await;
    let (front, _back) = flying(&[(Protocol::Foolscap, NAME, origin)]).await;
    front.trigger.stop();
    front.done.await.unwrap();
    // The same port and the same key: the pin still holds.
    let state = front.state.as_ref().unwrap().path();
    let again = frontend_in(
        state,
        front.public,
        &[Protocol::Foolscap],
        ProofRule::Optional,
    );
    assert_eq!(again.address, front.address);
    until("the kite is up again", || {
        !again.handle.tunnels().is_empty()
    })
    .await;
}

#[tokio::test]
async fn a_ping_is_answered_as_pagekite_wants_it() {
    let front = frontend(&[Protocol::Foolscap]);
    let reply = ask(
        front.public,
        b"HEAD /ping HTTP/1.1\r\nHost: ping.pagekite\r\n\r\n",
    )
    .await;
    assert!(reply.starts_with(b"HTTP/1.1 503 Unavailable\r\nX-PageKite-UUID: "));
}
