//! Older backends, as they were recorded (`tests/fixtures/pagekite`), against a live frontend over real sockets.
//!
//! A recorded backend's bytes are played as they are, but for what is fresh each time: challenges and their signatures, the
//! session to replace, and the numbers of streams, which the frontend chooses. Its recorded visitors come in the order in which
//! they came then, and nobody goes on before having got what he had got at that moment. In the end everyone must
//! have got what he got then. What goes to the backend must be what such a program bears.

use std::collections::HashMap;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress};
use kite::kite::Protocol;
use kite::wire::ServiceLine;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::OwnedWriteHalf;

use crate::roles::{Side, ask, frontend_for, kites, until};

/// With which every recorded backend signs.
const SECRET: &str = "s3cret-for-tests";
/// What a CONNECT is answered with.
const ESTABLISHED: &[u8] = b"HTTP/1.0 200 Connection Established\r\n\r\n";
/// All that is sent to a backend of unknown kind in one frame, its size line not counted (protocol page §6.5).
const MAX_FRAME: usize = 1400;
/// pagekite.py reads so much at once, and dies of 150 frames in it (§6.1).
const ONE_READ: usize = 50_393;

// ------------------------------------------------------------------ recordings

/// What one end of a recorded connection said.
#[derive(Clone)]
struct Event {
    /// The line in the recording. (Times are those of different threads, and less exact than the order.)
    line: usize,
    connection: u64,
    way: String,
    bytes: Vec<u8>,
    /// How many there were; of large downloads the recorder kept a hash only.
    len: usize,
    end: bool,
}

fn fixture(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures/pagekite")
        .join(file)
}

fn events(name: &str) -> Vec<Event> {
    let event = |(line, text): (usize, &str)| {
        let text: serde_json::Value = serde_json::from_str(text).unwrap();
        let hex = text["hex"].as_str().unwrap_or_default();
        let bytes = data_encoding::HEXLOWER.decode(hex.as_bytes()).unwrap();
        Event {
            line,
            connection: text["c"].as_u64().unwrap(),
            way: text["dir"].as_str().unwrap().to_owned(),
            len: text["len"].as_u64().map_or(bytes.len(), |len| len as usize),
            bytes,
            end: text["eof"] == 1,
        }
    };
    let text = fs::read_to_string(fixture(&format!("{name}.jsonl"))).unwrap();
    text.lines().enumerate().map(event).collect()
}

/// A frame in plain form.
#[derive(Clone, Debug)]
struct Plain {
    /// The line of its last byte in a recording; where it ends in what a live peer heard.
    at: usize,
    headers: Vec<(String, String)>,
    data: Vec<u8>,
}

impl Plain {
    fn get(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(n, _)| n == name);
        found.map(|(_, value)| value.as_str())
    }

    fn sid(&self) -> Option<u32> {
        self.get("SID").map(|sid| sid.parse().unwrap())
    }

    /// Bytes of a stream, if that is what it holds.
    fn payload(&self) -> &[u8] {
        match (self.get("NOOP"), self.get("EOF")) {
            (None, None) => &self.data,
            _ => &[],
        }
    }

    fn chunk(&self) -> Vec<u8> {
        let mut chunk = Vec::new();
        for (name, value) in &self.headers {
            chunk.extend(format!("{name}: {value}\r\n").bytes());
        }
        chunk.extend(b"\r\n");
        chunk.extend(&self.data);
        chunk
    }

    fn encode(&self) -> Vec<u8> {
        let chunk = self.chunk();
        [format!("{:x}\r\n", chunk.len()).as_bytes(), &chunk].concat()
    }

    fn from_chunk(at: usize, chunk: &[u8]) -> Self {
        let end = chunk.windows(2).position(|w| w == b"\r\n");
        let split = match end {
            Some(0) => 0,
            _ => {
                chunk
                    .windows(4)
                    .position(|w| w == b"\r\n\r\n")
                    .expect("a blank line")
                    + 2
            }
        };
        let header = |line: &str| {
            let (name, value) = line.split_once(": ").unwrap();
            (name.to_owned(), value.to_owned())
        };
        let head = std::str::from_utf8(&chunk[..split]).unwrap();
        Self {
            at,
            headers: head.lines().map(header).collect(),
            data: chunk[split + 2..].to_vec(),
        }
    }
}

