//! The demo's visitor: it knows the kite's name and the tub's, and needs neither
//! kite nor Tor. What it sends and gets passes the frontend byte for byte, so its
//! own record of the wire is what the frontend could see.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};

use crate::dial::{OriginAddr, OriginDialer};
use crate::kite::KiteName;
use crate::sniff::TubId;
use crate::visit;

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
    let tub: TubId = tub.parse().map_err(|_| "the node has no tub".to_owned())?;
    let failed = |e: visit::VisitError| e.to_string();
    visit::ask(&mut conn, kite, tub).await.map_err(failed)?;
    let clear = conn.read + conn.written;
    let mut tls = visit::secure(conn, tub).await.map_err(failed)?.conn;
    tls.write_all(b"hello").await.map_err(told)?;
    let mut message = String::new();
    tls.read_to_string(&mut message).await.map_err(told)?;
    tls.shutdown().await.map_err(told)?;
    let (conn, _) = tls.get_mut();
    let mut rest = Vec::new();
    let _ = conn.read_to_end(&mut rest).await;
    let first_line = format!("GET /id/{} HTTP/1.1, Host: {kite}", tub.as_str());
    Ok(Visit {
        message,
        first_line,
        ciphertext: conn.read + conn.written - clear,
        sent: conn.written,
        wire: std::mem::take(&mut conn.record),
    })
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
