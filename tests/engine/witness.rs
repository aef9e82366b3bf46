//! What a kite counts, and what its own visitor from outside finds out.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use kite::backend::{self, Plan};
use kite::config::{Frontend as To, ProofRule, Service};
use kite::dial::{BoxConn, DialError, Dialer, Dialled, FrontendAddr, Goal, Lane};
use kite::kite::Protocol;
use kite::observe::board::{Board, Probed};
use kite::observe::score::{Scores, Standing};
use kite::observe::status::{Outcome, Status, Way};
use kite::observe::traffic::Speed;
use kite::shutdown::{self, Trigger};
use kite::sniff::TubId;
use kite::visit::tub_of;
use kite::witness::{AT_ONCE, Witness, Witnessing};
use rustls::ServerConfig;
use rustls::pki_types::PrivateKeyDer;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use crate::roles::{
    NAME, SWITCHING, Side, UNKNOWN_TUB, any, ask, dialer, foolscap_request, frontend, frontend_in,
    kites, negotiate, origin, service, until,
};

/// A node with a key of its own, on loopback. It takes foolscap's opening as it is, and no other.
async fn node() -> (SocketAddr, TubId) {
    let (address, id, _) = node_with_key().await;
    (address, id)
}

/// The same, with its certificate and key, PEM.
pub async fn node_with_key() -> (SocketAddr, TubId, String) {
    let key = rcgen::KeyPair::generate().unwrap();
    let params = rcgen::CertificateParams::new(vec!["newpb-thingy".into()]).unwrap();
    let certificate = params.self_signed(&key).unwrap();
    let tub = tub_of(certificate.der());
    let pem = certificate.pem() + &key.serialize_pem();
    let private = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], private)
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let id: TubId = tub.parse().unwrap();
    tokio::spawn(async move {
        while let Ok((mut conn, _)) = listener.accept().await {
            let (acceptor, tub) = (acceptor.clone(), tub.clone());
            tokio::spawn(async move {
                let mut request = Vec::new();
                while !request.ends_with(b"\r\n\r\n") {
                    if conn.read_buf(&mut request).await.unwrap_or(0) == 0 {
                        return;
                    }
                }
                let text = String::from_utf8_lossy(&request).into_owned();
                if !text.starts_with(&format!("GET /id/{tub} ")) {
                    let _ = conn.write_all(UNKNOWN_TUB).await;
                } else if !text.contains("\r\nUpgrade: TLS/1.0\r\n") {
                    let _ = conn.write_all(b"HTTP/1.1 500 Internal Server Error: internal server error, see logs\r\n\r\n").await;
                } else {
                    let _ = conn.write_all(SWITCHING).await;
                    if let Ok(mut tls) = acceptor.accept(conn).await {
                        let _ = tls.read_to_end(&mut Vec::new()).await;
                    }
                }
            });
        }
    });
    (address, id, pem)
}

/// Passes everything on to `to`; the first piece that comes in is put through `change`.
async fn middlebox(to: SocketAddr, change: fn(String) -> String) -> SocketAddr {
    middlebox_both(to, change, |text| text).await
}

/// The same, and the first piece that comes back is put through `back`.
async fn middlebox_both(
    to: SocketAddr,
    change: fn(String) -> String,
    back: fn(String) -> String,
) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut conn, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut first = vec![0; 4096];
                let n = conn.read(&mut first).await.unwrap_or(0);
                let text = String::from_utf8_lossy(&first[..n]).into_owned();
                let mut on = TcpStream::connect(to).await.unwrap();
                let _ = on.write_all(change(text).as_bytes()).await;
                let n = on.read(&mut first).await.unwrap_or(0);
                let text = String::from_utf8_lossy(&first[..n]).into_owned();
                let _ = conn.write_all(back(text).as_bytes()).await;
                let _ = tokio::io::copy_bidirectional(&mut conn, &mut on).await;
            });
        }
    });
    address
}

struct Scene {
    front: Side,
    board: Board,
    plan: Plan,
    _back: Trigger,
}

impl Scene {
    async fn with(services: Vec<Service>) -> Self {
        Self::on(Board::default(), services).await
    }

