//! A kite as the wire names it, and the line that asks for one (protocol page §3.2).

use std::fmt;

use super::lines::MAX_LINES;
use super::proof::{self, Binding, Prover};
use super::sign::{sign, sign_dated};

/// Longest `proto` or `proto-port`, in bytes.
const MAX_PROTO: usize = 32;
/// Longest name in a service line, in bytes: that of a DNS name.
const MAX_NAME: usize = 253;
/// Longest salt or signature, in bytes. All known peers use 36.
const MAX_SALT: usize = 64;

/// Why the lines of a peer cannot be meant. The peer is at fault.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LinesError {
    /// Not exactly the fields that belong there, an empty or overlong one, or
    /// bytes that are not printable ASCII.
    #[error("the value of {0} has not the form it must have")]
    Form(&'static str),
    /// More than [`MAX_LINES`] of one kind.
    #[error("more than {MAX_LINES} lines of {0}")]
    TooMany(&'static str),
}

/// Which kite of which tunnel: `proto[-port]:name:bsalt`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct KiteId {
    /// `http`, `raw-22`, … in lower case.
    pub proto: String,
    /// A name, a wildcard, or `unknown`; in lower case.
    pub name: String,
    /// What the backend chose for this tunnel.
    pub bsalt: String,
}

impl fmt::Display for KiteId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.proto, self.name, self.bsalt)
    }
}

/// One wanted kite with its proof: `proto[-port]:name:bsalt:fsalt:signature`.
///
/// Whoever has a whole line can fly the kite for up to 20 minutes (protocol page
/// §18), so `Debug` leaves the proof out.
#[derive(Clone, PartialEq, Eq)]
pub struct ServiceLine {
    /// `http`, `raw-22`, … in lower case.
    pub proto: String,
    /// A name, a wildcard, or `unknown`; in lower case.
    pub name: String,
    /// The backend's salt.
    pub bsalt: String,
    /// The frontend's challenge, or nothing in the first round.
    pub fsalt: String,
    /// See [`super::sign`]; between two kites see [`super::proof`].
    pub signature: String,
}

impl ServiceLine {
    /// The line for a kite, signed over `fsalt` (empty in the first round).
    /// `token` is at least eight random hex digits.
    pub fn signed(id: &KiteId, fsalt: &str, secret: &[u8], token: &str) -> Self {
        let mut line = Self::unsigned(id, fsalt, String::new());
        line.signature = sign(secret, &line.payload(), token);
        line
    }

    /// The line for a kite with a proof in the place of its signature.
    pub fn proven(id: &KiteId, fsalt: &str, secret: &[u8], binding: &Binding) -> Self {
        let proof = proof::prove(secret, Prover::Backend, id, fsalt, binding);
        Self::unsigned(id, fsalt, proof.unwrap_or_default())
    }

    /// The line for a kite that says nothing of the secret. Old frontends do not look at
    /// the first signature either (protocol page §3.2).
    pub fn unsigned(id: &KiteId, fsalt: &str, filler: String) -> Self {
        let KiteId { proto, name, bsalt } = id.clone();
        Self {
            proto,
            name,
            bsalt,
            fsalt: fsalt.to_owned(),
            signature: filler,
        }
    }

    /// Exactly five fields; the first three are not empty.
    pub fn parse(value: &[u8]) -> Result<Self, LinesError> {
        let [proto, name, bsalt, fsalt, signature] = fields("X-PageKite", value)?;
        let KiteId { proto, name, bsalt } = kite_id("X-PageKite", [proto, name, bsalt])?;
        Ok(Self {
            proto,
            name,
            bsalt,
            fsalt: fsalt.to_owned(),
            signature: signature.to_owned(),
        })
    }

    /// Which kite this is about.
    pub fn kite_id(&self) -> KiteId {
        KiteId {
            proto: self.proto.clone(),
            name: self.name.clone(),
            bsalt: self.bsalt.clone(),
        }
    }

    /// What the signature is over.
    pub fn payload(&self) -> String {
        format!("{}:{}:{}:{}", self.proto, self.name, self.bsalt, self.fsalt)
    }

