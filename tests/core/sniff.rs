//! Sniffing as a whole: what the first byte decides, the recordings, and the
//! promises that hold of every input. Also the helpers of the other `sniff_*` files.

use std::path::Path;

use kite::sniff::{
    HttpHead, HttpKind, MAX_FIRST_FLIGHT, Refusal, Sniff, Visitor, Voice, sniff, without_ip_prefix,
};
use proptest::prelude::*;

/// All bytes of one direction of one connection of a recording. Panics if some are missing.
pub(crate) fn recorded(file: &str, dir: &str, connection: u64) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures")
        .join(file);
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path:?}: {e}"));
    let mut bytes = Vec::new();
    for line in text.lines() {
        let line: serde_json::Value = serde_json::from_str(line).expect("JSON");
        let same = line.get("c").and_then(|c| c.as_u64()).unwrap_or(0) == connection;
        if same && line["dir"] == dir {
            assert!(line.get("len").is_none(), "{file} leaves out bytes");
            let hex = line["hex"].as_str().unwrap_or_default().as_bytes();
            let hex = data_encoding::HEXLOWER.decode(hex).expect("hex");
            bytes.extend_from_slice(&hex);
        }
    }
    assert!(!bytes.is_empty(), "{file} has no {dir} on {connection}");
    bytes
}

/// The node's or visitor's bytes in one of the Tahoe recordings.
pub(crate) fn tahoe(name: &str, dir: &str) -> Vec<u8> {
    recorded(&format!("tahoe/{name}.jsonl"), dir, 0)
}

/// What is found in `bytes`, after checking that every shorter prefix is
/// `NeedMore` and that more bytes change nothing.
pub(crate) fn found_at_the_end(bytes: &[u8]) -> Visitor {
    for n in 0..bytes.len() {
        assert_eq!(sniff(&bytes[..n]), Sniff::NeedMore, "after {n} bytes");
    }
    let Sniff::Found(visitor) = sniff(bytes) else {
        panic!("{:?}", sniff(bytes));
    };
    for more in [&b"x"[..], b"\r\n\r\n", &[0x16, 3, 1, 0, 0], &[0; 99]] {
        let longer = [bytes, more].concat();
        assert_eq!(sniff(&longer), Sniff::Found(visitor.clone()));
    }
    visitor
}

/// The head at the beginning of `bytes`, checked as by [`found_at_the_end`].
pub(crate) fn http(bytes: &[u8]) -> HttpHead {
    let Sniff::Found(Visitor::Http(head)) = sniff(bytes) else {
        panic!("{:?}", sniff(bytes));
    };
    let Visitor::Http(same) = found_at_the_end(&bytes[..head.len]) else {
        unreachable!()
    };
    assert_eq!(same, head);
    head
}

/// Why `bytes` are refused, after checking that they were so from some prefix on,
/// with `NeedMore` before.
pub(crate) fn refused(bytes: &[u8]) -> Refusal {
    let answers: Vec<_> = (0..=bytes.len()).map(|n| sniff(&bytes[..n])).collect();
    let first = answers
        .iter()
        .position(|a| *a != Sniff::NeedMore)
        .unwrap_or_else(|| panic!("not refused: {:?}", String::from_utf8_lossy(bytes)));
    let Sniff::Refuse(why) = answers[first].clone() else {
        panic!("{:?}: {:?}", answers[first], String::from_utf8_lossy(bytes));
    };
    assert!(answers[first..].iter().all(|a| *a == Sniff::Refuse(why)));
    why
}

/// Valid first flights of every kind.
pub(crate) fn valid_flights() -> Vec<Vec<u8>> {
    let mut flights: Vec<Vec<u8>> = [
        "HEAD /ping HTTP/1.1\r\nHost: ping.pagekite\r\n\r\n",
        "CONNECT PageKite:1 HTTP/1.0\r\nX-PageKite-Features: AddKites\r\n\r\n",
        "CONNECT kite.test:22 HTTP/1.1\r\nHost: kite.test:22\r\n\r\n",
        "GET http://kite.test/a HTTP/1.1\nHost: kite.test\nUpgrade: websocket\nConnection: Upgrade\n\n",
        "OPTIONS * HTTP/1.1\r\nHost: [::1]:80\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: kite.test\r\n\r\n",
    ]
    .iter()
    .map(|s| s.as_bytes().to_vec())
    .collect();
    flights.push(tahoe("foolscap-client-to-node", "c2s")[..131].to_vec());
    flights.push(tahoe("gbs-first-version-request", "c2s")[..1538].to_vec());
    flights
        .push(recorded("pagekite/06-tls-sni-passthrough.visitor.jsonl", "v2f", 0)[..517].to_vec());
    for connection in [1, 2] {
        let visitor = "pagekite/26-other-protocols.visitor.jsonl";
        flights.push(recorded(visitor, "v2f", connection));
    }
    flights
}

/// A valid flight with a few bytes changed, put in, or taken out; or noise.
pub(crate) fn broken_flight() -> impl Strategy<Value = Vec<u8>> {
    let bytes = prop_oneof![
        any::<u8>(),
        proptest::sample::select(b"\r\n :\t\0@%,/[]\x16\x03\x80".to_vec()),
    ];
    let edits = proptest::collection::vec((any::<proptest::sample::Index>(), bytes, 0..3u8), 0..5);
    let mutated =
        (proptest::sample::select(valid_flights()), edits).prop_map(|(mut flight, edits)| {
            for (at, byte, what) in edits {
                let at = at.index(flight.len());
                match what {
                    0 => flight[at] = byte,
                    1 => flight.insert(at, byte),
                    _ if flight.len() > 1 => drop(flight.remove(at)),
                    _ => {}
                }
            }
            flight
        });
    let noise = proptest::collection::vec(any::<u8>(), 0..200);
    prop_oneof![4 => mutated, 1 => noise]
}

