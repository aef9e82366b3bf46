//! `kite status --watch`: a running kite on the whole terminal, until q.

use std::collections::VecDeque;
use std::io::{self, IsTerminal};
use std::path::PathBuf;
use std::time::Duration;

use ratatui::Frame;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Cell, Paragraph, Row, Sparkline, Table};

use super::status::{Age, Outcome, Role, Size, Status};
use crate::code::{Code, Coded};
use crate::control;
use crate::shutdown::Shutdown;

/// How often the kite is asked.
const ASK: Duration = Duration::from_secs(1);
/// How often the keyboard is looked at.
const KEYS: Duration = Duration::from_millis(100);
/// Seconds that a sparkline remembers; wider than most terminals.
const MEMORY: usize = 512;

/// Why there is no view.
#[derive(Debug, thiserror::Error)]
pub enum ViewError {
    /// Nobody would see it.
    #[error("--watch needs a terminal; leave it out for text, or use --json for programs")]
    NoTerminal,
    /// No kite.
    #[error("no kite runs with the state directory {0}; name another with --state-dir")]
    Nobody(String),
    /// The terminal failed.
    #[error("the terminal cannot be used: {0}")]
    Terminal(#[from] io::Error),
}

impl Coded for ViewError {
    fn code(&self) -> Code {
        match self {
            Self::NoTerminal => Code::Usage,
            Self::Nobody(_) => Code::NobodyThere,
            Self::Terminal(_) => Code::OutputFailed,
        }
    }
}

/// What is drawn.
pub struct View {
    role: Role,
    status: Option<Status>,
    trouble: Option<String>,
    from: VecDeque<u64>,
    to: VecDeque<u64>,
    colours: bool,
}

/// Shows the kites of these state directories, one at a time, until q, Ctrl-C or `shutdown`. The terminal is as it was afterwards.
pub async fn watch(kites: &[(Role, PathBuf)], shutdown: Shutdown) -> Result<(), ViewError> {
    if !io::stdout().is_terminal() || !io::stdin().is_terminal() {
        return Err(ViewError::NoTerminal);
    }
    let nobody = || ViewError::Nobody(named(kites));
    let (role, _) = kites.iter().find(is_there).ok_or_else(nobody)?;
    let mut view = View::new(*role, std::env::var_os("NO_COLOR").is_none());
    let terminal = ratatui::try_init()?;
    let ended = tokio::select! {
        ended = show(&mut view, terminal, kites) => ended,
        () = shutdown.requested() => Ok(()),
    };
    ratatui::restore();
    Ok(ended?)
}

fn is_there((role, dir): &&(Role, PathBuf)) -> bool {
    role.socket(dir).exists()
}

/// The directories, for a message.
pub fn named(kites: &[(Role, PathBuf)]) -> String {
    let mut names: Vec<_> = kites.iter().map(|(_, d)| d.display().to_string()).collect();
    names.dedup();
    names.join(" or ")
}

async fn show(
    view: &mut View,
    mut terminal: ratatui::DefaultTerminal,
    kites: &[(Role, PathBuf)],
) -> io::Result<()> {
    let mut asks = tokio::time::interval(ASK);
    let mut keys = tokio::time::interval(KEYS);
    loop {
        tokio::select! {
            _ = asks.tick() => {
                let shown = view.role;
                for (role, dir) in kites.iter().filter(|(role, _)| *role == shown) {
                    let asked = control::status(&role.socket(dir)).await;
                    view.take(asked.map_err(|e| e.to_string()));
                }
                terminal.draw(|frame| view.draw(frame))?;
            }
            _ = keys.tick() => {
                while event::poll(Duration::ZERO)? {
                    match event::read()? {
                        Event::Key(key) if key.kind != KeyEventKind::Release => {
                            let ctrl = key.modifiers.contains(KeyModifiers::CONTROL);
                            match key.code {
                                KeyCode::Char('q') | KeyCode::Esc => return Ok(()),
                                KeyCode::Char('c') if ctrl => return Ok(()),
                                KeyCode::Tab => {
                                    let mut others = kites.iter().filter(is_there);
                                    if let Some((other, _)) = others.find(|(r, _)| *r != view.role) {
                                        *view = View::new(*other, view.colours);
                                        asks.reset_immediately();
                                    }
                                }
                                _ => {}
                            }
                        }
                        Event::Resize(..) => {
                            terminal.draw(|frame| view.draw(frame))?;
                        }
                        _ => {}
                    }
                }
            }
        }
    }
}

impl View {
    /// Of a kite that has not been asked yet.
    pub fn new(role: Role, colours: bool) -> Self {
        Self {
            role,
            status: None,
            trouble: None,
            from: VecDeque::new(),
            to: VecDeque::new(),
            colours,
        }
    }

