//! One connection at the public side, from its first byte: a visitor to be joined
//! with a kite, a backend that opens a tunnel, or something to be refused aloud.

use std::collections::VecDeque;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes, BytesMut};
use futures::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, Interest, ReadBuf};
use tokio::time::{interval, sleep, timeout};
use tokio_rustls::server::TlsStream;

use super::account::Pass;
use super::balancer::{self, Balancers, Turned};
use super::certificates::Held;
use super::doorstep::{Place, Whence};
use super::leave::Arrives;
use super::passing::Turn;
use super::register::{self, Asking, Peer};
use super::registry::Found;
use super::storage::{self, Arrived};
use super::{Arrival, Shared, Socket, join};
use crate::code::Code;
use crate::dial::{BoxConn, Conn};
use crate::fleet::Brought;
use crate::fleet::forward::{GO, GO_TIMEOUT, NOT_HERE, STILL, TAKEN, Taken, WAITS};
use crate::kite::{KiteName, Protocol};
use crate::listen::Prompt;
use crate::observe::traffic::Reason;
use crate::refusal::{self, refuse};
use crate::sniff::storage::Storage;
use crate::sniff::{self, Again, ClientHello, HttpHead, HttpKind, Sniff, Visitor, Voice, alert};
use crate::tls::{self, Challenge};
use crate::tunnel::mux::OpenError;
use crate::tunnel::splice::{Local, splice};
use crate::tunnel::{SUSPECT_AFTER, Tunnel, TunnelStream};
use crate::wire::Binding;
use crate::wire::frame::Open;

/// How long a visitor may take until it is clear what it wants. Over Tor, a first
/// flight of four cells can take some seconds.
pub const VERDICT_TIMEOUT: Duration = Duration::from_secs(20);
/// How often a visitor's tunnel is looked at until it has answered; every [`SUSPECT_AFTER`].
const MAX_LOOKS: usize = 6;
/// With less than this part of all slots free, backends are asked to prefer other frontends.
const SPARE_SLOTS: usize = 8;
/// Asked of the socket at first while sniffing, in bytes: most say all in one packet.
const FIRST_READ: usize = 1024;

/// Serves a connection from a listening socket; behind load balancers it begins with a header of theirs.
pub(super) async fn serve(
    shared: &Shared,
    mut conn: Socket,
    mut door: Arrival,
    balancers: Option<&Balancers>,
) {
    let mut place = shared.doorstep.enter(door.peer.ip().into());
    let arriving = shared.arriving.one();
    let mut first = BytesMut::new();
    if let Some(balancers) = balancers {
        let introduced = Box::pin(balancer::introduced(&mut conn, door.peer, balancers));
        match place
            .unless_sent_away(async { Some(introduced.await) })
            .await
        {
            Some(Ok(introduced)) => (door.peer, first) = introduced,
            Some(Err(why)) => return turned_away(shared, &door, &why),
            None => return,
        }
        place.is_from(door.peer.ip().into());
    }
    let peer = shared.shown(door.peer);
    // What happens at the door needs much memory for a moment, what follows a little for weeks: the former is given back.
    let arrive: BoxFuture<'_, _> = Box::pin(arrive(shared, conn, first, &door, &peer));
    let comer = place.unless_sent_away(arrive).await;
    drop(arriving);
    settle(shared, comer, place, &door, &peer).await;
}

/// Serves a visitor that another member of the fleet has brought, as one of our own.
pub(super) async fn serve_brought(
    shared: &Shared,
    conn: Brought,
    first: BytesMut,
    door: Arrival,
    arriving: Arrives,
) {
    let mut place = shared.doorstep.enter(door.peer.ip().into());
    let peer = shared.shown(door.peer);
    let arrive: BoxFuture<'_, _> = Box::pin(arrive(shared, conn, first, &door, &peer));
    let comer = place.unless_sent_away(arrive).await;
    drop(arriving);
    settle(shared, comer, place, &door, &peer).await;
}

/// Does what is to be done with whoever came.
async fn settle<C: Coming>(
    shared: &Shared,
    comer: Option<Comer<C>>,
    place: Place,
    door: &Arrival,
    peer: &str,
) {
    let serving: BoxFuture<'_, ()> = match comer {
        Some(Comer::Visitor(conn, first, route)) => {
            drop(place);
            Box::pin(join(shared, conn, first, route, door, peer))
        }
        Some(Comer::Ended(conn, first, route)) => {
            drop(place);
            Box::pin(join(shared, *conn, first, route, door, peer))
        }
        Some(Comer::Passed(conn, taken)) => {
            drop(place);
            Box::pin(carry(shared, conn, taken, peer))
        }
        // A tunnel ends where its backend has come to.
        Some(Comer::Backend(_)) if door.brought.is_some() => return,
        Some(Comer::Backend(backend)) => {
            let peer = Peer {
                shown: peer,
                known: Some(door.peer.ip().into()),
            };
            Box::pin(register::serve(shared, backend, peer, place))
        }
        None => return,
    };
    serving.await;
}

/// Joins a visitor with the member that has taken it.
async fn carry<C: Coming>(shared: &Shared, conn: C, taken: Box<Taken>, peer: &str) {
    let (blocked, host) = (shared.registry.blocked(), taken.host().clone());
    // Whom this frontend's operator does not want carried, it does not carry to others either.
    let piped = taken.carry(conn, blocked.comes_to(&host)).await;
    tracing::debug!(%peer, up = piped.there, down = piped.back, "visitor left another member: {:?}", piped.end);
}

