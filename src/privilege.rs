//! Rights that a kite does without: root's, once its ports are open, and that anybody else reads its memory.
//!
//! All of this binds the calling thread and what it starts from now on. So it belongs before the first other thread.

use std::fmt;
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use crate::code::{Code, Coded};

/// Who the users of this machine are. What a network's directory adds is not asked: give it by number.
const USERS: &str = "/etc/passwd";
/// Their groups.
const GROUPS: &str = "/etc/group";

/// Somebody for root to become.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// As messages call them.
    pub name: String,
    /// By number.
    pub uid: u32,
    /// The first of their groups.
    pub gid: u32,
    /// The others.
    pub groups: Vec<u32>,
}

/// Why root's rights cannot be given up as they should.
#[derive(Debug, thiserror::Error)]
pub enum PrivilegeError {
    /// Nobody is called so.
    #[error(
        "user = {0}: this machine has no such user or group; make one (useradd --system NAME), or give numbers, UID:GID"
    )]
    Unknown(String),
    /// Only root can become somebody else.
    #[error(
        "user = {0}: only root can become another user; start kite as that user, or as root, or leave `user` out"
    )]
    NotRoot(String),
    /// The user could not write there.
    #[error(
        "user = {user}: the state directory {} belongs to {owner}; run: chown -R {user}: {}",
        path.display(), path.display()
    )]
    NotTheirs {
        /// Whom kite was to become.
        user: String,
        /// Whose it is.
        owner: String,
        /// The directory.
        path: PathBuf,
    },
    /// The state directory could not be made for them.
    #[error("user = {user}: cannot make the state directory {}: {source}; make it, and give it to {user}", path.display())]
    StateDir {
        /// Whom kite was to become.
        user: String,
        /// The directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The system says no.
    #[error("user = {user}: cannot become that user: {source}; start kite as that user")]
    System {
        /// Whom kite was to become.
        user: String,
        /// What the system said.
        source: io::Error,
    },
}

impl Coded for PrivilegeError {
    fn code(&self) -> Code {
        Code::CannotBecome
    }
}

impl User {
    /// `NAME`, `NAME:GROUP`, or numbers in their place.
    pub fn find(text: &str) -> Result<Self, PrivilegeError> {
        let read = |file| fs::read_to_string(file).unwrap_or_default();
        Self::among(text, &read(USERS), &read(GROUPS))
            .ok_or_else(|| PrivilegeError::Unknown(text.to_owned()))
    }

    fn among(text: &str, users: &str, groups: &str) -> Option<Self> {
        let (who, group) = match text.split_once(':') {
            Some((who, group)) => (who, Some(group)),
            None => (text, None),
        };
        let listed = |table: &str, key: &str, at: usize| {
            let mut lines = table
                .lines()
                .map(|line| line.split(':').collect::<Vec<_>>());
            lines
                .find(|fields| fields.get(at) == Some(&key))
                .map(|f| f.iter().map(|f| (*f).to_owned()).collect::<Vec<_>>())
        };
        let number = |fields: &[String], at: usize| fields.get(at)?.parse::<u32>().ok();
        // A name that is a number is taken for the number, as by chown's like.
        let by_number = who.parse::<u32>().ok();
        let entry = match by_number {
            Some(_) => listed(users, who, 2),
            None => Some(listed(users, who, 0)?),
        };
        let name = entry
            .as_ref()
            .and_then(|e| e.first().cloned())
            .unwrap_or_else(|| who.to_owned());
        let uid = by_number.or_else(|| number(entry.as_ref()?, 2))?;
        let gid = match group {
            Some(group) => group
                .parse()
                .ok()
                .or_else(|| number(&listed(groups, group, 0)?, 2))?,
            None => number(entry.as_ref()?, 3)?,
        };
        // Whom a group was named for gets that group alone.
        let others = groups.lines().filter_map(|line| {
            let mut fields = line.split(':');
            let (id, members) = (fields.nth(2)?, fields.next()?);
            members
                .split(',')
                .any(|member| member == name)
                .then(|| id.parse().ok())?
        });
        let groups = match group {
            Some(_) => Vec::new(),
            None => others.filter(|id| *id != gid).collect(),
        };
        Some(Self {
            name,
            uid,
            gid,
            groups,
        })
    }

