//! Recorded tunnels of real PageKite programs (`tests/fixtures/pagekite`): every
//! byte of both directions is understood, however it is cut, and written again
//! exactly where its form is determined.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;

use bytes::BytesMut;
use flate2::{Decompress, FlushDecompress};
use kite::wire::frame::{
    put_data, put_eof, put_kites, put_noop, put_open, put_ping, put_pong, put_skb,
};
use kite::wire::handshake::{Request, parse_answer, put_answer};
use kite::wire::{Decoder, Frame, Limits, Lines, ServiceLine, StreamFrame, sign};

/// What one connection carried, backend to frontend and back.
#[derive(Default)]
pub struct Connection {
    pub b2f: Vec<u8>,
    pub f2b: Vec<u8>,
}

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/pagekite")
}

/// All connections of a recording, by their number.
pub fn load(name: &str) -> BTreeMap<u64, Connection> {
    let text = fs::read_to_string(folder().join(format!("{name}.jsonl"))).unwrap();
    let mut connections: BTreeMap<u64, Connection> = BTreeMap::new();
    for line in text.lines() {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        let connection = connections.entry(line["c"].as_u64().unwrap()).or_default();
        let bytes = data_encoding::HEXLOWER
            .decode(line["hex"].as_str().unwrap_or("").as_bytes())
            .unwrap();
        match line["dir"].as_str().unwrap() {
            "b2f" | "v2f" | "b2o" => connection.b2f.extend(bytes),
            _ => connection.f2b.extend(bytes),
        }
    }
    connections
}

/// One connection of a recording.
pub fn connection(name: &str, number: u64) -> Connection {
    load(name).remove(&number).unwrap()
}

/// The names of all recordings of tunnels.
fn names() -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(folder())
        .unwrap()
        .filter_map(|entry| {
            let name = entry.unwrap().file_name().into_string().unwrap();
            let stem = name.strip_suffix(".jsonl")?;
            (!stem.contains('.')).then(|| stem.to_owned())
        })
        .collect();
    names.sort();
    assert_eq!(names.len(), 29, "recordings are missing");
    names
}

/// The secret that the backend of a recording signed with.
fn secret(name: &str) -> String {
    let text = fs::read_to_string(folder().join(format!("{name}.meta.json"))).unwrap();
    let meta: serde_json::Value = serde_json::from_str(&text).unwrap();
    let used = meta
        .get("secret_used_by_backend")
        .unwrap_or(&meta["secret"]);
    used.as_str().unwrap().to_owned()
}

/// Recordings whose tunnel is wrapped into something that is not ours to read, and
/// how that begins.
const WRAPPED: [(&str, &[u8]); 3] = [
    // A clear-text CONNECT, then TLS whose keys were not kept.
    (
        "19-tunnel-over-tls-certname",
        b"CONNECT fe.test:443 HTTP/1.1\r\n",
    ),
    // TLS at once.
    ("20-tunnel-over-tls-nocheck", b"\x16\x03\x01"),
    // A WebSocket that never came to be, because both ends are broken (protocol page §1.1).
    (
        "21-tunnel-websocket",
        b"GET /~:PageKite:~/v0.8 HTTP/1.1\r\n",
    ),
];

/// Three tunnels in which nothing happened after the heads.
const HEADS_ONLY: &str = "33-libpagekite-replace";

fn is_ping(connection: &Connection) -> bool {
    [&b"HEAD /ping "[..], b"GET /ping "]
        .iter()
        .any(|start| connection.b2f.starts_with(start))
}

/// The tunnels of a recording, after everything else in it has been checked.
fn tunnels(name: &str) -> Vec<Connection> {
    let (pings, others): (Vec<_>, Vec<_>) = load(name).into_values().partition(is_ping);
    for ping in &pings {
        assert!(
            ping.f2b.starts_with(b"HTTP/1.1 503 Unavailable\r\n"),
            "{name}"
        );
    }
    assert!(!others.is_empty(), "{name}: no tunnel");
    if let Some((_, start)) = WRAPPED.iter().find(|(wrapped, _)| *wrapped == name) {
        assert!(others.iter().all(|c| c.b2f.starts_with(start)), "{name}");
        return Vec::new();
    }
    others
}

