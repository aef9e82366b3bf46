//! Request heads: what is understood, and what is refused rather than guessed.

use kite::sniff::{HttpKind, MAX_HTTP_HEAD, Refusal, Sniff, Visitor, sniff};

use crate::sniff::{http, recorded, refused, tahoe};

fn host_of(value: &str) -> Option<String> {
    let head = http(format!("GET / HTTP/1.1\r\nHost: {value}\r\n\r\n").as_bytes());
    head.host.map(|h| h.to_string())
}

#[test]
fn every_spelling_of_a_host_is_one_name() {
    for value in [
        "bob.example",
        "BOB.Example",
        "bob.example.",
        "bob.example:80",
        "Bob.Example.:65535",
        "  \tbob.example \t ",
        "bob.example:00080",
    ] {
        assert_eq!(host_of(value).as_deref(), Some("bob.example"), "{value:?}");
    }
    assert_eq!(host_of("127.0.0.1:3456").as_deref(), Some("127.0.0.1"));
    assert_eq!(
        host_of("xn--mller-kva.example").as_deref(),
        Some("xn--mller-kva.example")
    );
    let prefixed = "0x7f000001--bob.example";
    assert_eq!(host_of(prefixed).as_deref(), Some(prefixed));
}

#[test]
fn bad_hosts_are_refused() {
    for value in [
        "bob.example:",
        "bob.example:0",
        "bob.example:65536",
        "bob.example:+80",
        "bob.example:8o",
        "bob.example:080000",
        "bob.example:80:80",
        "bob.example..",
        "bob..example",
        ".bob.example",
        "user@bob.example",
        "user:pw@bob.example",
        "bob.example/",
        "/bob.example",
        "bob%2eexample",
        "http://bob.example",
        "bob.example?x",
        "bob.example#x",
        "bob example",
        "bob.example,eve.example",
        "bob.example\t80",
        "bób.example",
        "bob.example\u{85}",
        "*.example",
        "*",
        "::1",
        "[::1",
        "[::1]80",
        "[bob.example]",
        "[::1]:",
        "[::1%25eth0]",
        ":80",
        ".",
        "\"bob.example\"",
        "bob.example;",
    ] {
        let head = format!("GET / HTTP/1.1\r\nHost: {value}\r\n\r\n");
        assert!(
            matches!(refused(head.as_bytes()), Refusal::BadRequest(_)),
            "{value:?}"
        );
    }
    for nobody in ["", " ", "[::1]", "[::1]:80", "[2001:db8::1]"] {
        let head = format!("GET / HTTP/1.1\r\nHost:{nobody}\r\n\r\n");
        assert_eq!(refused(head.as_bytes()), Refusal::NoHost, "{nobody:?}");
    }
}