    async fn on(board: Board, services: Vec<Service>) -> Self {
        let protocols: Vec<_> = services.iter().map(|s| s.protocol).collect();
        let front = frontend(&protocols);
        let number = services.len();
        let plan = Plan {
            frontends: vec![To {
                address: front.address.parse().unwrap(),
                kites: None,
                tunnels: 1,
                homes: false,
            }],
            services,
        };
        let (back, order) = shutdown::channel();
        tokio::spawn(backend::run(
            Plan::fixed(plan.frontends.clone(), plan.services.clone()),
            dialer(),
            board.clone(),
            order,
        ));
        until("the kites are up", || kites(&front.handle).len() == number).await;
        until("the board says so", || {
            board.view().iter().any(|v| v.kites.len() == number)
        })
        .await;
        Self {
            front,
            board,
            plan,
            _back: back,
        }
    }

    fn status(&self) -> Status {
        Status::of_backend(Instant::now(), &self.board, &Speed::default(), &self.plan)
    }

    fn witness(&self, port: u16) -> Witness {
        let how = Witnessing {
            enabled: true,
            public_port: Some(port),
        };
        let plans = Plan::fixed(self.plan.frontends.clone(), self.plan.services.clone());
        Witness::new(plans, dialer(), self.board.clone(), how)
    }

    /// What a visitor finds that comes to this port.
    async fn visit(&self, port: u16) -> Probed {
        self.witness(port).visit_all().await;
        self.board.probes().pop().expect("a visit")
    }
}

/// Passes everybody on to where it points just then.
async fn signpost(to: SocketAddr) -> (SocketAddr, Arc<Mutex<SocketAddr>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let points_to = Arc::new(Mutex::new(to));
    let here = Arc::clone(&points_to);
    tokio::spawn(async move {
        while let Ok((mut conn, _)) = listener.accept().await {
            let to = *here.lock().unwrap();
            tokio::spawn(async move {
                let mut on = TcpStream::connect(to).await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut conn, &mut on).await;
            });
        }
    });
    (address, points_to)
}

#[tokio::test]
async fn a_tunnel_that_stands_and_brings_no_visitors_is_made_anew() {
    let (node, tub) = node().await;
    let state = tempfile::tempdir().unwrap();
    let one = || {
        frontend_in(
            state.path(),
            any(),
            &[Protocol::Foolscap],
            ProofRule::Optional,
        )
    };
    // Two of one key, and visitors do not come to where the tunnel is.
    let (was, is) = (one(), one());
    let (address, points_to) = signpost(was.public).await;
    let (_, pin) = was.address.split_once('#').unwrap();
    let to = To {
        address: format!("{address}#{pin}").parse().unwrap(),
        kites: None,
        tunnels: 2,
        homes: false,
    };
    let service = Service {
        tub: Some(tub),
        ..service(Protocol::Foolscap, NAME, node, "right")
    };
    let plans = Plan::fixed(vec![to], vec![service]);
    let board = Board::default();
    let (_back, order) = shutdown::channel();
    tokio::spawn(backend::run(plans.clone(), dialer(), board.clone(), order));
    let up = || board.view().iter().filter(|v| !v.kites.is_empty()).count();
    until("both tunnels stand", || up() == 2).await;

    let how = Witnessing {
        enabled: true,
        public_port: Some(address.port()),
    };
    let witness = Witness::new(plans, dialer(), board.clone(), how);
    let visit = async || {
        witness.visit_all().await;
        board.probes().pop().expect("a visit")
    };
    assert_eq!(visit().await.outcome, Outcome::Proven);
    *points_to.lock().unwrap() = is.public;
    let lost = visit().await;
    assert_eq!(
        (lost.outcome, lost.finding),
        (Outcome::Failed, "not-up"),
        "{}",
        lost.text
    );
    until("it flies where visitors come", || {
        kites(&is.handle).len() == 2
    })
    .await;
    let connects = || board.view().iter().map(|v| v.connects).sum::<u64>();
    until("by both tunnels", || connects() == 4 && up() == 2).await;
    let found = visit().await;
    assert_eq!(found.outcome, Outcome::Proven, "{}", found.text);
    assert_eq!(connects(), 4, "what brings visitors is let be");
}

async fn foolscap() -> Scene {
    let (address, tub) = node().await;
    let own = Service {
        tub: Some(tub),
        ..service(Protocol::Foolscap, NAME, address, "right")
    };
    Scene::with(vec![own]).await
}