/// One direction of a tunnel: its head, and the frames behind it.
struct Direction {
    head: Vec<u8>,
    lines: Lines,
    frames: Vec<u8>,
}

fn directions(name: &str, tunnel: &Connection) -> (Direction, Direction) {
    let end = tunnel
        .b2f
        .windows(4)
        .position(|w| w == b"\r\n\r\n")
        .unwrap()
        + 4;
    let (head, frames) = tunnel.b2f.split_at(end);
    let request = Request::parse(head).unwrap_or_else(|e| panic!("{name}: {e}"));
    let up = Direction {
        head: head.to_vec(),
        lines: request.lines,
        frames: frames.to_vec(),
    };

    let mut buf = BytesMut::from(&tunnel.f2b[..]);
    let lines = parse_answer(&mut buf)
        .unwrap_or_else(|e| panic!("{name}: {e}"))
        .unwrap();
    let head = tunnel.f2b[..tunnel.f2b.len() - buf.len()].to_vec();
    (
        up,
        Direction {
            head,
            lines,
            frames: buf.to_vec(),
        },
    )
}

/// Decodes pieces as they come; returns the frames and what is left over.
fn decode<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> (Vec<Frame>, BytesMut) {
    let mut decoder = Decoder::new(Limits::ESTABLISHED);
    let (mut buf, mut frames) = (BytesMut::new(), Vec::new());
    for piece in pieces {
        buf.extend_from_slice(piece);
        while let Some(frame) = decoder.decode(&mut buf).unwrap() {
            frames.push(frame);
        }
    }
    (frames, buf)
}

/// A large data frame comes in pieces, as the bytes do: what follows in the same stream is joined.
fn joined(frames: Vec<Frame>) -> Vec<Frame> {
    let plain = |f: &StreamFrame| f.open.is_none() && f.eof.is_none() && f.skb.is_none();
    let mut all: Vec<Frame> = Vec::new();
    for next in frames {
        match (all.last_mut(), next) {
            (Some(Frame::Stream(last)), Frame::Stream(next))
                if last.sid == next.sid && plain(last) && plain(&next) =>
            {
                last.data = [&last.data[..], &next.data].concat().into();
            }
            (_, next) => all.push(next),
        }
    }
    all
}

/// Cuts `bytes` into pieces of 1 … 3000 bytes; the same ones every time.
fn pieces(bytes: &[u8], mut seed: u32) -> Vec<&[u8]> {
    let (mut rest, mut pieces) = (bytes, Vec::new());
    while !rest.is_empty() {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        // Small pieces as often as large ones.
        let largest = [3, 40, 600, 3000][(seed >> 30) as usize];
        let (piece, left) = rest.split_at(((seed >> 8) as usize % largest + 1).min(rest.len()));
        pieces.push(piece);
        rest = left;
    }
    pieces
}

#[test]
fn every_recorded_tunnel_decodes_to_its_end_however_it_is_cut() {
    for name in names() {
        let tunnels = tunnels(&name);
        let mut count = 0;
        for tunnel in &tunnels {
            let (up, down) = directions(&name, tunnel);
            for bytes in [up.frames, down.frames] {
                let (whole, left) = decode([&bytes[..]]);
                assert!(left.is_empty(), "{name}: {} bytes left over", left.len());
                count += whole.len();
                let whole = joined(whole);
                let bytewise = joined(decode(bytes.chunks(1)).0);
                assert!(bytewise == whole, "{name}: byte by byte");
                for seed in 0..4 {
                    assert!(
                        joined(decode(pieces(&bytes, seed)).0) == whole,
                        "{name}: seed {seed}"
                    );
                }
            }
        }
        assert_eq!(
            count == 0,
            tunnels.is_empty() || name == HEADS_ONLY,
            "{name}"
        );
    }
}

