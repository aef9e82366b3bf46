//! Randomness for names and waits.

use std::time::Duration;

use rand::{Rng, RngCore};

/// `digits` random hex digits.
pub fn random_hex(digits: usize) -> String {
    let mut bytes = vec![0; digits.div_ceil(2)];
    rand::rng().fill_bytes(&mut bytes);
    let mut hex = data_encoding::HEXLOWER.encode(&bytes);
    hex.truncate(digits);
    hex
}

/// A key that nobody else knows.
pub fn random_key() -> [u8; 32] {
    rand::rng().random()
}

/// A wait between half of `most` and all of it.
pub fn jitter(most: Duration) -> Duration {
    most.mul_f64(rand::rng().random_range(0.5..=1.0))
}
