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

/// Longest key of a tub with its certificate, as text, in bytes. Foolscap's have 2,900.
pub const MAX_KEY: usize = 16 * 1024;

/// A kite's public name: a DNS name in lower case, without a trailing dot,
/// or a wildcard such as `*.alice.example`.
///
/// Comparing two names is comparing two strings: every spelling that means the
/// same name parses to the same value.
///
/// ```
/// use kite::kite::KiteName;
///
/// let all: KiteName = "*.Alice.example.".parse()?;
/// assert_eq!(all.as_str(), "*.alice.example");
/// assert!(all.covers(&"bob.alice.example".parse()?));
/// assert!("bob..example".parse::<KiteName>().is_err());
/// # Ok::<(), kite::kite::NameError>(())
/// ```
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

    /// The catch-all of PageKite: a kite of this name serves visitors whose own kite does not fly (protocol page §5.2).
    pub const CATCH_ALL: &str = "unknown";

    /// True for the name [`KiteName::CATCH_ALL`].
    pub fn is_catch_all(&self) -> bool {
        &*self.0 == Self::CATCH_ALL
    }

    /// Is a kite of this name for visitors of `host`? As [`KiteName::covers`]; the catch-all is for all.
    pub fn serves(&self, host: &KiteName) -> bool {
        self.is_catch_all() || self.covers(host)
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
    /// As `Http`, for visitors whose `Http` kite does not fly: the second choice. Nothing to do with HTTP/2.
    Http2,
    /// The third choice.
    Http3,
    /// XMPP, by the host that the stream is opened to.
    Xmpp,
    /// Minecraft (Java edition), by the server that the player typed.
    Minecraft,
    /// Any bytes, reached through HTTP CONNECT or a port of the kite's own.
    Raw,
}

impl Protocol {
    /// Every protocol, in the order in which messages list them.
    pub const ALL: [Protocol; 10] = [
        Protocol::Foolscap,
        Protocol::TahoeHttps,
        Protocol::Https,
        Protocol::Http,
        Protocol::Websocket,
        Protocol::Http2,
        Protocol::Http3,
        Protocol::Xmpp,
        Protocol::Minecraft,
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
            Protocol::Http2 => "http2",
            Protocol::Http3 => "http3",
            Protocol::Xmpp => "xmpp",
            Protocol::Minecraft => "minecraft",
            Protocol::Raw => "raw",
        }
    }

    /// The word PageKite's wire uses. Foolscap opens as HTTP, Tahoe's HTTPS as TLS,
    /// so that any PageKite frontend can carry them (protocol page §3.2, §7.1).
    pub fn on_wire(self) -> &'static str {
        match self {
            Protocol::Foolscap | Protocol::Http => "http",
            Protocol::TahoeHttps | Protocol::Https => "https",
            other => other.as_str(),
        }
    }

    /// True when the frontend and everyone before it can read what passes, as far as kite knows: XMPP, Minecraft and raw
    /// streams may have an encryption of their own.
    pub fn is_plaintext(self) -> bool {
        !matches!(
            self,
            Protocol::Foolscap | Protocol::TahoeHttps | Protocol::Https
        )
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A word that names no [`Protocol`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "'{0}' is no protocol; use foolscap, tahoe-https, https, http, websocket, raw, xmpp, minecraft, http2 or http3"
)]
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

/// A protocol, and the public port whose visitors a kite is for, if not for those of any port: `http`, `raw-22`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub struct Ported {
    /// What is carried.
    pub protocol: Protocol,
    /// The port as the frontend calls it; `None` for any.
    pub port: Option<u16>,
}

impl Ported {
    /// The wire's word with its port, as in a service line (protocol page §3.2).
    pub fn on_wire(self) -> String {
        with_port(self.protocol.on_wire(), self.port)
    }
}

fn with_port(word: &str, port: Option<u16>) -> String {
    match port {
        Some(port) => format!("{word}-{port}"),
        None => word.to_owned(),
    }
}

impl fmt::Display for Ported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&with_port(self.protocol.as_str(), self.port))
    }
}

/// Why a text is no protocol with or without a port.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PortedError {
    /// The word before the port, or alone.
    #[error(transparent)]
    Protocol(#[from] UnknownProtocol),
    /// What stands behind the last `-`.
    #[error("'{0}' is no port from 1 to 65535")]
    Port(String),
}

/// `raw`, `raw-22`; also pagekite.py's `ssh` for `raw-22`, and `tls` for `https`.
impl FromStr for Ported {
    type Err = PortedError;

    fn from_str(text: &str) -> Result<Self, PortedError> {
        let (word, port) = match text.rsplit_once('-') {
            // `tahoe-https` has a dash of its own.
            Some((word, port)) if port.starts_with(|c: char| c.is_ascii_digit()) => (
                word,
                Some(parse_port(port).ok_or_else(|| PortedError::Port(port.to_owned()))?),
            ),
            _ => (text, None),
        };
        let (protocol, usual) = match word.to_ascii_lowercase().as_str() {
            "ssh" => (Protocol::Raw, Some(22)),
            "tls" => (Protocol::Https, None),
            word => (word.parse()?, None),
        };
        Ok(Self {
            protocol,
            port: port.or(usual),
        })
    }
}

/// A port in decimal, but 0.
fn parse_port(digits: &str) -> Option<u16> {
    digits.parse().ok().filter(|port| *port != 0)
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

    /// The same for a key that is text, of at most [`MAX_KEY`] bytes.
    pub fn key(text: &[u8]) -> Option<Self> {
        let trimmed = text.trim_ascii();
        (!trimmed.is_empty() && trimmed.len() <= MAX_KEY)
            .then(|| Self(Zeroizing::new(trimmed.to_vec())))
    }

    /// The bytes, for a MAC or a signature and nothing else.
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
    fn a_port_belongs_to_the_protocol() {
        let read = |text: &str| text.parse::<Ported>().map(|p| (p.to_string(), p.on_wire()));
        for (text, shown, wire) in [
            ("http", "http", "http"),
            ("raw-22", "raw-22", "raw-22"),
            ("SSH", "raw-22", "raw-22"),
            ("ssh-2222", "raw-2222", "raw-2222"),
            ("tls", "https", "https"),
            ("tls-8443", "https-8443", "https-8443"),
            ("foolscap-8098", "foolscap-8098", "http-8098"),
            ("tahoe-https", "tahoe-https", "https"),
            ("tahoe-https-8443", "tahoe-https-8443", "https-8443"),
        ] {
            assert_eq!(read(text), Ok((shown.into(), wire.into())), "{text}");
        }
        for bad in [
            "",
            "raw-",
            "raw-0",
            "raw-65536",
            "raw-22x",
            "-22",
            "smtp",
            "http--80",
        ] {
            assert!(bad.parse::<Ported>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn the_catch_all_serves_all_and_covers_none() {
        let all = name("unknown");
        assert!(all.serves(&name("bob.alice.example")));
        assert!(!all.covers(&name("bob.alice.example")));
        assert!(name("*.alice.example").serves(&name("bob.alice.example")));
    }

    #[test]
    fn a_secret_never_prints() {
        let s = Secret::new(b"  hunter2\n").expect("not empty");
        assert_eq!(s.expose(), b"hunter2");
        assert_eq!(format!("{s:?}"), "Secret(…)");
        assert!(Secret::new(b" \n").is_none());
    }
}
