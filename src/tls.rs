//! TLS for the tunnel hop: who a frontend is, and how it says so.
//!
//! A backend either trusts the web's roots or, better, one public key: the
//! [`Pin`], which the frontend prints when it first starts, the way a FURL
//! carries the hash of a tub. Nothing here asks the operating system for roots
//! or revocation lists, because on some systems that opens connections of its own.
//!
//! Every client hello offers [`TUNNEL_ALPN`], so that a frontend can tell its own
//! tunnels from visitors by the first flight, whatever the server name says. One that knows no
//! pin offers [`CERTIFIED_ALPN`] beside it: a frontend may have its own key ([`TlsServer`]) and
//! certificates of an authority ([`Certificate`]) for one and the same name.
//!
//! Both ends name their cryptography provider (aws-lc-rs) themselves. Arti does
//! not: `main` and tests must call
//! `rustls::crypto::aws_lc_rs::default_provider().install_default()` first thing.

mod certificate;
mod challenge;
mod files;
mod member;
mod private;
pub(crate) mod x509;

use std::fmt;
use std::fs;
use std::io;
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use data_encoding::{BASE64URL_NOPAD, HEXLOWER_PERMISSIVE};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, OtherError, RootCertStore, ServerConfig,
    SignatureScheme,
};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};

pub use self::certificate::Certificate;
pub use self::challenge::Challenge;
pub use self::files::{FileError, FileProblem, KEY_FILE};
use self::files::{Secrecy, create_key, fail, read_certificates, read_secret};
pub(crate) use self::files::{put_secret, secret_text};
pub use self::member::{Known, MEMBER_KEY_FILE, MemberTls, Purpose};
pub use self::private::{Identity, PrivateClient};
use crate::code::{Code, Coded};
use crate::dial::target::{FrontendAddr, Trust};
use crate::plain::plain;
use crate::wire::proof::{Binding, EXPORTER_LABEL, EXPORTER_LEN};

pub use crate::sniff::{ACME_ALPN, CERTIFIED_ALPN, TUNNEL_ALPN};

/// Longest wait for a whole TLS handshake. Over Tor it takes two round trips of up to some seconds.
pub const TLS_TIMEOUT: Duration = Duration::from_secs(30);
/// What is shown of a reason, in letters.
const MAX_REASON: usize = 200;

/// The SHA-256 of a certificate's SubjectPublicKeyInfo in DER (as in RFC 7469 §2.4).
///
/// Written `sha256:` and base64url without padding (43 letters); ordinary base64
/// and hexadecimal are read too.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Pin([u8; 32]);

/// Why a text is no pin.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PinError {
    /// Does not begin with `sha256:`.
    #[error(
        "a pin begins with 'sha256:'; copy it from the address that the frontend prints at start"
    )]
    Algorithm,
    /// Not 32 bytes in any of the accepted spellings.
    #[error(
        "a pin has 43 letters of base64url, or 64 of hexadecimal, after 'sha256:'; \
         copy it from the address that the frontend prints at start"
    )]
    Digest,
}

impl Pin {
    /// The pin of a certificate, by its public key.
    fn of_certificate(cert: &CertificateDer<'_>) -> Result<Self, rustls::Error> {
        let spki = ParsedCertificate::try_from(cert)?.subject_public_key_info();
        Ok(Self(Sha256::digest(spki.as_ref()).into()))
    }
}

impl FromStr for Pin {
    type Err = PinError;

    fn from_str(text: &str) -> Result<Self, PinError> {
        let digits = text.strip_prefix("sha256:").ok_or(PinError::Algorithm)?;
        let bytes = if digits.len() == 64 {
            HEXLOWER_PERMISSIVE.decode(digits.as_bytes())
        } else {
            let url = digits
                .trim_end_matches('=')
                .replace('+', "-")
                .replace('/', "_");
            BASE64URL_NOPAD.decode(url.as_bytes())
        };
        let bytes = bytes.map_err(|_| PinError::Digest)?;
        bytes.try_into().map(Self).map_err(|_| PinError::Digest)
    }
}