/// One frame off the front of `bytes`, if it is there: its length with the size line, and the two sizes in that.
fn frame_at(bytes: &[u8]) -> Option<(std::ops::Range<usize>, Option<usize>)> {
    let line = bytes.windows(2).position(|w| w == b"\r\n")?;
    let text = std::str::from_utf8(&bytes[..line]).unwrap();
    let hex = |text: &str| usize::from_str_radix(text, 16).unwrap();
    let (plain, wire) = match text.split_once('Z') {
        None => (None, hex(text)),
        Some((plain, wire)) => (Some(hex(plain)), hex(wire)),
    };
    let body = line + 2..line + 2 + wire;
    (bytes.len() >= body.end).then_some((body, plain))
}

/// The frames of one direction, inflated if need be. `pieces` are bytes with their lines.
fn frames(pieces: impl Iterator<Item = (usize, Vec<u8>)>) -> Vec<Plain> {
    let (mut inflate, mut all, mut buf) = (Decompress::new(true), Vec::new(), Vec::new());
    for (at, piece) in pieces {
        buf.extend(piece);
        while let Some((body, plain)) = frame_at(&buf) {
            let chunk = buf[body.clone()].to_vec();
            let chunk = match plain {
                None => chunk,
                Some(length) => {
                    let mut out = Vec::with_capacity(length + 64);
                    inflate
                        .decompress_vec(&chunk, &mut out, FlushDecompress::Sync)
                        .unwrap();
                    out
                }
            };
            all.push(Plain::from_chunk(at, &chunk));
            buf.drain(..body.end);
        }
    }
    all
}

/// A recorded tunnel with its backend and its visitors.
struct Recording {
    /// The head of each request that the backend made, in order.
    requests: Vec<Vec<u8>>,
    /// What the backend said in the tunnel that flew, and what it heard.
    up: Vec<Plain>,
    down: Vec<Plain>,
    visitors: Vec<Event>,
}

/// Where the head ends.
fn head_end(bytes: &[u8]) -> Option<usize> {
    Some(bytes.windows(4).position(|w| w == b"\r\n\r\n")? + 4)
}

impl Recording {
    fn load(name: &str) -> Self {
        let tunnel = events(name);
        let said = |c, way: &str| -> Vec<(usize, Vec<u8>)> {
            let mine = tunnel.iter().filter(|e| e.connection == c && e.way == way);
            mine.map(|e| (e.line, e.bytes.clone())).collect()
        };
        let behind_the_head = |c, way| {
            let mut pieces = said(c, way);
            let all: Vec<u8> = pieces.iter().flat_map(|(_, b)| b.clone()).collect();
            let mut head = head_end(&all).unwrap();
            for (_, piece) in &mut pieces {
                let cut = head.min(piece.len());
                piece.drain(..cut);
                head -= cut;
            }
            frames(pieces.into_iter())
        };
        let mut connections: Vec<u64> = tunnel.iter().map(|e| e.connection).collect();
        connections.sort_unstable();
        connections.dedup();
        let text = |c| {
            said(c, "b2f")
                .into_iter()
                .flat_map(|(_, b)| b)
                .collect::<Vec<u8>>()
        };
        let asking: Vec<u64> = connections
            .into_iter()
            .filter(|c| text(*c).starts_with(b"CONNECT "))
            .collect();
        let flew = asking
            .iter()
            .copied()
            .find(|c| !behind_the_head(*c, "b2f").is_empty());
        let flew = flew.unwrap_or(asking[asking.len() - 1]);
        let visitors = fixture(&format!("{name}.visitor.jsonl"))
            .exists()
            .then(|| events(&format!("{name}.visitor")));
        Self {
            requests: asking
                .into_iter()
                .map(|c| {
                    let text = text(c);
                    text[..head_end(&text).unwrap()].to_vec()
                })
                .collect(),
            up: behind_the_head(flew, "b2f"),
            down: behind_the_head(flew, "f2b"),
            visitors: visitors.unwrap_or_default(),
        }
    }

    /// The recorded numbers of streams, in the order of their opening.
    fn sids(&self) -> Vec<u32> {
        let openings = self.down.iter().filter(|f| f.get("Proto").is_some());
        openings.map(|f| f.sid().unwrap()).collect()
    }

    /// What goes one way in a stream.
    fn stream(frames: &[Plain], sid: u32) -> Vec<u8> {
        let mine = frames.iter().filter(|f| f.sid() == Some(sid));
        mine.flat_map(|f| f.payload().to_vec()).collect()
    }
}

