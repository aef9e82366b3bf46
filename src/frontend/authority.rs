//! Who is asked about kites that the operator has not listed: a program, or the DNS (protocol page §12).
//!
//! No answer is a no, unless the operator says otherwise; and so it is when too much is asked at one time,
//! whatever the operator says.

use std::collections::{BTreeSet, HashMap};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;
use tokio::time::timeout;

pub(crate) mod dns;
mod judge;
pub(crate) mod program;

pub use self::judge::{Judge, Judged, Verdict};

use super::account::{Account, End, Named};
use super::limits::{DAY, Limits, Rate, Size};
use crate::code::Code;
use crate::kite::{KiteName, Protocol, Secret};
use crate::wire::ServiceLine;

/// How many questions an authority gets at one time, unless configured.
pub const PARALLEL: usize = 8;
/// The most that can be configured.
pub const MAX_PARALLEL: usize = 1000;
/// How long a question waits for its turn.
const TURN: Duration = Duration::from_secs(2);
/// How often an authority is asked again about a kite that flies (protocol page §12).
pub const AGAIN: Duration = Duration::from_secs(15 * 60);
/// The same, while it does not answer.
const SOON: Duration = Duration::from_secs(60);
/// After so many of those in a row the kite comes down.
const MOST_UNANSWERED: u32 = 5;
/// Most kites that fly by an authority's word.
pub const MAX_ASKED: usize = 64 * 1024;

/// An authority, as configured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Authority {
    /// It knows the names below this one; none for all names.
    pub domain: Option<KiteName>,
    /// How it is asked.
    pub source: Source,
    /// What its kites may be used for.
    pub protocols: BTreeSet<Protocol>,
    /// Questions at one time.
    pub parallel: usize,
    /// For its kites, where it says nothing.
    pub limits: Limits,
}

/// How an authority is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// By running a program.
    Program(PathBuf),
    /// By a query for a name below `suffix`.
    Dns {
        /// What the question ends in.
        suffix: KiteName,
        /// Who answers it.
        resolver: SocketAddr,
    },
    /// Within this program: no configuration file can name it.
    Judge(Judged),
}

/// What an authority says of a kite.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Word {
    /// Compare the proof with this secret; none if the authority has done that itself.
    pub(crate) secret: Option<Secret>,
    /// Why it may not fly, if it may not.
    refused: Option<String>,
    /// KB that are left.
    kb: Option<u64>,
    /// Days that are left.
    days: Option<u64>,
    /// Connections that are left.
    connections: Option<u64>,
    /// Different visitors within seconds.
    visitors: Option<Rate>,
}

/// Why there is no word.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Silence {
    /// Others are being answered.
    #[error("too much is asked of the authority at one time; see `parallel`")]
    Busy,
    /// It failed.
    #[error("the authority does not answer: {0}")]
    Failed(String),
}

/// What becomes of a line by an authority's word.
pub(super) enum Ruling {
    /// It may fly for these uses.
    Granted {
        /// What it is charged to.
        account: Arc<Account>,
        /// What proved it; none if the authority saw to that.
        secret: Option<Secret>,
        /// For what it may be used.
        protocols: BTreeSet<Protocol>,
    },
    /// It may not.
    Refused(String),
    /// Nobody knows.
    Unanswered(Silence),
}

/// All authorities, and what flies by their word.
#[derive(Default)]
pub struct Authorities {
    all: Vec<Arc<Office>>,
    asked: Mutex<HashMap<(usize, KiteName), Asked>>,
}

struct Office {
    authority: Authority,
    slots: Semaphore,
}

/// A kite that flies by an authority's word.
struct Asked {
    /// Kept after it has come down if something of it is counted here: who registers anew has used what it had used.
    account: Arc<Account>,
    /// What it proved itself with, which can be shown again.
    line: ServiceLine,
    /// What it proved to know; none if the authority saw to that.
    secret: Option<Secret>,
    next: Instant,
    unanswered: u32,
}

impl Authorities {
    /// These.
    pub fn new(all: Vec<Authority>) -> Self {
        let office = |authority: Authority| {
            let slots = Semaphore::new(authority.parallel);
            Arc::new(Office { authority, slots })
        };
        Self {
            all: all.into_iter().map(office).collect(),
            asked: Mutex::default(),
        }
    }

