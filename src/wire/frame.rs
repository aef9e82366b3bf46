//! Frames: what travels in a tunnel after the handshake (protocol page §6, §7).
//!
//! ```text
//! size CRLF  *( name ": " value CRLF )  CRLF  data
//! ```
//!
//! [`Decoder`] turns bytes into [`Frame`]s; the `put_*` functions are the way back.
//!
//! ```
//! use bytes::BytesMut;
//! use kite::wire::Sid;
//! use kite::wire::chunk::Limits;
//! use kite::wire::frame::{Decoder, Frame, put_data};
//!
//! let (mut wire, sid) = (BytesMut::new(), Sid::new(7).unwrap());
//! put_data(&mut wire, sid, b"hello");
//! assert_eq!(&wire[..], b"f\r\nSID: 7\r\n\r\nhello");
//!
//! let mut decoder = Decoder::new(Limits::ESTABLISHED);
//! let Some(Frame::Stream(frame)) = decoder.decode(&mut wire)? else { panic!() };
//! assert_eq!((frame.sid, &frame.data[..]), (sid, &b"hello"[..]));
//! assert!(decoder.decode(&mut wire)?.is_none(), "it needs more");
//! # Ok::<(), kite::wire::frame::FrameError>(())
//! ```

use std::fmt::{self, Write};

use bytes::{Buf, Bytes, BytesMut};

use super::chunk::{Chunks, Limits};
use super::lines::{self, Lines, LinesError};
use super::{Sid, decimal, printable};

/// Room in front of a payload for its size line and `SID` header, in bytes.
/// The longest is `ffffffffffffffff CRLF SID: 99999999 CRLF CRLF` with 35.
pub const HEADROOM: usize = 40;
/// Longest text of a PING that is kept and echoed, in bytes. pk.py, too, echoes
/// the first 64 (protocol page §8).
pub const MAX_PING: usize = 64;
/// Longest `Host` that is kept, in bytes. A DNS name has 253; what is cut matches no kite's name.
const MAX_HOST: usize = 255;
/// Longest `Proto` and `RIP` that are kept, in bytes. An IPv6 address has 45.
const MAX_WORD: usize = 64;

/// So many bytes of a data frame are passed on before its end has come.
pub const CUT_FROM: usize = 4 * 1024;

/// Why the bytes of a peer are no frame. The peer is at fault, always; nothing
/// can be read after it, so the tunnel has to be closed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Not hexadecimal, too long, or no CRLF behind it.
    #[error("a frame begins with no size")]
    SizeLine,
    /// A frame of no bytes has not even a blank line.
    #[error("a frame of size 0")]
    Empty,
    /// Over [`Limits::max_frame`], on the wire or inflated.
    #[error("a frame of {size} bytes, {max} are allowed")]
    TooLarge {
        /// What the size line says.
        size: u64,
        /// The limit.
        max: usize,
    },
    /// A compressed frame where none is allowed.
    #[error("a compressed frame, which was not asked for")]
    Compressed,
    /// No zlib data, or its end.
    #[error("a compressed frame does not inflate")]
    Inflate,
    /// It inflates to more or less than its size line says.
    #[error("a compressed frame inflates to another length than it says")]
    InflatedLength,
    /// No blank line in the frame, or not within [`Limits::max_head`].
    #[error("the headers of a frame have no end within {max} bytes")]
    Head {
        /// How far was searched.
        max: usize,
    },
    /// A header line without a colon, or without CRLF.
    #[error("a header of a frame is no 'Name: value'")]
    Header,
    /// `SID` is no decimal number of up to eight digits.
    #[error("a frame's SID is no number of up to eight digits")]
    Sid,
    /// `SKB` is no decimal number.
    #[error("a frame's SKB is no number")]
    Skb,
    /// An `X-PageKite` line that cannot be meant.
    #[error(transparent)]
    Lines(#[from] LinesError),
}

