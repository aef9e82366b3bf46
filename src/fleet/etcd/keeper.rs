//! Keeps what flies here in etcd, and what flies elsewhere in memory.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::time::{Interval, MissedTickBehavior, interval, sleep, sleep_until};

use super::connection::{Connection, Token, Watch};
use super::mirror::{Mirror, Step};
use super::outbox::Outbox;
use super::record::{Keys, of_flight, of_member};
use super::state::State;
use super::wire::{self, Event, Notice};
use super::{Endpoint, Login, Settings, Trouble};
use crate::dial::etcd::EtcdDialer;
use crate::fleet::member::Member;
use crate::fleet::{Fleet, Host};
use crate::random::{jitter, random_hex};

/// How long a frontend's kites stay in etcd when nothing is heard of it: etcd takes them out then.
pub const LEASE: Duration = Duration::from_secs(10);
/// How often it is heard of.
pub const BEAT: Duration = Duration::from_secs(3);
/// The first wait before etcd is dialled again, and the longest. An etcd that was away gives each lease its whole time again
/// when it is back: so long there must be room for several attempts.
const RETRY: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(3));
/// Changes within so much time go together.
const TOGETHER: Duration = Duration::from_millis(20);
/// How long a frontend that ends may take to say so.
const FAREWELL: Duration = Duration::from_secs(2);

/// One frontend's dealings with etcd.
pub struct Keeper {
    settings: Settings,
    dialer: EtcdDialer,
    fleet: Arc<Fleet>,
    host: Arc<dyn Host>,
    state: Arc<State>,
    keys: Keys,
    mirror: Mirror,
    outbox: Outbox,
    lease: Option<i64>,
    token: Token,
    /// The endpoint of the moment.
    at: usize,
}

impl Keeper {
    /// `me` is how the others are to know this frontend.
    pub fn new(
        settings: Settings,
        dialer: EtcdDialer,
        fleet: Arc<Fleet>,
        host: Arc<dyn Host>,
        state: Arc<State>,
        me: &Member,
    ) -> Self {
        let keys = Keys::new(&settings.prefix);
        Self {
            mirror: Mirror::new(keys.clone(), me.id.clone()),
            outbox: Outbox::new(keys.member(&me.id), of_member(me)),
            keys,
            settings,
            dialer,
            fleet,
            host,
            state,
            lease: None,
            token: None,
            at: 0,
        }
    }

    /// Until `over`; then etcd is told that this frontend flies nothing any more.
    pub async fn run(mut self, over: impl Future<Output = ()>) {
        // Not everybody's first choice is to be the same one.
        let first = random_hex(8);
        self.at = usize::from_str_radix(&first, 16).unwrap_or(0);
        tokio::select! {
            () = self.keep() => {}
            () = over => {}
        }
        let _ = tokio::time::timeout(FAREWELL, self.leave()).await;
    }

    /// For ever.
    async fn keep(&mut self) {
        let (mut wait, mut tried) = (RETRY.0, 0);
        loop {
            let endpoint = self.endpoint();
            let ended = self.session(&endpoint).await;
            let Err(trouble) = ended;
            if self.state.lost(&endpoint, &trouble) {
                (wait, tried) = (RETRY.0, 0);
            }
            match trouble {
                Trouble::Compacted => self.mirror.lose_place(),
                Trouble::LeaseGone => self.lease = None,
                Trouble::TokenGone => self.token = None,
                _ => {
                    // An etcd that was started again has forgotten it, and one that was wiped does not answer who shows it: it
                    // waits until it has lived as long as the one that gave it.
                    self.token = None;
                    self.at = self.at.wrapping_add(1);
                }
            }
            tried += 1;
            // All endpoints at once, and then a rest.
            if tried % self.settings.endpoints.len().max(1) == 0 {
                sleep(jitter(wait)).await;
                wait = (wait * 2).min(RETRY.1);
            }
        }
    }

    fn endpoint(&self) -> Endpoint {
        let all = &self.settings.endpoints;
        let at = self.at % all.len().max(1);
        all.get(at).cloned().unwrap_or_default()
    }

