//! The links between members: over one of its own each tells each other what flies at it.
//!
//! Lines of text, up to [`MAX_LINE`] bytes each, over mutual TLS:
//!
//! ```text
//! kite-fleet 1 MEMBER BOOT                      the first: who tells, and which process of it
//! + PROTO NAME SESSION SINCE BACKEND SEVERAL    this flies; BACKEND may be -
//! - PROTO NAME SESSION                          and now it does not
//! =                                             that was all that flies; from now on there are changes
//! .                                             nothing new; each side says so every 2 s
//! ```

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::{interval, sleep, timeout};

use super::forward::MAX_FIRST;
use super::header::{MAX_HOPS, Passed};
use super::map::{Flight, Key};
use super::member::{MemberId, Members};
use super::{Brought, Fleet, Host, Visitor, Way};
use crate::code::{Code, Coded};
use crate::dial::{MemberConn, tune_member};
use crate::listen::{self, TcpListener, TcpStream};
use crate::observe::hush::Hush;
use crate::random::jitter;
use crate::sniff::Sniff;
use crate::tls::{Known, Pin, Purpose};

/// Longest line, in bytes.
pub const MAX_LINE: usize = 1024;
/// Connections at the internal port that have not proved yet to be a member's, from where no member is. More are closed.
pub const MAX_STRANGERS: usize = 64;
/// The same, from where a member is. More wait in the kernel.
pub const MAX_COMING: usize = 1024;
/// How long a member may take for the header of a visitor, and for a line that it has begun to write.
pub const HEADER_TIMEOUT: Duration = Duration::from_secs(5);
/// How often each end of a link says that it is there.
pub const BEAT: Duration = Duration::from_secs(2);
/// Silence after which a link has ended.
pub const SILENT: Duration = Duration::from_secs(8);
/// How long what a member flew is remembered when its link has ended, or another process has taken its place.
pub const FADE: Duration = Duration::from_secs(15);
/// Changes within so much time are told together.
const TOGETHER: Duration = Duration::from_millis(20);
/// The first wait before a member is dialled again, and the longest.
const RETRY: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(3));
/// Asked of a link at once, in bytes.
const READ: usize = 4096;
/// What a link begins with.
const HELLO: &str = "kite-fleet 1";

/// What each flight is kept by.
type Told = BTreeMap<(Key, String), Flight>;

/// Keeps this member's links, and serves the others', until dropped. Visitors that were brought go on after that.
pub async fn run(fleet: Arc<Fleet>, listener: Arc<TcpListener>, host: Arc<dyn Host>) {
    let _ = fleet.began.set(Instant::now());
    let mut tasks = JoinSet::new();
    for member in fleet.others() {
        tasks.spawn(keep_telling(fleet.clone(), host.clone(), member.id));
    }
    tasks.spawn(settle_rivals(fleet.clone(), host.clone()));
    let porch = Porch::default();
    let noise = Arc::new(Hush::default());
    // Until then everybody would be a stranger. Who comes waits in the kernel's queue.
    fleet.members_known().await;
    let (links, mut begun) = mpsc::channel(1);
    loop {
        let (conn, from) = tokio::select! {
            accepted = listen::accept(&listener) => accepted,
            Some((conn, hello)) = begun.recv() => {
                while tasks.try_join_next().is_some() {}
                let fleet = fleet.clone();
                tasks.spawn(async move { hear(&fleet, conn, hello).await });
                continue;
            }
        };
        let Some(place) = porch.place(&fleet.members, from.ip()).await else {
            continue;
        };
        let (fleet, host, noise) = (fleet.clone(), host.clone(), noise.clone());
        let (links, arriving) = (links.clone(), host.arrives());
        // Who has come in is no part of the links, and a visitor outlives them.
        tokio::spawn(async move {
            let guest = let_in(&fleet, conn).await;
            drop(place);
            match guest {
                Ok(Guest::Visit(conn, first, passed)) => {
                    let serving = serve(&fleet, host, conn, first, passed);
                    drop(arriving);
                    serving.await;
                }
                Ok(Guest::Link(conn, hello)) => {
                    // Nobody hears it any more where this member stops.
                    let _ = links.send((conn, hello)).await;
                }
                Err(why) => {
                    if let Some(before) = noise.due(Instant::now()) {
                        tracing::warn!(
                            "[{}] fleet: somebody at the internal port was turned away: {why}{before}",
                            Code::FleetStranger
                        );
                    }
                }
            }
        });
    }
}

