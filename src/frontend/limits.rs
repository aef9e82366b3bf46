//! How much a kite may carry, and how fast its visitors may come. Sans-IO: it is told the time, and
//! who comes and goes.

use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;
use std::time::{Duration, Instant};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::household::Visitor;

/// Visitors' addresses that are remembered for one kite. With a limit for each address, one more
/// that has no place is refused.
pub const MAX_VISITORS: usize = 4096;
/// Seconds of a day.
pub const DAY: u64 = 24 * 60 * 60;

/// So many of something within so many seconds; both are at least 1. Written `20/60`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(extend("pattern" = r"^\s*[0-9]+\s*/\s*[0-9]+\s*$"))]
pub struct Rate {
    /// How many.
    pub count: u32,
    /// Within so many seconds.
    pub seconds: u32,
}

impl FromStr for Rate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |text: &str| text.trim().parse().ok().filter(|n| *n > 0);
        text.split_once('/')
            .and_then(|(count, seconds)| {
                Some(Self {
                    count: number(count)?,
                    seconds: number(seconds)?,
                })
            })
            .ok_or_else(|| format!("'{text}' is not NUMBER/SECONDS, such as 20/60"))
    }
}

impl TryFrom<String> for Rate {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Rate> for String {
    fn from(rate: Rate) -> Self {
        rate.to_string()
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.count, self.seconds)
    }
}

/// An amount of bytes, written with its unit: `500MB`. A KB is 1024 bytes, as in PageKite's protocol.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(try_from = "String", into = "String")]
#[schemars(extend("pattern" = r"^\s*[0-9]+\s*[KkMmGgTt][Bb]\s*$"))]
pub struct Size(pub u64);

const UNITS: [(&str, u32); 4] = [("TB", 40), ("GB", 30), ("MB", 20), ("KB", 10)];

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let upper = text.trim().to_ascii_uppercase();
        let parsed = UNITS.iter().find_map(|(unit, shift)| {
            let number: u64 = upper.strip_suffix(unit)?.trim().parse().ok()?;
            number.checked_mul(1 << shift)
        });
        parsed.map(Self).ok_or_else(|| {
            format!("'{text}' is no amount with a unit (KB, MB, GB, TB), such as 500MB")
        })
    }
}

impl TryFrom<String> for Size {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Size> for String {
    fn from(size: Size) -> Self {
        size.to_string()
    }
}

impl fmt::Display for Size {
    /// In the largest unit that tells the whole amount, else rounded up to KB.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let whole = |shift: u32| self.0 > 0 && self.0.trailing_zeros() >= shift;
        match UNITS.iter().find(|(_, shift)| whole(*shift)) {
            Some((unit, shift)) => write!(f, "{}{unit}", self.0 >> shift),
            None => write!(f, "{}KB", self.0.div_ceil(1024)),
        }
    }
}

/// What a kite may use up, and how fast. What is absent is not limited.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Bytes of its visitors' connections, both ways together, within a period: `"500MB"`, `"10GB"`. 1 KB is 1,024 bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quota: Option<Size>,
    /// Visitors' connections within a period.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connections: Option<u64>,
    /// Days after which `quota` and `connections` begin anew. Without it they never do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub period_days: Option<u32>,
    /// Visitors' connections that are open at one time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub streams: Option<u32>,
    /// Connections that are open at one time from one address. An IPv6 network (/64) counts as one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub streams_per_visitor: Option<u32>,
    /// New connections within so many seconds: `"20/60"`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate: Option<Rate>,
    /// New connections within so many seconds from one address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate_per_visitor: Option<Rate>,
    /// Different visitors' addresses within so many seconds: `"50/3600"`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub visitors: Option<Rate>,
}

impl Limits {
    /// These, and where they say nothing the others.
    pub fn or(self, others: &Limits) -> Self {
        Self {
            quota: self.quota.or(others.quota),
            connections: self.connections.or(others.connections),
            period_days: self.period_days.or(others.period_days),
            streams: self.streams.or(others.streams),
            streams_per_visitor: self.streams_per_visitor.or(others.streams_per_visitor),
            rate: self.rate.or(others.rate),
            rate_per_visitor: self.rate_per_visitor.or(others.rate_per_visitor),
            visitors: self.visitors.or(others.visitors),
        }
    }

