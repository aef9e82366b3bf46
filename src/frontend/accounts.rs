//! Whom the operator allows what: the grants of the configuration file and of the book, each with
//! its [`Account`].

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use serde::{Deserialize, Serialize};

use super::account::{Account, End, last_day};
use super::blocked::{self, Blocked, Since};
use super::book::{Book, BookError, Entry};
use super::invited::{self, Invited, Redeemed};
use super::limits::{Limits, Used};
use crate::clock::now_unix;
use crate::code::Code;
use crate::config::Grant;
use crate::invitation::Token;
use crate::kite::{KiteName, Protocol, Secret};
use crate::wire::join::Refusal;

/// A grant, and what is charged for it.
#[derive(Clone)]
pub struct Holding {
    /// What the operator says.
    pub grant: Arc<Grant>,
    /// What its kites have used.
    pub account: Arc<Account>,
}

/// All grants, found by their names.
#[derive(Default)]
pub struct Accounts {
    table: RwLock<HashMap<KiteName, Vec<Holding>>>,
    sources: Mutex<Sources>,
}

/// Where the grants come from. What is on the disk is read once.
#[derive(Default)]
struct Sources {
    configured: Vec<Grant>,
    /// For the kites of the book that say nothing.
    defaults: Limits,
    state_dir: PathBuf,
    /// Open once it is needed.
    book: Option<Book>,
    added: BTreeMap<KiteName, Grant>,
    /// What the book blocks.
    blocked: Arc<Blocked>,
    /// What had been used when the book was opened.
    used: HashMap<String, Used>,
    /// Another kite has it.
    lent: bool,
    /// That it cannot be written was said.
    complained: bool,
}

/// A kite as `kite frontend kites list` shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listed {
    /// Its name or wildcard.
    pub name: String,
    /// What it may carry.
    pub protocols: Vec<String>,
    /// It is in the configuration file, not in the book.
    pub configured: bool,
    /// The last day on which it flies.
    pub expires: Option<String>,
    /// Its limits, the frontend's included if that runs.
    pub limits: Limits,
    /// What it has used.
    pub used: Used,
    /// Why it may not fly now.
    pub ended: Option<String>,
    /// The operator has blocked its name.
    #[serde(default)]
    pub blocked: bool,
    /// Tunnels by which it, or what is below it, flies now; none if that is not known, as no frontend runs.
    #[serde(default)]
    pub tunnels: Option<usize>,
    /// It, or something below it, has flown since the frontend started.
    #[serde(default)]
    pub seen: bool,
}

impl Accounts {
    /// The grants of the configuration file, and those of the book in `state_dir`, if there is one.
    pub fn open(
        configured: Vec<Grant>,
        defaults: Limits,
        state_dir: &Path,
    ) -> Result<Self, BookError> {
        let metered = configured.iter().any(|grant| grant.limits.is_metered());
        let accounts = Self::default();
        {
            let mut sources = accounts.sources();
            sources.configured = configured;
            sources.defaults = defaults;
            sources.state_dir = state_dir.to_path_buf();
            if metered || Book::exists(state_dir) {
                sources.open()?;
            }
            accounts.rebuild(&sources);
        }
        Ok(accounts)
    }

    /// The file says this now. Nothing changes if the book cannot be opened that it needs.
    pub fn turn_to(&self, configured: Vec<Grant>, defaults: Limits) -> Result<(), BookError> {
        let metered = configured.iter().any(|grant| grant.limits.is_metered());
        let mut sources = self.sources();
        if metered {
            sources.open()?;
        }
        sources.configured = configured;
        sources.defaults = defaults;
        self.rebuild(&sources);
        Ok(())
    }

    /// Closes the book and leaves it alone, or does so no more: then what another has written there counts.
    pub fn lend_book(&self, lent: bool) {
        let mut sources = self.sources();
        sources.lent = lent;
        if lent {
            sources.book = None;
            return;
        }
        // Whoever needs it next tries again, and says what the matter is.
        if Book::exists(&sources.state_dir) && sources.open().is_ok() {
            self.rebuild(&sources);
        }
    }

