//! The answer to a certificate authority that asks by TLS whether a name leads here (RFC 8737).

use std::sync::Arc;

use rustls::pki_types::PrivateKeyDer;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{ServerConfig, crypto::aws_lc_rs};
use tokio::io::{AsyncRead, AsyncWrite};

use super::{ACME_ALPN, TlsError, accept, modern};
use crate::kite::KiteName;

/// A certificate that is worth something to the authority alone. Cheap to clone.
#[derive(Clone)]
pub struct Challenge(Arc<ServerConfig>);

impl Challenge {
    /// For a name and the SHA-256 of its key authorisation. None if the name can be in no certificate.
    pub fn new(name: &KiteName, digest: &[u8]) -> Option<Self> {
        let key = rcgen::KeyPair::generate().ok()?;
        let mut params = rcgen::CertificateParams::new(vec![name.to_string()]).ok()?;
        params
            .custom_extensions
            .push(rcgen::CustomExtension::new_acme_identifier(digest));
        let cert = params.self_signed(&key).ok()?;
        let key = PrivateKeyDer::try_from(key.serialize_der()).ok()?;
        let signer = aws_lc_rs::sign::any_supported_type(&key).ok()?;
        // rustls would not take it as a certificate: its extension is critical, and known to nobody else.
        let resolver = Always(Arc::new(CertifiedKey::new(
            vec![cert.der().clone()],
            signer,
        )));
        let mut config = ServerConfig::builder_with_provider(Arc::new(modern()))
            .with_safe_default_protocol_versions()
            .ok()?
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(resolver));
        config.alpn_protocols = vec![ACME_ALPN.to_vec()];
        Some(Self(Arc::new(config)))
    }

    /// Shows it. There is nothing to be said afterwards.
    pub async fn answer<S>(&self, conn: S) -> Result<(), TlsError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        accept(&self.0, conn).await.map(drop)
    }
}

#[derive(Debug)]
struct Always(Arc<CertifiedKey>);

impl ResolvesServerCert for Always {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }
}