// --------------------------------------------------------------- a live backend

/// What the frontend said into a tunnel.
#[derive(Default)]
struct Heard {
    frames: Vec<Plain>,
    bytes: usize,
    ended: bool,
}

impl Heard {
    /// The live numbers of streams, in the order of their opening.
    fn sids(&self) -> Vec<u32> {
        let openings = self.frames.iter().filter(|f| f.get("Proto").is_some());
        openings.map(|f| f.sid().unwrap()).collect()
    }

    /// KB acknowledged.
    fn acknowledged(&self, sid: u32) -> Option<u64> {
        let mine = self.frames.iter().filter(|f| f.sid() == Some(sid));
        mine.filter_map(|f| f.get("SKB")?.parse().ok()).max()
    }

    fn has_ended(&self, sid: u32, letter: char) -> bool {
        let mut mine = self.frames.iter().filter(|f| f.sid() == Some(sid));
        mine.any(|f| f.get("EOF").is_some_and(|eof| eof.contains(letter)))
    }
}

/// A backend that flies.
struct Tunnel {
    mouth: OwnedWriteHalf,
    heard: Arc<Mutex<Heard>>,
    deflate: Option<Compress>,
}

/// Puts what is fresh into a head or a frame: challenges by the kite that they are for, and the session.
fn renewed(text: &str, challenges: &HashMap<String, String>, session: &str) -> String {
    let renew = |line: &str| -> String {
        if line.starts_with("X-PageKite-Replace: ") {
            return format!("X-PageKite-Replace: {session}");
        }
        let Some(value) = line.strip_prefix("X-PageKite: ") else {
            return line.to_owned();
        };
        let was = ServiceLine::parse(value.as_bytes()).unwrap();
        if was.fsalt.is_empty() {
            return line.to_owned();
        }
        let id = was.kite_id();
        let fsalt = &challenges[&id.to_string()];
        let token = &was.signature[..8];
        format!(
            "X-PageKite: {}",
            ServiceLine::signed(&id, fsalt, SECRET.as_bytes(), token)
        )
    };
    let lines: Vec<String> = text.split("\r\n").map(renew).collect();
    lines.join("\r\n")
}

fn values<'a>(text: &'a str, name: &str) -> Vec<&'a str> {
    let start = format!("{name}: ");
    text.split("\r\n")
        .filter_map(|line| line.strip_prefix(&start))
        .collect()
}

/// The head of an answer, which must have come alone: libpagekite looks for its end at the end of what it has read.
async fn answer_of(conn: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let read = tokio::time::timeout(Duration::from_secs(10), conn.read_buf(&mut head));
        assert!(read.await.expect("an answer").unwrap() > 0, "no answer");
        if let Some(end) = head_end(&head) {
            assert_eq!(end, head.len(), "something came with the head");
        }
    }
    String::from_utf8(head).unwrap()
}

/// Plays the handshake of a recording, by whichever way it went.
async fn take_off(front: SocketAddr, recording: &Recording) -> Tunnel {
    register(front, recording, &mut String::new()).await
}

/// The same; `session` is what the backend remembers: the one in the head of the last answer.
async fn register(front: SocketAddr, recording: &Recording, session: &mut String) -> Tunnel {
    let mut challenges = HashMap::new();
    for request in &recording.requests {
        let mut conn = TcpStream::connect(front).await.unwrap();
        conn.set_nodelay(true).unwrap();
        let request = renewed(std::str::from_utf8(request).unwrap(), &challenges, session);
        conn.write_all(request.as_bytes()).await.unwrap();
        let answer = answer_of(&mut conn).await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        assert!(!answer.contains("ZChunks"), "kite wants nothing compressed");
        *session = values(&answer, "X-PageKite-SessionID")[0].to_owned();
        if !values(&answer, "X-PageKite-OK").is_empty() {
            return Tunnel::new(conn);
        }
        for challenge in values(&answer, "X-PageKite-SignThis") {
            let (id, fsalt) = challenge.rsplit_once(':').unwrap();
            assert_eq!(fsalt.len(), 36, "libpagekite reads no more");
            challenges.insert(id.to_owned(), fsalt.to_owned());
        }
        let proof = recording
            .up
            .first()
            .filter(|f| f.get("X-PageKite").is_some());
        let Some(proof) = proof else {
            // By dialling again. A backend that never said AddKites leaves this to the frontend.
            if !request.contains("AddKites") {
                assert_eq!(conn.read(&mut [0; 1]).await.unwrap(), 0);
            }
            continue;
        };
        let chunk = String::from_utf8(proof.chunk()).unwrap();
        let chunk = renewed(&chunk, &challenges, session);
        let frame = format!("{:x}\r\n{chunk}", chunk.len());
        conn.write_all(frame.as_bytes()).await.unwrap();
        let tunnel = Tunnel::new(conn);
        until("a verdict comes", || !tunnel.heard().frames.is_empty()).await;
        let verdict = tunnel.heard().frames[0].clone();
        assert!(
            verdict.get("X-PageKite-OK").is_some(),
            "upagekite takes the first frame for it: {verdict:?}"
        );
        return tunnel;
    }
    panic!("it was not let in")
}

