//! The handshake: our backend against recorded frontends, and against our own.

use std::collections::VecDeque;

use bytes::BytesMut;
use kite::kite::Secret;
use kite::wire::frame::{put_data, put_kites, put_ping};
use kite::wire::handshake::{
    ADD_KITES, Check, FORBIDDEN, KITE_BESIDE, KITE_MUX, KITE_PROOF, KITE_TLS, MAX_HEAD, MuxParams,
    Options, Proof, ProofPolicy, RefusalKind, Request, UNAVAILABLE, Wanted, check, parse_answer,
    put_answer,
};
use kite::wire::lines::MAX_LINES;
use kite::wire::proof::{self, Prover};
use kite::wire::{
    BackendHandshake, Binding, Control, Decoder, Frame, HandshakeError, KiteId, Limits, Lines,
    PingText, ServiceLine, Sid, Step, Verdict, sign,
};

use crate::transcripts::{Connection, connection};

const NOW: u64 = 1_700_000_000;
const PROCESS_SECRET: &[u8] = b"the frontend's own";

fn wanted(proto: &str, name: &str, secret: &str, bsalt: &str) -> Wanted {
    Wanted {
        proto: proto.to_owned(),
        name: name.parse().unwrap(),
        secret: Secret::new(secret.as_bytes()).unwrap(),
        bsalt: bsalt.to_owned(),
        end_tls: false,
        by: Default::default(),
    }
}

/// The service lines of all frames in `bytes`.
fn services_in_frames(bytes: &[u8]) -> Vec<ServiceLine> {
    let (mut buf, mut decoder) = (BytesMut::from(bytes), Decoder::new(Limits::ESTABLISHED));
    let mut services = Vec::new();
    while let Some(frame) = decoder.decode(&mut buf).unwrap() {
        if let Frame::Control(Control {
            kites: Some(lines), ..
        }) = frame
        {
            services.extend(lines.services);
        }
    }
    services
}

fn split_head(bytes: &[u8]) -> (&[u8], &[u8]) {
    let end = bytes.windows(4).position(|w| w == b"\r\n\r\n").unwrap() + 4;
    bytes.split_at(end)
}

/// What a recorded backend sent: its first service lines, and those of the second
/// round, which is in a frame of the same connection or in the head of another.
struct Recorded {
    first: Vec<ServiceLine>,
    second: Vec<ServiceLine>,
}

impl Recorded {
    fn of(first: &Connection, second: Option<&Connection>) -> Self {
        let (head, frames) = split_head(&first.b2f);
        let in_head = |head| Request::parse(head).unwrap().lines.services;
        let second = match second {
            Some(connection) => in_head(split_head(&connection.b2f).0),
            None => services_in_frames(frames),
        };
        Self {
            first: in_head(head),
            second,
        }
    }

    /// Our backend with the recorded one's kites, salts and tokens.
    fn machine(&self, secret: &str) -> (BackendHandshake, BytesMut) {
        let wanted = self
            .first
            .iter()
            .map(|s| wanted(&s.proto, &s.name, secret, &s.bsalt))
            .collect();
        let lines = self.first.iter().chain(&self.second);
        let mut tokens: VecDeque<String> =
            lines.map(|line| line.signature[..8].to_owned()).collect();
        BackendHandshake::new(wanted, Options::default(), move || {
            tokens.pop_front().unwrap()
        })
    }
}

/// Feeds `bytes` in pieces of `size`; returns the first step that is not
/// `NeedMore`, and leaves in `bytes` what had not been fed yet.
fn feed(
    machine: &mut BackendHandshake,
    buf: &mut BytesMut,
    bytes: &mut &[u8],
    size: usize,
) -> Step {
    loop {
        match machine.step(buf).unwrap() {
            Step::NeedMore => {
                assert!(!bytes.is_empty(), "no verdict");
                let (piece, rest) = bytes.split_at(size.min(bytes.len()));
                buf.extend_from_slice(piece);
                *bytes = rest;
            }
            step => return step,
        }
    }
}

/// Replays a frontend that challenges inside the tunnel; returns the verdict and
/// what follows it.
fn replay_in_tunnel(connection: &Connection, secret: &str, size: usize) -> (Verdict, Vec<u8>) {
    let recorded = Recorded::of(connection, None);
    let (mut machine, request) = recorded.machine(secret);
    assert_eq!(
        Request::parse(&request).unwrap().lines.services,
        recorded.first
    );
    let (mut buf, mut bytes) = (BytesMut::new(), &connection.f2b[..]);
    let Step::Send(answer) = feed(&mut machine, &mut buf, &mut bytes, size) else {
        panic!("no answer to the challenge");
    };
    assert_eq!(services_in_frames(&answer), recorded.second);
    let Step::Done(verdict) = feed(&mut machine, &mut buf, &mut bytes, size) else {
        panic!("no verdict");
    };
    assert_eq!(machine.step(&mut buf).unwrap_err(), HandshakeError::Over);
    (*verdict, [&buf, bytes].concat())
}

