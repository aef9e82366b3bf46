//! Foolscap's grammar at the gate, in both directions; and the probe of an origin.

use kite::backend::policy::{PolicyError, Verdict};
use kite::kite::{KiteName, Protocol};
use kite::sniff::foolscap::{
    Breach, MAX_NEGOTIATION, ProbeAnswer, TUB_ID_LEN, probe_answer, probe_request,
};
use kite::sniff::{Refusal, Sniff, TubId, Voice};
use proptest::prelude::*;

use crate::sniff::{broken_flight, tahoe};
use crate::sniff_policy::{NAME, TUB, gate, never_dialled, node, request};

const SWITCHING: &[u8] =
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: TLS/1.0, PB/1.0\r\nConnection: Upgrade\r\n\r\n";

#[test]
fn a_foolscap_origin_never_sees_anything_else() {
    let not = |why: PolicyError| why == PolicyError::Foolscap(Breach::NotFoolscap);
    for name in [
        "webui-get-root",
        "webui-head-root",
        "plain-http-to-dual-node",
    ] {
        assert!(not(never_dialled(node, &tahoe(name, "c2s"))), "{name}");
    }
    for line in [
        format!("POST /id/{TUB} HTTP/1.1"),
        format!("HEAD /id/{TUB} HTTP/1.1"),
        format!("GET /id/{TUB} HTTP/1.0"),
        format!("GET /id/{TUB}"),
        format!("GET  /id/{TUB} HTTP/1.1"),
        format!("GET http://{NAME}/id/{TUB} HTTP/1.1"),
        format!("GET /id/{} HTTP/1.1", TUB.to_uppercase()),
        format!("GET /id/{TUB}/../../uri HTTP/1.1"),
        "GET /id/ HTTP/1.1".to_owned(),
        "GET /uri/URI:DIR2:aaaa HTTP/1.1".to_owned(),
        "GET /?t=json HTTP/1.1".to_owned(),
        "CONNECT PageKite:1 HTTP/1.0".to_owned(),
    ] {
        let head =
            format!("{line}\r\nHost: {NAME}\r\nUpgrade: TLS/1.0\r\nConnection: Upgrade\r\n\r\n");
        assert!(not(never_dialled(node, head.as_bytes())), "{line}");
    }
    let hello = tahoe("tls-to-foolscap-only-node", "c2s");
    let why = never_dialled(node, &hello);
    assert_eq!(why, Breach::TlsFirst.into());
    assert_eq!(why.voice(), Voice::TlsAlert(49));
    assert_eq!(never_dialled(node, &[0; 3]), Breach::NotFoolscap.into());
}

#[test]
fn a_foolscap_head_is_checked_strictly() {
    let head =
        |tub: &str, fields: &str| format!("GET /id/{tub} HTTP/1.1\r\n{fields}\r\n").into_bytes();
    let good = format!("Host: {NAME}\r\nUpgrade: TLS/1.0\r\nConnection: Upgrade\r\n");
    assert_eq!(node().from_visitor(&head(TUB, &good)), Verdict::Pass);
    for fields in [
        good.replace(NAME, &format!("{}.:443", NAME.to_uppercase())),
        good.replace("Upgrade\r\n", "keep-alive, upgrade\r\n"),
        good.replace("Host", "host"),
        format!("X-Forwarded-For: 192.0.2.1\r\n{good}X-Y: z\r\n"),
        good.replace(NAME, &format!("0x7f000001--{NAME}")),
    ] {
        assert_eq!(
            node().from_visitor(&head(TUB, &fields)),
            Verdict::Pass,
            "{fields:?}"
        );
    }
    let breach = |tub: &str, fields: &str| match never_dialled(node, &head(tub, fields)) {
        PolicyError::Foolscap(breach) => breach,
        other => panic!("{other:?}"),
    };
    assert_eq!(breach(&"a".repeat(32), &good), Breach::OtherTub);
    assert_eq!(
        breach(TUB, &good.replace(NAME, "eve.example")),
        Breach::OtherHost
    );
    assert_eq!(
        breach(TUB, &good.replace("Upgrade: TLS/1.0\r\n", "")),
        Breach::NoUpgrade
    );
    assert_eq!(
        breach(TUB, &good.replace("TLS/1.0", "websocket")),
        Breach::NoUpgrade
    );
    assert_eq!(
        breach(TUB, &good.replace("TLS/1.0", "TLS/1.0, h2c")),
        Breach::NoUpgrade
    );
    assert_eq!(
        breach(TUB, &good.replace("Connection: Upgrade\r\n", "")),
        Breach::NoUpgrade
    );
    assert_eq!(
        breach(
            TUB,
            &good.replace("Connection: Upgrade", "Connection: close")
        ),
        Breach::NoUpgrade
    );
    assert_eq!(
        breach(TUB, &good.replace(&format!("Host: {NAME}\r\n"), "")),
        Breach::Head(Refusal::NoHost)
    );
    for fields in [
        good.replace("\r\n", "\n"),
        good.replace("TLS/1.0\r\n", "TLS/1.0\n"),
        format!("{good}Host: {NAME}\r\n"),
        format!("{good} folded\r\n"),
        good.replace("Host:", "Host :"),
        good.replace("TLS/1.0", "TLS/1.0\0"),
    ] {
        assert!(
            matches!(breach(TUB, &fields), Breach::Head(Refusal::BadRequest(_))),
            "{fields:?}"
        );
    }
    // Without a TubID to compare, any goes; a wildcard kite takes what is below it.
    let wild = "*.alicefrontend.example";
    assert_eq!(
        gate(Protocol::Foolscap, wild).from_visitor(&head(&"a".repeat(32), &good)),
        Verdict::Pass
    );
}

