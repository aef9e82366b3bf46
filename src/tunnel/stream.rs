//! One stream of a tunnel, seen from one end (sans-IO).
//!
//! A stream has two halves that end independently (protocol page §7.3):
//!
//! ```text
//! receiving:  Open ──EOF R──▶ Ended          sending:  Open ──finish──▶ Finishing ──EOF R sent──▶ Finished
//!               └──EOF WR + Abort──▶ Aborted              └──EOF W──▶ Stopped
//! ```

use std::collections::VecDeque;
use std::time::Instant;

use bytes::{Bytes, BytesMut};

use super::buffer::Chunk;
use super::pace::{Pace, Path};
use super::waiting::Waiting;
use crate::wire::frame::Open;

/// Frames' worth of payload that one stream may have waiting for its turn on the socket:
/// one leaves while the next is being read.
pub const OUTBOX_CHUNKS: usize = 2;
/// Received pieces below this size are joined in one buffer instead of pinning
/// the block they were read in.
const JOIN_BELOW: usize = 8 * 1024;
/// A tunnel in which much waits copies pieces below this size: each keeps a block of up to 256 KiB, of which the peer chooses
/// how much the piece is.
const COPY_BELOW: usize = 128 * 1024;
/// The joined buffer is passed on once it holds this many bytes.
const JOIN_UP_TO: usize = 64 * 1024;

/// Between two kites: progress that is told at once.
pub const ACK_STEP: u64 = 256 * 1024;
/// Between two kites: progress that is told when all that came has been passed on. Less than
/// [`MIN_WINDOW`](super::pace::MIN_WINDOW), or a sender could wait for ever.
pub const DRAINED_STEP: u64 = 32 * 1024;

/// How the peer's half stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Receiving {
    /// More may come.
    Open,
    /// It ended in order: everything that was sent has been received.
    Ended,
    /// It broke off.
    Aborted,
}

/// How our half stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sending {
    /// We may send.
    Open,
    /// Ends as soon as the outbox is empty.
    Finishing,
    /// The peer has been told.
    Finished,
    /// The peer takes no more.
    Stopped,
}

/// What a stream may hold against the peer's promises.
#[derive(Clone, Copy, Debug)]
pub struct SendLimit {
    /// Bytes that may be on the way without acknowledgement; `None` if the peer
    /// has not shown that it acknowledges, when TCP alone must hold us back.
    pub window: Option<u64>,
    /// Largest payload of one frame.
    pub max_payload: usize,
    /// Payload that may be read at once, for one frame or some.
    pub chunk: usize,
    /// Within the window, the stream's own [`Pace`] counts.
    pub paced: bool,
    /// Bytes that the path holds and no stream uses.
    pub spare: u64,
}

/// The state of one stream. Sizes are in bytes.
pub struct Stream {
    inbox: VecDeque<Bytes>,
    tail: BytesMut,
    inbox_bytes: usize,
    consumed: u64,
    acked_kb: u64,
    /// An acknowledgement waits to be sent.
    pub ack_queued: bool,
    /// The peer's half.
    pub receiving: Receiving,

    /// The opening, until it has been sent.
    pub opening: Option<Box<Open>>,
    outbox: VecDeque<Chunk>,
    outbox_bytes: usize,
    outbox_cost: usize,
    sent: u64,
    peer_acked: u64,
    pace: Pace,
    /// Our half.
    pub sending: Sending,
    /// Our half ends with the word that we take no more, either: said before the opening it would be lost.
    pub ends_both: bool,
    /// Waits for its turn to send.
    pub queued: bool,
    /// What its tunnel has counted as held for it.
    pub counted: usize,
    /// How long what has come waits for the local side.
    pub waiting: Waiting,

    /// Broken off on our side: what had come for it is gone.
    pub lost: bool,
    /// The peer has broken it off, or we have.
    pub broken: bool,
    /// Nobody holds the handle any more.
    pub released: bool,
}

impl Stream {
    /// A stream of which nothing has been sent; `opening` goes first if given.
    pub fn new(opening: Option<Box<Open>>) -> Self {
        Self {
            inbox: VecDeque::new(),
            tail: BytesMut::new(),
            inbox_bytes: 0,
            consumed: 0,
            acked_kb: 0,
            ack_queued: false,
            receiving: Receiving::Open,
            opening,
            outbox: VecDeque::new(),
            outbox_bytes: 0,
            outbox_cost: 0,
            sent: 0,
            peer_acked: 0,
            pace: Pace::default(),
            sending: Sending::Open,
            ends_both: false,
            queued: false,
            counted: 0,
            waiting: Waiting::default(),
            lost: false,
            broken: false,
            released: false,
        }
    }

