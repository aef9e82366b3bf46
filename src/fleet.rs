//! Several frontends that serve one domain: a visitor may come to any of them, and reaches the kite wherever its tunnel ends.
//!
//! Each member tells the others, over a link that stands, what flies at it, so that each has the whole [map](map::Map) in
//! memory and asks nobody when a visitor comes. A visitor whose kite flies elsewhere is [passed on](Fleet::offer) to a member
//! that has it, by a connection of its own, and no further. Members trust each other as parts of one frontend; strangers get
//! nothing from them.
//!
//! The room knows members, names and sessions. What a tunnel is it does not know: the frontend tells it what flies, by
//! [`Host`], and is handed the visitors that others pass on.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::BytesMut;
use futures::future::BoxFuture;
use tokio::sync::watch;
use tokio_rustls::server::TlsStream;

pub mod etcd;
pub mod forward;
pub mod header;
pub mod homes;
pub mod link;
pub mod map;
pub mod member;
pub mod pipe;

use crate::code::Code;
use crate::dial::MemberDialer;
use crate::kite::KiteName;
use crate::listen::{TcpListener, TcpStream};
use crate::observe::hush::Hush;
use crate::tls::{MemberTls, Pin};
use header::Passed;
use map::{Flight, Hit, Key, Map};
use member::{Member, MemberId, Members};

/// Most members of a fleet that is written down in the configuration: each has a link to each.
pub const MAX_MEMBERS: usize = 16;

/// The permission to dial other members. No other room can make one, so no backend has it.
#[derive(Debug)]
pub struct Inside(());

/// A visitor's connection that another member has brought.
pub type Brought = TlsStream<TcpStream>;

/// What the fleet asks of the frontend that it is a part of.
pub trait Host: Send + Sync + 'static {
    /// Counts up whenever [`Host::flights`] may have changed.
    fn changes(&self) -> watch::Receiver<u64>;

    /// What flies at this member, one for each kite and tunnel.
    fn flights(&self) -> Vec<(Key, Flight)>;

    /// A newer backend flies the kite elsewhere: this one's comes down, and its tunnel is told.
    fn beaten(&self, key: &Key, session: &str);

    /// Serves a visitor that another member brings, as one of its own; these bytes of it have come already.
    fn take(
        self: Arc<Self>,
        conn: Brought,
        first: BytesMut,
        passed: Passed,
    ) -> BoxFuture<'static, ()>;

    /// Counts somebody who has come in and not said yet whom it brings, until this is dropped: who stops waits for it a little.
    fn arrives(&self) -> Box<dyn Send>;
}

/// What this frontend knows of its fleet.
pub struct Fleet {
    me: MemberId,
    members: Members,
    map: RwLock<Map>,
    /// Counts up when something was put into the map.
    news: watch::Sender<u64>,
    tls: MemberTls,
    dialer: MemberDialer,
    clock: AtomicU64,
    /// When it began to serve.
    began: OnceLock<Instant>,
    /// Another one at each start, so that the others see that this process is a new one.
    boot: String,
    ties: Mutex<HashMap<MemberId, Tie>>,
    /// How it stands with the etcd that knows the members, if there is one.
    book: Option<Arc<etcd::State>>,
    counts: Arc<Counts>,
    /// For visitors that are passed on.
    places: forward::Places,
    /// What was said of there being none.
    full: Hush,
}

/// How it stands with one other member.
#[derive(Debug, Default)]
struct Tie {
    /// Our link to it stands: it hears what flies here.
    tells: bool,
    /// Its link to us, by number; it is the only one that counts.
    number: u64,
    /// That stands.
    hears: bool,
    /// The process at the other end.
    boot: String,
    /// One has told all that flies there.
    has_told: bool,
    /// When it was last found not to answer.
    failed: Option<Instant>,
}

/// Visitors that were passed on, in numbers.
#[derive(Debug, Default)]
struct Counts {
    out: AtomicU64,
    out_open: AtomicUsize,
    in_vain: AtomicU64,
    brought: AtomicU64,
    brought_open: AtomicUsize,
}

