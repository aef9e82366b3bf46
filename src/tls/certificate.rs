//! A certificate that an authority has signed, and its key.
//!
//! It stands beside the frontend's own key, which backends pin. Whoever shows up without a pin is
//! shown the one for the name that it asks for: a kite that checks certificates, pagekite.py, a browser.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use sha2::{Digest, Sha256};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::server::TlsStream;

use super::files::{FileError, FileProblem, Secrecy, fail, read_certificates, read_secret};
use super::x509::{self, Contents};
use super::{TUNNEL_ALPN, TlsError, accept, server_config};
use crate::kite::KiteName;

/// What is spoken inside besides tunnels. HTTP/2 is not: a frontend reads request heads as text.
const HTTP_ALPN: &[u8] = b"http/1.1";
/// An end that is so near is worth a warning.
const SOON: Duration = Duration::from_secs(7 * DAY);
const DAY: u64 = 24 * 3600;

/// A chain and its key, ready to be shown.
pub struct Certificate {
    config: Arc<ServerConfig>,
    names: Vec<KiteName>,
    from: SystemTime,
    until: SystemTime,
    digest: [u8; 32],
}

impl Certificate {
    /// Reads a chain, leaf first, and its key, both PEM. They may be in one file, in any order.
    ///
    /// The key's group may read it (as with Debian's `ssl-cert`), others may not.
    pub fn load(cert: &Path, key: &Path) -> Result<Self, FileError> {
        let chain = read_certificates(cert).map_err(|e| match e.problem {
            FileProblem::Corrupt { .. } => fail(cert, FileProblem::NoChain),
            _ => e,
        })?;
        let pem = read_secret(key, Secrecy::OwnerAndGroup)?;
        let secret =
            PrivateKeyDer::from_pem_slice(&pem).map_err(|_| fail(key, FileProblem::NoKey))?;
        Self::new(chain, secret).map_err(|problem| fail(cert, problem))
    }

    fn new(
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
    ) -> Result<Self, FileProblem> {
        let leaf = chain.first().cloned().ok_or(FileProblem::NoChain)?;
        let Contents { names, from, until } = x509::contents(&leaf).ok_or(FileProblem::NoChain)?;
        if names.is_empty() {
            return Err(FileProblem::Nameless);
        }
        let config = server_config(chain, key, &[TUNNEL_ALPN, HTTP_ALPN]).map_err(|e| match e {
            rustls::Error::InconsistentKeys(_) => FileProblem::OtherKey,
            e => FileProblem::Mismatch(e.to_string()),
        })?;
        Ok(Self {
            config,
            names,
            from,
            until,
            digest: Sha256::digest(&leaf).into(),
        })
    }

    /// The names that it is for; some may be wildcards. Never empty.
    pub fn names(&self) -> &[KiteName] {
        &self.names
    }

    /// Is it for this very name? A wildcard's own text counts.
    pub fn names_exactly(&self, name: &KiteName) -> bool {
        self.names.contains(name)
    }

    /// Is it for this name? A certificate's wildcard stands for one label (RFC 9525 §6.3).
    pub fn covers(&self, name: &KiteName) -> bool {
        let wildcard = || name.wildcards().next();
        self.names_exactly(name)
            || wildcard().is_some_and(|w| self.names.iter().any(|n| n.as_str() == w))
    }

    /// When it begins and ends to be valid.
    pub fn validity(&self) -> (SystemTime, SystemTime) {
        (self.from, self.until)
    }

    /// The SHA-256 of the leaf.
    pub fn digest(&self) -> &[u8; 32] {
        &self.digest
    }