    /// What the kite said, or why it said nothing. Asked once a second.
    pub fn take(&mut self, asked: Result<Status, String>) {
        let status = match asked {
            Ok(status) => status,
            Err(trouble) => {
                self.trouble = Some(trouble);
                return;
            }
        };
        self.trouble = None;
        // What passed since the last look; a kite that was restarted began anew.
        let last = self.status.as_ref().map_or(&status, |s| s).traffic.clone();
        let now = &status.traffic;
        for (line, n) in [
            (
                &mut self.from,
                now.from_visitors.saturating_sub(last.from_visitors),
            ),
            (
                &mut self.to,
                now.to_visitors.saturating_sub(last.to_visitors),
            ),
        ] {
            // The newest first.
            line.push_front(n);
            line.truncate(MEMORY);
        }
        self.status = Some(status);
    }

    /// Draws it all, in whatever room there is.
    pub fn draw(&self, frame: &mut Frame<'_>) {
        let Some(status) = &self.status else {
            let text = self.trouble.as_deref().unwrap_or("asking …");
            frame.render_widget(Paragraph::new(text), frame.area());
            return;
        };
        let rows = |n: usize| u16::try_from(n).unwrap_or(u16::MAX).saturating_add(3);
        let middle = match self.role {
            Role::Backend => status.frontends.len(),
            Role::Frontend => status.backends.len(),
        };
        let [head, sparks, middle, kites, troubles, foot] = Layout::vertical([
            Constraint::Length(3),
            Constraint::Length(5),
            Constraint::Length(rows(middle).min(12)),
            Constraint::Length(rows(status.kites.len()).min(14)),
            Constraint::Min(3),
            Constraint::Length(1),
        ])
        .areas(frame.area());
        self.head(status, frame, head);
        let [left, right] =
            Layout::horizontal([Constraint::Fill(1), Constraint::Fill(1)]).areas(sparks);
        self.spark(
            "from visitors",
            &self.from,
            status.speed.from_visitors,
            frame,
            left,
        );
        self.spark(
            "to visitors",
            &self.to,
            status.speed.to_visitors,
            frame,
            right,
        );
        match self.role {
            Role::Backend => self.frontends(status, frame, middle),
            Role::Frontend => self.backends(status, frame, middle),
        }
        self.kites(status, frame, kites);
        self.troubles(status, frame, troubles);
        let foot_line = match &self.trouble {
            Some(trouble) => Line::styled(trouble.clone(), self.bad()),
            None => Line::raw("q leaves    Tab the other role"),
        };
        frame.render_widget(foot_line, foot);
    }

    fn head(&self, status: &Status, frame: &mut Frame<'_>, area: Rect) {
        let role = match self.role {
            Role::Backend => "backend",
            Role::Frontend => "frontend",
        };
        let traffic = &status.traffic;
        let hidden = match (&status.via, &status.tor) {
            (Some(_), Some(tor)) => Span::styled(
                format!("hidden: yes, through Tor ({})", tor.state),
                self.good(),
            ),
            (Some(_), None) => Span::styled(
                "hidden: NO, frontends see this machine's address",
                self.bad(),
            ),
            (None, _) => Span::raw("the public side"),
        };
        let refused: u64 = traffic.refused.values().sum();
        let lines = vec![
            Line::from(vec![
                Span::styled(format!("kite {role} {}", status.version), self.bold()),
                Span::raw(format!("   up {}   ", Age(status.up))),
                hidden,
            ]),
            Line::raw(format!(
                "visitors {}, here now {}, refused {refused}   from them {}, to them {}",
                traffic.visitors,
                traffic.open,
                Size(traffic.from_visitors),
                Size(traffic.to_visitors),
            )),
        ];
        frame.render_widget(Paragraph::new(lines), area);
    }

    fn spark(
        &self,
        what: &str,
        data: &VecDeque<u64>,
        speed: u64,
        frame: &mut Frame<'_>,
        area: Rect,
    ) {
        let width = usize::from(area.width.saturating_sub(2));
        let mut shown: Vec<u64> = data.iter().take(width).copied().collect();
        shown.reverse();
        let title = format!("{what}: {}/s", Size(speed));
        let spark = Sparkline::default()
            .block(Block::bordered().title(title))
            .style(self.good())
            .data(shown);
        frame.render_widget(spark, area);
    }

