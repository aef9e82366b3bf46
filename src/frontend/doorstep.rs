//! Connections that have not yet said, or not yet proved, what they want. Their number is bounded, and nobody is
//! kept out by them: where there is no room for one more, one that has stood there for long has to go.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use crate::household::Visitor;

/// Connections at the doorstep at a time. For one more the oldest of whoever has most there is closed.
pub const MAX_WAITING: usize = 8 * 1024;
/// The same, of one address, or of one network of IPv6; those of this machine are not counted, as it may be a load
/// balancer or a Tor daemon. For one more the oldest of that address is closed.
pub const MAX_WAITING_PER_ADDRESS: usize = 256;

/// From whom a connection is, as far as the doorstep cares.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Whence {
    /// One address, or one network.
    Address(Visitor),
    /// Somebody who cannot be told from others: through an onion service, or over loopback.
    Anybody,
}

impl From<IpAddr> for Whence {
    fn from(address: IpAddr) -> Self {
        match address.to_canonical().is_loopback() {
            true => Self::Anybody,
            false => Self::Address(address.into()),
        }
    }
}

/// Who stands there.
#[derive(Default)]
pub(super) struct Doorstep(Mutex<Table>);

#[derive(Default)]
struct Table {
    next: u64,
    places: BTreeMap<u64, Waiting>,
    /// The places of each, the oldest first.
    of: HashMap<Whence, BTreeSet<u64>>,
    /// How many places each has, and its oldest: who is to go first comes last.
    crowds: BTreeSet<(usize, std::cmp::Reverse<u64>, Whence)>,
}

struct Waiting {
    from: Whence,
    send_away: oneshot::Sender<()>,
}

/// A place at the doorstep, until it is dropped.
pub(super) struct Place {
    doorstep: Arc<Doorstep>,
    number: u64,
    sent_away: oneshot::Receiver<()>,
}

impl Doorstep {
    /// One more comes. There is always a place.
    pub(super) fn enter(self: &Arc<Self>, from: Whence) -> Place {
        let (number, sent_away) = self.lock().add(from);
        Place {
            doorstep: self.clone(),
            number,
            sent_away,
        }
    }

