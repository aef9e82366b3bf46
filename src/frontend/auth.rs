//! Who may fly which kite.

use crate::config::{Grant, ProofRule};
use crate::kite::{KiteName, Protocol};
use crate::wire::handshake::{Check, check};
use crate::wire::lines::Proof;
use crate::wire::proof::{self, Prover};
use crate::wire::{Binding, Lines, ServiceLine};

use super::registry::Terms;
use crate::random::random_hex;

/// Tells a backend that only KiteProof1 will do (protocol page §21.3).
const NEEDS_PROOF: &str = "proof";

/// The judge of service lines: the operator's grants, and this process's own secret
/// for challenges.
pub struct Judge {
    grants: Vec<Grant>,
    ports: Vec<u16>,
    process_secret: Vec<u8>,
}

/// What is decided about one service line.
pub enum Judgement {
    /// The backend has proved that it may; for these uses. With our own proof that we know
    /// the secret, where one was agreed.
    Proven(Terms, Option<Proof>),
    /// It must sign this challenge first.
    Challenge(String),
    /// It may not, for this reason (protocol page §3.3).
    Refused(&'static str),
}

impl Judge {
    /// A judge over `grants`, for a frontend that listens on `ports`.
    pub fn new(grants: Vec<Grant>, ports: Vec<u16>) -> Self {
        Self {
            grants,
            ports,
            process_secret: random_hex(64).into_bytes(),
        }
    }

    /// Judges one line. Everyone is challenged first, known or not, so that a name
    /// cannot be probed without an answer to a challenge. With a `binding` that answer must be
    /// a proof (protocol page §21.3), and PageKite's signature counts for nothing.
    pub fn judge(&self, line: &ServiceLine, now_unix: u64, binding: Option<&Binding>) -> Judgement {
        if line.fsalt.is_empty() {
            return Judgement::Challenge(line.challenge(
                &self.process_secret,
                &random_hex(8),
                now_unix,
            ));
        }
        let (proto, port) = match line.proto.split_once('-') {
            Some((proto, port)) => (proto, Some(port)),
            None => (line.proto.as_str(), None),
        };
        if port.is_some_and(|port| !self.serves_port(proto, port)) {
            return Judgement::Refused("port");
        }
        let Ok(name) = line.name.parse::<KiteName>() else {
            return Judgement::Refused("unauthorized");
        };
        let mut verdict = Judgement::Refused("unauthorized");
        let mut terms = Terms::new();
        let mut ours = None;
        for grant in self.grants.iter().filter(|g| g.pattern.covers(&name)) {
            if grant.proof == ProofRule::Required && binding.is_none() {
                // Nor is the signature looked at: it would be a place to test guesses.
                verdict = Judgement::Refused(NEEDS_PROOF);
                continue;
            }
            let uses: Terms = grant
                .protocols
                .iter()
                .copied()
                .filter(|p| carries(*p, proto))
                .collect();
            let secret = grant.secret.expose();
            match check(line, secret, &self.process_secret, now_unix, binding) {
                Check::Good if uses.is_empty() => verdict = Judgement::Refused("proto"),
                Check::Good => {
                    terms.extend(uses);
                    ours = binding.and_then(|binding| {
                        let id = line.kite_id();
                        proof::prove(secret, Prover::Frontend, &id, &line.fsalt, binding)
                    });
                }
                Check::BadSignature
                    if matches!(verdict, Judgement::Refused("proto" | NEEDS_PROOF)) => {}
                Check::BadSignature => verdict = Judgement::Refused("signature"),
                Check::StaleChallenge | Check::NeedsChallenge => {}
            }
        }
        if terms.is_empty() {
            verdict
        } else {
            Judgement::Proven(terms, ours.map(Proof))
        }
    }

    /// What this frontend can do, for the head of an answer.
    pub fn capabilities(&self, lines: &mut Lines) {
        let granted: Terms = self
            .grants
            .iter()
            .flat_map(|g| g.protocols.iter().copied())
            .collect();
        let mut protos: Vec<String> = Vec::new();
        for proto in granted.iter().map(|p| p.on_wire()) {
            if !protos.iter().any(|p| p == proto) {
                protos.push(proto.to_owned());
            }
        }
        if granted.contains(&Protocol::Raw) {
            lines.raw_ports.push("virtual".into());
        }
        lines.protos = protos;
        lines.ports = self.ports.iter().map(u16::to_string).collect();
    }