/// Says, once a minute at most, why nobody gets in through a port behind load balancers.
fn turned_away(shared: &Shared, door: &Arrival, why: &Turned) {
    let peer = shared.shown(door.peer);
    // A health check that only connects is no trouble.
    if *why == Turned::Left {
        tracing::debug!(%peer, "refused: {why}");
    } else if let Some(before) = shared.unintroduced.due(Instant::now()) {
        tracing::warn!(
            "[{}] port {}: a connection from {peer} was refused: {why}{before}",
            Code::NotIntroduced,
            door.port
        );
    }
}

/// Who came, and is not done with.
enum Comer<C> {
    Visitor(C, BytesMut, Route),
    /// A visitor whom another member of the fleet has taken.
    Passed(C, Box<Taken>),
    /// A visitor whose TLS is ended here.
    Ended(Box<Secured>, BytesMut, Route),
    Backend(Box<Asking>),
}

/// What is left when TLS is taken off a connection.
type Secured = TlsStream<Rewind<Box<dyn LocalConn>>>;

/// Finds out who came; whoever has no business here is dealt with.
async fn arrive<C: Coming>(
    shared: &Shared,
    mut conn: C,
    mut first: BytesMut,
    door: &Arrival,
    peer: &str,
) -> Option<Comer<C>> {
    if door.raw {
        hold(shared, &mut conn, None, door).await?;
        match shared.turn(None, door, &first).await {
            Turn::Ours => taken(&mut conn, door).await?,
            Turn::Theirs(taken) => return Some(Comer::Passed(conn, taken)),
            Turn::Nobodys => return not_here(conn).await,
        }
        let route = route_raw_port(shared, door).map_err(No::from);
        return match route.and_then(|r| r.let_in(door, Voice::Close)) {
            Ok(route) => Some(Comer::Visitor(conn, first, route)),
            Err(no) => {
                no.say(shared, conn).await;
                None
            }
        };
    }
    let visitor = match read_first(&mut conn, &mut first).await {
        First::Visitor(visitor) => visitor,
        First::Refused(refusal) => {
            tracing::debug!(%peer, "refused: {refusal}");
            shared.strangers.refuse(Reason::Malformed);
            refuse(conn, refusal.voice()).await;
            return None;
        }
        First::Gone => return None,
    };
    if let Visitor::Http(head) = &visitor
        && matches!(head.kind, HttpKind::Websocket | HttpKind::Request)
        && let Some(proof) = acme_proof(shared, head, &first)
    {
        refusal::say(&mut conn, &refusal::plain(&proof)).await;
        return None;
    }
    hold(shared, &mut conn, Some(&visitor), door).await?;
    match shared.turn(Some(&visitor), door, &first).await {
        Turn::Ours => taken(&mut conn, door).await?,
        Turn::Theirs(taken) => return Some(Comer::Passed(conn, taken)),
        Turn::Nobodys => return not_here(conn).await,
    }
    let route = match visitor {
        Visitor::Tls(hello) => {
            return arrive_by_tls(shared, conn, first, &hello, None, door, peer).await;
        }
        Visitor::Xmpp(host) => XMPP.enter(shared, &host, door),
        Visitor::Minecraft(host) => MINECRAFT.enter(shared, &host, door),
        Visitor::Http(head) => match head.kind {
            HttpKind::Tunnel => {
                return Some(Comer::Backend(Box::new(Asking {
                    conn: conn.prompt(),
                    binding: None,
                    first,
                    head_len: head.len,
                })));
            }
            HttpKind::Ping => {
                refusal::say(&mut conn, &ping_reply(shared)).await;
                return None;
            }
            HttpKind::Connect { ref host, port } => {
                let found = route_connect(shared, host, port);
                // A kite before a certificate of ours, and that before the last resort.
                let for_kite = found.as_ref().is_ok_and(|r| !r.found.is_catch_all);
                let ours = !for_kite && port == 443 && shared.certificates.find(host).is_some();
                let route = match ours {
                    true => Err(No::from(OFFLINE)),
                    false => {
                        (found.map_err(No::from)).and_then(|route| route.let_in(door, OFFLINE))
                    }
                };
                if route.is_ok() || ours {
                    first.advance(head.len);
                    conn.write_all(b"HTTP/1.0 200 Connection Established\r\n\r\n")
                        .await
                        .ok()?;
                }
                if ours {
                    return arrive_after_connect(shared, conn, first, host, door, peer).await;
                }
                route
            }
            HttpKind::Websocket | HttpKind::Request => {
                if let Some(location) = elsewhere(shared, &head, &first, door.port) {
                    refusal::say(&mut conn, &refusal::elsewhere(&location)).await;
                    return None;
                }
                if let Some(page) = own_page(shared, &head, &first, door.port) {
                    refusal::say(&mut conn, &page).await;
                    return None;
                }
                route_http(shared, &head, door.port, &first)
                    .map_err(No::from)
                    .and_then(|route| route.let_in(door, OFFLINE))
            }
        },
    };
    match route {
        Ok(route) => Some(Comer::Visitor(conn, first, route)),
        Err(no) => {
            no.say(shared, conn).await;
            None
        }
    }
}

/// An older backend asked in the clear for TLS with this name, and says hello now (protocol page §1).
async fn arrive_after_connect<C: Coming>(
    shared: &Shared,
    mut conn: C,
    mut first: BytesMut,
    name: &KiteName,
    door: &Arrival,
    peer: &str,
) -> Option<Comer<C>> {
    match read_first(&mut conn, &mut first).await {
        First::Visitor(Visitor::Tls(hello)) => {
            arrive_by_tls(shared, conn, first, &hello, Some(name), door, peer).await
        }
        First::Visitor(_) => {
            refuse(conn, Voice::Http(400)).await;
            None
        }
        First::Refused(refusal) => {
            refuse(conn, refusal.voice()).await;
            None
        }
        First::Gone => None,
    }
}

