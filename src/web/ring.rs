//! Traffic of the last hour and the last day, in a fixed number of slots. Sans-IO: counters and the time are handed in.
//!
//! A slot belongs to a stretch of time by its number, `now / step`. So a clock that jumps ahead leaves empty slots, and
//! one that jumps back writes into slots that it finds taken by the future: those are forgotten.

use serde::{Deserialize, Serialize};

/// A slot of the last hour, in seconds.
pub const FINE_STEP: u64 = 10;
/// Slots of the last hour.
pub const FINE_SLOTS: usize = 360;
/// A slot of the last day, in seconds.
pub const COARSE_STEP: u64 = 300;
/// Slots of the last day.
pub const COARSE_SLOTS: usize = 288;

/// What the file begins with: another form has another word.
const MAGIC: &[u8; 8] = b"kitering";
/// The form.
const VERSION: u32 = 1;
/// Magic, form, and a check sum at the end.
const FRAME: usize = 8 + 4 + 8;
/// Bytes of a slot in the file: when, from visitors, to visitors, streams.
const SLOT: usize = 8 + 8 + 8 + 4;
/// The file's size: always this.
pub const FILE: usize = FRAME + (FINE_SLOTS + COARSE_SLOTS) * SLOT;

/// What passed in one stretch of time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Slot {
    /// The stretch: seconds since 1970, through its length. 0 is none.
    number: u64,
    /// Bytes from visitors.
    from_visitors: u64,
    /// Bytes to visitors.
    to_visitors: u64,
    /// Most streams that were open at one time.
    streams: u32,
}

/// Counters, as they stand: they only grow, and begin at 0 with the process.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Bytes from visitors.
    pub from_visitors: u64,
    /// Bytes to visitors.
    pub to_visitors: u64,
    /// Streams that are open now.
    pub streams: u32,
}

/// Both rings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ring {
    fine: Vec<Slot>,
    coarse: Vec<Slot>,
    /// The counters at the last look.
    last: Counters,
}

/// One ring as a plot wants it: the oldest first, one entry for each stretch, empty ones included.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Plot {
    /// The length of a stretch, in seconds.
    pub step: u64,
    /// When the last stretch began, in seconds since 1970.
    pub last: u64,
    /// Bytes from visitors.
    pub from_visitors: Vec<u64>,
    /// Bytes to visitors.
    pub to_visitors: Vec<u64>,
    /// Most streams that were open at one time.
    pub streams: Vec<u32>,
}

/// Why a file is of no use.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("it is torn, damaged, or of another version")]
pub struct Damaged;

impl Default for Ring {
    fn default() -> Self {
        Self {
            fine: vec![Slot::default(); FINE_SLOTS],
            coarse: vec![Slot::default(); COARSE_SLOTS],
            last: Counters::default(),
        }
    }
}

impl Ring {
    /// Takes what has passed since the last look. `now` is in seconds since 1970.
    pub fn take(&mut self, now: u64, counters: Counters) {
        let passed = Slot {
            number: 0,
            from_visitors: counters
                .from_visitors
                .saturating_sub(self.last.from_visitors),
            to_visitors: counters.to_visitors.saturating_sub(self.last.to_visitors),
            streams: counters.streams,
        };
        self.last = counters;
        add(&mut self.fine, now / FINE_STEP, passed);
        add(&mut self.coarse, now / COARSE_STEP, passed);
    }

    /// The last hour.
    pub fn hour(&self, now: u64) -> Plot {
        plot(&self.fine, now, FINE_STEP)
    }

    /// The last day.
    pub fn day(&self, now: u64) -> Plot {
        plot(&self.coarse, now, COARSE_STEP)
    }

