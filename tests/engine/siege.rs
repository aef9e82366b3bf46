//! Many strangers at once, and backends that were let in and mean harm. Each attack ends with a well-behaved visitor
//! who is served, and with nothing left of it.

use std::io::Write;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use kite::config::{Listen, ProofRule};
use kite::dial::BoxConn;
use kite::frontend::authority::{Authority, Source};
use kite::frontend::balancer::Balancers;
use kite::frontend::doorstep::MAX_WAITING_PER_ADDRESS;
use kite::frontend::limits::Limits;
use kite::kite::Protocol;
use kite::proxy_header::{Version, write};
use kite::shutdown::Trigger;
use kite::wire::handshake::ProofPolicy;
use kite::wire::{KiteId, ServiceLine};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use crate::attacks::{dial, read_frame, read_head, register, send};
use crate::roles::{
    NAME, Side, any, ask, backend, config_of, frontend_config, grant, kites, origin, service,
    start, until,
};

/// A visitor may take so long until it is clear what it wants.
const VERDICT_TIMEOUT: Duration = Duration::from_secs(20);
/// Whoever behaves well is served within this, whatever goes on.
pub const SOON: Duration = Duration::from_secs(20);
pub const GOOD: &str = "good.alice.example";

fn head(name: &str) -> String {
    format!("GET / HTTP/1.1\r\nHost: {name}\r\n\r\n")
}

/// A visitor of the good kite gets an echo.
pub async fn is_served(at: SocketAddr, before: &[u8]) {
    let served = timeout(SOON, async {
        let mut conn = TcpStream::connect(at).await.unwrap();
        conn.write_all(&[before, head(GOOD).as_bytes()].concat())
            .await
            .unwrap();
        let mut echo = vec![0; head(GOOD).len()];
        conn.read_exact(&mut echo).await.unwrap();
        assert_eq!(echo, head(GOOD).as_bytes());
    });
    served.await.expect("a well-behaved visitor is served");
}

/// A frontend at which a good kite flies; beside it, a backend that proved a kite and writes its frames by hand.
struct Scene {
    front: Side,
    conn: BoxConn,
    _good: kite::shutdown::Trigger,
    _state: tempfile::TempDir,
}

impl Scene {
    async fn new() -> Self {
        let state = tempfile::tempdir().unwrap();
        let (echo, _) = origin(b"").await;
        let front = start(frontend_config(
            state.path(),
            any(),
            &[Protocol::Http],
            ProofRule::Optional,
        ));
        let good = backend(
            &front.address,
            vec![service(Protocol::Http, GOOD, echo, "right")],
        );
        let (mut conn, binding) = dial(&front.address).await;
        let (verdict, _) = register(&mut conn, ProofPolicy::Demand(binding.unwrap())).await;
        assert_eq!(verdict.unwrap().flying.len(), 1);
        until("both fly", || kites(&front.handle).len() == 2).await;
        Self {
            front,
            conn,
            _good: good,
            _state: state,
        }
    }

    async fn frame(&mut self, headers: &str, data: &[u8]) {
        let head = format!("{headers}\r\n\r\n");
        let frame = [
            format!("{:x}\r\n{head}", head.len() + data.len()).as_bytes(),
            data,
        ]
        .concat();
        // The frontend may have hung up, which is one of the right answers.
        let _ = self.conn.write_all(&frame).await;
    }

    /// A visitor of the hostile backend's kite has come, and is stream 1.
    async fn visitor(&mut self) -> TcpStream {
        let mut visitor = TcpStream::connect(self.front.public).await.unwrap();
        visitor.write_all(head(NAME).as_bytes()).await.unwrap();
        let opened = read_frame(&mut self.conn).await.unwrap();
        assert!(opened.contains("SID: 1\r\n"), "{opened}");
        visitor
    }

    fn streams(&self) -> usize {
        self.front.handle.tunnels().iter().map(|t| t.streams).sum()
    }

    /// The good kite's visitors are served, and nobody's are left.
    async fn ends_well(mut self) {
        let _ = self.conn.flush().await;
        is_served(self.front.public, b"").await;
        until("no stream is left", || self.streams() == 0).await;
        drop(self.conn);
        until("the hostile tunnel is gone", || {
            kites(&self.front.handle) == [format!("http:{GOOD}")]
        })
        .await;
        is_served(self.front.public, b"").await;
    }
}

