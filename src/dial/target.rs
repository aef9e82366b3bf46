//! Where connections go, as text: frontends by name, origins by number.
//!
//! A [`FrontendAddr`] is never resolved here. In Tor mode its host travels to
//! the exit relay exactly as text; only `dial/direct.rs` may hand it to the
//! system's resolver. An [`OriginAddr`] needs no resolver at all, because it
//! holds nothing but literal addresses.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;

use crate::tls::{Pin, PinError};

/// Longest host name, in bytes: the limit of a DNS name in text form (RFC 1035 §2.3.4).
const MAX_HOST: usize = 253;
/// Longest label between two dots, in bytes (RFC 1035 §2.3.4).
const MAX_LABEL: usize = 63;
/// Most names that a frontend's certificate may be for.
const MAX_NAMES: usize = 16;
/// Letters of a version 3 onion address before `.onion` (rend-spec-v3 §6).
const ONION_LETTERS: usize = 56;

/// How a frontend proves who it is. The safe ways are the short ones to write.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Trust {
    /// TLS, verified against the web's roots, with the host's name.
    Roots,
    /// The same, but the certificate is for one of these names (at least one, in lower case) whatever the host is
    /// called. The first is the one that TLS asks for.
    Names(Box<[Box<str>]>),
    /// TLS, and the certificate's public key must be this one. Names and dates do not count.
    Pin(Pin),
    /// An onion service: its name is its key, and no exit relay is involved.
    Onion,
    /// Nothing. Whoever carries the connection can take the kite over.
    Plain,
}

/// A frontend as an operator writes it:
///
/// | form | trust |
/// |---|---|
/// | `host:port` | [`Trust::Roots`] |
/// | `host:port#name:NAME,NAME` | [`Trust::Names`] |
/// | `host:port#sha256:PIN` | [`Trust::Pin`] |
/// | `NAME.onion:port` | [`Trust::Onion`], or TLS inside when one of the two follows |
/// | `plain://host:port` | [`Trust::Plain`] |
///
/// [`fmt::Display`] gives back a text that parses to the same value. It holds no
/// address but what the operator wrote, so it may be logged.
///
/// ```
/// use kite::dial::{FrontendAddr, Trust};
///
/// let pinned = "Alice.example:443#sha256:9X5X5Yf25dMftN-MbXSQ4KVVGvHu1-aDouLGKUQCrTQ";
/// let address: FrontendAddr = pinned.parse()?;
/// assert_eq!((address.host(), address.port()), ("alice.example", 443));
/// assert!(matches!(address.trust(), Trust::Pin(_)));
/// assert!("alice.example".parse::<FrontendAddr>().is_err(), "it has no port");
/// # Ok::<(), kite::dial::TargetError>(())
/// ```
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct FrontendAddr {
    /// A DNS name in lower case without trailing dot, or an IP literal without brackets.
    host: Box<str>,
    port: u16,
    trust: Trust,
}

/// Why a text is no frontend address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    /// No `:port` at the end.
    #[error("it has no port; write {0}:443, or the port that the frontend listens on")]
    NoPort(String),
    /// A port that is no number from 1 to 65535.
    #[error("'{0}' is no port; use a number from 1 to 65535")]
    BadPort(String),
    /// Something that is no host name.
    #[error("'{0}' is no host; use a DNS name, an IPv4 address, or an IPv6 address in brackets")]
    BadHost(String),
    /// An IPv6 address whose end cannot be told from the port.
    #[error("an IPv6 address needs brackets; write [2001:db8::1]:443")]
    Brackets,
    /// A scheme other than `plain://`.
    #[error("'{0}://' is not understood; write host:port for TLS, or plain://host:port for none")]
    Scheme(String),
    /// `plain://` together with a pin or a name.
    #[error("plain:// has no TLS that a pin or a name could hold for; drop one of the two")]
    PlainPin,
    /// `plain://` before an onion address.
    #[error("an onion address is authenticated by its name; write it without plain://")]
    PlainOnion,
    /// A `.onion` name that cannot be one.
    #[error(
        "'{0}' is no onion address; the name before .onion has {ONION_LETTERS} letters and digits and ends in 'd'"
    )]
    BadOnion(String),
    /// What follows `#` is no pin.
    #[error("{0}")]
    Pin(#[from] PinError),
    /// What follows `#name:` is no list of names.
    #[error(
        "'{0}' is no list of DNS names; write #name:frontend.example, up to {MAX_NAMES} with commas"
    )]
    Names(String),
}

impl FrontendAddr {
    /// The host as text: a lower-case name or an IP literal without brackets.
    ///
    /// Only `dial/direct.rs` may resolve it.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The TCP port, never 0.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// How the frontend proves itself.
    pub fn trust(&self) -> &Trust {
        &self.trust
    }

