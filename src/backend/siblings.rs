//! What the tunnels to one frontend know of each other.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{MutexGuard as Turn, watch};

use crate::frontend::registry::MAX_BESIDE;

/// Most sessions that a handshake names: the frontend takes no more tunnels for a kite.
const MAX_NAMED: usize = MAX_BESIDE;
/// A kite that an older frontend has refused within a tunnel is not asked for within one again before this.
const GIVEN_UP_FOR: Duration = Duration::from_secs(600);
/// So many tunnels that were lost while a kite was asked for are as good as a refusal.
const LOST_FOR: u32 = 2;

/// Shared by all tunnels to one frontend.
pub(super) struct Siblings {
    /// The sessions of the tunnels that stand: a few.
    standing: Mutex<Vec<String>>,
    /// There is one that stands, and the frontend takes others beside it.
    wanted: watch::Sender<bool>,
    /// Held by the one that asks for kites which nobody flies yet.
    turn: tokio::sync::Mutex<()>,
    /// Kites that were asked for as a tunnel was lost: how often, and when. Some of ours.
    given_up: Mutex<HashMap<(String, String), (u32, Instant)>>,
}

impl Siblings {
    pub(super) fn new() -> Self {
        Self {
            standing: Mutex::default(),
            wanted: watch::Sender::new(false),
            turn: tokio::sync::Mutex::default(),
            given_up: Mutex::default(),
        }
    }

    /// Waits until another tunnel makes sense beside the first.
    pub(super) async fn wanted(&self) {
        // Never an error: the sender is ours.
        let _ = self.wanted.subscribe().wait_for(|wanted| *wanted).await;
    }

    /// A tunnel stands; `several` if the frontend takes more.
    pub(super) fn up(&self, session: &str, several: bool) {
        self.lock().push(session.to_owned());
        self.wanted.send_replace(several);
    }

    /// What one that stands was to fly flies now; `several` if the frontend takes more beside it.
    pub(super) fn several(&self, several: bool) {
        self.wanted.send_replace(several);
    }

    /// A tunnel has ended.
    pub(super) fn down(&self, session: &str) {
        let mut standing = self.lock();
        standing.retain(|s| s != session);
        if standing.is_empty() {
            self.wanted.send_replace(false);
        }
    }

    /// Does this tunnel stand?
    pub(super) fn stands(&self, session: &str) -> bool {
        self.lock().iter().any(|s| s == session)
    }

    /// The tunnels that stand, the newest first, and those that only finish their streams.
    pub(super) fn standing(&self) -> Vec<String> {
        self.lock().iter().rev().take(MAX_NAMED).cloned().collect()
    }

    /// Waits until no other tunnel asks for new kites: the second finds its place beside the first.
    pub(super) async fn turn(&self) -> Turn<'_, ()> {
        self.turn.lock().await
    }

    /// This kite was refused within a tunnel; or one may have been lost because it was asked for, `perhaps`.
    pub(super) fn give_up(&self, kite: (String, String), perhaps: bool) {
        let mut given_up = self.given_up.lock().unwrap_or_else(PoisonError::into_inner);
        given_up.retain(|_, (_, last)| last.elapsed() < GIVEN_UP_FOR);
        let (times, last) = given_up.entry(kite).or_insert((0, Instant::now()));
        *times += if perhaps { 1 } else { LOST_FOR };
        *last = Instant::now();
    }

    /// Was it refused of late, or have several been lost? One is lost by chance now and then.
    pub(super) fn has_given_up(&self, kite: &(String, String)) -> bool {
        let given_up = self.given_up.lock().unwrap_or_else(PoisonError::into_inner);
        let known = given_up.get(kite);
        known.is_some_and(|(times, last)| *times >= LOST_FOR && last.elapsed() < GIVEN_UP_FOR)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<String>> {
        self.standing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
