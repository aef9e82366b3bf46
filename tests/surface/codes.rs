//! Nothing that goes wrong is without a code: errors that reach a user, and log lines that say that something is
//! the matter. And no code is there for nothing.

use std::collections::BTreeSet;
use std::fs;

use kite::code::Code;

use super::root;

/// Errors that are never shown alone: what shows them has the code.
const INNER: &[(&str, &str)] = &[
    ("BadTubKey", "within ConfigError"),
    ("Breach", "within PolicyError"),
    ("Broken", "a stream's end, for the program"),
    ("End", "the frontend's line for it has the code"),
    ("Ended", "the lines for a tunnel's end have the code"),
    ("FileProblem", "within FileError"),
    ("FrameError", "within the end of a tunnel"),
    ("HandshakeError", "within LinkError"),
    ("InvitationError", "within JoinError"),
    ("LinesError", "within FrameError"),
    ("MuxError", "within the end of a tunnel"),
    ("NameError", "within ConfigError"),
    ("NoAnswer", "within JoinError and FirstRunError"),
    ("OpenError", "the frontend's line for it has the code"),
    ("OriginAddrError", "within ConfigError"),
    ("Over", "what strangers do is no trouble"),
    ("PinError", "within TargetError"),
    ("PolicyError", "what strangers do is no trouble"),
    ("PortedError", "within ConfigError"),
    ("Refusal", "what strangers do is no trouble"),
    ("Silence", "the frontend's lines for it have the code"),
    ("TargetError", "within ConfigError"),
];

/// The sources of both crates without their tests, by name.
fn sources() -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut rooms = vec![root().join("src"), root().join("tor/src")];
    while let Some(room) = rooms.pop() {
        for entry in fs::read_dir(&room).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(root()).unwrap().display().to_string();
            if path.is_dir() {
                rooms.push(path);
            } else if name.ends_with(".rs") && !name.ends_with("/tests.rs") {
                let text = fs::read_to_string(&path).unwrap();
                let text = text.split("\n#[cfg(test)]\nmod ").next().unwrap();
                found.push((name, text.to_owned()));
            }
        }
    }
    assert!(found.len() > 50, "the sources were not found");
    found
}

/// The first literal of each `warn!` and `error!`, with its line.
fn warnings(text: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for call in ["warn!(", "error!("] {
        for (at, _) in text.match_indices(call) {
            let line = text[..at].matches('\n').count() + 1;
            let inside = &text[at + call.len()..];
            let literal = inside.split('"').nth(1).unwrap_or_default();
            found.push((line, literal.to_owned()));
        }
    }
    found
}

fn has_code(literal: &str) -> bool {
    ["[{}] ", "[{code}] ", "[KITE-"]
        .iter()
        .any(|c| literal.starts_with(c))
}

#[test]
fn every_warning_of_the_log_begins_with_a_code() {
    let mut seen = 0;
    for (name, text) in sources() {
        for (line, literal) in warnings(&text) {
            seen += 1;
            assert!(
                has_code(&literal),
                "{name}:{line}: a warning without a code (src/code.rs): {literal}"
            );
        }
    }
    assert!(seen > 30, "only {seen} warnings were found");
}

#[test]
fn a_warning_without_a_code_is_seen() {
    let text = "x;\n tracing::warn!(\n ?sid,\n \"[{}] a\", Code::X);\n warn!(\"b {x}\");\n error!(\"[KITE-T01] c\")";
    let found = warnings(text);
    let bare: Vec<_> = found.iter().filter(|(_, l)| !has_code(l)).collect();
    assert_eq!(found.len(), 3);
    assert_eq!(bare, [&(5, "b {x}".to_owned())]);
}

/// The names of what is declared as an error.
fn errors(text: &str) -> Vec<String> {
    let derives = text.match_indices("thiserror::Error)]").map(|(at, _)| at);
    let behind = derives.filter_map(|at| {
        let rest = &text[at..];
        let (_, name) = rest
            .split_once("enum ")
            .filter(|(skipped, _)| !skipped.contains("struct ") && !skipped.contains('{'))?;
        name.split([' ', '<']).next()
    });
    behind.map(str::to_owned).collect()
}

#[test]
fn every_error_has_a_code_or_is_shown_within_one_that_has() {
    let sources = sources();
    let whole: String = sources.iter().map(|(_, text)| text.as_str()).collect();
    let mut inner = BTreeSet::new();
    for (name, text) in &sources {
        for error in errors(text) {
            let coded = whole.contains(&format!("impl Coded for {error} "))
                // Tor's crate is below the catalogue, and names its codes itself.
                || error == "TorError";
            let known = INNER.iter().find(|(known, _)| *known == error);
            assert!(
                coded || known.is_some() || !text.contains(&format!("pub enum {error}")),
                "{name}: {error} has no code (src/code.rs)"
            );
            if !coded {
                inner.extend(known);
            }
        }
    }
    for (name, why) in INNER {
        assert!(
            inner.iter().any(|(n, _)| n == name),
            "{name} ({why}) is not there any more"
        );
    }
}

