//! ClientHellos: real ones, split ones, permuted ones, wrong ones; and rustls as a second opinion.

use std::sync::Arc;

use kite::sniff::tls::{MAX_HELLO_BODY, client_hello};
use kite::sniff::{
    ACME_ALPN, CERTIFIED_ALPN, ClientHello, MAX_CLIENT_HELLO, Refusal, Sniff, TUNNEL_ALPN, Visitor,
    sniff,
};
use proptest::prelude::*;
use rustls::crypto::aws_lc_rs::{self, kx_group};
use rustls::server::Acceptor;

use crate::sniff::{found_at_the_end, recorded, refused, tahoe};

fn tls(bytes: &[u8]) -> ClientHello {
    match found_at_the_end(bytes) {
        Visitor::Tls(hello) => hello,
        other => panic!("{other:?}"),
    }
}

/// The message inside one record.
fn message(record: &[u8]) -> Vec<u8> {
    let len = usize::from(u16::from_be_bytes([record[3], record[4]]));
    assert_eq!(record.len(), 5 + len, "one record");
    record[5..].to_vec()
}

/// Puts a message into records, cut at these places.
fn records(message: &[u8], cuts: &[usize]) -> Vec<u8> {
    let mut wire = Vec::new();
    let mut from = 0;
    for &to in cuts.iter().chain([&message.len()]) {
        wire.extend([0x16, 3, 1]);
        wire.extend(u16::try_from(to - from).unwrap().to_be_bytes());
        wire.extend(&message[from..to]);
        from = to;
    }
    wire
}

type Extensions = Vec<(u16, Vec<u8>)>;

/// A message as long and well-formed as its extensions are.
fn hello(extensions: &[(u16, Vec<u8>)]) -> Vec<u8> {
    let mut list = Vec::new();
    for (kind, data) in extensions {
        list.extend(kind.to_be_bytes());
        list.extend(u16::try_from(data.len()).unwrap().to_be_bytes());
        list.extend(data);
    }
    let mut body = vec![3, 3];
    body.extend([7; 32]);
    body.extend([0, 0, 4, 0x13, 1, 0x13, 2, 1, 0]);
    body.extend(u16::try_from(list.len()).unwrap().to_be_bytes());
    body.extend(list);
    handshake(&body)
}

fn handshake(body: &[u8]) -> Vec<u8> {
    let mut message = vec![1];
    message.extend(&u32::try_from(body.len()).unwrap().to_be_bytes()[1..]);
    message.extend(body);
    message
}

fn name(kind: u8, name: &[u8]) -> Vec<u8> {
    let len = u16::try_from(name.len()).unwrap();
    let mut data = (len + 3).to_be_bytes().to_vec();
    data.push(kind);
    data.extend(len.to_be_bytes());
    data.extend(name);
    data
}

fn sni(text: &str) -> (u16, Vec<u8>) {
    (0, name(0, text.as_bytes()))
}

fn alpn(protocols: &[&[u8]]) -> (u16, Vec<u8>) {
    let mut list = Vec::new();
    for p in protocols {
        list.push(u8::try_from(p.len()).unwrap());
        list.extend(*p);
    }
    let mut data = u16::try_from(list.len()).unwrap().to_be_bytes().to_vec();
    data.extend(list);
    (16, data)
}

/// What rustls sends first, in one record.
fn rustls_hello(server: &'static str, alpn: &[&[u8]], post_quantum: bool) -> Vec<u8> {
    let mut provider = aws_lc_rs::default_provider();
    provider.kx_groups = match post_quantum {
        true => vec![kx_group::X25519MLKEM768, kx_group::X25519],
        false => vec![kx_group::X25519],
    };
    let mut config = rustls::ClientConfig::builder_with_provider(Arc::new(provider))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|p| p.to_vec()).collect();
    let server = server.try_into().unwrap();
    let mut client = rustls::ClientConnection::new(Arc::new(config), server).unwrap();
    let mut wire = Vec::new();
    client.write_tls(&mut wire).unwrap();
    wire
}

