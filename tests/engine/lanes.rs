//! Two tunnels to one frontend: what one loses the other carries, and a failing one is
//! replaced before it is given up.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use kite::backend::{self, Plan};
use kite::config::Frontend as To;
use kite::dial::{BoxConn, DialError, Dialer, Dialled, FrontendAddr, Goal, Lane};
use kite::kite::Protocol;
use kite::observe::board::Board;
use kite::shutdown::{self, Trigger};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;

use crate::roles::{
    NAME, SWITCHING, Side, dialer, frontend, kites, negotiate, origin, service, until,
};

/// A way to the frontend that can be long, fall silent, or be cut.
#[derive(Default)]
pub struct Way {
    /// What each direction takes, in milliseconds.
    pub delay: AtomicU64,
    pub silent: AtomicBool,
    pub cut: Notify,
}

/// Forwards to the frontend; one [`Way`] for each connection, in their order.
pub async fn relay(to: SocketAddr) -> (SocketAddr, Arc<Mutex<Vec<Arc<Way>>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    let ways = Arc::new(Mutex::new(Vec::new()));
    let known = ways.clone();
    tokio::spawn(async move {
        while let Ok((near, _)) = listener.accept().await {
            let way = Arc::new(Way::default());
            known.lock().unwrap().push(way.clone());
            let far = TcpStream::connect(to).await.unwrap();
            tokio::spawn(async move {
                let (mut near_in, mut near_out) = near.into_split();
                let (mut far_in, mut far_out) = far.into_split();
                let up = pump(&way, &mut near_in, &mut far_out);
                let down = pump(&way, &mut far_in, &mut near_out);
                tokio::select! {
                    () = up => {}
                    () = down => {}
                    () = way.cut.notified() => {}
                }
            });
        }
    });
    (at, ways)
}

async fn pump(
    way: &Way,
    from: &mut (impl AsyncReadExt + Unpin),
    to: &mut (impl AsyncWriteExt + Unpin),
) {
    let mut buf = vec![0; 16 * 1024];
    while let Ok(n @ 1..) = from.read(&mut buf).await {
        if way.silent.load(Ordering::SeqCst) {
            std::future::pending::<()>().await;
        }
        tokio::time::sleep(Duration::from_millis(way.delay.load(Ordering::SeqCst))).await;
        if to.write_all(&buf[..n]).await.is_err() {
            return;
        }
    }
}

/// Direct, and remembers which ways were given up.
struct Watched {
    inner: Arc<dyn Dialer>,
    left: Arc<Mutex<Vec<Lane>>>,
}

#[async_trait]
impl Dialer for Watched {
    async fn dial(&self, to: &FrontendAddr, lane: Lane) -> Result<Dialled, DialError> {
        self.inner.dial(to, lane).await
    }

    async fn visit(&self, goal: Goal<'_>, port: u16) -> Result<BoxConn, DialError> {
        self.inner.visit(goal, port).await
    }

    fn leave(&self, _: &FrontendAddr, lane: Lane) {
        self.left.lock().unwrap().push(lane);
    }

    fn describe(&self) -> &'static str {
        "direct"
    }
}

struct Scene {
    front: Side,
    ways: Arc<Mutex<Vec<Arc<Way>>>>,
    left: Arc<Mutex<Vec<Lane>>>,
    board: Board,
    _back: Trigger,
}

/// A frontend and a backend with two tunnels to it.
async fn scene() -> Scene {
    let front = frontend(&[Protocol::Foolscap]);
    let (origin, _) = origin(SWITCHING).await;
    let (at, ways) = relay(front.public).await;
    let pin = front.address.split_once('#').unwrap().1;
    let to = To {
        address: format!("{at}#{pin}").parse().unwrap(),
        kites: None,
        tunnels: 2,
        homes: false,
    };
    let left = Arc::default();
    let dialer = Watched {
        inner: dialer(),
        left: Arc::clone(&left),
    };
    let (back, order) = shutdown::channel();
    let board = Board::default();
    let services = vec![service(Protocol::Foolscap, NAME, origin, "right")];
    tokio::spawn(backend::run(
        Plan::fixed(vec![to], services),
        Arc::new(dialer),
        board.clone(),
        order,
    ));
    until("two tunnels stand", || kites(&front.handle).len() == 2).await;
    Scene {
        front,
        ways,
        left,
        board,
        _back: back,
    }
}

