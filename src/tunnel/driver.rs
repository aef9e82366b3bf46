//! The task that owns a tunnel's connection: it moves bytes between the socket and
//! the [`Mux`](super::mux::Mux), and watches the clock for it.

use std::future::Future;
use std::io::IoSlice;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::time::Sleep;

use super::buffer::{MAX_SLICES, Outgoing, Reading};
use super::{Ended, Shared};

/// Bytes asked of the socket at first; doubled up to [`READ_MAX`] while reads come full.
const READ_MIN: usize = 16 * 1024;
/// The most asked of the socket at once.
const READ_MAX: usize = 256 * 1024;
/// Blocks that a busy tunnel reads into by turns, each again once all its bytes have been passed on: fresh memory costs
/// a fault of each of its pages.
const MAX_BLOCKS: usize = 8;
/// After so many small reads in a row a tunnel is no longer busy.
const SMALL_READS: usize = 64;
/// Rounds of writing and reading before other tasks get their turn.
const ROUNDS: usize = 8;
/// How long a closing tunnel may take to send what was written, and the peer to close its side.
pub const CLOSE_PATIENCE: Duration = Duration::from_secs(5);

/// Drives the tunnel to its end.
pub(super) async fn drive<Io>(io: Io, read_ahead: BytesMut, shared: Arc<Shared>)
where
    Io: AsyncRead + AsyncWrite + Unpin,
{
    let mut driver = Driver::new(io, read_ahead, shared.clone());
    let why = std::future::poll_fn(|cx| driver.poll(cx)).await;
    let mut state = shared.lock();
    state.end(why);
    state.gone = true;
    state.wake_waiting();
}

struct Driver<Io> {
    io: Io,
    /// Read, and not yet taken by the mux.
    inbound: BytesMut,
    /// What was read into before, and how long each is in all.
    blocks: Vec<(BytesMut, usize)>,
    /// How long is what is read into now.
    block: usize,
    /// Both, of what all tunnels may have.
    reading: Reading,
    /// `inbound` may hold whole frames: the mux stopped early, or has not looked yet.
    backlog: bool,
    read_size: usize,
    /// Reads of less than [`READ_MIN`] since a larger one.
    small_reads: usize,
    out: Outgoing,
    flushed: bool,
    timer: Pin<Box<Sleep>>,
    close_by: Option<Instant>,
    /// We have said all; why. What still comes is thrown away until the peer closes: a socket
    /// that is dropped before would be reset by it, and what we sent last be lost.
    shut: Option<&'static str>,
    shared: Arc<Shared>,
}

