//! Where an etcd is.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use crate::code::{Code, Coded};

/// Where clients of etcd's knock, unless the URL says otherwise.
const PORT: u16 = 2379;

/// The URL of an etcd, taken apart.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Endpoint {
    /// A name or an address, the latter without brackets.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// Without TLS, which is for this machine only.
    pub clear: bool,
}

/// Why a text is no endpoint.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EndpointError {
    /// Neither of the two.
    #[error("an endpoint of etcd's begins with https://, or on this machine http://")]
    Scheme,
    /// Keys and names would pass in the clear.
    #[error("http:// is for an etcd on this machine (127.0.0.1, [::1]); use https://")]
    Clear,
    /// No host, or something behind the port.
    #[error("an endpoint of etcd's is https://HOST:PORT and nothing more")]
    Shape,
}

impl Coded for EndpointError {
    fn code(&self) -> Code {
        Code::BadValue
    }
}

impl Endpoint {
    /// Whether it is a name, which must be looked up.
    pub fn is_name(&self) -> bool {
        self.host.parse::<IpAddr>().is_err()
    }

    /// Host and port, as HTTP has them.
    pub fn authority(&self) -> String {
        match self.host.contains(':') {
            true => format!("[{}]:{}", self.host, self.port),
            false => format!("{}:{}", self.host, self.port),
        }
    }
}

impl FromStr for Endpoint {
    type Err = EndpointError;

    fn from_str(text: &str) -> Result<Self, EndpointError> {
        let (clear, rest) = match text.split_once("://") {
            Some(("https", rest)) => (false, rest),
            Some(("http", rest)) => (true, rest),
            _ => return Err(EndpointError::Scheme),
        };
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let (host, port) = match rest.strip_prefix('[') {
            Some(rest) => {
                let (host, port) = rest.split_once(']').ok_or(EndpointError::Shape)?;
                let is_v6 = matches!(host.parse(), Ok(IpAddr::V6(_)));
                (host, is_v6.then_some(port).ok_or(EndpointError::Shape)?)
            }
            None => rest.split_at(rest.find(':').unwrap_or(rest.len())),
        };
        let port = match port.strip_prefix(':') {
            None if port.is_empty() => PORT,
            None => return Err(EndpointError::Shape),
            Some(port) => port.parse().map_err(|_| EndpointError::Shape)?,
        };
        let letter = |b: u8| b.is_ascii_alphanumeric() || b"-._:".contains(&b);
        if host.is_empty() || port == 0 || !host.bytes().all(letter) {
            return Err(EndpointError::Shape);
        }
        let near = host.parse().is_ok_and(|ip: IpAddr| ip.is_loopback());
        if clear && !near {
            return Err(EndpointError::Clear);
        }
        let host = host.to_owned();
        Ok(Self { host, port, clear })
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.clear { "http" } else { "https" };
        write!(f, "{scheme}://{}", self.authority())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_read_and_shown() {
        for (text, shown) in [
            ("https://etcd-1.example:2379", "https://etcd-1.example:2379"),
            ("https://etcd-1.example/", "https://etcd-1.example:2379"),
            ("https://192.0.2.1", "https://192.0.2.1:2379"),
            ("https://[2001:db8::1]:1", "https://[2001:db8::1]:1"),
            ("http://127.0.0.1:2379", "http://127.0.0.1:2379"),
            ("http://[::1]", "http://[::1]:2379"),
        ] {
            assert_eq!(
                text.parse().map(|e: Endpoint| e.to_string()),
                Ok(shown.into())
            );
        }
        assert!("https://a.example".parse::<Endpoint>().unwrap().is_name());
        assert!(!"https://[::1]".parse::<Endpoint>().unwrap().is_name());
    }

    #[test]
    fn what_is_no_endpoint_is_said_to_be_none() {
        for (text, why) in [
            ("etcd.example:2379", EndpointError::Scheme),
            ("unix:///run/etcd", EndpointError::Scheme),
            ("http://etcd.example", EndpointError::Clear),
            ("http://192.0.2.1:2379", EndpointError::Clear),
            // Where that leads is not written there.
            ("http://localhost:2379", EndpointError::Clear),
            ("https://", EndpointError::Shape),
            ("https://user@etcd.example", EndpointError::Shape),
            ("https://etcd.example:0", EndpointError::Shape),
            ("https://etcd.example:2379/v3", EndpointError::Shape),
            ("https://2001:db8::1", EndpointError::Shape),
            ("https://[192.0.2.1]:2379", EndpointError::Shape),
        ] {
            assert_eq!(text.parse::<Endpoint>(), Err(why), "{text}");
        }
    }
}
