//! The rules of the dial boundary, checked as text: which rooms may know sockets, which
//! may know nothing but bytes, and that nobody has quietly lifted a ban.
//!
//! Clippy enforces the bans; this test sees to it that the list is whole and that its
//! exceptions stay where they belong. Each rule is a function over a file's name and text,
//! and is tried on a text that breaks it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// What `clippy.toml` must ban, no more and no less.
const BANNED: &[&str] = &[
    "std::net::ToSocketAddrs::to_socket_addrs",
    "tokio::net::lookup_host",
    "std::net::TcpStream::connect",
    "std::net::TcpStream::connect_timeout",
    "tokio::net::TcpStream::connect",
    "tokio::net::TcpSocket::connect",
    "std::os::unix::net::UnixStream::connect",
    "std::os::unix::net::UnixStream::connect_addr",
    "tokio::net::UnixStream::connect",
    "socket2::Socket::connect",
    "socket2::Socket::connect_timeout",
    "std::net::UdpSocket::bind",
    "std::net::UdpSocket::connect",
    "std::net::UdpSocket::send_to",
    "tokio::net::UdpSocket::bind",
    "tokio::net::UdpSocket::connect",
    "tokio::net::UdpSocket::send_to",
    "std::os::unix::net::UnixDatagram::bind",
    "std::os::unix::net::UnixDatagram::bind_addr",
    "std::os::unix::net::UnixDatagram::connect",
    "std::os::unix::net::UnixDatagram::connect_addr",
    "std::os::unix::net::UnixDatagram::send_to",
    "std::os::unix::net::UnixDatagram::send_to_addr",
    "tokio::net::UnixDatagram::bind",
    "tokio::net::UnixDatagram::connect",
    "tokio::net::UnixDatagram::send_to",
    "socket2::Socket::send_to",
    "std::net::TcpListener::bind",
    "tokio::net::TcpListener::bind",
    "tokio::net::TcpSocket::bind",
    "std::os::unix::net::UnixListener::bind",
    "std::os::unix::net::UnixListener::bind_addr",
    "tokio::net::UnixListener::bind",
    "socket2::Socket::bind",
    "std::process::Command::new",
    "tokio::process::Command::new",
    "arti_client::DangerouslyIntoTorAddr::into_tor_addr_dangerously",
    "arti_client::TorAddr::dangerously_from",
];

/// The only exceptions to the bans outside of tests, and how many each file has.
const EXCEPTIONS: &[(&str, usize)] = &[
    ("src/check/leaks.rs", 1),
    ("src/dial/direct.rs", 2),
    ("src/dial/origin.rs", 1),
    ("src/dial/question.rs", 2),
    ("src/dial/supervisor.rs", 1),
    ("src/frontend/authority/program.rs", 1),
    ("src/listen.rs", 2),
    ("src/run/upgrade.rs", 1),
    ("tor/src/runtime.rs", 1),
];

/// Files and rooms that may name sockets or Arti.
const SOCKET_ROOMS: &[&str] = &[
    "src/dial.rs",
    "src/dial/",
    "src/listen.rs",
    "src/listen/",
    "src/socks.rs",
    "tor/src/",
];

/// What only those may name.
const SOCKETS: &[&str] = &[
    "tokio::net",
    "std::net::TcpStream",
    "std::net::TcpListener",
    "std::net::UdpSocket",
    "std::net::ToSocketAddrs",
    "std::net::*",
    "std::os::unix::net",
    "socket2",
];

/// The one crate that may name Arti.
const ARTI: (&str, &str) = ("tor/src/", "arti_client");

/// The one file that may resolve a name, and what resolving looks like.
const RESOLVER: (&str, &str) = ("src/dial/direct.rs", "lookup_host");

/// The one file that may ask the DNS a question of its own, for a frontend, and what that looks like; its server is
/// found with the rest of the configuration.
const ASKS: (&[&str], &str) = (
    &[
        "src/frontend/authority/dns.rs",
        "src/config.rs",
        "src/dial/question.rs",
    ],
    "question",
);

