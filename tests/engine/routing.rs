//! Whose visitor it is: by port, by name, by what else flies.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use kite::config::{Grant, Listen, Service};
use kite::kite::Protocol;
use kite::shutdown::Trigger;
use kite::wire::{KiteId, ServiceLine};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::lanes::relay;
use crate::roles::{
    NAME, Side, any, ask, backend, client_hello, frontend_of, grant, kites, service, until,
};

/// An origin that speaks first, and says its name; then it takes what comes until the visitor has ended.
async fn speaker(name: &'static str) -> SocketAddr {
    let listener = TcpListener::bind(any()).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut conn, _)) = listener.accept().await {
            tokio::spawn(async move {
                let _ = conn.write_all(name.as_bytes()).await;
                let mut heard = Vec::new();
                let _ = conn.read_to_end(&mut heard).await;
            });
        }
    });
    address
}

/// Which origin answers a visitor who says this, and ends.
async fn visit(to: SocketAddr, words: impl AsRef<[u8]>) -> String {
    let mut conn = TcpStream::connect(to).await.unwrap();
    conn.write_all(words.as_ref()).await.unwrap();
    conn.shutdown().await.unwrap();
    let mut said = Vec::new();
    let reading = conn.read_to_end(&mut said);
    let _ = tokio::time::timeout(Duration::from_secs(10), reading)
        .await
        .expect("an end");
    String::from_utf8_lossy(&said).into_owned()
}

/// Which origin answers first a visitor who goes on waiting for more.
async fn wait(to: SocketAddr, words: impl AsRef<[u8]>) -> String {
    let mut conn = TcpStream::connect(to).await.unwrap();
    conn.write_all(words.as_ref()).await.unwrap();
    let mut said = vec![0; 64];
    let reading = conn.read(&mut said);
    let n = tokio::time::timeout(Duration::from_secs(20), reading)
        .await
        .expect("a word")
        .unwrap();
    String::from_utf8_lossy(&said[..n]).into_owned()
}

fn get(host: &str) -> String {
    format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n")
}

fn connect(host: &str, port: u16) -> String {
    format!("CONNECT {host}:{port} HTTP/1.0\r\n\r\n")
}

/// What a CONNECT is answered, and behind it the origin.
fn connected(name: &str) -> String {
    format!("HTTP/1.0 200 Connection Established\r\n\r\n{name}")
}

fn on_port(port: u16, service: Service) -> Service {
    Service {
        port: Some(port),
        ..service
    }
}

fn called(port: u16) -> Listen {
    Listen {
        port: Some(port),
        ..Listen::at(any())
    }
}

/// A backend whose kites all fly.
async fn flown(front: &Side, services: Vec<Service>) -> Trigger {
    let before = kites(&front.handle).len();
    let all = before + services.len();
    let back = backend(&local(front), services);
    until("the kites are up", || kites(&front.handle).len() == all).await;
    back
}

/// The first port's address with its true number: ours are called by others.
fn local(front: &Side) -> String {
    let pin = front.address.split_once('#').unwrap().1;
    format!("{}#{pin}", front.public)
}

fn place() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

fn web(state: &Path, listen: Vec<Listen>) -> (Side, Vec<SocketAddr>) {
    let all = [Protocol::Http, Protocol::Https, Protocol::Raw];
    frontend_of(state, listen, vec![grant("*.alice.example", &all)])
}

#[tokio::test]
async fn a_kite_of_a_port_gets_that_ports_visitors() {
    let state = place();
    let (front, at) = web(state.path(), vec![called(80), called(8080), called(8443)]);
    let bob = |protocol, origin| service(protocol, NAME, origin, "right");
    let services = vec![
        bob(Protocol::Http, speaker("any").await),
        on_port(8080, bob(Protocol::Http, speaker("8080").await)),
        on_port(8443, bob(Protocol::Https, speaker("tls").await)),
        on_port(22, bob(Protocol::Raw, speaker("ssh").await)),
    ];
    let _back = flown(&front, services).await;
    let up = kites(&front.handle);
    for kite in ["http", "http-8080", "https-8443", "raw-22"] {
        assert!(up.contains(&format!("{kite}:{NAME}")), "{up:?}");
    }
    for (to, words, from) in [
        (at[0], get(NAME), "any"),
        (at[1], get(NAME), "8080"),
        (at[2], get(NAME), "any"),
        (at[0], connect(NAME, 22), &connected("ssh")),
        (at[0], connect(NAME, 80) + &get(NAME), &connected("any")),
        (at[0], connect(NAME, 8080) + &get(NAME), &connected("8080")),
    ] {
        assert_eq!(visit(to, &words).await, from, "{words}");
    }
    let hello = client_hello(Some(NAME));
    assert_eq!(visit(at[2], &hello).await, "tls");
    assert!(
        visit(at[0], &hello).await.starts_with('\x15'),
        "not this port's"
    );
    assert!(
        visit(at[0], connect(NAME, 23))
            .await
            .starts_with("HTTP/1.1 503 ")
    );
}