/// The extensions of a real hello whose fixed part is rustls's.
fn split_extensions(message: &[u8]) -> (Vec<u8>, Extensions) {
    let session = usize::from(message[38]);
    let suites_at = 39 + session;
    let suites = usize::from(u16::from_be_bytes([
        message[suites_at],
        message[suites_at + 1],
    ]));
    let at = suites_at + 2 + suites + 2;
    let mut rest = &message[at + 2..];
    let mut extensions = Vec::new();
    while let [a, b, c, d, tail @ ..] = rest {
        let len = usize::from(u16::from_be_bytes([*c, *d]));
        extensions.push((u16::from_be_bytes([*a, *b]), tail[..len].to_vec()));
        rest = &tail[len..];
    }
    (message[4..at].to_vec(), extensions)
}

fn join_extensions(fixed: &[u8], extensions: &Extensions) -> Vec<u8> {
    let rebuilt = hello(extensions);
    let list = &rebuilt[4 + 2 + 32 + 1 + 6 + 2..];
    handshake(&[fixed, list].concat())
}

/// rustls's opinion: `None` if it does not accept, or wants more.
fn acceptor(mut wire: &[u8]) -> Option<Option<String>> {
    let mut acceptor = Acceptor::default();
    while !wire.is_empty() {
        acceptor.read_tls(&mut wire).ok()?;
        match acceptor.accept() {
            Err(_) => return None,
            Ok(None) => {}
            Ok(Some(accepted)) => {
                return Some(
                    accepted
                        .client_hello()
                        .server_name()
                        .map(str::to_ascii_lowercase),
                );
            }
        }
    }
    None
}

fn ours(wire: &[u8]) -> Option<Option<String>> {
    match client_hello(wire) {
        Sniff::Found(hello) => Some(hello.sni.map(|n| n.to_string())),
        _ => None,
    }
}

#[test]
fn recorded_hellos() {
    let visitor =
        |c| recorded("pagekite/06-tls-sni-passthrough.visitor.jsonl", "v2f", c)[..517].to_vec();
    assert_eq!(tls(&visitor(0)).sni, Some("kite.test".parse().unwrap()));
    assert_eq!(tls(&visitor(1)).sni, Some("nobody.test".parse().unwrap()));
    let nameless = ClientHello {
        sni: None,
        alpn: false,
        alpn_kite: false,
        alpn_certified: false,
        alpn_acme: false,
    };
    assert_eq!(
        tls(&tahoe("gbs-client-to-node-data", "c2s")[..1538]),
        nameless
    );
    assert_eq!(
        tls(&tahoe("foolscap-client-to-node", "c2s")[131..131 + 1538]),
        nameless
    );
    assert_eq!(tls(&tahoe("pagekite-fe-tls-without-sni", "c2s")), nameless);
}

#[test]
fn rustls_hellos_split_over_records_at_every_byte() {
    for post_quantum in [false, true] {
        let wire = rustls_hello(
            "Bob.Alice.example",
            &[b"h2", TUNNEL_ALPN, b"http/1.1"],
            post_quantum,
        );
        assert_eq!(wire.len() > 1216, post_quantum);
        let expected = ClientHello {
            sni: Some("bob.alice.example".parse().unwrap()),
            alpn: true,
            alpn_kite: true,
            alpn_certified: false,
            alpn_acme: false,
        };
        assert_eq!(tls(&wire), expected);
        let message = message(&wire);
        for cut in 1..message.len() {
            assert_eq!(
                client_hello(&records(&message, &[cut])),
                Sniff::Found(expected.clone())
            );
        }
        let confetti: Vec<usize> = (1..message.len()).collect();
        assert_eq!(tls(&records(&message, &confetti)), expected);
        assert_eq!(tls(&records(&message, &[1, 2, 3, 4, 5, 60, 200])), expected);
    }
    let plain = rustls_hello(
        "bob.example",
        &[b"h2", b"x-pagekite/10", b"x-pagekite"],
        false,
    );
    assert!(tls(&plain).alpn && !tls(&plain).alpn_kite);
    let named = rustls_hello("bob.example", &[TUNNEL_ALPN, CERTIFIED_ALPN], false);
    assert!(tls(&named).alpn_kite && tls(&named).alpn_certified && !tls(&named).alpn_acme);
    let authority = tls(&rustls_hello("bob.example", &[ACME_ALPN], false));
    assert!(authority.alpn_acme && !authority.alpn_kite);
    assert_eq!(tls(&rustls_hello("127.0.0.1", &[], true)).sni, None);
}

