use std::collections::BTreeMap;

use proptest::prelude::*;

use super::super::record::{of_flight, of_member};
use super::*;
use crate::fleet::map::Map;
use crate::kite::KiteName;

fn id(text: &str) -> MemberId {
    text.parse().expect("a name")
}

fn key(name: &str) -> Key {
    ("http".into(), name.into())
}

fn flight(session: &str, since: u64) -> Flight {
    Flight {
        session: session.into(),
        since,
        backend: None,
        several: false,
    }
}

fn member(name: &str) -> Member {
    Member {
        id: id(name),
        address: "192.0.2.1:7000".parse().expect("an address"),
        pin: format!("sha256:{}", "00".repeat(32))
            .parse()
            .expect("a pin"),
        public: None,
    }
}

/// An etcd, as far as we see it.
#[derive(Default)]
struct Store {
    revision: i64,
    keys: BTreeMap<String, (String, i64)>,
    history: Vec<Event>,
}

impl Store {
    fn change(&mut self, changes: Vec<(String, Option<String>)>) {
        self.revision += 1;
        let revision = self.revision;
        for (key, value) in changes {
            let event = match value {
                Some(value) => {
                    self.keys.insert(key.clone(), (value.clone(), revision));
                    Event::Put(Stored {
                        key: key.into(),
                        value: value.into(),
                        revision,
                    })
                }
                None if self.keys.remove(&key).is_some() => Event::Gone {
                    key: key.into(),
                    revision,
                },
                None => continue,
            };
            self.history.push(event);
        }
    }

    fn all(&self) -> Vec<Stored> {
        let stored = |(key, (value, revision)): (&String, &(String, i64))| Stored {
            key: key.clone().into(),
            value: value.clone().into(),
            revision: *revision,
        };
        self.keys.iter().map(stored).collect()
    }

    fn since(&self, from: i64) -> Vec<Event> {
        let new = |e: &&Event| revision(e) >= from;
        self.history.iter().filter(new).cloned().collect()
    }

    fn put_kite(&mut self, at: &str, name: &str, since: u64) {
        let place = KEYS().kite(&id(at), &key(name), "s").expect("a key");
        self.change(vec![(place, Some(of_flight(&flight("s", since))))]);
    }

    fn drop_kite(&mut self, at: &str, name: &str) {
        let place = KEYS().kite(&id(at), &key(name), "s").expect("a key");
        self.change(vec![(place, None)]);
    }

    fn sign(&mut self, at: &str) {
        let key = KEYS().member(&id(at));
        self.change(vec![(key, Some(of_member(&member(at))))]);
    }

    /// The lease of a member ends.
    fn end(&mut self, at: &str) {
        let its = |key: &&String| {
            matches!(KEYS().read(key.as_bytes()),
                Some(Place::Member(m) | Place::Kite { member: m, .. }) if m == id(at))
        };
        let keys: Vec<String> = self.keys.keys().filter(its).cloned().collect();
        self.change(keys.into_iter().map(|key| (key, None)).collect());
    }

    /// What flies where, but at us.
    fn flies(&self) -> BTreeSet<(String, String)> {
        let place = |key: &String| match KEYS().read(key.as_bytes())? {
            Place::Kite { member, key, .. } if member != id("me") => {
                Some((member.to_string(), key.1))
            }
            _ => None,
        };
        self.keys.keys().filter_map(place).collect()
    }
}

#[allow(non_snake_case)]
fn KEYS() -> Keys {
    Keys::new("kite")
}

/// A mirror with the map that it fills.
struct Scene {
    mirror: Mirror,
    map: Map,
    members: BTreeSet<String>,
    now: Instant,
}

impl Scene {
    fn new() -> Self {
        Self {
            mirror: Mirror::new(KEYS(), id("me")),
            map: Map::default(),
            members: BTreeSet::new(),
            now: Instant::now(),
        }
    }

    fn take(&mut self, steps: Vec<Step>) {
        for step in steps {
            match step {
                Step::Put(member, key, flight) => {
                    self.map.put(&member, key, flight);
                }
                Step::Remove(member, key, session) => self.map.remove(&member, &key, &session),
                Step::Fade(member) => self.map.fade(&member),
                Step::Sweep(member) => self.map.sweep(&member),
                Step::Join(member) => {
                    self.members.insert(member.id.to_string());
                }
                Step::Leave(member) => {
                    self.map.sweep(&member);
                    self.members.remove(member.as_str());
                }
            }
        }
    }

    /// As the keeper does it when it has a connection.
    fn connect(&mut self, store: &Store, life: &str) {
        match self.mirror.resumes(life, store.revision) {
            Some(from) => {
                self.mirror.resume(self.now);
                self.hear(store.since(from));
            }
            None => {
                let steps = self.mirror.begin();
                self.take(steps);
                for page in store.all().chunks(2) {
                    let steps = self.mirror.read(page.to_vec());
                    self.take(steps);
                }
                let steps = self.mirror.complete(life.into(), store.revision, self.now);
                self.take(steps);
            }
        }
    }

