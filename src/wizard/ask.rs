//! How questions reach a person, and answers come back. What to ask, and what an answer means, is decided elsewhere,
//! and tried there with an [`Asker`] that has its answers ready.

use std::io::{self, BufRead, IsTerminal, Write};
use std::path::Path;

use console::Term;
use zeroize::Zeroizing;

/// Longest answer that is read, in bytes.
const MAX_ANSWER: u64 = 4096;
/// Wrong answers to one question until it is given up: nobody sits there.
const MAX_TRIES: usize = 20;

/// There is no answer, and nothing was done.
#[derive(Debug, thiserror::Error)]
pub enum NoAnswer {
    /// The input has ended.
    #[error("the input ended before all was answered; nothing was written")]
    Ended,
    /// Somebody has thought better of it.
    #[error("nothing was written")]
    Declined,
    /// Only wrong answers.
    #[error("there were {MAX_TRIES} wrong answers to one question; nothing was written")]
    Wrong,
    /// The terminal is gone.
    #[error("the terminal cannot be used: {0}; nothing was written")]
    Terminal(#[from] io::Error),
}

/// What an answer must stand up to: the value it means, or why it will not do.
pub type Check<'a, T> = dyn FnMut(&str) -> Result<T, String> + 'a;

/// Someone who answers.
pub trait Asker {
    /// Says something that wants no answer.
    fn say(&mut self, text: &str) -> Result<(), NoAnswer>;

    /// One answer, white space around it cut off.
    fn line(&mut self, question: &str) -> Result<Zeroizing<String>, NoAnswer>;

    /// The same, unseen.
    fn hidden(&mut self, question: &str) -> Result<Zeroizing<String>, NoAnswer>;
}

/// A person at the terminal, if there is one: standard input and standard error are it.
pub fn terminal() -> Option<Terminal> {
    (io::stdin().is_terminal() && io::stderr().is_terminal()).then(|| Terminal(Term::stderr()))
}

/// A person at the terminal. Questions go to standard error.
pub struct Terminal(Term);

impl Asker for Terminal {
    fn say(&mut self, text: &str) -> Result<(), NoAnswer> {
        Ok(self.0.write_line(text)?)
    }

    fn line(&mut self, question: &str) -> Result<Zeroizing<String>, NoAnswer> {
        write!(self.0, "{question} ")?;
        self.0.flush()?;
        let mut answer = Zeroizing::new(String::new());
        let mut input = io::Read::take(io::stdin().lock(), MAX_ANSWER);
        if input.read_line(&mut answer)? == 0 {
            self.0.write_line("")?;
            return Err(NoAnswer::Ended);
        }
        Ok(Zeroizing::new(answer.trim().to_owned()))
    }

    fn hidden(&mut self, question: &str) -> Result<Zeroizing<String>, NoAnswer> {
        write!(self.0, "{question} ")?;
        self.0.flush()?;
        match self.0.read_secure_line() {
            Ok(answer) => {
                let answer = Zeroizing::new(answer);
                Ok(Zeroizing::new(answer.trim().to_owned()))
            }
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Err(NoAnswer::Ended),
            Err(e) => Err(e.into()),
        }
    }
}

/// Asks until the answer will do. Without one the usual answer is taken, if there is one.
pub fn ask<T>(
    asker: &mut dyn Asker,
    question: &str,
    usual: Option<&str>,
    check: &mut Check<'_, T>,
) -> Result<T, NoAnswer> {
    let question = match usual {
        Some("") | None => question.to_owned(),
        Some(usual) => format!("{question} [{usual}]"),
    };
    until(asker, check, |asker| {
        let answer = asker.line(&question)?;
        Ok(match (answer.is_empty(), usual) {
            (true, Some(usual)) => Zeroizing::new(usual.to_owned()),
            _ => answer,
        })
    })
}

/// The same for a secret: what is typed is not seen.
pub fn ask_hidden<T>(
    asker: &mut dyn Asker,
    question: &str,
    check: &mut Check<'_, T>,
) -> Result<T, NoAnswer> {
    until(asker, check, |asker| asker.hidden(question))
}

/// Says what the questions are for. `file` is what comes of them.
pub fn opening(asker: &mut dyn Asker, file: &Path) -> Result<(), NoAnswer> {
    asker.say(&format!(
        "There is no configuration yet. Some questions, and kite writes {}.\n\
         Nothing is written before you have seen it; Ctrl-C leaves all as it is.\n",
        file.display()
    ))
}

/// Yes or no.
pub fn yes(asker: &mut dyn Asker, question: &str, usual: bool) -> Result<bool, NoAnswer> {
    let shown = if usual { "Y/n" } else { "y/N" };
    let mut check = |text: &str| match text.to_ascii_lowercase().as_str() {
        "" => Ok(usual),
        "y" | "yes" => Ok(true),
        "n" | "no" => Ok(false),
        _ => Err("Answer yes or no.".to_owned()),
    };
    ask(asker, &format!("{question} [{shown}]"), None, &mut check)
}

fn until<T>(
    asker: &mut dyn Asker,
    check: &mut Check<'_, T>,
    mut once: impl FnMut(&mut dyn Asker) -> Result<Zeroizing<String>, NoAnswer>,
) -> Result<T, NoAnswer> {
    for _ in 0..MAX_TRIES {
        match check(&once(asker)?) {
            Ok(value) => return Ok(value),
            Err(why) => asker.say(&format!("  {why}"))?,
        }
    }
    Err(NoAnswer::Wrong)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wizard::script::Script;

    #[test]
    fn wrong_answers_are_explained_and_asked_again() {
        let mut number = |text: &str| text.parse::<u8>().map_err(|_| format!("'{text}' is none"));
        let mut script = Script::new(&["x", "", "7"]);
        let got = ask(&mut script, "Which?", None, &mut number).expect("7");
        assert_eq!(got, 7);
        assert_eq!(script.heard.matches("Which?").count(), 3);
        assert!(script.heard.contains("'x' is none"));
        let mut script = Script::new(&[""]);
        assert_eq!(
            ask(&mut script, "Which?", Some("9"), &mut number).expect("9"),
            9
        );
        assert!(script.heard.contains("[9]"));
        let end = ask(&mut Script::new(&["x"]), "Which?", None, &mut number);
        assert!(matches!(end, Err(NoAnswer::Ended)));
        let end = ask(&mut Script::new(&["x"; 99]), "Which?", None, &mut number);
        assert!(matches!(end, Err(NoAnswer::Wrong)));
    }

    #[test]
    fn yes_and_no_are_read() {
        for (text, usual, meant) in [
            ("", true, true),
            ("", false, false),
            ("Yes", false, true),
            ("n", true, false),
        ] {
            assert_eq!(
                yes(&mut Script::new(&[text]), "?", usual).expect("an answer"),
                meant
            );
        }
        assert!(yes(&mut Script::new(&["perhaps", "y"]), "?", false).expect("an answer"));
    }
}