    /// From a connection to its end.
    async fn session(&mut self, endpoint: &Endpoint) -> Result<std::convert::Infallible, Trouble> {
        let mut conn = self.open(endpoint).await?;
        let mut beat = interval(BEAT);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        beat.tick().await;
        self.keep_lease(&mut conn).await?;
        let from = self.catch_up(&mut conn, &mut beat).await?;
        let watch = Connection::open(&self.dialer, endpoint, &self.token).await?;
        let mut watch = watch.watch(wire::watch(self.keys.root(), from)).await?;
        // A wiped etcd would say nothing until it has lived as long as the one before.
        match watch.next().await? {
            Notice::Stands(revision) if revision >= from - 1 => {}
            Notice::Stands(_) | Notice::Compacted => return Err(Trouble::Compacted),
            _ => return Err(Trouble::Gibberish),
        }
        self.state.found(endpoint);
        self.follow(&mut conn, &mut watch, &mut beat).await
    }

    async fn open(&mut self, endpoint: &Endpoint) -> Result<Connection, Trouble> {
        let mut conn = Connection::open(&self.dialer, endpoint, &self.token).await?;
        if let (Some(Login { user, password }), None) = (&self.settings.login, &self.token) {
            let password =
                std::str::from_utf8(password.expose()).map_err(|_| Trouble::TokenGone)?;
            match conn.ask(wire::log_in(user, password)).await {
                Ok(answer) => self.token = Some(wire::token(&answer)?),
                // Its operator may be about to make it so, or a wiped one has forgotten.
                Err(Trouble::NoUsers) => {}
                Err(trouble) => return Err(trouble),
            }
            conn.show(&self.token)?;
        }
        Ok(conn)
    }

    /// Our lease lives on; or a new one begins, under which everything is to be written anew.
    async fn keep_lease(&mut self, conn: &mut Connection) -> Result<i64, Trouble> {
        if let Some(lease) = self.lease {
            if wire::kept_alive(&conn.ask(wire::keep_alive(lease)).await?)? {
                return Ok(lease);
            }
            self.lease = None;
            tracing::info!("etcd has forgotten this frontend; what flies here is told again");
        }
        let lease = wire::granted(&conn.ask(wire::grant(LEASE.as_secs())).await?)?;
        self.lease = Some(lease);
        self.outbox.begin_anew();
        Ok(lease)
    }

    /// All that is known by now, unless it is known already. The revision from which on to watch.
    async fn catch_up(
        &mut self,
        conn: &mut Connection,
        beat: &mut Interval,
    ) -> Result<i64, Trouble> {
        let offered = random_hex(16);
        let asked = wire::life(&self.keys.life(), &offered);
        let (life, revision) = wire::lived(&conn.ask(asked).await?, &offered)?;
        if let Some(from) = self.mirror.resumes(&life, revision) {
            self.mirror.resume(Instant::now());
            return Ok(from);
        }
        let steps = self.mirror.begin();
        self.take(steps);
        // The members first: what flies at one is of no use before it is known where that is reached.
        let members = self.keys.members();
        self.read(conn, beat, &members).await?;
        let root = self.keys.root().to_owned();
        let revision = self.read(conn, beat, &root).await?;
        let steps = self.mirror.complete(life, revision, Instant::now());
        self.take(steps);
        Ok(revision + 1)
    }

    /// Reads all that begins so. As of which revision.
    async fn read(
        &mut self,
        conn: &mut Connection,
        beat: &mut Interval,
        prefix: &str,
    ) -> Result<i64, Trouble> {
        let mut after: Option<(Vec<u8>, i64)> = None;
        loop {
            let last = after.as_ref().map(|(key, revision)| (&**key, *revision));
            let page = wire::page(&conn.ask(wire::range(prefix, last)).await?)?;
            // As of the first page: the others are asked for as they were then.
            let revision = after.map_or(page.revision, |(_, revision)| revision);
            after = page.entries.last().map(|e| (e.key.clone(), revision));
            let steps = self.mirror.read(page.entries);
            self.take(steps);
            if !page.more {
                return Ok(revision);
            }
            if tokio::time::timeout(Duration::ZERO, beat.tick())
                .await
                .is_ok()
            {
                self.keep_lease(conn).await?;
            }
        }
    }