    /// Closes one connection, if there is one: the oldest of whoever has most.
    pub(super) fn send_one_away(&self) {
        self.lock().send_one_away();
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place {
    /// What somebody at the doorstep does, unless it is sent away meanwhile.
    pub(super) async fn unless_sent_away<T>(
        &mut self,
        work: impl Future<Output = Option<T>>,
    ) -> Option<T> {
        tokio::select! {
            biased;
            done = work => done,
            // Its place is never dropped before it.
            _ = &mut self.sent_away => None,
        }
    }

    /// Waits until it has to leave. To be heard once.
    pub(super) async fn sent_away(&mut self) {
        // Never an error: it is dropped with its place.
        let _ = (&mut self.sent_away).await;
    }

    /// It turned out whom it is from.
    pub(super) fn is_from(&mut self, from: Whence) {
        let mut table = self.doorstep.lock();
        // One that is to go goes.
        if table.remove(self.number).is_some() {
            (self.number, self.sent_away) = table.add(from);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.doorstep.lock().remove(self.number);
    }
}

impl Table {
    fn add(&mut self, from: Whence) -> (u64, oneshot::Receiver<()>) {
        if let (Whence::Address(_), Some(theirs)) = (from, self.of.get(&from))
            && theirs.len() >= MAX_WAITING_PER_ADDRESS
        {
            self.send_away(theirs.first().copied());
        }
        if self.places.len() >= MAX_WAITING {
            self.send_one_away();
        }
        let number = self.next;
        self.next += 1;
        let (send_away, sent_away) = oneshot::channel();
        self.places.insert(number, Waiting { from, send_away });
        self.change(from, |theirs| theirs.insert(number));
        (number, sent_away)
    }

    fn remove(&mut self, number: u64) -> Option<Waiting> {
        let waiting = self.places.remove(&number)?;
        self.change(waiting.from, |theirs| theirs.remove(&number));
        Some(waiting)
    }

    fn send_one_away(&mut self) {
        let oldest = self.crowds.last().map(|(_, oldest, _)| oldest.0);
        self.send_away(oldest);
    }

    fn send_away(&mut self, number: Option<u64>) {
        if let Some(waiting) = number.and_then(|number| self.remove(number)) {
            // It may be leaving by itself.
            let _ = waiting.send_away.send(());
        }
    }

    /// Changes the places of one, and where it stands among the crowds.
    fn change(&mut self, from: Whence, change: impl FnOnce(&mut BTreeSet<u64>) -> bool) {
        let theirs = self.of.entry(from).or_default();
        let rank = |theirs: &BTreeSet<u64>| {
            let oldest = theirs.first().copied().unwrap_or_default();
            (theirs.len(), std::cmp::Reverse(oldest), from)
        };
        self.crowds.remove(&rank(theirs));
        change(theirs);
        if theirs.is_empty() {
            self.of.remove(&from);
        } else {
            self.crowds.insert(rank(theirs));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(n: u64) -> Whence {
        Whence::Address(Visitor(n))
    }

    fn is_away(place: &mut Place) -> bool {
        place.sent_away.try_recv().is_ok()
    }

    #[test]
    fn one_address_has_so_many_and_takes_nobody_elses() {
        let doorstep = Arc::new(Doorstep::default());
        let mut other = doorstep.enter(address(2));
        let mut first = doorstep.enter(address(1));
        let mut more: Vec<_> = (1..MAX_WAITING_PER_ADDRESS)
            .map(|_| doorstep.enter(address(1)))
            .collect();
        assert!(!is_away(&mut first));
        let _one_more = doorstep.enter(address(1));
        assert!(is_away(&mut first), "the oldest of that address goes");
        assert!(!is_away(&mut more[0]) && !is_away(&mut other));
        drop(more.remove(1));
        let _another = doorstep.enter(address(1));
        assert!(!is_away(&mut more[0]), "one has left by itself");
    }

    #[test]
    fn the_oldest_of_who_has_most_makes_room() {
        let doorstep = Arc::new(Doorstep::default());
        let mut patient = doorstep.enter(address(0));
        let mut crowd: Vec<_> = (1..MAX_WAITING)
            .map(|_| doorstep.enter(Whence::Anybody))
            .collect();
        let mut new = doorstep.enter(address(7));
        assert!(is_away(&mut crowd[0]) && !is_away(&mut crowd[1]));
        doorstep.send_one_away();
        assert!(is_away(&mut crowd[1]));
        assert!(
            !is_away(&mut patient),
            "older, and one of its kind has only one"
        );
        assert!(!is_away(&mut new));
        drop(crowd);
        doorstep.send_one_away();
        assert!(is_away(&mut patient), "all have as many: the oldest");
        doorstep.send_one_away();
        assert!(is_away(&mut new));
        doorstep.send_one_away();
        drop((patient, new));
        let table = doorstep.lock();
        assert!(table.places.is_empty() && table.of.is_empty() && table.crowds.is_empty());
    }

    #[test]
    fn whoever_a_load_balancer_names_is_counted_as_that() {
        let doorstep = Arc::new(Doorstep::default());
        let loopback: IpAddr = [127, 0, 0, 9].into();
        let places: Vec<_> = (0..=MAX_WAITING_PER_ADDRESS)
            .map(|_| doorstep.enter(loopback.into()))
            .collect();
        let mut places: Vec<_> = places
            .into_iter()
            .map(|mut place| {
                assert!(!is_away(&mut place));
                place.is_from(IpAddr::from([198, 51, 100, 7]).into());
                place
            })
            .collect();
        assert!(is_away(&mut places[0]) && !is_away(&mut places[1]));
        places[0].is_from(Whence::Anybody);
        drop(places);
        assert!(doorstep.lock().places.is_empty());
    }
}
