//! The rows of docs/performance.md, each measured in interleaved rounds.

use std::fs::File;
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::ROUNDS;
use crate::load::{NAME, block_file, download, echo, knock, ping, upload, visit};
use crate::party::Party;
use crate::route::{self, Hop, Route};

/// Bytes of one transfer.
const BULK: u64 = 1 << 30;
/// Streams at once.
const SIXTEEN: usize = 16;
/// New connections, one after the other.
const KNOCKS: usize = 1000;
/// How long connections are made as fast as possible.
const RUSH: Duration = Duration::from_secs(2);
/// Those who make them.
const RUSHERS: usize = 16;
/// Round trips that are timed.
const PINGS: usize = 300;
/// Streams that do nothing.
const IDLE: usize = 2000;
/// Tunnels to one frontend.
const TUNNELS: usize = 200;
/// The long path, one way.
const LATE_MS: &str = "50";
/// And its rate, in bytes a second: 2 Gbit/s.
const LONG: &str = "250000000";
/// The slow path, in bytes a second.
const SLOW: &str = "4000000";

/// Longer than a tunnel has to live for its loss to be taken for a restart.
const LIVED: Duration = Duration::from_secs(6);

struct Scene {
    dir: tempfile::TempDir,
    origin: SocketAddr,
    file: File,
    _origin: Party,
}

type Row = (&'static str, &'static str, fn(&Scene));

const ROWS: [Row; 11] = [
    ("peers", "other tunnels, whichever are installed", peers),
    ("stream", "one stream, and CPU", one_stream),
    ("sixteen", "16 streams", sixteen),
    ("pinned", "one stream with TLS on the tunnel", pinned),
    ("connect", "a new connection", connect),
    ("rush", "connections a second", rush),
    (
        "ping",
        "64 bytes under a download on the same tunnel",
        ping_under_load,
    ),
    ("long", "a path of 100 ms and 250 MB/s", long_path),
    ("slow", "a path of 100 ms and 4 MB/s", slow_path),
    ("memory", "memory of idle streams and tunnels", memory),
    ("return", "after the frontend was killed", back_again),
];

/// Measures the rows that are named, or all.
pub fn measure(names: &[String]) {
    let unknown = names
        .iter()
        .find(|n| ROWS.iter().all(|(name, ..)| name != n));
    assert!(unknown.is_none(), "no row is called {unknown:?}");
    let (party, origin) = Party::own(&["origin"]);
    let scene = Scene {
        dir: tempfile::tempdir().unwrap(),
        origin,
        file: block_file(),
        _origin: party,
    };
    let cores = std::thread::available_parallelism().map_or(1, Into::into);
    println!("{ROUNDS} interleaved rounds, {cores} cores; median (least to most)");
    for (name, title, row) in ROWS {
        if names.is_empty() || names.iter().any(|n| n == name) {
            println!("\n## {name}: {title}");
            row(&scene);
        }
    }
}

impl Scene {
    fn dir(&self) -> &Path {
        self.dir.path()
    }

    fn kite(&self) -> Route {
        route::kite(self.dir(), self.origin, Hop::Plain)
    }

    fn haproxy2(&self) -> Route {
        route::haproxy2(self.dir(), self.origin)
    }

    fn raw(&self) -> Route {
        route::raw(self.origin)
    }
}

// ------------------------------------------------------------------ figures

/// Values of one figure of one route, a round each.
struct Figure {
    what: String,
    route: &'static str,
    values: Vec<f64>,
}

/// All figures of a row, in the order in which they came first.
#[derive(Default)]
struct Table(Vec<Figure>);

impl Table {
    fn add(&mut self, what: &str, route: &'static str, value: f64) {
        let same = |f: &&mut Figure| f.what == what && f.route == route;
        match self.0.iter_mut().find(same) {
            Some(figure) => figure.values.push(value),
            None => self.0.push(Figure {
                what: what.to_owned(),
                route,
                values: vec![value],
            }),
        }
    }

    fn of(&self, what: &str, route: &str) -> f64 {
        let figure = self.0.iter().find(|f| f.what == what && f.route == route);
        median(&figure.unwrap().values)
    }

    fn print(&self, unit: &str) {
        for f in &self.0 {
            let (low, high) = (quantile(&f.values, 0.0), quantile(&f.values, 1.0));
            println!(
                "{:24} {:13} {:10.4} {unit}  ({low:.4} to {high:.4})",
                f.what,
                f.route,
                median(&f.values)
            );
        }
    }

