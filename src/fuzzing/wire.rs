//! What a peer says: frames, and the words before them.

use bytes::BytesMut;

use super::pieces;
use crate::kite::Secret;
use crate::wire::handshake::{
    self, Check, MAX_HEAD, Options, ProofPolicy, Request, Wanted, parse_answer,
};
use crate::wire::{
    BackendHandshake, Binding, Decoder, Eof, Frame, FrameError, Limits, Lines, Step, StreamFrame,
    Verdict, join,
};

const SECRET: &[u8] = b"nobody knows this one";
const NOW: u64 = 1_800_000_000;

/// Frames. First byte: which limits; second: how long the pieces are that they come in, which must not matter.
pub fn frames(bytes: &[u8]) {
    let [which, piece, rest @ ..] = bytes else {
        return;
    };
    let limits = match which & 1 {
        0 => Limits::ESTABLISHED,
        _ => Limits::UNPROVEN,
    };
    let whole = decoded(limits, pieces(rest, 0));
    let cut = decoded(limits, pieces(rest, *piece));
    assert_eq!(whole, cut);
}

/// All frames until an error, with what one frame's data were cut to put together again.
fn decoded<'a>(
    limits: Limits,
    pieces: impl Iterator<Item = &'a [u8]>,
) -> (Vec<Frame>, Option<FrameError>) {
    let (mut decoder, mut buf, mut frames) = (Decoder::new(limits), BytesMut::new(), Vec::new());
    for piece in pieces {
        buf.extend_from_slice(piece);
        loop {
            let before = buf.len();
            match decoder.decode(&mut buf) {
                Err(error) => return (frames, Some(error)),
                Ok(Some(frame)) => {
                    assert!(buf.len() < before, "a frame out of nothing");
                    keep(&mut frames, frame, limits);
                }
                Ok(None) => {
                    assert_eq!(buf.len(), before, "bytes were taken, and nothing given");
                    assert!(before <= limits.max_frame + 18, "{before} bytes wait");
                    break;
                }
            }
        }
    }
    (frames, None)
}

fn keep(frames: &mut Vec<Frame>, frame: Frame, limits: Limits) {
    let plain =
        |frame: &StreamFrame| frame.open.is_none() && frame.skb.is_none() && frame.eof == Eof::NONE;
    if let Frame::Stream(new) = &frame {
        assert!(new.data.len() <= limits.max_frame);
        assert!(new.eof == Eof::NONE || new.data.is_empty());
        assert!(new.eof != Eof::NONE || !new.abort);
        if let Some(open) = &new.open {
            let words = [&open.proto, &open.host];
            let safe = |word: &&String| word.bytes().all(|b| (b' '..=b'~').contains(&b));
            assert!(words.iter().chain(&open.rip.as_ref()).all(safe));
        }
        if let Some(Frame::Stream(last)) = frames.last_mut()
            && last.sid == new.sid
            && plain(last)
            && plain(new)
        {
            last.data = [&last.data[..], &new.data].concat().into();
            return;
        }
    }
    frames.push(frame);
}

/// Heads, service lines, challenges, verdicts, invitations. The first byte says what the others are.
pub fn handshake(bytes: &[u8]) {
    match bytes {
        [0, rest @ ..] => request(rest),
        [1, rest @ ..] => answer(rest),
        [2, rest @ ..] => joining(rest),
        [3, rest @ ..] => joined(rest),
        [4, options, piece, rest @ ..] => backend(*options, *piece, rest),
        _ => {}
    }
}

/// A backend's request, as a frontend reads it: nobody who does not know the secret passes.
fn request(bytes: &[u8]) {
    let Ok(request) = Request::parse(bytes) else {
        return;
    };
    assert!(bytes.len() <= MAX_HEAD && !request.lines.services.is_empty());
    for line in &request.lines.services {
        for binding in [None, Some(Binding::Tls([7; 32]))] {
            let check = handshake::check(line, SECRET, b"process", NOW, binding.as_ref());
            assert_ne!(check, Check::Good);
        }
    }
    let _ = request.lines.mux();
    written_again(request.lines);
}

fn answer(bytes: &[u8]) {
    let mut buf = BytesMut::from(bytes);
    if let Ok(Some(lines)) = parse_answer(&mut buf) {
        assert!(bytes.ends_with(&buf));
        written_again(lines);
    } else if let Ok(None) = parse_answer(&mut BytesMut::from(bytes)) {
        assert!(bytes.len() <= MAX_HEAD);
    }
}