fn names(kites: &[KiteId]) -> Vec<String> {
    kites
        .iter()
        .map(|kite| format!("{}:{}", kite.proto, kite.name))
        .collect()
}

#[test]
fn a_challenge_inside_the_tunnel_is_answered_as_recorded() {
    let tunnel = connection("01-handshake-addkites-get", 2);
    for size in [1, 7, usize::MAX] {
        let (verdict, rest) = replay_in_tunnel(&tunnel, "s3cret-for-tests", size);
        assert_eq!(names(&verdict.flying), ["http:kite.test"]);
        assert!(verdict.refused.is_empty() && verdict.challenged && verdict.tls_ended.is_empty());
        // The name of the verdict frame, not the one of the head.
        assert_eq!(
            verdict.session_id.as_deref(),
            Some("6b0439d9:db77e9286e3276de774e8973e7a40bd263aed55e")
        );
        assert_eq!(verdict.peer.ports, ["18080"]);
        assert_eq!(verdict.peer.protos.len(), 9);
        assert_eq!((verdict.peer.kite_mux, verdict.motd), (None, None));
        assert!(
            rest.starts_with(b"8eZ78\r\n"),
            "the frames behind the verdict are untouched"
        );
    }
}

#[test]
fn a_wrong_secret_is_refused() {
    let tunnel = connection("08-rejected-bad-secret", 2);
    let (verdict, rest) = replay_in_tunnel(&tunnel, "wrong-secret", 5);
    assert!(verdict.flying.is_empty() && rest.is_empty() && !verdict.challenged);
    assert_eq!(verdict.refused[0].why, RefusalKind::Signature);
}

#[test]
fn a_kite_in_other_hands_is_a_duplicate() {
    let tunnel = connection("09-duplicate-kite", 5);
    let (verdict, _) = replay_in_tunnel(&tunnel, "s3cret-for-tests", 5);
    assert_eq!(verdict.refused[0].why, RefusalKind::Duplicate);
}

#[test]
fn some_kites_may_fly_and_others_not() {
    let tunnel = connection("23-authapp-quota-motd", 2);
    let (verdict, _) = replay_in_tunnel(&tunnel, "s3cret-for-tests", 100);
    assert_eq!(names(&verdict.flying), ["http:kite.test"]);
    assert_eq!(verdict.refused.len(), 1);
    assert_eq!(
        (verdict.refused[0].id.name.as_str(), &verdict.refused[0].why),
        ("broke.test", &RefusalKind::Quota)
    );
    assert_eq!(verdict.motd.as_deref(), Some("Hello & welcome"));
    assert_eq!(
        (verdict.quota, verdict.qdays, verdict.qconns),
        (Some(12_345), Some(30), Some(7))
    );
    assert_eq!(verdict.peer.raw_ports, ["virtual"]);
}

#[test]
fn a_frontend_that_ends_tls_is_noticed() {
    let (verdict, _) = replay_in_tunnel(&connection("18-tls-endpoint", 2), "s3cret-for-tests", 100);
    assert_eq!(verdict.tls_ended, verdict.flying);
}

#[test]
fn an_unchallenged_ok_is_taken_and_marked() {
    let tunnel = connection("02-handshake-no-challenge", 2);
    let (mut machine, _) = Recorded::of(&tunnel, None).machine("s3cret-for-tests");
    let (mut buf, mut bytes) = (BytesMut::new(), &tunnel.f2b[..]);
    let Step::Done(verdict) = feed(&mut machine, &mut buf, &mut bytes, usize::MAX) else {
        panic!("no verdict");
    };
    assert_eq!(names(&verdict.flying), ["http:kite.test"]);
    assert!(!verdict.challenged);
    assert_eq!(verdict.session_id.as_deref(), Some("stub-1"));
    assert!(buf.starts_with(b"89\r\nSID: 7\r\n"));
}

