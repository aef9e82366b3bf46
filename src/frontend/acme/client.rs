//! HTTP to a certificate authority: one request on one connection, through the dial room.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Limited};
use hyper::header::{CONNECTION, HOST, HeaderValue};
use hyper::{Request, Uri};
use instant_acme::{BodyWrapper, BytesResponse, Error, HttpClient};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::dial::AuthorityDialer;
use crate::web::io::Io;

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