    /// `what` of two routes, as a ratio of medians beside the goal.
    fn ratio(&self, what: &str, route: &str, by: &str, goal: Goal) {
        let ratio = self.of(what, route) / self.of(what, by);
        verdict(&format!("{what}: {route} / {by}"), ratio, goal);
    }
}

#[derive(Clone, Copy)]
enum Goal {
    AtLeast(f64),
    AtMost(f64),
}

use Goal::{AtLeast, AtMost};

fn verdict(what: &str, value: f64, goal: Goal) {
    let (reached, sign, goal) = match goal {
        AtLeast(goal) => (value >= goal, "at least", goal),
        AtMost(goal) => (value <= goal, "at most", goal),
    };
    let word = if reached { "reached" } else { "MISSED" };
    println!("=> {what} = {value:.2}   goal {sign} {goal}: {word}");
}

fn median(values: &[f64]) -> f64 {
    quantile(values, 0.5)
}

fn quantile(values: &[f64], q: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[((sorted.len() - 1) as f64 * q).round() as usize]
}

// --------------------------------------------------------------------- rows

fn one_stream(scene: &Scene) {
    let routes = [
        scene.raw(),
        scene.haproxy2(),
        scene.kite(),
        route::ssh(scene.dir(), scene.origin),
    ];
    let (mut speed, mut cpu) = (Table::default(), Table::default());
    for _ in 0..ROUNDS {
        for route in &routes {
            for up in [false, true] {
                let what = if up { "up" } else { "down" };
                let before = route.cpu();
                let took = if up {
                    upload(route.address, BULK, &scene.file)
                } else {
                    download(route.address, BULK)
                };
                speed.add(what, route.name, BULK as f64 / took / 1e9);
                cpu.add(what, route.name, (route.cpu() - before) * 1e9 / BULK as f64);
            }
        }
    }
    speed.print("GB/s");
    cpu.print("CPU s/GB");
    speed.ratio("down", "kite", "haproxy2", AtLeast(1.5));
    speed.ratio("up", "kite", "haproxy2", AtLeast(1.7));
    for what in ["down", "up"] {
        verdict(
            &format!("{what}: CPU s/GB"),
            cpu.of(what, "kite"),
            AtMost(0.7),
        );
    }
}

/// Programs that are not measured unless they are here, and how to get them.
const INSTALL: [(&str, &str); 3] = [
    ("pagekite", "apt-get install pagekite"),
    ("rathole", "cargo install rathole"),
    ("bore", "cargo install bore-cli"),
];

/// Every tunnel beside raw loopback and HAProxy: one stream, its CPU, new connections, idle streams.
fn peers(scene: &Scene) {
    type Make = fn(&Path, SocketAddr) -> Route;
    let makers: [Make; 3] = [route::pagekite, route::rathole, route::bore];
    let mut routes = vec![scene.raw(), scene.haproxy2(), scene.kite()];
    routes.push(route::ssh(scene.dir(), scene.origin));
    for ((program, how), make) in INSTALL.into_iter().zip(makers) {
        if installed(program) {
            routes.push(make(scene.dir(), scene.origin));
        } else {
            println!("{program} is not measured, as it is not installed: {how}");
        }
    }
    let (mut speed, mut cpu) = (Table::default(), Table::default());
    let (mut knocks, mut rate, mut idle) = (Table::default(), Table::default(), Table::default());
    for route in &routes {
        let end = Instant::now() + Duration::from_secs(20);
        while !answers(route.address) {
            assert!(Instant::now() < end, "{} brings nobody through", route.name);
            std::thread::sleep(Duration::from_millis(100));
        }
    }
    for _ in 0..ROUNDS {
        for route in &routes {
            // What takes others a second takes pagekite.py minutes.
            let slow = route.name == "pagekite.py";
            let bytes = if slow { BULK >> 7 } else { BULK };
            let before = route.cpu();
            let down = download(route.address, bytes);
            let up = upload(route.address, bytes, &scene.file);
            speed.add("down", route.name, bytes as f64 / down / 1e9);
            speed.add("up", route.name, bytes as f64 / up / 1e9);
            let seconds = (route.cpu() - before) * 1e9 / (2 * bytes) as f64;
            cpu.add("down and up", route.name, seconds);
            let number = if slow { KNOCKS / 20 } else { KNOCKS };
            let took: Vec<f64> = (0..number).map(|_| knock(route.address) * 1e6).collect();
            knocks.add("new connection, p50", route.name, median(&took));
            rate.add("connections", route.name, rushed(route.address));
        }
    }
    // Once, last: what has been used for idle streams before is not asked of the system again.
    for route in &routes[1..] {
        let before: Vec<u64> = route.parties.iter().map(Party::memory).collect();
        let streams: Vec<TcpStream> = (0..IDLE / 10).map(|_| echo(route.address)).collect();
        std::thread::sleep(Duration::from_secs(1));
        for ((party, before), side) in route.parties.iter().zip(before).zip(["public", "hidden"]) {
            let grown = party.memory().saturating_sub(before) as f64;
            let what = format!("idle stream, {side} side");
            idle.add(&what, route.name, grown / streams.len() as f64 / 1024.0);
        }
    }
    speed.print("GB/s");
    cpu.print("CPU s/GB");
    knocks.print("us");
    rate.print("/s");
    idle.print("KB");
    for route in &routes[2..] {
        for (table, what, by) in [
            (&speed, "down", "haproxy2"),
            (&speed, "up", "haproxy2"),
            (&knocks, "new connection, p50", "raw"),
            (&rate, "connections", "raw"),
        ] {
            let ratio = table.of(what, route.name) / table.of(what, by);
            println!("=> {what}: {} / {by} = {ratio:.3}", route.name);
        }
    }
}

