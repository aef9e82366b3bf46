//! Ends that were asked for: who is there may finish, and nobody else comes in.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use kite::backend::{self, Plan};
use kite::config::{Frontend as To, FrontendConfig, ProofRule};
use kite::kite::Protocol;
use kite::observe::board::Board;
use kite::shutdown::{self, Trigger};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

use crate::roles::{
    NAME, SWITCHING, Side, any, ask, dialer, foolscap_request, frontend_config, kites, negotiate,
    origin, service, start, until,
};

/// Far longer than any test takes.
const LONG: Duration = Duration::from_secs(300);

/// A backend that has so much time to end.
fn backend_within(
    drain: Duration,
    address: &str,
    origin: SocketAddr,
    tunnels: u8,
) -> (Trigger, JoinHandle<()>) {
    let (trigger, order) = shutdown::channel();
    let to = To {
        address: address.parse().unwrap(),
        kites: None,
        tunnels,
        homes: false,
    };
    let service = service(Protocol::Foolscap, NAME, origin, "right");
    let plan = Plan::fixed(vec![to], vec![service]);
    let running = backend::run(plan, dialer(), Board::default(), order.within(drain));
    (trigger, tokio::spawn(running))
}

/// A frontend that gives what runs so much time.
fn frontend_within(drain: Duration, state: &Path, listen: SocketAddr) -> Side {
    let protocols = [Protocol::Foolscap];
    let config = frontend_config(state, listen, &protocols, ProofRule::Optional);
    start(FrontendConfig { drain, ..config })
}

/// A visitor who is past the gate.
async fn inside(public: SocketAddr) -> TcpStream {
    let mut conn = negotiate(public, NAME).await;
    assert!(echoes(&mut conn).await);
    conn
}

/// Whether the other end is still there.
async fn echoes(conn: &mut TcpStream) -> bool {
    let record = [0x16, 3, 1, 0, 1, 1];
    let mut back = [0; 6];
    conn.write_all(&record).await.is_ok()
        && conn.read_exact(&mut back).await.is_ok()
        && back == record
}

async fn ends(what: &str, task: impl Future) {
    let ended = tokio::time::timeout(Duration::from_secs(20), task).await;
    ended.unwrap_or_else(|_| panic!("it does not end: {what}"));
}

/// The next one stands in for a new process: it has the key, and the port. Both of the backend's tunnels go there while the
/// old one waits for its visitor.
#[tokio::test]
async fn the_backends_of_a_frontend_that_stops_go_to_the_next_and_its_visitors_stay() {
    let state = tempfile::tempdir().unwrap();
    let (origin, _) = origin(SWITCHING).await;
    let old = frontend_within(LONG, state.path(), any());
    let (_back, _) = backend_within(LONG, &old.address, origin, 2);
    until("both tunnels stand", || kites(&old.handle).len() == 2).await;
    let mut visitor = inside(old.public).await;

    let (public, handle) = (old.public, old.handle.clone());
    let stopping = tokio::spawn(old.stop());
    let new = tokio::time::timeout(Duration::from_secs(20), async {
        loop {
            let free = tokio::net::TcpListener::bind(public).await;
            if free.is_ok() {
                drop(free);
                break frontend_within(LONG, state.path(), public);
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    let new = new.await.expect("the old one lets go of its port");
    until("both tunnels stand at the next", || {
        kites(&new.handle).len() == 2
    })
    .await;
    assert!(!handle.tunnels().is_empty(), "the old one waits");
    inside(new.public).await;
    assert!(echoes(&mut visitor).await);
    assert!(!stopping.is_finished());
    drop(visitor);
    ends("the old frontend", stopping).await;
    inside(new.public).await;
}

#[tokio::test]
async fn a_backend_that_stops_gets_no_more_visitors_and_finishes_with_those_it_has() {
    let state = tempfile::tempdir().unwrap();
    let (origin, _) = origin(SWITCHING).await;
    let front = frontend_within(LONG, state.path(), any());
    let (trigger, running) = backend_within(LONG, &front.address, origin, 1);
    until("it flies", || kites(&front.handle).len() == 1).await;
    let mut visitor = inside(front.public).await;
    trigger.stop();
    until("it flies no more", || kites(&front.handle).is_empty()).await;
    let answer = ask(front.public, foolscap_request(NAME)).await;
    assert!(answer.starts_with(b"HTTP/1.1 503"), "{answer:?}");
    assert!(echoes(&mut visitor).await);
    assert!(!running.is_finished());
    drop(visitor);
    ends("the backend", running).await;
    front.stop().await;
}

#[tokio::test]
async fn who_does_not_leave_in_time_is_put_out() {
    let state = tempfile::tempdir().unwrap();
    let (origin, _) = origin(SWITCHING).await;
    let short = Duration::from_millis(200);
    let front = frontend_within(short, state.path(), any());
    let (trigger, running) = backend_within(short, &front.address, origin, 1);
    until("it flies", || kites(&front.handle).len() == 1).await;
    let mut visitor = inside(front.public).await;
    trigger.stop();
    ends("the backend", running).await;
    let mut rest = Vec::new();
    ends("the visit", visitor.read_to_end(&mut rest)).await;
    assert!(rest.is_empty());

    let (_back, _) = backend_within(LONG, &front.address, origin, 1);
    until("it flies again", || kites(&front.handle).len() == 1).await;
    let mut visitor = inside(front.public).await;
    ends("the frontend", front.stop()).await;
    ends("the visit", visitor.read_to_end(&mut rest)).await;
}