impl fmt::Display for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", BASE64URL_NOPAD.encode(&self.0))
    }
}

impl fmt::Debug for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Why a TLS handshake failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TlsError {
    /// The frontend has another key than the one pinned, or somebody is in the middle.
    #[error("the frontend's key is {found}, but {expected} was pinned")]
    WrongPin {
        /// What the address says.
        expected: Pin,
        /// What the peer showed.
        found: Pin,
    },
    /// The certificate does not convince us.
    #[error("the frontend's certificate was refused: {reason}")]
    BadCertificate {
        /// rustls's words.
        reason: String,
    },
    /// The first bytes were no TLS at all.
    #[error("the peer does not speak TLS on this port")]
    NotTls,
    /// The peer hung up during the handshake.
    #[error("the connection ended during the TLS handshake")]
    Closed,
    /// Nothing, or too little, came within [`TLS_TIMEOUT`].
    #[error("the TLS handshake took longer than {} s", TLS_TIMEOUT.as_secs())]
    TimedOut,
    /// The address has no name that TLS could verify.
    #[error("the frontend's host is no name that a certificate can hold")]
    NoName,
    /// Anything else that TLS dislikes.
    #[error("the TLS handshake failed: {reason}")]
    Handshake {
        /// rustls's words.
        reason: String,
    },
}

impl Coded for TlsError {
    fn code(&self) -> Code {
        match self {
            Self::WrongPin { .. } => Code::WrongPin,
            Self::BadCertificate { .. } | Self::NoName => Code::FrontendUnproven,
            Self::NotTls | Self::Closed | Self::TimedOut | Self::Handshake { .. } => {
                Code::TlsFailed
            }
        }
    }
}

impl TlsError {
    /// What the user can do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::WrongPin { .. } => {
                "ask the frontend's operator, over another channel, for its current address; do not use the found key unasked"
            }
            Self::BadCertificate { .. } => {
                "pin the frontend's key by adding #sha256:… to its address (its operator sees the whole address at start)"
            }
            Self::NotTls => {
                "check the port; an old PageKite frontend without TLS must be written plain://host:port"
            }
            Self::Closed => "check that the port is the frontend's tunnel port, and its log",
            Self::TimedOut => {
                "kite tries again; if it persists, look at the frontend's load and log"
            }
            Self::NoName => "use a DNS name, or pin the frontend's key by adding #sha256:…",
            Self::Handshake { .. } => "check that the frontend offers TLS 1.3 (a pinned one must)",
        }
    }

    /// Finds out what a handshake's I/O error means.
    fn from_io(error: &io::Error, expected: Option<Pin>) -> Self {
        let Some(tls) = error
            .get_ref()
            .and_then(|inner| inner.downcast_ref::<rustls::Error>())
        else {
            return match error.kind() {
                io::ErrorKind::TimedOut => Self::TimedOut,
                _ => Self::Closed,
            };
        };
        match tls {
            rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(inner))) => {
                match (inner.downcast_ref::<Mismatch>(), expected) {
                    (Some(Mismatch(found)), Some(expected)) => Self::WrongPin {
                        expected,
                        found: *found,
                    },
                    _ => Self::BadCertificate {
                        reason: plain(&inner.to_string(), MAX_REASON),
                    },
                }
            }
            // It may hold the names that the peer's certificate is for.
            rustls::Error::InvalidCertificate(reason) => Self::BadCertificate {
                reason: plain(&reason.to_string(), MAX_REASON),
            },
            rustls::Error::InvalidMessage(_) => Self::NotTls,
            other => Self::Handshake {
                reason: plain(&other.to_string(), MAX_REASON),
            },
        }
    }
}

/// The backend's side of the tunnel hop. Cheap to clone.
#[derive(Clone)]
pub struct TlsClient {
    roots: Arc<ClientConfig>,
    /// What `roots` verifies with, for configurations that expect another name than the host's.
    verifier: Arc<WebPkiServerVerifier>,
}

