//! What a backend is doing now: written by its tunnels, read by whoever asks.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::dial::Lane;
use crate::tunnel::Tunnel;

/// One entry for each tunnel that a backend keeps, in the order of the configuration.
#[derive(Clone, Default)]
pub struct Board(Arc<Mutex<Vec<Entry>>>);

struct Entry {
    /// No other on the board has it.
    id: u64,
    frontend: String,
    lane: Lane,
    stage: Stage,
    since: Instant,
    last_error: Option<String>,
    kites: Vec<String>,
}

/// What a tunnel's keeper is at.
pub enum Stage {
    /// Another tunnel to this frontend comes first, or the frontend takes one only.
    Idle,
    /// On the way to the frontend.
    Dialling,
    /// The tunnel stands.
    Up(Tunnel),
    /// Until the next attempt.
    Waiting(Instant),
}

/// One tunnel's place on the board. Dropped, it is free.
pub struct Slot {
    board: Board,
    id: u64,
}

/// A tunnel as the board shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct View {
    /// The frontend's address, as configured.
    pub frontend: String,
    /// Its number among the tunnels to this frontend.
    pub lane: Lane,
    /// `idle`, `dialling`, `up`, `suspect` (the frontend owes a sign of life) or `waiting`.
    pub state: &'static str,
    /// How long it has been so.
    pub since: Duration,
    /// The last measured round trip, if it stands.
    pub round_trip: Option<Duration>,
    /// Visitors' streams that are open.
    pub streams: usize,
    /// Until the next attempt.
    pub retry_in: Option<Duration>,
    /// Why it does not stand, or did not the last time.
    pub last_error: Option<String>,
    /// The kites that it flies.
    pub kites: Vec<String>,
}

impl Board {
    /// A place for one tunnel.
    pub fn slot(&self, frontend: &str, lane: Lane) -> Slot {
        let mut entries = self.lock();
        let id = entries.last().map_or(0, |last| last.id + 1);
        entries.push(Entry {
            id,
            frontend: frontend.to_owned(),
            lane,
            stage: Stage::Idle,
            since: Instant::now(),
            last_error: None,
            kites: Vec::new(),
        });
        Slot {
            board: self.clone(),
            id,
        }
    }

    /// Everything, now.
    pub fn view(&self) -> Vec<View> {
        let now = Instant::now();
        self.lock().iter().map(|entry| entry.view(now)).collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Entry>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Slot {
    /// It is at something else now.
    pub fn set(&self, stage: Stage) {
        self.change(|entry| {
            if !matches!(stage, Stage::Up(_)) {
                entry.kites.clear();
            }
            entry.stage = stage;
            entry.since = Instant::now();
        });
    }

    /// The kites that its tunnel flies.
    pub fn flies(&self, kites: Vec<String>) {
        self.change(|entry| entry.kites = kites);
    }

    /// What went wrong.
    pub fn failed(&self, why: &str) {
        self.change(|entry| entry.last_error = Some(why.to_owned()));
    }

    fn change(&self, act: impl FnOnce(&mut Entry)) {
        if let Some(entry) = self.board.lock().iter_mut().find(|e| e.id == self.id) {
            act(entry);
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.board.lock().retain(|entry| entry.id != self.id);
    }
}

impl Entry {
    fn view(&self, now: Instant) -> View {
        let tunnel = match &self.stage {
            Stage::Up(tunnel) => Some(tunnel),
            _ => None,
        };
        View {
            frontend: self.frontend.clone(),
            lane: self.lane,
            state: match &self.stage {
                Stage::Idle => "idle",
                Stage::Dialling => "dialling",
                Stage::Up(tunnel) if tunnel.is_suspect() => "suspect",
                Stage::Up(_) => "up",
                Stage::Waiting(_) => "waiting",
            },
            since: now.saturating_duration_since(self.since),
            round_trip: tunnel.and_then(Tunnel::rtt),
            streams: tunnel.map_or(0, Tunnel::streams),
            retry_in: match self.stage {
                Stage::Waiting(until) => Some(until.saturating_duration_since(now)),
                _ => None,
            },
            last_error: self.last_error.clone(),
            kites: self.kites.clone(),
        }
    }
}
