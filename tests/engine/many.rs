//! More kites in one tunnel than its handshake has room for: the rest is asked for once it stands.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use kite::backend::{self, Plan};
use kite::config::{Frontend as To, Service};
use kite::kite::Protocol;
use kite::observe::board::Board;
use kite::shutdown::{self, Trigger};
use kite::wire::Lines;
use kite::wire::handshake::{ADD_KITES, Request, put_answer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::roles::{any, dialer, frontend_for, kites, origin, service, until};

const MANY: usize = 200;

fn name(n: usize) -> String {
    format!("k{n}.alice.example")
}

/// That many, all with one origin. The frontend does not know those that are `strange`.
fn services(origin: SocketAddr, strange: impl Fn(usize) -> bool) -> Vec<Service> {
    let name = |n| match strange(n) {
        true => format!("k{n}.bob.example"),
        false => name(n),
    };
    let one = |n| service(Protocol::Http, &name(n), origin, "right");
    (0..MANY).map(one).collect()
}

fn fly(address: &str, tunnels: u8, services: Vec<Service>) -> (Board, Trigger) {
    let (trigger, order) = shutdown::channel();
    let to = To {
        address: address.parse().unwrap(),
        kites: None,
        tunnels,
        homes: false,
    };
    let board = Board::default();
    let plan = Plan::fixed(vec![to], services);
    tokio::spawn(backend::run(plan, dialer(), board.clone(), order));
    (board, trigger)
}

async fn is_reached(front: SocketAddr, n: usize) -> bool {
    let request = format!("GET / HTTP/1.0\r\nHost: {}\r\n\r\n", name(n));
    // The origin gives back what it is asked, when that has ended.
    let mut conn = tokio::net::TcpStream::connect(front).await.unwrap();
    conn.write_all(request.as_bytes()).await.unwrap();
    conn.shutdown().await.unwrap();
    let mut got = Vec::new();
    let _ = conn.read_to_end(&mut got).await;
    got == request.as_bytes()
}

#[tokio::test]
async fn two_hundred_kites_fly_in_one_tunnel() {
    let front = frontend_for("*.alice.example", "right", &[Protocol::Http]);
    let (origin, _) = origin(b"").await;
    let (board, _back) = fly(&front.address, 1, services(origin, |_| false));
    until("all fly", || kites(&front.handle).len() == MANY).await;
    assert_eq!(front.handle.tunnels().len(), 1);
    for n in [0, 31, 32, 63, 64, MANY - 1] {
        assert!(is_reached(front.public, n).await, "{}", name(n));
    }
    until("the backend knows", || board.view()[0].kites.len() == MANY).await;
}

#[tokio::test]
async fn so_do_those_of_two_tunnels_and_the_first_to_come_finds_its_kite() {
    let front = frontend_for("*.alice.example", "right", &[Protocol::Http]);
    let (origin, _) = origin(b"").await;
    let (_board, _back) = fly(&front.address, 2, services(origin, |_| false));
    let last = name(MANY - 1);
    until("the last flies", || {
        kites(&front.handle)
            .iter()
            .any(|kite| kite.ends_with(&last))
    })
    .await;
    assert!(is_reached(front.public, MANY - 1).await);
    until("all fly twice", || kites(&front.handle).len() == 2 * MANY).await;
}

#[tokio::test]
async fn those_that_are_refused_cost_the_others_nothing() {
    let front = frontend_for("*.alice.example", "right", &[Protocol::Http]);
    let (origin, _) = origin(b"").await;
    // All that one frame asks for, and one more; and all of the first handshake but one.
    let wrong = |n| (1..32).contains(&n) || (64..97).contains(&n);
    let (board, _back) = fly(&front.address, 1, services(origin, wrong));
    let good = (0..MANY).filter(|n| !wrong(*n)).count();
    until("the others fly", || kites(&front.handle).len() == good).await;
    until("it is said", || {
        let troubles = board.troubles();
        troubles
            .iter()
            .any(|t| t.what.contains("the frontend does not know this name"))
    })
    .await;
    assert!(is_reached(front.public, MANY - 1).await);
    assert!(!is_reached(front.public, 96).await);
    assert_eq!(front.handle.tunnels().len(), 1);
}

#[tokio::test]
async fn if_all_of_the_first_are_refused_others_are_first_the_next_time() {
    let front = frontend_for("*.alice.example", "right", &[Protocol::Http]);
    let (origin, _) = origin(b"").await;
    let (_board, _back) = fly(&front.address, 1, services(origin, |n| n < 32));
    until("the others fly", || kites(&front.handle).len() == MANY - 32).await;
}

/// A frontend that says OK to all that it is asked, and knows no more than its first programs did.
async fn old_frontend(asked: Arc<AtomicUsize>) -> SocketAddr {
    let listener = TcpListener::bind(any()).await.unwrap();
    let at = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut conn, _)) = listener.accept().await {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(conn.read_u8().await.unwrap());
            }
            let request = Request::parse(&head).unwrap();
            assert!(request.lines.has_feature(ADD_KITES));
            let ids = request.lines.services.iter().map(|line| line.kite_id());
            let answer = Lines {
                ok: ids.collect(),
                ..Lines::default()
            };
            asked.store(answer.ok.len(), Ordering::SeqCst);
            let mut out = bytes::BytesMut::new();
            put_answer(&mut out, &answer);
            conn.write_all(&out).await.unwrap();
            tokio::spawn(async move {
                let mut rest = Vec::new();
                let _ = conn.read_to_end(&mut rest).await;
            });
        }
    });
    at
}

#[tokio::test]
async fn a_frontend_that_takes_no_more_is_asked_for_no_more_and_that_is_said() {
    let asked = Arc::new(AtomicUsize::new(0));
    let old = old_frontend(asked.clone()).await;
    let (origin, _) = origin(b"").await;
    let (board, _back) = fly(&format!("plain://{old}"), 1, services(origin, |_| false));
    until("some fly", || {
        board
            .view()
            .first()
            .is_some_and(|v| v.kites.len() == asked.load(Ordering::SeqCst) && !v.kites.is_empty())
    })
    .await;
    assert_eq!(asked.load(Ordering::SeqCst), backend::MAX_ASKED);
    let troubles = board.troubles();
    let of_last = troubles.iter().find(|t| t.what.contains(&name(MANY - 1)));
    let what = &of_last.expect("the last is named").what;
    assert!(
        what.contains("takes no kites into a tunnel that stands"),
        "{what}"
    );
}
