//! Kites that a backend asks for within a tunnel that stands (protocol page §3.8): the same rounds, without heads.

use super::{
    BackendHandshake, Fate, HandshakeError, Lines, Options, PeerParams, State, Step, Verdict,
    Wanted,
};

/// What to do now.
#[derive(Debug)]
#[must_use]
pub enum Within {
    /// It was nothing about these kites, or not all. Wait for more.
    Wait,
    /// Send this in a frame.
    Send(Box<Lines>),
    /// It is decided.
    Done(Box<Verdict>),
}

impl BackendHandshake {
    /// Begins within a tunnel whose handshake had these options, and found this `peer`; also returns the question.
    /// `proven` says whether [`super::KITE_PROOF`] was agreed for it. Kites that fly there must not be among those that are
    /// `wanted`.
    pub fn within(
        wanted: Vec<Wanted>,
        options: Options,
        peer: PeerParams,
        proven: bool,
        tokens: impl FnMut() -> String + Send + 'static,
    ) -> (Self, Lines) {
        let (mut machine, _) = Self::new(wanted, options, tokens);
        machine.verdict.peer = peer;
        machine.verdict.proven = proven;
        let question = machine.question();
        (machine, question)
    }

    /// Goes on with what a frame said. After an error the tunnel must be closed.
    pub fn hear(&mut self, lines: &Lines) -> Result<Within, HandshakeError> {
        let asked = matches!(self.state, State::Asked);
        let ours = |id: &super::KiteId| self.entries.iter().any(|e| e.id == *id);
        let named = (lines.ok.iter())
            .chain(&lines.duplicate)
            .chain(lines.invalid.iter().map(|(id, _)| id))
            .chain(lines.sign_this.iter().map(|(id, _)| id));
        if matches!(self.state, State::Over) || !named.into_iter().any(ours) {
            return Ok(Within::Wait);
        }
        self.learn(lines.clone())?;
        let mut open = self.entries.iter();
        if asked && open.any(|e| matches!(e.fate, Fate::Open) && e.fsalt.is_some()) {
            self.state = State::Within;
            let mut answer = self.question();
            self.claim_tubs(&mut answer);
            self.mark(&mut answer);
            return Ok(Within::Send(Box::new(answer)));
        }
        match self.done() {
            Step::Done(verdict) => Ok(Within::Done(verdict)),
            _ => Ok(Within::Wait),
        }
    }

    fn question(&mut self) -> Lines {
        let mut lines = Lines {
            services: self.services(),
            end_tls: self.endings(),
            ..Lines::default()
        };
        if self.options.offer_beside {
            lines.beside.clone_from(&self.options.beside);
            lines.retire.clone_from(&self.options.retire);
        }
        lines
    }
}
