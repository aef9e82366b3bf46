//! Names and addresses, files, and what authorities, node and other programs answer.

use std::path::Path;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use rustls::pki_types::CertificateDer;
use tokio::io::AsyncRead;

use crate::config::{BackendConfig, FrontendConfig};
use crate::dial::{FrontendAddr, OriginAddr};
use crate::frontend::authority::{dns, program};
use crate::invitation::{Invitation, Token};
use crate::kite::{KiteName, Ported};
use crate::rc::{self, Rc, Role};
use crate::socks;
use crate::tahoe::cfg::{Cfg, Change, apply};
use crate::tahoe::endpoint::{self, Endpoint, Hint};
use crate::tls::x509;
use crate::web::ring::Ring;
use crate::wire::ServiceLine;

/// What people write: names, addresses, invitations, Tahoe's endpoints and hints. What is read is the same when it was
/// written and read again.
pub fn words(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    again::<KiteName>(text);
    again::<FrontendAddr>(text);
    again::<Ported>(text);
    if let Ok(origin) = OriginAddr::parse(text, true) {
        let shown = origin.to_string();
        assert_eq!(OriginAddr::parse(&shown, true).ok(), Some(origin));
    }
    if let Ok(OriginAddr::Tcp(address)) = OriginAddr::parse(text, false) {
        assert!(address.ip().to_canonical().is_loopback());
    }
    if let Ok(invitation) = text.parse::<Invitation>() {
        assert_eq!(invitation.line().parse(), Ok(invitation));
    }
    if let Some(token) = Token::read(text) {
        assert_eq!(token.text().as_str(), text);
    }
    let here = Endpoint::parse(text);
    let moved = Endpoint::parse(&here.on_loopback(49293));
    assert_eq!(moved.reach, endpoint::Reach::Local);
    if let Some(address) = here.reached_here() {
        assert!(here.is(&address), "{text:?} is not reached at {address}");
    }
    let hint = Hint::parse(text);
    assert!(!(hint.is_tcp() && matches!(hint, Hint::Tor { .. })));
    let _ = (hint.goes_through_tor(), endpoint::client(text));
}

/// What is read, written, and read again.
fn again<T>(text: &str)
where
    T: std::str::FromStr + std::fmt::Display + PartialEq + std::fmt::Debug,
{
    if let Ok(read) = text.parse::<T>() {
        let shown = read.to_string();
        match shown.parse::<T>() {
            Ok(same) => assert_eq!(same, read, "{text:?} was shown as {shown:?}"),
            Err(_) => panic!("{text:?} was shown as {shown:?}, which is no such thing"),
        }
    }
}

/// Files. The first byte says what kind.
pub fn files(bytes: &[u8]) {
    let Some((which, bytes)) = bytes.split_first() else {
        return;
    };
    if let (9, Ok(ring)) = (which, Ring::from_bytes(bytes)) {
        assert_eq!(ring.to_bytes(), bytes);
    }
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    match which {
        0 => rc_file(text),
        1 => tahoe_cfg(text),
        // Secrets, and what else is in files of their own, would be read from wherever the text says.
        2 if !text.contains("file") => drop(BackendConfig::of_text(text)),
        3 if !text.contains("file") => drop(FrontendConfig::of_text(text)),
        _ => {}
    }
}

/// An rc file, for either role: refused with its place, or translated to what is a configuration.
fn rc_file(text: &str) {
    if let Err(mistake) = rc::parse("test.rc", text) {
        assert!(!mistake.problem.is_empty() && !mistake.remedy.is_empty());
    }
    let Ok(rc) = Rc::of_text(text) else {
        return;
    };
    let base = Path::new("/nowhere");
    if let Ok(translation) = rc.translate(Role::Backend, base) {
        let _ = translation.to_string();
        let _ = BackendConfig::translated(translation);
    }
    if let Ok(translation) = rc.translate(Role::Frontend, base) {
        let _ = translation.to_string();
        let _ = FrontendConfig::translated(translation);
    }
}

