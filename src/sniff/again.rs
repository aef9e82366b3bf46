//! When to look again at what comes by and by. Whoever sends single bytes would else have everything read anew
//! for each of them.

use super::{MAX_FIRST_FLIGHT, TLS_HANDSHAKE_RECORD};

/// So few bytes are looked at whenever there is one more, in bytes: most that are no good show it here.
const ALWAYS: usize = 64;
/// Later, besides when they may be complete, after an eighth more.
const SHARE: usize = 8;
/// A TLS record's type, version and length, in bytes.
const RECORD_HEADER: usize = 5;

/// What of a first flight has been looked at. The parsers' answers are as they were: what is complete is seen at
/// its last byte; what is no good perhaps an eighth later.
///
/// ```
/// use kite::sniff::Again;
///
/// let request = b"GET / HTTP/1.1\r\nHost: bob.example\r\nCookie: a-long-one-that-comes-byte-by-byte\r\n\r\n";
/// let mut again = Again::default();
/// let looks = (1..=request.len()).filter(|n| again.is_due(&request[..*n])).last();
/// assert_eq!(looks, Some(request.len()), "the last byte completes it");
/// ```
#[derive(Debug, Clone, Copy, Default)]
pub struct Again {
    /// So many bytes were there at the last look.
    looked: usize,
    /// Where a TLS record begins that was not complete.
    record: usize,
}

impl Again {
    /// Are these bytes, of which an earlier call has seen the beginning, worth a look? Ask once for each new length.
    pub fn is_due(&mut self, bytes: &[u8]) -> bool {
        let due = bytes.len() <= ALWAYS
            || bytes.len() >= MAX_FIRST_FLIGHT
            || bytes.len() >= self.looked + self.looked / SHARE
            || self.may_be_complete(bytes);
        if due {
            self.looked = bytes.len();
        }
        due
    }

    /// Can what is new be the end?
    fn may_be_complete(&mut self, bytes: &[u8]) -> bool {
        // An end may have begun in what was there.
        let new = bytes
            .get(self.looked.saturating_sub(2)..)
            .unwrap_or_default();
        match *bytes {
            // A Minecraft handshake, which is short.
            [_, 0, ..] | [_, _, 0, ..] => true,
            [TLS_HANDSHAKE_RECORD, ..] => self.has_new_record(bytes),
            [b'A'..=b'Z', ..] => memchr::memchr_iter(b'\n', new).any(|at| {
                let rest = new.get(at + 1..).unwrap_or_default();
                rest.starts_with(b"\n") || rest.starts_with(b"\r\n")
            }),
            [b'<', ..] => memchr::memchr(b'>', new).is_some(),
            _ => true,
        }
    }

    /// Has a record been completed since the last time?
    fn has_new_record(&mut self, bytes: &[u8]) -> bool {
        let before = self.record;
        while let Some(&[_, _, _, high, low, ..]) = bytes.get(self.record..) {
            let end = self.record + RECORD_HEADER + usize::from(u16::from_be_bytes([high, low]));
            if end > bytes.len() {
                break;
            }
            self.record = end;
        }
        self.record > before
    }
}