/// Splits a direction into its frames, without our decoder, and inflates those that
/// are compressed: each one as it would be in plain form.
fn plain_frames(mut bytes: &[u8]) -> Vec<Vec<u8>> {
    let (mut inflate, mut frames) = (Decompress::new(true), Vec::new());
    while !bytes.is_empty() {
        let end = bytes.windows(2).position(|w| w == b"\r\n").unwrap();
        let line = std::str::from_utf8(&bytes[..end]).unwrap();
        let hex = |text: &str| usize::from_str_radix(text, 16).unwrap();
        let (plain, wire) = match line.split_once('Z') {
            None => (None, hex(line)),
            Some((plain, wire)) => (Some(hex(plain)), hex(wire)),
        };
        let (chunk, rest) = bytes[end + 2..].split_at(wire);
        let mut frame = format!("{:x}\r\n", plain.unwrap_or(wire)).into_bytes();
        match plain {
            None => frame.extend_from_slice(chunk),
            Some(length) => {
                let mut out = Vec::with_capacity(length + 64);
                inflate
                    .decompress_vec(chunk, &mut out, FlushDecompress::Sync)
                    .unwrap();
                assert_eq!(out.len(), length);
                frame.extend(out);
            }
        }
        frames.push(frame);
        bytes = rest;
    }
    frames
}

/// Everything up to the blank line, without the size line.
fn headers(frame: &[u8]) -> &[u8] {
    let from = frame.windows(2).position(|w| w == b"\r\n").unwrap() + 2;
    let to = frame.windows(4).position(|w| w == b"\r\n\r\n").unwrap();
    &frame[from..to]
}

/// We never grant quotas, so there is no way to write this.
const PONG_WITH_QUOTA: &str = "a PONG with a Quota";

/// Writes a decoded frame again and compares it with what was recorded; says why
/// not, if its form is not determined.
fn rewrite(name: &str, frame: &Frame, recorded: &[u8]) -> Result<(), &'static str> {
    let mut out = BytesMut::new();
    match frame {
        Frame::Stream(frame) => match (&frame.open, frame.eof.is_none()) {
            (Some(open), _) => put_open(&mut out, frame.sid, open, &frame.data),
            (None, true) => put_data(&mut out, frame.sid, &frame.data),
            (None, false) => {
                // pk.py says farewell, others do not.
                let farewell: &[u8] = if recorded.ends_with(b"Bye!") {
                    b"Bye!"
                } else {
                    b""
                };
                put_eof(&mut out, frame.sid, frame.eof, frame.abort, farewell);
            }
        },
        Frame::Control(control) => {
            if let Some(lines) = &control.kites {
                put_kites(&mut out, lines);
                // The data differ: "!", or an empty line and "!", or nothing.
                assert_eq!(headers(&out), headers(recorded), "{name}");
                return Ok(());
            }
            match (&control.ping, &control.pong, control.sid, control.skb) {
                (_, Some(_), ..) if control.quota.is_some() => {
                    return Err(PONG_WITH_QUOTA);
                }
                (Some(text), ..) => put_ping(&mut out, text),
                (_, Some(text), ..) => put_pong(&mut out, text),
                (_, _, Some(sid), Some(kb)) => put_skb(&mut out, sid, kb),
                _ => put_noop(&mut out, 0),
            }
        }
    }
    assert_eq!(out, recorded, "{name}: {frame:?}");
    Ok(())
}

