//! The decoder and the encoder of frames.

use std::hint::black_box;

use bytes::BytesMut;
use kite::wire::frame::{
    Decoder, Eof, HEADROOM, PingText, data_header, put_data, put_eof, put_open, put_ping, put_skb,
};
use kite::wire::{Limits, Sid};

use crate::count::{Case, Operation};
use crate::mux::opening;
use crate::recorded;

/// Payloads of data frames, in bytes.
const PAYLOADS: [usize; 4] = [0, 256, 16 * 1024, 64 * 1024];
/// Instructions for a data frame, of whatever length: the decoder does not look at payload.
const GOAL: f64 = 500.0;
/// What the driver reads at once, at most: frames are split off blocks of this size.
const BLOCK: usize = 256 * 1024;

/// A stream in the middle of a tunnel's life.
fn sid() -> Sid {
    Sid::new(12_345).unwrap()
}

fn encoded(write: impl FnOnce(&mut BytesMut)) -> Vec<u8> {
    let mut frame = BytesMut::new();
    write(&mut frame);
    frame.to_vec()
}

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for len in PAYLOADS {
        let frame = encoded(|out| put_data(out, sid(), &vec![b'x'; len]));
        cases.push(decode(format!("decode: data, {len} bytes"), 1000, frame).at_most(GOAL));
    }
    let late = encoded(|out| put_data(out, sid(), &[b'x'; 16 * 1024]));
    cases.push(Case::new(
        "decode: data, 16384 bytes, in packets of 1448",
        400,
        move |_| packets(late.clone()),
    ));
    let small: [(&str, Vec<u8>); 5] = [
        (
            "an opening",
            encoded(|out| put_open(out, sid(), &opening(), b"")),
        ),
        (
            "an end",
            encoded(|out| put_eof(out, sid(), Eof::READ, false, b"")),
        ),
        ("an acknowledgement", encoded(|out| put_skb(out, sid(), 15))),
        (
            "an acknowledgement of pagekite.py's",
            recorded::packet(
                "pagekite/01-handshake-addkites-get",
                "f2b",
                b"1b\r\nNOOP: 1",
            ),
        ),
        (
            "a ping",
            encoded(|out| put_ping(out, &PingText::new(b"17"))),
        ),
    ];
    for (what, frame) in small {
        cases.push(decode(format!("decode: {what}"), 1000, frame));
    }

    cases.push(Case::new("encode: data, the header alone", 1000, |_| {
        let mut room = [0; HEADROOM];
        Box::new(move || {
            black_box(data_header(sid(), black_box(16 * 1024), &mut room));
            black_box(&room);
        })
    }));
    for len in [256, 4096] {
        let payload = vec![b'x'; len];
        let name = format!("encode: data, {len} bytes, copied");
        cases.push(encode(name, move |out| put_data(out, sid(), &payload)));
    }
    let open = opening();
    cases.push(encode("encode: an opening", move |out| {
        put_open(out, sid(), &open, b"")
    }));
    cases.push(encode("encode: an end", |out| {
        put_eof(out, sid(), Eof::READ, false, b"")
    }));
    cases.push(encode("encode: an acknowledgement", |out| {
        put_skb(out, sid(), 15)
    }));
    let text = PingText::new(b"17");
    cases.push(encode("encode: a ping", move |out| put_ping(out, &text)));
    cases
}

/// Frames are taken off blocks as the driver has read them.
fn decode(name: String, times: usize, frame: Vec<u8>) -> Case {
    Case::new(name, times, move |times| {
        let in_block = (BLOCK / frame.len()).max(1);
        let mut blocks: Vec<BytesMut> = (0..times.div_ceil(in_block))
            .map(|_| BytesMut::from(&frame.repeat(in_block)[..]))
            .collect();
        let mut decoder = Decoder::new(Limits::ESTABLISHED);
        let mut block = BytesMut::new();
        Box::new(move || {
            if block.is_empty() {
                block = blocks.pop().unwrap();
            }
            black_box(decoder.decode(&mut block).unwrap().unwrap());
        })
    })
}

/// A frame that comes bit by bit: the decoder is asked after each packet.
fn packets(frame: Vec<u8>) -> Operation {
    let mut decoder = Decoder::new(Limits::ESTABLISHED);
    let mut buf = BytesMut::with_capacity(2 * frame.len());
    Box::new(move || {
        for packet in frame.chunks(1448) {
            buf.extend_from_slice(packet);
            black_box(decoder.decode(&mut buf).unwrap());
        }
        assert!(buf.is_empty());
    })
}

fn encode(name: impl Into<String>, put: impl Fn(&mut BytesMut) + Clone + 'static) -> Case {
    Case::new(name, 1000, move |_| {
        let put = put.clone();
        let mut out = BytesMut::with_capacity(64 * 1024);
        Box::new(move || {
            out.clear();
            put(black_box(&mut out));
        })
    })
}