impl TlsClient {
    /// Takes the web's roots as compiled in, and those in a PEM file if one is given.
    pub fn new(extra_ca_file: Option<&Path>) -> Result<Self, FileError> {
        let (config, verifier) = trusting(extra_ca_file, classical())?;
        let mut config = unlinkable(config);
        config.alpn_protocols.push(CERTIFIED_ALPN.to_vec());
        Ok(Self {
            roots: Arc::new(config),
            verifier,
        })
    }

    /// Does what the address demands over a fresh connection, within [`TLS_TIMEOUT`].
    ///
    /// Only for [`Trust::Roots`], [`Trust::Names`] and [`Trust::Pin`]; the other two have no TLS.
    pub async fn secure<S>(
        &self,
        conn: S,
        to: &FrontendAddr,
    ) -> Result<client::TlsStream<S>, TlsError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let handshake = self.connector(to)?.connect(name_of(to)?, conn);
        within(TLS_TIMEOUT, pin_of(to), handshake).await
    }

    fn connector(&self, to: &FrontendAddr) -> Result<TlsConnector, TlsError> {
        Ok(TlsConnector::from(match to.trust() {
            Trust::Pin(pin) => pinned(*pin)?,
            Trust::Names(names) => self.named(names)?,
            Trust::Roots | Trust::Onion | Trust::Plain => Arc::clone(&self.roots),
        }))
    }

    /// As `roots`, for a certificate that is for one of these names.
    fn named(&self, names: &[Box<str>]) -> Result<Arc<ClientConfig>, TlsError> {
        let names = names.iter().map(|name| server_name(name));
        let mut config = (*self.roots).clone();
        let verifier = Arc::new(NamesVerifier {
            names: names.collect::<Result<_, _>>()?,
            inner: Arc::clone(&self.verifier),
        });
        config.dangerous().set_certificate_verifier(verifier);
        Ok(Arc::new(config))
    }
}

/// A client that takes the word of the web's roots, as compiled in, and of those in a PEM file if one is given; and what
/// judges certificates for it.
fn trusting(
    extra_ca_file: Option<&Path>,
    provider: CryptoProvider,
) -> Result<(ClientConfig, Arc<WebPkiServerVerifier>), FileError> {
    let mut store = RootCertStore {
        roots: webpki_roots::TLS_SERVER_ROOTS.to_vec(),
    };
    if let Some(path) = extra_ca_file {
        for cert in read_certificates(path)? {
            store.add(cert).map_err(|_| {
                fail(
                    path,
                    FileProblem::Corrupt {
                        what: "certificate",
                    },
                )
            })?;
        }
    }
    let provider = Arc::new(provider);
    let verifier =
        WebPkiServerVerifier::builder_with_provider(Arc::new(store), Arc::clone(&provider))
            .build()
            .map_err(|e| internal(extra_ca_file, &e))?;
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| internal(extra_ca_file, &e))?
        .dangerous()
        .with_custom_certificate_verifier(verifier.clone())
        .with_no_client_auth();
    Ok((config, verifier))
}

/// TLS to a web server, such as a certificate authority's. Cheap to clone.
#[derive(Clone)]
pub struct WebClient(Arc<ClientConfig>);

impl WebClient {
    /// Trusts the web's roots as compiled in, and those in a PEM file if one is given.
    pub fn new(extra_ca_file: Option<&Path>) -> Result<Self, FileError> {
        let (mut config, _) = trusting(extra_ca_file, modern())?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self(Arc::new(config)))
    }

    /// Makes sure that this is `host`, within [`TLS_TIMEOUT`].
    pub async fn secure<S>(&self, conn: S, host: &str) -> Result<client::TlsStream<S>, TlsError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        to_host(&self.0, conn, host).await
    }
}

/// Makes sure that this is `host`, within [`TLS_TIMEOUT`].
async fn to_host<S>(
    config: &Arc<ClientConfig>,
    conn: S,
    host: &str,
) -> Result<client::TlsStream<S>, TlsError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let name = ServerName::try_from(host.to_owned()).map_err(|_| TlsError::NoName)?;
    let handshake = TlsConnector::from(Arc::clone(config)).connect(name, conn);
    within(TLS_TIMEOUT, None, handshake).await
}