#[tokio::test]
async fn a_visit_to_the_own_node_proves_the_way() {
    let scene = foolscap().await;
    assert!(
        scene.status().proven_hints().is_empty(),
        "nothing is proven before"
    );
    assert!(scene.status().screen().contains("not proven"));
    let port = scene.front.public.port();
    let found = scene.visit(port).await;
    assert_eq!(
        (found.outcome, found.finding),
        (Outcome::Proven, "own-node"),
        "{}",
        found.text
    );
    let status = scene.status();
    assert_eq!(status.proven_hints(), [format!("tcp:{NAME}:{port}")]);
    let screen = status.screen();
    assert!(screen.contains("reachable?      yes"), "{screen}");
    assert!(
        screen.contains(&format!("tub.location = tcp:{NAME}:{port}")),
        "{screen}"
    );
    assert!(
        screen.contains("hidden?         NO"),
        "direct mode hides nothing: {screen}"
    );
}

#[tokio::test]
async fn a_node_that_was_put_in_its_place_is_told() {
    let scene = foolscap().await;
    let (thief, _) = node().await;
    let found = scene.visit(thief.port()).await;
    assert_eq!(
        (found.outcome, found.finding),
        (Outcome::Failed, "other-node"),
        "{}",
        found.text
    );
    // One that says yes to whatever tub is asked for.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let liar = listener.local_addr().unwrap();
    let (behind, behind_tub) = node().await;
    tokio::spawn(async move {
        while let Ok((mut conn, _)) = listener.accept().await {
            let tub = behind_tub.as_str().to_owned();
            tokio::spawn(async move {
                let mut asked = vec![0; 4096];
                let _ = conn.read(&mut asked).await;
                let mut on = TcpStream::connect(behind).await.unwrap();
                let own = format!(
                    "GET /id/{tub} HTTP/1.1\r\nHost: {NAME}\r\nUpgrade: TLS/1.0\r\nConnection: Upgrade\r\n\r\n"
                );
                on.write_all(own.as_bytes()).await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut conn, &mut on).await;
            });
        }
    });
    let found = scene.visit(liar.port()).await;
    assert_eq!(
        (found.outcome, found.finding),
        (Outcome::Failed, "other-node"),
        "{}",
        found.text
    );
    assert!(
        found.text.contains(behind_tub.as_str()),
        "it says whose: {}",
        found.text
    );
    let status = scene.status();
    assert!(status.proven_hints().is_empty());
    let screen = status.screen();
    assert!(
        screen.contains("reachable?      NO") && !screen.contains("tub.location = "),
        "{screen}"
    );
    assert!(
        status
            .troubles
            .iter()
            .any(|t| t.text.contains("another node"))
    );
}

#[tokio::test]
async fn an_opening_that_is_rewritten_is_told() {
    let scene = foolscap().await;
    for change in [
        (|text: String| {
            text.to_lowercase()
                .replace("get /id", "GET /id")
                .replace("http/1.1", "HTTP/1.1")
        }) as fn(String) -> String,
        |text| text.replace("Upgrade: TLS/1.0\r\n", ""),
    ] {
        let on_the_way = middlebox(scene.front.public, change).await;
        let found = scene.visit(on_the_way.port()).await;
        assert_eq!(found.outcome, Outcome::Failed, "{}", found.text);
        assert!(
            ["altered", "forbidden", "closed"].contains(&found.finding),
            "{}",
            found.finding
        );
    }
    let untouched = middlebox(scene.front.public, |text| text).await;
    assert_eq!(scene.visit(untouched.port()).await.outcome, Outcome::Proven);
}