#[test]
fn every_code_is_used() {
    let outside: String = sources()
        .into_iter()
        .filter(|(name, _)| name != "src/code/catalogue.rs")
        .map(|(_, text)| text)
        .collect();
    for code in Code::ALL {
        let named = format!("Code::{code:?}");
        let used = outside.match_indices(&named).any(|(at, _)| {
            let next = outside[at + named.len()..].chars().next();
            !next.is_some_and(|c| c.is_alphanumeric())
        });
        assert!(
            used || outside.contains(code.as_str()),
            "{code} ({code:?}) stands for nothing in the sources"
        );
    }
}

// ------------------------------------------------------ what errors say

/// An error as a user meets it: its code, what it must name, and how what is to be done begins.
fn met() -> Vec<(Code, String, &'static str, &'static str)> {
    use kite::check::CheckError;
    use kite::check::leaks::LeaksError;
    use kite::code::Coded;
    use kite::control::AskError;
    use kite::demo::DemoError;
    use kite::dial::{EgressError, OriginAddr, OriginError};
    use kite::explain::ExplainError;
    use kite::frontend::FrontendError;
    use kite::frontend::book::BookError;
    use kite::frontend::kites::KitesError;
    use kite::privilege::PrivilegeError;
    use kite::rc::import::ImportError;
    use kite::run::RunError;
    use kite::tahoe::KiteError;
    use kite::tahoe::TahoeError;
    use kite::tahoe::dir::DirError;
    use kite::tls::{FileError, FileProblem};
    use kite::tor::TorError;
    use std::io::{Error, ErrorKind};

    fn shown<E: Coded + ToString>(
        error: E,
        subject: &'static str,
        remedy: &'static str,
    ) -> (Code, String, &'static str, &'static str) {
        (error.code(), error.to_string(), subject, remedy)
    }
    let io = |kind| Error::from(kind);
    let bind = |kind| FrontendError::Bind {
        address: "192.0.2.1:80".parse().unwrap(),
        source: io(kind),
    };
    let file = |name: &str, problem| FileError {
        path: name.into(),
        problem,
    };
    let origin: OriginAddr = OriginAddr::parse("unix:/run/x", false).unwrap();
    let path = || std::path::PathBuf::from("/x/y");
    let name = || "bob.alice.example".parse().unwrap();
    vec![
        shown(
            bind(ErrorKind::AddrInUse),
            "192.0.2.1:80",
            "stop it, or choose",
        ),
        shown(
            bind(ErrorKind::PermissionDenied),
            "192.0.2.1:80",
            "grant CAP_NET",
        ),
        shown(
            bind(ErrorKind::AddrNotAvailable),
            "192.0.2.1:80",
            "use 0.0.0.0",
        ),
        shown(
            bind(ErrorKind::OutOfMemory),
            "192.0.2.1:80",
            "choose another",
        ),
        shown(
            FrontendError::StateDir {
                path: path(),
                source: io(ErrorKind::PermissionDenied),
            },
            "/x/y",
            "give --state-dir",
        ),
        shown(
            RunError::from(EgressError::TorConfiguredButOff),
            "Tor",
            "add --via-tor",
        ),
        shown(PrivilegeError::Unknown("bob".into()), "bob", "make one"),
        shown(
            PrivilegeError::NotRoot("bob".into()),
            "user = bob",
            "start kite as that user",
        ),
        shown(
            PrivilegeError::NotTheirs {
                user: "bob".into(),
                owner: "root".into(),
                path: path(),
            },
            "/x/y belongs to root",
            "run: chown",
        ),
        shown(
            PrivilegeError::StateDir {
                user: "bob".into(),
                path: path(),
                source: io(ErrorKind::PermissionDenied),
            },
            "/x/y",
            "make it, and give it to bob",
        ),
        shown(
            PrivilegeError::System {
                user: "bob".into(),
                source: io(ErrorKind::PermissionDenied),
            },
            "user = bob",
            "start kite as that user",
        ),
        shown(
            RunError::from(EgressError::NoStateDir),
            "state directory",
            "set state_dir",
        ),
        shown(
            RunError::from(TorError::InUse),
            "state directory",
            "stop the other",
        ),
        shown(
            RunError::from(TorError::Config {
                path: path(),
                reason: "bad".into(),
            }),
            "/x/y",
            "see Arti's",
        ),
        shown(
            RunError::Socks {
                address: "127.0.0.1:9150".parse().unwrap(),
                source: io(ErrorKind::AddrInUse),
            },
            "127.0.0.1:9150",
            "choose another port with --socks-listen",
        ),
        shown(
            RunError::SecretInherited { program: path() },
            "/x/y",
            "put the secret into a file",
        ),
        shown(
            RunError::WebOrigin {
                kite: "bob".into(),
                origin: "127.0.0.1:3456".into(),
            },
            "127.0.0.1:3456",
            "Give the port from tub.port",
        ),
        shown(
            file("ca.pem", FileProblem::NoChain),
            "ca.pem",
            "give a PEM file",
        ),
        shown(
            file("a.pem", FileProblem::NoKey),
            "a.pem",
            "give the PEM file",
        ),
        shown(
            file("a.pem", FileProblem::OtherKey),
            "a.pem",
            "give the two",
        ),
        shown(
            file("a.pem", FileProblem::Nameless),
            "a.pem",
            "have one issued",
        ),
        shown(
            file("a.pem", FileProblem::NotAFile),
            "a.pem",
            "give the path",
        ),
        shown(file("a.pem", FileProblem::TooLarge), "a.pem", "give a PEM"),
        shown(
            file("a.pem", FileProblem::Io(io(ErrorKind::NotFound))),
            "a.pem",
            "check the path",
        ),
        shown(
            file(
                "frontend-key.pem",
                FileProblem::Permissions {
                    mode: 0o644,
                    wanted: "600",
                },
            ),
            "frontend-key.pem",
            "run chmod 600",
        ),
        shown(
            file(
                "frontend-key.pem",
                FileProblem::Corrupt {
                    what: "private key",
                },
            ),
            "frontend-key.pem",
            "restore it from a backup",
        ),
        shown(AskError::Nobody("/x/y".into()), "/x/y", "(--state-dir)"),
        shown(AskError::Silent("/x/y".into()), "/x/y", "ask as the user"),
        shown(AskError::Strange("/x/y".into()), "/x/y", "restart it"),
        shown(AskError::TooLong, "configuration", "restart kite"),
        shown(BookError::Busy(path()), "/x/y", "ask as the user"),
        shown(BookError::Readable("/x/y".into()), "/x/y", "run: chmod 600"),
        shown(
            BookError::Exists(name()),
            "bob.alice.example",
            "remove it first",
        ),
        shown(
            BookError::Configured(name()),
            "bob.alice.example",
            "change it there",
        ),
        shown(
            BookError::Unknown(name()),
            "bob.alice.example",
            "kites list",
        ),
        shown(BookError::Full, "book", "remove one"),
        shown(
            BookError::Broken {
                path: "/x/y".into(),
                problem: "bad".into(),
            },
            "/x/y",
            "put a copy from a backup",
        ),
        shown(
            BookError::File {
                path: path(),
                source: io(ErrorKind::PermissionDenied),
            },
            "/x/y",
            "run this as the user",
        ),
        shown(
            KitesError::Output(io(ErrorKind::BrokenPipe)),
            "write",
            "see where",
        ),
        shown(CheckError::Nothing, "check", "add --node"),
        shown(
            CheckError::from(LeaksError::Direct),
            "backend",
            "add enabled = true",
        ),
        shown(
            LeaksError::NoStrace(io(ErrorKind::NotFound)),
            "strace",
            "apt-get install strace",
        ),
        shown(LeaksError::Silent, "Tor", "give it more --seconds"),
        shown(LeaksError::TooLong, "trace", "give fewer --seconds"),
        shown(
            LeaksError::File {
                path: path(),
                source: io(ErrorKind::NotFound),
            },
            "/x/y",
            "check the path",
        ),
        shown(DirError::NoNode(path()), "/x/y", "give the directory"),
        shown(DirError::Odd(path()), "/x/y", "Put them in by hand"),
        shown(
            DirError::Unreadable {
                path: path(),
                problem: "no".into(),
            },
            "/x/y",
            "give the directory",
        ),
        shown(
            DirError::Write {
                path: path(),
                problem: io(ErrorKind::PermissionDenied),
            },
            "/x/y",
            "Run kite as",
        ),
        shown(KiteError::NoNode, "kite", "add a kite"),
        shown(
            KiteError::Nodes("a, b".into()),
            "a, b",
            "give a configuration",
        ),
        shown(
            KiteError::Unix(origin.clone()),
            "unix:/run/x",
            "use a port on loopback",
        ),
        shown(
            KiteError::Name(name()),
            "bob.alice.example",
            "name one host",
        ),
        shown(
            KiteError::Port(name()),
            "bob.alice.example",
            "add --public-port",
        ),
        shown(KiteError::Socks, "SOCKS port", "add --via-tor"),
        shown(TahoeError::Port("x".into()), "--public-port x", "write 80"),
        shown(ImportError::InTheWay(path()), "/x/y", "move it away"),
        shown(
            ImportError::Write {
                path: path(),
                source: io(ErrorKind::PermissionDenied),
            },
            "/x/y",
            "Give --to",
        ),
        shown(
            DemoError::Visit("no".into()),
            "visit",
            "run it again with --log debug",
        ),
        shown(DemoError::Broken("no"), "happen", "please report it"),
        shown(ExplainError::Nothing, "explain", "give a code"),
        (
            OriginError::Refused(origin.clone()).code(),
            format!(
                "{0}; {1}",
                OriginError::Refused(origin.clone()),
                OriginError::Refused(origin).hint()
            ),
            "unix:/run/x",
            "check that the server runs",
        ),
    ]
}

#[test]
fn every_error_names_what_it_is_about_and_what_to_do() {
    for (code, text, subject, remedy) in met() {
        assert!(
            text.contains(subject),
            "{code} does not name {subject}: {text}"
        );
        assert!(text.contains(remedy), "{code} has no '{remedy}': {text}");
    }
}
