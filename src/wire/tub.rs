//! A kite that is called by its tub, `TUBID.alice.example`, and proves itself by the tub's key (protocol page §21.8).
//!
//! What is signed has the form of TLS 1.3's own signatures (RFC 8446 §4.4.3), with words of ours where those of TLS
//! stand: no signature made in a handshake is good here, and none made here is good in a handshake.

use std::fmt;

use data_encoding::BASE64URL_NOPAD;

use super::proof::Binding;
use super::service::{KiteId, LinesError, kite_id, visible};

/// Our extension: a kite that is called by its tub needs no secret.
pub const KITE_TUB: &str = "KiteTub1";
/// Longest certificate of a tub, in bytes. Foolscap's own have 700.
pub const MAX_CERTIFICATE: usize = 4096;
/// Longest signature of a tub's key, in bytes: that of RSA with 8,192 bits.
pub const MAX_SIGNATURE: usize = 1024;
/// What stands in front of a message that TLS 1.3 signs.
const PADDING: [u8; 64] = [0x20; 64];
/// Who signs, and what for.
const CONTEXT: &[u8] = b"KiteTub1, backend proof";

/// What a tub's key signs to fly this kite, on this connection and no other.
pub fn message(id: &KiteId, fsalt: &str, binding: &Binding) -> Vec<u8> {
    let mut message = [&PADDING[..], CONTEXT, &[0]].concat();
    let [kind, value] = binding.fields();
    let KiteId { proto, name, bsalt } = id;
    for field in [proto, name, bsalt, fsalt]
        .map(|text: &str| text.as_bytes())
        .into_iter()
        .chain([kind, value])
    {
        message.extend((field.len() as u64).to_be_bytes());
        message.extend(field);
    }
    message
}

/// "This kite is called by its tub": perhaps with a signature of the tub's key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TubClaim {
    /// Which.
    pub id: KiteId,
    /// What proves it.
    pub signature: Option<TubSignature>,
}

/// A signature over [`message`]. `Debug` leaves it out.
#[derive(Clone, PartialEq, Eq)]
pub struct TubSignature {
    /// By which scheme, as TLS numbers them (RFC 8446 §4.2.3).
    pub scheme: u16,
    /// At most [`MAX_SIGNATURE`].
    pub bytes: Vec<u8>,
}

impl fmt::Debug for TubSignature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TubSignature({:04x}, …)", self.scheme)
    }
}

impl fmt::Display for TubClaim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.id)?;
        match &self.signature {
            Some(TubSignature { scheme, bytes }) => {
                write!(f, ":{scheme:04x}:{}", BASE64URL_NOPAD.encode(bytes))
            }
            None => Ok(()),
        }
    }
}

/// A tub's certificate, DER; at most [`MAX_CERTIFICATE`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TubCertificate(pub Vec<u8>);

impl fmt::Display for TubCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&BASE64URL_NOPAD.encode(&self.0))
    }
}

/// `proto:name:bsalt`, and perhaps `:scheme:signature`.
pub(super) fn claim(value: &[u8]) -> Result<TubClaim, LinesError> {
    const HEADER: &str = "Tub";
    let wrong = || LinesError::Form(HEADER);
    let mut parts = visible(HEADER, value)?.split(':');
    let mut part = || parts.next().ok_or_else(wrong);
    let id = kite_id(HEADER, [part()?, part()?, part()?])?;
    let signature = match (parts.next(), parts.next(), parts.next()) {
        (None, None, None) => None,
        (Some(scheme), Some(bytes), None) if scheme.len() == 4 => Some(TubSignature {
            scheme: u16::from_str_radix(scheme, 16).map_err(|_| wrong())?,
            bytes: decoded(bytes, MAX_SIGNATURE).ok_or_else(wrong)?,
        }),
        _ => return Err(wrong()),
    };
    Ok(TubClaim { id, signature })
}

pub(super) fn certificate(value: &[u8]) -> Result<TubCertificate, LinesError> {
    const HEADER: &str = "Tub-Certificate";
    let text = visible(HEADER, value)?;
    decoded(text, MAX_CERTIFICATE)
        .map(TubCertificate)
        .ok_or(LinesError::Form(HEADER))
}

fn decoded(text: &str, most: usize) -> Option<Vec<u8>> {
    let bytes = BASE64URL_NOPAD.decode(text.as_bytes()).ok()?;
    (!bytes.is_empty() && bytes.len() <= most).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(proto: &str, name: &str) -> KiteId {
        KiteId {
            proto: proto.into(),
            name: name.into(),
            bsalt: "b".into(),
        }
    }

    #[test]
    fn a_claim_is_what_was_written() {
        for signature in [
            None,
            Some(TubSignature {
                scheme: 0x0804,
                bytes: vec![7; MAX_SIGNATURE],
            }),
        ] {
            let written = TubClaim {
                id: id("http", "kite.test"),
                signature,
            };
            assert_eq!(claim(written.to_string().as_bytes()), Ok(written));
        }
        let certificate_text = TubCertificate(vec![9; MAX_CERTIFICATE]).to_string();
        assert!(certificate(certificate_text.as_bytes()).is_ok());
        for bad in [
            "",
            "http:k",
            "http:k:b:0804",
            "http:k:b:804:AA",
            "http:k:b:08x4:AA",
            "http:k:b:0804:",
            "http:k:b:0804:A",
            "http:k:b:0804:AA:",
            "http:k;:b",
        ] {
            assert_eq!(claim(bad.as_bytes()), Err(LinesError::Form("Tub")), "{bad}");
        }
        let long = BASE64URL_NOPAD.encode(&vec![0; MAX_SIGNATURE + 1]);
        assert!(claim(format!("http:k:b:0804:{long}").as_bytes()).is_err());
        let long = TubCertificate(vec![9; MAX_CERTIFICATE + 1]).to_string();
        assert!(certificate(long.as_bytes()).is_err());
        assert!(certificate(b"").is_err());
    }

    #[test]
    fn no_two_things_are_signed_by_one_message() {
        let tls = Binding::Tls([7; 32]);
        let said = |id: &KiteId, fsalt, binding: &Binding| message(id, fsalt, binding);
        let one = said(&id("http", "kite.test"), "t1", &tls);
        assert!(one.starts_with(&[0x20; 64]) && one.len() > 64 + CONTEXT.len());
        for other in [
            said(&id("https", "kite.test"), "t1", &tls),
            said(&id("http", "kite.tes"), "t1", &tls),
            said(&id("http", "kite.test"), "t2", &tls),
            said(&id("http", "kite.test"), "t1", &Binding::Tls([8; 32])),
            said(&id("http", "kite.test"), "t1", &Binding::onion("a.onion")),
        ] {
            assert_ne!(one, other);
        }
    }
}
