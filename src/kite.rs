//! The words every room shares: what a kite is called, what it carries, and
//! the secret that lets it fly.

use std::fmt;
use std::str::FromStr;

use zeroize::Zeroizing;

/// Longest kite name, in bytes: the limit of a DNS name in text form (RFC 1035 §2.3.4).
pub const MAX_NAME: usize = 253;
/// Longest label between two dots, in bytes (RFC 1035 §2.3.4).
pub const MAX_LABEL: usize = 63;
/// Longest shared secret, in bytes. A longer one is surely the wrong file.
pub const MAX_SECRET: usize = 1024;

/// A kite's public name: a DNS name in lower case, without a trailing dot,
/// or a wildcard such as `*.alice.example`.
///
/// Comparing two names is comparing two strings: every spelling that means the
/// same name parses to the same value.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KiteName(Box<str>);

/// Why a text is no kite name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Nothing, or nothing but a dot.
    #[error("it is empty")]
    Empty,
    /// Longer than [`MAX_NAME`].
    #[error("it is longer than {MAX_NAME} bytes")]
    TooLong,
    /// Two dots in a row, or a label over [`MAX_LABEL`].
    #[error("the label '{0}' is empty or longer than {MAX_LABEL} bytes")]
    Label(String),
    /// Anything but letters, digits, `-` and `_`.
    #[error("it may hold letters, digits, '-', '_' and '.', and a '*' only as its first label")]
    Character,
}

impl KiteName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// True for `*.alice.example`.
    pub fn is_wildcard(&self) -> bool {
        self.0.starts_with("*.")
    }

    /// The wildcards that cover this name, nearest first: `*.b.c`, then `*.c`
    /// for `a.b.c`. A wildcard's own text is not among them.
    pub fn wildcards(&self) -> impl Iterator<Item = String> + '_ {
        let mut rest: &str = &self.0;
        std::iter::from_fn(move || {
            let (_, parent) = rest.split_once('.')?;
            rest = parent;
            Some(format!("*.{parent}"))
        })
    }

    /// Does this pattern (exact, or a wildcard) cover `name`?
    /// A wildcard covers any depth below it, and itself, never its bare parent.
    pub fn covers(&self, name: &KiteName) -> bool {
        match self.0.strip_prefix('*') {
            Some(tail) => name == self || (name.0.len() > tail.len() && name.0.ends_with(tail)),
            None => self == name,
        }
    }
}

impl FromStr for KiteName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let name = text.strip_suffix('.').unwrap_or(text);
        if name.is_empty() {
            return Err(NameError::Empty);
        }
        if name.len() > MAX_NAME {
            return Err(NameError::TooLong);
        }
        let plain = name.strip_prefix("*.").unwrap_or(name);
        if !plain
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
        {
            return Err(NameError::Character);
        }
        if let Some(label) = plain
            .split('.')
            .find(|l| l.is_empty() || l.len() > MAX_LABEL)
        {
            return Err(NameError::Label(label.to_owned()));
        }
        Ok(Self(name.to_ascii_lowercase().into()))
    }
}

impl fmt::Display for KiteName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for KiteName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a kite carries, as an operator says it.
///
/// The wire knows fewer words: see [`Protocol::on_wire`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub enum Protocol {
    /// Foolscap's HTTP-then-TLS upgrade and nothing else. The default for a storage node.
    Foolscap,
    /// Tahoe's HTTPS storage protocol: TLS without SNI, on a public port of the kite's own.
    TahoeHttps,
    /// TLS by SNI, passed through unopened.
    Https,
    /// Plain HTTP by `Host`. Everyone on the way can read it.
    Http,
    /// Plain HTTP that upgrades to a WebSocket.
    Websocket,
    /// Any bytes, reached through HTTP CONNECT.
    Raw,
}

impl Protocol {
    /// Every protocol, in the order in which messages list them.
    pub const ALL: [Protocol; 6] = [
        Protocol::Foolscap,
        Protocol::TahoeHttps,
        Protocol::Https,
        Protocol::Http,
        Protocol::Websocket,
        Protocol::Raw,
    ];

    /// The word an operator writes.
    pub fn as_str(self) -> &'static str {
        match self {
            Protocol::Foolscap => "foolscap",
            Protocol::TahoeHttps => "tahoe-https",
            Protocol::Https => "https",
            Protocol::Http => "http",
            Protocol::Websocket => "websocket",
            Protocol::Raw => "raw",
        }
    }

    /// The word PageKite's wire uses. Foolscap opens as HTTP, Tahoe's HTTPS as TLS,
    /// so that any PageKite frontend can carry them (protocol page §3.2, §7.1).
    pub fn on_wire(self) -> &'static str {
        match self {
            Protocol::Foolscap | Protocol::Http => "http",
            Protocol::TahoeHttps | Protocol::Https => "https",
            Protocol::Websocket => "websocket",
            Protocol::Raw => "raw",
        }
    }

    /// True when the frontend and everyone before it can read what passes.
    pub fn is_plaintext(self) -> bool {
        matches!(self, Protocol::Http | Protocol::Websocket | Protocol::Raw)
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A word that names no [`Protocol`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is no protocol; use foolscap, tahoe-https, https, http, websocket or raw")]
pub struct UnknownProtocol(pub String);

impl FromStr for Protocol {
    type Err = UnknownProtocol;

    fn from_str(word: &str) -> Result<Self, UnknownProtocol> {
        Protocol::ALL
            .into_iter()
            .find(|p| p.as_str().eq_ignore_ascii_case(word))
            .ok_or_else(|| UnknownProtocol(word.to_owned()))
    }
}

/// A secret shared by a kite and its frontends. Cannot be printed, and is wiped when dropped.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Zeroizing<Vec<u8>>);

impl Secret {
    /// Takes the bytes of a secret file or variable; white space around it does not count.
    ///
    /// `None` if nothing is left, or more than [`MAX_SECRET`].
    pub fn new(text: &[u8]) -> Option<Self> {
        let trimmed = text.trim_ascii();
        (!trimmed.is_empty() && trimmed.len() <= MAX_SECRET)
            .then(|| Self(Zeroizing::new(trimmed.to_vec())))
    }

    /// The bytes, for a MAC and nothing else.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> KiteName {
        text.parse().expect("a valid name")
    }

    #[test]
    fn every_spelling_is_one_name() {
        assert_eq!(
            name("TahoeBob.Alice.Example."),
            name("tahoebob.alice.example")
        );
    }

    #[test]
    fn bad_names_are_refused() {
        for bad in [
            "",
            ".",
            "a..b",
            "a b",
            "a/b",
            "*",
            "a.*.b",
            "a:80",
            "é.example",
            &"x".repeat(64),
            &"ab.".repeat(90),
        ] {
            assert!(bad.parse::<KiteName>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn wildcards_cover_what_is_below_them() {
        let w = name("*.alice.example");
        assert!(w.covers(&name("bob.alice.example")));
        assert!(w.covers(&name("deep.bob.alice.example")));
        assert!(w.covers(&w));
        assert!(!w.covers(&name("alice.example")));
        assert!(!w.covers(&name("malice.example")));
        assert_eq!(
            name("a.b.c").wildcards().collect::<Vec<_>>(),
            ["*.b.c", "*.c"]
        );
    }

    #[test]
    fn a_secret_never_prints() {
        let s = Secret::new(b"  hunter2\n").expect("not empty");
        assert_eq!(s.expose(), b"hunter2");
        assert_eq!(format!("{s:?}"), "Secret(…)");
        assert!(Secret::new(b" \n").is_none());
    }
}
