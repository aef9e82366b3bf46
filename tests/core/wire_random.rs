//! Any sequence of frames, any cut, any bytes: what is written is read, nothing
//! panics, nothing takes memory beyond its limits.

use bytes::{Bytes, BytesMut};
use kite::plain::plain;
use kite::wire::frame::{
    put_data, put_eof, put_kites, put_noop, put_open, put_ping, put_pong, put_skb,
};
use kite::wire::{
    Control, Decoder, Eof, Frame, KiteId, Limits, Lines, Open, PingText, ServiceLine, Sid,
    StreamFrame,
};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

use crate::transcripts::connection;

fn sid(number: u32) -> Sid {
    Sid::new(number).unwrap()
}

fn data(sid: Sid, data: impl Into<Bytes>) -> StreamFrame {
    StreamFrame {
        sid,
        open: None,
        eof: Eof::NONE,
        abort: false,
        skb: None,
        data: data.into(),
    }
}

/// What can be written, and what must be read then.
#[derive(Debug, Clone)]
enum Sent {
    Data(Sid, Vec<u8>),
    Open(Sid, Open, Vec<u8>),
    Eof(Sid, Eof, bool, bool),
    Skb(Sid, u64),
    Noop(usize),
    Ping(PingText),
    Pong(PingText),
    Kites(Box<Lines>),
}

impl Sent {
    fn put(&self, out: &mut BytesMut) {
        match self {
            Sent::Data(sid, data) => put_data(out, *sid, data),
            Sent::Open(sid, open, data) => put_open(out, *sid, open, data),
            Sent::Eof(sid, eof, abort, bye) => {
                put_eof(out, *sid, *eof, *abort, if *bye { b"Bye!" } else { b"" })
            }
            Sent::Skb(sid, kb) => put_skb(out, *sid, *kb),
            Sent::Noop(filler) => put_noop(out, *filler),
            Sent::Ping(text) => put_ping(out, text),
            Sent::Pong(text) => put_pong(out, text),
            Sent::Kites(lines) => put_kites(out, lines),
        }
    }

    fn expected(self) -> Frame {
        let control = Control::default();
        match self {
            Sent::Data(sid, bytes) => Frame::Stream(data(sid, bytes)),
            Sent::Open(sid, open, bytes) => Frame::Stream(StreamFrame {
                open: Some(Box::new(open)),
                ..data(sid, bytes)
            }),
            Sent::Eof(sid, eof, abort, _) => Frame::Stream(StreamFrame {
                eof,
                abort,
                ..data(sid, "")
            }),
            Sent::Skb(sid, kb) => Frame::Control(Control {
                sid: Some(sid),
                skb: Some(kb),
                ..control
            }),
            Sent::Noop(_) => Frame::Control(control),
            Sent::Ping(text) => Frame::Control(Control {
                ping: Some(text),
                ..control
            }),
            Sent::Pong(text) => Frame::Control(Control {
                pong: Some(text),
                ..control
            }),
            Sent::Kites(lines) => Frame::Control(Control {
                kites: Some(lines),
                ..control
            }),
        }
    }
}

/// A word that survives the way: lower case, no separators.
fn word() -> impl Strategy<Value = String> {
    vec(
        prop_oneof![b'a'..=b'z', b'0'..=b'9', Just(b'-'), Just(b'.')],
        1..30,
    )
    .prop_map(|bytes| String::from_utf8(bytes).unwrap())
}

fn any_sid() -> impl Strategy<Value = Sid> {
    (0..=Sid::MAX.get()).prop_map(sid)
}

fn any_text() -> impl Strategy<Value = PingText> {
    vec(b'!'..=b'~', 0..80).prop_map(|bytes| PingText::new(&bytes))
}

fn any_open() -> impl Strategy<Value = Open> {
    (
        word(),
        word(),
        any::<Option<u16>>(),
        option::of(word()),
        any::<Option<u16>>(),
        any::<bool>(),
    )
        .prop_map(|(proto, host, port, rip, rport, rtls)| Open {
            proto,
            host,
            port,
            rip,
            rport,
            rtls,
        })
}

fn any_lines() -> impl Strategy<Value = Lines> {
    let id =
        || (word(), word(), word()).prop_map(|(proto, name, bsalt)| KiteId { proto, name, bsalt });
    let service =
        (id(), word()).prop_map(|(id, fsalt)| ServiceLine::signed(&id, &fsalt, b"s", "deadbeef"));
    (
        vec(word(), 1..4), // at least one line, or there are no kites in the frame
        vec(service, 0..4),
        vec((id(), word()), 0..4),
        vec(id(), 0..4),
        option::of((id(), option::of(word()))),
        option::of(".{0,40}"),
        (
            option::of(word()),
            any::<Option<u32>>(),
            any::<Option<i64>>(),
            vec(word(), 0..4),
        ),
    )
        .prop_map(
            |(
                features,
                services,
                sign_this,
                ok,
                invalid,
                motd,
                (session_id, frame, quota, protos),
            )| Lines {
                features,
                services,
                sign_this,
                ok,
                invalid: invalid.into_iter().collect(),
                motd: motd.map(|text: String| plain(&text, usize::MAX)),
                session_id,
                frame,
                quota,
                protos,
                ..Lines::default()
            },
        )
}