/// Files and rooms that know bytes and nothing else: time and randomness are handed in.
const SANS_IO: &[&str] = &[
    "src/wire.rs",
    "src/wire/",
    "src/sniff.rs",
    "src/sniff/",
    "src/proxy_header.rs",
    "src/backend/policy.rs",
    "src/backend/introduce.rs",
    "src/fleet/etcd/mirror.rs",
    "src/fleet/etcd/outbox.rs",
    "src/fleet/etcd/record.rs",
    "src/fleet/etcd/wire.rs",
    "src/fleet/etcd/wire/",
    "src/frontend/limits.rs",
    "src/rc/options.rs",
    "src/rc/parse.rs",
    "src/tunnel/mux.rs",
    "src/tunnel/stream.rs",
    "src/tunnel/waiting.rs",
    "src/tunnel/window.rs",
    "src/web/ring.rs",
    "src/web/session.rs",
];

/// What those may not name.
const WORLD: &[&str] = &[
    "tokio",
    "async_trait",
    "futures",
    "std::net",
    "std::fs",
    "std::thread",
    "Instant::now",
    "std::time::Instant::now",
    "SystemTime",
    "std::time::SystemTime",
    "rand",
];

#[test]
fn the_ban_list_is_whole() {
    let clippy = fs::read_to_string(root().join("clippy.toml")).expect("clippy.toml");
    let manifest = fs::read_to_string(root().join("Cargo.toml")).expect("Cargo.toml");
    assert_eq!(bans(&clippy), Vec::<String>::new());
    assert_eq!(lint_level(&manifest), Vec::<String>::new());
    let tor = fs::read_to_string(root().join("tor/Cargo.toml")).expect("tor/Cargo.toml");
    assert!(inherits_lints(&manifest) && inherits_lints(&tor));
}

#[test]
fn every_source_file_keeps_to_its_room() {
    let files = sources();
    assert!(files.len() > 5, "the sources were not found");
    let complaints: Vec<String> = files
        .iter()
        .flat_map(|(name, text)| [tail(name, text), exceptions(name, text), rooms(name, text)])
        .flatten()
        .collect();
    assert!(complaints.is_empty(), "\n{}", complaints.join("\n"));
}

#[test]
fn the_exceptions_are_where_they_were() {
    for (name, count) in EXCEPTIONS {
        let Ok(text) = fs::read_to_string(root().join(name)) else {
            continue;
        };
        assert_eq!(
            lifted(&text),
            *count,
            "{name}: update EXCEPTIONS if this is on purpose"
        );
    }
}

// ---------------------------------------------------------------- the rules

/// `clippy.toml` bans exactly [`BANNED`], with a reason each.
fn bans(clippy: &str) -> Vec<String> {
    let table: toml::Table = clippy.parse().expect("clippy.toml is TOML");
    let empty = Vec::new();
    let entries = table
        .get("disallowed-methods")
        .and_then(|v| v.as_array())
        .unwrap_or(&empty);
    let text = |entry: &toml::Value, key: &str| {
        entry
            .get(key)
            .and_then(|v| v.as_str())
            .unwrap_or_default()
            .to_owned()
    };
    let found: BTreeSet<String> = entries.iter().map(|e| text(e, "path")).collect();
    let wanted: BTreeSet<String> = BANNED.iter().map(|&b| b.to_owned()).collect();
    let missing = wanted
        .difference(&found)
        .map(|p| format!("clippy.toml does not ban {p}"));
    let extra = found
        .difference(&wanted)
        .map(|p| format!("clippy.toml bans {p}, this test does not know it"));
    let mute = entries
        .iter()
        .filter(|e| text(e, "reason").is_empty())
        .map(|e| format!("clippy.toml bans {} without a reason", text(e, "path")));
    missing.chain(extra).chain(mute).collect()
}

/// The ban is an error, not a warning, and unsafe code cannot get around it.
fn lint_level(manifest: &str) -> Vec<String> {
    let table: toml::Table = manifest.parse().expect("Cargo.toml is TOML");
    let lint = |tool: &str, name: &str| {
        table
            .get("workspace")?
            .get("lints")?
            .get(tool)?
            .get(name)?
            .as_str()
            .map(str::to_owned)
    };
    let mut complaints = vec![];
    if lint("clippy", "disallowed_methods").as_deref() != Some("deny") {
        complaints.push(
            "Cargo.toml: workspace.lints.clippy.disallowed_methods is not \"deny\"".to_owned(),
        );
    }
    if lint("rust", "unsafe_code").as_deref() != Some("forbid") {
        complaints
            .push("Cargo.toml: workspace.lints.rust.unsafe_code is not \"forbid\"".to_owned());
    }
    complaints
}

