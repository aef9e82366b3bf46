//! A real frontend and a real backend, many streams at once, and between them a connection that delays, cuts into single
//! bytes, stalls, half-closes and dies. What is checked on each stream, at both of its ends: the bytes that came are the
//! first of those that were sent; all of them if the end was one in order; and whatever broke off does not look like an end.
//!
//! A run that fails says its seed: `KITE_CHAOS_SEED=… cargo test --test engine chaos` repeats its decisions.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kite::kite::Protocol;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::roles::{NAME, backend, frontend, kites, service, until};

/// How the backend comes to the frontend.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Tunnel {
    Pinned,
    Plain,
    /// Neither end hears that the other is a kite.
    Old,
}

/// What becomes of the connection, once some bytes have passed.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fate {
    Nothing,
    /// Reset at both ends.
    Cut,
    /// Closed at both ends, as if in order: in the middle of a frame, most often.
    Close,
    /// One direction ends, as if in order.
    HalfClose,
    /// Nothing passes for a while.
    Stall,
}

/// One run's decisions.
#[derive(Clone, Copy, Debug)]
struct Weather {
    seed: u64,
    tunnel: Tunnel,
    fate: Fate,
    /// So many bytes at a time at most.
    piece: usize,
    /// Streams, and the most bytes in each of their halves.
    streams: u64,
    most: u64,
    /// So many bytes pass before its fate.
    after: usize,
}

impl Weather {
    fn of(seed: u64, tunnel: Tunnel, fate: Fate) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        let (piece, streams, most) = match random.random_range(0..3) {
            0 => (1, 12, 1500),
            1 => (700, 24, 40_000),
            _ => (64 * 1024, 40, 300_000),
        };
        let all = streams as usize * most as usize;
        Self {
            seed,
            tunnel,
            fate,
            piece,
            streams,
            most,
            after: random.random_range(all / 50..all / 3),
        }
    }
}

/// What one end of a stream did and saw.
#[derive(Clone, Debug)]
struct Seen {
    sent: u64,
    /// It ended its half in order, after all that it had to say.
    said_all: bool,
    got: u64,
    end: End,
}

#[derive(Clone, Debug, PartialEq)]
enum End {
    InOrder,
    Broken,
    /// A page of kite's own, which says that there is no way to the origin.
    Refused,
    /// It left itself.
    Left,
}