/// Somebody says hello, perhaps after having asked for a name by CONNECT.
async fn arrive_by_tls<C: Coming>(
    shared: &Shared,
    conn: C,
    first: BytesMut,
    hello: &ClientHello,
    asked: Option<&KiteName>,
    door: &Arrival,
    peer: &str,
) -> Option<Comer<C>> {
    let whither = match whither(shared, hello, asked, door, &first) {
        Whither::Kite(route) => match route.let_in(door, DENIED) {
            Ok(route) => return Some(Comer::Visitor(conn, first, route)),
            Err(no) => {
                no.say(shared, conn).await;
                return None;
            }
        },
        whither => whither,
    };
    let ending = match whither {
        Whither::Kite(_) => return None,
        Whither::Challenge(challenge) => {
            // The authority says nothing more, and neither do we.
            if let Err(e) = challenge.answer(conn_again(conn, first)).await {
                tracing::debug!(%peer, "an authority's question was not answered: {e}");
            }
            return None;
        }
        Whither::Nowhere(voice) => {
            No::from(voice).say(shared, conn).await;
            return None;
        }
        Whither::Ours(ending) => ending,
    };
    shared.handshakes.turn(door.peer.ip().into()).await;
    let conn = conn_again(conn, first);
    let accepted = match &ending {
        None => shared.tls.accept(conn).await,
        Some(held) => held.certificate.accept(conn).await,
    };
    let conn = match accepted {
        Ok(conn) => conn,
        Err(e) => {
            tracing::debug!(%peer, "TLS that was to end here failed: {e}");
            return None;
        }
    };
    let binding = tls::binding(conn.get_ref().1);
    let (mut conn, first, head) = match arrive_inner(shared, conn, binding).await? {
        Inner::Backend(backend) => return Some(Comer::Backend(backend)),
        Inner::Request(conn, first, head) => (conn, first, head),
    };
    if hello.alpn_kite {
        let peer = Peer {
            shown: peer,
            known: Some(door.peer.ip().into()),
        };
        other_request(shared, conn, first, head.len, peer).await;
        return None;
    }
    let held = ending.as_ref();
    if held.is_some_and(|held| is_for(&head, hello.sni.as_ref(), held))
        && let Some(page) = own_page(shared, &head, &first, door.port)
    {
        refusal::say(&mut conn, &page).await;
        return None;
    }
    // Visitors are for certificates of names, never for the tunnels' own key or protocol.
    let route = match ending {
        Some(held) => route_ended(shared, &head, hello.sni.as_ref(), &held, door.port)
            .map_err(No::from)
            .and_then(|route| route.let_in(door, OFFLINE)),
        None => Err(No::from(OFFLINE)),
    };
    match route {
        Ok(route) => Some(Comer::Ended(Box::new(conn), first, route)),
        Err(no) => {
            no.say(shared, conn).await;
            None
        }
    }
}

/// A connection as it was before anybody looked.
fn conn_again(conn: impl Coming, first: BytesMut) -> Rewind<Box<dyn LocalConn>> {
    Rewind {
        prefix: first,
        inner: conn.prompt(),
    }
}

/// Where a hello leads.
enum Whither {
    /// To the answer that an authority wants.
    Challenge(Challenge),
    /// To a kite, unopened.
    Kite(Route),
    /// To ourselves: with a certificate that we hold, or with our own key.
    Ours(Option<Arc<Held>>),
    Nowhere(Voice),
}

/// Kites before certificates; for a kite's tunnel it is the other way round. Our own key is for those
/// who pinned it, and for nobody who did not ask for us.
fn whither(
    shared: &Shared,
    hello: &ClientHello,
    asked: Option<&KiteName>,
    door: &Arrival,
    first: &[u8],
) -> Whither {
    let name = hello.sni.as_ref().or(asked);
    let held = || name.and_then(|name| shared.certificates.find(name));
    let challenge = || shared.challenges.tls(hello.sni.as_ref()?);
    if let Some(challenge) = hello.alpn_acme.then(challenge).flatten() {
        return Whither::Challenge(challenge);
    }
    if hello.alpn_kite {
        return Whither::Ours(hello.alpn_certified.then(held).flatten());
    }
    // An older backend that knows us by name.
    let own_name = hello.sni.as_ref().is_some_and(|sni| shared.is_called(sni));
    // What is ours goes before the last resort, which would get it else.
    let ours = || own_name || held().is_some();
    let denied = match route_tls(shared, hello, asked, door, first) {
        Ok(route) if route.found.is_catch_all && ours() => DENIED,
        Ok(route) => return Whither::Kite(route),
        Err(voice) => voice,
    };
    let opened = match name {
        Some(name) => held().filter(|held| may_open(shared, name, held, door.port)),
        // A port of a kite's own is for its visitors.
        None => (shared.certificates.default()).filter(|_| door.port_kite.is_none()),
    };
    if opened.is_some() {
        return Whither::Ours(opened);
    }
    match own_name {
        true => Whither::Ours(None),
        false => Whither::Nowhere(denied),
    }
}

/// May TLS with this name be ended here? Only a kite that asked for it opens its visitors' TLS; whoever has come is told
/// before the handshake, in which it would begin to trust us. A name that nobody may fly is our own.
fn may_open(shared: &Shared, name: &KiteName, held: &Held, port: u16) -> bool {
    let flies = |proto| {
        let found = shared.registry.find(&[proto], port, name)?;
        (!found.is_catch_all).then_some(found.end_tls)
    };
    if shared.is_called(name) {
        return true;
    }
    // Its TLS is its own, whatever it is for.
    if flies("https").is_some() {
        return false;
    }
    let mut wishes = ["http", "http2", "http3", "websocket"]
        .into_iter()
        .filter_map(flies);
    match wishes.next() {
        Some(wish) => held.ends(wish) || wishes.any(|wish| held.ends(wish)),
        None => shared.accounts.covering(name).is_empty(),
    }
}

