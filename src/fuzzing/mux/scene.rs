//! Two honest ends, and a connection between them that delays, cuts, stalls and dies.

use std::collections::BTreeMap;
use std::io::IoSlice;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes, BytesMut};
use rand::rngs::StdRng;
use rand::{RngCore, SeedableRng};

use super::Choices;
use crate::tunnel::buffer::{Chunk, MAX_SLICES, Outgoing, Pool};
use crate::tunnel::mux::{
    Capacity, Event, LEGACY_WINDOW, Liveness, Mux, MuxError, OpenError, Read, Settings, Side,
};
use crate::wire::frame::Open;
use crate::wire::{Lines, MAX_FRAME, Sid};

/// What happened in a run, in numbers; the same seed gives the same ones.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Trace {
    /// Of everything that went over the wire and came out, in its order.
    pub digest: u64,
    /// Streams.
    pub opened: u64,
    /// Pieces that came out.
    pub delivered: u64,
    /// Halves whose end was seen as one in order.
    pub ended: u64,
    /// Halves that were seen to break off.
    pub aborted: u64,
    /// Streams that there was no room for.
    pub refused: u64,
    /// Tunnels that fell silent.
    pub died: u64,
    /// Times that a writer had to wait.
    pub waited: u64,
    /// Bytes that came out.
    pub moved: u64,
}

impl Trace {
    fn note(&mut self, number: u64) {
        let mixed = (self.digest ^ number).wrapping_mul(0x0100_0000_01b3);
        self.digest = mixed.rotate_left(5);
    }

    #[cfg(test)]
    pub(super) fn add(&mut self, other: &Self) {
        self.opened += other.opened;
        self.delivered += other.delivered;
        self.ended += other.ended;
        self.aborted += other.aborted;
        self.refused += other.refused;
        self.died += other.died;
        self.waited += other.waited;
        self.moved += other.moved;
    }
}

/// What an end's own side has done with a stream, and seen of it.
#[derive(Default, Debug)]
struct Local {
    written: u64,
    read: u64,
    /// Read, and not yet passed on.
    unconsumed: usize,
    /// It has said that it will write no more.
    finished: bool,
    /// It has ended both halves in order.
    closed: bool,
    /// It has broken the stream off.
    broken: bool,
    /// Its handle is gone.
    released: bool,
    /// What it saw at last.
    saw: Option<Seen>,
    /// It waits for [`Event::Readable`].
    awaits_bytes: bool,
    /// It waits for [`Event::Writable`].
    awaits_room: bool,
    /// It may write no more.
    stopped: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Seen {
    Ended,
    Aborted,
}

struct End {
    mux: Mux,
    settings: Settings,
    out: Outgoing,
    /// On the way to the other end.
    wire: BytesMut,
    /// Arrived, and not yet taken by the mux.
    inbound: BytesMut,
    heard: Instant,
    locals: BTreeMap<Sid, Local>,
    /// It has once had as many streams as it may.
    was_full: bool,
    /// It has once had more than it could hold, from an older peer that was not told of a window yet.
    was_overrun: bool,
}

struct Scene<C> {
    choices: C,
    now: Instant,
    ends: [End; 2],
    pool: Pool,
    /// Bytes that the connection holds.
    pipe: usize,
    trace: Trace,
}

const FRONT: usize = 0;
const BACK: usize = 1;
/// The most that a visitor says with the opening.
const FIRST: usize = 5000;
/// Rounds in which nothing happens, at the end of a run, until it counts as a deadlock.
const PATIENCE: usize = 20;

/// Plays until nothing more is to happen, then lets everything come to its end.
pub(super) fn play(choices: impl Choices) -> Trace {
    let mut scene = Scene::new(choices);
    while !scene.choices.is_over() {
        if scene.step().is_err() {
            scene.trace.died += 1;
            return scene.trace;
        }
        scene.audit();
    }
    scene.settle();
    scene.trace
}

impl<C: Choices> Scene<C> {
    fn new(mut choices: C) -> Self {
        let now = Instant::now();
        let kite = !choices.once_in(3);
        // What each promises the other to take.
        let mut promise = || match kite {
            true => choices.of(&[64, 64, 128, 512, 1024, 4096, 48 * 1024]) * 1024,
            false => LEGACY_WINDOW,
        };
        let (to_front, to_back) = (promise(), promise());
        let max_streams = choices.of(&[3, 20]);
        let max_payload = match kite {
            true => choices.of(&[1024, 16 * 1024, 256 * 1024]),
            false => choices.of(&[1360, 16 * 1024 - 128]),
        };
        let liveness = choices.of(&[Liveness::DEFAULT, Liveness::QUIET]);
        let pipe = choices.of(&[100, 5000, 64 * 1024, 1 << 20]);
        let end = |side, send_window, recv_window| {
            let settings = Settings {
                side,
                kite,
                max_payload,
                send_window,
                recv_window,
                max_streams,
                liveness,
            };
            End {
                mux: Mux::new(settings.clone(), now),
                settings,
                out: Outgoing::default(),
                wire: BytesMut::new(),
                inbound: BytesMut::new(),
                heard: now,
                locals: BTreeMap::new(),
                was_full: false,
                was_overrun: false,
            }
        };
        Self {
            choices,
            now,
            ends: [
                end(Side::Frontend, to_back, to_front),
                end(Side::Backend, to_front, to_back),
            ],
            pool: Pool::new(),
            pipe,
            trace: Trace::default(),
        }
    }

