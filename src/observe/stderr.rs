//! Standard error, or the journal in its place, for log lines that nobody may have to wait for: whoever reads it may have stopped, and a
//! pipe, a terminal or a queue that is full would stop every thread that has something to say, and with them the kite. So one thread
//! writes, and what it has no room for is counted and left out. The objects of `--progress json` on standard output go the
//! same way ([`super::progress`]).

use std::io::{self, Write};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use super::journal;
use crate::dial::supervisor::JournalSocket;

/// Lines that wait to be written; more are left out.
pub const MAX_LINES: usize = 1024;
/// Of them, how many may be what bars look like now; later looks are left out.
pub const MAX_DRAWS: usize = MAX_LINES / 2;
/// The longest line, in bytes; of a longer one the beginning is written.
pub const MAX_LINE: usize = 16 * 1024;
/// How long the end of a kite waits until what was said is written.
pub const LAST_LINES: Duration = Duration::from_secs(2);

static LINES: OnceLock<Lines> = OnceLock::new();
/// Where lines go instead.
static JOURNAL: OnceLock<JournalSocket> = OnceLock::new();

/// From now on each line is an entry for the journal. Once.
pub(super) fn to_journal(socket: JournalSocket) {
    let _ = JOURNAL.set(socket);
}

/// From now on a thread writes. To be called when no more threads are needed outside of walls; until then who speaks writes.
pub fn begin() {
    let missing = |n| match JOURNAL.get() {
        Some(_) => journal::missing(n),
        None => {
            format!("kite: {n} log lines are not here: standard error was not read for a while\n")
                .into()
        }
    };
    if let Ok(lines) = Lines::begin(Box::new(Plain), missing) {
        let _ = LINES.set(lines);
    }
}

/// Waits until all is written that was said until now; false if nobody reads it.
pub fn finish() -> bool {
    LINES.get().is_none_or(|lines| lines.finish(LAST_LINES))
}

/// What log lines are written to: a line with each call.
#[derive(Debug, Default)]
pub struct Stderr;

impl Write for Stderr {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        // Bars make room: what they draw for that goes the same way, before the line and after it.
        super::progress::beside(|| match LINES.get() {
            Some(lines) => {
                lines.say(line);
                Ok(())
            }
            None => Plain.write_all(line),
        })?;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Puts what bars look like on the terminal, among the lines.
pub(super) fn draw(look: Vec<u8>) -> io::Result<()> {
    match LINES.get() {
        Some(lines) => {
            lines.draw(look);
            Ok(())
        }
        None => io::stderr().write_all(&look),
    }
}

/// The journal, or standard error.
struct Plain;

impl Write for Plain {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match JOURNAL.get() {
            Some(journal) => journal.send(bytes),
            None => io::stderr().write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

enum Said {
    Line(Vec<u8>),
    Draw(Vec<u8>),
    /// All before it is written: to be said there.
    End(SyncSender<()>),
}

/// Lines on their way.
pub(super) struct Lines {
    queue: SyncSender<Said>,
    left_out: Arc<AtomicU64>,
    draws: Arc<AtomicUsize>,
}

impl Lines {
    /// A thread that writes there; `missing` is what it says of so many lines that were left out.
    pub(super) fn begin(
        mut to: Box<dyn Write + Send>,
        missing: fn(u64) -> Vec<u8>,
    ) -> io::Result<Self> {
        let (queue, said) = sync_channel(MAX_LINES);
        let left_out = Arc::new(AtomicU64::new(0));
        let draws = Arc::new(AtomicUsize::new(0));
        let (counted, drawn) = (left_out.clone(), draws.clone());
        std::thread::Builder::new()
            .name("log".to_owned())
            .spawn(move || write_all(&said, (&counted, &drawn), missing, &mut *to))?;
        Ok(Self {
            queue,
            left_out,
            draws,
        })
    }

