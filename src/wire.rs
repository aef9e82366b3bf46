//! The PageKite wire, without sockets: bytes in, frames and verdicts out, and back.
//!
//! Nothing in this room waits, reads a clock or draws a random number; callers
//! pass bytes, the time and random tokens in. "Protocol page" in the comments is
//! the measured description of the wire that this project keeps
//! (`docs/pagekite-protocol.md`); T01, T02 … are recordings of real programs, of
//! which `tests/fixtures/pagekite` holds the bytes.
//!
//! * [`handshake`]: who flies which kite, and the proof of it. [`lines`] is its text.
//! * [`sign`]: the signatures inside. [`proof`]: what two kites have instead. [`tub`]: what proves a kite that has no secret.
//! * [`frame`]: everything after the handshake. [`chunk`] is its envelope.

use std::fmt;

pub mod chunk;
pub mod frame;
pub mod handshake;
mod heads;
pub mod join;
pub mod lines;
pub mod mark;
pub mod proof;
mod service;
pub mod sign;
pub mod tub;

pub use chunk::{Limits, MAX_FRAME};
pub use frame::{Control, Decoder, Eof, Frame, FrameError, HEADROOM, Open, PingText, StreamFrame};
pub use handshake::{BackendHandshake, HandshakeError, Step, Verdict};
pub use lines::{KiteId, Lines, LinesError, ServiceLine};
pub use proof::Binding;

/// A stream's number within one tunnel: 0 … 99,999,999.
///
/// Eight digits at most, because libpagekite cuts longer ones short and then
/// confuses streams (protocol page §6.2).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Sid(u32);

impl Sid {
    /// The largest stream number.
    pub const MAX: Sid = Sid(99_999_999);
    /// What a tunnel's first stream is given.
    pub const FIRST: Sid = Sid(1);

    /// `None` if the number has more than eight digits.
    pub const fn new(number: u32) -> Option<Sid> {
        if number <= Self::MAX.0 {
            Some(Sid(number))
        } else {
            None
        }
    }

    /// The number itself.
    pub const fn get(self) -> u32 {
        self.0
    }

    /// Decimal digits and nothing else. Leading zeros are allowed: pk.py, too,
    /// takes `0012` for 12 (protocol page §6.2).
    pub fn parse(text: &[u8]) -> Option<Sid> {
        decimal(text)
            .and_then(|n| u32::try_from(n).ok())
            .and_then(Sid::new)
    }
}

impl fmt::Display for Sid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl fmt::Debug for Sid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sid {}", self.0)
    }
}

/// An unsigned decimal number: digits only, no sign, no blanks, no overflow.
fn decimal(text: &[u8]) -> Option<u64> {
    if text.is_empty() {
        return None;
    }
    text.iter().try_fold(0u64, |n, &b| {
        let digit = b.is_ascii_digit().then(|| u64::from(b - b'0'))?;
        n.checked_mul(10)?.checked_add(digit)
    })
}

/// A peer's text made safe to keep, print and send on: at most `max` bytes, and
/// `?` for everything that is not printable ASCII.
fn printable(text: &[u8], max: usize) -> String {
    text.iter()
        .take(max)
        .map(|&b| {
            if (b' '..=b'~').contains(&b) {
                char::from(b)
            } else {
                '?'
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stream_numbers_have_eight_digits_at_most() {
        assert_eq!(Sid::parse(b"0012"), Sid::new(12));
        assert_eq!(Sid::parse(b"0000000000099999999"), Some(Sid::MAX));
        for bad in [
            "",
            "100000000",
            "-1",
            "+1",
            " 1",
            "1 ",
            "0x1",
            "1.0",
            "99999999999999999999999",
        ] {
            assert_eq!(Sid::parse(bad.as_bytes()), None, "{bad:?}");
        }
        assert_eq!(Sid::new(100_000_000), None);
        assert_eq!(Sid::MAX.to_string(), "99999999");
    }

    #[test]
    fn a_peers_text_cannot_carry_control_characters() {
        assert_eq!(printable(b"a\r\n\x1b[31m\xff b", 64), "a???[31m? b");
        assert_eq!(printable(b"abc", 2), "ab");
    }
}
