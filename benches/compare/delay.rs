//! A long path: a relay that holds each byte back for a while, and lets no more through than a rate. Each connection
//! has a path of its own.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

/// Bytes that may be on the way in one direction: more than the path's delay and any rate here ask for.
const MOST: usize = 256 << 20;
/// Read at once.
const BLOCK: usize = 256 * 1024;

type Queue = Arc<(Mutex<Waiting>, Condvar)>;

#[derive(Default)]
struct Waiting {
    pieces: VecDeque<(Instant, Vec<u8>)>,
    bytes: usize,
    ended: bool,
}

/// Says its port, then relays to `args[0]`, each way `args[1]` ms late, at `args[2]` bytes a second at most (0: any).
pub fn relay(args: &[String]) {
    let to: SocketAddr = args[0].parse().unwrap();
    let late = Duration::from_millis(args[1].parse().unwrap());
    let rate: u64 = args[2].parse().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    println!("{}", listener.local_addr().unwrap());
    for near in listener.incoming() {
        let Ok(near) = near else { continue };
        let Ok(far) = TcpStream::connect(to) else {
            continue;
        };
        for (from, to) in [(&near, &far), (&far, &near)] {
            from.set_nodelay(true).unwrap();
            let (mut from, mut to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
            let queue: Queue = Arc::default();
            let arrivals = queue.clone();
            std::thread::spawn(move || arrive(&mut from, &arrivals, late, rate));
            std::thread::spawn(move || depart(&mut to, &queue));
        }
    }
}

/// A queue of the path's own would only add to the delay, so with a rate there is one of a tenth of a second.
fn arrive(from: &mut TcpStream, queue: &Queue, late: Duration, rate: u64) {
    let most = if rate == 0 {
        MOST
    } else {
        (rate as f64 * (late.as_secs_f64() + 0.1)) as usize
    };
    let mut buf = vec![0; if rate == 0 { BLOCK } else { 16 * 1024 }];
    let mut free_at = Instant::now();
    loop {
        let n = from.read(&mut buf).unwrap_or(0);
        let (lock, signal) = &**queue;
        let mut waiting = lock.lock().unwrap();
        if n == 0 {
            waiting.ended = true;
            signal.notify_all();
            return;
        }
        while waiting.bytes > most {
            waiting = signal.wait(waiting).unwrap();
        }
        let now = Instant::now();
        if rate > 0 {
            free_at = free_at.max(now) + Duration::from_secs_f64(n as f64 / rate as f64);
        }
        waiting
            .pieces
            .push_back((free_at.max(now) + late, buf[..n].to_vec()));
        waiting.bytes += n;
        signal.notify_all();
    }
}

fn depart(to: &mut TcpStream, queue: &Queue) {
    let (lock, signal) = &**queue;
    let mut waiting = lock.lock().unwrap();
    loop {
        let Some((due, _)) = waiting.pieces.front() else {
            if waiting.ended {
                let _ = to.shutdown(std::net::Shutdown::Write);
                return;
            }
            waiting = signal.wait(waiting).unwrap();
            continue;
        };
        let left = due.saturating_duration_since(Instant::now());
        if !left.is_zero() {
            waiting = signal.wait_timeout(waiting, left).unwrap().0;
            continue;
        }
        let Some((_, piece)) = waiting.pieces.pop_front() else {
            continue;
        };
        waiting.bytes -= piece.len();
        signal.notify_all();
        drop(waiting);
        if to.write_all(&piece).is_err() {
            return;
        }
        waiting = lock.lock().unwrap();
    }
}