/// All recorded frontends are able to challenge inside the tunnel, though some
/// backends did not use it; so the word is taken out of their answers here.
#[test]
fn a_challenge_by_reconnecting_is_answered_as_recorded() {
    for (name, first, second) in [("11-compression-declined", 2, 3), ("30-libpagekite", 1, 2)] {
        let (first, second) = (connection(name, first), connection(name, second));
        let recorded = Recorded::of(&first, Some(&second));
        let (mut machine, _) = recorded.machine("s3cret-for-tests");
        let answer = String::from_utf8(first.f2b)
            .unwrap()
            .replace("X-PageKite-Features: AddKites\r\n", "");
        let (mut buf, mut bytes) = (BytesMut::new(), answer.as_bytes());
        let Step::Redial(request) = feed(&mut machine, &mut buf, &mut bytes, 9) else {
            panic!("{name}: no second request");
        };
        let ours = Request::parse(&request).unwrap().lines;
        let theirs = Request::parse(split_head(&second.b2f).0).unwrap().lines;
        assert_eq!(
            (ours.services, ours.replace),
            (theirs.services, theirs.replace),
            "{name}"
        );

        let (mut buf, mut bytes) = (BytesMut::new(), &second.f2b[..]);
        let Step::Done(verdict) = feed(&mut machine, &mut buf, &mut bytes, 9) else {
            panic!("{name}: no verdict");
        };
        assert_eq!(names(&verdict.flying), ["http:kite.test"]);
        assert!(verdict.challenged && verdict.refused.is_empty());
    }
}

/// Our own frontend's judgement on a request, as an answer or a verdict.
fn judge(services: &[ServiceLine], secret: &str, now: u64) -> Lines {
    let mut lines = Lines {
        session_id: Some(format!("session-{now}")),
        ..Lines::default()
    };
    for service in services {
        let id = service.kite_id();
        match check(service, secret.as_bytes(), PROCESS_SECRET, now, None) {
            Check::Good => lines.ok.push(id),
            Check::NeedsChallenge => {
                lines
                    .sign_this
                    .push((id, service.challenge(PROCESS_SECRET, "0badcafe", now)));
            }
            Check::StaleChallenge => lines.invalid.push((id, Some("unauthorized".to_owned()))),
            Check::BadSignature => lines.invalid.push((id, Some("signature".to_owned()))),
        }
    }
    lines
}

fn answer(lines: &Lines) -> BytesMut {
    let mut out = BytesMut::new();
    put_answer(&mut out, lines);
    out
}

fn ours(options: Options, kites: &[(&str, &str, &str)]) -> (BackendHandshake, BytesMut) {
    let wanted = kites
        .iter()
        .map(|(proto, name, secret)| wanted(proto, name, secret, "5a17"))
        .collect();
    BackendHandshake::new(wanted, options, || "deadbeef".to_owned())
}

#[test]
fn our_backend_and_our_frontend_agree_in_the_tunnel() {
    let options = Options {
        offer_mux: true,
        window_kb: 512,
        frame: 16_384,
        replace: Some("old-1".into()),
        offer_beside: true,
        beside: vec!["other-2".into()],
        retire: Some("old-3".into()),
        ..Options::default()
    };
    let kites = [
        ("https", "*.alice.test", "one"),
        ("raw-22", "alice.test", "other"),
    ];
    let (mut machine, request) = ours(options, &kites);
    let request = Request::parse(&request).unwrap().lines;
    assert!(request.has_feature(ADD_KITES) && !request.has_feature("ZChunks"));
    assert_eq!(
        request.mux(),
        Some(MuxParams {
            window_kb: 512,
            frame: 16_384
        })
    );
    assert_eq!(
        (request.version, request.replace.as_deref()),
        (None, Some("old-1"))
    );
    assert!(request.features.iter().any(|word| word == KITE_BESIDE));
    assert_eq!(request.beside, ["other-2"]);
    assert_eq!(request.retire.as_deref(), Some("old-3"));

    let mut head = judge(&request.services, "one", NOW);
    head.features = vec![ADD_KITES.into(), KITE_MUX.into()];
    (head.window_kb, head.frame) = (Some(1024), Some(65_536));
    let mut buf = answer(&head);
    let Step::Send(sent) = machine.step(&mut buf).unwrap() else {
        panic!("no answer to the challenge")
    };

    // What comes before the verdict does no harm, wherever it is cut.
    put_ping(&mut buf, &PingText::new(b"now?"));
    put_data(&mut buf, Sid::new(5).unwrap(), b"too early");
    put_kites(
        &mut buf,
        &Lines {
            motd: Some("wait".into()),
            ..Lines::default()
        },
    );
    let verdict = judge(&services_in_frames(&sent), "one", NOW + 900);
    put_kites(&mut buf, &verdict);
    put_data(&mut buf, Sid::new(6).unwrap(), b"first");
    let (mut fed, mut bytes) = (BytesMut::new(), &buf[..]);
    let Step::Done(verdict) = feed(&mut machine, &mut fed, &mut bytes, 3) else {
        panic!("no verdict")
    };
    assert_eq!(names(&verdict.flying), ["https:*.alice.test"]);
    assert_eq!(verdict.refused[0].why, RefusalKind::Signature);
    assert_eq!(verdict.session_id, Some(format!("session-{}", NOW + 900)));
    assert_eq!(verdict.motd.as_deref(), Some("wait"));
    assert_eq!(
        verdict.peer.kite_mux,
        Some(MuxParams {
            window_kb: 1024,
            frame: 65_536
        })
    );
    assert_eq!([&fed, bytes].concat(), b"f\r\nSID: 6\r\n\r\nfirst"[..]);
}