    /// Whom a role that was started like this is to become once its ports are open: who the configuration names, else,
    /// for root, the owner of the state directory. None if it is to stay who it is.
    pub fn choose(wanted: Option<&str>, state_dir: &Path) -> Result<Option<Self>, PrivilegeError> {
        let own = own_uid();
        let Some(wanted) = wanted else {
            if own != 0 {
                return Ok(None);
            }
            let owner = fs::metadata(state_dir).map_or(0, |meta| meta.uid());
            return match owner {
                0 => Ok(None),
                uid => {
                    let group = fs::metadata(state_dir).map_or(uid, |meta| meta.gid());
                    let known = Self::find(&uid.to_string());
                    known
                        .or_else(|_| Self::find(&format!("{uid}:{group}")))
                        .map(Some)
                }
            };
        };
        let user = Self::find(wanted)?;
        if user.uid == own {
            return Ok(None);
        }
        if own != 0 {
            return Err(PrivilegeError::NotRoot(wanted.to_owned()));
        }
        Ok(Some(user))
    }

    /// Sees to it that this user has the state directory: makes it, if it is not there.
    pub fn settle(&self, state_dir: &Path) -> Result<(), PrivilegeError> {
        let failed = |source| PrivilegeError::StateDir {
            user: self.name.clone(),
            path: state_dir.to_owned(),
            source,
        };
        match fs::metadata(state_dir) {
            Ok(meta) if meta.uid() == self.uid => Ok(()),
            Ok(meta) => Err(PrivilegeError::NotTheirs {
                user: self.name.clone(),
                owner: Self::find(&meta.uid().to_string())
                    .map_or_else(|_| meta.uid().to_string(), |user| user.name),
                path: state_dir.to_owned(),
            }),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                // Those above it stay root's, and others may pass.
                if let Some(above) = state_dir.parent() {
                    fs::create_dir_all(above).map_err(failed)?;
                }
                fs::DirBuilder::new()
                    .mode(0o700)
                    .create(state_dir)
                    .map_err(failed)?;
                std::os::unix::fs::chown(state_dir, Some(self.uid), Some(self.gid)).map_err(failed)
            }
            Err(e) => Err(failed(e)),
        }
    }

    /// Becomes that user, for good, and lets go of root's groups and capabilities.
    pub fn become_for_good(&self) -> Result<(), PrivilegeError> {
        system::become_for_good(self).map_err(|source| PrivilegeError::System {
            user: self.name.clone(),
            source,
        })
    }
}

impl fmt::Display for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}:{})", self.name, self.uid, self.gid)
    }
}

/// A file that root makes in another user's directory is that user's: the role that runs there could not use it else.
pub(crate) fn give_to_owner_of(dir: &Path, file: &fs::File) -> io::Result<()> {
    let (place, made) = (fs::metadata(dir)?, file.metadata()?);
    if made.uid() == 0 && place.uid() != 0 {
        std::os::unix::fs::fchown(file, Some(place.uid()), Some(place.gid()))?;
    }
    Ok(())
}

/// Who this process is.
pub fn own_uid() -> u32 {
    rustix::process::geteuid().as_raw()
}

/// Lets go of every capability: of root's, and of what a service was given to open its ports with.
pub fn drop_capabilities() -> io::Result<()> {
    system::drop_capabilities()
}

/// Keeps what is in memory out of core dumps, and away from other programs of the same user. The first error, if that cannot be.
///
/// Who traces this process from its start, as `kite check --leaks` does, goes on seeing it: that was somebody's decision before.
pub fn keep_memory_private() -> io::Result<()> {
    use rustix::process::{Resource, Rlimit, setrlimit};
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    setrlimit(Resource::Core, none)?;
    system::hide_memory()
}

#[cfg(target_os = "linux")]
mod system {
    use std::{fs, io};

    use rustix::process::{DumpableBehavior, Gid, Uid, set_dumpable_behavior};
    use rustix::thread::{
        CapabilitySet, CapabilitySets, clear_ambient_capability_set,
        remove_capability_from_bounding_set, set_capabilities, set_thread_groups,
        set_thread_res_gid, set_thread_res_uid,
    };

    use super::User;