/// By the streams' numbers. `None` while it is under way.
type Ledger = Arc<Mutex<HashMap<u64, Option<Seen>>>>;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_that_broke_off_looks_whole_through_a_pinned_tunnel() {
    all(Tunnel::Pinned).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_that_broke_off_looks_whole_through_a_plain_tunnel() {
    all(Tunnel::Plain).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_that_broke_off_looks_whole_between_older_peers() {
    all(Tunnel::Old).await;
}

async fn all(tunnel: Tunnel) {
    // One storm at a time: others here have deadlines.
    static ONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());
    let _turn = ONE.lock().await;
    let fates = [
        Fate::Nothing,
        Fate::Cut,
        Fate::Close,
        Fate::HalfClose,
        Fate::Stall,
    ];
    let given = std::env::var("KITE_CHAOS_SEED").ok();
    let seeds: Vec<u64> = match &given {
        Some(seed) => vec![seed.parse().expect("a number")],
        None => vec![0, u64::from(rand::random::<u32>())],
    };
    let (mut whole, mut broken) = (0, 0);
    for seed in seeds {
        for (i, fate) in (0..).zip(fates) {
            // Not the same streams for each fate.
            let seed = if given.is_some() { seed } else { seed + i };
            let (w, b) = run(Weather::of(seed, tunnel, fate)).await;
            (whole, broken) = (whole + w, broken + b);
        }
    }
    assert!(whole > 50, "hardly anything came through");
    assert!(broken > 10, "hardly anything broke");
}

/// Streams that were whole at both ends, and ends that broke.
async fn run(weather: Weather) -> (usize, usize) {
    println!("{weather:?}");
    let (visitors, origins): (Ledger, Ledger) = Default::default();
    let origin = origin(weather, origins.clone()).await;
    let front = frontend(&[Protocol::Http]);
    let between = between(front.public, weather).await;
    let address = match weather.tunnel {
        Tunnel::Pinned => {
            let pin = front.address.split_once('#').unwrap().1;
            format!("{between}#{pin}")
        }
        Tunnel::Plain | Tunnel::Old => format!("plain://{between}"),
    };
    let _back = backend(
        &address,
        vec![service(Protocol::Http, NAME, origin, "right")],
    );
    until("the kite is up", || kites(&front.handle).len() == 1).await;

    let visits = (0..weather.streams).map(|id| {
        let visitors = visitors.clone();
        tokio::spawn(async move {
            let seen = visit(front.public, id, weather).await;
            visitors.lock().unwrap().insert(id, Some(seen));
        })
    });
    for visit in visits.collect::<Vec<_>>() {
        let over = tokio::time::timeout(Duration::from_secs(60), visit).await;
        over.unwrap_or_else(|_| panic!("a visitor waits for ever: {weather:?}"))
            .unwrap();
    }
    // Whoever was reached comes to an end, too.
    let wait = async {
        while origins.lock().unwrap().values().any(Option::is_none) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let over = tokio::time::timeout(Duration::from_secs(60), wait).await;
    assert!(over.is_ok(), "an origin waits for ever: {weather:?}");
    let seen = |ledger: &Ledger| -> HashMap<u64, Seen> {
        let ledger = ledger.lock().unwrap();
        ledger
            .iter()
            .filter_map(|(id, seen)| Some((*id, seen.clone()?)))
            .collect()
    };
    check(weather, &seen(&visitors), &seen(&origins))
}

fn check(
    weather: Weather,
    visitors: &HashMap<u64, Seen>,
    origins: &HashMap<u64, Seen>,
) -> (usize, usize) {
    let (mut whole, mut broken) = (0, 0);
    for (id, visitor) in visitors {
        let origin = origins.get(id);
        let told = format!("stream {id} of {weather:?}: visitor {visitor:?}, origin {origin:?}");
        match visitor.end {
            End::InOrder => {
                let origin = origin.unwrap_or_else(|| panic!("nobody answered: {told}"));
                assert!(origin.said_all && visitor.got == origin.sent, "{told}");
            }
            End::Refused => assert!(origin.is_none_or(|o| o.sent == 0), "{told}"),
            End::Broken | End::Left => {}
        }
        if let Some(origin) = origin {
            if origin.end == End::InOrder {
                assert!(visitor.said_all && origin.got == visitor.sent, "{told}");
                whole += usize::from(visitor.end == End::InOrder);
            }
            broken += usize::from(origin.end == End::Broken);
        }
        broken += usize::from(visitor.end == End::Broken);
        if matches!(weather.fate, Fate::Nothing | Fate::Stall)
            && manner(weather, *id, Who::Visitor) != Manner::Leave
            && manner(weather, *id, Who::Origin) != Manner::Leave
        {
            assert_eq!(visitor.end, End::InOrder, "{told}");
            assert_eq!(origin.map(|o| &o.end), Some(&End::InOrder), "{told}");
        }
    }
    (whole, broken)
}

// ------------------------------------------------------------- both ends

#[derive(Clone, Copy)]
enum Who {
    Visitor,
    Origin,
}

/// How one end behaves.
#[derive(Clone, Copy, PartialEq)]
enum Manner {
    /// Speaks and listens at once.
    Talk,
    /// Listens to the end, and then speaks.
    Listen,
    /// Resets its connection in the middle.
    Leave,
}

fn manner(weather: Weather, id: u64, who: Who) -> Manner {
    let mut random = random(weather, id, who);
    match (random.random_range(0..6), who) {
        (0, _) => Manner::Leave,
        // Not both, or they would wait for each other.
        (1 | 2, Who::Origin) => Manner::Listen,
        _ => Manner::Talk,
    }
}

fn random(weather: Weather, id: u64, who: Who) -> StdRng {
    StdRng::seed_from_u64(
        weather
            .seed
            .wrapping_mul(1000)
            .wrapping_add(id * 2 + who as u64),
    )
}

fn content(id: u64, who: Who, from: u64, len: usize) -> Vec<u8> {
    let salt = (id * 2 + who as u64).wrapping_mul(57);
    let byte = |at: u64| (at.wrapping_mul(131) ^ (at >> 8) ^ salt) as u8;
    (from..from + len as u64).map(byte).collect()
}

async fn visit(front: SocketAddr, id: u64, weather: Weather) -> Seen {
    let delay = random(weather, id, Who::Visitor).random_range(0..300);
    tokio::time::sleep(Duration::from_millis(delay)).await;
    let mut conn = TcpStream::connect(front).await.unwrap();
    let head = format!("POST /{id} HTTP/1.1\r\nHost: {NAME}\r\n\r\n");
    if conn.write_all(head.as_bytes()).await.is_err() {
        return Seen {
            sent: 0,
            said_all: false,
            got: 0,
            end: End::Broken,
        };
    }
    converse(conn, id, Who::Visitor, weather).await
}

/// Reads the number of each visitor, and goes on as [`visit`] does.
async fn origin(weather: Weather, ledger: Ledger) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut conn, _)) = listener.accept().await {
            let ledger = ledger.clone();
            tokio::spawn(async move {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    let Ok(byte) = conn.read_u8().await else {
                        return;
                    };
                    head.push(byte);
                }
                let head = String::from_utf8(head).unwrap();
                let id = head["POST /".len()..].split(' ').next().unwrap();
                let id = id.parse().unwrap();
                let double = ledger.lock().unwrap().insert(id, None);
                assert!(double.is_none(), "a visitor came twice");
                let seen = converse(conn, id, Who::Origin, weather).await;
                ledger.lock().unwrap().insert(id, Some(seen));
            });
        }
    });
    at
}

