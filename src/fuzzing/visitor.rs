//! What a visitor says first, and what a proxy in front of us says of one.

use std::net::SocketAddr;

use super::stays;
use crate::kite::KiteName;
use crate::proxy_header;
use crate::sniff::foolscap::{Negotiation, TubId, probe_answer};
use crate::sniff::storage::Storage;
use crate::sniff::{self, MAX_FIRST_FLIGHT, Sniff, Visitor, http, minecraft, tls, xmpp};

/// First bytes. The first byte says whose: any visitor's, each protocol's own reader, or a proxy's.
pub fn visitor(bytes: &[u8]) {
    let Some((which, bytes)) = bytes.split_first() else {
        return;
    };
    match which {
        0 => first_flight(bytes),
        1 => proxy(bytes),
        2 => drop(stays(bytes, tls::client_hello)),
        3 => drop(stays(bytes, xmpp::opening)),
        4 => drop(stays(bytes, minecraft::handshake)),
        5 => drop(stays(bytes, probe_answer)),
        _ => {}
    }
}

fn first_flight(bytes: &[u8]) {
    let found = stays(bytes, sniff::sniff);
    if bytes.len() > MAX_FIRST_FLIGHT {
        assert_ne!(
            sniff::sniff(bytes),
            Sniff::NeedMore,
            "there is no end to it"
        );
    }
    let Some(Visitor::Http(head)) = found else {
        return;
    };
    assert!(head.len <= bytes.len() && head.len <= http::MAX_HTTP_HEAD);
    let (head_bytes, _) = bytes.split_at(head.len);
    // Nothing behind the head has a say.
    assert_eq!(
        sniff::sniff(head_bytes),
        Sniff::Found(Visitor::Http(head.clone()))
    );
    if let Some(path) = http::path(head_bytes) {
        assert!(path.starts_with('/') && path.bytes().all(|b| b.is_ascii_graphic()));
    }
    if let Some(host) = &head.host {
        assert!(!host.is_wildcard());
        let _ = sniff::without_ip_prefix(host);
    }
}

fn proxy(bytes: &[u8]) {
    use proxy_header::{MAX_HEADER, Version, read, write};
    let Some(header) = stays(bytes, read) else {
        assert!(bytes.len() <= MAX_HEADER || read(bytes) != Sniff::NeedMore);
        return;
    };
    assert!(header.len <= bytes.len() && header.len <= MAX_HEADER);
    for version in [Version::V1, Version::V2] {
        let ours = write(version, header.from, 4711, "kite.example");
        let Sniff::Found(again) = read(&ours) else {
            panic!("what we write cannot be read");
        };
        let from = header
            .from
            .map(|a| SocketAddr::new(a.ip().to_canonical(), a.port()));
        assert_eq!((again.len, again.from), (ours.len(), from));
    }
}

/// A negotiation, both ways, as a backend sees it, and as a frontend does that carries storage alone. First byte: whose
/// eyes, and whether the node is known. Then, again and again, one byte that says who speaks
/// (its highest bit) and how many bytes, and these bytes. A machine that sees them one by one must come to the same.
pub fn foolscap(bytes: &[u8]) {
    let Some((known, mut rest)) = bytes.split_first() else {
        return;
    };
    let kite: KiteName = "*.alice.example".parse().unwrap();
    let tub = (known & 1 == 1).then(|| "rznjxrmn666ovyilykucaws7ap26djwf".parse().unwrap());
    if known & 6 != 0 {
        return storage(known & 2 != 0, rest, &kite, tub);
    }
    let mut whole = Negotiation::new(kite.clone(), tub);
    let mut single = Negotiation::new(kite, tub);
    // What the origin may see.
    let (mut shown, mut passed) = (Vec::new(), 0);
    while let [turn, tail @ ..] = rest {
        let length = usize::from(turn & 0x7f).min(tail.len());
        let (chunk, tail) = tail.split_at(length);
        rest = tail;
        if turn & 0x80 == 0 {
            let verdict = whole.visitor(chunk);
            let mut last = single.visitor(&[]);
            for byte in chunk {
                last = single.visitor(&[*byte]);
            }
            shown.extend_from_slice(chunk);
            if verdict == Sniff::Found(()) {
                passed = shown.len();
            }
            // For other reasons, perhaps: the first of several.
            assert_eq!(
                matches!(verdict, Sniff::Refuse(_)),
                matches!(last, Sniff::Refuse(_)),
                "{verdict:?}, byte by byte {last:?}"
            );
        } else {
            let verdict = whole.origin(chunk);
            let mut last = single.origin(&[]);
            for byte in chunk {
                last = single.origin(&[*byte]);
            }
            assert_eq!(verdict == Sniff::Found(()), last == Sniff::Found(()));
        }
        assert_eq!(whole.is_open(), single.is_open());
        if passed > 0 {
            check_passed(shown.get(..passed).unwrap_or_default());
        }
    }
    let (whole, single) = (whole.visitor_closed(), single.visitor_closed());
    assert_eq!(
        matches!(whole, Sniff::Refuse(_)),
        matches!(single, Sniff::Refuse(_))
    );
}

/// The same by a frontend that carries storage alone: of a foolscap visitor, whose request comes first, or of TLS.
fn storage(tls: bool, mut rest: &[u8], kite: &KiteName, tub: Option<TubId>) {
    let mut turn = || {
        let (turn, tail) = rest.split_first()?;
        let (chunk, tail) = tail.split_at(usize::from(turn & 0x7f).min(tail.len()));
        rest = tail;
        Some((turn & 0x80 == 0, chunk))
    };
    let begun = || match tls {
        true => Ok(Storage::tls()),
        false => Storage::foolscap(SPOKEN, kite, tub),
    };
    let (Ok(mut whole), Ok(mut single)) = (begun(), begun()) else {
        return;
    };
    while let Some((of_visitor, chunk)) = turn() {
        let say = |to: &mut Storage, bytes: &[u8]| match of_visitor {
            true => to.visitor(bytes),
            false => to.origin(bytes),
        };
        let at_once = say(&mut whole, chunk);
        let one_by_one = chunk.iter().try_for_each(|byte| say(&mut single, &[*byte]));
        assert_eq!(
            at_once.is_err(),
            one_by_one.is_err(),
            "{at_once:?}, {one_by_one:?}"
        );
        if at_once.is_err() {
            return;
        }
    }
}

/// What foolscap says first.
const SPOKEN: &[u8] =
    b"GET /id/rznjxrmn666ovyilykucaws7ap26djwf HTTP/1.1\r\nHost: bob.alice.example\r\n\
    Upgrade: TLS/1.0\r\nConnection: Upgrade\r\n\r\n";

/// One request of foolscap's, and behind it TLS or nothing.
fn check_passed(bytes: &[u8]) {
    let end = memchr::memmem::find(bytes, b"\r\n\r\n").expect("a head without an end passed") + 4;
    let (head, rest) = bytes.split_at(end);
    assert!(head.starts_with(b"GET /id/"), "{}", head.escape_ascii());
    let tls = [0x16, 3];
    assert!(
        rest.iter().zip(tls).all(|(a, b)| *a == b),
        "{}",
        rest.escape_ascii()
    );
}