/// A node's configuration, and changes to it: they are in force afterwards, and nothing else has changed.
fn tahoe_cfg(text: &str) {
    let changes = [
        Change::set("node", "tub.port", "tcp:49293:interface=127.0.0.1"),
        Change::set("node", "tub.location", "tcp:bob.alice.example:80"),
        Change::set("storage", "force_foolscap", "True"),
        Change::remove("node", "reveal-IP-address"),
        Change::set("connections", "tcp", "tor"),
        Change::set("node", "nickname", "100% bob"),
    ];
    let Ok(before) = Cfg::parse(text) else {
        return;
    };
    let changed = apply(text, &changes).expect("what was read can be changed");
    let after = Cfg::parse(&changed).expect("what was changed can be read");
    for change in &changes {
        assert_eq!(
            after.value(change.section, change.key),
            change.value.as_deref(),
            "{} in {changed:?}",
            change.key
        );
    }
    assert_eq!(before.others(&changes), after.others(&changes));
    assert_eq!(apply(&changed, &changes).as_ref(), Ok(&changed));
}

/// What others answer. The first byte says who.
pub fn answers(bytes: &[u8]) {
    let Some((which, bytes)) = bytes.split_first() else {
        return;
    };
    match which {
        0 => name_server(bytes),
        1 => question(bytes),
        2 => certificate(bytes),
        3 => socks(bytes),
        4 => drop(program::parse(bytes)),
        _ => {}
    }
}

const ASKED: &str = "b.f.s.http.ok.test.auth.example";

fn name_server(bytes: &[u8]) {
    if let Some(Ok(word)) = dns::take(bytes, 7, ASKED).taken() {
        assert!(bytes.starts_with(&[0, 7]), "an answer to somebody else");
        assert!(word.secret.is_none());
    }
}

/// What a backend said becomes a question below the suffix, or none.
fn question(bytes: &[u8]) {
    let (Ok(line), Ok(suffix)) = (ServiceLine::parse(bytes), "auth.example".parse()) else {
        return;
    };
    let Ok(name) = line.name.parse::<KiteName>() else {
        return;
    };
    if let Some((question, query)) = dns::prepare(7, &line, &name, &suffix) {
        assert!(question.ends_with(".auth.example"));
        // The kite's own labels, four before and two behind them, the root, twelve bytes before and four behind.
        let labels = question.split('.').count();
        assert_eq!(labels, dns::label(&name).split('.').count() + 6);
        assert_eq!(query.len(), 12 + question.len() + 2 + 4);
    }
}

fn certificate(bytes: &[u8]) {
    let certificate = CertificateDer::from(bytes);
    let _ = x509::contents(&certificate);
    let _ = x509::key(&certificate);
}

/// The node's own wish for a connection: it is the same whether it comes at once or byte by byte.
fn socks(bytes: &[u8]) {
    let wish = |most: usize| {
        let mut conn = tokio::io::join(Slowly { bytes, most }, tokio::io::sink());
        let done = pin!(socks::handshake(&mut conn)).poll(&mut Context::from_waker(Waker::noop()));
        let unread = conn.reader().bytes.len();
        match done {
            Poll::Ready(Ok(Ok(wish))) => {
                let (read, _) = bytes.split_at(bytes.len() - unread);
                assert!(read.ends_with(&wish.early), "bytes are lost");
                Ok(Ok(wish))
            }
            Poll::Ready(done) => done.map_err(|e| e.kind()),
            Poll::Pending => panic!("it waits for what is there"),
        }
    };
    match (wish(usize::MAX), wish(1)) {
        (Ok(Ok(whole)), Ok(Ok(single))) => {
            let place = |wish: &socks::Wish| (wish.request.addr().to_string(), wish.request.port());
            assert_eq!(place(&whole), place(&single));
        }
        (Ok(Err(whole)), Ok(Err(single))) => assert_eq!(whole.reason, single.reason),
        (Err(whole), Err(single)) => assert_eq!(whole, single),
        (whole, single) => panic!("at once {whole:?}, byte by byte {single:?}"),
    }
}

/// Bytes that come so many at a time.
struct Slowly<'a> {
    bytes: &'a [u8],
    most: usize,
}

impl AsyncRead for Slowly<'_> {
    fn poll_read(
        mut self: std::pin::Pin<&mut Self>,
        _: &mut Context<'_>,
        into: &mut tokio::io::ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let n = into.remaining().min(self.most).min(self.bytes.len());
        let (now, later) = self.bytes.split_at(n);
        into.put_slice(now);
        self.bytes = later;
        Poll::Ready(Ok(()))
    }
}
