//! Many streams in one tunnel (sans-IO): bytes and the time in, events and frames out.
//!
//! One [`Mux`] stands at each end of a tunnel, after the handshake. It knows no
//! socket and no clock; [`super::driver`] moves the bytes. What it holds is bounded:
//! streams by [`Settings::max_streams`], bytes by the windows and by
//! [`MAX_INBOX_TOTAL`], control frames by construction (at most one pending pong,
//! ping and acknowledgement per stream, at most two ends per stream).
//!
//! Between two kites ([`Settings::kite`]) windows are promises: a peer that exceeds
//! one loses the stream. An older peer never promised anything, so when one of its
//! streams runs over, the whole tunnel waits for at most [`OVERRUN_PATIENCE`], and
//! then the stream is ended.

use std::cmp::Reverse;
use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};

use super::buffer::{BUFFER_PAYLOAD, Budget, Chunk, Outgoing, Pool, SMALL_PAYLOAD, Share};
use super::give_back::GiveBack;
use super::pace::{MIN_WINDOW, Path};
use super::stream::{ACK_STEP, DRAINED_STEP, Receiving, SendLimit, Sending, Stream};
use crate::wire::frame::{
    self, Control, Decoder, Eof, Frame, FrameError, Open, PingText, StreamFrame,
};
use crate::wire::handshake::MuxParams;
use crate::wire::{Limits, Lines, Sid};

#[cfg(any(test, fuzzing))]
mod audit;

/// Bytes put together for one round of writing. A stream that becomes ready waits
/// behind at most this much of the others.
pub const BATCH: usize = 128 * 1024;
/// How much of it goes to streams with little to say before the others get their turn.
const SPARSE_BATCH: usize = BATCH / 2;
/// Received bytes that all streams of a tunnel may hold together; beyond it one
/// that has stalled is ended.
pub const MAX_INBOX_TOTAL: usize = 64 * 1024 * 1024;
/// Bytes that wait to be sent, of all streams of a tunnel together. Beyond it each is given small pieces to read into.
pub const MAX_OUTBOX_TOTAL: usize = 16 * 1024 * 1024;
/// Received bytes that wait, of all streams of a tunnel together, beyond which pieces are copied out of their blocks.
const COPY_FROM: usize = 256 * 1024;
/// Received bytes of one stream of an older peer, beyond which the tunnel waits.
pub const OVERRUN: usize = 512 * 1024;
/// How long a tunnel waits for such a stream before it is ended.
pub const OVERRUN_PATIENCE: Duration = Duration::from_secs(5);
/// Bytes in flight to an older peer. pagekite.py keeps to this itself (§7.5), and a
/// pagekite.py frontend cuts a visitor off for whom it has to hold much more.
pub const LEGACY_WINDOW: u64 = 48 * 1024;
/// Payload of a frame to a backend of unknown kind, in bytes: with its headers a frame
/// then has 1400 bytes, which every known backend takes (§6.5).
const TO_LEGACY_BACKEND: usize = 1360;
/// Payload of a frame to a frontend of unknown kind, in bytes: what pagekite.py's own
/// backend sends at most (§6.5). Its frontend passes no more on at once, holds back what is
/// over, and then cuts off a visitor who has half-closed.
const TO_LEGACY_FRONTEND: usize = 16 * 1024 - 128;
/// Payload that is read at once for an older peer, whose own window is smaller.
const LEGACY_CHUNK: usize = 64 * 1024;
/// An older peer hears of progress at least this often: pagekite.py stalls at 48 KB (§7.5).
pub const LEGACY_ACK_STEP: u64 = 16 * 1024;
/// Data for streams that do not exist is answered for this many at a time.
pub const MAX_STRAYS: usize = 64;
/// Streams that ended lately, whose late frames need no answer.
pub const RECENT: usize = 64;
/// Streams that one tunnel may carry at a time. A grid of 50 nodes and 50 clients
/// needs about 100 per node.
pub const MAX_STREAMS: usize = 4096;
/// What a kite lets its peer have on the way for one stream, in KB: 480 MB a second over 100 ms. The
/// peer uses what the path holds (see [`super::pace`]).
pub const RECV_WINDOW_KB: u32 = 48 * 1024;
/// Windows up to this many bytes are used as they are.
const UNPACED_WINDOW: u64 = 1024 * 1024;
/// Bytes of all streams that may be on the way to a kite before each has no more than
/// [`MIN_WINDOW`]: less than [`MAX_INBOX_TOTAL`].
pub const MAX_IN_FLIGHT: u64 = 48 * 1024 * 1024;
/// Frames with X-PageKite lines that may wait to be sent.
pub const MAX_PENDING_KITES: usize = 16;

/// How long a new stream may be without an answer until the peer is asked for a sign of life.
const OPENING_PATIENCE: Duration = Duration::from_secs(1);

