//! Several frontends of one domain: whichever a visitor comes to, it reaches its kite.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use kite::backend::Plan;
use kite::backend::introduce::Tell;
use kite::config::{FleetConfig, Frontend as To, FrontendConfig, Listen, ProofRule, Service};
use kite::fleet::Fleet;
use kite::fleet::forward::{GO, NOT_HERE, TAKEN, WAITS, opening};
use kite::fleet::header::Passed;
use kite::fleet::link::MAX_STRANGERS;
use kite::fleet::map::Flight;
use kite::fleet::member::Member;
use kite::frontend::balancer::Balancers;
use kite::frontend::kites::Order;
use kite::kite::Protocol;
use kite::observe::board::Board;
use kite::proxy_header::{Version, write};
use kite::shutdown::{self, Trigger};
use kite::tls::{MemberTls, Purpose, TlsServer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

use crate::roles::{
    NAME, SWITCHING, Side, ask, backend, backend_of, dialer, frontend_config, kites, negotiate,
    origin, service, start, until,
};

/// Frontends that know each other.
pub struct Together {
    pub sides: Vec<Side>,
    states: Vec<tempfile::TempDir>,
}

/// A free port on loopback, for who must be known before it listens.
async fn free() -> SocketAddr {
    let probe = TcpListener::bind("127.0.0.1:0").await.unwrap();
    probe.local_addr().unwrap()
}

/// What a member is to the others; backends find it at `public`.
pub fn member(name: &str, address: SocketAddr, public: SocketAddr, state: &Path) -> Member {
    let pin = TlsServer::load_or_create(state).unwrap().pin();
    Member {
        id: name.parse().unwrap(),
        address,
        pin: MemberTls::load_or_create(state).unwrap().pin(),
        public: Some(format!("{public}#{pin}").parse().unwrap()),
    }
}

/// So many frontends, called a, b, c; what is special about each is put in by `with`.
pub async fn fleet_of(
    n: usize,
    protocols: &[Protocol],
    with: impl Fn(usize, &mut FrontendConfig),
) -> Together {
    let states: Vec<_> = (0..n).map(|_| tempfile::tempdir().unwrap()).collect();
    let (mut members, mut ports) = (Vec::new(), Vec::new());
    for (i, state) in states.iter().enumerate() {
        let name = ["a", "b", "c", "d"][i];
        ports.push(free().await);
        members.push(member(name, free().await, ports[i], state.path()));
    }
    let mut sides = Vec::new();
    for (i, state) in states.iter().enumerate() {
        let mut config = frontend_config(state.path(), ports[i], protocols, ProofRule::Optional);
        config.grace = Duration::ZERO;
        config.fleet = Some(FleetConfig {
            listen: members[i].address,
            id: members[i].id.clone(),
            members: members.clone(),
            etcd: None,
        });
        with(i, &mut config);
        sides.push(start(config));
    }
    let together = Together { sides, states };
    let linked = |side: &Side| fleet(side).seen().iter().all(|s| s.tells && s.hears);
    until("all members are linked", || {
        together.sides.iter().all(linked)
    })
    .await;
    together
}

pub fn fleet(side: &Side) -> &Fleet {
    side.handle.fleet().unwrap()
}

impl Together {
    /// A backend at one member, once all others know of its kite.
    async fn flying(&self, at: usize, protocol: Protocol, origin: SocketAddr) -> Trigger {
        let side = &self.sides[at];
        let back = backend(
            &side.address,
            vec![service(protocol, NAME, origin, "right")],
        );
        until("the kite is up", || !kites(&side.handle).is_empty()).await;
        self.known(at, 1).await;
        back
    }

    /// Waits until all others know of so many kites at one member.
    async fn known(&self, at: usize, n: usize) {
        let id = fleet(&self.sides[at]).me().clone();
        let others = || self.sides.iter().filter(|s| *fleet(s).me() != id);
        let knows = |side: &Side| {
            fleet(side)
                .seen()
                .iter()
                .any(|s| s.id == id && s.kites == n)
        };
        until("the others know", || others().all(knows)).await;
    }
}

const GET: &str = "GET / HTTP/1.1\r\nHost: bob.alice.example\r\n\r\n";

#[tokio::test]
async fn a_visitor_reaches_its_kite_whichever_member_it_comes_to() {
    let together = fleet_of(3, &[Protocol::Foolscap], |_, _| {}).await;
    let (origin, visitors) = origin(SWITCHING).await;
    let _back = together.flying(1, Protocol::Foolscap, origin).await;
    for side in &together.sides {
        let mut visitor = negotiate(side.public, NAME).await;
        let mut said = vec![0x16, 3, 1, 0x40, 0];
        said.extend((0..0x4000u32).map(|i| i as u8));
        let said = said.repeat(20);
        let (mut read, mut write) = visitor.split();
        let mut got = Vec::new();
        let (wrote, echoed) = tokio::join!(
            async {
                write.write_all(&said).await?;
                write.shutdown().await
            },
            read.read_to_end(&mut got)
        );
        wrote.unwrap();
        echoed.unwrap();
        assert!(
            got == said,
            "the bytes came back as they were sent, and then the end"
        );
    }
    assert_eq!(visitors.load(Ordering::SeqCst), 3);
    let passing = |i: usize| fleet(&together.sides[i]).passing();
    assert_eq!((passing(0).out, passing(1).out, passing(2).out), (1, 0, 1));
    assert_eq!(passing(1).brought, 2);
    until("they have left", || {
        (0..3).all(|i| passing(i).out_open + passing(i).brought_open == 0)
    })
    .await;
}

#[tokio::test]
async fn an_unknown_name_is_told_so_and_a_name_that_is_known_elsewhere_is_held_to_its_terms() {
    let together = fleet_of(2, &[Protocol::Foolscap], |_, _| {}).await;
    let (origin, visitors) = origin(SWITCHING).await;
    let _back = together.flying(1, Protocol::Foolscap, origin).await;
    let side = &together.sides[0];
    let other = ask(
        side.public,
        "GET / HTTP/1.1\r\nHost: eve.alice.example\r\n\r\n",
    )
    .await;
    assert!(other.starts_with(b"HTTP/1.1 503"), "{other:?}");
    // It flies at b, for foolscap only; b says so.
    let page = ask(side.public, GET).await;
    assert!(page.starts_with(b"HTTP/1.1 403"), "{page:?}");
    assert_eq!(visitors.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_port_of_a_kites_own_leads_to_it_wherever_it_flies() {
    let raw = |_: usize, config: &mut FrontendConfig| {
        config.listen[1] = Listen {
            raw: true,
            ..config.listen[1].clone()
        };
    };
    let together = fleet_of(2, &[Protocol::Raw], raw).await;
    let (origin, _) = origin(b"").await;
    let _back = together.flying(1, Protocol::Raw, origin).await;
    let mut visitor = TcpStream::connect(together.sides[0].port_kite)
        .await
        .unwrap();
    visitor.write_all(b"anything").await.unwrap();
    visitor.shutdown().await.unwrap();
    let mut got = Vec::new();
    visitor.read_to_end(&mut got).await.unwrap();
    assert_eq!(got, b"anything");
    // By CONNECT as well.
    let connect = format!("CONNECT {NAME}:2222 HTTP/1.0\r\n\r\nsaid");
    let mut visitor = TcpStream::connect(together.sides[0].public).await.unwrap();
    visitor.write_all(connect.as_bytes()).await.unwrap();
    visitor.shutdown().await.unwrap();
    let mut got = Vec::new();
    visitor.read_to_end(&mut got).await.unwrap();
    assert_eq!(
        String::from_utf8(got).unwrap(),
        "HTTP/1.0 200 Connection Established\r\n\r\nsaid"
    );
    assert_eq!(fleet(&together.sides[0]).passing().out, 2);
}

#[tokio::test]
async fn a_break_travels_through_both_members_and_is_no_end() {
    let raw = |_: usize, config: &mut FrontendConfig| config.listen[1].raw = true;
    let together = fleet_of(2, &[Protocol::Raw], raw).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let origin = listener.local_addr().unwrap();
    let _back = together.flying(1, Protocol::Raw, origin).await;
    let port = together.sides[0].port_kite;
    let mut byte = [0];
    for by_visitor in [true, false] {
        let mut visitor = TcpStream::connect(port).await.unwrap();
        visitor.write_all(b"x").await.unwrap();
        let (mut origin, _) = listener.accept().await.unwrap();
        origin.read_exact(&mut byte).await.unwrap();
        origin.write_all(b"y").await.unwrap();
        visitor.read_exact(&mut byte).await.unwrap();
        let (breaks, mut hears) = match by_visitor {
            true => (visitor, origin),
            false => (origin, visitor),
        };
        breaks.set_zero_linger().unwrap();
        drop(breaks);
        let heard = within(hears.read(&mut byte)).await;
        let heard = heard.map_err(|e| e.kind());
        assert_eq!(
            heard,
            Err(std::io::ErrorKind::ConnectionReset),
            "{by_visitor}"
        );
    }
}

async fn within<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), what)
        .await
        .expect("in time")
}

