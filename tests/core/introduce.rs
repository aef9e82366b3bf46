//! What an origin is told of its visitor: in front of the visitor's bytes, or between the lines of its first request,
//! and nowhere else.

use std::collections::VecDeque;

use bytes::Bytes;
use kite::backend::introduce::{Tell, begin};
use kite::proxy_header::Version;
use kite::sniff::{Sniff, http};
use kite::wire::frame::Open;
use proptest::prelude::*;

fn open(rip: Option<&str>) -> Open {
    Open {
        proto: "http".into(),
        host: "bob.example".into(),
        port: Some(80),
        rip: rip.map(Into::into),
        rport: Some(4711),
        rtls: false,
    }
}

fn forwarded() -> Tell {
    Tell {
        forwarded_headers: true,
        ..Tell::default()
    }
}

/// Everything that the origin gets of these bytes of a visitor.
fn arrives(tell: &Tell, open: &Open, pieces: &[&[u8]]) -> Vec<u8> {
    let mut held: VecDeque<Bytes> = pieces.iter().map(|p| Bytes::copy_from_slice(p)).collect();
    let all: usize = pieces.iter().map(|p| p.len()).sum();
    let mut beginning = begin(tell, open, &mut held);
    let left: usize = held.iter().map(Bytes::len).sum();
    assert_eq!(beginning.taken + left, all, "each byte counts once");
    beginning.bytes.extend(held.into_iter().flatten());
    beginning.bytes
}

fn text(tell: &Tell, open: &Open, request: &str) -> String {
    String::from_utf8(arrives(tell, open, &[request.as_bytes()])).unwrap()
}

#[test]
fn a_request_says_where_it_is_from() {
    let request = "GET /x HTTP/1.1\r\nHost: bob.example\r\nConnection: keep-alive\r\n\r\nbody";
    assert_eq!(
        text(&forwarded(), &open(Some("203.0.113.7")), request),
        "GET /x HTTP/1.1\r\nX-Forwarded-For: 203.0.113.7\r\nX-Forwarded-Proto: http\r\nX-Forwarded-Port: 80\r\n\
         Connection: close\r\nHost: bob.example\r\nX-Old-Connection: keep-alive\r\n\r\nbody"
    );
    // Over TLS that ended at the frontend, from IPv6, on another port.
    let secure = Open {
        port: Some(443),
        rtls: true,
        ..open(Some("2001:DB8:0::7"))
    };
    let said = text(&forwarded(), &secure, request);
    assert!(
        said.contains(
            "\r\nX-Forwarded-For: 2001:db8::7\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Port: 443\r\n"
        ),
        "{said}"
    );
    let said = text(&forwarded(), &open(Some("::ffff:203.0.113.7")), request);
    assert!(
        said.contains("\r\nX-Forwarded-For: 203.0.113.7\r\n"),
        "{said}"
    );
}

#[test]
fn a_head_ends_where_every_origin_ends_it() {
    // A reader that knows CR LF alone would take the last line for one of the head's.
    let request =
        "GET / HTTP/1.1\r\nHost: b.example\r\nX: y\n\r\nX-Forwarded-For: 192.0.2.6\r\n\r\n";
    let said = text(&forwarded(), &open(Some("198.51.100.7")), request);
    let (head, rest) = said.split_once("\r\n\r\n").expect("a head");
    assert!(head.ends_with("\r\nX: y"), "{said}");
    assert!(head.contains("\r\nX-Forwarded-For: 198.51.100.7\r\n"));
    assert_eq!(rest, "X-Forwarded-For: 192.0.2.6\r\n\r\n");
}

#[test]
fn a_host_is_rewritten_wherever_an_origin_may_look_for_it() {
    let rewritten = |request: &str| {
        let tell = Tell {
            rewrite_host: Some("inner.example".into()),
            ..Tell::default()
        };
        let said = text(
            &tell,
            &open(None),
            &format!("{request}Host: b.example\r\n\r\n"),
        );
        assert!(said.contains("\r\nHost: inner.example\r\n"), "{said}");
        assert!(said.contains("\r\nX-Old-Host: b.example\r\n"), "{said}");
        said.lines().next().unwrap_or_default().to_owned()
    };
    for (asked, told) in [
        ("GET / HTTP/1.1\r\n", "GET / HTTP/1.1"),
        ("GET http://b.example/a?b HTTP/1.1\r\n", "GET /a?b HTTP/1.1"),
        ("GET HTTPS://B.Example:80?b HTTP/1.1\n", "GET /?b HTTP/1.1"),
        ("GET http://b.example HTTP/1.0\r\n", "GET / HTTP/1.0"),
        (
            "OPTIONS http://b.example HTTP/1.1\r\n",
            "OPTIONS * HTTP/1.1",
        ),
        ("OPTIONS * HTTP/1.1\r\n", "OPTIONS * HTTP/1.1"),
    ] {
        assert_eq!(rewritten(asked), told);
    }
    // Nothing else of a request is touched.
    let asked = "GET http://b.example/ HTTP/1.1\r\nHost: b.example\r\n\r\n";
    assert!(
        text(&forwarded(), &open(None), asked).starts_with("GET http://b.example/ HTTP/1.1\r\n")
    );
}

