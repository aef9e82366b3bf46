//! Whose turn it is to be visited: visits are counted, in all and for each address, so that no stranger keeps the others out.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::limits::{Bucket, Rate};
use crate::household::Visitor;

/// Visits at one time.
pub const MAX_VISITS: usize = 256;
/// The same to one address.
pub const MAX_VISITS_PER_PEER: usize = 16;
/// The same to all that have none, which come through an onion service.
pub const MAX_VISITS_WITHOUT: usize = 64;
/// Visits within a minute; a frontend that was restarted has one for each tunnel.
pub const VISITS: Rate = Rate {
    count: 1200,
    seconds: 60,
};
/// The same to one address.
pub const VISITS_PER_PEER: Rate = Rate {
    count: 240,
    seconds: 60,
};
/// The same to all that have none.
pub const VISITS_WITHOUT: Rate = Rate {
    count: 600,
    seconds: 60,
};
/// Addresses that are remembered for their visits.
pub const MAX_PEERS: usize = 4096;

/// The turns of all.
pub(super) struct Visits {
    turns: Arc<Semaphore>,
    /// How long a turn is waited for.
    patience: Duration,
    counts: Mutex<Counts>,
}

#[derive(Default)]
struct Counts {
    all: Bucket,
    by_peer: HashMap<Option<Visitor>, Count>,
}

struct Count {
    arrivals: Bucket,
    turns: Arc<Semaphore>,
}

/// A turn, until it is dropped.
pub(super) struct Turn {
    _own: OwnedSemaphorePermit,
    _all: OwnedSemaphorePermit,
}

impl Visits {
    /// Turns that are waited for so long.
    pub(super) fn new(patience: Duration) -> Self {
        Self {
            turns: Arc::new(Semaphore::new(MAX_VISITS)),
            patience,
            counts: Mutex::default(),
        }
    }

    /// Waits for a turn. None if there are too many, within a minute or at once.
    pub(super) async fn turn(&self, peer: Option<Visitor>) -> Option<Turn> {
        let own = self.count(peer, Instant::now())?;
        let both = async {
            // Nobody closes them. Who waits for the second has not more of it than of the first.
            let _own = own.acquire_owned().await.ok()?;
            let _all = self.turns.clone().acquire_owned().await.ok()?;
            Some(Turn { _own, _all })
        };
        tokio::time::timeout(self.patience, both).await.ok()?
    }

    /// Counts a visit, unless there were too many.
    fn count(&self, peer: Option<Visitor>, now: Instant) -> Option<Arc<Semaphore>> {
        let (rate, turns) = match peer {
            Some(_) => (VISITS_PER_PEER, MAX_VISITS_PER_PEER),
            None => (VISITS_WITHOUT, MAX_VISITS_WITHOUT),
        };
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let Counts { all, by_peer } = &mut *counts;
        if by_peer.len() >= MAX_PEERS && !by_peer.contains_key(&peer) {
            by_peer.retain(|_, c| !c.arrivals.is_full(now) || Arc::strong_count(&c.turns) > 1);
            if by_peer.len() >= MAX_PEERS {
                return None;
            }
        }
        let own = by_peer.entry(peer).or_insert_with(|| Count {
            arrivals: Bucket::default(),
            turns: Arc::new(Semaphore::new(turns)),
        });
        if !own.arrivals.has(rate, now) || !all.has(VISITS, now) {
            return None;
        }
        own.arrivals.take(rate, now);
        all.take(VISITS, now);
        Some(own.turns.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_address_keeps_nobody_else_out() {
        let visits = Visits::new(Duration::from_millis(50));
        let (greedy, other) = (Some(Visitor(1)), Some(Visitor(2)));
        // It hangs in as many visits as it can get.
        let mut hanging = Vec::new();
        for _ in 0..MAX_VISITS_PER_PEER {
            hanging.push(visits.turn(greedy).await.expect("a turn"));
        }
        assert!(visits.turn(greedy).await.is_none());
        assert!(visits.turn(other).await.is_some());
        for _ in 0..MAX_VISITS_WITHOUT {
            hanging.push(visits.turn(None).await.expect("a turn"));
        }
        assert!(visits.turn(None).await.is_none());
        assert!(visits.turn(other).await.is_some());
        // A turn that is over is the next one's.
        hanging.clear();
        assert!(visits.turn(greedy).await.is_some());
        // Nor by many short ones.
        for _ in 0..2 * VISITS.count {
            visits.count(greedy, Instant::now());
            visits.count(None, Instant::now());
        }
        assert!(visits.turn(greedy).await.is_none());
        assert!(visits.turn(None).await.is_none());
        assert!(visits.turn(other).await.is_some());
    }

    #[tokio::test]
    async fn there_are_only_so_many_visits_to_all() {
        let visits = Visits::new(Duration::from_millis(50));
        let some = |n: usize| Some(Visitor(n as u64));
        let mut hanging = Vec::new();
        for n in 0..MAX_VISITS {
            let turn = visits.turn(some(n / MAX_VISITS_PER_PEER)).await;
            hanging.push(turn.expect("a turn"));
        }
        assert!(visits.turn(some(MAX_VISITS)).await.is_none());
        hanging.pop();
        assert!(visits.turn(some(MAX_VISITS)).await.is_some());

        let (visits, now) = (Visits::new(Duration::ZERO), Instant::now());
        for n in 0..VISITS.count as usize {
            assert!(visits.count(some(n % 10), now).is_some());
        }
        assert!(visits.count(some(10), now).is_none());
        let later = now + Duration::from_secs(VISITS.seconds.into());
        assert!(visits.count(some(10), later).is_some());
    }

    #[test]
    fn what_is_remembered_of_addresses_is_bounded() {
        let visits = Visits::new(Duration::ZERO);
        let begin = Instant::now();
        let seconds = |n: u64| begin + Duration::from_secs(n);
        for peer in 0..3 * MAX_PEERS as u64 {
            // 15 each second: fewer than the rate of all.
            visits.count(Some(Visitor(peer)), seconds(peer / 15));
            let counts = visits.counts.lock().expect("no panic");
            assert!(counts.by_peer.len() <= MAX_PEERS);
        }
        let late = seconds(3 * MAX_PEERS as u64);
        assert!(visits.count(Some(Visitor(u64::MAX)), late).is_some());
    }
}