    /// True for an onion service, pinned or not: reachable through Tor alone.
    pub fn is_onion(&self) -> bool {
        self.host.ends_with(".onion")
    }
}

impl FromStr for FrontendAddr {
    type Err = TargetError;

    fn from_str(text: &str) -> Result<Self, TargetError> {
        let text = text.trim();
        let (plain, rest) = match text.split_once("://") {
            Some(("plain", rest)) => (true, rest),
            Some((scheme, _)) => return Err(TargetError::Scheme(scheme.to_owned())),
            None => (false, text),
        };
        let (place, shown) = match rest.split_once('#') {
            Some((place, proof)) => (place, Some(proof_of(proof)?)),
            None => (rest, None),
        };
        let (host, port) = split_port(place)?;
        let host = host_of(host)?;
        let onion = host.ends_with(".onion");
        let trust = match (plain, shown, onion) {
            (true, Some(_), _) => return Err(TargetError::PlainPin),
            (true, None, true) => return Err(TargetError::PlainOnion),
            (true, None, false) => Trust::Plain,
            (false, Some(shown), _) => shown,
            (false, None, true) => Trust::Onion,
            (false, None, false) => Trust::Roots,
        };
        Ok(Self { host, port, trust })
    }
}

impl fmt::Display for FrontendAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.trust == Trust::Plain {
            f.write_str("plain://")?;
        }
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)?;
        } else {
            write!(f, "{}:{}", self.host, self.port)?;
        }
        match &self.trust {
            Trust::Pin(pin) => write!(f, "#{pin}"),
            Trust::Names(names) => write!(f, "#name:{}", names.join(",")),
            Trust::Roots | Trust::Onion | Trust::Plain => Ok(()),
        }
    }
}

impl fmt::Debug for FrontendAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What follows `#`: a pin, or names.
fn proof_of(text: &str) -> Result<Trust, TargetError> {
    let Some(list) = text.strip_prefix("name:") else {
        return Ok(Trust::Pin(text.parse()?));
    };
    let name = |word: &str| {
        host_of(word)
            .ok()
            .filter(|name| name.parse::<IpAddr>().is_err())
    };
    let names: Option<Box<[Box<str>]>> = list.split(',').map(name).collect();
    names
        .filter(|names| names.len() <= MAX_NAMES)
        .map(Trust::Names)
        .ok_or_else(|| TargetError::Names(list.to_owned()))
}

/// Cuts `host:port`, with or without brackets.
fn split_port(place: &str) -> Result<(&str, u16), TargetError> {
    let (host, port) = if let Some(inner) = place.strip_prefix('[') {
        let (host, tail) = inner.split_once(']').ok_or(TargetError::Brackets)?;
        if host.parse::<std::net::Ipv6Addr>().is_err() {
            return Err(TargetError::BadHost(host.to_owned()));
        }
        match tail.strip_prefix(':') {
            Some(port) => (host, port),
            None => return Err(TargetError::NoPort(format!("[{host}]"))),
        }
    } else {
        match place.rsplit_once(':') {
            None => return Err(TargetError::NoPort(place.to_owned())),
            Some((host, _)) if host.contains(':') => return Err(TargetError::Brackets),
            Some(cut) => cut,
        }
    };
    // `u16::from_str` takes a leading '+', which nobody means.
    let digits = !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit());
    match port.parse::<u16>() {
        Ok(number) if digits && number != 0 => Ok((host, number)),
        _ => Err(TargetError::BadPort(port.to_owned())),
    }
}

/// Checks a host and brings it into the one spelling that we compare.
fn host_of(text: &str) -> Result<Box<str>, TargetError> {
    let bad = || TargetError::BadHost(text.to_owned());
    if let Ok(ip) = text.parse::<IpAddr>() {
        return Ok(ip.to_string().into());
    }
    let host = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
    // An underscore is no letter of a host name, but PageKite's own frontends have names with one.
    let letter = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    let label =
        |l: &str| !l.is_empty() && l.len() <= MAX_LABEL && !l.starts_with('-') && !l.ends_with('-');
    if host.len() > MAX_HOST || !host.bytes().all(letter) || !host.split('.').all(label) {
        return Err(bad());
    }
    // No name on the Internet ends in a number: this is a mistyped IPv4 address (RFC 1123 §2.1),
    // which some resolvers would read as another address than the operator meant.
    if host
        .rsplit('.')
        .next()
        .is_some_and(|l| l.bytes().all(|b| b.is_ascii_digit()))
    {
        return Err(bad());
    }
    if let Some(name) = host.strip_suffix(".onion") {
        let base32 = |b: u8| b.is_ascii_lowercase() || matches!(b, b'2'..=b'7');
        if name.len() != ONION_LETTERS || !name.bytes().all(base32) || !name.ends_with('d') {
            return Err(TargetError::BadOnion(text.to_owned()));
        }
    }
    Ok(host.into())
}