    fn frontends(&self, status: &Status, frame: &mut Frame<'_>, area: Rect) {
        let row = |f: &super::status::Frontend| {
            let style = if f.up > 0 { self.good() } else { self.bad() };
            let next = match (f.retry_in, &f.last_error) {
                (Some(s), Some(e)) => format!("next try in {}; {e}", Age(s)),
                (Some(s), None) => format!("next try in {}", Age(s)),
                (None, Some(e)) if f.up == 0 => e.clone(),
                _ => String::new(),
            };
            Row::new(vec![
                Cell::from(f.address.clone()),
                Cell::from(f.state.clone()).style(style),
                Cell::from(format!("{}/{}", f.up, f.tunnels)),
                Cell::from(f.traffic.open.to_string()),
                Cell::from(Size(f.traffic.from_visitors).to_string()),
                Cell::from(Size(f.traffic.to_visitors).to_string()),
                Cell::from(
                    f.score
                        .as_ref()
                        .map_or_else(String::new, |s| s.points.to_string()),
                )
                .style(if f.is_astray() {
                    self.bad()
                } else {
                    Style::new()
                }),
                Cell::from(next),
            ])
        };
        let widths = [
            Constraint::Min(24),
            Constraint::Length(9),
            Constraint::Length(7),
            Constraint::Length(5),
            Constraint::Length(9),
            Constraint::Length(9),
            Constraint::Length(5),
            Constraint::Fill(1),
        ];
        let head = [
            "frontend", "state", "tunnels", "here", "from", "to", "score", "",
        ];
        let head = Row::new(head).style(self.bold());
        let table = Table::new(status.frontends.iter().map(row), widths)
            .header(head)
            .block(Block::bordered().title("through whom"));
        frame.render_widget(table, area);
    }

    fn backends(&self, status: &Status, frame: &mut Frame<'_>, area: Rect) {
        let row = |b: &super::status::Backend| {
            Row::new(vec![
                b.peer.clone(),
                b.streams.to_string(),
                b.round_trip_ms
                    .map_or_else(String::new, |ms| format!("{ms} ms")),
                b.kites.join(", "),
            ])
        };
        let widths = [
            Constraint::Length(24),
            Constraint::Length(7),
            Constraint::Length(9),
            Constraint::Fill(1),
        ];
        let head = Row::new(["tunnel from", "streams", "trip", "kites"]).style(self.bold());
        let table = Table::new(status.backends.iter().map(row), widths)
            .header(head)
            .block(Block::bordered().title("backends"));
        frame.render_widget(table, area);
    }

    fn kites(&self, status: &Status, frame: &mut Frame<'_>, area: Rect) {
        let row = |k: &super::status::Kite| {
            let origin = k
                .origin
                .as_ref()
                .map_or("", |o| o.state.as_str())
                .to_owned();
            let visits = k.probes.iter().chain(&k.by_name);
            let worst = visits.max_by_key(|p| match p.outcome {
                Outcome::Proven => 0,
                Outcome::Reached => 1,
                Outcome::NotProbed => 2,
                Outcome::Failed => 3,
            });
            let (probe, style) = match worst {
                Some(p) if p.outcome == Outcome::Proven => ("proven".to_owned(), self.good()),
                Some(p) if p.outcome == Outcome::Failed => {
                    (format!("FAILED: {}", p.finding), self.bad())
                }
                Some(p) => (format!("not proven: {}", p.finding), Style::new()),
                None if self.role == Role::Backend => ("not visited".to_owned(), Style::new()),
                None => (String::new(), Style::new()),
            };
            let flies = if k.tunnels > 0 {
                self.good()
            } else {
                self.bad()
            };
            Row::new(vec![
                Cell::from(k.kite.clone()).style(flies),
                Cell::from(k.tunnels.to_string()),
                Cell::from(k.traffic.visitors.to_string()),
                Cell::from(k.traffic.open.to_string()),
                Cell::from(origin),
                Cell::from(probe).style(style),
            ])
        };
        let widths = [
            Constraint::Min(30),
            Constraint::Length(7),
            Constraint::Length(8),
            Constraint::Length(5),
            Constraint::Length(15),
            Constraint::Fill(1),
        ];
        let head = Row::new([
            "kite",
            "tunnels",
            "visitors",
            "here",
            "origin",
            "from outside",
        ])
        .style(self.bold());
        let table = Table::new(status.kites.iter().map(row), widths)
            .header(head)
            .block(Block::bordered().title("kites"));
        frame.render_widget(table, area);
    }

