//! The backend's gate: what passes to an origin, and what never does.

use kite::backend::policy::{Gate, PolicyError, Verdict};
use kite::kite::Protocol;
use kite::sniff::foolscap::Breach;
use kite::sniff::{Refusal, TubId};
use proptest::prelude::*;

use crate::sniff::{broken_flight, cuts, pieces, recorded, tahoe};

pub(crate) const TUB: &str = "rznjxrmn666ovyilykucaws7ap26djwf";
pub(crate) const NAME: &str = "tahoebob1.alicefrontend.example";

pub(crate) fn gate(protocol: Protocol, kite: &str) -> Gate {
    Gate::new(protocol, &kite.parse().unwrap(), None)
}

pub(crate) fn node() -> Gate {
    Gate::new(
        Protocol::Foolscap,
        &NAME.parse().unwrap(),
        Some(TUB.parse().unwrap()),
    )
}

pub(crate) fn request() -> Vec<u8> {
    tahoe("foolscap-client-to-node", "c2s")[..131].to_vec()
}

/// The refusal of a flight, shown whole and byte by byte, before anything passed.
pub(crate) fn never_dialled(new: impl Fn() -> Gate, flight: &[u8]) -> PolicyError {
    let Verdict::Refuse(why) = new().from_visitor(flight) else {
        panic!("not refused: {:?}", String::from_utf8_lossy(flight));
    };
    let mut gate = new();
    for byte in flight {
        match gate.from_visitor(&[*byte]) {
            Verdict::Wait => assert!(!gate.is_open()),
            Verdict::Pass => panic!("dialled for {:?}", String::from_utf8_lossy(flight)),
            Verdict::Refuse(same) => {
                assert_eq!(same, why);
                assert_eq!(
                    gate.from_visitor(&request()),
                    Verdict::Refuse(why),
                    "stays shut"
                );
                assert_eq!(gate.from_origin(b"x"), Verdict::Refuse(why));
                assert_eq!(gate.visitor_closed(), Verdict::Refuse(why));
                return why;
            }
        }
    }
    panic!(
        "refused whole, not byte by byte: {:?}",
        String::from_utf8_lossy(flight)
    );
}

/// Shows the pieces; all but those that complete what is held must `Wait`.
fn show(gate: &mut Gate, pieces: &[&[u8]]) -> Option<Verdict> {
    let mut last = None;
    for piece in pieces.iter().filter(|p| !p.is_empty()) {
        last = Some(gate.from_visitor(piece));
        if let Some(Verdict::Refuse(_)) = last {
            break;
        }
    }
    last
}

