//! TLS to a server of the operator's own, which a certificate authority of the operator's own vouches for.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::client;

use super::files::{FileError, FileProblem, Secrecy, fail, read_certificates, read_secret};
use super::{TlsError, internal, modern, to_host};

/// Certificate and key by which a client proves who it is.
#[derive(Debug, Clone, Copy)]
pub struct Identity<'a> {
    /// The certificate, perhaps with those that lead to its authority.
    pub cert: &'a Path,
    /// Its key, which nobody else may read.
    pub key: &'a Path,
}

/// The client's side. Cheap to clone.
#[derive(Clone)]
pub struct PrivateClient(Arc<ClientConfig>);

impl PrivateClient {
    /// Trusts the certificates in this file and no others; without one, nobody.
    pub fn new(ca: Option<&Path>, identity: Option<Identity<'_>>) -> Result<Self, FileError> {
        let mut roots = RootCertStore::empty();
        if let Some(path) = ca {
            for cert in read_certificates(path)? {
                let what = "certificate";
                let added = roots.add(cert);
                added.map_err(|_| fail(path, FileProblem::Corrupt { what }))?;
            }
        }
        let config = ClientConfig::builder_with_provider(Arc::new(modern()))
            .with_safe_default_protocol_versions()
            .map_err(|e| internal(ca, &e))?
            .with_root_certificates(roots);
        let mut config = match identity {
            None => config.with_no_client_auth(),
            Some(Identity { cert, key }) => {
                let chain = read_certificates(cert)?;
                let pem = read_secret(key, Secrecy::OwnerAndGroup)?;
                let what = "private key";
                let secret = PrivateKeyDer::from_pem_slice(&pem)
                    .map_err(|_| fail(key, FileProblem::Corrupt { what }))?;
                let config = config.with_client_auth_cert(chain, secret);
                config.map_err(|e| fail(cert, FileProblem::Mismatch(e.to_string())))?
            }
        };
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self(Arc::new(config)))
    }

    /// Makes sure that this is `host`, within [`TLS_TIMEOUT`](super::TLS_TIMEOUT).
    pub async fn secure<S>(&self, conn: S, host: &str) -> Result<client::TlsStream<S>, TlsError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        to_host(&self.0, conn, host).await
    }
}

impl fmt::Debug for PrivateClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateClient")
    }
}