    /// As it is kept: [`FILE`] bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(FILE);
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        for slot in self.fine.iter().chain(&self.coarse) {
            bytes.extend_from_slice(&slot.number.to_le_bytes());
            bytes.extend_from_slice(&slot.from_visitors.to_le_bytes());
            bytes.extend_from_slice(&slot.to_visitors.to_le_bytes());
            bytes.extend_from_slice(&slot.streams.to_le_bytes());
        }
        let sum = check_sum(&bytes);
        bytes.extend_from_slice(&sum.to_le_bytes());
        bytes
    }

    /// From what was kept. The counters begin anew, as the process does.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, Damaged> {
        let (body, sum) = bytes.split_last_chunk::<8>().ok_or(Damaged)?;
        let whole = bytes.len() == FILE && check_sum(body) == u64::from_le_bytes(*sum);
        let slots = body
            .strip_prefix(MAGIC)
            .and_then(|rest| rest.strip_prefix(&VERSION.to_le_bytes()))
            .filter(|_| whole)
            .ok_or(Damaged)?;
        let mut slots = slots.chunks_exact(SLOT).map_while(slot);
        let ring = Self {
            fine: slots.by_ref().take(FINE_SLOTS).collect(),
            coarse: slots.collect(),
            last: Counters::default(),
        };
        match (ring.fine.len(), ring.coarse.len()) {
            (FINE_SLOTS, COARSE_SLOTS) => Ok(ring),
            _ => Err(Damaged),
        }
    }
}

fn slot(bytes: &[u8]) -> Option<Slot> {
    let (number, bytes) = bytes.split_first_chunk::<8>()?;
    let (from_visitors, bytes) = bytes.split_first_chunk::<8>()?;
    let (to_visitors, bytes) = bytes.split_first_chunk::<8>()?;
    let (streams, _) = bytes.split_first_chunk::<4>()?;
    Some(Slot {
        number: u64::from_le_bytes(*number),
        from_visitors: u64::from_le_bytes(*from_visitors),
        to_visitors: u64::from_le_bytes(*to_visitors),
        streams: u32::from_le_bytes(*streams),
    })
}

