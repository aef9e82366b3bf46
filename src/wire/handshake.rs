//! The handshake: who may fly which kite through this connection (protocol page §3).
//!
//! The backend's side is a machine, [`BackendHandshake`]:
//!
//! ```text
//!            Send(services, signed again)        verdict frame
//!           ┌───────────────► in the tunnel ────────────────────┐   style A
//!  request ─┤ answer                                            ├─► Done
//!           ├──────── OK at once, or refused ───────────────────┤
//!           └───────────────► by dialling again ────────────────┘   style B
//!            Redial(request, signed again)       answer
//! ```
//!
//! The frontend's side needs no machine: [`Request::parse`], [`ServiceLine::challenge`],
//! [`check`], [`put_answer`] and [`super::frame::put_kites`].

use std::fmt;
use std::sync::Arc;

use bytes::BytesMut;

use super::chunk::Limits;
use super::frame::{Control, Decoder, Frame, FrameError, put_kites};
use super::mark::MarkKey;
use super::proof::{self, Binding, Prover};
use super::sign;
use super::tub::{self, KITE_TUB, TubCertificate, TubClaim, TubSignature};
use crate::kite::{KiteName, Secret};

mod within;

pub use self::within::Within;

pub use super::heads::{
    FORBIDDEN, HandshakeError, MAX_HEAD, Request, UNAVAILABLE, parse_answer, put_answer,
};
pub use super::lines::{
    ADD_KITES, KITE_AWAY, KITE_BESIDE, KITE_FLEET, KITE_MUX, KITE_PROOF, KITE_TLS, KiteId, Lines,
    LinesError, MuxParams, Proof, ServiceLine,
};

/// What a frontend thinks of a service line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Check {
    /// It answers our challenge with the right secret.
    Good,
    /// It has no challenge yet: the first round. Its signature does not matter.
    NeedsChallenge,
    /// The challenge is not ours or too old: `unauthorized`.
    StaleChallenge,
    /// The secret is wrong: `signature`.
    BadSignature,
}

/// Judges a service line: first its challenge, then its signature (protocol page §5.1).
/// With a `binding` a proof is demanded in the signature's place: [`KITE_PROOF`] is in force.
pub fn check(
    line: &ServiceLine,
    kite_secret: &[u8],
    process_secret: &[u8],
    now_unix: u64,
    binding: Option<&Binding>,
) -> Check {
    if line.fsalt.is_empty() {
        return Check::NeedsChallenge;
    }
    // An undated one would be good for ever, and we never made one.
    let ours = line.fsalt.starts_with('t')
        && sign::verify(
            process_secret,
            &line.challenge_payload(),
            &line.fsalt,
            now_unix,
        );
    if !ours {
        return Check::StaleChallenge;
    }
    let fits = match binding {
        None => sign::verify(kite_secret, &line.payload(), &line.signature, now_unix),
        Some(binding) => proof::verify(
            kite_secret,
            Prover::Backend,
            &line.kite_id(),
            &line.fsalt,
            binding,
            &line.signature,
        ),
    };
    if fits {
        Check::Good
    } else {
        Check::BadSignature
    }
}

/// A kite that the backend wants to fly.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// The wire's word, perhaps with a port: `http`, `raw-22`.
    pub proto: String,
    /// Its name.
    pub name: KiteName,
    /// The secret it shares with the frontend.
    pub secret: Secret,
    /// 36 hex digits, fresh for every tunnel, so that tunnels cannot be linked
    /// by it (protocol page §3.2). It stays the same over both rounds.
    pub bsalt: String,
    /// The frontend may end its visitors' TLS, if it can; see [`KITE_TLS`].
    pub end_tls: bool,
    /// What proves that it is ours.
    pub by: By,
}

