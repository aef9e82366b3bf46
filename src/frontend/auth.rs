//! Who may fly which kite.

use std::borrow::Cow;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use crate::code::Code;
use crate::config::ProofRule;
use crate::kite::{KiteName, Protocol, Secret};
use crate::observe::hush::Hush;
use crate::wire::handshake::{Check, check};
use crate::wire::lines::Proof;
use crate::wire::proof::{self, Prover};
use crate::wire::{Binding, Lines, ServiceLine};

use super::account::Account;
use super::accounts::Accounts;
use super::authority::{Authorities, Ruling};
use super::limits::Guesses;
use super::registry::Terms;
use super::storage::Policy;
use crate::clock::now_unix;
use crate::household::Visitor;
use crate::random::random_hex;

/// Tells a backend that only KiteProof1 will do (protocol page §21.3).
const NEEDS_PROOF: &str = "proof";
/// Tells a backend that nobody can say whether it may fly.
const OVERLOAD: &str = "overload";
/// Tells a backend that its secret is not looked at, for too many wrong ones have come of late.
const TOO_MANY: &str = "too many wrong secrets";

/// What guesses at invitations are counted under: no kite is called so.
const INVITATIONS: &str = "(invitations)";

/// The judge of service lines: the operator's grants, and this process's own secret
/// for challenges.
pub struct Judge {
    accounts: Arc<Accounts>,
    authorities: Authorities,
    guesses: Mutex<Guesses>,
    ports: Vec<u16>,
    policy: Policy,
    process_secret: Vec<u8>,
    /// Kites that nobody could be asked about.
    silent: Hush,
}

/// What is decided about one service line.
pub enum Judgement {
    /// The backend has proved that it may.
    Proven(Leave),
    /// It must sign this challenge first.
    Challenge(String),
    /// It may not, for this reason (protocol page §3.3).
    Refused(Cow<'static, str>),
}

/// A leave to fly.
pub struct Leave {
    /// What for.
    pub terms: Terms,
    /// Its visitors are held to what storage traffic looks like.
    pub storage_only: bool,
    /// What it is charged to.
    pub account: Arc<Account>,
    /// How many backends may fly it at a time.
    pub backends: u8,
    /// Our own proof that we know the secret, where one was agreed.
    pub proof: Option<Proof>,
}

/// Who asks, and when.
#[derive(Clone, Copy)]
pub struct Asker<'a> {
    /// What it is remembered by; none if it came through an onion service.
    pub peer: Option<Visitor>,
    /// Set if proofs were agreed: what they are bound to.
    pub binding: Option<&'a Binding>,
    /// Seconds since 1970.
    pub now_unix: u64,
}

impl Judge {
    /// A judge over `accounts`, and over what `authorities` know, for a frontend that listens on `ports` and carries
    /// what `policy` says.
    pub fn new(
        accounts: Arc<Accounts>,
        authorities: Authorities,
        ports: Vec<u16>,
        policy: Policy,
    ) -> Self {
        Self {
            accounts,
            authorities,
            guesses: Mutex::default(),
            ports,
            policy,
            process_secret: random_hex(64).into_bytes(),
            silent: Hush::default(),
        }
    }

