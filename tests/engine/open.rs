//! Kites of strangers: called by their nodes' tubs, flown by whoever proves that, and by nobody else.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use kite::backend::{self, Plan};
use kite::config::{Frontend as To, FrontendConfig, Listen, Open, OpenProof, ProvenBy, Service};
use kite::dial::{BoxConn, Lane};
use kite::frontend::book::Entry;
use kite::frontend::kites::{Answer, Order};
use kite::frontend::limits::Limits;
use kite::kite::{Protocol, Secret};
use kite::observe::board::Board;
use kite::shutdown::{self, Trigger};
use kite::sniff::TubId;
use kite::tub::TubKey;
use kite::visit;
use kite::wire::Binding;
use kite::wire::handshake::{
    BackendHandshake, By, HandshakeError, Options, ProofPolicy, RefusalKind, Step, TubSigner,
    Verdict, Wanted,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::attacks::{read_frame, read_head, send_frame};
use crate::roles::{self, Side, any, ask, config_of, dialer, grant, kites, secret, service, until};
use crate::witness::node_with_key;

const DOMAIN: &str = "alice.example";

fn open(proof: OpenProof, most: u32) -> Open {
    Open {
        domain: DOMAIN.parse().unwrap(),
        proof,
        kites: most,
        per_address: 64,
        limits: Limits::default(),
    }
}

fn frontend(proof: OpenProof, most: u32) -> (Side, tempfile::TempDir) {
    let state = tempfile::tempdir().unwrap();
    let grants = vec![grant("*.alice.example", &[Protocol::Foolscap])];
    let front = roles::start(FrontendConfig {
        open: Some(open(proof, most)),
        ..config_of(
            state.path(),
            vec![Listen::at(any()), Listen::at(any())],
            grants,
        )
    });
    (front, state)
}

fn name(tub: TubId) -> String {
    format!("{}.{DOMAIN}", tub.as_str())
}

/// A kite of this name, with the node at `origin` behind it, that shows this key, or none.
fn tub_kite(tub: TubId, origin: SocketAddr, pem: Option<&str>) -> Service {
    Service {
        secret: match pem {
            Some(pem) => Secret::key(pem.as_bytes()).unwrap(),
            None => secret("of no use"),
        },
        by: match pem {
            Some(_) => ProvenBy::TubKey,
            None => ProvenBy::Node,
        },
        ..service(Protocol::Foolscap, &name(tub), origin, "x")
    }
}

fn to(front: &Side) -> To {
    To {
        address: front.address.parse().unwrap(),
        kites: None,
        tunnels: 1,
        homes: false,
    }
}

fn fly(front: &Side, kite: Service) -> (Board, Trigger) {
    fly_all(front, vec![kite])
}

fn fly_all(front: &Side, kites: Vec<Service>) -> (Board, Trigger) {
    let (trigger, order) = shutdown::channel();
    let board = Board::default();
    let plan = Plan::fixed(vec![to(front)], kites);
    tokio::spawn(backend::run(plan, dialer(), board.clone(), order));
    (board, trigger)
}

async fn flies(front: &Side, tub: TubId) {
    let kite = format!("http:{}", name(tub));
    until("it flies", || kites(&front.handle).contains(&kite)).await;
}

/// Until the backend was told why not.
async fn refused(board: &Board, why: &str) {
    let said = || format!("{:?}", board.troubles());
    until(&format!("it is refused: {why}"), || said().contains(why)).await;
}

/// Does a visitor of this kite come to its tub?
async fn reached(front: &Side, tub: TubId) -> bool {
    let mut conn = TcpStream::connect(front.public).await.unwrap();
    let host = name(tub).parse().unwrap();
    match visit::ask(&mut conn, &host, tub).await {
        Ok(_) => visit::secure(conn, tub).await.is_ok(),
        Err(_) => false,
    }
}

#[tokio::test]
async fn a_node_flies_by_its_tub_alone() {
    let (node, tub, pem) = node_with_key().await;
    let (front, _state) = frontend(OpenProof::Key, 9);
    let (_, back) = fly(&front, tub_kite(tub, node, Some(&pem)));
    flies(&front, tub).await;
    assert!(reached(&front, tub).await);
    // Storage alone, and for this tub alone, whatever the frontend carries else.
    let page = format!("GET / HTTP/1.1\r\nHost: {}\r\n\r\n", name(tub));
    assert!(ask(front.public, page).await.starts_with(b"HTTP/1.1 403 "));
    let other = roles::foolscap_request(&name(tub));
    assert!(ask(front.public, other).await.starts_with(b"HTTP/1.1 404 "));
    let early = [&visit_request(tub)[..], b"x"].concat();
    assert!(ask(front.public, early).await.is_empty());
    // A second tunnel does not take it from the first.
    let (rival, _rival) = fly(&front, tub_kite(tub, node, Some(&pem)));
    refused(&rival, "another tunnel flies this kite").await;
    // A dead tunnel's name is free at once.
    back.stop();
    flies(&front, tub).await;
    until("the rival has it", || up(&rival)).await;
    assert!(reached(&front, tub).await);
}

/// Does a kite fly, as its backend knows it?
fn up(board: &Board) -> bool {
    board.view().iter().any(|v| !v.kites.is_empty())
}

/// Does its tunnel stand, and has it been the same one from the beginning?
fn stands_since_the_beginning(board: &Board) -> bool {
    let views = board.view();
    views.iter().all(|v| (v.state, v.connects) == ("up", 1)) && !views.is_empty()
}

fn visit_request(tub: TubId) -> Vec<u8> {
    kite::sniff::foolscap::probe_request(tub, &name(tub).parse().unwrap())
}

/// The tub is another's, whose node can be reached, as all nodes can: the handshake is relayed to it.
#[tokio::test]
async fn another_nodes_tub_is_not_to_be_had_by_relaying_to_it() {
    let (victim, tub, _) = node_with_key().await;
    let (own, _, pem) = node_with_key().await;
    let (front, _state) = frontend(OpenProof::Key, 9);
    // The visit would find the right tub behind this tunnel. The key is not there.
    let (board, _relay) = fly(&front, tub_kite(tub, victim, None));
    refused(&board, "wants a proof by the tub's key").await;
    let (board, _thief) = fly(&front, tub_kite(tub, victim, Some(&pem)));
    refused(&board, "not that of the tub in its name").await;
    assert!(kites(&front.handle).is_empty());
    // The key is there, and the node is not.
    let (_, tub, pem) = node_with_key().await;
    let (board, _astray) = fly(&front, tub_kite(tub, own, Some(&pem)));
    refused(&board, "did not come to the tub").await;
    assert!(!reached(&front, tub).await && kites(&front.handle).is_empty());
}

/// Not a promise but a weakness, kept in sight: where the operator takes the node's answer for a proof, whoever can
/// reach the node can have its name, until its owner comes with the key.
#[tokio::test]
async fn weakness_of_the_nodes_proof_a_relay_gets_the_name_until_the_key_comes() {
    let (victim, tub, pem) = node_with_key().await;
    let (front, _state) = frontend(OpenProof::Node, 9);
    let (relay, _relay) = fly(&front, tub_kite(tub, victim, None));
    flies(&front, tub).await;
    // Another one without the key is not preferred.
    let (second, second_trigger) = fly(&front, tub_kite(tub, victim, None));
    refused(&second, "another tunnel flies this kite").await;
    second_trigger.stop();
    let (owner, _owner) = fly(&front, tub_kite(tub, victim, Some(&pem)));
    until("the owner has it", || up(&owner) && !up(&relay)).await;
    flies(&front, tub).await;
    until("the relay is told why", || {
        let said = format!("{:?}", relay.troubles());
        // Now, or when it asks again.
        [
            "another tunnel flies this kite",
            "wants a proof by the tub's key",
        ]
        .iter()
        .any(|why| said.contains(why))
    })
    .await;
    assert!(reached(&front, tub).await);
    // And another node than the one in the name is none, with or without.
    let (other, _, _) = node_with_key().await;
    let (_, absent, _) = node_with_key().await;
    let (board, _liar) = fly(&front, tub_kite(absent, other, None));
    refused(&board, "did not come to the tub").await;
}

/// A way to a node that lets nothing through before it is opened.
async fn gate(node: SocketAddr) -> (SocketAddr, tokio::sync::watch::Sender<bool>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (opener, open) = tokio::sync::watch::channel(false);
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut came, _)) = listener.accept().await {
            let mut open = open.clone();
            tokio::spawn(async move {
                open.wait_for(|open| *open).await.unwrap();
                let mut there = TcpStream::connect(node).await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut came, &mut there).await;
            });
        }
    });
    (address, opener)
}