    /// Something is used up in the course of time, and must be remembered.
    pub fn is_metered(&self) -> bool {
        self.quota.is_some() || self.connections.is_some()
    }
}

/// What a kite has used in its period.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Used {
    /// When the period began, in seconds since 1970.
    pub since: u64,
    /// Bytes, both ways together.
    pub bytes: u64,
    /// Visitors' connections.
    pub connections: u64,
}

impl Used {
    /// Begins anew if a period is over. Periods follow each other without gaps. One that would begin later than now, since a
    /// clock was wrong for a while, began now: else it would never be over.
    pub fn roll(&mut self, period_days: Option<u32>, now_unix: u64) {
        let Some(days) = period_days.filter(|days| *days > 0) else {
            return;
        };
        self.since = self.since.min(now_unix);
        let period = u64::from(days) * DAY;
        let periods = now_unix.saturating_sub(self.since) / period;
        if periods > 0 {
            *self = Self {
                since: self.since + periods * period,
                ..Self::default()
            };
        }
    }
}

/// Which limit a visitor came upon.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Over {
    /// [`Limits::streams`].
    #[error("too many connections at one time")]
    Streams,
    /// [`Limits::streams_per_visitor`].
    #[error("too many connections at one time from one address")]
    StreamsPerVisitor,
    /// [`Limits::rate`].
    #[error("too many new connections")]
    Rate,
    /// [`Limits::rate_per_visitor`].
    #[error("too many new connections from one address")]
    RatePerVisitor,
    /// [`Limits::visitors`], or [`MAX_VISITORS`].
    #[error("too many different visitors")]
    Visitors,
}

/// A token bucket that begins full: `count` at once, then one for every `seconds / count`.
/// It is the time at which it will be full again (GCRA), and takes no more room than that.
#[derive(Debug, Clone, Copy, Default)]
pub struct Bucket(Option<Instant>);

impl Bucket {
    /// Is there a token?
    pub fn has(&self, rate: Rate, now: Instant) -> bool {
        self.wait(rate, now).is_zero()
    }

    /// How long it takes until there is one.
    pub fn wait(&self, rate: Rate, now: Instant) -> Duration {
        let ahead = self
            .0
            .map_or(Duration::ZERO, |full| full.saturating_duration_since(now));
        (ahead + Self::token(rate)).saturating_sub(Self::whole(rate))
    }

    /// Takes a token; where there is none the bucket stays empty for longer, but never for longer
    /// than twice its time.
    pub fn take(&mut self, rate: Rate, now: Instant) {
        let full = self.0.filter(|full| *full > now).unwrap_or(now);
        self.0 = Some((full + Self::token(rate)).min(now + 2 * Self::whole(rate)));
    }

    /// It is as one that has never been used.
    pub fn is_full(&self, now: Instant) -> bool {
        self.0.is_none_or(|full| full <= now)
    }

    fn whole(rate: Rate) -> Duration {
        Duration::from_secs(rate.seconds.into())
    }

    fn token(rate: Rate) -> Duration {
        Self::whole(rate) / rate.count.max(1)
    }
}

/// The visitors of one kite, as far as its limits want to know.
#[derive(Debug, Default)]
pub struct Crowd {
    open: u32,
    arrivals: Bucket,
    visitors: HashMap<Visitor, Known>,
}

#[derive(Debug)]
struct Known {
    open: u32,
    arrivals: Bucket,
    seen: Instant,
}

impl Crowd {
    /// A visitor comes; if it may not, nothing has changed. Each that may [leaves](Crowd::leave) later.
    pub fn admit(&mut self, limits: &Limits, who: Visitor, now: Instant) -> Result<(), Over> {
        if limits.streams.is_some_and(|most| self.open >= most) {
            return Err(Over::Streams);
        }
        if limits
            .rate
            .is_some_and(|rate| !self.arrivals.has(rate, now))
        {
            return Err(Over::Rate);
        }
        let by_address = limits.streams_per_visitor.is_some()
            || limits.rate_per_visitor.is_some()
            || limits.visitors.is_some();
        if by_address {
            self.admit_address(limits, who, now)?;
        }
        if let Some(rate) = limits.rate {
            self.arrivals.take(rate, now);
        }
        self.open += 1;
        Ok(())
    }

