//! One stream through a frontend and a backend, beside a plain copy proxy, in the
//! same run: `cargo bench --bench throughput`.
//!
//! Every party is a process of its own. Rounds are interleaved, so that a change in
//! the machine's mood hits all alike; what counts is the ratio of medians.
//!
//! ```text
//! raw    client ───────────────────────────────▶ origin
//! copy   client ──▶ copy proxy ─────────────────▶ origin
//! kite   client ──▶ kite frontend ══ kite backend ──▶ origin
//! ```
#![allow(
    clippy::disallowed_methods,
    reason = "a benchmark listens and dials on loopback"
)]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a benchmark"
)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

/// Bytes that one measurement moves.
const BYTES: u64 = 512 << 20;
/// Interleaved rounds.
const ROUNDS: usize = 5;
/// What a client or the origin reads or writes at once.
const BLOCK: usize = 256 * 1024;
/// What the plain proxy copies at once; a stronger rival than Tokio's default of 8 KiB.
const PROXY_BUFFER: usize = 64 * 1024;
/// The issue's bar: kite moves at least this much of what the copy proxy does.
const BAR: f64 = 0.5;

const NAME: &str = "bench.kite.test";

fn main() {
    match std::env::args().nth(1).as_deref() {
        Some("origin") => origin(),
        Some("proxy") => proxy(std::env::args().nth(2).unwrap().parse().unwrap()),
        _ => measure(),
    }
}

// ----------------------------------------------------------------- parties

/// Says its port, then serves `GET /down` with [`BYTES`], and counts what `/up` brings.
fn origin() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    println!("{}", listener.local_addr().unwrap());
    for conn in listener.incoming() {
        let mut conn = conn.unwrap();
        std::thread::spawn(move || {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                if conn.read(&mut byte).unwrap_or(0) == 0 {
                    return;
                }
                head.push(byte[0]);
            }
            if head.starts_with(b"GET /down") {
                give(&mut conn)
            } else {
                take(&mut conn)
            }
        });
    }
}

fn give(conn: &mut TcpStream) {
    let block = vec![0x5a; BLOCK];
    let mut left = BYTES;
    while left > 0 {
        let n = left.min(BLOCK as u64) as usize;
        if conn.write_all(&block[..n]).is_err() {
            return;
        }
        left -= n as u64;
    }
}

fn take(conn: &mut TcpStream) {
    let mut block = vec![0; BLOCK];
    let mut left = BYTES;
    while left > 0 {
        match conn.read(&mut block) {
            Ok(n) if n > 0 => left -= n as u64,
            _ => return,
        }
    }
    let _ = conn.write_all(b"!");
}

/// Says its port, then copies both ways between visitors and `to`.
fn proxy(to: SocketAddr) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        println!("{}", listener.local_addr().unwrap());
        while let Ok((mut near, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut far = tokio::net::TcpStream::connect(to).await.unwrap();
                let _ = tokio::io::copy_bidirectional_with_sizes(
                    &mut near,
                    &mut far,
                    PROXY_BUFFER,
                    PROXY_BUFFER,
                )
                .await;
            });
        }
    });
}

/// A child process, ended with us.
struct Party(Child);

impl Drop for Party {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts this program in another role; the address it says.
fn party(args: &[&str]) -> (Party, SocketAddr) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(args)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    (Party(child), line.trim().parse().unwrap())
}

/// Starts kite and waits until its log says `mark`; the rest of that line.
fn kite(args: &[&str], mark: &str) -> (Party, String) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_kite"))
        .args(args)
        .env("KITE_SECRET", "a secret for a benchmark")
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut log = BufReader::new(child.stderr.take().unwrap());
    let party = Party(child);
    loop {
        let mut line = String::new();
        assert!(
            log.read_line(&mut line).unwrap() > 0,
            "kite {args:?} ended before it said '{mark}'"
        );
        if let Some((_, rest)) = line.split_once(mark) {
            std::thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
            return (party, rest.trim().to_owned());
        }
    }
}

// ------------------------------------------------------------- measurement

/// GB/s down or up through `to`.
fn transfer(to: SocketAddr, path: &str) -> f64 {
    let mut conn = TcpStream::connect(to).unwrap();
    let began = Instant::now();
    write!(conn, "GET {path} HTTP/1.1\r\nHost: {NAME}\r\n\r\n").unwrap();
    let mut block = vec![0; BLOCK];
    if path == "/down" {
        let mut got = 0;
        while got < BYTES {
            let n = conn.read(&mut block).unwrap();
            assert!(n > 0, "the stream ended after {got} bytes");
            got += n as u64;
        }
    } else {
        give(&mut conn);
        conn.read_exact(&mut block[..1]).unwrap();
    }
    BYTES as f64 / began.elapsed().as_secs_f64() / 1e9
}

fn measure() {
    let (_origin, origin) = party(&["origin"]);
    let (_proxy, proxy) = party(&["proxy", &origin.to_string()]);
    let state = tempfile::tempdir().unwrap();
    let state = state.path().to_str().unwrap();
    let (_front, public) = kite(
        &[
            "frontend",
            "--listen",
            "127.0.0.1:0",
            "--domain",
            NAME,
            "--protocols",
            "http",
            "--state-dir",
            state,
        ],
        "listening on ",
    );
    let service = format!("http:{NAME}:{origin}");
    let address = format!("plain://{public}");
    let (_back, _) = kite(
        &[
            "backend",
            "--frontend",
            &address,
            "--state-dir",
            state,
            &service,
        ],
        "kite up: ",
    );
    let public: SocketAddr = public.parse().unwrap();

    let routes = [("raw", origin), ("copy", proxy), ("kite", public)];
    println!(
        "{} MiB per transfer, {ROUNDS} interleaved rounds, {} cores",
        BYTES >> 20,
        cores()
    );
    for path in ["/down", "/up"] {
        let mut speeds = [const { Vec::new() }; 3];
        for _ in 0..ROUNDS {
            for (i, (_, to)) in routes.iter().enumerate() {
                speeds[i].push(transfer(*to, path));
            }
        }
        for (i, (name, _)) in routes.iter().enumerate() {
            let (low, mid, high) = spread(&speeds[i]);
            println!("{path:6} {name:5} {mid:6.2} GB/s  (min {low:.2}, max {high:.2})");
        }
        let ratio = spread(&speeds[2]).1 / spread(&speeds[1]).1;
        let verdict = if ratio >= BAR { "reached" } else { "MISSED" };
        println!("{path:6} kite / copy = {ratio:.2}   goal {BAR}: {verdict}");
    }
}

fn spread(values: &[f64]) -> (f64, f64, f64) {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    (
        sorted[0],
        sorted[sorted.len() / 2],
        sorted[sorted.len() - 1],
    )
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, Into::into)
}
