//! Two ends of a tunnel, joined by a pipe.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use kite::tunnel::buffer::{Chunk, MAX_HELD, Outgoing, Pool, SMALL_PAYLOAD, TIGHT};
use kite::tunnel::mux::{
    Capacity, Liveness, MAX_INBOX_TOTAL, MAX_OUTBOX_TOTAL, Mux, OpenError, Read, Settings, Side,
};
use kite::tunnel::splice::{Broken, LAST_PIECES, Local, splice};
use kite::tunnel::stream::OUTBOX_CHUNKS;
use kite::tunnel::{Ended, Incoming, Tunnel, TunnelStream};
use kite::wire::Sid;
use kite::wire::frame::{self, Eof, Open, put_data, put_eof};
use rand::rngs::StdRng;
use rand::{Rng, RngCore, SeedableRng};
use tokio::io::{
    AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf, duplex,
};

/// How the two ends know each other.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Kites,
    Legacy,
}

fn settings(side: Side, kind: Kind) -> Settings {
    let window = match kind {
        // More than a megabyte, so that senders hold themselves to less.
        Kind::Kites => 4 << 20,
        Kind::Legacy => 256 << 10,
    };
    Settings {
        side,
        kite: kind == Kind::Kites,
        max_payload: if kind == Kind::Kites { 64 * 1024 } else { 1360 },
        send_window: window,
        recv_window: window,
        max_streams: 100,
        liveness: Liveness::DEFAULT,
    }
}

/// A frontend's and a backend's end. `pipe` is the pipe's capacity in bytes.
fn pair(kind: Kind, pipe: usize) -> (Tunnel, Tunnel) {
    let (a, b) = duplex(pipe);
    let start = |io, side| Tunnel::start(io, BytesMut::new(), settings(side, kind), Pool::new());
    (start(a, Side::Frontend), start(b, Side::Backend))
}

fn visit() -> Open {
    Open {
        proto: "http".into(),
        host: "kite.test".into(),
        ..Open::default()
    }
}

async fn within<T>(what: &str, work: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), work)
        .await
        .unwrap_or_else(|_| panic!("{what} took too long"))
}

/// Splices a stream with a pipe; the test holds the pipe's other end.
fn attach(stream: TunnelStream) -> (DuplexStream, tokio::task::JoinHandle<Result<(), Broken>>) {
    let (near, far) = duplex(16 * 1024);
    let flow = Default::default();
    let done =
        tokio::spawn(async move { splice(stream, far, VecDeque::new(), None, flow).await.end });
    (near, done)
}

/// Opens a stream and takes it at the other end: visitor's pipe, origin's pipe.
async fn open(front: &Tunnel, back: &Tunnel, first: &[u8]) -> (DuplexStream, DuplexStream) {
    let stream = front.open(visit(), Bytes::copy_from_slice(first)).unwrap();
    let Incoming {
        open,
        stream: taken,
    } = within("accepting", back.accept()).await.unwrap();
    assert_eq!(
        (open.proto.as_str(), open.host.as_str()),
        ("http", "kite.test")
    );
    (attach(stream).0, attach(taken).0)
}

fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    StdRng::seed_from_u64(seed).fill_bytes(&mut bytes);
    bytes
}