#[test]
fn what_two_readers_could_read_in_two_ways_is_refused() {
    for head in [
        // Two hosts.
        "GET / HTTP/1.1\r\nHost: a.example\r\nHost: b.example\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a.example\r\nhOST: a.example\r\n\r\n",
        "GET / HTTP/1.1\r\nHost:\r\nHost: a.example\r\n\r\n",
        "GET http://b.example/ HTTP/1.1\r\nHost: a.example\r\n\r\n",
        "GET http://a.example@b.example/ HTTP/1.1\r\nHost: a.example\r\n\r\n",
        "GET http://a.example%00/ HTTP/1.1\r\nHost: a.example\r\n\r\n",
        "CONNECT b.example:22 HTTP/1.1\r\nHost: a.example:22\r\n\r\n",
        "CONNECT b.example:22 HTTP/1.1\r\nHost:\r\n\r\n",
        // A host that only one of two readers sees.
        "GET / HTTP/1.1\r\nHost : a.example\r\n\r\n",
        "GET / HTTP/1.1\r\nHost\t: a.example\r\n\r\n",
        "GET / HTTP/1.1\r\n Host: a.example\r\n\r\n",
        "GET / HTTP/1.1\r\nX: y\r\n Host: a.example\r\n\r\n",
        "GET / HTTP/1.1\r\nX: y\r\n\tHost: a.example\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a.example\r\n b.example\r\n\r\n",
        "GET / HTTP/1.1\r\nX: y\rHost: b.example\r\nHost: a.example\r\n\r\n",
        "GET / HTTP/1.1\r\nX: y\r\r\nHost: a.example\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a.example\0.b.example\r\n\r\n",
        "GET / HTTP/1.1\r\nX: \0\r\nHost: a.example\r\n\r\n",
        "GET / HTTP/1.1\r\nX: \x0b\r\nHost: a.example\r\n\r\n",
        "GET / HTTP/1.1\r\nX: \x7f\r\nHost: a.example\r\n\r\n",
        "GET / HTTP/1.1\r\nX\0: y\r\nHost: a.example\r\n\r\n",
        "GET / HTTP/1.1\r\nno colon\r\nHost: a.example\r\n\r\n",
        "GET / HTTP/1.1\r\n: y\r\nHost: a.example\r\n\r\n",
        "GET / HTTP/1.1\r\n\u{e9}: y\r\nHost: a.example\r\n\r\n",
        // Request lines.
        "GET  / HTTP/1.1\r\nHost: a.example\r\n\r\n",
        "GET / HTTP/1.1 \r\nHost: a.example\r\n\r\n",
        "GET / x HTTP/1.1\r\nHost: a.example\r\n\r\n",
        "GET /\tx HTTP/1.1\r\nHost: a.example\r\n\r\n",
        "GET /\0 HTTP/1.1\r\nHost: a.example\r\n\r\n",
        "GET\t/ HTTP/1.1\r\nHost: a.example\r\n\r\n",
        "GET / HTTP/1.1\rHost: a.example\r\n\r\n\n",
        "GET /\r\nHost: a.example\r\n\r\n",
        "GET / HTTP/2.0\r\nHost: a.example\r\n\r\n",
        "GET / http/1.1\r\nHost: a.example\r\n\r\n",
        "GET / HTTP/1.10\r\nHost: a.example\r\n\r\n",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "GET * HTTP/1.1\r\nHost: a.example\r\n\r\n",
        "GET a.example HTTP/1.1\r\nHost: a.example\r\n\r\n",
        "GET ftp://a.example/ HTTP/1.1\r\nHost: a.example\r\n\r\n",
        "GET http:/a.example/ HTTP/1.1\r\nHost: a.example\r\n\r\n",
        "CONNECT a.example HTTP/1.1\r\n\r\n",
        "CONNECT a.example:0 HTTP/1.1\r\n\r\n",
        "CONNECT a.example:22/x HTTP/1.1\r\n\r\n",
        "CONNECT /:22 HTTP/1.1\r\n\r\n",
        "GeT / HTTP/1.1\r\nHost: a.example\r\n\r\n",
    ] {
        assert!(
            matches!(refused(head.as_bytes()), Refusal::BadRequest(_)),
            "{head:?}"
        );
    }
}

#[test]
fn a_refusal_names_what_a_reader_would_trip_over() {
    for (line, reason) in [
        ("X: y\rHost: b.example", "CR without LF"),
        (" b.example", "a folded header line"),
        ("\tb.example", "a folded header line"),
        ("Host : b.example", "a header's name is no token"),
        ("Host: b.example", "more than one Host"),
    ] {
        let head = format!("GET / HTTP/1.1\r\nHost: a.example\r\n{line}\r\n\r\n");
        assert_eq!(
            refused(head.as_bytes()),
            Refusal::BadRequest(reason),
            "{line:?}"
        );
    }
}

