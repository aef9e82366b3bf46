//! The proof that replaces PageKite's signatures between two kites (protocol page §21.3).
//!
//! HMAC-SHA-256, keyed by the kite's secret, over who speaks, for which kite, the challenge,
//! and the [`Binding`]: what both ends know of the connection, and no one else's connection
//! has. A proof that is carried to another connection, or back to its maker, proves nothing.

use std::fmt;

use data_encoding::BASE64URL_NOPAD;
use hmac::{Hmac, Mac};
use sha2::Sha256;

use super::KiteId;

/// Length of every proof, in characters: 32 bytes of base64url without padding.
pub const PROOF_LEN: usize = 43;
/// The label of the TLS exporter (RFC 5705, RFC 8446 §7.5), without a context.
pub const EXPORTER_LABEL: &[u8] = b"EXPORTER-kite-proof-1";
/// What the exporter gives, in bytes.
pub const EXPORTER_LEN: usize = 32;

/// What makes a connection itself, as one of its ends sees it. Both must see the same, or
/// the proof fails. A connection with neither, such as `plain://`, has no binding and no proof:
/// who carries it could pass everything on, this included.
#[derive(Clone, PartialEq, Eq)]
pub enum Binding {
    /// The exporter of its TLS 1.3 session. Who ends TLS in the middle has two sessions.
    Tls([u8; EXPORTER_LEN]),
    /// The onion service's name, which is its key: lower case, `….onion`, no subdomain.
    Onion(String),
}

impl Binding {
    /// The binding of a connection to an onion service, by the name that was dialled.
    pub fn onion(host: &str) -> Self {
        let host = host.to_ascii_lowercase();
        // `a.b.NAME.onion` leads to the same service as `NAME.onion`.
        let mut labels = host.rsplitn(3, '.');
        match (labels.next(), labels.next()) {
            (Some(tld), Some(name)) => Self::Onion(format!("{name}.{tld}")),
            _ => Self::Onion(host),
        }
    }

    pub(super) fn fields(&self) -> [&[u8]; 2] {
        match self {
            Self::Tls(exporter) => [b"tls", exporter],
            Self::Onion(name) => [b"onion", name.as_bytes()],
        }
    }
}

/// Says the kind and no more.
impl fmt::Debug for Binding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tls(_) => "Binding::Tls(…)",
            Self::Onion(_) => "Binding::Onion(…)",
        })
    }
}

/// Who proves. Without it a proof could be sent back to its maker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Prover {
    /// The backend, in answer to the challenge.
    Backend,
    /// The frontend, beside its OK.
    Frontend,
}

/// Proves the knowledge of `secret` to the other end of this connection.
pub fn prove(
    secret: &[u8],
    prover: Prover,
    id: &KiteId,
    fsalt: &str,
    binding: &Binding,
) -> Option<String> {
    let mac = mac(secret, prover, id, fsalt, binding)?;
    Some(BASE64URL_NOPAD.encode(&mac.finalize().into_bytes()))
}

/// Does `proof` fit? The comparison takes the same time wherever the first difference is.
/// A challenge must have been made: nothing is proved by an old proof for none.
pub fn verify(
    secret: &[u8],
    prover: Prover,
    id: &KiteId,
    fsalt: &str,
    binding: &Binding,
    proof: &str,
) -> bool {
    let Ok(given) = BASE64URL_NOPAD.decode(proof.as_bytes()) else {
        return false;
    };
    !fsalt.is_empty()
        && mac(secret, prover, id, fsalt, binding)
            .is_some_and(|mac| mac.verify_slice(&given).is_ok())
}

