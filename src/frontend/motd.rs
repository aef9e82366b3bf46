//! The message of the day: a file's text, which backends get with their verdict.

use crate::code::Code;
use std::io::Read;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError, RwLock};
use std::time::SystemTime;

/// What is sent of the file, in bytes; the rest is cut off.
pub const MAX_TEXT: usize = 1024;

/// The message, as it was when it was last looked for.
#[derive(Default)]
pub struct Motd {
    place: Mutex<Place>,
    text: RwLock<Option<String>>,
}

#[derive(Default)]
struct Place {
    path: Option<PathBuf>,
    /// How the file looked when it was read.
    seen: Option<(SystemTime, u64)>,
    /// That it cannot be read was said.
    complained: bool,
}

impl Motd {
    /// The text of this file, if one is given.
    pub fn new(path: Option<PathBuf>) -> Self {
        let motd = Self::default();
        motd.read_from(path);
        motd
    }

    /// From now on it is in this file, or there is none.
    pub fn read_from(&self, path: Option<PathBuf>) {
        *self.place() = Place {
            path,
            ..Place::default()
        };
        *self.text.write().unwrap_or_else(PoisonError::into_inner) = None;
        self.refresh();
    }

    /// Reads the file again if it has changed. One that cannot be read leaves the message as it
    /// is; that is logged, once.
    pub fn refresh(&self) {
        let mut place = self.place();
        let Some(path) = place.path.clone() else {
            return;
        };
        let looks = || {
            let meta = std::fs::metadata(&path)?;
            // A pipe, or a device, could keep us waiting, or never end.
            if !meta.is_file() {
                return Err(std::io::Error::other("it is no regular file"));
            }
            Ok((meta.modified()?, meta.len()))
        };
        let read = || {
            let mut text = Vec::new();
            let file = std::fs::File::open(&path)?;
            file.take(MAX_TEXT as u64).read_to_end(&mut text)?;
            Ok::<_, std::io::Error>(text)
        };
        let read = looks().and_then(|seen| {
            let same = place.seen == Some(seen);
            let text = (!same).then(read).transpose()?;
            Ok::<_, std::io::Error>((seen, text))
        });
        match read {
            Ok((_, None)) => {}
            Ok((seen, Some(bytes))) => {
                place.seen = Some(seen);
                place.complained = false;
                let text = String::from_utf8_lossy(&bytes).trim().to_owned();
                *self.text.write().unwrap_or_else(PoisonError::into_inner) =
                    (!text.is_empty()).then_some(text);
            }
            Err(e) if !std::mem::replace(&mut place.complained, true) => {
                tracing::warn!(
                    "[{}] the message of the day stays as it was: {}: {e}; write it there, or remove motd_file",
                    Code::MotdUnreadable,
                    path.display()
                );
            }
            Err(_) => {}
        }
    }

    /// The message, if there is one.
    pub fn text(&self) -> Option<String> {
        self.text
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn place(&self) -> std::sync::MutexGuard<'_, Place> {
        self.place.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_text_is_seen_and_a_missing_file_changes_nothing() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("motd");
        std::fs::write(&path, "one\n").expect("a file");
        let motd = Motd::new(Some(path.clone()));
        assert_eq!(motd.text().as_deref(), Some("one"));
        std::fs::write(&path, "two, and two lines\nof it\n").expect("a file");
        motd.refresh();
        assert_eq!(motd.text().as_deref(), Some("two, and two lines\nof it"));
        std::fs::remove_file(&path).expect("it was there");
        motd.refresh();
        assert!(motd.text().is_some());
        std::fs::write(&path, "").expect("a file");
        motd.refresh();
        assert_eq!(motd.text(), None);
        std::fs::write(&path, "\u{e9}".repeat(1000)).expect("a file");
        motd.refresh();
        assert!(motd.text().is_some_and(|text| text.len() <= MAX_TEXT));
        // What has no end is not read to it.
        for bad in ["/dev/zero", "/dev/tty", "/"] {
            motd.read_from(Some(bad.into()));
            assert_eq!(motd.text(), None, "{bad}");
        }
        let huge = std::fs::File::create(&path).expect("a file");
        huge.set_len(1 << 40).expect("a hole");
        motd.read_from(Some(path.clone()));
        assert!(motd.text().is_some_and(|text| text.len() <= MAX_TEXT));
        assert_eq!(Motd::new(None).text(), None);
    }
}
