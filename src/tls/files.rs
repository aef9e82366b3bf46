//! Keys and certificates on disk: who may read them, and how a new key gets there.

use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use zeroize::Zeroizing;

use super::MEMBER_KEY_FILE;
use crate::code::{Code, Coded};
use crate::privilege::give_to_owner_of;

/// Name of the frontend's own key in its state directory.
pub const KEY_FILE: &str = "frontend-key.pem";

/// Largest certificate or key file that is read, in bytes. A system's whole bundle of roots has about 220 KiB.
const MAX_PEM: u64 = 4 << 20;

/// Why a key or certificate file cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{}: {problem}", path.display())]
pub struct FileError {
    /// The file or directory in question.
    pub path: PathBuf,
    /// What is wrong with it, and what to do.
    pub problem: FileProblem,
}

impl Coded for FileError {
    fn code(&self) -> Code {
        match self.path.file_name() {
            Some(name) if name == KEY_FILE || name == MEMBER_KEY_FILE => Code::OwnKeyUnusable,
            _ => Code::CertificateUnusable,
        }
    }
}

/// What is wrong with a key or certificate file.
#[derive(Debug, thiserror::Error)]
pub enum FileProblem {
    /// The system says no.
    #[error("{0}; check the path, and that this user may use it")]
    Io(io::Error),
    /// Others could have read, or replaced, the key.
    #[error("others may read or change it (mode {mode:03o}); run chmod {wanted} on it")]
    Permissions {
        /// What it is.
        mode: u32,
        /// What to make of it.
        wanted: &'static str,
    },
    /// Not a plain file.
    #[error("it is no regular file; give the path of one")]
    NotAFile,
    /// Over the limit.
    #[error("it is too large for a key or certificate; give a PEM file")]
    TooLarge,
    /// Not what it should be. A key is never replaced silently: backends have pinned it.
    #[error(
        "it holds no usable {what}; restore it from a backup, or move it away to begin with a new one"
    )]
    Corrupt {
        /// "private key" or "certificate".
        what: &'static str,
    },
    /// The certificate is for another key, or for an algorithm we lack.
    #[error("certificate and key do not fit together: {0}; give the two that were issued together")]
    Mismatch(String),
    /// No chain, or one that does not parse.
    #[error(
        "it holds no certificate that can be read; give a PEM file with the whole chain, the server's \
         own first (certbot calls it fullchain.pem)"
    )]
    NoChain,
    /// No private key, or one that does not parse.
    #[error(
        "it holds no private key that can be read; give the PEM file with the certificate's key, \
         without a passphrase (certbot calls it privkey.pem)"
    )]
    NoKey,
    /// The key of some other certificate.
    #[error(
        "the key is not this certificate's; give the two that were issued together, as `cert` and `key`"
    )]
    OtherKey,
    /// A certificate without a DNS name is of no use for finding anything.
    #[error("this certificate names no host; have one issued for the frontend's DNS name")]
    Nameless,
}

/// Who may read a key file.
#[derive(Clone, Copy)]
pub(super) enum Secrecy {
    OwnerOnly,
    OwnerAndGroup,
}

impl Secrecy {
    /// The mode bits that must not be set, and the mode to recommend.
    fn rule(self) -> (u32, &'static str) {
        match self {
            Self::OwnerOnly => (0o077, "600"),
            Self::OwnerAndGroup => (0o037, "640"),
        }
    }
}

pub(super) fn fail(path: &Path, problem: FileProblem) -> FileError {
    FileError {
        path: path.to_owned(),
        problem,
    }
}

/// Reads an opened file up to [`MAX_PEM`].
fn read_bounded(file: &fs::File, path: &Path) -> Result<Zeroizing<Vec<u8>>, FileError> {
    // Room for all of it from the start: a vector that grows leaves copies of the key behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(16 << 10));
    let read = file.take(MAX_PEM + 1).read_to_end(&mut bytes);
    match read.map_err(|e| fail(path, FileProblem::Io(e)))? {
        n if n as u64 > MAX_PEM => Err(fail(path, FileProblem::TooLarge)),
        _ => Ok(bytes),
    }
}

