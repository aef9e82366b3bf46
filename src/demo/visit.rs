//! The demo's visitor: it knows the kite's name and the tub's, and needs neither
//! kite nor Tor. What it sends and gets passes the frontend byte for byte, so its
//! own record of the wire is what the frontend could see.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio_rustls::TlsConnector;

use super::node::tub_of;
use crate::dial::{OriginAddr, OriginDialer};
use crate::kite::KiteName;

/// The longest answer to the upgrade, in bytes, as foolscap's client has it.
const MAX_ANSWER: usize = 4096;
/// Bytes of the wire that are kept for the proof.
const MAX_RECORD: usize = 64 * 1024;

/// What a visit brought, and what was on the wire.
pub struct Visit {
    /// What the node said, inside TLS.
    pub message: String,
    /// The first line of the request, which everyone on the way can read.
    pub first_line: String,
    /// Bytes after the upgrade, both ways together.
    pub ciphertext: u64,
    /// Bytes sent in all.
    pub sent: u64,
    wire: Vec<u8>,
}

impl Visit {
    /// Is this text readable in what went over the wire?
    pub fn wire_contains(&self, text: &str) -> bool {
        memchr::memmem::find(&self.wire, text.as_bytes()).is_some()
    }
}

/// Visits the node `tub` under the name `kite`, through the frontend at `public`.
pub async fn visit(public: SocketAddr, kite: &KiteName, tub: &str) -> Result<Visit, String> {
    let to = OriginAddr::parse(&public.to_string(), false).map_err(|e| e.to_string())?;
    let conn = OriginDialer::new()
        .dial(&to)
        .await
        .map_err(|e| e.to_string())?;
    let told = |e: io::Error| e.to_string();
    let mut conn = Counted::new(conn);
    let request = format!(
        "GET /id/{tub} HTTP/1.1\r\nHost: {kite}\r\nUpgrade: TLS/1.0\r\nConnection: Upgrade\r\n\r\n"
    );
    conn.write_all(request.as_bytes()).await.map_err(told)?;
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        if answer.len() > MAX_ANSWER || conn.read_buf(&mut answer).await.map_err(told)? == 0 {
            return Err("the upgrade was not answered".into());
        }
    }
    if !answer.starts_with(b"HTTP/1.1 101 ") {
        return Err(format!(
            "the upgrade was refused: {}",
            String::from_utf8_lossy(&answer)
                .lines()
                .next()
                .unwrap_or("")
        ));
    }
    let clear = (request.len() + answer.len()) as u64;
    let connector = connector(tub).map_err(|e| e.to_string())?;
    let name = ServerName::IpAddress(public.ip().into());
    let mut tls = connector.connect(name, conn).await.map_err(told)?;
    tls.write_all(b"hello").await.map_err(told)?;
    let mut message = String::new();
    tls.read_to_string(&mut message).await.map_err(told)?;
    tls.shutdown().await.map_err(told)?;
    let (conn, _) = tls.get_mut();
    let mut rest = Vec::new();
    let _ = conn.read_to_end(&mut rest).await;
    let first_line =
        request.lines().next().unwrap_or_default().to_owned() + ", Host: " + kite.as_str();
    Ok(Visit {
        message,
        first_line,
        ciphertext: conn.read + conn.written - clear,
        sent: conn.written,
        wire: std::mem::take(&mut conn.record),
    })
}

/// TLS that believes a tub's hash and nothing else, as foolscap's does. It sends no server name.
fn connector(tub: &str) -> Result<TlsConnector, rustls::Error> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = TubVerifier {
        tub: tub.to_owned(),
        provider: provider.clone(),
    };
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}

#[derive(Debug)]
struct TubVerifier {
    tub: String,
    provider: Arc<CryptoProvider>,
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
        if tub_of(end_entity) == self.tub {
            Ok(ServerCertVerified::assertion())
        } else {
            Err(rustls::Error::General("another tub answered".into()))
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

/// A connection that counts its bytes and keeps the first of them.
pub struct Counted<C> {
    inner: C,
    read: u64,
    written: u64,
    record: Vec<u8>,
}

impl<C> Counted<C> {
    /// Counts from here on.
    pub fn new(inner: C) -> Self {
        Self {
            inner,
            read: 0,
            written: 0,
            record: Vec::new(),
        }
    }

    /// Bytes read so far.
    pub fn read(&self) -> u64 {
        self.read
    }

    fn keep(&mut self, bytes: &[u8]) {
        let room = MAX_RECORD.saturating_sub(self.record.len());
        self.record
            .extend_from_slice(bytes.get(..room).unwrap_or(bytes));
    }
}

impl<C: AsyncRead + Unpin> AsyncRead for Counted<C> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.inner).poll_read(cx, buf))?;
        let new = buf.filled().get(before..).unwrap_or_default();
        self.read += new.len() as u64;
        self.keep(new);
        Poll::Ready(Ok(()))
    }
}

impl<C: AsyncWrite + Unpin> AsyncWrite for Counted<C> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let n = ready!(Pin::new(&mut self.inner).poll_write(cx, buf))?;
        self.written += n as u64;
        self.keep(buf.get(..n).unwrap_or(buf));
        Poll::Ready(Ok(n))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}