/// What does foolscap no harm, and so is seen by nobody who does not compare.
#[tokio::test]
async fn a_header_more_is_told_in_both_directions() {
    let added: fn(String) -> String =
        |text| text.replacen("\r\n\r\n", "\r\nVia: 1.1 proxy.example\r\n\r\n", 1);
    let same: fn(String) -> String = |text| text;
    let respaced: fn(String) -> String = |text| text.replacen("Connection: ", "Connection:  ", 1);
    let scene = foolscap().await;
    let public = scene.front.public;
    for (there, back, word) in [
        (added, same, "opened with"),
        (respaced, same, "opened with"),
        (same, added, "answered"),
    ] {
        let on_the_way = middlebox_both(public, there, back).await;
        let found = scene.visit(on_the_way.port()).await;
        assert_eq!(
            (found.outcome, found.finding),
            (Outcome::Failed, "altered"),
            "{}",
            found.text
        );
        assert!(found.text.contains(word), "{}", found.text);
        assert!(scene.status().proven_hints().is_empty());
    }
    let untouched = middlebox_both(public, same, same).await;
    assert_eq!(scene.visit(untouched.port()).await.outcome, Outcome::Proven);

    // Without a tub the opening is compared all the same.
    let (address, _) = node().await;
    let scene = Scene::with(vec![service(Protocol::Foolscap, NAME, address, "right")]).await;
    let on_the_way = middlebox(scene.front.public, added).await;
    let found = scene.visit(on_the_way.port()).await;
    assert_eq!(found.finding, "altered", "{}", found.text);
}

#[tokio::test]
async fn who_leads_astray_is_marked_over_a_restart_and_until_a_good_visit() {
    let dir = tempfile::tempdir().unwrap();
    let scores = || Scores::open(dir.path());
    let (address, tub) = node().await;
    let own = Service {
        tub: Some(tub),
        ..service(Protocol::Foolscap, NAME, address, "right")
    };
    let scene = Scene::on(Board::with_scores(scores()), vec![own]).await;
    let public = scene.front.public;
    let score = || scene.status().frontends[0].score.clone();
    assert_eq!(score(), None);
    scene.visit(public.port()).await;
    assert_eq!(score().unwrap().standing, Standing::Good);
    assert!(scene.status().to_string().contains("scores 100 of 100"));

    let rewriting = middlebox(public, |text| {
        text.replacen("\r\n\r\n", "\r\nForwarded: for=192.0.2.1\r\n\r\n", 1)
    });
    let rewriting = rewriting.await.port();
    let (thief, _) = node().await;
    // Let go at once: nobody listens there.
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr();
    let closed = closed.unwrap().port();
    let kite = format!("foolscap:{NAME}");
    for astray in [rewriting, thief.port()] {
        // What comes nowhere after it does not say that it is over.
        for port in [astray, closed] {
            scene.visit(port).await;
            let now = score().unwrap();
            assert_eq!(
                (now.standing, &now.astray[..]),
                (Standing::Astray, &[kite.clone()][..])
            );
        }
        let kept = scores().of(&scene.front.address, |_| true).unwrap();
        assert_eq!(kept.standing, Standing::Astray, "after a restart");
        let screen = scene.status().screen();
        assert!(screen.contains("ASTRAY"), "{screen}");
        scene.visit(public.port()).await;
        assert_ne!(score().unwrap().standing, Standing::Astray);
        assert_eq!(scene.status().proven_hints().len(), 1);
    }
    let kept = scores().of(&scene.front.address, |_| true).unwrap();
    assert_eq!((kept.standing, kept.points), (Standing::Poor, 43), "3 of 7");
    for _ in 0..9 {
        scene.visit(public.port()).await;
    }
    assert_eq!(score().unwrap().standing, Standing::Good);
}

/// Its own tunnel's node is down: that is not the frontend's fault.
#[tokio::test]
async fn an_origin_that_is_down_spoils_no_frontends_score() {
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr();
    let closed = closed.unwrap();
    let (_, tub) = node().await;
    let own = Service {
        tub: Some(tub),
        ..service(Protocol::Foolscap, NAME, closed, "right")
    };
    let scene = Scene::with(vec![own]).await;
    let found = scene.visit(scene.front.public.port()).await;
    assert_eq!(found.finding, "not-up", "{}", found.text);
    assert_eq!(scene.status().frontends[0].score, None);
}

