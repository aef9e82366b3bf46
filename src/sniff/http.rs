//! The head of a visitor's HTTP/1 request: who is meant, and what for.
//!
//! Only what routing needs is read. The head and all that follows travel on as
//! they came, and after this head the connection is opaque: kite neither counts
//! bodies nor looks at a second request, so a disagreement about
//! `Content-Length` has nobody to smuggle past. What *is* refused is whatever
//! lets two readers see two hosts, or two ends of the head.

use core::net::Ipv6Addr;

use super::foolscap::TubId;
use super::{Refusal, Sniff, visitor_name};
use crate::kite::KiteName;

/// Longest request head, in bytes, blank line included; one that has not ended
/// by then is refused with 431. Servers allow 8 to 16 KiB; a tunnel request with
/// a hundred kites fits. Foolscap's own limit is smaller, see
/// [`MAX_NEGOTIATION`](super::foolscap::MAX_NEGOTIATION).
pub const MAX_HTTP_HEAD: usize = 16 * 1024;

/// Longest method, in letters. The longest that is registered and has letters
/// only is `UPDATEREDIRECTREF`, 17 (RFC 4437). Text of another protocol is told
/// apart by this long before the head's limit.
pub const MAX_METHOD: usize = 20;

/// What pagekite.py asks for by a path instead of a host (protocol page §1.1, §9).
const MAGIC_PATHS: [&[u8]; 2] = [b"/~:PageKite:~/", b"/Beanstalk~Magic~Beans/"];

/// The name in the `Host` of a ping (protocol page §2). No kite.
const PING_HOST: &str = "ping.pagekite";

/// What a complete request head says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpHead {
    /// Length of the head in bytes, blank line included. What follows is body,
    /// or another protocol.
    pub len: usize,
    /// What the request is for.
    pub kind: HttpKind,
    /// The `Host`, without port, in lower case, without trailing dot. PageKite's
    /// encoded-IP prefix is still there, see [`without_ip_prefix`](super::without_ip_prefix).
    /// Always there for [`HttpKind::Request`], [`HttpKind::Websocket`] and [`HttpKind::Ping`].
    pub host: Option<KiteName>,
    /// The node that is meant, if this is foolscap's opening: `GET /id/TUBID` with
    /// `Upgrade: TLS/1.0` (measured on Tahoe 1.20).
    pub foolscap: Option<TubId>,
    /// Nothing follows the head before an answer: GET or HEAD, and no body announced. Such a request may be sent
    /// again through another tunnel if the first does not answer (RFC 9110 §9.2.2).
    pub bare: bool,
    /// The path is one of pagekite.py's own: a probe or a WebSocket tunnel, which
    /// kite does not implement (protocol page §1.1, §9).
    pub path_is_pagekite_magic: bool,
    /// It lists `TLS/1.0` under `Upgrade`: foolscap, well-formed or not.
    pub upgrades_to_tls: bool,
}

/// What a request is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HttpKind {
    /// `CONNECT PageKite:…`: a backend opens a tunnel (protocol page §3.1).
    Tunnel,
    /// A backend measures this frontend: `HEAD` or `GET /ping` (protocol page §2).
    Ping,
    /// `CONNECT host:port`: the way to raw kites (protocol page §7.1).
    Connect {
        /// The host before the colon. If there is a `Host` too, it is the same.
        host: KiteName,
        /// The port behind it, never 0.
        port: u16,
    },
    /// `GET` with `Upgrade: websocket` and `Connection: Upgrade` (RFC 6455 §4.2.1).
    Websocket,
    /// Any other request, foolscap's included.
    Request,
}

/// Reads a request head. See [`sniff`](super::sniff) for what holds of every parser here.
///
/// Lines may end with LF alone, as pagekite.py's may. Refused, besides what breaks
/// the grammar of RFC 9112 §3 and §5: CR without LF, obs-fold, white space around
/// a field's name, control characters, a second `Host`, a `Host` that is no plain
/// name with an optional port, and a target whose host is another one.
pub fn head(bytes: &[u8]) -> Sniff<HttpHead> {
    parse(bytes, MAX_HTTP_HEAD, LineEnd::LfToo).map(|parsed| parsed.head)
}

/// The path and query that a request asks for, if it is a plain one: from its complete head, which
/// [`head`] has accepted. Printable ASCII.
pub fn path(head: &[u8]) -> Option<&str> {
    let line = head.split(|&b| b == b'\n').next()?;
    let target = line.split(|&b| b == b' ').nth(1)?;
    let target = std::str::from_utf8(target).ok()?;
    (target.starts_with('/') && target.bytes().all(|b| b.is_ascii_graphic())).then_some(target)
}

