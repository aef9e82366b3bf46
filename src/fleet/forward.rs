//! A visitor is passed on: offered to the members that fly its kite, one after the other, until one takes it.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;
use tokio_rustls::client::TlsStream;

use super::header::Passed;
use super::map::Hit;
use super::member::MemberId;
use super::pipe::{Piped, pipe};
use super::{Fleet, Visitor, Way};
use crate::code::Code;
use crate::dial::{DialError, MemberConn};
use crate::household::Visitor as Address;
use crate::kite::KiteName;
use crate::tls::Purpose;
use crate::tunnel::splice::Local;

/// Most visitors that are passed on, or offered, at a time.
pub const MAX_PASSED: usize = 4096;
/// Those of one address or /64: others find room, too.
pub const MAX_PASSED_PER_ADDRESS: usize = 1024;
/// Most that is handed over of what a visitor has said before it is taken: a first flight, and what came with it.
pub const MAX_FIRST: usize = 256 * 1024;
/// Silence after which a member that was offered a visitor is given up.
pub const VERDICT: Duration = Duration::from_secs(20);
/// How often a member says that it still waits for a backend that comes back.
pub const STILL: Duration = Duration::from_secs(5);
/// How long the member that has brought a visitor may take to say that it still has it.
pub const GO_TIMEOUT: Duration = Duration::from_secs(5);
/// What a member says that takes a visitor; then, after [`GO`], what the visitor is told.
pub const TAKEN: u8 = b'+';
/// What one says that waits.
pub const WAITS: u8 = b'.';
/// The answer to [`TAKEN`]. Nothing of the visitor reaches a kite before it: who has given up, and asked another member or
/// refused the visitor, never says it.
pub const GO: u8 = b'!';
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
    #[error("it said nothing for {} s of whether it takes the visitor", VERDICT.as_secs())]
    Slow,
}

/// A member has taken a visitor.
pub struct Taken {
    conn: MemberConn,
    member: MemberId,
    host: KiteName,
    _one: Visitor,
    _place: Place,
}

impl Taken {
    /// Who.
    pub fn member(&self) -> &MemberId {
        &self.member
    }

    /// What it has come for.
    pub fn host(&self) -> &KiteName {
        &self.host
    }

    /// Joins the visitor with the member, until both have ended, or `stop` is over.
    pub async fn carry(self, visitor: impl Local, stop: impl Future<Output = ()>) -> Piped {
        pipe(visitor, self.conn, Bytes::new(), stop).await
    }
}

/// What is said first of a visitor: the header, how much it has said, in 4 bytes, and that.
pub fn opening(passed: &Passed, first: &[u8]) -> Vec<u8> {
    let mut whole = passed.header();
    let len = u32::try_from(first.len()).unwrap_or(u32::MAX);
    whole.extend_from_slice(&len.to_be_bytes());
    whole.extend_from_slice(first);
    whole
}

/// Places for visitors that are with other members.
#[derive(Clone)]
pub(super) struct Places {
    all: Arc<Semaphore>,
    /// Of each address that has some.
    of: Arc<Mutex<HashMap<Address, usize>>>,
}

/// One visitor's. Given back when it is dropped.
struct Place {
    places: Places,
    of: Address,
    _one: OwnedSemaphorePermit,
}

impl Default for Places {
    fn default() -> Self {
        Self {
            all: Arc::new(Semaphore::new(MAX_PASSED)),
            of: Arc::default(),
        }
    }
}

impl Places {
    /// A place for a visitor from there, if there is one.
    fn take(&self, from: IpAddr) -> Option<Place> {
        let one = self.all.clone().try_acquire_owned().ok()?;
        let of = Address::from(from);
        let mut taken = self.of.lock().unwrap_or_else(PoisonError::into_inner);
        let own = taken.entry(of).or_default();
        if *own == MAX_PASSED_PER_ADDRESS {
            return None;
        }
        *own += 1;
        drop(taken);
        Some(Place {
            places: self.clone(),
            of,
            _one: one,
        })
    }