#[test]
fn the_name_is_found_wherever_it_stands() {
    let share = (51, vec![9; 1216 + 36]);
    let grease = (0x0a0a, vec![]);
    let other_grease = (0xfafa, vec![0]);
    let unknown = (0xffce, vec![1, 2, 3]);
    let all = vec![
        sni("bob.example"),
        alpn(&[TUNNEL_ALPN]),
        share,
        grease,
        other_grease,
        unknown,
    ];
    for turn in 0..all.len() {
        for swap in 0..all.len() {
            let mut extensions = all.clone();
            extensions.rotate_left(turn);
            extensions.swap(0, swap);
            let hello = tls(&records(&hello(&extensions), &[]));
            assert_eq!(hello.sni, Some("bob.example".parse().unwrap()));
            assert!(hello.alpn_kite);
        }
    }
}

#[test]
fn a_hello_without_extensions_is_one() {
    let with_empty_list = hello(&[]);
    let without = handshake(&with_empty_list[4..with_empty_list.len() - 2]);
    for message in [with_empty_list, without] {
        assert_eq!(tls(&records(&message, &[])).sni, None);
    }
}

#[test]
fn names_are_normalised_or_refused() {
    let of = |text: &str| records(&hello(&[sni(text)]), &[]);
    for text in ["bob.example", "BOB.example", "bob.example."] {
        assert_eq!(
            tls(&of(text)).sni,
            Some("bob.example".parse().unwrap()),
            "{text}"
        );
    }
    for text in [
        ".",
        "bob..example",
        "bob.example..",
        "*.example",
        "bob.example\0",
        "bób.example",
        "bob example",
        "bob.example:443",
        "127.0.0.1",
        "[::1]",
        "::1",
        "1",
        &"x".repeat(64),
        &"ab.".repeat(90),
        "bob.example.\x16\x03\x01",
    ] {
        assert_eq!(refused(&of(text)), Refusal::BadServerName, "{text:?}");
    }
}

#[test]
fn malformed_hellos_are_refused() {
    let bob = || sni("bob.example");
    let two_names = {
        let one = name(0, b"a.example");
        let mut data = (2 * (one.len() - 2) as u16).to_be_bytes().to_vec();
        data.extend(&one[2..]);
        data.extend(&one[2..]);
        data
    };
    for extensions in [
        vec![bob(), bob()],
        vec![bob(), (43, vec![2, 3, 4]), sni("eve.example")],
        vec![(0x0a0a, vec![]), bob(), (0x0a0a, vec![])],
        vec![(0, vec![])],
        vec![(0, vec![0, 0])],
        vec![(0, name(0, b""))],
        vec![(0, name(1, b"bob.example"))],
        vec![(0, two_names)],
        vec![(0, [name(0, b"bob.example"), vec![0]].concat())],
        vec![(0, name(0, b"bob.example")[..9].to_vec())],
        vec![bob(), (16, vec![])],
        vec![bob(), (16, vec![0, 0])],
        vec![bob(), (16, vec![0, 1, 0])],
        vec![bob(), (16, vec![0, 3, 5, b'h', b'2'])],
        vec![bob(), (16, [alpn(&[b"h2"]).1, vec![0]].concat())],
    ] {
        let wire = records(&hello(&extensions), &[]);
        assert!(
            matches!(refused(&wire), Refusal::BadTls(_)),
            "{extensions:?}"
        );
    }

    let good = hello(&[bob()]);
    let edit = |at: usize, byte: u8| {
        let mut message = good.clone();
        message[at] = byte;
        records(&message, &[])
    };
    let wires = [
        edit(0, 2),                           // a ServerHello
        edit(1, 1),                           // over 16 KiB
        edit(4, 2),                           // SSLv2 inside a record
        edit(38, 33),                         // session id
        edit(40, 3),                          // odd cipher suites
        edit(40, 0),                          // no cipher suites
        handshake(&good[4..60])[..].to_vec(), // no record at all
        records(&handshake(&good[4..good.len() - 1]), &[]),
        records(&handshake(&[&good[4..], &[0]].concat()), &[]),
        records(&handshake(&[]), &[]),
        [&[0x16, 3, 1, 0, 0], &records(&good, &[])[..]].concat(),
        [&records(&good, &[9])[..14], &[0x16, 3, 1, 0, 0]].concat(),
        [&records(&good, &[9])[..14], &[0x17, 3, 1, 0, 9]].concat(),
        vec![0x16, 3, 0],
        vec![0x16, 3, 4],
        vec![0x16, 2, 1],
        vec![0x16, 3, 1, 0x40, 1],
    ];
    for wire in wires {
        let answer = client_hello(&wire);
        assert!(
            matches!(answer, Sniff::Refuse(Refusal::BadTls(_))),
            "{answer:?} {wire:02x?}"
        );
    }
}

