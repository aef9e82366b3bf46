//! What may stand behind a foolscap kite, and what is found out when it does not.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kite::backend::watch::Watch;
use kite::kite::Protocol;
use kite::observe::board::Board;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

use crate::roles::{
    NAME, SWITCHING, UNKNOWN_TUB, any, ask, flying, foolscap_request, is_probe, service, until,
};

/// What a foolscap port answers to something else (measured with foolscap 24.9).
const CONFUSED: &[u8] =
    b"HTTP/1.1 500 Internal Server Error: internal server error, see logs\r\n\r\n";

/// An origin that writes down what each connection brought, and how far it came.
pub struct Recorder {
    pub address: SocketAddr,
    seen: Arc<Mutex<Vec<Vec<u8>>>>,
    task: JoinHandle<()>,
}

/// What a [`Recorder`] is.
#[derive(Clone, Copy, PartialEq)]
pub enum Kind {
    /// A foolscap port with one tub.
    Node,
    /// Tahoe's web interface.
    Web,
    /// Takes everything and says nothing.
    Mute,
}

impl Recorder {
    pub async fn start(kind: Kind, at: SocketAddr) -> Self {
        let listener = TcpListener::bind(at).await.unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::new(Mutex::new(Vec::<Vec<u8>>::new()));
        let record = seen.clone();
        let task = tokio::spawn(async move {
            // They end with it, as a process's do.
            let mut conns = JoinSet::new();
            while let Ok((conn, _)) = listener.accept().await {
                let mine = {
                    let mut all = record.lock().unwrap();
                    all.push(Vec::new());
                    all.len() - 1
                };
                conns.spawn(serve(kind, conn, record.clone(), mine));
            }
        });
        Self {
            address,
            seen,
            task,
        }
    }

    /// What came, probes left out.
    pub fn visits(&self) -> Vec<Vec<u8>> {
        self.all().into_iter().filter(|v| !is_probe(v)).collect()
    }

    pub fn probes(&self) -> usize {
        self.all().iter().filter(|v| is_probe(v)).count()
    }

    fn all(&self) -> Vec<Vec<u8>> {
        self.seen.lock().unwrap().clone()
    }

    /// The port is free and all connections are closed when this returns.
    pub async fn stop(self) {
        self.task.abort();
        let _ = self.task.await;
    }
}

async fn serve(kind: Kind, mut conn: TcpStream, seen: Arc<Mutex<Vec<Vec<u8>>>>, mine: usize) {
    let mut answered = kind == Kind::Mute;
    let mut buf = [0; 4096];
    while let Ok(n @ 1..) = conn.read(&mut buf).await {
        let all = {
            let mut seen = seen.lock().unwrap();
            seen[mine].extend_from_slice(&buf[..n]);
            seen[mine].clone()
        };
        if !answered && all.ends_with(b"\r\n\r\n") {
            answered = true;
            let answer = match kind {
                Kind::Web => b"HTTP/1.1 404 Not Found\r\nServer: TwistedWeb/24.7.0\r\n\r\n",
                _ if !all.starts_with(b"GET ") => CONFUSED,
                _ if is_probe(&all) => UNKNOWN_TUB,
                _ => SWITCHING,
            };
            let _ = conn.write_all(answer).await;
            if is_probe(&all) || kind == Kind::Web || answer == CONFUSED {
                return;
            }
        }
    }
}

/// A port on which nothing listens for now.
async fn free_port() -> SocketAddr {
    let listener = TcpListener::bind(any()).await.unwrap();
    listener.local_addr().unwrap()
}

async fn is_served(front: SocketAddr) -> bool {
    let mut visitor = TcpStream::connect(front).await.unwrap();
    visitor.write_all(&foolscap_request(NAME)).await.unwrap();
    let mut said = [0; 12];
    visitor.read_exact(&mut said).await.unwrap();
    assert!([b"HTTP/1.1 101", b"HTTP/1.1 503"].contains(&&said));
    &said == b"HTTP/1.1 101"
}

/// What starts on the port of a node that was down when kite started.
#[tokio::test]
async fn what_comes_up_on_a_nodes_port_is_looked_at_first() {
    let port = free_port().await;
    let (front, _back) = flying(&[(Protocol::Foolscap, NAME, port)]).await;
    assert!(!is_served(front.public).await, "nothing listens");
    for kind in [Kind::Web, Kind::Mute] {
        let wrong = Recorder::start(kind, port).await;
        tokio::time::timeout(Duration::from_secs(30), async {
            while wrong.probes() == 0 {
                assert!(!is_served(front.public).await);
            }
        })
        .await
        .expect("a look at it");
        let crowd = (0..20).map(|_| ask(front.public, foolscap_request(NAME)));
        for answer in futures::future::join_all(crowd).await {
            assert!(answer.starts_with(b"HTTP/1.1 503 "));
        }
        assert_eq!(wrong.visits(), Vec::<Vec<u8>>::new());
        assert!(wrong.probes() < 10, "{} probes", wrong.probes());
        wrong.stop().await;
    }
    let node = Recorder::start(Kind::Node, port).await;
    tokio::time::timeout(Duration::from_secs(30), async {
        while !is_served(front.public).await {}
    })
    .await
    .expect("the node is found when it is up");
    assert_eq!(node.visits(), [foolscap_request(NAME)]);
}

/// A node that was seen, and whose port is then another's.
#[tokio::test]
async fn a_node_that_became_a_web_server_is_noticed() {
    let node = Recorder::start(Kind::Node, any()).await;
    let port = node.address;
    let (front, _back) = flying(&[(Protocol::Foolscap, NAME, port)]).await;
    let mut visitor = TcpStream::connect(front.public).await.unwrap();
    visitor.write_all(&foolscap_request(NAME)).await.unwrap();
    visitor.read_exact(&mut [0; 12]).await.unwrap();
    node.stop().await;
    let web = Recorder::start(Kind::Web, port).await;
    // The visitor sees its node go, and hangs up. That is enough to make kite look again.
    let _ = visitor.read_to_end(&mut Vec::new()).await;
    drop(visitor);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(!is_served(front.public).await);
    assert_eq!(web.visits(), Vec::<Vec<u8>>::new());
    assert!(web.probes() > 0);
}

#[tokio::test]
async fn visitors_share_a_look_and_what_it_saw() {
    let node = Recorder::start(Kind::Node, any()).await;
    let kite = service(Protocol::Foolscap, NAME, node.address, "right");
    let other = service(
        Protocol::Foolscap,
        "eve.alice.example",
        node.address,
        "right",
    );
    let tls = service(Protocol::TahoeHttps, NAME, node.address, "right");
    let services = [kite.clone(), other.clone(), tls.clone()];
    let watch = Watch::new(&services, Board::default());
    let crowd = (0..50).map(|n| watch.trusts(if n % 2 == 0 { &kite } else { &other }));
    let answers = futures::future::join_all(crowd).await;
    assert!(answers.into_iter().all(|trusted| trusted));
    assert_eq!(node.probes(), 1, "two kites, one origin, one look");
    watch.doubt(&kite);
    assert!(watch.trusts(&other).await);
    assert_eq!(node.probes(), 2, "a connection ended, so another look");
    assert!(watch.trusts(&tls).await, "it is not foolscap's to judge");
    until("they were probes", || node.visits().is_empty()).await;
}