    /// Adds a kite to the book. It may fly once this has returned.
    pub fn add(&self, name: &KiteName, entry: &Entry) -> Result<(), BookError> {
        let mut sources = self.sources();
        if sources.configured.iter().any(|g| g.pattern == *name) {
            return Err(BookError::Configured(name.clone()));
        }
        sources.open()?.add(name, entry)?;
        sources.used.remove(name.as_str());
        if let Some(grant) = entry.grant(name.as_str()) {
            sources.added.insert(name.clone(), grant);
        }
        self.rebuild(&sources);
        Ok(())
    }

    /// Removes a kite from the book. It comes down at the next look at its account.
    pub fn remove(&self, name: &KiteName) -> Result<(), BookError> {
        let mut sources = self.sources();
        if sources.configured.iter().any(|g| g.pattern == *name) {
            return Err(BookError::Configured(name.clone()));
        }
        sources.open()?.remove(name)?;
        sources.used.remove(name.as_str());
        sources.added.remove(name);
        self.rebuild(&sources);
        Ok(())
    }

    /// What nobody flies, now and later.
    pub fn blocked(&self) -> Arc<Blocked> {
        self.sources().blocked.clone()
    }

    /// Blocks a name. What flies by it comes down at the next look.
    pub fn block(&self, name: &KiteName) -> Result<(), BookError> {
        let since = Since { since: now_unix() };
        let mut sources = self.sources();
        sources.open()?.block(name, since)?;
        sources.blocked.put(name, since);
        Ok(())
    }

    /// Blocks it no more.
    pub fn unblock(&self, name: &KiteName) -> Result<(), BookError> {
        let mut sources = self.sources();
        sources.open()?.unblock(name)?;
        sources.blocked.take(name);
        Ok(())
    }

    /// Every name that is blocked.
    pub fn list_blocked(&self) -> Result<Vec<blocked::Listed>, BookError> {
        let mut sources = self.sources();
        match sources.book.is_some() || Book::exists(&sources.state_dir) {
            true => Ok(blocked::listed(sources.open()?.blocked()?)),
            false => Ok(Vec::new()),
        }
    }

    /// Invites somebody to fly a kite.
    pub fn invite(&self, id: &str, name: &KiteName, invited: &Invited) -> Result<(), BookError> {
        let mut sources = self.sources();
        if sources.configured.iter().any(|g| g.pattern == *name) {
            return Err(BookError::Configured(name.clone()));
        }
        sources.open()?.invite(id, name, invited, now_unix())
    }

    /// Takes an invitation back.
    pub fn revoke(&self, name: &KiteName) -> Result<(), BookError> {
        self.sources().open()?.revoke(name, now_unix())
    }

    /// Every invitation that is remembered.
    pub fn invitations(&self) -> Result<Vec<invited::Listed>, BookError> {
        let mut sources = self.sources();
        match sources.book.is_some() || Book::exists(&sources.state_dir) {
            true => sources.open()?.invitations(now_unix()),
            false => Ok(Vec::new()),
        }
    }

    /// Spends a token. The kite may fly once this has returned.
    pub fn redeem(
        &self,
        token: &Token,
        kite: &str,
        secret: &Secret,
    ) -> Result<Redeemed, BookError> {
        let refused = |why| Ok(Redeemed::Refused { why, name: None });
        let mut sources = self.sources();
        // Nobody makes a book by asking.
        if sources.book.is_none() && !Book::exists(&sources.state_dir) {
            return refused(Refusal::Unknown);
        }
        // The operator may have written it into the file since.
        let named = |g: &Grant| g.pattern.as_str() == kite;
        let configured = sources.configured.iter().any(named);
        let book = sources.open()?;
        if configured {
            return refused(match book.is_genuine(token, kite)? {
                true => Refusal::Taken,
                false => Refusal::Unknown,
            });
        }
        let redeemed = book.redeem(token, kite, secret, now_unix())?;
        if let Redeemed::Kite {
            name,
            entry,
            again: false,
        } = &redeemed
        {
            sources.used.remove(name.as_str());
            if let Some(grant) = entry.grant(name.as_str()) {
                sources.added.insert(name.clone(), grant);
            }
            self.rebuild(&sources);
        }
        Ok(redeemed)
    }

