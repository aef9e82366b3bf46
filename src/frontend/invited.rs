//! Who is invited to fly what, in the [book](super::book): of each invitation the hash of its token, and the
//! kite's entry, whose secret its holder makes. An invitation that is spent, taken back or expired stays for a while,
//! so that whoever holds it hears what became of it.

use redb::ReadableTable;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::book::{Book, BookError, Entry, Tables};
use super::limits::DAY;
use crate::invitation::{Hash, Token};
use crate::kite::{KiteName, Secret};
use crate::wire::join::Refusal;

/// Most invitations in a book, those included that are done with.
pub const MAX_INVITED: u64 = 10_000;
/// How long one is remembered after its last day, in seconds.
const REMEMBERED: u64 = 30 * DAY;

/// One invitation as the book has it.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Invited {
    /// The kite's name.
    pub name: String,
    /// Of the token.
    hash: Hash,
    /// The first second in which it is no good any more, since 1970.
    pub expires: u64,
    /// What the kite will be, but for its secret.
    entry: Entry,
    /// What became of it.
    state: State,
}

/// What became of an invitation.
#[derive(Clone, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum State {
    Open,
    /// With a secret of this hash.
    Spent(Hash),
    Revoked,
}

/// An invitation as it is listed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listed {
    /// The kite's name.
    pub name: String,
    /// `open`, `used`, `revoked` or `expired`.
    pub state: String,
    /// The first second in which it is no good any more, since 1970.
    pub expires: u64,
}

/// What comes of a token.
pub enum Redeemed {
    /// The kite is in the book, now or since the same was asked before.
    Kite {
        /// Its name.
        name: KiteName,
        /// What it is, its secret included.
        entry: Box<Entry>,
        /// It was there before.
        again: bool,
    },
    /// Nothing has changed.
    Refused {
        /// For this reason.
        why: Refusal,
        /// The kite's name, if the token is genuine.
        name: Option<String>,
    },
}

impl Invited {
    /// An open invitation.
    pub fn new(name: &KiteName, token: &Token, entry: Entry, expires: u64) -> Self {
        Self {
            name: name.to_string(),
            hash: token.hash(),
            expires,
            entry: entry.without_secret(),
            state: State::Open,
        }
    }

    /// Does this kite understand the entry?
    pub(super) fn is_understood(&self) -> bool {
        let any = Secret::new(b"any");
        let entry = any.map(|any| self.entry.clone().with_secret(&any));
        entry.is_some_and(|entry| entry.grant(&self.name).is_some())
    }

    fn is_for(&self, token: &Token, kite: &str) -> bool {
        self.hash.is(&token.hash()) && self.name == kite
    }

    fn is_open(&self, now_unix: u64) -> bool {
        matches!(self.state, State::Open) && now_unix < self.expires
    }

    /// For the operator.
    pub fn listed(&self, now_unix: u64) -> Listed {
        let state = match self.state {
            State::Spent(_) => "used",
            State::Revoked => "revoked",
            State::Open if now_unix >= self.expires => "expired",
            State::Open => "open",
        };
        Listed {
            name: self.name.clone(),
            state: state.to_owned(),
            expires: self.expires,
        }
    }
}

impl Book {
    /// Invites somebody. It is on the disk when this returns.
    pub fn invite(
        &self,
        id: &str,
        name: &KiteName,
        invited: &Invited,
        now_unix: u64,
    ) -> Result<(), BookError> {
        self.write(|tables| {
            forget(tables, now_unix)?;
            if tables.kites.get(name.as_str())?.is_some() {
                return Ok(Err(BookError::Exists(name.clone())));
            }
            if redb::ReadableTableMetadata::len(&tables.invited)? >= MAX_INVITED {
                return Ok(Err(BookError::FullOfInvitations));
            }
            let known = all(tables)?.into_iter();
            let mut open = known.filter(|(_, other)| other.is_open(now_unix));
            if open.any(|(_, other)| other.name == invited.name) {
                return Ok(Err(BookError::Invited(name.clone())));
            }
            put(tables, id, invited)?;
            Ok(Ok(()))
        })?
    }