#[test]
fn a_foolscap_head_may_be_as_long_as_its_limit() {
    let start = format!(
        "GET /id/{TUB} HTTP/1.1\r\nHost: {NAME}\r\nUpgrade: TLS/1.0\r\nConnection: Upgrade\r\nX: "
    );
    let head =
        |len: usize| format!("{start}{}\r\n\r\n", "y".repeat(len - start.len() - 4)).into_bytes();
    assert_eq!(node().from_visitor(&head(MAX_NEGOTIATION)), Verdict::Pass);
    for len in [MAX_NEGOTIATION + 1, 17 * 1024] {
        let why = never_dialled(node, &head(len));
        assert_eq!(why, Breach::Head(Refusal::TooLong).into());
        assert_eq!(why.voice(), Voice::Http(431));
    }
    let mut more = head(MAX_NEGOTIATION);
    more.push(0x16);
    assert_eq!(
        node().from_visitor(&more),
        Verdict::Refuse(Breach::TooEarly.into())
    );
}

#[test]
fn nothing_may_follow_the_head_before_the_answer() {
    let hello = tahoe("foolscap-client-to-node", "c2s")[131..].to_vec();
    for more in [&b"x"[..], b"GET / HTTP/1.1\r\n\r\n", &hello] {
        let together = [&request()[..], more].concat();
        assert_eq!(
            node().from_visitor(&together),
            Verdict::Refuse(Breach::TooEarly.into())
        );
        let mut gate = node();
        assert_eq!(gate.from_visitor(&request()), Verdict::Pass);
        assert_eq!(
            gate.from_origin(&SWITCHING[..SWITCHING.len() - 1]),
            Verdict::Pass
        );
        assert_eq!(
            gate.from_visitor(more),
            Verdict::Refuse(Breach::TooEarly.into())
        );
    }
}

#[test]
fn only_tls_may_follow_the_answer() {
    for (bytes, expected) in [
        (&[0x16, 3, 1][..], Verdict::Pass),
        (&[0x16, 3, 3, 0, 1], Verdict::Pass),
        (&[0x16], Verdict::Wait),
        (&[0x16, 3], Verdict::Wait),
        (&[0x16, 3, 0], Verdict::Refuse(Breach::NotTls.into())),
        (&[0x16, 3, 4], Verdict::Refuse(Breach::NotTls.into())),
        (&[0x16, 2], Verdict::Refuse(Breach::NotTls.into())),
        (&[0x15, 3, 3], Verdict::Refuse(Breach::NotTls.into())),
        (
            b"banana-negotiation-range: 3 3\r\n",
            Verdict::Refuse(Breach::NotTls.into()),
        ),
        (
            b"GET /uri HTTP/1.1\r\n\r\n",
            Verdict::Refuse(Breach::NotTls.into()),
        ),
    ] {
        let upgraded = || {
            let mut gate = node();
            assert_eq!(gate.from_visitor(&request()), Verdict::Pass);
            assert_eq!(gate.from_origin(SWITCHING), Verdict::Pass);
            gate
        };
        let mut gate = upgraded();
        assert_eq!(gate.from_visitor(bytes), expected, "{bytes:?}");
        assert_eq!(gate.is_open(), expected == Verdict::Pass);
        if expected == Verdict::Wait {
            assert_eq!(
                gate.visitor_closed(),
                Verdict::Refuse(Breach::Incomplete.into())
            );
        }
        let mut gate = upgraded();
        let last = bytes.iter().map(|b| gate.from_visitor(&[*b])).last();
        assert_eq!(last, Some(expected), "byte by byte: {bytes:?}");
    }
}

