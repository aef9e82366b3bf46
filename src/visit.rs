//! A visit as a foolscap client pays it: the upgrade, then TLS that believes a tub's hash and nothing else.
//!
//! It knows a kite's name and its node's tub, and needs neither kite nor Tor for it; who dialled is none of its
//! business. A visit that succeeds has reached the node with that key, and nobody changed the opening on the way.

use std::io;
use std::sync::{Arc, OnceLock};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, SignatureScheme};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::code::{Code, Coded};
use crate::kite::KiteName;
use crate::plain::plain;
use crate::sniff::TubId;
use crate::sniff::foolscap::{MAX_NEGOTIATION, probe_request};
use crate::tub;
pub use crate::tub::tub_of;

/// What is shown of an answer that is none, in letters.
const MAX_LINE: usize = 80;
/// What is shown of a reason of TLS's.
const MAX_REASON: usize = 200;

/// Why a visit did not come to its node.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VisitError {
    /// The connection ended before there was an answer.
    #[error("the connection was closed without an answer")]
    Closed,
    /// It broke.
    #[error("the connection broke: {0}")]
    Broke(io::ErrorKind),
    /// An answer other than the upgrade's: its status, if it has one.
    #[error("the upgrade was refused: {line}")]
    Refused {
        /// As in `HTTP/1.1 503`.
        status: Option<u16>,
        /// The first line of the answer.
        line: String,
    },
    /// A node with another key.
    #[error("another node answered, tub {0}")]
    OtherNode(String),
    /// The upgrade was answered, and TLS behind it failed.
    #[error("TLS failed after the upgrade: {0}")]
    Tls(String),
}

impl Coded for VisitError {
    fn code(&self) -> Code {
        match self {
            Self::OtherNode(_) => Code::OtherNode,
            Self::Closed | Self::Broke(_) | Self::Refused { .. } | Self::Tls(_) => {
                Code::VisitFailed
            }
        }
    }
}

/// Asks for the tub, byte for byte as foolscap's client does, and reads the answer: that there is TLS behind it. Every byte
/// of it is given back.
pub async fn ask<C>(conn: &mut C, kite: &KiteName, tub: TubId) -> Result<Vec<u8>, VisitError>
where
    C: AsyncRead + AsyncWrite + Unpin,
{
    let broke = |e: io::Error| VisitError::Broke(e.kind());
    let request = probe_request(tub, kite);
    conn.write_all(&request).await.map_err(broke)?;
    // What goes through Tor waits for this.
    conn.flush().await.map_err(broke)?;
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        if answer.len() > MAX_NEGOTIATION || conn.read_buf(&mut answer).await.map_err(broke)? == 0 {
            break;
        }
        // A page has a body behind its head.
        if !b"HTTP/1.1 101 ".starts_with(answer.get(..13).unwrap_or(&answer))
            && answer.windows(4).any(|w| w == b"\r\n\r\n")
        {
            break;
        }
    }
    if answer.is_empty() {
        return Err(VisitError::Closed);
    }
    if answer.starts_with(b"HTTP/1.1 101 ") && answer.ends_with(b"\r\n\r\n") {
        return Ok(answer);
    }
    let text = String::from_utf8_lossy(&answer);
    let line = plain(text.lines().next().unwrap_or_default(), MAX_LINE);
    let mut words = line.split(' ');
    let status = match words.next() {
        Some(version) if version.starts_with("HTTP/") => {
            words.next().and_then(|code| code.parse().ok())
        }
        _ => None,
    };
    Err(VisitError::Refused { status, line })
}

/// A connection with the node that was wanted.
pub struct Met<C> {
    /// What can be said on it now is the node's and nobody else's.
    pub conn: TlsStream<C>,
    /// The random of our hello. Whoever saw the connection pass knows it, too, and it belongs to no other.
    pub random: [u8; 32],
}