impl fmt::Debug for WebClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WebClient")
    }
}

/// What a proof on this session is bound to; the other end has the same.
///
/// TLS 1.3 only: an older session's exporter is its own only under conditions.
pub fn binding<Data>(session: &rustls::ConnectionCommon<Data>) -> Option<Binding> {
    if session.protocol_version() != Some(rustls::ProtocolVersion::TLSv1_3) {
        return None;
    }
    let exporter = session.export_keying_material([0; EXPORTER_LEN], EXPORTER_LABEL, None);
    exporter.ok().map(Binding::Tls)
}

fn pin_of(to: &FrontendAddr) -> Option<Pin> {
    match to.trust() {
        Trust::Pin(pin) => Some(*pin),
        Trust::Roots | Trust::Names(_) | Trust::Onion | Trust::Plain => None,
    }
}

/// What goes into the hello: rustls sends a name, and nothing for an address. A certificate that is for other names
/// than the host's is found by the first of them.
fn name_of(to: &FrontendAddr) -> Result<ServerName<'static>, TlsError> {
    server_name(match to.trust() {
        Trust::Names(names) => names.first().map_or(to.host(), |name| name),
        Trust::Roots | Trust::Pin(_) | Trust::Onion | Trust::Plain => to.host(),
    })
}

fn server_name(name: &str) -> Result<ServerName<'static>, TlsError> {
    ServerName::try_from(name.to_owned()).map_err(|_| TlsError::NoName)
}

/// Waits for a handshake, but not for ever.
async fn within<T>(
    limit: Duration,
    pin: Option<Pin>,
    handshake: impl Future<Output = io::Result<T>>,
) -> Result<T, TlsError> {
    match timeout(limit, handshake).await {
        Ok(done) => done.map_err(|e| TlsError::from_io(&e, pin)),
        Err(_) => Err(TlsError::TimedOut),
    }
}

impl fmt::Debug for TlsClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TlsClient")
    }
}

/// The provider for hellos that an old frontend must read. Without a post-quantum key share they fit
/// one segment; pagekite.py looks no further, and takes a longer one for a hello without a name.
fn classical() -> CryptoProvider {
    let mut provider = aws_lc_rs::default_provider();
    provider
        .kx_groups
        .retain(|group| group.name() != rustls::NamedGroup::X25519MLKEM768);
    provider
}

/// The provider among kites: the hybrid key share first, against those who store traffic today.
fn modern() -> CryptoProvider {
    let mut provider = aws_lc_rs::default_provider();
    provider
        .kx_groups
        .sort_by_key(|group| group.name() != rustls::NamedGroup::X25519MLKEM768);
    provider
}

/// The client configuration that accepts one key: TLS 1.3 and nothing older.
fn pinned(pin: Pin) -> Result<Arc<ClientConfig>, TlsError> {
    let provider = Arc::new(modern());
    let verifier = PinVerifier {
        pin,
        provider: Arc::clone(&provider),
    };
    let config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|e| TlsError::Handshake {
            reason: e.to_string(),
        })?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    Ok(Arc::new(unlinkable(config)))
}

/// What all hellos share: the protocol name, and no memory. A resumed session would show a
/// frontend, or an exit, that two circuits belong to the same backend.
fn unlinkable(mut config: ClientConfig) -> ClientConfig {
    config.alpn_protocols = vec![TUNNEL_ALPN.to_vec()];
    config.resumption = rustls::client::Resumption::disabled();
    config
}

/// Accepts the web's certificates for one of these names, whichever was asked for.
#[derive(Debug)]
struct NamesVerifier {
    names: Vec<ServerName<'static>>,
    inner: Arc<WebPkiServerVerifier>,
}

impl ServerCertVerifier for NamesVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let verify = |name: &ServerName<'_>| {
            let inner = &self.inner;
            inner.verify_server_cert(end_entity, intermediates, name, ocsp_response, now)
        };
        let good = self.names.iter().find_map(|name| verify(name).ok());
        good.map_or_else(|| verify(server_name), Ok)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