/// Frames that may follow each other within [`BURST_BYTES`]: pagekite.py dies of 150
/// frames in one read of 50,393 bytes (§6.1). A read may begin anywhere, and meet as many twice, with 37 frames of
/// filler between them.
const BURST_FRAMES: usize = 48;
/// More than pagekite.py reads at once.
const BURST_BYTES: usize = 50_500;
/// After this long the peer has surely read what came before.
const BURST_MEMORY: Duration = Duration::from_secs(5);

/// Which end of the tunnel this is. Only the frontend opens streams.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Side {
    /// The public end.
    Frontend,
    /// The end next to the origin.
    Backend,
}

/// How silence is dealt with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Liveness {
    /// Ask after `ask` of silence; the peer is dead after `dead` of it.
    Ping {
        /// Silence before a PING is sent.
        ask: Duration,
        /// Silence after which the peer is given up; longer than `ask`.
        dead: Duration,
    },
    /// Never ask (some old frontends drop a tunnel that does, §17): only say
    /// something every so often, and leave the verdict to the transport.
    Noop {
        /// Our own silence before a NOOP is sent.
        every: Duration,
    },
}

impl Liveness {
    /// The default: a dead tunnel is noticed in under 30 s, over Tor too.
    pub const DEFAULT: Liveness = Liveness::Ping {
        ask: Duration::from_secs(10),
        dead: Duration::from_secs(25),
    };
    /// For a frontend that dies of PING. pagekite.py asks only after 116 s of our silence.
    pub const QUIET: Liveness = Liveness::Noop {
        every: Duration::from_secs(75),
    };
}

/// What was agreed for one tunnel.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Which end this is.
    pub side: Side,
    /// The peer is a kite that promised to keep to windows.
    pub kite: bool,
    /// Largest payload of a frame we send, in bytes.
    pub max_payload: usize,
    /// Bytes per stream that may be on the way to the peer.
    pub send_window: u64,
    /// Bytes per stream that the peer may have on the way to us.
    pub recv_window: u64,
    /// Most streams at a time.
    pub max_streams: usize,
    /// How silence is dealt with.
    pub liveness: Liveness,
}

impl Settings {
    /// What follows from a handshake: `mux` is what the peer asked for, if it is a kite.
    pub fn agreed(side: Side, mux: Option<MuxParams>, liveness: Liveness) -> Self {
        let legacy = match side {
            Side::Frontend => TO_LEGACY_BACKEND,
            Side::Backend => TO_LEGACY_FRONTEND,
        };
        Self {
            side,
            kite: mux.is_some(),
            max_payload: mux.map_or(legacy, |m| BUFFER_PAYLOAD.min(m.frame as usize)),
            send_window: mux.map_or(LEGACY_WINDOW, |m| u64::from(m.window_kb) * 1024),
            recv_window: u64::from(RECV_WINDOW_KB) * 1024,
            max_streams: MAX_STREAMS,
            liveness,
        }
    }
}

/// What happened; see the methods of [`Mux`] for what to do about it.
#[derive(Debug)]
pub enum Event {
    /// The frontend opened a stream: a visitor came.
    Opened(Sid, Box<Open>),
    /// [`Mux::read`] has something new for this stream.
    Readable(Sid),
    /// [`Mux::capacity`] has grown, or the stream's sending half ended.
    Writable(Sid),
    /// X-PageKite lines came in a control frame.
    Kites(Box<Lines>),
}

/// Why a tunnel cannot go on.
#[derive(Debug, Clone, thiserror::Error)]
pub enum MuxError {
    /// The peer's bytes are no PageKite frames.
    #[error("the peer broke the protocol: {0}")]
    Frame(#[from] FrameError),
    /// The peer opens streams faster than it reads our refusals.
    #[error("the peer opened far more streams than it may, and reads no refusals")]
    Flood,
    /// All tunnels together hold too much, and this one more than its share: a frame of which the end is yet to come.
    #[error("the peer began a frame of {0} bytes, and there is no room for it now")]
    Crowded(usize),
    /// Nothing came for this long, not even an answer to a ping.
    #[error("nothing came from the peer for {} s", .0.as_secs())]
    Silent(Duration),
}

/// Why a stream cannot be opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// As many streams as allowed are open.
    #[error("the tunnel carries as many streams as it may")]
    TooMany,
    /// The tunnel is gone or draining.
    #[error("the tunnel is closing")]
    Closing,
}

/// What [`Mux::read`] found.
#[derive(Debug, PartialEq, Eq)]
pub enum Read {
    /// The next bytes.
    Data(Bytes),
    /// Nothing yet.
    Empty,
    /// The peer has sent everything.
    Ended,
    /// The peer broke off, or the stream is no more.
    Aborted,
}

/// What [`Mux::capacity`] found.
#[derive(Debug, PartialEq, Eq)]
pub enum Capacity {
    /// So many bytes may be written; zero: wait for [`Event::Writable`].
    Bytes(usize),
    /// The peer takes no more.
    Closed,
}