/// What a visitor is told, and nothing if it is not let in.
async fn bring(tls: &MemberTls, to: &Member, passed: &Passed, first: &[u8]) -> Vec<u8> {
    let conn = TcpStream::connect(to.address).await.unwrap();
    let mut got = Vec::new();
    let bringing = async {
        let mut conn = tls.connect(conn, to.pin, Purpose::Visit).await.ok()?;
        conn.write_all(&opening(passed, first)).await.ok()?;
        got.push(conn.read_u8().await.ok()?);
        if got == [TAKEN] {
            conn.write_all(&[GO]).await.ok()?;
        }
        conn.shutdown().await.ok()?;
        conn.read_to_end(&mut got).await.ok()
    };
    within(bringing).await;
    got
}

/// A visitor of [`NAME`] that another member has brought.
fn brought() -> Passed {
    Passed {
        from: "203.0.113.7:4711".parse().unwrap(),
        port: 80,
        kite: format!("http:{NAME}"),
        port_kite: None,
        raw: false,
        storage_only: false,
        hops: 1,
    }
}

impl Together {
    /// The first member's key, and the second as it knows it.
    fn a_and_b(&self) -> (MemberTls, Member) {
        let b = fleet(&self.sides[0]).members().get(&"b".parse().unwrap());
        let a = MemberTls::load_or_create(self.states[0].path()).unwrap();
        (a, b.unwrap())
    }
}

