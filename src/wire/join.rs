//! How an invitation is spent: one request and one answer, within TLS with the frontend's own key or within its
//! onion service, and nowhere else (docs/invitations.md). An extension of kite: to any other frontend, and to an older
//! kite, it is a request for a name that nobody flies.

use bytes::BytesMut;
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, Zeroizing};

/// The request's first line. The digit is the version of all that follows.
const REQUEST: &str = "POST /~:kite:~/join1 HTTP/1.1\r\n";
/// Longest body of request and answer, in bytes.
pub const MAX_BODY: usize = 4 * 1024;
/// Longest head of an answer, in bytes.
const MAX_ANSWER_HEAD: usize = 4 * 1024;
/// What tells our answers from other people's pages.
const TYPE: &str = "application/vnd.kite.join1+json";

/// What the backend says. Not for logs.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ask {
    /// The invitation's token, as text.
    pub token: String,
    /// The kite that it takes itself to be invited for.
    pub kite: String,
    /// The secret that the kite shall have.
    pub secret: String,
}

impl Drop for Ask {
    fn drop(&mut self) {
        self.token.zeroize();
        self.secret.zeroize();
    }
}

/// What the frontend says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Reply {
    /// The kite may fly with that secret.
    Joined {
        /// For what: the words of [`crate::kite::Protocol`].
        protocols: Vec<String>,
    },
    /// Nothing has changed.
    Refused(Refusal),
}

/// Why nothing has changed. Whoever has no genuine token hears [`Refusal::Unknown`], and no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "lowercase")]
pub enum Refusal {
    /// No such token.
    #[error(
        "the frontend knows no such invitation; ask its operator for another, and copy the whole line"
    )]
    Unknown,
    /// Too many wrong ones from there.
    #[error("the frontend has heard too many wrong invitations of late; try again in some minutes")]
    Busy,
    /// It was good until now.
    #[error("the invitation has expired; ask the frontend's operator for another")]
    Expired,
    /// It was taken back.
    #[error("the frontend's operator has taken the invitation back; ask for another")]
    Revoked,
    /// Somebody was faster.
    #[error(
        "the invitation was used already, with another secret. If that was not you, somebody else has read it: tell the frontend's operator, who takes the kite from them with `kite frontend kites remove NAME`, and ask for another"
    )]
    Used,
    /// The name was given away in the meantime.
    #[error(
        "the frontend's operator has given the kite's name away in the meantime; ask for another invitation"
    )]
    Taken,
    /// The kite came of it, and is gone.
    #[error(
        "the kite that came of this invitation was removed by the frontend's operator; ask for another invitation"
    )]
    Removed,
    /// The frontend's disk, most likely.
    #[error("the frontend cannot write it down now; its log says why. Try again later")]
    Trouble,
}

/// Whether a request's head begins so.
pub fn is_asked(head: &[u8]) -> bool {
    head.starts_with(REQUEST.as_bytes())
}

/// The whole request.
pub fn put_ask(ask: &Ask) -> Zeroizing<Vec<u8>> {
    let body = Zeroizing::new(serde_json::to_vec(ask).unwrap_or_default());
    let head = format!(
        "{REQUEST}Host: join.kite\r\nContent-Type: {TYPE}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    Zeroizing::new([head.as_bytes(), &body].concat())
}

/// How long the body is that a head announces; `None` if it says so in no way that we take.
pub fn body_len(head: &[u8]) -> Option<usize> {
    let head = std::str::from_utf8(head).ok()?;
    let mut lengths = head.lines().filter_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length")
            .then(|| value.trim())
    });
    let (Some(length), None) = (lengths.next(), lengths.next()) else {
        return None;
    };
    length.parse().ok().filter(|length| *length <= MAX_BODY)
}

/// Reads a request's body.
pub fn parse_ask(body: &[u8]) -> Option<Ask> {
    serde_json::from_slice(body).ok()
}

/// The whole answer.
pub fn put_reply(reply: &Reply) -> Vec<u8> {
    let status = match reply {
        Reply::Joined { .. } => "200 OK",
        Reply::Refused(_) => "403 Forbidden",
    };
    let body = serde_json::to_vec(reply).unwrap_or_default();
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {TYPE}\r\nContent-Length: {}\r\nCache-Control: no-store\r\nConnection: close\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), &body].concat()
}

