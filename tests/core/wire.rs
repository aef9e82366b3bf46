//! Frames: what they mean, how they are written, and that every limit holds.

use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use flate2::{Compress, Compression, FlushCompress};
use kite::wire::frame::{
    CUT_FROM, data_header, put_data, put_eof, put_noop, put_open, put_ping, put_skb,
};
use kite::wire::{
    Control, Decoder, Eof, Frame, FrameError, HEADROOM, Limits, MAX_FRAME, Open, PingText, Sid,
    StreamFrame,
};

fn sid(number: u32) -> Sid {
    Sid::new(number).unwrap()
}

/// The first frame of `bytes`.
fn decode_with(limits: Limits, bytes: &[u8]) -> Result<Option<Frame>, FrameError> {
    Decoder::new(limits).decode(&mut BytesMut::from(bytes))
}

fn decode(bytes: &[u8]) -> Result<Option<Frame>, FrameError> {
    decode_with(Limits::ESTABLISHED, bytes)
}

/// A frame of these headers and data, plain.
fn frame(headers: &str, data: &str) -> Vec<u8> {
    let chunk = format!("{headers}\r\n{data}");
    format!("{:x}\r\n{chunk}", chunk.len()).into_bytes()
}

fn stream(headers: &str, data: &str) -> StreamFrame {
    match decode(&frame(headers, data)) {
        Ok(Some(Frame::Stream(frame))) => frame,
        other => panic!("{headers:?}: {other:?}"),
    }
}

