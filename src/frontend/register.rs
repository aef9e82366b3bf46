//! A backend asks for a tunnel: challenge, verdict, and the tunnel's life.

use std::time::Duration;

use bytes::BytesMut;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::Instant;

use super::Shared;
use super::account::BLOCKED;
use super::auth::{Asker, Judgement};
use super::doorstep::Place;
use super::open::{self, Named, Open, Pending};
use super::registry::{Claim, Claimant, EndTls, Standing, Terms};
use crate::clock::now_unix;
use crate::code::{Code, Coded};
use crate::dial::BoxConn;
use crate::fleet::map::Flight;
use crate::household::Visitor;
use crate::kite::{KiteName, Protocol};
use crate::observe::hush::PAUSE;
use crate::random::random_hex;
use crate::tunnel::Tunnel;
use crate::tunnel::buffer::BUFFER_PAYLOAD;
use crate::tunnel::mux::{Liveness, RECV_WINDOW_KB, Settings, Side};
use crate::wire::frame::{Decoder, Frame, put_kites};
use crate::wire::handshake::{
    ADD_KITES, KITE_AWAY, KITE_BESIDE, KITE_FLEET, KITE_MUX, KITE_PROOF, KITE_TLS, MuxParams,
    RefusalKind, Request, UNAVAILABLE, put_answer,
};
use crate::wire::lines::MAX_LINES;
use crate::wire::{Binding, KiteId, Limits, Lines, ServiceLine};

/// How long a backend may take from its request to its proof; pagekite.py's frontend
/// waits about as long.
pub const PROOF_TIMEOUT: Duration = Duration::from_secs(60);
/// How often a backend is told how much of its quota is left, as pagekite.py's frontend does.
pub const TELL_QUOTA: Duration = Duration::from_secs(15 * 60);
/// Kites of one tunnel that wait for a visit at one time.
const MAX_WAITING: usize = 16;
/// How long a tunnel may stand of whose kites none has come to fly: its backend asks again. It is at the doorstep meanwhile.
pub const LINGER: Duration = Duration::from_secs(300);
/// A kite that has changed hands in the fleet stays there for so long, in milliseconds.
pub const SETTLED: u64 = 30_000;
/// What the homes of a verdict may take, in bytes: the rest is what it says of 32 kites, and a backend takes 32 KiB.
const HOMES_ROOM: usize = 12 * 1024;
/// What a line for one takes, besides its name and its address.
const HOME_TAKES: usize = 24;
/// The feature of a backend that wants no more than it asks for (protocol page §3.1).
const MOBILE: &str = "Mobile";
/// Asked of the connection at once during the handshake, in bytes.
const READ: usize = 1024;

/// A backend's connection, with the head of its request.
pub(super) struct Asking {
    /// Over TLS, if it came so.
    pub(super) conn: BoxConn,
    /// What proofs are bound to.
    pub(super) binding: Option<Binding>,
    /// What was read.
    pub(super) first: BytesMut,
    /// How much of it is the request's head.
    pub(super) head_len: usize,
}

/// Where a backend comes from.
#[derive(Clone, Copy)]
pub(super) struct Peer<'a> {
    /// What logs call it.
    pub(super) shown: &'a str,
    /// What it is remembered by; none if it came through an onion service.
    pub(super) known: Option<Visitor>,
}

impl std::fmt::Display for Peer<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.shown)
    }
}

/// Serves a backend, from its request to the end of its tunnel. Until it has proved a kite it has its `place` at the doorstep.
pub(super) async fn serve(shared: &Shared, backend: Box<Asking>, peer: Peer<'_>, mut place: Place) {
    let session = random_hex(40);
    // The handshake needs much memory for a moment, a tunnel little for weeks.
    let admitting = Box::pin(admit(shared, *backend, &session, peer));
    if let Some((proven, agreed)) = place.unless_sent_away(admitting).await {
        let registration = Registration {
            shared,
            peer,
            session: &session,
            agreed,
        };
        registration.fly(proven, place).await;
        shared.registry.fell(&session);
    }
    if let Some(open) = &shared.open {
        open.leave(&session, None);
    }
    for (proto, name) in shared.registry.release(&session) {
        tracing::info!("kite down: {proto}:{name}");
    }
}