/// Where those stand who have not proved yet to be members.
struct Porch {
    strangers: Arc<Semaphore>,
    coming: Arc<Semaphore>,
}

impl Default for Porch {
    fn default() -> Self {
        Self {
            strangers: Arc::new(Semaphore::new(MAX_STRANGERS)),
            coming: Arc::new(Semaphore::new(MAX_COMING)),
        }
    }
}

impl Porch {
    /// A place for who comes from there. Where a member is one is waited for.
    async fn place(&self, members: &Members, from: IpAddr) -> Option<OwnedSemaphorePermit> {
        match members.are_at(from) {
            true => self.coming.clone().acquire_owned().await.ok(),
            false => self.strangers.clone().try_acquire_owned().ok(),
        }
    }
}

// ------------------------------------------------------------------ hearing

/// A member at the internal port.
enum Guest {
    Visit(Brought, BytesMut, Passed),
    Link(Lines<Brought>, Hello),
}

/// How a link begins.
struct Hello {
    member: MemberId,
    boot: String,
}

/// Why somebody is turned away.
#[derive(Debug, thiserror::Error)]
enum Turned {
    #[error(transparent)]
    Tls(#[from] crate::tls::TlsError),
    #[error("it left, or was too slow")]
    Gone,
    #[error("it shows the key of another member, or of none, than {0}")]
    NotItself(String),
    #[error("its hello, or what it says of a visitor, is malformed")]
    Malformed,
    #[error(transparent)]
    Header(#[from] crate::proxy_header::Refusal),
    #[error("a visitor has come through {0} members")]
    Hops(u8),
}

async fn let_in(fleet: &Arc<Fleet>, conn: TcpStream) -> Result<Guest, Turned> {
    tune_member(&conn);
    let members = fleet.clone();
    let known: Known = Arc::new(move |pin| members.members.have(pin));
    let (mut conn, pin, purpose) = fleet.tls.accept(conn, known).await?;
    let reading = async {
        match purpose {
            Purpose::Visit => {
                let (first, passed) = read_opening(&mut conn).await?;
                Ok(Guest::Visit(conn, first, passed))
            }
            Purpose::Link => {
                let mut lines = Lines::new(conn);
                let line = lines.next().await.ok_or(Turned::Gone)?;
                let hello = read_hello(fleet, &line, pin)?;
                Ok(Guest::Link(lines, hello))
            }
        }
    };
    timeout(HEADER_TIMEOUT, reading)
        .await
        .unwrap_or(Err(Turned::Gone))
}

/// Who is brought, and all that it has said so far.
async fn read_opening<C: AsyncRead + Unpin>(conn: &mut C) -> Result<(BytesMut, Passed), Turned> {
    let mut first = BytesMut::new();
    let passed = loop {
        match Passed::read(&first) {
            Sniff::Found((len, passed)) => {
                first.advance(len);
                break passed;
            }
            Sniff::Refuse(why) => return Err(why.into()),
            Sniff::NeedMore => read_more(conn, &mut first).await?,
        }
    };
    if passed.hops != MAX_HOPS {
        return Err(Turned::Hops(passed.hops));
    }
    while first.len() < 4 {
        read_more(conn, &mut first).await?;
    }
    let len = usize::try_from(first.get_u32()).unwrap_or(usize::MAX);
    if len > MAX_FIRST {
        return Err(Turned::Malformed);
    }
    while first.len() < len {
        read_more(conn, &mut first).await?;
    }
    // The rest comes only once this visitor has been taken.
    match first.len() == len {
        true => Ok((first, passed)),
        false => Err(Turned::Malformed),
    }
}

async fn read_more<C: AsyncRead + Unpin>(conn: &mut C, to: &mut BytesMut) -> Result<(), Turned> {
    to.reserve(READ);
    match conn.read_buf(to).await {
        Ok(1..) => Ok(()),
        _ => Err(Turned::Gone),
    }
}

fn read_hello(fleet: &Fleet, line: &str, pin: Pin) -> Result<Hello, Turned> {
    let words = line.strip_prefix(HELLO).ok_or(Turned::Malformed)?;
    let (member, boot) = words.trim().split_once(' ').ok_or(Turned::Malformed)?;
    let member: MemberId = member.parse().map_err(|_| Turned::Malformed)?;
    match fleet.members.get(&member) {
        Some(known) if known.pin == pin && member != fleet.me => Ok(Hello {
            member,
            boot: boot.to_owned(),
        }),
        _ => Err(Turned::NotItself(member.to_string())),
    }
}

/// It has come in once this is called.
fn serve(
    fleet: &Fleet,
    host: Arc<dyn Host>,
    conn: Brought,
    first: BytesMut,
    passed: Passed,
) -> impl Future<Output = ()> + use<> {
    let one = Visitor::enter(&fleet.counts, Way::Brought);
    let serving = host.take(conn, first, passed);
    async move {
        serving.await;
        drop(one);
    }
}

/// Hears what another member flies, to the end of its link.
async fn hear(fleet: &Arc<Fleet>, mut lines: Lines<Brought>, hello: Hello) {
    let Hello { member, boot } = hello;
    let (number, is_known) = fleet.tie(&member, |tie| {
        tie.number += 1;
        tie.hears = true;
        let known = tie.boot == boot;
        tie.boot = boot;
        (tie.number, known)
    });
    let counts = || fleet.tie(&member, |tie| tie.number == number);
    fleet.learn(|map| map.fade(&member));
    tracing::info!("fleet: {member} tells what it flies");
    let mut beat = interval(BEAT);
    let mut heard = Instant::now();
    loop {
        let line = tokio::select! {
            line = lines.next() => line,
            _ = beat.tick() => {
                let said = timeout(HEADER_TIMEOUT, lines.say(b".\n")).await;
                if !matches!(said, Ok(Ok(()))) || heard.elapsed() > SILENT {
                    break;
                }
                continue;
            }
        };
        let Some(line) = line else { break };
        heard = Instant::now();
        // Another link has taken this one's place.
        if !counts() {
            return;
        }
        match Word::parse(&line) {
            Some(Word::Flies(key, flight)) => {
                if !fleet.put(&member, key, flight) {
                    tracing::debug!("fleet: {member} flies more than is kept");
                }
            }
            Some(Word::Down(key, session)) => {
                fleet.learn(|map| map.remove(&member, &key, &session));
            }
            Some(Word::All) => {
                fleet.tie(&member, |tie| tie.has_told = true);
                match is_known {
                    true => fleet.learn(|map| map.sweep(&member)),
                    // Its backends come back to a process that has just begun: what flew before may do so again.
                    false => sweep_later(fleet, &member, number),
                }
            }
            Some(Word::Beat) => {}
            None => break,
        }
    }
    if counts() {
        tracing::warn!(
            "[{}] fleet: the link from {member} has ended; what flies there is remembered for {} s",
            Code::MemberLost,
            FADE.as_secs()
        );
        fleet.tie(&member, |tie| tie.hears = false);
        fleet.learn(|map| map.fade(&member));
        sweep_later(fleet, &member, number);
    }
}

/// What is still doubtful of a member then is over, if this is still its last link.
fn sweep_later(fleet: &Arc<Fleet>, member: &MemberId, number: u64) {
    let (fleet, member) = (fleet.clone(), member.clone());
    tokio::spawn(async move {
        sleep(FADE).await;
        if fleet.tie(&member, |tie| tie.number == number) {
            fleet.learn(|map| map.sweep(&member));
        }
    });
}

/// One line of a link.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Word {
    Flies(Key, Flight),
    Down(Key, String),
    All,
    Beat,
}

impl Word {
    pub(crate) fn parse(line: &str) -> Option<Self> {
        let mut words = line.split(' ');
        let mut word = || words.next().filter(|w| !w.is_empty());
        let parsed = match word()? {
            "+" => Self::Flies(
                (word()?.to_owned(), word()?.to_owned()),
                Flight {
                    session: word()?.to_owned(),
                    since: word()?.parse().ok()?,
                    backend: Some(word()?.to_owned()).filter(|b| b != "-"),
                    several: word()? == "1",
                },
            ),
            "-" => Self::Down((word()?.to_owned(), word()?.to_owned()), word()?.to_owned()),
            "=" => Self::All,
            "." => Self::Beat,
            _ => return None,
        };
        Some(parsed)
    }

