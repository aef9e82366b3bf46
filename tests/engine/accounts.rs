//! Quotas, limits and the book, with real sockets: who is over a limit is refused aloud, and a kite that
//! ends takes no other with it.

use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use kite::backend::{self, Plan};
use kite::cli::{AddArgs, KitesArgs, KitesCommand};
use kite::clock::now_unix;
use kite::config::{Frontend as To, FrontendConfig, Grant, ProofRule};
use kite::frontend::book::Entry;
use kite::frontend::kites::{self, Answer, Order};
use kite::frontend::limits::{Limits, Size};
use kite::kite::Protocol;
use kite::observe::board::Board;
use kite::shutdown::{self, Trigger};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::roles::{
    self, Side, any, ask, dialer, frontend_config, kites as flying_kites, origin, secret, service,
    until,
};

const BOB: &str = "bob.alice.example";
const EVE: &str = "eve.alice.example";
/// A grant that ends takes its kites down within this.
const SOON: Duration = Duration::from_secs(5);

fn grant(name: &str, limits: Limits) -> Grant {
    Grant {
        pattern: name.parse().unwrap(),
        protocols: [Protocol::Http, Protocol::Https].into(),
        secret: secret(name),
        proof: ProofRule::Optional,
        limits,
        expires: None,
        backends: 1,
    }
}

fn quota(bytes: u64) -> Limits {
    Limits {
        quota: Some(Size(bytes)),
        ..Limits::default()
    }
}

fn start(state: &Path, kites: Vec<Grant>) -> Side {
    roles::start(FrontendConfig {
        kites,
        ..frontend_config(state, any(), &[], ProofRule::Optional)
    })
}

/// A backend of these kites, each with its name for a secret; one tunnel for all.
fn fly(front: &Side, names: &[&str], origin: SocketAddr) -> (Board, Trigger) {
    let (trigger, order) = shutdown::channel();
    let to = To {
        address: front.address.parse().unwrap(),
        kites: None,
        tunnels: 1,
        homes: false,
    };
    let services = names
        .iter()
        .map(|name| service(Protocol::Http, name, origin, name));
    let plan = Plan::fixed(vec![to], services.collect());
    let board = Board::default();
    tokio::spawn(backend::run(plan, dialer(), board.clone(), order));
    (board, trigger)
}

async fn all_fly(front: &Side, number: usize) {
    until("the kites fly", || {
        flying_kites(&front.handle).len() == number
    })
    .await;
}

fn head(name: &str) -> String {
    format!("GET / HTTP/1.1\r\nHost: {name}\r\n\r\n")
}

/// A visitor whose request has been echoed.
async fn visit(front: &Side, name: &str) -> TcpStream {
    let mut conn = TcpStream::connect(front.public).await.unwrap();
    conn.write_all(head(name).as_bytes()).await.unwrap();
    let mut echo = vec![0; head(name).len()];
    tokio::time::timeout(SOON, conn.read_exact(&mut echo))
        .await
        .expect("an echo in time")
        .expect("the whole echo");
    conn
}

async fn status(front: &Side, name: &str) -> String {
    let answer = ask(front.public, head(name)).await;
    String::from_utf8_lossy(&answer).chars().take(12).collect()
}

