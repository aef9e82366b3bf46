//! The frontend's registry among so many kites: found, not found, registered.

use std::hint::black_box;

use bytes::BytesMut;
use kite::frontend::account::Account;
use kite::frontend::auth::Leave;
use kite::frontend::limits::Limits;
use kite::frontend::registry::{Claim, Claimant, Registry, Terms};
use kite::kite::{KiteName, Protocol};
use kite::tunnel::Tunnel;
use kite::tunnel::buffer::Pool;
use kite::tunnel::mux::{Liveness, Settings, Side};
use kite::wire::KiteId;

use crate::count::{Case, Operation};

/// Kites of one tunnel.
const EACH: usize = 50;
/// What a visitor's request is looked up as.
const PROTOS: [&str; 3] = ["http", "http2", "http3"];

pub fn cases(numbers: &[usize]) -> Vec<Case> {
    let mut cases = Vec::new();
    for &n in numbers {
        cases.push(Case::new(
            format!("registry: a kite is found, of {n}"),
            1000,
            move |_| found(n),
        ));
    }
    for &n in numbers {
        cases.push(Case::new(
            format!("registry: a name that nobody has, of {n}"),
            1000,
            move |_| missed(n),
        ));
    }
    for &n in numbers {
        let times = 40;
        cases.push(Case::new(
            format!("registry: a tunnel comes and goes, of {n} kites"),
            times,
            move |_| visited(n),
        ));
    }
    cases
}

/// Kites on tunnels that stand, and what a tunnel needs to stand.
struct Sky {
    registry: Registry,
    runtime: tokio::runtime::Runtime,
}

impl Sky {
    fn new(kites: usize) -> Self {
        let sky = Self {
            registry: Registry::default(),
            runtime: tokio::runtime::Builder::new_current_thread()
                .enable_time()
                .build()
                .unwrap(),
        };
        for tunnel in 0..kites.div_ceil(EACH) {
            let session = format!("{tunnel:040x}");
            for kite in tunnel * EACH..kites.min((tunnel + 1) * EACH) {
                sky.claim(&session, &host(kite));
            }
            sky.registry.activate(&session, &sky.tunnel());
        }
        sky
    }

    /// A tunnel whose driver never runs.
    fn tunnel(&self) -> Tunnel {
        let _here = self.runtime.enter();
        let (near, _) = tokio::io::duplex(64);
        let settings = Settings::agreed(Side::Frontend, None, Liveness::DEFAULT);
        Tunnel::start(near, BytesMut::new(), settings, Pool::new())
    }

    fn claim(&self, session: &str, name: &str) {
        let id = KiteId {
            proto: "http".into(),
            name: name.into(),
            bsalt: String::new(),
        };
        let leave = Leave {
            terms: Terms::from([Protocol::Http]),
            storage_only: false,
            account: Account::new(&id.name, Limits::default(), None, None),
            backends: 1,
            proof: None,
        };
        let claimant = Claimant::new(session, "[scrubbed]");
        let claim = self.registry.claim(&id, leave, claimant);
        assert!(matches!(claim, Claim::Granted));
    }
}

fn host(kite: usize) -> String {
    format!("k{kite}.alice.example")
}

fn found(kites: usize) -> Operation {
    let sky = Sky::new(kites);
    let hosts: Vec<KiteName> = (0..kites).map(|n| host(n).parse().unwrap()).collect();
    let mut turn = 0;
    Box::new(move || {
        turn += 1;
        let host = &hosts[turn * 7919 % kites];
        assert!(black_box(sky.registry.find(&PROTOS, 80, host)).is_some());
    })
}

fn missed(kites: usize) -> Operation {
    let sky = Sky::new(kites);
    let host: KiteName = "nobody.alice.example".parse().unwrap();
    Box::new(move || assert!(black_box(sky.registry.find(&PROTOS, 80, &host)).is_none()))
}

/// All that the registry does for a tunnel with one kite, from the claim to the end.
fn visited(kites: usize) -> Operation {
    let sky = Sky::new(kites);
    let tunnel = sky.tunnel();
    let mut turn = 0;
    Box::new(move || {
        turn += 1;
        let session = format!("{turn:038x}ff");
        sky.claim(&session, "new.alice.example");
        sky.registry.activate(&session, &tunnel);
        assert_eq!(black_box(sky.registry.of_session(&session)).len(), 1);
        assert_eq!(black_box(sky.registry.release(&session)).len(), 1);
    })
}