/// Accepts exactly one public key. The handshake's signature is still verified,
/// or anybody could show a copy of the right certificate.
#[derive(Debug)]
struct PinVerifier {
    pin: Pin,
    provider: Arc<CryptoProvider>,
}

/// The private message from verifier to [`TlsError::from_io`].
#[derive(Debug, thiserror::Error)]
#[error("the key is {0}")]
struct Mismatch(Pin);

impl ServerCertVerifier for PinVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let found = Pin::of_certificate(end_entity)?;
        if found.0.ct_eq(&self.pin.0).into() {
            Ok(ServerCertVerified::assertion())
        } else {
            Err(CertificateError::Other(OtherError(Arc::new(Mismatch(found)))).into())
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(
            message,
            cert,
            dss,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(
            message,
            cert,
            dss,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

/// A key of our own in `dir`, made there at first start, and a certificate for it that says nothing more.
fn own_key(
    dir: &Path,
    path: &Path,
) -> Result<(CertificateDer<'static>, PrivateKeyDer<'static>), FileError> {
    if fs::symlink_metadata(path).is_err_and(|e| e.kind() == io::ErrorKind::NotFound) {
        create_key(dir, path)?;
    }
    let pem = read_secret(path, Secrecy::OwnerOnly)?;
    let corrupt = || {
        fail(
            path,
            FileProblem::Corrupt {
                what: "private key",
            },
        )
    };
    let text = std::str::from_utf8(&pem).map_err(|_| corrupt())?;
    let key = rcgen::KeyPair::from_pem(text).map_err(|_| corrupt())?;
    let cert = self_signed(&key).map_err(|_| corrupt())?;
    let key = PrivateKeyDer::from_pem_slice(&pem).map_err(|_| corrupt())?;
    Ok((cert, key))
}

/// The frontend's side of the tunnel hop. Cheap to clone.
#[derive(Clone)]
pub struct TlsServer {
    config: Arc<ServerConfig>,
    pin: Pin,
}

impl TlsServer {
    /// Uses the key in `state_dir`, or makes one there at first start.
    ///
    /// The key alone is kept: its certificate is signed anew at each start, since
    /// nobody looks at anything in it but the key. An unusable key file is an
    /// error and never replaced, because backends have pinned what was in it.
    pub fn load_or_create(state_dir: &Path) -> Result<Self, FileError> {
        let path = state_dir.join(KEY_FILE);
        let (cert, key) = own_key(state_dir, &path)?;
        Self::build(vec![cert], key, &path)
    }

    fn build(
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
        path: &Path,
    ) -> Result<Self, FileError> {
        let mismatch = |e: rustls::Error| fail(path, FileProblem::Mismatch(e.to_string()));
        let pin = match chain.first() {
            Some(leaf) => Pin::of_certificate(leaf).map_err(mismatch)?,
            None => {
                return Err(fail(
                    path,
                    FileProblem::Corrupt {
                        what: "certificate",
                    },
                ));
            }
        };
        let config = server_config(chain, key, &[TUNNEL_ALPN]).map_err(mismatch)?;
        Ok(Self { config, pin })
    }

    /// The pin that backends put behind this frontend's address.
    pub fn pin(&self) -> Pin {
        self.pin
    }

    /// Takes a tunnel's handshake, within [`TLS_TIMEOUT`].
    ///
    /// A client that offers protocols must offer [`TUNNEL_ALPN`]; one that offers none, such as
    /// pagekite.py, is welcome. [`binding`] wants `stream.get_ref().1`.
    pub async fn accept<S>(&self, conn: S) -> Result<server::TlsStream<S>, TlsError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        accept(&self.config, conn).await
    }
}

/// A server that shows this chain and speaks these protocols.
fn server_config(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    protocols: &[&[u8]],
) -> Result<Arc<ServerConfig>, rustls::Error> {
    let mut config = ServerConfig::builder_with_provider(Arc::new(modern()))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    config.alpn_protocols = protocols.iter().map(|p| p.to_vec()).collect();
    // A tunnel lives for days: resumption would save nothing, and would link reconnects.
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    Ok(Arc::new(config))
}

/// The server's side of a handshake, within [`TLS_TIMEOUT`].
async fn accept<S>(config: &Arc<ServerConfig>, conn: S) -> Result<server::TlsStream<S>, TlsError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let handshake = TlsAcceptor::from(Arc::clone(config)).accept(conn);
    within(TLS_TIMEOUT, None, handshake).await
}

impl fmt::Debug for TlsServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsServer")
            .field("pin", &self.pin)
            .finish_non_exhaustive()
    }
}