#[tokio::test]
async fn a_used_up_quota_ends_its_kite_and_no_other() {
    let state = tempfile::tempdir().unwrap();
    let (origin, _) = origin(b"").await;
    let grants = || vec![grant(BOB, quota(300_000)), grant(EVE, Limits::default())];
    let front = start(state.path(), grants());
    let (board, back) = fly(&front, &[BOB, EVE], origin);
    all_fly(&front, 2).await;
    let mut other = visit(&front, EVE).await;
    // Nothing passes there: it must be ended all the same.
    let mut silent = visit(&front, BOB).await;
    let mut greedy = visit(&front, BOB).await;

    let begun = Instant::now();
    let mut moved = 0;
    let piece = vec![b'x'; 20_000];
    let mut echo = vec![0; piece.len()];
    while moved < 1_000_000 {
        if greedy.write_all(&piece).await.is_err() || greedy.read_exact(&mut echo).await.is_err() {
            break;
        }
        moved += 2 * piece.len();
    }
    assert!((200_000..400_000).contains(&moved), "{moved} bytes passed");
    let end = tokio::time::timeout(SOON, silent.read(&mut echo)).await;
    assert!(matches!(end, Ok(Ok(0) | Err(_))), "{end:?}");
    until("the kite comes down", || {
        flying_kites(&front.handle) == ["http:eve.alice.example"]
    })
    .await;
    assert!(begun.elapsed() < SOON);
    assert_eq!(status(&front, BOB).await, "HTTP/1.1 503");
    other.write_all(b"still there?").await.unwrap();
    other.read_exact(&mut echo[..12]).await.unwrap();
    assert_eq!(&echo[..12], b"still there?");
    until("the backend knows", || {
        let view = board.view().remove(0);
        view.kites == ["http:eve.alice.example"]
            && view.last_error.is_some_and(|e| e.contains("quota"))
    })
    .await;

    // What was used is used after a restart, too.
    drop(back);
    drop((other, silent, greedy));
    front.stop().await;
    let front = start(state.path(), grants());
    let (board, _back) = fly(&front, &[BOB], origin);
    until("it is refused", || {
        let view = board.view();
        view.first()
            .and_then(|v| v.last_error.clone())
            .is_some_and(|e| e.contains("kites-refused"))
    })
    .await;
    assert!(flying_kites(&front.handle).is_empty());
}

#[tokio::test]
async fn an_expired_kite_comes_down_and_its_empty_tunnel_is_closed() {
    let state = tempfile::tempdir().unwrap();
    let (origin, _) = origin(b"").await;
    let expires = now_unix() + 3;
    let bob = Grant {
        expires: Some(expires),
        ..grant(BOB, Limits::default())
    };
    let front = start(state.path(), vec![bob]);
    let (board, _back) = fly(&front, &[BOB], origin);
    all_fly(&front, 1).await;
    let mut visitor = visit(&front, BOB).await;
    until("it comes down", || flying_kites(&front.handle).is_empty()).await;
    assert!(now_unix() < expires + SOON.as_secs());
    let end = tokio::time::timeout(SOON, visitor.read(&mut [0; 1])).await;
    assert!(matches!(end, Ok(Ok(0) | Err(_))), "{end:?}");
    // It tries again, and hears why.
    until("the backend is refused", || {
        let error = board.view().remove(0).last_error;
        error.is_some_and(|e| e.contains("kites-refused"))
    })
    .await;
}