/// Serves what comes out of an onion service: backends, nobody else.
pub(super) async fn serve_inner(
    shared: &Shared,
    conn: BoxConn,
    binding: Option<Binding>,
    peer: &str,
) {
    let mut place = shared.doorstep.enter(Whence::Anybody);
    let peer = Peer {
        shown: peer,
        known: None,
    };
    let arriving = Box::pin(async {
        match arrive_inner(shared, conn, binding).await? {
            Inner::Backend(backend) => Some(backend),
            Inner::Request(conn, first, head) => {
                other_request(shared, conn, first, head.len, peer).await;
                None
            }
        }
    });
    if let Some(backend) = place.unless_sent_away(arriving).await {
        register::serve(shared, backend, peer, place).await;
    }
}

/// A request where only backends come: an invitation is redeemed, and all else refused.
async fn other_request<C: Conn>(
    shared: &Shared,
    conn: C,
    mut first: BytesMut,
    head_len: usize,
    peer: Peer<'_>,
) {
    let head = first.split_to(head_len.min(first.len()));
    match crate::wire::join::is_asked(&head) {
        true => Box::pin(join::serve(shared, conn, &head, first, peer)).await,
        false => refuse(conn, OFFLINE).await,
    }
}

/// Who came, within something.
enum Inner<C> {
    Backend(Box<Asking>),
    /// A request that is for a kite.
    Request(C, BytesMut, HttpHead),
}

/// The same as [`arrive`] for what comes out of TLS, or of an onion service.
async fn arrive_inner<C: Conn>(
    shared: &Shared,
    mut conn: C,
    binding: Option<Binding>,
) -> Option<Inner<C>> {
    let mut first = BytesMut::new();
    let head = match read_first(&mut conn, &mut first).await {
        First::Visitor(Visitor::Http(head)) => head,
        First::Visitor(Visitor::Tls(_)) => {
            refuse(conn, DENIED).await;
            return None;
        }
        First::Visitor(Visitor::Xmpp(_) | Visitor::Minecraft(_)) => {
            refuse(conn, Voice::Close).await;
            return None;
        }
        First::Refused(refusal) => {
            refuse(conn, refusal.voice()).await;
            return None;
        }
        First::Gone => return None,
    };
    match head.kind {
        HttpKind::Tunnel => {
            return Some(Inner::Backend(Box::new(Asking {
                conn: Box::new(conn),
                binding,
                first,
                head_len: head.len,
            })));
        }
        HttpKind::Ping => refusal::say(&mut conn, &ping_reply(shared)).await,
        HttpKind::Connect { .. } => refuse(conn, OFFLINE).await,
        HttpKind::Request | HttpKind::Websocket => return Some(Inner::Request(conn, first, head)),
    }
    None
}

/// What the first bytes told.
enum First {
    Visitor(Visitor),
    Refused(sniff::Refusal),
    /// It left, or said too little in time.
    Gone,
}

/// Reads until it is clear what came. Nothing is consumed: all bytes are in `first`.
async fn read_first<C: AsyncRead + Unpin>(conn: &mut C, first: &mut BytesMut) -> First {
    let reading = async {
        let mut again = Again::default();
        loop {
            if again.is_due(first) {
                match sniff::sniff(first) {
                    Sniff::Found(visitor) => return Some(First::Visitor(visitor)),
                    Sniff::Refuse(refusal) => return Some(First::Refused(refusal)),
                    Sniff::NeedMore => {}
                }
            }
            first.reserve(FIRST_READ);
            if !matches!(conn.read_buf(first).await, Ok(1..)) {
                return None;
            }
        }
    };
    let read = timeout(VERDICT_TIMEOUT, reading).await;
    // What was not worth a look yet is no good, or not complete.
    read.ok()
        .flatten()
        .unwrap_or_else(|| match sniff::sniff(first) {
            Sniff::Refuse(refusal) => First::Refused(refusal),
            Sniff::Found(_) | Sniff::NeedMore => First::Gone,
        })
}

/// What a visitor may be brought to.
struct Wish {
    /// The wire's words for it, the first choice first.
    protos: &'static [&'static str],
    /// What a kite's terms must allow, one of these.
    uses: &'static [Protocol],
}

/// A request.
const WEB: Wish = Wish {
    protos: WEB_PROTOS,
    uses: &[Protocol::Http, Protocol::Http2, Protocol::Http3],
};
/// What a request may be brought to.
pub(super) const WEB_PROTOS: &[&str] = &["http", "http2", "http3"];
/// A request as foolscap's.
const FOOLSCAP: Wish = Wish {
    protos: WEB.protos,
    uses: &[
        Protocol::Foolscap,
        Protocol::Http,
        Protocol::Http2,
        Protocol::Http3,
    ],
};
/// A request that asks for a WebSocket.
const WEBSOCKET: Wish = Wish {
    protos: &["websocket", "http", "http2", "http3"],
    uses: &[
        Protocol::Websocket,
        Protocol::Http,
        Protocol::Http2,
        Protocol::Http3,
    ],
};
const TLS: Wish = Wish {
    protos: &["https"],
    uses: &[Protocol::Https],
};
/// TLS that names no server, on a port that does.
const NAMELESS_TLS: Wish = Wish {
    protos: &["https"],
    uses: &[Protocol::TahoeHttps, Protocol::Https],
};
/// What follows a CONNECT to a web server's port.
const CONNECTED_WEB: Wish = Wish {
    protos: &["http"],
    uses: &[Protocol::Http],
};
const RAW: Wish = Wish {
    protos: &["raw"],
    uses: &[Protocol::Raw],
};
const XMPP: Wish = Wish {
    protos: &["xmpp"],
    uses: &[Protocol::Xmpp],
};
const MINECRAFT: Wish = Wish {
    protos: &["minecraft"],
    uses: &[Protocol::Minecraft],
};

