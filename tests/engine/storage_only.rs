//! A frontend that carries storage and nothing else, whatever its kites are allowed and their backends do.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use kite::config::{Listen, OwnPage, ProofRule};
use kite::frontend::storage::Policy;
use kite::kite::Protocol;
use kite::shutdown::Trigger;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::roles::{
    self, NAME, SWITCHING, Side, any, ask, backend, client_hello, config_of, foolscap_request,
    frontend_config, grant, kites, negotiate, origin, service, until,
};

const ALERT: &[u8] = &[0x15, 3, 3, 0, 2, 2, 0x31];
/// A handshake record, and an application's.
const RECORDS: &[u8] = b"\x16\x03\x01\x00\x05hello\x17\x03\x03\x00\x03abc";

/// A storage-only frontend whose grant allows these.
fn frontend(protocols: &[Protocol]) -> (Side, tempfile::TempDir) {
    let state = tempfile::tempdir().unwrap();
    let mut config = frontend_config(state.path(), any(), protocols, ProofRule::Optional);
    config.policy = Policy::StorageOnly;
    config.page = OwnPage {
        contact: Some("abuse@alice.example".to_owned()),
        ..OwnPage::default()
    };
    (roles::start(config), state)
}

/// One more, where a kite flies whose backend takes whatever comes.
async fn flying(origin: std::net::SocketAddr) -> (Side, Trigger, tempfile::TempDir) {
    let (front, state) = frontend(&[Protocol::Foolscap, Protocol::Http, Protocol::Websocket]);
    let lax = service(Protocol::Http, NAME, origin, "right");
    let back = backend(&front.address, vec![lax]);
    until("the kite is up", || kites(&front.handle).len() == 1).await;
    (front, back, state)
}

/// Everything that comes until the end; and whether that was a reset.
async fn rest(conn: &mut TcpStream) -> (Vec<u8>, bool) {
    let mut got = Vec::new();
    let reading = conn.read_to_end(&mut got);
    let end = tokio::time::timeout(std::time::Duration::from_secs(20), reading)
        .await
        .expect("an end");
    (got, end.is_err())
}

#[tokio::test]
async fn storage_passes_and_browsers_are_told_what_this_is() {
    let (origin, visitors) = origin(SWITCHING).await;
    let (front, _back, _state) = flying(origin).await;
    let mut visitor = negotiate(front.public, NAME).await;
    visitor.write_all(RECORDS).await.unwrap();
    visitor.shutdown().await.unwrap();
    assert_eq!(rest(&mut visitor).await, (RECORDS.to_vec(), false));
    assert_eq!(visitors.load(Ordering::SeqCst), 1);

    // The same page for a kite that flies and one that does not.
    let mut pages = Vec::new();
    for name in [NAME, "nobody.alice.example", "elsewhere.example"] {
        for request in [
            format!("GET / HTTP/1.1\r\nHost: {name}\r\n\r\n"),
            format!("GET /id/{} HTTP/1.1\r\nHost: {name}\r\n\r\n", roles::TUB),
            format!("POST / HTTP/1.1\r\nHost: {name}\r\nContent-Length: 0\r\n\r\n"),
            format!(
                "GET / HTTP/1.1\r\nHost: {name}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"
            ),
            format!(
                "GET /id/{} HTTP/1.1\r\nHost: {name}\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n",
                roles::TUB
            ),
        ] {
            pages.push(ask(front.public, request).await);
        }
    }
    let first = String::from_utf8(pages[0].clone()).unwrap();
    assert!(first.starts_with("HTTP/1.1 403 Forbidden\r\n"), "{first}");
    assert!(first.contains("There is no page here") && first.contains("abuse@alice.example"));
    assert!(pages.iter().all(|page| *page == pages[0]));

    // What looks like foolscap's and is not.
    let extra = [&foolscap_request(NAME)[..], b"GET /"].concat();
    assert!(ask(front.public, extra).await.is_empty());
    let no_connection = String::from_utf8(foolscap_request(NAME)).unwrap();
    let no_connection = no_connection.replace("Connection: Upgrade\r\n", "");
    assert_eq!(ask(front.public, no_connection).await, pages[0]);
    // A foolscap client learns whether the kite is there.
    let request = foolscap_request("nobody.alice.example");
    assert!(
        ask(front.public, request)
            .await
            .starts_with(b"HTTP/1.1 503 ")
    );
    // CONNECT leads nowhere, and TLS is refused by name.
    for port in [80, 443, 22] {
        let connect = format!("CONNECT {NAME}:{port} HTTP/1.1\r\n\r\n");
        let said = ask(front.public, connect).await;
        assert!(!said.starts_with(b"HTTP/1.0 200"), "{port}");
    }
    assert_eq!(ask(front.public, client_hello(Some(NAME))).await, ALERT);
    assert_eq!(
        visitors.load(Ordering::SeqCst),
        1,
        "nobody else came through"
    );
}