impl Tunnel {
    fn new(conn: TcpStream) -> Self {
        let (mut ears, mouth) = conn.into_split();
        let heard = Arc::<Mutex<Heard>>::default();
        let all = heard.clone();
        tokio::spawn(async move {
            let mut buf = Vec::new();
            while !matches!(ears.read_buf(&mut buf).await, Ok(0) | Err(_)) {
                let mut heard = all.lock().unwrap();
                while let Some((body, compressed)) = frame_at(&buf) {
                    assert_eq!(
                        compressed, None,
                        "a compressed frame to a peer that never asked for one"
                    );
                    heard.bytes += body.end;
                    let at = heard.bytes;
                    heard.frames.push(Plain::from_chunk(at, &buf[body.clone()]));
                    buf.drain(..body.end);
                }
            }
            all.lock().unwrap().ended = true;
        });
        Self {
            mouth,
            heard,
            deflate: None,
        }
    }

    fn heard(&self) -> std::sync::MutexGuard<'_, Heard> {
        self.heard.lock().unwrap()
    }

    async fn say(&mut self, frame: &Plain) {
        let mut bytes = frame.encode();
        if let Some(deflate) = self
            .deflate
            .as_mut()
            .filter(|_| frame.get("NOOP").is_none())
        {
            let chunk = frame.chunk();
            let mut out = Vec::with_capacity(chunk.len() + 128);
            deflate
                .compress_vec(&chunk, &mut out, FlushCompress::Sync)
                .unwrap();
            bytes = [
                format!("{:x}Z{:x}\r\n", chunk.len(), out.len()).as_bytes(),
                &out,
            ]
            .concat();
        }
        self.mouth.write_all(&bytes).await.unwrap();
    }

    /// What none of these programs would bear.
    fn check(&self) {
        let heard = self.heard();
        for frame in &heard.frames {
            assert!(
                frame.chunk().len() <= MAX_FRAME,
                "{} bytes in a frame",
                frame.chunk().len()
            );
            let known = [
                "SID", "Proto", "Host", "Port", "RIP", "RPort", "RTLS", "EOF", "NOOP", "PING",
                "PONG", "SKB",
            ];
            for (name, _) in &frame.headers {
                let fine =
                    known.contains(&name.as_str()) || name.starts_with("X-") || name == "Abort";
                assert!(
                    fine && !matches!(name.as_str(), "QDays" | "QConns" | "ZRST" | "SPD"),
                    "{frame:?}"
                );
            }
            assert!(frame.sid().is_none_or(|sid| sid <= 99_999_999));
        }
        for run in heard.frames.windows(150) {
            assert!(run[149].at - run[0].at > ONE_READ, "150 frames in one read");
        }
    }
}

/// A recorded visitor, come back.
struct Guest {
    mouth: OwnedWriteHalf,
    got: Arc<Mutex<(Vec<u8>, bool)>>,
}

impl Guest {
    async fn arrive(at: SocketAddr) -> Self {
        let (mut ears, mouth) = TcpStream::connect(at).await.unwrap().into_split();
        let got = Arc::<Mutex<(Vec<u8>, bool)>>::default();
        let all = got.clone();
        tokio::spawn(async move {
            let mut buf = vec![0; 65536];
            while let Ok(n @ 1..) = ears.read(&mut buf).await {
                all.lock().unwrap().0.extend(&buf[..n]);
            }
            all.lock().unwrap().1 = true;
        });
        Self { mouth, got }
    }

    fn got(&self) -> (usize, bool) {
        let got = self.got.lock().unwrap();
        (got.0.len(), got.1)
    }
}

