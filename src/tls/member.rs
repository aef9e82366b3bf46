//! TLS between the members of a fleet: each shows a key of its own, and lets nobody in whose key it was not told.

use super::*;
use rustls::DistinguishedName;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::sign::{CertifiedKey, SingleCertAndKey};

/// Name of the file with the key that a member shows to the others.
pub const MEMBER_KEY_FILE: &str = "fleet-key.pem";
/// Longest wait for a handshake between members, which are near each other.
pub const MEMBER_TLS_TIMEOUT: Duration = Duration::from_secs(5);

/// What a connection between members is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// One tells the other what it flies.
    Link,
    /// One brings the other a visitor.
    Visit,
}

impl Purpose {
    const ALL: [Self; 2] = [Self::Link, Self::Visit];

    fn alpn(self) -> &'static [u8] {
        match self {
            Self::Link => b"x-kite-fleet-link/1",
            Self::Visit => b"x-kite-fleet-visit/1",
        }
    }
}

/// Whose keys are let in.
pub type Known = Arc<dyn Fn(&Pin) -> bool + Send + Sync>;

/// A member's side of both directions. Cheap to clone.
#[derive(Clone)]
pub struct MemberTls(Arc<Inner>);

struct Inner {
    /// Read once: a handshake is made for each visitor.
    key: Arc<SingleCertAndKey>,
    pin: Pin,
}

impl MemberTls {
    /// Uses the key in `state_dir`, or makes one there at first start. One that cannot be used is an error, and is never
    /// replaced: the other members have been told of it.
    pub fn load_or_create(state_dir: &Path) -> Result<Self, FileError> {
        let path = state_dir.join(MEMBER_KEY_FILE);
        let (cert, key) = own_key(state_dir, &path)?;
        let pin = Pin::of_certificate(&cert)
            .map_err(|e| fail(&path, FileProblem::Mismatch(e.to_string())))?;
        let key = CertifiedKey::from_der(vec![cert], key, &modern())
            .map_err(|e| fail(&path, FileProblem::Mismatch(e.to_string())))?;
        let key = Arc::new(SingleCertAndKey::from(key));
        Ok(Self(Arc::new(Inner { key, pin })))
    }

    /// What the other members are to be told of this one.
    pub fn pin(&self) -> Pin {
        self.0.pin
    }

    /// Takes the handshake of another member, within 5 s. Whose key it showed, and what it wants.
    pub async fn accept<S>(
        &self,
        conn: S,
        known: Known,
    ) -> Result<(server::TlsStream<S>, Pin, Purpose), TlsError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let config = self.server(known).map_err(|e| refused(&e))?;
        let handshake = TlsAcceptor::from(Arc::new(config)).accept(conn);
        let conn = within(MEMBER_TLS_TIMEOUT, None, handshake).await?;
        let session = conn.get_ref().1;
        let shown = session.peer_certificates().and_then(|all| all.first());
        let pin = shown.map(Pin::of_certificate).transpose();
        let alpn = session.alpn_protocol();
        let purpose = Purpose::ALL.into_iter().find(|p| alpn == Some(p.alpn()));
        match (pin, purpose) {
            (Ok(Some(pin)), Some(purpose)) => Ok((conn, pin, purpose)),
            _ => Err(TlsError::Handshake {
                reason: "it does not say what it wants".into(),
            }),
        }
    }

    /// Makes sure that this is the member with that key, and shows ours.
    pub async fn connect<S>(
        &self,
        conn: S,
        pin: Pin,
        purpose: Purpose,
    ) -> Result<client::TlsStream<S>, TlsError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let config = self.client(pin, purpose).map_err(|e| refused(&e))?;
        // The key is what counts.
        let handshake = TlsConnector::from(Arc::new(config)).connect(server_name("member")?, conn);
        within(MEMBER_TLS_TIMEOUT, Some(pin), handshake).await
    }

    fn server(&self, known: Known) -> Result<ServerConfig, rustls::Error> {
        let provider = Arc::new(modern());
        let verifier = Arc::new(KnownVerifier {
            known,
            provider: provider.clone(),
        });
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(verifier)
            .with_cert_resolver(self.0.key.clone());
        config.alpn_protocols = Purpose::ALL.map(|p| p.alpn().to_vec()).to_vec();
        config.send_tls13_tickets = 0;
        config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
        Ok(config)
    }

    fn client(&self, pin: Pin, purpose: Purpose) -> Result<ClientConfig, rustls::Error> {
        let provider = Arc::new(modern());
        let verifier = Arc::new(PinVerifier {
            pin,
            provider: provider.clone(),
        });
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_client_cert_resolver(self.0.key.clone());
        config.alpn_protocols = vec![purpose.alpn().to_vec()];
        config.resumption = rustls::client::Resumption::disabled();
        Ok(config)
    }
}