/// The same, for whoever asks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Passing {
    /// Visitors that were passed on to other members, in all.
    pub out: u64,
    /// Those that are there now.
    pub out_open: usize,
    /// Visitors whose kite no member had after all.
    pub in_vain: u64,
    /// Visitors that other members have brought, in all.
    pub brought: u64,
    /// Those that are there now.
    pub brought_open: usize,
}

/// Another member, as it is seen from here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// What it is called.
    pub id: MemberId,
    /// It hears what flies here.
    pub tells: bool,
    /// We hear what flies there.
    pub hears: bool,
    /// Kites that fly there.
    pub kites: usize,
}

/// One visitor more, as long as this is there.
struct Visitor(Arc<Counts>, Way);

/// Which way a visitor goes.
#[derive(Clone, Copy)]
enum Way {
    Out,
    Brought,
}

impl Visitor {
    fn enter(counts: &Arc<Counts>, way: Way) -> Self {
        let one = Self(counts.clone(), way);
        let (all, open) = one.counters();
        all.fetch_add(1, Ordering::Relaxed);
        open.fetch_add(1, Ordering::Relaxed);
        one
    }

    fn counters(&self) -> (&AtomicU64, &AtomicUsize) {
        match self.1 {
            Way::Out => (&self.0.out, &self.0.out_open),
            Way::Brought => (&self.0.brought, &self.0.brought_open),
        }
    }
}

impl Drop for Visitor {
    fn drop(&mut self) {
        self.counters().1.fetch_sub(1, Ordering::Relaxed);
    }
}

/// How long after a start it counts that others have not told yet what flies there.
pub const YOUNG: Duration = Duration::from_secs(7);
/// How often it is looked whether it is not.
const LOOK: Duration = Duration::from_millis(20);
/// How far ahead of our own clock the fleet's may be brought by others, in milliseconds.
pub const MAX_AHEAD_MS: u64 = 300_000;
/// How long a member that did not answer is tried after all others.
const SHUNNED: Duration = Duration::from_secs(2);

impl Fleet {
    /// A fleet in which this member is called `me`. Nothing is dialled yet.
    pub fn new(me: MemberId, members: Members, tls: MemberTls) -> Self {
        Self {
            me,
            members,
            map: RwLock::default(),
            news: watch::Sender::new(0),
            dialer: MemberDialer::new(Inside(()), tls.clone()),
            tls,
            clock: AtomicU64::new(0),
            began: OnceLock::new(),
            boot: crate::random::random_hex(16),
            ties: Mutex::default(),
            book: None,
            counts: Arc::default(),
            places: forward::Places::default(),
            full: Hush::default(),
        }
    }

    /// The members are known by an etcd, and this is how it stands with that.
    pub fn kept_in(self, book: Arc<etcd::State>) -> Self {
        let book = Some(book);
        Self { book, ..self }
    }

    /// How it stands with etcd, if the fleet has one.
    pub fn book(&self) -> Option<etcd::View> {
        self.book.as_ref().map(|book| book.view())
    }

    /// What this member is called.
    pub fn me(&self) -> &MemberId {
        &self.me
    }

    /// The key that this member shows to the others.
    pub fn pin(&self) -> Pin {
        self.tls.pin()
    }

    /// What is to be written down of this member at the others, where it listens as given.
    pub fn entry(&self, listener: &TcpListener) -> String {
        let address = listener.local_addr().ok();
        let address = address.filter(|a| !a.ip().is_unspecified());
        let address = address.map_or_else(|| "ADDRESS:PORT".to_owned(), |a| a.to_string());
        format!(
            "the others write it down as: id = \"{}\", address = \"{address}\", pin = \"{}\"",
            self.me,
            self.pin()
        )
    }

    /// Everybody in the fleet.
    pub fn members(&self) -> &Members {
        &self.members
    }

    /// All members but this one.
    fn others(&self) -> Vec<Member> {
        let mut all = self.members.all();
        all.retain(|m| m.id != self.me);
        all
    }

