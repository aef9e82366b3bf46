//! An invitation: one line that lets a node's operator fly one kite at one frontend, once.
//!
//! `kite-invite1:` and, in URL-safe Base64 without padding, the token (24 bytes), the kite's name, a
//! zero byte, the frontend's address, and the first four bytes of the SHA-256 of all that. A line that was
//! mangled on its way is known by that sum before anybody is asked. docs/invitations.md has the whole picture.

use std::fmt;
use std::str::FromStr;

use data_encoding::BASE64URL_NOPAD;
use rand::RngCore;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use crate::dial::target::{FrontendAddr, Trust};
use crate::kite::{KiteName, Secret};

/// What the line begins with. The digit is its version.
pub const PREFIX: &str = "kite-invite1:";
/// What the lines of all versions begin with.
const FAMILY: &str = "kite-invite";
/// Longest line that is read, in bytes: a name and an address of the greatest length fit.
pub const MAX_LINE: usize = 1024;
/// Of the token, in bytes: what the frontend finds it by.
const ID: usize = 8;
/// Of the token, in bytes: what cannot be guessed.
const KEY: usize = 16;
/// Of the sum, in bytes.
const SUM: usize = 4;
/// Length of a new secret, in bytes.
const SECRET: usize = 32;

/// What lets its holder in, once. Cannot be printed but as text for the line, and is wiped when dropped.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(Zeroizing<[u8; ID + KEY]>);

/// Where to go, as whom, and with what. Not for logs: it holds the [`Token`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invitation {
    /// The frontend. It proves itself by a pinned key or by its onion address.
    pub frontend: FrontendAddr,
    /// The kite.
    pub kite: KiteName,
    /// What is spent for it.
    pub token: Token,
}

/// Why a text is no invitation. Never says the text itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvitationError {
    /// Another text altogether.
    #[error(
        "it does not begin with {PREFIX}; paste the whole line that `kite frontend invite` printed"
    )]
    Other,
    /// Made by a newer kite.
    #[error("it is of a version that this kite does not know; install a newer kite")]
    Version,
    /// Letters are missing, or others than were sent.
    #[error("it is damaged; copy the whole line anew, from {PREFIX} to its last letter")]
    Damaged,
    /// Whoever made it would have us trust nobody.
    #[error(
        "its frontend proves itself neither by a pinned key nor by an onion address, and is not to be trusted with a secret; ask for another invitation"
    )]
    Unproven,
}

impl Token {
    /// A new one.
    pub fn new() -> Self {
        let mut bytes = Zeroizing::new([0; ID + KEY]);
        rand::rng().fill_bytes(&mut *bytes);
        Self(bytes)
    }

    /// What the frontend finds it by, which is no secret.
    pub fn id(&self) -> String {
        let (id, _) = self.0.split_at(ID);
        data_encoding::HEXLOWER.encode(id)
    }

    /// What the frontend keeps of it.
    pub fn hash(&self) -> Hash {
        Hash::of(&*self.0)
    }

    /// For the wire.
    pub fn text(&self) -> Zeroizing<String> {
        Zeroizing::new(BASE64URL_NOPAD.encode(&*self.0))
    }

    /// From the wire.
    pub fn read(text: &str) -> Option<Self> {
        let bytes = Zeroizing::new(BASE64URL_NOPAD.decode(text.as_bytes()).ok()?);
        Some(Self(Zeroizing::new(bytes.as_slice().try_into().ok()?)))
    }
}

impl Default for Token {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

/// What is kept of something that nobody can guess.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct Hash(String);

impl Hash {
    /// Of these bytes, which must be too many to be guessed.
    pub fn of(bytes: &[u8]) -> Self {
        Self(data_encoding::HEXLOWER.encode(&Sha256::digest(bytes)))
    }

    /// Whether both are of the same. Takes as long either way.
    pub fn is(&self, other: &Self) -> bool {
        self.0.as_bytes().ct_eq(other.0.as_bytes()).into()
    }
}

/// A secret for a kite: 256 bits, as text.
pub fn new_secret() -> Option<Secret> {
    let mut bytes = Zeroizing::new([0; SECRET]);
    rand::rng().fill_bytes(&mut *bytes);
    let text = Zeroizing::new(data_encoding::HEXLOWER.encode(&*bytes));
    Secret::new(text.as_bytes())
}

impl Invitation {
    /// The line.
    pub fn line(&self) -> Zeroizing<String> {
        let mut bytes = Zeroizing::new(self.token.0.to_vec());
        bytes.extend(self.kite.as_str().bytes());
        bytes.push(0);
        bytes.extend(self.frontend.to_string().bytes());
        let sum = sum(&bytes);
        bytes.extend(sum);
        let text = Zeroizing::new(BASE64URL_NOPAD.encode(&bytes));
        Zeroizing::new(format!("{PREFIX}{}", *text))
    }
}

fn sum(bytes: &[u8]) -> [u8; SUM] {
    let whole: [u8; 32] = Sha256::digest(bytes).into();
    std::array::from_fn(|i| whole.get(i).copied().unwrap_or_default())
}

impl FromStr for Invitation {
    type Err = InvitationError;

