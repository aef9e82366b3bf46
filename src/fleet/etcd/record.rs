//! What stands in etcd: keys, and what their values say. Sans-IO.
//!
//! ```text
//! PREFIX/life                                      what this life of etcd's is called
//! PREFIX/members/MEMBER                            {"address":…,"pin":…,"public":…}
//! PREFIX/kites/PROTO/NAME/MEMBER/SESSION           {"since":…,"backend":…,"several":…}
//! ```
//!
//! Names, members and keys, and nobody's address but the members' own.

use core::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::fleet::map::{Flight, Key};
use crate::fleet::member::{Member, MemberId};

/// Longest part of a key that is read, in bytes. A name has 253 at most.
const MAX_PART: usize = 512;

/// The keys below a prefix.
#[derive(Debug, Clone)]
pub struct Keys {
    /// With the slash at its end.
    root: String,
}

/// What a key is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// A member says who it is, and that all that it flies stands there.
    Member(MemberId),
    /// A kite that flies.
    Kite {
        /// Where.
        member: MemberId,
        /// Which.
        key: Key,
        /// By which tunnel.
        session: String,
    },
}

impl Keys {
    /// Below this prefix, which has no slash at its end.
    pub fn new(prefix: &str) -> Self {
        Self {
            root: format!("{prefix}/"),
        }
    }

    /// What all keys begin with.
    pub fn root(&self) -> &str {
        &self.root
    }

    /// What the members' names begin with.
    pub fn members(&self) -> String {
        format!("{}members/", self.root)
    }

    /// Where etcd's life has its name.
    pub fn life(&self) -> String {
        format!("{}life", self.root)
    }

    /// Where a member says who it is.
    pub fn member(&self, id: &MemberId) -> String {
        format!("{}{id}", self.members())
    }

    /// Where a kite stands. None for what would not be read again: no name of a kite has a slash.
    pub fn kite(&self, member: &MemberId, key: &Key, session: &str) -> Option<String> {
        let (proto, name) = key;
        let parts = [proto, name, member.as_str(), session];
        parts
            .iter()
            .all(|part| fits(part))
            .then(|| format!("{}kites/{}", self.root, parts.join("/")))
    }

    /// What a key is for. None for what others have put there.
    pub fn read(&self, key: &[u8]) -> Option<Place> {
        let key = std::str::from_utf8(key).ok()?;
        let mut parts = key.strip_prefix(&self.root)?.split('/');
        let mut part = || parts.next().filter(|part| fits(part));
        let place = match part()? {
            "members" => Place::Member(part()?.parse().ok()?),
            "kites" => {
                let key = (part()?.to_owned(), part()?.to_owned());
                Place::Kite {
                    key,
                    member: part()?.parse().ok()?,
                    session: part()?.to_owned(),
                }
            }
            _ => return None,
        };
        parts.next().is_none().then_some(place)
    }
}

fn fits(part: &str) -> bool {
    let plain = |b: u8| b.is_ascii_graphic() && b != b'/';
    (1..=MAX_PART).contains(&part.len()) && part.bytes().all(plain)
}

#[derive(Serialize, Deserialize)]
struct Sign {
    address: SocketAddr,
    pin: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    public: Option<String>,
}

/// How a member is written.
pub fn of_member(member: &Member) -> String {
    let sign = Sign {
        address: member.address,
        pin: member.pin.to_string(),
        public: member.public.as_ref().map(ToString::to_string),
    };
    serde_json::to_string(&sign).unwrap_or_default()
}

/// A member as it is written.
pub fn read_member(id: MemberId, value: &[u8]) -> Option<Member> {
    let sign: Sign = serde_json::from_slice(value).ok()?;
    let public = sign.public.map(|public| public.parse()).transpose();
    Some(Member {
        id,
        address: sign.address,
        pin: sign.pin.parse().ok()?,
        public: public.ok()?,
    })
}

#[derive(Serialize, Deserialize)]
struct Flown {
    since: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    backend: Option<String>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    several: bool,
}

/// How a flight is written.
pub fn of_flight(flight: &Flight) -> String {
    let flown = Flown {
        since: flight.since,
        backend: flight.backend.clone(),
        several: flight.several,
    };
    serde_json::to_string(&flown).unwrap_or_default()
}

/// A flight as it is written.
pub fn read_flight(session: String, value: &[u8]) -> Option<Flight> {
    let flown: Flown = serde_json::from_slice(value).ok()?;
    Some(Flight {
        session,
        since: flown.since,
        backend: flown.backend,
        several: flown.several,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let keys = Keys::new("kite");
        let id: MemberId = "fe-1".parse().unwrap();
        let key: Key = ("raw-22".into(), "*.alice.example".into());
        let kite = keys.kite(&id, &key, "s1").unwrap();
        assert_eq!(kite, "kite/kites/raw-22/*.alice.example/fe-1/s1");
        let place = Place::Kite {
            member: id.clone(),
            key,
            session: "s1".into(),
        };
        assert_eq!(keys.read(kite.as_bytes()), Some(place));
        let place = keys.read(keys.member(&id).as_bytes());
        assert_eq!(place, Some(Place::Member(id.clone())));
        let member = Member {
            id: id.clone(),
            address: "192.0.2.1:7000".parse().unwrap(),
            pin: format!("sha256:{}", "00".repeat(32)).parse().unwrap(),
            public: Some("fe-1.example:443".parse().unwrap()),
        };
        let written = of_member(&member);
        assert_eq!(read_member(id, written.as_bytes()), Some(member));
        for (flight, written) in [
            (("b", true), r#"{"since":7,"backend":"b","several":true}"#),
            (("", false), r#"{"since":7}"#),
        ] {
            let flight = Flight {
                session: "s1".into(),
                since: 7,
                backend: Some(flight.0.to_owned()).filter(|b| !b.is_empty()),
                several: flight.1,
            };
            assert_eq!(of_flight(&flight), written);
            assert_eq!(read_flight("s1".into(), written.as_bytes()), Some(flight));
        }
    }

    #[test]
    fn what_others_have_put_there_is_left_alone() {
        let keys = Keys::new("a/kite");
        for key in [
            "a/kite/life",
            "a/kite/members/",
            "a/kite/members/A",
            "a/kite/members/a/b",
            "a/kite/kites/http/x/a",
            "a/kite/kites/http/x/a/s/t",
            "a/kite/kites/http//a/s",
            "a/kite/kites/http/x y/a/s",
            "a/kite/else/x",
            "kite/members/a",
            "",
        ] {
            assert_eq!(keys.read(key.as_bytes()), None, "{key}");
        }
        assert_eq!(keys.read(b"a/kite/members/\xff"), None);
        let id = "a".parse().unwrap();
        assert_eq!(keys.kite(&id, &("http".into(), "a/b".into()), "s"), None);
        assert_eq!(keys.kite(&id, &("http".into(), String::new()), "s"), None);
        for value in ["", "{}", "[]", r#"{"since":"x"}"#, r#"{"since":-1}"#] {
            assert_eq!(read_flight(String::new(), value.as_bytes()), None);
            assert_eq!(read_member("a".parse().unwrap(), value.as_bytes()), None);
        }
    }
}
