//! One connection at the public side, from its first byte: a visitor to be joined
//! with a kite, a backend that opens a tunnel, or something to be refused aloud.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::time::timeout;
use tokio_rustls::server::TlsStream;

use super::account::{self, Account, Pass};
use super::balancer::{self, Balancers, Turned};
use super::certificates::Held;
use super::register::{self, Asking, Peer};
use super::registry::Found;
use super::{Arrival, Shared, Socket};
use crate::dial::{BoxConn, Conn};
use crate::kite::{KiteName, Protocol};
use crate::listen::Prompt;
use crate::refusal::{self, refuse};
use crate::sniff::{self, ClientHello, HttpHead, HttpKind, Sniff, Visitor, Voice, alert};
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
/// Asked of the socket at first while sniffing, in bytes: most say all in one packet.
const FIRST_READ: usize = 1024;

/// Serves a connection from a listening socket; behind load balancers it begins with a header of theirs.
pub(super) async fn serve(
    shared: &Shared,
    mut conn: Socket,
    mut door: Arrival,
    balancers: Option<&Balancers>,
) {
    let mut first = BytesMut::new();
    if let Some(balancers) = balancers {
        match Box::pin(balancer::introduced(&mut conn, door.peer, balancers)).await {
            Ok(introduced) => (door.peer, first) = introduced,
            Err(why) => return turned_away(shared, &door, &why),
        }
    }
    let peer = shared.shown(door.peer);
    // What happens at the door needs much memory for a moment, what follows a little for weeks: the former is given back.
    match Box::pin(arrive(shared, conn, first, &door, &peer)).await {
        Some(Comer::Visitor(conn, first, route)) => {
            join(shared, conn, first, route, &door, &peer).await;
        }
        Some(Comer::Ended(conn, first, route)) => {
            Box::pin(join(shared, *conn, first, route, &door, &peer)).await;
        }
        Some(Comer::Backend(backend)) => {
            let peer = Peer {
                shown: &peer,
                known: Some(account::visitor(door.peer.ip())),
            };
            register::serve(shared, backend, peer).await;
        }
        None => {}
    }
}

/// Says, once a minute at most, why nobody gets in through a port behind load balancers.
fn turned_away(shared: &Shared, door: &Arrival, why: &Turned) {
    let peer = shared.shown(door.peer);
    // A health check that only connects is no trouble.
    if *why == Turned::Left {
        tracing::debug!(%peer, "refused: {why}");
    } else if let Some(before) = shared.unintroduced.due(Instant::now()) {
        tracing::warn!(
            "port {}: a connection from {peer} was refused: {why}{before}",
            door.port
        );
    }
}

/// Who came, and is not done with.
enum Comer {
    Visitor(Socket, BytesMut, Route),
    /// A visitor whose TLS is ended here.
    Ended(Box<Secured>, BytesMut, Route),
    Backend(Box<Asking>),
}

/// What is left when TLS is taken off a connection.
type Secured = TlsStream<Rewind<Prompt>>;

/// Finds out who came; whoever has no business here is dealt with.
async fn arrive(
    shared: &Shared,
    mut conn: Socket,
    mut first: BytesMut,
    door: &Arrival,
    peer: &str,
) -> Option<Comer> {
    let visitor = match read_first(&mut conn, &mut first).await {
        First::Visitor(visitor) => visitor,
        First::Refused(refusal) => {
            tracing::debug!(%peer, "refused: {refusal}");
            refuse(conn, refusal.voice()).await;
            return None;
        }
        First::Gone => return None,
    };
    let route = match visitor {
        Visitor::Tls(hello) => {
            return arrive_by_tls(shared, conn, first, &hello, None, door, peer).await;
        }
        Visitor::Http(head) => match head.kind {
            HttpKind::Tunnel => {
                return Some(Comer::Backend(Box::new(Asking {
                    conn: Box::new(Prompt::new(conn)),
                    binding: None,
                    first,
                    head_len: head.len,
                })));
            }
            HttpKind::Ping => {
                refusal::say(&mut conn, &ping_reply(&shared.uuid)).await;
                return None;
            }
            HttpKind::Connect { ref host, port } => {
                let found = route_connect(shared, host, port);
                let ours =
                    found.is_err() && port == 443 && shared.certificates.find(host).is_some();
                let route = found.and_then(|route| route.let_in(door, OFFLINE));
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
                if let Some(proof) = acme_proof(shared, &head, &first) {
                    refusal::say(&mut conn, &refusal::plain(&proof)).await;
                    return None;
                }
                if let Some(location) = elsewhere(shared, &head, &first, door.port) {
                    refusal::say(&mut conn, &refusal::elsewhere(&location)).await;
                    return None;
                }
                route_http(shared, &head, door.port).and_then(|route| route.let_in(door, OFFLINE))
            }
        },
    };
    match route {
        Ok(route) => Some(Comer::Visitor(conn, first, route)),
        Err(voice) => {
            refuse(conn, voice).await;
            None
        }
    }
}

