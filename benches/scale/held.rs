//! What a frontend holds for a while, and what returns to it all at once.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{scope, sleep};
use std::time::{Duration, Instant};

use crate::party::{Party, free_port};
use crate::processes::{DOMAIN, Scene, ping, utf8};

const TUNNELS: usize = 1000;
const IDLE: usize = 10_000;
/// New visitors a second, each of whom asks and leaves.
const RATE: u32 = 200;
/// For so long; `HELD_SECONDS` says otherwise.
const LASTS: u64 = 300;
/// How often memory is looked at.
const LOOK: Duration = Duration::from_secs(10);
/// Growth of the frontend's memory that is called none, in KB a minute.
const FLAT: f64 = 500.0;
/// Visitors that may be there at one time.
const AT_ONCE: usize = 64;
const PATIENCE: Duration = Duration::from_secs(30);

/// 1,000 tunnels and 10,000 idle streams, and 200 new visitors a second for five minutes.
pub fn held() {
    let mut scene = Scene::new();
    // One backend makes 8,192 connections to its origins at a time, no more.
    let halves = [0..TUNNELS / 2, TUNNELS / 2..TUNNELS];
    let backs = halves.map(|kites| scene.backend(kites, 1));
    let began = Instant::now();
    let idle: Vec<TcpStream> = (0..IDLE).map(|n| scene.visit(n % TUNNELS)).collect();
    let opened = began.elapsed().as_secs();
    println!(
        "{TUNNELS} tunnels, {IDLE} idle streams (opened in {opened} s); {RATE} new visitors a second"
    );
    let lasts = std::env::var("HELD_SECONDS")
        .ok()
        .and_then(|s| s.parse().ok());
    let lasts = Duration::from_secs(lasts.unwrap_or(LASTS));
    let (served, failed) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let times: Mutex<Vec<Duration>> = Mutex::default();
    let next = AtomicUsize::new(0);
    let at = scene.at;
    let start = Instant::now();
    println!("\n  s | visits | failed | frontend RSS, MB | backends RSS, MB | files");
    let mut rows: Vec<(f64, f64)> = Vec::new();
    scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                loop {
                    let n = next.fetch_add(1, Ordering::Relaxed);
                    let due = start + Duration::from_secs(1) * n as u32 / RATE;
                    if due >= start + lasts {
                        return;
                    }
                    sleep(due.saturating_duration_since(Instant::now()));
                    match visit(at, n % TUNNELS) {
                        Ok(()) => {
                            served.fetch_add(1, Ordering::Relaxed);
                            // From when it was due: who waits for its turn waits, too.
                            times.lock().unwrap().push(due.elapsed());
                        }
                        Err(e) => {
                            failed.fetch_add(1, Ordering::Relaxed);
                            eprintln!("a visit failed: {e}");
                        }
                    }
                }
            });
        }
        let mut look = start;
        while start.elapsed() < lasts {
            let mb = |party: &Party| party.resident() as f64 / 1048576.0;
            let (front, behind) = (mb(&scene.front), backs.iter().map(mb).sum::<f64>());
            let s = start.elapsed().as_secs_f64();
            rows.push((s, front));
            println!(
                "{s:4.0} | {:6} | {:6} | {front:16.1} | {behind:16.1} | {:5}",
                served.load(Ordering::Relaxed),
                failed.load(Ordering::Relaxed),
                scene.front.files()
            );
            look += LOOK;
            sleep(look.saturating_duration_since(Instant::now()));
        }
    });
    idle.iter().for_each(ping);
    let mut times = times.into_inner().unwrap();
    times.sort();
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize].as_secs_f64() * 1e3;
    let (served, failed) = (served.into_inner(), failed.into_inner());
    println!("\nall {IDLE} idle streams still echo; {served} visits, {failed} failed");
    println!(
        "a visit took {:.1} ms in the middle, {:.1} ms at 99 %, {:.1} ms at most",
        at(0.5),
        at(0.99),
        at(1.0)
    );
    let grows = slope(&rows) * 60.0 * 1024.0;
    println!("the frontend's RSS grows by {grows:.0} KB a minute after the first minute");
    println!("the frontend used {:.0} s of CPU in all", scene.front.cpu());
    let asked = (lasts.as_secs_f64() * f64::from(RATE)) as usize;
    assert_eq!((served, failed), (asked, 0), "visits: served, failed");
    assert!(grows < FLAT, "its memory is not flat");
}