    fn step(&mut self) -> Result<(), MuxError> {
        let who = self.choices.below(2) as usize;
        match self.choices.below(24) {
            0 => self.open(),
            1..=4 => self.with_some(who, Self::write),
            5..=8 => self.with_some(who, Self::read),
            9 => self.with_some(who, Self::consume),
            10..=14 => {
                let most = self.choices.of(&[1, 50, 3000, usize::MAX]);
                self.send(who, most);
            }
            15..=19 => {
                let most = self.choices.of(&[1, 50, 3000, usize::MAX]);
                self.arrive(who, most)?;
            }
            20 => self.pass_time()?,
            21 => self.say_more(who),
            22 => self.with_some(who, Self::finish),
            // The rarer ends.
            _ => match self.choices.below(4) {
                0 => self.with_some(who, Self::close),
                1 => self.with_some(who, Self::abort),
                2 => self.with_some(who, Self::release),
                _ => {}
            },
        }
        self.events();
        Ok(())
    }

    // ------------------------------------------------------- what happens

    fn open(&mut self) {
        let first = self.choices.of(&[0, 1, 300, FIRST]);
        let open = Open {
            proto: "raw".into(),
            host: "kite.example".into(),
            ..Open::default()
        };
        let end = &mut self.ends[FRONT];
        // The first bytes are written before the number is known.
        let sid = Sid::new(end.locals.len() as u32 + 1).unwrap();
        match end.mux.open(open, content(sid, FRONT, 0, first)) {
            Ok(given) => {
                assert_eq!(given, sid, "numbers are given in their order");
                let local = Local {
                    written: first as u64,
                    ..Local::default()
                };
                end.locals.insert(sid, local);
                self.trace.opened += 1;
            }
            Err(OpenError::TooMany) => self.trace.refused += 1,
            Err(e) => panic!("{e}"),
        }
    }

    /// Does something with one of an end's streams, if it has any whose handle is there.
    fn with_some(&mut self, who: usize, act: fn(&mut Self, usize, Sid)) {
        let held = self.held(who);
        if !held.is_empty() {
            let sid = self.choices.of(&held);
            act(self, who, sid);
        }
    }

    fn held(&self, who: usize) -> Vec<Sid> {
        let held = self.ends[who].locals.iter().filter(|(_, l)| !l.released);
        held.map(|(sid, _)| *sid).collect()
    }

    fn local(&mut self, who: usize, sid: Sid) -> &mut Local {
        self.ends[who].locals.get_mut(&sid).unwrap()
    }

    fn write(&mut self, who: usize, sid: Sid) {
        let most = self.choices.of(&[1, 100, 5000, usize::MAX]);
        self.write_up_to(who, sid, most);
    }