/// The recorded visitors come, speak and go, in their order.
async fn visit(front: SocketAddr, recording: &Recording, heard: &Mutex<Heard>) -> Vec<Guest> {
    let mut guests: Vec<Guest> = Vec::new();
    let mut due: Vec<(usize, bool)> = Vec::new();
    for event in &recording.visitors {
        let visitor = event.connection as usize;
        if event.way == "f2v" {
            due[visitor].0 += event.len;
            due[visitor].1 |= event.end;
            continue;
        }
        let comes = guests.len() == visitor;
        if comes {
            guests.push(Guest::arrive(front).await);
            due.push((0, false));
        }
        let (bytes, end) = due[visitor];
        until(
            &format!("visitor {visitor} has got {bytes} bytes, the end: {end}"),
            || {
                let got = guests[visitor].got();
                got.0 >= bytes && (got.1 || !end)
            },
        )
        .await;
        guests[visitor].mouth.write_all(&event.bytes).await.unwrap();
        if event.end {
            let _ = guests[visitor].mouth.shutdown().await;
        }
        if comes {
            until(&format!("visitor {visitor} is announced"), || {
                heard.lock().unwrap().sids().len() > visitor
            })
            .await;
        }
    }
    guests
}

/// The recorded backend says what it said, as soon as it has heard what it had heard.
async fn speak(recording: &Recording, tunnel: &mut Tunnel, window: Option<u64>) {
    let recorded = recording.sids();
    let mut said: HashMap<u32, u64> = HashMap::new();
    let spoken = recording
        .up
        .iter()
        .filter(|f| f.get("X-PageKite").is_none());
    for frame in spoken.cloned() {
        let mut frame: Plain = frame;
        let before = recording.down.iter().filter(|f| f.at < frame.at);
        let before: Vec<Plain> = before.cloned().collect();
        for (n, sid) in recorded.iter().enumerate() {
            if !before.iter().any(|f| f.sid() == Some(*sid)) {
                continue;
            }
            let due = Recording::stream(&before, *sid).len();
            let mut ends = before.iter().filter(|f| f.sid() == Some(*sid));
            let ended = ends.any(|f| f.get("EOF") == Some("1R"));
            until(
                &format!("the backend has heard {due} bytes of stream {n}"),
                || {
                    let heard = tunnel.heard();
                    heard.sids().get(n).is_some_and(|live| {
                        Recording::stream(&heard.frames, *live).len() >= due
                            && (!ended || heard.has_ended(*live, 'R'))
                    })
                },
            )
            .await;
        }
        let nth = recorded.iter().position(|sid| frame.sid() == Some(*sid));
        if let Some(n) = nth {
            let live = tunnel.heard().sids()[n];
            let already = said.entry(live).or_default();
            if let Some(window) = window.filter(|_| !frame.payload().is_empty()) {
                until("the frontend acknowledges", || {
                    *already <= (tunnel.heard().acknowledged(live).unwrap_or(0) + window) * 1024
                })
                .await;
            }
            *already += frame.payload().len() as u64;
            for (name, value) in &mut frame.headers {
                if name == "SID" {
                    *value = live.to_string();
                }
            }
        }
        tunnel.say(&frame).await;
        if let Some(text) = frame.get("PING") {
            until("a PING is answered", || {
                tunnel
                    .heard()
                    .frames
                    .iter()
                    .any(|f| f.get("PONG") == Some(text))
            })
            .await;
        }
    }
}

/// Plays a recording to its end. `window`: KB that this backend lets be on the way unacknowledged, as the program does.
async fn play(front: &Side, recording: &Recording, tunnel: &mut Tunnel, window: Option<u64>) {
    let recorded = recording.sids();
    let heard = tunnel.heard.clone();
    let visiting = visit(front.public, recording, &heard);
    let (guests, ()) = tokio::join!(visiting, speak(recording, tunnel, window));
    let by_connect = |visitor: usize| {
        let mut mine = recording
            .visitors
            .iter()
            .filter(|e| e.connection as usize == visitor);
        mine.next()
            .is_some_and(|e| e.bytes.starts_with(b"CONNECT "))
    };
    // Everyone has got what he got then.
    let live = tunnel.heard().sids();
    assert_eq!(live.len(), recorded.len(), "as many streams");
    for (visitor, sid) in recorded.iter().enumerate() {
        let mut due = if by_connect(visitor) {
            ESTABLISHED.to_vec()
        } else {
            Vec::new()
        };
        due.extend(Recording::stream(&recording.up, *sid));
        until(
            &format!("visitor {visitor} has got {} bytes, and the end", due.len()),
            || guests[visitor].got() == (due.len(), true),
        )
        .await;
        assert!(
            guests[visitor].got.lock().unwrap().0 == due,
            "visitor {visitor} got other bytes"
        );
        let heard = Recording::stream(&tunnel.heard().frames, live[visitor]);
        let then = Recording::stream(&recording.down, *sid);
        assert!(
            heard == then,
            "the backend got other bytes of stream {visitor}"
        );
    }
    tunnel.check();
}

