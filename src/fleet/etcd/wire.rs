//! etcd's v3 API as JSON over HTTP, which each etcd from 3.4 on speaks: what is asked, and what the answers mean. Sans-IO.
//!
//! Keys and values are base64, and numbers of 64 bits are texts. A field that is zero or empty is not there at all.

use bytes::BytesMut;
use data_encoding::BASE64;
use serde::{Deserialize, Deserializer, Serialize};

use super::Trouble;

mod ask;

pub use self::ask::{
    Question, grant, keep_alive, life, log_in, range, revoke, watch, withdraw, write,
};

/// Changes in one transaction: etcd's own bound, unless its operator has raised it.
pub const MAX_CHANGES: usize = 128;
/// Keys in one page of a range.
pub const PAGE: usize = 1000;
/// Largest answer, in bytes. A page of the longest keys has about 800 KiB.
pub const MAX_ANSWER: usize = 4 << 20;
/// Largest line of a watch, in bytes. etcd cuts what it sends at 2 MiB, of which base64 makes 2.7.
pub const MAX_LINE: usize = 8 << 20;
/// What is shown of etcd's own words, in letters.
const MAX_REASON: usize = 200;

/// A number as etcd's JSON has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Int(i64);

impl Serialize for Int {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Int {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(from)?;
        let number = text.parse().map_err(serde::de::Error::custom)?;
        Ok(Self(number))
    }
}

/// Bytes as etcd's JSON has them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Bytes(Vec<u8>);

impl Serialize for Bytes {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&BASE64.encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(from)?;
        let bytes = BASE64.decode(text.as_bytes());
        bytes.map(Self).map_err(serde::de::Error::custom)
    }
}

/// A key as it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// The key.
    pub key: Vec<u8>,
    /// Its value.
    pub value: Vec<u8>,
    /// When it was written: the newest is the largest.
    pub revision: i64,
}

#[derive(Debug, Deserialize, Default)]
#[serde(default)]
struct Header {
    revision: Int,
}

#[derive(Debug, Deserialize)]
struct KeyValue {
    #[serde(default)]
    key: Bytes,
    #[serde(default)]
    value: Bytes,
    #[serde(default)]
    mod_revision: Int,
}

impl From<KeyValue> for Stored {
    fn from(stored: KeyValue) -> Self {
        Self {
            key: stored.key.0,
            value: stored.value.0,
            revision: stored.mod_revision.0,
        }
    }
}

fn read<'a, T: Deserialize<'a>>(answer: &'a [u8]) -> Result<T, Trouble> {
    serde_json::from_slice(answer).map_err(|_| Trouble::Gibberish)
}

/// The number of a new lease.
pub fn granted(answer: &[u8]) -> Result<i64, Trouble> {
    #[derive(Deserialize)]
    struct Body {
        #[serde(rename = "ID")]
        id: Int,
    }
    read::<Body>(answer).map(|body| body.id.0)
}

/// Whether the lease lives. The answer of one that does not has no time to live.
pub fn kept_alive(answer: &[u8]) -> Result<bool, Trouble> {
    #[derive(Deserialize)]
    struct Inner {
        #[serde(rename = "TTL", default)]
        ttl: Int,
    }
    #[derive(Deserialize)]
    struct Body {
        result: Option<Inner>,
        error: Option<Said>,
    }
    // It is the first, and only, message of a stream.
    let line = answer.split(|b| *b == b'\n').next().unwrap_or_default();
    match read(line)? {
        Body {
            result: Some(inner),
            ..
        } => Ok(inner.ttl.0 > 0),
        Body {
            error: Some(said), ..
        } => Err(said.trouble()),
        Body { .. } => Err(Trouble::Gibberish),
    }
}