    /// Judges one line. Everyone is challenged first, known or not, so that a name
    /// cannot be probed without an answer to a challenge. With a binding that answer must be
    /// a proof (protocol page §21.3), and PageKite's signature counts for nothing.
    pub async fn judge(&self, line: &ServiceLine, asker: Asker<'_>) -> Judgement {
        if line.fsalt.is_empty() {
            return Judgement::Challenge(line.challenge(
                &self.process_secret,
                &random_hex(8),
                asker.now_unix,
            ));
        }
        let (proto, port) = match line.proto.split_once('-') {
            Some((proto, port)) => (proto, Some(port)),
            None => (line.proto.as_str(), None),
        };
        if port.is_some_and(|port| !self.serves_port(proto, port)) {
            return Judgement::Refused("port".into());
        }
        let Ok(name) = line.name.parse::<KiteName>() else {
            return Judgement::Refused("unauthorized".into());
        };
        if !self
            .guesses()
            .may_try(asker.peer, &line.name, Instant::now())
        {
            return Judgement::Refused(TOO_MANY.into());
        }
        // Whether a guess was made, whatever is said of it.
        let mut wrong = false;
        let mut judgement = self.by_grants(line, &name, proto, asker, &mut wrong);
        let refused = |why: &str| matches!(why, "signature" | "unauthorized");
        if matches!(&judgement, Judgement::Refused(why) if refused(why))
            && self.authorities.know(&name)
        {
            judgement = self.by_authority(line, &name, proto, asker).await;
            wrong |= matches!(&judgement, Judgement::Refused(why) if refused(why));
            // Others of this peer were found wrong meanwhile: what was asked all at once is no way around the limit.
            let now = Instant::now();
            if !self.guesses().may_try(asker.peer, &line.name, now) {
                judgement = Judgement::Refused(TOO_MANY.into());
            }
        }
        if let Judgement::Proven(leave) = &mut judgement {
            self.policy.narrow(&mut leave.terms);
            leave.storage_only = self.policy.is_storage_only();
            if leave.terms.is_empty() {
                judgement = Judgement::Refused("proto".into());
            }
        }
        if wrong && !matches!(judgement, Judgement::Proven(_)) {
            self.guesses().wrong(asker.peer, &line.name, Instant::now());
        }
        judgement
    }

    /// By what the operator has allowed here.
    fn by_grants(
        &self,
        line: &ServiceLine,
        name: &KiteName,
        proto: &str,
        asker: Asker<'_>,
        wrong: &mut bool,
    ) -> Judgement {
        let Asker {
            binding, now_unix, ..
        } = asker;
        let mut verdict: Cow<'static, str> = "unauthorized".into();
        let mut leave: Option<Leave> = None;
        for holding in self.accounts.covering(name) {
            let grant = &*holding.grant;
            if grant.proof == ProofRule::Required && binding.is_none() {
                // Nor is the signature looked at: it would be a place to test guesses.
                verdict = NEEDS_PROOF.into();
                continue;
            }
            let secret = grant.secret.expose();
            match check(line, secret, &self.process_secret, now_unix, binding) {
                Check::Good => {}
                Check::BadSignature => {
                    *wrong = true;
                    if verdict == "unauthorized" {
                        verdict = "signature".into();
                    }
                    continue;
                }
                Check::StaleChallenge | Check::NeedsChallenge => continue,
            }
            let uses: Terms = uses(&grant.protocols, proto).collect();
            if uses.is_empty() {
                verdict = "proto".into();
                continue;
            }
            if let Err(end) = holding.account.standing(now_unix) {
                verdict = end.word().to_owned().into();
                continue;
            }
            let proof = binding.and_then(|binding| {
                let id = line.kite_id();
                proof::prove(secret, Prover::Frontend, &id, &line.fsalt, binding)
            });
            // Several grants with one secret add up; the nearest one is charged.
            match &mut leave {
                Some(leave) => leave.terms.extend(uses),
                None => {
                    leave = Some(Leave {
                        terms: uses,
                        storage_only: false,
                        backends: grant.backends,
                        account: holding.account,
                        proof: proof.map(Proof),
                    });
                }
            }
        }
        leave.map_or(Judgement::Refused(verdict), Judgement::Proven)
    }