/// Two relays, one in the air and one on its way: neither has the name after the key was shown.
#[tokio::test]
async fn no_relay_is_quicker_than_the_key() {
    let (victim, tub, pem) = node_with_key().await;
    let (front, _state) = frontend(OpenProof::Node, 9);
    let (slow_way, let_slow) = gate(victim).await;
    let (slow, _slow) = fly(&front, tub_kite(tub, slow_way, None));
    until("it waits for its visit", || {
        stands_since_the_beginning(&slow)
    })
    .await;
    let (_, _quick) = fly(&front, tub_kite(tub, victim, None));
    flies(&front, tub).await;
    let (owners_way, let_owner) = gate(victim).await;
    let (owner, _owner) = fly(&front, tub_kite(tub, owners_way, Some(&pem)));
    until("the owner waits for his", || {
        stands_since_the_beginning(&owner)
    })
    .await;
    until("the name is free", || kites(&front.handle).is_empty()).await;
    let_slow.send(true).unwrap();
    refused(&slow, "wants a proof by the tub's key").await;
    assert!(kites(&front.handle).is_empty());
    let_owner.send(true).unwrap();
    flies(&front, tub).await;
    until("the owner knows", || up(&owner)).await;
    assert!(reached(&front, tub).await);
}

/// A place where nobody listens yet, and a node that can be led to.
async fn later(node: SocketAddr) -> (SocketAddr, impl Future<Output = ()>) {
    let place = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = place.local_addr().unwrap();
    drop(place);
    let begin = async move {
        let listener = tokio::net::TcpListener::bind(address).await.unwrap();
        tokio::spawn(async move {
            while let Ok((mut came, _)) = listener.accept().await {
                let mut there = TcpStream::connect(node).await.unwrap();
                tokio::spawn(async move {
                    let _ = tokio::io::copy_bidirectional(&mut came, &mut there).await;
                });
            }
        });
    };
    (address, begin)
}