    fn write_up_to(&mut self, who: usize, sid: Sid, most: usize) {
        let room = match self.ends[who].mux.capacity(sid) {
            Capacity::Closed => {
                self.local(who, sid).stopped = true;
                return;
            }
            Capacity::Bytes(room) => room,
        };
        let local = self.local(who, sid);
        assert!(!local.finished, "it takes more than the whole");
        local.awaits_room = room == 0;
        if room == 0 {
            self.trace.waited += 1;
            return;
        }
        let n = room.min(most);
        let bytes = content(sid, who, local.written, n);
        local.written += n as u64;
        let chunk = match n % 2 {
            0 => bytes.into(),
            _ => {
                let mut buffer = self.pool.take(n);
                buffer.room(n).copy_from_slice(&bytes);
                buffer.filled(n);
                Chunk::new(buffer, &self.pool)
            }
        };
        self.ends[who].mux.write(sid, chunk);
    }

    /// The heart of it: what comes out is what went in, and its end is what it looks like.
    fn read(&mut self, who: usize, sid: Sid) {
        let read = self.ends[who].mux.read(sid);
        let [front, back] = &self.ends;
        let (here, there) = match who {
            FRONT => (front, back),
            _ => (back, front),
        };
        let (mine, theirs) = (&here.locals[&sid], there.locals.get(&sid));
        let seen = match read {
            Read::Empty => {
                assert_eq!(mine.saw, None, "{sid:?} goes on");
                self.local(who, sid).awaits_bytes = true;
                return;
            }
            Read::Data(bytes) => {
                assert_eq!(mine.saw, None, "{sid:?} goes on");
                let theirs = theirs.expect("bytes of a stream that is not there");
                assert!(mine.read + bytes.len() as u64 <= theirs.written);
                let sent = content(sid, 1 - who, mine.read, bytes.len());
                assert!(bytes == sent, "{sid:?}: other bytes came than were sent");
                self.came_out(who, sid, bytes.len());
                return;
            }
            Read::Ended => {
                let whole = theirs.is_some_and(|t| t.finished && t.written == mine.read);
                assert!(whole, "{sid:?}: {} bytes pass for all", mine.read);
                Seen::Ended
            }
            Read::Aborted => {
                let refused = theirs.is_none() && there.was_full;
                let overrun = here.was_overrun || there.was_overrun;
                let broken = theirs.is_some_and(|t| t.broken);
                assert!(
                    broken || refused || overrun,
                    "{sid:?}: nobody has broken it off"
                );
                Seen::Aborted
            }
        };
        assert!(
            mine.saw.is_none_or(|saw| saw == seen),
            "{sid:?}: {:?}, then {seen:?}",
            mine.saw
        );
        if mine.saw.is_none() {
            match seen {
                Seen::Ended => self.trace.ended += 1,
                Seen::Aborted => self.trace.aborted += 1,
            }
            self.trace.note(u64::from(sid.get()) << 8 | seen as u64);
        }
        let local = self.local(who, sid);
        (local.saw, local.awaits_bytes) = (Some(seen), false);
    }

    fn came_out(&mut self, who: usize, sid: Sid, n: usize) {
        self.trace.delivered += 1;
        self.trace.moved += n as u64;
        self.trace.note(u64::from(sid.get()) << 32 | n as u64);
        let local = self.local(who, sid);
        local.read += n as u64;
        local.unconsumed += n;
        local.awaits_bytes = false;
    }

    fn consume(&mut self, who: usize, sid: Sid) {
        let part = self.choices.of(&[2, 1, 1]);
        let local = self.local(who, sid);
        let n = local.unconsumed.div_ceil(part);
        local.unconsumed -= n;
        self.ends[who].mux.consumed(sid, n, self.now);
    }

    fn finish(&mut self, who: usize, sid: Sid) {
        self.ends[who].mux.finish(sid);
        self.local(who, sid).finished = true;
    }

    fn close(&mut self, who: usize, sid: Sid) {
        self.ends[who].mux.close(sid);
        let local = self.local(who, sid);
        (local.finished, local.closed) = (true, true);
        self.release(who, sid);
    }

    fn abort(&mut self, who: usize, sid: Sid) {
        self.ends[who].mux.abort(sid);
        self.local(who, sid).broken = true;
        self.release(who, sid);
    }