#[tokio::test]
async fn nothing_reaches_the_origin_of_a_visitor_whose_member_has_given_up() {
    let together = fleet_of(2, &[Protocol::Http], |_, _| {}).await;
    let (origin, visitors) = origin(b"").await;
    let _back = together.flying(1, Protocol::Http, origin).await;
    let (a, b) = together.a_and_b();
    let said = opening(&brought(), GET.as_bytes());
    // One whose member says nothing more.
    let conn = TcpStream::connect(b.address).await.unwrap();
    let mut silent = a.connect(conn, b.pin, Purpose::Visit).await.unwrap();
    silent.write_all(&said).await.unwrap();
    assert_eq!(within(silent.read_u8()).await.unwrap(), TAKEN);
    let began = Instant::now();
    let conn = TcpStream::connect(b.address).await.unwrap();
    let mut conn = a.connect(conn, b.pin, Purpose::Visit).await.unwrap();
    // Cut in two, lest it count how it comes.
    let (one, other) = said.split_at(said.len() - 3);
    for part in [one, other] {
        conn.write_all(part).await.unwrap();
        conn.flush().await.unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(within(conn.read_u8()).await.unwrap(), TAKEN);
    conn.shutdown().await.unwrap();
    let mut told = Vec::new();
    let _ = within(conn.read_to_end(&mut told)).await;
    assert_eq!((told, visitors.load(Ordering::SeqCst)), (vec![], 0));
    // Who goes on gets in.
    let told = bring(&a, &b, &brought(), GET.as_bytes()).await;
    assert_eq!(told, [b"+", GET.as_bytes()].concat());
    // Who is silent is waited for, and not for ever.
    let mut told = Vec::new();
    let _ = within(silent.read_to_end(&mut told)).await;
    assert!((4..8).contains(&began.elapsed().as_secs()), "{began:?}");
    assert_eq!((told, visitors.load(Ordering::SeqCst)), (vec![], 1));
}

#[tokio::test]
async fn who_waits_for_a_kite_at_another_member_is_told_so_and_served() {
    let together = fleet_of(2, &[Protocol::Http], |i, config| {
        config.grace = Duration::from_secs([0, 60][i]);
    })
    .await;
    let (origin, _) = origin(b"").await;
    let (a, b) = together.a_and_b();
    let conn = TcpStream::connect(b.address).await.unwrap();
    let mut conn = a.connect(conn, b.pin, Purpose::Visit).await.unwrap();
    let said = opening(&brought(), GET.as_bytes());
    conn.write_all(&said).await.unwrap();
    assert_eq!(within(conn.read_u8()).await.unwrap(), WAITS);
    let _back = together.flying(1, Protocol::Http, origin).await;
    while within(conn.read_u8()).await.unwrap() == WAITS {}
    conn.write_all(&[GO]).await.unwrap();
    conn.shutdown().await.unwrap();
    let mut told = Vec::new();
    within(conn.read_to_end(&mut told)).await.unwrap();
    assert_eq!(told, GET.as_bytes());
}

#[tokio::test]
async fn a_crowd_at_the_internal_port_keeps_no_member_out() {
    let together = fleet_of(2, &[Protocol::Http], |_, _| {}).await;
    let (origin, _) = origin(b"").await;
    let _back = together.flying(1, Protocol::Http, origin).await;
    let (_, b) = together.a_and_b();
    let mut crowd = Vec::new();
    // Strangers, and as many who come from where a member is.
    for from in ["127.0.0.2:0", "127.0.0.1:0"] {
        for _ in 0..MAX_STRANGERS {
            let socket = TcpSocket::new_v4().unwrap();
            socket.bind(from.parse().unwrap()).unwrap();
            crowd.push(socket.connect(b.address).await.unwrap());
        }
    }
    let public = together.sides[0].public;
    assert_eq!(ask_half(public, GET).await, GET.as_bytes());
    drop(crowd);
}

#[tokio::test]
async fn who_has_come_in_is_heard_though_the_member_stops() {
    let mut together = fleet_of(2, &[Protocol::Http], |_, config| {
        config.drain = Duration::from_secs(20);
    })
    .await;
    let (a, b) = together.a_and_b();
    let conn = TcpStream::connect(b.address).await.unwrap();
    let mut conn = a.connect(conn, b.pin, Purpose::Visit).await.unwrap();
    let stops = together.sides.remove(1);
    let public = stops.public;
    let stopping = tokio::spawn(stops.stop());
    until("nobody comes in any more", || {
        std::net::TcpStream::connect(public).is_err()
            && std::net::TcpStream::connect(b.address).is_err()
    })
    .await;
    let said = opening(&brought(), GET.as_bytes());
    conn.write_all(&said).await.unwrap();
    assert_eq!(within(conn.read_u8()).await.unwrap(), NOT_HERE);
    within(stopping).await.unwrap();
}

#[tokio::test]
async fn strangers_get_nothing_and_no_visitor_goes_further_than_one_member() {
    let together = fleet_of(2, &[Protocol::Http], |_, _| {}).await;
    let (origin, visitors) = origin(b"").await;
    let _back = together.flying(1, Protocol::Http, origin).await;
    let b = fleet(&together.sides[0])
        .members()
        .get(&"b".parse().unwrap());
    let b = b.unwrap();
    let passed = |hops| Passed {
        from: "203.0.113.7:4711".parse().unwrap(),
        port: 80,
        kite: format!("http:{NAME}"),
        port_kite: None,
        raw: false,
        storage_only: false,
        hops,
    };
    let ours = MemberTls::load_or_create(together.states[0].path()).unwrap();
    let taken = bring(&ours, &b, &passed(1), GET.as_bytes()).await;
    assert_eq!(taken, [b"+", GET.as_bytes()].concat());
    for hops in [0, 2, 255] {
        assert_eq!(bring(&ours, &b, &passed(hops), GET.as_bytes()).await, b"");
    }
    // What is there for frontends only is not there for what members bring.
    for no_visitor in [
        "CONNECT PageKite:1 HTTP/1.0\r\n\r\n",
        "GET /ping HTTP/1.1\r\nHost: ping.pagekite\r\n\r\n",
    ] {
        assert_eq!(
            bring(&ours, &b, &passed(1), no_visitor.as_bytes()).await,
            b"-",
            "{no_visitor}"
        );
    }
    // Another key: not one of the fleet's.
    let dir = tempfile::tempdir().unwrap();
    let stranger = MemberTls::load_or_create(dir.path()).unwrap();
    assert_eq!(bring(&stranger, &b, &passed(1), GET.as_bytes()).await, b"");
    // No key, and no TLS.
    assert_eq!(ask(b.address, GET).await.first(), Some(&0x15), "an alert");
    assert_eq!(visitors.load(Ordering::SeqCst), 1);
}

fn flight(since: u64, backend: Option<&str>) -> Flight {
    Flight {
        session: "s".into(),
        since,
        backend: backend.map(Into::into),
        several: false,
    }
}

#[tokio::test]
async fn a_map_that_is_wrong_leads_to_the_next_member_or_to_the_usual_answer() {
    let together = fleet_of(3, &[Protocol::Http], |_, _| {}).await;
    let (origin, _) = origin(b"").await;
    let _back = together.flying(2, Protocol::Http, origin).await;
    let a = fleet(&together.sides[0]);
    let (bob, eve) = (
        ("http".to_owned(), NAME.to_owned()),
        ("http".to_owned(), "eve.alice.example".to_owned()),
    );
    let b = "b".parse().unwrap();
    // b is said to be the newest, and is not there: c is next.
    a.put(&b, bob.clone(), flight(u64::MAX / 2, None));
    let first = || {
        let name = NAME.parse().unwrap();
        let hit = a.find(&["http"], 80, &name).unwrap();
        hit.members[0].to_string()
    };
    assert_eq!(first(), "b");
    a.put(&b, eve, flight(1, None));
    let public = together.sides[0].public;
    assert_eq!(ask_half(public, GET).await, GET.as_bytes());
    assert_eq!(first(), "c", "it has learnt that");
    let eve = "GET / HTTP/1.1\r\nHost: eve.alice.example\r\n\r\n";
    assert!(ask_half(public, eve).await.starts_with(b"HTTP/1.1 503"));
    let passing = a.passing();
    assert_eq!((passing.out, passing.in_vain), (1, 1));
}

#[tokio::test]
async fn a_name_that_is_blocked_at_one_member_takes_nothing_else_from_it() {
    let together = fleet_of(2, &[Protocol::Http], |_, _| {}).await;
    let (origin, _) = origin(b"").await;
    let side = &together.sides[1];
    let wildcard = vec![service(Protocol::Http, "*.alice.example", origin, "right")];
    let _back = backend(&side.address, wildcard);
    together.known(1, 1).await;
    let name = "bad.alice.example".to_owned();
    side.handle.kites(Order::Block { name }).await;
    let public = together.sides[0].public;
    let bad = "GET / HTTP/1.1\r\nHost: bad.alice.example\r\n\r\n";
    assert!(ask_half(public, bad).await.starts_with(b"HTTP/1.1 503"));
    assert_eq!(ask_half(public, GET).await, GET.as_bytes());
    // Nor does a member carry visitors of what it blocks to others: those that are with them already are broken off.
    let visit = |host: &'static str| async move {
        let mut conn = TcpStream::connect(public).await.unwrap();
        let request = format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n");
        conn.write_all(request.as_bytes()).await.unwrap();
        let mut echo = vec![0; request.len()];
        within(conn.read_exact(&mut echo)).await.unwrap();
        conn
    };
    let (mut worse, mut good) = (visit("worse.alice.example").await, visit(NAME).await);
    let name = "worse.alice.example".to_owned();
    together.sides[0].handle.kites(Order::Block { name }).await;
    let end = within(worse.read(&mut [0])).await;
    assert!(end.is_err(), "{end:?}: it is a break");
    good.write_all(b"!").await.unwrap();
    let mut echo = [0];
    within(good.read_exact(&mut echo)).await.unwrap();
    assert_eq!(&echo, b"!");
}