    pub(crate) fn put(&self, out: &mut String) {
        use std::fmt::Write;
        // A text takes whatever is written to it.
        let _ = match self {
            Self::Flies((proto, name), flight) => writeln!(
                out,
                "+ {proto} {name} {} {} {} {}",
                flight.session,
                flight.since,
                flight.backend.as_deref().unwrap_or("-"),
                u8::from(flight.several)
            ),
            Self::Down((proto, name), session) => writeln!(out, "- {proto} {name} {session}"),
            Self::All => writeln!(out, "="),
            Self::Beat => writeln!(out, "."),
        };
    }
}

/// Lines of a connection.
struct Lines<C> {
    conn: C,
    buf: BytesMut,
}

impl<C: AsyncRead + tokio::io::AsyncWrite + Unpin> Lines<C> {
    fn new(conn: C) -> Self {
        let buf = BytesMut::new();
        Self { conn, buf }
    }

    /// The next one. None at the end, and if one is too long or no text. May be dropped and asked again.
    async fn next(&mut self) -> Option<String> {
        loop {
            if let Some(end) = memchr::memchr(b'\n', &self.buf) {
                let line = self.buf.split_to(end);
                self.buf.advance(1);
                return match line.len() {
                    ..=MAX_LINE => String::from_utf8(line.to_vec()).ok(),
                    _ => None,
                };
            }
            if self.buf.len() > MAX_LINE {
                return None;
            }
            self.buf.reserve(READ);
            if !matches!(self.conn.read_buf(&mut self.buf).await, Ok(1..)) {
                return None;
            }
        }
    }