    /// Writes down what has been used since the last time. Trouble is logged, once. While the book is lent, what the last
    /// visitors here use is not written down.
    pub fn save(&self) {
        let now = now_unix();
        let unsaved = |h: Holding| Some((h.account.unsaved(now)?, h.account));
        let new: Vec<_> = self.all().into_iter().filter_map(unsaved).collect();
        if new.is_empty() {
            return;
        }
        let mut sources = self.sources();
        if sources.lent {
            return;
        }
        let rows = new.iter().map(|(used, account)| (account.key(), *used));
        match sources.open().and_then(|book| book.note(rows)) {
            Ok(()) => {
                sources.complained = false;
                new.iter().for_each(|(used, account)| account.saved(*used));
            }
            Err(e) if !std::mem::replace(&mut sources.complained, true) => {
                tracing::warn!(
                    "[{}] what kites have used cannot be written down: {e}; look at the free space and the permissions there",
                    Code::BookUnwritten
                );
            }
            Err(_) => {}
        }
    }

    /// Every grant, in the order of names.
    pub fn list(&self) -> Vec<Listed> {
        let sources = self.sources();
        let mut all: Vec<Listed> = self
            .all()
            .into_iter()
            .map(|Holding { grant, account }| {
                let (used, _) = account.used(now_unix());
                let ended = account.standing(now_unix()).err();
                Listed {
                    ended: ended.map(|end| end.to_string()),
                    blocked: sources.blocked.covers(&grant.pattern),
                    configured: sources
                        .configured
                        .iter()
                        .any(|g| g.pattern == grant.pattern),
                    ..Listed::new(&grant, used)
                }
            })
            .collect();
        all.sort_by(|a, b| a.name.cmp(&b.name));
        all
    }

    fn sources(&self) -> MutexGuard<'_, Sources> {
        self.sources.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn rebuild(&self, sources: &Sources) {
        let added = sources.added.values().cloned().map(|mut grant| {
            grant.limits = grant.limits.or(&sources.defaults);
            grant
        });
        let grants = sources.configured.iter().cloned().chain(added).collect();
        self.set(grants, |key| sources.used.get(key).copied());
    }

    /// These grants and no others, from now on. An account stays as it is if its grant has the name of one that was there:
    /// what was used is used, and who visits is not disturbed. `used` is what the book has for those
    /// that are new.
    fn set(&self, grants: Vec<Grant>, used: impl Fn(&str) -> Option<Used>) {
        let mut new: HashMap<KiteName, Vec<Holding>> = HashMap::new();
        let mut all = self.table.write().unwrap_or_else(PoisonError::into_inner);
        let mut before: HashMap<String, Holding> = std::mem::take(&mut *all)
            .into_values()
            .flatten()
            .map(|holding| (holding.account.key().to_owned(), holding))
            .collect();
        for grant in grants {
            let holdings = new.entry(grant.pattern.clone()).or_default();
            let key = key(&grant.pattern, holdings.len());
            let (limits, expires) = (grant.limits.clone(), grant.expires);
            let account = match before.remove(&key) {
                Some(old) if old.goes_on_as(&grant) => {
                    old.account.change(limits, expires);
                    old.account
                }
                // Who flew it by the old grant must not go on by the new one.
                Some(old) => {
                    old.account.end(End::Removed);
                    let (used, _) = old.account.used(now_unix());
                    Account::new(&key, limits, expires, Some(used))
                }
                None => Account::new(&key, limits, expires, used(&key)),
            };
            holdings.push(Holding {
                grant: Arc::new(grant),
                account,
            });
        }
        for gone in before.values() {
            gone.account.end(End::Removed);
        }
        *all = new;
    }

    /// Only these grants, which are written nowhere.
    pub fn of(grants: Vec<Grant>) -> Self {
        let accounts = Self::default();
        accounts.set(grants, |_| None);
        accounts
    }

    /// The grants whose pattern covers a name: its own, then the nearest wildcard's.
    pub fn covering(&self, name: &KiteName) -> Vec<Holding> {
        let all = self.table.read().unwrap_or_else(PoisonError::into_inner);
        let wildcards = name.wildcards().filter_map(|text| text.parse().ok());
        let mut seen = HashSet::new();
        std::iter::once(name.clone())
            .chain(wildcards)
            .filter(|pattern| seen.insert(pattern.clone()))
            .filter_map(|pattern| all.get(&pattern))
            .flatten()
            .cloned()
            .collect()
    }

    /// Is there a grant for this very name?
    pub fn grants(&self, name: &KiteName) -> bool {
        let all = self.table.read().unwrap_or_else(PoisonError::into_inner);
        all.contains_key(name)
    }

