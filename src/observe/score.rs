//! How well a backend's frontends have done their part of late, as its own visitors ([`crate::witness`]) saw it. It lasts:
//! it is kept in a file of the state directory.
//!
//! Each visit weighs one, half as much three days later, and nothing after thirty. A visit that came to another key, or whose
//! bytes were changed, leaves a mark besides: its way is astray until a visit of the same kite by the same way is good. The
//! mark is a word in the file and compares no times; times serve for weights alone, and one that lies in the future is now.

use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::status::Way;
use crate::clock::now_unix;
use crate::code::Code;

/// In the state directory.
const FILE: &str = "backend-scores";
/// Of the file. Another is not read.
const VERSION: u32 = 1;
/// After so long a visit weighs half.
pub const HALF_LIFE: Duration = Duration::from_secs(3 * 86_400);
/// A way that nobody has gone for so long is forgotten.
pub const MEMORY: Duration = Duration::from_secs(30 * 86_400);
/// Ways, of a kite through a frontend, that are remembered. Beyond that the one that was gone longest ago is forgotten.
pub const MAX_WAYS: usize = 1024;
/// A longer name, of a frontend or a kite, is not remembered.
const MAX_NAME: usize = 512;
/// A longer file is not read. All ways, as long as they may be, fit.
pub const MAX_FILE: u64 = 4 * 1024 * 1024;
/// A frontend with fewer points than this is poor,
const POOR: u8 = 50;
/// until it has so many again.
const GOOD: u8 = 75;
/// One visit alone that came nowhere makes no frontend poor: they must weigh this much.
const ENOUGH: f64 = 1.5;

/// What a visit says of the way that it went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It came to the node, and nothing was changed.
    Good,
    /// It came to another key, or its bytes were changed.
    Astray,
    /// It came nowhere.
    NoWay,
}

/// How a frontend does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Standing {
    /// Most visits were good.
    Good,
    /// Too many were not.
    Poor,
    /// A way through it leads to another key, or changes bytes.
    Astray,
}

/// A frontend's score.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Score {
    /// How it does.
    pub standing: Standing,
    /// The part of the visits that were good, of 100, the later ones weighing more.
    pub points: u8,
    /// Since the last visit.
    pub ago: Duration,
    /// The kites that go astray.
    pub astray: Vec<String>,
}

/// The scores of all frontends. Clones are the same scores.
#[derive(Debug, Clone, Default)]
pub struct Scores(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    book: Mutex<Book>,
    /// Where it is kept, if it is. Held while it is written, so that the newest is written last.
    file: Mutex<Option<PathBuf>>,
    /// Something is in the book that is not in the file.
    is_news: AtomicBool,
}

