//! An authority within the program: for those who embed a frontend and know by themselves who may fly.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::time::timeout;

use super::{Word, reason};
use crate::kite::{KiteName, Secret};

/// How long a judge may take.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// What a judge says of a kite.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It may fly if it proves to know this.
    Secret(Secret),
    /// It may not, and is told why in a few words.
    No(String),
}

/// Who is asked about kites. It is asked again about those that fly, every quarter of an hour.
#[async_trait]
pub trait Judge: Send + Sync + 'static {
    /// May this kite fly? An error means that nobody knows, which is a no, too; the log has it.
    async fn verdict(&self, name: &KiteName) -> Result<Verdict, String>;
}

/// A judge, shared.
#[derive(Clone)]
pub struct Judged(Arc<dyn Judge>);

impl Judged {
    /// By this judge.
    pub fn by(judge: impl Judge) -> Self {
        Self(Arc::new(judge))
    }

    pub(super) async fn ask(&self, name: &KiteName) -> Result<Word, String> {
        let verdict = timeout(PATIENCE, self.0.verdict(name))
            .await
            .map_err(|_| format!("it took more than {} s", PATIENCE.as_secs()))??;
        Ok(match verdict {
            Verdict::Secret(secret) => Word {
                secret: Some(secret),
                ..Word::default()
            },
            Verdict::No(why) => Word::no(&reason(&why)),
        })
    }
}

/// Says nothing of what the judge holds: there may be secrets.
impl fmt::Debug for Judged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Judged")
    }
}

/// The same judge, not one like it.
impl PartialEq for Judged {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Judged {}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fixed(Result<Verdict, String>);

    #[async_trait]
    impl Judge for Fixed {
        async fn verdict(&self, _: &KiteName) -> Result<Verdict, String> {
            self.0.clone()
        }
    }

    #[tokio::test]
    async fn a_verdict_is_a_word_and_silence_is_none() {
        let name = "bob.alice.example".parse().expect("a name");
        let secret = Secret::new(b"right").expect("a secret");
        let yes = Judged::by(Fixed(Ok(Verdict::Secret(secret.clone()))));
        assert_eq!(yes.ask(&name).await.map(|w| w.secret), Ok(Some(secret)));
        let no = Judged::by(Fixed(Ok(Verdict::No("not today".into()))));
        let word = no.ask(&name).await.expect("a word");
        assert_eq!(word.refused.as_deref(), Some("not today"));
        let down = Judged::by(Fixed(Err("the database is down".into())));
        assert_eq!(down.ask(&name).await, Err("the database is down".into()));
        assert_eq!(yes.clone(), yes);
        assert_ne!(yes, no);
    }
}