/// An older backend asked in the clear for TLS with this name, and says hello now (protocol page §1).
async fn arrive_after_connect(
    shared: &Shared,
    mut conn: Socket,
    mut first: BytesMut,
    name: &KiteName,
    door: &Arrival,
    peer: &str,
) -> Option<Comer> {
    match read_first(&mut conn, &mut first).await {
        First::Visitor(Visitor::Tls(hello)) => {
            arrive_by_tls(shared, conn, first, &hello, Some(name), door, peer).await
        }
        First::Visitor(Visitor::Http(_)) => {
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
async fn arrive_by_tls(
    shared: &Shared,
    conn: Socket,
    first: BytesMut,
    hello: &ClientHello,
    asked: Option<&KiteName>,
    door: &Arrival,
    peer: &str,
) -> Option<Comer> {
    let whither = match whither(shared, hello, asked, door) {
        Whither::Kite(route) => match route.let_in(door, DENIED) {
            Ok(route) => return Some(Comer::Visitor(conn, first, route)),
            Err(voice) => Whither::Nowhere(voice),
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
            refuse(conn, voice).await;
            return None;
        }
        Whither::Ours(ending) => ending,
    };
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
    let (conn, first, head) = match arrive_inner(shared, conn, binding).await? {
        Inner::Backend(backend) => return Some(Comer::Backend(backend)),
        Inner::Request(conn, first, head) => (conn, first, head),
    };
    // Visitors are for certificates of names, never for the tunnels' own key or protocol.
    let route = match ending.filter(|_| !hello.alpn_kite) {
        Some(held) => route_ended(shared, &head, hello.sni.as_ref(), &held, door.port)
            .and_then(|route| route.let_in(door, OFFLINE)),
        None => Err(OFFLINE),
    };
    match route {
        Ok(route) => Some(Comer::Ended(Box::new(conn), first, route)),
        Err(voice) => {
            refuse(conn, voice).await;
            None
        }
    }
}

/// A connection as it was before anybody looked.
fn conn_again(conn: Socket, first: BytesMut) -> Rewind<Prompt> {
    Rewind {
        prefix: first,
        inner: Prompt::new(conn),
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
    let denied = match route_tls(shared, hello, asked, door) {
        Ok(route) => return Whither::Kite(route),
        Err(voice) => voice,
    };
    let default = || match name {
        None => shared.certificates.default(),
        Some(_) => None,
    };
    if let Some(held) = held().or_else(default) {
        return Whither::Ours(Some(held));
    }
    // An older backend that knows us by name.
    let own_name = || {
        let (sni, own) = (hello.sni.as_ref()?, shared.name.as_ref()?);
        own.eq_ignore_ascii_case(sni.as_str()).then_some(())
    };
    match own_name() {
        Some(()) => Whither::Ours(None),
        None => Whither::Nowhere(denied),
    }
}

/// Serves what comes out of an onion service: backends, nobody else.
pub(super) async fn serve_inner(
    shared: &Shared,
    conn: BoxConn,
    binding: Option<Binding>,
    peer: &str,
) {
    match Box::pin(arrive_inner(shared, conn, binding)).await {
        Some(Inner::Backend(backend)) => {
            let peer = Peer {
                shown: peer,
                known: None,
            };
            register::serve(shared, backend, peer).await;
        }
        Some(Inner::Request(conn, ..)) => refuse(conn, OFFLINE).await,
        None => {}
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
        HttpKind::Ping => refusal::say(&mut conn, &ping_reply(&shared.uuid)).await,
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
        loop {
            match sniff::sniff(first) {
                Sniff::Found(visitor) => return First::Visitor(visitor),
                Sniff::Refuse(refusal) => return First::Refused(refusal),
                Sniff::NeedMore => {}
            }
            first.reserve(FIRST_READ);
            match conn.read_buf(first).await {
                Ok(0) | Err(_) => return First::Gone,
                Ok(_) => {}
            }
        }
    };
    timeout(VERDICT_TIMEOUT, reading)
        .await
        .unwrap_or(First::Gone)
}

/// Where a visitor goes.
struct Route {
    proto: String,
    host: KiteName,
    port: u16,
    tunnel: Tunnel,
    /// The first flight may be sent twice, and nothing follows it before an answer: foolscap's.
    repeatable: bool,
    /// TLS was taken off here.
    ended: bool,
    /// What the visitor is charged to.
    account: Arc<Account>,
    /// That it may come in: there once it was asked for.
    pass: Option<Pass>,
}

impl Route {
    /// With a pass for the visitor, if the kite's limits let it in; else what to say in `usual`'s manner.
    fn let_in(mut self, door: &Arrival, usual: Voice) -> Result<Self, Voice> {
        let who = account::visitor(door.peer.ip());
        match self.account.admit(who, Instant::now()) {
            Ok(pass) => self.pass = Some(pass),
            Err(refusal) => {
                tracing::debug!("a visitor of {} is refused: {refusal}", self.host);
                return Err(refusal.voice(usual));
            }
        }
        Ok(self)
    }
}

const OFFLINE: Voice = Voice::Http(503);
const DENIED: Voice = Voice::TlsAlert(alert::ACCESS_DENIED);

fn route_http(shared: &Shared, head: &HttpHead, port: u16) -> Result<Route, Voice> {
    let host = head.host.as_ref().ok_or(Voice::Http(400))?;
    if head.path_is_pagekite_magic {
        return Err(OFFLINE);
    }
    let (protos, uses) = match readable(head) {
        (protos, _) if head.foolscap.is_some() => {
            (protos, &[Protocol::Foolscap, Protocol::Http][..])
        }
        readable => readable,
    };
    let mut route = find(shared, protos, port, host, uses, OFFLINE, Voice::Http(403))?;
    route.repeatable = head.foolscap.is_some();
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
    if sni.is_some_and(|sni| sni != host) || !held.certificate.covers(host) {
        return Err(Voice::Http(421));
    }
    if head.path_is_pagekite_magic {
        return Err(OFFLINE);
    }
    let (protos, uses) = readable(head);
    let found = shared.registry.find(protos, port, host).ok_or(OFFLINE)?;
    if !held.ends(found.end_tls) {
        return Err(OFFLINE);
    }
    let mut route = admit(found, host, port, uses, Voice::Http(403))?;
    route.ended = true;
    Ok(route)
}

/// Where a visitor in the clear is to come again, by TLS, if its kite's TLS is ended here. Foolscap
/// brings its own, and is never sent away.
fn elsewhere(shared: &Shared, head: &HttpHead, first: &[u8], port: u16) -> Option<String> {
    let host = head.host.as_ref().filter(|_| !head.upgrades_to_tls)?;
    let held = shared
        .certificates
        .find(host)
        .filter(|held| held.redirects())?;
    let (protos, uses) = readable(head);
    let found = shared.registry.find(protos, port, host)?;
    if !held.ends(found.end_tls) || !uses.iter().any(|use_| found.terms.contains(use_)) {
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

/// As what a request is looked up that anybody on the way can read, and what its kite must be for.
fn readable(head: &HttpHead) -> (&'static [&'static str], &'static [Protocol]) {
    match head.kind {
        HttpKind::Websocket => (
            &["websocket", "http", "http2", "http3"],
            &[Protocol::Websocket, Protocol::Http],
        ),
        _ => (&["http", "http2", "http3"], &[Protocol::Http]),
    }
}

/// TLS goes by its server name. A hello without one goes to the kite that owns the
/// port: Tahoe's HTTPS storage protocol names nobody. But who has `asked` by CONNECT wanted another.
fn route_tls(
    shared: &Shared,
    hello: &ClientHello,
    asked: Option<&KiteName>,
    door: &Arrival,
) -> Result<Route, Voice> {
    let (host, uses): (_, &[Protocol]) = match (&hello.sni, &door.port_kite) {
        (Some(sni), _) => (sni, &[Protocol::Https]),
        (None, Some(kite)) if asked.is_none() => (kite, &[Protocol::TahoeHttps, Protocol::Https]),
        (None, _) => return Err(DENIED),
    };
    find(shared, &["https"], door.port, host, uses, DENIED, DENIED)
}

/// HTTP CONNECT: raw kites by any port, and the others by their usual ones (§7.1).
fn route_connect(shared: &Shared, host: &KiteName, port: u16) -> Result<Route, Voice> {
    let raw = find(
        shared,
        &["raw"],
        port,
        host,
        &[Protocol::Raw],
        OFFLINE,
        Voice::Http(403),
    );
    match (raw, port) {
        (Ok(route), _) => Ok(route),
        (Err(_), 80 | 8080) => find(
            shared,
            &["http"],
            port,
            host,
            &[Protocol::Http],
            OFFLINE,
            Voice::Http(403),
        ),
        (Err(_), 443) => find(
            shared,
            &["https"],
            port,
            host,
            &[Protocol::Https],
            OFFLINE,
            Voice::Http(403),
        ),
        (Err(voice), _) => Err(voice),
    }
}

fn find(
    shared: &Shared,
    protos: &[&str],
    port: u16,
    host: &KiteName,
    uses: &[Protocol],
    offline: Voice,
    forbidden: Voice,
) -> Result<Route, Voice> {
    let bare = sniff::without_ip_prefix(host);
    let host = bare.as_ref().unwrap_or(host);
    let found = shared.registry.find(protos, port, host).ok_or(offline)?;
    admit(found, host, port, uses, forbidden)
}

/// The way to a kite that was found, if it is for one of these uses.
fn admit(
    found: Found,
    host: &KiteName,
    port: u16,
    uses: &[Protocol],
    forbidden: Voice,
) -> Result<Route, Voice> {
    if !uses.iter().any(|use_| found.terms.contains(use_)) {
        return Err(forbidden);
    }
    Ok(Route {
        proto: found.proto,
        host: host.clone(),
        port,
        tunnel: found.tunnel,
        repeatable: false,
        ended: false,
        account: found.account,
        pass: None,
    })
}

/// Joins a visitor with its kite. The first bytes go first, as they came.
async fn join<L: Local>(
    shared: &Shared,
    conn: L,
    first: BytesMut,
    mut route: Route,
    door: &Arrival,
    peer: &str,
) {
    let pass = route.pass.take();
    let is_tls = route.proto == "https";
    let open = Open {
        proto: route.proto.clone(),
        host: route.host.to_string(),
        port: Some(route.port),
        rip: Some(door.peer.ip().to_canonical().to_string()),
        rport: Some(door.peer.port()),
        rtls: route.ended,
    };
    let meter = pass.map(|pass| pass.meter(first.len()));
    let first = first.freeze();
    let opened = if route.repeatable {
        open_answered(shared, &route, open, first).await
    } else {
        let opened = route.tunnel.open(open, first);
        opened.map(|stream| (stream, VecDeque::new()))
    };
    match opened {
        Ok((stream, answer)) => {
            let sid = stream.sid();
            tracing::debug!(%peer, ?sid, "visitor for {}", route.host);
            let done = splice(stream, conn, answer, meter).await;
            tracing::debug!(%peer, ?sid, up = done.to_tunnel, down = done.from_tunnel, "visitor left: {:?}", done.end);
        }
        Err(e) => {
            tracing::warn!("no stream for a visitor of {}: {e}", route.host);
            refuse(conn, if is_tls { DENIED } else { OFFLINE }).await;
        }
    }
}

/// Opens a stream whose first flight may be repeated. If its tunnel gives no sign of life, and
/// another one flies the kite, the visitor takes that. Also gives what came back meanwhile.
async fn open_answered(
    shared: &Shared,
    route: &Route,
    open: Open,
    first: Bytes,
) -> Result<(TunnelStream, VecDeque<Bytes>), OpenError> {
    let mut tunnel = route.tunnel.clone();
    let mut stream = tunnel.open(open.clone(), first.clone())?;
    for _ in 0..MAX_LOOKS {
        match timeout(SUSPECT_AFTER, stream.read()).await {
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
        let other = shared
            .registry
            .find(&[&route.proto], route.port, &route.host);
        let Some(other) = other
            .map(|found| found.tunnel)
            .filter(|t| !t.is_same(&tunnel))
        else {
            continue;
        };
        tracing::info!("a visitor of {} is moved to another tunnel", route.host);
        stream.abort();
        tunnel = other;
        stream = tunnel.open(open.clone(), first.clone())?;
    }
    Ok((stream, VecDeque::new()))
}

/// The answer to a backend that measures us; pagekite.py wants the status line to
/// be exactly this, libpagekite the identifier within 120 bytes (protocol page §2).
fn ping_reply(uuid: &str) -> Vec<u8> {
    format!(
        "HTTP/1.1 503 Unavailable\r\nX-PageKite-UUID: {uuid}\r\nContent-Type: text/html; charset=utf-8\r\n\
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