    /// The one for a name: that of the longest domain. None for the last resort, which only the operator grants.
    fn of(&self, name: &KiteName) -> Option<(usize, Arc<Office>)> {
        if name.is_catch_all() {
            return None;
        }
        let length = |office: &Office| {
            office
                .authority
                .domain
                .as_ref()
                .map_or(0, |d| d.as_str().len())
        };
        let knows = |office: &Office| {
            office.authority.domain.as_ref().is_none_or(|domain| {
                let rest = name.as_str().strip_suffix(domain.as_str());
                rest.is_some_and(|rest| rest.ends_with('.'))
            })
        };
        self.all
            .iter()
            .enumerate()
            .filter(|(_, office)| knows(office))
            .max_by_key(|(_, office)| length(office))
            .map(|(at, office)| (at, office.clone()))
    }

    /// Is there one that knows this name?
    pub fn know(&self, name: &KiteName) -> bool {
        self.of(name).is_some()
    }

    /// Is there one that can check nothing but PageKite's own signatures, for it keeps the secret?
    pub fn need_signature(&self, name: &KiteName) -> bool {
        self.of(name)
            .is_some_and(|(_, office)| matches!(office.authority.source, Source::Dns { .. }))
    }

    /// What they may allow, taken together.
    pub fn protocols(&self) -> BTreeSet<Protocol> {
        let all = self.all.iter().flat_map(|o| &o.authority.protocols);
        all.copied().collect()
    }

    /// Has a line ruled on. `proves` says whether a secret is what the line proves.
    pub(super) async fn rule(
        &self,
        line: &ServiceLine,
        name: &KiteName,
        signed: bool,
        proves: impl Fn(&Secret) -> bool,
        now_unix: u64,
    ) -> Ruling {
        let Some((at, office)) = self.of(name) else {
            return Ruling::Refused("unauthorized".to_owned());
        };
        let protocols = office.authority.protocols.clone();
        let word = match office.ask(line, name, signed).await {
            Ok(word) => word,
            Err(silence) => return Ruling::Unanswered(silence),
        };
        if word.secret.as_ref().is_some_and(|secret| !proves(secret)) {
            return Ruling::Refused("signature".to_owned());
        }
        if let Some(why) = word.refused {
            return Ruling::Refused(why);
        }
        let (limits, expires) = word.limits(&office.authority.limits, now_unix);
        let mut asked = self.asked();
        let key = (at, name.clone());
        if asked.len() >= MAX_ASKED && !asked.contains_key(&key) {
            asked.retain(|_, asked| asked.flies());
            if asked.len() >= MAX_ASKED {
                return Ruling::Unanswered(Silence::Busy);
            }
        }
        let account = match asked.get(&key) {
            Some(asked) => {
                let account = asked.account.clone();
                account.renew(word.named(), limits, expires, now_unix);
                account
            }
            None => Account::new(name.as_str(), limits, expires, None),
        };
        let entry = Asked {
            account: account.clone(),
            line: line.clone(),
            secret: word.secret.clone(),
            next: Instant::now() + AGAIN,
            unanswered: 0,
        };
        asked.insert(key, entry);
        Ruling::Granted {
            account,
            secret: word.secret,
            protocols,
        }
    }

    /// Asks again about the kites whose turn it is, and changes or ends their accounts by the answers.
    pub async fn review(&self, now: Instant, now_unix: u64) {
        let due: Vec<_> = {
            let mut asked = self.asked();
            asked.retain(|(at, _), asked| asked.flies() || self.counts(*at));
            let due = asked
                .iter_mut()
                .filter(|(_, asked)| asked.next <= now && asked.flies());
            due.map(|(key, asked)| {
                asked.next = now + AGAIN;
                (key.clone(), asked.line.clone())
            })
            .collect()
        };
        let review = |((at, name), line): ((usize, KiteName), ServiceLine)| async move {
            let Some(office) = self.all.get(at) else {
                return;
            };
            let word = office.ask(&line, &name, true).await;
            self.heed(&office.authority, (at, name), word, now, now_unix);
        };
        futures::future::join_all(due.into_iter().map(review)).await;
    }