/// What is remembered. Nothing here knows a clock: `now` is in seconds since 1970.
#[derive(Debug, Default)]
struct Book {
    ways: Vec<Gone>,
    /// Frontends that were called poor.
    poor: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Gone {
    frontend: String,
    kite: String,
    way: Way,
    good: f64,
    bad: f64,
    astray: bool,
    at: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Kept {
    version: u32,
    ways: Vec<Gone>,
    poor: Vec<String>,
}

/// Visits taken together.
struct Weighed {
    /// Those that were good, of 100.
    points: u8,
    /// What the others weigh.
    bad: f64,
}

impl Weighed {
    fn is_low(&self) -> bool {
        self.points < POOR && self.bad >= ENOUGH
    }
}

impl Gone {
    fn age(&self, now: u64) -> Duration {
        Duration::from_secs(now.saturating_sub(self.at))
    }

    /// What the good and the bad visits weigh now.
    fn weights(&self, now: u64) -> (f64, f64) {
        let half_lives = self.age(now).as_secs_f64() / HALF_LIFE.as_secs_f64();
        let left = 0.5_f64.powf(half_lives);
        (self.good * left, self.bad * left)
    }

    fn is_sound(&self) -> bool {
        let weighs = |w: f64| w.is_finite() && w >= 0.0;
        weighs(self.good)
            && weighs(self.bad)
            && self.frontend.len() <= MAX_NAME
            && self.kite.len() <= MAX_NAME
    }
}

impl Book {
    fn take(&mut self, frontend: &str, kite: &str, way: Way, verdict: Verdict, now: u64) {
        if frontend.len() > MAX_NAME || kite.len() > MAX_NAME {
            return;
        }
        self.forget(now);
        let same =
            |g: &Gone| (g.frontend.as_str(), g.kite.as_str(), g.way) == (frontend, kite, way);
        let mut gone = match self.ways.iter().position(same) {
            Some(at) => self.ways.swap_remove(at),
            None => Gone {
                frontend: frontend.to_owned(),
                kite: kite.to_owned(),
                way,
                good: 0.0,
                bad: 0.0,
                astray: false,
                at: now,
            },
        };
        (gone.good, gone.bad) = gone.weights(now);
        gone.at = now;
        match verdict {
            Verdict::Good => (gone.good, gone.astray) = (gone.good + 1.0, false),
            Verdict::Astray => (gone.bad, gone.astray) = (gone.bad + 1.0, true),
            // It says nothing of what would have become of one that comes through.
            Verdict::NoWay => gone.bad += 1.0,
        }
        if self.ways.len() >= MAX_WAYS {
            let eldest = self.ways.iter().enumerate().min_by_key(|(_, g)| g.at);
            if let Some((at, _)) = eldest {
                self.ways.swap_remove(at);
            }
        }
        self.ways.push(gone);
        let was_poor = self.poor.iter().any(|f| f == frontend);
        match self.weigh(frontend, now, |_| true) {
            Some(weighed) if weighed.is_low() && !was_poor => self.poor.push(frontend.to_owned()),
            Some(weighed) if weighed.points >= GOOD => self.poor.retain(|f| f != frontend),
            _ => {}
        }
    }

    fn forget(&mut self, now: u64) {
        for gone in &mut self.ways {
            // The clock was ahead, and what it said is no reason to remember anything longer.
            gone.at = gone.at.min(now);
        }
        self.ways.retain(|gone| gone.age(now) < MEMORY);
        let ways = &self.ways;
        self.poor.retain(|f| ways.iter().any(|g| g.frontend == *f));
    }

    fn ways_of(
        &self,
        frontend: &str,
        now: u64,
        counts: impl Fn(&str) -> bool,
    ) -> impl Iterator<Item = &Gone> {
        let of = move |g: &&Gone| g.frontend == frontend && counts(&g.kite) && g.age(now) < MEMORY;
        self.ways.iter().filter(of)
    }

    fn weigh(&self, frontend: &str, now: u64, counts: impl Fn(&str) -> bool) -> Option<Weighed> {
        let ways = self.ways_of(frontend, now, counts);
        let weights = ways.map(|gone| gone.weights(now));
        let (good, bad) = weights.fold((0.0, 0.0), |(good, bad), (g, b)| (good + g, bad + b));
        let all: f64 = good + bad;
        (all > 0.0).then(|| Weighed {
            points: (100.0 * good / all).round() as u8,
            bad,
        })
    }

    fn score(&self, frontend: &str, now: u64, counts: impl Fn(&str) -> bool) -> Option<Score> {
        let weighed = self.weigh(frontend, now, &counts)?;
        let points = weighed.points;
        let ways = || self.ways_of(frontend, now, &counts);
        let mut astray: Vec<_> = ways()
            .filter(|g| g.astray)
            .map(|g| g.kite.clone())
            .collect();
        astray.sort();
        astray.dedup();
        let was_poor = self.poor.iter().any(|f| f == frontend);
        let is_poor = weighed.is_low() || (was_poor && points < GOOD);
        let standing = match is_poor {
            _ if !astray.is_empty() => Standing::Astray,
            true => Standing::Poor,
            false => Standing::Good,
        };
        let ago = ways().map(|g| g.age(now)).min()?;
        Some(Score {
            standing,
            points,
            ago,
            astray,
        })
    }

    fn to_bytes(&self) -> Vec<u8> {
        let kept = Kept {
            version: VERSION,
            ways: self.ways.clone(),
            poor: self.poor.clone(),
        };
        // Strings and finite numbers: it cannot fail.
        let mut bytes = serde_json::to_vec(&kept).unwrap_or_default();
        bytes.push(b'\n');
        bytes
    }

    fn from_bytes(bytes: &[u8], now: u64) -> Result<Self, &'static str> {
        let kept: Kept = serde_json::from_slice(bytes)
            .map_err(|_| "it is torn, damaged, or of another version")?;
        if kept.version != VERSION {
            return Err("it is of another version");
        }
        let is_sound = kept.ways.iter().all(Gone::is_sound);
        if kept.ways.len().max(kept.poor.len()) > MAX_WAYS || !is_sound {
            return Err("what stands in it cannot be");
        }
        let mut book = Self {
            ways: kept.ways,
            poor: kept.poor,
        };
        book.forget(now);
        Ok(book)
    }
}

impl Scores {
    /// Goes on with what an earlier run has kept in this directory. What cannot be used is told, and begun anew.
    pub fn open(state_dir: &Path) -> Self {
        let file = state_dir.join(FILE);
        let anew = |why: &dyn std::fmt::Display| {
            tracing::warn!(
                "[{}] {}: {why}; the frontends' scores begin anew",
                Code::ScoresLost,
                file.display()
            );
            Book::default()
        };
        let book = match read(&file) {
            Ok(Some(bytes)) => Book::from_bytes(&bytes, now_unix()).unwrap_or_else(|e| anew(&e)),
            Ok(None) => Book::default(),
            Err(e) => anew(&e),
        };
        Self(Arc::new(Inner {
            book: Mutex::new(book),
            file: Mutex::new(Some(file)),
            is_news: AtomicBool::new(false),
        }))
    }