/// What proves that a kite is ours.
#[derive(Debug, Clone, Default)]
pub enum By {
    /// Its secret.
    #[default]
    Secret,
    /// Its name, which is its tub's ([`KITE_TUB`]): by the tub's key; without it the frontend can only look who answers
    /// at the other end of the tunnel. The secret is not used.
    Tub(Option<TubSigner>),
}

/// A tub's key, as far as it must be known here.
#[derive(Clone)]
pub struct TubSigner {
    certificate: TubCertificate,
    sign: Arc<Sign>,
}

/// Gives the scheme, and the signature.
type Sign = dyn Fn(&[u8]) -> Option<(u16, Vec<u8>)> + Send + Sync;

impl TubSigner {
    /// The tub's certificate, and what its key does with a message.
    pub fn new(
        certificate: &[u8],
        sign: impl Fn(&[u8]) -> Option<(u16, Vec<u8>)> + Send + Sync + 'static,
    ) -> Self {
        Self {
            certificate: TubCertificate(certificate.to_vec()),
            sign: Arc::new(sign),
        }
    }
}

impl fmt::Debug for TubSigner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TubSigner(…)")
    }
}

impl Wanted {
    fn id(&self) -> KiteId {
        let proto = self.proto.to_ascii_lowercase();
        KiteId {
            proto,
            name: self.name.to_string(),
            bsalt: self.bsalt.clone(),
        }
    }
}

/// How a backend asks.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// The session that this tunnel replaces. Links the two tunnels.
    pub replace: Option<String>,
    /// Offer [`KITE_BESIDE`].
    pub offer_beside: bool,
    /// Tunnels of ours that this one is to stand beside; said only with `offer_beside`.
    pub beside: Vec<String>,
    /// A tunnel of ours that is to get no more visitors once this one flies; said only
    /// with `offer_beside`.
    pub retire: Option<String>,
    /// Our window per stream, in KB; said only with `offer_mux`.
    pub window_kb: u32,
    /// The largest payload we want in one frame, in bytes; said only with `offer_mux`.
    pub frame: u32,
    /// Offer [`KITE_MUX`].
    pub offer_mux: bool,
    /// Offer or demand [`KITE_PROOF`].
    pub proof: ProofPolicy,
    /// Offer [`KITE_FLEET`], and make our marks with this.
    pub mark: Option<MarkKey>,
}

/// What a backend wants of [`KITE_PROOF`].
#[derive(Debug, Clone, Default)]
pub enum ProofPolicy {
    /// Nothing: the connection has nothing to bind a proof to.
    #[default]
    Off,
    /// Use it if the frontend has it.
    Offer(Binding),
    /// Refuse a frontend that has it not. No signature of PageKite's leaves then, not even
    /// the first, which would let its reader test guesses of the secret.
    Demand(Binding),
}

impl ProofPolicy {
    fn binding(&self) -> Option<&Binding> {
        match self {
            Self::Off => None,
            Self::Offer(binding) | Self::Demand(binding) => Some(binding),
        }
    }
}

/// What to do now.
#[derive(Debug)]
#[must_use]
pub enum Step {
    /// Read more, then step again.
    NeedMore,
    /// Send this, then read on.
    Send(BytesMut),
    /// Close the connection, dial again, send this, and go on with the same
    /// machine and an empty buffer (protocol page §3.5).
    Redial(BytesMut),
    /// The tunnel is up if anything flies. What is left in the buffer are frames.
    Done(Box<Verdict>),
}

