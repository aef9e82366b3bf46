//! Who flies which kite, elsewhere in the fleet. Sans-IO: whoever learns something tells the map.
//!
//! A visitor is looked for in the same order as [`Registry::find`](crate::frontend::registry::Registry::find) has it, so that
//! a fleet answers as one frontend would: [`places`] is that order, and a [`Rank`] is a place in it.

use std::collections::{BTreeSet, HashMap};

use super::member::MemberId;
use crate::kite::KiteName;

/// Most flights that are kept of one member: kites, each as often as tunnels fly it.
pub const MAX_FLIGHTS: usize = 64 * 1024;
/// Most members that a visitor is offered to.
pub const MAX_OFFERS: usize = 3;

/// Wire protocol with its port, if any (`http`, `raw-22`), and name.
pub type Key = (String, String);

/// One tunnel that flies one kite.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flight {
    /// The tunnel's session at its member.
    pub session: String,
    /// When it was proved, on the fleet's own clock: the greater, the newer.
    pub since: u64,
    /// Two flights of one backend have the same. An older program has none.
    pub backend: Option<String>,
    /// Others may fly the kite beside it.
    pub several: bool,
}

/// A place in the order in which a visitor's kite is looked for: the smaller goes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rank {
    /// Places before it.
    pub at: usize,
    /// It is the last resort, and not the visitor's own.
    pub is_catch_all: bool,
}

/// Where a visitor's kite may be found: for each of `protos`, on this port or any, exactly or by the nearest wildcard; then
/// as the catch-all.
pub fn places<'a>(
    protos: &'a [&'a str],
    port: u16,
    host: &'a KiteName,
) -> impl Iterator<Item = (Rank, Key)> + 'a {
    let names = move || std::iter::once(host.to_string()).chain(host.wildcards());
    let own = protos.iter().flat_map(move |proto| {
        [format!("{proto}-{port}"), (*proto).to_owned()]
            .into_iter()
            .flat_map(move |proto| names().map(move |name| (proto.clone(), name)))
    });
    let last = protos.first().map(|proto| {
        let key = ((*proto).to_owned(), KiteName::CATCH_ALL.to_owned());
        (true, key)
    });
    let all = own.map(|key| (false, key)).chain(last);
    all.enumerate()
        .map(|(at, (is_catch_all, key))| (Rank { at, is_catch_all }, key))
}

/// Where a visitor can be brought to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hit {
    /// How well it fits.
    pub rank: Rank,
    /// The kite.
    pub key: Key,
    /// Who flies it, the newest first; those last from whom nothing is heard any more. At most [`MAX_OFFERS`].
    pub members: Vec<MemberId>,
}

/// A flight at a member.
#[derive(Debug)]
struct Seat {
    member: MemberId,
    flight: Flight,
    /// Nothing is heard of it any more.
    fading: bool,
}

/// Who flies which kite. Names and members stand here, and nobody's address.
#[derive(Debug, Default)]
pub struct Map {
    kites: HashMap<Key, Vec<Seat>>,
    /// What each member flies, so that what one does costs the same among many.
    held: HashMap<MemberId, BTreeSet<(Key, String)>>,
}

impl Map {
    /// A member flies this, newly or as before. False if it flies too much already.
    pub fn put(&mut self, member: &MemberId, key: Key, flight: Flight) -> bool {
        let held = self.held.entry(member.clone()).or_default();
        let place = (key, flight.session.clone());
        if !held.contains(&place) {
            if held.len() >= MAX_FLIGHTS {
                return false;
            }
            held.insert(place.clone());
        }
        let seats = self.kites.entry(place.0).or_default();
        seats.retain(|s| s.member != *member || s.flight.session != flight.session);
        seats.push(Seat {
            member: member.clone(),
            flight,
            fading: false,
        });
        true
    }

    /// A member does not fly this any more.
    pub fn remove(&mut self, member: &MemberId, key: &Key, session: &str) {
        if let Some(held) = self.held.get_mut(member) {
            held.remove(&(key.clone(), session.to_owned()));
            if held.is_empty() {
                self.held.remove(member);
            }
        }
        self.vacate(key, |s| s.member == *member && s.flight.session == session);
    }

