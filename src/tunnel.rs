//! One tunnel: a connection that carries many streams, over anything that is
//! [`AsyncRead`] and [`AsyncWrite`]. This room does not know who dialled it.
//!
//! ```text
//!  TunnelStream ─┐                    ┌─ driver ── socket
//!  TunnelStream ─┼── Mutex<Mux + wakers> ┤
//!  Tunnel ───────┘   (sans-IO, mux.rs)   └─ timers
//! ```
//!
//! The state machine stands behind one mutex that is never held across an await;
//! handles lock it, change it, and wake the [`driver`]. Streams own no task and no
//! channel of their own: an idle one costs its entry in the map and nothing else.
//!
//! Both ends in one program, over a pipe in memory:
//!
//! ```
//! use bytes::{Bytes, BytesMut};
//! use kite::tunnel::buffer::{BUFFER_PAYLOAD, Pool};
//! use kite::tunnel::mux::{Liveness, MAX_STREAMS, Settings, Side};
//! use kite::tunnel::Tunnel;
//! use kite::wire::frame::Open;
//!
//! let settings = |side| Settings {
//!     side,
//!     kite: true,
//!     max_payload: BUFFER_PAYLOAD,
//!     send_window: 256 * 1024,
//!     recv_window: 256 * 1024,
//!     max_streams: MAX_STREAMS,
//!     liveness: Liveness::DEFAULT,
//! };
//! # tokio::runtime::Runtime::new().unwrap().block_on(async {
//! let (public, hidden) = tokio::io::duplex(64 * 1024);
//! let frontend = Tunnel::start(public, BytesMut::new(), settings(Side::Frontend), Pool::new());
//! let backend = Tunnel::start(hidden, BytesMut::new(), settings(Side::Backend), Pool::new());
//!
//! let mut open = Open::default();
//! (open.proto, open.host) = ("raw".into(), "echo.example".into());
//! let mut visitor = frontend.open(open, Bytes::from_static(b"hello")).unwrap();
//! visitor.finish();
//!
//! let mut came = backend.accept().await.unwrap();
//! assert_eq!(came.open.host, "echo.example");
//! let said = came.stream.read().await.unwrap().unwrap();
//! came.stream.write(Bytes::from(said.to_ascii_uppercase()).into());
//! assert_eq!(&visitor.read().await.unwrap().unwrap()[..], b"HELLO");
//! # });
//! ```

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite};

pub mod buffer;
pub mod driver;
mod give_back;
pub mod mux;
pub mod pace;
pub mod splice;
pub mod stream;
pub mod waiting;

use crate::wire::frame::Open;
use crate::wire::{Lines, Sid};
use buffer::{Chunk, Pool};
use give_back::GiveBack;
use mux::{Capacity, Event, Mux, MuxError, OpenError, Read, Settings};

/// Control frames with X-PageKite lines kept for whoever calls [`Tunnel::next_kites`].
const MAX_KITES_WAITING: usize = 64;
/// How long a peer may owe a sign of life until other tunnels are preferred. A round trip
/// over Tor takes one second, and some when the circuit is full.
pub const SUSPECT_AFTER: Duration = Duration::from_secs(5);

