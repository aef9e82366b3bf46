//! By which frontend a backend's own visitor ([`crate::witness`]) came in.
//!
//! The backend knows it again by what only the two of them know: the random of its TLS hello; or, where there is no TLS, the
//! TubID it asked for, which is nobody's. To everyone else it is a visitor like any other.
//!
//! What is said before TLS begins nothing protects. The backend takes an [`Imprint`] of each byte of it, as it came in by the
//! tunnel and as the origin answered; the visitor compares both with its own.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use sha2::{Digest, Sha256};

/// What a visitor is known by.
pub type Mark = [u8; 32];

/// Marks that are remembered while a visitor of ours is on its way. When strangers come in such numbers meanwhile that ours
/// is forgotten, nothing is proven, and it comes again.
const MAX_SEEN: usize = 256;
/// Where the TubID stands in foolscap's opening: behind `GET /id/`.
const TUB: usize = 8;
/// Where the random stands in a TLS hello, in its record (RFC 8446 §4.1.2, §5.1).
const RANDOM: usize = 11;

/// So many bytes, and no others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Imprint {
    /// How many.
    pub length: u64,
    hash: [u8; 32],
}

impl Imprint {
    /// Of these.
    pub fn of(bytes: &[u8]) -> Self {
        let mut press = Press::default();
        press.take(bytes);
        press.imprint()
    }
}

/// Makes an [`Imprint`] of bytes that come in pieces.
#[derive(Debug, Clone, Default)]
struct Press {
    length: u64,
    hash: Sha256,
}

impl Press {
    fn take(&mut self, bytes: &[u8]) {
        self.length = self.length.saturating_add(bytes.len() as u64);
        self.hash.update(bytes);
    }

    fn imprint(&self) -> Imprint {
        Imprint {
            length: self.length,
            hash: self.hash.clone().finalize().into(),
        }
    }
}

/// How a visitor came in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Arrival {
    /// The frontend that brought it.
    pub frontend: String,
    /// What it opened with, as it came out of the tunnel.
    pub opening: Imprint,
    /// What the origin had answered when the visitor went on to TLS; of one without TLS this is nothing.
    pub answer: Imprint,
}

/// Who came in by which frontend, for as long as a visitor of ours is on its way.
#[derive(Debug, Clone, Default)]
pub struct Arrivals(Arc<Mutex<Seen>>);

#[derive(Debug, Default)]
struct Seen {
    /// Visitors of ours on their way.
    expected: usize,
    marks: VecDeque<(Mark, Arrival)>,
}

impl Arrivals {
    /// A visitor of ours sets out, and is on its way until what this returns is dropped.
    pub fn expect(&self) -> Expected {
        self.lock().expected += 1;
        Expected(self.clone())
    }

    /// Somebody comes in by this frontend. None if nobody of ours is expected.
    pub fn look(&self, frontend: &str) -> Option<Look> {
        (self.lock().expected > 0).then(|| Look {
            arrivals: self.clone(),
            frontend: frontend.to_owned(),
            opening: Press::default(),
            answer: Press::default(),
            hello: Vec::new(),
            is_done: false,
        })
    }

    fn note(&self, mark: &[u8], arrival: Arrival) {
        let Ok(mark) = Mark::try_from(mark) else {
            return;
        };
        let marks = &mut self.lock().marks;
        if marks.len() >= MAX_SEEN {
            marks.pop_front();
        }
        marks.push_back((mark, arrival));
    }

