//! What a kite has left, while it flies: one [`Account`] for each grant, which all visitors of its
//! kites are charged to, and which can end them.

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant, UNIX_EPOCH};

use tokio::sync::watch;

use super::limits::{Crowd, DAY, Limits, Over, Used};
use crate::clock::now_unix;
use crate::household::Visitor;
use crate::observe::traffic::Reason;
use crate::sniff::Voice;
use crate::tunnel::splice::{Inspect, Objection};
use crate::wire::Lines;

/// What the backend of a kite is told whose name the operator has blocked.
pub(super) const BLOCKED: &str = "its name is blocked by the operator";

/// Why a kite may not fly, or not any more.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum End {
    /// The operator has removed it.
    #[error("it is not allowed any more")]
    Removed,
    /// The operator has blocked its name.
    #[error("its name is blocked")]
    Blocked,
    /// Its last day is over.
    #[error("it has expired")]
    Expired,
    /// It has carried as many bytes as it may.
    #[error("its quota of bytes is used up")]
    Bytes,
    /// It has had as many visitors as it may.
    #[error("its quota of connections is used up")]
    Connections,
    /// Who knows about it has said no.
    #[error("its authority refuses it: {0}")]
    Refused(String),
    /// Who knows about it does not answer.
    #[error("its authority does not answer")]
    Unanswered,
    /// Somebody else has shown more for its name.
    #[error("another has better proved that the name is theirs")]
    Outdone,
}

impl End {
    /// The wire's word for it (protocol page §3.3).
    pub fn word(&self) -> &str {
        match self {
            Self::Removed => "unauthorized",
            Self::Blocked => BLOCKED,
            Self::Expired => "nodays",
            Self::Bytes => "noquota",
            Self::Connections => "noconns",
            Self::Refused(word) => word,
            Self::Unanswered => "overload",
            Self::Outdone => "duplicate",
        }
    }
}

/// What is left of a kite, for the frontend's answer (protocol page §3.3).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Left {
    /// KB; rounded up, so that 0 means that nothing is left.
    pub kb: Option<i64>,
    /// Whole days.
    pub days: Option<i64>,
    /// Connections.
    pub connections: Option<i64>,
    /// Different visitors within seconds.
    pub visitors: Option<super::limits::Rate>,
}

impl Left {
    /// Adds it to an answer, where it says less than what stands there.
    pub fn put(&self, lines: &mut Lines) {
        let lower = |slot: &mut Option<i64>, value: Option<i64>| {
            *slot = match (*slot, value) {
                (Some(a), Some(b)) => Some(a.min(b)),
                (a, b) => a.or(b),
            };
        };
        lower(&mut lines.quota, self.kb);
        lower(&mut lines.qdays, self.days);
        lower(&mut lines.qconns, self.connections);
        if lines.ips_per_sec.is_none() {
            lines.ips_per_sec = self.visitors.map(|rate| rate.to_string());
        }
    }
}

/// Of what an authority has said how much is left.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Named {
    /// [`Limits::quota`].
    pub bytes: bool,
    /// [`Limits::connections`].
    pub connections: bool,
}

/// The account of one grant.
pub struct Account {
    /// What it is called in the book: the grant's pattern.
    key: String,
    /// Bytes since the last look at `state`.
    bytes: AtomicU64,
    /// Set once the bytes are used up, lest each piece of payload asks for the lock.
    spent: AtomicBool,
    /// Bytes that may still be carried before the next look at `state`.
    room: AtomicU64,
    state: Mutex<State>,
    /// Counts how often all visitors were sent away.
    cut: watch::Sender<u64>,
}

struct State {
    limits: Limits,
    /// The first second in which it does not fly.
    expires: Option<u64>,
    used: Used,
    /// What was last written down.
    saved: Used,
    crowd: Crowd,
    end: Option<End>,
}

impl std::fmt::Debug for Account {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Account({})", self.key)
    }
}

