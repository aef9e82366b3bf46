//! Tor's start, shown while it lasts: a bar on a terminal, lines elsewhere.

use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::tor::Progress;

/// Steps of the bar.
const STEPS: u64 = 100;

/// Shows progress on standard error.
pub struct Display {
    bar: Option<ProgressBar>,
    last: String,
}

impl Display {
    /// A bar if standard error is a terminal, log lines if not.
    pub fn new() -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::with_draw_target(Some(STEPS), ProgressDrawTarget::stderr());
            if let Ok(style) = ProgressStyle::with_template("  Tor  {bar:24}  {wide_msg}") {
                bar.set_style(style);
            }
            bar.enable_steady_tick(Duration::from_millis(250));
            bar
        });
        Self {
            bar,
            last: String::new(),
        }
    }

    /// Shows the newest state; the same state twice is shown once.
    pub fn show(&mut self, progress: &Progress) {
        let percent = (progress.fraction.clamp(0.0, 1.0) * STEPS as f32) as u64;
        let text = match &progress.blocked {
            Some(why) => format!("stuck: {why}"),
            None => progress.text.clone(),
        };
        match &self.bar {
            Some(bar) if progress.ready => bar.finish_and_clear(),
            Some(bar) => {
                bar.set_position(percent);
                bar.set_message(text);
            }
            None => {
                let line = format!("Tor: {text}");
                if line != self.last {
                    // What keeps it is said by the watch, with what to do: here it is Arti's guess.
                    if progress.blocked.is_some() {
                        tracing::debug!("{line}")
                    } else {
                        tracing::info!("{line}")
                    }
                    self.last = line;
                }
            }
        }
    }
}

impl Default for Display {
    fn default() -> Self {
        Self::new()
    }
}
