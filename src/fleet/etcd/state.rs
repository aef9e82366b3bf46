//! How it stands with etcd, for the log, the status and the metrics.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::{Endpoint, Trouble};
use crate::code::{Code, Coded};
use crate::fleet::member::Member;
use crate::observe::hush::{Hush, Hushes, PAUSE};

/// What the keeper writes here, and others read.
#[derive(Debug)]
pub struct State {
    view: Mutex<View>,
    impostors: Hush,
    /// What was said of each endpoint.
    said: Hushes,
}

/// How it stands with etcd.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct View {
    /// What is known of the fleet is what etcd says now.
    pub fresh: bool,
    /// Since when.
    pub since: Instant,
    /// Which etcd is spoken with, or was last.
    pub endpoint: Option<String>,
    /// Why it is not fresh.
    pub trouble: Option<(Code, String)>,
    /// Members that stand in etcd, this one among them.
    pub members: usize,
    /// Changes that etcd is still to be told.
    pub waiting: usize,
    /// Changes that it was told.
    pub written: u64,
    /// How often it was lost.
    pub lost: u64,
    /// What stands there and could not be read.
    pub strange: u64,
}

impl Default for State {
    fn default() -> Self {
        Self {
            view: Mutex::new(View {
                fresh: false,
                since: Instant::now(),
                endpoint: None,
                trouble: None,
                members: 0,
                waiting: 0,
                written: 0,
                lost: 0,
                strange: 0,
            }),
            impostors: Hush::default(),
            said: Hushes::default(),
        }
    }
}

impl State {
    /// For whoever asks.
    pub fn view(&self) -> View {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, View> {
        self.view.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All is known, and what changes will be.
    pub(super) fn found(&self, endpoint: &Endpoint) {
        tracing::info!("fleet: etcd at {endpoint} tells who flies what");
        self.said.forget(&endpoint.to_string());
        let mut view = self.lock();
        view.fresh = true;
        view.since = Instant::now();
        view.endpoint = Some(endpoint.to_string());
        view.trouble = None;
    }

    /// Not any more. Whether it was so until now.
    pub(super) fn lost(&self, endpoint: &Endpoint, trouble: &Trouble) -> bool {
        let said = (trouble.code(), trouble.to_string());
        let mut view = self.lock();
        let was_fresh = std::mem::replace(&mut view.fresh, false);
        if was_fresh {
            view.since = Instant::now();
            view.lost += 1;
        }
        view.endpoint = Some(endpoint.to_string());
        view.trouble = Some(said);
        drop(view);
        // One line for each trouble, not for each try.
        let (name, now) = (endpoint.to_string(), Instant::now());
        if let Some(before) = self.said.due(&name, &trouble.to_string(), PAUSE, now) {
            tracing::warn!(
                "[{}] fleet: etcd at {endpoint}: {trouble}; {}; the map of the fleet stays as it is{before}",
                trouble.code(),
                trouble.hint()
            );
        }
        was_fresh
    }

    pub(super) fn wrote(&self, changes: usize) {
        let mut view = self.lock();
        view.written = view.written.saturating_add(changes as u64);
    }

    pub(super) fn note(&self, members: usize, waiting: usize, strange: u64) {
        let mut view = self.lock();
        (view.members, view.waiting, view.strange) = (members, waiting, strange);
    }

    /// Another frontend calls itself as this one does.
    pub(super) fn impostor(&self, member: &Member) {
        if let Some(before) = self.impostors.due(Instant::now()) {
            tracing::error!(
                "[{}] fleet: another frontend at {} calls itself {}, too, with the key {}; give each a name of its own{before}",
                Code::MemberTwice,
                member.address,
                member.id,
                member.pin
            );
        }
    }
}