/// What became of the kites.
///
/// Not for logs as a whole: at an old frontend, who knows the session id can cut
/// the tunnel (protocol page §3.7).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Verdict {
    /// Those that fly. If it is empty, and none is `heard`, the frontend closes the tunnel.
    pub flying: Vec<KiteId>,
    /// Those that are called by their tubs, and were heard: they fly once the frontend has come to their nodes through
    /// the tunnel, and says so by another OK.
    pub heard: Vec<KiteId>,
    /// The others.
    pub refused: Vec<Refusal>,
    /// Those among the flying whose TLS the frontend ends, so that it reads what they carry.
    pub tls_ended: Vec<KiteId>,
    /// Every flying kite had to prove its secret. If not, anybody may be the
    /// frontend (protocol page §3.6); but a challenge proves nothing about it either.
    pub challenged: bool,
    /// The newest name of this tunnel (protocol page §3.7).
    pub session_id: Option<String>,
    /// What the frontend is able to do.
    pub peer: PeerParams,
    /// [`KITE_PROOF`] was in force: both ends have proved to know the secret of every flying
    /// kite, to each other and to nobody else.
    pub proven: bool,
    /// [`KITE_PROOF`] is in force for this tunnel, whatever flies.
    pub agreed: bool,
    /// Names of kites, each with the address of a frontend that is home to it; not looked at yet. See [`KITE_FLEET`].
    pub homes: Vec<(String, String)>,
    /// The frontend's message of the day, if it is not empty.
    pub motd: Option<String>,
    /// KB, days and connections left, if the frontend counts them.
    pub quota: Option<i64>,
    /// Days left.
    pub qdays: Option<i64>,
    /// Connections left.
    pub qconns: Option<i64>,
}

/// A kite that does not fly.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Which.
    pub id: KiteId,
    /// Why.
    pub why: RefusalKind,
}

/// Why a kite does not fly.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RefusalKind {
    /// The secrets differ.
    Signature,
    /// The frontend does not know the kite, or its challenge grew old.
    Unauthorized,
    /// Kilobytes or connections are used up.
    Quota,
    /// Its days are over.
    Expired,
    /// The frontend cannot check it now.
    Busy,
    /// The frontend does not serve that port.
    Port,
    /// The frontend does not serve that protocol.
    Proto,
    /// The frontend takes KiteProof1 only, and it was not agreed.
    Proof,
    /// Our own refusal: the frontend ends TLS for a kite that did not ask for it.
    TlsEnded,
    /// Our own refusal: the frontend lets no kite prove itself by its tub.
    NoTubs,
    /// Our own refusal: the frontend has no [`ADD_KITES`], and the first request had no room for this one.
    NoMore,
    /// Our own refusal: the frontend, an old one, gave no answer when it was asked for this one within a tunnel.
    Unanswered,
    /// The tub's key did not prove the name.
    Tub,
    /// The frontend wants a proof by the tub's key.
    TubKey,
    /// Another node than the tub of this name, or none, was behind the tunnel.
    TubNode,
    /// There is no place for another kite that proves itself.
    Full,
    /// Another tunnel flies it, perhaps our own former one.
    Duplicate,
    /// In the frontend's own words, which are printable; may be empty.
    Other(String),
}

impl Verdict {
    /// Gives up a kite that the frontend has granted.
    pub fn give_up(&mut self, id: &KiteId, why: RefusalKind) {
        self.flying.retain(|kite| kite != id);
        self.heard.retain(|kite| kite != id);
        self.tls_ended.retain(|kite| kite != id);
        self.refused.push(Refusal {
            id: id.clone(),
            why,
        });
    }
}

impl RefusalKind {
    /// The reason of an `Invalid` line.
    pub fn parse(why: Option<String>) -> Self {
        match why.as_deref() {
            Some("signature") => Self::Signature,
            Some("unauthorized") => Self::Unauthorized,
            Some("quota" | "noquota" | "noconns") => Self::Quota,
            Some("nodays") => Self::Expired,
            Some("overload") => Self::Busy,
            Some("port") => Self::Port,
            Some("proto") => Self::Proto,
            Some("proof") => Self::Proof,
            Some("tub") => Self::Tub,
            Some("tub-key") => Self::TubKey,
            Some("tub-node") => Self::TubNode,
            Some("full") => Self::Full,
            // Of a kite that flew already, or was to.
            Some("duplicate") => Self::Duplicate,
            _ => Self::Other(why.unwrap_or_default()),
        }
    }
}

