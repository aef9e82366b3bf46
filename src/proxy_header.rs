//! The PROXY protocol: how a proxy tells the server behind it whom a connection is from.
//!
//! A header stands before the first byte of a connection: a line of text (version 1) or a block of bytes
//! (version 2). HAProxy's `proxy-protocol.txt` describes both. Load balancers write it to a frontend, and a
//! backend writes it to an origin, each only where the operator says so: a receiver must never guess whether
//! there is one, or anybody could claim to be anybody.
//!
//! Sans-IO, with the promises of [`sniff`](crate::sniff): the answer does not depend on how the bytes are cut,
//! no more than [`MAX_HEADER`] of them are looked at, and none makes it panic.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::sniff::Sniff;

/// Longest header that is read, in bytes. Addresses take 52 at most; the rest is for what load balancers add
/// (a unique identifier, the facts of a TLS session), which is skipped.
pub const MAX_HEADER: usize = 4096;

/// Longest header in text, in bytes: what the longest addresses take.
const MAX_TEXT: usize = 107;
/// How a version 1 header begins.
const TEXT: &[u8] = b"PROXY ";
/// Behind it, where nothing is known.
const UNKNOWN: &[u8] = b"UNKNOWN";
/// How a version 2 header begins.
const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
/// What each version 2 header has: the signature, two bytes, and a length.
const FIXED: usize = 16;
/// Version 2, and a connection that is the proxy's own: no address follows.
const LOCAL: u8 = 0x20;
/// Version 2, and a connection that is passed on.
const PROXY: u8 = 0x21;
/// Nothing is said of addresses.
const UNSPECIFIED: u8 = 0x00;
/// TCP over IPv4: 4 + 4 + 2 + 2 bytes.
const TCP4: u8 = 0x11;
/// TCP over IPv6: 16 + 16 + 2 + 2 bytes.
const TCP6: u8 = 0x21;
/// A field behind the addresses: the host that the client named (`PP2_TYPE_AUTHORITY`).
const AUTHORITY: u8 = 0x02;

/// Which form of the header is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Version {
    /// A line of text.
    V1,
    /// A block of bytes, with the kite's name in it.
    V2,
}

/// A header that was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// Its length in bytes. What follows is the connection's own.
    pub len: usize,
    /// Whom the connection is from. `None` if the proxy speaks for itself (a health check) or does not know:
    /// then it is from the proxy, as far as anyone can tell.
    pub from: Option<SocketAddr>,
}

/// Why there is no header to read. The proxy is at fault, or there is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The connection begins with something else.
    #[error("it does not begin with a PROXY header")]
    Missing,
    /// It begins as one, and breaks the grammar.
    #[error("its PROXY header is malformed")]
    Malformed,
    /// It has no end within [`MAX_HEADER`], or 107 bytes if it is text.
    #[error("its PROXY header is too long")]
    TooLong,
}

/// Reads a header of either version off the front of a connection.
///
/// ```
/// # use kite::{proxy_header::read, sniff::Sniff};
/// let bytes = b"PROXY TCP4 203.0.113.7 192.0.2.1 4711 80\r\nGET / HTTP/1.1\r\n";
/// let Sniff::Found(header) = read(bytes) else { panic!() };
/// assert_eq!(header.from, Some("203.0.113.7:4711".parse().unwrap()));
/// assert!(bytes[header.len..].starts_with(b"GET"));
/// assert_eq!(read(&bytes[..20]), Sniff::NeedMore);
/// ```
pub fn read(bytes: &[u8]) -> Sniff<Header, Refusal> {
    read_inner(bytes).into()
}

fn read_inner(bytes: &[u8]) -> Result<Option<Header>, Refusal> {
    let begins = |with: &[u8]| bytes.iter().zip(with).all(|(a, b)| a == b);
    match bytes.first() {
        None => Ok(None),
        Some(_) if begins(TEXT) => read_text(bytes),
        Some(_) if begins(SIGNATURE) => read_block(bytes),
        Some(_) => Err(Refusal::Missing),
    }
}

