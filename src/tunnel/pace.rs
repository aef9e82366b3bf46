//! How much of a stream may be on the way (sans-IO): what the path holds, and a little more.
//!
//! A window that is smaller than bandwidth times delay leaves a long path idle; a larger one only fills the
//! path's queue, in which everybody's bytes then wait. So each stream measures, about once a round trip, how
//! fast the peer passes its bytes on, and the tunnel remembers its shortest round trip:
//!
//! ```text
//! window = rate * (shortest round trip * gain + SLACK)
//! ```
//!
//! The gain is 2 until a queue shows, then a quarter over one while none does, and hardly more than one when one does (over a
//! path of over 150 ms one and a half, either way). The idea is that of BBR (Cardwell et al., "BBR: Congestion-Based Congestion Control", ACM Queue 2016), without
//! its pacing: TCP, or Tor, has a congestion control of its own below us.

use std::time::{Duration, Instant};

/// Bytes of a new stream on the way, before anything is known of the path.
pub const FIRST_WINDOW: u64 = 256 * 1024;
/// The least that a stream may have on the way, whatever was measured. More than any acknowledgement is late by.
pub const MIN_WINDOW: u64 = 128 * 1024;
/// A shortest round trip over this is Tor's, most often, whose delays jitter by themselves, and which holds back what is too
/// much: the window allows for half as much again.
const LONG: Duration = Duration::from_millis(150);
/// The least window there.
const MIN_LONG_WINDOW: u64 = 512 * 1024;
/// The least payload of one frame, where there is as much; else what passes in `CHUNK_TIME`.
pub const MIN_CHUNK: usize = 16 * 1024;
/// Before anything is known of the path.
const FIRST_CHUNK: usize = 64 * 1024;
/// How long one frame of a stream may keep the others waiting.
const CHUNK_TIME: Duration = Duration::from_micros(120);
/// The delay that a window allows for beside the path's: two ends that take turns on a busy machine.
const SLACK: Duration = Duration::from_micros(150);
/// How long bytes are counted until the tunnel's rate is known anew.
const METER: Duration = Duration::from_millis(20);
/// The shortest round trip is forgotten after one to two of these: paths change.
const MEMORY: Duration = Duration::from_secs(10);
/// The best rate is that of the last eight to sixteen measurements: a path's own jitter must not pass for a slow one.
const RATES: u8 = 8;

/// What a tunnel's path was like of late.
#[derive(Debug, Default)]
pub struct Path {
    newest: Look,
    older: Look,
    since: Option<Instant>,
    epoch: u8,
    meter: Meter,
}

/// What all streams of a tunnel have had passed on.
#[derive(Debug, Default)]
struct Meter {
    since: Option<Instant>,
    bytes: u64,
    /// Bytes a second; 0 until known.
    rate: u64,
}

#[derive(Debug, Default)]
struct Look {
    shortest: Option<Duration>,
    /// The most that all streams had on the way without a queue.
    held: u64,
}

impl Path {
    /// One round trip was measured; queues at either end may have made it longer than the path.
    pub fn note(&mut self, rtt: Duration, now: Instant) {
        let since = *self.since.get_or_insert(now);
        if now.saturating_duration_since(since) > MEMORY {
            self.older = std::mem::take(&mut self.newest);
            self.since = Some(now);
            self.epoch = self.epoch.wrapping_add(1);
        }
        let newest = &mut self.newest.shortest;
        *newest = Some(newest.map_or(rtt, |least| least.min(rtt)));
    }

    /// `None` until something was measured.
    pub fn shortest(&self) -> Option<Duration> {
        self.newest
            .shortest
            .into_iter()
            .chain(self.older.shortest)
            .min()
    }

    /// Bytes that the path holds, as far as is known: what a new stream may count on, less what others have on the way.
    pub fn holds(&self) -> u64 {
        self.newest.held.max(self.older.held)
    }

    /// The peer has passed on so many bytes more of some stream.
    pub fn passed(&mut self, bytes: u64, now: Instant) {
        let meter = &mut self.meter;
        let taken = now.saturating_duration_since(*meter.since.get_or_insert(now));
        meter.bytes += bytes;
        if taken >= METER {
            meter.rate = rate_of(meter.bytes, taken);
            (meter.bytes, meter.since) = (0, Some(now));
        }
    }

