//! What a frontend has said of our kites, in words: for logs, and for `kite status`.

use std::time::{Duration, Instant};

use super::keys::Keys;
use super::stream::Noise;
use crate::code::{Code, Coded};
use crate::config::Service;
use crate::dial::Trust;
use crate::observe::board::Slot;
use crate::random::random_hex;
use crate::wire::KiteId;
use crate::wire::handshake::{RefusalKind, Verdict, Wanted};

/// Between two lines that say of one kite the same refusal.
const REFUSED_AGAIN: Duration = Duration::from_secs(3600);

/// Who reports, and where to.
pub(super) struct Report<'a> {
    /// What was to fly there.
    pub(super) asked: &'a [Service],
    /// The frontend, for logs.
    pub(super) frontend: &'a str,
    /// What it is trusted by.
    pub(super) trust: &'a Trust,
    pub(super) noise: &'a Noise,
    pub(super) slot: &'a Slot,
}

impl Report<'_> {
    /// Of each kite of a verdict.
    pub(super) fn kites(&self, verdict: &Verdict) {
        let frontend = self.frontend;
        for id in &verdict.flying {
            self.up(id);
        }
        for id in &verdict.heard {
            let kite = shown_kite(self.asked, id);
            tracing::info!(
                "{kite}: {frontend} has heard its proof, and looks whether its node answers"
            );
        }
        for refusal in &verdict.refused {
            self.refused(&refusal.id, &refusal.why);
        }
        for id in &verdict.flying {
            let ended = verdict.tls_ended.contains(id);
            let mut asked = self.asked.iter();
            let asked = asked.any(|s| s.tls_at_frontend && flies_as(s, id));
            let kite = shown_kite(self.asked, id);
            match (ended, asked) {
                (true, true) => tracing::info!("{kite}: {frontend} ends its visitors' TLS"),
                (true, false) => tracing::warn!(
                    "[{}] {kite}: the frontend {frontend} ends TLS for it, and reads what it carries, and nobody here \
                     asked for that; write tls = \"frontend\" if it is all right",
                    Code::TlsEnded
                ),
                (false, true) => tracing::warn!(
                    "[{}] {kite}: the frontend {frontend} has no certificate for it, so visitors cannot come by https; \
                     ask its operator for one, or remove tls = \"frontend\"",
                    Code::NoTlsAtFrontend
                ),
                (false, false) => {}
            }
        }
    }

    /// How far the frontend has shown who it is; of the first kites that fly.
    pub(super) fn proof(&self, verdict: &Verdict) {
        let frontend = self.frontend;
        if !verdict.proven && !verdict.flying.is_empty() && *self.trust != Trust::Plain {
            tracing::warn!(
                "[{}] frontend {frontend}: it does not prove that it knows the secret, and can use our answer at \
                 another frontend (an old program, or kite behind another's TLS or Tor); give each frontend \
                 its own secret, or pin the key that kite prints there",
                Code::NoProof
            );
        }
        if !verdict.challenged && !verdict.flying.is_empty() && *self.trust == Trust::Plain {
            tracing::warn!(
                "[{}] frontend {frontend}: it asked for no proof of the secret; it may be anybody; give its pinned \
                 address or its onion name, if it has one",
                Code::NoChallenge
            );
        }
    }

    /// A kite flies.
    pub(super) fn up(&self, id: &KiteId) {
        let place = self.place(id);
        self.noise.refused.forget(&place);
        tracing::info!("kite up: {place}");
    }

    /// One does not fly there; that is not said each time.
    pub(super) fn refused(&self, id: &KiteId, why: &RefusalKind) {
        let code = why.code();
        let (why, remedy) = explain(why);
        let (place, now) = (self.place(id), Instant::now());
        let refused = &self.noise.refused;
        if let Some(before) = refused.due(&place, why, REFUSED_AGAIN, now) {
            tracing::warn!("[{code}] kite refused: {place}: {why}; {remedy}{before}");
        }
        let kite = shown_kite(self.asked, id);
        self.slot.trouble(&format!("{kite}: {why}; {remedy}"));
    }

    /// One that flew does not any more.
    pub(super) fn down(&self, id: &KiteId, why: &RefusalKind) {
        let code = why.code();
        let (why, remedy) = explain(why);
        let place = self.place(id);
        tracing::warn!("[{code}] kite down: {place}: {why}; {remedy}");
        let kite = shown_kite(self.asked, id);
        self.slot
            .failed(&format!("[{code}] {kite}: {why}; {remedy}"));
    }

    fn place(&self, id: &KiteId) -> String {
        format!("{} via {}", shown_kite(self.asked, id), self.frontend)
    }
}

/// Gives up what the frontend would read: one that ends TLS for a kite with TLS of its own has no business with it.
pub(super) fn keep_unread(asked: &[Service], verdict: &mut Verdict) {
    let ours = |id: &KiteId| asked.iter().find(|s| flies_as(s, id));
    let private = |id: &&KiteId| ours(id).is_some_and(|s| !s.protocol.is_plaintext());
    let lost: Vec<_> = verdict.tls_ended.iter().filter(private).cloned().collect();
    for id in lost {
        verdict.give_up(&id, RefusalKind::TlsEnded);
    }
}

