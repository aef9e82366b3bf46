//! What must hold of a [`Mux`] between any two calls. For tests and fuzzing.

use super::*;

/// One stream's books.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Books {
    /// Sent, and not acknowledged.
    pub(crate) in_flight: u64,
    /// Received, and not consumed.
    pub(crate) inbox: usize,
    /// How the halves stand.
    pub(crate) halves: (Receiving, Sending),
}

impl Mux {
    /// Panics if the books are wrong, a bound is exceeded, or something is forgotten that waits to be sent.
    pub(crate) fn audit(&self) {
        let (streams, settings) = (&self.streams, &self.settings);
        let inbox: usize = streams.values().map(Stream::inbox_bytes).sum();
        let in_flight: u64 = streams.values().map(Stream::in_flight).sum();
        assert_eq!(self.inbox_total, inbox, "bytes received");
        assert_eq!(self.in_flight, in_flight, "bytes on the way");
        assert!(inbox <= MAX_INBOX_TOTAL, "{inbox} bytes received");
        for (sid, stream) in streams {
            let times = |queue: &VecDeque<Sid>| queue.iter().filter(|s| *s == sid).count();
            let turns = times(&self.sparse) + times(&self.ready);
            assert_eq!(
                turns,
                usize::from(stream.queued),
                "{sid:?} has {turns} turns"
            );
            assert!(
                stream.queued || !stream.has_output(),
                "{sid:?} is never sent"
            );
            let acks = times(&self.acks);
            assert_eq!(
                acks,
                usize::from(stream.ack_queued),
                "{sid:?} has {acks} acks"
            );
            if settings.kite {
                let held = stream.inbox_bytes() as u64;
                assert!(held <= settings.recv_window, "{sid:?} holds {held}");
            }
        }
        if let Some((sid, _)) = self.overrun {
            let held = streams.get(&sid).map_or(0, Stream::inbox_bytes);
            assert!(
                held > OVERRUN / 2,
                "it waits for {sid:?}, which holds {held}"
            );
        }
        let most = settings.max_streams;
        assert!(streams.len() <= most);
        assert!(
            self.sparse.len() + self.ready.len() <= streams.len(),
            "turns of streams that are gone"
        );
        assert!(
            self.acks.len() <= streams.len(),
            "acknowledgements for streams that are gone"
        );
        assert!(
            self.ends.len() <= 4 * most + MAX_STRAYS,
            "{} ends wait",
            self.ends.len()
        );
        assert!(self.strays.len() <= MAX_STRAYS && self.recent.len() <= RECENT);
        assert!(self.kites.len() <= MAX_PENDING_KITES);
    }

    /// One stream's books, if it is there.
    pub(crate) fn books(&self, sid: Sid) -> Option<Books> {
        self.streams.get(&sid).map(|stream| Books {
            in_flight: stream.in_flight(),
            inbox: stream.inbox_bytes(),
            halves: (stream.receiving, stream.sending),
        })
    }
}