fn any_sent() -> impl Strategy<Value = Sent> {
    let eof = prop_oneof![Just(Eof::READ), Just(Eof::WRITE), Just(Eof::BOTH)];
    let bytes = || vec(any::<u8>(), 0..400);
    prop_oneof![
        4 => (any_sid(), bytes()).prop_map(|(sid, data)| Sent::Data(sid, data)),
        2 => (any_sid(), any_open(), bytes()).prop_map(|(sid, open, data)| Sent::Open(sid, open, data)),
        1 => (any_sid(), eof, any::<bool>(), any::<bool>()).prop_map(|(sid, e, a, bye)| Sent::Eof(sid, e, a, bye)),
        1 => (any_sid(), any::<u64>()).prop_map(|(sid, kb)| Sent::Skb(sid, kb)),
        1 => (0usize..300).prop_map(Sent::Noop),
        1 => any_text().prop_map(Sent::Ping),
        1 => any_text().prop_map(Sent::Pong),
        1 => any_lines().prop_map(|lines| Sent::Kites(Box::new(lines))),
    ]
}

/// Decodes until there is nothing more or an error; checks that no step keeps
/// memory beyond the limits.
fn exhaust(limits: Limits, pieces: impl Iterator<Item = impl AsRef<[u8]>>) -> Vec<Frame> {
    let (mut decoder, mut buf, mut frames) = (Decoder::new(limits), BytesMut::new(), Vec::new());
    for piece in pieces {
        buf.extend_from_slice(piece.as_ref());
        loop {
            let before = buf.len();
            match decoder.decode(&mut buf) {
                Err(_) => return frames,
                Ok(None) => {
                    assert_eq!(buf.len(), before);
                    // Twice, because a buffer doubles when it grows.
                    assert!(buf.capacity() <= 2 * (limits.max_frame + 18 + before));
                    break;
                }
                Ok(Some(frame)) => {
                    if let Frame::Stream(frame) = &frame {
                        assert!(frame.data.len() <= limits.max_frame);
                    }
                    frames.push(frame);
                }
            }
        }
    }
    frames
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_frames_cut_anywhere_are_read_as_written(
        sent in vec(any_sent(), 0..20),
        cuts in vec(1usize..300, 1..30),
    ) {
        let mut bytes = BytesMut::new();
        sent.iter().for_each(|s| s.put(&mut bytes));
        let mut rest = &bytes[..];
        let pieces = cuts.iter().cycle().map_while(|&cut| {
            let (piece, left) = rest.split_at(cut.min(rest.len()));
            rest = left;
            (!piece.is_empty()).then_some(piece)
        });
        let expected: Vec<_> = sent.into_iter().map(Sent::expected).collect();
        prop_assert_eq!(exhaust(Limits::ESTABLISHED, pieces), expected);
    }

    #[test]
    fn random_bytes_never_panic(bytes in vec(any::<u8>(), 0..2000)) {
        exhaust(Limits::ESTABLISHED, bytes.chunks(13));
        exhaust(Limits::UNPROVEN, bytes.chunks(1999));
    }

    #[test]
    fn random_chunks_never_panic(
        lines in vec(prop_oneof!["[A-Za-z-]{0,8}:.{0,12}", "(SID|EOF|SKB|PING|Host|Proto|X-PageKite[a-zA-Z-]{0,9}): ?.{0,30}"], 0..6),
        data in vec(any::<u8>(), 0..50),
    ) {
        let mut chunk = lines.join("\r\n").into_bytes();
        chunk.extend_from_slice(b"\r\n\r\n");
        chunk.extend(data);
        let mut bytes = format!("{:x}\r\n", chunk.len()).into_bytes();
        bytes.extend(chunk);
        exhaust(Limits::ESTABLISHED, [bytes].iter());
    }

    #[test]
    fn a_damaged_tunnel_never_panics(flips in vec((any::<prop::sample::Index>(), any::<u8>()), 1..6), cut in 1usize..2000) {
        // Compressed frames both ways, opens, ends, service lines.
        let tunnel = connection("10-compression", 2);
        for mut bytes in [tunnel.b2f, tunnel.f2b] {
            let head = bytes.windows(4).position(|w| w == b"\r\n\r\n").unwrap() + 4;
            bytes.drain(..head);
            for (at, byte) in &flips {
                let at = at.index(bytes.len());
                bytes[at] ^= byte;
            }
            exhaust(Limits::ESTABLISHED, bytes.chunks(cut));
        }
    }
}