/// A line that begins with [`TEXT`].
fn read_text(bytes: &[u8]) -> Result<Option<Header>, Refusal> {
    let window = bytes.get(..MAX_TEXT).unwrap_or(bytes);
    let Some(end) = memchr::memmem::find(window, b"\r\n") else {
        return if window.len() < MAX_TEXT {
            Ok(None)
        } else {
            Err(Refusal::TooLong)
        };
    };
    let line = window.get(TEXT.len()..end).unwrap_or_default();
    // Whatever else there is behind the word is for nobody.
    let from = if line == UNKNOWN || line.starts_with(b"UNKNOWN ") {
        None
    } else {
        Some(addresses(line).ok_or(Refusal::Malformed)?)
    };
    Ok(Some(Header { len: end + 2, from }))
}

/// `TCP4 source destination port port`, or `TCP6`. The source is what counts; all must be well-formed.
fn addresses(line: &[u8]) -> Option<SocketAddr> {
    let mut words = std::str::from_utf8(line).ok()?.split(' ');
    let mut word = || words.next();
    let (family, from, to, from_port, to_port) = (word()?, word()?, word()?, word()?, word()?);
    if word().is_some() {
        return None;
    }
    let address = |text: &str| {
        let ip: IpAddr = text.parse().ok()?;
        (matches!(ip, IpAddr::V4(_)) == (family == "TCP4")).then_some(ip)
    };
    let port = |text: &str| {
        let plain = text.bytes().all(|b| b.is_ascii_digit());
        let canonical = text == "0" || !text.starts_with('0');
        text.parse().ok().filter(|_: &u16| plain && canonical)
    };
    if !matches!(family, "TCP4" | "TCP6") {
        return None;
    }
    let _ = (address(to)?, port(to_port)?);
    Some(SocketAddr::new(address(from)?, port(from_port)?))
}

/// A block that begins with [`SIGNATURE`].
fn read_block(bytes: &[u8]) -> Result<Option<Header>, Refusal> {
    let Some(&[command, family, high, low]) = bytes.get(SIGNATURE.len()..FIXED) else {
        return Ok(None);
    };
    let length = usize::from(u16::from_be_bytes([high, low]));
    let addresses = match (command, family >> 4) {
        // Whatever a proxy says of itself is skipped.
        (LOCAL, _) | (PROXY, 0) => 0,
        (PROXY, 1) => 2 * (4 + 2),
        (PROXY, 2) => 2 * (16 + 2),
        (PROXY, 3) => 2 * 108,
        _ => return Err(Refusal::Malformed),
    };
    if length < addresses || command == PROXY && family & 0xf > 2 {
        return Err(Refusal::Malformed);
    }
    if FIXED + length > MAX_HEADER {
        return Err(Refusal::TooLong);
    }
    let Some(rest) = bytes.get(FIXED..FIXED + length) else {
        return Ok(None);
    };
    Ok(Some(Header {
        len: FIXED + length,
        from: if command == PROXY {
            source(family, rest)
        } else {
            None
        },
    }))
}

/// The source of a TCP connection. Whom a datagram or a Unix socket is from is no help here.
fn source(family: u8, rest: &[u8]) -> Option<SocketAddr> {
    let (ip, ports): (IpAddr, _) = match family {
        TCP4 => (
            rest.first_chunk::<4>().map(|&ip| ip.into())?,
            rest.get(8..)?,
        ),
        TCP6 => (
            rest.first_chunk::<16>().map(|&ip| ip.into())?,
            rest.get(32..)?,
        ),
        _ => return None,
    };
    let port = u16::from_be_bytes(*ports.first_chunk()?);
    Some(SocketAddr::new(ip, port))
}

/// Writes the header of a connection from `from`, who came to `port` and named `host`, at most a DNS name long.
///
/// Where the connection was made to is not known but for the port, so the address is the one that means any,
/// as pagekite.py has it (protocol page §10.2). Without `from` the header says that nothing is known
/// (`UNKNOWN`, `LOCAL`); the server then takes the connection for what it is, one from this machine.
pub fn write(version: Version, from: Option<SocketAddr>, port: u16, host: &str) -> Vec<u8> {
    let from = from.map(|a| SocketAddr::new(a.ip().to_canonical(), a.port()));
    match version {
        Version::V1 => text(from, port),
        Version::V2 => block(from, port, host),
    }
}