    /// Each of these calls is about one thread, so there must be no other.
    pub(super) fn become_for_good(user: &User) -> io::Result<()> {
        let threads = fs::read_dir("/proc/self/task").map_or(1, Iterator::count);
        if threads != 1 {
            return Err(io::Error::other(format!(
                "there are {threads} threads already"
            )));
        }
        clear_bounding_set();
        let groups: Vec<_> = user.groups.iter().map(|id| Gid::from_raw(*id)).collect();
        set_thread_groups(&groups)?;
        let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
        set_thread_res_gid(gid, gid, gid)?;
        set_thread_res_uid(uid, uid, uid)?;
        // From root to another, the kernel has taken them already.
        drop_capabilities()?;
        // Whether another user's process may be dumped is the system's setting again (fs.suid_dumpable).
        hide_memory()
    }

    pub(super) fn drop_capabilities() -> io::Result<()> {
        clear_bounding_set();
        clear_ambient_capability_set()?;
        let empty = CapabilitySet::empty();
        let none = CapabilitySets {
            effective: empty,
            permitted: empty,
            inheritable: empty,
        };
        Ok(set_capabilities(None, none)?)
    }

    /// What no program that is started could get back. It takes a right of its own; who has not got it has little to lose.
    fn clear_bounding_set() {
        for number in 0..u64::BITS {
            let one = CapabilitySet::from_bits_retain(1 << number);
            if remove_capability_from_bounding_set(one).is_err() {
                break;
            }
        }
    }

    pub(super) fn hide_memory() -> io::Result<()> {
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let tracer = status
            .lines()
            .find_map(|line| line.strip_prefix("TracerPid:"));
        if tracer.is_some_and(|pid| pid.trim() != "0") {
            return Ok(());
        }
        Ok(set_dumpable_behavior(DumpableBehavior::NotDumpable)?)
    }
}

#[cfg(not(target_os = "linux"))]
mod system {
    use std::io;

    use super::User;

    pub(super) fn become_for_good(_: &User) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    pub(super) fn drop_capabilities() -> io::Result<()> {
        Ok(())
    }

    pub(super) fn hide_memory() -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const USERS: &str =
        "root:x:0:0:root:/root:/bin/bash\nkite:x:990:991::/var/lib/kite:/usr/sbin/nologin\n";
    const GROUPS: &str =
        "root:x:0:\nkite:x:991:\nssl-cert:x:110:postgres,kite\ntor:x:111:kiteless\n";

    fn found(text: &str) -> Option<(String, u32, u32, Vec<u32>)> {
        User::among(text, USERS, GROUPS).map(|u| (u.name, u.uid, u.gid, u.groups))
    }

    #[test]
    fn users_are_found_by_name_and_number_with_their_groups() {
        let kite = |gid, groups: &[u32]| Some(("kite".to_owned(), 990, gid, groups.to_vec()));
        assert_eq!(found("kite"), kite(991, &[110]));
        assert_eq!(found("990"), kite(991, &[110]));
        // Whoever names a group means that one.
        assert_eq!(found("kite:ssl-cert"), kite(110, &[]));
        assert_eq!(found("kite:5"), kite(5, &[]));
        assert_eq!(found("4711:5"), Some(("4711".to_owned(), 4711, 5, vec![])));
    }

    #[test]
    fn who_is_not_there_is_nobody() {
        // A number without a group could get nothing but root's.
        for text in [
            "",
            ":",
            "bob",
            "kite:",
            "kite:bob",
            "4711",
            "-1",
            "kite:991:1",
            " kite",
        ] {
            assert_eq!(found(text), None, "{text}");
        }
    }

    #[test]
    fn a_state_directory_is_made_and_never_taken_from_anybody() {
        let dir = tempfile::tempdir().unwrap();
        let own = own_uid();
        let me = |uid| User {
            name: "me".into(),
            uid,
            gid: 0,
            groups: vec![],
        };
        // Without root's rights nobody can give a directory away.
        if own == 0 {
            let new = dir.path().join("a/b");
            me(4711).settle(&new).unwrap();
            let meta = fs::metadata(&new).unwrap();
            assert_eq!((meta.uid(), meta.mode() & 0o777), (4711, 0o700));
            me(4711).settle(&new).unwrap();
        }
        me(own).settle(dir.path()).unwrap();
        let e = me(own + 1).settle(dir.path()).unwrap_err().to_string();
        assert!(e.contains("chown -R me:"), "{e}");
    }
}