    /// Payload of one frame, in bytes; `most` at most. All streams' speed counts: what waits behind a frame
    /// waits for the tunnel.
    pub fn chunk(&self, most: usize) -> usize {
        let chunk = match self.meter.rate {
            0 => FIRST_CHUNK,
            rate => usize::try_from(bytes_in(rate, CHUNK_TIME)).unwrap_or(usize::MAX),
        };
        chunk.max(MIN_CHUNK).min(most)
    }
}

/// What one stream may have on the way. Sizes are in bytes.
#[derive(Debug)]
pub struct Pace {
    window: u64,
    /// Bytes a second that the peer passed on, at the best of these measurements, and of those before; 0 until measured.
    rate: u64,
    rate_before: u64,
    /// How many these are, of [`RATES`].
    measured: u8,
    /// No queue has shown yet.
    starting: bool,
    /// The path's, when this stream last made room for a look at its shortest round trip.
    epoch: u8,
    probe: Option<Probe>,
}

/// One measurement under way: from the sending of some byte to its acknowledgement.
#[derive(Debug)]
struct Probe {
    end: u64,
    at: Instant,
    acked: u64,
    /// The window held the stream back meanwhile; else the rate is its own, not the path's.
    held: bool,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            window: FIRST_WINDOW,
            rate: 0,
            rate_before: 0,
            measured: 0,
            starting: true,
            epoch: 0,
            probe: None,
        }
    }
}

impl Pace {
    /// How much may be on the way; `spare` bytes at least, which others leave over, until a queue
    /// has shown.
    pub fn window(&self, spare: u64) -> u64 {
        match self.starting {
            true => self.window.max(spare),
            false => self.window,
        }
    }

    fn best_rate(&self) -> u64 {
        self.rate.max(self.rate_before)
    }

    /// The window has held the stream back.
    pub fn held(&mut self) {
        if let Some(probe) = &mut self.probe {
            probe.held = true;
        }
    }

    /// Bytes up to `end` are being sent, of which `acked` are acknowledged. After a rest (`fresh`) an
    /// acknowledgement may have been owed for long, and tells nothing of the path.
    pub fn sent(&mut self, end: u64, acked: u64, fresh: bool, now: Instant) {
        if self.probe.is_none() || fresh {
            self.probe = Some(Probe {
                end,
                at: now,
                acked,
                held: false,
            });
        }
    }

    /// Bytes up to `acked` have been passed on; all streams have `in_flight` on the way, and the peer takes
    /// `most` of this one.
    pub fn acknowledged(
        &mut self,
        acked: u64,
        path: &mut Path,
        in_flight: u64,
        most: u64,
        now: Instant,
    ) {
        let Some(probe) = self.probe.take_if(|probe| acked >= probe.end) else {
            return;
        };
        let rtt = now
            .saturating_duration_since(probe.at)
            .max(Duration::from_micros(1));
        path.note(rtt, now);
        let Some(shortest) = path.shortest() else {
            return;
        };
        let passed = acked - probe.acked;
        let rate = rate_of(passed, rtt);
        if !probe.held && rate <= self.best_rate() {
            return;
        }
        if self.measured == RATES {
            self.rate_before = std::mem::take(&mut self.rate);
            self.measured = 0;
        }
        self.measured += 1;
        self.rate = self.rate.max(rate);
        if rtt <= shortest + shortest / 4 + SLACK {
            path.newest.held = path.newest.held.max(in_flight);
        } else if probe.held {
            self.starting = false;
        }
        // What is taken off for a look at the path, and what is left at least.
        let (part, least) = match shortest > LONG {
            true => (2, MIN_LONG_WINDOW),
            false => (8, MIN_WINDOW),
        };
        let free = rtt <= shortest + shortest / 64 + SLACK / 2;
        let delay = match (self.starting, free) {
            (true, _) => shortest * 2,
            (false, _) if shortest > LONG => shortest + shortest / 2,
            (false, true) => shortest + shortest / 4,
            (false, false) => shortest + shortest / 16,
        };
        let mut window = bytes_in(self.best_rate(), delay + SLACK);
        if !probe.held {
            window = window.max(self.window);
        }
        if self.epoch != path.epoch {
            // A short look at the path without a queue of ours.
            self.epoch = path.epoch;
            window -= window / part;
        }
        self.window = window.max(least).min(most);
    }
}

fn rate_of(bytes: u64, time: Duration) -> u64 {
    u64::try_from(u128::from(bytes) * 1_000_000_000 / time.as_nanos().max(1)).unwrap_or(u64::MAX)
}