fn public() -> Side {
    frontend_for(
        "*.test",
        SECRET,
        &[
            Protocol::Http,
            Protocol::Https,
            Protocol::Raw,
            Protocol::Websocket,
        ],
    )
}

async fn replay(name: &str, window: Option<u64>) {
    let front = public();
    let recording = Recording::load(name);
    let mut tunnel = take_off(front.public, &recording).await;
    play(&front, &recording, &mut tunnel, window).await;
    assert!(!tunnel.heard().ended, "{name}: the tunnel stands");
}

/// libpagekite stops at 128 KB that are not acknowledged, from the first byte on.
const LIBPAGEKITE_WINDOW: u64 = 128;
/// pagekite.py at 48, once an acknowledgement has come.
const PAGEKITE_WINDOW: u64 = 48;

// -------------------------------------------------------------------- the tests

#[tokio::test]
async fn libpagekite_is_served_as_it_was() {
    replay("30-libpagekite", Some(LIBPAGEKITE_WINDOW)).await;
}

#[tokio::test]
async fn upagekite_is_served_as_it_was() {
    replay("31-upagekite", None).await;
}

#[tokio::test]
async fn half_closes_go_through_as_they_did() {
    replay("14-halfclose-raw", None).await;
}

#[tokio::test]
async fn what_a_backend_says_for_a_dead_origin_goes_through_as_it_did() {
    replay("15-backend-down", None).await;
}

#[tokio::test]
async fn many_kites_and_a_wildcard_are_found_as_they_were() {
    replay("25-multi-kite-options", None).await;
}

#[tokio::test]
async fn two_streams_at_once_go_through_as_they_did() {
    replay("05-two-streams", Some(PAGEKITE_WINDOW)).await;
}

/// It would compress if it might; kite declines, and it does not. And one that declines itself.
#[tokio::test]
async fn compression_is_declined() {
    replay("10-compression", Some(PAGEKITE_WINDOW)).await;
    replay("11-compression-declined", Some(PAGEKITE_WINDOW)).await;
}

/// One that compresses although nobody said that it may (§6.4).
#[tokio::test]
async fn compressed_frames_are_understood_all_the_same() {
    let front = public();
    let recording = Recording::load("10-compression");
    let mut tunnel = take_off(front.public, &recording).await;
    tunnel.deflate = Some(Compress::new(Compression::best(), true));
    play(&front, &recording, &mut tunnel, Some(PAGEKITE_WINDOW)).await;
}

#[tokio::test]
async fn pings_are_answered_in_their_own_words() {
    replay("13-ping-unanswered", None).await;
}

/// Of two kites one is not granted: the other flies.
#[tokio::test]
async fn one_refused_kite_does_not_keep_the_other_down() {
    let front = frontend_for("kite.test", SECRET, &[Protocol::Http]);
    let recording = Recording::load("23-authapp-quota-motd");
    let mut tunnel = take_off(front.public, &recording).await;
    let verdict = tunnel.heard().frames[0].clone();
    assert!(
        verdict
            .get("X-PageKite-Invalid")
            .unwrap()
            .starts_with("http:broke.test:"),
        "{verdict:?}"
    );
    play(&front, &recording, &mut tunnel, None).await;
    assert_eq!(kites(&front.handle), ["http:kite.test"]);
}

