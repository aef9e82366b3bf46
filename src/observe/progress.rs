//! How far a start has come: Tor's, an onion service's descriptor, the way to each frontend. A bar on a terminal, log
//! lines elsewhere, and objects of JSON for programs.
//!
//! The objects have a flag of their own, `--progress json`, and no `--json`: that word asks commands for their answer,
//! and a running kite has none. They go to standard output, one a line, since standard error has the log.

use std::collections::HashMap;
use std::fmt;
use std::io::{self, IsTerminal, Write};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use clap::ValueEnum;
use console::Term;
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle, TermLike};
use serde::Serialize;

use super::board::View;
use super::stderr::{self, LAST_LINES, Lines};
use crate::code::Code;
use crate::tor::Progress;

/// Says several lines: on standard output if that is a terminal, else in the log.
pub fn say(text: &str) {
    match io::stdout().is_terminal() && mode() == Mode::Auto {
        true => beside(|| text.lines().for_each(put)),
        false => text.lines().for_each(|line| tracing::info!("{line}")),
    }
}

/// Steps of the bar.
const STEPS: u64 = 100;
/// How often a bar moves by itself.
const TICK: Duration = Duration::from_millis(250);
/// How often bars are drawn in a second at most.
const DRAWN: u8 = 20;
/// Most frontends that are shown at one time; the log has all of them.
const MAX_SPINNERS: usize = 8;

/// How progress is shown.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// Bars on a terminal, log lines elsewhere.
    #[default]
    Auto,
    /// Log lines.
    Lines,
    /// One JSON object a line, on standard output.
    Json,
}

/// One step of a start.
#[derive(Debug)]
pub enum Event<'a> {
    /// The embedded Tor client.
    Tor(&'a Progress),
    /// A frontend's onion service: published, with the address that backends dial, or not yet.
    Onion(Option<&'a str>),
    /// One of a backend's tunnels.
    Tunnel(&'a View),
}

/// What programs read. The fields stay; more may be added.
#[derive(Debug, Serialize)]
#[serde(tag = "event", rename_all = "lowercase")]
enum Line<'a> {
    Tor {
        percent: u64,
        ready: bool,
        text: &'a str,
        blocked: Option<&'a str>,
    },
    Onion {
        published: bool,
        address: Option<&'a str>,
    },
    Tunnel {
        frontend: &'a str,
        tunnel: u8,
        state: &'a str,
        kites: &'a [String],
        code: Option<Code>,
        error: Option<&'a str>,
    },
    /// Nobody read for a while.
    Missing { lines: u64 },
    /// The last one of a kite that ends otherwise than as asked.
    Error { code: Code, text: String },
}

impl<'a> From<&Event<'a>> for Line<'a> {
    fn from(event: &Event<'a>) -> Self {
        match event {
            Event::Tor(progress) => Self::Tor {
                percent: percent(progress),
                ready: progress.ready,
                text: &progress.text,
                blocked: progress.blocked.as_deref(),
            },
            Event::Onion(address) => Self::Onion {
                published: address.is_some(),
                address: *address,
            },
            Event::Tunnel(view) => {
                let error = view.last_error.as_deref().filter(|_| view.state != "up");
                let (code, error) = match error.and_then(Code::leading) {
                    Some((code, text)) => (Some(code), Some(text)),
                    None => (None, error),
                };
                Self::Tunnel {
                    frontend: &view.frontend,
                    tunnel: view.lane.0 + 1,
                    state: view.state,
                    kites: &view.kites,
                    code,
                    error,
                }
            }
        }
    }
}

fn percent(progress: &Progress) -> u64 {
    (progress.fraction.clamp(0.0, 1.0) * STEPS as f32) as u64
}

static MODE: OnceLock<Mode> = OnceLock::new();

/// How this process shows progress, from now on.
pub fn choose(mode: Mode) {
    let _ = MODE.set(mode);
}

/// As it was chosen.
pub fn mode() -> Mode {
    MODE.get().copied().unwrap_or_default()
}

/// Shows progress.
pub struct Display {
    bars: Option<Bars>,
    /// What was shown last of each.
    last: HashMap<String, String>,
}

impl Display {
    /// Bars if standard error is a terminal, log lines if not, unless [`choose`] said otherwise.
    pub fn new() -> Self {
        let bars = mode() == Mode::Auto && io::stderr().is_terminal();
        Self {
            bars: bars.then(Bars::new),
            last: HashMap::new(),
        }
    }

