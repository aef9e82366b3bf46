//! Bytes on their way into the tunnel: pooled buffers with room for a frame
//! header in front, and the queue of what the socket shall take next.
//!
//! A local socket is read straight into a buffer whose first [`HEADROOM`] bytes
//! are free; the frame header is written there, so header and payload leave
//! together without a copy. Small payloads are copied instead: a waiting stream
//! must not pin a large buffer for a few bytes, and many small frames travel
//! faster as one write.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::{Buf, Bytes, BytesMut};

use crate::wire::Sid;
use crate::wire::frame::{self, HEADROOM};

/// Payload bytes of the larger pooled buffers: the most that one frame of ours carries.
pub const BUFFER_PAYLOAD: usize = 256 * 1024;
/// Payload bytes of the smaller ones, for streams whose frames are to be short.
const SMALL_BUFFER: usize = 64 * 1024;
/// A payload up to this many bytes is copied out of its buffer (see above).
pub const SMALL_PAYLOAD: usize = 4 * 1024;
/// Buffers of each size that a pool keeps for later; more are given back to the allocator.
pub const POOL_KEEP: usize = 32;
/// The most slices handed to one vectored write.
pub const MAX_SLICES: usize = 32;

/// Bytes that all tunnels of a process may hold together, in both directions. Beyond it none may hold more than its share.
pub const MAX_HELD: usize = 512 * 1024 * 1024;
/// A tunnel's share of [`MAX_HELD`] is at least so many bytes, however many tunnels there are.
pub const MIN_SHARE: usize = 256 * 1024;
/// From so many bytes on, streams are given small pieces to read into: little waits in each then.
pub const TIGHT: usize = MAX_HELD / 2;

/// Bytes of the blocks that all tunnels of a process read into. Beyond it each reads little at a time, and keeps no block.
pub const MAX_READ_INTO: usize = 128 * 1024 * 1024;

/// What all tunnels of a process hold.
#[derive(Clone, Default)]
pub struct Budget(Arc<Together>);

#[derive(Default)]
struct Together {
    held: AtomicUsize,
    tunnels: AtomicUsize,
    read_into: AtomicUsize,
}

impl Budget {
    /// Bytes that are held now.
    pub fn held(&self) -> usize {
        self.0.held.load(Ordering::Relaxed)
    }

    /// One more tunnel holds something.
    pub fn share(&self) -> Share {
        self.0.tunnels.fetch_add(1, Ordering::Relaxed);
        Share {
            budget: self.clone(),
            own: 0,
        }
    }

    /// Bytes of all blocks that are read into.
    pub fn read_into(&self) -> usize {
        self.0.read_into.load(Ordering::Relaxed)
    }

    /// One more tunnel reads.
    pub fn reading(&self) -> Reading {
        Reading {
            budget: self.clone(),
            own: 0,
        }
    }

    /// Much is held: [`TIGHT`].
    pub fn is_tight(&self) -> bool {
        self.held() > TIGHT
    }
}

/// What one tunnel holds of a [`Budget`]; given back when it is dropped.
pub struct Share {
    budget: Budget,
    own: usize,
}

impl Share {
    /// Something that was counted as `before` bytes has `now` so many.
    pub fn change(&mut self, before: usize, now: usize) {
        let held = &self.budget.0.held;
        if now >= before {
            held.fetch_add(now - before, Ordering::Relaxed);
        } else {
            held.fetch_sub(before - now, Ordering::Relaxed);
        }
        self.own = (self.own + now).saturating_sub(before);
    }

    /// Bytes of this tunnel.
    pub fn own(&self) -> usize {
        self.own
    }

    /// See [`Budget::is_tight`].
    pub fn is_tight(&self) -> bool {
        self.budget.is_tight()
    }