    fn hear(&mut self, events: Vec<Event>) {
        let steps = self.mirror.events(events, Whole::Yes, self.now);
        self.take(steps);
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        let steps = self.mirror.forget(self.now);
        self.take(steps);
    }

    fn who(&self, name: &str) -> Vec<String> {
        let host: KiteName = name.parse().expect("a name");
        let hit = self.map.find(&["http"], 80, &host);
        let members = hit.map(|hit| hit.members).unwrap_or_default();
        members.iter().map(ToString::to_string).collect()
    }
}

fn fleet_of_two() -> (Store, Scene) {
    let (mut store, mut scene) = (Store::default(), Scene::new());
    store.put_kite("a", "one.example", 1);
    store.sign("a");
    store.put_kite("b", "two.example", 1);
    store.put_kite("b", "one.example", 2);
    store.sign("b");
    scene.connect(&store, "first");
    assert_eq!(scene.who("one.example"), ["b", "a"]);
    (store, scene)
}

#[test]
fn an_etcd_that_was_wiped_empties_nothing() {
    let (_, mut scene) = fleet_of_two();
    let mut store = Store::default();
    scene.connect(&store, "second");
    assert_eq!(
        scene.who("one.example"),
        ["b", "a"],
        "nobody has come back yet"
    );
    // A is back, all but a kite that has gone meanwhile: that one is over as soon as A has said its name.
    store.put_kite("a", "three.example", 3);
    store.sign("a");
    scene.hear(store.since(1));
    assert_eq!(scene.who("three.example"), ["a"]);
    assert_eq!(scene.who("one.example"), ["b"]);
    scene.pass(GATHER - Duration::from_secs(1));
    assert_eq!(scene.who("two.example"), ["b"]);
    scene.pass(Duration::from_secs(1));
    assert_eq!(scene.who("two.example"), [""; 0]);
    assert_eq!(scene.members.iter().collect::<Vec<_>>(), ["a"]);
    assert_eq!(scene.mirror.until(), None);
}

#[test]
fn a_member_whose_lease_is_over_goes_to_the_end_and_then_goes() {
    let (mut store, mut scene) = fleet_of_two();
    store.put_kite("a", "two.example", 1);
    let before = store.revision + 1;
    store.end("b");
    scene.hear(store.since(before - 1));
    assert_eq!(
        scene.who("two.example"),
        ["a", "b"],
        "it may fly, only etcd does not hear of it"
    );
    store.put_kite("b", "two.example", 2);
    store.sign("b");
    scene.hear(store.since(before + 1));
    assert_eq!(scene.who("two.example"), ["b", "a"]);
    assert_eq!(
        scene.who("one.example"),
        ["a"],
        "it has not said that one again"
    );
    store.end("b");
    scene.hear(store.since(before + 3));
    scene.pass(GATHER);
    assert_eq!(scene.who("two.example"), ["a"]);
}

#[test]
fn who_waits_for_others_waits_anew_after_an_absence_of_its_own() {
    let (mut store, mut scene) = fleet_of_two();
    let before = store.revision;
    store.end("b");
    scene.hear(store.since(before + 1));
    scene.now += GATHER * 2;
    scene.connect(&store, "first");
    scene.pass(GATHER / 2);
    assert_eq!(scene.who("two.example"), ["b"]);
    scene.pass(GATHER);
    assert_eq!(scene.who("two.example"), [""; 0]);
}

#[test]
fn what_is_known_is_not_read_again_unless_it_is_another_etcd() {
    let (mut store, mut scene) = fleet_of_two();
    assert_eq!(
        scene.mirror.resumes("first", store.revision),
        Some(store.revision + 1)
    );
    // A backup was put back: the name is the same, and the time goes back.
    assert_eq!(scene.mirror.resumes("first", store.revision - 1), None);
    assert_eq!(scene.mirror.resumes("second", store.revision), None);
    let at = store.revision;
    store.put_kite("a", "x.example", 1);
    let event = store.since(store.revision);
    let steps = scene.mirror.events(event, Whole::No, scene.now);
    scene.take(steps);
    assert_eq!(
        scene.mirror.resumes("first", store.revision),
        Some(at + 1),
        "more of it may follow"
    );
    scene.mirror.nothing(at + 9);
    assert_eq!(scene.mirror.resumes("first", at + 9), Some(at + 10));
    scene.mirror.lose_place();
    assert_eq!(scene.mirror.resumes("first", at + 9), None);
}

