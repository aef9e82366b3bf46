//! A port behind load balancers. They alone may connect, and each of their connections begins with a PROXY
//! header that says whom it is from.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use ipnet::IpNet;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::time::timeout;

use crate::proxy_header::{self, Refusal};
use crate::sniff::Sniff;

/// How long a load balancer may take for its header, which it sends at once. Three seconds would do for one lost packet.
pub const HEADER_TIMEOUT: Duration = Duration::from_secs(5);
/// Asked of the socket at once, in bytes: a header, and most likely what follows.
const READ: usize = 1024;

/// Who may tell a frontend whom a connection is from: addresses and networks. Never empty, never everyone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Balancers(Vec<IpNet>);

impl Balancers {
    /// Whoever connects over loopback.
    pub fn on_this_machine() -> Self {
        let v4 = IpNet::new_assert([127, 0, 0, 0].into(), 8);
        Self(vec![v4, IpAddr::from(std::net::Ipv6Addr::LOCALHOST).into()])
    }

    /// Addresses such as `10.0.0.5`, and networks such as `10.0.0.0/8`. Says which is neither.
    pub fn parse(texts: &[String]) -> Result<Self, String> {
        let parse = |text: &String| {
            let address = text.parse::<IpAddr>().map(|a| a.to_canonical().into());
            let net: IpNet = address
                .or_else(|_| text.parse())
                .map_err(|_| format!("'{text}' is no address and no network"))?;
            if net.prefix_len() == 0 {
                return Err(format!(
                    "{text} is everyone, and everyone could claim any address"
                ));
            }
            Ok(net)
        };
        let nets = texts.iter().map(parse).collect::<Result<Vec<_>, _>>()?;
        if nets.is_empty() {
            return Err("it is empty, so nobody could connect".into());
        }
        Ok(Self(nets))
    }

    /// Is this peer one of them? IPv4 in IPv6's clothes, as a port for both sees it, is IPv4.
    pub fn include(&self, peer: IpAddr) -> bool {
        let peer = peer.to_canonical();
        self.0.iter().any(|net| net.contains(&peer))
    }
}

/// Why a connection was turned away at such a port.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Turned {
    #[error("it is not from a load balancer in proxy_from")]
    Stranger,
    #[error(
        "{0}; the load balancer must send one (send-proxy or send-proxy-v2 in HAProxy), or proxy_protocol must go"
    )]
    Header(#[from] Refusal),
    #[error("no whole PROXY header came within {} s", HEADER_TIMEOUT.as_secs())]
    Late,
    #[error("it left before its PROXY header was whole")]
    Left,
}

/// Reads the header of a new connection: whom it is from, and what has come behind it.
///
/// Where the header names nobody, the connection is the balancer's own.
pub(super) async fn introduced<C: AsyncRead + Unpin>(
    conn: &mut C,
    peer: SocketAddr,
    balancers: &Balancers,
) -> Result<(SocketAddr, BytesMut), Turned> {
    if !balancers.include(peer.ip()) {
        return Err(Turned::Stranger);
    }
    let mut first = BytesMut::new();
    let reading = async {
        loop {
            match proxy_header::read(&first) {
                Sniff::Found(header) => return Ok(header),
                Sniff::Refuse(why) => return Err(why.into()),
                Sniff::NeedMore => {}
            }
            first.reserve(READ);
            if !matches!(conn.read_buf(&mut first).await, Ok(1..)) {
                return Err(Turned::Left);
            }
        }
    };
    let header = timeout(HEADER_TIMEOUT, reading)
        .await
        .unwrap_or(Err(Turned::Late))?;
    first.advance(header.len);
    Ok((header.from.unwrap_or(peer), first))
}
