//! Answers that are ready, for tests.

use std::collections::VecDeque;

use zeroize::Zeroizing;

use super::ask::{Asker, NoAnswer};

/// Answers in their order, and all that was said to them.
pub struct Script {
    answers: VecDeque<String>,
    /// Questions and remarks.
    pub heard: String,
}

impl Script {
    /// With these answers, after which the input ends.
    pub fn new(answers: &[&str]) -> Self {
        Self {
            answers: answers.iter().map(ToString::to_string).collect(),
            heard: String::new(),
        }
    }

    /// Whether all answers were wanted.
    pub fn is_through(&self) -> bool {
        self.answers.is_empty()
    }
}

impl Asker for Script {
    fn say(&mut self, text: &str) -> Result<(), NoAnswer> {
        self.heard += text;
        self.heard += "\n";
        Ok(())
    }

    fn line(&mut self, question: &str) -> Result<Zeroizing<String>, NoAnswer> {
        self.say(question)?;
        let answer = self.answers.pop_front().ok_or(NoAnswer::Ended)?;
        Ok(Zeroizing::new(answer.trim().to_owned()))
    }

    fn hidden(&mut self, question: &str) -> Result<Zeroizing<String>, NoAnswer> {
        self.line(question)
    }
}
