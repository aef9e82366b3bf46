//! Dialling the etcd that a fleet's frontends share, which a frontend does and a backend never.

use std::io;

use super::direct;
use super::{BoxConn, DialError};
use crate::fleet::Inside;
use crate::tls::PrivateClient;

/// Opens connections to an etcd.
#[derive(Debug)]
pub struct EtcdDialer {
    allowed: Inside,
    tls: PrivateClient,
}

impl EtcdDialer {
    /// Takes the permission that only the fleet's room can make.
    pub fn new(allowed: Inside, tls: PrivateClient) -> Self {
        Self { allowed, tls }
    }

    /// A connection to `host`, which has proved to be that; or in the clear, if that is wished, to this machine and no other.
    /// Tries once, and takes at most [`DIRECT_DIAL_TIMEOUT`](super::DIRECT_DIAL_TIMEOUT) and
    /// [`TLS_TIMEOUT`](crate::tls::TLS_TIMEOUT).
    pub async fn dial(&self, host: &str, port: u16, clear: bool) -> Result<BoxConn, DialError> {
        let conn = direct::connect(&self.allowed, host, port).await?;
        if !clear {
            return Ok(Box::new(self.tls.secure(conn, host).await?));
        }
        match conn.peer_addr() {
            Ok(address) if address.ip().is_loopback() => Ok(Box::new(conn)),
            _ => Err(DialError::Socket(io::ErrorKind::PermissionDenied)),
        }
    }
}
