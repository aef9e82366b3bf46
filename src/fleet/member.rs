//! Who belongs to a fleet.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;
use std::sync::{Arc, PoisonError, RwLock};

use crate::dial::FrontendAddr;
use crate::tls::Pin;

/// Longest name of a member, in letters.
pub const MAX_ID: usize = 32;

/// What a member is called, on every machine of the fleet: up to [`MAX_ID`] of `a-z`, `0-9` and `-`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MemberId(Arc<str>);

/// Why a text names no member.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a member is called by 1 to 32 of a-z, 0-9 and -")]
pub struct BadId;

impl FromStr for MemberId {
    type Err = BadId;

    fn from_str(text: &str) -> Result<Self, BadId> {
        let fits = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        match (1..=MAX_ID).contains(&text.len()) && text.bytes().all(fits) {
            true => Ok(Self(text.into())),
            false => Err(BadId),
        }
    }
}

impl MemberId {
    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for MemberId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for MemberId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One frontend of a fleet, as the others know it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// What it is called.
    pub id: MemberId,
    /// Where the others reach it.
    pub address: SocketAddr,
    /// The key that it shows to them.
    pub pin: Pin,
    /// Where backends reach it, if they are to be told.
    pub public: Option<FrontendAddr>,
}

/// All members that are known, this one perhaps among them. Whoever reads sees what stands there now.
#[derive(Debug, Default)]
pub struct Members(RwLock<BTreeMap<MemberId, Member>>);

impl Members {
    /// These.
    pub fn new(members: impl IntoIterator<Item = Member>) -> Self {
        let all = members.into_iter().map(|m| (m.id.clone(), m));
        Self(RwLock::new(all.collect()))
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, BTreeMap<MemberId, Member>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The one of this name.
    pub fn get(&self, id: &MemberId) -> Option<Member> {
        self.read().get(id).cloned()
    }

    /// All, in the order of their names.
    pub fn all(&self) -> Vec<Member> {
        self.read().values().cloned().collect()
    }

    /// Is this the key of one of them?
    pub fn have(&self, pin: &Pin) -> bool {
        self.read().values().any(|m| m.pin == *pin)
    }

    /// Is one of them there? Where we listen on IPv6, its address may be mapped.
    pub fn are_at(&self, ip: IpAddr) -> bool {
        let ip = ip.to_canonical();
        let all = self.read();
        all.values().any(|m| m.address.ip().to_canonical() == ip)
    }

    /// Adds a member, or replaces what is known of it.
    pub fn put(&self, member: Member) {
        let mut all = self.0.write().unwrap_or_else(PoisonError::into_inner);
        all.insert(member.id.clone(), member);
    }

    /// Forgets a member.
    pub fn remove(&self, id: &MemberId) {
        let mut all = self.0.write().unwrap_or_else(PoisonError::into_inner);
        all.remove(id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_short_and_plain() {
        for good in ["a", "fe-1", "0", &"x".repeat(MAX_ID)] {
            assert_eq!(
                good.parse::<MemberId>().map(|id| id.to_string()),
                Ok(good.into())
            );
        }
        for bad in ["", "A", "a b", "a.b", "ü", &"x".repeat(MAX_ID + 1)] {
            assert_eq!(bad.parse::<MemberId>(), Err(BadId));
        }
    }
}
