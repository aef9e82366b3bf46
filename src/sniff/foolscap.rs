//! Foolscap's way into a connection: an HTTP request that is none, then TLS.
//!
//! All of this was measured on Tahoe 1.20 with foolscap 24.9 (Tahoe page §2.1, §4):
//!
//! ```text
//! visitor  "GET /id/" 32*[a-z2-7] " HTTP/1.1" CRLF
//!          *( header CRLF )      one Host; Upgrade: TLS/1.0; Connection lists Upgrade
//!          CRLF                  4,096 bytes at most, and nothing behind it
//! origin   "HTTP/1.1 101 " … CRLF CRLF             or an error, then close
//! visitor  0x16 0x03 (0x01 | 0x02 | 0x03) …        TLS to the end
//! ```
//!
//! [`Negotiation`] holds a stream to that grammar. It excludes all of Tahoe's web
//! interface, whose URLs are keys, and, unlike the node itself, a request
//! *without* `Upgrade`, which the node answers with 101 and then reads plaintext.

use std::fmt;
use std::str::FromStr;

use super::http::{self, LineEnd};
use super::{Refusal, Sniff, TLS_HANDSHAKE_RECORD, Voice, alert, without_ip_prefix};
use crate::kite::KiteName;

/// Longest head of a negotiation, request or answer, in bytes, blank line
/// included: foolscap's own limit, which it counts over all that has arrived.
pub const MAX_NEGOTIATION: usize = 4096;

/// Length of a TubID in characters.
pub const TUB_ID_LEN: usize = 32;

/// Base32 in lower case, as foolscap writes TubIDs.
const TUB_ID_ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";

/// How a node says yes.
const SWITCHING: &[u8] = b"HTTP/1.1 101 ";

/// The lasting name of a foolscap node: the SHA-1 of its certificate as 32
/// characters `[a-z2-7]`. Compared byte by byte; capitals are another node to foolscap.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct TubId([u8; TUB_ID_LEN]);

/// A text that is no [`TubId`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a TubID is {TUB_ID_LEN} characters of a-z and 2-7")]
pub struct BadTubId;

impl TubId {
    /// Takes exactly 32 of `[a-z2-7]`, else `None`.
    pub fn from_bytes(text: &[u8]) -> Option<Self> {
        let id: [u8; TUB_ID_LEN] = text.try_into().ok()?;
        id.iter()
            .all(|b| TUB_ID_ALPHABET.contains(b))
            .then_some(Self(id))
    }

    /// A TubID that belongs to nobody, for [`probe_request`]: five bits of each
    /// random byte are used.
    pub fn from_random(random: [u8; TUB_ID_LEN]) -> Self {
        Self(random.map(|b| {
            TUB_ID_ALPHABET
                .get(usize::from(b % 32))
                .copied()
                .unwrap_or(b'a')
        }))
    }

    /// The 32 characters.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

impl FromStr for TubId {
    type Err = BadTubId;

    fn from_str(text: &str) -> Result<Self, BadTubId> {
        Self::from_bytes(text.as_bytes()).ok_or(BadTubId)
    }
}

/// Shortened: a TubID ties names and addresses to one node, so logs get a part of it.
impl fmt::Debug for TubId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TubId({}…)", self.as_str().get(..6).unwrap_or_default())
    }
}