    fn lock(&self) -> MutexGuard<'_, Seen> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A visitor of ours is on its way.
#[derive(Debug)]
pub struct Expected(Arrivals);

impl Expected {
    /// How one with this mark has come in.
    pub fn arrival(&self, mark: &Mark) -> Option<Arrival> {
        let seen = self.0.lock();
        let mut ours = seen.marks.iter().filter(|(known, _)| known == mark);
        ours.next().map(|(_, arrival)| arrival.clone())
    }
}

impl Drop for Expected {
    fn drop(&mut self) {
        let mut seen = self.0.lock();
        seen.expected -= 1;
        if seen.expected == 0 {
            seen.marks = VecDeque::new();
        }
    }
}

/// Looks at how one visitor begins, and changes nothing.
#[derive(Debug)]
pub struct Look {
    arrivals: Arrivals,
    frontend: String,
    opening: Press,
    answer: Press,
    hello: Vec<u8>,
    is_done: bool,
}

impl Look {
    /// Foolscap's opening, in pieces.
    pub fn opening(&mut self, pieces: &VecDeque<Bytes>) {
        for piece in pieces {
            self.opening.take(piece);
        }
        let bytes = pieces.iter().flat_map(|piece| piece.iter().copied());
        let tub: Vec<u8> = bytes.skip(TUB).take(size_of::<Mark>()).collect();
        self.arrivals.note(&tub, self.arrival());
    }

    /// What the visitor says behind it.
    pub fn said(&mut self, bytes: &[u8]) {
        if self.is_done {
            return;
        }
        let end = RANDOM + size_of::<Mark>();
        let missing = end - self.hello.len();
        self.hello
            .extend_from_slice(bytes.get(..missing).unwrap_or(bytes));
        if self.hello.len() == end {
            let random = self.hello.get(RANDOM..).unwrap_or_default();
            self.arrivals.note(random, self.arrival());
            self.is_done = true;
        }
    }

    /// What the origin says. A visitor goes on to TLS once it has the whole answer.
    pub fn answered(&mut self, bytes: &[u8]) {
        if !self.is_done {
            self.answer.take(bytes);
        }
    }

    fn arrival(&self) -> Arrival {
        Arrival {
            frontend: self.frontend.clone(),
            opening: self.opening.imprint(),
            answer: self.answer.imprint(),
        }
    }

    /// It has seen enough.
    pub fn is_done(&self) -> bool {
        self.is_done
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_of_ours_is_known_again_however_its_bytes_are_cut() {
        let arrivals = Arrivals::default();
        assert!(arrivals.look("alice").is_none(), "nobody is expected");
        let expected = arrivals.expect();
        let hello: Vec<u8> = (0..100).collect();
        for cut in 1..hello.len() {
            let frontend = format!("frontend {cut}");
            let mut look = arrivals.look(&frontend).expect("one is");
            let mut hello = hello.clone();
            hello[RANDOM] = u8::try_from(cut).expect("small");
            for piece in hello.chunks(cut) {
                look.said(piece);
            }
            assert!(look.is_done());
            let mark = Mark::try_from(&hello[RANDOM..RANDOM + 32]).expect("32 bytes");
            let arrival = expected.arrival(&mark).expect("it came");
            assert_eq!(arrival.frontend, frontend);
        }
        let opening = [
            &b"GET /i"[..],
            b"d/abcdefghijklmnopqrstuvwxyz234567 HTTP/1.1\r\n",
        ];
        let mut look = arrivals.look("carol").expect("one is");
        look.opening(&opening.map(Bytes::from_static).into());
        let tub = b"abcdefghijklmnopqrstuvwxyz234567";
        let arrival = expected.arrival(tub).expect("it came");
        assert_eq!(arrival.frontend, "carol");
        assert_eq!(arrival.opening, Imprint::of(&opening.concat()));
        assert_ne!(arrival.opening, Imprint::of(opening[0]));
        drop(expected);
        assert_eq!(arrivals.expect().arrival(tub), None, "it is forgotten");
    }

    #[test]
    fn a_crowd_of_strangers_takes_no_memory() {
        let arrivals = Arrivals::default();
        let _expected = arrivals.expect();
        for n in 0..10 * MAX_SEEN {
            let mut look = arrivals.look("alice").expect("one is");
            look.said(&[u8::try_from(n % 251).expect("small"); 1000]);
            assert!(look.hello.len() <= RANDOM + 32);
        }
        assert_eq!(arrivals.lock().marks.len(), MAX_SEEN);
    }
}
