//! `kite import`: rc files written anew as TOML, with each secret in a file of its own.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use super::{Rc, Role, Translation, usual};
use crate::cli::ImportArgs;
use crate::code::{Code, Coded};
use crate::config::{BackendConfig, ConfigError, FrontendConfig};

/// Why nothing was written.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// The rc files are of no use.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A file is in the way.
    #[error("{}: it is there already, and nothing was written; move it away, or give --to another directory", .0.display())]
    InTheWay(PathBuf),
    /// The system says no.
    #[error("{}: it cannot be written: {source}; nothing was changed. Give --to a directory that this user may write to", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Nobody reads the report.
    #[error("cannot write the report: {0}; see where the output goes")]
    Output(#[from] io::Error),
}

impl Coded for ImportError {
    fn code(&self) -> Code {
        match self {
            Self::Config(e) => e.code(),
            Self::InTheWay(_) | Self::Write { .. } => Code::ImportUnwritten,
            Self::Output(_) => Code::OutputFailed,
        }
    }
}

/// A file to be made.
struct New {
    path: PathBuf,
    mode: u32,
    content: Zeroizing<Vec<u8>>,
}

/// Writes `backend.toml` or `frontend.toml`, and the secrets. All of it, or nothing.
pub fn run(args: &ImportArgs, out: &mut impl Write) -> Result<(), ImportError> {
    let files = match args.files.as_slice() {
        [] => vec![usual()],
        files => files.to_vec(),
    };
    let rc = Rc::read(&files).map_err(ConfigError::from)?;
    let role = rc.role();
    let base = std::env::current_dir().unwrap_or_default();
    let translation = rc.translate(role, &base).map_err(ConfigError::from)?;
    // A file that kite would not take is not written.
    let (command, name) = match role {
        Role::Backend => {
            BackendConfig::translated(translation.clone())?;
            ("backend", "backend.toml")
        }
        Role::Frontend => {
            FrontendConfig::translated(translation.clone())?;
            ("frontend", "frontend.toml")
        }
    };
    let made = files_of(&translation, &args.to, name);
    fs::create_dir_all(&args.to).map_err(|source| ImportError::Write {
        path: args.to.clone(),
        source,
    })?;
    write(&made)?;
    for note in &translation.notes {
        writeln!(out, "{note}")?;
    }
    for file in &made {
        writeln!(
            out,
            "wrote {} (mode {:03o})",
            file.path.display(),
            file.mode
        )?;
    }
    let path = args.to.join(name);
    writeln!(
        out,
        "Try it: kite {command} --config {}\nThe secrets are in the rc files, too: remove those when you need them no more.",
        path.display()
    )?;
    Ok(())
}

fn files_of(translation: &Translation, to: &Path, name: &str) -> Vec<New> {
    let secrets = translation.secrets.iter().map(|(name, secret)| New {
        path: to.join(name),
        mode: 0o600,
        content: Zeroizing::new([secret.expose(), b"\n"].concat()),
    });
    let toml = New {
        path: to.join(name),
        mode: 0o644,
        content: Zeroizing::new(translation.to_string().into_bytes()),
    };
    secrets.chain([toml]).collect()
}

/// Makes all of them, and takes them away again if one cannot be made.
fn write(files: &[New]) -> Result<(), ImportError> {
    let made = |file: &New| {
        let mut open = OpenOptions::new();
        let open = open.write(true).create_new(true).mode(file.mode);
        open.open(&file.path)?.write_all(&file.content)
    };
    for (i, file) in files.iter().enumerate() {
        let Err(source) = made(file) else { continue };
        let in_the_way = source.kind() == io::ErrorKind::AlreadyExists;
        for ours in files.iter().take(if in_the_way { i } else { i + 1 }) {
            let _ = fs::remove_file(&ours.path);
        }
        let path = file.path.clone();
        return Err(match in_the_way {
            true => ImportError::InTheWay(path),
            false => ImportError::Write { path, source },
        });
    }
    Ok(())
}
