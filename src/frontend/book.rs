//! The book: kites that the operator adds and removes while the frontend runs, what all kites
//! have used, and who is invited. A small database in the state directory; whatever was acknowledged survives a crash.

use std::collections::{BTreeMap, HashMap};
use std::fs::{File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use data_encoding::BASE64;
use redb::backends::FileBackend;
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, Zeroizing};

use super::blocked::Since;
use super::invited::Invited;
use super::limits::{Limits, Used};
use crate::code::{Code, Coded};
use crate::config::{Grant, ProofRule};
use crate::kite::{KiteName, Secret};
use crate::privilege::give_to_owner_of;

/// The file in the state directory.
pub const FILE: &str = "kites.redb";
/// Most kites in a book.
pub const MAX_KITES: u64 = 100_000;
/// What of the file is kept in memory, in bytes.
const CACHE: usize = 1024 * 1024;

/// A name or wildcard, and its [`Entry`] as JSON.
const KITES: TableDefinition<&str, &[u8]> = TableDefinition::new("kites");
/// An account's key, and what it has [`Used`] as JSON.
const USED: TableDefinition<&str, &[u8]> = TableDefinition::new("used");
/// An invitation's number, and its [`Invited`] as JSON.
const INVITED: TableDefinition<&str, &[u8]> = TableDefinition::new("invited");
/// A name or wildcard that nobody flies, and [`Since`] when, as JSON.
const BLOCKED: TableDefinition<&str, &[u8]> = TableDefinition::new("blocked");

/// The book, open. Nobody else can open it as long as it is.
pub struct Book {
    path: PathBuf,
    database: Database,
    /// The disk has failed it. The database takes nothing more until it is opened anew.
    failed: AtomicBool,
}

/// One kite in the book. It holds the secret, as the protocol's signatures cannot be checked
/// without it: not for logs.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// The words of [`crate::kite::Protocol`].
    pub protocols: Vec<String>,
    /// In Base64.
    secret: String,
    /// It takes KiteProof1 and nothing else.
    #[serde(default)]
    pub proof_required: bool,
    /// The first second in which it does not fly any more, since 1970.
    pub expires: Option<u64>,
    /// Its own limits.
    #[serde(default)]
    pub limits: Limits,
}

/// Why the book is of no use.
#[derive(Debug, thiserror::Error)]
pub enum BookError {
    /// A frontend has it, that does not answer.
    #[error("{} is used by another kite, which gives no answer; ask as the user that runs it, or try again", .0.display())]
    Busy(PathBuf),
    /// It, or the directory, cannot be made.
    #[error("{}: {source}; run this as the user that runs the frontend, or give --state-dir DIR", .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// It cannot grow.
    #[error("{}: the disk is full; make room there. What is written in it is safe, and kite tries again by itself", .0.display())]
    NoRoom(PathBuf),
    /// It holds secrets.
    #[error("{0}: other users may read the secrets in it; run: chmod 600 {0}")]
    Readable(String),
    /// The database complains.
    #[error(
        "{path}: {problem}; if it cannot be mended put a copy from a backup there, or move it away and add the kites again"
    )]
    Broken {
        /// The file.
        path: String,
        /// What the database said.
        problem: String,
    },
    /// No two kites have one name.
    #[error("{0} is in the book already; remove it first")]
    Exists(KiteName),
    /// It is where the operator wrote it.
    #[error("{0} is in the configuration file; change it there")]
    Configured(KiteName),
    /// Nothing to remove.
    #[error(
        "{0} is not in the book; `kite frontend kites list` shows what is, and a kite of the configuration file is removed there"
    )]
    Unknown(KiteName),
    /// [`MAX_KITES`].
    #[error(
        "the book is full: it holds {MAX_KITES} kites; remove one, or let a wildcard stand for several"
    )]
    Full,
    /// [`MAX_INVITED`](super::invited::MAX_INVITED).
    #[error("the book is full: it holds {max} invitations; some were made in vain? `kite frontend invitations list` shows them", max = super::invited::MAX_INVITED)]
    FullOfInvitations,
    /// One at a time.
    #[error(
        "somebody is invited to fly {0} already; take that back first: kite frontend invitations revoke {0}"
    )]
    Invited(KiteName),
    /// Nobody to disappoint.
    #[error("nobody is invited to fly {0}; `kite frontend invitations list` shows who is")]
    NotInvited(KiteName),
    /// Nothing to do.
    #[error("{0} is blocked already; `kite frontend kites blocked` shows what is")]
    Blocked(KiteName),
    /// Nothing to take back.
    #[error("{0} is not blocked; `kite frontend kites blocked` shows what is")]
    NotBlocked(KiteName),
    /// [`MAX_BLOCKED`](super::blocked::MAX_BLOCKED).
    #[error("the book is full: {max} names are blocked; let a wildcard stand for several", max = super::blocked::MAX_BLOCKED)]
    FullOfBlocked,
}

