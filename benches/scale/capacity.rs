//! What a core and a GiB of a frontend are good for: by the CPU time and the memory that it uses, whatever else runs.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::thread::{scope, sleep};
use std::time::{Duration, Instant};

use crate::processes::{Scene, ping};

/// Tunnels within TLS, one kite on each.
const TUNNELS: usize = 1000;
/// Fewer than one backend connects to its origins.
const IDLE: usize = 8000;
/// Visitors at a time.
const AT_ONCE: usize = 16;
/// Streams that carry bytes at a time.
const CARRYING: usize = 8;
/// How long each lasts.
const LASTS: Duration = Duration::from_secs(20);
/// How long memory may take to settle.
const SETTLE: Duration = Duration::from_secs(12);
const PIECE: usize = 64 * 1024;
const GIB_KB: f64 = 1024.0 * 1024.0;

/// Prints a table.
pub fn capacity() {
    let mut scene = Scene::pinned();
    println!("| what | costs the frontend | good for |\n|---|---|---|");
    let (_back, cpu) = timed(&mut scene, |scene| scene.backend(0..TUNNELS, 1));
    sleep(SETTLE);
    let tunnels = scene.grown();
    let each = tunnels / TUNNELS as f64;
    let come = TUNNELS as f64 / cpu;
    println!(
        "| a kite with a tunnel of its own | {each:.1} KB | {:.0} in a GiB |",
        GIB_KB / each
    );
    println!(
        "| a tunnel that comes, TLS and proof | {:.2} ms | {come:.0} a second of a core |",
        1e3 / come
    );
    let (idle, _) = timed(&mut scene, |scene| {
        (0..IDLE)
            .map(|n| scene.visit(n % TUNNELS))
            .collect::<Vec<_>>()
    });
    idle.iter().for_each(ping);
    sleep(SETTLE);
    let each = (scene.grown() - tunnels) / IDLE as f64;
    println!(
        "| an idle stream | {each:.1} KB | {:.0} in a GiB |",
        GIB_KB / each
    );
    drop(idle);
    sleep(SETTLE);
    let visits = AtomicUsize::new(0);
    let ((), cpu) = timed(&mut scene, |scene| visit(scene, &visits));
    let served = visits.into_inner() as f64 / cpu;
    println!(
        "| a visitor who asks, is answered, and leaves | {:.2} ms | {served:.0} a second of a core |",
        1e3 / served
    );
    let bytes = AtomicU64::new(0);
    let ((), cpu) = timed(&mut scene, |scene| carry(scene, &bytes));
    let rate = bytes.into_inner() as f64 / 1e6 / cpu;
    println!(
        "| a MB carried, in {CARRYING} streams | {:.2} ms | {rate:.0} MB a second of a core |",
        1e3 / rate
    );
}

/// What came of it, and the CPU seconds that the frontend used.
fn timed<T>(scene: &mut Scene, what: impl FnOnce(&mut Scene) -> T) -> (T, f64) {
    let before = scene.front.cpu();
    let made = what(scene);
    (made, scene.front.cpu() - before)
}

fn visit(scene: &Scene, visits: &AtomicUsize) {
    let end = Instant::now() + LASTS;
    scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                while Instant::now() < end {
                    let n = visits.fetch_add(1, Ordering::Relaxed);
                    drop(scene.visit(n % TUNNELS));
                }
            });
        }
    });
}

/// Bytes to an origin that sends them back; each counts when it goes and when it comes.
fn carry(scene: &Scene, bytes: &AtomicU64) {
    let end = Instant::now() + LASTS;
    scope(|scope| {
        for n in 0..CARRYING {
            let conn = scene.visit(n);
            scope.spawn(move || {
                let sender = conn.try_clone().unwrap();
                let sending = std::thread::spawn(move || send_until(sender, end));
                let mut piece = vec![0; PIECE];
                let mut back = conn;
                loop {
                    match back.read(&mut piece).unwrap() {
                        0 => break,
                        n => bytes.fetch_add(n as u64, Ordering::Relaxed),
                    };
                }
                bytes.fetch_add(sending.join().unwrap(), Ordering::Relaxed);
            });
        }
    });
}

fn send_until(mut conn: TcpStream, end: Instant) -> u64 {
    let piece = vec![7; PIECE];
    let mut sent = 0;
    while Instant::now() < end {
        conn.write_all(&piece).unwrap();
        sent += PIECE as u64;
    }
    conn.shutdown(std::net::Shutdown::Write).unwrap();
    sent
}
