//! What a frontend has to tell etcd. Sans-IO.
//!
//! Not a queue of what has happened but what is to stand there, and which of it may not: a kite that comes and goes a hundred
//! times while etcd is away is one key. So it holds no more than the frontend flies, and what it has written.

use std::collections::{BTreeMap, BTreeSet, btree_map};

use super::wire::MAX_CHANGES;

/// What is to stand in etcd, by its key.
#[derive(Debug, Default)]
pub struct Outbox {
    wanted: BTreeMap<String, String>,
    /// What may stand there, because it was written under our lease.
    written: BTreeSet<String>,
    /// Where what is wanted and what stands there may differ.
    due: BTreeSet<String>,
    /// Who we are. Written when all else has been: whoever reads it knows that the rest is there.
    sign: Option<(String, String)>,
    signed: bool,
}

/// Changes that belong into one transaction.
#[derive(Debug, PartialEq, Eq)]
pub struct Batch(pub Vec<(String, Option<String>)>);

impl Outbox {
    /// Begins with a key that is written last of all.
    pub fn new(key: String, value: String) -> Self {
        Self {
            sign: Some((key, value)),
            ..Self::default()
        }
    }

    /// The key is to have this value.
    fn put(&mut self, key: String, value: String) {
        match self.wanted.entry(key) {
            btree_map::Entry::Occupied(held) if *held.get() == value => {}
            btree_map::Entry::Occupied(mut held) => {
                self.due.insert(held.key().clone());
                held.insert(value);
            }
            btree_map::Entry::Vacant(free) => {
                self.due.insert(free.key().clone());
                free.insert(value);
            }
        }
    }

    /// The key is to go.
    fn remove(&mut self, key: &str) {
        if self.wanted.remove(key).is_none() {
            return;
        }
        match self.written.contains(key) {
            true => self.due.insert(key.to_owned()),
            false => self.due.remove(key),
        };
    }

    /// All that is to stand there, and nothing else.
    pub fn want(&mut self, all: BTreeMap<String, String>) {
        let gone: Vec<_> = self
            .wanted
            .keys()
            .filter(|key| !all.contains_key(*key))
            .cloned()
            .collect();
        gone.iter().for_each(|key| self.remove(key));
        for (key, value) in all {
            self.put(key, value);
        }
    }

    /// Keys that wait.
    pub fn waiting(&self) -> usize {
        self.due.len() + usize::from(self.sign.is_some() && !self.signed)
    }

    /// A new lease: nothing stands under it.
    pub fn begin_anew(&mut self) {
        self.written.clear();
        self.due = self.wanted.keys().cloned().collect();
        self.signed = false;
    }

    /// Something of this is gone from etcd. What we have not taken away ourselves is to stand there again.
    pub fn gone(&mut self, key: &[u8]) {
        let Ok(key) = std::str::from_utf8(key) else {
            return;
        };
        if self.sign.as_ref().is_some_and(|(sign, _)| sign == key) {
            self.signed = false;
        }
        if self.wanted.contains_key(key) {
            self.due.insert(key.to_owned());
        }
    }

    /// What is to be written next. It counts as being on its way: [`Outbox::failed`] if it may not have arrived.
    pub fn next(&mut self) -> Option<Batch> {
        let mut batch = Vec::new();
        while batch.len() < MAX_CHANGES
            && let Some(key) = self.due.pop_first()
        {
            let value = self.wanted.get(&key).cloned();
            // Whether or not an answer comes, it may stand there from now on.
            match &value {
                Some(_) => self.written.insert(key.clone()),
                None => self.written.remove(&key),
            };
            batch.push((key, value));
        }
        if batch.is_empty()
            && !self.signed
            && let Some((key, value)) = &self.sign
        {
            self.signed = true;
            batch.push((key.clone(), Some(value.clone())));
        }
        (!batch.is_empty()).then_some(Batch(batch))
    }

