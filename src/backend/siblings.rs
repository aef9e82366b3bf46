//! What the tunnels to one frontend know of each other.

use std::sync::{Mutex, PoisonError};

use tokio::sync::watch;

/// Shared by all tunnels to one frontend.
pub(super) struct Siblings {
    /// The sessions of the tunnels that stand: a few.
    standing: Mutex<Vec<String>>,
    /// There is one that stands, and the frontend takes others beside it.
    wanted: watch::Sender<bool>,
}

impl Siblings {
    pub(super) fn new() -> Self {
        Self {
            standing: Mutex::default(),
            wanted: watch::Sender::new(false),
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

    /// A tunnel that stands.
    pub(super) fn any(&self) -> Option<String> {
        self.lock().last().cloned()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<String>> {
        self.standing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