/// How a stream left the grammar.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Breach {
    /// The first bytes are not `GET /id/TUBID HTTP/1.1`.
    #[error("not a foolscap request")]
    NotFoolscap,
    /// The first bytes are TLS. A default Tahoe client speaks so to a node that
    /// announces HTTPS storage; `[storage] force_foolscap = true` on the node ends it.
    #[error("TLS before foolscap's request; the node needs force_foolscap = true")]
    TlsFirst,
    /// The head is no well-formed HTTP, or over [`MAX_NEGOTIATION`].
    #[error(transparent)]
    Head(Refusal),
    /// The head is HTTP, but `Upgrade` or `Connection` are not foolscap's.
    #[error("the request does not ask for TLS")]
    NoUpgrade,
    /// The `Host` is not this kite's.
    #[error("the request is for another host")]
    OtherHost,
    /// The TubID is not this node's.
    #[error("the request is for another TubID")]
    OtherTub,
    /// The visitor sent more before the node's answer.
    #[error("bytes behind the request, before the node's answer")]
    TooEarly,
    /// The node did not answer 101, and the visitor went on.
    #[error("bytes from the visitor although the node refused")]
    NotSwitched,
    /// After the 101 came something else than a TLS handshake record.
    #[error("not TLS after the upgrade")]
    NotTls,
    /// The visitor closed in the middle of what is still held back.
    #[error("closed before the negotiation was complete")]
    Incomplete,
    /// The origin spoke although nothing was let through to it: a mistake of the caller.
    #[error("bytes from the origin before any were sent to it")]
    OutOfTurn,
}

impl Breach {
    /// How to tell the visitor. A foolscap client shows the text of an HTTP error
    /// and gives up this attempt at once (Tahoe page §2.1).
    pub fn voice(&self) -> Voice {
        match self {
            Breach::NotFoolscap | Breach::NoUpgrade => Voice::Http(400),
            Breach::TlsFirst => Voice::TlsAlert(alert::ACCESS_DENIED),
            Breach::Head(refusal) => refusal.voice(),
            Breach::OtherHost => Voice::Http(421), // Misdirected Request (RFC 9110 §15.5.20).
            Breach::OtherTub => Voice::Http(404),
            // The node may have answered already, or nobody listens.
            Breach::TooEarly
            | Breach::NotSwitched
            | Breach::NotTls
            | Breach::Incomplete
            | Breach::OutOfTurn => Voice::Close,
        }
    }
}

/// A complete, well-formed request of a foolscap client.
struct Request {
    len: usize,
    tub: TubId,
    host: KiteName,
}

/// Reads a request, strictly. The first wrong byte of the request line ends it.
fn request(bytes: &[u8]) -> Sniff<Request, Breach> {
    if let Err(breach) = check_request_line(bytes) {
        return Sniff::Refuse(breach);
    }
    match http::parse(bytes, MAX_NEGOTIATION, LineEnd::CrLf) {
        Sniff::NeedMore => Sniff::NeedMore,
        Sniff::Refuse(refusal) => Sniff::Refuse(Breach::Head(refusal)),
        Sniff::Found(parsed) => match (parsed.head.foolscap, parsed.head.host) {
            (Some(tub), Some(host)) if parsed.upgrade_is_tls && parsed.connection_upgrade => {
                Sniff::Found(Request {
                    len: parsed.head.len,
                    tub,
                    host,
                })
            }
            _ => Sniff::Refuse(Breach::NoUpgrade),
        },
    }
}

/// Compares what is there of the request line with the grammar.
fn check_request_line(bytes: &[u8]) -> Result<(), Breach> {
    if bytes.first() == Some(&TLS_HANDSHAKE_RECORD) {
        return Err(Breach::TlsFirst);
    }
    let literal = |text: &'static [u8]| text.iter().map(std::slice::from_ref);
    let allowed = literal(b"GET /id/")
        .chain(std::iter::repeat_n(&TUB_ID_ALPHABET[..], TUB_ID_LEN))
        .chain(literal(b" HTTP/1.1\r\n"));
    if bytes
        .iter()
        .zip(allowed)
        .all(|(b, allowed)| allowed.contains(b))
    {
        Ok(())
    } else {
        Err(Breach::NotFoolscap)
    }
}

/// Holds one stream to foolscap's grammar, in both directions, until TLS has begun.
///
/// ```text
///  Request ──head──▶ Answer ──101──▶ Hello ──16 03 0x──▶ Open
///                      └──anything else──▶ NotSwitched
///  a breach in any state ──▶ Failed
/// ```
///
/// Only the *first* record header behind the 101 is checked: it proves that the
/// visitor speaks TLS and not plaintext. All later records are between the two
/// TLS ends, which refuse a broken one themselves, and checking them would mean
/// to follow every record of a connection that lives for weeks.
#[derive(Debug)]
pub struct Negotiation {
    kite: KiteName,
    tub: Option<TubId>,
    state: State,
}