impl Coded for BookError {
    fn code(&self) -> Code {
        match self {
            Self::Busy(_)
            | Self::File { .. }
            | Self::NoRoom(_)
            | Self::Readable(_)
            | Self::Broken { .. } => Code::BookUnusable,
            Self::Exists(_)
            | Self::Configured(_)
            | Self::Unknown(_)
            | Self::Full
            | Self::FullOfInvitations
            | Self::Invited(_)
            | Self::NotInvited(_)
            | Self::Blocked(_)
            | Self::NotBlocked(_)
            | Self::FullOfBlocked => Code::BookDisagrees,
        }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.secret.zeroize();
    }
}

impl Entry {
    /// For the book.
    pub fn new(grant: &Grant) -> Self {
        Self {
            protocols: grant.protocols.iter().map(ToString::to_string).collect(),
            secret: BASE64.encode(grant.secret.expose()),
            proof_required: grant.proof == ProofRule::Required,
            expires: grant.expires,
            limits: grant.limits.clone(),
        }
    }

    /// The same for a kite whose secret is made later.
    pub fn without_secret(mut self) -> Self {
        self.secret.zeroize();
        self.secret.clear();
        self
    }

    /// The same, with this secret.
    pub fn with_secret(mut self, secret: &Secret) -> Self {
        self.secret.zeroize();
        self.secret = BASE64.encode(secret.expose());
        self
    }

    /// From the book; none if a newer kite wrote it.
    pub fn grant(&self, name: &str) -> Option<Grant> {
        let secret = Zeroizing::new(BASE64.decode(self.secret.as_bytes()).ok()?);
        let protocols = self.protocols.iter().map(|word| word.parse().ok());
        Some(Grant {
            pattern: name.parse().ok()?,
            protocols: protocols.collect::<Option<_>>()?,
            secret: Secret::new(&secret)?,
            proof: match self.proof_required {
                true => ProofRule::Required,
                false => ProofRule::Optional,
            },
            limits: self.limits.clone(),
            expires: self.expires,
            backends: 1,
        })
    }
}

impl Book {
    /// Whether there is one in this state directory.
    pub fn exists(state_dir: &Path) -> bool {
        state_dir.join(FILE).exists()
    }

    /// Opens it, or makes an empty one, which only its owner can read.
    pub fn open(state_dir: &Path) -> Result<Self, BookError> {
        let path = state_dir.join(FILE);
        let failed = |source: std::io::Error| match is_full(&source) {
            true => BookError::NoRoom(path.clone()),
            false => BookError::File {
                path: path.clone(),
                source,
            },
        };
        if std::fs::symlink_metadata(&path).is_err_and(|e| e.kind() == ErrorKind::NotFound) {
            make(state_dir, &path, failed)?;
        }
        let file = OpenOptions::new().read(true).write(true).open(&path);
        let file = file.map_err(failed)?;
        // A database makes a new one of nothing; but nothing is what is left of one that was cut off.
        if file.metadata().is_ok_and(|meta| meta.len() == 0) {
            return Err(broken(&path, "it is empty: it was cut off"));
        }
        let mode = file.metadata().map_or(0, |meta| meta.mode());
        if mode & 0o077 != 0 {
            return Err(BookError::Readable(path.display().to_string()));
        }
        let book = Self::on(file, &path)?;
        // So that they are there to be read.
        book.write(|_| Ok(()))?;
        Ok(book)
    }