    /// By what others say, where the operator has told us to ask.
    async fn by_authority(
        &self,
        line: &ServiceLine,
        name: &KiteName,
        proto: &str,
        asker: Asker<'_>,
    ) -> Judgement {
        let Asker {
            binding, now_unix, ..
        } = asker;
        let fits = |secret: &[u8]| check(line, secret, &self.process_secret, now_unix, binding);
        // Nobody is bothered with an answer to a challenge that is not ours.
        if fits(b"") == Check::StaleChallenge {
            return Judgement::Refused("unauthorized".into());
        }
        let proves = |secret: &Secret| fits(secret.expose()) == Check::Good;
        let signed = binding.is_none();
        let ruling = self.authorities.rule(line, name, signed, proves, now_unix);
        let (account, secret, protocols) = match ruling.await {
            Ruling::Granted {
                account,
                secret,
                protocols,
            } => (account, secret, protocols),
            Ruling::Refused(why) => return Judgement::Refused(why.into()),
            Ruling::Unanswered(silence) => {
                if let Some(before) = self.silent.due(Instant::now()) {
                    tracing::warn!(
                        "[{}] {name} does not fly: {silence}; see to whom [[authorities]] names{before}",
                        Code::AuthoritySilent
                    );
                }
                return Judgement::Refused(OVERLOAD.into());
            }
        };
        let terms: Terms = uses(&protocols, proto).collect();
        if terms.is_empty() {
            return Judgement::Refused("proto".into());
        }
        let proof = binding.zip(secret).and_then(|(binding, secret)| {
            let id = line.kite_id();
            proof::prove(secret.expose(), Prover::Frontend, &id, &line.fsalt, binding)
        });
        Judgement::Proven(Leave {
            terms,
            storage_only: false,
            account,
            backends: 1,
            proof: proof.map(Proof),
        })
    }

    /// Asks authorities again about kites that fly by their word, where it is time.
    pub async fn review(&self) {
        self.authorities.review(Instant::now(), now_unix()).await;
    }

    /// Is this the answer to a challenge of ours that is not too old?
    pub fn challenged(&self, line: &ServiceLine, now_unix: u64) -> bool {
        let answer = check(line, b"", &self.process_secret, now_unix, None);
        !matches!(answer, Check::NeedsChallenge | Check::StaleChallenge)
    }

    /// A port where visitors come in.
    pub fn port(&self) -> u16 {
        self.ports.first().copied().unwrap_or(80)
    }

    /// Is this peer heard if its invitation is none of ours? One who has a right one is.
    pub fn may_try_invitation(&self, peer: Option<Visitor>) -> bool {
        self.guesses().may_try(peer, INVITATIONS, Instant::now())
    }

    /// May this peer show a tub's key for this name now?
    pub fn may_try_tub(&self, peer: Option<Visitor>, name: &str) -> bool {
        self.guesses().may_try(peer, name, Instant::now())
    }

    /// It was not the tub's, or the name is not for strangers.
    pub fn wrong_tub(&self, peer: Option<Visitor>, name: &str) {
        self.guesses().wrong(peer, name, Instant::now());
    }

    /// It was none of ours. True if that is worth a line in the log.
    pub fn wrong_invitation(&self, peer: Option<Visitor>) -> bool {
        self.guesses().wrong(peer, INVITATIONS, Instant::now())
    }

    /// Must one of these show a signature, since whoever can check it knows nothing of proofs?
    pub fn needs_signature(&self, lines: &[ServiceLine]) -> bool {
        lines.iter().any(|line| {
            line.name.parse().is_ok_and(|name| {
                self.authorities.need_signature(&name) && self.accounts.covering(&name).is_empty()
            })
        })
    }

