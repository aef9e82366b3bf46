//! Tells what the first bytes of a file are, as a frontend tells its visitors apart.
//!
//! The sniffers see bytes and nothing else, and say so when they need more. Cut a
//! file off anywhere: the answer is "need more" or the same as for the whole.
//!
//! Run it: `printf 'GET / HTTP/1.1\r\nHost: bob.example\r\n\r\n' | cargo run --example sniff_file`

use std::io::Read;

use kite::sniff::{HttpKind, MAX_FIRST_FLIGHT, Sniff, Visitor, Voice, sniff};

fn main() -> std::io::Result<()> {
    let mut bytes = Vec::new();
    match std::env::args_os().nth(1) {
        Some(path) => std::fs::File::open(path)?
            .take(MAX_FIRST_FLIGHT as u64)
            .read_to_end(&mut bytes)?,
        None => std::io::stdin()
            .take(MAX_FIRST_FLIGHT as u64)
            .read_to_end(&mut bytes)?,
    };
    println!("{} bytes: {}", bytes.len(), describe(&bytes));
    Ok(())
}

fn describe(bytes: &[u8]) -> String {
    match sniff(bytes) {
        Sniff::NeedMore => "fine so far, but not complete".into(),
        Sniff::Found(Visitor::Tls(hello)) => {
            let name = hello.sni.map_or("nobody".into(), |name| name.to_string());
            let what = if hello.alpn_kite {
                "a kite's tunnel"
            } else {
                "a visitor"
            };
            format!("a TLS ClientHello of {what}, for {name}")
        }
        Sniff::Found(Visitor::Http(head)) => {
            let what = match &head.kind {
                HttpKind::Tunnel => "a backend that opens a tunnel".into(),
                HttpKind::Ping => "a backend that measures the frontend".into(),
                HttpKind::Connect { host, port } => format!("a CONNECT to {host}, port {port}"),
                HttpKind::Websocket => "a WebSocket request".into(),
                HttpKind::Request if head.foolscap.is_some() => "foolscap's opening".into(),
                HttpKind::Request => "an HTTP request".into(),
            };
            let host = head.host.map_or("nobody".into(), |name| name.to_string());
            format!("{what}, for {host}, with a head of {} bytes", head.len)
        }
        Sniff::Found(Visitor::Xmpp(host)) => format!("an XMPP stream to {host}"),
        Sniff::Found(Visitor::Minecraft(host)) => format!("a Minecraft handshake for {host}"),
        Sniff::Refuse(why) => {
            let answer = match why.voice() {
                Voice::Http(status) => format!("HTTP status {status}"),
                Voice::TlsAlert(description) => format!("TLS alert {description}"),
                Voice::XmppError => "an XMPP error".into(),
                Voice::Close => "a close".into(),
            };
            format!("{why}; a frontend answers with {answer}")
        }
    }
}
