//! What the fuzz targets do (`fuzz/`): any bytes in, and what must hold whatever they are. Built for tests and for
//! fuzzing alone: `cargo test` replays the corpus through these same functions.
//!
//! A target's first byte, or its first two, say what is done with the rest; see each function.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a target that panics has found something"
)]

mod fleet;
mod mux;
mod texts;
mod tub;
mod visitor;
mod wire;

pub use self::fleet::fleet;
pub use self::mux::{attack, mux, simulate};
pub use self::texts::{answers, files, words};
pub use self::tub::tub;
pub use self::visitor::{foolscap, visitor};
pub use self::wire::{frames, handshake};

/// What a target does with its bytes.
pub type Target = fn(&[u8]);

/// All of them, by their names: those of the files in `fuzz/targets`, and of the corpora.
pub const TARGETS: [(&str, Target); 10] = [
    ("frames", frames),
    ("handshake", handshake),
    ("visitor", visitor),
    ("foolscap", foolscap),
    ("words", words),
    ("files", files),
    ("answers", answers),
    ("tub", tub),
    ("fleet", fleet),
    ("mux", mux),
];

/// The bytes in pieces of `n`; in one if that is 0.
fn pieces(bytes: &[u8], n: u8) -> impl Iterator<Item = &[u8]> {
    bytes.chunks(match n {
        0 => bytes.len().max(1),
        n => n.into(),
    })
}

/// What [`crate::sniff::Sniff`] promises: what was found, or refused, stays so whatever follows.
fn stays<T: PartialEq + std::fmt::Debug, E: PartialEq + std::fmt::Debug>(
    bytes: &[u8],
    read: impl Fn(&[u8]) -> crate::sniff::Sniff<T, E>,
) -> Option<T> {
    use crate::sniff::Sniff;
    let whole = read(bytes);
    // Some places where it may be cut, more of them where heads are.
    let cuts = (0..bytes.len().min(24)).chain((1..16).map(|part| bytes.len() * part / 16));
    for cut in cuts {
        match read(bytes.get(..cut).unwrap_or_default()) {
            Sniff::NeedMore => {}
            early => assert_eq!(early, whole, "after {cut} bytes of {}", bytes.len()),
        }
    }
    match whole {
        Sniff::Found(found) => Some(found),
        Sniff::NeedMore | Sniff::Refuse(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::path::Path;

    /// Everything that fuzzing has found worth keeping, in `fuzz/corpus`.
    #[test]
    fn the_corpus_is_replayed() {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
        for (name, target) in TARGETS {
            let mut inputs = 0;
            for file in fs::read_dir(corpus.join(name)).expect("a corpus") {
                let file = file.expect("a file").path();
                let bytes = fs::read(&file).expect("a file");
                let done = std::panic::catch_unwind(|| target(&bytes));
                assert!(done.is_ok(), "{} fails", file.display());
                inputs += 1;
            }
            assert!(inputs > 10, "{name}: hardly anything to replay");
        }
    }

    /// No target without a corpus, no corpus without a target.
    #[test]
    fn targets_and_corpora_have_the_same_names() {
        let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz");
        let names = |dir: &str| {
            let files = fs::read_dir(fuzz.join(dir)).expect("a directory");
            let stem = |file: std::io::Result<fs::DirEntry>| {
                let path = file.expect("a file").path();
                path.file_stem()
                    .expect("a name")
                    .to_string_lossy()
                    .into_owned()
            };
            let mut names: Vec<_> = files.map(stem).collect();
            names.sort();
            names
        };
        let mut known = TARGETS.map(|(name, _)| name.to_owned()).to_vec();
        known.sort();
        assert_eq!(names("targets"), known);
        assert_eq!(names("corpus"), known);
    }
}