    /// All together hold too much, and this tunnel more than its share.
    pub fn is_over(&self) -> bool {
        let tunnels = self.budget.0.tunnels.load(Ordering::Relaxed).max(1);
        self.budget.held() > MAX_HELD && self.own > MIN_SHARE.max(MAX_HELD / tunnels)
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.change(self.own, 0);
        self.budget.0.tunnels.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The blocks that one tunnel reads into, of [`MAX_READ_INTO`].
pub struct Reading {
    budget: Budget,
    own: usize,
}

impl Reading {
    /// So many bytes are this tunnel's blocks now.
    pub fn is(&mut self, bytes: usize) {
        let all = &self.budget.0.read_into;
        all.fetch_add(bytes, Ordering::Relaxed);
        all.fetch_sub(self.own, Ordering::Relaxed);
        self.own = bytes;
    }

    /// There is no room for larger blocks.
    pub fn is_full(&self) -> bool {
        self.budget.read_into() >= MAX_READ_INTO
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        self.is(0);
    }
}

/// Buffers shared by all tunnels of a process. Idle streams and tunnels hold none.
#[derive(Clone, Default)]
pub struct Pool(Arc<Mutex<Kept>>, Budget);

#[derive(Default)]
struct Kept {
    small: Vec<Box<[u8]>>,
    large: Vec<Box<[u8]>>,
}

impl Kept {
    /// Those with room for so much payload.
    fn of(&mut self, payload: usize) -> &mut Vec<Box<[u8]>> {
        match payload {
            ..=SMALL_BUFFER => &mut self.small,
            _ => &mut self.large,
        }
    }
}

impl Pool {
    /// An empty pool; it fills as buffers come back.
    pub fn new() -> Self {
        Self::default()
    }

    /// What the tunnels hold that use this pool.
    pub fn budget(&self) -> &Budget {
        &self.1
    }

    /// A buffer to read up to `limit` bytes into; [`BUFFER_PAYLOAD`] at most.
    pub fn take(&self, limit: usize) -> Buffer {
        let payload = match limit {
            ..=SMALL_BUFFER => SMALL_BUFFER,
            _ => BUFFER_PAYLOAD,
        };
        let mut shelves = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = shelves.of(payload).pop();
        drop(shelves);
        Buffer {
            bytes: kept.unwrap_or_else(|| vec![0; HEADROOM + payload].into_boxed_slice()),
            start: HEADROOM,
            end: HEADROOM,
        }
    }

    /// Takes a buffer back.
    pub fn give(&self, buffer: Buffer) {
        let mut shelves = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = shelves.of(buffer.bytes.len() - HEADROOM);
        if kept.len() < POOL_KEEP {
            kept.push(buffer.bytes);
        }
    }
}

/// One pooled buffer: [`HEADROOM`] free bytes, then room for payload.
///
/// Invariant: `start <= end <= bytes.len()`.
pub struct Buffer {
    bytes: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Buffer {
    /// Where a reader may put up to `limit` payload bytes; say how many with [`Buffer::filled`].
    pub fn room(&mut self, limit: usize) -> &mut [u8] {
        let top = self.bytes.len().min(HEADROOM + limit);
        &mut self.bytes[HEADROOM..top]
    }

    /// `len` bytes of [`Buffer::room`] now hold payload.
    pub fn filled(&mut self, len: usize) {
        self.end = self.bytes.len().min(HEADROOM + len);
    }

    /// What is to be sent: the payload, with its header once that is written.
    pub fn as_slice(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }

    /// Writes the data frame's header into the room in front.
    fn frame(&mut self, sid: Sid) {
        let len = self.end - self.start;
        if let Some(room) = self.bytes.first_chunk_mut::<HEADROOM>() {
            self.start = frame::data_header(sid, len, room);
        }
    }
}

/// Payload that a stream has handed over.
pub enum Chunk {
    /// Copied: [`SMALL_PAYLOAD`] bytes at most, or bytes that were there already.
    Small(Bytes),
    /// Still in the buffer it was read into.
    Large(Buffer),
}

impl Chunk {
    /// Payload bytes.
    pub fn len(&self) -> usize {
        match self {
            Chunk::Small(bytes) => bytes.len(),
            Chunk::Large(buffer) => buffer.end - buffer.start,
        }
    }

    /// Bytes of memory that it takes.
    pub fn cost(&self) -> usize {
        match self {
            Chunk::Small(bytes) => bytes.len(),
            Chunk::Large(buffer) => buffer.bytes.len(),
        }
    }

    /// True if there is no payload.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Makes a chunk of a filled buffer, and gives the buffer back when the payload is small.
    pub fn new(buffer: Buffer, pool: &Pool) -> Self {
        if buffer.end - buffer.start > SMALL_PAYLOAD {
            return Chunk::Large(buffer);
        }
        let copy = Bytes::copy_from_slice(buffer.as_slice());
        pool.give(buffer);
        Chunk::Small(copy)
    }
}

impl From<Bytes> for Chunk {
    fn from(bytes: Bytes) -> Self {
        Chunk::Small(bytes)
    }
}

/// Frames that the socket shall take next, in order.
#[derive(Default)]
pub struct Outgoing {
    segments: VecDeque<Segment>,
    bytes: usize,
    frames: usize,
}

enum Segment {
    /// Small frames, one after the other.
    Copied(BytesMut),
    /// One large data frame.
    Framed(Buffer),
}

impl Segment {
    fn as_slice(&self) -> &[u8] {
        match self {
            Segment::Copied(bytes) => bytes,
            Segment::Framed(buffer) => buffer.as_slice(),
        }
    }
}

impl Outgoing {
    /// Bytes that wait.
    pub fn len(&self) -> usize {
        self.bytes
    }

    /// True if nothing waits.
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// Frames put in since the count was last taken (a legacy peer minds bursts of them).
    pub fn take_frames(&mut self) -> usize {
        std::mem::take(&mut self.frames)
    }

    /// Appends one small frame, which `write` encodes.
    pub fn put(&mut self, write: impl FnOnce(&mut BytesMut)) {
        if !matches!(self.segments.back(), Some(Segment::Copied(_))) {
            self.segments.push_back(Segment::Copied(BytesMut::new()));
        }
        if let Some(Segment::Copied(tail)) = self.segments.back_mut() {
            let before = tail.len();
            write(tail);
            self.bytes += tail.len() - before;
            self.frames += 1;
        }
    }

    /// Appends the payload of one stream, as frames of at most `max_payload` bytes.
    pub fn put_data(&mut self, sid: Sid, chunk: Chunk, max_payload: usize, pool: &Pool) {
        match chunk {
            Chunk::Large(mut buffer) if buffer.end - buffer.start <= max_payload => {
                buffer.frame(sid);
                self.bytes += buffer.end - buffer.start;
                self.frames += 1;
                self.segments.push_back(Segment::Framed(buffer));
            }
            Chunk::Large(buffer) => {
                self.put_pieces(sid, buffer.as_slice(), max_payload);
                pool.give(buffer);
            }
            Chunk::Small(bytes) => self.put_pieces(sid, &bytes, max_payload),
        }
    }

    fn put_pieces(&mut self, sid: Sid, payload: &[u8], max_payload: usize) {
        for piece in payload.chunks(max_payload.max(1)) {
            self.put(|out| frame::put_data(out, sid, piece));
        }
    }

    /// The bytes for a vectored write; at most [`MAX_SLICES`].
    pub fn slices<'a>(&'a self, into: &mut [IoSlice<'a>; MAX_SLICES]) -> usize {
        let mut n = 0;
        for (slot, segment) in into.iter_mut().zip(&self.segments) {
            *slot = IoSlice::new(segment.as_slice());
            n += 1;
        }
        n
    }

    /// The socket took `n` bytes; buffers that are through go back to the pool.
    pub fn advance(&mut self, mut n: usize, pool: &Pool) {
        self.bytes = self.bytes.saturating_sub(n);
        while let Some(segment) = self.segments.front_mut() {
            let here = segment.as_slice().len();
            if n < here {
                match segment {
                    Segment::Copied(bytes) => bytes.advance(n),
                    Segment::Framed(buffer) => buffer.start += n,
                }
                return;
            }
            n -= here;
            if let Some(Segment::Framed(buffer)) = self.segments.pop_front() {
                pool.give(buffer);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sid() -> Sid {
        Sid::new(7).expect("small")
    }

    fn drain(out: &mut Outgoing, pool: &Pool, step: usize) -> Vec<u8> {
        let mut all = Vec::new();
        while !out.is_empty() {
            let mut slices = [IoSlice::new(&[]); MAX_SLICES];
            let n = out.slices(&mut slices);
            let joined: Vec<u8> = slices[..n].iter().flat_map(|s| s.to_vec()).collect();
            let take = step.min(joined.len());
            all.extend_from_slice(&joined[..take]);
            out.advance(take, pool);
        }
        all
    }

    #[test]
    fn large_and_small_chunks_leave_as_the_same_frames() {
        for step in [1, 3, 1000, 1 << 20] {
            let pool = Pool::new();
            let payload: Vec<u8> = (0..10_000u32).map(|i| i as u8).collect();
            let mut buffer = pool.take(BUFFER_PAYLOAD);
            buffer.room(payload.len()).copy_from_slice(&payload);
            buffer.filled(payload.len());
            let mut out = Outgoing::default();
            out.put_data(sid(), Chunk::new(buffer, &pool), BUFFER_PAYLOAD, &pool);
            out.put_data(
                sid(),
                Chunk::from(Bytes::from_static(b"tail")),
                BUFFER_PAYLOAD,
                &pool,
            );

            let mut expected = BytesMut::new();
            frame::put_data(&mut expected, sid(), &payload);
            frame::put_data(&mut expected, sid(), b"tail");
            assert_eq!(out.len(), expected.len());
            assert_eq!(drain(&mut out, &pool, step), expected);
            assert_eq!(
                pool.0.lock().expect("lock").large.len(),
                1,
                "the buffer came back"
            );
        }
    }

    #[test]
    fn a_pool_keeps_only_so_many() {
        let pool = Pool::new();
        for limit in [1, BUFFER_PAYLOAD] {
            let taken: Vec<_> = (0..POOL_KEEP + 9).map(|_| pool.take(limit)).collect();
            taken.into_iter().for_each(|buffer| pool.give(buffer));
        }
        let kept = pool.0.lock().expect("lock");
        assert_eq!((kept.small.len(), kept.large.len()), (POOL_KEEP, POOL_KEEP));
    }

    #[test]
    fn who_holds_more_than_its_share_is_over_when_all_hold_too_much() {
        let budget = Budget::default();
        let (mut greedy, mut modest) = (budget.share(), budget.share());
        modest.change(0, MIN_SHARE);
        greedy.change(0, MAX_HELD - MIN_SHARE);
        assert!(!greedy.is_over() && !modest.is_over() && greedy.is_tight());
        greedy.change(MAX_HELD - MIN_SHARE, MAX_HELD);
        assert!(greedy.is_over() && !modest.is_over());
        greedy.change(MAX_HELD, MAX_HELD / 2);
        assert_eq!(
            (greedy.own(), budget.held()),
            (MAX_HELD / 2, MAX_HELD / 2 + MIN_SHARE)
        );
        drop((greedy, modest));
        assert_eq!((budget.held(), budget.is_tight()), (0, false));
    }

    #[test]
    fn a_chunk_over_the_peers_limit_is_cut() {
        let pool = Pool::new();
        let mut buffer = pool.take(BUFFER_PAYLOAD);
        buffer.room(5000).fill(b'x');
        buffer.filled(5000);
        let mut out = Outgoing::default();
        out.put_data(sid(), Chunk::new(buffer, &pool), 1400, &pool);
        assert_eq!(out.take_frames(), 4);
        let mut expected = BytesMut::new();
        for len in [1400, 1400, 1400, 800] {
            frame::put_data(&mut expected, sid(), &vec![b'x'; len]);
        }
        assert_eq!(drain(&mut out, &pool, 999), expected);
    }
}