#[test]
fn the_extension_is_off_unless_both_say_so() {
    let mut head = Lines {
        features: vec![KITE_MUX.into()],
        window_kb: Some(64),
        frame: Some(4096),
        ..Lines::default()
    };
    for (offered, said, expected) in [
        (true, true, true),
        (true, false, false),
        (false, true, false),
    ] {
        let options = Options {
            offer_mux: offered,
            window_kb: 64,
            frame: 4096,
            ..Options::default()
        };
        let (mut machine, request) = ours(options, &[("http", "a.test", "s")]);
        assert_eq!(
            Request::parse(&request).unwrap().lines.mux().is_some(),
            offered
        );
        head.features = if said {
            vec![KITE_MUX.into()]
        } else {
            vec!["KiteMux12".into()]
        };
        let Step::Done(verdict) = machine.step(&mut answer(&head)).unwrap() else {
            panic!("no verdict")
        };
        assert_eq!(verdict.peer.kite_mux.is_some(), expected);
        // It did not mention the kite at all.
        assert_eq!(verdict.refused[0].why, RefusalKind::Other(String::new()));
    }
}

#[test]
fn a_refusal_in_the_head_does_not_stop_the_other_kites() {
    let (mut machine, request) = ours(
        Options::default(),
        &[("raw-99", "a.test", "s"), ("http", "a.test", "s")],
    );
    let services = Request::parse(&request).unwrap().lines.services;
    let mut head = judge(&services[1..], "s", NOW);
    head.invalid
        .push((services[0].kite_id(), Some("port".into())));
    // By reconnecting …
    let Step::Redial(request) = machine.step(&mut answer(&head)).unwrap() else {
        panic!("no second request")
    };
    let again = Request::parse(&request).unwrap().lines.services;
    assert_eq!(again.len(), 1, "what was refused is not asked for again");
    let Step::Done(verdict) = machine.step(&mut answer(&judge(&again, "s", NOW))).unwrap() else {
        panic!()
    };
    assert_eq!(names(&verdict.flying), ["http:a.test"]);
    assert_eq!(verdict.refused[0].why, RefusalKind::Port);

    // … and in the tunnel, where what flies already must not be asked for again.
    let (mut machine, _) = ours(
        Options::default(),
        &[
            ("raw-99", "a.test", "s"),
            ("http", "a.test", "s"),
            ("http", "b.test", "s"),
        ],
    );
    let mut head = judge(&services[1..], "s", NOW);
    head.ok.push(services[0].kite_id());
    head.features.push(ADD_KITES.into());
    let mut buf = answer(&head);
    let Step::Send(sent) = machine.step(&mut buf).unwrap() else {
        panic!()
    };
    let signed = services_in_frames(&sent);
    assert_eq!(signed.len(), 1);
    put_kites(&mut buf, &judge(&signed, "s", NOW));
    let Step::Done(verdict) = machine.step(&mut buf).unwrap() else {
        panic!()
    };
    assert_eq!(verdict.flying.len(), 2);
    assert!(!verdict.challenged, "one of them was not");
    // The frontend never mentioned it.
    assert_eq!(names(&[verdict.refused[0].id.clone()]), ["http:b.test"]);
}

#[test]
fn a_second_challenge_ends_it() {
    let (mut machine, request) = ours(Options::default(), &[("http", "a.test", "s")]);
    let head = judge(&Request::parse(&request).unwrap().lines.services, "s", NOW);
    let Step::Redial(_) = machine.step(&mut answer(&head)).unwrap() else {
        panic!()
    };
    let Step::Done(verdict) = machine.step(&mut answer(&head)).unwrap() else {
        panic!()
    };
    assert_eq!(verdict.refused[0].why, RefusalKind::Unauthorized);
}