    /// Shows the newest state; the same state twice is shown once.
    pub fn show(&mut self, event: &Event<'_>) {
        let line = Line::from(event);
        let Ok(text) = serde_json::to_string(&line) else {
            return;
        };
        let about = match event {
            Event::Tor(_) => String::new(),
            Event::Onion(_) => "onion".to_owned(),
            Event::Tunnel(view) => format!("{} {}", view.frontend, view.lane.0),
        };
        if self.last.get(&about) == Some(&text) {
            return;
        }
        match (mode(), &mut self.bars) {
            (Mode::Json, _) => put(&text),
            (_, Some(bars)) => bars.show(event),
            (_, None) => log(event),
        }
        self.last.insert(about, text);
    }
}

impl Default for Display {
    fn default() -> Self {
        Self::new()
    }
}

/// What standard output is told, on its way: a program may read only until all is well, and a pipe that is full must not stop the kite.
static OBJECTS: OnceLock<Option<Lines>> = OnceLock::new();

/// A program that reads no more is no reason to end, or to wait.
fn put(text: &str) {
    let line = format!("{text}\n");
    let missing = |lines| {
        let text = serde_json::to_string(&Line::Missing { lines }).unwrap_or_default();
        format!("{text}\n").into()
    };
    // The first is said by a role that runs, within its walls, or by one that ends.
    let begin = || Lines::begin(Box::new(io::stdout()), missing).ok();
    match OBJECTS.get_or_init(begin) {
        Some(lines) => lines.say(line.as_bytes()),
        None => drop(io::stdout().lock().write_all(line.as_bytes())),
    }
}

/// Waits until all objects are written, for a while at most.
pub fn finish() {
    if let Some(Some(lines)) = OBJECTS.get() {
        lines.finish(LAST_LINES);
    }
}

/// Tells programs the last word of a kite that ends otherwise than as asked.
pub fn end(code: Code, text: String) {
    if mode() == Mode::Json
        && let Ok(text) = serde_json::to_string(&Line::Error { code, text })
    {
        put(&text);
        finish();
    }
}

/// The log has lines of its own for tunnels and onion services.
fn log(event: &Event<'_>) {
    if let Event::Tor(progress) = event {
        match &progress.blocked {
            // What keeps it is said by the watch, with what to do: here it is Arti's guess.
            Some(why) => tracing::debug!("Tor: stuck: {why}"),
            None => tracing::info!("Tor: {}", progress.text),
        }
    }
}

/// All bars on the screen, which log lines must not run into.
static SCREEN: OnceLock<MultiProgress> = OnceLock::new();

fn screen() -> &'static MultiProgress {
    let canvas = || ProgressDrawTarget::term_like_with_hz(Box::<Canvas>::default(), DRAWN);
    SCREEN.get_or_init(|| MultiProgress::with_draw_target(canvas()))
}

/// Standard error as bars see it: what they draw goes there as log lines do, and so nobody waits for a terminal that has stopped.
#[derive(Debug, Default)]
struct Canvas(Mutex<Vec<u8>>);

impl Canvas {
    fn put(&self, what: fmt::Arguments<'_>) -> io::Result<()> {
        let mut look = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        look.write_fmt(what)
    }
}

impl TermLike for Canvas {
    fn width(&self) -> u16 {
        Term::stderr().size().1
    }

    fn height(&self) -> u16 {
        Term::stderr().size().0
    }

    fn move_cursor_up(&self, n: usize) -> io::Result<()> {
        moved(self, n, 'A')
    }

    fn move_cursor_down(&self, n: usize) -> io::Result<()> {
        moved(self, n, 'B')
    }

    fn move_cursor_right(&self, n: usize) -> io::Result<()> {
        moved(self, n, 'C')
    }

    fn move_cursor_left(&self, n: usize) -> io::Result<()> {
        moved(self, n, 'D')
    }

    fn write_line(&self, text: &str) -> io::Result<()> {
        self.put(format_args!("{text}\n"))
    }

    fn write_str(&self, text: &str) -> io::Result<()> {
        self.put(format_args!("{text}"))
    }

    fn clear_line(&self) -> io::Result<()> {
        self.put(format_args!("\r\x1b[2K"))
    }

    fn flush(&self) -> io::Result<()> {
        let mut look = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match look.is_empty() {
            true => Ok(()),
            false => stderr::draw(std::mem::take(&mut look)),
        }
    }
}

/// Moves the cursor (ECMA-48 §8.3.18 to §8.3.22).
fn moved(canvas: &Canvas, n: usize, way: char) -> io::Result<()> {
    match n {
        0 => Ok(()),
        n => canvas.put(format_args!("\x1b[{n}{way}")),
    }
}

/// Says something on standard error while bars make room.
pub(super) fn beside<T>(write: impl FnOnce() -> T) -> T {
    match SCREEN.get() {
        Some(screen) => screen.suspend(write),
        None => write(),
    }
}

