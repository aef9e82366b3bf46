//! A node's directory: what Tahoe reads there, and how `tahoe.cfg` is replaced.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use super::cfg::{self, Cfg, CfgError, Change};
use super::{Kind, Kite, KiteError, Node, Severity, check};
use crate::code::{Code, Coded};
use crate::config::read_limited;

/// Most backups of one file; more mean that something runs in a circle.
const MAX_BACKUPS: u32 = 1000;

/// What went wrong in a node's directory.
#[derive(Debug, thiserror::Error)]
pub enum DirError {
    /// Tahoe would not run it.
    #[error(
        "{}: this is no directory of a Tahoe-LAFS node: there is no tahoe-client.tac or tahoe-introducer.tac; \
         give the directory that `tahoe create-node` made", .0.display()
    )]
    NoNode(PathBuf),
    /// A file that is there, and cannot be read.
    #[error("{}: {problem}; give the directory of a node, as a user who may read it", .path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        problem: String,
    },
    /// Python would not read it, or kite does not.
    #[error("{}: {problem}; mend it by hand", .path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// What, and where.
        problem: CfgError,
    },
    /// The configuration gives no lines.
    #[error(transparent)]
    Kite(#[from] KiteError),
    /// It could not be replaced. The old file is still there.
    #[error("{}: cannot be written: {problem}; nothing was changed. Run kite as the file's owner, or as root", .path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        problem: std::io::Error,
    },
    /// A file that is laid out in a way that kite cannot edit.
    #[error("{}: kite cannot put its lines into this file; nothing was changed. Put them in by hand, as `kite tahoe` prints them", .0.display())]
    Odd(PathBuf),
}

impl Coded for DirError {
    fn code(&self) -> Code {
        match self {
            Self::NoNode(_) | Self::Unreadable { .. } | Self::Syntax { .. } => Code::NodeUnreadable,
            Self::Kite(e) => e.code(),
            Self::Write { .. } | Self::Odd(_) => Code::NodeUnwritten,
        }
    }
}

/// A node's files, and the text of its `tahoe.cfg`.
#[derive(Debug)]
pub struct NodeDir {
    path: PathBuf,
    text: String,
    /// What they say.
    pub node: Node,
}

/// What was changed in a `tahoe.cfg`.
#[derive(Debug)]
pub struct Written {
    /// The lines that are new. Empty if all were there.
    pub changes: Vec<Change>,
    /// Where the old file is now, if it was replaced.
    pub backup: Option<PathBuf>,
}

impl NodeDir {
    /// Reads what Tahoe would. A missing `tahoe.cfg` is an empty one, as for Tahoe.
    pub fn read(dir: &Path) -> Result<Self, DirError> {
        let kind = kind(dir)?;
        let path = dir.join("tahoe.cfg");
        let text = optional(&path)?.unwrap_or_default();
        let cfg = parse(&path, &text)?;
        Ok(Self {
            path,
            text,
            node: Node {
                kind,
                cfg,
                introducers: optional(&dir.join("private/introducers.yaml"))?,
                servers: optional(&dir.join("private/servers.yaml"))?,
                // Whatever else stands there is Tahoe's affair.
                tub: optional(&dir.join("my_nodeid"))?.and_then(|id| id.trim().parse().ok()),
            },
        })
    }

    /// Puts the kite's lines into `tahoe.cfg`, and what mends every other leak in it. All other lines stay; time-outs
    /// that the operator has chosen, too.
    pub fn write(&mut self, kite: &Kite) -> Result<Written, DirError> {
        let (text, changes) = self.changed(kite)?;
        if text == self.text {
            return Ok(Written {
                changes: vec![],
                backup: None,
            });
        }
        let problem = |problem| DirError::Write {
            path: self.path.clone(),
            problem,
        };
        let backup = replace(&self.path, &text).map_err(problem)?;
        self.text = text;
        Ok(Written { changes, backup })
    }

    /// The lines that [`NodeDir::write`] would change.
    pub fn plan(&self, kite: &Kite) -> Result<Vec<Change>, DirError> {
        let mut draft = Self {
            node: Node {
                cfg: parse(&self.path, &self.text)?,
                kind: self.node.kind,
                introducers: self.node.introducers.clone(),
                servers: self.node.servers.clone(),
                tub: self.node.tub,
            },
            path: self.path.clone(),
            text: self.text.clone(),
        };
        Ok(draft.changed(kite)?.1)
    }

    /// The text as it is to be, and the lines that are new in it. The node is what that text says.
    fn changed(&mut self, kite: &Kite) -> Result<(String, Vec<Change>), DirError> {
        let mut wanted = kite.lines(self.node.kind)?;
        wanted.retain(|change| {
            let chosen = self.node.cfg.value(change.section, change.key);
            !change.key.starts_with("timeout.") || chosen.is_none_or(str::is_empty)
        });
        let mut text = self.edit(&self.text, &wanted)?;
        self.node.cfg = parse(&self.path, &text)?;
        let mends = check(&self.node, Some(kite))
            .into_iter()
            .filter(|f| f.severity != Severity::Note)
            .flat_map(|f| f.instead);
        let mends: Vec<Change> = mends.collect();
        text = self.edit(&text, &mends)?;
        self.node.cfg = parse(&self.path, &text)?;
        wanted.extend(mends);
        let old = parse(&self.path, &self.text)?;
        wanted.retain(|c| old.value(c.section, c.key) != c.value.as_deref());
        Ok((text, wanted))
    }