    /// All of them.
    pub fn all(&self) -> Vec<Holding> {
        let all = self.table.read().unwrap_or_else(PoisonError::into_inner);
        all.values().flatten().cloned().collect()
    }

    /// What they allow, taken together.
    pub fn protocols(&self) -> BTreeSet<Protocol> {
        let all = self.table.read().unwrap_or_else(PoisonError::into_inner);
        let grants = all.values().flatten().map(|holding| &holding.grant);
        grants
            .flat_map(|grant| grant.protocols.iter().copied())
            .collect()
    }
}

impl Sources {
    fn open(&mut self) -> Result<&Book, BookError> {
        if self.lent {
            return Err(BookError::Busy(self.state_dir.join(super::book::FILE)));
        }
        let book = match self.book.take().filter(|book| !book.has_failed()) {
            Some(book) => book,
            None => {
                let book = Book::open(&self.state_dir)?;
                let grants = book.grants()?.into_iter();
                self.added = grants.map(|g| (g.pattern.clone(), g)).collect();
                self.used = book.used()?;
                self.blocked.set(book.blocked()?);
                book
            }
        };
        Ok(self.book.insert(book))
    }
}

impl Listed {
    /// What the book says of a kite.
    pub fn new(grant: &Grant, used: Used) -> Self {
        Self {
            name: grant.pattern.to_string(),
            protocols: grant.protocols.iter().map(ToString::to_string).collect(),
            configured: false,
            expires: grant.expires.map(last_day),
            limits: grant.limits.clone(),
            used,
            ended: None,
            blocked: false,
            tunnels: None,
            seen: false,
        }
    }

    /// Says how they fly: `now` is what each tunnel flies, `seen` all that has flown. What is below a wildcard is the nearest
    /// one's.
    pub fn fly(all: &mut [Self], now: &[Vec<KiteName>], seen: &[KiteName]) {
        let mut places: HashMap<String, usize> = HashMap::new();
        for (at, listed) in all.iter_mut().enumerate() {
            listed.tunnels = Some(0);
            places.entry(listed.name.clone()).or_insert(at);
        }
        let place = |name: &KiteName| {
            let mut names = std::iter::once(name.to_string()).chain(name.wildcards());
            names.find_map(|name| places.get(&name).copied())
        };
        for tunnel in now {
            let flown: BTreeSet<usize> = tunnel.iter().filter_map(place).collect();
            for at in flown {
                if let Some(listed) = all.get_mut(at) {
                    listed.tunnels = listed.tunnels.map(|n| n + 1);
                    listed.seen = true;
                }
            }
        }
        for at in seen.iter().filter_map(place) {
            if let Some(listed) = all.get_mut(at) {
                listed.seen = true;
            }
        }
    }
}

impl Holding {
    /// Whoever flies by this grant may do so by the other.
    fn goes_on_as(&self, other: &Grant) -> bool {
        let Grant {
            secret,
            proof,
            protocols,
            ..
        } = &*self.grant;
        *secret == other.secret && *proof == other.proof && protocols.is_subset(&other.protocols)
    }
}

