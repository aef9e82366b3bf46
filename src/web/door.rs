//! HTTP for this machine alone: who may ask, how much, and for how long. What is answered is the [`Site`]'s affair.
//!
//! A browser on this machine is everybody's tool: any page in it can send requests here. So a request must name this
//! place, and no other site may have made it.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{ALLOW, CONTENT_TYPE, HOST, HeaderMap, HeaderValue, ORIGIN};
use hyper::http::request::Parts;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::io::Io;
use crate::listen::{LocalAddr, LocalListener};

/// Connections at a time. More wait in the kernel's queue.
const MAX_CONNECTIONS: usize = 32;
/// From a connection's beginning to its end; there is one request on it. Slow ones are cut.
const LIFE: Duration = Duration::from_secs(10);
/// Largest request head, in bytes, and most of its fields.
const MAX_HEAD: usize = 16 * 1024;
const MAX_FIELDS: usize = 64;

/// What every answer has: nothing is kept, guessed, framed, told on or mixed with other sites. A site may have a
/// `Content-Security-Policy` of its own.
const HEADERS: &[(&str, &str)] = &[
    (
        "content-security-policy",
        "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    ),
    ("cache-control", "no-store"),
    ("x-content-type-options", "nosniff"),
    ("x-frame-options", "DENY"),
    ("referrer-policy", "no-referrer"),
    ("cross-origin-opener-policy", "same-origin"),
    ("cross-origin-embedder-policy", "require-corp"),
    ("cross-origin-resource-policy", "same-origin"),
    (
        "permissions-policy",
        "camera=(), geolocation=(), microphone=()",
    ),
];

/// An answer.
pub type Answer = Response<Full<Bytes>>;

/// What is shown at a door.
pub trait Site: Send + Sync + 'static {
    /// The answer to a GET, or a HEAD, which comes from this machine and no other site.
    fn answer(&self, request: &Parts) -> Answer;
}

/// Serves until it is dropped.
pub async fn serve(listener: LocalListener, site: Arc<dyn Site>) {
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let at = listener.address().clone();
    loop {
        // Nobody closes the semaphore.
        let Ok(slot) = slots.clone().acquire_owned().await else {
            return;
        };
        let conn = listener.accept().await;
        let (site, at) = (site.clone(), at.clone());
        tokio::spawn(async move {
            let service = service_fn(|request: Request<_>| {
                let (head, _body) = request.into_parts();
                let answer = finished(answer(&head, &at, &*site));
                async move { Ok::<_, Infallible>(answer) }
            });
            let serving = hyper::server::conn::http1::Builder::new()
                .keep_alive(false)
                .max_headers(MAX_FIELDS)
                .max_buf_size(MAX_HEAD)
                .header_read_timeout(None)
                .serve_connection(Io(conn), service);
            // Whoever is too slow, or speaks no HTTP, is closed.
            let _ = timeout(LIFE, serving).await;
            drop(slot);
        });
    }
}

fn answer(head: &Parts, at: &LocalAddr, site: &dyn Site) -> Answer {
    if !names_us(&head.headers, at) {
        return text(
            StatusCode::MISDIRECTED_REQUEST,
            "This request is for another name. Use the address that kite listens on.\n",
        );
    }
    if let Some(why) = foreign(&head.headers) {
        return text(StatusCode::FORBIDDEN, why);
    }
    if head.method != Method::GET && head.method != Method::HEAD {
        let mut answer = text(
            StatusCode::METHOD_NOT_ALLOWED,
            "There is nothing to change here.\n",
        );
        let methods = HeaderValue::from_static("GET, HEAD");
        answer.headers_mut().insert(ALLOW, methods);
        return answer;
    }
    site.answer(head)
}

/// A page of another site can have its name lead here (DNS rebinding), but not have a browser say ours.
fn names_us(headers: &HeaderMap, at: &LocalAddr) -> bool {
    let mut hosts = headers.get_all(HOST).iter();
    let (Some(host), None) = (hosts.next(), hosts.next()) else {
        return false;
    };
    let Ok(host) = host.to_str() else {
        return false;
    };
    match at {
        LocalAddr::Tcp(address) => {
            let port = address.port();
            let bare = port == 80;
            let names = [address.ip().to_string(), "localhost".to_owned()];
            host == address.to_string()
                || host == format!("localhost:{port}")
                || bare && names.iter().any(|name| host == name)
        }
        // What is forwarded to it may have any port; it has no name of its own.
        LocalAddr::Unix(_) => {
            let name = match host.rsplit_once(':') {
                Some((name, port)) if port.parse::<u16>().is_ok() => name,
                _ => host,
            };
            let address = format!("{name}:80").parse::<SocketAddr>();
            name == "localhost" || address.is_ok_and(|address| address.ip().is_loopback())
        }
    }
}