/// What a frontend is able to do, as its answer says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PeerParams {
    /// Set if both ends have [`KITE_MUX`].
    pub kite_mux: Option<MuxParams>,
    /// Both ends have [`KITE_BESIDE`].
    pub beside: bool,
    /// It takes kites into a tunnel that stands: [`ADD_KITES`].
    pub add_kites: bool,
    /// Both ends have [`KITE_AWAY`].
    pub away: bool,
    /// Both ends have [`KITE_FLEET`].
    pub fleet: bool,
    /// Protocols it carries. Empty if it does not say.
    pub protos: Vec<String>,
    /// Ports it serves.
    pub ports: Vec<String>,
    /// Raw ports it serves; `virtual` stands for all by HTTP CONNECT.
    pub raw_ports: Vec<String>,
}

/// One kite on its way through the handshake.
struct Entry {
    wanted: Wanted,
    id: KiteId,
    /// The frontend's challenge, once there was one.
    fsalt: Option<String>,
    fate: Fate,
}

impl Entry {
    fn by_tub(&self) -> bool {
        matches!(self.wanted.by, By::Tub(_))
    }
}

#[derive(Clone)]
enum Fate {
    Open,
    Flies,
    Refused(RefusalKind),
}

enum State {
    /// Waiting for the answer to the first request.
    Asked,
    /// Waiting for the answer to the second request.
    AskedAgain,
    /// Waiting for the frame with the verdict.
    Signed(Decoder),
    /// The same, within a tunnel that stands.
    Within,
    Over,
}

/// The backend's side of a handshake.
pub struct BackendHandshake {
    state: State,
    entries: Vec<Entry>,
    options: Options,
    tokens: Box<dyn FnMut() -> String + Send>,
    verdict: Verdict,
}

impl fmt::Debug for BackendHandshake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BackendHandshake")
            .field("kites", &self.entries.len())
            .finish_non_exhaustive()
    }
}

impl BackendHandshake {
    /// Begins; also returns the request, to be sent at once and alone. `tokens`
    /// gives at least eight fresh random hex digits for every signature.
    pub fn new(
        wanted: Vec<Wanted>,
        options: Options,
        tokens: impl FnMut() -> String + Send + 'static,
    ) -> (Self, BytesMut) {
        let entries = wanted
            .into_iter()
            .map(|wanted| Entry {
                id: wanted.id(),
                wanted,
                fsalt: None,
                fate: Fate::Open,
            })
            .collect();
        let (tokens, verdict) = (Box::new(tokens), Verdict::default());
        let mut machine = Self {
            state: State::Asked,
            entries,
            options,
            tokens,
            verdict,
        };
        let request = machine.request();
        (machine, request)
    }

    /// Goes on with what has been read; takes from `buf` what it understands.
    /// After an error the connection must be closed.
    pub fn step(&mut self, buf: &mut BytesMut) -> Result<Step, HandshakeError> {
        loop {
            let lines = match &mut self.state {
                State::Over | State::Within => return Err(HandshakeError::Over),
                State::Asked | State::AskedAgain => {
                    return match parse_answer(buf)? {
                        Some(answer) => self.answered(answer),
                        None => Ok(Step::NeedMore),
                    };
                }
                State::Signed(decoder) => next_lines(decoder, buf)?,
            };
            let Some(lines) = lines else {
                return Ok(Step::NeedMore);
            };
            let judged = has_verdict(&lines);
            self.learn(lines)?;
            if judged {
                return Ok(self.done());
            }
        }
    }