    /// The text with these changes, and seen to have them and no others.
    fn edit(&self, text: &str, changes: &[Change]) -> Result<String, DirError> {
        let syntax = |problem| DirError::Syntax {
            path: self.path.clone(),
            problem,
        };
        let edited = cfg::apply(text, changes).map_err(syntax)?;
        let (before, after) = (parse(&self.path, text)?, parse(&self.path, &edited)?);
        let done = changes
            .iter()
            .all(|c| after.value(c.section, c.key) == c.value.as_deref());
        match done && before.others(changes) == after.others(changes) {
            true => Ok(edited),
            false => Err(DirError::Odd(self.path.clone())),
        }
    }
}

/// What `tahoe run` would take it for: it goes by the name of the `.tac` file.
fn kind(dir: &Path) -> Result<Kind, DirError> {
    let entries = fs::read_dir(dir).map_err(|e| DirError::Unreadable {
        path: dir.to_path_buf(),
        problem: e.to_string(),
    })?;
    entries
        .flatten()
        .filter_map(|e| e.file_name().into_string().ok())
        .filter(|name| name.ends_with(".tac"))
        .find_map(|name| match name {
            n if n.contains("introducer") => Some(Kind::Introducer),
            n if n.contains("client") => Some(Kind::Client),
            _ => None,
        })
        .ok_or_else(|| DirError::NoNode(dir.to_path_buf()))
}

/// A file's text, or `None` if there is no such file.
fn optional(path: &Path) -> Result<Option<String>, DirError> {
    let unreadable = |problem| DirError::Unreadable {
        path: path.to_path_buf(),
        problem,
    };
    match fs::metadata(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(unreadable(e.to_string())),
        Ok(_) => {}
    }
    let bytes = read_limited(path).map_err(unreadable)?;
    let text =
        String::from_utf8(bytes.to_vec()).map_err(|_| unreadable("it is not UTF-8 text".into()))?;
    Ok(Some(text))
}

fn parse(path: &Path, text: &str) -> Result<Cfg, DirError> {
    Cfg::parse(text).map_err(|problem| DirError::Syntax {
        path: path.to_path_buf(),
        problem,
    })
}

/// Puts `text` in the place of a file, at once or not at all, with the old one's mode and owner. Gives the name of
/// the old file's copy.
pub(crate) fn replace(path: &Path, text: &str) -> std::io::Result<Option<PathBuf>> {
    // What a link leads to is replaced, not the link.
    let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf());
    let old = match fs::read(&path) {
        Ok(bytes) => Some((bytes, fs::metadata(&path)?)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => None,
        Err(e) => return Err(e),
    };
    let owner = old.as_ref().map(|(_, meta)| meta);
    let named = |suffix: &str| {
        let mut name = path.clone().into_os_string();
        name.push(suffix);
        PathBuf::from(name)
    };
    let mut backup = None;
    if let Some((bytes, _)) = &old {
        for number in 1..=MAX_BACKUPS {
            let candidate = named(&format!(".kite-backup-{number}"));
            match create(&candidate, bytes, owner) {
                Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => continue,
                Err(e) => return Err(e),
                Ok(()) => backup = Some(candidate),
            }
            break;
        }
        if backup.is_none() {
            return Err(std::io::Error::other(format!(
                "there are {MAX_BACKUPS} backups already, remove some"
            )));
        }
    }
    let new = named(".kite-new");
    // Left behind by a run that was killed.
    let _ = fs::remove_file(&new);
    let done = create(&new, text.as_bytes(), owner).and_then(|()| fs::rename(&new, &path));
    if done.is_err() {
        let _ = fs::remove_file(&new);
        if let Some(backup) = &backup {
            let _ = fs::remove_file(backup);
        }
    }
    done?;
    if let Some(dir) = path.parent() {
        File::open(dir)?.sync_all()?;
    }
    Ok(backup)
}

/// A new file, on the disk, that nobody may read who may not read `like`.
fn create(path: &Path, bytes: &[u8], like: Option<&fs::Metadata>) -> std::io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    let filled = (|| {
        file.write_all(bytes)?;
        if let Some(like) = like {
            let made = file.metadata()?;
            if (made.uid(), made.gid()) != (like.uid(), like.gid()) {
                chown(path, Some(like.uid()), Some(like.gid()))?;
            }
            file.set_permissions(fs::Permissions::from_mode(like.mode() & 0o7777))?;
        }
        file.sync_all()
    })();
    if filled.is_err() {
        let _ = fs::remove_file(path);
    }
    filled
}