    fn admit_address(&mut self, limits: &Limits, who: Visitor, now: Instant) -> Result<(), Over> {
        let most = limits.visitors.map_or(MAX_VISITORS, |rate| {
            usize::try_from(rate.count).map_or(MAX_VISITORS, |n| n.min(MAX_VISITORS))
        });
        if !self.visitors.contains_key(&who) && self.visitors.len() >= most {
            self.forget(limits, now);
            if self.visitors.len() >= most {
                return Err(Over::Visitors);
            }
        }
        let known = self.visitors.entry(who).or_insert(Known {
            open: 0,
            arrivals: Bucket::default(),
            seen: now,
        });
        if limits
            .streams_per_visitor
            .is_some_and(|most| known.open >= most)
        {
            return Err(Over::StreamsPerVisitor);
        }
        if let Some(rate) = limits.rate_per_visitor {
            if !known.arrivals.has(rate, now) {
                return Err(Over::RatePerVisitor);
            }
            known.arrivals.take(rate, now);
        }
        known.open += 1;
        known.seen = now;
        Ok(())
    }

    /// Drops the addresses that make no difference any more; if all do, and only the table is
    /// short, the one that has been silent for longest.
    fn forget(&mut self, limits: &Limits, now: Instant) {
        let window = limits.visitors.map_or(Duration::ZERO, |rate| {
            Duration::from_secs(rate.seconds.into())
        });
        self.visitors.retain(|_, known| {
            let counts = now.saturating_duration_since(known.seen) < window;
            known.open > 0 || counts || !known.arrivals.is_full(now)
        });
        if limits.visitors.is_none() && self.visitors.len() >= MAX_VISITORS {
            let idle = self.visitors.iter().filter(|(_, known)| known.open == 0);
            if let Some(oldest) = idle
                .min_by_key(|(_, known)| known.seen)
                .map(|(who, _)| *who)
            {
                self.visitors.remove(&oldest);
            }
        }
    }

    /// One of its connections has ended.
    pub fn leave(&mut self, who: Visitor, now: Instant) {
        self.open = self.open.saturating_sub(1);
        if let Some(known) = self.visitors.get_mut(&who) {
            known.open = known.open.saturating_sub(1);
            known.seen = now;
        }
    }

    /// Connections that are open.
    pub fn open(&self) -> u32 {
        self.open
    }
}

/// Wrong secrets that one address may try: the first ten at once, then one every six seconds.
const TRIES_PER_PEER: Rate = Rate {
    count: 10,
    seconds: 60,
};
/// Wrong secrets that may be tried for one name, from wherever. Beyond it only addresses that have tried
/// nothing wrong are listened to, so that nobody can keep a kite's own backend away.
const TRIES_PER_NAME: Rate = Rate {
    count: 30,
    seconds: 60,
};
/// Addresses and names that are remembered for wrong secrets.
const MAX_GUESSERS: usize = 4096;

/// Who has tried wrong secrets of late.
#[derive(Debug, Default)]
pub struct Guesses {
    peers: HashMap<Visitor, Bucket>,
    names: HashMap<String, Bucket>,
}

impl Guesses {
    /// May this peer try a secret for this name now? `None` is a peer without an address, as all
    /// have that come through an onion service: such a one is always heard.
    pub fn may_try(&self, peer: Option<Visitor>, name: &str, now: Instant) -> bool {
        let Some(bucket) = peer.and_then(|peer| self.peers.get(&peer)) else {
            return true;
        };
        if bucket.is_full(now) {
            return true;
        }
        let name = self.names.get(name);
        bucket.has(TRIES_PER_PEER, now) && name.is_none_or(|name| name.has(TRIES_PER_NAME, now))
    }

