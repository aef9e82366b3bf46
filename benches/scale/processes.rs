//! Real kites, of which more and more is asked.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

use crate::NUMBERS;
use crate::figure::{Figure, Goal};
use crate::party::Party;

/// The domain whose names the frontend lets fly.
pub const DOMAIN: &str = "bench.kite.test";
/// Tunnels that share the streams: one takes 4,096.
const SHARING: usize = 4;
/// Tunnels of one backend process.
const TUNNELS_EACH: usize = 1000;
/// Kites on one tunnel: a handshake takes 64.
const KITES_EACH: usize = 50;
/// What is timed so often, of which the median counts.
const TIMES: usize = 1000;
/// How long memory may take to settle.
const SETTLE: Duration = Duration::from_secs(2);
const PATIENCE: Duration = Duration::from_secs(60);

/// Says its port, then sends back whatever comes, on each connection.
pub fn origin() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        println!("{}", listener.local_addr().unwrap());
        listener.set_nonblocking(true).unwrap();
        let listener = tokio::net::TcpListener::from_std(listener).unwrap();
        loop {
            let Ok((mut conn, _)) = listener.accept().await else {
                continue;
            };
            let _ = conn.set_nodelay(true);
            tokio::spawn(async move {
                let (mut from, mut to) = conn.split();
                let _ = tokio::io::copy(&mut from, &mut to).await;
            });
        }
    });
}

/// An origin and a frontend.
pub struct Scene {
    pub dir: tempfile::TempDir,
    pub origin: (Party, SocketAddr),
    pub front: Party,
    pub at: SocketAddr,
    /// What backends dial.
    to: String,
    /// The frontend's memory, in bytes, while nobody is there.
    empty: u64,
    backends: usize,
}

impl Scene {
    /// With tunnels in the clear.
    pub fn new() -> Self {
        let scene = Self::pinned();
        let to = format!("plain://{}", scene.at);
        Self { to, ..scene }
    }

    /// With tunnels as they are, within TLS.
    pub fn pinned() -> Self {
        enough_files();
        let dir = tempfile::tempdir().unwrap();
        let origin = Party::own(&["origin"]);
        let state = dir.path().join("frontend");
        let (front, said) = Party::frontend(&state, 0, &[&format!("*.{DOMAIN}")]);
        let at = said.split_once('#').unwrap().0.parse().unwrap();
        let empty = front.memory();
        Self {
            dir,
            origin,
            front,
            at,
            to: said,
            empty,
            backends: 0,
        }
    }

    /// A backend that flies these kites: so many on each of its tunnels.
    pub fn backend(&mut self, kites: std::ops::Range<usize>, each: usize) -> Party {
        self.backends += 1;
        let state = self.dir.path().join(format!("backend-{}", self.backends));
        let name = |n: usize| format!("k{n}.{DOMAIN}");
        let names: Vec<String> = kites.map(name).collect();
        let mut args = vec!["backend".to_owned(), "--state-dir".into(), utf8(&state)];
        for group in names.chunks(each) {
            args.push("--frontend".into());
            args.push(format!("{}={}", self.to, group.join(",")));
        }
        args.extend(
            names
                .iter()
                .map(|name| format!("http:{name}:{}", self.origin.1)),
        );
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        Party::kite(&args, "kite up: ", names.len()).0
    }

    /// A visitor whose request has come back from the origin of a kite.
    pub fn visit(&self, kite: usize) -> TcpStream {
        ask(self.at, kite)
    }

    /// A new visitor, for kites all over.
    fn knock(&self, kites: usize) -> f64 {
        beside_raw(
            |n| drop(self.visit(n * 7919 % kites)),
            || drop(ask(self.origin.1, 0)),
        )
    }

    /// What the frontend has beyond itself, in KB.
    pub fn grown(&self) -> f64 {
        self.front.memory().saturating_sub(self.empty) as f64 / 1024.0
    }
}

fn ask(at: SocketAddr, kite: usize) -> TcpStream {
    let mut conn = TcpStream::connect(at).unwrap();
    conn.set_nodelay(true).unwrap();
    conn.set_read_timeout(Some(PATIENCE)).unwrap();
    let request = format!("GET / HTTP/1.1\r\nHost: k{kite}.{DOMAIN}\r\n\r\n");
    conn.write_all(request.as_bytes()).unwrap();
    let mut answer = vec![0; request.len()];
    conn.read_exact(&mut answer).unwrap();
    assert_eq!(
        answer,
        request.as_bytes(),
        "somebody else than the origin answered"
    );
    conn
}

pub fn ping(mut conn: &TcpStream) {
    conn.write_all(&[7; 64]).unwrap();
    conn.read_exact(&mut [0; 64]).unwrap();
}