/// What a tunnel's peer may say at any time, and in masses.
#[tokio::test]
async fn a_flood_of_words_from_a_backend_harms_nobody_else() {
    let mut scene = Scene::new().await;
    let visitor = scene.visitor().await;
    for n in 0..2000u32 {
        // Openings are the frontend's to make; numbers that are used, that were, and that never will be.
        let sid = n % 3;
        scene
            .frame(
                &format!("SID: {sid}\r\nProto: http\r\nHost: {GOOD}"),
                b"GET",
            )
            .await;
        scene.frame(&format!("SID: {n}9999"), b"data").await;
        scene
            .frame("SID: 1\r\nSKB: 18446744073709551615", b"")
            .await;
        scene
            .frame("SID: 77\r\nSKB: 18446744073709551615", b"")
            .await;
        scene
            .frame(&format!("SID: {}\r\nEOF: 1WR", n + 2), b"")
            .await;
        scene.frame("NOOP: 1\r\nPING: flood", b"").await;
        scene.frame("NOOP: 1\r\nPONG: 5", b"").await;
        scene.frame("NOOP: 1\r\nX-PageKite-SessionID: x", b"").await;
        if n % 100 == 0 {
            let _ = scene.conn.flush().await;
        }
    }
    let _ = scene.conn.flush().await;
    is_served(scene.front.public, b"").await;
    drop(visitor);
    scene.ends_well().await;
}

/// Service lines without end: each is answered, and only so many wait.
#[tokio::test]
async fn a_flood_of_kites_is_judged_one_frame_after_the_other() {
    let mut scene = Scene::new().await;
    let lines: String = (0..60)
        .map(|n| {
            format!(
                "X-PageKite: http:k{n}.alice.example:{}::\r\n",
                "5".repeat(36)
            )
        })
        .collect();
    for _ in 0..400 {
        scene
            .frame(&format!("NOOP: 1\r\n{}", lines.trim_end()), b"")
            .await;
    }
    let _ = scene.conn.flush().await;
    is_served(scene.front.public, b"").await;
    assert_eq!(kites(&scene.front.handle).len(), 2, "none was proved");
    scene.ends_well().await;
}

/// A frame that says it is 4 GB, and one that inflates to more than it says: the tunnel ends, and nothing was made ready for them.
#[tokio::test]
async fn absurd_frames_end_their_tunnel_alone() {
    let mut bomb = flate2::Compress::new(flate2::Compression::best(), true);
    let mut packed = Vec::with_capacity(64 * 1024);
    bomb.compress_vec(&vec![0; 1 << 20], &mut packed, flate2::FlushCompress::Sync)
        .unwrap();
    let bomb = [
        format!("10Z{:x}\r\n", packed.len()).as_bytes(),
        packed.as_slice(),
    ]
    .concat();
    let frames: [&[u8]; 4] = [
        b"ffffffff\r\n",
        b"ffffffffffffffff\r\nSID: 1\r\n\r\n",
        b"100001\r\nSID: 1\r\n\r\n",
        &bomb,
    ];
    for frame in frames {
        let mut scene = Scene::new().await;
        let mut visitor = scene.visitor().await;
        scene.conn.write_all(frame).await.unwrap();
        scene.conn.flush().await.unwrap();
        until("its tunnel is gone", || {
            kites(&scene.front.handle).len() == 1
        })
        .await;
        let end = timeout(SOON, visitor.read(&mut [0; 9]))
            .await
            .expect("an end");
        assert!(!matches!(end, Ok(1..)), "{end:?}");
        scene.ends_well().await;
    }
}

/// A backend sends a visitor who reads nothing more than it may. The stream is broken off, and the visitor's connection with
/// it: neither it nor what it was to get is kept.
#[tokio::test]
async fn a_visitor_who_reads_nothing_keeps_nothing_once_it_is_broken_off() {
    let mut scene = Scene::new().await;
    let mut visitor = scene.visitor().await;
    // As zeros, which travel lighter: 64 bombs of a megabyte each, within the protocol.
    let mut zlib = flate2::Compress::new(flate2::Compression::fast(), true);
    let head = b"SID: 1\r\n\r\n";
    let plain = [head.as_slice(), &vec![0; (1 << 20) - head.len()]].concat();
    for _ in 0..64 {
        let mut packed = Vec::with_capacity(128 * 1024);
        zlib.compress_vec(&plain, &mut packed, flate2::FlushCompress::Sync)
            .unwrap();
        let line = format!("{:x}Z{:x}\r\n", plain.len(), packed.len());
        if scene.conn.write_all(line.as_bytes()).await.is_err()
            || scene.conn.write_all(&packed).await.is_err()
        {
            break;
        }
    }
    let _ = scene.conn.flush().await;
    until("the stream is gone", || scene.streams() == 0).await;
    assert_eq!(kites(&scene.front.handle).len(), 2, "the tunnel stands");
    let mut got = Vec::new();
    let end = timeout(SOON, visitor.read_to_end(&mut got))
        .await
        .expect("an end");
    assert!(end.is_err(), "it is reset: this was not all");
    scene.ends_well().await;
}