/// One end of a tunnel.
pub struct Mux {
    settings: Settings,
    decoder: Decoder,
    streams: HashMap<Sid, Stream>,
    next_sid: u32,
    /// Streams with little to say, which go first.
    sparse: VecDeque<Sid>,
    ready: VecDeque<Sid>,
    acks: VecDeque<Sid>,
    ends: VecDeque<(Sid, Eof, bool)>,
    kites: VecDeque<Lines>,
    /// KB to be told.
    quota: Option<i64>,
    strays: VecDeque<Sid>,
    recent: VecDeque<Sid>,
    events: VecDeque<Event>,
    inbox_total: usize,
    /// What all streams hold, and the beginning of the next frame, of what all tunnels may.
    share: Share,
    /// Of that the beginning of the next frame.
    unfinished: usize,
    in_flight: u64,
    path: Path,
    overrun: Option<(Sid, Instant)>,
    peer_acks: bool,
    burst: Burst,
    last_heard: Instant,
    last_said: Instant,
    pending_pong: Option<PingText>,
    ping: Ping,
    rtt: Option<Duration>,
}

#[derive(Default)]
struct Ping {
    count: u64,
    wanted: bool,
    sent: Option<Instant>,
    /// When the last PING was sent, answered or not.
    asked: Option<Instant>,
    /// When the first PING was sent that nothing has been heard after.
    owed: Option<Instant>,
    answered: bool,
}

struct Burst {
    frames: usize,
    bytes: usize,
    since: Instant,
}

impl Mux {
    /// An end of a tunnel whose handshake is done.
    pub fn new(settings: Settings, now: Instant) -> Self {
        Self {
            settings,
            decoder: Decoder::new(Limits::ESTABLISHED),
            streams: HashMap::new(),
            next_sid: Sid::FIRST.get(),
            sparse: VecDeque::new(),
            ready: VecDeque::new(),
            acks: VecDeque::new(),
            ends: VecDeque::new(),
            kites: VecDeque::new(),
            quota: None,
            strays: VecDeque::new(),
            recent: VecDeque::new(),
            events: VecDeque::new(),
            inbox_total: 0,
            share: Budget::default().share(),
            unfinished: 0,
            in_flight: 0,
            path: Path::default(),
            overrun: None,
            peer_acks: false,
            burst: Burst {
                frames: 0,
                bytes: 0,
                since: now,
            },
            last_heard: now,
            last_said: now,
            pending_pong: None,
            ping: Ping::default(),
            rtt: None,
        }
    }

    /// What it holds counts with what others hold of this. To be said before anything is held.
    pub fn draw_on(&mut self, budget: &Budget) {
        self.share = budget.share();
    }

    /// Bytes that all its streams hold.
    pub fn held(&self) -> usize {
        self.share.own()
    }

    /// Streams that are open, or have something left to send.
    pub fn streams(&self) -> usize {
        self.streams.len()
    }

    /// The last measured round trip.
    pub fn rtt(&self) -> Option<Duration> {
        self.rtt
    }

    /// The shortest round trip of late, if any was measured.
    pub fn shortest_rtt(&self) -> Option<Duration> {
        self.path.shortest()
    }

    /// Asks the peer for a sign of life if it was not asked for so long. True if it now is.
    pub fn measure(&mut self, every: Duration, now: Instant) -> bool {
        let lately = |at: Instant| now.saturating_duration_since(at) < every;
        if self.ping.wanted || self.ping.asked.is_some_and(lately) {
            return false;
        }
        self.ask();
        self.ping.wanted
    }

    /// A PING was sent, and no PING was ever answered: what a tunnel looks like
    /// whose frontend dies of them.
    pub fn ping_unanswered(&self) -> bool {
        self.ping.count > 0 && !self.ping.answered
    }

    /// How long the peer has owed us a sign of life; `None` if it owes none.
    pub fn overdue(&self, now: Instant) -> Option<Duration> {
        let since = self.ping.owed.filter(|since| *since >= self.last_heard)?;
        Some(now.saturating_duration_since(since))
    }

    /// The next thing that happened.
    pub fn next_event(&mut self) -> Option<Event> {
        let event = self.events.pop_front();
        if event.is_none() {
            self.events.give_back();
        }
        event
    }

    // ------------------------------------------------------------ bytes in

    /// Takes whole frames off `buf`. Stops early while [`Mux::is_blocked`].
    pub fn receive(&mut self, buf: &mut BytesMut, now: Instant) -> Result<(), MuxError> {
        while !self.is_blocked() {
            let Some(frame) = self.decoder.decode(buf)? else {
                break;
            };
            self.last_heard = now;
            match frame {
                Frame::Stream(frame) => self.on_stream(frame, now),
                Frame::Control(control) => self.on_control(control, now),
            }
            if self.ends.len() > 2 * self.settings.max_streams + MAX_STRAYS {
                return Err(MuxError::Flood);
            }
        }
        Ok(())
    }

