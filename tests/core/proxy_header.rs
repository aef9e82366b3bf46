//! The PROXY protocol: what is written is what HAProxy's text says, and what is read does not depend on how it was cut.

use std::net::SocketAddr;

use kite::proxy_header::{Header, MAX_HEADER, Refusal, Version, read, write};
use kite::sniff::Sniff;
use proptest::prelude::*;

const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

fn found(len: usize, from: Option<&str>) -> Sniff<Header, Refusal> {
    Sniff::Found(Header {
        len,
        from: from.map(|a| a.parse().unwrap()),
    })
}

/// A version 2 header: command, family, and what follows.
fn block(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
    let length = u16::try_from(rest.len()).unwrap().to_be_bytes();
    [SIGNATURE, &[command, family], &length, rest].concat()
}

/// The answer to the whole, after every shorter prefix has given the same, or nothing yet.
fn however_cut(bytes: &[u8]) -> Sniff<Header, Refusal> {
    let whole = read(bytes);
    // Long ones are cut where something happens, and here and there between.
    let cuts = (0..bytes.len().min(300)).chain((300..bytes.len()).step_by(97));
    for cut in cuts {
        let part = read(&bytes[..cut]);
        assert!(
            part == Sniff::NeedMore || part == whole,
            "{cut} of {} bytes give {part:?}, all give {whole:?}",
            bytes.len()
        );
    }
    whole
}

#[test]
fn what_is_written_is_what_the_text_says() {
    let v4 = Some("203.0.113.7:4711".parse().unwrap());
    let mapped = Some("[::ffff:203.0.113.7]:4711".parse().unwrap());
    let v6 = Some("[2001:db8::7]:4711".parse().unwrap());
    for from in [v4, mapped] {
        assert_eq!(
            write(Version::V1, from, 80, "bob.example"),
            b"PROXY TCP4 203.0.113.7 0.0.0.0 4711 80\r\n"
        );
        let rest = b"\xcb\x00\x71\x07\0\0\0\0\x12\x67\0\x50\x02\x00\x0bbob.example";
        assert_eq!(
            write(Version::V2, from, 80, "bob.example"),
            block(0x21, 0x11, rest)
        );
    }
    assert_eq!(
        write(Version::V1, v6, 443, "bob.example"),
        b"PROXY TCP6 2001:db8::7 :: 4711 443\r\n"
    );
    let rest = [
        &b"\x20\x01\x0d\xb8\0\0\0\0\0\0\0\0\0\0\0\x07"[..],
        &[0; 16],
        b"\x12\x67\x01\xbb\x02\x00\x0bbob.example",
    ]
    .concat();
    assert_eq!(
        write(Version::V2, v6, 443, "bob.example"),
        block(0x21, 0x21, &rest)
    );
    assert_eq!(
        write(Version::V1, None, 80, "bob.example"),
        b"PROXY UNKNOWN\r\n"
    );
    assert_eq!(
        write(Version::V2, None, 80, "bob.example"),
        block(0x20, 0, b"")
    );
    // No name, and nothing that overflows a length.
    let long = write(Version::V2, v4, 80, &"x".repeat(70_000));
    assert_eq!(long.len(), 16 + 12);
}

#[test]
fn each_kind_of_header_is_read() {
    let line = |text: &str| however_cut(format!("{text}\r\nGET / HTTP/1.1\r\n").as_bytes());
    for (text, from) in [
        (
            "PROXY TCP4 203.0.113.7 192.0.2.1 4711 80",
            Some("203.0.113.7:4711"),
        ),
        (
            "PROXY TCP4 203.0.113.7 192.0.2.1 0 0",
            Some("203.0.113.7:0"),
        ),
        (
            "PROXY TCP6 2001:db8::7 2001:db8::1 4711 80",
            Some("[2001:db8::7]:4711"),
        ),
        (
            "PROXY TCP6 ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff 65535 65535",
            Some("[ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff]:65535"),
        ),
        ("PROXY UNKNOWN", None),
        ("PROXY UNKNOWN whatever it says", None),
    ] {
        assert_eq!(line(text), found(text.len() + 2, from), "{text}");
    }

    let v4 = b"\xcb\x00\x71\x07\xc0\0\x02\x01\x12\x67\0\x50";
    let v6 = [
        &b"\x20\x01\x0d\xb8\0\0\0\0\0\0\0\0\0\0\0\x07"[..],
        &[0; 16],
        b"\x12\x67\0\x50",
    ]
    .concat();
    let tlvs = b"\x05\0\x03abc\x04\0\x01x";
    for (bytes, from) in [
        (block(0x21, 0x11, v4), Some("203.0.113.7:4711")),
        (
            block(0x21, 0x11, &[&v4[..], tlvs].concat()),
            Some("203.0.113.7:4711"),
        ),
        (block(0x21, 0x21, &v6), Some("[2001:db8::7]:4711")),
        // A health check, with an address that does not count, and without one.
        (block(0x20, 0x11, v4), None),
        (block(0x20, 0, b""), None),
        (block(0x20, 0x11, b""), None),
        (block(0x20, 0xff, b"any"), None),
        // Whom a datagram or a Unix socket is from is no help with TCP.
        (block(0x21, 0x12, v4), None),
        (block(0x21, 0x31, &[7; 216]), None),
        (block(0x21, 0, b""), None),
    ] {
        let len = bytes.len();
        let whole = [&bytes[..], b"\x16\x03\x01\r\n"].concat();
        assert_eq!(however_cut(&whole), found(len, from), "{bytes:?}");
    }
}