/// As [`ask`], and ends its half.
async fn ask_half(to: SocketAddr, request: &str) -> Vec<u8> {
    let mut conn = TcpStream::connect(to).await.unwrap();
    conn.write_all(request.as_bytes()).await.unwrap();
    conn.shutdown().await.unwrap();
    let mut got = Vec::new();
    within(conn.read_to_end(&mut got)).await.unwrap();
    got
}

#[tokio::test]
async fn a_kite_at_two_members_outlives_one_of_them() {
    let mut together = fleet_of(3, &[Protocol::Http], |_, _| {}).await;
    let (origin, _) = origin(b"").await;
    let addresses = [
        together.sides[1].address.as_str(),
        together.sides[2].address.as_str(),
    ];
    let _back = backend_of(
        &addresses,
        vec![service(Protocol::Http, NAME, origin, "right")],
    );
    together.known(1, 1).await;
    together.known(2, 1).await;
    let public = together.sides[0].public;
    assert_eq!(ask_half(public, GET).await, GET.as_bytes());
    // Nobody is told that it goes: its visitors find the other.
    let gone = together.sides.remove(1);
    let stopping = tokio::spawn(gone.stop());
    for _ in 0..20 {
        assert_eq!(ask_half(public, GET).await, GET.as_bytes());
    }
    stopping.await.unwrap();
    assert_eq!(ask_half(public, GET).await, GET.as_bytes());
    let seen = fleet(&together.sides[0]).seen();
    assert!(!seen[0].hears && seen[1].hears, "{seen:?}");
}