    fn answered(&mut self, answer: Lines) -> Result<Step, HandshakeError> {
        let first_round = matches!(self.state, State::Asked);
        let in_tunnel = answer.has_feature(ADD_KITES);
        let takes_tubs = answer.has_feature(KITE_TUB);
        self.verdict.proven =
            first_round && self.options.proof.binding().is_some() && answer.has_proof();
        if !self.verdict.proven && matches!(self.options.proof, ProofPolicy::Demand(_)) {
            return Err(HandshakeError::NoProof);
        }
        self.learn(answer)?;
        let unproven = |e: &&mut Entry| e.by_tub() && matches!(e.fate, Fate::Open);
        for entry in (self.entries.iter_mut())
            .filter(unproven)
            .filter(|_| !takes_tubs)
        {
            entry.fate = Fate::Refused(RefusalKind::NoTubs);
        }
        let open = |e: &Entry| matches!(e.fate, Fate::Open) && e.fsalt.is_some();
        if !first_round || !self.entries.iter().any(open) {
            return Ok(self.done());
        }
        if in_tunnel {
            self.state = State::Signed(Decoder::new(Limits::UNPROVEN));
            let mut out = BytesMut::new();
            let mut lines = Lines {
                services: self.services(),
                ..Lines::default()
            };
            self.claim_tubs(&mut lines);
            self.mark(&mut lines);
            put_kites(&mut out, &lines);
            return Ok(Step::Send(out));
        }
        // What flies already falls with this connection and is asked for again. The
        // first connection is ours, so it may be replaced whatever the options say;
        // if not, its kites might be taken for duplicates.
        for entry in self
            .entries
            .iter_mut()
            .filter(|e| matches!(e.fate, Fate::Flies))
        {
            entry.fate = Fate::Open;
        }
        self.verdict.tls_ended.clear();
        self.options.replace = self
            .verdict
            .session_id
            .clone()
            .or(self.options.replace.take());
        self.state = State::AskedAgain;
        // Another connection, with another binding, to a frontend that has no proof.
        self.options.proof = ProofPolicy::Off;
        Ok(Step::Redial(self.request()))
    }

    /// Is this OK worth anything? With [`KITE_PROOF`] only if the frontend proves beside it
    /// that it knows the secret too.
    fn believe(&self, id: &KiteId, proofs: &[(KiteId, Proof)]) -> bool {
        let Some(binding) = self.options.proof.binding().filter(|_| self.verdict.proven) else {
            return true;
        };
        // What we did not ask for is passed over by `learn`.
        // Nor is there a secret to know where a tub is all the proof.
        let secret = |e: &&Entry| e.id == *id && !e.by_tub();
        self.entries.iter().filter(secret).all(|entry| {
            let secret = entry.wanted.secret.expose();
            let fsalt = entry.fsalt.as_deref().unwrap_or_default();
            proofs.iter().any(|(of, Proof(proof))| {
                of == id && proof::verify(secret, Prover::Frontend, id, fsalt, binding, proof)
            })
        })
    }

