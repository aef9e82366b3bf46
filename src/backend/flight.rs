//! A tunnel's life once it stands: streams are served until it is lost, replaced, or told to stop.

use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch::Receiver;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{interval, sleep, sleep_until};

use super::homes::Homes;
use super::later::Later;
use super::link::Services;
use super::report::{Report, flown, keep_unread, shown_kite};
use super::siblings::Siblings;
use super::stream;
use super::stream::{Ground, Noise};
use super::watch::Watch;
use crate::config::Service;
use crate::dial::FrontendAddr;
use crate::observe::board::{Slot, Tally};
use crate::shutdown::Shutdown;
use crate::tunnel::{Ended, Tunnel};
use crate::wire::handshake::{RefusalKind, Within};
use crate::wire::{KiteId, Lines, Verdict};

/// How long the streams of a failing tunnel that was replaced may go on.
pub const RETIRE: Duration = Duration::from_secs(300);
/// A replaced tunnel that carries nothing is closed after so long: visitors that were sent
/// into it before the frontend heard of its successor have arrived by then.
const LAST_VISITORS: Duration = Duration::from_secs(10);
/// How often a tunnel is asked whether its frontend owes it a sign of life.
const LOOK: Duration = Duration::from_secs(1);

/// A tunnel that stands. Its streams are served in a task of its own.
pub(super) struct Flight {
    /// The tunnel.
    pub(super) tunnel: Tunnel,
    /// What was agreed for it.
    pub(super) verdict: Box<Verdict>,
    /// When it began.
    pub(super) since: Instant,
    /// What is to fly here.
    asked: Services,
    /// What of it does not yet.
    later: Later,
    /// Kites that the frontend may open streams for.
    offered: watch::Sender<Vec<(String, String)>>,
    /// The one that this takes the place of, once what was heard flies; and how long it may go on then.
    predecessor: Option<(Box<Flight>, Option<Duration>)>,
    siblings: Arc<Siblings>,
    noise: Arc<Noise>,
    address: FrontendAddr,
    homes: Homes,
    /// The frontend has said that it goes away.
    leaving: bool,
    retire: oneshot::Sender<Option<Duration>>,
    lost: oneshot::Receiver<Ended>,
    /// For logs.
    frontend: String,
}

/// What has become of a flight.
pub(super) enum Fate {
    /// It is over.
    Lost(Ended),
    /// The frontend goes away, and another tunnel may take its place: to what is started there in its stead.
    Leaving {
        /// So it was told before.
        said: bool,
    },
    /// The frontend does not answer, and another tunnel may take its place.
    Suspect,
    /// It stands, but a visitor of our own did not come through, and another tunnel may take its place.
    Silent,
    /// Its kites are not those of the configuration any more, and another tunnel may take its place.
    Outdated,
}

/// What a flight's task needs.
pub(super) struct Crew {
    /// The kites to fly.
    pub(super) services: Receiver<Services>,
    /// What has been said of strangers.
    pub(super) noise: Arc<Noise>,
    /// What is known of their origins.
    pub(super) watch: Arc<Watch>,
    /// The frontend, for logs.
    pub(super) frontend: String,
    /// Where it is.
    pub(super) address: FrontendAddr,
    /// Where else its kites are at home.
    pub(super) homes: Homes,
    /// The other tunnels to it.
    pub(super) siblings: Arc<Siblings>,
    /// The order to stop.
    pub(super) shutdown: Shutdown,
    /// Where its visitors are counted.
    pub(super) tally: Tally,
}

impl Flight {
    /// Serves the tunnel's streams in a task of `tasks`, to its end.
    pub(super) fn start(
        tasks: &mut JoinSet<()>,
        tunnel: Tunnel,
        verdict: Box<Verdict>,
        (asked, later): (Services, Later),
        crew: Crew,
    ) -> Self {
        let (retire, retired) = oneshot::channel();
        let (ended, lost) = oneshot::channel();
        let (session, serving) = (verdict.session_id.clone(), tunnel.clone());
        let flying = verdict.flying.iter().map(flown);
        let (offered, flying) = watch::channel(flying.chain(later.offered()).collect());
        let hears_away = verdict.peer.away;
        let (frontend, address) = (crew.frontend.clone(), crew.address.clone());
        let homes = crew.homes.clone();
        // Before the task begins: the next handshake may be sooner.
        if let Some(session) = &session {
            // What is only awaited is not to be a rival of ours at the next tunnel.
            let others = verdict.peer.beside && !verdict.flying.is_empty();
            crew.siblings.up(session, others);
        }
        let (siblings, noise) = (crew.siblings.clone(), crew.noise.clone());
        tasks.spawn(async move {
            let siblings = crew.siblings.clone();
            let why = crew.serve(&serving, flying, retired, hears_away).await;
            if let Some(session) = &session {
                siblings.down(session);
            }
            // Nobody listens any more if it was replaced.
            let _ = ended.send(why);
        });
        Self {
            tunnel,
            verdict,
            since: Instant::now(),
            asked,
            later,
            offered,
            predecessor: None,
            siblings,
            noise,
            address,
            homes,
            leaving: false,
            retire,
            lost,
            frontend,
        }
    }