    /// The tunnels by which a member flies a kite.
    pub fn sessions(&self, member: &MemberId, key: &Key) -> Vec<String> {
        let seats = self.kites.get(key).into_iter().flatten();
        let theirs = seats.filter(|s| s.member == *member);
        theirs.map(|s| s.flight.session.clone()).collect()
    }

    /// A member was asked for a kite, and did not fly it, when it was known to by these tunnels. Others go before it then. It is
    /// the member's own to say that they are gone: this answer may be older than what it has said since.
    pub fn doubt(&mut self, member: &MemberId, key: &Key, sessions: &[String]) {
        let seats = self.kites.get_mut(key).into_iter().flatten();
        seats
            .filter(|s| s.member == *member && sessions.contains(&s.flight.session))
            .for_each(|s| s.fading = true);
    }

    fn vacate(&mut self, key: &Key, gone: impl Fn(&Seat) -> bool) {
        if let Some(seats) = self.kites.get_mut(key) {
            seats.retain(|s| !gone(s));
            if seats.is_empty() {
                self.kites.remove(key);
            }
        }
    }

    fn theirs(&mut self, member: &MemberId, mut each: impl FnMut(&mut Seat)) {
        let held = self.held.get(member).into_iter().flatten();
        for (key, session) in held {
            let seats = self.kites.get_mut(key).into_iter().flatten();
            seats
                .filter(|s| s.member == *member && s.flight.session == *session)
                .for_each(&mut each);
        }
    }

    /// Nothing is heard of a member any more, or it begins anew: all that it flies is doubtful until it is put again.
    pub fn fade(&mut self, member: &MemberId) {
        self.theirs(member, |seat| seat.fading = true);
    }

    /// What of a member is still doubtful is over.
    pub fn sweep(&mut self, member: &MemberId) {
        let mut gone = Vec::new();
        for place in self.held.get(member).into_iter().flatten() {
            let seats = self.kites.get(&place.0).into_iter().flatten();
            if seats
                .filter(|s| s.member == *member && s.flight.session == place.1)
                .any(|s| s.fading)
            {
                gone.push(place.clone());
            }
        }
        for (key, session) in gone {
            self.remove(member, &key, &session);
        }
    }

    /// A member is gone, with all that it flew.
    pub fn drop_member(&mut self, member: &MemberId) {
        self.fade(member);
        self.sweep(member);
    }

    /// How many kites a member flies.
    pub fn kites_of(&self, member: &MemberId) -> usize {
        let Some(held) = self.held.get(member) else {
            return 0;
        };
        let mut keys: Vec<_> = held.iter().map(|(key, _)| key).collect();
        keys.dedup();
        keys.len()
    }

    /// Where a visitor can be brought to, if anywhere.
    pub fn find(&self, protos: &[&str], port: u16, host: &KiteName) -> Option<Hit> {
        places(protos, port, host).find_map(|(rank, key)| {
            let seats = self.kites.get(&key)?;
            let mut order: Vec<&Seat> = seats.iter().collect();
            order.sort_by_key(|s| {
                (
                    s.fading,
                    std::cmp::Reverse(s.flight.since),
                    s.member.clone(),
                )
            });
            let mut members: Vec<MemberId> = Vec::new();
            for seat in order {
                if members.len() < MAX_OFFERS && !members.contains(&seat.member) {
                    members.push(seat.member.clone());
                }
            }
            Some(Hit { rank, key, members })
        })
    }

    /// Is there a rival of this flight of `member`'s that goes before it: another backend's, and newer?
    pub fn is_beaten(&self, member: &MemberId, key: &Key, flight: &Flight) -> bool {
        let seats = self.kites.get(key).into_iter().flatten();
        seats.filter(|s| !s.fading).any(|s| {
            let (ours, theirs) = (&flight.backend, &s.flight.backend);
            let rivals = ours.is_some() && theirs.is_some() && ours != theirs;
            rivals
                && !(flight.several && s.flight.several)
                && (s.flight.since, &s.member) > (flight.since, member)
        })
    }