/// Is there a program of this name where the shell would look?
fn installed(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(program).is_file())
}

fn sixteen(scene: &Scene) {
    let routes = [scene.raw(), scene.haproxy2(), scene.kite()];
    let mut speed = Table::default();
    let each = BULK / SIXTEEN as u64;
    for _ in 0..ROUNDS {
        for route in &routes {
            for up in [false, true] {
                let began = Instant::now();
                std::thread::scope(|s| {
                    for _ in 0..SIXTEEN {
                        s.spawn(|| match up {
                            true => upload(route.address, each, &scene.file),
                            false => download(route.address, each),
                        });
                    }
                });
                let what = if up { "up" } else { "down" };
                speed.add(
                    what,
                    route.name,
                    BULK as f64 / began.elapsed().as_secs_f64() / 1e9,
                );
            }
        }
    }
    speed.print("GB/s");
    speed.ratio("down", "kite", "raw", AtLeast(0.30));
    speed.ratio("up", "kite", "raw", AtLeast(0.33));
}

fn pinned(scene: &Scene) {
    let routes = [
        route::ssh(scene.dir(), scene.origin),
        route::kite(scene.dir(), scene.origin, Hop::Pinned),
    ];
    let mut speed = Table::default();
    for _ in 0..ROUNDS {
        for route in &routes {
            let down = download(route.address, BULK / 2);
            let up = upload(route.address, BULK / 2, &scene.file);
            speed.add("down", route.name, BULK as f64 / 2.0 / down / 1e9);
            speed.add("up", route.name, BULK as f64 / 2.0 / up / 1e9);
        }
    }
    speed.print("GB/s");
    speed.ratio("down", "kite, pinned", "ssh -R", AtLeast(1.5));
    speed.ratio("up", "kite, pinned", "ssh -R", AtLeast(1.5));
}

fn connect(scene: &Scene) {
    let routes = [scene.raw(), scene.haproxy2(), scene.kite()];
    let mut table = Table::default();
    for _ in 0..ROUNDS {
        for route in &routes {
            let took: Vec<f64> = (0..KNOCKS).map(|_| knock(route.address) * 1e6).collect();
            table.add("p50", route.name, median(&took));
            table.add("p99", route.name, quantile(&took, 0.99));
        }
    }
    table.print("us");
    table.ratio("p50", "kite", "raw", AtMost(2.2));
    let tail = table.of("p99", "kite") / table.of("p50", "kite");
    verdict("kite's p99 / its p50", tail, AtMost(2.0));
}

fn rush(scene: &Scene) {
    let routes = [scene.raw(), scene.haproxy2(), scene.kite()];
    let mut table = Table::default();
    for _ in 0..ROUNDS {
        for route in &routes {
            table.add("connections", route.name, rushed(route.address));
        }
    }
    table.print("/s");
    table.ratio("connections", "kite", "raw", AtLeast(0.40));
}