impl<Io: AsyncRead + AsyncWrite + Unpin> Driver<Io> {
    fn new(io: Io, read_ahead: BytesMut, shared: Arc<Shared>) -> Self {
        Self {
            io,
            backlog: !read_ahead.is_empty(),
            block: read_ahead.capacity(),
            inbound: read_ahead,
            blocks: Vec::new(),
            reading: shared.pool.budget().reading(),
            read_size: READ_MIN,
            small_reads: 0,
            out: Outgoing::default(),
            flushed: true,
            timer: Box::pin(tokio::time::sleep(Duration::ZERO)),
            close_by: None,
            shut: None,
            shared,
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Ended> {
        for _ in 0..ROUNDS {
            let wrote = match self.poll_write(cx) {
                Poll::Ready(Err(why)) => return Poll::Ready(why),
                Poll::Ready(Ok(())) => true,
                Poll::Pending => false,
            };
            let read = match self.poll_read(cx) {
                Poll::Ready(Err(why)) => return Poll::Ready(why),
                Poll::Ready(Ok(())) => true,
                Poll::Pending => false,
            };
            if !wrote && !read {
                match self.poll_timer(cx) {
                    Poll::Ready(Err(why)) => return Poll::Ready(why),
                    Poll::Ready(Ok(())) => {}
                    Poll::Pending => return Poll::Pending,
                }
            }
        }
        // A peer that always has more to say does not stop the clock.
        if let Poll::Ready(Err(why)) = self.poll_timer(cx) {
            return Poll::Ready(why);
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Ready when bytes have moved; pending when there is nothing to do, or the socket is full.
    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Ended>> {
        if self.shut.is_some() {
            return Poll::Pending;
        }
        let closing = {
            let mut state = self.shared.lock();
            state.driver = Some(cx.waker().clone());
            if self.out.is_empty() {
                state
                    .mux
                    .transmit(&mut self.out, &self.shared.pool, Instant::now());
                state.dispatch();
            }
            state.closing
        };
        if !self.out.is_empty() {
            let mut slices = [IoSlice::new(&[]); MAX_SLICES];
            let count = self.out.slices(&mut slices);
            let slices = slices.get(..count).unwrap_or_default();
            let n =
                ready!(Pin::new(&mut self.io).poll_write_vectored(cx, slices)).map_err(broke)?;
            if n == 0 {
                return Poll::Ready(Err(Ended::Io(std::io::ErrorKind::WriteZero)));
            }
            self.out.advance(n, &self.shared.pool);
            self.flushed = false;
            return Poll::Ready(Ok(()));
        }
        if !self.flushed {
            // Some transports (a Tor stream, TLS) hold bytes back until told.
            ready!(Pin::new(&mut self.io).poll_flush(cx)).map_err(broke)?;
            self.flushed = true;
        }
        if let Some(why) = closing {
            let _ = ready!(Pin::new(&mut self.io).poll_shutdown(cx));
            self.shut = Some(why);
            self.shared.lock().end(Ended::ByUs(why));
            return Poll::Ready(Ok(()));
        }
        Poll::Pending
    }

    /// Ready when frames may have come; pending when the socket has nothing for us,
    /// or we want nothing of it.
    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Ended>> {
        if let Some(why) = self.shut {
            self.inbound.clear();
            self.inbound.reserve(READ_MIN);
            let read = ready!(pin!(self.io.read_buf(&mut self.inbound)).poll(cx));
            return Poll::Ready(match read {
                Ok(1..) => Ok(()),
                Ok(0) | Err(_) => Err(Ended::ByUs(why)),
            });
        }
        if self.backlog {
            return self.receive();
        }
        if self.shared.lock().mux.is_blocked() {
            return Poll::Pending;
        }
        self.make_room();
        let read = pin!(self.io.read_buf(&mut self.inbound)).poll(cx);
        match read {
            Poll::Pending => {
                // One that had little to read holds no buffer, and a busy one none after a while.
                if self.inbound.is_empty() && self.read_size == READ_MIN {
                    self.inbound = BytesMut::new();
                    self.blocks = Vec::new();
                    self.block = 0;
                    self.reading.is(0);
                }
                Poll::Pending
            }
            Poll::Ready(Err(e)) => Poll::Ready(Err(broke(e))),
            Poll::Ready(Ok(0)) => Poll::Ready(Err(Ended::ByPeer)),
            Poll::Ready(Ok(n)) => {
                self.fit_reads(n);
                self.receive()
            }
        }
    }

    /// Reads become larger with what comes, and smaller after [`SMALL_READS`] small ones.
    fn fit_reads(&mut self, read: usize) {
        if read >= self.read_size {
            self.read_size = (self.read_size * 2).min(READ_MAX);
        }
        if read >= READ_MIN {
            self.small_reads = 0;
        } else {
            self.small_reads += 1;
        }
        if self.small_reads == SMALL_READS {
            self.read_size = READ_MIN;
            self.small_reads = 0;
        }
    }

    /// Room for the next read behind what is left of the last.
    fn make_room(&mut self) {
        let (held, spare) = (
            self.inbound.len(),
            self.inbound.capacity() - self.inbound.len(),
        );
        if spare >= self.read_size {
            return;
        }
        if held > READ_MIN {
            // A frame that is not passed on in pieces. Doubled when full, and not before, however it comes: else a
            // peer could have all of it copied for each byte.
            if spare == 0 {
                self.inbound.reserve(held);
            }
            return;
        }
        if self.reading.is_full() {
            self.read_size = READ_MIN;
            self.blocks.clear();
        }
        let room = self.read_size + held;
        let free = self
            .blocks
            .iter_mut()
            .position(|(b, _)| b.try_reclaim(room));
        let (mut block, length) = match free {
            Some(at) => self.blocks.swap_remove(at),
            None => (BytesMut::with_capacity(room), room),
        };
        block.extend_from_slice(&self.inbound);
        let mut last = std::mem::replace(&mut self.inbound, block);
        last.clear();
        let last = (last, std::mem::replace(&mut self.block, length));
        if !self.reading.is_full() {
            if self.blocks.len() == MAX_BLOCKS {
                self.blocks.remove(0);
            }
            self.blocks.push(last);
        }
        let kept: usize = self.blocks.iter().map(|(_, length)| length).sum();
        self.reading.is(kept + self.block);
    }

    fn receive(&mut self) -> Poll<Result<(), Ended>> {
        let mut state = self.shared.lock();
        let before = self.inbound.len();
        let received = state.mux.receive(&mut self.inbound, Instant::now());
        state.dispatch();
        received.map_err(Ended::Mux)?;
        self.backlog = state.mux.is_blocked() && !self.inbound.is_empty();
        let held = state.mux.hold_unfinished(self.inbound.len());
        held.map_err(Ended::Mux)?;
        if self.backlog && self.inbound.len() == before {
            Poll::Pending
        } else {
            Poll::Ready(Ok(()))
        }
    }

    /// Ready when a deadline has passed and was dealt with.
    fn poll_timer(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Ended>> {
        let now = Instant::now();
        let mut state = self.shared.lock();
        let mut next = state.mux.next_timeout();
        if let Some(why) = state.closing {
            let close_by = *self.close_by.get_or_insert(now + CLOSE_PATIENCE);
            if now >= close_by {
                return Poll::Ready(Err(Ended::ByUs(why)));
            }
            next = match self.shut {
                Some(_) => close_by,
                None => next.min(close_by),
            };
        }
        if self.shut.is_none() && now >= next {
            state.mux.handle_timeout(now).map_err(Ended::Mux)?;
            state.dispatch();
            next = state.mux.next_timeout();
            // It was silent for long: the next read that finds nothing gives the blocks back.
            self.read_size = READ_MIN;
            if state.mux.has_output() && self.out.is_empty() {
                return Poll::Ready(Ok(()));
            }
        }
        drop(state);
        if self.timer.deadline().into_std() != next {
            self.timer.as_mut().reset(next.into());
        }
        match self.timer.as_mut().poll(cx) {
            Poll::Ready(()) => {
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            Poll::Pending => Poll::Pending,
        }
    }
}

fn broke(error: std::io::Error) -> Ended {
    Ended::Io(error.kind())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tunnel::buffer::{MAX_READ_INTO, Pool};
    use crate::tunnel::mux::{Liveness, Settings, Side};

    #[tokio::test]
    async fn what_a_tunnel_reads_into_is_bounded() {
        let settings = Settings::agreed(Side::Frontend, None, Liveness::DEFAULT);
        let shared = Arc::new(Shared::new(settings, Pool::new()));
        let (io, _peer) = tokio::io::duplex(1);
        let mut driver = Driver::new(io, BytesMut::new(), shared);
        let mut kept = Vec::new();
        for _ in 0..3 * MAX_BLOCKS {
            driver.make_room();
            let asked = driver.inbound.capacity();
            assert!((READ_MIN..=READ_MAX).contains(&asked), "{asked}");
            // All of it comes, and waits in some stream.
            driver.inbound.resize(asked, 0);
            driver.fit_reads(asked);
            kept.push(driver.inbound.split().freeze());
            assert!(driver.blocks.len() <= MAX_BLOCKS);
        }
        assert_eq!(
            (driver.blocks.len(), driver.read_size),
            (MAX_BLOCKS, READ_MAX)
        );
    }

    /// However many there are, and all of them busy.
    #[tokio::test]
    async fn what_all_tunnels_read_into_is_bounded() {
        let pool = Pool::new();
        let settings = Settings::agreed(Side::Frontend, None, Liveness::DEFAULT);
        let mut hostile: Vec<_> = (0..200)
            .map(|_| {
                let shared = Arc::new(Shared::new(settings.clone(), pool.clone()));
                // Nobody reads what it would be told.
                let (io, peer) = tokio::io::duplex(1);
                (Driver::new(io, BytesMut::new(), shared), peer)
            })
            .collect();
        // One byte of each block waits in some stream for a while.
        let (mut waiting, mut all) = (Vec::new(), 0);
        for round in 0..3 * MAX_BLOCKS {
            for (driver, _) in &mut hostile {
                driver.make_room();
                driver.fit_reads(driver.inbound.capacity());
                driver.inbound.resize(1, 0);
                waiting.push(driver.inbound.split().freeze());
                all = all.max(pool.budget().read_into());
            }
            if round > MAX_BLOCKS {
                waiting.drain(..hostile.len());
            }
        }
        assert!(all >= MAX_READ_INTO, "it was not reached: {all}");
        let most = MAX_READ_INTO + READ_MAX + READ_MIN + hostile.len() * 2 * READ_MIN;
        assert!(all <= most, "{all} of {most}");
        drop(hostile);
        assert_eq!(pool.budget().read_into(), 0);
    }

    /// A peer that has always something to say, and takes everything.
    struct Endless(usize);

    impl AsyncRead for Endless {
        fn poll_read(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            buf: &mut tokio::io::ReadBuf<'_>,
        ) -> Poll<std::io::Result<()>> {
            self.0 += 1;
            assert!(self.0 < 1000, "nobody else has a turn");
            buf.put_slice(b"b\r\nNOOP: 1\r\n\r\n");
            Poll::Ready(Ok(()))
        }
    }

    impl AsyncWrite for Endless {
        fn poll_write(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<std::io::Result<usize>> {
            Poll::Ready(Ok(bytes.len()))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    #[tokio::test]
    async fn a_peer_that_never_stops_keeps_no_tunnel_that_closes() {
        for shut in [None, Some("it stops")] {
            let settings = Settings::agreed(Side::Frontend, None, Liveness::DEFAULT);
            let shared = Arc::new(Shared::new(settings, Pool::new()));
            shared.lock().closing = Some("it stops");
            let mut driver = Driver::new(Endless(0), BytesMut::new(), shared);
            driver.shut = shut;
            driver.close_by = Some(Instant::now());
            let once = std::future::poll_fn(|cx| Poll::Ready(driver.poll(cx)));
            let ended = once.await;
            assert!(
                matches!(ended, Poll::Ready(Ended::ByUs("it stops"))),
                "{shut:?}"
            );
        }
    }

    #[tokio::test]
    async fn others_have_their_turn_after_some_rounds() {
        let settings = Settings::agreed(Side::Frontend, None, Liveness::DEFAULT);
        let shared = Arc::new(Shared::new(settings, Pool::new()));
        let mut driver = Driver::new(Endless(0), BytesMut::new(), shared);
        let once = std::future::poll_fn(|cx| Poll::Ready(driver.poll(cx).is_pending()));
        assert!(once.await, "it is not over");
        assert!((1..=ROUNDS).contains(&driver.io.0), "{}", driver.io.0);
    }
}