/// A server behind a backend, which visitors reach through the tunnel.
///
/// It holds a literal address or a path, so that dialling it can ask no resolver.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum OriginAddr {
    /// TCP to a literal address.
    Tcp(SocketAddr),
    /// A Unix socket.
    Unix(PathBuf),
}

/// Why a text is no origin address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OriginAddrError {
    /// A name where a number must stand.
    #[error(
        "'{0}' needs a look-up, which origins must not; write its address, such as 127.0.0.1:{1}"
    )]
    Name(String, u16),
    /// No port.
    #[error("'{0}' has no port; write an address such as 127.0.0.1:49293, or unix:/path/of/socket")]
    NoPort(String),
    /// Nothing that we understand.
    #[error(
        "'{0}' is no origin; write an address such as 127.0.0.1:49293, or unix:/path/of/socket"
    )]
    Unclear(String),
    /// More than host and port: in pagekite.py's notation, the kite's secret. It is not shown.
    #[error(
        "something stands behind the port of '{0}'; an origin is an address and a port, and a secret is given with --secret-file or secret_file"
    )]
    Behind(String),
    /// An address of another machine that nobody listed.
    #[error(
        "{0} is not on this machine, so the traffic would cross a network in the clear; \
         use a loopback address, or allow this one explicitly"
    )]
    NotLoopback(SocketAddr),
    /// A relative path, whose meaning depends on where kite was started.
    #[error("'{0}' is not an absolute path; write unix:/path/of/socket")]
    RelativePath(String),
}

impl OriginAddr {
    /// Reads `127.0.0.1:49293`, `[::1]:80` or `unix:/path`.
    ///
    /// Addresses other than loopback pass only with `allow_non_loopback`, which
    /// means that the operator has listed them by number.
    pub fn parse(text: &str, allow_non_loopback: bool) -> Result<Self, OriginAddrError> {
        let text = text.trim();
        if let Some(path) = text.strip_prefix("unix:") {
            return if path.starts_with('/') {
                Ok(Self::Unix(path.into()))
            } else {
                Err(OriginAddrError::RelativePath(path.to_owned()))
            };
        }
        let addr = match text.parse::<SocketAddr>() {
            Ok(addr) if addr.port() != 0 => addr,
            Ok(_) => return Err(OriginAddrError::Unclear(text.to_owned())),
            Err(_) if text.parse::<IpAddr>().is_ok() => {
                return Err(OriginAddrError::NoPort(text.to_owned()));
            }
            Err(_) => {
                if let [host, port, _, ..] = text.split(':').collect::<Vec<_>>()[..]
                    && !host.is_empty()
                    && port.parse::<u16>().is_ok()
                {
                    return Err(OriginAddrError::Behind(format!("{host}:{port}")));
                }
                return Err(match text.rsplit_once(':') {
                    None => OriginAddrError::NoPort(text.to_owned()),
                    Some((_, port)) => match port.parse() {
                        Ok(port) => OriginAddrError::Name(text.to_owned(), port),
                        Err(_) => OriginAddrError::Unclear(text.to_owned()),
                    },
                });
            }
        };
        if addr.ip().to_canonical().is_loopback() || allow_non_loopback {
            Ok(Self::Tcp(addr))
        } else {
            Err(OriginAddrError::NotLoopback(addr))
        }
    }
}