#[test]
fn verdicts_on_kites_that_nobody_asked_for_do_not_count() {
    let (mut machine, _) = ours(Options::default(), &[("http", "a.test", "s")]);
    let other = |bsalt: &str| KiteId {
        proto: "http".into(),
        name: "a.test".into(),
        bsalt: bsalt.into(),
    };
    let head = Lines {
        ok: vec![other("another-tunnel")],
        ..Lines::default()
    };
    let Step::Done(verdict) = machine.step(&mut answer(&head)).unwrap() else {
        panic!()
    };
    assert!(verdict.flying.is_empty());
}

#[test]
fn the_frontend_judges_challenge_and_signature() {
    let kite = KiteId {
        proto: "http".into(),
        name: "a.test".into(),
        bsalt: "b".into(),
    };
    let signed = |fsalt: &str, secret: &[u8]| ServiceLine::signed(&kite, fsalt, secret, "deadbeef");
    let judge = |line: &ServiceLine, now| check(line, b"s", PROCESS_SECRET, now, None);

    let first = signed("", b"wrong");
    assert_eq!(
        judge(&first, NOW),
        Check::NeedsChallenge,
        "its signature does not matter yet"
    );
    let fsalt = first.challenge(PROCESS_SECRET, "0badcafe", NOW);
    assert!(fsalt.len() == 36 && fsalt.starts_with('t'));

    let good = signed(&fsalt, b"s");
    assert_eq!(judge(&good, NOW), Check::Good);
    assert_eq!(judge(&good, NOW + 599), Check::Good);
    assert_eq!(judge(&good, NOW + 1200), Check::StaleChallenge);
    assert_eq!(judge(&signed(&fsalt, b"wrong"), NOW), Check::BadSignature);
    let mut short = good.clone();
    short.signature.truncate(30);
    assert_eq!(judge(&short, NOW), Check::BadSignature);
    // A backend may date its signature as well (protocol page §4).
    let mut dated = good.clone();
    dated.signature = sign::sign_dated(b"s", &good.payload(), "deadbeef", NOW);
    assert_eq!(judge(&dated, NOW), Check::Good);

    // A challenge for another kite, of another process, or without a date.
    let mut moved = kite.clone();
    moved.name = "b.test".into();
    assert_eq!(
        judge(&ServiceLine::signed(&moved, &fsalt, b"s", "deadbeef"), NOW),
        Check::StaleChallenge
    );
    let foreign = first.challenge(b"another process", "0badcafe", NOW);
    assert_eq!(judge(&signed(&foreign, b"s"), NOW), Check::StaleChallenge);
    let undated = sign::sign(PROCESS_SECRET, &first.challenge_payload(), "0badcafe");
    assert_eq!(judge(&signed(&undated, b"s"), NOW), Check::StaleChallenge);
}

#[test]
fn requests_are_understood_in_all_their_spellings() {
    let parse = |text: &str| Request::parse(text.as_bytes());
    let line = "X-PageKite: HTTP:Kite.Test:b::s";
    for start in [
        "CONNECT PageKite:1 HTTP/1.0",
        "CONNECT pagekite:anything HTTP/1.1",
    ] {
        for end in ["\r\n", "\n"] {
            let text = format!(
                "{start}{end}x-pagekite-FEATURES:AddKites{end}Other: x{end}{line}{end}{end}"
            );
            let lines = parse(&text).unwrap().lines;
            assert!(lines.has_feature(ADD_KITES));
            assert_eq!(lines.services[0].kite_id().to_string(), "http:kite.test:b");
        }
    }
    for bad in [
        &format!("CONNECT PageKite:1 HTTP/1.0\r\n{line}\r\n"),
        &format!("CONNECT PageKite:1 HTTP/1.0\r\n{line}\r\n\r\nmore"),
        &format!("CONNECT PageKite:1 HTTP/2.0\r\n{line}\r\n\r\n"),
        &format!("CONNECT PageKite HTTP/1.0\r\n{line}\r\n\r\n"),
        &format!("CONNECT PageKite:1 HTTP/1.0 x\r\n{line}\r\n\r\n"),
        &format!("GET PageKite:1 HTTP/1.0\r\n{line}\r\n\r\n"),
        "CONNECT PageKite:1 HTTP/1.0\r\n\r\n",
        "CONNECT PageKite:1 HTTP/1.0\r\nX-Beanstalk: http:k:b::s\r\n\r\n",
        "CONNECT PageKite:1 HTTP/1.0\r\nno colon\r\n\r\n",
        "",
    ] {
        assert!(
            matches!(parse(bad), Err(HandshakeError::Malformed(_))),
            "{bad}"
        );
    }
    let four_fields = "CONNECT PageKite:1 HTTP/1.0\r\nX-PageKite: http:k:b:s\r\n\r\n";
    assert!(matches!(parse(four_fields), Err(HandshakeError::Lines(_))));
    let many = format!(
        "CONNECT PageKite:1 HTTP/1.0\r\n{}\r\n",
        format!("{line}\r\n").repeat(MAX_LINES + 1)
    );
    assert!(matches!(parse(&many), Err(HandshakeError::Lines(_))));
    let long = format!(
        "CONNECT PageKite:1 HTTP/1.0\r\n{line}\r\nX: {}\r\n\r\n",
        "x".repeat(MAX_HEAD)
    );
    assert_eq!(parse(&long), Err(HandshakeError::HeadTooLong));
}