    /// Has bars drawn, if there is room for that. Nobody misses a look of theirs.
    fn draw(&self, look: Vec<u8>) {
        if self.draws.fetch_add(1, Ordering::Relaxed) >= MAX_DRAWS
            || self.queue.try_send(Said::Draw(look)).is_err()
        {
            self.draws.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Has a line written, if there is room for it.
    pub(super) fn say(&self, line: &[u8]) {
        let mut kept = line.get(..MAX_LINE).unwrap_or(line).to_vec();
        if kept.len() < line.len() {
            kept.extend_from_slice("…\n".as_bytes());
        }
        if self.queue.try_send(Said::Line(kept)).is_err() {
            self.left_out.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Waits until all is written that was said until now, or for so long; false if it is not.
    pub(super) fn finish(&self, patience: Duration) -> bool {
        let (done, end) = sync_channel(1);
        let begun = std::time::Instant::now();
        let mut word = Said::End(done);
        while begun.elapsed() < patience {
            match self.queue.try_send(word) {
                Ok(()) => {
                    let left = patience.saturating_sub(begun.elapsed());
                    return !matches!(end.recv_timeout(left), Err(RecvTimeoutError::Timeout));
                }
                Err(TrySendError::Full(back)) => {
                    word = back;
                    std::thread::sleep(PAUSE);
                }
                Err(TrySendError::Disconnected(_)) => return false,
            }
        }
        false
    }
}

/// Between two looks whether there is room for the last word.
const PAUSE: Duration = Duration::from_millis(10);

/// Writes what is said for as long as somebody can say something. Nothing can be done about what cannot be written.
fn write_all(
    said: &Receiver<Said>,
    (left_out, draws): (&AtomicU64, &AtomicUsize),
    missing: fn(u64) -> Vec<u8>,
    to: &mut dyn Write,
) {
    while let Ok(said) = said.recv() {
        match said {
            Said::Line(line) => {
                let _ = to.write_all(&line);
            }
            Said::Draw(look) => {
                draws.fetch_sub(1, Ordering::Relaxed);
                let _ = to.write_all(&look);
            }
            Said::End(done) => {
                let _ = done.send(());
            }
        }
        match left_out.swap(0, Ordering::Relaxed) {
            0 => {}
            n => {
                let _ = to.write_all(&missing(n));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    fn lines(to: UnixStream) -> Lines {
        Lines::begin(Box::new(to), |n| format!("kite: {n} lines\n").into()).expect("a thread")
    }

    #[test]
    fn who_does_not_read_stops_nobody_and_is_told_what_is_missing() {
        let (to, mut from) = UnixStream::pair().expect("two sockets");
        let lines = lines(to);
        let line = [&[b'x'; 1023][..], b"\n"].concat();
        // More than the socket and the queue hold.
        let all = 8 * MAX_LINES;
        for _ in 0..all {
            lines.say(&line);
        }
        assert!(!lines.finish(Duration::from_millis(20)), "nobody reads");
        let reader = std::thread::spawn(move || {
            let mut text = String::new();
            io::Read::read_to_string(&mut from, &mut text).map(|_| text)
        });
        while !lines.finish(LAST_LINES) {}
        lines.say(b"the last\n");
        assert!(lines.finish(LAST_LINES));
        drop(lines);
        let text = reader.join().expect("a reader").expect("text");
        let came = text.lines().filter(|l| l.starts_with('x')).count();
        let missing = text.lines().filter_map(|l| {
            l.strip_prefix("kite: ")?
                .split(' ')
                .next()?
                .parse::<usize>()
                .ok()
        });
        assert_eq!(came + missing.sum::<usize>(), all);
        assert!((MAX_LINES..all).contains(&came), "{came}");
        assert!(text.ends_with("the last\n"));
    }

    #[test]
    fn bars_leave_room_for_lines() {
        let (to, mut from) = UnixStream::pair().expect("two sockets");
        let lines = lines(to);
        // More than the socket holds, and the queue.
        for _ in 0..4 * MAX_LINES {
            lines.draw(vec![b'.'; 1024]);
        }
        for _ in 0..MAX_LINES / 4 {
            lines.say(b"a line\n");
        }
        let reader = std::thread::spawn(move || {
            let mut text = String::new();
            io::Read::read_to_string(&mut from, &mut text).map(|_| text)
        });
        while !lines.finish(LAST_LINES) {}
        lines.draw(b"!".to_vec());
        assert!(lines.finish(LAST_LINES));
        drop(lines);
        let text = reader.join().expect("a reader").expect("text");
        assert_eq!(
            text.matches("a line\n").count(),
            MAX_LINES / 4,
            "no line is missing"
        );
        assert!(text.ends_with('!'), "and bars are drawn again");
        assert!(text.matches('.').count() < 2 * MAX_LINES * 1024);
    }

    #[test]
    fn a_line_has_a_length() {
        let (to, mut from) = UnixStream::pair().expect("two sockets");
        let lines = lines(to);
        lines.say(&[b'x'; 2 * MAX_LINE]);
        assert!(lines.finish(LAST_LINES));
        drop(lines);
        let mut text = String::new();
        io::Read::read_to_string(&mut from, &mut text).expect("text");
        assert_eq!(text, "x".repeat(MAX_LINE) + "…\n");
    }
}
