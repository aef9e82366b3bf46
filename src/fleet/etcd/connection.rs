//! A connection to one etcd: questions one after the other, or a watch.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HOST, HeaderValue};
use hyper::{Method, Request, StatusCode};
use tokio::task::JoinSet;
use tokio::time::timeout;
use zeroize::Zeroizing;

use super::wire::{self, Lines, MAX_ANSWER, Notice, Question};
use super::{Endpoint, Trouble};
use crate::dial::etcd::EtcdDialer;
use crate::web::io::Io;

/// Longest wait for a connection to etcd, TLS included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(4);
/// Longest wait for an answer of etcd's. A lease outlives one that does not come.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);
/// A watch of an etcd that has lost its cluster is to end, and not to be silent.
const REQUIRE_LEADER: (&str, HeaderValue) =
    ("grpc-metadata-hasleader", HeaderValue::from_static("true"));

/// What etcd gave for the password, if it wants one.
pub(super) type Token = Option<Zeroizing<String>>;

/// Asks.
pub(super) struct Connection {
    host: HeaderValue,
    token: Option<HeaderValue>,
    sender: SendRequest<Full<Bytes>>,
    /// Dropped, it closes the connection.
    _driver: JoinSet<hyper::Result<()>>,
}

impl Connection {
    /// Connects.
    pub(super) async fn open(
        dialer: &EtcdDialer,
        endpoint: &Endpoint,
        token: &Token,
    ) -> Result<Self, Trouble> {
        let opened = async {
            let dialled = dialer.dial(&endpoint.host, endpoint.port, endpoint.clear);
            let conn = dialled.await.map_err(Trouble::of_dial)?;
            handshake(Io(conn)).await.map_err(Trouble::of_http)
        };
        let opened = timeout(CONNECT_TIMEOUT, opened).await;
        let (sender, connection) = opened.map_err(|_| Trouble::TimedOut)??;
        let mut driver = JoinSet::new();
        driver.spawn(connection);
        let host = HeaderValue::from_str(&endpoint.authority());
        let mut this = Self {
            host: host.map_err(|_| Trouble::Gibberish)?,
            token: None,
            sender,
            _driver: driver,
        };
        this.show(token)?;
        Ok(this)
    }

    /// Shows this token from now on.
    pub(super) fn show(&mut self, token: &Token) -> Result<(), Trouble> {
        let header = |token: &Zeroizing<String>| {
            let mut header = HeaderValue::from_str(token).map_err(|_| Trouble::Gibberish)?;
            header.set_sensitive(true);
            Ok(header)
        };
        self.token = token.as_ref().map(header).transpose()?;
        Ok(())
    }

    /// The answer to a question, within [`ANSWER_TIMEOUT`] and [`MAX_ANSWER`].
    pub(super) async fn ask(&mut self, question: Question) -> Result<Bytes, Trouble> {
        let answered = async {
            let body = self.send(question).await?;
            whole(body).await
        };
        timeout(ANSWER_TIMEOUT, answered)
            .await
            .map_err(|_| Trouble::TimedOut)?
    }

    /// A watch takes the connection for itself.
    pub(super) async fn watch(mut self, question: Question) -> Result<Watch, Trouble> {
        let body = timeout(ANSWER_TIMEOUT, self.send(question)).await;
        Ok(Watch {
            body: body.map_err(|_| Trouble::TimedOut)??,
            lines: Lines::default(),
            _connection: self,
        })
    }

    async fn send(&mut self, question: Question) -> Result<Incoming, Trouble> {
        let Question { path, body } = question;
        let mut request = Request::new(Full::new(Bytes::from(body)));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = hyper::Uri::from_static(path);
        let headers = request.headers_mut();
        headers.insert(HOST, self.host.clone());
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        let (name, value) = REQUIRE_LEADER;
        headers.append(name, value);
        headers.extend(self.token.clone().map(|token| (AUTHORIZATION, token)));
        self.sender.ready().await.map_err(Trouble::of_http)?;
        let sent = self.sender.send_request(request).await;
        let (head, body) = sent.map_err(Trouble::of_http)?.into_parts();
        match head.status {
            StatusCode::OK => Ok(body),
            status => Err(wire::refusal(status.as_u16(), &whole(body).await?)),
        }
    }
}