    /// On an open file. Every page of it is looked at: a secret that the disk has spoiled would be a wrong secret.
    fn on(file: File, path: &Path) -> Result<Self, BookError> {
        let opening = || {
            let file = FileBackend::new(file)?;
            let mut builder = redb::Builder::new();
            let mut database = builder.set_cache_size(CACHE).create_with_backend(file)?;
            database.check_integrity()?;
            Ok(database)
        };
        // Some damage is found by an assertion of the database's own.
        let opened = std::panic::catch_unwind(std::panic::AssertUnwindSafe(opening));
        let opened = opened.map_err(|_| broken(path, "the database cannot be read"))?;
        let database = opened.map_err(|e| match e {
            redb::DatabaseError::DatabaseAlreadyOpen => BookError::Busy(path.to_path_buf()),
            e => trouble(path, e.into()),
        })?;
        Ok(Self {
            path: path.to_path_buf(),
            database,
            failed: AtomicBool::new(false),
        })
    }

    /// The disk has failed it, so that it must be opened anew.
    pub fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Relaxed)
    }

    fn trouble(&self, e: redb::Error) -> BookError {
        self.failed.store(true, Ordering::Relaxed);
        trouble(&self.path, e)
    }

    /// Every kite in it. What a newer kite wrote is left out, and named in the log.
    pub fn grants(&self) -> Result<Vec<Grant>, BookError> {
        let all = self.read(KITES)?;
        let grant = |(name, text): (String, Vec<u8>)| {
            let text = Zeroizing::new(text);
            let entry = serde_json::from_slice::<Entry>(&text).ok();
            let grant = entry.and_then(|entry| entry.grant(&name));
            if grant.is_none() {
                tracing::warn!(
                    "[{}] {}: {name} was written by another version of kite, and does not fly; install that, or add the kite anew",
                    Code::KiteOfOtherVersion,
                    self.path.display()
                );
            }
            grant
        };
        Ok(all.into_iter().filter_map(grant).collect())
    }

    /// What the accounts had used when it was last written down.
    pub fn used(&self) -> Result<HashMap<String, Used>, BookError> {
        let all = self.read(USED)?.into_iter();
        Ok(all
            .filter_map(|(key, text)| Some((key, serde_json::from_slice(&text).ok()?)))
            .collect())
    }

    /// Names that nobody flies.
    pub(super) fn blocked(&self) -> Result<BTreeMap<KiteName, Since>, BookError> {
        let read = |(name, text): (String, Vec<u8>)| {
            Some((name.parse().ok()?, serde_json::from_slice(&text).ok()?))
        };
        Ok(self.read(BLOCKED)?.into_iter().filter_map(read).collect())
    }

    /// Adds a kite. It is on the disk when this returns.
    pub fn add(&self, name: &KiteName, entry: &Entry) -> Result<(), BookError> {
        let text = Zeroizing::new(serde_json::to_vec(entry).map_err(|e| broken(&self.path, e))?);
        self.write(|tables| tables.add(name, &text))?
    }

    /// Removes a kite, and what it has used. It is gone from the disk's tables when this returns.
    pub fn remove(&self, name: &KiteName) -> Result<(), BookError> {
        self.write(|tables| {
            if tables.kites.remove(name.as_str())?.is_none() {
                return Ok(Err(BookError::Unknown(name.clone())));
            }
            tables.used.remove(name.as_str())?;
            Ok(Ok(()))
        })?
    }

    /// Writes down what accounts have used.
    pub fn note<'a>(
        &self,
        all: impl IntoIterator<Item = (&'a str, Used)>,
    ) -> Result<(), BookError> {
        self.write(|tables| {
            for (key, value) in all {
                let text = serde_json::to_vec(&value).unwrap_or_default();
                tables.used.insert(key, text.as_slice())?;
            }
            Ok(())
        })
    }

    /// Every invitation, by its number. What a newer kite wrote is left out.
    pub(super) fn invited(&self) -> Result<Vec<(String, Invited)>, BookError> {
        let read = |(id, text): (String, Vec<u8>)| Some((id, serde_json::from_slice(&text).ok()?));
        Ok(self.read(INVITED)?.into_iter().filter_map(read).collect())
    }

    /// The invitation of this number.
    pub(super) fn invitation(&self, id: &str) -> Result<Option<Invited>, BookError> {
        self.look_up(INVITED, id)
    }

    /// The kite of this name.
    pub(super) fn kite(&self, name: &str) -> Result<Option<Entry>, BookError> {
        self.look_up(KITES, name)
    }

    /// One row, if there is one that this kite understands.
    fn look_up<T: DeserializeOwned>(
        &self,
        table: TableDefinition<'static, &'static str, &'static [u8]>,
        key: &str,
    ) -> Result<Option<T>, BookError> {
        let reading = || -> Result<Option<Zeroizing<Vec<u8>>>, redb::Error> {
            let table = self.database.begin_read()?.open_table(table)?;
            let row = table.get(key)?;
            Ok(row.map(|text| Zeroizing::new(text.value().to_vec())))
        };
        let text = reading().map_err(|e| broken(&self.path, e))?;
        Ok(text.and_then(|text| serde_json::from_slice(&text).ok()))
    }

    fn read(
        &self,
        table: TableDefinition<'static, &'static str, &'static [u8]>,
    ) -> Result<Vec<(String, Vec<u8>)>, BookError> {
        let reading = || -> Result<Vec<(String, Vec<u8>)>, redb::Error> {
            let table = self.database.begin_read()?.open_table(table)?;
            let mut all = Vec::new();
            for row in table.iter()? {
                let (key, value) = row?;
                all.push((key.value().to_owned(), value.value().to_vec()));
            }
            Ok(all)
        };
        reading().map_err(|e| self.trouble(e))
    }

    /// One transaction: all of it is on the disk when this returns, or nothing is.
    pub(super) fn write<T>(
        &self,
        act: impl FnOnce(&mut Tables<'_>) -> Result<T, redb::Error>,
    ) -> Result<T, BookError> {
        let writing = || -> Result<T, redb::Error> {
            let transaction = self.database.begin_write()?;
            let done = act(&mut Tables {
                kites: transaction.open_table(KITES)?,
                used: transaction.open_table(USED)?,
                invited: transaction.open_table(INVITED)?,
                blocked: transaction.open_table(BLOCKED)?,
            })?;
            transaction.commit()?;
            Ok(done)
        };
        writing().map_err(|e| self.trouble(e))
    }
}