#[tokio::test]
async fn visitors_that_were_passed_on_are_waited_for() {
    let mut together = fleet_of(2, &[Protocol::Foolscap], |_, config| {
        config.drain = Duration::from_secs(20);
    })
    .await;
    let (origin, _) = origin(SWITCHING).await;
    let _back = together.flying(1, Protocol::Foolscap, origin).await;
    let mut visitor = negotiate(together.sides[0].public, NAME).await;
    let a = together.sides.remove(0);
    let public = a.public;
    let stopping = tokio::spawn(a.stop());
    until("nobody comes in any more", || {
        std::net::TcpStream::connect(public).is_err()
    })
    .await;
    let record = [0x16, 3, 1, 0, 1, 7];
    visitor.write_all(&record).await.unwrap();
    let mut back = [0; 6];
    within(visitor.read_exact(&mut back)).await.unwrap();
    assert_eq!(back, record);
    assert!(!stopping.is_finished());
    drop(visitor);
    within(stopping).await.unwrap();
}

#[tokio::test]
async fn the_newest_backend_has_the_kite_and_two_tunnels_of_one_are_no_rivals() {
    let together = fleet_of(2, &[Protocol::Http], |_, _| {}).await;
    let (origin, _) = origin(b"").await;
    let all = [
        together.sides[0].address.as_str(),
        together.sides[1].address.as_str(),
    ];
    let ours = || vec![service(Protocol::Http, NAME, origin, "right")];
    let one = backend_of(&all, ours());
    together.known(0, 1).await;
    together.known(1, 1).await;
    // Another backend, that has the secret as well: not at once.
    let other = backend(&together.sides[0].address, ours());
    tokio::time::sleep(Duration::from_millis(300)).await;
    let up = |i: usize| kites(&together.sides[i].handle).len();
    assert_eq!((up(0), up(1)), (1, 1));
    drop(other);
    // One that has flown elsewhere for longer gives way to the newest.
    let a = fleet(&together.sides[0]);
    let key = ("http".to_owned(), NAME.to_owned());
    a.put(&"b".parse().unwrap(), key, flight(a.now(), Some("another")));
    until("it comes down, and only there", || (up(0), up(1)) == (0, 1)).await;
    drop(one);
}

