//! What a visitor wants, told from its first bytes.
//!
//! Sans-IO: bytes in, [`Sniff`] out. Every parser here is a pure function of the
//! bytes received so far and is called again with a longer prefix until it
//! decides. It borrows; nobody rewrites what it looked at, because foolscap and
//! TLS do not survive that (HAProxy's lower-cased header names break foolscap).
//!
//! Three promises, all tested:
//!
//! * One call is O(n) in the bytes given, and never looks beyond
//!   [`MAX_FIRST_FLIGHT`] of them. [`Again`] says when a call is worth it, so that
//!   all calls for one visitor together are, too.
//! * The answer never depends on how the bytes were split: checks happen in the
//!   order of the bytes, so a prefix gives either `NeedMore` or the answer that
//!   every longer prefix gives too.
//! * No input panics.
//!
//! Time limits are the caller's: a visitor may stop in the middle.
//!
//! ```
//! use kite::sniff::{Sniff, Visitor, sniff};
//!
//! let request = b"GET / HTTP/1.1\r\nHost: Bob.Alice.example\r\n\r\n";
//! assert!(matches!(sniff(&request[..20]), Sniff::NeedMore));
//! let Sniff::Found(Visitor::Http(head)) = sniff(request) else { panic!() };
//! assert_eq!(head.host.unwrap().as_str(), "bob.alice.example");
//! assert!(matches!(sniff(b"\x00\x01"), Sniff::Refuse(_)));
//! ```

mod again;
pub mod foolscap;
pub mod http;
pub mod minecraft;
pub mod storage;
pub mod tls;
pub mod xmpp;

pub use again::Again;
pub use foolscap::TubId;
pub use http::{HttpHead, HttpKind, MAX_HTTP_HEAD};
pub use tls::{ACME_ALPN, CERTIFIED_ALPN, ClientHello, MAX_CLIENT_HELLO, TUNNEL_ALPN};

use crate::kite::KiteName;

/// The most bytes that [`sniff`] ever looks at. A caller that holds this many
/// has an answer other than [`Sniff::NeedMore`].
pub const MAX_FIRST_FLIGHT: usize = if MAX_HTTP_HEAD > MAX_CLIENT_HELLO {
    MAX_HTTP_HEAD
} else {
    MAX_CLIENT_HELLO
};

/// Content type of a TLS handshake record, the first byte of a TLS connection
/// (RFC 8446 §5.1). No HTTP method begins so.
const TLS_HANDSHAKE_RECORD: u8 = 0x16;

/// What the bytes so far tell. Too few bytes are no error, hence no `Result`.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub enum Sniff<T, E = Refusal> {
    /// Everything so far is fine, and not all is here. Ask again with more.
    NeedMore,
    /// All is here. More bytes do not change it.
    Found(T),
    /// No continuation can make it right. More bytes do not change it.
    Refuse(E),
}

impl<T, E> Sniff<T, E> {
    /// Changes what was found, and nothing else.
    pub fn map<U>(self, f: impl FnOnce(T) -> U) -> Sniff<U, E> {
        match self {
            Sniff::NeedMore => Sniff::NeedMore,
            Sniff::Found(found) => Sniff::Found(f(found)),
            Sniff::Refuse(why) => Sniff::Refuse(why),
        }
    }
}

/// Parsers use `?` inside; this is how their result leaves.
impl<T, E> From<Result<Option<T>, E>> for Sniff<T, E> {
    fn from(result: Result<Option<T>, E>) -> Self {
        match result {
            Ok(None) => Sniff::NeedMore,
            Ok(Some(found)) => Sniff::Found(found),
            Err(why) => Sniff::Refuse(why),
        }
    }
}

/// What the first bytes turned out to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Visitor {
    /// A complete HTTP request head. Foolscap, tunnels and pings begin so too.
    Http(HttpHead),
    /// A complete TLS ClientHello.
    Tls(ClientHello),
    /// The opening of an XMPP stream to this host.
    Xmpp(KiteName),
    /// A Minecraft handshake for this server.
    Minecraft(KiteName),
}