pub(super) type Rows<'a> = redb::Table<'a, &'static str, &'static [u8]>;

/// What a transaction sees.
pub(super) struct Tables<'a> {
    pub(super) kites: Rows<'a>,
    used: Rows<'a>,
    pub(super) invited: Rows<'a>,
    pub(super) blocked: Rows<'a>,
}

impl Tables<'_> {
    /// Adds a kite, whose [`Entry`] is this text.
    pub(super) fn add(
        &mut self,
        name: &KiteName,
        text: &[u8],
    ) -> Result<Result<(), BookError>, redb::Error> {
        if self.kites.get(name.as_str())?.is_some() {
            return Ok(Err(BookError::Exists(name.clone())));
        }
        if redb::ReadableTableMetadata::len(&self.kites)? >= MAX_KITES {
            return Ok(Err(BookError::Full));
        }
        self.kites.insert(name.as_str(), text)?;
        // One of this name that was there before is another's.
        self.used.remove(name.as_str())?;
        Ok(Ok(()))
    }
}

/// Makes an empty book and puts it in place whole or not at all.
fn make(
    dir: &Path,
    path: &Path,
    failed: impl Fn(std::io::Error) -> BookError,
) -> Result<(), BookError> {
    std::fs::create_dir_all(dir).map_err(&failed)?;
    let draft = dir.join(format!(".{FILE}.{}", std::process::id()));
    let _ = std::fs::remove_file(&draft);
    let mut options = OpenOptions::new();
    options.read(true).write(true).create_new(true).mode(0o600);
    let written = options
        .open(&draft)
        .and_then(|file| {
            give_to_owner_of(dir, &file)?;
            Ok(file)
        })
        .map_err(&failed)
        .and_then(|file| Book::on(file, path)?.write(|_| Ok(())));
    // A link, unlike a rename, does not replace the book of a process that was faster.
    let placed = written.and_then(|()| match std::fs::hard_link(&draft, path) {
        Err(e) if e.kind() != ErrorKind::AlreadyExists => Err(failed(e)),
        _ => Ok(()),
    });
    let _ = std::fs::remove_file(&draft);
    placed?;
    // Its name is on the disk, too, when the first kite is acknowledged.
    std::fs::File::open(dir)
        .and_then(|dir| dir.sync_all())
        .map_err(failed)
}