/// It is asked for again within the tunnel, which stands while it flies nothing.
#[tokio::test]
async fn a_node_that_starts_after_its_kite_flies_without_another_tunnel() {
    let (node, tub, pem) = node_with_key().await;
    let (front, _state) = frontend(OpenProof::Key, 9);
    let (origin, begin) = later(node).await;
    let (board, _back) = fly(&front, tub_kite(tub, origin, Some(&pem)));
    refused(&board, "did not come to the tub").await;
    assert!(!up(&board) && stands_since_the_beginning(&board));
    begin.await;
    flies(&front, tub).await;
    until("the backend knows", || up(&board)).await;
    assert!(reached(&front, tub).await && stands_since_the_beginning(&board));
}

/// A kite is not called up before visitors can come.
#[tokio::test]
async fn a_kite_is_up_once_its_node_was_visited() {
    let (node, tub, pem) = node_with_key().await;
    let (front, _state) = frontend(OpenProof::Key, 9);
    let (way, let_in) = gate(node).await;
    let (board, _back) = fly(&front, tub_kite(tub, way, Some(&pem)));
    until("it is heard", || stands_since_the_beginning(&board)).await;
    assert!(!up(&board) && kites(&front.handle).is_empty());
    let_in.send(true).unwrap();
    until("it is up", || up(&board)).await;
    assert!(reached(&front, tub).await);
}

/// More than a frontend looks at in one frame, and more than it visits at one time.
#[tokio::test]
async fn many_tubs_fly_by_one_tunnel() {
    let (front, _state) = frontend(OpenProof::Key, 99);
    let mut all = Vec::new();
    for _ in 0..20 {
        let (node, tub, pem) = node_with_key().await;
        all.push((tub, tub_kite(tub, node, Some(&pem))));
    }
    let (_, shut, pem) = node_with_key().await;
    let (nobody, _) = later(front.public).await;
    all.insert(3, (shut, tub_kite(shut, nobody, Some(&pem))));
    let (board, _back) = fly_all(&front, all.iter().map(|(_, kite)| kite.clone()).collect());
    until("all but one fly", || kites(&front.handle).len() == 20).await;
    until("the backend knows", || {
        board.view().iter().any(|v| v.kites.len() == 20)
    })
    .await;
    assert!(stands_since_the_beginning(&board));
    for (tub, _) in &all {
        assert_eq!(reached(&front, *tub).await, *tub != shut);
    }
}