impl fmt::Display for OriginAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(addr) => write!(f, "{addr}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONION: &str = "2gzyxa5ihm7nsggfxnu52rck2vv4rvmdlkiu3zzui5du4xyclen53wid.onion";
    const PIN: &str = "sha256:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8";

    fn addr(text: &str) -> FrontendAddr {
        text.parse().unwrap_or_else(|e| panic!("{text}: {e}"))
    }

    fn error(text: &str) -> String {
        text.parse::<FrontendAddr>().expect_err(text).to_string()
    }

    #[test]
    fn the_four_forms_come_back_as_they_went() {
        for (text, trust) in [
            ("alice.example:443".to_owned(), "Roots"),
            (format!("alice.example:443#{PIN}"), "Pin"),
            (format!("{ONION}:443"), "Onion"),
            (format!("{ONION}:443#{PIN}"), "Pin"),
            ("plain://alice.example:80".to_owned(), "Plain"),
            ("192.0.2.7:443".to_owned(), "Roots"),
            ("[2001:db8::1]:8443".to_owned(), "Roots"),
            (format!("[::1]:8443#{PIN}"), "Pin"),
            ("fe4_100.b5p.us:443".to_owned(), "Roots"),
        ] {
            let parsed = addr(&text);
            assert_eq!(parsed.to_string(), text);
            assert!(format!("{:?}", parsed.trust()).starts_with(trust), "{text}");
            assert_eq!(parsed.is_onion(), text.contains(".onion"));
        }
    }

    #[test]
    fn a_certificate_may_be_for_other_names_than_the_hosts() {
        for text in [
            "alice.example:443#name:fe.example",
            "192.0.2.7:443#name:a.example,b_c.example",
            &format!("{ONION}:443#name:fe.example"),
        ] {
            let parsed = addr(text);
            assert_eq!(parsed.to_string(), text);
            assert!(matches!(parsed.trust(), Trust::Names(_)));
            assert_eq!(parsed.is_onion(), text.contains(".onion"));
        }
        assert_eq!(
            addr("a.b:1#name:FE.Example."),
            addr("a.b:1#name:fe.example")
        );
        assert!(error("plain://alice.example:80#name:fe.example").contains("drop one"));
        for names in ["", "a,", "a b", "192.0.2.1", &["a.b"; 17].join(",")] {
            let said = error(&format!("alice.example:443#name:{names}"));
            assert!(said.contains("#name:frontend.example"), "{said}");
        }
    }

    #[test]
    fn every_spelling_is_one_address() {
        assert_eq!(addr(" Alice.Example.:443 "), addr("alice.example:443"));
        assert_eq!(addr("[2001:DB8:0::1]:443"), addr("[2001:db8::1]:443"));
        let hex: String = (0..32).map(|b| format!("{b:02X}")).collect();
        assert_eq!(
            addr(&format!("a.b:1#sha256:{hex}")),
            addr(&format!("a.b:1#{PIN}"))
        );
    }

    #[test]
    fn errors_say_what_to_write() {
        assert!(error("alice.example").contains("alice.example:443"));
        assert!(error("").contains("no port"));
        assert!(error("2001:db8::1:443").contains("brackets"));
        assert!(error("[2001:db8::1]").contains("[2001:db8::1]:443"));
        assert!(error("https://alice.example:443").contains("plain://"));
        assert!(error("plain://alice.example:80#sha256:AA").contains("43"));
        assert!(error(&format!("plain://alice.example:80#{PIN}")).contains("drop one"));
        assert!(error(&format!("plain://{ONION}:80")).contains("without plain://"));
        assert!(error("abcdef.onion:80").contains("56"));
        for port in ["0", "65536", "+80", "", "http", "-1", "8 0"] {
            assert!(
                error(&format!("alice.example:{port}")).contains("65535"),
                "{port}"
            );
        }
        for host in [
            "",
            "-a",
            "a..b",
            "a b",
            "a/b",
            "u@b",
            "1.2.3",
            "1.2.3.4.5",
            "127.1",
            "[a]",
            "é.example",
        ] {
            assert!(!error(&format!("{host}:80")).is_empty(), "{host}");
        }
    }

    #[test]
    fn an_origin_is_a_number_or_a_path() {
        let tcp = |text: &str| OriginAddr::parse(text, false).map(|o| o.to_string());
        assert_eq!(tcp("127.0.0.1:49293"), Ok("127.0.0.1:49293".into()));
        assert_eq!(tcp("127.8.0.1:1"), Ok("127.8.0.1:1".into()));
        assert_eq!(tcp("[::1]:80"), Ok("[::1]:80".into()));
        assert_eq!(tcp("unix:/run/node.sock"), Ok("unix:/run/node.sock".into()));
        let error = |text: &str| OriginAddr::parse(text, false).expect_err(text).to_string();
        assert!(error("localhost:80").contains("127.0.0.1:80"));
        assert!(error("127.0.0.1").contains("no port"));
        assert!(error("::1").contains("no port"));
        assert!(error("unix:node.sock").contains("absolute"));
        assert!(error("127.0.0.1:0").contains("no origin"));
        assert!(error("127.0.0.1:x").contains("no origin"));
        for far in [
            "10.0.0.1:80",
            "0.0.0.0:80",
            "[2001:db8::1]:80",
            "[::ffff:10.0.0.1]:80",
        ] {
            assert!(error(far).contains("not on this machine"), "{far}");
            assert!(OriginAddr::parse(far, true).is_ok());
        }
        assert!(OriginAddr::parse("localhost:80", true).is_err());
    }
}
