//! How long what has come for a stream waits for its local side (sans-IO): who has stalled is told from who is slow.

use std::time::{Duration, Instant};

/// Anybody may take so long: a scheduler's turn, a network's delay.
const SHORT: Duration = Duration::from_millis(100);
/// Whoever usually takes longer than this has no excuse. A socket that takes 100 KB in a second asks for more about once a second.
const LONG: Duration = Duration::from_secs(2);
/// What is usual is forgotten within so many times as long.
const MEMORY: u32 = 16;

/// What waits, and how long it usually does.
#[derive(Debug, Default)]
pub struct Waiting {
    /// Nothing has been taken since, and there was something all the time.
    since: Option<Instant>,
    usual: Duration,
}

impl Waiting {
    /// Something came.
    pub fn came(&mut self, now: Instant) {
        self.since.get_or_insert(now);
    }

    /// The local side took something; `more` is still there.
    pub fn took(&mut self, more: bool, now: Instant) {
        let waited = self.waited(now);
        let faded = self.usual.saturating_sub(waited / MEMORY);
        self.usual = faded.max(waited.min(LONG));
        self.since = more.then_some(now);
    }

    fn waited(&self, now: Instant) -> Duration {
        self.since
            .map_or(Duration::ZERO, |since| now.saturating_duration_since(since))
    }

    /// How much longer than usual it waits by now, and how long in all: of several streams, the largest has stalled.
    pub fn stalled(&self, now: Instant) -> (Duration, Duration) {
        let waited = self.waited(now);
        (waited.saturating_sub(self.usual.max(SHORT)), waited)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn what_is_usual_is_no_stall_and_is_forgotten() {
        let mut now = Instant::now();
        let mut slow = Waiting::default();
        let mut takes_after = |pause: Duration| {
            slow.came(now);
            now += pause;
            let stalled = slow.stalled(now).0;
            slow.took(true, now);
            stalled
        };
        assert_eq!(takes_after(SHORT), Duration::ZERO);
        assert_eq!(takes_after(SECOND), SECOND - SHORT);
        assert_eq!(takes_after(SECOND), Duration::ZERO);
        // No habit is longer than this.
        takes_after(60 * SECOND);
        assert_eq!(takes_after(60 * SECOND), 60 * SECOND - LONG);
        for _ in 0..MEMORY * 20 {
            takes_after(SHORT);
        }
        assert_eq!(takes_after(SECOND), SECOND - SHORT);
    }

    #[test]
    fn where_nothing_is_there_nothing_waits() {
        let now = Instant::now();
        let mut idle = Waiting::default();
        idle.came(now);
        idle.took(false, now);
        let late = now + 1000 * SECOND;
        idle.came(late);
        assert_eq!(idle.stalled(late + SHORT), (Duration::ZERO, SHORT));
    }
}