/// A backend that has proven a kite, and knows it.
struct Proven {
    conn: BoxConn,
    /// It wants to be told what is left.
    wants_quota: bool,
    /// It understands that this frontend goes away, and says so itself.
    hears_away: bool,
    read_ahead: BytesMut,
    mux: Option<MuxParams>,
    /// Kites that fly once a visit has come to their tubs.
    pending: Vec<Pending>,
}

/// What a request and its connection make of a registration.
struct Agreed {
    /// Set if proofs are agreed: what they are bound to.
    binding: Option<Binding>,
    /// What the connection is known by, agreed or not.
    known_by: Option<Binding>,
    /// Its backend may have several tunnels.
    beside: bool,
    /// It hears which members of the fleet are home to its kites.
    fleet: bool,
    endings: Endings,
}

/// The handshake. Besides, what the registration was agreed to be.
async fn admit(
    shared: &Shared,
    backend: Asking,
    session: &str,
    peer: Peer<'_>,
) -> Option<(Proven, Agreed)> {
    let Asking {
        mut conn,
        binding,
        mut first,
        head_len,
    } = backend;
    let head = first.split_to(head_len.min(first.len()));
    let request = match Request::parse(&head) {
        Ok(request) => request,
        Err(e) => {
            shared.in_vain(|| format!("a tunnel request from {peer} was refused: {e}"));
            crate::refusal::say(&mut conn, UNAVAILABLE).await;
            return None;
        }
    };
    let registration = Registration {
        shared,
        peer,
        session,
        agreed: Agreed {
            known_by: binding.clone(),
            binding: binding.filter(|_| {
                let services = &request.lines.services;
                request.lines.has_proof() && !shared.judge.needs_signature(services)
            }),
            beside: request.lines.has_feature(KITE_BESIDE),
            fleet: shared.fleet.is_some() && request.lines.has_feature(KITE_FLEET),
            endings: Endings::of(&request.lines),
        },
    };
    let proof = registration.prove(&mut conn, &mut first, &request.lines);
    match tokio::time::timeout(PROOF_TIMEOUT, proof).await {
        Ok(Ok(Some(pending))) => {
            let proven = Proven {
                pending,
                conn,
                wants_quota: !request.lines.has_feature(MOBILE),
                hears_away: request.lines.has_feature(KITE_AWAY),
                // A copy, if anything: the request stands in the same block.
                read_ahead: BytesMut::from(&first[..]),
                mux: request.lines.mux(),
            };
            return Some((proven, registration.agreed));
        }
        Ok(Ok(None)) => shared.in_vain(|| format!("a backend at {peer} proved no kite")),
        Ok(Err(e)) => {
            shared.in_vain(|| format!("a backend at {peer} left during the handshake: {e}"));
        }
        Err(_) => shared.in_vain(|| {
            let seconds = PROOF_TIMEOUT.as_secs();
            format!("a backend at {peer} proved nothing within {seconds} s")
        }),
    }
    None
}

struct Registration<'a> {
    shared: &'a Shared,
    peer: Peer<'a>,
    session: &'a str,
    agreed: Agreed,
}

/// For which of its kites a backend lets us end visitors' TLS.
struct Endings {
    /// It knows how to ask.
    asks: bool,
    asked: Vec<KiteId>,
}

impl Endings {
    fn of(request: &Lines) -> Self {
        Self {
            // A kite before KiteTls1 never wanted it.
            asks: request.has_feature(KITE_TLS) || request.has_feature(KITE_MUX),
            asked: request.end_tls.clone(),
        }
    }

    /// Of a kite that these lines ask for, in the request or in a frame.
    fn kite(&self, id: &KiteId, lines: &Lines) -> EndTls {
        match self.asked.contains(id) || lines.end_tls.contains(id) {
            true => EndTls::Asked,
            false if self.asks => EndTls::No,
            false => EndTls::Unsaid,
        }
    }
}

