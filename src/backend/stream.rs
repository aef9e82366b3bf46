//! One visitor's stream at the backend: looked at, then joined with the origin.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::sync::watch::Receiver;

use super::introduce;
use super::link::Services;
use super::policy::{Gate, PolicyError, Verdict};
use super::watch::Watch;
use crate::code::{Code, Coded};
use crate::config::Service;
use crate::dial::{OriginConn, OriginDialer};
use crate::kite::{KiteName, Protocol};
use crate::observe::arrivals::Look;
use crate::observe::board::Tally;
use crate::observe::hush::{Hush, Hushes};
use crate::observe::traffic::{Count, Reason};
use crate::refusal;
use crate::sniff::{Again, Voice};
use crate::tunnel::splice::{Inspect, Local, Objection, splice};
use crate::tunnel::{Incoming, TunnelStream};
use crate::wire::frame::Open;

/// How long a visitor may take for its first flight.
pub const FIRST_FLIGHT_TIMEOUT: Duration = Duration::from_secs(30);
/// How long an origin may take to read who its visitor is: some kilobytes, for which its socket has room.
pub const INTRODUCTION_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a visitor waits for a kite of ours that does not fly there: as long as a verdict may take to be read.
const VERDICT_READ: Duration = Duration::from_secs(1);

/// What others can make a backend say, each at most once in a while.
#[derive(Default)]
pub(super) struct Noise {
    unflown: Hush,
    turned_away: Hush,
    no_origin: Hush,
    deaf: Hush,
    /// What frontends say no to, by the kite and the frontend.
    pub(super) refused: Hushes,
}

/// What all streams of a tunnel have in common.
pub(super) struct Ground {
    /// What is known of origins.
    pub(super) watch: Arc<Watch>,
    /// What has been said of strangers.
    pub(super) noise: Arc<Noise>,
    /// Where visitors are counted.
    pub(super) tally: Tally,
}

/// Serves one stream to its end, or until its kite is taken out of the configuration.
pub(super) async fn serve(
    incoming: Incoming,
    flown: Receiver<Services>,
    mut services: Receiver<Services>,
    ground: Ground,
) {
    let Ground {
        watch,
        noise,
        tally,
    } = ground;
    let Incoming { open, stream } = incoming;
    let sid = stream.sid();
    let flown = read_up(flown, &services, &open).await;
    let Some(service) = choose(&flown, &open) else {
        tally.of(None).refuse(Reason::NotHere);
        if let Some(before) = noise.unflown.due(Instant::now()) {
            tracing::warn!(
                ?sid,
                "[{}] a frontend opened a stream for a kite that is not flown; it was refused{before}",
                Code::StreamUnasked
            );
        }
        return refuse(stream, refusal::offline(&open.proto));
    };
    let count = tally.of(Some(service));
    let look = match service.protocol {
        Protocol::Foolscap => tally.look(),
        _ => None,
    };
    drop(tally);
    if open.rtls && !service.protocol.is_plaintext() {
        count.refuse(Reason::NotForThis);
        tracing::debug!(
            ?sid,
            "{}: the frontend has ended TLS; refused",
            service.name
        );
        return refuse(stream, refusal::offline(&open.proto));
    }
    let is_gone = |now: &Services| {
        let same = |s: &Service| (s.ported(), &s.name) == (service.ported(), &service.name);
        !now.iter().any(same)
    };
    tokio::select! {
        () = join(stream, &open, service, look, &watch, &noise, &count) => {}
        Ok(_) = services.wait_for(is_gone) => {
            tracing::info!(?sid, "{}: a stream was ended with its kite", service.name);
        }
    }
}

/// What flies. A visitor may come right behind the verdict on its kite, which another task reads.
async fn read_up(
    mut flown: Receiver<Services>,
    services: &Receiver<Services>,
    open: &Open,
) -> Services {
    if choose(&services.borrow(), open).is_some() {
        let flies = flown.wait_for(|flown| choose(flown, open).is_some());
        let _ = tokio::time::timeout(VERDICT_READ, flies).await;
    }
    flown.borrow().clone()
}

/// Looks at what the visitor says, and joins it with the origin.
async fn join(
    stream: TunnelStream,
    open: &Open,
    service: &Service,
    look: Option<Look>,
    watch: &Watch,
    noise: &Noise,
    count: &Arc<Count>,
) {
    let sid = stream.sid();
    // To let it in needs much memory for a moment, the rest a little for weeks.
    let admitted = match Box::pin(admit(stream, open, service, look, watch, noise)).await {
        Ok(admitted) => admitted,
        Err(why) => return why.into_iter().for_each(|why| count.refuse(why)),
    };
    let inside = count.enter();
    let Admitted {
        stream,
        origin,
        held,
        inspect,
    } = admitted;
    let done = splice(stream, origin, held, inspect, inside.flow()).await;
    watch.doubt(service);
    tracing::debug!(
        ?sid,
        to_origin = done.from_tunnel,
        from_origin = done.to_tunnel,
        "{}: stream ended: {:?}{}",
        service.name,
        done.end,
        match done.declined {
            true => "; the frontend took no more of what the origin said",
            false => "",
        }
    );
}

