//! One end, whose peer says whatever it likes.

use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};

use super::Choices;
use crate::tunnel::buffer::{Outgoing, Pool};
use crate::tunnel::mux::{Capacity, Event, Liveness, Mux, Read, Settings, Side};
use crate::wire::frame::{
    Open, put_data, put_eof, put_kites, put_noop, put_open, put_ping, put_pong, put_quota, put_skb,
};
use crate::wire::{Eof, Lines, PingText, Sid};

/// The end may give up streams, or the tunnel: its own bounds and books are what counts.
pub(super) fn play(mut choices: impl Choices) {
    let (mut now, pool) = (Instant::now(), Pool::new());
    let settings = Settings {
        side: choices.of(&[Side::Frontend, Side::Backend]),
        kite: choices.of(&[true, false]),
        max_payload: choices.of(&[1360, 64 * 1024]),
        send_window: choices.of(&[64 * 1024, 4 << 20]),
        recv_window: 64 * 1024,
        max_streams: 6,
        liveness: choices.of(&[Liveness::DEFAULT, Liveness::QUIET]),
    };
    let mut mux = Mux::new(settings.clone(), now);
    let (mut inbound, mut out) = (BytesMut::new(), Outgoing::default());
    let reads_us = !choices.once_in(3);
    let mut held: Vec<Sid> = Vec::new();
    while !choices.is_over() {
        match choices.below(8) {
            // What is blocked is not read.
            0..=3 if !mux.is_blocked() => {
                for _ in 0..=choices.below(40) {
                    say(&mut choices, &mut inbound);
                }
            }
            4 if settings.side == Side::Frontend => {
                let opened = mux.open(Open::default(), Bytes::from_static(b"first"));
                held.extend(opened);
            }
            4 | 5 if !held.is_empty() => {
                let at = choices.below(held.len() as u32) as usize;
                act(&mut choices, &mut mux, &mut held, at, now);
            }
            6 => {
                now += Duration::from_millis(u64::from(choices.below(7000)));
                if now >= mux.next_timeout() && mux.handle_timeout(now).is_err() {
                    return;
                }
            }
            _ if reads_us => {
                mux.transmit(&mut out, &pool, now);
                out = Outgoing::default();
            }
            _ => {}
        }
        if mux.receive(&mut inbound, now).is_err() {
            return;
        }
        while let Some(event) = mux.next_event() {
            if let Event::Opened(sid, _) = event {
                held.push(sid);
            }
        }
        mux.audit();
        assert!(held.len() <= settings.max_streams);
        assert!(
            mux.is_blocked() || inbound.is_empty(),
            "whole frames are left"
        );
    }
}

/// One frame, most often of a stream that may be there.
fn say(choices: &mut impl Choices, to: &mut BytesMut) {
    let number = match choices.below(12) {
        0 => 99_999_999,
        1 => choices.below(60_000),
        _ => choices.below(9),
    };
    let sid = Sid::new(number).unwrap();
    let big = choices.of(&[0, 1, 2000, 40_000]);
    match choices.below(12) {
        0..=2 => put_data(to, sid, &vec![b'x'; big]),
        3..=4 => put_open(to, sid, &Open::default(), &vec![b'x'; big.min(5000)]),
        5..=6 => {
            let eof = choices.of(&[Eof::READ, Eof::WRITE, Eof::BOTH]);
            put_eof(to, sid, eof, choices.of(&[true, false]), b"Bye!");
        }
        7 => {
            let kb = choices.of(&[0, 1, 30, 64, u64::MAX / 1024, u64::MAX]);
            put_skb(to, sid, kb);
        }
        8 => put_noop(to, big),
        9 => put_ping(to, &PingText::new(b"text")),
        10 => {
            let text = choices.of(&[&b"1"[..], b"2", b"no"]);
            put_pong(to, &PingText::new(text));
        }
        _ if choices.once_in(2) => put_quota(to, -1),
        _ => {
            let lines = Lines {
                quota: Some(1),
                ..Lines::default()
            };
            put_kites(to, &lines);
        }
    }
}

/// The end's own side does something with a stream.
fn act(choices: &mut impl Choices, mux: &mut Mux, held: &mut Vec<Sid>, at: usize, now: Instant) {
    let sid = held[at];
    match choices.below(10) {
        0..=2 => {
            if let Read::Data(bytes) = mux.read(sid) {
                mux.consumed(sid, bytes.len(), now);
            }
        }
        3..=5 => {
            if let Capacity::Bytes(room) = mux.capacity(sid) {
                let n = room.min(choices.of(&[1, 5000, 300_000]));
                mux.write(sid, Bytes::from(vec![b'y'; n]).into());
            }
        }
        6 => mux.finish(sid),
        ended => {
            match ended {
                7 => mux.abort(sid),
                8 => mux.close(sid),
                _ => {}
            }
            mux.release(sid);
            held.swap_remove(at);
        }
    }
}