    /// The handle goes. If a half is not over, that breaks the stream off.
    fn release(&mut self, who: usize, sid: Sid) {
        self.ends[who].mux.release(sid);
        let local = self.local(who, sid);
        local.released = true;
        // It may be over without its having looked.
        let over = local.closed || local.finished && local.saw.is_some();
        local.broken |= !over;
    }

    /// An end writes to its socket, which takes what fits.
    fn send(&mut self, who: usize, most: usize) {
        let end = &mut self.ends[who];
        if end.out.is_empty() {
            end.mux.transmit(&mut end.out, &self.pool, self.now);
        }
        let mut room = self.pipe.saturating_sub(end.wire.len()).min(most);
        while room > 0 && !end.out.is_empty() {
            let mut slices = [IoSlice::new(&[]); MAX_SLICES];
            let count = end.out.slices(&mut slices);
            let mut taken = 0;
            for slice in &slices[..count] {
                let n = slice.len().min(room - taken);
                end.wire.extend_from_slice(&slice[..n]);
                taken += n;
            }
            end.out.advance(taken, &self.pool);
            room -= taken;
            self.trace.note(taken as u64);
        }
    }

    /// Some of what is on the way to an end arrives.
    fn arrive(&mut self, who: usize, most: usize) -> Result<(), MuxError> {
        let most = match self.ends[who].mux.is_blocked() {
            true => 0,
            false => most,
        };
        let wire = &mut self.ends[1 - who].wire;
        let some = wire.copy_to_bytes(wire.len().min(most));
        let end = &mut self.ends[who];
        if !some.is_empty() {
            end.heard = self.now;
        }
        end.inbound.extend_from_slice(&some);
        end.mux.receive(&mut end.inbound, self.now)?;
        if end.mux.is_blocked() {
            assert!(!end.settings.kite, "a kite has overrun its window");
            end.was_overrun = true;
        } else {
            assert!(end.inbound.len() <= MAX_FRAME + 18);
        }
        end.was_full |= end.mux.streams() == end.settings.max_streams;
        Ok(())
    }

    fn pass_time(&mut self) -> Result<(), MuxError> {
        self.now += match self.choices.below(12) {
            0 => Duration::from_secs(9),
            1..=3 => Duration::from_millis(200),
            _ => Duration::from_micros(300),
        };
        self.look_at_the_time()
    }

    fn look_at_the_time(&mut self) -> Result<(), MuxError> {
        for end in &mut self.ends {
            if self.now < end.mux.next_timeout() {
                continue;
            }
            let outcome = end.mux.handle_timeout(self.now);
            if outcome.is_err() {
                // A frame that is not there as a whole says nothing yet.
                let silent = self.now - end.heard >= Duration::from_secs(25);
                assert!(silent || !end.inbound.is_empty(), "given up too soon");
            }
            outcome?;
        }
        Ok(())
    }

    fn say_more(&mut self, who: usize) {
        let mux = &mut self.ends[who].mux;
        match self.choices.below(4) {
            0 => mux.ask(),
            1 => drop(mux.measure(Duration::from_secs(1), self.now)),
            2 => mux.tell_quota(77),
            _ => mux.send_kites(Lines::default()),
        }
    }

    /// Whoever waits is told, and a backend takes what is new.
    fn events(&mut self) {
        for (who, end) in self.ends.iter_mut().enumerate() {
            while let Some(event) = end.mux.next_event() {
                match event {
                    Event::Opened(sid, open) => {
                        assert_eq!((who, open.host.as_str()), (BACK, "kite.example"));
                        let double = end.locals.insert(sid, Local::default());
                        assert!(double.is_none(), "{sid:?} came twice");
                    }
                    Event::Readable(sid) => {
                        end.locals.entry(sid).and_modify(|l| l.awaits_bytes = false);
                    }
                    Event::Writable(sid) => {
                        end.locals.entry(sid).and_modify(|l| l.awaits_room = false);
                    }
                    Event::Kites(_) => {}
                }
            }
        }
    }