#[test]
fn answers_say_what_is_wrong() {
    let parse = |bytes: &[u8]| parse_answer(&mut BytesMut::from(bytes));
    assert_eq!(
        parse(FORBIDDEN),
        Err(HandshakeError::Refused { status: 403 })
    );
    assert_eq!(
        parse(UNAVAILABLE),
        Err(HandshakeError::Refused { status: 503 })
    );
    assert!(
        HandshakeError::Refused { status: 403 }
            .to_string()
            .contains("403")
    );
    // A TLS alert, say, is not waited for.
    assert!(matches!(parse(b"\x15"), Err(HandshakeError::Malformed(_))));
    for bad in [
        "HTTP/1.1\r\n\r\n",
        "HTTP/1.1 2x0 OK\r\n\r\n",
        "HTTP/1.1 00200 OK\r\n\r\n",
        "HTTP/1.1 200 OK\r\nx\r\n\r\n",
    ] {
        assert!(
            matches!(parse(bad.as_bytes()), Err(HandshakeError::Malformed(_))),
            "{bad}"
        );
    }
    assert_eq!(parse(b"HTTP/1.0 200 OK\n\n"), Ok(Some(Lines::default())));

    let endless = format!("HTTP/1.1 200 OK\r\nX: {}", "x".repeat(MAX_HEAD));
    assert_eq!(parse(endless.as_bytes()), Err(HandshakeError::HeadTooLong));
    assert_eq!(
        parse(format!("{endless}\r\n\r\n").as_bytes()),
        Err(HandshakeError::HeadTooLong)
    );

    // Every prefix is merely not enough, and nothing is taken.
    let whole = b"HTTP/1.1 200 OK\r\nX-PageKite-SessionID: 1\r\n\r\n";
    for cut in 0..whole.len() {
        let mut buf = BytesMut::from(&whole[..cut]);
        assert_eq!(parse_answer(&mut buf), Ok(None));
        assert_eq!(buf.len(), cut);
    }
}

#[test]
fn before_the_verdict_a_frontend_is_on_a_short_leash() {
    for bytes in [&b"100000\r\n"[..], b"8eZ78\r\n", b"0\r\n"] {
        let (mut machine, request) = ours(Options::default(), &[("http", "a.test", "s")]);
        let mut head = judge(&Request::parse(&request).unwrap().lines.services, "s", NOW);
        head.features.push(ADD_KITES.into());
        let mut buf = answer(&head);
        let Step::Send(_) = machine.step(&mut buf).unwrap() else {
            panic!()
        };
        buf.extend_from_slice(bytes);
        assert!(matches!(
            machine.step(&mut buf),
            Err(HandshakeError::Frame(_))
        ));
    }
}

#[test]
fn sixty_four_kites_fit_into_one_handshake() {
    let kites: Vec<_> = (0..64)
        .map(|n| {
            wanted(
                "https",
                &format!("storage-node-{n}.alice.example"),
                "s",
                &"5".repeat(36),
            )
        })
        .collect();
    let (mut machine, request) =
        BackendHandshake::new(kites, Options::default(), || "deadbeef".into());
    let mut head = judge(&Request::parse(&request).unwrap().lines.services, "s", NOW);
    head.features.push(ADD_KITES.into());
    let mut buf = answer(&head);
    let Step::Send(sent) = machine.step(&mut buf).unwrap() else {
        panic!()
    };
    // An unproven peer's limits suffice for it.
    let mut decoder = Decoder::new(Limits::UNPROVEN);
    assert!(matches!(
        decoder.decode(&mut BytesMut::from(&sent[..])),
        Ok(Some(Frame::Control(_)))
    ));
    put_kites(&mut buf, &judge(&services_in_frames(&sent), "s", NOW));
    let Step::Done(verdict) = machine.step(&mut buf).unwrap() else {
        panic!()
    };
    assert_eq!(verdict.flying.len(), 64);
}

