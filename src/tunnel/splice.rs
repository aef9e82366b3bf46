//! A stream and a local socket, joined: bytes pass both ways as they are, each half
//! ends on its own, and a break on one side breaks the other.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

use super::buffer::Chunk;
use super::{Half, TunnelStream};

/// The most pieces handed to the local socket in one write.
const MAX_PIECES: usize = 16;
/// How long the local side may take for what had come before the peer or the tunnel broke off.
pub const LAST_PIECES: Duration = Duration::from_secs(10);

/// A socket on our own side: a visitor's, or the origin's.
pub trait Local: AsyncRead + AsyncWrite + Unpin {
    /// Makes the coming drop a reset instead of an orderly end, so that whoever is
    /// at the other end does not take what it got for everything.
    fn reset(&self);
}

/// Looks at the bytes that pass, and may object. It cannot change them.
pub trait Inspect {
    /// Bytes from the visitor, each once and in order.
    fn visitor_said(&mut self, bytes: &[u8]) -> Result<(), Objection>;
    /// Bytes from the origin, each once and in order.
    fn origin_said(&mut self, bytes: &[u8]) -> Result<(), Objection>;
    /// Nothing will be objected to any more.
    fn is_open(&self) -> bool;
    /// Ready when the stream is to end, whatever passes. Asked again when the task is woken.
    fn poll_objection(&mut self, _: &mut Context<'_>) -> Poll<Objection> {
        Poll::Pending
    }
}

/// An inspector wants the stream ended.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Objection(pub String);

/// Bytes that pass, for whoever wants to know meanwhile. Many splices may add to one.
#[derive(Debug, Default)]
pub struct Flow {
    from_tunnel: AtomicU64,
    to_tunnel: AtomicU64,
}

impl Flow {
    /// So many bytes more were taken out of a tunnel.
    pub fn from_tunnel(&self, n: u64) {
        self.from_tunnel.fetch_add(n, Ordering::Relaxed);
    }

    /// So many bytes more were put into a tunnel.
    pub fn to_tunnel(&self, n: u64) {
        self.to_tunnel.fetch_add(n, Ordering::Relaxed);
    }

    /// From tunnels, and to them.
    pub fn get(&self) -> (u64, u64) {
        let load = |n: &AtomicU64| n.load(Ordering::Relaxed);
        (load(&self.from_tunnel), load(&self.to_tunnel))
    }
}

/// What went each way, in bytes, and how it ended.
#[derive(Debug)]
pub struct Spliced {
    /// From the tunnel to the local socket.
    pub from_tunnel: u64,
    /// From the local socket to the tunnel.
    pub to_tunnel: u64,
    /// The peer wanted no more from the local socket before that had ended.
    pub declined: bool,
    /// `Ok` if both halves ended in order.
    pub end: Result<(), Broken>,
}

/// Why a splice did not end in order.
#[derive(Debug, thiserror::Error)]
pub enum Broken {
    /// The peer or the tunnel broke off.
    #[error("the other end of the tunnel broke the stream off")]
    Tunnel,
    /// The local socket broke.
    #[error("the local connection broke: {0}")]
    Local(std::io::ErrorKind),
    /// The inspector ended it.
    #[error(transparent)]
    Objection(#[from] Objection),
}

/// Joins `stream` (whose other end is the visitor) with the origin's socket or the
/// reverse, until both halves have ended or either side breaks.
///
/// `held` is what has been taken from the stream already, and not yet passed on.
/// `inspect`, if any, sees the tunnel's bytes as the visitor's. What passes is added to `flow`.
pub async fn splice<L: Local>(
    stream: TunnelStream,
    local: L,
    held: VecDeque<Bytes>,
    inspect: Option<Box<dyn Inspect + Send>>,
    flow: Arc<Flow>,
) -> Spliced {
    let mut join = Join {
        flow,
        stream,
        local,
        inspect,
        pieces: held,
        inbound: Inbound::Reading,
        outbound_done: false,
        declined: false,
        broken: None,
        flushed: true,
        from_tunnel: 0,
        to_tunnel: 0,
    };
    let end = std::future::poll_fn(|cx| join.poll(cx)).await;
    let Join {
        stream,
        local,
        from_tunnel,
        to_tunnel,
        declined,
        ..
    } = join;
    if end.is_err() {
        local.reset();
        stream.abort();
    }
    Spliced {
        from_tunnel,
        to_tunnel,
        declined,
        end,
    }
}

struct Join<L> {
    stream: TunnelStream,
    local: L,
    inspect: Option<Box<dyn Inspect + Send>>,
    flow: Arc<Flow>,
    /// From the tunnel, for the local socket.
    pieces: VecDeque<Bytes>,
    inbound: Inbound,
    outbound_done: bool,
    declined: bool,
    /// Set when nobody hears the local side any more, and nobody has told it so in order: until then it may take the last pieces.
    broken: Option<Pin<Box<Sleep>>>,
    flushed: bool,
    from_tunnel: u64,
    to_tunnel: u64,
}

#[derive(PartialEq, Eq)]
enum Inbound {
    Reading,
    /// The peer's half has ended; the local socket is to be told.
    Ending,
    Done,
}

impl<L: Local> Join<L> {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        if let Some(inspect) = &mut self.inspect
            && let Poll::Ready(objection) = inspect.poll_objection(cx)
        {
            return Poll::Ready(Err(objection.into()));
        }
        if let Poll::Ready(Err(e)) = self.poll_inbound(cx) {
            return Poll::Ready(Err(e));
        }
        if let Poll::Ready(Err(e)) = self.poll_outbound(cx) {
            return Poll::Ready(Err(e));
        }
        if self.inspect.as_ref().is_some_and(|i| i.is_open()) {
            self.inspect = None;
        }
        if let Some(patience) = &mut self.broken
            && (self.inbound == Inbound::Done || patience.as_mut().poll(cx).is_ready())
        {
            return Poll::Ready(Err(Broken::Tunnel));
        }
        if self.inbound == Inbound::Done && self.outbound_done {
            Poll::Ready(Ok(()))
        } else {
            Poll::Pending
        }
    }