    fn heed(
        &self,
        authority: &Authority,
        key: (usize, KiteName),
        word: Result<Word, Silence>,
        now: Instant,
        now_unix: u64,
    ) {
        let mut asked = self.asked();
        let Some(entry) = asked.get_mut(&key) else {
            return;
        };
        let account = entry.account.clone();
        match word {
            Ok(Word {
                refused: Some(why), ..
            }) => account.end(End::Refused(why)),
            // Another secret is to be proved now.
            Ok(word) if word.secret != entry.secret => {
                account.end(End::Refused("signature".to_owned()));
            }
            Ok(word) => {
                entry.unanswered = 0;
                let (limits, expires) = word.limits(&authority.limits, now_unix);
                account.renew(word.named(), limits, expires, now_unix);
            }
            // Others were answered meanwhile: that says nothing of this kite, and strangers can bring it about.
            Err(Silence::Busy) => entry.next = now + SOON,
            Err(silence) => {
                entry.unanswered += 1;
                entry.next = now + SOON;
                tracing::warn!(
                    "[{}] {}: {silence}; see to whom [[authorities]] names",
                    Code::AuthoritySilent,
                    key.1
                );
                if entry.unanswered >= MOST_UNANSWERED {
                    account.end(End::Unanswered);
                }
            }
        }
    }

    /// Do this authority's kites have limits of the operator's, of which we keep count?
    fn counts(&self, at: usize) -> bool {
        let office = self.all.get(at);
        office.is_some_and(|office| office.authority.limits.is_metered())
    }

    fn asked(&self) -> MutexGuard<'_, HashMap<(usize, KiteName), Asked>> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Asked {
    /// Somebody besides us has the account.
    fn flies(&self) -> bool {
        Arc::strong_count(&self.account) > 1
    }
}

impl Office {
    /// One question. `signed` says whether the line has a signature that another can check.
    async fn ask(
        &self,
        line: &ServiceLine,
        name: &KiteName,
        signed: bool,
    ) -> Result<Word, Silence> {
        let turn = timeout(TURN, self.slots.acquire()).await;
        let Ok(Ok(_slot)) = turn else {
            return Err(Silence::Busy);
        };
        match &self.authority.source {
            Source::Program(path) => program::ask(path, name).await,
            Source::Judge(judge) => judge.ask(name).await,
            Source::Dns { .. } if !signed => Ok(Word::no("signature")),
            Source::Dns { suffix, resolver } => dns::ask(line, name, suffix, *resolver).await,
        }
        .map_err(Silence::Failed)
    }
}

/// A reason that fits into a line of the protocol: printable, without its separators, and short.
fn reason(text: &str) -> String {
    let plain = text.chars().filter(|c| matches!(c, ' '..='~') && *c != ';');
    let plain: String = plain.take(64).collect();
    match plain.trim() {
        "" => "unauthorized".to_owned(),
        plain => plain.to_owned(),
    }
}

impl Word {
    fn no(why: &str) -> Self {
        Self {
            refused: Some(why.to_owned()),
            ..Self::default()
        }
    }

    /// Of what it says how much is left.
    fn named(&self) -> Named {
        Named {
            bytes: self.kb.is_some(),
            connections: self.connections.is_some(),
        }
    }

