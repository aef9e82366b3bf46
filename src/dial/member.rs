//! Dialling the other members of a fleet, which a frontend does and a backend never: by number, never by name.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::client::TlsStream;

use super::direct::{self, Permission};
use super::{DialError, tune_member};
use crate::fleet::Inside;
use crate::tls::{MemberTls, Pin, Purpose};

/// Longest wait for a connection to another member: whoever is that slow is not there, and there may be a next one.
pub const MEMBER_DIAL_TIMEOUT: Duration = Duration::from_secs(3);

impl Permission for Inside {}

/// Opens connections to other members, which prove their keys and are shown ours.
#[derive(Debug)]
pub struct MemberDialer {
    allowed: Inside,
    tls: MemberTls,
}

/// A connection to another member.
pub type MemberConn = TlsStream<TcpStream>;

impl MemberDialer {
    /// Takes the permission that only the fleet's room can make.
    pub fn new(allowed: Inside, tls: MemberTls) -> Self {
        Self { allowed, tls }
    }

    /// Tries once.
    pub async fn dial(
        &self,
        to: SocketAddr,
        pin: Pin,
        purpose: Purpose,
    ) -> Result<MemberConn, DialError> {
        let host = to.ip().to_string();
        let dialling = direct::connect(&self.allowed, &host, to.port());
        let conn = timeout(MEMBER_DIAL_TIMEOUT, dialling)
            .await
            .map_err(|_| DialError::TimedOut)??;
        tune_member(&conn);
        Ok(self.tls.connect(conn, pin, purpose).await?)
    }
}