/// `None` never happens: HMAC takes keys of any length.
fn mac(
    secret: &[u8],
    prover: Prover,
    id: &KiteId,
    fsalt: &str,
    binding: &Binding,
) -> Option<Hmac<Sha256>> {
    let label: &[u8] = match prover {
        Prover::Backend => b"KiteProof1 backend",
        Prover::Frontend => b"KiteProof1 frontend",
    };
    let [kind, value] = binding.fields();
    let mut mac = <Hmac<Sha256> as Mac>::new_from_slice(secret).ok()?;
    // Each field behind its length, so that no two lists of fields are the same bytes.
    for field in [
        label,
        id.proto.as_bytes(),
        id.name.as_bytes(),
        id.bsalt.as_bytes(),
        fsalt.as_bytes(),
        kind,
        value,
    ] {
        mac.update(&(field.len() as u64).to_be_bytes());
        mac.update(field);
    }
    Some(mac)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &[u8] = b"s3cret-for-tests";
    const FSALT: &str = "t825cf71644ee8479ee6e58fd82773805687";

    fn id(proto: &str, name: &str, bsalt: &str) -> KiteId {
        KiteId {
            proto: proto.into(),
            name: name.into(),
            bsalt: bsalt.into(),
        }
    }

    /// Protocol page §21.3; made with Python's hmac and hashlib.
    #[test]
    fn the_published_vectors() {
        let id = id("http", "kite.test", "9d06914711b4933d827065789abd48ea560a");
        let tls = Binding::Tls(std::array::from_fn(|n| n as u8));
        let onion = Binding::onion("www.ABCDEFGH.onion");
        for (prover, binding, expected) in [
            (
                Prover::Backend,
                &tls,
                "sFl6w3eX_ra5UUiBwBcMFfzhMmRYRXKKcusc513ryjY",
            ),
            (
                Prover::Frontend,
                &tls,
                "o93L8mF307FQYk13rOmIPDJWDWm66YMtFdxI0FsOuzQ",
            ),
            (
                Prover::Backend,
                &onion,
                "khlmH8XZswX1C9eUqBkPC8egivhXAzRNEZdZGYiR990",
            ),
            (
                Prover::Frontend,
                &onion,
                "ZMbr41WqcY0ICRuh49hIhmkGIpOdKOvZ1IIVBF-t4-s",
            ),
        ] {
            let made = prove(SECRET, prover, &id, FSALT, binding).unwrap();
            assert_eq!((made.as_str(), made.len()), (expected, PROOF_LEN));
            assert!(verify(SECRET, prover, &id, FSALT, binding, &made));
        }
    }

    #[test]
    fn a_proof_is_good_for_one_thing_only() {
        let kite = id("http", "kite.test", "b");
        let tls = Binding::Tls([7; 32]);
        let good = prove(SECRET, Prover::Backend, &kite, FSALT, &tls).unwrap();
        let fits = |secret: &[u8], prover, id: &KiteId, fsalt, binding: &Binding, proof: &str| {
            verify(secret, prover, id, fsalt, binding, proof)
        };
        use Prover::{Backend, Frontend};
        assert!(fits(SECRET, Backend, &kite, FSALT, &tls, &good));
        assert!(!fits(b"other", Backend, &kite, FSALT, &tls, &good));
        assert!(
            !fits(SECRET, Frontend, &kite, FSALT, &tls, &good),
            "sent back to its maker"
        );
        for other in [
            id("https", "kite.test", "b"),
            id("http", "kite.tes", "tb"),
            id("http", "kite.test", "c"),
        ] {
            assert!(!fits(SECRET, Backend, &other, FSALT, &tls, &good));
        }
        assert!(!fits(SECRET, Backend, &kite, "t0", &tls, &good));
        for other in [
            Binding::Tls([8; 32]),
            Binding::onion("a.onion"),
            Binding::Onion(String::from_utf8(vec![7; 32]).unwrap()),
        ] {
            assert!(!fits(SECRET, Backend, &kite, FSALT, &other, &good));
        }
        for cut in 0..good.len() {
            assert!(!fits(SECRET, Backend, &kite, FSALT, &tls, &good[..cut]));
        }
        assert!(!fits(
            SECRET,
            Backend,
            &kite,
            FSALT,
            &tls,
            &format!("{good}A")
        ));
        // No proof for no challenge.
        let early = prove(SECRET, Backend, &kite, "", &tls).unwrap();
        assert!(!fits(SECRET, Backend, &kite, "", &tls, &early));
    }

    #[test]
    fn a_binding_does_not_print() {
        let shown = format!("{:?}", (Binding::Tls([7; 32]), Binding::onion("a.onion")));
        assert_eq!(shown, "(Binding::Tls(…), Binding::Onion(…))");
    }
}
