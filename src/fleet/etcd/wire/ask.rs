//! What etcd is asked. Sans-IO.

use serde::Serialize;

use super::{Bytes, Int, PAGE};

/// A question: the path that it goes to, and its body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// Where to.
    pub path: &'static str,
    /// JSON.
    pub body: String,
}

fn question(path: &'static str, body: &impl Serialize) -> Question {
    Question {
        path,
        // These are texts and numbers, which become JSON whatever they are.
        body: serde_json::to_string(body).unwrap_or_default(),
    }
}

fn text(of: &str) -> Bytes {
    Bytes(of.as_bytes().to_vec())
}

/// The end of the range of all keys that begin so: one letter up. (`/`, which our prefixes end with, has a successor.)
fn end_of(prefix: &str) -> Bytes {
    let mut end = prefix.as_bytes().to_vec();
    if let Some(last) = end.last_mut() {
        *last = last.saturating_add(1);
    }
    Bytes(end)
}

#[derive(Serialize)]
struct Put {
    key: Bytes,
    value: Bytes,
    #[serde(skip_serializing_if = "Option::is_none")]
    lease: Option<Int>,
}

#[derive(Serialize)]
struct Delete {
    key: Bytes,
}

#[derive(Serialize)]
struct Range {
    key: Bytes,
    #[serde(skip_serializing_if = "Option::is_none")]
    range_end: Option<Bytes>,
    #[serde(skip_serializing_if = "Option::is_none")]
    limit: Option<Int>,
    #[serde(skip_serializing_if = "Option::is_none")]
    revision: Option<Int>,
}

#[derive(Serialize)]
enum Operation {
    #[serde(rename = "requestPut")]
    Put(Put),
    #[serde(rename = "requestDeleteRange")]
    Delete(Delete),
    #[serde(rename = "requestRange")]
    Range(Range),
}

#[derive(Serialize)]
struct Compare {
    key: Bytes,
    result: &'static str,
    #[serde(flatten)]
    with: With,
}

#[derive(Serialize)]
#[serde(tag = "target")]
enum With {
    #[serde(rename = "CREATE")]
    Create { create_revision: Int },
    #[serde(rename = "LEASE")]
    Lease { lease: Int },
}

#[derive(Serialize)]
struct Transaction {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    compare: Vec<Compare>,
    success: Vec<Operation>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    failure: Vec<Operation>,
}

/// A lease that lives for so many seconds without a word.
pub fn grant(seconds: u64) -> Question {
    #[derive(Serialize)]
    struct Body {
        #[serde(rename = "TTL")]
        ttl: Int,
    }
    let ttl = Int(seconds.try_into().unwrap_or(i64::MAX));
    question("/v3/lease/grant", &Body { ttl })
}

#[derive(Serialize)]
struct OfLease {
    #[serde(rename = "ID")]
    id: Int,
}

/// The lease lives on.
pub fn keep_alive(lease: i64) -> Question {
    question("/v3/lease/keepalive", &OfLease { id: Int(lease) })
}

/// The lease ends, and all that stands under it.
pub fn revoke(lease: i64) -> Question {
    question("/v3/lease/revoke", &OfLease { id: Int(lease) })
}

/// Which life of etcd's is this? Whoever asks first gives it a name, which is kept until etcd is wiped.
pub fn life(key: &str, name: &str) -> Question {
    let put = Put {
        key: text(key),
        value: text(name),
        lease: None,
    };
    let range = Range {
        key: text(key),
        range_end: None,
        limit: None,
        revision: None,
    };
    let transaction = Transaction {
        compare: vec![Compare {
            key: text(key),
            result: "EQUAL",
            with: With::Create {
                create_revision: Int(0),
            },
        }],
        success: vec![Operation::Put(put)],
        failure: vec![Operation::Range(range)],
    };
    question("/v3/kv/txn", &transaction)
}

/// A page of all that begins so: from `after` on, which is the last key of the page before, as it was at that revision.
pub fn range(prefix: &str, after: Option<(&[u8], i64)>) -> Question {
    let from = match after {
        // The key that comes next is this one and a zero.
        Some((last, _)) => Bytes([last, &[0]].concat()),
        None => text(prefix),
    };
    let body = Range {
        key: from,
        range_end: Some(end_of(prefix)),
        limit: Some(Int(PAGE as i64)),
        revision: after.map(|(_, revision)| Int(revision)),
    };
    question("/v3/kv/range", &body)
}

/// All changes at once: what a key is to be, or that it is to go. At most [`MAX_CHANGES`].
pub fn write<'a>(
    changes: impl IntoIterator<Item = (&'a str, Option<&'a str>)>,
    lease: i64,
) -> Question {
    let operation = |(key, value): (&str, Option<&str>)| match value {
        Some(value) => Operation::Put(Put {
            key: text(key),
            value: text(value),
            lease: Some(Int(lease)),
        }),
        None => Operation::Delete(Delete { key: text(key) }),
    };
    let transaction = Transaction {
        compare: Vec::new(),
        success: changes.into_iter().map(operation).collect(),
        failure: Vec::new(),
    };
    question("/v3/kv/txn", &transaction)
}

/// The key is to go, if it stands under this lease still.
pub fn withdraw(key: &str, lease: i64) -> Question {
    let transaction = Transaction {
        compare: vec![Compare {
            key: text(key),
            result: "EQUAL",
            with: With::Lease { lease: Int(lease) },
        }],
        success: vec![Operation::Delete(Delete { key: text(key) })],
        failure: Vec::new(),
    };
    question("/v3/kv/txn", &transaction)
}

/// All that changes from this revision on, of what begins so. The answer has no end.
pub fn watch(prefix: &str, from: i64) -> Question {
    #[derive(Serialize)]
    struct Create {
        key: Bytes,
        range_end: Bytes,
        start_revision: Int,
        progress_notify: bool,
        fragment: bool,
    }
    #[derive(Serialize)]
    struct Body {
        create_request: Create,
    }
    let create_request = Create {
        key: text(prefix),
        range_end: end_of(prefix),
        start_revision: Int(from),
        progress_notify: true,
        fragment: true,
    };
    question("/v3/watch", &Body { create_request })
}

/// Who we are, for a token.
pub fn log_in(name: &str, password: &str) -> Question {
    #[derive(Serialize)]
    struct Body<'a> {
        name: &'a str,
        password: &'a str,
    }
    question("/v3/auth/authenticate", &Body { name, password })
}