impl Account {
    /// An account that has used so much. It expires at `expires`, in seconds since 1970.
    pub fn new(key: &str, limits: Limits, expires: Option<u64>, used: Option<Used>) -> Arc<Self> {
        let used = used.unwrap_or(Used {
            since: now_unix(),
            ..Used::default()
        });
        let account = Self {
            key: key.to_owned(),
            bytes: AtomicU64::new(0),
            spent: AtomicBool::new(false),
            room: AtomicU64::new(u64::MAX),
            state: Mutex::new(State {
                limits,
                expires,
                used,
                saved: used,
                crowd: Crowd::default(),
                end: None,
            }),
            cut: watch::Sender::new(0),
        };
        account.settle(&mut account.lock(), now_unix());
        Arc::new(account)
    }

    /// What it is called in the book.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// Other limits, from now on. What was used is still used; an end that was said is taken back.
    pub fn change(&self, limits: Limits, expires: Option<u64>) {
        let mut state = self.lock();
        state.limits = limits;
        state.expires = expires;
        state.end = None;
        self.settle(&mut state, now_unix());
    }

    /// Its authority has just said how much is left: of what it named, what was used before does not count. What it says
    /// nothing of goes on as it was.
    pub fn renew(&self, named: Named, limits: Limits, expires: Option<u64>, now_unix: u64) {
        let mut state = self.lock();
        self.settle(&mut state, now_unix);
        if named.bytes {
            state.used.bytes = 0;
        }
        if named.connections {
            state.used.connections = 0;
        }
        state.limits = limits;
        state.expires = expires;
        state.end = None;
        self.settle(&mut state, now_unix);
    }

    /// Its kites may not fly from now on, for this reason.
    pub fn end(&self, why: End) {
        self.lock().end.get_or_insert(why);
    }

    /// May its kites fly?
    pub fn standing(&self, now_unix: u64) -> Result<(), End> {
        let mut state = self.lock();
        self.settle(&mut state, now_unix);
        state.standing(now_unix)
    }

    /// What is left.
    pub fn left(&self, now_unix: u64) -> Left {
        let mut state = self.lock();
        self.settle(&mut state, now_unix);
        let signed = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        let State { limits, used, .. } = &*state;
        Left {
            kb: limits
                .quota
                .map(|all| signed(all.0.saturating_sub(used.bytes).div_ceil(1024))),
            days: state
                .expires
                .map(|end| signed(end.saturating_sub(now_unix) / DAY)),
            connections: limits
                .connections
                .map(|all| signed(all.saturating_sub(used.connections))),
            visitors: limits.visitors,
        }
    }

    /// What was used, and what the limits are.
    pub fn used(&self, now_unix: u64) -> (Used, Limits) {
        let mut state = self.lock();
        self.settle(&mut state, now_unix);
        (state.used, state.limits.clone())
    }

    /// What was used, if that has not been written down, and is to be.
    pub fn unsaved(&self, now_unix: u64) -> Option<Used> {
        let mut state = self.lock();
        self.settle(&mut state, now_unix);
        let new = state.limits.is_metered() && state.used != state.saved;
        new.then_some(state.used)
    }

    /// This was written down.
    pub fn saved(&self, used: Used) {
        self.lock().saved = used;
    }

    /// Lets a visitor in, if there is room for one.
    pub fn admit(self: &Arc<Self>, who: Visitor, now: Instant) -> Result<Pass, Refusal> {
        let now_unix = now_unix();
        let mut state = self.lock();
        self.settle(&mut state, now_unix);
        state.standing(now_unix)?;
        if state.is_full() {
            return Err(End::Connections.into());
        }
        let State { limits, crowd, .. } = &mut *state;
        crowd.admit(limits, who, now)?;
        state.used.connections += 1;
        Ok(Pass {
            account: self.clone(),
            who,
            cut: self.cut.subscribe(),
        })
    }

    /// Sends all visitors away that are there now.
    pub fn cut(&self) {
        self.cut.send_modify(|count| *count += 1);
    }

    /// Adds up what was carried since the last time.
    fn settle(&self, state: &mut State, now_unix: u64) {
        let State { limits, used, .. } = state;
        used.bytes = used
            .bytes
            .saturating_add(self.bytes.swap(0, Ordering::Relaxed));
        used.roll(limits.period_days, now_unix);
        let room = limits
            .quota
            .map_or(u64::MAX, |all| all.0.saturating_sub(used.bytes));
        self.room.store(room, Ordering::Relaxed);
        self.spent.store(room == 0, Ordering::Relaxed);
    }