impl Wish {
    /// How its visitor is told that nobody is there.
    fn offline(&self) -> Voice {
        self.protos
            .first()
            .map_or(Voice::Close, |proto| refusal::offline(proto))
    }

    /// How its visitor is told that the kite is not for this.
    fn forbidden(&self) -> Voice {
        match self.offline() {
            Voice::Http(_) => Voice::Http(403),
            voice => voice,
        }
    }

    /// Where to go, or how to say that there is no way.
    fn route(&'static self, shared: &Shared, host: &KiteName, port: u16) -> Result<Route, Voice> {
        let host = sniff::without_ip_prefix(host).unwrap_or_else(|| host.clone());
        let found = self.find(shared, &host, port);
        match found.ok_or(self.offline())? {
            found if self.allowed(&found) => Ok(Route {
                wish: self,
                host,
                port,
                found,
                repeatable: false,
                ended: false,
                pass: None,
                storage: None,
            }),
            _ => Err(self.forbidden()),
        }
    }

    /// The same, for a visitor whom the kite's limits let in.
    fn enter(&'static self, shared: &Shared, host: &KiteName, door: &Arrival) -> Result<Route, No> {
        let route = self.route(shared, host, door.port)?;
        route.let_in(door, self.offline())
    }

    fn find(&self, shared: &Shared, host: &KiteName, port: u16) -> Option<Found> {
        shared.registry.find(self.protos, port, host)
    }

    fn allowed(&self, found: &Found) -> bool {
        self.uses.iter().any(|use_| found.terms.contains(use_))
    }
}

/// A visitor gets nowhere, and is told so.
struct No {
    voice: Voice,
    /// It is one of its kite's refused visitors already.
    counted: bool,
}

impl From<Voice> for No {
    fn from(voice: Voice) -> Self {
        Self {
            voice,
            counted: false,
        }
    }
}

impl No {
    /// Counts the visitor, tells it, and closes.
    async fn say<C: AsyncRead + AsyncWrite + Unpin>(self, shared: &Shared, mut conn: C) {
        if !self.counted {
            shared.strangers.refuse(match self.voice {
                Voice::Http(400 | 431) => Reason::Malformed,
                Voice::Http(403) => Reason::NotForThis,
                _ => Reason::NotHere,
            });
        }
        match self.voice {
            storage::NO_PAGES if shared.policy.is_storage_only() => {
                refusal::say(&mut conn, &shared.storage_page.answer(false)).await;
            }
            voice => refuse(conn, voice).await,
        }
    }
}

/// Where a visitor goes.
struct Route {
    wish: &'static Wish,
    host: KiteName,
    port: u16,
    found: Found,
    /// The first flight may be sent twice, and nothing follows it before an answer.
    repeatable: bool,
    /// TLS was taken off here.
    ended: bool,
    /// That it may come in: there once it was asked for.
    pass: Option<Pass>,
    /// What follows the stream, where the kite carries storage alone.
    storage: Option<Box<Storage>>,
}

impl Route {
    /// With a pass for the visitor, if the kite's limits let it in; else what to say in `usual`'s manner.
    fn let_in(mut self, door: &Arrival, usual: Voice) -> Result<Self, No> {
        let who = door.peer.ip().into();
        match self.found.account.admit(who, Instant::now()) {
            Ok(pass) => self.pass = Some(pass),
            Err(refusal) => {
                tracing::debug!("a visitor of {} is refused: {refusal}", self.host);
                self.found.count.refuse(refusal.reason());
                return Err(No {
                    voice: refusal.voice(usual),
                    counted: true,
                });
            }
        }
        Ok(self)
    }

    /// Where the kite carries storage alone: is this visitor such?
    fn confine(&mut self, shared: &Shared, arrived: Arrived<'_>) -> Result<(), Voice> {
        if self.found.storage_only {
            let tub = shared.open.as_ref().and_then(|open| open.tub(&self.host));
            self.storage = Some(Box::new(storage::begin(&self.host, tub, arrived)?));
        }
        Ok(())
    }

    /// Another tunnel than this one, on the same terms, if there is any.
    fn around(&self, shared: &Shared, tunnel: &Tunnel) -> Option<Found> {
        let other = self.wish.find(shared, &self.host, self.port)?;
        let same_terms = self.wish.allowed(&other)
            && other.storage_only == self.found.storage_only
            && other.end_tls == self.found.end_tls
            && Arc::ptr_eq(&other.account, &self.found.account);
        (same_terms && !other.tunnel.is_same(tunnel)).then_some(other)
    }
}

const OFFLINE: Voice = Voice::Http(503);
const DENIED: Voice = Voice::TlsAlert(alert::ACCESS_DENIED);

fn route_http(shared: &Shared, head: &HttpHead, port: u16, first: &[u8]) -> Result<Route, Voice> {
    let host = head.host.as_ref().ok_or(Voice::Http(400))?;
    if head.path_is_pagekite_magic {
        return Err(OFFLINE);
    }
    // Whatever flies: nobody learns which kites do by asking for pages.
    if shared.policy.is_storage_only() && head.foolscap.is_none() {
        return Err(storage::NO_PAGES);
    }
    let wish = match head.foolscap {
        Some(_) => &FOOLSCAP,
        None => readable(head),
    };
    let mut route = wish.route(shared, host, port)?;
    route.repeatable = head.bare && first.len() == head.len;
    route.confine(shared, Arrived::Request(head, first))?;
    Ok(route)
}