/// Cuts `bytes` into pieces at these places.
pub(crate) fn pieces<'a>(bytes: &'a [u8], cuts: &[proptest::sample::Index]) -> Vec<&'a [u8]> {
    let mut cuts: Vec<usize> = cuts.iter().map(|c| c.index(bytes.len() + 1)).collect();
    cuts.extend([0, bytes.len()]);
    cuts.sort_unstable();
    cuts.windows(2).map(|w| &bytes[w[0]..w[1]]).collect()
}

/// Up to eight places to cut at.
pub(crate) fn cuts() -> impl Strategy<Value = Vec<proptest::sample::Index>> {
    proptest::collection::vec(any::<proptest::sample::Index>(), 0..8)
}

proptest! {
    #[test]
    fn no_prefix_disagrees_with_a_longer_one(flight in broken_flight()) {
        let whole = sniff(&flight);
        for n in 0..flight.len() {
            let early = sniff(&flight[..n]);
            prop_assert!(early == Sniff::NeedMore || early == whole, "{n}: {early:?}, {whole:?}");
        }
    }

    #[test]
    fn noise_of_any_length_is_decided_within_the_bound(
        first in proptest::sample::select(b"GC\x16<\x80\x0d".to_vec()),
        filler in any::<u8>(),
    ) {
        let mut bytes = vec![filler; MAX_FIRST_FLIGHT];
        bytes[0] = first;
        prop_assert!(matches!(sniff(&bytes), Sniff::Refuse(_)));
    }
}

#[test]
fn every_flight_is_found_at_its_last_byte() {
    for flight in valid_flights() {
        if flight.starts_with(b"OPTIONS") {
            assert_eq!(refused(&flight), Refusal::NoHost);
        } else {
            found_at_the_end(&flight);
        }
    }
}

#[test]
fn two_bytes_decide_and_often_one() {
    assert_eq!(sniff(b""), Sniff::NeedMore);
    for byte in 0..=255u8 {
        // From seven on it may be the length of a Minecraft handshake.
        let expected = match byte {
            0..=6 => Sniff::Refuse(Refusal::NotHttpNorTls),
            _ => Sniff::NeedMore,
        };
        assert_eq!(sniff(&[byte]), expected);
        if byte.is_ascii_graphic() && !byte.is_ascii_uppercase() && byte != b'<' {
            let answer = sniff(&[byte, b'x']);
            assert_eq!(answer, Sniff::Refuse(Refusal::NotHttpNorTls));
        }
    }
}

#[test]
fn other_protocols_are_refused_soon() {
    for (opening, voice) in [
        (&b"\x80\x2e\x01\x00\x02"[..], Voice::Close), // SSLv2
        (b"<?xml version=\"1.0\"?><html>", Voice::Close),
        (b"<policy-file-request/>\0", Voice::Close),
        (b"\r\nGET / HTTP/1.1\r\n", Voice::Close),
        (b"\x05\x01\x00", Voice::Close),
        (b"get / HTTP/1.1\r\n", Voice::Close),
        (b"SSH-2.0-OpenSSH_9.6", Voice::Http(400)),
        (b"AAAAAAAAAAAAAAAAAAAAA", Voice::Http(400)),
        (b"NICK bert@irc.test\r\n", Voice::Http(400)),
        (b"EHLO mail.example\r\n", Voice::Http(400)),
        (b"\x16\x02", Voice::TlsAlert(50)),
        (b"\x16\x03\x01\x00\x02\x02", Voice::TlsAlert(50)),
    ] {
        assert_eq!(refused(opening).voice(), voice, "{opening:?}");
    }
}

#[test]
fn recorded_odd_requests_are_told_apart() {
    let visitor = |c| recorded("pagekite/16-unknown-host.visitor.jsonl", "v2f", c);
    assert_eq!(http(&visitor(0)).kind, HttpKind::Request);
    assert_eq!(refused(&visitor(1)), Refusal::NoHost);
    assert_eq!(
        http(&visitor(2)).kind,
        HttpKind::Request,
        "BREW is a word of capitals"
    );
    let host = "nobody.test".parse().unwrap();
    assert_eq!(http(&visitor(3)).kind, HttpKind::Connect { host, port: 22 });
    assert!(
        matches!(refused(&visitor(4)), Refusal::BadRequest(_)),
        "PING abc"
    );
    assert_eq!(http(&visitor(5)).kind, HttpKind::Ping);
    assert_eq!(http(&visitor(6)).kind, HttpKind::Ping);
    assert!(matches!(refused(&visitor(7)), Refusal::BadOpening(_)));
    assert_eq!(
        sniff(&visitor(8)[..4]),
        Sniff::Refuse(Refusal::NotHttpNorTls)
    );
    assert!(matches!(refused(&visitor(9)), Refusal::BadRequest(_)));
    assert!(matches!(
        sniff(&visitor(10)),
        Sniff::NeedMore | Sniff::Refuse(Refusal::BadTls(_))
    ));
}

#[test]
fn the_ip_prefix_comes_off() {
    for (name, bare) in [
        ("0x7f000001--bob.example", Some("bob.example")),
        (
            "0x0123456789abcdef0123456789ABCDEF--bob.example",
            Some("bob.example"),
        ),
        ("0x7f00001--bob.example", None),
        ("0x7f00000g--bob.example", None),
        ("7f000001--bob.example", None),
        ("bob.example", None),
        ("a.0x7f000001--bob.example", None),
    ] {
        let bare = bare.map(|b| b.parse().unwrap());
        assert_eq!(without_ip_prefix(&name.parse().unwrap()), bare, "{name}");
    }
}