/// pagekite.py remembers the session of the first answer only, which its own frontend forgets: its Replace misses, and it
/// is told Duplicate (22). libpagekite has the right one (33). Here both are good, and the old tunnel is closed.
#[tokio::test]
async fn a_backend_that_lost_its_tunnel_gets_its_kite_back() {
    for (name, first) in [("22-replace-after-drop", 1), ("33-libpagekite-replace", 2)] {
        let front = public();
        let mut recording = Recording::load(name);
        let again = recording.requests.split_off(first);
        let mut session = String::new();
        let lost = register(front.public, &recording, &mut session).await;
        until("it flies", || kites(&front.handle).len() == 1).await;
        // Its end is gone, ours does not know.
        assert!(
            again[0].windows(20).any(|w| w == b"X-PageKite-Replace: "),
            "{name}"
        );
        recording.requests = again;
        let back = register(front.public, &recording, &mut session).await;
        until("the old tunnel is closed", || lost.heard().ended).await;
        assert_eq!(kites(&front.handle), ["http:kite.test"], "{name}");
        assert!(!back.heard().ended, "{name}");
    }
}

/// Whoever knows a session, and not the secret, ends nothing by it.
#[tokio::test]
async fn a_replace_without_the_secret_replaces_nothing() {
    let front = public();
    let mut recording = Recording::load("22-replace-after-drop");
    recording.requests.truncate(1);
    let mut session = String::new();
    let tunnel = register(front.public, &recording, &mut session).await;
    let mut thief = TcpStream::connect(front.public).await.unwrap();
    let id = format!("http:kite.test:{}", "a".repeat(36));
    let ask = |fsalt: &str| {
        format!(
            "CONNECT PageKite:1 HTTP/1.0\r\nX-PageKite-Replace: {session}\r\nX-PageKite: {id}:{fsalt}:{}\r\n\r\n",
            "b".repeat(36)
        )
    };
    thief.write_all(ask("").as_bytes()).await.unwrap();
    let answer = answer_of(&mut thief).await;
    let fsalt = values(&answer, "X-PageKite-SignThis")[0]
        .rsplit_once(':')
        .unwrap()
        .1;
    let mut thief = TcpStream::connect(front.public).await.unwrap();
    thief.write_all(ask(fsalt).as_bytes()).await.unwrap();
    let answer = answer_of(&mut thief).await;
    assert_eq!(values(&answer, "X-PageKite-Invalid").len(), 1, "{answer}");
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!tunnel.heard().ended);
    assert_eq!(kites(&front.handle), ["http:kite.test"]);
}

/// The gate that pagekite.py and libpagekite measure by before they dial: the status to the letter, the identifier within the
/// first 120 bytes, and then the end.
#[tokio::test]
async fn the_pings_before_a_tunnel_are_answered_as_these_programs_want_it() {
    let front = public();
    let mut asked = 0;
    for name in ["13-ping-unanswered", "30-libpagekite"] {
        for event in events(name).iter().filter(|e| e.way == "b2f") {
            let text = String::from_utf8_lossy(&event.bytes);
            if !text.contains(" /ping ") {
                continue;
            }
            let answer = ask(front.public, &event.bytes).await;
            assert!(answer.starts_with(b"HTTP/1.1 503 Unavailable\r\n"));
            let start = String::from_utf8_lossy(&answer[..120]).into_owned();
            let uuid = values(&start, "X-PageKite-UUID");
            assert_eq!(uuid[0].len(), 40, "{start}");
            asked += 1;
        }
    }
    assert!(asked >= 3);
}

