//! A frontend that knows the secret, and has been let in: what it sends down the tunnel is
//! written by hand. Beside it an honest one flies the same kite. Nothing but foolscap's opening
//! for the kite's own name may reach the kite's own origin.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::BytesMut;
use kite::kite::Protocol;
use kite::sniff::foolscap::MAX_NEGOTIATION;
use kite::tunnel::mux::{MAX_STRAYS, MAX_STREAMS};
use kite::wire::frame::{Decoder, Eof, Frame};
use kite::wire::handshake::{KITE_MUX, KITE_PROOF, Request};
use kite::wire::proof::{self, Prover};
use kite::wire::{Limits, Sid};
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};

use crate::attacks::{Hostile, read_frame, read_head, send, send_frame};
use crate::origins::{Kind, Recorder};
use crate::roles::{
    NAME, SWITCHING, Side, TUB, any, ask, backend_of, client_hello, foolscap_request, frontend,
    kites, service, until,
};
use kite::dial::BoxConn;
use kite::shutdown::Trigger;

/// What a stream has heard.
#[derive(Clone, Default)]
struct Heard {
    data: Vec<u8>,
    /// The backend takes no more.
    refused: bool,
    /// The backend says no more.
    ended: bool,
}

type Ears = Arc<Mutex<HashMap<Sid, Heard>>>;

/// The scene: a kite's node, a server that is nobody's business, an honest frontend, a liar.
struct Scene {
    node: Recorder,
    bystander: Recorder,
    honest: Side,
    mouth: WriteHalf<BoxConn>,
    heard: Ears,
    reading: tokio::task::JoinHandle<()>,
    _back: Trigger,
    _hostile: Hostile,
}

impl Scene {
    async fn new() -> Self {
        let node = Recorder::start(Kind::Node, any()).await;
        let bystander = Recorder::start(Kind::Mute, any()).await;
        let honest = frontend(&[Protocol::Foolscap]);
        let hostile = Hostile::new(true).await;
        let kite = service(Protocol::Foolscap, NAME, node.address, "right");
        let back = backend_of(&[&honest.address, &hostile.address()], vec![kite]);
        let conn = admit(&hostile).await;
        let (ears, mouth) = tokio::io::split(conn);
        let heard = Ears::default();
        let reading = tokio::spawn(listen(ears, heard.clone()));
        until("the honest one flies it", || {
            kites(&honest.handle).len() == 1
        })
        .await;
        Self {
            node,
            bystander,
            honest,
            mouth,
            heard,
            reading,
            _back: back,
            _hostile: hostile,
        }
    }

    /// A frame: its headers as they are given, and data.
    async fn say(&mut self, headers: &str, data: impl AsRef<[u8]>) {
        let frame = frame(headers, data.as_ref());
        // The backend may have hung up, which is one of the right answers.
        let _ = self.mouth.write_all(&frame).await;
        let _ = self.mouth.flush().await;
    }

    async fn open(&mut self, sid: u32, first: impl AsRef<[u8]>) {
        self.say(&opening(sid), first).await;
    }

    fn heard(&self, sid: u32) -> Heard {
        let all = self.heard.lock().unwrap();
        let sid = Sid::new(sid).unwrap();
        all.get(&sid).cloned().unwrap_or_default()
    }

    async fn until_refused(&self, sid: u32) {
        until(&format!("stream {sid} is refused"), || {
            let heard = self.heard(sid);
            heard.refused || heard.ended || self.reading.is_finished()
        })
        .await;
    }

    async fn until_answered(&self, sid: u32) {
        until(&format!("stream {sid} is answered"), || {
            self.heard(sid).data == SWITCHING
        })
        .await;
    }

    /// The honest frontend's visitor is served as ever; what the node saw of all others.
    async fn settle(&self) -> Vec<Vec<u8>> {
        let mine = request("honest");
        let answer = tokio::time::timeout(Duration::from_secs(20), async {
            let mut visitor = tokio::net::TcpStream::connect(self.honest.public)
                .await
                .unwrap();
            visitor.write_all(&mine).await.unwrap();
            let mut said = vec![0; SWITCHING.len()];
            visitor.read_exact(&mut said).await.unwrap();
            said
        });
        assert_eq!(answer.await.expect("in time"), SWITCHING);
        assert_eq!(kites(&self.honest.handle).len(), 1);
        assert_eq!(self.bystander.visits(), Vec::<Vec<u8>>::new());
        let mut visits = self.node.visits();
        visits.retain(|visit| *visit != mine);
        visits
    }
}

