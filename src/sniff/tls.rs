//! A TLS ClientHello: whom it names, and whether it wants a tunnel.
//!
//! The hello is put together from any number of records that came in any number
//! of segments. Both happen: with a post-quantum key share a hello is about
//! 1,500 bytes and does not fit one Ethernet segment (measured on Tahoe 1.20),
//! clients permute extensions, so that the name may stand behind that share, and
//! some split the hello over records on purpose. A parser that looks at the
//! first read only takes such visitors for nameless.
//!
//! Nothing is decrypted, and bytes behind the hello are not looked at.

use std::borrow::Cow;

use super::{Refusal, Sniff, TLS_HANDSHAKE_RECORD, visitor_name};
use crate::kite::KiteName;

/// Longest ClientHello without record headers and without its own four-byte
/// header, in bytes. Real ones have 300 to 2,000; rustls reads up to 64 KiB. A
/// longer one is refused with an alert.
pub const MAX_HELLO_BODY: usize = 16 * 1024;

/// The most bytes on the wire before the hello must be complete: its body and
/// 4 KiB for record headers, five bytes each. Only a hello in hundreds of tiny
/// records meets this limit before the other.
pub const MAX_CLIENT_HELLO: usize = MAX_HELLO_BODY + 4 * 1024;

/// The ALPN protocol (RFC 7301) that a kite backend's hello offers, and pagekite.py's do not:
/// this connection becomes a tunnel, whatever its server name is. Visitors never offer it.
pub const TUNNEL_ALPN: &[u8] = b"x-pagekite/1";

/// The ALPN protocol that stands beside [`TUNNEL_ALPN`] in the hello of a backend which knows no pin:
/// the frontend is to show the certificate of the name, not its own key (protocol page §21.1).
pub const CERTIFIED_ALPN: &[u8] = b"x-pagekite-certified/1";

/// What a certificate authority offers, alone, when it looks whether a name leads here (RFC 8737 §4).
pub const ACME_ALPN: &[u8] = b"acme-tls/1";

/// Longest plaintext in one record, in bytes (RFC 8446 §5.1).
const MAX_RECORD: usize = 1 << 14;
/// Length of a record header: type, version, length (RFC 8446 §5.1).
const RECORD_HEADER: usize = 5;
/// Length of a handshake header: type, 24-bit length (RFC 8446 §4).
const HANDSHAKE_HEADER: usize = 4;
/// client_hello (RFC 8446 §4).
const CLIENT_HELLO: u8 = 1;
/// server_name (RFC 6066 §3).
const EXT_SERVER_NAME: u16 = 0;
/// application_layer_protocol_negotiation (RFC 7301 §3.1).
const EXT_ALPN: u16 = 16;
/// host_name, the only kind of server_name there is (RFC 6066 §3).
const HOST_NAME: u8 = 0;

/// What a complete ClientHello says (RFC 8446 §4.1.2).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientHello {
    /// The server_name, in lower case and without trailing dot (RFC 6066 §3).
    /// `None` if there is none: Tahoe's HTTPS clients send none (measured on Tahoe 1.20).
    pub sni: Option<KiteName>,
    /// It offers any protocol at all, as browsers do and Tahoe's clients do not (measured on Tahoe 1.20).
    pub alpn: bool,
    /// It offers [`TUNNEL_ALPN`].
    pub alpn_kite: bool,
    /// It offers [`CERTIFIED_ALPN`].
    pub alpn_certified: bool,
    /// It offers [`ACME_ALPN`].
    pub alpn_acme: bool,
}

/// Reads a ClientHello. See [`sniff`](super::sniff) for what holds of every parser here.
///
/// Refused with [`Refusal::BadTls`]: anything that is no handshake record of TLS
/// 1.0 to 1.3 with a well-formed ClientHello, empty records, two extensions of one
/// type, two names. With [`Refusal::BadServerName`]: a name that is no DNS name.
/// Unknown extensions, GREASE among them, are skipped.
pub fn client_hello(bytes: &[u8]) -> Sniff<ClientHello> {
    client_hello_inner(bytes).into()
}