    // ------------------------------------------------------------ receiving

    /// Bytes received and not yet consumed by the local side.
    pub fn inbox_bytes(&self) -> usize {
        self.inbox_bytes
    }

    /// Bytes of memory that it takes: what was received, and what waits to be sent.
    pub fn held(&self) -> usize {
        self.inbox_bytes + self.outbox_cost
    }

    /// Keeps received bytes for the local side. `exactly`: nothing more than these may be kept for their sake.
    pub fn push(&mut self, data: Bytes, exactly: bool) {
        self.inbox_bytes += data.len();
        if data.len() >= JOIN_BELOW {
            self.flush_tail();
            self.inbox
                .push_back(match exactly && data.len() < COPY_BELOW {
                    true => Bytes::copy_from_slice(&data),
                    false => data,
                });
            return;
        }
        if self.tail.len() + data.len() > JOIN_UP_TO {
            self.flush_tail();
        }
        self.tail.extend_from_slice(&data);
    }

    /// Takes the next bytes. They count against the window until [`Stream::consume`].
    pub fn pop(&mut self) -> Option<Bytes> {
        if self.inbox.is_empty() {
            self.flush_tail();
        }
        self.inbox.pop_front()
    }

    fn flush_tail(&mut self) {
        if !self.tail.is_empty() {
            self.inbox
                .push_back(std::mem::take(&mut self.tail).freeze());
        }
    }

    /// The local side has taken `n` bytes. True if the peer should hear of it now: `step` bytes are new, or
    /// nothing is left to take and `drained` are.
    pub fn consume(&mut self, n: usize, step: u64, drained: u64) -> bool {
        self.consumed += n as u64;
        self.inbox_bytes = self.inbox_bytes.saturating_sub(n);
        let news = (self.consumed / 1024 - self.acked_kb) * 1024;
        news >= step || (self.inbox_bytes == 0 && news >= drained)
    }

    /// The acknowledgement to send: KB consumed so far.
    pub fn take_ack(&mut self) -> u64 {
        self.ack_queued = false;
        self.acked_kb = self.consumed / 1024;
        self.acked_kb
    }

    /// Forgets what was received and not consumed.
    pub fn drop_inbox(&mut self) {
        self.inbox.clear();
        self.tail = BytesMut::new();
        self.inbox_bytes = 0;
    }

    // -------------------------------------------------------------- sending

    /// How many bytes the local side may hand over now. Zero while less than a
    /// worthwhile piece fits, lest the tunnel fill with crumbs.
    pub fn capacity(&mut self, limit: SendLimit) -> usize {
        let chunk = limit.chunk;
        let room = (OUTBOX_CHUNKS * chunk).saturating_sub(self.outbox_bytes);
        let Some(window) = limit.window else {
            return room.min(chunk);
        };
        let window = match limit.paced {
            true => window.min(self.pace.window(limit.spare)),
            false => window,
        };
        let flying = self.in_flight() + self.outbox_bytes as u64;
        let left = usize::try_from(window.saturating_sub(flying)).unwrap_or(usize::MAX);
        let worthwhile = limit.max_payload.min(chunk).min(window as usize / 4);
        if left < worthwhile && flying > 0 {
            self.pace.held();
            0
        } else {
            room.min(left).min(chunk)
        }
    }

    /// Bytes that were sent and are not acknowledged.
    pub fn in_flight(&self) -> u64 {
        self.sent - self.peer_acked
    }

    /// Takes payload for the peer.
    pub fn write(&mut self, chunk: Chunk) {
        if self.sending == Sending::Open && !chunk.is_empty() {
            self.outbox_bytes += chunk.len();
            self.outbox_cost += chunk.cost();
            self.outbox.push_back(chunk);
        }
    }

    /// The next payload to put into a frame.
    pub fn next_chunk(&mut self, now: Instant) -> Option<Chunk> {
        let chunk = self.outbox.pop_front()?;
        self.outbox_bytes -= chunk.len();
        self.outbox_cost -= chunk.cost();
        let fresh = self.in_flight() < DRAINED_STEP;
        self.sent += chunk.len() as u64;
        self.pace.sent(self.sent, self.peer_acked, fresh, now);
        Some(chunk)
    }

    /// The next payload if it is a copied one; else it stays where it is.
    pub fn next_small(&mut self, now: Instant) -> Option<Bytes> {
        match self.outbox.front()? {
            Chunk::Small(bytes) => {
                let bytes = bytes.clone();
                self.next_chunk(now);
                Some(bytes)
            }
            Chunk::Large(_) => None,
        }
    }