impl Registration<'_> {
    /// Answers the request, and reads the proof if it comes within the tunnel
    /// (protocol page §3.4). Something if a kite flies, or may do so once it is visited: these. The backend knows the verdict
    /// then.
    async fn prove(
        &self,
        conn: &mut BoxConn,
        buf: &mut BytesMut,
        asked: &Lines,
    ) -> Result<Option<Vec<Pending>>, Trouble> {
        let mut answer = Lines {
            session_id: Some(self.session.to_owned()),
            ..Lines::default()
        };
        if let Some(mux) = asked.mux() {
            answer.features.push(KITE_MUX.to_owned());
            // A kite 0.1.0 would use all of it, for each stream.
            answer.window_kb = Some(RECV_WINDOW_KB.min(mux.window_kb));
            answer.frame = Some(BUFFER_PAYLOAD as u32);
        }
        if self.agreed.binding.is_some() {
            answer.features.push(KITE_PROOF.to_owned());
        }
        answer.features.push(ADD_KITES.to_owned());
        if asked.has_feature(KITE_TLS) {
            answer.features.push(KITE_TLS.to_owned());
        }
        if asked.has_feature(KITE_AWAY) {
            answer.features.push(KITE_AWAY.to_owned());
        }
        if self.agreed.fleet {
            answer.features.push(KITE_FLEET.to_owned());
        }
        self.shared.judge.capabilities(&mut answer);
        if self.shared.open.is_some() {
            open::capabilities(asked, &mut answer);
        }
        let mut claimant = Claimant {
            replace: asked.replace.as_deref(),
            ..self.claimant()
        };
        if asked.has_feature(KITE_BESIDE) {
            answer.features.push(KITE_BESIDE.to_owned());
            claimant.beside = &asked.beside;
            claimant.retire = asked.retire.as_deref();
            claimant.several = true;
        }
        let pending = self.judge(asked, claimant, &mut answer).await;
        self.put_homes(&mut answer);
        let mut out = BytesMut::new();
        put_answer(&mut out, &answer);
        send(conn, &out).await?;
        if !answer.ok.is_empty() {
            return Ok(Some(pending));
        }
        // Without AddKites the backend dials again with its proof (§3.5).
        if let Some(other) = &asked.replace {
            self.shared.registry.wishes_to_replace(self.session, other);
        }
        if answer.sign_this.is_empty() || !asked.has_feature(ADD_KITES) {
            return Ok(None);
        }
        let lines = next_services(conn, buf).await?;
        let mut verdict = Lines {
            session_id: Some(self.session.to_owned()),
            ..Lines::default()
        };
        let pending = self.judge(&lines, claimant, &mut verdict).await;
        self.put_homes(&mut verdict);
        out.clear();
        put_kites(&mut out, &verdict);
        send(conn, &out).await?;
        Ok((!verdict.ok.is_empty()).then_some(pending))
    }

    /// Judges service lines; what is proven is reserved. The decisions are added to `verdict`. What is left to be
    /// visited is returned.
    async fn judge(
        &self,
        lines: &Lines,
        claimant: Claimant<'_>,
        verdict: &mut Lines,
    ) -> Vec<Pending> {
        let asker = Asker {
            peer: self.peer.known,
            binding: self.agreed.binding.as_ref(),
            now_unix: now_unix(),
        };
        let mut pending = Vec::new();
        let is_tubs = |line: &&ServiceLine| {
            let id = line.kite_id();
            !line.fsalt.is_empty() && lines.tubs.iter().any(|claim| claim.id == id)
        };
        let (tubs, services): (Vec<_>, Vec<_>) = lines.services.iter().partition(is_tubs);
        let mut seen: Vec<&str> = Vec::new();
        for line in tubs {
            let why = match seen.len() {
                _ if seen.contains(&line.name.as_str()) => "duplicate",
                0..open::MAX_TUBS => {
                    seen.push(&line.name);
                    pending.extend(self.judge_tub(line, lines, claimant, verdict));
                    // A signature is work for others, too.
                    tokio::task::yield_now().await;
                    continue;
                }
                _ => "overload",
            };
            self.refuse(line.kite_id(), why, |id| {
                verdict.invalid.push((id, Some(why.to_owned())))
            });
        }
        let judgements = services
            .iter()
            .map(|line| self.shared.judge.judge(line, asker));
        let judgements = futures::future::join_all(judgements).await;
        for (line, judgement) in services.iter().zip(judgements) {
            let id = line.kite_id();
            match judgement {
                Judgement::Challenge(fsalt) => verdict.sign_this.push((id, fsalt)),
                Judgement::Proven(mut leave) => {
                    let (proof, account) = (leave.proof.take(), leave.account.clone());
                    let end_tls = self.agreed.endings.kite(&id, lines);
                    // Names that the operator has given away go before those of strangers.
                    let open = self.shared.open.as_ref();
                    let _order = open.map(|open| open.in_order());
                    if open.is_some_and(|open| open.gives_way(&id.name, None)) {
                        self.shared.revoke();
                    }
                    let ends = self.ends_tls(&id, &leave.terms, end_tls);
                    let mark = lines.backends.iter().find(|(kite, _)| *kite == id);
                    let claimant = Claimant {
                        end_tls,
                        mark: mark.map(|(_, mark)| mark.as_str()),
                        ..claimant
                    };
                    let several = claimant.several && leave.backends > 1;
                    let claim = match self.is_settled(&id, claimant, several) {
                        true => Claim::Duplicate,
                        false => self.shared.registry.claim(&id, leave, claimant),
                    };
                    match claim {
                        Claim::Granted | Claim::Held => {
                            account.left(asker.now_unix).put(verdict);
                            verdict.motd = self.shared.motd.text();
                            if ends {
                                tracing::info!(
                                    "{}:{}: its visitors' TLS is ended here",
                                    id.proto,
                                    id.name
                                );
                                verdict.ssl_ok.push(id.clone());
                            }
                            verdict
                                .proofs
                                .extend(proof.map(|proof| (id.clone(), proof)));
                            verdict.ok.push(id);
                        }
                        Claim::Blocked => self.refuse(id, BLOCKED, |id| {
                            verdict.invalid.push((id, Some(BLOCKED.to_owned())));
                        }),
                        Claim::Full => self.refuse(id, "its tunnel flies too many", |id| {
                            verdict.invalid.push((id, Some("quota".to_owned())));
                        }),
                        Claim::Duplicate => self.refuse(id, "another tunnel flies it", |id| {
                            verdict.duplicate.push(id)
                        }),
                    }
                }
                Judgement::Refused(why) => {
                    self.refuse(id, &why, |id| {
                        verdict.invalid.push((id, Some(why.to_string())))
                    });
                }
            }
        }
        pending
    }

    /// Judges a kite that is called by its tub. Nothing is reserved: that is for after the visit.
    fn judge_tub(
        &self,
        line: &ServiceLine,
        lines: &Lines,
        claimant: Claimant<'_>,
        verdict: &mut Lines,
    ) -> Option<Pending> {
        let shared = self.shared;
        let id = line.kite_id();
        let named = Named {
            replace: claimant.replace.map(str::to_owned),
            beside: claimant.beside.to_vec(),
            retire: claimant.retire.map(str::to_owned),
            several: claimant.several,
        };
        match self.proof_of_tub(line, lines, &named) {
            Ok((open, pending)) => {
                let order = open.in_order();
                if open.gives_way(&id.name, Some(&pending)) {
                    shared.revoke();
                }
                drop(order);
                if shared.registry.contested(&id, claimant) {
                    self.refuse(id, "another tunnel flies it", |id| {
                        verdict.duplicate.push(id)
                    });
                    return None;
                }
                verdict.motd = shared.motd.text();
                verdict.ok.push(id);
                Some(pending)
            }
            Err(why) => {
                self.refuse(id, why, |id| {
                    verdict.invalid.push((id, Some(why.to_owned())))
                });
                None
            }
        }
    }

    /// What a line shows of its tub. Wrong ones are counted, as wrong secrets are.
    fn proof_of_tub(
        &self,
        line: &ServiceLine,
        lines: &Lines,
        named: &Named,
    ) -> Result<(&Open, Pending), &'static str> {
        let (shared, id, peer) = (self.shared, line.kite_id(), self.peer.known);
        let claim = lines.tubs.iter().find(|claim| claim.id == id);
        let (Some(open), Some(claim)) = (&shared.open, claim) else {
            return Err("unauthorized");
        };
        if !shared.judge.challenged(line, now_unix()) {
            return Err("unauthorized");
        }
        if !shared.judge.may_try_tub(peer, &id.name) {
            return Err("too many wrong keys");
        }
        let known_by = self.agreed.known_by.as_ref();
        let judged = open.judge(claim, &line.fsalt, lines, known_by, named);
        // Whether a name is the operator's is said to nobody but its tub.
        let granted = |name: &KiteName| shared.accounts.grants(name);
        let judged = judged.and_then(|pending| match granted(&pending.name) {
            true => Err("unauthorized"),
            false if shared.registry.is_blocked(&pending.name) => Err(BLOCKED),
            false => Ok((open, pending)),
        });
        if judged
            .as_ref()
            .is_err_and(|why| ![open::NO_KEY, BLOCKED].contains(why))
        {
            shared.judge.wrong_tub(peer, &id.name);
        }
        judged
    }

    /// Visits a kite's tub through its tunnel.
    async fn visit(
        &self,
        tunnel: &Tunnel,
        pending: Pending,
    ) -> (Pending, Result<(), &'static str>) {
        let visited = match &self.shared.open {
            Some(open) if self.flies(open, &pending) => Ok(()),
            Some(open) => {
                let port = self.shared.judge.port();
                open.visit(&pending, self.peer.known, tunnel, port).await
            }
            None => Err("unauthorized"),
        };
        (pending, visited)
    }

    /// Does this tunnel fly it already?
    fn flies(&self, open: &Open, pending: &Pending) -> bool {
        let key = (&pending.id.proto, &pending.id.name);
        let flown = self.shared.registry.of_session(self.session);
        flown.iter().any(|((proto, name), _)| (proto, name) == key)
            && open.is_seated(pending, self.session)
    }

    /// A kite's tub has been visited: it flies, or is told that it does not.
    fn visited(&self, tunnel: &Tunnel, pending: &Pending, visited: Result<(), &'static str>) {
        let flying = self.shared.registry.of_session(self.session);
        match visited.and_then(|()| self.claim(pending)) {
            Ok(()) => {
                self.shared.registry.activate(self.session, tunnel);
                self.announce(&flying);
                tunnel.send_kites(Lines {
                    ok: vec![pending.id.clone()],
                    ..Lines::default()
                });
            }
            Err(why) => self.refuse(pending.id.clone(), why, |id| {
                tunnel.send_kites(Lines {
                    // pagekite.py closes the whole tunnel on a verdict without any OK.
                    ok: self
                        .shared
                        .registry
                        .one_of(self.session)
                        .into_iter()
                        .collect(),
                    invalid: vec![(id, Some(why.to_owned()))],
                    ..Lines::default()
                });
            }),
        }
    }

    fn claim(&self, pending: &Pending) -> Result<(), &'static str> {
        let Some(open) = &self.shared.open else {
            return Err("unauthorized");
        };
        let _order = open.in_order();
        if open.gives_way(&pending.id.name, Some(pending)) {
            self.shared.revoke();
        }
        let leave = open.seat(pending, self.session, self.peer.known, now_unix())?;
        let named = &pending.named;
        let claimant = Claimant {
            replace: named.replace.as_deref(),
            beside: &named.beside,
            retire: named.retire.as_deref(),
            several: named.several,
            ..self.claimant()
        };
        let why = match self.shared.registry.claim(&pending.id, leave, claimant) {
            Claim::Granted | Claim::Held => return Ok(()),
            Claim::Blocked => BLOCKED,
            Claim::Full => "quota",
            Claim::Duplicate => "duplicate",
        };
        open.leave(self.session, Some(pending));
        Err(why)
    }

    /// Says which members of the fleet are home to the kites that fly, as far as there is room.
    fn put_homes(&self, lines: &mut Lines) {
        let fleet = self.shared.fleet.as_deref();
        let Some(fleet) = fleet.filter(|_| self.agreed.fleet) else {
            return;
        };
        let mut names: Vec<&String> = lines.ok.iter().map(|id| &id.name).collect();
        names.sort_unstable();
        names.dedup();
        let mut room = HOMES_ROOM;
        for name in names {
            for home in fleet.homes(name).into_iter().filter_map(|m| m.public) {
                let home = home.to_string();
                let takes = HOME_TAKES + name.len() + home.len();
                if lines.homes.len() >= MAX_LINES || takes > room {
                    return;
                }
                room -= takes;
                lines.homes.push((name.clone(), home));
            }
        }
    }

    fn claimant(&self) -> Claimant<'_> {
        Claimant {
            since: self.shared.fleet.as_ref().map_or(0, |fleet| fleet.now()),
            ..Claimant::new(self.session, self.peer.shown)
        }
    }

    /// Has another backend just taken this kite over at another member of the fleet? The newest gets it, but two that both
    /// want it shall not snatch it from each other all the time.
    fn is_settled(&self, id: &KiteId, claimant: Claimant<'_>, several: bool) -> bool {
        let Some(fleet) = &self.shared.fleet else {
            return false;
        };
        let key = (id.proto.clone(), id.name.clone());
        let flight = Flight {
            session: claimant.session.to_owned(),
            since: claimant.since.saturating_sub(SETTLED),
            backend: claimant.mark.map(str::to_owned),
            several,
        };
        fleet.look(|map| map.is_beaten(fleet.me(), &key, &flight))
    }

    /// Can and may we end TLS for this kite?
    fn ends_tls(&self, id: &KiteId, terms: &Terms, wish: EndTls) -> bool {
        let readable = [Protocol::Http, Protocol::Websocket];
        readable.iter().any(|protocol| terms.contains(protocol))
            && id.name.parse().is_ok_and(|name| {
                let held = self.shared.certificates.find(&name);
                held.is_some_and(|held| held.ends(wish))
            })
    }

    fn refuse(&self, id: KiteId, why: &str, push: impl FnOnce(KiteId)) {
        let code = match RefusalKind::parse(Some(why.to_owned())).code() {
            Code::RefusedOtherwise => Code::KiteRefused,
            code => code,
        };
        let kite = format!("{}:{}", id.proto, id.name);
        let refused = &self.shared.refused;
        if let Some(before) = refused.due(&kite, why, PAUSE, Instant::now().into_std()) {
            let (peer, remedy) = (self.peer, remedy(code));
            tracing::warn!("[{code}] kite refused: {kite} from {peer}: {why}; {remedy}{before}");
        }
        push(id);
    }

    /// The tunnel's life, from the verdict to the end. Until a kite flies it has its `place` at the doorstep.
    async fn fly(&self, proven: Proven, place: Place) {
        let Proven {
            conn,
            wants_quota,
            hears_away,
            read_ahead,
            mux,
            pending,
        } = proven;
        let tunnel = Tunnel::start(
            conn,
            read_ahead,
            Settings::agreed(Side::Frontend, mux, Liveness::DEFAULT),
            self.shared.pool.clone(),
        );
        self.shared.registry.stands(Standing {
            session: self.session.to_owned(),
            tunnel: tunnel.clone(),
            hears_away,
        });
        self.shared.registry.activate(self.session, &tunnel);
        let kind = if mux.is_some() {
            "a kite"
        } else {
            "an older backend"
        };
        tracing::info!("tunnel from {} ({kind})", self.peer);
        self.announce(&[]);
        let visit = |pending| self.visit(&tunnel, pending);
        let mut visits: FuturesUnordered<_> = pending.into_iter().map(visit).collect();
        let mut tell = tokio::time::interval_at(Instant::now() + TELL_QUOTA, TELL_QUOTA);
        // The backend has said that it goes: it flies nothing any more, and its streams end in their time.
        let mut away = false;
        let mut place = Some(place);
        let mut asked = Instant::now();
        // A backend may ask for more kites at any time (§3.8).
        loop {
            let grounded = self.shared.registry.one_of(self.session).is_none();
            if !grounded {
                place = None;
            }
            let may_ask = place.is_some() && asked.elapsed() < LINGER;
            if !away && visits.is_empty() && grounded && !may_ask {
                tunnel.close("none of its kites may fly");
            }
            let lines = tokio::select! {
                lines = tunnel.next_kites() => lines,
                Some((pending, visited)) = visits.next() => {
                    self.visited(&tunnel, &pending, visited);
                    asked = Instant::now();
                    continue;
                }
                () = tokio::time::sleep_until(asked + LINGER), if may_ask => continue,
                () = sent_away(&mut place) => {
                    tunnel.close("there is no room for tunnels that fly nothing");
                    place = None;
                    continue;
                }
                _ = tell.tick(), if wants_quota => {
                    let accounts = self.shared.registry.accounts_of(self.session);
                    let left = accounts.iter().filter_map(|a| a.left(now_unix()).kb);
                    if let Some(kb) = left.min() {
                        tunnel.tell_quota(kb);
                    }
                    continue;
                }
            };
            let Some(lines) = lines else { break };
            if lines.away && !away {
                away = true;
                // A kite that comes up now would get visitors who find nobody.
                visits.clear();
                self.see_off(&tunnel);
            }
            if away || lines.services.is_empty() {
                continue;
            }
            let flying = self.shared.registry.of_session(self.session);
            let mut verdict = Lines {
                session_id: Some(self.session.to_owned()),
                ..Lines::default()
            };
            let claimant = Claimant {
                beside: &lines.beside,
                retire: lines.retire.as_deref(),
                several: self.agreed.beside,
                ..self.claimant()
            };
            let pending = self.judge(&lines, claimant, &mut verdict).await;
            self.put_homes(&mut verdict);
            let refused = !verdict.invalid.is_empty() || !verdict.duplicate.is_empty();
            if verdict.ok.is_empty() && refused {
                // pagekite.py closes the whole tunnel on a verdict without any OK.
                verdict.ok.extend(self.shared.registry.one_of(self.session));
            }
            tunnel.send_kites(verdict);
            // The first visitor comes behind the verdict.
            self.shared.registry.activate(self.session, &tunnel);
            self.announce(&flying);
            for pending in pending {
                match visits.len() {
                    0..MAX_WAITING => visits.push(visit(pending)),
                    _ => self.visited(&tunnel, &pending, Err("overload")),
                }
            }
        }
        tracing::info!("tunnel from {} ended: {}", self.peer, tunnel.ended().await);
    }

    /// The backend goes away: no visitor is brought to it any more, and it is told that none will be. Who is there
    /// already stays.
    fn see_off(&self, tunnel: &Tunnel) {
        for (proto, name) in self.shared.registry.release(self.session) {
            tracing::info!("kite down: {proto}:{name}; its backend stops");
        }
        tunnel.send_kites(Lines {
            away: true,
            ..Lines::default()
        });
    }

    /// Logs the kites that did not fly `before`.
    fn announce(&self, before: &[((String, String), usize)]) {
        let now = self.shared.registry.of_session(self.session);
        let new = now
            .iter()
            .filter(|(kite, _)| !before.iter().any(|(known, _)| known == kite));
        for ((proto, name), tunnels) in new {
            match tunnels {
                1 => tracing::info!("kite up: {proto}:{name}"),
                n => tracing::info!("kite up: {proto}:{name}, by {n} tunnels now"),
            }
        }
    }
}

