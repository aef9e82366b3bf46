//! A visitor is passed on: offered to the members that fly its kite, one after the other, until one takes it.

use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;
use tokio_rustls::client::TlsStream;

use super::header::Passed;
use super::map::Hit;
use super::member::MemberId;
use super::pipe::{Piped, pipe};
use super::{Fleet, Visitor, Way};
use crate::dial::{DialError, MemberConn};
use crate::kite::KiteName;
use crate::tls::Purpose;
use crate::tunnel::splice::Local;

/// Most visitors that are passed on at a time.
pub const MAX_PASSED: usize = 4096;
/// How long a member may take to say whether it takes a visitor: it may wait for a backend that comes back.
pub const VERDICT: Duration = Duration::from_secs(60);
/// What a member says that takes a visitor; then what the visitor is told.
pub const TAKEN: u8 = b'+';
/// What one says that does not fly the kite, and nothing else.
pub const NOT_HERE: u8 = b'-';

/// A member's connection ends without its closing alert then, which says as much.
impl<C: Local> Local for TlsStream<C> {
    fn reset(&self) {
        self.get_ref().0.reset();
    }
}

/// Why a member did not take a visitor.
#[derive(Debug, thiserror::Error)]
enum NotTaken {
    #[error("it does not fly the kite any more")]
    NotHere,
    #[error("it has not said yet where it is reached")]
    Unknown,
    #[error("it said neither yes nor no")]
    Nonsense,
    #[error(transparent)]
    Dial(#[from] DialError),
    #[error("the connection broke: {}", .0.kind())]
    Io(#[from] std::io::Error),
    #[error("it did not say within {} s whether it takes the visitor", VERDICT.as_secs())]
    Slow,
}

/// A member has taken a visitor.
pub struct Taken {
    conn: MemberConn,
    member: MemberId,
    _one: Visitor,
}

impl Taken {
    /// Who.
    pub fn member(&self) -> &MemberId {
        &self.member
    }

    /// Joins the visitor with the member, until both have ended.
    pub async fn carry(self, visitor: impl Local) -> Piped {
        pipe(visitor, self.conn, Bytes::new()).await
    }
}

impl Fleet {
    /// Offers a visitor, with what it has said, to the members of a hit. None if nobody takes it: then nothing has been said
    /// to it, and these bytes are still all that it has said.
    pub async fn offer(
        &self,
        hit: &Hit,
        host: &KiteName,
        passed: &Passed,
        first: &[u8],
    ) -> Option<Taken> {
        let mut members: Vec<&MemberId> = hit.members.iter().collect();
        members.sort_by_key(|id| self.is_shunned(id));
        for id in members {
            let known = self.look(|map| map.sessions(id, &hit.key));
            match self.offer_to(id, passed, first).await {
                Ok(conn) => {
                    self.answered(id, true);
                    return Some(Taken {
                        conn,
                        member: id.clone(),
                        _one: Visitor::enter(&self.counts, Way::Out),
                    });
                }
                Err(NotTaken::NotHere) => {
                    tracing::debug!("fleet: {id} does not fly {} any more", passed.kite);
                    // What is below a wildcard may be wanting, and the wildcard there.
                    if hit.key.1 == host.as_str() {
                        self.learn(|map| map.doubt(id, &hit.key, &known));
                    }
                }
                Err(e) => {
                    tracing::debug!("fleet: {id} did not take a visitor of {}: {e}", passed.kite);
                    self.answered(id, false);
                }
            }
        }
        let vain = &self.counts.in_vain;
        vain.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        None
    }

    async fn offer_to(
        &self,
        id: &MemberId,
        passed: &Passed,
        first: &[u8],
    ) -> Result<MemberConn, NotTaken> {
        let member = self.members.get(id).ok_or(NotTaken::Unknown)?;
        let dialling = self.dialer.dial(member.address, member.pin, Purpose::Visit);
        let mut conn = dialling.await?;
        let verdict = async {
            let mut whole = passed.header();
            whole.extend_from_slice(first);
            conn.write_all(&whole).await?;
            conn.flush().await?;
            conn.read_u8().await
        };
        match timeout(VERDICT, verdict).await {
            Ok(Ok(TAKEN)) => Ok(conn),
            Ok(Ok(NOT_HERE)) => Err(NotTaken::NotHere),
            Ok(Ok(_)) => Err(NotTaken::Nonsense),
            Ok(Err(e)) => Err(e.into()),
            Err(_) => Err(NotTaken::Slow),
        }
    }
}