#[tokio::test]
async fn a_port_that_is_not_served_is_refused_alone() {
    let state = place();
    let (front, at) = web(state.path(), vec![called(80), called(443)]);
    let origin = speaker("bob").await;
    let bob = service(Protocol::Http, NAME, origin, "right");
    let _back = backend(&local(&front), vec![on_port(81, bob.clone()), bob]);
    until("one flies", || !kites(&front.handle).is_empty()).await;
    assert_eq!(kites(&front.handle), [format!("http:{NAME}")]);
    assert_eq!(visit(at[0], get(NAME)).await, "bob");
}

#[tokio::test]
async fn a_raw_port_belongs_to_one_kite_from_the_first_byte() {
    let state = place();
    let own = Listen {
        kite: Some(NAME.parse().unwrap()),
        raw: true,
        ..called(22)
    };
    let (front, at) = web(state.path(), vec![called(80), own]);
    // Nobody is there: a close, and no word of another protocol.
    assert!(ask(at[1], b"").await.is_empty());
    let ssh = service(
        Protocol::Raw,
        NAME,
        speaker("SSH-2.0-test\r\n").await,
        "right",
    );
    let _back = flown(&front, vec![on_port(22, ssh)]).await;
    let mut silent = TcpStream::connect(at[1]).await.unwrap();
    let mut banner = [0; 14];
    let reading = silent.read_exact(&mut banner);
    tokio::time::timeout(Duration::from_secs(5), reading)
        .await
        .expect("the origin speaks first")
        .unwrap();
    assert_eq!(&banner, b"SSH-2.0-test\r\n");
    // Whatever a visitor says, it is the kite's: even what would be a tunnel on another port.
    for words in [
        get("eve.alice.example"),
        "CONNECT PageKite:1 HTTP/1.0\r\n\r\n".into(),
    ] {
        assert_eq!(visit(at[1], words).await, "SSH-2.0-test\r\n");
    }
    assert!(!front.handle.tunnels().is_empty());
}

#[tokio::test]
async fn the_nearest_name_is_chosen_on_both_sides() {
    let state = place();
    let (front, at) = web(state.path(), vec![called(80), called(443)]);
    let named =
        async |name: &str, origin| service(Protocol::Http, name, speaker(origin).await, "right");
    let services = vec![
        named("*.alice.example", "far").await,
        named("*.deep.alice.example", "near").await,
        named("x.deep.alice.example", "exact").await,
    ];
    let _back = flown(&front, services).await;
    for (host, from) in [
        ("a.alice.example", "far"),
        ("a.b.c.alice.example", "far"),
        ("a.deep.alice.example", "near"),
        ("x.deep.alice.example", "exact"),
        ("0x7f000001--X.deep.alice.example.", "exact"),
    ] {
        assert_eq!(visit(at[0], get(host)).await, from, "{host}");
    }
    assert!(
        visit(at[0], get("alice.example"))
            .await
            .starts_with("HTTP/1.1 503 ")
    );
}