    /// So many bytes of a frame wait for its end. Counted with what streams hold; where that is too much, streams do not
    /// suffer for a frame that is most of it.
    pub fn hold_unfinished(&mut self, bytes: usize) -> Result<(), MuxError> {
        // Most reads end with a frame.
        if bytes == self.unfinished && bytes == 0 {
            return Ok(());
        }
        self.share.change(self.unfinished, bytes);
        self.unfinished = bytes;
        match self.share.is_over() && bytes > self.share.own() / 2 {
            true => Err(MuxError::Crowded(bytes)),
            false => Ok(()),
        }
    }

    /// An older peer overran a stream: the tunnel is not to be read for now.
    pub fn is_blocked(&self) -> bool {
        self.overrun.is_some()
    }

    fn on_stream(&mut self, frame: StreamFrame, now: Instant) {
        let StreamFrame {
            sid,
            open,
            eof,
            abort,
            skb,
            data,
        } = frame;
        if !self.streams.contains_key(&sid) {
            match open {
                Some(open) if self.settings.side == Side::Backend => {
                    if self.streams.len() >= self.settings.max_streams {
                        self.ends.push_back((sid, Eof::BOTH, true));
                        self.remember(sid);
                        return;
                    }
                    self.streams.insert(sid, Stream::new(None));
                    self.events.push_back(Event::Opened(sid, open));
                    if !self.settings.kite {
                        // The first acknowledgement switches pagekite.py's flow control on (§7.5).
                        self.queue_ack(sid);
                    }
                }
                // An end of an unknown stream is never answered, or two peers could
                // answer each other for ever (§7.3).
                _ => {
                    if !data.is_empty() && !self.recent.contains(&sid) {
                        self.stray(sid);
                    }
                    return;
                }
            }
        }
        if let Some(kb) = skb {
            self.on_ack(sid, kb, now);
        }
        if !data.is_empty() {
            self.on_data(sid, data, now);
        }
        if eof != Eof::NONE {
            self.on_eof(sid, eof, abort);
        }
    }

    fn on_data(&mut self, sid: Sid, data: Bytes, now: Instant) {
        let Some(stream) = self.streams.get_mut(&sid) else {
            return;
        };
        if stream.released || stream.receiving != Receiving::Open {
            return;
        }
        self.inbox_total += data.len();
        stream.push(data, self.inbox_total > COPY_FROM);
        stream.waiting.came(now);
        self.events.push_back(Event::Readable(sid));
        let held = stream.inbox_bytes();
        if self.settings.kite && held as u64 > self.settings.recv_window {
            self.abort(sid);
        } else if !self.settings.kite && held > OVERRUN {
            self.overrun = Some((sid, now + OVERRUN_PATIENCE));
        }
        self.count(sid);
        if self.inbox_total > MAX_INBOX_TOTAL || self.share.is_over() {
            let most_stalled = self.most_stalled(now);
            most_stalled.into_iter().for_each(|sid| self.abort(sid));
        }
    }

    /// Of the streams that hold not much less than most do, the one whose local side has taken nothing for longest, beyond
    /// what is usual for it. A visitor who reads holds much, too, now and then.
    fn most_stalled(&self, now: Instant) -> Option<Sid> {
        let average = self.inbox_total / self.streams.len().max(1);
        let full = self
            .streams
            .iter()
            .filter(|(_, s)| s.inbox_bytes() >= average / 2);
        full.max_by_key(|(sid, s)| (s.waiting.stalled(now), Reverse(**sid)))
            .map(|(sid, _)| *sid)
    }

    fn on_eof(&mut self, sid: Sid, eof: Eof, abort: bool) {
        let Some(stream) = self.streams.get_mut(&sid) else {
            return;
        };
        stream.broken |= abort;
        if eof.read && stream.receiving == Receiving::Open {
            stream.receiving = if abort {
                Receiving::Aborted
            } else {
                Receiving::Ended
            };
            let tell = self.settings.kite && !abort && stream.consume(0, ACK_STEP, 1024);
            self.events.push_back(Event::Readable(sid));
            if tell {
                self.queue_ack(sid);
            }
        }
        let Some(stream) = self.streams.get_mut(&sid) else {
            return;
        };
        if eof.write && stream.sending != Sending::Finished {
            stream.sending = Sending::Stopped;
            stream.opening = None;
            stream.drop_outbox().for_each(drop);
            self.events.push_back(Event::Writable(sid));
        }
        self.count(sid);
        self.forget_if_done(sid);
    }

    /// What a stream holds has changed.
    fn count(&mut self, sid: Sid) {
        if let Some(stream) = self.streams.get_mut(&sid) {
            let held = stream.held();
            self.share.change(stream.counted, held);
            stream.counted = held;
        }
    }

    fn on_ack(&mut self, sid: Sid, kb: u64, now: Instant) {
        self.peer_acks = true;
        if let Some(stream) = self.streams.get_mut(&sid) {
            let before = stream.in_flight();
            let (all, most) = (self.in_flight, self.settings.send_window);
            stream.acknowledged(kb, &mut self.path, all, most, now);
            let passed = before - stream.in_flight();
            self.in_flight -= passed;
            self.path.passed(passed, now);
            self.events.push_back(Event::Writable(sid));
        }
    }

