//! PageKite's signatures: 8 characters of salt, then 28 of SHA-1 (protocol page §4).
//!
//! The wire dictates the construction. It is no HMAC, and one sniffed signature
//! lets anybody test guesses of the secret offline: secrets must be long and random.

use data_encoding::HEXLOWER;
use sha1::{Digest, Sha1};
use subtle::ConstantTimeEq;

/// Length of every signature and challenge, in characters.
pub const SIGNATURE_LEN: usize = 36;
/// How long one window of a dated signature lasts, in seconds.
pub const WINDOW_SECONDS: u64 = 600;
/// Length of the salt in front, in characters.
const SALT_LEN: usize = 8;
/// The first character of the salt of a dated signature. No hex digit.
const DATED: u8 = b't';

type Salt = [u8; SALT_LEN];

/// Signs `payload`. `token` is at least eight random hex digits.
///
/// Good forever; the freshness is in the payload.
pub fn sign(secret: &[u8], payload: &str, token: &str) -> String {
    text(&mac(secret, payload, None, salt(token)))
}

/// Signs `payload` for the current 600-second window and the one after it.
/// Of `token`, as in [`sign`], the first digit is not used.
pub fn sign_dated(secret: &[u8], payload: &str, token: &str, now_unix: u64) -> String {
    let mut salt = salt(token);
    salt[0] = DATED;
    text(&mac(secret, payload, Some(now_unix / WINDOW_SECONDS), salt))
}

/// Does `signature` fit? Understands both forms; a dated one is good if it was
/// made in the current or in the previous window, that is 10 to 20 minutes.
///
/// The comparison takes the same time wherever the first difference is.
pub fn verify(secret: &[u8], payload: &str, signature: &str, now_unix: u64) -> bool {
    let given = signature.as_bytes();
    let (Some(&salt), SIGNATURE_LEN) = (given.first_chunk::<SALT_LEN>(), given.len()) else {
        return false;
    };
    let fits = |window| bool::from(mac(secret, payload, window, salt).ct_eq(given));
    if salt[0] == DATED {
        let window = now_unix / WINDOW_SECONDS;
        // Both are always computed, so that the time does not tell which one fitted.
        fits(Some(window)) | fits(Some(window.saturating_sub(1)))
    } else {
        fits(None)
    }
}

/// The whole signature: the salt, then as much of the digest as there is room for.
fn mac(secret: &[u8], payload: &str, window: Option<u64>, salt: Salt) -> [u8; SIGNATURE_LEN] {
    let mut hash = Sha1::new();
    hash.update(secret);
    hash.update(payload);
    if let Some(window) = window {
        hash.update(format!("{window:x}"));
    }
    hash.update(salt);
    let digest = HEXLOWER.encode(&hash.finalize());
    let mut out = [0; SIGNATURE_LEN];
    for (slot, byte) in out.iter_mut().zip(salt.into_iter().chain(digest.bytes())) {
        *slot = byte;
    }
    out
}

/// The first eight digits of `token`. Whatever is missing or no hex digit
/// becomes `0`, so that a plain signature can never look dated.
fn salt(token: &str) -> Salt {
    let mut salt = [b'0'; SALT_LEN];
    for (slot, byte) in salt.iter_mut().zip(token.bytes()) {
        if byte.is_ascii_hexdigit() {
            *slot = byte.to_ascii_lowercase();
        }
    }
    salt
}

/// Salt and digest are ASCII, always.
fn text(mac: &[u8; SIGNATURE_LEN]) -> String {
    mac.iter().copied().map(char::from).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &[u8] = b"s3cret-for-tests";
    const NOW: u64 = 1_700_000_000;

    /// Protocol page §4.
    #[test]
    fn the_published_vectors() {
        let first = "http:kite.test:9d06914711b4933d827065789abd48ea560a:";
        assert_eq!(
            sign(SECRET, first, "ab9716ad"),
            "ab9716ada6f9fa87b77cf993ef20efa9880c"
        );
        let second = format!("{first}t825cf71644ee8479ee6e58fd82773805687");
        assert_eq!(
            sign(SECRET, &second, "5d579bb0"),
            "5d579bb079f5c7b4d134c09cc34bbca17dd6"
        );

        let payload = "raw-22:example.test:000000000000000000000000000000000000:t11111111111111111111111111111111111";
        let secret = b"correct horse";
        assert_eq!(
            sign(secret, payload, "deadbeef"),
            "deadbeef4c88327973b9564effc4495c7dd8"
        );
        assert_eq!(
            sign_dated(secret, payload, ".eadbeef", NOW),
            "teadbeef8d06ddc8a7be671321b4ffb04ef8"
        );
    }

    #[test]
    fn a_dated_signature_lives_for_two_windows() {
        let dated = sign_dated(SECRET, "p", "deadbeef", NOW);
        let start = NOW - NOW % WINDOW_SECONDS;
        for (now, good) in [
            (start, true),
            (start + 1199, true),
            (start + 1200, false),
            (start - 1, false),
        ] {
            assert_eq!(verify(SECRET, "p", &dated, now), good, "{now}");
        }
    }

    #[test]
    fn only_the_exact_signature_fits() {
        let good = sign(SECRET, "p", "deadbeef");
        assert!(verify(SECRET, "p", &good, NOW));
        assert!(!verify(SECRET, "q", &good, NOW));
        assert!(!verify(b"other", "p", &good, NOW));
        assert!(!verify(SECRET, "p", &good.to_uppercase(), NOW));
        for cut in 0..good.len() {
            assert!(!verify(SECRET, "p", &good[..cut], NOW));
        }
        assert!(!verify(SECRET, "p", &format!("{good}0"), NOW));
        assert!(!verify(SECRET, "p", "é".repeat(18).as_str(), NOW));
    }

    #[test]
    fn a_careless_token_is_no_dated_signature() {
        for token in ["", "t", "tttttttt", "é", "ABCDEF01"] {
            let made = sign(SECRET, "p", token);
            assert_eq!(made.len(), SIGNATURE_LEN);
            assert!(verify(SECRET, "p", &made, NOW), "{token}");
        }
    }
}