    /// Waits until there is something to be done about it.
    /// Meanwhile the frontend may end single kites.
    pub(super) async fn watch(&mut self, services: &mut Receiver<Services>, slot: &Slot) -> Fate {
        if self.leaving && !self.tunnel.is_closed() {
            return Fate::Leaving { said: true };
        }
        loop {
            if !self.tunnel.is_closed() && self.is_outdated(&services.borrow_and_update().clone()) {
                if self.verdict.peer.beside {
                    return Fate::Outdated;
                }
                // An older frontend takes one tunnel for a kite, so this one must go first.
                self.tunnel.close("the backend's kites have changed");
            }
            self.tend(slot);
            tokio::select! {
                why = &mut self.lost => return Fate::Lost(why.unwrap_or(Ended::ByPeer)),
                Ok(()) = services.changed() => {}
                Some(lines) = self.tunnel.next_kites() => {
                    if lines.away {
                        self.leaving = true;
                        return Fate::Leaving { said: false };
                    }
                    self.heed(lines, slot);
                }
                () = sleep(LOOK) => {
                    if self.verdict.peer.beside && self.tunnel.is_suspect() {
                        return Fate::Suspect;
                    }
                    // An older frontend would have to lose this one first, which may be sound.
                    if slot.is_to_be_renewed() && self.verdict.peer.beside {
                        return Fate::Silent;
                    }
                }
            }
        }
    }

    /// Asks for what is due, and lets the predecessor go once it is not needed.
    fn tend(&mut self, slot: &Slot) {
        for id in self.unanswered(false) {
            self.report(slot).refused(&id, &RefusalKind::Unanswered);
        }
        if !self.leaving
            && let Some(question) = self.later.tend(Instant::now())
        {
            self.tunnel.send_kites(question);
        }
        let offered: Vec<_> = self.offered().collect();
        self.offered.send_if_modified(|old| {
            let changed = *old != offered;
            *old = offered;
            changed
        });
        if !self.later.awaits() {
            self.part();
        }
    }

    /// Takes note of kites that fly from now on, and of those that do not any more.
    fn heed(&mut self, lines: Lines, slot: &Slot) {
        let now = Instant::now();
        match self.later.hear(&lines) {
            Ok(Within::Wait) => {}
            Ok(Within::Send(answer)) => return self.tunnel.send_kites(*answer),
            Ok(Within::Done(verdict)) => return self.judged(*verdict, slot),
            Err(_) => return self.tunnel.close("the frontend's answer proves nothing"),
        }
        for id in lines.ok {
            if !self.later.flies(&id) {
                continue;
            }
            self.report(slot).up(&id);
            self.verdict.flying.push(id);
            self.siblings.several(self.verdict.peer.beside);
        }
        for (id, why) in lines.invalid {
            let before = self.verdict.flying.len();
            self.verdict
                .flying
                .retain(|flying| flown(flying) != flown(&id));
            let kind = RefusalKind::parse(why);
            if self.verdict.flying.len() != before {
                self.report(slot).down(&id, &kind);
            } else if self.later.is_awaited(&id) {
                self.report(slot).refused(&id, &kind);
            } else {
                continue;
            }
            self.later.ended(&id, &kind, now);
        }
        self.show(slot);
    }

    /// A question is answered: what it has come to.
    fn judged(&mut self, mut verdict: Verdict, slot: &Slot) {
        keep_unread(&self.asked, &mut verdict);
        let report = self.report(slot);
        report.kites(&verdict);
        if self.verdict.flying.is_empty() {
            report.proof(&verdict);
        }
        self.homes.hear(&self.address, &verdict);
        self.later.learn(&verdict, Instant::now());
        let newest = verdict.session_id.take();
        self.verdict.session_id = newest.or(self.verdict.session_id.take());
        if !verdict.flying.is_empty() {
            self.verdict.flying.append(&mut verdict.flying);
            self.siblings.several(self.verdict.peer.beside);
        }
        self.show(slot);
    }

    fn show(&self, slot: &Slot) {
        let flying = self.verdict.flying.iter();
        slot.flies(flying.map(|id| shown_kite(&self.asked, id)).collect());
    }

    fn report<'a>(&'a self, slot: &'a Slot) -> Report<'a> {
        Report {
            asked: &self.asked,
            frontend: &self.frontend,
            trust: self.address.trust(),
            noise: &self.noise,
            slot,
        }
    }

    /// Kites that an older frontend gave no answer for.
    pub(super) fn unanswered(&mut self, over: bool) -> Vec<KiteId> {
        self.later.unanswered(over, Instant::now())
    }