/// One decoded frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// Bytes and/or an end for one stream.
    Stream(StreamFrame),
    /// Everything with a NOOP header. No stream is touched; data is ignored.
    ///
    /// A frame with neither NOOP nor SID is one of these as well: it names no
    /// stream, so there is nothing else it could do, and old peers ignore it too.
    Control(Control),
}

/// A frame for one stream. `Debug` shows the length of the data, not the data.
#[derive(Clone, PartialEq, Eq)]
pub struct StreamFrame {
    /// Which stream.
    pub sid: Sid,
    /// Set if this frame opens the stream: it has both `Proto` and `Host`.
    pub open: Option<Box<Open>>,
    /// Which directions end here.
    pub eof: Eof,
    /// The stream was reset, not finished: our own header `Abort: 1` beside an EOF,
    /// which old peers ignore. False unless `eof` says something.
    pub abort: bool,
    /// How many KB of this stream the peer has passed on, in all.
    pub skb: Option<u64>,
    /// The stream's bytes: a slice of the buffer, not a copy.
    ///
    /// Always empty when `eof` says something. What pk.py sends there ("Bye!") is
    /// no part of the stream: no peer delivers it (T14 and its origin side).
    pub data: Bytes,
}

impl fmt::Debug for StreamFrame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            sid,
            open,
            eof,
            abort,
            skb,
            data,
        } = self;
        write!(
            f,
            "{sid:?}, {open:?}, {eof:?}, abort {abort}, skb {skb:?}, {} bytes",
            data.len()
        )
    }
}

/// Who a new stream is for and where it comes from. `Debug` leaves the visitor's
/// address out.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Open {
    /// Lower case. `http`, `https`, `raw`, … without a port.
    pub proto: String,
    /// Lower case, and printable ASCII; not necessarily a name: old frontends pass
    /// on what a visitor wrote.
    pub host: String,
    /// The port the visitor came to.
    pub port: Option<u16>,
    /// The visitor's address, as the frontend wrote it.
    pub rip: Option<String>,
    /// The visitor's port.
    pub rport: Option<u16>,
    /// The frontend ended the visitor's TLS.
    pub rtls: bool,
}

impl fmt::Debug for Open {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            proto,
            host,
            port,
            rtls,
            ..
        } = self;
        write!(f, "Open({proto}:{host}, port {port:?}, rtls {rtls})")
    }
}

/// Ends of a stream, as its sender sees them (protocol page §7.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Eof {
    /// "I have read to the end: no more data will come from me."
    pub read: bool,
    /// "I cannot write any more: send me nothing more."
    pub write: bool,
}

impl Eof {
    /// No end.
    pub const NONE: Eof = Eof {
        read: false,
        write: false,
    };
    /// `1R`.
    pub const READ: Eof = Eof {
        read: true,
        write: false,
    };
    /// `1W`.
    pub const WRITE: Eof = Eof {
        read: false,
        write: true,
    };
    /// `1WR`.
    pub const BOTH: Eof = Eof {
        read: true,
        write: true,
    };

    /// True for [`Eof::NONE`].
    pub fn is_none(self) -> bool {
        self == Eof::NONE
    }

    /// The letters in any order and case; neither of them means both, whatever
    /// else is there.
    fn parse(value: &[u8]) -> Eof {
        let has = |letter: u8| value.iter().any(|b| b.eq_ignore_ascii_case(&letter));
        match (has(b'R'), has(b'W')) {
            (false, false) => Eof::BOTH,
            (read, write) => Eof { read, write },
        }
    }
}

/// What a frame says to the tunnel itself.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Control {
    /// The stream that `skb` is about.
    pub sid: Option<Sid>,
    /// How many KB of that stream the peer has passed on, in all.
    pub skb: Option<u64>,
    /// To be answered at once with the same text.
    pub ping: Option<PingText>,
    /// The answer to our PING. Not every peer sends one (protocol page §8).
    pub pong: Option<PingText>,
    /// KB that the frontend still grants.
    pub quota: Option<i64>,
    /// The peer cannot inflate us. We never compress, so it is confused.
    pub zrst: bool,
    /// The `X-PageKite` lines, if there are any.
    pub kites: Option<Box<Lines>>,
}