#[tokio::test]
async fn a_kite_that_is_not_up_and_a_closed_port_are_told_apart() {
    let scene = foolscap().await;
    let to: FrontendAddr = scene.front.address.parse().unwrap();
    let grounded = Service {
        name: "carol.alice.example".parse().unwrap(),
        ..scene.plan.services[0].clone()
    };
    let port = scene.front.public.port();
    let witness = scene.witness(port);
    let found = witness.visit(&grounded, Goal::Frontend(&to), port).await;
    let found = found.unwrap();
    assert_eq!(
        (found.outcome, found.finding),
        (Outcome::Failed, "not-up"),
        "{}",
        found.text
    );
    let closed = TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap();
    let found = scene.visit(closed.port()).await;
    let all = scene.board.probes();
    assert!(
        all.iter()
            .any(|p| p.finding == "unreachable" && p.outcome == Outcome::Failed),
        "{}",
        found.text
    );
}

#[tokio::test]
async fn without_a_tub_nothing_is_proven() {
    let (address, _) = node().await;
    let scene = Scene::with(vec![service(Protocol::Foolscap, NAME, address, "right")]).await;
    let found = scene.visit(scene.front.public.port()).await;
    assert_eq!(
        (found.outcome, found.finding),
        (Outcome::Reached, "some-node"),
        "{}",
        found.text
    );
    assert!(scene.status().proven_hints().is_empty());
}

/// Goes out as the dialer of the other tests does, but visitors go where names and addresses lead in a world of its own.
struct World {
    name: Option<SocketAddr>,
    address: HashMap<String, SocketAddr>,
    visits: Arc<Mutex<Vec<String>>>,
}

#[async_trait::async_trait]
impl Dialer for World {
    async fn dial(&self, to: &FrontendAddr, lane: Lane) -> Result<Dialled, DialError> {
        dialer().dial(to, lane).await
    }

    async fn visit(&self, goal: Goal<'_>, _: u16) -> Result<BoxConn, DialError> {
        let (shown, to) = match goal {
            Goal::Name(name) => (name.to_string(), self.name),
            Goal::Frontend(f) => (f.to_string(), self.address.get(&f.to_string()).copied()),
        };
        self.visits.lock().unwrap().push(shown);
        let conn = TcpStream::connect(to.ok_or(DialError::NameNotFound)?).await;
        Ok(Box::new(conn.map_err(|_| DialError::Refused)?))
    }

    fn finds_names(&self) -> bool {
        true
    }

    fn describe(&self) -> &'static str {
        "a world of its own"
    }
}

/// A kite at two frontends, whose own visitor goes where name and addresses lead to these of them.
struct Two {
    sides: Vec<Side>,
    board: Board,
    plan: Plan,
    visits: Arc<Mutex<Vec<String>>>,
    witness: Witness,
    _back: Trigger,
}

impl Two {
    async fn with(name: Option<usize>, addresses: [usize; 2]) -> Self {
        let (node, tub) = node().await;
        let sides: Vec<_> = (0..2).map(|_| frontend(&[Protocol::Foolscap])).collect();
        let to = |side: &Side| To {
            address: side.address.parse().unwrap(),
            kites: None,
            tunnels: 1,
            homes: false,
        };
        let plan = Plan {
            frontends: sides.iter().map(to).collect(),
            services: vec![Service {
                tub: Some(tub),
                ..service(Protocol::Foolscap, NAME, node, "right")
            }],
        };
        let (board, visits) = (Board::default(), Arc::default());
        let (back, order) = shutdown::channel();
        let plans = Plan::fixed(plan.frontends.clone(), plan.services.clone());
        tokio::spawn(backend::run(plans.clone(), dialer(), board.clone(), order));
        until("it flies at both", || {
            board.view().iter().filter(|v| !v.kites.is_empty()).count() == 2
        })
        .await;
        let public = |n: usize| sides[n].public;
        let here = sides.iter().zip(addresses);
        let world = World {
            name: name.map(public),
            address: here.map(|(s, n)| (s.address.clone(), public(n))).collect(),
            visits: Arc::clone(&visits),
        };
        let how = Witnessing {
            public_port: Some(80),
            ..Witnessing::default()
        };
        let witness = Witness::new(plans, Arc::new(world), board.clone(), how);
        Self {
            sides,
            board,
            plan,
            visits,
            witness,
            _back: back,
        }
    }

    /// After visits.
    async fn visited(&self) -> Status {
        self.witness.visit_all().await;
        Status::of_backend(Instant::now(), &self.board, &Speed::default(), &self.plan)
    }

    fn address(&self, n: usize) -> &str {
        &self.sides[n].address
    }