#[tokio::test]
async fn bytes_arrive_as_they_were_sent_both_ways_on_many_streams() {
    for (kind, pipe) in [
        (Kind::Kites, 1 << 20),
        (Kind::Kites, 777),
        (Kind::Legacy, 64 * 1024),
        (Kind::Legacy, 100),
    ] {
        let (front, back) = pair(kind, pipe);
        let mut tasks = Vec::new();
        for i in 0..20 {
            let first = noise(1000 + i, (i as usize * 531) % 9000);
            let (visitor, origin) = open(&front, &back, &first).await;
            for (end, seed, expected) in [(visitor, 1, 2), (origin, 2, 1)] {
                let prefix = if seed == 2 { first.clone() } else { Vec::new() };
                tasks.push(tokio::spawn(async move {
                    let mine = noise(i * 10 + seed, 50_000 + i as usize * 7919);
                    let theirs = noise(i * 10 + expected, 50_000 + i as usize * 7919);
                    let (mut read, mut write) = tokio::io::split(end);
                    let sending = async {
                        let mut rng = StdRng::seed_from_u64(i);
                        let mut rest = &mine[..];
                        while !rest.is_empty() {
                            let n = rng.random_range(1..=rest.len().min(5000));
                            write.write_all(&rest[..n]).await.unwrap();
                            rest = &rest[n..];
                        }
                        write.shutdown().await.unwrap();
                    };
                    let mut got = Vec::new();
                    let (read, ()) = tokio::join!(read.read_to_end(&mut got), sending);
                    read.unwrap();
                    assert!(
                        got == [prefix, theirs].concat(),
                        "stream {i}: other bytes arrived"
                    );
                }));
            }
        }
        for task in tasks {
            within("a transfer", task).await.unwrap();
        }
        within("forgetting the streams", async {
            while front.streams() + back.streams() > 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
    }
}

#[tokio::test]
async fn each_half_ends_on_its_own() {
    for kind in [Kind::Kites, Kind::Legacy] {
        let (front, back) = pair(kind, 4096);
        let (mut visitor, mut origin) = open(&front, &back, b"question").await;
        visitor.shutdown().await.unwrap();
        let mut got = Vec::new();
        within("the origin's reading", origin.read_to_end(&mut got))
            .await
            .unwrap();
        assert_eq!(got, b"question");
        tokio::time::sleep(Duration::from_millis(50)).await;
        origin.write_all(b"a late answer").await.unwrap();
        origin.shutdown().await.unwrap();
        got.clear();
        within("the visitor's reading", visitor.read_to_end(&mut got))
            .await
            .unwrap();
        assert_eq!(got, b"a late answer");

        // And in the other order.
        let (mut visitor, mut origin) = open(&front, &back, b"").await;
        origin.shutdown().await.unwrap();
        got.clear();
        within("the visitor's reading", visitor.read_to_end(&mut got))
            .await
            .unwrap();
        visitor.write_all(b"still talking").await.unwrap();
        visitor.shutdown().await.unwrap();
        within("the origin's reading", origin.read_to_end(&mut got))
            .await
            .unwrap();
        assert_eq!(got, b"still talking");
    }
}

/// What a sender counts as on the way must not stay there when it has said all.
#[tokio::test]
async fn the_rest_is_acknowledged_after_the_end() {
    let (a, mut raw) = duplex(1 << 20);
    let settings = settings(Side::Frontend, Kind::Kites);
    let front = Tunnel::start(a, BytesMut::new(), settings, Pool::new());
    let stream = front.open(visit(), Bytes::new()).unwrap();
    let (mut visitor, _) = attach(stream);
    let mut wire = BytesMut::new();
    put_data(&mut wire, Sid::new(1).unwrap(), &[7; 10 * 1024]);
    put_eof(&mut wire, Sid::new(1).unwrap(), Eof::READ, false, &[]);
    raw.write_all(&wire).await.unwrap();
    let mut got = Vec::new();
    within("the answer", visitor.read_to_end(&mut got))
        .await
        .unwrap();
    let mut said = Vec::new();
    within("the acknowledgement", async {
        while !String::from_utf8_lossy(&said).contains("SKB: 10\r\n") {
            raw.read_buf(&mut said).await.unwrap();
        }
    })
    .await;
}

#[tokio::test]
async fn an_abort_is_no_orderly_end() {
    let (front, back) = pair(Kind::Kites, 4096);
    let stream = front.open(visit(), Bytes::from_static(b"part of")).unwrap();
    let taken = within("accepting", back.accept()).await.unwrap().stream;
    let (mut origin, done) = attach(taken);
    let mut got = [0; 7];
    within("reading", origin.read_exact(&mut got))
        .await
        .unwrap();
    stream.abort();
    assert!(matches!(
        within("the splice's end", done).await.unwrap(),
        Err(Broken::Tunnel)
    ));
}

/// Whoever still speaks has not been heard to the end, although it has heard all there was to hear.
#[tokio::test]
async fn a_break_is_one_for_whoever_has_only_to_speak_yet() {
    for kind in [Kind::Kites, Kind::Legacy] {
        for tunnel_ends in [false, true] {
            let (front, back) = pair(kind, 4096);
            let question = Bytes::from_static(b"question");
            let stream = front.open(visit(), question).unwrap();
            stream.finish();
            let taken = within("accepting", back.accept()).await.unwrap().stream;
            let (mut origin, done) = attach(taken);
            let mut got = Vec::new();
            within("the question", origin.read_to_end(&mut got))
                .await
                .unwrap();
            assert_eq!(got, b"question");
            origin.write_all(b"half an ans").await.unwrap();
            match tunnel_ends {
                true => front.close("a test"),
                false => stream.abort(),
            }
            let end = within("the splice's end", done).await.unwrap();
            assert!(matches!(end, Err(Broken::Tunnel)), "{end:?}");
        }
    }
}

/// What had come before a break is passed on, though the local side is slow; and then comes the break.
#[tokio::test]
async fn the_last_pieces_before_a_break_are_passed_on() {
    for tunnel_ends in [false, true] {
        let (front, back) = pair(Kind::Kites, 4096);
        let stream = front.open(visit(), Bytes::new()).unwrap();
        let (mut visitor, done) = attach(stream);
        let taken = within("accepting", back.accept()).await.unwrap().stream;
        let all = vec![7; 48 * 1024];
        taken.write(Bytes::from(all.clone()).into());
        // The visitor's pipe is full, and the rest waits in front of it.
        tokio::time::sleep(Duration::from_millis(300)).await;
        match tunnel_ends {
            true => back.close("a test"),
            false => taken.abort(),
        }
        tokio::time::sleep(LAST_PIECES / 20).await;
        let mut got = Vec::new();
        within("the rest", visitor.read_to_end(&mut got))
            .await
            .unwrap();
        assert_eq!(got.len(), all.len());
        let end = within("the splice's end", done).await.unwrap();
        assert!(matches!(end, Err(Broken::Tunnel)), "{end:?}");
    }
}

/// Who takes nothing is not waited for longer than that.
#[tokio::test]
async fn who_takes_nothing_holds_no_broken_stream() {
    let (front, back) = pair(Kind::Kites, 4096);
    let stream = front.open(visit(), Bytes::new()).unwrap();
    let (_visitor, done) = attach(stream);
    let taken = within("accepting", back.accept()).await.unwrap().stream;
    taken.write(Bytes::from(vec![7; 48 * 1024]).into());
    tokio::time::sleep(Duration::from_millis(300)).await;
    taken.abort();
    let end = within("the splice's end", done).await.unwrap();
    assert!(matches!(end, Err(Broken::Tunnel)), "{end:?}");
}

/// Who is told in order to say no more is not broken off, whatever becomes of the tunnel.
#[tokio::test]
async fn an_answer_that_needs_no_question_is_a_whole_one() {
    for kind in [Kind::Kites, Kind::Legacy] {
        let (front, back) = pair(kind, 4096);
        let stream = front.open(visit(), Bytes::new()).unwrap();
        let (mut visitor, done) = attach(stream);
        let taken = within("accepting", back.accept()).await.unwrap().stream;
        taken.write(Bytes::from_static(b"go away").into());
        taken.close();
        let mut got = Vec::new();
        within("the answer", visitor.read_to_end(&mut got))
            .await
            .unwrap();
        assert_eq!(got, b"go away");
        let end = within("the splice's end", done).await.unwrap();
        assert!(end.is_ok(), "{end:?}");
    }
}

#[tokio::test]
async fn only_so_many_kites_wait_to_be_judged() {
    let (mut raw, b) = duplex(64 * 1024);
    let settings = settings(Side::Frontend, Kind::Kites);
    let front = Tunnel::start(b, BytesMut::new(), settings, Pool::new());
    let stream = front.open(visit(), Bytes::new()).unwrap();
    let lines = "NOOP: 1\r\nX-PageKite: http:k.example:b::\r\n\r\n";
    for _ in 0..100 {
        let frame = format!("{:x}\r\n{lines}", lines.len());
        raw.write_all(frame.as_bytes()).await.unwrap();
    }
    // All that was said before this has come.
    let mut end = BytesMut::new();
    put_eof(&mut end, Sid::new(1).unwrap(), Eof::BOTH, false, b"");
    raw.write_all(&end).await.unwrap();
    let (_visitor, done) = attach(stream);
    let _ = within("its end", done).await;
    let mut waiting = 0;
    let soon = Duration::from_millis(100);
    while let Ok(Some(_)) = tokio::time::timeout(soon, front.next_kites()).await {
        waiting += 1;
    }
    assert_eq!(waiting, 64);
}

#[tokio::test]
async fn it_is_known_who_took_no_more() {
    for declines in [true, false] {
        let (front, back) = pair(Kind::Legacy, 4096);
        let stream = front.open(visit(), Bytes::new()).unwrap();
        let (mut visitor, far) = duplex(1024);
        let flow = Default::default();
        let done = tokio::spawn(splice(stream, far, VecDeque::new(), None, flow));
        let taken = within("accepting", back.accept()).await.unwrap().stream;
        match declines {
            true => taken.close(),
            false => {
                visitor.shutdown().await.unwrap();
                taken.finish();
            }
        }
        let done = within("the splice's end", done).await.unwrap();
        assert!(done.end.is_ok() && done.declined == declines, "{done:?}");
    }
}

#[tokio::test]
async fn a_dead_tunnel_breaks_its_streams_at_once() {
    let (a, b) = duplex(4096);
    let front = Tunnel::start(
        a,
        BytesMut::new(),
        settings(Side::Frontend, Kind::Kites),
        Pool::new(),
    );
    let stream = front.open(visit(), Bytes::new()).unwrap();
    let (_visitor, done) = attach(stream);
    drop(b);
    assert!(matches!(
        within("the splice's end", done).await.unwrap(),
        Err(Broken::Tunnel)
    ));
    assert!(front.is_closed());
    assert!(matches!(
        front.open(visit(), Bytes::new()),
        Err(OpenError::Closing)
    ));
}

#[tokio::test]
async fn a_stalled_reader_stalls_its_own_stream_alone() {
    for kind in [Kind::Kites, Kind::Legacy] {
        let (front, back) = pair(kind, 64 * 1024);
        let (mut stalled_visitor, stalled_origin) = open(&front, &back, b"").await;
        let stuck = tokio::spawn(async move {
            let data = vec![7; 8 << 20];
            stalled_visitor.write_all(&data).await
        });
        tokio::time::sleep(Duration::from_millis(200)).await;
        let (mut visitor, mut origin) = open(&front, &back, b"").await;
        for _ in 0..50 {
            visitor.write_all(b"ping").await.unwrap();
            let mut got = [0; 4];
            within(
                "a ping beside a stalled stream",
                origin.read_exact(&mut got),
            )
            .await
            .unwrap();
        }
        assert!(
            !stuck.is_finished(),
            "8 MB cannot have gone into a window of 4 MiB"
        );
        drop(stalled_origin);
        within("the end of the stalled one", stuck)
            .await
            .unwrap()
            .unwrap_err();
    }
}

#[tokio::test]
async fn a_peer_that_overruns_its_window_loses_the_stream_and_no_more() {
    // The backend's end believes in a window four times as large as the frontend's promise.
    let (a, b) = duplex(64 * 1024);
    let small = Settings {
        recv_window: 64 * 1024,
        ..settings(Side::Frontend, Kind::Kites)
    };
    let front = Tunnel::start(a, BytesMut::new(), small, Pool::new());
    let back = Tunnel::start(
        b,
        BytesMut::new(),
        settings(Side::Backend, Kind::Kites),
        Pool::new(),
    );
    let greedy = front.open(visit(), Bytes::new()).unwrap();
    let taken = within("accepting", back.accept()).await.unwrap().stream;
    let (mut origin, done) = attach(taken);
    let _ = origin.write_all(&vec![1; 200 * 1024]).await;
    assert!(matches!(
        within("the splice's end", done).await.unwrap(),
        Err(Broken::Tunnel)
    ));
    drop(greedy);
    let (mut visitor, mut origin) = open(&front, &back, b"").await;
    visitor.write_all(b"alive").await.unwrap();
    let mut got = [0; 5];
    within("another stream", origin.read_exact(&mut got))
        .await
        .unwrap();
}

#[tokio::test]
async fn an_older_peer_that_overruns_holds_the_tunnel_up_for_a_moment_only() {
    let (mut raw, b) = duplex(64 * 1024);
    let back = Tunnel::start(
        b,
        BytesMut::new(),
        settings(Side::Backend, Kind::Legacy),
        Pool::new(),
    );
    let mut out = BytesMut::new();
    let sid = |n| kite::wire::Sid::new(n).unwrap();
    kite::wire::frame::put_open(&mut out, sid(1), &visit(), b"first");
    raw.write_all(&out).await.unwrap();
    let _unread = within("accepting", back.accept()).await.unwrap();
    let began = Instant::now();
    let flood = async {
        for _ in 0..100 {
            out.clear();
            kite::wire::frame::put_data(&mut out, sid(1), &[9; 16 * 1024]);
            raw.write_all(&out).await.unwrap();
        }
        out.clear();
        kite::wire::frame::put_open(&mut out, sid(2), &visit(), b"second");
        raw.write_all(&out).await.unwrap();
    };
    within("the flood", flood).await;
    within("the next stream", back.accept()).await.unwrap();
    assert!(
        began.elapsed() >= Duration::from_secs(4),
        "the tunnel did not wait for the stream"
    );
}

/// A socket that says nothing, and how many pieces it was given at once.
#[derive(Default)]
struct Counting {
    most: Arc<AtomicUsize>,
    taken: Arc<AtomicUsize>,
}

impl Local for Counting {
    fn reset(&self) {}
}

impl AsyncRead for Counting {
    fn poll_read(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        _: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Poll::Pending
    }
}

impl AsyncWrite for Counting {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[io::IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let len = pieces.iter().map(|p| p.len()).sum();
        self.most.fetch_max(pieces.len(), Ordering::SeqCst);
        self.taken.fetch_add(len, Ordering::SeqCst);
        Poll::Ready(Ok(len))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[tokio::test]
async fn only_so_many_pieces_are_in_one_write() {
    let (mut raw, b) = duplex(64 * 1024);
    let back = Tunnel::start(
        b,
        BytesMut::new(),
        settings(Side::Backend, Kind::Kites),
        Pool::new(),
    );
    let sid = |n| Sid::new(n).unwrap();
    let mut out = BytesMut::new();
    frame::put_open(&mut out, sid(1), &visit(), b"");
    // Shorter ones would be joined.
    for _ in 0..40 {
        put_data(&mut out, sid(1), &[9; 8 * 1024]);
    }
    frame::put_open(&mut out, sid(2), &visit(), b"");
    let writing = tokio::spawn(async move {
        raw.write_all(&out).await.unwrap();
        raw
    });
    let taken = within("accepting", back.accept()).await.unwrap().stream;
    // All that was said before this one has come.
    within("another", back.accept()).await.unwrap();
    let socket = Counting::default();
    let (most, bytes) = (socket.most.clone(), socket.taken.clone());
    let splicing = splice(taken, socket, VecDeque::new(), None, Default::default());
    let splicing = tokio::spawn(splicing);
    within("all of it", async {
        while bytes.load(Ordering::SeqCst) < 40 * 8 * 1024 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    assert_eq!(most.load(Ordering::SeqCst), 16);
    splicing.abort();
    writing.await.unwrap();
}

#[tokio::test]
async fn a_silent_peer_is_asked_and_then_given_up() {
    let (a, mut raw) = duplex(4096);
    let quick = Liveness::Ping {
        ask: Duration::from_millis(100),
        dead: Duration::from_millis(400),
    };
    let front = Tunnel::start(
        a,
        BytesMut::new(),
        Settings {
            liveness: quick,
            ..settings(Side::Frontend, Kind::Kites)
        },
        Pool::new(),
    );
    let began = Instant::now();
    let why = within("giving up", front.ended()).await;
    assert!(matches!(why, Ended::Mux(_)), "{why}");
    assert!(began.elapsed() >= Duration::from_millis(400));
    let mut said = Vec::new();
    raw.read_to_end(&mut said).await.unwrap();
    assert!(String::from_utf8_lossy(&said).contains("PING: 1"));
}

/// A PONG of its own just before the answer would hold the answer up at every relay of Tor's.
#[tokio::test]
async fn a_new_visitor_asks_for_a_sign_of_life_only_if_none_comes() {
    let (a, mut raw) = duplex(4096);
    let settings = settings(Side::Frontend, Kind::Kites);
    let front = Tunnel::start(a, BytesMut::new(), settings, Pool::new());
    let mut said = Vec::new();
    for answered in [true, false] {
        let _stream = front.open(visit(), Bytes::new()).unwrap();
        within("the opening", raw.read_buf(&mut said))
            .await
            .unwrap();
        if answered {
            raw.write_all(b"b\r\nNOOP: 1\r\n\r\n").await.unwrap();
        }
        let more = tokio::time::timeout(Duration::from_millis(1500), async {
            while !String::from_utf8_lossy(&said).contains("PING: ") {
                raw.read_buf(&mut said).await.unwrap();
            }
        });
        assert_eq!(more.await.is_err(), answered, "{said:?}");
    }
}

#[tokio::test]
async fn an_answering_peer_stays() {
    let (a, b) = duplex(4096);
    let quick = Liveness::Ping {
        ask: Duration::from_millis(50),
        dead: Duration::from_millis(2000),
    };
    let start = |io, side| {
        Tunnel::start(
            io,
            BytesMut::new(),
            Settings {
                liveness: quick,
                ..settings(side, Kind::Kites)
            },
            Pool::new(),
        )
    };
    let (front, back) = (start(a, Side::Frontend), start(b, Side::Backend));
    tokio::time::sleep(Duration::from_millis(2500)).await;
    assert!(!front.is_closed() && !back.is_closed());
    assert!(front.rtt().is_some() || back.rtt().is_some());
}

#[tokio::test]
async fn only_so_many_streams_at_a_time() {
    let (front, back) = pair(Kind::Kites, 64 * 1024);
    let streams: Vec<_> = (0..100)
        .map(|_| front.open(visit(), Bytes::new()).unwrap())
        .collect();
    assert!(matches!(
        front.open(visit(), Bytes::new()),
        Err(OpenError::TooMany)
    ));
    drop(streams);
    // Dropped streams are told to the peer, and make room.
    within("room", async {
        while front.streams() > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    front.open(visit(), Bytes::new()).unwrap();
    drop(back);
}

#[tokio::test]
async fn a_closed_tunnel_still_sends_what_was_written() {
    let (front, back) = pair(Kind::Kites, 1000);
    let _stream = front.open(visit(), Bytes::from(vec![5; 5000])).unwrap();
    let incoming = within("accepting", back.accept()).await;
    let mut stream = incoming.unwrap().stream;
    front.close("a test");
    let mut got = 0;
    while let Ok(Some(bytes)) = stream.read().await {
        got += bytes.len();
    }
    assert_eq!(got, 5000);
    assert!(matches!(
        within("the end", back.ended()).await,
        Ended::ByPeer
    ));
    assert!(matches!(
        within("the end", front.ended()).await,
        Ended::ByUs("a test")
    ));
}

/// A socket that is closed while the peer still speaks is reset, and what was sent last is lost.
#[tokio::test]
async fn a_closed_tunnel_waits_for_the_peer_to_close() {
    let (a, mut raw) = duplex(1 << 20);
    let front = Tunnel::start(
        a,
        BytesMut::new(),
        settings(Side::Frontend, Kind::Kites),
        Pool::new(),
    );
    front.close("a test");
    let began = Instant::now();
    let mut said = Vec::new();
    within("its end of the connection", raw.read_to_end(&mut said))
        .await
        .unwrap();
    raw.write_all(b"still speaking").await.unwrap();
    let early = tokio::time::timeout(Duration::from_millis(200), front.ended()).await;
    assert!(early.is_err(), "it did not wait");
    // Nor does it for ever.
    assert!(matches!(
        within("the end", front.ended()).await,
        Ended::ByUs("a test")
    ));
    assert!((5..8).contains(&began.elapsed().as_secs()));
    drop(raw);
}

/// 300 one-byte writes on as many streams: an older peer must never find 150 frames
/// in 50,393 bytes, or it dies (protocol page §6.1).
#[tokio::test]
async fn bursts_to_an_older_peer_are_spread() {
    let (a, mut raw) = duplex(1 << 20);
    let many = Settings {
        max_streams: 1000,
        ..settings(Side::Frontend, Kind::Legacy)
    };
    let front = Tunnel::start(a, BytesMut::new(), many, Pool::new());
    let streams: Vec<_> = (0..300)
        .map(|_| front.open(visit(), Bytes::from_static(b"x")).unwrap())
        .collect();
    tokio::time::sleep(Duration::from_millis(200)).await;
    front.close("enough");
    drop(streams);
    let mut said = BytesMut::new();
    while raw.read_buf(&mut said).await.unwrap() > 0 {}
    let mut decoder = kite::wire::Decoder::new(kite::wire::Limits::ESTABLISHED);
    let total = said.len();
    let mut ends = vec![0];
    while decoder.decode(&mut said).unwrap().is_some() {
        ends.push(total - said.len());
    }
    assert!(ends.len() > 600, "{} frames", ends.len());
    for run in ends.windows(150) {
        let (first, last) = (run[0], run[149]);
        assert!(
            last - first > 50_393,
            "149 frames within {} bytes",
            last - first
        );
    }
}

/// Visitors send into a tunnel whose peer reads nothing, in pieces that waste as much memory as they can; and a peer sends to
/// visitors who read nothing. What all of it takes is counted, and bounded.
#[test]
fn what_a_tunnel_holds_is_counted_and_bounded() {
    let (pool, now) = (Pool::new(), Instant::now());
    let agreed = |side| Settings {
        max_streams: 1000,
        recv_window: 48 << 20,
        ..settings(side, Kind::Kites)
    };
    let mut front = Mux::new(agreed(Side::Frontend), now);
    front.draw_on(pool.budget());
    let fill = |mux: &mut Mux, sid| {
        while let Capacity::Bytes(n @ 1..) = mux.capacity(sid) {
            let mut buffer = pool.take(n);
            let piece = n.min(SMALL_PAYLOAD + 1);
            buffer.room(piece).fill(b'x');
            buffer.filled(piece);
            mux.write(sid, Chunk::new(buffer, &pool));
        }
    };
    let mut sids = Vec::new();
    for _ in 0..1000 {
        let sid = front.open(visit(), Bytes::new()).unwrap();
        fill(&mut front, sid);
        sids.push(sid);
    }
    let one = OUTBOX_CHUNKS * 64 * 1024 / SMALL_PAYLOAD * 80 * 1024;
    let small = 1000 * OUTBOX_CHUNKS * SMALL_PAYLOAD;
    assert!(front.held() > MAX_OUTBOX_TOTAL / 2, "much waits");
    assert!(
        front.held() <= MAX_OUTBOX_TOTAL + one + small,
        "{} are held",
        front.held()
    );
    assert_eq!(pool.budget().held(), front.held());
    for sid in sids {
        front.release(sid);
    }
    assert_eq!((front.held(), pool.budget().held()), (0, 0));

    // Whoever comes and leaves while nothing can be sent leaves nothing but its end.
    for _ in 0..10_000 {
        let sid = front.open(visit(), Bytes::from_static(b"x")).unwrap();
        front.release(sid);
    }
    let mut out = Outgoing::default();
    front.transmit(&mut out, &pool, now);
    assert!(
        !front.has_output() && out.is_empty(),
        "none was ever opened"
    );

    // Where others hold much, each piece is small from the start.
    let mut others = pool.budget().share();
    others.change(0, TIGHT + 1);
    let sid = front.open(visit(), Bytes::new()).unwrap();
    assert_eq!(front.capacity(sid), Capacity::Bytes(SMALL_PAYLOAD));

    // The other way: five streams, each within its window, and together over what a tunnel may hold.
    let mut back = Mux::new(agreed(Side::Backend), now);
    back.draw_on(pool.budget());
    others.change(TIGHT + 1, 0);
    let sid = |n| Sid::new(n).unwrap();
    let mut wire = BytesMut::new();
    (1..=5).for_each(|n| frame::put_open(&mut wire, sid(n), &visit(), b""));
    let payload = vec![0; 256 * 1024];
    for round in 0..100 {
        frame::put_data(&mut wire, sid(1 + round % 5), &payload);
        back.receive(&mut wire, now).unwrap();
        assert!(back.held() <= MAX_INBOX_TOTAL + payload.len());
    }
    assert!(back.held() >= 100 * payload.len());
    let broken = (1..=5).filter(|n| back.is_lost(sid(*n))).count();
    assert_eq!(broken, 0, "25 MiB are no fault");
    // The first one is taken from, and gets more than the others; so it is the fullest, and well.
    let mut now = now;
    for round in 0..200 {
        now += Duration::from_millis(10);
        for n in [1, 1 + round % 5] {
            frame::put_data(&mut wire, sid(n), &payload);
            back.receive(&mut wire, now).unwrap();
            assert!(back.held() <= MAX_INBOX_TOTAL + payload.len());
        }
        assert!(matches!(back.read(sid(1)), Read::Data(_)));
        back.consumed(sid(1), payload.len(), now);
    }
    let broken: Vec<_> = (1..=5).filter(|n| back.is_lost(sid(*n))).collect();
    assert!(
        broken.len() == 1 && broken != [1],
        "{broken:?}: one that has stalled"
    );
    // And where all tunnels together hold too much, one with more than its share loses a stream long before.
    let crowd: Vec<_> = (0..600).map(|_| pool.budget().share()).collect();
    others.change(0, MAX_HELD);
    for n in 1..=5 {
        frame::put_data(&mut wire, sid(n), &payload);
        back.receive(&mut wire, now).unwrap();
    }
    assert!((1..=5).filter(|n| back.is_lost(sid(*n))).count() > 1);
    drop((front, back, others, crowd));
    assert_eq!(pool.budget().held(), 0);
}

/// A frame that cannot be passed on in pieces is held until its end comes. It counts with what streams hold, and where all
/// tunnels together hold too much, the one with more than its share ends by it, and no other.
#[tokio::test]
async fn a_frame_without_an_end_is_counted_and_goes_first() {
    let pool = Pool::new();
    let begun = [
        format!("{:x}Z{:x}\r\n", 1 << 20, (1 << 20) - 1000).as_bytes(),
        &vec![0x55; 900_000],
    ]
    .concat();
    let start = |io| {
        let settings = settings(Side::Frontend, Kind::Kites);
        Tunnel::start(io, BytesMut::new(), settings, pool.clone())
    };
    let (near, mut hostile) = duplex(64 * 1024);
    let (other, mut honest) = duplex(64 * 1024);
    let (near, other) = (start(near), start(other));
    within("it is taken", hostile.write_all(&begun))
        .await
        .unwrap();
    let counted = async {
        while pool.budget().held() < begun.len() / 2 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    within("it is counted", counted).await;
    assert!(!near.is_closed(), "there is room");

    // Others hold all that there is, and there are so many that a share is less than a frame.
    let mut others: Vec<_> = (0..1000).map(|_| pool.budget().share()).collect();
    others[0].change(0, MAX_HELD);
    let small = b"b\r\nNOOP: 1\r\n\r\n";
    within("it is read", honest.write_all(small)).await.unwrap();
    hostile.write_all(b"more").await.unwrap();
    let ended = within("the end", near.ended()).await;
    assert!(ended.to_string().contains("began a frame"), "{ended}");
    assert!(!other.is_closed(), "who holds little stays");
    drop((near, others));
    let given_back = async {
        while pool.budget().held() > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    within("all is given back", given_back).await;
}