/// The text of a PING: at most [`MAX_PING`] bytes of printable ASCII.
#[derive(Clone, PartialEq, Eq)]
pub struct PingText(Box<str>);

impl PingText {
    /// Cuts what is too long, and puts `?` for what is not printable.
    pub fn new(text: &[u8]) -> Self {
        Self(printable(text, MAX_PING).into())
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for PingText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

/// Takes frames off the front of a buffer.
///
/// After an error the place in the byte stream is lost: close the tunnel.
pub struct Decoder {
    chunks: Chunks,
    rest: Option<Rest>,
}

/// What is still to come of a data frame whose beginning was passed on.
struct Rest {
    sid: Sid,
    left: usize,
}

impl Decoder {
    /// A decoder for the beginning of a tunnel's frames.
    pub fn new(limits: Limits) -> Self {
        Self {
            chunks: Chunks::new(limits),
            rest: None,
        }
    }

    /// Other limits from the next frame on.
    pub fn set_limits(&mut self, limits: Limits) {
        self.chunks.limits = limits;
    }

    /// Takes one frame off the front of `buf`.
    ///
    /// `None` means that more bytes are needed: nothing was taken. A plain data frame is decoded without an
    /// allocation; one of which [`CUT_FROM`] bytes or more are there comes in several pieces, as if its sender had
    /// sent several frames, so that nobody waits for the end of a large one, or has to hold it.
    pub fn decode(&mut self, buf: &mut BytesMut) -> Result<Option<Frame>, FrameError> {
        if let Some(frame) = self.continued(buf) {
            return Ok(frame);
        }
        let max_head = self.chunks.limits.max_head;
        match self.chunks.take(buf)? {
            Some(chunk) => frame(chunk, max_head).map(Some),
            None => self.begun(buf),
        }
    }

    /// The next piece of a frame that has begun, if one has.
    fn continued(&mut self, buf: &mut BytesMut) -> Option<Option<Frame>> {
        let rest = self.rest.as_mut()?;
        if buf.is_empty() {
            return Some(None);
        }
        let (sid, piece) = (rest.sid, rest.left.min(buf.len()));
        rest.left -= piece;
        if rest.left == 0 {
            self.rest = None;
        }
        Some(Some(data_frame(sid, buf.split_to(piece).freeze())))
    }

    /// The beginning of a frame that is not there as a whole, if it is nothing but data.
    fn begun(&mut self, buf: &mut BytesMut) -> Result<Option<Frame>, FrameError> {
        let Some((line, wire)) = self.chunks.plain(buf)? else {
            return Ok(None);
        };
        let Some(part) = buf.get(line..).filter(|part| part.len() >= CUT_FROM) else {
            return Ok(None);
        };
        let Some((sid, head)) = data_head(part) else {
            return Ok(None);
        };
        let here = part.len() - head;
        buf.advance(line + head);
        let left = wire - head - here;
        self.rest = (left > 0).then_some(Rest { sid, left });
        Ok(Some(data_frame(sid, buf.split_to(here).freeze())))
    }
}

fn data_frame(sid: Sid, data: Bytes) -> Frame {
    Frame::Stream(StreamFrame {
        sid,
        open: None,
        eof: Eof::NONE,
        abort: false,
        skb: None,
        data,
    })
}

impl fmt::Debug for Decoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Decoder")
            .field("limits", &self.chunks.limits)
            .finish_non_exhaustive()
    }
}

/// The headers of a frame, before it is known what kind it is.
#[derive(Default)]
struct Headers<'a> {
    sid: Option<&'a [u8]>,
    noop: bool,
    eof: Option<Eof>,
    abort: bool,
    skb: Option<u64>,
    ping: Option<&'a [u8]>,
    pong: Option<&'a [u8]>,
    quota: Option<i64>,
    zrst: bool,
    proto: Option<&'a [u8]>,
    host: Option<&'a [u8]>,
    port: Option<u16>,
    rip: Option<&'a [u8]>,
    rport: Option<u16>,
    rtls: bool,
    kites: Option<Box<Lines>>,
}

