//! Where a node listens (Twisted's endpoint strings) and what it announces (foolscap's
//! connection hints), as far as it matters who can come in.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Who can reach what listens at an endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reach {
    /// This machine only.
    Local,
    /// Whoever reaches this address of the machine; unspecified for all of them.
    Address(IpAddr),
    /// Another network, with names of its own: I2P, or an onion service's local end.
    Overlay,
    /// kite does not know this kind.
    Unknown,
}

/// One server endpoint, such as `tcp:49293:interface=127.0.0.1`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    kind: String,
    /// The TCP port, if it has one.
    pub port: Option<u16>,
    /// Who comes in.
    pub reach: Reach,
}

impl Endpoint {
    /// Reads one endpoint. A bare number is a TCP port.
    pub fn parse(text: &str) -> Self {
        let text = text.trim();
        if text.bytes().all(|b| b.is_ascii_digit()) {
            return Self::parse(&format!("tcp:{text}"));
        }
        let parts = parts(text);
        let kind = parts.first().cloned().unwrap_or_default();
        // `port` and `interface` by name, or, in that order, by place.
        let named = |name: &str| {
            let prefix = format!("{name}=");
            parts.iter().find_map(|p| p.strip_prefix(prefix.as_str()))
        };
        let placed = |index: usize| {
            let part = parts.get(index).map(String::as_str);
            part.filter(|p| !p.contains('='))
        };
        let port = named("port").or(placed(1));
        let interface = named("interface").or(placed(2).filter(|_| kind.starts_with("tcp")));
        let reach = match kind.as_str() {
            "tcp" | "ssl" => reach(interface, Ipv4Addr::UNSPECIFIED.into()),
            "tcp6" => reach(interface, Ipv6Addr::UNSPECIFIED.into()),
            "unix" => Reach::Local,
            "listen" | "i2p" | "onion" => Reach::Overlay,
            _ => Reach::Unknown,
        };
        Self {
            port: port.and_then(|p| p.parse().ok()),
            kind,
            reach,
        }
    }

    /// Where kite's origin is, for `tub.port`.
    pub fn of_origin(origin: &SocketAddr) -> String {
        match origin {
            SocketAddr::V4(at) => format!("tcp:{}:interface={}", at.port(), at.ip()),
            SocketAddr::V6(at) => {
                let ip = at.ip().to_string().replace(':', "\\:");
                format!("tcp6:{}:interface={ip}", at.port())
            }
        }
    }

    /// Is it a Unix socket, at which foolscap drops whoever comes in?
    pub fn is_unix(&self) -> bool {
        self.kind == "unix"
    }

    /// The same port on loopback, or the `usual` one if it has none.
    pub fn on_loopback(&self, usual: u16) -> String {
        let port = self.port.filter(|p| *p != 0).unwrap_or(usual);
        match self.kind.as_str() {
            "tcp6" => format!("tcp6:{port}:interface=\\:\\:1"),
            _ => loopback(port),
        }
    }

    /// Where this machine reaches it: on loopback, if it is there at all.
    pub fn reached_here(&self) -> Option<SocketAddr> {
        let port = self.port.filter(|port| *port != 0)?;
        let loopback: IpAddr = match self.kind.as_str() {
            "tcp" => Ipv4Addr::LOCALHOST.into(),
            "tcp6" => Ipv6Addr::LOCALHOST.into(),
            _ => return None,
        };
        match self.reach {
            Reach::Local => Some((loopback, port).into()),
            Reach::Address(ip) if ip.is_unspecified() => Some((loopback, port).into()),
            Reach::Address(_) | Reach::Overlay | Reach::Unknown => None,
        }
    }

    /// Is it this origin?
    pub fn is(&self, origin: &SocketAddr) -> bool {
        let address = match self.reach {
            Reach::Local => origin.ip().to_canonical().is_loopback(),
            Reach::Address(ip) => ip.is_unspecified() || ip == origin.ip(),
            Reach::Overlay | Reach::Unknown => false,
        };
        self.port == Some(origin.port()) && address
    }
}

/// A server endpoint for this machine only.
pub fn loopback(port: u16) -> String {
    format!("tcp:{port}:interface=127.0.0.1")
}

fn reach(interface: Option<&str>, all: IpAddr) -> Reach {
    let Some(interface) = interface.filter(|i| !i.is_empty()) else {
        return Reach::Address(all);
    };
    match interface.parse::<IpAddr>() {
        Ok(ip) if ip.to_canonical().is_loopback() => Reach::Local,
        Ok(ip) => Reach::Address(ip),
        Err(_) if interface == "localhost" => Reach::Local,
        Err(_) => Reach::Unknown,
    }
}