    /// Something of this stream waits to be sent.
    pub fn has_output(&self) -> bool {
        self.opening.is_some() || !self.outbox.is_empty() || self.sending == Sending::Finishing
    }

    /// The next payload is small enough to have been copied.
    pub fn is_sparse(&self) -> bool {
        match self.outbox.front() {
            Some(chunk) => self.outbox.len() == 1 && matches!(chunk, Chunk::Small(_)),
            None => true,
        }
    }

    /// The peer acknowledged `kb` KB in all; more than was sent counts as all that was sent.
    /// See [`Pace::acknowledged`] for the rest.
    pub fn acknowledged(
        &mut self,
        kb: u64,
        path: &mut Path,
        in_flight: u64,
        most: u64,
        now: Instant,
    ) {
        self.peer_acked = kb.saturating_mul(1024).min(self.sent).max(self.peer_acked);
        self.pace
            .acknowledged(self.peer_acked, path, in_flight, most, now);
    }

    /// Forgets what waits to be sent; the caller returns the chunks' buffers to the pool.
    pub fn drop_outbox(&mut self) -> impl Iterator<Item = Chunk> + '_ {
        (self.outbox_bytes, self.outbox_cost) = (0, 0);
        self.outbox.drain(..)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_pieces_are_joined_in_order() {
        let mut s = Stream::new(None);
        s.push(Bytes::from_static(b"one "), false);
        s.push(Bytes::from_static(b"two "), false);
        s.push(Bytes::from(vec![b'x'; JOIN_BELOW]), false);
        s.push(Bytes::from_static(b" three"), true);
        assert_eq!(s.inbox_bytes(), 14 + JOIN_BELOW);
        assert_eq!(s.pop().as_deref(), Some(&b"one two "[..]));
        assert_eq!(s.pop().map(|b| b.len()), Some(JOIN_BELOW));
        assert_eq!(s.pop().as_deref(), Some(&b" three"[..]));
        assert_eq!(s.pop(), None);
    }

    #[test]
    fn a_piece_keeps_its_block_only_while_little_waits() {
        let block = Bytes::from(vec![b'x'; 256 * 1024]);
        let mut s = Stream::new(None);
        for exactly in [false, true] {
            s.push(block.slice(..JOIN_BELOW), exactly);
            let kept = s.pop().expect("a piece");
            assert_eq!(kept.as_ptr() != block.as_ptr(), exactly);
        }
        assert_eq!(s.held(), 2 * JOIN_BELOW);
        let pool = crate::tunnel::buffer::Pool::new();
        let mut buffer = pool.take(1 << 20);
        buffer.room(5000).fill(b'x');
        buffer.filled(5000);
        s.write(Chunk::new(buffer, &pool));
        assert!(s.held() > 256 * 1024, "the whole buffer counts");
        s.drop_outbox().for_each(drop);
        assert_eq!(s.held(), 2 * JOIN_BELOW);
    }

    #[test]
    fn acknowledgements_come_in_steps_or_when_drained() {
        let mut s = Stream::new(None);
        s.push(Bytes::from(vec![0; 40_000]), false);
        assert!(!s.consume(10_000, 16 * 1024, 1024));
        assert!(s.consume(10_000, 16 * 1024, 1024));
        assert_eq!(s.take_ack(), 19);
        assert!(s.consume(20_000, 1 << 20, 1024), "drained");
        assert!(!s.consume(0, 1 << 20, 32 * 1024));
    }

    #[test]
    fn the_window_closes_and_opens() {
        let limit = SendLimit {
            window: Some(8192),
            max_payload: 1024,
            chunk: 64 * 1024,
            paced: false,
            spare: 0,
        };
        let (mut path, now) = (Path::default(), Instant::now());
        let mut s = Stream::new(None);
        assert_eq!(s.capacity(limit), 8192);
        s.write(Bytes::from(vec![0; 8000]).into());
        assert_eq!(s.capacity(limit), 0, "192 bytes are not worth a frame");
        assert_eq!(s.next_chunk(now).map(|c| c.len()), Some(8000));
        assert_eq!(s.capacity(limit), 0);
        s.acknowledged(4, &mut path, 0, 8192, now);
        assert_eq!(s.capacity(limit), 8192 - 8000 + 4096);
        s.acknowledged(u64::MAX, &mut path, 0, 8192, now);
        assert_eq!(
            s.capacity(limit),
            8192,
            "an absurd acknowledgement opens no more than all of it"
        );
    }
}