/// A request that came out of TLS. It must be for the name that the hello asked for, or at least one
/// that the certificate is for; and for a kite whose backend wants this.
fn route_ended(
    shared: &Shared,
    head: &HttpHead,
    sni: Option<&KiteName>,
    held: &Held,
    port: u16,
) -> Result<Route, Voice> {
    let host = head.host.as_ref().ok_or(Voice::Http(400))?;
    if !is_for(head, sni, held) {
        return Err(Voice::Http(421));
    }
    if head.path_is_pagekite_magic {
        return Err(OFFLINE);
    }
    let mut route = readable(head).route(shared, host, port)?;
    if !held.ends(route.found.end_tls) {
        return Err(OFFLINE);
    }
    route.ended = true;
    Ok(route)
}

/// Is a request that came out of TLS for the name that the TLS was for?
fn is_for(head: &HttpHead, sni: Option<&KiteName>, held: &Held) -> bool {
    let host = head.host.as_ref();
    host.is_some_and(|host| sni.is_none_or(|sni| sni == host) && held.certificate.covers(host))
}

/// The page for who asks for the frontend itself, by its name, unless a kite has that.
fn own_page(shared: &Shared, head: &HttpHead, first: &[u8], port: u16) -> Option<Vec<u8>> {
    let page = shared.own_page.as_ref()?;
    let host = head.host.as_ref().filter(|host| shared.is_called(host))?;
    let asks = head.kind == HttpKind::Request && head.bare && !head.upgrades_to_tls;
    let is_flown = || {
        let found = WEB.find(shared, host, port);
        found.is_some_and(|found| !found.is_catch_all)
    };
    if !asks || sniff::http::path(first.get(..head.len)?)? != "/" || is_flown() {
        return None;
    }
    Some(page.answer(first.starts_with(b"HEAD ")))
}

/// Where a visitor in the clear is to come again, by TLS, if its kite's TLS is ended here. Foolscap
/// brings its own, and is never sent away.
fn elsewhere(shared: &Shared, head: &HttpHead, first: &[u8], port: u16) -> Option<String> {
    let host = head.host.as_ref().filter(|_| !head.upgrades_to_tls)?;
    let held = shared
        .certificates
        .find(host)
        .filter(|held| held.redirects())?;
    let wish = readable(head);
    let found = wish.find(shared, host, port)?;
    if !held.ends(found.end_tls) || !wish.allowed(&found) {
        return None;
    }
    let path = sniff::http::path(first.get(..head.len)?)?;
    Some(format!("https://{host}{path}"))
}

/// What an authority is told that looks by HTTP whether a name leads here.
fn acme_proof(shared: &Shared, head: &HttpHead, first: &[u8]) -> Option<String> {
    let path = sniff::http::path(first.get(..head.len)?)?;
    shared.challenges.http(head.host.as_ref()?, path)
}

/// What a request wishes for that anybody on the way can read.
fn readable(head: &HttpHead) -> &'static Wish {
    match head.kind {
        HttpKind::Websocket => &WEBSOCKET,
        _ => &WEB,
    }
}

/// TLS goes by its server name. A hello without one goes to the kite that owns the
/// port: Tahoe's HTTPS storage protocol names nobody. But who has `asked` by CONNECT wanted another.
fn route_tls(
    shared: &Shared,
    hello: &ClientHello,
    asked: Option<&KiteName>,
    door: &Arrival,
    first: &[u8],
) -> Result<Route, Voice> {
    match (&hello.sni, &door.port_kite) {
        (Some(sni), _) => TLS.route(shared, sni, door.port),
        (None, Some(kite)) if asked.is_none() => {
            let mut route = own(NAMELESS_TLS.route(shared, kite, door.port), DENIED)?;
            route.confine(shared, Arrived::Hello(hello, first))?;
            Ok(route)
        }
        (None, _) => Err(DENIED),
    }
}

/// Who comes to a raw kite's port may wait for the origin to speak first, so nothing is read.
fn route_raw_port(shared: &Shared, door: &Arrival) -> Result<Route, Voice> {
    let kite = door.port_kite.as_ref().ok_or(Voice::Close)?;
    own(RAW.route(shared, kite, door.port), Voice::Close)
}

/// A port that belongs to a kite is that kite's, also while it does not fly: no last resort gets its visitors.
fn own(route: Result<Route, Voice>, usual: Voice) -> Result<Route, Voice> {
    route.and_then(|route| match route.found.is_catch_all {
        true => Err(usual),
        false => Ok(route),
    })
}

/// HTTP CONNECT: http and https kites by their usual ports, and raw ones by any (§7.1). Who asks so understands a page.
fn route_connect(shared: &Shared, host: &KiteName, port: u16) -> Result<Route, Voice> {
    let page = |voice| match voice {
        Voice::Http(status) => Voice::Http(status),
        _ => OFFLINE,
    };
    let usual = match port {
        80 | 8080 => Some(CONNECTED_WEB.route(shared, host, port)),
        443 => Some(TLS.route(shared, host, port)),
        _ => None,
    };
    let raw = RAW.route(shared, host, port);
    let is_its_own = |route: &Result<Route, Voice>| matches!(route, Ok(r) if !r.found.is_catch_all);
    match usual {
        // What flies under the name goes before the last resort, and the port says what is wanted.
        Some(usual) if is_its_own(&usual) || !is_its_own(&raw) => {
            usual.or_else(|v| raw.map_err(|_| v))
        }
        _ => raw,
    }
    .map_err(page)
}