    fn on_control(&mut self, control: Control, now: Instant) {
        if let Some(text) = control.ping {
            // Only the newest is answered: a flood of pings costs one pong.
            self.pending_pong = Some(text);
        }
        if let Some(text) = control.pong {
            self.ping.answered = true;
            if let Some(sent) = self.ping.sent.take()
                && text == ping_text(self.ping.count)
            {
                let rtt = now.saturating_duration_since(sent);
                self.path.note(rtt, now);
                self.rtt = Some(rtt);
            }
        }
        if let (Some(sid), Some(kb)) = (control.sid, control.skb) {
            self.on_ack(sid, kb, now);
        }
        if let Some(lines) = control.kites {
            self.events.push_back(Event::Kites(lines));
        }
    }

    // ------------------------------------------------------------- streams

    /// Opens a stream (frontend only); `first` is the beginning of the visitor's bytes.
    pub fn open(&mut self, open: Open, first: Bytes) -> Result<Sid, OpenError> {
        if self.streams.len() >= self.settings.max_streams {
            return Err(OpenError::TooMany);
        }
        let sid = self.free_sid();
        let mut stream = Stream::new(Some(Box::new(open)));
        stream.write(first.into());
        self.streams.insert(sid, stream);
        self.count(sid);
        self.make_ready(sid);
        Ok(sid)
    }

    /// The next number that no stream has. After the last it is the first's turn again: who had that one ended 100 million
    /// streams ago, for both sides.
    fn free_sid(&mut self) -> Sid {
        loop {
            let sid = Sid::new(self.next_sid).unwrap_or(Sid::FIRST);
            self.next_sid = sid.get() + 1;
            // There are far fewer streams than numbers.
            if !self.streams.contains_key(&sid) {
                return sid;
            }
        }
    }

    /// The next bytes for the local side.
    pub fn read(&mut self, sid: Sid) -> Read {
        let Some(stream) = self.streams.get_mut(&sid) else {
            return Read::Aborted;
        };
        match (stream.pop(), stream.receiving) {
            (Some(data), _) => Read::Data(data),
            (None, Receiving::Open) => Read::Empty,
            (None, Receiving::Ended) => Read::Ended,
            (None, Receiving::Aborted) => Read::Aborted,
        }
    }

    /// The stream was broken off on our side, and what is still held of it is for nobody.
    pub fn is_lost(&self, sid: Sid) -> bool {
        self.streams.get(&sid).is_none_or(|stream| stream.lost)
    }

    /// The local side has written `n` bytes onwards: the peer may send as many more.
    pub fn consumed(&mut self, sid: Sid, n: usize, now: Instant) {
        let Some(stream) = self.streams.get_mut(&sid) else {
            return;
        };
        let (step, drained, listens) = match (self.settings.kite, stream.receiving) {
            (true, Receiving::Open) => (ACK_STEP, DRAINED_STEP, true),
            // Nothing more comes, and the peer still counts the rest.
            (true, ended) => (ACK_STEP, 1024, ended != Receiving::Aborted),
            (false, half) => (LEGACY_ACK_STEP, 1024, half == Receiving::Open),
        };
        let held = stream.inbox_bytes();
        let say = stream.consume(n, step, drained) && listens;
        stream.waiting.took(stream.inbox_bytes() > 0, now);
        self.inbox_total -= held - stream.inbox_bytes();
        if self.overrun.is_some_and(|(over, _)| over == sid) && stream.inbox_bytes() <= OVERRUN / 2
        {
            self.overrun = None;
        }
        self.count(sid);
        if say {
            self.queue_ack(sid);
        }
    }

    /// How much may be written to the peer.
    pub fn capacity(&mut self, sid: Sid) -> Capacity {
        let limit = self.send_limit();
        match self.streams.get_mut(&sid) {
            Some(stream) if stream.sending == Sending::Open => {
                Capacity::Bytes(stream.capacity(limit))
            }
            _ => Capacity::Closed,
        }
    }

    /// More can be written, now or later.
    pub fn takes(&self, sid: Sid) -> bool {
        let stream = self.streams.get(&sid);
        stream.is_some_and(|s| s.sending == Sending::Open)
    }

    /// The peer has said, in order, that it takes no more.
    pub fn is_declined(&self, sid: Sid) -> bool {
        let stream = self.streams.get(&sid);
        stream.is_some_and(|s| s.sending == Sending::Stopped && !s.broken)
    }

    /// Hands payload to the peer; at most [`Mux::capacity`] bytes.
    pub fn write(&mut self, sid: Sid, chunk: Chunk) {
        if let Some(stream) = self.streams.get_mut(&sid) {
            stream.write(chunk);
            self.count(sid);
            self.make_ready(sid);
        }
    }

    /// No more will be written: EOF `1R`, once everything before it has been sent.
    pub fn finish(&mut self, sid: Sid) {
        if let Some(stream) = self.streams.get_mut(&sid)
            && stream.sending == Sending::Open
        {
            stream.sending = Sending::Finishing;
            self.make_ready(sid);
        }
    }