/// Why a request was not made by the user, or by a page of ours.
fn foreign(headers: &HeaderMap) -> Option<&'static str> {
    let is = |name: &str, fine: &dyn Fn(&str) -> bool| {
        let mut values = headers.get_all(name).iter();
        values.all(|value| value.to_str().is_ok_and(fine))
    };
    if !is("sec-fetch-site", &|site| {
        matches!(site, "same-origin" | "none")
    }) {
        return Some("Another site made this request.\n");
    }
    let host = headers.get(HOST).and_then(|host| host.to_str().ok());
    let own = host.map(|host| format!("http://{host}"));
    if !is(ORIGIN.as_str(), &|origin| {
        own.as_ref().is_some_and(|own| own == origin)
    }) {
        return Some("This request comes from another origin.\n");
    }
    None
}

/// Adds what every answer has.
fn finished(mut answer: Answer) -> Answer {
    for (name, value) in HEADERS {
        if let hyper::header::Entry::Vacant(entry) = answer.headers_mut().entry(*name) {
            entry.insert(HeaderValue::from_static(value));
        }
    }
    answer
}

/// An answer of this type.
pub fn content(status: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Full::new(body.into()));
    *answer.status_mut() = status;
    let kind = HeaderValue::from_static(kind);
    answer.headers_mut().insert(CONTENT_TYPE, kind);
    answer
}

/// A few plain words.
pub fn text(status: StatusCode, words: &'static str) -> Answer {
    content(status, "text/plain; charset=utf-8", words)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Open;

    impl Site for Open {
        fn answer(&self, _: &Parts) -> Answer {
            text(StatusCode::OK, "in\n")
        }
    }

    fn status(at: &str, method: &str, fields: &[(&str, &str)]) -> u16 {
        let mut request = Request::builder().method(method).uri("/");
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        let (head, ()) = request.body(()).expect("a request").into_parts();
        let at = at.parse().expect("an address");
        finished(answer(&head, &at, &Open)).status().as_u16()
    }

    const AT: &str = "127.0.0.1:7465";

    #[test]
    fn only_our_own_name_is_ours() {
        for host in ["127.0.0.1:7465", "localhost:7465"] {
            assert_eq!(status(AT, "GET", &[("host", host)]), 200, "{host}");
        }
        for host in [
            "evil.example:7465",
            "127.0.0.1",
            "localhost",
            "127.0.0.1:80",
            "127.0.0.1.evil.example:7465",
            "localhost:7465.evil.example",
            "[::1]:7465",
            "",
        ] {
            assert_eq!(status(AT, "GET", &[("host", host)]), 421, "{host}");
        }
        assert_eq!(status(AT, "GET", &[]), 421);
        let twice = [("host", AT), ("host", AT)];
        assert_eq!(status(AT, "GET", &twice), 421);
        assert_eq!(status("[::1]:7465", "GET", &[("host", "[::1]:7465")]), 200);
        assert_eq!(status("127.0.0.1:80", "GET", &[("host", "127.0.0.1")]), 200);
    }

    #[test]
    fn a_unix_socket_may_be_forwarded_from_any_port() {
        for host in ["localhost:8000", "localhost", "127.0.0.1:1", "[::1]:1"] {
            assert_eq!(status("unix:/run/x", "GET", &[("host", host)]), 200);
        }
        for host in ["evil.example", "10.0.0.1:80", "localhost:x", ""] {
            assert_eq!(status("unix:/run/x", "GET", &[("host", host)]), 421);
        }
    }

    #[test]
    fn other_sites_and_changes_are_refused() {
        let host = ("host", AT);
        for (name, value, want) in [
            ("sec-fetch-site", "cross-site", 403),
            ("sec-fetch-site", "same-site", 403),
            ("sec-fetch-site", "same-origin", 200),
            ("sec-fetch-site", "none", 200),
            ("origin", "http://evil.example", 403),
            ("origin", "null", 403),
            ("origin", "http://localhost:7465", 403),
            ("origin", "http://127.0.0.1:7465", 200),
        ] {
            assert_eq!(status(AT, "GET", &[host, (name, value)]), want, "{value}");
        }
        for method in ["POST", "PUT", "DELETE", "OPTIONS", "PATCH", "CONNECT"] {
            assert_eq!(status(AT, method, &[host]), 405, "{method}");
        }
        assert_eq!(status(AT, "HEAD", &[host]), 200);
    }
}
