//! What etcd says, as steps of the [map](crate::fleet::map::Map). Sans-IO.
//!
//! A member writes its kites first and its own name last. So whoever reads the name knows that the rest is there; and of a
//! member whose name is missing nothing is believed to be over until [`GATHER`] has passed. That one rule is for an etcd that
//! was away for long, for one that was wiped, and for a member that has lost it: what was known stays, goes to the end of the
//! order, and is put anew when the member is back.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use super::record::{Keys, Place, read_flight, read_member};
use super::wire::{Event, Stored, Whole};
use crate::fleet::map::{Flight, Key};
use crate::fleet::member::{Member, MemberId};

/// How long what a member flew is remembered when its name is not in etcd, or not any more: three times as long as the members
/// take to come back to an etcd that has.
pub const GATHER: Duration = Duration::from_secs(30);
/// Most members of a fleet that has an etcd.
pub const MAX_MEMBERS: usize = 4096;

/// What is to be done to the map, or to the list of members.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// This flies there.
    Put(MemberId, Key, Flight),
    /// This does not any more.
    Remove(MemberId, Key, String),
    /// What this member flies is doubtful.
    Fade(MemberId),
    /// What is doubtful still is over.
    Sweep(MemberId),
    /// A member, newly or as before.
    Join(Member),
    /// This is no member any more, and what is doubtful of it is over.
    Leave(MemberId),
}

/// How far we have heard, and whom of.
#[derive(Debug)]
pub struct Mirror {
    keys: Keys,
    me: MemberId,
    /// What etcd's life was called, and up to which revision all is known.
    place: Option<(String, i64)>,
    /// Whoever was heard of.
    known: BTreeSet<MemberId>,
    /// Of whom something stands in etcd, as far as we know.
    present: BTreeSet<MemberId>,
    /// Whose names stand there.
    here: BTreeSet<MemberId>,
    /// When whoever is not here is forgotten.
    until: Option<Instant>,
    /// Keys and values that could not be read.
    strange: u64,
    /// What has changed, of a revision of which more follows. The end of a lease is only seen as a whole.
    pending: Vec<Event>,
}

/// Changes that wait for the rest of their revision; more are taken as they come.
pub const MAX_PENDING: usize = 256 * 1024;

impl Mirror {
    /// Nothing is known yet.
    pub fn new(keys: Keys, me: MemberId) -> Self {
        Self {
            keys,
            me,
            place: None,
            known: BTreeSet::new(),
            present: BTreeSet::new(),
            here: BTreeSet::new(),
            until: None,
            strange: 0,
            pending: Vec::new(),
        }
    }

    /// The first revision that is not known yet, if this is the etcd that we knew. Else all must be read.
    pub fn resumes(&self, life: &str, revision: i64) -> Option<i64> {
        let (known, seen) = self.place.as_ref()?;
        (known == life && *seen <= revision).then_some(seen + 1)
    }

    /// It goes on from there. Whoever is awaited has the whole time again.
    pub fn resume(&mut self, now: Instant) {
        // It comes again.
        self.pending = Vec::new();
        self.until = self.until.map(|_| now + GATHER);
    }

    /// The place is of no use any more: all must be read.
    pub fn lose_place(&mut self) {
        self.place = None;
    }

    /// All is going to be read.
    pub fn begin(&mut self) -> Vec<Step> {
        self.pending = Vec::new();
        self.place = None;
        self.here.clear();
        self.present.clear();
        self.known.iter().cloned().map(Step::Fade).collect()
    }

    /// A part of all.
    pub fn read(&mut self, entries: Vec<Stored>) -> Vec<Step> {
        let mut steps = Vec::new();
        for stored in entries {
            if let Some(step) = self.put(stored) {
                steps.push(step);
            }
        }
        steps
    }

    /// That was all, as it was at this revision.
    pub fn complete(&mut self, life: String, revision: i64, now: Instant) -> Vec<Step> {
        self.place = Some((life, revision));
        let missing = self.known.difference(&self.here).next().is_some();
        self.until = missing.then(|| now + GATHER);
        self.here.iter().cloned().map(Step::Sweep).collect()
    }