    /// Takes back what is open for this kite.
    pub fn revoke(&self, name: &KiteName, now_unix: u64) -> Result<(), BookError> {
        self.write(|tables| {
            let mut done = Err(BookError::NotInvited(name.clone()));
            for (id, mut invited) in all(tables)? {
                if invited.name == name.as_str() && invited.is_open(now_unix) {
                    invited.state = State::Revoked;
                    put(tables, &id, &invited)?;
                    done = Ok(());
                }
            }
            Ok(done)
        })?
    }

    /// All that is remembered, in the order of names.
    pub fn invitations(&self, now_unix: u64) -> Result<Vec<Listed>, BookError> {
        let all = self.invited()?.into_iter();
        let mut all: Vec<_> = all.map(|(_, i)| i.listed(now_unix)).collect();
        all.sort_by(|a, b| (&a.name, a.expires, &a.state).cmp(&(&b.name, b.expires, &b.state)));
        Ok(all)
    }

    /// Whether the token is one of ours, for this kite, whatever became of it.
    pub fn is_genuine(&self, token: &Token, kite: &str) -> Result<bool, BookError> {
        let named = self.invitation(&token.id())?;
        Ok(named.is_some_and(|i| i.is_for(token, kite)))
    }

    /// Spends a token: the kite is in the book by the same transaction, or nothing has changed. To ask for the same
    /// again, with the same secret, changes nothing and is answered in the same way. Whoever has none that is to be spent
    /// costs a look into the book, and no write.
    pub fn redeem(
        &self,
        token: &Token,
        kite: &str,
        secret: &Secret,
        now_unix: u64,
    ) -> Result<Redeemed, BookError> {
        let (id, with) = (token.id(), Hash::of(secret.expose()));
        let judge = |found: Option<Invited>, flying: Option<Entry>| {
            let Some(invited) = found.filter(|i| i.is_for(token, kite)) else {
                let (why, name) = (Refusal::Unknown, None);
                return Step::Done(Redeemed::Refused { why, name });
            };
            invited.judge(&with, flying, now_unix)
        };
        // Tokens are for the kite that is named, or for nothing.
        let (found, flying) = (self.invitation(&id)?, self.kite(kite)?);
        if let Step::Done(redeemed) = judge(found, flying) {
            return Ok(redeemed);
        }
        self.write(|tables| {
            let found = row(tables.invited.get(id.as_str())?);
            let flying = row(tables.kites.get(kite)?);
            let (mut invited, name) = match judge(found, flying) {
                Step::Spend(invited, name) => (invited, name),
                Step::Done(redeemed) => return Ok(redeemed),
            };
            let refused = |why| {
                let name = Some(name.to_string());
                Ok(Redeemed::Refused { why, name })
            };
            let entry = invited.entry.clone().with_secret(secret);
            let text = Zeroizing::new(serde_json::to_vec(&entry).unwrap_or_default());
            match tables.add(&name, &text)? {
                Ok(()) => {}
                Err(BookError::Exists(_)) => return refused(Refusal::Taken),
                Err(_) => return refused(Refusal::Trouble),
            }
            invited.state = State::Spent(with.clone());
            put(tables, &id, &invited)?;
            Ok(Redeemed::Kite {
                name,
                entry: Box::new(entry),
                again: false,
            })
        })
    }
}

/// What is to be done with a genuine token.
enum Step {
    Done(Redeemed),
    Spend(Box<Invited>, KiteName),
}

impl Invited {
    /// What comes of its token, with a secret of this hash, while this kite flies.
    fn judge(self, with: &Hash, flying: Option<Entry>, now_unix: u64) -> Step {
        let refused = |why| {
            let name = Some(self.name.clone());
            Step::Done(Redeemed::Refused { why, name })
        };
        let Ok(name) = self.name.parse::<KiteName>() else {
            return refused(Refusal::Trouble);
        };
        let expired = now_unix >= self.expires;
        match &self.state {
            State::Revoked => refused(Refusal::Revoked),
            State::Spent(by) if !by.is(with) => refused(Refusal::Used),
            State::Open | State::Spent(_) if expired => refused(Refusal::Expired),
            State::Open if flying.is_some() => refused(Refusal::Taken),
            State::Open => Step::Spend(Box::new(self), name),
            State::Spent(_) => {
                let ours = |entry: &Entry| {
                    let grant = entry.grant(name.as_str());
                    grant.is_some_and(|g| Hash::of(g.secret.expose()).is(with))
                };
                match flying.filter(ours) {
                    Some(entry) => Step::Done(Redeemed::Kite {
                        name,
                        entry: Box::new(entry),
                        again: true,
                    }),
                    None => refused(Refusal::Removed),
                }
            }
        }
    }
}