/// Waits until whoever has this place has to leave it.
async fn sent_away(place: &mut Option<Place>) {
    match place {
        Some(place) => place.sent_away().await,
        None => std::future::pending().await,
    }
}

/// What this frontend's operator can do about a kite that was refused.
fn remedy(code: Code) -> &'static str {
    match code {
        Code::WrongSecret => "its backend must have the secret that is kept here",
        Code::NameUnknown => "if it may fly: kite frontend kites add NAME",
        Code::ProtocolNotCarried => "if it may carry this: add it to the `protocols` of the name",
        Code::PortNotServed => "if it may have this port: let the frontend listen there",
        Code::QuotaUsed | Code::KiteExpired => "if it may have more: give it more, as it was added",
        Code::ProofRequired => "its backend must be kite, and dial the pinned address",
        Code::KiteTaken => "if its backends shall share it: set `backends` in its [[kites]] table",
        _ => "its backend tries again",
    }
}

/// What goes wrong before the verdict.
#[derive(Debug, thiserror::Error)]
enum Trouble {
    #[error("it closed the connection")]
    Closed,
    #[error("{}", .0.kind())]
    Io(#[from] std::io::Error),
    #[error(transparent)]
    Frame(#[from] crate::wire::FrameError),
}

async fn send(conn: &mut BoxConn, bytes: &[u8]) -> Result<(), Trouble> {
    conn.write_all(bytes).await?;
    conn.flush().await?;
    Ok(())
}

/// Reads frames until one has service lines; from a stranger nothing else counts.
async fn next_services(conn: &mut BoxConn, buf: &mut BytesMut) -> Result<Lines, Trouble> {
    let mut decoder = Decoder::new(Limits::UNPROVEN);
    loop {
        while let Some(frame) = decoder.decode(buf)? {
            if let Frame::Control(control) = frame
                && let Some(lines) = control.kites
                && !lines.services.is_empty()
            {
                return Ok(*lines);
            }
        }
        buf.reserve(READ);
        if conn.read_buf(buf).await? == 0 {
            return Err(Trouble::Closed);
        }
    }
}