/// A visitor whose first flight is fit, and its origin.
struct Admitted {
    stream: TunnelStream,
    origin: OriginConn,
    held: VecDeque<Bytes>,
    inspect: Option<Box<dyn Inspect + Send>>,
}

/// Looks at the first flight, and dials the origin; or tells the visitor that there is none. Says then why, unless it
/// left by itself.
async fn admit(
    mut stream: TunnelStream,
    open: &Open,
    service: &Service,
    mut look: Option<Look>,
    watch: &Watch,
    noise: &Noise,
) -> Result<Admitted, Option<Reason>> {
    let sid = stream.sid();
    let turn_away = |stream, voice, why| {
        refuse(stream, voice);
        Err(Some(why))
    };
    let mut gate = Gate::new(service.protocol, &service.name, service.tub);
    let flight = first_flight(&mut stream, &mut gate);
    let mut held = match tokio::time::timeout(FIRST_FLIGHT_TIMEOUT, flight).await {
        Ok(Ok(held)) => held,
        Ok(Err(Turned::Away(why))) => {
            tracing::debug!(?sid, "{}: a visitor was turned away: {why}", service.name);
            if let Some(before) = noise.turned_away.due(Instant::now()) {
                tracing::info!("{}: a visitor was turned away: {why}{before}", service.name);
            }
            return turn_away(stream, why.voice(), reason(&why));
        }
        Ok(Err(Turned::Left)) => return Err(None),
        Err(_) => return turn_away(stream, Voice::Close, Reason::Slow),
    };
    if let Some(look) = &mut look {
        look.opening(&held);
    }
    let offline = refusal::offline(service.protocol.on_wire());
    if !watch.trusts(service).await {
        tracing::debug!(
            ?sid,
            "{}: a visitor was refused: its origin is not fit",
            service.name
        );
        return turn_away(stream, offline, Reason::NoOrigin);
    }
    let mut origin = match OriginDialer::new().dial(&service.origin).await {
        Ok(origin) => origin,
        Err(e) => {
            if let Some(before) = noise.no_origin.due(Instant::now()) {
                tracing::warn!(
                    ?sid,
                    "[{}] {}: {e}; {}{before}",
                    e.code(),
                    service.name,
                    e.hint()
                );
            }
            watch.doubt(service);
            return turn_away(stream, offline, Reason::NoOrigin);
        }
    };
    if !service.tell.is_nothing() {
        let beginning = introduce::begin(&service.tell, open, &mut held);
        if !tells(&mut origin, &beginning.bytes).await {
            if let Some(before) = noise.deaf.due(Instant::now()) {
                tracing::warn!(
                    ?sid,
                    "[{}] {}: the origin {} took a connection and hung up, or read nothing; look at its log{before}",
                    Code::OriginHangsUp,
                    service.name,
                    service.origin
                );
            }
            watch.doubt(service);
            return turn_away(stream, offline, Reason::NoOrigin);
        }
        stream.consumed(beginning.taken);
    }
    Ok(Admitted {
        stream,
        origin,
        held,
        inspect: (!gate.is_open()).then(|| Box::new(Guard { gate, look }) as _),
    })
}

/// How a visitor is counted that the gate did not let in.
fn reason(why: &PolicyError) -> Reason {
    match why {
        PolicyError::Opening(_) => Reason::Malformed,
        _ => Reason::NotForThis,
    }
}

/// Writes how a stream begins; false if the origin does not read it.
async fn tells(origin: &mut (impl AsyncWrite + Unpin), bytes: &[u8]) -> bool {
    let telling = tokio::time::timeout(INTRODUCTION_TIMEOUT, origin.write_all(bytes));
    matches!(telling.await, Ok(Ok(())))
}

/// The service that a frontend's opening is for. A frontend is not trusted: what it
/// names must be flown, by name and by protocol.
///
/// As pagekite.py chooses (protocol page §10.1): a kite for the visitor's port before one for any, the nearest name,
/// and the catch-all last; then the same for what a web visitor may be given instead.
fn choose<'a>(services: &'a [Service], open: &Open) -> Option<&'a Service> {
    let host: KiteName = open.host.parse().ok()?;
    let instead: &[&str] = match open.proto.as_str() {
        "http" => &["http2", "http3"],
        "websocket" => &["http", "http2", "http3"],
        _ => &[],
    };
    let fits = |s: &&Service, proto: &str| {
        // Who says no port may mean any.
        let port = s.port.is_none() || open.port.is_none() || s.port == open.port;
        s.protocol.on_wire() == proto && port && s.name.serves(&host)
    };
    let nearness = |s: &&Service| {
        let name = &s.name;
        let named = !name.is_catch_all();
        (
            named,
            s.port.is_some(),
            !name.is_wildcard(),
            name.as_str().len(),
        )
    };
    std::iter::once(open.proto.as_str())
        .chain(instead.iter().copied())
        .find_map(|proto| {
            services
                .iter()
                .filter(|s| fits(s, proto))
                .max_by_key(nearness)
        })
}