    /// What a challenge is over.
    pub fn challenge_payload(&self) -> String {
        format!("{}:{}:{}", self.proto, self.name, self.bsalt)
    }

    /// A frontend's challenge to this line; bound to the kite, good for 10 to 20
    /// minutes, known only to who holds `process_secret`.
    pub fn challenge(&self, process_secret: &[u8], token: &str, now_unix: u64) -> String {
        sign_dated(process_secret, &self.challenge_payload(), token, now_unix)
    }
}

impl fmt::Display for ServiceLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            proto,
            name,
            bsalt,
            fsalt,
            signature,
        } = self;
        write!(f, "{proto}:{name}:{bsalt}:{fsalt}:{signature}")
    }
}

impl fmt::Debug for ServiceLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ServiceLine({}:…)", self.challenge_payload())
    }
}

/// Printable ASCII without blanks.
pub(super) fn visible<'a>(header: &'static str, value: &'a [u8]) -> Result<&'a str, LinesError> {
    let text = std::str::from_utf8(value).map_err(|_| LinesError::Form(header))?;
    if text.bytes().all(|b| b.is_ascii_graphic()) {
        Ok(text)
    } else {
        Err(LinesError::Form(header))
    }
}

/// Exactly `N` fields between colons.
pub(super) fn fields<'a, const N: usize>(
    header: &'static str,
    value: &'a [u8],
) -> Result<[&'a str; N], LinesError> {
    let mut fields = [""; N];
    let mut parts = visible(header, value)?.split(':');
    for field in &mut fields {
        *field = parts
            .next()
            .filter(|part| part.len() <= MAX_NAME)
            .ok_or(LinesError::Form(header))?;
    }
    // The first two are bounded by `kite_id`; what follows them are salts.
    let salts = fields.get(2..).unwrap_or_default();
    if parts.next().is_some() || salts.iter().any(|salt| salt.len() > MAX_SALT) {
        return Err(LinesError::Form(header));
    }
    Ok(fields)
}

pub(super) fn kite_id(
    header: &'static str,
    [proto, name, bsalt]: [&str; 3],
) -> Result<KiteId, LinesError> {
    let fits = |text: &str, max| !text.is_empty() && text.len() <= max && !text.contains(';');
    if !fits(proto, MAX_PROTO) || !fits(name, MAX_NAME) || !fits(bsalt, MAX_SALT) {
        return Err(LinesError::Form(header));
    }
    Ok(KiteId {
        proto: proto.to_ascii_lowercase(),
        name: name.to_ascii_lowercase(),
        bsalt: bsalt.to_owned(),
    })
}

pub(super) fn id(header: &'static str, value: &[u8]) -> Result<KiteId, LinesError> {
    kite_id(header, fields(header, value)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_line_has_five_fields() {
        let line = ServiceLine::parse(b"RAW-22:Kite.Test:Salt::sig").unwrap();
        assert_eq!(
            (line.proto.as_str(), line.name.as_str(), line.bsalt.as_str()),
            ("raw-22", "kite.test", "Salt")
        );
        assert_eq!(line.payload(), "raw-22:kite.test:Salt:");
        assert_eq!(line.to_string(), "raw-22:kite.test:Salt::sig");
        let long = |n: usize| "x".repeat(n);
        for bad in [
            "",
            "http",
            "http:k:b:f",
            "http:k:b:f:s:x",
            ":k:b:f:s",
            "http::b:f:s",
            "http:k::f:s",
            "http:k;x:b:f:s",
            "http:k\0:b:f:s",
            "http:k b:b:f:s",
            "http:é:b:f:s",
            &format!("{}:k:b:f:s", long(33)),
            &format!("http:{}:b:f:s", long(254)),
            &format!("http:k:{}:f:s", long(65)),
            &format!("http:k:b:{}:s", long(65)),
            &format!("http:k:b:f:{}", long(65)),
        ] {
            assert_eq!(
                ServiceLine::parse(bad.as_bytes()),
                Err(LinesError::Form("X-PageKite")),
                "{bad}"
            );
        }
    }
}
