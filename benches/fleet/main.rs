//! What a fleet's map costs a member: `cargo bench --bench fleet`. What it costs etcd is measured by `etcd_figures.py` beside
//! this. The figures, and what follows from them, are in docs/fleet.md.
#![allow(clippy::disallowed_methods, reason = "a benchmark starts itself again")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a benchmark"
)]

use std::fs;
use std::process::Command;
use std::time::Instant;

use kite::fleet::homes::{HOMES, homes};
use kite::fleet::map::{Flight, Key, Map};
use kite::fleet::member::MemberId;
use kite::kite::KiteName;

/// Members and kites; each kite flies at two members.
const SCALES: [(usize, usize); 4] = [(5, 2000), (50, 50_000), (200, 200_000), (1000, 1_000_000)];
const TUNNELS: usize = 2;
/// How often what is quick is done.
const TIMES: usize = 100_000;

fn resident() -> usize {
    let statm = fs::read_to_string("/proc/self/statm").unwrap();
    let pages = statm.split(' ').nth(1).unwrap();
    pages.parse::<usize>().unwrap() * 4096
}

fn name(kite: usize) -> String {
    format!("k{kite:07}.storage.alice.example")
}

fn key(kite: usize) -> Key {
    ("http".into(), name(kite))
}

/// Sessions, and the marks of backends, are as long as kite's own.
fn flight(kite: usize, tunnel: usize) -> Flight {
    Flight {
        session: format!("{:032x}", kite * TUNNELS + tunnel),
        since: 1_795_755_600_000 + kite as u64,
        backend: Some(format!("{kite:016x}")),
        several: false,
    }
}

fn main() {
    let args: Vec<String> = std::env::args().filter(|a| a != "--bench").collect();
    if let [_, members, kites] = &args[..] {
        return scale(members.parse().unwrap(), kites.parse().unwrap());
    }
    println!(
        "members | kites | MB of the map | bytes a flight | puts/s | finds/s | homes/s | ms to take a member out"
    );
    for (members, kites) in SCALES {
        // In a process of its own, lest it take what the one before has given back.
        let mut again = Command::new(std::env::current_exe().unwrap());
        let done = again.args([members, kites].map(|n| n.to_string())).status();
        assert!(done.unwrap().success());
    }
}

fn scale(members: usize, kites: usize) {
    let ids: Vec<MemberId> = (0..members)
        .map(|n| format!("fe-{n}").parse().unwrap())
        .collect();
    let at = |kite: usize, tunnel: usize| &ids[(kite * 7 + tunnel * 3 + kite / members) % members];
    let before = resident();
    let mut map = Map::default();
    let began = Instant::now();
    for kite in 0..kites {
        for tunnel in 0..TUNNELS {
            assert!(map.put(at(kite, tunnel), key(kite), flight(kite, tunnel)));
        }
    }
    let flights = kites * TUNNELS;
    let puts = flights as f64 / began.elapsed().as_secs_f64();
    let held = resident() - before;
    let hosts: Vec<KiteName> = (0..TIMES)
        .map(|n| name(n * 31 % kites).parse().unwrap())
        .collect();
    let began = Instant::now();
    for host in &hosts {
        assert_eq!(
            map.find(&["http", "http2"], 443, host)
                .unwrap()
                .members
                .len(),
            2
        );
    }
    let finds = TIMES as f64 / began.elapsed().as_secs_f64();
    let began = Instant::now();
    let times = TIMES / members;
    for n in 0..times {
        assert_eq!(homes(&name(n), &ids, HOMES).len(), HOMES);
    }
    let hashed = times as f64 / began.elapsed().as_secs_f64();
    let began = Instant::now();
    map.drop_member(&ids[1]);
    println!(
        "{members:7} | {kites:7} | {:6.1} | {:4} | {puts:8.0} | {finds:8.0} | {hashed:8.0} | {:.1}",
        held as f64 / 1048576.0,
        held / flights,
        began.elapsed().as_secs_f64() * 1e3
    );
}