/// Each `Vec` holds at most [`MAX_NEGOTIATION`] bytes and one more.
#[derive(Debug)]
enum State {
    /// The visitor's head is not complete.
    Request(Vec<u8>),
    /// The visitor waits for the origin, whose answer begins with these bytes.
    Answer(Vec<u8>),
    /// The origin answered otherwise. Its bytes pass, the visitor's do not.
    NotSwitched,
    /// The origin answered 101. The visitor's TLS begins with these bytes.
    Hello(Vec<u8>),
    /// TLS has begun.
    Open,
    /// The visitor broke the grammar.
    Failed(Breach),
}

impl Negotiation {
    /// For a kite (which may be a wildcard), and its node's TubID if known.
    pub fn new(kite: KiteName, tub: Option<TubId>) -> Self {
        Self {
            kite,
            tub,
            state: State::Request(Vec::new()),
        }
    }

    /// TLS has begun: from now on every byte passes, in both directions.
    pub fn is_open(&self) -> bool {
        matches!(self.state, State::Open)
    }

    /// Shows the next bytes of the visitor. `Found`: all shown so far may go to
    /// the origin, which may be dialled. `NeedMore`: hold what did not go yet.
    /// `Refuse` is for good.
    pub fn visitor(&mut self, chunk: &[u8]) -> Sniff<(), Breach> {
        let outcome = match &mut self.state {
            State::Open => return Sniff::Found(()),
            State::Failed(breach) => return Sniff::Refuse(*breach),
            State::Request(held) => {
                // One byte more than allowed shows that something follows.
                hold(held, chunk, MAX_NEGOTIATION + 1);
                let held = std::mem::take(held);
                self.judge_request(held)
            }
            State::Answer(_) | State::NotSwitched | State::Hello(_) if chunk.is_empty() => {
                return Sniff::Found(());
            }
            State::Answer(_) => Err(Breach::TooEarly),
            State::NotSwitched => Err(Breach::NotSwitched),
            State::Hello(held) => {
                hold(held, chunk, 3);
                match held.as_slice() {
                    [0x16] | [0x16, 3] => return Sniff::NeedMore,
                    [0x16, 3, 1..=3] => Ok(State::Open),
                    _ => Err(Breach::NotTls),
                }
            }
        };
        match outcome {
            Ok(State::Request(held)) => {
                self.state = State::Request(held);
                Sniff::NeedMore
            }
            Ok(next) => {
                self.state = next;
                Sniff::Found(())
            }
            Err(breach) => {
                self.state = State::Failed(breach);
                Sniff::Refuse(breach)
            }
        }
    }

    fn judge_request(&self, held: Vec<u8>) -> Result<State, Breach> {
        match request(&held) {
            Sniff::NeedMore => Ok(State::Request(held)),
            Sniff::Refuse(breach) => Err(breach),
            Sniff::Found(request) if held.len() > request.len => Err(Breach::TooEarly),
            Sniff::Found(request) if !covers(&self.kite, &request.host) => Err(Breach::OtherHost),
            Sniff::Found(request) if self.tub.is_some_and(|tub| tub != request.tub) => {
                Err(Breach::OtherTub)
            }
            Sniff::Found(_) => Ok(State::Answer(Vec::new())),
        }
    }

    /// Shows the next bytes of the origin. They may always go to the visitor
    /// (`Found`), unless the stream has failed already.
    pub fn origin(&mut self, chunk: &[u8]) -> Sniff<(), Breach> {
        match &mut self.state {
            State::Request(_) => return Sniff::Refuse(Breach::OutOfTurn),
            State::Failed(breach) => return Sniff::Refuse(*breach),
            State::NotSwitched | State::Hello(_) | State::Open => {}
            State::Answer(held) => {
                hold(held, chunk, MAX_NEGOTIATION);
                let same = held.iter().zip(SWITCHING).all(|(a, b)| a == b);
                if same && held.windows(4).any(|end| end == b"\r\n\r\n") {
                    self.state = State::Hello(Vec::new());
                } else if !same || held.len() >= MAX_NEGOTIATION {
                    self.state = State::NotSwitched;
                }
            }
        }
        Sniff::Found(())
    }

