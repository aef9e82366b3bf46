//! Certificates at the frontend: who is shown which, and what may come out of it. Real sockets, rustls clients.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use kite::backend::Plan;
use kite::config::{CertificateFiles, Frontend as To, ProofRule, Service};
use kite::dial::{Dialer, DirectDialer, Egress, EgressArgs};
use kite::kite::Protocol;
use kite::observe::board::Board;
use kite::shutdown::{self, Trigger};
use kite::tls::{TUNNEL_ALPN, TlsClient};
use kite::tor::TorSettings;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, IpAddr, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::roles::{
    NAME, SWITCHING, Side, any, ask, frontend_config, kites, origin, service, start, until,
};

const PING: &[u8] = b"HEAD /ping HTTP/1.1\r\nHost: ping.pagekite\r\n\r\n";

/// Files with a certificate that is its own authority.
pub struct Made {
    _dir: tempfile::TempDir,
    pub cert: PathBuf,
    pub key: PathBuf,
}

pub fn certificate(names: &[&str]) -> Made {
    let dir = tempfile::tempdir().unwrap();
    let made = Made {
        cert: dir.path().join("cert.pem"),
        key: dir.path().join("key.pem"),
        _dir: dir,
    };
    made.renew(names);
    made
}

impl Made {
    /// Puts another certificate, with another key, in its place.
    pub fn renew(&self, names: &[&str]) {
        let key = rcgen::KeyPair::generate().unwrap();
        let names: Vec<String> = names.iter().map(|n| (*n).to_owned()).collect();
        let cert = rcgen::CertificateParams::new(names)
            .and_then(|params| params.self_signed(&key))
            .unwrap();
        fs::write(&self.cert, cert.pem()).unwrap();
        fs::write(&self.key, key.serialize_pem()).unwrap();
        fs::set_permissions(&self.key, fs::Permissions::from_mode(0o600)).unwrap();
    }

    pub fn files(&self) -> CertificateFiles {
        CertificateFiles {
            cert: self.cert.clone(),
            key: self.key.clone(),
            default: false,
            endpoints: false,
            redirect: false,
        }
    }

    pub fn der(&self) -> CertificateDer<'static> {
        CertificateDer::from_pem_file(&self.cert).unwrap()
    }
}

/// A frontend that holds these, and takes nothing but proofs from backends.
pub fn holding(
    state: &Path,
    certificates: &[&Made],
    protocols: &[Protocol],
    proof: ProofRule,
) -> Side {
    let mut config = frontend_config(state, any(), protocols, proof);
    config.certificates = certificates.iter().map(|made| made.files()).collect();
    start(config)
}

fn dialer_with(ca: &Path) -> Arc<dyn Dialer> {
    let Ok(Egress::Direct(allowed)) = Egress::decide(EgressArgs {
        via_tor: false,
        tor: TorSettings::default(),
    }) else {
        panic!("direct mode is what was asked for")
    };
    let tls = TlsClient::new(Some(ca)).unwrap();
    Arc::new(DirectDialer::new(allowed, tls))
}

/// A backend that takes this authority's word for who the frontend is.
pub fn backend_trusting(ca: &Path, address: &str, services: Vec<Service>) -> (Trigger, Board) {
    let (trigger, order) = shutdown::channel();
    let to = To {
        address: address.parse().unwrap(),
        kites: None,
        tunnels: 1,
        homes: false,
    };
    let board = Board::default();
    tokio::spawn(kite::backend::run(
        Plan::fixed(vec![to], services),
        dialer_with(ca),
        board.clone(),
        order,
    ));
    (trigger, board)
}

/// What a TLS client wants.
#[derive(Default)]
pub struct Hello<'a> {
    pub sni: Option<&'a str>,
    pub alpn: &'a [&'a [u8]],
    /// The one certificate that will do; any name and none.
    pub trust: Option<&'a Made>,
    /// Asked for before, in the clear.
    pub connect: Option<&'a str>,
}