    fn troubles(&self, status: &Status, frame: &mut Frame<'_>, area: Rect) {
        let line = |t: &super::status::Trouble| {
            let times = if t.times > 1 {
                format!(" ({} times)", t.times)
            } else {
                String::new()
            };
            Line::raw(format!("{} ago  {}: {}{times}", Age(t.ago), t.with, t.text))
        };
        let lines: Vec<_> = status.troubles.iter().map(line).collect();
        let block = Block::bordered().title("last troubles");
        frame.render_widget(Paragraph::new(lines).block(block), area);
    }

    fn good(&self) -> Style {
        self.coloured(Color::Green)
    }

    fn bad(&self) -> Style {
        self.coloured(Color::Red)
    }

    fn bold(&self) -> Style {
        Style::new().add_modifier(Modifier::BOLD)
    }

    fn coloured(&self, colour: Color) -> Style {
        match self.colours {
            true => Style::new().fg(colour),
            false => Style::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::*;
    use crate::observe::status::{Frontend, Kite, Origin, Traffic, Trouble};

    fn status(to_visitors: u64) -> Status {
        let traffic = Traffic {
            visitors: 3,
            open: 1,
            to_visitors,
            ..Traffic::default()
        };
        Status {
            via: Some("direct".to_owned()),
            traffic: traffic.clone(),
            frontends: vec![Frontend {
                address: "alice.example:443".to_owned(),
                state: "waiting".to_owned(),
                up: 0,
                tunnels: 1,
                retry_in: Some(7),
                last_error: Some("it refused the connection".to_owned()),
                traffic: traffic.clone(),
                score: None,
            }],
            kites: vec![Kite {
                kite: "foolscap:bob.alice.example".to_owned(),
                flies_at: Vec::new(),
                wanted_at: Vec::new(),
                tunnels: 0,
                origin: Some(Origin {
                    address: "127.0.0.1:1".to_owned(),
                    state: "down".to_owned(),
                    since: 1,
                    seen: Some(1),
                    last_trouble: None,
                }),
                probes: Vec::new(),
                by_name: Vec::new(),
                traffic,
            }],
            troubles: vec![Trouble {
                with: "alice.example:443".to_owned(),
                text: "it refused the connection".to_owned(),
                code: None,
                ago: 61,
                times: 2,
            }],
            ..Status::new(Role::Backend, Instant::now())
        }
    }

    fn screen(view: &View, width: u16, height: u16) -> (String, bool) {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).expect("a terminal");
        terminal.draw(|frame| view.draw(frame)).expect("drawn");
        let cells = &terminal.backend().buffer().content;
        let coloured = cells.iter().any(|c| c.fg != Color::Reset);
        let mut text = String::new();
        for (n, cell) in cells.iter().enumerate() {
            if n % usize::from(width) == 0 {
                text.push('\n');
            }
            text.push_str(cell.symbol());
        }
        (text, coloured)
    }

    #[test]
    fn it_shows_frontends_kites_troubles_and_both_directions() {
        let mut view = View::new(Role::Backend, true);
        view.take(Ok(status(0)));
        view.take(Ok(status(5_000)));
        let (text, coloured) = screen(&view, 120, 40);
        for wanted in [
            "hidden: NO",
            "alice.example:443",
            "next try in 7 s; it refused",
            "foolscap:bob.alice.example",
            "down",
            "not visited",
            "1 min 1 s ago  alice.example:443: it refused the connection (2 times)",
            "from visitors",
            "to visitors",
            "5.00 kB",
            "█",
        ] {
            assert!(text.contains(wanted), "{wanted} is not in{text}");
        }
        assert!(coloured);
        view.take(Err("it is gone".to_owned()));
        assert!(screen(&view, 120, 40).0.contains("it is gone"));
    }

    #[test]
    fn it_fits_any_terminal_and_does_without_colours() {
        let mut view = View::new(Role::Backend, false);
        screen(&view, 80, 24);
        view.take(Ok(status(1)));
        for (width, height) in [(1, 1), (20, 3), (80, 24), (300, 100)] {
            assert!(!screen(&view, width, height).1);
        }
    }
}