fn refused(error: &rustls::Error) -> TlsError {
    TlsError::Handshake {
        reason: error.to_string(),
    }
}

impl fmt::Debug for MemberTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemberTls")
            .field("pin", &self.0.pin)
            .finish_non_exhaustive()
    }
}

/// Accepts the keys of members. The handshake's signature is still verified, or a copied certificate would do.
struct KnownVerifier {
    known: Known,
    provider: Arc<CryptoProvider>,
}

impl fmt::Debug for KnownVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KnownVerifier")
    }
}

impl ClientCertVerifier for KnownVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let shown = Pin::of_certificate(end_entity)?;
        match (self.known)(&shown) {
            true => Ok(ClientCertVerified::assertion()),
            false => Err(CertificateError::Other(OtherError(Arc::new(Mismatch(shown)))).into()),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        let algorithms = &self.provider.signature_verification_algorithms;
        algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    fn member() -> (tempfile::TempDir, MemberTls) {
        let dir = tempfile::tempdir().expect("a directory");
        let tls = MemberTls::load_or_create(dir.path()).expect("a key");
        let again = MemberTls::load_or_create(dir.path()).expect("the same key");
        assert_eq!(tls.pin(), again.pin());
        (dir, tls)
    }

    #[tokio::test]
    async fn members_know_each_other_by_their_keys_and_strangers_get_nothing() {
        let ((_a, a), (_b, b), (_c, c)) = (member(), member(), member());
        let (a_pin, b_pin, c_pin) = (a.pin(), b.pin(), c.pin());
        let known: Known = Arc::new(move |pin| *pin == a_pin);
        for purpose in Purpose::ALL {
            let (near, far) = tokio::io::duplex(64 * 1024);
            let (near, far) = tokio::join!(
                a.connect(near, b_pin, purpose),
                b.accept(far, known.clone())
            );
            let (mut near, (mut far, pin, wanted)) = (near.expect("ours"), far.expect("theirs"));
            assert_eq!((pin, wanted), (a_pin, purpose));
            near.write_all(b"x").await.expect("write");
            near.flush().await.expect("flush");
            assert_eq!(far.read_u8().await.expect("read"), b'x');
        }
        // Its key is not known there: whatever it makes of its handshake, nothing is read.
        let (near, far) = tokio::io::duplex(64 * 1024);
        let (near, far) = tokio::join!(
            async {
                let mut near = c.connect(near, b_pin, Purpose::Visit).await.ok()?;
                near.read_u8().await.ok()
            },
            b.accept(far, known.clone())
        );
        assert!(near.is_none() && far.is_err());
        // That is not who was meant.
        let (near, far) = tokio::io::duplex(64 * 1024);
        let (near, _) = tokio::join!(
            a.connect(near, c_pin, Purpose::Link),
            b.accept(far, known.clone())
        );
        assert!(matches!(near, Err(TlsError::WrongPin { .. })));
        // No certificate at all: a browser, or a backend.
        let (near, far) = tokio::io::duplex(64 * 1024);
        let stranger = TlsConnector::from(pinned(b_pin).expect("a client"));
        let name = server_name("member").expect("a name");
        let (_, far) = tokio::join!(stranger.connect(name, near), b.accept(far, known));
        assert!(far.is_err());
    }

    #[tokio::test]
    async fn a_silent_member_costs_a_timeout() {
        let (_a, a) = member();
        let (near, _far) = tokio::io::duplex(64 * 1024);
        let (other, _far) = tokio::io::duplex(64 * 1024);
        let began = std::time::Instant::now();
        let (taken, made) = tokio::join!(
            a.accept(near, Arc::new(|_| true)),
            a.connect(other, a.pin(), Purpose::Link)
        );
        assert!(matches!(taken, Err(TlsError::TimedOut)));
        assert!(matches!(made, Err(TlsError::TimedOut)));
        assert!((5..8).contains(&began.elapsed().as_secs()));
    }
}