/// A frontend at which [`GOOD`] flies; whoever comes to its other port says whom the connection is from.
pub async fn behind_balancers(state: &Path) -> (Side, Trigger) {
    let (echo, _) = origin(b"").await;
    let behind = Listen {
        balancers: Some(Balancers::on_this_machine()),
        ..Listen::at(any())
    };
    let grants = vec![grant("*.alice.example", &[Protocol::Http])];
    let front = start(config_of(state, vec![Listen::at(any()), behind], grants));
    let back = backend(
        &front.address,
        vec![service(Protocol::Http, GOOD, echo, "right")],
    );
    until("it flies", || kites(&front.handle).len() == 1).await;
    (front, back)
}

/// One address keeps its own slow connections down, and nobody else's.
#[tokio::test]
async fn slow_visitors_of_one_address_crowd_out_each_other() {
    let state = tempfile::tempdir().unwrap();
    let (front, _back) = behind_balancers(state.path()).await;
    let at = front.port_kite;
    let from = |address: [u8; 4]| write(Version::V2, Some((address, 9).into()), 80, "x");
    let slow = async |address, begins: &'static [u8]| {
        let mut conn = TcpStream::connect(at).await.unwrap();
        conn.write_all(&[&from(address), begins].concat())
            .await
            .unwrap();
        conn
    };
    let (crowded, other) = ([198, 51, 100, 1], [198, 51, 100, 2]);
    let mut bystander = slow(other, b"GET / HT").await;
    let mut crowd = Vec::new();
    for n in 0..MAX_WAITING_PER_ADDRESS + 40 {
        let begins: &[u8] = if n % 2 == 0 {
            b"GET /"
        } else {
            &[22, 3, 1, 2, 0, 1]
        };
        crowd.push(slow(crowded, begins).await);
    }
    // The first of them have gone, long before they would have been too slow.
    for conn in &mut crowd[..30] {
        let end = timeout(VERDICT_TIMEOUT / 3, conn.read(&mut [0; 1]))
            .await
            .expect("in time");
        assert!(!matches!(end, Ok(1..)));
    }
    let last = crowd.last_mut().unwrap();
    assert!(
        timeout(Duration::from_millis(50), last.read(&mut [0; 1]))
            .await
            .is_err()
    );
    is_served(at, &from(crowded)).await;
    // Somebody else's slow one is still heard out.
    bystander
        .write_all(format!("TP/1.1\r\nHost: {GOOD}\r\n\r\n").as_bytes())
        .await
        .unwrap();
    let mut echo = vec![0; 10];
    timeout(SOON, bystander.read_exact(&mut echo))
        .await
        .expect("in time")
        .unwrap();
}