#[test]
fn no_word_of_a_frontend_gets_into_a_request() {
    for rip in [
        None,
        Some(""),
        Some("unknown"),
        Some("1.2.3.4, 5.6.7.8"),
        Some("1.2.3.4\r\nX-Injected: 1"),
        Some("1.2.3.4 "),
        Some("[::1]"),
        Some("fe80::1%eth0"),
        Some("999.1.1.1"),
        Some("1.2.3.4:80"),
    ] {
        let said = text(
            &forwarded(),
            &open(rip),
            "GET / HTTP/1.0\r\nHost: b.example\r\n\r\n",
        );
        assert!(
            said.starts_with("GET / HTTP/1.0\r\nX-Forwarded-For: unknown\r\n"),
            "{rip:?}: {said}"
        );
        assert!(!said.contains("Injected"));
        for (version, header) in [
            (Version::V1, &b"PROXY UNKNOWN\r\n"[..]),
            (Version::V2, b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0"),
        ] {
            let tell = Tell {
                proxy_protocol: Some(version),
                ..Tell::default()
            };
            assert_eq!(
                arrives(&tell, &open(rip), &[b"any bytes"]),
                [header, b"any bytes"].concat()
            );
        }
    }
}

#[test]
fn a_visitors_own_word_is_renamed_however_it_is_spelt() {
    for name in [
        "X-Forwarded-For",
        "x-forwarded-for",
        "X_Forwarded_For",
        "X-Forwarded-Host",
        "X-Forwarded-Anything",
        "X-PageKite-Port",
        "Forwarded",
        "X-Real-IP",
        "x_real-ip",
        "X.Forwarded.For",
        "X+Real~IP",
        "Connection",
        "Proxy-Connection",
        "Upgrade",
    ] {
        let request =
            format!("GET / HTTP/1.1\r\nHost: b.example\r\n{name}: 10.0.0.1\r\nC: d\r\n\r\n");
        let said = text(&forwarded(), &open(Some("203.0.113.7")), &request);
        assert!(
            said.ends_with(&format!(
                "Host: b.example\r\nX-Old-{name}: 10.0.0.1\r\nC: d\r\n\r\n"
            )),
            "{said}"
        );
    }
    // What is not asked for stays.
    let host = Tell {
        rewrite_host: Some("intranet:8080".into()),
        ..Tell::default()
    };
    assert_eq!(
        text(
            &host,
            &open(None),
            "GET / HTTP/1.1\r\nhost: bob.example\r\nX-Forwarded-For: 1.2.3.4\r\n\r\n"
        ),
        "GET / HTTP/1.1\r\nHost: intranet:8080\r\nConnection: close\r\nX-Old-host: bob.example\r\n\
         X-Forwarded-For: 1.2.3.4\r\n\r\n"
    );
}

#[test]
fn an_upgrade_is_to_what_the_gate_knows_or_none() {
    let request =
        |host_and: &str| format!("GET /chat HTTP/1.1\r\nHost: b.example\r\n{host_and}\r\n");
    let socket = request(
        "Upgrade: websocket, h2c\r\nConnection: keep-alive, Upgrade\r\nSec-WebSocket-Version: 13\r\n",
    );
    let said = text(&forwarded(), &open(None), &socket);
    assert!(said.contains("\r\nConnection: close, Upgrade\r\nUpgrade: websocket\r\n"));
    assert!(said.contains(
        "\r\nX-Old-Upgrade: websocket, h2c\r\nX-Old-Connection: keep-alive, Upgrade\r\n"
    ));
    let h2c =
        request("Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: A\r\n");
    let said = text(&forwarded(), &open(None), &h2c);
    assert!(said.contains("\r\nConnection: close\r\n") && !said.contains("\nUpgrade"));
    let node = format!(
        "GET /id/{} HTTP/1.1\r\nHost: b.example\r\nUpgrade: TLS/1.0\r\nConnection: Upgrade\r\n\r\n",
        "a".repeat(32)
    );
    let said = text(&forwarded(), &open(None), &node);
    assert!(said.contains("\r\nConnection: close, Upgrade\r\nUpgrade: TLS/1.0\r\n"));
}

#[test]
fn both_ways_go_together() {
    let tell = Tell {
        proxy_protocol: Some(Version::V1),
        ..forwarded()
    };
    let said = text(
        &tell,
        &open(Some("203.0.113.7")),
        "GET / HTTP/1.0\nHost: b.example\n\n",
    );
    assert_eq!(
        said,
        "PROXY TCP4 203.0.113.7 0.0.0.0 4711 80\r\nGET / HTTP/1.0\r\nX-Forwarded-For: 203.0.113.7\r\n\
         X-Forwarded-Proto: http\r\nX-Forwarded-Port: 80\r\nConnection: close\r\nHost: b.example\r\n\r\n"
    );
}

/// Lines of a head that passes the gate, and some that are renamed.
fn line() -> impl Strategy<Value = String> {
    prop_oneof![
        "[A-Za-z][A-Za-z0-9-]{0,12}: [ -~]{0,30}".prop_filter("a second Host", |l| {
            !l.to_ascii_lowercase().starts_with("host:")
        }),
        "(X-Forwarded-For|x-forwarded-proto|X_Forwarded_Port|Forwarded|Connection|Upgrade): [ -~]{0,20}",
    ]
}

/// `text` is `whole` with nothing but lines of ours, and marks before names, taken out.
fn without_ours(whole: &[u8], ours: &[Vec<u8>]) -> Vec<u8> {
    let mut kept = Vec::new();
    let mut ours = ours.iter();
    let mut next = ours.next();
    for line in whole.split_inclusive(|&b| b == b'\n') {
        if next.is_some_and(|own| own == line) {
            next = ours.next();
        } else {
            kept.extend_from_slice(line.strip_prefix(b"X-Old-").unwrap_or(line));
        }
    }
    assert_eq!(next, None, "each of ours is there, in its order");
    kept
}

proptest! {
    #[test]
    fn all_else_is_the_visitors_own(
        lines in prop::collection::vec(line(), 0..12),
        end in prop_oneof![Just("\r\n"), Just("\n")],
        body in prop::collection::vec(any::<u8>(), 0..200),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..6),
        host in any::<bool>(),
    ) {
        let mut request = format!("POST /x HTTP/1.1{end}Host: bob.example{end}");
        for line in &lines {
            request.push_str(line);
            request.push_str(end);
        }
        request.push_str(end);
        let head = request.len();
        let mut request = request.into_bytes();
        prop_assume!(matches!(http::head(&request), Sniff::Found(_)));
        // Another request behind it, which is not looked at.
        request.extend_from_slice(b"GET / HTTP/1.1\r\nX-Forwarded-For: 9.9.9.9\r\n\r\n");
        request.extend(body);

        let mut cuts: Vec<usize> = cuts.iter().map(|c| c.index(request.len())).collect();
        cuts.sort_unstable();
        let (mut pieces, mut from) = (Vec::new(), 0);
        for cut in cuts.into_iter().chain([request.len()]) {
            pieces.push(&request[from..cut]);
            from = cut;
        }
        let tell = Tell { rewrite_host: host.then(|| "in.example".into()), ..forwarded() };
        let arrived = arrives(&tell, &open(Some("203.0.113.7")), &pieces);

        let behind = arrived.len() - (request.len() - head);
        prop_assert_eq!(&arrived[behind..], &request[head..]);
        let mut ours = vec![
            b"X-Forwarded-For: 203.0.113.7\r\n".to_vec(),
            b"X-Forwarded-Proto: http\r\n".to_vec(),
            b"X-Forwarded-Port: 80\r\n".to_vec(),
        ];
        if host {
            ours.push(b"Host: in.example\r\n".to_vec());
        }
        ours.push(b"Connection: close\r\n".to_vec());
        // Whatever ended its lines.
        let lines = request[..head].split_inclusive(|&b| b == b'\n');
        let said: Vec<u8> = lines.flat_map(|l| [l[..l.len() - end.len()].to_vec(), b"\r\n".to_vec()].concat()).collect();
        prop_assert_eq!(without_ours(&arrived[..behind], &ours), said);
        // And a server reads one host, one address, and nothing to go on with.
        let count = |name: &str| {
            let text = String::from_utf8_lossy(&arrived[..behind]).to_ascii_lowercase().replace('_', "-");
            text.lines().filter(|l| l.starts_with(name)).count()
        };
        prop_assert_eq!(count("host:"), 1);
        prop_assert_eq!(count("x-forwarded-for:"), 1);
        prop_assert_eq!(count("connection:"), 1);
    }

    #[test]
    fn whatever_it_is_no_byte_is_lost(
        pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..80), 0..5),
    ) {
        let pieces: Vec<&[u8]> = pieces.iter().map(Vec::as_slice).collect();
        let tell = Tell { proxy_protocol: Some(Version::V1), ..forwarded() };
        let arrived = arrives(&tell, &open(None), &pieces);
        prop_assert!(arrived.ends_with(&pieces.concat()));
    }
}