/// Connections a second, as fast as [`RUSHERS`] can make them.
fn rushed(to: SocketAddr) -> f64 {
    let end = Instant::now() + RUSH;
    let made: usize = std::thread::scope(|s| {
        let rushers: Vec<_> = (0..RUSHERS)
            .map(|_| {
                s.spawn(|| {
                    let mut n = 0;
                    while Instant::now() < end {
                        knock(to);
                        n += 1;
                    }
                    n
                })
            })
            .collect();
        rushers.into_iter().map(|r| r.join().unwrap()).sum()
    });
    made as f64 / RUSH.as_secs_f64()
}

/// Round trips of an idle route, then beside a download; and that download's bytes a second.
fn pings(address: SocketAddr, number: usize, pause: Duration) -> (Vec<f64>, Vec<f64>, f64) {
    let mut conn = echo(address);
    let times = |conn: &mut TcpStream| -> Vec<f64> {
        (0..number)
            .map(|_| {
                std::thread::sleep(pause);
                ping(conn) * 1e6
            })
            .collect()
    };
    let idle = times(&mut conn);
    let stop = AtomicBool::new(false);
    std::thread::scope(|s| {
        let bulk = s.spawn(|| {
            let conn = visit(address, &format!("/down/{}", u64::MAX / 2));
            let (mut got, began) = (0, Instant::now());
            while !stop.load(Ordering::Relaxed) {
                got += crate::load::take(&conn, 1 << 20);
            }
            got as f64 / began.elapsed().as_secs_f64()
        });
        std::thread::sleep(Duration::from_secs(1));
        let busy = times(&mut conn);
        stop.store(true, Ordering::Relaxed);
        (idle, busy, bulk.join().unwrap())
    })
}

fn ping_under_load(scene: &Scene) {
    let routes = [scene.haproxy2(), scene.kite()];
    let mut table = Table::default();
    let mut speed = Table::default();
    for _ in 0..ROUNDS {
        for route in &routes {
            let (idle, busy, bulk) = pings(route.address, PINGS, Duration::from_millis(1));
            table.add("idle p50", route.name, median(&idle));
            table.add("busy p50", route.name, median(&busy));
            table.add("busy p99", route.name, quantile(&busy, 0.99));
            speed.add("download beside it", route.name, bulk / 1e9);
        }
    }
    table.print("us");
    speed.print("GB/s");
    let idle = table.of("idle p50", "kite");
    verdict(
        "p50 busy / idle",
        table.of("busy p50", "kite") / idle,
        AtMost(1.3),
    );
    verdict(
        "p99 busy / p50 idle",
        table.of("busy p99", "kite") / idle,
        AtMost(10.0),
    );
}

/// A route whose middle is long: between the two kites, or between visitor and origin.
fn stretched(scene: &Scene, rate: &str) -> Vec<(Route, Party)> {
    let to = scene.origin.to_string();
    let (raw_path, raw) = Party::own(&["mux-delay", &to, LATE_MS, rate]);
    let dir = scene.dir().join(format!("long-{rate}"));
    let front = route::frontend(&dir, Hop::Plain, 0);
    let (path, at) = Party::own(&["mux-delay", &front.visitors.to_string(), LATE_MS, rate]);
    let back = route::backend(&dir, &format!("plain://{at}"), scene.origin);
    let kite = Route {
        name: "kite",
        address: front.visitors,
        parties: vec![front.party, back],
    };
    vec![(route::raw(raw), raw_path), (kite, path)]
}

fn long_path(scene: &Scene) {
    let routes = stretched(scene, LONG);
    let mut speed = Table::default();
    for _ in 0..ROUNDS {
        for (route, _) in &routes {
            let bytes = BULK;
            speed.add(
                "down",
                route.name,
                bytes as f64 / download(route.address, bytes) / 1e6,
            );
            let took = upload(route.address, bytes, &scene.file);
            speed.add("up", route.name, bytes as f64 / took / 1e6);
        }
    }
    speed.print("MB/s");
    speed.ratio("down", "kite", "raw", AtLeast(0.95));
    speed.ratio("up", "kite", "raw", AtLeast(0.95));
}