    /// The stream is broken: the peer is told at once, what waits is dropped.
    pub fn abort(&mut self, sid: Sid) {
        self.end(sid, true);
    }

    /// Both halves end now, in order: what was written is sent first.
    pub fn close(&mut self, sid: Sid) {
        self.end(sid, false);
    }

    /// The handle is gone. A stream whose halves have not both ended is aborted.
    pub fn release(&mut self, sid: Sid) {
        let Some(stream) = self.streams.get_mut(&sid) else {
            return;
        };
        stream.released = true;
        let fine = stream.receiving != Receiving::Open && stream.sending != Sending::Open;
        self.inbox_total -= stream.inbox_bytes();
        stream.drop_inbox();
        self.count(sid);
        if self.overrun.is_some_and(|(over, _)| over == sid) {
            self.overrun = None;
        }
        if fine {
            self.forget_if_done(sid)
        } else {
            self.abort(sid)
        }
    }

    fn end(&mut self, sid: Sid, abort: bool) {
        let Some(stream) = self.streams.get_mut(&sid) else {
            return;
        };
        self.inbox_total -= stream.inbox_bytes();
        stream.drop_inbox();
        if self.overrun.is_some_and(|(over, _)| over == sid) {
            self.overrun = None;
        }
        let told = stream.receiving != Receiving::Open
            && matches!(stream.sending, Sending::Finished | Sending::Stopped);
        if abort {
            stream.drop_outbox().for_each(drop);
            let never_opened = stream.opening.take().is_some();
            (stream.broken, stream.lost) = (true, true);
            stream.receiving = Receiving::Aborted;
            stream.sending = Sending::Finished;
            if !told && !never_opened {
                self.ends.push_back((sid, Eof::BOTH, true));
            }
            self.events
                .extend([Event::Readable(sid), Event::Writable(sid)]);
        } else {
            if stream.receiving == Receiving::Open {
                stream.receiving = Receiving::Ended;
                match stream.opening {
                    Some(_) => stream.ends_both = true,
                    None => self.ends.push_back((sid, Eof::WRITE, false)),
                }
            }
            if stream.sending == Sending::Open {
                stream.sending = Sending::Finishing;
                self.make_ready(sid);
            }
        }
        self.count(sid);
        self.forget_if_done(sid);
    }

    fn forget_if_done(&mut self, sid: Sid) {
        let Some(stream) = self.streams.get(&sid) else {
            return;
        };
        let sent = matches!(stream.sending, Sending::Finished | Sending::Stopped);
        if stream.released && sent && stream.receiving != Receiving::Open {
            self.inbox_total -= stream.inbox_bytes();
            self.in_flight -= stream.in_flight();
            self.share.change(stream.counted, 0);
            // Nothing waits for a stream that is gone, lest a peer that opens, ends and reads nothing fill the queues.
            if stream.queued {
                self.sparse.retain(|waits| *waits != sid);
                self.ready.retain(|waits| *waits != sid);
            }
            if stream.ack_queued {
                self.acks.retain(|waits| *waits != sid);
            }
            self.streams.remove(&sid);
            self.streams.give_back();
            self.remember(sid);
        }
    }

    fn remember(&mut self, sid: Sid) {
        if self.recent.len() == RECENT {
            self.recent.pop_front();
        }
        self.recent.push_back(sid);
    }

    fn stray(&mut self, sid: Sid) {
        if self.strays.len() < MAX_STRAYS && !self.strays.contains(&sid) {
            self.strays.push_back(sid);
        }
    }

    fn make_ready(&mut self, sid: Sid) {
        if let Some(stream) = self.streams.get_mut(&sid)
            && !stream.queued
            && stream.has_output()
        {
            stream.queued = true;
            match stream.is_sparse() {
                true => self.sparse.push_back(sid),
                false => self.ready.push_back(sid),
            }
        }
    }

    fn queue_ack(&mut self, sid: Sid) {
        if let Some(stream) = self.streams.get_mut(&sid)
            && !stream.ack_queued
        {
            stream.ack_queued = true;
            self.acks.push_back(sid);
        }
    }

    fn send_limit(&self) -> SendLimit {
        // Every known frontend acknowledges. Among the old backends upagekite does not,
        // and then TCP alone holds us back until a first acknowledgement has come.
        let acknowledges =
            self.settings.kite || self.peer_acks || self.settings.side == Side::Backend;
        // A peer that promises a megabyte or less may be one that acknowledges each quarter of it, and no less.
        let paced = self.settings.kite && self.settings.send_window > UNPACED_WINDOW;
        let window = match paced && self.in_flight > MAX_IN_FLIGHT {
            true => self.settings.send_window.min(MIN_WINDOW),
            false => self.settings.send_window,
        };
        let waiting = self
            .share
            .own()
            .saturating_sub(self.inbox_total + self.unfinished);
        let crowded = waiting > MAX_OUTBOX_TOTAL || self.share.is_tight();
        SendLimit {
            window: acknowledges.then_some(window),
            max_payload: self.settings.max_payload,
            chunk: match self.settings.kite {
                // Copied, and so all the memory that it takes.
                _ if crowded => SMALL_PAYLOAD,
                true => self.path.chunk(BUFFER_PAYLOAD),
                false => LEGACY_CHUNK,
            },
            paced,
            spare: self.path.holds().saturating_sub(self.in_flight),
        }
    }

