//! One connection at the public side, from its first byte: a visitor to be joined
//! with a kite, a backend that opens a tunnel, or something to be refused aloud.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::time::timeout;

use super::register::{self, Asking};
use super::registry::Terms;
use super::{Arrival, Shared, Socket};
use crate::dial::BoxConn;
use crate::kite::{KiteName, Protocol};
use crate::listen::Prompt;
use crate::refusal::{self, refuse};
use crate::sniff::{self, ClientHello, HttpHead, HttpKind, Sniff, Visitor, Voice, alert};
use crate::tls;
use crate::tunnel::mux::OpenError;
use crate::tunnel::splice::splice;
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

/// Serves a connection from a listening socket.
pub(super) async fn serve(shared: &Shared, conn: Socket, door: Arrival) {
    let peer = shared.shown(door.peer);
    // What happens at the door needs much memory for a moment, what follows a little for weeks: the former is given back.
    match Box::pin(arrive(shared, conn, &door, &peer)).await {
        Some(Comer::Visitor(conn, first, route)) => {
            join(shared, conn, first, route, &door, &peer).await;
        }
        Some(Comer::Backend(backend)) => register::serve(shared, backend, &peer).await,
        None => {}
    }
}

/// Who came, and is not done with.
enum Comer {
    Visitor(Socket, BytesMut, Route),
    Backend(Box<Asking>),
}

/// Finds out who came; whoever has no business here is dealt with.
async fn arrive(shared: &Shared, mut conn: Socket, door: &Arrival, peer: &str) -> Option<Comer> {
    let mut first = BytesMut::new();
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
        Visitor::Tls(hello) if is_tunnel_hop(shared, &hello, door.port) => {
            let conn = Rewind {
                prefix: first,
                inner: Prompt::new(conn),
            };
            return match shared.tls.accept(conn).await {
                Ok(conn) => {
                    let binding = tls::binding(conn.get_ref().1);
                    arrive_inner(shared, Box::new(conn), binding).await
                }
                Err(e) => {
                    tracing::debug!(%peer, "TLS for a tunnel failed: {e}");
                    None
                }
            };
        }
        Visitor::Tls(hello) => route_tls(shared, &hello, door),
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
                let route = route_connect(shared, host, port);
                if route.is_ok() {
                    first.advance(head.len);
                    conn.write_all(b"HTTP/1.0 200 Connection Established\r\n\r\n")
                        .await
                        .ok()?;
                }
                route
            }
            HttpKind::Websocket | HttpKind::Request => route_http(shared, &head, door.port),
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

/// Serves what comes out of an onion service: backends, nobody else.
pub(super) async fn serve_inner(
    shared: &Shared,
    conn: BoxConn,
    binding: Option<Binding>,
    peer: &str,
) {
    if let Some(Comer::Backend(backend)) = Box::pin(arrive_inner(shared, conn, binding)).await {
        register::serve(shared, backend, peer).await;
    }
}

/// The same as [`arrive`] for what comes out of TLS, or of an onion service: backends, nobody else.
async fn arrive_inner(
    shared: &Shared,
    mut conn: BoxConn,
    binding: Option<Binding>,
) -> Option<Comer> {
    let mut first = BytesMut::new();
    let head = match read_first(&mut conn, &mut first).await {
        First::Visitor(Visitor::Http(head)) => head,
        First::Visitor(Visitor::Tls(_)) => {
            refuse(conn, Voice::TlsAlert(alert::ACCESS_DENIED)).await;
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
            return Some(Comer::Backend(Box::new(Asking {
                conn,
                binding,
                first,
                head_len: head.len,
            })));
        }
        HttpKind::Ping => refusal::say(&mut conn, &ping_reply(&shared.uuid)).await,
        _ => refuse(conn, Voice::Http(503)).await,
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

/// A hello is for this frontend itself if it says so by ALPN, or (an older backend)
/// names the frontend and no kite of that name flies.
fn is_tunnel_hop(shared: &Shared, hello: &ClientHello, port: u16) -> bool {
    let own_name = || {
        let (Some(sni), Some(own)) = (&hello.sni, &shared.name) else {
            return false;
        };
        own.eq_ignore_ascii_case(sni.as_str())
            && shared.registry.find(&["https"], port, sni).is_none()
    };
    hello.alpn_kite || own_name()
}

/// Where a visitor goes.
struct Route {
    proto: String,
    host: KiteName,
    port: u16,
    tunnel: Tunnel,
    /// The first flight may be sent twice, and nothing follows it before an answer: foolscap's.
    repeatable: bool,
}

const OFFLINE: Voice = Voice::Http(503);
const DENIED: Voice = Voice::TlsAlert(alert::ACCESS_DENIED);

fn route_http(shared: &Shared, head: &HttpHead, port: u16) -> Result<Route, Voice> {
    let host = head.host.as_ref().ok_or(Voice::Http(400))?;
    if head.path_is_pagekite_magic {
        return Err(OFFLINE);
    }
    let (protos, uses): (&[&str], &[Protocol]) = match head.kind {
        HttpKind::Websocket => (
            &["websocket", "http", "http2", "http3"],
            &[Protocol::Websocket, Protocol::Http],
        ),
        _ if head.foolscap.is_some() => (
            &["http", "http2", "http3"],
            &[Protocol::Foolscap, Protocol::Http],
        ),
        _ => (&["http", "http2", "http3"], &[Protocol::Http]),
    };
    let mut route = find(shared, protos, port, host, uses, OFFLINE, Voice::Http(403))?;
    route.repeatable = head.foolscap.is_some();
    Ok(route)
}

/// TLS goes by its server name. A hello without one goes to the kite that owns the
/// port: Tahoe's HTTPS storage protocol names nobody.
fn route_tls(shared: &Shared, hello: &ClientHello, door: &Arrival) -> Result<Route, Voice> {
    let (host, uses): (_, &[Protocol]) = match (&hello.sni, &door.port_kite) {
        (Some(sni), _) => (sni, &[Protocol::Https]),
        (None, Some(kite)) => (kite, &[Protocol::TahoeHttps, Protocol::Https]),
        (None, None) => return Err(DENIED),
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
    let allowed = |terms: &Terms| uses.iter().any(|use_| terms.contains(use_));
    if !allowed(&found.terms) {
        return Err(forbidden);
    }
    Ok(Route {
        proto: found.proto,
        host: host.clone(),
        port,
        tunnel: found.tunnel,
        repeatable: false,
    })
}

/// Joins a visitor with its kite. The first bytes go first, as they came.
async fn join(
    shared: &Shared,
    conn: Socket,
    first: BytesMut,
    route: Route,
    door: &Arrival,
    peer: &str,
) {
    let is_tls = route.proto == "https";
    let open = Open {
        proto: route.proto.clone(),
        host: route.host.to_string(),
        port: Some(route.port),
        rip: Some(door.peer.ip().to_canonical().to_string()),
        rport: Some(door.peer.port()),
        rtls: false,
    };
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
            let done = splice(stream, conn, answer, None).await;
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