fn control(headers: &str) -> Control {
    match decode(&frame(headers, "ignored")) {
        Ok(Some(Frame::Control(control))) => control,
        other => panic!("{headers:?}: {other:?}"),
    }
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

// What frames mean.

#[test]
fn headers_are_read_as_pk_py_reads_them() {
    assert_eq!(stream("SID: 0012\r\n", "x"), data(sid(12), "x"));
    assert_eq!(stream("sid:12\r\nNobody: knows\r\n", ""), data(sid(12), ""));
    assert_eq!(stream("SID: 1\r\nSID: 2\r\n", ""), data(sid(2), ""));
    let acknowledged = StreamFrame {
        skb: Some(7),
        ..data(sid(1), "x")
    };
    assert_eq!(stream("SID: 1\r\nSKB: 7\r\n", "x"), acknowledged);
    // A line end within the data is none of the headers' business.
    assert_eq!(
        stream("SID: 1\r\n", "\r\n\r\nNOOP: 1\r\n\r\n"),
        data(sid(1), "\r\n\r\nNOOP: 1\r\n\r\n")
    );
}

#[test]
fn a_head_with_nothing_but_a_sid_is_read_as_any_other() {
    for number in [
        "0",
        "7",
        "012",
        "99999999",
        "00000012",
        "000000012",
        "100000000",
        "",
        "-1",
        "1 2",
        "1x",
    ] {
        let short = decode(&frame(&format!("SID: {number}\r\n"), "x"));
        let long = decode(&frame(&format!("sid: {number}\r\nNobody: knows\r\n"), "x"));
        assert_eq!(short, long, "{number:?}");
    }
    let tight = Limits {
        max_head: 5,
        ..Limits::ESTABLISHED
    };
    let cut = decode_with(tight, &frame("SID: 7\r\n", "x"));
    assert_eq!(cut, Err(FrameError::Head { max: 5 }));
}

#[test]
fn the_letters_of_an_eof() {
    for (value, eof) in [
        ("1R", Eof::READ),
        ("1W", Eof::WRITE),
        ("1WR", Eof::BOTH),
        ("1RW", Eof::BOTH),
        ("1r", Eof::READ),
        ("w", Eof::WRITE),
        ("1", Eof::BOTH),
        ("", Eof::BOTH),
        ("yes", Eof::BOTH),
    ] {
        let got = stream(&format!("SID: 1\r\nEOF: {value}\r\n"), "Bye!");
        assert_eq!(
            got,
            StreamFrame {
                eof,
                ..data(sid(1), "")
            },
            "{value}"
        );
    }
    let reset = stream("SID: 1\r\nEOF: 1WR\r\nAbort: 1\r\n", "");
    assert!(reset.abort);
    assert!(
        !stream("SID: 1\r\nAbort: 1\r\n", "").abort,
        "only beside an EOF"
    );
    assert!(!stream("SID: 1\r\nEOF: 1WR\r\nAbort: 0\r\n", "").abort);
}

#[test]
fn a_stream_is_opened_by_proto_and_host_together() {
    let headers = "SID: 5\r\nProto: HTTP\r\nHost: Kite.Test\r\nPort: 80\r\nRIP: ::ffff:192.0.2.1\r\nRPort: 9\r\nRTLS: 1\r\n";
    let open = Open {
        proto: "http".into(),
        host: "kite.test".into(),
        port: Some(80),
        rip: Some("::ffff:192.0.2.1".into()),
        rport: Some(9),
        rtls: true,
    };
    assert_eq!(stream(headers, "GET").open.as_deref(), Some(&open));
    let bare = Open {
        proto: "raw".into(),
        host: "k".into(),
        ..Open::default()
    };
    assert_eq!(
        stream("SID: 5\r\nProto: raw\r\nHost: k\r\nPort: x\r\n", "")
            .open
            .as_deref(),
        Some(&bare)
    );
    assert_eq!(stream("SID: 5\r\nProto: raw\r\n", "").open, None);
    assert_eq!(stream("SID: 5\r\nHost: k\r\n", "").open, None);
    // A visitor's odd Host must not cut everyone's tunnel.
    let odd = stream(
        &format!(
            "SID: 5\r\nProto: http\r\nHost: é\u{1}{}\r\n",
            "x".repeat(20_000)
        ),
        "",
    );
    let host = odd.open.unwrap().host;
    assert!(host.starts_with("???xxx") && host.len() == 255);
}

#[test]
fn a_noop_touches_no_stream() {
    let control_of = |sid, skb| Control {
        sid,
        skb,
        ..Control::default()
    };
    assert_eq!(
        control("NOOP: 1\r\nSID: 5\r\nSKB: 3\r\n"),
        control_of(Some(sid(5)), Some(3))
    );
    assert_eq!(
        control("SID: 5\r\nEOF: 1\r\nProto: a\r\nHost: b\r\nNOOP: 1\r\n"),
        control_of(Some(sid(5)), None)
    );
    assert_eq!(control("NOOP: 1\r\nSID: any text\r\n"), Control::default());
    // Neither NOOP nor SID: nothing it could be about.
    assert_eq!(control("EOF: 1WR\r\n"), Control::default());
    assert_eq!(control(""), Control::default());

    let all = control("NOOP: 1\r\nPING: a b\r\nPONG: c\r\nQuota: -1\r\nZRST: 1\r\n");
    assert_eq!(all.ping, Some(PingText::new(b"a b")));
    assert_eq!(all.pong, Some(PingText::new(b"c")));
    assert_eq!((all.quota, all.zrst, all.kites), (Some(-1), true, None));
    assert_eq!(control("NOOP: 1\r\nQuota: None\r\n").quota, None);

    let kites = control("NOOP: 1\r\nX-PageKite-Quota: 5\r\nx-pagekite-ok: http:k:b\r\n")
        .kites
        .unwrap();
    assert_eq!((kites.quota, kites.ok.len()), (Some(5), 1));
}

#[test]
fn ping_texts_are_short_and_printable() {
    let ping = |text: &str| {
        control(&format!("NOOP: 1\r\nPING: {text}\r\n"))
            .ping
            .unwrap()
            .as_str()
            .to_owned()
    };
    assert_eq!(ping("1795439313.6384"), "1795439313.6384");
    assert_eq!(ping(&"x".repeat(100)), "x".repeat(64));
    assert_eq!(ping("a\u{1b}b\0c"), "a?b?c");
    assert_eq!(ping(""), "");
}

#[test]
fn what_is_written_has_the_form_of_the_protocol_page() {
    let mut out = BytesMut::new();
    put_skb(&mut out, sid(5), 0);
    put_eof(&mut out, sid(5), Eof::READ, false, b"Bye!");
    put_data(&mut out, sid(5), b"");
    put_noop(&mut out, 0);
    put_ping(&mut out, &PingText::new(b"1795439313.6384"));
    put_eof(&mut out, sid(5), Eof::BOTH, true, b"");
    put_eof(&mut out, sid(5), Eof::NONE, true, b"");
    let expected = "1b\r\nNOOP: 1\r\nSID: 5\r\nSKB: 0\r\n\r\n17\r\nSID: 5\r\nEOF: 1R\r\n\r\nBye!a\r\nSID: 5\r\n\r\n\
        b\r\nNOOP: 1\r\n\r\n23\r\nNOOP: 1\r\nPING: 1795439313.6384\r\n\r\n!1e\r\nSID: 5\r\nEOF: 1WR\r\nAbort: 1\r\n\r\n";
    assert_eq!(out, expected);
}

#[test]
fn no_value_forges_a_header() {
    let mut out = BytesMut::new();
    let open = Open {
        proto: "http\r\nNOOP: 1".into(),
        host: "a\nb".into(),
        ..Open::default()
    };
    put_open(&mut out, sid(1), &open, b"");
    let Ok(Some(Frame::Stream(frame))) = decode(&out) else {
        panic!("{out:?}")
    };
    assert_eq!(frame.open.unwrap().host, "ab");
}

#[test]
fn a_data_header_ends_where_its_payload_begins() {
    for (number, len) in [
        (0, 0),
        (5, 6),
        (99_999_999, MAX_FRAME),
        (10, usize::MAX - HEADROOM),
    ] {
        let mut room = [0; HEADROOM];
        let from = data_header(sid(number), len, &mut room);
        let head = format!("SID: {number}\r\n\r\n");
        assert_eq!(
            &room[from..],
            format!("{:x}\r\n{head}", len + head.len()).as_bytes()
        );
    }
}

#[test]
fn nothing_private_gets_into_a_log() {
    let open = Open {
        rip: Some("192.0.2.1".into()),
        ..Open::default()
    };
    let frame = StreamFrame {
        open: Some(Box::new(open)),
        ..data(sid(1), "content")
    };
    let line = "X-PageKite: http:k:b:tfsalt:s1gned\r\n";
    let text = format!("{frame:?} {:?}", control(&format!("NOOP: 1\r\n{line}")));
    assert!(
        text.contains("7 bytes") && text.contains("http:k:b"),
        "{text}"
    );
    for private in ["content", "192.0.2.1", "tfsalt", "s1gned"] {
        assert!(!text.contains(private), "{private} in {text}");
    }
}

// How they are cut.

#[test]
fn data_is_a_slice_of_the_buffer() {
    let mut buf = BytesMut::new();
    put_data(&mut buf, sid(7), &[42; 16_000]);
    put_data(&mut buf, sid(7), b"next");
    let at = buf.as_ptr() as usize;
    let Ok(Some(Frame::Stream(frame))) = Decoder::new(Limits::ESTABLISHED).decode(&mut buf) else {
        panic!()
    };
    assert_eq!(frame.data.len(), 16_000);
    assert_eq!(
        frame.data.as_ptr() as usize,
        at + "3e8a\r\nSID: 7\r\n\r\n".len(),
        "not a copy"
    );
}

#[test]
fn a_frame_that_is_not_there_yet_is_not_touched() {
    let data = "x".repeat(100_000);
    for headers in [
        "SID: 7\r\nSKB: 1\r\n",
        "SID: 7\r\nEOF: 1W\r\n",
        "NOOP: 1\r\n",
    ] {
        let whole = frame(headers, &data);
        let mut decoder = Decoder::new(Limits::ESTABLISHED);
        for cut in (0..whole.len()).step_by(97) {
            let mut buf = BytesMut::from(&whole[..cut]);
            assert_eq!(decoder.decode(&mut buf), Ok(None));
            assert_eq!(buf, whole[..cut]);
        }
    }
}

#[test]
fn a_large_data_frame_comes_in_pieces_as_its_bytes_do() {
    let data: Vec<u8> = (0..100_000u32).map(|n| n as u8).collect();
    let mut whole = BytesMut::new();
    put_data(&mut whole, sid(7), &data);
    put_data(&mut whole, sid(8), b"next");
    for step in [1, 97, CUT_FROM - 1, CUT_FROM, 30_000, whole.len()] {
        let (mut decoder, mut buf) = (Decoder::new(Limits::ESTABLISHED), BytesMut::new());
        let (mut seven, mut eight, mut pieces) = (Vec::new(), Vec::new(), 0);
        for piece in whole.chunks(step) {
            buf.extend_from_slice(piece);
            while let Some(frame) = decoder.decode(&mut buf).unwrap() {
                let Frame::Stream(frame) = frame else {
                    panic!()
                };
                assert!(frame.eof.is_none() && frame.open.is_none() && frame.skb.is_none());
                match frame.sid == sid(7) {
                    true => seven.extend_from_slice(&frame.data),
                    false => eight.extend_from_slice(&frame.data),
                }
                pieces += 1;
            }
            assert!(
                buf.len() < CUT_FROM + HEADROOM,
                "{} bytes are held back",
                buf.len()
            );
        }
        assert!(seven == data && eight == b"next", "in steps of {step}");
        assert_eq!(pieces == 2, step == whole.len());
    }
}

// Limits.

#[test]
fn size_lines_have_a_form_and_a_length() {
    for good in ["b", "B", "0b", "000000000000000b", "bR", "00000000000000bR"] {
        let bytes = format!("{good}\r\nNOOP: 1\r\n\r\n");
        assert!(
            matches!(decode(bytes.as_bytes()), Ok(Some(Frame::Control(_)))),
            "{good}"
        );
    }
    for bad in [
        "0000000000000000b",
        "000000000000000bR",
        "\r\n",
        "g\r\n",
        "-1\r\n",
        "+b\r\n",
        " b\r\n",
        "b \r\n",
        "0xb\r\n",
        "b\n",
        "b\rb",
        "bRR\r\n",
        "R\r\n",
        "Z\r\n",
        "bZ\r\n",
        "Zb\r\n",
        "bZbZb\r\n",
        "bRZb\r\n",
        "bz5\r\n",
        "br\r\n",
        "HTTP/1.1 503",
        "\0",
    ] {
        assert_eq!(decode(bad.as_bytes()), Err(FrameError::SizeLine), "{bad:?}");
    }
    for unfinished in ["", "b", "0000000000000000", "bZ", "bR", "bZbR", "b\r"] {
        assert_eq!(decode(unfinished.as_bytes()), Ok(None), "{unfinished:?}");
    }
}

#[test]
fn empty_and_huge_frames_are_refused_before_they_come() {
    for empty in ["0\r\n", "0000\r\n", "0R\r\n", "0Z5\r\n", "5Z0\r\n"] {
        assert_eq!(
            decode(empty.as_bytes()),
            Err(FrameError::Empty),
            "{empty:?}"
        );
    }
    for (line, size) in [
        ("100001\r\n", 1_048_577),
        ("ffffffff\r\n", 0xffff_ffff),
        ("ffffffffffffffff\r\n", u64::MAX),
        ("100001Z5\r\n", 1_048_577),
        ("5Z100001\r\n", 1_048_577),
        ("ffffffffffZ5\r\n", 0xff_ffff_ffff),
    ] {
        assert_eq!(
            decode(line.as_bytes()),
            Err(FrameError::TooLarge {
                size,
                max: MAX_FRAME
            }),
            "{line:?}"
        );
    }
    assert_eq!(decode(b"100000\r\n"), Ok(None));
    let max = Limits::UNPROVEN.max_frame;
    assert_eq!(
        decode_with(Limits::UNPROVEN, b"8001\r\n"),
        Err(FrameError::TooLarge { size: 0x8001, max })
    );
    assert_eq!(decode_with(Limits::UNPROVEN, b"8000\r\n"), Ok(None));
    assert_eq!(
        decode_with(Limits::UNPROVEN, b"5Z5\r\n"),
        Err(FrameError::Compressed)
    );
}

#[test]
fn headers_have_an_end_and_a_form() {
    let chunk = |chunk: &str| decode(format!("{:x}\r\n{chunk}", chunk.len()).as_bytes());
    assert_eq!(chunk("SID: 5\r\n"), Err(FrameError::Head { max: 8 }));
    assert_eq!(chunk("x"), Err(FrameError::Head { max: 1 }));
    assert_eq!(chunk("SID: 5\n\n"), Err(FrameError::Header));
    assert_eq!(chunk("SID\r\n\r\n"), Err(FrameError::Header));
    for bad in ["", "x", "-1", "1.0", "123456789", "5 6"] {
        assert_eq!(
            chunk(&format!("SID: {bad}\r\n\r\n")),
            Err(FrameError::Sid),
            "{bad}"
        );
    }
    assert_eq!(chunk("NOOP: 1\r\nSKB: x\r\n\r\n"), Err(FrameError::Skb));
    assert!(matches!(
        chunk("NOOP: 1\r\nX-PageKite: a:b:c:d\r\n\r\n"),
        Err(FrameError::Lines(_))
    ));

    // One header line fills the head but for the last byte, or not even that.
    let max = Limits::ESTABLISHED.max_head;
    let fill = "x".repeat(max - "X: \r\nSID: 5\r\n\r\n".len());
    assert!(chunk(&format!("X: {fill}\r\nSID: 5\r\n\r\ndata")).is_ok());
    assert_eq!(
        chunk(&format!("X: {fill}x\r\nSID: 5\r\n\r\ndata")),
        Err(FrameError::Head { max })
    );
}

#[test]
fn too_many_service_lines_are_refused() {
    let lines = |n: usize| {
        frame(
            &format!("NOOP: 1\r\n{}", "X-PageKite: http:k:b::s\r\n".repeat(n)),
            "",
        )
    };
    assert!(decode(&lines(64)).is_ok());
    assert!(matches!(decode(&lines(65)), Err(FrameError::Lines(_))));
}

#[test]
fn a_home_may_be_as_long_as_its_limit() {
    let name = "bob.alice.example";
    let home = |len: usize| {
        let address = "x".repeat(len - name.len() - 1);
        decode(&frame(
            &format!("NOOP: 1\r\nX-PageKite-Home: {name}:{address}\r\n"),
            "",
        ))
    };
    assert!(home(640).is_ok());
    assert!(matches!(home(641), Err(FrameError::Lines(_))));
}

// Compression.

/// A peer that compresses.
struct Deflate(Compress);

impl Deflate {
    fn new() -> Self {
        Self(Compress::new(Compression::best(), true))
    }

    fn compress(&mut self, chunk: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(chunk.len() + 1024);
        self.0
            .compress_vec(chunk, &mut out, FlushCompress::Sync)
            .unwrap();
        out
    }

    /// A frame that claims to inflate to `claim` bytes.
    fn frame(&mut self, chunk: &[u8], claim: usize, suffix: &str) -> Vec<u8> {
        let wire = self.compress(chunk);
        let mut out = format!("{claim:x}Z{:x}{suffix}\r\n", wire.len()).into_bytes();
        out.extend(wire);
        out
    }
}

#[test]
fn one_deflate_stream_runs_through_all_compressed_frames() {
    let chunk = |text: &str| format!("SID: 5\r\n\r\n{}", text.repeat(100)).into_bytes();
    let (mut peer, mut decoder) = (Deflate::new(), Decoder::new(Limits::ESTABLISHED));
    let mut buf = BytesMut::new();
    let mut expected = Vec::new();
    for (n, text) in ["abc", "abc", "plain", "abd", "new", "newer"]
        .into_iter()
        .enumerate()
    {
        let bytes = chunk(text);
        if n == 2 {
            // Plain frames between compressed ones are no part of the stream.
            put_data(&mut buf, sid(5), text.repeat(100).as_bytes());
        } else if n == 4 {
            peer = Deflate::new();
            buf.extend(peer.frame(&bytes, bytes.len(), "R"));
        } else {
            buf.extend(peer.frame(&bytes, bytes.len(), ""));
        }
        expected.push(Frame::Stream(data(sid(5), text.repeat(100))));
    }
    for frame in expected {
        assert_eq!(decoder.decode(&mut buf), Ok(Some(frame)));
    }
    // The restart may stand on a plain frame.
    let mut peer = Deflate::new();
    buf.extend_from_slice(b"bR\r\nNOOP: 1\r\n\r\n");
    buf.extend(peer.frame(&chunk("z"), chunk("z").len(), ""));
    assert!(matches!(
        decoder.decode(&mut buf),
        Ok(Some(Frame::Control(_)))
    ));
    assert_eq!(
        decoder.decode(&mut buf),
        Ok(Some(Frame::Stream(data(sid(5), "z".repeat(100)))))
    );
}

#[test]
fn a_zip_bomb_inflates_to_no_more_than_it_says() {
    let mut bomb = b"SID: 5\r\n\r\n".to_vec();
    bomb.resize(50 << 20, 0);
    let wire = Deflate::new().compress(&bomb);
    assert!(wire.len() < MAX_FRAME);
    for claim in [1, 10, 70_000, MAX_FRAME] {
        let mut frame = format!("{claim:x}Z{:x}\r\n", wire.len()).into_bytes();
        frame.extend(&wire);
        let begun = Instant::now();
        assert_eq!(decode(&frame), Err(FrameError::InflatedLength), "{claim}");
        // It stops at the first byte too many. Inflating all of it takes far longer.
        assert!(begun.elapsed() < Duration::from_secs(1), "{claim}");
    }
}

#[test]
fn compressed_frames_must_be_what_they_say() {
    let chunk = b"SID: 5\r\n\r\nsome text, some text, some text";
    for claim in [
        1,
        chunk.len() - 1,
        chunk.len() + 1,
        chunk.len() + 100,
        MAX_FRAME,
    ] {
        assert_eq!(
            decode(&Deflate::new().frame(chunk, claim, "")),
            Err(FrameError::InflatedLength),
            "{claim}"
        );
    }
    assert!(decode(&Deflate::new().frame(chunk, chunk.len(), "")).is_ok());
    assert_eq!(decode(b"5Z5\r\nhello"), Err(FrameError::Inflate));
    // A stream that ends.
    let mut ended = Vec::with_capacity(1024);
    Compress::new(Compression::best(), true)
        .compress_vec(chunk, &mut ended, FlushCompress::Finish)
        .unwrap();
    let mut frame = format!("{:x}Z{:x}\r\n", chunk.len(), ended.len()).into_bytes();
    frame.extend(ended);
    assert_eq!(decode(&frame), Err(FrameError::Inflate));
    // A later frame without the ones before it.
    let mut peer = Deflate::new();
    peer.compress(chunk);
    assert_eq!(
        decode(&peer.frame(chunk, chunk.len(), "")),
        Err(FrameError::Inflate)
    );
}