enum Turned {
    Away(PolicyError),
    Left,
}

/// Reads until the gate lets the origin be dialled. What has been read is kept; small pieces are joined, as each would take
/// many times its length, and shown when they are worth a look.
async fn first_flight(
    stream: &mut TunnelStream,
    gate: &mut Gate,
) -> Result<VecDeque<Bytes>, Turned> {
    let (mut held, mut shown) = (BytesMut::new(), 0);
    let mut again = Again::default();
    while !gate.is_open() {
        let chunk = stream.read().await.map_err(|_| Turned::Left)?;
        let is_last = chunk.is_none();
        held.extend_from_slice(&chunk.unwrap_or_default());
        if !is_last && !again.is_due(&held) {
            continue;
        }
        let new = held.get(shown..).filter(|new| !new.is_empty());
        let mut verdict = new.map_or(Verdict::Wait, |new| gate.from_visitor(new));
        shown = held.len();
        if is_last && verdict == Verdict::Wait {
            verdict = gate.visitor_closed();
        }
        match verdict {
            Verdict::Wait if !is_last => {}
            Verdict::Refuse(why) => return Err(Turned::Away(why)),
            Verdict::Wait | Verdict::Pass => break,
        }
    }
    Ok(Some(held.freeze())
        .filter(|held| !held.is_empty())
        .into_iter()
        .collect())
}

fn refuse(stream: TunnelStream, voice: Voice) {
    let last = refusal::message(voice);
    if !last.is_empty() {
        stream.write(Bytes::from(last).into());
    }
    stream.close();
}

/// The gate, as the splice asks it; and who looks whether this is a visitor of our own.
struct Guard {
    gate: Gate,
    look: Option<Look>,
}

impl Guard {
    fn answer(verdict: Verdict) -> Result<(), Objection> {
        match verdict {
            Verdict::Pass | Verdict::Wait => Ok(()),
            Verdict::Refuse(why) => Err(Objection(why.to_string())),
        }
    }
}

impl Inspect for Guard {
    fn visitor_said(&mut self, bytes: &[u8]) -> Result<(), Objection> {
        if let Some(look) = &mut self.look {
            look.said(bytes);
        }
        Self::answer(self.gate.from_visitor(bytes))
    }

    fn origin_said(&mut self, bytes: &[u8]) -> Result<(), Objection> {
        if let Some(look) = &mut self.look {
            look.answered(bytes);
        }
        Self::answer(self.gate.from_origin(bytes))
    }

    fn is_open(&self) -> bool {
        self.gate.is_open() && self.look.as_ref().is_none_or(Look::is_done)
    }
}

impl Local for OriginConn {
    fn reset(&self) {
        OriginConn::reset(self);
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "tests listen on loopback")]
mod tests {
    use super::*;
    use crate::dial::OriginAddr;
    use crate::dial::origin::{ORIGIN_DIAL_TIMEOUT, OriginError};
    use socket2::{Domain, Socket, Type};

    /// It takes one connection, and then none; or it takes it, and reads nothing.
    #[tokio::test]
    async fn an_origin_that_hangs_is_given_up_in_time() {
        let full = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        let any = core::net::SocketAddr::from(([127, 0, 0, 1], 0));
        full.bind(&any.into()).expect("a port");
        full.listen(0).expect("a queue");
        let at = full.local_addr().ok().and_then(|at| at.as_socket());
        let at = OriginAddr::Tcp(at.expect("an address"));
        let dialler = OriginDialer::new();
        let _first = dialler.dial(&at).await.expect("a place in the queue");
        let (mut deaf, _origin) = tokio::io::duplex(16);
        let began = Instant::now();
        let both = async {
            tokio::join!(
                async { (dialler.dial(&at).await.err(), began.elapsed()) },
                async { (tells(&mut deaf, &[b'x'; 100]).await, began.elapsed()) },
            )
        };
        let both = tokio::time::timeout(Duration::from_secs(60), both).await;
        let ((error, dialled), (told, telling)) = both.expect("an end");
        assert_eq!(error, Some(OriginError::TimedOut(at)));
        assert!(!told);
        assert!(dialled >= ORIGIN_DIAL_TIMEOUT && telling >= INTRODUCTION_TIMEOUT);
    }
}
