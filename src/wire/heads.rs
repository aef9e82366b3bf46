//! The heads of a tunnel: a backend's request, a frontend's answer (protocol page §3.1, §3.3).

use bytes::BytesMut;

use super::frame::FrameError;
use super::lines::{Lines, LinesError};

/// Longest head of a request or an answer, with its blank line, in bytes.
/// 64 service lines of the usual size fit; more is an error.
pub const MAX_HEAD: usize = 16 * 1024;
/// How a frontend refuses an address, before anything else (protocol page §3.3).
pub const FORBIDDEN: &[u8] = b"HTTP/1.0 403 Forbidden\r\n\r\n";
/// How a frontend refuses a request it cannot parse (protocol page §3.3).
pub const UNAVAILABLE: &[u8] = b"HTTP/1.0 503 Unavailable\r\n\r\n";

/// Where every request goes; what follows the colon is not looked at.
const TARGET: &str = "pagekite:";
/// How every answer begins.
const ANSWER_START: &[u8] = b"HTTP/1.";

/// Why a handshake failed as a whole. A kite that is refused is no error; see
/// [`super::Verdict`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HandshakeError {
    /// The peer's fault: no blank line within [`MAX_HEAD`].
    #[error("the head of the handshake is longer than {MAX_HEAD} bytes")]
    HeadTooLong,
    /// The peer's fault, or it is no PageKite peer at all.
    #[error("this is no PageKite handshake: {0}")]
    Malformed(&'static str),
    /// The frontend does not let us in: 403 for the address, 503 for the request.
    #[error("the frontend refuses the tunnel with status {status}{}", status_hint(*.status))]
    Refused {
        /// The HTTP status.
        status: u16,
    },
    /// The peer's fault: lines that cannot be meant.
    #[error(transparent)]
    Lines(#[from] LinesError),
    /// The peer's fault: a broken frame before the verdict.
    #[error("before the verdict came {0}")]
    Frame(#[from] FrameError),
    /// A frontend that must have [`super::lines::KITE_PROOF`] does not say it.
    #[error(
        "the frontend does not offer {}, which one with a pinned key must: it runs an old program \
         or is not what it was; install the same kite there",
        super::lines::KITE_PROOF
    )]
    NoProof,
    /// A frontend says OK and cannot prove that it knows the secret.
    #[error(
        "the frontend says that {0} flies, but did not prove that it knows the secret; \
         somebody may pose as it"
    )]
    BadProof(String),
    /// Our bug: a step after the last one.
    #[error("the handshake is over already")]
    Over,
}

fn status_hint(status: u16) -> &'static str {
    match status {
        403 => " (it does not serve this address)",
        503 => " (it did not understand the request, or is overloaded)",
        _ => "",
    }
}

/// Where the head at the front of `buf` ends, blank line included. Lines end in
/// CRLF or LF.
fn head_end(buf: &[u8]) -> Option<usize> {
    memchr::memchr_iter(b'\n', buf).find_map(|at| match buf.get(at + 1..)? {
        [b'\n', ..] => Some(at + 2),
        [b'\r', b'\n', ..] => Some(at + 3),
        _ => None,
    })
}

/// Splits a head into its first line and its `X-PageKite` lines.
fn head(head: &[u8]) -> Result<(&[u8], Lines), HandshakeError> {
    if head.len() > MAX_HEAD {
        return Err(HandshakeError::HeadTooLong);
    }
    let mut rows = head
        .split(|&b| b == b'\n')
        .map(|row| row.strip_suffix(b"\r").unwrap_or(row));
    let first = rows.next().unwrap_or_default();
    let mut lines = Lines::default();
    for row in rows.take_while(|row| !row.is_empty()) {
        let colon = memchr::memchr(b':', row)
            .ok_or(HandshakeError::Malformed("a header without a colon"))?;
        let (name, value) = row.split_at(colon);
        lines.take(name, value.get(1..).unwrap_or_default())?;
    }
    Ok((first, lines))
}

/// A backend's request for a tunnel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// What it asks for: services, features, a session to replace.
    pub lines: Lines,
}

impl Request {
    /// Reads a whole head, up to and including its blank line.
    ///
    /// A request without any service line is an error. The older spelling
    /// `X-Beanstalk` is not understood, so such a request has none.
    pub fn parse(bytes: &[u8]) -> Result<Self, HandshakeError> {
        if head_end(bytes) != Some(bytes.len()) {
            return Err(HandshakeError::Malformed(
                "the head does not end in a blank line",
            ));
        }
        let (first, lines) = head(bytes)?;
        let mut words = first.split(|&b| b == b' ').filter(|w| !w.is_empty());
        let (Some(b"CONNECT"), Some(target), Some(b"HTTP/1.0" | b"HTTP/1.1"), None) =
            (words.next(), words.next(), words.next(), words.next())
        else {
            return Err(HandshakeError::Malformed("the request is no CONNECT"));
        };
        if !target
            .get(..TARGET.len())
            .is_some_and(|start| start.eq_ignore_ascii_case(TARGET.as_bytes()))
        {
            return Err(HandshakeError::Malformed("the CONNECT is not for PageKite"));
        }
        if lines.services.is_empty() {
            return Err(HandshakeError::Malformed("no kite is asked for"));
        }
        Ok(Self { lines })
    }

    /// The whole request. Nothing may follow it until the answer is there (protocol page §3.1).
    pub fn encode(lines: &Lines) -> BytesMut {
        let mut out = BytesMut::from(&b"CONNECT PageKite:1 HTTP/1.0\r\n"[..]);
        lines.put(&mut out);
        out.extend_from_slice(b"\r\n");
        out
    }
}

/// Takes a frontend's answer off the front of `buf`; `None` until it is whole.
///
/// What follows the blank line stays in `buf`: it is the first frame. A status
/// other than 200 is [`HandshakeError::Refused`].
pub fn parse_answer(buf: &mut BytesMut) -> Result<Option<Lines>, HandshakeError> {
    // What is no HTTP at all shows itself at once and need not be waited for.
    if buf
        .iter()
        .zip(ANSWER_START)
        .any(|(got, wanted)| got != wanted)
    {
        return Err(HandshakeError::Malformed("the answer is no HTTP"));
    }
    let Some(end) = head_end(buf) else {
        return if buf.len() > MAX_HEAD {
            Err(HandshakeError::HeadTooLong)
        } else {
            Ok(None)
        };
    };
    let taken = buf.split_to(end);
    let (first, lines) = head(&taken)?;
    let status = first
        .split(|&b| b == b' ')
        .nth(1)
        .filter(|word| word.len() == 3)
        .and_then(super::decimal)
        .and_then(|n| u16::try_from(n).ok())
        .ok_or(HandshakeError::Malformed("the answer has no status"))?;
    if status != 200 {
        return Err(HandshakeError::Refused { status });
    }
    Ok(Some(lines))
}

/// Appends a frontend's answer, with pk.py's decoration in front. No frame may be
/// in the same segment: libpagekite would not find the blank line (protocol page §3.3).
pub fn put_answer(out: &mut BytesMut, lines: &Lines) {
    out.extend_from_slice(
        b"HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=utf-8\r\nPragma: no-cache\r\nExpires: 0\r\n\
          Cache-Control: no-store\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n",
    );
    lines.put(out);
    out.extend_from_slice(b"\r\n");
}