impl Hello<'_> {
    pub async fn say(&self, to: SocketAddr) -> std::io::Result<TlsStream<TcpStream>> {
        let mut conn = TcpStream::connect(to).await.unwrap();
        if let Some(name) = self.connect {
            let request = format!("CONNECT {name}:443 HTTP/1.1\r\nHost: {name}\r\n\r\n");
            conn.write_all(request.as_bytes()).await.unwrap();
            let mut answer = [0; 39];
            conn.read_exact(&mut answer).await?;
            assert_eq!(&answer, b"HTTP/1.0 200 Connection Established\r\n\r\n");
        }
        let mut config = ClientConfig::builder()
            .with_root_certificates(RootCertStore::empty())
            .with_no_client_auth();
        config
            .dangerous()
            .set_certificate_verifier(Arc::new(OneKey(self.trust.map(Made::der))));
        config.alpn_protocols = self.alpn.iter().map(|p| p.to_vec()).collect();
        config.enable_sni = self.sni.is_some();
        let name = match self.sni {
            Some(name) => ServerName::try_from(name.to_owned()).unwrap(),
            None => ServerName::IpAddress(IpAddr::try_from("127.0.0.1").unwrap()),
        };
        TlsConnector::from(Arc::new(config))
            .connect(name, conn)
            .await
    }

    /// What comes back for this request inside, to the end.
    pub async fn ask(&self, to: SocketAddr, request: &[u8]) -> Vec<u8> {
        let mut conn = self.say(to).await.unwrap();
        conn.write_all(request).await.unwrap();
        let mut got = Vec::new();
        let reading = conn.read_to_end(&mut got);
        let end = tokio::time::timeout(Duration::from_secs(10), reading).await;
        let _ = end.expect("an answer in time");
        got
    }
}

