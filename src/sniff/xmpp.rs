//! The opening of an XMPP stream (RFC 6120 §4.2): `<stream:stream … to='HOST'>`, usually behind an XML declaration.
//!
//! Only the first tag is read, and of it only `to`. What follows, STARTTLS above all, is the origin's affair.

use super::{Refusal, Sniff, visitor_name};
use crate::kite::KiteName;

/// Longest opening, declaration included, in bytes. Real ones have about 200.
pub const MAX_XMPP_OPENING: usize = 4 * 1024;

/// The tag's name. RFC 6120 §4.8.5 allows other prefixes, and warns that hardly anybody takes them.
const TAG: &[u8] = b"<stream:stream";
const DECLARATION: &[u8] = b"<?xml";

/// The host that the visitor wants. See [`sniff`](super::sniff) for what holds of every parser here.
pub fn opening(bytes: &[u8]) -> Sniff<KiteName> {
    let window = bytes.get(..MAX_XMPP_OPENING).unwrap_or(bytes);
    match (Reader(window).opening(), window.len()) {
        (Ok(None), MAX_XMPP_OPENING) => Sniff::Refuse(bad("an XMPP opening without an end")),
        (read, _) => read.into(),
    }
}

fn bad(why: &'static str) -> Refusal {
    Refusal::BadOpening(why)
}

/// What is left to read. Each step gives `None` where the bytes end before it does.
struct Reader<'a>(&'a [u8]);

type Step<T> = Result<Option<T>, Refusal>;

/// Goes on, or gives `None` where there is no more.
macro_rules! need {
    ($step:expr) => {
        match $step {
            Some(value) => value,
            None => return Ok(None),
        }
    };
}

impl<'a> Reader<'a> {
    fn opening(&mut self) -> Step<KiteName> {
        if matches!(self.0, [b'<', b'?', ..]) {
            need!(self.literal(DECLARATION)?);
            need!(self.declaration()?);
            self.space();
        }
        need!(self.literal(TAG)?);
        let mut to = None;
        loop {
            let spaced = self.space();
            match need!(self.0.first()) {
                b'>' => return to.map(Some).ok_or(bad("an XMPP stream to nobody")),
                _ if !spaced => return Err(bad("an XMPP tag that is no stream's")),
                _ => {}
            }
            let (name, value) = need!(self.attribute()?);
            if name == b"to" && to.is_none() {
                to = Some(visitor_name(value).ok_or(bad("an XMPP stream to no name"))?);
            } else if name == b"to" {
                return Err(bad("an XMPP stream to two hosts"));
            }
        }
    }

    /// Just these bytes; the first that differs is refused at once.
    fn literal(&mut self, wanted: &[u8]) -> Step<()> {
        if self.0.iter().zip(wanted).any(|(a, b)| a != b) {
            return Err(bad("no XMPP stream"));
        }
        Ok(self.0.get(wanted.len()..).map(|rest| self.0 = rest))
    }

    /// The rest of an XML declaration, `?>` included.
    fn declaration(&mut self) -> Step<()> {
        let is_inside = |b: &u8| !matches!(b, b'<' | b'>' | b'?') && is_text(*b);
        let end = need!(self.0.iter().position(|b| !is_inside(b)));
        let (_, end) = self.0.split_at(end);
        self.0 = end;
        self.literal(b"?>")
    }

    /// White space, if any: was there some?
    fn space(&mut self) -> bool {
        let before = self.0.len();
        self.0 = self.0.trim_ascii_start();
        self.0.len() < before
    }

    /// `name = "value"`, or with apostrophes.
    fn attribute(&mut self) -> Step<(&'a [u8], &'a [u8])> {
        let is_name = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b':' | b'-' | b'_' | b'.');
        let end = need!(self.0.iter().position(|b| !is_name(b)));
        let (name, rest) = self.0.split_at(end);
        if name.is_empty() {
            return Err(bad("an XMPP tag with a malformed attribute"));
        }
        self.0 = rest;
        self.space();
        need!(self.literal(b"=")?);
        self.space();
        let quote = *need!(self.0.first());
        if !matches!(quote, b'"' | b'\'') {
            return Err(bad("an XMPP tag with an unquoted value"));
        }
        self.0 = self.0.get(1..).unwrap_or_default();
        let is_value = |b: &u8| *b != quote && *b != b'<' && is_text(*b);
        let end = need!(self.0.iter().position(|b| !is_value(b)));
        let (value, rest) = self.0.split_at(end);
        self.0 = rest;
        need!(self.literal(&[quote])?);
        Ok(Some((name, value)))
    }
}

/// No control character but white space.
fn is_text(b: u8) -> bool {
    !b.is_ascii_control() || matches!(b, b'\t' | b'\r' | b'\n')
}