async fn converse(conn: TcpStream, id: u64, who: Who, weather: Weather) -> Seen {
    let mut random = random(weather, id, who);
    let manner = manner(weather, id, who);
    let all = random.random_range(0..=weather.most);
    let stop = match manner {
        Manner::Leave => Some(random.random_range(0..=all)),
        Manner::Talk | Manner::Listen => None,
    };
    if stop.is_some() {
        conn.set_zero_linger().unwrap();
    }
    let (mut ears, mut mouth) = conn.into_split();
    let other = match who {
        Who::Visitor => Who::Origin,
        Who::Origin => Who::Visitor,
    };
    let mut sent = 0;
    let mut said_all = false;
    let (got, mut end);
    let mut leaves = false;
    {
        let speak = async {
            let last = stop.unwrap_or(all);
            while sent < last {
                let n = random.random_range(1..=(last - sent).min(9000));
                let piece = content(id, who, sent, n as usize);
                if mouth.write_all(&piece).await.is_err() {
                    return false;
                }
                sent += n;
                if random.random_range(0..8) == 0 {
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
            }
            said_all = stop.is_none() && mouth.shutdown().await.is_ok();
            true
        };
        match (manner, stop) {
            (_, Some(_)) => {
                // It goes whatever the other says.
                tokio::select! {
                    _ = speak => {}
                    _ = listen(&mut ears, id, other) => {}
                }
                (got, end) = (0, End::Left);
                leaves = true;
            }
            (Manner::Listen, _) => {
                (got, end) = listen(&mut ears, id, other).await;
                if end == End::InOrder {
                    speak.await;
                }
            }
            _ => {
                let (heard, spoke) = tokio::join!(listen(&mut ears, id, other), speak);
                // Whoever writes into a reset is told so, and then reads what looks like an end.
                (got, end) = match (heard, spoke) {
                    ((got, End::InOrder), false) => (got, End::Broken),
                    (heard, _) => heard,
                };
            }
        }
    }
    if leaves {
        // Else it would say that it has ended, before the reset.
        mouth.forget();
    }
    if end == End::Refused && matches!(who, Who::Origin) {
        end = End::Broken;
    }
    Seen {
        sent,
        said_all,
        got,
        end,
    }
}

/// Takes all that comes, and compares it with what the other end says.
async fn listen(ears: &mut (impl AsyncRead + Unpin), id: u64, other: Who) -> (u64, End) {
    let (mut got, mut buffer) = (0, vec![0; 16 * 1024]);
    loop {
        let n = match ears.read(&mut buffer).await {
            Ok(0) => return (got, End::InOrder),
            Ok(n) => n,
            Err(_) => return (got, End::Broken),
        };
        let came = &buffer[..n];
        if got == 0 && came.starts_with(b"HTTP/1.") {
            return (0, End::Refused);
        }
        assert!(
            came == content(id, other, got, n),
            "stream {id}: other bytes came than were sent"
        );
        got += n as u64;
    }
}

// ------------------------------------------------------------ in between

/// Forwards connections to the frontend; the first one meets its fate.
async fn between(front: SocketAddr, weather: Weather) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let mut first = true;
        while let Ok((near, _)) = listener.accept().await {
            let fate = match first {
                true => weather.fate,
                false => Fate::Nothing,
            };
            first = false;
            tokio::spawn(async move {
                let far = TcpStream::connect(front).await.unwrap();
                forward(near, far, Weather { fate, ..weather }).await;
            });
        }
    });
    at
}