/// Joins a visitor with its kite. The first bytes go first, as they came.
async fn join<L: Local + Speaks>(
    shared: &Shared,
    conn: L,
    first: BytesMut,
    mut route: Route,
    door: &Arrival,
    peer: &str,
) {
    let pass = route.pass.take();
    let open = Open {
        proto: route.found.proto.clone(),
        host: route.host.to_string(),
        port: Some(route.port),
        rip: Some(door.peer.ip().to_canonical().to_string()),
        rport: Some(door.peer.port()),
        rtls: route.ended,
    };
    let meter = pass.map(|pass| pass.meter(first.len()));
    let first = first.freeze();
    let began = first.len() as u64;
    let opened = if route.repeatable {
        open_answered(shared, &route, open, first, &conn).await
    } else {
        let opened = open_somewhere(shared, &route, open, first);
        opened.map(|(stream, _)| (stream, VecDeque::new()))
    };
    match opened {
        Ok((stream, answer)) => {
            let sid = stream.sid();
            tracing::debug!(%peer, ?sid, "visitor for {}", route.host);
            let inside = route.found.count.enter();
            inside.flow().to_tunnel(began);
            let inspect = match storage::follow(route.storage, meter, &answer) {
                Ok(inspect) => inspect,
                Err(why) => {
                    tracing::debug!(%peer, ?sid, "a visitor of {} is cut off: {why}", route.host);
                    conn.reset();
                    return stream.abort();
                }
            };
            let done = splice(stream, conn, answer, inspect, inside.flow()).await;
            tracing::debug!(
                %peer,
                ?sid,
                up = done.to_tunnel,
                down = done.from_tunnel,
                "visitor of {} left: {:?}{}",
                route.host,
                done.end,
                match done.declined {
                    true => "; the backend took no more of what the visitor said",
                    false => "",
                }
            );
        }
        Err(e) => {
            if let Some(before) = shared.no_stream.due(Instant::now()) {
                tracing::warn!(
                    "[{}] no stream for a visitor of {}: {e}; let its backend keep more tunnels if this is often{before}",
                    Code::NoStream,
                    route.host
                );
            }
            route.found.count.refuse(Reason::NoTunnel);
            // Where a raw visitor's CONNECT was answered, a page would be taken for the origin's words.
            refuse(conn, route.wish.offline()).await;
        }
    }
}

/// Opens a stream; through another tunnel if the one that was found has ended since, as nothing was sent yet. Also gives
/// the tunnel.
fn open_somewhere(
    shared: &Shared,
    route: &Route,
    open: Open,
    first: Bytes,
) -> Result<(TunnelStream, Tunnel), OpenError> {
    let tunnel = &route.found.tunnel;
    match tunnel.open(open.clone(), first.clone()) {
        Ok(stream) => Ok((stream, tunnel.clone())),
        Err(e) => {
            let other = route.around(shared, tunnel).ok_or(e)?;
            let open = Open {
                proto: other.proto,
                ..open
            };
            Ok((other.tunnel.open(open, first)?, other.tunnel))
        }
    }
}

/// Opens a stream whose first flight may be repeated. If its tunnel gives no sign of life, or ends, and
/// another one flies the kite, the visitor takes that. Also gives what came back meanwhile. A visitor that says more, or
/// ends, is not held up: that travels at once, and then the stream stays where it is.
async fn open_answered(
    shared: &Shared,
    route: &Route,
    mut open: Open,
    first: Bytes,
    visitor: &impl Speaks,
) -> Result<(TunnelStream, VecDeque<Bytes>), OpenError> {
    let (mut stream, mut tunnel) = open_somewhere(shared, route, open.clone(), first.clone())?;
    for _ in 0..MAX_LOOKS {
        let answer = tokio::select! {
            biased;
            answer = timeout(SUSPECT_AFTER, stream.read()) => answer,
            () = visitor.said_more() => break,
        };
        match answer {
            Ok(Ok(answer)) => return Ok((stream, answer.into_iter().collect())),
            // Broken off by the origin, or the tunnel is gone.
            Ok(Err(_)) if !tunnel.is_closed() => break,
            Ok(Err(_)) => {}
            Err(_) if !tunnel.is_suspect() => {
                tunnel.ask();
                continue;
            }
            Err(_) => {}
        }
        let Some(other) = route.around(shared, &tunnel) else {
            continue;
        };
        tracing::debug!("a visitor of {} is moved to another tunnel", route.host);
        stream.abort();
        tunnel = other.tunnel;
        open.proto = other.proto;
        stream = tunnel.open(open.clone(), first.clone())?;
    }
    Ok((stream, VecDeque::new()))
}

/// Any connection that can be reset, on the heap.
trait LocalConn: Conn + Local + Sync {}
impl<T: Conn + Local + Sync> LocalConn for T {}

impl Local for Box<dyn LocalConn> {
    fn reset(&self) {
        (**self).reset();
    }
}

/// A connection that has just come in.
trait Coming: Conn + Local + Speaks + Sync + Sized {
    /// As what a tunnel, or TLS that ends here, runs over.
    fn prompt(self) -> Box<dyn LocalConn>;
}

/// A visitor is served here: the member that has brought it hears so, before all else.
async fn taken<C: Coming>(conn: &mut C, door: &Arrival) -> Option<()> {
    match door.brought {
        Some(_) => {
            say_verdict(conn, TAKEN).await?;
            // It may have given up meanwhile, and then another has the visitor.
            let answer = timeout(GO_TIMEOUT, conn.read_u8()).await;
            matches!(answer, Ok(Ok(GO))).then_some(())
        }
        None => Some(()),
    }
}

