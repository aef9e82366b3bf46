//! A frontend takes another's place, and no visitor is refused meanwhile. The one that runs starts the program on the disk
//! anew, and hands over its sockets; the new one says when it has read all that can be read beside the old (`prepared`), hears
//! who is expected back and that the book is free (`yours`), and says when it serves (`ready`). Only then does the old one let go.

use std::ffi::OsString;
use std::io;
use std::process::{Child, Command, ExitStatus};
use std::sync::Weak;
use std::time::Duration;

use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep};

use crate::code::{Code, Coded};
use crate::frontend::awaited::Whom;
use crate::listen::TcpListener;
use crate::listen::handed::{Handed, Passage};

/// Tells a process that it is to take another's place, which waits at its standard input.
const VARIABLE: &str = "KITE_UPGRADE";
/// The words; each means what this version of kite means by it.
const PREPARED: &str = "prepared 1";
const YOURS: &str = "yours ";
const READY: &str = "ready";
/// How long each word is waited for.
const PATIENCE: Duration = Duration::from_secs(60);
/// The longest word, in bytes: who is expected is in it.
const MAX_WORD: usize = 16 * 1024 * 1024;
/// How long a process that gave up may take to be gone.
const LAST: Duration = Duration::from_secs(5);

/// Why nobody has taken this frontend's place. It goes on as before.
#[derive(Debug, thiserror::Error)]
pub enum UpgradeError {
    /// The program cannot be started.
    #[error("{} cannot be started: {source}; see that the program is there", .program.display())]
    Start {
        /// What was to be started.
        program: std::path::PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It did not get that far.
    #[error(
        "the new kite ended ({0}) before it was ready; the log has its own words, just before these"
    )]
    Ended(ExitStatus),
    /// It does not speak as this one does.
    #[error(
        "the new kite did not say in time that it is ready, or is of a version that cannot take this one's place; restart kite instead"
    )]
    Silent,
}

impl Coded for UpgradeError {
    fn code(&self) -> Code {
        Code::UpgradeFailed
    }
}

/// The one that is to take this one's place.
pub(super) struct Successor {
    child: Child,
    passage: Option<Passage>,
}

impl Successor {
    /// Starts the program by the name, and with the arguments, that this one was started with, and hands the sockets over.
    #[expect(
        clippy::disallowed_methods,
        reason = "the frontend's own program, which is to take its place"
    )]
    pub(super) fn start(sockets: &[Weak<TcpListener>]) -> Result<Self, UpgradeError> {
        use std::os::fd::AsFd;
        let mut words = std::env::args_os();
        let program = words.next().unwrap_or_else(|| OsString::from("kite"));
        let failed = |source| UpgradeError::Start {
            program: program.clone().into(),
            source,
        };
        let (ours, theirs) = Passage::new().map_err(failed)?;
        let child = Command::new(&program)
            .args(words)
            .env(VARIABLE, "1")
            .stdin(theirs.into_fd())
            .spawn()
            .map_err(failed)?;
        let successor = Self {
            child,
            passage: Some(ours),
        };
        let open: Vec<_> = sockets.iter().filter_map(Weak::upgrade).collect();
        let fds: Vec<_> = open.iter().map(|socket| socket.as_fd()).collect();
        if let Some(passage) = &successor.passage {
            passage.give(&fds).map_err(failed)?;
        }
        Ok(successor)
    }

    /// Its process.
    pub(super) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Waits until it has read all that can be read beside this one.
    pub(super) async fn prepared(&mut self) -> Result<(), UpgradeError> {
        self.hear(PREPARED).await
    }

    /// Says that the book is free, and who is expected back; waits until it serves.
    pub(super) async fn takes_over(&mut self, expected: &Whom) -> Result<(), UpgradeError> {
        let word = word_of(expected);
        if let Some(passage) = &mut self.passage
            && passage.say(&format!("{YOURS}{word}")).is_err()
        {
            return Err(self.gave_up().await);
        }
        self.hear(READY).await
    }

    async fn hear(&mut self, wanted: &'static str) -> Result<(), UpgradeError> {
        let Some(mut passage) = self.passage.take() else {
            return Err(UpgradeError::Silent);
        };
        let heard = spawn_blocking(move || {
            let word = passage.hear(MAX_WORD, Some(PATIENCE));
            (passage, word)
        });
        if let Ok((passage, word)) = heard.await {
            self.passage = Some(passage);
            if word.is_ok_and(|word| word == wanted) {
                return Ok(());
            }
        }
        Err(self.gave_up().await)
    }

    /// Sees to it that it is gone.
    async fn gave_up(&mut self) -> UpgradeError {
        // Whoever waits for our next word sees that none comes.
        self.passage = None;
        let until = Instant::now() + LAST;
        while Instant::now() < until {
            if let Ok(Some(status)) = self.child.try_wait() {
                return UpgradeError::Ended(status);
            }
            sleep(Duration::from_millis(20)).await;
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
        UpgradeError::Silent
    }
}