fn client_hello_inner(bytes: &[u8]) -> Result<Option<ClientHello>, Refusal> {
    let window = bytes.get(..MAX_CLIENT_HELLO).unwrap_or(bytes);
    match reassemble(window)? {
        Some(message) => parse(message.get(HANDSHAKE_HEADER..).unwrap_or_default()).map(Some),
        None if window.len() < MAX_CLIENT_HELLO => Ok(None),
        None => Err(Refusal::BadTls("too long")),
    }
}

/// The first handshake message, header included, once it is complete. Copies
/// only if it lies in more than one record.
fn reassemble(bytes: &[u8]) -> Result<Option<Cow<'_, [u8]>>, Refusal> {
    let mut rest = bytes;
    let mut message: Cow<'_, [u8]> = Cow::default();
    loop {
        let Some(len) = record_length(rest)? else {
            return Ok(None);
        };
        let after = rest.get(RECORD_HEADER..).unwrap_or_default();
        let (payload, after) = after.split_at_checked(len).unwrap_or((after, b""));
        if message.is_empty() {
            message = Cow::Borrowed(payload);
        } else {
            message.to_mut().extend_from_slice(payload);
        }
        if let Some(total) = message_length(&message)?
            && message.len() >= total
        {
            return Ok(Some(match message {
                Cow::Borrowed(all) => Cow::Borrowed(all.get(..total).unwrap_or(all)),
                Cow::Owned(mut all) => {
                    all.truncate(total);
                    Cow::Owned(all)
                }
            }));
        }
        rest = after;
    }
}

/// The length of the record that begins here, once its header is complete.
/// Each byte of the header is checked as soon as it is there.
fn record_length(bytes: &[u8]) -> Result<Option<usize>, Refusal> {
    if bytes.first().is_some_and(|&b| b != TLS_HANDSHAKE_RECORD) {
        return Err(Refusal::BadTls("not a handshake record"));
    }
    if bytes.get(1).is_some_and(|&b| b != 3) || bytes.get(2).is_some_and(|b| !matches!(b, 1..=3)) {
        return Err(Refusal::BadTls("not a record of TLS 1.0 to 1.3"));
    }
    let &[_, _, _, high, low, ..] = bytes else {
        return Ok(None);
    };
    match usize::from(u16::from_be_bytes([high, low])) {
        0 => Err(Refusal::BadTls("an empty record")),
        len if len > MAX_RECORD => Err(Refusal::BadTls("a record too long")),
        len => Ok(Some(len)),
    }
}

/// The length of a handshake message, header included, once that header is complete.
fn message_length(message: &[u8]) -> Result<Option<usize>, Refusal> {
    if message.first().is_some_and(|&b| b != CLIENT_HELLO) {
        return Err(Refusal::BadTls("not a ClientHello"));
    }
    let &[_, a, b, c, ..] = message else {
        return Ok(None);
    };
    match usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c) {
        len if len > MAX_HELLO_BODY => Err(Refusal::BadTls("too long")),
        len => Ok(Some(HANDSHAKE_HEADER + len)),
    }
}