/// Takes one certificate, or any.
#[derive(Debug)]
struct OneKey(Option<CertificateDer<'static>>);

impl rustls::client::danger::ServerCertVerifier for OneKey {
    fn verify_server_cert(
        &self,
        shown: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: rustls::pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        match &self.0 {
            Some(wanted) if wanted != shown => {
                Err(rustls::CertificateError::ApplicationVerificationFailure.into())
            }
            _ => Ok(rustls::client::danger::ServerCertVerified::assertion()),
        }
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        rustls::crypto::aws_lc_rs::default_provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}

/// One name, one port: who pinned the key is shown the key, who wants a certificate is shown that. Both
/// prove the secret, bound to their session, or this frontend would not let them fly.
#[tokio::test]
async fn pinned_and_certified_backends_dial_one_name() {
    let state = tempfile::tempdir().unwrap();
    let made = certificate(&["localhost"]);
    let front = holding(
        state.path(),
        &[&made],
        &[Protocol::Foolscap],
        ProofRule::Required,
    );
    let (node, _) = origin(SWITCHING).await;
    let port = front.public.port();
    let by_name = format!("localhost:{port}");
    let (_, pin) = front.address.split_once('#').unwrap();

    let kite = service(Protocol::Foolscap, "named.alice.example", node, "right");
    let (_named, _) = backend_trusting(&made.cert, &by_name, vec![kite]);
    let kite = service(Protocol::Foolscap, "pinned.alice.example", node, "right");
    let (_pinned, _) = backend_trusting(&made.cert, &format!("{by_name}#{pin}"), vec![kite]);
    until("both fly", || kites(&front.handle).len() == 2).await;
}

#[tokio::test]
async fn another_authoritys_certificate_is_told_nothing() {
    let state = tempfile::tempdir().unwrap();
    let (made, other) = (certificate(&["localhost"]), certificate(&["localhost"]));
    let front = holding(
        state.path(),
        &[&made],
        &[Protocol::Foolscap],
        ProofRule::Optional,
    );
    let (node, _) = origin(SWITCHING).await;
    let kite = service(Protocol::Foolscap, NAME, node, "right");
    let address = format!("localhost:{}", front.public.port());
    let (_back, board) = backend_trusting(&other.cert, &address, vec![kite]);
    let trouble = || {
        let view = board.view();
        view.iter()
            .any(|t| format!("{t:?}").contains("frontend-unproven"))
    };
    until("the backend says why not", trouble).await;
    assert!(kites(&front.handle).is_empty());
}

#[tokio::test]
async fn each_hello_is_shown_what_it_asks_for() {
    let state = tempfile::tempdir().unwrap();
    let (first, second) = (
        certificate(&["fe.example"]),
        certificate(&["*.other.example"]),
    );
    let front = holding(
        state.path(),
        &[&first, &second],
        &[Protocol::Https],
        ProofRule::Optional,
    );
    let shown = async |hello: Hello<'_>| {
        let conn = hello.say(front.public).await.ok()?;
        let chain = conn.get_ref().1.peer_certificates()?;
        Some(chain.first()?.clone().into_owned())
    };
    let named = |sni| Hello {
        sni: Some(sni),
        ..Hello::default()
    };
    assert_eq!(shown(named("fe.example")).await, Some(first.der()));
    assert_eq!(shown(named("a.other.example")).await, Some(second.der()));
    assert_eq!(
        shown(named("a.b.other.example")).await,
        None,
        "one label, no more"
    );
    assert_eq!(shown(named("nobody.example")).await, None);
    assert_eq!(
        shown(Hello::default()).await,
        Some(first.der()),
        "the first is the default"
    );
    let asked = Hello {
        connect: Some("a.other.example"),
        ..Hello::default()
    };
    assert_eq!(shown(asked).await, Some(second.der()));
    // A pinned backend sees the key that it pinned, whatever certificates there are for the name.
    let tunnel: &[&[u8]] = &[TUNNEL_ALPN];
    for sni in [Some("fe.example"), None] {
        let own = shown(Hello {
            sni,
            alpn: tunnel,
            ..Hello::default()
        })
        .await
        .unwrap();
        assert!(own != first.der() && own != second.der());
    }
    // A name that nobody holds is no reason to answer CONNECT.
    let refused = ask(front.public, b"CONNECT nobody.example:443 HTTP/1.1\r\n\r\n").await;
    assert!(refused.starts_with(b"HTTP/1.1 503 "));
}

/// Tunnels, pings, and no visitor: nothing here is ended for a kite.
#[tokio::test]
async fn what_comes_out_is_no_visitor() {
    let state = tempfile::tempdir().unwrap();
    let made = certificate(&["fe.example", "*.alice.example"]);
    let front = holding(
        state.path(),
        &[&made],
        &[Protocol::Http],
        ProofRule::Optional,
    );
    let (node, visitors) = origin(b"").await;
    let _back = crate::roles::backend(
        &front.address,
        vec![service(Protocol::Http, NAME, node, "right")],
    );
    until("the kite is up", || kites(&front.handle).len() == 1).await;
    let tunnel: &[&[u8]] = &[TUNNEL_ALPN];
    let ways = [
        Hello {
            sni: Some("fe.example"),
            ..Hello::default()
        },
        Hello::default(),
        Hello {
            connect: Some("fe.example"),
            ..Hello::default()
        },
        Hello {
            sni: Some(NAME),
            alpn: tunnel,
            ..Hello::default()
        },
    ];
    for (i, hello) in ways.iter().enumerate() {
        let pong = hello.ask(front.public, PING).await;
        assert!(
            pong.starts_with(b"HTTP/1.1 503 Unavailable\r\nX-PageKite-UUID: "),
            "{i}"
        );
        let request =
            b"CONNECT PageKite:1 HTTP/1.0\r\nX-PageKite: http:nobody.example:0123::0123\r\n\r\n";
        let answer = hello.ask(front.public, request).await;
        assert!(
            String::from_utf8_lossy(&answer).contains("X-PageKite-SignThis: "),
            "{i}"
        );
        let request = format!("GET / HTTP/1.1\r\nHost: {NAME}\r\n\r\n");
        let answer = hello.ask(front.public, request.as_bytes()).await;
        let status = answer.get(..13).unwrap_or_default();
        assert!(
            status.starts_with(b"HTTP/1.1 503 ") || status.starts_with(b"HTTP/1.1 421 "),
            "{i}"
        );
        let connect = format!("CONNECT {NAME}:80 HTTP/1.1\r\n\r\n");
        assert!(
            hello
                .ask(front.public, connect.as_bytes())
                .await
                .starts_with(b"HTTP/1.1 503 "),
            "{i}"
        );
    }
    // A kite's name is none of ours.
    let visitor = Hello {
        sni: Some(NAME),
        ..Hello::default()
    };
    assert!(visitor.say(front.public).await.is_err());
    assert_eq!(visitors.load(std::sync::atomic::Ordering::SeqCst), 0);
}

/// A kite of protocol http that wants its visitors' TLS to end at the frontend.
fn asking(name: &str, origin: SocketAddr) -> Service {
    Service {
        tls_at_frontend: true,
        ..service(Protocol::Http, name, origin, "right")
    }
}

fn request(host: &str) -> Vec<u8> {
    format!("GET /here?now HTTP/1.1\r\nHost: {host}\r\n\r\n").into_bytes()
}

/// TLS is taken off for a kite that asked, and for no other; inside is the name that the hello said.
#[tokio::test]
async fn tls_is_ended_for_a_kite_that_asked() {
    let state = tempfile::tempdir().unwrap();
    let made = certificate(&["*.alice.example"]);
    let front = holding(
        state.path(),
        &[&made],
        &[Protocol::Http],
        ProofRule::Optional,
    );
    let (node, _) = origin(b"").await;
    let silent = service(Protocol::Http, "silent.alice.example", node, "right");
    let _back = crate::roles::backend(&front.address, vec![asking(NAME, node), silent]);
    until("the kites are up", || kites(&front.handle).len() == 2).await;

    let browser: &[&[u8]] = &[b"h2", b"http/1.1"];
    let hello = Hello {
        sni: Some(NAME),
        alpn: browser,
        trust: Some(&made),
        ..Hello::default()
    };
    let visitor = hello.say(front.public).await.unwrap();
    assert_eq!(visitor.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]));
    // The origin is an echo: what comes back is what it got, to the byte and to the end.
    let mut sent = request(NAME);
    sent.extend((0..3_000_000u32).map(|i| (i % 251) as u8));
    let (mut read, mut write) = tokio::io::split(visitor);
    let writing = async {
        write.write_all(&sent).await.unwrap();
        write.shutdown().await.unwrap();
    };
    let mut got = Vec::new();
    let (_, end) = tokio::join!(writing, read.read_to_end(&mut got));
    end.expect("closed in order");
    assert!(
        got == sent,
        "{} bytes came back of {}",
        got.len(),
        sent.len()
    );

    for (host, status) in [("silent.alice.example", "421"), ("bob.example", "421")] {
        let answer = hello.ask(front.public, &request(host)).await;
        assert!(
            answer.starts_with(format!("HTTP/1.1 {status} ").as_bytes()),
            "{host}"
        );
    }
    for (name, why) in [
        (
            "silent.alice.example",
            "it did not ask, and its visitors would say what is for it alone",
        ),
        (
            "nobody.alice.example",
            "it is not there, and may be one that brings its own TLS",
        ),
    ] {
        let refused = Hello {
            sni: Some(name),
            ..Hello::default()
        };
        assert!(refused.say(front.public).await.is_err(), "{why}");
    }
    // Without a server name the Host alone decides, within the certificate.
    let nameless = Hello::default();
    for (host, status) in [("silent.alice.example", "503"), ("bob.example", "421")] {
        let answer = nameless.ask(front.public, &request(host)).await;
        assert!(
            answer.starts_with(format!("HTTP/1.1 {status} ").as_bytes()),
            "{host}"
        );
    }
    // In the clear as ever.
    let mut clear = TcpStream::connect(front.public).await.unwrap();
    clear.write_all(&request(NAME)).await.unwrap();
    let mut echo = vec![0; request(NAME).len()];
    clear.read_exact(&mut echo).await.unwrap();
    assert_eq!(echo, request(NAME));
}