    /// Hears what changes and tells what does, until there is trouble.
    async fn follow(
        &mut self,
        conn: &mut Connection,
        watch: &mut Watch,
        beat: &mut Interval,
    ) -> Result<std::convert::Infallible, Trouble> {
        let mut changes = self.host.changes();
        changes.mark_changed();
        loop {
            self.note();
            let until = self
                .mirror
                .until()
                .unwrap_or_else(|| Instant::now() + LEASE);
            tokio::select! {
                notice = watch.next() => match notice? {
                    Notice::Events(events, whole) => {
                        // Of ours, too: an operator who cleared etcd, or another process of our name.
                        for event in &events {
                            if let Event::Gone { key, .. } = event {
                                self.outbox.gone(key);
                            }
                        }
                        let steps = self.mirror.events(events, whole, Instant::now());
                        self.take(steps);
                    }
                    Notice::Nothing(revision) => self.mirror.nothing(revision),
                    Notice::Stands(_) => {}
                    Notice::Compacted => return Err(Trouble::Compacted),
                },
                _ = beat.tick() => {
                    self.keep_lease(conn).await?;
                }
                changed = changes.changed() => {
                    if changed.is_err() {
                        return Err(Trouble::Closed);
                    }
                    sleep(TOGETHER).await;
                    changes.mark_unchanged();
                    self.look_around();
                }
                () = sleep_until(until.into()) => {
                    let steps = self.mirror.forget(Instant::now());
                    self.take(steps);
                }
                // What is written waits for nothing, and everything else for one answer.
                () = std::future::ready(()), if self.outbox.waiting() > 0 => {
                    self.write(conn).await?;
                }
            }
        }
    }

    /// What flies here is what is to stand in etcd.
    fn look_around(&mut self) {
        let flights = self.host.flights().into_iter();
        let wanted = flights.filter_map(|(key, flight)| {
            let place = self.keys.kite(self.fleet.me(), &key, &flight.session)?;
            Some((place, of_flight(&flight)))
        });
        let wanted: BTreeMap<String, String> = wanted.collect();
        self.outbox.want(wanted);
    }

    async fn write(&mut self, conn: &mut Connection) -> Result<(), Trouble> {
        let lease = match self.lease {
            Some(lease) => lease,
            None => self.keep_lease(conn).await?,
        };
        let Some(batch) = self.outbox.next() else {
            return Ok(());
        };
        let changes = batch.0.iter().map(|(k, v)| (k.as_str(), v.as_deref()));
        let asked = conn.ask(wire::write(changes, lease)).await;
        match asked.and_then(|answer| wire::written(&answer)) {
            Ok(_) => {
                self.state.wrote(batch.0.len());
                Ok(())
            }
            Err(trouble) => {
                self.outbox.failed(batch);
                match trouble {
                    // Before the next beat would have found it.
                    Trouble::LeaseGone => self.keep_lease(conn).await.map(|_| ()),
                    other => Err(other),
                }
            }
        }
    }

    fn take(&self, steps: Vec<Step>) {
        for step in steps {
            match step {
                Step::Put(member, key, flight) => {
                    if !self.fleet.put(&member, key, flight) {
                        tracing::debug!("fleet: {member} flies more than is kept");
                    }
                }
                Step::Remove(member, key, session) => {
                    self.fleet.learn(|map| map.remove(&member, &key, &session));
                }
                Step::Fade(member) => self.fleet.learn(|map| map.fade(&member)),
                Step::Sweep(member) => self.fleet.learn(|map| map.sweep(&member)),
                Step::Join(member) => self.join(member),
                Step::Leave(member) => {
                    tracing::info!("fleet: {member} has left");
                    self.fleet.members().remove(&member);
                    self.fleet.learn(|map| map.sweep(&member));
                }
            }
        }
    }

    fn join(&self, member: Member) {
        if member.id == *self.fleet.me() && member.pin != self.fleet.pin() {
            self.state.impostor(&member);
            return;
        }
        if self.fleet.members().get(&member.id).as_ref() != Some(&member) {
            tracing::info!("fleet: {} at {} is a member", member.id, member.address);
            self.fleet.members().put(member);
        }
    }

    fn note(&self) {
        self.state.note(
            self.mirror.members(),
            self.outbox.waiting(),
            self.mirror.strange(),
        );
    }

    /// The others need not wait for the lease to end.
    async fn leave(&mut self) -> Result<(), Trouble> {
        let Some(lease) = self.lease else {
            return Ok(());
        };
        let endpoint = self.endpoint();
        let mut conn = self.open(&endpoint).await?;
        let name = self.keys.member(self.fleet.me());
        // Unless another process has taken this one's place, whose name it is now.
        conn.ask(wire::withdraw(&name, lease)).await?;
        conn.ask(wire::revoke(lease)).await.map(|_| ())
    }
}
