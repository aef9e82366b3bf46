//! What the members of a fleet, and etcd, tell a frontend.

use super::pieces;
use crate::fleet::etcd::record::{self, Keys, Place};
use crate::fleet::etcd::wire::{self, Lines};
use crate::fleet::header::Passed;
use crate::fleet::link::Word;
use crate::sniff::Sniff;

/// The first byte says what the others are: a visitor's header, a line of a link, a watch's lines, an answer of etcd's,
/// what stands there.
pub fn fleet(bytes: &[u8]) {
    match bytes {
        [0, header @ ..] => visitor(header),
        [1, line @ ..] => link(line),
        [2, piece, lines @ ..] => assert_eq!(watch(pieces(lines, 0)), watch(pieces(lines, *piece))),
        [3, which, answer @ ..] => etcd(*which, answer),
        [4, rest @ ..] => stands(rest),
        _ => {}
    }
}

/// It is the same however much of it there is, and is read the same when it is written again.
fn visitor(bytes: &[u8]) {
    let whole = Passed::read(bytes);
    let decided = (0..=bytes.len())
        .filter_map(|n| bytes.get(..n))
        .map(Passed::read)
        .find(|read| !matches!(read, Sniff::NeedMore));
    assert_eq!(decided.unwrap_or(Sniff::NeedMore), whole);
    if let Sniff::Found((len, mut passed)) = whole {
        assert!(len <= bytes.len());
        // What has no room in its field is left out.
        if passed.kite.len() > 255 {
            passed.kite.clear();
        }
        let written = passed.header();
        assert_eq!(
            Passed::read(&written),
            Sniff::Found((written.len(), passed))
        );
    }
}

fn link(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    let Some(word) = text.lines().next().and_then(Word::parse) else {
        return;
    };
    let mut written = String::new();
    word.put(&mut written);
    assert_eq!(Word::parse(written.trim_end_matches('\n')), Some(word));
}

/// What a watch said, as text; and what was wrong with it at last.
fn watch<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> Vec<String> {
    let mut lines = Lines::default();
    let mut said = Vec::new();
    for piece in pieces {
        lines.push(piece);
        loop {
            match lines.take() {
                Ok(Some(line)) => said.push(format!("{:?}", wire::notice(&line))),
                Ok(None) => break,
                Err(e) => {
                    said.push(format!("{e:?}"));
                    return said;
                }
            }
        }
    }
    said
}

fn etcd(which: u8, answer: &[u8]) {
    match which {
        0 => drop(wire::granted(answer)),
        1 => drop(wire::kept_alive(answer)),
        2 => drop(wire::lived(answer, "a life")),
        3 => drop(wire::page(answer)),
        4 => drop(wire::written(answer)),
        5 => drop(wire::token(answer)),
        _ => {
            let shown = wire::refusal(u16::from(which) * 4, answer).to_string();
            assert!(!shown.contains(char::is_control));
        }
    }
}

/// A key, a line's end, and its value: whatever is read is read the same when it was written.
fn stands(bytes: &[u8]) {
    let keys = Keys::new("kite");
    let (name, value) = bytes.split_at(memchr::memchr(b'\n', bytes).unwrap_or(bytes.len()));
    let value = value.get(1..).unwrap_or_default();
    let key = [keys.root().as_bytes(), name].concat();
    match keys.read(&key) {
        Some(Place::Member(id)) => {
            assert_eq!(keys.member(&id).as_bytes(), key);
            if let Some(member) = record::read_member(id.clone(), value) {
                let written = record::of_member(&member);
                assert_eq!(record::read_member(id, written.as_bytes()), Some(member));
            }
        }
        Some(Place::Kite {
            member,
            key: kite,
            session,
        }) => {
            let again = keys.kite(&member, &kite, &session);
            assert_eq!(again.as_deref().map(str::as_bytes), Some(&key[..]));
            if let Some(flight) = record::read_flight(session.clone(), value) {
                let written = record::of_flight(&flight);
                let read = record::read_flight(session, written.as_bytes());
                assert_eq!(read, Some(flight));
            }
        }
        None => {}
    }
}