    fn audit(&self) {
        for end in &self.ends {
            end.mux.audit();
            // A frontend cannot know whether an older backend acknowledges at all.
            if !end.settings.kite && end.settings.side == Side::Frontend {
                continue;
            }
            let most = end.settings.send_window.max(FIRST as u64);
            for sid in end.locals.keys() {
                let books = end.mux.books(*sid);
                let fine = books.is_none_or(|books| books.in_flight <= most);
                assert!(fine, "{sid:?}: {books:?}, a window of {most}");
            }
        }
    }

    // ------------------------------------------------------------ the end

    /// From now on everybody does what is to be done: all must come to its end, by what they are told alone.
    fn settle(&mut self) {
        let goals = [0, 1].map(|_| u64::from(self.choices.of(&[0u32, 0, 10_000, 150_000])));
        self.pipe = self.pipe.max(20_000);
        let (mut idle, mut rounds) = (0, 0);
        while idle < PATIENCE {
            rounds += 1;
            assert!(rounds < 20_000, "they talk for ever");
            let before = self.progress();
            for who in [FRONT, BACK] {
                for sid in self.held(who) {
                    self.go_on(who, sid, goals[who]);
                }
                self.send(who, usize::MAX);
                let arrived = self.arrive(1 - who, usize::MAX);
                arrived.expect("an honest peer");
                self.events();
                self.audit();
            }
            self.now += Duration::from_millis(1);
            if self.look_at_the_time().is_err() {
                // It had been silent for long when this began.
                self.trace.died += 1;
                return;
            }
            idle = match self.progress() == before {
                true => idle + 1,
                false => 0,
            };
        }
        for (who, end) in self.ends.iter().enumerate() {
            if let Some((sid, local)) = end.locals.iter().find(|(_, l)| !l.released) {
                let books = self.ends.each_ref().map(|end| end.mux.books(*sid));
                let other = self.ends[1 - who].locals.get(sid);
                panic!("{who}, {sid:?} waits for ever: {local:?}, {other:?}, {books:?}");
            }
            assert_eq!(end.mux.streams(), 0, "streams are left");
            assert!(!end.mux.has_output() && end.wire.is_empty() && end.inbound.is_empty());
        }
    }

    /// All that can change.
    fn progress(&self) -> Vec<u64> {
        let of = |l: &Local| l.written + l.read + u64::from(l.released) + u64::from(l.finished);
        let ends = self.ends.iter();
        let mut all: Vec<u64> = ends.flat_map(|e| e.locals.values().map(of)).collect();
        // What moves counts, whatever it is.
        all.push(self.trace.digest);
        all
    }

    /// One who reads all, passes it on, writes up to the goal, and goes when both halves are over.
    fn go_on(&mut self, who: usize, sid: Sid, goal: u64) {
        let more = |l: &Local| l.saw.is_none() && !l.awaits_bytes;
        while more(self.local(who, sid)) {
            self.read(who, sid);
        }
        let n = std::mem::take(&mut self.local(who, sid).unconsumed);
        self.ends[who].mux.consumed(sid, n, self.now);
        let wants = |l: &Local| l.written < goal && !l.awaits_room && !l.stopped && !l.finished;
        while wants(self.local(who, sid)) {
            self.write_up_to(who, sid, 20_000);
        }
        let local = self.local(who, sid);
        if !local.finished && (local.written >= goal || local.stopped) {
            self.finish(who, sid);
        }
        let local = self.local(who, sid);
        if local.finished && local.saw.is_some() {
            self.release(who, sid);
        }
    }
}

/// What is written at this place of a stream's half, so that nobody has to keep it.
fn content(sid: Sid, who: usize, from: u64, len: usize) -> Bytes {
    static NOISE: LazyLock<Bytes> = LazyLock::new(|| {
        let mut noise = vec![0; 2 * ROUND];
        StdRng::seed_from_u64(0).fill_bytes(&mut noise);
        noise.into()
    });
    let salt = (u64::from(sid.get()) * 2 + who as u64) * 7919;
    let at = (salt + from) as usize % ROUND;
    NOISE.slice(at..at + len)
}

/// After so many bytes the noise begins again; more than is written at once.
const ROUND: usize = 1 << 20;