/// What stands behind the host in a target that names one (`http://host/path`).
pub(crate) fn behind_authority(target: &[u8]) -> Option<&[u8]> {
    match Target::parse(b"", target)? {
        Target::Absolute { path, .. } => Some(path),
        Target::Origin(_) | Target::Authority(_) => None,
    }
}

/// Which line ends pass.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum LineEnd {
    /// CR LF, and LF alone.
    LfToo,
    /// CR LF only, as foolscap reads (measured on Tahoe 1.20).
    CrLf,
}

/// A head with the details that only a strict grammar asks for.
pub(super) struct Parsed {
    pub(super) head: HttpHead,
    /// `Upgrade` names TLS/1.0 and nothing else, once.
    pub(super) upgrade_is_tls: bool,
    /// `Connection` lists `Upgrade`.
    pub(super) connection_upgrade: bool,
}

/// Reads a head of at most `limit` bytes.
pub(super) fn parse(bytes: &[u8], limit: usize, end: LineEnd) -> Sniff<Parsed> {
    parse_inner(bytes, limit, end).into()
}

fn parse_inner(bytes: &[u8], limit: usize, end: LineEnd) -> Result<Option<Parsed>, Refusal> {
    let window = bytes.get(..limit).unwrap_or(bytes);
    check_method(window)?;
    let unfinished = || {
        if window.len() < limit {
            Ok(None)
        } else {
            Err(Refusal::TooLong)
        }
    };
    let mut lines = Lines {
        rest: window,
        end,
        read: 0,
    };
    let Some(first) = lines.next_line()? else {
        return unfinished();
    };
    let request = RequestLine::parse(first)?;
    let mut fields = Fields::default();
    loop {
        match lines.next_line()? {
            None => return unfinished(),
            Some([]) => return conclude(&request, fields, lines.read).map(Some),
            Some(line) => fields.add(line)?,
        }
    }
}

/// Refuses what can no longer become a method, before its line is complete.
fn check_method(bytes: &[u8]) -> Result<(), Refusal> {
    let letters = bytes.iter().take_while(|b| b.is_ascii_uppercase()).count();
    match bytes.get(letters) {
        _ if letters > MAX_METHOD => Err(Refusal::BadRequest("the method is too long")),
        Some(b' ') if letters > 0 => Ok(()),
        Some(_) => Err(Refusal::BadRequest("the method is no word of capitals")),
        None => Ok(()),
    }
}

/// The complete lines at the front of some bytes.
struct Lines<'a> {
    rest: &'a [u8],
    end: LineEnd,
    /// Bytes taken so far, line ends included.
    read: usize,
}

impl<'a> Lines<'a> {
    /// The next line without its end, or `None` if it is not complete.
    fn next_line(&mut self) -> Result<Option<&'a [u8]>, Refusal> {
        let Some(lf) = memchr::memchr(b'\n', self.rest) else {
            return Ok(None);
        };
        let (line, rest) = self.rest.split_at(lf);
        self.rest = rest.get(1..).unwrap_or_default();
        self.read += lf + 1;
        let line = match (line.strip_suffix(b"\r"), self.end) {
            (Some(line), _) => line,
            (None, LineEnd::LfToo) => line,
            (None, LineEnd::CrLf) => return Err(Refusal::BadRequest("LF without CR")),
        };
        if memchr::memchr(b'\r', line).is_some() {
            return Err(Refusal::BadRequest("CR without LF"));
        }
        Ok(Some(line))
    }
}

/// `method SP target SP version` (RFC 9112 §3).
struct RequestLine<'a> {
    method: &'a [u8],
    target: Target<'a>,
}