/// Reads a key after looking at who else could have.
pub(super) fn read_secret(path: &Path, secrecy: Secrecy) -> Result<Zeroizing<Vec<u8>>, FileError> {
    let file = fs::File::open(path).map_err(|e| fail(path, FileProblem::Io(e)))?;
    // Asked of the open file, so that it cannot be exchanged in between.
    let meta = file
        .metadata()
        .map_err(|e| fail(path, FileProblem::Io(e)))?;
    if !meta.is_file() {
        return Err(fail(path, FileProblem::NotAFile));
    }
    let (forbidden, wanted) = secrecy.rule();
    let mode = meta.mode() & 0o777;
    if mode & forbidden != 0 {
        return Err(fail(path, FileProblem::Permissions { mode, wanted }));
    }
    read_bounded(&file, path)
}

pub(super) fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, FileError> {
    let file = fs::File::open(path).map_err(|e| fail(path, FileProblem::Io(e)))?;
    let pem = read_bounded(&file, path)?;
    let certs: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    match certs {
        Ok(certs) if !certs.is_empty() => Ok(certs),
        _ => Err(fail(
            path,
            FileProblem::Corrupt {
                what: "certificate",
            },
        )),
    }
}

/// Reads a text that only its owner may read.
pub(crate) fn secret_text(path: &Path) -> Result<Zeroizing<Vec<u8>>, FileError> {
    read_secret(path, Secrecy::OwnerOnly)
}

/// Puts a file that only its owner may read into a directory of which the same is true, whole or not at
/// all, in the place of an older one if there is one.
pub(crate) fn put_secret(dir: &Path, name: &str, bytes: &[u8]) -> Result<(), FileError> {
    let path = dir.join(name);
    let io = |e: io::Error| fail(&path, FileProblem::Io(e));
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(|e| fail(dir, FileProblem::Io(e)))?;
    let draft = dir.join(format!(".{name}.{}", std::process::id()));
    let _ = fs::remove_file(&draft);
    let placed = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&draft)
        .and_then(|mut file| {
            give_to_owner_of(dir, &file)?;
            file.write_all(bytes)?;
            file.sync_all()
        })
        .and_then(|()| fs::rename(&draft, &path))
        .and_then(|()| settle(dir));
    if placed.is_err() {
        let _ = fs::remove_file(&draft);
    }
    placed.map_err(io)
}

/// Has the disk keep what stands in a directory: a key that is gone after a power failure would be made anew.
fn settle(dir: &Path) -> io::Result<()> {
    fs::File::open(dir)?.sync_all()
}

/// Makes a P-256 key and puts it in place whole or not at all.
pub(super) fn create_key(dir: &Path, path: &Path) -> Result<(), FileError> {
    let io = |e: io::Error| fail(path, FileProblem::Io(e));
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(|e| fail(dir, FileProblem::Io(e)))?;
    let mode = fs::metadata(dir)
        .map_err(|e| fail(dir, FileProblem::Io(e)))?
        .permissions()
        .mode()
        & 0o777;
    if mode & 0o022 != 0 {
        return Err(fail(
            dir,
            FileProblem::Permissions {
                mode,
                wanted: "700",
            },
        ));
    }
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)
        .map_err(|e| fail(path, FileProblem::Mismatch(e.to_string())))?;
    let pem = Zeroizing::new(key.serialize_pem());
    let draft = dir.join(format!(".{KEY_FILE}.{}", std::process::id()));
    let written = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&draft)
        .and_then(|mut file| {
            give_to_owner_of(dir, &file)?;
            file.write_all(pem.as_bytes())?;
            file.sync_all()
        });
    // A link, unlike a rename, does not replace the key of a process that was faster.
    let placed = written.and_then(|()| match fs::hard_link(&draft, path) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other.and_then(|()| settle(dir)),
    });
    let _ = fs::remove_file(&draft);
    placed.map_err(io)
}