/// A crate's manifest takes the workspace's lints, all of them.
fn inherits_lints(manifest: &str) -> bool {
    let table: toml::Table = manifest.parse().expect("a manifest is TOML");
    let lints = table.get("lints").and_then(|lints| lints.as_table());
    lints.is_some_and(|l| l.len() == 1 && l.get("workspace") == Some(&toml::Value::Boolean(true)))
}

/// A test module stands at the end of its file, so that the other rules can cut it off there.
fn tail(name: &str, text: &str) -> Vec<String> {
    let Some((_, tests)) = text.split_once("\n#[cfg(test)]\n") else {
        return vec![];
    };
    let head = tests
        .lines()
        .map(str::trim)
        .find(|l| l.starts_with("mod ") || l.ends_with(';') || l.contains("fn "));
    let module = head.is_some_and(|l| l.starts_with("mod "));
    let end = tests.find("\n}\n").map(|at| tests[at + 3..].trim());
    let alone = tests
        .lines()
        .any(|l| l.starts_with("mod ") && l.ends_with(';'))
        || end == Some("");
    if module && alone {
        vec![]
    } else {
        vec![format!(
            "{name}: #[cfg(test)] must begin one module at the end of the file"
        )]
    }
}

/// Nobody lifts the ban but the files in [`EXCEPTIONS`], and they by `expect` with a reason.
fn exceptions(name: &str, text: &str) -> Vec<String> {
    let code = without_tests(text);
    let mentions = code.matches("disallowed_methods").count();
    if mentions == 0 {
        return vec![];
    }
    if !EXCEPTIONS.iter().any(|(file, _)| *file == name) {
        return vec![format!("{name}: lifts the ban on disallowed methods")];
    }
    if lifted(text) != mentions {
        return vec![format!(
            "{name}: write #[expect(clippy::disallowed_methods, reason = \"…\")] on one statement or function"
        )];
    }
    vec![]
}

/// How often a file lifts the ban in the one way that is allowed.
fn lifted(text: &str) -> usize {
    let squeezed: String = without_tests(text).split_whitespace().collect();
    squeezed
        .matches("#[expect(clippy::disallowed_methods,reason=\"")
        .count()
}

/// Sockets and Arti in their rooms, the resolver in its file, no world in the sans-IO rooms.
fn rooms(name: &str, text: &str) -> Vec<String> {
    let code = without_tests(text);
    let named = paths(&code);
    let mut complaints = vec![];
    if !is_in(name, SOCKET_ROOMS) {
        complaints.extend(forbidden(
            name,
            &named,
            SOCKETS,
            "belongs to the dial, socks or listen room, or to the tor crate",
        ));
    }
    if !is_in(name, &[ARTI.0]) {
        complaints.extend(forbidden(
            name,
            &named,
            &[ARTI.1],
            "belongs to the tor crate",
        ));
    }
    if is_in(name, SANS_IO) {
        complaints.extend(forbidden(
            name,
            &named,
            WORLD,
            "has no place in a sans-IO room",
        ));
        if code.contains("async ") || code.contains(".await") {
            complaints.push(format!("{name}: async has no place in a sans-IO room"));
        }
    }
    if name != RESOLVER.0
        && named
            .iter()
            .any(|p| p.split("::").any(|part| part == RESOLVER.1))
    {
        complaints.push(format!("{name}: only {} may resolve names", RESOLVER.0));
    }
    if !ASKS.0.contains(&name)
        && named
            .iter()
            .any(|path| path.split("::").any(|part| part == ASKS.1) && path.contains("::"))
    {
        complaints.push(format!(
            "{name}: only a frontend's {} may ask the DNS questions",
            ASKS.0[0]
        ));
    }
    complaints
}

fn forbidden(name: &str, named: &BTreeSet<String>, list: &[&str], why: &str) -> Vec<String> {
    let under = |path: &str, root: &str| {
        path == root
            || path
                .strip_prefix(root)
                .is_some_and(|rest| rest.starts_with("::"))
    };
    named
        .iter()
        .filter(|path| list.iter().any(|root| under(path, root)))
        .map(|path| format!("{name}: {path} {why}"))
        .collect()
}

