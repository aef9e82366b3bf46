//! Names that the operator has blocked: nobody flies them, whoever may, and no visitor comes to them. They are in the book.

use std::collections::BTreeMap;

use redb::ReadableTable;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::account::last_day;
use super::book::{Book, BookError};
use super::limits::DAY;
use crate::kite::KiteName;

/// Most names that are blocked; a wildcard stands for all below it.
pub const MAX_BLOCKED: u64 = 10_000;

/// Those in force.
#[derive(Default)]
pub struct Blocked(watch::Sender<BTreeMap<KiteName, Since>>);

/// What the book has of each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Since {
    /// Since when, in seconds since 1970.
    pub since: u64,
}

/// A name as `kite frontend kites blocked` shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listed {
    /// It, or a wildcard.
    pub name: String,
    /// The day on which it was blocked.
    pub since: String,
}

impl Blocked {
    /// Is this name one of them, or below one?
    pub fn covers(&self, name: &KiteName) -> bool {
        let all = self.0.borrow();
        // Most frontends block nobody.
        !all.is_empty()
            && (all.contains_key(name)
                || (name.wildcards())
                    .any(|w| w.parse().is_ok_and(|w: KiteName| all.contains_key(&w))))
    }

    /// The same for a name that a peer wrote.
    pub(super) fn covers_text(&self, name: &str) -> bool {
        let is_empty = self.0.borrow().is_empty();
        !is_empty && name.parse().is_ok_and(|name| self.covers(&name))
    }

    /// Waits until this name is one of them, or below one.
    pub(super) async fn comes_to(&self, name: &KiteName) {
        let mut news = self.0.subscribe();
        while !self.covers(name) && news.changed().await.is_ok() {}
    }

    /// These and no others.
    pub(super) fn set(&self, names: BTreeMap<KiteName, Since>) {
        self.0.send_replace(names);
    }

    pub(super) fn put(&self, name: &KiteName, since: Since) {
        self.0.send_modify(|all| {
            all.insert(name.clone(), since);
        });
    }

    pub(super) fn take(&self, name: &KiteName) {
        self.0.send_modify(|all| {
            all.remove(name);
        });
    }
}

impl Book {
    /// Blocks a name. It is on the disk when this returns.
    pub fn block(&self, name: &KiteName, since: Since) -> Result<(), BookError> {
        let text = serde_json::to_vec(&since).unwrap_or_default();
        self.write(|tables| {
            if tables.blocked.get(name.as_str())?.is_some() {
                return Ok(Err(BookError::Blocked(name.clone())));
            }
            if redb::ReadableTableMetadata::len(&tables.blocked)? >= MAX_BLOCKED {
                return Ok(Err(BookError::FullOfBlocked));
            }
            tables.blocked.insert(name.as_str(), text.as_slice())?;
            Ok(Ok(()))
        })?
    }

    /// Blocks it no more.
    pub fn unblock(&self, name: &KiteName) -> Result<(), BookError> {
        self.write(|tables| match tables.blocked.remove(name.as_str())? {
            Some(_) => Ok(Ok(())),
            None => Ok(Err(BookError::NotBlocked(name.clone()))),
        })?
    }
}

/// For people and programs.
pub(super) fn listed(all: BTreeMap<KiteName, Since>) -> Vec<Listed> {
    let one = |(name, Since { since }): (KiteName, Since)| Listed {
        name: name.to_string(),
        since: last_day(since - since % DAY + DAY),
    };
    all.into_iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frontend::accounts::Accounts;
    use crate::frontend::limits::Limits;

    fn name(text: &str) -> KiteName {
        text.parse().unwrap()
    }

    #[test]
    fn a_name_is_blocked_with_all_that_a_wildcard_covers_and_nothing_else() {
        let blocked = Blocked::default();
        let covers = |text: &str| blocked.covers(&name(text));
        assert!(!covers("bob.example"));
        blocked.put(&name("bob.example"), Since { since: 1 });
        blocked.put(&name("*.evil.example"), Since { since: 1 });
        for text in [
            "bob.example",
            "a.evil.example",
            "a.b.evil.example",
            "*.evil.example",
            "*.b.evil.example",
        ] {
            assert!(covers(text), "{text}");
        }
        for text in [
            "evil.example",
            "a.bob.example",
            "*.example",
            "bob.example.org",
        ] {
            assert!(!covers(text), "{text}");
        }
        blocked.take(&name("bob.example"));
        assert!(!covers("bob.example"));
    }

    #[test]
    fn what_is_blocked_stays_so_until_it_is_taken_back() {
        let dir = tempfile::tempdir().unwrap();
        let since = Since {
            since: 1_800_000_000,
        };
        let book = Book::open(dir.path()).unwrap();
        book.block(&name("bob.example"), since).unwrap();
        assert!(matches!(
            book.block(&name("bob.example"), since),
            Err(BookError::Blocked(_))
        ));
        drop(book);
        let book = Book::open(dir.path()).unwrap();
        let all = book.blocked().unwrap();
        assert_eq!(all, [(name("bob.example"), since)].into());
        assert_eq!(listed(all)[0].since, "2027-01-15");
        drop(book);
        // As a frontend reads it at its start.
        let accounts = Accounts::open(Vec::new(), Limits::default(), dir.path()).unwrap();
        assert!(accounts.blocked().covers(&name("bob.example")));
        drop(accounts);
        let book = Book::open(dir.path()).unwrap();
        book.unblock(&name("bob.example")).unwrap();
        assert!(matches!(
            book.unblock(&name("bob.example")),
            Err(BookError::NotBlocked(_))
        ));
        assert!(book.blocked().unwrap().is_empty());
    }

    #[test]
    fn only_so_many_names_are_blocked() {
        let dir = tempfile::tempdir().unwrap();
        let book = Book::open(dir.path()).unwrap();
        let filling = book.write(|tables| {
            for n in 1..MAX_BLOCKED {
                let name = format!("{n:05}.example");
                tables
                    .blocked
                    .insert(name.as_str(), &b"{\"since\":1}"[..])?;
            }
            Ok(())
        });
        filling.unwrap();
        let block = |text: &str| book.block(&name(text), Since { since: 1 });
        block("last.example").unwrap();
        assert!(matches!(
            block("bob.example"),
            Err(BookError::FullOfBlocked)
        ));
        book.unblock(&name("last.example")).unwrap();
        block("bob.example").unwrap();
    }
}