#[tokio::test]
async fn a_backend_that_asks_is_told_which_members_are_home_to_its_kites() {
    let together = fleet_of(4, &[Protocol::Http], |_, _| {}).await;
    let members = fleet(&together.sides[0]).members().all();
    let ids: Vec<_> = members.iter().map(|m| m.id.clone()).collect();
    let homes = kite::fleet::homes::homes(NAME, &ids, 2);
    let at = |id| ids.iter().position(|i| i == id).unwrap();
    let homes: Vec<_> = homes.into_iter().map(at).collect();
    let mut others = (0..4).filter(|i| !homes.contains(i));
    let (entry, never) = (others.next().unwrap(), others.next().unwrap());
    let (origin, _) = origin(b"").await;
    for asks in [false, true] {
        let (_trigger, order) = shutdown::channel();
        let to = To {
            address: together.sides[entry].address.parse().unwrap(),
            kites: None,
            tunnels: 1,
            homes: asks,
        };
        let ours = vec![service(Protocol::Http, NAME, origin, "right")];
        let board = Board::default();
        tokio::spawn(kite::backend::run(
            Plan::fixed(vec![to], ours),
            dialer(),
            board,
            order,
        ));
        let up = |i: usize| !kites(&together.sides[i].handle).is_empty();
        until("it flies", || up(entry)).await;
        if asks {
            until("it flies at home", || homes.iter().all(|i| up(*i))).await;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert!(!up(never) && homes.iter().all(|i| up(*i) == asks));
        drop(_trigger);
        until("it is gone", || (0..4).all(|i| !up(i))).await;
    }
}

#[tokio::test]
async fn who_the_visitor_is_and_where_it_came_in_is_told_to_the_backend() {
    let proxied = |_: usize, config: &mut FrontendConfig| {
        config.listen[0].balancers = Some(Balancers::on_this_machine());
        config.listen[0].port = Some(8080);
    };
    let together = fleet_of(2, &[Protocol::Http], proxied).await;
    let (origin, _) = origin(b"").await;
    let kite = Service {
        tell: Tell {
            forwarded_headers: true,
            ..Tell::default()
        },
        ..service(Protocol::Http, NAME, origin, "right")
    };
    // Backends come by the other port, which is no kite's at the second member.
    let b = &together.sides[1];
    let pin = b.address.split_once('#').unwrap().1;
    let _back = backend(&format!("{}#{pin}", b.port_kite), vec![kite]);
    together.known(1, 1).await;
    let from = "203.0.113.7:4711".parse().ok();
    let mut said = write(Version::V2, from, 80, "");
    said.extend_from_slice(GET.as_bytes());
    let mut conn = TcpStream::connect(together.sides[0].public).await.unwrap();
    conn.write_all(&said).await.unwrap();
    conn.shutdown().await.unwrap();
    let mut told = Vec::new();
    within(conn.read_to_end(&mut told)).await.unwrap();
    let told = String::from_utf8(told).unwrap();
    assert!(told.contains("X-Forwarded-For: 203.0.113.7\r\n"), "{told}");
    assert!(told.contains("X-Forwarded-Port: 8080\r\n"), "{told}");
    assert_eq!(fleet(&together.sides[0]).passing().out, 1);
}

#[tokio::test]
async fn kites_that_the_handshake_had_no_room_for_have_homes_and_marks_as_well() {
    const MANY: usize = 70;
    let together = fleet_of(2, &[Protocol::Http], |_, _| {}).await;
    let (origin, _) = origin(b"").await;
    let name = |n| format!("k{n}.alice.example");
    let all = (0..MANY).map(|n| service(Protocol::Http, &name(n), origin, "right"));
    let to = To {
        address: together.sides[0].address.parse().unwrap(),
        kites: None,
        tunnels: 1,
        homes: true,
    };
    let (_trigger, order) = shutdown::channel();
    let plan = Plan::fixed(vec![to], all.collect());
    let board = Board::default();
    tokio::spawn(kite::backend::run(plan, dialer(), board, order));
    let up = |i: usize| kites(&together.sides[i].handle).len();
    until("all fly at both", || (up(0), up(1)) == (MANY, MANY)).await;
    // By their marks: without one a kite is nobody's rival.
    let (a, b) = (fleet(&together.sides[0]), "b".parse().unwrap());
    let key = ("http".to_owned(), name(MANY - 1));
    a.put(&b, key, flight(a.now(), Some("another")));
    until("the last comes down, and only there", || {
        (up(0), up(1)) == (MANY - 1, MANY)
    })
    .await;
}