    /// Kites that the frontend may open streams for: `proto` and `name` of each.
    pub(super) fn offered(&self) -> impl Iterator<Item = (String, String)> {
        let flying = self.verdict.flying.iter().map(flown);
        flying.chain(self.later.offered())
    }

    /// Kites that may fly here soon.
    pub(super) fn to_come(&self) -> impl Iterator<Item = (String, String)> {
        self.later.to_come()
    }

    /// It takes the place of another, once what was heard flies; which ends then, as by [`Flight::retire`].
    pub(super) fn succeed(&mut self, old: Self, most: Option<Duration>) {
        self.predecessor = Some((Box::new(old), most));
        if !self.later.awaits() {
            self.part();
        }
    }

    /// The one before it goes.
    pub(super) fn part(&mut self) {
        if let Some((old, most)) = self.predecessor.take() {
            old.retire(most);
        }
    }

    /// Would another handshake ask for something else? Where the origins are is no part of it.
    fn is_outdated(&self, services: &[Service]) -> bool {
        let same = |(a, b): (&Service, &Service)| {
            (a.ported().on_wire(), &a.name, a.tls_at_frontend)
                == (b.ported().on_wire(), &b.name, b.tls_at_frontend)
                && a.is_proved_as(b)
        };
        services.len() != self.asked.len() || !services.iter().zip(self.asked.iter()).all(same)
    }

    /// Another has taken its place: it ends with its streams, at the latest after `most`, if that is given.
    fn retire(mut self, most: Option<Duration>) {
        self.part();
        let _ = self.retire.send(most);
    }
}

impl Crew {
    async fn serve(
        mut self,
        tunnel: &Tunnel,
        mut flying: Receiver<Vec<(String, String)>>,
        retired: oneshot::Receiver<Option<Duration>>,
        hears_away: bool,
    ) -> Ended {
        let mut streams = JoinSet::new();
        let mut retired = pin!(async move {
            match retired.await {
                Ok(most) => most,
                // The link is gone, and the order to stop comes.
                Err(_) => std::future::pending().await,
            }
        });
        let mut retiring = None;
        // When it must end, once the order to stop has come.
        let mut end = None;
        // The frontend sends no more visitors.
        let mut closed = !hears_away;
        let flown = watch::Sender::new(self.flown(&mut flying));
        let mut look = interval(LAST_VISITORS);
        loop {
            if end.is_some() && closed && streams.is_empty() {
                tunnel.close("the backend stops");
                break;
            }
            tokio::select! {
                incoming = tunnel.accept() => match incoming {
                    Some(incoming) => {
                        let services = self.services.clone();
                        let ground = Ground {
                            watch: self.watch.clone(),
                            noise: self.noise.clone(),
                            tally: self.tally.clone(),
                        };
                        streams.spawn(stream::serve(incoming, flown.subscribe(), services, ground));
                    }
                    None => break,
                },
                Some(_) = streams.join_next() => {}
                Ok(()) = self.services.changed() => {
                    flown.send_replace(self.flown(&mut flying));
                }
                Ok(()) = flying.changed() => {
                    flown.send_replace(self.flown(&mut flying));
                }
                most = &mut retired, if retiring.is_none() => {
                    retiring = Some((Instant::now(), most));
                    look.reset();
                }
                _ = look.tick(), if retiring.is_some() => {
                    let too_long = matches!(retiring, Some((since, Some(most))) if since.elapsed() >= most);
                    if streams.is_empty() || too_long {
                        tracing::info!("frontend {}: the replaced tunnel is closed", self.frontend);
                        tunnel.close("another tunnel has taken its place");
                        break;
                    }
                }
                () = self.shutdown.requested(), if end.is_none() => {
                    tracing::info!("frontend {}: stopping, {} open streams", self.frontend, tunnel.streams());
                    end = Some(Instant::now() + self.shutdown.drain());
                    if hears_away {
                        tunnel.send_kites(Lines { away: true, ..Lines::default() });
                    }
                }
                // The link, which reads these otherwise, has gone with the order.
                Some(lines) = tunnel.next_kites(), if end.is_some() => closed |= lines.away,
                () = sleep_until(end.unwrap_or_else(Instant::now).into()), if end.is_some() => {
                    tunnel.close("the backend stops");
                    break;
                }
            }
        }
        let why = tunnel.ended().await;
        // Each stream sees the end for itself, and closes its origin's connection.
        streams.detach_all();
        why
    }

    /// What this tunnel's streams may be for, now. A kite that was refused here is none of this frontend's business.
    fn flown(&mut self, flying: &mut Receiver<Vec<(String, String)>>) -> Services {
        let services = self.services.borrow_and_update();
        let flying = flying.borrow_and_update();
        let is = |s: &Service| (s.ported().on_wire(), s.name.to_string());
        let flown = services.iter().filter(|s| flying.contains(&is(s)));
        Arc::new(flown.cloned().collect())
    }
}