fn visit(at: SocketAddr, kite: usize) -> std::io::Result<()> {
    let mut conn = TcpStream::connect(at)?;
    conn.set_nodelay(true)?;
    conn.set_read_timeout(Some(PATIENCE))?;
    let request = format!("GET / HTTP/1.1\r\nHost: k{kite}.{DOMAIN}\r\n\r\n");
    conn.write_all(request.as_bytes())?;
    let mut answer = vec![0; request.len()];
    conn.read_exact(&mut answer)?;
    match answer == request.as_bytes() {
        true => Ok(()),
        false => Err(std::io::Error::other(
            String::from_utf8_lossy(&answer).into_owned(),
        )),
    }
}

/// MB a second, by least squares, of what came after the first minute (or the first half, if that is sooner).
fn slope(rows: &[(f64, f64)]) -> f64 {
    let last = rows.last().map_or(0.0, |row| row.0);
    let rows: Vec<_> = rows
        .iter()
        .filter(|row| row.0 >= 60f64.min(last / 2.0))
        .collect();
    let n = rows.len() as f64;
    let mean = |of: fn(&(f64, f64)) -> f64| rows.iter().map(|row| of(row)).sum::<f64>() / n;
    let (x, y) = (mean(|row| row.0), mean(|row| row.1));
    let above: f64 = rows.iter().map(|row| (row.0 - x) * (row.1 - y)).sum();
    let below: f64 = rows.iter().map(|row| (row.0 - x).powi(2)).sum();
    above / below
}

/// A frontend is killed, and started again after a while: 1,000 backends with pinned TLS come back.
pub fn storm() {
    let dir = tempfile::tempdir().unwrap();
    let state = utf8(&dir.path().join("frontend"));
    let port = free_port();
    let (listen, domain) = (format!("127.0.0.1:{port}"), format!("*.{DOMAIN}"));
    let args = [
        "frontend",
        "--listen",
        &listen,
        "--protocols",
        "http",
        "--state-dir",
        &state,
        "--domain",
        &domain,
    ];
    let (_, said) = Party::kite(&args, "backends dial ", 1);
    let origin = Party::own(&["origin"]);
    let back_state = utf8(&dir.path().join("backend"));
    let mut back: Vec<String> = ["backend", "--state-dir", &back_state]
        .map(str::to_owned)
        .into();
    for n in 0..TUNNELS {
        back.extend(["--frontend".to_owned(), format!("{said}=k{n}.{DOMAIN}")]);
    }
    back.extend((0..TUNNELS).map(|n| format!("http:k{n}.{DOMAIN}:{}", origin.1)));
    let back: Vec<&str> = back.iter().map(String::as_str).collect();
    println!("  down | first | half | 99 % | all   | most in 100 ms | frontend CPU");
    for down in [0, 2, 20, 60] {
        let (front, up) = Party::watched(&args, "kite up: ");
        // The backends are new each time: their waits are.
        let (_backs, _) = Party::kite(&back, "kite up: ", TUNNELS);
        for _ in 0..TUNNELS {
            up.recv_timeout(PATIENCE).unwrap();
        }
        // Tunnels that have lived are those that are missed.
        sleep(Duration::from_secs(6));
        front.kill();
        sleep(Duration::from_secs(down));
        let began = Instant::now();
        let (front, up) = Party::watched(&args, "kite up: ");
        let back_at: Vec<f64> = (0..TUNNELS)
            .map(|n| {
                let at = up.recv_timeout(Duration::from_secs(90));
                let at = at.unwrap_or_else(|_| panic!("only {n} have come back"));
                (at - began).as_secs_f64()
            })
            .collect();
        // No stampede: not half of them within the tenth of a second.
        let most = back_at.iter().map(|from| {
            back_at
                .iter()
                .filter(|at| (*from..from + 0.1).contains(at))
                .count()
        });
        let most = most.max().unwrap();
        println!(
            "{down:4} s | {:4.1} s | {:3.1} s | {:3.1} s | {:4.1} s | {:14} | {:5.1} s",
            back_at[0],
            back_at[TUNNELS / 2],
            back_at[TUNNELS * 99 / 100],
            back_at[TUNNELS - 1],
            most,
            front.cpu()
        );
        assert!(most < TUNNELS / 2, "they come all at once");
    }
}