#[test]
fn a_backend_says_whose_tls_may_be_ended() {
    let (mut web, node) = (
        wanted("http", "web.test", "s", &"1".repeat(36)),
        wanted("http", "node.test", "s", &"2".repeat(36)),
    );
    web.end_tls = true;
    let (_, request) =
        BackendHandshake::new(vec![node, web], Options::default(), || "deadbeef".into());
    let asked = Request::parse(&request).unwrap().lines;
    assert!(asked.has_feature(KITE_TLS));
    assert_eq!(asked.end_tls, [asked.services[1].kite_id()]);
    // What is given up does not fly, and is refused by ourselves.
    let (flies, gone) = (asked.services[0].kite_id(), asked.services[1].kite_id());
    let mut verdict = Verdict {
        flying: vec![flies.clone(), gone.clone()],
        tls_ended: vec![gone.clone()],
        ..Verdict::default()
    };
    verdict.give_up(&gone, RefusalKind::TlsEnded);
    assert_eq!((verdict.flying, verdict.tls_ended), (vec![flies], vec![]));
    assert_eq!(verdict.refused[0].why, RefusalKind::TlsEnded);
}

/// Our own frontend's judgement where proofs are agreed.
fn judge_bound(services: &[ServiceLine], secret: &str, binding: &Binding) -> Lines {
    let mut lines = Lines::default();
    for service in services {
        let (id, secret) = (service.kite_id(), secret.as_bytes());
        match check(service, secret, PROCESS_SECRET, NOW, Some(binding)) {
            Check::Good => {
                let proof = proof::prove(secret, Prover::Frontend, &id, &service.fsalt, binding);
                lines.proofs.push((id.clone(), Proof(proof.unwrap())));
                lines.ok.push(id);
            }
            Check::NeedsChallenge => {
                lines.features = vec![ADD_KITES.into(), KITE_PROOF.into()];
                let fsalt = service.challenge(PROCESS_SECRET, "0badcafe", NOW);
                lines.sign_this.push((id, fsalt));
            }
            Check::StaleChallenge | Check::BadSignature => lines.invalid.push((id, None)),
        }
    }
    lines
}

fn demanding(binding: &Binding) -> Options {
    Options {
        proof: ProofPolicy::Demand(binding.clone()),
        ..Options::default()
    }
}

#[test]
fn two_kites_prove_themselves_to_each_other() {
    let binding = Binding::Tls([7; 32]);
    // Sixty-four of them, with their proofs, in one frame each way.
    let names: Vec<String> = (0..64)
        .map(|n| format!("storage-node-{n}.a-longer-name.alice.example"))
        .collect();
    let kites = names
        .iter()
        .map(|name| wanted("https", name, "s", &"5".repeat(36)))
        .collect();
    let (mut machine, request) =
        BackendHandshake::new(kites, demanding(&binding), || "deadbeef".into());
    let asked = Request::parse(&request).unwrap().lines;
    assert!(asked.has_proof());
    for line in &asked.services {
        assert_eq!(line.signature, "deadbeef".repeat(5)[..36], "only a filler");
    }
    let mut buf = answer(&judge_bound(&asked.services, "s", &binding));
    let Step::Send(sent) = machine.step(&mut buf).unwrap() else {
        panic!("no proof")
    };
    let mut decoder = Decoder::new(Limits::UNPROVEN);
    assert!(decoder.decode(&mut sent.clone()).unwrap().is_some());
    let proven = services_in_frames(&sent);
    // The proof is no signature for one who asks for that, and the other way round.
    for line in &proven {
        let old = check(line, b"s", PROCESS_SECRET, NOW, None);
        assert_eq!(old, Check::BadSignature);
        let signed = ServiceLine::signed(&line.kite_id(), &line.fsalt, b"s", "deadbeef");
        let new = check(&signed, b"s", PROCESS_SECRET, NOW, Some(&binding));
        assert_eq!(new, Check::BadSignature);
    }
    put_kites(&mut buf, &judge_bound(&proven, "s", &binding));
    let Step::Done(verdict) = machine.step(&mut buf).unwrap() else {
        panic!("no verdict")
    };
    assert_eq!(verdict.flying.len(), 64);
    assert!(verdict.proven && verdict.challenged);
}