/// How many times as long something takes through kite as it does without. Both are done in turn: the machine's
/// mood hits both alike.
fn beside_raw(mut kite: impl FnMut(usize), mut raw: impl FnMut()) -> f64 {
    let (mut with, mut without) = (Vec::new(), Vec::new());
    for n in 0..TIMES {
        let began = Instant::now();
        kite(n);
        let between = Instant::now();
        raw();
        with.push((between - began).as_secs_f64());
        without.push(between.elapsed().as_secs_f64());
    }
    median(with) / median(without)
}

pub fn utf8(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Every party needs a file for each stream or tunnel, and some.
fn enough_files() {
    let limits = std::fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let line = limits.lines().find(|l| l.starts_with("Max open files"));
    let soft = line.and_then(|l| l.split_whitespace().nth(3)?.parse::<usize>().ok());
    let most = NUMBERS.into_iter().max().unwrap_or_default() + 1000;
    assert!(
        soft.is_none_or(|n| n >= most),
        "{soft:?} open files are allowed; ulimit -n {most}"
    );
}

/// Streams that do nothing, and one of them that is used.
pub fn streams() -> Vec<Figure> {
    let mut scene = Scene::new();
    let back = scene.backend(0..SHARING, 1);
    // Buffers that the first visitor of each tunnel makes are not a stream's.
    (0..SHARING).for_each(|kite| drop(scene.visit(kite)));
    std::thread::sleep(SETTLE);
    let (front_before, back_before) = (scene.front.memory(), back.memory());
    let (mut front, mut behind, mut times, mut open) = (vec![], vec![], vec![], vec![]);
    let mut conns: Vec<TcpStream> = Vec::new();
    let raw = ask(scene.origin.1, 0);
    for number in NUMBERS {
        while conns.len() < number {
            conns.push(scene.visit(conns.len() % SHARING));
        }
        std::thread::sleep(SETTLE);
        let kb = |now: u64, before: u64| now.saturating_sub(before) as f64 / 1024.0;
        front.push(kb(scene.front.memory(), front_before));
        behind.push(kb(back.memory(), back_before));
        times.push(beside_raw(
            |n| ping(&conns[n * 7919 % number]),
            || ping(&raw),
        ));
        open.push(scene.knock(SHARING));
    }
    vec![
        Figure::new(
            "N idle streams, frontend",
            "KB",
            "memory",
            Goal::Linear,
            front,
        ),
        Figure::new(
            "N idle streams, backend",
            "KB",
            "memory",
            Goal::Linear,
            behind,
        ),
        Figure::new(
            "64 bytes and back on one of N streams",
            "x raw",
            "time",
            Goal::Same,
            times,
        ),
        Figure::new(
            "a new visitor beside N streams",
            "x raw",
            "time",
            Goal::Same,
            open,
        ),
    ]
}

/// Plain tunnels, each with a kite of its own.
pub fn tunnels() -> Vec<Figure> {
    grow(1, TUNNELS_EACH, "tunnels")
}

/// Kites, fifty on each tunnel.
pub fn kites() -> Vec<Figure> {
    grow(KITES_EACH, TUNNELS_EACH, "kites")
}

/// More and more kites, so many on each tunnel and in each backend.
fn grow(on_tunnel: usize, in_backend: usize, word: &str) -> Vec<Figure> {
    let mut scene = Scene::new();
    let mut backs: Vec<Party> = Vec::new();
    let (mut front, mut behind, mut cpu, mut open) = (vec![], vec![], vec![], vec![]);
    let mut there = 0;
    for number in NUMBERS {
        while there < number {
            let next = number.min(there + in_backend);
            backs.push(scene.backend(there..next, on_tunnel));
            there = next;
        }
        cpu.push(scene.front.cpu() * 1e3);
        std::thread::sleep(SETTLE);
        front.push(scene.grown());
        behind.push(backs.iter().map(Party::memory).sum::<u64>() as f64 / 1024.0);
        open.push(scene.knock(number));
    }
    vec![
        Figure::new(
            format!("N {word}, frontend"),
            "KB",
            "memory",
            Goal::Linear,
            front,
        ),
        Figure::new(
            format!("N {word}, backends, whole"),
            "KB",
            "memory",
            Goal::Linear,
            behind,
        ),
        Figure::new(
            format!("the frontend takes N {word}, CPU"),
            "ms",
            "time",
            Goal::Linear,
            cpu,
        ),
        Figure::new(
            format!("a new visitor for one of N {word}"),
            "x raw",
            "time",
            Goal::Same,
            open,
        ),
    ]
}
