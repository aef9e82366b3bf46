//! HTTP to a certificate authority: one request on one connection, through the dial room.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Limited};
use hyper::header::{CONNECTION, HOST, HeaderValue};
use hyper::{Request, Uri};
use instant_acme::{BodyWrapper, BytesResponse, Error, HttpClient};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::dial::{AuthorityDialer, BoxConn};

/// Longest wait for one answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// Largest answer, in bytes. A chain has some thousand.
const MAX_ANSWER: usize = 256 * 1024;

/// The client that `instant-acme` asks through.
#[derive(Clone)]
pub(super) struct Client(pub(super) Arc<AuthorityDialer>);

type Answer = Result<BytesResponse, Error>;

impl HttpClient for Client {
    fn request(
        &self,
        request: Request<BodyWrapper<Bytes>>,
    ) -> Pin<Box<dyn Future<Output = Answer> + Send>> {
        let dialer = self.0.clone();
        Box::pin(async move {
            match timeout(ANSWER_TIMEOUT, exchange(&dialer, request)).await {
                Ok(answer) => answer.map_err(Error::Other),
                Err(_) => Err(Error::Other("it did not answer in time".into())),
            }
        })
    }
}

type Trouble = Box<dyn std::error::Error + Send + Sync>;

async fn exchange(
    dialer: &AuthorityDialer,
    mut request: Request<BodyWrapper<Bytes>>,
) -> Result<BytesResponse, Trouble> {
    let uri = request.uri().clone();
    let host = uri.host().filter(|_| uri.scheme_str() == Some("https"));
    let host = host.ok_or("the authority gave an address that is no https URL")?;
    let conn = dialer.dial(host, uri.port_u16().unwrap_or(443)).await?;
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let authority = uri.authority().map_or(host, |authority| authority.as_str());
    let headers = request.headers_mut();
    headers.insert(HOST, HeaderValue::from_str(authority)?);
    headers.insert(CONNECTION, HeaderValue::from_static("close"));
    *request.uri_mut() = path.parse::<Uri>()?;

    let (mut sender, connection) = hyper::client::conn::http1::handshake(Io(conn)).await?;
    // Dropped, it closes the connection.
    let mut driver = JoinSet::new();
    driver.spawn(connection);
    let (parts, body) = sender.send_request(request).await?.into_parts();
    let body = Limited::new(body, MAX_ANSWER).collect().await?.to_bytes();
    Ok(BytesResponse {
        parts,
        body: Box::new(body),
    })
}

/// A connection as hyper wants it.
struct Io(BoxConn);

impl hyper::rt::Read for Io {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut buf: hyper::rt::ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let mut space = [0; 4096];
        let room = buf.remaining().min(space.len());
        let mut read = ReadBuf::new(space.get_mut(..room).unwrap_or_default());
        ready!(Pin::new(&mut self.0).poll_read(cx, &mut read))?;
        buf.put_slice(read.filled());
        Poll::Ready(Ok(()))
    }
}

impl hyper::rt::Write for Io {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
