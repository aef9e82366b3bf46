//! Several frontends of one domain: whichever a visitor comes to, it reaches its kite.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use kite::config::{FleetConfig, FrontendConfig, Listen, ProofRule};
use kite::fleet::Fleet;
use kite::fleet::member::Member;
use kite::kite::Protocol;
use kite::shutdown::Trigger;
use kite::tls::MemberTls;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::roles::{
    NAME, SWITCHING, Side, any, ask, backend, frontend_config, kites, negotiate, origin, service,
    start, until,
};

/// Frontends that know each other.
pub struct Together {
    pub sides: Vec<Side>,
    _states: Vec<tempfile::TempDir>,
}

/// A free port on loopback, for who must be known before it listens.
async fn free() -> SocketAddr {
    let probe = TcpListener::bind("127.0.0.1:0").await.unwrap();
    probe.local_addr().unwrap()
}

/// What a member is to the others.
pub fn member(name: &str, address: SocketAddr, state: &Path) -> Member {
    Member {
        id: name.parse().unwrap(),
        address,
        pin: MemberTls::load_or_create(state).unwrap().pin(),
        public: None,
    }
}

/// So many frontends, called a, b, c; what is special about each is put in by `with`.
pub async fn fleet_of(
    n: usize,
    protocols: &[Protocol],
    with: impl Fn(usize, &mut FrontendConfig),
) -> Together {
    let states: Vec<_> = (0..n).map(|_| tempfile::tempdir().unwrap()).collect();
    let mut members = Vec::new();
    for (i, state) in states.iter().enumerate() {
        let name = ["a", "b", "c", "d"][i];
        members.push(member(name, free().await, state.path()));
    }
    let mut sides = Vec::new();
    for (i, state) in states.iter().enumerate() {
        let mut config = frontend_config(state.path(), any(), protocols, ProofRule::Optional);
        config.grace = Duration::ZERO;
        config.fleet = Some(FleetConfig {
            listen: members[i].address,
            id: members[i].id.clone(),
            members: members.clone(),
        });
        with(i, &mut config);
        sides.push(start(config));
    }
    let together = Together {
        sides,
        _states: states,
    };
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
    assert_eq!(visitors.load(std::sync::atomic::Ordering::SeqCst), 3);
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
    assert_eq!(visitors.load(std::sync::atomic::Ordering::SeqCst), 0);
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