/// The name of the `n`th account of a pattern.
fn key(pattern: &KiteName, n: usize) -> String {
    match n {
        0 => pattern.to_string(),
        n => format!("{pattern} ({})", n + 1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ProofRule;
    use crate::frontend::limits::{Limits, Size};
    use crate::household::Visitor;
    use crate::kite::Secret;
    use std::time::Instant;

    fn grant(name: &str, secret: &str, quota: u64) -> Grant {
        Grant {
            pattern: name.parse().expect("a name"),
            protocols: [Protocol::Http].into(),
            secret: Secret::new(secret.as_bytes()).expect("a secret"),
            proof: ProofRule::Optional,
            backends: 1,
            limits: Limits {
                quota: Some(Size(quota)),
                ..Limits::default()
            },
            expires: None,
        }
    }

    fn only(accounts: &Accounts, name: &str) -> Arc<Account> {
        let found = accounts.covering(&name.parse().expect("a name"));
        assert_eq!(found.len(), 1, "{name}");
        found[0].account.clone()
    }

    #[test]
    fn the_nearest_grant_comes_first() {
        let accounts = Accounts::default();
        let grants = ["*.example", "*.alice.example", "bob.alice.example"];
        let all = grants.iter().map(|name| grant(name, "s", 1));
        accounts.set(all.collect(), |_| None);
        let found = |name: &str| -> Vec<String> {
            let found = accounts.covering(&name.parse().expect("a name"));
            found.iter().map(|h| h.account.key().to_owned()).collect()
        };
        let (all, alice, bob) = ("*.example", "*.alice.example", "bob.alice.example");
        assert_eq!(found(bob), [bob, alice, all]);
        assert_eq!(found("x.y.alice.example"), [alice, all]);
        assert_eq!(found(alice), [alice, all]);
        assert_eq!(found("alice.example"), [all]);
        assert!(found("example").is_empty());
    }

    #[test]
    fn what_does_not_change_goes_on_and_what_is_gone_ends() {
        let accounts = Accounts::default();
        let both = || {
            vec![
                grant("bob.example", "s", 100),
                grant("eve.example", "s", 100),
            ]
        };
        accounts.set(both(), |_| None);
        let (bob, eve) = (
            only(&accounts, "bob.example"),
            only(&accounts, "eve.example"),
        );
        let pass = bob.admit(Visitor(1), Instant::now()).expect("room");
        drop(pass.meter(60));
        accounts.set(vec![grant("bob.example", "s", 50)], |_| None);
        assert_eq!(eve.standing(now_unix()), Err(End::Removed));
        assert!(Arc::ptr_eq(&bob, &only(&accounts, "bob.example")));
        assert_eq!(bob.standing(now_unix()), Err(End::Bytes), "60 are over 50");
        accounts.set(both(), |_| None);
        assert_eq!(bob.standing(now_unix()), Ok(()));
        assert_eq!(eve.standing(now_unix()), Err(End::Removed));
        assert_eq!(only(&accounts, "eve.example").standing(now_unix()), Ok(()));
    }

    #[test]
    fn a_lent_book_is_left_alone_and_read_again_when_it_is_back() {
        let dir = tempfile::tempdir().expect("a directory");
        let bob: KiteName = "bob.example".parse().expect("a name");
        let grants = vec![grant("bob.example", "s", 100)];
        let accounts = Accounts::open(grants, Limits::default(), dir.path()).expect("a book");
        accounts.lend_book(true);
        let pass = only(&accounts, "bob.example").admit(Visitor(1), Instant::now());
        drop(pass.expect("room").meter(60));
        accounts.save();
        assert!(!accounts.sources().complained, "that is no trouble");
        let other = Book::open(dir.path()).expect("it is free");
        other.block(&bob, Since { since: 1 }).expect("written");
        drop(other);
        accounts.lend_book(false);
        assert!(accounts.blocked().covers(&bob));
        assert!(accounts.sources().book.is_some());
    }

    #[test]
    fn another_secret_ends_who_flew_with_the_old_one() {
        let accounts = Accounts::default();
        accounts.set(vec![grant("bob.example", "old", 100)], |_| None);
        let old = only(&accounts, "bob.example");
        drop(
            old.admit(Visitor(1), Instant::now())
                .expect("room")
                .meter(60),
        );
        accounts.set(vec![grant("bob.example", "new", 100)], |_| None);
        assert_eq!(old.standing(now_unix()), Err(End::Removed));
        let (used, _) = only(&accounts, "bob.example").used(now_unix());
        assert_eq!((used.bytes, used.connections), (60, 1));
    }

    #[test]
    fn what_flies_is_its_nearest_grants() {
        let listed = |name: &str| Listed::new(&grant(name, "secret", 1), Used::default());
        let mut all: Vec<_> = [
            "*.alice.example",
            "bob.alice.example",
            "eve.alice.example",
            "away.example",
        ]
        .map(listed)
        .into();
        let name = |text: &str| text.parse().expect("a name");
        let first = ["bob.alice.example", "x.alice.example", "y.alice.example"];
        let now = [
            first.map(name).into(),
            vec![name("bob.alice.example"), name("elsewhere.example")],
        ];
        Listed::fly(&mut all, &now, &[name("eve.alice.example")]);
        let stand: Vec<_> = all.iter().map(|l| (l.tunnels, l.seen)).collect();
        let expected = [(1, true), (2, true), (0, true), (0, false)];
        assert_eq!(stand, expected.map(|(n, seen)| (Some(n), seen)));
    }
}
