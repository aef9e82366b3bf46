//! The certificates that a frontend holds, found by name, and read again when their files change.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant, SystemTime};

use tokio::time::sleep;

use super::registry::EndTls;
use crate::code::Code;
use crate::config::CertificateFiles;
use crate::kite::KiteName;
use crate::tls::{Certificate, FileError};

/// How often the files are looked at. A look is a question to the file system about each.
pub const LOOK: Duration = Duration::from_secs(5);
/// How often dates are complained of.
const REMINDER: Duration = Duration::from_secs(24 * 3600);

/// All that are held, in the order of the configuration.
pub(super) struct Certificates {
    held: RwLock<Vec<Arc<Held>>>,
    /// What is known of the files of each.
    watched: Mutex<Vec<Watched>>,
}

/// The files of a certificate, as they were when they were read.
struct Watched {
    taken: Stamp,
    /// As they are now, and of no use; perhaps because they are being written.
    doubt: Option<Stamp>,
}

/// Tells one state of a certificate's two files from every other.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Stamp([Option<FileStamp>; 2]);

/// Device, inode, time of the last change to the second and below, and size.
type FileStamp = (u64, u64, i64, i64, u64);

impl Stamp {
    fn of(files: &CertificateFiles) -> Self {
        let one = |path: &Path| {
            let meta = fs::metadata(path).ok()?;
            // The time of change cannot be set back, unlike that of modification.
            Some((
                meta.dev(),
                meta.ino(),
                meta.ctime(),
                meta.ctime_nsec(),
                meta.size(),
            ))
        };
        Self([one(&files.cert), one(&files.key)])
    }
}

/// One that is held.
pub(super) struct Held {
    /// The certificate itself.
    pub(super) certificate: Certificate,
    files: CertificateFiles,
}

impl Held {
    fn load(files: CertificateFiles) -> Result<Self, FileError> {
        let certificate = Certificate::load(&files.cert, &files.key)?;
        Ok(Self { certificate, files })
    }

    /// Is TLS to be ended for a kite whose backend has this to say about it?
    pub(super) fn ends(&self, wish: EndTls) -> bool {
        match wish {
            EndTls::Asked => true,
            EndTls::Unsaid => self.files.endpoints,
            EndTls::No => false,
        }
    }

    /// Are visitors in the clear to be sent to https?
    pub(super) fn redirects(&self) -> bool {
        self.files.redirect
    }

    /// Says what it is for, and what is the matter with its dates.
    pub(super) fn announce(&self) {
        let names: Vec<_> = self
            .certificate
            .names()
            .iter()
            .map(|n| n.as_str())
            .collect();
        let shown = self.files.cert.display();
        tracing::info!("certificate {shown}: {}", names.join(", "));
        self.complain();
    }

    fn complain(&self) {
        if let Some(why) = self.certificate.complaint(SystemTime::now()) {
            tracing::warn!(
                "[{}] certificate {}: {why}",
                Code::CertificateDates,
                self.files.cert.display()
            );
        }
    }
}

impl Certificates {
    /// Reads all of them; one that cannot be used is an error.
    pub(super) fn load(all: Vec<CertificateFiles>) -> Result<Self, FileError> {
        let mut held = Vec::new();
        let mut watched = Vec::new();
        for files in all {
            // Before they are read: what changes meanwhile is seen at the next look.
            watched.push(Watched {
                taken: Stamp::of(&files),
                doubt: None,
            });
            held.push(Arc::new(Held::load(files)?));
        }
        Ok(Self {
            held: RwLock::new(held),
            watched: Mutex::new(watched),
        })
    }

