//! What passes, in numbers: visitors, bytes, refusals. Nobody's address is among them.
//!
//! Who carries bytes adds to a [`Count`] of its own with two atomics and no lock; sums are made when somebody asks.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::status::Rate;
use crate::tunnel::splice::Flow;

/// Kites and tunnels that are counted apart. Those beyond are counted together, without a name.
pub const MAX_COUNTS: usize = 4096;

/// Why a visitor was sent away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// Nothing flies under that name here.
    NotHere,
    /// The kite is not for what the visitor speaks, or is another's.
    NotForThis,
    /// What it said cannot be understood.
    Malformed,
    /// The kite has as many visitors as it may.
    Streams,
    /// And of one address.
    StreamsPerVisitor,
    /// Too many came to it within a time.
    Rate,
    /// And from one address.
    RatePerVisitor,
    /// Too many different addresses came within a time.
    Visitors,
    /// What the kite may carry is used up, or its time is.
    Ended,
    /// It did not say in time what it wants.
    Slow,
    /// The origin is down, or not what it should be.
    NoOrigin,
    /// No tunnel took it.
    NoTunnel,
}

impl Reason {
    /// All there are.
    pub const ALL: [Self; 12] = [
        Self::NotHere,
        Self::NotForThis,
        Self::Malformed,
        Self::Streams,
        Self::StreamsPerVisitor,
        Self::Rate,
        Self::RatePerVisitor,
        Self::Visitors,
        Self::Ended,
        Self::Slow,
        Self::NoOrigin,
        Self::NoTunnel,
    ];

    /// What status and metrics call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::NotHere => "not-here",
            Self::NotForThis => "not-for-this",
            Self::Malformed => "malformed",
            Self::Streams => "limit-streams",
            Self::StreamsPerVisitor => "limit-streams-per-visitor",
            Self::Rate => "limit-rate",
            Self::RatePerVisitor => "limit-rate-per-visitor",
            Self::Visitors => "limit-visitors",
            Self::Ended => "ended",
            Self::Slow => "too-slow",
            Self::NoOrigin => "no-origin",
            Self::NoTunnel => "no-tunnel",
        }
    }
}

/// What is counted together: the visitors of one kite, through one tunnel.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Of {
    /// At a backend, the frontend's address and the tunnel's number there, from 1.
    pub tunnel: Option<(String, u8)>,
    /// The kite, `protocol:name`; none for visitors of nobody.
    pub kite: Option<String>,
}

/// The numbers of one kite's visitors through one tunnel.
#[derive(Debug, Default)]
pub struct Count {
    visitors: AtomicU64,
    open: AtomicUsize,
    refused: [AtomicU64; Reason::ALL.len()],
    flow: Arc<Flow>,
    /// The tunnel's bytes are the visitor's at a backend, and the kite's at a frontend.
    at_backend: bool,
}

impl Count {
    /// A visitor has come through. It is open until what this returns is dropped.
    pub fn enter(self: &Arc<Self>) -> Inside {
        self.visitors.fetch_add(1, Ordering::Relaxed);
        self.open.fetch_add(1, Ordering::Relaxed);
        Inside(self.clone())
    }

    /// A visitor was sent away.
    pub fn refuse(&self, why: Reason) {
        if let Some(count) = self.refused.get(why as usize) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The numbers, now.
    pub fn sum(&self) -> Sum {
        let (from_tunnel, to_tunnel) = self.flow.get();
        let (from_visitors, to_visitors) = match self.at_backend {
            true => (from_tunnel, to_tunnel),
            false => (to_tunnel, from_tunnel),
        };
        let mut refused = [0; Reason::ALL.len()];
        for (slot, count) in refused.iter_mut().zip(&self.refused) {
            *slot = count.load(Ordering::Relaxed);
        }
        Sum {
            visitors: self.visitors.load(Ordering::Relaxed),
            open: self.open.load(Ordering::Relaxed),
            refused,
            from_visitors,
            to_visitors,
        }
    }
}

/// One visitor that is there.
pub struct Inside(Arc<Count>);

impl Inside {
    /// Where its bytes are counted.
    pub fn flow(&self) -> Arc<Flow> {
        self.0.flow.clone()
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Numbers, added up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sum {
    /// Visitors that came through since the start.
    pub visitors: u64,
    /// Those that are there now.
    pub open: usize,
    /// Those that were sent away, in the order of [`Reason::ALL`].
    pub refused: [u64; Reason::ALL.len()],
    /// Bytes from visitors.
    pub from_visitors: u64,
    /// Bytes to visitors.
    pub to_visitors: u64,
}

impl Sum {
    /// Refusals by their names, without those that never happened.
    pub fn refusals(&self) -> BTreeMap<String, u64> {
        let all = Reason::ALL.iter().zip(self.refused);
        all.filter(|(_, n)| *n > 0)
            .map(|(reason, n)| (reason.name().to_owned(), n))
            .collect()
    }
}

impl std::ops::AddAssign for Sum {
    fn add_assign(&mut self, other: Self) {
        self.visitors += other.visitors;
        self.open += other.open;
        for (slot, n) in self.refused.iter_mut().zip(other.refused) {
            *slot += n;
        }
        self.from_visitors += other.from_visitors;
        self.to_visitors += other.to_visitors;
    }
}

impl std::iter::Sum for Sum {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), |mut sum, one| {
            sum += one;
            sum
        })
    }
}