    /// So many bytes have passed. False once they are more than may.
    fn count(&self, bytes: usize) -> bool {
        let all = self.bytes.fetch_add(bytes as u64, Ordering::Relaxed) + bytes as u64;
        if all >= self.room.load(Ordering::Relaxed) {
            self.settle(&mut self.lock(), now_unix());
        }
        !self.spent.load(Ordering::Relaxed)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn standing(&self, now_unix: u64) -> Result<(), End> {
        let Self { limits, used, .. } = self;
        match &self.end {
            Some(end) => Err(end.clone()),
            None if self.expires.is_some_and(|end| now_unix >= end) => Err(End::Expired),
            None if limits.quota.is_some_and(|all| used.bytes >= all.0) => Err(End::Bytes),
            // The last ones may end in peace.
            None if self.is_full() && self.crowd.open() == 0 => Err(End::Connections),
            None => Ok(()),
        }
    }

    /// It takes no more visitors in this period.
    fn is_full(&self) -> bool {
        let all = self.limits.connections;
        all.is_some_and(|all| self.used.connections >= all)
    }
}

/// Why a visitor is not let in.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// For now.
    #[error(transparent)]
    Over(#[from] Over),
    /// For nobody is.
    #[error(transparent)]
    End(#[from] End),
}

impl Refusal {
    /// What it is counted as.
    pub fn reason(&self) -> Reason {
        match self {
            Self::Over(Over::Streams) => Reason::Streams,
            Self::Over(Over::StreamsPerVisitor) => Reason::StreamsPerVisitor,
            Self::Over(Over::Rate) => Reason::Rate,
            Self::Over(Over::RatePerVisitor) => Reason::RatePerVisitor,
            Self::Over(Over::Visitors) => Reason::Visitors,
            Self::End(_) => Reason::Ended,
        }
    }

    /// What a visitor is told who speaks like that.
    pub fn voice(&self, usual: Voice) -> Voice {
        match (self, usual) {
            (Self::Over(_), Voice::Http(_)) => Voice::Http(429),
            _ => usual,
        }
    }
}

/// A visitor's permission, as long as its connection lasts.
pub struct Pass {
    account: Arc<Account>,
    who: Visitor,
    cut: watch::Receiver<u64>,
}

impl Pass {
    /// For what passes: counts it, and objects when it is too much, or the kite ends.
    /// `first` bytes have passed already.
    pub fn meter(self, first: usize) -> Box<dyn Inspect + Send> {
        let mut cut = self.cut.clone();
        self.account.count(first);
        Box::new(Meter {
            pass: self,
            cut: Box::pin(async move {
                // An account that nobody holds any more cuts nobody.
                if cut.changed().await.is_err() {
                    std::future::pending().await
                }
            }),
        })
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        self.account.lock().crowd.leave(self.who, Instant::now());
    }
}

struct Meter {
    pass: Pass,
    cut: Pin<Box<dyn Future<Output = ()> + Send>>,
}

impl Meter {
    fn count(&self, bytes: &[u8]) -> Result<(), Objection> {
        match self.pass.account.count(bytes.len()) {
            true => Ok(()),
            false => Err(Objection(End::Bytes.to_string())),
        }
    }
}

impl Inspect for Meter {
    fn visitor_said(&mut self, bytes: &[u8]) -> Result<(), Objection> {
        self.count(bytes)
    }

    fn origin_said(&mut self, bytes: &[u8]) -> Result<(), Objection> {
        self.count(bytes)
    }

    fn is_open(&self) -> bool {
        false
    }

    fn poll_objection(&mut self, cx: &mut Context<'_>) -> Poll<Objection> {
        self.cut
            .as_mut()
            .poll(cx)
            .map(|()| Objection("its kite has ended".to_owned()))
    }
}

/// A date such as `2027-01-31`, the last day: the first second after it (UTC), in seconds since 1970.
pub fn end_of_day(date: &str) -> Result<u64, String> {
    let begins = humantime::parse_rfc3339(&format!("{}T00:00:00Z", date.trim()));
    let begins = begins
        .ok()
        .and_then(|at| at.duration_since(UNIX_EPOCH).ok());
    begins
        .map(|at| at.as_secs() + DAY)
        .ok_or_else(|| format!("'{date}' is no date such as 2027-01-31"))
}

/// The last day before that second, as `2027-01-31`.
pub fn last_day(expires: u64) -> String {
    let at = UNIX_EPOCH + Duration::from_secs(expires.saturating_sub(1));
    let text = humantime::format_rfc3339_seconds(at).to_string();
    text.split('T').next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frontend::limits::Size;

    fn limits(quota: u64) -> Limits {
        Limits {
            quota: Some(Size(quota)),
            ..Limits::default()
        }
    }

    #[test]
    fn bytes_are_charged_until_they_are_used_up() {
        let account = Account::new("bob", limits(10_000), None, None);
        let now = now_unix();
        assert_eq!(account.left(now).kb, Some(10));
        let pass = account.admit(Visitor(1), Instant::now()).expect("room");
        let mut meter = pass.meter(1000);
        assert!(meter.visitor_said(&[0; 4000]).is_ok());
        assert!(meter.origin_said(&[0; 4000]).is_ok());
        assert_eq!(account.left(now).kb, Some(1));
        assert_eq!(account.standing(now), Ok(()));
        assert!(meter.origin_said(&[0; 1000]).is_err());
        assert_eq!(account.standing(now), Err(End::Bytes));
        let refused = account.admit(Visitor(2), Instant::now()).err();
        assert_eq!(refused, Some(Refusal::End(End::Bytes)));
        account.change(limits(20_000), None);
        assert_eq!(account.standing(now), Ok(()));
        assert!(meter.origin_said(&[0; 1000]).is_ok());
    }

    #[test]
    fn what_was_used_is_told_until_it_is_saved() {
        let account = Account::new("bob", limits(10_000), None, None);
        let now = now_unix();
        assert_eq!(account.unsaved(now), None);
        let pass = account.admit(Visitor(1), Instant::now()).expect("room");
        drop(pass.meter(7));
        let used = account.unsaved(now).expect("something was used");
        assert_eq!((used.bytes, used.connections), (7, 1));
        account.saved(used);
        assert_eq!(account.unsaved(now), None);
        let again = Account::new("bob", limits(7), None, Some(used));
        assert_eq!(again.standing(now), Err(End::Bytes));
    }

    #[test]
    fn the_last_connection_may_end_in_peace() {
        let some = Limits {
            connections: Some(2),
            ..Limits::default()
        };
        let account = Account::new("bob", some, None, None);
        let now = Instant::now();
        let first = account.admit(Visitor(1), now);
        let second = account.admit(Visitor(1), now);
        assert!(first.is_ok() && second.is_ok());
        let third = account.admit(Visitor(1), now).err();
        assert_eq!(third, Some(Refusal::End(End::Connections)));
        assert_eq!(account.left(now_unix()).connections, Some(0));
        assert_eq!(account.standing(now_unix()), Ok(()));
        drop((first, second));
        assert_eq!(account.standing(now_unix()), Err(End::Connections));
    }

    #[test]
    fn it_expires_at_the_end_of_its_day() {
        let end = end_of_day("2027-01-31").expect("a date");
        assert_eq!(end, 1_801_440_000);
        assert_eq!(last_day(end), "2027-01-31");
        let account = Account::new("bob", Limits::default(), Some(end), None);
        assert_eq!(account.standing(end - 1), Ok(()));
        assert_eq!(account.standing(end), Err(End::Expired));
        assert_eq!(account.left(end - 3 * DAY).days, Some(3));
        for bad in ["", "tomorrow", "2027-13-01", "31.1.2027", "1960-01-01"] {
            assert!(end_of_day(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_cut_reaches_who_is_there_and_not_who_comes_later() {
        let account = Account::new("bob", Limits::default(), None, None);
        let meter = |account: &Arc<Account>| {
            let pass = account.admit(Visitor(1), Instant::now()).expect("room");
            pass.meter(0)
        };
        let mut there = meter(&account);
        let mut cx = Context::from_waker(std::task::Waker::noop());
        assert!(there.poll_objection(&mut cx).is_pending());
        account.cut();
        assert!(there.poll_objection(&mut cx).is_ready());
        assert!(meter(&account).poll_objection(&mut cx).is_pending());
    }
}