/// Waits for a kite that is expected. The member that has brought the visitor hears that this goes on; it may have given up.
async fn hold<C: Coming>(
    shared: &Shared,
    conn: &mut C,
    visitor: Option<&Visitor>,
    door: &Arrival,
) -> Option<()> {
    let mut held = pin!(shared.hold(visitor, door));
    let mut still = interval(STILL);
    loop {
        tokio::select! {
            biased;
            () = &mut held => return Some(()),
            () = left(shared, conn) => return Some(()),
            _ = still.tick(), if door.brought.is_some() => say_verdict(conn, WAITS).await?,
        }
    }
}

/// Waits until a visitor has broken off, or has ended its half while many wait: it may only have said all, but it looks like
/// one who has left, and who is waited for may be long in coming. It is told that nobody is there.
async fn left(shared: &Shared, conn: &impl Speaks) {
    loop {
        match conn.end().await {
            End::Reset => return,
            End::Half if shared.waits_crowd() => return,
            End::Half => sleep(LOOK).await,
        }
    }
}

/// It is not: the member that has brought it hears that, and nothing else.
async fn not_here<C: Coming, T>(mut conn: C) -> Option<T> {
    say_verdict(&mut conn, NOT_HERE).await?;
    let _ = conn.shutdown().await;
    None
}

async fn say_verdict<C: Coming>(conn: &mut C, verdict: u8) -> Option<()> {
    conn.write_u8(verdict).await.ok()?;
    conn.flush().await.ok()
}

impl Coming for Socket {
    fn prompt(self) -> Box<dyn LocalConn> {
        Box::new(Prompt::new(self))
    }
}

impl Coming for Brought {
    fn prompt(self) -> Box<dyn LocalConn> {
        Box::new(self)
    }
}

/// Somebody whose first flight has been read.
trait Speaks {
    /// Waits until there is more to read, or the end. Takes nothing.
    fn said_more(&self) -> impl Future<Output = ()> + Send;

    /// Waits for the end, whatever is still unread before it. Takes nothing.
    fn end(&self) -> impl Future<Output = End> + Send;
}

/// How a visitor has ended.
enum End {
    /// It says no more, and may still read.
    Half,
    /// It is gone.
    Reset,
}

/// How often it is looked whether who has ended its half had better go, or who has said more has ended.
const LOOK: Duration = Duration::from_secs(1);

impl Speaks for Socket {
    async fn said_more(&self) {
        let _ = self.peek(&mut [0]).await;
    }

    async fn end(&self) -> End {
        loop {
            match self.ready(Interest::READABLE | Interest::ERROR).await {
                Err(_) => return End::Reset,
                Ok(ready) if ready.is_error() => return End::Reset,
                Ok(ready) if ready.is_read_closed() => return End::Half,
                // More was said, and stays unread.
                Ok(_) => sleep(LOOK).await,
            }
        }
    }
}

/// What comes out of TLS cannot be looked at and left; its first flight is never sent twice.
impl<C: Conn + Sync> Speaks for TlsStream<C> {
    async fn said_more(&self) {}

    async fn end(&self) -> End {
        std::future::pending().await
    }
}

/// The answer to a backend that measures us; pagekite.py wants the status line to
/// be exactly this, libpagekite the identifier within 120 bytes (protocol page §2).
fn ping_reply(shared: &Shared) -> Vec<u8> {
    ping_reply_of(&shared.uuid, shared.slots.available_permits(), shared.most)
}

/// The same, with so many connections more that could be taken, of so many in all.
fn ping_reply_of(uuid: &str, free: usize, all: usize) -> Vec<u8> {
    let overloaded = match free < all / SPARE_SLOTS {
        true => "X-PageKite-Overloaded: Sorry\r\n",
        false => "",
    };
    format!(
        "HTTP/1.1 503 Unavailable\r\n{overloaded}X-PageKite-UUID: {uuid}\r\nContent-Type: text/html; charset=utf-8\r\n\
         Pragma: no-cache\r\nExpires: 0\r\nCache-Control: no-store\r\nConnection: close\r\n\r\n<html></html>\r\n"
    )
    .into_bytes()
}

/// A connection whose first bytes have been read already, and are read again.
struct Rewind<C> {
    prefix: BytesMut,
    inner: C,
}

impl<C: AsyncRead + Unpin> AsyncRead for Rewind<C> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.prefix.is_empty() {
            return Pin::new(&mut self.inner).poll_read(cx, buf);
        }
        let n = self.prefix.len().min(buf.remaining());
        buf.put_slice(&self.prefix.split_to(n));
        Poll::Ready(Ok(()))
    }
}

impl<C: AsyncWrite + Unpin> AsyncWrite for Rewind<C> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

impl<C: Local> Local for Rewind<C> {
    fn reset(&self) {
        self.inner.reset();
    }
}

/// The visitor's TLS ends without its closing alert then, which says as much.
impl<C: Local> Local for TlsStream<C> {
    fn reset(&self) {
        self.get_ref().0.reset();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ping_is_answered_within_what_libpagekite_reads() {
        let uuid = "f".repeat(40);
        let reply = |free| String::from_utf8(ping_reply_of(&uuid, free, 16_384)).expect("text");
        let wanted = format!("\r\nX-PageKite-UUID: {uuid}\r\n");
        for (free, sorry) in [(16_384, false), (2048, false), (2047, true), (0, true)] {
            let reply = reply(free);
            assert!(reply.starts_with("HTTP/1.1 503 Unavailable\r\n"));
            let read = reply
                .get(..120)
                .expect("libpagekite looks at so many bytes");
            assert!(read.contains(&wanted), "{read}");
            assert_eq!(read.contains("\r\nX-PageKite-Overloaded: Sorry\r\n"), sorry);
        }
    }
}
