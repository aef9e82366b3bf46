//! A backend's plan changes while visitors are there: what stays in it is not disturbed.

use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::time::Duration;

use kite::backend::{self, Plan};
use kite::config::{Frontend as To, Service};
use kite::kite::Protocol;
use kite::observe::board::Board;
use kite::shutdown::{self, Trigger};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;

use crate::roles::{
    NAME, SWITCHING, Side, ask, dialer, foolscap_request, frontend, kites, negotiate, origin,
    service, until,
};

const OTHER: &str = "other.alice.example";
const TIMEOUT: Duration = Duration::from_secs(20);

fn to(side: &Side) -> To {
    To {
        address: side.address.parse().unwrap(),
        kites: None,
        tunnels: 2,
        homes: false,
    }
}

fn node(name: &str, origin: SocketAddr) -> Service {
    service(Protocol::Foolscap, name, origin, "right")
}

struct Scene {
    plans: watch::Sender<Plan>,
    board: Board,
    _back: Trigger,
}

/// A backend that has just been given its first plan.
fn scene(frontends: Vec<To>, services: Vec<Service>) -> Scene {
    let plans = watch::Sender::new(Plan {
        frontends,
        services,
    });
    let (back, order) = shutdown::channel();
    let board = Board::default();
    tokio::spawn(backend::run(
        plans.subscribe(),
        dialer(),
        board.clone(),
        order,
    ));
    Scene {
        plans,
        board,
        _back: back,
    }
}

impl Scene {
    fn change(&self, change: impl FnOnce(&mut Plan)) {
        self.plans.send_modify(change);
    }

    /// All tunnels stand, and each flies these many kites.
    async fn flies(&self, number: usize) {
        until("all tunnels fly the kites", || {
            let views = self.board.view();
            !views.is_empty()
                && views
                    .iter()
                    .all(|v| v.state == "up" && v.kites.len() == number)
        })
        .await;
    }
}

async fn visit(front: &Side, name: &str) -> TcpStream {
    negotiate(front.public, name).await
}

/// The other end is still there, and echoes.
async fn echoes(conn: &mut TcpStream) {
    conn.write_all(&[0x17, 3, 3, 0, 1, b'x']).await.unwrap();
    let mut back = [0; 6];
    let reading = conn.read_exact(&mut back);
    tokio::time::timeout(TIMEOUT, reading)
        .await
        .expect("an echo in time")
        .expect("the stream lives");
}

/// The first flight of TLS, without which the gate lets nothing else through.
async fn begin(front: &Side, name: &str) -> TcpStream {
    let mut conn = visit(front, name).await;
    conn.write_all(&[0x16, 3, 1, 0, 1, 1]).await.unwrap();
    let mut back = [0; 6];
    conn.read_exact(&mut back).await.unwrap();
    conn
}

async fn is_cut(conn: &mut TcpStream) {
    let mut rest = Vec::new();
    let reading = conn.read_to_end(&mut rest);
    let end = tokio::time::timeout(TIMEOUT, reading).await;
    end.expect("it ends").ok();
    assert!(rest.is_empty());
}

#[tokio::test]
async fn a_new_kite_flies_on_every_tunnel_and_old_streams_go_on() {
    let front = frontend(&[Protocol::Foolscap]);
    let (first, _) = origin(SWITCHING).await;
    let (second, visitors) = origin(SWITCHING).await;
    let scene = scene(vec![to(&front)], vec![node(NAME, first)]);
    scene.flies(1).await;
    let mut old = [begin(&front, NAME).await, begin(&front, NAME).await];
    scene.change(|plan| plan.services.push(node(OTHER, second)));
    scene.flies(2).await;
    for _ in 0..4 {
        visit(&front, OTHER).await;
        visit(&front, NAME).await;
    }
    assert_eq!(visitors.load(Ordering::SeqCst), 4);
    for conn in &mut old {
        echoes(conn).await;
    }
}

#[tokio::test]
async fn a_kite_that_goes_takes_its_streams_and_no_others() {
    let front = frontend(&[Protocol::Foolscap]);
    let (first, _) = origin(SWITCHING).await;
    let (second, _) = origin(SWITCHING).await;
    let scene = scene(
        vec![to(&front)],
        vec![node(NAME, first), node(OTHER, second)],
    );
    scene.flies(2).await;
    let mut stays = [begin(&front, NAME).await, begin(&front, NAME).await];
    let mut goes = begin(&front, OTHER).await;
    scene.change(|plan| plan.services.truncate(1));
    is_cut(&mut goes).await;
    scene.flies(1).await;
    let refused = ask(front.public, foolscap_request(OTHER)).await;
    assert!(refused.starts_with(b"HTTP/1.1 503 "), "{refused:?}");
    visit(&front, NAME).await;

    // And it may come back, while tunnels that flew it before still finish their streams.
    scene.change(|plan| plan.services.push(node(OTHER, second)));
    scene.flies(2).await;
    for _ in 0..4 {
        visit(&front, OTHER).await;
    }
    for conn in &mut stays {
        echoes(conn).await;
    }
}

#[tokio::test]
async fn another_origin_takes_new_visitors_and_no_new_tunnel() {
    let front = frontend(&[Protocol::Foolscap]);
    let (first, before) = origin(SWITCHING).await;
    let (second, after) = origin(SWITCHING).await;
    let scene = scene(vec![to(&front)], vec![node(NAME, first)]);
    scene.flies(1).await;
    let mut old = begin(&front, NAME).await;
    scene.change(|plan| plan.services = vec![node(NAME, second)]);
    tokio::time::timeout(TIMEOUT, async {
        while after.load(Ordering::SeqCst) == 0 {
            visit(&front, NAME).await;
        }
    })
    .await
    .expect("visitors come to the new origin");
    let known = before.load(Ordering::SeqCst);
    visit(&front, NAME).await;
    assert_eq!(before.load(Ordering::SeqCst), known);
    echoes(&mut old).await;
    assert_eq!(
        kites(&front.handle).len(),
        2,
        "the two tunnels that were there"
    );
}

#[tokio::test]
async fn frontends_come_and_go_and_leave_the_others_alone() {
    let (alice, carol) = (
        frontend(&[Protocol::Foolscap]),
        frontend(&[Protocol::Foolscap]),
    );
    let (node_at, _) = origin(SWITCHING).await;
    let scene = scene(vec![to(&alice)], vec![node(NAME, node_at)]);
    scene.flies(1).await;
    let mut through_alice = begin(&alice, NAME).await;
    scene.change(|plan| plan.frontends.push(to(&carol)));
    until("carol has it, too", || kites(&carol.handle).len() == 2).await;
    visit(&carol, NAME).await;
    scene.change(|plan| plan.frontends.rotate_left(1));
    scene.change(|plan| plan.frontends.truncate(1));
    until("alice has lost it", || kites(&alice.handle).is_empty()).await;
    is_cut(&mut through_alice).await;
    visit(&carol, NAME).await;
    assert_eq!(scene.board.view().len(), 2, "no tunnel of alice's is shown");
}

#[tokio::test]
async fn a_secret_that_is_put_right_flies_at_once() {
    let front = frontend(&[Protocol::Foolscap]);
    let (node_at, _) = origin(SWITCHING).await;
    let wrong = service(Protocol::Foolscap, NAME, node_at, "wrong");
    let scene = scene(vec![to(&front)], vec![wrong]);
    until("it is refused, and waits", || {
        scene.board.view().iter().any(|v| v.state == "waiting")
    })
    .await;
    scene.change(|plan| plan.services = vec![node(NAME, node_at)]);
    scene.flies(1).await;
    visit(&front, NAME).await;
}