impl<'a> Headers<'a> {
    /// Reads all headers; also returns how many bytes they and their blank line take.
    fn read(chunk: &'a [u8], max: usize) -> Result<(Self, usize), FrameError> {
        let head = chunk.get(..max).unwrap_or(chunk);
        let mut headers = Self::default();
        let mut at = 0;
        loop {
            let rest = head.get(at..).unwrap_or_default();
            let end = memchr::memchr(b'\n', rest).ok_or(FrameError::Head { max: head.len() })?;
            let line = rest
                .get(..end)
                .and_then(|l| l.strip_suffix(b"\r"))
                .ok_or(FrameError::Header)?;
            at += end + 1;
            if line.is_empty() {
                return Ok((headers, at));
            }
            let colon = memchr::memchr(b':', line).ok_or(FrameError::Header)?;
            let (name, value) = line.split_at(colon);
            headers.set(name, value.get(1..).unwrap_or_default().trim_ascii())?;
        }
    }

    /// Takes one header. The newest of two wins; unknown ones do not matter.
    fn set(&mut self, name: &[u8], value: &'a [u8]) -> Result<(), FrameError> {
        let is = |known: &str| name.eq_ignore_ascii_case(known.as_bytes());
        let number = || decimal(value).and_then(|n| u16::try_from(n).ok());
        let set = value != b"0" && !value.is_empty();
        if is("SID") {
            self.sid = Some(value);
        } else if is("NOOP") {
            self.noop = true;
        } else if is("SKB") {
            self.skb = Some(decimal(value).ok_or(FrameError::Skb)?);
        } else if is("EOF") {
            self.eof = Some(Eof::parse(value));
        } else if is("Abort") {
            self.abort = set;
        } else if is("PING") {
            self.ping = Some(value);
        } else if is("PONG") {
            self.pong = Some(value);
        } else if is("Quota") {
            // For people to read; one that is no number is no reason to hang up.
            self.quota = std::str::from_utf8(value).ok().and_then(|v| v.parse().ok());
        } else if is("ZRST") {
            self.zrst = set;
        } else if is("Proto") {
            self.proto = Some(value);
        } else if is("Host") {
            self.host = Some(value);
        } else if is("Port") {
            self.port = number();
        } else if is("RIP") {
            self.rip = Some(value);
        } else if is("RPort") {
            self.rport = number();
        } else if is("RTLS") {
            self.rtls = set;
        } else if lines::is_ours(name) {
            self.kites.get_or_insert_default().take(name, value)?;
        }
        Ok(())
    }

    fn open(&self) -> Option<Box<Open>> {
        // A visitor chooses the host at an old frontend, so an odd one is no error:
        // it would give every visitor the power to cut the tunnel.
        let (proto, host) = (self.proto?, self.host?);
        Some(Box::new(Open {
            proto: printable(proto, MAX_WORD).to_ascii_lowercase(),
            host: printable(host, MAX_HOST).to_ascii_lowercase(),
            port: self.port,
            rip: self.rip.map(|rip| printable(rip, MAX_WORD)),
            rport: self.rport,
            rtls: self.rtls,
        }))
    }
}

/// The head of a plain data frame, `SID: 5 CRLF CRLF` and no more, which nearly all frames have:
/// its stream, and how many bytes it takes. Whatever else there may be is for [`Headers`].
fn data_head(chunk: &[u8]) -> Option<(Sid, usize)> {
    let text = chunk.strip_prefix(b"SID: ")?;
    let (mut number, mut digits) = (0, 0);
    for digit in text.iter().take(8).map(|b| b.wrapping_sub(b'0')) {
        if digit > 9 {
            break;
        }
        number = number * 10 + u32::from(digit);
        digits += 1;
    }
    let ends = digits > 0 && text.get(digits..)?.starts_with(b"\r\n\r\n");
    let end = b"SID: \r\n\r\n".len() + digits;
    Sid::new(number).filter(|_| ends).map(|sid| (sid, end))
}