#[test]
fn a_hello_may_be_as_long_as_its_limit() {
    let fixed = hello(&[(21, vec![])]).len() - 4;
    let longest = hello(&[(21, vec![0; MAX_HELLO_BODY - fixed])]);
    let wire = records(&longest, &[8192]);
    assert_eq!(sniff(&wire[..wire.len() - 1]), Sniff::NeedMore);
    assert!(matches!(sniff(&wire), Sniff::Found(Visitor::Tls(_))));
    let longer = hello(&[(21, vec![0; MAX_HELLO_BODY - fixed + 1])]);
    assert_eq!(
        sniff(&longer_start(&longer)),
        Sniff::Refuse(Refusal::BadTls("too long"))
    );
    // Confetti of a hello within its own limit meets the limit on the wire.
    let cuts: Vec<usize> = (1..longest.len()).collect();
    let wire = records(&longest, &cuts);
    assert_eq!(sniff(&wire[..MAX_CLIENT_HELLO - 1]), Sniff::NeedMore);
    assert_eq!(sniff(&wire), Sniff::Refuse(Refusal::BadTls("too long")));
}

fn longer_start(message: &[u8]) -> Vec<u8> {
    records(&message[..9], &[])
}

proptest! {
    #[test]
    fn rustls_agrees_on_permuted_and_split_hellos(
        post_quantum in any::<bool>(),
        keys in proptest::collection::vec(any::<u32>(), 32),
        cuts in proptest::collection::btree_set(1usize..400, 0..6),
    ) {
        let wire = rustls_hello("Bob.example", &[b"http/1.1"], post_quantum);
        let (fixed, mut extensions) = split_extensions(&message(&wire));
        let mut order = keys.iter();
        extensions.sort_by_cached_key(|_| order.next().copied());
        let message = join_extensions(&fixed, &extensions);
        let cuts: Vec<usize> = cuts.into_iter().filter(|c| *c < message.len()).collect();
        let wire = records(&message, &cuts);
        prop_assert_eq!(ours(&wire), Some(Some("bob.example".to_owned())));
        prop_assert_eq!(acceptor(&wire), ours(&wire));
    }

    #[test]
    fn rustls_never_reads_another_name(
        edits in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..4),
        around_the_name in any::<bool>(),
    ) {
        let mut wire = records(&hello(&[
            sni("bob.alice.example"),
            (10, vec![0, 2, 0, 0x1d]),
            (13, vec![0, 2, 4, 3]),
            (43, vec![2, 3, 4]),
            (51, [&[0, 36, 0, 0x1d, 0, 32][..], &[9; 32]].concat()),
        ]), &[]);
        for (at, byte) in edits {
            let at = if around_the_name { 50 + at.index(30) } else { at.index(wire.len()) };
            wire[at] = byte;
        }
        if let (Some(ours), Some(theirs)) = (ours(&wire), acceptor(&wire)) {
            prop_assert_eq!(ours, theirs);
        }
    }
}

#[test]
fn the_mutated_hello_is_one_that_rustls_takes() {
    let wire = records(
        &hello(&[
            sni("bob.alice.example"),
            (10, vec![0, 2, 0, 0x1d]),
            (13, vec![0, 2, 4, 3]),
            (43, vec![2, 3, 4]),
            (51, [&[0, 36, 0, 0x1d, 0, 32][..], &[9; 32]].concat()),
        ]),
        &[],
    );
    assert_eq!(acceptor(&wire), Some(Some("bob.alice.example".to_owned())));
    assert_eq!(ours(&wire), acceptor(&wire));
}