async fn whole(body: Incoming) -> Result<Bytes, Trouble> {
    match Limited::new(body, MAX_ANSWER).collect().await {
        Ok(body) => Ok(body.to_bytes()),
        Err(e) if e.is::<http_body_util::LengthLimitError>() => Err(Trouble::TooLong),
        Err(_) => Err(Trouble::Closed),
    }
}

/// Hears of changes as they happen.
pub(super) struct Watch {
    body: Incoming,
    lines: Lines,
    _connection: Connection,
}

impl Watch {
    /// The next notice. Dropped before it comes, nothing is lost.
    pub(super) async fn next(&mut self) -> Result<Notice, Trouble> {
        loop {
            if let Some(line) = self.lines.take()? {
                return wire::notice(&line);
            }
            let frame = self.body.frame().await.ok_or(Trouble::Closed)?;
            let frame = frame.map_err(Trouble::of_http)?;
            if let Some(piece) = frame.data_ref() {
                self.lines.push(piece);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::fleet::Inside;
    use crate::fleet::etcd::wire::revoke;
    use crate::listen::{TcpListener, TcpStream, accept, bind};
    use crate::tls::PrivateClient;

    fn dialer() -> EtcdDialer {
        let tls = PrivateClient::new(None, None).expect("nobody's certificates");
        EtcdDialer::new(Inside(()), tls)
    }

    fn place() -> (TcpListener, Endpoint) {
        let port = bind("127.0.0.1:0".parse().expect("an address")).expect("a port");
        let at = port.local_addr().expect("an address");
        let endpoint = Endpoint {
            host: at.ip().to_string(),
            port: at.port(),
            clear: true,
        };
        (port, endpoint)
    }

    /// A connection to somebody who can be made to say anything.
    async fn met() -> (Connection, TcpStream) {
        let (port, endpoint) = place();
        let dialer = dialer();
        let (ours, (theirs, _)) =
            tokio::join!(Connection::open(&dialer, &endpoint, &None), accept(&port));
        (ours.expect("a connection"), theirs)
    }

    /// How a question ends that gets an answer of so many bytes.
    async fn answered_with(len: usize) -> Result<usize, Trouble> {
        let (mut ours, mut theirs) = met().await;
        let answering = async {
            let _ = theirs.read(&mut [0; 4096]).await;
            // Its length is not said.
            let _ = theirs.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await;
            let _ = theirs.write_all(&vec![b' '; len]).await;
            let _ = theirs.shutdown().await;
        };
        let (answer, ()) = tokio::join!(ours.ask(revoke(1)), answering);
        answer.map(|answer| answer.len())
    }

    #[tokio::test]
    async fn an_answer_has_a_length() {
        assert_eq!(answered_with(MAX_ANSWER).await, Ok(MAX_ANSWER));
        assert_eq!(answered_with(MAX_ANSWER + 1).await, Err(Trouble::TooLong));
    }

    /// Each takes its time, so they do it at once.
    #[tokio::test]
    async fn who_is_silent_is_left() {
        let began = Instant::now();
        let asked = async {
            let (mut ours, _theirs) = met().await;
            assert_eq!(ours.ask(revoke(1)).await, Err(Trouble::TimedOut));
            assert!((3..6).contains(&began.elapsed().as_secs()));
        };
        let watched = async {
            let (ours, _theirs) = met().await;
            let watch = ours.watch(revoke(1)).await;
            assert!(matches!(watch, Err(Trouble::TimedOut)));
            assert!((3..6).contains(&began.elapsed().as_secs()));
        };
        let opened = async {
            let (_port, endpoint) = place();
            let endpoint = Endpoint {
                clear: false,
                ..endpoint
            };
            let opened = Connection::open(&dialer(), &endpoint, &None).await;
            assert!(matches!(opened, Err(Trouble::TimedOut)));
            assert!((4..7).contains(&began.elapsed().as_secs()));
        };
        tokio::join!(asked, watched, opened);
    }
}