/// What this life of etcd's is called, and its revision now.
pub fn lived(answer: &[u8], offered: &str) -> Result<(String, i64), Trouble> {
    #[derive(Deserialize, Default)]
    #[serde(default)]
    struct Found {
        kvs: Vec<KeyValue>,
    }
    #[derive(Deserialize)]
    struct Response {
        response_range: Option<Found>,
    }
    #[derive(Deserialize)]
    struct Body {
        header: Header,
        #[serde(default)]
        succeeded: bool,
        #[serde(default)]
        responses: Vec<Response>,
    }
    let body: Body = read(answer)?;
    let revision = body.header.revision.0;
    if body.succeeded {
        return Ok((offered.to_owned(), revision));
    }
    let ranges = body.responses.into_iter().filter_map(|r| r.response_range);
    let found = ranges.flat_map(|found| found.kvs).next();
    let name = found.and_then(|kv| String::from_utf8(kv.value.0).ok());
    Ok((name.ok_or(Trouble::Gibberish)?, revision))
}

/// Part of all that is there.
#[derive(Debug, PartialEq, Eq)]
pub struct Page {
    /// What the store's revision was.
    pub revision: i64,
    /// In the order of their keys.
    pub entries: Vec<Stored>,
    /// There are more behind these.
    pub more: bool,
}

/// A page of a range.
pub fn page(answer: &[u8]) -> Result<Page, Trouble> {
    #[derive(Deserialize)]
    struct Body {
        header: Header,
        #[serde(default)]
        kvs: Vec<KeyValue>,
        #[serde(default)]
        more: bool,
    }
    let body: Body = read(answer)?;
    if body.kvs.len() > PAGE || (body.more && body.kvs.is_empty()) {
        return Err(Trouble::Gibberish);
    }
    Ok(Page {
        revision: body.header.revision.0,
        entries: body.kvs.into_iter().map(Into::into).collect(),
        more: body.more,
    })
}

/// A transaction has been written, at this revision.
pub fn written(answer: &[u8]) -> Result<i64, Trouble> {
    #[derive(Deserialize)]
    struct Body {
        header: Header,
        #[serde(default)]
        succeeded: bool,
    }
    let body: Body = read(answer)?;
    match body.succeeded {
        true => Ok(body.header.revision.0),
        false => Err(Trouble::Gibberish),
    }
}

/// A token, to show in front of each question from now on.
pub fn token(answer: &[u8]) -> Result<zeroize::Zeroizing<String>, Trouble> {
    #[derive(Deserialize)]
    struct Body {
        token: String,
    }
    read::<Body>(answer).map(|body| zeroize::Zeroizing::new(body.token))
}

/// Something that has changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A key has a value.
    Put(Stored),
    /// A key is gone.
    Gone {
        /// Which.
        key: Vec<u8>,
        /// Since when.
        revision: i64,
    },
}

/// A line of a watch.
#[derive(Debug, PartialEq, Eq)]
pub enum Notice {
    /// The watch stands, and this is the store's revision.
    Stands(i64),
    /// In their order; if it is whole, the next watch may begin behind the last of them.
    Events(Vec<Event>, Whole),
    /// Nothing has happened up to this revision.
    Nothing(i64),
    /// What was asked for is not remembered any more.
    Compacted,
}

/// Whether more of the same revision follows in the next line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whole {
    /// This was the last of it.
    Yes,
    /// More follows.
    No,
}