    fn serves_port(&self, proto: &str, port: &str) -> bool {
        port.parse::<u16>()
            .is_ok_and(|port| proto == "raw" || self.ports.contains(&port))
    }
}

/// Does a kite of this protocol stand behind that word of the wire?
fn carries(protocol: Protocol, wire: &str) -> bool {
    // http2 and http3 are second and third choices for http, no newer HTTP (§3.2).
    let wire = if matches!(wire, "http2" | "http3") {
        "http"
    } else {
        wire
    };
    protocol.on_wire() == wire
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kite::Secret;
    use crate::wire::KiteId;

    const NOW: u64 = 1_700_000_000;

    fn judge() -> Judge {
        let grant = |pattern: &str, protocols: &[Protocol], secret: &[u8]| Grant {
            pattern: pattern.parse().expect("a name"),
            protocols: protocols.iter().copied().collect(),
            secret: Secret::new(secret).expect("a secret"),
            proof: ProofRule::default(),
        };
        Judge::new(
            vec![
                grant("*.alice.example", &[Protocol::Foolscap], b"first"),
                grant("bob.alice.example", &[Protocol::Http], b"second"),
            ],
            vec![80],
        )
    }

    fn line(judge: &Judge, proto: &str, name: &str, secret: &[u8]) -> ServiceLine {
        let id = KiteId {
            proto: proto.into(),
            name: name.into(),
            bsalt: "b".repeat(36),
        };
        let first = ServiceLine::signed(&id, "", secret, "0123abcd");
        let Judgement::Challenge(fsalt) = judge.judge(&first, NOW, None) else {
            panic!("not challenged")
        };
        assert_eq!(fsalt.len(), 36);
        ServiceLine::signed(&id, &fsalt, secret, "0123abcd")
    }

    #[test]
    fn a_grant_gives_its_own_uses() {
        let judge = judge();
        let terms = |name, secret| match judge.judge(&line(&judge, "http", name, secret), NOW, None)
        {
            Judgement::Proven(terms, _) => terms.into_iter().collect::<Vec<_>>(),
            _ => vec![],
        };
        assert_eq!(terms("carol.alice.example", b"first"), [Protocol::Foolscap]);
        assert_eq!(terms("bob.alice.example", b"second"), [Protocol::Http]);
        assert_eq!(terms("bob.alice.example", b"first"), [Protocol::Foolscap]);
    }

    #[test]
    fn refusals_say_why() {
        let judge = judge();
        let why = |proto, name, secret: &[u8]| match judge.judge(
            &line(&judge, proto, name, secret),
            NOW,
            None,
        ) {
            Judgement::Refused(why) => why,
            _ => "not refused",
        };
        assert_eq!(why("http", "bob.alice.example", b"wrong"), "signature");
        assert_eq!(why("http", "bob.other.example", b"first"), "unauthorized");
        assert_eq!(why("https", "bob.alice.example", b"first"), "proto");
        assert_eq!(why("http-81", "bob.alice.example", b"first"), "port");
        assert_eq!(why("http-80", "bob.alice.example", b"first"), "not refused");
        assert_eq!(why("irc", "bob.alice.example", b"first"), "proto");
    }

    #[test]
    fn a_challenge_grows_old_and_is_ours_alone() {
        let judge = judge();
        let good = line(&judge, "http", "bob.alice.example", b"second");
        assert!(matches!(
            judge.judge(&good, NOW + 599, None),
            Judgement::Proven(..)
        ));
        assert!(matches!(
            judge.judge(&good, NOW + 1300, None),
            Judgement::Refused("unauthorized")
        ));
        let other = super::tests::judge();
        assert!(matches!(
            other.judge(&good, NOW, None),
            Judgement::Refused("unauthorized")
        ));
    }
}
