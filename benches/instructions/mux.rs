//! The scheduler of a tunnel: what a stream costs among many that do nothing.

use std::hint::black_box;
use std::io::IoSlice;
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use kite::tunnel::buffer::{BUFFER_PAYLOAD, MAX_SLICES, Outgoing, Pool};
use kite::tunnel::mux::{Event, Liveness, Mux, RECV_WINDOW_KB, Read, Settings, Side};
use kite::wire::Sid;
use kite::wire::frame::{Open, put_data};
use kite::wire::handshake::MuxParams;

use crate::count::{Case, Operation};

/// A small write of a visitor.
const PAYLOAD: &[u8] = &[b'x'; 256];
/// Streams that have something to send at once, at most: what fits into one round.
const READY: usize = 256;

/// Each operation beside so many streams.
pub fn cases(streams: &[usize]) -> Vec<Case> {
    let mut cases = Vec::new();
    for &n in streams {
        cases.push(Case::new(
            format!("mux: a stream's whole life, both ends, beside {n}"),
            200,
            move |_| life(n),
        ));
    }
    for &n in streams {
        let ready = n.min(READY);
        cases.push(
            Case::new(
                format!("mux: a frame sent, {ready} of {n} streams ready"),
                if ready == 1 { 1000 } else { 40 },
                move |_| send(n),
            )
            .of(ready),
        );
    }
    for &n in streams {
        cases.push(Case::new(
            format!("mux: a frame received, for one of {n}"),
            1000,
            move |_| receive(n),
        ));
    }
    cases
}

/// A visitor's stream begins.
pub fn opening() -> Open {
    Open {
        proto: "http".into(),
        host: "tahoebob.alice.example".into(),
        port: Some(80),
        rip: Some("192.0.2.17".into()),
        rport: Some(51_234),
        rtls: false,
    }
}

/// One end of a tunnel between two kites.
struct End {
    mux: Mux,
    pool: Pool,
    out: Outgoing,
    now: Instant,
}

impl End {
    fn new(side: Side, streams: usize) -> Self {
        let now = Instant::now();
        let params = MuxParams {
            window_kb: RECV_WINDOW_KB,
            frame: BUFFER_PAYLOAD as u32,
        };
        let settings = Settings {
            // A tunnel carries fewer; here the question is what more would cost.
            max_streams: streams + 1,
            ..Settings::agreed(side, Some(params), Liveness::DEFAULT)
        };
        Self {
            mux: Mux::new(settings, now),
            pool: Pool::new(),
            out: Outgoing::default(),
            now,
        }
    }

    /// All that waits goes onto the wire.
    fn send(&mut self, wire: &mut BytesMut) {
        while self.mux.has_output() || !self.out.is_empty() {
            self.mux.transmit(&mut self.out, &self.pool, self.now);
            let mut slices = [IoSlice::new(&[]); MAX_SLICES];
            let count = self.out.slices(&mut slices);
            let mut sent = 0;
            for slice in &slices[..count] {
                wire.extend_from_slice(slice);
                sent += slice.len();
            }
            self.out.advance(sent, &self.pool);
        }
        self.events();
    }

    fn receive(&mut self, wire: &mut BytesMut) {
        self.mux.receive(wire, self.now).unwrap();
    }

    /// What happened is heard of, and the newest stream, if one was opened, told.
    fn events(&mut self) -> Option<Sid> {
        let mut opened = None;
        while let Some(event) = self.mux.next_event() {
            if let Event::Opened(sid, _) = black_box(event) {
                opened = Some(sid);
            }
        }
        opened
    }

    /// Takes what has come for a stream; how many bytes.
    fn take(&mut self, sid: Sid) -> usize {
        let mut taken = 0;
        while let Read::Data(data) = black_box(self.mux.read(sid)) {
            self.mux.consumed(sid, data.len(), self.now);
            taken += data.len();
        }
        taken
    }
}

/// Two ends of one tunnel, and the streams that are open on it.
fn tunnel(streams: usize) -> (End, End, Vec<Sid>) {
    let mut front = End::new(Side::Frontend, streams);
    let mut back = End::new(Side::Backend, streams);
    let mut wire = BytesMut::new();
    let sids = (0..streams)
        .map(|_| front.mux.open(opening(), Bytes::new()).unwrap())
        .collect();
    // The ping that goes with the first opening is answered.
    for _ in 0..2 {
        front.send(&mut wire);
        back.receive(&mut wire);
        back.events();
        back.send(&mut wire);
        front.receive(&mut wire);
        front.events();
    }
    (front, back, sids)
}

/// Opened with a request, answered, ended from both sides.
fn life(streams: usize) -> Operation {
    let (mut front, mut back, _) = tunnel(streams);
    let mut wire = BytesMut::new();
    Box::new(move || {
        let sid = front
            .mux
            .open(opening(), Bytes::from_static(PAYLOAD))
            .unwrap();
        front.mux.finish(sid);
        front.send(&mut wire);
        back.receive(&mut wire);
        assert_eq!(back.events(), Some(sid));
        assert_eq!(back.take(sid), PAYLOAD.len());
        back.mux.write(sid, Bytes::from_static(PAYLOAD).into());
        back.mux.finish(sid);
        back.send(&mut wire);
        back.mux.release(sid);
        front.receive(&mut wire);
        front.events();
        assert_eq!(front.take(sid), PAYLOAD.len());
        front.mux.release(sid);
        assert_eq!(front.mux.streams(), streams);
    })
}

/// One round: streams, of all in turn, have a frame each.
fn send(streams: usize) -> Operation {
    let (mut front, _, sids) = tunnel(streams);
    let mut wire = BytesMut::new();
    let mut turn = sids.into_iter().cycle();
    let ready = streams.min(READY);
    Box::new(move || {
        for sid in turn.by_ref().take(ready) {
            front.mux.write(sid, Bytes::from_static(PAYLOAD).into());
        }
        wire.clear();
        front.send(&mut wire);
    })
}

/// A frame for one, taken at once.
fn receive(streams: usize) -> Operation {
    let (mut front, _, sids) = tunnel(streams);
    let mut wire = BytesMut::new();
    let mut turn = (0..).map(move |n: usize| sids[n * 7919 % streams]);
    Box::new(move || {
        let sid = turn.next().unwrap();
        put_data(&mut wire, sid, PAYLOAD);
        front.receive(&mut wire);
        front.events();
        assert_eq!(front.take(sid), PAYLOAD.len());
    })
}