#[tokio::test]
async fn the_catch_all_gets_who_is_left_where_it_is_granted() {
    let state = place();
    let web = [Protocol::Http, Protocol::Https, Protocol::Raw];
    let grants = vec![grant("*.alice.example", &web), grant("unknown", &web)];
    let own = Listen {
        kite: Some("ssh.alice.example".parse().unwrap()),
        raw: true,
        ..called(22)
    };
    let (front, at) = frontend_of(state.path(), vec![called(80), called(443), own], grants);
    let last = |protocol, origin| service(protocol, "unknown", origin, "right");
    let services = vec![
        service(Protocol::Http, NAME, speaker("bob").await, "right"),
        last(Protocol::Http, speaker("last").await),
        last(Protocol::Https, speaker("last tls").await),
        last(Protocol::Raw, speaker("last raw").await),
    ];
    let back = flown(&front, services).await;
    assert_eq!(visit(at[0], get(NAME)).await, "bob");
    assert_eq!(visit(at[0], get("any.example")).await, "last");
    assert_eq!(
        visit(at[1], client_hello(Some("any.example"))).await,
        "last tls"
    );
    assert_eq!(
        visit(at[0], connect("any.example", 5)).await,
        connected("last raw")
    );
    // What flies goes first, however it is asked for, and a port of a kite's own is for nobody else.
    assert_eq!(
        visit(at[0], connect(NAME, 80) + &get(NAME)).await,
        connected("bob")
    );
    assert!(ask(at[2], b"").await.is_empty());
    back.stop();

    // Whoever may fly a wildcard may not fly that.
    let state = place();
    let (front, _) = frontend_of(
        state.path(),
        vec![called(80), called(443)],
        vec![grant("*.alice.example", &web)],
    );
    let origin = speaker("last").await;
    let _back = backend(
        &local(&front),
        vec![service(Protocol::Http, "unknown", origin, "right")],
    );
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(kites(&front.handle).is_empty());
}

#[tokio::test]
async fn the_second_choice_serves_while_the_first_is_down() {
    let state = place();
    let (front, at) = web(state.path(), vec![called(80), called(443)]);
    let bob =
        async |protocol, origin| vec![service(protocol, NAME, speaker(origin).await, "right")];
    let first = flown(&front, bob(Protocol::Http, "first").await).await;
    let second = flown(&front, bob(Protocol::Http2, "second").await).await;
    let _third = flown(&front, bob(Protocol::Http3, "third").await).await;
    assert_eq!(visit(at[0], get(NAME)).await, "first");
    first.stop();
    until("the first is gone", || kites(&front.handle).len() == 2).await;
    assert_eq!(visit(at[0], get(NAME)).await, "second");
    second.stop();
    until("the second is gone", || kites(&front.handle).len() == 1).await;
    assert_eq!(visit(at[0], get(NAME)).await, "third");
    let upgrade = format!(
        "GET / HTTP/1.1\r\nHost: {NAME}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"
    );
    assert_eq!(visit(at[0], upgrade).await, "third");
}

#[tokio::test]
async fn xmpp_and_minecraft_find_their_kites() {
    let state = place();
    let both = [Protocol::Xmpp, Protocol::Minecraft];
    let (front, at) = frontend_of(
        state.path(),
        vec![called(80), called(25565)],
        vec![grant("*.test", &both)],
    );
    let services = vec![
        service(Protocol::Xmpp, "xm.test", speaker("xmpp").await, "right"),
        service(
            Protocol::Minecraft,
            "mc.test",
            speaker("minecraft").await,
            "right",
        ),
    ];
    let _back = flown(&front, services).await;
    let xmpp = |host: &str| {
        format!("<?xml version='1.0'?><stream:stream to='{host}' xmlns='jabber:client'>")
    };
    let minecraft = |host: &str| {
        let length = host.len() as u8;
        [
            &[6 + length, 0, 47, length][..],
            host.as_bytes(),
            &[0x63, 0xdd, 2],
        ]
        .concat()
    };
    assert_eq!(visit(at[0], xmpp("XM.test")).await, "xmpp");
    assert_eq!(visit(at[1], minecraft("mc.test")).await, "minecraft");
    assert!(
        visit(at[0], xmpp("no.test"))
            .await
            .contains("<host-unknown ")
    );
    assert_eq!(visit(at[1], minecraft("no.test")).await, "");
}

