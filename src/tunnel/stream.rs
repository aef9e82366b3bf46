//! One stream of a tunnel, seen from one end (sans-IO).
//!
//! A stream has two halves that end independently (protocol page §7.3):
//!
//! ```text
//! receiving:  Open ──EOF R──▶ Ended          sending:  Open ──finish──▶ Finishing ──EOF R sent──▶ Finished
//!               └──EOF WR + Abort──▶ Aborted              └──EOF W──▶ Stopped
//! ```

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};

use super::buffer::Chunk;
use crate::wire::frame::Open;

/// Payload bytes that one stream may have waiting for its turn on the socket.
/// Two full buffers: one leaves while the next is being read.
pub const MAX_OUTBOX: usize = 2 * super::buffer::BUFFER_PAYLOAD;
/// Received pieces below this size are joined in one buffer instead of pinning
/// the block they were read in.
const JOIN_BELOW: usize = 8 * 1024;
/// The joined buffer is passed on once it holds this many bytes.
const JOIN_UP_TO: usize = 64 * 1024;

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
    sent: u64,
    peer_acked: u64,
    /// Our half.
    pub sending: Sending,
    /// Waits for its turn to send.
    pub queued: bool,

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
            sent: 0,
            peer_acked: 0,
            sending: Sending::Open,
            queued: false,
            released: false,
        }
    }

    // ------------------------------------------------------------ receiving

    /// Bytes received and not yet consumed by the local side.
    pub fn inbox_bytes(&self) -> usize {
        self.inbox_bytes
    }

    /// Keeps received bytes for the local side.
    pub fn push(&mut self, data: Bytes) {
        self.inbox_bytes += data.len();
        if data.len() >= JOIN_BELOW {
            self.flush_tail();
            self.inbox.push_back(data);
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

    /// The local side has taken `n` bytes. True if the peer should hear of it now:
    /// a step of `step` bytes is full, or (with `eager`) nothing is left to take.
    pub fn consume(&mut self, n: usize, step: u64, eager: bool) -> bool {
        self.consumed += n as u64;
        self.inbox_bytes = self.inbox_bytes.saturating_sub(n);
        let news_kb = self.consumed / 1024 - self.acked_kb;
        news_kb * 1024 >= step || (eager && self.inbox_bytes == 0 && news_kb > 0)
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
    pub fn capacity(&self, limit: SendLimit) -> usize {
        let room = MAX_OUTBOX.saturating_sub(self.outbox_bytes);
        let Some(window) = limit.window else {
            return room;
        };
        let flying = self.sent + self.outbox_bytes as u64 - self.peer_acked;
        let left = usize::try_from(window.saturating_sub(flying)).unwrap_or(usize::MAX);
        let worthwhile = limit.max_payload.min(window as usize / 4);
        if left < worthwhile && flying > 0 {
            0
        } else {
            room.min(left)
        }
    }

    /// Takes payload for the peer.
    pub fn write(&mut self, chunk: Chunk) {
        if self.sending == Sending::Open && !chunk.is_empty() {
            self.outbox_bytes += chunk.len();
            self.outbox.push_back(chunk);
        }
    }

    /// The next payload to put into a frame.
    pub fn next_chunk(&mut self) -> Option<Chunk> {
        let chunk = self.outbox.pop_front()?;
        self.outbox_bytes -= chunk.len();
        self.sent += chunk.len() as u64;
        Some(chunk)
    }

    /// The next payload if it is a copied one; else it stays where it is.
    pub fn next_small(&mut self) -> Option<Bytes> {
        match self.outbox.front()? {
            Chunk::Small(bytes) => {
                let bytes = bytes.clone();
                self.next_chunk();
                Some(bytes)
            }
            Chunk::Large(_) => None,
        }
    }

    /// Something of this stream waits to be sent.
    pub fn has_output(&self) -> bool {
        self.opening.is_some() || !self.outbox.is_empty() || self.sending == Sending::Finishing
    }

    /// The peer acknowledged `kb` KB in all. More than was sent counts as all that was sent.
    pub fn acknowledged(&mut self, kb: u64) {
        self.peer_acked = kb.saturating_mul(1024).min(self.sent).max(self.peer_acked);
    }

    /// Forgets what waits to be sent; the caller returns the chunks' buffers to the pool.
    pub fn drop_outbox(&mut self) -> impl Iterator<Item = Chunk> + '_ {
        self.outbox_bytes = 0;
        self.outbox.drain(..)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_pieces_are_joined_in_order() {
        let mut s = Stream::new(None);
        s.push(Bytes::from_static(b"one "));
        s.push(Bytes::from_static(b"two "));
        s.push(Bytes::from(vec![b'x'; JOIN_BELOW]));
        s.push(Bytes::from_static(b" three"));
        assert_eq!(s.inbox_bytes(), 14 + JOIN_BELOW);
        assert_eq!(s.pop().as_deref(), Some(&b"one two "[..]));
        assert_eq!(s.pop().map(|b| b.len()), Some(JOIN_BELOW));
        assert_eq!(s.pop().as_deref(), Some(&b" three"[..]));
        assert_eq!(s.pop(), None);
    }

    #[test]
    fn acknowledgements_come_in_steps_or_when_drained() {
        let mut s = Stream::new(None);
        s.push(Bytes::from(vec![0; 40_000]));
        assert!(!s.consume(10_000, 16 * 1024, true));
        assert!(s.consume(10_000, 16 * 1024, true));
        assert_eq!(s.take_ack(), 19);
        assert!(s.consume(20_000, 1 << 20, true), "drained");
        assert!(!s.consume(0, 1 << 20, false));
    }

    #[test]
    fn the_window_closes_and_opens() {
        let limit = SendLimit {
            window: Some(8192),
            max_payload: 1024,
        };
        let mut s = Stream::new(None);
        assert_eq!(s.capacity(limit), 8192);
        s.write(Bytes::from(vec![0; 8000]).into());
        assert_eq!(s.capacity(limit), 0, "192 bytes are not worth a frame");
        assert_eq!(s.next_chunk().map(|c| c.len()), Some(8000));
        assert_eq!(s.capacity(limit), 0);
        s.acknowledged(4);
        assert_eq!(s.capacity(limit), 8192 - 8000 + 4096);
        s.acknowledged(u64::MAX);
        assert_eq!(
            s.capacity(limit),
            8192,
            "an absurd acknowledgement opens no more than all of it"
        );
    }
}