#[test]
fn recorded_frames_are_written_again_byte_for_byte() {
    let mut exempt = BTreeSet::new();
    let mut total = 0;
    for name in names() {
        let tunnels = tunnels(&name);
        let mut rewritten = 0;
        for tunnel in &tunnels {
            let (up, down) = directions(&name, tunnel);
            for bytes in [up.frames, down.frames] {
                let (frames, recorded) = (decode([&bytes[..]]).0, plain_frames(&bytes));
                assert_eq!(frames.len(), recorded.len(), "{name}");
                for (frame, recorded) in frames.iter().zip(&recorded) {
                    match rewrite(&name, frame, recorded) {
                        Ok(()) => rewritten += 1,
                        Err(why) => _ = exempt.insert((name.clone(), why)),
                    }
                }
            }
        }
        assert_eq!(
            rewritten == 0,
            tunnels.is_empty() || name == HEADS_ONLY,
            "{name}"
        );
        total += rewritten;
    }
    assert!(total > 1000, "{total}");
    // Which leaves only what has a name. libpagekite's `1RW` happens not to be recorded.
    assert_eq!(
        exempt,
        [("23-authapp-quota-motd".to_owned(), PONG_WITH_QUOTA)].into()
    );
}

#[test]
fn recorded_heads_are_written_again_byte_for_byte() {
    for name in names() {
        for tunnel in &tunnels(&name) {
            let (up, down) = directions(&name, tunnel);
            if !up.head.windows(13).any(|w| w == b"1.5.2.260113\r") {
                // pk.py sends its version twice. The others' requests have our order.
                assert_eq!(Request::encode(&up.lines), up.head, "{name}");
            }
            if name != "02-handshake-no-challenge" {
                // The stub there has no decoration.
                let mut answer = BytesMut::new();
                put_answer(&mut answer, &down.lines);
                assert_eq!(answer, down.head, "{name}");
            }
        }
    }
}

#[test]
fn what_comes_with_an_eof_is_no_part_of_the_stream() {
    let tunnel = connection("14-halfclose-raw", 2);
    assert!(
        tunnel.b2f.windows(4).any(|w| w == b"Bye!") && tunnel.f2b.windows(4).any(|w| w == b"Bye!")
    );
    for side in ["14-halfclose-raw.visitor", "14-halfclose-raw.origin"] {
        for connection in load(side).into_values() {
            for bytes in [connection.b2f, connection.f2b] {
                assert!(!bytes.windows(4).any(|w| w == b"Bye!"), "{side}");
            }
        }
    }
    let (up, down) = directions("14", &tunnel);
    for frame in [up.frames, down.frames]
        .iter()
        .flat_map(|bytes| decode([&bytes[..]]).0)
    {
        if let Frame::Stream(frame) = frame {
            assert!(frame.eof.is_none() || frame.data.is_empty());
        }
    }
}

#[test]
fn every_recorded_signature_agrees_with_its_secret() {
    for name in names() {
        let secret = secret(&name);
        let mut lines: Vec<ServiceLine> = Vec::new();
        for tunnel in &tunnels(&name) {
            let (up, _) = directions(&name, tunnel);
            lines.extend(up.lines.services);
            for frame in decode([&up.frames[..]]).0 {
                if let Frame::Control(control) = frame {
                    lines.extend(control.kites.into_iter().flat_map(|kites| kites.services));
                }
            }
        }
        if name == "21-tunnel-websocket" {
            // A tunnel request in other clothes, which we do not speak.
            let head = load(&name).into_values().find(|c| !is_ping(c)).unwrap().b2f;
            let head = String::from_utf8(head).unwrap();
            lines.extend(head.lines().filter_map(|line| {
                line.strip_prefix("X-PageKite: ")
                    .map(|v| ServiceLine::parse(v.as_bytes()).unwrap())
            }));
        }
        assert_eq!(
            lines.is_empty(),
            name.starts_with("19-") || name.starts_with("20-"),
            "{name}"
        );
        for line in &lines {
            assert!(
                sign::verify(secret.as_bytes(), &line.payload(), &line.signature, 0),
                "{name}: {line}"
            );
            assert!(
                !sign::verify(b"another", &line.payload(), &line.signature, 0),
                "{name}"
            );
        }
    }
    assert_eq!(secret("08-rejected-bad-secret"), "wrong-secret");
}
