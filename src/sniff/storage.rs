//! What storage traffic looks like from outside, for a frontend that carries nothing else.
//!
//! ```text
//! foolscap   visitor  its request, as in [`foolscap`](super::foolscap), and nothing behind it
//!            origin   "HTTP/1.1 101 " … CRLF CRLF      or 4,096 bytes of something else, then the end
//!            both     TLS records, the visitor's first one a handshake
//! HTTPS      both     TLS records; the hello names no server and offers no protocol (ALPN)
//! ```
//!
//! [`Storage`] follows a stream by that grammar from its first byte to its last. It reads five bytes of each record, and of
//! what is in them nothing. That is enough to keep browsers out: none sends foolscap's request, and each offers
//! protocols in its hello. It is not enough to keep out two programs that agree to put anything else into TLS records.

use super::foolscap::{Breach, MAX_NEGOTIATION, Negotiation, hold};
use super::{Sniff, TLS_HANDSHAKE_RECORD, TubId};
use crate::kite::KiteName;

/// Length of a record's header: type, version, length (RFC 8446 §5.1).
const HEADER: usize = 5;
/// Longest record behind its header, in bytes: that of TLS 1.2 (RFC 5246 §6.2.3).
const MAX_RECORD: u16 = (1 << 14) + 2048;
/// change_cipher_spec, alert, handshake, application_data (RFC 8446 §5.1).
const KINDS: std::ops::RangeInclusive<u8> = 20..=23;
/// application_data, which alone may be empty (RFC 5246 §6.2.1).
const APPLICATION_DATA: u8 = 23;
/// How a node says yes.
const SWITCHING: &[u8] = b"HTTP/1.1 101 ";

/// Holds one stream to what storage traffic looks like.
#[derive(Debug)]
pub struct Storage {
    answer: Answer,
    visitor: Records,
    origin: Records,
}

/// The origin's answer to foolscap's request.
#[derive(Debug)]
enum Answer {
    /// It begins with these bytes, at most [`MAX_NEGOTIATION`].
    Begun(Vec<u8>),
    /// It was a yes, or none was needed: TLS follows.
    Yes,
    /// It was a no, which may have so many bytes more.
    No(usize),
}

impl Storage {
    /// A stream that begins with all that a foolscap visitor says at first, to this kite. `tub` is its node's, if known.
    pub fn foolscap(first: &[u8], kite: &KiteName, tub: Option<TubId>) -> Result<Self, Breach> {
        match Negotiation::new(kite.clone(), tub).visitor(first) {
            Sniff::Found(()) => Ok(Self::with(Answer::Begun(Vec::new()))),
            // A head that only other servers take for whole.
            Sniff::NeedMore => Err(Breach::NotFoolscap),
            Sniff::Refuse(breach) => Err(breach),
        }
    }

    /// A stream that begins with a hello. Its bytes are to be shown like all others.
    pub fn tls() -> Self {
        Self::with(Answer::Yes)
    }

    fn with(answer: Answer) -> Self {
        Self {
            answer,
            visitor: Records::default(),
            origin: Records::default(),
        }
    }

    /// The next bytes of the visitor.
    pub fn visitor(&mut self, bytes: &[u8]) -> Result<(), Breach> {
        match &self.answer {
            _ if bytes.is_empty() => Ok(()),
            Answer::Begun(_) => Err(Breach::TooEarly),
            Answer::No(_) => Err(Breach::NotSwitched),
            Answer::Yes => self.visitor.follow(bytes, true),
        }
    }

    /// The next bytes of the origin.
    pub fn origin(&mut self, bytes: &[u8]) -> Result<(), Breach> {
        match &mut self.answer {
            Answer::Yes => self.origin.follow(bytes, false),
            Answer::No(left) => {
                *left = left.checked_sub(bytes.len()).ok_or(Breach::NotTls)?;
                Ok(())
            }
            Answer::Begun(held) => {
                let before = held.len();
                hold(held, bytes, MAX_NEGOTIATION);
                let yes = held.iter().zip(SWITCHING).all(|(a, b)| a == b);
                let end = memchr::memmem::find(held, b"\r\n\r\n").map(|at| at + 4);
                match end {
                    Some(end) if yes => {
                        self.answer = Answer::Yes;
                        let behind = bytes.get(end.saturating_sub(before)..);
                        self.origin.follow(behind.unwrap_or_default(), false)
                    }
                    None if yes && held.len() < MAX_NEGOTIATION => Ok(()),
                    _ => {
                        let all = before + bytes.len();
                        let left = MAX_NEGOTIATION.checked_sub(all).ok_or(Breach::NotTls)?;
                        self.answer = Answer::No(left);
                        Ok(())
                    }
                }
            }
        }
    }
}

/// One direction's records.
#[derive(Debug, Default)]
struct Records {
    begun: bool,
    /// The bytes of the next header that have come.
    header: [u8; HEADER],
    have: usize,
    /// What is left of the record.
    left: usize,
}

impl Records {
    /// Follows the records through these bytes. `hello`: the first must be a handshake.
    fn follow(&mut self, mut bytes: &[u8], hello: bool) -> Result<(), Breach> {
        while let Some(&next) = bytes.first() {
            if self.left > 0 {
                let (_, rest) = bytes.split_at_checked(self.left).unwrap_or((bytes, b""));
                self.left -= bytes.len() - rest.len();
                bytes = rest;
                continue;
            }
            bytes = bytes.get(1..).unwrap_or_default();
            let fits = match self.have {
                0 if !self.begun && hello => next == TLS_HANDSHAKE_RECORD,
                0 => KINDS.contains(&next),
                1 => next == 3,
                2 => (1..=3).contains(&next),
                _ => true,
            };
            if !fits {
                return Err(Breach::NotTls);
            }
            self.begun = true;
            if let Some(place) = self.header.get_mut(self.have) {
                *place = next;
            }
            self.have += 1;
            if self.have == HEADER {
                let [kind, _, _, high, low] = self.header;
                let len = u16::from_be_bytes([high, low]);
                if len > MAX_RECORD || (len == 0 && kind != APPLICATION_DATA) {
                    return Err(Breach::NotTls);
                }
                (self.have, self.left) = (0, len.into());
            }
        }
        Ok(())
    }
}