#[test]
fn there_are_so_many_members_and_no_more() {
    let (mut store, mut scene) = (Store::default(), Scene::new());
    for n in 0..MAX_MEMBERS + 1 {
        store.sign(&format!("m{n}"));
    }
    store.put_kite("one-more", "a.example", 1);
    store.change(vec![(KEYS().member(&id("me")), Some("{}".into()))]);
    scene.connect(&store, "x");
    // A kite is read before the members are.
    assert_eq!(scene.who("a.example"), ["one-more"]);
    assert_eq!(scene.mirror.members(), MAX_MEMBERS - 1);
    assert_eq!(
        scene.mirror.strange(),
        3,
        "two too many, and one that says nothing"
    );
}

#[derive(Debug, Clone)]
enum Op {
    Put(u8, u8),
    Drop(u8, u8),
    Sign(u8),
    End(u8),
    /// All since so many revisions ago is told, some of it once more.
    Hear(u8),
    /// The connection was lost.
    Connect,
    Pass(u8),
    /// Everybody comes back to an etcd that is empty.
    Wipe,
}

fn op() -> impl Strategy<Value = Op> {
    let (m, k) = (0u8..4, 0u8..4);
    prop_oneof![
        4 => (m.clone(), k.clone()).prop_map(|(m, k)| Op::Put(m, k)),
        2 => (m.clone(), k).prop_map(|(m, k)| Op::Drop(m, k)),
        2 => m.clone().prop_map(Op::Sign),
        1 => m.prop_map(Op::End),
        4 => (0u8..6).prop_map(Op::Hear),
        2 => Just(Op::Connect),
        1 => (0u8..40).prop_map(Op::Pass),
        1 => Just(Op::Wipe),
    ]
}

proptest! {
    /// Whatever is told twice, late, or never: when all is read and nobody is awaited any more the map is what etcd has.
    #[test]
    fn the_map_comes_to_be_what_etcd_has(ops in proptest::collection::vec(op(), 0..80)) {
        let name = |m: u8| if m == 3 { "me".to_owned() } else { format!("m{m}") };
        let kite = |k: u8| format!("k{k}.example");
        let (mut store, mut scene, mut life, mut since) = (Store::default(), Scene::new(), 0, 0);
        for op in ops {
            since += 1;
            match op {
                Op::Put(m, k) => store.put_kite(&name(m), &kite(k), since),
                Op::Drop(m, k) => store.drop_kite(&name(m), &kite(k)),
                Op::Sign(m) => store.sign(&name(m)),
                Op::End(m) => store.end(&name(m)),
                Op::Hear(back) => {
                    // A watch begins where the last one ended, or before, and leaves nothing out.
                    let at = scene.mirror.place.clone();
                    if let Some((known, seen)) = at && known == life.to_string() {
                        scene.hear(store.since(seen + 1 - i64::from(back)));
                    }
                }
                Op::Connect => scene.connect(&store, &life.to_string()),
                Op::Pass(s) => scene.pass(Duration::from_secs(s.into())),
                Op::Wipe => {
                    store = Store::default();
                    life += 1;
                }
            }
        }
        for m in 0..3 {
            store.sign(&name(m));
        }
        scene.connect(&store, &life.to_string());
        scene.pass(GATHER);
        let mut map = BTreeSet::new();
        for k in 0..4 {
            map.extend(scene.who(&kite(k)).into_iter().map(|m| (m, kite(k))));
        }
        prop_assert_eq!(map, store.flies());
    }
}

#[test]
fn a_lease_that_ends_in_pieces_ends_as_one() {
    let (mut store, mut scene) = fleet_of_two();
    let before = store.revision;
    store.end("b");
    let mut pieces: Vec<Vec<Event>> = store.since(before).into_iter().map(|e| vec![e]).collect();
    // The kites first: whose they were is known by the last piece alone.
    let is_member = |event: &Event| matches!(event, Event::Gone { key, .. } if matches!(KEYS().read(key), Some(Place::Member(_))));
    pieces.sort_by_key(|piece| piece.iter().any(is_member));
    let last = pieces.pop().expect("events");
    assert!(!pieces.is_empty() && last.iter().any(is_member));
    for piece in pieces {
        let steps = scene.mirror.events(piece, Whole::No, scene.now);
        scene.take(steps);
    }
    assert_eq!(scene.who("two.example"), ["b"], "more may follow");
    scene.hear(last);
    assert_eq!(scene.who("two.example"), ["b"], "it may be back soon");
    scene.pass(GATHER * 2);
    assert_eq!(scene.who("two.example"), [""; 0]);
}

#[test]
fn so_many_changes_wait_for_the_rest() {
    let (_, mut scene) = fleet_of_two();
    let gone = |n: usize| Event::Gone {
        key: format!("elsewhere/{n}").into(),
        revision: 1_000_000,
    };
    scene
        .mirror
        .events((0..MAX_PENDING).map(gone).collect(), Whole::No, scene.now);
    assert_eq!(scene.mirror.pending.len(), MAX_PENDING);
    scene.mirror.events(vec![gone(0)], Whole::No, scene.now);
    assert_eq!(scene.mirror.pending.len(), 0);
}