/// FNV-1a. It finds torn and damaged files, not forged ones: who can write there owns the node.
fn check_sum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |sum, byte| {
        (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

fn add(slots: &mut [Slot], number: u64, passed: Slot) {
    // An empty stretch needs no slot: where nothing passes nothing changes.
    if passed == Slot::default() {
        return;
    }
    let place = number % slots.len() as u64;
    let Some(slot) = slots.get_mut(place as usize) else {
        return;
    };
    if slot.number != number {
        *slot = Slot {
            number,
            ..Slot::default()
        };
    }
    slot.from_visitors = slot.from_visitors.saturating_add(passed.from_visitors);
    slot.to_visitors = slot.to_visitors.saturating_add(passed.to_visitors);
    slot.streams = slot.streams.max(passed.streams);
}

fn plot(slots: &[Slot], now: u64, step: u64) -> Plot {
    let (last, length) = (now / step, slots.len() as u64);
    let numbers = (0..length).rev().map(|ago| last.checked_sub(ago));
    let found: Vec<Slot> = numbers
        .map(|number| {
            let kept = number.and_then(|number| {
                let slot = slots.get((number % length) as usize)?;
                (slot.number == number).then_some(*slot)
            });
            kept.unwrap_or_default()
        })
        .collect();
    Plot {
        step,
        last: last * step,
        from_visitors: found.iter().map(|slot| slot.from_visitors).collect(),
        to_visitors: found.iter().map(|slot| slot.to_visitors).collect(),
        streams: found.iter().map(|slot| slot.streams).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NOW: u64 = 1_800_000_000;

    fn counters(from_visitors: u64, to_visitors: u64, streams: u32) -> Counters {
        Counters {
            from_visitors,
            to_visitors,
            streams,
        }
    }

    #[test]
    fn what_passed_lands_in_its_stretch() {
        let mut ring = Ring::default();
        ring.take(NOW, counters(100, 5, 1));
        ring.take(NOW + 3, counters(150, 5, 3));
        ring.take(NOW + FINE_STEP, counters(151, 9, 0));
        let hour = ring.hour(NOW + FINE_STEP);
        assert_eq!(hour.from_visitors.len(), FINE_SLOTS);
        assert_eq!(hour.from_visitors[FINE_SLOTS - 2..], [150, 1]);
        assert_eq!(hour.to_visitors[FINE_SLOTS - 2..], [5, 4]);
        assert_eq!(hour.streams[FINE_SLOTS - 2..], [3, 0]);
        let day = ring.day(NOW + FINE_STEP);
        assert_eq!(day.from_visitors.last(), Some(&151));
        assert_eq!(day.streams.last(), Some(&3));
    }

    #[test]
    fn an_hour_later_it_is_gone_from_one_and_not_from_the_other() {
        let mut ring = Ring::default();
        ring.take(NOW, counters(100, 0, 1));
        let later = NOW + FINE_STEP * FINE_SLOTS as u64;
        assert_eq!(ring.hour(later).from_visitors.iter().sum::<u64>(), 0);
        assert_eq!(ring.day(later).from_visitors.iter().sum::<u64>(), 100);
    }

    #[test]
    fn a_clock_may_jump() {
        let mut ring = Ring::default();
        ring.take(NOW, counters(100, 0, 1));
        ring.take(NOW + 10 * 365 * 86_400, counters(150, 0, 1));
        ring.take(NOW + 20, counters(170, 0, 1));
        ring.take(0, counters(171, 0, 1));
        let hour = ring.hour(NOW + 20);
        assert_eq!(hour.from_visitors.last(), Some(&20));
        assert!(hour.from_visitors.iter().sum::<u64>() <= 120);
        assert_eq!(ring.hour(0).from_visitors.last(), Some(&1));
    }

    #[test]
    fn counters_that_begin_anew_take_nothing_away() {
        let mut ring = Ring::default();
        ring.take(NOW, counters(100, 100, 0));
        ring.take(NOW, counters(10, 10, 0));
        ring.take(NOW, counters(15, 10, 0));
        assert_eq!(ring.hour(NOW).from_visitors.last(), Some(&105));
    }

    #[test]
    fn a_cut_or_changed_file_is_seen() {
        let mut ring = Ring::default();
        ring.take(NOW, counters(100, 100, 2));
        let bytes = ring.to_bytes();
        assert_eq!(bytes.len(), FILE);
        for cut in [0, 7, 8, 20, FILE / 2, FILE - 1] {
            assert_eq!(Ring::from_bytes(&bytes[..cut]), Err(Damaged), "{cut}");
        }
        for at in (0..FILE).step_by(97) {
            let mut bad = bytes.clone();
            bad[at] ^= 1;
            assert_eq!(Ring::from_bytes(&bad), Err(Damaged), "{at}");
        }
        assert_eq!(Ring::from_bytes(&[bytes, vec![0]].concat()), Err(Damaged));
    }

    proptest! {
        #[test]
        fn nothing_is_lost_within_the_hour_and_a_file_is_what_was_kept(
            steps in prop::collection::vec((0u64..30, 0u64..1 << 40, 0u64..1 << 40, 0u32..5000), 0..100),
        ) {
            let (mut ring, mut now, mut sum) = (Ring::default(), NOW, counters(0, 0, 0));
            for (wait, from, to, streams) in steps {
                now += wait;
                sum = counters(sum.from_visitors + from, sum.to_visitors + to, streams);
                ring.take(now, sum);
            }
            for plot in [ring.hour(now), ring.day(now)] {
                prop_assert_eq!(plot.from_visitors.iter().sum::<u64>(), sum.from_visitors);
                prop_assert_eq!(plot.to_visitors.iter().sum::<u64>(), sum.to_visitors);
            }
            let kept = Ring::from_bytes(&ring.to_bytes()).expect("whole");
            prop_assert_eq!((kept.hour(now), kept.day(now)), (ring.hour(now), ring.day(now)));
        }

        #[test]
        fn no_time_and_no_counter_is_too_strange(
            looks in prop::collection::vec((any::<u64>(), any::<u64>(), any::<u64>(), any::<u32>()), 0..50),
            bytes in prop::collection::vec(any::<u8>(), 0..FILE),
        ) {
            let mut ring = Ring::default();
            for (now, from, to, streams) in looks {
                ring.take(now, counters(from, to, streams));
                ring.hour(now);
                ring.day(now);
            }
            prop_assert_eq!(Ring::from_bytes(&bytes), Err(Damaged));
        }
    }
}