/// What a row says, if this kite can read it.
fn row<T: serde::de::DeserializeOwned>(
    text: Option<redb::AccessGuard<'_, &'static [u8]>>,
) -> Option<T> {
    serde_json::from_slice(text?.value()).ok()
}

fn all(tables: &Tables<'_>) -> Result<Vec<(String, Invited)>, redb::Error> {
    let mut all = Vec::new();
    for row in tables.invited.iter()? {
        let (id, text) = row?;
        if let Ok(invited) = serde_json::from_slice(text.value()) {
            all.push((id.value().to_owned(), invited));
        }
    }
    Ok(all)
}

fn put(tables: &mut Tables<'_>, id: &str, invited: &Invited) -> Result<(), redb::Error> {
    let text = serde_json::to_vec(invited).unwrap_or_default();
    tables.invited.insert(id, text.as_slice())?;
    Ok(())
}

/// Forgets what has been done with for long.
fn forget(tables: &mut Tables<'_>, now_unix: u64) -> Result<(), redb::Error> {
    for (id, invited) in all(tables)? {
        if now_unix >= invited.expires.saturating_add(REMEMBERED) {
            tables.invited.remove(id.as_str())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Grant, ProofRule};
    use crate::frontend::limits::Limits;
    use crate::kite::Protocol;

    const NOW: u64 = 1_700_000_000;
    const NAME: &str = "bob.alice.example";

    fn entry() -> Entry {
        Entry::new(&Grant {
            pattern: name(),
            protocols: [Protocol::Foolscap].into(),
            secret: secret("placeholder"),
            proof: ProofRule::Required,
            limits: Limits::default(),
            expires: None,
            backends: 1,
        })
    }

    fn name() -> KiteName {
        NAME.parse().expect("a name")
    }

    fn secret(text: &str) -> Secret {
        Secret::new(text.as_bytes()).expect("a secret")
    }

    struct Table {
        _dir: tempfile::TempDir,
        book: Book,
    }

    fn book() -> Table {
        let dir = tempfile::tempdir().expect("a directory");
        let book = Book::open(dir.path()).expect("a book");
        Table { _dir: dir, book }
    }

    fn invite(book: &Book) -> Token {
        let token = Token::new();
        let invited = Invited::new(&name(), &token, entry(), NOW + 100);
        assert!(invited.is_understood());
        book.invite(&token.id(), &name(), &invited, NOW)
            .expect("room");
        token
    }

    #[test]
    fn there_are_only_so_many_invitations() {
        let Table { _dir, book } = book();
        let invited = Invited::new(&name(), &Token::new(), entry(), NOW + 100);
        let filling = book.write(|tables| {
            for n in 1..MAX_INVITED {
                put(tables, &format!("{n:05}"), &invited)?;
            }
            Ok(())
        });
        filling.expect("room");
        let invite = |who: &str| {
            let (name, token) = (who.parse().expect("a name"), Token::new());
            let invited = Invited::new(&name, &token, entry(), NOW + 100);
            book.invite(&token.id(), &name, &invited, NOW)
        };
        invite("last.alice.example").expect("room for one");
        let error = invite("carol.alice.example").expect_err("too many");
        assert!(matches!(error, BookError::FullOfInvitations));
    }

    fn why(book: &Book, token: &Token, with: &str, now: u64) -> Result<bool, Refusal> {
        let redeemed = book.redeem(token, NAME, &secret(with), now);
        match redeemed.expect("a book") {
            Redeemed::Kite { again, entry, .. } => {
                let grant = entry.grant(NAME).expect("an entry of ours");
                assert_eq!(grant.secret, secret(with));
                assert_eq!(grant.proof, ProofRule::Required);
                Ok(again)
            }
            Redeemed::Refused { why, .. } => Err(why),
        }
    }

    #[test]
    fn a_token_is_good_once_and_its_own_holder_may_ask_again() {
        let Table { book, _dir } = book();
        let token = invite(&book);
        assert_eq!(why(&book, &token, "a", NOW), Ok(false));
        assert_eq!(why(&book, &token, "a", NOW + 1), Ok(true));
        assert_eq!(why(&book, &token, "b", NOW + 1), Err(Refusal::Used));
        assert_eq!(book.grants().expect("kites").len(), 1);
        assert_eq!(why(&book, &token, "a", NOW + 100), Err(Refusal::Expired));
        book.remove(&name()).expect("it is there");
        assert_eq!(why(&book, &token, "a", NOW + 2), Err(Refusal::Removed));
        assert!(book.grants().expect("kites").is_empty());
    }

    #[test]
    fn what_is_no_good_any_more_says_so_to_its_holder_and_to_nobody_else() {
        let Table { book, _dir } = book();
        let token = invite(&book);
        let mut guess = data_encoding::BASE64URL_NOPAD
            .decode(token.text().as_bytes())
            .expect("text");
        guess[23] ^= 1;
        let text = data_encoding::BASE64URL_NOPAD.encode(&guess);
        let guess = Token::read(&text).expect("a token");
        assert_eq!(guess.id(), token.id());
        for state in 0..3 {
            let genuine = [Refusal::Expired, Refusal::Revoked, Refusal::Taken][state];
            match state {
                0 => {}
                1 => book.revoke(&name(), NOW).expect("it is open"),
                _ => {}
            }
            let token = match state {
                2 => {
                    let token = invite(&book);
                    book.add(&name(), &entry()).expect("room");
                    token
                }
                _ => token.clone(),
            };
            let at = if state == 0 { NOW + 100 } else { NOW };
            assert_eq!(why(&book, &token, "a", at), Err(genuine));
            assert_eq!(why(&book, &guess, "a", at), Err(Refusal::Unknown));
            assert_eq!(why(&book, &Token::new(), "a", at), Err(Refusal::Unknown));
        }
        let other = book.redeem(&token, "eve.alice.example", &secret("a"), NOW);
        assert!(matches!(
            other.expect("a book"),
            Redeemed::Refused {
                why: Refusal::Unknown,
                name: None
            }
        ));
    }

    #[test]
    fn one_invitation_at_a_time_and_old_ones_are_forgotten() {
        let Table { book, _dir } = book();
        let first = invite(&book);
        let again = |now| {
            let token = Token::new();
            let invited = Invited::new(&name(), &token, entry(), now + 100);
            book.invite(&token.id(), &name(), &invited, now)
        };
        assert!(matches!(again(NOW), Err(BookError::Invited(_))));
        book.revoke(&name(), NOW).expect("it is open");
        assert!(matches!(
            book.revoke(&name(), NOW),
            Err(BookError::NotInvited(_))
        ));
        again(NOW).expect("room");
        again(NOW + 100).expect("the second has expired");
        let states = |now| -> Vec<_> {
            let all = book.invitations(now).expect("a book");
            all.into_iter().map(|i| i.state).collect()
        };
        assert_eq!(states(NOW + 100), ["expired", "revoked", "open"]);
        again(NOW + 100 + REMEMBERED).expect("room");
        assert_eq!(states(NOW + 100 + REMEMBERED), ["expired", "open"]);
        assert_eq!(
            why(&book, &first, "a", NOW),
            Err(Refusal::Unknown),
            "it is forgotten"
        );
    }

    #[test]
    fn a_token_that_is_not_spent_costs_no_write() {
        let Table { book, _dir } = book();
        let token = invite(&book);
        let bytes = || std::fs::read(_dir.path().join(crate::frontend::book::FILE)).expect("it");
        let before = bytes();
        for now in [NOW, NOW + 100] {
            assert!(why(&book, &Token::new(), "a", now).is_err());
        }
        assert_eq!(why(&book, &token, "a", NOW + 100), Err(Refusal::Expired));
        assert!(bytes() == before, "it was written");
        assert_eq!(why(&book, &token, "a", NOW), Ok(false));
        let spent = bytes();
        assert!(spent != before, "a write is seen");
        assert_eq!(why(&book, &token, "a", NOW), Ok(true));
        assert_eq!(why(&book, &token, "b", NOW), Err(Refusal::Used));
        assert!(bytes() == spent, "it was written");
    }

    #[test]
    fn a_kite_that_was_added_first_is_not_to_be_had() {
        let Table { book, _dir } = book();
        book.add(&name(), &entry()).expect("room");
        let token = Token::new();
        let invited = Invited::new(&name(), &token, entry(), NOW + 100);
        assert!(matches!(
            book.invite(&token.id(), &name(), &invited, NOW),
            Err(BookError::Exists(_))
        ));
    }
}