/// Cuts at colons that no backslash protects.
fn parts(text: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        let kept = match c {
            '\\' => chars.next(),
            ':' => {
                parts.push(String::new());
                None
            }
            c => Some(c),
        };
        if let (Some(part), Some(kept)) = (parts.last_mut(), kept) {
            part.push(kept);
        }
    }
    parts
}

/// One connection hint, such as `tcp:tahoebob.alice.example:80`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hint {
    /// TCP to a name.
    Name {
        /// As written.
        host: String,
        /// The public port.
        port: u16,
        /// Written with `tcp:`, from which Tahoe makes an address for its HTTPS protocol, too.
        typed: bool,
    },
    /// TCP to a number.
    Number(IpAddr),
    /// `tor:`, to an onion service or to anything else.
    Tor {
        /// Whether its host ends in `.onion`.
        onion: bool,
    },
    /// Another network.
    Other(String),
    /// Clients ignore it.
    Bad,
}

impl Hint {
    /// Reads one hint by foolscap's rules.
    pub fn parse(text: &str) -> Self {
        let (kind, rest) = match text.split_once(':') {
            Some(("tcp", rest)) => ("tcp", rest),
            // Without a kind it is TCP, of which foolscap knows names and IPv4 in this form.
            Some((_, port)) if digits(port) => ("", text),
            Some((kind, rest)) if !kind.is_empty() => (kind, rest),
            _ => return Self::Bad,
        };
        if kind == "tor" {
            let host = rest.rsplit_once(':').map_or(rest, |(host, _)| host);
            let onion = host.ends_with(".onion");
            return Self::Tor { onion };
        }
        if !matches!(kind, "tcp" | "") {
            return Self::Other(kind.to_owned());
        }
        let Some((host, port)) = rest.rsplit_once(':').filter(|(_, port)| digits(port)) else {
            return Self::Bad;
        };
        let Ok(port) = port.parse() else {
            return Self::Bad;
        };
        let number = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
        // A zone, as in fe80::1%eth0, is part of an address.
        let number = number.map(|n| n.split('%').next().unwrap_or(n));
        if let Ok(ip) = number.unwrap_or(host).parse() {
            return Self::Number(ip);
        }
        let letters = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-');
        if host.is_empty() || !host.bytes().all(letters) {
            return Self::Bad;
        }
        Self::Name {
            host: host.to_owned(),
            port,
            typed: kind == "tcp",
        }
    }

    /// Does Tahoe take it for TCP, which `reveal-IP-address = false` forbids?
    pub fn is_tcp(&self) -> bool {
        matches!(self, Self::Name { .. } | Self::Number(_))
    }

    /// Whether foolscap dials it through a SOCKS port: it takes names and public IPv4 numbers.
    pub fn goes_through_tor(&self) -> bool {
        match self {
            Self::Name { .. } | Self::Tor { .. } => true,
            Self::Number(IpAddr::V4(ip)) => {
                !(ip.is_loopback() || ip.is_private() || ip.is_link_local() || ip.is_unspecified())
            }
            Self::Number(IpAddr::V6(_)) | Self::Other(_) | Self::Bad => false,
        }
    }
}

fn digits(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())
}

impl fmt::Display for Reach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Local => f.write_str("this machine only"),
            Self::Address(ip) if ip.is_unspecified() => f.write_str("all interfaces"),
            Self::Address(ip) => write!(f, "{ip}"),
            Self::Overlay => f.write_str("another network"),
            Self::Unknown => f.write_str("a place that kite cannot tell"),
        }
    }
}

/// Reads a client endpoint, such as `tcp:127.0.0.1:9150`: where it leads, and its port.
/// `None` if Twisted would not take it.
pub fn client(text: &str) -> Option<(Reach, Option<u16>)> {
    let parts = parts(text);
    let value = |part: &String, name: &str| part.strip_prefix(name).unwrap_or(part).to_owned();
    match parts.first()?.as_str() {
        "unix" => Some((Reach::Local, None)),
        "tcp" => {
            let host = value(parts.get(1)?, "host=");
            let port = value(parts.get(2)?, "port=").parse().ok()?;
            Some((reach(Some(&host), Ipv4Addr::UNSPECIFIED.into()), Some(port)))
        }
        _ => None,
    }
}