/// Reads one chunk.
fn frame(mut chunk: Bytes, max_head: usize) -> Result<Frame, FrameError> {
    if let Some((sid, end)) = data_head(&chunk).filter(|(_, end)| *end <= max_head) {
        chunk.advance(end);
        return Ok(data_frame(sid, chunk));
    }
    let (headers, end) = Headers::read(&chunk, max_head)?;
    let sid = headers
        .sid
        .map(|sid| Sid::parse(sid).ok_or(FrameError::Sid));
    // With NOOP a SID may be anything (protocol page §6.1).
    let Some(sid) = sid.filter(|_| !headers.noop) else {
        return Ok(Frame::Control(Control {
            sid: headers.sid.and_then(Sid::parse),
            skb: headers.skb,
            ping: headers.ping.map(PingText::new),
            pong: headers.pong.map(PingText::new),
            quota: headers.quota,
            zrst: headers.zrst,
            kites: headers.kites,
        }));
    };
    let (sid, open, eof) = (sid?, headers.open(), headers.eof.unwrap_or(Eof::NONE));
    let (abort, skb) = (headers.abort && !eof.is_none(), headers.skb);
    if eof.is_none() {
        chunk.advance(end);
    } else {
        chunk.clear();
    }
    Ok(Frame::Stream(StreamFrame {
        sid,
        open,
        eof,
        abort,
        skb,
        data: chunk,
    }))
}

/// Writes the header of a data frame with a payload of `len` bytes so that it
/// ends exactly at the end of `room`; returns the offset where it begins.
pub fn data_header(sid: Sid, len: usize, room: &mut [u8; HEADROOM]) -> usize {
    let mut at = HEADROOM;
    let mut put = |byte: u8| {
        at = at.saturating_sub(1);
        if let Some(slot) = room.get_mut(at) {
            *slot = byte;
        }
    };
    // Backwards, so that no length has to be known before.
    b"\r\n\r\n".iter().rev().for_each(|&b| put(b));
    let (mut rest, mut digits) = (sid.get(), 0);
    while digits == 0 || rest > 0 {
        // rest % 10 is one digit.
        put(b'0' + (rest % 10) as u8);
        (rest, digits) = (rest / 10, digits + 1);
    }
    b"SID: ".iter().rev().for_each(|&b| put(b));
    b"\r\n".iter().rev().for_each(|&b| put(b));
    let mut size = len + "SID: \r\n\r\n".len() + digits;
    while size > 0 {
        put(b"0123456789abcdef"[size % 16]);
        size /= 16;
    }
    at
}

/// Appends a frame: the headers that `write` writes, a blank line, then `data`.
fn put(out: &mut BytesMut, write: impl FnOnce(&mut BytesMut), data: &[u8]) {
    let start = out.len();
    write(out);
    out.extend_from_slice(b"\r\n");
    let head = out.len();
    // The size line can be written only now; then it is turned to the front.
    let _ = write!(out, "{:x}\r\n", head - start + data.len());
    let line = out.len() - head;
    if let Some(frame) = out.get_mut(start..) {
        frame.rotate_right(line);
    }
    out.extend_from_slice(data);
}

/// Appends one header line. Whatever could end the line is left out, so that no
/// value, wherever it comes from, can forge a header.
pub(super) fn put_line(out: &mut BytesMut, name: &str, value: impl fmt::Display) {
    struct Safe<'a>(&'a mut BytesMut);
    impl Write for Safe<'_> {
        fn write_str(&mut self, text: &str) -> fmt::Result {
            for piece in text.split(|c: char| c.is_ascii_control()) {
                self.0.extend_from_slice(piece.as_bytes());
            }
            Ok(())
        }
    }
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b": ");
    let _ = write!(Safe(out), "{value}");
    out.extend_from_slice(b"\r\n");
}