    /// It was wrong. True if that is worth a line in the log.
    pub fn wrong(&mut self, peer: Option<Visitor>, name: &str, now: Instant) -> bool {
        if let Some(peer) = peer {
            make_room(&mut self.peers, now);
            let bucket = self.peers.entry(peer).or_default();
            bucket.take(TRIES_PER_PEER, now);
        }
        make_room(&mut self.names, now);
        let bucket = self.names.entry(name.to_owned()).or_default();
        let worth = bucket.has(TRIES_PER_NAME, now);
        bucket.take(TRIES_PER_NAME, now);
        worth
    }
}

/// Forgets who has done nothing of late; if all have, everybody: the table is bounded, and whoever fills it
/// has so many addresses that a limit for each is none.
fn make_room<K: std::hash::Hash + Eq>(table: &mut HashMap<K, Bucket>, now: Instant) {
    if table.len() >= MAX_GUESSERS {
        table.retain(|_, bucket| !bucket.is_full(now));
        if table.len() >= MAX_GUESSERS {
            table.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rate(text: &str) -> Option<Rate> {
        Some(text.parse().expect("a rate"))
    }

    fn seconds(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    #[test]
    fn amounts_and_rates_are_read_as_they_are_written() {
        for (text, bytes) in [
            ("1KB", 1024),
            ("500 mb", 500 << 20),
            ("2GB", 2 << 30),
            ("1TB", 1 << 40),
        ] {
            assert_eq!(text.parse(), Ok(Size(bytes)), "{text}");
            assert_eq!(Size(bytes).to_string().parse(), Ok(Size(bytes)));
        }
        assert_eq!(Size(0).to_string(), "0KB");
        assert_eq!(Size(1).to_string(), "1KB");
        for bad in ["", "5", "MB", "-1GB", "1.5GB", "99999999999TB"] {
            assert!(bad.parse::<Size>().is_err(), "{bad}");
        }
        assert_eq!(
            "20/60".parse::<Rate>().expect("a rate").to_string(),
            "20/60"
        );
        for bad in ["", "5", "0/1", "1/0", "a/b", "1/2/3"] {
            assert!(bad.parse::<Rate>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_bucket_gives_a_burst_and_then_its_rate() {
        let now = Instant::now();
        let rate = Rate {
            count: 3,
            seconds: 30,
        };
        let mut bucket = Bucket::default();
        for _ in 0..3 {
            assert!(bucket.has(rate, now));
            bucket.take(rate, now);
        }
        assert!(!bucket.has(rate, now));
        assert!(!bucket.has(rate, now + seconds(9)));
        assert!(bucket.has(rate, now + seconds(10)));
        assert!(bucket.is_full(now + seconds(30)));
        for _ in 0..1000 {
            bucket.take(rate, now);
        }
        assert!(bucket.has(rate, now + seconds(60)), "it recovers");
    }

    #[test]
    fn open_connections_are_counted_and_given_back() {
        let now = Instant::now();
        let limits = Limits {
            streams: Some(3),
            streams_per_visitor: Some(2),
            ..Limits::default()
        };
        let mut crowd = Crowd::default();
        let (a, b) = (Visitor(1), Visitor(2));
        assert_eq!(crowd.admit(&limits, a, now), Ok(()));
        assert_eq!(crowd.admit(&limits, a, now), Ok(()));
        assert_eq!(crowd.admit(&limits, a, now), Err(Over::StreamsPerVisitor));
        assert_eq!(crowd.admit(&limits, b, now), Ok(()));
        assert_eq!(crowd.admit(&limits, b, now), Err(Over::Streams));
        crowd.leave(a, now);
        assert_eq!(crowd.admit(&limits, a, now), Ok(()));
        assert_eq!(crowd.open(), 3);
    }

    #[test]
    fn different_visitors_are_counted_within_a_window() {
        let now = Instant::now();
        let limits = Limits {
            visitors: rate("2/60"),
            ..Limits::default()
        };
        let mut crowd = Crowd::default();
        let mut visit = |who, at| {
            let admitted = crowd.admit(&limits, Visitor(who), now + seconds(at));
            if admitted.is_ok() {
                crowd.leave(Visitor(who), now + seconds(at));
            }
            admitted
        };
        assert_eq!(visit(1, 0), Ok(()));
        assert_eq!(visit(2, 30), Ok(()));
        assert_eq!(visit(1, 31), Ok(()), "one that is known may return");
        assert_eq!(visit(3, 32), Err(Over::Visitors));
        assert_eq!(visit(3, 90), Ok(()), "the second has been away for 60 s");
        assert_eq!(visit(2, 90), Err(Over::Visitors));
    }

    #[test]
    fn one_address_does_not_use_up_what_others_have() {
        let now = Instant::now();
        let limits = Limits {
            rate: rate("100/1"),
            rate_per_visitor: rate("2/60"),
            ..Limits::default()
        };
        let mut crowd = Crowd::default();
        let mut refused = 0;
        for _ in 0..1000 {
            refused += u32::from(crowd.admit(&limits, Visitor(1), now).is_err());
        }
        assert_eq!(refused, 998);
        for who in 2..52 {
            assert_eq!(crowd.admit(&limits, Visitor(who), now), Ok(()), "{who}");
        }
    }

    #[test]
    fn a_flood_of_addresses_does_not_grow_the_table() {
        let now = Instant::now();
        let limits = Limits {
            rate_per_visitor: rate("1/3600"),
            ..Limits::default()
        };
        let mut crowd = Crowd::default();
        for who in 0..3 * MAX_VISITORS as u64 {
            let at = now + Duration::from_millis(who);
            assert_eq!(crowd.admit(&limits, Visitor(who), at), Ok(()));
            crowd.leave(Visitor(who), at);
            assert!(crowd.visitors.len() <= MAX_VISITORS);
        }
        let mut guesses = Guesses::default();
        for who in 0..2 * MAX_GUESSERS as u64 {
            guesses.wrong(Some(Visitor(who)), &who.to_string(), now);
        }
        assert!(guesses.peers.len() <= MAX_GUESSERS && guesses.names.len() <= MAX_GUESSERS);
    }

    #[test]
    fn a_period_begins_anew_where_the_last_ended() {
        let mut used = Used {
            since: 1000,
            bytes: 5,
            connections: 1,
        };
        let before = used;
        used.roll(Some(2), 1000 + 2 * DAY - 1);
        assert_eq!(used, before);
        used.roll(None, 1_000_000_000);
        assert_eq!(used, before);
        used.roll(Some(2), 1000 + 5 * DAY);
        assert_eq!(
            used,
            Used {
                since: 1000 + 4 * DAY,
                ..Used::default()
            }
        );
        // A clock that was ten years ahead when the period began, and was put right.
        used = Used {
            since: 3650 * DAY,
            ..before
        };
        used.roll(Some(2), 5 * DAY);
        assert_eq!((used.since, used.bytes), (5 * DAY, before.bytes));
        used.roll(Some(2), 7 * DAY);
        assert_eq!((used.since, used.bytes), (7 * DAY, 0));
    }

    #[test]
    fn guessers_wait_and_the_kites_own_backend_does_not() {
        let now = Instant::now();
        let mut guesses = Guesses::default();
        let (guesser, own) = (Some(Visitor(1)), Some(Visitor(2)));
        let mut tries = 0;
        while guesses.may_try(guesser, "bob", now) && tries < 1000 {
            guesses.wrong(guesser, "bob", now);
            tries += 1;
        }
        assert_eq!(tries, 10);
        assert!(!guesses.may_try(guesser, "carol", now), "nor another name");
        assert!(guesses.may_try(own, "bob", now));
        assert!(guesses.may_try(guesser, "bob", now + seconds(120)));
        // Many addresses, one name: who has failed once must wait, who has not is heard.
        for who in 100..200 {
            guesses.wrong(Some(Visitor(who)), "bob", now);
        }
        assert!(!guesses.may_try(Some(Visitor(150)), "bob", now));
        assert!(guesses.may_try(own, "bob", now));
        assert!(guesses.may_try(None, "bob", now));
    }
}