    fn guesses(&self) -> std::sync::MutexGuard<'_, Guesses> {
        self.guesses.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What this frontend can do, for the head of an answer.
    pub fn capabilities(&self, lines: &mut Lines) {
        let mut granted: Terms = self.accounts.protocols();
        granted.extend(self.authorities.protocols());
        self.policy.narrow(&mut granted);
        let mut protos: Vec<String> = Vec::new();
        for proto in Protocol::ALL.into_iter().map(Protocol::on_wire) {
            let granted = granted.iter().any(|p| carries(*p, proto));
            if granted && !protos.iter().any(|p| p == proto) {
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
            // One way to write each, so that each is one kite.
            .is_ok_and(|n| n.to_string() == port && (proto == "raw" || self.ports.contains(&n)))
    }
}

/// For what a kite may be used that is called so on the wire.
fn uses<'a>(
    granted: impl IntoIterator<Item = &'a Protocol>,
    wire: &str,
) -> impl Iterator<Item = Protocol> {
    granted
        .into_iter()
        .copied()
        .filter(move |protocol| carries(*protocol, wire))
}

/// Flown by other backends for when `http` is down.
const SECOND_CHOICES: [&str; 2] = ["http2", "http3"];

/// Does a kite of this protocol stand behind that word of the wire?
fn carries(protocol: Protocol, wire: &str) -> bool {
    // http2 and http3 are second and third choices for http, no newer HTTP (§3.2): who may fly it may fly them.
    protocol.on_wire() == wire || (protocol.on_wire() == "http" && SECOND_CHOICES.contains(&wire))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Grant;
    use crate::frontend::authority::{Authority, Source};
    use crate::frontend::limits::Limits;
    use crate::kite::Secret;
    use crate::wire::KiteId;

    const NOW: u64 = 1_700_000_000;

    fn judge() -> Judge {
        let grant = |pattern: &str, protocols: &[Protocol], secret: &[u8]| Grant {
            pattern: pattern.parse().expect("a name"),
            protocols: protocols.iter().copied().collect(),
            secret: Secret::new(secret).expect("a secret"),
            proof: ProofRule::default(),
            limits: Limits::default(),
            expires: None,
            backends: 1,
        };
        let mut gone = grant("gone.alice.example", &[Protocol::Http], b"gone");
        gone.expires = Some(NOW);
        let accounts = Accounts::of(vec![
            grant("*.alice.example", &[Protocol::Foolscap], b"first"),
            grant("bob.alice.example", &[Protocol::Http], b"second"),
            gone,
        ]);
        Judge::new(
            Arc::new(accounts),
            Authorities::default(),
            vec![80],
            Policy::Any,
        )
    }

    fn ask(judge: &Judge, line: &ServiceLine, now_unix: u64) -> Judgement {
        ask_as(judge, line, now_unix, None)
    }

    fn ask_as(
        judge: &Judge,
        line: &ServiceLine,
        now_unix: u64,
        peer: Option<Visitor>,
    ) -> Judgement {
        let asker = Asker {
            peer,
            binding: None,
            now_unix,
        };
        let judging = judge.judge(line, asker);
        futures::FutureExt::now_or_never(judging).expect("grants are at hand")
    }

    fn line(judge: &Judge, proto: &str, name: &str, secret: &[u8]) -> ServiceLine {
        let id = KiteId {
            proto: proto.into(),
            name: name.into(),
            bsalt: "b".repeat(36),
        };
        let first = ServiceLine::signed(&id, "", secret, "0123abcd");
        let Judgement::Challenge(fsalt) = ask(judge, &first, NOW) else {
            panic!("not challenged")
        };
        assert_eq!(fsalt.len(), 36);
        ServiceLine::signed(&id, &fsalt, secret, "0123abcd")
    }

    #[test]
    fn a_grant_gives_its_own_uses() {
        let judge = judge();
        let terms = |name, secret| match ask(&judge, &line(&judge, "http", name, secret), NOW) {
            Judgement::Proven(leave) => leave.terms.into_iter().collect::<Vec<_>>(),
            _ => vec![],
        };
        assert_eq!(terms("carol.alice.example", b"first"), [Protocol::Foolscap]);
        assert_eq!(terms("bob.alice.example", b"second"), [Protocol::Http]);
        assert_eq!(terms("bob.alice.example", b"first"), [Protocol::Foolscap]);
    }

    #[test]
    fn refusals_say_why() {
        let judge = judge();
        let why =
            |proto, name, secret: &[u8]| match ask(&judge, &line(&judge, proto, name, secret), NOW)
            {
                Judgement::Refused(why) => why.into_owned(),
                _ => "not refused".to_owned(),
            };
        assert_eq!(why("http", "bob.alice.example", b"wrong"), "signature");
        assert_eq!(why("http", "bob.other.example", b"first"), "unauthorized");
        assert_eq!(why("https", "bob.alice.example", b"first"), "proto");
        assert_eq!(why("http-81", "bob.alice.example", b"first"), "port");
        assert_eq!(why("http-80", "bob.alice.example", b"first"), "not refused");
        assert_eq!(why("irc", "bob.alice.example", b"first"), "proto");
        assert_eq!(why("http", "gone.alice.example", b"gone"), "nodays");
        // What another grant allows is allowed all the same.
        assert_eq!(why("http", "gone.alice.example", b"first"), "not refused");
    }

    #[test]
    fn a_challenge_grows_old_and_is_ours_alone() {
        let judge = judge();
        let good = line(&judge, "http", "bob.alice.example", b"second");
        assert!(matches!(
            ask(&judge, &good, NOW + 599),
            Judgement::Proven(..)
        ));
        assert!(matches!(
            ask(&judge, &good, NOW + 1300),
            Judgement::Refused(why) if why == "unauthorized"
        ));
        let other = super::tests::judge();
        assert!(matches!(
            ask(&other, &good, NOW),
            Judgement::Refused(why) if why == "unauthorized"
        ));
    }

    #[tokio::test]
    async fn guesses_that_an_authority_is_asked_about_all_at_once_are_no_more_than_others() {
        let dir = tempfile::tempdir().expect("a directory");
        // It waits with its word on bob until carol's have all been answered.
        let program = dir.path().join("program");
        let script = r#"#!/bin/sh
            cd "$(dirname "$0")"
            case "$*" in
            *carol*) echo >>answered ;;
            *) until [ "$(wc -l <answered)" = 10 ]; do sleep 0.05; done; sleep 0.3 ;;
            esac
            echo '{"secret": "right"}'"#;
        std::fs::write(&program, script).expect("a file");
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o700);
        std::fs::set_permissions(&program, mode).expect("chmod");
        let authorities = Authorities::new(vec![Authority {
            domain: "alice.example".parse().ok(),
            source: Source::Program(program),
            protocols: [Protocol::Http].into(),
            parallel: 11,
            limits: Limits::default(),
        }]);
        let accounts = Arc::new(Accounts::of(Vec::new()));
        let judge = Judge::new(accounts, authorities, vec![80], Policy::Any);
        let lines = |guess: &'static [u8]| {
            let guesses = (0..10).map(|_| line(&judge, "http", "carol.alice.example", guess));
            let own = line(&judge, "http", "bob.alice.example", b"right");
            guesses.chain([own]).collect::<Vec<_>>()
        };
        for (guess, peer, then) in [(&b"wrong"[..], 1, TOO_MANY), (b"right", 2, "not refused")] {
            let _ = std::fs::remove_file(dir.path().join("answered"));
            std::fs::write(dir.path().join("answered"), "").expect("a file");
            let asker = Asker {
                peer: Some(Visitor(peer)),
                binding: None,
                now_unix: NOW,
            };
            let lines = lines(guess);
            let said = futures::future::join_all(lines.iter().map(|l| judge.judge(l, asker))).await;
            let said = said.last().map(|said| match said {
                Judgement::Refused(why) => why.as_ref(),
                _ => "not refused",
            });
            assert_eq!(said, Some(then));
        }
    }

    #[test]
    fn wrong_secrets_shut_out_their_own_address_for_a_while() {
        let judge = judge();
        let why = |secret: &[u8], peer| {
            let line = line(&judge, "http", "bob.alice.example", secret);
            match ask_as(&judge, &line, NOW, Some(Visitor(peer))) {
                Judgement::Refused(why) => why.into_owned(),
                _ => "not refused".to_owned(),
            }
        };
        for _ in 0..10 {
            assert_eq!(why(b"wrong", 1), "signature");
        }
        assert_eq!(
            why(b"second", 1),
            TOO_MANY,
            "nor is the right one looked at"
        );
        assert_eq!(why(b"second", 2), "not refused");
    }
}