/// Errors of rustls's builders that no input can cause.
fn internal(path: Option<&Path>, error: &dyn fmt::Display) -> FileError {
    fail(
        path.unwrap_or(Path::new("built-in roots")),
        FileProblem::Mismatch(error.to_string()),
    )
}

/// A certificate that says nothing: no host, no date of its own, no user.
fn self_signed(key: &rcgen::KeyPair) -> Result<CertificateDer<'static>, rcgen::Error> {
    let mut params = rcgen::CertificateParams::new(Vec::new())?;
    params.distinguished_name = rcgen::DistinguishedName::new();
    params
        .distinguished_name
        .push(rcgen::DnType::CommonName, "frontend");
    params.not_before = rcgen::date_time_ymd(2000, 1, 1);
    params.not_after = rcgen::date_time_ymd(4096, 1, 1);
    Ok(params.self_signed(key)?.der().clone())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

    fn dir() -> tempfile::TempDir {
        tempfile::tempdir().expect("a temporary directory")
    }

    fn chmod(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("chmod");
    }

    /// A handshake between the two, with what each end made of it.
    async fn meet(
        server: &TlsServer,
        client: &TlsClient,
        to: &str,
    ) -> (
        Result<client::TlsStream<DuplexStream>, TlsError>,
        Result<server::TlsStream<DuplexStream>, TlsError>,
    ) {
        let (near, far) = tokio::io::duplex(1 << 16);
        let to: FrontendAddr = to.parse().expect("an address");
        tokio::join!(client.secure(near, &to), server.accept(far))
    }

    #[test]
    fn a_pin_has_one_spelling_and_reads_three() {
        let hex = "00".repeat(31) + "fb";
        let pin: Pin = format!("sha256:{hex}").parse().expect("hex");
        let text = pin.to_string();
        assert_eq!(text.len(), 7 + 43);
        assert_eq!(text.parse(), Ok(pin));
        assert_eq!(
            format!("{}=", text.replace('-', "+").replace('_', "/")).parse(),
            Ok(pin)
        );
        assert_eq!("md5:00".parse::<Pin>(), Err(PinError::Algorithm));
        for bad in [
            "sha256:",
            "sha256:AAAA",
            &format!("sha256:{hex}00"),
            &format!("sha256:{}", "z".repeat(64)),
        ] {
            assert_eq!(bad.parse::<Pin>(), Err(PinError::Digest), "{bad}");
        }
    }

    #[tokio::test]
    async fn the_pinned_key_and_no_other() {
        let (ours, theirs) = (dir(), dir());
        let server = TlsServer::load_or_create(ours.path()).expect("a new key");
        let other = TlsServer::load_or_create(theirs.path()).expect("a new key");
        let client = TlsClient::new(None).expect("roots");
        for host in ["frontend.example", "192.0.2.1", "[2001:db8::1]"] {
            let (c, s) = meet(&server, &client, &format!("{host}:443#{}", server.pin())).await;
            let (mut c, mut s) = (c.expect("client"), s.expect("server"));
            for alpn in [c.get_ref().1.alpn_protocol(), s.get_ref().1.alpn_protocol()] {
                assert_eq!(alpn, Some(TUNNEL_ALPN));
            }
            assert_eq!(
                s.get_ref().1.server_name().is_some(),
                host == "frontend.example"
            );
            assert_eq!(
                c.get_ref().1.protocol_version(),
                Some(rustls::ProtocolVersion::TLSv1_3)
            );
            let group = c
                .get_ref()
                .1
                .negotiated_key_exchange_group()
                .map(|g| g.name());
            assert_eq!(group, Some(rustls::NamedGroup::X25519MLKEM768));
            c.write_all(b"hi").await.expect("write");
            c.flush().await.expect("flush");
            let mut got = [0; 2];
            s.read_exact(&mut got).await.expect("read");
            assert_eq!(&got, b"hi");
        }
        let (c, s) = meet(&other, &client, &format!("a.example:443#{}", server.pin())).await;
        assert_eq!(
            c.err(),
            Some(TlsError::WrongPin {
                expected: server.pin(),
                found: other.pin()
            })
        );
        assert!(s.is_err());
    }

    #[tokio::test]
    async fn both_ends_of_a_session_have_its_binding_and_no_other_session_has_it() {
        let d = dir();
        let server = TlsServer::load_or_create(d.path()).expect("a new key");
        let client = TlsClient::new(None).expect("roots");
        let to = format!("a.example:443#{}", server.pin());
        let mut seen = Vec::new();
        for _ in 0..2 {
            let (c, s) = meet(&server, &client, &to).await;
            let ours = binding(c.expect("client").get_ref().1).expect("a binding");
            assert_eq!(
                Some(&ours),
                binding(s.expect("server").get_ref().1).as_ref()
            );
            assert!(!seen.contains(&ours));
            seen.push(ours);
        }
    }

    #[tokio::test]
    async fn a_copied_certificate_without_its_key_is_refused() {
        let (ours, theirs) = (dir(), dir());
        let victim = TlsServer::load_or_create(ours.path()).expect("a new key");
        TlsServer::load_or_create(theirs.path()).expect("a new key");
        let read =
            |d: &tempfile::TempDir| fs::read_to_string(d.path().join(KEY_FILE)).expect("key");
        let cert = self_signed(&rcgen::KeyPair::from_pem(&read(&ours)).expect("key"))
            .expect("certificate");
        let key = PrivateKeyDer::from_pem_slice(read(&theirs).as_bytes()).expect("key");
        // rustls refuses to build such a server, so put the resolver in by hand.
        let signer = aws_lc_rs::sign::any_supported_type(&key).expect("a signer");
        let mut config = ServerConfig::builder_with_provider(Arc::new(modern()))
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(
                rustls::sign::CertifiedKey::new(vec![cert], signer),
            )));
        config.alpn_protocols = vec![TUNNEL_ALPN.to_vec()];
        let impostor = TlsServer {
            config: Arc::new(config),
            pin: victim.pin(),
        };
        let client = TlsClient::new(None).expect("roots");
        let (c, _) = meet(
            &impostor,
            &client,
            &format!("a.example:443#{}", victim.pin()),
        )
        .await;
        assert!(
            matches!(c, Err(TlsError::BadCertificate { .. })),
            "{:?}",
            c.err()
        );
    }

    #[tokio::test]
    async fn a_certificate_for_one_of_the_named_names_will_do() {
        let d = dir();
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).expect("key");
        let cert = rcgen::CertificateParams::new(vec!["fe.example".to_owned()])
            .and_then(|p| p.self_signed(&key))
            .expect("certificate");
        let ca = d.path().join("ca.pem");
        fs::write(&ca, cert.pem()).expect("write");
        let config = ServerConfig::builder_with_provider(Arc::new(modern()))
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(vec![cert.der().clone()], key.into())
            .expect("a server");
        let server = TlsAcceptor::from(Arc::new(config));
        let trusting = TlsClient::new(Some(&ca)).expect("roots");
        let strict = TlsClient::new(None).expect("roots");
        for (client, to, asked) in [
            (
                &trusting,
                "192.0.2.1:443#name:fe.example",
                Some("fe.example"),
            ),
            (
                &trusting,
                "alice.example:443#name:b.example,fe.example",
                Some("b.example"),
            ),
            (&trusting, "fe.example:443#name:alice.example", None),
            (&trusting, "alice.example:443", None),
            (&strict, "alice.example:443#name:fe.example", None),
        ] {
            let (near, far) = tokio::io::duplex(1 << 16);
            let addr: FrontendAddr = to.parse().expect("an address");
            let (c, s) = tokio::join!(client.secure(near, &addr), server.accept(far));
            match asked {
                Some(name) => {
                    assert!(c.is_ok(), "{to}");
                    assert_eq!(s.expect("server").get_ref().1.server_name(), Some(name));
                }
                None => assert!(matches!(c, Err(TlsError::BadCertificate { .. })), "{to}"),
            }
        }
    }

    #[tokio::test]
    async fn what_is_no_tls_says_so() {
        let client = TlsClient::new(None).expect("roots");
        let to: FrontendAddr = "alice.example:443".parse().expect("address");
        let (near, mut far) = tokio::io::duplex(1 << 16);
        far.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            .await
            .expect("write");
        assert_eq!(client.secure(near, &to).await.err(), Some(TlsError::NotTls));
        let (near, far) = tokio::io::duplex(1 << 16);
        drop(far);
        assert_eq!(client.secure(near, &to).await.err(), Some(TlsError::Closed));
    }

    #[tokio::test]
    async fn a_silent_peer_costs_a_timeout() {
        let d = dir();
        let server = TlsServer::load_or_create(d.path()).expect("a key");
        let client = TlsClient::new(None).expect("roots");
        let to: FrontendAddr = "alice.example:443".parse().expect("address");
        let soon = Duration::from_millis(20);
        let (near, _far) = tokio::io::duplex(1 << 16);
        let silent = within(
            soon,
            None,
            client
                .connector(&to)
                .expect("config")
                .connect(name_of(&to).expect("name"), near),
        );
        assert_eq!(silent.await.err(), Some(TlsError::TimedOut));
        let (near, _far) = tokio::io::duplex(1 << 16);
        let silent = within(soon, None, TlsAcceptor::from(server.config).accept(near));
        assert_eq!(silent.await.err(), Some(TlsError::TimedOut));
    }

    #[tokio::test]
    async fn clients_without_a_protocol_name_are_welcome() {
        let d = dir();
        let server = TlsServer::load_or_create(d.path()).expect("a key");
        let mut config = (*pinned(server.pin()).expect("config")).clone();
        config.alpn_protocols.clear();
        let (near, far) = tokio::io::duplex(1 << 16);
        let name = ServerName::try_from("old.example").expect("name");
        let (c, s) = tokio::join!(
            TlsConnector::from(Arc::new(config)).connect(name, near),
            server.accept(far)
        );
        assert!(c.is_ok() && s.is_ok());
    }

    #[test]
    fn the_key_stays_the_same_and_private() {
        let d = dir();
        let state = d.path().join("new/state");
        let first = TlsServer::load_or_create(&state).expect("a new key");
        let again = TlsServer::load_or_create(&state).expect("the same key");
        assert_eq!(first.pin(), again.pin());
        let path = state.join(KEY_FILE);
        assert_eq!(fs::metadata(&path).expect("key").mode() & 0o777, 0o600);
        assert_eq!(fs::metadata(&state).expect("dir").mode() & 0o777, 0o700);
        assert_eq!(
            fs::read_dir(&state).expect("dir").count(),
            1,
            "no draft left"
        );

        chmod(&path, 0o640);
        let e = TlsServer::load_or_create(&state)
            .expect_err("readable by the group")
            .to_string();
        assert!(e.contains(KEY_FILE) && e.contains("chmod 600"), "{e}");
        chmod(&path, 0o600);
        for garbage in [
            "",
            "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
            "\u{0}",
        ] {
            fs::write(&path, garbage).expect("write");
            let e = TlsServer::load_or_create(&state)
                .expect_err("corrupt")
                .to_string();
            assert!(e.contains("backup"), "{e}");
            assert_eq!(
                fs::read_to_string(&path).expect("key"),
                garbage,
                "never replaced"
            );
        }
    }

    #[test]
    fn a_directory_that_others_may_write_is_refused() {
        let d = dir();
        chmod(d.path(), 0o777);
        let e = TlsServer::load_or_create(d.path())
            .expect_err("writable by others")
            .to_string();
        assert!(e.contains("chmod 700"), "{e}");
        chmod(d.path(), 0o700);
    }
}