/// Who is expected, as it is said. Where names are too many for a word, everybody is waited for who may fly.
fn word_of(expected: &Whom) -> String {
    let word = serde_json::to_string(expected).unwrap_or_default();
    match YOURS.len() + word.len() > MAX_WORD {
        true => serde_json::to_string(&Whom::entitled()).unwrap_or_default(),
        false => word,
    }
}

/// The one whose place this one takes.
pub(super) struct Predecessor(Passage);

impl Predecessor {
    /// If there is one, with its sockets. To be called while there is one thread.
    pub(super) fn find() -> io::Result<Option<(Self, Handed)>> {
        if std::env::var_os(VARIABLE).is_none() {
            return Ok(None);
        }
        // A variable that was left over in a shell is no kite.
        let Ok(passage) = Passage::at_stdin() else {
            return Ok(None);
        };
        let handed = passage.take()?;
        Ok(Some((Self(passage), handed)))
    }

    /// Says that all is read that can be read beside it, and waits until the rest is free. Who is expected back from there.
    pub(super) fn let_go(&mut self) -> io::Result<Whom> {
        self.0.say(PREPARED)?;
        let word = self.0.hear(MAX_WORD, Some(PATIENCE))?;
        let expected = word.strip_prefix(YOURS).map(serde_json::from_str);
        match expected {
            Some(Ok(expected)) => Ok(expected),
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    /// Says that this one serves.
    pub(super) fn ready(&mut self) -> io::Result<()> {
        self.0.say(READY)
    }

    /// Waits until its process has ended, however long that takes.
    pub(super) fn gone(mut self) {
        // It says nothing any more.
        let _ = self.0.hear(MAX_WORD, None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the one that takes a place makes of a word, and how long it waits for it.
    fn told(word: String) -> (io::Result<Whom>, Option<Duration>) {
        let (mut old, new) = Passage::new().expect("a pair");
        let mut new = Predecessor(new);
        let saying = std::thread::spawn(move || {
            let prepared = old.hear(MAX_WORD, None);
            // It may hang up before the end.
            let _ = old.say(&word);
            prepared
        });
        let heard = new.let_go();
        let [patience, _] = new.0.patience();
        drop(new);
        let prepared = saying.join().expect("no panic");
        assert_eq!(prepared.expect("a word"), PREPARED);
        (heard, patience)
    }

    #[test]
    fn each_word_has_its_length_and_its_time() {
        let whom = Whom {
            entitled: true,
            flown: [("http".to_owned(), "bob.alice.example".to_owned())].into(),
        };
        let word = serde_json::to_string(&whom).expect("a word");
        let (heard, patience) = told(format!("{YOURS}{word}"));
        assert!(matches!(heard, Ok(heard) if heard == whom));
        assert_eq!(patience, Some(PATIENCE));
        let (heard, _) = told(format!("{YOURS}{word}{}", " ".repeat(MAX_WORD)));
        assert_eq!(
            heard.expect_err("too long").kind(),
            io::ErrorKind::InvalidData
        );
    }

    #[test]
    fn who_is_expected_can_always_be_said() {
        let whom = |kites: usize| Whom {
            entitled: false,
            flown: (0..kites)
                .map(|n| ("http".to_owned(), format!("{n:0200}.example")))
                .collect(),
        };
        for (kites, heard) in [(2, whom(2)), (100_000, Whom::entitled())] {
            let (said, _) = told(format!("{YOURS}{}", word_of(&whom(kites))));
            assert!(said.is_ok_and(|said| said == heard), "{kites}");
        }
    }
}