// ---------------------------------------------------------------- reading sources

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every file of both crates, by its name from the root.
fn sources() -> Vec<(String, String)> {
    fn walk(dir: &Path, found: &mut Vec<(String, String)>) {
        for entry in fs::read_dir(dir).expect("src").flatten() {
            let path = entry.path();
            if path.is_dir() {
                walk(&path, found);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let name = path
                    .strip_prefix(root())
                    .expect("below the root")
                    .to_string_lossy()
                    .into_owned();
                found.push((name, fs::read_to_string(&path).expect("a source file")));
            }
        }
    }
    let mut found = vec![];
    walk(&root().join("src"), &mut found);
    walk(&root().join("tor/src"), &mut found);
    found
}

/// Is the file one of these, or in one of these directories?
fn is_in(name: &str, rooms: &[&str]) -> bool {
    rooms
        .iter()
        .any(|room| name == *room || (room.ends_with('/') && name.starts_with(room)))
}

/// The code before the test module (see [`tail`]), without comments.
fn without_tests(text: &str) -> String {
    let code = text.split("\n#[cfg(test)]\n").next().unwrap_or_default();
    let uncommented = code.lines().map(|line| {
        if line.trim_start().starts_with("//") {
            ""
        } else {
            line.split(" // ").next().unwrap_or_default()
        }
    });
    uncommented.collect::<Vec<_>>().join("\n")
}

/// Every path in the code, `use` trees spelled out: `tokio::{io, net::TcpStream}` gives
/// `tokio::io` and `tokio::net::TcpStream`.
fn paths(code: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut rest = code;
    while let Some(start) = rest.find(|c: char| c.is_ascii_alphabetic() || c == '_') {
        rest = tree(&rest[start..], "", &mut found);
    }
    found
}

/// Reads one path or tree at the beginning of `text`; gives what follows it.
fn tree<'a>(text: &'a str, prefix: &str, found: &mut BTreeSet<String>) -> &'a str {
    let text = text.trim_start();
    let end = text
        .find(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == '*'))
        .unwrap_or(text.len());
    let (word, rest) = text.split_at(end);
    let path = if prefix.is_empty() {
        word.to_owned()
    } else {
        format!("{prefix}::{word}")
    };
    let Some(after) = rest.trim_start().strip_prefix("::") else {
        found.insert(path);
        return rest;
    };
    let after = after.trim_start();
    let Some(mut inside) = after.strip_prefix('{') else {
        if after.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_' || c == '*') {
            return tree(after, &path, found);
        }
        found.insert(path);
        return after;
    };
    loop {
        inside = inside.trim_start_matches(|c: char| c.is_whitespace() || c == ',');
        if let Some(rest) = inside.strip_prefix('}') {
            return rest;
        }
        let before = inside.len();
        inside = tree(inside, &path, found);
        // `as name` after an entry, or something that is no use tree after all.
        inside = inside
            .trim_start()
            .strip_prefix("as ")
            .map_or(inside, |alias| {
                alias
                    .trim_start_matches(|c: char| c.is_ascii_alphanumeric() || c == '_' || c == ' ')
            });
        if inside.len() == before || inside.is_empty() {
            return inside;
        }
    }
}

// ---------------------------------------------------------------- each rule can fail

#[test]
fn a_missing_ban_is_seen() {
    assert_eq!(bans("").len(), BANNED.len());
    let good: String = BANNED
        .iter()
        .map(|b| format!("{{ path = \"{b}\", reason = \"r\" }},\n"))
        .collect();
    assert!(bans(&format!("disallowed-methods = [{good}]")).is_empty());
    let extra = format!("disallowed-methods = [{good} {{ path = \"a::b\" }}]");
    assert_eq!(bans(&extra).len(), 2, "unknown, and without a reason");
    assert_eq!(
        lint_level("[workspace.lints.clippy]\ndisallowed_methods = \"warn\"\n").len(),
        2
    );
    let good = "[workspace.lints.rust]\nunsafe_code = \"forbid\"\n[workspace.lints.clippy]\ndisallowed_methods = \"deny\"\n";
    assert!(lint_level(good).is_empty());
    assert!(inherits_lints("[lints]\nworkspace = true\n"));
    assert!(!inherits_lints("") && !inherits_lints("[lints]\nworkspace = false\n"));
}

