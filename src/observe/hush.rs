//! Log lines that strangers can cause: not for each of them, or they could fill a disk.

use std::fmt;
use std::sync::{Mutex, PoisonError};
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
        if held
            .last
            .is_some_and(|last| now.saturating_duration_since(last) < PAUSE)
        {
            held.number += 1;
            return None;
        }
        held.last = Some(now);
        Some(Before(std::mem::take(&mut held.number)))
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
}