    /// What clients will have against its dates, or soon will; in words.
    pub fn complaint(&self, now: SystemTime) -> Option<String> {
        let days = |time: Duration| time.as_secs() / DAY;
        if let Ok(ago) = now.duration_since(self.until) {
            return Some(format!(
                "it expired {} days ago; put a new one in its place",
                days(ago)
            ));
        }
        if let Ok(early) = self.from.duration_since(now) {
            return Some(format!(
                "it is not valid for another {} s; check this machine's clock",
                early.as_secs()
            ));
        }
        let left = self.until.duration_since(now).unwrap_or_default();
        let whole = self.until.duration_since(self.from).unwrap_or_default();
        // One that never lives longer is renewed by a program.
        (left < SOON && whole > 2 * SOON).then(|| {
            format!(
                "it expires in {} days; put a new one in its place before then",
                days(left)
            )
        })
    }

    /// Takes a handshake, within [`TLS_TIMEOUT`](super::TLS_TIMEOUT). A client that offers protocols
    /// must offer [`TUNNEL_ALPN`] or `http/1.1`.
    pub async fn accept<S>(&self, conn: S) -> Result<TlsStream<S>, TlsError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        accept(&self.config, conn).await
    }
}

impl std::fmt::Debug for Certificate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Certificate")
            .field("names", &self.names)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dial::target::FrontendAddr;
    use crate::tls::{TlsClient, TlsServer};
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::path::PathBuf;
    use tokio::io::DuplexStream;
    use tokio_rustls::client;

    struct Files {
        dir: tempfile::TempDir,
        cert: PathBuf,
        key: PathBuf,
    }

    fn chmod(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("chmod");
    }

    /// A self-signed certificate in files, made to taste.
    fn made(names: &[&str], change: impl FnOnce(&mut rcgen::CertificateParams)) -> Files {
        let dir = tempfile::tempdir().expect("a directory");
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).expect("key");
        let names: Vec<String> = names.iter().map(|n| (*n).to_owned()).collect();
        let mut params = rcgen::CertificateParams::new(names).expect("names");
        params.not_before = rcgen::date_time_ymd(2020, 1, 1);
        change(&mut params);
        let cert = params.self_signed(&key).expect("a certificate");
        let files = Files {
            cert: dir.path().join("cert.pem"),
            key: dir.path().join("key.pem"),
            dir,
        };
        fs::write(&files.cert, cert.pem()).expect("write");
        fs::write(&files.key, key.serialize_pem()).expect("write");
        chmod(&files.key, 0o640);
        files
    }

    impl Files {
        fn load(&self) -> Result<Certificate, FileError> {
            Certificate::load(&self.cert, &self.key)
        }

        fn error(&self) -> String {
            self.load().expect_err("not usable").to_string()
        }
    }

    async fn meet(
        server: &Certificate,
        client: &TlsClient,
        to: &str,
    ) -> (
        Result<client::TlsStream<DuplexStream>, TlsError>,
        Result<TlsStream<DuplexStream>, TlsError>,
    ) {
        let (near, far) = tokio::io::duplex(1 << 16);
        let to: FrontendAddr = to.parse().expect("an address");
        tokio::join!(client.secure(near, &to), server.accept(far))
    }

    #[test]
    fn names_come_from_the_certificate() {
        let files = made(&["fe.example", "*.Alice.example"], |_| {});
        let cert = files.load().expect("usable");
        let covers = |name: &str| cert.covers(&name.parse().expect("a name"));
        assert!(covers("fe.example") && covers("bob.alice.example"));
        assert!(covers("*.alice.example"));
        assert!(!covers("deep.bob.alice.example") && !covers("alice.example"));
        assert!(!covers("sub.fe.example"));
        let old = made(&[], |params| {
            let name = rcgen::DnType::CommonName;
            params.distinguished_name = rcgen::DistinguishedName::new();
            params.distinguished_name.push(name, "old.example");
        });
        let old = old.load().expect("usable");
        assert_eq!(old.names(), ["old.example".parse().expect("a name")]);
    }

    #[test]
    fn one_file_may_hold_both() {
        let files = made(&["fe.example"], |_| {});
        let read = |path| fs::read_to_string(path).expect("read");
        let both = files.dir.path().join("both.pem");
        fs::write(&both, read(&files.key) + &read(&files.cert)).expect("write");
        chmod(&both, 0o600);
        assert!(Certificate::load(&both, &both).is_ok());
        chmod(&both, 0o644);
        let e = Certificate::load(&both, &both).expect_err("the key is public");
        assert!(e.to_string().contains("chmod 640"), "{e}");
    }

    #[test]
    fn what_is_wrong_with_files_is_said_with_a_remedy() {
        let files = made(&["fe.example"], |_| {});
        fs::write(
            &files.cert,
            "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
        )
        .expect("write");
        assert!(files.error().contains("fullchain.pem"), "{}", files.error());
        fs::write(&files.cert, "").expect("write");
        assert!(files.error().contains("fullchain.pem"), "{}", files.error());
        fs::remove_file(&files.cert).expect("remove");
        assert!(files.error().contains("cert.pem"), "{}", files.error());

        let files = made(&["fe.example"], |_| {});
        fs::write(&files.key, "no key").expect("write");
        assert!(files.error().contains("privkey.pem"), "{}", files.error());

        let (ours, theirs) = (made(&["a.example"], |_| {}), made(&["a.example"], |_| {}));
        let e = Certificate::load(&ours.cert, &theirs.key).expect_err("another's key");
        assert!(e.to_string().contains("issued together"), "{e}");

        let nameless = made(&["192.0.2.1"], |params| {
            params.distinguished_name = rcgen::DistinguishedName::new();
        });
        assert!(
            nameless.error().contains("names no host"),
            "{}",
            nameless.error()
        );
    }

    #[test]
    fn dates_are_complained_of() {
        let at = |day: u64| SystemTime::UNIX_EPOCH + Duration::from_secs(day * DAY);
        // From day 18,262 to day 18,352.
        let cert = made(&["a.example"], |params| {
            params.not_after = rcgen::date_time_ymd(2020, 3, 31);
        });
        let cert = cert.load().expect("usable");
        assert_eq!(cert.validity(), (at(18_262), at(18_352)));
        assert_eq!(cert.complaint(at(18_300)), None);
        let said = |day| cert.complaint(at(day)).expect("a complaint");
        assert!(said(18_347).contains("expires in 5 days"));
        assert!(said(18_355).contains("expired 3 days ago"));
        assert!(said(18_261).contains("clock"));
    }

    #[tokio::test]
    async fn roots_verify_names_and_refuse_strangers() {
        let files = made(&["alice.example"], |_| {});
        let server = files.load().expect("a certificate");
        let trusting = TlsClient::new(Some(&files.cert)).expect("roots");
        let (c, s) = meet(&server, &trusting, "alice.example:443").await;
        let (c, s) = (c.expect("client"), s.expect("server"));
        let group = c.get_ref().1.negotiated_key_exchange_group();
        assert_eq!(group.map(|g| g.name()), Some(rustls::NamedGroup::X25519));
        // A proof can be bound to this session as to a pinned one.
        let ours = crate::tls::binding(c.get_ref().1);
        assert!(ours.is_some());
        assert_eq!(ours, crate::tls::binding(s.get_ref().1));
        let (c, _) = meet(&server, &trusting, "bob.example:443").await;
        assert!(matches!(c, Err(TlsError::BadCertificate { .. })));
        let strict = TlsClient::new(None).expect("roots");
        let (c, _) = meet(&server, &strict, "alice.example:443").await;
        assert!(matches!(c, Err(TlsError::BadCertificate { .. })));
        // The frontend's own key convinces nobody who wants a certificate.
        let own = TlsServer::load_or_create(files.dir.path()).expect("a key");
        let (near, far) = tokio::io::duplex(1 << 16);
        let to: FrontendAddr = "alice.example:443".parse().expect("an address");
        let (c, _) = tokio::join!(trusting.secure(near, &to), own.accept(far));
        assert!(matches!(c, Err(TlsError::BadCertificate { .. })));
    }
}