#[test]
fn a_lifted_ban_is_seen() {
    let expect = "#[expect(clippy::disallowed_methods, reason = \"r\")]\nfn f() {}\n";
    assert_eq!(exceptions("src/backend.rs", expect).len(), 1);
    assert!(exceptions("src/dial/direct.rs", expect).is_empty());
    assert_eq!(lifted(expect), 1);
    for bad in [
        "#![allow(clippy::disallowed_methods)]\n",
        "#[allow(clippy::disallowed_methods, reason = \"r\")]\nfn f() {}\n",
        "#[expect(clippy::disallowed_methods)]\nfn f() {}\n",
    ] {
        assert_eq!(exceptions("src/dial/direct.rs", bad).len(), 1, "{bad}");
    }
    let in_tests =
        "fn f() {}\n\n#[cfg(test)]\n#[allow(clippy::disallowed_methods)]\nmod tests {\n}\n";
    assert!(exceptions("src/backend.rs", in_tests).is_empty());
}

#[test]
fn code_behind_the_tests_is_seen() {
    let good = "fn f() {}\n\n#[cfg(test)]\nmod tests {\n    fn g() {}\n}\n";
    assert!(tail("a.rs", good).is_empty());
    assert!(tail("a.rs", "fn f() {}\n\n#[cfg(test)]\nmod tests;\n").is_empty());
    assert_eq!(
        tail("a.rs", &format!("{good}\nfn hidden() {{}}\n")).len(),
        1
    );
    assert_eq!(
        tail("a.rs", "fn f() {}\n\n#[cfg(test)]\nfn g() {\n}\n").len(),
        1
    );
    assert_eq!(
        tail(
            "a.rs",
            "fn f() {}\n\n#[cfg(test)]\nuse a::b;\n\nfn hidden() {\n}\n"
        )
        .len(),
        1
    );
}

#[test]
fn a_socket_in_the_wrong_room_is_seen() {
    for bad in [
        "use tokio::net::TcpStream;",
        "use tokio::{io::AsyncRead, net::{TcpListener as L, TcpStream}};",
        "use tokio::{\n    net,\n    time,\n};",
        "use std::net::{IpAddr, TcpStream};",
        "use std::{fmt, net::UdpSocket};",
        "use std::net::*;",
        "fn f(s: std::os::unix::net::UnixStream) {}",
        "fn f() { arti_client::TorClient::builder(); }",
        "use socket2::SockRef;",
    ] {
        assert_eq!(rooms("src/backend.rs", bad).len().min(1), 1, "{bad}");
        assert!(rooms("tor/src/lib.rs", bad).is_empty(), "{bad}");
    }
    for good in [
        "use std::net::{IpAddr, SocketAddr};",
        "use tokio::io::AsyncRead; // unlike tokio::net::TcpStream",
        "/// See `tokio::net::TcpStream`.\nfn f() {}",
        "fn f() {}\n\n#[cfg(test)]\nmod tests {\n    use tokio::net::TcpStream;\n}\n",
    ] {
        assert!(rooms("src/backend.rs", good).is_empty(), "{good}");
    }
    assert_eq!(
        rooms("src/dial/tor.rs", "use tokio::net::lookup_host;").len(),
        1
    );
    assert!(rooms("src/dial/direct.rs", "use tokio::net::lookup_host;").is_empty());
    for bad in ["use crate::dial::question;", "fn f() { question::ask(); }"] {
        assert_eq!(rooms("src/backend/link.rs", bad).len(), 1, "{bad}");
        assert!(rooms("src/frontend/authority/dns.rs", bad).is_empty());
    }
}

#[test]
fn the_world_in_a_sans_io_room_is_seen() {
    for bad in [
        "use tokio::time::Instant;",
        "fn f() { let now = std::time::Instant::now(); }",
        "use std::time::{Duration, Instant};\nfn f() { let now = Instant::now(); }",
        "use std::time::SystemTime;",
        "use std::net::IpAddr;",
        "fn f() { rand::rng(); }",
        "async fn f() {}",
    ] {
        assert_ne!(rooms("src/wire/frame.rs", bad).len(), 0, "{bad}");
        assert_ne!(rooms("src/sniff.rs", bad).len(), 0, "{bad}");
    }
    assert!(
        rooms(
            "src/wire/frame.rs",
            "use std::time::{Duration, Instant};\nfn f(now: Instant) {}"
        )
        .is_empty()
    );
}

#[test]
fn use_trees_are_spelled_out() {
    let got = paths("use a::{b, c::{d as e, f::*}, self}; fn g() { h::i::<J>(); }");
    for path in ["a::b", "a::c::d", "a::c::f::*", "a::self", "h::i", "J"] {
        assert!(got.contains(path), "{path} in {got:?}");
    }
}