/// Whoever knows is asked more than it can answer. Nobody is let in for that, and those of whom the frontend itself knows go on.
#[tokio::test]
async fn too_busy_to_check_is_a_no() {
    let state = tempfile::tempdir().unwrap();
    let program = state.path().join("authority");
    let mut file = std::fs::File::create(&program).unwrap();
    file.write_all(b"#!/bin/sh\nsleep 1\necho '{\"secret\": \"right\"}'\n")
        .unwrap();
    drop(file);
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o700)).unwrap();
    let mut config = config_of(
        state.path(),
        vec![Listen::at(any()), Listen::at(any())],
        vec![grant(GOOD, &[Protocol::Http])],
    );
    config.authorities = vec![Authority {
        domain: Some("asked.example".parse().unwrap()),
        source: Source::Program(program),
        protocols: [Protocol::Http].into(),
        parallel: 1,
        limits: Limits::default(),
    }];
    let front = start(config);
    let address = front.public;
    // As pagekite.py's backends do: one connection for a challenge, another with the answer.
    let attempts = (0..100).map(async |n| {
        let id = KiteId {
            proto: "http".into(),
            name: format!("k{n}.asked.example"),
            bsalt: "b".repeat(36),
        };
        let asked = async |fsalt: &str| {
            let line = ServiceLine::signed(&id, fsalt, b"wrong", "0123abcd");
            let mut conn: BoxConn = Box::new(TcpStream::connect(address).await.unwrap());
            let request = format!("CONNECT PageKite:1 HTTP/1.0\r\nX-PageKite: {line}\r\n\r\n");
            send(&mut conn, &request).await;
            read_head(&mut conn).await.unwrap_or_default()
        };
        let challenge = asked("").await;
        let mut lines = challenge.lines();
        let challenge = lines.find_map(|l| l.strip_prefix("X-PageKite-SignThis: "));
        let fsalt = challenge.and_then(|l| l.rsplit(':').next());
        asked(fsalt.expect("everybody is challenged")).await
    });
    let good = async {
        let (echo, _) = origin(b"").await;
        sleep(Duration::from_millis(500)).await;
        let back = backend(
            &front.address,
            vec![service(Protocol::Http, GOOD, echo, "right")],
        );
        until("the kite of a grant flies", || {
            kites(&front.handle).len() == 1
        })
        .await;
        back
    };
    let (answers, _back) = tokio::join!(futures::future::join_all(attempts), good);
    let of = |word: &str| answers.iter().filter(|a| a.contains(word)).count();
    assert_eq!(of("X-PageKite-OK"), 0, "nobody was let in");
    assert_eq!(of("X-PageKite-Invalid: "), 100, "each was told no");
    assert!(of(";overload") > 90, "most were never asked about");
    assert_eq!(kites(&front.handle), [format!("http:{GOOD}")]);
    is_served(front.public, b"").await;
}

/// A tunnel whose backend has died without a word gives its name back to whoever proves the secret.
#[tokio::test]
async fn a_dead_tunnel_does_not_keep_its_name() {
    let state = tempfile::tempdir().unwrap();
    let (echo, _) = origin(b"").await;
    let front = start(frontend_config(
        state.path(),
        any(),
        &[Protocol::Http],
        ProofRule::Optional,
    ));
    let (mut squatter, binding) = dial(&front.address).await;
    let (verdict, _) = register(&mut squatter, ProofPolicy::Demand(binding.unwrap())).await;
    assert_eq!(verdict.unwrap().flying.len(), 1);
    until("it flies", || kites(&front.handle).len() == 1).await;
    // It holds its connection, and says nothing any more.
    let began = Instant::now();
    let _owner = backend(
        &front.address,
        vec![service(Protocol::Http, NAME, echo, "right")],
    );
    // Until it is found out its visitors wait for it.
    let visit = async || {
        let mut conn = TcpStream::connect(front.public).await.ok()?;
        conn.write_all(head(NAME).as_bytes()).await.ok()?;
        let mut echo = [0; 6];
        let reading = timeout(Duration::from_secs(1), conn.read_exact(&mut echo));
        reading.await.ok()?.ok()?;
        (echo == *b"GET / ").then_some(())
    };
    let answers = timeout(Duration::from_secs(60), async {
        while visit().await.is_none() {
            sleep(Duration::from_millis(200)).await;
        }
    });
    answers.await.expect("the owner has its name again");
    assert!(
        began.elapsed() > Duration::from_secs(5),
        "it was not dead at once"
    );
    drop(squatter);
}

/// Who is asked for an invitation reads no more than one has.
#[tokio::test]
async fn invitations_of_absurd_length_are_not_read() {
    let state = tempfile::tempdir().unwrap();
    let front = start(frontend_config(
        state.path(),
        any(),
        &[Protocol::Http],
        ProofRule::Optional,
    ));
    for length in [
        "1000000000",
        "4097",
        "18446744073709551616",
        "-1",
        "5, 5",
        "",
    ] {
        let (mut conn, _) = dial(&front.address).await;
        send(
            &mut conn,
            &format!(
                "POST /~:kite:~/join1 HTTP/1.1\r\nHost: alice.example\r\nContent-Length: {length}\r\n\r\n{{"
            ),
        )
        .await;
        let answer = timeout(Duration::from_secs(5), read_head(&mut conn)).await;
        let answer = answer.expect("at once, without waiting for the rest");
        assert!(
            answer
                .as_deref()
                .is_none_or(|a| a.starts_with("HTTP/1.0 503")),
            "{length}: {answer:?}"
        );
    }
}

