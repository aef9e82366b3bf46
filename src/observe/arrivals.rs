//! By which frontend a backend's own visitor ([`crate::witness`]) came in.
//!
//! The backend knows it again by what only the two of them know: the random of its TLS hello; or, where there is no TLS, the
//! TubID it asked for, which is nobody's. To everyone else it is a visitor like any other.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

/// What a visitor is known by.
pub type Mark = [u8; 32];

/// Marks that are remembered while a visitor of ours is on its way. When strangers come in such numbers meanwhile that ours
/// is forgotten, nothing is proven, and it comes again.
const MAX_SEEN: usize = 256;
/// Where the TubID stands in foolscap's opening: behind `GET /id/`.
const TUB: usize = 8;
/// Where the random stands in a TLS hello, in its record (RFC 8446 §4.1.2, §5.1).
const RANDOM: usize = 11;

/// Who came in by which frontend, for as long as a visitor of ours is on its way.
#[derive(Debug, Clone, Default)]
pub struct Arrivals(Arc<Mutex<Seen>>);

#[derive(Debug, Default)]
struct Seen {
    /// Visitors of ours on their way.
    expected: usize,
    marks: VecDeque<(Mark, String)>,
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
            hello: Vec::new(),
            is_done: false,
        })
    }

    fn note(&self, mark: &[u8], frontend: &str) {
        let Ok(mark) = Mark::try_from(mark) else {
            return;
        };
        let marks = &mut self.lock().marks;
        if marks.len() >= MAX_SEEN {
            marks.pop_front();
        }
        marks.push_back((mark, frontend.to_owned()));
    }

    fn lock(&self) -> MutexGuard<'_, Seen> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A visitor of ours is on its way.
#[derive(Debug)]
pub struct Expected(Arrivals);

impl Expected {
    /// The frontend by which one with this mark has come in.
    pub fn came_by(&self, mark: &Mark) -> Option<String> {
        let seen = self.0.lock();
        let mut ours = seen.marks.iter().filter(|(known, _)| known == mark);
        ours.next().map(|(_, frontend)| frontend.clone())
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
    hello: Vec<u8>,
    is_done: bool,
}

impl Look {
    /// Foolscap's opening, in pieces.
    pub fn opening(&self, pieces: &VecDeque<Bytes>) {
        let bytes = pieces.iter().flat_map(|piece| piece.iter().copied());
        let tub: Vec<u8> = bytes.skip(TUB).take(size_of::<Mark>()).collect();
        self.arrivals.note(&tub, &self.frontend);
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
            self.arrivals.note(random, &self.frontend);
            self.is_done = true;
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
            assert_eq!(expected.came_by(&mark), Some(frontend));
        }
        let opening = [
            &b"GET /i"[..],
            b"d/abcdefghijklmnopqrstuvwxyz234567 HTTP/1.1\r\n",
        ];
        let look = arrivals.look("carol").expect("one is");
        look.opening(&opening.map(Bytes::from_static).into());
        let tub = b"abcdefghijklmnopqrstuvwxyz234567";
        assert_eq!(expected.came_by(tub), Some("carol".into()));
        drop(expected);
        assert_eq!(arrivals.expect().came_by(tub), None, "it is forgotten");
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