#[test]
fn what_is_odd_but_clear_passes() {
    for head in [
        "GET / HTTP/1.0\r\nHost: a.example\r\n\r\n",
        "GET / HTTP/1.1\nHost: a.example\n\n",
        "GET / HTTP/1.1\r\nHost: a.example\n\r\n",
        "GET / HTTP/1.1\nHost: a.example\r\n\n",
        "GET http://A.example HTTP/1.1\r\nhost:a.example:80\r\n\r\n",
        "GET HTTPS://a.example:8443?x HTTP/1.1\r\nHOST: a.example\r\n\r\n",
        "OPTIONS * HTTP/1.1\r\nHost: a.example\r\n\r\n",
        "UPDATEREDIRECTREF / HTTP/1.1\r\nHost: a.example\r\n\r\n",
        "GET / HTTP/1.1\r\nX:\r\nHost: a.example\r\nY: \u{85}\t\u{2028} host: b\r\n\r\n",
        "GET /\u{e9} HTTP/1.1\r\nHost: a.example\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a.example\r\nX-Host: b.example\r\nForwarded: host=b.example\r\n\r\n",
    ] {
        let parsed = http(head.as_bytes());
        assert_eq!(parsed.kind, HttpKind::Request, "{head:?}");
        assert_eq!(parsed.host, Some("a.example".parse().unwrap()), "{head:?}");
        assert_eq!(parsed.len, head.len(), "{head:?}");
    }
}

#[test]
fn the_kinds_are_told_apart() {
    let kind = |head: &str| http(head.as_bytes()).kind;
    assert_eq!(
        kind("CONNECT PageKite:1 HTTP/1.0\r\n\r\n"),
        HttpKind::Tunnel
    );
    assert_eq!(
        kind("CONNECT pagekite:2 HTTP/1.1\r\nHost: fe.example\r\n\r\n"),
        HttpKind::Tunnel
    );
    assert_eq!(
        kind("GET /ping HTTP/1.1\r\nHost: ping.pagekite\r\n\r\n"),
        HttpKind::Ping
    );
    assert_eq!(
        kind("HEAD /ping HTTP/1.0\nhost: PING.pagekite:80\n\n"),
        HttpKind::Ping
    );
    assert_eq!(
        kind("POST /ping HTTP/1.1\r\nHost: ping.pagekite\r\n\r\n"),
        HttpKind::Request
    );
    assert_eq!(
        kind("GET /pingx HTTP/1.1\r\nHost: ping.pagekite\r\n\r\n"),
        HttpKind::Request
    );
    assert_eq!(
        kind("GET /ping HTTP/1.1\r\nHost: a.example\r\n\r\n"),
        HttpKind::Request
    );
    let host = "a.example".parse().unwrap();
    assert_eq!(
        kind("CONNECT A.example:443 HTTP/1.1\r\nHost: a.example\r\n\r\n"),
        HttpKind::Connect { host, port: 443 }
    );
    let ws = |upgrade, connection| {
        kind(&format!(
            "GET / HTTP/1.1\r\nHost: a.example\r\nUpgrade: {upgrade}\r\nConnection: {connection}\r\n\r\n"
        ))
    };
    assert_eq!(ws("websocket", "Upgrade"), HttpKind::Websocket);
    assert_eq!(
        ws("h2c, WebSocket", "keep-alive,\tupgrade"),
        HttpKind::Websocket
    );
    assert_eq!(ws("websockets", "Upgrade"), HttpKind::Request);
    assert_eq!(ws("websocket", "keep-alive"), HttpKind::Request);
    assert_eq!(
        refused(b"CONNECT [::1]:22 HTTP/1.1\r\n\r\n"),
        Refusal::NoHost
    );
}

#[test]
fn recorded_heads_are_what_they_were() {
    let first = |file: &str, dir, c| http(&recorded(&format!("pagekite/{file}.jsonl"), dir, c));
    assert_eq!(
        first("01-handshake-addkites-get", "b2f", 0).kind,
        HttpKind::Ping
    );
    assert_eq!(
        first("01-handshake-addkites-get", "b2f", 2).kind,
        HttpKind::Tunnel
    );
    assert_eq!(
        first("17-websocket-and-port.visitor", "v2f", 0).kind,
        HttpKind::Websocket
    );
    let connect = first("14-halfclose-raw.visitor", "v2f", 0);
    let host: kite::kite::KiteName = "kite.test".parse().unwrap();
    assert_eq!(connect.host.as_ref(), Some(&host));
    assert_eq!(connect.kind, HttpKind::Connect { host, port: 22 });
    assert!(first("24-probe.visitor", "v2f", 0).path_is_pagekite_magic);
    assert!(!connect.path_is_pagekite_magic);
    let foolscap = first("07-foolscap-upgrade.visitor", "v2f", 0);
    assert_eq!(foolscap.kind, HttpKind::Request);
    assert_eq!(
        foolscap.foolscap.unwrap().as_str(),
        "u7qxs4lxlf3hkwqzlt5v5wpqdjd2v3ry"
    );
    let tahoe = http(&tahoe("foolscap-client-to-node", "c2s"));
    assert_eq!(
        tahoe.foolscap.unwrap().as_str(),
        "rznjxrmn666ovyilykucaws7ap26djwf"
    );
    assert_eq!(tahoe.len, 131);
}

