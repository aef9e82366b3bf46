//! A harmless look at an origin before it is offered to the world: is it a foolscap
//! port, or Tahoe's web interface, whose URLs are the keys to everything?

use std::time::Duration;

use rand::RngCore;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::config::Service;
use crate::dial::{OriginAddr, OriginDialer, OriginError};
use crate::kite::KiteName;
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
    /// Says what was seen behind a kite, and what is to be done.
    pub fn log(&self, kite: &Service) {
        let Service { name, origin, .. } = kite;
        match self {
            Self::Foolscap => tracing::info!("{name}: the origin {origin} speaks foolscap"),
            Self::Web => tracing::error!(
                "{name}: the origin {origin} is a web server, not a foolscap port; visitors are refused. {WEB_REMEDY}"
            ),
            Self::Unknown => tracing::warn!(
                "{name}: the origin {origin} does not answer as a foolscap port does; visitors are refused until \
                 it does; compare it with tub.port in tahoe.cfg"
            ),
            Self::Down(e) => {
                tracing::warn!("{name}: {e}; {}; visitors are refused until then", e.hint())
            }
        }
    }
}

/// Negotiates with the origin for a tub that does not exist, and looks at the answer.
pub async fn look(origin: &OriginAddr, kite: &KiteName) -> Seen {
    let mut conn = match OriginDialer::new().dial(origin).await {
        Ok(conn) => conn,
        Err(e) => return Seen::Down(e),
    };
    let mut random = [0; TUB_ID_LEN];
    rand::rng().fill_bytes(&mut random);
    let asking = async {
        conn.write_all(&probe_request(TubId::from_random(random), kite))
            .await?;
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