/// What became of an answer so far.
#[derive(Debug, PartialEq, Eq)]
pub enum Heard {
    /// It is not complete.
    NeedMore,
    /// It is this.
    Reply(Reply),
    /// Something else answered: another program, or a kite that knows no invitations.
    Foreign,
}

/// Looks at what has come of an answer.
pub fn parse_reply(got: &BytesMut) -> Heard {
    let window = got.get(..MAX_ANSWER_HEAD).unwrap_or(got);
    let Some(end) = memchr::memmem::find(window, b"\r\n\r\n") else {
        return match got.len() > MAX_ANSWER_HEAD {
            true => Heard::Foreign,
            false => Heard::NeedMore,
        };
    };
    let (head, rest) = got.split_at(end + 4);
    let ours = std::str::from_utf8(head).is_ok_and(|head| {
        head.starts_with("HTTP/1.1 ") && head.contains(&format!("\r\nContent-Type: {TYPE}\r\n"))
    });
    let Some(length) = body_len(head).filter(|_| ours) else {
        return Heard::Foreign;
    };
    match rest.get(..length) {
        None => Heard::NeedMore,
        Some(body) => serde_json::from_slice(body).map_or(Heard::Foreign, Heard::Reply),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_read_as_it_was_written() {
        let ask = Ask {
            token: "token".into(),
            kite: "bob.alice.example".into(),
            secret: "secret".into(),
        };
        let text = put_ask(&ask);
        let end = memchr::memmem::find(&text, b"\r\n\r\n").expect("a blank line") + 4;
        let (head, body) = text.split_at(end);
        assert!(is_asked(head));
        assert_eq!(body_len(head), Some(body.len()));
        let read = parse_ask(body).expect("a request");
        assert_eq!(read.token, ask.token);
        assert_eq!(read.kite, ask.kite);
        assert_eq!(read.secret, ask.secret);
        assert!(parse_ask(b"{}").is_none());
    }

    #[test]
    fn lengths_are_taken_literally_and_only_within_the_bound() {
        let head = |fields: &str| format!("{REQUEST}Host: x\r\n{fields}\r\n");
        let len = |fields: &str| body_len(head(fields).as_bytes());
        assert_eq!(len("Content-Length: 10\r\n"), Some(10));
        assert_eq!(len("content-length:4096\r\n"), Some(MAX_BODY));
        assert_eq!(len("Content-Length: 4097\r\n"), None);
        assert_eq!(len("Content-Length: 1\r\nContent-Length: 1\r\n"), None);
        assert_eq!(len("Content-Length: -1\r\n"), None);
        assert_eq!(len(""), None);
    }

    #[test]
    fn an_answer_is_read_however_it_comes() {
        for reply in [
            Reply::Joined {
                protocols: vec!["foolscap".into()],
            },
            Reply::Refused(Refusal::Used),
        ] {
            let text = put_reply(&reply);
            let mut got = BytesMut::new();
            for (i, byte) in text.iter().enumerate() {
                assert_eq!(parse_reply(&got), Heard::NeedMore, "{i}");
                got.extend_from_slice(&[*byte]);
            }
            assert_eq!(parse_reply(&got), Heard::Reply(reply));
        }
        for foreign in [
            "HTTP/1.1 503 Unavailable\r\nContent-Type: text/html\r\nContent-Length: 2\r\n\r\n{}",
            "HTTP/1.1 200 OK\r\nContent-Type: application/vnd.kite.join1+json\r\nContent-Length: 2\r\n\r\n{}",
        ] {
            assert_eq!(parse_reply(&BytesMut::from(foreign)), Heard::Foreign);
        }
        let endless = BytesMut::from(vec![b'x'; MAX_ANSWER_HEAD + 1].as_slice());
        assert_eq!(parse_reply(&endless), Heard::Foreign);
        // However much of it comes at once.
        let mut late = put_reply(&Reply::Refused(Refusal::Used));
        let status = b"HTTP/1.1 403 Forbidden\r\n".len();
        let filler = format!("X: {}\r\n", "x".repeat(MAX_ANSWER_HEAD));
        late.splice(status..status, filler.into_bytes());
        assert_eq!(parse_reply(&BytesMut::from(&late[..])), Heard::Foreign);
    }
}