/// The four forms of a target (RFC 9112 §3.2).
enum Target<'a> {
    /// `/path`, and the `*` of OPTIONS.
    Origin(&'a [u8]),
    /// `http://authority/path`.
    Absolute { authority: &'a [u8], path: &'a [u8] },
    /// `host:port`, of CONNECT only.
    Authority(&'a [u8]),
}

impl<'a> RequestLine<'a> {
    fn parse(line: &'a [u8]) -> Result<Self, Refusal> {
        let mut words = line.split(|&b| b == b' ');
        let (Some(method), Some(target), Some(version), None) =
            (words.next(), words.next(), words.next(), words.next())
        else {
            return Err(Refusal::BadRequest("the request line is not three words"));
        };
        if !matches!(version, b"HTTP/1.1" | b"HTTP/1.0") {
            return Err(Refusal::BadRequest("the version is not HTTP/1.0 or 1.1"));
        }
        // Bytes over 7f are no URL, but old programs send them, and they change no
        // routing: a host with one is refused where hosts are read.
        if target.is_empty() || target.iter().any(|&b| is_control(b)) {
            return Err(Refusal::BadRequest("the target is no URL"));
        }
        let target = Target::parse(method, target).ok_or(Refusal::BadRequest(
            "the target is no URL that fits the method",
        ))?;
        Ok(Self { method, target })
    }
}

impl<'a> Target<'a> {
    fn parse(method: &[u8], target: &'a [u8]) -> Option<Self> {
        if method == b"CONNECT" {
            return Some(Target::Authority(target));
        }
        if target.starts_with(b"/") || (target == b"*" && method == b"OPTIONS") {
            return Some(Target::Origin(target));
        }
        let colon = memchr::memchr(b':', target)?;
        let (scheme, rest) = target.split_at(colon);
        let rest = rest.strip_prefix(b"://")?;
        if !scheme.eq_ignore_ascii_case(b"http") && !scheme.eq_ignore_ascii_case(b"https") {
            return None;
        }
        let end = rest.iter().position(|b| matches!(b, b'/' | b'?' | b'#'));
        let (authority, path) = rest.split_at(end.unwrap_or(rest.len()));
        Some(Target::Absolute { authority, path })
    }

    fn path(&self) -> &'a [u8] {
        match self {
            Target::Origin(path) | Target::Absolute { path, .. } => path,
            Target::Authority(_) => b"",
        }
    }
}

/// What the header fields say, as far as it matters.
#[derive(Default)]
struct Fields {
    /// `Some(None)`: there is a `Host`, and it names no kite.
    host: Option<Option<KiteName>>,
    /// Protocols listed by `Upgrade`, over all such fields.
    upgrades: usize,
    upgrade_tls: bool,
    upgrade_websocket: bool,
    connection_upgrade: bool,
    /// `Content-Length` or `Transfer-Encoding`.
    body: bool,
}

impl Fields {
    fn add(&mut self, line: &[u8]) -> Result<(), Refusal> {
        let (name, value) = field(line)?;
        if name.eq_ignore_ascii_case(b"host") {
            if self.host.is_some() {
                return Err(Refusal::BadRequest("more than one Host"));
            }
            self.host = Some(host_and_port(value)?.0);
        } else if name.eq_ignore_ascii_case(b"upgrade") {
            for item in list(value) {
                self.upgrades += 1;
                self.upgrade_tls |= item == b"TLS/1.0";
                self.upgrade_websocket |= item.eq_ignore_ascii_case(b"websocket");
            }
        } else if name.eq_ignore_ascii_case(b"connection") {
            self.connection_upgrade |= list(value).any(|i| i.eq_ignore_ascii_case(b"upgrade"));
        } else if name.eq_ignore_ascii_case(b"content-length")
            || name.eq_ignore_ascii_case(b"transfer-encoding")
        {
            self.body = true;
        }
        Ok(())
    }
}

/// `name ":" OWS value OWS` (RFC 9112 §5).
fn field(line: &[u8]) -> Result<(&[u8], &[u8]), Refusal> {
    if line.starts_with(b" ") || line.starts_with(b"\t") {
        return Err(Refusal::BadRequest("a folded header line"));
    }
    let colon =
        memchr::memchr(b':', line).ok_or(Refusal::BadRequest("a header without a colon"))?;
    let (name, value) = line.split_at(colon);
    if name.is_empty() || !name.iter().all(|&b| is_token(b)) {
        // White space before the colon ends here too (RFC 9112 §5.1).
        return Err(Refusal::BadRequest("a header's name is no token"));
    }
    let value = trim(value.get(1..).unwrap_or_default());
    if value.iter().any(|&b| is_control(b) && b != b'\t') {
        return Err(Refusal::BadRequest("a control character in a header"));
    }
    Ok((name, value))
}