    async fn say(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.conn.write_all(bytes).await?;
        self.conn.flush().await
    }
}

// ------------------------------------------------------------------ telling

/// What is wrong with a member that hangs up before it has heard anything.
const TURNED_AWAY: &str = "turned-away";

/// Keeps a link to one other member, for as long as it is one.
async fn keep_telling(fleet: Arc<Fleet>, host: Arc<dyn Host>, id: MemberId) {
    let mut wait = RETRY.0;
    let mut said = None;
    while let Some(member) = fleet.members.get(&id) {
        let (address, pin) = (member.address, member.pin);
        match fleet.dialer.dial(address, pin, Purpose::Link).await {
            Ok(conn) => {
                let mut listens = false;
                let heeded = || {
                    tracing::info!("fleet: {id} at {address} hears what flies here");
                    listens = true;
                    fleet.answered(&id, true);
                    fleet.tie(&id, |tie| tie.tells = true);
                };
                let ended = tell(&fleet, &*host, conn, heeded).await;
                fleet.tie(&id, |tie| tie.tells = false);
                tracing::debug!("fleet: the link to {id} has ended: {ended:?}");
                // Whom it does not know it turns away only after the handshake.
                if listens {
                    (wait, said) = (RETRY.0, None);
                } else {
                    fleet.answered(&id, false);
                    if said.replace(TURNED_AWAY) != Some(TURNED_AWAY) {
                        tracing::warn!(
                            "[{}] fleet: {id} at {address} turns this member away; see that it knows {} by the key {}; trying again",
                            Code::MemberUnreachable,
                            fleet.me,
                            fleet.pin()
                        );
                    }
                }
            }
            Err(e) => {
                fleet.answered(&id, false);
                // One line for each trouble, not for each try.
                if said.replace(e.name()) != Some(e.name()) {
                    tracing::warn!(
                        "[{}] fleet: {id} at {address} cannot be told what flies here: [{}] {e}; trying again",
                        Code::MemberUnreachable,
                        e.code()
                    );
                }
            }
        }
        sleep(jitter(wait)).await;
        wait = (wait * 2).min(RETRY.1);
    }
}

/// Tells all that flies here, and then what changes, to the end of the link. `heeded` is called once the other listens.
async fn tell(
    fleet: &Fleet,
    host: &dyn Host,
    conn: MemberConn,
    heeded: impl FnOnce() + Send,
) -> std::io::Result<()> {
    let mut heeded = Some(heeded);
    let late = || std::io::Error::from(std::io::ErrorKind::TimedOut);
    let mut changes = host.changes();
    changes.mark_changed();
    let mut lines = Lines::new(conn);
    let mut out = format!("{HELLO} {} {}\n", fleet.me, fleet.boot);
    let mut told = Told::new();
    let mut is_first = true;
    let mut beat = interval(BEAT);
    let mut heard = Instant::now();
    loop {
        tokio::select! {
            changed = changes.changed() => {
                if changed.is_err() {
                    return Ok(());
                }
                if !is_first {
                    sleep(TOGETHER).await;
                }
                changes.mark_unchanged();
                put_changes(&mut told, host.flights(), &mut out);
                if std::mem::take(&mut is_first) {
                    Word::All.put(&mut out);
                }
            }
            line = lines.next() => match line {
                Some(_) => {
                    heard = Instant::now();
                    if let Some(heeded) = heeded.take() {
                        heeded();
                    }
                }
                None => return Ok(()),
            },
            _ = beat.tick() => {
                if heard.elapsed() > SILENT {
                    return Err(late());
                }
                if !is_first {
                    Word::Beat.put(&mut out);
                }
            }
        }
        if !out.is_empty() && !is_first {
            let said = timeout(SILENT, lines.say(out.as_bytes())).await;
            said.map_err(|_| late())??;
            out.clear();
        }
    }
}

/// What must be said so that what was told becomes what is.
fn put_changes(told: &mut Told, now: Vec<(Key, Flight)>, out: &mut String) {
    let now: Told = now
        .into_iter()
        .map(|(key, flight)| ((key, flight.session.clone()), flight))
        .collect();
    for ((key, session), _) in told.iter().filter(|(place, _)| !now.contains_key(place)) {
        Word::Down(key.clone(), session.clone()).put(out);
    }
    for (place, flight) in &now {
        if told.get(place) != Some(flight) {
            Word::Flies(place.0.clone(), flight.clone()).put(out);
        }
    }
    *told = now;
}

/// Takes down, for ever, what a newer backend flies elsewhere.
async fn settle_rivals(fleet: Arc<Fleet>, host: Arc<dyn Host>) {
    let (mut news, mut changes) = (fleet.news.subscribe(), host.changes());
    loop {
        let gone = tokio::select! {
            changed = news.changed() => changed.is_err(),
            changed = changes.changed() => changed.is_err(),
        };
        if gone {
            return;
        }
        sleep(TOGETHER).await;
        news.mark_unchanged();
        changes.mark_unchanged();
        let flights = host.flights();
        let beaten: Vec<_> = fleet.look(|map| {
            let beaten = |(key, flight): &(Key, Flight)| map.is_beaten(&fleet.me, key, flight);
            flights.into_iter().filter(beaten).collect()
        });
        for (key, flight) in beaten {
            host.beaten(&key, &flight.session);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dial::DialError;
    use crate::fleet::member::Member;
    use crate::tls::{MemberTls, TlsError};
    use futures::FutureExt;
    use tokio::task::unconstrained;

    fn flight(session: &str, since: u64, backend: Option<&str>) -> Flight {
        Flight {
            session: session.into(),
            since,
            backend: backend.map(Into::into),
            several: since.is_multiple_of(2),
        }
    }

    fn key(name: &str) -> Key {
        ("http-80".into(), name.into())
    }

    #[test]
    fn words_are_read_as_they_were_written() {
        for word in [
            Word::Flies(key("bob.example"), flight("s1", 7, None)),
            Word::Flies(key("*.example"), flight("s1", 8, Some("b"))),
            Word::Down(key("bob.example"), "s1".into()),
            Word::All,
            Word::Beat,
        ] {
            let mut line = String::new();
            word.put(&mut line);
            assert!(line.ends_with('\n'));
            assert_eq!(Word::parse(line.trim_end()), Some(word));
        }
        for bad in [
            "",
            "?",
            "+",
            "+ http x s",
            "+ http x s y - 0",
            "- http x",
            "-  x s",
        ] {
            assert_eq!(Word::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn changes_are_told_and_nothing_else() {
        let mut told = Told::new();
        let mut say = |now: &[(&str, Flight)]| {
            let mut out = String::new();
            let now = now.iter().map(|(name, f)| (key(name), f.clone())).collect();
            put_changes(&mut told, now, &mut out);
            out
        };
        let (one, two) = (flight("s1", 1, None), flight("s2", 2, Some("b")));
        let first = say(&[("a.example", one.clone())]);
        assert_eq!(first, "+ http-80 a.example s1 1 - 0\n");
        assert_eq!(say(&[("a.example", one.clone())]), "");
        let both = say(&[("a.example", one), ("a.example", two.clone())]);
        assert_eq!(both, "+ http-80 a.example s2 2 b 1\n");
        assert_eq!(say(&[("a.example", two)]), "- http-80 a.example s1\n");
        assert_eq!(say(&[]), "- http-80 a.example s2\n");
    }

    #[tokio::test]
    async fn a_line_without_an_end_is_the_end() {
        let (mut near, far) = tokio::io::duplex(64 * 1024);
        let mut lines = Lines::new(far);
        near.write_all(b"one\ntwo\n").await.unwrap();
        near.write_all(&[b'x'; MAX_LINE + 1]).await.unwrap();
        assert_eq!(lines.next().await.as_deref(), Some("one"));
        assert_eq!(lines.next().await.as_deref(), Some("two"));
        assert_eq!(lines.next().await, None);
    }

    /// Two members: the first knows the other, which knows where the first listens.
    fn two() -> ([tempfile::TempDir; 2], [Arc<Fleet>; 2], TcpListener) {
        let dirs = [(); 2].map(|()| tempfile::tempdir().unwrap());
        let tls = [0, 1].map(|n| MemberTls::load_or_create(dirs[n].path()).unwrap());
        let listener = listen::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = listener.local_addr().unwrap();
        let member = |n: usize| Member {
            id: ["a", "b"][n].parse().unwrap(),
            address,
            pin: tls[n].pin(),
            public: None,
        };
        let fleet = |n: usize| {
            let all = Members::new([member(0), member(1)]);
            Arc::new(Fleet::new(member(n).id, all, tls[n].clone()))
        };
        let fleets = [0, 1].map(fleet);
        (dirs, fleets, listener)
    }

    /// What comes of one that the second member sends to the first, and its end of that.
    async fn sent(
        [to, from]: &[Arc<Fleet>; 2],
        port: &TcpListener,
        purpose: Purpose,
        said: &[u8],
    ) -> (Result<Guest, Turned>, MemberConn) {
        let address = port.local_addr().unwrap();
        let sending = async {
            let mut conn = from.dialer.dial(address, to.pin(), purpose).await.unwrap();
            conn.write_all(said).await.unwrap();
            conn.flush().await.unwrap();
            conn
        };
        let letting_in = async {
            let (conn, _) = listen::accept(port).await;
            let_in(to, conn).await
        };
        tokio::join!(letting_in, sending)
    }

    /// What came of something, and how many seconds it took.
    async fn timed<T>(what: impl Future<Output = T>) -> (T, u64) {
        let began = Instant::now();
        (what.await, began.elapsed().as_secs())
    }

    /// One that flies nothing and takes nobody.
    struct Nobody(tokio::sync::watch::Sender<u64>);

    impl Host for Nobody {
        fn changes(&self) -> tokio::sync::watch::Receiver<u64> {
            self.0.subscribe()
        }
        fn flights(&self) -> Vec<(Key, Flight)> {
            Vec::new()
        }
        fn beaten(&self, _: &Key, _: &str) {}
        fn take(
            self: Arc<Self>,
            _: Brought,
            _: BytesMut,
            _: Passed,
        ) -> futures::future::BoxFuture<'static, ()> {
            Box::pin(std::future::ready(()))
        }
        fn arrives(&self) -> Box<dyn Send> {
            Box::new(())
        }
    }

    /// Each takes its time, so they do it at once.
    #[tokio::test]
    async fn who_is_silent_is_left() {
        let turned_away = async |purpose, said: &[u8]| {
            let (_dirs, fleets, port) = two();
            let ((guest, _conn), took) = timed(sent(&fleets, &port, purpose, said)).await;
            assert!(matches!(guest, Err(Turned::Gone)), "{purpose:?}");
            assert!((5..8).contains(&took), "{took} s");
        };
        let speaks_no_tls = async {
            let (_dirs, [fleet, other], port) = two();
            let address = port.local_addr().unwrap();
            let dialling = other.dialer.dial(address, fleet.tls.pin(), Purpose::Link);
            let accepting = async {
                // What the other one sends is not read here.
                let (_conn, _) = listen::accept(&port).await;
                sleep(Duration::from_secs(8)).await;
            };
            let (dialled, ()) = tokio::join!(timed(dialling), accepting);
            let (Err(e), 5..8) = dialled else {
                panic!("{dialled:?}")
            };
            assert!(matches!(e, DialError::Tls(TlsError::TimedOut)), "{e}");
        };
        let a_link_that_is_heard = async {
            let (_dirs, fleets, port) = two();
            let (guest, _conn) =
                sent(&fleets, &port, Purpose::Link, b"kite-fleet 1 b x\n=\n").await;
            let Ok(Guest::Link(lines, hello)) = guest else {
                panic!("no link")
            };
            let ((), took) = timed(hear(&fleets[0], lines, hello)).await;
            assert!((8..12).contains(&took), "{took} s");
        };
        let a_link_that_is_told = async {
            let (_dirs, fleets, port) = two();
            let (_guest, conn) = sent(&fleets, &port, Purpose::Link, b"kite-fleet 1 b x\n").await;
            let host = Nobody(tokio::sync::watch::Sender::new(0));
            let (end, took) = timed(tell(&fleets[1], &host, conn, || {})).await;
            assert_eq!(end.unwrap_err().kind(), std::io::ErrorKind::TimedOut);
            assert!((8..12).contains(&took), "{took} s");
        };
        tokio::join!(
            turned_away(Purpose::Link, b"kite-fleet 1 b"),
            turned_away(Purpose::Visit, b""),
            speaks_no_tls,
            a_link_that_is_heard,
            a_link_that_is_told,
        );
    }

    #[tokio::test]
    async fn only_so_many_come_from_where_members_are_and_others_take_no_place_of_theirs() {
        let (_dirs, [fleet, _], _port) = two();
        let porch = Porch::default();
        let (near, far) = ("127.0.0.1".parse().unwrap(), "203.0.113.7".parse().unwrap());
        let place = |from| unconstrained(porch.place(&fleet.members, from)).now_or_never();
        let mut strangers: Vec<_> = (0..MAX_STRANGERS).map(|_| place(far)).collect();
        assert!(matches!(strangers.pop(), Some(Some(Some(_)))));
        strangers.push(place(far));
        assert!(matches!(place(far), Some(None)), "it is closed");
        let mut coming: Vec<_> = (0..MAX_COMING).map(|_| place(near)).collect();
        assert!(coming.iter().all(|c| matches!(c, Some(Some(_)))));
        assert!(place(near).is_none(), "it waits");
        coming.pop();
        assert!(matches!(place(near), Some(Some(_))));
    }

    #[tokio::test]
    async fn a_visitor_may_have_said_so_much_and_no_more() {
        let passed = Passed {
            from: "203.0.113.7:4711".parse().unwrap(),
            port: 80,
            kite: "http:bob.example".into(),
            port_kite: None,
            raw: false,
            storage_only: false,
            hops: MAX_HOPS,
        };
        for (len, fits) in [(MAX_FIRST, true), (MAX_FIRST + 1, false)] {
            let said = super::super::forward::opening(&passed, &vec![b'x'; len]);
            let read = read_opening(&mut &said[..]).await;
            assert_eq!(
                read.is_ok_and(|(first, _)| first.len() == len),
                fits,
                "{len}"
            );
        }
    }
}