#[test]
fn an_ok_without_its_proof_ends_the_handshake() {
    let binding = Binding::Tls([7; 32]);
    type Spoil = fn(&mut Lines);
    let spoils: [Spoil; 4] = [
        |lines| lines.proofs.clear(),
        |lines| lines.proofs[0].1.0.replace_range(..1, "*"),
        |lines| lines.proofs[0].0.name = "b.test".into(),
        |lines| {
            let ours = lines.proofs[1].1.clone();
            lines.proofs[0].1 = ours;
        },
    ];
    for spoil in spoils {
        let two = [("http", "a.test", "s"), ("http", "c.test", "s")];
        let (mut machine, request) = ours(demanding(&binding), &two);
        let asked = Request::parse(&request).unwrap().lines;
        let mut buf = answer(&judge_bound(&asked.services, "s", &binding));
        let Step::Send(sent) = machine.step(&mut buf).unwrap() else {
            panic!("no proof")
        };
        let mut verdict = judge_bound(&services_in_frames(&sent), "s", &binding);
        spoil(&mut verdict);
        put_kites(&mut buf, &verdict);
        assert_eq!(
            machine.step(&mut buf).unwrap_err(),
            HandshakeError::BadProof("http:a.test".into())
        );
    }
    // A refusal needs no proof.
    let (mut machine, request) = ours(demanding(&binding), &[("http", "a.test", "s")]);
    let asked = Request::parse(&request).unwrap().lines;
    let mut buf = answer(&judge_bound(&asked.services, "s", &binding));
    let Step::Send(sent) = machine.step(&mut buf).unwrap() else {
        panic!("no proof")
    };
    let other = judge_bound(&services_in_frames(&sent), "another", &binding);
    put_kites(&mut buf, &other);
    let Step::Done(verdict) = machine.step(&mut buf).unwrap() else {
        panic!("no verdict")
    };
    assert!(verdict.flying.is_empty() && verdict.refused.len() == 1 && !verdict.proven);
}

#[test]
fn the_proof_is_demanded_or_offered_or_neither() {
    let binding = Binding::Tls([7; 32]);
    let kites = [("http", "a.test", "s")];
    // An old frontend: in the tunnel, and by reconnecting.
    for features in [
        vec![ADD_KITES.to_owned()],
        vec![],
        vec![KITE_PROOF.to_owned()],
    ] {
        let in_tunnel = features.iter().any(|f| f == ADD_KITES);
        let old = |request: &[u8]| {
            let asked = Request::parse(request).unwrap().lines;
            let mut head = judge(&asked.services, "s", NOW);
            head.features.clone_from(&features);
            answer(&head)
        };
        let (mut machine, request) = ours(demanding(&binding), &kites);
        assert_eq!(
            machine.step(&mut old(&request)).unwrap_err(),
            HandshakeError::NoProof
        );
        let offering = Options {
            proof: ProofPolicy::Offer(binding.clone()),
            ..Options::default()
        };
        let (mut machine, request) = ours(offering, &kites);
        assert!(Request::parse(&request).unwrap().lines.has_proof());
        let signed = match machine.step(&mut old(&request)).unwrap() {
            Step::Send(frame) => services_in_frames(&frame),
            Step::Redial(request) => {
                let again = Request::parse(&request).unwrap().lines;
                assert!(!again.has_proof());
                again.services
            }
            step => panic!("{step:?}"),
        };
        let verdict = judge(&signed, "s", NOW);
        assert_eq!(verdict.ok.len(), 1);
        let mut buf = BytesMut::new();
        if in_tunnel {
            put_kites(&mut buf, &verdict);
        } else {
            buf = answer(&verdict);
        }
        let Step::Done(verdict) = machine.step(&mut buf).unwrap() else {
            panic!("no verdict")
        };
        assert!(verdict.flying.len() == 1 && !verdict.proven);
    }
    let (_, request) = ours(Options::default(), &kites);
    assert!(!Request::parse(&request).unwrap().lines.has_proof());
}

#[test]
fn no_proof_gets_into_a_log() {
    let binding = Binding::Tls([7; 32]);
    let kite = KiteId {
        proto: "http".into(),
        name: "a.test".into(),
        bsalt: "b".into(),
    };
    let line = ServiceLine::proven(&kite, "t0", b"s", &binding);
    let proof = proof::prove(b"s", Prover::Frontend, &kite, "t0", &binding).unwrap();
    let lines = Lines {
        services: vec![line.clone()],
        proofs: vec![(kite, Proof(proof.clone()))],
        ..Lines::default()
    };
    let shown = format!("{lines:?}");
    assert!(!shown.contains(&line.signature) && !shown.contains(&proof));
}
