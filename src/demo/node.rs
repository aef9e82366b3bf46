//! A small storage node for the demo: foolscap's upgrade, then real TLS with a key
//! of its own, whose certificate's hash is its tub's name.

use std::net::SocketAddr;
use std::sync::Arc;

use rustls::ServerConfig;
use rustls::pki_types::PrivateKeyDer;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;

use super::visit::Counted;
use crate::listen;
use crate::visit::tub_of;

/// What foolscap answers to an upgrade (measured on Tahoe 1.20).
const SWITCHING: &[u8] =
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: TLS/1.0, PB/1.0\r\nConnection: Upgrade\r\n\r\n";
/// The longest request that is read, in bytes, as foolscap does.
const MAX_REQUEST: usize = 4096;

/// The node, and what it saw.
pub struct Node {
    /// Where it listens.
    pub address: SocketAddr,
    /// Its tub's name.
    pub tub: String,
    /// What it tells visitors.
    pub message: String,
    visits: watch::Receiver<Option<Visited>>,
}

/// What the node saw of a visit, once it was over.
#[derive(Clone)]
pub struct Visited {
    /// The address the visitor came from.
    pub peer: String,
    /// Bytes that it sent.
    pub received: u64,
}

impl Node {
    /// Listens on loopback and serves until the process ends.
    pub fn start(message: &str) -> Result<Self, Box<dyn std::error::Error>> {
        let key = rcgen::KeyPair::generate()?;
        let certificate =
            rcgen::CertificateParams::new(vec!["newpb-thingy".into()])?.self_signed(&key)?;
        let tub = tub_of(certificate.der());
        let private = PrivateKeyDer::try_from(key.serialize_der())?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], private)?;
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = listen::bind(([127, 0, 0, 1], 0).into())?;
        let address = listener.local_addr()?;
        let (over, visits) = watch::channel(None);
        let node = Self {
            address,
            tub: tub.clone(),
            message: message.to_owned(),
            visits,
        };
        let message = message.to_owned();
        tokio::spawn(async move {
            loop {
                let (conn, peer) = listen::accept(&listener).await;
                let (acceptor, tub, message, over) =
                    (acceptor.clone(), tub.clone(), message.clone(), over.clone());
                tokio::spawn(async move {
                    if let Ok(Some(received)) = serve(conn, acceptor, &tub, &message).await {
                        over.send_replace(Some(Visited {
                            peer: peer.ip().to_string(),
                            received,
                        }));
                    }
                });
            }
        });
        Ok(node)
    }

    /// Waits until a visit is over.
    pub async fn visited(&self) -> Option<Visited> {
        let mut visits = self.visits.clone();
        visits.wait_for(Option::is_some).await.ok()?.clone()
    }
}

/// Serves one visitor. Bytes received in all, or `None` if it was refused.
async fn serve(
    conn: listen::TcpStream,
    acceptor: TlsAcceptor,
    tub: &str,
    message: &str,
) -> std::io::Result<Option<u64>> {
    let mut conn = Counted::new(conn);
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        if request.len() > MAX_REQUEST || conn.read_buf(&mut request).await? == 0 {
            return Ok(None);
        }
    }
    if !request.starts_with(format!("GET /id/{tub} HTTP/1.1\r\n").as_bytes()) {
        let refusal = b"HTTP/1.1 500 Internal Server Error: unknown TubID\r\n\r\n";
        conn.write_all(refusal).await?;
        return Ok(None);
    }
    conn.write_all(SWITCHING).await?;
    let mut tls = acceptor.accept(conn).await?;
    let mut ask = [0; 5];
    tls.read_exact(&mut ask).await?;
    tls.write_all(message.as_bytes()).await?;
    tls.shutdown().await?;
    // Until the visitor's own end: only then is the count complete.
    let mut rest = Vec::new();
    let _ = tls.read_to_end(&mut rest).await;
    Ok(Some(tls.get_ref().0.read()))
}