/// Decides what a complete head is.
fn conclude(request: &RequestLine<'_>, fields: Fields, len: usize) -> Result<Parsed, Refusal> {
    let path = request.target.path();
    let is_get = request.method == b"GET";
    let mut foolscap = None;
    let kind = match &request.target {
        Target::Authority(target) if is_tunnel(target) => HttpKind::Tunnel,
        Target::Authority(target) => {
            let (host, port) = host_and_port(target)?;
            let host = host.ok_or(Refusal::NoHost)?;
            let port = port.ok_or(Refusal::BadRequest("CONNECT without a port"))?;
            agree(&host, fields.host.as_ref())?;
            HttpKind::Connect { host, port }
        }
        target => {
            let Some(Some(host)) = &fields.host else {
                return Err(Refusal::NoHost);
            };
            if let Target::Absolute { authority, .. } = target {
                // RFC 9112 §3.2.2 lets the target win. An origin may not know that.
                let meant = host_and_port(authority)?.0.ok_or(Refusal::NoHost)?;
                agree(&meant, fields.host.as_ref())?;
            }
            let ping = host.as_str() == PING_HOST && path == b"/ping";
            if let (true, Target::Origin(path)) = (is_get && fields.upgrade_tls, target) {
                foolscap = path.strip_prefix(b"/id/").and_then(TubId::from_bytes);
            }
            if ping && (is_get || request.method == b"HEAD") {
                HttpKind::Ping
            } else if is_get && fields.upgrade_websocket && fields.connection_upgrade {
                HttpKind::Websocket
            } else {
                HttpKind::Request
            }
        }
    };
    Ok(Parsed {
        upgrade_is_tls: fields.upgrade_tls && fields.upgrades == 1,
        connection_upgrade: fields.connection_upgrade,
        head: HttpHead {
            len,
            kind,
            host: fields.host.flatten(),
            foolscap,
            upgrades_to_tls: fields.upgrade_tls,
            bare: (is_get || request.method == b"HEAD") && !fields.body,
            path_is_pagekite_magic: MAGIC_PATHS.iter().any(|magic| path.starts_with(magic)),
        },
    })
}

/// `PageKite:…`, in any case (protocol page §3.1).
fn is_tunnel(target: &[u8]) -> bool {
    target
        .get(..9)
        .is_some_and(|start| start.eq_ignore_ascii_case(b"pagekite:"))
}

/// The target's host and the `Host`, if there is one, are the same name.
fn agree(meant: &KiteName, host: Option<&Option<KiteName>>) -> Result<(), Refusal> {
    match host {
        Some(host) if host.as_ref() != Some(meant) => {
            Err(Refusal::BadRequest("Host and target disagree"))
        }
        _ => Ok(()),
    }
}

/// `host [ ":" port ]` (RFC 9110 §7.2, RFC 3986 §3.2), stricter than there: no
/// userinfo, no percent-encoding, no empty port. An empty host and a bracketed
/// IPv6 address are well-formed, and name no kite.
fn host_and_port(text: &[u8]) -> Result<(Option<KiteName>, Option<u16>), Refusal> {
    const BAD: Refusal = Refusal::BadRequest("the host is no name with an optional port");
    if text.is_empty() {
        return Ok((None, None));
    }
    let (host, port) = if let Some(rest) = text.strip_prefix(b"[") {
        let close = memchr::memchr(b']', rest).ok_or(BAD)?;
        let (address, port) = rest.split_at(close);
        let address = std::str::from_utf8(address).map_err(|_| BAD)?;
        address.parse::<Ipv6Addr>().map_err(|_| BAD)?;
        (None, port.get(1..).unwrap_or_default())
    } else {
        let colon = memchr::memchr(b':', text).unwrap_or(text.len());
        let (name, port) = text.split_at(colon);
        (Some(visitor_name(name).ok_or(BAD)?), port)
    };
    if port.is_empty() {
        return Ok((host, None));
    }
    let digits = port.strip_prefix(b":").ok_or(BAD)?;
    let port = port_number(digits).ok_or(BAD)?;
    Ok((host, Some(port)))
}

/// One to five digits, 1 to 65535.
fn port_number(digits: &[u8]) -> Option<u16> {
    if digits.len() > 5 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let number = std::str::from_utf8(digits).ok()?.parse().ok()?;
    (number != 0).then_some(number)
}

/// The items of a comma-separated list (RFC 9110 §5.6.1), empty ones left out.
fn list(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value
        .split(|&b| b == b',')
        .map(trim)
        .filter(|item| !item.is_empty())
}

/// Without spaces and tabs at both ends.
fn trim(mut value: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] | [rest @ .., b' ' | b'\t'] = value {
        value = rest;
    }
    value
}

/// A `tchar` (RFC 9110 §5.6.2).
fn is_token(b: u8) -> bool {
    b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b)
}

/// 00–1f and 7f.
fn is_control(b: u8) -> bool {
    b.is_ascii_control()
}