    #[cfg(test)]
    fn free(&self) -> usize {
        self.all.available_permits()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self
            .places
            .of
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(own) = taken.get_mut(&self.of) {
            *own -= 1;
            if *own == 0 {
                taken.remove(&self.of);
            }
        }
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
        let taken = match self.places.take(passed.from.ip()) {
            Some(place) => self.offer_in_turn(place, hit, host, passed, first).await,
            None => {
                if let Some(before) = self.full.due(Instant::now()) {
                    tracing::warn!(
                        "[{}] fleet: {MAX_PASSED} visitors, or {MAX_PASSED_PER_ADDRESS} of one address, are with other members: one more was told that nobody is there{before}",
                        Code::FleetFull
                    );
                }
                None
            }
        };
        if taken.is_none() {
            self.counts.in_vain.fetch_add(1, Ordering::Relaxed);
        }
        taken
    }

    async fn offer_in_turn(
        &self,
        place: Place,
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
                        host: host.clone(),
                        _one: Visitor::enter(&self.counts, Way::Out),
                        _place: place,
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
        let offering = async {
            conn.write_all(&opening(passed, first)).await?;
            conn.flush().await
        };
        timeout(VERDICT, offering)
            .await
            .map_err(|_| NotTaken::Slow)??;
        loop {
            match timeout(VERDICT, conn.read_u8()).await {
                Ok(Ok(WAITS)) => {}
                Ok(Ok(TAKEN)) => break,
                Ok(Ok(NOT_HERE)) => return Err(NotTaken::NotHere),
                Ok(Ok(_)) => return Err(NotTaken::Nonsense),
                Ok(Err(e)) => return Err(e.into()),
                Err(_) => return Err(NotTaken::Slow),
            }
        }
        // From here on the visitor is that member's and nobody else's: if this is lost, it sees the end of its connection.
        let going = async {
            conn.write_u8(GO).await?;
            conn.flush().await
        };
        let _ = timeout(GO_TIMEOUT, going).await;
        Ok(conn)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::map::Flight;
    use crate::fleet::member::{Member, Members};
    use crate::tls::MemberTls;
    use std::net::Ipv4Addr;

    #[tokio::test]
    async fn offers_under_way_have_their_places() {
        let dir = tempfile::tempdir().expect("a directory");
        let tls = MemberTls::load_or_create(dir.path()).expect("a key");
        // It says nothing.
        let silent =
            crate::listen::bind("127.0.0.1:0".parse().expect("an address")).expect("a port");
        let b: MemberId = "b".parse().expect("a name");
        let members = Members::new([Member {
            id: b.clone(),
            address: silent.local_addr().expect("an address"),
            pin: tls.pin(),
            public: None,
        }]);
        let fleet = Fleet::new("a".parse().expect("a name"), members, tls);
        let flight = Flight {
            session: "s".into(),
            since: 1,
            backend: None,
            several: false,
        };
        fleet.put(&b, ("http".into(), "bob.example".into()), flight);
        let host: KiteName = "bob.example".parse().expect("a name");
        let hit = fleet.find(&["http"], 80, &host).expect("it flies");
        let passed = Passed {
            from: "203.0.113.7:4711".parse().expect("an address"),
            port: 80,
            kite: "http:bob.example".into(),
            port_kite: None,
            raw: false,
            storage_only: false,
            hops: 1,
        };
        let _others: Vec<_> = (1..MAX_PASSED)
            .map(|n| {
                fleet
                    .places
                    .take(Ipv4Addr::from_bits(n as u32).into())
                    .expect("a place")
            })
            .collect();
        let mut first = Box::pin(fleet.offer(&hit, &host, &passed, b""));
        assert!(futures::poll!(&mut first).is_pending());
        assert!(futures::poll!(Box::pin(fleet.offer(&hit, &host, &passed, b""))).is_ready());
        assert_eq!(fleet.passing().in_vain, 1);
        drop(first);
        assert_eq!(fleet.places.free(), 1);
    }

    #[test]
    fn one_address_keeps_nobody_else_from_other_members() {
        let places = Places::default();
        let (one, other) = (
            Ipv4Addr::new(192, 0, 2, 1).into(),
            Ipv4Addr::new(192, 0, 2, 2).into(),
        );
        let mut all: Vec<_> = (0..MAX_PASSED_PER_ADDRESS)
            .map(|_| places.take(one).expect("a place"))
            .collect();
        assert!(places.take(one).is_none());
        assert!(places.take(other).is_some());
        all.pop();
        assert!(places.take(one).is_some());
        drop(all);
        assert_eq!(places.free(), MAX_PASSED);
        assert!(
            places.of.lock().expect("no panic").is_empty(),
            "nobody is remembered"
        );
    }
}