/// What stands in the place of a key that there is none of is another at each load: no reason to dial anew.
#[tokio::test]
async fn a_reload_makes_no_tunnel_anew_for_a_kite_without_a_key() {
    let (node, tub, _) = node_with_key().await;
    let (front, _state) = frontend(OpenProof::Node, 9);
    let (before, begin) = later(node).await;
    begin.await;
    let (trigger, order) = shutdown::channel();
    let plan = |origin, secret: &str| Plan {
        frontends: vec![to(&front)],
        services: vec![Service {
            by: ProvenBy::Node,
            ..service(Protocol::Foolscap, &name(tub), origin, secret)
        }],
    };
    let (plans, changes) = tokio::sync::watch::channel(plan(before, "one"));
    let board = Board::default();
    tokio::spawn(backend::run(changes, dialer(), board.clone(), order));
    until("it is up", || up(&board)).await;
    // Visitors go to the new place, so the order was carried out.
    let (after, begin) = later(node).await;
    plans.send(plan(after, "another")).unwrap();
    until("it has changed", || {
        let origins = board.origins();
        origins.iter().any(|o| o.address == after.to_string())
    })
    .await;
    assert!(!reached(&front, tub).await);
    begin.await;
    for _ in 0..100 {
        if reached(&front, tub).await {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    assert!(reached(&front, tub).await && stands_since_the_beginning(&board));
    trigger.stop();
}

/// A request of a backend that knows this extension, with these lines.
fn request(lines: &str) -> String {
    format!(
        "CONNECT PageKite:1 HTTP/1.0\r\nX-PageKite-Features: AddKites\r\nX-PageKite-Features: KiteTub1\r\n{lines}\r\n"
    )
}

/// The lines that ask for these, and those that answer the challenges for them.
fn asked_for(kites: &[String]) -> String {
    let line = |kite: &String| format!("X-PageKite: {kite}::{}\r\n", "0".repeat(36));
    kites.iter().map(line).collect()
}

fn shown(answer: &str) -> Vec<String> {
    let signs = answer
        .lines()
        .filter_map(|line| line.strip_prefix("X-PageKite-SignThis: "));
    let line = |sign: &str| {
        let kite = sign.rsplit_once(':').unwrap().0;
        let zeros = "0".repeat(36);
        format!("X-PageKite: {sign}:{zeros}\r\nX-PageKite-Tub: {kite}\r\n")
    };
    signs.map(line).collect()
}

/// Much in one frame is no more work than a little.
#[tokio::test]
async fn a_frame_that_shows_too_many_tubs_is_looked_at_in_part() {
    use kite::wire::lines::MAX_LINES;
    let (_, tub, _) = node_with_key().await;
    let (front, _state) = frontend(OpenProof::Key, 9);
    let (mut conn, _) = dial(&front.address).await;
    // The same name often, and many names.
    let names = (0..MAX_LINES).map(|n| match n {
        0..8 => name(tub),
        _ => {
            let mut random = [n as u8; 32];
            random[0] = (n / 32) as u8;
            name(TubId::from_random(random))
        }
    });
    let kites: Vec<_> = names
        .enumerate()
        .map(|(n, name)| format!("http:{name}:b{n}"))
        .collect();
    let first = request(&asked_for(&kites));
    conn.write_all(first.as_bytes()).await.unwrap();
    conn.flush().await.unwrap();
    let answer = read_head(&mut conn).await.unwrap();
    let again = request(&shown(&answer).concat());
    let (mut conn, _) = dial(&front.address).await;
    conn.write_all(again.as_bytes()).await.unwrap();
    conn.flush().await.unwrap();
    let answer = read_head(&mut conn).await.unwrap();
    let count = |why: &str| answer.matches(&format!(";{why}\r\n")).count();
    let all = [count("tub-key"), count("duplicate"), count("overload")];
    assert_eq!(all, [16, 7, MAX_LINES - 23], "{answer}");
}

#[tokio::test]
async fn only_so_many_kites_of_one_tunnel_wait_for_a_visit() {
    let (front, _state) = frontend(OpenProof::Node, 99);
    let (mut conn, _) = dial(&front.address).await;
    let kite = |n: u8| {
        let tub = TubId::from_random([n; 32]);
        format!("http:{}:b{n}", name(tub))
    };
    let kites: Vec<_> = (0..17).map(kite).collect();
    let first = request(&asked_for(&kites));
    conn.write_all(first.as_bytes()).await.unwrap();
    conn.flush().await.unwrap();
    let shown = shown(&read_head(&mut conn).await.unwrap());
    let (some, one_more) = shown.split_at(16);
    send_frame(&mut conn, &format!("NOOP: 1\r\n{}\r\n!", some.concat())).await;
    let verdict = read_frame(&mut conn).await.unwrap();
    assert_eq!(verdict.matches("X-PageKite-OK: ").count(), 16, "{verdict}");
    // Their visits are not answered.
    send_frame(&mut conn, &format!("NOOP: 1\r\n{}\r\n!", one_more.concat())).await;
    let refusal = async {
        loop {
            let frame = read_frame(&mut conn).await.unwrap();
            if frame.contains("X-PageKite-Invalid-Why") {
                return frame;
            }
        }
    };
    let refusal = tokio::time::timeout(Duration::from_secs(10), refusal).await;
    let refusal = refusal.expect("it is told so");
    assert!(refusal.contains(":b16;overload\r\n"), "{refusal}");
}

#[tokio::test]
async fn what_the_operator_gave_away_goes_before_and_places_are_bounded() {
    let (node, tub, pem) = node_with_key().await;
    let (second_node, second_tub, second_pem) = node_with_key().await;
    let (front, _state) = frontend(OpenProof::Key, 1);
    let (first, first_trigger) = fly(&front, tub_kite(tub, node, Some(&pem)));
    flies(&front, tub).await;
    let (second, _second) = fly(&front, tub_kite(second_tub, second_node, Some(&second_pem)));
    refused(&second, "no place for another kite").await;
    first_trigger.stop();
    flies(&front, second_tub).await;
    drop(first);
    // Somebody with the operator's leave for all names.
    let granted = service(Protocol::Foolscap, &name(second_tub), second_node, "right");
    let (board, _granted) = fly(&front, granted);
    until("it is the grant's", || up(&board) && !up(&second)).await;
    assert!(reached(&front, second_tub).await);
}

/// How an operator answers a complaint: the name becomes his own.
#[tokio::test]
async fn a_name_that_the_operator_takes_comes_down_at_once() {
    let (node, tub, pem) = node_with_key().await;
    let (front, _state) = frontend(OpenProof::Key, 9);
    let (board, _back) = fly(&front, tub_kite(tub, node, Some(&pem)));
    flies(&front, tub).await;
    let own = grant(&name(tub), &[Protocol::Foolscap]);
    let order = Order::Add {
        name: name(tub),
        entry: Entry::new(&own),
    };
    assert!(matches!(front.handle.kites(order).await, Answer::Done));
    assert!(kites(&front.handle).is_empty());
    refused(&board, "the frontend does not know this name").await;
}

/// How an operator answers a complaint, whoever may fly the name: nobody does, until that is taken back.
#[tokio::test]
async fn a_blocked_name_comes_down_at_once_and_is_nobodys() {
    let (node, tub, pem) = node_with_key().await;
    let (other_node, other, other_pem) = node_with_key().await;
    let (front, _state) = frontend(OpenProof::Key, 9);
    let both = vec![
        tub_kite(tub, node, Some(&pem)),
        tub_kite(other, other_node, Some(&other_pem)),
    ];
    let (board, _back) = fly_all(&front, both);
    flies(&front, tub).await;
    flies(&front, other).await;
    let mut visitor = TcpStream::connect(front.public).await.unwrap();
    let host = name(tub).parse().unwrap();
    visit::ask(&mut visitor, &host, tub).await.unwrap();
    let name_of = |name: String| Order::Block { name };
    let answer = front.handle.kites(name_of(name(tub))).await;
    assert!(matches!(answer, Answer::Grounded { down: 1, above: 0 }));
    assert_eq!(kites(&front.handle), [format!("http:{}", name(other))]);
    let mut rest = Vec::new();
    let _ = visitor.read_to_end(&mut rest).await;
    refused(&board, "its name is blocked by the operator").await;
    assert!(!reached(&front, tub).await && reached(&front, other).await);
    // Nor by the operator's own leave for all names.
    let granted = service(Protocol::Foolscap, &name(tub), node, "right");
    let (granted, _granted) = fly(&front, granted);
    refused(&granted, "its name is blocked by the operator").await;
    let again = front.handle.kites(name_of(name(tub))).await;
    assert!(matches!(again, Answer::Refused(why) if why.contains("is blocked already")));
    let Answer::Blocked(all) = front.handle.kites(Order::Blocked).await else {
        panic!("no list");
    };
    assert_eq!(all.len(), 1);
    let back = Order::Unblock { name: name(tub) };
    assert!(matches!(front.handle.kites(back).await, Answer::Done));
    let (_, _again) = fly(&front, tub_kite(tub, node, Some(&pem)));
    flies(&front, tub).await;
    assert!(reached(&front, tub).await);
}

/// A name that a wildcard's kite would serve is no visitor's, while its siblings are.
#[tokio::test]
async fn a_name_below_a_kite_can_be_blocked_by_itself() {
    let (node, tub, _) = node_with_key().await;
    let (front, _state) = frontend(OpenProof::Key, 9);
    let wild = service(Protocol::Foolscap, "*.bob.alice.example", node, "right");
    let (board, _back) = fly(&front, wild);
    until("it is up", || up(&board)).await;
    let ask = async |host: &str| {
        let mut conn = TcpStream::connect(front.public).await.unwrap();
        visit::ask(&mut conn, &host.parse().unwrap(), tub)
            .await
            .is_ok()
    };
    assert!(ask("a.bob.alice.example").await && ask("b.bob.alice.example").await);
    let mut visitor = TcpStream::connect(front.public).await.unwrap();
    let host = "a.bob.alice.example".parse().unwrap();
    visit::ask(&mut visitor, &host, tub).await.unwrap();
    let order = Order::Block {
        name: "a.bob.alice.example".to_owned(),
    };
    let answer = front.handle.kites(order).await;
    assert!(matches!(answer, Answer::Grounded { down: 0, above: 1 }));
    let mut rest = Vec::new();
    let rest = visitor.read_to_end(&mut rest);
    let gone = tokio::time::timeout(std::time::Duration::from_secs(20), rest).await;
    assert!(gone.is_ok(), "who is there already must go, too");
    assert!(!ask("a.bob.alice.example").await && ask("b.bob.alice.example").await);
    assert!(up(&board));
}

/// Streams, rate and bytes, of each kite.
#[tokio::test]
async fn each_strangers_kite_has_its_limits() {
    use kite::frontend::limits::{Rate, Size};
    let (node, tub, pem) = node_with_key().await;
    let start = |limits: Limits| {
        let state = tempfile::tempdir().unwrap();
        let front = roles::start(FrontendConfig {
            open: Some(Open {
                limits,
                ..open(OpenProof::Key, 9)
            }),
            ..config_of(
                state.path(),
                vec![Listen::at(any()), Listen::at(any())],
                Vec::new(),
            )
        });
        (front, state)
    };
    let host = name(tub).parse().unwrap();
    let one_at_a_time = Limits {
        streams: Some(1),
        ..Limits::default()
    };
    let (front, _state) = start(one_at_a_time);
    let (_, _back) = fly(&front, tub_kite(tub, node, Some(&pem)));
    flies(&front, tub).await;
    let mut first = TcpStream::connect(front.public).await.unwrap();
    visit::ask(&mut first, &host, tub).await.unwrap();
    assert!(!reached(&front, tub).await, "the one is there");
    drop(first);
    let rarely = Limits {
        rate: Some(Rate {
            count: 2,
            seconds: 3600,
        }),
        ..Limits::default()
    };
    let (front, _state) = start(rarely);
    let (_, _back) = fly(&front, tub_kite(tub, node, Some(&pem)));
    flies(&front, tub).await;
    assert!(reached(&front, tub).await && reached(&front, tub).await);
    assert!(!reached(&front, tub).await, "the third within an hour");
    let little = Limits {
        quota: Some(Size(1000)),
        ..Limits::default()
    };
    let (front, _state) = start(little);
    let (board, _back) = fly(&front, tub_kite(tub, node, Some(&pem)));
    flies(&front, tub).await;
    let _ = reached(&front, tub).await;
    refused(&board, "the quota is used up").await;
    assert!(!reached(&front, tub).await && kites(&front.handle).is_empty());
}

#[tokio::test]
async fn a_frontend_that_is_not_open_says_so() {
    let (node, tub, pem) = node_with_key().await;
    let front = roles::frontend(&[Protocol::Foolscap]);
    let (board, _back) = fly(&front, tub_kite(tub, node, Some(&pem)));
    refused(&board, "lets no kite prove itself by its tub").await;
}

async fn dial(to: &str) -> (BoxConn, Binding) {
    let dialled = dialer().dial(&to.parse().unwrap(), Lane(0)).await.unwrap();
    (dialled.conn, dialled.binding.unwrap())
}

/// Registers by hand; what became of it, and all that was sent.
async fn register(
    conn: &mut BoxConn,
    tub: TubId,
    by: By,
    bound_to: Binding,
) -> (Result<Verdict, HandshakeError>, Vec<Vec<u8>>) {
    let wanted = Wanted {
        proto: "http".into(),
        name: name(tub).parse().unwrap(),
        secret: secret("of no use"),
        bsalt: "5a17".repeat(9),
        end_tls: false,
        by,
    };
    let options = Options {
        proof: ProofPolicy::Demand(bound_to),
        ..Options::default()
    };
    let (mut machine, request) = BackendHandshake::new(vec![wanted], options, || "0123abcd".into());
    let mut sent = vec![request.to_vec()];
    conn.write_all(&request).await.unwrap();
    conn.flush().await.unwrap();
    let mut buf = bytes::BytesMut::new();
    loop {
        match machine.step(&mut buf) {
            Err(e) => return (Err(e), sent),
            Ok(Step::Done(verdict)) => return (Ok(*verdict), sent),
            Ok(Step::Send(more)) => {
                sent.push(more.to_vec());
                conn.write_all(&more).await.unwrap();
                conn.flush().await.unwrap();
            }
            Ok(Step::NeedMore) => assert!(conn.read_buf(&mut buf).await.unwrap() > 0),
            Ok(Step::Redial(_)) => panic!("no reason to dial again"),
        }
    }
}

fn signer(pem: &str) -> By {
    let key = Arc::new(TubKey::read(pem.as_bytes()).unwrap());
    let certificate = key.certificate().to_vec();
    By::Tub(Some(TubSigner::new(&certificate, move |m| key.sign(m))))
}

/// All that a tub's kite says can be heard by a hostile frontend, and said again to another, or later.
#[tokio::test]
async fn a_tubs_proof_is_worth_nothing_on_another_connection() {
    let (_, tub, pem) = node_with_key().await;
    let (front, _state) = frontend(OpenProof::Key, 9);
    let (mut conn, here) = dial(&front.address).await;
    let (verdict, sent) = register(&mut conn, tub, signer(&pem), here).await;
    assert_eq!(
        verdict.unwrap().heard.len(),
        1,
        "it is heard, and will be visited"
    );
    drop(conn);
    // Nobody has answered the visit.
    assert!(kites(&front.handle).is_empty());

    // Its challenge is still good; the connection is another.
    let (mut conn, _) = dial(&front.address).await;
    conn.write_all(&sent[0]).await.unwrap();
    conn.flush().await.unwrap();
    read_head(&mut conn).await.unwrap();
    conn.write_all(&sent[1]).await.unwrap();
    conn.flush().await.unwrap();
    let verdict = read_frame(&mut conn).await.unwrap();
    assert!(verdict.contains(";tub\r\n"), "{verdict}");

    // A kite that was led to a hostile frontend signs for its connection with that one.
    let (mut conn, _) = dial(&front.address).await;
    let elsewhere = Binding::Tls([7; 32]);
    let (verdict, _) = register(&mut conn, tub, signer(&pem), elsewhere).await;
    let refused = verdict.unwrap().refused;
    assert_eq!(refused[0].why, RefusalKind::Tub);
    assert!(kites(&front.handle).is_empty());
}

/// Old backends see nothing of it: without the word, nothing is said of tubs, and no tub's name is theirs.
#[tokio::test]
async fn who_does_not_say_the_word_hears_nothing_of_it() {
    let (_, tub, _) = node_with_key().await;
    let (front, _state) = frontend(OpenProof::Key, 9);
    let mut conn: BoxConn = Box::new(TcpStream::connect(front.public).await.unwrap());
    let request = format!(
        "CONNECT PageKite:1 HTTP/1.0\r\nX-PageKite-Features: AddKites\r\nX-PageKite: http:{}:b::{}\r\n\r\n",
        name(tub),
        "0".repeat(36)
    );
    conn.write_all(request.as_bytes()).await.unwrap();
    let answer = read_head(&mut conn).await.unwrap();
    assert!(answer.contains("X-PageKite-SignThis: "), "{answer}");
    assert!(!answer.contains("KiteTub"), "{answer}");
}