#[test]
fn only_foolscaps_shape_is_foolscap() {
    let tub = "rznjxrmn666ovyilykucaws7ap26djwf";
    let is = |line: &str, upgrade: &str| {
        let head = format!("{line} HTTP/1.1\r\nHost: a.example\r\n{upgrade}\r\n\r\n");
        http(head.as_bytes()).foolscap.is_some()
    };
    let upgrade = "Upgrade: TLS/1.0";
    assert!(is(&format!("GET /id/{tub}"), upgrade));
    assert!(is(&format!("GET /id/{tub}"), "upgrade:\tTLS/1.0 "));
    assert!(!is(&format!("GET /id/{tub}"), "Upgrade: TLS/1.1"));
    assert!(!is(&format!("GET /id/{tub}"), "X-Upgrade: TLS/1.0"));
    assert!(!is(&format!("POST /id/{tub}"), upgrade));
    assert!(!is(&format!("GET /id/{}", tub.to_uppercase()), upgrade));
    assert!(!is(&format!("GET /id/{}", &tub[1..]), upgrade));
    assert!(!is(&format!("GET /id/{tub}a"), upgrade));
    assert!(!is(&format!("GET /id/{tub}/"), upgrade));
    assert!(!is(&format!("GET /uri/{tub}"), upgrade));
    assert!(!is(&format!("GET /id/{}1", &tub[1..]), upgrade));
}

#[test]
fn a_method_may_be_as_long_as_its_limit() {
    let head = |letters: usize| {
        let method = "M".repeat(letters);
        format!("{method} / HTTP/1.1\r\nHost: a.example\r\n\r\n").into_bytes()
    };
    assert!(matches!(sniff(&head(20)), Sniff::Found(Visitor::Http(_))));
    assert!(matches!(refused(&head(21)), Refusal::BadRequest(_)));
    // Nobody waits for the rest of it.
    assert!(matches!(refused(&head(1000)[..21]), Refusal::BadRequest(_)));
}

#[test]
fn a_head_may_be_as_long_as_its_limit() {
    let head = |len: usize| {
        let start = "GET / HTTP/1.1\r\nHost: a.example\r\nX: ";
        let fill = "y".repeat(len - start.len() - 4);
        format!("{start}{fill}\r\n\r\n").into_bytes()
    };
    let longest = head(MAX_HTTP_HEAD);
    assert_eq!(sniff(&longest[..MAX_HTTP_HEAD - 1]), Sniff::NeedMore);
    assert!(matches!(sniff(&longest), Sniff::Found(Visitor::Http(h)) if h.len == MAX_HTTP_HEAD));
    for len in [MAX_HTTP_HEAD + 1, 17 * 1024, 1 << 20] {
        let long = head(len);
        assert_eq!(sniff(&long), Sniff::Refuse(Refusal::TooLong));
        assert_eq!(
            sniff(&long[..MAX_HTTP_HEAD]),
            Sniff::Refuse(Refusal::TooLong)
        );
    }
    // What is wrong before the limit is the reason that is given.
    let mut two = b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n".to_vec();
    two.resize(MAX_HTTP_HEAD * 2, b'z');
    assert!(matches!(sniff(&two), Sniff::Refuse(Refusal::BadRequest(_))));
}