#[test]
fn a_node_that_refuses_is_heard_and_the_visitor_is_not() {
    let mut refusals = vec![
        tahoe("foolscap-unknown-tubid", "s2c"),
        tahoe("webui-foolscap-request", "s2c"),
        b"HTTP/1.1 101".to_vec(),
        b"HTTP/1.1 1010 \r\n\r\n".to_vec(),
        b"HTTP/1.0 101 x\r\n\r\n".to_vec(),
        vec![0x16, 3, 3, 0, 1],
    ];
    let mut endless = b"HTTP/1.1 101 ".to_vec();
    endless.resize(MAX_NEGOTIATION, b'x');
    endless.extend(b"\r\n\r\n");
    refusals.push(endless);
    for answer in refusals {
        for one_by_one in [false, true] {
            let mut gate = node();
            assert_eq!(gate.from_visitor(&request()), Verdict::Pass);
            let size = if one_by_one { 1 } else { answer.len() };
            for piece in answer.chunks(size) {
                assert_eq!(gate.from_origin(piece), Verdict::Pass);
            }
            assert!(!gate.is_open());
            let verdict = gate.from_visitor(&[0x16, 3, 1]);
            let complete = answer != b"HTTP/1.1 101";
            let breach = if complete {
                Breach::NotSwitched
            } else {
                Breach::TooEarly
            };
            assert_eq!(verdict, Verdict::Refuse(breach.into()));
        }
    }
    let mut gate = node();
    assert_eq!(
        gate.from_origin(b"x"),
        Verdict::Refuse(Breach::OutOfTurn.into())
    );
}

#[test]
fn the_probe_is_what_a_client_sends() {
    let host: KiteName = NAME.parse().unwrap();
    assert_eq!(probe_request(TUB.parse().unwrap(), &host), request());
    let made_up = TubId::from_random(std::array::from_fn(|i| (i * 37) as u8));
    assert_eq!(made_up.as_str().parse(), Ok(made_up));
    assert_eq!(made_up.as_str().len(), TUB_ID_LEN);
}

#[test]
fn probe_answers_tell_a_node_from_a_web_interface() {
    for (answer, expected) in [
        (
            tahoe("foolscap-unknown-tubid", "s2c"),
            ProbeAnswer::Foolscap,
        ),
        (SWITCHING.to_vec(), ProbeAnswer::Foolscap),
        (
            tahoe("webui-foolscap-request", "s2c"),
            ProbeAnswer::WebInterface,
        ),
        (tahoe("webui-get-root", "s2c"), ProbeAnswer::WebInterface),
        (tahoe("webui-head-root", "s2c"), ProbeAnswer::WebInterface),
        (
            tahoe("plain-http-to-foolscap-only-node", "s2c"),
            ProbeAnswer::Other,
        ),
        (
            b"HTTP/1.1 200 OK\r\nServer: nginx\r\n\r\n".to_vec(),
            ProbeAnswer::Other,
        ),
        (b"SSH-2.0-OpenSSH\r\n".to_vec(), ProbeAnswer::Other),
        (vec![b'x'; 9999], ProbeAnswer::Other),
        (
            [&b"HTTP/1.1 "[..], &[b'x'; 9999]].concat(),
            ProbeAnswer::Other,
        ),
    ] {
        assert_eq!(probe_answer(&answer), Sniff::Found(expected));
        let first = (0..=answer.len())
            .map(|n| probe_answer(&answer[..n]))
            .find(|a| *a != Sniff::NeedMore);
        assert_eq!(first, Some(Sniff::Found(expected)));
    }
    assert_eq!(probe_answer(b""), Sniff::NeedMore);
    assert_eq!(
        probe_answer(b"HTTP/1.1 500 Internal Server Error: unknown"),
        Sniff::NeedMore
    );
}

proptest! {
    #[test]
    fn probe_answers_never_change(
        flight in prop_oneof![broken_flight(), Just(tahoe("webui-get-root", "s2c"))],
    ) {
        let whole = probe_answer(&flight);
        for n in 0..flight.len() {
            let early = probe_answer(&flight[..n]);
            prop_assert!(early == Sniff::NeedMore || early == whole);
        }
    }
}