    /// From now on it is these that are in the configuration; if one cannot be used, it is what it was.
    pub(super) fn turn_to(&self, all: Vec<CertificateFiles>) -> Result<(), FileError> {
        let new = Self::load(all)?;
        let mut watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        let mut held = self.held.write().unwrap_or_else(PoisonError::into_inner);
        // Behind those of the configuration are those of an authority.
        let configured = watched.len().min(held.len());
        let issued = held.split_off(configured);
        *held = new
            .held
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner);
        held.extend(issued);
        *watched = new
            .watched
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner);
        Ok(())
    }

    /// Looks at the files of all, and takes those that have changed. Files that are of no use, twice in
    /// a row, are complained of once, and what was held before stays.
    fn look(&self) {
        let mut watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        for (i, watched) in watched.iter_mut().enumerate() {
            let Some(old) = self.all().get(i).cloned() else {
                continue;
            };
            let now = Stamp::of(&old.files);
            if now == watched.taken {
                watched.doubt = None;
                continue;
            }
            match Held::load(old.files.clone()) {
                Ok(new) => {
                    watched.taken = now;
                    watched.doubt = None;
                    if new.certificate.digest() == old.certificate.digest() {
                        continue;
                    }
                    tracing::info!("certificate {}: taken anew", old.files.cert.display());
                    new.announce();
                    let mut held = self.held.write().unwrap_or_else(PoisonError::into_inner);
                    if let Some(place) = held.get_mut(i) {
                        *place = Arc::new(new);
                    }
                }
                Err(e) if watched.doubt.as_ref() == Some(&now) => {
                    tracing::error!(
                        "[{}] {e}; the certificate that was there before stays in use",
                        Code::CertificateUnusable
                    );
                    watched.taken = now;
                    watched.doubt = None;
                }
                Err(_) => watched.doubt = Some(now),
            }
        }
    }

    /// Complains of dates.
    fn remind(&self) {
        self.all().iter().for_each(|held| held.complain());
    }

    /// Reads one that is not in the configuration, and puts it in the place of what was in these files before.
    pub(super) fn put(&self, files: CertificateFiles) -> Result<(), FileError> {
        let new = Arc::new(Held::load(files)?);
        let mut held = self.held.write().unwrap_or_else(PoisonError::into_inner);
        match held.iter_mut().find(|old| old.files.cert == new.files.cert) {
            Some(old) => *old = new,
            // Behind those of the configuration, which are found by their place.
            None => held.push(new),
        }
        Ok(())
    }

    /// What is held of these files.
    pub(super) fn of(&self, files: &CertificateFiles) -> Option<Arc<Held>> {
        let all = self.all();
        all.iter()
            .find(|held| held.files.cert == files.cert)
            .cloned()
    }

    /// Says which there are.
    pub(super) fn announce(&self) {
        self.all().iter().for_each(|held| held.announce());
    }

    /// The one for a name: the first that has it in full, else the first with a wildcard for it.
    pub(super) fn find(&self, name: &KiteName) -> Option<Arc<Held>> {
        let all = self.all();
        let exact = all.iter().find(|h| h.certificate.names_exactly(name));
        exact
            .or_else(|| all.iter().find(|h| h.certificate.covers(name)))
            .cloned()
    }

    /// The one for whoever names nobody: the one that is marked, else the first.
    pub(super) fn default(&self) -> Option<Arc<Held>> {
        let all = self.all();
        let marked = all.iter().find(|h| h.files.default);
        marked.or(all.first()).cloned()
    }

    fn all(&self) -> Vec<Arc<Held>> {
        self.held
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

/// Takes new certificates as they come, for ever. Nobody waits for it.
pub(super) async fn keep_fresh(certificates: Arc<Certificates>) {
    let mut reminded = Instant::now();
    loop {
        sleep(LOOK).await;
        let due = reminded.elapsed() >= REMINDER;
        if due {
            reminded = Instant::now();
        }
        let certificates = certificates.clone();
        // A file system may take its time.
        let look = tokio::task::spawn_blocking(move || {
            certificates.look();
            if due {
                certificates.remind();
            }
        });
        let _ = look.await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn files(dir: &Path) -> CertificateFiles {
        CertificateFiles {
            cert: dir.join("cert.pem"),
            key: dir.join("key.pem"),
            default: false,
            endpoints: false,
            redirect: false,
        }
    }

    /// Puts a new certificate there; its digest.
    fn put(files: &CertificateFiles, name: &str) -> [u8; 32] {
        let key = rcgen::KeyPair::generate().expect("a key");
        let cert = rcgen::CertificateParams::new(vec![name.to_owned()])
            .and_then(|params| params.self_signed(&key))
            .expect("a certificate");
        fs::write(&files.cert, cert.pem()).expect("write");
        fs::write(&files.key, key.serialize_pem()).expect("write");
        fs::set_permissions(&files.key, fs::Permissions::from_mode(0o600)).expect("chmod");
        use sha2::Digest;
        sha2::Sha256::digest(cert.der()).into()
    }

    fn held(certificates: &Certificates, name: &str) -> Option<[u8; 32]> {
        let held = certificates.find(&name.parse().expect("a name"))?;
        Some(*held.certificate.digest())
    }

    #[test]
    fn what_has_changed_is_taken_and_what_is_broken_is_not() {
        let dir = tempfile::tempdir().expect("a directory");
        let files = files(dir.path());
        let first = put(&files, "a.example");
        let certificates = Certificates::load(vec![files.clone()]).expect("usable");
        certificates.look();
        assert_eq!(held(&certificates, "a.example"), Some(first));

        let second = put(&files, "a.example");
        certificates.look();
        assert_eq!(held(&certificates, "a.example"), Some(second));

        // Half written, another's key, gone: the old one stays, and the next good one is taken.
        let key = fs::read(&files.key).expect("read");
        fs::write(&files.cert, "half").expect("write");
        (0..3).for_each(|_| certificates.look());
        assert_eq!(held(&certificates, "a.example"), Some(second));
        let third = put(&files, "a.example");
        let good = fs::read(&files.key).expect("read");
        fs::write(&files.key, key).expect("write");
        (0..3).for_each(|_| certificates.look());
        assert_eq!(held(&certificates, "a.example"), Some(second));
        fs::remove_file(&files.key).expect("remove");
        (0..3).for_each(|_| certificates.look());
        assert_eq!(held(&certificates, "a.example"), Some(second));
        fs::write(&files.key, good).expect("write");
        fs::set_permissions(&files.key, fs::Permissions::from_mode(0o600)).expect("chmod");
        certificates.look();
        assert_eq!(held(&certificates, "a.example"), Some(third));

        // Another name in the same place.
        let other = put(&files, "b.example");
        certificates.look();
        assert_eq!(held(&certificates, "a.example"), None);
        assert_eq!(held(&certificates, "b.example"), Some(other));
    }

    #[test]
    fn the_default_is_the_marked_one_or_the_first() {
        let (one, two) = (tempfile::tempdir(), tempfile::tempdir());
        let (one, two) = (one.expect("a directory"), two.expect("a directory"));
        let (one, mut two) = (files(one.path()), files(two.path()));
        let (first, second) = (put(&one, "a.example"), put(&two, "*.a.example"));
        let digest = |certificates: &Certificates| {
            certificates
                .default()
                .map(|held| *held.certificate.digest())
        };
        let both = Certificates::load(vec![one.clone(), two.clone()]).expect("usable");
        assert_eq!(digest(&both), Some(first));
        assert_eq!(held(&both, "b.a.example"), Some(second));
        two.default = true;
        let both = Certificates::load(vec![one, two]).expect("usable");
        assert_eq!(digest(&both), Some(second));
        let none = Certificates::load(Vec::new()).expect("nothing to read");
        assert_eq!(digest(&none), None);
    }
}
