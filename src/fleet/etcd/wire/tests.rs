//! Answers as etcd 3.4.23 (Debian 12) gave them, taken down with curl; the path and what was sent is beside each.

use super::*;

const HEADER: &str = r#""header":{"cluster_id":"14841639068965178418","member_id":"10276657743932975437","revision":"5","raft_term":"2"}"#;

/// `HEADER` stands for the header, which is the same in all.
fn recorded(answer: &str) -> Vec<u8> {
    answer.replace("HEADER", HEADER).into_bytes()
}

#[test]
fn leases_are_asked_for_and_kept() {
    assert_eq!(grant(10).body, r#"{"TTL":"10"}"#);
    let answer = recorded(r#"{HEADER,"ID":"7587899185547920133","TTL":"10"}"#);
    assert_eq!(granted(&answer), Ok(7_587_899_185_547_920_133));
    // /v3/lease/keepalive
    assert_eq!(keep_alive(12345).body, r#"{"ID":"12345"}"#);
    let answer = recorded("{\"result\":{HEADER,\"ID\":\"7587899185547920133\",\"TTL\":\"10\"}}\n");
    assert_eq!(kept_alive(&answer), Ok(true));
    let answer = recorded("{\"result\":{HEADER,\"ID\":\"12345\"}}\n");
    assert_eq!(kept_alive(&answer), Ok(false), "it is over");
}

#[test]
fn a_life_is_named_once() {
    let asked = life("kite/life", "abc");
    assert_eq!(asked.path, "/v3/kv/txn");
    assert_eq!(
        asked.body,
        r#"{"compare":[{"key":"a2l0ZS9saWZl","result":"EQUAL","target":"CREATE","create_revision":"0"}],"success":[{"requestPut":{"key":"a2l0ZS9saWZl","value":"YWJj"}}],"failure":[{"requestRange":{"key":"a2l0ZS9saWZl"}}]}"#
    );
    let first = recorded(
        r#"{HEADER,"succeeded":true,"responses":[{"response_put":{"header":{"revision":"5"}}}]}"#,
    );
    assert_eq!(lived(&first, "abc"), Ok(("abc".into(), 5)));
    let later = recorded(
        r#"{HEADER,"responses":[{"response_range":{"header":{"revision":"5"},"kvs":[{"key":"a2l0ZS9saWZl","create_revision":"2","mod_revision":"2","version":"1","value":"YWJj"}],"count":"1"}}]}"#,
    );
    assert_eq!(lived(&later, "xyz"), Ok(("abc".into(), 5)));
    assert_eq!(lived(&recorded("{HEADER}"), "x"), Err(Trouble::Gibberish));
}

#[test]
fn a_range_comes_in_pages() {
    assert_eq!(
        range("kite/", None).body,
        r#"{"key":"a2l0ZS8=","range_end":"a2l0ZTA=","limit":"1000"}"#
    );
    assert_eq!(
        range("kite/", Some((b"kite/a", 7))).body,
        r#"{"key":"a2l0ZS9hAA==","range_end":"a2l0ZTA=","limit":"1000","revision":"7"}"#
    );
    assert_eq!(
        page(&recorded("{HEADER}")),
        Ok(Page {
            revision: 5,
            entries: Vec::new(),
            more: false
        })
    );
    let answer = recorded(
        r#"{HEADER,"kvs":[{"key":"a2l0ZS9saWZl","create_revision":"2","mod_revision":"2","version":"1","value":"YWJj"}],"more":true,"count":"2"}"#,
    );
    let stored = Stored {
        key: b"kite/life".to_vec(),
        value: b"abc".to_vec(),
        revision: 2,
    };
    assert_eq!(
        page(&answer),
        Ok(Page {
            revision: 5,
            entries: vec![stored],
            more: true
        })
    );
}

#[test]
fn changes_go_together() {
    let asked = write([("kite/a", Some("1")), ("kite/b", None)], 7);
    assert_eq!(
        asked.body,
        r#"{"success":[{"requestPut":{"key":"a2l0ZS9h","value":"MQ==","lease":"7"}},{"requestDeleteRange":{"key":"a2l0ZS9i"}}]}"#
    );
    assert_eq!(
        withdraw("kite/a", 7).body,
        r#"{"compare":[{"key":"a2l0ZS9h","result":"EQUAL","target":"LEASE","lease":"7"}],"success":[{"requestDeleteRange":{"key":"a2l0ZS9h"}}]}"#
    );
    let answer = recorded(
        r#"{HEADER,"succeeded":true,"responses":[{"response_put":{"header":{"revision":"2"}}},{"response_delete_range":{"header":{"revision":"2"}}}]}"#,
    );
    assert_eq!(written(&answer), Ok(5));
    assert_eq!(written(&recorded("{HEADER}")), Err(Trouble::Gibberish));
}

#[test]
fn a_watch_tells_what_changes() {
    assert_eq!(
        watch("kite/", 6).body,
        r#"{"create_request":{"key":"a2l0ZS8=","range_end":"a2l0ZTA=","start_revision":"6","progress_notify":true,"fragment":true}}"#
    );
    let said = |line: &str| notice(&recorded(line));
    assert_eq!(
        said(r#"{"result":{HEADER,"created":true}}"#),
        Ok(Notice::Stands(5))
    );
    assert_eq!(said(r#"{"result":{HEADER}}"#), Ok(Notice::Nothing(5)));
    let put = |key: &str, value: &str, revision| {
        Event::Put(Stored {
            key: key.into(),
            value: value.into(),
            revision,
        })
    };
    assert_eq!(
        said(
            r#"{"result":{HEADER,"events":[{"kv":{"key":"a2l0ZS96","create_revision":"3","mod_revision":"3","version":"1","value":"MQ=="}},{"type":"DELETE","kv":{"key":"a2l0ZS96","mod_revision":"4"}}]}}"#
        ),
        Ok(Notice::Events(
            vec![
                put("kite/z", "1", 3),
                Event::Gone {
                    key: b"kite/z".to_vec(),
                    revision: 4
                }
            ],
            Whole::Yes
        ))
    );
    // Of 700 kB each, the values cut out here.
    assert_eq!(
        said(
            r#"{"result":{HEADER,"fragment":true,"events":[{"kv":{"key":"a2l0ZS96","create_revision":"2","mod_revision":"4","version":"3"}}]}}"#
        ),
        Ok(Notice::Events(vec![put("kite/z", "", 4)], Whole::No))
    );
    assert_eq!(
        said(
            r#"{"result":{"header":{"cluster_id":"14841639068965178418","member_id":"10276657743932975437","raft_term":"2"},"canceled":true,"compact_revision":"4"}}"#
        ),
        Ok(Notice::Compacted)
    );
    assert_eq!(
        said(
            r#"{"result":{HEADER,"watch_id":"-1","created":true,"canceled":true,"cancel_reason":"rpc error: code = InvalidArgument desc = etcdserver: user name is empty"}}"#
        ),
        Err(Trouble::TokenGone)
    );
    assert_eq!(
        said(
            r#"{"result":{HEADER,"watch_id":"-1","created":true,"canceled":true,"cancel_reason":"rpc error: code = PermissionDenied desc = etcdserver: permission denied"}}"#
        ),
        Err(Trouble::Forbidden(
            "rpc error: code = PermissionDenied desc = etcdserver: permission denied".into()
        ))
    );
    assert_eq!(
        said(
            r#"{"error":{"grpc_code":14,"http_code":503,"message":"etcdserver: no leader","http_status":"Service Unavailable"}}"#
        ),
        Err(Trouble::NoLeader)
    );
}

#[test]
fn what_etcd_refuses_is_told_apart() {
    let said = |status, words: &str| {
        let body = format!(r#"{{"error":"{words}","message":"{words}","code":5}}"#);
        refusal(status, body.as_bytes())
    };
    assert_eq!(
        said(404, "etcdserver: requested lease not found"),
        Trouble::LeaseGone
    );
    assert_eq!(
        said(400, "etcdserver: user name is empty"),
        Trouble::TokenGone
    );
    assert_eq!(
        said(401, "etcdserver: invalid auth token"),
        Trouble::TokenGone
    );
    assert_eq!(
        said(429, "etcdserver: mvcc: database space exceeded"),
        Trouble::Full
    );
    assert_eq!(
        said(503, "etcdserver: request timed out"),
        Trouble::NoLeader
    );
    assert_eq!(
        said(
            400,
            "etcdserver: mvcc: required revision has been compacted"
        ),
        Trouble::Compacted
    );
    let forbidden = "etcdserver: authentication failed, invalid user ID or password";
    assert_eq!(said(400, forbidden), Trouble::Forbidden(forbidden.into()));
    assert_eq!(
        said(412, "etcdserver: authentication is not enabled"),
        Trouble::NoUsers
    );
    let many = "etcdserver: too many operations in txn request";
    assert_eq!(said(400, many), Trouble::Refused(many.into()));
    let named = b"CommonName of client sending a request against gateway will be ignored and not used as expected";
    assert_eq!(refusal(400, named), Trouble::NamedCertificate);
    assert_eq!(refusal(404, b"Not Found"), Trouble::NoGateway(404));
}

#[test]
fn a_password_buys_a_token() {
    let asked = log_in("u", "p\"w");
    assert_eq!(asked.path, "/v3/auth/authenticate");
    assert_eq!(asked.body, r#"{"name":"u","password":"p\"w"}"#);
    let answer = recorded(r#"{HEADER,"token":"PGcHqkRVLsTmRyhx.16"}"#);
    assert_eq!(token(&answer).unwrap().as_str(), "PGcHqkRVLsTmRyhx.16");
}

#[test]
fn nonsense_is_said_to_be_that() {
    for bad in [
        "",
        "{",
        "[]",
        r#"{"result":null}"#,
        "<html>",
        r#"{"result":{"events":[{"type":"X","kv":{}}]}}"#,
    ] {
        assert_eq!(notice(bad.as_bytes()), Err(Trouble::Gibberish), "{bad}");
    }
    for bad in [
        r#"{"ID":7}"#,
        r#"{"ID":"x"}"#,
        "{}",
        r#"{"ID":"99999999999999999999"}"#,
    ] {
        assert_eq!(granted(bad.as_bytes()), Err(Trouble::Gibberish), "{bad}");
    }
    let bad = recorded(r#"{HEADER,"kvs":[{"key":"***"}]}"#);
    assert_eq!(page(&bad), Err(Trouble::Gibberish));
    // It would be asked for the next page for ever.
    assert_eq!(
        page(&recorded(r#"{HEADER,"more":true}"#)),
        Err(Trouble::Gibberish)
    );
}

#[test]
fn lines_are_cut_wherever_the_pieces_end_and_have_a_longest() {
    let text = b"first\n\nthird\nrest";
    for size in 1..=text.len() {
        let (mut lines, mut got) = (Lines::default(), Vec::new());
        for piece in text.chunks(size) {
            lines.push(piece);
            while let Some(line) = lines.take().unwrap() {
                got.push(line.to_vec());
            }
        }
        assert_eq!(got, [&b"first\n"[..], b"\n", b"third\n"]);
    }
    let mut lines = Lines::default();
    lines.push(&vec![b'x'; MAX_LINE - 1]);
    assert_eq!(lines.take(), Ok(None));
    lines.push(b"\n");
    assert_eq!(lines.take().unwrap().unwrap().len(), MAX_LINE);
    lines.push(&vec![b'x'; MAX_LINE + 1]);
    assert_eq!(lines.take(), Err(Trouble::TooLong));
}