/// TLS after [`ask`]. It sends no server name, as foolscap sends none.
pub async fn secure<C>(conn: C, tub: TubId) -> Result<Met<C>, VisitError>
where
    C: AsyncRead + AsyncWrite + Unpin,
{
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let other: Arc<OnceLock<String>> = Arc::default();
    let verifier = TubVerifier {
        tub,
        other: other.clone(),
        provider: provider.clone(),
    };
    // It may hold what the peer says of itself.
    let failed = |e: String| VisitError::Tls(plain(&e, MAX_REASON));
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| failed(e.to_string()))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    let random: Arc<Random> = Arc::default();
    config.key_log = random.clone();
    let name = ServerName::IpAddress(std::net::IpAddr::from([127, 0, 0, 1]).into());
    let connected = TlsConnector::from(Arc::new(config))
        .connect(name, conn)
        .await;
    let conn = connected.map_err(|e| match other.get() {
        Some(tub) => VisitError::OtherNode(tub.clone()),
        None => failed(e.to_string()),
    })?;
    let random = random.0.get().copied().unwrap_or_default();
    Ok(Met { conn, random })
}

/// The random of our hello, which rustls tells to whoever logs keys. The keys themselves are let go.
#[derive(Debug, Default)]
struct Random(OnceLock<[u8; 32]>);

impl rustls::KeyLog for Random {
    fn log(&self, _: &str, client_random: &[u8], _: &[u8]) {
        if let Ok(random) = client_random.try_into() {
            let _ = self.0.set(random);
        }
    }
}

#[derive(Debug)]
struct TubVerifier {
    tub: TubId,
    /// Who answered instead.
    other: Arc<OnceLock<String>>,
    provider: Arc<CryptoProvider>,
}

impl TubVerifier {
    /// Checks a signature by the certificate's key.
    fn verify(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let wrong = |what: CertificateError| Err(rustls::Error::InvalidCertificate(what));
        match tub::signed_by(&self.provider, cert, dss.scheme, message, dss.signature()) {
            Some(true) => Ok(HandshakeSignatureValid::assertion()),
            Some(false) => wrong(CertificateError::BadSignature),
            None => wrong(CertificateError::BadEncoding),
        }
    }
}

impl ServerCertVerifier for TubVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let found = tub_of(end_entity);
        if found == self.tub.as_str() {
            return Ok(ServerCertVerified::assertion());
        }
        let _ = self.other.set(found);
        Err(rustls::Error::General("another tub answered".into()))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.verify(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        use SignatureScheme as S;
        // RFC 8446 §4.2.3: for certificates only.
        if let S::RSA_PKCS1_SHA1 | S::RSA_PKCS1_SHA256 | S::RSA_PKCS1_SHA384 | S::RSA_PKCS1_SHA512 =
            dss.scheme
        {
            return Err(rustls::Error::General("a signature of TLS 1.2".into()));
        }
        self.verify(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Fed by what a peer wrote: `ask` gives what it makes of it.
    async fn answered(answer: &[u8]) -> Result<Vec<u8>, VisitError> {
        let (mut ours, mut theirs) = tokio::io::duplex(64 * 1024);
        theirs.write_all(answer).await.expect("room");
        theirs.shutdown().await.expect("an end");
        let tub = TubId::from_random([0; 32]);
        ask(
            &mut ours,
            &"bob.alice.example".parse().expect("a name"),
            tub,
        )
        .await
    }

    #[tokio::test]
    async fn answers_are_told_apart() {
        let yes = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: TLS/1.0, PB/1.0\r\n\r\n";
        assert_eq!(answered(yes).await, Ok(yes.to_vec()));
        assert_eq!(answered(b"").await, Err(VisitError::Closed));
        let status = |answer: &'static [u8]| async move {
            match answered(answer).await {
                Err(VisitError::Refused { status, line }) => (status, line),
                other => panic!("{other:?}"),
            }
        };
        let (code, _) =
            status(b"HTTP/1.1 503 Unavailable\r\nContent-Length: 9\r\n\r\nnot here!").await;
        assert_eq!(code, Some(503));
        let (code, line) = status(b"SSH-2.0-\x1b[31mevil\r\n").await;
        assert_eq!((code, line.as_str()), (None, "SSH-2.0-?[31mevil"));
        let (_, line) = status("HTTP/1.1 503 \u{202e}elbaliavanU\r\n\r\n".as_bytes()).await;
        assert_eq!(line, "HTTP/1.1 503 ?elbaliavanU");
        let cut = b"HTTP/1.1 101 Switching";
        assert!(answered(cut).await.is_err(), "half a yes is none");
    }
}