/// Lets the backend in as a frontend that knows its secret.
pub async fn admit(hostile: &Hostile) -> BoxConn {
    let (mut conn, binding) = hostile.take_bound().await;
    let request = Request::parse(read_head(&mut conn).await.unwrap().as_bytes()).unwrap();
    let (id, fsalt) = (request.lines.services[0].kite_id(), "t".repeat(36));
    let answer = format!(
        "HTTP/1.1 200 OK\r\nX-PageKite-Features: {KITE_PROOF}\r\nX-PageKite-Features: AddKites\r\n\
         X-PageKite-Features: {KITE_MUX}\r\nX-PageKite-Window: 64\r\nX-PageKite-Frame: 65536\r\n\
         X-PageKite-SignThis: {id}:{fsalt}\r\n\r\n"
    );
    send(&mut conn, &answer).await;
    read_frame(&mut conn).await.unwrap();
    let proof = proof::prove(b"right", Prover::Frontend, &id, &fsalt, &binding.unwrap()).unwrap();
    let verdict =
        format!("NOOP: 1\r\nX-PageKite-OK: {id}\r\nX-PageKite-Proof: {id}:{proof}\r\n\r\n");
    send_frame(&mut conn, &verdict).await;
    conn
}

async fn listen(mut ears: ReadHalf<BoxConn>, heard: Ears) {
    let mut decoder = Decoder::new(Limits::ESTABLISHED);
    let mut buf = BytesMut::new();
    loop {
        while let Some(frame) = decoder.decode(&mut buf).unwrap() {
            if let Frame::Stream(frame) = frame {
                let mut all = heard.lock().unwrap();
                let stream = all.entry(frame.sid).or_default();
                stream.data.extend_from_slice(&frame.data);
                stream.refused |= frame.eof.write;
                stream.ended |= frame.eof != Eof::NONE && frame.eof.read;
            }
        }
        if !matches!(ears.read_buf(&mut buf).await, Ok(1..)) {
            return;
        }
    }
}

pub fn frame(headers: &str, data: &[u8]) -> Vec<u8> {
    let head = format!("{headers}\r\n\r\n");
    let mut frame = format!("{:x}\r\n{head}", head.len() + data.len()).into_bytes();
    frame.extend_from_slice(data);
    frame
}

fn opening(sid: u32) -> String {
    format!("SID: {sid}\r\nProto: http\r\nHost: {NAME}\r\nPort: 80")
}

/// A visitor's request that can be told from others.
fn request(mark: &str) -> Vec<u8> {
    format!(
        "GET /id/{TUB} HTTP/1.1\r\nHost: {NAME}\r\nX-Mark: {mark}\r\nUpgrade: TLS/1.0\r\nConnection: Upgrade\r\n\r\n"
    )
    .into_bytes()
}

/// Whatever it calls the stream, the wrong name or protocol, or the wrong bytes, reach nobody.
#[tokio::test]
async fn no_word_of_the_frontend_opens_a_way() {
    let mut scene = Scene::new().await;
    let elsewhere = scene.bystander.address;
    let good = foolscap_request(NAME);
    let mut sid = 0;
    for headers in [
        "Proto: http\r\nHost: eve.alice.example".to_owned(),
        "Proto: http\r\nHost: alice.example".into(),
        "Proto: http\r\nHost: *.alice.example".into(),
        "Proto: http\r\nHost: *".into(),
        "Proto: http\r\nHost: unknown".into(),
        "Proto: http\r\nHost: ".into(),
        "Proto: http\r\nHost: localhost".into(),
        format!("Proto: http\r\nHost: {elsewhere}"),
        format!("Proto: http\r\nHost: {NAME}:{}", elsewhere.port()),
        format!("Proto: http\r\nHost: {NAME}@{elsewhere}"),
        format!("Proto: http\r\nHost: {NAME}/{elsewhere}"),
        format!("Proto: http\r\nHost: {NAME} {elsewhere}"),
        format!("Proto: http\r\nHost: {NAME}\0"),
        format!("Proto: http\r\nHost: x\rHost: {NAME}"),
        format!("Proto: http\r\nHost: {}{NAME}", "a.".repeat(200)),
        format!("Proto: http\r\nHost: {NAME}\r\nHost: eve.alice.example"),
        format!("Proto: https\r\nHost: {NAME}"),
        format!("Proto: raw\r\nHost: {NAME}\r\nPort: {}", elsewhere.port()),
        format!("Proto: raw-{}\r\nHost: {NAME}", elsewhere.port()),
        format!("Proto: http-80\r\nHost: {NAME}"),
        format!("Proto: foolscap\r\nHost: {NAME}"),
        format!("Proto: tahoe-https\r\nHost: {NAME}"),
        format!("Proto: finger\r\nHost: {NAME}"),
        format!("Proto: {}\r\nHost: {NAME}", "http".repeat(999)),
        format!("Proto: \r\nHost: {NAME}"),
    ] {
        sid += 1;
        scene.say(&format!("SID: {sid}\r\n{headers}"), &good).await;
        scene.until_refused(sid).await;
    }
    // Rightly opened, and then something else than the opening of a foolscap client.
    let head = |line: &str, host: &str, rest: &str| format!("{line}\r\nHost: {host}\r\n{rest}\r\n");
    let upgrade = "Upgrade: TLS/1.0\r\nConnection: Upgrade\r\n";
    let get = format!("GET /id/{TUB} HTTP/1.1");
    for first in [
        head("GET / HTTP/1.1", NAME, "User-Agent: Mozilla/5.0\r\n").into_bytes(),
        head("GET /uri/URI:DIR2:x HTTP/1.1", NAME, upgrade).into_bytes(),
        head("POST /uri?t=mkdir HTTP/1.1", NAME, "Content-Length: 0\r\n").into_bytes(),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
        client_hello(Some(NAME)),
        client_hello(None),
        head(&get, "eve.alice.example", upgrade).into_bytes(),
        head(&get, &elsewhere.to_string(), upgrade).into_bytes(),
        head(&get, NAME, "").into_bytes(),
        head(&get, NAME, &format!("Host: {NAME}\r\n{upgrade}")).into_bytes(),
        head(&get, NAME, &format!("{upgrade}X: \0\r\n")).into_bytes(),
        head(
            &get,
            NAME,
            &format!("{upgrade}X: {}\r\n", "x".repeat(MAX_NEGOTIATION)),
        )
        .into_bytes(),
        [&good[..], b"GET /uri HTTP/1.1\r\n\r\n"].concat(),
        b"SSH-2.0-x\r\n".to_vec(),
        vec![0; 70_000],
    ] {
        sid += 1;
        scene.open(sid, first).await;
        scene.until_refused(sid).await;
    }
    assert!(!scene.reading.is_finished(), "the tunnel itself stands");
    assert_eq!(scene.settle().await, Vec::<Vec<u8>>::new());
}