    /// What has changed since, in its order. Whoever has been told already is told nothing new.
    pub fn events(&mut self, events: Vec<Event>, whole: Whole, now: Instant) -> Vec<Step> {
        let seen = self.place.as_ref().map_or(0, |(_, seen)| *seen);
        let new = |event: &Event| revision(event) > seen;
        self.pending.extend(events.into_iter().filter(new));
        if whole == Whole::No && self.pending.len() <= MAX_PENDING {
            return Vec::new();
        }
        let events = std::mem::take(&mut self.pending);
        if let (Whole::Yes, Some(last), Some((_, seen))) = (whole, events.last(), &mut self.place) {
            *seen = revision(last);
        }
        // Whose name goes: what goes with it, at the same revision, is of a lease that is over.
        let over: BTreeSet<(MemberId, i64)> = events
            .iter()
            .filter_map(|event| match event {
                Event::Gone { key, revision } => match self.keys.read(key)? {
                    Place::Member(id) => Some((id, *revision)),
                    Place::Kite { .. } => None,
                },
                Event::Put(_) => None,
            })
            .collect();
        let mut steps = Vec::new();
        for event in events {
            match event {
                Event::Put(stored) => {
                    let Some(step) = self.put(stored) else {
                        continue;
                    };
                    let joined = match &step {
                        Step::Join(member) => Some(member.id.clone()),
                        _ => None,
                    };
                    steps.push(step);
                    steps.extend(joined.map(Step::Sweep));
                }
                Event::Gone { key, revision } => match self.keys.read(&key) {
                    Some(Place::Member(id)) if id != self.me => {
                        self.here.remove(&id);
                        self.present.remove(&id);
                        self.until = Some(now + GATHER);
                        steps.push(Step::Fade(id));
                    }
                    Some(Place::Kite {
                        member,
                        key,
                        session,
                    }) if member != self.me && !over.contains(&(member.clone(), revision)) => {
                        steps.push(Step::Remove(member, key, session));
                    }
                    _ => {}
                },
            }
        }
        steps
    }

    /// Nothing has changed up to this revision.
    pub fn nothing(&mut self, revision: i64) {
        if let Some((_, seen)) = &mut self.place {
            *seen = revision.max(*seen);
        }
    }

    /// When [`Mirror::forget`] is due, if ever. Not while etcd is away: nobody could come back.
    pub fn until(&self) -> Option<Instant> {
        self.until
    }

    /// Whoever has not come back by now is forgotten.
    pub fn forget(&mut self, now: Instant) -> Vec<Step> {
        if self.until.is_none_or(|until| now < until) {
            return Vec::new();
        }
        self.until = None;
        let gone: Vec<_> = self.known.difference(&self.here).cloned().collect();
        self.known.retain(|id| self.present.contains(id));
        gone.into_iter().map(Step::Leave).collect()
    }

    /// Members whose names stand in etcd, this one among them.
    pub fn members(&self) -> usize {
        self.here.len()
    }

    /// Keys and values that could not be read, in all.
    pub fn strange(&self) -> u64 {
        self.strange
    }

    fn put(&mut self, stored: Stored) -> Option<Step> {
        let step = match self.keys.read(&stored.key)? {
            Place::Member(id) => {
                let read = read_member(id.clone(), &stored.value);
                read.filter(|_| self.admit(&id)).map(|member| {
                    self.here.insert(id);
                    Step::Join(member)
                })
            }
            // What flies here we know ourselves.
            Place::Kite { member, .. } if member == self.me => return None,
            Place::Kite {
                member,
                key,
                session,
            } => {
                let read = read_flight(session, &stored.value);
                read.filter(|_| self.admit(&member))
                    .map(|flight| Step::Put(member, key, flight))
            }
        };
        if step.is_none() {
            self.strange += 1;
        }
        step
    }

    /// Whether this member is known now.
    fn admit(&mut self, id: &MemberId) -> bool {
        let free = self.known.len() < MAX_MEMBERS;
        let admitted = self.known.contains(id) || (free && self.known.insert(id.clone()));
        if admitted && !self.present.contains(id) {
            self.present.insert(id.clone());
        }
        admitted
    }
}

fn revision(event: &Event) -> i64 {
    match event {
        Event::Put(stored) => stored.revision,
        Event::Gone { revision, .. } => *revision,
    }
}

#[cfg(test)]
mod tests;