    /// This may have been written, or not.
    pub fn failed(&mut self, batch: Batch) {
        for (key, value) in batch.0 {
            match &self.sign {
                Some((sign, _)) if *sign == key => self.signed = false,
                _ => {
                    if value.is_none() {
                        self.written.insert(key.clone());
                    }
                    self.due.insert(key);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(batch: Option<Batch>) -> Vec<String> {
        let changes = batch.map(|b| b.0).unwrap_or_default();
        let shown = |(key, value): (String, Option<String>)| match value {
            Some(value) => format!("{key}={value}"),
            None => format!("-{key}"),
        };
        changes.into_iter().map(shown).collect()
    }

    #[test]
    fn what_comes_and_goes_unwritten_is_nothing() {
        let mut outbox = Outbox::default();
        outbox.put("a".into(), "1".into());
        outbox.put("a".into(), "2".into());
        outbox.put("b".into(), "1".into());
        outbox.remove("b");
        assert_eq!(outbox.waiting(), 1);
        assert_eq!(keys(outbox.next()), ["a=2"]);
        assert_eq!(keys(outbox.next()), [""; 0]);
        outbox.put("a".into(), "2".into());
        assert_eq!(outbox.waiting(), 0, "it stands there");
        outbox.remove("a");
        outbox.remove("a");
        assert_eq!(keys(outbox.next()), ["-a"]);
        outbox.put("c".into(), "1".into());
        outbox.remove("c");
        assert_eq!(outbox.waiting(), 0);
    }

    #[test]
    fn what_is_wanted_is_all_that_is_to_stand_there() {
        let of = |keys: &[&str]| keys.iter().map(|k| ((*k).into(), "1".into())).collect();
        let mut outbox = Outbox::default();
        outbox.want(of(&["a", "b"]));
        outbox.next();
        outbox.want(of(&["b", "c"]));
        assert_eq!(keys(outbox.next()), ["-a", "c=1"]);
        outbox.want(of(&[]));
        assert_eq!(keys(outbox.next()), ["-b", "-c"]);
    }

    #[test]
    fn what_may_have_been_written_is_written_or_removed_again() {
        let mut outbox = Outbox::default();
        outbox.put("a".into(), "1".into());
        outbox.put("b".into(), "1".into());
        let batch = outbox.next().unwrap();
        outbox.remove("b");
        outbox.failed(batch);
        assert_eq!(keys(outbox.next()), ["a=1", "-b"]);
        outbox.remove("a");
        let batch = outbox.next().unwrap();
        outbox.failed(batch);
        assert_eq!(keys(outbox.next()), ["-a"]);
        assert_eq!(outbox.waiting(), 0);
    }

    #[test]
    fn what_somebody_else_takes_away_is_written_again() {
        let mut outbox = Outbox::new("me".into(), "here".into());
        outbox.put("a".into(), "1".into());
        outbox.put("b".into(), "1".into());
        assert_eq!(keys(outbox.next()), ["a=1", "b=1"]);
        assert_eq!(keys(outbox.next()), ["me=here"]);
        outbox.remove("b");
        assert_eq!(keys(outbox.next()), ["-b"]);
        for key in ["b", "another's", "\u{ff}"] {
            outbox.gone(key.as_bytes());
        }
        assert_eq!(outbox.waiting(), 0);
        outbox.gone(b"a");
        outbox.gone(b"me");
        assert_eq!(keys(outbox.next()), ["a=1"]);
        assert_eq!(keys(outbox.next()), ["me=here"]);
        assert_eq!(outbox.waiting(), 0);
    }

    #[test]
    fn a_new_lease_has_everything_written_anew_and_the_sign_last() {
        let mut outbox = Outbox::new("me".into(), "here".into());
        for n in 0..MAX_CHANGES + 1 {
            outbox.put(format!("{n:04}"), "1".into());
        }
        for _ in 0..2 {
            assert_eq!(keys(outbox.next()).len(), MAX_CHANGES);
            assert_eq!(keys(outbox.next()).len(), 1);
            let sign = outbox.next().unwrap();
            assert_eq!(sign.0[0].0, "me");
            outbox.failed(sign);
            assert_eq!(outbox.waiting(), 1);
            assert_eq!(keys(outbox.next()), ["me=here"]);
            assert_eq!(outbox.next(), None);
            outbox.remove("0000");
            outbox.begin_anew();
            outbox.put("0000".into(), "1".into());
        }
    }
}