/// The origin, and its backend, are the kite owner's, and have other plans.
#[tokio::test]
async fn what_is_not_tls_is_cut_off_whoever_sends_it() {
    async fn origin_that_says(after: &'static [u8]) -> (std::net::SocketAddr, Arc<AtomicUsize>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        let came = Arc::new(AtomicUsize::new(0));
        let count = came.clone();
        tokio::spawn(async move {
            while let Ok((mut conn, _)) = listener.accept().await {
                let count = count.clone();
                tokio::spawn(async move {
                    let mut head = [0; 4096];
                    let _ = conn.read(&mut head).await;
                    let _ = conn.write_all(SWITCHING).await;
                    let mut record = [0; 4096];
                    let read = conn.read(&mut record).await.unwrap_or(0);
                    count.fetch_add(read, Ordering::SeqCst);
                    let _ = conn.write_all(after).await;
                    let _ = conn.read(&mut record).await;
                });
            }
        });
        (at, came)
    }
    let (origin, came) = origin_that_says(b"<html>sign in</html>").await;
    let (front, _back, _state) = flying(origin).await;
    // The visitor's plaintext does not get through.
    let mut visitor = negotiate(front.public, NAME).await;
    visitor.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    assert_eq!(rest(&mut visitor).await, (vec![], true));
    assert_eq!(came.load(Ordering::SeqCst), 0);
    // Nor the origin's.
    let mut visitor = negotiate(front.public, NAME).await;
    visitor.write_all(RECORDS).await.unwrap();
    assert_eq!(rest(&mut visitor).await, (vec![], true));
    assert_eq!(came.load(Ordering::SeqCst), RECORDS.len());
    // Nor is it in what comes with the answer.
    let (origin, _) = roles::origin(
        b"HTTP/1.1 101 x\r\n\r\n<html>sign in, and be quick about it, or it will be too late</html>",
    )
    .await;
    let (front, _back, _state) = flying(origin).await;
    let mut visitor = TcpStream::connect(front.public).await.unwrap();
    visitor.write_all(&foolscap_request(NAME)).await.unwrap();
    assert_eq!(rest(&mut visitor).await, (vec![], true));
    // Without the policy the frontend looks at nothing: it was the policy that cut.
    let (origin, came) = origin_that_says(b"<html>sign in</html>").await;
    let (front, _back) = roles::flying(&[(Protocol::Http, NAME, origin)]).await;
    let mut visitor = negotiate(front.public, NAME).await;
    visitor.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let mut said = [0; 20];
    visitor.read_exact(&mut said).await.unwrap();
    assert_eq!(&said, b"<html>sign in</html>");
    assert!(came.load(Ordering::SeqCst) > 0);
}

#[tokio::test]
async fn a_kites_own_port_is_for_hellos_that_no_browser_sends() {
    let (origin, visitors) = origin(b"").await;
    let (front, _state) = frontend(&[Protocol::TahoeHttps, Protocol::Https]);
    let kite = service(Protocol::TahoeHttps, NAME, origin, "right");
    let _back = backend(&front.address, vec![kite]);
    until("the kite is up", || kites(&front.handle).len() == 1).await;
    let hello = client_hello(None);
    let mut visitor = TcpStream::connect(front.port_kite).await.unwrap();
    visitor.write_all(&hello).await.unwrap();
    let mut echoed = vec![0; hello.len()];
    visitor.read_exact(&mut echoed).await.unwrap();
    assert_eq!(echoed, hello);
    visitor.write_all(b"plaintext").await.unwrap();
    assert_eq!(rest(&mut visitor).await, (vec![], true));
    assert_eq!(visitors.load(Ordering::SeqCst), 1);

    // A browser that was given the address names nobody, and offers HTTP.
    for (name, alpn) in [(None, true), (Some(NAME), false), (Some(NAME), true)] {
        let hello = roles::hello_offering(name, alpn.then_some(&b"http/1.1"[..]));
        assert_eq!(ask(front.port_kite, hello).await, ALERT, "{name:?} {alpn}");
    }
    assert_eq!(visitors.load(Ordering::SeqCst), 1);
}

/// A kite that may carry nothing but pages does not fly; one that may carry both carries storage.
#[tokio::test]
async fn terms_are_what_grant_and_policy_allow() {
    let state = tempfile::tempdir().unwrap();
    let grants = vec![
        grant("web.alice.example", &[Protocol::Http, Protocol::Websocket]),
        grant("both.alice.example", &[Protocol::Http, Protocol::Foolscap]),
    ];
    let mut config = config_of(
        state.path(),
        vec![Listen::at(any()), Listen::at(any())],
        grants,
    );
    config.policy = Policy::StorageOnly;
    let front = roles::start(config);
    let (origin, _) = origin(SWITCHING).await;
    let fly = |name: &str| service(Protocol::Http, name, origin, "right");
    let _back = backend(
        &front.address,
        vec![fly("web.alice.example"), fly("both.alice.example")],
    );
    until("it flies", || !kites(&front.handle).is_empty()).await;
    assert_eq!(kites(&front.handle), ["http:both.alice.example"]);
}