    /// Notes all that the lines say.
    fn learn(&mut self, lines: Lines) -> Result<(), HandshakeError> {
        // No honest frontend says OK without its proof: nothing else that it says counts.
        if let Some(id) = lines.ok.iter().find(|id| !self.believe(id, &lines.proofs)) {
            return Err(HandshakeError::BadProof(format!(
                "{}:{}",
                id.proto, id.name
            )));
        }
        let Self {
            entries, verdict, ..
        } = self;
        if self.options.offer_mux {
            verdict.peer.kite_mux = lines.mux().or(verdict.peer.kite_mux);
        }
        verdict.peer.add_kites |= lines.has_feature(ADD_KITES);
        verdict.peer.away |= lines.has_feature(KITE_AWAY);
        verdict.peer.beside |= self.options.offer_beside && lines.has_feature(KITE_BESIDE);
        verdict.peer.fleet |= self.options.mark.is_some() && lines.has_feature(KITE_FLEET);
        if verdict.peer.fleet {
            verdict.homes.extend(lines.homes);
        }
        let Lines {
            ok,
            ssl_ok,
            invalid,
            duplicate,
            sign_this,
            ..
        } = lines;
        let mut judge = |id: &KiteId, fate: Fate| {
            entries
                .iter_mut()
                .filter(|e| e.id == *id)
                .for_each(|e| e.fate = fate.clone());
        };
        ok.iter().for_each(|id| judge(id, Fate::Flies));
        for (id, why) in invalid {
            judge(&id, Fate::Refused(RefusalKind::parse(why)));
        }
        duplicate
            .iter()
            .for_each(|id| judge(id, Fate::Refused(RefusalKind::Duplicate)));
        for (id, fsalt) in sign_this {
            entries
                .iter_mut()
                .filter(|e| e.id == id)
                .for_each(|e| e.fsalt = Some(fsalt.clone()));
        }
        verdict.tls_ended.extend(ssl_ok);
        fn newest<T>(old: &mut Option<T>, new: Option<T>) {
            *old = new.or(old.take());
        }
        newest(&mut verdict.session_id, lines.session_id);
        newest(
            &mut verdict.motd,
            lines.motd.filter(|text| !text.is_empty()),
        );
        newest(&mut verdict.quota, lines.quota);
        newest(&mut verdict.qdays, lines.qdays);
        newest(&mut verdict.qconns, lines.qconns);
        for (old, new) in [
            (&mut verdict.peer.protos, lines.protos),
            (&mut verdict.peer.ports, lines.ports),
            (&mut verdict.peer.raw_ports, lines.raw_ports),
        ] {
            // A verdict frame does not repeat them.
            if !new.is_empty() {
                *old = new;
            }
        }
        Ok(())
    }

    /// Everything that is not refused, signed for the round we are in.
    fn services(&mut self) -> Vec<ServiceLine> {
        let in_tunnel = matches!(self.state, State::Signed(_) | State::Within);
        let tokens = &mut self.tokens;
        let proof = &self.options.proof;
        let agreed = proof.binding().filter(|_| self.verdict.proven);
        self.entries
            .iter()
            // What flies must not be asked for again, or it falls (protocol page §3.8);
            // in the tunnel only challenges are answered, as a new question would
            // bring a new challenge.
            .filter(|e| matches!(e.fate, Fate::Open) && (!in_tunnel || e.fsalt.is_some()))
            .map(|e| {
                let fsalt = e.fsalt.as_deref().unwrap_or_default();
                let secret = e.wanted.secret.expose();
                match (agreed, proof) {
                    _ if e.by_tub() => ServiceLine::unsigned(&e.id, fsalt, filler(tokens)),
                    (Some(binding), _) => ServiceLine::proven(&e.id, fsalt, secret, binding),
                    (None, ProofPolicy::Demand(_)) => {
                        ServiceLine::unsigned(&e.id, fsalt, filler(tokens))
                    }
                    (None, _) => ServiceLine::signed(&e.id, fsalt, secret, &tokens()),
                }
            })
            .collect()
    }

    /// What the kites that are called by their tubs have to show besides.
    fn claim_tubs(&self, lines: &mut Lines) {
        let binding = self.options.proof.binding();
        for Entry {
            wanted,
            id,
            fsalt,
            fate,
        } in &self.entries
        {
            let (By::Tub(signer), Fate::Open, Some(fsalt)) = (&wanted.by, fate, fsalt) else {
                continue;
            };
            let signature = signer.as_ref().zip(binding).and_then(|(signer, binding)| {
                let (scheme, bytes) = (signer.sign)(&tub::message(id, fsalt, binding))?;
                if !lines.tub_certificates.contains(&signer.certificate) {
                    lines.tub_certificates.push(signer.certificate.clone());
                }
                Some(TubSignature { scheme, bytes })
            });
            let id = id.clone();
            lines.tubs.push(TubClaim { id, signature });
        }
    }

    /// Says what our kites are known by in a fleet, if the frontend is of one.
    fn mark(&self, lines: &mut Lines) {
        let key = self.options.mark.as_ref();
        let Some(key) = key.filter(|_| self.verdict.peer.fleet) else {
            return;
        };
        let ids = lines.services.iter().map(ServiceLine::kite_id);
        let marked = ids.map(|id| (id.clone(), key.of(&id.proto, &id.name)));
        lines.backends = marked.collect();
    }

