//! A harmless look at an origin before it is offered to the world: is it a foolscap
//! port, or Tahoe's web interface, whose URLs are the keys to everything?

use std::time::Duration;

use rand::RngCore;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::code::{Code, Coded};
use crate::config::Service;
use crate::dial::{OriginDialer, OriginError};
use crate::observe::board::Board;
use crate::proxy_header;
use crate::sniff::foolscap::{ProbeAnswer, TUB_ID_LEN, probe_answer, probe_request};
use crate::sniff::{Sniff, TubId};

/// How long an origin may take to answer.
pub const PROBE_TIMEOUT: Duration = Duration::from_secs(5);
/// The longest answer that is looked at, in bytes.
const MAX_ANSWER: usize = 8 * 1024;

/// What an operator must know and do whose origin is a web server.
pub const WEB_REMEDY: &str = "Tahoe's web interface must never be public: its URLs are the keys to the files. \
                              Give the port from tub.port in tahoe.cfg";

/// What was seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seen {
    /// A foolscap port, as it should be.
    Foolscap,
    /// A web server. It must not become public.
    Web,
    /// Something that is neither, or says nothing.
    Unknown,
    /// Nothing: it cannot be reached now.
    Down(OriginError),
}

impl Seen {
    /// What status calls it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Foolscap => "speaks foolscap",
            Self::Web => "web server",
            Self::Unknown => "not foolscap",
            Self::Down(_) => "down",
        }
    }

    /// What is wrong, and what is to be done; `None` if nothing is.
    pub fn trouble(&self, kite: &Service) -> Option<String> {
        match self {
            Self::Foolscap => None,
            Self::Web => Some(format!(
                "[{}] the origin {} is a web server; {WEB_REMEDY}",
                Code::OriginIsWeb,
                kite.origin
            )),
            Self::Unknown => Some(format!(
                "[{}] the origin {} does not answer as a foolscap port does; compare it with tub.port in tahoe.cfg",
                Code::OriginStrange,
                kite.origin
            )),
            Self::Down(e) => Some(format!("[{}] {e}; {}", e.code(), e.hint())),
        }
    }

    /// Writes on the board what was seen behind a kite.
    pub fn note(&self, kite: &Service, board: &Board) {
        board.saw(kite, self.name(), self.trouble(kite));
    }

    /// Says what was seen behind a kite, and what is to be done.
    pub fn log(&self, kite: &Service) {
        let Service { name, origin, .. } = kite;
        match self {
            Self::Foolscap => tracing::info!("{name}: the origin {origin} speaks foolscap"),
            Self::Web => tracing::error!(
                "[{}] {name}: the origin {origin} is a web server, not a foolscap port; visitors are refused. {WEB_REMEDY}",
                Code::OriginIsWeb
            ),
            Self::Unknown if kite.tell.proxy_protocol.is_some() => tracing::warn!(
                "[{}] {name}: the origin {origin} does not answer a PROXY header and foolscap behind it; visitors are \
                 refused until it does. A Tahoe node knows no such header: remove proxy_protocol, unless the origin \
                 is a proxy in front of the node that takes one",
                Code::OriginNoHeader
            ),
            Self::Unknown => tracing::warn!(
                "[{}] {name}: the origin {origin} does not answer as a foolscap port does; visitors are refused until \
                 it does; compare it with tub.port in tahoe.cfg",
                Code::OriginStrange
            ),
            Self::Down(e) => {
                tracing::warn!(
                    "[{}] {name}: {e}; {}; visitors are refused until then",
                    e.code(),
                    e.hint()
                )
            }
        }
    }
}

/// Negotiates with a kite's origin for a tub that does not exist, and looks at the answer. Where visitors come with
/// a PROXY header this look does, too: as the backend's own.
pub async fn look(kite: &Service) -> Seen {
    let mut conn = match OriginDialer::new().dial(&kite.origin).await {
        Ok(conn) => conn,
        Err(e) => return Seen::Down(e),
    };
    let mut random = [0; TUB_ID_LEN];
    rand::rng().fill_bytes(&mut random);
    let mut request = match kite.tell.proxy_protocol {
        Some(version) => proxy_header::write(version, None, 0, kite.name.as_str()),
        None => Vec::new(),
    };
    request.extend(probe_request(TubId::from_random(random), &kite.name));
    let asking = async {
        conn.write_all(&request).await?;
        let mut answer = Vec::new();
        while answer.len() < MAX_ANSWER && conn.read_buf(&mut answer).await? > 0 {
            if let Sniff::Found(found) = probe_answer(&answer) {
                return std::io::Result::Ok(found);
            }
        }
        Ok(ProbeAnswer::Other)
    };
    match tokio::time::timeout(PROBE_TIMEOUT, asking).await {
        Ok(Ok(ProbeAnswer::Foolscap)) => Seen::Foolscap,
        Ok(Ok(ProbeAnswer::WebInterface)) => Seen::Web,
        Ok(Ok(ProbeAnswer::Other) | Err(_)) | Err(_) => Seen::Unknown,
    }
}
