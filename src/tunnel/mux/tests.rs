//! What a tunnel does when it holds much, with a clock that goes when it is told to.

use super::*;

fn front(now: Instant) -> Mux {
    let peer = MuxParams {
        window_kb: RECV_WINDOW_KB,
        frame: BUFFER_PAYLOAD as u32,
    };
    Mux::new(
        Settings::agreed(Side::Frontend, Some(peer), Liveness::DEFAULT),
        now,
    )
}

fn opened(mux: &mut Mux) -> Sid {
    let open = Open {
        proto: "raw".into(),
        host: "kite.example".into(),
        ..Open::default()
    };
    mux.open(open, Bytes::new()).expect("room")
}

/// So many bytes come for a stream.
fn comes(mux: &mut Mux, sid: Sid, n: usize, now: Instant) {
    let mut wire = BytesMut::new();
    frame::put_data(&mut wire, sid, &vec![0; n]);
    mux.receive(&mut wire, now).expect("frames");
}

/// The local side takes as much, or what there is.
fn takes(mux: &mut Mux, sid: Sid, n: usize, now: Instant) {
    let n = n.min(mux.books(sid).expect("a stream").inbox);
    mux.consumed(sid, n, now);
}

const KB: usize = 1024;
const TICK: Duration = Duration::from_millis(10);

/// Visitors who come, read for a moment, and stall: ten more in each tick, for ever.
#[derive(Default)]
struct Crowd {
    all: Vec<(Sid, Instant)>,
    broken: usize,
}

impl Crowd {
    const READS: Duration = Duration::from_millis(50);

    fn tick(&mut self, mux: &mut Mux, now: Instant) {
        for _ in 0..10 {
            self.all.push((opened(mux), now));
        }
        for &(sid, since) in &self.all {
            if mux.books(sid).is_some_and(|b| b.inbox < 128 * KB) {
                comes(mux, sid, 32 * KB, now);
            }
            if !mux.is_lost(sid) && now < since + Self::READS {
                takes(mux, sid, 32 * KB, now);
            }
        }
        let before = self.all.len();
        self.all.retain(|(sid, _)| {
            let lost = mux.is_lost(*sid);
            if lost {
                mux.release(*sid);
            }
            !lost
        });
        self.broken += before - self.all.len();
    }
}

/// It takes 100 KB once a second, as a socket does that has room again. Its last taking is longer ago than everybody else's.
#[test]
fn a_slow_reader_is_told_from_a_crowd_that_has_stalled() {
    let mut now = Instant::now();
    let mut mux = front(now);
    let (slow, mut crowd) = (opened(&mut mux), Crowd::default());
    for tick in 0..500 {
        now += TICK;
        if mux.books(slow).is_some_and(|b| b.inbox <= 96 * KB) {
            comes(&mut mux, slow, 32 * KB, now);
        }
        if tick % 100 == 0 {
            takes(&mut mux, slow, 100 * KB, now);
        }
        if tick > 310 {
            crowd.tick(&mut mux, now);
        }
        mux.audit();
        assert!(
            !mux.is_lost(slow),
            "broken off in tick {tick}, and {} others",
            crowd.broken
        );
    }
    assert!(crowd.broken > 500, "{} were broken off", crowd.broken);
}

/// Nothing has come for it for long, so it could not take anything.
#[test]
fn who_was_idle_has_not_stalled() {
    let mut now = Instant::now();
    let mut mux = front(now);
    let (idle, mut crowd) = (opened(&mut mux), Crowd::default());
    comes(&mut mux, idle, KB, now);
    takes(&mut mux, idle, KB, now);
    now += Duration::from_secs(60);
    while crowd.broken < 100 {
        now += TICK;
        crowd.tick(&mut mux, now);
    }
    comes(&mut mux, idle, 128 * KB, now);
    now += TICK;
    crowd.tick(&mut mux, now);
    assert!(!mux.is_lost(idle), "it has had no time to take it");
}

