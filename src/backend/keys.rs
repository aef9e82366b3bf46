//! Nodes' keys. Each is made of its text once, and not for each tunnel.

use std::sync::{Mutex, PoisonError};

use crate::config::{ProvenBy, Service};
use crate::kite::Secret;
use crate::tub::TubKey;
use crate::wire::handshake::{By, TubSigner};

/// Those of the kites that a backend flies.
#[derive(Default)]
pub(super) struct Keys(Mutex<Vec<(Secret, TubSigner)>>);

impl Keys {
    /// What proves that a kite is ours. A key was looked at when the configuration was read; without one the frontend
    /// is left to look who answers.
    pub(super) fn of(&self, service: &Service) -> By {
        match service.by {
            ProvenBy::Secret => By::Secret,
            ProvenBy::Node => By::Tub(None),
            ProvenBy::TubKey => By::Tub(self.signer(&service.secret)),
        }
    }

    /// These are the kites from now on: keys of others are forgotten.
    pub(super) fn turn_to(&self, services: &[Service]) {
        let is_used = |key: &Secret| services.iter().any(|s| s.secret == *key);
        self.lock().retain(|(key, _)| is_used(key));
    }

    fn signer(&self, text: &Secret) -> Option<TubSigner> {
        let mut known = self.lock();
        if let Some((_, signer)) = known.iter().find(|(key, _)| key == text) {
            return Some(signer.clone());
        }
        let key = TubKey::read(text.expose()).ok()?;
        let certificate = key.certificate().to_vec();
        let signer = TubSigner::new(&certificate, move |message| key.sign(message));
        known.push((text.clone(), signer.clone()));
        Some(signer)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<(Secret, TubSigner)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