    /// Takes the line as it comes out of a letter: with white space around it, or broken in two.
    fn from_str(text: &str) -> Result<Self, InvitationError> {
        let text: Zeroizing<String> = Zeroizing::new(text.split_whitespace().collect());
        let Some(body) = text.strip_prefix(PREFIX) else {
            return Err(match text.starts_with(FAMILY) {
                true if text.contains(':') => InvitationError::Version,
                true => InvitationError::Damaged,
                false => InvitationError::Other,
            });
        };
        if body.len() > MAX_LINE {
            return Err(InvitationError::Damaged);
        }
        Self::read(body).ok_or(InvitationError::Damaged)?
    }
}

impl Invitation {
    fn read(body: &str) -> Option<Result<Self, InvitationError>> {
        let bytes = Zeroizing::new(BASE64URL_NOPAD.decode(body.as_bytes()).ok()?);
        let (bytes, tail) = bytes.split_at_checked(bytes.len().checked_sub(SUM)?)?;
        if sum(bytes) != tail {
            return None;
        }
        let (token, rest) = bytes.split_at_checked(ID + KEY)?;
        let (kite, frontend) = std::str::from_utf8(rest).ok()?.split_once('\0')?;
        let frontend: FrontendAddr = frontend.parse().ok()?;
        if !matches!(frontend.trust(), Trust::Pin(_) | Trust::Onion) {
            return Some(Err(InvitationError::Unproven));
        }
        Some(Ok(Self {
            frontend,
            kite: kite.parse().ok()?,
            token: Token(Zeroizing::new(token.try_into().ok()?)),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PIN: &str = "sha256:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8";
    const ONION: &str = "2gzyxa5ihm7nsggfxnu52rck2vv4rvmdlkiu3zzui5du4xyclen53wid.onion:443";

    fn invitation(frontend: &str) -> Invitation {
        Invitation {
            frontend: frontend.parse().expect("an address"),
            kite: "bob.alice.example".parse().expect("a name"),
            token: Token::new(),
        }
    }

    #[test]
    fn a_line_is_read_as_it_was_written() {
        for frontend in [format!("alice.example:443#{PIN}"), ONION.to_owned()] {
            let made = invitation(&frontend);
            let line = made.line();
            assert!(line.starts_with(PREFIX) && line.len() < MAX_LINE);
            let plain = |c: char| c.is_ascii_alphanumeric() || "-_:".contains(c);
            assert!(line.chars().all(plain), "{}", *line);
            assert_eq!(line.parse(), Ok(made.clone()));
            let (half, rest) = line.split_at(60);
            assert_eq!(format!("  {half}\n  {rest}\r\n").parse(), Ok(made));
        }
    }

    #[test]
    fn the_longest_fits() {
        let label = "x".repeat(61);
        let name = [label.as_str(); 4].join(".");
        let made = Invitation {
            frontend: format!("{name}:65535#{PIN}").parse().expect("an address"),
            kite: name.parse().expect("a name"),
            token: Token::new(),
        };
        assert_eq!(made.line().parse(), Ok(made));
    }

    #[test]
    fn who_would_have_us_trust_nobody_is_refused() {
        for frontend in ["plain://alice.example:80", "alice.example:443"] {
            let line = invitation(frontend).line();
            assert_eq!(line.parse::<Invitation>(), Err(InvitationError::Unproven));
        }
    }

    #[test]
    fn other_texts_are_named() {
        let read = |text: &str| text.parse::<Invitation>().expect_err("no invitation");
        assert_eq!(read(""), InvitationError::Other);
        assert_eq!(read("alice.example:443"), InvitationError::Other);
        assert_eq!(read("kite-invite2:abc"), InvitationError::Version);
        assert_eq!(read("kite-invite1"), InvitationError::Damaged);
        assert_eq!(read("kite-invite1:"), InvitationError::Damaged);
        let long = format!("{PREFIX}{}", "A".repeat(2 * MAX_LINE));
        assert_eq!(read(&long), InvitationError::Damaged);
    }

    #[test]
    fn nothing_prints_the_token() {
        let made = invitation(ONION);
        assert!(!format!("{made:?}").contains(made.token.text().as_str()));
        assert_eq!(Token::read(&made.token.text()), Some(made.token.clone()));
        assert!(made.token.hash().is(&made.token.hash()));
        assert!(!made.token.hash().is(&Token::new().hash()));
    }

    proptest! {
        /// A letter that is lost, doubled or changed is seen.
        #[test]
        fn a_mangled_line_is_seen(place in 0usize..400, letter in "[A-Za-z0-9_-]", how in 0..3) {
            let made = invitation(&format!("alice.example:443#{PIN}"));
            let line = made.line().to_string();
            let at = PREFIX.len() + place % (line.len() - PREFIX.len());
            let mut other = line.clone();
            match how {
                0 => { other.remove(at); }
                1 => other.insert_str(at, &letter),
                _ => other.replace_range(at..=at, &letter),
            }
            prop_assume!(other != line);
            prop_assert_eq!(other.parse::<Invitation>(), Err(InvitationError::Damaged));
        }

        #[test]
        fn no_text_is_too_strange(text in ".{0,200}") {
            let _ = text.parse::<Invitation>();
            let _ = format!("{PREFIX}{text}").parse::<Invitation>();
        }
    }
}