    /// As limits from now on.
    fn limits(&self, usual: &Limits, now_unix: u64) -> (Limits, Option<u64>) {
        let own = Limits {
            quota: self.kb.map(|kb| Size(kb.saturating_mul(1024))),
            connections: self.connections,
            visitors: self.visitors,
            ..Limits::default()
        };
        let days = self.days.map(|days| days.saturating_mul(DAY));
        let expires = days.map(|seconds| now_unix.saturating_add(seconds));
        (own.or(usual), expires)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::now_unix;
    use std::os::unix::fs::PermissionsExt;

    /// Authorities with one program, which is this script.
    fn program(dir: &tempfile::TempDir, script: &str, parallel: usize) -> Authorities {
        let path = dir.path().join("program");
        std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).expect("a file");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o700)).expect("chmod");
        Authorities::new(vec![Authority {
            domain: Some("alice.example".parse().expect("a name")),
            source: Source::Program(path),
            protocols: [Protocol::Http].into(),
            parallel,
            limits: Limits::default(),
        }])
    }

    fn line() -> ServiceLine {
        ServiceLine {
            proto: "http".into(),
            name: "bob.alice.example".into(),
            bsalt: "b".into(),
            fsalt: "f".into(),
            signature: "s".into(),
        }
    }

    async fn rule(authorities: &Authorities) -> Ruling {
        let name = "bob.alice.example".parse().expect("a name");
        authorities
            .rule(
                &line(),
                &name,
                true,
                |secret| secret.expose() == b"right",
                1000,
            )
            .await
    }

    #[tokio::test]
    async fn there_are_only_so_many_kites_by_an_authoritys_word() {
        let dir = tempfile::tempdir().expect("a directory");
        let authorities = program(&dir, r#"echo '{"secret": "right"}'"#, 8);
        let flying = Account::new("others", Limits::default(), None, None);
        let put = |n: usize, account: &Arc<Account>| {
            let asked = Asked {
                account: account.clone(),
                line: line(),
                secret: None,
                next: Instant::now(),
                unanswered: 0,
            };
            let name = format!("k{n}.alice.example").parse().expect("a name");
            authorities.asked().insert((0, name), asked);
        };
        (0..MAX_ASKED).for_each(|n| put(n, &flying));
        let ruling = rule(&authorities).await;
        assert!(matches!(ruling, Ruling::Unanswered(Silence::Busy)));
        // One that has come down makes room.
        put(77, &Account::new("gone", Limits::default(), None, None));
        assert!(!matches!(rule(&authorities).await, Ruling::Unanswered(_)));
        assert_eq!(authorities.asked().len(), MAX_ASKED);
    }

    #[tokio::test]
    async fn silence_is_a_no() {
        let dir = tempfile::tempdir().expect("a directory");
        for script in ["exit 1", "echo nonsense", "yes | head -c 100000"] {
            let ruling = rule(&program(&dir, script, 8)).await;
            assert!(
                matches!(ruling, Ruling::Unanswered(Silence::Failed(_))),
                "{script}"
            );
        }
        // One may be so long and no longer, whatever it says.
        let padded = |len: usize| {
            let answer = r#"{"secret": "right"}"#;
            let fill = len - answer.len();
            format!("printf '%s' '{answer}'; head -c {fill} /dev/zero | tr '\\0' ' '")
        };
        let ruling = rule(&program(&dir, &padded(64 * 1024), 8)).await;
        assert!(matches!(ruling, Ruling::Granted { .. }));
        let ruling = rule(&program(&dir, &padded(64 * 1024 + 1), 8)).await;
        assert!(matches!(ruling, Ruling::Unanswered(Silence::Failed(_))));
        // A no is an answer.
        let ruling = rule(&program(&dir, "echo '{\"error\": \"who\"}'", 8)).await;
        assert!(matches!(ruling, Ruling::Refused(why) if why == "who"));
        let ruling = rule(&program(&dir, "echo '{\"secret\": \"wrong\"}'", 8)).await;
        assert!(matches!(ruling, Ruling::Refused(why) if why == "signature"));
        let ruling = rule(&program(&dir, "echo '{\"secret\": \"right\"}'", 8)).await;
        assert!(matches!(ruling, Ruling::Granted { .. }));
    }

    #[tokio::test]
    async fn too_many_questions_are_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        let slow = program(&dir, "exec sleep 4", 1);
        let (first, second) = tokio::join!(rule(&slow), async {
            tokio::time::sleep(Duration::from_millis(200)).await;
            rule(&slow).await
        });
        assert!(matches!(second, Ruling::Unanswered(Silence::Busy)));
        assert!(matches!(first, Ruling::Unanswered(Silence::Failed(_))));
    }

    #[tokio::test]
    async fn a_kite_that_flies_is_asked_about_again() {
        let dir = tempfile::tempdir().expect("a directory");
        let authorities = program(&dir, "echo '{\"secret\": \"right\", \"quota_kb\": 5}'", 8);
        let Ruling::Granted { account, .. } = rule(&authorities).await else {
            panic!("not granted")
        };
        assert_eq!(account.left(1000).kb, Some(5));
        let path = dir.path().join("program");
        let say = |script: &str| std::fs::write(&path, format!("#!/bin/sh\n{script}\n"));
        say("echo '{\"secret\": \"right\", \"quota_kb\": 9}'").expect("a file");
        let now = Instant::now();
        authorities.review(now, 1000).await;
        assert_eq!(account.left(1000).kb, Some(5), "it is not time");
        authorities.review(now + AGAIN, 1000).await;
        assert_eq!(account.left(1000).kb, Some(9));
        say("exit 1").expect("a file");
        for n in 2..2 + MOST_UNANSWERED {
            assert_eq!(account.standing(1000), Ok(()), "{n}");
            authorities.review(now + AGAIN * n, 1000).await;
        }
        assert_eq!(account.standing(1000), Err(End::Unanswered));
        // Another secret is as good as a no to who proved the last one.
        let authorities = program(&dir, "echo '{\"secret\": \"right\"}'", 8);
        let Ruling::Granted { account, .. } = rule(&authorities).await else {
            panic!("not granted")
        };
        say("echo '{\"secret\": \"new\"}'").expect("a file");
        authorities.review(Instant::now() + AGAIN, 1000).await;
        let refused = End::Refused("signature".to_owned());
        assert_eq!(account.standing(1000), Err(refused));
        let again = rule(&program(&dir, "echo '{}'", 8)).await;
        assert!(matches!(again, Ruling::Refused(_)));
    }

    #[tokio::test]
    async fn what_the_operator_counts_is_counted_on() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut authorities = program(&dir, "echo '{\"secret\": \"right\"}'", 8);
        let office = authorities.all.iter_mut().find_map(Arc::get_mut);
        office.expect("one").authority.limits = Limits {
            quota: Some(Size(10 * 1024)),
            connections: Some(3),
            ..Limits::default()
        };
        let granted = async || match rule(&authorities).await {
            Ruling::Granted { account, .. } => account,
            _ => panic!("not granted"),
        };
        let account = granted().await;
        let pass = account.admit(crate::household::Visitor(1), Instant::now());
        drop(pass.expect("room").meter(4 * 1024));
        let left = |account: &Account| {
            let left = account.left(now_unix());
            (left.kb, left.connections)
        };
        assert_eq!(left(&account), (Some(6), Some(2)));
        let now = Instant::now();
        authorities.review(now + AGAIN, now_unix()).await;
        assert_eq!(left(&account), (Some(6), Some(2)), "as before");
        drop(account);
        authorities.review(now + AGAIN * 2, now_unix()).await;
        let account = granted().await;
        assert_eq!(left(&account), (Some(6), Some(2)), "nor by coming anew");
        // What the authority counts it says anew.
        let path = dir.path().join("program");
        let script = "#!/bin/sh\necho '{\"secret\": \"right\", \"quota_kb\": 9}'\n";
        std::fs::write(&path, script).expect("a file");
        authorities.review(now + AGAIN * 4, now_unix()).await;
        assert_eq!(left(&account), (Some(9), Some(2)));
    }

    #[tokio::test]
    async fn nothing_that_a_program_has_started_outlives_its_time() {
        let dir = tempfile::tempdir().expect("a directory");
        let sign = dir.path().join("sign");
        let script = format!(
            "(sleep 1; echo alive > {}) &\nexec sleep 600",
            sign.display()
        );
        let authorities = program(&dir, &script, 8);
        let asking = timeout(Duration::from_millis(300), rule(&authorities)).await;
        assert!(asking.is_err(), "nobody waits any more");
        tokio::time::sleep(Duration::from_millis(1500)).await;
        assert!(!sign.exists());
    }

    #[test]
    fn the_longest_domain_wins() {
        let authority = |domain: Option<&str>| Authority {
            domain: domain.map(|text| text.parse().expect("a name")),
            source: Source::Program("/nowhere".into()),
            protocols: BTreeSet::new(),
            parallel: 1,
            limits: Limits::default(),
        };
        let all = [None, Some("example"), Some("alice.example")];
        let authorities = Authorities::new(all.into_iter().map(authority).collect());
        let of = |name: &str| {
            authorities
                .of(&name.parse().expect("a name"))
                .map(|(at, _)| at)
        };
        assert_eq!(of("bob.alice.example"), Some(2));
        assert_eq!(of("bob.malice.example"), Some(1));
        assert_eq!(of("alice.example"), Some(1));
        assert_eq!(of("bob.test"), Some(0));
        assert_eq!(of("unknown"), None, "the last resort is the operator's");
    }
}