    /// Does a tunnel of this name fly the kite anywhere?
    pub fn has_session(&self, key: &Key, session: &str) -> bool {
        let seats = self.kites.get(key).into_iter().flatten();
        seats.into_iter().any(|s| s.flight.session == session)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn id(text: &str) -> MemberId {
        text.parse().expect("a name")
    }

    fn key(proto: &str, name: &str) -> Key {
        (proto.into(), name.into())
    }

    fn flight(session: &str, since: u64) -> Flight {
        Flight {
            session: session.into(),
            since,
            backend: None,
            several: false,
        }
    }

    fn found(map: &Map, host: &str) -> Option<(String, Vec<String>)> {
        let host: KiteName = host.parse().expect("a name");
        let hit = map.find(&["http", "http2"], 80, &host)?;
        Some((
            hit.key.1,
            hit.members.iter().map(ToString::to_string).collect(),
        ))
    }

    #[test]
    fn the_nearest_name_is_found_and_the_last_resort_last() {
        let mut map = Map::default();
        for (member, proto, name) in [
            ("a", "http", "*.example"),
            ("b", "http", "*.alice.example"),
            ("c", "http-80", "bob.alice.example"),
            ("d", "http-81", "bob.alice.example"),
            ("e", "http", "unknown"),
        ] {
            assert!(map.put(&id(member), key(proto, name), flight(member, 1)));
        }
        let who = |host: &str| found(&map, host).map(|(_, members)| members.concat());
        assert_eq!(who("bob.alice.example").as_deref(), Some("c"));
        assert_eq!(who("eve.alice.example").as_deref(), Some("b"));
        assert_eq!(who("eve.example").as_deref(), Some("a"));
        assert_eq!(who("elsewhere.test").as_deref(), Some("e"));
        let host = "elsewhere.test".parse().expect("a name");
        let hit = map.find(&["http"], 80, &host).expect("the last resort");
        assert!(hit.rank.is_catch_all);
        assert_eq!(map.find(&["https"], 80, &host), None);
    }

    #[test]
    fn the_newest_goes_first_and_who_is_silent_last() {
        let mut map = Map::default();
        let k = key("http", "bob.example");
        for (member, since) in [("a", 3), ("b", 5), ("c", 4), ("d", 1)] {
            map.put(&id(member), k.clone(), flight("s", since));
        }
        assert_eq!(found(&map, "bob.example").unwrap().1, ["b", "c", "a"]);
        map.fade(&id("b"));
        assert_eq!(found(&map, "bob.example").unwrap().1, ["c", "a", "d"]);
        map.put(&id("b"), k.clone(), flight("t", 6));
        map.sweep(&id("b"));
        assert_eq!(found(&map, "bob.example").unwrap().1, ["b", "c", "a"]);
        assert_eq!(map.kites_of(&id("b")), 1);
        let asked = map.sessions(&id("b"), &k);
        map.doubt(&id("b"), &k, &asked);
        assert_eq!(found(&map, "bob.example").unwrap().1, ["c", "a", "d"]);
        assert_eq!(map.kites_of(&id("b")), 1, "only it says that it is gone");
        // An answer that comes late says nothing of what flies since.
        map.put(&id("b"), k.clone(), flight("u", 7));
        map.doubt(&id("b"), &k, &asked);
        assert_eq!(found(&map, "bob.example").unwrap().1, ["b", "c", "a"]);
    }

    #[test]
    fn rivals_are_backends_that_say_they_are_others() {
        let mut map = Map::default();
        let k = key("http", "bob.example");
        let of = |backend: Option<&str>, since, several| Flight {
            backend: backend.map(Into::into),
            several,
            ..flight("s", since)
        };
        map.put(&id("b"), k.clone(), of(Some("y"), 5, false));
        let beaten = |flight| map.is_beaten(&id("a"), &k, &flight);
        assert!(beaten(of(Some("x"), 4, false)));
        assert!(!beaten(of(Some("x"), 6, false)), "it is newer");
        assert!(
            beaten(of(Some("x"), 5, false)),
            "of two at once the later name stays"
        );
        assert!(!beaten(of(Some("y"), 4, false)), "the same backend");
        assert!(!beaten(of(None, 4, false)), "nobody knows");
        map.put(&id("b"), k.clone(), of(Some("y"), 5, true));
        assert!(!map.is_beaten(&id("a"), &k, &of(Some("x"), 4, true)));
    }

    #[test]
    fn a_member_flies_so_much_and_no_more() {
        let mut map = Map::default();
        for i in 0..MAX_FLIGHTS {
            assert!(map.put(&id("a"), key("http", &format!("k{i}")), flight("s", 1)));
        }
        assert!(!map.put(&id("a"), key("http", "one-more"), flight("s", 1)));
        assert!(
            map.put(&id("a"), key("http", "k1"), flight("s", 2)),
            "known already"
        );
        assert!(map.put(&id("b"), key("http", "one-more"), flight("s", 1)));
        map.drop_member(&id("a"));
        assert_eq!(map.kites.len(), 1);
        assert_eq!(map.held.len(), 1);
    }

    #[derive(Debug, Clone)]
    enum Op {
        Put(u8, u8, u8),
        Remove(u8, u8, u8),
        Fade(u8),
        Sweep(u8),
        Drop(u8),
    }

    fn op() -> impl Strategy<Value = Op> {
        let (m, k, s) = (0u8..3, 0u8..4, 0u8..3);
        prop_oneof![
            (m.clone(), k.clone(), s.clone()).prop_map(|(m, k, s)| Op::Put(m, k, s)),
            (m.clone(), k, s).prop_map(|(m, k, s)| Op::Remove(m, k, s)),
            m.clone().prop_map(Op::Fade),
            m.clone().prop_map(Op::Sweep),
            m.prop_map(Op::Drop),
        ]
    }

    proptest! {
        /// Against a list that is looked through from end to end.
        #[test]
        fn it_is_as_a_plain_list_would_be(ops in proptest::collection::vec(op(), 0..60)) {
            let mut map = Map::default();
            let mut list: Vec<(u8, u8, u8, bool)> = Vec::new();
            let (m, k) = (|m: u8| id(&format!("m{m}")), |k: u8| key("http", &format!("k{k}.example")));
            for op in ops {
                match op {
                    Op::Put(a, b, c) => {
                        map.put(&m(a), k(b), flight(&c.to_string(), 1));
                        list.retain(|e| (e.0, e.1, e.2) != (a, b, c));
                        list.push((a, b, c, false));
                    }
                    Op::Remove(a, b, c) => {
                        map.remove(&m(a), &k(b), &c.to_string());
                        list.retain(|e| (e.0, e.1, e.2) != (a, b, c));
                    }
                    Op::Fade(a) => {
                        map.fade(&m(a));
                        list.iter_mut().filter(|e| e.0 == a).for_each(|e| e.3 = true);
                    }
                    Op::Sweep(a) => {
                        map.sweep(&m(a));
                        list.retain(|e| e.0 != a || !e.3);
                    }
                    Op::Drop(a) => {
                        map.drop_member(&m(a));
                        list.retain(|e| e.0 != a);
                    }
                }
                for b in 0..4 {
                    let mut expected: Vec<_> = list.iter().filter(|e| e.1 == b).map(|e| (e.3, e.0)).collect();
                    expected.sort_unstable();
                    let mut members: Vec<String> = Vec::new();
                    for (_, a) in expected {
                        let name = format!("m{a}");
                        if !members.contains(&name) {
                            members.push(name);
                        }
                    }
                    let got = found(&map, &format!("k{b}.example")).map(|(_, m)| m).unwrap_or_default();
                    prop_assert_eq!(got, members);
                }
                for a in 0..3 {
                    let kites: BTreeSet<u8> = list.iter().filter(|e| e.0 == a).map(|e| e.1).collect();
                    prop_assert_eq!(map.kites_of(&m(a)), kites.len());
                }
            }
        }
    }
}