    // ----------------------------------------------------------- bytes out

    /// Sends X-PageKite lines in a control frame. More than [`MAX_PENDING_KITES`]
    /// that wait are dropped, oldest first: a verdict is outdated by the next.
    pub fn send_kites(&mut self, lines: Lines) {
        if self.kites.len() == MAX_PENDING_KITES {
            self.kites.pop_front();
        }
        self.kites.push_back(lines);
    }

    /// Tells a backend how many KB are left. Only the newest number counts.
    pub fn tell_quota(&mut self, kb: i64) {
        self.quota = Some(kb);
    }

    /// Asks the peer for a sign of life now, whatever the timers say.
    pub fn ask(&mut self) {
        self.ping.wanted = matches!(self.settings.liveness, Liveness::Ping { .. });
    }

    /// There is something to send.
    pub fn has_output(&self) -> bool {
        self.pending_pong.is_some()
            || self.ping.wanted
            || !self.kites.is_empty()
            || self.quota.is_some()
            || !self.ends.is_empty()
            || !self.strays.is_empty()
            || !self.acks.is_empty()
            || !self.sparse.is_empty()
            || !self.ready.is_empty()
    }

    /// Moves about [`BATCH`] bytes of frames to `out`: control frames first, then
    /// streams with little to say, then one chunk of each other ready stream in turn.
    pub fn transmit(&mut self, out: &mut Outgoing, pool: &Pool, now: Instant) {
        if !self.has_output() {
            return;
        }
        self.last_said = now;
        if let Some(text) = self.pending_pong.take() {
            self.put(out, now, |out| frame::put_pong(out, &text));
        }
        if self.ping.wanted {
            self.put_ping(out, now);
        }
        while let Some(lines) = self.kites.pop_front() {
            self.put(out, now, |out| frame::put_kites(out, &lines));
        }
        if let Some(kb) = self.quota.take() {
            self.put(out, now, |out| frame::put_quota(out, kb));
        }
        while out.len() < BATCH
            && let Some((sid, eof, abort)) = self.ends.pop_front()
        {
            self.put(out, now, |out| frame::put_eof(out, sid, eof, abort, &[]));
        }
        while out.len() < BATCH
            && let Some(sid) = self.strays.pop_front()
        {
            self.put(out, now, |out| {
                frame::put_eof(out, sid, Eof::BOTH, true, &[])
            });
            self.remember(sid);
        }
        while out.len() < BATCH
            && let Some(sid) = self.acks.pop_front()
        {
            if let Some(kb) = self.streams.get_mut(&sid).map(Stream::take_ack) {
                self.put(out, now, |out| frame::put_skb(out, sid, kb));
            }
        }
        while out.len() < SPARSE_BATCH
            && let Some(sid) = self.sparse.pop_front()
        {
            self.transmit_stream(sid, out, pool, now);
        }
        while out.len() < BATCH
            && let Some(sid) = self.ready.pop_front().or_else(|| self.sparse.pop_front())
        {
            self.transmit_stream(sid, out, pool, now);
        }
        self.ends.give_back();
        for queue in [&mut self.acks, &mut self.sparse, &mut self.ready] {
            queue.give_back();
        }
    }

    fn put_ping(&mut self, out: &mut Outgoing, now: Instant) {
        self.ping.wanted = false;
        self.ping.count += 1;
        self.ping.sent = Some(now);
        self.ping.asked = Some(now);
        // Asking again makes the debt no younger.
        if self.overdue(now).is_none() {
            self.ping.owed = Some(now);
        }
        let text = ping_text(self.ping.count);
        self.put(out, now, |out| frame::put_ping(out, &text));
    }