/// Reads a complete hello's body (RFC 8446 §4.1.2).
fn parse(body: &[u8]) -> Result<ClientHello, Refusal> {
    let mut body = Reader(body);
    if body.take(2)?.first() != Some(&3) {
        return Err(Refusal::BadTls("a version that is not TLS"));
    }
    let _random = body.take(32)?;
    let session_id = body.short_vector()?;
    let cipher_suites = body.vector()?;
    let compression = body.short_vector()?;
    if session_id.len() > 32
        || cipher_suites.is_empty()
        || cipher_suites.len() % 2 != 0
        || compression.is_empty()
    {
        return Err(Refusal::BadTls("a field of an impossible length"));
    }

    let mut hello = ClientHello {
        sni: None,
        alpn: false,
        alpn_kite: false,
        alpn_certified: false,
        alpn_acme: false,
    };
    if body.is_empty() {
        return Ok(hello); // TLS 1.2 allows a hello without extensions (RFC 5246 §7.4.1.2).
    }
    let mut extensions = Reader(body.vector()?);
    if !body.is_empty() {
        return Err(Refusal::BadTls("bytes behind the extensions"));
    }
    let mut kinds = Vec::new();
    while !extensions.is_empty() {
        let kind = extensions.number()?;
        let data = extensions.vector()?;
        kinds.push(kind);
        match kind {
            EXT_SERVER_NAME => hello.sni = Some(server_name(data)?),
            EXT_ALPN => hello.note_protocols(data)?,
            _ => {}
        }
    }
    kinds.sort_unstable();
    if kinds.windows(2).any(|pair| pair.first() == pair.last()) {
        return Err(Refusal::BadTls("an extension twice"));
    }
    Ok(hello)
}

/// The one name in a server_name extension (RFC 6066 §3).
fn server_name(data: &[u8]) -> Result<KiteName, Refusal> {
    let mut data = Reader(data);
    let mut names = Reader(data.vector()?);
    let kind = names.byte()?;
    let name = names.vector()?;
    if kind != HOST_NAME || name.is_empty() || !names.is_empty() || !data.is_empty() {
        return Err(Refusal::BadTls("server_name is not one host_name"));
    }
    visitor_name(name)
        .filter(|name| !is_ipv4(name))
        .ok_or(Refusal::BadServerName)
}

/// RFC 6066 §3 forbids addresses as names. One with colons is no DNS name
/// anyway; a numeric last label marks the others, as no top-level domain has one.
fn is_ipv4(name: &KiteName) -> bool {
    let last = name.as_str().rsplit('.').next().unwrap_or_default();
    last.bytes().all(|b| b.is_ascii_digit())
}

impl ClientHello {
    /// Looks for the protocols that matter here in an ALPN extension (RFC 7301 §3.1).
    fn note_protocols(&mut self, data: &[u8]) -> Result<(), Refusal> {
        let mut data = Reader(data);
        let mut protocols = Reader(data.vector()?);
        if protocols.is_empty() || !data.is_empty() {
            return Err(Refusal::BadTls("a malformed list of protocols"));
        }
        self.alpn = true;
        while !protocols.is_empty() {
            match protocols.short_vector()? {
                [] => return Err(Refusal::BadTls("a protocol without a name")),
                TUNNEL_ALPN => self.alpn_kite = true,
                CERTIFIED_ALPN => self.alpn_certified = true,
                ACME_ALPN => self.alpn_acme = true,
                _ => {}
            }
        }
        Ok(())
    }
}

/// The presentation language of RFC 8446 §3, as far as a ClientHello needs it.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8], Refusal> {
        let (taken, rest) = self
            .0
            .split_at_checked(len)
            .ok_or(Refusal::BadTls("a field longer than what holds it"))?;
        self.0 = rest;
        Ok(taken)
    }

    fn byte(&mut self) -> Result<u8, Refusal> {
        Ok(self.take(1)?.iter().fold(0, |_, &b| b))
    }

    fn number(&mut self) -> Result<u16, Refusal> {
        let bytes = self.take(2)?;
        Ok(bytes.iter().fold(0, |n, &b| n << 8 | u16::from(b)))
    }

    /// A vector with a length of one byte.
    fn short_vector(&mut self) -> Result<&'a [u8], Refusal> {
        let len = self.byte()?;
        self.take(len.into())
    }

    /// A vector with a length of two bytes.
    fn vector(&mut self) -> Result<&'a [u8], Refusal> {
        let len = self.number()?;
        self.take(len.into())
    }
}