/// A visitor that vanishes without TLS's closing alert has not said all: the origin sees a break.
#[tokio::test]
async fn a_truncated_visit_does_not_look_whole() {
    let state = tempfile::tempdir().unwrap();
    let made = certificate(&[NAME]);
    let front = holding(
        state.path(),
        &[&made],
        &[Protocol::Http],
        ProofRule::Optional,
    );
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let node = listener.local_addr().unwrap();
    let _back = crate::roles::backend(&front.address, vec![asking(NAME, node)]);
    until("the kite is up", || kites(&front.handle).len() == 1).await;
    for orderly in [true, false] {
        let hello = Hello {
            sni: Some(NAME),
            ..Hello::default()
        };
        let mut visitor = hello.say(front.public).await.unwrap();
        visitor.write_all(&request(NAME)).await.unwrap();
        let (mut conn, _) = listener.accept().await.unwrap();
        let mut got = vec![0; request(NAME).len()];
        conn.read_exact(&mut got).await.unwrap();
        if orderly {
            visitor.shutdown().await.unwrap();
        } else {
            visitor.get_mut().0.shutdown().await.unwrap();
        }
        let end = tokio::time::timeout(Duration::from_secs(10), conn.read(&mut got))
            .await
            .unwrap();
        assert_eq!(end.is_ok_and(|n| n == 0), orderly);
    }
}

/// An https kite's visitors are its own, whatever certificates the frontend holds for its name.
#[tokio::test]
async fn an_https_kite_goes_before_a_certificate() {
    let state = tempfile::tempdir().unwrap();
    let (ours, theirs) = (certificate(&["*.alice.example"]), certificate(&[NAME]));
    let protocols = [Protocol::Http, Protocol::Https];
    let front = holding(state.path(), &[&ours], &protocols, ProofRule::Optional);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let secure = listener.local_addr().unwrap();
    let key = rustls::pki_types::PrivateKeyDer::from_pem_file(&theirs.key).unwrap();
    let config = rustls::ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(vec![theirs.der()], key)
        .unwrap();
    tokio::spawn(async move {
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        while let Ok((conn, _)) = listener.accept().await {
            let mut conn = acceptor.accept(conn).await.unwrap();
            conn.write_all(b"from end to end").await.unwrap();
            let _ = conn.shutdown().await;
        }
    });
    let (node, _) = origin(b"").await;
    let passed = service(Protocol::Https, NAME, secure, "right");
    let _back = crate::roles::backend(&front.address, vec![asking(NAME, node), passed]);
    until("both are up", || kites(&front.handle).len() == 2).await;
    let connects = [None, Some(NAME)];
    for connect in connects {
        let hello = Hello {
            sni: Some(NAME),
            trust: Some(&theirs),
            connect,
            ..Hello::default()
        };
        assert_eq!(hello.ask(front.public, b"").await, b"from end to end");
    }
    // An authority that looks for the kite is the kite's own affair as well.
    let authority: &[&[u8]] = &[kite::tls::ACME_ALPN];
    let hello = Hello {
        sni: Some(NAME),
        alpn: authority,
        trust: Some(&theirs),
        ..Hello::default()
    };
    assert_eq!(hello.ask(front.public, b"").await, b"from end to end");
}