    fn transmit_stream(&mut self, sid: Sid, out: &mut Outgoing, pool: &Pool, now: Instant) {
        let Some(stream) = self.streams.get_mut(&sid) else {
            return;
        };
        stream.queued = false;
        let before = stream.in_flight();
        if let Some(open) = stream.opening.take() {
            let first = stream.next_small(now).unwrap_or_default();
            self.in_flight += stream.in_flight() - before;
            // An older backend gets frames of 1400 bytes, headers included (§6.5).
            let room = self
                .settings
                .max_payload
                .saturating_sub(if self.settings.kite { 0 } else { OPEN_HEADERS });
            let rest = first.slice(first.len().min(room)..);
            let head = first.slice(..first.len().min(room));
            self.put(out, now, |out| frame::put_open(out, sid, &open, &head));
            // A dead circuit is to be found out by its first visitor, and a live one not to be burdened: most answers come at once.
            if self.settings.kite && self.overdue(now).is_none() {
                self.ping.owed = Some(now);
            }
            if !rest.is_empty() {
                self.put_data(sid, rest.into(), out, pool, now);
            }
            self.count(sid);
            if !self.settings.kite {
                self.put(out, now, |out| frame::put_skb(out, sid, 0));
            }
        } else if let Some(chunk) = stream.next_chunk(now) {
            self.in_flight += stream.in_flight() - before;
            self.put_data(sid, chunk, out, pool, now);
            self.count(sid);
            self.events.push_back(Event::Writable(sid));
        } else if stream.sending == Sending::Finishing {
            stream.sending = Sending::Finished;
            let eof = match stream.ends_both {
                true => Eof::BOTH,
                false => Eof::READ,
            };
            self.put(out, now, |out| frame::put_eof(out, sid, eof, false, &[]));
            self.forget_if_done(sid);
        }
        self.make_ready(sid);
    }

    fn put(&mut self, out: &mut Outgoing, now: Instant, write: impl FnOnce(&mut BytesMut)) {
        let before = out.len();
        out.put(write);
        self.spread(out, before, now);
    }

    fn put_data(&mut self, sid: Sid, chunk: Chunk, out: &mut Outgoing, pool: &Pool, now: Instant) {
        let before = out.len();
        out.put_data(sid, chunk, self.settings.max_payload, pool);
        self.spread(out, before, now);
    }

    /// Keeps frames to an older peer so far apart, with filler if need be, that no
    /// single read of its can hold a fatal number of them.
    fn spread(&mut self, out: &mut Outgoing, before: usize, now: Instant) {
        let frames = out.take_frames();
        if self.settings.kite {
            return;
        }
        let burst = &mut self.burst;
        burst.frames += frames;
        burst.bytes += out.len() - before;
        let stale = now.saturating_duration_since(burst.since) > BURST_MEMORY;
        if burst.frames >= BURST_FRAMES && burst.bytes < BURST_BYTES && !stale {
            let mut filler = BURST_BYTES - burst.bytes;
            while filler > 0 {
                // A small peer holds a frame as a whole.
                let some = filler.min(TO_LEGACY_BACKEND);
                out.put(|out| frame::put_noop(out, some));
                filler -= some;
            }
            out.take_frames();
        } else if burst.bytes < BURST_BYTES && !stale {
            return;
        }
        *burst = Burst {
            frames: 0,
            bytes: 0,
            since: now,
        };
    }

    // ---------------------------------------------------------------- time

    /// When [`Mux::handle_timeout`] wants to be called, at the latest.
    pub fn next_timeout(&self) -> Instant {
        if let Some((_, until)) = self.overrun {
            return until;
        }
        match self.settings.liveness {
            Liveness::Ping { .. } if let Some(owed) = self.unasked() => owed + OPENING_PATIENCE,
            Liveness::Ping { dead, .. } if self.asked() => self.last_heard + dead,
            Liveness::Ping { ask, .. } => self.last_heard + ask,
            Liveness::Noop { every } => self.last_said + every,
        }
    }

    /// A PING was sent, or waits to be sent, since the peer was last heard.
    fn asked(&self) -> bool {
        self.ping.wanted || self.ping.sent.is_some_and(|sent| sent >= self.last_heard)
    }

    /// Since when a visitor has waited for a sign of life that no PING has asked for.
    fn unasked(&self) -> Option<Instant> {
        self.ping
            .owed
            .filter(|owed| *owed >= self.last_heard && !self.asked())
    }

    /// Looks at the time: asks a silent peer, gives up a dead one, ends a stream
    /// that has held up the tunnel.
    pub fn handle_timeout(&mut self, now: Instant) -> Result<(), MuxError> {
        if let Some((sid, until)) = self.overrun
            && now >= until
        {
            self.abort(sid);
            self.overrun = None;
        }
        match self.settings.liveness {
            Liveness::Ping { ask, dead } => {
                let silence = now.saturating_duration_since(self.last_heard);
                // While we refuse to read, silence is our own doing.
                if silence >= dead && self.asked() && !self.is_blocked() {
                    return Err(MuxError::Silent(silence));
                }
                let late = |owed| now.saturating_duration_since(owed) >= OPENING_PATIENCE;
                if (silence >= ask && !self.asked()) || self.unasked().is_some_and(late) {
                    self.ping.wanted = true;
                }
            }
            Liveness::Noop { every } => {
                if now.saturating_duration_since(self.last_said) >= every {
                    self.last_said = now;
                    self.send_kites(Lines::default());
                }
            }
        }
        Ok(())
    }
}

/// What a PING says: its number, not our clock, which would be a fingerprint (§14.1).
fn ping_text(count: u64) -> PingText {
    PingText::new(count.to_string().as_bytes())
}

/// Room for the headers of an opening frame to an older backend, in bytes.
const OPEN_HEADERS: usize = 400;

#[cfg(test)]
mod tests;