/// A frontend that takes two backends for a kite, and each of them on a way of its own: the far one's is long.
#[tokio::test]
async fn several_backends_share_a_kite_and_the_nearest_gets_the_visitors() {
    let state = place();
    let shared = Grant {
        backends: 2,
        ..grant("*.alice.example", &[Protocol::Http])
    };
    let (front, at) = frontend_of(state.path(), vec![called(80), called(443)], vec![shared]);
    let pin = front.address.split_once('#').unwrap().1.to_owned();
    let (to_far, far_ways) = relay(front.public).await;
    let (to_near, near_ways) = relay(front.public).await;
    let fly = async |by: SocketAddr, name| {
        let kite = service(Protocol::Http, NAME, speaker(name).await, "right");
        backend(&format!("{by}#{pin}"), vec![kite])
    };
    let flying = |n: usize| until_flying(&front, n);
    let _far = fly(to_far, "far").await;
    flying(1).await;
    far_ways.lock().unwrap()[0]
        .delay
        .store(60, Ordering::SeqCst);
    assert_eq!(visit(at[0], get(NAME)).await, "far");
    let _near = fly(to_near, "near").await;
    flying(2).await;
    // The first visitors have both measured.
    let mut met = Vec::new();
    while met.last().is_none_or(|origin| origin != "near") {
        met.push(visit(at[0], get(NAME)).await);
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(met.len() < 60, "the far one keeps the visitors");
    }
    for _ in 0..10 {
        assert_eq!(visit(at[0], get(NAME)).await, "near");
    }
    // There is room for two.
    let third = fly(front.public, "third").await;
    tokio::time::sleep(Duration::from_millis(700)).await;
    assert_eq!(kites(&front.handle).len(), 2);
    third.stop();

    // A visitor who was sent into silence is brought to the other, and those after it go there at once.
    near_ways.lock().unwrap()[0]
        .silent
        .store(true, Ordering::SeqCst);
    assert_eq!(wait(at[0], get(NAME)).await, "far");
    let began = Instant::now();
    assert_eq!(visit(at[0], get(NAME)).await, "far");
    assert!(began.elapsed() < Duration::from_secs(2));
    // One that ends is left without a visitor lost.
    for way in near_ways.lock().unwrap().iter() {
        way.cut.notify_one();
    }
    assert_eq!(visit(at[0], get(NAME)).await, "far");
}

/// Company is by a grant of one's own: who knows a wildcard's secret does not fly beside a kite that has another.
#[tokio::test]
async fn nobody_flies_beside_a_kite_of_another_grant() {
    let state = place();
    let wild = Grant {
        backends: 3,
        ..grant("*.alice.example", &[Protocol::Http])
    };
    let bobs = Grant {
        secret: crate::roles::secret("bob's own"),
        ..grant(NAME, &[Protocol::Http])
    };
    let (front, at) = frontend_of(
        state.path(),
        vec![called(80), called(443)],
        vec![wild, bobs],
    );
    let bob = service(Protocol::Http, NAME, speaker("bob").await, "bob's own");
    let _bob = flown(&front, vec![bob]).await;
    let eve = service(Protocol::Http, NAME, speaker("eve").await, "right");
    let _eve = backend(&local(&front), vec![eve]);
    tokio::time::sleep(Duration::from_millis(700)).await;
    assert_eq!(kites(&front.handle).len(), 1);
    assert_eq!(visit(at[0], get(NAME)).await, "bob");
}

async fn until_flying(front: &Side, n: usize) {
    until("the backends fly", || kites(&front.handle).len() == n).await;
}

/// pagekite.py knows nothing of several backends, and expects to be told Duplicate.
#[tokio::test]
async fn an_older_backend_is_a_duplicate_all_the_same() {
    let state = place();
    let shared = Grant {
        backends: 2,
        ..grant("*.alice.example", &[Protocol::Http])
    };
    let (front, _) = frontend_of(state.path(), vec![called(80), called(443)], vec![shared]);
    let kite = service(Protocol::Http, NAME, speaker("bob").await, "right");
    let _back = flown(&front, vec![kite]).await;
    let id = KiteId {
        proto: "http".into(),
        name: NAME.into(),
        bsalt: "b".repeat(36),
    };
    let asked = |fsalt: &str| {
        let line = ServiceLine::signed(&id, fsalt, b"right", "0123abcd");
        format!("CONNECT PageKite:1 HTTP/1.0\r\nX-PageKite: {line}\r\n\r\n")
    };
    let challenge = String::from_utf8(ask(front.public, asked("")).await).unwrap();
    let fsalt = challenge
        .lines()
        .find_map(|l| l.strip_prefix("X-PageKite-SignThis: "))
        .unwrap();
    let fsalt = fsalt.rsplit(':').next().unwrap();
    let verdict = String::from_utf8(ask(front.public, asked(fsalt)).await).unwrap();
    assert!(
        verdict.contains("X-PageKite-Duplicate: http:bob"),
        "{verdict}"
    );
}