    /// A visit is over. The log hears of it if the frontend does otherwise than before.
    pub fn take(&self, frontend: &str, kite: &str, way: Way, verdict: Verdict) {
        let now = now_unix();
        let (before, after) = {
            let mut book = self.book();
            let before = book.score(frontend, now, |_| true);
            book.take(frontend, kite, way, verdict, now);
            self.0.is_news.store(true, Ordering::Release);
            (before, book.score(frontend, now, |_| true))
        };
        let Some(after) = after else { return };
        tell(frontend, before.map(|score| score.standing), &after);
    }

    /// How this frontend does with the kites that count; nothing if no visit of the last time says so.
    pub fn of(&self, frontend: &str, counts: impl Fn(&str) -> bool) -> Option<Score> {
        self.book().score(frontend, now_unix(), counts)
    }

    /// Writes the file, if there is one, and waits until the disk has it.
    pub async fn keep(&self) {
        if !self.0.is_news.load(Ordering::Acquire) {
            return;
        }
        let own = self.clone();
        // It ends by itself, and does not fail.
        let _ = tokio::task::spawn_blocking(move || own.write()).await;
    }

    fn write(&self) {
        let file = self.0.file.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(file) = file.as_deref() else { return };
        let bytes = {
            let book = self.book();
            self.0.is_news.store(false, Ordering::Release);
            book.to_bytes()
        };
        if let Err(e) = replace(file, &bytes) {
            self.0.is_news.store(true, Ordering::Release);
            tracing::warn!(
                "[{}] {}: {e}; the frontends' scores will not survive a restart",
                Code::ScoresLost,
                file.display()
            );
        }
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.0.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn tell(frontend: &str, before: Option<Standing>, after: &Score) {
    let points = after.points;
    match (before.unwrap_or(Standing::Good), after.standing) {
        (before, after) if before == after => {}
        (_, Standing::Astray) => tracing::warn!(
            "[{}] {frontend} leads visitors astray: to another key, or with changed bytes ({}); \
             its score is {points} of 100",
            Code::FrontendAstray,
            after.astray.join(", ")
        ),
        (_, Standing::Poor) => tracing::warn!(
            "[{}] {frontend} does poorly: its score is {points} of 100",
            Code::FrontendPoor
        ),
        (_, Standing::Good) => {
            tracing::info!("{frontend} does well again: its score is {points} of 100");
        }
    }
}

/// The file, if there is one.
fn read(file: &Path) -> io::Result<Option<Vec<u8>>> {
    let open = match fs::symlink_metadata(file) {
        Ok(meta) if !meta.is_file() => return Err(io::Error::other("it is no file")),
        Ok(meta) if meta.len() > MAX_FILE => return Err(io::Error::other("it is too long")),
        Ok(_) => fs::File::open(file)?,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e),
    };
    let mut bytes = Vec::new();
    open.take(MAX_FILE).read_to_end(&mut bytes)?;
    Ok(Some(bytes))
}

/// The new file replaces the old one whole, and outlives a power failure.
fn replace(file: &Path, bytes: &[u8]) -> io::Result<()> {
    let draft = file.with_extension("new");
    // Left behind by a run that was killed.
    let _ = fs::remove_file(&draft);
    let mut options = fs::OpenOptions::new();
    let options = options.write(true).create_new(true).mode(0o600);
    let mut open = options.open(&draft)?;
    let placed = open
        .write_all(bytes)
        .and_then(|()| open.sync_all())
        .and_then(|()| fs::rename(&draft, file));
    if placed.is_err() {
        let _ = fs::remove_file(&draft);
    }
    placed?;
    match file.parent() {
        Some(dir) => fs::File::open(dir)?.sync_all(),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const ALICE: &str = "alice.example:443";
    const KITE: &str = "foolscap:bob.alice.example";
    const DAY: u64 = 86_400;
    /// Some time in 2026.
    const NOW: u64 = 1_790_000_000;

    fn book(visits: &[(Way, Verdict, u64)]) -> Book {
        let mut book = Book::default();
        for (way, verdict, at) in visits {
            book.take(ALICE, KITE, *way, *verdict, *at);
        }
        book
    }

    fn at(book: &Book, now: u64) -> Option<(Standing, u8)> {
        let score = book.score(ALICE, now, |_| true)?;
        Some((score.standing, score.points))
    }

    #[test]
    fn a_visit_weighs_half_after_three_days_and_nothing_after_thirty() {
        use Verdict::{Good, NoWay};
        let way = Way::Frontend;
        let book = book(&[(way, NoWay, NOW), (way, Good, NOW + 3 * DAY)]);
        // One, and one half.
        assert_eq!(at(&book, NOW + 3 * DAY), Some((Standing::Good, 67)));
        // Both get old together.
        assert_eq!(at(&book, NOW + 20 * DAY), Some((Standing::Good, 67)));
        assert_eq!(at(&book, NOW + 33 * DAY - 1), Some((Standing::Good, 67)));
        assert_eq!(at(&book, NOW + 33 * DAY), None);
    }

    #[test]
    fn poor_is_told_under_half_and_good_again_only_well_above() {
        use Verdict::{Good, NoWay};
        let way = Way::Frontend;
        let mut book = book(&[(way, Good, NOW), (way, NoWay, NOW)]);
        assert_eq!(at(&book, NOW), Some((Standing::Good, 50)));
        book.take(ALICE, KITE, way, NoWay, NOW);
        assert_eq!(at(&book, NOW), Some((Standing::Poor, 33)));
        book.take(ALICE, KITE, way, Good, NOW);
        book.take(ALICE, KITE, way, Good, NOW);
        assert_eq!(at(&book, NOW), Some((Standing::Poor, 60)));
        for _ in 0..3 {
            book.take(ALICE, KITE, way, Good, NOW);
        }
        assert_eq!(at(&book, NOW), Some((Standing::Good, 75)));
    }

    /// All within one second: no time says which visit was the last.
    #[test]
    fn astray_lasts_until_a_good_visit_of_the_same_kite_by_the_same_way() {
        use Verdict::{Astray, Good, NoWay};
        let mut book = book(&[(Way::Name, Astray, NOW)]);
        let standing = |book: &Book| at(book, NOW).map(|(standing, _)| standing);
        for _ in 0..9 {
            book.take(ALICE, KITE, Way::Frontend, Good, NOW);
            book.take(ALICE, "foolscap:carol.alice.example", Way::Name, Good, NOW);
        }
        book.take(ALICE, KITE, Way::Name, NoWay, NOW);
        assert_eq!(standing(&book), Some(Standing::Astray));
        let score = book.score(ALICE, NOW, |_| true).expect("a score");
        assert_eq!(score.astray, [KITE]);
        let others = book
            .score(ALICE, NOW, |kite| kite != KITE)
            .expect("a score");
        assert_eq!(
            others.standing,
            Standing::Good,
            "that kite is flown no more"
        );
        book.take(ALICE, KITE, Way::Name, Good, NOW);
        assert_eq!(standing(&book), Some(Standing::Good));
        // And in the other order.
        book.take(ALICE, KITE, Way::Name, Astray, NOW);
        assert_eq!(standing(&book), Some(Standing::Astray));
    }

    #[test]
    fn a_clock_that_jumps_spoils_nothing() {
        use Verdict::{Good, NoWay};
        let way = Way::Frontend;
        // It was years ahead, and is put right.
        let ahead = NOW + 3000 * DAY;
        let mut book = book(&[(way, NoWay, ahead), (way, NoWay, ahead)]);
        assert_eq!(
            at(&book, NOW),
            Some((Standing::Poor, 0)),
            "it counts as now"
        );
        for _ in 0..2 {
            book.take(ALICE, KITE, way, Good, NOW);
        }
        assert_eq!(at(&book, NOW).map(|(_, points)| points), Some(50));
        assert!(book.ways.iter().all(|gone| gone.at == NOW));
        // One that begins in 1970.
        book.take(ALICE, KITE, way, Good, 0);
        assert_eq!(at(&book, 0).map(|(_, points)| points), Some(60));
        assert_eq!(at(&book, u64::MAX), None);
        book.take(ALICE, KITE, way, Good, u64::MAX);
        assert_eq!(at(&book, u64::MAX), Some((Standing::Good, 100)));
    }

    #[test]
    fn only_so_many_ways_are_remembered_and_all_fit_into_the_file() {
        let mut book = Book::default();
        let frontend = "\\".repeat(MAX_NAME);
        for n in 0..=MAX_WAYS {
            let kite = format!("{n:\\<MAX_NAME$}");
            let now = NOW + n as u64;
            book.take(&frontend, &kite, Way::Frontend, Verdict::Astray, now);
        }
        assert_eq!(book.ways.len(), MAX_WAYS);
        assert!(!book.ways.iter().any(|g| g.at == NOW), "the eldest went");
        let too_long = "x".repeat(MAX_NAME + 1);
        book.take(&too_long, KITE, Way::Name, Verdict::Good, NOW);
        assert!(!book.ways.iter().any(|g| g.frontend == too_long));
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join(FILE);
        let bytes = book.to_bytes();
        assert!(bytes.len() as u64 <= MAX_FILE, "{}", bytes.len());
        replace(&file, &bytes).expect("a file");
        let read = read(&file)
            .expect("it is not too long")
            .expect("it is there");
        let again = Book::from_bytes(&read, NOW + MAX_WAYS as u64).expect("it is sound");
        assert_eq!(again.ways, book.ways);
    }

    #[test]
    fn a_restart_keeps_it_and_a_spoiled_file_is_begun_anew() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join(FILE);
        let all = |_: &str| true;
        let scores = Scores::open(dir.path());
        assert_eq!(scores.of(ALICE, all), None);
        scores.take(ALICE, KITE, Way::Frontend, Verdict::Astray);
        scores.write();
        let mode = fs::metadata(&file).expect("a file").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let again = Scores::open(dir.path()).of(ALICE, all).expect("a score");
        assert_eq!((again.standing, again.points), (Standing::Astray, 0));
        for verdict in [Verdict::NoWay, Verdict::Good, Verdict::Good] {
            scores.take(ALICE, KITE, Way::Frontend, verdict);
        }
        scores.write();
        let again = Scores::open(dir.path()).of(ALICE, all).expect("a score");
        assert_eq!(
            again.standing,
            Standing::Poor,
            "it was, and 50 is not enough"
        );
        let good = fs::read(&file).expect("a file");
        let text = String::from_utf8(good.clone()).expect("text");
        for bad in [
            String::new(),
            text[..text.len() / 2].to_owned(),
            text.replace("\"version\":1", "\"version\":2"),
            text.replace("\"bad\":", "\"bad\":-"),
            text.replace("\"bad\":", "\"bad\":1e999"),
            text.replace("astray", "away"),
            " ".repeat(MAX_FILE as usize) + &text,
        ] {
            assert_ne!(bad, text);
            fs::write(&file, &bad).expect("a file");
            let scores = Scores::open(dir.path());
            assert_eq!(scores.of(ALICE, all), None, "{bad:.60}");
            // And it is mended.
            scores.take(ALICE, KITE, Way::Frontend, Verdict::Good);
            scores.write();
            assert!(Scores::open(dir.path()).of(ALICE, all).is_some());
        }
        fs::remove_file(&file).expect("it was there");
        fs::create_dir(&file).expect("in its place");
        let scores = Scores::open(dir.path());
        scores.take(ALICE, KITE, Way::Frontend, Verdict::Good);
        scores.write();
        assert!(scores.of(ALICE, all).is_some(), "it goes on without a file");
    }
}