/// libpagekite answers PING with a bare NOOP, and has nothing else to say for hours.
#[tokio::test]
async fn a_bare_noop_is_a_sign_of_life() {
    let front = public();
    let recording = Recording::load("30-libpagekite");
    let mut tunnel = take_off(front.public, &recording).await;
    let noop = Plain {
        at: 0,
        headers: vec![("NOOP".into(), "1".into())],
        data: Vec::new(),
    };
    let (began, mut answered) = (std::time::Instant::now(), 0);
    while began.elapsed() < Duration::from_secs(32) {
        let asked = tunnel
            .heard()
            .frames
            .iter()
            .filter(|f| f.get("PING").is_some())
            .count();
        if asked > answered {
            answered = asked;
            tunnel.say(&noop).await;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(answered >= 2, "asked {answered} times");
    play(&front, &recording, &mut tunnel, Some(LIBPAGEKITE_WINDOW)).await;
}

/// upagekite answers the end of a stream that it has forgotten with an end. If we did, too, it would never stop.
#[tokio::test]
async fn an_end_of_an_unknown_stream_is_never_answered() {
    let front = public();
    let recording = Recording::load("31-upagekite");
    let mut tunnel = take_off(front.public, &recording).await;
    let before = tunnel.heard().frames.len();
    for (sid, eof) in [
        (5, "1WR"),
        (5, "1WR"),
        (77, "1R"),
        (78, "1W"),
        (79, "1RW"),
        (99_999_999, "1"),
    ] {
        let end = Plain {
            at: 0,
            headers: vec![("SID".into(), format!("{sid}")), ("EOF".into(), eof.into())],
            data: Vec::new(),
        };
        tunnel.say(&end).await;
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(tunnel.heard().frames.len(), before);
    play(&front, &recording, &mut tunnel, None).await;
}

/// upagekite never acknowledges. It gets everything all the same, in frames that it bears; and while it reads nothing, what
/// is held for it has a bound.
#[tokio::test]
async fn a_backend_that_never_acknowledges_gets_everything_and_is_held_for_within_a_bound() {
    const MUCH: usize = 4 << 20;
    let front = public();
    let recording = Recording::load("31-upagekite");
    let tunnel = take_off(front.public, &recording).await;
    let body: Vec<u8> = (0..MUCH).map(|i| (i * 31 + i / 251) as u8).collect();
    let head = format!("POST / HTTP/1.1\r\nHost: kite.test\r\nContent-Length: {MUCH}\r\n\r\n");
    let mut visitor = TcpStream::connect(front.public).await.unwrap();
    visitor.write_all(head.as_bytes()).await.unwrap();
    visitor.write_all(&body).await.unwrap();
    let whole = [head.as_bytes(), &body].concat();
    let got = |heard: &Heard| {
        let sid = heard.sids().first().copied();
        sid.map_or_else(Vec::new, |sid| Recording::stream(&heard.frames, sid))
    };
    until("it has got everything", || {
        got(&tunnel.heard()).len() == whole.len()
    })
    .await;
    assert!(got(&tunnel.heard()) == whole, "other bytes");
    tunnel.check();

    // The same kite by a backend that stops reading.
    let front = public();
    let mut deaf = deaf_backend(front.public).await;
    until("it flies", || kites(&front.handle).len() == 1).await;
    let mut visitor = TcpStream::connect(front.public).await.unwrap();
    visitor
        .write_all(b"POST / HTTP/1.1\r\nHost: kite.test\r\n\r\n")
        .await
        .unwrap();
    let mut taken = 0;
    while let Ok(wrote) = tokio::time::timeout(Duration::from_secs(2), visitor.write(&body)).await {
        taken += wrote.unwrap();
        assert!(taken < 64 << 20, "it is held without a bound");
    }
    deaf.shutdown().await.unwrap();
}

/// A backend that reads nothing after the handshake.
async fn deaf_backend(front: SocketAddr) -> TcpStream {
    let id = format!("http:kite.test:{}", "c".repeat(36));
    let id = ServiceLine::parse(format!("{id}::{}", "d".repeat(36)).as_bytes())
        .unwrap()
        .kite_id();
    let mut fsalt = String::new();
    loop {
        let mut conn = TcpStream::connect(front).await.unwrap();
        let line = ServiceLine::signed(&id, &fsalt, SECRET.as_bytes(), "0123abcd");
        let request = format!("CONNECT PageKite:1 HTTP/1.0\r\nX-PageKite: {line}\r\n\r\n");
        conn.write_all(request.as_bytes()).await.unwrap();
        let answer = answer_of(&mut conn).await;
        match values(&answer, "X-PageKite-SignThis").first() {
            Some(challenge) => fsalt = challenge.rsplit_once(':').unwrap().1.to_owned(),
            None => return conn,
        }
    }
}

/// Two hundred visitors at once, who say little: pagekite.py dies of 150 frames in one read.
#[tokio::test]
async fn a_crowd_is_spread_for_an_older_backend() {
    const MANY: usize = 200;
    let front = public();
    let recording = Recording::load("31-upagekite");
    let tunnel = take_off(front.public, &recording).await;
    let mut crowd = Vec::new();
    for _ in 0..MANY {
        let mut visitor = TcpStream::connect(front.public).await.unwrap();
        visitor
            .write_all(b"GET / HTTP/1.1\r\nHost: kite.test\r\n\r\n")
            .await
            .unwrap();
        crowd.push(visitor);
    }
    until("all have been announced", || {
        tunnel.heard().sids().len() == MANY
    })
    .await;
    drop(crowd);
    until("all ends have been said", || {
        let heard = tunnel.heard();
        heard.sids().iter().all(|sid| heard.has_ended(*sid, 'R'))
    })
    .await;
    tunnel.check();
}
