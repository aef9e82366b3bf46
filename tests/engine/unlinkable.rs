//! What a backend says to one frontend does not link it with what it says to another, but for
//! the kites' names.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::BytesMut;
use kite::backend::{self, Plan};
use kite::config::Frontend as To;
use kite::kite::Protocol;
use kite::observe::board::Board;
use kite::random::random_hex;
use kite::shutdown::{self, Trigger};
use kite::wire::frame::put_kites;
use kite::wire::handshake::{ADD_KITES, KITE_BESIDE, KITE_MUX, Request, put_answer};
use kite::wire::{KiteId, Lines};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::roles::{SWITCHING, dialer, origin, service, until};

/// The words of the protocol, and the settings that are built in.
const EVERY_KITE_SAYS: &[&str] = &[
    "262144",
    "49152",
    "addkites",
    "beside",
    "connect",
    "example",
    "features",
    "frame",
    "http",
    "kiteaway1",
    "kitebeside1",
    "kitefleet1",
    "kitemux1",
    "kitetls1",
    "noop",
    "pagekite",
    "replace",
    "window",
];

/// Everything that was said to a frontend; one entry for each connection that came so far
/// that its kites flew.
type Heard = Arc<Mutex<Vec<Vec<u8>>>>;

/// A frontend that takes everybody, writes down what it is told, and hangs up again and again.
async fn curious() -> (String, Heard) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    let heard: Heard = Arc::default();
    let book = heard.clone();
    tokio::spawn(async move {
        while let Ok((conn, _)) = listener.accept().await {
            tokio::spawn(listen_to(conn, book.clone()));
        }
    });
    (format!("plain://{at}"), heard)
}

async fn listen_to(mut conn: TcpStream, book: Heard) -> std::io::Result<()> {
    let mut said = Vec::new();
    while !said.ends_with(b"\r\n\r\n") {
        said.push(conn.read_u8().await?);
    }
    let asked = Request::parse(&said).unwrap().lines;
    let ids: Vec<KiteId> = asked.services.iter().map(|line| line.kite_id()).collect();
    let challenge = ids
        .iter()
        .map(|id| (id.clone(), format!("t{}", random_hex(35))));
    let mut out = BytesMut::new();
    let answer = Lines {
        features: [ADD_KITES, KITE_MUX, KITE_BESIDE]
            .map(str::to_owned)
            .to_vec(),
        window_kb: Some(1024),
        frame: Some(65_536),
        sign_this: challenge.collect(),
        ..Lines::default()
    };
    put_answer(&mut out, &answer);
    conn.write_all(&out).await?;
    let mut proof = vec![0; 4096];
    let n = conn.read(&mut proof).await?;
    said.extend(&proof[..n]);
    out.clear();
    let verdict = Lines {
        ok: ids,
        session_id: Some(random_hex(40)),
        ..Lines::default()
    };
    put_kites(&mut out, &verdict);
    conn.write_all(&out).await?;
    let more = tokio::time::timeout(Duration::from_millis(700), conn.read_to_end(&mut said));
    let _ = more.await;
    book.lock().unwrap().push(said);
    Ok(())
}

/// A backend that flies one kite at each of these; the kites have one secret.
async fn backend_at(frontends: &[(&str, &str)]) -> Trigger {
    let (origin, _) = origin(SWITCHING).await;
    let to = frontends.iter().map(|(address, name)| To {
        address: address.parse().unwrap(),
        kites: Some(vec![name.parse().unwrap()]),
        tunnels: 2,
        homes: false,
    });
    let services = frontends
        .iter()
        .map(|(_, name)| service(Protocol::Foolscap, name, origin, "one secret for all"));
    let (trigger, order) = shutdown::channel();
    tokio::spawn(backend::run(
        Plan::fixed(to.collect(), services.collect()),
        dialer(),
        Board::default(),
        order,
    ));
    trigger
}

/// The words of three characters and more.
fn words(heard: &Heard) -> BTreeSet<String> {
    let all = heard.lock().unwrap().concat();
    let text = String::from_utf8_lossy(&all);
    text.split(|c: char| !c.is_ascii_alphanumeric())
        .filter(|word| word.len() >= 3)
        .map(str::to_ascii_lowercase)
        .collect()
}

#[tokio::test]
async fn two_frontends_hear_nothing_in_common() {
    let (a, b) = (curious().await, curious().await);
    let _back = backend_at(&[(&a.0, "red.apple.example"), (&b.0, "blue.berry.example")]).await;
    let enough = |heard: &Heard| heard.lock().unwrap().len() >= 4;
    until("each was dialled several times, by both tunnels", || {
        enough(&a.1) && enough(&b.1)
    })
    .await;

    let (at_a, at_b) = (words(&a.1), words(&b.1));
    let links: Vec<&str> = at_a.intersection(&at_b).map(String::as_str).collect();
    assert_eq!(links, EVERY_KITE_SAYS);
    assert!(at_a.contains("apple") && !at_b.contains("apple"));
    // Even one frontend finds nothing twice but the sessions, which it gave out itself.
    assert!(at_a.contains("beside") && at_a.contains("replace"));
}

#[tokio::test]
async fn a_handshake_says_nothing_of_the_machine() {
    let (address, heard) = curious().await;
    let _back = backend_at(&[(&address, "red.apple.example")]).await;
    until("it was dialled", || !heard.lock().unwrap().is_empty()).await;
    let said = heard.lock().unwrap().concat();
    let said = String::from_utf8_lossy(&said).to_ascii_lowercase();
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    for telling in [
        host.trim(),
        std::env::consts::OS,
        std::env::consts::ARCH,
        env!("CARGO_PKG_VERSION"),
        "version",
        "user-agent",
        "date",
    ] {
        assert!(
            !said.contains(&telling.to_ascii_lowercase()),
            "{telling}: {said}"
        );
    }
}