    /// A moment on the fleet's clock, later than all that were seen: machines whose clocks differ agree on what was first.
    pub fn now(&self) -> u64 {
        let unix = unix_ms();
        let tick = |last: u64| unix.max(last.saturating_add(1));
        let order = Ordering::Relaxed;
        let before = self
            .clock
            .fetch_update(order, order, |last| Some(tick(last)));
        tick(before.unwrap_or_else(|last| last))
    }

    /// Says so if the list has another key for this member than it has: the others would turn it away.
    pub fn look_at_itself(&self) {
        let listed = self.members.get(&self.me).filter(|_| self.book.is_none());
        if listed.is_some_and(|listed| listed.pin != self.pin()) {
            tracing::warn!(
                "[{}] fleet: [[fleet.members]] has another key for {}, which this member is called: give it a name of its own, or \
                 write down its own pin at all members: {}",
                Code::MemberTwice,
                self.me,
                self.pin()
            );
        }
    }

    /// Changes the map. Whoever waits for news hears of it.
    pub fn learn<T>(&self, change: impl FnOnce(&mut Map) -> T) -> T {
        let mut map = self.map.write().unwrap_or_else(PoisonError::into_inner);
        let done = change(&mut map);
        drop(map);
        self.news.send_modify(|n| *n = n.wrapping_add(1));
        done
    }

    /// Hears of every change of the map from now on.
    pub fn news(&self) -> watch::Receiver<u64> {
        self.news.subscribe()
    }

    /// Another member flies this. False if it flies too much.
    pub fn put(&self, member: &MemberId, key: Key, flight: Flight) -> bool {
        // A machine whose clock is far ahead takes nobody else's along.
        let most = unix_ms().saturating_add(MAX_AHEAD_MS);
        self.clock
            .fetch_max(flight.since.min(most), Ordering::Relaxed);
        self.learn(|map| map.put(member, key, flight))
    }

