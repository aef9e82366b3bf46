//! Memory that a burst has left: a table or a queue that held thousands keeps their room for as long as it lives.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;

/// Room that is always kept.
const KEPT: usize = 64;
/// Room for so many times what is held is too much.
const SPARE: usize = 8;

/// To be called when something was taken out. What it costs is shared by all that was taken out before.
pub(super) trait GiveBack {
    /// Gives back room for much more than is held now.
    fn give_back(&mut self);
}

impl<K: Hash + Eq, V> GiveBack for HashMap<K, V> {
    fn give_back(&mut self) {
        if self.capacity() > SPARE * self.len().max(KEPT) {
            self.shrink_to(2 * self.len().max(KEPT));
        }
    }
}

impl<T> GiveBack for VecDeque<T> {
    fn give_back(&mut self) {
        if self.capacity() > SPARE * self.len().max(KEPT) {
            self.shrink_to(2 * self.len().max(KEPT));
        }
    }
}