/// Odd words about the visitor change neither the way nor the bytes.
#[tokio::test]
async fn words_about_the_visitor_reach_nobody() {
    let mut scene = Scene::new().await;
    let mut expected = Vec::new();
    for (sid, lines) in (1..).zip([
        "RIP: 203.0.113.7\r\nRPort: 4711",
        "RIP: x\rHost: eve.alice.example\rInjected: 1",
        "RIP: \u{1b}[2J<script>\r\nRPort: 99999999999999999999",
        "RPort: -1\r\nRIP: ",
        "Port: 0\r\nPort: 65536\r\nPort: x",
        "RTLS: yes\r\nRTLS:\r\n: \r\nX-Forwarded-For: 203.0.113.7",
    ]) {
        let first = request(&sid.to_string());
        let headers = format!("SID: {sid}\r\nProto: http\r\nHost: {NAME}\r\n{lines}");
        scene.say(&headers, &first).await;
        scene.until_answered(sid).await;
        expected.push(first);
    }
    assert_eq!(scene.settle().await, expected);
}

/// The same number twice, again, too early, too late, and ends in odd orders.
#[tokio::test]
async fn streams_opened_and_ended_in_odd_orders() {
    let mut scene = Scene::new().await;
    let junk = b"GET /uri/URI:DIR2:x HTTP/1.1\r\n\r\n";

    // Twice: the second opening is the first stream's, and its bytes are not TLS.
    scene.open(1, request("1")).await;
    scene.until_answered(1).await;
    scene.open(1, junk).await;
    scene.until_refused(1).await;

    // Again after its end, with good bytes and with bad ones.
    scene.open(2, request("2a")).await;
    scene.until_answered(2).await;
    scene.say("SID: 2\r\nEOF: 1WR", "").await;
    until("the node is told", || scene.node.visits().len() == 2).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    scene.open(2, junk).await;
    scene.until_refused(2).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    scene.open(2, request("2b")).await;
    until("it is a new stream", || scene.node.visits().len() == 3).await;

    // Data before the opening is no part of the stream.
    scene.say("SID: 3", junk).await;
    scene.until_refused(3).await;
    scene.open(3, request("3")).await;
    scene.until_answered(3).await;

    // Half a flight, an end, and then the rest.
    let half = request("4");
    let (first, rest) = half.split_at(60);
    scene.open(4, first).await;
    scene.say("SID: 4\r\nEOF: 1R", "").await;
    scene.say("SID: 4", rest).await;
    scene.until_refused(4).await;
    for (sid, ends) in [
        (5, &["1R", "1W"][..]),
        (6, &["1W", "1R"]),
        (7, &["1WR", "1R", "1W", "1WR"]),
        (8, &["rubbish"]),
    ] {
        scene.open(sid, first).await;
        for end in ends {
            scene
                .say(&format!("SID: {sid}\r\nEOF: {end}\r\nAbort: 1"), rest)
                .await;
        }
        scene.say(&format!("SID: {sid}"), rest).await;
    }
    // What came whole before its end is a visitor's right.
    scene.open(9, request("9")).await;
    scene.say("SID: 9\r\nEOF: 1R", "").await;
    scene.until_answered(9).await;
    scene.say("SID: 9", junk).await;

    assert!(!scene.reading.is_finished(), "the tunnel itself stands");
    let seen = scene.settle().await;
    let whole = ["1", "2a", "2b", "3", "9"].map(request);
    assert_eq!(seen, whole);
}