fn slow_path(scene: &Scene) {
    let routes = stretched(scene, SLOW);
    let (mut table, mut speed) = (Table::default(), Table::default());
    for _ in 0..ROUNDS {
        for (route, _) in &routes {
            let (idle, busy, bulk) = pings(route.address, 20, Duration::from_millis(20));
            table.add("idle p50", route.name, median(&idle) / 1e3);
            table.add("busy p50", route.name, median(&busy) / 1e3);
            speed.add("download beside it", route.name, bulk / 1e6);
        }
    }
    table.print("ms");
    speed.print("MB/s");
    let ratio = table.of("busy p50", "kite") / table.of("idle p50", "kite");
    verdict("p50 busy / idle", ratio, AtMost(1.1));
    speed.ratio("download beside it", "kite", "raw", AtLeast(0.95));
}

fn memory(scene: &Scene) {
    let dir = scene.dir().join("memory");
    let front = route::frontend(&dir, Hop::Plain, 0);
    let back = route::backend(&dir, &front.address, scene.origin);
    drop(echo(front.visitors));
    let before = (front.party.memory(), back.memory());
    let streams: Vec<TcpStream> = (0..IDLE).map(|_| echo(front.visitors)).collect();
    std::thread::sleep(Duration::from_secs(1));
    for (what, party, before) in [
        ("frontend", &front.party, before.0),
        ("backend", &back, before.1),
    ] {
        let each = party.memory().saturating_sub(before) as f64 / IDLE as f64 / 1024.0;
        verdict(
            &format!("KB for an idle stream at the {what}"),
            each,
            AtMost(2.5),
        );
    }
    drop(streams);
    for (hop, goal) in [(Hop::Plain, 6.0), (Hop::Pinned, 25.0)] {
        let dir = scene.dir().join(if hop == Hop::Plain {
            "many-plain"
        } else {
            "many-pinned"
        });
        let front = route::frontend(&dir, hop, 0);
        let before = front.party.memory();
        let state = dir.join("backend");
        // As many addresses as tunnels, and a kite for each.
        let port = front.visitors.port();
        let pin = front
            .address
            .split_once('#')
            .map(|(_, pin)| format!("#{pin}"));
        let mut args = vec![
            "backend".to_owned(),
            "--state-dir".into(),
            state.display().to_string(),
        ];
        for n in 0..TUNNELS {
            let plain = if hop == Hop::Plain { "plain://" } else { "" };
            args.push("--frontend".into());
            args.push(format!(
                "{plain}127.0.0.1:{port}{}=k{n}.{NAME}",
                pin.as_deref().unwrap_or_default()
            ));
        }
        args.extend((0..TUNNELS).map(|n| format!("http:k{n}.{NAME}:{}", scene.origin)));
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let _back = Party::kite(&args, "kite up: ", TUNNELS);
        std::thread::sleep(Duration::from_secs(2));
        let each = front.party.memory().saturating_sub(before) as f64 / TUNNELS as f64 / 1024.0;
        let word = if hop == Hop::Plain { "plain" } else { "TLS" };
        verdict(
            &format!("KB for a {word} tunnel at the frontend"),
            each,
            AtMost(goal),
        );
    }
}

fn back_again(scene: &Scene) {
    let dir = scene.dir().join("return");
    let mut front = route::frontend(&dir, Hop::Plain, 0);
    let port = front.visitors.port();
    let _back = route::backend(&dir, &front.address, scene.origin);
    let mut table = Table::default();
    for _ in 0..ROUNDS {
        std::thread::sleep(LIVED);
        drop(front);
        std::thread::sleep(Duration::from_secs(2));
        front = route::frontend(&dir, Hop::Plain, port);
        let began = Instant::now();
        // 503 until the kite is back.
        while !answers(front.visitors) {
            std::thread::sleep(Duration::from_millis(5));
        }
        table.add("back after", "kite", began.elapsed().as_secs_f64());
    }
    table.print("s");
    verdict(
        "seconds until the kite is back",
        table.of("back after", "kite"),
        AtMost(0.2),
    );
}

/// Does the origin answer, and not the frontend for it?
fn answers(to: SocketAddr) -> bool {
    let conn = visit(to, "/down/64");
    let mut got = [0; 1];
    std::io::Read::read_exact(&mut &conn, &mut got).is_ok_and(|()| got[0] == 0x5a)
}