/// A kite as the operator wrote it: by its own protocol, not the wire's.
pub(super) fn shown_kite(services: &[Service], id: &KiteId) -> String {
    let ours = services.iter().find(|s| flies_as(s, id));
    format!(
        "{}:{}",
        ours.map_or_else(|| id.proto.clone(), |s| s.ported().to_string()),
        id.name
    )
}

/// A kite without its handshake's salt.
pub(super) fn flown(id: &KiteId) -> (String, String) {
    (id.proto.clone(), id.name.clone())
}

/// Is this what the kite of a verdict is for?
pub(super) fn flies_as(service: &Service, id: &KiteId) -> bool {
    service.name.as_str() == id.name && service.ported().on_wire() == id.proto
}

/// A kite as a handshake asks for it.
pub(super) fn wanted(service: &Service, keys: &Keys) -> Wanted {
    Wanted {
        proto: service.ported().on_wire(),
        name: service.name.clone(),
        secret: service.secret.clone(),
        bsalt: random_hex(36),
        end_tls: service.tls_at_frontend,
        by: keys.of(service),
    }
}

impl Coded for RefusalKind {
    fn code(&self) -> Code {
        match self {
            Self::Signature => Code::WrongSecret,
            Self::Unauthorized => Code::NameUnknown,
            Self::Quota => Code::QuotaUsed,
            Self::Expired => Code::KiteExpired,
            Self::Busy => Code::FrontendBusy,
            Self::Port => Code::PortNotServed,
            Self::Proto => Code::ProtocolNotCarried,
            Self::Proof => Code::ProofRequired,
            Self::TlsEnded => Code::TlsWouldEnd,
            Self::NoTubs => Code::NotOpen,
            Self::NoMore | Self::Unanswered => Code::KitesLeftOut,
            Self::Tub | Self::TubKey | Self::TubNode => Code::TubUnproven,
            Self::Full => Code::FrontendBusy,
            Self::Duplicate => Code::KiteTaken,
            Self::Other(_) => Code::RefusedOtherwise,
        }
    }
}

/// A refusal in words, and what to do about it.
fn explain(why: &RefusalKind) -> (&str, &'static str) {
    match why {
        RefusalKind::Signature => (
            "the secret is wrong",
            "compare the secret files of both sides",
        ),
        RefusalKind::Unauthorized => (
            "the frontend does not know this name",
            "correct the name, or ask the frontend's operator to allow it",
        ),
        RefusalKind::Quota => (
            "the quota is used up",
            "ask the frontend's operator for more",
        ),
        RefusalKind::Expired => (
            "its time at this frontend is over",
            "ask the frontend's operator for more",
        ),
        RefusalKind::Busy => (
            "the frontend cannot check it now",
            "kite tries again by itself",
        ),
        RefusalKind::Port => (
            "the frontend does not serve this port",
            "use one of its ports",
        ),
        RefusalKind::Proto => (
            "the frontend does not carry this protocol for this name",
            "ask its operator to add it to `protocols`",
        ),
        RefusalKind::Proof => (
            "the frontend takes the proof of two kites (KiteProof1) only",
            "give its pinned address or its onion name, as it prints them",
        ),
        RefusalKind::TlsEnded => (
            "the frontend would end TLS for it, and this kite has TLS of its own",
            "ask its operator to leave the name out of its TLS endpoints",
        ),
        RefusalKind::NoTubs => (
            "the frontend lets no kite prove itself by its tub",
            "ask its operator for [open], or for a secret, and give that",
        ),
        RefusalKind::NoMore => (
            "the frontend takes no kites into a tunnel that stands, and the first request holds no more",
            "ask its operator for a newer program, or fly this kite elsewhere",
        ),
        RefusalKind::Unanswered => (
            "the frontend gave no answer for it beside others that fly",
            "an older program drops the tunnel if it refuses all of a question: compare name and secret with its operator",
        ),
        RefusalKind::Tub => (
            "the key that was shown is not that of the tub in its name",
            "begin the name with the tub of this node (my_nodeid), and give its private/node.pem as secret_file",
        ),
        RefusalKind::TubKey => (
            "the frontend wants a proof by the tub's key",
            "give the node's private/node.pem as secret_file, and a pinned or onion address of the frontend",
        ),
        RefusalKind::TubNode => (
            "the frontend went through the tunnel, and did not come to the tub in its name",
            "let the node run, and see that `origin` is its foolscap port",
        ),
        RefusalKind::Full => (
            "the frontend has no place for another kite that proves itself",
            "kite tries again by itself; or ask its operator, or another's",
        ),
        RefusalKind::Duplicate => (
            "another tunnel flies this kite",
            "if it is an old one of this node the frontend will find out within a minute; else stop the other backend",
        ),
        RefusalKind::Other(text) if text.is_empty() => {
            ("no reason was given", "ask the frontend's operator")
        }
        RefusalKind::Other(text) => (text, "ask the frontend's operator"),
    }
}