/// Why a visitor is turned away, and by what it can be told so: see [`Refusal::voice`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// An HTTP head without an end within its limit.
    #[error("the request head is too long")]
    TooLong,
    /// The first bytes begin none of the protocols that are told apart here. SSLv2 hellos, SSH banners
    /// and the like.
    #[error("neither HTTP nor TLS")]
    NotHttpNorTls,
    /// They begin as an XMPP stream or a Minecraft handshake does, and are none.
    #[error("{0}")]
    BadOpening(&'static str),
    /// An HTTP head that breaks RFC 9112, or that two readers could read in two ways.
    #[error("bad HTTP request: {0}")]
    BadRequest(&'static str),
    /// An HTTP request that names no kite: no `Host`, or one that can be no
    /// kite's name (an IPv6 address).
    #[error("the HTTP request names no host")]
    NoHost,
    /// A malformed or oversized ClientHello.
    #[error("bad TLS ClientHello: {0}")]
    BadTls(&'static str),
    /// A well-formed ClientHello whose server_name is no DNS name (RFC 6066 §3).
    #[error("the TLS server_name is no DNS name")]
    BadServerName,
}

/// How to refuse so that the visitor understands. Silence costs a Tahoe client
/// up to two minutes (measured on Tahoe 1.20), an answer and a close nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Voice {
    /// Answer with this HTTP status, then close.
    Http(u16),
    /// Send a fatal TLS alert with this description (RFC 8446 §6), then close.
    TlsAlert(u8),
    /// Answer with a stream whose error is `host-unknown` (RFC 6120 §4.9.3.6), then close.
    XmppError,
    /// Close without a byte.
    Close,
}

/// TLS alert descriptions (RFC 8446 §6) that kite sends.
pub mod alert {
    /// access_denied: nobody by that name here. What pagekite.py sends for an
    /// unknown name (protocol page §9, recording 06).
    pub const ACCESS_DENIED: u8 = 49;
    /// decode_error: the message does not parse.
    pub const DECODE_ERROR: u8 = 50;
    /// unrecognized_name: the server_name cannot be one of ours.
    pub const UNRECOGNIZED_NAME: u8 = 112;
}

impl Refusal {
    /// How to tell the visitor.
    pub fn voice(&self) -> Voice {
        match self {
            Refusal::TooLong => Voice::Http(431),
            Refusal::NotHttpNorTls | Refusal::BadOpening(_) => Voice::Close,
            Refusal::BadRequest(_) | Refusal::NoHost => Voice::Http(400),
            Refusal::BadTls(_) => Voice::TlsAlert(alert::DECODE_ERROR),
            Refusal::BadServerName => Voice::TlsAlert(alert::UNRECOGNIZED_NAME),
        }
    }
}

/// Looks at everything received from a visitor so far, from its first byte.
///
/// The first byte tells most: request methods are upper-case letters (protocol page §9), a TLS connection begins with
/// a handshake record, an XMPP stream with `<`. Any of these may be the length of a Minecraft handshake, too, whose packet
/// number follows: 0, which the others never have there.
pub fn sniff(bytes: &[u8]) -> Sniff<Visitor> {
    match *bytes {
        [] => Sniff::NeedMore,
        [length, 0, ..] | [length @ 0x80..=0xff, 1..=0x7f, 0, ..]
            if usize::from(length) >= minecraft::MIN_LENGTH =>
        {
            minecraft::handshake(bytes).map(Visitor::Minecraft)
        }
        [TLS_HANDSHAKE_RECORD] | [b'A'..=b'Z'] | [b'<'] => Sniff::NeedMore,
        [TLS_HANDSHAKE_RECORD, ..] => tls::client_hello(bytes).map(Visitor::Tls),
        [b'A'..=b'Z', ..] => http::head(bytes).map(Visitor::Http),
        [b'<', ..] => xmpp::opening(bytes).map(Visitor::Xmpp),
        [length] if usize::from(length) >= minecraft::MIN_LENGTH => Sniff::NeedMore,
        [0x80..=0xff, 1..=0x7f] => Sniff::NeedMore,
        _ => Sniff::Refuse(Refusal::NotHttpNorTls),
    }
}

/// The name without PageKite's encoded-IP prefix `0x<8 or 32 hex>--`, or `None`
/// if it has none (protocol page §5.2). pagekite.py's frontends route by what is left.
pub fn without_ip_prefix(name: &KiteName) -> Option<KiteName> {
    let (hex, rest) = name.as_str().strip_prefix("0x")?.split_once("--")?;
    let is_address = matches!(hex.len(), 8 | 32) && hex.bytes().all(|b| b.is_ascii_hexdigit());
    if is_address {
        visitor_name(rest.as_bytes())
    } else {
        None
    }
}

/// A host name as a visitor may say it: a [`KiteName`], but no wildcard, which
/// would match a wildcard kite's own text in a registry. Any case, trailing dot or not.
fn visitor_name(name: &[u8]) -> Option<KiteName> {
    let name: KiteName = std::str::from_utf8(name).ok()?.parse().ok()?;
    (!name.is_wildcard()).then_some(name)
}