async fn forward(near: TcpStream, far: TcpStream, weather: Weather) {
    near.set_nodelay(true).unwrap();
    far.set_nodelay(true).unwrap();
    if weather.fate == Fate::Cut {
        near.set_zero_linger().unwrap();
        far.set_zero_linger().unwrap();
    }
    let (mut near_in, mut near_out) = near.into_split();
    let (mut far_in, mut far_out) = far.into_split();
    // All that has passed, in both directions.
    let passed = Mutex::new(0);
    let up = pump(&mut near_in, &mut far_out, weather, 0, &passed);
    let down = pump(&mut far_in, &mut near_out, weather, 1, &passed);
    match weather.fate {
        Fate::Cut | Fate::Close => tokio::select! {
            () = up => {}
            () = down => {}
        },
        _ => {
            tokio::join!(up, down);
        }
    }
    if weather.fate == Fate::Cut {
        // Else each would hear of an end, before the reset.
        near_out.forget();
        far_out.forget();
    }
}

async fn pump(
    from: &mut (impl AsyncRead + Unpin),
    to: &mut (impl AsyncWrite + Unpin),
    weather: Weather,
    direction: u64,
    passed: &Mutex<usize>,
) {
    let mut random = StdRng::seed_from_u64(weather.seed ^ direction);
    let mut buffer = vec![0; 64 * 1024];
    let (mut stalled, mut begun) = (false, false);
    while let Ok(n @ 1..) = from.read(&mut buffer).await {
        let mut came = &mut buffer[..n];
        if weather.tunnel == Tunnel::Old && !begun {
            hide(came);
        }
        begun = true;
        while !came.is_empty() {
            let some = random.random_range(1..=weather.piece).min(came.len());
            let (now, later) = came.split_at_mut(some);
            if to.write_all(now).await.is_err() {
                return;
            }
            came = later;
            let over = {
                let mut passed = passed.lock().unwrap();
                *passed += some;
                *passed > weather.after
            };
            match weather.fate {
                Fate::Cut | Fate::Close if over => return,
                Fate::HalfClose if over && direction == weather.seed % 2 => {
                    let _ = to.shutdown().await;
                    return;
                }
                Fate::Stall if over && !stalled => {
                    stalled = true;
                    tokio::time::sleep(Duration::from_millis(1200)).await;
                }
                _ => {}
            }
            if random.random_range(0..64) == 0 {
                tokio::time::sleep(Duration::from_millis(random.random_range(0..3))).await;
            }
        }
    }
    let _ = to.shutdown().await;
}

/// Nobody hears of kite's own extension to the multiplexer.
fn hide(head: &mut [u8]) {
    for word in [&b"KiteMux1"[..], b"KiteProof1", b"KiteBeside1", b"KiteTls1"] {
        let Some(at) = head.windows(word.len()).position(|w| w == word) else {
            continue;
        };
        head[at] = b'x';
    }
}
