//! A harmless look at an origin before it is offered to the world: is it a foolscap
//! port, or Tahoe's web interface, whose URLs are the keys to everything?

use std::time::Duration;

use rand::RngCore;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::dial::{OriginAddr, OriginDialer, OriginError};
use crate::kite::KiteName;
use crate::sniff::foolscap::{ProbeAnswer, TUB_ID_LEN, probe_answer, probe_request};
use crate::sniff::{Sniff, TubId};

/// How long an origin may take to answer.
pub const PROBE_TIMEOUT: Duration = Duration::from_secs(5);
/// The longest answer that is looked at, in bytes.
const MAX_ANSWER: usize = 8 * 1024;

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