#[tokio::test]
async fn http_is_sent_to_https_where_that_ends_here_and_foolscap_never() {
    let state = tempfile::tempdir().unwrap();
    let made = certificate(&["*.alice.example"]);
    let protocols = [Protocol::Http, Protocol::Foolscap];
    let mut config = frontend_config(state.path(), any(), &protocols, ProofRule::Optional);
    config.certificates = vec![CertificateFiles {
        redirect: true,
        ..made.files()
    }];
    let front = start(config);
    let (node, _) = origin(b"").await;
    let (tub, _) = origin(SWITCHING).await;
    let kites_here = vec![
        asking(NAME, node),
        service(Protocol::Http, "silent.alice.example", node, "right"),
        service(Protocol::Foolscap, "tub.alice.example", tub, "right"),
    ];
    let _back = crate::roles::backend(&front.address, kites_here);
    until("the kites are up", || kites(&front.handle).len() == 3).await;

    let said = ask(front.public, request(NAME)).await;
    let said = String::from_utf8_lossy(&said);
    assert!(
        said.starts_with("HTTP/1.1 308 Permanent Redirect\r\n"),
        "{said}"
    );
    assert!(
        said.contains(&format!("\r\nLocation: https://{NAME}/here?now\r\n")),
        "{said}"
    );
    // Who did not ask for TLS is served as before; who is not there is not there.
    let mut silent = TcpStream::connect(front.public).await.unwrap();
    silent
        .write_all(&request("silent.alice.example"))
        .await
        .unwrap();
    let mut echo = vec![0; request("silent.alice.example").len()];
    silent.read_exact(&mut echo).await.unwrap();
    assert_eq!(echo, request("silent.alice.example"));
    assert!(
        ask(front.public, request("no.alice.example"))
            .await
            .starts_with(b"HTTP/1.1 503 ")
    );
    // Foolscap: a node's own kite, and an opening at a kite that is redirected.
    crate::roles::negotiate(front.public, "tub.alice.example").await;
    let mut opening = TcpStream::connect(front.public).await.unwrap();
    let sent = crate::roles::foolscap_request(NAME);
    opening.write_all(&sent).await.unwrap();
    let mut echo = vec![0; sent.len()];
    opening.read_exact(&mut echo).await.unwrap();
    assert_eq!(echo, sent);
}

/// A frontend that ends TLS unasked gets no kite that has TLS of its own.
#[tokio::test]
async fn a_backend_gives_up_a_foolscap_kite_whose_tls_is_ended() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("plain://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        let mut held = Vec::new();
        while let Ok((mut conn, _)) = listener.accept().await {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(conn.read_u8().await.unwrap());
            }
            let head = String::from_utf8(head).unwrap();
            let mut answer = "HTTP/1.1 200 OK\r\n".to_owned();
            for line in head.lines().filter_map(|l| l.strip_prefix("X-PageKite: ")) {
                let id: Vec<_> = line.split(':').take(3).collect();
                let id = id.join(":");
                answer += &format!("X-PageKite-OK: {id}\r\nX-PageKite-SSL-OK: {id}\r\n");
            }
            conn.write_all((answer + "\r\n").as_bytes()).await.unwrap();
            held.push(conn);
        }
    });
    let (node, _) = origin(SWITCHING).await;
    for (protocol, flies) in [(Protocol::Foolscap, false), (Protocol::Http, true)] {
        let state = tempfile::tempdir().unwrap();
        let ca = certificate(&["unused.example"]);
        let kite = service(protocol, NAME, node, "right");
        let (_back, board) = backend_trusting(&ca.cert, &address, vec![kite]);
        let said = |word: &str| format!("{:?}", board.view()).contains(word);
        let word = if flies { NAME } else { "kites-refused" };
        until("the backend has decided", || said(word)).await;
        drop(state);
    }
}