fn bytes_in(rate: u64, time: Duration) -> u64 {
    u64::try_from(u128::from(rate) * time.as_nanos() / 1_000_000_000).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOST: u64 = 32 << 20;

    /// A stream that always has something to send, over a path of this rate (bytes a second) and delay: the round trips,
    /// and the windows, of so many rounds.
    fn fly(
        pace: &mut Pace,
        path: &mut Path,
        rate: u64,
        delay: Duration,
        start: Instant,
    ) -> (Instant, Duration) {
        fly_through(pace, path, rate, || delay, start)
    }

    fn fly_through(
        pace: &mut Pace,
        path: &mut Path,
        rate: u64,
        mut delay: impl FnMut() -> Duration,
        start: Instant,
    ) -> (Instant, Duration) {
        let (mut now, mut acked, mut last) = (start, 0, Duration::ZERO);
        for _ in 0..200 {
            let window = pace.window(0);
            let sent = acked + window;
            pace.sent(sent, acked, false, now);
            pace.held();
            let queue = Duration::from_secs_f64(window as f64 / rate as f64);
            last = delay().max(queue);
            now += last;
            acked = sent;
            pace.acknowledged(acked, path, window, MOST, now);
        }
        (now, last)
    }

    #[test]
    fn a_window_grows_to_what_the_path_holds_and_no_further() {
        for (rate, ms) in [
            (4_000_000, 100),
            (250_000_000, 100),
            (20_000_000, 500),
            (1_000_000_000, 1),
        ] {
            let delay = Duration::from_millis(ms);
            let (mut pace, mut path) = (Pace::default(), Path::default());
            let (_, rtt) = fly(&mut pace, &mut path, rate, delay, Instant::now());
            let holds = bytes_in(rate, delay);
            assert!(
                pace.window(0) >= holds.min(MOST) / 8 * 7,
                "{rate} B/s, {ms} ms: {}",
                pace.window(0)
            );
            assert!(
                rtt <= delay + delay / if delay > LONG { 2 } else { 10 } + SLACK,
                "{rate} B/s, {ms} ms: {rtt:?}"
            );
        }
    }

    #[test]
    fn a_frame_is_as_long_as_the_tunnel_is_fast() {
        let (mut path, mut now) = (Path::default(), Instant::now());
        assert_eq!(path.chunk(1 << 20), FIRST_CHUNK);
        for (rate, chunk) in [(1_000_000_000, 120_000), (50_000_000, MIN_CHUNK)] {
            for _ in 0..3 {
                path.passed(rate / 50, now);
                now += METER;
            }
            assert_eq!(path.chunk(1 << 20), chunk);
        }
    }

    #[test]
    fn a_paths_own_jitter_is_no_queue() {
        use rand::{Rng, SeedableRng, rngs::StdRng};
        for seed in 0..10 {
            let (mut pace, mut path) = (Pace::default(), Path::default());
            let mut random = StdRng::seed_from_u64(seed);
            let delay = || Duration::from_millis(random.random_range(400..800));
            fly_through(&mut pace, &mut path, 10_000_000, delay, Instant::now());
            assert!(pace.window(0) >= 2_000_000, "{}", pace.window(0));
        }
    }

    #[test]
    fn a_path_that_becomes_longer_is_noticed() {
        let (mut pace, mut path) = (Pace::default(), Path::default());
        let (short, long) = (Duration::from_millis(20), Duration::from_millis(100));
        let (now, _) = fly(&mut pace, &mut path, 50_000_000, short, Instant::now());
        let (now, _) = fly(&mut pace, &mut path, 50_000_000, long, now);
        fly(&mut pace, &mut path, 50_000_000, long, now);
        assert!(
            pace.window(0) >= bytes_in(50_000_000, long),
            "{}",
            pace.window(0)
        );
    }

    #[test]
    fn what_the_stream_itself_holds_back_shrinks_nothing() {
        let (mut pace, mut path) = (Pace::default(), Path::default());
        let (now, _) = fly(
            &mut pace,
            &mut path,
            50_000_000,
            Duration::from_millis(100),
            Instant::now(),
        );
        let before = pace.window(0);
        pace.sent(1000, 0, true, now);
        pace.acknowledged(
            1000,
            &mut path,
            1000,
            MOST,
            now + Duration::from_millis(100),
        );
        assert_eq!(pace.window(0), before);
    }
}
