//! rc files on disk, with all those that they name.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::options::Meaning;
use super::{Mistake, Note, Place, Role, Setting, Translation, backend, frontend, parse};
use crate::config::read_limited;

/// How deep files may name files, as with pagekite.py.
const MAX_DEPTH: usize = 25;
/// Most files that one configuration may have.
const MAX_FILES: usize = 256;
/// The ending of a file's name.
const ENDING: &str = "rc";

/// What files say, one after the other.
#[derive(Debug, Default)]
pub struct Rc {
    /// Their options, in order.
    pub(super) settings: Vec<Setting>,
    pub(super) notes: Vec<Note>,
    files: usize,
    /// What messages call all of it.
    shown: String,
}

/// Whether `--config` means rc files: `FILE.rc`, or a directory of them.
pub fn is_rc(path: &Path) -> bool {
    path.is_dir() || has_ending(path)
}

/// `.pagekite.rc` has no extension for [`Path::extension`] if it were called `.rc`; so look at the text.
fn has_ending(path: &Path) -> bool {
    path.extension().is_some_and(|e| e == ENDING)
}

/// What pagekite.py reads when it is not told: the user's file, else the system's.
pub fn usual() -> PathBuf {
    let own = std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".pagekite.rc"));
    own.filter(|path| path.exists())
        .unwrap_or_else(|| "/etc/pagekite.d".into())
}

impl Rc {
    /// Reads files, and the `*.rc` of directories in the order of their names.
    pub fn read(paths: &[PathBuf]) -> Result<Self, Mistake> {
        let shown: Vec<_> = paths.iter().map(|p| p.display().to_string()).collect();
        let mut rc = Self {
            shown: shown.join(", "),
            ..Self::default()
        };
        for path in paths {
            rc.path(path, 0)?;
        }
        Ok(rc)
    }

    /// Takes a text as the only file. What it names is not read.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn of_text(text: &str) -> Result<Self, Mistake> {
        Ok(Self {
            settings: parse("test.rc", text)?,
            shown: "test.rc".into(),
            ..Self::default()
        })
    }

    fn path(&mut self, path: &Path, depth: usize) -> Result<(), Mistake> {
        if path.is_dir() {
            return self.directory(path, depth);
        }
        self.file(path, depth)
    }

    fn directory(&mut self, path: &Path, depth: usize) -> Result<(), Mistake> {
        let place = Place::file(path);
        let wrong = |e: std::io::Error| {
            place.mistake(
                format!("the directory cannot be read: {e}"),
                "run kite as a user who may read it",
            )
        };
        let mut files = Vec::new();
        for entry in fs::read_dir(path).map_err(wrong)? {
            let file = entry.map_err(wrong)?.path();
            let hidden = |name: &std::ffi::OsStr| name.as_encoded_bytes().starts_with(b".");
            if has_ending(&file) && !file.file_name().is_some_and(hidden) {
                files.push(file);
            }
        }
        files.sort();
        if files.is_empty() {
            return Err(place.mistake(
                "there is no .rc file in this directory",
                "name the directory with pagekite's files, such as /etc/pagekite.d",
            ));
        }
        files.iter().try_for_each(|file| self.file(file, depth))
    }

    fn file(&mut self, path: &Path, depth: usize) -> Result<(), Mistake> {
        let place = Place::file(path);
        self.files += 1;
        if depth > MAX_DEPTH || self.files > MAX_FILES {
            return Err(place.mistake(
                "the files name each other too often",
                "look at the lines with optfile and optdir",
            ));
        }
        let unreadable = |problem: String| {
            place.mistake(problem, "name a file that kite's user may read, as text")
        };
        let bytes = read_limited(path).map_err(unreadable)?;
        let text = std::str::from_utf8(&bytes)
            .map_err(|_| unreadable("it is not UTF-8 text".to_owned()))?;
        let settings = parse(&place.file, text)?;
        if settings.iter().any(has_secret) && is_open(path) {
            let text = format!(
                "other users may read the secrets in this file; run: chmod 600 {}",
                path.display()
            );
            self.notes.push(Note {
                place,
                option: "",
                text,
            });
        }
        for setting in settings {
            match setting.spec.meaning {
                Meaning::Include => {
                    let named = Path::new(setting.value.as_str());
                    let there = match setting.name {
                        "optdir" => named.is_dir(),
                        _ => named.is_file(),
                    };
                    if !there {
                        return Err(setting.mistake(
                            "there is nothing of this name to read",
                            "write the whole path, from the root on",
                        ));
                    }
                    self.path(named, depth + 1)?;
                }
                _ => self.settings.push(setting),
            }
        }
        Ok(())
    }

    /// The role that the files are for.
    pub fn role(&self) -> Role {
        match self.says_frontend() {
            Some(_) => Role::Frontend,
            None => Role::Backend,
        }
    }

    fn says_frontend(&self) -> Option<&Setting> {
        let mut said = None;
        for setting in &self.settings {
            match setting.name {
                "isfrontend" => said = said.or(Some(setting)),
                "noisfrontend" => said = None,
                _ => {}
            }
        }
        said
    }

    /// The TOML that says the same, for this role. Relative paths begin at `base`.
    pub fn translate(&self, role: Role, base: &Path) -> Result<Translation, Mistake> {
        if let Some(local) = self.settings.iter().find(|s| s.name == "local") {
            return Err(local.mistake(
                "kite has no process that is frontend and backend at once",
                "remove the line, and run `kite frontend` and `kite backend`",
            ));
        }
        let translation = match (role, self.says_frontend()) {
            (Role::Backend, Some(setting)) => {
                return Err(setting.mistake(
                    "these are a frontend's files, not a backend's",
                    "run `kite frontend` with them",
                ));
            }
            (Role::Frontend, None) => {
                let place = self.settings.first().map(|s| s.place.file.clone());
                let file = place.unwrap_or_else(|| self.shown.as_str().into());
                return Err(Place { file, line: 0 }.mistake(
                    "these are a backend's files, not a frontend's: they do not say isfrontend",
                    "run `kite backend` with them",
                ));
            }
            (Role::Backend, None) => backend::translate(&self.settings, base)?,
            (Role::Frontend, Some(_)) => frontend::translate(&self.settings, base)?,
        };
        Ok(translation.with(&self.shown, &self.notes))
    }
}

fn has_secret(setting: &Setting) -> bool {
    matches!(
        setting.name,
        "kitesecret" | "service_on" | "service_off" | "backend" | "define_backend" | "domain"
    )
}

fn is_open(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|meta| meta.mode() & 0o044 != 0)
}