    fn visits(&self) -> Vec<String> {
        self.visits.lock().unwrap().clone()
    }
}

#[tokio::test]
async fn a_frontend_is_proven_by_a_visit_through_it_and_by_no_other() {
    // The name leads to the first; the second is visited at its own address.
    let two = Two::with(Some(0), [0, 1]).await;
    let status = two.visited().await;
    let kite = &status.kites[0];
    assert_eq!(two.visits(), [NAME, two.address(1)]);
    for (n, way) in [(0, Way::Name), (1, Way::Frontend)] {
        let probe = kite.probe(two.address(n)).unwrap();
        assert_eq!((probe.outcome, probe.way), (Outcome::Proven, way));
        assert_eq!((probe.visits, probe.proven), (1, 1), "{}", probe.text);
    }
    assert_eq!(kite.by_name[0].frontend.as_deref(), Some(two.address(0)));
    assert_eq!(status.proven_hints().len(), 1);
    assert!(status.screen().contains("reachable?      yes"));
    let probe = two.visited().await.kites[0].probes[1].clone();
    assert_eq!((probe.visits, probe.proven), (2, 2), "{}", probe.text);

    // The second's address leads to the first, too: of the second nothing is known.
    let two = Two::with(Some(0), [0, 0]).await;
    let status = two.visited().await;
    let kite = &status.kites[0];
    assert!(kite.is_proven(two.address(0)));
    let probe = kite.probe(two.address(1)).unwrap();
    let found = (probe.outcome, probe.finding.as_str());
    assert_eq!(found, (Outcome::Reached, "other-way"), "{}", probe.text);
    assert!(probe.text.contains(two.address(0)), "{}", probe.text);
    assert!(status.proven_hints().is_empty());
    let screen = status.screen();
    assert!(screen.contains("in part: 1 of 2 ways"), "{screen}");
    assert!(!screen.contains("tub.location = "), "{screen}");
    let text = status.to_string();
    for (n, word) in [(0, "proven, "), (1, "reached, not proven, ")] {
        let line = format!("through {}: {word}", two.address(n));
        assert!(text.contains(&line), "{text}");
    }
}

#[tokio::test]
async fn a_name_that_leads_nowhere_is_told_from_frontends_that_do_their_part() {
    let two = Two::with(None, [0, 1]).await;
    let status = two.visited().await;
    let kite = &status.kites[0];
    assert_eq!(two.visits().len(), 3, "{:?}", two.visits());
    assert!((0..2).all(|n| kite.is_proven(two.address(n))));
    assert_eq!(kite.by_name[0].finding, "name-not-found");
    assert!(status.proven_hints().is_empty());
    let screen = status.screen();
    assert!(screen.contains("reachable?      NO"), "{screen}");
    assert!(
        screen.contains(&format!("by its name, {NAME}:")),
        "{screen}"
    );
}

#[tokio::test]
async fn what_cannot_be_visited_is_said_not_to_be() {
    let two = Two::with(Some(0), [0, 1]).await;
    let onion = "2gzyxa5ihm7nsggfxnu52rck2vv4rvmdlkiu3zzui5du4xyclen53wid.onion:443";
    let onion: FrontendAddr = onion.parse().unwrap();
    let service = &two.plan.services[0];
    let visit = two.witness.visit(service, Goal::Frontend(&onion), 80).await;
    let visit = visit.unwrap();
    assert_eq!(
        (visit.outcome, visit.finding),
        (Outcome::NotProbed, "onion"),
        "{}",
        visit.text
    );
    assert_eq!(visit.record.visits, 0);
    assert!(two.visits().is_empty());
}

#[tokio::test]
async fn who_asks_while_another_asks_shares_the_visits() {
    let two = Two::with(Some(0), [0, 1]).await;
    let ask = || two.witness.visit_all();
    tokio::join!(ask(), ask(), ask(), ask(), ask(), ask());
    // As many as may be under way at once may have set out before they knew of each other.
    let paid = two.visits().len();
    assert!((2..=2 * AT_ONCE).contains(&paid), "{:?}", two.visits());
}