    /// The visitor will send no more. `Found` unless some bytes are still held back.
    pub fn visitor_closed(&mut self) -> Sniff<(), Breach> {
        let incomplete = match &self.state {
            State::Failed(breach) => return Sniff::Refuse(*breach),
            State::Request(_) => true,
            State::Hello(held) => !held.is_empty(),
            State::Answer(_) | State::NotSwitched | State::Open => false,
        };
        if !incomplete {
            return Sniff::Found(());
        }
        self.state = State::Failed(Breach::Incomplete);
        Sniff::Refuse(Breach::Incomplete)
    }
}

/// Is this host the kite's, with or without PageKite's encoded-IP prefix?
pub(crate) fn covers(kite: &KiteName, host: &KiteName) -> bool {
    kite.serves(host) || without_ip_prefix(host).is_some_and(|bare| kite.serves(&bare))
}

/// Appends as much of `chunk` as fits into `limit` bytes.
pub(crate) fn hold(held: &mut Vec<u8>, chunk: &[u8], limit: usize) {
    let room = limit.saturating_sub(held.len());
    held.extend_from_slice(chunk.get(..room).unwrap_or(chunk));
}

/// The question that tells a foolscap port from Tahoe's web interface without
/// touching either: a negotiation with a TubID that belongs to nobody.
///
/// Byte for byte what a foolscap client sends (Tahoe page §2.1).
pub fn probe_request(tub: TubId, host: &KiteName) -> Vec<u8> {
    let tub = tub.as_str();
    format!(
        "GET /id/{tub} HTTP/1.1\r\nHost: {host}\r\nUpgrade: TLS/1.0\r\nConnection: Upgrade\r\n\r\n"
    )
    .into_bytes()
}

/// What answered [`probe_request`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProbeAnswer {
    /// A foolscap port: `500 … unknown TubID`, or 101 should it serve that TubID.
    Foolscap,
    /// A web server: 404, or `Server: TwistedWeb/…`. Tahoe's web interface answers
    /// so, and must never be an origin.
    WebInterface,
    /// Anything else.
    Other,
}

/// Reads the answer to [`probe_request`]; never refuses.
///
/// A connection that ends, or stays silent, at `NeedMore` is
/// [`ProbeAnswer::Other`], which is for the caller to know.
pub fn probe_answer(bytes: &[u8]) -> Sniff<ProbeAnswer> {
    let window = bytes.get(..MAX_NEGOTIATION).unwrap_or(bytes);
    if !window.iter().zip(b"HTTP/1.").all(|(a, b)| a == b) {
        return Sniff::Found(ProbeAnswer::Other);
    }
    let mut lines = window
        .split_inclusive(|&b| b == b'\n')
        .map_while(|l| l.strip_suffix(b"\n"));
    let status_line = lines.next();
    let code = status_line.and_then(|line| line.split(|&b| b == b' ').nth(1));
    match (status_line, code) {
        (None, _) => {}
        (Some(_), Some(b"101")) => return Sniff::Found(ProbeAnswer::Foolscap),
        (Some(line), Some(b"500")) if contains(line, b"unknown TubID") => {
            return Sniff::Found(ProbeAnswer::Foolscap);
        }
        (Some(_), Some(b"404")) => return Sniff::Found(ProbeAnswer::WebInterface),
        (Some(_), _) => {
            for line in lines {
                let line = line.to_ascii_lowercase();
                if line.starts_with(b"server:") && contains(&line, b"twistedweb") {
                    return Sniff::Found(ProbeAnswer::WebInterface);
                }
                if line.is_empty() || line == b"\r" {
                    return Sniff::Found(ProbeAnswer::Other);
                }
            }
        }
    }
    if window.len() < MAX_NEGOTIATION {
        Sniff::NeedMore
    } else {
        Sniff::Found(ProbeAnswer::Other)
    }
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    memchr::memmem::find(haystack, needle).is_some()
}