/// What may be read in two ways reaches no origin; what reaches one is what the visitor wrote, for the name it was routed by.
#[tokio::test]
async fn ambiguous_requests_reach_no_origin() {
    let state = tempfile::tempdir().unwrap();
    let (echo, visitors) = origin(b"").await;
    let front = start(frontend_config(
        state.path(),
        any(),
        &[Protocol::Http],
        ProofRule::Optional,
    ));
    let both = [GOOD, NAME].map(|name| service(Protocol::Http, name, echo, "right"));
    let _back = backend(&front.address, both.into());
    until("both fly", || kites(&front.handle).len() == 2).await;
    let refused = [
        format!("GET / HTTP/1.1\r\nHost: {GOOD}\r\nHost: {NAME}\r\n\r\n"),
        format!("GET / HTTP/1.1\r\nHost: {GOOD}\r\nX: y\nHost: {NAME}\r\n\r\n"),
        format!("GET / HTTP/1.1\r\nHost: {GOOD}\r\nX: y\rHost: {NAME}\r\n\r\n"),
        format!("GET / HTTP/1.1\r\nHost: {GOOD}\r\n Host: {NAME}\r\n\r\n"),
        format!("GET / HTTP/1.1\r\nX: y\r\n\tHost: {NAME}\r\nHost: {GOOD}\r\n\r\n"),
        format!("GET / HTTP/1.1\r\nHost : {NAME}\r\nHost: {GOOD}\r\n\r\n"),
        format!("GET / HTTP/1.1\r\nHost: {GOOD}, {NAME}\r\n\r\n"),
        format!("GET / HTTP/1.1\r\nHost: {GOOD}@{NAME}\r\n\r\n"),
        format!("GET / HTTP/1.1\r\nHost: {GOOD}/{NAME}\r\n\r\n"),
        format!("GET / HTTP/1.1\r\nHost: {GOOD}%0d%0aProto: raw\r\n\r\n"),
        format!("GET / HTTP/1.1\r\nHost: {GOOD}\0.{NAME}\r\n\r\n"),
        format!("GET http://{NAME}/ HTTP/1.1\r\nHost: {GOOD}\r\n\r\n"),
        format!("GET http://{GOOD}@{NAME}/ HTTP/1.1\r\nHost: {GOOD}\r\n\r\n"),
        format!("GET http:{NAME}/ HTTP/1.1\r\nHost: {GOOD}\r\n\r\n"),
        format!("GET /  HTTP/1.1\r\nHost: {GOOD}\r\n\r\n"),
        format!("GET / HTTP/1.1 \r\nHost: {GOOD}\r\n\r\n"),
        format!("GET / HTTP/0.9\r\nHost: {GOOD}\r\n\r\n"),
        format!("GET /\r\nHost: {GOOD}\r\n\r\n"),
    ];
    for request in &refused {
        let answer = ask(front.public, request).await;
        assert!(
            answer.starts_with(b"HTTP/1.1 400 "),
            "{request:?}: {answer:?}"
        );
    }
    assert_eq!(visitors.load(std::sync::atomic::Ordering::SeqCst), 0);
    // One connection is one kite's, whatever is in it, and however long its bodies are said to be.
    let passed = [
        format!(
            "POST / HTTP/1.1\r\nHost: {GOOD}\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET / HTTP/1.1\r\nHost: {NAME}\r\n\r\n"
        ),
        format!(
            "POST / HTTP/1.1\r\nHost: {GOOD}\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\nabcdefgh"
        ),
        format!("GET http://{GOOD}/ HTTP/1.1\r\nHost: {GOOD}:80\r\n\r\n"),
        format!("GET / HTTP/1.0\nHost: {GOOD}.\n\n"),
    ];
    for request in &passed {
        let mut conn = TcpStream::connect(front.public).await.unwrap();
        conn.write_all(request.as_bytes()).await.unwrap();
        let mut echo = vec![0; request.len()];
        timeout(SOON, conn.read_exact(&mut echo))
            .await
            .expect("in time")
            .unwrap();
        assert_eq!(String::from_utf8_lossy(&echo), *request);
    }
}