fn is_full(e: &std::io::Error) -> bool {
    matches!(e.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded)
}

fn trouble(path: &Path, e: redb::Error) -> BookError {
    match e {
        redb::Error::Io(e) if is_full(&e) => BookError::NoRoom(path.to_path_buf()),
        e => broken(path, e),
    }
}

fn broken(path: &Path, problem: impl std::fmt::Display) -> BookError {
    BookError::Broken {
        path: path.display().to_string(),
        problem: problem.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frontend::limits::Size;
    use crate::kite::Protocol;
    use std::os::unix::fs::PermissionsExt;

    fn grant(name: &str) -> Grant {
        Grant {
            pattern: name.parse().expect("a name"),
            protocols: [Protocol::Foolscap, Protocol::Http].into(),
            secret: Secret::new(b"\xff not text").expect("a secret"),
            proof: ProofRule::Required,
            backends: 1,
            limits: Limits {
                quota: Some(Size(5 << 30)),
                visitors: Some("20/60".parse().expect("a rate")),
                ..Limits::default()
            },
            expires: Some(1_801_440_000),
        }
    }

    #[test]
    fn a_full_book_takes_no_more() {
        let dir = tempfile::tempdir().expect("a directory");
        let book = Book::open(dir.path()).expect("a book");
        let filling = book.write(|tables| {
            for n in 1..MAX_KITES {
                tables.kites.insert(format!("{n:06}").as_str(), &[][..])?;
            }
            Ok(())
        });
        filling.expect("room");
        let add = |name: &str| {
            let name = name.parse().expect("a name");
            book.add(&name, &Entry::new(&grant(name.as_str())))
        };
        add("last.alice.example").expect("room for one");
        assert!(matches!(add("bob.alice.example"), Err(BookError::Full)));
        let gone = "last.alice.example".parse().expect("a name");
        book.remove(&gone).expect("it was there");
        add("bob.alice.example").expect("its place");
    }

    #[test]
    fn what_is_written_is_there_when_it_is_opened_again() {
        let dir = tempfile::tempdir().expect("a directory");
        let name: KiteName = "bob.alice.example".parse().expect("a name");
        let used = Used {
            since: 1,
            bytes: 2,
            connections: 3,
        };
        {
            let book = Book::open(dir.path()).expect("a book");
            let entry = Entry::new(&grant(name.as_str()));
            book.add(&name, &entry).expect("room");
            assert!(matches!(book.add(&name, &entry), Err(BookError::Exists(_))));
            book.note([(name.as_str(), used)]).expect("room");
            assert!(matches!(Book::open(dir.path()), Err(BookError::Busy(_))));
        }
        let book = Book::open(dir.path()).expect("the same book");
        let found = book.grants().expect("kites");
        let was = grant(name.as_str());
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].secret, was.secret);
        assert_eq!(found[0].protocols, was.protocols);
        assert_eq!(found[0].limits, was.limits);
        assert_eq!((found[0].expires, found[0].proof), (was.expires, was.proof));
        assert_eq!(
            book.used().expect("used"),
            HashMap::from([(name.to_string(), used)])
        );
        book.remove(&name).expect("it is there");
        assert!(matches!(book.remove(&name), Err(BookError::Unknown(_))));
        assert!(book.grants().expect("kites").is_empty());
        assert!(book.used().expect("used").is_empty());
    }

    #[test]
    fn nobody_else_can_read_it() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join(FILE);
        drop(Book::open(dir.path()).expect("a book"));
        let mode = |path: &Path| std::fs::metadata(path).expect("a file").mode() & 0o777;
        assert_eq!(mode(&path), 0o600);
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).expect("chmod");
        assert!(matches!(
            Book::open(dir.path()),
            Err(BookError::Readable(_))
        ));
    }

    #[test]
    fn what_is_no_book_is_left_alone() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join(FILE);
        std::fs::write(&path, "my only copy of something else").expect("a file");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).expect("chmod");
        assert!(matches!(
            Book::open(dir.path()),
            Err(BookError::Broken { .. })
        ));
        let left = std::fs::read(&path).expect("a file");
        assert_eq!(left, b"my only copy of something else");
    }

    /// Whatever has become of the file: all that was written, or an error; never another book, and never a panic.
    #[test]
    fn a_damaged_book_is_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        {
            let book = Book::open(dir.path()).expect("a book");
            for n in 0..20 {
                let name: KiteName = format!("k{n}.alice.example").parse().expect("a name");
                let entry = Entry::new(&grant(name.as_str()));
                book.add(&name, &entry).expect("room");
            }
        }
        let good = std::fs::read(dir.path().join(FILE)).expect("a file");
        let names = |state: &Path| -> Result<Vec<(String, Secret)>, BookError> {
            let book = Book::open(state)?;
            let mut all = book.grants()?;
            all.sort_by(|a, b| a.pattern.cmp(&b.pattern));
            book.used()?;
            book.invited()?;
            Ok(all
                .into_iter()
                .map(|g| (g.pattern.to_string(), g.secret))
                .collect())
        };
        let whole = names(dir.path()).expect("it is good");
        let mut seed = 1u64;
        let mut random = move || {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1);
            (seed >> 33) as usize
        };
        let mut damaged: Vec<(String, Vec<u8>)> = vec![("nothing".into(), Vec::new())];
        for part in 1..8 {
            let len = good.len() * part / 8 + part;
            damaged.push((format!("cut at {len}"), good[..len].to_vec()));
        }
        damaged.push((
            "noise".into(),
            (0..good.len()).map(|_| random() as u8).collect(),
        ));
        let used: Vec<usize> = (0..good.len()).filter(|at| good[*at] != 0).collect();
        for _ in 0..60 {
            let mut bytes = good.clone();
            let at = used[random() % used.len()];
            bytes[at] ^= 1 << (random() % 8);
            damaged.push((format!("a bit at {at}"), bytes));
        }
        let (mut refused, mut recovered) = (0, 0);
        for (what, bytes) in damaged {
            let place = tempfile::tempdir().expect("a directory");
            let path = place.path().join(FILE);
            std::fs::write(&path, &bytes).expect("a file");
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).expect("chmod");
            let outcome = std::panic::catch_unwind(|| names(place.path()));
            match outcome.unwrap_or_else(|_| panic!("{what}: it panics")) {
                Ok(found) => {
                    assert!(found == whole, "{what}: another book");
                    recovered += 1;
                }
                Err(e) => {
                    assert!(matches!(e, BookError::Broken { .. }), "{what}: {e}");
                    refused += 1;
                }
            }
        }
        assert!(refused > 9 && recovered > 0, "{refused} {recovered}");
    }
}
