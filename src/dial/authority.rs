//! Dialling a certificate authority, which a frontend does and a backend never.
//!
//! A frontend is public: its name, its address, and that it has certificates, which are listed in public
//! logs. What it asks the resolver and the authority tells nobody anything new.

use super::direct::{self, Permission};
use super::{BoxConn, DialError};
use crate::frontend::PublicSide;
use crate::tls::WebClient;

impl Permission for PublicSide {}

/// Opens verified TLS connections to a web server.
#[derive(Debug)]
pub struct AuthorityDialer {
    allowed: PublicSide,
    tls: WebClient,
}

impl AuthorityDialer {
    /// Takes the permission that only the frontend's room can make.
    pub fn new(allowed: PublicSide, tls: WebClient) -> Self {
        Self { allowed, tls }
    }

    /// A connection to `host`, which has proved to be that. Tries once, and takes at most
    /// [`DIRECT_DIAL_TIMEOUT`](super::DIRECT_DIAL_TIMEOUT) and [`TLS_TIMEOUT`](crate::tls::TLS_TIMEOUT).
    pub async fn dial(&self, host: &str, port: u16) -> Result<BoxConn, DialError> {
        let conn = direct::connect(&self.allowed, host, port).await?;
        Ok(Box::new(self.tls.secure(conn, host).await?))
    }
}
