//! Log lines that strangers can cause: not for each of them, or they could fill a disk.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Between two lines of one kind.
pub const PAUSE: Duration = Duration::from_secs(60);

/// Lines of one kind, of which one is due in [`PAUSE`].
#[derive(Debug, Default)]
pub struct Hush(Mutex<Held>);

#[derive(Debug, Default)]
struct Held {
    last: Option<Instant>,
    number: u64,
}

/// How many lines were held back since the last one; shown as an addition to the line.
#[derive(Debug, PartialEq, Eq)]
pub struct Before(u64);

impl Hush {
    /// If a line is due now: how many were not written before it.
    pub fn due(&self, now: Instant) -> Option<Before> {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        held.due(PAUSE, now)
    }
}

impl Held {
    fn due(&mut self, pause: Duration, now: Instant) -> Option<Before> {
        let last = self.last;
        if last.is_some_and(|last| now.saturating_duration_since(last) < pause) {
            self.number += 1;
            return None;
        }
        self.last = Some(now);
        Some(Before(std::mem::take(&mut self.number)))
    }
}

/// Most things whose state is remembered by [`Hushes`]. The state of others is told as one.
pub const MAX_HUSHED: usize = 256;

/// What many things are told to be, of which strangers may have made up some: each state of each is told when it begins, and
/// then at most once in a while, with a count.
#[derive(Debug, Default)]
pub struct Hushes(Mutex<HashMap<String, (String, Held)>>);

impl Hushes {
    /// If a line is due that this thing is in this state: how many were not written before it.
    pub fn due(&self, thing: &str, state: &str, pause: Duration, now: Instant) -> Option<Before> {
        let mut known = self.lock();
        if !known.contains_key(thing) && known.len() >= MAX_HUSHED {
            let is_old = |held: &Held| held.last.is_none_or(|at| now - at >= pause);
            known.retain(|_, (_, held)| !is_old(held));
        }
        let full = known.len() >= MAX_HUSHED && !known.contains_key(thing);
        let (thing, state) = if full { ("", "") } else { (thing, state) };
        let (was, held) = known.entry(thing.to_owned()).or_default();
        if was != state {
            (*was, *held) = (state.to_owned(), Held::default());
        }
        held.due(pause, now)
    }

    /// It is well again: whatever comes next is news.
    pub fn forget(&self, thing: &str) {
        self.lock().remove(thing);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, (String, Held)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Display for Before {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            0 => Ok(()),
            n => write!(f, " (and {n} more like this)"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_a_minute_says_how_many_it_stands_for() {
        let (hush, start) = (Hush::default(), Instant::now());
        assert_eq!(hush.due(start), Some(Before(0)));
        assert_eq!(hush.due(start + PAUSE / 2), None);
        assert_eq!(hush.due(start + PAUSE / 2), None);
        let next = hush.due(start + PAUSE).expect("it is due");
        assert_eq!(next.to_string(), " (and 2 more like this)");
        assert_eq!(hush.due(start + PAUSE * 2), Some(Before(0)));
        assert_eq!(Before(0).to_string(), "");
    }

    #[test]
    fn a_state_is_told_when_it_begins_and_then_rarely() {
        let (hushes, start) = (Hushes::default(), Instant::now());
        let due = |thing: &str, state: &str, at| hushes.due(thing, state, PAUSE, at);
        assert_eq!(due("bob", "the secret is wrong", start), Some(Before(0)));
        assert_eq!(due("bob", "the secret is wrong", start), None);
        assert_eq!(due("eve", "the secret is wrong", start), Some(Before(0)));
        assert_eq!(due("bob", "it has expired", start), Some(Before(0)), "news");
        assert_eq!(due("bob", "it has expired", start + PAUSE / 2), None);
        assert_eq!(due("bob", "it has expired", start + PAUSE), Some(Before(1)));
        hushes.forget("bob");
        assert_eq!(due("bob", "it has expired", start + PAUSE), Some(Before(0)));
    }

    #[test]
    fn names_that_a_stranger_makes_up_fill_nothing() {
        let (hushes, start) = (Hushes::default(), Instant::now());
        let due = |n: usize, at| hushes.due(&n.to_string(), "unknown", PAUSE, at);
        let told = (0..10 * MAX_HUSHED).filter(|n| due(*n, start).is_some());
        // The one more is for all that have no place.
        assert_eq!(told.count(), MAX_HUSHED + 1);
        assert!(hushes.lock().len() <= MAX_HUSHED + 1);
        let later = start + PAUSE;
        assert_eq!(
            due(usize::MAX, later),
            Some(Before(0)),
            "there is room again"
        );
        assert!(hushes.lock().len() <= 2);
    }
}