/// All counts of a running kite. Clones are handles to the same.
#[derive(Debug, Clone, Default)]
pub struct Ledger(Arc<Mutex<HashMap<Of, Arc<Count>>>>);

impl Ledger {
    /// Where the visitors of this kite through this tunnel are counted, as ever.
    pub fn count(&self, of: Of) -> Arc<Count> {
        let mut counts = self.lock();
        let full = counts.len() >= MAX_COUNTS;
        let of = match full && !counts.contains_key(&of) {
            true => Of { kite: None, ..of },
            false => of,
        };
        let of = match full && !counts.contains_key(&of) {
            true => Of::default(),
            false => of,
        };
        let at_backend = of.tunnel.is_some();
        counts
            .entry(of)
            .or_insert_with(|| {
                Arc::new(Count {
                    at_backend,
                    ..Count::default()
                })
            })
            .clone()
    }

    /// All numbers, now.
    pub fn sums(&self) -> Vec<(Of, Sum)> {
        let counts = self.lock();
        counts
            .iter()
            .map(|(of, count)| (of.clone(), count.sum()))
            .collect()
    }

    /// All together.
    pub fn total(&self) -> Sum {
        self.lock().values().map(|count| count.sum()).sum()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Of, Arc<Count>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How fast it goes: looks at a ledger every [`LOOK`], and remembers the looks of the last [`SPAN`].
#[derive(Debug, Clone, Default)]
pub struct Speed(Arc<Mutex<VecDeque<(Instant, u64, u64)>>>);

/// How often a running kite looks at its counts.
pub const LOOK: Duration = Duration::from_secs(1);
/// Over how long a speed is measured.
pub const SPAN: Duration = Duration::from_secs(5);

impl Speed {
    /// Looks for as long as it is polled.
    pub async fn watch(self, ledger: Ledger) {
        loop {
            self.look(Instant::now(), ledger.total());
            tokio::time::sleep(LOOK).await;
        }
    }

    fn look(&self, now: Instant, total: Sum) {
        let mut looks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let old = |(at, ..): &(Instant, u64, u64)| now.saturating_duration_since(*at) > SPAN;
        while looks.len() > 1 && looks.front().is_some_and(old) {
            looks.pop_front();
        }
        looks.push_back((now, total.from_visitors, total.to_visitors));
    }

    /// Bytes per second, both ways.
    pub fn now(&self) -> Rate {
        let looks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (Some(first), Some(last)) = (looks.front(), looks.back()) else {
            return Rate::default();
        };
        let seconds = last.0.saturating_duration_since(first.0).as_secs_f64();
        if seconds <= 0.0 {
            return Rate::default();
        }
        let per_second = |from: u64, to: u64| (to.saturating_sub(from) as f64 / seconds) as u64;
        Rate {
            from_visitors: per_second(first.1, last.1),
            to_visitors: per_second(first.2, last.2),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(kite: &str) -> Of {
        Of {
            tunnel: Some(("frontend".to_owned(), 1)),
            kite: Some(kite.to_owned()),
        }
    }

    #[test]
    fn visitors_are_there_until_they_leave() {
        let ledger = Ledger::default();
        let (a, b) = (ledger.count(of("a")), ledger.count(of("b")));
        let (one, two) = (a.enter(), b.enter());
        one.flow().from_tunnel(5);
        two.flow().to_tunnel(7);
        drop(two);
        a.refuse(Reason::Slow);
        let total = ledger.total();
        assert_eq!((total.visitors, total.open), (2, 1));
        assert_eq!((total.from_visitors, total.to_visitors), (5, 7));
        assert_eq!(total.refusals(), [("too-slow".to_owned(), 1)].into());
        drop(one);
        assert_eq!(ledger.count(of("a")).sum().visitors, 1);
        assert_eq!(ledger.total().open, 0);
    }

    #[test]
    fn at_a_frontend_what_goes_into_the_tunnel_is_from_visitors() {
        let count = Ledger::default().count(Of::default());
        count.enter().flow().to_tunnel(3);
        assert_eq!(count.sum().from_visitors, 3);
    }

    #[test]
    fn a_speed_is_that_of_the_last_seconds() {
        let speed = Speed::default();
        assert_eq!(speed.now(), Rate::default());
        let began = Instant::now();
        let mut total = Sum::default();
        for second in 0..20 {
            total.from_visitors += 100;
            total.to_visitors += if second < 10 { 5_000 } else { 0 };
            speed.look(began + second * LOOK, total);
        }
        let now = speed.now();
        assert_eq!((now.from_visitors, now.to_visitors), (100, 0));
    }

    #[test]
    fn reasons_stand_at_their_places() {
        for (place, reason) in Reason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, place);
        }
    }

    #[test]
    fn too_many_names_are_counted_together() {
        let ledger = Ledger::default();
        for n in 0..2 * MAX_COUNTS {
            drop(ledger.count(of(&n.to_string())).enter());
        }
        assert!(ledger.sums().len() <= MAX_COUNTS + 2);
        assert_eq!(ledger.total().visitors, 2 * MAX_COUNTS as u64);
    }
}