fn text(from: Option<SocketAddr>, port: u16) -> Vec<u8> {
    let Some(from) = from else {
        return b"PROXY UNKNOWN\r\n".to_vec();
    };
    let (family, any) = match from.ip() {
        IpAddr::V4(_) => ("TCP4", IpAddr::from(Ipv4Addr::UNSPECIFIED)),
        IpAddr::V6(_) => ("TCP6", Ipv6Addr::UNSPECIFIED.into()),
    };
    format!(
        "PROXY {family} {} {any} {} {port}\r\n",
        from.ip(),
        from.port()
    )
    .into_bytes()
}

fn block(from: Option<SocketAddr>, port: u16, host: &str) -> Vec<u8> {
    let mut rest = Vec::new();
    let (command, family) = match from.map(|a| (a.ip(), a.port())) {
        None => (LOCAL, UNSPECIFIED),
        Some((ip, from_port)) => {
            let family = match ip {
                IpAddr::V4(ip) => {
                    rest.extend(ip.octets());
                    rest.extend(Ipv4Addr::UNSPECIFIED.octets());
                    TCP4
                }
                IpAddr::V6(ip) => {
                    rest.extend(ip.octets());
                    rest.extend(Ipv6Addr::UNSPECIFIED.octets());
                    TCP6
                }
            };
            rest.extend(from_port.to_be_bytes());
            rest.extend(port.to_be_bytes());
            (PROXY, family)
        }
    };
    if command == PROXY {
        put_field(&mut rest, AUTHORITY, host.as_bytes());
    }
    whole(command, family, &rest)
}

/// Adds a field, if it is short enough for a name. What is longer is none, and no server would look at it.
fn put_field(rest: &mut Vec<u8>, kind: u8, value: &[u8]) {
    if let Ok(length) = u8::try_from(value.len()) {
        rest.extend([kind, 0, length]);
        rest.extend(value);
    }
}

fn whole(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
    let mut header = SIGNATURE.to_vec();
    header.extend([command, family]);
    // At most 36, and some times 3 + 255.
    header.extend(u16::try_from(rest.len()).unwrap_or(0).to_be_bytes());
    header.extend(rest);
    header
}

/// Writes a version 2 header of a connection from `from`, who came to `port`, with these fields behind it: a kind and at most
/// 255 bytes each, and some few of them.
pub fn write_fields(from: SocketAddr, port: u16, fields: &[Field<'_>]) -> Vec<u8> {
    // Without a host it has an empty field for it, which is cut off again.
    let plain = block(Some(from), port, "");
    let (command, family) = match plain.get(SIGNATURE.len()..SIGNATURE.len() + 2) {
        Some(&[command, family]) => (command, family),
        _ => return plain,
    };
    let addresses = plain.get(FIXED..plain.len() - 3).unwrap_or_default();
    let mut rest = addresses.to_vec();
    for (kind, value) in fields {
        put_field(&mut rest, *kind, value);
    }
    whole(command, family, &rest)
}

/// A field behind the addresses of a version 2 header: its kind, and what it says.
pub type Field<'a> = (u8, &'a [u8]);

/// The port that a version 2 header's connection was made to, and the fields behind its addresses. None where there is none,
/// or where a field does not end within it.
pub fn fields(header: &[u8]) -> Option<(u16, Vec<Field<'_>>)> {
    let family = *header.get(SIGNATURE.len() + 1)?;
    let rest = header.get(FIXED..)?;
    let (port, mut rest) = match family {
        TCP4 => (rest.get(10..12)?, rest.get(12..)?),
        TCP6 => (rest.get(34..36)?, rest.get(36..)?),
        _ => return None,
    };
    let port = u16::from_be_bytes(*port.first_chunk()?);
    let mut fields = Vec::new();
    while !rest.is_empty() {
        let (&[kind, high, low], after) = rest.split_first_chunk::<3>()?;
        let length = usize::from(u16::from_be_bytes([high, low]));
        fields.push((kind, after.get(..length)?));
        rest = after.get(length..)?;
    }
    Some((port, fields))
}