    /// The kites whose visitors' TLS may be ended.
    fn endings(&self) -> Vec<KiteId> {
        let ending = self.entries.iter().filter(|e| e.wanted.end_tls);
        ending.map(|e| e.id.clone()).collect()
    }

    fn request(&mut self) -> BytesMut {
        let mut lines = Lines {
            features: vec![ADD_KITES.to_owned()],
            replace: self.options.replace.clone(),
            services: self.services(),
            ..Lines::default()
        };
        if self.options.proof.binding().is_some() {
            lines.features.push(KITE_PROOF.to_owned());
        }
        if self.options.offer_mux {
            lines.features.push(KITE_MUX.to_owned());
            lines.window_kb = Some(self.options.window_kb);
            lines.frame = Some(self.options.frame);
        }
        if self.entries.iter().any(Entry::by_tub) {
            lines.features.push(KITE_TUB.to_owned());
        }
        lines.features.push(KITE_TLS.to_owned());
        lines.features.push(KITE_AWAY.to_owned());
        if self.options.mark.is_some() {
            lines.features.push(KITE_FLEET.to_owned());
        }
        lines.end_tls = self.endings();
        if self.options.offer_beside {
            lines.features.push(KITE_BESIDE.to_owned());
            lines.beside.clone_from(&self.options.beside);
            lines.retire.clone_from(&self.options.retire);
        }
        Request::encode(&lines)
    }

    fn done(&mut self) -> Step {
        self.state = State::Over;
        let mut verdict = std::mem::take(&mut self.verdict);
        verdict.challenged = true;
        verdict.agreed = verdict.proven;
        for Entry {
            id,
            fsalt,
            fate,
            wanted,
        } in self.entries.drain(..)
        {
            match fate {
                Fate::Flies if matches!(wanted.by, By::Tub(_)) => verdict.heard.push(id),
                Fate::Flies => {
                    verdict.challenged &= fsalt.is_some();
                    verdict.flying.push(id);
                }
                Fate::Refused(why) => verdict.refused.push(Refusal { id, why }),
                // Passed over, or challenged a second time because its challenge was stale.
                Fate::Open => {
                    let why = match fsalt {
                        Some(_) => RefusalKind::Unauthorized,
                        None => RefusalKind::Other(String::new()),
                    };
                    verdict.refused.push(Refusal { id, why });
                }
            }
        }
        verdict.challenged &= !verdict.flying.is_empty();
        verdict.proven &= !verdict.flying.is_empty();
        verdict.tls_ended.retain(|id| verdict.flying.contains(id));
        Step::Done(Box::new(verdict))
    }
}

/// What looks like a signature: random digits in its length.
fn filler(tokens: &mut dyn FnMut() -> String) -> String {
    let digits = (0..sign::SIGNATURE_LEN.div_ceil(8)).map(|_| tokens());
    let digits: String = digits.collect();
    digits.chars().take(sign::SIGNATURE_LEN).collect()
}

/// The lines of the next frame that has any. Other frames have nothing to say
/// before the verdict. A PING is not answered: no frontend is known to send one here.
fn next_lines(decoder: &mut Decoder, buf: &mut BytesMut) -> Result<Option<Lines>, FrameError> {
    while let Some(frame) = decoder.decode(buf)? {
        if let Frame::Control(Control {
            kites: Some(lines), ..
        }) = frame
        {
            return Ok(Some(*lines));
        }
    }
    Ok(None)
}

/// Frontends put the verdict on all kites into one frame (protocol page §3.4).
fn has_verdict(lines: &Lines) -> bool {
    !(lines.ok.is_empty()
        && lines.invalid.is_empty()
        && lines.duplicate.is_empty()
        && lines.sign_this.is_empty())
}