/// A hundred visitors in pieces of three bytes, a piece of each in turn.
#[tokio::test]
async fn interleaved_streams_keep_their_bytes_apart() {
    const MANY: u32 = 100;
    let mut scene = Scene::new().await;
    let requests: Vec<_> = (1..=MANY)
        .map(|sid| request(&format!("{sid:03}")))
        .collect();
    let mut all = Vec::new();
    for sid in 1..=MANY {
        all.extend(frame(&opening(sid), b""));
    }
    let longest = requests[0].len();
    for at in (0..longest).step_by(3) {
        for (sid, request) in (1..=MANY).zip(&requests) {
            let piece = &request[at..(at + 3).min(request.len())];
            all.extend(frame(&format!("SID: {sid}"), piece));
        }
    }
    scene.mouth.write_all(&all).await.unwrap();
    scene.mouth.flush().await.unwrap();
    for sid in 1..=MANY {
        scene.until_answered(sid).await;
    }
    let mut seen = scene.settle().await;
    seen.sort();
    assert_eq!(seen, requests);
}

/// Far more openings than a tunnel may have: each that is too much is refused, none is dialled
/// for, and the neighbour's visitors do not notice.
#[tokio::test]
async fn a_flood_of_openings_is_bounded() {
    let mut scene = Scene::new().await;
    let half = &request("half")[..50];
    let most = MAX_STREAMS as u32;
    for sid in 1..=2 * most {
        scene.open(sid, half).await;
    }
    scene.until_refused(2 * most).await;
    let refused = scene
        .heard
        .lock()
        .unwrap()
        .values()
        .filter(|h| h.refused)
        .count();
    assert_eq!(refused, MAX_STREAMS, "as many as were too many");
    assert_eq!(scene.settle().await, Vec::<Vec<u8>>::new());
    // A stream that goes makes room for one.
    scene.say("SID: 1\r\nEOF: 1WR", "").await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    scene.open(3 * most, request("late")).await;
    scene.until_answered(3 * most).await;
    assert_eq!(scene.settle().await, [request("late")]);
}

/// One that opens and reads nothing is cut off when its refusals pile up.
#[tokio::test]
async fn a_flood_that_reads_nothing_ends_the_tunnel() {
    let mut scene = Scene::new().await;
    scene.reading.abort();
    let enough = (4 * MAX_STREAMS + MAX_STRAYS) as u32;
    let flood = async {
        let mut sid = 0;
        loop {
            let many: Vec<u8> = (0..1000)
                .flat_map(|n| frame(&opening(sid + n), b"G"))
                .collect();
            sid += 1000;
            if scene.mouth.write_all(&many).await.is_err() {
                return sid;
            }
            if scene.mouth.flush().await.is_err() {
                return sid;
            }
        }
    };
    let sid = tokio::time::timeout(Duration::from_secs(30), flood)
        .await
        .expect("it is cut off");
    assert!(sid > enough / 4, "after {sid} openings");
    assert_eq!(scene.settle().await, Vec::<Vec<u8>>::new());
}

/// Opened and never sent to, or not enough: let go after a time, and nobody dialled for it.
#[tokio::test]
async fn half_open_streams_are_let_go() {
    let mut scene = Scene::new().await;
    scene.open(1, "").await;
    scene.open(2, &request("half")[..90]).await;
    let patience = kite::backend::FIRST_FLIGHT_TIMEOUT;
    let began = std::time::Instant::now();
    while !(scene.heard(1).refused && scene.heard(2).refused) {
        assert!(began.elapsed() < patience + Duration::from_secs(20));
        tokio::time::sleep(Duration::from_secs(1)).await;
        scene.say("NOOP: 1", "").await;
    }
    assert!(began.elapsed() + Duration::from_secs(1) >= patience);
    // The rest comes too late.
    scene.say("SID: 2", &request("half")[90..]).await;
    assert_eq!(scene.settle().await, Vec::<Vec<u8>>::new());
    let answer = ask(
        scene.honest.public,
        b"GET / HTTP/1.1\r\nHost: x.example\r\n\r\n",
    )
    .await;
    assert!(answer.starts_with(b"HTTP/1.1 503 "));
}
