//! Looks at the traffic every few seconds, and keeps it in a file that survives the process.

use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::Serialize;
use tokio::time::{MissedTickBehavior, interval};

use super::ring::{Counters, FILE, Plot, Ring};
use crate::clock::now_unix;
use crate::code::Code;
use crate::control::Desk;
use crate::observe::status::{Role, Status};

/// Between two looks.
const LOOK: Duration = Duration::from_secs(2);
/// Looks between two writes: what a sudden end can cost.
const LOOKS_A_WRITE: u32 = 5;

/// The ring, and its file.
pub struct Recorder {
    ring: Mutex<Ring>,
    /// Visitors up to the last look.
    visitors: AtomicU64,
    file: PathBuf,
}

/// What is plotted.
#[derive(Debug, Serialize)]
pub struct Plots {
    hour: Plot,
    day: Plot,
}

impl Recorder {
    /// Goes on with what an earlier run has kept. What cannot be used is begun anew: it is only a picture.
    pub fn open(state_dir: &Path, role: Role) -> Self {
        let file = state_dir.join(match role {
            Role::Backend => "backend-traffic",
            Role::Frontend => "frontend-traffic",
        });
        let anew = |why: &dyn std::fmt::Display| {
            tracing::warn!(
                "[{}] {}: {why}; the plots of the status page begin anew",
                Code::PlotsLost,
                file.display()
            );
            Ring::default()
        };
        let ring = match read(&file) {
            Ok(Some(bytes)) => Ring::from_bytes(&bytes).unwrap_or_else(|e| anew(&e)),
            Ok(None) => Ring::default(),
            Err(e) => anew(&e),
        };
        Self {
            ring: Mutex::new(ring),
            visitors: AtomicU64::new(0),
            file,
        }
    }

    /// What is to be plotted now.
    pub fn plots(&self) -> Plots {
        let (ring, now) = (self.lock(), now_unix());
        Plots {
            hour: ring.hour(now),
            day: ring.day(now),
        }
    }

    fn take(&self, status: &Status) {
        let traffic = &status.traffic;
        // One who has left again by now was there, too.
        let before = self.visitors.swap(traffic.visitors, Ordering::Relaxed);
        let passing = usize::from(traffic.visitors > before);
        let counters = Counters {
            from_visitors: traffic.from_visitors,
            to_visitors: traffic.to_visitors,
            streams: traffic.open.max(passing).try_into().unwrap_or(u32::MAX),
        };
        self.lock().take(now_unix(), counters);
    }

    /// The new file replaces the old one whole.
    fn write(&self, bytes: &[u8]) -> std::io::Result<()> {
        let draft = self.file.with_extension("new");
        let mut options = fs::OpenOptions::new();
        let options = options.write(true).create(true).truncate(true).mode(0o600);
        options.open(&draft)?.write_all(bytes)?;
        fs::rename(&draft, &self.file)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Ring> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn read(file: &Path) -> std::io::Result<Option<Vec<u8>>> {
    match fs::metadata(file) {
        Ok(meta) if meta.len() == FILE as u64 => fs::read(file).map(Some),
        // Of no use, whatever is in it.
        Ok(_) => Ok(Some(Vec::new())),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

/// Records until it is dropped.
pub async fn record(recorder: Arc<Recorder>, desk: Arc<dyn Desk>) {
    let mut ticks = interval(LOOK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut looks, mut kept, mut told) = (0u32, Vec::new(), false);
    loop {
        ticks.tick().await;
        recorder.take(&desk.status());
        looks = looks.wrapping_add(1);
        if !looks.is_multiple_of(LOOKS_A_WRITE) {
            continue;
        }
        let bytes = recorder.lock().to_bytes();
        // Where nothing passes nothing is written.
        if bytes == kept {
            continue;
        }
        let (writer, copy) = (recorder.clone(), bytes.clone());
        let written = tokio::task::spawn_blocking(move || writer.write(&copy)).await;
        match written {
            Ok(Err(e)) if !told => {
                told = true;
                tracing::warn!(
                    "[{}] {}: {e}; the plots of the status page will not survive a restart",
                    Code::PlotsLost,
                    recorder.file.display()
                );
            }
            _ => kept = bytes,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    #[test]
    fn what_was_kept_is_there_again_and_what_is_damaged_is_not() {
        let dir = tempfile::tempdir().expect("a directory");
        let open = || Recorder::open(dir.path(), Role::Backend);
        let sum = |recorder: &Recorder| recorder.plots().day.from_visitors.iter().sum::<u64>();
        let recorder = open();
        let mut status = Status::new(Role::Backend, Instant::now());
        status.traffic.from_visitors = 77;
        status.traffic.visitors = 1;
        recorder.take(&status);
        assert_eq!(recorder.plots().hour.streams.iter().max(), Some(&1));
        let bytes = recorder.lock().to_bytes();
        recorder.write(&bytes).expect("a file");
        assert_eq!(sum(&open()), 77);
        let file = &recorder.file;
        for bad in [&bytes[..100], &[], &[7; FILE + 1], &vec![7; FILE]] {
            fs::write(file, bad).expect("a file");
            assert_eq!(sum(&open()), 0);
        }
        fs::remove_file(file).expect("it was there");
        fs::create_dir(file).expect("in its place");
        assert_eq!(sum(&open()), 0);
    }
}