/// Why a tunnel ended.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Ended {
    /// The peer closed the connection in order.
    #[error("the peer closed the tunnel")]
    ByPeer,
    /// We closed it.
    #[error("the tunnel was closed on our side: {0}")]
    ByUs(&'static str),
    /// The connection broke.
    #[error("the connection broke: {0}")]
    Io(std::io::ErrorKind),
    /// The peer broke the protocol, or fell silent.
    #[error(transparent)]
    Mux(#[from] MuxError),
}

/// A tunnel whose handshake is done: opens streams (frontend) or takes them (backend).
///
/// Clones are handles to the same tunnel. Its driver ends when the connection does,
/// or when [`Tunnel::close`] is called; all its streams are aborted then.
#[derive(Clone)]
pub struct Tunnel(Arc<Shared>);

/// What the handles and the driver share.
struct Shared {
    state: Mutex<State>,
    pool: Pool,
}

struct State {
    mux: Mux,
    wakers: HashMap<Sid, Wakers>,
    driver: Option<Waker>,
    opened: VecDeque<(Sid, Box<Open>)>,
    kites: VecDeque<Lines>,
    waiting: Vec<Waker>,
    closing: Option<&'static str>,
    ended: Option<Ended>,
    /// The connection is closed, too.
    gone: bool,
}

#[derive(Default)]
struct Wakers {
    read: Option<Waker>,
    write: Option<Waker>,
    /// To be told when no more can be written.
    stop: Option<Waker>,
}

/// A stream that the frontend has opened for a visitor.
pub struct Incoming {
    /// For whom it is.
    pub open: Box<Open>,
    /// Its bytes.
    pub stream: TunnelStream,
}

impl Tunnel {
    /// Starts the driver of a tunnel on `io`. `read_ahead` is what was read of the
    /// connection beyond the handshake.
    pub fn start<Io>(io: Io, read_ahead: bytes::BytesMut, settings: Settings, pool: Pool) -> Tunnel
    where
        Io: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let shared = Arc::new(Shared::new(settings, pool));
        tokio::spawn(driver::drive(io, read_ahead, shared.clone()));
        Tunnel(shared)
    }

    /// Opens a stream; `first` is the beginning of the visitor's bytes.
    pub fn open(&self, open: Open, first: Bytes) -> Result<TunnelStream, OpenError> {
        let mut state = self.0.lock();
        if state.ended.is_some() || state.closing.is_some() {
            return Err(OpenError::Closing);
        }
        let sid = state.mux.open(open, first)?;
        state.wakers.insert(sid, Wakers::default());
        state.wake_driver();
        Ok(TunnelStream {
            shared: self.0.clone(),
            sid,
        })
    }

    /// The next stream that the frontend opened; `None` once the tunnel has ended.
    pub async fn accept(&self) -> Option<Incoming> {
        std::future::poll_fn(|cx| {
            let mut state = self.0.lock();
            if let Some((sid, open)) = state.opened.pop_front() {
                state.opened.give_back();
                let stream = TunnelStream {
                    shared: self.0.clone(),
                    sid,
                };
                return Poll::Ready(Some(Incoming { open, stream }));
            }
            state.wait_for_end(cx).map(|_| None)
        })
        .await
    }

    /// The next X-PageKite lines that came in a control frame; `None` at the end.
    pub async fn next_kites(&self) -> Option<Lines> {
        std::future::poll_fn(|cx| {
            let mut state = self.0.lock();
            if let Some(lines) = state.kites.pop_front() {
                return Poll::Ready(Some(lines));
            }
            state.wait_for_end(cx).map(|_| None)
        })
        .await
    }

    /// Sends X-PageKite lines in a control frame.
    pub fn send_kites(&self, lines: Lines) {
        let mut state = self.0.lock();
        state.mux.send_kites(lines);
        state.wake_driver();
    }

    /// Tells the backend how many KB its kites may still carry.
    pub fn tell_quota(&self, kb: i64) {
        let mut state = self.0.lock();
        state.mux.tell_quota(kb);
        state.wake_driver();
    }

    /// Asks the peer for a sign of life now. A dead one is found out sooner.
    pub fn ask(&self) {
        let mut state = self.0.lock();
        state.mux.ask();
        state.wake_driver();
    }

    /// Closes the tunnel: what has been written is still sent, streams are aborted.
    pub fn close(&self, why: &'static str) {
        let mut state = self.0.lock();
        state.closing.get_or_insert(why);
        state.wake_driver();
    }

    /// Waits for the end of the tunnel, and of its connection.
    pub async fn ended(&self) -> Ended {
        std::future::poll_fn(|cx| {
            let mut state = self.0.lock();
            match &state.ended {
                Some(ended) if state.gone => Poll::Ready(ended.clone()),
                _ => {
                    state.wait(cx);
                    Poll::Pending
                }
            }
        })
        .await
    }

    /// True once the tunnel has ended or is being closed.
    pub fn is_closed(&self) -> bool {
        let state = self.0.lock();
        state.ended.is_some() || state.closing.is_some()
    }

    /// Streams that are open now.
    pub fn streams(&self) -> usize {
        self.0.lock().mux.streams()
    }

    /// The last measured round trip.
    pub fn rtt(&self) -> Option<Duration> {
        self.0.lock().mux.rtt()
    }

    /// The shortest round trip of late: what the path takes by itself, without queues at its ends.
    pub fn shortest_rtt(&self) -> Option<Duration> {
        self.0.lock().mux.shortest_rtt()
    }

    /// Has the round trip measured, if that was not done for so long.
    pub fn measure(&self, every: Duration) {
        let mut state = self.0.lock();
        if state.mux.measure(every, Instant::now()) {
            state.wake_driver();
        }
    }

    /// True if the peer was asked for a sign of life and has given none for [`SUSPECT_AFTER`]:
    /// visitors had better take another tunnel.
    pub fn is_suspect(&self) -> bool {
        let overdue = self.0.lock().mux.overdue(Instant::now());
        overdue.is_some_and(|since| since >= SUSPECT_AFTER)
    }

    /// See [`Mux::ping_unanswered`].
    pub fn ping_unanswered(&self) -> bool {
        self.0.lock().mux.ping_unanswered()
    }

    /// Two handles to one tunnel?
    pub fn is_same(&self, other: &Tunnel) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Shared {
    fn new(settings: Settings, pool: Pool) -> Self {
        let mut mux = Mux::new(settings, Instant::now());
        mux.draw_on(pool.budget());
        Self {
            state: Mutex::new(State {
                mux,
                wakers: HashMap::new(),
                driver: None,
                opened: VecDeque::new(),
                kites: VecDeque::new(),
                waiting: Vec::new(),
                closing: None,
                ended: None,
                gone: false,
            }),
            pool,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // The state is consistent after every call; a panic elsewhere does not spoil it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn wake_driver(&mut self) {
        if let Some(waker) = self.driver.take() {
            waker.wake();
        }
    }

    fn wake_waiting(&mut self) {
        self.waiting.drain(..).for_each(Waker::wake);
    }

    fn wait_for_end(&mut self, cx: &mut Context<'_>) -> Poll<Ended> {
        if let Some(ended) = &self.ended {
            return Poll::Ready(ended.clone());
        }
        self.wait(cx);
        Poll::Pending
    }

    fn wait(&mut self, cx: &Context<'_>) {
        if !self.waiting.iter().any(|w| w.will_wake(cx.waker())) {
            self.waiting.push(cx.waker().clone());
        }
    }

    /// Passes on what the mux has to tell.
    fn dispatch(&mut self) {
        while let Some(event) = self.mux.next_event() {
            match event {
                Event::Opened(sid, open) => {
                    self.wakers.insert(sid, Wakers::default());
                    self.opened.push_back((sid, open));
                    self.wake_waiting();
                }
                Event::Readable(sid) => wake(self.wakers.get_mut(&sid).map(|w| &mut w.read)),
                Event::Writable(sid) => {
                    if let Some(wakers) = self.wakers.get_mut(&sid) {
                        wake(Some(&mut wakers.write));
                        if wakers.stop.is_some() && !self.mux.takes(sid) {
                            wake(Some(&mut wakers.stop));
                        }
                    }
                }
                Event::Kites(lines) => {
                    if self.kites.len() < MAX_KITES_WAITING {
                        self.kites.push_back(*lines);
                    }
                    self.wake_waiting();
                }
            }
        }
    }

    /// The connection is gone: everyone who waits is told.
    fn end(&mut self, why: Ended) {
        self.ended.get_or_insert(why);
        self.driver = None;
        // Streams that nobody has taken yet will not be.
        for (sid, _) in std::mem::take(&mut self.opened) {
            self.wakers.remove(&sid);
        }
        for wakers in self.wakers.values_mut() {
            wake(Some(&mut wakers.read));
            wake(Some(&mut wakers.write));
            wake(Some(&mut wakers.stop));
        }
        self.wake_waiting();
    }
}

fn wake(slot: Option<&mut Option<Waker>>) {
    if let Some(waker) = slot.and_then(Option::take) {
        waker.wake();
    }
}

/// One end of one stream. Dropping it before both halves have ended aborts it.
pub struct TunnelStream {
    shared: Arc<Shared>,
    sid: Sid,
}

impl TunnelStream {
    /// The stream's number, for log lines.
    pub fn sid(&self) -> Sid {
        self.sid
    }

    /// The pool whose buffers this stream's payload travels in.
    pub fn pool(&self) -> &Pool {
        &self.shared.pool
    }

    /// Takes what the peer has sent: at least one piece, and all that is there up to
    /// `max` pieces. `Ready` with nothing added means that the half has ended as said.
    pub fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        into: &mut VecDeque<Bytes>,
        max: usize,
    ) -> Poll<Result<Half, Aborted>> {
        let mut state = self.shared.lock();
        let before = into.len();
        loop {
            match state.mux.read(self.sid) {
                Read::Data(data) => into.push_back(data),
                _ if into.len() > before => return Poll::Ready(Ok(Half::Open)),
                Read::Ended => return Poll::Ready(Ok(Half::Ended)),
                Read::Aborted => return Poll::Ready(Err(Aborted)),
                Read::Empty if state.ended.is_some() => return Poll::Ready(Err(Aborted)),
                Read::Empty => {
                    if let Some(wakers) = state.wakers.get_mut(&self.sid) {
                        set(&mut wakers.read, cx);
                    }
                    return Poll::Pending;
                }
            }
            if into.len() >= max {
                return Poll::Ready(Ok(Half::Open));
            }
        }
    }

    /// The next bytes from the peer; `None` at the end of its half.
    pub async fn read(&mut self) -> Result<Option<Bytes>, Aborted> {
        let mut one = VecDeque::new();
        std::future::poll_fn(|cx| self.poll_read(cx, &mut one, 1)).await?;
        Ok(one.pop_front())
    }

    /// Ready once the stream was broken off on our side. Whoever cannot pass on what it has read asks this, or it would hold
    /// that for as long as its own side takes nothing.
    pub fn poll_lost(&mut self, cx: &mut Context<'_>) -> Poll<Aborted> {
        let mut state = self.shared.lock();
        if state.mux.is_lost(self.sid) {
            return Poll::Ready(Aborted);
        }
        if let Some(wakers) = state.wakers.get_mut(&self.sid) {
            set(&mut wakers.read, cx);
        }
        Poll::Pending
    }

    /// `n` bytes of what was read have been passed on: the peer may send as many more.
    pub fn consumed(&self, n: usize) {
        let mut state = self.shared.lock();
        let was_blocked = state.mux.is_blocked();
        state.mux.consumed(self.sid, n, Instant::now());
        if state.mux.has_output() || (was_blocked && !state.mux.is_blocked()) {
            state.wake_driver();
        }
    }

    /// How many bytes the peer takes now (more than zero), or `Ended` if it takes no more.
    pub fn poll_capacity(&mut self, cx: &mut Context<'_>) -> Poll<Option<usize>> {
        let mut state = self.shared.lock();
        if state.ended.is_some() {
            return Poll::Ready(None);
        }
        match state.mux.capacity(self.sid) {
            Capacity::Closed => Poll::Ready(None),
            Capacity::Bytes(0) => {
                if let Some(wakers) = state.wakers.get_mut(&self.sid) {
                    set(&mut wakers.write, cx);
                }
                Poll::Pending
            }
            Capacity::Bytes(n) => Poll::Ready(Some(n)),
        }
    }

    /// Ready once no more can be written: for whoever has nothing to write now.
    pub fn poll_stopped(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let mut state = self.shared.lock();
        if state.ended.is_some() || !state.mux.takes(self.sid) {
            return Poll::Ready(());
        }
        if let Some(wakers) = state.wakers.get_mut(&self.sid) {
            set(&mut wakers.stop, cx);
        }
        Poll::Pending
    }

    /// That the peer takes no more is its own word, in order; else the stream, or the tunnel, broke off.
    pub fn is_declined(&self) -> bool {
        self.shared.lock().mux.is_declined(self.sid)
    }

    /// Hands payload to the peer; at most what [`TunnelStream::poll_capacity`] said.
    pub fn write(&self, chunk: Chunk) {
        self.change(|mux, sid| mux.write(sid, chunk));
    }

    /// No more will be written: the peer sees our half end, after all that was written.
    pub fn finish(&self) {
        self.change(Mux::finish);
    }

    /// Ends both halves in order; what was written is still sent.
    pub fn close(self) {
        self.change(Mux::close);
    }

    /// Breaks the stream off: the peer sees an abort.
    pub fn abort(self) {
        self.change(Mux::abort);
    }

    fn change(&self, act: impl FnOnce(&mut Mux, Sid)) {
        let mut state = self.shared.lock();
        act(&mut state.mux, self.sid);
        state.dispatch();
        state.wake_driver();
    }
}

impl Drop for TunnelStream {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.wakers.remove(&self.sid);
        state.wakers.give_back();
        state.mux.release(self.sid);
        state.wake_driver();
    }
}

/// How a stream's receiving half stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Half {
    /// There may be more.
    Open,
    /// The peer has sent everything.
    Ended,
}

/// The peer, or the tunnel, broke the stream off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the stream was broken off")]
pub struct Aborted;

fn set(slot: &mut Option<Waker>, cx: &Context<'_>) {
    match slot {
        Some(waker) => waker.clone_from(cx.waker()),
        None => *slot = Some(cx.waker().clone()),
    }
}