#[tokio::test]
async fn both_sides_count_the_same_visitors_and_bytes() {
    let (address, _) = origin(SWITCHING).await;
    let services = vec![
        service(Protocol::Foolscap, NAME, address, "right"),
        service(Protocol::Https, "web.alice.example", address, "right"),
    ];
    let scene = Scene::with(services).await;
    let mut visitor = negotiate(scene.front.public, NAME).await;
    let said = [&[0x16, 3, 1, 0, 5][..], b"hello"].concat();
    visitor.write_all(&said).await.unwrap();
    visitor.read_exact(&mut vec![0; said.len()]).await.unwrap();
    let front = || {
        let handle = &scene.front.handle;
        Status::of_frontend(
            Instant::now(),
            handle.tunnels(),
            &handle.ledger(),
            &Speed::default(),
        )
    };
    let up = (foolscap_request(NAME).len() + said.len()) as u64;
    let down = (SWITCHING.len() + said.len()) as u64;
    for status in [scene.status(), front()] {
        let t = &status.traffic;
        assert_eq!((t.visitors, t.open), (1, 1), "{:?}", status.role);
        assert_eq!(
            (t.from_visitors, t.to_visitors),
            (up, down),
            "{:?}",
            status.role
        );
        let by_kite: Vec<_> = status
            .kites
            .iter()
            .map(|k| (k.traffic.visitors, k.tunnels))
            .collect();
        assert!(
            by_kite.contains(&(1, 1)) && by_kite.contains(&(0, 1)),
            "{by_kite:?}"
        );
    }
    let status = scene.status();
    assert_eq!(status.tunnels[0].traffic, status.traffic);
    assert_eq!(status.frontends[0].traffic, status.traffic);
    assert_eq!(status.kites[0].flies_at, status.kites[0].wanted_at);
    assert_eq!(
        status.kites[0].origin.as_ref().unwrap().state,
        "speaks foolscap"
    );

    drop(visitor);
    until("it has left", || {
        scene.status().traffic.open == 0 && front().traffic.open == 0
    })
    .await;

    // Sent away at the frontend, and at the backend.
    ask(scene.front.public, foolscap_request("nobody.alice.example")).await;
    ask(scene.front.public, b"nonsense\r\n\r\n").await;
    let refused = front().traffic.refused;
    assert_eq!(refused.get("not-here"), Some(&1), "{refused:?}");
    assert_eq!(refused.get("malformed"), Some(&1), "{refused:?}");
    assert_eq!(
        front().traffic.visitors,
        1,
        "who was sent away did not come through"
    );
}

#[tokio::test]
async fn an_origin_that_is_down_is_counted_and_told() {
    let closed = TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap();
    let scene = Scene::with(vec![service(Protocol::Foolscap, NAME, closed, "right")]).await;
    ask(scene.front.public, foolscap_request(NAME)).await;
    until("it is counted", || {
        scene.status().traffic.refused.get("no-origin") == Some(&1)
    })
    .await;
    let status = scene.status();
    let origin = status.kites[0].origin.as_ref().unwrap();
    assert_eq!(origin.state, "down");
    assert!(origin.last_trouble.is_some());
    assert_eq!(status.troubles[0].with, format!("foolscap:{NAME}"));
    assert_eq!(status.traffic.visitors, 0);
}

#[tokio::test]
async fn a_wrong_secret_is_remembered_with_its_kite() {
    let (address, _) = origin(SWITCHING).await;
    let front = frontend(&[Protocol::Foolscap]);
    let (board, plan) = (
        Board::default(),
        Plan {
            frontends: vec![To {
                address: front.address.parse().unwrap(),
                kites: None,
                tunnels: 1,
                homes: false,
            }],
            services: vec![service(Protocol::Foolscap, NAME, address, "wrong")],
        },
    );
    let (_back, order) = shutdown::channel();
    let plans = Plan::fixed(plan.frontends.clone(), plan.services.clone());
    tokio::spawn(backend::run(plans, dialer(), board.clone(), order));
    let status = || Status::of_backend(Instant::now(), &board, &Speed::default(), &plan);
    let refused = format!("foolscap:{NAME}: the secret is wrong");
    until("it is remembered", || {
        status()
            .troubles
            .iter()
            .any(|t| t.text.starts_with(&refused))
    })
    .await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    let status = status();
    assert_eq!(status.frontends[0].up, 0);
    assert!(status.frontends[0].last_error.is_some());
}