impl Scene {
    fn way(&self, n: usize) -> Arc<Way> {
        self.ways.lock().unwrap()[n].clone()
    }

    fn ways(&self) -> usize {
        self.ways.lock().unwrap().len()
    }

    /// A visitor negotiates; the connection, and how long that took.
    async fn visit(&self) -> (TcpStream, Duration) {
        let began = Instant::now();
        let conn = negotiate(self.front.public, NAME).await;
        (conn, began.elapsed())
    }
}

#[tokio::test]
async fn a_frontend_takes_two_tunnels_of_one_kite_and_uses_both() {
    let scene = scene().await;
    assert_eq!(scene.board.view().len(), 2);
    // The frontend may know of it sooner than the backend.
    until("the backend's side stands, too", || {
        let mut views = scene.board.view().into_iter();
        views.all(|v| v.state == "up" && v.kites.len() == 1)
    })
    .await;
    let _kept = [scene.visit().await, scene.visit().await];
    until("each carries one visitor", || {
        scene.board.view().iter().all(|v| v.streams == 1)
    })
    .await;
}

#[tokio::test]
async fn a_lost_circuit_loses_no_new_visitor() {
    let scene = scene().await;
    for round in 0..3 {
        scene.way(scene.ways() - 2).cut.notify_one();
        // Also the visitor who comes before anybody has noticed.
        for _ in 0..4 {
            scene.visit().await;
        }
        until("both tunnels are back", || {
            scene.board.view().iter().all(|v| v.state == "up") && scene.ways() == 3 + round
        })
        .await;
    }
}

#[tokio::test]
async fn a_silent_circuit_is_replaced_before_it_is_given_up() {
    let scene = scene().await;
    let _kept = scene.visit().await;
    scene.way(0).silent.store(true, Ordering::SeqCst);
    let silenced = Instant::now();
    // The second may be the one that carries nothing; its visitors are moved.
    let (a, b) = tokio::join!(scene.visit(), scene.visit());
    drop((a, b));
    until("another tunnel is made", || scene.ways() == 3).await;
    assert!(
        silenced.elapsed() < Duration::from_secs(25),
        "not by giving the silent one up: that takes longer"
    );
    assert_eq!(*scene.left.lock().unwrap(), [Lane(0)], "by another circuit");
    until("the board shows it", || {
        scene.board.view().iter().all(|v| v.state == "up")
    })
    .await;
    let took = scene.visit().await.1;
    assert!(
        took < Duration::from_secs(5),
        "no visitor goes there: {took:?}"
    );
}

#[tokio::test]
async fn one_who_knows_no_session_gets_no_place_beside_it() {
    let scene = scene().await;
    let (trigger, order) = shutdown::channel();
    let (other, visitors) = origin(SWITCHING).await;
    let to = To {
        address: scene.front.address.parse().unwrap(),
        kites: None,
        tunnels: 2,
        homes: false,
    };
    let board = Board::default();
    let services = vec![service(Protocol::Foolscap, NAME, other, "right")];
    tokio::spawn(backend::run(
        Plan::fixed(vec![to], services),
        dialer(),
        board.clone(),
        order,
    ));
    until("it is refused", || {
        board.view().iter().any(|v| v.last_error.is_some())
    })
    .await;
    assert_eq!(kites(&scene.front.handle).len(), 2);
    for _ in 0..4 {
        scene.visit().await;
    }
    assert_eq!(visitors.load(Ordering::SeqCst), 0);
    drop(trigger);
}