/// What was read can be written, and is read the same.
fn written_again(mut lines: Lines) {
    // Its letters may take more room than they had, and it is cut.
    lines.motd = None;
    let write = |lines: &Lines| {
        let mut text = BytesMut::new();
        handshake::put_answer(&mut text, lines);
        text
    };
    let read = |text: &BytesMut| {
        let lines = parse_answer(&mut text.clone()).expect("what we write can be read");
        lines.expect("as a whole")
    };
    let once = write(&lines);
    if once.len() > MAX_HEAD {
        return;
    }
    // A word that was cut may end in a blank, which is left out now, and no more later.
    let twice = write(&read(&once));
    assert_eq!(write(&read(&twice)), twice);
}

/// An invitation is spent.
fn joining(bytes: &[u8]) {
    let end = memchr::memmem::find(bytes, b"\r\n\r\n").map_or(bytes.len(), |at| at + 4);
    let (head, body) = bytes.split_at(end);
    if join::is_asked(head)
        && let Some(length) = join::body_len(head)
    {
        assert!(length <= join::MAX_BODY);
        let ask = join::parse_ask(body.get(..length).unwrap_or(body));
        if let Some(ask) = ask {
            let text = join::put_ask(&ask);
            assert!(join::is_asked(&text));
        }
    }
    let _ = join::parse_ask(bytes);
}

/// And answered: however the answer comes.
fn joined(bytes: &[u8]) {
    let heard = |bytes: &[u8]| join::parse_reply(&BytesMut::from(bytes));
    let whole = heard(bytes);
    for cut in 0..bytes.len() {
        match heard(bytes.get(..cut).unwrap_or_default()) {
            join::Heard::NeedMore => {}
            early => return assert_eq!(early, whole, "after {cut} bytes"),
        }
    }
}

/// A frontend that may say anything, and does not know the secret. `options` says what the backend offers and wants,
/// `piece` how long the pieces are that it reads.
fn backend(options: u8, piece: u8, bytes: &[u8]) {
    let whole = converse(options, pieces(bytes, 0));
    let cut = converse(options, pieces(bytes, piece));
    assert_eq!(whole, cut);
}

/// What became of it, and what was said.
type Outcome = (Vec<Vec<u8>>, Option<Result<Box<Verdict>, String>>);

fn converse<'a>(flags: u8, pieces: impl Iterator<Item = &'a [u8]>) -> Outcome {
    let proof = match flags & 3 {
        0 | 3 => ProofPolicy::Off,
        1 => ProofPolicy::Offer(Binding::Tls([7; 32])),
        _ => ProofPolicy::Demand(Binding::Tls([7; 32])),
    };
    let bound = !matches!(proof, ProofPolicy::Off);
    let demanded = matches!(proof, ProofPolicy::Demand(_));
    let options = Options {
        replace: None,
        offer_beside: flags & 4 != 0,
        beside: vec!["session".into()],
        retire: None,
        window_kb: 1024,
        frame: 16 * 1024,
        offer_mux: flags & 8 != 0,
        proof,
        mark: Some(crate::wire::mark::MarkKey::new([7; 32])),
    };
    let wanted = |proto: &str, name: &str| Wanted {
        proto: proto.into(),
        name: name.parse().unwrap(),
        secret: Secret::new(SECRET).unwrap(),
        bsalt: "0b5a17".into(),
        end_tls: flags & 16 != 0,
        by: Default::default(),
    };
    let kites = vec![wanted("http", "a.example"), wanted("raw-22", "b.example")];
    let mut count = 0;
    let tokens = move || {
        count += 1;
        format!("{count:08x}")
    };
    let (mut machine, request) = BackendHandshake::new(kites, options, tokens);
    let mut said = vec![request.to_vec()];
    let mut buf = BytesMut::new();
    for piece in pieces {
        buf.extend_from_slice(piece);
        loop {
            match machine.step(&mut buf) {
                Ok(Step::NeedMore) => break,
                Ok(Step::Send(text)) => said.push(text.to_vec()),
                Ok(Step::Redial(text)) => {
                    assert!(!demanded, "a proof was demanded, and given up");
                    said.push(text.to_vec());
                }
                Ok(Step::Done(verdict)) => {
                    assert!(verdict.flying.len() + verdict.refused.len() == 2);
                    assert!(
                        verdict
                            .tls_ended
                            .iter()
                            .all(|id| verdict.flying.contains(id))
                    );
                    assert!(!(bound && verdict.proven), "who can have proved that?");
                    assert!(!demanded || verdict.flying.is_empty());
                    return (said, Some(Ok(verdict)));
                }
                Err(error) => return (said, Some(Err(error.to_string()))),
            }
            assert!(said.len() <= 3, "there is no end to it");
        }
        assert!(buf.len() <= Limits::UNPROVEN.max_frame + MAX_HEAD);
    }
    (said, None)
}