#[test]
fn where_much_is_on_the_way_each_stream_has_a_small_window() {
    let now = Instant::now();
    let (mut mux, pool) = (front(now), Pool::new());
    let piece = Bytes::from(vec![0; BUFFER_PAYLOAD]);
    let mut filled = || {
        let sid = opened(&mut mux);
        while let Capacity::Bytes(n @ 1..) = mux.capacity(sid) {
            mux.write(sid, piece.slice(..n).into());
            mux.transmit(&mut Outgoing::default(), &pool, now);
        }
        mux.audit();
        (mux.books(sid).expect("a stream").in_flight, mux.in_flight)
    };
    let (first, mut all) = filled();
    assert!(first > MIN_WINDOW);
    while all <= MAX_IN_FLIGHT {
        (_, all) = filled();
    }
    assert!(all <= MAX_IN_FLIGHT + first);
    assert_eq!(filled().0, MIN_WINDOW);
}

/// All that waits to be sent, as text.
fn said(mux: &mut Mux, now: Instant) -> String {
    let (mut out, pool) = (Outgoing::default(), Pool::new());
    let mut all = String::new();
    while mux.has_output() {
        mux.transmit(&mut out, &pool, now);
        while !out.is_empty() {
            let mut slices = [std::io::IoSlice::new(&[]); crate::tunnel::buffer::MAX_SLICES];
            let count = out.slices(&mut slices);
            let some: Vec<u8> = slices.iter().take(count).flat_map(|s| s.to_vec()).collect();
            all += &String::from_utf8_lossy(&some);
            out.advance(some.len(), &pool);
        }
    }
    all
}

#[test]
fn so_many_strays_are_answered_at_a_time() {
    let now = Instant::now();
    let mut mux = front(now);
    let mut wire = BytesMut::new();
    for n in 0..2 * MAX_STRAYS as u32 {
        frame::put_data(&mut wire, Sid::new(7_000_000 + n).expect("a number"), b"x");
    }
    mux.receive(&mut wire, now).expect("frames");
    assert_eq!(said(&mut mux, now).matches("EOF: 1WR").count(), MAX_STRAYS);
}

#[test]
fn the_oldest_verdict_that_waits_is_dropped() {
    let now = Instant::now();
    let mut mux = front(now);
    for n in 0..=MAX_PENDING_KITES {
        mux.send_kites(Lines {
            session_id: Some(format!("verdict-{n}.")),
            ..Lines::default()
        });
    }
    let said = said(&mut mux, now);
    assert_eq!(said.matches("verdict-").count(), MAX_PENDING_KITES);
    assert!(!said.contains("verdict-0.") && said.contains("verdict-1."));
}

#[test]
fn a_stream_has_so_many_frames_that_wait() {
    let (now, pool) = (Instant::now(), Pool::new());
    let mut mux = front(now);
    let sid = opened(&mut mux);
    let mut frames = 0;
    while let Capacity::Bytes(n @ 1..) = mux.capacity(sid) {
        let mut buffer = pool.take(n);
        buffer.room(n).fill(b'x');
        buffer.filled(n);
        mux.write(sid, Chunk::new(buffer, &pool));
        frames += 1;
    }
    assert_eq!(frames, crate::tunnel::stream::OUTBOX_CHUNKS);
}

#[test]
fn after_the_last_number_it_is_the_firsts_turn_again() {
    let mut mux = front(Instant::now());
    assert_eq!(opened(&mut mux), Sid::FIRST);
    mux.next_sid = Sid::MAX.get();
    assert_eq!(opened(&mut mux), Sid::MAX);
    // The first is in use still.
    assert_eq!(opened(&mut mux).get(), Sid::FIRST.get() + 1);
    assert_eq!(opened(&mut mux).get(), Sid::FIRST.get() + 2);
}

#[test]
fn what_a_burst_took_is_given_back() {
    let now = Instant::now();
    let mut mux = front(now);
    let all: Vec<Sid> = (0..MAX_STREAMS).map(|_| opened(&mut mux)).collect();
    said(&mut mux, now);
    for sid in &all {
        mux.abort(*sid);
    }
    all.iter().for_each(|sid| mux.release(*sid));
    while mux.has_output() {
        said(&mut mux, now);
    }
    while mux.next_event().is_some() {}
    assert_eq!(mux.streams(), 0);
    let kept = [
        mux.streams.capacity(),
        mux.events.capacity(),
        mux.ends.capacity(),
        mux.sparse.capacity(),
        mux.ready.capacity(),
        mux.acks.capacity(),
    ];
    assert!(kept.iter().all(|room| *room < MAX_STREAMS / 4), "{kept:?}");
}