/// What a line of a watch says.
pub fn notice(line: &[u8]) -> Result<Notice, Trouble> {
    #[derive(Deserialize)]
    struct Change {
        #[serde(default)]
        r#type: Option<String>,
        kv: KeyValue,
    }
    #[derive(Deserialize)]
    struct Inner {
        #[serde(default)]
        header: Header,
        #[serde(default)]
        created: bool,
        #[serde(default)]
        canceled: bool,
        #[serde(default)]
        fragment: bool,
        #[serde(default)]
        compact_revision: Int,
        #[serde(default)]
        cancel_reason: Option<String>,
        #[serde(default)]
        events: Vec<Change>,
    }
    #[derive(Deserialize)]
    struct Body {
        result: Option<Inner>,
        error: Option<Said>,
    }
    let inner = match read(line)? {
        Body {
            result: Some(inner),
            ..
        } => inner,
        Body {
            error: Some(said), ..
        } => return Err(said.trouble()),
        Body { .. } => return Err(Trouble::Gibberish),
    };
    let revision = inner.header.revision.0;
    if inner.compact_revision.0 > 0 {
        return Ok(Notice::Compacted);
    }
    if inner.canceled {
        return Err(refused(inner.cancel_reason.as_deref().unwrap_or_default()));
    }
    if inner.created {
        return Ok(Notice::Stands(revision));
    }
    let event = |change: Change| match change.r#type.as_deref() {
        None | Some("PUT") => Ok(Event::Put(change.kv.into())),
        Some("DELETE") => Ok(Event::Gone {
            key: change.kv.key.0,
            revision: change.kv.mod_revision.0,
        }),
        Some(_) => Err(Trouble::Gibberish),
    };
    let events = inner.events.into_iter().map(event);
    let events: Vec<Event> = events.collect::<Result<_, _>>()?;
    let whole = match inner.fragment {
        true => Whole::No,
        false => Whole::Yes,
    };
    Ok(match events.is_empty() {
        true => Notice::Nothing(revision),
        false => Notice::Events(events, whole),
    })
}

/// What etcd says when it does not do what it was asked. In a stream it is one level deeper.
#[derive(Deserialize, Default)]
#[serde(default)]
struct Said {
    message: String,
}

impl Said {
    fn trouble(&self) -> Trouble {
        refused(&self.message)
    }
}

/// An answer whose status is not 200.
pub fn refusal(status: u16, answer: &[u8]) -> Trouble {
    let named = b"CommonName of client";
    match serde_json::from_slice::<Said>(answer) {
        _ if answer.starts_with(named) => Trouble::NamedCertificate,
        Ok(said) if !said.message.is_empty() => refused(&said.message),
        // No JSON: it is something else that answers, or an etcd that is too old.
        _ => Trouble::NoGateway(status),
    }
}

/// etcd's own words, sorted. They are part of its interface: its clients compare them too.
fn refused(words: &str) -> Trouble {
    let has = |part: &str| words.contains(part);
    if has("requested lease not found") {
        Trouble::LeaseGone
    } else if has("invalid auth token") || has("user name is empty") {
        Trouble::TokenGone
    } else if has("authentication is not enabled") {
        Trouble::NoUsers
    } else if has("authentication failed") || has("permission denied") {
        Trouble::Forbidden(crate::plain::plain(words, MAX_REASON))
    } else if has("required revision has been compacted") {
        Trouble::Compacted
    } else if has("database space exceeded") {
        Trouble::Full
    } else if has("no leader") || has("timed out") || has("leader changed") {
        Trouble::NoLeader
    } else {
        Trouble::Refused(crate::plain::plain(words, MAX_REASON))
    }
}

/// Cuts what a watch sends into lines.
#[derive(Debug, Default)]
pub struct Lines {
    held: BytesMut,
    /// Before this there is no line's end.
    looked: usize,
}

impl Lines {
    /// More has come.
    pub fn push(&mut self, piece: &[u8]) {
        self.held.extend_from_slice(piece);
    }

    /// The next line that is whole, with its end. One that is longer than [`MAX_LINE`] is trouble.
    pub fn take(&mut self) -> Result<Option<BytesMut>, Trouble> {
        let fresh = self.held.get(self.looked..).unwrap_or_default();
        let end = memchr::memchr(b'\n', fresh).map(|at| self.looked + at + 1);
        if end.unwrap_or(self.held.len()) > MAX_LINE {
            return Err(Trouble::TooLong);
        }
        self.looked = match end {
            Some(_) => 0,
            None => self.held.len(),
        };
        Ok(end.map(|end| self.held.split_to(end)))
    }
}

#[cfg(test)]
mod tests;