proptest! {
    #[test]
    fn recorded_foolscap_passes_however_it_is_cut(
        name in proptest::sample::select(vec![
            "foolscap-client-to-node", "foolscap-idle-keepalive-5s",
            "foolscap-losing-hint-client-gives-up", "foolscap-losing-hint-server-says-duplicate",
            "pagekite-pair-1-client-side", "pagekite-pair-1-node-side",
        ]),
        head_cuts in cuts(), answer_cuts in cuts(), rest_cuts in cuts(),
    ) {
        let (visitor, origin) = (tahoe(name, "c2s"), tahoe(name, "s2c"));
        let head = visitor.windows(4).position(|w| w == b"\r\n\r\n").unwrap() + 4;
        let text = String::from_utf8_lossy(&visitor[..head]).into_owned();
        let tub: TubId = text[8..40].parse().unwrap();
        let host = text.lines().find_map(|l| l.strip_prefix("Host: ")).unwrap();
        let mut gate = Gate::new(Protocol::Foolscap, &host.parse().unwrap(), Some(tub));

        let head_pieces = pieces(&visitor[..head], &head_cuts);
        let full: Vec<_> = head_pieces.into_iter().filter(|p| !p.is_empty()).collect();
        for piece in &full[..full.len() - 1] {
            prop_assert_eq!(gate.from_visitor(piece), Verdict::Wait);
        }
        prop_assert_eq!(gate.from_visitor(full[full.len() - 1]), Verdict::Pass);
        prop_assert!(!gate.is_open());
        for piece in pieces(&origin, &answer_cuts) {
            prop_assert_eq!(gate.from_origin(piece), Verdict::Pass);
        }
        prop_assert!(!gate.is_open());
        let mut seen = 0;
        for piece in pieces(&visitor[head..], &rest_cuts).into_iter().filter(|p| !p.is_empty()) {
            seen += piece.len();
            let expected = if seen < 3 { Verdict::Wait } else { Verdict::Pass };
            prop_assert_eq!(gate.from_visitor(piece), expected);
        }
        prop_assert!(gate.is_open());
        prop_assert_eq!(gate.visitor_closed(), Verdict::Pass);
    }

    #[test]
    fn no_gate_depends_on_how_bytes_were_split(
        protocol in proptest::sample::select(Protocol::ALL.to_vec()),
        flight in broken_flight(),
        cuts in cuts(),
    ) {
        let mut whole = gate(protocol, "kite.test");
        let mut split = gate(protocol, "kite.test");
        let expected = show(&mut whole, &[&flight]);
        prop_assert_eq!(show(&mut split, &pieces(&flight, &cuts)), expected);
        prop_assert_eq!(split.is_open(), whole.is_open());
        prop_assert_eq!(split.visitor_closed(), whole.visitor_closed());
    }

    #[test]
    fn what_a_foolscap_gate_passes_is_foolscap(flight in broken_flight(), cuts in cuts()) {
        let mut gate = node();
        let mut passed = 0;
        for piece in pieces(&flight, &cuts) {
            passed += piece.len();
            if !piece.is_empty() && gate.from_visitor(piece) == Verdict::Pass {
                let start = format!("GET /id/{TUB} HTTP/1.1\r\n");
                prop_assert!(flight.starts_with(start.as_bytes()));
                prop_assert!(flight[..passed].ends_with(b"\r\n\r\n"));
            }
        }
        prop_assert!(!gate.is_open());
    }
}

#[test]
fn a_visitor_that_leaves_early_is_not_dialled_for() {
    assert_eq!(
        node().visitor_closed(),
        Verdict::Refuse(Breach::Incomplete.into())
    );
    let mut visitor = node();
    assert_eq!(visitor.from_visitor(&request()[..100]), Verdict::Wait);
    assert_eq!(
        visitor.visitor_closed(),
        Verdict::Refuse(Breach::Incomplete.into())
    );
    let mut visitor = node();
    assert_eq!(visitor.from_visitor(&request()), Verdict::Pass);
    assert_eq!(visitor.visitor_closed(), Verdict::Pass);
    for protocol in [
        Protocol::TahoeHttps,
        Protocol::Https,
        Protocol::Http,
        Protocol::Websocket,
    ] {
        let mut other = gate(protocol, "kite.test");
        assert_eq!(other.from_visitor(b""), Verdict::Wait);
        assert_eq!(
            other.visitor_closed(),
            Verdict::Refuse(PolicyError::Incomplete)
        );
    }
    assert_eq!(
        gate(Protocol::Raw, "kite.test").visitor_closed(),
        Verdict::Pass
    );
}

#[test]
fn tls_kites_take_hellos_only() {
    let named = recorded("pagekite/06-tls-sni-passthrough.visitor.jsonl", "v2f", 0);
    let nameless = tahoe("gbs-client-to-node-data", "c2s");
    let open = |protocol, kite: &str, flight: &[u8]| {
        let mut gate = gate(protocol, kite);
        let verdict = gate.from_visitor(flight);
        assert_eq!(gate.is_open(), verdict == Verdict::Pass);
        verdict
    };
    assert_eq!(open(Protocol::Https, "kite.test", &named), Verdict::Pass);
    assert_eq!(open(Protocol::Https, "*.test", &named), Verdict::Pass);
    assert_eq!(
        open(Protocol::Https, "eve.test", &named),
        Verdict::Refuse(PolicyError::OtherServerName)
    );
    assert_eq!(
        open(Protocol::TahoeHttps, "eve.test", &named),
        Verdict::Pass
    );
    assert_eq!(
        open(Protocol::TahoeHttps, "bob.example", &nameless),
        Verdict::Pass
    );
    let https = || gate(Protocol::Https, "bob.example");
    assert_eq!(never_dialled(https, &nameless), PolicyError::NoServerName);
    for protocol in [Protocol::Https, Protocol::TahoeHttps] {
        let new = || gate(protocol, "bob.example");
        let web = tahoe("webui-get-root", "c2s");
        assert_eq!(never_dialled(new, &web), PolicyError::ExpectedTls);
        assert_eq!(never_dialled(new, &request()), PolicyError::ExpectedTls);
        let bad = never_dialled(new, &[0x16, 3, 1, 0, 0]);
        assert!(matches!(bad, PolicyError::Opening(Refusal::BadTls(_))));
        assert_eq!(
            never_dialled(new, b"\x80\x2e\x01"),
            Refusal::NotHttpNorTls.into()
        );
    }
}