#[tokio::test]
async fn visitors_over_a_limit_are_refused_aloud() {
    let state = tempfile::tempdir().unwrap();
    let (origin, _) = origin(b"").await;
    let limits = Limits {
        streams: Some(2),
        ..Limits::default()
    };
    let front = start(
        state.path(),
        vec![grant(BOB, limits), grant(EVE, Limits::default())],
    );
    let (_board, _back) = fly(&front, &[BOB, EVE], origin);
    all_fly(&front, 2).await;
    let first = visit(&front, BOB).await;
    let second = visit(&front, BOB).await;
    assert_eq!(status(&front, BOB).await, "HTTP/1.1 429");
    let connect = format!("CONNECT {BOB}:80 HTTP/1.1\r\n\r\n");
    let refused = ask(front.public, connect).await;
    assert!(refused.starts_with(b"HTTP/1.1 429"), "{refused:?}");
    let sums = front.handle.ledger().sums();
    let refusals = |name: &str| {
        let kite = Some(format!("http:{name}"));
        let of = sums.iter().find(|(of, _)| of.kite == kite);
        of.map(|(_, sum)| sum.refusals()).unwrap_or_default()
    };
    assert_eq!(refusals(BOB), [("limit-streams".to_owned(), 2)].into());
    assert!(refusals(EVE).is_empty());
    drop(visit(&front, EVE).await);
    drop(first);
    let begun = Instant::now();
    loop {
        let mut conn = TcpStream::connect(front.public).await.unwrap();
        conn.write_all(head(BOB).as_bytes()).await.unwrap();
        let mut echo = [0; 4];
        conn.read_exact(&mut echo).await.unwrap();
        if &echo == b"GET " {
            break;
        }
        assert!(begun.elapsed() < SOON, "who has left makes room");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    drop(second);
}

#[tokio::test]
async fn kites_come_and_go_while_the_frontend_runs() {
    let state = tempfile::tempdir().unwrap();
    let (origin, _) = origin(b"").await;
    let front = start(state.path(), vec![grant(EVE, Limits::default())]);
    let (_board, _back) = fly(&front, &[BOB, EVE], origin);
    all_fly(&front, 1).await;

    let order = |grant: &Grant| Order::Add {
        name: grant.pattern.to_string(),
        entry: Entry::new(grant),
    };
    let bob = grant(BOB, Limits::default());
    assert!(matches!(
        front.handle.kites(order(&bob)).await,
        Answer::Done
    ));
    let again = front.handle.kites(order(&bob)).await;
    assert!(matches!(again, Answer::Refused(why) if why.contains("in the book already")));
    let configured = front
        .handle
        .kites(order(&grant(EVE, Limits::default())))
        .await;
    assert!(matches!(configured, Answer::Refused(why) if why.contains("configuration")));
    let (_board, second) = fly(&front, &[BOB], origin);
    all_fly(&front, 2).await;
    let mut there = visit(&front, BOB).await;
    let mut other = visit(&front, EVE).await;

    // The command finds no control socket here, and the book in use.
    let command = KitesArgs {
        config: None,
        state_dir: Some(state.path().to_path_buf()),
        command: KitesCommand::Add(Box::new(AddArgs {
            name: "carol.alice.example".into(),
            ..AddArgs::default()
        })),
    };
    let alone = kites::run(&command, &mut std::io::sink(), &mut std::io::sink()).await;
    assert!(alone.is_err_and(|e| e.to_string().contains("another kite")));

    let Answer::All(all) = front.handle.kites(Order::List).await else {
        panic!("no list")
    };
    let names: Vec<_> = all
        .iter()
        .map(|k| (k.name.as_str(), k.configured))
        .collect();
    assert_eq!(names, [(BOB, false), (EVE, true)]);
    let text = serde_json::to_string(&all).unwrap();
    assert!(!text.contains("secret"), "{text}");

    let name = BOB.to_owned();
    let gone = front.handle.kites(Order::Remove { name }).await;
    assert!(matches!(gone, Answer::Done));
    assert_eq!(flying_kites(&front.handle), ["http:eve.alice.example"]);
    let end = tokio::time::timeout(SOON, there.read(&mut [0; 1])).await;
    assert!(matches!(end, Ok(Ok(0) | Err(_))), "{end:?}");
    other.write_all(b"x").await.unwrap();
    other.read_exact(&mut [0; 1]).await.unwrap();
    drop(second);
    front.stop().await;

    // With nobody there the same command does it by itself.
    kites::run(&command, &mut std::io::sink(), &mut std::io::sink())
        .await
        .unwrap();
    let mut listed = Vec::new();
    let list = KitesArgs {
        command: KitesCommand::List { json: false },
        ..command
    };
    kites::run(&list, &mut listed, &mut std::io::sink())
        .await
        .unwrap();
    let listed = String::from_utf8(listed).unwrap();
    assert!(
        listed.starts_with("carol.alice.example; foolscap;"),
        "{listed}"
    );
    assert_eq!(listed.lines().count(), 1, "{listed}");
}

#[tokio::test]
async fn wrong_secrets_take_no_kite_down() {
    let state = tempfile::tempdir().unwrap();
    let (origin, _) = origin(b"").await;
    let front = start(state.path(), vec![grant(BOB, Limits::default())]);
    let (_board, _back) = fly(&front, &[BOB], origin);
    all_fly(&front, 1).await;
    let mut visitor = visit(&front, BOB).await;
    let mut boards = Vec::new();
    let mut triggers = Vec::new();
    for _ in 0..12 {
        let (trigger, order) = shutdown::channel();
        let to = To {
            address: front.address.parse().unwrap(),
            kites: None,
            tunnels: 1,
            homes: false,
        };
        let wrong = service(Protocol::Http, BOB, origin, "wrong");
        let board = Board::default();
        let plan = Plan::fixed(vec![to], vec![wrong]);
        tokio::spawn(backend::run(plan, dialer(), board.clone(), order));
        boards.push(board);
        triggers.push(trigger);
    }
    until("all are refused", || {
        boards.iter().all(|board| {
            let view = board.view();
            view.first().is_some_and(|v| v.last_error.is_some())
        })
    })
    .await;
    visitor.write_all(b"x").await.unwrap();
    visitor.read_exact(&mut [0; 1]).await.unwrap();
    assert_eq!(flying_kites(&front.handle).len(), 1);
}
