//! Who may look at the status page: whoever could ask the control socket for a token. Sans-IO: time and randomness are
//! handed in.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use subtle::ConstantTimeEq;

/// Bytes of a token, and of a session's name: 256 bit.
pub const LENGTH: usize = 32;
/// How long a token may be used, once.
pub const TOKEN_LIFE: Duration = Duration::from_secs(5 * 60);
/// Most tokens that wait; the oldest gives way.
pub const MAX_TOKENS: usize = 8;
/// How long a browser stays welcome.
pub const SESSION_LIFE: Duration = Duration::from_secs(7 * 24 * 60 * 60);
/// Most browsers; the one that came first gives way.
pub const MAX_SESSIONS: usize = 16;

/// Something that only its owner knows.
pub type Word = [u8; LENGTH];

/// The tokens that were given out, and the browsers that have used one.
#[derive(Default)]
pub struct Guests {
    tokens: Waiting,
    sessions: Waiting,
}

/// Words, each until a time.
#[derive(Default)]
struct Waiting(VecDeque<(Word, Instant)>);

impl Guests {
    /// Gives out a token.
    pub fn invite(&mut self, now: Instant, token: Word) {
        self.tokens.add(now, token, now + TOKEN_LIFE, MAX_TOKENS);
    }

    /// Takes a token, once, and makes `session` the name of a session. False if the token is of no use.
    #[must_use]
    pub fn enter(&mut self, now: Instant, token: &Word, session: Word) -> bool {
        let known = self.tokens.position(now, token);
        if let Some(at) = known {
            self.tokens.0.remove(at);
            let end = now + SESSION_LIFE;
            self.sessions.add(now, session, end, MAX_SESSIONS);
        }
        known.is_some()
    }

    /// Is that the name of a session?
    pub fn knows(&self, now: Instant, session: &Word) -> bool {
        self.sessions.position(now, session).is_some()
    }
}

impl Waiting {
    fn add(&mut self, now: Instant, word: Word, end: Instant, most: usize) {
        self.0.retain(|(_, end)| *end > now);
        while self.0.len() >= most {
            self.0.pop_front();
        }
        self.0.push_back((word, end));
    }

    /// Looks at all of them, and at all of each, so that time tells nothing.
    fn position(&self, now: Instant, word: &Word) -> Option<usize> {
        let mut found = None;
        for (at, (known, end)) in self.0.iter().enumerate() {
            if bool::from(known.as_slice().ct_eq(word.as_slice())) && *end > now {
                found = Some(at);
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn word(n: u8) -> Word {
        [n; LENGTH]
    }

    #[test]
    fn a_token_works_once_and_not_for_long() {
        let (mut guests, now) = (Guests::default(), Instant::now());
        assert!(!guests.enter(now, &word(1), word(9)), "nobody was invited");
        guests.invite(now, word(1));
        assert!(!guests.enter(now, &word(2), word(9)));
        assert!(!guests.knows(now, &word(9)));
        assert!(guests.enter(now, &word(1), word(9)));
        assert!(guests.knows(now, &word(9)) && !guests.knows(now, &word(1)));
        assert!(!guests.enter(now, &word(1), word(8)), "it was used");
        guests.invite(now, word(3));
        assert!(!guests.enter(now + TOKEN_LIFE, &word(3), word(8)));
        assert!(!guests.knows(now + SESSION_LIFE, &word(9)));
    }

    #[test]
    fn the_oldest_gives_way() {
        let (mut guests, now) = (Guests::default(), Instant::now());
        for n in 0..=MAX_TOKENS as u8 {
            guests.invite(now, word(n));
        }
        assert!(!guests.enter(now, &word(0), word(100)));
        for n in 1..=MAX_TOKENS as u8 {
            assert!(guests.enter(now, &word(n), word(100 + n)), "{n}");
        }
        for n in 0..MAX_SESSIONS as u8 {
            guests.invite(now, word(50));
            assert!(guests.enter(now, &word(50), word(200 + n)));
        }
        assert!(!guests.knows(now, &word(101)));
        assert_eq!(guests.sessions.0.len(), MAX_SESSIONS);
    }
}
