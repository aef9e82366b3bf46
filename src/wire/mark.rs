//! What a backend is known by among the frontends of a fleet, for one kite at a time ([`KITE_FLEET`](super::lines::KITE_FLEET)).

use std::fmt;

use hmac::{Hmac, Mac};
use sha2::Sha256;

/// Letters of a mark.
const DIGITS: usize = 32;

/// What a backend's marks are made with. Nobody else learns it.
#[derive(Clone)]
pub struct MarkKey([u8; 32]);

impl MarkKey {
    /// Of random bytes, new ones for each process.
    pub fn new(random: [u8; 32]) -> Self {
        Self(random)
    }

    /// The same wherever this process flies this kite. Of two kites nobody can tell that they are one backend's.
    pub fn of(&self, proto: &str, name: &str) -> String {
        // A key of any length will do.
        let Ok(mut mac) = <Hmac<Sha256> as Mac>::new_from_slice(&self.0) else {
            return String::new();
        };
        mac.update(format!("{proto}:{name}").as_bytes());
        let mut mark = data_encoding::HEXLOWER.encode(&mac.finalize().into_bytes());
        mark.truncate(DIGITS);
        mark
    }
}

impl fmt::Debug for MarkKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MarkKey(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_one_kites_and_one_process() {
        let (one, other) = (MarkKey::new([1; 32]), MarkKey::new([2; 32]));
        let mark = one.of("http", "bob.example");
        assert_eq!(mark.len(), DIGITS);
        assert_eq!(mark, one.of("http", "bob.example"));
        assert_ne!(mark, one.of("http", "eve.example"));
        assert_ne!(mark, one.of("https", "bob.example"));
        assert_ne!(mark, other.of("http", "bob.example"));
    }
}