/// A bar for Tor, and a line for each frontend that has not been reached yet.
struct Bars {
    tor: Option<ProgressBar>,
    onion: Option<ProgressBar>,
    tunnels: HashMap<String, Option<ProgressBar>>,
}

impl Bars {
    fn new() -> Self {
        Self {
            tor: None,
            onion: None,
            tunnels: HashMap::new(),
        }
    }

    fn show(&mut self, event: &Event<'_>) {
        match event {
            Event::Tor(progress) if progress.ready => clear(&mut self.tor),
            Event::Tor(progress) => {
                let bar = self.tor.get_or_insert_with(|| {
                    bar("  Tor  {bar:24}  {wide_msg}", ProgressBar::new(STEPS))
                });
                bar.set_position(percent(progress));
                bar.set_message(match &progress.blocked {
                    Some(why) => format!("stuck: {why}"),
                    None => progress.text.clone(),
                });
            }
            Event::Onion(Some(_)) => clear(&mut self.onion),
            Event::Onion(None) => {
                let line = self.onion.get_or_insert_with(spinner);
                line.set_message(
                    "onion service: uploading its descriptor, which can take a minute",
                );
            }
            Event::Tunnel(view) => self.tunnel(view),
        }
    }

    /// Once a tunnel has stood the log says all there is to say.
    fn tunnel(&mut self, view: &View) {
        let room = self.tunnels.values().flatten().count() < MAX_SPINNERS;
        let known = self.tunnels.contains_key(&view.frontend);
        match view.state {
            "up" => clear(self.tunnels.entry(view.frontend.clone()).or_default()),
            "dialling" | "waiting" if known || room => {
                let line = self
                    .tunnels
                    .entry(view.frontend.clone())
                    .or_insert_with(|| Some(spinner()));
                if let Some(line) = line {
                    line.set_message(match (view.state, &view.last_error) {
                        ("waiting", Some(why)) => format!("{}: {why}", view.frontend),
                        _ => format!("{}: dialling", view.frontend),
                    });
                }
            }
            _ => {}
        }
    }
}

fn clear(bar: &mut Option<ProgressBar>) {
    if let Some(bar) = bar.take() {
        bar.finish_and_clear();
    }
}

fn spinner() -> ProgressBar {
    bar("  {spinner}  {wide_msg}", ProgressBar::new_spinner())
}

fn bar(template: &str, bar: ProgressBar) -> ProgressBar {
    let bar = screen().add(bar);
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar.enable_steady_tick(TICK);
    bar
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dial::Lane;

    fn said(event: &Event<'_>) -> serde_json::Value {
        serde_json::to_value(Line::from(event)).expect("JSON")
    }

    fn view(state: &'static str, error: Option<&str>) -> View {
        View {
            frontend: "alice.example:443".into(),
            lane: Lane(1),
            state,
            last_error: error.map(str::to_owned),
            kites: vec!["foolscap:bob.alice.example".into()],
            since: Duration::ZERO,
            round_trip: None,
            streams: 0,
            retry_in: None,
            connects: 0,
        }
    }

    #[test]
    fn programs_read_stable_words() {
        let progress = Progress {
            fraction: 0.456,
            text: "45%: connecting".into(),
            blocked: Some("no network".into()),
            ready: false,
            trouble: None,
        };
        let tor = said(&Event::Tor(&progress));
        assert_eq!(
            tor,
            serde_json::json!({"event": "tor", "percent": 45, "ready": false, "text": "45%: connecting",
                               "blocked": "no network"})
        );
        assert_eq!(
            said(&Event::Onion(None)),
            serde_json::json!({"event": "onion", "published": false, "address": null})
        );
        let down = view(
            "waiting",
            Some("[KITE-F01] frontend-unreachable: it is down"),
        );
        assert_eq!(
            said(&Event::Tunnel(&down)),
            serde_json::json!({"event": "tunnel", "frontend": "alice.example:443", "tunnel": 2, "state": "waiting",
                               "kites": ["foolscap:bob.alice.example"], "code": "KITE-F01",
                               "error": "frontend-unreachable: it is down"})
        );
        let up = said(&Event::Tunnel(&view("up", Some("[KITE-F01] of old"))));
        assert_eq!(
            (&up["code"], &up["error"]),
            (&serde_json::Value::Null, &serde_json::Value::Null)
        );
    }

    #[test]
    fn the_same_twice_is_shown_once() {
        let mut display = Display::new();
        display.show(&Event::Tunnel(&view("dialling", None)));
        display.show(&Event::Tunnel(&view("dialling", None)));
        display.show(&Event::Onion(None));
        assert!(display.bars.is_none() || io::stderr().is_terminal());
        assert_eq!(display.last.len(), 2);
    }
}
