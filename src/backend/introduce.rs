//! An origin is told who its visitor is, if the operator wants that: by a PROXY header before the visitor's
//! first byte, or by lines in the head of its first request.
//!
//! Sans-IO. What is told comes from the frontend, and is as true as the frontend is honest. It is read into
//! numbers and written anew, so no text of a frontend's gets into a header or a request.

use std::borrow::Cow;
use std::collections::VecDeque;

use bytes::{Buf, Bytes};
use core::net::{IpAddr, SocketAddr};

use crate::proxy_header::{self, Version};
use crate::sniff::{HttpHead, HttpKind, Sniff, http};
use crate::wire::frame::Open;

/// Put in front of a line's name whose place is taken by another (protocol page §10.2).
const OLD: &[u8] = b"X-Old-";

/// What an origin is told. By default nothing: its bytes are the visitor's own.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tell {
    /// A header of HAProxy's PROXY protocol stands before the visitor's first byte.
    pub proxy_protocol: Option<Version>,
    /// Lines in the head of the first request say where it is from. For `http` and `websocket` only.
    pub forwarded_headers: bool,
    /// The first request names this host instead of the kite. For `http` and `websocket` only.
    pub rewrite_host: Option<String>,
}

impl Tell {
    /// The origin gets the visitor's bytes, and no other.
    pub fn is_nothing(&self) -> bool {
        *self == Self::default()
    }

    /// The head of the first request is to be changed.
    fn edits(&self) -> bool {
        self.forwarded_headers || self.rewrite_host.is_some()
    }
}

/// How a stream begins for its origin.
#[derive(Debug, PartialEq, Eq)]
pub struct Beginning {
    /// To be written before what is still held.
    pub bytes: Vec<u8>,
    /// How many of the visitor's bytes it stands for. They are no longer held.
    pub taken: usize,
}

/// Makes the beginning of a stream that was opened so, and whose first bytes are `held`. Kites whose head is to be
/// changed have a whole one there: the [`Gate`](super::policy::Gate) is open, and has read it.
pub fn begin(tell: &Tell, open: &Open, held: &mut VecDeque<Bytes>) -> Beginning {
    let mut bytes = match tell.proxy_protocol {
        Some(version) => {
            proxy_header::write(version, from(open), open.port.unwrap_or(0), &open.host)
        }
        None => Vec::new(),
    };
    let mut taken = 0;
    if tell.edits() {
        let first = held.iter().fold(Vec::new(), |mut all, piece| {
            all.extend_from_slice(piece);
            all
        });
        if let Sniff::Found(head) = http::head(&first) {
            taken = head.len;
            edit(tell, open, &head, &first, &mut bytes);
            drop_front(held, taken);
        }
    }
    Beginning { bytes, taken }
}

/// The visitor's address, if the frontend told one.
fn from(open: &Open) -> Option<SocketAddr> {
    let ip: IpAddr = open.rip.as_deref()?.parse().ok()?;
    Some(SocketAddr::new(ip.to_canonical(), open.rport.unwrap_or(0)))
}

/// Writes the head anew: every line as it was and where it was, new ones behind the request line, and
/// [`OLD`] before the names that only we may use. Each line ends in CR LF: an origin that knows no other end would
/// read on behind ours, and take lines for the head's that have not been looked at.
fn edit(tell: &Tell, open: &Open, head: &HttpHead, first: &[u8], out: &mut Vec<u8>) {
    let mut lines = first
        .get(..head.len)
        .unwrap_or_default()
        .split_inclusive(|&b| b == b'\n');
    let request = lines.next().unwrap_or_default();
    match tell.rewrite_host {
        Some(_) => put_line(out, &without_authority(request)),
        None => put_line(out, request),
    }
    if tell.forwarded_headers {
        // An origin that is told nothing would take the visitor for this machine.
        let by = from(open).map_or("unknown".to_owned(), |a| a.ip().to_string());
        let proto = if open.rtls { "https" } else { "http" };
        out.extend_from_slice(
            format!("X-Forwarded-For: {by}\r\nX-Forwarded-Proto: {proto}\r\n").as_bytes(),
        );
        if let Some(port) = open.port {
            out.extend_from_slice(format!("X-Forwarded-Port: {port}\r\n").as_bytes());
        }
    }
    if let Some(host) = &tell.rewrite_host {
        out.extend_from_slice(format!("Host: {host}\r\n").as_bytes());
    }
    // A second request would come as the visitor wrote it, and so would anything behind an upgrade that the
    // gate does not know. There must be none.
    let upgrade = match (&head.kind, head.foolscap) {
        (HttpKind::Websocket, _) => Some("websocket"),
        (_, Some(_)) => Some("TLS/1.0"),
        _ => None,
    };
    match upgrade {
        Some(to) => out.extend_from_slice(
            format!("Connection: close, Upgrade\r\nUpgrade: {to}\r\n").as_bytes(),
        ),
        None => out.extend_from_slice(b"Connection: close\r\n"),
    }
    for line in lines {
        let name = line.split(|&b| b == b':').next().unwrap_or_default();
        if tell.replaces(name) {
            out.extend_from_slice(OLD);
        }
        put_line(out, line);
    }
}

/// With its end, whatever that was.
fn put_line(out: &mut Vec<u8>, line: &[u8]) {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    out.extend_from_slice(line.strip_suffix(b"\r").unwrap_or(line));
    out.extend_from_slice(b"\r\n");
}

/// A request line without the host that its target may name: an origin would take that for the one that is meant, whatever
/// `Host` says (RFC 9112 §3.2.2).
fn without_authority(line: &[u8]) -> Cow<'_, [u8]> {
    let mut words = line.splitn(3, |&b| b == b' ');
    let (Some(method), Some(target), Some(version)) = (words.next(), words.next(), words.next())
    else {
        return line.into();
    };
    let Some(path) = http::behind_authority(target) else {
        return line.into();
    };
    let path: Cow<'_, [u8]> = match path {
        // OPTIONS of all that there is (RFC 9112 §3.2.4).
        b"" if method == b"OPTIONS" => b"*".into(),
        [b'/', ..] => path.into(),
        path => [b"/", path].concat().into(),
    };
    [method, b" ", &path, b" ", version].concat().into()
}

impl Tell {
    /// Must not reach the origin as the visitor wrote it. Where names become variables (CGI, WSGI) all that is neither
    /// letter nor digit may be the same, so it is here.
    fn replaces(&self, name: &[u8]) -> bool {
        let plain = |&b: &u8| {
            if b.is_ascii_alphanumeric() {
                b.to_ascii_lowercase()
            } else {
                b'-'
            }
        };
        let name: Vec<u8> = name.iter().map(plain).collect();
        match &name[..] {
            b"connection" | b"proxy-connection" | b"upgrade" => true,
            b"host" => self.rewrite_host.is_some(),
            b"forwarded" | b"x-real-ip" => self.forwarded_headers,
            name => {
                self.forwarded_headers
                    && (name.starts_with(b"x-forwarded-") || name.starts_with(b"x-pagekite-"))
            }
        }
    }
}

/// Takes `n` bytes off the front.
fn drop_front(held: &mut VecDeque<Bytes>, mut n: usize) {
    while let Some(piece) = held.front_mut() {
        if n < piece.len() {
            piece.advance(n);
            return;
        }
        n -= piece.len();
        held.pop_front();
    }
}
