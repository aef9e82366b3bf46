//! What a visitor is told when there is nothing behind a name: a page, an alert,
//! or a plain close, by what it speaks. Frontend and backend say the same, so that
//! a visitor cannot tell which of them spoke.

use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::sniff::{Voice, alert};

/// How long a refused visitor may take to read its answer.
const FAREWELL: Duration = Duration::from_secs(2);
/// What a refused visitor may still send before it is cut off, in bytes.
const FAREWELL_BYTES: u64 = 64 * 1024;

/// How a visitor of a kite that nothing is behind is told so, by the wire's word for the kite (protocol page §7.4).
pub fn offline(wire: &str) -> Voice {
    match wire {
        "http" | "http2" | "http3" | "websocket" => Voice::Http(503),
        "https" => Voice::TlsAlert(alert::ACCESS_DENIED),
        "xmpp" => Voice::XmppError,
        _ => Voice::Close,
    }
}

/// The bytes to send, complete with headers.
pub fn message(voice: Voice) -> Vec<u8> {
    match voice {
        Voice::Http(status) => page(status),
        // A fatal alert in a TLS 1.2 record, as pagekite.py sends it (protocol page §7.4).
        Voice::TlsAlert(description) => vec![0x15, 3, 3, 0, 2, 2, description],
        Voice::XmppError => XMPP_ERROR.to_vec(),
        Voice::Close => Vec::new(),
    }
}

/// A short text, and nothing else.
pub fn plain(text: &str) -> Vec<u8> {
    format!(
        "HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{text}",
        text.len()
    )
    .into_bytes()
}

/// The way to the same page over TLS. `location` must be printable ASCII.
pub fn elsewhere(location: &str) -> Vec<u8> {
    format!(
        "HTTP/1.1 308 Permanent Redirect\r\nLocation: {location}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    )
    .into_bytes()
}

/// A stream that has nothing but its error (RFC 6120 §4.9.1.1).
const XMPP_ERROR: &[u8] = b"<?xml version='1.0'?><stream:stream xmlns='jabber:client' \
xmlns:stream='http://etherx.jabber.org/streams' version='1.0'><stream:error>\
<host-unknown xmlns='urn:ietf:params:xml:ns:xmpp-streams'/></stream:error></stream:stream>";

fn page(status: u16) -> Vec<u8> {
    let (reason, text) = match status {
        400 => (
            "Bad request",
            "This is not a request that can be understood here.",
        ),
        403 => (
            "Forbidden",
            "This name carries storage traffic only, nothing that a browser shows.",
        ),
        404 => ("Not Found", "There is no such node here."),
        421 => ("Misdirected Request", "This request is for another name."),
        429 => (
            "Too Many Requests",
            "Too many come to this name at once. Please try again later.",
        ),
        431 => (
            "Request Header Fields Too Large",
            "The head of the request is too long.",
        ),
        _ => (
            "Unavailable",
            "Nothing is reachable under this name now. Please try again later.",
        ),
    };
    let body =
        format!("<!doctype html><title>{status} {reason}</title><h1>Sorry!</h1><p>{text}</p>\n");
    format!(
        "HTTP/1.1 {status} {reason}\r\nContent-Type: text/html; charset=utf-8\r\nContent-Length: {}\r\n\
         Pragma: no-cache\r\nExpires: 0\r\nCache-Control: no-store\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

/// Says it and closes. Reads for a moment what the visitor still sends: closing a
/// socket with unread bytes resets it, and the answer would be lost with it.
pub async fn refuse<C>(mut conn: C, voice: Voice)
where
    C: AsyncRead + AsyncWrite + Unpin,
{
    say(&mut conn, &message(voice)).await;
}

/// Sends a last word of any kind and closes; see [`refuse`].
pub async fn say<C>(conn: &mut C, last: &[u8])
where
    C: AsyncRead + AsyncWrite + Unpin,
{
    let farewell = async {
        conn.write_all(last).await?;
        conn.flush().await?;
        conn.shutdown().await?;
        tokio::io::copy(&mut conn.take(FAREWELL_BYTES), &mut tokio::io::sink()).await
    };
    // A visitor that does not even read this is simply closed.
    let _ = tokio::time::timeout(FAREWELL, farewell).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_a_whole_response() {
        let text = String::from_utf8(message(Voice::Http(503))).expect("text");
        assert!(text.starts_with("HTTP/1.1 503 Unavailable\r\n"));
        let (head, body) = text.split_once("\r\n\r\n").expect("a blank line");
        assert!(head.contains(&format!("Content-Length: {}", body.len())));
        assert!(message(Voice::Close).is_empty());
        assert_eq!(message(Voice::TlsAlert(49)), [0x15, 3, 3, 0, 2, 2, 0x31]);
    }

    #[tokio::test]
    async fn who_does_not_read_the_answer_is_closed() {
        let (mut conn, _visitor) = tokio::io::duplex(16);
        let began = std::time::Instant::now();
        let page = message(Voice::Http(503));
        let saying = say(&mut conn, &page);
        let said = tokio::time::timeout(5 * FAREWELL, saying).await;
        assert!(said.is_ok() && began.elapsed() >= FAREWELL);
    }

    #[tokio::test]
    async fn who_goes_on_speaking_is_cut_off() {
        let (mut conn, mut visitor) = tokio::io::duplex(1024);
        let speaking = tokio::spawn(async move {
            let mut said = 0;
            while visitor.write_all(&[b'x'; 1024]).await.is_ok() {
                said += 1024;
            }
            said
        });
        say(&mut conn, &message(Voice::Http(503))).await;
        drop(conn);
        let said = speaking.await.expect("no panic");
        assert!((FAREWELL_BYTES..=FAREWELL_BYTES + 1024).contains(&said));
    }
}