#[test]
fn everything_else_is_refused() {
    for missing in [
        &b"GET / HTTP/1.1\r\nHost: bob.example\r\n\r\n"[..],
        b"PRI * HTTP/2.0\r\n",
        b"POST / HTTP/1.1\r\n",
        b"PROXYTCP4 1.2.3.4 1.2.3.4 1 1\r\n",
        b"proxy TCP4 1.2.3.4 1.2.3.4 1 1\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"\r\n\r\nGET / HTTP/1.1\r\n",
        b"\r\n\r\n\0\r\nQUIT\r\n",
        b"\0",
    ] {
        assert_eq!(however_cut(missing), Sniff::Refuse(Refusal::Missing));
    }
    let v4 = b"\xcb\x00\x71\x07\xc0\0\x02\x01\x12\x67\0\x50";
    for malformed in [
        &b"PROXY TCP4 203.0.113.7 192.0.2.1 4711\r\n"[..],
        b"PROXY TCP4 203.0.113.7 192.0.2.1 4711 80 1\r\n",
        b"PROXY TCP4 203.0.113.7 192.0.2.1 4711 65536\r\n",
        b"PROXY TCP4 203.0.113.7 192.0.2.1 04711 80\r\n",
        b"PROXY TCP4  203.0.113.7 192.0.2.1 4711 80\r\n",
        b"PROXY TCP4 203.0.113.007 192.0.2.1 4711 80\r\n",
        b"PROXY TCP4 2001:db8::7 2001:db8::1 4711 80\r\n",
        b"PROXY TCP6 203.0.113.7 192.0.2.1 4711 80\r\n",
        b"PROXY UDP4 203.0.113.7 192.0.2.1 4711 80\r\n",
        b"PROXY TCP4 203.0.113.7\t192.0.2.1 4711 80\r\n",
        b"PROXY TCP4 bob.example 192.0.2.1 4711 80\r\n",
        b"PROXY \r\n",
        &block(0x31, 0x11, v4),
        &block(0x22, 0x11, v4),
        &block(0x21, 0x41, v4),
        &block(0x21, 0x13, v4),
        &block(0x21, 0x11, &v4[..11]),
        &block(0x21, 0x21, v4),
    ] {
        assert_eq!(
            however_cut(malformed),
            Sniff::Refuse(Refusal::Malformed),
            "{}",
            String::from_utf8_lossy(malformed)
        );
    }
    // A line end that never comes, or comes too late, and a block longer than any.
    let long = format!("PROXY UNKNOWN {}", "x".repeat(MAX_HEADER));
    for too_long in [
        long.as_bytes(),
        [&long.as_bytes()[..200], b"\r\n"].concat().as_slice(),
        &block(0x21, 0x11, &[0; MAX_HEADER]),
    ] {
        assert_eq!(however_cut(too_long), Sniff::Refuse(Refusal::TooLong));
    }
    // The most that is taken.
    let most = block(0x20, 0, &[0; MAX_HEADER - 16]);
    assert_eq!(however_cut(&most), found(MAX_HEADER, None));
}

fn address() -> impl Strategy<Value = SocketAddr> {
    prop_oneof![
        (any::<[u8; 4]>(), any::<u16>()).prop_map(SocketAddr::from),
        (any::<[u16; 8]>(), any::<u16>()).prop_map(SocketAddr::from),
    ]
}

fn version() -> impl Strategy<Value = Version> {
    prop_oneof![Just(Version::V1), Just(Version::V2)]
}

proptest! {
    #[test]
    fn what_is_written_is_read_again(
        version in version(),
        from in prop::option::of(address()),
        port in any::<u16>(),
        host in "[a-z.]{0,253}",
        rest in prop::collection::vec(any::<u8>(), 0..20),
    ) {
        let header = write(version, from, port, &host);
        let bytes = [&header[..], &rest].concat();
        let from = from.map(|a| SocketAddr::new(a.ip().to_canonical(), a.port()));
        let expected = Sniff::Found(Header { len: header.len(), from });
        prop_assert_eq!(however_cut(&bytes), expected);
    }

    /// Nearly right ones, and anything at all.
    #[test]
    fn no_bytes_are_read_in_two_ways(
        version in version(),
        from in prop::option::of(address()),
        at in any::<prop::sample::Index>(),
        with in prop::collection::vec(any::<u8>(), 0..4),
        any in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        let _ = however_cut(&any);
        let mut header = write(version, from, 80, "bob.example");
        let at = at.index(header.len());
        header.splice(at..header.len().min(at + 1), with);
        header.extend_from_slice(&any);
        let _ = however_cut(&header);
    }
}