    /// Looks at the map.
    pub fn look<T>(&self, look: impl FnOnce(&Map) -> T) -> T {
        look(&self.map.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Where else in the fleet a visitor's kite flies.
    pub fn find(&self, protos: &[&str], port: u16, host: &KiteName) -> Option<Hit> {
        self.look(|map| map.find(protos, port, host))
    }

    /// Has this process just begun, and not heard yet from all members what flies there? What nobody is known to fly may fly
    /// then, for all it knows.
    pub fn is_young(&self) -> bool {
        let all_have_told = || {
            let others = self.others();
            let ties = self.ties();
            let has_told = |m: &Member| ties.get(&m.id).is_some_and(|tie| tie.has_told);
            others.iter().all(has_told)
        };
        let is_known = || match self.book() {
            Some(_) => self.has_members(),
            None => all_have_told(),
        };
        let is_young = |began: &Instant| began.elapsed() < YOUNG;
        self.began.get().is_none_or(is_young) && !is_known()
    }

    /// Is it known who the members are? Where etcd knows them it must have been asked.
    fn has_members(&self) -> bool {
        let has_spoken = |book: etcd::View| book.fresh || book.lost > 0;
        self.book().is_none_or(has_spoken)
    }

    /// Waits until it is known who the members are, or until this process is not young any more.
    async fn members_known(&self) {
        while !self.has_members() && self.is_young() {
            tokio::time::sleep(LOOK).await;
        }
    }

    /// The members that are home to the kites of this name, as far as backends can be told of them.
    pub fn homes(&self, name: &str) -> Vec<Member> {
        let mut all = self.members.all();
        all.retain(|m| m.public.is_some());
        let ids: Vec<_> = all.iter().map(|m| m.id.clone()).collect();
        let homes = homes::homes(name, &ids, homes::HOMES);
        let find = |id: &MemberId| all.iter().find(|m| m.id == *id).cloned();
        homes.into_iter().filter_map(find).collect()
    }

    /// The other members.
    pub fn seen(&self) -> Vec<Seen> {
        let others = self.others();
        let kites = self.look(|map| {
            others
                .iter()
                .map(|m| map.kites_of(&m.id))
                .collect::<Vec<_>>()
        });
        // Where etcd has the book there are no links: who speaks with it is told, and heard.
        let by_book = self.book().map(|book| book.fresh);
        let ties = self.ties();
        let seen = |(member, kites): (Member, usize)| {
            let tie = ties.get(&member.id);
            Seen {
                tells: by_book.unwrap_or_else(|| tie.is_some_and(|t| t.tells)),
                hears: by_book.unwrap_or_else(|| tie.is_some_and(|t| t.hears)),
                id: member.id,
                kites,
            }
        };
        others.into_iter().zip(kites).map(seen).collect()
    }

    /// Visitors that were passed on.
    pub fn passing(&self) -> Passing {
        let counts = &self.counts;
        let (n, size) = (
            |n: &AtomicU64| n.load(Ordering::Relaxed),
            |n: &AtomicUsize| n.load(Ordering::Relaxed),
        );
        Passing {
            out: n(&counts.out),
            out_open: size(&counts.out_open),
            in_vain: n(&counts.in_vain),
            brought: n(&counts.brought),
            brought_open: size(&counts.brought_open),
        }
    }

    fn ties(&self) -> MutexGuard<'_, HashMap<MemberId, Tie>> {
        self.ties.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes what is known of the way to a member.
    fn tie<T>(&self, member: &MemberId, change: impl FnOnce(&mut Tie) -> T) -> T {
        change(self.ties().entry(member.clone()).or_default())
    }

    /// A member did not answer, or did.
    fn answered(&self, member: &MemberId, did: bool) {
        self.tie(member, |tie| tie.failed = (!did).then(Instant::now));
    }

    fn is_shunned(&self, member: &MemberId) -> bool {
        let failed = |tie: &Tie| tie.failed.is_some_and(|at| at.elapsed() < SHUNNED);
        self.ties().get(member).is_some_and(failed)
    }
}

fn unix_ms() -> u64 {
    let unix = SystemTime::now().duration_since(UNIX_EPOCH);
    unix.map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_only_goes_on_and_is_later_than_what_was_seen() {
        let dir = tempfile::tempdir().unwrap();
        let tls = MemberTls::load_or_create(dir.path()).unwrap();
        let fleet = Fleet::new("a".parse().unwrap(), Members::default(), tls);
        let first = fleet.now();
        assert!(fleet.now() > first);
        let flight = Flight {
            session: "s".into(),
            since: first + 100_000,
            backend: None,
            several: false,
        };
        fleet.put(&"b".parse().unwrap(), ("http".into(), "x".into()), flight);
        assert!(fleet.now() > first + 100_000);
        let ahead = Flight {
            session: "t".into(),
            since: u64::MAX,
            backend: None,
            several: false,
        };
        fleet.put(&"b".parse().unwrap(), ("http".into(), "x".into()), ahead);
        let now = fleet.now();
        assert!(
            now < first + 2 * MAX_AHEAD_MS,
            "it is taken along no further"
        );
        assert!(fleet.now() > now);
    }

    #[test]
    fn a_member_is_young_for_a_while() {
        let dir = tempfile::tempdir().unwrap();
        let tls = MemberTls::load_or_create(dir.path()).unwrap();
        // One that never says what flies there.
        let other = Member {
            id: "b".parse().unwrap(),
            address: "127.0.0.1:1".parse().unwrap(),
            pin: tls.pin(),
            public: None,
        };
        for (seconds, young) in [(0, true), (6, true), (7, false)] {
            let members = Members::new([other.clone()]);
            let fleet = Fleet::new("a".parse().unwrap(), members, tls.clone());
            let began = Instant::now().checked_sub(Duration::from_secs(seconds));
            fleet.began.set(began.unwrap()).unwrap();
            assert_eq!(fleet.is_young(), young, "{seconds}");
        }
    }
}