#[test]
fn xmpp_and_minecraft_kites_take_visitors_for_their_name_only() {
    let visitor = |c| recorded("pagekite/26-other-protocols.visitor.jsonl", "v2f", c);
    for (protocol, kite, flight, other) in [
        (Protocol::Xmpp, "xm.test", visitor(1), visitor(2)),
        (Protocol::Minecraft, "mc.test", visitor(2), visitor(1)),
    ] {
        let mut open = gate(protocol, kite);
        assert_eq!(open.from_visitor(&flight), Verdict::Pass);
        assert!(open.is_open());
        assert_eq!(
            gate(protocol, "*.test").from_visitor(&flight),
            Verdict::Pass
        );
        let eve = || gate(protocol, "eve.test");
        assert_eq!(never_dialled(eve, &flight), PolicyError::OtherServer);
        let wrong = never_dialled(|| gate(protocol, kite), &other);
        assert!(matches!(
            wrong,
            PolicyError::Opening(Refusal::BadOpening(_))
        ));
    }
}

#[test]
fn the_catch_all_takes_visitors_for_any_name() {
    let get = b"GET / HTTP/1.1\r\nHost: any.example\r\n\r\n";
    let mut all = gate(Protocol::Http, "unknown");
    assert_eq!(all.from_visitor(get), Verdict::Pass);
    let hello = recorded("pagekite/06-tls-sni-passthrough.visitor.jsonl", "v2f", 0);
    assert_eq!(
        gate(Protocol::Https, "unknown").from_visitor(&hello),
        Verdict::Pass
    );
}

#[test]
fn http_kites_take_requests_for_their_name_only() {
    let kite = "bob.example";
    let get = |host: &str| format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n").into_bytes();
    let ws =
        b"GET / HTTP/1.1\r\nHost: bob.example\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n";
    let mut http = gate(Protocol::Http, kite);
    assert_eq!(
        http.from_visitor(&[&get("Bob.example.:80")[..], b"body"].concat()),
        Verdict::Pass
    );
    assert!(http.is_open());
    assert_eq!(http.from_visitor(b"\0anything"), Verdict::Pass);
    assert_eq!(http.from_origin(b"\0anything"), Verdict::Pass);
    assert_eq!(gate(Protocol::Http, kite).from_visitor(ws), Verdict::Pass);
    assert_eq!(
        gate(Protocol::Http, kite).from_visitor(&get("0x7f000001--bob.example")),
        Verdict::Pass
    );
    assert_eq!(
        gate(Protocol::Websocket, kite).from_visitor(ws),
        Verdict::Pass
    );
    let websocket = || gate(Protocol::Websocket, kite);
    assert_eq!(
        never_dialled(websocket, &get(kite)),
        PolicyError::NotWebsocket
    );
    for protocol in [Protocol::Http, Protocol::Websocket] {
        let new = || gate(protocol, kite);
        let other = [&b"GET / HTTP/1.1\r\nHost: eve.example\r\n"[..], &ws[35..]].concat();
        assert_eq!(never_dialled(new, &other), PolicyError::OtherHost);
        let tunnel = b"CONNECT PageKite:1 HTTP/1.0\r\nHost: bob.example\r\n\r\n";
        assert_eq!(never_dialled(new, tunnel), PolicyError::ForFrontend);
        let connect = b"CONNECT bob.example:22 HTTP/1.0\r\nHost: bob.example\r\n\r\n";
        assert_eq!(never_dialled(new, connect), PolicyError::ForFrontend);
        let hello = tahoe("gbs-first-version-request", "c2s");
        assert_eq!(never_dialled(new, &hello), PolicyError::ExpectedHttp);
    }
}