/// Appends a data frame. `data` is at most what the peer takes in one frame
/// (protocol page §6.5).
pub fn put_data(out: &mut BytesMut, sid: Sid, data: &[u8]) {
    let mut room = [0; HEADROOM];
    let from = data_header(sid, data.len(), &mut room);
    out.extend_from_slice(room.get(from..).unwrap_or_default());
    out.extend_from_slice(data);
}

/// Appends the first frame of a stream, with the visitor's first bytes. The order
/// of the headers is pk.py's (T01, T18).
pub fn put_open(out: &mut BytesMut, sid: Sid, open: &Open, data: &[u8]) {
    let headers = |out: &mut BytesMut| {
        put_line(out, "SID", sid);
        put_line(out, "Proto", &open.proto);
        put_line(out, "Host", &open.host);
        if let Some(port) = open.port {
            put_line(out, "Port", port);
        }
        if let Some(rip) = &open.rip {
            put_line(out, "RIP", rip);
        }
        if let Some(rport) = open.rport {
            put_line(out, "RPort", rport);
        }
        if open.rtls {
            put_line(out, "RTLS", 1);
        }
    };
    put(out, headers, data);
}

/// Appends an end of a stream; with `abort` it says that the stream was reset.
/// Nothing is written for [`Eof::NONE`].
///
/// `farewell` is never delivered, by any peer: send the last bytes of a stream in
/// a data frame before. pk.py says `Bye!`; nothing at all is as good.
pub fn put_eof(out: &mut BytesMut, sid: Sid, eof: Eof, abort: bool, farewell: &[u8]) {
    let value = match eof {
        Eof {
            read: false,
            write: false,
        } => return,
        Eof {
            read: true,
            write: false,
        } => "1R",
        Eof {
            read: false,
            write: true,
        } => "1W",
        Eof {
            read: true,
            write: true,
        } => "1WR",
    };
    let headers = |out: &mut BytesMut| {
        put_line(out, "SID", sid);
        put_line(out, "EOF", value);
        if abort {
            put_line(out, "Abort", 1);
        }
    };
    put(out, headers, farewell);
}

/// Appends an acknowledgement: `kb` KB of the stream, in all, have been passed on.
pub fn put_skb(out: &mut BytesMut, sid: Sid, kb: u64) {
    let headers = |out: &mut BytesMut| {
        put_line(out, "NOOP", 1);
        put_line(out, "SID", sid);
        put_line(out, "SKB", kb);
    };
    put(out, headers, b"");
}

/// Appends a frame that does nothing, with `filler` bytes that nobody reads.
pub fn put_noop(out: &mut BytesMut, filler: usize) {
    put(out, |out| put_line(out, "NOOP", 1), &vec![b'!'; filler]);
}

/// Appends how many KB the frontend still grants. Without days and connections, at which pk.py
/// closes the tunnel (protocol page §6.1).
pub fn put_quota(out: &mut BytesMut, kb: i64) {
    let headers = |out: &mut BytesMut| {
        put_line(out, "NOOP", 1);
        put_line(out, "Quota", kb);
    };
    put(out, headers, b"!");
}

/// Appends a PING, as pk.py writes it.
pub fn put_ping(out: &mut BytesMut, text: &PingText) {
    put_echo(out, "PING", text);
}

/// Appends the answer to a PING, as pk.py writes it.
pub fn put_pong(out: &mut BytesMut, text: &PingText) {
    put_echo(out, "PONG", text);
}

fn put_echo(out: &mut BytesMut, name: &str, text: &PingText) {
    let headers = |out: &mut BytesMut| {
        put_line(out, "NOOP", 1);
        put_line(out, name, text.as_str());
    };
    put(out, headers, b"!");
}

/// Appends a control frame with `X-PageKite` lines: service lines of a backend, or
/// the challenge or verdict of a frontend (protocol page §3.4).
///
/// Ends with pk.py's one byte of data.
pub fn put_kites(out: &mut BytesMut, lines: &Lines) {
    let headers = |out: &mut BytesMut| {
        put_line(out, "NOOP", 1);
        lines.put(out);
    };
    put(out, headers, b"!");
}