    /// Tunnel to local socket.
    fn poll_inbound(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        loop {
            if !self.pieces.is_empty() {
                match self.poll_write_local(cx) {
                    Poll::Ready(written) => written?,
                    Poll::Pending => {
                        ready!(self.stream.poll_lost(cx));
                        return Poll::Ready(Err(Broken::Tunnel));
                    }
                }
                continue;
            }
            match self.inbound {
                Inbound::Done => return Poll::Ready(Ok(())),
                Inbound::Ending => {
                    // The local side may be gone already; that ends the half as well.
                    let _ = ready!(Pin::new(&mut self.local).poll_shutdown(cx));
                    self.inbound = Inbound::Done;
                }
                Inbound::Reading => match self.stream.poll_read(cx, &mut self.pieces, MAX_PIECES) {
                    Poll::Ready(Ok(half)) => {
                        if let Some(inspect) = &mut self.inspect {
                            self.pieces
                                .iter()
                                .try_for_each(|piece| inspect.visitor_said(piece))?;
                        }
                        if half == Half::Ended {
                            self.inbound = Inbound::Ending;
                        }
                    }
                    Poll::Ready(Err(_)) => return Poll::Ready(Err(Broken::Tunnel)),
                    Poll::Pending => {
                        if !self.flushed {
                            ready!(Pin::new(&mut self.local).poll_flush(cx)).map_err(broke)?;
                            self.flushed = true;
                        }
                        return Poll::Pending;
                    }
                },
            }
        }
    }

    fn poll_write_local(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        let mut slices = [IoSlice::new(&[]); MAX_PIECES];
        let mut count = 0;
        for (slot, piece) in slices.iter_mut().zip(&self.pieces) {
            *slot = IoSlice::new(piece);
            count += 1;
        }
        let slices = slices.get(..count).unwrap_or_default();
        let written =
            ready!(Pin::new(&mut self.local).poll_write_vectored(cx, slices)).map_err(broke)?;
        if written == 0 {
            return Poll::Ready(Err(Broken::Local(std::io::ErrorKind::WriteZero)));
        }
        self.flushed = false;
        self.from_tunnel += written as u64;
        self.flow.from_tunnel(written as u64);
        let mut left = written;
        while let Some(piece) = self.pieces.front_mut() {
            if left < piece.len() {
                piece.advance(left);
                break;
            }
            left -= piece.len();
            self.pieces.pop_front();
        }
        self.stream.consumed(written);
        Poll::Ready(Ok(()))
    }

    /// Local socket to tunnel.
    fn poll_outbound(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        while !self.outbound_done {
            let Some(capacity) = ready!(self.stream.poll_capacity(cx)) else {
                // What the local side still says is for nobody. If nobody has told us so, it must not take it for heard.
                self.declined = self.stream.is_declined();
                if !self.declined {
                    self.broken = Some(Box::pin(sleep(LAST_PIECES)));
                }
                self.outbound_done = true;
                break;
            };
            // The buffer goes back at once if there is nothing to read: idle streams hold none.
            let mut buffer = self.stream.pool().take(capacity);
            let mut room = ReadBuf::new(buffer.room(capacity));
            let read = Pin::new(&mut self.local).poll_read(cx, &mut room);
            let n = room.filled().len();
            match read {
                Poll::Ready(Ok(())) if n > 0 => {
                    buffer.filled(n);
                    if let Some(inspect) = &mut self.inspect {
                        inspect.origin_said(buffer.as_slice())?;
                    }
                    self.to_tunnel += n as u64;
                    self.flow.to_tunnel(n as u64);
                    let pool = self.stream.pool().clone();
                    self.stream.write(Chunk::new(buffer, &pool));
                }
                Poll::Ready(Ok(())) => {
                    self.stream.pool().give(buffer);
                    self.stream.finish();
                    self.outbound_done = true;
                }
                Poll::Ready(Err(e)) => {
                    self.stream.pool().give(buffer);
                    return Poll::Ready(Err(broke(e)));
                }
                Poll::Pending => {
                    self.stream.pool().give(buffer);
                    // Who is silent is not to be waited for when nobody listens any more.
                    ready!(self.stream.poll_stopped(cx));
                }
            }
        }
        Poll::Ready(Ok(()))
    }
}

fn broke(error: std::io::Error) -> Broken {
    Broken::Local(error.kind())
}

impl Local for tokio::io::DuplexStream {
    /// A pipe in memory has no reset; tests see its end.
    fn reset(&self) {}
}
